//! Options by name.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tidewater::error::{Error, Result};
use tidewater::interval::Interval;

use super::{
    BadRecordPolicy, NoOffsetForTime, Refused, SOURCE_NAME, Settings, StartingOffsets, Topics, no_brokers, refused,
};
use crate::kafka::client::ClientSettings;
use crate::kafka::offsets::PartitionOffsets;
use crate::options::Options;

const BOOTSTRAP: &str = "bootstrap.servers";

const OPTIONS: &[&str] = &[
    "assign",
    "subscribe",
    "subscribePattern",
    "startingOffsets",
    "startingTimestamp",
    "startingOffsetsByTimestamp",
    "startingOffsetsByTimestampStrategy",
    "maxOffsetsPerTrigger",
    "minOffsetsPerTrigger",
    "maxTriggerDelay",
    "minPartitions",
    "maxRecordsPerPartition",
    "failOnDataLoss",
    "topicsMoved",
    "kafkaConsumer.pollTimeoutMs",
    "includeHeaders",
    "groupIdPrefix",
    "commitOffsetsToGroup",
    "badRecords",
];

const REFUSED_OPTIONS: Refused = &[
    (
        &["endingOffsets", "endingOffsetsByTimestamp", "endingTimestamp"],
        "a stream has no end",
        "start the query with the trigger `AvailableNow`: it reads what there is and stops",
    ),
    (
        &["fetchOffset.numRetries", "fetchOffset.retryIntervalMs"],
        "the source asks again by itself",
        "leave it out: `kafkaConsumer.pollTimeoutMs` says how long a broker may be away",
    ),
    (&[BOOTSTRAP], "properties of Kafka have a prefix", "write `kafka.bootstrap.servers`"),
];

/// Reads options. What begins with `kafka.` is a property of librdkafka.
pub(super) fn settings(given: impl IntoIterator<Item = (String, String)>) -> Result<Settings> {
    let (mut properties, mut others) = (BTreeMap::new(), vec![]);
    for (name, value) in given {
        match name.to_ascii_lowercase().strip_prefix("kafka.") {
            Some(property) => {
                properties.insert(property.to_owned(), value);
            }
            None => {
                if let Some((why, instead)) = refused(REFUSED_OPTIONS, &name) {
                    return Err(
                        Error::unsupported(format!("option `{name}` of {SOURCE_NAME}: {why}")).with_hint(instead)
                    );
                }
                others.push((name, value));
            }
        }
    }
    let options = Options::new(SOURCE_NAME, OPTIONS, others)?;
    let mut settings = Settings::new(client(properties)?, topics(&options)?);
    settings.starting = starting(&options)?;
    let strategy = options.parsed("startingOffsetsByTimestampStrategy", "`error` or `latest`", no_offset_for_time)?;
    settings.no_offset_for_time = strategy.unwrap_or_default();
    settings.max_offsets = options.positive_u64("maxOffsetsPerTrigger")?;
    settings.min_offsets = options.positive_u64("minOffsetsPerTrigger")?;
    let delay = options.parsed("maxTriggerDelay", "a length of time such as `15m`", delay)?;
    settings.max_trigger_delay = delay.unwrap_or(settings.max_trigger_delay);
    let pieces = options.positive_u64("minPartitions")?;
    settings.min_partitions = pieces.map(|pieces| usize::try_from(pieces).unwrap_or(usize::MAX));
    settings.max_records_per_partition = options.positive_u64("maxRecordsPerPartition")?;
    settings.fail_on_data_loss = options.bool("failOnDataLoss", true)?;
    settings.topics_moved = options.bool("topicsMoved", false)?;
    let patience = options.positive_u64("kafkaConsumer.pollTimeoutMs")?;
    settings.patience_ms = patience.map_or(settings.patience_ms, |ms| i64::try_from(ms).unwrap_or(i64::MAX));
    settings.include_headers = options.bool("includeHeaders", false)?;
    settings.commit_group = options.parsed("commitOffsetsToGroup", "the name of a consumer group", some_text)?;
    let treatment = options.parsed("badRecords", "`fail`, `null` or `deadLetter`", bad_records)?;
    settings.bad_records = treatment.unwrap_or_default();
    // No group has members; but a broker may ask whether the user may use this name.
    let prefix = options.parsed("groupIdPrefix", "the beginning of a name", some_text)?;
    if let Some(prefix) = prefix.filter(|_| settings.client.get("group.id").is_none()) {
        settings.client.set("group.id", &format!("{prefix}-tidewater"));
    }
    settings.check()?;
    Ok(settings)
}

fn client(properties: BTreeMap<String, String>) -> Result<ClientSettings> {
    let bootstrap = properties.get(BOOTSTRAP).ok_or_else(no_brokers)?;
    if bootstrap.contains('@') {
        return Err(Error::invalid("`kafka.bootstrap.servers` has a user or a password in it")
            .with_hint("write `host:port`, and set `kafka.sasl.username` and `kafka.sasl.password`"));
    }
    let mut client = ClientSettings::new(bootstrap);
    for (name, value) in properties.iter().filter(|(name, _)| *name != BOOTSTRAP) {
        client.set(name, value);
    }
    Ok(client)
}

fn topics(options: &Options) -> Result<Topics> {
    let subscribe = options.parsed("subscribe", "names of topics with commas between", names)?;
    let pattern = options.get("subscribePattern").map(|pattern| pattern.trim().to_owned());
    let assign =
        options.parsed("assign", r#"partitions by topic, such as `{"topicA":[0,1],"topicB":[2]}`"#, assigned)?;
    let hint = "set one of `subscribe`, `subscribePattern` and `assign`";
    match (subscribe, pattern, assign) {
        (Some(topics), None, None) => Ok(Topics::Subscribe(topics)),
        (None, Some(pattern), None) => Ok(Topics::Pattern(pattern)),
        (None, None, Some(topics)) => Ok(Topics::Assign(topics)),
        (None, None, None) => Err(Error::invalid(format!("{SOURCE_NAME} does not know what to read")).with_hint(hint)),
        _ => {
            Err(Error::invalid(format!("{SOURCE_NAME} is given more than one way to choose what to read"))
                .with_hint(hint))
        }
    }
}

fn names(value: &str) -> Option<BTreeSet<String>> {
    let names: BTreeSet<String> = value.split(',').filter_map(some_text).collect();
    Some(names).filter(|names| !names.is_empty())
}

fn assigned(value: &str) -> Option<BTreeMap<String, BTreeSet<i32>>> {
    let mut topics: BTreeMap<String, BTreeSet<i32>> = serde_json::from_str(value).ok()?;
    topics.retain(|_, partitions| !partitions.is_empty());
    Some(topics).filter(|topics| !topics.is_empty())
}

/// A time for all partitions goes before times for each, and these go before offsets.
fn starting(options: &Options) -> Result<StartingOffsets> {
    let time = |value: &str| value.trim().parse().ok().filter(|time_ms: &i64| *time_ms >= 0);
    if let Some(time_ms) = options.parsed("startingTimestamp", "a number of milliseconds since 1970", time)? {
        return Ok(StartingOffsets::AtTime(time_ms));
    }
    let by_partition = |name: &str, json: &str, hint: &str| {
        PartitionOffsets::from_json(json.trim())
            .map_err(|e| Error::invalid(format!("option `{name}` of {SOURCE_NAME}: {}", e.message())).with_hint(hint))
    };
    if let Some(json) = options.get("startingOffsetsByTimestamp") {
        let hint = r#"write milliseconds since 1970, like `{"topicA":{"0":1767225600000,"1":1767225600000}}`"#;
        return by_partition("startingOffsetsByTimestamp", json, hint).map(StartingOffsets::AtTimes);
    }
    let Some(given) = options.get("startingOffsets") else { return Ok(StartingOffsets::default()) };
    match given.trim().to_ascii_lowercase().as_str() {
        "earliest" => Ok(StartingOffsets::Earliest),
        "latest" => Ok(StartingOffsets::Latest),
        _ => {
            let hint = r#"write `earliest`, `latest`, or offsets like `{"topicA":{"0":23,"1":-1},"topicB":{"0":-2}}`"#;
            by_partition("startingOffsets", given, hint).map(StartingOffsets::At)
        }
    }
}

fn no_offset_for_time(value: &str) -> Option<NoOffsetForTime> {
    match value.trim().to_ascii_lowercase().as_str() {
        "error" => Some(NoOffsetForTime::Error),
        "latest" => Some(NoOffsetForTime::Latest),
        _ => None,
    }
}

fn bad_records(value: &str) -> Option<BadRecordPolicy> {
    match value.trim().to_ascii_lowercase().as_str() {
        "fail" => Some(BadRecordPolicy::Fail),
        "null" => Some(BadRecordPolicy::Null),
        "deadletter" => Some(BadRecordPolicy::DeadLetter),
        _ => None,
    }
}

/// A bare number is milliseconds.
fn delay(value: &str) -> Option<Interval> {
    let value = value.trim();
    let delay = value.parse().map_or_else(|_| value.into(), |ms| Duration::from_millis(ms).into());
    Some(delay).filter(|delay: &Interval| delay.non_negative_ms("it").is_ok())
}

fn some_text(value: &str) -> Option<String> {
    Some(value.trim().to_owned()).filter(|value| !value.is_empty())
}
