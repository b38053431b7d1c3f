//! The transaction of a [`Sender`].
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

use super::{Lost, Sender};
use crate::kafka::patience::{Deadline, is_hopeless};

/// How long the rows of a failed batch may take to be given up.
const ABORT: Duration = Duration::from_secs(10);
/// The same when the run ends: somebody waits.
const FAREWELL: Duration = Duration::from_secs(3);
/// What a step of an abort may take: between two of them, the reports of rows that were taken back are heard.
const ABORT_STEP: Duration = Duration::from_millis(50);
/// How long the cluster may take to answer the commit before it is asked whether it still works on it.
const COMMIT_STEP: Duration = Duration::from_secs(1);

/// Where the transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// There is none.
    Idle,
    /// Rows go into it.
    Open,
    /// The cluster was asked to commit it, and has not answered.
    Committing,
    /// This producer can do no more.
    Over,
}

/// What follows from an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    Again,
    Abort,
    None,
}

pub(super) fn remedy(error: &KafkaError) -> Remedy {
    match error {
        KafkaError::Transaction(error) if error.is_fatal() => Remedy::None,
        KafkaError::Transaction(error) if error.is_retriable() => Remedy::Again,
        KafkaError::Transaction(error) if error.txn_requires_abort() => Remedy::Abort,
        KafkaError::Flush(Code::OperationTimedOut) => Remedy::Again,
        _ => Remedy::None,
    }
}

impl Sender {
    /// Takes the place of earlier producers of this transactional id: what they left open is aborted, what they left in
    /// doubt is settled, and they can write no more.
    pub(in crate::kafka::sink) fn init_transactions(&self) -> Result<()> {
        let deadline = Deadline::after(self.patience_to_start());
        loop {
            let error = match self.producer.init_transactions(deadline.step()) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            self.hear();
            let again = remedy(&error) == Remedy::Again && !is_hopeless(self.heard.complaint());
            if !again || deadline.has_passed() {
                return Err(self.why("take over the query's transactions", &error));
            }
            deadline.pause();
        }
    }

    /// Begins a transaction. One that was not committed is aborted first.
    pub(in crate::kafka::sink) fn begin(&self) -> Result<()> {
        let stage = *self.stage.lock();
        match stage {
            Stage::Idle | Stage::Over => {}
            Stage::Open => self.abort(ABORT)?,
            Stage::Committing => return Err(self.undecided()),
        }
        *self.producer.context().lost.lock() = Lost::default();
        *self.busy_since.lock() = None;
        if self.transactional {
            self.producer.begin_transaction().map_err(|error| self.why("begin a transaction", &error))?;
            *self.stage.lock() = Stage::Open;
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
        self.insist("write the marker of the batch", |left| {
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
        *self.stage.lock() = Stage::Committing;
        let asked = self.insist("commit the transaction of the batch", |left| {
            self.producer.commit_transaction(left.min(COMMIT_STEP))
        });
        let (stage, outcome) = match asked {
            Ok(()) => (Stage::Idle, Ok(())),
            Err((error, Remedy::Again)) => (Stage::Committing, Err(self.undecided().caused_by(error))),
            Err((error, Remedy::Abort)) => (Stage::Open, Err(error)),
            Err((error, Remedy::None)) => (Stage::Over, Err(error)),
        };
        *self.stage.lock() = stage;
        if stage == Stage::Open
            && let Err(error) = self.abort(ABORT)
        {
            tracing::warn!(%error, "a failed batch could not be aborted; the cluster does it in time");
        }
        outcome
    }

    /// Whether the cluster was asked to commit and has not answered.
    pub(in crate::kafka::sink) fn is_committing(&self) -> bool {
        *self.stage.lock() == Stage::Committing
    }

    /// Gives up what is in the open transaction, if one is open.
    pub(in crate::kafka::sink) fn give_up(&self) -> Result<()> {
        if self.is_open() { self.abort(ABORT) } else { Ok(()) }
    }

    pub(super) fn is_open(&self) -> bool {
        *self.stage.lock() == Stage::Open
    }

    fn abort(&self, patience: Duration) -> Result<()> {
        let deadline = Deadline::after(patience);
        loop {
            let asked = self.producer.abort_transaction(ABORT_STEP);
            self.hear();
            match asked {
                Ok(()) => {
                    *self.stage.lock() = Stage::Idle;
                    return Ok(());
                }
                Err(error) if remedy(&error) != Remedy::Again || deadline.has_passed() => {
                    *self.stage.lock() = Stage::Over;
                    return Err(self.told("abort a transaction", &error));
                }
                Err(_) => deadline.pause(),
            }
        }
    }

    /// Calls until there is an answer that would not change if it was asked again, or patience ends.
    fn insist(&self, action: &str, call: impl Fn(Duration) -> KafkaResult<()>) -> Result<(), (Error, Remedy)> {
        let deadline = Deadline::after(self.timeouts.delivery);
        loop {
            let error = match call(deadline.left()) {
                Ok(()) => {
                    self.heard.answered();
                    return Ok(());
                }
                Err(error) => error,
            };
            self.hear();
            let remedy = remedy(&error);
            if remedy != Remedy::Again || deadline.has_passed() {
                return Err((self.why(action, &error), remedy));
            }
            deadline.pause();
        }
    }
}

impl Drop for Sender {
    /// An open transaction holds up readers until it is aborted, or for as long as a transaction may take.
    fn drop(&mut self) {
        if self.is_open()
            && let Err(error) = self.abort(FAREWELL)
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
        assert_eq!(remedy(&KafkaError::Flush(Code::OperationTimedOut)), Remedy::Again);
        assert_eq!(remedy(&KafkaError::Flush(Code::Fatal)), Remedy::None);
        assert_eq!(remedy(&KafkaError::Canceled), Remedy::None);
    }
}
