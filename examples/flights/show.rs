//! What the person at the terminal sees: a line per batch, a bar where there is a terminal, a summary, a table of counts.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use datafusion::functions_aggregate::expr_fn::{avg, count};
use datafusion::prelude::*;
use indicatif::{ProgressBar, ProgressStyle};
use tidewater::prelude::*;

/// The phases of a batch, in order, and the whole.
const PHASES: [&str; 7] =
    ["latestOffset", "walCommit", "getBatch", "queryPlanning", "addBatch", "commitOffsets", "triggerExecution"];

/// Listens to the query, prints each batch as it is committed, and keeps the sums for the end.
#[derive(Debug)]
pub(crate) struct Show {
    /// When the process started.
    started: Instant,
    files_per_batch: u64,
    /// Only where stderr is a terminal.
    bar: Option<ProgressBar>,
    totals: Mutex<Totals>,
}

#[derive(Debug, Default, Clone)]
struct Totals {
    batches: u64,
    rows_in: u64,
    rows_out: u64,
    first_commit: Option<Duration>,
}

impl Show {
    /// The bar counts the files in `input`, which a batch takes `files_per_batch` at a time.
    pub(crate) fn new(started: Instant, input: &str, files_per_batch: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(csv_files(input));
            if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} files, {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Show { started, files_per_batch, bar, totals: Mutex::default() }
    }

    fn totals(&self) -> MutexGuard<'_, Totals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, line: String) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    /// What this run did.
    pub(crate) fn summary(&self, query: &StreamingQuery, input: &str, files: usize) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let totals = self.totals().clone();
        let seconds = self.started.elapsed().as_secs_f64();
        let Some(first_commit) = totals.first_commit else {
            say(&format!(
                "Nothing to do: every file in {input} has been taken. Add a CSV file there and run this again."
            ));
            return;
        };
        say(&format!(
            "{} {}, {} rows in, {} rows out ({}), {seconds:.2} s; first commit after {} ms; {files} files in all",
            totals.batches,
            if totals.batches == 1 { "batch" } else { "batches" },
            totals.rows_in,
            totals.rows_out,
            query.guarantee(),
            first_commit.as_millis(),
        ));
    }
}

impl QueryListener for Show {
    fn on_event(&self, event: &QueryEvent) {
        let QueryEvent::Progress(progress) = event else { return };
        let mut totals = self.totals();
        totals.batches += 1;
        totals.rows_in += progress.num_input_rows;
        totals.rows_out += progress.sink.num_output_rows;
        totals.first_commit.get_or_insert_with(|| self.started.elapsed());

        let phases: Vec<String> = PHASES
            .iter()
            .filter_map(|phase| progress.duration_ms.get(*phase).map(|ms| format!("{phase} {ms:.1}")))
            .collect();
        self.line(format!(
            "batch {:>3}: {:>6} rows in, {:>6} out, {:>8.0} rows/s; ms: {}",
            progress.batch_id,
            progress.num_input_rows,
            progress.sink.num_output_rows,
            progress.processed_rows_per_second,
            phases.join(", "),
        ));
        if let Some(bar) = &self.bar {
            // The offset counts the batches that took files, those of earlier runs included.
            let taken = progress.sources.first().and_then(|source| source.end_offset.get("logOffset")?.as_u64());
            let files = taken.map_or(0, |last| (last + 1) * self.files_per_batch);
            bar.set_position(files.min(bar.length().unwrap_or(files)));
            bar.set_message(format!("{} rows", totals.rows_in));
        }
    }
}

/// Where the worst routes are printed: with the lines of the batches, above the bar.
pub(crate) struct AboveBar(Arc<Show>);

impl AboveBar {
    pub(crate) fn new(show: &Arc<Show>) -> Self {
        AboveBar(Arc::clone(show))
    }
}

impl Write for AboveBar {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.line(String::from_utf8_lossy(text).trim_end().to_owned());
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn csv_files(directory: &str) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries.flatten().filter(|entry| entry.path().extension().is_some_and(|extension| extension == "csv")).count()
        as u64
}

/// A small table: flights by airport and band of delay.
pub(crate) async fn counts(delays: DataFrame) -> Result<()> {
    let counts = delays
        .aggregate(
            vec![col("origin"), col("band")],
            vec![count(lit(1)).alias("flights"), avg(col("dep_delay")).alias("mean_delay")],
        )?
        .select(vec![
            col("origin"),
            col("band"),
            col("flights"),
            round(vec![col("mean_delay"), lit(1)]).alias("mean_delay"),
        ])?
        .sort(vec![col("origin").sort(true, true), col("mean_delay").sort(true, true)])?;
    say(&counts.to_string().await?);
    Ok(())
}

/// How many rows of hourly statistics there are, up to when they are final, and what came too late for them.
pub(crate) fn hours(rows: usize, output: &str, query: Option<&StreamingQuery>) {
    let until = query.and_then(StreamingQuery::watermark_ms).and_then(chrono::DateTime::from_timestamp_millis);
    let until = until.map_or(String::new(), |until| format!(", final up to {}", until.format("%Y-%m-%d %H:%M UTC")));
    let late: u64 = query.map_or(0, |query| {
        let progress = query.recent_progress();
        progress.iter().flat_map(|p| &p.state_operators).map(|o| o.num_rows_dropped_by_watermark).sum()
    });
    let late = if late > 0 { format!("; {late} flights came too late for them") } else { String::new() };
    say(&format!("Hourly statistics per airline: {rows} rows in {output}{until}{late}"));
}

pub(crate) fn how_to_look(output: &str) {
    say(&format!(
        "Look at it, for instance\n  \
         with DuckDB:  duckdb -c \"SELECT band, count(*) FROM '{output}/*/*.parquet' GROUP BY band\"\n  \
         with Spark:   spark.read.parquet(\"{output}\").groupBy(\"band\").count().show()\n\
         Spark reads the directory's manifest, so it sees committed batches only, at any moment."
    ));
}

/// To standard output, which may be closed at the other end (`| head`).
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
