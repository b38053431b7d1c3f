//! Subqueries, made ready for DataFusion's rules.
//!
//! A scalar subquery may give no row, and is NULL then. DataFusion takes it for NOT NULL where its column is
//! (<https://github.com/apache/datafusion/issues/24513>): `IS NOT NULL` would be true unasked, and the value no value of its
//! column. [`OrNull`] on top of it says otherwise.
//!
//! It may not give several rows. Where a stream stands in one, scalar subqueries become joins, and DataFusion's join would give
//! a row for each (<https://github.com/apache/datafusion/issues/16134>): a [`SingleRowNode`] below the join makes that an error.
//!
//! What a subquery gives, DataFusion reads off the expressions of its uppermost node; a node of ours has none.

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, Extension, LogicalPlan, Projection, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, Subquery, Volatility,
};
use datafusion::optimizer::AnalyzerRule;

use super::node::limit::StreamLimitNode;
use super::node::single_row::SingleRowNode;

/// What becomes of scalar subqueries that depend on no row around them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Uncorrelated {
    /// DataFusion computes them ahead, and counts their rows.
    ComputedAhead,
    /// They become joins.
    Joined,
}

/// [`prepare`] for the batches of a session.
#[derive(Debug)]
pub(super) struct ScalarSubqueriesOrNull;

impl AnalyzerRule for ScalarSubqueriesOrNull {
    fn name(&self) -> &str {
        "tidewater_scalar_subqueries_or_null"
    }

    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        prepare(plan, Uncorrelated::ComputedAhead)
    }
}

/// Makes every subquery of a plan, those inside of others too, ready; see the [module](self). A second call changes nothing.
pub(super) fn prepare(plan: LogicalPlan, uncorrelated: Uncorrelated) -> Result<LogicalPlan> {
    let mut may_be_null = false;
    let prepared = plan.transform_up_with_subqueries(|node| {
        let names = NamePreserver::new(&node);
        let mut node = node.map_expressions(|expr| {
            let name = names.save(&expr);
            let mut changed = false;
            let prepared = expr.transform_down(|expr| {
                let prepared = prepare_expr(expr, uncorrelated)?;
                changed |= prepared.transformed;
                may_be_null |= prepared.transformed;
                Ok(prepared)
            })?;
            Ok(Transformed::new_transformed(name.restore(prepared.data), changed))
        })?;
        // What is above a column that may be NULL now may be, too.
        if may_be_null && !matches!(node.data, LogicalPlan::Subquery(_)) {
            node = Transformed::yes(node.data.recompute_schema()?);
        }
        Ok(node)
    });
    prepared.data()
}

fn prepare_expr(expr: Expr, uncorrelated: Uncorrelated) -> Result<Transformed<Expr>> {
    Ok(match expr {
        Expr::ScalarFunction(call) if call.func.inner().is::<OrNull>() => {
            // Done already, but for its rows.
            let [Expr::ScalarSubquery(subquery)] = &call.args[..] else {
                return Ok(Transformed::no(Expr::ScalarFunction(call)));
            };
            let subquery = scalar(subquery.clone(), uncorrelated)?;
            let changed = subquery.transformed;
            let expr = call.func.call(vec![Expr::ScalarSubquery(subquery.data)]);
            Transformed::new(expr, changed, TreeNodeRecursion::Jump)
        }
        Expr::ScalarSubquery(subquery) => {
            let is_not_null = subquery.subquery.schema().fields().first().is_some_and(|field| !field.is_nullable());
            let subquery = scalar(subquery, uncorrelated)?;
            let changed = subquery.transformed || is_not_null;
            let expr = Expr::ScalarSubquery(subquery.data);
            let expr = if is_not_null { ScalarUDF::from(OrNull::default()).call(vec![expr]) } else { expr };
            Transformed::new(expr, changed, TreeNodeRecursion::Jump)
        }
        Expr::InSubquery(mut inner) => {
            let subquery = with_expressions(inner.subquery)?;
            inner.subquery = subquery.data;
            Transformed::new_transformed(Expr::InSubquery(inner), subquery.transformed)
        }
        Expr::SetComparison(mut inner) => {
            let subquery = with_expressions(inner.subquery)?;
            inner.subquery = subquery.data;
            Transformed::new_transformed(Expr::SetComparison(inner), subquery.transformed)
        }
        other => Transformed::no(other),
    })
}

/// A scalar subquery that gives one row at most, or says that it gives more.
fn scalar(subquery: Subquery, uncorrelated: Uncorrelated) -> Result<Transformed<Subquery>> {
    let becomes_join = uncorrelated == Uncorrelated::Joined && subquery.outer_ref_columns.is_empty();
    if !becomes_join || has_one_row(&subquery.subquery) {
        return with_expressions(subquery);
    }
    let input = Arc::unwrap_or_clone(subquery.subquery.clone());
    let node = Arc::new(SingleRowNode { input });
    let checked = subquery.with_plan(Arc::new(LogicalPlan::Extension(Extension { node })));
    Ok(Transformed::yes(with_expressions(checked)?.data))
}

/// Whether a plan gives one row at most, over all batches.
fn has_one_row(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Extension(Extension { node }) => {
            let node = node.as_any();
            node.is::<SingleRowNode>() || node.downcast_ref::<StreamLimitNode>().is_some_and(|limit| limit.rows <= 1)
        }
        LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) | LogicalPlan::Sort(_) => {
            plan.max_rows().is_some_and(|rows| rows <= 1) || plan.inputs().into_iter().all(has_one_row)
        }
        plan => plan.max_rows().is_some_and(|rows| rows <= 1),
    }
}

/// A subquery whose uppermost node has expressions.
fn with_expressions(subquery: Subquery) -> Result<Transformed<Subquery>> {
    if subquery.subquery.head_output_expr()?.is_some() {
        return Ok(Transformed::no(subquery));
    }
    let columns = subquery.subquery.schema().columns().into_iter().map(Expr::Column).collect();
    let projection = Projection::try_new(columns, Arc::clone(&subquery.subquery))?;
    Ok(Transformed::yes(subquery.with_plan(Arc::new(LogicalPlan::Projection(projection)))))
}

/// The value, or NULL: of a scalar subquery that may give no row.
#[derive(Debug, PartialEq, Eq, Hash)]
struct OrNull {
    signature: Signature,
}

impl Default for OrNull {
    fn default() -> Self {
        OrNull { signature: Signature::any(1, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for OrNull {
    fn name(&self) -> &str {
        "or_null"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        let [data_type] = arg_types else { return Err(one_argument()) };
        Ok(data_type.clone())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let [field] = args.arg_fields else { return Err(one_argument()) };
        Ok(Arc::new(field.as_ref().clone().with_nullable(true)))
    }

    fn is_strict(&self) -> bool {
        true
    }

    /// Of what may be NULL anyhow, as a column of an outer join that a subquery has become, there is nothing to say.
    fn simplify(&self, mut args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        match args.pop() {
            Some(arg) if info.nullable(&arg)? => Ok(ExprSimplifyResult::Simplified(arg)),
            arg => Ok(ExprSimplifyResult::Original(arg.into_iter().collect())),
        }
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        args.args.pop().ok_or_else(one_argument)
    }
}

fn one_argument() -> DataFusionError {
    DataFusionError::Internal("or_null has one argument".into())
}
