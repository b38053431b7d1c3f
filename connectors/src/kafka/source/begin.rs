//! Where a new query begins.

use tidewater::error::{Error, Result};

use super::discover::{BrokerError, Found, MetadataQueries, OffsetSpec, Partitions, no_topic};
use super::identity::TopicIds;
use super::settings::{NoOffsetForTime, StartingOffsets, Topics};
use crate::kafka::offsets::PartitionOffsets;

/// The first offset to read of every partition, and of which topics. The outer error may pass; the inner one says that the
/// user must change something.
pub(super) fn resolve(queries: &MetadataQueries<'_>) -> Result<Result<(PartitionOffsets, TopicIds)>, BrokerError> {
    let Found { partitions, ids } = queries.topics()?;
    if let Err(error) = all_there(queries, &partitions) {
        return Ok(Err(error));
    }
    Ok(first_offsets(queries, partitions)?.map(|begin| (begin, ids)))
}

fn first_offsets(
    queries: &MetadataQueries<'_>,
    partitions: Partitions,
) -> Result<Result<PartitionOffsets>, BrokerError> {
    match &queries.settings.starting {
        StartingOffsets::Earliest => queries.offsets(&partitions, OffsetSpec::Earliest).map(Ok),
        StartingOffsets::Latest => queries.offsets(&partitions, OffsetSpec::Latest).map(Ok),
        StartingOffsets::At(given) => match same_partitions("startingOffsets", given, &partitions) {
            Err(error) => Ok(Err(error)),
            Ok(()) => at(queries, given).map(Ok),
        },
        StartingOffsets::AtTime(time_ms) => {
            let places = pairs(&partitions).map(|(topic, partition)| (topic, partition, *time_ms)).collect();
            at_times(queries, places)
        }
        StartingOffsets::AtTimes(given) => match same_partitions("startingOffsetsByTimestamp", given, &partitions) {
            Err(error) => Ok(Err(error)),
            Ok(()) => at_times(queries, given.iter().collect()),
        },
    }
}

fn pairs(partitions: &Partitions) -> impl Iterator<Item = (&str, i32)> {
    partitions.iter().flat_map(|(topic, ids)| ids.iter().map(move |id| (topic.as_str(), *id)))
}

/// Whoever names topics means topics that exist.
fn all_there(queries: &MetadataQueries<'_>, found: &Partitions) -> Result<()> {
    let missing: Vec<String> = match &queries.settings.topics {
        Topics::Pattern(_) => vec![],
        Topics::Subscribe(topics) => topics.iter().filter(|topic| !found.contains_key(*topic)).cloned().collect(),
        Topics::Assign(topics) => topics.keys().filter(|topic| !found.contains_key(*topic)).cloned().collect(),
    };
    if !missing.is_empty() {
        return Err(no_topic(&missing, queries.settings));
    }
    if let Topics::Assign(topics) = &queries.settings.topics {
        for (topic, wanted) in topics {
            let there = found.get(topic);
            if let Some(partition) = wanted.iter().find(|id| !there.is_some_and(|there| there.contains(*id))) {
                return Err(Error::invalid(format!("topic `{topic}` has no partition {partition}"))
                    .with_hint("assign partitions that exist, or subscribe to the topic"));
            }
        }
    }
    Ok(())
}

/// Spark's rule: either all partitions are named, or none.
fn same_partitions(option: &str, given: &PartitionOffsets, found: &Partitions) -> Result<()> {
    let unnamed = pairs(found).find(|(topic, partition)| given.get(topic, *partition).is_none());
    let unknown = given.iter().find(|(topic, id, _)| !found.get(*topic).is_some_and(|ids| ids.contains(id)));
    let what = match (unnamed, unknown) {
        (Some((topic, partition)), _) => format!("does not name partition {partition} of topic `{topic}`"),
        (None, Some((topic, partition, _))) => {
            format!(
                "names partition {partition} of topic `{topic}`, which the source does not read or which does not exist"
            )
        }
        (None, None) => return Ok(()),
    };
    Err(Error::invalid(format!("`{option}` {what}")).with_hint(
        "name every partition that is read, and no other: -2 stands for the earliest offset, -1 for the latest",
    ))
}

/// Numbers are offsets, but for -2 and -1.
fn at(queries: &MetadataQueries<'_>, given: &PartitionOffsets) -> Result<PartitionOffsets, BrokerError> {
    let mut begin = given.clone();
    let named = given.iter().filter_map(|(topic, partition, offset)| match offset {
        -2 => Some((topic, partition, OffsetSpec::Earliest)),
        -1 => Some((topic, partition, OffsetSpec::Latest)),
        _ => None,
    });
    for (topic, partition, offset) in queries.offsets_at(named.collect())?.iter() {
        begin.set(topic, partition, offset);
    }
    Ok(begin)
}

fn at_times(
    queries: &MetadataQueries<'_>,
    times: Vec<(&str, i32, i64)>,
) -> Result<Result<PartitionOffsets>, BrokerError> {
    let places =
        times.iter().map(|(topic, partition, time_ms)| (*topic, *partition, OffsetSpec::At(*time_ms))).collect();
    let mut begin = queries.offsets_at(places)?;
    let without: Vec<(&str, i32, i64)> =
        times.into_iter().filter(|(topic, partition, _)| begin.get(topic, *partition).is_none()).collect();
    if let (Some((topic, partition, time_ms)), NoOffsetForTime::Error) =
        (without.first(), &queries.settings.no_offset_for_time)
    {
        return Ok(Err(Error::invalid(format!(
            "partition {partition} of topic `{topic}` has no record at or after the starting time {time_ms} ms"
        ))
        .with_hint("set `startingOffsetsByTimestampStrategy` to `latest` to begin at the end of such partitions")));
    }
    let places = without.iter().map(|(topic, partition, _)| (*topic, *partition, OffsetSpec::Latest)).collect();
    for (topic, partition, offset) in queries.offsets_at(places)?.iter() {
        begin.set(topic, partition, offset);
    }
    Ok(Ok(begin))
}
