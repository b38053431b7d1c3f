//! One job per stateful operator, and some that chain them: four keys and null, rows out of order and some of them
//! twice, a last row that closes all.

use datafusion::functions::core::expr_ext::FieldAccessor;
use datafusion::prelude::*;
use serde_json::{Value, json};
use tidewater::prelude::*;

use super::arrivals::{Arrivals, EVENTS, LEFT, RIGHT, after_first, input, time};
use super::{Input, Job, Reading};

/// Of event time: twice as much as the rows need.
const DELAY: &str = "20 seconds";
const DISORDER_MS: u64 = 10_000;
const STEP_MS: u64 = 3_000;
const KEYS: u64 = 4;

/// Rows that come together.
const ROWS: usize = 8;
/// And how often, before the closing row.
const ADDS: usize = 5;

/// How many rows the limited job passes.
const LIMIT: usize = 21;

/// All of them.
pub(crate) fn all() -> Vec<Job> {
    let mut all = vec![
        tumbling(ADDS),
        sliding_update(),
        window_complete(),
        aggregate_update(),
        aggregate_complete(),
        sessions(),
        deduplicate(),
        deduplicate_by_key(),
        deduplicate_within_watermark(),
        windows_of_windows(),
        join_then_windows(),
        deduplicate_then_windows(),
        union_then_windows(),
        limit(),
    ];
    all.extend(JOINS.map(join));
    all
}

/// Every way to join two streams.
pub(crate) const JOINS: [JoinType; 5] =
    [JoinType::Inner, JoinType::Left, JoinType::Right, JoinType::Full, JoinType::LeftSemi];

fn arriving(columns: &[(&str, &str)], seed: u64, adds: usize) -> Input {
    let mut arrivals = Arrivals::new(seed, KEYS, DISORDER_MS, STEP_MS);
    let rows = (0..adds).map(|_| (0..ROWS).map(|_| arrivals.row(columns.len())).collect()).collect();
    input(columns, rows)
}

fn job(
    name: &str,
    mode: OutputMode,
    reading: Reading,
    inputs: Vec<Input>,
    query: impl Fn(&SessionContext, &[DataFrame]) -> Result<DataFrame> + Send + Sync + 'static,
) -> Job {
    Job { name: name.to_owned(), mode, reading, inputs, query: Box::new(query), equals_batch: true }
}

/// A job in append mode over one source of events, whose times have a watermark.
fn append(name: &str, seed: u64, query: impl Fn(DataFrame) -> Result<DataFrame> + Send + Sync + 'static) -> Job {
    job(name, OutputMode::Append, Reading::Rows, vec![arriving(&EVENTS, seed, ADDS)], move |_, inputs| {
        query(inputs[0].clone().with_watermark("ts", DELAY)?)
    })
}

/// Groups by `keys`; every aggregate is SQL.
pub(crate) fn grouped(rows: DataFrame, keys: Vec<Expr>, aggregates: &[&str]) -> Result<DataFrame> {
    let aggregates: Vec<Expr> = aggregates.iter().map(|sql| Ok(rows.parse_sql_expr(sql)?)).collect::<Result<_>>()?;
    Ok(rows.aggregate(keys, aggregates)?)
}

/// Groups by a window (or session) and `k`. The window becomes two columns, and a third, `ts`, if its time is wanted.
pub(crate) fn by_window(
    rows: DataFrame,
    window: impl Into<Expr>,
    aggregates: &[&str],
    with_time: bool,
) -> Result<DataFrame> {
    let grouped = grouped(rows, vec![window.into().alias("w"), col("k")], aggregates)?;
    let others: Vec<Expr> = grouped.schema().columns().into_iter().skip(1).map(Expr::Column).collect();
    let mut columns = vec![];
    if with_time {
        columns.push(window_time(col("w")).alias("ts"));
    } else {
        columns.push(col("w").field("start").alias("window_start"));
        columns.push(col("w").field("end").alias("window_end"));
    }
    columns.extend(others);
    Ok(grouped.select(columns)?)
}

/// Joins where a condition holds, in SQL.
pub(crate) fn join_where(
    ctx: &SessionContext,
    left: DataFrame,
    right: DataFrame,
    how: JoinType,
    condition: &str,
) -> Result<DataFrame> {
    let condition = ctx.parse_sql_expr(condition, &left.schema().join(right.schema())?)?;
    Ok(left.join_on(right, how, [condition])?)
}

/// Within the watermark on a stream; a batch has none, and its copies are as near as the stream's.
pub(crate) fn without_near_copies(rows: DataFrame, columns: &[&str]) -> Result<DataFrame> {
    if rows.is_streaming() { rows.drop_duplicates_within_watermark(columns) } else { rows.drop_duplicates(columns) }
}

const AGGREGATES: [&str; 4] = ["count(*) AS n", "sum(v) AS total", "avg(x) AS mean", "count(DISTINCT v) AS different"];

/// With so many adds before the last.
pub(crate) fn tumbling(adds: usize) -> Job {
    let tumbling = append("tumbling windows, append", 1, |events| {
        by_window(events, window(col("ts"), "10 seconds"), &AGGREGATES, false)
    });
    Job { inputs: vec![arriving(&EVENTS, 1, adds)], ..tumbling }
}

pub(crate) fn sliding_update() -> Job {
    let sliding = append("sliding windows, update", 2, |events| {
        let window = window(col("ts"), "15 seconds").slide("6 seconds").offset("1 second");
        by_window(events, window, &["count(*) AS n", "array_agg(v ORDER BY v) AS vs", "max(x) AS top"], false)
    });
    Job { mode: OutputMode::Update, reading: Reading::LastByKey(3), ..sliding }
}

pub(crate) fn window_complete() -> Job {
    let windows = append("tumbling windows, complete", 3, |events| {
        by_window(events, window(col("ts"), "10 seconds"), &AGGREGATES, false)
    });
    Job { mode: OutputMode::Complete, ..windows }
}

pub(crate) fn aggregate_update() -> Job {
    let inputs = vec![arriving(&EVENTS, 4, ADDS)];
    job("aggregation, update", OutputMode::Update, Reading::LastByKey(2), inputs, |_, inputs| {
        let sign = when(col("v").lt(lit(0)), lit("negative")).otherwise(lit("positive"))?.alias("sign");
        grouped(inputs[0].clone(), vec![col("k"), sign], &AGGREGATES)
    })
}

pub(crate) fn aggregate_complete() -> Job {
    let inputs = vec![arriving(&EVENTS, 5, ADDS)];
    job("aggregation, complete", OutputMode::Complete, Reading::Rows, inputs, |_, inputs| {
        grouped(inputs[0].clone(), vec![col("k"), col("v")], &["count(*) AS n", "min(x) AS least"])
    })
}

pub(crate) fn sessions() -> Job {
    append("session windows, append", 6, |events| {
        by_window(events, session_window(col("ts"), "4 seconds"), &AGGREGATES, false)
    })
}

pub(crate) fn deduplicate() -> Job {
    append("deduplication with event time", 7, |events| events.drop_duplicates(&[]))
}

/// Never evicts its keys.
pub(crate) fn deduplicate_by_key() -> Job {
    append("deduplication by key", 8, |events| Ok(events.drop_duplicates(&["k", "v"])?.select_columns(&["k", "v"])?))
}

/// Each id comes again in the next add, which is near, and three adds later, when it has been forgotten.
pub(crate) fn deduplicate_within_watermark() -> Job {
    let row = |id: i64, second: i64| json!([time(after_first(second)), format!("id {id}"), second, 0.5]);
    let rows = |add: i64| -> Vec<Value> {
        let fresh = (0..4).map(|i| row(add % 3 * 4 + i, add * 30 + i));
        let again = (0..2).map(|i| row((add + 2) % 3 * 4 + i, add * 30 - 10 + i));
        fresh.chain(again).collect()
    };
    let adds = (1..=7).map(rows).collect();
    let within = append("deduplication within the watermark", 0, |events| {
        Ok(events.drop_duplicates_within_watermark(&["k"])?.select_columns(&["ts", "k", "v"])?)
    });
    Job { inputs: vec![input(&EVENTS, adds)], equals_batch: false, ..within }
}

const NEAR: &str = "lk = rk AND rts >= lts - INTERVAL '4 seconds' AND rts <= lts + INTERVAL '6 seconds'";

fn sides(seed: u64) -> Vec<Input> {
    vec![arriving(&LEFT, seed, ADDS), arriving(&RIGHT, seed + 100, ADDS)]
}

fn joined(ctx: &SessionContext, inputs: &[DataFrame], how: JoinType) -> Result<DataFrame> {
    let left = inputs[0].clone().with_watermark("lts", DELAY)?;
    let right = inputs[1].clone().with_watermark("rts", DELAY)?;
    join_where(ctx, left, right, how, NEAR)
}

pub(crate) fn join(how: JoinType) -> Job {
    let name = format!("{how} join of two streams");
    job(&name, OutputMode::Append, Reading::Rows, sides(9), move |ctx, inputs| joined(ctx, inputs, how))
}

pub(crate) fn windows_of_windows() -> Job {
    append("windows of windows", 10, |events| {
        let fine = window(col("ts"), "5 seconds");
        let fine = by_window(events, fine, &["count(*) AS n", "sum(v) AS total"], true)?;
        let coarse = window(col("ts"), "20 seconds").slide("10 seconds");
        by_window(fine, coarse, &["sum(n) AS rows_in", "max(total) AS top", "count(*) AS parts"], false)
    })
}

pub(crate) fn join_then_windows() -> Job {
    job("left outer join, then windows", OutputMode::Append, Reading::Rows, sides(11), |ctx, inputs| {
        let pairs = joined(ctx, inputs, JoinType::Left)?.select(vec![
            col("lts").alias("ts"),
            col("lk").alias("k"),
            col("lv"),
            col("rv"),
        ])?;
        let aggregates = ["count(*) AS n", "count(rv) AS matched", "sum(lv) AS total"];
        by_window(pairs, window(col("ts"), "10 seconds"), &aggregates, false)
    })
}

pub(crate) fn deduplicate_then_windows() -> Job {
    append("deduplication, then windows", 12, |events| {
        let once = without_near_copies(events, &[])?;
        by_window(once, window(col("ts"), "10 seconds"), &AGGREGATES, false)
    })
}

/// Two sources with watermarks of their own: the slower one counts.
pub(crate) fn union_then_windows() -> Job {
    let inputs = vec![arriving(&EVENTS, 13, ADDS), arriving(&EVENTS, 14, ADDS)];
    job("union of two streams, then windows", OutputMode::Append, Reading::Rows, inputs, |_, inputs| {
        let one = inputs[0].clone().with_watermark("ts", DELAY)?;
        let other = inputs[1].clone().with_watermark("ts", "30 seconds")?;
        by_window(one.union(other)?, window(col("ts"), "10 seconds"), &AGGREGATES, false)
    })
}

/// Which rows pass depends on which partition is first, so a batch gives all of them to choose from.
pub(crate) fn limit() -> Job {
    let inputs = vec![arriving(&EVENTS, 15, ADDS)];
    job("limit", OutputMode::Append, Reading::AnyRows(LIMIT), inputs, |_, inputs| {
        let rows = inputs[0].clone().select_columns(&["ts", "k", "v"])?;
        Ok(if rows.is_streaming() { rows.limit(0, Some(LIMIT))? } else { rows })
    })
}
