//! Die at every call that crosses a boundary, start again, and find what a batch over all records answers: each row once.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::functions::core::expr_ext::FieldAccessor;
use datafusion::functions_aggregate::expr_fn::{count, sum};
use datafusion::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use tidewater::checkpoint::{MetadataStore, memory_store};
use tidewater::prelude::*;
use tidewater::sink::{BatchStatus, Sink};
use tidewater::testing::oracle::row_lines;
use tidewater::testing::{
    FaultInjector, FaultySink, FaultySource, FaultyStore, batch_answer, crash_at_every_call, table,
};
use tidewater_connectors::file::FileSink;
use tidewater_connectors::formats::{Format, to_json};
use tidewater_connectors::kafka::{BadRecordPolicy, KafkaSink};
use tidewater_workspace::files::{Format as FileFormat, committed_rows};
use tidewater_workspace::kafka::{Broker, NewRecord};

use super::sinks::{Killed, Moment, Undead, Watched};
use super::steps::{all_of, into};
use super::{TOPIC_PARTITIONS, broker, new_topic, rows_of, settled};
use crate::job::{PARTITIONS, finish, same, session, text};
use crate::stateful::arrivals::{after_first, time};

/// Records that are not the last one.
const ROWS: usize = 36;

/// So that they make three batches, with the last one and those that are bad.
const PER_BATCH: u64 = 15;

/// After so many comes one that is bad, but for a stretch in the middle.
const BAD_EVERY: usize = 4;

fn event_schema() -> SchemaRef {
    table::schema(&[("at", "timestamp"), ("k", "string"), ("v", "long")]).unwrap()
}

/// Time, key and value, in the order of their coming: five seconds from one to the next, some up to five seconds late, some
/// without key or value. The last one is so far ahead that it closes every window.
fn events() -> Vec<Value> {
    let row = |i: i64| {
        let key = if i % 9 == 4 { Value::Null } else { json!(format!("key {}", i % 4)) };
        let value = if i % 7 == 3 { Value::Null } else { json!(3 * i - 30) };
        json!([time(after_first(5 * i - 5 * i % 7 * 2)), key, value])
    };
    (0..ROWS as i64).map(row).chain([json!(["2030-01-01T00:00:00.000Z", "the end", 1])]).collect()
}

fn table_of(events: &[Value]) -> RecordBatch {
    table::rows(&event_schema(), &json!(events)).unwrap()
}

fn json_of(event: &Value) -> String {
    json!({ "at": event[0], "k": event[1], "v": event[2] }).to_string()
}

/// What is no event, and where it comes.
fn with_bad_ones(events: &[Value]) -> Vec<String> {
    let mut records = vec![];
    for (i, event) in events.iter().enumerate() {
        records.push(json_of(event));
        if i % BAD_EVERY == 0 && !(ROWS / 3..2 * ROWS / 3).contains(&i) {
            records.push(format!("not an event: {i}"));
        }
    }
    records
}

/// A new topic with these values, dealt over its partitions.
fn input(broker: &Broker, values: impl IntoIterator<Item = String>) -> String {
    let topic = new_topic(broker, "falls-in");
    let records = values.into_iter().zip((0..TOPIC_PARTITIONS).cycle()).map(|(value, partition)| NewRecord {
        partition: Some(partition),
        value: Some(value.into_bytes()),
        ..NewRecord::default()
    });
    broker.produce(&topic, records);
    topic
}

/// These columns as one text.
fn as_json(columns: &[&str]) -> Expr {
    to_json(named_struct(columns.iter().flat_map(|name| [lit(*name), col(*name)]).collect()))
}

type Job = fn(DataFrame) -> Result<DataFrame>;

/// Keeps nothing.
fn passed(events: DataFrame) -> Result<DataFrame> {
    let wanted = events.filter(col("v").gt(lit(0)).or(col("v").is_null()))?;
    Ok(wanted.select(vec![col("k").alias("key"), as_json(&["at", "k", "v"]).alias("value")])?)
}

/// Keeps open windows, and tells each when it is over.
fn by_window(events: DataFrame) -> Result<DataFrame> {
    let windows = events.with_watermark("at", "30 seconds")?.aggregate(
        vec![window(col("at"), "30 seconds").alias("w"), col("k")],
        vec![count(lit(1)).alias("n"), sum(col("v")).alias("total")],
    )?;
    let windows = windows.select(vec![col("w").field("start").alias("from"), col("k"), col("n"), col("total")])?;
    Ok(windows.select(vec![col("k").alias("key"), as_json(&["from", "k", "n", "total"]).alias("value")])?)
}

async fn answer(events: &[Value], job: Job) -> Vec<RecordBatch> {
    let answer = batch_answer(event_schema(), vec![table_of(events)], job).await.unwrap();
    assert!(row_lines(&answer).unwrap().len() > 10, "an answer of few rows shows little");
    answer
}

/// What one life of a query writes to, and what it keeps. What it reads is only read, and the same for all.
struct World {
    broker: &'static Broker,
    input: String,
    /// For rows, and for dead letters if it has such.
    topics: Vec<String>,
    dir: TempDir,
    checkpoint: Arc<dyn MetadataStore>,
    undead: Undead,
}

impl World {
    /// With so many topics to write to.
    fn new(broker: &'static Broker, input: &str, topics: usize) -> Self {
        World {
            broker,
            input: input.to_owned(),
            topics: (0..topics).map(|_| new_topic(broker, "falls-out")).collect(),
            dir: tempfile::tempdir().unwrap(),
            checkpoint: memory_store(),
            undead: Undead::default(),
        }
    }

    fn out(&self) -> &str {
        &self.topics[0]
    }

    fn letters(&self) -> &str {
        &self.topics[1]
    }

    fn sink(&self) -> KafkaSink {
        into(self.broker, self.out())
    }

    fn files(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// The events of the input, each partition read by a task of its own, so that there are several writers.
    async fn events(&self, bad: BadRecordPolicy, falls: &FaultInjector) -> Result<DataFrame> {
        let source = all_of(self.broker, &self.input)
            .value_format(Format::json(event_schema().fields().clone()))
            .bad_records(bad)
            .min_partitions(PARTITIONS)
            .max_offsets_per_trigger(PER_BATCH);
        let records = session().read_stream(FaultySource::new(source, falls))?;
        let columns = ["at", "k", "v"].map(|name| col("value").field(name).alias(name));
        Ok(records.select(columns.to_vec())?)
    }

    /// From the checkpoint to the end, every boundary watched.
    fn writer(&self, stream: DataFrame, sink: impl Sink + 'static, falls: &FaultInjector) -> StreamWriter {
        stream
            .write_stream(FaultySink::new(sink, falls))
            .checkpoint_store(Arc::new(FaultyStore::new(Arc::clone(&self.checkpoint), falls)))
            .partitions(PARTITIONS)
            .durable(false)
            .min_batches_to_retain(2)
            .trigger(Trigger::AvailableNow)
    }

    async fn run(&self, job: Job, sink: impl Sink + 'static, falls: &FaultInjector) -> Result<StreamingQuery> {
        let stream = job(self.events(BadRecordPolicy::Fail, falls).await?)?;
        finish(self.writer(stream, sink, falls)).await
    }

    async fn run_with_letters(&self, falls: &FaultInjector) -> Result<StreamingQuery> {
        let stream = passed(self.events(BadRecordPolicy::DeadLetter, falls).await?)?;
        let letters = FaultySink::new(into(self.broker, self.letters()), falls);
        finish(self.writer(stream, self.sink(), falls).dead_letters(letters)).await
    }

    /// Keys and values that readers of the output find.
    fn found(&self) -> RecordBatch {
        rows_of(&settled(self.broker, self.out()))
    }

    fn check(&self, expected: &[RecordBatch]) -> Result<(), String> {
        same(expected, &[self.found()])
    }
}

fn report(job: &str, began: Instant, outcome: Result<u64, String>) {
    match outcome {
        Ok(falls) => {
            let each = began.elapsed().as_millis() / u128::from(falls.max(1));
            println!("every fall: {job}: {falls} falls tried, no row lost or doubled; {each} ms each");
            assert!(falls > 50, "{job} has only {falls} moments: the wrappers are not in place");
        }
        Err(e) => panic!("{job}: {e}"),
    }
}

/// Falls at every moment of `run`, and finds in its topic what `job` answers over the first `rows` events.
async fn survives(
    name: &str,
    job: Job,
    rows: usize,
    run: impl AsyncFn(&World, &FaultInjector) -> Result<StreamingQuery>,
) {
    let Some(broker) = broker() else { return };
    let (events, began) = (events(), Instant::now());
    let (input, expected) = (input(broker, events.iter().map(json_of)), answer(&events[..rows], job).await);
    let outcome = crash_at_every_call(
        || World::new(broker, &input, 1),
        async |world: &World, falls: &FaultInjector| run(world, falls).await.map(|_| ()),
        async |world: &World| world.check(&expected),
    )
    .await;
    report(name, began, outcome);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_to_kafka_without_state() {
    survives("Kafka to Kafka", passed, ROWS + 1, async |world: &World, falls: &FaultInjector| {
        world.run(passed, world.sink(), falls).await
    })
    .await;
}

/// The last event only closes the windows of the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_to_kafka_with_windows() {
    survives("Kafka to Kafka, windows", by_window, ROWS, async |world: &World, falls: &FaultInjector| {
        world.run(by_window, world.sink(), falls).await
    })
    .await;
}

/// As `kill -9` would: nothing is aborted by who dies, so the next run must fence what hangs before it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_that_hang_are_fenced() {
    survives("Kafka to Kafka, transactions hang", passed, ROWS + 1, async |world: &World, falls: &FaultInjector| {
        world.run(passed, Killed::new(world.sink(), falls, &world.undead), falls).await
    })
    .await;
}

/// The job with windows does what it is there for: some close early, and a batch without records tells the last ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_close_before_the_end_and_after_the_last_record() {
    let Some(broker) = broker() else { return };
    let events = events();
    let world = World::new(broker, &input(broker, events.iter().map(json_of)), 1);
    let query = world.run(by_window, world.sink(), &FaultInjector::disarmed()).await.unwrap();
    let batches = query.recent_progress();
    let told: Vec<(u64, u64)> = batches.iter().map(|b| (b.num_input_rows, b.sink.num_output_rows)).collect();
    println!("rows in and out, by batch: {told:?}");
    assert_eq!(told.iter().filter(|(rows_in, _)| *rows_in > 0).count(), 3, "{told:?}");
    assert!(told.iter().any(|(rows_in, rows_out)| *rows_in > 0 && *rows_out > 0), "{told:?}");
    assert!(told.iter().any(|(rows_in, rows_out)| *rows_in == 0 && *rows_out > 0), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_to_parquet_files() {
    fn unchanged(events: DataFrame) -> Result<DataFrame> {
        Ok(events)
    }
    let Some(broker) = broker() else { return };
    let (events, began) = (events(), Instant::now());
    let (input, expected) = (input(broker, events.iter().map(json_of)), answer(&events, unchanged).await);
    let outcome = crash_at_every_call(
        || World::new(broker, &input, 0),
        async |world: &World, falls: &FaultInjector| {
            world.run(unchanged, FileSink::parquet(text(&world.files())), falls).await.map(|_| ())
        },
        async |world: &World| {
            let written = committed_rows(&world.files(), FileFormat::Parquet, &event_schema()).await;
            same(&expected, &written.map_err(|e| e.to_string())?)
        },
    )
    .await;
    report("Kafka to Parquet files", began, outcome);
}

/// Both topics get what is theirs in one commit of the checkpoint, though each has a transaction of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_to_kafka_with_dead_letters() {
    let Some(broker) = broker() else { return };
    let (events, began) = (events(), Instant::now());
    let records = with_bad_ones(&events);
    let mut bad: Vec<String> = records.iter().filter(|record| record.starts_with("not")).cloned().collect();
    bad.sort_unstable();
    let (input, expected) = (input(broker, records), answer(&events, passed).await);
    let outcome = crash_at_every_call(
        || World::new(broker, &input, 2),
        async |world: &World, falls: &FaultInjector| world.run_with_letters(falls).await.map(|_| ()),
        async |world: &World| {
            world.check(&expected)?;
            let letters = settled(broker, world.letters());
            let mut values: Vec<String> = letters.iter().map(|letter| letter.text()).collect();
            values.sort_unstable();
            if values != bad {
                return Err(format!("the dead letters are {values:?}, not {bad:?}"));
            }
            let unsigned = letters.iter().find(|letter| {
                let of = |name: &str| letter.headers.iter().any(|(key, value)| key == name && value.is_some());
                !["tidewater.error", "tidewater.topic", "tidewater.partition", "tidewater.offset"].into_iter().all(of)
            });
            unsigned.map_or(Ok(()), |letter| Err(format!("it does not say why it is a dead letter: {letter:?}")))
        },
    )
    .await;
    report("Kafka to Kafka with dead letters", began, outcome);
}

/// A query that died when Kafka had batch 1 and the checkpoint did not know, and its restart.
struct BetweenTheCommits {
    /// Keys and values that were there before the restart.
    before: RecordBatch,
    /// What the sink said at the restart when it was asked for each batch.
    begun: Vec<(BatchId, BatchStatus)>,
    query: StreamingQuery,
}

async fn die_between_the_commits(world: &World, sink: impl Fn() -> KafkaSink) -> BetweenTheCommits {
    const LAST: BatchId = BatchId(1);
    let quiet = FaultInjector::disarmed();
    let dies = Watched::new(sink(), |moment| async move {
        match moment {
            Moment::Committed(LAST) => Err(Error::new(ErrorKind::Unavailable, "the process died")),
            _ => Ok(()),
        }
    });
    let died = world.run(passed, dies, &quiet).await.unwrap_err();
    assert_eq!((died.message(), died.batch()), ("the process died", Some(LAST)), "{died}");
    assert!(world.checkpoint.read("offsets/1").await.unwrap().is_some(), "the batch was logged");
    assert!(world.checkpoint.read("commits/1").await.unwrap().is_none(), "the checkpoint knows of no commit");
    let before = world.found();

    let begun = Arc::new(Mutex::new(vec![]));
    let watches = {
        let begun = Arc::clone(&begun);
        Watched::new(sink(), move |moment| {
            if let Moment::Begun(batch, begin) = moment {
                begun.lock().unwrap().push((batch, begin));
            }
            std::future::ready(Ok(()))
        })
    };
    let query = world.run(passed, watches, &quiet).await.unwrap();
    let begun = begun.lock().unwrap().clone();
    BetweenTheCommits { before, begun, query }
}

/// The moment that everything is about: the batch is in Kafka, and the checkpoint does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fall_between_the_commits_of_kafka_and_of_the_checkpoint() {
    let Some(broker) = broker() else { return };
    let events = events();
    let expected = answer(&events, passed).await;
    let world = World::new(broker, &input(broker, events.iter().map(json_of)), 1);
    let fell = die_between_the_commits(&world, || world.sink()).await;
    assert_eq!(fell.begun, [(BatchId(1), BatchStatus::AlreadyCommitted), (BatchId(2), BatchStatus::New)]);
    assert_eq!(fell.query.guarantee(), Guarantee::ExactlyOnce);
    let group = format!("tidewater-{}-output", fell.query.id());
    let marker = broker.committed_offsets(&group, world.out());
    assert_eq!(marker[&0].offset, 3, "{marker:?}");
    let (before, after) = (fell.before.num_rows(), world.found().num_rows());
    println!(
        "died after Kafka's commit of batch 1 and before the checkpoint's, with {before} rows in Kafka; at the restart \
         the sink said {:?}; {after} rows in the end, each once; the marker: {:?}",
        fell.begun, marker[&0]
    );
    world.check(&expected).unwrap();
}

/// So the tests here can fail: without a transaction there is no marker, and the same fall doubles what it writes again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_least_once_the_same_fall_doubles_rows() {
    let Some(broker) = broker() else { return };
    let events = events();
    let expected = answer(&events, passed).await;
    let world = World::new(broker, &input(broker, events.iter().map(json_of)), 1);
    let fell = die_between_the_commits(&world, || world.sink().at_least_once()).await;
    assert_eq!(fell.begun, [(BatchId(1), BatchStatus::New), (BatchId(2), BatchStatus::New)]);
    assert_eq!(fell.query.guarantee(), Guarantee::AtLeastOnce);
    let difference = world.check(&expected).unwrap_err();
    println!("without a transaction, the same fall: {difference}");
    assert!(difference.contains("surplus") && !difference.contains("missing"), "{difference}");
    let (once, found) = (row_lines(&expected).unwrap(), row_lines(&[world.found()]).unwrap());
    let written_before = row_lines(&[fell.before]).unwrap();
    let doubled: Vec<&String> = found.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| &pair[0]).collect();
    assert_eq!(found.len(), once.len() + doubled.len(), "none is there three times: {found:?}");
    assert!(doubled.iter().all(|row| written_before.contains(row)), "only rows of the repeated batch: {doubled:?}");
}
