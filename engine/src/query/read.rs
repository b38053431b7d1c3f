//! `read_stream`: a source becomes the leaf of a `DataFrame`.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::prelude::{DataFrame, SessionContext};

use super::QueryManager;
use crate::error::Result;
use crate::source::{Source, StreamTable};

/// What Tidewater adds to DataFusion's `SessionContext`.
#[async_trait]
pub trait StreamingContext {
    /// A `DataFrame` over a stream.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use arrow::datatypes::{DataType, Field, Schema};
    /// use datafusion::prelude::*;
    /// use tidewater::prelude::*;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<()> {
    /// let source = MemorySource::new(Arc::new(Schema::new(vec![Field::new("v", DataType::Int64, true)])));
    /// let ctx = SessionContext::new();
    /// let stream = ctx.read_stream(source).await?.filter(col("v").gt(lit(1)))?;
    /// assert!(stream.is_streaming());
    /// # Ok(())
    /// # }
    /// ```
    async fn read_stream(&self, source: impl Source + 'static) -> Result<DataFrame>;

    /// Makes a stream known to SQL under a name.
    async fn register_stream(&self, name: &str, source: impl Source + 'static) -> Result<()>;

    /// The queries of this session.
    fn streams(&self) -> QueryManager;
}

#[async_trait]
impl StreamingContext for SessionContext {
    async fn read_stream(&self, source: impl Source + 'static) -> Result<DataFrame> {
        // The DataFrame takes a copy of the session with it: the manager must be in it before.
        self.streams();
        Ok(self.read_table(Arc::new(StreamTable::new(Arc::new(source))))?)
    }

    async fn register_stream(&self, name: &str, source: impl Source + 'static) -> Result<()> {
        self.streams();
        self.register_table(name, Arc::new(StreamTable::new(Arc::new(source))))?;
        Ok(())
    }

    fn streams(&self) -> QueryManager {
        let state = self.state_ref();
        let mut state = state.write();
        if let Some(manager) = state.config().get_extension::<QueryManager>() {
            return manager.as_ref().clone();
        }
        let manager = QueryManager::default();
        state.config_mut().set_extension(Arc::new(manager.clone()));
        manager
    }
}
