//! How large rows are, and how to cut many of them into bounded ranges.

use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray, OffsetSizeTrait, downcast_dictionary_array};
use arrow::datatypes::DataType;

/// The bytes of a value, where all values of the type have as many.
pub(crate) fn fixed_bytes(of_type: &DataType) -> Option<usize> {
    match of_type {
        DataType::Null => Some(0),
        DataType::Boolean => Some(1),
        DataType::FixedSizeBinary(bytes) => usize::try_from(*bytes).ok(),
        DataType::FixedSizeList(item, count) => Some(fixed_bytes(item.data_type())? * usize::try_from(*count).ok()?),
        DataType::Struct(fields) => fields.iter().map(|field| fixed_bytes(field.data_type())).sum(),
        other => other.primitive_width(),
    }
}

/// The bytes of rows, of which most columns are of fixed width: so few have to be looked at.
#[derive(Debug)]
pub(crate) struct RowBytes<'a> {
    fixed: usize,
    varying: Vec<&'a dyn Array>,
}

impl<'a> RowBytes<'a> {
    pub(crate) fn new(columns: impl IntoIterator<Item = &'a ArrayRef>) -> Self {
        let mut sizes = RowBytes { fixed: 0, varying: vec![] };
        for column in columns {
            match fixed_bytes(column.data_type()) {
                Some(bytes) => sizes.fixed += bytes,
                None => sizes.varying.push(column.as_ref()),
            }
        }
        sizes
    }

    /// The bytes of a row.
    pub(crate) fn at(&self, row: usize) -> usize {
        self.varying.iter().fold(self.fixed, |sum, column| sum + bytes_at(*column, row))
    }

    /// The bytes of so many rows from the first on.
    pub(crate) fn of_rows(&self, rows: usize) -> usize {
        if self.varying.is_empty() { self.fixed * rows } else { (0..rows).map(|row| self.at(row)).sum() }
    }
}

/// The bytes of one value, about: what it adds to the buffers of its array.
pub(crate) fn bytes_at(array: &dyn Array, row: usize) -> usize {
    fn text<O: OffsetSizeTrait>(offsets: &[O], row: usize) -> usize {
        size_of::<O>() + (offsets[row + 1] - offsets[row]).as_usize()
    }
    fn items(values: &ArrayRef, range: Range<usize>) -> usize {
        match fixed_bytes(values.data_type()) {
            Some(bytes) => bytes * range.len(),
            None => range.map(|row| bytes_at(values.as_ref(), row)).sum(),
        }
    }
    fn list<O: OffsetSizeTrait>(offsets: &[O], values: &ArrayRef, row: usize) -> usize {
        size_of::<O>() + items(values, offsets[row].as_usize()..offsets[row + 1].as_usize())
    }
    fn list_view<O: OffsetSizeTrait>(offsets: &[O], sizes: &[O], values: &ArrayRef, row: usize) -> usize {
        let start = offsets[row].as_usize();
        2 * size_of::<O>() + items(values, start..start + sizes[row].as_usize())
    }
    // The lower half of a view's first eight bytes is the length; what is longer than twelve lies elsewhere.
    let view = |view: u128| 16 + if view as u32 > 12 { view as u32 as usize } else { 0 };
    match array.data_type() {
        DataType::Utf8 => text(array.as_string::<i32>().value_offsets(), row),
        DataType::LargeUtf8 => text(array.as_string::<i64>().value_offsets(), row),
        DataType::Binary => text(array.as_binary::<i32>().value_offsets(), row),
        DataType::LargeBinary => text(array.as_binary::<i64>().value_offsets(), row),
        DataType::Utf8View => view(array.as_string_view().views()[row]),
        DataType::BinaryView => view(array.as_binary_view().views()[row]),
        DataType::List(_) => list(array.as_list::<i32>().value_offsets(), array.as_list::<i32>().values(), row),
        DataType::LargeList(_) => list(array.as_list::<i64>().value_offsets(), array.as_list::<i64>().values(), row),
        DataType::Map(_, _) => {
            let maps = array.as_map();
            let range = maps.value_offsets()[row] as usize..maps.value_offsets()[row + 1] as usize;
            size_of::<i32>() + items(maps.keys(), range.clone()) + items(maps.values(), range)
        }
        DataType::ListView(_) => {
            let lists = array.as_list_view::<i32>();
            list_view(lists.value_offsets(), lists.value_sizes(), lists.values(), row)
        }
        DataType::LargeListView(_) => {
            let lists = array.as_list_view::<i64>();
            list_view(lists.value_offsets(), lists.value_sizes(), lists.values(), row)
        }
        DataType::Struct(_) => array.as_struct().columns().iter().map(|column| bytes_at(column.as_ref(), row)).sum(),
        DataType::FixedSizeList(_, count) => {
            let (count, lists) = (usize::try_from(*count).unwrap_or(0), array.as_fixed_size_list());
            items(lists.values(), row * count..(row + 1) * count)
        }
        // One code is read: what arrow has for all of them at once panics where there are no values, and takes as long as all.
        DataType::Dictionary(_, _) => downcast_dictionary_array!(
            array => 8 + array.key(row).map_or(0, |code| bytes_at(array.values().as_ref(), code)),
            _ => 8
        ),
        other => fixed_bytes(other).unwrap_or(16),
    }
}

/// Cuts rows, whose bytes are given, into ranges of at most so many rows and bytes each. A row that is larger by itself is a
/// range of its own.
pub(crate) fn bounded_ranges(sizes: impl IntoIterator<Item = usize>, rows: usize, bytes: usize) -> Vec<Range<usize>> {
    let mut found = vec![];
    let (mut start, mut end, mut held) = (0, 0, 0_usize);
    for size in sizes {
        if end > start && (end - start >= rows.max(1) || held.saturating_add(size) > bytes) {
            found.push(start..end);
            (start, held) = (end, 0);
        }
        end += 1;
        held = held.saturating_add(size);
    }
    if end > start {
        found.push(start..end);
    }
    found
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        DictionaryArray, Int8Array, Int32Array, ListArray, StringArray, StringViewArray, new_null_array,
    };
    use arrow::datatypes::Int32Type;

    use super::*;

    #[test]
    fn rows_are_cut_by_number_and_by_bytes() {
        assert!(bounded_ranges([], 3, 10).is_empty());
        assert_eq!(bounded_ranges([1; 7], 3, 10), [0..3, 3..6, 6..7]);
        assert_eq!(bounded_ranges([4, 4, 4, 50, 1, 1], 100, 10), [0..2, 2..3, 3..4, 4..6]);
    }

    #[test]
    fn the_bytes_of_a_row_are_those_of_its_values() {
        let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1, 2]));
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["abc", ""]));
        let views: ArrayRef = Arc::new(StringViewArray::from(vec!["short", "longer than twelve bytes"]));
        let lists: ArrayRef =
            Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), Some(2)]), None]));
        let sizes = RowBytes::new([&numbers, &texts, &views, &lists]);
        assert_eq!((sizes.at(0), sizes.at(1)), (4 + 7 + 16 + 12, 4 + 4 + 40 + 4));
        let codes: Int8Array = [Some(0), None].into_iter().collect();
        let coded: ArrayRef = Arc::new(DictionaryArray::new(codes, Arc::new(StringArray::from(vec!["abc"]))));
        let without_values: ArrayRef = new_null_array(coded.data_type(), 2);
        let sizes = RowBytes::new([&coded, &without_values]);
        assert_eq!((sizes.at(0), sizes.at(1)), (8 + 7 + 8, 8 + 8));
        let nested: ArrayRef = Arc::new(arrow::array::StructArray::from(vec![(
            Arc::new(arrow::datatypes::Field::new("t", DataType::Utf8, true)),
            texts,
        )]));
        assert_eq!(RowBytes::new([&nested]).at(0), 7);
    }
}
