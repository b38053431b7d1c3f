//! State of text beyond the 2 GiB that an Arrow column of text can hold: the greatest text of each key, one column, one
//! partition, as many gibibytes as `TIDEWATER_TEXT_GIB` says (default 1, so that a run stays short). It grows in batches
//! of 16 MiB, its files are merged meanwhile, and then it is loaded by another process.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::prelude::*;
use serde::{Deserialize, Serialize};
use tidewater::prelude::*;

use crate::made::{Collect, Made, mixed, own_memory};
use crate::quantile;
use crate::state_cost::bytes_below;

/// The first word of the arguments of a process that this bench starts.
pub(crate) const CHILD: &str = "text-state-child";

const MIB: f64 = 1_048_576.0;
const GIB_IN_BATCHES: u64 = 64;
const ROWS: u64 = 16 * 1024;
/// Words of sixteen digits in a text.
const WORDS: u64 = 64;

type Failure = Box<dyn std::error::Error>;

/// What a process says of its run.
#[derive(Serialize, Deserialize)]
struct Figures {
    rows: u64,
    state_bytes: u64,
    merged_bytes: u64,
    merges_waited_for: u64,
    /// Median, 99th percentile and longest.
    batch_ms: [f64; 3],
    /// From the start of the query to its end.
    seconds: f64,
    /// The most that the process ever held.
    peak_bytes: u64,
}

pub(crate) fn run() -> Result<(), Failure> {
    let gib: u64 = std::env::var("TIDEWATER_TEXT_GIB").map_or(Ok(1), |text| text.parse())?;
    let batches = gib * GIB_IN_BATCHES;
    println!("{gib} GiB of text, {ROWS} texts of {} bytes a batch, one partition, checkpoint not flushed", 16 * WORDS);
    let folder = tempfile::tempdir()?;
    let grown = child(batches, folder.path())?;
    tell("grown", &grown);
    println!("checkpoint: {:.0} MiB", bytes_below(folder.path()) as f64 / MIB);
    let loaded = child(batches + 1, folder.path())?;
    tell("loaded, and one batch more", &loaded);
    assert_eq!((grown.rows, loaded.rows), (batches * ROWS, (batches + 1) * ROWS), "all keys are in state");
    Ok(())
}

fn tell(what: &str, figures: &Figures) {
    let [median, p99, longest] = figures.batch_ms;
    println!(
        "{what}: {} rows, {:.0} MiB of state, process at most {:.0} MiB ({:.2} of the state), {:.1} s; ms per batch {median:.0} \
         median, {p99:.0} p99, {longest:.0} longest; {:.0} MiB written by merges, {} waited for",
        figures.rows,
        figures.state_bytes as f64 / MIB,
        figures.peak_bytes as f64 / MIB,
        figures.peak_bytes as f64 / figures.state_bytes as f64,
        figures.seconds,
        figures.merged_bytes as f64 / MIB,
        figures.merges_waited_for,
    );
}

/// Starts this program again, for a run up to so many batches in all.
fn child(batches: u64, folder: &Path) -> Result<Figures, Failure> {
    let output = Command::new(std::env::current_exe()?)
        .args([CHILD, &batches.to_string(), &folder.display().to_string()])
        .stderr(std::process::Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("the process that was to run up to batch {batches} failed").into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// One run, in a process of its own.
pub(crate) async fn run_child(arguments: &[String]) -> Result<(), Failure> {
    let [_, batches, folder] = arguments else { return Err("a number of batches and a folder are needed".into()) };
    let (started, listener) = (Instant::now(), Arc::new(Collect::default()));
    let ctx = SessionContext::new();
    let stream = ctx.read_stream(texts(batches.parse()?))?;
    let greatest = stream.parse_sql_expr("max(text) AS text")?;
    let query = stream
        .aggregate(vec![col("key")], vec![greatest])?
        .write_stream(DiscardSink::new())
        .output_mode(OutputMode::Update)
        .partitions(1)
        .checkpoint(folder.as_str())
        .durable(false)
        .trigger(Trigger::AvailableNow)
        .listener(Arc::clone(&listener) as Arc<dyn QueryListener>)
        .start()
        .await?;
    query.await_termination().await?;
    let progress = listener.take();
    let mut ms: Vec<f64> =
        progress.iter().filter_map(|batch| batch.duration_ms.get("triggerExecution").copied()).collect();
    ms.sort_by(f64::total_cmp);
    let state = progress.last().and_then(|batch| batch.state_operators.first()).ok_or("no state was reported")?;
    let figures = Figures {
        rows: state.num_rows_total,
        state_bytes: state.memory_used_bytes,
        merged_bytes: state.compaction_bytes_written,
        merges_waited_for: state.merges_waited_for,
        batch_ms: [0.5, 0.99, 1.0].map(|share| quantile(&ms, share)),
        seconds: started.elapsed().as_secs_f64(),
        peak_bytes: own_memory("VmHWM"),
    };
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

/// Batches of new keys, each with a text that does not compress well.
fn texts(batches: u64) -> Made {
    let fields = vec![Field::new("key", DataType::Int64, false), Field::new("text", DataType::Utf8, false)];
    let schema = Arc::new(Schema::new(fields));
    let columns = Arc::clone(&schema);
    Made::new(schema, batches, move |batch| {
        let ids = batch * ROWS..(batch + 1) * ROWS;
        let text = |id: u64| -> String { (0..WORDS).map(|word| format!("{:016x}", mixed(id, word))).collect() };
        let texts: StringArray = ids.clone().map(|id| Some(text(id))).collect();
        let keys = Int64Array::from_iter_values(ids.map(|id| mixed(7, id) as i64));
        Ok(vec![RecordBatch::try_new(Arc::clone(&columns), vec![Arc::new(keys), Arc::new(texts)])?])
    })
}
