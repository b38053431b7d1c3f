//! From the files of a commit to the tables of each partition.

use std::sync::Arc;

use arrow::array::UInt32Array;
use arrow::compute::take_record_batch;
use arrow::record_batch::RecordBatch;
use rayon::prelude::*;

use super::files::read;
use super::key_hash::{hash_keys, partition_of};
use super::{OperatorCommit, OperatorId, OperatorState, file};
use crate::checkpoint::CheckpointStore;
use crate::error::Result;

/// Fills the state of an operator from the files of a commit: each partition takes the rows whose keys it owns.
pub(crate) async fn load(
    operator: OperatorId,
    state: &Arc<OperatorState>,
    commit: &OperatorCommit,
    store: &Arc<dyn CheckpointStore>,
) -> Result<()> {
    let spec = &state.spec;
    let bounds_us = commit.bounds_us(spec.sides);
    for entry in &commit.files {
        for change in read(store.as_ref(), operator, spec, entry).await? {
            let rows = rows_by_partition(state, &change, &bounds_us)?;
            rows.into_par_iter().enumerate().filter(|(_, rows)| !rows.is_empty()).try_for_each(
                |(partition, rows)| {
                    let own = take_record_batch(&change, &UInt32Array::from(rows))?;
                    Ok::<_, crate::error::Error>(state.load(partition, &own)?)
                },
            )?;
        }
    }
    Ok(())
}

/// The living rows of a change, by the partition that owns them.
fn rows_by_partition(state: &OperatorState, change: &RecordBatch, bounds_us: &[i64]) -> Result<Vec<Vec<u32>>> {
    let spec = &state.spec;
    let mut rows = vec![vec![]; state.partitions()];
    let hashes = hash_keys(&change.columns()[1..=spec.keys.len()], change.num_rows())?;
    for (row, hash) in hashes.into_iter().enumerate() {
        if file::alive(spec, change, bounds_us, row)
            && let Some(own) = rows.get_mut(partition_of(hash, state.partitions()))
        {
            own.push(row as u32);
        }
    }
    Ok(rows)
}
