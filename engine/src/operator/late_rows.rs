//! Drops rows whose group is final already, before they are aggregated, and counts them as the rows they are.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{Array, BooleanArray, Int64Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::FieldRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt;

use super::event_time::times_us;
use crate::batch::BatchContext;
use crate::plan_node::one_input;
use crate::state::{Counts, OperatorId};

/// The number of an operator, once it is known, for nodes that work for it elsewhere in the plan.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedId(Arc<AtomicUsize>);

impl SharedId {
    pub(crate) fn set(&self, id: OperatorId) {
        self.0.store(id.0, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> OperatorId {
        OperatorId(self.0.load(Ordering::Relaxed))
    }
}

/// The physical node that drops late rows.
#[derive(Debug, Clone)]
pub(crate) struct LateRowFilterExec {
    /// The operator it works for.
    operator: SharedId,
    time: Arc<dyn PhysicalExpr>,
    field: FieldRef,
    input: Arc<dyn ExecutionPlan>,
}

impl LateRowFilterExec {
    /// Drops the rows of `input` whose `time`, an expression of this field, is behind the operator's watermark.
    pub(crate) fn new(
        operator: SharedId,
        time: Arc<dyn PhysicalExpr>,
        field: FieldRef,
        input: Arc<dyn ExecutionPlan>,
    ) -> Self {
        LateRowFilterExec { operator, time, field, input }
    }
}

/// The rows that are not late, and how many were. A row without time is never late.
pub(super) fn drop_late(rows: RecordBatch, times_us: &Int64Array, late_us: i64) -> Result<(RecordBatch, u64)> {
    let keep: BooleanArray =
        (0..times_us.len()).map(|row| Some(times_us.is_null(row) || times_us.value(row) > late_us)).collect();
    let late = keep.false_count() as u64;
    Ok(if late == 0 { (rows, 0) } else { (filter_record_batch(&rows, &keep)?, late) })
}

impl DisplayAs for LateRowFilterExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "LateRowFilterExec: time={}, operator={}", self.time, self.operator.get())
    }
}

impl LateRowFilterExec {
    fn with_input(&self, input: Arc<dyn ExecutionPlan>) -> Self {
        LateRowFilterExec { input, ..self.clone() }
    }
}

impl ExecutionPlan for LateRowFilterExec {
    one_input!(LateRowFilterExec);

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        f(&self.time)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let run = BatchContext::of(&context)?.operator(self.operator.get())?;
        let input = self.input.execute(partition, context)?;
        let (time, field) = (Arc::clone(&self.time), Arc::clone(&self.field));
        let rows = input.map(move |rows| {
            let rows = rows?;
            let times = times_us(&time.evaluate(&rows)?.into_array(rows.num_rows())?, &field)?;
            let (rows, late) = drop_late(rows, &times, run.late_us())?;
            run.count(Counts { rows_dropped_late: late, ..Counts::default() });
            Ok(rows)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}
