//! The sinks of a query: one for its rows and, where its user named one, one for dead letters. Every batch goes through
//! both: begin, fill, commit.
//!
//! ```text
//! begin(N) of both ─ the plan fills the output ─ dead letters fill the other ─ (state is written)
//!                  ─ commit(N) of the dead letters ─ commit(N) of the output ─ (commits/N is written)
//! ```
//!
//! A fall anywhere before `commits/N` repeats the batch for both, and each takes it once by its own promise: a sink that says
//! `Taken` gets nothing more, though the plan runs all the same, for the other one. Dead letters are committed first, so
//! that whoever misses a record among the rows of a batch finds it already where it went instead.
//!
//! A batch without dead letters is committed to their sink too: sinks that remember their batches refuse a gap.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;

use crate::calls::Calls;
use crate::checkpoint::Epoch;
use crate::error::{Error, Result};
use crate::execution::Writers;
use crate::id::{BatchId, PartitionId};
use crate::progress::Phase;
use crate::query::OutputMode;
use crate::sink::{Begin, Guarantee, Receipt, Sink, SinkContext, SinkName, SinkWriter, dead_letter_schema};
use crate::source::Source;

/// The sinks of one run.
#[derive(Debug)]
pub(super) struct Sinks {
    output: OneSink,
    dead_letters: Option<OneSink>,
    /// The output, for people.
    pub(super) description: String,
    /// What readers of both can rely on.
    pub(super) guarantee: Guarantee,
}

/// One of them.
#[derive(Debug)]
struct OneSink {
    name: SinkName,
    writer: Arc<dyn SinkWriter>,
    /// It, for the one whose code panics or hangs.
    whose: String,
    has_time_limit: bool,
}

/// A batch that both sinks have begun.
pub(super) struct Begun {
    /// For the output.
    pub(super) writers: Writers,
    dead_letters: Option<Writers>,
}

/// What a batch left to be committed.
pub(super) struct Filled {
    output: Written,
    dead_letters: Option<Written>,
}

/// What one sink got of it.
struct Written {
    writers: Writers,
    receipts: Vec<Receipt>,
}

/// How many rows a batch had for each sink.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowsGiven {
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
    if !output.supports(mode) {
        return Err(Error::unsupported(format!("{} takes no rows in {mode} mode", output.description()))
            .hint("use append mode, or another sink"));
    }
    match dead_letters {
        Some(sink) if !sink.supports(OutputMode::Append) => Err(Error::unsupported(format!(
            "{} takes no rows in append mode, in which dead letters come",
            sink.description()
        ))
        .hint("name another sink for dead letters")),
        Some(_) => Ok(()),
        None => match sources.iter().find(|source| source.has_dead_letters()) {
            Some(source) => Err(Error::invalid(format!(
                "the source `{}` sends records that it cannot read to dead letters, and the query has no sink for them",
                source.description()
            ))
            .hint("name one with `.dead_letters(sink)`, or choose another treatment of bad records for the source")),
            None => Ok(()),
        },
    }
}

impl Sinks {
    /// Opens both. `context` is that of the output.
    pub(super) async fn open(
        output: &dyn Sink,
        dead_letters: Option<&dyn Sink>,
        context: SinkContext,
        calls: &Calls,
    ) -> Result<Self> {
        let description = output.description();
        let guarantee = dead_letters.map_or(output.guarantee(), |sink| sink.guarantee().and(output.guarantee()));
        let for_dead_letters = SinkContext {
            name: SinkName::DeadLetters,
            schema: dead_letter_schema(),
            output_mode: OutputMode::Append,
            ..context.clone()
        };
        let one = async |sink: &dyn Sink, context: SinkContext, purpose: &str| {
            let (name, whose) = (context.name, format!("the sink `{}`{purpose}", sink.description()));
            let writer = calls.call(Phase::Loading, || whose.clone(), sink.open(context)).await?;
            Ok::<_, Error>(OneSink { name, writer: Arc::from(writer), whose, has_time_limit: sink.has_time_limit() })
        };
        let output = one(output, context, "").await?;
        let dead_letters = match dead_letters {
            Some(sink) => Some(one(sink, for_dead_letters, " for dead letters").await?),
            None => None,
        };
        Ok(Sinks { output, dead_letters, description, guarantee })
    }

    /// Both, to be let go of one by one.
    pub(super) fn into_parts(self) -> (Arc<dyn SinkWriter>, Option<Arc<dyn SinkWriter>>) {
        (self.output.writer, self.dead_letters.map(|sink| sink.writer))
    }

    /// Whether there is a sink for dead letters.
    pub(super) fn takes_dead_letters(&self) -> bool {
        self.dead_letters.is_some()
    }

    /// Begins the batch. If the output took it before, the plan runs all the same, for dead letters and for what its operators
    /// learn from it.
    pub(super) async fn begin(&self, batch: BatchId, calls: &Calls) -> Result<Begun> {
        let writers = self.output.begin(batch, calls).await?;
        let dead_letters = match &self.dead_letters {
            Some(sink) => Some(sink.begin(batch, calls).await?),
            None => None,
        };
        Ok(Begun { writers, dead_letters })
    }

    /// Takes what the plan has written into the output, and writes the dead letters that came of it.
    pub(super) async fn fill(
        &self,
        begun: Begun,
        receipts: Vec<Receipt>,
        dead_letters: Vec<RecordBatch>,
    ) -> Result<Filled> {
        let output = Written { writers: begun.writers, receipts };
        let dead_letters = match begun.dead_letters {
            Some(writers) => {
                let write = write_dead_letters(&writers, dead_letters);
                let receipts = writers.calls.call(Phase::AddBatch, || writers.whose.clone(), write).await?;
                Some(Written { writers, receipts })
            }
            None => None,
        };
        Ok(Filled { output, dead_letters })
    }

    /// Makes the batch visible, first its dead letters, then its rows; neither, if the query was asked to drop it.
    pub(super) async fn commit(&self, calls: &Calls, epoch: &Epoch, filled: Filled) -> Result<RowsGiven> {
        calls.check_cancelled()?;
        let Filled { output, dead_letters } = filled;
        let rows = RowsGiven { output: output.rows(), dead_letters: dead_letters.as_ref().map(Written::rows) };
        if let (Some(sink), Some(written)) = (&self.dead_letters, dead_letters) {
            sink.commit(epoch, written).await?;
        }
        self.output.commit(epoch, output).await?;
        Ok(rows)
    }
}

impl OneSink {
    async fn begin(&self, batch: BatchId, calls: &Calls) -> Result<Writers> {
        let calls = if self.has_time_limit { calls.clone() } else { calls.without_timeout() };
        let begin = calls.call(Phase::AddBatch, || self.whose.clone(), self.writer.begin(batch)).await?;
        Ok(Writers { sink: Arc::clone(&self.writer), begin, batch, whose: self.whose.clone(), calls })
    }

    async fn commit(&self, epoch: &Epoch, written: Written) -> Result<()> {
        let Written { writers, receipts } = written;
        let commit = async {
            epoch.check().await?;
            match writers.begin {
                Begin::Open => writers.sink.commit(writers.batch, receipts).await,
                Begin::Taken => {
                    tracing::info!(sink = %self.name, "the sink had taken this batch before the restart");
                    Ok(())
                }
            }
        };
        writers.calls.call(Phase::AddBatch, || self.whose.clone(), commit).await
    }
}

impl Written {
    fn rows(&self) -> u64 {
        self.receipts.iter().map(|receipt| receipt.rows).sum()
    }
}

/// Writes dead letters as a partition of their own. Without any, no writer is made.
async fn write_dead_letters(writers: &Writers, letters: Vec<RecordBatch>) -> Result<Vec<Receipt>> {
    if letters.is_empty() {
        return Ok(vec![]);
    }
    let mut writer = writers.writer(PartitionId(0))?;
    for rows in letters {
        writer.write(rows).await?;
    }
    Ok(vec![writer.finish().await?])
}
