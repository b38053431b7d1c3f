//! A physical plan in, receipts out.
//!
//! A plan of *n* partitions is *n* independent tasks. Each drains its partition, on a worker thread of rayon's pool, into a
//! writer of the sink. Where rows cannot fill more than one partition, hopping to other threads would cost more than it
//! gains, and the tasks run one after the other where they are.

mod task;

use std::sync::Arc;

use datafusion::execution::TaskContext;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use rayon::prelude::*;
use tokio::runtime::Handle;

use self::task::run_task;
use crate::error::Result;
use crate::id::{BatchId, PartitionId};
use crate::sink::{PartitionWriter, Receipt};

/// Makes the writer of a partition.
pub(crate) type Writers<'a> = &'a (dyn Fn(PartitionId) -> Result<Box<dyn PartitionWriter>> + Sync);

/// One run of a plan.
pub(crate) struct Run<'a> {
    pub(crate) batch: BatchId,
    pub(crate) plan: &'a Arc<dyn ExecutionPlan>,
    pub(crate) context: &'a Arc<TaskContext>,
    pub(crate) writers: Writers<'a>,
    pub(crate) runtime: &'a Handle,
    /// Whether it is worth to use several threads.
    pub(crate) parallel: bool,
}

/// Runs every partition of the plan. Returns the receipts of those that had rows, in partition order, or the first error.
pub(crate) fn run(run: &Run<'_>) -> Result<Vec<Receipt>> {
    let partitions = run.plan.output_partitioning().partition_count();
    let task = |partition| run_task(run, PartitionId(partition));
    let receipts: Vec<Option<Receipt>> = if run.parallel && partitions > 1 {
        (0..partitions).into_par_iter().map(task).collect::<Result<_>>()?
    } else {
        (0..partitions).map(task).collect::<Result<_>>()?
    };
    Ok(receipts.into_iter().flatten().collect())
}
