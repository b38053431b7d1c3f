//! One operator's state while a query runs, and what it did in one batch.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use datafusion::error::Result;
use datafusion::execution::memory_pool::MemoryReservation;
use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use super::{Resources, StateSchema};
use crate::error::Error;

/// What an operator keeps for one partition.
pub(crate) trait PartitionState: Any + Send + Debug {
    /// Sees all that is read while the state is loaded, removals and what is gone too.
    fn note(&mut self, _read: &RecordBatch) {}

    /// Takes in rows from files, in the columns of [`StateSchema::file_schema`], with the hashes of their keys: only rows of this
    /// partition that are alive, and each once.
    fn load(&mut self, rows: &RecordBatch, hashes: &[u64]) -> Result<()>;

    /// How many rows it keeps.
    fn rows(&self) -> usize;

    /// The memory it holds, in bytes.
    fn bytes(&self) -> usize;
}

/// The state of one operator, by partition. Each partition is worked on by one task at a time.
#[derive(Debug)]
pub(crate) struct OperatorState {
    pub(crate) spec: StateSchema,
    resources: Resources,
    partitions: Vec<Mutex<Box<dyn PartitionState>>>,
}

impl OperatorState {
    pub(crate) fn new(spec: StateSchema, resources: Resources, partitions: Vec<Box<dyn PartitionState>>) -> Self {
        OperatorState { spec, resources, partitions: partitions.into_iter().map(Mutex::new).collect() }
    }

    pub(crate) fn partitions(&self) -> usize {
        self.partitions.len()
    }

    pub(crate) fn note(&self, partition: usize, read: &RecordBatch) {
        if let Some(state) = self.partitions.get(partition) {
            state.lock().note(read);
        }
    }

    pub(crate) fn load(&self, partition: usize, rows: &RecordBatch, hashes: &[u64]) -> Result<()> {
        match self.partitions.get(partition) {
            Some(state) => state.lock().load(rows, hashes),
            None => Err(Error::internal("state has fewer partitions than its operator").into()),
        }
    }

    /// Rows and bytes kept, in all partitions.
    pub(crate) fn size(&self) -> (usize, usize) {
        self.partitions.iter().fold((0, 0), |(rows, bytes), state| {
            let state = state.lock();
            (rows + state.rows(), bytes + state.bytes())
        })
    }
}

/// What an operator did in a batch, in rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Rows of state that were added or changed.
    pub(crate) rows_updated: u64,
    /// Rows of state that were taken away.
    pub(crate) rows_removed: u64,
    /// Input rows that came too late.
    pub(crate) rows_dropped_late: u64,
    /// Input rows that were there before.
    pub(crate) rows_dropped_duplicate: u64,
    /// Input rows that have no session.
    pub(crate) rows_without_session: u64,
}

/// One operator in one batch: the watermarks it goes by, its state, and the effects of the batch: changes, evictions
/// and counts.
#[derive(Debug)]
pub(crate) struct OperatorBatch {
    /// Rows whose time is at or before this are late: the watermark of the batch before, in ms.
    pub(crate) late_watermark_ms: i64,
    /// Rows whose time is at or before this are final: the watermark of this batch, in ms.
    pub(crate) eviction_watermark_ms: i64,
    pub(crate) state: Arc<OperatorState>,
    effects: Mutex<BatchEffects>,
}

#[derive(Debug)]
struct BatchEffects {
    /// By partition, in the order of the calls.
    changes: Vec<Vec<RecordBatch>>,
    /// The memory of the changes.
    claimed: MemoryReservation,
    evicted_us: Vec<i64>,
    counts: Counts,
}

impl OperatorBatch {
    pub(crate) fn new(late_watermark_ms: i64, eviction_watermark_ms: i64, state: Arc<OperatorState>) -> Self {
        let effects = Mutex::new(BatchEffects {
            changes: vec![vec![]; state.partitions()],
            claimed: state.resources.reservation(),
            evicted_us: vec![i64::MIN; state.spec.eviction_bounds],
            counts: Counts::default(),
        });
        OperatorBatch { late_watermark_ms, eviction_watermark_ms, state, effects }
    }

    /// Rows at or before this are late, in µs.
    pub(crate) fn late_us(&self) -> i64 {
        self.late_watermark_ms.saturating_mul(1000)
    }

    /// Rows at or before this are final, in µs.
    pub(crate) fn evict_us(&self) -> i64 {
        self.eviction_watermark_ms.saturating_mul(1000)
    }

    /// The state of one partition.
    pub(crate) fn state<S: PartitionState>(&self, partition: usize) -> Result<MappedMutexGuard<'_, S>> {
        let foreign = || Error::internal("an operator found the state of another").into();
        let Some(state) = self.state.partitions.get(partition) else { return Err(foreign()) };
        let guard = MutexGuard::try_map(state.lock(), |state| (state.as_mut() as &mut dyn Any).downcast_mut::<S>());
        guard.map_err(|_| foreign())
    }

    /// Adds to what the batch changes in the state.
    pub(crate) fn change(&self, partition: usize, change: RecordBatch) -> Result<()> {
        if change.num_rows() == 0 {
            return Ok(());
        }
        let mut effects = self.effects.lock();
        let bytes = change.get_array_memory_size();
        effects.claimed.try_grow(bytes).map_err(|e| self.state.resources.refused(effects.claimed.size() + bytes, e))?;
        match effects.changes.get_mut(partition) {
            Some(changes) => changes.push(change),
            None => {
                return Err(Error::internal("an operator changed state of a partition that it does not have").into());
            }
        }
        Ok(())
    }

    /// Says up to when rows were evicted, in µs, by side.
    pub(crate) fn evicted(&self, bounds_us: &[i64]) {
        let mut effects = self.effects.lock();
        for (known, bound) in effects.evicted_us.iter_mut().zip(bounds_us) {
            *known = (*known).max(*bound);
        }
    }

    /// Adds to what is counted.
    pub(crate) fn count(&self, more: Counts) {
        let counts = &mut self.effects.lock().counts;
        counts.rows_updated += more.rows_updated;
        counts.rows_removed += more.rows_removed;
        counts.rows_dropped_late += more.rows_dropped_late;
        counts.rows_dropped_duplicate += more.rows_dropped_duplicate;
        counts.rows_without_session += more.rows_without_session;
    }

    /// All changes, by partition, and the claim on their memory. They are moved.
    pub(crate) fn take_changes(&self) -> (Vec<Vec<RecordBatch>>, MemoryReservation) {
        let mut effects = self.effects.lock();
        (std::mem::take(&mut effects.changes), effects.claimed.take())
    }

    /// By side: up to when rows were evicted, in µs; `i64::MIN` for not at all.
    pub(crate) fn evicted_us(&self) -> Vec<i64> {
        self.effects.lock().evicted_us.clone()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.effects.lock().counts
    }
}
