//! The transaction of a [`KafkaProducer`].
//!
//! A call about it can fail in three ways, and each has its answer:
//!
//! | librdkafka says | then |
//! |---|---|
//! | it may be tried again | the same call again until patience ends: what was asked goes on meanwhile |
//! | the transaction must be aborted | abort it; the batch fails |
//! | fatal, or none of these | only a new run can go on |
//!
//! Once the commit was asked for, only the same question may follow until there is an answer: it may have happened.

use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::Producer;
use rdkafka::types::RDKafkaErrorCode as Code;
use tidewater::error::{Error, Result};

use super::{KafkaProducer, Lost};
use crate::kafka::retry::{Deadline, is_auth_failure};

/// How long the rows of a failed batch may take to be given up.
const ABORT_TIMEOUT: Duration = Duration::from_secs(10);
/// The same when the run ends: somebody waits.
const SHUTDOWN_ABORT_TIMEOUT: Duration = Duration::from_secs(3);
/// What a step of an abort may take: between two of them, the reports of rows that were taken back are heard.
const ABORT_STEP: Duration = Duration::from_millis(50);
/// How long the cluster may take to answer the commit before it is asked whether it still works on it.
const COMMIT_STEP: Duration = Duration::from_secs(1);

/// Where the transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TxnState {
    /// There is none.
    Idle,
    /// Rows go into it.
    Open,
    /// The cluster was asked to commit it, and has not answered.
    Committing,
    /// This producer can do no more.
    Over,
}

/// The reaction to an error of a transactional call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrorAction {
    Retry,
    Abort,
    Fail,
}

pub(super) fn error_action(error: &KafkaError) -> ErrorAction {
    match error {
        KafkaError::Transaction(error) if error.is_fatal() => ErrorAction::Fail,
        KafkaError::Transaction(error) if error.is_retriable() => ErrorAction::Retry,
        KafkaError::Transaction(error) if error.txn_requires_abort() => ErrorAction::Abort,
        KafkaError::Flush(Code::OperationTimedOut) => ErrorAction::Retry,
        _ => ErrorAction::Fail,
    }
}

impl KafkaProducer {
    /// Takes the place of earlier producers of this transactional id: what they left open is aborted, what they left in
    /// doubt is settled, and they can write no more.
    pub(in crate::kafka::sink) fn init_transactions(&self) -> Result<()> {
        let deadline = Deadline::after(self.startup_timeout());
        loop {
            let error = match self.producer.init_transactions(deadline.step()) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            self.poll_events();
            let again = error_action(&error) == ErrorAction::Retry && !is_auth_failure(self.events.last_error());
            if !again || deadline.has_passed() {
                return Err(self.root_cause("take over the query's transactions", &error));
            }
            deadline.pause();
        }
    }

    /// Begins a transaction. One that was not committed is aborted first.
    pub(in crate::kafka::sink) fn begin(&self) -> Result<()> {
        let txn_state = *self.txn_state.lock();
        match txn_state {
            TxnState::Idle | TxnState::Over => {}
            TxnState::Open => self.abort(ABORT_TIMEOUT)?,
            TxnState::Committing => return Err(self.commit_outcome_unknown()),
        }
        *self.producer.context().lost.lock() = Lost::default();
        *self.busy_since.lock() = None;
        if self.transactional {
            self.producer.begin_transaction().map_err(|error| self.root_cause("begin a transaction", &error))?;
            *self.txn_state.lock() = TxnState::Open;
        }
        Ok(())
    }

    /// Puts the marker into the transaction.
    pub(in crate::kafka::sink) fn mark(
        &self,
        offset: &TopicPartitionList,
        group: &ConsumerGroupMetadata,
    ) -> Result<()> {
        self.note_busy();
        // The whole time for each call: where it ends without an answer, the transaction is lost.
        self.retry_until_deadline("write the marker of the batch", |left| {
            self.producer.send_offsets_to_transaction(offset, group, left)
        })
        .map_err(|(error, _)| error)
    }

    /// Waits until every row is taken, then commits the transaction. While there is [no answer](Self::is_committing),
    /// nothing but this may be called again.
    pub(in crate::kafka::sink) fn commit(&self) -> Result<()> {
        self.drain()?;
        if !self.transactional {
            return Ok(());
        }
        *self.txn_state.lock() = TxnState::Committing;
        let asked = self.retry_until_deadline("commit the transaction of the batch", |left| {
            self.producer.commit_transaction(left.min(COMMIT_STEP))
        });
        let (txn_state, outcome) = match asked {
            Ok(()) => (TxnState::Idle, Ok(())),
            Err((error, ErrorAction::Retry)) => {
                (TxnState::Committing, Err(self.commit_outcome_unknown().with_source(error)))
            }
            Err((error, ErrorAction::Abort)) => (TxnState::Open, Err(error)),
            Err((error, ErrorAction::Fail)) => (TxnState::Over, Err(error)),
        };
        *self.txn_state.lock() = txn_state;
        if txn_state == TxnState::Open
            && let Err(error) = self.abort(ABORT_TIMEOUT)
        {
            tracing::warn!(%error, "a failed batch could not be aborted; the cluster does it in time");
        }
        outcome
    }

    /// Whether the cluster was asked to commit and has not answered.
    pub(in crate::kafka::sink) fn is_committing(&self) -> bool {
        *self.txn_state.lock() == TxnState::Committing
    }

    /// Gives up what is in the open transaction, if one is open.
    pub(in crate::kafka::sink) fn give_up(&self) -> Result<()> {
        if self.is_open() { self.abort(ABORT_TIMEOUT) } else { Ok(()) }
    }

    pub(super) fn is_open(&self) -> bool {
        *self.txn_state.lock() == TxnState::Open
    }

    fn abort(&self, patience: Duration) -> Result<()> {
        let deadline = Deadline::after(patience);
        loop {
            let asked = self.producer.abort_transaction(ABORT_STEP);
            self.poll_events();
            match asked {
                Ok(()) => {
                    *self.txn_state.lock() = TxnState::Idle;
                    return Ok(());
                }
                Err(error) if error_action(&error) != ErrorAction::Retry || deadline.has_passed() => {
                    *self.txn_state.lock() = TxnState::Over;
                    return Err(self.to_error("abort a transaction", &error));
                }
                Err(_) => deadline.pause(),
            }
        }
    }

    /// Retries a call until its outcome is final, or the deadline has passed.
    fn retry_until_deadline(
        &self,
        action: &str,
        call: impl Fn(Duration) -> KafkaResult<()>,
    ) -> Result<(), (Error, ErrorAction)> {
        let deadline = Deadline::after(self.timeouts.delivery);
        loop {
            let error = match call(deadline.left()) {
                Ok(()) => {
                    self.events.clear_error();
                    return Ok(());
                }
                Err(error) => error,
            };
            self.poll_events();
            let error_action = error_action(&error);
            if error_action != ErrorAction::Retry || deadline.has_passed() {
                return Err((self.root_cause(action, &error), error_action));
            }
            deadline.pause();
        }
    }
}

impl Drop for KafkaProducer {
    /// An open transaction holds up readers until it is aborted, or for as long as a transaction may take.
    fn drop(&mut self) {
        if self.is_open()
            && let Err(error) = self.abort(SHUTDOWN_ABORT_TIMEOUT)
        {
            tracing::warn!(%error, "an open transaction could not be aborted; the cluster does it in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_nobody_knows_has_no_remedy() {
        assert_eq!(error_action(&KafkaError::Flush(Code::OperationTimedOut)), ErrorAction::Retry);
        assert_eq!(error_action(&KafkaError::Flush(Code::Fatal)), ErrorAction::Fail);
        assert_eq!(error_action(&KafkaError::Canceled), ErrorAction::Fail);
    }
}
