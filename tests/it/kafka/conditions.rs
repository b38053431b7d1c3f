//! What a cluster does to a query that is no error: partitions without records, partitions and topics that are added.
//! And what is wrong from the start, in words.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use datafusion::functions_aggregate::expr_fn::count;
use datafusion::prelude::*;
use serde_json::json;
use tidewater::prelude::*;
use tidewater_connectors::kafka::{KafkaSink, KafkaSource, StartingOffsets};
use tidewater_workspace::kafka::{NewRecord, unique_topic};

use super::steps::{
    PATIENCE, all_of, assert_says, caught_up, end_offset, into, options, rows_in_memory, run, sorted, start, stream,
    texts, until,
};
use super::{broker, new_topic};

/// 2024-01-01T00:00:00 UTC.
const MIDNIGHT_MS: i64 = 1_704_067_200_000;

/// Records of such times are old enough to be deleted by default.
pub(super) const KEPT: [(&str, &str); 1] = [("retention.ms", "-1")];

/// Eight partitions, one of which never has a record: windows close by the time of the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_partition_holds_nothing_up() {
    const SILENT: i32 = 5;
    let Some(broker) = broker() else { return };
    let topic = unique_topic("silent");
    broker.create_topic_with(&topic, 8, &KEPT);
    let produce = |minute: i64| {
        let record = |partition| NewRecord {
            timestamp_ms: Some(MIDNIGHT_MS + minute * 60_000 + i64::from(partition)),
            ..NewRecord::from((partition, "x"))
        };
        broker.produce(&topic, (0..8).filter(|partition| *partition != SILENT).map(record));
    };
    let (dir, sink) = (tempfile::tempdir().unwrap(), MemorySink::new());
    let windows = stream(all_of(broker, &topic))
        .await
        .with_watermark("timestamp", "10 seconds")
        .unwrap()
        .aggregate(vec![window(col("timestamp"), "1 minute").alias("window")], vec![count(lit(1)).alias("rows")])
        .unwrap()
        .select(vec![col("rows")])
        .unwrap();
    let query = start(windows, sink.clone(), dir.path()).await;
    for minute in [0, 10, 20] {
        produce(minute);
        caught_up(&query).await;
    }
    until(&query, "two windows close", || texts(&sink.batches(), "rows") == ["7", "7"]).await;
    assert_eq!(end_offset(&query)[&topic][SILENT.to_string()], json!(0));
    query.stop().await.unwrap();
}

/// A query that begins with what comes after its start reads the partitions that are added later from their beginning.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_added_partition_is_read_from_its_beginning() {
    let Some(broker) = broker() else { return };
    let topic = unique_topic("grows");
    broker.create_topic(&topic, 2);
    broker.produce(&topic, [(0, "old"), (1, "old")]);
    let (dir, sink) = (tempfile::tempdir().unwrap(), MemorySink::new());
    let source = KafkaSource::subscribe(broker.bootstrap(), [&topic]).starting_offsets(StartingOffsets::Latest);
    let query = start(stream(source).await, sink.clone(), dir.path()).await;
    broker.produce(&topic, [(0, "a"), (1, "b")]);
    caught_up(&query).await;

    broker.add_partitions(&topic, 4);
    broker.produce(&topic, [(3, "d"), (2, "c"), (3, "e"), (0, "f")]);
    let added = Instant::now();
    let all = || sorted(texts(&sink.batches(), "value")) == ["a", "b", "c", "d", "e", "f"];
    until(&query, "rows of the new partitions come", all).await;
    println!("rows of new partitions after {:?}", added.elapsed());
    assert!(added.elapsed() < Duration::from_secs(15), "{:?}", added.elapsed());
    query.stop().await.unwrap();

    // A restart takes them for what they are.
    broker.produce(&topic, [(3, "g")]);
    let source = KafkaSource::subscribe(broker.bootstrap(), [&topic]);
    run(source, sink.clone(), dir.path()).await.unwrap();
    assert_eq!(sorted(texts(&sink.batches(), "value")), ["a", "b", "c", "d", "e", "f", "g"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_topic_that_matches_the_pattern_is_read() {
    let Some(broker) = broker() else { return };
    let family = unique_topic("family");
    let member = |name: &str| format!("{family}.{name}");
    broker.create_topic(&member("one"), 2);
    broker.create_topic(&format!("not-{family}.one"), 2);
    let (dir, sink) = (tempfile::tempdir().unwrap(), MemorySink::new());
    let source = KafkaSource::subscribe_pattern(broker.bootstrap(), format!(r"{family}\..*"));
    let query = start(stream(source).await, sink.clone(), dir.path()).await;
    broker.produce(&member("one"), [(0, "a"), (1, "b")]);
    broker.produce(&format!("not-{family}.one"), [(0, "x"), (1, "y")]);
    caught_up(&query).await;

    broker.create_topic(&member("two"), 3);
    broker.produce(&member("two"), [(0, "c"), (2, "d")]);
    let added = Instant::now();
    let all = || sorted(texts(&sink.batches(), "value")) == ["a", "b", "c", "d"];
    until(&query, "rows of the new topic come", all).await;
    println!("rows of a new topic after {:?}", added.elapsed());
    assert!(added.elapsed() < Duration::from_secs(15), "{:?}", added.elapsed());
    caught_up(&query).await;
    assert_eq!(end_offset(&query)[member("two")], json!({"0": 1, "1": 0, "2": 1}));
    query.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_does_not_exist_is_named() {
    let Some(broker) = broker() else { return };
    let (there, missing) = (new_topic(broker, "there"), unique_topic("missing"));
    let dir = tempfile::tempdir().unwrap();
    let source = KafkaSource::subscribe(broker.bootstrap(), [&there, &missing]);
    let refused = run(source, DiscardSink::new(), dir.path()).await.unwrap_err();
    assert_says(&refused, ErrorKind::InvalidQuery, &[&format!("`{missing}`"), broker.bootstrap(), "create the topic"]);
    assert!(!refused.to_string().contains(&format!("`{there}`")), "{refused}");

    let source = KafkaSource::assign(broker.bootstrap(), [(there.as_str(), 1), (there.as_str(), 7)]);
    let refused = run(source, DiscardSink::new(), dir.path()).await.unwrap_err();
    assert_says(&refused, ErrorKind::InvalidQuery, &[&format!("`{there}`"), "partition 7"]);

    let rows = rows_in_memory(&["value"], &json!([["a"], ["b"], ["c"]]));
    let asked = Instant::now();
    let refused = run(rows, into(broker, &missing), dir.path()).await.unwrap_err();
    assert_says(&refused, ErrorKind::InvalidQuery, &[&format!("`{missing}`"), broker.bootstrap()]);
    assert!(asked.elapsed() < PATIENCE, "{:?}", asked.elapsed());
}

/// An address of this machine where nobody listens.
fn nobody() -> String {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    format!("127.0.0.1:{port}")
}

/// A source waits for a broker that may be starting, but not forever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_does_not_wait_for_ever_for_a_broker_that_is_not_there() {
    let (nobody, dir, asked) = (nobody(), tempfile::tempdir().unwrap(), Instant::now());
    let source = KafkaSource::subscribe(&nobody, ["orders"]).starting_offsets(StartingOffsets::Earliest);
    let failed = run(source, DiscardSink::new(), dir.path()).await.unwrap_err();
    println!("after {:?}:", asked.elapsed());
    assert_says(&failed, ErrorKind::Unavailable, &[&nobody, "no broker", "check that the broker runs"]);
    assert!(asked.elapsed() < Duration::from_secs(40), "{:?}", asked.elapsed());
}

/// A sink waits for as long as a row may take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_does_not_wait_for_ever_for_a_broker_that_is_not_there() {
    for at_least_once in [false, true] {
        let (nobody, dir, asked) = (nobody(), tempfile::tempdir().unwrap(), Instant::now());
        let sink = KafkaSink::new(&nobody).topic("orders").property("message.timeout.ms", "6000");
        let sink = if at_least_once { sink.at_least_once() } else { sink };
        let rows = rows_in_memory(&["value"], &json!([["a"], ["b"], ["c"]]));
        let failed = run(rows, sink, dir.path()).await.unwrap_err();
        println!("at least once: {at_least_once}, after {:?}:", asked.elapsed());
        assert_says(&failed, ErrorKind::Unavailable, &[&nobody, "no broker", "check that the broker runs"]);
        assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
    }
}

/// What Spark refuses is refused here, and what only the Java client knows is answered with librdkafka's name.
#[test]
fn options_that_make_no_sense_are_refused() {
    let refused = |name: &str, value: &str| {
        let mut given = options([("kafka.bootstrap.servers", "localhost:9092"), ("subscribe", "orders")]);
        given.push((name.to_owned(), value.to_owned()));
        let refused = KafkaSource::from_options(given).unwrap_err();
        println!("{refused}");
        assert!(matches!(refused.kind(), ErrorKind::InvalidQuery | ErrorKind::Unsupported), "{refused}");
        assert!(refused.hint().is_some(), "{refused}");
        refused.to_string()
    };
    for name in [
        "kafka.auto.offset.reset",
        "kafka.enable.auto.commit",
        "kafka.enable.auto.offset.store",
        "kafka.enable.partition.eof",
        "kafka.key.deserializer",
        "kafka.value.deserializer",
        "kafka.interceptor.classes",
        "endingOffsets",
        "endingTimestamp",
        "maxOffsetPerTrigger",
    ] {
        let named = name.strip_prefix("kafka.").unwrap_or(name);
        assert!(refused(name, "latest").contains(&format!("`{named}`")), "{name}");
    }
    assert!(refused("kafka.auto.offset.reset", "latest").contains("startingOffsets"));
    assert!(refused("maxOffsetPerTrigger", "5").contains("`maxOffsetsPerTrigger`"));
    let jaas = refused("kafka.sasl.jaas.config", "PlainLoginModule required username=\"u\" password=\"hunter2\";");
    assert!(jaas.contains("sasl.username") && jaas.contains("sasl.password") && !jaas.contains("hunter2"), "{jaas}");
    assert!(refused("kafka.ssl.truststore.location", "/trust.jks").contains("ssl.ca.location"));
    for second in [("subscribePattern", "or.*"), ("assign", r#"{"orders":[0]}"#)] {
        let both = refused(second.0, second.1);
        assert!(both.contains(second.0) && both.contains("subscribe"), "{both}");
    }

    let none = KafkaSource::from_options(options([("kafka.bootstrap.servers", "localhost:9092")])).unwrap_err();
    assert_says(&none, ErrorKind::InvalidQuery, &["subscribe", "subscribePattern", "assign"]);
    for blank in [options([("subscribe", "orders"), ("kafka.bootstrap.servers", " ")]), options([("subscribe", "o")])] {
        let nowhere = KafkaSource::from_options(blank).unwrap_err();
        assert_says(&nowhere, ErrorKind::InvalidQuery, &["kafka.bootstrap.servers"]);
    }
}

/// The sink keeps for itself what exactly once hangs on.
#[test]
fn options_of_a_sink_that_make_no_sense_are_refused() {
    for (name, value) in [
        ("kafka.transactional.id", "mine"),
        ("kafka.enable.idempotence", "false"),
        ("kafka.acks", "1"),
        ("kafka.key.serializer", "x"),
        ("kafka.value.serializer", "x"),
        ("topics", "orders"),
    ] {
        let given = options([("kafka.bootstrap.servers", "localhost:9092"), ("topic", "orders"), (name, value)]);
        let refused = KafkaSink::from_options(given).unwrap_err();
        let name = name.strip_prefix("kafka.").unwrap_or(name);
        assert_says(&refused, ErrorKind::InvalidQuery, &[name]);
    }
    let refused = KafkaSink::from_options(options([("topic", "orders")])).unwrap_err();
    assert_says(&refused, ErrorKind::InvalidQuery, &["kafka.bootstrap.servers"]);
}
