//! Until when a row of a join of two streams can find a match, by the join's condition and the marks of event time.
//!
//! With the watermark at W, rows of the other side come with later event times only. Two kinds of condition use that:
//!
//! - The event times are equal, or the windows are. Rows whose key's time is at or before W are final, on both sides.
//! - `a.t < b.t + c` says that `b.t > a.t - c`. As `a.t > W` for all that is to come, a row of `b` is final once
//!   `b.t <= W - c`. With `<=` it is final one millisecond later: `b.t <= W - c - 1 ms`. Of several such conditions the
//!   earliest bound counts. Bounds are in whole milliseconds, rounded down. These are Spark's rules, so results come
//!   out in the same batch as there.
//!
//! A month has no fixed length, nor has a day in a time zone with summer time: such conditions bound nothing.

mod check;

mod time;

mod why;

use std::sync::Arc;

use arrow::datatypes::Field;
use datafusion::common::DFSchema;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr, Operator};

pub(crate) use self::check::{as_set_operation, check_stream_join, check_unmatched_rows_end};
pub(crate) use self::time::same_instant;
use self::time::{NANOS_PER_MS, Time};
use crate::watermark::event_time_metadata::{WINDOW_US, event_time_marker, is_event_time};
use crate::watermark::{JoinBounds, KeyTime, SideBound};

/// The bounds of a join with these equal keys and this further condition.
pub(crate) fn join_bounds(on: &[(Expr, Expr)], filter: Option<&Expr>, left: &DFSchema, right: &DFSchema) -> JoinBounds {
    let left_time = event_time_column(left, on.iter().map(|(key, _)| key), filter);
    let right_time = event_time_column(right, on.iter().map(|(_, key)| key), filter);
    let (l, r) = (Side { schema: left, time: left_time }, Side { schema: right, time: right_time });
    let key_time =
        on.iter().enumerate().find_map(|(key, (left_key, right_key))| key_time(key, &l, left_key, &r, right_key));
    let bounds = JoinBounds { left: SideBound::None, right: SideBound::None, left_time, right_time, key_time: None };
    if key_time.is_some() {
        return JoinBounds { left: SideBound::KeyTime, right: SideBound::KeyTime, key_time, ..bounds };
    }
    let mut comparisons: Vec<Comparison<'_>> =
        filter.map(split_conjunction).unwrap_or_default().into_iter().flat_map(comparisons_of).collect();
    for (left_key, right_key) in on {
        comparisons.push(Comparison { lesser: left_key, greater: right_key, strict: false });
        comparisons.push(Comparison { lesser: right_key, greater: left_key, strict: false });
    }
    JoinBounds { left: range(&comparisons, &l, &r), right: range(&comparisons, &r, &l), ..bounds }
}

struct Side<'a> {
    schema: &'a DFSchema,
    time: Option<usize>,
}

impl Side<'_> {
    fn mentioned_in(&self, expr: &Expr, column: usize) -> bool {
        expr.column_refs().into_iter().any(|c| self.schema.maybe_index_of_column(c) == Some(column))
    }

    /// The timestamp that `expr` is, if it speaks of this side only.
    fn timestamp(&self, expr: &Expr, other: &Side<'_>) -> Option<Time> {
        let elsewhere = expr.column_refs().into_iter().any(|c| other.schema.maybe_index_of_column(c).is_some());
        Time::of(expr, self.schema).filter(|time| time.is_timestamp() && !elsewhere)
    }
}

/// The event-time column that counts: of several, the one that the join's keys or else its condition speak of.
fn event_time_column<'a>(
    schema: &DFSchema,
    keys: impl Iterator<Item = &'a Expr>,
    filter: Option<&Expr>,
) -> Option<usize> {
    let side = Side { schema, time: None };
    let marked = schema.fields().iter().enumerate().filter(|(_, field)| is_event_time(field));
    let marked: Vec<usize> = marked.map(|(column, _)| column).collect();
    let keys: Vec<&Expr> = keys.collect();
    let in_keys = || marked.iter().find(|column| keys.iter().any(|key| side.mentioned_in(key, **column)));
    let in_filter = || marked.iter().find(|column| filter.is_some_and(|filter| side.mentioned_in(filter, **column)));
    in_keys().or_else(in_filter).or(marked.first()).copied()
}

/// A key that is an event time on one side at least. On the other side it may be the same kind of event time, or a time
/// without a mark. Computed from an event time, it is not: rows would be late by that time.
fn key_time(key: usize, left: &Side<'_>, left_key: &Expr, right: &Side<'_>, right_key: &Expr) -> Option<KeyTime> {
    let plain = |side: &Side<'_>, key: &Expr| {
        let time = Time::of(key, side.schema)?;
        (time.plain && Some(time.column) == side.time).then_some(time)
    };
    let foreign = |side: &Side<'_>, key: &Expr| side.time.is_none_or(|time| !side.mentioned_in(key, time));
    let (of_left, of_right) = (plain(left, left_key), plain(right, right_key));
    let (left_marked, right_marked) = (of_left.is_some(), of_right.is_some());
    let time = match (of_left, of_right) {
        (Some(left), Some(right)) if left.shift_ns == right.shift_ns => left,
        (Some(time), None) if foreign(right, right_key) => time,
        (None, Some(time)) if foreign(left, left_key) => time,
        _ => return None,
    };
    let mut mark = event_time_marker();
    if time.shift_ns != 0 {
        mark.insert(WINDOW_US.to_owned(), (-time.shift_ns / 1000).to_string());
    }
    let field = Arc::new(Field::new("time", time.data_type, true).with_metadata(mark));
    Some(KeyTime { key, field, left_marked, right_marked })
}

/// `lesser < greater`, or `<=` if not strict.
struct Comparison<'a> {
    lesser: &'a Expr,
    greater: &'a Expr,
    strict: bool,
}

fn comparisons_of(condition: &Expr) -> Vec<Comparison<'_>> {
    match condition {
        Expr::Alias(alias) => comparisons_of(&alias.expr),
        Expr::BinaryExpr(binary) => {
            let (left, right) = (binary.left.as_ref(), binary.right.as_ref());
            let (lesser, greater, strict) = match binary.op {
                Operator::Lt => (left, right, true),
                Operator::LtEq => (left, right, false),
                Operator::Gt => (right, left, true),
                Operator::GtEq => (right, left, false),
                _ => return vec![],
            };
            vec![Comparison { lesser, greater, strict }]
        }
        Expr::Between(between) if !between.negated => vec![
            Comparison { lesser: &between.low, greater: &between.expr, strict: false },
            Comparison { lesser: &between.expr, greater: &between.high, strict: false },
        ],
        _ => vec![],
    }
}

/// The bound of `own` rows: those that no row of `other` to come can be less than.
fn range(comparisons: &[Comparison<'_>], own: &Side<'_>, other: &Side<'_>) -> SideBound {
    let mut found: Option<(usize, i64)> = None;
    for comparison in comparisons {
        let (Some(greater), Some(lesser)) =
            (own.timestamp(comparison.greater, other), other.timestamp(comparison.lesser, own))
        else {
            continue;
        };
        // A side without event time may be bounded by any time of its own, but by one only.
        let of_own = own.time.or(found.map(|(column, _)| column)).is_none_or(|column| column == greater.column);
        if Some(lesser.column) != other.time || !of_own {
            continue;
        }
        let whole_ms = (lesser.shift_ns - greater.shift_ns).div_euclid(NANOS_PER_MS) - i128::from(!comparison.strict);
        let Ok(offset_us) = i64::try_from(whole_ms * 1000) else { continue };
        found = Some((greater.column, found.map_or(offset_us, |(_, least)| least.min(offset_us))));
    }
    found.map_or(SideBound::None, |(column, offset_us)| SideBound::Range { column, offset_us })
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Schema, TimeUnit};
    use datafusion::common::{ScalarValue, TableReference};
    use datafusion::logical_expr::{BinaryExpr, cast, col, lit};

    use std::collections::HashMap;

    use super::*;

    const NO_ZONE: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);

    /// A side with the columns `t` (event time if marked), `u` (a time without mark) and `k`.
    fn side(name: &str, marked: bool) -> DFSchema {
        let mark = |on: bool| if on { event_time_marker() } else { HashMap::new() };
        let mut window = event_time_marker();
        window.insert(WINDOW_US.to_owned(), "10000000".to_owned());
        let mut fields = vec![
            Field::new("t", NO_ZONE, true).with_metadata(mark(marked)),
            Field::new("u", NO_ZONE, true),
            Field::new("k", DataType::Int64, true),
        ];
        if marked {
            fields.push(Field::new("w", NO_ZONE, true).with_metadata(window));
        }
        DFSchema::try_from_qualified_schema(TableReference::bare(name), &Schema::new(fields)).unwrap()
    }

    fn seconds(s: i64) -> Expr {
        lit(ScalarValue::new_interval_mdn(0, 0, s * 1_000_000_000))
    }

    fn bounds(on: &[(Expr, Expr)], filter: Option<Expr>) -> JoinBounds {
        join_bounds(on, filter.as_ref(), &side("l", true), &side("r", true))
    }

    /// The bounds of both sides in ms, at a watermark in ms.
    fn at(bounds: &JoinBounds, watermark_ms: i64) -> (Option<i64>, Option<i64>) {
        let ms = |bound: SideBound| {
            (bound != SideBound::None).then(|| bound.evict_us(watermark_ms * 1000)).map(|us| us / 1000)
        };
        (ms(bounds.left), ms(bounds.right))
    }

    #[test]
    fn a_range_bounds_both_sides() {
        let between = col("r.t").between(col("l.t"), col("l.t") + seconds(5));
        assert_eq!(at(&bounds(&[], Some(between)), 46_000), (Some(40_999), Some(45_999)));
        let spelled = col("r.t").gt_eq(col("l.t")).and(col("r.t").lt_eq(col("l.t") + seconds(5)));
        assert_eq!(at(&bounds(&[], Some(spelled)), 46_000), (Some(40_999), Some(45_999)));
        let open = col("l.t").lt(col("r.t")).and((col("l.t") + seconds(5)).gt(col("r.t")));
        assert_eq!(at(&bounds(&[], Some(open)), 46_000), (Some(41_000), Some(46_000)));
    }

    #[test]
    fn the_output_waits_for_the_longest_look_back() {
        let to_40 = col("l.t").between(col("r.t"), col("r.t") + seconds(40));
        assert_eq!(bounds(&[], Some(to_40.clone())).output_watermark_ms(0), -40_001);
        let from_30 = col("l.t").between(col("r.t") - seconds(30), col("r.t"));
        assert_eq!(bounds(&[], Some(from_30.clone())).output_watermark_ms(0), -30_001);
        let both = bounds(&[], Some(to_40.and(from_30)));
        assert_eq!(both.output_watermark_ms(0), -40_001);
        assert_eq!(bounds(&[(col("l.t"), col("r.t"))], None).output_watermark_ms(7), 7);
        assert_eq!(bounds(&[], None).output_watermark_ms(7), 7);
    }

    #[test]
    fn the_least_of_several_bounds_counts() {
        let two = col("r.t").lt(col("l.t") + seconds(5)).and(col("r.t").lt(col("l.t") + seconds(9)));
        assert_eq!(at(&bounds(&[], Some(two)), 46_000), (Some(37_000), None));
    }

    #[test]
    fn intervals_may_stand_on_any_side() {
        for condition in [
            col("l.t").gt(col("r.t") - seconds(5)),
            (col("l.t") + seconds(5)).gt(col("r.t")),
            (seconds(3) + col("l.t") + seconds(2)).gt(col("r.t")),
            (col("r.t") - seconds(6)).lt(col("l.t") - seconds(1)),
            cast(col("r.t"), DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))).lt(col("l.t") + seconds(5)),
        ] {
            assert_eq!(at(&bounds(&[], Some(condition.clone())), 46_000), (Some(41_000), None), "{condition}");
        }
    }

    #[test]
    fn offsets_are_rounded_down_to_whole_milliseconds() {
        let micros = |us: i64| lit(ScalarValue::new_interval_mdn(0, 0, us * 1000));
        let condition = col("l.t").gt(col("r.t") - micros(1));
        assert_eq!(at(&bounds(&[], Some(condition)), 46_000).0, Some(45_999));
        let condition = col("l.t").gt(col("r.t") + micros(1));
        assert_eq!(at(&bounds(&[], Some(condition)), 46_000).0, Some(46_000));
    }

    #[test]
    fn some_conditions_bound_nothing() {
        let month = lit(ScalarValue::new_interval_mdn(1, 0, 0));
        let times_two =
            Expr::BinaryExpr(BinaryExpr::new(Box::new(col("l.k")), Operator::Multiply, Box::new(lit(2_i64))));
        let berlin = DataType::Timestamp(TimeUnit::Microsecond, Some("Europe/Berlin".into()));
        let seconds_only = DataType::Timestamp(TimeUnit::Second, None);
        for condition in [
            col("l.t").gt(col("r.t") - month),
            col("l.t").gt(col("r.u")),
            col("l.k").gt(times_two),
            col("l.t").gt(lit(5_i64)),
            col("l.t").not_eq(col("r.t")),
            col("l.t").gt(cast(col("r.t"), berlin)),
            col("l.t").gt(cast(col("r.t"), seconds_only)),
            col("l.t").gt(col("r.t")).or(col("l.k").gt(col("r.k"))),
        ] {
            assert_eq!(at(&bounds(&[], Some(condition.clone())), 46_000), (None, None), "{condition}");
        }
    }

    #[test]
    fn an_event_time_among_the_keys_bounds_both_sides() {
        let on = [(col("l.k"), col("r.k")), (col("l.t"), col("r.u"))];
        let found = bounds(&on, None);
        assert_eq!((found.left, found.right), (SideBound::KeyTime, SideBound::KeyTime));
        assert_eq!(found.key_time.unwrap().key, 1);
        // Windows of one length are final together.
        let windows = bounds(&[(col("l.w"), col("r.w"))], None);
        assert_eq!(windows.key_time.unwrap().field.metadata().get(WINDOW_US).unwrap(), "10000000");
        assert_eq!((windows.left_time, windows.right_time), (Some(3), Some(3)));
        assert_eq!(bounds(&[(col("l.k"), col("r.k"))], None).left, SideBound::None);
    }

    #[test]
    fn a_key_computed_from_event_time_is_a_range() {
        let shifted = bounds(&[(col("l.t") - seconds(1), col("r.t"))], None);
        assert_eq!(shifted.key_time, None);
        assert_eq!(at(&shifted, 46_000), (Some(46_999), Some(44_999)));
    }

    #[test]
    fn one_mark_bounds_the_other_side_only() {
        let between = col("r.t").between(col("l.t"), col("l.t") + seconds(5));
        let found = join_bounds(&[], Some(&between), &side("l", false), &side("r", true));
        assert_eq!(at(&found, 46_000), (Some(40_999), None));
        // Left rows have no event time that could be late further on.
        assert_eq!(found.output_watermark_ms(46_000), 46_000);
        let found = join_bounds(&[], Some(&between), &side("l", true), &side("r", false));
        assert_eq!(at(&found, 46_000), (None, Some(45_999)));
    }
}
