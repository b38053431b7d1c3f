//! A batch before it runs: what is data, and what waits for it where its tasks run.

use std::fmt;
use std::sync::Arc;

use datafusion::execution::SessionState;
use datafusion::physical_plan::ExecutionPlan;
use serde::{Deserialize, Serialize};

use super::writers::{ToWrite, Writers};
use crate::calls::Calls;
use crate::executor::Executor;
use crate::id::{BatchId, QueryId, RunId};
use crate::plan::{BatchClock, BatchSeed};
use crate::sink::BatchStatus;
use crate::source::{Scanners, Split};
use crate::state::{ChangeFiles, OperatorState};

/// A batch as data: all that has to be known of it where its tasks run, beside the plan of the query.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct BatchWork {
    pub(crate) query_id: QueryId,
    /// The run as users see it.
    pub(crate) run_id: RunId,
    /// The driver that sends the batch, which names what is written for it: another one each time the query starts again.
    pub(crate) attempt: RunId,
    pub(crate) batch: BatchId,
    /// What every clock function of the query answers, in milliseconds since 1970.
    pub(crate) time_ms: i64,
    /// In milliseconds since 1970.
    pub(crate) watermark_ms: i64,
    /// By leaf of the plan.
    pub(crate) leaves: Vec<LeafInput>,
    /// By stateful operator.
    pub(crate) operators: Vec<OperatorWatermarks>,
    /// Whether the sink still wants its rows.
    pub(crate) begin: BatchStatus,
    /// Whether the query has a sink for dead letters.
    pub(crate) takes_dead_letters: bool,
    /// Whether it is worth to read the sources with several threads.
    pub(crate) parallel: bool,
}

impl BatchWork {
    /// What its sink writes of it.
    pub(crate) fn to_write(&self) -> ToWrite {
        ToWrite { query_id: self.query_id, attempt: self.attempt, batch: self.batch, begin: self.begin }
    }
}

/// What a leaf of the plan reads in a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum LeafInput {
    /// Its source has nothing new.
    Nothing,
    /// These splits, scanned where the task runs.
    Splits(Vec<Split>),
    /// What its source bound: a plan in the driver's process, part of the site.
    Bound,
}

/// The watermarks that a stateful operator goes by in a batch, in milliseconds since 1970; `i64::MIN` for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OperatorWatermarks {
    /// Rows whose time is at or before this are late: the watermark of the batch before.
    pub(crate) late_watermark_ms: i64,
    /// Rows whose time is at or before this are final: the watermark of this batch.
    pub(crate) eviction_watermark_ms: i64,
}

/// Where the tasks of a query run: its plan, sources, sink and state there, and nothing that could be sent. It is the same for
/// every batch, but for what sources bound that give no splits.
#[derive(Clone)]
pub(crate) struct Site {
    /// What runs to its end before the first stage, and gives no rows.
    pub(crate) first: Vec<Arc<dyn ExecutionPlan>>,
    pub(crate) plan: Arc<dyn ExecutionPlan>,
    pub(crate) session: Arc<SessionState>,
    /// Read by functions of the plan.
    pub(crate) clock: BatchClock,
    pub(crate) seed: BatchSeed,
    /// How many `with_watermark`s the query has.
    pub(crate) watermark_nodes: usize,
    pub(crate) scanners: Arc<Scanners>,
    /// By leaf of the plan: what its source bound for the batch. Such a leaf runs in the driver's process.
    pub(crate) bound: Vec<Option<Arc<dyn ExecutionPlan>>>,
    /// By stateful operator.
    pub(crate) states: Vec<Arc<OperatorState>>,
    /// By stateful operator: what its changes are written with.
    pub(crate) changes: Vec<Arc<ChangeFiles>>,
    pub(crate) writers: Arc<Writers>,
    pub(crate) executor: Executor,
    pub(crate) calls: Calls,
    /// How the checkpoint is called.
    pub(crate) checkpoint_calls: Calls,
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site").field("writers", &self.writers).finish_non_exhaustive()
    }
}
