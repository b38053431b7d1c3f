//! One run's hold on the sink: batches become transactions.
//!
//! Rows go out in the order of the plan's partitions. Only partition 0 can send while the plan runs, so it does; the
//! others keep their rows until the commit, which sends them one partition after the other. For a query that does not
//! repartition, the plan's partitions are pieces of what it reads, in order: a Kafka partition that the source cut into
//! pieces keeps its order on the way out, as if nothing ran in parallel. The price is memory: most of a batch is held
//! until it is committed, on account of the session's memory pool.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::execution::memory_pool::MemoryPool;
use parking_lot::Mutex;
use tidewater::batch::bytes_of;
use tidewater::clock::Clock;
use tidewater::error::{Error, Result};
use tidewater::executor::block_in_place;
use tidewater::id::{BatchId, PartitionId};
use tidewater::sink::{BatchStatus, DataWriter, Guarantee, Receipt, SinkContext, StreamingWrite};

use super::Checked;
use super::marker::{self, CommitMarker, ResumePoint, decide};
use super::producer::KafkaProducer;
use super::record::Columns;
use crate::memory::Claim;

/// A marker that was not written for as long is written again before a batch: none is begun shortly before the cluster
/// forgets it.
const RENEW_MS: i64 = 60 * 60 * 1000;

/// Writes batches to Kafka.
pub(super) struct KafkaWriter {
    shared: Arc<Shared>,
    /// Exactly once only.
    marker: Option<CommitMarker>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

/// What the writers of partitions need.
struct Shared {
    producer: KafkaProducer,
    columns: Columns,
    /// For the rows that are kept until their batch is committed.
    kept: Claim,
}

/// What to do when there is no memory for them.
const KEPT_HINT: &str = "give the session a larger memory pool, or let a batch be smaller: read fewer rows per batch (`maxOffsetsPerTrigger`, `maxFilesPerTrigger`)";

impl Shared {
    fn new(producer: KafkaProducer, columns: Columns, to: &str, pool: &Arc<dyn MemoryPool>) -> Arc<Self> {
        let kept = Claim::new(pool, format!("what {to} keeps of a batch until its commit"), KEPT_HINT);
        Arc::new(Shared { producer, columns, kept })
    }
}

#[derive(Debug, Default)]
struct State {
    /// How many batches Kafka has; at least once, those of this run only.
    taken: u64,
    /// When the marker was last written, if this run did.
    marked_ms: Option<i64>,
    open: Option<Open>,
}

/// A batch that was begun.
#[derive(Debug)]
struct Open {
    batch: BatchId,
    /// A writer of partition 0 was made, which sends at once.
    sends: bool,
    /// All its rows and the marker went out.
    complete: bool,
}

impl KafkaWriter {
    /// Takes over from the run before, and finds out where it stopped.
    pub(super) fn open(sink: Checked, columns: Columns, context: &SinkContext) -> Result<Self> {
        let name = marker::name_of(context);
        let exactly_once = sink.guarantee == Guarantee::ExactlyOnce;
        let pool = &context.session.runtime_env().memory_pool;
        let producer = KafkaProducer::new(sink.client.clone(), exactly_once.then_some(name.as_str()), pool)?;
        match (&sink.topic, &sink.marker_topic) {
            (Some(topic), _) => producer.ensure_topic(Some(topic))?,
            (None, None) => producer.ensure_topic(None)?,
            (None, Some(_)) => {}
        }
        let mut writer = KafkaWriter {
            shared: Shared::new(producer, columns, &sink.description, pool),
            marker: None,
            clock: Arc::clone(&context.clock),
            state: Mutex::default(),
        };
        if let (true, Some(topic)) = (exactly_once, sink.marker_topic) {
            let producer = &writer.shared.producer;
            producer.ensure_topic(Some(&topic))?;
            marker::precheck(&sink.client, &topic, context)?;
            // Before the marker is read: what the run before left in doubt is settled by this.
            producer.init_transactions()?;
            let patience = producer.startup_timeout();
            let (marker, found) = CommitMarker::read(&sink.client, topic, context, patience)?;
            let next = context.next_batch;
            let resume_point = decide(found, next, context.next_batch_may_be_committed, &marker.place())?;
            tracing::debug!(query = %context.query_id, batch = %next, ?found, ?resume_point, "read the marker in Kafka");
            writer.marker = Some(marker);
            match resume_point {
                ResumePoint::AlreadyCommitted => writer.state.lock().taken = next.0 + 1,
                // Before any batch is begun, so that one in doubt finds a marker. And what this user may not do is
                // found out now.
                ResumePoint::NextBatch | ResumePoint::NeedsMarker => writer.mark(&mut writer.state.lock(), next.0)?,
            }
        }
        Ok(writer)
    }

    /// Writes the marker alone.
    fn mark(&self, state: &mut State, taken: u64) -> Result<()> {
        let Some(marker) = &self.marker else { return Ok(()) };
        let producer = &self.shared.producer;
        producer.begin()?;
        producer.mark(&marker.offset(taken)?, marker.group())?;
        producer.commit()?;
        state.taken = taken;
        state.marked_ms = Some(self.clock.now_ms());
        Ok(())
    }

    fn begin_now(&self, batch: BatchId) -> Result<BatchStatus> {
        let mut state = self.state.lock();
        if self.marker.is_some() {
            if batch.0 < state.taken {
                return Ok(BatchStatus::AlreadyCommitted);
            }
            let now_ms = self.clock.now_ms();
            if state.marked_ms.is_none_or(|marked_ms| now_ms - marked_ms >= RENEW_MS) {
                let taken = state.taken;
                self.mark(&mut state, taken)?;
            }
        }
        self.shared.producer.begin()?;
        // What a run of the batch before kept that came to nothing.
        self.shared.kept.free();
        state.open = Some(Open { batch, sends: false, complete: false });
        Ok(BatchStatus::New)
    }

    fn commit_now(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        let mut state = self.state.lock();
        let State { taken, marked_ms, open } = &mut *state;
        if batch.0 < *taken {
            return Ok(());
        }
        let Some(begun) = open.as_mut().filter(|open| open.batch == batch) else {
            return Err(Error::internal(format!("batch {batch} is to be committed to Kafka, and was not begun")));
        };
        let producer = &self.shared.producer;
        if !(begun.complete && producer.is_committing()) {
            self.complete(begun, receipts)?;
            begun.complete = true;
            self.shared.kept.free();
        }
        producer.commit()?;
        *taken = batch.0 + 1;
        *marked_ms = Some(self.clock.now_ms());
        *open = None;
        Ok(())
    }

    /// Sends what is still to be sent of a batch, then the marker: it is on its way while the rows are.
    fn complete(&self, open: &Open, receipts: Vec<Receipt>) -> Result<()> {
        let producer = &self.shared.producer;
        // Rows that went out already are in no receipt.
        let has_sent = receipts.iter().any(|receipt| !receipt.has_contents());
        if open.sends && self.marker.is_some() && !has_sent {
            // They cannot be separated from others in the transaction.
            producer.give_up()?;
            return Err(Error::internal("rows of a partition that was given up had gone out to Kafka already"));
        }
        for receipt in receipts.into_iter().filter(Receipt::has_contents) {
            receipt.into_rows()?.iter().try_for_each(|rows| producer.send(&self.shared.columns, rows))?;
        }
        match &self.marker {
            Some(marker) => producer.mark(&marker.offset(open.batch.0 + 1)?, marker.group()),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for KafkaWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let marker = self.marker.as_ref().map(CommitMarker::place);
        f.debug_struct("KafkaWriter").field("marker", &marker).field("state", &self.state).finish_non_exhaustive()
    }
}

/// Most of it blocks: another thread takes the place of the one it is called on.
#[async_trait]
impl StreamingWrite for KafkaWriter {
    async fn begin(&self, batch: BatchId) -> Result<BatchStatus> {
        block_in_place(|| self.begin_now(batch))
    }

    fn partition(&self, batch: BatchId, partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        let mut state = self.state.lock();
        let mut kept = Some(vec![]);
        if let Some(open) = state.open.as_mut().filter(|open| open.batch == batch)
            && partition == PartitionId(0)
            && !open.sends
        {
            open.sends = true;
            kept = None;
        }
        Ok(Box::new(KafkaRows { shared: Arc::clone(&self.shared), rows: 0, kept }))
    }

    async fn commit(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        block_in_place(|| self.commit_now(batch, receipts))
    }
}

/// The rows of one partition of one batch.
struct KafkaRows {
    shared: Arc<Shared>,
    rows: u64,
    /// None: they go out at once.
    kept: Option<Vec<RecordBatch>>,
}

#[async_trait]
impl DataWriter for KafkaRows {
    async fn write(&mut self, rows: RecordBatch) -> Result<()> {
        self.rows += rows.num_rows() as u64;
        match &mut self.kept {
            Some(kept) => {
                self.shared.kept.grow(bytes_of(&rows))?;
                kept.push(rows);
            }
            None => block_in_place(|| self.shared.producer.send(&self.shared.columns, &rows))?,
        }
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<Receipt> {
        let KafkaRows { rows, kept, .. } = *self;
        let receipt = Receipt::new(rows);
        Ok(match kept {
            Some(kept) => receipt.with_rows(kept),
            None => receipt,
        })
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, StringArray};
    use datafusion::execution::memory_pool::GreedyMemoryPool;
    use tidewater::clock::ManualClock;
    use tidewater::error::ErrorKind;

    use super::*;
    use crate::kafka::client::ClientSettings;

    fn rows(values: &[&str]) -> RecordBatch {
        let value: ArrayRef = Arc::new(StringArray::from(values.to_vec()));
        RecordBatch::try_from_iter([("value", value)]).unwrap()
    }

    /// Enough for the queue, and some rows.
    const MEMORY: usize = 4 << 20;

    /// At least once, with no cluster to send to.
    fn alone() -> KafkaWriter {
        let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(MEMORY));
        let producer = KafkaProducer::new(ClientSettings::new("127.0.0.1:1"), None, &pool).unwrap();
        let columns = Columns::find(&rows(&[]).schema(), Some("out"), true).unwrap();
        KafkaWriter {
            shared: Shared::new(producer, columns, "kafka", &pool),
            marker: None,
            clock: Arc::new(ManualClock::at(0)),
            state: Mutex::default(),
        }
    }

    async fn receipt(writer: &KafkaWriter, batch: u64, partition: usize, rows: &[RecordBatch]) -> Receipt {
        let mut partition = writer.partition(BatchId(batch), PartitionId(partition)).unwrap();
        for rows in rows {
            partition.write(rows.clone()).await.unwrap();
        }
        let receipt = partition.finish().await.unwrap();
        assert_eq!(receipt.rows, rows.iter().map(|rows| rows.num_rows() as u64).sum::<u64>());
        receipt
    }

    #[tokio::test]
    async fn only_the_first_writer_of_the_first_partition_sends_at_once() {
        let writer = alone();
        assert_eq!(writer.begin(BatchId(3)).await.unwrap(), BatchStatus::New);
        let some = [rows(&["a", "b"]), rows(&["c"])];
        assert_eq!(receipt(&writer, 3, 1, &some).await.into_rows().unwrap().len(), 2);
        assert!(receipt(&writer, 2, 0, &some).await.has_contents(), "of a batch that was not begun");
        assert!(!receipt(&writer, 3, 0, &[]).await.has_contents());
        assert!(receipt(&writer, 3, 0, &some).await.has_contents(), "the second of its kind");
    }

    #[tokio::test]
    async fn kept_rows_are_on_account_of_the_pool() {
        let writer = alone();
        let kept = || writer.shared.kept.bytes();
        let long = "x".repeat(5 << 18);
        writer.begin(BatchId(0)).await.unwrap();
        let mut partition = writer.partition(BatchId(0), PartitionId(1)).unwrap();
        partition.write(rows(&[&long])).await.unwrap();
        assert!(kept() >= 5 << 18);
        let error = partition.write(rows(&[&long])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
        assert!(error.message().contains("what kafka keeps of a batch until its commit"), "{error}");
        writer.begin(BatchId(0)).await.unwrap();
        assert_eq!(kept(), 0);
    }

    #[tokio::test]
    async fn a_batch_is_committed_once_and_only_if_it_was_begun() {
        let writer = alone();
        assert!(writer.commit(BatchId(0), vec![]).await.is_err());
        writer.begin(BatchId(0)).await.unwrap();
        assert!(writer.commit(BatchId(0), vec![Receipt::new(1).with_json(&"foreign").unwrap()]).await.is_err());
        writer.begin(BatchId(0)).await.unwrap();
        writer.commit(BatchId(0), vec![]).await.unwrap();
        writer.commit(BatchId(0), vec![]).await.unwrap();
        assert!(writer.commit(BatchId(1), vec![]).await.is_err());
    }
}
