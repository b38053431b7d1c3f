//! What is reported of each batch.
//!
//! [`QueryProgress`] has Spark's fields under Spark's names, so that dashboards carry over, and more where Spark is silent:
//! real output rows for every sink, and which source holds the watermark back.

mod listener;

mod stopwatch;

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use self::listener::{EventQueue, is_in_listener};
pub use self::listener::{QueryEvent, QueryListener};
pub(crate) use self::stopwatch::{Between, Phase, Stopwatch};
use crate::id::{BatchId, QueryId, RunId};

/// What one batch did. As JSON it has the names of Spark's `StreamingQueryProgress`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct QueryProgress {
    /// The query, the same after every restart.
    pub id: QueryId,
    /// This run of it.
    pub run_id: RunId,
    /// The name the user gave it.
    pub name: Option<String>,
    /// When the trigger fired: ISO 8601 with milliseconds, UTC.
    pub timestamp: String,
    /// The batch.
    pub batch_id: BatchId,
    /// How long the batch took, in milliseconds.
    pub batch_duration: i64,
    /// Rows read from all sources. A source read at two places of the query counts twice.
    pub num_input_rows: u64,
    /// Rows read, per second since the trigger before.
    pub input_rows_per_second: f64,
    /// Rows read, per second of this batch.
    pub processed_rows_per_second: f64,
    /// Milliseconds per phase, to the microsecond: `latestOffset`, `walCommit`, `getBatch`, `addBatch`, `merging`, `stateCommit`,
    /// `commitOffsets`, and `triggerExecution`, which is the whole of these. What was between the batch before and this one comes
    /// on top of it: `cleanUp` and `waiting`; before the first batch `loading`, or `restarting` after a failure, in the place of
    /// `cleanUp`.
    pub duration_ms: BTreeMap<String, f64>,
    /// `watermark`, and `min`, `max`, `avg` of the event times seen. Empty for a query without watermark. `outOfRange`,
    /// if there are any: how many rows had a time too far from 1970 to be expressed in microseconds, and so count as
    /// rows without.
    pub event_time: BTreeMap<String, String>,
    /// One entry per stateful operator.
    pub state_operators: Vec<StateOperatorProgress>,
    /// One entry per source.
    pub sources: Vec<SourceProgress>,
    /// The sink.
    pub sink: SinkProgress,
}

/// What one stateful operator did in a batch. Rows are rows: a late row counts once per window it came too late for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct StateOperatorProgress {
    /// Its kind: `aggregate`, `sessionWindow`, `deduplicate`, `join`, `limit`.
    pub operator_name: String,
    /// Rows it keeps: groups, sessions, remembered keys, buffered rows.
    pub num_rows_total: u64,
    /// Of these, how many the batch added or changed.
    pub num_rows_updated: u64,
    /// How many the batch took away.
    pub num_rows_removed: u64,
    /// Input rows that came too late.
    pub num_rows_dropped_by_watermark: u64,
    /// Input rows that had been there before.
    pub num_dropped_duplicate_rows: u64,
    /// Input rows that have no session: their time is NULL, or their gap is NULL, not above zero or of no fixed length.
    #[serde(default)]
    pub num_rows_dropped_without_session: u64,
    /// The memory it holds, in bytes.
    pub memory_used_bytes: u64,
    /// How long it took to write the changes of all operators, in milliseconds.
    pub commit_time_ms: f64,
    /// Into how many partitions it is divided.
    pub num_shuffle_partitions: u64,
    /// Rows at or before this were late, in milliseconds since 1970; null without a watermark.
    pub late_watermark_ms: Option<i64>,
    /// State at or before this was final, in milliseconds since 1970; null without a watermark.
    pub watermark_ms: Option<i64>,
    /// Bytes of changes written since the run began.
    #[serde(alias = "changeBytesWritten")]
    pub state_bytes_written: u64,
    /// Bytes written since the run began to merge small files into larger ones, in the background.
    #[serde(alias = "mergeBytesWritten")]
    pub compaction_bytes_written: u64,
    /// How many entries the commit names that are its state: each has the changes of a batch, or of several that were merged.
    #[serde(default)]
    pub files: u64,
    /// For how many merges batches had to wait since the run began, because storage did not keep up.
    #[serde(default)]
    pub merges_waited_for: u64,
}

/// What one batch read of one source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct SourceProgress {
    /// The source, for people.
    pub description: String,
    /// Where the batch began; null before the first.
    pub start_offset: Value,
    /// Where it ended.
    pub end_offset: Value,
    /// The end of all there was, where the source knows.
    pub latest_offset: Value,
    /// Rows read.
    pub num_input_rows: u64,
    /// Rows read, per second since the trigger before.
    pub input_rows_per_second: f64,
    /// Rows read, per second of this batch.
    pub processed_rows_per_second: f64,
    /// The source's own figures.
    pub metrics: BTreeMap<String, String>,
    /// True if the watermark would be further without this source.
    #[serde(default)]
    pub holds_watermark: bool,
}

/// What one batch gave to the sink.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct SinkProgress {
    /// The sink, for people.
    pub description: String,
    /// Rows the batch produced for it.
    pub num_output_rows: u64,
    /// Further figures. `deadLetterRows`, where the query has a sink for dead letters: how many of the batch it was given.
    pub metrics: BTreeMap<String, String>,
}

impl QueryProgress {
    /// One line of JSON.
    pub fn json(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

/// Milliseconds since 1970 as Spark prints times.
pub(crate) fn timestamp(time_ms: i64) -> String {
    DateTime::<Utc>::from_timestamp_millis(time_ms)
        .map_or_else(|| time_ms.to_string(), |time| time.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// `rows` per second of `ms` milliseconds, at least one; 0 if no time is known.
pub(crate) fn rows_per_second(rows: u64, ms: Option<f64>) -> f64 {
    ms.map_or(0.0, |ms| rows as f64 * 1000.0 / ms.max(1.0))
}
