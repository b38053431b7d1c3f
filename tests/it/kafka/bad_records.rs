//! Records that are not in the format that was declared: JSON and Avro, and each treatment.

use arrow::datatypes::{DataType, Field};
use datafusion::prelude::*;
use tidewater::prelude::*;
use tidewater_connectors::formats::{Format, SchemaRegistry, to_avro, to_json};
use tidewater_connectors::kafka::{BadRecordPolicy, KafkaSource};
use tidewater_workspace::kafka::{Broker, NewRecord, Record};

use super::steps::{all_of, assert_says, into, metric, sorted, stream, texts, values};
use super::{broker, new_topic, settled};
use crate::job::{finish, to_the_end};

fn record(partition: i32, value: Vec<u8>) -> NewRecord {
    NewRecord {
        headers: vec![("trace".to_owned(), Some(value.len().to_string().into_bytes()))],
        ..NewRecord::from((Some(partition), Some(format!("key {partition}").into_bytes()), value))
    }
}

/// Documents that can be read, one deletion, and two that cannot: at offset 1 of the second partition, and at offset 2
/// of the third.
fn json_topic(broker: &Broker) -> String {
    let topic = new_topic(broker, "json");
    let documents = [
        (0, r#"{"n":1}"#),
        (0, r#"{"n":2,"other":[]}"#),
        (1, r#"{"n":3}"#),
        (1, "n is 4"),
        (1, r#"{"n":5}"#),
        (2, r#"{"n":6}"#),
        (2, "{}"),
        (2, r#"{"n":"seven"}"#),
    ];
    broker.produce(&topic, documents.map(|(partition, document)| record(partition, document.into())));
    broker.produce(&topic, [NewRecord { value: None, ..record(0, vec![]) }]);
    topic
}

fn json_source(broker: &Broker, topic: &str, bad: BadRecordPolicy) -> KafkaSource {
    let fields = vec![Field::new("n", DataType::Int64, true)];
    all_of(broker, topic).value_format(Format::json(fields)).bad_records(bad)
}

async fn numbers(source: KafkaSource) -> DataFrame {
    stream(source).await.select(vec![col("key"), get_field(col("value"), "n").alias("n")]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_record_fails_the_query_and_is_named() {
    let Some(broker) = broker() else { return };
    let topic = json_topic(broker);
    let (dir, sink) = (tempfile::tempdir().unwrap(), MemorySink::new());
    let failed =
        finish(to_the_end(numbers(json_source(broker, &topic, BadRecordPolicy::Fail)).await, sink.clone(), dir.path()));
    let failed = failed.await.unwrap_err();
    assert_says(&failed, ErrorKind::BadInput, &[&format!("topic `{topic}`"), "batch 0", "BadRecordPolicy::DeadLetter"]);
    let first =
        failed.message().contains("offset 1 of partition 1") && failed.message().contains("is not a JSON value");
    let second = failed.message().contains("offset 2 of partition 2") && failed.message().contains("seven");
    assert!(first || second, "{failed}");
    assert_eq!(sink.last_batch(), None);

    // The way out that it names: the batch is repeated, with another treatment.
    let source = json_source(broker, &topic, BadRecordPolicy::Null);
    finish(to_the_end(numbers(source).await, sink.clone(), dir.path())).await.unwrap();
    assert_eq!(sink.last_batch(), Some(BatchId(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_record_becomes_null_and_is_counted() {
    let Some(broker) = broker() else { return };
    let topic = json_topic(broker);
    let (dir, sink) = (tempfile::tempdir().unwrap(), MemorySink::new());
    let source = json_source(broker, &topic, BadRecordPolicy::Null);
    let query = finish(to_the_end(numbers(source).await, sink.clone(), dir.path())).await.unwrap();
    let read = sorted(texts(&sink.batches(), "n"));
    assert_eq!(read, ["1", "2", "3", "5", "6", "null", "null", "null", "null"]);
    assert_eq!(metric(&query, "malformedRecords").as_deref(), Some("2"), "a deletion and an empty object are none");
}

/// What is told of a record in its dead letter's headers.
fn told(letter: &Record, name: &str) -> String {
    let header = letter.headers.iter().find(|(found, _)| found == name).unwrap_or_else(|| panic!("{letter:?}"));
    String::from_utf8(header.1.clone().unwrap()).unwrap()
}

/// One sink for rows and one for dead letters, both in memory, then both in Kafka.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_record_goes_to_the_dead_letters() {
    let Some(broker) = broker() else { return };
    let topic = json_topic(broker);
    let source = || json_source(broker, &topic, BadRecordPolicy::DeadLetter);
    let dir = tempfile::tempdir().unwrap();
    let refused = finish(to_the_end(numbers(source()).await, MemorySink::new(), dir.path())).await.unwrap_err();
    assert_says(&refused, ErrorKind::InvalidQuery, &[&topic, "dead letters", "`.dead_letters(sink)`"]);

    let (sink, letters) = (MemorySink::new(), MemorySink::new());
    let writer = to_the_end(numbers(source()).await, sink.clone(), &dir.path().join("memory"));
    let query = finish(writer.dead_letters(letters.clone())).await.unwrap();
    assert_eq!(sorted(texts(&sink.batches(), "n")), ["1", "2", "3", "5", "6", "null", "null"]);
    let rows = letters.batches();
    assert_eq!(sorted(texts(&rows, "value")), ["n is 4", r#"{"n":"seven"}"#]);
    assert_eq!(sorted(texts(&rows, "key")), ["key 1", "key 2"]);
    assert_eq!(sorted(texts(&rows, "source_partition")), ["1", "2"]);
    assert_eq!(sorted(texts(&rows, "source_offset")), ["1", "2"]);
    assert!(texts(&rows, "source_topic").iter().all(|from| *from == topic));
    let progress = query.last_progress().unwrap();
    assert_eq!(progress.sink.metrics["deadLetterRows"], "2");
    assert_eq!(metric(&query, "malformedRecords").as_deref(), Some("2"));

    let (good, bad) = (new_topic(broker, "good"), new_topic(broker, "bad"));
    let number = named_struct(vec![lit("n"), get_field(col("value"), "n")]);
    let rows = stream(source()).await.select(vec![col("key"), to_json(number).alias("value")]).unwrap();
    let writer = to_the_end(rows, into(broker, &good), &dir.path().join("kafka"));
    let query = finish(writer.dead_letters(into(broker, &bad))).await.unwrap();
    assert_eq!(query.guarantee(), Guarantee::ExactlyOnce);
    assert_eq!(settled(broker, &good).len(), 7);
    let letters = settled(broker, &bad);
    assert_eq!(values(&letters), ["n is 4", r#"{"n":"seven"}"#]);
    for letter in &letters {
        let partition = told(letter, "tidewater.partition");
        assert_eq!(letter.key_text(), format!("key {partition}"));
        assert_eq!(told(letter, "tidewater.topic"), topic);
        assert_eq!(told(letter, "tidewater.offset"), partition, "they lie so");
        println!("dead letter: {} because {}", letter.text(), told(letter, "tidewater.error"));
        assert!(told(letter, "tidewater.error").contains("the value cannot be read"), "{letter:?}");
        let own = ("trace".to_owned(), Some(letter.text().len().to_string().into_bytes()));
        assert_eq!(letter.headers.first(), Some(&own), "its own headers come first");
    }
}

const ORDER: &str = r#"{"type":"record","name":"Order","fields":[
    {"name":"id","type":"long"},
    {"name":"item","type":"string"}
]}"#;

/// What an earlier release of the producer wrote.
const OLD_ORDER: &str = r#"{"type":"record","name":"Order","fields":[
    {"name":"item","type":"string"},
    {"name":"id","type":"int"},
    {"name":"price","type":"double"}
]}"#;

fn framed(schema: u32, body: &[u8]) -> Vec<u8> {
    [&[0][..], &schema.to_be_bytes(), body].concat()
}

/// Small numbers and short texts take one byte each, which is twice the number or length.
fn order(id: u8, item: &str) -> Vec<u8> {
    framed(7, &[&[id * 2, item.len() as u8 * 2][..], item.as_bytes()].concat())
}

fn old_order(id: u8, item: &str) -> Vec<u8> {
    let price = 1.5_f64.to_le_bytes();
    framed(8, &[&[item.len() as u8 * 2][..], item.as_bytes(), &[id * 2], &price].concat())
}

/// Records of two releases of their schema, and of none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn avro_records_and_what_is_none() {
    let Some(broker) = broker() else { return };
    let topic = new_topic(broker, "avro");
    let mut torn = order(9, "torn");
    torn.truncate(torn.len() - 2);
    broker.produce(
        &topic,
        [
            record(0, order(1, "tea")),
            record(0, framed(99, b"of an unknown schema")),
            record(1, old_order(2, "milk")),
            record(1, b"{\"id\":3}".to_vec()),
            record(1, order(4, "")),
            record(2, torn),
            record(2, order(5, "jam")),
        ],
    );
    let registry = SchemaRegistry::of([(7, ORDER), (8, OLD_ORDER)]);
    let source = |bad| {
        let format = Format::avro(ORDER, registry.clone()).unwrap();
        all_of(broker, &topic).value_format(format).bad_records(bad)
    };
    let dir = tempfile::tempdir().unwrap();
    let fields = || ["id", "item"].map(|name| get_field(col("value"), name).alias(name)).to_vec();
    let orders = stream(source(BadRecordPolicy::Fail)).await.select(fields()).unwrap();
    let failed = finish(to_the_end(orders, DiscardSink::new(), &dir.path().join("fail"))).await.unwrap_err();
    assert_says(&failed, ErrorKind::BadInput, &[&format!("topic `{topic}`"), "partition", "offset"]);

    let sink = MemorySink::new();
    let orders = stream(source(BadRecordPolicy::Null)).await.select(fields()).unwrap();
    let query = finish(to_the_end(orders, sink.clone(), &dir.path().join("null"))).await.unwrap();
    assert_eq!(sorted(texts(&sink.batches(), "id")), ["1", "2", "4", "5", "null", "null", "null"]);
    assert_eq!(sorted(texts(&sink.batches(), "item")), ["", "jam", "milk", "null", "null", "null", "tea"]);
    assert_eq!(metric(&query, "malformedRecords").as_deref(), Some("3"));

    // What can be read is written again, all with the newer schema.
    let (good, bad) = (new_topic(broker, "avro-good"), new_topic(broker, "avro-bad"));
    let order_again = to_avro(col("value"), 7, ORDER).alias("value");
    let orders = stream(source(BadRecordPolicy::DeadLetter)).await.select(vec![col("key"), order_again]).unwrap();
    let writer = to_the_end(orders, into(broker, &good), &dir.path().join("letters"));
    finish(writer.dead_letters(into(broker, &bad))).await.unwrap();
    let mut again: Vec<Vec<u8>> = settled(broker, &good).into_iter().filter_map(|record| record.value).collect();
    again.sort();
    assert_eq!(again, [order(1, "tea"), order(2, "milk"), order(4, ""), order(5, "jam")]);
    let mut letters: Vec<String> = vec![];
    for letter in settled(broker, &bad) {
        println!("dead letter because {}", told(&letter, "tidewater.error"));
        letters.push(format!("{} {}", told(&letter, "tidewater.partition"), told(&letter, "tidewater.offset")));
    }
    assert_eq!(sorted(letters), ["0 1", "1 1", "2 0"]);
}
