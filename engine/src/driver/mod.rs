//! The conductor: visits the rooms in the order of a batch's life.
//!
//! One task per query owns everything that changes: sources, sinks, logs, watermark. It runs rounds:
//!
//! ```text
//! round:  latest offsets → decide ─┬─ run:   offsets/N → split → run the plan → state → sinks → commits/N → progress
//!                                  ├─ wait:  until the trigger says so
//!                                  └─ finish
//! ```
//!
//! A batch that was logged but not committed before a crash is run first, exactly as logged. The first error ends the run;
//! the next start repeats the batch.
//!
//! Another run may take the query over at any time. So the run's epoch is checked before a batch is logged, before each sink
//! commits it, and once more when the batch is committed, before anything is deleted: then all of it was written while the
//! epoch held.

mod belongings;

mod clean_up;

mod commit_state;

mod decide;

mod inputs;

mod lifecycle;

mod opening;

mod operator_states;

mod pause;

mod report;

mod restart;

mod shared;

mod silence;

mod sinks;

use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument;

use self::decide::{RoundDecision, RoundInputs, decide};
pub(crate) use self::lifecycle::{Once, Start, start};
use self::opening::{Logs, is_from_moving};
use self::operator_states::OperatorStates;
pub use self::restart::RestartPolicy;
pub use self::shared::QueryStatus;
pub(crate) use self::shared::{Shared, State};
use self::silence::Silences;
use self::sinks::Sinks;
use crate::calls::Calls;
use crate::checkpoint::{Belongings, CommitEntry, Epoch, OffsetEntry};
use crate::clock::Clock;
use crate::config::Settings;
use crate::error::{Error, ErrorKind, Result};
use crate::execution::{BatchWork, Runner, Runtimes};
use crate::executor::Executor;
use crate::id::{BatchId, RunId};
use crate::plan::QueryPlan;
use crate::plan::static_inputs::Keep;
use crate::progress::{Between, EventQueue, Phase, Stopwatch};
use crate::source::{LatestOffset, MicroBatchStream, Offset, ReadLimit, Scanners, whose};
use crate::trigger::Schedule;
use crate::watermark::WatermarkTracker;

/// Joins keep their metrics while they keep their table; now and then both are built anew.
const BATCHES_PER_JOIN_RESET: u64 = 10_000;

/// Everything that one run of a query owns.
#[derive(Debug)]
pub(crate) struct Driver {
    shared: Arc<Shared>,
    /// Names what this driver writes; the first of a query has the id that users see.
    run_id: RunId,
    executor: Executor,
    runtimes: Runtimes,
    runner: Arc<dyn Runner>,
    /// How sources and sinks are called, and how the checkpoint is.
    calls: Calls,
    checkpoint_calls: Calls,
    clock: Arc<dyn Clock>,
    config: Settings,
    trigger: Schedule,
    plan: QueryPlan,
    readers: Vec<Box<dyn MicroBatchStream>>,
    /// The other half of the sources: where tasks run.
    scanners: Arc<Scanners>,
    /// The same, to show what a batch read.
    shown: Arc<Scanners>,
    sinks: Sinks,
    logs: Logs,
    epoch: Epoch,
    tracker: WatermarkTracker,
    state: OperatorStates,
    /// The sources that do not answer.
    silences: Silences,
    events: EventQueue,
    /// Settings that the checkpoint pins; written into every batch's entry.
    conf: std::collections::BTreeMap<String, String>,
    /// What the query reads and writes; written into every batch's entry.
    belongings: Belongings,
    /// The next batch.
    next: BatchId,
    /// By source: where the last batch ended.
    ends: Vec<Option<Offset>>,
    /// The entry of batch `next`, if it was logged before this run began.
    repeat: Option<OffsetEntry>,
    /// The watermark of the last batch, by which rows of the next are late.
    previous_watermark_ms: i64,
    /// When the static tables were last read. What is measured goes by the clock's [`elapsed`](Clock::elapsed), which nobody
    /// sets back.
    static_read: Option<Duration>,
    batches_run: u64,
    /// When the last batch began.
    last_trigger: Option<Duration>,
    last_idle_event: Duration,
    /// When the last batch ended, or the run began.
    idle_since: Duration,
    /// Time that no batch has spent.
    between: Between,
}

/// What a round did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    Ran,
    Idle,
    Finished,
}

impl Driver {
    /// Runs rounds until the query is stopped, fails, or its trigger ends it.
    async fn run(&mut self) -> Result<()> {
        match self.rounds().await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.cause_of(error).await),
        }
    }

    /// What another run or a deleted checkpoint leads to looks like damage, lost input or missing rights: this finds
    /// the cause.
    async fn cause_of(&self, error: Error) -> Error {
        if matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Stopped) {
            return error;
        }
        let batch = error.batch();
        match self.checkpoint_calls.call(Phase::CommitOffsets, checkpoint, self.moved(&error)).await {
            Err(cause) if matches!(cause.kind(), ErrorKind::Fenced | ErrorKind::DamagedCheckpoint) => {
                batch.into_iter().fold(cause.with_source(error), Error::with_batch)
            }
            _ => error,
        }
    }

    /// Fails if another run has taken over, or did what this one ran into.
    async fn moved(&self, error: &Error) -> Result<()> {
        self.epoch.check().await?;
        let newest = if is_from_moving(error) { self.logs.commits.batches().await?.pop() } else { None };
        match newest {
            Some(newest) if newest >= self.next => Err(Error::new(
                ErrorKind::Fenced,
                format!("another run committed batch {newest} while this one was at batch {}", self.next),
            )
            .with_hint("start again: the query goes on behind that batch")),
            _ => Ok(()),
        }
    }

    async fn rounds(&mut self) -> Result<()> {
        while !self.shared.is_stopping() {
            let started_ms = self.clock.now_ms();
            self.shared.state.send_modify(|state| state.rounds += 1);
            let round = self.round(started_ms).await.map_err(|e| self.plan.names.in_words(e))?;
            if round == Round::Finished || (self.trigger == Schedule::Once && round == Round::Ran) {
                break;
            }
            self.pause(started_ms, round == Round::Ran).await?;
        }
        Ok(())
    }

    async fn round(&mut self, started_ms: i64) -> Result<Round> {
        let mut watch = Stopwatch::start(Arc::clone(&self.clock));
        let (entry, latest) = match self.repeat.take() {
            Some(logged) => {
                tracing::info!(query = %self.shared.id, batch = %self.next, "running a logged batch again");
                let latest = logged
                    .ends
                    .iter()
                    .map(|end| LatestOffset { batch_end: end.clone(), ..LatestOffset::default() })
                    .collect();
                (logged, latest)
            }
            None => {
                let latest = self.latest_offsets(&mut watch).await?;
                self.note_silences(&latest, started_ms);
                let data = latest
                    .iter()
                    .zip(&self.ends)
                    .any(|(latest, end)| latest.batch_end.is_some() && latest.batch_end != *end);
                let watermark_due =
                    self.state.needs_no_data_batch(self.previous_watermark_ms, self.tracker.watermark_ms());
                let no_data_batches = self.config.no_data_batches;
                let found = RoundInputs { data, watermark_due, no_data_batches, unknown: self.silences.any() };
                match decide(found, self.trigger.ends()) {
                    RoundDecision::Run => (self.log_batch(started_ms, &latest, &mut watch).await?, latest),
                    RoundDecision::Wait => {
                        self.report_idle(started_ms);
                        return Ok(Round::Idle);
                    }
                    RoundDecision::Finish => {
                        // A source whose tasks were cut off may have taken that for the end.
                        self.runtimes.check()?;
                        self.report_idle(started_ms);
                        return Ok(Round::Finished);
                    }
                    RoundDecision::Fail => return Err(self.not_known().with_batch(self.next)),
                }
            }
        };
        let span = tracing::info_span!("batch", query = %self.shared.id, batch = %self.next);
        self.run_batch(started_ms, entry, &latest, watch).instrument(span).await?;
        Ok(Round::Ran)
    }

    /// Asks every source how far this batch may go.
    async fn latest_offsets(&mut self, watch: &mut Stopwatch) -> Result<Vec<LatestOffset>> {
        watch.enter(Phase::LatestOffset);
        let limit = if self.trigger == Schedule::Once { ReadLimit::All } else { ReadLimit::Configured };
        let batch = self.next;
        let (calls, sources) = (&self.calls, &self.plan.sources);
        let mut found = vec![];
        for ((reader, end), source) in self.readers.iter_mut().zip(&self.ends).zip(sources) {
            let asks = reader.latest_offset(end.as_ref(), limit);
            let asked = calls.call(Phase::LatestOffset, || whose(source.as_ref()), asks).await;
            let latest = asked.map_err(|e| e.with_batch(batch))?;
            // A source that says nothing has not moved.
            found.push(LatestOffset { batch_end: latest.batch_end.or_else(|| end.clone()), ..latest });
        }
        watch.leave();
        Ok(found)
    }

    /// Writes `offsets/N`: from here on the batch exists. Then the sources may let go of what the batch before read.
    async fn log_batch(
        &mut self,
        started_ms: i64,
        latest: &[LatestOffset],
        watch: &mut Stopwatch,
    ) -> Result<OffsetEntry> {
        watch.enter(Phase::WalCommit);
        let batch = self.next;
        let entry = OffsetEntry {
            watermark_ms: self.tracker.watermark_ms(),
            time_ms: started_ms,
            conf: self.conf.clone(),
            run_id: Some(self.run_id),
            belongings: Some(self.belongings.clone()),
            partitions: self.plan.draws.then_some(self.config.partitions),
            ends: latest.iter().map(|latest| latest.batch_end.clone()).collect(),
        };
        let logged = async {
            self.epoch.check().await?;
            self.logs.offsets.add(batch, &entry).await
        };
        self.checkpoint_calls.call(Phase::WalCommit, checkpoint, logged).await.map_err(|e| e.with_batch(batch))?;
        let (calls, sources) = (&self.calls, &self.plan.sources);
        for ((reader, end), source) in self.readers.iter_mut().zip(&self.ends).zip(sources) {
            if let Some(end) = end {
                let committed = calls.call(Phase::WalCommit, || whose(source.as_ref()), reader.commit(end)).await;
                committed.map_err(|e| e.with_batch(batch))?;
            }
        }
        watch.leave();
        Ok(entry)
    }

    /// Splits what the sources have, runs, commits.
    async fn run_batch(
        &mut self,
        started_ms: i64,
        entry: OffsetEntry,
        latest: &[LatestOffset],
        mut watch: Stopwatch,
    ) -> Result<()> {
        let batch = self.next;
        self.shared.set_status(format!("running batch {batch}"), true);

        watch.enter(Phase::GetBatch);
        let inputs = self.inputs(&entry).await.map_err(|e| e.with_batch(batch))?;

        watch.enter(Phase::QueryPlanning);
        self.make_plan_fit().await?;

        watch.enter(Phase::AddBatch);
        let begun = self.sinks.begin(batch, &self.calls).await.map_err(|e| e.with_batch(batch))?;
        let operators = self.state.watermarks(self.previous_watermark_ms, entry.watermark_ms);
        let work = BatchWork {
            query_id: self.shared.id,
            run_id: self.shared.run_id,
            attempt: self.run_id,
            batch,
            time_ms: entry.time_ms,
            watermark_ms: entry.watermark_ms,
            leaves: inputs.leaves.clone(),
            operators: operators.clone(),
            begin: begun.output,
            takes_dead_letters: self.sinks.takes_dead_letters(),
            parallel: inputs.partitions() > 1,
        };
        self.state.begin_batch();
        let ran = self.runner.run(work, self.site(inputs.bound.clone())).await;
        let mut outcome = ran.map_err(|e| e.with_batch(batch))?;
        watch.was_in(Phase::StateCommit, outcome.state_commit);
        let (receipts, dead_letters) =
            (std::mem::take(&mut outcome.receipts), std::mem::take(&mut outcome.dead_letters));
        let filled =
            self.sinks.fill(begun, receipts, dead_letters, &self.calls).await.map_err(|e| e.with_batch(batch))?;
        let state = match self.commit_state(&outcome, &mut watch).await {
            Ok(state) => state,
            Err(error) => {
                self.sinks.abort(&self.calls, filled).await;
                return Err(error.with_batch(batch));
            }
        };
        let rows = self.sinks.commit(&self.calls, &self.epoch, filled).await.map_err(|e| e.with_batch(batch))?;
        // `foreach_batch` may have run a plan of its own: whether it saw all rows is as uncertain.
        self.runtimes.check().map_err(|e| e.with_batch(batch))?;

        watch.enter(Phase::CommitOffsets);
        for (node, seen) in outcome.event_times.iter().enumerate().filter(|(_, seen)| seen.count > 0) {
            self.tracker.observe(node, seen.max_ms);
        }
        let commit = CommitEntry {
            next_batch_watermark_ms: self.tracker.watermark_ms(),
            node_watermarks_ms: self.tracker.node_watermarks_ms(),
            state,
            run_id: Some(self.run_id),
        };
        let committed = async {
            self.logs.commits.add(batch, &commit).await?;
            self.epoch.check().await
        };
        self.checkpoint_calls
            .call(Phase::CommitOffsets, checkpoint, committed)
            .await
            .map_err(|e| e.with_batch(batch))?;
        watch.leave();

        self.state.end_batch();
        let operators = self.state.progress(&operators, &outcome.operators, watch.phase_ms(Phase::StateCommit));
        self.report(started_ms, &entry, latest, &outcome, inputs, rows, operators, &watch);
        self.previous_watermark_ms = entry.watermark_ms;
        self.ends = entry.ends;
        self.next = batch.next();
        self.batches_run += 1;
        self.last_trigger = Some(watch.started());
        self.idle_since = self.clock.elapsed();
        self.clean_up(batch).await;
        Ok(())
    }

    /// Makes the plan fit to run again.
    async fn make_plan_fit(&mut self) -> Result<()> {
        let now = self.clock.elapsed();
        let stale = match (self.config.refresh_static_tables_every_ms, self.static_read) {
            (Some(every_ms), Some(read)) => now.saturating_sub(read).as_millis() as i64 >= every_ms,
            _ => false,
        };
        if stale {
            let looks = self.plan.look_up_static_tables();
            self.calls.call(Phase::QueryPlanning, || "a static table".to_owned(), looks).await?;
        }
        if stale || self.static_read.is_none() {
            self.static_read = Some(now);
        }
        let join_reset_due = self.batches_run % BATCHES_PER_JOIN_RESET == BATCHES_PER_JOIN_RESET - 1;
        let keep = if join_reset_due { Keep::StaticRows } else { Keep::HashTables };
        self.plan.reset(keep)
    }
}

/// The checkpoint, for the one whose call hangs.
fn checkpoint() -> String {
    "the checkpoint".to_owned()
}
