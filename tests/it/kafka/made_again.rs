//! A topic that was deleted and made again under its name, with more records than were read of the old one: its id tells.
//! By default the query fails; on request it begins the new one at its beginning, and loses and doubles nothing of it.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow::datatypes::DataType;
use datafusion::logical_expr::{ColumnarValue, Volatility, create_udf};
use datafusion::prelude::*;
use tempfile::TempDir;
use tidewater::prelude::*;
use tidewater_connectors::kafka::KafkaSource;
use tidewater_workspace::kafka::{Broker, NewRecord};

use super::steps::{
    all_of, assert_says, caught_up, failure, log_a_batch, metric, numbers, run, sorted, start, stream, texts, until,
};
use super::{TOPIC_PARTITIONS, broker, new_topic};

const WORDS: [&str; 3] = ["deleted and made again", "`failOnDataLoss`", "`topicsMoved`"];

struct World {
    broker: &'static Broker,
    topic: String,
    dir: TempDir,
    sink: MemorySink,
}

impl World {
    /// With nothing read.
    fn new() -> Option<Self> {
        let broker = broker()?;
        let topic = new_topic(broker, "again");
        Some(World { broker, topic, dir: tempfile::tempdir().unwrap(), sink: MemorySink::new() })
    }

    /// Values to partition 1.
    fn produce(&self, values: Range<i64>) {
        self.broker.produce(&self.topic, values.map(|value| NewRecord::from((1, value.to_string().as_str()))));
    }

    /// Another topic with these values.
    fn make_again(&self, values: Range<i64>) {
        self.broker.delete_topic(&self.topic);
        self.broker.create_topic(&self.topic, TOPIC_PARTITIONS);
        self.produce(values);
    }

    fn source(&self) -> KafkaSource {
        all_of(self.broker, &self.topic)
    }

    async fn run(&self, source: KafkaSource) -> Result<StreamingQuery> {
        run(source, self.sink.clone(), self.dir.path()).await
    }

    async fn refused(&self) {
        let refused = self.run(self.source()).await.unwrap_err();
        let topic = format!("`{}`", self.topic);
        assert_says(&refused, ErrorKind::SourceLostData, &[&[topic.as_str()][..], &WORDS].concat());
    }

    #[track_caller]
    fn assert_written(&self, values: impl IntoIterator<Item = i64>) {
        assert_eq!(sorted(texts(&self.sink.batches(), "value")), numbers(values));
    }
}

/// More records than were read, as many, and none at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_query_is_down() {
    for new in [100..120, 100..110, 100..103, 100..100] {
        let Some(world) = World::new() else { return };
        world.produce(0..10);
        world.run(world.source()).await.unwrap();
        world.make_again(new.clone());
        for _ in 0..2 {
            world.refused().await;
        }
        world.assert_written(0..10);
        world.run(world.source().fail_on_data_loss(false)).await.unwrap();
        world.assert_written((0..10).chain(new.clone()));
        // From here on it is the new one that counts.
        world.produce(200..205);
        world.run(world.source()).await.unwrap();
        world.assert_written((0..10).chain(new).chain(200..205));
    }
}

/// No batch has run, and yet the query has begun, with the old topic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_the_first_batch() {
    let Some(world) = World::new() else { return };
    world.produce(0..10);
    log_a_batch(world.source(), world.dir.path()).await;
    std::fs::remove_file(world.dir.path().join("offsets/0")).unwrap();
    world.make_again(100..120);
    world.refused().await;
    world.run(world.source().fail_on_data_loss(false)).await.unwrap();
    world.assert_written(100..120);
}

/// The range of the batch is fixed, and the records that it means are gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_batch_was_logged() {
    let Some(world) = World::new() else { return };
    world.produce(0..10);
    world.run(world.source()).await.unwrap();
    world.produce(10..20);
    log_a_batch(world.source(), world.dir.path()).await;
    world.make_again(100..150);
    world.refused().await;
    world.assert_written(0..10);
    let query = world.run(world.source().fail_on_data_loss(false)).await.unwrap();
    let lost: Vec<_> =
        query.recent_progress().iter().map(|b| b.sources[0].metrics.get("lostOffsets").cloned()).collect();
    assert_eq!(lost.first().unwrap().as_deref(), Some("10"), "{lost:?}");
    world.assert_written((0..10).chain(100..150));
}

/// It went on with the new one, and died before it had written the batch: the same batch again, without the option too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_both_is_repeated() {
    let Some(world) = World::new() else { return };
    world.produce(0..10);
    world.run(world.source()).await.unwrap();
    world.make_again(100..130);
    log_a_batch(world.source().fail_on_data_loss(false), world.dir.path()).await;
    world.run(world.source()).await.unwrap();
    world.assert_written((0..10).chain(100..130));
}

/// With its offsets, to another cluster, say: it goes on where it was, and the batch that does so can be repeated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_moved() {
    let Some(world) = World::new() else { return };
    world.produce(0..10);
    world.run(world.source()).await.unwrap();
    world.make_again(0..15);
    world.refused().await;
    log_a_batch(world.source().topics_moved(true), world.dir.path()).await;
    world.run(world.source()).await.unwrap();
    world.assert_written(0..15);
    world.make_again(0..30);
    world.refused().await;
}

/// Under a query that runs, and does not notice that it was gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_query_runs() {
    for fail in [true, false] {
        let Some(world) = World::new() else { return };
        world.produce(0..10);
        let source = world.source().fail_on_data_loss(fail);
        let query = start(stream(source).await, world.sink.clone(), world.dir.path()).await;
        caught_up(&query).await;
        world.make_again(100..140);
        if fail {
            let failed = failure(&query).await;
            assert_says(&failed, ErrorKind::SourceLostData, &[&world.topic, "deleted and made again"]);
            world.assert_written(0..10);
            continue;
        }
        let written = || sorted(texts(&world.sink.batches(), "value"));
        let wanted = numbers((0..10).chain(100..140));
        until(&query, "the new one is read", || written().len() >= wanted.len()).await;
        caught_up(&query).await;
        world.assert_written((0..10).chain(100..140));
        assert_eq!(metric(&query, "unknownSince"), None);
        query.stop().await.unwrap();
    }
}

/// In the middle of a batch: librdkafka goes on in the new topic, so nothing of the batch counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_batch_is_read() {
    let Some(world) = World::new() else { return };
    world.produce(0..20_000);
    let (reached, go_on) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let wait = {
        let (reached, go_on) = (Arc::clone(&reached), Arc::clone(&go_on));
        move |given: &[ColumnarValue]| {
            reached.store(true, Ordering::Relaxed);
            while !go_on.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(given[0].clone())
        }
    };
    let waits = create_udf("waits", vec![DataType::Binary], DataType::Binary, Volatility::Volatile, Arc::new(wait));
    let rows = stream(world.source()).await.select(vec![waits.call(vec![col("value")]).alias("value")]).unwrap();
    let query = start(rows, world.sink.clone(), world.dir.path()).await;
    until(&query, "the first rows", || reached.load(Ordering::Relaxed)).await;
    world.make_again(100_000..130_000);
    go_on.store(true, Ordering::Relaxed);
    let failed = failure(&query).await;
    assert_says(
        &failed,
        ErrorKind::SourceLostData,
        &[&world.topic, "deleted and made again", "while the batch was read"],
    );
    world.assert_written([]);
    world.refused().await;
    world.run(world.source().fail_on_data_loss(false)).await.unwrap();
    world.assert_written(100_000..130_000);
}

/// As an older release, or Spark, has left the checkpoint.
fn forget_ids(checkpoint: &Path) {
    drop(std::fs::remove_file(checkpoint.join("sources/0/topic-ids")));
    for entry in std::fs::read_dir(checkpoint.join("offsets")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let mut metadata: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&lines[1]).unwrap();
        assert!(metadata.shift_remove("sourceProofs").is_some(), "{text}");
        lines[1] = serde_json::Value::Object(metadata).to_string();
        std::fs::write(&path, lines.join("\n")).unwrap();
    }
}

/// What was never kept cannot be known; from the first look on, it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_without_ids_learns_them() {
    let Some(world) = World::new() else { return };
    world.produce(0..10);
    world.run(world.source()).await.unwrap();
    forget_ids(world.dir.path());
    let query = start(stream(world.source()).await, world.sink.clone(), world.dir.path()).await;
    caught_up(&query).await;
    assert_eq!(query.recent_progress().len(), 0, "no batch for that alone");
    world.make_again(100..140);
    assert_says(&failure(&query).await, ErrorKind::SourceLostData, &[&world.topic, "deleted and made again"]);
    world.assert_written(0..10);
}
