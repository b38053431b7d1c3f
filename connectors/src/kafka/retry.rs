//! Deadlines, and which errors are worth a retry.

use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;

/// The shortest and the longest that one question may take before it is asked again.
const STEPS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// The shortest and the longest pause between two looks at what is on its way.
const PAUSES: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(5));

/// A point in time until which a call is retried.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    since: Instant,
    timeout: Duration,
}

impl Deadline {
    pub(crate) fn after(timeout: Duration) -> Self {
        Deadline { since: now(), timeout }
    }

    pub(crate) fn has_passed(&self) -> bool {
        self.since.elapsed() >= self.timeout
    }

    /// What is left of it; never nothing, so that the last question is asked too.
    pub(crate) fn left(&self) -> Duration {
        self.timeout.saturating_sub(self.since.elapsed()).max(Duration::from_millis(1))
    }

    /// How long the next question may take: short ones first, for what is wrong at once is heard between two questions.
    pub(crate) fn step(&self) -> Duration {
        let (shortest, longest) = STEPS;
        self.since.elapsed().clamp(shortest, longest).min(self.left())
    }

    /// Waits a little before the next look: a tenth of the time waited so far, so that what is over soon is seen soon.
    pub(crate) fn pause(&self) {
        let (shortest, longest) = PAUSES;
        wait((self.since.elapsed() / 10).clamp(shortest, longest));
    }
}

/// For measuring a wait on the network.
#[expect(clippy::disallowed_methods, reason = "bounds a wait on the network; no row depends on it")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Waits on the network.
#[expect(clippy::disallowed_methods, reason = "polls of the rdkafka crate spin for their last millisecond")]
pub(crate) fn wait(time: Duration) {
    std::thread::sleep(time);
}

/// Whether the same request may succeed a little later.
pub(crate) fn is_retriable(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::AllBrokersDown
                | Code::BrokerTransportFailure
                | Code::BrokerNotAvailable
                | Code::CoordinatorLoadInProgress
                | Code::CoordinatorNotAvailable
                | Code::DestroyBroker
                | Code::FencedLeaderEpoch
                | Code::LeaderNotAvailable
                | Code::NetworkException
                | Code::NotCoordinator
                | Code::NotLeaderForPartition
                | Code::OffsetNotAvailable
                | Code::OperationTimedOut
                | Code::ReplicaNotAvailable
                | Code::RequestTimedOut
                | Code::Resolve
                | Code::Retry
                | Code::TimedOutQueue
                | Code::UnknownLeaderEpoch
                | Code::UnknownPartition
                | Code::UnstableOffsetCommit
                | Code::WaitingForCoordinator
        )
    )
}

/// Whether the cluster does not know the topic. One that is created on first use is known a moment later.
pub(crate) fn is_unknown_topic(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::LeaderNotAvailable)
    )
}

/// Whether the last client error is a failed authentication, so that waiting is useless: librdkafka goes on trying with
/// a password that was refused.
pub(crate) fn is_auth_failure(complaint: Option<(Code, String)>) -> bool {
    matches!(
        complaint,
        Some((
            Code::Authentication
                | Code::SaslAuthenticationFailed
                | Code::UnsupportedSASLMechanism
                | Code::IllegalSASLState
                | Code::SSL,
            _
        ))
    )
}

/// Whether the cluster takes no more from this producer, because a newer one has its name.
pub(crate) fn is_fenced(code: Code) -> bool {
    matches!(code, Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_never_takes_longer_than_patience_allows() {
        let deadline = Deadline::after(Duration::from_millis(300));
        assert!(!deadline.has_passed());
        assert!(deadline.step() <= Duration::from_millis(300), "{:?}", deadline.step());
        assert_eq!(Deadline::after(Duration::from_secs(60)).step(), Duration::from_secs(1));
        let over = Deadline::after(Duration::ZERO);
        assert!(over.has_passed() && over.left() > Duration::ZERO);
    }

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        assert!(is_retriable(&KafkaError::MetadataFetch(Code::OperationTimedOut)));
        assert!(!is_retriable(&KafkaError::MetadataFetch(Code::GroupAuthorizationFailed)));
        assert!(!is_retriable(&KafkaError::Canceled));
        assert!(is_unknown_topic(&KafkaError::MetadataFetch(Code::UnknownTopicOrPartition)));
        assert!(is_auth_failure(Some((Code::Authentication, String::new()))));
        assert!(!is_auth_failure(Some((Code::AllBrokersDown, String::new()))) && !is_auth_failure(None));
        assert!(is_fenced(Code::ProducerFenced) && !is_fenced(Code::FencedInstanceId));
    }
}
