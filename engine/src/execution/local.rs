//! The tasks of a batch, run in this process.
//!
//! A plan is cut at its [exchanges](crate::operator::exchange) into stages, and these run one after the other:
//!
//! ```text
//! scan ─▶ filter ─▶ partial aggregate │ ─▶ aggregate ─▶ …  ─▶ sink
//!             stage 0            exchange       last stage
//! ```
//!
//! A stage of *n* partitions is *n* independent tasks of the [executor](crate::executor). Each drains its partition:
//! into the exchange, which distributes its rows by key, or, in the last stage, into a writer of the sink. Between
//! record batches a task lets those of other queries have their turn. Where there are few rows, hopping to other
//! threads would cost more than it gains, and the tasks run one after the other within the driver's.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use datafusion::execution::{SessionState, TaskContext};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use futures::FutureExt;
use futures::future::join_all;

use super::changes::write_changes;
use super::task::{run_ahead, run_exchange_task, run_task};
use super::written::Written;
use super::{BatchWork, LeafInput, Outcome, Runner, Site, Writers};
use crate::batch::{BatchContext, BatchParts};
use crate::calls::Calls;
use crate::error::{Error, Result};
use crate::executor::{Executor, Task};
use crate::id::PartitionId;
use crate::operator::exchange::ExchangeExec;
use crate::plan::stateful::exchanges;
use crate::progress::Phase;
use crate::sink::Receipt;
use crate::state::OperatorBatch;

/// Fewer rows than this are not worth another thread.
pub(super) const ROWS_WORTH_A_THREAD: usize = 4096;

/// How long tasks that were cancelled are waited for. One that is computing ends between two record batches; one that blocks
/// its thread, in a function of the user, may not end at all.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Runs batches in this process, on the threads of the site's executor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalRunner;

#[async_trait]
impl Runner for LocalRunner {
    async fn run(&self, work: BatchWork, site: Site) -> Result<Outcome> {
        if work.operators.len() != site.states.len() {
            return Err(Error::internal("a batch has other operators than the plan that is to run it"));
        }
        let operators: Vec<Arc<OperatorBatch>> = work
            .operators
            .iter()
            .zip(&site.states)
            .map(|(marks, state)| {
                Arc::new(OperatorBatch::new(marks.late_watermark_ms, marks.eviction_watermark_ms, Arc::clone(state)))
            })
            .collect();
        let leaves = inputs(&work, &site).await?;
        let scanners = Arc::clone(&site.scanners);
        let parts = BatchParts {
            leaves,
            watermark_nodes: site.watermark_nodes,
            operators: operators.clone(),
            exchanges: exchanges(&site.plan).into_iter().map(|exchange| exchange.partitions()).collect(),
            runtime: Arc::clone(site.session.runtime_env()),
            takes_dead_letters: work.takes_dead_letters,
        };
        let batch = BatchContext::new(work.batch, work.time_ms, work.watermark_ms, parts, site.calls.clone());
        let batch = Arc::new(batch);
        site.clock.set_ms(work.time_ms);
        site.seed.set(work.query_id, work.batch, work.time_ms);
        let run = Run {
            context: Arc::new(task_context(&site.session, &batch)),
            first: site.first,
            plan: site.plan,
            writers: site.writers,
            executor: site.executor,
            calls: site.calls,
            work,
            written: Written::default(),
        };
        let run = Arc::new(run);
        let receipts = match run_stages(&run).await {
            Ok(receipts) => receipts,
            Err(error) => {
                run.written.abort(&run).await;
                return Err(error);
            }
        };
        let began = run.calls.clock().elapsed();
        let write = write_changes(&run, &operators, &site.changes);
        let files = site.checkpoint_calls.call(Phase::StateCommit, || "the checkpoint".to_owned(), write).await;
        let files = match files {
            Ok(files) => files,
            Err(error) => {
                run.written.abort(&run).await;
                return Err(error);
            }
        };
        let took = run.calls.clock().elapsed().saturating_sub(began);
        Ok(Outcome::of(&batch, scanners.metrics(), &operators, (files, took), receipts))
    }
}

/// By leaf: a plan over the rows that it reads.
async fn inputs(work: &BatchWork, site: &Site) -> Result<Vec<Option<Arc<dyn ExecutionPlan>>>> {
    let mut plans = vec![];
    for (leaf, input) in work.leaves.iter().enumerate() {
        plans.push(match input {
            LeafInput::Nothing => None,
            LeafInput::Bound => {
                let bound = site.bound.get(leaf).and_then(Option::as_ref);
                Some(Arc::clone(bound.ok_or_else(|| Error::internal("a leaf is bound in another process"))?))
            }
            LeafInput::Splits(splits) => {
                let scan = async { site.scanners.scan(work.batch, leaf, splits) };
                Some(site.calls.call(Phase::AddBatch, || site.scanners.whose(leaf), scan).await?)
            }
        });
    }
    Ok(plans)
}

fn task_context(session: &SessionState, batch: &Arc<BatchContext>) -> TaskContext {
    TaskContext::new(
        None,
        session.session_id().to_owned(),
        session.config().clone().with_extension(Arc::clone(batch)),
        Default::default(),
        Default::default(),
        Default::default(),
        Default::default(),
        Arc::clone(session.runtime_env()),
    )
}

/// One run of a plan.
pub(super) struct Run {
    pub(super) work: BatchWork,
    pub(super) context: Arc<TaskContext>,
    pub(super) first: Vec<Arc<dyn ExecutionPlan>>,
    pub(super) plan: Arc<dyn ExecutionPlan>,
    pub(super) writers: Arc<Writers>,
    pub(super) executor: Executor,
    pub(super) calls: Calls,
    /// What its tasks have written.
    pub(super) written: Written,
}

/// Runs every stage of the plan. Returns the receipts of the partitions that had rows, in partition order, or the first
/// error. When it returns, no task of the batch is left, unless one [blocks its thread](PATIENCE).
async fn run_stages(run: &Arc<Run>) -> Result<Vec<Receipt>> {
    for plan in &run.first {
        run.calls.unless_cancelled(run_ahead(run, plan)).await?;
    }
    let mut parallel = run.work.parallel;
    for exchange in exchanges(&run.plan) {
        let partitions = exchange.input().output_partitioning().partition_count();
        let exchange: Arc<ExchangeExec> = Arc::new(exchange.clone());
        let task = |partition| run_exchange_task(Arc::clone(run), Arc::clone(&exchange), PartitionId(partition));
        let dealt: usize = each(run, partitions, parallel, task).await?.into_iter().sum();
        parallel = run.work.parallel || dealt >= ROWS_WORTH_A_THREAD;
    }
    let partitions = run.plan.output_partitioning().partition_count();
    let task = |partition| run_task(Arc::clone(run), PartitionId(partition));
    let receipts = each(run, partitions, parallel, task).await?;
    Ok(receipts.into_iter().flatten().collect())
}

/// What the tasks of a stage gave, by partition; or the first error, or that of a query that is to drop its batch.
pub(super) async fn each<T, W>(
    run: &Run,
    partitions: usize,
    parallel: bool,
    mut work: impl FnMut(usize) -> W,
) -> Result<Vec<T>>
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
                run = %run.work.run_id,
                batch = %run.work.batch,
                "code that the query called blocks its thread for more than {PATIENCE:?} and is left behind"
            ),
        }
    }
}
