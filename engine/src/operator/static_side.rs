//! Keeps the rows of a static table for all batches of a query.
//!
//! In a join of a stream with a table, the table does not change from batch to batch. This operator sits on top of the
//! table's side: the first batch reads it, later ones find it kept. Above a hash join, even the built hash table is
//! kept, as the join is not reset between batches. It claims to be tiny, so that the planner always makes it the side to
//! build, whatever the table's own statistics say or do not say.

use std::fmt;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use datafusion::common::Statistics;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::OnceCell;

use crate::state::spelling::rows_without_slack;

/// The kept rows of one partition.
type Kept = OnceCell<Vec<RecordBatch>>;

/// See the [module](self).
#[derive(Debug, Clone)]
pub(crate) struct StaticSideExec {
    input: Arc<dyn ExecutionPlan>,
    /// By partition of the input.
    kept: Arc<Vec<Kept>>,
    properties: Arc<PlanProperties>,
}

impl StaticSideExec {
    pub(crate) fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        let partitions = input.output_partitioning().partition_count();
        let properties = PlanProperties::new(
            EquivalenceProperties::new(input.schema()),
            input.output_partitioning().clone(),
            input.pipeline_behavior(),
            input.boundedness(),
        );
        StaticSideExec {
            input,
            kept: Arc::new((0..partitions).map(|_| Kept::new()).collect()),
            properties: Arc::new(properties),
        }
    }
}

impl DisplayAs for StaticSideExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("StaticSideExec")
    }
}

impl ExecutionPlan for StaticSideExec {
    fn name(&self) -> &'static str {
        "StaticSideExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
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
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.pop().ok_or_else(|| DataFusionError::Internal("StaticSideExec has one input".into()))?;
        let partitions = input.output_partitioning().partition_count();
        let mut new = StaticSideExec::new(input);
        // A reset between batches rebuilds the nodes above and below: what is kept belongs to the table, not to them.
        if partitions == self.kept.len() {
            new.kept = Arc::clone(&self.kept);
        }
        Ok(Arc::new(new))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = Arc::clone(&self.input);
        let kept = Arc::clone(&self.kept);
        let read = async move {
            let kept =
                kept.get(partition).ok_or_else(|| DataFusionError::Internal("no such static partition".into()))?;
            let read = || async {
                let rows = input.execute(partition, context)?;
                rows.and_then(|rows| std::future::ready(rows_without_slack(&rows))).try_collect().await
            };
            let rows = kept.get_or_try_init(read).await?;
            Ok::<_, DataFusionError>(stream::iter(rows.clone().into_iter().map(Ok)))
        };
        let rows = stream::once(read).try_flatten().boxed();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }

    fn statistics_from_inputs(
        &self,
        _input_stats: &[Arc<Statistics>],
        _args: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        let unknown = Statistics::new_unknown(&self.schema());
        Ok(Arc::new(unknown.with_num_rows(Precision::Inexact(1)).with_total_byte_size(Precision::Inexact(1))))
    }
}
