//! Rows of state in the order of their files, the newest change to each row only.
//!
//! Files are sorted by key group, then by the hash of the key, then by a hash of key and id: by [our own hash](super::key_hash),
//! which never changes, and not by values or their encodings, whose order is Arrow's affair. So files of all releases can be
//! merged as they are read, a table takes them in piece by piece of its index, and two numbers decide nearly every comparison.

use std::cmp::Reverse;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, UInt64Array};
use arrow::compute::{interleave, take};
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use arrow::row::{RowConverter, SortField};

use super::StateSchema;
use super::key_hash::{hash_further, hash_keys};
use super::limits::Limits;
use super::sizes::{RowBytes, bounded_ranges};
use super::spelling::shrink_rows_to_fit;
use crate::error::Result;

/// What a row is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order {
    /// The hash of the key, with the key group at its upper end.
    key: u64,
    /// The hash of key and id.
    row: u64,
}

impl Order {
    /// The hash of the key.
    pub(crate) fn hash(self) -> u64 {
        self.key.rotate_left(8)
    }

    pub(crate) fn group(self) -> u8 {
        (self.key >> 56) as u8
    }
}

/// The order of each of these rows, which have the columns of [`StateSchema::file_schema`].
pub(crate) fn orders(spec: &StateSchema, rows: &RecordBatch) -> Result<Vec<Order>> {
    let (keys, id) = rows.columns()[spec.unique_columns()].split_at(spec.keys.len());
    let hashes = hash_keys(keys, rows.num_rows())?;
    let mut further = hashes.clone();
    hash_further(id, &mut further)?;
    Ok(hashes.into_iter().zip(further).map(|(hash, row)| Order { key: hash.rotate_right(8), row }).collect())
}

/// Rows that are sorted, with their orders.
#[derive(Debug, Clone)]
pub(crate) struct SortedRows {
    pub(crate) rows: RecordBatch,
    pub(crate) orders: Vec<Order>,
}

impl SortedRows {
    /// Memory held, in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.rows.get_array_memory_size() + self.orders.capacity() * size_of::<Order>()
    }

    /// The rows of these key groups, both included.
    pub(crate) fn of_groups(&self, groups: (u8, u8)) -> SortedRows {
        let start = self.orders.partition_point(|order| order.group() < groups.0);
        let end = self.orders.partition_point(|order| order.group() <= groups.1).max(start);
        if end - start == self.orders.len() {
            return self.clone();
        }
        SortedRows { rows: self.rows.slice(start, end - start), orders: self.orders[start..end].to_vec() }
    }
}

/// Sorts changes, of which the last to each row counts, into bounded pieces: those of these key groups, both included.
pub(crate) fn sort(
    spec: &StateSchema,
    changes: &[RecordBatch],
    groups: (u8, u8),
    limits: Limits,
) -> Result<Vec<SortedRows>> {
    let orders = changes.iter().map(|change| orders(spec, change)).collect::<Result<Vec<_>>>()?;
    let picks = sorted_picks(&orders, groups);
    let sources: Vec<&RecordBatch> = changes.iter().collect();
    let newest = newest_of_each(spec, &sources, picks)?;
    gather(spec, &sources, &newest, limits)
}

/// The rows of these key groups in their order, of equal ones the newest first.
fn sorted_picks(orders: &[Vec<Order>], groups: (u8, u8)) -> Vec<Pick> {
    // One number per row, which sorts several times as fast as what it stands for: the hash of its key, and how many rows come
    // after it.
    let count: usize = orders.iter().map(Vec::len).sum();
    let rows = orders.iter().flatten().enumerate();
    let own = rows.filter(|(_, order)| (groups.0..=groups.1).contains(&order.group()));
    let mut numbers: Vec<u128> =
        own.map(|(row, order)| u128::from(order.key) << 64 | (count - 1 - row) as u128).collect();
    numbers.sort_unstable();
    let mut starts = vec![0];
    starts.extend(orders.iter().scan(0, |end, orders| {
        *end += orders.len();
        Some(*end)
    }));
    let pick = |number: u128| {
        let row = count - 1 - number as u64 as usize;
        let source = starts.partition_point(|start| *start <= row) - 1;
        let row = row - starts[source];
        Pick { order: orders[source][row], source, row }
    };
    let mut picks: Vec<Pick> = numbers.into_iter().map(pick).collect();
    // Few rows share the hash of their key: those of one key, whose order is that of their ids.
    for same in picks.chunk_by_mut(|a, b| a.order.key == b.order.key).filter(|same| same.len() > 1) {
        same.sort_unstable_by_key(|pick| (pick.order, Reverse((pick.source, pick.row))));
    }
    picks
}

/// A row of one of several sources.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pick {
    pub(crate) order: Order,
    pub(crate) source: usize,
    pub(crate) row: usize,
}

/// Of rows that stand in order, of equal ones the newest first: the newest of each.
pub(crate) fn newest_of_each(spec: &StateSchema, sources: &[&RecordBatch], mut picks: Vec<Pick>) -> Result<Vec<Pick>> {
    let is_tied = |at: usize| {
        let same = |other: Option<&Pick>| other.is_some_and(|other| other.order == picks[at].order);
        same(at.checked_sub(1).and_then(|before| picks.get(before))) || same(picks.get(at + 1))
    };
    let tied: Vec<usize> = (0..picks.len()).filter(|at| is_tied(*at)).collect();
    if tied.is_empty() {
        return Ok(picks);
    }
    // Equal hashes are nearly always equal rows; the columns decide.
    let places: Vec<(usize, usize)> = tied.iter().map(|&at| (picks[at].source, picks[at].row)).collect();
    let columns =
        spec.unique_columns().map(|column| column_of(sources, column, &places)).collect::<Result<Vec<_>>>()?;
    let fields = columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
    let rows = RowConverter::new(fields)?.convert_columns(&columns)?;
    let mut kept = vec![true; picks.len()];
    let mut first = 0;
    for (number, &at) in tied.iter().enumerate() {
        if picks[tied[first]].order != picks[at].order {
            first = number;
        }
        kept[at] = !(first..number).any(|newer| rows.row(newer) == rows.row(number));
    }
    let mut kept = kept.into_iter();
    picks.retain(|_| kept.next().unwrap_or(true));
    Ok(picks)
}

/// Picked rows, in bounded pieces.
pub(crate) fn gather(
    spec: &StateSchema,
    sources: &[&RecordBatch],
    picks: &[Pick],
    limits: Limits,
) -> Result<Vec<SortedRows>> {
    let sizes: Vec<RowBytes<'_>> = sources.iter().map(|source| RowBytes::new(source.columns())).collect();
    let sizes = picks.iter().map(|pick| sizes[pick.source].at(pick.row));
    let piece = |range| {
        let picks: &[Pick] = &picks[range];
        let places: Vec<(usize, usize)> = picks.iter().map(|pick| (pick.source, pick.row)).collect();
        let schema = spec.file_schema();
        let columns = 0..schema.fields().len();
        let columns = columns.map(|column| column_of(sources, column, &places)).collect::<Result<Vec<_>>>()?;
        let rows = shrink_rows_to_fit(&RecordBatch::try_new(schema, columns)?)?;
        Ok(SortedRows { rows, orders: picks.iter().map(|pick| pick.order).collect() })
    };
    bounded_ranges(sizes, limits.chunk_rows, limits.chunk_bytes).into_iter().map(piece).collect()
}

fn column_of(sources: &[&RecordBatch], column: usize, places: &[(usize, usize)]) -> Result<ArrayRef> {
    let rows = match sources {
        [only] => {
            let rows = places.iter().map(|(_, row)| *row as u64).collect::<UInt64Array>();
            take(only.column(column), &rows, None)?
        }
        _ => {
            let arrays: Vec<&dyn Array> = sources.iter().map(|source| source.column(column).as_ref()).collect();
            interleave(&arrays, places)?
        }
    };
    // Views say where their text lies. In the order of the rows these numbers rise, and take little room once compressed.
    Ok(match rows.data_type() {
        DataType::Utf8View => Arc::new(rows.as_string_view().gc()),
        DataType::BinaryView => Arc::new(rows.as_binary_view().gc()),
        _ => rows,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use arrow::array::{AsArray, Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Int64Type};

    use super::*;

    /// One that keeps a text per key and id.
    pub(crate) fn spec() -> StateSchema {
        StateSchema {
            operator: "aggregate",
            keys: vec![Arc::new(Field::new("k", DataType::Int64, true))],
            id: vec![Arc::new(Field::new("i", DataType::Int64, true))],
            values: vec![Arc::new(Field::new("v", DataType::Utf8, true))],
            description: vec![],
            wrong_before: vec![],
            eviction_bounds: 1,
        }
    }

    /// Changes to rows: key, id, time and value.
    pub(crate) fn change(removed: bool, rows: &[(i64, i64, i64, &str)]) -> RecordBatch {
        let column = |of: fn(&(i64, i64, i64, &str)) -> i64| -> ArrayRef {
            Arc::new(rows.iter().map(|row| Some(of(row))).collect::<Int64Array>())
        };
        let times: Vec<i64> = rows.iter().map(|row| row.2).collect();
        let values: ArrayRef = Arc::new(rows.iter().map(|row| Some(row.3)).collect::<StringArray>());
        let values = (!removed).then(|| vec![values]);
        spec().change(removed, vec![column(|row| row.0)], vec![column(|row| row.1)], &times, values).unwrap()
    }

    /// Rows as key, id and value; of a removal the value is empty.
    pub(crate) fn listed(rows: &[SortedRows]) -> Vec<(i64, i64, String)> {
        let listed = |rows: &SortedRows| {
            assert!(rows.orders.is_sorted());
            assert_eq!(rows.orders, orders(&spec(), &rows.rows).unwrap());
            let numbers = |column: usize| rows.rows.column(column).as_primitive::<Int64Type>().values().to_vec();
            let texts = rows.rows.column(4).as_string::<i32>();
            let texts: Vec<String> = (0..texts.len()).map(|row| texts.value(row).to_owned()).collect();
            numbers(1).into_iter().zip(numbers(2)).zip(texts).map(|((k, i), v)| (k, i, v)).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = rows.iter().flat_map(listed).collect();
        all.sort();
        all
    }

    #[test]
    fn the_last_change_to_a_row_counts_whatever_its_place() {
        let first = change(false, &[(1, 1, 0, "a"), (2, 1, 0, "b"), (1, 2, 0, "c"), (1, 1, 0, "d")]);
        let second = change(true, &[(2, 1, 0, "")]);
        let third = change(false, &[(3, 1, 0, "e"), (1, 2, 0, "f")]);
        let sorted = sort(&spec(), &[first, second, third], (0, u8::MAX), Limits::default()).unwrap();
        let expected = [(1, 1, "d"), (1, 2, "f"), (2, 1, ""), (3, 1, "e")];
        assert_eq!(listed(&sorted), expected.map(|(k, i, v)| (k, i, v.to_owned())));
    }

    #[test]
    fn pieces_are_bounded_and_in_order() {
        let text = "x".repeat(100);
        let rows: Vec<(i64, i64, i64, &str)> = (0..200).map(|row| (row, 0, 0, text.as_str())).collect();
        let limits = Limits { chunk_rows: 50, chunk_bytes: 2000, ..Limits::default() };
        let sorted = sort(&spec(), &[change(false, &rows)], (0, u8::MAX), limits).unwrap();
        assert!(sorted.len() >= 10);
        let all: Vec<Order> = sorted.iter().flat_map(|rows| rows.orders.clone()).collect();
        assert!(all.is_sorted() && all.len() == 200);
        for rows in &sorted {
            assert!(RowBytes::new(rows.rows.columns()).of_rows(rows.orders.len()) <= 2000);
        }
        let groups = sorted[0].of_groups((1, 3));
        assert!(groups.orders.iter().all(|order| (1..=3).contains(&order.group())));
        assert_eq!(groups.rows.num_rows(), groups.orders.len());
    }
}
