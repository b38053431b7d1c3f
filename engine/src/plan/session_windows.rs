//! How an aggregation by session windows becomes an operator.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::Session;
use datafusion::common::internal_err;
use datafusion::error::Result;
use datafusion::logical_expr::UserDefinedLogicalNodeCore;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::physical_expr::aggregate::LoweredAggregateBuilder;
use datafusion::physical_expr::create_physical_expr;
use datafusion::physical_plan::ExecutionPlan;

use super::node::session::SessionNode;
use crate::operator::session_window::{SessionSpec, SessionWindowExec};
use crate::output_mode::OutputMode;
use crate::state::key_hash::{can_be_key, not_a_key};

/// The operator for a [`SessionNode`], over an exchange of its input into so many partitions.
pub(super) fn plan_session_window(
    node: &SessionNode,
    input: Arc<dyn ExecutionPlan>,
    session: &dyn Session,
    planning: &PhysicalPlanningContext,
    partitions: usize,
    mode: OutputMode,
) -> Result<Arc<dyn ExecutionPlan>> {
    let (props, logical_schema, physical_schema) = (session.execution_props(), node.input.schema(), input.schema());
    let schema: SchemaRef = Arc::new(node.schema().as_arrow().clone());
    let mut key_fields = schema.fields().iter().take(node.keys.len());
    if let Some(key) = key_fields.find(|key| !can_be_key(key.data_type())) {
        return Err(not_a_key(key).into());
    }
    let physical = |expr| create_physical_expr(expr, logical_schema, props, planning);
    let mut keys = node.keys.iter().map(physical).collect::<Result<Vec<_>>>()?;
    if node.session >= keys.len() {
        return internal_err!("a session window that is not a key");
    }
    let session = keys.remove(node.session);
    let (mut named, mut filters) = (vec![], vec![]);
    for aggregate in &node.aggregates {
        let lowered =
            LoweredAggregateBuilder::new(aggregate, logical_schema, &physical_schema, props, planning).build()?;
        named.push(lowered.aggregate);
        filters.push(lowered.filter);
    }
    let spec = SessionSpec { keys, session, place: node.session, named, filters, schema };
    Ok(Arc::new(SessionWindowExec::over(spec, input, partitions, mode)?))
}
