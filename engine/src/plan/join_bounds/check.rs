//! Which joins of two streams may be started.

use datafusion::common::{JoinType, NullEquality};
use datafusion::logical_expr::Join;

use super::why::why_never_final;
use crate::error::{Error, Result};
use crate::output_mode::OutputMode;
use crate::watermark::{JoinBounds, SideBound};

/// Refuses joins that no stream answers, or not in this output mode.
pub(crate) fn check_stream_join(join: &Join, mode: OutputMode) -> Result<()> {
    if join.null_aware {
        return Err(Error::unsupported(
            "NOT IN over another stream is never known: as long as that stream goes on, a NULL or an equal value may come",
        )
        .with_hint("use NOT EXISTS on equal columns, with watermarks on both streams and a condition on their times"));
    }
    if matches!(join.join_type, JoinType::LeftMark | JoinType::RightMark) {
        return Err(Error::unsupported(
            "IN or EXISTS over another stream cannot be a part of a larger condition: as long as that stream goes on, it may \
             become true",
        )
        .with_hint("put it into WHERE by itself, or with AND beside other conditions"));
    }
    let only_matches = matches!(join.join_type, JoinType::Inner | JoinType::LeftSemi | JoinType::RightSemi);
    if mode != OutputMode::Append && !only_matches {
        return Err(Error::unsupported(format!(
            "{} of two streams cannot be answered in {mode} mode: its rows without a match are given out once, when they \
             are final",
            spelled(join)
        )));
    }
    Ok(())
}

/// Refuses joins whose rows without a match are never final, or would come out although they had one. What comes out at
/// its first match, as from an inner or a semi join, need not be final.
///
/// A row without a match is final when the times say that none can come, and that is so only if neither side may still bring
/// rows of earlier times. So both need a watermark on the times that are compared; Spark asks for the same since SPARK-58611.
pub(crate) fn check_unmatched_rows_end(join: &Join, bounds: &JoinBounds) -> Result<()> {
    let kept: &[Kept] = match join.join_type {
        JoinType::Left | JoinType::LeftAnti => &[Kept::Left],
        JoinType::Right | JoinType::RightAnti => &[Kept::Right],
        JoinType::Full => &[Kept::Left, Kept::Right],
        _ => &[],
    };
    if !kept.is_empty() && join.null_equality == NullEquality::NullEqualsNull {
        return Err(Error::unsupported(format!(
            "{} of two streams must know when a row can find no match any more, and as NULL equals NULL in it, a row without \
             time may always find one",
            spelled(join)
        ))
        .with_hint("compare with `=` instead: in EXCEPT's place NOT EXISTS, with watermarks and a condition on the times"));
    }
    for &kept in kept {
        let bound = match kept {
            Kept::Left => bounds.left,
            Kept::Right => bounds.right,
        };
        let by_both = match (bound, &bounds.key_time) {
            (SideBound::KeyTime, Some(key)) => key.left_marked && key.right_marked,
            (SideBound::Range { .. }, _) => bounds.left_time.is_some() && bounds.right_time.is_some(),
            _ => false,
        };
        if !by_both {
            let (why, hint) = why_never_final(join, kept);
            return Err(Error::unsupported(format!(
                "{} of two streams must know when a {kept} row can find no match any more: {why}",
                spelled(join)
            ))
            .with_hint(hint));
        }
    }
    Ok(())
}

/// A side whose rows without a match come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Left,
    Right,
}

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kept::Left => "left",
            Kept::Right => "right",
        })
    }
}

fn spelled(join: &Join) -> String {
    as_set_operation(join).unwrap_or_else(|| {
        match join.join_type {
            JoinType::Inner => "an inner join",
            JoinType::Left => "a left outer join",
            JoinType::Right => "a right outer join",
            JoinType::Full => "a full outer join",
            JoinType::LeftSemi => "a left semi join",
            JoinType::RightSemi => "a right semi join",
            JoinType::LeftAnti => "a left anti join",
            JoinType::RightAnti => "a right anti join",
            JoinType::LeftMark | JoinType::RightMark => "a mark join",
        }
        .to_owned()
    })
}

/// What the user calls it, if the query does not say JOIN: DataFusion answers INTERSECT and EXCEPT by joins on all
/// columns.
pub(crate) fn as_set_operation(join: &Join) -> Option<String> {
    let on_all = join.on.len() >= join.left.schema().fields().len() && join.filter.is_none();
    let name = match join.join_type {
        JoinType::LeftSemi => "INTERSECT",
        JoinType::LeftAnti => "EXCEPT",
        _ => return None,
    };
    (on_all && join.null_equality == NullEquality::NullEqualsNull).then(|| name.to_owned())
}
