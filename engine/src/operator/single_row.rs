//! Lets one row pass, and no second: what a scalar subquery gives is one value.

use std::fmt;
use std::sync::Arc;

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{Distribution, EquivalenceProperties, Partitioning};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, InputDistributionRequirements, PlanProperties,
};
use futures::StreamExt;

use crate::error::{Error, ErrorKind};
use crate::plan_node::{no_expressions, one_input};

/// The physical node that passes one row and refuses a second.
#[derive(Debug, Clone)]
pub(crate) struct SingleRowExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl SingleRowExec {
    pub(crate) fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(input.schema()),
            Partitioning::UnknownPartitioning(1),
            input.pipeline_behavior(),
            input.boundedness(),
        );
        SingleRowExec { input, properties: Arc::new(properties) }
    }
}

impl DisplayAs for SingleRowExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("SingleRowExec")
    }
}

impl SingleRowExec {
    fn with_input(&self, input: Arc<dyn ExecutionPlan>) -> Self {
        SingleRowExec::new(input)
    }
}

impl ExecutionPlan for SingleRowExec {
    one_input!(SingleRowExec);
    no_expressions!();

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        InputDistributionRequirements::new(vec![Distribution::SinglePartition])
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let mut seen = 0;
        let rows = self.input.execute(partition, context)?.map(move |rows| {
            let rows = rows?;
            seen += rows.num_rows();
            if seen > 1 {
                return Err(DataFusionError::from(several_rows()));
            }
            Ok(rows)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}

fn several_rows() -> Error {
    Error::new(ErrorKind::BadInput, "a scalar subquery returned more than one row")
        .with_hint("aggregate its rows, or filter them down to one, then start the query again")
}
