//! Your own code once per batch, and how its number makes a repeat harmless.
//!
//! `cargo run --release --example foreach_batch`
//!
//! After a crash the engine repeats the batch that was running, with the same number and the same rows: at least once. A
//! function that does the same thing when it is called twice with the same number makes that exactly once. Here every
//! batch writes one file, and the file bears the number: writing it again changes nothing.

use std::sync::Arc;

use datafusion::arrow::array::{Int64Array, RecordBatch, StringArray};
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::functions_aggregate::expr_fn::sum;
use datafusion::prelude::*;
use tidewater::prelude::*;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = tempfile::tempdir()?;
    let dir = out.path().to_owned();

    // Inside the function the rows are a bounded DataFrame: aggregate it, join it, write it to several places.
    let sink = ForeachBatchSink::new(move |rows, batch| {
        let file = dir.join(format!("batch-{batch}.csv")).display().to_string();
        async move {
            let totals = rows.aggregate(vec![col("shop")], vec![sum(col("cents")).alias("cents")])?;
            let options = DataFrameWriteOptions::new().with_single_file_output(true);
            totals.sort(vec![col("shop").sort(true, false)])?.write_csv(&file, options, None).await?;
            Ok(())
        }
    })
    .exactly_once(); // Our promise, for the reasons above: the query shows it as its guarantee.

    let ctx = SessionContext::new();
    let first = sales(&["north", "south", "north"], &[250, 100, 50])?;
    let source = MemorySource::new(first.schema());
    let query = ctx.read_stream(source.clone())?.write_stream(sink).start().await?;
    println!("guarantee: {}", query.guarantee());

    for rows in [first, sales(&["south", "south"], &[70, 30])?] {
        source.add(vec![rows])?;
        query.process_all_available().await?;
    }
    query.stop().await?;

    for batch in 0..2 {
        let file = format!("batch-{batch}.csv");
        println!("{file}:\n{}", std::fs::read_to_string(out.path().join(&file))?);
    }
    Ok(())
}

fn sales(shops: &[&str], cents: &[i64]) -> Result<RecordBatch, Box<dyn std::error::Error>> {
    let shops = Arc::new(StringArray::from(shops.to_vec())) as _;
    Ok(RecordBatch::try_from_iter([("shop", shops), ("cents", Arc::new(Int64Array::from(cents.to_vec())) as _)])?)
}
