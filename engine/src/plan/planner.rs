//! DataFusion's planner, and ours for our own nodes.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::error::Result;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNode};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};

use super::node::deduplicate::DeduplicateNode;
use super::node::join::StreamJoinNode;
use super::node::limit::StreamLimitNode;
use super::node::number_rows::NumberRowsNode;
use super::node::session::SessionNode;
use super::node::single_row::SingleRowNode;
use super::node::standing_filter::StandingFilterNode;
use super::node::watermark::WatermarkNode;
use super::session_windows::plan_session_window;
use super::stateful;
use super::stream_join::plan_stream_join;
use crate::operator::event_time::EventTimeExec;
use crate::operator::row_number::RowNumberExec;
use crate::operator::single_row::SingleRowExec;
use crate::output_mode::OutputMode;

/// DataFusion's physical planner, with ours for our own nodes.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamPlanner {
    pub(super) mode: OutputMode,
    pub(super) partitions: usize,
}

#[async_trait]
impl datafusion::execution::context::QueryPlanner for StreamPlanner {
    async fn create_physical_plan(
        &self,
        logical_plan: &LogicalPlan,
        session: &dyn Session,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(*self)]);
        planner.create_physical_plan(logical_plan, session).await
    }
}

#[async_trait]
impl ExtensionPlanner for StreamPlanner {
    async fn plan_extension(
        &self,
        _planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _logical_inputs: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        planning: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let node = node.as_any();
        let planned = match physical_inputs {
            [input] => {
                if let Some(watermark) = node.downcast_ref::<WatermarkNode>() {
                    let schema = Arc::new(watermark.schema().as_arrow().clone());
                    let column = watermark.column_index()?;
                    Arc::new(EventTimeExec::new(watermark.number, column, schema, Arc::clone(input)))
                } else if let Some(deduplicate) = node.downcast_ref::<DeduplicateNode>() {
                    stateful::plan_deduplicate(deduplicate, input, self.partitions)?
                } else if let Some(limit) = node.downcast_ref::<StreamLimitNode>() {
                    stateful::plan_limit(limit, input)?
                } else if let Some(numbered) = node.downcast_ref::<NumberRowsNode>() {
                    let schema = Arc::new(numbered.schema().as_arrow().clone());
                    Arc::new(RowNumberExec::new(Arc::clone(input), schema))
                } else if node.is::<SingleRowNode>() {
                    Arc::new(SingleRowExec::new(Arc::clone(input)))
                } else if let Some(filter) = node.downcast_ref::<StandingFilterNode>() {
                    filter.plan(Arc::clone(input), session, planning)?
                } else if let Some(sessions) = node.downcast_ref::<SessionNode>() {
                    plan_session_window(sessions, Arc::clone(input), session, planning, self.partitions, self.mode)?
                } else {
                    return Ok(None);
                }
            }
            [left, right] => match node.downcast_ref::<StreamJoinNode>() {
                Some(join) => {
                    let (left, right) = (Arc::clone(left), Arc::clone(right));
                    plan_stream_join(join, left, right, session, planning, self.partitions)?
                }
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        Ok(Some(planned))
    }
}
