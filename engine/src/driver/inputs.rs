//! What the leaves of a batch read: asked of their sources, which split it or bind it.

use std::sync::Arc;

use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};

use super::Driver;
use crate::checkpoint::OffsetEntry;
use crate::error::{Error, Result};
use crate::execution::{LeafInput, Site};
use crate::progress::Phase;
use crate::source::{OffsetRange, check_columns, whose};

/// What the leaves of a batch read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inputs {
    /// By leaf, as data.
    pub(crate) leaves: Vec<LeafInput>,
    /// By leaf: the plan that its source bound, if it did.
    pub(crate) bound: Vec<Option<Arc<dyn ExecutionPlan>>>,
}

impl Inputs {
    /// In how many partitions rows come in, about.
    pub(super) fn partitions(&self) -> usize {
        let bound = self.bound.iter().flatten().map(|plan| plan.output_partitioning().partition_count());
        let split = self.leaves.iter().map(|input| match input {
            LeafInput::Splits(splits) => splits.len(),
            LeafInput::Nothing | LeafInput::Bound => 0,
        });
        bound.chain(split).sum()
    }

    fn push(&mut self, input: LeafInput, bound: Option<Arc<dyn ExecutionPlan>>) {
        self.leaves.push(input);
        self.bound.push(bound);
    }
}

impl Driver {
    /// What each leaf reads in the batch of this entry.
    pub(super) async fn inputs(&mut self, entry: &OffsetEntry) -> Result<Inputs> {
        let mut inputs = Inputs::default();
        for leaf in &self.plan.leaves {
            let (Some(reader), Some(source), Some(end), Some(start)) = (
                self.readers.get_mut(leaf.source),
                self.plan.sources.get(leaf.source),
                entry.ends.get(leaf.source),
                self.ends.get(leaf.source),
            ) else {
                return Err(Error::internal(format!("leaf {leaf:?} reads a source that does not exist")));
            };
            let range = end.clone().map(|end| OffsetRange { start: start.clone(), end });
            let Some(range) = range.filter(|range| !range.is_empty()) else {
                inputs.push(LeafInput::Nothing, None);
                continue;
            };
            let whose = || whose(source.as_ref());
            let splits = reader.splits(&range, &leaf.request);
            if let Some(splits) = self.calls.call(Phase::GetBatch, whose, splits).await? {
                inputs.push(LeafInput::Splits(splits), None);
                continue;
            }
            let plan = self.calls.call(Phase::GetBatch, whose, reader.bind(&range, &leaf.request)).await?;
            check_columns(plan.as_ref(), &leaf.request)?;
            inputs.push(LeafInput::Bound, Some(plan));
        }
        Ok(inputs)
    }

    /// Where tasks run, with what was bound for a batch.
    pub(super) fn site(&self, bound: Vec<Option<Arc<dyn ExecutionPlan>>>) -> Site {
        Site {
            first: self.plan.scalar_subqueries.plans().to_vec(),
            plan: Arc::clone(&self.plan.physical),
            session: Arc::clone(&self.plan.session),
            clock: self.plan.clock.clone(),
            seed: self.plan.seed.clone(),
            watermark_nodes: self.plan.watermark_delays_ms.len(),
            scanners: Arc::clone(&self.scanners),
            bound,
            states: self.state.states(),
            changes: self.state.changes.clone(),
            writers: self.sinks.writers(),
            executor: self.executor.clone(),
            calls: self.calls.clone(),
            checkpoint_calls: self.checkpoint_calls.clone(),
        }
    }
}
