//! Keeps the rows of a static table for all batches of a query.
//!
//! In a join of a stream with a table, the table does not change from batch to batch. This operator sits on top of the
//! table's side: the first batch reads it, later ones find it kept. Below a hash join, even the built hash table is
//! kept, as the join is not reset between batches. It claims to be tiny, so that the planner always makes it the side to
//! build, whatever the table's own statistics say or do not say.
//!
//! Of a side that [depends on the batch](crate::plan::static_inputs), through `now()` say, only what lies below that is kept;
//! the operator on top of the side then keeps nothing, and only makes it the side to build.
//!
//! Rows come in one partition, in the order of the input's: a batch that is repeated must see them as it saw them first.

use std::fmt;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use datafusion::common::Statistics;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::stats::Precision;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::OnceCell;

use crate::plan_node::{no_expressions, one_input};
use crate::state::spelling::shrink_rows_to_fit;

/// The kept rows.
type CachedRows = OnceCell<Vec<RecordBatch>>;

/// The physical node that keeps the rows of a static input for all batches.
#[derive(Debug, Clone)]
pub(crate) struct CachedInputExec {
    input: Arc<dyn ExecutionPlan>,
    /// None where rows are computed anew by every batch.
    kept: Option<Arc<CachedRows>>,
    /// Which of the plan's static inputs it is, counted before DataFusion changes the sides of joins.
    number: usize,
    properties: Arc<PlanProperties>,
}

impl CachedInputExec {
    /// Keeps the rows of `input`.
    pub(crate) fn keeping(input: Arc<dyn ExecutionPlan>) -> Self {
        Self::new(input, Some(Arc::default()), 0)
    }

    /// Keeps nothing of `input`, which depends on the batch.
    pub(crate) fn of_batch(input: Arc<dyn ExecutionPlan>) -> Self {
        Self::new(input, None, 0)
    }

    /// The same, with its number.
    pub(crate) fn numbered(self, number: usize) -> Self {
        CachedInputExec { number, ..self }
    }

    /// Which of the plan's static inputs it is.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    fn new(input: Arc<dyn ExecutionPlan>, kept: Option<Arc<CachedRows>>, number: usize) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(input.schema()),
            Partitioning::UnknownPartitioning(1),
            input.pipeline_behavior(),
            input.boundedness(),
        );
        CachedInputExec { input, kept, number, properties: Arc::new(properties) }
    }

    /// Whether the rows are the same in every batch.
    pub(crate) fn keeps(&self) -> bool {
        self.kept.is_some()
    }
}

/// All rows, in the order of the partitions, which are read side by side.
async fn read(input: Arc<dyn ExecutionPlan>, context: Arc<TaskContext>) -> Result<Vec<RecordBatch>> {
    let partitions = input.output_partitioning().partition_count();
    let tasks: Vec<_> = (0..partitions)
        .map(|partition| {
            let (input, context) = (Arc::clone(&input), Arc::clone(&context));
            SpawnedTask::spawn(async move {
                let rows = input.execute(partition, context)?;
                rows.and_then(|rows| std::future::ready(shrink_rows_to_fit(&rows))).try_collect::<Vec<_>>().await
            })
        })
        .collect();
    let mut rows = vec![];
    for task in tasks {
        // A task that was cut off has not seen the end of its partition.
        rows.extend(task.join_unwind().await.map_err(|e| DataFusionError::ExecutionJoin(Box::new(e)))??);
    }
    Ok(rows)
}

impl DisplayAs for CachedInputExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "CachedInputExec: {}", if self.keeps() { "kept" } else { "of the batch" })
    }
}

impl CachedInputExec {
    fn with_input(&self, input: Arc<dyn ExecutionPlan>) -> Self {
        // A reset between batches rebuilds the nodes above and below: what is kept belongs to the table, not to them.
        CachedInputExec::new(input, self.kept.clone(), self.number)
    }
}

impl ExecutionPlan for CachedInputExec {
    one_input!(CachedInputExec);
    no_expressions!();

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (input, kept) = (Arc::clone(&self.input), self.kept.clone());
        let rows = async move {
            let rows = match kept {
                Some(kept) => kept.get_or_try_init(|| read(input, context)).await?.clone(),
                None => read(input, context).await?,
            };
            Ok::<_, DataFusionError>(stream::iter(rows.into_iter().map(Ok)))
        };
        let rows = stream::once(rows).try_flatten().boxed();
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
