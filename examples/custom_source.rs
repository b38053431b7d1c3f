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

use std::sync::Arc;

use datafusion::arrow::array::{Int64Array, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::*;
use tidewater::prelude::*;
use tidewater::source::{
    LatestOffset, MicroBatchStream, Offset, OffsetRange, ReadLimit, ScanRequest, Source, SourceContext,
};

/// What a user names. It can be opened many times, once per run of a query.
#[derive(Debug)]
struct Squares;

#[async_trait::async_trait]
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

#[async_trait::async_trait]
impl MicroBatchStream for SquaresReader {
    /// The end of the stream is fixed anyway, so there is nothing to prepare for a query that ends by itself.
    async fn prepare_for_available_now(&mut self) -> Result<()> {
        Ok(())
    }

    async fn latest_offset(&mut self, after: Option<&Offset>, _limit: ReadLimit) -> Result<LatestOffset> {
        Ok(LatestOffset::at(Offset::new((after.map_or(0, count) + 10).min(30))))
    }

    async fn bind(&mut self, range: &OffsetRange, scan: &ScanRequest) -> Result<Arc<dyn ExecutionPlan>> {
        let numbers = range.start.as_ref().map_or(0, count)..count(&range.end);
        let squares = Arc::new(Int64Array::from_iter_values(numbers.map(|n| n * n)));
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), vec![squares])?;
        let schema = Arc::clone(&self.schema);
        Ok(MemorySourceConfig::try_new_exec(&[vec![rows]], schema, Some(scan.projection.clone()))?)
    }

    /// Called once rows will not be asked for again; a place to clean up.
    async fn commit(&mut self, _end: &Offset) -> Result<()> {
        Ok(())
    }
}

fn count(offset: &Offset) -> i64 {
    offset.value().as_i64().unwrap_or(0)
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
