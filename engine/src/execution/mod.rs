//! A physical plan in, receipts out.
//!
//! A plan is cut at its [exchanges](crate::operator::exchange) into stages, and these run one after the other:
//!
//! ```text
//! scan ─▶ filter ─▶ partial aggregate │ ─▶ aggregate ─▶ …  ─▶ sink
//!             stage 0            exchange       last stage
//! ```
//!
//! A stage of *n* partitions is *n* independent tasks. Each drains its partition, on a worker thread of rayon's pool: into
//! the exchange, which deals its rows out by key, or, in the last stage, into a writer of the sink. Where there are few
//! rows, hopping to other threads would cost more than it gains, and the tasks run one after the other where they are.

mod own_thread;

mod runtime;

mod task;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use datafusion::execution::TaskContext;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use rayon::prelude::*;
use tokio::runtime::Handle;

pub(crate) use self::own_thread::{AtWork, is_called_by};
pub(crate) use self::runtime::{check_runtime, is_shut_down, runtime_is_gone};
use self::task::{run_ahead, run_exchange_task, run_task};
use crate::error::Result;
use crate::id::{BatchId, PartitionId, RunId};
use crate::plan::stateful::exchanges;
use crate::sink::{PartitionWriter, Receipt};

/// Fewer rows than this are not worth another thread.
const ROWS_WORTH_A_THREAD: usize = 4096;

/// Makes the writer of a partition.
pub(crate) type Writers<'a> = &'a (dyn Fn(PartitionId) -> Result<Box<dyn PartitionWriter>> + Sync);

/// One run of a plan.
pub(crate) struct Run<'a> {
    pub(crate) run_id: RunId,
    pub(crate) batch: BatchId,
    /// What runs to its end before the first stage, and gives no rows.
    pub(crate) first: &'a [Arc<dyn ExecutionPlan>],
    pub(crate) plan: &'a Arc<dyn ExecutionPlan>,
    pub(crate) context: &'a Arc<TaskContext>,
    pub(crate) writers: Writers<'a>,
    pub(crate) runtime: &'a Handle,
    /// Whether it is worth to read the sources with several threads.
    pub(crate) parallel: bool,
}

/// Runs every stage of the plan. Returns the receipts of the partitions that had rows, in partition order, or the first
/// error. What it returns is whole: no task of the batch was cut off by the end of the [runtime](is_shut_down).
pub(crate) fn run(run: &Run<'_>) -> Result<Vec<Receipt>> {
    for plan in run.first {
        run_ahead(run, plan)?;
    }
    let mut parallel = run.parallel;
    for exchange in exchanges(run.plan) {
        let dealt = AtomicUsize::new(0);
        let partitions = exchange.input().output_partitioning().partition_count();
        let task = |partition| {
            let rows = run_exchange_task(run, exchange, PartitionId(partition))?;
            dealt.fetch_add(rows, Ordering::Relaxed);
            Ok(())
        };
        each(partitions, parallel, task)?;
        parallel = run.parallel || dealt.into_inner() >= ROWS_WORTH_A_THREAD;
    }
    let partitions = run.plan.output_partitioning().partition_count();
    let receipts = each(partitions, parallel, |partition| run_task(run, PartitionId(partition)))?;
    check_runtime(run.runtime)?;
    Ok(receipts.into_iter().flatten().collect())
}

fn each<T: Send>(partitions: usize, parallel: bool, task: impl Fn(usize) -> Result<T> + Send + Sync) -> Result<Vec<T>> {
    if parallel && partitions > 1 {
        (0..partitions).into_par_iter().map(task).collect()
    } else {
        (0..partitions).map(task).collect()
    }
}
