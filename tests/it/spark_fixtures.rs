//! Checkpoints and outputs written by Apache Spark, continued by us.
//!
//! With `TIDEWATER_KEEP=DIR` the work is done under `DIR/<fixture>/` and left there, for Spark to read what came of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::prelude::*;
use serde_json::Value;
use tempfile::TempDir;
use tidewater::prelude::*;
use tidewater::testing::{assert_same_rows, table};
use tidewater_connectors::file::FileSink;
use tidewater_connectors::rate::RatePerBatchSource;
use tidewater_workspace::files::{Format, committed_rows};

use crate::job::{doubled, finish, json_events, text, to_the_end};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/checkpoint-fixtures/spark");

/// The first input file's modification time as Spark's source log has it; each later one is a second newer.
const FIRST_INPUT_S: u64 = 1_704_067_200;

/// A copy of a fixture that may be written to.
struct Fixture {
    folder: PathBuf,
    expected: Value,
    _scratch: Option<TempDir>,
}

impl Fixture {
    fn copy(name: &str) -> Self {
        let (base, scratch) = match std::env::var_os("TIDEWATER_KEEP") {
            Some(kept) => (PathBuf::from(kept), None),
            None => {
                let scratch = tempfile::tempdir().unwrap();
                (scratch.path().to_owned(), Some(scratch))
            }
        };
        let folder = std::path::absolute(base.join(name)).unwrap();
        assert!(!folder.exists(), "{} is there already: give TIDEWATER_KEEP an empty folder", folder.display());
        copy_folder(&Path::new(FIXTURES).join(name), &folder);
        for logs in ["checkpoint/sources/0", "sink/_spark_metadata"] {
            move_paths(
                &folder.join(logs),
                &format!("file:///fixtures/{name}"),
                &format!("file://{}", folder.display()),
            );
        }
        let expected = std::fs::read_to_string(folder.join("expected.json")).unwrap();
        Fixture { folder, expected: serde_json::from_str(&expected).unwrap(), _scratch: scratch }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The rows under this key of `expected.json`.
    fn rows(&self, key: &str, schema: &SchemaRef) -> Vec<RecordBatch> {
        vec![table::rows(schema, &self.expected[key]).unwrap()]
    }

    async fn written(&self, schema: &SchemaRef) -> Vec<RecordBatch> {
        committed_rows(&self.path("sink"), Format::Parquet, schema).await.unwrap()
    }

    /// Files that the query has not seen, in order.
    fn remaining(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.path("remaining_input")).unwrap();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap_or_else(|e| panic!("{}: {e}", from.display())) {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &copy);
        } else {
            std::fs::write(&copy, std::fs::read(&path).unwrap()).unwrap();
            set_time(&copy);
        }
    }
}

/// Input files get the times that Spark's source log has for them, as a copy that keeps times would.
fn set_time(file: &Path) {
    let number = file.file_stem().and_then(|stem| stem.to_string_lossy().strip_prefix("part-")?.parse::<u64>().ok());
    if let Some(number) = number {
        let time = UNIX_EPOCH + Duration::from_secs(FIRST_INPUT_S + number);
        std::fs::File::options().write(true).open(file).unwrap().set_modified(time).unwrap();
    }
}

/// Replaces the place where the fixture was made, in every log file of a folder.
fn move_paths(logs: &Path, from: &str, to: &str) {
    let Ok(entries) = std::fs::read_dir(logs) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let log = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, log.replace(from, to)).unwrap();
    }
}

/// Continues a fixture of the shape JSON files → filter, projection → Parquet files.
async fn continue_files(name: &str, partition_by: &[&str]) {
    let fixture = Fixture::copy(name);
    let schema = table::schema(&[("k", "string"), ("ts", "timestamp"), ("v2", "long")]).unwrap();
    assert_same_rows(&fixture.rows("rows_at_stop", &schema), &fixture.written(&schema).await);
    let process = async || {
        let ctx = SessionContext::new();
        let source = json_events(&fixture.path("input")).max_files_per_trigger(1);
        let sink = FileSink::parquet(text(&fixture.path("sink"))).partition_by(partition_by.iter().copied());
        let stream = doubled(ctx.read_stream(source).unwrap()).unwrap();
        finish(to_the_end(stream, sink, &fixture.path("checkpoint"))).await.unwrap()
    };
    for file in fixture.remaining() {
        std::fs::rename(&file, fixture.path("input").join(file.file_name().unwrap())).unwrap();
        process().await;
    }
    assert_same_rows(&fixture.rows("rows_final", &schema), &fixture.written(&schema).await);
    let idle = process().await;
    assert!(idle.last_progress().is_none(), "everything was read, and yet there was a batch");
    println!("spark fixture {name}: continued to its final rows");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stateless_files() {
    continue_files("a_file_stateless", &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitioned_files() {
    continue_files("b_file_partitioned", &["k"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashed_after_the_sink_committed() {
    continue_files("e_crash_after_sink_commit", &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashed_before_the_sink_committed() {
    continue_files("e_crash_before_sink_commit", &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rate_per_batch() {
    let fixture = Fixture::copy("c_rate_micro_batch");
    let schema = table::schema(&[("m", "long"), ("timestamp", "timestamp"), ("value", "long")]).unwrap();
    assert_same_rows(&fixture.rows("rows_at_stop", &schema), &fixture.written(&schema).await);
    for _ in 0..3 {
        let ctx = SessionContext::new();
        let source = RatePerBatchSource::new(8).partitions(1).start_timestamp(1_704_067_200_000);
        let stream = ctx.read_stream(source.advance_millis_per_batch(1500)).unwrap();
        let numbered = stream.select(vec![col("timestamp"), col("value"), (col("value") % lit(3)).alias("m")]).unwrap();
        let sink = FileSink::parquet(text(&fixture.path("sink")));
        let query = finish(to_the_end(numbered, sink, &fixture.path("checkpoint"))).await.unwrap();
        assert_eq!(query.recent_progress().len(), 1, "one batch per run");
    }
    assert_same_rows(&fixture.rows("rows_final", &schema), &fixture.written(&schema).await);
    println!("spark fixture c_rate_micro_batch: continued to its final rows");
}
