//! One partition, from its first row to its receipt.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use datafusion::physical_plan::ExecutionPlan;
use futures::{FutureExt, StreamExt};

use super::at_work;
use super::local::Run;
use super::written::OpenWriter;
use crate::batch::BatchContext;
use crate::error::{Error, Result};
use crate::id::PartitionId;
use crate::operator::exchange::ExchangeExec;
use crate::progress::Phase;
use crate::sink::Receipt;

/// Drains one partition into its writer. `None` if it had no rows: then no writer is made. A panic fails the batch, not the
/// process.
pub(super) async fn run_task(run: Arc<Run>, partition: PartitionId) -> Result<Option<Receipt>> {
    guarded(&run, partition, drain(&run, partition)).await
}

/// Drains one partition below an exchange into the exchange. Returns how many rows there were.
pub(super) async fn run_exchange_task(
    run: Arc<Run>,
    exchange: Arc<ExchangeExec>,
    partition: PartitionId,
) -> Result<usize> {
    guarded(&run, partition, write_exchange(&run, &exchange, partition)).await
}

/// Runs a plan that gives no rows to its end, for what it leaves behind in expressions of the plan of the batch.
pub(super) async fn run_ahead(run: &Run, plan: &Arc<dyn ExecutionPlan>) -> Result<()> {
    let work = async {
        let mut rows = plan.execute(0, Arc::clone(&run.context))?;
        while rows.next().await.transpose()?.is_some() {}
        Ok(())
    };
    guarded(run, PartitionId(0), work).await
}

async fn guarded<T>(run: &Run, partition: PartitionId, work: impl Future<Output = Result<T>>) -> Result<T> {
    // After a panic nothing of the task is used again: its stream and its writer are dropped with it.
    let done = AssertUnwindSafe(at_work(run.work.run_id, work)).catch_unwind().await;
    done.unwrap_or_else(|panic| {
        let error = Error::panicked("code in the query", panic.as_ref());
        Err(error.with_hint("a function of the query is the likely cause; the batch is repeated at the next start"))
    })
    .map_err(|error| error.with_batch(run.work.batch).with_partition(partition))
}

async fn write_exchange(run: &Run, exchange: &ExchangeExec, partition: PartitionId) -> Result<usize> {
    let batch = BatchContext::of(&run.context)?;
    let mut rows = exchange.input().execute(partition.0, Arc::clone(&run.context))?;
    let mut dealt = 0;
    while let Some(next) = rows.next().await {
        let next = next?;
        if next.num_rows() == 0 {
            continue;
        }
        batch.check_cancelled()?;
        dealt += next.num_rows();
        for (target, own) in exchange.split(partition.0, next)? {
            batch.exchange_write(exchange.number(), target, partition.0, own)?;
        }
    }
    Ok(dealt)
}

async fn drain(run: &Run, partition: PartitionId) -> Result<Option<Receipt>> {
    let batch = BatchContext::of(&run.context)?;
    let mut rows = run.plan.execute(partition.0, Arc::clone(&run.context))?;
    let (calls, whose) = (run.writers.calls(&run.calls), || run.writers.whose.clone());
    let mut writer = None;
    while let Some(next) = rows.next().await {
        let next = next?;
        if next.num_rows() == 0 {
            continue;
        }
        batch.check_cancelled()?;
        let writer = match &mut writer {
            Some(writer) => writer,
            None => {
                let made = run.writers.writer(run.work.to_write(), partition)?;
                writer.insert(OpenWriter::new(&run.written, made))
            }
        };
        calls.call(Phase::AddBatch, whose, writer.get()?.write(next)).await?;
    }
    let Some(writer) = writer else { return Ok(None) };
    let receipt = calls.call(Phase::AddBatch, whose, writer.into_inner()?.finish()).await?;
    run.written.finished(&receipt);
    Ok(Some(receipt))
}
