//! `window` and `session_window`: functions that give each row its stretch of event time.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray, StructArray};
use arrow::compute::kernels::cast::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, TimeUnit, TimestampMicrosecondType};
use datafusion::common::{exec_err, plan_err};
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, lit,
};

use crate::config::parse_interval;
use crate::error::{Error, Result};

const WINDOW: &str = "window";
const SESSION_WINDOW: &str = "session_window";

/// The window `[start, end)` of length `size` that holds `time`, as a struct of two timestamps. Windows begin at multiples
/// of `slide` since 1970-01-01T00:00:00 UTC, moved by `offset`. Without `slide`, windows follow each other without overlap.
///
/// `size` and `slide` are fixed lengths (`10 minutes`): a month has none. A row without time has no window.
pub fn window(time: Expr, size: &str, slide: Option<&str>, offset: Option<&str>) -> Result<Expr> {
    let size_us = fixed_us("a window's size", size)?;
    let slide_us = slide.map_or(Ok(size_us), |slide| fixed_us("a window's slide", slide))?;
    let offset_us = offset.map_or(Ok(0), |offset| interval_us("a window's offset", offset))?;
    if size_us <= 0 || slide_us <= 0 {
        return Err(Error::invalid(format!("a window must be longer than zero, not `{}`", slide.unwrap_or(size))));
    }
    if slide_us > size_us {
        return Err(Error::invalid("a window's slide must not be longer than its size: rows between would be lost"));
    }
    let function = ScalarUDF::from(Window { kind: WINDOW, signature: signature() });
    Ok(function.call(vec![time, lit(size_us), lit(slide_us), lit(offset_us)]))
}

/// The session of a row: from `time` to `time` plus `gap`, merged with all sessions of its group that it touches. `gap`
/// may be a literal (`lit("5 minutes")`) or computed per row.
pub fn session_window(time: Expr, gap: Expr) -> Result<Expr> {
    let function = ScalarUDF::from(Window { kind: SESSION_WINDOW, signature: signature() });
    Ok(function.call(vec![time, gap]))
}

/// Whether a grouping key is a window or a session, under whatever name.
pub(crate) fn is_window_call(key: &Expr) -> bool {
    match key {
        Expr::Alias(alias) => is_window_call(&alias.expr),
        Expr::ScalarFunction(f) => f.func.inner().downcast_ref::<Window>().is_some(),
        _ => false,
    }
}

fn interval_us(what: &str, text: &str) -> Result<i64> {
    let (months, days, nanos) = parse_interval(text)?;
    if months != 0 {
        return Err(Error::invalid(format!("{what} must have a fixed length, and a month has none: `{text}`"))
            .hint("count days instead, such as `30 days`"));
    }
    Ok(i64::from(days) * 86_400_000_000 + nanos / 1000)
}

fn fixed_us(what: &str, text: &str) -> Result<i64> {
    match interval_us(what, text)? {
        us if us > 0 => Ok(us),
        _ => Err(Error::invalid(format!("{what} must be longer than zero, not `{text}`"))),
    }
}

fn signature() -> Signature {
    Signature::variadic_any(Volatility::Immutable)
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Window {
    kind: &'static str,
    signature: Signature,
}

fn window_fields(time: &DataType) -> DataFusionResult<Fields> {
    let DataType::Timestamp(_, zone) = time else { return plan_err!("a window needs a timestamp, not {time}") };
    let bound = DataType::Timestamp(TimeUnit::Microsecond, zone.clone());
    Ok(Fields::from(vec![Field::new("start", bound.clone(), true), Field::new("end", bound, true)]))
}

impl ScalarUDFImpl for Window {
    fn name(&self) -> &str {
        self.kind
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> DataFusionResult<DataType> {
        plan_err!("the type of `{}` follows from its arguments' fields", self.kind)
    }

    /// The mark of event time passes from the column to its window.
    fn return_field_from_args(&self, args: ReturnFieldArgs) -> DataFusionResult<FieldRef> {
        let Some(time) = args.arg_fields.first() else { return plan_err!("`{}` needs a time column", self.kind) };
        let data_type = DataType::Struct(window_fields(time.data_type())?);
        Ok(Arc::new(Field::new(self.kind, data_type, true).with_metadata(time.metadata().clone())))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [time, size, slide, offset] = arrays.as_slice() else {
            return exec_err!("`{}` has no value by itself: group by it", self.kind);
        };
        let us = |array: &ArrayRef| array.as_primitive::<arrow::datatypes::Int64Type>().values().first().copied();
        let (Some(size), Some(slide), Some(offset)) = (us(size), us(slide), us(offset)) else {
            return Ok(ColumnarValue::Array(arrow::array::new_null_array(args.return_field.data_type(), time.len())));
        };
        if slide != size {
            return exec_err!("a row has several sliding windows: group by `window` instead of selecting it");
        }
        let fields = window_fields(time.data_type())?;
        let bound = fields.first().map(|field| field.data_type().clone()).unwrap_or(DataType::Null);
        let time = cast(time, &bound)?;
        let time = time.as_primitive::<TimestampMicrosecondType>();
        let start: PrimitiveArray<TimestampMicrosecondType> = time.unary(|us| us - (us - offset).rem_euclid(size));
        let end: PrimitiveArray<TimestampMicrosecondType> = start.unary(|us| us + size);
        let nulls = start.nulls().cloned();
        let columns: Vec<ArrayRef> =
            vec![Arc::new(start.with_data_type(bound.clone())), Arc::new(end.with_data_type(bound))];
        Ok(ColumnarValue::Array(Arc::new(StructArray::try_new(fields, columns, nulls)?)))
    }
}

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::col;

    use super::*;

    #[test]
    fn lengths_are_checked() {
        for (size, slide) in
            [("1 month", None), ("0 seconds", None), ("-5 seconds", None), ("5 seconds", Some("10 seconds"))]
        {
            assert!(window(col("ts"), size, slide, None).is_err(), "{size} {slide:?}");
        }
        assert!(window(col("ts"), "10 seconds", Some("5 seconds"), Some("-2 seconds")).is_ok());
    }
}
