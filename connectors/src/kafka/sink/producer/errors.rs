//! The errors of a [`KafkaProducer`].

use rdkafka::error::KafkaError;
use rdkafka::producer::Producer;
use rdkafka::types::RDKafkaErrorCode as Code;
use tidewater::error::{Error, ErrorKind, Result};

use super::transaction::{ErrorAction, TxnState, error_action};
use super::{FailedDelivery, KafkaProducer, Lost};
use crate::kafka::errors as kafka_errors;
use crate::kafka::retry::is_fenced;
use crate::kafka::sink::record::no_partition;

impl KafkaProducer {
    /// An error if rows were lost, or nothing more can be sent.
    pub(super) fn check(&self) -> Result<()> {
        match self.fatal().or_else(|| self.lost()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn fatal(&self) -> Option<Error> {
        let (code, reason) = self.producer.client().fatal_error()?;
        tracing::warn!(%code, %reason, "the Kafka producer can do no more");
        *self.txn_state.lock() = TxnState::Over;
        Some(self.to_error("write the rows of the batch", &KafkaError::Global(code)))
    }

    fn lost(&self) -> Option<Error> {
        let Lost { rows, first } = self.producer.context().lost.lock().clone();
        let FailedDelivery { topic, partition, error } = first?;
        Some(self.row_error(&topic, Some(partition), rows, &error))
    }

    /// The root cause of an error: often one that was not the answer to any call.
    pub(super) fn root_cause(&self, action: &str, error: &KafkaError) -> Error {
        if let Some(error) = self.fatal().or_else(|| self.lost()) {
            return error;
        }
        // A transaction that failed says why only if something is asked of it.
        if self.transactional
            && error.rdkafka_error_code() == Some(Code::State)
            && let Err(cause @ KafkaError::Transaction(_)) = self.producer.begin_transaction()
            && error_action(&cause) == ErrorAction::Abort
        {
            return self.to_error(action, &cause);
        }
        self.to_error(action, error)
    }

    pub(super) fn row_error(&self, topic: &str, partition: Option<i32>, rows: u64, error: &KafkaError) -> Error {
        // A row that is not assigned yet has none.
        let partition = partition.filter(|partition| *partition >= 0);
        let place = match partition {
            Some(partition) => format!("partition {partition} of topic `{topic}`"),
            None => format!("topic `{topic}`"),
        };
        match (error.rdkafka_error_code(), partition) {
            (Some(Code::UnknownPartition), Some(partition)) => no_partition(topic, partition),
            (Some(Code::MessageSizeTooLarge), _) => {
                Error::new(ErrorKind::BadInput, format!("a row for {place} is larger than Kafka takes")).with_hint(
                    "raise `message.max.bytes` here and `max.message.bytes` of the topic, or make the rows smaller",
                )
            }
            _ if rows > 1 => self.to_error(&format!("write {rows} rows, the first of them to {place}"), error),
            _ => self.to_error(&format!("write to {place}"), error),
        }
    }

    pub(super) fn to_error(&self, action: &str, error: &KafkaError) -> Error {
        match error.rdkafka_error_code() {
            Some(code) if self.transactional && is_fenced(code) => self.fenced(),
            _ => kafka_errors::to_error(action, &self.settings, &self.events, error),
        }
    }

    /// The cluster knows a newer producer of this name: that of another run, or one of its own making, to end a
    /// transaction that took too long.
    fn fenced(&self) -> Error {
        let limit = self.timeouts.transaction;
        let busy_since = *self.busy_since.lock();
        if busy_since.is_some_and(|since| since.elapsed() >= limit) {
            let message = format!(
                "the batch took longer than a transaction may, {} seconds from its first row on, and Kafka gave it up; \
                 none of its rows can be read",
                limit.as_secs()
            );
            return Error::new(ErrorKind::Unavailable, message).with_hint(
                "raise the property `transaction.timeout.ms` of the sink (clusters allow 15 minutes unless configured otherwise), or make the batches smaller",
            );
        }
        Error::new(ErrorKind::Fenced, "another run of this query took over: Kafka takes nothing more from this one")
            .with_hint("see that only one run of the query is active, then start it again if none is")
    }

    pub(super) fn delivery_timeout(&self) -> Error {
        let rows = self.producer.in_flight_count();
        Error::new(
            ErrorKind::Unavailable,
            format!(
                "the Kafka cluster at {} has not taken {rows} rows within {} seconds",
                self.settings.bootstrap(),
                self.timeouts.delivery.as_secs()
            ),
        )
        .with_hint(
            "see whether all brokers are up, then start the query again; `message.timeout.ms` gives them more time",
        )
    }

    pub(super) fn commit_outcome_unknown(&self) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            format!("the Kafka cluster at {} has not said whether it committed the batch", self.settings.bootstrap()),
        )
        .with_hint(
            "start the query again when the cluster answers: it asks, and writes the batch again only if it must",
        )
    }
}
