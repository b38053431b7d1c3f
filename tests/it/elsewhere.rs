//! Tasks need nothing of the driver's half of a source and a sink that split and make writers elsewhere.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::prelude::*;
use serde_json::json;
use tidewater::error::Error;
use tidewater::id::{BatchId, PartitionId};
use tidewater::prelude::*;
use tidewater::sink::{
    BatchStatus, DataWriter, Guarantee, Receipt, Sink, SinkContext, StreamingWrite, WriterContext, WriterFactory,
};
use tidewater::testing::{assert_same_rows, table};
use tidewater_connectors::file::{CsvOptions, FileSink, FileSource, ParseMode};
use tidewater_workspace::files::{Format, committed_rows, put_file};

use crate::job::{finish, session, text, to_the_end};

/// A file sink whose driver begins and commits, and writes nothing.
#[derive(Debug)]
struct Apart(FileSink);

#[async_trait]
impl Sink for Apart {
    fn description(&self) -> String {
        self.0.description()
    }

    fn guarantee(&self) -> Guarantee {
        self.0.guarantee()
    }

    fn supports_output_mode(&self, mode: OutputMode) -> bool {
        self.0.supports_output_mode(mode)
    }

    async fn open(&self, context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
        Ok(Box::new(ApartWriter(self.0.open(context).await?)))
    }

    fn writer_factory(&self, context: WriterContext) -> Result<Option<Arc<dyn WriterFactory>>> {
        self.0.writer_factory(context)
    }
}

#[derive(Debug)]
struct ApartWriter(Box<dyn StreamingWrite>);

#[async_trait]
impl StreamingWrite for ApartWriter {
    async fn begin(&self, batch: BatchId) -> Result<BatchStatus> {
        self.0.begin(batch).await
    }

    fn partition(&self, _batch: BatchId, partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        Err(Error::invalid("the driver is asked to write").with_partition(partition))
    }

    async fn commit(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        self.0.commit(batch, receipts).await
    }
}

/// Read at two places of the plan; what the scans met is told once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_tasks_do_needs_no_driver() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    for (name, lines) in [("a.csv", "1,x\nno,y\n"), ("b.csv", "2,x\n3,z\n")] {
        put_file(&input, name, lines.as_bytes()).unwrap();
    }
    let schema = table::schema(&[("n", "long"), ("s", "string")]).unwrap();
    let source = FileSource::new(text(&input), CsvOptions::new().parse_mode(ParseMode::DropMalformed))
        .with_schema(schema.clone());
    let ctx = session();
    let rows = ctx.read_stream(source).unwrap();
    let twice = rows.clone().filter(col("n").gt(lit(1))).unwrap().union(rows).unwrap();
    let sink = Apart(FileSink::json(text(&output)));
    let query = finish(to_the_end(twice, sink, &dir.path().join("checkpoint"))).await.unwrap();

    let expected = table::rows(&schema, &json!([[1, "x"], [2, "x"], [2, "x"], [3, "z"], [3, "z"]])).unwrap();
    let written: Vec<RecordBatch> = committed_rows(&output, Format::Json, &schema).await.unwrap();
    assert_same_rows(&[expected], &written);
    let progress = query.last_progress().unwrap();
    assert_eq!(progress.sources[0].metrics.get("malformedRowsDropped").map(String::as_str), Some("1"), "{progress:?}");
    assert_eq!(progress.sources[0].metrics.get("entriesLeftOut").map(String::as_str), Some("0"), "{progress:?}");
    assert!(query.explain().contains("FileScanExec: csv"), "{}", query.explain());
}
