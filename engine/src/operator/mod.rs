//! Operators of our own, in DataFusion's physical plan.
//!
//! Stateless: [`event_time`] notes how far time has come, [`cached_input`] keeps a table's rows for all batches,
//! [`exchange`] brings the rows of a key together, [`late_rows`] drops what came too late, [`row_number`] numbers rows,
//! [`single_row`] lets no second row of a scalar subquery pass.
//!
//! Stateful, each a [`StatefulOperator`] on top of an exchange: [`aggregate`], [`session_window`], [`deduplicate`],
//! [`join`], [`limit`]. In one batch each partition of one does, under the lock of its state:
//!
//! ```text
//! rows in → find what is known of their keys → rows out and changes → evict what the watermark has passed → rows out
//! ```
//!
//! Two watermarks are at work: rows are late by that of the *batch before*, state is final by that of *this batch*. So of two
//! batches back to back the second still takes rows that lie behind the watermark, and emits them at once (Spark's rule).

pub(crate) mod aggregate;

pub(crate) mod deduplicate;

pub(crate) mod event_time;

pub(crate) mod exchange;

pub(crate) mod join;

pub(crate) mod late_rows;

pub(crate) mod limit;

mod output;

pub(crate) mod row_number;

pub(crate) mod session_window;

pub(crate) mod single_row;

pub(crate) mod cached_input;

use std::sync::Arc;

use datafusion::error::Result;
use datafusion::physical_plan::ExecutionPlan;

use crate::state::{OperatorId, PartitionState, Resources, StateSchema};
use crate::watermark::WatermarkEffect;

/// An operator that remembers rows from one batch to the next.
pub(crate) trait StatefulOperator: ExecutionPlan {
    /// The same operator with its number.
    fn with_id(&self, id: OperatorId) -> Arc<dyn ExecutionPlan>;

    /// What it keeps.
    fn spec(&self) -> StateSchema;

    /// The state of a partition that has seen nothing.
    fn new_partition(&self, resources: &Resources) -> Result<Box<dyn PartitionState>>;

    /// What it does with the watermark.
    fn watermark(&self) -> WatermarkEffect;

    /// Describes the state that is never evicted, if nothing bounds it.
    fn unbounded(&self) -> Option<String> {
        None
    }
}

/// The stateful operator that a node of a plan is, if it is one.
pub(crate) fn stateful(plan: &dyn ExecutionPlan) -> Option<&dyn StatefulOperator> {
    macro_rules! first_of {
        ($($operator:ty),*) => {
            $(if let Some(found) = plan.downcast_ref::<$operator>() { return Some(found) })*
        };
    }
    first_of!(
        aggregate::StatefulAggregateExec,
        session_window::SessionWindowExec,
        deduplicate::DeduplicateExec,
        join::StreamJoinExec,
        limit::StreamLimitExec
    );
    None
}
