//! Counts rows and drops them: for benches, and for queries that run for their side effects.

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;

use super::{BatchStatus, DataWriter, Guarantee, Receipt, Sink, SinkContext, StreamingWrite};
use crate::error::Result;
use crate::id::{BatchId, PartitionId};
use crate::identity::Identity;
use crate::output_mode::OutputMode;

/// Counts rows and drops them.
#[derive(Debug, Clone, Copy, Default)]
pub struct DiscardSink;

impl DiscardSink {
    /// A new one.
    pub fn new() -> Self {
        DiscardSink
    }
}

#[async_trait]
impl Sink for DiscardSink {
    fn description(&self) -> String {
        "discard".to_owned()
    }

    fn identity(&self) -> Option<Identity> {
        Some(Identity::new("discard"))
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn supports_output_mode(&self, _mode: OutputMode) -> bool {
        true
    }

    async fn open(&self, _context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
        Ok(Box::new(*self))
    }
}

#[async_trait]
impl StreamingWrite for DiscardSink {
    async fn begin(&self, _batch: BatchId) -> Result<BatchStatus> {
        Ok(BatchStatus::New)
    }

    fn partition(&self, _batch: BatchId, _partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        Ok(Box::new(Counter::default()))
    }

    async fn commit(&self, _batch: BatchId, _receipts: Vec<Receipt>) -> Result<()> {
        Ok(())
    }
}

/// A partition of which only the number of rows is kept.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    rows: u64,
}

#[async_trait]
impl DataWriter for Counter {
    async fn write(&mut self, rows: RecordBatch) -> Result<()> {
        self.rows += rows.num_rows() as u64;
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<Receipt> {
        Ok(Receipt::new(self.rows))
    }
}
