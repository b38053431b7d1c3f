//! The marker: how many batches of a query the cluster has taken.
//!
//! It is the committed offset of a consumer group that never has members, for partition 0 of a topic. Offsets can be
//! committed in a transaction together with rows, so the marker says N + 1 exactly when the rows of batch N can be
//! read. Beside it stands who wrote it, and of which topic: `{"query":"…","sink":"output","batch":N,"run":"…","topicId":"…"}`.
//! A marker that another query or another sink signed is refused, and one of a topic that was deleted and made again under
//! its name is none.
//!
//! | marker | the batch before was committed to the checkpoint: batch N is new | batch N may be there already |
//! |---|---|---|
//! | N + 1 | refuse: the sink is ahead | it is there |
//! | above | refuse: the sink is ahead | refuse: the sink is ahead |
//! | N | go on | go on |
//! | below, or none | write N first | refuse: nobody can know |
//!
//! Nobody can know, because the cluster forgets offsets after a while (`offsets.retention.minutes`), or with a topic.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::{Offset, TopicPartitionList};
use tidewater::error::{Error, ErrorKind, Result};
use tidewater::id::{BatchId, QueryId, RunId};
use tidewater::sink::{SinkContext, SinkRole};

use super::properties;
use crate::kafka::client::{ClientEvents, ClientSettings, leave};
use crate::kafka::describe::describe;
use crate::kafka::errors;
use crate::kafka::retry::{Deadline, is_auth_failure, is_retriable};

/// Partition 0 is there in every topic.
const PARTITION: i32 = 0;
/// The maximum number of pending client events that one call serves.
const EVENTS_PER_CALL: usize = 32;
/// How long the check before the take-over may take.
const PRECHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the marker of one sink of one query is, and in whose name it is written.
pub(super) struct CommitMarker {
    topic: String,
    name: String,
    group: ConsumerGroupMetadata,
    signer: Signer,
}

/// In whose name a marker is written, and of which topic.
#[derive(Debug, Clone)]
struct Signer {
    query: QueryId,
    run: RunId,
    sink: SinkRole,
    /// Not known of every cluster.
    topic_id: Option<String>,
}

/// What a marker says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    taken: i64,
    /// By whom it was written, in JSON.
    signature: String,
}

/// The name under which Kafka knows a sink of a query: its transactional id, and the group of its marker.
pub(super) fn name_of(context: &SinkContext) -> String {
    format!("tidewater-{}-{}", context.query_id, context.role)
}

/// An error if the marker says already that this run comes too late, or to the wrong place: before it takes over, for
/// whoever is rightly at work would be fenced. What this quick check cannot see is found after the take-over.
pub(super) fn precheck(client: &ClientSettings, topic: &str, context: &SinkContext) -> Result<()> {
    let name = name_of(context);
    let mut config = properties::of_marker_reader(client, &name);
    // Not waiting for the transaction that a run left open when it died.
    config.set("isolation.level", "read_uncommitted");
    let Ok(consumer) = config.create_with_context::<_, BaseConsumer<ClientEvents>>(ClientEvents::default()) else {
        return Ok(());
    };
    let found = committed(&consumer, topic, PRECHECK_TIMEOUT).ok().flatten();
    leave(&consumer);
    let (next, may_be_committed) = (context.next_batch, context.next_batch_may_be_committed);
    match decide(found.map(|found| found.taken), next, may_be_committed, &place(&name, topic)) {
        Err(error) if error.kind() == ErrorKind::IncompatibleCheckpoint => Err(error),
        _ => Ok(()),
    }
}

impl CommitMarker {
    /// Finds the marker `name` beside `topic`: how many batches it says were taken, if it is there.
    ///
    /// Transactions of earlier runs must be settled: what they are about to write would not be seen.
    pub(super) fn read(
        client: &ClientSettings,
        topic: String,
        context: &SinkContext,
        patience: Duration,
    ) -> Result<(Self, Option<i64>)> {
        let name = name_of(context);
        let events = ClientEvents::default();
        let action = format!("read the marker of the Kafka sink, which is {}", place(&name, &topic));
        let failed = |error: &KafkaError| errors::to_error(&action, client, &events, error);
        let config = properties::of_marker_reader(client, &name);
        let consumer: BaseConsumer<ClientEvents> =
            config.create_with_context(events.clone()).map_err(|error| failed(&error))?;
        let deadline = Deadline::after(patience);
        let (topic_id, found) = loop {
            let asked = describe(&consumer, [topic.as_str()], deadline.step())
                .and_then(|ids| Ok((ids, committed(&consumer, &topic, deadline.step())?)));
            let error = match asked {
                Ok((mut ids, found)) => break (ids.remove(&topic).flatten(), found),
                Err(error) => error,
            };
            for _ in 0..EVENTS_PER_CALL {
                let _ = consumer.poll(Duration::ZERO);
            }
            if !is_retriable(&error) || deadline.has_passed() || is_auth_failure(events.last_error()) {
                return Err(failed(&error));
            }
            deadline.pause();
        };
        let group = consumer
            .group_metadata()
            .ok_or_else(|| Error::internal("the reader of the Kafka sink's marker has no consumer group"))?;
        leave(&consumer);
        let signer = Signer { query: context.query_id, run: context.run_id, sink: context.role, topic_id };
        let taken = signer.accept(found, &place(&name, &topic))?;
        Ok((CommitMarker { topic, name, group, signer }, taken))
    }

    /// For people.
    pub(super) fn place(&self) -> String {
        place(&self.name, &self.topic)
    }

    /// In whose name the offset is committed.
    pub(super) fn group(&self) -> &ConsumerGroupMetadata {
        &self.group
    }

    /// The offset that says that `taken` batches were taken.
    pub(super) fn offset(&self, taken: u64) -> Result<TopicPartitionList> {
        let beyond = || Error::internal(format!("{taken} batches are more than an offset can count"));
        let offset = i64::try_from(taken).map_err(|_| beyond())?;
        let mut offsets = TopicPartitionList::with_capacity(1);
        let mut entry = offsets.add_partition(&self.topic, PARTITION);
        entry.set_offset(Offset::Offset(offset)).map_err(|_| beyond())?;
        entry.set_metadata(self.signer.signature(taken));
        Ok(offsets)
    }
}

fn place(name: &str, topic: &str) -> String {
    format!("the offset of consumer group `{name}` in partition {PARTITION} of topic `{topic}`")
}

impl Signer {
    /// Who wrote the marker, after which batch.
    fn signature(&self, taken: u64) -> String {
        let batch = taken.checked_sub(1);
        let Signer { query, run, sink, topic_id } = self;
        let mut signature = serde_json::json!({
            "query": query.to_string(), "sink": sink.to_string(), "batch": batch, "run": run.to_string(),
        });
        if let Some(id) = topic_id {
            signature["topicId"] = id.as_str().into();
        }
        signature.to_string()
    }

    /// How many batches were taken, if what was found is this query's, this sink's and of this topic.
    fn accept(&self, found: Option<Found>, place: &str) -> Result<Option<i64>> {
        let Some(Found { taken, signature }) = found else { return Ok(None) };
        // Kafka's tools can set an offset, and do not sign it.
        if signature.is_empty() {
            return Ok(Some(taken));
        }
        let signed: serde_json::Value = serde_json::from_str(&signature).unwrap_or_default();
        // Earlier releases signed without sink and topic.
        let differs = |name: &str, ours: &str| signed.get(name).is_some_and(|theirs| theirs != ours);
        if signed.get("query").is_none()
            || differs("query", &self.query.to_string())
            || differs("sink", &self.sink.to_string())
        {
            return Err(Error::new(
                ErrorKind::IncompatibleCheckpoint,
                format!(
                    "the marker of this sink of query {} was written by somebody else, as {signature}. It is {place}",
                    self.query
                ),
            )
            .with_hint("see who writes to this consumer group; the query needs it for itself"));
        }
        if let Some(id) = &self.topic_id
            && differs("topicId", id)
        {
            tracing::warn!(
                place,
                signature,
                "the marker is of a topic that was deleted and made again: it counts for none"
            );
            return Ok(None);
        }
        Ok(Some(taken))
    }
}

fn committed(consumer: &BaseConsumer<ClientEvents>, topic: &str, patience: Duration) -> KafkaResult<Option<Found>> {
    let mut wanted = TopicPartitionList::with_capacity(1);
    wanted.add_partition(topic, PARTITION);
    let found = consumer.committed_offsets(wanted, patience)?;
    let Some(entry) = found.find_partition(topic, PARTITION) else { return Ok(None) };
    entry.error()?;
    Ok(match entry.offset() {
        Offset::Offset(taken) => Some(Found { taken, signature: entry.metadata().to_owned() }),
        _ => None,
    })
}

/// The point from which a run continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResumePoint {
    /// The next batch was taken before the run before died.
    AlreadyCommitted,
    /// The next batch is to be written, and the marker says so.
    NextBatch,
    /// The next batch is to be written, and there is no marker yet that says so.
    NeedsMarker,
}

/// What the marker says of batch `next`, with which a run begins. `place` is where the marker is.
pub(super) fn decide(marker: Option<i64>, next: BatchId, may_be_committed: bool, place: &str) -> Result<ResumePoint> {
    let next = i64::try_from(next.0).unwrap_or(i64::MAX);
    match marker {
        Some(taken) if taken == next => Ok(ResumePoint::NextBatch),
        Some(taken) if taken == next.saturating_add(1) && may_be_committed => Ok(ResumePoint::AlreadyCommitted),
        Some(taken) if taken > next => Err(Error::new(
            ErrorKind::IncompatibleCheckpoint,
            format!(
                "Kafka has taken {taken} batches of this query, but the checkpoint goes on with batch {next}: its rows \
                 would be taken for repeated ones and lost. What Kafka has taken is {place}"
            ),
        )
        .with_hint("use the checkpoint that goes with what was written; a new query begins with an empty checkpoint")),
        _ if !may_be_committed => Ok(ResumePoint::NeedsMarker),
        found => {
            let found = found.map_or("it is gone".to_owned(), |taken| format!("it stands at {taken}"));
            Err(Error::damaged(format!(
                "nobody knows whether Kafka has taken batch {next}, which the run before began: the marker would say, \
                 and {found}. It is {place}"
            ))
            .with_hint(
                "the cluster forgets a marker some days after the last batch (`offsets.retention.minutes`), or with \
                 its topic or group. See whether the topic has the batch's rows; then start with a new checkpoint, or \
                 run once at least once (option `guarantee`), which writes the batch again",
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table() {
        use ResumePoint::{AlreadyCommitted, NeedsMarker, NextBatch};
        let ahead = Err(ErrorKind::IncompatibleCheckpoint);
        let unknown = Err(ErrorKind::DamagedCheckpoint);
        for (marker, next, may_be_committed, expected) in [
            (Some(6), 5, false, ahead),
            (Some(6), 5, true, Ok(AlreadyCommitted)),
            (Some(7), 5, false, ahead),
            (Some(7), 5, true, ahead),
            (Some(5), 5, false, Ok(NextBatch)),
            (Some(5), 5, true, Ok(NextBatch)),
            (Some(4), 5, false, Ok(NeedsMarker)),
            (Some(4), 5, true, unknown),
            (None, 5, false, Ok(NeedsMarker)),
            (None, 5, true, unknown),
            // The first batch of a query: the run that logged it had written the marker before.
            (None, 0, false, Ok(NeedsMarker)),
            (None, 0, true, unknown),
            (Some(0), 0, false, Ok(NextBatch)),
            (Some(0), 0, true, Ok(NextBatch)),
            (Some(1), 0, true, Ok(AlreadyCommitted)),
            (Some(1), 0, false, ahead),
            (Some(2), 0, true, ahead),
        ] {
            let decided = decide(marker, BatchId(next), may_be_committed, "here").map_err(|error| error.kind());
            assert_eq!(decided, expected, "marker {marker:?}, batch {next}, may be taken: {may_be_committed}");
        }
    }

    #[test]
    fn a_refusal_says_where_the_marker_is_and_what_to_do() {
        let place = place("tidewater-q-output", "out");
        let error = decide(Some(9), BatchId(5), true, &place).unwrap_err();
        for wanted in ["9 batches", "batch 5", "`tidewater-q-output`", "topic `out`"] {
            assert!(error.message().contains(wanted), "{error}");
        }
        let error = decide(Some(3), BatchId(5), true, &place).unwrap_err();
        assert!(error.message().contains("it stands at 3") && error.message().contains("topic `out`"), "{error}");
        let error = decide(None, BatchId(5), true, &place).unwrap_err();
        assert!(error.message().contains("it is gone"), "{error}");
        assert!(error.hint().unwrap().contains("offsets.retention.minutes"), "{error}");
    }

    fn signer(topic_id: Option<&str>) -> Signer {
        let topic_id = topic_id.map(str::to_owned);
        Signer { query: QueryId::random(), run: RunId::random(), sink: SinkRole::Output, topic_id }
    }

    #[test]
    fn the_marker_is_signed() {
        let signer = signer(Some("x"));
        let read = |taken| -> serde_json::Value { serde_json::from_str(&signer.signature(taken)).unwrap() };
        let after = read(8);
        assert_eq!((&after["batch"], &after["sink"], &after["topicId"]), (&7.into(), &"output".into(), &"x".into()));
        assert_eq!(after["query"], signer.query.to_string());
        assert_eq!(after["run"], signer.run.to_string());
        assert!(read(0)["batch"].is_null(), "before the first batch");
    }

    #[test]
    fn only_a_marker_of_this_query_this_sink_and_this_topic_counts() {
        let ours = signer(Some("x"));
        let accept = |signature: String| ours.accept(Some(Found { taken: 4, signature }), "here");
        assert_eq!(ours.accept(None, "here").unwrap(), None);
        // By an earlier run, an earlier release, a cluster without ids, a tool.
        let later = Signer { run: RunId::random(), ..ours.clone() };
        assert_eq!(later.accept(Some(Found { taken: 4, signature: ours.signature(4) }), "here").unwrap(), Some(4));
        assert_eq!(accept(format!(r#"{{"query":"{}","batch":3,"run":"r"}}"#, ours.query)).unwrap(), Some(4));
        assert_eq!(accept(Signer { topic_id: None, ..ours.clone() }.signature(4)).unwrap(), Some(4));
        assert_eq!(accept(String::new()).unwrap(), Some(4));
        // Of another topic of this name.
        assert_eq!(accept(Signer { topic_id: Some("y".to_owned()), ..ours.clone() }.signature(4)).unwrap(), None);
        for foreign in [
            signer(Some("x")).signature(4),
            Signer { sink: SinkRole::DeadLetters, ..ours.clone() }.signature(4),
            "no signature of ours".to_owned(),
            "{}".to_owned(),
        ] {
            let error = accept(foreign.clone()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::IncompatibleCheckpoint, "{error}");
            assert!(error.message().contains(&foreign) && error.hint().is_some(), "{error}");
        }
    }
}
