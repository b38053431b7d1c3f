//! Scalar subqueries that depend on no row around them, `WHERE x > (SELECT max(limit) FROM limits)` say: their values are
//! computed before the first stage of a batch.
//!
//! DataFusion's planner puts one node on top of the whole plan that computes them when its first row is asked for. A plan with
//! state is cut into stages, and those below a cut run before anybody asks the top: they would find no values. So that node
//! is taken off the plan, and runs by itself, over no rows, ahead of every batch. What a subquery reads is kept over batches
//! like any other [static side](super::static_inputs).

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::scalar_subquery::ScalarSubqueryExec;

/// What to run before every batch, so that the expressions of its plan find the values of their subqueries.
#[derive(Debug, Clone, Default)]
pub(crate) struct ScalarSubqueries(Vec<Arc<dyn ExecutionPlan>>);

impl ScalarSubqueries {
    /// Takes the subqueries off a plan. Those inside of subqueries stay where they are: no cut lies between.
    pub(super) fn take(plan: Arc<dyn ExecutionPlan>) -> Result<(Arc<dyn ExecutionPlan>, Self)> {
        let mut taken = vec![];
        let plan = plan.transform_down(|plan| {
            let Some(node) = plan.downcast_ref::<ScalarSubqueryExec>() else { return Ok(Transformed::no(plan)) };
            let no_rows = Arc::new(EmptyExec::new(plan.schema()));
            let alone = ScalarSubqueryExec::new(no_rows, node.subqueries().to_vec(), node.results().clone());
            taken.push(Arc::new(alone) as Arc<dyn ExecutionPlan>);
            Ok(Transformed::yes(Arc::clone(node.input())))
        })?;
        Ok((plan.data, ScalarSubqueries(taken)))
    }

    /// The plans to run to their end, one after the other; they give no rows.
    pub(crate) fn plans(&self) -> &[Arc<dyn ExecutionPlan>] {
        &self.0
    }

    /// Makes them fit to run again, by what makes any plan fit.
    pub(super) fn reset(
        &mut self,
        reset: impl Fn(Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>>,
    ) -> Result<()> {
        for plan in &mut self.0 {
            *plan = reset(Arc::clone(plan))?;
        }
        Ok(())
    }
}
