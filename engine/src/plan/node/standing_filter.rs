//! A filter that stays where the user's query has it.
//!
//! DataFusion lets a predicate sink below whatever has all of its columns; one without columns, such as `now() > …`, sinks
//! below everything. Where rows are remembered over batches that gives other answers: a `LIMIT` would count other rows, a
//! `DISTINCT` would not know what it has seen, a group would lose rows for all batches to come. So predicates whose answer
//! changes from batch to batch become this node [there](crate::plan::standing_filters).

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use datafusion::catalog::Session;
use datafusion::common::DFSchemaRef;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};
use datafusion::physical_expr::create_physical_expr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExec;

/// The logical node of a filter that stays where the query has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd)]
pub(crate) struct StandingFilterNode {
    pub(crate) predicate: Expr,
    pub(crate) input: LogicalPlan,
}

impl StandingFilterNode {
    /// DataFusion's filter, over this input.
    pub(crate) fn plan(
        &self,
        input: Arc<dyn ExecutionPlan>,
        session: &dyn Session,
        planning: &PhysicalPlanningContext,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let props = session.execution_props();
        let predicate = create_physical_expr(&self.predicate, self.input.schema(), props, planning)?;
        Ok(Arc::new(FilterExec::try_new(predicate, input)?))
    }
}

impl UserDefinedLogicalNodeCore for StandingFilterNode {
    fn name(&self) -> &str {
        "StandingFilter"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        self.input.schema()
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![self.predicate.clone()]
    }

    /// Other predicates pass: which of two filters comes first makes no difference.
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        HashSet::new()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "StandingFilter: {}", self.predicate)
    }

    fn with_exprs_and_inputs(&self, mut exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let (Some(predicate), Some(input)) = (exprs.pop(), inputs.pop()) else {
            return Err(DataFusionError::Internal("StandingFilter has one predicate and one input".into()));
        };
        Ok(StandingFilterNode { predicate: predicate.unalias(), input })
    }

    /// What is wanted of the output; the predicate's own columns are added by DataFusion.
    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        Some(vec![output_columns.to_vec()])
    }
}
