//! A join of two streams: each side is kept, for rows of the other side that are still to come.
//!
//! ```text
//! left rows ──▶ exchange by key ──▶ meet what is kept of the right ──▶ are kept ──▶ leave behind the watermark
//! right rows ─▶ exchange by key ──▶ meet what is kept of the left ───▶ are kept ──▶ leave behind the watermark
//! ```
//!
//! A row is kept as long as a match may come, which follows from the [bounds](crate::plan::join_bounds). Outer joins
//! give out rows without a match, padded with NULL, when they leave; an anti join gives out nothing else. A semi join
//! gives out a row at its first match and keeps it no longer.
//!
//! NULL equals nothing: a row with NULL in a key matches no row. Where rows without a match come out it is kept until
//! its time comes, elsewhere it is dropped at once. (Spark matches NULL keys with each other in full outer joins, which
//! is a defect.) A row without event time matches nothing either where the condition compares times, and has no time to wait
//! for: it comes out at once. (Spark never evicts it.) So do the rows that an earlier outer join padded.

mod matching;

mod run;

pub(crate) mod spec;

mod side;

use std::fmt;
use std::sync::Arc;

use datafusion::common::JoinType;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, apply_expression_roots,
};
use futures::stream;

use self::run::JoinExecution;
use self::side::JoinState;
use self::spec::JoinSpec;
use super::StatefulOperator;
use super::exchange::ExchangeExec;
use crate::batch::BatchContext;
use crate::plan_node::new_children;
use crate::state::{OperatorId, PartitionState, Resources, StateSchema};
use crate::watermark::{OutputWatermark, WatermarkEffect};

/// The physical node of a join of two streams.
#[derive(Debug, Clone)]
pub(crate) struct StreamJoinExec {
    id: OperatorId,
    join: Arc<JoinSpec>,
    left: Arc<dyn ExecutionPlan>,
    right: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl StreamJoinExec {
    /// Over exchanges of both inputs into so many partitions.
    pub(crate) fn over(
        join: JoinSpec,
        left: Arc<dyn ExecutionPlan>,
        right: Arc<dyn ExecutionPlan>,
        partitions: usize,
    ) -> Self {
        let left = Arc::new(ExchangeExec::new(left, join.left.keys.clone(), partitions));
        let right = Arc::new(ExchangeExec::new(right, join.right.keys.clone(), partitions));
        StreamJoinExec::new(OperatorId(0), Arc::new(join), left, right)
    }

    fn new(id: OperatorId, join: Arc<JoinSpec>, left: Arc<dyn ExecutionPlan>, right: Arc<dyn ExecutionPlan>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&join.output)),
            left.output_partitioning().clone(),
            EmissionType::Both,
            left.boundedness(),
        );
        StreamJoinExec { id, join, left, right, properties: Arc::new(properties) }
    }

    pub(crate) fn how(&self) -> JoinType {
        self.join.join_type
    }

    /// What must be equal, on the left and on the right.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (&Arc<dyn PhysicalExpr>, &Arc<dyn PhysicalExpr>)> {
        self.join.left.keys.iter().zip(&self.join.right.keys)
    }

    /// What else must hold of a pair, over its columns: left, then right.
    pub(crate) fn condition(&self) -> Option<&Arc<dyn PhysicalExpr>> {
        self.join.filter.as_ref()
    }

    /// What must hold of a row of the left alone, and of the right.
    pub(crate) fn gates(&self) -> [Option<&Arc<dyn PhysicalExpr>>; 2] {
        [&self.join.left, &self.join.right].map(|side| side.local_predicate.as_ref())
    }

    /// The columns by whose times rows of the left are forgotten, and rows of the right.
    pub(crate) fn times(&self) -> [Option<usize>; 2] {
        [&self.join.left, &self.join.right].map(|side| side.expiry.column())
    }
}

impl StatefulOperator for StreamJoinExec {
    fn with_id(&self, id: OperatorId) -> Arc<dyn ExecutionPlan> {
        Arc::new(StreamJoinExec { id, ..self.clone() })
    }

    fn spec(&self) -> StateSchema {
        self.join.spec()
    }

    fn new_partition(&self, resources: &Resources) -> Result<Box<dyn PartitionState>> {
        Ok(Box::new(JoinState::new(&self.join, resources)?))
    }

    fn watermark(&self) -> WatermarkEffect {
        WatermarkEffect {
            output: OutputWatermark::Join(self.join.bounds.clone()),
            needs_no_data_batch: self.join.bounds.any(),
        }
    }
}

impl DisplayAs for StreamJoinExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let keys: Vec<&str> = self.join.key_fields.iter().map(|key| key.name().as_str()).collect();
        write!(f, "StreamJoinExec: operator={}, {}, keys=[{}]", self.id, self.join.join_type, keys.join(", "))?;
        match &self.join.filter {
            Some(filter) => write!(f, ", filter={filter}"),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for StreamJoinExec {
    new_children!();

    fn name(&self) -> &'static str {
        "StreamJoinExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.left, &self.right]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false, false]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        let join = &self.join;
        let keys = join.left.keys.iter().chain(&join.right.keys);
        let conditions = join.left.local_predicate.iter().chain(&join.right.local_predicate).chain(&join.filter);
        apply_expression_roots(keys.chain(conditions), f)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let [left, right] = <[Arc<dyn ExecutionPlan>; 2]>::try_from(children)
            .map_err(|_| DataFusionError::Internal("StreamJoinExec has two inputs".into()))?;
        Ok(Arc::new(StreamJoinExec::new(self.id, Arc::clone(&self.join), left, right)))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batch = BatchContext::of(&context)?;
        let run = batch.operator(self.id)?;
        let left = self.left.execute(partition, Arc::clone(&context))?;
        let right = self.right.execute(partition, context)?;
        let running = JoinExecution::new(Arc::clone(&self.join), batch, run, partition, (left, right))?;
        let rows = stream::try_unfold(running, |mut running| async move {
            Ok::<_, DataFusionError>(running.next().await?.map(|rows| (rows, running)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.join.output), rows)))
    }
}
