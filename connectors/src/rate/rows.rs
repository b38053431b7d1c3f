//! The rows of a range of numbers, made while they are read.

use std::ops::Range;
use std::sync::{Arc, LazyLock};

use arrow::array::{Int64Array, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use futures::stream;
use serde::{Deserialize, Serialize};
use tidewater::error::Result;
use tidewater::id::BatchId;
use tidewater::source::{ScanRequest, SourceScanner, Split};

const ROWS_PER_BATCH: i64 = 8192;
const US_PER_MS: i64 = 1000;

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let timestamp = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![Field::new("timestamp", timestamp, true), Field::new("value", DataType::Int64, true)]))
});

/// `timestamp` and `value`.
pub(super) fn schema() -> SchemaRef {
    Arc::clone(&SCHEMA)
}

/// Some numbers and their times, which are spread evenly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Rows {
    pub(super) values: Range<i64>,
    /// The time of the first.
    pub(super) start_ms: i64,
    /// How much later the first after them is.
    pub(super) span_ms: i64,
}

impl Rows {
    fn time_us(&self, value: i64) -> i64 {
        let count = (self.values.end - self.values.start).max(1);
        let ms_per_row = self.span_ms as f64 / count as f64;
        let later_ms = (ms_per_row * (value - self.values.start) as f64).round() as i64;
        self.start_ms.saturating_add(later_ms).saturating_mul(US_PER_MS)
    }

    /// These rows in `partitions` equal parts.
    pub(super) fn splits(&self, partitions: usize) -> Result<Vec<Split>> {
        let partitions = partitions.max(1) as i64;
        let count = self.values.end - self.values.start;
        // The first `count % partitions` parts take one more.
        let edge = |i: i64| self.values.start + count / partitions * i + (count % partitions).min(i);
        let parts = (0..partitions).map(|i| Part { of: self.clone(), values: edge(i)..edge(i + 1) });
        parts.map(|part| Split::new(&part)).collect()
    }
}

/// Makes the rows of splits; both sources have it.
#[derive(Debug)]
pub(super) struct RateScanner {
    /// The source, for errors.
    pub(super) source: String,
}

impl SourceScanner for RateScanner {
    fn scan(&self, _batch: BatchId, splits: &[Split], scan: &ScanRequest) -> Result<Arc<dyn ExecutionPlan>> {
        let part = |split: &Split| Ok(Arc::new(split.to::<Part>(&self.source)?) as Arc<dyn PartitionStream>);
        let parts = splits.iter().map(part).collect::<Result<_>>()?;
        Ok(Arc::new(StreamingTableExec::try_new(schema(), parts, Some(&scan.projection), [], false, None)?))
    }
}

/// A split: some of these rows.
#[derive(Debug, Serialize, Deserialize)]
struct Part {
    of: Rows,
    values: Range<i64>,
}

impl PartitionStream for Part {
    fn schema(&self) -> &SchemaRef {
        &SCHEMA
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (of, end) = (self.of.clone(), self.values.end);
        let batches = self.values.clone().step_by(ROWS_PER_BATCH as usize).map(move |from| {
            let values = from..end.min(from + ROWS_PER_BATCH);
            let times = TimestampMicrosecondArray::from_iter_values(values.clone().map(|value| of.time_us(value)));
            let columns: Vec<arrow::array::ArrayRef> =
                vec![Arc::new(times.with_timezone("UTC")), Arc::new(Int64Array::from_iter_values(values))];
            Ok(RecordBatch::try_new(schema(), columns)?)
        });
        Box::pin(RecordBatchStreamAdapter::new(schema(), stream::iter(batches)))
    }
}

#[cfg(test)]
pub(super) mod testing {
    //! What both sources' tests need.

    use arrow::array::AsArray;
    use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
    use datafusion::physical_plan::collect;
    use datafusion::prelude::SessionContext;
    use tidewater::checkpoint::MetadataStore;
    use tidewater::clock::Clock;
    use tidewater::source::{MicroBatchStream, OffsetRange, SourceContext};

    use super::*;

    pub(crate) fn context(log: Arc<dyn MetadataStore>, clock: Arc<dyn Clock>) -> SourceContext {
        let session = Arc::new(SessionContext::new().state());
        let mut context = SourceContext::new(log, session, clock);
        context.partitions = 3;
        context
    }

    /// The rows of `range` as (µs, value), by value, and in how many partitions they came.
    pub(crate) async fn rows(reader: &mut dyn MicroBatchStream, range: &OffsetRange) -> (Vec<(i64, i64)>, usize) {
        let scan = ScanRequest::new(vec![1, 0], Arc::new(schema().project(&[1, 0]).unwrap()));
        let plan = reader.bind(range, &scan).await.unwrap();
        assert_eq!(plan.schema(), scan.schema);
        let partitions = plan.properties().partitioning.partition_count();
        let mut rows = vec![];
        for batch in collect(plan, SessionContext::new().task_ctx()).await.unwrap() {
            let values = batch.column(0).as_primitive::<Int64Type>();
            let times = batch.column(1).as_primitive::<TimestampMicrosecondType>();
            rows.extend(times.values().iter().copied().zip(values.values().iter().copied()));
        }
        rows.sort_unstable_by_key(|(_, value)| *value);
        (rows, partitions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_spread_and_rounded_to_milliseconds() {
        let rows = Rows { values: 10..13, start_ms: 1000, span_ms: 1000 };
        assert_eq!([10, 11, 12].map(|value| rows.time_us(value)), [1_000_000, 1_333_000, 1_667_000]);
    }
}
