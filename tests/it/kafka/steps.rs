//! What the tests with a broker do again and again: start a query, wait for what it should do soon, look at what it
//! did.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use datafusion::prelude::*;
use serde_json::Value;
use tidewater::id::PartitionId;
use tidewater::identity::Identity;
use tidewater::prelude::*;
use tidewater::sink::{BatchStatus, DataWriter, Guarantee, Receipt, Sink, SinkContext, StreamingWrite};
use tidewater::source::Source;
use tidewater::testing::table;
use tidewater_connectors::kafka::{KafkaSink, KafkaSource, StartingOffsets};
use tidewater_workspace::kafka::{Broker, Record};

use crate::job::{PARTITIONS, finish, session, text, to_the_end};

/// How long the machine may take for what should happen soon.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

/// All of a topic.
pub(crate) fn all_of(broker: &Broker, topic: &str) -> KafkaSource {
    KafkaSource::subscribe(broker.bootstrap(), [topic]).starting_offsets(StartingOffsets::Earliest)
}

/// Into a topic.
pub(crate) fn into(broker: &Broker, topic: &str) -> KafkaSink {
    KafkaSink::new(broker.bootstrap()).topic(topic)
}

/// Options as a user of names gives them.
pub(crate) fn options<const N: usize>(given: [(&str, &str); N]) -> Vec<(String, String)> {
    given.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// Rows of these text columns, dealt over the partitions of a query.
pub(crate) fn rows_in_memory(columns: &[&str], rows: &Value) -> MemorySource {
    let columns: Vec<(&str, &str)> = columns.iter().map(|name| (*name, "string")).collect();
    let rows = table::rows(&table::schema(&columns).unwrap(), rows).unwrap();
    let source = MemorySource::new(rows.schema()).partitions(PARTITIONS);
    source.add(table::deal(&rows, PARTITIONS).unwrap()).unwrap();
    source
}

/// A source as a stream in a session of its own.
pub(crate) async fn stream(source: impl Source + 'static) -> DataFrame {
    session().read_stream(source).unwrap()
}

/// Starts a query of several partitions that runs until it is stopped.
pub(crate) async fn start(stream: DataFrame, sink: impl Sink + 'static, checkpoint: &Path) -> StreamingQuery {
    let writer = stream.write_stream(sink).checkpoint(text(checkpoint)).durable(false).partitions(PARTITIONS);
    writer.start().await.unwrap()
}

/// Runs a query over all that is there.
pub(crate) async fn run(
    source: impl Source + 'static,
    sink: impl Sink + 'static,
    checkpoint: &Path,
) -> Result<StreamingQuery> {
    finish(to_the_end(session().read_stream(source)?, sink, checkpoint)).await
}

/// A sink that takes no batch. A checkpoint takes it for one in memory.
#[derive(Debug)]
struct Failing;

#[async_trait::async_trait]
impl Sink for Failing {
    fn description(&self) -> String {
        "failing".to_owned()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn supports_output_mode(&self, _mode: OutputMode) -> bool {
        true
    }

    fn identity(&self) -> Option<Identity> {
        MemorySink::new().identity()
    }

    async fn open(&self, _context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
        Ok(Box::new(Failing))
    }
}

#[async_trait::async_trait]
impl StreamingWrite for Failing {
    async fn begin(&self, _batch: BatchId) -> Result<BatchStatus> {
        Err(Error::new(ErrorKind::UserCode, "not now"))
    }

    fn partition(&self, _batch: BatchId, _partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        Err(Error::new(ErrorKind::UserCode, "not now"))
    }

    async fn commit(&self, _batch: BatchId, _receipts: Vec<Receipt>) -> Result<()> {
        Err(Error::new(ErrorKind::UserCode, "not now"))
    }
}

/// Runs a query whose sink fails: its batch is in the log of the checkpoint, and in no sink.
pub(crate) async fn log_a_batch(source: impl Source + 'static, checkpoint: &Path) {
    let failed = run(source, Failing, checkpoint).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::UserCode, "{failed}");
}

/// The values of what a source gives from beginning to end, sorted.
pub(crate) async fn read_all(source: impl Source + 'static) -> Vec<String> {
    let (dir, sink) = (tempfile::tempdir().unwrap(), MemorySink::new());
    run(source, sink.clone(), dir.path()).await.unwrap();
    sorted(texts(&sink.batches(), "value"))
}

/// Waits until a running query has done something.
pub(crate) async fn until(query: &StreamingQuery, what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(query.is_active(), "{what}: the query ended: {:?}", query.error());
        let last = || query.last_progress().map(|progress| progress.json());
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}, {:?}, {:?}", query.status(), last());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a running query has read all that was there when this was called.
pub(crate) async fn caught_up(query: &StreamingQuery) {
    let caught_up = tokio::time::timeout(PATIENCE, query.process_all_available()).await;
    caught_up.expect("the query comes to an end of what there is").unwrap();
}

/// The error with which a running query ends.
pub(crate) async fn failure(query: &StreamingQuery) -> Error {
    match query.await_termination_for(PATIENCE).await {
        Err(error) => error,
        Ok(true) => panic!("the query ended well"),
        Ok(false) => panic!("the query goes on: {:?}", query.status()),
    }
}

/// A column as text, row by row; `null` where there is nothing.
pub(crate) fn texts(rows: &[RecordBatch], column: &str) -> Vec<String> {
    let mut found = vec![];
    for rows in rows {
        let column = rows.column_by_name(column).unwrap_or_else(|| panic!("no `{column}` in {:?}", rows.schema()));
        let column = cast(column, &DataType::Utf8).unwrap();
        found.extend(column.as_string::<i32>().iter().map(|value| value.unwrap_or("null").to_owned()));
    }
    found
}

pub(crate) fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort_unstable();
    texts
}

/// The values of records, sorted.
pub(crate) fn values(records: &[Record]) -> Vec<String> {
    sorted(records.iter().map(Record::text).collect())
}

/// The values are these numbers, each once.
#[track_caller]
pub(crate) fn assert_once(records: &[Record], numbers: Range<i64>) {
    let mut counts: BTreeMap<String, usize> = numbers.map(|number| (number.to_string(), 0)).collect();
    records.iter().for_each(|record| *counts.entry(record.text()).or_default() += 1);
    let wrong: Vec<(&String, &usize)> = counts.iter().filter(|(_, count)| **count != 1).collect();
    let some = &wrong[..wrong.len().min(20)];
    assert!(wrong.is_empty(), "of {} values {} are not there once, such as {some:?}", counts.len(), wrong.len());
}

/// Texts of numbers.
pub(crate) fn numbers(numbers: impl IntoIterator<Item = i64>) -> Vec<String> {
    sorted(numbers.into_iter().map(|number| number.to_string()).collect())
}

/// Where the last batch of a query ended, by topic and partition.
pub(crate) fn end_offset(query: &StreamingQuery) -> Value {
    query.last_progress().map_or(Value::Null, |progress| progress.sources[0].end_offset.clone())
}

/// A figure of the query's only source, in its last batch.
pub(crate) fn metric(query: &StreamingQuery, name: &str) -> Option<String> {
    query.last_progress()?.sources.first()?.metrics.get(name).cloned()
}

/// Whether an error says all this, to a person who sees only its text.
#[track_caller]
pub(crate) fn assert_says(error: &Error, kind: ErrorKind, wanted: &[&str]) {
    println!("{error}");
    assert_eq!(error.kind(), kind, "{error}");
    let text = error.to_string();
    for wanted in wanted {
        assert!(text.contains(wanted), "no `{wanted}`: {text}");
    }
}
