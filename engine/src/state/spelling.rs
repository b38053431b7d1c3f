//! One spelling for every value that is kept, whatever array it came in.
//!
//! | what comes | what is kept |
//! |---|---|
//! | dictionaries and run-end encoded values, at any depth | the values themselves ([`plain`]) |
//! | `-0.0` and the many NaNs of a key | `0.0` and one NaN ([`normalize_keys`]) |
//! | a map of a key, its entries in any order | its entries in the order of their keys |
//! | views into text that few rows refer to | views into that text alone ([`shrink_to_fit`]) |

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, FixedSizeListArray, GenericByteViewArray, GenericListArray,
    GenericListViewArray, MapArray, OffsetSizeTrait, StructArray, UInt32Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::kernels::arity::unary;
use arrow::compute::kernels::cast::cast;
use arrow::compute::take;
use arrow::datatypes::{
    BinaryViewType, ByteViewType, DataType, Field, FieldRef, Float16Type, Float32Type, Float64Type, StringViewType,
};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use arrow::row::{RowConverter, SortField};
use datafusion::common::internal_err;
use datafusion::error::Result;

use super::key_hash::canonical;

/// The type of values as they are kept: without dictionaries and runs, at any depth.
pub(crate) fn plain_type(of_type: &DataType) -> DataType {
    let within = |field: &FieldRef| Arc::new(field.as_ref().clone().with_data_type(plain_type(field.data_type())));
    match of_type {
        DataType::Dictionary(_, values) => plain_type(values),
        DataType::RunEndEncoded(_, values) => plain_type(values.data_type()),
        DataType::List(item) => DataType::List(within(item)),
        DataType::LargeList(item) => DataType::LargeList(within(item)),
        DataType::ListView(item) => DataType::ListView(within(item)),
        DataType::LargeListView(item) => DataType::LargeListView(within(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(within(item), *size),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(within).collect()),
        DataType::Map(entries, sorted) => DataType::Map(within(entries), *sorted),
        other => other.clone(),
    }
}

/// The same values in their [plain type](plain_type).
pub(crate) fn plain(array: &ArrayRef) -> Result<ArrayRef> {
    let of_type = array.data_type();
    if plain_type(of_type) == *of_type {
        return Ok(Arc::clone(array));
    }
    match of_type {
        DataType::Dictionary(_, values) => plain(&cast(array, values)?),
        DataType::RunEndEncoded(_, values) => plain(&cast(array, values.data_type())?),
        _ => with_children(array, &plain),
    }
}

/// Plain values in the type that somebody else goes by.
pub(crate) fn in_type(array: &ArrayRef, of_type: &DataType) -> Result<ArrayRef> {
    Ok(if array.data_type() == of_type { Arc::clone(array) } else { cast(array, of_type)? })
}

/// Keys in which equal values are the same bytes.
pub(crate) fn normalize_keys(keys: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
    keys.iter().map(|key| spelled(&plain(key)?)).collect()
}

/// Whether values of a type may be equal and yet differ in their bytes.
fn has_spellings(of_type: &DataType) -> bool {
    of_type.is_floating()
        || matches!(of_type, DataType::Map(_, _))
        || children(of_type).iter().any(|child| has_spellings(child.data_type()))
}

fn spelled(array: &ArrayRef) -> Result<ArrayRef> {
    fn numbers<T: ArrowPrimitiveType>(array: &ArrayRef, one: impl Fn(T::Native) -> T::Native) -> ArrayRef {
        Arc::new(unary::<_, _, T>(array.as_primitive::<T>(), one))
    }
    if !has_spellings(array.data_type()) {
        return Ok(Arc::clone(array));
    }
    Ok(match array.data_type() {
        DataType::Float64 => numbers::<Float64Type>(array, canonical),
        DataType::Float32 => numbers::<Float32Type>(array, |v| canonical(v.into()) as f32),
        DataType::Float16 => {
            type F16 = <Float16Type as ArrowPrimitiveType>::Native;
            numbers::<Float16Type>(array, |v| F16::from_f64(canonical(v.to_f64())))
        }
        DataType::Map(_, _) => with_children(&by_key(array.as_map())?, &spelled)?,
        _ => with_children(array, &spelled)?,
    })
}

/// The same maps, the entries of each in the order of their keys.
fn by_key(maps: &MapArray) -> Result<ArrayRef> {
    let keys = spelled(maps.keys())?;
    let keys = RowConverter::new(vec![SortField::new(keys.data_type().clone())])?.convert_columns(&[keys])?;
    let mut order: Vec<u32> = (0..maps.entries().len() as u32).collect();
    for bounds in maps.value_offsets().windows(2) {
        if let [first, end] = bounds
            && let Some(entries) = order.get_mut(*first as usize..*end as usize)
        {
            entries.sort_by(|a, b| keys.row(*a as usize).cmp(&keys.row(*b as usize)));
        }
    }
    let entries: ArrayRef = Arc::new(maps.entries().clone());
    let sorted = take(&entries, &UInt32Array::from(order), None)?;
    with_children(&(Arc::new(maps.clone()) as ArrayRef), &|_| Ok(Arc::clone(&sorted)))
}

/// The same values without text that nothing refers to: views share the buffers of what they were taken from, and
/// dictionaries their values.
pub(crate) fn shrink_to_fit(array: &ArrayRef) -> Result<ArrayRef> {
    Ok(match array.data_type() {
        DataType::Utf8View => views::<StringViewType>(array),
        DataType::BinaryView => views::<BinaryViewType>(array),
        // A dictionary of more values than rows is made anew from those that occur.
        coded @ DataType::Dictionary(_, values) if array.as_any_dictionary().values().len() > array.len() => {
            cast(&shrink_to_fit(&cast(array, values)?)?, coded)?
        }
        nested if !children(nested).is_empty() => with_children(array, &shrink_to_fit)?,
        _ => Arc::clone(array),
    })
}

fn views<T: ByteViewType>(array: &ArrayRef) -> ArrayRef {
    let views: &GenericByteViewArray<T> = array.as_byte_view();
    let used = views.total_buffer_bytes_used();
    let text: usize = views.data_buffers().iter().map(|buffer| buffer.len()).sum();
    let memory: usize = views.data_buffers().iter().map(|buffer| buffer.capacity()).sum();
    // Text is written, memory is held; of the latter there is always some to spare. Buffers of a few bytes each cost more
    // than what is in them.
    let buffers = views.data_buffers().len();
    let has_slack = text > used || memory > used + used / 2 + 1024 || buffers > 1 && used < buffers * 1024;
    if has_slack { Arc::new(views.gc()) } else { Arc::clone(array) }
}

/// The same rows [without slack](shrink_to_fit).
pub(crate) fn shrink_rows_to_fit(rows: &RecordBatch) -> Result<RecordBatch> {
    let columns = rows.columns().iter().map(shrink_to_fit).collect::<Result<_>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    Ok(RecordBatch::try_new_with_options(rows.schema(), columns, &options)?)
}

/// The fields that a type is made of.
fn children(of_type: &DataType) -> Vec<&FieldRef> {
    match of_type {
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => vec![item],
        DataType::Struct(fields) => fields.iter().collect(),
        _ => vec![],
    }
}

/// The same structs, lists or maps with other values within, whose types may be others.
fn with_children(array: &ArrayRef, change: &dyn Fn(&ArrayRef) -> Result<ArrayRef>) -> Result<ArrayRef> {
    let nulls = array.nulls().cloned();
    Ok(match array.data_type() {
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns().iter().map(change).collect::<Result<Vec<_>>>()?;
            let fields = fields.iter().zip(&columns).map(|(field, column)| typed(field, column)).collect();
            Arc::new(StructArray::try_new_with_length(fields, columns, nulls, array.len())?)
        }
        DataType::List(item) => list::<i32>(array, item, change)?,
        DataType::LargeList(item) => list::<i64>(array, item, change)?,
        DataType::ListView(item) => list_view::<i32>(array, item, change)?,
        DataType::LargeListView(item) => list_view::<i64>(array, item, change)?,
        DataType::FixedSizeList(item, size) if *size > 0 => {
            let values = change(array.as_fixed_size_list().values())?;
            Arc::new(FixedSizeListArray::try_new(typed(item, &values), *size, values, nulls)?)
        }
        DataType::Map(entries, sorted) => {
            let maps = array.as_map();
            let (offsets, all) = narrowed(maps.offsets(), &(Arc::new(maps.entries().clone()) as ArrayRef));
            let changed = change(&all)?;
            let field = typed(entries, &changed);
            Arc::new(MapArray::try_new(field, offsets, changed.as_struct().clone(), nulls, *sorted)?)
        }
        DataType::FixedSizeList(_, _) => Arc::clone(array),
        other => return internal_err!("{other} has no values within"),
    })
}

fn typed(field: &FieldRef, values: &ArrayRef) -> FieldRef {
    if field.data_type() == values.data_type() {
        return Arc::clone(field);
    }
    Arc::new(Field::clone(field).with_data_type(values.data_type().clone()))
}

/// Offsets from zero, and the values they refer to alone.
fn narrowed<O: OffsetSizeTrait>(offsets: &OffsetBuffer<O>, values: &ArrayRef) -> (OffsetBuffer<O>, ArrayRef) {
    let (first, end) = match (offsets.first(), offsets.last()) {
        (Some(first), Some(end)) => (*first, *end),
        _ => return (offsets.clone(), Arc::clone(values)),
    };
    if first == O::usize_as(0) && end.as_usize() == values.len() {
        return (offsets.clone(), Arc::clone(values));
    }
    let from_zero: Vec<O> = offsets.iter().map(|offset| *offset - first).collect();
    (OffsetBuffer::new(from_zero.into()), values.slice(first.as_usize(), end.as_usize() - first.as_usize()))
}

fn list<O: OffsetSizeTrait>(
    array: &ArrayRef,
    item: &FieldRef,
    change: &dyn Fn(&ArrayRef) -> Result<ArrayRef>,
) -> Result<ArrayRef> {
    let lists = array.as_list::<O>();
    let (offsets, values) = narrowed(lists.offsets(), lists.values());
    let values = change(&values)?;
    Ok(Arc::new(GenericListArray::<O>::try_new(typed(item, &values), offsets, values, array.nulls().cloned())?))
}

fn list_view<O: OffsetSizeTrait>(
    array: &ArrayRef,
    item: &FieldRef,
    change: &dyn Fn(&ArrayRef) -> Result<ArrayRef>,
) -> Result<ArrayRef> {
    let lists = array.as_list_view::<O>();
    let values = change(lists.values())?;
    let (offsets, sizes, nulls) = (lists.offsets().clone(), lists.sizes().clone(), array.nulls().cloned());
    Ok(Arc::new(GenericListViewArray::<O>::try_new(typed(item, &values), offsets, sizes, values, nulls)?))
}

#[cfg(test)]
mod tests;
