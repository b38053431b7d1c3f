//! A query that starts again by itself keeps the state in memory where that is what the newest commit names, and reads it
//! from the checkpoint where a batch has changed it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::functions_aggregate::expr_fn::sum;
use datafusion::prelude::*;
use serde_json::json;
use tidewater::checkpoint::{CreateOutcome, MetadataStore, memory_store};
use tidewater::id::PartitionId;
use tidewater::prelude::*;
use tidewater::query::RestartPolicy;
use tidewater::sink::{BatchStatus, DataWriter, Guarantee, Receipt, Sink, SinkContext, StreamingWrite};
use tidewater::testing::table;

use crate::job::finish;

/// Where a batch fails, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fails {
    /// Before any task of it runs.
    Begin,
    /// When its tasks have changed the state.
    Commit,
}

/// Fails once at a place of batch 3, as storage does that is away for a moment.
#[derive(Debug, Clone)]
struct Away {
    inner: MemorySink,
    fails: Fails,
    failed: Arc<AtomicUsize>,
}

impl Away {
    fn fail_once(&self, here: Fails, batch: BatchId) -> Result<()> {
        let first = self.fails == here && batch == BatchId(3) && self.failed.fetch_add(1, Ordering::SeqCst) == 0;
        if first { Err(Error::new(ErrorKind::Unavailable, "nobody is there")) } else { Ok(()) }
    }
}

#[async_trait]
impl Sink for Away {
    fn description(&self) -> String {
        "away".to_owned()
    }

    fn guarantee(&self) -> Guarantee {
        self.inner.guarantee()
    }

    fn supports_output_mode(&self, mode: OutputMode) -> bool {
        self.inner.supports_output_mode(mode)
    }

    async fn open(&self, context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
        Ok(Box::new(AwayWrite(self.clone(), self.inner.open(context).await?)))
    }
}

#[derive(Debug)]
struct AwayWrite(Away, Box<dyn StreamingWrite>);

#[async_trait]
impl StreamingWrite for AwayWrite {
    async fn begin(&self, batch: BatchId) -> Result<BatchStatus> {
        self.0.fail_once(Fails::Begin, batch)?;
        self.1.begin(batch).await
    }

    fn partition(&self, batch: BatchId, partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        self.1.partition(batch, partition)
    }

    async fn commit(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        self.0.fail_once(Fails::Commit, batch)?;
        self.1.commit(batch, receipts).await
    }
}

/// Counts how often rows of state are read.
#[derive(Debug)]
struct Counting(Arc<dyn MetadataStore>, AtomicUsize);

#[async_trait]
impl MetadataStore for Counting {
    async fn create(&self, name: &str, contents: Bytes) -> Result<CreateOutcome> {
        self.0.create(name, contents).await
    }

    async fn read(&self, name: &str) -> Result<Option<Bytes>> {
        if name.starts_with("state/0/") {
            self.1.fetch_add(1, Ordering::SeqCst);
        }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_is_kept_where_it_is_the_committed_one() {
    for (fails, is_read) in [(Fails::Begin, false), (Fails::Commit, true)] {
        let schema = table::schema(&[("k", "string"), ("v", "long")]).unwrap();
        let source = MemorySource::new(Arc::clone(&schema)).adds_per_batch(1);
        for add in 0..6 {
            let rows = json!([["a", 1], ["b", 10], [format!("only in {add}"), 100]]);
            source.add(vec![table::rows(&schema, &rows).unwrap()]).unwrap();
        }
        let sums = SessionContext::new().read_stream(source).unwrap();
        let sums = sums.aggregate(vec![col("k")], vec![sum(col("v")).alias("s")]).unwrap();
        let store = Arc::new(Counting(memory_store(), AtomicUsize::new(0)));
        let sink = Away { inner: MemorySink::new(), fails, failed: Arc::default() };
        let writer = sums
            .write_stream(sink.clone())
            .output_mode(OutputMode::Complete)
            .checkpoint_store(Arc::clone(&store) as Arc<dyn MetadataStore>)
            .partitions(2)
            .restart_policy(RestartPolicy::exponential(Duration::from_millis(1), Duration::from_millis(1), 1))
            .trigger(Trigger::AvailableNow);
        finish(writer).await.unwrap();

        assert_eq!(sink.failed.load(Ordering::SeqCst), 2, "{fails:?}: it failed, and was asked once more");
        assert_eq!(store.1.load(Ordering::SeqCst) > 0, is_read, "{fails:?}");
        let last = sink.inner.batch(BatchId(5)).unwrap();
        let total: i64 =
            last.iter().flat_map(|rows| rows.column(1).as_primitive::<Int64Type>().values().to_vec()).sum();
        let keys: usize = last.iter().map(|rows| rows.num_rows()).sum();
        assert_eq!((total, keys), (6 * (1 + 10 + 100), 8), "{fails:?}: nothing was lost or counted twice");
    }
}
