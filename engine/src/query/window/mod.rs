//! `window` and `session_window`: functions that give each row its stretch of event time, and `window_time`, the time
//! of a window. They work in a `DataFrame` and, in a session that knows them, in SQL:
//!
//! ```sql
//! SELECT window(ts, '10 minutes', '5 minutes'), k, count(*) FROM t GROUP BY window(ts, '10 minutes', '5 minutes'), k
//! ```
//!
//! What the functions compute for a row is in `functions`; how a query that groups by them is planned is in
//! `plan::windows`.

pub(crate) mod functions;

mod spec;

pub(crate) mod sql;

pub(crate) mod values;

use datafusion::common::plan_err;
use datafusion::common::tree_node::TreeNode;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Expr, lit};
use datafusion::scalar::ScalarValue;

use self::functions::{Kind, WindowFunction};
pub(crate) use self::spec::WindowSpec;
use crate::error::Result;

/// The window `[start, end)` of length `size` that holds `time`, as a struct of two timestamps. Windows begin at
/// multiples of `slide` since 1970-01-01T00:00:00 UTC, moved by `offset`. Without `slide`, windows follow each other
/// without overlap; with a shorter `slide` than `size`, a row has several windows and counts in each: group by them.
///
/// `size` and `slide` are fixed lengths (`10 minutes`): a month has none. A row without time has no window. `time` is a
/// timestamp, or an earlier window, whose [`window_time`] is taken: so windows can be put together to longer ones.
pub fn window(time: Expr, size: &str, slide: Option<&str>, offset: Option<&str>) -> Result<Expr> {
    let text = |text: &str| ScalarValue::from(text);
    WindowSpec::try_new(&text(size), slide.map(text).as_ref(), offset.map(text).as_ref())?;
    let mut arguments = vec![time, lit(size)];
    arguments.extend(slide.or(offset.map(|_| size)).map(lit));
    arguments.extend(offset.map(lit));
    Ok(functions::udf(Kind::Window).call(arguments))
}

/// The session of a row: from `time` to `time` plus `gap`, merged with all sessions of its group that it touches. `gap`
/// is an interval, or text that spells one: a literal (`lit("5 minutes")`) or computed per row. A row without time or
/// with a gap that is not above zero has no session.
pub fn session_window(time: Expr, gap: Expr) -> Result<Expr> {
    if let Expr::Literal(gap, _) = &gap {
        spec::gap_us(gap)?;
    }
    Ok(functions::udf(Kind::SessionWindow).call(vec![time, gap]))
}

/// The time of a window: one microsecond before its end. It is event time if the window's time was.
pub fn window_time(window: Expr) -> Expr {
    functions::udf(Kind::WindowTime).call(vec![window])
}

/// A grouping key that is a window.
#[derive(Debug, Clone)]
pub(crate) enum WindowKey {
    /// Windows of fixed length over this time.
    Fixed { time: Expr, spec: WindowSpec },
    /// Sessions. To each row the stretch it brings along.
    Session { stretch: Expr },
}

impl WindowKey {
    /// What a grouping key says, if it is a window.
    pub(crate) fn of(key: &Expr) -> DataFusionResult<Option<Self>> {
        let Some((call, kind)) = window_call(key) else { return Ok(None) };
        if kind == Kind::SessionWindow {
            return Ok(Some(WindowKey::Session { stretch: functions::udf(Kind::Stretch).call(call.args.clone()) }));
        }
        let Some((time, lengths)) = call.args.split_first() else { return plan_err!("`window` needs a time column") };
        let lengths: Vec<_> = lengths
            .iter()
            .map(|length| match length {
                Expr::Literal(value, _) => Some(value),
                _ => None,
            })
            .collect();
        Ok(Some(WindowKey::Fixed { time: time.clone(), spec: WindowSpec::of_arguments(&lengths)? }))
    }
}

/// Whether an expression, anywhere within, asks for windows that a row by itself does not know: sliding or sessions.
pub(crate) fn needs_grouping(expr: &Expr) -> DataFusionResult<bool> {
    expr.exists(|part| match (part, WindowKey::of(part)?) {
        (Expr::Alias(_), _) | (_, None) => Ok(false),
        (_, Some(WindowKey::Session { .. })) => Ok(true),
        (_, Some(WindowKey::Fixed { spec, .. })) => Ok(!spec.is_tumbling()),
    })
}

fn window_call(key: &Expr) -> Option<(&ScalarFunction, Kind)> {
    match key {
        Expr::Alias(alias) => window_call(&alias.expr),
        Expr::ScalarFunction(call) => {
            let kind = call.func.inner().downcast_ref::<WindowFunction>()?.kind();
            matches!(kind, Kind::Window | Kind::SessionWindow).then_some((call, kind))
        }
        _ => None,
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
        assert!(session_window(col("ts"), lit("soon")).is_err());
        assert!(session_window(col("ts"), lit("0 seconds")).is_err());
        assert!(session_window(col("ts"), col("gap")).is_ok());
    }

    #[test]
    fn a_key_says_what_it_is() {
        let sliding = window(col("ts"), "10 seconds", Some("5 seconds"), None).unwrap();
        let is_session = |key: &Expr| matches!(WindowKey::of(key).unwrap(), Some(WindowKey::Session { .. }));
        assert!(window_call(&sliding.clone().alias("w")).is_some() && !is_session(&sliding));
        assert!(is_session(&session_window(col("ts"), lit("5 seconds")).unwrap().alias("s")));
        assert!(needs_grouping(&sliding.alias("w")).unwrap());
        let tumbling = window(col("ts"), "10 seconds", None, Some("1 second")).unwrap();
        assert!(!needs_grouping(&tumbling).unwrap());
        let Some(WindowKey::Fixed { spec, .. }) = WindowKey::of(&tumbling).unwrap() else { panic!("{tumbling}") };
        assert_eq!(spec, WindowSpec { size_us: 10_000_000, slide_us: 10_000_000, offset_us: 1_000_000 });
        assert!(window_call(&window_time(col("w"))).is_none());
    }
}
