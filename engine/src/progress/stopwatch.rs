//! The named phases of a batch and their times.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;

/// A phase of a batch, under Spark's name for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Asking the sources how far they are, their own logs included.
    LatestOffset,
    /// Writing `offsets/N`.
    WalCommit,
    /// Splitting or binding the sources' ranges.
    GetBatch,
    /// Making the plan fit to run again.
    QueryPlanning,
    /// Running the plan into the sink, and the sink's commit.
    AddBatch,
    /// Writing what the batch changed in the state of its operators. Spark has no name for it.
    StateCommit,
    /// Waiting until files of state are merged, of which too many wait.
    Merging,
    /// Writing `commits/N`.
    CommitOffsets,
    /// Before the first batch of a run: planning, reading the checkpoint, loading state, opening sources and sinks.
    Loading,
    /// Before the first batch after a failure: what `Loading` is, and the delay before.
    Restarting,
    /// Between the batch before and this one: deleting what no kept batch needs.
    CleanUp,
    /// Between the batch before and this one: until the trigger fired, or there was something to do.
    Waiting,
}

impl Phase {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Phase::LatestOffset => "latestOffset",
            Phase::WalCommit => "walCommit",
            Phase::GetBatch => "getBatch",
            Phase::QueryPlanning => "queryPlanning",
            Phase::AddBatch => "addBatch",
            Phase::StateCommit => "stateCommit",
            Phase::Merging => "merging",
            Phase::CommitOffsets => "commitOffsets",
            Phase::Loading => "loading",
            Phase::Restarting => "restarting",
            Phase::CleanUp => "cleanUp",
            Phase::Waiting => "waiting",
        }
    }
}

/// Measures the phases of one round.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    clock: Arc<dyn Clock>,
    started: Duration,
    phases: BTreeMap<Phase, Duration>,
    running: Option<(Phase, Duration)>,
}

impl Stopwatch {
    pub(crate) fn start(clock: Arc<dyn Clock>) -> Self {
        Stopwatch { started: clock.elapsed(), clock, phases: BTreeMap::new(), running: None }
    }

    /// When it started, by [`Clock::elapsed`].
    pub(crate) fn started(&self) -> Duration {
        self.started
    }

    /// Ends the phase that runs, if any, and begins another.
    pub(crate) fn enter(&mut self, phase: Phase) {
        self.leave();
        self.running = Some((phase, self.clock.elapsed()));
    }

    /// Says that so much of the time of the phase that runs belongs to another.
    pub(crate) fn was_in(&mut self, phase: Phase, duration: Duration) {
        if let Some((_, since)) = &mut self.running {
            *since += duration;
            *self.phases.entry(phase).or_default() += duration;
        }
    }

    /// Ends the phase that runs.
    pub(crate) fn leave(&mut self) {
        if let Some((phase, since)) = self.running.take() {
            *self.phases.entry(phase).or_default() += self.clock.elapsed().saturating_sub(since);
        }
    }

    /// Milliseconds spent in a phase so far.
    pub(crate) fn phase_ms(&self, phase: Phase) -> f64 {
        self.phases.get(&phase).copied().map_or(0.0, ms)
    }

    /// Milliseconds since the start.
    pub(crate) fn total_ms(&self) -> f64 {
        ms(self.clock.elapsed().saturating_sub(self.started))
    }

    /// Milliseconds per phase, and `triggerExecution` for the whole.
    pub(crate) fn durations_ms(&self) -> BTreeMap<String, f64> {
        let mut durations: BTreeMap<String, f64> =
            self.phases.iter().map(|(phase, &duration)| (phase.name().to_owned(), ms(duration))).collect();
        durations.insert("triggerExecution".to_owned(), self.total_ms());
        durations
    }
}

/// The time between the end of a batch, or the start of the query, and the next batch. With it the phases of all batches together
/// are all the time there was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Between {
    phase: Phase,
    /// When the phase began, and when it ended; what follows is waiting.
    began: Duration,
    ended: Duration,
}

impl Between {
    /// What was done first, from when until when, by [`Clock::elapsed`].
    pub(crate) fn since(began: Duration, phase: Phase, ended: Duration) -> Self {
        Between { phase, began, ended }
    }

    /// What [`Stopwatch::durations_ms`] says of a batch, and what was before it.
    pub(crate) fn durations_ms(&self, watch: &Stopwatch) -> BTreeMap<String, f64> {
        let mut durations = watch.durations_ms();
        durations.insert(self.phase.name().to_owned(), ms(self.ended.saturating_sub(self.began)));
        durations.insert(Phase::Waiting.name().to_owned(), ms(watch.started.saturating_sub(self.ended)));
        durations
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}
