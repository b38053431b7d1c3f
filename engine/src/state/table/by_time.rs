//! Which rows are due by some time.
//!
//! ```text
//! bucket 17 ─▶ slot 4 ⇄ slot 9 ⇄ slot 2        rows due at about the same time, linked from slot to slot
//! bucket 21 ─▶ slot 7
//! ```
//!
//! A row is in one bucket or, if it is never due, in none; one that is removed leaves it at once. So nothing has to be swept.

use std::collections::BTreeMap;

use super::pages::Pages;
use super::{NEVER, NONE, Slot};

/// Rows due at about the same time share a bucket, of 2^16 µs.
const BUCKET_BITS: u32 = 16;

/// By bucket: the slot that came last.
#[derive(Debug, Default)]
pub(super) struct ByTime(BTreeMap<i64, u32>);

impl ByTime {
    /// Puts a slot into the bucket of its time.
    pub(super) fn link(&mut self, slots: &mut Pages<Slot>, id: u32) {
        let slot = &mut slots[id];
        if slot.time_us == NEVER {
            return;
        }
        let next = self.0.insert(slot.time_us >> BUCKET_BITS, id).unwrap_or(NONE);
        (slot.earlier, slot.later) = (NONE, next);
        if let Some(next) = slots.get_mut(next) {
            next.earlier = id;
        }
    }

    /// Takes a slot out of the bucket of its time.
    pub(super) fn unlink(&mut self, slots: &mut Pages<Slot>, id: u32) {
        let slot = &mut slots[id];
        if slot.time_us == NEVER {
            return;
        }
        let (bucket, earlier, later) = (slot.time_us >> BUCKET_BITS, slot.earlier, slot.later);
        (slot.earlier, slot.later) = (NONE, NONE);
        if let Some(later) = slots.get_mut(later) {
            later.earlier = earlier;
        }
        match slots.get_mut(earlier) {
            Some(earlier) => earlier.later = later,
            // It was the first of its bucket.
            None if later == NONE => {
                self.0.remove(&bucket);
            }
            None => {
                self.0.insert(bucket, later);
            }
        }
    }

    /// The slots due at `bound_us` or before.
    pub(super) fn due(&self, slots: &Pages<Slot>, bound_us: i64) -> Vec<u32> {
        let mut due = vec![];
        for (_, &first) in self.0.range(..=bound_us >> BUCKET_BITS) {
            let mut next = first;
            while let Some(slot) = slots.get(next).filter(|slot| slot.chunk != NONE) {
                if slot.time_us <= bound_us {
                    due.push(next);
                }
                next = slot.later;
            }
        }
        due
    }

    /// Memory held, in bytes, about.
    pub(super) fn memory(&self) -> usize {
        self.0.len() * 24
    }
}
