//! The main job: daily CSV files of flights become Parquet partitioned by airport, each flight exactly once.
//!
//! ```text
//! cargo run --release --example flights              takes the files it has not taken yet, then ends
//! cargo run --release --example flights -- --batch   the same function as a batch job, for comparison
//! ```
//!
//! Run it again and it does nothing; add a file to the input and it takes just that one; kill it at any moment and the
//! next run goes on where it was, with no row lost or doubled. `pipeline.rs` is the job, `show.rs` is what you see.

mod pipeline;
mod show;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::prelude::*;
use tidewater::prelude::*;
use tidewater_connectors::file::{FileSink, FileSource, committed_files};

use self::pipeline::{airlines_schema, flights_schema, pipeline};
use self::show::Show;

const FLIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/flights");
const AIRLINES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/airlines.csv");

/// Flights from CSV files to Parquet, exactly once.
#[derive(Parser)]
struct Args {
    /// Run once over all files as a batch job; the result goes to `<OUTPUT>-batch`
    #[arg(long)]
    batch: bool,
    /// Where the daily CSV files are
    #[arg(long, value_name = "DIR", default_value = FLIGHTS)]
    input: String,
    /// Where the Parquet files go
    #[arg(long, value_name = "DIR", default_value = "flights-out/delays")]
    output: String,
    /// Where the stream remembers how far it is
    #[arg(long, value_name = "DIR", default_value = "flights-out/checkpoint")]
    checkpoint: String,
    /// How many files one batch may take
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    files_per_batch: u64,
    /// Keep running and look for new files this often, as in `10 seconds`; without it, take what is there and end
    #[arg(long, value_name = "INTERVAL", allow_hyphen_values = true)]
    trigger: Option<String>,
    /// Into how many partitions a batch is split [default: one per core]
    #[arg(long, value_name = "N")]
    partitions: Option<usize>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let started = Instant::now();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let args = Args::parse();
    let done = if args.batch { batch(&args, started).await } else { stream(&args, started).await };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flights: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The job as a stream: what is new since the last run, a few files per batch.
async fn stream(args: &Args, started: Instant) -> Result<()> {
    let ctx = SessionContext::new();
    let source =
        FileSource::csv(&args.input).schema(flights_schema()).header(true).max_files_per_trigger(args.files_per_batch);
    let sink = FileSink::parquet(&args.output).partition_by(["origin"]);
    let trigger = match &args.trigger {
        Some(interval) => Trigger::processing_time(interval)?,
        None => Trigger::AvailableNow,
    };

    let show = Arc::new(Show::new(started, &args.input, args.files_per_batch));
    let delays = pipeline(ctx.read_stream(source).await?, airlines(&ctx).await?)?;
    let columns: SchemaRef = Arc::new(delays.schema().as_arrow().clone());
    let mut writer =
        delays.write_stream(sink).name("flights").trigger(trigger).checkpoint(&args.checkpoint).listener(show.clone());
    if let Some(partitions) = args.partitions {
        writer = writer.partitions(partitions);
    }
    let query = writer.start().await?;

    let ended = tokio::select! {
        ended = query.await_termination() => ended,
        () = asked_to_stop() => query.stop().await,
    };
    let files = committed_files(&args.output, &ctx.runtime_env()).await.map_or(0, |files| files.len());
    show.summary(&query, &args.input, files);
    ended?;
    show::counts(read_back(&args.output, columns).await?).await?;
    show::how_to_look(&args.output);
    Ok(())
}

/// The job as a batch job: all files, one answer, an earlier answer is replaced.
async fn batch(args: &Args, started: Instant) -> Result<()> {
    let ctx = SessionContext::new();
    let output = format!("{}-batch", args.output.trim_end_matches('/'));
    remove_earlier_answer(Path::new(&output))?;

    let schema = flights_schema();
    let flights = ctx.read_csv(&args.input, CsvReadOptions::new().has_header(true).schema(&schema)).await?;
    let options = DataFrameWriteOptions::new().with_partition_by(vec!["origin".to_owned()]);
    pipeline(flights, airlines(&ctx).await?)?.write_parquet(&output, options, None).await?;

    show::say(&format!("Batch job done in {:.2} s. Output: {output}", started.elapsed().as_secs_f64()));
    let origin = ("origin".to_owned(), DataType::Utf8);
    let written = ParquetReadOptions::default().table_partition_cols(vec![origin]);
    show::counts(ctx.read_parquet(&output, written).await?).await
}

/// The names of the airlines, a table that does not stream.
async fn airlines(ctx: &SessionContext) -> Result<DataFrame> {
    Ok(ctx.read_csv(AIRLINES, CsvReadOptions::new().has_header(true).schema(&airlines_schema())).await?)
}

/// What readers of the stream's output see: the files its manifest names, and no others. The file source understands the
/// manifest, so this is a stream too, from one directory into memory.
async fn read_back(output: &str, columns: SchemaRef) -> Result<DataFrame> {
    let ctx = SessionContext::new();
    let rows = MemorySink::new();
    let query = ctx
        .read_stream(FileSource::parquet(output).schema(columns))
        .await?
        .write_stream(rows.clone())
        .trigger(Trigger::AvailableNow)
        .start()
        .await?;
    query.await_termination().await?;
    Ok(ctx.read_batches(rows.batches())?)
}

/// Clears what an earlier batch job wrote, and nothing else: a directory with anything but `origin=…` in it stays.
fn remove_earlier_answer(output: &Path) -> Result<()> {
    let named = |action: &str, error: std::io::Error| Error::io(action, output.display().to_string(), error);
    let entries: Vec<PathBuf> = match std::fs::read_dir(output) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
    }
    .map_err(|error| named("list the directory", error))?;
    let ours = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("origin="));
    if let Some(foreign) = entries.iter().find(|path| !ours(path)) {
        return Err(Error::invalid("the directory for the batch job holds something that no batch job wrote")
            .file(foreign.display().to_string())
            .hint("give another --output, or move that away"));
    }
    entries.iter().try_for_each(std::fs::remove_dir_all).map_err(|error| named("clear the directory", error))
}

/// Returns on Ctrl-C or SIGTERM.
async fn asked_to_stop() {
    #[cfg(unix)]
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<Option<()>>();
    tokio::select! {
        Ok(()) = tokio::signal::ctrl_c() => {}
        _ = terminated => {}
    }
}
