//! Jobs and helpers that several tests share.

use std::path::Path;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use datafusion::prelude::*;
use tidewater::checkpoint::{MetadataStore, open_store};
use tidewater::prelude::*;
use tidewater::testing::{batch_answer, difference, serialised_batches, table};
use tidewater_connectors::file::{CsvOptions, FileSource};
use tidewater_workspace::events::event_schema;

/// Of every stage, because one partition hides mistakes.
pub(crate) const PARTITIONS: usize = 3;

/// A session whose batches run as if their tasks were in another process: only data goes there and back.
pub(crate) fn session() -> SessionContext {
    SessionContext::new_with_config(serialised_batches(SessionConfig::new()))
}

/// A filter and two projections, for jobs whose query is not the point.
pub(crate) fn doubled(events: DataFrame) -> Result<DataFrame> {
    Ok(events.filter(col("v").gt(lit(0)).or(col("v").is_null()))?.select(vec![
        col("ts"),
        col("k"),
        (col("v") * lit(2)).alias("v2"),
    ])?)
}

/// The columns of [`doubled`].
pub(crate) const DOUBLED: [(&str, &str); 3] = [("ts", "timestamp"), ("k", "string"), ("v2", "long")];

/// What [`doubled`] answers over all rows at once.
pub(crate) async fn doubled_answer(rows: &[RecordBatch]) -> Vec<RecordBatch> {
    batch_answer(event_schema().unwrap(), rows.to_vec(), doubled).await.unwrap()
}

/// A memory source of events that gives each batch one add.
pub(crate) fn memory_events() -> MemorySource {
    MemorySource::new(event_schema().unwrap()).partitions(PARTITIONS).adds_per_batch(1)
}

/// Adds rows, dealt over the partitions.
pub(crate) fn add(source: &MemorySource, rows: &RecordBatch) {
    source.add(table::deal(rows, PARTITIONS).unwrap()).unwrap();
}

/// A file source of events as JSON lines.
pub(crate) fn json_events(folder: &Path) -> FileSource {
    FileSource::json(text(folder)).with_schema(event_schema().unwrap())
}

/// A file source of events as CSV with a header line.
pub(crate) fn csv_events(folder: &Path) -> FileSource {
    FileSource::new(text(folder), CsvOptions::new().header(true)).with_schema(event_schema().unwrap())
}

/// A path as text.
pub(crate) fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A checkpoint in a local folder, fast rather than safe against power cuts.
pub(crate) fn local_checkpoint(folder: &Path) -> Arc<dyn MetadataStore> {
    open_store(&text(folder), &SessionContext::new().runtime_env(), false).unwrap()
}

/// Whether both are the same rows; the error names missing and surplus ones.
pub(crate) fn same(expected: &[RecordBatch], actual: &[RecordBatch]) -> Result<(), String> {
    match difference(expected, actual) {
        Ok(None) => Ok(()),
        Ok(Some(difference)) => Err(difference),
        Err(e) => Err(e.to_string()),
    }
}

/// A writer of several partitions with a checkpoint at `checkpoint`, which takes what is there and ends.
pub(crate) fn to_the_end(
    stream: DataFrame,
    sink: impl tidewater::sink::Sink + 'static,
    checkpoint: &Path,
) -> StreamWriter {
    stream
        .write_stream(sink)
        .checkpoint(text(checkpoint))
        .durable(false)
        .partitions(PARTITIONS)
        .trigger(Trigger::AvailableNow)
}

/// Runs a writer to its end.
pub(crate) async fn finish(writer: StreamWriter) -> Result<StreamingQuery> {
    let query = writer.start().await?;
    query.await_termination().await?;
    Ok(query)
}
