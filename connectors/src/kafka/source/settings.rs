//! The settings of a Kafka source, typed and checked. Names, defaults and rules are Spark's.

mod parse;

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;
use tidewater::error::{Error, Result};
use tidewater::identity::Identity;
use tidewater::interval::Interval;

use crate::formats::Format;
use crate::kafka::client::ClientSettings;
use crate::kafka::offsets::PartitionOffsets;

const SOURCE_NAME: &str = "the Kafka source";
const MAX_TRIGGER_DELAY: &str = "15 minutes";
const PATIENCE_MS: i64 = 120 * 1000;

/// Names that mean something elsewhere, why they mean nothing here, and what to do instead.
type Refused = &'static [(&'static [&'static str], &'static str, &'static str)];

const REFUSED_PROPERTIES: Refused = &[
    (
        &["auto.offset.reset"],
        "where to go on is what the checkpoint says",
        "set the option `startingOffsets` to `earliest` or `latest` to say where a new query begins",
    ),
    (
        &["enable.auto.commit", "auto.commit.enable", "enable.auto.offset.store"],
        "how far the query is, is in its checkpoint",
        "leave it out; to show lag to Kafka's tools, set the option `commitOffsetsToGroup`",
    ),
    (&["enable.partition.eof"], "the source needs it for itself", "leave it out"),
    (
        &["key.deserializer", "value.deserializer", "key.serializer", "value.serializer"],
        "keys and values are bytes",
        "leave it out, and decode them with an expression such as `from_json`, or with a format",
    ),
    (&["interceptor.classes"], "an interceptor could change records", "leave it out"),
];

/// What to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Topics {
    /// All partitions of these topics.
    Subscribe(BTreeSet<String>),
    /// All partitions of the topics whose whole name matches this regular expression.
    Pattern(String),
    /// These partitions.
    Assign(BTreeMap<String, BTreeSet<i32>>),
}

impl Topics {
    /// What the checkpoint knows them by. Not where the brokers are: they may move.
    pub(super) fn identity(&self) -> Identity {
        let list = |topics: Vec<&str>| Identity::new("kafka").at(topics.join(", "));
        match self {
            Topics::Subscribe(topics) => list(topics.iter().map(String::as_str).collect()),
            Topics::Pattern(pattern) => Identity::new("kafka").option("subscribePattern", pattern),
            Topics::Assign(topics) => {
                let all: Vec<String> = topics
                    .iter()
                    .flat_map(|(topic, partitions)| {
                        partitions.iter().map(move |partition| format!("{topic}-{partition}"))
                    })
                    .collect();
                list(topics.keys().map(String::as_str).collect()).option("assign", all.join(", "))
            }
        }
    }

    /// Whether this topic is surely one of them.
    pub(super) fn have(&self, topic: &str) -> bool {
        match self {
            Topics::Subscribe(topics) => topics.contains(topic),
            Topics::Pattern(pattern) => pattern == topic,
            Topics::Assign(topics) => topics.contains_key(topic),
        }
    }
}

/// Where a new query begins. A query that goes on does so where its checkpoint says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartingOffsets {
    /// With the first record there is.
    Earliest,
    /// With what comes after the query's start.
    #[default]
    Latest,
    /// At these offsets, which must be given for every partition that is read: [`PartitionOffsets::EARLIEST`] stands for the
    /// first record there is, [`PartitionOffsets::LATEST`] for what comes.
    At(PartitionOffsets),
    /// In every partition with the first record at or after this time, in milliseconds since 1970.
    AtTime(i64),
    /// With the first record at or after the time that is given for the partition, in milliseconds since 1970. Every partition
    /// that is read must have one.
    AtTimes(PartitionOffsets),
}

/// Where to begin in a partition that has no record at or after the starting time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum NoOffsetForTime {
    /// Nowhere: the query fails.
    #[default]
    Error,
    /// With what comes.
    Latest,
}

/// The policy for a record that is not in the declared format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadRecordPolicy {
    /// The query fails, and says which record it is.
    #[default]
    Fail,
    /// The column is null.
    Null,
    /// The record goes to the query's dead letters.
    DeadLetter,
}

/// All settings of a Kafka source.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) client: ClientSettings,
    pub(super) topics: Topics,
    pub(super) starting: StartingOffsets,
    pub(super) no_offset_for_time: NoOffsetForTime,
    pub(super) max_offsets: Option<u64>,
    pub(super) min_offsets: Option<u64>,
    pub(super) max_trigger_delay: Interval,
    pub(super) min_partitions: Option<usize>,
    pub(super) max_records_per_partition: Option<u64>,
    pub(super) fail_on_data_loss: bool,
    pub(super) topics_moved: bool,
    pub(super) patience_ms: i64,
    pub(super) include_headers: bool,
    pub(super) commit_group: Option<String>,
    pub(super) bad_records: BadRecordPolicy,
    pub(super) key_format: Option<Format>,
    pub(super) value_format: Option<Format>,
}

impl Settings {
    /// The defaults.
    pub(super) fn new(client: ClientSettings, topics: Topics) -> Self {
        Settings {
            client,
            topics,
            starting: StartingOffsets::default(),
            no_offset_for_time: NoOffsetForTime::default(),
            max_offsets: None,
            min_offsets: None,
            max_trigger_delay: MAX_TRIGGER_DELAY.into(),
            min_partitions: None,
            max_records_per_partition: None,
            fail_on_data_loss: true,
            topics_moved: false,
            patience_ms: PATIENCE_MS,
            include_headers: false,
            commit_group: None,
            bad_records: BadRecordPolicy::default(),
            key_format: None,
            value_format: None,
        }
    }

    /// By options, whose names may be in any case. What begins with `kafka.` is a property of librdkafka.
    pub(super) fn from_options(given: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        parse::settings(given)
    }

    /// An error if something is missing, makes no sense on a stream, or contradicts something else.
    pub(super) fn check(&self) -> Result<()> {
        if self.client.bootstrap().split(',').all(|server| server.trim().is_empty()) {
            return Err(no_brokers());
        }
        self.client.refuse_java_names()?;
        for name in self.client.names() {
            if let Some((why, instead)) = refused(REFUSED_PROPERTIES, name) {
                let value = self.client.shown(name);
                let message = format!("property `{name}` is `{value}`, and {SOURCE_NAME} does not take it: {why}");
                return Err(Error::unsupported(message).with_hint(instead));
            }
        }
        self.check_topics()?;
        self.check_start()?;
        self.max_trigger_delay_ms()?;
        match (self.min_offsets, self.max_offsets) {
            (Some(min), Some(max)) if min > max => Err(Error::invalid(format!(
                "`minOffsetsPerTrigger` is {min}, and `maxOffsetsPerTrigger` is only {max}"
            ))
            .with_hint("a batch that waits for its least must be allowed to take as much")),
            _ => Ok(()),
        }
    }

    /// How long a batch waits for its least number of offsets.
    pub(super) fn max_trigger_delay_ms(&self) -> Result<i64> {
        self.max_trigger_delay.non_negative_ms(&format!("`maxTriggerDelay` of {SOURCE_NAME}"))
    }

    fn check_topics(&self) -> Result<()> {
        let empty = match &self.topics {
            Topics::Subscribe(topics) => topics.is_empty() || topics.contains(""),
            Topics::Assign(topics) => topics.is_empty() || topics.contains_key(""),
            Topics::Pattern(pattern) => return whole_name(pattern).map(|_| ()),
        };
        if empty {
            return Err(Error::invalid(format!("{SOURCE_NAME} is to read a topic without a name, or none"))
                .with_hint("name a topic"));
        }
        if let Topics::Assign(topics) = &self.topics
            && let Some((topic, partition)) =
                topics.iter().find_map(|(topic, ids)| ids.first().filter(|id| **id < 0).map(|id| (topic, id)))
        {
            return Err(Error::invalid(format!("topic `{topic}` cannot have a partition {partition}"))
                .with_hint("partitions are counted from 0"));
        }
        Ok(())
    }

    fn check_start(&self) -> Result<()> {
        let (name, numbers, least, hint) = match &self.starting {
            StartingOffsets::Earliest | StartingOffsets::Latest => return Ok(()),
            StartingOffsets::At(offsets) => (
                "startingOffsets",
                offsets,
                PartitionOffsets::EARLIEST,
                "-2 stands for the earliest offset, -1 for the latest",
            ),
            StartingOffsets::AtTimes(times) => {
                ("startingOffsetsByTimestamp", times, 0, "times are milliseconds since 1970")
            }
            StartingOffsets::AtTime(time_ms) if *time_ms >= 0 => return Ok(()),
            StartingOffsets::AtTime(time_ms) => {
                return Err(Error::invalid(format!("`startingTimestamp` is {time_ms}, below 0"))
                    .with_hint("it is in milliseconds since 1970"));
            }
        };
        match numbers.iter().find(|(_, _, number)| *number < least) {
            Some((topic, partition, number)) => Err(Error::invalid(format!(
                "`{name}` is {number} for partition {partition} of topic `{topic}`, below {least}"
            ))
            .with_hint(hint)),
            None => Ok(()),
        }
    }

    /// For people.
    pub(super) fn description(&self) -> String {
        let topics: Vec<String> = match &self.topics {
            Topics::Subscribe(topics) => topics.iter().cloned().collect(),
            Topics::Pattern(pattern) => vec![format!("like {pattern}")],
            Topics::Assign(topics) => {
                topics.iter().flat_map(|(topic, ids)| ids.iter().map(move |id| format!("{topic}-{id}"))).collect()
            }
        };
        format!("kafka [{}] at {}", topics.join(", "), self.client.bootstrap())
    }

    /// Whether records that cannot be read go to the query's dead letters.
    pub(super) fn sends_dead_letters(&self) -> bool {
        self.bad_records == BadRecordPolicy::DeadLetter && (self.key_format.is_some() || self.value_format.is_some())
    }
}

/// Matches whole names of topics.
pub(super) fn whole_name(pattern: &str) -> Result<Regex> {
    if pattern.is_empty() {
        return Err(
            Error::invalid("`subscribePattern` is empty").with_hint("write a regular expression such as `orders-.*`")
        );
    }
    Regex::new(&format!("^(?:{pattern})$")).map_err(|e| {
        Error::invalid(format!("`subscribePattern` is `{pattern}`, not a regular expression: {e}"))
            .with_hint("look-around and back-references, which Java has, are not possible")
            .with_source(e)
    })
}

fn refused(list: Refused, name: &str) -> Option<(&'static str, &'static str)> {
    let is = |names: &[&str]| names.iter().any(|refused| refused.eq_ignore_ascii_case(name));
    list.iter().find(|(names, ..)| is(names)).map(|(_, why, instead)| (*why, *instead))
}

fn no_brokers() -> Error {
    Error::invalid(format!("{SOURCE_NAME} does not know where Kafka is"))
        .with_hint("set `kafka.bootstrap.servers` to one or more brokers, `host:port` with commas between")
}

#[cfg(test)]
mod tests;
