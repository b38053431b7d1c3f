//! Paused at every call that crosses a boundary while another run takes over, then going on, then a third run: from Kafka to
//! Kafka and to files. What the paused run still does loses and doubles nothing, and turns no consumer group back.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arrow::datatypes::DataType;
use datafusion::prelude::*;
use tempfile::TempDir;
use tidewater::checkpoint::{MetadataStore, memory_store};
use tidewater::prelude::*;
use tidewater::sink::Sink;
use tidewater::testing::{
    FaultInjector, FaultySink, FaultySource, FaultyStore, Overtaken, overtaken_at_every_moment, table,
};
use tidewater_connectors::file::FileSink;
use tidewater_workspace::files::{Format, committed_rows};
use tidewater_workspace::kafka::{Broker, NewRecord, unique_topic};

use super::steps::{all_of, into, numbers, sorted, texts, values};
use super::{TOPIC_PARTITIONS, broker, new_topic, settled};
use crate::job::{finish, session, text};

const PARTITIONS: usize = 2;

/// So many records are there from the beginning, as many of each partition, in two batches.
const EARLY: i64 = 18;
const ALL: i64 = 24;
const PER_BATCH: u64 = 9;

/// What the runs of one life share.
struct World {
    broker: &'static Broker,
    input: String,
    out: String,
    /// Told how far the query is.
    group: String,
    was_turned_back: AtomicBool,
    dir: TempDir,
    checkpoint: Arc<dyn MetadataStore>,
}

impl World {
    fn new(broker: &'static Broker) -> Self {
        let (input, out) = (new_topic(broker, "overtaken-in"), new_topic(broker, "overtaken-out"));
        let world = World {
            broker,
            input,
            out,
            group: unique_topic("overtaken"),
            was_turned_back: AtomicBool::new(false),
            dir: tempfile::tempdir().unwrap(),
            checkpoint: memory_store(),
        };
        world.produce(0..EARLY);
        world
    }

    fn produce(&self, values: Range<i64>) {
        let record =
            |value: i64| NewRecord::from(((value % i64::from(TOPIC_PARTITIONS)) as i32, value.to_string().as_str()));
        self.broker.produce(&self.input, values.map(record));
    }

    fn files(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    async fn run(&self, sink: impl Sink + 'static, falls: &FaultInjector) -> Result<()> {
        let source = all_of(self.broker, &self.input)
            .commit_offsets_to_group(&self.group)
            .min_partitions(PARTITIONS)
            .max_offsets_per_trigger(PER_BATCH);
        let records = session().read_stream(FaultySource::new(source, falls))?;
        let writer = records
            .select(vec![cast(col("value"), DataType::Utf8).alias("value")])?
            .write_stream(FaultySink::new(sink, falls))
            .checkpoint_store(Arc::new(FaultyStore::new(Arc::clone(&self.checkpoint), falls)))
            .partitions(PARTITIONS)
            .durable(false)
            .min_batches_to_retain(1)
            .trigger(Trigger::AvailableNow);
        finish(writer).await.map(|_| ())
    }

    /// Called when the paused run has come to its end, behind one that has read all there was.
    fn more(&self) {
        let committed = self.broker.committed_offsets(&self.group, &self.input);
        let told: i64 = committed.values().map(|committed| committed.offset).sum();
        self.was_turned_back.fetch_or(told < EARLY, Ordering::Relaxed);
        self.produce(EARLY..ALL);
    }

    fn check(&self, mut found: Vec<String>) -> Result<(), String> {
        found = sorted(found);
        if found != numbers(0..ALL) {
            return Err(format!("found {found:?}"));
        }
        if self.was_turned_back.load(Ordering::Relaxed) {
            return Err("the consumer group was turned back".to_owned());
        }
        Ok(())
    }
}

fn report(job: &str, began: Instant, outcome: Result<Overtaken, String>) {
    match outcome {
        Ok(came) => {
            let took = began.elapsed();
            println!(
                "overtaken at every moment: {job}: {came}; no row lost or doubled, no group turned back; {took:?}"
            );
            assert!(came.paused > 20, "{job} has only {} moments: the wrappers are not in place", came.paused);
            assert!(came.fenced > 0, "{job}: {came}");
        }
        Err(e) => panic!("{job}: {e}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_to_kafka() {
    let Some(broker) = broker() else { return };
    let began = Instant::now();
    let outcome = overtaken_at_every_moment(
        || World::new(broker),
        async |world: &World, falls: &FaultInjector| world.run(into(broker, &world.out), falls).await,
        async |world: &World| world.more(),
        async |world: &World| world.check(values(&settled(broker, &world.out))),
    )
    .await;
    report("Kafka to Kafka", began, outcome);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_to_files() {
    let Some(broker) = broker() else { return };
    let began = Instant::now();
    let outcome = overtaken_at_every_moment(
        || World::new(broker),
        async |world: &World, falls: &FaultInjector| world.run(FileSink::parquet(text(&world.files())), falls).await,
        async |world: &World| world.more(),
        async |world: &World| {
            let schema = table::schema(&[("value", "string")]).map_err(|e| e.to_string())?;
            let rows = committed_rows(&world.files(), Format::Parquet, &schema).await.map_err(|e| e.to_string())?;
            world.check(texts(&rows, "value"))
        },
    )
    .await;
    report("Kafka to Parquet files", began, outcome);
}
