//! The [store](super::store) in memory: rows found by key and by time, kept in columns.
//!
//! ```text
//! key ─ hash ─▶ index ─▶ slot ─▶ (chunk, row)      chunk 0 │ keys │ slots │ value columns │
//!                         │ ▲                      chunk 1 │ …
//!                  older ─┘ └─ by time (coarse buckets)
//! ```
//!
//! Rows are never changed: a new value is appended with its batch, as one chunk, and the *slot* moves on to it. So a batch
//! costs what it touches, whatever lies in the table. Chunks are bounded in rows and bytes ([`Limits`]); what batches leave
//! behind, small chunks and rows that no slot points to, is [compacted](compact) in steps that follow what they change. All
//! that is kept, index and slots included, comes in pieces that are given back when rows leave.
//!
//! A key may have several rows (a join's): they form a chain, newest first.
//!
//! Values are kept in their [plain type](super::spelling::plain_type), and come out in the type that was declared.

mod by_time;

mod chunks;

mod compact;

mod index;

mod keys;

mod pages;

mod read;

use std::ops::Range;

use arrow::array::{Array, ArrayRef, UInt32Array};
use arrow::compute::take_arrays;
use arrow::datatypes::{DataType, FieldRef};
use arrow::row::{Row, RowConverter, Rows, SortField};
use datafusion::common::internal_err;
use datafusion::error::Result;
use datafusion::execution::memory_pool::MemoryReservation;

use self::by_time::ByTime;
use self::chunks::{Chunk, Chunks};
use self::index::Index;
use self::keys::Keys;
pub(crate) use self::pages::Pages;
use super::limits::{Limits, Resources};
use super::sizes::{RowBytes, bounded_ranges, fixed_bytes};
use super::spelling::{normalize_keys, plain, plain_type, shrink_to_fit};
use super::store::{NEVER, NewRows, SlotId, StateStore};
use crate::error::{Error, ErrorKind};

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone)]
struct Slot {
    hash: u64,
    time_us: i64,
    /// `NONE` if the slot is free.
    chunk: u32,
    row: u32,
    /// The next older row of the same key.
    older: u32,
    newer: u32,
    /// Its neighbours in the bucket of its time.
    earlier: u32,
    later: u32,
}

impl Default for Slot {
    fn default() -> Self {
        let (older, newer, earlier, later) = (NONE, NONE, NONE, NONE);
        Slot { hash: 0, time_us: NEVER, chunk: NONE, row: NONE, older, newer, earlier, later }
    }
}

/// The columnar table: the store in memory.
#[derive(Debug)]
pub(crate) struct StateTable {
    resources: Resources,
    converter: RowConverter,
    key_types: Vec<DataType>,
    value_types: Vec<DataType>,
    /// The bytes of a row's values of fixed width, and the columns of others.
    fixed: usize,
    varying: Vec<usize>,
    keys_are_fixed: bool,
    /// The newest slot of each key.
    index: Index,
    slots: Pages<Slot>,
    chunks: Chunks,
    by_time: ByTime,
    alive: usize,
    /// Memory that is held for its rows elsewhere.
    beside: usize,
    /// What the pool knows of it.
    claimed: MemoryReservation,
    /// Rows that compaction has looked at.
    #[cfg(test)]
    rewritten: usize,
}

impl StateTable {
    pub(crate) fn new(keys: &[FieldRef], values: &[FieldRef], resources: &Resources) -> Result<Self> {
        let fields = keys.iter().map(|field| SortField::new(plain_type(field.data_type()))).collect();
        let value_bytes = values.iter().map(|field| fixed_bytes(&plain_type(field.data_type())));
        let value_bytes: Vec<Option<usize>> = value_bytes.collect();
        Ok(StateTable {
            fixed: value_bytes.iter().flatten().sum(),
            varying: (0..values.len()).filter(|column| value_bytes[*column].is_none()).collect(),
            keys_are_fixed: keys.iter().all(|key| fixed_bytes(&plain_type(key.data_type())).is_some()),
            resources: resources.clone(),
            converter: RowConverter::new(fields)?,
            key_types: keys.iter().map(|field| field.data_type().clone()).collect(),
            value_types: values.iter().map(|field| field.data_type().clone()).collect(),
            index: Index::default(),
            slots: Pages::default(),
            chunks: Chunks::new(resources.limits),
            by_time: ByTime::default(),
            alive: 0,
            beside: 0,
            claimed: resources.reservation(),
            #[cfg(test)]
            rewritten: 0,
        })
    }
}

impl StateStore for StateTable {
    fn limits(&self) -> Limits {
        self.resources.limits
    }

    fn encode(&self, keys: &[ArrayRef]) -> Result<Rows> {
        Ok(self.converter.convert_columns(&normalize_keys(keys)?)?)
    }

    fn find(&self, hash: u64, key: Row<'_>) -> Result<Option<SlotId>> {
        Ok(self.find_one(hash, key))
    }

    fn find_all(&self, hashes: &[u64], keys: &Rows, rows: &[u32]) -> Result<Vec<Option<SlotId>>> {
        // Memory is waited for once per step rather than once per row: in a large table that is what takes the time.
        let hash_of = |row: u32| hashes[row as usize];
        let candidates: Vec<u32> =
            rows.iter().map(|&row| self.index.find(hash_of(row), |_| true).unwrap_or(NONE)).collect();
        let places: Vec<(u32, u32)> = candidates
            .iter()
            .map(|&id| self.slots.get(id).map_or((NONE, NONE), |slot| (slot.chunk, slot.row)))
            .collect();
        let check = |((&row, &id), &(chunk, place)): ((&u32, &u32), &(u32, u32))| {
            let key = keys.row(row as usize);
            match self.chunks.get(chunk)?.keys.get(place as usize) == key.as_ref() {
                true => Some(SlotId(id)),
                // Another key has the same hash.
                false => self.find_one(hash_of(row), key),
            }
        };
        Ok(rows.iter().zip(&candidates).zip(&places).map(check).collect())
    }

    fn older(&self, slot: SlotId) -> Option<SlotId> {
        self.slots.get(slot.0).filter(|slot| slot.older != NONE).map(|slot| SlotId(slot.older))
    }

    fn time_us(&self, slot: SlotId) -> i64 {
        self.slots.get(slot.0).map_or(NEVER, |slot| slot.time_us)
    }

    fn put(&mut self, slots: &[Option<SlotId>], rows: NewRows<'_>) -> Result<Vec<SlotId>> {
        let count = slots.len();
        let fits = rows.keys.num_rows() == count
            && rows.hashes.len() == count
            && rows.times_us.len() == count
            && rows.values.len() == self.value_types.len()
            && rows.values.iter().all(|values| values.len() == count);
        if !fits {
            return internal_err!("rows of another shape were put into a table");
        }
        let values = rows.values.iter().map(plain).collect::<Result<Vec<_>>>()?;
        if !values.iter().zip(&self.value_types).all(|(values, of_type)| *values.data_type() == plain_type(of_type)) {
            return internal_err!("values of another type were put into a table");
        }
        let sizes = RowBytes::new(&values);
        let sizes = (0..count).map(|row| sizes.at(row) + rows.keys.row_len(row));
        let mut found = Vec::with_capacity(count);
        for part in bounded_ranges(sizes, self.resources.limits.chunk_rows, self.resources.limits.chunk_bytes) {
            let values = match part.len() == count {
                true => values.clone(),
                // Copied: a slice would hold on to the whole.
                false => {
                    take_arrays(&values, &UInt32Array::from_iter_values(part.start as u32..part.end as u32), None)?
                }
            };
            let values = values.iter().map(shrink_to_fit).collect::<Result<Vec<_>>>()?;
            found.extend(self.put_chunk(&slots[part.clone()], &rows, part, values)?);
        }
        self.compact(count)?;
        self.claim()?;
        Ok(found)
    }

    fn remove(&mut self, ids: &[SlotId]) -> Result<()> {
        ids.iter().for_each(|id| self.remove_one(id.0));
        self.compact(ids.len())?;
        self.claim()
    }

    fn keys(&self, slots: &[SlotId]) -> Result<Vec<ArrayRef>> {
        self.read_keys(slots)
    }

    fn values(&self, slots: &[SlotId]) -> Result<Vec<ArrayRef>> {
        self.read_values(slots)
    }

    fn bytes_of(&self, slot: SlotId) -> usize {
        self.row_bytes(slot)
    }

    fn due(&self, bound_us: i64) -> Result<Vec<SlotId>> {
        let mut due: Vec<SlotId> = self.by_time.due(&self.slots, bound_us).into_iter().map(SlotId).collect();
        due.sort_unstable_by_key(|slot| (self.time_us(*slot), slot.0));
        Ok(due)
    }

    fn slots(&self) -> Vec<SlotId> {
        self.slots.numbers().map(SlotId).collect()
    }

    fn len(&self) -> usize {
        self.alive
    }

    fn holds_beside(&mut self, bytes: usize) {
        self.beside = bytes;
    }

    fn bytes(&self) -> usize {
        self.beside + self.chunks.memory() + self.index.memory() + self.slots.memory() + self.by_time.memory()
    }
}

impl StateTable {
    fn find_one(&self, hash: u64, key: Row<'_>) -> Option<SlotId> {
        self.index.find(hash, |slot| self.key_of(slot) == Some(key.as_ref())).map(SlotId)
    }

    fn key_of(&self, slot: u32) -> Option<&[u8]> {
        let slot = self.slots.get(slot)?;
        Some(self.chunks.get(slot.chunk)?.keys.get(slot.row as usize))
    }

    /// Puts a range of rows, as one chunk.
    fn put_chunk(
        &mut self,
        slots: &[Option<SlotId>],
        rows: &NewRows<'_>,
        part: Range<usize>,
        values: Vec<ArrayRef>,
    ) -> Result<Vec<SlotId>> {
        // Keys of a chunk lie one behind the other, as the values of each column do.
        let mut keys = Keys::with_capacity(part.clone().map(|row| rows.keys.row_len(row)).sum());
        part.clone().for_each(|row| keys.push(rows.keys.row(row).as_ref()));
        keys.shrink_to_fit();
        let place = self.chunks.next_place();
        // A row keeps its slot when its values change: only where they lie is new.
        let (mut ids, mut left) = (Vec::with_capacity(slots.len()), vec![]);
        for (row, (old, at)) in slots.iter().zip(part.clone()).enumerate() {
            let (hash, time_us) = (rows.hashes[at], rows.times_us[at]);
            ids.push(match old {
                Some(SlotId(id)) => {
                    left.push(self.move_slot(*id, place, row as u32, time_us)?);
                    *id
                }
                None => {
                    let new = Slot { hash, time_us, chunk: place, row: row as u32, ..Slot::default() };
                    match self.slots.insert(new) {
                        Some(id) => id,
                        None => return Err(too_many_rows()),
                    }
                }
            });
        }
        self.chunks.add(Chunk { keys, slots: ids.clone(), values, alive: ids.len() });
        // Only now: a chunk that goes leaves its place to the next.
        left.into_iter().for_each(|chunk| self.chunks.row_died(chunk));
        // Looking for a key reads the chunk, so new slots are made known when it is there.
        for (&id, old) in ids.iter().zip(slots) {
            if old.is_none() {
                self.index_slot(id);
            }
        }
        Ok(ids.into_iter().map(SlotId).collect())
    }

    /// Moves a slot on to another row. Returns the chunk that it leaves.
    fn move_slot(&mut self, id: u32, chunk: u32, row: u32, time_us: i64) -> Result<u32> {
        let Some(slot) = self.slots.get_mut(id).filter(|slot| slot.chunk != NONE) else {
            return internal_err!("a row that is gone was put again");
        };
        let left = std::mem::replace(&mut slot.chunk, chunk);
        slot.row = row;
        if slot.time_us != time_us {
            self.by_time.unlink(&mut self.slots, id);
            self.slots[id].time_us = time_us;
            self.by_time.link(&mut self.slots, id);
        }
        Ok(left)
    }

    /// Makes a new slot known by key and time.
    fn index_slot(&mut self, id: u32) {
        let hash = self.slots[id].hash;
        let (slots, chunks) = (&self.slots, &self.chunks);
        let key_at = |slot: u32| {
            let slot = slots.get(slot)?;
            Some(chunks.get(slot.chunk)?.keys.get(slot.row as usize))
        };
        let own = key_at(id);
        if let Some(older) = self.index.put(hash, id, |other| key_at(other) == own) {
            // The rows of a key are a list, newest first, whose head the index knows.
            self.slots[id].older = older;
            self.slots[older].newer = id;
        }
        self.by_time.link(&mut self.slots, id);
        self.alive += 1;
    }

    /// A slot that is gone already stays gone: the same row may be due by time and taken away by its key.
    fn remove_one(&mut self, id: u32) {
        let Some(slot) = self.slots.get(id).filter(|slot| slot.chunk != NONE) else { return };
        let Slot { hash, chunk, older, newer, .. } = *slot;
        self.by_time.unlink(&mut self.slots, id);
        if let Some(slot) = self.slots.get_mut(older) {
            slot.newer = newer;
        }
        if let Some(slot) = self.slots.get_mut(newer) {
            slot.older = older;
        } else if older == NONE {
            self.index.remove(hash, id);
        } else {
            // It was the newest of its key.
            self.index.put(hash, older, |slot| slot == id);
        }
        self.slots.clear(id);
        self.alive -= 1;
        self.chunks.row_died(chunk);
    }

    /// Accounts in the pool for what is held now.
    fn claim(&self) -> Result<()> {
        let bytes = self.bytes();
        self.claimed.try_resize(bytes).map_err(|e| self.resources.refused(bytes, e).into())
    }
}

fn too_many_rows() -> datafusion::error::DataFusionError {
    Error::new(ErrorKind::OutOfMemory, "one partition of an operator's state has more than four thousand million rows")
        .with_hint("start the query with more partitions, or bound the state with a watermark")
        .into()
}

#[cfg(test)]
mod tests;
