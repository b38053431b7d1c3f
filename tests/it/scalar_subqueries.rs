//! Scalar subqueries over tables, or over nothing, in queries with and without state.

use serde_json::{Value, json};
use tidewater::prelude::*;
use tidewater::testing::StreamTest;

const EVENTS: [(&str, &str); 3] = [("ts", "timestamp"), ("k", "string"), ("v", "long")];

/// Two batches and a restart between them.
async fn answers(sql: &'static str, mode: OutputMode, first: Value, second: Value) {
    StreamTest::new(sql, async move |ctx| {
        ctx.sql("CREATE TABLE IF NOT EXISTS limits AS VALUES (1), (2)").await?.collect().await?;
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
            ctx.sql("CREATE TABLE IF NOT EXISTS limits AS VALUES (1), (2)").await?.collect().await?;
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
