//! What a checkpoint belongs to: its sources, its sinks, and what its state means. And a sink that its own source would read.

use std::path::{Path, PathBuf};

use datafusion::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use tidewater::prelude::*;
use tidewater::testing::oracle::row_lines;
use tidewater::testing::table;
use tidewater_connectors::file::{FileSink, FileSource};
use tidewater_workspace::events::{event_schema, events};
use tidewater_workspace::files::{Format, committed_rows, put_rows};

use crate::job::{DOUBLED, finish, json_events, text, to_the_end};

/// Rows of every kind of column that aggregates read.
fn rows() -> arrow::record_batch::RecordBatch {
    let schema = table::schema(&[("k", "string"), ("j", "string"), ("v", "long"), ("id", "long")]).unwrap();
    table::rows(&schema, &json!([["a", "x", 1, 10], ["A", "y", 2, 20], ["b", "x", 3, 30]])).unwrap()
}

/// Starts `sql` over the stream `t`, from which one more batch comes, in the checkpoint at `folder`, and runs it to its end.
async fn run(folder: &Path, source: &MemorySource, sql: &str) -> Result<Vec<String>> {
    run_with_tables(folder, source, sql, None).await
}

/// The same, with the table of `letters.csv` in `tables`.
async fn run_with_tables(
    folder: &Path,
    source: &MemorySource,
    sql: &str,
    tables: Option<&Path>,
) -> Result<Vec<String>> {
    let ctx = SessionContext::new();
    if let Some(tables) = tables {
        ctx.register_csv("letters", text(&tables.join("letters.csv")), CsvReadOptions::new()).await?;
    }
    // Structs whose fields can be asked for by name.
    let stream = ctx.read_stream(source.clone())?;
    ctx.register_table("plain", stream.into_view())?;
    for (table, first) in [("s1", 1), ("s2", 5)] {
        let rows = format!("CREATE TABLE {table} AS VALUES ('a', {first}), ('A', {}), ('b', 3)", first + 1);
        ctx.sql(&rows).await?.collect().await?;
    }
    let t = "SELECT *, named_struct('a', v, 'b', id) AS st, named_struct('a', id) AS mp, \
             make_array(v, id) AS va, make_array(id, id + 1) AS vb FROM plain";
    ctx.register_table("t", ctx.sql(t).await?.into_view())?;
    let sink = MemorySink::new();
    finish(to_the_end(ctx.sql(sql).await?, sink.clone(), folder).output_mode(OutputMode::Update)).await?;
    let mut lines = row_lines(&sink.batches())?;
    lines.sort();
    Ok(lines)
}

/// Each query goes on from its own checkpoint, and no other's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_is_continued_by_what_it_means() {
    for (sql, same, others) in [
        (
            "SELECT k, sum(v) AS s FROM t GROUP BY k",
            vec![
                "SELECT x.k AS key, sum(x.v) AS total FROM t x WHERE id > 0 GROUP BY x.k",
                "SELECT k, sum(w) AS s FROM (SELECT k, v AS w FROM t) GROUP BY k",
            ],
            vec![
                "SELECT upper(k), sum(v) AS s FROM t GROUP BY upper(k)",
                "SELECT j, sum(v) AS s FROM t GROUP BY j",
                "SELECT k, sum(id) AS s FROM t GROUP BY k",
                "SELECT k, sum(w) AS s FROM (SELECT k, v + 1 AS w FROM t) GROUP BY k",
                "SELECT k, sum(-v) AS s FROM t GROUP BY k",
            ],
        ),
        (
            "SELECT k, sum(v + id) AS s, max(v + id) AS m FROM t GROUP BY k",
            vec!["SELECT k, sum(v + id) AS s, max(v + id) AS m FROM t GROUP BY k"],
            vec![
                "SELECT k, sum(v - id) AS s, max(v - id) AS m FROM t GROUP BY k",
                "SELECT k, sum(v + id) AS s, max(v - id) AS m FROM t GROUP BY k",
                "SELECT k, sum(v + id + 1) AS s, max(v + id + 1) AS m FROM t GROUP BY k",
            ],
        ),
        (
            "SELECT k, sum(v) FILTER (WHERE v > 1) AS s FROM t GROUP BY k",
            vec![],
            vec![
                "SELECT k, sum(v) FILTER (WHERE v <= 1) AS s FROM t GROUP BY k",
                "SELECT k, sum(v) FILTER (WHERE v > 2) AS s FROM t GROUP BY k",
                "SELECT k, sum(v) AS s FROM t GROUP BY k",
            ],
        ),
        (
            "SELECT k, sum(st['a']) AS s FROM t GROUP BY k",
            vec![],
            vec!["SELECT k, sum(st['b']) AS s FROM t GROUP BY k", "SELECT k, sum(mp['a']) AS s FROM t GROUP BY k"],
        ),
        (
            "SELECT k, sum(CASE WHEN v > 1 THEN v ELSE 0 END) AS s, count(DISTINCT j) AS n FROM t GROUP BY k",
            vec![],
            vec![
                "SELECT k, sum(CASE WHEN v > 2 THEN v ELSE 0 END) AS s, count(DISTINCT j) AS n FROM t GROUP BY k",
                "SELECT k, sum(CASE WHEN v > 1 THEN v ELSE 1 END) AS s, count(DISTINCT j) AS n FROM t GROUP BY k",
                "SELECT k, sum(CASE WHEN v > 1 THEN id ELSE 0 END) AS s, count(DISTINCT j) AS n FROM t GROUP BY k",
            ],
        ),
        (
            "SELECT k, first_value(v ORDER BY id) AS f FROM t GROUP BY k",
            vec![],
            vec![
                "SELECT k, first_value(v ORDER BY id DESC) AS f FROM t GROUP BY k",
                "SELECT k, first_value(v ORDER BY v) AS f FROM t GROUP BY k",
            ],
        ),
        (
            "SELECT k, sum(CAST(v AS DOUBLE)) AS s FROM t WHERE k IN ('a', 'A', 'b') GROUP BY k",
            vec!["SELECT k, sum(CAST(v AS DOUBLE)) AS s FROM t GROUP BY k"],
            vec!["SELECT k, sum(CAST(v AS FLOAT)) AS s FROM t GROUP BY k"],
        ),
        ("SELECT DISTINCT k FROM t", vec!["SELECT DISTINCT k AS l FROM t"], vec!["SELECT DISTINCT j FROM t"]),
        (
            "SELECT a.k FROM t a JOIN t b ON a.k = b.k",
            vec![],
            vec![
                "SELECT a.k FROM t a JOIN t b ON a.j = b.k",
                "SELECT a.k FROM t a JOIN t b ON a.k = b.k AND a.v < b.v",
            ],
        ),
        // What a join keeps beside its keys.
        (
            "SELECT a.k, a.w FROM (SELECT k, v AS w FROM t) a JOIN t b ON a.k = b.k",
            vec!["SELECT x.z, x.k FROM (SELECT k, v AS z FROM t) x JOIN t y ON x.k = y.k"],
            vec![
                "SELECT a.k, a.w FROM (SELECT k, id AS w FROM t) a JOIN t b ON a.k = b.k",
                "SELECT a.k, a.w FROM (SELECT k, v + 1 AS w FROM t) a JOIN t b ON a.k = b.k",
            ],
        ),
        // DataFusion builds another side of the joins for the second.
        (
            "SELECT a.column1, count(*) AS n FROM t JOIN s1 a ON k = a.column1 JOIN s1 b ON v = b.column2 GROUP BY a.column1",
            vec![
                "SELECT x.column1, count(*) AS m FROM t JOIN s1 x ON k = x.column1 JOIN s1 y ON v = y.column2 GROUP BY x.column1",
            ],
            vec![
                "SELECT b.column1, count(*) AS n FROM t JOIN s1 a ON k = a.column1 JOIN s1 b ON v = b.column2 GROUP BY b.column1",
            ],
        ),
        // The sides of a stream that is joined with itself.
        (
            "SELECT a.k, count(*) AS n FROM t a JOIN t b ON a.v = b.v AND a.id <= b.id GROUP BY a.k",
            vec!["SELECT x.k AS l, count(*) AS m FROM t x JOIN t y ON x.v = y.v AND x.id <= y.id GROUP BY x.k"],
            vec![
                "SELECT b.k, count(*) AS n FROM t a JOIN t b ON a.v = b.v AND a.id <= b.id GROUP BY b.k",
                "SELECT a.k, count(*) AS n FROM t a JOIN t b ON a.v = b.v AND b.id <= a.id GROUP BY a.k",
            ],
        ),
        (
            "SELECT x, sum(v) AS s FROM (SELECT unnest(l) AS x, v FROM (SELECT va AS l, v FROM t)) GROUP BY x",
            vec!["SELECT y, sum(v) AS s FROM (SELECT unnest(m) AS y, v FROM (SELECT va AS m, v FROM t)) GROUP BY y"],
            vec!["SELECT x, sum(v) AS s FROM (SELECT unnest(l) AS x, v FROM (SELECT vb AS l, v FROM t)) GROUP BY x"],
        ),
        // Columns of the same name in two tables that do not stream.
        (
            "SELECT s1.column2 AS n, sum(v) AS s FROM t JOIN s1 ON k = s1.column1 JOIN s2 ON k = s2.column1 GROUP BY s1.column2",
            vec![
                "SELECT a.column2 AS m, sum(v) AS s FROM t JOIN s1 a ON k = a.column1 JOIN s2 b ON k = b.column1 GROUP BY a.column2",
            ],
            vec![
                "SELECT s2.column2 AS n, sum(v) AS s FROM t JOIN s1 ON k = s1.column1 JOIN s2 ON k = s2.column1 GROUP BY s2.column2",
            ],
        ),
        (
            "SELECT k, sum(v) AS s FROM (SELECT k, v FROM t UNION ALL SELECT j, id FROM t) GROUP BY k",
            vec![],
            vec!["SELECT k, sum(v) AS s FROM (SELECT k, v FROM t UNION ALL SELECT j, v FROM t) GROUP BY k"],
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let source = MemorySource::new(rows().schema());
        source.add(vec![rows()]).unwrap();
        run(dir.path(), &source, sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        for other in others {
            source.add(vec![rows()]).unwrap();
            let error = run(dir.path(), &source, other).await.expect_err(other);
            assert_eq!(error.kind(), ErrorKind::IncompatibleCheckpoint, "{other}: {error}");
            assert!(!error.message().contains("__common_expr"), "{other}: {error}");
        }
        for same in same.into_iter().chain([sql]) {
            source.add(vec![rows()]).unwrap();
            run(dir.path(), &source, same).await.unwrap_or_else(|e| panic!("{sql}, then {same}: {e}"));
        }
    }
}

/// What a node, a window function or the scan of a table computes is recorded in words of ours: how DataFusion names and
/// displays them is not kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_datafusion_gives_are_not_on_disk() {
    let tables = tempfile::tempdir().unwrap();
    std::fs::write(tables.path().join("letters.csv"), "c\na\nA\nb\n").unwrap();
    let joined = |number: &str| format!("SELECT n, sum(v) AS s FROM t JOIN ({number}) ON k = c GROUP BY n");
    let over = |window: &str| joined(&format!("SELECT column1 AS c, {window} AS n FROM s1"));
    let scanned = |name: &str| joined(&format!("SELECT c, {name} AS n FROM letters"));
    for (sql, expected, other) in [
        (
            "SELECT x, sum(v) AS s FROM (SELECT unnest(va) AS x, v FROM t) GROUP BY x".to_owned(),
            "by unnest(0 of make_array(source0.v, source0.id)",
            "SELECT x, sum(v) AS s FROM (SELECT unnest(vb) AS x, v FROM t) GROUP BY x".to_owned(),
        ),
        (
            over("row_number() OVER (ORDER BY column1)"),
            "by row_number() over (order by table0.column1 range from unbounded preceding to current row)",
            over("rank() OVER (ORDER BY column1)"),
        ),
        (
            over("sum(column2) OVER (PARTITION BY column1 ORDER BY column2 DESC ROWS 1 PRECEDING)"),
            "by sum(table0.column2) over (partition by table0.column1 order by table0.column2 desc nulls first rows from \
             1:uint64 preceding to current row)",
            over("sum(column2) OVER (PARTITION BY column1 ORDER BY column2 DESC ROWS 2 PRECEDING)"),
        ),
        (
            over("lag(column2, 1) OVER (ORDER BY column1)"),
            "by lag(table0.column2, 1:int64) over (order by table0.column1 range from unbounded preceding to current row)",
            over("lag(column2, 2) OVER (ORDER BY column1)"),
        ),
        (scanned("upper(c)"), "by upper(table0.c)", scanned("lower(c)")),
        (scanned("c"), "by table0.c", scanned("c || 'x'")),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let source = MemorySource::new(rows().schema());
        let run = async |sql: &str| {
            source.add(vec![rows()]).unwrap();
            run_with_tables(dir.path(), &source, sql, Some(tables.path())).await
        };
        run(&sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        let files = std::fs::read_dir(dir.path().join("state")).unwrap().map(|file| file.unwrap().path());
        let schema = files.filter(|path| path.is_file()).map(|path| std::fs::read_to_string(path).unwrap());
        let lines: Vec<String> = schema.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        let operators = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let meanings: Vec<String> = operators
            .filter_map(|operator| Some(operator["meaning"].as_array()?.iter().map(text_of).collect::<Vec<_>>()))
            .flatten()
            .collect();
        assert!(meanings.iter().any(|meaning| meaning.starts_with(expected)), "{sql}: {meanings:?}");
        for made_up in ["Exec", "ASC NULLS", "BETWEEN", "UNBOUNDED"] {
            assert!(!meanings.iter().any(|meaning| meaning.contains(made_up)), "{sql}: {meanings:?}");
        }
        run(&sql).await.unwrap_or_else(|e| panic!("{sql}, again: {e}"));
        let error = run(&other).await.map(|_| ()).expect_err(&other);
        assert!(error.to_string().contains("is to compute"), "{other}: {error}");
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Rows with times that are told by text, too.
fn timed() -> arrow::record_batch::RecordBatch {
    let schema = table::schema(&[("ts", "timestamp"), ("text", "string"), ("v", "long")]).unwrap();
    let rows =
        json!([["2024-01-01T00:01:00Z", "2024-01-01 23:30:00", 1], ["2024-01-01T00:12:00Z", "2024-01-02 01:00:00", 2]]);
    table::rows(&schema, &rows).unwrap()
}

/// The same, of a statement over windows, in a time zone.
async fn run_timed(folder: &Path, source: &MemorySource, sql: &str, mode: OutputMode, zone: &str) -> Result<()> {
    let mut config = SessionConfig::new();
    config.options_mut().execution.time_zone = Some(zone.to_owned());
    let ctx = SessionContext::new_with_config(config);
    let stream = ctx.read_stream(source.clone())?.with_watermark("ts", "5 minutes")?;
    ctx.register_table("t", stream.into_view())?;
    let query = ctx.streaming_sql(sql).await?;
    finish(to_the_end(query, MemorySink::new(), folder).output_mode(mode)).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_and_what_the_session_decides_belong_to_the_meaning() {
    use OutputMode::{Append, Complete, Update};
    let sliding = "SELECT window.start, sum(v) AS s FROM t GROUP BY window(ts, '10 minutes', '5 minutes')";
    let other_slide = "SELECT window.start, sum(v) AS s FROM t GROUP BY window(ts, '10 minutes', '2 minutes')";
    let spelled = "SELECT window.start AS b, sum(v) AS x FROM t GROUP BY window(ts, '600 seconds', '300 seconds')";
    let by_text =
        "SELECT to_char(to_timestamp(text), '%d') AS d, sum(v) AS s FROM t GROUP BY to_char(to_timestamp(text), '%d')";
    for (first, second, fits) in [
        ((sliding, Update, "+00:00"), (spelled, Update, "+01:00"), true),
        ((sliding, Update, "+00:00"), (other_slide, Update, "+00:00"), false),
        ((by_text, Update, "+00:00"), (by_text, Update, "+00:00"), true),
        ((by_text, Update, "+00:00"), (by_text, Update, "+05:00"), false),
        ((sliding, Append, "+00:00"), (sliding, Update, "+00:00"), false),
        ((sliding, Append, "+00:00"), (sliding, Complete, "+00:00"), false),
        ((sliding, Update, "+00:00"), (sliding, Complete, "+00:00"), false),
        ((sliding, Update, "+00:00"), (sliding, Append, "+00:00"), true),
        ((sliding, Complete, "+00:00"), (sliding, Update, "+00:00"), true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let source = MemorySource::new(timed().schema());
        source.add(vec![timed()]).unwrap();
        run_timed(dir.path(), &source, first.0, first.1, first.2).await.unwrap();
        source.add(vec![timed()]).unwrap();
        let went = run_timed(dir.path(), &source, second.0, second.1, second.2).await;
        let refused = went.as_ref().is_err_and(|e| e.kind() == ErrorKind::IncompatibleCheckpoint);
        assert_eq!(went.is_ok(), fits, "{first:?}, then {second:?}: {went:?}");
        assert_eq!(refused, !fits, "{first:?}, then {second:?}: {went:?}");
    }
}

/// The numbers in the names that DataFusion makes up go on counting in a process; the state does not care.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_frame_is_started_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (ctx, source) = (SessionContext::new(), MemorySource::new(rows().schema()));
    ctx.register_table("t", ctx.read_stream(source.clone()).unwrap().into_view()).unwrap();
    let sql = "SELECT k, sum(v + id) AS s, avg(v + id) AS a, max(upper(j) || k) AS m, min(upper(j) || k) AS n FROM t GROUP BY k";
    let frame = ctx.sql(sql).await.unwrap();
    for turn in 1..=3 {
        source.add(vec![rows()]).unwrap();
        let sink = MemorySink::new();
        let writer = to_the_end(frame.clone(), sink.clone(), dir.path()).output_mode(OutputMode::Update);
        finish(writer).await.unwrap_or_else(|e| panic!("start {turn}: {e}"));
        let mut lines = row_lines(&sink.batches()).unwrap();
        lines.sort();
        let sums = [22, 11, 33].map(|sum| sum * turn);
        assert_eq!(lines.len(), 3);
        for (line, sum) in lines.iter().zip(sums) {
            assert!(line.contains(&format!(" | {sum} | ")), "start {turn}: {line}");
        }
    }
}

/// Folders with a file each.
struct World {
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        let world = World { dir: tempfile::tempdir().unwrap() };
        for (seed, folder) in [(1, "a"), (2, "b")] {
            std::fs::create_dir_all(world.at(folder)).unwrap();
            put_rows(&world.at(folder), "first", Format::Json, &events(seed, 10).unwrap()).unwrap();
        }
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Reads these folders, one after the other, into `out`.
    async fn union(&self, folders: &[&str], out: &str) -> StreamWriter {
        let ctx = SessionContext::new();
        let mut all: Option<DataFrame> = None;
        for folder in folders {
            let stream = ctx.read_stream(json_events(&self.at(folder))).unwrap();
            all = Some(match all {
                Some(all) => all.union(stream).unwrap(),
                None => stream,
            });
        }
        let stream = all.unwrap().select_columns(&["ts", "k", "v"]).unwrap();
        to_the_end(stream, FileSink::parquet(text(&self.at(out))), &self.at("checkpoint"))
    }

    async fn rows(&self, out: &str) -> usize {
        let columns: Vec<(&str, &str)> = DOUBLED[..2].iter().copied().chain([("v", "long")]).collect();
        let schema = table::schema(&columns).unwrap();
        let rows = committed_rows(&self.at(out), Format::Parquet, &schema).await.unwrap();
        rows.iter().map(|rows| rows.num_rows()).sum()
    }
}

async fn refused(writer: StreamWriter, words: &[&str]) {
    let error = finish(writer).await.map(|_| ()).expect_err("it is another query");
    assert_eq!(error.kind(), ErrorKind::IncompatibleCheckpoint, "{error}");
    let told = format!("{error} {:?}", error.hint());
    words.iter().for_each(|word| assert!(told.contains(word), "`{word}` is not in: {told}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_knows_its_sources_and_sinks() {
    let world = World::new();
    finish(world.union(&["a", "b"], "out").await).await.unwrap();
    assert_eq!(world.rows("out").await, 20);
    refused(world.union(&["b", "a"], "out").await, &["source 0 was json files at file://", "another order"]).await;
    std::fs::create_dir(world.at("c")).unwrap();
    refused(world.union(&["a", "c"], "out").await, &["source 1 was", "/b and is", "/c", ".moved("]).await;
    refused(world.union(&["a", "b"], "out2").await, &["the sink was parquet files at", "out2"]).await;
    assert!(!world.at("out2").exists() || world.rows("out2").await == 0);

    let ctx = SessionContext::new();
    let csv = FileSource::csv(text(&world.at("a"))).with_schema(event_schema().unwrap());
    let stream = ctx.read_stream(csv).unwrap();
    let stream = stream.union(ctx.read_stream(json_events(&world.at("b"))).unwrap()).unwrap();
    let stream = stream.select_columns(&["ts", "k", "v"]).unwrap();
    let sink = FileSink::parquet(text(&world.at("out")));
    let words = ["source 0 was json files at", "and is csv files at"];
    refused(to_the_end(stream, sink, &world.at("checkpoint")), &words).await;

    // As it was, but for the spelling of a path.
    put_rows(&world.at("b"), "second", Format::Json, &events(3, 5).unwrap()).unwrap();
    finish(world.union(&["a/", "./b"], "out").await).await.unwrap();
    assert_eq!(world.rows("out").await, 25);
}

/// Files that were read before the move are not read again, nor after the next restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_moved_is_said_and_not_read_twice() {
    let world = World::new();
    finish(world.union(&["a"], "out").await).await.unwrap();
    std::fs::rename(world.at("a"), world.at("moved")).unwrap();
    put_rows(&world.at("moved"), "second", Format::Json, &events(3, 5).unwrap()).unwrap();
    refused(world.union(&["moved"], "out").await, &["/a and is", "/moved"]).await;
    let place = |name: &str| format!("file://{}", world.at(name).display());
    finish(world.union(&["moved"], "out").await.moved(place("a"), place("moved"))).await.unwrap();
    assert_eq!(world.rows("out").await, 15);
    put_rows(&world.at("moved"), "third", Format::Json, &events(4, 2).unwrap()).unwrap();
    finish(world.union(&["moved"], "out").await).await.unwrap();
    assert_eq!(world.rows("out").await, 17);
}

/// The record is in plain words, and without what is secret or may change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_recorded() {
    let world = World::new();
    finish(world.union(&["a"], "out").await).await.unwrap();
    let entry = std::fs::read_to_string(world.at("checkpoint/offsets/0")).unwrap();
    let entry: Value = serde_json::from_str(entry.lines().nth(1).unwrap()).unwrap();
    let place = |name: &str| format!("file://{}", world.at(name).display());
    let expected = json!({
        "sources": [{"kind": "json files", "place": place("a")}],
        "output": {"kind": "parquet files", "place": place("out")},
    });
    assert_eq!(entry["belongings"], expected);
}

/// A record that an older release did not write is added, and only then compared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_without_the_record_is_continued() {
    let world = World::new();
    finish(world.union(&["a"], "out").await).await.unwrap();
    let file = world.at("checkpoint/offsets/0");
    let entry = std::fs::read_to_string(&file).unwrap();
    let mut lines: Vec<String> = entry.lines().map(str::to_owned).collect();
    let mut told: Value = serde_json::from_str(&lines[1]).unwrap();
    told.as_object_mut().unwrap().remove("belongings");
    lines[1] = told.to_string();
    std::fs::write(&file, lines.join("\n")).unwrap();
    put_rows(&world.at("a"), "second", Format::Json, &events(3, 5).unwrap()).unwrap();
    finish(world.union(&["a"], "out").await).await.unwrap();
    refused(world.union(&["b"], "out").await, &["source 0 was"]).await;
}

/// Two memory sources of one process that change places are told apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_in_memory_change_places() {
    let dir = tempfile::tempdir().unwrap();
    let ctx = SessionContext::new();
    let sources = [MemorySource::new(rows().schema()), MemorySource::new(rows().schema())];
    sources.iter().for_each(|source| source.add(vec![rows()]).unwrap());
    let united = |first: usize, second: usize| {
        let (ctx, sources) = (ctx.clone(), sources.clone());
        async move {
            let first = ctx.read_stream(sources[first].clone()).unwrap();
            first.union(ctx.read_stream(sources[second].clone()).unwrap()).unwrap()
        }
    };
    finish(to_the_end(united(0, 1).await, MemorySink::new(), dir.path())).await.unwrap();
    refused(to_the_end(united(1, 0).await, MemorySink::new(), dir.path()), &["another order"]).await;
    finish(to_the_end(united(0, 1).await, MemorySink::new(), dir.path())).await.unwrap();
}

/// A sink whose files the source would take is refused before anything is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_does_not_read_its_own_output() {
    let world = World::new();
    std::os::unix::fs::symlink(world.at("a"), world.at("link")).unwrap();
    let path = |name: &str| text(&world.at(name));
    let url = |name: &str| format!("file://{}", path(name));
    for (source, sink, partitioned, recursive, is_circle) in [
        (path("a"), path("a"), false, false, true),
        (path("a"), url("a"), false, false, true),
        (url("a"), path("a/"), false, false, true),
        (path("link"), path("a"), false, false, true),
        (path("a"), path("link"), false, false, true),
        (path("a"), path("a/out"), false, false, false),
        (path("a"), path("a/out"), false, true, true),
        (path("a"), path("a/k=out"), false, false, true),
        (path("a"), path("a"), true, false, true),
        (path("*"), path("out"), false, false, true),
        (path("a/*.json"), path("a"), false, false, true),
        (path("a/first*"), path("a"), false, false, false),
        (path("a"), path("out"), true, false, false),
    ] {
        let ctx = SessionContext::new();
        let files =
            FileSource::json(source.clone()).with_schema(event_schema().unwrap()).recursive_file_lookup(recursive);
        let stream = ctx.read_stream(files).unwrap().select_columns(&["k", "v"]).unwrap();
        let mut to = FileSink::json(sink.clone());
        if partitioned {
            to = to.partition_by(["k"]);
        }
        let checkpoint = tempfile::tempdir().unwrap();
        let started = to_the_end(stream, to, checkpoint.path()).start().await;
        let what = format!("{source} into {sink}, {partitioned} {recursive}");
        match started {
            Ok(query) => {
                query.await_termination().await.unwrap();
                assert!(!is_circle, "{what}: was started");
            }
            Err(error) => {
                assert!(is_circle, "{what}: {error}");
                assert_eq!(error.kind(), ErrorKind::InvalidQuery, "{what}: {error}");
                assert!(error.message().contains("its own output"), "{what}: {error}");
                assert_eq!(std::fs::read_dir(checkpoint.path()).unwrap().count(), 0, "{what}");
            }
        }
    }
    // Nor its checkpoint.
    let ctx = SessionContext::new();
    let files = FileSource::json(path("b")).with_schema(event_schema().unwrap()).recursive_file_lookup(true);
    let stream = ctx.read_stream(files).unwrap();
    let error = to_the_end(stream, MemorySink::new(), &world.at("b/checkpoint")).start().await.map(|_| ()).unwrap_err();
    assert!(error.message().contains("checkpoint files"), "{error}");
}
