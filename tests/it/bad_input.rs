//! Input, storage and options that are not as they should be: each has a clear error, and fixing it loses nothing.

use std::path::Path;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use datafusion::prelude::*;
use serde_json::json;
use tempfile::TempDir;
use tidewater::checkpoint::{MetadataStore, memory_store};
use tidewater::prelude::*;
use tidewater::testing::{FullDisk, assert_same_rows, table};
use tidewater_connectors::file::{FileSink, FileSource};
use tidewater_workspace::events::{event_schema, events};
use tidewater_workspace::files::{Format, committed_rows, put_file, put_rows};

use crate::job::{
    DOUBLED, PARTITIONS, add, csv_events, doubled, doubled_answer, finish, json_events, memory_events, text, to_the_end,
};

/// An input folder, an output folder and a checkpoint.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    /// Runs files → filter, projection → Parquet files until nothing is left.
    async fn run(&self, source: FileSource) -> Result<StreamingQuery> {
        let stream = doubled(SessionContext::new().read_stream(source)?)?;
        finish(to_the_end(stream, FileSink::parquet(text(&self.path("out"))), &self.path("checkpoint"))).await
    }

    async fn written(&self) -> Vec<RecordBatch> {
        committed_rows(&self.path("out"), Format::Parquet, &table::schema(&DOUBLED).unwrap()).await.unwrap()
    }
}

/// The file's name, and its content with one line spoiled.
async fn malformed(name: &str, good: &str, spoil: (&str, &str), source: fn(&Path) -> FileSource) {
    let place = Place::new();
    let (before, after) = (events(1, 5).unwrap(), events(2, 5).unwrap());
    let format = if name.ends_with("csv") { Format::Csv } else { Format::Json };
    put_rows(&place.path("in"), &format!("1-{name}"), format, &before).unwrap();
    let bad = good.replace(spoil.0, spoil.1);
    assert_ne!(bad, good);
    put_file(&place.path("in"), &format!("2-{name}"), bad.as_bytes()).unwrap();
    put_rows(&place.path("in"), &format!("3-{name}"), format, &after).unwrap();

    // As it is, the query stops and says where.
    let failed = place.run(source(&place.path("in")).max_files_per_trigger(1)).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::BadInput, "{failed}");
    assert!(failed.file().is_some_and(|file| file.ends_with(&format!("2-{name}"))), "{failed}");
    assert!(failed.message().contains("line 3"), "{failed}");
    assert!(failed.batch().is_some() && failed.hint().is_some(), "{failed}");
    assert_same_rows(&doubled_answer(std::slice::from_ref(&before)).await, &place.written().await);

    // Fixed, it goes on where it was.
    put_file(&place.path("in"), &format!("2-{name}"), good.as_bytes()).unwrap();
    place.run(source(&place.path("in")).max_files_per_trigger(1)).await.unwrap();
    let schema = event_schema().unwrap();
    let mended =
        json!([["2024-01-01T00:00:01Z", "a", 1], ["2024-01-01T00:00:02Z", "b", 22], ["2024-01-01T00:00:03Z", "c", 3]]);
    let mended = table::rows(&schema, &mended).unwrap();
    let answer = doubled_answer(&[before.clone(), mended.clone(), after.clone()]).await;
    assert_same_rows(&answer, &place.written().await);

    // On request the bad line is left out, and counted.
    let other = Place::new();
    put_file(&other.path("in"), &format!("2-{name}"), bad.as_bytes()).unwrap();
    let query = other.run(source(&other.path("in")).option("mode", "DROPMALFORMED")).await.unwrap();
    let progress = query.last_progress().unwrap();
    assert_eq!(progress.sources[0].metrics.get("malformedRowsDropped").map(String::as_str), Some("1"), "{progress:?}");
    assert_eq!(progress.sink.num_output_rows, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_csv_line() {
    let good = "ts,k,v\n2024-01-01T00:00:01Z,a,1\n2024-01-01T00:00:02Z,b,22\n2024-01-01T00:00:03Z,c,3\n";
    malformed("x.csv", good, (",22", ",twenty-two"), csv_events).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_json_line() {
    let good = "\n{\"ts\":\"2024-01-01T00:00:01Z\",\"k\":\"a\",\"v\":1}\n{\"ts\":\"2024-01-01T00:00:02Z\",\"k\":\"b\",\"v\":22}\n\
                {\"ts\":\"2024-01-01T00:00:03Z\",\"k\":\"c\",\"v\":3}\n";
    malformed("x.json", good, ("22}", "22"), json_events).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_line_can_be_kept() {
    let place = Place::new();
    put_file(&place.path("in"), "x.csv", b"1,one\nx,two\n3,three\n").unwrap();
    let schema = table::schema(&[("n", "long"), ("name", "string"), ("_corrupt_record", "string")]).unwrap();
    let source = FileSource::csv(text(&place.path("in"))).with_schema(schema.clone()).option("mode", "PERMISSIVE");
    let sink = MemorySink::new();
    let stream = SessionContext::new().read_stream(source).unwrap();
    let query = finish(to_the_end(stream, sink.clone(), &place.path("checkpoint"))).await.unwrap();
    let kept = json!([[1, "one", null], [null, null, "x,two"], [3, "three", null]]);
    assert_same_rows(&[table::rows(&schema, &kept).unwrap()], &sink.batches());
    assert_eq!(query.last_progress().unwrap().sources[0].metrics["malformedRowsKept"], "1");
}

/// A file that was logged for a batch and is gone before the batch is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vanished_file() {
    let place = Place::new();
    let rows = events(1, 5).unwrap();
    let file = put_rows(&place.path("in"), "1.json", Format::Json, &rows).unwrap();
    let stream = doubled(SessionContext::new().read_stream(json_events(&place.path("in"))).unwrap()).unwrap();
    // The sink fails, so the batch is logged and will be repeated.
    let failing = ForeachBatchSink::new(|_, _| async { Err("not now".into()) });
    let failed = finish(to_the_end(stream, failing, &place.path("checkpoint"))).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::UserCode, "{failed}");

    // The checkpoint knows its sink: that it is another one from now on is said.
    let run = async || {
        let stream = doubled(SessionContext::new().read_stream(json_events(&place.path("in")))?)?;
        let writer = to_the_end(stream, FileSink::parquet(text(&place.path("out"))), &place.path("checkpoint"));
        let out = format!("parquet files at file://{}", text(&place.path("out")));
        finish(writer.moved("foreach batch", out)).await
    };
    std::fs::rename(&file, place.path("moved.json")).unwrap();
    let lost = run().await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::SourceLostData, "{lost}");
    assert!(lost.file().is_some_and(|file| file.ends_with("1.json")), "{lost}");

    std::fs::rename(place.path("moved.json"), &file).unwrap();
    run().await.unwrap();
    assert_same_rows(&doubled_answer(&[rows]).await, &place.written().await);
}

/// A Parquet file whose column has another type than the query was started with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_schema() {
    let place = Place::new();
    let source = || FileSource::parquet(text(&place.path("in"))).with_schema(event_schema().unwrap());
    put_rows(&place.path("in"), "1.parquet", Format::Parquet, &events(1, 5).unwrap()).unwrap();
    place.run(source()).await.unwrap();

    let other = table::schema(&[("ts", "timestamp"), ("k", "string"), ("v", "boolean")]).unwrap();
    let other = table::rows(&other, &json!([["2024-01-01T00:00:01Z", "a", true]])).unwrap();
    put_rows(&place.path("in"), "2.parquet", Format::Parquet, &other).unwrap();
    let failed = place.run(source()).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::BadInput, "{failed}");
    assert!(failed.file().is_some_and(|file| file.ends_with("2.parquet")), "{failed}");
    assert!(failed.to_string().contains("`v`") || failed.to_string().contains("v"), "{failed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_torn() {
    let place = Place::new();
    put_file(&place.path("in"), "1.parquet", b"PAR1 and then nothing of the kind").unwrap();
    let source = FileSource::parquet(text(&place.path("in"))).with_schema(event_schema().unwrap());
    let failed = place.run(source).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::BadInput, "{failed}");
    assert!(failed.file().is_some_and(|file| file.ends_with("1.parquet")), "{failed}");
}

/// Files and folders that stand where the checkpoint or the output would go: also what a missing right would look like, for
/// a user who may do everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_that_cannot_be_written() {
    let place = Place::new();
    put_rows(&place.path("in"), "1.json", Format::Json, &events(1, 5).unwrap()).unwrap();
    std::fs::write(place.path("checkpoint"), "a file").unwrap();
    let failed = place.run(json_events(&place.path("in"))).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Unavailable, "{failed}");
    assert!(failed.file().is_some_and(|file| file.contains("checkpoint")), "{failed}");
    std::fs::remove_file(place.path("checkpoint")).unwrap();

    std::fs::write(place.path("out"), "a file").unwrap();
    let failed = place.run(json_events(&place.path("in"))).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Unavailable, "{failed}");
    assert!(failed.to_string().contains("out"), "{failed}");
    std::fs::remove_file(place.path("out")).unwrap();

    place.run(json_events(&place.path("in"))).await.unwrap();
    assert_same_rows(&doubled_answer(&[events(1, 5).unwrap()]).await, &place.written().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk() {
    let rows: Vec<RecordBatch> = (0..3).map(|i| events(i, 6).unwrap()).collect();
    for room_for in 0..7 {
        let (source, sink, disk) = (memory_events(), MemorySink::new(), memory_store());
        rows.iter().for_each(|rows| add(&source, rows));
        let run = async |store: Arc<dyn MetadataStore>| {
            let stream = doubled(SessionContext::new().read_stream(source.clone())?)?;
            let writer = stream.write_stream(sink.clone()).checkpoint_store(store).partitions(PARTITIONS);
            finish(writer.trigger(Trigger::AvailableNow)).await
        };
        let small = FullDisk::with_room_for(room_for, Arc::clone(&disk));
        let failed = run(Arc::new(small)).await.unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Unavailable, "{failed}");
        assert!(failed.hint().is_some_and(|hint| hint.contains("free space")), "{failed}");
        assert!(failed.file().is_some(), "{failed}");

        run(disk).await.unwrap();
        assert_same_rows(&doubled_answer(&rows).await, &sink.batches());
    }
}

/// What is wrong with an option is said when the query starts, before anything is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_that_are_wrong() {
    let place = Place::new();
    put_rows(&place.path("in"), "1.json", Format::Json, &events(1, 5).unwrap()).unwrap();

    let source = json_events(&place.path("in")).option("maxFilePerTrigger", "5");
    let stream = SessionContext::new().read_stream(source).unwrap();
    let near = finish(to_the_end(stream, DiscardSink::new(), &place.path("checkpoint"))).await.unwrap_err();
    assert_eq!(near.kind(), ErrorKind::InvalidQuery, "{near}");
    assert!(near.to_string().contains("`maxFilesPerTrigger`"), "{near}");

    let stream = SessionContext::new().read_stream(json_events(&place.path("in"))).unwrap();
    let sink = FileSink::parquet(text(&place.path("out"))).option("compresion", "zstd");
    let near = finish(to_the_end(stream.clone(), sink, &place.path("checkpoint"))).await.unwrap_err();
    assert_eq!(near.kind(), ErrorKind::InvalidQuery, "{near}");
    assert!(near.to_string().contains("`compression`"), "{near}");

    let sink = FileSink::parquet(text(&place.path("out"))).partition_by(["nobody"]);
    let unknown = finish(to_the_end(stream.clone(), sink, &place.path("checkpoint"))).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::InvalidQuery, "{unknown}");
    assert!(unknown.to_string().contains("`nobody`"), "{unknown}");

    let writer = to_the_end(stream.clone(), DiscardSink::new(), &place.path("checkpoint"));
    let negative = writer.refresh_static_tables_every("-5 minutes").start().await.unwrap_err();
    assert_eq!(negative.kind(), ErrorKind::InvalidQuery, "{negative}");
    assert!(negative.to_string().contains("`-5 minutes`"), "{negative}");

    let negative = stream.with_watermark("ts", "-5 seconds").unwrap_err();
    assert!(negative.to_string().contains("-5 seconds"), "{negative}");
    assert!(!place.path("out").join("_spark_metadata").exists(), "nothing was written");
}

/// A file sink only appends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_mode_that_a_sink_cannot_take() {
    let place = Place::new();
    let stream = SessionContext::new().read_stream(memory_events()).unwrap();
    let sink = FileSink::parquet(text(&place.path("out")));
    let writer = to_the_end(stream, sink, &place.path("checkpoint")).output_mode(OutputMode::Update);
    let refused = writer.start().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    assert!(refused.to_string().contains("update"), "{refused}");
}

/// What is done to which files (`None`: deleted), and what the start must answer, naming which file.
type Wreck = (&'static str, &'static [(&'static str, Option<&'static str>)], ErrorKind, &'static str);

/// Files of the checkpoint that are damaged, missing, foreign or too new: named, and nothing is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_is_not_healthy() {
    let wrecks: [Wreck; 6] = [
        ("too new", &[("offsets/2", Some("v9\n{}\n0"))], ErrorKind::IncompatibleCheckpoint, "offsets/2"),
        ("torn", &[("offsets/2", Some("v1\n{\"batchWater"))], ErrorKind::DamagedCheckpoint, "offsets/2"),
        ("empty", &[("commits/2", Some(""))], ErrorKind::DamagedCheckpoint, "commits/2"),
        ("without its id", &[("metadata", None)], ErrorKind::DamagedCheckpoint, "metadata"),
        ("with a gap", &[("offsets/1", None), ("commits/2", None)], ErrorKind::DamagedCheckpoint, "offsets/1"),
        (
            "commits alone",
            &[("offsets/0", None), ("offsets/1", None), ("offsets/2", None)],
            ErrorKind::DamagedCheckpoint,
            "offsets",
        ),
    ];
    for (what, changes, kind, named) in wrecks {
        let place = Place::new();
        let source = memory_events();
        (0..3).for_each(|i| add(&source, &events(i, 5).unwrap()));
        let run = async || {
            let stream = SessionContext::new().read_stream(source.clone()).unwrap();
            finish(to_the_end(stream, DiscardSink::new(), &place.path("checkpoint"))).await
        };
        run().await.unwrap();
        for (file, contents) in changes {
            let file = place.path("checkpoint").join(file);
            match contents {
                Some(contents) => std::fs::write(&file, contents).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
        }
        let refused = run().await.expect_err(what);
        assert_eq!(refused.kind(), kind, "{what}: {refused}");
        assert!(refused.to_string().contains(named), "{what}: {refused}");
    }
}
