//! Keeps chunks few, and at least half of the rows alive, in steps that follow what a batch changed.
//!
//! Two things make a chunk worth to be written anew: it is one of many small ones, as batches of few rows leave them, or many
//! of its rows are alive no longer. Either way its living rows are appended as part of a new chunk, and their slots moved on. A
//! step reads about twice as many rows as the batch changed and one chunk more, whatever lies in the table: that keeps up,
//! since the emptiest chunks go first, and of these at least half the rows are dead when half of all are.

use arrow::array::{Array, ArrayRef};
use arrow::compute::interleave;
use datafusion::error::Result;

use super::chunks::Chunk;
use super::keys::Keys;
use super::{NONE, StateTable};
use crate::state::sizes::{RowBytes, bounded_ranges};
use crate::state::spelling::shrink_to_fit;

/// So many dead rows are of no account.
const DEAD_ROWS: usize = 1024;

impl StateTable {
    /// Does a part of the work that is due, after so many rows were changed.
    pub(super) fn compact(&mut self, changed: usize) -> Result<()> {
        let mut budget = self.resources.limits.chunk_rows + 2 * changed;
        while budget > 0 {
            let mut places = self.chunks.many_small();
            if places.is_empty() && self.chunks.rows() > 2 * self.alive + DEAD_ROWS {
                places = self.chunks.emptiest(budget);
            }
            let rows: usize = places.iter().filter_map(|place| self.chunks.get(*place)).map(|c| c.slots.len()).sum();
            if rows == 0 {
                break;
            }
            budget = budget.saturating_sub(rows);
            #[cfg(test)]
            {
                self.rewritten += rows;
            }
            self.rewrite(&places)?;
        }
        Ok(())
    }

    /// Moves the living rows of some chunks into new ones.
    fn rewrite(&mut self, places: &[u32]) -> Result<()> {
        let old: Vec<(u32, Chunk)> =
            places.iter().filter_map(|&place| Some((place, self.chunks.take(place)?))).collect();
        let mut from = vec![];
        for (i, (place, chunk)) in old.iter().enumerate() {
            for (row, &id) in chunk.slots.iter().enumerate() {
                if self.slots.get(id).is_some_and(|slot| slot.chunk == *place && slot.row as usize == row) {
                    from.push((i, row));
                }
            }
        }
        let sizes: Vec<RowBytes<'_>> = old.iter().map(|(_, chunk)| RowBytes::new(&chunk.values)).collect();
        let sizes = from.iter().map(|&(i, row)| sizes[i].at(row) + old[i].1.keys.get(row).len());
        for part in bounded_ranges(sizes, self.resources.limits.chunk_rows, self.resources.limits.chunk_bytes) {
            self.append(&old, &from[part])?;
        }
        Ok(())
    }

    /// Appends rows of old chunks as a new one.
    fn append(&mut self, old: &[(u32, Chunk)], from: &[(usize, usize)]) -> Result<()> {
        let mut keys = Keys::with_capacity(from.iter().map(|&(i, row)| old[i].1.keys.get(row).len()).sum());
        from.iter().for_each(|&(i, row)| keys.push(old[i].1.keys.get(row)));
        let values = (0..self.value_types.len())
            .map(|column| {
                let arrays: Vec<&dyn Array> = old.iter().map(|(_, chunk)| chunk.values[column].as_ref()).collect();
                shrink_to_fit(&interleave(&arrays, from)?)
            })
            .collect::<Result<Vec<ArrayRef>>>()?;
        let slots: Vec<u32> = from.iter().map(|&(i, row)| old[i].1.slots[row]).collect();
        let place = self.chunks.next_place();
        for (row, &id) in slots.iter().enumerate() {
            if let Some(slot) = self.slots.get_mut(id).filter(|slot| slot.chunk != NONE) {
                (slot.chunk, slot.row) = (place, row as u32);
            }
        }
        self.chunks.add(Chunk { keys, alive: slots.len(), slots, values });
        Ok(())
    }
}
