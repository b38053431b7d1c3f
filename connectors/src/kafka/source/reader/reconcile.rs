//! What there is beside what was read: topics that are new, gone or made again, partitions that were added or have lost records.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use tidewater::error::{Error, ErrorKind, Result};
use tidewater::source::OffsetRange;

use super::{DELETED_AFTER_MS, KafkaReader, There};
use crate::kafka::offsets::PartitionOffsets;
use crate::kafka::source::discover::{MetadataQueries, OffsetSpec, Partitions};
use crate::kafka::source::identity::TopicIds;
use crate::kafka::source::scan::{LOSS_HINT, MADE_AGAIN_HINT};
use crate::kafka::source::split::Slice;

/// What there is, as the query sees it.
pub(super) struct Reconciled {
    /// Where each partition is to be read from.
    pub(super) from: PartitionOffsets,
    /// How far each goes, and the ids of the topics.
    pub(super) there: There,
    /// A topic is another one than before: a new place, even if all numbers are the old ones.
    pub(super) is_new: bool,
    /// Why nothing is known of topics that are missing, though they were read.
    pub(super) missing: Option<Error>,
}

impl KafkaReader {
    /// Compares what there is with where the query is. The inner error says why nobody knows.
    pub(super) fn reconcile(
        &mut self,
        from: &PartitionOffsets,
        ids: &TopicIds,
        there: There,
    ) -> Result<Result<Reconciled, Error>> {
        let (mut from, mut there) = (from.clone(), there);
        self.first_ids.learn(&there.ids);
        if self.settings.topics_moved {
            there.ids.move_from(ids);
        }
        let made_again = ids.made_again(&there.ids);
        if !made_again.is_empty() {
            self.made_again(&made_again, ids, &there.ids)?;
            from = without(&from, &made_again);
        }
        let mut added = Partitions::new();
        for (topic, partition, _) in there.ends.iter() {
            if from.get(topic, partition).is_none() {
                added.entry(topic.to_owned()).or_default().insert(partition);
            }
        }
        if !added.is_empty() {
            let earliest = self.queries().offsets(&added, OffsetSpec::Earliest);
            let earliest = match earliest {
                Ok(earliest) => earliest,
                Err(error) => return self.wait_for_broker(error).map(Err),
            };
            for (topic, partition, first) in earliest.iter() {
                tracing::info!(topic, partition, first, "a new partition");
                if first > 0 {
                    // They are counted where the batch is split, which may be in a later run.
                    self.report_data_loss(0, new_and_cut(topic, partition, first))?;
                }
                from.set(topic, partition, first);
            }
        }
        let missing = self.find_gone(&mut from, &mut there, ids)?;
        for (topic, partition, offset) in from.iter() {
            if let Some(end) = there.ends.get(topic, partition).filter(|end| *end < offset) {
                self.report_data_loss(
                    0,
                    format!(
                        "partition {partition} of topic `{topic}` ends at offset {end}, and was read up to {offset}: it was \
                         truncated, or the topic deleted and made again"
                    ),
                )?;
            }
        }
        Ok(Ok(Reconciled { from, there, is_new: !made_again.is_empty(), missing }))
    }

    /// Looks for partitions that were read and are not there. For some seconds nobody knows why; then they are gone, and
    /// forgotten. As in Spark, should they come back, they are new ones.
    fn find_gone(&mut self, from: &mut PartitionOffsets, there: &mut There, ids: &TopicIds) -> Result<Option<Error>> {
        let gone: Vec<(String, i32, i64)> = from
            .iter()
            .filter(|(topic, partition, _)| there.ends.get(topic, *partition).is_none())
            .map(|(topic, partition, offset)| (topic.to_owned(), partition, offset))
            .collect();
        let Some((topic, partition, offset)) = gone.first() else {
            self.missing_since_ms = None;
            return Ok(None);
        };
        let topics: BTreeSet<&str> = gone.iter().map(|(topic, ..)| topic.as_str()).collect();
        let named: Vec<String> = topics.iter().map(|topic| format!("`{topic}`")).collect();
        let named = named.join(", ");
        let now_ms = self.clock.now_ms();
        let since_ms = *self.missing_since_ms.get_or_insert(now_ms);
        // Whoever is to end has waited for them already.
        if self.ends || now_ms - since_ms >= DELETED_AFTER_MS {
            self.report_data_loss(
                0,
                format!(
                    "topics that the query reads, or partitions of them, are gone: {named} (partition {partition} of `{topic}` \
                     was read up to offset {offset})"
                ),
            )?;
            let is_there = |(topic, partition, _): &(&str, i32, i64)| there.ends.get(topic, *partition).is_some();
            *from = from.iter().filter(is_there).map(|(topic, id, at)| (topic.to_owned(), id, at)).collect();
            return Ok(None);
        }
        there.ids.learn(&ids.only(topics));
        let why = format!("the broker does not know the topics {named}, which the query reads, or partitions of them");
        for (topic, partition, offset) in gone {
            there.ends.set(&topic, partition, offset);
        }
        let hint = "a broker that is starting knows its topics a little later; see whether they were deleted";
        Ok(Some(Error::new(ErrorKind::Unavailable, why).with_hint(hint)))
    }

    /// What there is to read of a range, and the ids that the topics must still have when it has been read.
    pub(super) fn slices(&self, range: &OffsetRange) -> Result<(Vec<Slice>, TopicIds)> {
        let (start, start_ids) = self.place(range.start.as_ref())?;
        let (end, mut ids) = self.place(Some(&range.end))?;
        // In this batch they are read from their beginning.
        let start = without(&start, &start_ids.made_again(&ids));
        let mut slices = vec![];
        for (topic, partition, to) in end.iter() {
            let from = match start.get(topic, partition) {
                Some(from) if from <= to => from,
                // A partition that is new in this batch, or was made again: from its beginning.
                _ => {
                    let place: Partitions = [(topic.to_owned(), [partition].into())].into();
                    let ask = |queries: &MetadataQueries<'_>| queries.offsets(&place, OffsetSpec::Earliest);
                    let earliest = self.ask(self.settings.patience_ms, ask)?;
                    let first = earliest.get(topic, partition).unwrap_or(to);
                    if first > 0 && start.get(topic, partition).is_none() {
                        self.report_data_loss(first.min(to).unsigned_abs(), new_and_cut(topic, partition, first))?;
                    }
                    first.min(to)
                }
            };
            if from < to {
                slices.push(Slice { topic: topic.to_owned(), partition, from, to });
            }
        }
        let read: BTreeSet<&str> = slices.iter().map(|slice| slice.topic.as_str()).collect();
        let now = match &self.known {
            Some((_, found)) => found.ids.only(read),
            // As a batch that is run again is split before anything was asked.
            None => {
                let ask = |queries: &MetadataQueries<'_>| queries.describe(read.iter().copied());
                TopicIds::described(self.ask(self.settings.patience_ms, ask)?)
            }
        };
        // In the meantime they were made again: what the batch was to read is no more.
        let made_again = ids.made_again(&now);
        if !made_again.is_empty() {
            self.made_again(&made_again, &ids, &now)?;
            let (gone, left) = slices.into_iter().partition(|slice| made_again.contains(&slice.topic));
            slices = left;
            let gone: Vec<Slice> = gone;
            self.lost.fetch_add(gone.iter().map(Slice::size).sum(), Ordering::Relaxed);
        }
        ids.learn(&now);
        Ok((slices, ids))
    }

    /// Topics are not those that were read: an error, or a line in the log.
    fn made_again(&self, topics: &BTreeSet<String>, before: &TopicIds, now: &TopicIds) -> Result<()> {
        let changes: Vec<String> = topics.iter().map(|topic| before.describe_change(topic, now)).collect();
        let what = changes.join("; ");
        if self.settings.fail_on_data_loss {
            return Err(Error::new(ErrorKind::SourceLostData, what).with_hint(MADE_AGAIN_HINT));
        }
        tracing::warn!("{what}; going on with the new one, from its beginning");
        Ok(())
    }

    /// Records are gone: an error, or a line in the log.
    fn report_data_loss(&self, offsets: u64, what: String) -> Result<()> {
        if self.settings.fail_on_data_loss {
            return Err(Error::new(ErrorKind::SourceLostData, what).with_hint(LOSS_HINT));
        }
        tracing::warn!("{what}; going on with what is left");
        self.lost.fetch_add(offsets, Ordering::Relaxed);
        Ok(())
    }
}

fn new_and_cut(topic: &str, partition: i32, first: i64) -> String {
    format!("partition {partition} of topic `{topic}` is new to the query, and its first {first} records are gone")
}

/// The offsets of all other topics.
fn without(offsets: &PartitionOffsets, topics: &BTreeSet<String>) -> PartitionOffsets {
    let stays = |(topic, ..): &(&str, i32, i64)| !topics.contains(*topic);
    offsets.iter().filter(stays).map(|(topic, partition, at)| (topic.to_owned(), partition, at)).collect()
}
