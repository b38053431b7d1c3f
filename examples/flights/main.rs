//! Three queries over daily CSV files of flights, in one process:
//!
//! | query | keeps | writes |
//! |---|---|---|
//! | the main job | nothing | every flight to Parquet partitioned by airport, exactly once |
//! | hourly statistics per airline | open hours | an hour to Parquet, once, when it is over (append mode) |
//! | the worst routes | a sum per route | those that changed to the console, batch by batch (update mode) |
//!
//! ```text
//! cargo run --release --example flights              takes the files it has not taken yet, then ends
//! cargo run --release --example flights -- --batch   the same functions as batch jobs, for comparison
//! ```
//!
//! Run it again and it does nothing; add a file to the input and it takes just that one; kill it at any moment and the
//! next run goes on where it was, with no row lost or doubled. `pipeline.rs` is the main job, `statistics.rs` the other
//! two, `show.rs` is what you see.

mod pipeline;
mod show;
mod statistics;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::prelude::*;
use futures::future::{join_all, try_join_all};
use tidewater::prelude::*;
use tidewater_connectors::console::ConsoleSink;
use tidewater_connectors::file::{CsvOptions, FileSink, FileSource, committed_files};

use self::pipeline::{airlines_schema, flights_schema, pipeline};
use self::show::{AboveBar, Show};
use self::statistics::{hourly, worst_routes};

const FLIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/flights");
const AIRLINES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/airlines.csv");

/// Flights from CSV files to Parquet, exactly once; beside it, statistics by the hour in `<OUTPUT>-hourly`, and the
/// worst routes, batch by batch, on standard error.
#[derive(Parser)]
struct Args {
    /// Run once over all files as batch jobs; the results go to `<OUTPUT>-batch` and `<OUTPUT>-hourly-batch`
    #[arg(long)]
    batch: bool,
    /// Where the daily CSV files are
    #[arg(long, value_name = "DIR", default_value = FLIGHTS)]
    input: String,
    /// Where the Parquet files go
    #[arg(long, value_name = "DIR", default_value = "flights-out/delays")]
    output: String,
    /// Where the main job remembers how far it is; the others do so in `<CHECKPOINT>-hourly` and `<CHECKPOINT>-routes`
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

impl Args {
    fn source(&self) -> FileSource {
        let source = FileSource::new(&self.input, CsvOptions::new().header(true)).with_schema(flights_schema());
        source.max_files_per_trigger(self.files_per_batch)
    }

    /// What belongs to another query than the main one lies beside it.
    fn beside(place: &str, name: &str) -> String {
        format!("{}-{name}", place.trim_end_matches('/'))
    }

    fn hourly_output(&self) -> String {
        Self::beside(&self.output, "hourly")
    }

    /// What all three queries have in common.
    fn common(&self, writer: StreamWriter, name: &str, checkpoint: String) -> Result<StreamWriter> {
        let trigger = match &self.trigger {
            Some(interval) => Trigger::processing_time(interval),
            None => Trigger::AvailableNow,
        };
        let writer = writer.name(name).trigger(trigger).checkpoint(checkpoint);
        Ok(match self.partitions {
            Some(partitions) => writer.partitions(partitions),
            None => writer,
        })
    }
}

/// The queries as streams: what is new since the last run, a few files per batch.
async fn stream(args: &Args, started: Instant) -> Result<()> {
    let ctx = SessionContext::new();
    let show = Arc::new(Show::new(started, &args.input, args.files_per_batch));

    let delays = pipeline(ctx.read_stream(args.source())?, airlines(&ctx).await?)?;
    let delay_columns = columns(&delays);
    let writer = delays.write_stream(FileSink::parquet(&args.output).partition_by(["origin"])).listener(show.clone());
    let flights = args.common(writer, "flights", args.checkpoint.clone())?.start().await?;

    let hours = hourly(ctx.read_stream(args.source())?)?;
    let hour_columns = columns(&hours);
    let writer = hours.write_stream(FileSink::parquet(args.hourly_output())).output_mode(OutputMode::Append);
    let hours = args.common(writer, "hourly", Args::beside(&args.checkpoint, "hourly"))?.start().await?;

    let routes = worst_routes(ctx.read_stream(args.source())?)?;
    let writer = routes.write_stream(ConsoleSink::to(AboveBar::new(&show))).output_mode(OutputMode::Update);
    let routes = args.common(writer, "routes", Args::beside(&args.checkpoint, "routes"))?.start().await?;

    let queries = [&flights, &hours, &routes];
    let ended = tokio::select! {
        ended = try_join_all(queries.map(StreamingQuery::await_termination)) => ended.map(|_| ()),
        () = asked_to_stop() => Ok(()),
    };
    // All of them have ended, or one failed, or we were asked: none goes on alone.
    let stopped = join_all(queries.map(StreamingQuery::stop)).await;
    let files = committed_files(&args.output, &ctx.runtime_env()).await.map_or(0, |files| files.len());
    show.summary(&flights, &args.input, files);
    ended?;
    stopped.into_iter().collect::<Result<()>>()?;
    show::counts(read_back(&args.output, delay_columns).await?).await?;
    let rows = read_back(&args.hourly_output(), hour_columns).await?.count().await?;
    show::hours(rows, &args.hourly_output(), Some(&hours));
    show::how_to_look(&args.output);
    Ok(())
}

/// The queries as batch jobs: all files, one answer each, earlier answers are replaced.
async fn batch(args: &Args, started: Instant) -> Result<()> {
    let ctx = SessionContext::new();
    // A session that reads a stream knows what a window is; this one reads none.
    ctx.enable_windows();
    let (output, hourly_output) = (Args::beside(&args.output, "batch"), Args::beside(&args.hourly_output(), "batch"));
    remove_earlier_answer(Path::new(&output))?;
    remove_earlier_answer(Path::new(&hourly_output))?;

    let schema = flights_schema();
    let flights = ctx.read_csv(&args.input, CsvReadOptions::new().has_header(true).schema(&schema)).await?;
    let options = DataFrameWriteOptions::new().with_partition_by(vec!["origin".to_owned()]);
    pipeline(flights.clone(), airlines(&ctx).await?)?.write_parquet(&output, options, None).await?;
    hourly(flights)?.write_parquet(&hourly_output, DataFrameWriteOptions::new(), None).await?;

    show::say(&format!("Batch jobs done in {:.2} s. Output: {output}", started.elapsed().as_secs_f64()));
    let origin = ("origin".to_owned(), DataType::Utf8);
    let written = ParquetReadOptions::default().table_partition_cols(vec![origin]);
    show::counts(ctx.read_parquet(&output, written).await?).await?;
    let rows = ctx.read_parquet(&hourly_output, ParquetReadOptions::default()).await?.count().await?;
    show::hours(rows, &hourly_output, None);
    Ok(())
}

/// The names of the airlines, a table that does not stream.
async fn airlines(ctx: &SessionContext) -> Result<DataFrame> {
    Ok(ctx.read_csv(AIRLINES, CsvReadOptions::new().has_header(true).schema(&airlines_schema())).await?)
}

/// Names and types of the columns, without what a stream notes beside them, such as which is event time.
fn columns(rows: &DataFrame) -> SchemaRef {
    let plain = |column: &FieldRef| Field::new(column.name(), column.data_type().clone(), true);
    Arc::new(Schema::new(rows.schema().fields().iter().map(plain).collect::<Vec<Field>>()))
}

/// What readers of the stream's output see: the files its manifest names, and no others. The file source understands the
/// manifest, so this is a stream too, from one directory into memory.
async fn read_back(output: &str, columns: SchemaRef) -> Result<DataFrame> {
    let ctx = SessionContext::new();
    let rows = MemorySink::new();
    let query = ctx
        .read_stream(FileSource::parquet(output).with_schema(columns))?
        .write_stream(rows.clone())
        .trigger(Trigger::AvailableNow)
        .start()
        .await?;
    query.await_termination().await?;
    Ok(ctx.read_batches(rows.batches())?)
}

/// Clears what an earlier batch job wrote, and nothing else: a directory with anything but `origin=…` and Parquet files
/// in it stays.
fn remove_earlier_answer(output: &Path) -> Result<()> {
    let named = |action: &str, error: std::io::Error| Error::io(action, output.display().to_string(), error);
    let entries: Vec<PathBuf> = match std::fs::read_dir(output) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
    }
    .map_err(|error| named("list the directory", error))?;
    let ours = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.starts_with("origin=") || name.ends_with(".parquet")
    };
    if let Some(foreign) = entries.iter().find(|path| !ours(path)) {
        return Err(Error::invalid("the directory for the batch job holds something that no batch job wrote")
            .with_file(foreign.display().to_string())
            .with_hint("give another --output, or move that away"));
    }
    let remove = |path: &PathBuf| match path.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    };
    entries.iter().try_for_each(remove).map_err(|error| named("clear the directory", error))
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
