//! What a batch costs when much is remembered: counts and sums by key in update mode, 10 thousand, 1 million and 10
//! million keys, batches of 10 thousand rows whose keys lie anywhere among them. Milliseconds and bytes per batch must
//! not grow with the keys. Each size has a process of its own; with a million keys it is started again a few times, and
//! the time from the start of the process to its first commit is taken.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::prelude::*;
use serde::{Deserialize, Serialize};
use tidewater::prelude::*;

use crate::made::{Collect, Made, mixed, own_memory};
use crate::quantile;

/// The first word of the arguments of a process that this bench starts.
pub(crate) const CHILD: &str = "state-child";

const KEYS: [u64; 3] = [10_000, 1_000_000, 10_000_000];
/// Rows of a batch that is measured.
const ROWS: u64 = 10_000;
/// Rows of a batch that only brings new keys.
const FILLING_ROWS: u64 = 250_000;
const WARM_UP: u64 = 20;
const MEASURED: u64 = 200;
const RESTARTED_KEYS: u64 = 1_000_000;
const RESTARTS: u64 = 5;

type Failure = Box<dyn std::error::Error>;

/// What a process says of its run.
#[derive(Serialize, Deserialize)]
struct Figures {
    keys: u64,
    batch_ms: [f64; 2],
    add_batch_ms: f64,
    state_commit_ms: f64,
    /// Of changes, the median batch's.
    bytes_per_batch: f64,
    /// Of merges of earlier changes, on average: most batches have none.
    merged_per_batch: f64,
    state_bytes_per_key: f64,
    process_bytes_per_key: f64,
    checkpoint_bytes: u64,
    fill_seconds: f64,
}

pub(crate) fn run() -> Result<(), Failure> {
    println!(
        "count and sum by key, update mode, batches of {ROWS} rows over all keys, {MEASURED} batches after {WARM_UP} \
         to warm up, {} partitions, checkpoint not flushed",
        partitions()?
    );
    println!(
        "      keys | ms per batch, median / p99 | of it adding, storing state | KiB written per batch, and merged \
         | bytes per key: state, process | checkpoint MiB | filling s"
    );
    for keys in KEYS {
        let folder = tempfile::tempdir()?;
        let figures: Figures = serde_json::from_str(&child("fill", keys, folder.path(), 0)?)?;
        println!(
            "{keys:>10} | {:.2} / {:.2} | {:.2}, {:.2} | {:.1}, {:.1} | {:.0}, {:.0} | {:.1} | {:.1}",
            figures.batch_ms[0],
            figures.batch_ms[1],
            figures.add_batch_ms,
            figures.state_commit_ms,
            figures.bytes_per_batch / 1024.0,
            figures.merged_per_batch / 1024.0,
            figures.state_bytes_per_key,
            figures.process_bytes_per_key,
            figures.checkpoint_bytes as f64 / 1048576.0,
            figures.fill_seconds,
        );
        if keys == RESTARTED_KEYS {
            let mut ms = vec![];
            for round in 0..RESTARTS {
                ms.push(child("restart", keys, folder.path(), round)?.trim().parse::<f64>()?);
            }
            ms.sort_by(f64::total_cmp);
            println!(
                "{keys:>10} | start of the process to its first commit: median {:.0} ms ({:.0} to {:.0})",
                quantile(&ms, 0.5),
                quantile(&ms, 0.0),
                quantile(&ms, 1.0)
            );
        }
    }
    Ok(())
}

/// Starts this program again for one task; what it printed.
fn child(task: &str, keys: u64, folder: &Path, round: u64) -> Result<String, Failure> {
    let started_ns = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let output = Command::new(std::env::current_exe()?)
        .args([CHILD, task, &keys.to_string(), &folder.display().to_string()])
        .args([round.to_string(), started_ns.to_string()])
        .stderr(std::process::Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("the process that was to {task} {keys} keys failed").into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// One task, in a process of its own.
pub(crate) async fn run_child(arguments: &[String]) -> Result<(), Failure> {
    let [_, task, keys, folder, round, started_ns] = arguments else {
        return Err("a task, a number of keys, a folder, a round and a start are needed".into());
    };
    let (keys, round) = (keys.parse()?, round.parse::<u64>()?);
    match task.as_str() {
        "fill" => println!("{}", serde_json::to_string(&fill(keys, folder).await?)?),
        _ => {
            let started = UNIX_EPOCH + Duration::from_nanos(started_ns.parse()?);
            let batches = filling(keys) + WARM_UP + MEASURED + round + 1;
            start(keys, batches, folder, Arc::new(FirstCommit(started))).await?;
        }
    }
    Ok(())
}

/// Prints how long it took to the first commit.
struct FirstCommit(SystemTime);

impl QueryListener for FirstCommit {
    fn on_event(&self, event: &QueryEvent) {
        if let (QueryEvent::Progress(_), Ok(took)) = (event, self.0.elapsed()) {
            println!("{}", took.as_secs_f64() * 1000.0);
        }
    }
}

fn partitions() -> Result<usize, Failure> {
    Ok(std::thread::available_parallelism()?.get())
}

/// How many batches bring all keys.
fn filling(keys: u64) -> u64 {
    keys.div_ceil(FILLING_ROWS)
}

/// Batches that bring all keys once, then batches of keys from anywhere.
fn rows(keys: u64, batches: u64) -> Result<Made, Failure> {
    let schema =
        Arc::new(Schema::new(vec![Field::new("key", DataType::Int64, false), Field::new("v", DataType::Int64, false)]));
    let (columns, parts) = (Arc::clone(&schema), partitions()? as u64);
    Ok(Made::new(schema, batches, move |batch| {
        let ids: Vec<u64> = if batch < filling(keys) {
            (batch * FILLING_ROWS..((batch + 1) * FILLING_ROWS).min(keys)).collect()
        } else {
            (0..ROWS).map(|row| mixed(batch, row) % keys).collect()
        };
        ids.chunks(ids.len().div_ceil(parts as usize).max(1))
            .map(|ids| {
                // A key looks like a hash; which id it is of must not show in its order.
                let keys = ids.iter().map(|id| mixed(7, *id) as i64);
                let values = ids.iter().map(|id| (id % 100) as i64);
                let keys = Arc::new(Int64Array::from_iter_values(keys));
                RecordBatch::try_new(Arc::clone(&columns), vec![keys, Arc::new(Int64Array::from_iter_values(values))])
            })
            .collect()
    }))
}

/// Runs the query over so many batches in all, from its checkpoint on.
async fn start(keys: u64, batches: u64, folder: &str, listener: Arc<dyn QueryListener>) -> Result<(), Failure> {
    let ctx = SessionContext::new();
    let stream = ctx.read_stream(rows(keys, batches)?)?;
    let aggregates: Vec<Expr> = ["count(*) AS n", "sum(v) AS total"]
        .iter()
        .map(|sql| stream.parse_sql_expr(sql))
        .collect::<datafusion::error::Result<_>>()?;
    let query = stream
        .aggregate(vec![col("key")], aggregates)?
        .write_stream(DiscardSink::new())
        .output_mode(OutputMode::Update)
        .partitions(partitions()?)
        .checkpoint(folder)
        .durable(false)
        .trigger(Trigger::AvailableNow)
        .listener(listener)
        .start()
        .await?;
    query.await_termination().await?;
    Ok(())
}

async fn fill(keys: u64, folder: &str) -> Result<Figures, Failure> {
    let (before, listener) = (own_memory("VmRSS"), Arc::new(Collect::default()));
    start(keys, filling(keys) + WARM_UP + MEASURED, folder, Arc::clone(&listener) as Arc<dyn QueryListener>).await?;
    let process = own_memory("VmRSS").saturating_sub(before);
    let progress = listener.take();
    let phase = |batch: &QueryProgress, name: &str| batch.duration_ms.get(name).copied().unwrap_or(f64::NAN);
    let first = (filling(keys) + WARM_UP) as usize;
    let sorted = |figure: &dyn Fn(usize) -> f64| -> Vec<f64> {
        let mut figures: Vec<f64> = (first..progress.len()).map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures
    };
    let median = |name: &str| quantile(&sorted(&|batch| phase(&progress[batch], name)), 0.5);
    let written = |batch: usize| -> [f64; 2] {
        let operators = progress.get(batch).map(|progress| &progress.state_operators);
        let operators = operators.into_iter().flatten();
        operators.fold([0.0, 0.0], |sum, operator| {
            [sum[0] + operator.state_bytes_written as f64, sum[1] + operator.compaction_bytes_written as f64]
        })
    };
    let last = progress.last().and_then(|batch| batch.state_operators.first()).ok_or("no state was reported")?;
    assert_eq!(last.num_rows_total, keys, "all keys are in state");
    let whole = sorted(&|batch| phase(&progress[batch], "triggerExecution"));
    Ok(Figures {
        keys,
        batch_ms: [quantile(&whole, 0.5), quantile(&whole, 0.99)],
        add_batch_ms: median("addBatch"),
        state_commit_ms: median("stateCommit"),
        bytes_per_batch: quantile(&sorted(&|batch| written(batch)[0] - written(batch - 1)[0]), 0.5),
        merged_per_batch: (written(progress.len() - 1)[1] - written(first)[1]) / (progress.len() - 1 - first) as f64,
        state_bytes_per_key: last.memory_used_bytes as f64 / keys as f64,
        process_bytes_per_key: process as f64 / keys as f64,
        checkpoint_bytes: bytes_below(Path::new(folder)),
        fill_seconds: (0..filling(keys) as usize)
            .map(|batch| phase(&progress[batch], "triggerExecution") / 1000.0)
            .sum(),
    })
}

/// The bytes of all files below a folder.
pub(crate) fn bytes_below(folder: &Path) -> u64 {
    files_below(folder).into_iter().map(|(_, bytes)| bytes).sum()
}

/// All files below a folder, with their sizes.
pub(crate) fn files_below(folder: &Path) -> Vec<(std::path::PathBuf, u64)> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(what) if what.is_dir() => found.extend(files_below(&entry.path())),
            Ok(what) => found.push((entry.path(), what.len())),
            // Deleted since it was listed.
            Err(_) => {}
        }
    }
    found
}
