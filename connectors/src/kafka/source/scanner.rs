//! Ranges of offsets where they are read: splits become plans, and what was met in them is counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datafusion::execution::memory_pool::MemoryPool;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use serde::{Deserialize, Serialize};
use tidewater::error::Result;
use tidewater::id::BatchId;
use tidewater::source::{ScanRequest, SourceScanner, Split};

use super::columns::Wanted;
use super::consumers::Consumers;
use super::identity::TopicIds;
use super::scan::{Beginning, KafkaTask};
use super::settings::Settings;
use super::split::Piece;
use crate::kafka::offsets::PartitionOffsets;

/// What one task reads of a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct KafkaSplit {
    /// In this order.
    pub(super) pieces: Vec<Piece>,
    /// The topics that it is to read.
    pub(super) ids: TopicIds,
    /// Whether this place in the plan is the one that reports dead letters.
    pub(super) emits_dead_letters: bool,
    /// Partitions in which nothing is new, and where they end. They are fetched from now on like the others, so that what comes
    /// next is there at once: a partition that is added while the broker waits for records of the others waits with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) at_rest: Vec<(String, i32, i64)>,
}

/// Reads topics for one run of one query, in one process.
#[derive(Debug)]
pub(super) struct KafkaScanner {
    settings: Arc<Settings>,
    consumers: Arc<Consumers>,
    malformed: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
}

impl KafkaScanner {
    pub(super) fn new(settings: Settings, memory: &Arc<dyn MemoryPool>) -> Self {
        let settings = Arc::new(settings);
        let consumers = Arc::new(Consumers::new(Arc::clone(&settings), memory));
        KafkaScanner { settings, consumers, malformed: Arc::default(), lost: Arc::default() }
    }

    fn task(&self, split: KafkaSplit, scan: &ScanRequest, beginning: &Arc<Beginning>) -> Arc<dyn PartitionStream> {
        let KafkaSplit { pieces, ids, emits_dead_letters, .. } = split;
        let malformed = Arc::clone(&self.malformed);
        Arc::new(KafkaTask {
            pieces,
            wanted: Arc::new(Wanted::new(&self.settings, scan, malformed, emits_dead_letters)),
            settings: Arc::clone(&self.settings),
            consumers: Arc::clone(&self.consumers),
            beginning: Arc::clone(beginning),
            ids,
            lost: Arc::clone(&self.lost),
        })
    }
}

impl SourceScanner for KafkaScanner {
    fn scan(&self, _batch: BatchId, splits: &[Split], scan: &ScanRequest) -> Result<Arc<dyn ExecutionPlan>> {
        let source = self.settings.description();
        let splits = splits.iter().map(|split| split.to(&source)).collect::<Result<Vec<KafkaSplit>>>()?;
        let (places, ids) = beginning(&splits);
        let beginning = Arc::new(Beginning::new(places, ids));
        let tasks = splits.into_iter().map(|split| self.task(split, scan, &beginning)).collect();
        Ok(Arc::new(StreamingTableExec::try_new(Arc::clone(&scan.schema), tasks, None, [], false, None)?))
    }

    fn metrics(&self) -> BTreeMap<String, String> {
        let mut metrics = BTreeMap::new();
        for (name, count) in [("malformedRecords", &self.malformed), (LOST, &self.lost)] {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                metrics.insert(name.to_owned(), count.to_string());
            }
        }
        metrics
    }
}

/// Offsets that were gone before they were read: found out by the driver, or while they are read.
pub(super) const LOST: &str = "lostOffsets";

/// Where the first consumer begins to fetch, and in which topics.
fn beginning(splits: &[KafkaSplit]) -> (PartitionOffsets, TopicIds) {
    let (mut places, mut ids) = (PartitionOffsets::new(), TopicIds::default());
    for split in splits {
        ids.extend(&split.ids);
        let firsts = split.pieces.iter().filter(|piece| piece.consumer == 0).map(|piece| &piece.slice);
        let firsts = firsts.map(|slice| (slice.topic.as_str(), slice.partition, slice.from));
        let at_rest = split.at_rest.iter().map(|(topic, partition, end)| (topic.as_str(), *partition, *end));
        for (topic, partition, from) in firsts.chain(at_rest) {
            if places.get(topic, partition).is_none_or(|first| from < first) {
                places.set(topic, partition, from);
            }
        }
    }
    (places, ids)
}

#[cfg(test)]
mod tests {
    use super::super::split::Slice;
    use super::*;

    fn piece(topic: &str, from: i64, consumer: usize) -> Piece {
        Piece { slice: Slice { topic: topic.to_owned(), partition: 3, from, to: from + 10 }, consumer }
    }

    fn split(pieces: Vec<Piece>, at_rest: &[(&str, i32, i64)]) -> KafkaSplit {
        let ids = pieces.iter().map(|piece| (piece.slice.topic.clone(), format!("id of {}", piece.slice.topic)));
        let at_rest = at_rest.iter().map(|(topic, partition, end)| ((*topic).to_owned(), *partition, *end)).collect();
        KafkaSplit { ids: ids.collect(), pieces, emits_dead_letters: true, at_rest }
    }

    #[test]
    fn a_split_comes_back_as_it_was_sent() {
        let mut moved: TopicIds = [("a".to_owned(), "new".to_owned())].into_iter().collect();
        moved.move_from(&[("a".to_owned(), "old".to_owned())].into_iter().collect());
        let sent = KafkaSplit { ids: moved, ..split(vec![piece("a", 5, 1)], &[("b", 0, 7)]) };
        let json = serde_json::to_string(&Split::new(&sent).unwrap()).unwrap();
        let arrived: Split = serde_json::from_str(&json).unwrap();
        assert_eq!(arrived.to::<KafkaSplit>("topics").unwrap(), sent, "{json}");
    }

    #[test]
    fn the_first_consumer_fetches_every_partition_from_its_first_piece() {
        let splits = [
            split(vec![piece("a", 20, 1), piece("b", 0, 0)], &[("c", 1, 9)]),
            split(vec![piece("a", 10, 0), piece("a", 0, 0)], &[]),
        ];
        let (places, ids) = beginning(&splits);
        assert_eq!(places.to_json(), r#"{"a":{"3":0},"b":{"3":0},"c":{"1":9}}"#);
        assert_eq!(ids.topics().collect::<Vec<_>>(), ["a", "b"]);
    }
}
