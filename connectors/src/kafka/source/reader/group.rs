//! Commits how far the query is to the consumer group of the user's choice: for tools that show lag, and only for them.
//!
//! A run that was overtaken and does not know it must not turn it back. Kafka has no way to say "unless somebody else wrote",
//! so what is there is read first, and only partitions that are behind are written. (With a topic, Kafka forgets the group's
//! offsets in it.)

use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use tidewater::error::Result;
use tidewater::source::Offset;

use super::KafkaReader;
use crate::kafka::offsets::PartitionOffsets;
use crate::kafka::source::discover::QUERY_TIMEOUT;

impl KafkaReader {
    /// Commits to the group that all up to `end` is read; `last` waits for the answer.
    pub(super) fn commit_to_group(&mut self, end: &Offset, last: bool) -> Result<()> {
        if self.settings.commit_group.is_none() || self.committed_to_group.as_ref() == Some(end) {
            return Ok(());
        }
        let offsets = PartitionOffsets::from_offset(end)?;
        if let Err(error) = self.commit_offsets(&offsets, last) {
            tracing::warn!(%error, group = self.settings.commit_group, "offsets were not committed to the consumer group");
        }
        self.committed_to_group = Some(end.clone());
        Ok(())
    }

    fn commit_offsets(&self, offsets: &PartitionOffsets, last: bool) -> Result<(), KafkaError> {
        let consumer = self.metadata_client.consumer();
        let mut found = TopicPartitionList::new();
        for (topic, partition, _) in offsets.iter() {
            found.add_partition(topic, partition);
        }
        let found = consumer.committed_offsets(found, QUERY_TIMEOUT)?;
        let mut behind = TopicPartitionList::new();
        for (topic, partition, offset) in offsets.iter() {
            let committed = found.find_partition(topic, partition).map(|committed| committed.offset());
            if matches!(committed, Some(KafkaOffset::Offset(committed)) if committed >= offset) {
                continue;
            }
            // Numbers from the checkpoint: none is below zero.
            behind.add_partition_offset(topic, partition, KafkaOffset::Offset(offset.max(0)))?;
        }
        if behind.count() > 0 {
            consumer.commit(&behind, if last { CommitMode::Sync } else { CommitMode::Async })?;
        }
        Ok(())
    }
}
