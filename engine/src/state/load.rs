//! From the files of a commit to the tables of each partition.
//!
//! A partition owns a stretch of key groups, and of each file reads these alone. The files are merged as they are read, so
//! that of each row only the newest change arrives, in the order of the hashes: a table takes it in without having to look
//! for it. Partitions know nothing of each other: each is loaded by a task of its own, as many at a time as there are threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::{StreamExt, stream};

use super::key_hash::{KEY_GROUPS, partition_of};
use super::merge::{Keeps, MergedRows};
use super::read::EntryReader;
use super::{OperatorId, OperatorState, Resources};
use crate::checkpoint::{MetadataStore, OperatorCommit};
use crate::error::Result;
use crate::executor::{Executor, yield_now};

/// Fills the state of an operator from the files of a commit: each partition takes the rows whose keys it owns.
pub(crate) async fn load(
    operator: OperatorId,
    state: &Arc<OperatorState>,
    commit: &OperatorCommit,
    store: &Arc<dyn MetadataStore>,
    resources: &Resources,
    executor: &Executor,
) -> Result<()> {
    let (commit, failed) = (Arc::new(commit.clone()), Arc::new(AtomicBool::new(false)));
    let partitions = (0..state.partitions()).filter_map(|partition| {
        let groups = groups_of(partition, state.partitions())?;
        let (state, commit, store) = (Arc::clone(state), Arc::clone(&commit), Arc::clone(store));
        let (resources, failed) = (resources.clone(), Arc::clone(&failed));
        Some(Partition { operator, state, partition, groups, commit, store, resources, failed })
    });
    let tasks = stream::iter(partitions.map(|partition| executor.spawn(partition.run())));
    // To the end of each, so that what it held is free when this returns, after an error too.
    let done: Vec<Result<()>> = tasks.buffer_unordered(executor.threads()).collect().await;
    done.into_iter().collect()
}

/// A partition to be loaded.
struct Partition {
    operator: OperatorId,
    state: Arc<OperatorState>,
    partition: usize,
    groups: (u8, u8),
    commit: Arc<OperatorCommit>,
    store: Arc<dyn MetadataStore>,
    resources: Resources,
    /// Set once one could not be loaded: then the others are of no use.
    failed: Arc<AtomicBool>,
}

impl Partition {
    async fn run(self) -> Result<()> {
        let failed = Arc::clone(&self.failed);
        let done = self.load().await;
        if done.is_err() {
            failed.store(true, Ordering::Release);
        }
        done
    }

    async fn load(self) -> Result<()> {
        let spec = &self.state.spec;
        let reader =
            |entry| EntryReader::new(&self.store, self.operator, spec, entry, self.groups, self.resources.limits);
        let readers = self.commit.files.iter().map(reader).collect();
        let keeps = Keeps { bounds_us: self.commit.bounds_us(spec.eviction_bounds), nothing_older: true };
        let mut merged = MergedRows::new(spec.clone(), readers, keeps, &self.resources);
        while let Some(rows) = merged.next(|read| self.state.note(self.partition, &read.rows)).await? {
            let hashes: Vec<u64> = rows.orders.iter().map(|order| order.hash()).collect();
            self.state.load(self.partition, &rows.rows, &hashes)?;
            yield_now().await;
            if self.failed.load(Ordering::Acquire) {
                break;
            }
        }
        Ok(())
    }
}

/// The first and the last key group of a partition; none if it owns none.
fn groups_of(partition: usize, partitions: usize) -> Option<(u8, u8)> {
    let mut own = (0..KEY_GROUPS as u64).filter(|group| partition_of(*group, partitions) == partition);
    let first = own.next()?;
    Some((first as u8, own.next_back().unwrap_or(first) as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_own_all_groups_between_them() {
        assert_eq!(groups_of(0, 1), Some((0, 255)));
        assert_eq!((groups_of(0, 2), groups_of(1, 2)), (Some((0, 127)), Some((128, 255))));
        for partitions in [3, 64, 255, 256, 300] {
            let owned: Vec<(u8, u8)> =
                (0..partitions).filter_map(|partition| groups_of(partition, partitions)).collect();
            assert_eq!((owned[0].0, owned[owned.len() - 1].1), (0, 255), "{partitions}");
            assert!(owned.windows(2).all(|pair| usize::from(pair[0].1) + 1 == usize::from(pair[1].0)), "{partitions}");
        }
    }
}
