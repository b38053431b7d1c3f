//! The rows that were written into exchanges and not read yet.
//!
//! They are in memory, on account of the session's memory pool. What the pool does not give, or what is more than a
//! [share](EXCHANGES_MAY_HOLD_ONE_IN) of it, goes to spill files by DataFusion's disk manager: files of their own per exchange,
//! producer and target. Once a producer's rows for a target lie in a file, the rest of them follow, so they keep their order.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, SpillMetrics};
use datafusion::physical_plan::spill::SpillManager;
use datafusion::physical_plan::spill::spill_pool::{SpillPoolSink, spsc_channel};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{Stream, StreamExt, stream};
use parking_lot::Mutex;

use crate::error::{Error, ErrorKind};
use crate::executor::yield_now;

/// All exchanges of a batch together hold at most one part in so many of the pool: what comes behind them needs some, too.
const EXCHANGES_MAY_HOLD_ONE_IN: usize = 4;

/// A spill file that has grown to this is closed, and deleted once it was read.
const SPILL_FILE_BYTES: usize = 128 << 20;

/// The memory budget of all exchanges of a batch.
#[derive(Debug)]
pub(super) struct ExchangeMemory {
    runtime: Arc<RuntimeEnv>,
    reservation: MemoryReservation,
    max_bytes: usize,
}

impl ExchangeMemory {
    /// Room in the pool of `runtime`.
    pub(super) fn new(runtime: Arc<RuntimeEnv>) -> Self {
        let pool = &runtime.memory_pool;
        let max_bytes = match pool.memory_limit() {
            MemoryLimit::Finite(bytes) => bytes / EXCHANGES_MAY_HOLD_ONE_IN,
            MemoryLimit::Infinite | MemoryLimit::Unknown => usize::MAX,
        };
        let reservation = MemoryConsumer::new("tidewater exchange").with_can_spill(true).register(pool);
        ExchangeMemory { runtime, reservation, max_bytes }
    }

    fn takes(&self, bytes: usize) -> bool {
        self.reservation.size().saturating_add(bytes) <= self.max_bytes && self.reservation.try_grow(bytes).is_ok()
    }
}

/// The rows in an exchange: by target partition, what each producer wrote.
#[derive(Debug)]
pub(super) struct ExchangeBuffer {
    partitions: Vec<Mutex<BTreeMap<usize, ProducerRows>>>,
}

impl ExchangeBuffer {
    pub(super) fn new(partitions: usize) -> Self {
        ExchangeBuffer { partitions: (0..partitions).map(|_| Mutex::default()).collect() }
    }

    pub(super) fn partition(&self, partition: usize) -> Option<&Mutex<BTreeMap<usize, ProducerRows>>> {
        self.partitions.get(partition)
    }
}

/// The rows of one producer for one target.
#[derive(Default)]
pub(super) struct ProducerRows {
    in_memory: Vec<RecordBatch>,
    /// Those that came later.
    spilled: Option<Spilled>,
}

struct Spilled {
    sink: SpillPoolSink,
    stream: SendableRecordBatchStream,
    rows: usize,
}

impl fmt::Debug for ProducerRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_spilled = self.spilled.is_some();
        f.debug_struct("ProducerRows")
            .field("in_memory", &self.in_memory.len())
            .field("is_spilled", &is_spilled)
            .finish()
    }
}

impl ProducerRows {
    /// Adds rows that hold nothing else in memory.
    pub(super) fn push(&mut self, rows: RecordBatch, room: &ExchangeMemory) -> Result<()> {
        if self.spilled.is_none() && room.takes(rows.get_array_memory_size()) {
            self.in_memory.push(rows);
            return Ok(());
        }
        let spilled = match &mut self.spilled {
            Some(spilled) => spilled,
            None => self.spilled.insert(Spilled::new(rows.schema(), room)?),
        };
        spilled.push(&rows)
    }

    /// The rows in the order in which they came. What is in memory is given back to the pool as it is read.
    pub(super) fn into_stream(mut self, schema: SchemaRef, room: Arc<ExchangeMemory>) -> SendableRecordBatchStream {
        let spilled = self.spilled.take().map(Spilled::into_stream);
        let in_memory = stream::iter(self.in_memory.into_iter().enumerate()).then(move |(number, rows)| {
            room.reservation.shrink(rows.get_array_memory_size());
            async move {
                if number > 0 {
                    yield_now().await;
                }
                Ok(rows)
            }
        });
        let rows = in_memory.chain(stream::iter(spilled).flatten());
        Box::pin(RecordBatchStreamAdapter::new(schema, rows))
    }
}

impl Spilled {
    fn new(schema: SchemaRef, room: &ExchangeMemory) -> Result<Self> {
        if !room.runtime.disk_manager.tmp_files_enabled() {
            let held = room.reservation.size();
            let error = format!("an exchange holds {held} bytes, may not hold more, and has no disk to spill to");
            return Err(Error::new(ErrorKind::OutOfMemory, error)
                .with_hint("enable DataFusion's disk manager, give the memory pool more, or read less per batch")
                .into());
        }
        let metrics = SpillMetrics::new(&ExecutionPlanMetricsSet::new(), 0);
        let manager = SpillManager::new(Arc::clone(&room.runtime), metrics, schema);
        let (sink, stream) = spsc_channel(SPILL_FILE_BYTES, Arc::new(manager));
        Ok(Spilled { sink, stream, rows: 0 })
    }

    fn push(&mut self, rows: &RecordBatch) -> Result<()> {
        self.rows += rows.num_rows();
        self.sink.push_batch(rows).map_err(|e| failed("write", e))
    }

    /// The rows, all of them: the end of a file that could not be completed is not the end of the rows.
    fn into_stream(self) -> impl Stream<Item = Result<RecordBatch>> + Send {
        let Spilled { sink, stream, rows } = self;
        // Dropping it writes what it still holds, and gives the stream its end.
        drop(sink);
        stream::try_unfold((stream, rows), async |(mut stream, missing)| {
            match stream.next().await.transpose().map_err(|e| failed("read", e))? {
                Some(rows) => {
                    let missing = missing.saturating_sub(rows.num_rows());
                    Ok(Some((rows, (stream, missing))))
                }
                None if missing > 0 => {
                    Err(Error::new(ErrorKind::Unavailable, format!("{missing} rows of a spill file did not come back"))
                        .with_hint("look whether the disk of the temporary folder is full or failing, then start again")
                        .into())
                }
                None => Ok(None),
            }
        })
    }
}

fn failed(what: &str, error: DataFusionError) -> DataFusionError {
    let error = Error::from(error);
    DataFusionError::from(
        Error::new(error.kind(), format!("cannot {what} rows that an exchange spilled to disk: {}", error.message()))
            .with_hint("make room in the temporary folder (DataFusion's disk manager names it), then start again")
            .with_source(error),
    )
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
    use datafusion::execution::memory_pool::GreedyMemoryPool;
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use futures::TryStreamExt;

    use super::*;

    fn rows(first: i64) -> RecordBatch {
        let fields = vec![Field::new("n", DataType::Int64, false), Field::new("text", DataType::Utf8, true)];
        let numbers = Int64Array::from_iter_values(first..first + 100);
        let text = StringArray::from_iter((first..first + 100).map(|n| (n % 3 > 0).then(|| format!("row {n}"))));
        RecordBatch::try_new(Arc::new(Schema::new(fields)), vec![Arc::new(numbers), Arc::new(text)]).unwrap()
    }

    fn room(bytes: usize, mode: DiskManagerMode) -> Arc<ExchangeMemory> {
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(GreedyMemoryPool::new(bytes)))
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(mode));
        Arc::new(ExchangeMemory::new(runtime.build_arc().unwrap()))
    }

    #[tokio::test]
    async fn what_is_too_much_for_the_pool_comes_back_from_disk_in_its_order() {
        let one = rows(0).get_array_memory_size();
        for fit in [0, 1, 3, 100] {
            let room = room(EXCHANGES_MAY_HOLD_ONE_IN * (fit * one + one / 2), DiskManagerMode::OsTmpDirectory);
            let mut dealt = [ProducerRows::default(), ProducerRows::default()];
            for number in 0..10 {
                dealt[number % 2].push(rows(number as i64 * 100), &room).unwrap();
            }
            assert_eq!(room.reservation.size() / one, fit.min(10), "of ten");
            assert_eq!(room.runtime.disk_manager.used_disk_space() > 0, fit < 10);
            for (producer, own) in dealt.into_iter().enumerate() {
                let came = own.into_stream(rows(0).schema(), Arc::clone(&room));
                let came: Vec<RecordBatch> = came.try_collect().await.unwrap();
                let expected: Vec<_> = (0..5).map(|n| rows((2 * n + producer as i64) * 100)).collect();
                assert_eq!(came, expected, "{fit} of ten fit");
            }
            assert_eq!(room.reservation.size(), 0, "all is given back");
            assert_eq!(room.runtime.disk_manager.used_disk_space(), 0, "no file is left");
        }
    }

    #[test]
    fn without_a_disk_the_error_says_what_is_held_and_what_to_do() {
        let room = room(64, DiskManagerMode::Disabled);
        let error = Error::from(ProducerRows::default().push(rows(0), &room).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        assert!(error.message().contains("an exchange holds 0 bytes"), "{error}");
    }
}
