//! A long run in fast-forward: more than an hour of event time in 20,000 batches, through deduplication, a join of two streams
//! and windows, with keys and values of text that are cut out of larger arrays, as a scan gives them. Memory, state, files and
//! open handles must level off. Every 200 batches they are written to `soak.csv`, which `plot_soak.py` draws.
//!
//! `TIDEWATER_SOAK_BATCHES=N` runs longer or shorter.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringViewArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::functions::core::expr_ext::FieldAccessor;
use datafusion::prelude::*;
use parking_lot::Mutex;
use tidewater::prelude::*;

use crate::made::{Made, mixed, own_memory};
use crate::state_cost::files_below;

const BATCHES: u64 = 20_000;
/// So much event time goes by in a batch: an hour in 18,000.
const BATCH_US: u64 = 200_000;
/// Rows of a batch, on each side.
const ROWS: u64 = 100;
const KEYS: u64 = 200;
/// Rows come out of order by so much; the watermark waits 5 s.
const DISORDER_US: u64 = 3_000_000;
const SAMPLE_EVERY: u64 = 200;
/// 2024-01-01T00:00:00 UTC.
const FIRST_US: u64 = 1_704_067_200_000_000;

/// In the last quarter, each figure may be so many times what it was in the second: more is a leak.
const GROWTH_MAX: f64 = 1.25;

const COLUMNS: [&str; 8] = [
    "batch",
    "rss_bytes",
    "state_bytes",
    "state_rows",
    "checkpoint_files",
    "checkpoint_bytes",
    "open_handles",
    "median_batch_ms",
];

pub(crate) async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let batches = match std::env::var("TIDEWATER_SOAK_BATCHES") {
        Ok(batches) => batches.parse()?,
        Err(_) => BATCHES,
    };
    let folder = tempfile::tempdir()?;
    let checkpoint = folder.path().join("checkpoint");
    let ctx = SessionContext::new();
    let left = ctx.read_stream(side("l", 1, batches))?;
    let right = ctx.read_stream(side("r", 2, batches))?;
    let sampler = Arc::new(Sampler { checkpoint: checkpoint.clone(), seen: Mutex::default() });
    let started = Instant::now();
    let query = query(&ctx, left, right)?
        .write_stream(DiscardSink::new())
        .checkpoint(checkpoint.display().to_string())
        .durable(false)
        .trigger(Trigger::AvailableNow)
        .listener(Arc::clone(&sampler) as Arc<dyn QueryListener>)
        .start()
        .await?;
    query.await_termination().await?;

    let seen = sampler.seen.lock();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("soak.csv");
    let mut text = format!("{}\n", COLUMNS.join(","));
    for sample in &seen.samples {
        writeln!(text, "{}", sample.map(|figure| figure.to_string()).join(","))?;
    }
    std::fs::create_dir_all(env!("CARGO_TARGET_TMPDIR"))?;
    std::fs::write(&file, text)?;
    println!(
        "soak: {} batches, {:.0} s of event time, {} rows out, in {:.0} s; python3 benches/plot_soak.py {}",
        seen.batches,
        (batches * BATCH_US) as f64 / 1e6,
        seen.rows_out,
        started.elapsed().as_secs_f64(),
        file.display()
    );
    level(&seen.samples)
}

/// Of each figure, the second quarter of the run and the last.
fn level(samples: &[[f64; 8]]) -> Result<(), Box<dyn std::error::Error>> {
    let quarter = samples.len() / 4;
    if quarter == 0 {
        return Err("too few batches to see whether anything grows".into());
    }
    let mut grew = vec![];
    for (column, name) in COLUMNS.iter().enumerate().skip(1) {
        let mean = |part: &[[f64; 8]]| part.iter().map(|sample| sample[column]).sum::<f64>() / part.len() as f64;
        let (second, last) = (mean(&samples[quarter..2 * quarter]), mean(&samples[samples.len() - quarter..]));
        println!("  {name:<18} second quarter {second:>14.1}, last quarter {last:>14.1}, ratio {:.2}", last / second);
        if last > second * GROWTH_MAX {
            grew.push(*name);
        }
    }
    if grew.is_empty() { Ok(()) } else { Err(format!("did not level off: {}", grew.join(", ")).into()) }
}

/// Rows with a time, a key, and a number and a text that are theirs alone; one in ten comes twice.
fn side(name: &str, salt: u64, batches: u64) -> Made {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let schema: SchemaRef = Arc::new(Schema::new(vec![
        Field::new(format!("{name}ts"), time, true),
        Field::new(format!("{name}k"), DataType::Utf8View, true),
        Field::new(format!("{name}id"), DataType::Int64, true),
        Field::new(format!("{name}text"), DataType::Utf8View, true),
    ]));
    let columns = Arc::clone(&schema);
    Made::new(schema, batches, move |batch| {
        let row = |number: u64| -> [i64; 3] {
            // The tenth row is the ninth once more.
            let number = if number % 10 == 9 { number - 1 } else { number };
            let drawn = mixed(batch * ROWS + number, salt);
            let ahead = FIRST_US + DISORDER_US + batch * BATCH_US + number * (BATCH_US / ROWS);
            let time = ahead - drawn % DISORDER_US;
            [time as i64, (drawn >> 32) as i64 % KEYS as i64, (batch * ROWS + number) as i64]
        };
        let rows: Vec<[i64; 3]> = (0..ROWS).map(row).collect();
        let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row[0]));
        let keys = rows.iter().map(|row| format!("the key {:>5}, in some forty characters", row[1]));
        let texts = rows.iter().map(|row| format!("the text of row {}, which nobody else has", row[2]));
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(times.with_timezone("UTC")),
            Arc::new(StringViewArray::from_iter_values(keys)),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row[2]))),
            Arc::new(StringViewArray::from_iter_values(texts)),
        ];
        let all = RecordBatch::try_new(Arc::clone(&columns), arrays)?;
        let half = all.num_rows().div_ceil(2);
        Ok(vec![all.slice(0, half), all.slice(half, all.num_rows() - half)])
    })
}

/// Without copies, joined with what came near, counted by ten seconds and key.
fn query(ctx: &SessionContext, left: DataFrame, right: DataFrame) -> Result<DataFrame> {
    let left = left.with_watermark("lts", "5 seconds")?.drop_duplicates(&["lts", "lid"])?;
    let right = right.with_watermark("rts", "5 seconds")?.drop_duplicates_within_watermark(&["rid"])?;
    let near = "lk = rk AND rts >= lts - INTERVAL '2 seconds' AND rts <= lts + INTERVAL '2 seconds'";
    let near = ctx.parse_sql_expr(near, &left.schema().join(right.schema())?)?;
    let pairs = left.join_on(right, JoinType::Left, [near])?;
    let pairs = pairs.select(vec![col("lts").alias("ts"), col("lk").alias("k"), col("rid"), col("rtext")])?;
    let aggregates = ["count(*) AS n", "count(rid) AS matched", "max(rtext) AS text"];
    let aggregates = aggregates.map(|sql| pairs.parse_sql_expr(sql)).into_iter().collect::<Result<_, _>>()?;
    let windows = pairs.aggregate(vec![window(col("ts"), "10 seconds").alias("w"), col("k")], aggregates)?;
    Ok(windows.select(vec![
        col("w").field("start").alias("window_start"),
        col("k"),
        col("n"),
        col("matched"),
        col("text"),
    ])?)
}

/// Looks around every so many batches.
struct Sampler {
    checkpoint: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    batches: u64,
    rows_out: u64,
    /// Since the last sample.
    batch_ms: Vec<f64>,
    samples: Vec<[f64; 8]>,
}

impl QueryListener for Sampler {
    fn on_event(&self, event: &QueryEvent) {
        let QueryEvent::Progress(progress) = event else { return };
        let mut seen = self.seen.lock();
        seen.batches += 1;
        seen.rows_out += progress.sink.num_output_rows;
        seen.batch_ms.extend(progress.duration_ms.get("triggerExecution"));
        if !seen.batches.is_multiple_of(SAMPLE_EVERY) {
            return;
        }
        let mut ms = std::mem::take(&mut seen.batch_ms);
        ms.sort_by(f64::total_cmp);
        let operators = &progress.state_operators;
        let files = files_below(&self.checkpoint);
        let handles = std::fs::read_dir("/proc/self/fd").map_or(0, |handles| handles.count());
        let sample = [
            seen.batches as f64,
            own_memory("VmRSS") as f64,
            operators.iter().map(|operator| operator.memory_used_bytes as f64).sum(),
            operators.iter().map(|operator| operator.num_rows_total as f64).sum(),
            files.len() as f64,
            files.iter().map(|(_, bytes)| *bytes as f64).sum(),
            handles as f64,
            crate::quantile(&ms, 0.5),
        ];
        seen.samples.push(sample);
    }
}
