//! What the driver and the user's handles share.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::physical_plan::displayable;
use tokio::sync::{Notify, watch};

use super::inputs::Inputs;
use crate::calls::Cancel;
use crate::error::Error;
use crate::execution::LeafInput;
use crate::id::{BatchId, QueryId, RunId};
use crate::progress::QueryProgress;
use crate::sink::Guarantee;
use crate::source::Scanners;

/// What a query is doing right now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueryStatus {
    /// The status in words.
    pub message: String,
    /// Whether the last look found data.
    pub is_data_available: bool,
    /// Whether a batch is running.
    pub is_trigger_active: bool,
}

/// One run of one query, as seen from outside.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: QueryId,
    pub(crate) run_id: RunId,
    pub(crate) name: Option<String>,
    pub(crate) guarantee: Guarantee,
    /// The plan that every batch runs, for people.
    pub(crate) plan: String,
    /// State that nothing bounds, in words.
    pub(crate) unbounded_state: Vec<String>,
    pub(crate) state: watch::Sender<State>,
    /// Set: no further batch begins.
    pub(crate) stopping: AtomicBool,
    /// Set: the running batch is dropped.
    pub(crate) cancelled: Cancel,
    /// Ends the driver's pause.
    pub(crate) wake: Notify,
    /// Whether a pause may be ended to look for data: not in the rhythm of a processing-time trigger.
    pub(crate) can_wake_early: bool,
}

/// What changes while a query runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    /// Rounds begun so far.
    pub(crate) rounds: u64,
    /// The last round that found nothing to do, and knows that there was nothing.
    pub(crate) idle_round: u64,
    /// The last round in which a source did not answer, and what is to be said of it.
    pub(crate) unknown: Option<(u64, Error)>,
    pub(crate) status: QueryStatus,
    pub(crate) recent: VecDeque<Arc<QueryProgress>>,
    /// The watermark of the next batch; `None` without `with_watermark`.
    pub(crate) watermark_ms: Option<i64>,
    /// What the last batch read, by leaf; gone when the run is over, with the rows it may hold.
    pub(crate) read: Option<Read>,
    /// Set when the run is over: [`Shared::explain`]'s last answer.
    pub(crate) explained: Option<String>,
    /// Set once, when the run is over and has let go of all it held: the error, if it failed.
    pub(crate) ended: Option<Option<Error>>,
    /// Set after that, when listeners have heard of it.
    pub(crate) end_reported: bool,
}

/// What a batch read.
#[derive(Debug, Clone)]
pub(crate) struct Read {
    pub(crate) batch: BatchId,
    pub(crate) inputs: Arc<Inputs>,
    /// Not those that run the batch: these only show what the others do.
    pub(crate) scanners: Arc<Scanners>,
}

impl Read {
    /// The plan of a leaf, for people.
    fn shown(&self, leaf: usize, input: &LeafInput) -> String {
        let plan = match input {
            LeafInput::Nothing => return "nothing\n".to_owned(),
            LeafInput::Splits(splits) => self.scanners.scan(self.batch, leaf, splits),
            LeafInput::Bound => match self.inputs.bound.get(leaf).and_then(Option::as_ref) {
                Some(plan) => Ok(Arc::clone(plan)),
                None => return "nothing\n".to_owned(),
            },
        };
        match plan {
            Ok(plan) => displayable(plan.as_ref()).indent(true).to_string(),
            Err(error) => format!("its plan cannot be shown: {error}\n"),
        }
    }
}

impl Shared {
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Returns once the query was asked to stop.
    pub(crate) async fn stop_requested(&self) {
        while !self.is_stopping() {
            self.wake.notified().await;
        }
    }

    pub(crate) fn cancel(&self) {
        self.cancelled.set();
        self.stop();
    }

    /// The run is over. From now on nothing of a batch is kept.
    pub(crate) fn end(&self, error: Option<Error>) {
        let text = self.explain();
        self.state.send_modify(|state| {
            state.status = QueryStatus {
                message: error.as_ref().map_or("stopped".to_owned(), |e| format!("failed: {e}")),
                ..QueryStatus::default()
            };
            state.read = None;
            state.explained = Some(text);
            state.ended = Some(error);
        });
    }

    pub(crate) fn set_status(&self, message: impl Into<String>, is_trigger_active: bool) {
        let message = message.into();
        self.state.send_modify(|state| {
            state.status.message = message;
            state.status.is_trigger_active = is_trigger_active;
        });
    }

    /// The plan, and below it what the last batch read at each leaf.
    pub(crate) fn explain(&self) -> String {
        let state = self.state.borrow();
        if let Some(text) = &state.explained {
            return text.clone();
        }
        let mut text = format!("Every batch runs:\n{}", self.plan);
        for state in &self.unbounded_state {
            text.push_str(&format!("\nUnbounded: {state}.\n"));
        }
        if let Some(read) = &state.read {
            for (leaf, input) in read.inputs.leaves.iter().enumerate() {
                text.push_str(&format!("\nBatch {} read at leaf {leaf}:\n{}", read.batch, read.shown(leaf, input)));
            }
        }
        text
    }
}
