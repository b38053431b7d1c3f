//! The functions behind windows, as DataFusion sees them.
//!
//! | function | value per row | of a user |
//! |---|---|---|
//! | `window(time, size, slide, offset)` | the window that holds the time | yes |
//! | `session_window(time, gap)` | none: only in GROUP BY, where rows meet | yes |
//! | `window_time(window)` | one µs before its end | yes |
//! | `session_stretch(time, gap)` | what the row brings to its session, `[time, time + gap)` | |
//! | `window_start(time, size_us, slide_us, offset_us)` | where the last window with the time begins | |
//! | `window_starts(time, size_us, slide_us, offset_us)` | where all windows with the time begin | |
//! | `mark_window_start(start, size_us, delay_ms)` | the start | |
//! | `window_from_start(start, size_us)` | the window that begins there | |
//! | `window_from_bounds(start, end)` | the window between | |
//! | `mark_window_bound(bound, window, is_start)` | the bound | |
//! | `without_event_time(value)` | the value, not marked as event time | |
//! | `plain_event_time(value)` | the value, without the lengths of windows | |
//!
//! Bounds are in µs and in the time column's zone. A time may be a window itself: its `window_time` counts. Where the
//! time is event time, so is the result: the mark passes on. A start has a second mark, the size of its window, as a
//! row with it is only final when the window ends. A window has the size as a mark of its own, for the start that is taken
//! out of it.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use datafusion::common::{exec_err, internal_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::scalar::ScalarValue;

use super::WindowSpec;
use super::spec::gap_us;
use super::values::{Micros, between, micros, session, starts, window_type};
use crate::watermark::event_time_metadata::{
    SIZE_US, WINDOW_US, event_time_marker, marks_of, marks_of_bound, plainly_marked, without_marks,
};

/// Which function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Window,
    SessionWindow,
    WindowTime,
    Stretch,
    Start,
    Starts,
    MarkStart,
    FromStart,
    FromBounds,
    MarkBound,
    Unmark,
    PlainMark,
}

impl Kind {
    /// Whether a call is one of these functions.
    pub(crate) fn is_any(call: &ScalarFunction) -> bool {
        call.func.inner().is::<WindowFunction>()
    }
}

/// Whether a call is one of the function of this kind.
pub(crate) fn is_function(call: &ScalarFunction, kind: Kind) -> bool {
    call.func.inner().downcast_ref::<WindowFunction>().is_some_and(|function| function.kind == kind)
}

/// The function of this kind.
pub(crate) fn udf(kind: Kind) -> ScalarUDF {
    ScalarUDF::from(WindowFunction { kind, signature: Signature::variadic_any(Volatility::Immutable) })
}

/// A function of windows as a DataFusion UDF.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct WindowFunction {
    kind: Kind,
    signature: Signature,
}

impl WindowFunction {
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    fn takes(&self) -> std::ops::RangeInclusive<usize> {
        match self.kind {
            Kind::Window => 2..=4,
            Kind::SessionWindow | Kind::Stretch | Kind::FromStart | Kind::FromBounds => 2..=2,
            Kind::WindowTime | Kind::Unmark | Kind::PlainMark => 1..=1,
            Kind::Start | Kind::Starts => 4..=4,
            Kind::MarkStart | Kind::MarkBound => 3..=3,
        }
    }
}

impl ScalarUDFImpl for WindowFunction {
    fn name(&self) -> &str {
        match self.kind {
            Kind::Window => "window",
            Kind::SessionWindow => "session_window",
            Kind::WindowTime => "window_time",
            Kind::Stretch => "session_stretch",
            Kind::Start => "window_start",
            Kind::Starts => "window_starts",
            Kind::MarkStart => "mark_window_start",
            Kind::FromStart => "window_from_start",
            Kind::FromBounds => "window_from_bounds",
            Kind::MarkBound => "mark_window_bound",
            Kind::Unmark => "without_event_time",
            Kind::PlainMark => "plain_event_time",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        plan_err!("the type of `{}` follows from its arguments' fields", self.name())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let Some(time) = args.arg_fields.first().filter(|_| self.takes().contains(&args.arg_fields.len())) else {
            return plan_err!("`{}` does not take {} arguments", self.name(), args.arg_fields.len());
        };
        if self.kind == Kind::MarkBound {
            let Some(window) = args.arg_fields.get(1) else { return internal_err!("a bound of no window") };
            let is_start = args.scalar_arguments.get(2).copied().flatten() == Some(&ScalarValue::from(true));
            let mark = marks_of_bound(window, is_start);
            return Ok(Arc::new(Field::new(self.name(), time.data_type().clone(), true).with_metadata(mark)));
        }
        match self.kind {
            Kind::Unmark => return Ok(without_marks(time)),
            Kind::PlainMark => return Ok(plainly_marked(time)),
            _ => {}
        }
        let bound = bound_type(self.name(), time.data_type())?;
        let lengths = args.scalar_arguments.get(1..).unwrap_or_default();
        let mut own = marks_of(time);
        let size_us = || literal_us(lengths.first().copied().flatten());
        let data_type = match self.kind {
            Kind::Window => {
                mark_size(&mut own, WindowSpec::of_arguments(lengths)?.size_us);
                window_type(bound)
            }
            Kind::SessionWindow | Kind::Stretch => {
                check_gap(args.arg_fields.get(1), lengths.first().copied().flatten())?;
                window_type(bound)
            }
            Kind::WindowTime if !matches!(time.data_type(), DataType::Struct(_)) => {
                return plan_err!("`window_time` takes a window, not {}", time.data_type());
            }
            Kind::FromStart => {
                mark_size(&mut own, size_us()?);
                window_type(bound)
            }
            Kind::FromBounds => window_type(bound),
            Kind::WindowTime | Kind::MarkBound | Kind::Unmark | Kind::PlainMark => bound,
            Kind::Start => {
                if !own.is_empty() {
                    own.insert(WINDOW_US.to_owned(), size_us()?.to_string());
                }
                bound
            }
            Kind::MarkStart => {
                if let Some(ScalarValue::Boolean(Some(true))) = lengths.get(1).copied().flatten() {
                    own = event_time_marker();
                    own.insert(WINDOW_US.to_owned(), size_us()?.to_string());
                }
                bound
            }
            Kind::Starts => DataType::List(Arc::new(Field::new_list_field(bound, true))),
        };
        Ok(Arc::new(Field::new(self.name(), data_type, true).with_metadata(own)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some((time, rest)) = args.args.split_first() else {
            return internal_err!("`{}` without a time", self.name());
        };
        if matches!(self.kind, Kind::MarkBound | Kind::Unmark | Kind::PlainMark) {
            return Ok(time.clone());
        }
        let time = micros(&time.to_array(args.number_rows)?)?;
        let bound = match args.return_field.data_type() {
            DataType::Struct(fields) => fields.first().map_or(DataType::Null, |start| start.data_type().clone()),
            DataType::List(item) => item.data_type().clone(),
            other => other.clone(),
        };
        let array: ArrayRef = match self.kind {
            Kind::Window => {
                let spec = WindowSpec::of_arguments(&rest.iter().map(scalar).collect::<Vec<_>>())?;
                if !spec.is_tumbling() {
                    return exec_err!(
                        "a row has several sliding windows: group by `window`, in a session that knows of windows \
                         (`enable_windows`)"
                    );
                }
                let start: Micros = time.unary(|us| spec.last_start(us));
                between(&bound, start.clone(), start.unary(|us| us.saturating_add(spec.size_us)))?
            }
            Kind::SessionWindow => {
                return exec_err!(
                    "`session_window` has no value by itself: group by it, in a session that knows of windows \
                     (`enable_windows`)"
                );
            }
            Kind::Stretch => session(&bound, &time, rest.first())?,
            Kind::WindowTime | Kind::MarkStart | Kind::MarkBound | Kind::Unmark | Kind::PlainMark => {
                Arc::new(time.with_data_type(bound))
            }
            Kind::Start => {
                let spec = spec_us(rest)?;
                let start: Micros = time.unary(|us| spec.last_start(us));
                Arc::new(start.with_data_type(bound))
            }
            Kind::Starts => Arc::new(starts(bound, &time, spec_us(rest)?)?),
            Kind::FromStart => {
                let size_us = literal_us(rest.first().and_then(scalar))?;
                let end: Micros = time.unary(|us| us.saturating_add(size_us));
                between(&bound, time, end)?
            }
            Kind::FromBounds => {
                let Some(end) = rest.first() else { return internal_err!("a window without end") };
                let end = micros(&end.to_array(args.number_rows)?)?;
                between(&bound, time, end)?
            }
        };
        Ok(ColumnarValue::Array(array))
    }
}

/// Records the length of windows that are event times.
fn mark_size(marks: &mut HashMap<String, String>, size_us: i64) {
    if !marks.is_empty() {
        marks.insert(SIZE_US.to_owned(), size_us.to_string());
    }
}

/// The type of a window's bounds, for times of this type.
fn bound_type(function: &str, time: &DataType) -> Result<DataType> {
    match time {
        DataType::Timestamp(_, zone) => Ok(DataType::Timestamp(TimeUnit::Microsecond, zone.clone())),
        DataType::Struct(fields) => match fields.iter().find(|field| field.name() == "end") {
            Some(end) if matches!(end.data_type(), DataType::Timestamp(_, _)) => bound_type(function, end.data_type()),
            _ => plan_err!("`{function}` takes a timestamp or a window, not {time}"),
        },
        _ => plan_err!("`{function}` takes a timestamp or a window, not {time}"),
    }
}

fn check_gap(gap: Option<&FieldRef>, literal: Option<&ScalarValue>) -> Result<()> {
    if let Some(literal) = literal {
        gap_us(literal)?;
        return Ok(());
    }
    match gap.map(|gap| gap.data_type()) {
        Some(DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Interval(_)) => Ok(()),
        Some(other) => plan_err!("a session's gap must be an interval or text that spells one, not {other}"),
        None => plan_err!("`session_window` takes a time and a gap"),
    }
}

fn scalar(value: &ColumnarValue) -> Option<&ScalarValue> {
    match value {
        ColumnarValue::Scalar(scalar) => Some(scalar),
        ColumnarValue::Array(_) => None,
    }
}

/// The lengths that a window was found to have, as the functions of this crate hand them on.
fn spec_us(lengths: &[ColumnarValue]) -> Result<WindowSpec> {
    let us = |place: usize| literal_us(lengths.get(place).and_then(scalar));
    Ok(WindowSpec { size_us: us(0)?, slide_us: us(1)?, offset_us: us(2)? })
}

fn literal_us(value: Option<&ScalarValue>) -> Result<i64> {
    match value {
        Some(ScalarValue::Int64(Some(us))) => Ok(*us),
        _ => internal_err!("the length of a window is not a literal"),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        Array, AsArray, Int64Array, IntervalDayTimeArray, StringArray, TimestampMicrosecondArray,
        TimestampNanosecondArray,
    };
    use arrow::datatypes::{IntervalDayTime, TimestampMicrosecondType};
    use datafusion::config::ConfigOptions;

    use super::*;
    use crate::watermark::event_time_metadata::{is_event_time, size_us, window_us};
    use crate::window::values::stretches;

    /// Calls a function as a query does: field first, then values.
    fn call(kind: Kind, args: Vec<(Field, ColumnarValue)>) -> Result<(FieldRef, ArrayRef)> {
        let udf = udf(kind);
        let (fields, args): (Vec<FieldRef>, Vec<ColumnarValue>) =
            args.into_iter().map(|(f, v)| (Arc::new(f), v)).unzip();
        let scalars: Vec<_> = args.iter().map(scalar).collect();
        let field = udf.return_field_from_args(ReturnFieldArgs { arg_fields: &fields, scalar_arguments: &scalars })?;
        let number_rows =
            args.iter().map(|v| if let ColumnarValue::Array(a) = v { a.len() } else { 1 }).max().unwrap_or(1);
        let values = udf.invoke_with_args(ScalarFunctionArgs {
            args,
            arg_fields: fields,
            number_rows,
            return_field: Arc::clone(&field),
            config_options: Arc::new(ConfigOptions::default()),
        })?;
        let array = values.into_array(number_rows)?;
        assert_eq!(array.data_type(), field.data_type());
        Ok((field, array))
    }

    fn column(array: ArrayRef) -> (Field, ColumnarValue) {
        let mut metadata = event_time_marker();
        metadata.insert("other".into(), "x".into());
        let field = Field::new("ts", array.data_type().clone(), true).with_metadata(metadata);
        (field, ColumnarValue::Array(array))
    }

    fn literal(value: impl Into<ScalarValue>) -> (Field, ColumnarValue) {
        let value = value.into();
        (Field::new("lit", value.data_type(), true), ColumnarValue::Scalar(value))
    }

    fn times(us: Vec<Option<i64>>) -> (Field, ColumnarValue) {
        column(Arc::new(TimestampMicrosecondArray::from(us).with_timezone("UTC")))
    }

    #[test]
    fn windows_of_all_units_and_of_windows() {
        let nanos = column(Arc::new(TimestampNanosecondArray::from(vec![Some(-1), None, Some(10_000_000_000)])));
        let (field, windows) = call(Kind::Window, vec![nanos, literal("10 seconds")]).unwrap();
        assert_eq!(
            stretches(&windows).unwrap(),
            [Some((-10_000_000, 0)), None, Some((10_000_000, 20_000_000))],
            "floored before 1970"
        );
        assert_eq!(size_us(&field), Some(10_000_000));
        assert!(is_event_time(&field));

        // A window that ends at 20 s belongs to the longer one that ends then.
        let (_, longer) = call(Kind::Window, vec![column(Arc::clone(&windows)), literal("20 seconds")]).unwrap();
        assert_eq!(stretches(&longer).unwrap(), [Some((-20_000_000, 0)), None, Some((0, 20_000_000))]);

        let (field, time) = call(Kind::WindowTime, vec![column(windows)]).unwrap();
        assert_eq!(
            time.as_primitive::<TimestampMicrosecondType>().iter().collect::<Vec<_>>(),
            [Some(-1), None, Some(19_999_999)]
        );
        assert_eq!(field.metadata(), &event_time_marker());
    }

    #[test]
    fn arguments_are_checked_when_planned() {
        let ts = || times(vec![Some(0)]);
        assert!(call(Kind::Window, vec![ts()]).is_err());
        assert!(call(Kind::Window, vec![ts(), literal("1 month")]).is_err());
        assert!(call(Kind::Window, vec![ts(), literal("10 seconds"), literal("20 seconds")]).is_err());
        assert!(call(Kind::Window, vec![literal(7_i64), literal("10 seconds")]).is_err());
        assert!(call(Kind::WindowTime, vec![ts()]).is_err());
        assert!(call(Kind::SessionWindow, vec![ts(), column(Arc::new(Int64Array::from(vec![1])))]).is_err());
        let sliding = call(Kind::Window, vec![ts(), literal("10 seconds"), literal("5 seconds")]);
        assert!(sliding.unwrap_err().to_string().contains("group by"));
    }

    #[test]
    fn starts_carry_the_size_of_their_window() {
        let lengths = || [literal(10_i64), literal(5_i64), literal(2_i64)];
        let mut args = vec![times(vec![Some(1), None])];
        args.extend(lengths());
        let (field, start) = call(Kind::Start, args).unwrap();
        assert_eq!(field.metadata().get(WINDOW_US).map(String::as_str), Some("10"));
        assert_eq!(start.as_primitive::<TimestampMicrosecondType>().iter().collect::<Vec<_>>(), [Some(-3), None]);

        let mut args = vec![times(vec![Some(1), None, Some(2)])];
        args.extend(lengths());
        let (_, starts) = call(Kind::Starts, args).unwrap();
        let lists: Vec<_> = starts.as_list::<i32>().iter().map(|list| list.map(|list| list.len())).collect();
        assert_eq!(lists, [Some(2), None, Some(2)]);

        let unmarked = (Field::new("s", start.data_type().clone(), true), ColumnarValue::Array(Arc::clone(&start)));
        let (field, _) = call(Kind::MarkStart, vec![unmarked.clone(), literal(10_i64), literal(true)]).unwrap();
        assert_eq!(field.metadata().len(), 2);
        let (field, _) = call(Kind::MarkStart, vec![unmarked, literal(10_i64), literal(false)]).unwrap();
        assert!(field.metadata().is_empty());
        let (field, windows) = call(Kind::FromStart, vec![column(start), literal(10_i64)]).unwrap();
        assert_eq!(stretches(&windows).unwrap(), [Some((-3, 7)), None]);
        assert_eq!((field.metadata().len(), size_us(&field)), (2, Some(10)));
        // The end that is taken out of a window is final when the window is; so is the start, if the length is known.
        let bound = |window: &Field, is_start: bool| {
            let start = Field::new("b", DataType::Timestamp(TimeUnit::Microsecond, None), true);
            let start = (start, ColumnarValue::Array(Arc::new(TimestampMicrosecondArray::from(vec![Some(1)]))));
            let window = (window.clone(), ColumnarValue::Array(Arc::clone(&windows)));
            call(Kind::MarkBound, vec![start, window, literal(is_start)]).unwrap().0
        };
        assert_eq!(window_us(&bound(&field, true)), Some(10));
        assert_eq!(bound(&field, false).metadata(), &event_time_marker());
        let of_unknown_length = field.as_ref().clone().with_metadata(event_time_marker());
        assert!(bound(&of_unknown_length, true).metadata().is_empty());
        assert_eq!(bound(&of_unknown_length, false).metadata(), &event_time_marker());
    }

    #[test]
    fn gaps_per_row() {
        let ts = || times(vec![Some(0), Some(0), None, Some(0), Some(0)]);
        let text =
            StringArray::from(vec![Some("1 second"), Some("-1 second"), Some("1 second"), None, Some("2 seconds")]);
        let (_, sessions) = call(Kind::Stretch, vec![ts(), column(Arc::new(text))]).unwrap();
        assert_eq!(stretches(&sessions).unwrap(), [Some((0, 1_000_000)), None, None, None, Some((0, 2_000_000))]);

        let interval = IntervalDayTimeArray::from(vec![IntervalDayTime::new(0, 3000); 5]);
        let (_, sessions) = call(Kind::Stretch, vec![ts(), column(Arc::new(interval))]).unwrap();
        assert_eq!(stretches(&sessions).unwrap()[0], Some((0, 3_000_000)));
        let (_, sessions) = call(Kind::Stretch, vec![ts(), literal("3 seconds")]).unwrap();
        assert_eq!(stretches(&sessions).unwrap()[2], None);
    }
}
