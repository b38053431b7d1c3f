//! After a crash: where to begin. A pure function of the tails of the two logs.
//!
//! | newest in `offsets` | newest in `commits` | what happened | what to do |
//! |---|---|---|---|
//! | none | none | the query is new | begin with batch 0 |
//! | none | any | the offset log was lost | refuse: damaged |
//! | L | L | batch L is done | go on with L+1 |
//! | L | L−1, or none and L = 0 | died in batch L | run L again, as logged |
//! | L | less than L−1, or none | commits were lost | warn, run L again |
//! | L | more than L | the offset log lost its tail | refuse: damaged |

use crate::error::{Error, Result};
use crate::id::BatchId;

/// Where a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resume {
    /// Nothing was logged: batch 0 is to be planned.
    Fresh,
    /// Everything logged is done; `last` was the last.
    After {
        /// The last batch.
        last: BatchId,
    },
    /// `batch` was logged but not committed: it runs again, exactly as logged.
    Repeat {
        /// The batch.
        batch: BatchId,
        /// Whether commits of earlier batches are missing, too, which deserves a warning.
        commits_lost: bool,
    },
}

/// See the table in the [module](self).
pub(crate) fn resume(newest_offsets: Option<BatchId>, newest_commit: Option<BatchId>) -> Result<Resume> {
    let Some(logged) = newest_offsets else {
        return match newest_commit {
            None => Ok(Resume::Fresh),
            Some(commit) => Err(Error::damaged(format!("commits/{commit} exists, but the offset log is empty"))
                .with_file("offsets")
                .with_hint("restore the folder `offsets` from a backup, or start with a new checkpoint")),
        };
    };
    match newest_commit {
        Some(commit) if commit == logged => Ok(Resume::After { last: logged }),
        Some(commit) if commit > logged => Err(Error::damaged(format!(
            "commits/{commit} exists, but offsets/{logged} is the newest of the offset log"
        ))
        .with_file(format!("offsets/{commit}"))
        .with_hint("restore the missing files of `offsets` from a backup, or start with a new checkpoint")),
        _ => Ok(Resume::Repeat { batch: logged, commits_lost: newest_commit != logged.previous() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table() {
        let at = |n: u64| Some(BatchId(n));
        let repeat = |n: u64, commits_lost| Some(Resume::Repeat { batch: BatchId(n), commits_lost });
        for (offsets, commits, expected) in [
            (None, None, Some(Resume::Fresh)),
            (None, at(0), None),
            (at(3), at(3), Some(Resume::After { last: BatchId(3) })),
            (at(3), at(2), repeat(3, false)),
            (at(0), None, repeat(0, false)),
            (at(3), at(1), repeat(3, true)),
            (at(3), None, repeat(3, true)),
            (at(3), at(4), None),
        ] {
            assert_eq!(resume(offsets, commits).ok(), expected, "{offsets:?} {commits:?}");
        }
    }
}
