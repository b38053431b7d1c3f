//! An aggregate of distinct values: the plain aggregate, behind a set of what it was given.
//!
//! What is kept of a group is the set, a list of values; of several arguments, a list of structs. Only the arguments that
//! differ from row to row are kept: of `string_agg(DISTINCT k, ', ')` the texts. Two values are one if GROUP BY takes
//! them for one.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::compute::kernels::cast::cast;
use arrow::compute::{SortColumn, SortOptions, lexsort_to_indices, take};
use arrow::datatypes::{DataType, Field, FieldRef, Fields};
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::internal_err;
use datafusion::error::Result;
use datafusion::logical_expr::Accumulator;
use datafusion::scalar::ScalarValue;
use hashbrown::HashTable;
use twox_hash::XxHash64;

use crate::state::spelling::{normalize_keys, plain_type};

/// An argument of the aggregate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Argument {
    /// The same for all rows.
    Constant(ScalarValue),
    /// Of this type.
    Column(DataType),
}

/// The types of what is remembered.
fn kept_types(arguments: &[Argument]) -> Vec<DataType> {
    let kept = arguments.iter().filter_map(|argument| match argument {
        Argument::Constant(_) => None,
        Argument::Column(of_type) => Some(plain_type(of_type)),
    });
    kept.collect()
}

/// The type of the state, a list of values.
pub(super) fn state_type(arguments: &[Argument]) -> DataType {
    DataType::List(value_field(&kept_types(arguments)))
}

fn value_field(kept: &[DataType]) -> FieldRef {
    Arc::new(match kept {
        [one] => Field::new_list_field(one.clone(), true),
        several => Field::new_list_field(DataType::Struct(struct_fields(several)), true),
    })
}

fn struct_fields(kept: &[DataType]) -> Fields {
    kept.iter().enumerate().map(|(place, of_type)| Field::new(format!("c{place}"), of_type.clone(), true)).collect()
}

/// The accumulator of distinct values.
#[derive(Debug)]
pub(super) struct DistinctAccumulator {
    plain: Box<dyn Accumulator>,
    arguments: Vec<Argument>,
    /// The types of the arguments that are kept.
    kept: Vec<DataType>,
    /// By which arguments the values are ordered before the plain aggregate takes them.
    order: Vec<(usize, SortOptions)>,
    /// Whether it takes what they are ordered by, too.
    takes_order: bool,
    converter: RowConverter,
    /// As they came.
    values: Rows,
    index: HashTable<u32>,
}

impl DistinctAccumulator {
    pub(super) fn try_new(
        plain: Box<dyn Accumulator>,
        arguments: Vec<Argument>,
        order: Vec<(usize, SortOptions)>,
        takes_order: bool,
    ) -> Result<Self> {
        let kept = kept_types(&arguments);
        let converter = RowConverter::new(kept.iter().map(|of_type| SortField::new(of_type.clone())).collect())?;
        let values = converter.empty_rows(0, 0);
        let index = HashTable::new();
        Ok(DistinctAccumulator { plain, arguments, kept, order, takes_order, converter, values, index })
    }

    /// Adds values, a column per argument that is kept.
    fn add(&mut self, columns: &[ArrayRef]) -> Result<()> {
        let new = self.converter.convert_columns(&normalize_keys(columns)?)?;
        let hash_of = |bytes: &[u8]| XxHash64::oneshot(0, bytes);
        for row in &new {
            let hash = hash_of(row.as_ref());
            let known = |place: &u32| self.values.row(*place as usize).as_ref() == row.as_ref();
            if self.index.find(hash, known).is_none() {
                let place = self.values.num_rows() as u32;
                self.values.push(row);
                let values = &self.values;
                self.index.insert_unique(hash, place, |place| hash_of(values.row(*place as usize).as_ref()));
            }
        }
        Ok(())
    }

    /// All values, a column per argument that is kept.
    fn columns(&self) -> Result<Vec<ArrayRef>> {
        Ok(self.converter.convert_rows(&self.values)?)
    }
}

impl Accumulator for DistinctAccumulator {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let kept = self.arguments.iter().zip(values).filter(|(argument, _)| matches!(argument, Argument::Column(_)));
        let columns: Vec<ArrayRef> = kept.map(|(_, column)| Arc::clone(column)).collect();
        self.add(&columns)
    }

    /// Is called once: the plain aggregate has taken the values then.
    fn evaluate(&mut self) -> Result<ScalarValue> {
        let rows = self.values.num_rows();
        let mut columns = self.columns()?.into_iter();
        let mut arguments = vec![];
        for argument in &self.arguments {
            arguments.push(match argument {
                Argument::Constant(value) => value.to_array_of_size(rows)?,
                Argument::Column(of_type) => match columns.next() {
                    Some(column) if column.data_type() == of_type => column,
                    Some(column) => cast(&column, of_type)?,
                    None => return internal_err!("a set of distinct values lacks a column"),
                },
            });
        }
        if !self.order.is_empty() {
            let by = |(place, options): &(usize, SortOptions)| {
                arguments.get(*place).map(|values| SortColumn { values: Arc::clone(values), options: Some(*options) })
            };
            let by: Vec<SortColumn> = self.order.iter().filter_map(by).collect();
            let sorted = lexsort_to_indices(&by, None)?;
            let in_order = |column: &ArrayRef| Ok(take(column, &sorted, None)?);
            let ordered_by: Vec<ArrayRef> = by.iter().map(|by| in_order(&by.values)).collect::<Result<_>>()?;
            arguments = arguments.iter().map(in_order).collect::<Result<_>>()?;
            if self.takes_order {
                arguments.extend(ordered_by);
            }
        }
        if rows > 0 {
            self.plain.update_batch(&arguments)?;
        }
        self.plain.evaluate()
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.plain.size() + self.values.size() + self.index.capacity() * (size_of::<u32>() + 1)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let mut columns = self.columns()?;
        let values: ArrayRef = match columns.len() {
            1 => columns.swap_remove(0),
            _ => Arc::new(StructArray::try_new(struct_fields(&self.kept), columns, None)?),
        };
        let offsets = OffsetBuffer::from_lengths([values.len()]);
        Ok(vec![ScalarValue::List(Arc::new(ListArray::try_new(value_field(&self.kept), offsets, values, None)?))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let Some(sets) = states.first().and_then(|sets| sets.as_list_opt::<i32>()) else {
            return internal_err!("the state of distinct values is not a list");
        };
        for set in sets.iter().flatten() {
            match self.kept.len() {
                1 => self.add(&[set])?,
                _ => self.add(set.as_struct().columns())?,
            }
        }
        Ok(())
    }
}
