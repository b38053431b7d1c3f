//! Records a test writes, and records it finds.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::{Broker, PATIENCE, client, must, partitions, unique_topic};

/// `BaseProducer::poll` always takes the whole of the time it is given.
const TICK: Duration = Duration::from_millis(1);

/// A record to write. What is `None` is null, or left to Kafka: the partition by the hash of the key, the time by the
/// clock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewRecord {
    /// Into which partition.
    pub partition: Option<i32>,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value; without one it is a tombstone.
    pub value: Option<Vec<u8>>,
    /// The headers, in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970.
    pub timestamp_ms: Option<i64>,
}

impl From<(Option<i32>, Option<Vec<u8>>, Vec<u8>)> for NewRecord {
    fn from((partition, key, value): (Option<i32>, Option<Vec<u8>>, Vec<u8>)) -> Self {
        NewRecord { partition, key, value: Some(value), ..NewRecord::default() }
    }
}

/// A value.
impl From<&str> for NewRecord {
    fn from(value: &str) -> Self {
        NewRecord::from((None, None, value.into()))
    }
}

/// A partition and a value.
impl From<(i32, &str)> for NewRecord {
    fn from((partition, value): (i32, &str)) -> Self {
        NewRecord::from((Some(partition), None, value.into()))
    }
}

/// A partition, a key and a value.
impl From<(i32, &str, &str)> for NewRecord {
    fn from((partition, key, value): (i32, &str, &str)) -> Self {
        NewRecord::from((Some(partition), Some(key.into()), value.into()))
    }
}

/// A record that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// In which partition.
    pub partition: i32,
    /// At which offset.
    pub offset: i64,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub value: Option<Vec<u8>>,
    /// The headers, in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970.
    pub timestamp_ms: Option<i64>,
}

impl Record {
    /// The key as text; nothing where there is none.
    pub fn key_text(&self) -> String {
        String::from_utf8_lossy(self.key.as_deref().unwrap_or_default()).into_owned()
    }

    /// The value as text; nothing where there is none.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.value.as_deref().unwrap_or_default()).into_owned()
    }

    fn of(message: &BorrowedMessage<'_>) -> Record {
        let headers = message.headers().map(|headers| {
            headers.iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
        });
        Record {
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.unwrap_or_default(),
            timestamp_ms: message.timestamp().to_millis(),
        }
    }
}

/// What a group committed for a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The next offset to read.
    pub offset: i64,
    /// What was written beside it.
    pub metadata: String,
}

/// Keeps the last record that the broker did not take.
#[derive(Debug, Default)]
struct Deliveries {
    refused: Mutex<Option<String>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        if let Err((error, _)) = result {
            *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        }
    }
}

/// A transaction that has not ended. Who reads committed records sees nothing of it, nor of what comes after it in its
/// partitions. Dropped, it stays like that until the broker aborts it, after a minute.
pub struct Transaction {
    producer: BaseProducer<Deliveries>,
}

impl Transaction {
    /// Makes its records visible.
    #[track_caller]
    pub fn commit(self) {
        must("commit the transaction", self.producer.commit_transaction(PATIENCE));
    }

    /// Makes its records invisible for good; they keep their offsets.
    #[track_caller]
    pub fn abort(self) {
        must("abort the transaction", self.producer.abort_transaction(PATIENCE));
    }
}

impl Broker {
    /// Writes records and waits until the broker has them all. Within a partition they keep their order.
    #[track_caller]
    pub fn produce<R: Into<NewRecord>>(&self, topic: &str, records: impl IntoIterator<Item = R>) {
        let sent = self.producer(None).and_then(|producer| send(&producer, topic, records));
        must(&format!("write to topic `{topic}`"), sent);
    }

    /// Writes records in a transaction of their own.
    #[track_caller]
    pub fn produce_in_transaction<R: Into<NewRecord>>(
        &self,
        topic: &str,
        records: impl IntoIterator<Item = R>,
        commit: bool,
    ) {
        let transaction = self.begin_transaction(topic, records);
        if commit { transaction.commit() } else { transaction.abort() }
    }

    /// Writes records in a transaction and leaves it open.
    #[track_caller]
    pub fn begin_transaction<R: Into<NewRecord>>(
        &self,
        topic: &str,
        records: impl IntoIterator<Item = R>,
    ) -> Transaction {
        let begun = self.producer(Some(&unique_topic("transaction"))).and_then(|producer| {
            producer.init_transactions(PATIENCE).map_err(|e| e.to_string())?;
            producer.begin_transaction().map_err(|e| e.to_string())?;
            send(&producer, topic, records)?;
            Ok(Transaction { producer })
        });
        must(&format!("write to topic `{topic}` in a transaction"), begun)
    }

    fn producer(&self, transactional_id: Option<&str>) -> Result<BaseProducer<Deliveries>, String> {
        let mut config = client(self.bootstrap());
        config.set("enable.idempotence", "true").set("linger.ms", "1").set("message.timeout.ms", "30000");
        if let Some(id) = transactional_id {
            config.set("transactional.id", id);
        }
        config.create_with_context(Deliveries::default()).map_err(|e| e.to_string())
    }

    /// All records of a topic that are committed, up to where it ended when each partition was read to its end; by
    /// partition, then offset. librdkafka reads them.
    #[track_caller]
    pub fn consume(&self, topic: &str) -> Vec<Record> {
        let mut records = must(&format!("read topic `{topic}`"), self.read(topic));
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }

    fn read(&self, topic: &str) -> Result<Vec<Record>, String> {
        let consumer = self.consumer("tidewater-tests")?;
        let mut unread = partitions(consumer.client(), topic)?;
        let list = list_of(topic, &unread, Offset::Beginning)?;
        consumer.assign(&list).map_err(|e| e.to_string())?;
        let mut records = vec![];
        let mut deadline = Instant::now() + PATIENCE;
        while !unread.is_empty() {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    deadline = Instant::now() + PATIENCE;
                    if unread.contains(&message.partition()) {
                        records.push(Record::of(&message));
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    unread.remove(&partition);
                }
                Some(Err(error)) if !is_passing(&error) => return Err(error.to_string()),
                Some(Err(error)) if Instant::now() > deadline => return Err(error.to_string()),
                None if Instant::now() > deadline => return Err(format!("nothing came within {PATIENCE:?}")),
                Some(Err(_)) | None => {}
            }
        }
        Ok(records)
    }

    /// By partition, the first offset that is still there.
    #[track_caller]
    pub fn earliest_offsets(&self, topic: &str) -> BTreeMap<i32, i64> {
        self.watermarks(topic).into_iter().map(|(partition, (earliest, _))| (partition, earliest)).collect()
    }

    /// By partition, the offset after the last that a reader of committed records may come to: where an open
    /// transaction begins, or the end.
    #[track_caller]
    pub fn end_offsets(&self, topic: &str) -> BTreeMap<i32, i64> {
        self.watermarks(topic).into_iter().map(|(partition, (_, end))| (partition, end)).collect()
    }

    #[track_caller]
    fn watermarks(&self, topic: &str) -> BTreeMap<i32, (i64, i64)> {
        let watermarks = || {
            let consumer = self.consumer("tidewater-tests")?;
            let of = |partition| {
                let found = consumer.fetch_watermarks(topic, partition, PATIENCE).map_err(|e| e.to_string())?;
                Ok::<_, String>((partition, found))
            };
            partitions(consumer.client(), topic)?.into_iter().map(of).collect::<Result<_, _>>()
        };
        must::<BTreeMap<_, _>>(&format!("ask for the offsets of topic `{topic}`"), watermarks())
    }

    /// What a group committed for the partitions of a topic; those it committed nothing for are left out.
    #[track_caller]
    pub fn committed_offsets(&self, group: &str, topic: &str) -> BTreeMap<i32, CommittedOffset> {
        let committed = || {
            let consumer = self.consumer(group)?;
            let asked = list_of(topic, &partitions(consumer.client(), topic)?, Offset::Invalid)?;
            let answer = consumer.committed_offsets(asked, PATIENCE).map_err(|e| e.to_string())?;
            let mut found = BTreeMap::new();
            for element in answer.elements() {
                element.error().map_err(|e| e.to_string())?;
                if let Offset::Offset(offset) = element.offset() {
                    let metadata = element.metadata().to_owned();
                    found.insert(element.partition(), CommittedOffset { offset, metadata });
                }
            }
            Ok::<_, String>(found)
        };
        must(&format!("ask what group `{group}` committed for topic `{topic}`"), committed())
    }

    /// A consumer that joins no group; the name of one is needed nevertheless.
    fn consumer(&self, group: &str) -> Result<BaseConsumer, String> {
        let mut config = client(self.bootstrap());
        config.set("group.id", group).set("enable.auto.commit", "false").set("isolation.level", "read_committed");
        // The end is told when an answer comes back empty, and the broker waits with that for more to come.
        config.set("enable.partition.eof", "true").set("fetch.wait.max.ms", "10");
        config.create().map_err(|e| e.to_string())
    }
}

/// Sends records and waits until all are acknowledged.
fn send<R: Into<NewRecord>>(
    producer: &BaseProducer<Deliveries>,
    topic: &str,
    records: impl IntoIterator<Item = R>,
) -> Result<(), String> {
    for record in records {
        let record = record.into();
        let mut waiting = BaseRecord::<[u8], [u8]>::to(topic);
        waiting.partition = record.partition;
        waiting.key = record.key.as_deref();
        waiting.payload = record.value.as_deref();
        waiting.timestamp = record.timestamp_ms;
        waiting.headers = headers_of(&record.headers);
        while let Err((error, back)) = producer.send(waiting) {
            let KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) = error else {
                return Err(error.to_string());
            };
            producer.poll(TICK);
            waiting = back;
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while producer.in_flight_count() > 0 {
        if Instant::now() > deadline {
            return Err(format!("not all was acknowledged within {PATIENCE:?}"));
        }
        producer.poll(TICK);
    }
    let refused = producer.context().refused.lock().unwrap_or_else(PoisonError::into_inner).take();
    refused.map_or(Ok(()), Err)
}

fn headers_of(headers: &[(String, Option<Vec<u8>>)]) -> Option<OwnedHeaders> {
    let mut all = OwnedHeaders::new();
    for (key, value) in headers {
        all = all.insert(Header { key: key.as_str(), value: value.as_ref() });
    }
    (!headers.is_empty()).then_some(all)
}

fn list_of<'a>(
    topic: &str,
    partitions: impl IntoIterator<Item = &'a i32>,
    offset: Offset,
) -> Result<TopicPartitionList, String> {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition_offset(topic, *partition, offset).map_err(|e| e.to_string())?;
    }
    Ok(list)
}

/// What librdkafka tells while it tries again by itself.
fn is_passing(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(code, Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown))
}
