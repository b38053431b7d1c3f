//! The consumers that fetch, and what librdkafka is told.

use std::sync::Arc;

use rdkafka::ClientConfig;
use tidewater::error::{Error, Result};

use super::KafkaReader;
use crate::kafka::offsets::PartitionOffsets;
use crate::kafka::problem::failed;
use crate::kafka::source::fetcher::{Fetcher, NotFetched};
use crate::kafka::source::read_ahead::{self, ReadAhead};
use crate::kafka::source::settings::Settings;
use crate::memory::{Claim, left_in};

impl KafkaReader {
    /// The fetcher that reads one more piece of a partition.
    pub(super) fn fetcher(&mut self, number: usize) -> Result<Arc<Fetcher>> {
        while self.fetchers.len() <= number {
            let ahead = ReadAhead::of(&self.settings.client, left_in(&self.memory), self.width);
            let mut config = config(&self.settings);
            ahead.configure(&self.settings.client, &mut config);
            let memory = self.read_ahead_memory();
            let fetcher = Fetcher::new(&config, self.context.clone(), memory, ahead.bytes())
                .map_err(|e| failed("open a consumer", &self.settings.client, &self.context, &e))?;
            self.fetchers.push(Arc::new(fetcher));
        }
        self.fetchers.get(number).map(Arc::clone).ok_or_else(|| Error::internal("a consumer is missing"))
    }

    fn read_ahead_memory(&self) -> Claim {
        Claim::new(&self.memory, format!("the read-ahead of {}", self.settings.description()), read_ahead::HINT)
    }

    /// Lets librdkafka fetch ahead.
    pub(super) fn fetch_ahead(&mut self, from: &PartitionOffsets) -> Result<()> {
        self.width = self.width.max(from.len());
        let mut fetched = self.fetcher(0)?.fetch(from.iter());
        if let Err(NotFetched::NoMemory(_)) = fetched {
            // How far a consumer fetches ahead is fixed when it is made. One that is made now has less.
            self.fetchers.clear();
            fetched = self.fetcher(0)?.fetch(from.iter());
        }
        fetched.map_err(|e| e.told(|e| failed("fetch the partitions", &self.settings.client, &self.context, e)))
    }
}

/// librdkafka's properties: ours where correctness needs them, the user's otherwise.
pub(super) fn config(settings: &Settings) -> ClientConfig {
    let mut config = settings.client.config();
    let ours = [
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("auto.offset.reset", "error"),
        // Where a stretch ends with records that are not for applications, only this tells.
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
