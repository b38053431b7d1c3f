//! Notes the event times that pass, and lets every row through.
//!
//! A row without event time is no evidence of how far time has come: it is not counted. (Spark counts it as 1970, which
//! moves nothing either, as a watermark begins there.)

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StructArray};
use arrow::buffer::NullBuffer;
use arrow::compute::kernels::cast::cast;
use arrow::datatypes::{DataType, Field, SchemaRef, TimeUnit, TimestampMicrosecondType};
use datafusion::common::Statistics;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties};
use futures::StreamExt;

use crate::batch::{BatchContext, EventTimeStats, restamp};
use crate::watermark::marks::window_us;

/// The physical side of [`with_watermark`](crate::query::StreamingDataFrame::with_watermark).
#[derive(Debug, Clone)]
pub(crate) struct EventTimeExec {
    /// Its place among the `with_watermark`s of the query.
    node: usize,
    /// The event-time column.
    column: usize,
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
        EventTimeExec { node, column, input, schema, properties: Arc::new(properties) }
    }
}

impl DisplayAs for EventTimeExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let name = self.schema.fields().get(self.column).map_or("?", |field| field.name().as_str());
        write!(f, "EventTimeExec: column={name}, node={}", self.node)
    }
}

impl ExecutionPlan for EventTimeExec {
    fn name(&self) -> &'static str {
        "EventTimeExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = only_child(children)?;
        Ok(Arc::new(EventTimeExec::new(self.node, self.column, Arc::clone(&self.schema), input)))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batch = BatchContext::of(&context)?;
        let input = self.input.execute(partition, context)?;
        let schema = Arc::clone(&self.schema);
        let (node, column) = (self.node, self.column);
        let rows = input.map(move |rows| {
            let rows = rows?;
            batch.observe_event_times(node, &event_times(rows.column(column))?);
            restamp(&rows, &schema)
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
    let (Some(min), Some(max)) = (arrow::compute::min(&micros), arrow::compute::max(&micros)) else {
        return Ok(EventTimeStats::default());
    };
    let sum_ms: i128 = micros.iter().flatten().map(|us| i128::from(us.div_euclid(1000))).sum();
    let count = (micros.len() - micros.null_count()) as u64;
    Ok(EventTimeStats::of(count, min.div_euclid(1000), max.div_euclid(1000), sum_ms))
}

/// The input of a node that has one.
pub(crate) fn only_child(mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
    match (children.pop(), children.is_empty()) {
        (Some(child), true) => Ok(child),
        _ => Err(DataFusionError::Internal("an operator with one input was given others".into())),
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
}
