//! A source as a query uses it, without a query: what its reader splits is sent as JSON and scanned by another object.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::physical_plan::ExecutionPlan;
use futures::future::BoxFuture;

use super::serialised::across;
use crate::error::{Error, Result};
use crate::id::BatchId;
use crate::source::{
    LatestOffset, MicroBatchStream, Offset, OffsetRange, ReadLimit, ScanRequest, Source, SourceContext, SourceScanner,
    Split, add_metrics,
};

/// A reader whose [`bind`](MicroBatchStream::bind) works for every source: of one that gives splits, it sends them as JSON to a
/// scanner made for this reader and gives the plan of that. Its metrics are those of both. For tests of a source alone.
pub async fn open_by_splits(source: &dyn Source, context: SourceContext) -> Result<Box<dyn MicroBatchStream>> {
    Ok(Box::new(BySplits::open(source, context).await?))
}

/// See [`open_by_splits`].
#[derive(Debug)]
pub(super) struct BySplits {
    reader: Box<dyn MicroBatchStream>,
    scanner: Option<Arc<dyn SourceScanner>>,
    /// Shares nothing with the first but the source.
    other: Option<Arc<dyn SourceScanner>>,
    /// Another range is another batch.
    batch: BatchId,
    range: Option<OffsetRange>,
    /// Those of the last range, if it was split.
    splits: Option<Vec<Split>>,
}

impl BySplits {
    pub(super) async fn open(source: &dyn Source, context: SourceContext) -> Result<Self> {
        let scans = context.for_scanner();
        let (scanner, other) = (source.scanner(scans.clone())?, source.scanner(scans)?);
        let reader = source.open(context).await?;
        Ok(BySplits { reader, scanner, other, batch: BatchId(0), range: None, splits: None })
    }

    /// The splits of what was bound last, each by itself, as another process would scan them; `None` if it was not split.
    pub(super) fn each_elsewhere(&self, scan: &ScanRequest) -> Result<Option<Vec<Arc<dyn ExecutionPlan>>>> {
        let Some(splits) = &self.splits else { return Ok(None) };
        let scanner = found(self.other.as_ref())?;
        let one = |split: &Split| scanner.scan(self.batch, &[across(split)?], scan);
        splits.iter().map(one).collect::<Result<_>>().map(Some)
    }
}

fn found(scanner: Option<&Arc<dyn SourceScanner>>) -> Result<&Arc<dyn SourceScanner>> {
    scanner.ok_or_else(|| Error::internal("the source gives splits, and `Source::scanner` gives none to scan them"))
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl MicroBatchStream for BySplits {
    async fn prepare_for_available_now(&mut self) -> Result<()> {
        self.reader.prepare_for_available_now().await
    }

    async fn latest_offset(&mut self, after: Option<&Offset>, limit: ReadLimit) -> Result<LatestOffset> {
        self.reader.latest_offset(after, limit).await
    }

    async fn bind(&mut self, range: &OffsetRange, scan: &ScanRequest) -> Result<Arc<dyn ExecutionPlan>> {
        if self.range.as_ref() != Some(range) {
            self.range = Some(range.clone());
            self.batch = self.batch.next();
        }
        self.splits = self.reader.splits(range, scan).await?;
        match &self.splits {
            Some(splits) => found(self.scanner.as_ref())?.scan(self.batch, &across(splits)?, scan),
            None => self.reader.bind(range, scan).await,
        }
    }

    async fn splits(&mut self, range: &OffsetRange, scan: &ScanRequest) -> Result<Option<Vec<Split>>> {
        self.reader.splits(range, scan).await
    }

    async fn commit(&mut self, end: &Offset) -> Result<()> {
        self.reader.commit(end).await
    }

    fn news(&self) -> Option<BoxFuture<'static, ()>> {
        self.reader.news()
    }

    fn metrics(&self) -> BTreeMap<String, String> {
        let mut metrics = self.reader.metrics();
        if let Some(scanner) = &self.scanner {
            add_metrics(&mut metrics, &scanner.metrics());
        }
        metrics
    }
}
