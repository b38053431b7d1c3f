//! Finds the static sides of a physical plan and keeps their rows for all batches.

use std::sync::Arc;

use datafusion::common::JoinType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::joins::HashJoinExec;

use crate::operator::static_side::StaticSideExec;
use crate::source::StreamScanExec;

/// Whether any leaf below is a stream.
pub(super) fn is_streaming(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.is::<StreamScanExec>() || plan.children().into_iter().any(is_streaming)
}

/// Where a node has inputs of both kinds, puts a [`StaticSideExec`] on each static one. Runs before DataFusion's own rules,
/// so that these see its size.
#[derive(Debug)]
pub(super) struct KeepStaticSides;

impl PhysicalOptimizerRule for KeepStaticSides {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|plan| {
            let children: Vec<Arc<dyn ExecutionPlan>> = plan.children().into_iter().map(Arc::clone).collect();
            if children.len() < 2 || children.iter().all(is_streaming) || !children.iter().any(is_streaming) {
                return Ok(Transformed::no(plan));
            }
            let children = children
                .into_iter()
                .map(|child| if is_streaming(&child) { child } else { Arc::new(StaticSideExec::new(child)) as _ })
                .collect();
            let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
            Ok(Transformed::yes(plan.replace_children(children, options)?))
        })
        .data()
    }

    fn name(&self) -> &str {
        "keep_static_sides"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// What a batch leaves behind in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// The rows of static tables, and the hash tables built from them.
    HashTables,
    /// The rows of static tables. The hash tables are built anew, which also drops the metrics that joins pile up.
    StaticRows,
}

/// The plan, ready for another batch. A hash join that builds from a static table is left as it is, for its table; unless it
/// gives rows of the table, as then it remembers which of them had a match.
pub(crate) fn reset(plan: Arc<dyn ExecutionPlan>, keep: Keep) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|plan| {
        let can_stay = plan
            .downcast_ref::<HashJoinExec>()
            .is_some_and(|join| !is_streaming(join.left()) && !gives_built_rows(*join.join_type()));
        if can_stay && keep == Keep::HashTables {
            return Ok(Transformed::no(plan));
        }
        Ok(Transformed::yes(plan.reset_state()?))
    })
    .data()
}

/// Whether a hash join gives rows of the side it builds from by themselves, after all others.
fn gives_built_rows(join_type: JoinType) -> bool {
    use JoinType::{Full, Left, LeftAnti, LeftMark, LeftSemi};
    matches!(join_type, Left | Full | LeftSemi | LeftAnti | LeftMark)
}
