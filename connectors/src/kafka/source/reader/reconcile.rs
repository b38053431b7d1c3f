//! What there is beside what was read: partitions that were added, are gone, or have lost records.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use tidewater::error::{Error, ErrorKind, Result};

use super::{DELETED_AFTER_MS, KafkaReader};
use crate::kafka::offsets::PartitionOffsets;
use crate::kafka::source::discover::{Partitions, Place, Questions};
use crate::kafka::source::scan::LOSS_HINT;
use crate::kafka::source::split::Slice;

impl KafkaReader {
    /// Compares what there is with where the query is: partitions that were added, are gone, or have fewer records than were
    /// read. Returns where each partition is to be read from and how far it goes; `None` to wait.
    pub(super) fn reconcile(
        &mut self,
        from: &PartitionOffsets,
        available: PartitionOffsets,
    ) -> Result<Option<(PartitionOffsets, PartitionOffsets)>> {
        let (mut from, mut available) = (from.clone(), available);
        let mut added = Partitions::new();
        for (topic, partition, _) in available.iter() {
            if from.get(topic, partition).is_none() {
                added.entry(topic.to_owned()).or_default().insert(partition);
            }
        }
        if !added.is_empty() {
            let earliest = self.questions().offsets(&added, Place::Earliest);
            let earliest = match earliest {
                Ok(earliest) => earliest,
                Err(silence) => return self.wait_for_broker(silence, self.clock.now_ms()).map(|()| None),
            };
            for (topic, partition, first) in earliest.iter() {
                tracing::info!(topic, partition, first, "a new partition");
                if first > 0 {
                    // They are counted where the batch is bound, which may be in a later run.
                    self.lose(0, new_and_cut(topic, partition, first))?;
                }
                from.set(topic, partition, first);
            }
        }
        let gone: Vec<(String, i32, i64)> = from
            .iter()
            .filter(|(topic, partition, _)| available.get(topic, *partition).is_none())
            .map(|(topic, partition, offset)| (topic.to_owned(), partition, offset))
            .collect();
        if gone.is_empty() {
            self.missing_since_ms = None;
        } else {
            let now_ms = self.clock.now_ms();
            let since_ms = *self.missing_since_ms.get_or_insert(now_ms);
            let deleted = self.frozen.is_some() || now_ms - since_ms >= DELETED_AFTER_MS;
            if deleted {
                let topics: BTreeSet<&str> = gone.iter().map(|(topic, ..)| topic.as_str()).collect();
                let topics: Vec<String> = topics.into_iter().map(|topic| format!("`{topic}`")).collect();
                let read = gone.first().map(|(topic, partition, offset)| {
                    format!("partition {partition} of `{topic}` was read up to offset {offset}")
                });
                let read = read.unwrap_or_default();
                self.lose(
                    0,
                    format!(
                        "topics that the query reads, or partitions of them, are gone: {} ({read})",
                        topics.join(", ")
                    ),
                )?;
                // As in Spark: should they come back, they are new ones.
                let is_there = |(topic, partition, _): &(&str, i32, i64)| available.get(topic, *partition).is_some();
                from = from
                    .iter()
                    .filter(is_there)
                    .map(|(topic, partition, at)| (topic.to_owned(), partition, at))
                    .collect();
            } else {
                for (topic, partition, offset) in gone {
                    available.set(&topic, partition, offset);
                }
            }
        }
        for (topic, partition, offset) in from.iter() {
            if let Some(end) = available.get(topic, partition).filter(|end| *end < offset) {
                self.lose(
                    0,
                    format!(
                        "partition {partition} of topic `{topic}` ends at offset {end}, and was read up to {offset}: it was \
                         truncated, or the topic deleted and made again"
                    ),
                )?;
            }
        }
        Ok(Some((from, available)))
    }

    /// What there is to read between two offsets.
    pub(super) fn slices(&self, start: &PartitionOffsets, end: &PartitionOffsets) -> Result<Vec<Slice>> {
        let mut slices = vec![];
        for (topic, partition, to) in end.iter() {
            let from = match start.get(topic, partition) {
                Some(from) if from <= to => from,
                // A partition that is new in this batch, or was made again: from its beginning.
                _ => {
                    let place: Partitions = [(topic.to_owned(), [partition].into())].into();
                    let ask = |questions: &Questions<'_>| questions.offsets(&place, Place::Earliest);
                    let earliest = self.ask(self.settings.patience_ms, ask)?;
                    let first = earliest.get(topic, partition).unwrap_or(to);
                    if first > 0 && start.get(topic, partition).is_none() {
                        self.lose(first.min(to).unsigned_abs(), new_and_cut(topic, partition, first))?;
                    }
                    first.min(to)
                }
            };
            if from < to {
                slices.push(Slice { topic: topic.to_owned(), partition, from, to });
            }
        }
        Ok(slices)
    }

    /// Records are gone: an error, or a line in the log.
    fn lose(&self, offsets: u64, what: String) -> Result<()> {
        if self.settings.fail_on_data_loss {
            return Err(Error::new(ErrorKind::SourceLostData, what).hint(LOSS_HINT));
        }
        tracing::warn!("{what}; going on with what is left");
        self.lost.fetch_add(offsets, Ordering::Relaxed);
        Ok(())
    }
}

fn new_and_cut(topic: &str, partition: i32, first: i64) -> String {
    format!("partition {partition} of topic `{topic}` is new to the query, and its first {first} records are gone")
}
