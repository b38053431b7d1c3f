//! What must see its whole batch does, where a node above may stop reading before its input has ended.
//!
//! Such a node is a limit, or a join one side of which has no rows. Operators that remember something must see all,
//! those that note event times, and sources that emit dead letters: they get an exchange, which runs to its end before
//! the node above asks. What stands between the two is evaluated only as far as that node asks for it.

use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::union::UnionExec;

use crate::operator::event_time::EventTimeExec;
use crate::operator::exchange::ExchangeExec;
use crate::operator::join::StreamJoinExec;
use crate::operator::limit::FirstRowsExec;
use crate::operator::stateful;
use crate::source::StreamScanExec;

/// The rule that runs inputs which must see their whole batch to the end, below nodes that may stop reading early.
#[derive(Debug)]
pub(super) struct DrainInputsRule;

impl PhysicalOptimizerRule for DrainInputsRule {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|plan| {
            let is_limit = plan.is::<LocalLimitExec>() || plan.is::<GlobalLimitExec>() || plan.is::<FirstRowsExec>();
            let reads_all = plan.is::<UnionExec>() || plan.is::<StreamJoinExec>();
            let joins = plan.children().len() > 1 && !reads_all;
            if !(is_limit || joins) || !plan.children().into_iter().any(must_finish) {
                return Ok(Transformed::no(plan));
            }
            Ok(Transformed::yes(with_whole_inputs(plan)?))
        })
        .data()
    }

    fn name(&self) -> &str {
        "drain_inputs"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The node over inputs in which all that must run to its end does.
fn with_whole_inputs(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let whole = |child: &Arc<dyn ExecutionPlan>| -> Result<Arc<dyn ExecutionPlan>> {
        let child = Arc::clone(child);
        if child.is::<ExchangeExec>() || !must_finish(&child) {
            return Ok(child);
        }
        if must_finish_itself(&child) {
            return Ok(Arc::new(ExchangeExec::in_place(child)));
        }
        with_whole_inputs(child)
    };
    let children = plan.children().into_iter().map(whole).collect::<Result<_>>()?;
    plan.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
}

/// Whether a node, or any below, must see its whole input.
fn must_finish(plan: &Arc<dyn ExecutionPlan>) -> bool {
    must_finish_itself(plan) || plan.children().into_iter().any(must_finish)
}

fn must_finish_itself(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.is::<EventTimeExec>()
        || stateful(plan.as_ref()).is_some()
        || plan.downcast_ref::<StreamScanExec>().is_some_and(StreamScanExec::emits_dead_letters)
}
