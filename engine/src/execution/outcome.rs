//! A batch after it ran.

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::batch::{BatchContext, EventTimeStats};
use crate::checkpoint::FileEntry;
use crate::id::LeafId;
use crate::sink::{Receipt, rows_as_ipc};
use crate::state::{Counts, OperatorBatch};

/// What came of a batch, as data.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Of the partitions that had rows, in partition order.
    pub(crate) receipts: Vec<Receipt>,
    /// By leaf: rows that came in.
    rows_read: Vec<u64>,
    /// By source: the metrics of its scanner for the batch.
    source_metrics: Vec<BTreeMap<String, String>>,
    /// By `with_watermark` node: the event times it saw.
    pub(crate) event_times: Vec<EventTimeStats>,
    /// By stateful operator.
    pub(crate) operators: Vec<OperatorOutcome>,
    /// How long it took to write what changed in the state of the operators.
    pub(crate) state_commit: Duration,
    /// Records that could not be read.
    #[serde(with = "rows_as_ipc")]
    pub(crate) dead_letters: Vec<RecordBatch>,
}

/// What a stateful operator did in a batch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OperatorOutcome {
    /// The file of what changed in its state; none if nothing did.
    pub(crate) changes: Option<FileEntry>,
    /// By side: up to when rows were evicted, in µs; `i64::MIN` for not at all.
    pub(crate) evicted_us: Vec<i64>,
    pub(crate) counts: Counts,
    /// Rows of state, in all partitions.
    pub(crate) rows: u64,
    /// The memory that they take, in bytes.
    pub(crate) bytes: u64,
}

impl Outcome {
    /// What a batch that has run left behind. Its dead letters are moved.
    pub(super) fn of(
        batch: &BatchContext,
        source_metrics: Vec<BTreeMap<String, String>>,
        operators: &[impl AsRef<OperatorBatch>],
        (changes, state_commit): (Vec<Option<FileEntry>>, Duration),
        receipts: Vec<Receipt>,
    ) -> Self {
        Outcome {
            receipts,
            rows_read: batch.rows_read(),
            source_metrics,
            event_times: batch.event_times(),
            operators: operators
                .iter()
                .zip(changes)
                .map(|(run, file)| OperatorOutcome::of(run.as_ref(), file))
                .collect(),
            state_commit,
            dead_letters: batch.take_dead_letters(),
        }
    }

    /// Rows that came in at a leaf.
    pub(crate) fn rows_read(&self, leaf: LeafId) -> u64 {
        self.rows_read[leaf.0]
    }

    /// The metrics of a source's scanner.
    pub(crate) fn source_metrics(&self, source: usize) -> Option<&BTreeMap<String, String>> {
        self.source_metrics.get(source)
    }
}

impl OperatorOutcome {
    fn of(run: &OperatorBatch, changes: Option<FileEntry>) -> Self {
        let (rows, bytes) = run.state.size();
        OperatorOutcome {
            changes,
            evicted_us: run.evicted_us(),
            counts: run.counts(),
            rows: rows as u64,
            bytes: bytes as u64,
        }
    }
}
