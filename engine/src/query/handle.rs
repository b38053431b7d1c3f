//! A running query, as its user holds it.

use std::sync::Arc;

use crate::driver::{QueryStatus, Shared, State};
use crate::error::{Error, Result};
use crate::execution::is_called_by;
use crate::id::{QueryId, RunId};
use crate::interval::Interval;
use crate::progress::{QueryProgress, is_in_listener};
use crate::sink::Guarantee;

/// One run of a query. Clones hold the same run; the query runs on when all are dropped.
#[derive(Debug, Clone)]
pub struct StreamingQuery {
    shared: Arc<Shared>,
}

impl StreamingQuery {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        StreamingQuery { shared }
    }

    /// The id of the query: the same after every restart from its checkpoint.
    pub fn id(&self) -> QueryId {
        self.shared.id
    }

    /// The id of this run.
    pub fn run_id(&self) -> RunId {
        self.shared.run_id
    }

    /// The name of the query, if it was given one.
    pub fn name(&self) -> Option<&str> {
        self.shared.name.as_deref()
    }

    /// What readers of the output can rely on, from source to sink. Sources are replayable, so it is the sink's
    /// guarantee; with a sink for dead letters, the weaker one of both.
    pub fn guarantee(&self) -> Guarantee {
        self.shared.guarantee
    }

    /// Whether the query runs: false once it has stopped or failed.
    pub fn is_active(&self) -> bool {
        self.shared.state.borrow().ended.is_none()
    }

    /// The status of the query: what it is doing now.
    pub fn status(&self) -> QueryStatus {
        self.shared.state.borrow().status.clone()
    }

    /// The progress of the last batch of this run.
    pub fn last_progress(&self) -> Option<Arc<QueryProgress>> {
        self.shared.state.borrow().recent.back().cloned()
    }

    /// The progress of the last batches of this run, oldest first.
    pub fn recent_progress(&self) -> Vec<Arc<QueryProgress>> {
        self.shared.state.borrow().recent.iter().cloned().collect()
    }

    /// The watermark the next batch will run with, in milliseconds since 1970; `None` for a query without watermark.
    pub fn watermark_ms(&self) -> Option<i64> {
        self.shared.state.borrow().watermark_ms
    }

    /// The error that the query failed with; `None` while it runs and after a clean end.
    #[doc(alias = "exception")]
    pub fn error(&self) -> Option<Error> {
        self.shared.state.borrow().ended.clone().flatten()
    }

    /// The plan that every batch runs, and what the last batch read at each of its leaves: with the projection and the
    /// filters that reached the files.
    pub fn explain(&self) -> String {
        self.shared.explain()
    }

    /// Waits until the query has stopped, and its [listeners](crate::progress::QueryListener) have heard of it.
    ///
    /// # Errors
    ///
    /// The error it failed with. In the query's own sink, source or functions, which it would wait for: that this is so.
    pub async fn await_termination(&self) -> Result<()> {
        self.check_is_foreign()?;
        let in_listener = is_in_listener();
        self.wait_for(|state| if in_listener { state.ended.is_some() } else { state.end_reported }).await;
        self.outcome()
    }

    /// Waits until the query has stopped, but not longer than `limit`. Returns whether it has.
    ///
    /// # Errors
    ///
    /// The error it failed with; or that `limit` is not a positive interval.
    pub async fn await_termination_for(&self, limit: impl Into<Interval>) -> Result<bool> {
        let limit = limit.into().to_duration("the time to wait for the end of a query")?;
        match tokio::time::timeout(limit, self.await_termination()).await {
            Ok(outcome) => outcome.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    /// Waits until everything that was there when this was called is in the sink. For tests: a stream that never pauses may
    /// keep it waiting.
    ///
    /// # Errors
    ///
    /// The error the query failed with; or, while the query goes on, why a source could not say what it has: then nobody
    /// knows whether everything is in the sink.
    pub async fn process_all_available(&self) -> Result<()> {
        self.check_is_foreign()?;
        let round = self.shared.state.borrow().rounds;
        if self.shared.can_wake_early {
            self.shared.wake.notify_one();
        }
        // The round that runs now may have looked before the call; one that began later has not.
        let unknown = |state: &State| state.unknown.as_ref().filter(|(unknown, _)| *unknown > round).cloned();
        self.wait_for(|state| state.ended.is_some() || state.idle_round > round || unknown(state).is_some()).await;
        let unknown = unknown(&self.shared.state.borrow());
        match unknown {
            Some((_, why)) if self.is_active() => Err(why),
            _ => self.outcome(),
        }
    }

    /// Stops: the running batch is finished, no other begins. Returns when the query has ended.
    ///
    /// In a function that the query calls, as that of `foreach_batch`, it returns at once, and the query ends when its batch
    /// is done. A task spawned there must not be waited for there: it would wait for the batch, and the batch for it.
    ///
    /// # Errors
    ///
    /// The error it failed with, if it did so before.
    pub async fn stop(&self) -> Result<()> {
        self.shared.stop();
        if self.check_is_foreign().is_err() {
            return Ok(());
        }
        self.await_termination().await
    }

    /// Aborts the query without finishing the running batch: it is dropped cleanly, and repeated by the next start.
    /// Returns when the query has ended; in a function that the query calls, at once.
    ///
    /// # Errors
    ///
    /// The error it failed with, if it did so before.
    pub async fn abort(&self) -> Result<()> {
        self.shared.cancel();
        if self.check_is_foreign().is_err() {
            return Ok(());
        }
        self.await_termination().await
    }

    /// Fails in code that the query itself has called: it would wait for its own end.
    fn check_is_foreign(&self) -> Result<()> {
        if is_called_by(self.shared.run_id) {
            return Err(Error::invalid(
                "a function that a query calls cannot wait for the query: each would wait for the other",
            )
            .with_query(self.shared.id)
            .with_hint("`stop` returns at once there; wait for the end elsewhere"));
        }
        Ok(())
    }

    fn outcome(&self) -> Result<()> {
        self.error().map_or(Ok(()), Err)
    }

    async fn wait_for(&self, condition: impl FnMut(&State) -> bool) {
        // The sender lives in `shared`, so waiting cannot fail.
        let _ = self.shared.state.subscribe().wait_for(condition).await;
    }
}
