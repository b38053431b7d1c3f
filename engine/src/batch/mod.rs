//! The context of a batch: what is fixed before it runs, and what leaves and operators need of it.

mod exchange_buffer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::ExecutionPlan;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use self::exchange_buffer::{ExchangeBuffer, ExchangeMemory, ProducerRows};
use crate::calls::Calls;
use crate::error::{Error, Result};
use crate::id::{BatchId, LeafId};
use crate::sink::dead_letter_schema;
use crate::state::sizes::RowBytes;
use crate::state::spelling::shrink_rows_to_fit;
use crate::state::{OperatorBatch, OperatorId};

/// The context of a batch while it runs. Leaves and operators find it in the `TaskContext` they are executed with, so
/// nothing of a batch is kept in the plan itself, and many queries live in one process.
#[derive(Debug)]
pub struct BatchContext {
    /// The batch.
    pub batch: BatchId,
    /// What every clock function of the query answers during this batch, in milliseconds since 1970.
    pub time_ms: i64,
    /// The watermark this batch runs with, in milliseconds since 1970.
    pub watermark_ms: i64,
    leaves: Vec<Leaf>,
    event_times: Vec<Mutex<EventTimeStats>>,
    operators: Vec<Arc<OperatorBatch>>,
    exchanges: Vec<ExchangeBuffer>,
    /// The memory budget of the exchanges.
    room: Arc<ExchangeMemory>,
    /// Kept until the plan has run; none if the query has no sink for them.
    dead_letters: Option<(Mutex<Vec<RecordBatch>>, MemoryReservation)>,
    calls: Calls,
}

/// What is to run, beside the batch's number and times.
#[derive(Debug, Default)]
pub(crate) struct BatchParts {
    /// By leaf of the plan: its rows.
    pub(crate) leaves: Vec<Option<Arc<dyn ExecutionPlan>>>,
    /// How many `with_watermark`s the query has.
    pub(crate) watermark_nodes: usize,
    /// By stateful operator.
    pub(crate) operators: Vec<Arc<OperatorBatch>>,
    /// By exchange: into how many partitions it distributes rows.
    pub(crate) exchanges: Vec<usize>,
    /// Its memory and disk are for the rows in exchanges.
    pub(crate) runtime: Arc<RuntimeEnv>,
    /// Whether the query has a sink for dead letters.
    pub(crate) takes_dead_letters: bool,
}

/// One place in the plan where rows of a source come in.
#[derive(Debug)]
struct Leaf {
    /// The rows of this batch; none if the batch does not read the source.
    plan: Option<Arc<dyn ExecutionPlan>>,
    rows: AtomicU64,
}

impl BatchContext {
    pub(crate) fn new(batch: BatchId, time_ms: i64, watermark_ms: i64, parts: BatchParts, calls: Calls) -> Self {
        let leaves = parts.leaves.into_iter().map(|plan| Leaf { plan, rows: AtomicU64::new(0) }).collect();
        let event_times = (0..parts.watermark_nodes).map(|_| Mutex::default()).collect();
        let letters = MemoryConsumer::new("tidewater dead letters").register(&parts.runtime.memory_pool);
        let exchanges = parts.exchanges.into_iter().map(ExchangeBuffer::new).collect();
        BatchContext {
            batch,
            time_ms,
            watermark_ms,
            leaves,
            event_times,
            operators: parts.operators,
            exchanges,
            room: Arc::new(ExchangeMemory::new(parts.runtime)),
            dead_letters: parts.takes_dead_letters.then(|| (Mutex::default(), letters)),
            calls,
        }
    }

    /// The batch that a task belongs to.
    pub fn of(context: &TaskContext) -> Result<Arc<BatchContext>> {
        context
            .session_config()
            .get_extension::<BatchContext>()
            .ok_or_else(|| Error::internal("a plan of a stream was executed outside a batch"))
    }

    /// The rows that this batch reads at a leaf.
    pub(crate) fn leaf(&self, leaf: LeafId) -> Result<Option<&Arc<dyn ExecutionPlan>>> {
        let leaf =
            self.leaves.get(leaf.0).ok_or_else(|| Error::internal("the plan has a leaf the batch does not know"))?;
        Ok(leaf.plan.as_ref())
    }

    pub(crate) fn count_rows(&self, leaf: LeafId, rows: usize) {
        self.leaves[leaf.0].rows.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// By leaf: rows that came in so far.
    pub(crate) fn rows_read(&self) -> Vec<u64> {
        self.leaves.iter().map(|leaf| leaf.rows.load(Ordering::Relaxed)).collect()
    }

    pub(crate) fn observe_event_times(&self, node: usize, seen: &EventTimeStats) {
        self.event_times[node].lock().merge(seen);
    }

    /// By `with_watermark` node: the event times it saw.
    pub(crate) fn event_times(&self) -> Vec<EventTimeStats> {
        self.event_times.iter().map(|stats| *stats.lock()).collect()
    }

    /// What a stateful operator goes by in this batch.
    pub(crate) fn operator(&self, operator: OperatorId) -> Result<Arc<OperatorBatch>> {
        let run = self.operators.get(operator.0).map(Arc::clone);
        run.ok_or_else(|| Error::internal("the plan has a stateful operator the batch does not know"))
    }

    /// Writes rows of a producer for a partition behind an exchange.
    pub(crate) fn exchange_write(
        &self,
        exchange: usize,
        partition: usize,
        producer: usize,
        rows: RecordBatch,
    ) -> Result<()> {
        let dealt = self.exchange_buffer(exchange, partition)?;
        // The producer is one task, so nobody else asks for its rows meanwhile, and others need not wait for the disk.
        let mut own = dealt.lock().remove(&producer).unwrap_or_default();
        own.push(rows, &self.room)?;
        dealt.lock().insert(producer, own);
        Ok(())
    }

    /// Reads what was written for a partition: the rows of the first producer first.
    pub(crate) fn exchange_read(
        &self,
        exchange: usize,
        partition: usize,
        schema: &SchemaRef,
    ) -> Result<Vec<SendableRecordBatchStream>> {
        let dealt = std::mem::take(&mut *self.exchange_buffer(exchange, partition)?.lock());
        let stream = |rows: ProducerRows| rows.into_stream(Arc::clone(schema), Arc::clone(&self.room));
        Ok(dealt.into_values().map(stream).collect())
    }

    fn exchange_buffer(&self, exchange: usize, partition: usize) -> Result<&Mutex<BTreeMap<usize, ProducerRows>>> {
        let found = self.exchanges.get(exchange).and_then(|exchange| exchange.partition(partition));
        found.ok_or_else(|| Error::internal("the plan has an exchange the batch does not know"))
    }

    /// Adds records that a source could not read to the dead letters of the batch. The columns are those of
    /// [`dead_letter_schema`]; [`DeadLetters`](crate::sink::DeadLetters) makes them. Any task may call this, as often
    /// as it likes.
    ///
    /// Dead letters stay in memory until the plan has run, on account of the session's memory pool. They are meant to be few:
    /// a batch of which no record can be read is in memory whole.
    ///
    /// # Errors
    ///
    /// If the columns are others, or if the query has no sink for dead letters, which a source that
    /// [announces](crate::source::Source::emits_dead_letters) them never meets; or if the memory pool has no room for them.
    pub fn dead_letter(&self, rows: RecordBatch) -> Result<()> {
        let Some((dead_letters, memory)) = &self.dead_letters else {
            return Err(Error::internal("a source sent dead letters to a query that has no sink for them")
                .with_hint("the source must announce them: `Source::emits_dead_letters`"));
        };
        if rows.schema().fields() != dead_letter_schema().fields() {
            return Err(Error::internal(format!("a source sent dead letters of {:?}", rows.schema().fields()))
                .with_hint("the source must give them the columns of `dead_letter_schema`"));
        }
        if rows.num_rows() > 0 {
            let rows = shrink_rows_to_fit(&rows)?;
            memory.try_grow(rows.get_array_memory_size()).map_err(|e| {
                Error::from(e)
                    .with_hint("too many records of the batch cannot be read to be kept: read fewer rows per batch")
            })?;
            dead_letters.lock().push(rows);
        }
        Ok(())
    }

    /// Takes the dead letters that have come so far.
    pub(crate) fn take_dead_letters(&self) -> Vec<RecordBatch> {
        let Some((dead_letters, memory)) = &self.dead_letters else { return vec![] };
        memory.free();
        std::mem::take(&mut *dead_letters.lock())
    }

    /// Fails if the query was asked to drop this batch. Tasks ask between record batches.
    pub fn check_cancelled(&self) -> Result<()> {
        self.calls.check_cancelled().map_err(|e| e.with_batch(self.batch))
    }

    /// How code is called in this batch that is not the engine's own.
    pub(crate) fn calls(&self) -> &Calls {
        &self.calls
    }
}

/// Event times seen: how many, the least, the greatest and their mean, in milliseconds since 1970; and how many were out of
/// range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EventTimeStats {
    /// How many rows had an event time.
    pub count: u64,
    /// The earliest.
    pub min_ms: i64,
    /// The latest.
    pub max_ms: i64,
    /// The mean.
    pub avg_ms: f64,
    /// How many rows have a time that microseconds since 1970 cannot express (years -290308 to 294247): they count as
    /// rows without event time.
    pub out_of_range: u64,
}

impl EventTimeStats {
    /// Takes in `count` rows with this range and sum.
    pub(crate) fn of(count: u64, min_ms: i64, max_ms: i64, sum_ms: i128) -> Self {
        let avg_ms = if count == 0 { 0.0 } else { sum_ms as f64 / count as f64 };
        EventTimeStats { count, min_ms, max_ms, avg_ms, out_of_range: 0 }
    }

    /// Adds what another one saw.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.out_of_range += other.out_of_range;
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            *self = EventTimeStats { out_of_range: self.out_of_range, ..*other };
            return;
        }
        let count = self.count + other.count;
        self.avg_ms += (other.avg_ms - self.avg_ms) * (other.count as f64 / count as f64);
        self.min_ms = self.min_ms.min(other.min_ms);
        self.max_ms = self.max_ms.max(other.max_ms);
        self.count = count;
    }
}

/// The bytes that the values of these rows take, about: of a slice, only its own. For sources and sinks that account for
/// rows they hold with the session's memory pool.
pub fn bytes_of(rows: &RecordBatch) -> usize {
    RowBytes::new(rows.columns()).of_rows(rows.num_rows())
}

/// The same columns under another schema: for operators that add or drop metadata of fields.
pub(crate) fn with_schema(rows: &RecordBatch, schema: &SchemaRef) -> datafusion::error::Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), rows.columns().to_vec(), &options)?)
}
