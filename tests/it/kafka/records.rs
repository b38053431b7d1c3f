//! What becomes of a record on its way in and out: its parts, its topic, its partition, its order; and which records
//! are read at all.

use std::time::{Duration, Instant};

use arrow::datatypes::DataType;
use datafusion::prelude::*;
use serde_json::{Value, json};
use tidewater::prelude::*;
use tidewater_connectors::kafka::{KafkaSink, KafkaSource, StartingOffsets};
use tidewater_workspace::kafka::{NewRecord, Record, unique_topic};

use super::steps::{
    PATIENCE, all_of, assert_once, assert_says, caught_up, into, read_all, rows_in_memory, run, sorted, start, stream,
    texts, until, values,
};
use super::{broker, new_topic, settled, settles};
use crate::job::{finish, to_the_end};

fn bytes(text: &str) -> Option<Vec<u8>> {
    Some(text.as_bytes().to_vec())
}

/// The parts of a record that a copy has, too.
fn parts(record: &Record) -> NewRecord {
    NewRecord {
        partition: Some(record.partition),
        key: record.key.clone(),
        value: record.value.clone(),
        headers: record.headers.clone(),
        timestamp_ms: None,
    }
}

/// Null and empty are two things, for keys, values and headers; headers keep their order and may repeat their names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_part_of_a_record_goes_through() {
    let Some(broker) = broker() else { return };
    let (from, to) = (new_topic(broker, "parts"), new_topic(broker, "parts-copied"));
    let header = |name: &str, value: Option<Vec<u8>>| (name.to_owned(), value);
    let record = |partition, key, value, headers| NewRecord {
        partition: Some(partition),
        key,
        value,
        headers,
        timestamp_ms: None,
    };
    let written = vec![
        record(0, bytes("key"), bytes("value"), vec![header("a", bytes("1"))]),
        record(0, None, bytes("without a key"), vec![]),
        record(1, bytes("deleted"), None, vec![header("b", None), header("c", bytes("")), header("b", bytes("2"))]),
        record(1, None, None, vec![]),
        record(1, bytes(""), bytes(""), vec![header("ä", Some(vec![0xFF, 0x00]))]),
        record(2, Some(vec![0, 159, 146, 150]), Some(vec![0xFF; 3]), vec![]),
    ];
    broker.produce(&from, written.clone());

    let dir = tempfile::tempdir().unwrap();
    let source = || all_of(broker, &from).include_headers();
    let copied = stream(source()).await.select_columns(&["key", "value", "headers", "partition"]).unwrap();
    finish(to_the_end(copied, into(broker, &to), dir.path())).await.unwrap();
    let read: Vec<NewRecord> = settled(broker, &to).iter().map(parts).collect();
    assert_eq!(read, written);

    // What the source says of where they were.
    let sink = MemorySink::new();
    run(source(), sink.clone(), &dir.path().join("seen")).await.unwrap();
    let rows = sink.batches();
    let column = |name: &str| texts(&rows, name);
    let places: Vec<(String, String)> = column("partition").into_iter().zip(column("offset")).collect();
    let mut places: Vec<(&str, &str)> = places.iter().map(|(p, o)| (p.as_str(), o.as_str())).collect();
    places.sort_unstable();
    assert_eq!(places, [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1"), ("1", "2"), ("2", "0")]);
    assert!(column("topic").iter().all(|topic| *topic == from));
    assert!(column("timestampType").iter().all(|kind| kind == "0"), "the producer's times");
    assert!(column("timestamp").iter().all(|time| time.starts_with("20")), "{:?}", column("timestamp"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_go_to_the_topic_they_name() {
    let Some(broker) = broker() else { return };
    let [one, two, three] = &["one", "two", "three"].map(|name| new_topic(broker, name));
    let dir = tempfile::tempdir().unwrap();
    let rows = || {
        let rows = json!([[one, "a", "1"], [two, "b", "2"], [one, "c", "3"], [two, "d", null]]);
        rows_in_memory(&["topic", "key", "value"], &rows)
    };
    let sink = || KafkaSink::new(broker.bootstrap()).marker_topic(three);
    run(rows(), sink(), &dir.path().join("routed")).await.unwrap();
    assert_eq!(values(&settled(broker, one)), ["1", "3"]);
    let keys = sorted(settled(broker, two).iter().map(Record::key_text).collect());
    assert_eq!(keys, ["b", "d"]);
    assert!(settled(broker, three).is_empty());

    // The topic of the sink goes before that of the row.
    run(rows(), sink().topic(three), &dir.path().join("one place")).await.unwrap();
    assert_eq!(settled(broker, three).len(), 4);
    assert_eq!(values(&settled(broker, one)), ["1", "3"]);

    // A row that names none fails the batch, and nothing of the batch can be read.
    let nowhere = rows_in_memory(&["topic", "value"], &json!([[one, "5"], [null, "6"], [two, "7"]]));
    let refused = run(nowhere, sink(), &dir.path().join("nowhere")).await.unwrap_err();
    assert_says(&refused, ErrorKind::BadInput, &["names no topic", "`topic`", "batch 0"]);
    assert_eq!(values(&settled(broker, one)), ["1", "3"]);

    // Nor is there a topic without a name for all.
    let unnamed = rows_in_memory(&["value"], &json!([["5"]]));
    let refused = run(unnamed, sink(), &dir.path().join("unnamed")).await.unwrap_err();
    assert_says(&refused, ErrorKind::InvalidQuery, &["no topic", "`topic`"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_may_say_which_partition() {
    let Some(broker) = broker() else { return };
    let topic = unique_topic("placed");
    broker.create_topic(&topic, 4);
    let dir = tempfile::tempdir().unwrap();
    let placed = async |rows: Value, name: &str| {
        let rows = stream(rows_in_memory(&["key", "value", "place"], &rows)).await;
        let place = cast(col("place"), DataType::Int32).alias("partition");
        let rows = rows.select(vec![col("key"), col("value"), place]).unwrap();
        finish(to_the_end(rows, into(broker, &topic), &dir.path().join(name))).await
    };
    placed(json!([["k", "a", "3"], ["k", "b", "1"], ["k", "c", "3"], [null, "d", "0"]]), "some").await.unwrap();
    let place = |record: &Record| format!("{} {}", record.partition, record.text());
    let found = sorted(settled(broker, &topic).iter().map(place).collect());
    assert_eq!(found, ["0 d", "1 b", "3 a", "3 c"]);

    for (wrong, name) in [("4", "too many"), ("-1", "too few")] {
        let refused = placed(json!([["k", "e", "0"], ["k", "f", wrong]]), name).await.unwrap_err();
        assert_says(&refused, ErrorKind::BadInput, &[&format!("partition {wrong}"), &format!("`{topic}`")]);
    }
    assert_eq!(settled(broker, &topic).len(), 4);
}

/// Keys whose hash Kafka's own tests know (`murmur2` in `UtilsTest`), and what it is.
const HASHES: [(&str, i32); 6] = [
    ("21", -973_932_308),
    ("foobar", -790_332_482),
    ("a-little-bit-long-string", -985_981_536),
    ("a-little-bit-longer-string", -1_486_304_829),
    ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
    ("abc", 479_470_107),
];

/// Else a topic that both write would have a key in two partitions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_go_where_a_java_producer_puts_them() {
    const PARTITIONS: i32 = 7;
    let Some(broker) = broker() else { return };
    for at_least_once in [false, true] {
        let topic = unique_topic("keys");
        broker.create_topic(&topic, PARTITIONS);
        let rows: Vec<_> = HASHES.iter().map(|(key, _)| json!([key, key])).collect();
        let sink = into(broker, &topic);
        let sink = if at_least_once { sink.at_least_once() } else { sink };
        let dir = tempfile::tempdir().unwrap();
        run(rows_in_memory(&["key", "value"], &json!(rows)), sink, dir.path()).await.unwrap();
        let records = settled(broker, &topic);
        assert_eq!(records.len(), HASHES.len());
        for record in records {
            let (_, hash) = HASHES.iter().find(|(key, _)| *key == record.key_text()).unwrap();
            assert_eq!(record.partition, (hash & 0x7FFF_FFFF) % PARTITIONS, "{}", record.key_text());
        }
    }
}

/// Transactions between each other, committed, aborted and open; a partition ends with the end of one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_committed_records_are_read() {
    let Some(broker) = broker() else { return };
    let topic = new_topic(broker, "transactions");
    let (dir, sink) = (tempfile::tempdir().unwrap(), MemorySink::new());
    let query = start(stream(all_of(broker, &topic)).await, sink.clone(), dir.path()).await;
    let read = || sorted(texts(&sink.batches(), "value"));

    broker.produce(&topic, [(0, "a"), (1, "b")]);
    let kept = broker.begin_transaction(&topic, [(0, "c"), (1, "d"), (2, "e")]);
    let dropped = broker.begin_transaction(&topic, [(0, "never"), (2, "never")]);
    broker.produce(&topic, [(0, "f"), (1, "g")]);
    let late = broker.begin_transaction(&topic, [(1, "h")]);
    caught_up(&query).await;
    assert_eq!(read(), ["a", "b"], "what is open holds up what comes after it");

    dropped.abort();
    kept.commit();
    until(&query, "all but the last one", || read() == ["a", "b", "c", "d", "e", "f", "g"]).await;
    late.commit();
    until(&query, "the last one", || read() == ["a", "b", "c", "d", "e", "f", "g", "h"]).await;
    broker.produce_in_transaction(&topic, [(0, "never"), (1, "never"), (2, "never")], false);
    assert!(settles(broker, &topic, PATIENCE));
    caught_up(&query).await;
    assert_eq!(read().len(), 8);
    query.stop().await.unwrap();
    assert_eq!(read_all(all_of(broker, &topic)).await, read());

    // As in Spark, whoever wants them all may have them all.
    let all = read_all(all_of(broker, &topic).property("isolation.level", "read_uncommitted")).await;
    assert_eq!(all.iter().filter(|value| *value == "never").count(), 5);
    assert_eq!(all.len(), 8 + 5);
}

/// The end of a transaction is a record that is never handed out: a batch that ends with one must not wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_does_not_wait_for_the_record_that_ends_a_transaction() {
    let Some(broker) = broker() else { return };
    let topic = new_topic(broker, "ends");
    let (dir, sink) = (tempfile::tempdir().unwrap(), MemorySink::new());
    let query = start(stream(all_of(broker, &topic)).await, sink.clone(), dir.path()).await;
    for round in 0..20 {
        // Every third one is aborted: batches of nothing but its end, and of records that nobody may see.
        broker.produce_in_transaction(&topic, [(0, "x"), (1, "y"), (2, "z")], round % 3 != 2);
        assert!(settles(broker, &topic, PATIENCE));
        caught_up(&query).await;
    }
    query.stop().await.unwrap();
    assert_eq!(texts(&sink.batches(), "value").len(), 14 * 3);
    let mut ms: Vec<i64> = query.recent_progress().iter().map(|batch| batch.batch_duration).collect();
    ms.sort_unstable();
    let (least, median, most) = (ms[0], ms[ms.len() / 2], ms[ms.len() - 1]);
    println!(
        "{} batches that end with the end of a transaction: {least} to {most} ms, {median} at the median",
        ms.len()
    );
    assert!(median < 250, "{ms:?}");
}

/// A compacted topic has gaps, also where a batch ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gaps_of_a_compacted_topic_are_passed_over() {
    let Some(broker) = broker() else { return };
    let topic = unique_topic("compacted");
    let soon = [("cleanup.policy", "compact"), ("segment.ms", "50"), ("min.cleanable.dirty.ratio", "0.01")];
    broker.create_topic_with(&topic, 2, &soon);
    let record = |value: i32| NewRecord {
        partition: Some(value % 2),
        key: bytes(&format!("key {}", if value % 10 < 8 { 0 } else { value })),
        value: bytes(&value.to_string()),
        ..NewRecord::default()
    };
    broker.produce(&topic, (0..200).map(record));
    let asked = Instant::now();
    let mut next = 200;
    // Only segments that are closed are compacted, and it takes a record to close one.
    while broker.consume(&topic).len() > 100 {
        assert!(asked.elapsed() < PATIENCE, "the broker does not compact");
        tokio::time::sleep(Duration::from_millis(500)).await;
        broker.produce(&topic, (next..next + 2).map(record));
        next += 2;
    }
    println!("compacted after {:?}", asked.elapsed());
    broker.produce_in_transaction(&topic, (next..next + 2).map(record), true);
    assert!(settles(broker, &topic, PATIENCE));

    // Seven a batch: many end where nothing is left. The broker may go on compacting meanwhile.
    let before = values(&broker.consume(&topic));
    let read = read_all(all_of(broker, &topic).max_offsets_per_trigger(7)).await;
    let after = values(&broker.consume(&topic));
    assert!(before.len() < 150 && after.contains(&next.to_string()), "{before:?}");
    assert!(read.iter().all(|value| before.contains(value)), "more than there was: {read:?}, {before:?}");
    assert!(after.iter().all(|value| read.contains(value)), "less than there is: {read:?}, {after:?}");
    assert!(read.windows(2).all(|pair| pair[0] != pair[1]), "twice: {read:?}");
}

/// One partition that is read in several pieces at a time leaves the query in its order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_is_cut_keeps_its_order() {
    const RECORDS: i64 = 200_000;
    let Some(broker) = broker() else { return };
    let (from, to) = (unique_topic("long"), unique_topic("long-copied"));
    [&from, &to].into_iter().for_each(|topic| broker.create_topic(topic, 4));
    let record = |value: i64| NewRecord::from((Some(2), bytes("one key"), value.to_string().into_bytes()));
    broker.produce(&from, (0..RECORDS).map(record));
    let dir = tempfile::tempdir().unwrap();
    let source = KafkaSource::assign(broker.bootstrap(), (0..4).map(|partition| (from.as_str(), partition)));
    let rows = stream(source.starting_offsets(StartingOffsets::Earliest)).await;
    let rows = rows.select_columns(&["key", "value"]).unwrap();
    let query = finish(to_the_end(rows, into(broker, &to), dir.path()).partitions(4)).await.unwrap();
    let plan = query.explain();
    assert!(plan.contains("partition_sizes=4"), "{plan}");
    assert_eq!(query.recent_progress().len(), 1);

    let records = settled(broker, &to);
    assert_once(&records, 0..RECORDS);
    let in_order = records.iter().enumerate().all(|(place, record)| record.text() == place.to_string());
    assert!(in_order, "the order is lost");
    assert!(records.iter().all(|record| record.partition == records[0].partition));
}
