//! What is computed from an event time is none: rows are not late by it, and groups by it are never final.

use datafusion::prelude::*;
use serde_json::{Value, json};
use tidewater::prelude::*;
use tidewater::testing::StreamTest;

/// The stream `s`: the source, whose time `ts` has a watermark here.
async fn stream(ctx: &SessionContext) -> Result<()> {
    let rows = ctx.table("source").await?.with_watermark("ts", "1 second")?;
    ctx.deregister_table("s")?;
    ctx.register_table("s", rows.into_view())?;
    Ok(())
}

fn test(sql: &'static str, mode: OutputMode) -> StreamTest<impl AsyncFn(&SessionContext) -> Result<DataFrame>> {
    StreamTest::new(sql, async move |ctx| {
        stream(ctx).await?;
        ctx.streaming_sql(sql).await
    })
    .configure(move |writer| writer.output_mode(mode))
    .source("source", &[("ts", "timestamp"), ("v", "long")])
}

/// The first batch moves the watermark on; rows of the others are later than it, and what is computed from their times is not.
async fn answers(sql: &'static str, mode: OutputMode, new: [Value; 3]) {
    let [first, second, third] = new;
    test(sql, mode)
        .add("source", json!([["2024-01-01T10:00:00Z", 1], ["2024-01-01T12:00:00.250Z", 2]]))
        .process()
        .expect_new(first)
        .restart()
        .add("source", json!([["2024-01-01T12:00:00.500Z", 3], ["2024-01-01T13:00:00Z", 4]]))
        .process()
        .expect_new(second)
        .restart()
        .add("source", json!([["2024-01-01T12:59:59.100Z", 5]]))
        .process()
        .expect_new(third)
        .run()
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_is_late_by_a_day_or_a_second() {
    for (key, day) in [
        ("CAST(ts AS DATE)", "2024-01-01"),
        ("TRY_CAST(ts AS DATE)", "2024-01-01"),
        ("arrow_cast(ts, 'Date32')", "2024-01-01"),
        ("CAST(CAST(ts AS DATE) AS TIMESTAMP)", "2024-01-01T00:00:00"),
    ] {
        let sql = format!("SELECT CAST({key} AS VARCHAR) AS day, count(*), sum(v) FROM s GROUP BY {key}");
        let new = [json!([[day, 2, 3]]), json!([[day, 4, 10]]), json!([[day, 5, 15]])];
        answers(Box::leak(sql.into_boxed_str()), OutputMode::Update, new).await;
    }
    let sql = "SELECT CAST(date_part('second', t) AS BIGINT), count(*) FROM (SELECT CAST(ts AS TIMESTAMP(0)) AS t FROM s) \
               GROUP BY t";
    answers(sql, OutputMode::Update, [json!([[0, 1], [0, 1]]), json!([[0, 2], [0, 1]]), json!([[59, 1]])]).await;
}

/// Text and numbers once ended the query in its first batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_as_text_and_numbers_are_keys() {
    let sql = "SELECT DISTINCT substr(ts, 12, 2) FROM (SELECT DISTINCT CAST(ts AS VARCHAR) AS ts FROM s)";
    answers(sql, OutputMode::Append, [json!([["10"], ["12"]]), json!([["13"]]), json!([])]).await;
    let sql = "SELECT CAST(ts AS BIGINT) % 1000000000, count(*) FROM s GROUP BY CAST(ts AS BIGINT)";
    let new = [json!([[200000000, 1], [400250000, 1]]), json!([[400500000, 1], [0, 1]]), json!([[999100000, 1]])];
    answers(sql, OutputMode::Update, new).await;
}

/// Append mode says so, where it once lost rows; a cast that changes no time is still that time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_by_what_is_computed_are_never_final() {
    for sql in [
        "SELECT CAST(ts AS DATE), count(*) FROM s GROUP BY CAST(ts AS DATE)",
        "SELECT CAST(ts AS TIMESTAMP(0)), count(*) FROM s GROUP BY CAST(ts AS TIMESTAMP(0))",
        "SELECT window.start, count(*) FROM s GROUP BY window(CAST(CAST(ts AS DATE) AS TIMESTAMP), '1 hour')",
        "SELECT window.start, count(*) FROM s GROUP BY window(CAST(CAST(ts AS DATE) AS TIMESTAMP), '2 hours', '1 hour')",
        "SELECT t, count(*) FROM (SELECT first_value(ts ORDER BY v) AS t FROM s GROUP BY window(ts, '1 hour')) GROUP BY t",
    ] {
        let refused = "no key of this aggregation has a watermark";
        test(sql, OutputMode::Append).start().expect_failure(ErrorKind::Unsupported, refused).run().await;
    }
    let sql = "SELECT CAST(date_part('hour', t) AS BIGINT), count(*) FROM (SELECT arrow_cast(ts, 'Timestamp(Nanosecond, None)') \
               AS t FROM s) GROUP BY t";
    test(sql, OutputMode::Append)
        .add("source", json!([["2024-01-01T10:00:00Z", 1], ["2024-01-01T12:00:00Z", 2]]))
        .process()
        .expect_new(json!([[10, 1]]))
        .run()
        .await;
}

/// A UNION has event times where every branch has, in the same way: DataFusion marks all rows where one branch is marked, and the
/// starts of windows with the length of whichever branch comes last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn branches_of_a_union_have_to_agree() {
    let both = "SELECT ts AS t FROM s UNION ALL SELECT ts - INTERVAL '6 hours' FROM s";
    let sql =
        format!("SELECT CAST(date_part('hour', t) AS BIGINT), count(*) FROM ({both}) GROUP BY date_part('hour', t), t");
    let new = [
        json!([[10, 1], [12, 1], [4, 1], [6, 1]]),
        json!([[12, 1], [13, 1], [6, 1], [7, 1]]),
        json!([[12, 1], [6, 1]]),
    ];
    answers(Box::leak(sql.into_boxed_str()), OutputMode::Update, new).await;
    let starts = |long: &str, short: &str| {
        format!(
            "SELECT t, count(*) FROM (SELECT window.start AS t FROM s GROUP BY window(ts, '{long}') UNION ALL \
             SELECT window.start FROM s GROUP BY window(ts, '{short}')) GROUP BY t"
        )
    };
    for sql in [
        format!("SELECT t, count(*) FROM ({both}) GROUP BY t"),
        "SELECT t, count(*) FROM (SELECT CAST(ts AS DATE) AS t FROM s UNION ALL SELECT ts FROM s) GROUP BY t"
            .to_owned(),
        starts("1 hour", "1 minute"),
        starts("1 minute", "1 hour"),
    ] {
        let refused = "no key of this aggregation has a watermark";
        let sql = Box::leak(sql.into_boxed_str());
        test(sql, OutputMode::Append).start().expect_failure(ErrorKind::Unsupported, refused).run().await;
    }
    // DataFusion makes the union anew, without `w`, after it has made casts of the functions.
    let second = "arrow_cast(arrow_cast(ts, 'Timestamp(Second, None)'), 'Timestamp(Microsecond, Some(\"UTC\"))')";
    let long_ago = "arrow_cast('2020-01-01T00:00:00Z', 'Timestamp(Microsecond, Some(\"UTC\"))')";
    let sql = format!(
        "SELECT CAST(date_part('year', t) AS BIGINT), v FROM (SELECT DISTINCT t, v FROM (\
         SELECT {long_ago} AS t, v, 1 AS w FROM s UNION ALL SELECT {second}, v, v + 1 FROM s))"
    );
    let new = [
        json!([[2020, 1], [2020, 2], [2024, 1], [2024, 2]]),
        json!([[2020, 3], [2020, 4], [2024, 3], [2024, 4]]),
        json!([[2020, 5], [2024, 5]]),
    ];
    answers(Box::leak(sql.into_boxed_str()), OutputMode::Append, new).await;
    // Windows of several lengths are event times: their ends say when.
    let sql = "SELECT sum(n) FROM (SELECT window AS w, count(*) AS n FROM s GROUP BY window(ts, '1 hour') UNION ALL \
               SELECT window, count(*) FROM s GROUP BY window(ts, '1 minute')) GROUP BY w";
    test(sql, OutputMode::Append)
        .add("source", json!([["2024-01-01T10:00:00Z", 1], ["2024-01-01T12:00:00.250Z", 2]]))
        .process()
        .expect_new(json!([[1], [1]]))
        .add("source", json!([["2024-01-01T12:00:00.500Z", 3], ["2024-01-01T13:00:00Z", 4]]))
        .process()
        .expect_new(json!([[2]]))
        .run()
        .await;
}
