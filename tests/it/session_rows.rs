//! Sessions of a stream: types of keys and values after coercion, rows without session, many sessions of one key; and
//! windows where they have no value.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray, TimestampMicrosecondArray, TimestampSecondArray, UInt64Array};
use arrow::record_batch::RecordBatch;
use datafusion::prelude::*;
use tidewater::checkpoint::memory_store;
use tidewater::prelude::*;
use tidewater::testing::oracle::row_lines;
use tidewater::testing::{batch_table, table};

use crate::job::finish;

/// Rows of a second, a key, a number and a gap.
fn rows(rows: &[(Option<i64>, i64, i64, Option<&str>)]) -> RecordBatch {
    let ts: TimestampMicrosecondArray = rows.iter().map(|row| Some(row.0? * 1_000_000)).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("ts", Arc::new(ts.with_timezone("UTC"))),
        ("k", Arc::new(rows.iter().map(|row| Some(row.1)).collect::<Int64Array>())),
        ("x", Arc::new(rows.iter().map(|row| Some(row.2)).collect::<Int64Array>())),
        ("u", Arc::new(rows.iter().map(|row| Some(row.2 as u64)).collect::<UInt64Array>())),
        ("text", Arc::new(rows.iter().map(|row| Some(format!("t{}", row.2))).collect::<StringArray>())),
        ("gap", Arc::new(rows.iter().map(|row| row.3).collect::<StringArray>())),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap()
}

/// A stream over these rows, each add a batch and a run of its own, in complete mode. Returns the last answer, and how many
/// rows had no session.
async fn streamed(sql: &str, adds: &[RecordBatch]) -> Result<(Vec<String>, u64)> {
    let source = MemorySource::new(adds[0].schema()).partitions(2).adds_per_batch(1);
    let (store, sink) = (memory_store(), MemorySink::new());
    let mut without = 0;
    for rows in adds {
        source.add(table::deal(rows, 2)?)?;
        let ctx = SessionContext::new();
        ctx.register_stream("t", source.clone())?;
        let query = ctx.streaming_sql(sql).await?.write_stream(sink.clone()).output_mode(OutputMode::Complete);
        let query = query.checkpoint_store(Arc::clone(&store)).partitions(2).trigger(Trigger::AvailableNow);
        let query = finish(query).await?;
        for progress in query.recent_progress() {
            without += progress.state_operators.iter().map(|o| o.num_rows_dropped_without_session).sum::<u64>();
        }
    }
    Ok((row_lines(&sink.batch(sink.last_batch().unwrap()).unwrap())?, without))
}

async fn batch(sql: &str, adds: &[RecordBatch]) -> Result<Vec<String>> {
    let ctx = SessionContext::new();
    let table = batch_table(&ctx, adds[0].schema(), adds.to_vec())?;
    ctx.register_table("t", table.into_view())?;
    row_lines(&ctx.streaming_sql(sql).await?.collect().await?)
}

/// Arithmetic and choices between types, as values and as keys, in a session as in a batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn types_are_those_after_coercion() {
    let adds = [
        rows(&[(Some(0), 1, 5, None), (Some(1), 0, 5, None), (Some(2), 1, 4_141, None)]),
        rows(&[(Some(3), 1, 2, None), (Some(100), 0, 7, None)]),
    ];
    for value in [
        "max(CASE WHEN k = 0 THEN 1 ELSE 0.5 END)",
        "sum(CASE WHEN k = 0 THEN 0 ELSE x / 4.0 END)",
        "max(CASE WHEN k = 0 THEN 1 ELSE text END)",
        "max(COALESCE(NULLIF(x, 5), 0.25))",
        "sum(u / 2)",
        "sum(u * 2.5)",
        "max(u - 6.5)",
        "sum(CAST(x AS DECIMAL(9, 2)) / 3)",
        "max(x + 0.5) FILTER (WHERE u < 5.5)",
        "count(DISTINCT CASE WHEN k = 0 THEN x ELSE 0.5 END)",
        "first_value(CASE WHEN k = 0 THEN x ELSE 0.5 END ORDER BY ts)",
    ] {
        let sql = format!("SELECT k, {value} AS a FROM t GROUP BY session_window(ts, '5 seconds'), k");
        assert_eq!(streamed(&sql, &adds).await.unwrap().0, batch(&sql, &adds).await.unwrap(), "{sql}");
    }
    for key in ["u * 2", "u / 2.0", "CASE WHEN k = 0 THEN 1 ELSE 0.5 END", "COALESCE(NULLIF(x, 5), 0.5)", "x + 0.5"] {
        let sql = format!(
            "SELECT {key} AS a, count(*) AS n, sum(x) AS s FROM t GROUP BY session_window(ts, '5 seconds'), {key}"
        );
        assert_eq!(streamed(&sql, &adds).await.unwrap().0, batch(&sql, &adds).await.unwrap(), "{sql}");
        let windows = format!("SELECT {key} AS a, count(*) AS n FROM t GROUP BY window(ts, '5 seconds'), {key}");
        assert_eq!(streamed(&windows, &adds).await.unwrap().0, batch(&windows, &adds).await.unwrap(), "{windows}");
        let plain = format!("SELECT {key} AS a, count(*) AS n FROM t GROUP BY {key}");
        assert_eq!(streamed(&plain, &adds).await.unwrap().0, batch(&plain, &adds).await.unwrap(), "{plain}");
    }
    let having = "SELECT k, avg(x) AS a FROM t GROUP BY session_window(ts, '5 seconds'), k \
                  HAVING max(CASE WHEN k = 0 THEN 1 ELSE 0.5 END) < 0.75";
    assert_eq!(streamed(having, &adds).await.unwrap().0, batch(having, &adds).await.unwrap());
    let (found, _) = streamed(having, &adds).await.unwrap();
    assert_eq!(found.len(), 1);
}

/// The same through the DataFrame, where nothing has been coerced before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unsigned_half_in_a_dataframe() {
    let source = MemorySource::new(rows(&[]).schema()).partitions(2);
    source.add(vec![rows(&[(Some(0), 1, 5, None), (Some(1), 1, 1, None)])]).unwrap();
    let ctx = SessionContext::new();
    let sink = MemorySink::new();
    let session = session_window(col("ts"), "5 seconds");
    let value = datafusion::functions_aggregate::expr_fn::max(col("u") / lit(10_i64)).alias("a");
    let half = datafusion::functions_aggregate::expr_fn::sum(col("u") * lit(0.1)).alias("b");
    let frame = ctx.read_stream(source).unwrap().aggregate(vec![session, col("k")], vec![value, half]).unwrap();
    let query =
        frame.select_columns(&["k", "a", "b"]).unwrap().write_stream(sink.clone()).output_mode(OutputMode::Complete);
    finish(query.checkpoint_store(memory_store()).trigger(Trigger::AvailableNow)).await.unwrap();
    assert_eq!(row_lines(&sink.batches()).unwrap(), ["1 | 0.5000 | 0.6"]);
}

/// A value of the data is no reason to end a query: such rows have no session, and are counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_session_are_dropped_and_counted() {
    let good = (Some(0), 1, 10, Some("5 seconds"));
    for gap in [Some("0 seconds"), Some("-5 seconds"), None, Some("soon"), Some("1 month"), Some("")] {
        let adds =
            [rows(&[good, (Some(2), 1, 100, gap)]), rows(&[(Some(4), 1, 1, Some("5 seconds")), (Some(3), 2, 7, gap)])];
        let sql = "SELECT k, sum(x) AS a FROM t GROUP BY session_window(ts, gap), k";
        assert_eq!(streamed(sql, &adds).await.unwrap(), (vec!["1 | 11".to_owned()], 2), "{gap:?}");
        assert_eq!(batch(sql, &adds).await.unwrap(), ["1 | 11"], "{gap:?}");
    }
    let interval =
        "CASE WHEN x = 100 THEN INTERVAL '0 seconds' WHEN x = 7 THEN INTERVAL '1 month' ELSE INTERVAL '5 seconds' END";
    let adds = [rows(&[good, (Some(2), 1, 100, None), (Some(3), 1, 7, None), (None, 1, 9, None)])];
    let sql = format!("SELECT k, sum(x) AS a FROM t GROUP BY session_window(ts, {interval}), k");
    assert_eq!(streamed(&sql, &adds).await.unwrap(), (vec!["1 | 10".to_owned()], 3));
}

/// Thousands of sessions of one key, read from files again, bridged and taken away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sessions_of_one_key() {
    const SESSIONS: i64 = 20_000;
    let every = |step: i64, first: i64| -> Vec<_> {
        (0..SESSIONS / step).map(|i| (Some(first + i * step * 10), 1, 1, None)).collect()
    };
    // Of every hundred seconds: ten sessions, then two of them become one, then nothing more.
    let adds = [rows(&every(1, 0)), rows(&every(10, 5)), rows(&[(Some(-1_000), 2, 1, None)])];
    let sql = "SELECT k, count(*) AS sessions, sum(n) AS rows FROM (SELECT k, count(*) AS n FROM t \
               GROUP BY session_window(ts, '6 seconds'), k) GROUP BY k";
    let expected = batch(sql, &adds).await.unwrap();
    assert_eq!(expected, ["1 | 18000 | 22000", "2 | 1 | 1"]);
    let sessions = "SELECT session_window.start AS s, session_window.end AS e, k, count(*) AS n FROM t \
                    GROUP BY session_window(ts, '6 seconds'), k";
    assert_eq!(streamed(sessions, &adds).await.unwrap().0, batch(sessions, &adds).await.unwrap());
}

/// A row has several sliding windows, and a session is made by rows together: outside of GROUP BY neither is anything, which
/// is said before a row is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_without_group_by_are_refused_at_once() {
    let adds = [rows(&[(Some(0), 1, 1, None)])];
    for sql in [
        "SELECT window(ts, '10 seconds', '5 seconds') AS w FROM t",
        "SELECT k FROM t WHERE window(ts, '10 seconds', '5 seconds')['start'] < now()",
        "SELECT session_window(ts, '10 seconds') AS w FROM t",
        "SELECT k, max(session_window(ts, '10 seconds')) AS w FROM t GROUP BY k",
    ] {
        for mode in [OutputMode::Append, OutputMode::Complete, OutputMode::Update] {
            let source = MemorySource::new(adds[0].schema());
            let ctx = SessionContext::new();
            ctx.register_stream("t", source).unwrap();
            let started = match ctx.sql(sql).await {
                Ok(frame) => {
                    let query =
                        frame.write_stream(MemorySink::new()).output_mode(mode).checkpoint_store(memory_store());
                    query.start().await.map(|_| ())
                }
                Err(error) => Err(error.into()),
            };
            let error = started.expect_err(sql);
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{sql}: {error}");
        }
        let error = batch(sql, &adds).await.expect_err(sql);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{sql}: {error}");
    }
    let tumbling = "SELECT window(ts, '10 seconds')['end'] AS e, k FROM t";
    assert_eq!(batch(tumbling, &adds).await.unwrap(), ["1970-01-01T00:00:10Z | 1"]);
}

/// A time that microseconds cannot tell is no event time: the row passes, and is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_out_of_range_are_counted() {
    let ts: ArrayRef =
        Arc::new(TimestampSecondArray::from(vec![Some(100), Some(i64::MAX / 1_000), None]).with_timezone("UTC"));
    let rows = RecordBatch::try_from_iter_with_nullable(vec![("ts", ts, true)]).unwrap();
    let source = MemorySource::new(rows.schema());
    source.add(vec![rows]).unwrap();
    let ctx = SessionContext::new();
    let frame = ctx.read_stream(source).unwrap().with_watermark("ts", "1 second").unwrap();
    let sink = MemorySink::new();
    let query =
        finish(frame.write_stream(sink.clone()).checkpoint_store(memory_store()).trigger(Trigger::AvailableNow)).await;
    let progress = query.unwrap().recent_progress();
    let said: Vec<_> = progress.iter().filter_map(|progress| progress.event_time.get("outOfRange").cloned()).collect();
    assert_eq!(said, ["1"]);
    assert_eq!(progress[0].event_time["max"], "1970-01-01T00:01:40.000Z");
    assert_eq!(sink.batches().iter().map(RecordBatch::num_rows).sum::<usize>(), 3);
}
