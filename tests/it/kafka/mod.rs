//! Kafka in and out, exactly once, against a real broker that all these tests share. Where Java or Maven are missing, they
//! end at once and say so; in CI that is a failure.
//!
//! | module | what it shows |
//! |---|---|
//! | `suites` | the suites of sources and sinks |
//! | `falls` | jobs from Kafka to Kafka and to files die at each call that crosses a boundary; the answer is the batch's |
//! | `fencing` | two drivers of one query: the one that slept is fenced, and every row is there once |
//! | `kill` | `kill -9` of the running example, and of its broker |
//! | `away` | a broker that goes away under running queries |
//! | `bad_records` | records that are not in their format: fail, null, dead letter |
//! | `conditions` | partitions and topics without records, or added; what is wrong from the start |
//! | `lost` | records and topics that are gone before they were read |
//! | `made_again` | topics that were deleted and made again under their name |
//! | `markers` | the marker of the sink, and a cluster that forgot it |
//! | `memory` | little memory: what is smaller then, and what fails by name |
//! | `offsets` | where a query begins, and how far a batch goes |
//! | `overtaken` | a run paused at each boundary call while another takes over: Kafka to Kafka, Kafka to files |
//! | `records` | keys, values, headers, times: what comes in and what goes out |
//! | `secrets` | passwords and TLS |
//! | `silence` | a broker that does not answer |
//! | `sinks`, `steps` | no tests: what the others share |

mod away;

mod bad_records;

mod conditions;

mod falls;

mod fencing;

mod kill;

mod lost;

mod made_again;

mod markers;

mod memory;

mod offsets;

mod overtaken;

mod records;

mod secrets;

mod silence;

mod sinks;

mod steps;

mod suites;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, StringArray};
use arrow::record_batch::RecordBatch;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tidewater_workspace::kafka::{Broker, Record, shared_broker, unique_topic};

use self::steps::PATIENCE;

/// Of every topic, because one partition hides mistakes.
pub(crate) const TOPIC_PARTITIONS: i32 = 3;

/// The broker. `None` where there can be none; the harness has said why.
#[track_caller]
pub(crate) fn broker() -> Option<&'static Broker> {
    shared_broker()
}

/// A new topic of several partitions; its name begins with `name`.
#[track_caller]
pub(crate) fn new_topic(broker: &Broker, name: &str) -> String {
    let name = unique_topic(name);
    broker.create_topic(&name, TOPIC_PARTITIONS);
    name
}

/// What readers of committed records find in a topic, once every transaction that touched it has ended.
///
/// Kafka answers a commit when it is decided, and lets readers see it a moment later: who looks at once may miss rows.
#[track_caller]
pub(crate) fn settled(broker: &Broker, topic: &str) -> Vec<Record> {
    assert!(settles(broker, topic, PATIENCE), "a transaction holds up the readers of topic `{topic}` for {PATIENCE:?}");
    broker.consume(topic)
}

/// Waits until no transaction that touched this topic is open; false if one still is after `patience`.
#[track_caller]
pub(crate) fn settles(broker: &Broker, topic: &str, patience: Duration) -> bool {
    let started = Instant::now();
    // Without a group: such a consumer asks questions only.
    let [committed, all] = ["read_committed", "read_uncommitted"].map(|level| -> BaseConsumer {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", broker.bootstrap()).set("isolation.level", level);
        config.create().unwrap()
    });
    loop {
        if ends(&committed, topic) == ends(&all, topic) {
            return true;
        }
        if started.elapsed() >= patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Where the partitions of a topic end, to the eyes of this consumer.
fn ends(consumer: &BaseConsumer, topic: &str) -> Vec<i64> {
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).unwrap();
    let mut partitions: Vec<i32> = metadata.topics()[0].partitions().iter().map(|partition| partition.id()).collect();
    partitions.sort_unstable();
    assert!(!partitions.is_empty(), "there is no topic `{topic}`");
    partitions.into_iter().map(|partition| consumer.fetch_watermarks(topic, partition, PATIENCE).unwrap().1).collect()
}

/// Keys and values of records as rows.
pub(crate) fn rows_of(records: &[Record]) -> RecordBatch {
    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }
    let keys: StringArray = records.iter().map(|record| record.key.as_deref().map(text)).collect();
    let values: StringArray = records.iter().map(|record| record.value.as_deref().map(text)).collect();
    let columns = [("key", Arc::new(keys) as ArrayRef, true), ("value", Arc::new(values) as ArrayRef, true)];
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}
