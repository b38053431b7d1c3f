//! The consumers that fetch, and what librdkafka is told.

use std::sync::Arc;

use rdkafka::ClientConfig;
use tidewater::error::{Error, Result};

use super::KafkaReader;
use crate::kafka::offsets::PartitionOffsets;
use crate::kafka::problem::failed;
use crate::kafka::source::consume::Fetcher;
use crate::kafka::source::settings::Settings;

/// How much librdkafka fetches ahead, in KiB: all partitions of a fetcher together.
const READ_AHEAD_KIB: usize = 256 << 10;
/// Its property for one partition.
const READ_AHEAD: &str = "queued.max.messages.kbytes";

impl KafkaReader {
    /// The fetcher that reads one more piece of a partition.
    pub(super) fn fetcher(&mut self, number: usize) -> Result<Arc<Fetcher>> {
        while self.fetchers.len() <= number {
            let mut config = config(&self.settings);
            if self.settings.client.get(READ_AHEAD).is_none() {
                // librdkafka counts for each partition by itself.
                config.set(READ_AHEAD, (READ_AHEAD_KIB / self.width).clamp(1024, 65_536).to_string());
            }
            let fetcher = Fetcher::new(&config, self.context.clone())
                .map_err(|e| failed("open a consumer", &self.settings.client, &self.context, &e))?;
            self.fetchers.push(Arc::new(fetcher));
        }
        self.fetchers.get(number).map(Arc::clone).ok_or_else(|| Error::internal("a consumer is missing"))
    }

    /// Lets librdkafka fetch ahead.
    pub(super) fn fetch_ahead(&mut self, from: &PartitionOffsets) -> Result<()> {
        self.width = self.width.max(from.len());
        let main = self.fetcher(0)?;
        main.fetch(from.iter()).map_err(|e| failed("fetch the partitions", &self.settings.client, &self.context, &e))
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
