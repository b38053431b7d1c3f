//! What a join keeps for one partition: the rows of both sides.
//!
//! In a file each row has a number, which together with its key and side makes it unique. The number is made of the
//! key's group (its upper byte) and a count per group. A group lies in one partition always, whatever their number, and
//! the count goes on from the greatest number found in the files: so no two living rows have the same one.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, StructArray, UInt8Array, UInt32Array, UInt64Array,
    new_null_array,
};
use arrow::compute::{take, take_arrays};
use arrow::datatypes::{DataType, FieldRef, Int64Type, UInt8Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use arrow::row::Rows;
use datafusion::error::{DataFusionError, Result};

use super::spec::{JoinSpec, Side};
use crate::error::Error;
use crate::state::key_hash::KEY_GROUPS;
use crate::state::{NEVER, NewRows, Pages, PartitionState, Resources, SlotId, StateSchema, StateStore};

/// The upper bits of a row's number are its key group.
const GROUP_SHIFT: u32 = 56;

/// The number of a row that is gone.
const VACANT: u64 = u64::MAX;

/// What is known of a row beside its values.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Row {
    number: u64,
    /// It found a match; noted only where that matters.
    matched: bool,
    /// No file has it yet.
    unpersisted: bool,
}

impl Default for Row {
    fn default() -> Self {
        Row { number: VACANT, matched: false, unpersisted: false }
    }
}

/// Rows to be kept, each with whether it found a match already.
pub(super) struct Kept<'a> {
    pub(super) keys: &'a Rows,
    pub(super) hashes: &'a [u64],
    pub(super) times_us: &'a [i64],
    pub(super) values: Vec<ArrayRef>,
    pub(super) matched: &'a [bool],
}

/// The rows of one side.
#[derive(Debug)]
pub(super) struct SideState {
    side: Side,
    pub(super) table: Box<dyn StateStore>,
    /// By slot.
    rows: Pages<Row>,
    /// By key group: the count of its next row.
    next: Vec<u64>,
    /// Rows that this batch added or changed.
    dirty: Vec<SlotId>,
}

impl SideState {
    fn new(side: Side, join: &JoinSpec, resources: &Resources) -> Result<Self> {
        let values: Vec<FieldRef> = join.side(side).schema.fields().iter().map(Arc::clone).collect();
        Ok(SideState {
            side,
            table: resources.store(&join.key_fields, &values)?,
            rows: Pages::default(),
            next: vec![0; KEY_GROUPS],
            dirty: vec![],
        })
    }

    pub(super) fn is_matched(&self, slot: SlotId) -> bool {
        self.rows.get(slot.0).is_some_and(|row| row.matched)
    }

    /// Notes that a row found a match. Returns whether it is its first.
    pub(super) fn set_matched(&mut self, slot: SlotId) -> bool {
        match self.rows.get_mut(slot.0) {
            Some(row) => !std::mem::replace(&mut row.matched, true),
            None => false,
        }
    }

    /// The row changed: it is written again.
    pub(super) fn mark_dirty(&mut self, slot: SlotId) {
        self.dirty.push(slot);
    }

    /// Keeps further rows.
    pub(super) fn keep(&mut self, kept: Kept<'_>) -> Result<()> {
        let Kept { keys, hashes, times_us, values, matched } = kept;
        let slots = self.table.put(&vec![None; hashes.len()], NewRows { keys, hashes, times_us, values })?;
        for ((slot, &hash), &matched) in slots.into_iter().zip(hashes).zip(matched) {
            let group = hash % KEY_GROUPS as u64;
            let Some(next) = self.next.get_mut(group as usize) else { continue };
            let number = (group << GROUP_SHIFT) | *next;
            *next += 1;
            self.rows.set(slot.0, Row { number, matched, unpersisted: true });
            self.dirty.push(slot);
        }
        self.table.holds_beside(self.rows.memory());
        Ok(())
    }

    fn is_unpersisted(&self, slot: SlotId) -> bool {
        self.rows.get(slot.0).is_some_and(|row| row.unpersisted)
    }

    fn is_here(&self, slot: SlotId) -> bool {
        self.rows.get(slot.0).is_some_and(|row| row.number != VACANT)
    }

    /// Deletes rows that have not expired. Returns the removals, for those rows that files have.
    pub(super) fn delete(&mut self, slots: &[SlotId], spec: &StateSchema) -> Result<Vec<RecordBatch>> {
        let written: Vec<SlotId> = slots.iter().copied().filter(|slot| !self.is_unpersisted(*slot)).collect();
        let parts = self.table.bounded_ranges(&written, usize::MAX).into_iter();
        let removal = |part| {
            let (keys, id, times_us) = self.named(&written[part])?;
            spec.change(true, keys, id, &times_us, None)
        };
        let changes = parts.map(removal).collect::<Result<_>>()?;
        self.evict(slots)?;
        Ok(changes)
    }

    /// Drops expired rows. The files need no removals: the commit has the bound of eviction.
    pub(super) fn evict(&mut self, slots: &[SlotId]) -> Result<()> {
        slots.iter().for_each(|slot| self.rows.clear(slot.0));
        self.table.holds_beside(self.rows.memory());
        self.table.remove(slots)
    }

    /// What this batch added or changed and is still here.
    pub(super) fn changes(&mut self, spec: &StateSchema) -> Result<Vec<RecordBatch>> {
        let mut slots = std::mem::take(&mut self.dirty);
        slots.retain(|slot| self.is_here(*slot));
        slots.sort_unstable();
        slots.dedup();
        let parts = self.table.bounded_ranges(&slots, usize::MAX).into_iter();
        let changes = parts.map(|part| self.change(&slots[part], spec)).collect::<Result<_>>()?;
        for slot in slots {
            self.rows[slot.0].unpersisted = false;
        }
        Ok(changes)
    }

    fn change(&self, slots: &[SlotId], spec: &StateSchema) -> Result<RecordBatch> {
        let (keys, id, times_us) = self.named(slots)?;
        let values = self.table.values(slots)?;
        let matched: BooleanArray = slots.iter().map(|slot| Some(self.is_matched(*slot))).collect();
        let sides = spec.values.iter().take(2).zip([Side::Left, Side::Right]);
        let mut columns = sides
            .map(|(field, side)| match field.data_type() {
                DataType::Struct(fields) if side == self.side => {
                    Ok(Arc::new(StructArray::try_new_with_length(fields.clone(), values.clone(), None, slots.len())?)
                        as ArrayRef)
                }
                absent => Ok(new_null_array(absent, slots.len())),
            })
            .collect::<Result<Vec<ArrayRef>>>()?;
        columns.push(Arc::new(matched));
        spec.change(false, keys, id, &times_us, Some(columns))
    }

    /// What makes rows unique, and their times.
    fn named(&self, slots: &[SlotId]) -> Result<(Vec<ArrayRef>, Vec<ArrayRef>, Vec<i64>)> {
        let numbers: UInt64Array = slots.iter().map(|slot| self.rows.get(slot.0).map(|row| row.number)).collect();
        let sides = UInt8Array::from(vec![self.side.number(); slots.len()]);
        let times_us = slots.iter().map(|slot| self.table.time_us(*slot)).collect();
        Ok((self.table.keys(slots)?, vec![Arc::new(sides), Arc::new(numbers)], times_us))
    }

    /// The number of a row that is read, whatever became of it: the count of its group goes on from there.
    fn note(&mut self, number: u64) {
        // The upper byte is the key group, and `next` has an entry for each.
        let next = &mut self.next[(number >> GROUP_SHIFT) as usize];
        *next = (*next).max((number & ((1 << GROUP_SHIFT) - 1)) + 1);
    }

    /// Takes in the rows of this side from a file.
    fn load(&mut self, file: &FileColumns<'_>, hashes: &[u64]) -> Result<()> {
        let own: Vec<u32> =
            (0..hashes.len() as u32).filter(|row| file.sides.value(*row as usize) == self.side.number()).collect();
        if own.is_empty() {
            return Ok(());
        }
        let at = own.iter().map(|row| *row as usize);
        let times_us: Vec<i64> =
            at.clone().map(|row| if file.times.is_valid(row) { file.times.value(row) } else { NEVER }).collect();
        let hashes: Vec<u64> = at.clone().map(|row| hashes[row]).collect();
        let rows = at.map(|row| Row {
            number: file.numbers.value(row),
            matched: file.matched.is_valid(row) && file.matched.value(row),
            unpersisted: false,
        });
        let rows: Vec<Row> = rows.collect();
        let values = match self.side {
            Side::Left => file.left,
            Side::Right => file.right,
        };
        let own = UInt32Array::from(own);
        let keys = self.table.encode(&take_arrays(file.keys, &own, None)?)?;
        let values = take(values, &own, None)?.as_struct().columns().to_vec();
        let new = NewRows { keys: &keys, hashes: &hashes, times_us: &times_us, values };
        let slots = self.table.put(&vec![None; rows.len()], new)?;
        slots.into_iter().zip(rows).for_each(|(slot, row)| self.rows.set(slot.0, row));
        self.table.holds_beside(self.rows.memory());
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.table.bytes() + self.next.len() * size_of::<u64>()
    }
}

/// The columns of a file of changes.
struct FileColumns<'a> {
    keys: &'a [ArrayRef],
    sides: &'a UInt8Array,
    numbers: &'a UInt64Array,
    times: &'a Int64Array,
    left: &'a StructArray,
    right: &'a StructArray,
    matched: &'a BooleanArray,
}

impl<'a> FileColumns<'a> {
    fn of(change: &'a RecordBatch) -> Option<Self> {
        let (_, rest) = change.columns().split_first()?;
        let (keys, rest) = rest.split_at_checked(rest.len().checked_sub(6)?)?;
        let [side, number, time, left, right, matched] = rest else { return None };
        Some(FileColumns {
            keys,
            sides: side.as_primitive_opt::<UInt8Type>()?,
            numbers: number.as_primitive_opt::<UInt64Type>()?,
            times: time.as_primitive_opt::<Int64Type>()?,
            left: left.as_struct_opt()?,
            right: right.as_struct_opt()?,
            matched: matched.as_boolean_opt()?,
        })
    }
}

/// The rows of both sides.
#[derive(Debug)]
pub(super) struct JoinState {
    left: SideState,
    right: SideState,
}

impl JoinState {
    pub(super) fn new(join: &JoinSpec, resources: &Resources) -> Result<Self> {
        let side = |side| SideState::new(side, join, resources);
        Ok(JoinState { left: side(Side::Left)?, right: side(Side::Right)? })
    }

    /// A side and the other one.
    pub(super) fn sides(&mut self, side: Side) -> (&mut SideState, &mut SideState) {
        match side {
            Side::Left => (&mut self.left, &mut self.right),
            Side::Right => (&mut self.right, &mut self.left),
        }
    }
}

impl PartitionState for JoinState {
    fn note(&mut self, read: &RecordBatch) {
        let Some(file) = FileColumns::of(read) else { return };
        for (number, side) in file.numbers.values().iter().zip(file.sides.values()) {
            if *side == Side::Left.number() { self.left.note(*number) } else { self.right.note(*number) }
        }
    }

    fn load(&mut self, rows: &RecordBatch, hashes: &[u64]) -> Result<()> {
        let file = FileColumns::of(rows).ok_or_else(|| -> DataFusionError {
            Error::damaged("a file of a join's state has other columns than a join writes").into()
        })?;
        // Each side takes its own rows: one of neither would be lost without a word.
        if let Some(side) = file.sides.values().iter().find(|side| **side > Side::Right.number()) {
            let said = format!("a file of a join's state has a row of side {side}; 0 is left and 1 is right");
            return Err(Error::damaged(said).into());
        }
        self.left.load(&file, hashes)?;
        self.right.load(&file, hashes)
    }

    fn rows(&self) -> usize {
        self.left.table.len() + self.right.table.len()
    }

    fn bytes(&self) -> usize {
        self.left.bytes() + self.right.bytes()
    }
}
