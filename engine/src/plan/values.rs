//! `VALUES` whose expressions answer anew in every batch: the time, a random number, a volatile function of the user's.
//!
//! DataFusion computes `VALUES` when it plans, and a stream is planned once. So such an expression becomes a column:
//!
//! ```text
//! VALUES (1, now()), (2, NULL)
//!
//! Projection: column1, CASE row WHEN 0 THEN now() ELSE column2 END
//!   NumberRows: row
//!     Values: (1, NULL), (2, NULL)
//! ```

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{ExprSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::{Case, Expr, ExprSchemable, Extension, LogicalPlan, Projection, Values, lit};

use super::clock::returns_time;
use super::node::number_rows::NumberRowsNode;

/// Takes what changes from batch to batch out of all `VALUES` of a plan, subqueries included.
pub(super) fn compute_by_batch(plan: LogicalPlan) -> Result<LogicalPlan> {
    let mut places = 0;
    plan.transform_up_with_subqueries(|plan| match plan {
        LogicalPlan::Values(values) if values.values.iter().flatten().any(changes) => {
            places += 1;
            Ok(Transformed::yes(computed(values, places)?))
        }
        other => Ok(Transformed::no(other)),
    })
    .data()
}

fn changes(expr: &Expr) -> bool {
    let reads_time = |expr: &Expr| matches!(expr, Expr::ScalarFunction(call) if returns_time(&call.func));
    expr.is_volatile() || expr.exists(|expr| Ok(reads_time(expr))).unwrap_or(true)
}

fn computed(values: Values, place: usize) -> Result<LogicalPlan> {
    let schema = Arc::clone(&values.schema);
    // By column: the rows that are computed.
    let mut cases: Vec<Vec<(u64, Expr)>> = vec![vec![]; schema.fields().len()];
    let mut rows = vec![];
    for (number, row) in (0_u64..).zip(values.values) {
        let mut kept = vec![];
        for (column, expr) in row.into_iter().enumerate() {
            if changes(&expr) {
                let field = schema.field(column);
                let kept_place = match field.is_nullable() {
                    true => ScalarValue::try_from(field.data_type())?,
                    false => ScalarValue::new_default(field.data_type())?,
                };
                kept.push(Expr::Literal(kept_place, None));
                cases[column].push((number, expr));
            } else {
                kept.push(expr);
            }
        }
        rows.push(kept);
    }
    let values = LogicalPlan::Values(Values { schema: Arc::clone(&schema), values: rows });
    let numbered = NumberRowsNode::of_values(values, place)?;
    let number = numbered.number();
    let columns = schema.columns().into_iter().zip(cases).map(|(column, cases)| {
        if cases.is_empty() {
            return Ok(Expr::Column(column));
        }
        let data_type = schema.field_from_column(&column)?.data_type();
        let when_then = cases.into_iter().map(|(row, expr)| {
            let value = expr.cast_to(data_type, schema.as_ref())?;
            Ok((Box::new(lit(row)), Box::new(value)))
        });
        let when_then = when_then.collect::<Result<Vec<_>>>()?;
        let name = column.name.clone();
        let otherwise = Some(Box::new(Expr::Column(column)));
        Ok(Expr::Case(Case::new(Some(Box::new(number.clone())), when_then, otherwise)).alias(name))
    });
    let columns = columns.collect::<Result<Vec<_>>>()?;
    let input = LogicalPlan::Extension(Extension { node: Arc::new(numbered) });
    Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(input))?))
}
