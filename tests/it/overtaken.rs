//! Paused at every call that crosses a boundary while another run takes over, then going on, then a third run: for files,
//! without state, and for every stateful operator.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::prelude::*;
use tempfile::TempDir;
use tidewater::checkpoint::{CreateOutcome, MetadataStore, memory_store};
use tidewater::prelude::*;
use tidewater::sink::Sink;
use tidewater::source::Source;
use tidewater::testing::{
    FaultInjector, FaultySink, FaultySource, FaultyStore, Overtaken, assert_same_rows, overtaken_at_every_moment, table,
};
use tidewater_connectors::file::{CleanSource, FileSink};
use tidewater_workspace::events::events;
use tidewater_workspace::files::{Format, committed_rows, put_rows};

use crate::job::{
    DOUBLED, add, doubled, doubled_answer, finish, json_events, local_checkpoint, memory_events, same, session, text,
};
use crate::stateful::{Job, World, jobs, settled};

const PARTITIONS: usize = 2;

fn report(job: &str, outcome: Result<Overtaken, String>) {
    match outcome {
        Ok(came) => {
            println!("overtaken at every moment: {job}: {came}; no row lost or doubled, none forgotten");
            assert!(came.paused > 20, "{job} has only {} moments: the wrappers are not in place", came.paused);
            assert!(came.fenced > came.paused / 2, "{job}: most moments are in the middle of the run: {came}");
        }
        Err(e) => panic!("{job}: {e}"),
    }
}

/// A folder of JSON files, one a batch, of which some come later.
struct Files {
    dir: TempDir,
    rows: Vec<RecordBatch>,
}

/// So many are there from the beginning.
const EARLY: usize = 4;
const ALL: usize = 6;

impl Files {
    fn new() -> Self {
        let rows = (0..ALL as u64).map(|i| events(100 + i, 6).unwrap()).collect();
        let files = Files { dir: tempfile::tempdir().unwrap(), rows };
        files.put(0..EARLY);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, which: std::ops::Range<usize>) {
        for i in which {
            put_rows(&self.path("in"), &format!("{i}.json"), Format::Json, &self.rows[i]).unwrap();
        }
    }

    async fn run(&self, clean: CleanSource, falls: &FaultInjector) -> Result<()> {
        let source = json_events(&self.path("in")).max_files_per_trigger(1).clean_source(clean);
        let sink = FileSink::parquet(text(&self.path("out")));
        drive(source, sink, local_checkpoint(&self.path("checkpoint")), falls).await
    }

    async fn check(&self) -> Result<(), String> {
        let schema = table::schema(&DOUBLED).map_err(|e| e.to_string())?;
        let written = committed_rows(&self.path("out"), Format::Parquet, &schema).await.map_err(|e| e.to_string())?;
        same(&doubled_answer(&self.rows).await, &written)
    }
}

async fn drive(
    source: impl Source + 'static,
    sink: impl Sink + 'static,
    checkpoint: Arc<dyn MetadataStore>,
    falls: &FaultInjector,
) -> Result<()> {
    let stream = session().read_stream(FaultySource::new(source, falls))?;
    let writer = doubled(stream)?
        .write_stream(FaultySink::new(sink, falls))
        .checkpoint_store(Arc::new(FaultyStore::new(checkpoint, falls)))
        .partitions(PARTITIONS)
        .durable(false)
        .min_batches_to_retain(1)
        .trigger(Trigger::AvailableNow);
    finish(writer).await.map(|_| ())
}

async fn files(name: &str, clean: fn(&Files) -> CleanSource) {
    let outcome = overtaken_at_every_moment(
        Files::new,
        async |files: &Files, falls: &FaultInjector| files.run(clean(files), falls).await,
        async |files: &Files| files.put(EARLY..ALL),
        Files::check,
    )
    .await;
    report(name, outcome);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_to_files() {
    files("JSON files to Parquet files", |_| CleanSource::Off).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_deleted_when_read() {
    files("JSON files, deleted when read", |_| CleanSource::Delete).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_archived_when_read() {
    files("JSON files, archived when read", |files| CleanSource::Archive(text(&files.path("archive")))).await;
}

/// Rows in memory, some of which come later.
struct Events {
    source: MemorySource,
    rows: Vec<RecordBatch>,
    sink: MemorySink,
    dir: TempDir,
    checkpoint: Arc<dyn MetadataStore>,
}

impl Events {
    fn new(early: usize, late: usize) -> Self {
        let source = memory_events().partitions(1);
        let rows: Vec<RecordBatch> =
            (0..early + late).map(|i| events(i as u64, if i == 2 { 0 } else { 5 + i % 4 }).unwrap()).collect();
        rows[..early].iter().for_each(|rows| add(&source, rows));
        let (sink, dir) = (MemorySink::new(), tempfile::tempdir().unwrap());
        Events { source, rows, sink, dir, checkpoint: memory_store() }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }
}

/// The manifest is compacted, and its old entries go, while the first run sleeps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parquet_files_over_a_compaction_of_their_log() {
    let outcome = overtaken_at_every_moment(
        || Events::new(10, 2),
        async |world: &Events, falls: &FaultInjector| {
            let sink = FileSink::parquet(text(&world.out()));
            drive(world.source.clone(), sink, Arc::clone(&world.checkpoint), falls).await
        },
        async |world: &Events| world.rows[10..].iter().for_each(|rows| add(&world.source, rows)),
        async |world: &Events| {
            let schema = table::schema(&DOUBLED).map_err(|e| e.to_string())?;
            let written = committed_rows(&world.out(), Format::Parquet, &schema).await.map_err(|e| e.to_string())?;
            same(&doubled_answer(&world.rows).await, &written)
        },
    )
    .await;
    report("memory to Parquet files, 12 batches", outcome);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_sink() {
    let outcome = overtaken_at_every_moment(
        || Events::new(4, 2),
        async |world: &Events, falls: &FaultInjector| {
            drive(world.source.clone(), world.sink.clone(), Arc::clone(&world.checkpoint), falls).await
        },
        async |world: &Events| world.rows[4..].iter().for_each(|rows| add(&world.source, rows)),
        async |world: &Events| same(&doubled_answer(&world.rows).await, &world.sink.batches()),
    )
    .await;
    report("memory to memory", outcome);
}

/// Every call of the user's function, by batch.
type Calls = Arc<std::sync::Mutex<BTreeMap<BatchId, Vec<Vec<RecordBatch>>>>>;

/// At least once: a batch comes again, with the same rows, but no more than the runs that were at it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreach_batch() {
    let outcome = overtaken_at_every_moment(
        || (Events::new(4, 1), Calls::default()),
        async |(world, calls): &(Events, Calls), falls: &FaultInjector| {
            let calls = Arc::clone(calls);
            let sink = ForeachBatchSink::new(move |rows: DataFrame, batch| {
                let calls = Arc::clone(&calls);
                async move {
                    let rows = rows.collect().await?;
                    calls.lock().unwrap().entry(batch).or_default().push(rows);
                    Ok(())
                }
            });
            drive(world.source.clone(), sink, Arc::clone(&world.checkpoint), falls).await
        },
        async |(world, _): &(Events, Calls)| world.rows[4..].iter().for_each(|rows| add(&world.source, rows)),
        async |(world, calls): &(Events, Calls)| {
            let calls = calls.lock().unwrap().clone();
            let mut once = vec![];
            let mut again = 0;
            for (batch, calls) in calls {
                again += calls.len() - 1;
                for call in &calls[1..] {
                    same(&calls[0], call).map_err(|e| format!("batch {batch} was repeated with other rows: {e}"))?;
                }
                once.extend(calls.into_iter().next().unwrap_or_default());
            }
            if again > 1 {
                return Err(format!("{again} calls were repetitions, and one run was paused"));
            }
            same(&doubled_answer(&world.rows).await, &once)
        },
    )
    .await;
    report("memory to foreach_batch", outcome);
}

/// A world whose sources give one partition each.
fn world(job: &Arc<Job>) -> World {
    let mut world = World::new(job);
    world.sources = world.sources.into_iter().map(|source| source.partitions(1)).collect();
    world
}

/// The last add closes all windows; so it comes last.
async fn stateful(job: Job) {
    let job = Arc::new(job);
    let early = job.adds() - 2;
    let mut expected: Vec<RecordBatch> = job.expected().await;
    if !job.equals_batch {
        // It forgets by the watermark, which moves once more between two runs.
        let undisturbed = world(&job);
        for adds in [0..early, early..job.adds()] {
            undisturbed.feed(adds);
            undisturbed.run(PARTITIONS, &FaultInjector::disarmed()).await.unwrap();
        }
        expected = undisturbed.answer().unwrap();
    }
    let outcome = overtaken_at_every_moment(
        || {
            let world = world(&job);
            world.feed(0..early);
            world
        },
        async |world: &World, falls: &FaultInjector| world.run(PARTITIONS, falls).await,
        async |world: &World| world.feed(early..job.adds()),
        async |world: &World| world.check(&expected),
    )
    .await;
    report(&job.name, outcome);
}

macro_rules! every_operator {
    ($($name:ident: $job:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            stateful($job).await;
        }
    )*};
}

every_operator! {
    tumbling_windows: jobs::tumbling(5);
    sliding_windows_in_update_mode: jobs::sliding_update();
    windows_in_complete_mode: jobs::window_complete();
    aggregation_in_update_mode: jobs::aggregate_update();
    aggregation_in_complete_mode: jobs::aggregate_complete();
    session_windows: jobs::sessions();
    deduplication_with_event_time: jobs::deduplicate();
    deduplication_by_key: jobs::deduplicate_by_key();
    deduplication_within_the_watermark: jobs::deduplicate_within_watermark();
    an_inner_join: jobs::join(JoinType::Inner);
    a_left_outer_join: jobs::join(JoinType::Left);
    a_right_outer_join: jobs::join(JoinType::Right);
    a_full_outer_join: jobs::join(JoinType::Full);
    a_left_semi_join: jobs::join(JoinType::LeftSemi);
    windows_of_windows: jobs::windows_of_windows();
    a_join_then_windows: jobs::join_then_windows();
    deduplication_then_windows: jobs::deduplicate_then_windows();
    a_union_then_windows: jobs::union_then_windows();
    a_limit: jobs::limit();
}

/// The table of operators above is that of all jobs.
#[test]
fn every_operator_is_here() {
    assert_eq!(jobs::all().len(), 19);
}

/// State that is merged in the background while the first run sleeps, to an output that outlives the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_over_merges_to_parquet_files() {
    // Two files become one: three merges, one of them of what was merged.
    const ADDS: usize = 8;
    let job = Arc::new(jobs::tumbling(ADDS));
    let (expected, columns) = (job.expected().await, job.columns());
    let early = job.adds() - 2;
    let outcome = overtaken_at_every_moment(
        || {
            let world = world(&job).with_small_state();
            world.feed(0..early);
            (world, tempfile::tempdir().unwrap())
        },
        async |(world, dir): &(World, TempDir), falls: &FaultInjector| {
            let sink = FileSink::parquet(text(&dir.path().join("out")));
            finish(world.writer(sink, PARTITIONS, falls).await?.durable(false)).await.map(|_| ())
        },
        async |(world, _): &(World, TempDir)| world.feed(early..job.adds()),
        async |(_, dir): &(World, TempDir)| {
            let written = committed_rows(&dir.path().join("out"), Format::Parquet, &columns).await;
            same(&expected, &settled(&written.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?)
        },
    )
    .await;
    report("tumbling windows over merges to Parquet files", outcome);
}

/// A store whose calls take time.
#[derive(Debug)]
struct Slow(Arc<dyn MetadataStore>, Duration);

#[async_trait]
impl MetadataStore for Slow {
    async fn create(&self, name: &str, contents: Bytes) -> Result<CreateOutcome> {
        tokio::time::sleep(self.1).await;
        self.0.create(name, contents).await
    }

    async fn read(&self, name: &str) -> Result<Option<Bytes>> {
        tokio::time::sleep(self.1).await;
        self.0.read(name).await
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        tokio::time::sleep(self.1).await;
        self.0.list(folder).await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        tokio::time::sleep(self.1).await;
        self.0.delete(name).await
    }

    fn full_name(&self, name: &str) -> String {
        self.0.full_name(name)
    }
}

/// Two replicas of a job with state, each started again as soon as it ends: only fencing ends them, and a last run finds a
/// checkpoint that is whole and gives the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_that_start_each_other_again() {
    let job = Arc::new(jobs::tumbling(12));
    let expected = job.expected().await;
    let world = Arc::new(World::new(&job));
    world.feed(0..1);
    let began = Instant::now();
    let replica = async || {
        let (mut starts, mut fenced) = (0, 0);
        while began.elapsed() < Duration::from_secs(6) {
            let slow = Arc::new(Slow(Arc::clone(&world.checkpoint), Duration::from_millis(10)));
            let writer = world.writer(world.sink.clone(), PARTITIONS, &FaultInjector::disarmed()).await.unwrap();
            let writer = writer.checkpoint_store(slow).trigger(Trigger::AvailableNow).min_batches_to_retain(1);
            starts += 1;
            match finish(writer).await {
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Fenced => fenced += 1,
                Err(e) => panic!("only another replica stops one: {e}"),
            }
        }
        (starts, fenced)
    };
    let feeder = async {
        for add in 1..job.adds() - 1 {
            tokio::time::sleep(Duration::from_millis(350)).await;
            world.feed(add..add + 1);
        }
    };
    let (one, other, ()) = tokio::join!(replica(), replica(), feeder);
    println!("two replicas: {} and {} starts, {} and {} fenced", one.0, other.0, one.1, other.1);
    assert!(one.1 + other.1 > 0, "they never met");
    world.feed(job.adds() - 1..job.adds());
    world.run(PARTITIONS, &FaultInjector::disarmed()).await.unwrap();
    world.check(&expected).unwrap();
}

/// A second start on a busy checkpoint that keeps few batches: it takes over, or is told that another run is at it. Nobody is
/// told that the checkpoint is damaged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_on_a_busy_checkpoint() {
    let (source, sink, checkpoint) = (memory_events(), MemorySink::new(), memory_store());
    let start = async || {
        let stream = SessionContext::new().read_stream(source.clone())?;
        let writer = doubled(stream)?.write_stream(sink.clone()).checkpoint_store(Arc::clone(&checkpoint));
        writer.partitions(1).min_batches_to_retain(0).trigger(Trigger::Immediate).start().await
    };
    let (mut rows, mut refused, mut holder) = (vec![], 0, start().await.unwrap());
    for i in 0..150 {
        for j in 0..3 {
            let added = events(i * 3 + j, 3).unwrap();
            add(&source, &added);
            rows.push(added);
        }
        match start().await {
            Ok(next) => holder = next,
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Fenced, "{e}");
                refused += 1;
            }
        }
    }
    println!("150 starts on a busy checkpoint: {refused} were refused because another run is at it");
    if let Err(e) = holder.process_all_available().await {
        assert_eq!(e.kind(), ErrorKind::Fenced, "{e}");
        start().await.unwrap().process_all_available().await.unwrap();
    }
    assert_same_rows(&doubled_answer(&rows).await, &sink.batches());
}

/// A rolling update of a query that waits for files: both look for the next one, and whoever sees it first, the later run
/// goes on and the earlier one is fenced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_run_leaves_its_successor_alone() {
    for _ in 0..20 {
        let files = Files::new();
        let start = async || {
            let source = json_events(&files.path("in")).max_files_per_trigger(1);
            let stream = doubled(SessionContext::new().read_stream(source).unwrap()).unwrap();
            let writer = stream
                .write_stream(FileSink::parquet(text(&files.path("out"))))
                .checkpoint_store(local_checkpoint(&files.path("checkpoint")))
                .durable(false);
            writer.partitions(1).trigger(Trigger::Immediate).start().await.unwrap()
        };
        let earlier = start().await;
        earlier.process_all_available().await.unwrap();
        let later = start().await;
        later.process_all_available().await.unwrap();
        files.put(EARLY..ALL);
        later.process_all_available().await.unwrap();
        let fenced = earlier.process_all_available().await.unwrap_err();
        assert_eq!(fenced.kind(), ErrorKind::Fenced, "{fenced}");
        later.stop().await.unwrap();
        files.check().await.unwrap();
    }
}
