//! Numbers the rows of a batch: which partition, and which of its rows.
//!
//! A batch that is run again has the same rows in the same partitions in the same order, so each gets its number again,
//! however the rows are cut into record batches.

use std::fmt;
use std::sync::Arc;

use crate::plan_node::{no_expressions, one_input};
use arrow::array::UInt64Array;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::Statistics;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties};
use futures::StreamExt;

/// The low bits of a number are the row within its partition; the rest is the partition.
const ROW_BITS: u32 = 40;

/// The physical node that numbers rows.
#[derive(Debug, Clone)]
pub(crate) struct RowNumberExec {
    input: Arc<dyn ExecutionPlan>,
    /// The input's columns, and the number.
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
}

impl RowNumberExec {
    /// The rows of `input`, in `schema`, which has one column more.
    pub(crate) fn new(input: Arc<dyn ExecutionPlan>, schema: SchemaRef) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            input.output_partitioning().clone(),
            input.pipeline_behavior(),
            input.boundedness(),
        );
        RowNumberExec { input, schema, properties: Arc::new(properties) }
    }
}

impl DisplayAs for RowNumberExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("RowNumberExec")
    }
}

impl RowNumberExec {
    fn with_input(&self, input: Arc<dyn ExecutionPlan>) -> Self {
        RowNumberExec::new(input, Arc::clone(&self.schema))
    }
}

impl ExecutionPlan for RowNumberExec {
    one_input!(RowNumberExec);
    no_expressions!();

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let schema = Arc::clone(&self.schema);
        let mut next = (partition as u64) << ROW_BITS;
        let rows = self.input.execute(partition, context)?.map(move |rows| {
            let rows = rows?;
            let first = next;
            next += rows.num_rows() as u64;
            let mut columns = rows.columns().to_vec();
            columns.push(Arc::new(UInt64Array::from_iter_values(first..next)));
            Ok(RecordBatch::try_new(Arc::clone(&schema), columns)?)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows)))
    }

    fn statistics_from_inputs(
        &self,
        input_stats: &[Arc<Statistics>],
        _args: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        let mut known = Statistics::new_unknown(&self.schema);
        if let Some(input) = input_stats.first() {
            known = known.with_num_rows(input.num_rows);
        }
        Ok(Arc::new(known))
    }
}
