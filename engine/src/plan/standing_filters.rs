//! Predicates whose answer changes from batch to batch stay above what remembers rows.

use std::sync::Arc;

use datafusion::common::JoinType;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{Expr, Extension, Filter, Join, LogicalPlan};

use super::check::is_streaming;
use super::node::deduplicate::DeduplicateNode;
use super::node::limit::StreamLimitNode;
use super::node::session::SessionNode;
use super::node::standing_filter::StandingFilterNode;

/// Makes a [`StandingFilterNode`] of every volatile predicate above a node that remembers rows from one batch to the next.
/// That of an inner join of two streams is taken out of its condition: it is asked when a pair comes out, not when one of
/// its rows comes in.
pub(super) fn let_filters_stand(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|plan| match plan {
        LogicalPlan::Filter(filter) if remembers(&filter.input) && filter.predicate.is_volatile() => {
            let (standing, others) = split(filter.predicate);
            let input = match conjunction(others) {
                Some(others) => LogicalPlan::Filter(Filter::try_new(others, filter.input)?),
                None => Arc::unwrap_or_clone(filter.input),
            };
            Ok(Transformed::yes(stand(standing, input)))
        }
        LogicalPlan::Join(mut join) if joins_streams(&join) && join.filter.as_ref().is_some_and(Expr::is_volatile) => {
            let (standing, others) = join.filter.take().map(split).unwrap_or_default();
            join.filter = conjunction(others);
            Ok(Transformed::yes(stand(standing, LogicalPlan::Join(join))))
        }
        other => Ok(Transformed::no(other)),
    })
    .data()
}

/// The conditions of a predicate that must stay, and the others. One with a subquery is left to DataFusion, which makes a
/// join of it first.
fn split(predicate: Expr) -> (Vec<Expr>, Vec<Expr>) {
    let has_subquery = |expr: &Expr| {
        let is_subquery = |expr: &Expr| {
            matches!(expr, Expr::InSubquery(_) | Expr::Exists(_) | Expr::ScalarSubquery(_) | Expr::SetComparison(_))
        };
        expr.exists(|expr| Ok(is_subquery(expr))).unwrap_or(true)
    };
    split_conjunction_owned(predicate).into_iter().partition(|expr| expr.is_volatile() && !has_subquery(expr))
}

fn stand(standing: Vec<Expr>, input: LogicalPlan) -> LogicalPlan {
    match conjunction(standing) {
        Some(predicate) => {
            LogicalPlan::Extension(Extension { node: Arc::new(StandingFilterNode { predicate, input }) })
        }
        None => input,
    }
}

fn joins_streams(join: &Join) -> bool {
    join.join_type == JoinType::Inner && is_streaming(&join.left) && is_streaming(&join.right)
}

/// Whether any node of a plan goes by rows of other batches, or by how many rows there are.
fn remembers(plan: &LogicalPlan) -> bool {
    let remembers = |node: &LogicalPlan| match node {
        LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_) => true,
        LogicalPlan::Join(join) => is_streaming(&join.left) && is_streaming(&join.right),
        LogicalPlan::Extension(Extension { node }) => {
            let node = node.as_any();
            node.is::<DeduplicateNode>() || node.is::<StreamLimitNode>() || node.is::<SessionNode>()
        }
        _ => false,
    };
    // The closure never fails.
    plan.exists(|node| Ok(remembers(node))).unwrap_or(true)
}
