//! Scalar subqueries over tables, or over nothing, in queries with and without state.

use std::sync::Arc;

use arrow::array::Int64Array;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use datafusion::datasource::MemTable;
use datafusion::prelude::*;
use serde_json::{Value, json};
use tidewater::prelude::*;
use tidewater::testing::{StreamTest, table};

use crate::job::finish;

const EVENTS: [(&str, &str); 3] = [("ts", "timestamp"), ("k", "string"), ("v", "long")];

/// The tables: `limits` with two rows, and `strict`, whose only column `w` is NOT NULL.
async fn tables(ctx: &SessionContext) -> Result<()> {
    ctx.sql("CREATE TABLE IF NOT EXISTS limits AS VALUES (1), (2)").await?.collect().await?;
    let schema = Arc::new(Schema::new(vec![Field::new("w", DataType::Int64, false)]));
    let rows = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(Int64Array::from(vec![3, 5]))])?;
    ctx.deregister_table("strict")?;
    ctx.register_table("strict", Arc::new(MemTable::try_new(schema, vec![vec![rows]])?))?;
    Ok(())
}

/// Two batches and a restart between them.
async fn answers(sql: &'static str, mode: OutputMode, first: Value, second: Value) {
    StreamTest::new(sql, async move |ctx| {
        tables(ctx).await?;
        Ok(ctx.sql(sql).await?)
    })
    .configure(move |writer| writer.output_mode(mode))
    .source("s", &EVENTS)
    .add("s", json!([["2024-01-01T00:00:00Z", "a", 1], ["2024-01-01T00:00:01Z", "b", 3]]))
    .process()
    .expect_new(first)
    .restart()
    .add("s", json!([["2024-01-01T00:00:02Z", "a", 5], ["2024-01-01T00:00:03Z", "c", 2]]))
    .process()
    .expect_new(second)
    .run()
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_and_above_operators_with_state() {
    let update = OutputMode::Update;
    // In a filter below, above, in a projection, in the argument of an aggregate, over no table at all.
    answers(
        "SELECT k, sum(v) FROM s WHERE v > (SELECT 1) GROUP BY k",
        update,
        json!([["b", 3]]),
        json!([["a", 5], ["c", 2]]),
    )
    .await;
    answers(
        "SELECT k, sum(v) FROM s GROUP BY k HAVING sum(v) > (SELECT max(column1) FROM limits)",
        update,
        json!([["b", 3]]),
        json!([["a", 6]]),
    )
    .await;
    answers(
        "SELECT k, sum(v) + (SELECT max(column1) FROM limits) FROM s GROUP BY k",
        update,
        json!([["a", 3], ["b", 5]]),
        json!([["a", 8], ["c", 4]]),
    )
    .await;
    answers(
        "SELECT k, sum(v * (SELECT max(column1) FROM limits)) FROM s GROUP BY k",
        update,
        json!([["a", 2], ["b", 6]]),
        json!([["a", 12], ["c", 4]]),
    )
    .await;
    answers(
        "SELECT DISTINCT k FROM s WHERE v >= (SELECT max(column1) FROM limits WHERE column1 < (SELECT 2))",
        OutputMode::Append,
        json!([["a"], ["b"]]),
        json!([["c"]]),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_state_and_without_rows() {
    answers(
        "SELECT k, v + (SELECT min(column1) FROM limits) FROM s WHERE v > (SELECT 1)",
        OutputMode::Append,
        json!([["b", 4]]),
        json!([["a", 6], ["c", 3]]),
    )
    .await;
    // Of no row: NULL.
    answers(
        "SELECT k, (SELECT max(column1) FROM limits WHERE column1 > 7) FROM s",
        OutputMode::Append,
        json!([["a", null], ["b", null]]),
        json!([["a", null], ["c", null]]),
    )
    .await;
}

/// More than one row is no scalar: an error that says so, not a row for each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_rows() {
    for sql in [
        "SELECT k, (SELECT column1 FROM limits) FROM s",
        "SELECT k, sum(v) FROM s WHERE v > (SELECT column1 FROM limits) GROUP BY k",
    ] {
        StreamTest::new(sql, async move |ctx| {
            tables(ctx).await?;
            Ok(ctx.sql(sql).await?)
        })
        .configure(|writer| writer.output_mode(OutputMode::Update))
        .source("s", &EVENTS)
        .add("s", json!([["2024-01-01T00:00:00Z", "a", 1]]))
        .process()
        .expect_failure(ErrorKind::BadInput, "more than one row")
        .run()
        .await;
    }
}

/// NULL may come of a column that is NOT NULL, and nothing that is asked about it is answered without asking.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_no_row_though_the_column_is_not_null() {
    let append = OutputMode::Append;
    answers("SELECT k FROM s WHERE v > (SELECT w FROM strict WHERE false)", append, json!([]), json!([])).await;
    answers("SELECT k FROM s WHERE v > (SELECT w FROM strict WHERE w > 7)", append, json!([]), json!([])).await;
    answers("SELECT k FROM s WHERE v > (SELECT w FROM strict WHERE w = 3)", append, json!([]), json!([["a"]])).await;
    for value in ["SELECT w FROM strict WHERE w > 7", "SELECT w FROM strict WHERE false", "SELECT 1 WHERE false"] {
        let of_value = |sql: &str| -> &'static str { Box::leak(sql.replace("{x}", value).into_boxed_str()) };
        answers(of_value("SELECT k FROM s WHERE ({x}) IS NOT NULL"), append, json!([]), json!([])).await;
        answers(
            of_value("SELECT k, ({x}) AS x, ({x}) IS NULL AS y, coalesce(({x}), 9) + 1 AS z FROM s"),
            append,
            json!([["a", null, true, 10], ["b", null, true, 10]]),
            json!([["a", null, true, 10], ["c", null, true, 10]]),
        )
        .await;
        answers(
            of_value("SELECT ({x}) AS x, k, sum(v + ({x})) AS y, count(*) AS n FROM s GROUP BY ({x}), k"),
            OutputMode::Update,
            json!([[null, "a", null, 1], [null, "b", null, 1]]),
            json!([[null, "a", null, 2], [null, "c", null, 1]]),
        )
        .await;
        answers(
            of_value("SELECT DISTINCT k, ({x}) AS x FROM s"),
            append,
            json!([["a", null], ["b", null]]),
            json!([["c", null]]),
        )
        .await;
    }
    // One that depends on the row.
    answers(
        "SELECT k, (SELECT count(*) FROM strict WHERE w = s.v) AS n, (SELECT max(w) FROM strict WHERE w = s.v) AS w FROM s",
        append,
        json!([["a", 0, null], ["b", 1, 3]]),
        json!([["a", 1, 5], ["c", 0, null]]),
    )
    .await;
    answers(
        "SELECT k FROM s WHERE (SELECT max(w) FROM strict WHERE w = s.v) IS NOT NULL",
        append,
        json!([["b"]]),
        json!([["a"]]),
    )
    .await;
}

/// What comes out says that it may be NULL; so it does in a batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_output_may_be_null() {
    let sql =
        "SELECT k, (SELECT w FROM strict WHERE w > 7) AS x, (SELECT w FROM strict WHERE w > 7) IS NULL AS y FROM s";
    let ctx = SessionContext::new();
    tables(&ctx).await.unwrap();
    let schema = table::schema(&EVENTS).unwrap();
    let rows = table::rows(&schema, &json!([["2024-01-01T00:00:00Z", "a", 1]])).unwrap();
    let (source, sink) = (MemorySource::new(Arc::clone(&schema)), MemorySink::new());
    source.add(vec![rows.clone()]).unwrap();
    ctx.register_stream("s", source).unwrap();
    let stream = ctx.sql(sql).await.unwrap().write_stream(sink.clone());
    finish(stream.trigger(Trigger::AvailableNow)).await.unwrap();

    ctx.deregister_table("s").unwrap();
    ctx.register_table("s", Arc::new(MemTable::try_new(schema, vec![vec![rows]]).unwrap())).unwrap();
    let batch = ctx.sql(sql).await.unwrap().collect().await.unwrap();
    for rows in [sink.batches(), batch] {
        assert!(rows[0].schema().field(1).is_nullable());
        assert!(rows[0].column(1).is_null(0));
        assert_eq!(
            rows[0].column(2).as_ref(),
            &arrow::array::BooleanArray::from(vec![true]) as &dyn arrow::array::Array
        );
    }
}

/// When this fails, `OrNull` in `plan::subqueries` can go.
#[tokio::test]
async fn datafusion_still_takes_the_columns_nullability_for_the_subquerys() {
    let ctx = SessionContext::new();
    tables(&ctx).await.unwrap();
    let answer = ctx.sql("SELECT (SELECT w FROM strict WHERE w > 7) IS NULL").await.unwrap().collect().await.unwrap();
    let right = arrow::array::BooleanArray::from(vec![true]);
    assert_ne!(
        answer[0].column(0).as_ref(),
        &right as &dyn arrow::array::Array,
        "https://github.com/apache/datafusion/issues/24513 is fixed"
    );
}

/// Beside a subquery that reads a stream, where all become joins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_one_that_reads_a_stream() {
    let complete = OutputMode::Complete;
    let with = |value: &str| -> &'static str {
        let sql = "SELECT k, count(*) AS n, (SELECT max(v) FROM s) AS top, ({x}) AS x FROM s GROUP BY k";
        Box::leak(sql.replace("{x}", value).into_boxed_str())
    };
    for (value, x) in [
        ("SELECT max(column1) FROM limits", json!(2)),
        ("SELECT column1 FROM limits WHERE column1 = 1", json!(1)),
        ("SELECT column1 FROM limits ORDER BY column1 DESC LIMIT 1", json!(2)),
        ("SELECT DISTINCT column1 - column1 FROM limits", json!(0)),
        ("SELECT w FROM strict WHERE w > 7", Value::Null),
        ("SELECT 7", json!(7)),
    ] {
        answers(
            with(value),
            complete,
            json!([["a", 1, 3, x], ["b", 1, 3, x]]),
            json!([["a", 2, 5, x], ["b", 1, 5, x], ["c", 1, 5, x]]),
        )
        .await;
    }
    for sql in [
        with("SELECT column1 FROM limits"),
        with("SELECT w FROM strict"),
        with("SELECT count(*) FROM s GROUP BY k"),
        "SELECT k, count(*) FROM s GROUP BY k HAVING count(*) < (SELECT max(v) FROM s) + (SELECT column1 FROM limits)",
        // A predicate on the value does not choose among the rows.
        "SELECT k, count(*) FROM s WHERE (SELECT w FROM strict) > 4 GROUP BY k HAVING count(*) < (SELECT max(v) FROM s)",
    ] {
        StreamTest::new(sql, async move |ctx| {
            tables(ctx).await?;
            Ok(ctx.sql(sql).await?)
        })
        .configure(|writer| writer.output_mode(OutputMode::Complete))
        .source("s", &EVENTS)
        .add("s", json!([["2024-01-01T00:00:00Z", "a", 1], ["2024-01-01T00:00:00Z", "b", 1]]))
        .process()
        .expect_failure(ErrorKind::BadInput, "more than one row")
        .run()
        .await;
    }
}
