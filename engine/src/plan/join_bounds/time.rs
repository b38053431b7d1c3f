//! Expressions that are the time of a column, plus a fixed shift.

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr::{Expr, Operator};

use crate::watermark::event_time_metadata::{is_event_time, size_us, window_us};
use crate::window::functions::{Kind, is_function};

pub(super) const NANOS_PER_MS: i128 = 1_000_000;
const NANOS_PER_DAY: i128 = 86_400_000_000_000;

/// What an expression is: the time of a column, plus a fixed shift.
pub(super) struct Time {
    pub(super) column: usize,
    pub(super) shift_ns: i128,
    /// Nothing was added to the column.
    pub(super) plain: bool,
    pub(super) data_type: DataType,
}

impl Time {
    pub(super) fn is_timestamp(&self) -> bool {
        matches!(self.data_type, DataType::Timestamp(_, _))
    }

    /// The time that `expr` is, over the columns of `schema`.
    pub(super) fn of(expr: &Expr, schema: &DFSchema) -> Option<Time> {
        match expr {
            Expr::Alias(alias) => Time::of(&alias.expr, schema),
            Expr::Column(column) => {
                let column = schema.maybe_index_of_column(column)?;
                let field = schema.fields().get(column)?;
                let is_time = match field.data_type() {
                    DataType::Timestamp(_, _) => true,
                    DataType::Struct(_) => is_event_time(field),
                    _ => false,
                };
                // The start of a window lies before its event time.
                let shift_ns = -i128::from(window_us(field).unwrap_or(0)) * 1000;
                is_time.then_some(Time { column, shift_ns, plain: true, data_type: field.data_type().clone() })
            }
            Expr::Cast(cast) => {
                let time = Time::of(&cast.expr, schema)?;
                let data_type = cast.field.data_type().clone();
                same_instant(&time.data_type, &data_type).then_some(Time { data_type, ..time })
            }
            // A bound of a window that is marked is that bound.
            Expr::ScalarFunction(function) if is_function(function, Kind::MarkBound) => {
                Time::of(function.args.first()?, schema)
            }
            Expr::ScalarFunction(function) if function.func.name() == "get_field" => {
                let [window, Expr::Literal(name, _)] = function.args.as_slice() else { return None };
                let time = Time::of(window, schema)?;
                let DataType::Struct(fields) = &time.data_type else { return None };
                let name = name.try_as_str()??;
                let data_type = fields.iter().find(|field| field.name() == name)?.data_type().clone();
                // The time of a window is its end.
                let shift_ns = match name {
                    "end" => time.shift_ns,
                    "start" => time.shift_ns - i128::from(size_us(schema.fields().get(time.column)?)?) * 1000,
                    _ => return None,
                };
                Some(Time { data_type, shift_ns, ..time })
            }
            Expr::BinaryExpr(binary) => {
                let (time, interval, sign) = match binary.op {
                    Operator::Plus => match Time::of(&binary.left, schema) {
                        Some(time) => (time, &binary.right, 1),
                        None => (Time::of(&binary.right, schema)?, &binary.left, 1),
                    },
                    Operator::Minus => (Time::of(&binary.left, schema)?, &binary.right, -1),
                    _ => return None,
                };
                let shift_ns = time.shift_ns + sign * fixed_ns(interval, &time.data_type)?;
                Some(Time { shift_ns, plain: false, ..time })
            }
            _ => None,
        }
    }
}

/// The length of a literal interval that is added to a timestamp of this type.
fn fixed_ns(interval: &Expr, to: &DataType) -> Option<i128> {
    let (literal, DataType::Timestamp(unit, zone)) = (literal(interval)?, to) else { return None };
    let (days, nanos) = match literal {
        ScalarValue::IntervalMonthDayNano(Some(i)) if i.months == 0 => (i.days, i128::from(i.nanoseconds)),
        ScalarValue::IntervalDayTime(Some(i)) => (i.days, i128::from(i.milliseconds) * NANOS_PER_MS),
        ScalarValue::DurationSecond(Some(s)) => (0, i128::from(*s) * 1_000_000_000),
        ScalarValue::DurationMillisecond(Some(ms)) => (0, i128::from(*ms) * NANOS_PER_MS),
        ScalarValue::DurationMicrosecond(Some(us)) => (0, i128::from(*us) * 1000),
        ScalarValue::DurationNanosecond(Some(ns)) => (0, i128::from(*ns)),
        _ => return None,
    };
    let ns = i128::from(days) * NANOS_PER_DAY + nanos;
    // What is finer than the timestamps is lost when it is added.
    ((days == 0 || is_utc(zone.as_deref())) && ns % unit_ns(*unit) == 0).then_some(ns)
}

fn literal(expr: &Expr) -> Option<&ScalarValue> {
    match expr {
        Expr::Alias(alias) => literal(&alias.expr),
        Expr::Literal(value, _) => Some(value),
        _ => None,
    }
}

/// Whether a cast leaves every time what it is.
pub(crate) fn same_instant(from: &DataType, to: &DataType) -> bool {
    match (from, to) {
        (DataType::Timestamp(from, from_zone), DataType::Timestamp(to, to_zone)) => {
            let zones = match (from_zone.as_deref(), to_zone.as_deref()) {
                (Some(_), Some(_)) => true,
                (from, to) => is_utc(from) && is_utc(to),
            };
            zones && unit_ns(*to) <= unit_ns(*from)
        }
        (from, to) => from == to,
    }
}

pub(super) fn is_utc(zone: Option<&str>) -> bool {
    zone.is_none_or(|zone| matches!(zone, "UTC" | "Etc/UTC" | "Z" | "+00:00" | "+00" | "+0000"))
}

fn unit_ns(unit: TimeUnit) -> i128 {
    match unit {
        TimeUnit::Second => 1_000_000_000,
        TimeUnit::Millisecond => NANOS_PER_MS,
        TimeUnit::Microsecond => 1000,
        TimeUnit::Nanosecond => 1,
    }
}
