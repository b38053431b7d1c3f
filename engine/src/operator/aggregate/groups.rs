//! The groups that the rows of a batch fall into, over all its record batches.

use arrow::array::{Array, ArrayRef};
use arrow::compute::{concat, interleave};
use arrow::row::Rows;
use datafusion::error::Result;
use hashbrown::HashTable;

use crate::state::sizes::RowBytes;
use crate::state::{SlotId, StateStore};

/// One record batch of partial state.
pub(super) struct Incoming {
    pub(super) keys: Vec<ArrayRef>,
    pub(super) states: Vec<ArrayRef>,
    pub(super) hashes: Vec<u64>,
    pub(super) encoded: Rows,
}

/// The groups of a batch, with their slots in the table.
pub(super) struct Groups<'a> {
    rows: &'a [Incoming],
    /// By record batch and row: its group.
    of_row: Vec<Vec<usize>>,
    /// By group: its first row.
    firsts: Vec<(usize, usize)>,
    /// By group: the slot of what is known of it.
    pub(super) slots: Vec<Option<SlotId>>,
}

impl<'a> Groups<'a> {
    pub(super) fn of(rows: &'a [Incoming], table: &dyn StateStore) -> Result<Self> {
        let count = rows.iter().map(|rows| rows.hashes.len()).sum();
        let mut index: HashTable<(u64, u32)> = HashTable::with_capacity(count);
        let (mut firsts, mut of_row): (Vec<(usize, usize)>, Vec<Vec<usize>>) = (vec![], vec![]);
        for (batch, own) in rows.iter().enumerate() {
            let mut groups = Vec::with_capacity(own.hashes.len());
            for (row, &hash) in own.hashes.iter().enumerate() {
                let key = own.encoded.row(row);
                let same = |entry: &(u64, u32)| {
                    let first = firsts.get(entry.1 as usize).map(|&(batch, row)| rows[batch].encoded.row(row));
                    entry.0 == hash && first.is_some_and(|first| first.as_ref() == key.as_ref())
                };
                let group = match index.find(hash, same) {
                    Some(entry) => entry.1 as usize,
                    None => {
                        let group = firsts.len();
                        index.insert_unique(hash, (hash, group as u32), |entry| entry.0);
                        firsts.push((batch, row));
                        group
                    }
                };
                groups.push(group);
            }
            of_row.push(groups);
        }
        let mut slots = Vec::with_capacity(firsts.len());
        for (batch, own) in rows.iter().enumerate() {
            let new: Vec<u32> = firsts.iter().filter(|first| first.0 == batch).map(|first| first.1 as u32).collect();
            slots.extend(table.find_all(&own.hashes, &own.encoded, &new)?);
        }
        Ok(Groups { rows, of_row, firsts, slots })
    }

    pub(super) fn count(&self) -> usize {
        self.firsts.len()
    }

    pub(super) fn hash(&self, group: usize) -> u64 {
        let (batch, row) = self.firsts[group];
        self.rows[batch].hashes[row]
    }

    /// By group: the bytes of its rows and of what is known of it.
    pub(super) fn bytes(&self, table: &dyn StateStore) -> Vec<usize> {
        let known = self.slots.iter().map(|slot| slot.map_or(0, |slot| table.bytes_of(slot)));
        let mut bytes: Vec<usize> = known.collect();
        for (own, groups) in self.rows.iter().zip(&self.of_row) {
            let sizes = RowBytes::new(own.keys.iter().chain(&own.states));
            for (row, group) in groups.iter().enumerate() {
                bytes[*group] += sizes.at(row);
            }
        }
        bytes
    }

    /// The keys of these groups, a column each.
    pub(super) fn keys(&self, groups: &[usize]) -> Result<Vec<ArrayRef>> {
        let firsts: Vec<(usize, usize)> = groups.iter().map(|group| self.firsts[*group]).collect();
        gather(self.rows.iter().map(|rows| &rows.keys), &firsts)
    }

    /// The rows of partial state of some groups, in the order they came in, and the place of each row's group; `places` has
    /// it by group, none for groups that are not meant.
    pub(super) fn states(&self, places: &[Option<usize>]) -> Result<(Vec<ArrayRef>, Vec<usize>)> {
        let states = self.rows.iter().map(|rows| &rows.states);
        if places.iter().all(Option::is_some) {
            let of_row = self.of_row.iter().flatten().filter_map(|group| places[*group]).collect();
            return Ok((joined(states)?, of_row));
        }
        let (mut rows, mut of_row) = (vec![], vec![]);
        for (batch, groups) in self.of_row.iter().enumerate() {
            for (row, group) in groups.iter().enumerate() {
                if let Some(place) = places[*group] {
                    rows.push((batch, row));
                    of_row.push(place);
                }
            }
        }
        Ok((gather(states, &rows)?, of_row))
    }
}

/// Whole columns, batch after batch.
fn joined<'a>(mut batches: impl Iterator<Item = &'a Vec<ArrayRef>> + Clone) -> Result<Vec<ArrayRef>> {
    let all = batches.clone();
    match (batches.next(), batches.next()) {
        (Some(only), None) => Ok(only.clone()),
        (first, _) => by_column(first.map_or(0, Vec::len), all, |arrays| Ok(concat(arrays)?)),
    }
}

/// These rows of the batches, a column each.
fn gather<'a>(
    batches: impl Iterator<Item = &'a Vec<ArrayRef>> + Clone,
    rows: &[(usize, usize)],
) -> Result<Vec<ArrayRef>> {
    let columns = batches.clone().next().map_or(0, Vec::len);
    by_column(columns, batches, |arrays| Ok(interleave(arrays, rows)?))
}

fn by_column<'a>(
    columns: usize,
    batches: impl Iterator<Item = &'a Vec<ArrayRef>> + Clone,
    make: impl Fn(&[&dyn Array]) -> Result<ArrayRef>,
) -> Result<Vec<ArrayRef>> {
    let arrays = |column: usize| batches.clone().filter_map(move |batch| Some(batch.get(column)?.as_ref()));
    (0..columns).map(|column| make(&arrays(column).collect::<Vec<&dyn Array>>())).collect()
}
