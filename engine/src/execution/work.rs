//! A batch before it runs: what is data, and what waits for it where its tasks run.

use std::fmt;
use std::sync::Arc;

use datafusion::execution::SessionState;
use datafusion::physical_plan::ExecutionPlan;
use serde::{Deserialize, Serialize};

use crate::calls::Calls;
use crate::error::Result;
use crate::executor::Executor;
use crate::id::{BatchId, PartitionId, QueryId, RunId};
use crate::plan::{BatchClock, BatchSeed};
use crate::sink::{Begin, PartitionWriter, SinkWriter, discarding_writer};
use crate::state::{ChangeFiles, OperatorState};

/// A batch as data: all that has to be known of it where its tasks run, beside the plan of the query.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct BatchWork {
    pub(crate) query_id: QueryId,
    pub(crate) run_id: RunId,
    pub(crate) batch: BatchId,
    /// What every clock function of the query answers, in milliseconds since 1970.
    pub(crate) time_ms: i64,
    /// In milliseconds since 1970.
    pub(crate) watermark_ms: i64,
    /// By stateful operator.
    pub(crate) operators: Vec<OperatorWatermarks>,
    /// Whether the sink still wants its rows.
    pub(crate) begin: Begin,
    /// Whether the query has a sink for dead letters.
    pub(crate) takes_dead_letters: bool,
    /// Whether it is worth to read the sources with several threads.
    pub(crate) parallel: bool,
}

/// The watermarks that a stateful operator goes by in a batch, in milliseconds since 1970; `i64::MIN` for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OperatorWatermarks {
    /// Rows whose time is at or before this are late: the watermark of the batch before.
    pub(crate) late_ms: i64,
    /// Rows whose time is at or before this are final: the watermark of this batch.
    pub(crate) evict_ms: i64,
}

/// Where the tasks of a batch run: the query's plan and state there, what was bound and begun for the batch, and nothing that
/// could be sent.
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
    /// By leaf of the plan: what its source bound for the batch.
    pub(crate) leaves: Vec<Option<Arc<dyn ExecutionPlan>>>,
    /// By stateful operator.
    pub(crate) states: Vec<Arc<OperatorState>>,
    /// By stateful operator: what its changes are written with.
    pub(crate) changes: Vec<ChangeFiles>,
    pub(crate) writers: Writers,
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

/// Makes the writers of a batch, one per partition.
#[derive(Debug, Clone)]
pub(crate) struct Writers {
    pub(crate) sink: Arc<dyn SinkWriter>,
    pub(crate) begin: Begin,
    pub(crate) batch: BatchId,
    /// The sink, in words.
    pub(crate) whose: String,
    /// How it is called.
    pub(crate) calls: Calls,
}

impl Writers {
    /// A writer of the sink, or one that only counts if the sink has the batch already.
    pub(crate) fn writer(&self, partition: PartitionId) -> Result<Box<dyn PartitionWriter>> {
        match self.begin {
            Begin::Open => self.sink.partition(self.batch, partition),
            Begin::Taken => Ok(discarding_writer()),
        }
    }
}
