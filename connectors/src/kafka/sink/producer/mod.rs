//! One librdkafka producer.
//!
//! Time: `flush` and `commit_transaction` of the `rdkafka` crate wait in steps of 100 ms for rows under way, and
//! `poll(d)` takes all of `d` whatever comes. So the marker is sent while rows are under way, then [`KafkaProducer::drain`]
//! looks often and briefly until none is, and only then is the commit asked for: nothing is left to wait for but the
//! cluster's answer. librdkafka's `flush`, which would not wait for `linger.ms`, does not help: it does so only while it
//! blocks.

mod errors;
mod transaction;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::record_batch::RecordBatch;
use datafusion::execution::memory_pool::MemoryPool;
use parking_lot::Mutex;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{ClientContext, Message};
use tidewater::error::{Error, Result};

use self::transaction::TxnState;
use super::properties::{self, Timeouts};
use super::record::{Columns, Record};
use crate::kafka::client::{ClientEvents, ClientSettings};
use crate::kafka::errors as kafka_errors;
use crate::kafka::retry::{Deadline, is_auth_failure, is_retriable, is_unknown_topic, now};
use crate::memory::{Claim, left_in};

/// How long a cluster may take to be found at all.
const METADATA_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a topic may take to be created on first use.
const TOPIC_CREATION_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before a question is asked again.
const RETRY_BACKOFF: Duration = Duration::from_millis(50);
/// The broker's answer may come a little after the time that a row has.
const DELIVERY_GRACE: Duration = Duration::from_secs(5);
/// The maximum number of pending client events that one call serves.
const EVENTS_PER_CALL: usize = 32;
/// What to do when there is no memory for the queue.
const QUEUE_HINT: &str =
    "give the session a larger memory pool, or set the property `queue.buffering.max.kbytes` lower";

/// The producer's callbacks: delivery reports, and events beside the answers to calls.
#[derive(Debug, Default)]
struct Deliveries {
    events: ClientEvents,
    lost: Mutex<Lost>,
}

/// Rows that were not delivered.
#[derive(Debug, Clone, Default)]
struct Lost {
    rows: u64,
    first: Option<FailedDelivery>,
}

#[derive(Debug, Clone)]
struct FailedDelivery {
    topic: String,
    partition: i32,
    error: KafkaError,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, log_message: &str) {
        self.events.log(level, fac, log_message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.events.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, delivery_result: &DeliveryResult<'_>, _delivery_opaque: ()) {
        let Err((error, message)) = delivery_result else { return };
        let mut lost = self.lost.lock();
        lost.rows += 1;
        // Purged messages are a consequence of an abort, which is reported separately: they do not count as the first
        // failure.
        let taken_back = matches!(error.rdkafka_error_code(), Some(Code::PurgeQueue | Code::PurgeInflight));
        if lost.first.is_none() && !taken_back {
            let (topic, partition) = (message.topic().to_owned(), message.partition());
            lost.first = Some(FailedDelivery { topic, partition, error: error.clone() });
        }
    }
}

/// Sends rows, with or without transactions. May be used by many threads; calls about the transaction come from one.
pub(super) struct KafkaProducer {
    producer: BaseProducer<Deliveries>,
    events: ClientEvents,
    settings: ClientSettings,
    timeouts: Timeouts,
    transactional: bool,
    txn_state: Mutex<TxnState>,
    /// Since when there is something in the open transaction.
    busy_since: Mutex<Option<Instant>>,
    /// Topics that were found.
    topics: Mutex<HashSet<String>>,
    /// For all that librdkafka may hold.
    _memory: Claim,
}

impl KafkaProducer {
    /// With a `transactional_id`, rows go out in transactions only. Rows that the cluster has not taken are on account of
    /// this pool. The cluster is not asked yet.
    pub(super) fn new(
        settings: ClientSettings,
        transactional_id: Option<&str>,
        pool: &Arc<dyn MemoryPool>,
    ) -> Result<Self> {
        let timeouts = Timeouts::of(&settings)?;
        let queue_kib = properties::queue_kib(&settings, left_in(pool));
        let what = format!("the queue of rows for Kafka at {}", settings.bootstrap());
        let memory = Claim::new(pool, what, QUEUE_HINT);
        memory.grow(queue_kib.saturating_mul(1024))?;
        let events = ClientEvents::default();
        let config = properties::of_producer(&settings, timeouts, transactional_id, queue_kib);
        let deliveries = Deliveries { events: events.clone(), lost: Mutex::default() };
        let producer: BaseProducer<Deliveries> = config.create_with_context(deliveries).map_err(|error| {
            kafka_errors::to_error("make a producer with these properties", &settings, &events, &error)
        })?;
        Ok(KafkaProducer {
            producer,
            events,
            settings,
            timeouts,
            transactional: transactional_id.is_some(),
            txn_state: Mutex::new(TxnState::Idle),
            busy_since: Mutex::default(),
            topics: Mutex::default(),
            _memory: memory,
        })
    }

    /// How long to wait for a cluster that nobody has heard of yet.
    pub(super) fn startup_timeout(&self) -> Duration {
        self.timeouts.delivery.min(METADATA_TIMEOUT)
    }

    /// Ensures that the cluster answers and knows the topic. One that it creates on first use is created.
    pub(super) fn ensure_topic(&self, topic: Option<&str>) -> Result<()> {
        if let Some(topic) = topic {
            if self.topics.lock().contains(topic) {
                return Ok(());
            }
            check_topic_name(topic)?;
        }
        let action = topic.map_or("ask for its topics".to_owned(), |topic| {
            format!("find topic `{topic}` at {}", self.settings.bootstrap())
        });
        let deadline = Deadline::after(self.startup_timeout());
        let mut creation = None;
        loop {
            let error = match self.ask_for(topic, deadline.step()) {
                Ok(()) => {
                    self.events.clear_error();
                    self.topics.lock().extend(topic.map(str::to_owned));
                    return Ok(());
                }
                Err(error) => error,
            };
            // Why there is no answer is among the events that come meanwhile, and with logging enabled there are many.
            self.producer.poll(RETRY_BACKOFF);
            let hopeless = if is_unknown_topic(&error) {
                creation.get_or_insert_with(|| Deadline::after(TOPIC_CREATION_TIMEOUT)).has_passed()
            } else {
                !is_retriable(&error) || is_auth_failure(self.events.last_error())
            };
            if hopeless || deadline.has_passed() {
                return Err(self.to_error(&action, &error));
            }
        }
    }

    fn ask_for(&self, topic: Option<&str>, patience: Duration) -> KafkaResult<()> {
        let metadata = self.producer.client().fetch_metadata(topic, patience)?;
        let Some(topic) = topic else { return Ok(()) };
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        match found.map(|found| found.error()) {
            Some(None) => Ok(()),
            Some(Some(error)) => Err(KafkaError::MetadataFetch(error.into())),
            None => Err(KafkaError::MetadataFetch(Code::UnknownTopicOrPartition)),
        }
    }

    /// Hands all rows of a batch to librdkafka, in their order.
    pub(super) fn send(&self, columns: &Columns, batch: &RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.note_busy();
        let rows = columns.of(batch)?;
        let mut met = "";
        for row in 0..batch.num_rows() {
            let record = rows.record(row)?;
            if record.topic != met {
                self.ensure_topic(Some(record.topic))?;
                met = record.topic;
            }
            self.send_one(record)?;
        }
        self.poll_events();
        self.check()
    }

    fn send_one(&self, record: Record<'_>) -> Result<()> {
        let Record { topic, partition, key, value, headers } = record;
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic);
        (record.partition, record.key, record.payload, record.headers) = (partition, key, value, headers);
        let mut full = None;
        loop {
            let (error, refused) = match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err(refused) => refused,
            };
            if error.rdkafka_error_code() != Some(Code::QueueFull) {
                return Err(match error.rdkafka_error_code() {
                    Some(Code::Fatal | Code::State) => self.root_cause(&format!("write to topic `{topic}`"), &error),
                    _ => self.row_error(topic, partition, 1, &error),
                });
            }
            // Either the cluster takes rows, which makes room, or they time out, which is reported.
            self.poll_events();
            self.check()?;
            let full: &Deadline = full.get_or_insert_with(|| Deadline::after(self.timeouts.delivery + DELIVERY_GRACE));
            if full.has_passed() {
                return Err(self.delivery_timeout());
            }
            full.pause();
            record = refused;
        }
    }

    /// Waits until every row is taken.
    fn drain(&self) -> Result<()> {
        let deadline = Deadline::after(self.timeouts.delivery + DELIVERY_GRACE);
        loop {
            self.poll_events();
            self.check()?;
            // A row that failed counts until its report is heard.
            if self.producer.in_flight_count() <= 0 {
                return Ok(());
            }
            if deadline.has_passed() {
                return Err(self.delivery_timeout());
            }
            deadline.pause();
        }
    }

    /// Serves pending client events, without waiting for more.
    fn poll_events(&self) {
        for _ in 0..EVENTS_PER_CALL {
            self.producer.poll(Duration::ZERO);
        }
    }

    /// From here on the cluster counts the time of the transaction.
    fn note_busy(&self) {
        self.busy_since.lock().get_or_insert_with(now);
    }
}

/// What Kafka allows.
pub(super) fn check_topic_name(topic: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=249).contains(&topic.len()) && topic.chars().all(allowed) && !matches!(topic, "." | "..") {
        return Ok(());
    }
    Err(Error::invalid(format!("`{topic}` cannot be the name of a Kafka topic"))
        .with_hint("names have up to 249 letters and digits of ASCII, dots, underscores and dashes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_topics_are_those_of_kafka() {
        for name in ["out", "a.b_c-9", "...", &"x".repeat(249)] {
            check_topic_name(name).unwrap();
        }
        for name in ["", ".", "..", "a b", "a/b", "\0", "ö", &"x".repeat(250)] {
            assert!(check_topic_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn without_a_transaction_nothing_is_sent_and_the_reason_is_told() {
        use arrow::array::{ArrayRef, StringArray};
        use datafusion::execution::runtime_env::RuntimeEnv;

        let value: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
        let rows = RecordBatch::try_from_iter([("value", value)]).unwrap();
        let columns = Columns::find(&rows.schema(), Some("out"), true).unwrap();
        let pool = &RuntimeEnv::default().memory_pool;
        let producer =
            KafkaProducer::new(ClientSettings::new("127.0.0.1:1"), Some("tidewater-test-output"), pool).unwrap();
        producer.topics.lock().insert("out".to_owned());
        assert!(producer.send(&columns, &rows).is_err());
        assert!(producer.begin().is_err(), "transactions were not initialised");
        assert!(!producer.is_open() && !producer.is_committing());
        producer.give_up().unwrap();
    }
}
