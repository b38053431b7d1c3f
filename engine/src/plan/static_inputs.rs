//! Finds the static sides of a physical plan and keeps of them, for all batches, what does not depend on the batch.
//!
//! A side depends on the batch where it reads the time, draws a random number or calls any other function whose answers
//! change: `… JOIN d ON … WHERE d.till > now()`. Such a side is computed anew by every batch from what is kept below.

use std::sync::Arc;

use datafusion::common::JoinType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::physical_expr::scalar_subquery::ScalarSubqueryExpr;
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::joins::HashJoinExec;

use super::random::Drawn;
use crate::operator::cached_input::CachedInputExec;
use crate::source::StreamScanExec;

/// Whether any leaf below is a stream.
pub(super) fn is_streaming(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.is::<StreamScanExec>() || plan.children().into_iter().any(is_streaming)
}

/// Whether the rows of a static plan may be others in another batch.
fn depends_on_batch(plan: &Arc<dyn ExecutionPlan>) -> bool {
    if let Some(side) = plan.downcast_ref::<CachedInputExec>()
        && side.keeps()
    {
        return false;
    }
    let mut depends = false;
    let visited = plan.apply_expressions(&mut |expr| {
        depends |= changes(expr);
        Ok(TreeNodeRecursion::Continue)
    });
    depends || visited.is_err() || plan.children().into_iter().any(depends_on_batch)
}

/// Whether an expression calls a function that answers otherwise in another batch.
fn changes(expr: &Arc<dyn PhysicalExpr>) -> bool {
    let calls = |expr: &Arc<dyn PhysicalExpr>| {
        // What a subquery gave is known only while a batch runs.
        expr.is_volatile_node()
            || expr.is::<ScalarSubqueryExpr>()
            || expr.downcast_ref::<ScalarFunctionExpr>().is_some_and(|call| call.fun().inner().is::<Drawn>())
    };
    // The closure never fails.
    expr.exists(|expr| Ok(calls(expr))).unwrap_or(true)
}

/// Keeps the inputs of a plan that depends on the batch, each as far up as it does not.
fn keep_below(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let children = plan.children().into_iter().map(Arc::clone);
    let children = children
        .map(|child| match depends_on_batch(&child) {
            true => keep_below(child),
            false => Ok(Arc::new(CachedInputExec::keeping(child)) as _),
        })
        .collect::<Result<Vec<_>>>()?;
    match children.is_empty() {
        true => Ok(plan),
        false => plan.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute)),
    }
}

/// Where a node has inputs of both kinds, puts a [`CachedInputExec`] on each static one. Runs before DataFusion's own rules,
/// so that these see its size.
#[derive(Debug)]
pub(super) struct CacheStaticInputsRule;

impl PhysicalOptimizerRule for CacheStaticInputsRule {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let mut numbers = 0..;
        plan.transform_up(|plan| {
            let children: Vec<Arc<dyn ExecutionPlan>> = plan.children().into_iter().map(Arc::clone).collect();
            if children.len() < 2 || children.iter().all(is_streaming) || !children.iter().any(is_streaming) {
                return Ok(Transformed::no(plan));
            }
            let children = children
                .into_iter()
                .map(|child| {
                    let side = match (is_streaming(&child), depends_on_batch(&child)) {
                        (true, _) => return Ok(child),
                        (false, false) => CachedInputExec::keeping(child),
                        (false, true) => CachedInputExec::of_batch(keep_below(child)?),
                    };
                    Ok(Arc::new(side.numbered(numbers.next().unwrap_or_default())) as _)
                })
                .collect::<Result<_>>()?;
            let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
            Ok(Transformed::yes(plan.replace_children(children, options)?))
        })
        .data()
    }

    fn name(&self) -> &str {
        "cache_static_inputs"
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

/// The plan, ready for another batch. A hash join is left as it is, for its hash table, where the rows it is built from are the
/// same in every batch and it remembers nothing else: one that gives out rows of that side by what they met has notes of it.
pub(crate) fn reset(plan: Arc<dyn ExecutionPlan>, keep: Keep) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|plan| {
        if keep == Keep::HashTables && plan.downcast_ref::<HashJoinExec>().is_some_and(keeps_its_table) {
            return Ok(Transformed::no(plan));
        }
        Ok(Transformed::yes(plan.reset_state()?))
    })
    .data()
}

fn keeps_its_table(join: &HashJoinExec) -> bool {
    use JoinType::{Inner, Right, RightAnti, RightMark, RightSemi};
    let takes_no_notes = matches!(join.join_type(), Inner | Right | RightSemi | RightAnti | RightMark);
    takes_no_notes && !is_streaming(join.left()) && !depends_on_batch(join.left())
}
