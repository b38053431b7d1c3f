//! What a join keeps for one partition: the rows of both sides.
//!
//! In a file each row has a number, which together with its key and side makes it unique. The number is made of the
//! key's group (its upper byte) and a count per group. A group lies in one partition always, whatever their number, and
//! the count goes on from the greatest number found in the files: so no two living rows have the same one.

use std::collections::HashMap;
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

use super::shape::{Shape, Side};
use crate::error::Error;
use crate::state::key_hash::{KEY_GROUPS, hash_keys};
use crate::state::{NEVER, NewRows, PartitionState, SlotId, StateSpec, Table};

/// The upper bits of a row's number are its key group.
const GROUP_SHIFT: u32 = 56;

/// The number of a row that is gone.
const GONE: u64 = u64::MAX;

/// What is known of a row beside its values.
#[derive(Debug, Clone, Copy)]
struct Row {
    number: u64,
    /// It found a match; noted only where that matters.
    matched: bool,
    /// No file has it yet.
    fresh: bool,
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
    pub(super) table: Table,
    /// By slot.
    rows: Vec<Row>,
    /// By key group: the count of its next row.
    next: Vec<u64>,
    /// While files are read: row number → slot.
    loaded: HashMap<u64, SlotId>,
    /// Rows that this batch added or changed.
    touched: Vec<SlotId>,
}

impl SideState {
    fn new(side: Side, shape: &Shape) -> Result<Self> {
        let values: Vec<FieldRef> = shape.side(side).schema.fields().iter().map(Arc::clone).collect();
        Ok(SideState {
            side,
            table: Table::new(&shape.key_fields, &values)?,
            rows: vec![],
            next: vec![0; KEY_GROUPS],
            loaded: HashMap::new(),
            touched: vec![],
        })
    }

    pub(super) fn is_matched(&self, slot: SlotId) -> bool {
        self.rows.get(slot.0 as usize).is_some_and(|row| row.matched)
    }

    /// Notes that a row found a match. Whether it is its first.
    pub(super) fn mark(&mut self, slot: SlotId) -> bool {
        match self.rows.get_mut(slot.0 as usize) {
            Some(row) => !std::mem::replace(&mut row.matched, true),
            None => false,
        }
    }

    /// The row changed: it is written again.
    pub(super) fn touch(&mut self, slot: SlotId) {
        self.touched.push(slot);
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
            self.set(slot, Row { number, matched, fresh: true });
            self.touched.push(slot);
        }
        Ok(())
    }

    fn set(&mut self, slot: SlotId, row: Row) {
        let place = slot.0 as usize;
        if place >= self.rows.len() {
            self.rows.resize(place + 1, Row { number: GONE, matched: false, fresh: false });
        }
        if let Some(known) = self.rows.get_mut(place) {
            *known = row;
        }
    }

    fn is_fresh(&self, slot: SlotId) -> bool {
        self.rows.get(slot.0 as usize).is_some_and(|row| row.fresh)
    }

    fn is_here(&self, slot: SlotId) -> bool {
        self.rows.get(slot.0 as usize).is_some_and(|row| row.number != GONE)
    }

    /// Takes rows away that have not reached their time. Gives the change, if files know of any.
    pub(super) fn take_away(&mut self, slots: &[SlotId], spec: &StateSpec) -> Result<Option<RecordBatch>> {
        let written: Vec<SlotId> = slots.iter().copied().filter(|slot| !self.is_fresh(*slot)).collect();
        let change = match written.is_empty() {
            true => None,
            false => {
                let (keys, id, times_us) = self.named(&written)?;
                Some(spec.change(true, keys, id, &times_us, None)?)
            }
        };
        self.forget(slots);
        Ok(change)
    }

    /// Drops rows without a word to the files: they have reached their time, which the commit tells.
    pub(super) fn forget(&mut self, slots: &[SlotId]) {
        for &slot in slots {
            self.table.remove(slot);
            self.set(slot, Row { number: GONE, matched: false, fresh: false });
        }
    }

    /// What this batch added or changed and is still here.
    pub(super) fn changes(&mut self, spec: &StateSpec) -> Result<Option<RecordBatch>> {
        let mut slots = std::mem::take(&mut self.touched);
        slots.retain(|slot| self.is_here(*slot));
        slots.sort_unstable();
        slots.dedup();
        if slots.is_empty() {
            return Ok(None);
        }
        let (keys, id, times_us) = self.named(&slots)?;
        let values = self.table.values(&slots)?;
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
        for slot in slots {
            if let Some(row) = self.rows.get_mut(slot.0 as usize) {
                row.fresh = false;
            }
        }
        Ok(Some(spec.change(false, keys, id, &times_us, Some(columns))?))
    }

    /// What makes rows unique, and their times.
    fn named(&self, slots: &[SlotId]) -> Result<(Vec<ArrayRef>, Vec<ArrayRef>, Vec<i64>)> {
        let numbers: UInt64Array =
            slots.iter().map(|slot| self.rows.get(slot.0 as usize).map(|row| row.number)).collect();
        let sides = UInt8Array::from(vec![self.side.number(); slots.len()]);
        let times_us = slots.iter().map(|slot| self.table.time_us(*slot)).collect();
        Ok((self.table.keys(slots)?, vec![Arc::new(sides), Arc::new(numbers)], times_us))
    }

    /// Takes in rows of this side from a file. The last change to a row counts.
    fn load(&mut self, change: &RecordBatch, file: &FileColumns<'_>) -> Result<()> {
        let mut last: HashMap<u64, u32> = HashMap::new();
        for row in (0..change.num_rows()).filter(|row| file.sides.value(*row) == self.side.number()) {
            let number = file.numbers.value(row);
            last.insert(number, row as u32);
            if let Some(next) = self.next.get_mut((number >> GROUP_SHIFT) as usize) {
                *next = (*next).max((number & ((1 << GROUP_SHIFT) - 1)) + 1);
            }
        }
        let mut rows: Vec<u32> = last.into_values().collect();
        rows.sort_unstable();
        let (removed, put): (Vec<u32>, Vec<u32>) = rows.into_iter().partition(|row| file.removed.value(*row as usize));
        for row in removed {
            if let Some(slot) = self.loaded.remove(&file.numbers.value(row as usize)) {
                self.forget(&[slot]);
            }
        }
        let old: Vec<Option<SlotId>> =
            put.iter().map(|row| self.loaded.get(&file.numbers.value(*row as usize)).copied()).collect();
        let at = |row: &u32| *row as usize;
        let times_us: Vec<i64> = put
            .iter()
            .map(|row| if file.times.is_valid(at(row)) { file.times.value(at(row)) } else { NEVER })
            .collect();
        let infos: Vec<(u64, bool)> = put
            .iter()
            .map(|row| (file.numbers.value(at(row)), file.matched.is_valid(at(row)) && file.matched.value(at(row))))
            .collect();
        let own = match self.side {
            Side::Left => file.left,
            Side::Right => file.right,
        };
        let put = UInt32Array::from(put);
        let key_columns = take_arrays(file.keys, &put, None)?;
        let hashes = hash_keys(&key_columns, put.len())?;
        let keys = self.table.encode(&key_columns)?;
        let own = take(own, &put, None)?;
        let values = own.as_struct().columns().to_vec();
        let slots = self.table.put(&old, NewRows { keys: &keys, hashes: &hashes, times_us: &times_us, values })?;
        for (slot, (number, matched)) in slots.into_iter().zip(infos) {
            self.set(slot, Row { number, matched, fresh: false });
            self.loaded.insert(number, slot);
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.table.bytes() + self.rows.capacity() * size_of::<Row>() + self.next.len() * size_of::<u64>()
    }
}

/// The columns of a file of changes.
struct FileColumns<'a> {
    removed: &'a BooleanArray,
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
        let (removed, rest) = change.columns().split_first()?;
        let (keys, rest) = rest.split_at_checked(rest.len().checked_sub(6)?)?;
        let [side, number, time, left, right, matched] = rest else { return None };
        Some(FileColumns {
            removed: removed.as_boolean_opt()?,
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
    pub(super) fn new(shape: &Shape) -> Result<Self> {
        Ok(JoinState { left: SideState::new(Side::Left, shape)?, right: SideState::new(Side::Right, shape)? })
    }

    /// A side and the other one.
    pub(super) fn sides(&mut self, side: Side) -> (&mut SideState, &mut SideState) {
        match side {
            Side::Left => (&mut self.left, &mut self.right),
            Side::Right => (&mut self.right, &mut self.left),
        }
    }

    /// No more files are read: what served for that is let go.
    pub(super) fn is_loaded(&mut self) {
        self.left.loaded = HashMap::new();
        self.right.loaded = HashMap::new();
    }
}

impl PartitionState for JoinState {
    fn load(&mut self, change: &RecordBatch) -> Result<()> {
        let file = FileColumns::of(change).ok_or_else(|| -> DataFusionError {
            Error::damaged("a file of a join's state has other columns than a join writes").into()
        })?;
        self.left.load(change, &file)?;
        self.right.load(change, &file)
    }

    fn rows(&self) -> usize {
        self.left.table.len() + self.right.table.len()
    }

    fn bytes(&self) -> usize {
        self.left.bytes() + self.right.bytes()
    }
}
