//! Rows per second of Parquet through a filter to discard, beside plain DataFusion on the same files, turn by turn.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{Float64Array, Int64Array, RecordBatch, StringArray};
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::prelude::*;
use futures::StreamExt;
use tidewater::prelude::*;
use tidewater_connectors::file::FileSource;

use crate::quantile;

const FILES: i64 = 8;
const ROWS_PER_FILE: i64 = 1_000_000;
const ROUNDS: usize = 7;

pub(crate) async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let input = folder.path().join("in").display().to_string();
    write_files(&input).await?;
    let partitions = std::thread::available_parallelism()?.get();
    let rows = FILES * ROWS_PER_FILE;
    println!(
        "{rows} rows in {FILES} Parquet files, {partitions} partitions, filter and projection, {ROUNDS} rounds in turn"
    );

    let (mut ours, mut plain, mut ratios) = (vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let batch = datafusion_seconds(&input, partitions).await?;
        let stream = tidewater_seconds(&input, partitions).await?;
        plain.push(rows as f64 / batch / 1e6);
        ours.push(rows as f64 / stream / 1e6);
        ratios.push(batch / stream);
    }
    for (name, figures) in
        [("DataFusion, million rows/s", &mut plain), ("Tidewater, million rows/s", &mut ours), ("ratio", &mut ratios)]
    {
        figures.sort_by(f64::total_cmp);
        let (low, high) = (quantile(figures, 0.0), quantile(figures, 1.0));
        println!("{name:<28} median {:.2}  ({low:.2} to {high:.2})", quantile(figures, 0.5));
    }
    Ok(())
}

fn query(rows: DataFrame) -> Result<DataFrame, Box<dyn std::error::Error>> {
    Ok(rows.filter(col("v").gt(lit(10)))?.select(vec![col("k"), (col("x") * lit(2.0)).alias("twice")])?)
}

async fn datafusion_seconds(input: &str, partitions: usize) -> Result<f64, Box<dyn std::error::Error>> {
    let started = Instant::now();
    let ctx = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(partitions));
    let rows = query(ctx.read_parquet(input, ParquetReadOptions::default()).await?)?;
    let mut reading: Vec<tokio::task::JoinHandle<datafusion::error::Result<usize>>> = vec![];
    for mut partition in rows.execute_stream_partitioned().await? {
        reading.push(tokio::spawn(async move {
            let mut count = 0;
            while let Some(rows) = partition.next().await {
                count += rows?.num_rows();
            }
            Ok(count)
        }));
    }
    let mut count = 0;
    for partition in reading {
        count += partition.await??;
    }
    assert!(count > 0);
    Ok(started.elapsed().as_secs_f64())
}

async fn tidewater_seconds(input: &str, partitions: usize) -> Result<f64, Box<dyn std::error::Error>> {
    let started = Instant::now();
    let ctx = SessionContext::new();
    let source = FileSource::parquet(input).infer_schema(&ctx).await?;
    let query = query(ctx.read_stream(source)?)?
        .write_stream(DiscardSink::new())
        .partitions(partitions)
        .trigger(Trigger::AvailableNow)
        .start()
        .await?;
    query.await_termination().await?;
    let written = query.last_progress().map_or(0, |progress| progress.sink.num_output_rows);
    assert!(written > 0);
    Ok(started.elapsed().as_secs_f64())
}

async fn write_files(input: &str) -> Result<(), Box<dyn std::error::Error>> {
    let ctx = SessionContext::new();
    for file in 0..FILES {
        let ids = (file * ROWS_PER_FILE)..((file + 1) * ROWS_PER_FILE);
        let rows = RecordBatch::try_from_iter([
            ("k", Arc::new(StringArray::from_iter_values(ids.clone().map(|id| format!("key-{}", id % 1000)))) as _),
            ("v", Arc::new(Int64Array::from_iter_values(ids.clone().map(|id| id % 100))) as _),
            ("x", Arc::new(Float64Array::from_iter_values(ids.map(|id| id as f64 / 3.0))) as _),
        ])?;
        let path = format!("{input}/part-{file}.parquet");
        let options = DataFrameWriteOptions::new().with_single_file_output(true);
        ctx.read_batch(rows)?.write_parquet(&path, options, None).await?;
    }
    Ok(())
}
