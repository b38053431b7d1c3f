//! A memory pool smaller than what a batch moves: exchanges spill, what cannot spill fails by name, and a batch that was too
//! large runs once there is room. And how much is on account while state grows, is merged and is loaded.

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::MemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::*;
use tidewater::checkpoint::{MetadataStore, memory_store};
use tidewater::error::ErrorKind;
use tidewater::prelude::*;
use tidewater::testing::{PeakMemory, assert_same_rows, small_state};

use crate::stateful::jobs::grouped;

const ROWS: i64 = 8_000;
const PARTITIONS: usize = 3;

/// Keys, each twice, and a kilobyte of text each.
fn rows(first: i64) -> RecordBatch {
    let keys = Int64Array::from_iter_values((first..first + 1_000).map(|n| n % (ROWS / 2)));
    let texts = StringArray::from_iter_values((first..first + 1_000).map(|n| format!("{:>1000}", n % (ROWS / 2))));
    RecordBatch::try_from_iter([("k", Arc::new(keys) as _), ("text", Arc::new(texts) as _)]).unwrap()
}

fn session(memory_bytes: usize, mode: DiskManagerMode) -> SessionContext {
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_limit(memory_bytes, 1.0)
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(mode));
    SessionContext::new_with_config_rt(SessionConfig::new(), runtime.build_arc().unwrap())
}

struct World {
    source: MemorySource,
    sink: MemorySink,
    checkpoint: Arc<dyn MetadataStore>,
}

impl World {
    fn new() -> Self {
        let source = MemorySource::new(rows(0).schema());
        source.add((0..ROWS / 1_000).map(|part| rows(part * 1_000)).collect()).unwrap();
        World { source, sink: MemorySink::new(), checkpoint: memory_store() }
    }

    async fn run(&self, ctx: &SessionContext, job: impl AsyncFn(DataFrame) -> Result<DataFrame>) -> Result<()> {
        let stream = job(ctx.read_stream(self.source.clone())?).await?;
        stream
            .write_stream(self.sink.clone())
            .partitions(PARTITIONS)
            .checkpoint_store(Arc::clone(&self.checkpoint))
            .trigger(Trigger::AvailableNow)
            .start()
            .await?
            .await_termination()
            .await
    }
}

async fn first_per_key(stream: DataFrame) -> Result<DataFrame> {
    stream.drop_duplicates(&["k"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_spills_what_the_pool_does_not_hold() {
    let world = World::new();
    world.run(&session(4 << 20, DiskManagerMode::OsTmpDirectory), first_per_key).await.unwrap();
    let expected: Vec<RecordBatch> = (0..ROWS / 2_000).map(|part| rows(part * 1_000)).collect();
    assert_same_rows(&world.sink.batches(), &expected);

    let world = World::new();
    let error = world.run(&session(4 << 20, DiskManagerMode::Disabled), first_per_key).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    assert!(error.message().contains("an exchange holds"), "{error}");
    world.run(&session(64 << 20, DiskManagerMode::Disabled), first_per_key).await.unwrap();
    assert_same_rows(&world.sink.batches(), &expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_larger_than_the_pool_fails_by_name_and_runs_with_a_larger_one() {
    let world = World::new();
    let beside_a_table = async |stream: DataFrame| -> Result<DataFrame> {
        let ctx = SessionContext::new();
        let table = ctx.read_batches((0..ROWS / 2_000).map(|part| rows(part * 1_000)).collect::<Vec<_>>())?;
        let table = table.select(vec![col("k").alias("id"), col("text").alias("name")])?;
        Ok(stream.join(table, JoinType::Inner, &["k"], &["id"], None)?.select_columns(&["k", "name"])?)
    };
    let error = world.run(&session(1 << 20, DiskManagerMode::OsTmpDirectory), beside_a_table).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    assert!(error.to_string().contains("HashJoin"), "{error}");
    assert!(world.sink.batches().is_empty());
    world.run(&session(256 << 20, DiskManagerMode::OsTmpDirectory), beside_a_table).await.unwrap();
    let rows: usize = world.sink.batches().iter().map(RecordBatch::num_rows).sum();
    assert_eq!(rows, ROWS as usize);
}

/// The most that is on account while state grows in small batches and its files are merged, and then while it is loaded, is not
/// much more than the state: neither a merge nor loading holds what it moves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merging_and_loading_hold_little_more_than_the_state() {
    const BATCHES: i64 = 200;
    // Digits that do not compress well: files are as large as they get.
    let text = |n: u64| -> String {
        (1..32).map(|word| format!("{:016x}", (32 * n + word).wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect()
    };
    let batch = |first: i64| {
        let keys = Int64Array::from_iter_values(first..first + 100);
        let texts = StringArray::from_iter_values((first..first + 100).map(|n| text(n as u64)));
        RecordBatch::try_from_iter([("k", Arc::new(keys) as _), ("text", Arc::new(texts) as _)]).unwrap()
    };
    let source = MemorySource::new(batch(0).schema()).adds_per_batch(1);
    (0..BATCHES).for_each(|n| source.add(vec![batch(n * 100)]).unwrap());
    let (peak, checkpoint) = (PeakMemory::new(), memory_store());
    let run = async || {
        let pool: Arc<dyn MemoryPool> = Arc::clone(&peak) as _;
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc().unwrap();
        let ctx = SessionContext::new_with_config_rt(small_state(SessionConfig::new(), 100, 20_000), runtime);
        let stream = grouped(ctx.read_stream(source.clone())?, vec![col("k")], &["max(text) AS text"])?;
        let writer = stream.write_stream(DiscardSink::new()).output_mode(OutputMode::Update).partitions(2);
        let writer = writer.checkpoint_store(Arc::clone(&checkpoint)).trigger(Trigger::AvailableNow);
        let query = writer.start().await?;
        query.await_termination().await?;
        Ok::<_, Error>((peak.take() as f64, query.last_progress()))
    };
    let (grown, progress) = run().await.unwrap();
    let state = &progress.unwrap().state_operators[0];
    let bytes = state.memory_used_bytes as f64;
    assert!(state.compaction_bytes_written > state.state_bytes_written / 2, "few merges: {state:?}");
    assert!(bytes > 1e7 && grown <= 1.3 * bytes, "{grown} bytes at the most, {bytes} of state");
    assert_eq!(peak.reserved(), 0, "memory was not given back");
    let (loaded, progress) = run().await.unwrap();
    assert!(progress.is_none(), "there was nothing to read");
    assert!(loaded >= 0.9 * bytes && loaded <= 1.3 * bytes, "{loaded} bytes at the most, {bytes} of state");
}
