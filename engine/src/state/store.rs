//! Where one partition of an operator keeps its rows: the boundary behind which they may lie in memory or elsewhere.
//!
//! A row has a key, a time at which it is due, and values. Operators ask for many rows at a time, and for their columns at the
//! end: so a store that has to fetch them can do so together. What they need of single rows while they match them (the hash of
//! its key, its time, its neighbour of the same key) every store keeps at hand.
//!
//! The [columnar table](super::table), in memory, is the only store. One on a local disk would be a cache of the same files.

use std::fmt::Debug;
use std::ops::Range;

use arrow::array::ArrayRef;
use arrow::row::{Row, Rows};
use datafusion::error::Result;

use super::limits::Limits;
use super::sizes::bounded_ranges;

/// A row of the store, wherever its value lies at the moment. Never used for another row while this one is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SlotId(pub(crate) u32);

/// The time of a row that is never due.
pub(crate) const NEVER: i64 = i64::MAX;

/// Rows to be put into a store: as many keys, hashes, times and values each.
pub(crate) struct NewRows<'a> {
    pub(crate) keys: &'a Rows,
    /// [`hash_keys`](super::key_hash::hash_keys) of the keys.
    pub(crate) hashes: &'a [u64],
    /// When each is due, in µs since 1970; or [`NEVER`].
    pub(crate) times_us: &'a [i64],
    pub(crate) values: Vec<ArrayRef>,
}

/// Rows by key and by time. A key may have several rows, which form a chain, the newest first.
pub(crate) trait StateStore: Debug + Send {
    fn limits(&self) -> Limits;

    /// The keys, encoded so that equal ones have equal bytes.
    fn encode(&self, keys: &[ArrayRef]) -> Result<Rows>;

    /// The newest row of this key.
    fn find(&self, hash: u64, key: Row<'_>) -> Result<Option<SlotId>>;

    /// For each of these rows of `keys`: the newest row of its key.
    fn find_all(&self, hashes: &[u64], keys: &Rows, rows: &[u32]) -> Result<Vec<Option<SlotId>>>;

    /// The next older row of the same key.
    fn older(&self, slot: SlotId) -> Option<SlotId>;

    /// When the row is due, in µs since 1970; or [`NEVER`].
    fn time_us(&self, slot: SlotId) -> i64;

    /// Row i of `rows` becomes the value of `slots[i]`, whose key it has; without a slot, a further row of its key.
    fn put(&mut self, slots: &[Option<SlotId>], rows: NewRows<'_>) -> Result<Vec<SlotId>>;

    /// Removes rows. Nothing happens to those that are gone.
    fn remove(&mut self, slots: &[SlotId]) -> Result<()>;

    /// The keys of these rows, a column each.
    fn keys(&self, slots: &[SlotId]) -> Result<Vec<ArrayRef>>;

    /// The values of these rows, a column each.
    fn values(&self, slots: &[SlotId]) -> Result<Vec<ArrayRef>>;

    /// The bytes of a row, key included.
    fn bytes_of(&self, slot: SlotId) -> usize;

    /// The rows due at `bound_us` or before, in the order of their times.
    fn due(&self, bound_us: i64) -> Result<Vec<SlotId>>;

    /// All rows, in no particular order.
    fn slots(&self) -> Vec<SlotId>;

    /// How many rows there are.
    fn len(&self) -> usize;

    /// Reports how much memory is held for its rows elsewhere.
    fn holds_beside(&mut self, bytes: usize);

    /// Memory held, in bytes.
    fn bytes(&self) -> usize;

    /// Cuts rows into ranges whose values can be brought together in one array: at most so many rows, and bounded bytes.
    fn bounded_ranges(&self, slots: &[SlotId], rows: usize) -> Vec<Range<usize>> {
        bounded_ranges(slots.iter().map(|slot| self.bytes_of(*slot)), rows, self.limits().block_bytes)
    }
}
