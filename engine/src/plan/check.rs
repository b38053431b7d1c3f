//! What a stream cannot answer in this output mode, refused before anything is read.
//!
//! The categories are Spark's. The plan that is looked at is the one that is run, so whatever DataFusion makes of a query is
//! judged by what it is. Every refusal says why, and names what to write instead: other output modes are
//! [tried](in_another_mode), not guessed.

use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{ExprSchema, JoinType};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{Aggregate, Distinct, Expr, Extension, Join, LogicalPlan, TableScan, Union};

use super::brings::{Brings, below, brings, queries_in};
use super::join_bounds::{as_set_operation, check_stream_join};
use super::node::deduplicate::DeduplicateNode;
use super::node::limit::StreamLimitNode;
use super::node::session::SessionNode;
use super::node::single_row::SingleRowNode;
use crate::error::{Error, Result};
use crate::output_mode::OutputMode;
use crate::source::StreamTable;
use crate::watermark::event_time_metadata::is_event_time;

/// The stream that a table scan reads, if it reads one.
pub(crate) fn stream_of(scan: &TableScan) -> Option<Arc<dyn crate::source::Source>> {
    let provider = source_as_provider(&scan.source).ok()?;
    provider.downcast_ref::<StreamTable>().map(|table| Arc::clone(table.source()))
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

/// Adds to a refusal which other output modes answer the query.
pub(crate) fn in_another_mode(refused: Error, others: &[OutputMode]) -> Error {
    if others.is_empty() {
        return refused;
    }
    let otherwise = refused.hint().map(|hint| format!("; or {hint}")).unwrap_or_default();
    let others = others.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
    refused.with_hint(format!("use {others} mode, which can answer this query{otherwise}"))
}

/// Refuses what no stream answers, in the words of the user's query: what DataFusion makes of it no longer has them.
pub(crate) fn check_spelled(plan: &LogicalPlan, mode: OutputMode) -> Result<()> {
    if !is_streaming(plan) {
        return Err(Error::invalid("`write_stream` was called on a query that reads no stream")
            .with_hint("read an input with `read_stream`, or write the result as a batch"));
    }
    let mut refused = Ok(());
    plan.apply_with_subqueries(|node| {
        refused = check_statement(node, mode);
        Ok(if refused.is_err() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    refused
}

fn check_statement(plan: &LogicalPlan, mode: OutputMode) -> Result<()> {
    match plan {
        LogicalPlan::Dml(_) | LogicalPlan::Copy(_) | LogicalPlan::Ddl(_) | LogicalPlan::Statement(_) => {
            Err(Error::unsupported("a command cannot read a stream")
                .with_hint("select the rows and write them with `write_stream`"))
        }
        LogicalPlan::Explain(_) | LogicalPlan::Analyze(_) | LogicalPlan::DescribeTable(_) => {
            Err(Error::unsupported("EXPLAIN and DESCRIBE do not run as streaming queries")
                .with_hint("start the query and call `explain` on it"))
        }
        LogicalPlan::Distinct(Distinct::On(_)) if !matches!(below(plan, mode), Brings::Table | Brings::WholeAnswer) => {
            Err(Error::unsupported("DISTINCT ON gives the first row of each key in some order, and a stream has none")
                .with_hint("use `drop_duplicates`, which gives the first row that came"))
        }
        _ => Ok(()),
    }
}

/// Refuses what a stream cannot answer in this mode. The plan is the one that is run: DataFusion has optimised it, so a
/// subquery has become a join, and an outer join whose padded rows nobody sees an inner one.
pub(crate) fn check_executed(plan: &LogicalPlan, mode: OutputMode) -> Result<()> {
    check_node(plan, mode)?;
    match brings(plan, mode) {
        Brings::NewRows if mode == OutputMode::Complete => Err(Error::unsupported(
            "complete mode needs a streaming aggregation: without one, the complete result grows without bound",
        )),
        Brings::NewRows if mode == OutputMode::Update && limits(plan) => {
            Err(Error::unsupported("a stream cannot be limited in update mode"))
        }
        Brings::Table if mode == OutputMode::Append && has_rows(plan) => Err(Error::unsupported(
            "no row of the stream can come out of this query, as a condition on it is never true, and other rows belong to \
             no batch",
        )
        .with_hint("correct the condition, or write the result as a batch")),
        _ => Ok(()),
    }
}

/// Whether a plan that reads no stream may give rows.
fn has_rows(plan: &LogicalPlan) -> bool {
    let gives = |node: &LogicalPlan| match node {
        LogicalPlan::TableScan(_) | LogicalPlan::Values(_) | LogicalPlan::Aggregate(_) => true,
        LogicalPlan::EmptyRelation(empty) => empty.produce_one_row,
        _ => false,
    };
    plan.exists(|node| Ok(gives(node))).unwrap_or(true)
}

fn limits(plan: &LogicalPlan) -> bool {
    let is_limit = |node: &LogicalPlan| match node {
        LogicalPlan::Extension(extension) => extension.node.as_any().is::<StreamLimitNode>(),
        _ => false,
    };
    plan.exists(|node| Ok(is_limit(node))).unwrap_or(false)
}

fn check_node(plan: &LogicalPlan, mode: OutputMode) -> Result<()> {
    if !is_streaming(plan) {
        return Ok(());
    }
    if queries_in(plan).iter().any(is_streaming) {
        return Err(Error::unsupported("a stream is read inside of a subquery that no join can stand for")
            .with_hint("write the join that is meant, or write the subquery's result to a table and read that"));
    }
    // What is nearest to the result is said first.
    check_itself(plan, mode)?;
    plan.inputs().into_iter().try_for_each(|input| check_node(input, mode))
}

fn check_itself(plan: &LogicalPlan, mode: OutputMode) -> Result<()> {
    let input = below(plan, mode);
    match plan {
        LogicalPlan::Join(join) => return check_join(join, mode),
        LogicalPlan::Union(union) => return check_union(union, mode),
        LogicalPlan::RecursiveQuery(_) => {
            return Err(
                Error::unsupported("a stream cannot be read by a recursive query").with_hint("use `foreach_batch`")
            );
        }
        LogicalPlan::Extension(extension) => {
            let node = extension.node.as_any();
            if let Some(deduplicate) = node.downcast_ref::<DeduplicateNode>() {
                return check_deduplicate(deduplicate, mode);
            }
            if let Some(session) = node.downcast_ref::<SessionNode>() {
                return check_session(session, mode);
            }
            if node.is::<SingleRowNode>() && matches!(input, Brings::NewRows | Brings::NewValues) {
                return Err(never_one_row());
            }
            if node.is::<StreamLimitNode>() && input == Brings::NewValues {
                return Err(follows_new_values(mode));
            }
        }
        _ => {}
    }
    // Of a whole answer a batch is asked what any batch may be asked.
    if input == Brings::WholeAnswer {
        return Ok(());
    }
    match plan {
        LogicalPlan::Sort(_) => {
            Err(Error::unsupported("a stream cannot be sorted: a later row may belong before the rows already written")
                .with_hint("sort what was written"))
        }
        LogicalPlan::Window(_) => Err(Error::unsupported(
            "a stream cannot answer a window function over rows (OVER): a later row would change the rows already written",
        )
        .with_hint("group by `window(time, …)`, or compute it in `foreach_batch` or over what was written")),
        LogicalPlan::Aggregate(aggregate) => check_aggregate(plan, aggregate, mode),
        _ => Ok(()),
    }
}

fn check_aggregate(plan: &LogicalPlan, aggregate: &Aggregate, mode: OutputMode) -> Result<()> {
    if aggregate.group_expr.iter().any(|key| matches!(key, Expr::GroupingSet(_))) {
        return Err(Error::unsupported("a stream cannot answer GROUPING SETS, CUBE or ROLLUP")
            .with_hint("write one query per set of keys"));
    }
    if below(plan, mode) == Brings::NewValues {
        return Err(follows_new_values(mode));
    }
    check_groups_end(plan, aggregate.group_expr.len(), mode)
}

/// Refuses groups of which append mode does not know when they are final.
fn check_groups_end(plan: &LogicalPlan, keys: usize, mode: OutputMode) -> Result<()> {
    if mode != OutputMode::Append || plan.schema().fields().iter().take(keys).any(|key| is_event_time(key)) {
        return Ok(());
    }
    Err(Error::unsupported(
        "append mode needs to know when a group is final, and no key of this aggregation has a watermark",
    )
    .with_hint("call `with_watermark` and group by that column or a window over it"))
}

fn check_session(session: &SessionNode, mode: OutputMode) -> Result<()> {
    if mode == OutputMode::Update {
        return Err(Error::unsupported("sessions cannot be answered in update mode: two of them may become one")
            .with_hint("write each session once it has ended, in append mode with a watermark"));
    }
    if session.keys.len() < 2 {
        return Err(Error::unsupported("on a stream, sessions need a key beside them")
            .with_hint("group by the session window and by whose session it is"));
    }
    let plan = LogicalPlan::Extension(Extension { node: Arc::new(session.clone()) });
    check_groups_end(&plan, session.keys.len(), mode)
}

/// A value that is read off the rows of a stream.
fn never_one_row() -> Error {
    Error::unsupported(
        "a scalar subquery over rows of a stream cannot be answered: its value would be the only row, and another may always \
         come",
    )
    .with_hint("write the join that is meant, or write the subquery's result to a table and read that")
}

/// What remembers rows would take each new value of a group for a new row.
fn follows_new_values(mode: OutputMode) -> Error {
    Error::unsupported(format!(
        "in {mode} mode nothing that keeps state can follow an aggregation of a stream: it would take every new value of a \
         group for a new row, and earlier values would stay"
    ))
    .with_hint("write the aggregation to a table and read that")
}

/// A table's rows belong to no batch; and what a branch brought in earlier batches counts for all branches, or for none.
fn check_union(union: &Union, mode: OutputMode) -> Result<()> {
    let branches: Vec<Brings> = union.inputs.iter().map(|input| brings(input, mode)).collect();
    let has = |what: Brings| branches.contains(&what);
    if has(Brings::WholeAnswer) && (has(Brings::NewRows) || has(Brings::Mixed)) {
        return Err(Error::unsupported(format!(
            "in {mode} mode a UNION cannot put rows of a stream beside an aggregation: of the aggregation every batch gives \
             the whole answer, of the rows only those that are new"
        ))
        .with_hint("write two queries, or aggregate every branch"));
    }
    if !has(Brings::Table) || has(Brings::WholeAnswer) {
        return Ok(());
    }
    let reads_table = |input: &LogicalPlan| input.exists(|node| Ok(matches!(node, LogicalPlan::TableScan(_))));
    let mut tables = union.inputs.iter().zip(&branches).filter(|(_, brings)| **brings == Brings::Table);
    let (what, instead) = match tables.any(|(input, _)| reads_table(input).unwrap_or(true)) {
        true => {
            ("a table (UNION): the table's", "write the table's rows to the sink first, or read the table as a stream")
        }
        false => ("constants (UNION): such", "write the constant rows to the sink first, as a batch"),
    };
    Err(Error::unsupported(format!("a stream cannot be put together with {what} rows belong to no batch"))
        .with_hint(instead))
}

fn check_join(join: &Join, mode: OutputMode) -> Result<()> {
    use JoinType::{Full, Left, LeftAnti, LeftMark, LeftSemi, Right, RightAnti, RightMark, RightSemi};
    match (brings(&join.left, mode), brings(&join.right, mode)) {
        (Brings::WholeAnswer | Brings::Table, Brings::WholeAnswer | Brings::Table) => Ok(()),
        (Brings::NewRows | Brings::NewValues, Brings::Table) => match join.join_type {
            RightSemi | RightMark => Err(not_remembered(join)),
            Right | Full | RightAnti => Err(never_final(join)),
            _ => Ok(()),
        },
        (Brings::Table, Brings::NewRows | Brings::NewValues) => match join.join_type {
            LeftSemi | LeftMark => Err(not_remembered(join)),
            Left | Full | LeftAnti => Err(never_final(join)),
            _ => Ok(()),
        },
        // Such a join becomes a node of ours, whose own rules are checked then.
        (Brings::NewRows, Brings::NewRows) => check_stream_join(join, mode),
        (Brings::NewValues, _) | (_, Brings::NewValues) => Err(follows_new_values(mode)),
        _ => Err(Error::unsupported(format!(
            "in {mode} mode rows of a stream cannot be joined with an aggregation of a stream (a subquery is such a join, \
             too): it changes with every batch, and rows of earlier batches are not looked at again"
        ))
        .with_hint("write the aggregation to a table and read that")),
    }
}

fn never_final(join: &Join) -> Error {
    let spelled = as_set_operation(join).unwrap_or_else(|| match join.null_aware {
        true => "NOT IN".to_owned(),
        false => format!("a {} join", join.join_type),
    });
    Error::unsupported(format!(
        "{spelled} that keeps rows of the table cannot be answered: a match may always still come in the stream (a \
         subquery is such a join, too)"
    ))
    .with_hint("keep the rows of the stream instead: put the stream on the side whose rows are kept")
}

/// Rows of a table that come out once they have a match.
fn not_remembered(join: &Join) -> Error {
    let spelled = as_set_operation(join).unwrap_or_else(|| "a semi join (IN, EXISTS)".to_owned());
    Error::unsupported(format!(
        "{spelled} that gives rows of the table cannot be answered: nothing remembers which of them came out already"
    ))
    .with_hint("join the stream with the table (JOIN) and give each row once (DISTINCT)")
}

/// How many of the keys are event times.
fn keys_with_event_time(node: &DeduplicateNode) -> usize {
    let schema = node.input.schema();
    let is_marked =
        |key: &&datafusion::common::Column| schema.field_from_column(key).is_ok_and(|field| is_event_time(field));
    node.keys.iter().filter(is_marked).count()
}

fn check_deduplicate(node: &DeduplicateNode, mode: OutputMode) -> Result<()> {
    let keys = node.keys.len();
    let of_time = node.within_watermark || keys_with_event_time(node) > 0;
    // By some of the columns, the first value that came is kept and never replaced, as in Spark.
    if brings(&node.input, mode) == Brings::NewValues && (of_time || keys >= node.input.schema().fields().len()) {
        return Err(follows_new_values(mode));
    }
    let marked = node.input.schema().fields().iter().filter(|field| is_event_time(field)).count();
    if node.within_watermark && marked == 0 {
        return Err(Error::unsupported("duplicates can be dropped within a watermark only where there is one")
            .with_hint("call `with_watermark` before, or use `drop_duplicates`, which never evicts keys"));
    }
    if marked > 1 && keys_with_event_time(node) != 1 {
        return Err(Error::unsupported(format!(
            "{marked} columns carry a watermark, and it is not clear by which of them rows are late"
        ))
        .with_hint("select one of them before dropping duplicates"));
    }
    Ok(())
}
