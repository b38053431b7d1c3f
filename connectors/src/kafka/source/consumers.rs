//! The consumers that fetch, and their configuration.

use std::fmt;
use std::sync::Arc;

use datafusion::execution::memory_pool::MemoryPool;
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use tidewater::error::{Error, Result};

use super::fetcher::{Fetcher, NotFetched};
use super::identity::TopicIds;
use super::read_ahead::{self, ReadAhead};
use super::settings::Settings;
use crate::kafka::client::ClientEvents;
use crate::kafka::errors::to_error;
use crate::kafka::offsets::PartitionOffsets;
use crate::memory::{Claim, left_in};

/// The consumers of one run in one process, kept from batch to batch with what they have fetched ahead.
pub(super) struct Consumers {
    settings: Arc<Settings>,
    context: ClientEvents,
    memory: Arc<dyn MemoryPool>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    /// Asks, and fetches nothing: a broker answers the queries of a connection one after the other, and one that asks for
    /// records may take half a second to answer.
    metadata_client: Option<Arc<Fetcher>>,
    /// The first fetches all partitions; others read further pieces of the same partition.
    fetchers: Vec<Arc<Fetcher>>,
    /// How many partitions a fetcher has.
    partition_count: usize,
    /// The topics that they fetch, as far as their ids are known.
    ids: TopicIds,
}

impl fmt::Debug for Consumers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumers").field("fetchers", &self.open.lock().fetchers.len()).finish_non_exhaustive()
    }
}

impl Consumers {
    /// None yet: they are made when something is read.
    pub(super) fn new(settings: Arc<Settings>, memory: &Arc<dyn MemoryPool>) -> Self {
        Consumers { settings, context: ClientEvents::default(), memory: Arc::clone(memory), open: Mutex::default() }
    }

    /// What they hear beside the answers.
    pub(super) fn context(&self) -> &ClientEvents {
        &self.context
    }

    /// Begins to fetch those of these partitions that are not fetched yet, all at once. `ids` are the ids of their topics.
    pub(super) fn fetch(&self, from: &PartitionOffsets, ids: &TopicIds) -> Result<()> {
        let mut open = self.open.lock();
        let open = &mut *open;
        for fetcher in open.fetchers.iter().chain(&open.metadata_client) {
            fetcher.serve_events();
        }
        // The driver had an answer before it split the batch.
        self.context.clear_error();
        if !open.ids.made_again(ids).is_empty() {
            // What they have fetched ahead is the old topic's.
            open.fetchers.clear();
        }
        let before = std::mem::replace(&mut open.ids, ids.clone());
        open.ids.learn(&before);
        open.partition_count = open.partition_count.max(from.len());
        let mut fetched = self.fetcher_in(open, 0)?.fetch(from.iter());
        if let Err(NotFetched::NoMemory(_)) = fetched {
            // How far a consumer fetches ahead is fixed when it is made. One that is made now has less.
            open.fetchers.clear();
            fetched = self.fetcher_in(open, 0)?.fetch(from.iter());
        }
        fetched.map_err(|e| e.into_error(|e| to_error("fetch the partitions", &self.settings.client, &self.context, e)))
    }

    /// The one that reads one more piece of a partition.
    pub(super) fn fetcher(&self, number: usize) -> Result<Arc<Fetcher>> {
        self.fetcher_in(&mut self.open.lock(), number)
    }

    fn fetcher_in(&self, open: &mut Open, number: usize) -> Result<Arc<Fetcher>> {
        while open.fetchers.len() <= number {
            let ahead = ReadAhead::of(&self.settings.client, left_in(&self.memory), open.partition_count);
            let mut config = config(&self.settings);
            ahead.configure(&self.settings.client, &mut config);
            let claimed = format!("the read-ahead of {}", self.settings.description());
            open.fetchers.push(Arc::new(self.consumer(&config, claimed, ahead.bytes())?));
        }
        open.fetchers.get(number).map(Arc::clone).ok_or_else(|| Error::internal("a consumer is missing"))
    }

    /// The one that asks.
    pub(super) fn metadata_client(&self) -> Result<Arc<Fetcher>> {
        let mut open = self.open.lock();
        let metadata_client = match open.metadata_client.take() {
            Some(metadata_client) => metadata_client,
            None => {
                Arc::new(self.consumer(&config(&self.settings), "a consumer that fetches nothing".to_owned(), 0)?)
            }
        };
        Ok(Arc::clone(open.metadata_client.insert(metadata_client)))
    }

    fn consumer(&self, config: &ClientConfig, claimed: String, partition_bytes: usize) -> Result<Fetcher> {
        let memory = Claim::new(&self.memory, claimed, read_ahead::HINT);
        Fetcher::new(config, self.context.clone(), memory, partition_bytes)
            .map_err(|e| to_error("open a consumer", &self.settings.client, &self.context, &e))
    }
}

/// librdkafka's properties: ours where correctness needs them, the user's otherwise.
pub(super) fn config(settings: &Settings) -> ClientConfig {
    let mut config = settings.client.config();
    let ours = [
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("auto.offset.reset", "error"),
        // Where a stretch ends with records that are not for applications, only this says so.
        ("enable.partition.eof", "true"),
    ];
    for (name, value) in ours {
        config.set(name, value);
    }
    let defaults = [
        ("isolation.level", "read_committed"),
        ("group.id", settings.commit_group.as_deref().unwrap_or("tidewater")),
        ("fetch.error.backoff.ms", "100"),
        ("fetch.queue.backoff.ms", "10"),
        ("allow.auto.create.topics", "false"),
    ];
    for (name, value) in defaults {
        if settings.client.get(name).is_none() {
            config.set(name, value);
        }
    }
    if let Some(group) = &settings.commit_group {
        config.set("group.id", group);
    }
    config
}
