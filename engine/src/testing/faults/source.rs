//! A source whose calls are counted.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::physical_plan::ExecutionPlan;
use futures::future::BoxFuture;

use super::FaultInjector;
use crate::error::Result;
use crate::identity::Identity;
use crate::source::{
    LatestOffset, MicroBatchStream, Offset, OffsetRange, ReadLimit, ScanContext, ScanRequest, Source, SourceContext,
    SourceScanner, Split,
};

/// A source whose calls are counted.
#[derive(Debug)]
pub struct FaultySource {
    inner: Arc<dyn Source>,
    falls: FaultInjector,
}

impl FaultySource {
    /// Counts the calls to `inner`.
    pub fn new(inner: impl Source + 'static, falls: &FaultInjector) -> Self {
        FaultySource { inner: Arc::new(inner), falls: falls.clone() }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Source for FaultySource {
    fn identity(&self) -> Option<Identity> {
        self.inner.identity()
    }

    fn reads_from(&self, sink: &Identity) -> Result<bool> {
        self.inner.reads_from(sink)
    }

    fn description(&self) -> String {
        self.inner.description()
    }

    fn schema(&self) -> SchemaRef {
        self.inner.schema()
    }

    fn emits_dead_letters(&self) -> bool {
        self.inner.emits_dead_letters()
    }

    fn knows_file_names(&self) -> bool {
        self.inner.knows_file_names()
    }

    async fn open(&self, context: SourceContext) -> Result<Box<dyn MicroBatchStream>> {
        let inner = around!(self.falls, "source.open", self.inner.open(context).await)?;
        Ok(Box::new(FaultyStream { inner, falls: self.falls.clone() }))
    }

    /// A scan reads nothing yet: it is no call to count.
    fn scanner(&self, context: ScanContext) -> Result<Option<Arc<dyn SourceScanner>>> {
        self.inner.scanner(context)
    }
}

#[derive(Debug)]
struct FaultyStream {
    inner: Box<dyn MicroBatchStream>,
    falls: FaultInjector,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl MicroBatchStream for FaultyStream {
    async fn prepare_for_available_now(&mut self) -> Result<()> {
        around!(self.falls, "source.prepare_for_available_now", self.inner.prepare_for_available_now().await)
    }

    async fn latest_offset(&mut self, after: Option<&Offset>, limit: ReadLimit) -> Result<LatestOffset> {
        around!(self.falls, "source.latest_offset", self.inner.latest_offset(after, limit).await)
    }

    async fn bind(&mut self, range: &OffsetRange, scan: &ScanRequest) -> Result<Arc<dyn ExecutionPlan>> {
        around!(self.falls, "source.bind", self.inner.bind(range, scan).await)
    }

    async fn splits(&mut self, range: &OffsetRange, scan: &ScanRequest) -> Result<Option<Vec<Split>>> {
        around!(self.falls, "source.splits", self.inner.splits(range, scan).await)
    }

    async fn commit(&mut self, end: &Offset) -> Result<()> {
        around!(self.falls, "source.commit", self.inner.commit(end).await)
    }

    fn news(&self) -> Option<BoxFuture<'static, ()>> {
        self.inner.news()
    }

    fn metrics(&self) -> BTreeMap<String, String> {
        self.inner.metrics()
    }
}
