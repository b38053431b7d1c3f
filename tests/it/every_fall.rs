//! Die at every call that crosses a boundary, start again, compare with the batch answer.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use arrow::record_batch::RecordBatch;
use datafusion::prelude::*;
use tempfile::TempDir;
use tidewater::checkpoint::{MetadataStore, memory_store};
use tidewater::prelude::*;
use tidewater::sink::Sink;
use tidewater::source::Source;
use tidewater::testing::oracle::row_lines;
use tidewater::testing::{FaultInjector, FaultySink, FaultySource, FaultyStore, crash_at_every_call, table};
use tidewater_connectors::console::ConsoleSink;
use tidewater_connectors::file::{CleanSource, CsvOptions, FileSink, FileSource};
use tidewater_workspace::events::events;
use tidewater_workspace::files::{Format, committed_rows, put_file, put_rows};

use crate::flights::{airlines_schema, flights_schema, pipeline};
use crate::job::{
    DOUBLED, PARTITIONS, add, doubled, doubled_answer, json_events, local_checkpoint, memory_events, same, session,
    text,
};

/// Runs a job from its checkpoint to its end, every boundary watched.
async fn drive(
    source: impl Source + 'static,
    query: impl AsyncFnOnce(&SessionContext, DataFrame) -> Result<DataFrame>,
    sink: impl Sink + 'static,
    checkpoint: Arc<dyn MetadataStore>,
    falls: &FaultInjector,
) -> Result<()> {
    let ctx = session();
    let stream = ctx.read_stream(FaultySource::new(source, falls))?;
    query(&ctx, stream)
        .await?
        .write_stream(FaultySink::new(sink, falls))
        .checkpoint_store(Arc::new(FaultyStore::new(checkpoint, falls)))
        .partitions(PARTITIONS)
        .durable(false)
        .min_batches_to_retain(2)
        .trigger(Trigger::AvailableNow)
        .start()
        .await?
        .await_termination()
        .await
}

fn report(job: &str, outcome: Result<u64, String>) {
    match outcome {
        Ok(falls) => {
            println!("every fall: {job}: {falls} falls tried, no row lost or doubled");
            assert!(falls > 20, "{job} has only {falls} moments: the wrappers are not in place");
        }
        Err(e) => panic!("{job}: {e}"),
    }
}

/// A few lines of some days of real flights.
struct Flights {
    dir: TempDir,
}

const REAL_FLIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/flights");
const AIRLINES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/airlines.csv");

impl Flights {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for day in 1..=7 {
            let name = format!("2013-01-{day:02}.csv");
            let whole = std::fs::read_to_string(format!("{REAL_FLIGHTS}/{name}")).unwrap();
            let some: String = whole.split_inclusive('\n').take(12 + day).collect();
            put_file(&dir.path().join("in"), &name, some.as_bytes()).unwrap();
        }
        Flights { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn airlines(ctx: &SessionContext) -> Result<DataFrame> {
        Ok(ctx.read_csv(AIRLINES, CsvReadOptions::new().has_header(true).schema(&airlines_schema())).await?)
    }

    async fn run(&self, falls: &FaultInjector) -> Result<()> {
        let source = FileSource::new(text(&self.path("in")), CsvOptions::new().header(true))
            .with_schema(flights_schema())
            .max_files_per_trigger(3);
        let sink = FileSink::parquet(text(&self.path("out"))).partition_by(["origin"]);
        let job = async |ctx: &SessionContext, flights| pipeline(flights, Self::airlines(ctx).await?);
        drive(source, job, sink, local_checkpoint(&self.path("checkpoint")), falls).await
    }

    async fn check(&self) -> Result<(), String> {
        self.compare().await.map_err(|e| e.to_string())?
    }

    async fn compare(&self) -> Result<Result<(), String>> {
        let ctx = SessionContext::new();
        let schema = flights_schema();
        let flights =
            ctx.read_csv(text(&self.path("in")), CsvReadOptions::new().has_header(true).schema(&schema)).await?;
        let batch = pipeline(flights, Self::airlines(&ctx).await?)?;
        let columns = Arc::new(batch.schema().as_arrow().clone());
        let expected = batch.collect().await?;
        let written = committed_rows(&self.path("out"), Format::Parquet, &columns).await?;
        Ok(same(&expected, &written))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_main_job() {
    let outcome = crash_at_every_call(Flights::new, Flights::run, Flights::check).await;
    report("flights, CSV files to partitioned Parquet files with a static join", outcome);
}

/// Rows in memory, output and checkpoint in a folder of its own.
struct Events {
    dir: TempDir,
    source: MemorySource,
    rows: Vec<RecordBatch>,
    checkpoint: Arc<dyn MetadataStore>,
}

impl Events {
    /// So many batches of a few rows, one of them empty.
    fn new(batches: usize) -> Self {
        let source = memory_events();
        let rows: Vec<RecordBatch> =
            (0..batches).map(|i| events(i as u64, if i == 2 { 0 } else { 5 + i % 4 }).unwrap()).collect();
        rows.iter().for_each(|rows| add(&source, rows));
        Events { dir: tempfile::tempdir().unwrap(), source, rows, checkpoint: memory_store() }
    }

    async fn run(&self, sink: impl Sink + 'static, falls: &FaultInjector) -> Result<()> {
        let job = async |_: &SessionContext, events| doubled(events);
        drive(self.source.clone(), job, sink, Arc::clone(&self.checkpoint), falls).await
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    async fn files_hold_the_answer(&self, format: Format) -> Result<(), String> {
        let schema = table::schema(&DOUBLED).map_err(|e| e.to_string())?;
        let written = committed_rows(&self.out(), format, &schema).await.map_err(|e| e.to_string())?;
        same(&doubled_answer(&self.rows).await, &written)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parquet_files_over_a_compaction_of_their_log() {
    let outcome = crash_at_every_call(
        || Events::new(12),
        async |world: &Events, falls: &FaultInjector| world.run(FileSink::parquet(text(&world.out())), falls).await,
        async |world: &Events| world.files_hold_the_answer(Format::Parquet).await,
    )
    .await;
    report("memory to Parquet files, 12 batches", outcome);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn csv_files() {
    let outcome = crash_at_every_call(
        || Events::new(4),
        async |world: &Events, falls: &FaultInjector| world.run(FileSink::csv(text(&world.out())), falls).await,
        async |world: &Events| world.files_hold_the_answer(Format::Csv).await,
    )
    .await;
    report("memory to CSV files", outcome);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_files_partitioned() {
    let outcome = crash_at_every_call(
        || Events::new(4),
        async |world: &Events, falls: &FaultInjector| {
            world.run(FileSink::json(text(&world.out())).partition_by(["k"]), falls).await
        },
        async |world: &Events| world.files_hold_the_answer(Format::Json).await,
    )
    .await;
    report("memory to partitioned JSON files", outcome);
}

/// Input that is deleted once it was read: a fall between reading and deleting must lose nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_files_that_are_deleted() {
    fn new_world() -> Events {
        let mut world = Events::new(0);
        world.rows = (0..5).map(|i| events(100 + i, 6).unwrap()).collect();
        for (i, rows) in world.rows.iter().enumerate() {
            put_rows(&world.dir.path().join("in"), &format!("{i}.json"), Format::Json, rows).unwrap();
        }
        world
    }
    let outcome = crash_at_every_call(
        new_world,
        async |world: &Events, falls: &FaultInjector| {
            let source =
                json_events(&world.dir.path().join("in")).max_files_per_trigger(2).clean_source(CleanSource::Delete);
            let job = async |_: &SessionContext, events| doubled(events);
            drive(source, job, FileSink::parquet(text(&world.out())), Arc::clone(&world.checkpoint), falls).await
        },
        async |world: &Events| world.files_hold_the_answer(Format::Parquet).await,
    )
    .await;
    report("JSON files, deleted when read, to Parquet files", outcome);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_sink() {
    let outcome = crash_at_every_call(
        || (Events::new(5), MemorySink::new()),
        async |(world, sink): &(Events, MemorySink), falls: &FaultInjector| world.run(sink.clone(), falls).await,
        async |(world, sink): &(Events, MemorySink)| same(&doubled_answer(&world.rows).await, &sink.batches()),
    )
    .await;
    report("memory to memory", outcome);
}

/// Every call of the user's function, in order.
type Calls = Arc<Mutex<Vec<(BatchId, Vec<RecordBatch>)>>>;

fn remember(calls: &Calls) -> ForeachBatchSink {
    let calls = Arc::clone(calls);
    ForeachBatchSink::new(move |rows: DataFrame, batch| {
        let calls = Arc::clone(&calls);
        async move {
            let rows = rows.collect().await?;
            calls.lock().unwrap().push((batch, rows));
            Ok(())
        }
    })
}

/// At least once by itself; exactly once for a function that goes by the number of the batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreach_batch() {
    async fn check((world, calls): &(Events, Calls)) -> Result<(), String> {
        let answer = doubled_answer(&world.rows).await;
        let calls = calls.lock().unwrap().clone();
        let by_number: BTreeMap<BatchId, Vec<RecordBatch>> = calls.iter().cloned().collect();
        same(&answer, &by_number.into_values().flatten().collect::<Vec<_>>())?;
        for pair in calls.windows(2) {
            let ((earlier, before), (later, after)) = (&pair[0], &pair[1]);
            if earlier == later {
                same(before, after).map_err(|e| format!("batch {later} was repeated with other rows: {e}"))?;
            } else if earlier.next() != *later {
                return Err(format!("batch {later} came after batch {earlier}"));
            }
        }
        Ok(())
    }
    let outcome = crash_at_every_call(
        || (Events::new(5), Calls::default()),
        async |(world, calls): &(Events, Calls), falls: &FaultInjector| world.run(remember(calls), falls).await,
        check,
    )
    .await;
    report("memory to foreach_batch", outcome);
}

/// What was printed.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A batch may be printed twice, but none is left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console() {
    let outcome = crash_at_every_call(
        || (Events::new(4), Page::default()),
        async |(world, page): &(Events, Page), falls: &FaultInjector| {
            world.run(ConsoleSink::to(page.clone()), falls).await
        },
        async |(world, page): &(Events, Page)| {
            let printed = String::from_utf8(page.0.lock().unwrap().clone()).map_err(|e| e.to_string())?;
            for batch in 0..world.rows.len() {
                if !printed.contains(&format!("Batch: {batch}\n")) {
                    return Err(format!("batch {batch} was never printed"));
                }
            }
            Ok(())
        },
    )
    .await;
    report("memory to console", outcome);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_discard_sink() {
    let outcome = crash_at_every_call(
        || Events::new(4),
        async |world: &Events, falls: &FaultInjector| world.run(DiscardSink::new(), falls).await,
        async |world: &Events| {
            // Nothing is left to do: all that can be seen of a sink that keeps nothing.
            let commits = world.checkpoint.list("commits").await.map_err(|e| e.to_string())?;
            let last = commits.iter().filter_map(|name| name.parse::<usize>().ok()).max();
            if last == Some(world.rows.len() - 1) { Ok(()) } else { Err(format!("the last commit is {last:?}")) }
        },
    )
    .await;
    report("memory to discard", outcome);
}

/// Two falls in a row: the restart dies as well, at every one of its own moments after a fall in the middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fall_while_getting_up() {
    let quiet = FaultInjector::disarmed();
    Events::new(3).run(MemorySink::new(), &quiet).await.unwrap();
    let outcome = crash_at_every_call(
        || (Events::new(3), MemorySink::new()),
        async |(world, sink): &(Events, MemorySink), falls: &FaultInjector| {
            let first = FaultInjector::at(quiet.call_sites() / 2);
            let _ = world.run(sink.clone(), &first).await;
            world.run(sink.clone(), falls).await
        },
        async |(world, sink): &(Events, MemorySink)| same(&doubled_answer(&world.rows).await, &sink.batches()),
    )
    .await;
    report("memory to memory, two falls", outcome);
}

/// The wrappers see the rows of several partitions, or the tests above would prove less than they say.
#[tokio::test]
async fn batches_have_several_partitions() {
    let world = Events::new(2);
    assert_eq!(table::deal(&world.rows[1], PARTITIONS).unwrap().len(), PARTITIONS);
    assert!(!row_lines(&doubled_answer(&world.rows).await).unwrap().is_empty());
}
