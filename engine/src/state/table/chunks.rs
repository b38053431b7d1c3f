//! The chunks of a table, and which of them are worth to be written anew.

use std::collections::BTreeSet;

use arrow::array::ArrayRef;

use super::keys::Keys;
use crate::state::limits::Limits;

/// So many small chunks of about the same size are merged.
pub(super) const CHUNKS_PER_SIZE: usize = 16;

/// Into so many classes chunks are divided by the part of their rows that is alive.
const FILLS: usize = 16;

#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) keys: Keys,
    /// By row: its slot. The row is alive if the slot points back to it.
    pub(super) slots: Vec<u32>,
    pub(super) values: Vec<ArrayRef>,
    pub(super) alive: usize,
}

impl Chunk {
    fn rows(&self) -> usize {
        self.slots.len()
    }

    fn fill(&self) -> u8 {
        (self.alive * FILLS / self.rows().max(1)) as u8
    }

    fn memory(&self) -> usize {
        let values: usize = self.values.iter().map(|array| array.get_array_memory_size()).sum();
        values + self.keys.memory() + self.slots.capacity() * size_of::<u32>()
    }
}

/// The chunks of a table.
#[derive(Debug)]
pub(super) struct Chunks {
    limits: Limits,
    /// Each with its memory. A chunk that is gone leaves a hole, which the next one fills.
    chunks: Vec<Option<(Chunk, usize)>>,
    holes: BTreeSet<u32>,
    /// Chunks of which not all rows are alive, the emptiest first.
    by_fill: BTreeSet<(u8, u32)>,
    /// Chunks that have room for many more rows, by the power of sixteen that is their number of rows.
    small: BTreeSet<(u32, u32)>,
    rows: usize,
    memory: usize,
}

impl Chunks {
    pub(super) fn new(limits: Limits) -> Self {
        Chunks {
            limits,
            chunks: vec![],
            holes: BTreeSet::new(),
            by_fill: BTreeSet::new(),
            small: BTreeSet::new(),
            rows: 0,
            memory: 0,
        }
    }

    pub(super) fn get(&self, place: u32) -> Option<&Chunk> {
        self.chunks.get(place as usize)?.as_ref().map(|(chunk, _)| chunk)
    }

    /// How many places for chunks there are, holes included.
    pub(super) fn places(&self) -> usize {
        self.chunks.len()
    }

    /// Rows in all chunks, alive or not.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Memory held, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.memory + self.chunks.capacity() * size_of::<Option<(Chunk, usize)>>()
    }

    /// Where the next chunk will lie.
    pub(super) fn next_place(&self) -> u32 {
        self.holes.first().copied().unwrap_or(self.chunks.len() as u32)
    }

    pub(super) fn add(&mut self, chunk: Chunk) {
        let (place, memory) = (self.next_place(), chunk.memory());
        self.rows += chunk.rows();
        self.memory += memory;
        if chunk.rows() < self.limits.chunk_rows / 2 && memory < self.limits.chunk_bytes / 2 {
            self.small.insert((size_class(chunk.rows()), place));
        }
        if chunk.alive < chunk.rows() {
            self.by_fill.insert((chunk.fill(), place));
        }
        match self.chunks.get_mut(place as usize) {
            Some(hole) => {
                self.holes.remove(&place);
                *hole = Some((chunk, memory));
            }
            None => self.chunks.push(Some((chunk, memory))),
        }
    }

    /// One row of a chunk is alive no longer. A chunk without living rows is dropped.
    pub(super) fn row_died(&mut self, place: u32) {
        let Some(Some((chunk, _))) = self.chunks.get_mut(place as usize) else { return };
        let (was_full, before) = (chunk.alive == chunk.rows(), chunk.fill());
        chunk.alive -= 1;
        let (alive, now) = (chunk.alive, chunk.fill());
        if was_full || now != before {
            self.by_fill.remove(&(before, place));
            self.by_fill.insert((now, place));
        }
        if alive == 0 {
            self.take(place);
        }
    }

    pub(super) fn take(&mut self, place: u32) -> Option<Chunk> {
        let (chunk, memory) = self.chunks.get_mut(place as usize)?.take()?;
        self.rows -= chunk.rows();
        self.memory -= memory;
        self.by_fill.remove(&(chunk.fill(), place));
        self.small.remove(&(size_class(chunk.rows()), place));
        self.holes.insert(place);
        while self.chunks.last().is_some_and(Option::is_none) {
            self.chunks.pop();
            self.holes.remove(&(self.chunks.len() as u32));
        }
        if self.chunks.len() < self.chunks.capacity() / 4 {
            self.chunks.shrink_to(2 * self.chunks.len());
        }
        Some(chunk)
    }

    /// Small chunks that are to become one, because there are many of their size; none if there are not.
    pub(super) fn many_small(&self) -> Vec<u32> {
        let mut same: Vec<u32> = vec![];
        let mut class = None;
        for &(of_class, place) in &self.small {
            if class != Some(of_class) {
                if same.len() >= CHUNKS_PER_SIZE {
                    break;
                }
                (class, same) = (Some(of_class), vec![]);
            }
            same.push(place);
        }
        if same.len() < CHUNKS_PER_SIZE {
            return vec![];
        }
        let (mut rows, mut bytes) = (0, 0);
        let fits = |place: &u32| {
            let Some(Some((chunk, memory))) = self.chunks.get(*place as usize) else { return false };
            rows += chunk.alive;
            bytes += memory;
            rows <= self.limits.chunk_rows && bytes <= self.limits.chunk_bytes
        };
        same.into_iter().take_while(fits).collect()
    }

    /// The emptiest chunks: so many that their living rows fill one, and no more than `budget` rows in all, but one at least.
    pub(super) fn emptiest(&self, budget: usize) -> Vec<u32> {
        let (mut alive, mut rows, mut bytes) = (0, 0, 0);
        let wanted = |place: &u32| {
            let Some(Some((chunk, memory))) = self.chunks.get(*place as usize) else { return false };
            let first = rows == 0;
            alive += chunk.alive;
            rows += chunk.rows();
            bytes += memory / chunk.rows().max(1) * chunk.alive;
            first || (rows <= budget && alive <= self.limits.chunk_rows && bytes <= self.limits.chunk_bytes)
        };
        self.by_fill.iter().map(|(_, place)| *place).take_while(wanted).collect()
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &Chunk> {
        self.chunks.iter().flatten().map(|(chunk, _)| chunk)
    }
}

/// The power of sixteen.
fn size_class(rows: usize) -> u32 {
    rows.max(1).ilog2() / 4
}
