//! The user's code, once per batch.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::datasource::MemTable;
use datafusion::prelude::{DataFrame, SessionContext};
use futures::future::BoxFuture;

use super::memory::Rows;
use super::{BatchStatus, DataWriter, Guarantee, Receipt, Sink, SinkContext, StreamingWrite};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BatchId, PartitionId};
use crate::identity::Identity;
use crate::output_mode::OutputMode;

type UserFn = dyn Fn(DataFrame, BatchId) -> BoxFuture<'static, UserResult> + Send + Sync;
type UserResult = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Hands the rows of each batch to a function of the user, as a bounded `DataFrame` with the batch's number.
///
/// After a crash the function may be called again with the same number and the same rows: at least once. A function that
/// remembers the numbers it has taken makes that exactly once, and may say so with [`exactly_once`](Self::exactly_once).
///
/// Its writers stay with the driver: the function gets all rows of a batch at once, in the process that has it.
///
/// ```
/// use tidewater::sink::ForeachBatchSink;
///
/// let sink = ForeachBatchSink::new(|rows, batch| async move {
///     println!("batch {batch}: {} rows", rows.count().await?);
///     Ok(())
/// });
/// ```
#[derive(Clone)]
pub struct ForeachBatchSink {
    function: Arc<UserFn>,
    guarantee: Guarantee,
}

impl ForeachBatchSink {
    /// Calls `function` once per batch, batches without rows included.
    pub fn new<F, R>(function: F) -> Self
    where
        F: Fn(DataFrame, BatchId) -> R + Send + Sync + 'static,
        R: Future<Output = UserResult> + Send + 'static,
    {
        ForeachBatchSink {
            function: Arc::new(move |rows, batch| Box::pin(function(rows, batch))),
            guarantee: Guarantee::AtLeastOnce,
        }
    }

    /// Declares that the function takes the same batch twice as if it were once.
    #[must_use]
    pub fn exactly_once(mut self) -> Self {
        self.guarantee = Guarantee::ExactlyOnce;
        self
    }
}

impl fmt::Debug for ForeachBatchSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForeachBatchSink").field("guarantee", &self.guarantee).finish_non_exhaustive()
    }
}

#[async_trait]
impl Sink for ForeachBatchSink {
    fn description(&self) -> String {
        "foreach_batch".to_owned()
    }

    fn identity(&self) -> Option<Identity> {
        Some(Identity::new("foreach batch"))
    }

    fn guarantee(&self) -> Guarantee {
        self.guarantee
    }

    fn supports_output_mode(&self, _mode: OutputMode) -> bool {
        true
    }

    fn has_time_limit(&self) -> bool {
        false
    }

    async fn open(&self, context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
        let session = SessionContext::new_with_state(context.session.as_ref().clone());
        Ok(Box::new(ForeachBatchWriter { sink: self.clone(), session, schema: context.schema }))
    }
}

struct ForeachBatchWriter {
    sink: ForeachBatchSink,
    session: SessionContext,
    schema: SchemaRef,
}

impl fmt::Debug for ForeachBatchWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sink.fmt(f)
    }
}

#[async_trait]
impl StreamingWrite for ForeachBatchWriter {
    async fn begin(&self, _batch: BatchId) -> Result<BatchStatus> {
        Ok(BatchStatus::New)
    }

    fn partition(&self, _batch: BatchId, _partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        Ok(Box::new(Rows::default()))
    }

    async fn commit(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        let mut partitions: Vec<Vec<RecordBatch>> =
            receipts.into_iter().map(Receipt::into_rows).collect::<Result<_>>()?;
        if partitions.is_empty() {
            partitions.push(vec![]);
        }
        let table = MemTable::try_new(Arc::clone(&self.schema), partitions)?;
        let rows = self.session.read_table(Arc::new(table))?;
        (self.sink.function)(rows, batch).await.map_err(|e| {
            Error::new(ErrorKind::UserCode, format!("the foreach_batch function failed: {e}"))
                .with_batch(batch)
                .with_hint("fix the cause and start again: the function gets the same batch")
        })
    }
}
