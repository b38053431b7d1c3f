//! The sinks of a query: one for its rows and, where its user named one, one for dead letters. Every batch goes through
//! both: begin, fill, commit.
//!
//! ```text
//! begin(N) of both ─ the plan fills the output ─ dead letters fill the other ─ (state is written)
//!                  ─ commit(N) of the dead letters ─ commit(N) of the output ─ (commits/N is written)
//! ```
//!
//! A fall anywhere before `commits/N` repeats the batch for both, and each takes it once by its own promise: a sink that says
//! `AlreadyCommitted` gets nothing more, though the plan runs all the same, for the other one. Dead letters are committed first,
//! so that whoever misses a record among the rows of a batch finds it already where it went instead.
//!
//! A batch without dead letters is committed to their sink too: sinks that remember their batches refuse a gap.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;

use crate::calls::Calls;
use crate::checkpoint::Epoch;
use crate::error::{Error, Result};
use crate::execution::{ToWrite, Writers, abort};
use crate::id::{BatchId, PartitionId, QueryId, RunId};
use crate::output_mode::OutputMode;
use crate::progress::Phase;
use crate::sink::{BatchStatus, Guarantee, Receipt, Sink, SinkContext, SinkRole, dead_letter_schema};
use crate::source::Source;

/// The sinks of one run.
#[derive(Debug)]
pub(super) struct Sinks {
    output: OpenSink,
    dead_letters: Option<OpenSink>,
    query_id: QueryId,
    run_id: RunId,
    /// The output, for people.
    pub(super) description: String,
    /// What readers of both can rely on.
    pub(super) guarantee: Guarantee,
}

/// One of them.
#[derive(Debug)]
struct OpenSink {
    writers: Arc<Writers>,
}

/// A batch that both sinks have begun.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begun {
    batch: BatchId,
    /// Whether the output still wants it.
    pub(super) output: BatchStatus,
    dead_letters: Option<BatchStatus>,
}

/// What a batch left to be committed.
pub(super) struct WrittenBatch {
    batch: BatchId,
    output: SinkOutput,
    dead_letters: Option<SinkOutput>,
}

/// What one sink got of it.
struct SinkOutput {
    begin: BatchStatus,
    receipts: Vec<Receipt>,
}

/// How many rows a batch had for each sink.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowCounts {
    pub(super) output: u64,
    /// None if the query has no sink for dead letters.
    pub(super) dead_letters: Option<u64>,
}

/// Refuses sinks that do not fit the query, before anything is read.
pub(super) fn check(
    output: &dyn Sink,
    dead_letters: Option<&dyn Sink>,
    mode: OutputMode,
    sources: &[Arc<dyn Source>],
) -> Result<()> {
    if !output.supports_output_mode(mode) {
        return Err(Error::unsupported(format!("{} takes no rows in {mode} mode", output.description()))
            .with_hint("use append mode, or another sink"));
    }
    match dead_letters {
        Some(sink) if !sink.supports_output_mode(OutputMode::Append) => Err(Error::unsupported(format!(
            "{} takes no rows in append mode, in which dead letters come",
            sink.description()
        ))
        .with_hint("name another sink for dead letters")),
        Some(_) => Ok(()),
        None => match sources.iter().find(|source| source.emits_dead_letters()) {
            Some(source) => Err(Error::invalid(format!(
                "the source `{}` sends records that it cannot read to dead letters, and the query has no sink for them",
                source.description()
            ))
            .with_hint(
                "name one with `.dead_letters(sink)`, or choose another treatment of bad records for the source",
            )),
            None => Ok(()),
        },
    }
}

impl Sinks {
    /// Opens both. `context` is that of the output.
    pub(super) async fn open(
        output: &Arc<dyn Sink>,
        dead_letters: Option<&Arc<dyn Sink>>,
        context: SinkContext,
        calls: &Calls,
    ) -> Result<Self> {
        let description = output.description();
        let guarantee = dead_letters.map_or(output.guarantee(), |sink| sink.guarantee().and(output.guarantee()));
        let (query_id, run_id) = (context.query_id, context.run_id);
        let for_dead_letters = SinkContext {
            role: SinkRole::DeadLetters,
            schema: dead_letter_schema(),
            output_mode: OutputMode::Append,
            ..context.clone()
        };
        let one = async |sink: &Arc<dyn Sink>, context: SinkContext, purpose: &str| {
            let whose = format!("the sink `{}`{purpose}", sink.description());
            let driver = calls.call(Phase::Loading, || whose.clone(), sink.open(context.clone())).await?;
            let writers = Writers::new(Arc::clone(sink), Arc::from(driver), whose, context);
            Ok::<_, Error>(OpenSink { writers: Arc::new(writers) })
        };
        let output = one(output, context, "").await?;
        let dead_letters = match dead_letters {
            Some(sink) => Some(one(sink, for_dead_letters, " for dead letters").await?),
            None => None,
        };
        Ok(Sinks { output, dead_letters, query_id, run_id, description, guarantee })
    }

    /// Both, to be let go of one by one.
    pub(super) fn into_parts(self) -> (Arc<Writers>, Option<Arc<Writers>>) {
        (self.output.writers, self.dead_letters.map(|sink| sink.writers))
    }

    /// Those of the output.
    pub(super) fn writers(&self) -> Arc<Writers> {
        Arc::clone(&self.output.writers)
    }

    /// Whether there is a sink for dead letters.
    pub(super) fn takes_dead_letters(&self) -> bool {
        self.dead_letters.is_some()
    }

    /// Begins the batch. If the output took it before, the plan runs all the same, for dead letters and for what its operators
    /// learn from it.
    pub(super) async fn begin(&self, batch: BatchId, calls: &Calls) -> Result<Begun> {
        let output = self.output.begin(batch, calls).await?;
        let dead_letters = match &self.dead_letters {
            Some(sink) => Some(sink.begin(batch, calls).await?),
            None => None,
        };
        Ok(Begun { batch, output, dead_letters })
    }

    /// Takes what the plan has written into the output, and writes the dead letters that came of it.
    pub(super) async fn fill(
        &self,
        begun: Begun,
        receipts: Vec<Receipt>,
        dead_letters: Vec<RecordBatch>,
        calls: &Calls,
    ) -> Result<WrittenBatch> {
        let Begun { batch, output, dead_letters: begin } = begun;
        let output = SinkOutput { begin: output, receipts };
        let dead_letters = match (&self.dead_letters, begin) {
            (Some(sink), Some(begin)) => {
                let to_write = ToWrite { query_id: self.query_id, attempt: self.run_id, batch, begin };
                let write = write_dead_letters(&sink.writers, calls, to_write, dead_letters);
                match sink.call(calls, write).await {
                    Ok(receipts) => Some(SinkOutput { begin, receipts }),
                    Err(error) => {
                        self.output.abort(batch, output, calls).await;
                        return Err(error);
                    }
                }
            }
            _ => None,
        };
        Ok(WrittenBatch { batch, output, dead_letters })
    }

    /// Takes back what a batch has written that will not be committed.
    pub(super) async fn abort(&self, calls: &Calls, filled: WrittenBatch) {
        let WrittenBatch { batch, output, dead_letters } = filled;
        if let (Some(sink), Some(written)) = (&self.dead_letters, dead_letters) {
            sink.abort(batch, written, calls).await;
        }
        self.output.abort(batch, output, calls).await;
    }

    /// Makes the batch visible, first its dead letters, then its rows; neither, if the query was asked to drop it.
    pub(super) async fn commit(&self, calls: &Calls, epoch: &Epoch, filled: WrittenBatch) -> Result<RowCounts> {
        calls.check_cancelled()?;
        let WrittenBatch { batch, output, dead_letters } = filled;
        let rows = RowCounts { output: output.rows(), dead_letters: dead_letters.as_ref().map(SinkOutput::rows) };
        if let (Some(sink), Some(written)) = (&self.dead_letters, dead_letters) {
            sink.commit(batch, written, epoch, calls).await?;
        }
        self.output.commit(batch, output, epoch, calls).await?;
        Ok(rows)
    }
}

impl OpenSink {
    async fn call<T>(&self, calls: &Calls, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.writers.calls(calls).call(Phase::AddBatch, || self.writers.whose.clone(), work).await
    }

    async fn begin(&self, batch: BatchId, calls: &Calls) -> Result<BatchStatus> {
        self.call(calls, self.writers.driver.begin(batch)).await
    }

    async fn commit(&self, batch: BatchId, written: SinkOutput, epoch: &Epoch, calls: &Calls) -> Result<()> {
        let commit = async {
            epoch.check().await?;
            match written.begin {
                BatchStatus::New => self.writers.driver.commit(batch, written.receipts).await,
                BatchStatus::AlreadyCommitted => {
                    tracing::info!(sink = %self.writers.role, "the sink had committed this batch before the restart");
                    Ok(())
                }
            }
        };
        self.call(calls, commit).await
    }

    /// Takes back what was written, unless the sink had committed it before.
    async fn abort(&self, batch: BatchId, written: SinkOutput, calls: &Calls) {
        if written.begin == BatchStatus::New {
            abort(&self.writers, &self.writers.calls(calls), batch, vec![], written.receipts).await;
        }
    }
}

impl SinkOutput {
    fn rows(&self) -> u64 {
        self.receipts.iter().map(|receipt| receipt.rows).sum()
    }
}

/// Writes dead letters as a partition of their own. Without any, no writer is made.
async fn write_dead_letters(
    writers: &Writers,
    calls: &Calls,
    batch: ToWrite,
    letters: Vec<RecordBatch>,
) -> Result<Vec<Receipt>> {
    if letters.is_empty() {
        return Ok(vec![]);
    }
    let mut writer = writers.writer(batch, PartitionId(0))?;
    for rows in letters {
        if let Err(error) = writer.write(rows).await {
            abort(writers, calls, batch.batch, vec![writer], vec![]).await;
            return Err(error);
        }
    }
    Ok(vec![writer.finish().await?])
}
