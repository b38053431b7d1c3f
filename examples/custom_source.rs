//! A source of your own: the square numbers, ten per batch, thirty in all.
//!
//! `cargo run --release --example custom_source`
//!
//! A source answers two questions: how far may the next batch go (`latest_offset`), and which rows lie between two offsets
//! (`bind`). One promise makes the whole query exactly once: the same range gives the same rows, in this run and in every
//! later one. The engine writes the range to the checkpoint before it asks for the rows, so a batch that a crash cut
//! short is repeated with the same rows.
//!
//! What `bind` gives runs in the process of the query's driver. A source whose rows may be read elsewhere implements `splits`
//! in its place, and `Source::scanner`.
//!
//! DataFusion, Arrow and `async_trait` come from `tidewater`, so they have the versions that its traits are made of.

use std::sync::Arc;

use tidewater::arrow::array::{Int64Array, RecordBatch};
use tidewater::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use tidewater::arrow::util::pretty::pretty_format_batches;
use tidewater::async_trait;
use tidewater::datafusion::datasource::memory::MemorySourceConfig;
use tidewater::datafusion::physical_plan::ExecutionPlan;
use tidewater::datafusion::prelude::*;
use tidewater::prelude::*;
use tidewater::source::{
    LatestOffset, MicroBatchStream, Offset, OffsetRange, ReadLimit, ScanRequest, Source, SourceContext,
};

/// What a user names. It can be opened many times, once per run of a query.
#[derive(Debug)]
struct Squares;

#[async_trait]
impl Source for Squares {
    fn description(&self) -> String {
        "squares".to_owned()
    }

    fn schema(&self) -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new("square", DataType::Int64, false)]))
    }

    async fn open(&self, _context: SourceContext) -> Result<Box<dyn MicroBatchStream>> {
        Ok(Box::new(SquaresReader { schema: self.schema() }))
    }
}

/// One run's view of it. The offset is any JSON; here it is the number of squares read so far.
#[derive(Debug)]
struct SquaresReader {
    schema: SchemaRef,
}

/// `prepare_for_available_now` and `commit` stay with their defaults: the end does not move, and nothing is to be cleaned up.
#[async_trait]
impl MicroBatchStream for SquaresReader {
    async fn latest_offset(&mut self, after: Option<&Offset>, _limit: ReadLimit) -> Result<LatestOffset> {
        Ok(LatestOffset::at(Offset::new((count(after)? + 10).min(30))))
    }

    async fn bind(&mut self, range: &OffsetRange, scan: &ScanRequest) -> Result<Arc<dyn ExecutionPlan>> {
        let numbers = count(range.start.as_ref())?..count(Some(&range.end))?;
        let squares = Arc::new(Int64Array::from_iter_values(numbers.map(|n| n * n)));
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), vec![squares])?;
        let schema = Arc::clone(&self.schema);
        Ok(MemorySourceConfig::try_new_exec(&[vec![rows]], schema, Some(scan.projection.clone()))?)
    }
}

/// Strict: an offset of another source is an error, and no place to begin at.
fn count(offset: Option<&Offset>) -> Result<i64> {
    offset.map_or(Ok(0), |offset| offset.to("squares"))
}

#[tokio::main]
async fn main() -> Result<()> {
    let sink = MemorySink::new();
    let ctx = SessionContext::new();
    let even = ctx.read_stream(Squares)?.filter((col("square") % lit(2)).eq(lit(0)))?;
    let query = even.write_stream(sink.clone()).trigger(Trigger::AvailableNow).start().await?;
    query.await_termination().await?;
    println!("{}", pretty_format_batches(&sink.batches())?);
    Ok(())
}
