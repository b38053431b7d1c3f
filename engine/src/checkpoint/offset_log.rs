//! What batch N will read: the write-ahead half of the checkpoint.
//!
//! ```text
//! offsets/7
//! v1
//! {"batchWatermarkMs":5000,"batchTimestampMs":1795218532640,"conf":{…},"runId":"…"}
//! {"logOffset":3}          the end offset of source 0
//! -                        source 1 has had nothing so far
//! ```
//!
//! The start of batch N is the end of batch N−1. The watermark and the clock are those that batch N uses, whenever and how
//! often it runs. `conf` pins settings that change answers: what is written wins over what a restarted query says.
//! `runId` is ours, and so is `sourceProofs`, which has for each source that gave one what proves that its offset is one of the
//! same thing (the ids of Kafka's topics); `belongings`, what the query reads and writes; and `partitions`, which only queries
//! that draw random numbers have. Spark ignores them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::batch_log::LogEntry;
use super::{check_version, with_version};
use crate::error::{Error, Result};
use crate::id::RunId;
use crate::identity::Identity;
use crate::offset::Offset;
use crate::watermark::WatermarkPolicy;

/// What a query reads and writes, as the checkpoint records it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Belongings {
    /// By source; null for one without an identity.
    pub(crate) sources: Vec<Option<Identity>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) output: Option<Identity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dead_letters: Option<Identity>,
    /// The output mode of a query that aggregates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) aggregated_in: Option<String>,
}

/// The setting that pins the watermark policy, under Spark's name.
const WATERMARK_POLICY: &str = "spark.sql.streaming.multipleWatermarkPolicy";

/// The entry of a batch in the offset log.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OffsetEntry {
    pub(crate) watermark_ms: i64,
    pub(crate) time_ms: i64,
    pub(crate) conf: BTreeMap<String, String>,
    pub(crate) run_id: Option<RunId>,
    /// In how many partitions it ran. Recorded where rows draw random numbers, which depend on it.
    pub(crate) partitions: Option<usize>,
    /// What the query reads and writes. Entries of Spark and of release 0.1.0 do not have it.
    pub(crate) belongings: Option<Belongings>,
    /// By source: where the batch ends.
    pub(crate) ends: Vec<Option<Offset>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    batch_watermark_ms: i64,
    batch_timestamp_ms: i64,
    #[serde(default)]
    conf: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run_id: Option<RunId>,
    /// By source; left out if no source has one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    source_proofs: Vec<Option<Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    partitions: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    belongings: Option<Belongings>,
}

/// The settings that a new checkpoint pins.
pub(crate) fn pinned_conf(policy: WatermarkPolicy) -> BTreeMap<String, String> {
    BTreeMap::from([(WATERMARK_POLICY.to_owned(), policy.name().to_owned())])
}

impl OffsetEntry {
    /// The pinned watermark policy; a checkpoint that says nothing means the minimum.
    pub(crate) fn watermark_policy(&self) -> WatermarkPolicy {
        self.conf.get(WATERMARK_POLICY).and_then(|name| WatermarkPolicy::from_name(name)).unwrap_or_default()
    }
}

impl LogEntry for OffsetEntry {
    fn encode(&self) -> String {
        let proofs: Vec<Option<Value>> = self.ends.iter().map(|end| end.as_ref().and_then(Offset::proof)).collect();
        let metadata = serde_json::json!(Metadata {
            batch_watermark_ms: self.watermark_ms,
            batch_timestamp_ms: self.time_ms,
            conf: self.conf.clone(),
            run_id: self.run_id,
            source_proofs: if proofs.iter().any(Option::is_some) { proofs } else { vec![] },
            partitions: self.partitions,
            belongings: self.belongings.clone(),
        });
        let ends = self.ends.iter().map(|end| end.as_ref().map_or("-".to_owned(), |end| end.json().to_owned()));
        with_version(std::iter::once(metadata.to_string()).chain(ends))
    }

    fn decode(text: &str, file: &str) -> Result<Self> {
        let torn = |what: String| {
            Error::damaged(what).with_file(file).with_hint(
                "a healthy file has a version, a line of JSON and one offset per source: restore it from a backup, or start \
                 with a new checkpoint",
            )
        };
        let mut lines = check_version(text, file)?;
        let metadata = lines.next().ok_or_else(|| torn("the file ends after its version".into()))?;
        let metadata: Metadata =
            serde_json::from_str(metadata).map_err(|e| torn(format!("line 2 is not the batch's metadata: {e}")))?;
        let mut proofs = metadata.source_proofs.into_iter();
        let ends = lines
            .filter(|line| !line.is_empty())
            .map(|line| {
                let proof = proofs.next().flatten();
                if line == "-" {
                    return Ok(None);
                }
                let end = Offset::parse(line).map_err(|e| torn(e.message().to_owned()))?;
                Ok(Some(match proof {
                    Some(proof) => end.with_proof(proof),
                    None => end,
                }))
            })
            .collect::<Result<Vec<_>>>()?;
        if ends.is_empty() {
            return Err(torn("the file names no source".into()));
        }
        Ok(OffsetEntry {
            watermark_ms: metadata.batch_watermark_ms,
            time_ms: metadata.batch_timestamp_ms,
            conf: metadata.conf,
            run_id: metadata.run_id,
            partitions: metadata.partitions,
            belongings: metadata.belongings,
            ends,
        })
    }

    fn run_id(&self) -> Option<RunId> {
        self.run_id
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::identity::Identity;

    #[test]
    fn the_bytes_are_sparks() {
        let entry = OffsetEntry {
            watermark_ms: 5,
            time_ms: 7,
            conf: pinned_conf(WatermarkPolicy::Max),
            run_id: None,
            partitions: None,
            belongings: None,
            ends: vec![Some(Offset::parse(r#"{"logOffset":3}"#).unwrap()), None],
        };
        let text = "v1\n{\"batchWatermarkMs\":5,\"batchTimestampMs\":7,\"conf\":{\"spark.sql.streaming.\
                    multipleWatermarkPolicy\":\"max\"}}\n{\"logOffset\":3}\n-";
        assert_eq!(entry.encode(), text);
        assert_eq!(OffsetEntry::decode(&format!("{text}\n"), "f").unwrap(), entry);
        assert_eq!(entry.watermark_policy(), WatermarkPolicy::Max);
    }

    #[test]
    fn proofs_stand_where_spark_does_not_look() {
        let proven =
            Offset::parse(r#"{"t":{"0":3}}"#).unwrap().with_proof(serde_json::json!({ "topicIds": { "t": "x" } }));
        let ends = vec![None, Some(proven), Some(Offset::new(4))];
        let (partitions, belongings) = (None, None);
        let conf = BTreeMap::new();
        let entry = OffsetEntry { watermark_ms: 0, time_ms: 7, conf, run_id: None, partitions, belongings, ends };
        let text = "v1\n{\"batchWatermarkMs\":0,\"batchTimestampMs\":7,\"conf\":{},\"sourceProofs\":[null,{\"topicIds\":\
                    {\"t\":\"x\"}},null]}\n-\n{\"t\":{\"0\":3}}\n4";
        assert_eq!(entry.encode(), text);
        assert_eq!(OffsetEntry::decode(text, "f").unwrap(), entry);
        // Another one's, or none.
        let without = text.replace(",\"sourceProofs\":[null,{\"topicIds\":{\"t\":\"x\"}},null]", "");
        assert_eq!(OffsetEntry::decode(&without, "f").unwrap().ends[1].as_ref().unwrap().proof(), None);
    }

    #[test]
    fn what_is_torn_is_refused_with_its_name() {
        for torn in [
            "v1",
            "v1\n",
            "v1\n{}\n{\"logOffset\":1}",
            "v1\n{\"batchWatermarkMs\":0,\"batchTimestampMs\":0}",
            "v1\n{\"batchWatermarkMs\":0,\"batchTimestampMs\":0}\n{\"logOff",
        ] {
            let error = OffsetEntry::decode(torn, "offsets/3").unwrap_err();
            assert_eq!(error.kind(), crate::error::ErrorKind::DamagedCheckpoint, "{torn}");
            assert_eq!(error.file(), Some("offsets/3"));
        }
    }

    proptest! {
        #[test]
        fn every_entry_comes_back(
            watermark_ms: i64, time_ms: i64, run: u128,
            ends in proptest::collection::vec(proptest::option::of((0u64..1000, proptest::option::of("[a-z]*"))), 1..5),
        ) {
            let proven = |(end, proof): (u64, Option<String>)| match proof {
                Some(proof) => Offset::new(end).with_proof(proof),
                None => Offset::new(end),
            };
            let ends = ends.into_iter().map(|end| end.map(proven)).collect();
            let run_id = Some(RunId(Uuid::from_u128(run)));
            let conf = pinned_conf(WatermarkPolicy::Min);
            let sources = vec![None, Some(Identity::new("files").at("file:///a\"ü").option("x", "y"))];
            let belongings = Some(Belongings { sources, ..Belongings::default() });
            let entry = OffsetEntry { watermark_ms, time_ms, conf, run_id, partitions: Some(3), belongings, ends };
            prop_assert_eq!(OffsetEntry::decode(&entry.encode(), "f").unwrap(), entry);
        }
    }
}
