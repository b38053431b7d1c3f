//! Deleting what no kept batch needs. What cannot be deleted now is only untidy.

use super::{Driver, checkpoint};
use crate::checkpoint::BatchLog;
use crate::id::BatchId;
use crate::progress::{Between, Phase};

impl Driver {
    /// After batch `committed`: forgets the oldest batch and, after the first of a run, whatever earlier runs left behind. It
    /// ends early when the query is asked to drop its batch, and when the store does not answer.
    pub(super) async fn clean_up(&mut self, committed: BatchId) {
        let began = self.clock.elapsed();
        let cleans = async {
            // The state forgets by what the commits name, so before any is deleted.
            self.purge_expired().await;
            if self.batches_run == 1 {
                self.delete_orphans(committed).await;
            }
            Ok(())
        };
        if let Err(error) = self.calls.call(Phase::CleanUp, checkpoint, cleans).await {
            tracing::warn!(%error, "what is not needed any more is left in the checkpoint");
        }
        self.between = Between::since(began, Phase::CleanUp, self.clock.elapsed());
    }

    /// Deletes what earlier runs left behind, up to the batch that was just committed. What cannot be deleted now is only
    /// untidy.
    async fn delete_orphans(&self, committed: BatchId) {
        // Earlier runs may have kept more batches.
        for log in [&self.logs.offsets, &self.logs.commits] {
            match (self.last_old_batch(), log.batches().await) {
                (Some(last), Ok(batches)) => {
                    for old in batches.into_iter().filter(|batch| *batch < last) {
                        self.delete_entry(log, old).await;
                    }
                }
                (None, _) => {}
                (_, Err(error)) => tracing::warn!(%error, "a log could not be listed"),
            }
        }
        // Files that only those entries named are named by none now.
        if let Err(error) = self.state.delete_orphans(&self.logs.commits, committed).await {
            tracing::warn!(%error, "files of state that an earlier run left behind could not be deleted");
        }
    }

    /// Deletes log entries that no kept batch needs. What cannot be deleted now is only untidy.
    async fn purge_expired(&self) {
        let Some(old) = self.last_old_batch() else { return };
        // The files of state first: the commits name them.
        if let Err(error) = self.state.expire_batch(&self.logs.commits, old).await {
            tracing::warn!(%error, batch = %old, "old files of state could not be deleted");
        }
        for log in [&self.logs.offsets, &self.logs.commits] {
            self.delete_entry(log, old).await;
        }
    }

    /// The newest batch that nothing needs any more.
    fn last_old_batch(&self) -> Option<BatchId> {
        let newest = self.next.0.saturating_sub(1);
        newest.checked_sub(self.config.min_batches_to_retain + 1).map(BatchId)
    }

    async fn delete_entry(&self, log: &BatchLog, old: BatchId) {
        if let Err(error) = log.delete(old).await {
            tracing::warn!(%error, batch = %old, "an old log entry could not be deleted");
        }
    }
}
