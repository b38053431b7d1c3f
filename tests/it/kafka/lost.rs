//! Records and topics that are gone before the query read them. By default the query fails, with what is missing and
//! the way out; on request it goes on with what is left, and counts.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidewater::prelude::*;
use tidewater_connectors::kafka::{KafkaSource, StartingOffsets};
use tidewater_workspace::kafka::{Broker, NewRecord, unique_topic};

use super::steps::{
    PATIENCE, all_of, assert_says, caught_up, failure, log_a_batch, metric, numbers, run, sorted, start, stream, texts,
    until,
};
use super::{TOPIC_PARTITIONS, broker, new_topic};
use crate::job::PARTITIONS;

/// The partition whose records get lost; the others lose nothing.
const LOSES: i32 = 1;

/// A topic of three partitions that a query has read so far.
struct World {
    broker: &'static Broker,
    topic: String,
    dir: TempDir,
    sink: MemorySink,
}

impl World {
    /// The query has read ten records of the second partition, and one of each other.
    async fn new() -> Option<Self> {
        let broker = broker()?;
        let topic = new_topic(broker, "lost");
        let world = World { broker, topic, dir: tempfile::tempdir().unwrap(), sink: MemorySink::new() };
        broker.produce(&world.topic, [(0, "100"), (2, "102")]);
        world.produce(0..10);
        world.run(true).await.unwrap();
        Some(world)
    }

    fn produce(&self, values: Range<i64>) {
        self.broker.produce(&self.topic, values.map(|value| NewRecord::from((LOSES, value.to_string().as_str()))));
    }

    fn truncate(&self, before: i64) {
        self.broker.delete_records_before(&self.topic, LOSES, before);
    }

    fn source(&self, fail_on_data_loss: bool) -> KafkaSource {
        all_of(self.broker, &self.topic).fail_on_data_loss(fail_on_data_loss)
    }

    async fn run(&self, fail_on_data_loss: bool) -> Result<StreamingQuery> {
        run(self.source(fail_on_data_loss), self.sink.clone(), self.dir.path()).await
    }

    /// The query is refused, and says what is missing and what to do.
    async fn refused(&self, wanted: &[&str]) {
        let refused = self.run(true).await.unwrap_err();
        let topic = format!("`{}`", self.topic);
        assert_says(&refused, ErrorKind::SourceLostData, &[&[topic.as_str(), "`failOnDataLoss`"][..], wanted].concat());
    }

    /// What the query has written, but for the two records of the other partitions.
    #[track_caller]
    fn assert_written(&self, values: impl IntoIterator<Item = i64>) {
        let written = sorted(texts(&self.sink.batches(), "value"));
        assert_eq!(written, numbers(values.into_iter().chain([100, 102])));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_truncated_while_the_query_was_down() {
    let Some(world) = World::new().await else { return };
    world.produce(10..20);
    world.truncate(15);
    world.refused(&["partition 1", "offset 15", "offset 10", "10 to 20"]).await;
    // Starting it again changes nothing.
    world.refused(&["partition 1", "offset 15", "offset 10", "10 to 20"]).await;
    world.assert_written(0..10);

    let query = world.run(false).await.unwrap();
    assert_eq!(metric(&query, "lostOffsets").as_deref(), Some("5"));
    world.assert_written((0..10).chain(15..20));

    // From here on nothing is missing.
    world.produce(20..25);
    let query = world.run(true).await.unwrap();
    assert_eq!(metric(&query, "lostOffsets"), None);
    world.assert_written((0..10).chain(15..25));
}

/// The batch was logged and not written: its range is fixed, and its records are gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_truncated_after_the_batch_was_logged() {
    let Some(world) = World::new().await else { return };
    world.produce(10..20);
    log_a_batch(world.source(true), world.dir.path()).await;
    world.truncate(13);
    world.refused(&["partition 1", "offset 13", "offset 10", "10 to 20", "batch 1"]).await;
    let query = world.run(false).await.unwrap();
    assert_eq!(metric(&query, "lostOffsets").as_deref(), Some("3"));
    world.assert_written((0..10).chain(13..20));

    // Nothing at all is left of the range.
    world.produce(20..30);
    log_a_batch(world.source(true), world.dir.path()).await;
    world.truncate(30);
    world.refused(&["partition 1", "20 to 30", "batch 2"]).await;
    let query = world.run(false).await.unwrap();
    assert_eq!(metric(&query, "lostOffsets").as_deref(), Some("10"));
    world.produce(30..32);
    world.run(true).await.unwrap();
    world.assert_written((0..10).chain(13..20).chain(30..32));
}

/// Records expire under a query that reads too slowly. librdkafka has a few of them in memory by then; not all, because
/// it is told to fetch one at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_truncated_while_the_query_runs() {
    let Some(broker) = broker() else { return };
    for fail in [true, false] {
        let topic = unique_topic("expires");
        broker.create_topic(&topic, 2);
        (0..20).for_each(|value| broker.produce(&topic, [(LOSES, value.to_string().as_str())]));
        let source = all_of(broker, &topic)
            .fail_on_data_loss(fail)
            .max_offsets_per_trigger(2)
            .property("fetch.message.max.bytes", "1")
            .property("queued.min.messages", "1");
        let (sink, clock) = (MemorySink::new(), ManualClock::at(0));
        let writer = stream(source).await.write_stream(sink.clone()).partitions(PARTITIONS);
        let writer = writer.trigger(Trigger::processing_time("1 hour"));
        let query = writer.clock(Arc::new(clock.clone())).start().await.unwrap();
        until(&query, "the first batch", || query.last_progress().is_some()).await;

        broker.delete_records_before(&topic, LOSES, 16);
        let deadline = Instant::now() + PATIENCE;
        let is_read = || texts(&sink.batches(), "value").contains(&"19".to_owned());
        while query.is_active() && !is_read() {
            assert!(Instant::now() < deadline, "{:?}", query.status());
            clock.advance_ms(3_600_000);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if fail {
            let failed = failure(&query).await;
            assert_says(&failed, ErrorKind::SourceLostData, &[&topic, "partition 1", "offset 16", "`failOnDataLoss`"]);
            continue;
        }
        let lost: usize = metric(&query, "lostOffsets").unwrap().parse().unwrap();
        println!("{lost} of 20 records were lost");
        let read = texts(&sink.batches(), "value");
        assert!(lost > 0 && read.ends_with(&["16", "17", "18", "19"].map(str::to_owned)), "{read:?}");
        assert_eq!(read.len() + lost, 20, "{read:?}");
        query.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_deleted_and_made_again() {
    let Some(world) = World::new().await else { return };
    world.broker.delete_topic(&world.topic);
    world.refused(&["gone", "was read up to offset"]).await;
    // Made again before anybody went on without it: it has fewer records than were read of the old one.
    world.broker.create_topic(&world.topic, TOPIC_PARTITIONS);
    world.produce(50..54);
    world.refused(&["deleted and made again"]).await;
    world.run(false).await.unwrap();
    world.assert_written((0..10).chain(50..54));
    world.produce(54..56);
    world.run(true).await.unwrap();
    world.assert_written((0..10).chain(50..56));

    // Once a query has gone on without it, it is forgotten, and a topic of that name is a new one.
    world.broker.delete_topic(&world.topic);
    world.run(false).await.unwrap();
    world.broker.create_topic(&world.topic, TOPIC_PARTITIONS);
    world.produce(60..80);
    world.run(true).await.unwrap();
    world.assert_written((0..10).chain(50..56).chain(60..80));
}

/// One of two topics is deleted under the query, and made again under the one that goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_deleted_while_the_query_runs() {
    let Some(broker) = broker() else { return };
    for fail in [true, false] {
        let (stays, goes) = (unique_topic("stays"), unique_topic("goes"));
        [&stays, &goes].into_iter().for_each(|topic| broker.create_topic(topic, 2));
        broker.produce(&stays, [(0, "a"), (1, "b")]);
        broker.produce(&goes, [(0, "c"), (1, "d"), (1, "e")]);
        let source = KafkaSource::subscribe(broker.bootstrap(), [&stays, &goes])
            .starting_offsets(StartingOffsets::Earliest)
            .fail_on_data_loss(fail);
        let (dir, sink) = (tempfile::tempdir().unwrap(), MemorySink::new());
        let query = start(stream(source).await, sink.clone(), dir.path()).await;
        caught_up(&query).await;
        let written = || sorted(texts(&sink.batches(), "value"));
        assert_eq!(written(), ["a", "b", "c", "d", "e"]);

        broker.delete_topic(&goes);
        let deleted = Instant::now();
        if fail {
            let failed = failure(&query).await;
            println!("after {:?}:", deleted.elapsed());
            assert_says(&failed, ErrorKind::SourceLostData, &[&format!("`{goes}`"), "gone", "`failOnDataLoss`"]);
            assert!(!failed.to_string().contains(&stays), "{failed}");
            continue;
        }
        // Longer than it takes the other query to fail.
        let mut rows = 0;
        while deleted.elapsed() < Duration::from_secs(6) {
            broker.produce(&stays, [(rows % 2, "f")]);
            rows += 1;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        until(&query, "the other topic goes on", || written().len() == 5 + rows as usize).await;

        broker.create_topic(&goes, 2);
        broker.produce(&goes, [(1, "g"), (0, "h")]);
        until(&query, "the new topic is read", || written().ends_with(&["g".to_owned(), "h".to_owned()])).await;
        assert_eq!(written().len(), 7 + rows as usize, "nothing is read twice");
        query.stop().await.unwrap();
    }
}

/// What a partition lost before the query saw it for the first time is counted once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_partition_that_lost_records_before_it_was_read() {
    let Some(world) = World::new().await else { return };
    let new = TOPIC_PARTITIONS;
    world.broker.add_partitions(&world.topic, new + 1);
    (50..60).for_each(|value| world.broker.produce(&world.topic, [(new, value.to_string().as_str())]));
    world.broker.delete_records_before(&world.topic, new, 4);
    world.refused(&["is new", "first 4 records"]).await;
    let query = world.run(false).await.unwrap();
    assert_eq!(metric(&query, "lostOffsets").as_deref(), Some("4"));
    world.assert_written((0..10).chain(54..60));
}
