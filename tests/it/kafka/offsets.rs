//! Where a query begins, how much a batch takes, into what it is cut; and what is written down of it: in the
//! checkpoint, in a consumer group, in the progress.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidewater::prelude::*;
use tidewater_connectors::kafka::{KafkaSource, PartitionOffsets, StartingOffsets};
use tidewater_workspace::kafka::{Broker, NewRecord, unique_topic};

use super::conditions::KEPT;
use super::steps::{all_of, assert_says, caught_up, options, read_all, run, sorted, start, stream, texts, until};
use super::{broker, new_topic};
use crate::job::PARTITIONS;

/// 2024-01-01T00:00:00 UTC, the time of the first record of each partition; each further one is a second later.
const FIRST_MS: i64 = 1_704_067_200_000;

/// How many records the partitions have.
const RECORDS: [i64; 3] = [10, 5, 3];

/// A topic whose records have the values `partition-offset`.
fn timed_topic(broker: &Broker) -> String {
    let topic = unique_topic("timed");
    broker.create_topic_with(&topic, 3, &KEPT);
    for (partition, count) in (0..).zip(RECORDS) {
        let record = |offset: i64| NewRecord {
            timestamp_ms: Some(FIRST_MS + offset * 1000),
            ..NewRecord::from((partition, format!("{partition}-{offset}").as_str()))
        };
        broker.produce(&topic, (0..count).map(record));
    }
    topic
}

/// What a topic has from these offsets on.
fn from(offsets: [i64; 3]) -> Vec<String> {
    let rest = |(partition, (from, count)): (usize, (i64, i64))| {
        (from..count).map(move |offset| format!("{partition}-{offset}")).collect::<Vec<_>>()
    };
    sorted(offsets.into_iter().zip(RECORDS).enumerate().flat_map(rest).collect())
}

/// The source of a topic, with further options by name.
fn with_options<const N: usize>(broker: &Broker, topic: &str, further: [(&str, &str); N]) -> KafkaSource {
    let mut given = options([("kafka.bootstrap.servers", broker.bootstrap()), ("subscribe", topic)]);
    given.extend(options(further));
    KafkaSource::from_options(given).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_begins_where_it_is_told() {
    let Some(broker) = broker() else { return };
    let topic = timed_topic(broker);
    assert_eq!(read_all(with_options(broker, &topic, [("startingOffsets", "earliest")])).await, from([0, 0, 0]));
    assert_eq!(read_all(with_options(broker, &topic, [])).await, from(RECORDS), "the default is the end");

    let places = json!({ topic.as_str(): { "0": -2, "1": -1, "2": 2 } }).to_string();
    assert_eq!(read_all(with_options(broker, &topic, [("startingOffsets", &places)])).await, from([0, 5, 2]));
    let places = PartitionOffsets::from_json(&places).unwrap();
    let source = KafkaSource::subscribe(broker.bootstrap(), [&topic]).starting_offsets(StartingOffsets::At(places));
    assert_eq!(read_all(source).await, from([0, 5, 2]));

    for (given, named) in [
        (json!({ topic.as_str(): { "0": 1, "2": 2 } }), "partition 1"),
        (json!({ topic.as_str(): { "0": 1, "1": 1, "2": 2, "3": 0 } }), "partition 3"),
        (json!({ "other": { "0": 1 } }), "partition 0"),
    ] {
        let source = with_options(broker, &topic, [("startingOffsets", &given.to_string())]);
        let dir = tempfile::tempdir().unwrap();
        let refused = run(source, DiscardSink::new(), dir.path()).await.unwrap_err();
        assert_says(&refused, ErrorKind::InvalidQuery, &["`startingOffsets`", named, "-2 stands for the earliest"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_begins_at_a_time() {
    let Some(broker) = broker() else { return };
    let topic = timed_topic(broker);
    let at = |second: i64| FIRST_MS + second * 1000;
    let time = |ms: i64| ms.to_string();
    assert_eq!(read_all(with_options(broker, &topic, [("startingTimestamp", &time(at(1)))])).await, from([1, 1, 1]));
    assert_eq!(read_all(with_options(broker, &topic, [("startingTimestamp", "0")])).await, from([0, 0, 0]));

    // Between two records: the later one. Another time for each partition.
    let times = json!({ topic.as_str(): { "0": at(8) + 1, "1": at(4), "2": at(0) - 5000 } }).to_string();
    let source = with_options(broker, &topic, [("startingOffsetsByTimestamp", &times)]);
    assert_eq!(read_all(source).await, from([9, 4, 0]));
    let times = PartitionOffsets::from_json(&times).unwrap();
    let source = KafkaSource::subscribe(broker.bootstrap(), [&topic]).starting_offsets(StartingOffsets::AtTimes(times));
    assert_eq!(read_all(source).await, from([9, 4, 0]));

    // Two of the partitions have nothing so late.
    let late = time(at(7));
    let dir = tempfile::tempdir().unwrap();
    let source = with_options(broker, &topic, [("startingTimestamp", &late)]);
    let refused = run(source, DiscardSink::new(), dir.path()).await.unwrap_err();
    let wanted = ["partition 1", &format!("`{topic}`"), &late, "`startingOffsetsByTimestampStrategy`"];
    assert_says(&refused, ErrorKind::InvalidQuery, &wanted);
    let latest = ("startingOffsetsByTimestampStrategy", "latest");
    let source = with_options(broker, &topic, [("startingTimestamp", &late), latest]);
    assert_eq!(read_all(source).await, from([7, 5, 3]));

    // A time for all goes before times for each, and these before offsets.
    let source = with_options(
        broker,
        &topic,
        [("startingOffsets", "earliest"), ("startingOffsetsByTimestamp", "{}"), ("startingTimestamp", &time(at(2)))],
    );
    assert_eq!(read_all(source).await, from([2, 2, 2]));
}

/// What comes after the start of a new query is read, also what comes before its first batch; a query that goes on
/// takes its checkpoint's word, not that of the options.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_goes_on_where_it_was() {
    let Some(broker) = broker() else { return };
    let topic = timed_topic(broker);
    let (dir, sink) = (tempfile::tempdir().unwrap(), MemorySink::new());
    let read = || sorted(texts(&sink.batches(), "value"));
    let source = |starting| KafkaSource::subscribe(broker.bootstrap(), [&topic]).starting_offsets(starting);
    let query = start(stream(source(StartingOffsets::Latest)).await, sink.clone(), dir.path()).await;
    caught_up(&query).await;
    query.stop().await.unwrap();
    assert_eq!(read(), [""; 0]);

    broker.produce(&topic, [(0, "a"), (2, "b")]);
    run(source(StartingOffsets::Latest), sink.clone(), dir.path()).await.unwrap();
    assert_eq!(read(), ["a", "b"], "no batch had run, and yet the query had begun");
    broker.produce(&topic, [(1, "c")]);
    run(source(StartingOffsets::Earliest), sink.clone(), dir.path()).await.unwrap();
    broker.produce(&topic, [(0, "d")]);
    run(source(StartingOffsets::AtTime(FIRST_MS)), sink.clone(), dir.path()).await.unwrap();
    assert_eq!(read(), ["a", "b", "c", "d"]);
}

/// By partition, so many records.
fn fill(broker: &Broker, topic: &str, counts: [usize; 3]) {
    for (partition, count) in (0..).zip(counts) {
        broker.produce(topic, (0..count).map(|_| NewRecord::from((partition, "x"))));
    }
}

fn ends(query: &StreamingQuery, topic: &str) -> Vec<Value> {
    query.recent_progress().iter().map(|batch| batch.sources[0].end_offset[topic].clone()).collect()
}

/// Spark's own example: 101, 11 and 1 records, ten a batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_most_that_a_batch_takes_is_shared_as_in_spark() {
    let Some(broker) = broker() else { return };
    let topic = new_topic(broker, "shares");
    fill(broker, &topic, [101, 11, 1]);
    let (dir, sink) = (tempfile::tempdir().unwrap(), MemorySink::new());
    let source = with_options(broker, &topic, [("startingOffsets", "earliest"), ("maxOffsetsPerTrigger", "10")]);
    let query = run(source, sink.clone(), dir.path()).await.unwrap();
    let ends = ends(&query, &topic);
    for (batch, [first, second]) in [[8, 1], [17, 2], [26, 3], [35, 4]].into_iter().enumerate() {
        assert_eq!(ends[batch], json!({ "0": first, "1": second, "2": 1 }), "{ends:?}");
    }
    assert_eq!(ends.last(), Some(&json!({ "0": 101, "1": 11, "2": 1 })));
    let rows = sink.batches();
    let places = texts(&rows, "partition").into_iter().zip(texts(&rows, "offset"));
    let places = sorted(places.map(|(partition, offset)| format!("{partition} {offset}")).collect());
    assert_eq!(places.len(), 113);
    assert!(places.windows(2).all(|pair| pair[0] != pair[1]), "none twice: {places:?}");
}

/// By a clock that only we move: a batch waits for fifteen records, or for five seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_waits_for_its_least_and_not_for_ever() {
    let Some(broker) = broker() else { return };
    let topic = new_topic(broker, "least");
    fill(broker, &topic, [2, 1, 1]);
    let (sink, clock) = (MemorySink::new(), ManualClock::at(FIRST_MS));
    let source = all_of(broker, &topic).min_offsets_per_trigger(15, Duration::from_secs(5));
    let writer = stream(source).await.write_stream(sink.clone()).partitions(PARTITIONS).clock(Arc::new(clock.clone()));
    let query = writer.start().await.unwrap();
    let read = || texts(&sink.batches(), "value").len();
    caught_up(&query).await;
    assert_eq!(read(), 4, "the first batch never waits");

    fill(broker, &topic, [10, 4, 0]);
    caught_up(&query).await;
    clock.advance_ms(4_000);
    caught_up(&query).await;
    assert_eq!(read(), 4, "14 are too few");
    fill(broker, &topic, [0, 0, 1]);
    caught_up(&query).await;
    assert_eq!(read(), 19, "15 are enough");

    fill(broker, &topic, [1, 0, 1]);
    clock.advance_ms(4_000);
    caught_up(&query).await;
    assert_eq!(read(), 19);
    clock.advance_ms(1_000);
    until(&query, "the delay is over", || read() == 21).await;
    query.stop().await.unwrap();
}

/// Into how many parts the last batch was cut.
fn parts(query: &StreamingQuery) -> usize {
    let plan = query.explain();
    let (_, parts) = plan.rsplit_once("partition_sizes=").unwrap_or_else(|| panic!("nothing was read:\n{plan}"));
    parts.split([',', '\n']).next().unwrap().trim().parse().unwrap()
}

/// However it is cut, it is the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_may_be_cut_into_more_parts() {
    let Some(broker) = broker() else { return };
    let topic = new_topic(broker, "cut");
    for partition in 0..3 {
        let record = |value: i64| NewRecord::from((partition, format!("{partition}-{value}").as_str()));
        broker.produce(&topic, (0..2_000).map(record));
    }
    let whole = read_all(all_of(broker, &topic)).await;
    assert_eq!(whole.len(), 6_000);
    let earliest = ("startingOffsets", "earliest");
    for (further, least) in [
        (vec![], 1),
        (vec![("minPartitions", "7")], 7),
        (vec![("minPartitions", "50")], 50),
        (vec![("maxRecordsPerPartition", "999")], 1),
        (vec![("minPartitions", "2"), ("maxRecordsPerPartition", "333")], 2),
    ] {
        let mut given = options([("kafka.bootstrap.servers", broker.bootstrap()), ("subscribe", &topic), earliest]);
        given.extend(further.iter().map(|(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned())));
        let (dir, sink) = (tempfile::tempdir().unwrap(), MemorySink::new());
        let query = run(KafkaSource::from_options(given).unwrap(), sink.clone(), dir.path()).await.unwrap();
        println!("{further:?}: {} parts", parts(&query));
        assert!(parts(&query) >= least, "{further:?}: {}", parts(&query));
        assert!(sorted(texts(&sink.batches(), "value")) == whole, "{further:?}: other rows");
    }
}

/// For tools that show lag: the group's offsets are where the query is. And the progress says how far behind it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_can_see_how_far_the_query_is() {
    let Some(broker) = broker() else { return };
    let (topic, group) = (new_topic(broker, "seen"), unique_topic("watchers"));
    fill(broker, &topic, [20, 10, 0]);
    let dir = tempfile::tempdir().unwrap();
    let source = || all_of(broker, &topic).commit_offsets_to_group(&group).max_offsets_per_trigger(15);
    let query = run(source(), DiscardSink::new(), dir.path()).await.unwrap();
    let figures = |name: &str| -> Vec<f64> {
        query.recent_progress().iter().map(|batch| batch.sources[0].metrics[name].parse().unwrap()).collect()
    };
    assert_eq!(ends(&query, &topic), [json!({"0": 10, "1": 5, "2": 0}), json!({"0": 20, "1": 10, "2": 0})]);
    assert_eq!(figures("minOffsetsBehindLatest"), [0.0, 0.0]);
    assert_eq!(figures("maxOffsetsBehindLatest"), [10.0, 0.0]);
    assert_eq!(figures("avgOffsetsBehindLatest"), [5.0, 0.0]);

    let committed = || -> Vec<i64> {
        broker.committed_offsets(&group, &topic).into_values().map(|committed| committed.offset).collect()
    };
    assert_eq!(committed(), [20, 10, 0], "a query that ends has committed everything to its group");

    let query = start(stream(source()).await, DiscardSink::new(), dir.path()).await;
    fill(broker, &topic, [1, 2, 3]);
    let asked = Instant::now();
    until(&query, "offsets are committed to the group while the query runs", || committed() == [21, 12, 3]).await;
    println!("the group knows after {:?}", asked.elapsed());
    query.stop().await.unwrap();

    // Nothing is ever read back from there.
    let read = read_all(all_of(broker, &topic).commit_offsets_to_group(&group)).await;
    assert_eq!(read.len(), 36);
}

fn contents(checkpoint: &Path, file: &str) -> String {
    String::from_utf8(std::fs::read(checkpoint.join(file)).unwrap()).unwrap()
}

/// The files of the checkpoint are those that Spark writes for the same topics.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checkpoint_looks_like_sparks() {
    let Some(broker) = broker() else { return };
    let (one, two) = (new_topic(broker, "a-first"), unique_topic("b-second"));
    broker.create_topic(&two, 11);
    fill(broker, &one, [2, 0, 1]);
    broker.produce(&two, [(10, "x"), (2, "y")]);
    let dir = tempfile::tempdir().unwrap();
    let both = || KafkaSource::subscribe(broker.bootstrap(), [&two, &one]).starting_offsets(StartingOffsets::Earliest);
    run(both(), DiscardSink::new(), dir.path()).await.unwrap();
    fill(broker, &one, [0, 1, 0]);
    run(both(), DiscardSink::new(), dir.path()).await.unwrap();

    // Partitions are in the order of their numbers.
    let zeros: Vec<String> = (0..11).map(|partition| format!("\"{partition}\":0")).collect();
    let zeros = zeros.join(",");
    let initial = format!("\0v1\n{{\"{one}\":{{\"0\":0,\"1\":0,\"2\":0}},\"{two}\":{{{zeros}}}}}");
    assert_eq!(contents(dir.path(), "sources/0/0"), initial);
    let ends = zeros.replace("\"2\":0", "\"2\":1").replace("\"10\":0", "\"10\":1");
    for (batch, first) in [(0, "\"0\":2,\"1\":0,\"2\":1"), (1, "\"0\":2,\"1\":1,\"2\":1")] {
        let logged = contents(dir.path(), &format!("offsets/{batch}"));
        assert!(logged.starts_with("v1\n{\"batchWatermarkMs\":0,"), "{logged}");
        let last = logged.lines().last().unwrap();
        assert_eq!(last, format!("{{\"{one}\":{{{first}}},\"{two}\":{{{ends}}}}}"));
        assert!(contents(dir.path(), &format!("commits/{batch}")).starts_with("v1\n{\"nextBatchWatermarkMs\":0"));
    }
}
