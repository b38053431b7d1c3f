//! Grouping by windows, in terms that DataFusion and our state know.
//!
//! ```text
//! window(time, size), k        window(time, size, slide), k     session_window(time, gap), k
//!
//! Projection: window           Projection: window               stream: Session (our node)
//!   Aggregate: start, k          Aggregate: start, k            batch:  Projection: window
//!     Filter: time not null        Unnest: starts                         Aggregate: session, k
//!                                    Projection: all starts                 Window: session
//!                                      Filter: time not null                  Window: latest end before
//! ```
//!
//! A timestamp costs half of what a struct of two does as a key. The output has the columns of the original aggregation
//! under the same names, so whatever stands above still finds them.

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, ScalarValue, TableReference};
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::{FunctionRegistry, SessionState, SessionStateBuilder};
use datafusion::functions::core::expr_fn::get_field;
use datafusion::functions_aggregate::min_max::max_udaf;
use datafusion::logical_expr::expr::{AggregateFunction, WindowFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{
    Aggregate, Expr, ExprFunctionExt, ExprSchemable, Extension, Filter, LogicalPlan, LogicalPlanBuilder, Projection,
    WindowFrame, WindowFrameBound, WindowFrameUnits, ident, lit, when,
};
use datafusion::optimizer::AnalyzerRule;

use super::brings::{Brings, brings};
use super::check::is_streaming;
use super::node::session::SessionNode;
use super::parquet_statistics::{DoubtFileStatistics, HIDE_FLOATS, HideFloats};
use super::settings::keep_answers_right;
use super::subqueries::ScalarSubqueriesOrNull;
use crate::error::{Error, Result};
use crate::output_mode::OutputMode;
use crate::watermark::event_time_metadata::is_event_time;
use crate::window::functions::{Kind, udf};
use crate::window::{WindowKey, WindowSpec, needs_grouping};

// Columns that exist between the nodes of one rewritten aggregation only.
const START: &str = "__tidewater_window_start";
const STARTS: &str = "__tidewater_window_starts";
const SESSION_START: &str = "__tidewater_session_start";
const SESSION_END: &str = "__tidewater_session_end";
const END_BEFORE: &str = "__tidewater_end_before";
const FIRST_OF: &str = "__tidewater_first_of_session";
const SESSION: &str = "__tidewater_session";

/// The name of the rule, by which a session knows that it has it.
const REWRITE_WINDOWS: &str = "tidewater_rewrite_windows";

/// What becomes of sessions over streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sessions {
    /// They stay as they are: this plan is not run as a stream.
    Untouched,
    /// They keep state from batch to batch, unless every batch brings their whole input in this mode.
    Stateful(OutputMode),
}

/// Makes the functions of windows, and grouping by them, known to a session. A second call changes nothing.
pub(crate) fn enable(state: &mut SessionState) {
    keep_answers_right(state.config_mut().options_mut());
    for kind in [Kind::Window, Kind::SessionWindow, Kind::WindowTime] {
        let function = udf(kind);
        if !state.scalar_functions().contains_key(function.name()) {
            // A session refuses no function.
            let _ = state.register_udf(Arc::new(function));
        }
    }
    if !state.analyzer().rules.iter().any(|rule| rule.name() == REWRITE_WINDOWS) {
        state.add_analyzer_rule(Arc::new(RewriteWindows));
        state.add_analyzer_rule(Arc::new(ScalarSubqueriesOrNull));
    }
    if !state.physical_optimizers().iter().any(|rule| rule.name() == HIDE_FLOATS) {
        // DataFusion takes physical rules of a session that is being built only.
        let mut rules = vec![Arc::new(DoubtFileStatistics) as _];
        rules.extend(state.physical_optimizers().iter().cloned());
        rules.push(Arc::new(HideFloats) as _);
        let id = state.session_id().to_owned();
        let builder = SessionStateBuilder::new_from_existing(state.clone()).with_session_id(id);
        *state = builder.with_physical_optimizer_rules(rules).build();
    }
}

/// [`rewrite_windows`] for the batches of a session.
#[derive(Debug)]
pub(crate) struct RewriteWindows;

impl AnalyzerRule for RewriteWindows {
    fn name(&self) -> &str {
        REWRITE_WINDOWS
    }

    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> DataFusionResult<LogicalPlan> {
        Ok(rewrite_windows(plan, Sessions::Untouched)?)
    }
}

/// Rewrites every aggregation by a window, in subqueries too; see the [module](self).
pub(crate) fn rewrite_windows(plan: LogicalPlan, sessions: Sessions) -> Result<LogicalPlan> {
    let rewritten = plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::Aggregate(aggregate) => rewrite(aggregate, sessions),
        other => Ok(Transformed::no(other)),
    })?;
    check_grouped(&rewritten.data, sessions)?;
    Ok(rewritten.data)
}

/// Lets the bounds that are taken out of windows keep the mark of event time: the end of a window is final when the window is,
/// and so is its start, where all windows have one length. DataFusion's `get_field` drops all marks.
pub(crate) fn mark_bounds(plan: LogicalPlan) -> DataFusionResult<LogicalPlan> {
    let mut found = false;
    let marked = plan.transform_up_with_subqueries(|node| {
        let mut node = node;
        if matches!(node, LogicalPlan::Projection(_) | LogicalPlan::Aggregate(_)) {
            let input = node.inputs().first().map(|input| Arc::clone(input.schema()));
            let names = NamePreserver::new(&node);
            let mapped = node.map_expressions(|expr| {
                let name = names.save(&expr);
                match input.as_ref().map(|schema| marked_bound(&expr, schema)).transpose()?.flatten() {
                    Some(bound) => Ok(Transformed::yes(name.restore(bound))),
                    None => Ok(Transformed::no(expr)),
                }
            })?;
            found |= mapped.transformed;
            node = mapped.data;
        }
        // What is above a node whose columns have got marks has them, too.
        if found { Ok(Transformed::yes(node.recompute_schema()?)) } else { Ok(Transformed::no(node)) }
    })?;
    Ok(marked.data)
}

/// A bound of a window that is an event time, with its mark.
fn marked_bound(expr: &Expr, schema: &DFSchema) -> DataFusionResult<Option<Expr>> {
    let Expr::ScalarFunction(call) = expr.clone().unalias_nested().data else { return Ok(None) };
    let [of, Expr::Literal(name, _)] = call.args.as_slice() else { return Ok(None) };
    let is_start = match name.try_as_str() {
        Some(Some("start")) => true,
        Some(Some("end")) => false,
        _ => return Ok(None),
    };
    let (_, window) = of.to_field(schema)?;
    if call.func.name() != "get_field" || !matches!(window.data_type(), DataType::Struct(_)) || !is_event_time(&window)
    {
        return Ok(None);
    }
    let of = of.clone();
    Ok(Some(udf(Kind::MarkBound).call(vec![Expr::ScalarFunction(call), of, lit(is_start)])))
}

/// Refuses windows that a row by itself has no value of, anywhere but among the keys of an aggregation.
fn check_grouped(plan: &LogicalPlan, sessions: Sessions) -> Result<()> {
    let checked = plan.apply_with_subqueries(|node| {
        if sessions == Sessions::Untouched && is_streaming(node) {
            return Ok(TreeNodeRecursion::Continue);
        }
        node.apply_expressions(|expr| {
            if needs_grouping(expr)? {
                return Err(Error::unsupported(format!(
                    "`{}` has no value for a row by itself: a row has several sliding windows, and a session is made by rows \
                     together",
                    expr.clone().unalias()
                ))
                .with_hint("group by it: it can stand in GROUP BY only, and its name elsewhere")
                .into());
            }
            Ok(TreeNodeRecursion::Continue)
        })
    });
    checked?;
    Ok(())
}

fn rewrite(aggregate: Aggregate, sessions: Sessions) -> DataFusionResult<Transformed<LogicalPlan>> {
    let mut window: Option<(usize, WindowKey)> = None;
    for (at, key) in aggregate.group_expr.iter().enumerate() {
        match WindowKey::of(key)? {
            Some(_) if window.is_some() => {
                return Err(Error::unsupported("only one window per aggregation is possible")
                    .with_hint("aggregate by one window, then by another in a second aggregation")
                    .into());
            }
            Some(found) => window = Some((at, found)),
            None if needs_grouping(key)? => {
                return Err(Error::unsupported(format!(
                    "`{key}` takes sessions or sliding windows apart before rows are grouped by them"
                ))
                .with_hint("group by the window itself, and take its parts from the result")
                .into());
            }
            None => {}
        }
    }
    let rewritten = match window {
        None => return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate))),
        Some((at, WindowKey::Fixed { time, spec })) => by_start(aggregate, at, time, spec)?,
        Some((at, WindowKey::Session { stretch })) => match sessions {
            _ if !is_streaming(&aggregate.input) => composed_sessions(aggregate, at, stretch)?,
            Sessions::Untouched => return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate))),
            Sessions::Stateful(mode) if brings(&aggregate.input, mode) == Brings::WholeAnswer => {
                composed_sessions(aggregate, at, stretch)?
            }
            Sessions::Stateful(_) => {
                let node = Arc::new(SessionNode::new(aggregate, at, stretch));
                LogicalPlan::Extension(Extension { node })
            }
        },
    };
    Ok(Transformed::yes(rewritten))
}

/// Windows of fixed length: rows are grouped by the start of their window, or of each of their windows.
fn by_start(aggregate: Aggregate, at: usize, time: Expr, spec: WindowSpec) -> DataFusionResult<LogicalPlan> {
    let Aggregate { input, group_expr, aggr_expr, schema, .. } = aggregate;
    let lengths = [spec.size_us, spec.slide_us, spec.offset_us].map(lit);
    let start_of = |kind: Kind| udf(kind).call([vec![time.clone()], lengths.to_vec()].concat());
    let rows = LogicalPlan::Filter(Filter::try_new(time.clone().is_not_null(), Arc::clone(&input))?);
    let (rows, start) = if spec.is_tumbling() {
        (rows, start_of(Kind::Start))
    } else {
        let mut columns = columns_of(input.schema());
        columns.push(start_of(Kind::Starts).alias(STARTS));
        let rows = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(rows))?);
        let rows = LogicalPlanBuilder::from(rows).unnest_column(Column::from_name(STARTS))?.build()?;
        // What is unnested has lost its marks.
        let is_event_time = schema.fields().get(at).is_some_and(|key| is_event_time(key));
        let marks = vec![ident(STARTS), lit(spec.size_us), lit(is_event_time)];
        (rows, udf(Kind::MarkStart).call(marks))
    };
    let mut keys = group_expr;
    if let Some(key) = keys.get_mut(at) {
        *key = start.alias(START);
    }
    let grouped = LogicalPlan::Aggregate(Aggregate::try_new(Arc::new(rows), keys, aggr_expr)?);
    let window = udf(Kind::FromStart).call(vec![ident(START), lit(spec.size_us)]);
    output(&schema, grouped, |place| (place == at).then(|| window.clone()))
}

/// Sessions of a batch: in order of time, a row begins a session if all rows of its keys before it have ended by then.
fn composed_sessions(aggregate: Aggregate, at: usize, stretch: Expr) -> DataFusionResult<LogicalPlan> {
    let Aggregate { input, group_expr, aggr_expr, schema, .. } = aggregate;
    let keys = group_expr.len();
    let key_name = |place: usize| format!("__tidewater_session_key_{place}");
    let named_keys: Vec<Expr> = (0..keys).filter(|place| *place != at).map(|place| ident(key_name(place))).collect();

    let mut columns = columns_of(input.schema());
    for (place, key) in group_expr.into_iter().enumerate().filter(|(place, _)| *place != at) {
        columns.push(key.unalias().alias(key_name(place)));
    }
    columns.push(get_field(stretch.clone(), "start").alias(SESSION_START));
    columns.push(get_field(stretch, "end").alias(SESSION_END));
    let rows = LogicalPlan::Projection(Projection::try_new(columns, input)?);
    let rows = LogicalPlan::Filter(Filter::try_new(ident(SESSION_START).is_not_null(), Arc::new(rows))?);

    let in_order = |value: &str, until: WindowFrameBound, order: Vec<Expr>| {
        let from = WindowFrameBound::Preceding(ScalarValue::UInt64(None));
        Expr::from(WindowFunction::new(max_udaf(), vec![ident(value)]))
            .partition_by(named_keys.clone())
            .order_by(order.into_iter().map(|by| by.sort(true, false)).collect())
            .window_frame(WindowFrame::new_bounds(WindowFrameUnits::Rows, from, until))
            .build()
    };
    let before = WindowFrameBound::Preceding(ScalarValue::UInt64(Some(1)));
    let end_before = in_order(SESSION_END, before, vec![ident(SESSION_START)])?.alias(END_BEFORE);
    let rows = LogicalPlanBuilder::from(rows).window(vec![end_before])?.build()?;

    let begins = ident(END_BEFORE).is_null().or(ident(SESSION_START).gt(ident(END_BEFORE)));
    let mut columns = columns_of(rows.schema());
    columns.push(when(begins, ident(SESSION_START)).end()?.alias(FIRST_OF));
    let rows = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(rows))?);
    // Of rows that begin at the same time, the one that begins the session comes first.
    let order = vec![ident(SESSION_START), ident(FIRST_OF)];
    let session = in_order(FIRST_OF, WindowFrameBound::CurrentRow, order)?.alias(SESSION);
    let rows = LogicalPlanBuilder::from(rows).window(vec![session])?.build()?;

    let mut keys_and_session = named_keys.clone();
    keys_and_session.push(ident(SESSION));
    let end = AggregateFunction::new_udf(max_udaf(), vec![ident(SESSION_END)], false, None, vec![], None);
    let mut aggregates = vec![Expr::AggregateFunction(end).alias(SESSION_END)];
    aggregates.extend(aggr_expr);
    let grouped = LogicalPlan::Aggregate(Aggregate::try_new(Arc::new(rows), keys_and_session, aggregates)?);
    let window = udf(Kind::FromBounds).call(vec![ident(SESSION), ident(SESSION_END)]);
    output(&schema, grouped, |place| match place {
        place if place == at => Some(window.clone()),
        place if place < keys => Some(ident(key_name(place))),
        _ => None,
    })
}

/// The columns of `schema` over `grouped`: by place, what `computed` says, or the column that has the name already.
fn output(
    schema: &DFSchema,
    grouped: LogicalPlan,
    computed: impl Fn(usize) -> Option<Expr>,
) -> DataFusionResult<LogicalPlan> {
    let column = |(place, (qualifier, field)): (usize, (Option<&TableReference>, &FieldRef))| match computed(place) {
        Some(value) => value.alias_qualified(qualifier.cloned(), field.name()),
        None => Expr::Column(Column::new(qualifier.cloned(), field.name())),
    };
    let columns = schema.iter().enumerate().map(column).collect();
    Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(grouped))?))
}

fn columns_of(schema: &DFSchema) -> Vec<Expr> {
    schema.columns().into_iter().map(Expr::Column).collect()
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
    use arrow::util::pretty::pretty_format_batches;
    use datafusion::functions_aggregate::expr_fn::{count, sum};
    use datafusion::logical_expr::col;
    use datafusion::prelude::{DataFrame, SessionContext};

    use super::*;
    use crate::query::StreamingSessionExt;
    use crate::window::{session_window, window, window_time};

    const SECOND: i64 = 1_000_000;

    /// A table of seconds, keys and numbers; seconds as timestamps of µs.
    fn table(rows: &[(Option<i64>, &str, i64)]) -> RecordBatch {
        let ts: TimestampMicrosecondArray = rows.iter().map(|row| row.0.map(|s| s * SECOND)).collect();
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("ts", Arc::new(ts.with_timezone("UTC"))),
            ("k", Arc::new(rows.iter().map(|row| Some(row.1)).collect::<StringArray>())),
            ("v", Arc::new(rows.iter().map(|row| Some(row.2)).collect::<Int64Array>())),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    fn session() -> SessionContext {
        let ctx = SessionContext::new();
        ctx.enable_windows();
        ctx.enable_windows();
        ctx
    }

    /// The rows of a query as `start|end|…` in seconds, sorted; the first column is a window.
    async fn answer(frame: DataFrame) -> Vec<String> {
        let (head, rest) = frame.schema().columns().split_first().map(|(h, r)| (h.clone(), r.to_vec())).unwrap();
        let bound = |name: &str| {
            let bound = get_field(Expr::Column(head.clone()), name);
            let us = datafusion::logical_expr::cast(bound, arrow::datatypes::DataType::Int64);
            (us / lit(SECOND)).alias(format!("__{name}"))
        };
        let mut columns = vec![bound("start"), bound("end")];
        columns.extend(rest.into_iter().map(Expr::Column));
        let batches = frame.select(columns).unwrap().collect().await.unwrap();
        let table = pretty_format_batches(&batches).unwrap().to_string();
        let mut rows: Vec<String> = table
            .lines()
            .filter(|line| line.starts_with('|'))
            .skip(1)
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>().join("|"))
            .collect();
        rows.sort();
        rows
    }

    #[tokio::test]
    async fn tumbling_windows_of_a_batch() {
        let rows =
            table(&[(Some(1), "a", 1), (Some(10), "a", 2), (Some(-1), "b", 4), (None, "b", 8), (Some(9), "a", 16)]);
        let key = Expr::from(window(col("ts"), "10 seconds"));
        let frame = session().read_batch(rows).unwrap().aggregate(vec![key, col("k")], vec![sum(col("v"))]).unwrap();
        let optimized = frame.clone().into_optimized_plan().unwrap();
        assert_eq!(frame.schema().columns(), optimized.schema().columns(), "columns keep their names");
        assert_eq!(answer(frame).await, ["-10|0|b|4", "0|10|a|17", "10|20|a|2"]);
    }

    #[tokio::test]
    async fn sliding_windows_of_a_batch() {
        let rows = table(&[(Some(0), "a", 1), (Some(1), "b", 2), (Some(10), "c", 4), (None, "c", 8)]);
        let of = |slide: &str, offset: Option<&str>| {
            let windows = window(col("ts"), "10 seconds").slide(slide);
            let key = offset.map_or(windows.clone(), |offset| windows.offset(offset)).alias("w");
            session().read_batch(rows.clone()).unwrap().aggregate(vec![key], vec![sum(col("v"))]).unwrap()
        };
        assert_eq!(answer(of("5 seconds", None)).await, ["-5|5|3", "0|10|3", "10|20|4", "5|15|4"]);
        assert_eq!(answer(of("5 seconds", Some("2 seconds"))).await, ["-3|7|3", "-8|2|3", "2|12|4", "7|17|4"]);
        // The slide does not divide the size.
        assert_eq!(
            answer(of("3 seconds", None)).await,
            ["-3|7|3", "-6|4|3", "-9|1|1", "0|10|3", "3|13|4", "6|16|4", "9|19|4"]
        );
    }

    #[tokio::test]
    async fn sessions_of_a_batch() {
        let rows = table(&[
            (Some(21), "a", 1),
            (Some(0), "a", 2),
            (Some(10), "a", 4),
            (Some(10), "a", 8),
            (Some(0), "b", 16),
            (None, "b", 32),
            (Some(31), "b", 64),
            (Some(3), "b", 128),
        ]);
        let of = |gap: Expr, keys: Vec<Expr>| {
            let key = session_window(col("ts"), gap).alias("s");
            let keys = [vec![key], keys].concat();
            session().read_batch(rows.clone()).unwrap().aggregate(keys, vec![sum(col("v")), count(lit(1))]).unwrap()
        };
        // Exactly a gap apart is one session, more is not.
        assert_eq!(
            answer(of(lit("10 seconds"), vec![col("k")])).await,
            ["0|13|b|144|2", "0|20|a|14|3", "21|31|a|1|1", "31|41|b|64|1"]
        );
        assert_eq!(answer(of(lit("10 seconds"), vec![])).await, ["0|20|158|5", "21|41|65|2"]);
        // A long stretch takes in what lies within; a gap that is not above zero makes no session.
        let gap = when(col("v").eq(lit(16)), lit("40 seconds"))
            .when(col("v").eq(lit(64)), lit("1 second"))
            .otherwise(lit("0 seconds"))
            .unwrap();
        assert_eq!(answer(of(gap, vec![col("k")])).await, ["0|40|b|80|2"]);
    }

    #[tokio::test]
    async fn windows_of_windows() {
        let rows = table(&[(Some(1), "a", 1), (Some(9), "a", 2), (Some(10), "a", 4), (Some(20), "a", 8)]);
        let inner = window(col("ts"), "10 seconds").alias("w");
        let inner = session().read_batch(rows).unwrap().aggregate(vec![inner], vec![sum(col("v")).alias("v")]).unwrap();
        for time in [col("w"), window_time(col("w"))] {
            let outer = Expr::from(window(time, "20 seconds"));
            let frame = inner.clone().aggregate(vec![outer], vec![sum(col("v"))]).unwrap();
            assert_eq!(answer(frame).await, ["0|20|7", "20|40|8"]);
        }
    }

    #[tokio::test]
    async fn in_sql() {
        let ctx = session();
        ctx.register_batch("t", table(&[(Some(1), "a", 1), (Some(11), "a", 2), (Some(12), "b", 4)])).unwrap();
        for (sql, expected) in [
            (
                "SELECT window(ts, '10 seconds') AS w, sum(v) FROM t GROUP BY window(ts, '10 seconds')",
                vec!["0|10|1", "10|20|6"],
            ),
            (
                "SELECT window, k, sum(v) FROM t GROUP BY window(ts, INTERVAL '20 seconds', '10 seconds'), k \
                 HAVING window.start >= TIMESTAMP '1970-01-01 00:00:00' ORDER BY window.start",
                vec!["0|20|a|3", "0|20|b|4", "10|30|a|2", "10|30|b|4"],
            ),
            ("SELECT session_window, sum(v) FROM t GROUP BY session_window(ts, '5 seconds')", vec!["11|17|6", "1|6|1"]),
        ] {
            assert_eq!(answer(ctx.streaming_sql(sql).await.unwrap()).await, expected, "{sql}");
        }
        let starts = "SELECT window.start, k FROM t GROUP BY window(ts, '10 minutes'), k ORDER BY k";
        let starts = ctx.streaming_sql(starts).await.unwrap();
        assert_eq!(starts.schema().field(0).name(), "start");
        assert_eq!(starts.count().await.unwrap(), 2);
    }

    #[tokio::test]
    async fn what_grouping_cannot_mean_is_refused() {
        let rows = table(&[(Some(1), "a", 1)]);
        let tumbling = || Expr::from(window(col("ts"), "10 seconds"));
        let sliding = || Expr::from(window(col("ts"), "10 seconds").slide("5 seconds"));
        for keys in [
            vec![tumbling(), sliding()],
            vec![get_field(sliding(), "start")],
            vec![get_field(session_window(col("ts"), "5 seconds"), "start")],
        ] {
            let frame = session().read_batch(rows.clone()).unwrap().aggregate(keys, vec![count(lit(1))]).unwrap();
            assert_eq!(Error::from(frame.collect().await.unwrap_err()).kind(), crate::error::ErrorKind::Unsupported);
        }
        // A session that does not know windows does not answer wrongly.
        let key = session_window(col("ts"), "5 seconds");
        let frame = SessionContext::new().read_batch(rows).unwrap().aggregate(vec![key], vec![count(lit(1))]).unwrap();
        assert!(frame.collect().await.unwrap_err().to_string().contains("enable_windows"));
    }
}
