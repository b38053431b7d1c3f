//! Folders and files in a whole query: which file a row came from, single files, what is left out, folders that moved.

use std::path::Path;

use arrow::util::pretty::pretty_format_batches;
use datafusion::functions::core::expr_fn::{file_row_index, input_file_name};
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::prelude::*;
use serde_json::json;
use tidewater::prelude::*;
use tidewater::testing::{assert_same_rows, table};
use tidewater_connectors::file::{FileSink, FileSource};
use tidewater_connectors::registry::register_connectors;
use tidewater_workspace::files::{Format, committed_rows, put_file};

use crate::job::{finish, text, to_the_end};

const COLUMNS: [(&str, &str); 2] = [("k", "string"), ("v", "long")];

/// Two files, `a` with two rows and `b#1` with one.
fn input(folder: &Path) -> FileSource {
    put_file(folder, "a", b"x,1\ny,2\n").unwrap();
    put_file(folder, "b#1", b"x,3\n").unwrap();
    source(folder)
}

fn source(folder: &Path) -> FileSource {
    FileSource::csv(text(folder)).with_schema(table::schema(&COLUMNS).unwrap())
}

fn uri(folder: &Path, name: &str) -> String {
    format!("file://{}/{name}", text(folder))
}

async fn answer(stream: DataFrame, mode: OutputMode) -> Result<Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let sink = MemorySink::new();
    finish(to_the_end(stream, sink.clone(), &dir.path().join("checkpoint")).output_mode(mode)).await?;
    let shown = pretty_format_batches(&sink.batches()).unwrap().to_string();
    let rows = shown.lines().filter(|line| line.starts_with("| ")).skip(1);
    let words = |row: &str| row.replace('|', " ").split_whitespace().collect::<Vec<_>>().join(" ");
    let mut rows: Vec<String> = rows.map(words).collect();
    rows.sort();
    Ok(rows)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_knows_the_file_it_was_read_from() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("in");
    let source = input(&folder);
    let (a, b) = (uri(&folder, "a"), uri(&folder, "b%231"));
    let ctx = SessionContext::new();
    let stream = async || ctx.read_stream(source.clone()).unwrap();

    // Selected, renamed, within an expression, twice.
    let named = stream().await.select(vec![col("v"), input_file_name().alias("f")]).unwrap();
    let expected = [format!("1 {a}"), format!("2 {a}"), format!("3 {b}")];
    assert_eq!(answer(named.clone(), OutputMode::Append).await.unwrap(), expected);
    let above = named.filter(col("f").eq(lit(b.clone()))).unwrap();
    assert_eq!(answer(above, OutputMode::Append).await.unwrap(), [format!("3 {b}")]);
    let twice = stream().await.select(vec![input_file_name().eq(lit(a.clone())).alias("is_a"), input_file_name()]);
    assert_eq!(answer(twice.unwrap(), OutputMode::Append).await.unwrap().last().unwrap(), &format!("true {a}"));

    // Filtered by: nothing else is seen of it, and whole files are left out.
    let filtered = stream().await.filter(input_file_name().eq(lit(b.clone()))).unwrap();
    assert_eq!(answer(filtered, OutputMode::Append).await.unwrap(), ["x 3"]);
    let filtered = stream().await.select(vec![col("v")]).unwrap().filter(input_file_name().eq(lit(a.clone()))).unwrap();
    let filtered = filtered.select(vec![col("v"), input_file_name()]).unwrap();
    assert_eq!(answer(filtered, OutputMode::Append).await.unwrap(), [format!("1 {a}"), format!("2 {a}")]);

    // Grouped by, over a union, through SQL and a view.
    let grouped = stream().await.aggregate(vec![input_file_name()], vec![count(lit(1)).alias("n")]).unwrap();
    assert_eq!(answer(grouped, OutputMode::Complete).await.unwrap(), [format!("{a} 2"), format!("{b} 1")]);
    let union = stream().await.union(stream().await).unwrap().select(vec![col("v"), input_file_name()]).unwrap();
    assert_eq!(answer(union, OutputMode::Append).await.unwrap().len(), 6);
    ctx.register_stream("t", source.clone()).unwrap();
    let sql = "SELECT input_file_name() AS f, count(*) FROM (SELECT * FROM t WHERE v > 1) s GROUP BY input_file_name()";
    let rows = answer(ctx.streaming_sql(sql).await.unwrap(), OutputMode::Update).await.unwrap();
    assert_eq!(rows, [format!("{a} 1"), format!("{b} 1")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_told_of_a_row_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let source = input(&dir.path().join("in"));
    let ctx = SessionContext::new();
    let stream = ctx.read_stream(source).unwrap();
    let memory = MemorySource::new(table::schema(&COLUMNS).unwrap());
    let no_files = ctx.read_stream(memory).unwrap();
    let grouped = stream.clone().aggregate(vec![col("k")], vec![count(lit(1)).alias("n")]).unwrap();
    for (stream, mode, why) in [
        (grouped.select(vec![input_file_name()]).unwrap(), OutputMode::Complete, "not known any more"),
        (no_files.select(vec![input_file_name()]).unwrap(), OutputMode::Append, "does not read files"),
        (stream.select(vec![file_row_index()]).unwrap(), OutputMode::Append, "does not number the rows"),
    ] {
        let error = answer(stream, mode).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.message().contains(why), "{error}");
        assert!(error.batch().is_none(), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_file_is_a_stream_in_sql_too() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("in");
    input(&folder);
    for (i, path) in
        [format!("{}/a", text(&folder)), format!("file:{}/a", text(&folder)), uri(&folder, "a")].iter().enumerate()
    {
        let ctx = SessionContext::new();
        register_connectors(&ctx);
        let sql = format!("CREATE UNBOUNDED EXTERNAL TABLE t{i} (k VARCHAR, v BIGINT) STORED AS CSV LOCATION '{path}'");
        ctx.sql(&sql).await.unwrap();
        let stream = ctx.streaming_sql(&format!("SELECT v FROM t{i}")).await.unwrap();
        assert_eq!(answer(stream, OutputMode::Append).await.unwrap(), ["1", "2"], "{path}");
    }
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_tells_what_was_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("in");
    let source = input(&folder);
    std::os::unix::fs::symlink("nowhere", folder.join("dangling")).unwrap();
    let sink = MemorySink::new();
    let stream = SessionContext::new().read_stream(source).unwrap();
    let query = finish(to_the_end(stream, sink.clone(), &dir.path().join("checkpoint"))).await.unwrap();
    let metrics = &query.last_progress().unwrap().sources[0].metrics;
    assert_eq!(metrics["entriesLeftOut"], "1", "{metrics:?}");
    assert_eq!((metrics["filesChangedAfterRead"].as_str(), metrics["filesTooOld"].as_str()), ("0", "0"));
    let rows = table::rows(&table::schema(&COLUMNS).unwrap(), &json!([["x", 1], ["y", 2], ["x", 3]])).unwrap();
    assert_same_rows(&[rows], &sink.batches());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_folder_that_moved_is_told_as_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let schema = table::schema(&COLUMNS).unwrap();
    let write = async |to: &Path| {
        let stream = SessionContext::new().read_stream(source(&path("in"))).unwrap();
        let writer = to_the_end(stream, FileSink::json(format!("file:{}", text(to))), &path("checkpoint"));
        finish(writer.moved(uri(dir.path(), "out"), uri(dir.path(), "moved"))).await
    };
    let read = async || {
        let from = FileSource::json(text(&path("moved"))).with_schema(table::schema(&COLUMNS).unwrap());
        answer(SessionContext::new().read_stream(from).unwrap(), OutputMode::Append).await
    };
    input(&path("in"));
    write(&path("out")).await.unwrap();
    std::fs::rename(path("out"), path("moved")).unwrap();
    put_file(&path("in"), "c", b"z,4\n").unwrap();

    // Neither read nor gone on with, until the log is fixed as the hint says.
    for failed in [read().await.unwrap_err(), write(&path("moved")).await.unwrap_err()] {
        assert!(failed.message().contains("copied or moved"), "{failed}");
        let hint = failed.hint().unwrap();
        assert!(hint.contains(&uri(dir.path(), "moved")) && hint.contains("_spark_metadata"), "{failed}");
    }
    for entry in std::fs::read_dir(path("moved/_spark_metadata")).unwrap() {
        let file = entry.unwrap().path();
        let log = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, log.replace(&uri(dir.path(), "out"), &uri(dir.path(), "moved"))).unwrap();
    }
    write(&path("moved")).await.unwrap();
    assert_eq!(read().await.unwrap(), ["x 1", "x 3", "y 2", "z 4"]);
    assert_eq!(committed_rows(&path("moved"), Format::Json, &schema).await.unwrap().len(), 3);
}

/// Into a folder below, a file that was read there could not be told from one that was read before the move.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_could_not_be_told_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let read = async |from: &str, moved: Option<(&str, &str)>| {
        let stream = SessionContext::new().read_stream(source(&path(from))).unwrap();
        let writer = to_the_end(stream, FileSink::json(text(&path("out"))), &path("checkpoint"));
        finish(match moved {
            Some((from, to)) => writer.moved(uri(dir.path(), from), uri(dir.path(), to)),
            None => writer,
        })
        .await
    };
    input(&path("in"));
    read("in", None).await.unwrap();
    std::fs::create_dir(path("in/sub")).unwrap();
    std::fs::rename(path("in/a"), path("in/sub/a")).unwrap();
    let refused = read("in/sub", Some(("in", "in/sub"))).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::IncompatibleCheckpoint, "{refused}");
    assert!(refused.message().contains("lies within the other"), "{refused}");
    // Beside it, it is as ever.
    std::fs::create_dir(path("beside")).unwrap();
    std::fs::rename(path("in/sub/a"), path("beside/a")).unwrap();
    put_file(&path("beside"), "c", b"z,4\n").unwrap();
    read("beside", Some(("in", "beside"))).await.unwrap();
    let written = committed_rows(&path("out"), Format::Json, &table::schema(&COLUMNS).unwrap()).await.unwrap();
    let expected = table::rows(&table::schema(&COLUMNS).unwrap(), &json!([["x", 1], ["y", 2], ["x", 3], ["z", 4]]));
    assert_same_rows(&[expected.unwrap()], &written);
}

/// What was read by the log of a file sink is not read without it: files of batches that failed lie there, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_lost_its_log_is_not_listed_instead() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let stream = SessionContext::new().read_stream(input(&path("in"))).unwrap();
    finish(to_the_end(stream, FileSink::csv(text(&path("middle"))), &path("checkpoint 1"))).await.unwrap();
    put_file(&path("middle"), "part-stray.csv", b"stray,9\n").unwrap();
    let read = async |trigger| {
        let stream = SessionContext::new().read_stream(source(&path("middle"))).unwrap();
        let writer = to_the_end(stream, FileSink::json(text(&path("out"))), &path("checkpoint 2"));
        writer.trigger(trigger).start().await
    };
    let running = read(Trigger::Immediate).await.unwrap();
    running.process_all_available().await.unwrap();
    std::fs::rename(path("middle/_spark_metadata"), path("log")).unwrap();
    let told = running.process_all_available().await.unwrap_err();
    assert!(told.to_string().contains("log of the file sink"), "{told}");
    running.stop().await.unwrap();
    let told = match read(Trigger::AvailableNow).await {
        Ok(query) => query.await_termination().await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(told.kind(), ErrorKind::Unavailable, "{told}");
    assert!(told.file().unwrap().ends_with("/middle/_spark_metadata"), "{told}");
    // Put back, it is as it was.
    std::fs::rename(path("log"), path("middle/_spark_metadata")).unwrap();
    read(Trigger::AvailableNow).await.unwrap().await_termination().await.unwrap();
    let written = committed_rows(&path("out"), Format::Json, &table::schema(&COLUMNS).unwrap()).await.unwrap();
    let expected = table::rows(&table::schema(&COLUMNS).unwrap(), &json!([["x", 1], ["y", 2], ["x", 3]])).unwrap();
    assert_same_rows(&[expected], &written);
}
