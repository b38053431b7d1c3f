//! Keeps rows in memory: for tests and first steps.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use parking_lot::Mutex;

use super::{BatchStatus, DataWriter, Guarantee, Receipt, Sink, SinkContext, SinkRole, StreamingWrite};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BatchId, PartitionId, QueryId, RunId};
use crate::identity::Identity;
use crate::output_mode::OutputMode;

/// Keeps the rows of every batch in memory. Clones share the rows, and so do the runs of a query that is restarted with
/// the same sink: a batch is taken once, as long as the process lives.
///
/// In complete mode each batch replaces the one before. Its writers stay with the driver, in whose memory the rows are.
#[derive(Debug, Clone, Default)]
pub struct MemorySink {
    taken: Arc<Mutex<BTreeMap<BatchId, Taken>>>,
}

#[derive(Debug)]
struct Taken {
    by: Committer,
    rows: Vec<RecordBatch>,
}

/// Who committed a batch. A batch of that number from another query, or from the other sink of the same one, is no
/// repetition of it.
#[derive(Debug, Clone, Copy)]
struct Committer {
    query: QueryId,
    run: RunId,
    name: SinkRole,
}

impl Committer {
    /// Fails if what is there was committed by another query.
    fn check_query(&self, taken: &BTreeMap<BatchId, Taken>) -> Result<()> {
        match taken.values().next().map(|taken| taken.by) {
            Some(earlier) if earlier.query != self.query => Err(Error::new(
                ErrorKind::IncompatibleCheckpoint,
                format!("the memory sink holds batches of query {}, and this is query {}", earlier.query, self.query),
            )
            .with_hint(
                "give each query a sink of its own; a query that begins anew, with a new checkpoint, needs a new sink",
            )),
            _ => Ok(()),
        }
    }

    /// Fails if what is there was committed by another query, or by the query's other sink.
    fn check(&self, taken: &BTreeMap<BatchId, Taken>) -> Result<()> {
        self.check_query(taken)?;
        match taken.values().next().map(|taken| taken.by) {
            Some(earlier) if earlier.name != self.name => {
                Err(Error::invalid("one memory sink is both the output of the query and its sink for dead letters")
                    .with_hint("give each a sink of its own, and start with a new checkpoint"))
            }
            _ => Ok(()),
        }
    }
}

impl MemorySink {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The rows of all batches so far, in batch order. In complete mode: of the last batch.
    pub fn batches(&self) -> Vec<RecordBatch> {
        self.taken.lock().values().flat_map(|taken| taken.rows.iter().cloned()).collect()
    }

    /// The rows of one batch; `None` if it was not taken.
    pub fn batch(&self, batch: BatchId) -> Option<Vec<RecordBatch>> {
        self.taken.lock().get(&batch).map(|taken| taken.rows.clone())
    }

    /// The last batch taken.
    pub fn last_batch(&self) -> Option<BatchId> {
        self.taken.lock().keys().next_back().copied()
    }

    /// Forgets the rows, not that their batches were taken.
    pub fn clear(&self) {
        for taken in self.taken.lock().values_mut() {
            taken.rows.clear();
        }
    }
}

#[async_trait]
impl Sink for MemorySink {
    fn description(&self) -> String {
        "memory".to_owned()
    }

    fn identity(&self) -> Option<Identity> {
        Some(Identity::new("memory"))
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn supports_output_mode(&self, _mode: OutputMode) -> bool {
        true
    }

    async fn open(&self, context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
        let own = Committer { query: context.query_id, run: context.run_id, name: context.role };
        let next = context.next_batch;
        if let Some(last) = self.last_batch()
            && (last > next || (last == next && !context.next_batch_may_be_committed))
        {
            return Err(Error::new(
                ErrorKind::IncompatibleCheckpoint,
                format!("the memory sink has batches up to {last}, and the checkpoint goes on with batch {next}"),
            )
            .with_hint("use a new sink with a new checkpoint"));
        }
        own.check_query(&self.taken.lock())?;
        Ok(Box::new(MemoryWriter { sink: self.clone(), mode: context.output_mode, own }))
    }
}

#[derive(Debug)]
struct MemoryWriter {
    sink: MemorySink,
    mode: OutputMode,
    own: Committer,
}

#[async_trait]
impl StreamingWrite for MemoryWriter {
    async fn begin(&self, batch: BatchId) -> Result<BatchStatus> {
        let taken = self.sink.taken.lock();
        self.own.check(&taken).map_err(|e| e.with_batch(batch))?;
        let is_taken = taken.keys().next_back().is_some_and(|last| batch <= *last);
        Ok(if is_taken { BatchStatus::AlreadyCommitted } else { BatchStatus::New })
    }

    fn partition(&self, _batch: BatchId, _partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        Ok(Box::new(Rows::default()))
    }

    async fn commit(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        let mut taken = self.sink.taken.lock();
        self.own.check(&taken).map_err(|e| e.with_batch(batch))?;
        if let Some(earlier) = taken.get(&batch) {
            return if earlier.by.run == self.own.run {
                Ok(())
            } else {
                Err(Error::new(ErrorKind::Fenced, "another run committed this batch to the memory sink")
                    .with_batch(batch))
            };
        }
        if self.mode == OutputMode::Complete {
            for earlier in taken.values_mut() {
                earlier.rows.clear();
            }
        }
        let rows: Vec<Vec<RecordBatch>> = receipts.into_iter().map(Receipt::into_rows).collect::<Result<_>>()?;
        let rows = rows.into_iter().flatten().collect();
        taken.insert(batch, Taken { by: self.own, rows });
        Ok(())
    }
}

/// A partition kept whole until the commit.
#[derive(Debug, Default)]
pub(crate) struct Rows(Vec<RecordBatch>);

#[async_trait]
impl DataWriter for Rows {
    async fn write(&mut self, rows: RecordBatch) -> Result<()> {
        self.0.push(rows);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<Receipt> {
        Ok(Receipt::new(self.0.iter().map(|rows| rows.num_rows() as u64).sum()).with_rows(self.0))
    }
}
