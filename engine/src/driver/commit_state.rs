//! The state after a batch, before its sinks commit it.

use super::{Driver, checkpoint};
use crate::checkpoint::StateCommit;
use crate::error::Result;
use crate::execution::Outcome;
use crate::progress::{Phase, Stopwatch};

impl Driver {
    /// Waits for merges, if there must be some, and commits the state after the batch; `None` for a query without state.
    pub(super) async fn commit_state(
        &mut self,
        outcome: &Outcome,
        watch: &mut Stopwatch,
    ) -> Result<Option<StateCommit>> {
        self.runtimes.check()?;
        if self.state.is_empty() {
            return Ok(None);
        }
        let batch = self.next;
        watch.enter(Phase::Merging);
        let waits = || {
            let what = format!("batch {batch} waits until files of its state are merged: storage does not keep up");
            self.shared.set_status(what, true);
        };
        self.calls.unless_cancelled(self.state.make_room(batch, waits)).await?;
        watch.enter(Phase::StateCommit);
        let written = self.state.commit(batch, &outcome.operators);
        let written = self.checkpoint_calls.call(Phase::StateCommit, checkpoint, written).await?;
        watch.enter(Phase::AddBatch);
        Ok(Some(written))
    }
}
