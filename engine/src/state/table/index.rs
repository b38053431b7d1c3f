//! From the hash of a key to a slot, in parts that grow one at a time.
//!
//! A single hash table doubles when it is full, which moves all its entries at once: with millions of keys a pause of a tenth of
//! a second. Here it is cut into parts by linear hashing: one more part for so many entries, which takes over the half of an
//! older one. So an insert moves the entries of one part at most; and when entries become fewer, parts are joined again.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// For so many entries there is one part. Parts hold between half and twice as many, which fits tables of 16,384 places and of
/// 8,192 well.
const PER_PART: usize = 6800;

/// A hash index from keys to slots.
#[derive(Debug)]
pub(super) struct Index {
    parts: Vec<HashTable<(u64, u32)>>,
    len: usize,
    /// Memory of the parts, in bytes.
    memory: usize,
}

/// What places an entry within its part. The lowest byte of the hash is the key group, of which a partition has few, and the
/// highest bits choose the part: so the bits between these two must do it. A table goes by the lowest bits and the highest
/// seven.
fn within(hash: u64) -> u64 {
    ((hash >> 8) & (u64::MAX >> 7)) | ((hash >> 36) << 57)
}

fn rehash(entry: &(u64, u32)) -> u64 {
    within(entry.0)
}

/// The part, of so many, for a hash: its highest bits decide, so that files in the order of hashes are taken in part by part.
fn part_of(hash: u64, parts: usize) -> usize {
    let mask = parts.next_power_of_two() - 1;
    let place = hash.reverse_bits() as usize & mask;
    // Parts of the upper half come into being one by one; until then the lower half has their entries.
    if place < parts { place } else { place & (mask >> 1) }
}

impl Default for Index {
    fn default() -> Self {
        Index { parts: vec![HashTable::new()], len: 0, memory: 0 }
    }
}

impl Index {
    /// The slot under this hash that is the one.
    pub(super) fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let part = self.parts.get(part_of(hash, self.parts.len()))?;
        part.find(within(hash), |entry| entry.0 == hash && is_it(entry.1)).map(|entry| entry.1)
    }

    /// Puts a slot in the place of the one that is meant, which is returned, or, if there is none, beside all others.
    pub(super) fn put(&mut self, hash: u64, slot: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let count = self.parts.len();
        let part = self.parts.get_mut(part_of(hash, count))?;
        let before = part.allocation_size();
        match part.entry(within(hash), |entry| entry.0 == hash && is_it(entry.1), rehash) {
            Entry::Occupied(mut entry) => return Some(std::mem::replace(&mut entry.get_mut().1, slot)),
            Entry::Vacant(entry) => {
                entry.insert((hash, slot));
            }
        }
        self.memory = self.memory + part.allocation_size() - before;
        self.len += 1;
        if self.len > count * PER_PART {
            self.split();
        }
        None
    }

    /// Takes a slot out.
    pub(super) fn remove(&mut self, hash: u64, slot: u32) {
        let count = self.parts.len();
        let Some(part) = self.parts.get_mut(part_of(hash, count)) else { return };
        let Ok(entry) = part.find_entry(within(hash), |entry| entry.1 == slot) else { return };
        entry.remove();
        self.len -= 1;
        let before = part.allocation_size();
        if before > 1024 && part.len() * 16 * size_of::<(u64, u32)>() < before {
            part.shrink_to(2 * part.len(), rehash);
            self.memory = self.memory + part.allocation_size() - before;
        }
        if count > 1 && self.len < count * PER_PART / 2 {
            self.join();
        }
    }

    /// One part more, with the half of the one that had its entries.
    fn split(&mut self) {
        let new = self.parts.len();
        let source = new - (1 << new.ilog2());
        let Some(old) = self.parts.get_mut(source).map(std::mem::take) else { return };
        let (mut stay, mut go) = (HashTable::with_capacity(old.len() / 2), HashTable::with_capacity(old.len() / 2));
        self.memory -= old.allocation_size();
        for entry in old {
            let part = if part_of(entry.0, new + 1) == new { &mut go } else { &mut stay };
            part.insert_unique(within(entry.0), entry, rehash);
        }
        self.memory += stay.allocation_size() + go.allocation_size();
        self.parts[source] = stay;
        self.parts.push(go);
    }

    /// One part less: its entries go back to where they came from.
    fn join(&mut self) {
        let Some(last) = self.parts.pop() else { return };
        let count = self.parts.len();
        let Some(part) = self.parts.get_mut(count - (1 << count.ilog2())) else { return };
        self.memory -= last.allocation_size() + part.allocation_size();
        part.reserve(last.len(), rehash);
        for entry in last {
            part.insert_unique(within(entry.0), entry, rehash);
        }
        self.memory += part.allocation_size();
    }

    /// Memory held, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.memory + self.parts.capacity() * size_of::<HashTable<(u64, u32)>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hashes as they come: well mixed, of a few key groups.
    fn hash(number: u32) -> u64 {
        let mixed = (u64::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ (mixed >> 32)) & !0xff) | u64::from(number % 3)
    }

    #[test]
    fn it_finds_what_it_holds_while_it_grows_and_shrinks() {
        let mut index = Index::default();
        let count = 200_000;
        for slot in 0..count {
            assert_eq!(index.put(hash(slot), slot, |_| false), None);
        }
        let largest = index.parts.iter().map(HashTable::len).max().unwrap();
        assert!(index.parts.len() > 20 && largest < 3 * PER_PART, "{} parts, of {largest}", index.parts.len());
        assert_eq!(index.memory, index.parts.iter().map(HashTable::allocation_size).sum::<usize>());
        let full = index.memory();
        (0..count).for_each(|slot| assert_eq!(index.find(hash(slot), |found| found == slot), Some(slot)));
        assert_eq!(index.put(hash(5), count, |slot| slot == 5), Some(5));
        assert_eq!(index.find(hash(5), |_| true), Some(count));
        index.put(hash(5), 5, |slot| slot == count);
        (0..count).filter(|slot| slot % 100 != 0).for_each(|slot| index.remove(hash(slot), slot));
        (0..count).for_each(|slot| assert_eq!(index.find(hash(slot), |_| true).is_some(), slot % 100 == 0, "{slot}"));
        assert!(index.memory() < full / 10, "{} of {full}", index.memory());
        assert_eq!(index.memory, index.parts.iter().map(HashTable::allocation_size).sum::<usize>());
        (0..count).for_each(|slot| index.remove(hash(slot), slot));
        assert_eq!((index.len, index.parts.len()), (0, 1));
    }

    #[test]
    fn slots_of_equal_hashes_stand_side_by_side() {
        let mut index = Index::default();
        assert_eq!(index.put(7, 1, |_| false), None);
        assert_eq!(index.put(7, 2, |_| false), None);
        assert_eq!(index.find(7, |slot| slot == 1), Some(1));
        index.remove(7, 1);
        assert_eq!(index.find(7, |slot| slot == 1), None);
        assert_eq!(index.find(7, |slot| slot == 2), Some(2));
    }
}
