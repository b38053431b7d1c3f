//! The least and the greatest value, where DataFusion's code goes by the order of the rows, or keeps more than the value.
//!
//! NaN is above all other numbers, null below all values within a struct or list: Spark's order. A null value does not count.

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, new_null_array};
use arrow::compute::kernels::cast::cast;
use arrow::compute::{and, is_not_null, nullif};
use arrow::datatypes::{DataType, Float64Type};
use arrow::row::{OwnedRow, RowConverter, SortField};
use datafusion::common::internal_err;
use datafusion::error::Result;
use datafusion::logical_expr::{Accumulator, EmitTo, GroupsAccumulator};
use datafusion::scalar::ScalarValue;

use crate::state::spelling::{normalize_keys, plain_type};

/// Whether values of this type are compared here.
pub(super) fn takes(of_type: &DataType) -> bool {
    let field = SortField::new(plain_type(of_type));
    of_type.is_floating() || of_type.is_nested() && RowConverter::supports_fields(&[field])
}

/// The least or greatest value of each group.
#[derive(Debug)]
pub(super) struct Extreme {
    greatest: bool,
    of_type: DataType,
    best: Best,
}

#[derive(Debug)]
enum Best {
    Floats(Vec<Option<f64>>),
    Rows(BestRows),
}

/// Values as bytes that compare as they do.
#[derive(Debug)]
struct BestRows {
    converter: RowConverter,
    null: OwnedRow,
    best: Vec<Option<Box<[u8]>>>,
    /// How many bytes these are.
    held: usize,
}

impl Extreme {
    pub(super) fn try_new(of_type: &DataType, greatest: bool) -> Result<Self> {
        let best = if of_type.is_floating() {
            Best::Floats(vec![])
        } else {
            let plain = plain_type(of_type);
            let converter = RowConverter::new(vec![SortField::new(plain.clone())])?;
            let null = converter.convert_columns(&[new_null_array(&plain, 1)])?.row(0).owned();
            Best::Rows(BestRows { converter, null, best: vec![], held: 0 })
        };
        Ok(Extreme { greatest, of_type: of_type.clone(), best })
    }
}

/// Whether a number takes the place of another.
fn is_better(greatest: bool, new: f64, known: f64) -> bool {
    let order = new.partial_cmp(&known).unwrap_or_else(|| new.is_nan().cmp(&known.is_nan()));
    if greatest { order.is_gt() } else { order.is_lt() }
}

impl GroupsAccumulator for Extreme {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        wanted: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        let Some(values) = values.first().filter(|values| values.len() == groups.len()) else {
            return internal_err!("values and groups do not go together");
        };
        let counts =
            |row: usize| !values.is_null(row) && wanted.is_none_or(|wanted| wanted.is_valid(row) && wanted.value(row));
        let greatest = self.greatest;
        match &mut self.best {
            Best::Floats(best) => {
                best.resize(total.max(best.len()), None);
                let numbers = cast(values, &DataType::Float64)?;
                let numbers = numbers.as_primitive::<Float64Type>();
                for (row, &group) in groups.iter().enumerate().filter(|(row, _)| counts(*row)) {
                    let new = numbers.value(row);
                    if best[group].is_none_or(|known| is_better(greatest, new, known)) {
                        best[group] = Some(new);
                    }
                }
            }
            Best::Rows(BestRows { converter, best, held, .. }) => {
                best.resize(total.max(best.len()), None);
                let rows = converter.convert_columns(&normalize_keys(std::slice::from_ref(values))?)?;
                for (row, &group) in groups.iter().enumerate().filter(|(row, _)| counts(*row)) {
                    let new = rows.row(row);
                    let better = best[group]
                        .as_deref()
                        .is_none_or(|known| if greatest { new.as_ref() > known } else { new.as_ref() < known });
                    if better {
                        *held += new.as_ref().len();
                        *held -= best[group].as_deref().map_or(0, <[u8]>::len);
                        best[group] = Some(new.as_ref().into());
                    }
                }
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<ArrayRef> {
        let values: ArrayRef = match &mut self.best {
            Best::Floats(best) => std::sync::Arc::new(Float64Array::from(emit.take_needed(best))),
            Best::Rows(BestRows { converter, null, best, held }) => {
                let taken = emit.take_needed(best);
                *held -= taken.iter().flatten().map(|bytes| bytes.len()).sum::<usize>();
                let parser = converter.parser();
                let rows = taken.iter().map(|bytes| bytes.as_deref().map_or(null.row(), |bytes| parser.parse(bytes)));
                match converter.convert_rows(rows)?.pop() {
                    Some(values) => values,
                    None => return internal_err!("a column was lost"),
                }
            }
        };
        Ok(if values.data_type() == &self.of_type { values } else { cast(&values, &self.of_type)? })
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.evaluate(emit)?])
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.update_batch(values, groups, None, total)
    }

    fn convert_to_state(&self, values: &[ArrayRef], wanted: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let Some(values) = values.first() else { return internal_err!("no values") };
        let Some(wanted) = wanted else { return Ok(vec![std::sync::Arc::clone(values)]) };
        let kept = and(&is_not_null(wanted)?, wanted)?;
        Ok(vec![nullif(values, &arrow::compute::not(&kept)?)?])
    }

    fn size(&self) -> usize {
        match &self.best {
            Best::Floats(best) => best.capacity() * size_of::<Option<f64>>(),
            Best::Rows(rows) => rows.held + rows.best.capacity() * size_of::<Option<Box<[u8]>>>(),
        }
    }
}

/// An accumulator of one group, by the code for many.
#[derive(Debug)]
pub(super) struct OneGroup {
    groups: Extreme,
    of_type: DataType,
}

impl OneGroup {
    pub(super) fn new(groups: Extreme, of_type: &DataType) -> Self {
        OneGroup { groups, of_type: of_type.clone() }
    }
}

impl Accumulator for OneGroup {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let rows = values.first().map_or(0, |values| values.len());
        self.groups.update_batch(values, &vec![0; rows], None, 1)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let values = self.groups.evaluate(EmitTo::All)?;
        if values.is_empty() { ScalarValue::try_from(&self.of_type) } else { ScalarValue::try_from_array(&values, 0) }
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.groups.size()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }
}
