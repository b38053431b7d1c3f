//! Keys and values of a table's rows, in columns.

use arrow::array::{Array, ArrayRef};
use arrow::compute::interleave;
use arrow::row::Row;
use datafusion::common::internal_err;
use datafusion::error::Result;

use super::chunks::Chunk;
use super::{NONE, SlotId, StateTable};
use crate::state::sizes::bytes_at;
use crate::state::spelling::in_type;

/// The chunks that hold some rows, and for each row its chunk among these and its place there.
type Places<'a> = (Vec<&'a Chunk>, Vec<(usize, usize)>);

impl StateTable {
    /// The bytes of a row, key included.
    pub(super) fn row_bytes(&self, slot: SlotId) -> usize {
        if self.varying.is_empty() && self.keys_are_fixed {
            return self.fixed;
        }
        let Some(slot) = self.slots.get(slot.0) else { return 0 };
        let Some(chunk) = self.chunks.get(slot.chunk) else { return 0 };
        let (row, values) = (slot.row as usize, &chunk.values);
        let varying = self.varying.iter().filter_map(|column| values.get(*column));
        varying.fold(self.fixed + chunk.keys.get(row).len(), |sum, values| sum + bytes_at(values.as_ref(), row))
    }

    /// The values of these rows, a column each.
    pub(super) fn read_values(&self, slots: &[SlotId]) -> Result<Vec<ArrayRef>> {
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
    pub(super) fn read_keys(&self, slots: &[SlotId]) -> Result<Vec<ArrayRef>> {
        let parser = self.converter.parser();
        let rows: Option<Vec<Row<'_>>> = slots.iter().map(|slot| Some(parser.parse(self.key_of(slot.0)?))).collect();
        let Some(rows) = rows else { return internal_err!("a row that is gone was asked for its key") };
        let keys = self.converter.convert_rows(rows)?;
        keys.iter().zip(&self.key_types).map(|(key, of_type)| in_type(key, of_type)).collect()
    }

    /// Where rows lie.
    fn places(&self, slots: &[SlotId]) -> Result<Places<'_>> {
        let mut used: Vec<&Chunk> = vec![];
        let mut place_of_chunk = vec![NONE; self.chunks.places()];
        let mut places = Vec::with_capacity(slots.len());
        for id in slots {
            let slot = self.slots.get(id.0).filter(|slot| slot.chunk != NONE);
            let chunk = slot.and_then(|slot| self.chunks.get(slot.chunk));
            let (Some(slot), Some(chunk)) = (slot, chunk) else {
                return internal_err!("a row that is gone was asked for its value");
            };
            let place = &mut place_of_chunk[slot.chunk as usize];
            if *place == NONE {
                *place = used.len() as u32;
                used.push(chunk);
            }
            places.push((*place as usize, slot.row as usize));
        }
        Ok((used, places))
    }
}
