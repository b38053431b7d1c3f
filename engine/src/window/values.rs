//! What the functions of windows compute, column by column.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, PrimitiveArray, StructArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::kernels::cast::cast;
use arrow::datatypes::{
    DataType, Field, Fields, IntervalMonthDayNanoType, IntervalUnit, TimeUnit, TimestampMicrosecondType,
    TimestampNanosecondType,
};
use datafusion::common::internal_err;
use datafusion::error::Result;
use datafusion::logical_expr::ColumnarValue;

use super::WindowSpec;
use super::spec::{gap_us, interval_us, text_us};

/// Times in µs, of no zone.
pub(crate) type Micros = PrimitiveArray<TimestampMicrosecondType>;

fn window_fields(bound: &DataType) -> Fields {
    Fields::from(vec![Field::new("start", bound.clone(), true), Field::new("end", bound.clone(), true)])
}

/// The type of a window with such bounds.
pub(super) fn window_type(bound: DataType) -> DataType {
    DataType::Struct(window_fields(&bound))
}

/// The windows between these starts and ends; null where either is.
pub(crate) fn between(bound: &DataType, start: Micros, end: Micros) -> Result<ArrayRef> {
    let nulls = NullBuffer::union(start.nulls(), end.nulls());
    // Whoever takes a bound out of a window does not look at the window's own nulls.
    let masked = |bounds: Micros| Micros::try_new(bounds.values().clone(), nulls.clone());
    let bounds: Vec<ArrayRef> = vec![
        Arc::new(masked(start)?.with_data_type(bound.clone())),
        Arc::new(masked(end)?.with_data_type(bound.clone())),
    ];
    Ok(Arc::new(StructArray::try_new(window_fields(bound), bounds, nulls)?))
}

/// The times of a column in µs, rounded down; of a window, one µs before its end.
pub(super) fn micros(time: &ArrayRef) -> Result<Micros> {
    match time.data_type() {
        DataType::Struct(_) => {
            let window = time.as_struct();
            let Some(end) = window.column_by_name("end") else { return internal_err!("a window without end") };
            let end = micros(end)?;
            let nulls = NullBuffer::union(window.nulls(), end.nulls());
            Ok(Micros::try_new(end.values().iter().map(|us| us.saturating_sub(1)).collect(), nulls)?)
        }
        // DataFusion's cast rounds towards 1970.
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            Ok(time.as_primitive::<TimestampNanosecondType>().unary(|ns| ns.div_euclid(1000)))
        }
        _ => {
            let micros = cast(time, &DataType::Timestamp(TimeUnit::Microsecond, None))?;
            Ok(micros.as_primitive::<TimestampMicrosecondType>().clone())
        }
    }
}

/// The starts of all windows that hold each time.
pub(super) fn starts(bound: DataType, time: &Micros, spec: WindowSpec) -> Result<ListArray> {
    let starts_of = |us: Option<i64>| us.into_iter().flat_map(move |us| spec.starts(us));
    let lengths: Vec<usize> = time.iter().map(|us| starts_of(us).count()).collect();
    let values: Micros = time.iter().flat_map(starts_of).map(Some).collect();
    let item = Arc::new(Field::new_list_field(bound.clone(), true));
    let offsets = OffsetBuffer::from_lengths(lengths);
    Ok(ListArray::try_new(item, offsets, Arc::new(values.with_data_type(bound)), time.nulls().cloned())?)
}

/// What each row brings to its session.
pub(super) fn session(bound: &DataType, time: &Micros, gap: Option<&ColumnarValue>) -> Result<ArrayRef> {
    let end: Micros = match gap {
        None => return internal_err!("a session without gap"),
        // One that the query spells was looked at when it was planned.
        Some(ColumnarValue::Scalar(gap)) => match gap_us(gap) {
            Ok(gap_us) => time.unary(|us| us.saturating_add(gap_us)),
            Err(_) => Micros::new_null(time.len()),
        },
        Some(ColumnarValue::Array(gap)) => {
            let ends =
                time.iter().zip(gaps_us(gap)?).map(|(us, gap)| Some(us?.saturating_add(gap.filter(|us| *us > 0)?)));
            ends.collect()
        }
    };
    between(bound, time.clone(), end)
}

/// The gap of each row; `None` where it has no fixed length. (The value of a row does not end the query.)
fn gaps_us(gap: &ArrayRef) -> Result<Vec<Option<i64>>> {
    const WHAT: &str = "a session's gap";
    if let DataType::Interval(_) = gap.data_type() {
        let gap = cast(gap, &DataType::Interval(IntervalUnit::MonthDayNano))?;
        let gaps = gap.as_primitive::<IntervalMonthDayNanoType>();
        return Ok(gaps.iter().map(|gap| interval_us(WHAT, gap?).ok()).collect());
    }
    let gap = cast(gap, &DataType::Utf8)?;
    // Gaps are few: each spelling is read once.
    let mut known: HashMap<&str, Option<i64>> = HashMap::new();
    let mut gaps = Vec::with_capacity(gap.len());
    for text in gap.as_string::<i32>() {
        gaps.push(text.and_then(|text| *known.entry(text).or_insert_with(|| text_us(WHAT, text).ok())));
    }
    Ok(gaps)
}

/// The stretches that rows bring to their sessions: start and end in µs; `None` for a row without session.
pub(crate) fn stretches(sessions: &ArrayRef) -> Result<Vec<Option<(i64, i64)>>> {
    let Some(sessions) = sessions.as_struct_opt() else {
        return internal_err!("a session of type {}", sessions.data_type());
    };
    let [start, end] = sessions.columns() else { return internal_err!("a session has a start and an end") };
    let (Some(start), Some(end)) =
        (start.as_primitive_opt::<TimestampMicrosecondType>(), end.as_primitive_opt::<TimestampMicrosecondType>())
    else {
        return internal_err!("the bounds of a session are not timestamps in µs");
    };
    let stretch = |row: usize| sessions.is_valid(row).then(|| (start.value(row), end.value(row)));
    Ok((0..sessions.len()).map(stretch).collect())
}
