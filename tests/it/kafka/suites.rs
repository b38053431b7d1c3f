//! The suites that every source and sink must pass, on topics.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, StringArray};
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use serde_json::{Value, json};
use tidewater::id::PartitionId;
use tidewater::prelude::*;
use tidewater::sink::{BatchStatus, DataWriter, Receipt, Sink, SinkContext, StreamingWrite};
use tidewater::source::Source;
use tidewater::testing::{sink_suite, source_suite, table};
use tidewater_connectors::kafka::{KafkaSink, KafkaSource};
use tidewater_workspace::kafka::{Broker, NewRecord};

use super::steps::{all_of, into};
use super::{TOPIC_PARTITIONS, broker, new_topic, settles};

/// Records that come together: over all partitions, not as many in each.
const RECORDS: usize = 7;

/// A decided commit is seen sooner than this. A transaction that the suite left open is seen not at all.
const SETTLING: Duration = Duration::from_secs(2);

/// A topic that nobody has read, and a source that does.
struct Topic {
    broker: &'static Broker,
    name: String,
    source: fn(KafkaSource) -> KafkaSource,
    records: AtomicUsize,
}

impl Topic {
    fn new(broker: &'static Broker, source: fn(KafkaSource) -> KafkaSource) -> Self {
        Topic { broker, name: new_topic(broker, "suite-in"), source, records: AtomicUsize::new(0) }
    }
}

#[async_trait]
impl source_suite::SourceUnderTest for Topic {
    fn source(&self) -> Arc<dyn Source> {
        Arc::new((self.source)(all_of(self.broker, &self.name)))
    }

    async fn add_rows(&self) -> Result<()> {
        let first = self.records.fetch_add(RECORDS, Ordering::Relaxed);
        let partitions = (0..TOPIC_PARTITIONS).cycle();
        let records = (first..first + RECORDS).zip(partitions).map(|(number, partition)| NewRecord {
            partition: Some(partition),
            key: (number % 3 > 0).then(|| format!("key {}", number % 3).into_bytes()),
            value: (number % 5 > 0).then(|| format!("value {number}").into_bytes()),
            headers: vec![("number".to_owned(), Some(number.to_string().into_bytes()))],
            timestamp_ms: None,
        });
        self.broker.produce(&self.name, records);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source() {
    let Some(broker) = broker() else { return };
    source_suite::run(|| Topic::new(broker, |source| source)).await;
}

/// Partitions are cut into pieces, which several consumers read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_in_pieces_with_headers() {
    let Some(broker) = broker() else { return };
    source_suite::run(|| Topic::new(broker, |source| source.min_partitions(5).include_headers())).await;
}

/// A topic to write to.
struct Output {
    broker: &'static Broker,
    topic: String,
    /// For the marker, if it is not to be beside the rows.
    marker: Option<String>,
}

impl Output {
    fn new(broker: &'static Broker, marker_apart: bool) -> Self {
        let marker = marker_apart.then(|| new_topic(broker, "suite-marker"));
        Output { broker, topic: new_topic(broker, "suite-out"), marker }
    }
}

#[async_trait]
impl sink_suite::SinkUnderTest for Output {
    fn sink(&self) -> Arc<dyn Sink> {
        let sink = into(self.broker, &self.topic);
        Arc::new(AsJson(match &self.marker {
            Some(topic) => sink.marker_topic(topic),
            None => sink,
        }))
    }

    async fn visible_rows(&self) -> Result<Vec<RecordBatch>> {
        settles(self.broker, &self.topic, SETTLING);
        let records = self.broker.consume(&self.topic);
        let rows: Vec<Value> = records.iter().map(|record| serde_json::from_str(&record.text()).unwrap()).collect();
        Ok(vec![table::rows(&sink_suite::schema(), &json!(rows))?])
    }
}

/// The rows of the suite, each as a JSON array in the column `value`, which is what Kafka takes.
#[derive(Debug)]
struct AsJson(KafkaSink);

fn as_json(rows: &RecordBatch) -> RecordBatch {
    let (ids, names) = (rows.column(0).as_primitive::<Int64Type>(), rows.column(1).as_string::<i32>());
    let values = ids.iter().zip(names.iter()).map(|(id, name)| Some(json!([id, name]).to_string()));
    let values: ArrayRef = Arc::new(values.collect::<StringArray>());
    RecordBatch::try_from_iter([("value", values)]).unwrap()
}

#[async_trait]
impl Sink for AsJson {
    fn description(&self) -> String {
        self.0.description()
    }

    fn guarantee(&self) -> Guarantee {
        self.0.guarantee()
    }

    fn supports_output_mode(&self, mode: OutputMode) -> bool {
        self.0.supports_output_mode(mode)
    }

    async fn open(&self, context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
        let schema = as_json(&RecordBatch::new_empty(Arc::clone(&context.schema))).schema();
        let mut context = context;
        context.schema = schema;
        Ok(Box::new(AsJsonWriter(self.0.open(context).await?)))
    }
}

#[derive(Debug)]
struct AsJsonWriter(Box<dyn StreamingWrite>);

#[async_trait]
impl StreamingWrite for AsJsonWriter {
    async fn begin(&self, batch: BatchId) -> Result<BatchStatus> {
        self.0.begin(batch).await
    }

    fn partition(&self, batch: BatchId, partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        Ok(Box::new(AsJsonPartition(self.0.partition(batch, partition)?)))
    }

    async fn commit(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        self.0.commit(batch, receipts).await
    }
}

struct AsJsonPartition(Box<dyn DataWriter>);

#[async_trait]
impl DataWriter for AsJsonPartition {
    async fn write(&mut self, rows: RecordBatch) -> Result<()> {
        self.0.write(as_json(&rows)).await
    }

    async fn finish(self: Box<Self>) -> Result<Receipt> {
        let AsJsonPartition(inner) = *self;
        inner.finish().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sink() {
    let Some(broker) = broker() else { return };
    sink_suite::run(|| Output::new(broker, false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sink_with_its_marker_apart() {
    let Some(broker) = broker() else { return };
    sink_suite::run(|| Output::new(broker, true)).await;
}
