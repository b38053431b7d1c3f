//! Notes the event times that pass, and lets every row through.
//!
//! A row without event time does not show how far time has come: it is not counted. (Spark counts it as 1970, which
//! moves nothing either, as a watermark begins there.)

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StructArray};
use arrow::buffer::NullBuffer;
use arrow::compute::kernels::cast::cast;
use arrow::datatypes::{DataType, Field, SchemaRef, TimeUnit, TimestampMicrosecondType};
use datafusion::common::Statistics;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties};
use futures::StreamExt;

use crate::batch::{BatchContext, EventTimeStats, with_schema};
use crate::plan_node::{no_expressions, one_input};
use crate::watermark::event_time_metadata::window_us;

/// The physical side of [`with_watermark`](crate::query::StreamingDataFrameExt::with_watermark).
#[derive(Debug, Clone)]
pub(crate) struct EventTimeExec {
    /// Its place among the `with_watermark`s of the query.
    node: usize,
    /// The event-time column.
    column: usize,
    /// Whether it was said that rows have times out of range.
    warned: Arc<AtomicBool>,
    input: Arc<dyn ExecutionPlan>,
    /// The input's columns, with the event-time mark.
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
}

impl EventTimeExec {
    pub(crate) fn new(node: usize, column: usize, schema: SchemaRef, input: Arc<dyn ExecutionPlan>) -> Self {
        // The order of the input is that of the output: only a mark is added.
        let ordered = input.equivalence_properties().clone().with_new_schema(Arc::clone(&schema));
        let properties = PlanProperties::new(
            ordered.unwrap_or_else(|_| EquivalenceProperties::new(Arc::clone(&schema))),
            input.output_partitioning().clone(),
            input.pipeline_behavior(),
            input.boundedness(),
        );
        let (warned, properties) = (Arc::default(), Arc::new(properties));
        EventTimeExec { node, column, warned, input, schema, properties }
    }
}

impl DisplayAs for EventTimeExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let name = self.schema.fields().get(self.column).map_or("?", |field| field.name().as_str());
        write!(f, "EventTimeExec: column={name}, node={}", self.node)
    }
}

impl EventTimeExec {
    fn with_input(&self, input: Arc<dyn ExecutionPlan>) -> Self {
        let exec = EventTimeExec::new(self.node, self.column, Arc::clone(&self.schema), input);
        EventTimeExec { warned: Arc::clone(&self.warned), ..exec }
    }
}

impl ExecutionPlan for EventTimeExec {
    one_input!(EventTimeExec);
    no_expressions!();

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batch = BatchContext::of(&context)?;
        let input = self.input.execute(partition, context)?;
        let schema = Arc::clone(&self.schema);
        let (node, column) = (self.node, self.column);
        let warned = Arc::clone(&self.warned);
        let rows = input.map(move |rows| {
            let rows = rows?;
            let seen = event_times(rows.column(column))?;
            batch.observe_event_times(node, &seen);
            if seen.out_of_range > 0 && !warned.swap(true, Ordering::Relaxed) {
                let name = schema.field(column).name();
                tracing::warn!(
                    batch = %batch.batch,
                    "rows have a time in `{name}` that is too far from 1970 to be expressed in microseconds; they count as rows \
                     without event time, now and in later batches: `eventTime.outOfRange` of the progress says how many"
                );
            }
            with_schema(&rows, &schema)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows)))
    }

    fn statistics_from_inputs(
        &self,
        input_stats: &[Arc<Statistics>],
        _args: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        Ok(input_stats.first().cloned().unwrap_or_else(|| Arc::new(Statistics::new_unknown(&self.schema))))
    }
}

/// The event times of a column in µs since 1970, null where a row has none: a timestamp, or a window whose `end` counts.
fn plain_times_us(column: &ArrayRef) -> Result<Int64Array> {
    let (column, nulls) = match column.data_type() {
        DataType::Struct(_) => {
            let window: &StructArray = column.as_struct();
            let end = window.column_by_name("end");
            let end =
                end.cloned().ok_or_else(|| DataFusionError::Internal("an event-time struct has no `end`".into()))?;
            (end, window.nulls().cloned())
        }
        _ => (Arc::clone(column), None),
    };
    let DataType::Timestamp(_, zone) = column.data_type() else {
        return Err(DataFusionError::Internal(format!("event time of type {}", column.data_type())));
    };
    let micros = cast(&column, &DataType::Timestamp(TimeUnit::Microsecond, zone.clone()))?;
    let micros = micros.as_primitive::<TimestampMicrosecondType>();
    let nulls = NullBuffer::union(micros.nulls(), nulls.as_ref());
    Ok(Int64Array::new(micros.values().clone(), nulls))
}

/// When each row of a marked column is final, in µs since 1970; null where a row has no event time. For the start of a
/// window that is the window's end.
pub(crate) fn times_us(column: &ArrayRef, field: &Field) -> Result<Int64Array> {
    let times = plain_times_us(column)?;
    Ok(match window_us(field) {
        Some(size) => times.unary(|us: i64| us.saturating_add(size)),
        None => times,
    })
}

/// What is seen of event time. Milliseconds are cut off downwards.
fn event_times(column: &ArrayRef) -> Result<EventTimeStats> {
    let micros = plain_times_us(column)?;
    let out_of_range = out_of_range(column, &micros);
    let (Some(min), Some(max)) = (arrow::compute::min(&micros), arrow::compute::max(&micros)) else {
        return Ok(EventTimeStats { out_of_range, ..EventTimeStats::default() });
    };
    let sum_ms: i128 = micros.iter().flatten().map(|us| i128::from(us.div_euclid(1000))).sum();
    let count = (micros.len() - micros.null_count()) as u64;
    let seen = EventTimeStats::of(count, min.div_euclid(1000), max.div_euclid(1000), sum_ms);
    Ok(EventTimeStats { out_of_range, ..seen })
}

/// How many rows have a time that is lost in µs.
fn out_of_range(column: &ArrayRef, micros: &Int64Array) -> u64 {
    let end = column.as_struct_opt().and_then(|window| window.column_by_name("end"));
    let has_time = |row: usize| column.is_valid(row) && end.is_none_or(|end| end.is_valid(row));
    match micros.null_count() {
        0 => 0,
        _ => (0..micros.len()).filter(|&row| micros.is_null(row) && has_time(row)).count() as u64,
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{TimestampMicrosecondArray, TimestampSecondArray};

    use super::*;

    #[test]
    fn nulls_are_no_evidence_and_micros_are_cut_downwards() {
        let column: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![Some(1_999), None, Some(-1)]));
        let seen = event_times(&column).unwrap();
        assert_eq!((seen.count, seen.min_ms, seen.max_ms), (2, -1, 1));
        let column: ArrayRef = Arc::new(TimestampSecondArray::from(vec![7]).with_timezone("UTC"));
        assert_eq!(event_times(&column).unwrap().max_ms, 7_000);
    }

    #[test]
    fn times_beyond_what_micros_tell_are_counted() {
        let column: ArrayRef =
            Arc::new(TimestampSecondArray::from(vec![Some(7), None, Some(i64::MAX), Some(i64::MIN)]));
        let seen = event_times(&column).unwrap();
        assert_eq!((seen.count, seen.max_ms, seen.out_of_range), (1, 7_000, 2));
        let mut all = EventTimeStats::default();
        all.merge(&EventTimeStats { out_of_range: 1, ..EventTimeStats::default() });
        all.merge(&seen);
        all.merge(&EventTimeStats::default());
        assert_eq!((all.count, all.max_ms, all.out_of_range), (1, 7_000, 3));
    }
}
