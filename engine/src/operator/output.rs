//! Rows made at once, as DataFusion's stream of batches.

use std::future::Future;

use arrow::array::ArrayRef;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::common::internal_err;
use datafusion::error::Result;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{TryStreamExt, stream};

use crate::state::spelling::{in_type, shrink_to_fit};

/// How many rows of state become one batch of output.
pub(super) const OUTPUT_ROWS: usize = 8192;

/// The batches that a piece of work results in.
pub(super) fn stream_once(
    schema: SchemaRef,
    work: impl Future<Output = Result<Vec<RecordBatch>>> + Send + 'static,
) -> SendableRecordBatchStream {
    let batches = stream::once(work).map_ok(|batches| stream::iter(batches.into_iter().map(Ok))).try_flatten();
    Box::pin(RecordBatchStreamAdapter::new(schema, batches))
}

/// Columns as rows of this schema; types that differ in how they are kept only are brought to it. Rows that go out do not
/// hold on to the state they came from.
pub(super) fn record_batch_with_schema(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    if columns.len() != schema.fields().len() {
        return internal_err!("{} columns for a schema of {}", columns.len(), schema.fields().len());
    }
    let columns = columns
        .into_iter()
        .zip(schema.fields())
        .map(|(column, field)| shrink_to_fit(&in_type(&column, field.data_type())?))
        .collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}
