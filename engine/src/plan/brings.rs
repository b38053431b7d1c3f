//! What a batch brings of the rows of a part of a plan.
//!
//! | output mode | a stream | an aggregation of it | an aggregation of that |
//! |---|---|---|---|
//! | append | new rows | new rows: groups that are final | new rows |
//! | update | new rows | new values | refused |
//! | complete | new rows | the whole answer | the whole answer |
//!
//! From this follows where state is needed: what is asked of new rows concerns the rows of earlier batches, too, and what is
//! asked of a whole answer is asked of one batch only. It is decided branch by branch: a plan may have both.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Distinct, Expr, LogicalPlan};

use super::check::stream_of;
use super::node::session::SessionNode;
use crate::output_mode::OutputMode;

/// What a batch brings of the rows of a part of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Brings {
    /// No stream is read: every batch finds the same rows.
    Table,
    /// Rows that no batch brought before, and none takes back.
    NewRows,
    /// Of groups that changed, the new values, which take the place of those of earlier batches.
    NewValues,
    /// All that is to be answered so far, in the place of what earlier batches brought.
    WholeAnswer,
    /// New rows beside a whole answer: what earlier batches brought counts in part.
    Mixed,
}

impl Brings {
    /// Both, side by side.
    fn and(self, other: Brings) -> Brings {
        use Brings::{Mixed, NewRows, NewValues, Table};
        match (self, other) {
            (Table, other) | (other, Table) => other,
            (one, other) if one == other => one,
            (NewRows, NewValues) | (NewValues, NewRows) => NewValues,
            _ => Mixed,
        }
    }
}

/// What a batch brings of the rows of this plan, in this mode.
pub(crate) fn brings(plan: &LogicalPlan, mode: OutputMode) -> Brings {
    let below = below(plan, mode);
    match below {
        Brings::NewRows | Brings::NewValues if aggregates(plan) => match mode {
            OutputMode::Append => Brings::NewRows,
            OutputMode::Update => Brings::NewValues,
            OutputMode::Complete => Brings::WholeAnswer,
        },
        below => below,
    }
}

/// What a batch brings of the inputs of a node, together. What its subqueries read is an input, too.
pub(crate) fn below(plan: &LogicalPlan, mode: OutputMode) -> Brings {
    if let LogicalPlan::TableScan(scan) = plan {
        return if stream_of(scan).is_some() { Brings::NewRows } else { Brings::Table };
    }
    let inputs = plan.inputs().into_iter().fold(Brings::Table, |all, input| all.and(brings(input, mode)));
    queries_in(plan).into_iter().fold(inputs, |all, subquery| all.and(brings(&subquery, mode)))
}

/// The queries within the expressions of a node.
pub(crate) fn queries_in(plan: &LogicalPlan) -> Vec<LogicalPlan> {
    let mut found = vec![];
    // The closures never fail.
    let _ = plan.apply_expressions(|expr| {
        expr.apply(|expr| {
            let subquery = match expr {
                Expr::InSubquery(inner) => Some(&inner.subquery),
                Expr::SetComparison(inner) => Some(&inner.subquery),
                Expr::Exists(inner) => Some(&inner.subquery),
                Expr::ScalarSubquery(inner) => Some(inner),
                _ => None,
            };
            found.extend(subquery.map(|subquery| subquery.subquery.as_ref().clone()));
            Ok(TreeNodeRecursion::Continue)
        })
    });
    found
}

/// Whether a node makes one row of several.
fn aggregates(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(Distinct::On(_)) => true,
        LogicalPlan::Extension(extension) => extension.node.as_any().is::<SessionNode>(),
        _ => false,
    }
}
