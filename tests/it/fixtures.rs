//! The museum of checkpoints: for each stateful operator one that a release wrote, continued by this one.
//!
//! With `TIDEWATER_WRITE_FIXTURES=1` the exhibits that are missing are written. None is ever overwritten: what was
//! released does not change, whatever this release would write.

mod broken;

mod exhibits;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use arrow::util::display::array_value_to_string;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tidewater::prelude::*;
use tidewater::testing::{FaultInjector, table};
use tokio::sync::OnceCell;

use self::exhibits::{Adds, Exhibit, Query, exhibits};
use crate::job::{finish, local_checkpoint, same};
use crate::stateful::{Input, Job, World, settled};

const MUSEUM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/checkpoint-fixtures/tidewater");

/// 2026-01-01T00:00:00 UTC: when, by its own clock, an exhibit is written.
const WRITTEN_MS: i64 = 1_767_225_600_000;

/// Files are merged in the background: whether that is done before the run ends is luck.
const ATTEMPTS: usize = 100;

/// An answer as a file has it.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    columns: Map<String, Value>,
    rows: Vec<Value>,
}

/// A copy of an exhibit: its checkpoint in a folder of its own, and all rows there, those that come next included.
struct Copied {
    checkpoint: TempDir,
    world: World,
    /// What comes out for the rows that come next.
    expected: Vec<RecordBatch>,
}

impl Copied {
    /// To be continued by `query`.
    fn new(exhibit: &Exhibit, query: Query) -> Self {
        let kept = folder(exhibit);
        let checkpoint = tempfile::tempdir().unwrap();
        copy_folder(&kept.join("checkpoint"), checkpoint.path());
        let (read, next): (Vec<Adds>, Vec<Adds>) =
            (read_json(&kept.join("input.json")), read_json(&kept.join("next.json")));
        let answer: Answer = read_json(&kept.join("expected.json"));
        let expected = vec![table::rows(&schema(&answer.columns), &Value::Array(answer.rows)).unwrap()];
        let job = job(exhibit, query, &read, &next);
        let mut world = World::new(&job);
        world.checkpoint = local_checkpoint(checkpoint.path());
        world.feed(0..job.adds());
        Copied { checkpoint, world, expected }
    }

    async fn run(&self, partitions: usize) -> Result<()> {
        run(&self.world, partitions, &ManualClock::at(WRITTEN_MS)).await
    }

    /// Whether the batches after `last` gave what they should.
    fn check(&self, last: Option<BatchId>) -> Result<(), String> {
        same(&self.expected, &rows_after(&self.world.sink, last))
    }
}

/// All exhibits. Those that are missing are written first, if that is asked for.
async fn museum() -> Vec<Exhibit> {
    static COMPLETE: OnceCell<()> = OnceCell::const_new();
    let complete = || async {
        let missing: Vec<Exhibit> = exhibits().into_iter().filter(|exhibit| !folder(exhibit).exists()).collect();
        let names: Vec<&str> = missing.iter().map(|exhibit| exhibit.name).collect();
        let write = std::env::var("TIDEWATER_WRITE_FIXTURES").is_ok_and(|asked| asked == "1");
        assert!(write || missing.is_empty(), "missing: {names:?}; TIDEWATER_WRITE_FIXTURES=1 writes them");
        for exhibit in &missing {
            write_exhibit(exhibit).await;
            println!("written: {}", folder(exhibit).display());
        }
    };
    COMPLETE.get_or_init(complete).await;
    exhibits()
}

/// Runs the query over what is to be read, in two runs, keeps a copy of its checkpoint, and goes on with what comes
/// next.
async fn write_exhibit(exhibit: &Exhibit) {
    let job = job(exhibit, exhibit.query, &exhibit.read, &exhibit.next);
    let read = exhibit.read[0].adds.len();
    for _ in 0..ATTEMPTS {
        let (checkpoint, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut world = World::new(&job);
        world.checkpoint = local_checkpoint(checkpoint.path());
        let clock = ManualClock::at(WRITTEN_MS);
        for adds in [0..read / 2, read / 2..read] {
            world.feed(adds);
            run(&world, 2, &clock).await.unwrap();
            clock.advance_ms(60_000);
        }
        let left = Checkpoint(checkpoint.path()).newest_commit();
        let state = std::fs::read_to_string(left).unwrap();
        assert!(state.contains("\"name\":"), "{}: there is no state: {state}", exhibit.name);
        if exhibit.merged && !state.contains("\"level\":") {
            continue;
        }
        copy_folder(checkpoint.path(), kept.path());

        let last = world.sink.last_batch();
        world.feed(read..job.adds());
        run(&world, 2, &clock).await.unwrap();
        if exhibit.equals_batch {
            let difference = world.check(&job.batch_answer().await.unwrap());
            difference.unwrap_or_else(|e| panic!("{}: the whole differs from the batch: {e}", exhibit.name));
        }
        let expected = answer(&rows_after(&world.sink, last));
        assert!(expected.rows.len() > 3, "{}: an answer of {} rows shows nothing", exhibit.name, expected.rows.len());

        // Whole or not at all.
        let new = Path::new(MUSEUM).join(format!(".{}", exhibit.name));
        let _ = std::fs::remove_dir_all(&new);
        copy_folder(kept.path(), &new.join("checkpoint"));
        let files = [("input", json!(exhibit.read)), ("next", json!(exhibit.next)), ("expected", json!(expected))];
        for (file, contents) in files {
            std::fs::write(new.join(format!("{file}.json")), format!("{}\n", readable(&contents, 0))).unwrap();
        }
        std::fs::rename(&new, folder(exhibit)).unwrap();
        return;
    }
    panic!("{}: no files were merged, {ATTEMPTS} times", exhibit.name);
}

fn folder(exhibit: &Exhibit) -> PathBuf {
    Path::new(MUSEUM).join(exhibit.name)
}

/// The exhibit's operator, under `query`, over what was read and what comes next.
fn job(exhibit: &Exhibit, query: Query, read: &[Adds], next: &[Adds]) -> Arc<Job> {
    let input = |(read, next): (&Adds, &Adds)| {
        let schema = schema(&read.columns);
        let rows = |rows: &Vec<Value>| table::rows(&schema, &Value::Array(rows.clone())).unwrap();
        let adds = read.adds.iter().chain(&next.adds).map(rows).collect();
        Input { schema: Arc::clone(&schema), adds }
    };
    Arc::new(Job {
        name: exhibit.name.to_owned(),
        mode: exhibit.mode,
        reading: exhibit.reading,
        inputs: read.iter().zip(next).map(input).collect(),
        query: Box::new(query),
        equals_batch: exhibit.equals_batch,
    })
}

async fn run(world: &World, partitions: usize, clock: &ManualClock) -> Result<()> {
    let writer = world.writer(world.sink.clone(), partitions, &FaultInjector::disarmed()).await?;
    finish(writer.clock(Arc::new(clock.clone()))).await.map(|_| ())
}

/// What the batches after `last` gave.
fn rows_after(sink: &MemorySink, last: Option<BatchId>) -> Vec<RecordBatch> {
    let first = last.map_or(0, |last| last.0 + 1);
    let end = sink.last_batch().map_or(0, |newest| newest.0 + 1);
    let rows: Vec<RecordBatch> = (first..end).filter_map(|batch| sink.batch(BatchId(batch))).flatten().collect();
    settled(&rows).unwrap()
}

/// A checkpoint in a folder, looked at from outside.
#[derive(Debug, Clone, Copy)]
struct Checkpoint<'a>(&'a Path);

impl Checkpoint<'_> {
    /// The numbers in a log, ascending.
    fn batches(self, log: &str) -> Vec<u64> {
        let entries = std::fs::read_dir(self.0.join(log)).unwrap().map(|entry| entry.unwrap().file_name());
        let mut batches: Vec<u64> = entries.filter_map(|name| name.to_string_lossy().parse().ok()).collect();
        batches.sort_unstable();
        batches
    }

    fn newest_batch(self) -> u64 {
        *self.batches("commits").last().expect("a commit")
    }

    fn newest_commit(self) -> PathBuf {
        self.0.join("commits").join(self.newest_batch().to_string())
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap_or_else(|e| panic!("{}: {e}", from.display())) {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if path.is_dir() {
            copy_folder(&path, &to.join(name));
        } else if !name.to_string_lossy().starts_with('.') {
            std::fs::write(to.join(name), std::fs::read(&path).unwrap()).unwrap();
        }
    }
}

fn read_json<T: DeserializeOwned>(file: &Path) -> T {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

fn schema(columns: &Map<String, Value>) -> SchemaRef {
    let columns: Vec<(&str, &str)> =
        columns.iter().map(|(name, of_type)| (name.as_str(), of_type.as_str().unwrap())).collect();
    table::schema(&columns).unwrap()
}

/// Rows as a file has them, in the order of their text.
fn answer(batches: &[RecordBatch]) -> Answer {
    let schema = batches.first().expect("an answer").schema();
    let column = |field: &Arc<arrow::datatypes::Field>| (field.name().clone(), json!(short_type(field.data_type())));
    let mut rows: Vec<Value> =
        batches.iter().flat_map(|rows| (0..rows.num_rows()).map(move |row| json_row(rows, row))).collect();
    rows.sort_by_key(Value::to_string);
    Answer { columns: schema.fields().iter().map(column).collect(), rows }
}

fn json_row(rows: &RecordBatch, row: usize) -> Value {
    let cell = |column: &ArrayRef| {
        if column.is_null(row) {
            return Value::Null;
        }
        let text = array_value_to_string(column, row).unwrap();
        match short_type(column.data_type()) {
            "long" | "double" => serde_json::from_str(&text).unwrap(),
            _ => Value::String(text),
        }
    };
    Value::Array(rows.columns().iter().map(cell).collect())
}

fn short_type(of_type: &DataType) -> &'static str {
    match of_type {
        DataType::Timestamp(..) => "timestamp",
        DataType::Utf8 | DataType::Utf8View => "string",
        DataType::Int64 => "long",
        DataType::Float64 => "double",
        other => panic!("an answer with a column of type {other} cannot be written down yet"),
    }
}

/// JSON with a line per row.
fn readable(value: &Value, depth: usize) -> String {
    let (open, close, parts): (char, char, Vec<String>) = match value {
        Value::Array(items) if items.iter().any(|item| item.is_array() || item.is_object()) => {
            ('[', ']', items.iter().map(|item| readable(item, depth + 1)).collect())
        }
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| format!("{}: {}", json!(name), readable(value, depth + 1));
            ('{', '}', fields.iter().map(field).collect())
        }
        plain => return plain.to_string(),
    };
    let inside = "  ".repeat(depth + 1);
    let lines: Vec<String> = parts.iter().map(|part| format!("{inside}{part}")).collect();
    format!("{open}\n{}\n{}{close}", lines.join(",\n"), "  ".repeat(depth))
}

/// From the files that a release left, with the rows that come next, comes the answer of that release.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_is_continued() {
    for exhibit in museum().await {
        for partitions in [1, 2, 5] {
            let copied = Copied::new(&exhibit, exhibit.query);
            let ran = copied.run(partitions).await;
            ran.unwrap_or_else(|e| panic!("{}, {partitions} partitions: {e}", exhibit.name));
            copied.check(None).unwrap_or_else(|e| panic!("{}, {partitions} partitions: {e}", exhibit.name));
        }
        println!("tidewater fixture {}: continued, with 1, 2 and 5 partitions", exhibit.name);
    }
}

/// The newest commit is not there, as after a crash: the state is that of the batch before, and the batch runs again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_commit_is_missing_runs_again() {
    for exhibit in museum().await {
        for partitions in [1, 5] {
            let copied = Copied::new(&exhibit, exhibit.query);
            let checkpoint = Checkpoint(copied.checkpoint.path());
            let newest = BatchId(checkpoint.newest_batch());
            std::fs::remove_file(checkpoint.newest_commit()).unwrap();
            let ran = copied.run(partitions).await;
            ran.unwrap_or_else(|e| panic!("{}, {partitions} partitions: {e}", exhibit.name));
            assert!(copied.world.sink.batch(newest).is_some(), "{}: batch {newest} did not run again", exhibit.name);
            copied.check(Some(newest)).unwrap_or_else(|e| panic!("{}, {partitions} partitions: {e}", exhibit.name));
        }
    }
}

/// Checkpoints of this format tell what their state means, and what they belong to: later releases must understand it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_state_means_is_kept() {
    for exhibit in museum().await.iter().filter(|exhibit| exhibit.name.starts_with("meaning_")) {
        let checkpoint = folder(exhibit).join("checkpoint");
        let told = |log: &str, of_interest: &dyn Fn(&str) -> bool, word: &str| {
            let entries = std::fs::read_dir(checkpoint.join(log)).unwrap().map(|entry| entry.unwrap().path());
            let files: Vec<PathBuf> =
                entries.filter(|path| of_interest(&path.file_name().unwrap().to_string_lossy())).collect();
            assert!(!files.is_empty(), "{}: {log}", exhibit.name);
            for file in files {
                assert!(std::fs::read_to_string(&file).unwrap().contains(word), "{}: {word}", file.display());
            }
        };
        told("state", &|name| name.starts_with("operators."), "\"meaning\"");
        told("offsets", &|_| true, "\"belongings\"");
    }
}

/// A folder that no exhibit belongs to would never be read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_museum_has_no_closed_rooms() {
    let known: BTreeSet<String> = museum().await.iter().map(|exhibit| exhibit.name.to_owned()).collect();
    let entries = std::fs::read_dir(MUSEUM).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.path().is_dir());
    let names = folders.map(|folder| folder.file_name().to_string_lossy().into_owned());
    let found: BTreeSet<String> = names.filter(|name| !name.starts_with('.')).collect();
    assert_eq!(found, known);
}
