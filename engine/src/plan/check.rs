//! What a stream cannot answer in this output mode, refused before anything is read.
//!
//! The categories are Spark's, and every refusal names what to write instead.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{ExprSchema, JoinType};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{Aggregate, Distinct, Expr, Join, LogicalPlan, TableScan};

use super::join_bounds::check_stream_join;
use super::node::deduplicate::DeduplicateNode;
use super::node::session::SessionNode;
use crate::error::{Error, Result};
use crate::query::OutputMode;
use crate::query::window::{is_session_call, is_window_call};
use crate::source::StreamTable;
use crate::watermark::marks::is_event_time;

/// The stream that a table scan reads, if it reads one.
pub(crate) fn stream_of(scan: &TableScan) -> Option<std::sync::Arc<dyn crate::source::Source>> {
    let provider = source_as_provider(&scan.source).ok()?;
    provider.downcast_ref::<StreamTable>().map(|table| std::sync::Arc::clone(table.source()))
}

/// Whether any leaf below, subqueries included, is a stream.
pub(crate) fn is_streaming(plan: &LogicalPlan) -> bool {
    let mut found = false;
    // The closure never fails.
    let _ = plan.apply_with_subqueries(|node| {
        found |= matches!(node, LogicalPlan::TableScan(scan) if stream_of(scan).is_some());
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    found
}

/// Whether a node of this kind aggregates or comes after one that does.
pub(crate) fn has_streaming_aggregate(plan: &LogicalPlan) -> bool {
    let aggregates = |node: &LogicalPlan| match node {
        LogicalPlan::Aggregate(_) => true,
        LogicalPlan::Extension(extension) => extension.node.as_any().is::<SessionNode>(),
        _ => false,
    };
    plan.exists(|node| Ok(aggregates(node) && is_streaming(node))).unwrap_or(false)
}

/// Refuses what a stream cannot answer.
pub(crate) fn check(plan: &LogicalPlan, mode: OutputMode) -> Result<()> {
    if !is_streaming(plan) {
        return Err(Error::invalid("`write_stream` was called on a query that reads no stream")
            .hint("read an input with `read_stream`, or write the result as a batch"));
    }
    check_node(plan, mode)?;
    if mode == OutputMode::Complete && !has_streaming_aggregate(plan) {
        return Err(Error::unsupported(
            "complete mode needs a streaming aggregation: without one, the whole answer grows for ever",
        )
        .hint("use append mode"));
    }
    Ok(())
}

fn check_node(plan: &LogicalPlan, mode: OutputMode) -> Result<()> {
    if !is_streaming(plan) {
        return Ok(());
    }
    check_subqueries(plan)?;
    // What can never be answered is said first, wherever in the plan it stands.
    check_never(plan, mode)?;
    for input in plan.inputs() {
        check_node(input, mode)?;
    }
    check_chain(plan, mode)
}

fn check_subqueries(plan: &LogicalPlan) -> Result<()> {
    let mut streaming = false;
    let visited = plan.apply_expressions(|expr| {
        expr.apply(|expr| {
            let subquery = match expr {
                Expr::InSubquery(inner) => Some(&inner.subquery),
                Expr::Exists(inner) => Some(&inner.subquery),
                Expr::ScalarSubquery(inner) => Some(inner),
                _ => None,
            };
            streaming |= subquery.is_some_and(|subquery| is_streaming(&subquery.subquery));
            Ok(TreeNodeRecursion::Continue)
        })
    });
    visited?;
    if streaming {
        return Err(Error::unsupported("a stream cannot be read inside a subquery").hint("write a join instead"));
    }
    Ok(())
}

fn check_never(plan: &LogicalPlan, mode: OutputMode) -> Result<()> {
    match plan {
        LogicalPlan::Sort(_) if mode != OutputMode::Complete || !has_streaming_aggregate(plan) => {
            Err(Error::unsupported("a stream cannot be sorted: a later row may belong before the rows already written")
                .hint("sort in complete mode after an aggregation, or sort what was written"))
        }
        LogicalPlan::Limit(limit) if limit.skip.is_some() => {
            Err(Error::unsupported("a stream cannot skip its first rows (OFFSET)").hint("filter them out"))
        }
        LogicalPlan::Limit(_) if mode == OutputMode::Update => {
            Err(Error::unsupported("a stream cannot be limited in update mode").hint("use append mode"))
        }
        LogicalPlan::Window(_) => Err(Error::unsupported(
            "a stream cannot answer a window function over rows (OVER): a later row would change the rows already written",
        )
        .hint("group by `window(time, …)`, or compute it in `foreach_batch` or over what was written")),
        LogicalPlan::Aggregate(aggregate) => check_aggregate(plan, aggregate, mode),
        LogicalPlan::Join(join) => check_join(join, mode),
        LogicalPlan::Distinct(Distinct::On(_)) => Err(Error::unsupported(
            "DISTINCT ON gives the first row of each key in some order, and a stream has none",
        )
        .hint("use `drop_duplicates`, which gives the first row that came")),
        LogicalPlan::Extension(extension) => {
            extension.node.as_any().downcast_ref::<DeduplicateNode>().map_or(Ok(()), check_deduplicate)
        }
        LogicalPlan::Union(union) if union.inputs.iter().any(|input| !is_streaming(input)) => {
            Err(Error::unsupported("a stream cannot be put together with a table (UNION): the table's rows belong to no batch")
                .hint("write the table's rows to the sink first, or read the table as a stream"))
        }
        LogicalPlan::RecursiveQuery(_) => {
            Err(Error::unsupported("a stream cannot be read by a recursive query").hint("use `foreach_batch`"))
        }
        LogicalPlan::Dml(_) | LogicalPlan::Copy(_) | LogicalPlan::Ddl(_) | LogicalPlan::Statement(_) => {
            Err(Error::unsupported("a command cannot read a stream").hint("select the rows and write them with `write_stream`"))
        }
        LogicalPlan::Explain(_) | LogicalPlan::Analyze(_) | LogicalPlan::DescribeTable(_) => {
            Err(Error::unsupported("EXPLAIN and DESCRIBE are no streams").hint("start the query and call `explain` on it"))
        }
        _ => Ok(()),
    }
}

fn check_aggregate(plan: &LogicalPlan, aggregate: &Aggregate, mode: OutputMode) -> Result<()> {
    if aggregate.group_expr.iter().any(|key| matches!(key, Expr::GroupingSet(_))) {
        return Err(Error::unsupported("a stream cannot answer GROUPING SETS, CUBE or ROLLUP")
            .hint("write one query per set of keys"));
    }
    if aggregate.group_expr.iter().filter(|key| is_window_call(key)).count() > 1 {
        return Err(Error::unsupported("only one window per aggregation is possible")
            .hint("aggregate by one window, then by another in a second aggregation"));
    }
    if aggregate.group_expr.iter().any(is_session_call) {
        if mode == OutputMode::Update {
            return Err(Error::unsupported("sessions cannot be answered in update mode: two of them may become one")
                .hint("use append mode, which gives each session once it has ended"));
        }
        if aggregate.group_expr.len() < 2 {
            return Err(Error::unsupported("on a stream, sessions need a key beside them")
                .hint("group by the session window and by whose session it is"));
        }
    }
    let keyed_by_event_time = || {
        let keys = aggregate.group_expr.len();
        plan.schema().fields().iter().take(keys).any(|key| is_event_time(key))
    };
    if mode == OutputMode::Append && !keyed_by_event_time() {
        return Err(Error::unsupported(
            "append mode needs to know when a group is final, and no key of this aggregation has a watermark",
        )
        .hint("call `with_watermark` and group by that column or a window over it, or use update or complete mode"));
    }
    Ok(())
}

/// Which rows of a table a join would give without a match in the stream: never final, as a match may still come.
fn check_join(join: &Join, mode: OutputMode) -> Result<()> {
    let gives_unmatched = |joins: &[JoinType]| joins.contains(&join.join_type);
    match (is_streaming(&join.left), is_streaming(&join.right)) {
        (true, true) => check_stream_join(join, mode),
        (true, false)
            if gives_unmatched(&[
                JoinType::Right,
                JoinType::Full,
                JoinType::RightSemi,
                JoinType::RightAnti,
                JoinType::RightMark,
            ]) =>
        {
            Err(never_final(join))
        }
        (false, true)
            if gives_unmatched(&[
                JoinType::Left,
                JoinType::Full,
                JoinType::LeftSemi,
                JoinType::LeftAnti,
                JoinType::LeftMark,
            ]) =>
        {
            Err(never_final(join))
        }
        _ => Ok(()),
    }
}

fn never_final(join: &Join) -> Error {
    Error::unsupported(format!(
        "a {} join that keeps rows of the table cannot be answered: a match may always still come in the stream",
        join.join_type
    ))
    .hint("keep the rows of the stream instead: put the stream on the side whose rows are kept")
}

/// What remembers rows after an aggregation in update or complete mode would take each new value of a group for a new row.
fn check_chain(plan: &LogicalPlan, mode: OutputMode) -> Result<()> {
    if mode == OutputMode::Append || !is_stateful(plan) {
        return Ok(());
    }
    match plan.inputs().into_iter().any(has_streaming_aggregate) {
        true => Err(Error::unsupported(format!(
            "in {mode} mode nothing that keeps state can follow an aggregation of a stream: it would take every new value of a \
             group for a new row"
        ))
        .hint("use append mode, where a group comes out once; or write the aggregation to a table and read that")),
        false => Ok(()),
    }
}

/// Whether a node goes by event time or groups: what Spark calls a stateful operation.
fn is_stateful(plan: &LogicalPlan) -> bool {
    let has_time = |input: &LogicalPlan| input.schema().fields().iter().any(|field| is_event_time(field));
    match plan {
        LogicalPlan::Aggregate(_) => true,
        LogicalPlan::Distinct(Distinct::All(input)) => has_time(input),
        LogicalPlan::Join(join) => is_streaming(&join.left) && is_streaming(&join.right),
        LogicalPlan::Extension(extension) => extension
            .node
            .as_any()
            .downcast_ref::<DeduplicateNode>()
            .is_some_and(|node| node.within_watermark || keys_with_event_time(node) > 0),
        _ => false,
    }
}

/// How many of the keys are event times.
fn keys_with_event_time(node: &DeduplicateNode) -> usize {
    let schema = node.input.schema();
    let is_marked =
        |key: &&datafusion::common::Column| schema.field_from_column(key).is_ok_and(|field| is_event_time(field));
    node.keys.iter().filter(is_marked).count()
}

fn check_deduplicate(node: &DeduplicateNode) -> Result<()> {
    let marked = node.input.schema().fields().iter().filter(|field| is_event_time(field)).count();
    if node.within_watermark && marked == 0 {
        return Err(Error::unsupported("duplicates can be dropped within a watermark only where there is one")
            .hint("call `with_watermark` before, or use `drop_duplicates`, which remembers keys for ever"));
    }
    if marked > 1 && keys_with_event_time(node) != 1 {
        return Err(Error::unsupported(format!(
            "{marked} columns carry a watermark, and it is not clear by which of them rows are late"
        ))
        .hint("select one of them before dropping duplicates"));
    }
    Ok(())
}
