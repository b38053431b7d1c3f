//! What the broker is asked: which partitions there are, where they begin and end.
//!
//! Every question is one request to each broker that leads a partition, however many partitions there are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::metadata::MetadataTopic;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use tidewater::error::{Error, ErrorKind, Result};

use super::fetcher::Fetcher;
use super::identity::TopicIds;
use super::settings::{Settings, Topics, whole_name};
use crate::kafka::describe::{Described, describe};
use crate::kafka::errors::to_error;
use crate::kafka::offsets::PartitionOffsets;
use crate::kafka::retry::{is_auth_failure, is_retriable, is_unknown_topic};

/// How long one question may take; whoever asks asks again.
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to listen for the reason when there is no answer.
const LISTEN: Duration = Duration::from_millis(100);

/// The partitions of each topic.
pub(super) type Partitions = BTreeMap<String, BTreeSet<i32>>;

/// The topics that the source reads, as they are now.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    pub(super) partitions: Partitions,
    /// Which topics they are. Whoever asks where they end does so later: a topic that is made again in between is then
    /// taken for the old one, with ends of the new one, and found out when it is read.
    pub(super) ids: TopicIds,
}

/// An offset in a partition that the broker finds, as in Kafka's `OffsetSpec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OffsetSpec {
    /// The first record there is.
    Earliest,
    /// Behind the last record (that is committed, where only committed ones are read).
    Latest,
    /// The first record at or after this time, in milliseconds since 1970.
    At(i64),
}

/// Why a request to the broker failed.
#[derive(Debug)]
pub(super) enum BrokerError {
    /// Nobody answers now; asking again may help.
    Retriable(Error),
    /// Asking again does not help.
    Fatal(Error),
}

impl From<BrokerError> for Error {
    fn from(error: BrokerError) -> Self {
        match error {
            BrokerError::Retriable(error) | BrokerError::Fatal(error) => error,
        }
    }
}

/// Requests metadata and offsets of the cluster. Answers come at once or within [`QUERY_TIMEOUT`].
pub(super) struct MetadataQueries<'a> {
    pub(super) fetcher: &'a Fetcher,
    pub(super) settings: &'a Settings,
}

impl MetadataQueries<'_> {
    fn broker_error(&self, action: &str, error: &KafkaError) -> BrokerError {
        // Why a connection was refused is only reported to whoever serves events.
        self.fetcher.listen(LISTEN);
        let context = self.fetcher.consumer().context();
        let explained = to_error(action, &self.settings.client, context, error);
        let passes = (is_retriable(error) || is_unknown_topic(error)) && !is_auth_failure(context.last_error());
        if passes { BrokerError::Retriable(explained) } else { BrokerError::Fatal(explained) }
    }

    /// All topics that the source reads, as they are now. One that is not there is left out.
    pub(super) fn topics(&self) -> Result<Found, BrokerError> {
        let mut partitions = self.partitions()?;
        let described = self.describe(partitions.keys().map(String::as_str))?;
        partitions.retain(|topic, _| described.contains_key(topic));
        Ok(Found { partitions, ids: TopicIds::described(described) })
    }

    /// The ids of these topics. One that is not there is left out.
    pub(super) fn describe<'t>(&self, topics: impl IntoIterator<Item = &'t str>) -> Result<Described, BrokerError> {
        describe(self.fetcher.consumer(), topics, QUERY_TIMEOUT)
            .map_err(|e| self.broker_error("ask which topics there are", &e))
    }

    fn partitions(&self) -> Result<Partitions, BrokerError> {
        match &self.settings.topics {
            Topics::Assign(assigned) => {
                let mut found = Partitions::new();
                for (topic, wanted) in assigned {
                    if let Some(there) = self.partitions_of(topic)? {
                        found.insert(topic.clone(), wanted.intersection(&there).copied().collect());
                    }
                }
                Ok(found)
            }
            Topics::Subscribe(topics) => {
                let mut found = Partitions::new();
                for topic in topics {
                    if let Some(there) = self.partitions_of(topic)? {
                        found.insert(topic.clone(), there);
                    }
                }
                Ok(found)
            }
            Topics::Pattern(pattern) => self.matching(pattern),
        }
    }

    /// The first offset of a partition, and the one behind its last record; `None` if there is no such partition.
    pub(super) fn extent(&self, topic: &str, partition: i32) -> Result<Option<(i64, i64)>, BrokerError> {
        if !self.partitions_of(topic)?.is_some_and(|there| there.contains(&partition)) {
            return Ok(None);
        }
        let offset = |spec| Ok(self.offsets_at(vec![(topic, partition, spec)])?.get(topic, partition));
        Ok(offset(OffsetSpec::Earliest)?.zip(offset(OffsetSpec::Latest)?))
    }

    fn partitions_of(&self, topic: &str) -> Result<Option<BTreeSet<i32>>, BrokerError> {
        let action = format!("ask for the partitions of topic `{topic}`");
        let metadata = self
            .fetcher
            .consumer()
            .fetch_metadata(Some(topic), QUERY_TIMEOUT)
            .map_err(|e| self.broker_error(&action, &e))?;
        match metadata.topics().iter().find(|found| found.name() == topic) {
            Some(found) => self.of_topic(&action, found),
            None => Ok(None),
        }
    }

    fn matching(&self, pattern: &str) -> Result<Partitions, BrokerError> {
        let regex = whole_name(pattern).map_err(BrokerError::Fatal)?;
        let action = format!("ask which topics match `{pattern}`");
        let metadata =
            self.fetcher.consumer().fetch_metadata(None, QUERY_TIMEOUT).map_err(|e| self.broker_error(&action, &e))?;
        let mut found = Partitions::new();
        for topic in metadata.topics() {
            // Topics of Kafka itself are never meant.
            if regex.is_match(topic.name())
                && !topic.name().starts_with("__")
                && let Some(partitions) = self.of_topic(&action, topic)?
            {
                found.insert(topic.name().to_owned(), partitions);
            }
        }
        Ok(found)
    }

    fn of_topic(&self, action: &str, topic: &MetadataTopic) -> Result<Option<BTreeSet<i32>>, BrokerError> {
        match topic.error() {
            None | Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR) => {
                Ok(Some(topic.partitions().iter().map(|partition| partition.id()).collect()))
            }
            Some(
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC,
            ) => Ok(None),
            Some(other) => Err(self.broker_error(action, &KafkaError::MetadataFetch(other.into()))),
        }
    }

    /// Where `spec` is in each of these partitions. A partition without a record at or after [`OffsetSpec::At`] is left out.
    pub(super) fn offsets(&self, partitions: &Partitions, spec: OffsetSpec) -> Result<PartitionOffsets, BrokerError> {
        let specs =
            partitions.iter().flat_map(|(topic, ids)| ids.iter().map(move |id| (topic.as_str(), *id, spec))).collect();
        self.offsets_at(specs)
    }

    /// As [`offsets`](Self::offsets), with a place for each partition.
    pub(super) fn offsets_at(&self, specs: Vec<(&str, i32, OffsetSpec)>) -> Result<PartitionOffsets, BrokerError> {
        if specs.is_empty() {
            return Ok(PartitionOffsets::new());
        }
        let action = "ask for the offsets of its partitions";
        let mut list = TopicPartitionList::with_capacity(specs.len());
        for (topic, partition, spec) in specs {
            let raw = match spec {
                OffsetSpec::Earliest => Offset::Beginning,
                OffsetSpec::Latest => Offset::End,
                OffsetSpec::At(time_ms) => Offset::Offset(time_ms.max(0)),
            };
            list.add_partition_offset(topic, partition, raw).map_err(|e| self.broker_error(action, &e))?;
        }
        let answer = self
            .fetcher
            .consumer()
            .offsets_for_times(list, QUERY_TIMEOUT)
            .map_err(|e| self.broker_error(action, &e))?;
        let mut found = PartitionOffsets::new();
        for partition in answer.elements() {
            partition.error().map_err(|e| {
                let action =
                    format!("ask for offsets of partition {} of topic `{}`", partition.partition(), partition.topic());
                self.broker_error(&action, &e)
            })?;
            if let Offset::Offset(offset) = partition.offset() {
                found.set(partition.topic(), partition.partition(), offset);
            }
        }
        Ok(found)
    }
}

/// There is no such topic, now that the query starts.
pub(super) fn no_topic(missing: &[String], settings: &Settings) -> Error {
    let names: Vec<String> = missing.iter().map(|topic| format!("`{topic}`")).collect();
    let (what, verb) = match names.len() {
        1 => ("topic", "exists"),
        _ => ("topics", "exist"),
    };
    Error::new(
        ErrorKind::InvalidQuery,
        format!("no {what} {} {verb} at {}", names.join(", "), settings.client.bootstrap()),
    )
    .with_hint("check the spelling, create the topic first, or see whether this user may know of it")
}
