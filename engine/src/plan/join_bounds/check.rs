//! Which joins of two streams may be started.

use datafusion::common::JoinType;
use datafusion::logical_expr::{Join, LogicalPlan};

use crate::error::{Error, Result};
use crate::query::OutputMode;
use crate::watermark::marks::is_event_time;
use crate::watermark::{JoinBounds, SideBound};

/// Refuses what can be told from the user's plan already: joins that no stream answers, or not in this output mode, and
/// outer joins without any event time. The rest is told when the plan is optimised.
pub(crate) fn check_stream_join(join: &Join, mode: OutputMode) -> Result<()> {
    let kind = spelled(join.join_type);
    if mode == OutputMode::Complete {
        return Err(
            Error::unsupported("a join of two streams cannot be answered in complete mode").hint("use append mode")
        );
    }
    if join.null_aware || matches!(join.join_type, JoinType::LeftMark | JoinType::RightMark) {
        return Err(Error::unsupported("a stream cannot be looked up by IN, NOT IN or EXISTS in another stream")
            .hint("write a semi or anti join on equal columns, with watermarks and a condition on the times"));
    }
    let only_matches = matches!(join.join_type, JoinType::Inner | JoinType::LeftSemi | JoinType::RightSemi);
    if mode == OutputMode::Update && !only_matches {
        return Err(Error::unsupported(format!(
            "{kind} join of two streams cannot be answered in update mode: its rows without a match are given out \
             once, when they are final"
        ))
        .hint("use append mode"));
    }
    let has_event_time = |input: &LogicalPlan| input.schema().fields().iter().any(|field| is_event_time(field));
    if join.join_type != JoinType::Inner && !has_event_time(&join.left) && !has_event_time(&join.right) {
        return Err(needs_bound(join));
    }
    Ok(())
}

/// Refuses joins whose rows without a match, or that wait for their first one, are never final.
pub(crate) fn check_unmatched_rows_end(join: &Join, bounds: &JoinBounds) -> Result<()> {
    let (left, right) = (bounds.left != SideBound::None, bounds.right != SideBound::None);
    let ends = match join.join_type {
        JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti => left,
        JoinType::Right | JoinType::RightSemi | JoinType::RightAnti => right,
        JoinType::Full => left || right,
        JoinType::Inner | JoinType::LeftMark | JoinType::RightMark => true,
    };
    if ends { Ok(()) } else { Err(needs_bound(join)) }
}

fn needs_bound(join: &Join) -> Error {
    let (kept, other) = match join.join_type {
        JoinType::Right | JoinType::RightSemi | JoinType::RightAnti => ("right", "left"),
        _ => ("left", "right"),
    };
    Error::unsupported(format!(
        "{} join of two streams must know when a {kept} row can find no match any more, and no watermark together \
         with a condition on the times says when",
        spelled(join.join_type)
    ))
    .hint(format!(
        "call `with_watermark` on the {other} input and bound the times in the join's condition, such as \
         `r.time BETWEEN l.time AND l.time + INTERVAL '10 minutes'`, or make the event times equal"
    ))
}

fn spelled(join_type: JoinType) -> &'static str {
    match join_type {
        JoinType::Inner => "an inner",
        JoinType::Left => "a left outer",
        JoinType::Right => "a right outer",
        JoinType::Full => "a full outer",
        JoinType::LeftSemi => "a left semi",
        JoinType::RightSemi => "a right semi",
        JoinType::LeftAnti => "a left anti",
        JoinType::RightAnti => "a right anti",
        JoinType::LeftMark | JoinType::RightMark => "a mark",
    }
}
