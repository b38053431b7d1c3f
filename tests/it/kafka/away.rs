//! A broker that goes away under running queries.
//!
//! `TIDEWATER_BROKER_AWAY_S=N` says for how many seconds (30).

use std::time::{Duration, Instant};

use tidewater::prelude::*;
use tidewater_connectors::kafka::KafkaSource;
use tidewater_workspace::kafka::{Broker, NewRecord, own_broker, unique_topic};

use super::settled;
use super::steps::{
    all_of, assert_once, assert_says, caught_up, end_offset, failure, into, metric, options, start, stream, until,
};
use crate::job::{PARTITIONS, text};

/// Of the topics.
const TOPIC_PARTITIONS: i64 = 4;

/// Rows before the broker goes away, and after it came back.
const ROWS: i64 = 10_000;

fn produce(broker: &Broker, topic: &str, values: std::ops::Range<i64>) {
    let record = |value: i64| NewRecord {
        partition: Some((value % TOPIC_PARTITIONS) as i32),
        key: Some(format!("key {}", value % 7).into()),
        value: Some(value.to_string().into()),
        ..NewRecord::default()
    };
    broker.produce(topic, values.map(record));
}

/// Whether the query has read so many rows; the topic it reads has no transactions, so its offsets count them.
fn has_read(query: &StreamingQuery, topic: &str, rows: i64) -> bool {
    let ends = end_offset(query);
    let ends = ends[topic].as_object().into_iter().flat_map(|partitions| partitions.values());
    ends.filter_map(serde_json::Value::as_i64).sum::<i64>() == rows
}

/// Kafka to Kafka, once as fast as it goes and once in a rhythm, in many small batches: the broker is killed in the
/// middle of them. Both wait for it, and in the end every row is there once. A query whose patience is shorter says
/// whom it waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_goes_away_is_waited_for() {
    let Some(broker) = own_broker() else { return };
    let away_s =
        std::env::var("TIDEWATER_BROKER_AWAY_S").map_or(30_u64, |s| s.parse().expect("TIDEWATER_BROKER_AWAY_S"));
    let away = Duration::from_secs(away_s);
    let topic = unique_topic("in");
    broker.create_topic(&topic, TOPIC_PARTITIONS as i32);
    produce(&broker, &topic, 0..ROWS);

    let dir = tempfile::tempdir().unwrap();
    let impatient = KafkaSource::from_options(options([
        ("kafka.bootstrap.servers", broker.bootstrap()),
        ("subscribe", &topic),
        ("startingOffsets", "earliest"),
        ("kafkaConsumer.pollTimeoutMs", "3000"),
    ]));
    let impatient = stream(impatient.unwrap()).await;
    let impatient = start(impatient, MemorySink::new(), &dir.path().join("impatient")).await;
    caught_up(&impatient).await;
    let mut patient = vec![];
    let rhythms = [(Trigger::processing_time("1 second"), 1_000), (Trigger::Immediate, 25)];
    for (trigger, rows_per_batch) in rhythms {
        let out = unique_topic("out");
        broker.create_topic(&out, TOPIC_PARTITIONS as i32);
        let source = all_of(&broker, &topic).max_offsets_per_trigger(rows_per_batch);
        let rows = stream(source).await.select_columns(&["key", "value"]).unwrap();
        let writer = rows.write_stream(into(&broker, &out)).trigger(trigger).partitions(PARTITIONS).durable(false);
        let query = writer.checkpoint(text(&dir.path().join(&out))).start().await.unwrap();
        until(&query, "some batches", || query.recent_progress().len() >= 3).await;
        patient.push((query, out));
    }
    for (query, _) in &patient {
        assert!(!has_read(query, &topic, ROWS), "the broker goes away in the middle of the work");
    }

    broker.kill();
    let gone = Instant::now();
    let said = failure(&impatient).await;
    println!("without a broker for {:?}, impatient:", gone.elapsed());
    assert_says(&said, ErrorKind::Unavailable, &[broker.bootstrap(), "no broker", "check that the broker runs"]);
    tokio::time::sleep(away.saturating_sub(gone.elapsed())).await;
    for (query, _) in &patient {
        assert!(query.is_active(), "{:?}", query.error());
    }
    broker.resume();
    let back = Instant::now();
    println!("the broker was away for {:?}", gone.elapsed());

    produce(&broker, &topic, ROWS..2 * ROWS);
    for (query, out) in patient {
        until(&query, "all rows are read", || has_read(&query, &topic, 2 * ROWS)).await;
        println!("all rows {:?} after the broker was back", back.elapsed());
        assert_eq!(metric(&query, "lostOffsets"), None);
        query.stop().await.unwrap();
        assert_once(&settled(&broker, &out), 0..2 * ROWS);
    }
}
