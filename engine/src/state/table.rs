//! What one partition of an operator remembers: rows, found by key and by time, kept in columns.
//!
//! ```text
//! key ─ hash ─▶ index ─▶ slot ─▶ (chunk, row)      chunk 0 │ keys │ slots │ value columns │
//!                         │ ▲                      chunk 1 │ …
//!                  older ─┘ └─ by time (coarse buckets)
//! ```
//!
//! Rows are never changed: a new value is appended with its batch, as one chunk, and the *slot* moves on to it. So a batch
//! costs what it touches, whatever lies in the table. Chunks of like size are merged as they become many, which drops rows
//! that no slot points to; each row is rewritten a few times in its life, and half of all rows are alive at least.
//!
//! A key may have several rows (a join's): they form a chain, newest first.
//!
//! Values are kept in their [plain type](super::spelling::plain_type), and come out in the type that was declared.

use std::collections::BTreeMap;

use arrow::array::{Array, ArrayRef};
use arrow::compute::interleave;
use arrow::datatypes::{DataType, FieldRef};
use arrow::row::{Row, RowConverter, Rows, SortField};
use datafusion::common::internal_err;
use datafusion::error::Result;
use hashbrown::HashTable;

use super::spelling::{in_type, one_spelling, plain, plain_type, without_slack};

/// A row of the table, wherever its value lies at the moment. Never used for another row while this one lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SlotId(pub(crate) u32);

/// The time of a row that is never due.
pub(crate) const NEVER: i64 = i64::MAX;

const NONE: u32 = u32::MAX;

/// Rows due at about the same time share a bucket, of 2^16 µs.
const BUCKET_BITS: u32 = 16;

/// So many chunks of about the same size are merged into one.
const CHUNKS_PER_SIZE: usize = 16;

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
}

#[derive(Debug)]
struct Chunk {
    keys: Rows,
    /// By row: its slot. The row is alive if the slot points back to it.
    slots: Vec<u32>,
    values: Vec<ArrayRef>,
    alive: usize,
}

/// The chunks that hold some rows, and for each row its chunk among these and its place there.
type Places<'a> = (Vec<&'a Chunk>, Vec<(usize, usize)>);

/// Rows to be put into a table: as many keys, hashes, times and values each.
pub(crate) struct NewRows<'a> {
    pub(crate) keys: &'a Rows,
    /// [`hash_keys`](super::key_hash::hash_keys) of the keys.
    pub(crate) hashes: &'a [u64],
    /// When each is due, in µs since 1970; or [`NEVER`].
    pub(crate) times_us: &'a [i64],
    pub(crate) values: Vec<ArrayRef>,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Table {
    converter: RowConverter,
    key_types: Vec<DataType>,
    value_types: Vec<DataType>,
    /// The newest slot of each key, with the key's hash.
    index: HashTable<(u64, u32)>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// A merged chunk leaves a hole, which the next one fills.
    chunks: Vec<Option<Chunk>>,
    /// Time, coarsely → slots that may be due then. What became of them since is seen from the slot.
    by_time: BTreeMap<i64, Vec<u32>>,
    /// How many entries these are.
    timed: usize,
    alive: usize,
    bytes: usize,
}

impl Table {
    pub(crate) fn new(keys: &[FieldRef], values: &[FieldRef]) -> Result<Self> {
        let fields = keys.iter().map(|field| SortField::new(plain_type(field.data_type()))).collect();
        Ok(Table {
            converter: RowConverter::new(fields)?,
            key_types: keys.iter().map(|field| field.data_type().clone()).collect(),
            value_types: values.iter().map(|field| field.data_type().clone()).collect(),
            index: HashTable::new(),
            slots: vec![],
            free: vec![],
            chunks: vec![],
            by_time: BTreeMap::new(),
            timed: 0,
            alive: 0,
            bytes: 0,
        })
    }

    /// The keys, encoded so that equal ones have equal bytes.
    pub(crate) fn encode(&self, keys: &[ArrayRef]) -> Result<Rows> {
        Ok(self.converter.convert_columns(&one_spelling(keys)?)?)
    }

    /// The newest row of this key.
    pub(crate) fn find(&self, hash: u64, key: Row<'_>) -> Option<SlotId> {
        self.index.find(hash, |(h, slot)| *h == hash && self.key_is(*slot, key)).map(|(_, slot)| SlotId(*slot))
    }

    /// For each of these rows of `keys`: the newest row of its key. The same as [`find`](Self::find) one by one, but memory
    /// is waited for once per step rather than once per row: in a large table that is what takes the time.
    pub(crate) fn find_all(&self, hashes: &[u64], keys: &Rows, rows: &[u32]) -> Vec<Option<SlotId>> {
        let hash_of = |row: u32| hashes[row as usize];
        let candidates: Vec<u32> = rows
            .iter()
            .map(|&row| self.index.find(hash_of(row), |entry| entry.0 == hash_of(row)).map_or(NONE, |entry| entry.1))
            .collect();
        let places: Vec<(u32, u32)> = candidates
            .iter()
            .map(|&id| self.slots.get(id as usize).map_or((NONE, NONE), |slot| (slot.chunk, slot.row)))
            .collect();
        let check = |((&row, &id), &(chunk, place)): ((&u32, &u32), &(u32, u32))| {
            let key = keys.row(row as usize);
            let chunk = self.chunks.get(chunk as usize)?.as_ref()?;
            match chunk.keys.row(place as usize).as_ref() == key.as_ref() {
                true => Some(SlotId(id)),
                // Another key has the same hash.
                false => self.find(hash_of(row), key),
            }
        };
        rows.iter().zip(&candidates).zip(&places).map(check).collect()
    }

    /// Whether a row is of this key.
    pub(crate) fn has_key(&self, slot: SlotId, key: Row<'_>) -> bool {
        self.key_is(slot.0, key)
    }

    fn key_is(&self, slot: u32, key: Row<'_>) -> bool {
        self.key_of(slot).is_some_and(|own| own.as_ref() == key.as_ref())
    }

    fn key_of(&self, slot: u32) -> Option<Row<'_>> {
        let slot = self.slots.get(slot as usize)?;
        let chunk = self.chunks.get(slot.chunk as usize)?.as_ref()?;
        Some(chunk.keys.row(slot.row as usize))
    }

    /// The next older row of the same key.
    pub(crate) fn older(&self, slot: SlotId) -> Option<SlotId> {
        self.slots.get(slot.0 as usize).filter(|s| s.older != NONE).map(|s| SlotId(s.older))
    }

    /// When the row is due.
    pub(crate) fn time_us(&self, slot: SlotId) -> i64 {
        self.slots.get(slot.0 as usize).map_or(NEVER, |slot| slot.time_us)
    }

    /// Row i of `rows` becomes the value of `slots[i]`, whose key it has; without a slot, a further row of its key.
    pub(crate) fn put(&mut self, slots: &[Option<SlotId>], rows: NewRows<'_>) -> Result<Vec<SlotId>> {
        let count = slots.len();
        let fits = rows.keys.num_rows() == count
            && rows.hashes.len() == count
            && rows.times_us.len() == count
            && rows.values.len() == self.value_types.len()
            && rows.values.iter().all(|values| values.len() == count);
        if !fits {
            return internal_err!("rows of another shape were put into a table");
        }
        if count == 0 {
            return Ok(vec![]);
        }
        // Keys are copied: the caller's may be part of something larger.
        let mut keys = self.converter.empty_rows(count, rows.keys.iter().map(|key| key.as_ref().len()).sum());
        rows.keys.iter().for_each(|key| keys.push(key));
        let values = rows.values.iter().map(|values| without_slack(&plain(values)?)).collect::<Result<Vec<_>>>()?;
        if !values.iter().zip(&self.value_types).all(|(values, of_type)| *values.data_type() == plain_type(of_type)) {
            return internal_err!("values of another type were put into a table");
        }
        let chunk = self.add_chunk(Chunk { keys, slots: vec![], values, alive: count });
        let new = slots.iter().filter(|slot| slot.is_none()).count();
        self.index.reserve(new, |entry| entry.0);
        let mut found = Vec::with_capacity(count);
        for (row, ((old, &hash), &time_us)) in slots.iter().zip(rows.hashes).zip(rows.times_us).enumerate() {
            let id = match old {
                Some(SlotId(id)) => self.move_slot(*id, chunk, row as u32, time_us)?,
                None => self.add_slot(hash, time_us, chunk, row as u32),
            };
            found.push(SlotId(id));
        }
        if let Some(Some(chunk)) = self.chunks.get_mut(chunk as usize) {
            chunk.slots = found.iter().map(|slot| slot.0).collect();
        }
        self.merge_chunks()?;
        Ok(found)
    }

    fn add_chunk(&mut self, chunk: Chunk) -> u32 {
        self.bytes += chunk_bytes(&chunk);
        match self.chunks.iter().position(Option::is_none) {
            Some(hole) => {
                self.chunks[hole] = Some(chunk);
                hole as u32
            }
            None => {
                self.chunks.push(Some(chunk));
                (self.chunks.len() - 1) as u32
            }
        }
    }

    fn move_slot(&mut self, id: u32, chunk: u32, row: u32, time_us: i64) -> Result<u32> {
        let Some(slot) = self.slots.get_mut(id as usize).filter(|slot| slot.chunk != NONE) else {
            return internal_err!("a row that is gone was put again");
        };
        let left = std::mem::replace(&mut slot.chunk, chunk);
        slot.row = row;
        let was_us = std::mem::replace(&mut slot.time_us, time_us);
        if let Some(Some(left)) = self.chunks.get_mut(left as usize) {
            left.alive -= 1;
        }
        if was_us != time_us {
            self.remember_time(id, time_us);
        }
        Ok(id)
    }

    fn add_slot(&mut self, hash: u64, time_us: i64, chunk: u32, row: u32) -> u32 {
        let slot = Slot { hash, time_us, chunk, row, older: NONE, newer: NONE };
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id as usize] = slot;
                id
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            }
        };
        self.alive += 1;
        self.remember_time(id, time_us);
        let (slots, chunks) = (&self.slots, &self.chunks);
        let key_at = |slot: u32| {
            let slot = slots.get(slot as usize)?;
            Some(chunks.get(slot.chunk as usize)?.as_ref()?.keys.row(slot.row as usize))
        };
        let own = key_at(id);
        let same = |entry: &(u64, u32)| {
            entry.0 == hash && key_at(entry.1).zip(own).is_some_and(|(a, b)| a.as_ref() == b.as_ref())
        };
        match self.index.find_mut(hash, same) {
            Some(entry) => {
                let older = std::mem::replace(&mut entry.1, id);
                self.slots[id as usize].older = older;
                self.slots[older as usize].newer = id;
            }
            None => {
                self.index.insert_unique(hash, (hash, id), |entry| entry.0);
            }
        }
        id
    }

    fn remember_time(&mut self, id: u32, time_us: i64) {
        if time_us == NEVER {
            return;
        }
        self.by_time.entry(time_us >> BUCKET_BITS).or_default().push(id);
        self.timed += 1;
        if self.timed > 2 * self.alive + 1024 {
            // Most entries are of times that rows no longer have.
            self.by_time.clear();
            self.timed = 0;
            for (id, slot) in self.slots.iter().enumerate().filter(|(_, s)| s.chunk != NONE && s.time_us != NEVER) {
                self.by_time.entry(slot.time_us >> BUCKET_BITS).or_default().push(id as u32);
                self.timed += 1;
            }
        }
    }

    /// Takes a row away. Nothing happens if it is gone.
    pub(crate) fn remove(&mut self, id: SlotId) {
        let Some(slot) = self.slots.get_mut(id.0 as usize).filter(|slot| slot.chunk != NONE) else { return };
        let Slot { hash, chunk, older, newer, .. } = slot.clone();
        slot.chunk = NONE;
        slot.time_us = NEVER;
        if older != NONE {
            self.slots[older as usize].newer = newer;
        }
        if newer != NONE {
            self.slots[newer as usize].older = older;
        } else if let Ok(mut entry) = self.index.find_entry(hash, |entry| entry.1 == id.0) {
            // It was the newest of its key.
            if older == NONE {
                entry.remove();
            } else {
                entry.get_mut().1 = older;
            }
        }
        self.free.push(id.0);
        self.alive -= 1;
        let emptied = match self.chunks.get_mut(chunk as usize) {
            Some(Some(chunk)) => {
                chunk.alive -= 1;
                chunk.alive == 0
            }
            _ => false,
        };
        if emptied {
            self.drop_chunk(chunk);
        }
    }

    fn drop_chunk(&mut self, chunk: u32) -> Option<Chunk> {
        let chunk = self.chunks.get_mut(chunk as usize)?.take()?;
        self.bytes -= chunk_bytes(&chunk);
        Some(chunk)
    }

    /// The rows due at `bound_us` or before, roughly by time. They leave the index of times: they must be removed or put
    /// again.
    pub(crate) fn due(&mut self, bound_us: i64) -> Vec<SlotId> {
        let mut due = vec![];
        let last = bound_us >> BUCKET_BITS;
        while let Some(entry) = self.by_time.first_entry().filter(|entry| *entry.key() <= last) {
            let bucket = *entry.key();
            let ids = entry.remove();
            self.timed -= ids.len();
            let mut later = vec![];
            for id in ids {
                let Some(slot) = self.slots.get(id as usize) else { continue };
                // A slot may have been freed, reused, or given another time since: then another entry has it.
                if slot.chunk == NONE || slot.time_us >> BUCKET_BITS != bucket {
                    continue;
                }
                if slot.time_us <= bound_us { due.push(SlotId(id)) } else { later.push(id) }
            }
            if !later.is_empty() {
                self.timed += later.len();
                self.by_time.insert(bucket, later);
            }
            if bucket == last {
                break;
            }
        }
        // A slot that was freed and reused within one bucket is there twice.
        due.sort_unstable_by_key(|slot| (self.time_us(*slot), slot.0));
        due.dedup();
        due
    }

    /// The values of these rows, a column each.
    pub(crate) fn values(&self, slots: &[SlotId]) -> Result<Vec<ArrayRef>> {
        let (chunks, places) = self.places(slots)?;
        self.value_types
            .iter()
            .enumerate()
            .map(|(column, of_type)| {
                if places.is_empty() {
                    return Ok(arrow::array::new_empty_array(of_type));
                }
                let arrays: Vec<&dyn Array> = chunks.iter().map(|chunk| chunk.values[column].as_ref()).collect();
                in_type(&interleave(&arrays, &places)?, of_type)
            })
            .collect()
    }

    /// The keys of these rows, a column each.
    pub(crate) fn keys(&self, slots: &[SlotId]) -> Result<Vec<ArrayRef>> {
        let rows: Option<Vec<Row<'_>>> = slots.iter().map(|slot| self.key_of(slot.0)).collect();
        let Some(rows) = rows else { return internal_err!("a row that is gone was asked for its key") };
        let keys = self.converter.convert_rows(rows)?;
        keys.iter().zip(&self.key_types).map(|(key, of_type)| in_type(key, of_type)).collect()
    }

    /// Where rows lie.
    fn places(&self, slots: &[SlotId]) -> Result<Places<'_>> {
        let mut used: Vec<&Chunk> = vec![];
        let mut place_of_chunk = vec![usize::MAX; self.chunks.len()];
        let mut places = Vec::with_capacity(slots.len());
        for id in slots {
            let slot = self.slots.get(id.0 as usize).filter(|slot| slot.chunk != NONE);
            let chunk = slot.and_then(|slot| self.chunks.get(slot.chunk as usize)?.as_ref());
            let (Some(slot), Some(chunk)) = (slot, chunk) else {
                return internal_err!("a row that is gone was asked for its value");
            };
            let place = &mut place_of_chunk[slot.chunk as usize];
            if *place == usize::MAX {
                *place = used.len();
                used.push(chunk);
            }
            places.push((*place, slot.row as usize));
        }
        Ok((used, places))
    }

    /// All rows, in no particular order.
    pub(crate) fn slots(&self) -> impl Iterator<Item = SlotId> {
        let alive = self.slots.iter().enumerate().filter(|(_, slot)| slot.chunk != NONE);
        alive.map(|(id, _)| SlotId(id as u32))
    }

    pub(crate) fn len(&self) -> usize {
        self.alive
    }

    /// Memory held, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let times: usize = self.by_time.len() * 48 + self.timed * size_of::<u32>();
        self.bytes
            + self.index.capacity() * (size_of::<(u64, u32)>() + 1)
            + self.slots.capacity() * size_of::<Slot>()
            + self.free.capacity() * size_of::<u32>()
            + times
    }

    /// Keeps chunks few, and at least half of the rows alive.
    fn merge_chunks(&mut self) -> Result<()> {
        let rows: usize = self.chunks.iter().flatten().map(|chunk| chunk.slots.len()).sum();
        if rows > 2 * self.alive + 1024 {
            let all: Vec<u32> = (0..self.chunks.len() as u32).filter(|c| self.chunks[*c as usize].is_some()).collect();
            return self.merge(all);
        }
        // Sizes are told apart by their power of sixteen.
        let mut by_size: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (place, chunk) in self.chunks.iter().enumerate() {
            if let Some(chunk) = chunk {
                by_size.entry(chunk.slots.len().max(1).ilog2() / 4).or_default().push(place as u32);
            }
        }
        match by_size.into_values().find(|same| same.len() >= CHUNKS_PER_SIZE) {
            Some(many) => self.merge(many),
            None => Ok(()),
        }
    }

    fn merge(&mut self, places: Vec<u32>) -> Result<()> {
        let old: Vec<(u32, Chunk)> =
            places.into_iter().filter_map(|place| Some((place, self.drop_chunk(place)?))).collect();
        let mut slots = vec![];
        let mut from = vec![];
        for (i, (place, chunk)) in old.iter().enumerate() {
            for (row, &id) in chunk.slots.iter().enumerate() {
                let alive = self.slots.get(id as usize).is_some_and(|s| s.chunk == *place && s.row as usize == row);
                if alive {
                    slots.push(id);
                    from.push((i, row));
                }
            }
        }
        if slots.is_empty() {
            return Ok(());
        }
        let mut keys = self.converter.empty_rows(from.len(), 0);
        from.iter().for_each(|&(i, row)| keys.push(old[i].1.keys.row(row)));
        let values = (0..self.value_types.len())
            .map(|column| {
                let arrays: Vec<&dyn Array> = old.iter().map(|(_, chunk)| chunk.values[column].as_ref()).collect();
                without_slack(&interleave(&arrays, &from)?)
            })
            .collect::<Result<Vec<_>>>()?;
        let alive = slots.len();
        let chunk = self.add_chunk(Chunk { keys, slots, values, alive });
        if let Some(Some(merged)) = self.chunks.get(chunk as usize) {
            for (row, &id) in merged.slots.iter().enumerate() {
                let slot = &mut self.slots[id as usize];
                (slot.chunk, slot.row) = (chunk, row as u32);
            }
        }
        Ok(())
    }
}

fn chunk_bytes(chunk: &Chunk) -> usize {
    let values: usize = chunk.values.iter().map(|array| array.get_array_memory_size()).sum();
    values + chunk.keys.size() + chunk.keys.num_rows() * size_of::<u32>()
}

#[cfg(test)]
mod tests;
