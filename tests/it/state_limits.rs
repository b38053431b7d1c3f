//! Bounds on state: how large what lies in one piece may be, how much memory it takes, and how many files wait to be merged.

use std::io::Cursor;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, Int64Array, StringArray};
use arrow::ipc::reader::FileReader;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::*;
use tidewater::checkpoint::{CreateOutcome, MetadataStore, memory_store};
use tidewater::prelude::*;
use tidewater::testing::{FaultInjector, small_state};
use tokio::sync::Semaphore;

use crate::job::finish;
use crate::stateful::jobs::grouped;
use crate::stateful::{World, jobs};

/// How long the machine may take for what should happen soon.
const PATIENCE: Duration = Duration::from_secs(60);

/// Of a row: a column with what its values take, validity and offsets included.
fn bytes(rows: &RecordBatch) -> usize {
    rows.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap()).sum()
}

/// However much the rows are in all, what an operator keeps lies in pieces as small as they are asked to be, and the answer is
/// the same. What holds for 300 bytes holds for the 2 GiB that a column of text can have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_piece_of_state_is_larger_than_it_may_be() {
    for job in jobs::all() {
        let job = Arc::new(job);
        let expected = job.expected().await;
        let world = World::with_all_rows(&job).with_small_state();
        world.run(2, &FaultInjector::disarmed()).await.unwrap();
        world.check(&expected).unwrap_or_else(|e| panic!("{}: {e}", job.name));
        let mut pieces = 0;
        for operator in 0..9 {
            let folder = format!("state/{operator}");
            for file in world.checkpoint.list(&folder).await.unwrap() {
                let contents = world.checkpoint.read(&format!("{folder}/{file}")).await.unwrap().unwrap();
                let reader = FileReader::try_new(Cursor::new(contents), None).unwrap();
                assert_eq!(reader.schema().metadata()["tidewater.state"], "2", "{}", job.name);
                for rows in reader {
                    let rows = rows.unwrap();
                    let is_small = rows.num_rows() <= 5 && bytes(&rows) <= 2 * 300;
                    let (name, count) = (&job.name, rows.num_rows());
                    assert!(is_small || count == 1, "{name}: {count} rows of {} bytes in {file}", bytes(&rows));
                    pieces += 1;
                }
            }
        }
        assert!(pieces > 0, "{}: no state was written", job.name);
    }
}

fn rows(keys: std::ops::Range<i64>) -> RecordBatch {
    let texts: StringArray = keys.clone().map(|key| Some(format!("a text of some length for key {key}"))).collect();
    let columns: [(&str, ArrayRef); 2] =
        [("k", Arc::new(Int64Array::from_iter_values(keys))), ("text", Arc::new(texts))];
    RecordBatch::try_from_iter(columns).unwrap()
}

/// A query that remembers the greatest text of each key, within a pool.
async fn greatest(
    pool: &Arc<dyn MemoryPool>,
    source: &MemorySource,
    checkpoint: &Arc<dyn MetadataStore>,
) -> Result<StreamWriter> {
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::clone(pool)).build_arc()?;
    let ctx = SessionContext::new_with_config_rt(small_state(SessionConfig::new(), 200, 10_000), runtime);
    let stream = grouped(ctx.read_stream(source.clone())?, vec![col("k")], &["max(text) AS text"])?;
    let writer = stream.write_stream(DiscardSink::new()).output_mode(OutputMode::Update).partitions(2);
    Ok(writer.checkpoint_store(Arc::clone(checkpoint)).trigger(Trigger::AvailableNow))
}

/// State beyond the pool is an error in time, and not only in the first run: one that loads it hits it too. With a larger pool
/// the query goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_beyond_the_memory_pool_is_an_error_that_names_the_operator() {
    let pool = |bytes: usize| -> Arc<dyn MemoryPool> { Arc::new(GreedyMemoryPool::new(bytes)) };
    let (source, checkpoint) = (MemorySource::new(rows(0..1).schema()), memory_store());
    let (small, large) = (pool(2 << 20), pool(100 << 20));
    let run = async |pool: &Arc<dyn MemoryPool>| finish(greatest(pool, &source, &checkpoint).await?).await;
    let refused = async || {
        let error = run(&small).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
        assert!(error.message().contains("operator 0 (aggregate)") && error.message().contains("bytes"), "{error}");
        let hint = error.hint().unwrap_or_default();
        assert!(hint.contains("memory pool") && hint.contains("watermark"), "{error}");
        assert_eq!(small.reserved(), 0, "memory was not given back");
    };
    source.add(vec![rows(0..40_000)]).unwrap();
    refused().await;
    // The batch that failed is repeated; then there is state to be loaded.
    let query = run(&large).await.unwrap();
    let state = &query.last_progress().unwrap().state_operators[0];
    assert_eq!(state.num_rows_total, 40_000);
    assert!(state.memory_used_bytes > 2 << 20, "{} bytes", state.memory_used_bytes);
    source.add(vec![rows(0..1)]).unwrap();
    refused().await;
    run(&large).await.unwrap();
}

/// Merges wait for a permit before their files are written.
#[derive(Debug)]
struct SlowMerges(Arc<dyn MetadataStore>, Semaphore);

#[async_trait]
impl MetadataStore for SlowMerges {
    async fn create(&self, name: &str, contents: Bytes) -> Result<CreateOutcome> {
        if name.strip_prefix("state/0/").is_some_and(|file| file.split('.').next().unwrap_or_default().contains('m')) {
            let _permit = self.1.acquire().await;
        }
        self.0.create(name, contents).await
    }

    async fn read(&self, name: &str) -> Result<Option<Bytes>> {
        self.0.read(name).await
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        self.0.list(folder).await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.0.delete(name).await
    }

    fn full_name(&self, name: &str) -> String {
        self.0.full_name(name)
    }
}

/// Lets a query run until a batch waits for a merge.
async fn until_one_waits(query: &StreamingQuery, source: &MemorySource) {
    let deadline = Instant::now() + PATIENCE;
    let mut added = 0;
    while !query.status().message.contains("waits until files of its state are merged") {
        assert!(query.is_active(), "it ended: {:?}", query.error());
        assert!(Instant::now() < deadline, "{:?}", query.status());
        if query.last_progress().map_or(-1, |progress| progress.batch_id.0 as i64) + 1 >= added {
            source.add(vec![rows(added..added + 5)]).unwrap();
            added += 1;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Where storage does not keep up, a batch waits rather than to let its commits grow, and says so; whoever wants the query gone
/// does not wait with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_waits_for_a_merge_says_so() {
    let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(100 << 20));
    for goes_on in [true, false] {
        let source = MemorySource::new(rows(0..1).schema()).adds_per_batch(1);
        let slow = Arc::new(SlowMerges(memory_store(), Semaphore::new(0)));
        let checkpoint: Arc<dyn MetadataStore> = Arc::clone(&slow) as _;
        let writer = greatest(&pool, &source, &checkpoint).await.unwrap();
        let query = writer.trigger(Trigger::processing_time("0 seconds")).start().await.unwrap();
        until_one_waits(&query, &source).await;
        if goes_on {
            slow.1.add_permits(1_000);
            query.process_all_available().await.unwrap();
            let state = &query.last_progress().unwrap().state_operators[0];
            assert!(state.merges_waited_for >= 1 && state.files <= 16, "{state:?}");
            query.stop().await.unwrap();
        } else {
            // Only now: merges end before the run does.
            let (abandoned, ()) = tokio::join!(query.abort(), async { slow.1.add_permits(1_000) });
            abandoned.unwrap();
        }
        assert_eq!(pool.reserved(), 0, "memory was not given back");
    }
}
