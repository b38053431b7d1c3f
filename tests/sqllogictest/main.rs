//! DataFusion's own test queries, run as streams: what is accepted must answer as the batch does.
//!
//! ```text
//! tests/sqllogictest/run.sh [name of a file …]
//! ```
//!
//! Every query of every file is first answered as a batch. Then the tables it reads become streams, each cut into three
//! batches: all of them or, where that is refused, the first alone. The stream runs in the first output mode that accepts it:
//! append, complete, update. In update mode a row may come out several times, each time newer; there every row of the
//! answer must be among what came out. Printed is how many queries had which outcome, and every difference and refusal.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a tool for developers")]

mod parse;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::{Transformed, TreeNodeRecursion};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::logical_expr::{LogicalPlan, TableScan};
use datafusion::prelude::*;
use futures::FutureExt;
use tidewater::prelude::*;
use tidewater::source::StreamTable;
use tidewater::testing::oracle::row_lines;

use self::parse::{Record, parse};

/// No query takes longer, or it is stuck.
const QUERY_LIMIT: Duration = Duration::from_secs(20);

/// Larger tables show nothing that smaller ones do not.
const TABLE_ROWS_MAX: usize = 20_000;

const ADDS: usize = 3;

/// What became of a query.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// The batch itself fails, or reads no table, or is no query.
    NotAQuery(&'static str),
    /// As the batch, with so many of its tables being streams, in this mode.
    Equal {
        all: bool,
        mode: &'static str,
    },
    /// The batch does not always give the same rows either: a limit without an order, say.
    Unordered,
    Refused(String),
    Different(String),
    Failed(String),
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut arguments = std::env::args().skip(1);
    let root = PathBuf::from(arguments.next().expect("the folder `test_files`"));
    let wanted: Vec<String> = arguments.collect();
    let mut files = vec![];
    find(&root, &mut files);
    files.sort();
    files.retain(|file| wanted.is_empty() || wanted.iter().any(|name| file.ends_with(name)));

    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut refusals: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for file in files {
        let name = file.strip_prefix(&root).unwrap_or(&file).display().to_string();
        for (line, sql, outcome) in run_file(&file).await {
            let kind = match &outcome {
                Outcome::NotAQuery(why) => format!("not run: {why}"),
                Outcome::Equal { all, mode } => {
                    format!(
                        "equal: {} in {mode} mode",
                        if *all { "all tables are streams" } else { "the first table is a stream" }
                    )
                }
                Outcome::Unordered => "not compared: the batch does not always give the same rows".to_owned(),
                Outcome::Refused(reason) => {
                    let known = refusals.entry(reason.clone()).or_insert((0, format!("{name}:{line} {sql}")));
                    known.0 += 1;
                    "refused".to_owned()
                }
                Outcome::Different(how) => {
                    println!("DIFFERENT {name}:{line}\n{sql}\n{how}\n");
                    "different".to_owned()
                }
                Outcome::Failed(how) => {
                    println!("FAILED {name}:{line}\n{sql}\n{how}\n");
                    "accepted, then failed".to_owned()
                }
            };
            *counts.entry(kind).or_default() += 1;
        }
    }
    let mut refusals: Vec<_> = refusals.into_iter().collect();
    refusals.sort_by_key(|(_, (times, _))| std::cmp::Reverse(*times));
    println!("refusals by reason");
    for (reason, (times, example)) in refusals {
        println!("{times:6}  {reason}\n        {example}", example = example.replace('\n', " "));
    }
    println!("\noutcomes");
    for (kind, times) in counts {
        println!("{times:6}  {kind}");
    }
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            find(&path, files);
        } else if path.extension().is_some_and(|ending| ending == "slt") {
            files.push(path);
        }
    }
}

async fn run_file(file: &Path) -> Vec<(usize, String, Outcome)> {
    let config = SessionConfig::new().with_information_schema(true).with_target_partitions(4);
    let ctx = SessionContext::new_with_config(config);
    ctx.enable_windows();
    let mut outcomes = vec![];
    for record in parse(file) {
        match record {
            Record::Statement(sql) => {
                let done = async { ctx.sql(&sql).await?.collect().await };
                // One that fails is the business of the file.
                let _ = tokio::time::timeout(QUERY_LIMIT, AssertUnwindSafe(done).catch_unwind()).await;
            }
            Record::Query { line, sql } => {
                let outcome = AssertUnwindSafe(run_query(&ctx, &sql)).catch_unwind().await;
                let outcome = outcome.unwrap_or_else(|_| Outcome::Failed("it panicked".to_owned()));
                outcomes.push((line, sql, outcome));
            }
        }
    }
    outcomes
}

async fn run_query(ctx: &SessionContext, sql: &str) -> Outcome {
    let Some(batch) = answer(ctx, sql).await else { return Outcome::NotAQuery("the batch fails") };
    let Ok(frame) = ctx.sql(sql).await else { return Outcome::NotAQuery("the batch fails") };
    let plan = frame.logical_plan().clone();
    if !is_query(&plan) {
        return Outcome::NotAQuery("EXPLAIN, SHOW, COPY or another command");
    }
    let tables = tables(&plan);
    if tables.is_empty() {
        return Outcome::NotAQuery("it reads no table");
    }
    // All calls of one table function have one name, so they cannot be told apart.
    if tables.iter().any(|scan| scan.table_name.table().ends_with(')')) {
        return Outcome::NotAQuery("it reads a table function");
    }
    let mut rows = vec![];
    for scan in &tables {
        let Some(all) = rows_of(ctx, scan).await else { return Outcome::NotAQuery("its tables are too large") };
        rows.push(all);
    }
    // A stream to which no row ever comes runs no batch, as in Spark, and so answers nothing, not even a count of zero.
    if rows.iter().flatten().all(|batch| batch.num_rows() == 0) {
        return Outcome::NotAQuery("its tables have no rows");
    }
    let mut refused = String::new();
    for streams in [tables.len(), 1] {
        match run_stream(ctx, &plan, &tables[..streams], &rows[..streams]).await {
            Ran::Refused(reason) => refused = if refused.is_empty() { reason } else { refused },
            Ran::Failed(how) => return Outcome::Failed(how),
            Ran::Rows(mode, found) => {
                let same = match mode {
                    OutputMode::Update => batch.iter().all(|line| found.contains(line)),
                    _ => batch == found,
                };
                if same {
                    return Outcome::Equal { all: streams == tables.len(), mode: name_of(mode) };
                }
                if !is_settled(ctx, &plan, sql, &batch).await {
                    return Outcome::Unordered;
                }
                return Outcome::Different(format!(
                    "{mode}, {streams} of {} streams\nbatch  {batch:?}\nstream {found:?}",
                    tables.len()
                ));
            }
        }
    }
    Outcome::Refused(refused)
}

fn name_of(mode: OutputMode) -> &'static str {
    match mode {
        OutputMode::Append => "append",
        OutputMode::Complete => "complete",
        OutputMode::Update => "update",
    }
}

async fn answer(ctx: &SessionContext, sql: &str) -> Option<Vec<String>> {
    let rows = async { ctx.sql(sql).await?.collect().await };
    let rows = tokio::time::timeout(QUERY_LIMIT, AssertUnwindSafe(rows).catch_unwind()).await.ok()?.ok()?.ok()?;
    lines(&rows)
}

/// As text, sorted, with doubles to eight digits.
fn lines(rows: &[RecordBatch]) -> Option<Vec<String>> {
    let round = |column: &ArrayRef| match column.data_type() {
        DataType::Float64 => {
            let short = |v: f64| format!("{v:.8e}").parse().unwrap_or(v);
            Arc::new(column.as_primitive::<Float64Type>().unary::<_, Float64Type>(short)) as ArrayRef
        }
        DataType::Float32 => {
            let short = |v: f32| format!("{v:.4e}").parse().unwrap_or(v);
            Arc::new(column.as_primitive::<Float32Type>().unary::<_, Float32Type>(short)) as ArrayRef
        }
        _ => Arc::clone(column),
    };
    let rounded =
        rows.iter().map(|rows| RecordBatch::try_new(rows.schema(), rows.columns().iter().map(round).collect()).ok());
    row_lines(&rounded.collect::<Option<Vec<_>>>()?).ok()
}

/// Whether the plan gives the same rows over and over, and with its inputs in another order.
async fn is_settled(ctx: &SessionContext, plan: &LogicalPlan, sql: &str, batch: &[String]) -> bool {
    let mut limited = false;
    let _ = plan.apply_with_subqueries(|node| {
        limited |= matches!(node, LogicalPlan::Limit(_) | LogicalPlan::Window(_));
        Ok(TreeNodeRecursion::Continue)
    });
    !limited && answer(ctx, sql).await.is_some_and(|again| again == batch)
}

fn is_query(plan: &LogicalPlan) -> bool {
    !matches!(
        plan,
        LogicalPlan::Explain(_)
            | LogicalPlan::Analyze(_)
            | LogicalPlan::DescribeTable(_)
            | LogicalPlan::Copy(_)
            | LogicalPlan::Dml(_)
            | LogicalPlan::Ddl(_)
            | LogicalPlan::Statement(_)
    )
}

/// The tables of a plan, each once.
fn tables(plan: &LogicalPlan) -> Vec<TableScan> {
    let mut found: Vec<TableScan> = vec![];
    let _ = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && !found.iter().any(|known| known.table_name == scan.table_name)
        {
            found.push(scan.clone());
        }
        Ok(TreeNodeRecursion::Continue)
    });
    found
}

async fn rows_of(ctx: &SessionContext, scan: &TableScan) -> Option<Vec<RecordBatch>> {
    let provider = source_as_provider(&scan.source).ok()?;
    let rows = ctx.read_table(provider).ok()?.limit(0, Some(TABLE_ROWS_MAX + 1)).ok()?.collect().await.ok()?;
    (rows.iter().map(RecordBatch::num_rows).sum::<usize>() <= TABLE_ROWS_MAX).then_some(rows)
}

enum Ran {
    Refused(String),
    Failed(String),
    Rows(OutputMode, Vec<String>),
}

async fn run_stream(ctx: &SessionContext, plan: &LogicalPlan, tables: &[TableScan], rows: &[Vec<RecordBatch>]) -> Ran {
    let mut refusals = vec![];
    for mode in [OutputMode::Append, OutputMode::Complete, OutputMode::Update] {
        let streaming = match over_streams(plan, tables, rows) {
            Ok(streaming) => streaming,
            Err(e) => return Ran::Failed(e.to_string()),
        };
        let sink = MemorySink::new();
        let frame = DataFrame::new(ctx.state(), streaming);
        let writer = frame.write_stream(sink.clone()).output_mode(mode).partitions(3).trigger(Trigger::AvailableNow);
        let query = match tokio::time::timeout(QUERY_LIMIT, writer.start()).await {
            Err(_) => return Ran::Failed("start does not come back".to_owned()),
            Ok(Err(e)) if e.kind() == ErrorKind::Unsupported => {
                refusals.push(format!("{mode}: {}", without_names(&e.to_string())));
                continue;
            }
            Ok(Err(e)) => return Ran::Failed(format!("at the start, {mode}: {e}")),
            Ok(Ok(query)) => query,
        };
        match tokio::time::timeout(QUERY_LIMIT, query.await_termination()).await {
            Err(_) => return Ran::Failed("it does not end".to_owned()),
            Ok(Err(e)) => return Ran::Failed(format!("{mode}: {e}")),
            Ok(Ok(())) => {}
        }
        let written = match mode {
            OutputMode::Complete => {
                let last = (0..ADDS as u64 + 2).rev().find_map(|batch| sink.batch(BatchId(batch)));
                last.unwrap_or_default()
            }
            _ => sink.batches(),
        };
        return match lines(&written) {
            Some(lines) => Ran::Rows(mode, lines),
            None => Ran::Failed("its rows cannot be shown".to_owned()),
        };
    }
    refusals.dedup();
    Ran::Refused(refusals.join(" / "))
}

/// Quoted names are what tells two refusals of one kind apart.
fn without_names(text: &str) -> String {
    let mut parts = text.split('`');
    let mut out = parts.next().unwrap_or_default().to_owned();
    while let (Some(_), after) = (parts.next(), parts.next()) {
        out.push_str("`…`");
        out.push_str(after.unwrap_or_default());
    }
    out
}

/// The plan with streams in the place of these tables, whose rows wait in them.
fn over_streams(
    plan: &LogicalPlan,
    tables: &[TableScan],
    rows: &[Vec<RecordBatch>],
) -> datafusion::error::Result<LogicalPlan> {
    let mut sources = vec![];
    for (scan, rows) in tables.iter().zip(rows) {
        let source = MemorySource::new(scan.source.schema()).partitions(2).adds_per_batch(1);
        let all = arrow::compute::concat_batches(&scan.source.schema(), rows)?;
        let size = all.num_rows().div_ceil(ADDS).max(1);
        for at in (0..all.num_rows()).step_by(size) {
            source.add(vec![all.slice(at, size.min(all.num_rows() - at))])?;
        }
        sources.push(Arc::new(StreamTable::new(Arc::new(source))));
    }
    let plan = plan.clone().transform_up_with_subqueries(|node| {
        let LogicalPlan::TableScan(mut scan) = node else { return Ok(Transformed::no(node)) };
        let Some(at) = tables.iter().position(|table| table.table_name == scan.table_name) else {
            return Ok(Transformed::no(LogicalPlan::TableScan(scan)));
        };
        scan.source = provider_as_source(Arc::clone(&sources[at]) as _);
        Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
    })?;
    Ok(plan.data)
}
