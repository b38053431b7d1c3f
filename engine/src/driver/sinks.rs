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
use tokio::runtime::Handle;

use crate::batch::BatchContext;
use crate::checkpoint::Epoch;
use crate::error::{Error, Result, guarded};
use crate::execution::Writers;
use crate::id::{BatchId, PartitionId};
use crate::query::OutputMode;
use crate::sink::{
    Begin, Guarantee, PartitionWriter, Receipt, Sink, SinkContext, SinkName, SinkWriter, dead_letter_schema,
    discarding_writer,
};
use crate::source::Source;

/// The sinks of one run.
#[derive(Debug)]
pub(super) struct Sinks {
    output: Box<dyn SinkWriter>,
    dead_letters: Option<Box<dyn SinkWriter>>,
    /// The output, for people.
    pub(super) description: String,
    /// The sink for dead letters, for people.
    dead_letters_description: String,
    /// What readers of both can rely on.
    pub(super) guarantee: Guarantee,
}

/// What a batch left to be committed.
pub(super) struct Filled {
    output: Written,
    dead_letters: Option<Written>,
}

/// What one sink got of it.
struct Written {
    begin: Begin,
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
    pub(super) async fn open(output: &dyn Sink, dead_letters: Option<&dyn Sink>, context: SinkContext) -> Result<Self> {
        let description = output.description();
        let guarantee = dead_letters.map_or(output.guarantee(), |sink| sink.guarantee().and(output.guarantee()));
        let for_dead_letters = SinkContext {
            name: SinkName::DeadLetters,
            schema: dead_letter_schema(),
            output_mode: OutputMode::Append,
            ..context.clone()
        };
        let dead_letters_description = dead_letters.map(Sink::description).unwrap_or_default();
        let output = output.open(context).await?;
        let dead_letters = match dead_letters {
            Some(sink) => Some(sink.open(for_dead_letters).await?),
            None => None,
        };
        Ok(Sinks { output, dead_letters, description, dead_letters_description, guarantee })
    }

    /// Both, to be let go of one by one.
    pub(super) fn into_parts(self) -> (Box<dyn SinkWriter>, Option<Box<dyn SinkWriter>>) {
        (self.output, self.dead_letters)
    }

    /// The one or the other, for the one whose code panicked.
    fn whose(&self, name: SinkName) -> String {
        match name {
            SinkName::Output => format!("the sink `{}`", self.description),
            SinkName::DeadLetters => format!("the sink `{}` for dead letters", self.dead_letters_description),
        }
    }

    /// Whether there is a sink for dead letters.
    pub(super) fn takes_dead_letters(&self) -> bool {
        self.dead_letters.is_some()
    }

    /// Begins the batch, lets `run` run the plan into the output, then writes the dead letters that came of it. If the output
    /// took the batch before, the plan runs all the same, for dead letters and for what its operators learn from it.
    pub(super) fn fill(
        &self,
        context: &BatchContext,
        runtime: &Handle,
        run: impl FnOnce(Writers<'_>) -> Result<Vec<Receipt>>,
    ) -> Result<Filled> {
        let batch = context.batch;
        let begins = |name, sink: &dyn SinkWriter| guarded(|| self.whose(name), || runtime.block_on(sink.begin(batch)));
        let begin = begins(SinkName::Output, self.output.as_ref())?;
        let dead_letters = match &self.dead_letters {
            Some(sink) => Some((sink.as_ref(), begins(SinkName::DeadLetters, sink.as_ref())?)),
            None => None,
        };

        let output = self.output.as_ref();
        let writers = |partition: PartitionId| writer(output, begin, batch, partition);
        let output = Written { begin, receipts: run(&writers)? };

        let dead_letters = match dead_letters {
            Some((sink, begin)) => {
                let letters = context.take_dead_letters();
                let write = || runtime.block_on(write_dead_letters(sink, begin, batch, letters));
                let receipts = guarded(|| self.whose(SinkName::DeadLetters), write)?;
                Some(Written { begin, receipts })
            }
            None => None,
        };
        Ok(Filled { output, dead_letters })
    }

    /// Makes the batch visible, first its dead letters, then its rows; neither, if the query was asked to drop it.
    pub(super) fn commit(
        &self,
        context: &BatchContext,
        runtime: &Handle,
        epoch: &Epoch,
        filled: Filled,
    ) -> Result<RowsGiven> {
        context.check_cancelled()?;
        let Filled { output, dead_letters } = filled;
        let rows = RowsGiven { output: output.rows(), dead_letters: dead_letters.as_ref().map(Written::rows) };
        let commits = |name, sink: &dyn SinkWriter, written| {
            guarded(|| self.whose(name), || runtime.block_on(commit(name, sink, context.batch, epoch, written)))
        };
        if let (Some(sink), Some(written)) = (&self.dead_letters, dead_letters) {
            commits(SinkName::DeadLetters, sink.as_ref(), written)?;
        }
        commits(SinkName::Output, self.output.as_ref(), output)?;
        Ok(rows)
    }
}

impl Written {
    fn rows(&self) -> u64 {
        self.receipts.iter().map(|receipt| receipt.rows).sum()
    }
}

/// A writer of the sink, or one that only counts if the sink has the batch already.
fn writer(
    sink: &dyn SinkWriter,
    begin: Begin,
    batch: BatchId,
    partition: PartitionId,
) -> Result<Box<dyn PartitionWriter>> {
    match begin {
        Begin::Open => sink.partition(batch, partition),
        Begin::Taken => Ok(discarding_writer()),
    }
}

/// Writes dead letters as a partition of their own. Without any, no writer is made.
async fn write_dead_letters(
    sink: &dyn SinkWriter,
    begin: Begin,
    batch: BatchId,
    letters: Vec<RecordBatch>,
) -> Result<Vec<Receipt>> {
    if letters.is_empty() {
        return Ok(vec![]);
    }
    let mut writer = writer(sink, begin, batch, PartitionId(0))?;
    for rows in letters {
        writer.write(rows).await?;
    }
    Ok(vec![writer.finish().await?])
}

async fn commit(name: SinkName, sink: &dyn SinkWriter, batch: BatchId, epoch: &Epoch, written: Written) -> Result<()> {
    epoch.check().await?;
    match written.begin {
        Begin::Open => sink.commit(batch, written.receipts).await,
        Begin::Taken => {
            tracing::info!(sink = %name, "the sink had taken this batch before the restart");
            Ok(())
        }
    }
}
