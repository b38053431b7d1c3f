//! A join of two streams as a logical node: DataFusion's join, and what bounds its state.
//!
//! DataFusion optimises the user's join as any other: it finds the equal keys and sinks conditions on one side below.
//! Then [`join_streams`] puts this node in its place, so that our operator answers it. Whether the state is bounded is
//! derived from the optimised condition, which is the one that runs.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use datafusion::common::DFSchemaRef;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, Extension, Join, LogicalPlan, UserDefinedLogicalNodeCore, build_join_schema};

use crate::error::Error;
use crate::output_mode::OutputMode;
use crate::plan::join_bounds::{check_stream_join, check_unmatched_rows_end, join_bounds};
use crate::watermark::{JoinBounds, SideBound};

/// The logical node of a join of two streams.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct StreamJoinNode {
    pub(crate) join: Join,
    pub(crate) bounds: JoinBounds,
}

impl PartialOrd for StreamJoinNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.join.partial_cmp(&other.join).filter(|order| *order != Ordering::Equal || self == other)
    }
}

impl UserDefinedLogicalNodeCore for StreamJoinNode {
    fn name(&self) -> &str {
        "StreamJoin"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![self.join.left.as_ref(), self.join.right.as_ref()]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.join.schema
    }

    /// The keys pair by pair, then the filter.
    fn expressions(&self) -> Vec<Expr> {
        let keys = self.join.on.iter().flat_map(|(left, right)| [left.clone(), right.clone()]);
        keys.chain(self.join.filter.clone()).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "StreamJoin: {}, on=[{}]", self.join.join_type, keys_of(&self.join))?;
        match &self.join.filter {
            Some(filter) => write!(f, ", filter={filter}"),
            None => Ok(()),
        }
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        let wrong = || DataFusionError::Internal("a StreamJoin was rebuilt from other parts".into());
        let [left, right] = <[LogicalPlan; 2]>::try_from(inputs).map_err(|_| wrong())?;
        let mut exprs = exprs.into_iter();
        let on = (0..self.join.on.len())
            .map(|_| exprs.next().zip(exprs.next()).ok_or_else(wrong))
            .collect::<Result<Vec<_>>>()?;
        let filter = exprs.next();
        if filter.is_some() != self.join.filter.is_some() {
            return Err(wrong());
        }
        let schema = Arc::new(build_join_schema(left.schema(), right.schema(), &self.join.join_type)?);
        let join = Join { left: Arc::new(left), right: Arc::new(right), on, filter, schema, ..self.join.clone() };
        Ok(StreamJoinNode { join, bounds: self.bounds.clone() })
    }
}

/// Puts a [`StreamJoinNode`] in the place of every join of two sides that bring new rows. Refuses those whose rows
/// without a match would never be known, and those without an equality.
pub(crate) fn join_streams(
    plan: LogicalPlan,
    mode: OutputMode,
    brings_new_rows: &dyn Fn(&LogicalPlan) -> bool,
) -> crate::error::Result<LogicalPlan> {
    let plan = plan.transform_up(|plan| {
        let LogicalPlan::Join(join) = plan else { return Ok(Transformed::no(plan)) };
        if !brings_new_rows(&join.left) || !brings_new_rows(&join.right) {
            return Ok(Transformed::no(LogicalPlan::Join(join)));
        }
        check_stream_join(&join, mode)?;
        if join.on.is_empty() {
            return Err(Error::unsupported("a join of two streams needs an equality, and its condition has none")
                .with_hint("join on equal columns, such as `a.id = b.id`, and put other conditions beside that")
                .into());
        }
        let bounds = join_bounds(&join.on, join.filter.as_ref(), join.left.schema(), join.right.schema());
        check_unmatched_rows_end(&join, &bounds)?;
        Ok(Transformed::yes(LogicalPlan::Extension(Extension { node: Arc::new(StreamJoinNode { join, bounds }) })))
    })?;
    Ok(plan.data)
}

fn keys_of(join: &Join) -> String {
    let keys: Vec<String> = join.on.iter().map(|(left, right)| format!("{left} = {right}")).collect();
    keys.join(", ")
}

/// Describes the sides of joins whose rows are never evicted, for a warning at the start.
pub(crate) fn unbounded_sides(plan: &LogicalPlan) -> Vec<String> {
    let mut found = vec![];
    // The closure never fails.
    let _ = plan.apply(|node| {
        if let LogicalPlan::Extension(extension) = node
            && let Some(StreamJoinNode { join, bounds }) = extension.node.as_any().downcast_ref::<StreamJoinNode>()
        {
            let sides = [("left", bounds.left), ("right", bounds.right)];
            for (side, _) in sides.into_iter().filter(|(_, bound)| *bound == SideBound::None) {
                found.push(format!("the {side} rows of the join on {} are never evicted", keys_of(join)));
            }
        }
        Ok(TreeNodeRecursion::Continue)
    });
    found
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
    use datafusion::common::{JoinType, NullEquality, ScalarValue};
    use datafusion::logical_expr::{LogicalPlanBuilder, col, lit, table_scan};

    use super::*;
    use crate::error::ErrorKind;
    use crate::watermark::event_time_metadata::event_time_marker;

    fn scan(name: &str, marked: bool) -> LogicalPlan {
        let mark = if marked { event_time_marker() } else { HashMap::new() };
        let time = Field::new("t", DataType::Timestamp(TimeUnit::Microsecond, None), true).with_metadata(mark);
        let schema = Schema::new(vec![time, Field::new("k", DataType::Int64, true)]);
        table_scan(Some(name), &schema, None).unwrap().build().unwrap()
    }

    /// The join of two streams, marked or not, on equal keys; if ranged, with times at most 5 s apart.
    fn joined(how: JoinType, left: bool, right: bool, ranged: bool) -> LogicalPlan {
        let five = lit(ScalarValue::new_interval_mdn(0, 0, 5_000_000_000));
        let range = ranged.then(|| col("r.t").between(col("l.t"), col("l.t") + five));
        LogicalPlanBuilder::from(scan("l", left))
            .join_detailed(scan("r", right), how, (vec!["l.k"], vec!["r.k"]), range, NullEquality::NullEqualsNothing)
            .unwrap()
            .build()
            .unwrap()
    }

    fn start(plan: LogicalPlan, mode: OutputMode) -> crate::error::Result<LogicalPlan> {
        join_streams(plan, mode, &|_| true)
    }

    #[test]
    fn outer_joins_need_both_watermarks_and_a_range() {
        use JoinType::{Full, Left, LeftAnti, LeftSemi, Right, RightAnti};
        for (how, left, right, ranged, accepted) in [
            (Left, true, true, true, true),
            (Left, false, true, true, false),
            (Left, true, false, true, false),
            (Left, true, true, false, false),
            (Left, false, false, true, false),
            (LeftAnti, true, true, true, true),
            (LeftAnti, true, true, false, false),
            (LeftAnti, false, true, true, false),
            (Right, true, true, true, true),
            (Right, true, false, true, false),
            (RightAnti, false, true, true, false),
            (Full, true, true, true, true),
            (Full, true, false, true, false),
            (Full, true, true, false, false),
            // What comes out at its first match need not be final.
            (LeftSemi, false, false, false, true),
            (LeftSemi, false, true, true, true),
            (LeftSemi, true, true, true, true),
        ] {
            let result = start(joined(how, left, right, ranged), OutputMode::Append);
            assert_eq!(result.is_ok(), accepted, "{how} {left} {right} {ranged}: {result:?}");
            if let Err(error) = result {
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                assert!(error.hint().is_some(), "{error}");
            }
        }
    }

    #[test]
    fn modes_are_checked() {
        use JoinType::{Inner, Left, LeftAnti, LeftSemi};
        for (how, mode, accepted) in [
            (Inner, OutputMode::Update, true),
            (LeftSemi, OutputMode::Update, true),
            (Left, OutputMode::Update, false),
            (Left, OutputMode::Complete, false),
            (LeftAnti, OutputMode::Update, false),
            (Inner, OutputMode::Complete, true),
        ] {
            assert_eq!(start(joined(how, true, true, true), mode).is_ok(), accepted, "{how} {mode}");
        }
    }

    #[test]
    fn what_is_kept_for_ever_is_named() {
        let plan = start(joined(JoinType::Inner, true, false, true), OutputMode::Append).unwrap();
        assert_eq!(unbounded_sides(&plan), ["the left rows of the join on l.k = r.k are never evicted"]);
        let plan = start(joined(JoinType::Inner, true, true, true), OutputMode::Append).unwrap();
        assert!(unbounded_sides(&plan).is_empty());
    }

    #[test]
    fn an_inequality_alone_is_refused() {
        let plan = LogicalPlanBuilder::from(scan("l", true))
            .join_on(scan("r", true), JoinType::Inner, [col("l.k").lt(col("r.k"))])
            .unwrap()
            .build()
            .unwrap();
        assert_eq!(start(plan, OutputMode::Append).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn a_node_is_rebuilt_from_its_parts() {
        let plan = start(joined(JoinType::Left, true, true, true), OutputMode::Append).unwrap();
        let LogicalPlan::Extension(extension) = &plan else { panic!("{plan}") };
        let node = &extension.node;
        let inputs = node.inputs().into_iter().cloned().collect();
        let again = node.with_exprs_and_inputs(node.expressions(), inputs).unwrap();
        assert_eq!(&again, node);
    }
}
