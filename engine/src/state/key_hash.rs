//! Which key group a row belongs to. This never changes: state on disk depends on it.
//!
//! Rows of one key must meet in one partition, in every release and on every machine, because what is remembered of them lies
//! in files. So this hash is ours and fixed: nobody's library may change it. For the key columns c₁ … cₙ of a row:
//!
//! ```text
//! h₀ = 0        hᵢ = XXH64(bytes of the value in cᵢ, seed hᵢ₋₁)        key group = hₙ mod 256
//! ```
//!
//! | type | bytes of a value |
//! |---|---|
//! | integers of all widths, dates, times, timestamps, durations | the number as 8 bytes, little endian, two's complement |
//! | decimals | the unscaled number as 16 bytes (256-bit: 32), little endian |
//! | floats of all widths | as a 64-bit float, little endian; `-0.0` as `0.0`, every NaN as one |
//! | booleans | one byte, 0 or 1 |
//! | texts and binaries of all widths | their bytes |
//! | structs | hashed field by field, like columns |
//! | lists of all kinds | how many values, as 8 bytes, little endian; then value by value, like columns |
//! | maps | as the list of their entries, structs of key and value, in the order of the keys |
//! | dictionaries, runs | as the values they stand for |
//! | null | none, with the seed's bits inverted |
//!
//! Widening a key's type (32 to 64 bits, say) moves no row to another group. Other types (intervals, unions) cannot be keys.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, GenericListArray, ListArray, OffsetSizeTrait, UInt64Array};
use arrow::compute::kernels::cast::{can_cast_types, cast};
use arrow::compute::take;
use arrow::datatypes::{
    DECIMAL128_MAX_PRECISION, DataType, Decimal128Type, Decimal256Type, Field, Float64Type, Int64Type, UInt64Type,
};
use datafusion::common::{exec_err, not_impl_err};
use datafusion::error::Result;
use twox_hash::XxHash64;

use super::spelling::{normalize_keys, plain};
use crate::error::Error;

/// Into how many groups the keys of a query are divided: the greatest number of partitions that do any work.
pub(crate) const KEY_GROUPS: usize = 256;

/// The hash of each row's key; see the [module](self).
pub(crate) fn hash_keys(columns: &[ArrayRef], rows: usize) -> Result<Vec<u64>> {
    let mut hashes = vec![0; rows];
    hash_further(columns, &mut hashes)?;
    Ok(hashes)
}

/// The same for further columns of rows whose first ones have these hashes.
pub(crate) fn hash_further(columns: &[ArrayRef], hashes: &mut [u64]) -> Result<()> {
    columns.iter().try_for_each(|column| hash_column(column, hashes))
}

/// The partition, of so many, that owns a key: each owns an even stretch of key groups.
pub(crate) fn partition_of(hash: u64, partitions: usize) -> usize {
    (hash % KEY_GROUPS as u64) as usize * partitions / KEY_GROUPS
}

/// Whether values of this type can be keys.
pub(crate) fn can_be_key(data_type: &DataType) -> bool {
    match data_type {
        DataType::Struct(fields) => fields.iter().all(|field| can_be_key(field.data_type())),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            can_be_key(item.data_type())
        }
        DataType::ListView(item) | DataType::LargeListView(item) => can_be_key(item.data_type()),
        DataType::Map(entries, _) => can_be_key(entries.data_type()),
        DataType::Dictionary(_, values) => can_be_key(values),
        DataType::RunEndEncoded(_, values) => can_be_key(values.data_type()),
        other => {
            other.is_integer()
                || other.is_floating()
                || other.is_temporal() && !matches!(other, DataType::Interval(_))
                || matches!(
                    other,
                    DataType::Null
                        | DataType::Boolean
                        | DataType::Utf8
                        | DataType::LargeUtf8
                        | DataType::Utf8View
                        | DataType::Binary
                        | DataType::LargeBinary
                        | DataType::BinaryView
                        | DataType::FixedSizeBinary(_)
                        | DataType::Decimal32(_, _)
                        | DataType::Decimal64(_, _)
                        | DataType::Decimal128(_, _)
                        | DataType::Decimal256(_, _)
                )
        }
    }
}

/// Says that values of this column cannot be keys, and what to do: not every type has a cast.
pub(crate) fn not_a_key(key: &Field) -> Error {
    let (name, data_type) = (key.name(), key.data_type());
    let hint = if can_cast_types(data_type, &DataType::Utf8) {
        "cast it to text first"
    } else {
        "go by the parts of it that make the key, each a text, a number, a time or a boolean"
    };
    Error::unsupported(format!("`{name}` is of type {data_type}, whose values cannot be keys of a stream's state"))
        .with_hint(hint)
}

fn hash_column(column: &ArrayRef, hashes: &mut [u64]) -> Result<()> {
    if column.len() != hashes.len() {
        return exec_err!("{} keys for {} rows", column.len(), hashes.len());
    }
    match column.data_type() {
        DataType::Null => hashes.iter_mut().for_each(|hash| *hash = of_null(*hash)),
        DataType::Boolean => {
            let values = column.as_boolean();
            fold(column, hashes, |row, seed| XxHash64::oneshot(seed, &[u8::from(values.value(row))]));
        }
        DataType::Utf8 => {
            let values = column.as_string::<i32>();
            fold(column, hashes, |row, seed| XxHash64::oneshot(seed, values.value(row).as_bytes()));
        }
        DataType::Utf8View => {
            let values = column.as_string_view();
            fold(column, hashes, |row, seed| XxHash64::oneshot(seed, values.value(row).as_bytes()));
        }
        DataType::Decimal128(_, _) => {
            let values = column.as_primitive::<Decimal128Type>();
            fold(column, hashes, |row, seed| XxHash64::oneshot(seed, &values.value(row).to_le_bytes()));
        }
        DataType::Decimal32(_, scale) | DataType::Decimal64(_, scale) => {
            hash_column(&cast(column, &DataType::Decimal128(DECIMAL128_MAX_PRECISION, *scale))?, hashes)?;
        }
        DataType::Decimal256(_, _) => {
            let values = column.as_primitive::<Decimal256Type>();
            fold(column, hashes, |row, seed| XxHash64::oneshot(seed, &values.value(row).to_le_bytes()));
        }
        DataType::UInt64 => {
            let values = column.as_primitive::<UInt64Type>();
            fold(column, hashes, |row, seed| XxHash64::oneshot(seed, &values.value(row).to_le_bytes()));
        }
        DataType::Struct(_) => {
            let fields = column.as_struct();
            let seeds = hashes.to_vec();
            for field in fields.columns() {
                hash_column(field, hashes)?;
            }
            for (row, seed) in seeds.into_iter().enumerate().filter(|(row, _)| fields.is_null(*row)) {
                hashes[row] = of_null(seed);
            }
        }
        DataType::List(_) => hash_lists(column.as_list::<i32>(), hashes)?,
        DataType::LargeList(_) => hash_lists(column.as_list::<i64>(), hashes)?,
        DataType::ListView(item) | DataType::LargeListView(item) | DataType::FixedSizeList(item, _) => {
            hash_column(&cast(column, &DataType::LargeList(Arc::clone(item)))?, hashes)?;
        }
        DataType::Map(_, _) => {
            let spelled = normalize_keys(std::slice::from_ref(column))?;
            for maps in spelled.iter().filter_map(|maps| maps.as_map_opt()) {
                let (entries, offsets) = (Arc::new(maps.entries().clone()), maps.offsets().clone());
                let item = Arc::new(Field::new_list_field(entries.data_type().clone(), false));
                hash_lists(&ListArray::try_new(item, offsets, entries, maps.nulls().cloned())?, hashes)?;
            }
        }
        DataType::Dictionary(_, _) | DataType::RunEndEncoded(_, _) => hash_column(&plain(column)?, hashes)?,
        DataType::LargeUtf8 => hash_column(&cast(column, &DataType::Utf8View)?, hashes)?,
        DataType::Binary | DataType::LargeBinary | DataType::FixedSizeBinary(_) => {
            hash_column(&cast(column, &DataType::BinaryView)?, hashes)?;
        }
        DataType::BinaryView => {
            let values = column.as_binary_view();
            fold(column, hashes, |row, seed| XxHash64::oneshot(seed, values.value(row)));
        }
        other if other.is_floating() => {
            let values = cast(column, &DataType::Float64)?;
            let values = values.as_primitive::<Float64Type>();
            fold(column, hashes, |row, seed| XxHash64::oneshot(seed, &canonical(values.value(row)).to_le_bytes()));
        }
        other if can_be_key(other) => {
            // A 32-bit time or date has no cast to 64 bits of its own kind: the number is what counts.
            let narrow = matches!(other, DataType::Date32 | DataType::Time32(_));
            let values = if narrow {
                cast(&cast(column, &DataType::Int32)?, &DataType::Int64)?
            } else {
                cast(column, &DataType::Int64)?
            };
            let values = values.as_primitive::<Int64Type>();
            fold(column, hashes, |row, seed| XxHash64::oneshot(seed, &values.value(row).to_le_bytes()));
        }
        other => return not_impl_err!("values of type {other} cannot be keys of a stream's state"),
    }
    Ok(())
}

/// Lists: value by value, the first ones of all lists together, then the second ones, and so on.
fn hash_lists<O: OffsetSizeTrait>(lists: &GenericListArray<O>, hashes: &mut [u64]) -> Result<()> {
    let bounds: Vec<(usize, usize)> =
        lists.value_offsets().windows(2).map(|pair| (pair[0].as_usize(), pair[1].as_usize())).collect();
    let mut rows: Vec<usize> = vec![];
    for (row, seed) in hashes.iter_mut().enumerate() {
        if lists.is_null(row) {
            *seed = of_null(*seed);
        } else {
            let (first, end) = bounds[row];
            *seed = XxHash64::oneshot(*seed, &((end - first) as u64).to_le_bytes());
            rows.push(row);
        }
    }
    for place in 0.. {
        rows.retain(|&row| bounds[row].0 + place < bounds[row].1);
        if rows.is_empty() {
            return Ok(());
        }
        let at: UInt64Array = rows.iter().map(|&row| Some((bounds[row].0 + place) as u64)).collect();
        let mut own: Vec<u64> = rows.iter().map(|&row| hashes[row]).collect();
        hash_column(&take(lists.values(), &at, None)?, &mut own)?;
        rows.iter().zip(own).for_each(|(&row, hash)| hashes[row] = hash);
    }
    Ok(())
}

fn fold(column: &ArrayRef, hashes: &mut [u64], hash: impl Fn(usize, u64) -> u64) {
    match column.nulls() {
        None => hashes.iter_mut().enumerate().for_each(|(row, seed)| *seed = hash(row, *seed)),
        Some(nulls) => hashes.iter_mut().enumerate().for_each(|(row, seed)| {
            *seed = if nulls.is_valid(row) { hash(row, *seed) } else { of_null(*seed) };
        }),
    }
}

fn of_null(seed: u64) -> u64 {
    XxHash64::oneshot(!seed, &[])
}

/// One spelling for each number: `-0.0` is `0.0`, and there is one NaN.
pub(crate) fn canonical(value: f64) -> f64 {
    if value == 0.0 {
        0.0
    } else if value.is_nan() {
        f64::NAN
    } else {
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{
        BooleanArray, Date32Array, Float32Array, Float64Array, Int32Array, Int64Array, StringArray, StringViewArray,
        StructArray, TimestampMicrosecondArray,
    };

    fn hashes(columns: &[ArrayRef]) -> Vec<u64> {
        hash_keys(columns, columns.first().map_or(0, |c| c.len())).unwrap()
    }

    /// These values are part of the format of the checkpoint: they may never change. They were computed with another
    /// implementation of XXH64.
    #[test]
    fn golden_values() {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(0), Some(1), Some(-1), None]));
        let texts: ArrayRef = Arc::new(StringArray::from(vec![Some(""), Some("a"), Some("Tidewater"), None]));
        let floats: ArrayRef = Arc::new(Float64Array::from(vec![Some(0.0), Some(1.5), Some(f64::NAN), None]));
        let flags: ArrayRef = Arc::new(BooleanArray::from(vec![Some(false), Some(true), None, None]));
        assert_eq!(hashes(&[Arc::clone(&numbers)]), GOLDEN_NUMBERS);
        assert_eq!(hashes(&[Arc::clone(&texts)]), GOLDEN_TEXTS);
        assert_eq!(hashes(&[Arc::clone(&floats)]), GOLDEN_FLOATS);
        assert_eq!(hashes(&[Arc::clone(&flags)]), GOLDEN_FLAGS);
        assert_eq!(hashes(&[numbers, texts, floats, flags]), GOLDEN_ALL);
    }

    const GOLDEN_NUMBERS: [u64; 4] = [0x34c96acdcadb1bbb, 0x9f29cb17a2a49995, 0x85d136adb773c6c9, 0x298f4c84b24f5380];
    const GOLDEN_TEXTS: [u64; 4] = [0xef46db3751d8e999, 0xd24ec4f1a98c6e5b, 0xb7c80592f133697a, 0x298f4c84b24f5380];
    const GOLDEN_FLOATS: [u64; 4] = [0x34c96acdcadb1bbb, 0x49f7b96b6b5ccaf9, 0xe9adb09fee122aac, 0x298f4c84b24f5380];
    const GOLDEN_FLAGS: [u64; 4] = [0xe934a84adb052768, 0x8a4127811b21e730, 0x298f4c84b24f5380, 0x298f4c84b24f5380];
    const GOLDEN_ALL: [u64; 4] = [0xa3c968260f04852e, 0xa10ffe44c7f8bfe4, 0xc0023492c331d956, 0x8870682fa7eb8fc6];

    #[test]
    fn the_width_of_a_type_does_not_matter() {
        let narrow: ArrayRef = Arc::new(Int32Array::from(vec![Some(7), None, Some(-3)]));
        let wide: ArrayRef = Arc::new(Int64Array::from(vec![Some(7), None, Some(-3)]));
        let time: ArrayRef =
            Arc::new(TimestampMicrosecondArray::from(vec![Some(7), None, Some(-3)]).with_timezone("UTC"));
        let day: ArrayRef = Arc::new(Date32Array::from(vec![Some(7), None, Some(-3)]));
        let expected = hashes(&[wide]);
        for same in [narrow, time, day] {
            assert_eq!(hashes(&[same]), expected);
        }
        let text: ArrayRef = Arc::new(StringArray::from(vec!["x", "a text longer than twelve bytes"]));
        let view: ArrayRef = Arc::new(StringViewArray::from(vec!["x", "a text longer than twelve bytes"]));
        assert_eq!(hashes(&[text]), hashes(&[view]));
        let narrow: ArrayRef = Arc::new(Float32Array::from(vec![1.5, -0.0]));
        let wide: ArrayRef = Arc::new(Float64Array::from(vec![1.5, 0.0]));
        assert_eq!(hashes(&[narrow]), hashes(&[wide]));
    }

    #[test]
    fn a_struct_is_its_fields_and_a_null_struct_is_null() {
        let (a, b): (ArrayRef, ArrayRef) =
            (Arc::new(Int64Array::from(vec![1, 2])), Arc::new(StringArray::from(vec!["x", "y"])));
        let fields = vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Utf8, true)];
        let nulls = arrow::buffer::NullBuffer::from(vec![true, false]);
        let both: ArrayRef =
            Arc::new(StructArray::try_new(fields.into(), vec![Arc::clone(&a), Arc::clone(&b)], Some(nulls)).unwrap());
        let found = hashes(&[both]);
        assert_eq!(found[0], hashes(&[a, b])[0]);
        assert_eq!(found[1], of_null(0));
    }

    #[test]
    fn lists_maps_and_dictionaries_are_their_values() {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3, 4]));
        let item = Arc::new(Field::new_list_field(DataType::Int64, true));
        let offsets = arrow::buffer::OffsetBuffer::from_lengths([2, 0, 2]);
        let nulls = Some(arrow::buffer::NullBuffer::from(vec![true, true, false]));
        let lists: ArrayRef = Arc::new(ListArray::try_new(item, offsets, numbers, nulls).unwrap());
        let length = |count: u64, seed| XxHash64::oneshot(seed, &count.to_le_bytes());
        let number = |value: i64, seed| XxHash64::oneshot(seed, &value.to_le_bytes());
        let expected = [number(2, number(1, length(2, 0))), length(0, 0), of_null(0)];
        assert_eq!(hashes(&[Arc::clone(&lists)]), expected);
        let large = cast(&lists, &DataType::LargeList(Arc::new(Field::new_list_field(DataType::Int64, true)))).unwrap();
        assert_eq!(hashes(&[large]), expected);
        let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("a")]));
        let coded = DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8));
        assert_eq!(hashes(&[cast(&texts, &coded).unwrap()]), hashes(&[texts]));
        let wide: ArrayRef = Arc::new(arrow::array::Decimal128Array::from(vec![Some(12_345), None]));
        let wide = cast(&wide, &DataType::Decimal128(38, 0)).unwrap();
        for narrow in [DataType::Decimal32(9, 0), DataType::Decimal64(18, 0)] {
            assert_eq!(hashes(&[cast(&wide, &narrow).unwrap()]), hashes(&[Arc::clone(&wide)]));
        }
    }

    #[test]
    fn partitions_own_even_stretches_of_groups() {
        for partitions in [1, 2, 3, 5, 8, 256] {
            let mut groups = vec![0; partitions];
            (0..256).for_each(|group| groups[partition_of(group, partitions)] += 1);
            let (least, most) = (groups.iter().min().unwrap(), groups.iter().max().unwrap());
            assert!(most - least <= 1, "{groups:?}");
        }
    }
}
