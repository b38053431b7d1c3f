//! What changes from batch to batch, and not when a batch is run again: random numbers, the clock, predicates on both.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Float64Type;
use arrow::record_batch::RecordBatch;
use datafusion::datasource::MemTable;
use datafusion::prelude::*;
use serde_json::{Value, json};
use tidewater::prelude::*;
use tidewater::testing::oracle::row_lines;
use tidewater::testing::table;

use crate::job::{finish, text, to_the_end};

/// 2024-01-01T20:00:00 UTC.
const EVENING_MS: i64 = 1_704_139_200_000;
const HOUR_MS: i64 = 3_600_000;

/// Numbers from 0, so many.
fn numbers(count: usize) -> RecordBatch {
    let rows: Vec<Value> = (0..count).map(|v| json!([v])).collect();
    table::rows(&table::schema(&[("v", "long")]).unwrap(), &Value::Array(rows)).unwrap()
}

/// The rows, sorted, without quotes and blanks.
fn lines(rows: &[RecordBatch]) -> Vec<String> {
    row_lines(rows).unwrap().into_iter().map(|line| line.replace(" | ", "|").replace('"', "")).collect()
}

/// Runs `sql` over the stream `t` to its end, in the checkpoint at `folder`, and gives what came out by batch.
async fn run(folder: &Path, source: &MemorySource, sql: &str, partitions: usize) -> Vec<Vec<RecordBatch>> {
    let ctx = SessionContext::new();
    ctx.register_table("t", ctx.read_stream(source.clone()).unwrap().into_view()).unwrap();
    let limits: Vec<Value> = (0..50).map(|v| json!([v])).collect();
    let d = table::rows(&table::schema(&[("w", "long")]).unwrap(), &Value::Array(limits)).unwrap();
    ctx.register_table("d", Arc::new(MemTable::try_new(d.schema(), vec![vec![d]]).unwrap())).unwrap();
    let sink = MemorySink::new();
    let writer = to_the_end(ctx.sql(sql).await.unwrap(), sink.clone(), folder).partitions(partitions);
    finish(writer.output_mode(if sql.contains("GROUP BY") { OutputMode::Update } else { OutputMode::Append }))
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e}"));
    (0..2).filter_map(|batch| sink.batch(BatchId(batch))).collect()
}

/// Whatever draws gives the same rows when a batch is repeated: with other numbers of partitions and rows cut in another
/// way, and in another process's session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_batch_draws_the_same() {
    for sql in [
        "SELECT v, random() AS a, random() AS b, uuid() AS u FROM t WHERE random() < 0.5",
        "SELECT v, r FROM (SELECT v, rand() AS r FROM t) WHERE r < 0.5",
        "SELECT DISTINCT v FROM t WHERE random() < 0.5",
        "SELECT v FROM (SELECT v FROM t LIMIT 150) WHERE random() < 0.5",
        "SELECT v % 10 AS k, sum(random()) AS s, count(*) FILTER (WHERE random() < 0.5) AS n FROM t GROUP BY v % 10",
        "SELECT v FROM t JOIN d ON v % 50 = w AND random() < 0.5",
        "SELECT v, w FROM t LEFT JOIN d ON v % 50 = w AND random() < 0.5",
        "SELECT v FROM t JOIN (SELECT * FROM d WHERE random() < 0.5) ON v % 50 = w",
        "SELECT a.v, random() AS r FROM t a JOIN t b ON a.v = b.v AND random() < 0.5",
        "SELECT v, r, u FROM t JOIN (VALUES (0, random(), uuid()), (1, random(), uuid()), (2, 0.5, 'x')) AS x(k, r, u) \
         ON v % 3 = k",
        "SELECT v, r FROM t JOIN (SELECT 0 AS k, random() AS r) ON v % 3 = k",
        "SELECT v, r FROM t CROSS JOIN (SELECT unnest([random(), random()]) AS r)",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let rows = numbers(200);
        let source = MemorySource::new(rows.schema()).partitions(3).adds_per_batch(1);
        (0..2).for_each(|_| source.add(table::deal(&rows, 3).unwrap()).unwrap());
        let first = run(dir.path(), &source, sql, 3).await;
        assert_eq!(first.len(), 2, "{sql}");
        std::fs::remove_file(dir.path().join("commits/1")).unwrap();

        // The same rows of the same partitions, in smaller record batches.
        let cut = MemorySource::new(rows.schema()).partitions(3).adds_per_batch(1);
        for _ in 0..2 {
            let dealt = table::deal(&rows, 3).unwrap();
            let halves = dealt.iter().map(|rows| rows.slice(0, 7));
            let rests = dealt.iter().map(|rows| rows.slice(7, rows.num_rows() - 7));
            cut.add(halves.chain(rests).collect()).unwrap();
        }
        let again = run(dir.path(), &cut, sql, 5).await;
        assert_eq!(lines(again.last().unwrap()), lines(&first[1]), "{sql}");
        if !sql.contains("DISTINCT") && !sql.contains("LIMIT") && !sql.contains("a.v") {
            assert_ne!(lines(&first[0]), lines(&first[1]), "{sql}: every batch draws anew");
        }
    }
}

/// Rows, calls and batches draw values of their own, spread evenly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_and_calls_draw_values_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let rows = numbers(3_000);
    let source = MemorySource::new(rows.schema()).partitions(3).adds_per_batch(1);
    (0..2).for_each(|_| source.add(table::deal(&rows, 3).unwrap()).unwrap());
    let sql = "SELECT random() AS a, random() AS b, uuid() AS u FROM t";
    let all = run(dir.path(), &source, sql, 3).await.concat();
    let (mut numbers, mut uuids, mut sum) = (BTreeSet::new(), BTreeSet::new(), 0.0);
    for rows in &all {
        for column in [0, 1] {
            for value in rows.column(column).as_primitive::<Float64Type>().values() {
                assert!((0.0..1.0).contains(value));
                numbers.insert(value.to_bits());
                sum += value;
            }
        }
        for uuid in rows.column(2).as_string::<i32>().iter().flatten() {
            assert_eq!((uuid.len(), uuid.as_bytes()[14]), (36, b'4'), "{uuid}");
            uuids.insert(uuid.to_owned());
        }
    }
    assert_eq!((numbers.len(), uuids.len()), (12_000, 6_000));
    assert!((5_800.0..6_200.0).contains(&sum), "{sum}");
}

/// A query over `t` beside the table `d`, fed batch by batch, an hour between them, from 20:00 UTC on.
async fn hourly(ctx: SessionContext, sql: &str, batches: &[Value]) -> Vec<Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let schema = table::schema(&[("v", "long")]).unwrap();
    let source = MemorySource::new(Arc::clone(&schema)).adds_per_batch(1);
    ctx.register_table("t", ctx.read_stream(source.clone()).unwrap().into_view()).unwrap();
    // Until 20:30 and 21:30.
    let columns = table::schema(&[("w", "long"), ("till", "timestamp")]).unwrap();
    let rows = json!([[1, "2024-01-01T20:30:00Z"], [2, "2024-01-01T21:30:00Z"]]);
    let d = table::rows(&columns, &rows).unwrap();
    ctx.register_table("d", Arc::new(MemTable::try_new(d.schema(), vec![vec![d]]).unwrap())).unwrap();
    let (sink, clock) = (MemorySink::new(), ManualClock::at(EVENING_MS));
    let mode = if sql.contains("GROUP BY") { OutputMode::Update } else { OutputMode::Append };
    let start = || async {
        let stream = ctx.sql(sql).await.unwrap();
        let writer = stream.write_stream(sink.clone()).checkpoint(text(dir.path())).durable(false).partitions(2);
        writer.output_mode(mode).clock(Arc::new(clock.clone())).start().await.unwrap_or_else(|e| panic!("{sql}: {e}"))
    };
    let query = start().await;
    for rows in batches {
        source.add(vec![table::rows(&schema, rows).unwrap()]).unwrap();
        query.process_all_available().await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        clock.advance_ms(HOUR_MS);
    }
    query.stop().await.unwrap();
    (0..batches.len() as u64).map(|batch| lines(&sink.batch(BatchId(batch)).unwrap_or_default())).collect()
}

/// What is kept of a table is not what it looked like in the first batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_goes_on_beside_a_table() {
    let both = json!([[1], [2]]);
    for (sql, expected) in [
        ("SELECT v FROM t JOIN d ON v = w WHERE d.till > now()", [vec!["1", "2"], vec!["2"], vec![]]),
        ("SELECT v FROM t JOIN (SELECT * FROM d WHERE till > now()) ON v = w", [vec!["1", "2"], vec!["2"], vec![]]),
        (
            "SELECT v, w FROM t LEFT JOIN d ON v = w AND d.till > now()",
            [vec!["1|1", "2|2"], vec!["1|NULL", "2|2"], vec!["1|NULL", "2|NULL"]],
        ),
        ("SELECT v FROM t WHERE v IN (SELECT w FROM d WHERE till > now())", [vec!["1", "2"], vec!["2"], vec![]]),
        ("SELECT v FROM t WHERE v NOT IN (SELECT w FROM d WHERE till > now())", [vec![], vec!["1"], vec!["1", "2"]]),
        (
            "SELECT v FROM t JOIN (VALUES (1, now()), (2, now() + INTERVAL '1 hour')) AS x(k, at) ON v = k \
             WHERE at <= TIMESTAMP '2024-01-01T21:00:00'",
            [vec!["1", "2"], vec!["1"], vec![]],
        ),
        ("SELECT v FROM t, d WHERE till > now() AND v < w", [vec!["1"], vec!["1"], vec![]]),
        ("SELECT v FROM t WHERE v <= (SELECT count(*) FROM d WHERE till > now())", [vec!["1", "2"], vec!["1"], vec![]]),
        (
            "SELECT v FROM t JOIN (SELECT w, count(*) AS n FROM d WHERE till > now() GROUP BY w) ON v = w LIMIT 3",
            [vec!["1", "2"], vec!["2"], vec![]],
        ),
    ] {
        let sql_in = sql.replace("GROUP BY", "group by");
        let found = hourly(SessionContext::new(), &sql_in, &[both.clone(), both.clone(), both.clone()]).await;
        assert_eq!(found, expected, "{sql}");
    }
}

/// A predicate that holds from 20:30 on, above what remembers rows: what came before was taken all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_predicate_on_time_does_not_sink_below_what_remembers() {
    let late = "now() > TIMESTAMP '2024-01-01T20:30:00'";
    let batches = [json!([[1], [2]]), json!([[2], [3], [4]])];
    for (sql, expected) in [
        ("SELECT v FROM (SELECT v FROM t LIMIT 3)", vec!["2"]),
        ("SELECT v FROM (SELECT DISTINCT v FROM t)", vec!["3", "4"]),
        ("SELECT v, n FROM (SELECT v, count(*) AS n FROM t GROUP BY v)", vec!["2|2", "3|1", "4|1"]),
        ("SELECT n FROM (SELECT count(*) AS n FROM t GROUP BY 'one')", vec!["5"]),
        ("SELECT a.v FROM t a JOIN t b ON a.v = b.v - 2", vec!["1", "2", "2"]),
    ] {
        let sql = format!("{sql} WHERE {late}");
        let found = hourly(SessionContext::new(), &sql, &batches).await;
        assert_eq!(found, [vec![], expected], "{sql}");
    }
}

/// As DataFusion answers in a batch: the date and the time of day are those of the session's zone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clock_shows_the_time_of_the_session() {
    let sql = "SELECT CAST(current_date() AS VARCHAR) AS a, CAST(today() AS VARCHAR) AS b, \
               CAST(current_time() AS VARCHAR) AS c, CAST(CAST(now() AS BIGINT) / 1000000000 AS BIGINT) AS d FROM t";
    for (zone, expected) in [
        (None, "2024-01-01|2024-01-01|20:00:00|1704139200"),
        (Some("Asia/Tokyo"), "2024-01-02|2024-01-02|05:00:00|1704139200"),
        (Some("-21:00"), "2023-12-31|2023-12-31|23:00:00|1704139200"),
    ] {
        let mut config = SessionConfig::new();
        config.options_mut().execution.time_zone = zone.map(str::to_owned);
        let found = hourly(SessionContext::new_with_config(config), sql, &[json!([[1]])]).await;
        assert_eq!(found, [vec![expected]], "{zone:?}");
    }
}
