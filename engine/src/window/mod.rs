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

use std::time::Duration;

use datafusion::common::plan_err;
use datafusion::common::tree_node::TreeNode;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Expr, lit};

use self::functions::{Kind, WindowFunction};
pub(crate) use self::spec::WindowSpec;
use crate::interval::Interval;

/// The window `[start, end)` of length `size` that holds `time`, as a struct of two timestamps. Windows begin at multiples of
/// their slide since 1970-01-01T00:00:00 UTC, moved by their offset. Without [`slide`](TimeWindow::slide), windows follow each
/// other without overlap.
///
/// `size` is a fixed length (`10 minutes`): a month has none. A row without time has no window. `time` is a timestamp, or an
/// earlier window, whose [`window_time`] is taken: so windows can be put together to longer ones.
///
/// ```
/// # use datafusion::functions_aggregate::expr_fn::count;
/// # use datafusion::prelude::*;
/// # use tidewater::prelude::*;
/// # fn doc(events: DataFrame) -> Result<DataFrame> {
/// let windows = window(col("ts"), "10 minutes").slide("5 minutes").alias("w");
/// let counts = events.aggregate(vec![windows, col("k")], vec![count(lit(1))])?;
/// # Ok(counts)
/// # }
/// ```
pub fn window(time: Expr, size: impl Into<Interval>) -> TimeWindow {
    TimeWindow { time, size: size.into(), slide: None, offset: None }
}

/// The windows that [`window`] makes, before they are an expression. They become one by [`alias`](Self::alias) or `into()`. Lengths
/// that make no windows are an error where the expression is planned: in `aggregate`, `select` or `with_column`.
#[derive(Debug, Clone)]
#[must_use = "windows become an expression by `alias` or `into`"]
pub struct TimeWindow {
    time: Expr,
    size: Interval,
    slide: Option<Interval>,
    offset: Option<Interval>,
}

impl TimeWindow {
    /// How far a window begins after the one before. Default: the size. With a shorter one, windows overlap: a row has several
    /// and counts in each, so group by them. A longer one is refused: rows between would be lost.
    pub fn slide(mut self, slide: impl Into<Interval>) -> Self {
        self.slide = Some(slide.into());
        self
    }

    /// How far the starts are moved from multiples of the slide, less than a slide. Default: not at all.
    pub fn offset(mut self, offset: impl Into<Interval>) -> Self {
        self.offset = Some(offset.into());
        self
    }

    /// The windows as an expression with this name.
    pub fn alias(self, name: impl Into<String>) -> Expr {
        Expr::from(self).alias(name)
    }
}

impl From<TimeWindow> for Expr {
    fn from(window: TimeWindow) -> Self {
        let TimeWindow { time, size, slide, offset } = window;
        let length = |interval: &Interval| lit(interval.to_string());
        let mut arguments = vec![time, length(&size)];
        // The offset is the fourth argument: a slide must be there before it.
        arguments.extend(slide.as_ref().or(offset.is_some().then_some(&size)).map(length));
        arguments.extend(offset.as_ref().map(length));
        functions::udf(Kind::Window).call(arguments)
    }
}

/// The session of a row: from `time` to `time` plus `gap`, merged with all sessions of its group that it touches. `gap` is a
/// length of time for all rows (`"5 minutes"`), or an expression: one of intervals, or of text that spells them. A row without
/// time or with a gap that is not above zero has no session; a literal that is no gap is an error where the expression is planned.
///
/// ```
/// # use datafusion::prelude::*;
/// # use tidewater::prelude::*;
/// let visits = session_window(col("ts"), "30 minutes").alias("visit");
/// let each_its_own = session_window(col("ts"), col("patience"));
/// # let _ = (visits, each_its_own);
/// ```
pub fn session_window(time: Expr, gap: impl Into<SessionGap>) -> Expr {
    functions::udf(Kind::SessionWindow).call(vec![time, gap.into().0])
}

/// How long a session waits for its next row: a length of time, or an expression.
#[derive(Debug, Clone)]
pub struct SessionGap(Expr);

impl From<Expr> for SessionGap {
    fn from(gap: Expr) -> Self {
        SessionGap(gap)
    }
}

impl From<Interval> for SessionGap {
    fn from(gap: Interval) -> Self {
        SessionGap(lit(gap.to_string()))
    }
}

impl From<Duration> for SessionGap {
    fn from(gap: Duration) -> Self {
        Interval::from(gap).into()
    }
}

impl From<&str> for SessionGap {
    fn from(gap: &str) -> Self {
        Interval::from(gap).into()
    }
}

impl From<String> for SessionGap {
    fn from(gap: String) -> Self {
        Interval::from(gap).into()
    }
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
    use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
    use datafusion::common::DFSchema;
    use datafusion::logical_expr::{ExprSchemable, col};

    use super::*;
    use crate::error::ErrorKind;

    /// What planning says of an expression over a timestamp `ts` and text `gap`.
    fn planned(key: impl Into<Expr>) -> crate::error::Result<()> {
        let time = DataType::Timestamp(TimeUnit::Microsecond, None);
        let schema = Schema::new(vec![Field::new("ts", time, true), Field::new("gap", DataType::Utf8, true)]);
        let schema = DFSchema::try_from(schema)?;
        key.into().to_field(&schema)?;
        Ok(())
    }

    #[test]
    fn lengths_are_checked_where_the_window_is_planned() {
        for (key, wanted) in [
            (window(col("ts"), "1 month"), "a window's size must have a fixed length"),
            (window(col("ts"), "0 seconds"), "a window's size must be longer than zero"),
            (window(col("ts"), "soon"), "a window's size is `soon`, which is not an interval"),
            (window(col("ts"), "5 seconds").slide("10 seconds"), "slide must not be longer"),
            (window(col("ts"), "5 seconds").offset("5 seconds"), "offset must be shorter"),
            (window(col("ts"), "5 seconds").offset("10"), "a window's offset is `10`, which is not an interval"),
        ] {
            let error = planned(key).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidQuery, "{error}");
            assert!(error.message().contains(wanted), "{error}");
        }
        planned(window(col("ts"), Duration::from_secs(10)).slide("5 seconds").offset("-2 seconds")).unwrap();
        for gap in [SessionGap::from("soon"), lit("0 seconds").into()] {
            let error = planned(session_window(col("ts"), gap)).unwrap_err();
            assert!(error.message().contains("a session's gap"), "{error}");
        }
        planned(session_window(col("ts"), col("gap"))).unwrap();
        planned(session_window(col("ts"), Duration::from_millis(1))).unwrap();
    }

    #[test]
    fn a_key_says_what_it_is() {
        let sliding = Expr::from(window(col("ts"), "10 seconds").slide("5 seconds"));
        let is_session = |key: &Expr| matches!(WindowKey::of(key).unwrap(), Some(WindowKey::Session { .. }));
        assert!(window_call(&sliding.clone().alias("w")).is_some() && !is_session(&sliding));
        assert!(is_session(&session_window(col("ts"), "5 seconds").alias("s")));
        assert!(needs_grouping(&sliding.alias("w")).unwrap());
        let tumbling = Expr::from(window(col("ts"), "10 seconds").offset("1 second"));
        assert!(!needs_grouping(&tumbling).unwrap());
        let Some(WindowKey::Fixed { spec, .. }) = WindowKey::of(&tumbling).unwrap() else { panic!("{tumbling}") };
        assert_eq!(spec, WindowSpec { size_us: 10_000_000, slide_us: 10_000_000, offset_us: 1_000_000 });
        assert!(window_call(&window_time(col("w"))).is_none());
    }
}
