//! `read_stream`: a source becomes the leaf of a `DataFrame`.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::prelude::{DataFrame, SessionContext};

use super::QueryManager;
use super::sealed::Sealed;
use crate::error::Result;
use crate::plan::windows;
use crate::source::{Source, StreamTable};
use crate::window::sql::plan_statement;

/// What Tidewater adds to DataFusion's `SessionContext`. It is implemented for that type alone.
#[async_trait]
pub trait StreamingSessionExt: Sealed {
    /// A `DataFrame` over a stream. It opens nothing and waits for nothing: [`start`](super::StreamWriter::start) does.
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
    /// let stream = ctx.read_stream(source)?.filter(col("v").gt(lit(1)))?;
    /// assert!(stream.is_streaming());
    /// # Ok(())
    /// # }
    /// ```
    fn read_stream(&self, source: impl Source + 'static) -> Result<DataFrame>;

    /// Makes a stream known to SQL under a name.
    fn register_stream(&self, name: &str, source: impl Source + 'static) -> Result<()>;

    /// Like [`SessionContext::sql`], and where a query groups by `window(…)` or `session_window(…)`, these names stand
    /// for the result, as in Spark: `SELECT window.start, count(*) FROM t GROUP BY window(ts, '10 minutes')`.
    ///
    /// # Errors
    ///
    /// If the statement is not SQL, or names what is not there.
    async fn streaming_sql(&self, sql: &str) -> Result<DataFrame>;

    /// Makes `window`, `session_window` and `window_time`, and grouping by them, known to this session: for programs
    /// that read no stream. Whoever reads or registers a stream has called it. From then on the session also goes without
    /// what DataFusion is known to answer wrongly; statements that were prepared before (`PREPARE`) must be prepared again.
    fn enable_windows(&self);

    /// The queries of this session.
    fn streams(&self) -> QueryManager;
}

#[async_trait]
impl StreamingSessionExt for SessionContext {
    fn read_stream(&self, source: impl Source + 'static) -> Result<DataFrame> {
        // The DataFrame takes a copy of the session with it: manager and windows must be in it before.
        self.streams();
        self.enable_windows();
        Ok(self.read_table(Arc::new(StreamTable::new(Arc::new(source))))?)
    }

    fn register_stream(&self, name: &str, source: impl Source + 'static) -> Result<()> {
        self.streams();
        self.enable_windows();
        self.register_table(name, Arc::new(StreamTable::new(Arc::new(source))))?;
        Ok(())
    }

    async fn streaming_sql(&self, sql: &str) -> Result<DataFrame> {
        self.enable_windows();
        let state = self.state();
        let dialect = state.config().options().sql_parser.dialect;
        let statement = state.sql_to_statement(sql, &dialect)?;
        let plan = plan_statement(&state, statement).await?;
        Ok(self.execute_logical_plan(plan).await?)
    }

    fn enable_windows(&self) {
        windows::enable(&mut self.state_ref().write());
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
