//! The marker: how many batches of a query the cluster has taken.
//!
//! It is the committed offset of a consumer group that never has members, for partition 0 of a topic. Offsets can be
//! committed in a transaction together with rows, so the marker says N + 1 exactly when the rows of batch N can be
//! read. Beside it stands who wrote it, for people with Kafka's tools: `{"query":"…","batch":N,"run":"…"}`.
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

use super::properties;
use crate::kafka::client::{ClientSettings, Context, leave};
use crate::kafka::patience::{Deadline, is_hopeless, may_pass};
use crate::kafka::problem;

/// Partition 0 is there in every topic.
const PARTITION: i32 = 0;
/// Of those that wait to be heard: so many a time.
const EVENTS: usize = 32;

/// Where the marker of one sink of one query is, and in whose name it is written.
pub(super) struct Marker {
    topic: String,
    name: String,
    group: ConsumerGroupMetadata,
    query: QueryId,
    run: RunId,
}

impl Marker {
    /// Finds the marker `name` beside `topic`: how many batches it says were taken, if it is there.
    ///
    /// Transactions of earlier runs must be settled: what they are about to write would not be seen.
    pub(super) fn read(
        client: &ClientSettings,
        name: String,
        topic: String,
        (query, run): (QueryId, RunId),
        patience: Duration,
    ) -> Result<(Self, Option<i64>)> {
        let heard = Context::default();
        let action = format!("read the marker of the Kafka sink, which is {}", place(&name, &topic));
        let failed = |error: &KafkaError| problem::failed(&action, client, &heard, error);
        let config = properties::of_marker_reader(client, &name);
        let consumer: BaseConsumer<Context> =
            config.create_with_context(heard.clone()).map_err(|error| failed(&error))?;
        let deadline = Deadline::after(patience);
        let taken = loop {
            let error = match committed(&consumer, &topic, deadline.step()) {
                Ok(taken) => break taken,
                Err(error) => error,
            };
            for _ in 0..EVENTS {
                let _ = consumer.poll(Duration::ZERO);
            }
            if !may_pass(&error) || deadline.has_passed() || is_hopeless(heard.complaint()) {
                return Err(failed(&error));
            }
            deadline.pause();
        };
        let group = consumer
            .group_metadata()
            .ok_or_else(|| Error::internal("the reader of the Kafka sink's marker has no consumer group"))?;
        leave(&consumer);
        Ok((Marker { topic, name, group, query, run }, taken))
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
        entry.set_metadata(signature(taken, self.query, self.run));
        Ok(offsets)
    }
}

fn place(name: &str, topic: &str) -> String {
    format!("the offset of consumer group `{name}` in partition {PARTITION} of topic `{topic}`")
}

/// Who wrote the marker, after which batch.
fn signature(taken: u64, query: QueryId, run: RunId) -> String {
    let batch = taken.checked_sub(1);
    serde_json::json!({ "query": query.to_string(), "batch": batch, "run": run.to_string() }).to_string()
}

fn committed(consumer: &BaseConsumer<Context>, topic: &str, patience: Duration) -> KafkaResult<Option<i64>> {
    let mut wanted = TopicPartitionList::with_capacity(1);
    wanted.add_partition(topic, PARTITION);
    let found = consumer.committed_offsets(wanted, patience)?;
    let Some(entry) = found.find_partition(topic, PARTITION) else { return Ok(None) };
    entry.error()?;
    Ok(match entry.offset() {
        Offset::Offset(taken) => Some(taken),
        _ => None,
    })
}

/// Where a run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// The next batch was taken before the run before died.
    Taken,
    /// The next batch is to be written, and the marker says so.
    Next,
    /// The next batch is to be written, and there is no marker yet that says so.
    Unmarked,
}

/// What the marker says of batch `next`, with which a run begins. `place` is where the marker is.
pub(super) fn decide(marker: Option<i64>, next: BatchId, may_be_taken: bool, place: &str) -> Result<Standing> {
    let next = i64::try_from(next.0).unwrap_or(i64::MAX);
    match marker {
        Some(taken) if taken == next => Ok(Standing::Next),
        Some(taken) if taken == next.saturating_add(1) && may_be_taken => Ok(Standing::Taken),
        Some(taken) if taken > next => Err(Error::new(
            ErrorKind::IncompatibleCheckpoint,
            format!(
                "Kafka has taken {taken} batches of this query, but the checkpoint goes on with batch {next}: its rows \
                 would be taken for repeated ones and lost. What Kafka has taken is {place}"
            ),
        )
        .hint("use the checkpoint that goes with what was written; a new query begins with an empty checkpoint")),
        _ if !may_be_taken => Ok(Standing::Unmarked),
        found => {
            let found = found.map_or("it is gone".to_owned(), |taken| format!("it stands at {taken}"));
            Err(Error::damaged(format!(
                "nobody knows whether Kafka has taken batch {next}, which the run before began: the marker would say, \
                 and {found}. It is {place}"
            ))
            .hint(
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
        use Standing::{Next, Taken, Unmarked};
        let ahead = Err(ErrorKind::IncompatibleCheckpoint);
        let unknown = Err(ErrorKind::DamagedCheckpoint);
        for (marker, next, may_be_taken, expected) in [
            (Some(6), 5, false, ahead),
            (Some(6), 5, true, Ok(Taken)),
            (Some(7), 5, false, ahead),
            (Some(7), 5, true, ahead),
            (Some(5), 5, false, Ok(Next)),
            (Some(5), 5, true, Ok(Next)),
            (Some(4), 5, false, Ok(Unmarked)),
            (Some(4), 5, true, unknown),
            (None, 5, false, Ok(Unmarked)),
            (None, 5, true, unknown),
            // The first batch of a query: the run that logged it had written the marker before.
            (None, 0, false, Ok(Unmarked)),
            (None, 0, true, unknown),
            (Some(0), 0, false, Ok(Next)),
            (Some(0), 0, true, Ok(Next)),
            (Some(1), 0, true, Ok(Taken)),
            (Some(1), 0, false, ahead),
            (Some(2), 0, true, ahead),
        ] {
            let decided = decide(marker, BatchId(next), may_be_taken, "here").map_err(|error| error.kind());
            assert_eq!(decided, expected, "marker {marker:?}, batch {next}, may be taken: {may_be_taken}");
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
        assert!(error.hint_text().unwrap().contains("offsets.retention.minutes"), "{error}");
    }

    #[test]
    fn the_marker_is_signed() {
        let (query, run) = (QueryId::random(), RunId::random());
        let read = |taken| -> serde_json::Value { serde_json::from_str(&signature(taken, query, run)).unwrap() };
        let after = read(8);
        assert_eq!(after["batch"], 7);
        assert_eq!(after["query"], query.to_string());
        assert_eq!(after["run"], run.to_string());
        assert!(read(0)["batch"].is_null(), "before the first batch");
    }
}
