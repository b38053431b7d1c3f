//! Each stateful operator's own watermark.
//!
//! The query's watermark enters where `with_watermark` stands and moves along the plan towards the sink. An operator's
//! input watermark is the least of its inputs'; what it passes on may be less: a join may give out a row as old as the
//! oldest it still keeps. So operators in a row may each be at another time.

use super::JoinBounds;
use crate::state::OperatorId;

/// What a stateful operator does with the watermark.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WatermarkEffect {
    /// What operators after it see of the watermark.
    pub(crate) output: OutputWatermark,
    /// Whether a watermark that moved is worth a batch of its own, because state may be emitted or evicted.
    pub(crate) needs_no_data_batch: bool,
}

/// What operators after a stateful one see of the watermark.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum OutputWatermark {
    /// The same.
    SameAsInput,
    /// What a join can promise, given how long it keeps rows.
    Join(JoinBounds),
}

/// The plan, as far as watermarks go.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum WatermarkTree {
    /// A `with_watermark`: the query's watermark enters here.
    Watermark,
    /// Whatever keeps no state.
    Stateless(Vec<WatermarkTree>),
    /// An operator that does.
    Stateful { operator: OperatorId, uses: WatermarkEffect, inputs: Vec<WatermarkTree> },
}

/// By operator: its input watermark in ms when the query's is `watermark_ms`; `i64::MIN` where no watermark reaches it.
/// None is below 1970, where the query's begins.
pub(crate) fn propagate(tree: &WatermarkTree, operators: usize, watermark_ms: i64) -> Vec<i64> {
    let mut found = vec![i64::MIN; operators];
    visit(tree, watermark_ms, &mut found);
    found
}

fn visit(tree: &WatermarkTree, watermark_ms: i64, found: &mut [i64]) -> Option<i64> {
    match tree {
        WatermarkTree::Watermark => Some(watermark_ms),
        WatermarkTree::Stateless(inputs) => least(inputs, watermark_ms, found),
        WatermarkTree::Stateful { operator, uses, inputs } => {
            let input = least(inputs, watermark_ms, found)?;
            found[operator.0] = input;
            Some(match &uses.output {
                OutputWatermark::SameAsInput => input,
                OutputWatermark::Join(bounds) => bounds.output_watermark_ms(input).max(0),
            })
        }
    }
}

fn least(inputs: &[WatermarkTree], watermark_ms: i64, found: &mut [i64]) -> Option<i64> {
    // All of them are visited: each may hold operators.
    let watermarks: Vec<Option<i64>> = inputs.iter().map(|input| visit(input, watermark_ms, found)).collect();
    watermarks.into_iter().flatten().min()
}

/// Whether a batch without rows is worth it: some operator waits for the watermark, and its own has moved.
pub(crate) fn needs_no_data_batch(tree: &WatermarkTree, operators: usize, ran_ms: i64, next_ms: i64) -> bool {
    let (ran, next) = (propagate(tree, operators, ran_ms), propagate(tree, operators, next_ms));
    waits_for(tree, &|operator| match (ran.get(operator.0), next.get(operator.0)) {
        (Some(ran), Some(next)) => next > ran,
        _ => false,
    })
}

fn waits_for(tree: &WatermarkTree, moved: &dyn Fn(OperatorId) -> bool) -> bool {
    match tree {
        WatermarkTree::Watermark => false,
        WatermarkTree::Stateless(inputs) => inputs.iter().any(|input| waits_for(input, moved)),
        WatermarkTree::Stateful { operator, uses, inputs } => {
            (uses.needs_no_data_batch && moved(*operator)) || inputs.iter().any(|input| waits_for(input, moved))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stateful(operator: usize, needs_no_data_batch: bool, inputs: Vec<WatermarkTree>) -> WatermarkTree {
        let uses = WatermarkEffect { output: OutputWatermark::SameAsInput, needs_no_data_batch };
        WatermarkTree::Stateful { operator: OperatorId(operator), uses, inputs }
    }

    #[test]
    fn an_operator_without_watermark_below_has_none() {
        let bare = WatermarkTree::Stateless(vec![]);
        let marked = stateful(1, true, vec![WatermarkTree::Stateless(vec![WatermarkTree::Watermark])]);
        let tree = stateful(0, true, vec![WatermarkTree::Stateless(vec![bare.clone(), marked])]);
        assert_eq!(propagate(&tree, 2, 7), [7, 7]);
        assert_eq!(propagate(&stateful(0, true, vec![bare]), 1, 7), [i64::MIN]);
    }

    #[test]
    fn a_batch_is_due_when_someone_waits_and_the_watermark_moved() {
        let tree = |waits| stateful(0, waits, vec![WatermarkTree::Watermark]);
        assert!(needs_no_data_batch(&tree(true), 1, 0, 5));
        assert!(!needs_no_data_batch(&tree(true), 1, 5, 5));
        assert!(!needs_no_data_batch(&tree(false), 1, 0, 5));
    }
}
