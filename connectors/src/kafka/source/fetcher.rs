//! One librdkafka consumer, which fetches ahead.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tidewater::error::Error;

use super::consume::PartitionQueue;
use crate::kafka::client::{ClientEvents, leave};
use crate::memory::Claim;

/// Events served in one call at most.
const EVENTS_PER_CALL: usize = 32;

/// One librdkafka consumer with a queue for each partition it reads.
pub(super) struct Fetcher {
    consumer: Arc<BaseConsumer<ClientEvents>>,
    queues: Mutex<BTreeMap<(String, i32), Arc<PartitionQueue>>>,
    memory: Claim,
    /// What librdkafka may hold of each partition.
    partition_bytes: usize,
}

/// Why partitions are not fetched.
#[derive(Debug)]
pub(super) enum NotFetched {
    /// What librdkafka said.
    Kafka(KafkaError),
    /// The memory pool has no room for what librdkafka may hold of them.
    NoMemory(Error),
}

impl NotFetched {
    /// As an error; `explain` makes one of librdkafka's.
    pub(super) fn into_error(self, explain: impl FnOnce(&KafkaError) -> Error) -> Error {
        match self {
            NotFetched::Kafka(error) => explain(&error),
            NotFetched::NoMemory(error) => error,
        }
    }
}

impl From<KafkaError> for NotFetched {
    fn from(error: KafkaError) -> Self {
        NotFetched::Kafka(error)
    }
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").field("partitions", &self.queues.lock().len()).finish_non_exhaustive()
    }
}

impl Fetcher {
    /// A consumer that reads nothing yet. Of each partition it may hold `partition_bytes`, on account of `memory`.
    pub(super) fn new(
        config: &ClientConfig,
        context: ClientEvents,
        memory: Claim,
        partition_bytes: usize,
    ) -> Result<Self, KafkaError> {
        let consumer: BaseConsumer<ClientEvents> = config.create_with_context(context)?;
        Ok(Fetcher { consumer: Arc::new(consumer), queues: Mutex::default(), memory, partition_bytes })
    }

    /// For queries to the broker.
    pub(super) fn consumer(&self) -> &BaseConsumer<ClientEvents> {
        &self.consumer
    }

    /// Serves librdkafka's events. Messages do not come this way.
    pub(super) fn serve_events(&self) {
        for _ in 0..EVENTS_PER_CALL {
            // Not all kinds of events are returned.
            drop(self.consumer.poll(Duration::ZERO));
        }
    }

    /// Begins to fetch those of these partitions that are not fetched yet, from these offsets on. All at once: a partition
    /// that is added while the broker waits for records of the others waits with it.
    pub(super) fn fetch<'a>(&self, places: impl IntoIterator<Item = (&'a str, i32, i64)>) -> Result<(), NotFetched> {
        let mut queues = self.queues.lock();
        let is_new =
            |(topic, partition, _): &(&str, i32, i64)| !queues.contains_key(&((*topic).to_owned(), *partition));
        let new: Vec<(&str, i32, i64)> = places.into_iter().filter(is_new).collect();
        if new.is_empty() {
            return Ok(());
        }
        let held = (queues.len() + new.len()).saturating_mul(self.partition_bytes);
        self.memory.resize(held).map_err(NotFetched::NoMemory)?;
        let mut added = TopicPartitionList::new();
        for (topic, partition, from) in new {
            let queue = PartitionQueue::new(Arc::clone(&self.consumer), topic, partition, from)?;
            added.add_partition_offset(topic, partition, Offset::from_raw(from))?;
            queues.insert((topic.to_owned(), partition), Arc::new(queue));
        }
        Ok(self.consumer.incremental_assign(&added)?)
    }

    /// As [`serve_events`](Self::serve_events), for so long: where an answer did not come, why it did not is among them.
    pub(super) fn listen(&self, time: Duration) {
        drop(self.consumer.poll(time));
    }

    /// What partition `partition` of `topic` has to give from offset `from` on.
    pub(super) fn read_from(&self, topic: &str, partition: i32, from: i64) -> Result<Arc<PartitionQueue>, NotFetched> {
        self.fetch([(topic, partition, from)])?;
        let queue = self.queues.lock().get(&(topic.to_owned(), partition)).map(Arc::clone);
        let queue = queue.ok_or(KafkaError::ClientCreation("a partition has no queue".to_owned()))?;
        queue.seek(from)?;
        Ok(queue)
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        leave(&self.consumer);
    }
}
