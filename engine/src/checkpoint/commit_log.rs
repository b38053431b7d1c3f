//! Batch N is done, and the next watermark.
//!
//! ```text
//! commits/7
//! v1
//! {"nextBatchWatermarkMs":15000,"nodeWatermarksMs":{"0":15000,"1":32000},"runId":"…"}
//! ```
//!
//! A query with state has `state`, too: the file that describes what its operators keep, and for each operator the
//! files that are its state after this batch, oldest first, and up to what time rows were evicted.
//!
//! `nodeWatermarksMs` has the own watermark of each `with_watermark` that has seen rows, so that a restart forgets no
//! input; it, `state` and `runId` are ours, and Spark ignores them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::batch_log::LogEntry;
use super::state_commit::StateCommit;
use super::{check_version, with_version};
use crate::error::{Error, Result};
use crate::id::RunId;

/// The entry of a batch in the commit log.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CommitEntry {
    #[serde(default)]
    pub(crate) next_batch_watermark_ms: i64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) node_watermarks_ms: BTreeMap<usize, i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<StateCommit>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) run_id: Option<RunId>,
}

impl LogEntry for CommitEntry {
    fn encode(&self) -> String {
        with_version([serde_json::json!(self).to_string()])
    }

    fn decode(text: &str, file: &str) -> Result<Self> {
        let line = check_version(text, file)?.next().unwrap_or_default();
        serde_json::from_str(line).map_err(|e| {
            Error::damaged(format!("line 2 is not a commit: {e}"))
                .with_file(file)
                .with_hint("delete this file: the batch is then repeated, and sinks take it once")
                .with_source(e)
        })
    }

    fn run_id(&self) -> Option<RunId> {
        self.run_id
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_are_sparks() {
        let entry = CommitEntry { next_batch_watermark_ms: 1704067240000, ..CommitEntry::default() };
        assert_eq!(entry.encode(), "v1\n{\"nextBatchWatermarkMs\":1704067240000}");
        assert_eq!(CommitEntry::decode("v1\n{}", "f").unwrap(), CommitEntry::default());
        assert!(CommitEntry::decode("v1\n", "f").is_err());
    }

    proptest! {
        #[test]
        fn every_entry_comes_back(
            next_batch_watermark_ms: i64,
            node_watermarks_ms in proptest::collection::btree_map(0usize..9, any::<i64>(), 0..4),
        ) {
            let run_id = Some(RunId::random());
            let entry = CommitEntry { next_batch_watermark_ms, node_watermarks_ms, state: None, run_id };
            prop_assert_eq!(CommitEntry::decode(&entry.encode(), "f").unwrap(), entry);
        }
    }
}
