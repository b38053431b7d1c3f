//! A physical plan in, receipts out.
//!
//! A plan is cut at its [exchanges](crate::operator::exchange) into stages, and these run one after the other:
//!
//! ```text
//! scan ─▶ filter ─▶ partial aggregate │ ─▶ aggregate ─▶ …  ─▶ sink
//!             stage 0            exchange       last stage
//! ```
//!
//! A stage of *n* partitions is *n* independent tasks of the [executor](crate::executor). Each drains its partition: into the
//! exchange, which deals its rows out by key, or, in the last stage, into a writer of the sink. Between record batches a task
//! lets those of other queries have their turn. Where there are few rows, hopping to other threads would cost more than it
//! gains, and the tasks run one after the other within the driver's.

mod at_work;

mod runtime;

mod task;

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use datafusion::execution::TaskContext;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use futures::FutureExt;
use futures::future::join_all;

pub(crate) use self::at_work::{AtWork, at_work, is_called_by};
pub(crate) use self::runtime::{Runtimes, runtime_is_gone};
use self::task::{run_ahead, run_exchange_task, run_task};
use crate::calls::Calls;
use crate::error::Result;
use crate::executor::{Executor, Task};
use crate::id::{BatchId, PartitionId, RunId};
use crate::operator::exchange::ExchangeExec;
use crate::plan::stateful::exchanges;
use crate::sink::{Begin, PartitionWriter, Receipt, SinkWriter, discarding_writer};

/// Fewer rows than this are not worth another thread.
const ROWS_WORTH_A_THREAD: usize = 4096;

/// How long tasks that were cancelled are waited for. One that is computing ends between two record batches; one that blocks
/// its thread, in a function of the user, may not end at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes the writers of a batch, one per partition.
#[derive(Debug, Clone)]
pub(crate) struct Writers {
    pub(crate) sink: Arc<dyn SinkWriter>,
    pub(crate) begin: Begin,
    pub(crate) batch: BatchId,
    /// The sink, in words.
    pub(crate) whose: String,
    /// How it is called.
    pub(crate) calls: Calls,
}

impl Writers {
    /// A writer of the sink, or one that only counts if the sink has the batch already.
    pub(crate) fn writer(&self, partition: PartitionId) -> Result<Box<dyn PartitionWriter>> {
        match self.begin {
            Begin::Open => self.sink.partition(self.batch, partition),
            Begin::Taken => Ok(discarding_writer()),
        }
    }
}

/// One run of a plan.
pub(crate) struct Run {
    pub(crate) run_id: RunId,
    pub(crate) batch: BatchId,
    /// What runs to its end before the first stage, and gives no rows.
    pub(crate) first: Vec<Arc<dyn ExecutionPlan>>,
    pub(crate) plan: Arc<dyn ExecutionPlan>,
    pub(crate) context: Arc<TaskContext>,
    pub(crate) writers: Writers,
    pub(crate) executor: Executor,
    pub(crate) calls: Calls,
    /// Whether it is worth to read the sources with several threads.
    pub(crate) parallel: bool,
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").field("run_id", &self.run_id).field("batch", &self.batch).finish_non_exhaustive()
    }
}

/// Runs every stage of the plan. Returns the receipts of the partitions that had rows, in partition order, or the first
/// error. When it returns, no task of the batch is left, unless one [blocks its thread](PATIENCE).
pub(crate) async fn run(run: Arc<Run>) -> Result<Vec<Receipt>> {
    for plan in &run.first {
        run.calls.unless_cancelled(run_ahead(&run, plan)).await?;
    }
    let mut parallel = run.parallel;
    for exchange in exchanges(&run.plan) {
        let partitions = exchange.input().output_partitioning().partition_count();
        let exchange: Arc<ExchangeExec> = Arc::new(exchange.clone());
        let task = |partition| run_exchange_task(Arc::clone(&run), Arc::clone(&exchange), PartitionId(partition));
        let dealt: usize = each(&run, partitions, parallel, task).await?.into_iter().sum();
        parallel = run.parallel || dealt >= ROWS_WORTH_A_THREAD;
    }
    let partitions = run.plan.output_partitioning().partition_count();
    let task = |partition| run_task(Arc::clone(&run), PartitionId(partition));
    let receipts = each(&run, partitions, parallel, task).await?;
    Ok(receipts.into_iter().flatten().collect())
}

/// What the tasks of a stage gave, by partition; or the first error, or that of a query that is to drop its batch.
async fn each<T, W>(run: &Run, partitions: usize, parallel: bool, work: impl Fn(usize) -> W) -> Result<Vec<T>>
where
    T: Send + 'static,
    W: Future<Output = Result<T>> + Send + 'static,
{
    if !parallel || partitions <= 1 {
        let one_by_one = async {
            let mut done = vec![];
            for partition in 0..partitions {
                done.push(work(partition).await?);
            }
            Ok(done)
        };
        return run.calls.unless_cancelled(one_by_one).await;
    }
    let mut stage = Stage {
        tasks: (0..partitions).map(|partition| Some(run.executor.spawn(work(partition)))).collect(),
        done: (0..partitions).map(|_| None).collect(),
    };
    let outcome = run.calls.unless_cancelled(poll_fn(|context| stage.poll(context))).await;
    match outcome {
        Ok(()) => Ok(stage.done.into_iter().flatten().collect()),
        Err(error) => {
            stage.cancel(run).await;
            Err(error)
        }
    }
}

/// The tasks of a stage, by partition.
struct Stage<T> {
    /// Those that have not ended.
    tasks: Vec<Option<Task<Result<T>>>>,
    /// What the others gave.
    done: Vec<Option<T>>,
}

impl<T: Send + 'static> Stage<T> {
    /// Ready when all have ended well, or one has not.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        let mut pending = false;
        for (place, done) in self.tasks.iter_mut().zip(&mut self.done) {
            let Some(task) = place else { continue };
            match task.poll_unpin(context) {
                Poll::Ready(given) => {
                    *place = None;
                    *done = Some(given?);
                }
                Poll::Pending => pending = true,
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    /// Drops what is left, and waits until it is gone.
    async fn cancel(self, run: &Run) {
        let cancelled = join_all(self.tasks.into_iter().flatten().map(Task::cancel));
        tokio::select! {
            biased;
            _ = cancelled => {}
            () = run.calls.clock().sleep(PATIENCE) => tracing::warn!(
                run = %run.run_id,
                batch = %run.batch,
                "code that the query called blocks its thread for more than {PATIENCE:?} and is left behind"
            ),
        }
    }
}
