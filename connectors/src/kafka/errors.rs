//! librdkafka's errors in words a person can act on.
//!
//! A call that fails often only says that nobody answered. The reason, a refused password say, is in an error that the
//! client reported before, so [`to_error`] looks at that, too.

use rdkafka::error::KafkaError;
use rdkafka::types::{RDKafkaConfRes, RDKafkaErrorCode};
use tidewater::error::{Error, ErrorKind};

use super::client::{ClientEvents, ClientSettings, is_secret, says_no_reason, without_secrets};
use super::java_properties::java_property_advice;

const BUILD_WITH_SSL: &str = "build with the feature `kafka-ssl`: this program has neither TLS nor SASL";

/// An error that says why. `action` completes "cannot …": "ask for the offsets of topic `x`".
pub(crate) fn to_error(action: &str, settings: &ClientSettings, context: &ClientEvents, error: &KafkaError) -> Error {
    match error {
        KafkaError::ClientConfig(result, description, name, _) => property(action, *result, description, name),
        KafkaError::ClientCreation(why) => creation(action, without_secrets(why)),
        KafkaError::Nul(_) => Error::invalid(format!("cannot {action}: a name or a value holds a zero byte")),
        _ => {
            let (code, text) = root_cause(context, error);
            let (kind, what, hint) = classify(code, settings.bootstrap());
            let what = if what.is_empty() { String::new() } else { format!("{what}: ") };
            Error::new(kind, format!("cannot {action}: {what}{text}")).with_hint(hint).with_source(error.clone())
        }
    }
}

/// The code that explains most, and what librdkafka says of it.
fn root_cause(context: &ClientEvents, error: &KafkaError) -> (Option<RDKafkaErrorCode>, String) {
    let own = match error {
        // The crate knows no code of this one, though there is one.
        KafkaError::AdminOp(code) => Some(*code),
        KafkaError::NoMessageReceived => Some(RDKafkaErrorCode::OperationTimedOut),
        _ => error.rdkafka_error_code(),
    };
    let (code, text) = match (own, context.last_error()) {
        (Some(own), Some((code, text))) if own == code || says_no_reason(own) => (Some(code), text),
        _ => (own, own_words(error)),
    };
    // A client that gave up says why only in its text.
    if code == Some(RDKafkaErrorCode::Fatal) && (text.contains("fence") || text.contains("old epoch")) {
        return (Some(RDKafkaErrorCode::ProducerFenced), text);
    }
    (code, text)
}

fn own_words(error: &KafkaError) -> String {
    match (error, error.rdkafka_error_code()) {
        (KafkaError::Transaction(error), _) => error.string(),
        (_, Some(code)) => code.to_string(),
        (_, None) => error.to_string(),
    }
}

/// What a code means: what reaction it asks for, what happened, and what to do.
fn classify(code: Option<RDKafkaErrorCode>, brokers: &str) -> (ErrorKind, String, &'static str) {
    use ErrorKind::{Fenced, InvalidQuery, SourceLostData, Unavailable};
    use RDKafkaErrorCode as Code;
    let Some(code) = code else { return (Unavailable, String::new(), START_AGAIN) };
    let (kind, what, hint) = match code {
        Code::Resolve => (
            Unavailable,
            "the address of a broker is not known here",
            "check the spelling of `bootstrap.servers`, and that the names which the brokers advertise (their \
             `advertised.listeners`) can be resolved on this machine",
        ),
        code if says_no_reason(code) => {
            let hint = "check that the broker runs, that `bootstrap.servers` and `security.protocol` are right, and that \
                        the addresses which the brokers advertise (their `advertised.listeners`) can be reached from here";
            return (Unavailable, format!("no broker of {brokers} answers"), hint);
        }
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState => (
            Unavailable,
            "the broker refused the user or the password",
            "check `sasl.username`, `sasl.password` and `sasl.mechanism`",
        ),
        Code::SSL => (
            Unavailable,
            "there is no secure connection to the broker",
            "check `ssl.ca.location`, the certificates of both sides, and that this address of the broker speaks TLS \
             (`security.protocol`)",
        ),
        Code::UnknownTopic | Code::UnknownTopicId | Code::UnknownTopicOrPartition | Code::UnknownPartition => (
            InvalidQuery,
            "there is no such topic or partition",
            "check the name, create the topic, or see whether this user may know of it",
        ),
        Code::InvalidTopic => (
            InvalidQuery,
            "this cannot be the name of a topic",
            "a name has up to 249 letters, digits, `.`, `_` and `-`",
        ),
        Code::TopicAuthorizationFailed => (
            Unavailable,
            "this user may not use the topic",
            "grant the user `Describe` on the topic, and `Read` (for a source) or `Write` (for a sink)",
        ),
        Code::GroupAuthorizationFailed => (
            Unavailable,
            "this user may not use the consumer group",
            "grant the user `Describe` and `Read` on the group, or name another one with `group.id`",
        ),
        Code::TransactionalIdAuthorizationFailed => (
            Unavailable,
            "this user may not use the transactional id",
            "grant the user `Describe` and `Write` on the transactional id",
        ),
        Code::ClusterAuthorizationFailed => {
            (Unavailable, "this user may not do that in the cluster", "grant the user `IdempotentWrite` on the cluster")
        }
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch => (
            Fenced,
            "another process took over",
            "see that one process runs the query: stop the other one, or give it a checkpoint of its own",
        ),
        Code::UnsupportedVersion | Code::UnsupportedFeature | Code::UnsupportedForMessageFormat => {
            (Unavailable, "the broker is too old for this", "use a broker of Apache Kafka 2.5 or later")
        }
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => (
            InvalidQuery,
            "a record is larger than allowed",
            "raise `message.max.bytes` here and `max.message.bytes` of the topic, or make the record smaller",
        ),
        Code::AutoOffsetReset | Code::LogTruncation | Code::OffsetOutOfRange => (
            SourceLostData,
            "records are not there any more",
            "keep records longer in Kafka than the query may be behind; to go on without what is lost, set \
             `failOnDataLoss` to false",
        ),
        Code::InvalidTransactionTimeout => (
            InvalidQuery,
            "a transaction may not last so long",
            "lower `transaction.timeout.ms`, or raise `transaction.max.timeout.ms` of the broker",
        ),
        Code::Fatal
        | Code::InvalidProducerIdMapping
        | Code::InvalidTransactionalState
        | Code::OutOfOrderSequenceNumber
        | Code::UnknownProducerId => {
            (Unavailable, "the producer cannot go on", "start the query again: the batch is repeated")
        }
        Code::ConcurrentTransactions
        | Code::CoordinatorLoadInProgress
        | Code::CoordinatorNotAvailable
        | Code::ISRInsufficient
        | Code::KafkaStorageError
        | Code::LeaderNotAvailable
        | Code::NotCoordinator
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::NotLeaderForPartition
        | Code::OffsetNotAvailable
        | Code::ReplicaNotAvailable
        | Code::TransactionCoordinatorFenced
        | Code::WaitingForCoordinator => (
            Unavailable,
            "the cluster is not ready",
            "see whether a broker is down or has just started, then start the query again",
        ),
        _ => (Unavailable, "", START_AGAIN),
    };
    (kind, what.to_owned(), hint)
}

const START_AGAIN: &str = "start the query again; if that does not help, look into the log of the broker";

/// librdkafka does not take a property. What it says of it may hold the value.
fn property(action: &str, result: RDKafkaConfRes, description: &str, name: &str) -> Error {
    if result == RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN {
        let hint = "names of properties are those of librdkafka: see its CONFIGURATION.md";
        return Error::invalid(format!("cannot {action}: librdkafka has no property `{name}`"))
            .with_hint(java_property_advice(name, "").unwrap_or(hint));
    }
    let why = if is_secret(name) { "its value is not accepted" } else { description.trim() };
    let hint =
        if lacks_ssl(description) { BUILD_WITH_SSL } else { "CONFIGURATION.md of librdkafka says what it takes" };
    Error::invalid(format!("cannot {action}: property `{name}` cannot be set: {why}")).with_hint(hint)
}

/// librdkafka does not take properties together.
fn creation(action: &str, why: &str) -> Error {
    let hint = if lacks_ssl(why) { BUILD_WITH_SSL } else { "check the properties that are set for Kafka" };
    Error::invalid(format!("cannot {action}: librdkafka does not accept its configuration: {why}")).with_hint(hint)
}

fn lacks_ssl(text: &str) -> bool {
    text.contains("OpenSSL not available") || text.contains("recompile librdkafka")
}

#[cfg(test)]
mod tests {
    use rdkafka::client::ClientContext;
    use rdkafka::types::RDKafkaErrorCode as Code;

    use super::super::java_properties::JAVA;
    use super::*;

    fn settings(properties: &[(&str, &str)]) -> ClientSettings {
        let mut settings = ClientSettings::new("kafka-1:9092");
        for (name, value) in properties {
            settings.set(name, value);
        }
        settings
    }

    fn explained(error: &KafkaError, complaint: Option<(Code, &str)>) -> Error {
        let context = ClientEvents::default();
        if let Some((code, reason)) = complaint {
            context.error(KafkaError::Global(code), reason);
        }
        let error = to_error("ask for the offsets of topic `x`", &settings(&[]), &context, error);
        assert!(error.message().starts_with("cannot ask for the offsets of topic `x`: "), "{error}");
        assert!(!error.message().ends_with('.') && error.hint().is_some(), "{error}");
        error
    }

    #[test]
    fn each_code_is_answered_in_its_own_way() {
        for (code, kind, message, hint) in [
            (
                Code::AllBrokersDown,
                ErrorKind::Unavailable,
                "no broker of kafka-1:9092 answers",
                "`advertised.listeners`",
            ),
            (Code::BrokerTransportFailure, ErrorKind::Unavailable, "no broker of kafka-1:9092", "that the broker runs"),
            (Code::OperationTimedOut, ErrorKind::Unavailable, "no broker of kafka-1:9092", "`bootstrap.servers`"),
            (Code::Resolve, ErrorKind::Unavailable, "not known here", "spelling of `bootstrap.servers`"),
            (Code::Authentication, ErrorKind::Unavailable, "refused the user or the password", "`sasl.password`"),
            (Code::SaslAuthenticationFailed, ErrorKind::Unavailable, "refused the user", "`sasl.mechanism`"),
            (Code::SSL, ErrorKind::Unavailable, "no secure connection", "`ssl.ca.location`"),
            (Code::UnknownTopicOrPartition, ErrorKind::InvalidQuery, "no such topic or partition", "create the topic"),
            (Code::UnknownTopic, ErrorKind::InvalidQuery, "no such topic or partition", "check the name"),
            (Code::InvalidTopic, ErrorKind::InvalidQuery, "name of a topic", "249"),
            (Code::TopicAuthorizationFailed, ErrorKind::Unavailable, "may not use the topic", "`Read`"),
            (Code::GroupAuthorizationFailed, ErrorKind::Unavailable, "the consumer group", "`group.id`"),
            (Code::TransactionalIdAuthorizationFailed, ErrorKind::Unavailable, "the transactional id", "`Write`"),
            (Code::ClusterAuthorizationFailed, ErrorKind::Unavailable, "in the cluster", "`IdempotentWrite`"),
            (Code::Fenced, ErrorKind::Fenced, "another process took over", "one process"),
            (Code::ProducerFenced, ErrorKind::Fenced, "another process took over", "one process"),
            (Code::InvalidProducerEpoch, ErrorKind::Fenced, "another process took over", "one process"),
            (Code::UnsupportedVersion, ErrorKind::Unavailable, "too old", "Apache Kafka"),
            (Code::MessageSizeTooLarge, ErrorKind::InvalidQuery, "larger than allowed", "`message.max.bytes`"),
            (Code::OffsetOutOfRange, ErrorKind::SourceLostData, "not there any more", "`failOnDataLoss`"),
            (Code::InvalidTransactionTimeout, ErrorKind::InvalidQuery, "so long", "`transaction.timeout.ms`"),
            (Code::Fatal, ErrorKind::Unavailable, "cannot go on", "start the query again"),
            (Code::NotEnoughReplicas, ErrorKind::Unavailable, "not ready", "broker is down"),
            (Code::InvalidRecord, ErrorKind::Unavailable, "InvalidRecord", "log of the broker"),
        ] {
            let error = explained(&KafkaError::MetadataFetch(code), None);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.message().contains(message), "{error}");
            assert!(error.message().contains(&format!("{code:?}")), "{error}");
            assert!(error.hint().unwrap().contains(hint), "{error}");
            assert!(std::error::Error::source(&error).is_some(), "{error}");
        }
    }

    #[test]
    fn a_refused_password_explains_a_call_that_timed_out() {
        let complaint = "sasl_plaintext://kafka-1:9092/bootstrap: SASL authentication error: Authentication failed";
        for error in [
            KafkaError::MetadataFetch(Code::OperationTimedOut),
            KafkaError::OffsetFetch(Code::BrokerTransportFailure),
            KafkaError::NoMessageReceived,
            KafkaError::AdminOp(Code::AllBrokersDown),
        ] {
            let error = explained(&error, Some((Code::Authentication, complaint)));
            assert!(error.message().contains("refused the user or the password"), "{error}");
            assert!(error.message().contains(complaint), "{error}");
            assert!(error.hint().unwrap().contains("`sasl.username`"), "{error}");
        }
        let refused = "kafka-1:9092/bootstrap: Connect to ipv4#10.0.0.1:9092 failed: Connection refused";
        let away = Some((Code::BrokerTransportFailure, refused));
        let error = explained(&KafkaError::MetadataFetch(Code::OperationTimedOut), away);
        assert!(error.message().ends_with(&format!("no broker of kafka-1:9092 answers: {refused}")), "{error}");
        let error =
            explained(&KafkaError::MetadataFetch(Code::OperationTimedOut), Some((Code::SSL, "handshake failed")));
        assert!(error.message().contains("no secure connection to the broker: handshake failed"), "{error}");
    }

    #[test]
    fn an_error_with_a_reason_needs_no_other() {
        let complaint = Some((Code::Authentication, "an hour ago"));
        let error = explained(&KafkaError::MetadataFetch(Code::TopicAuthorizationFailed), complaint);
        assert!(error.message().contains("may not use the topic"), "{error}");
        let error = explained(&KafkaError::Seek("Local: Erroneous state".to_owned()), complaint);
        assert!(error.message().contains("Erroneous state"), "{error}");
        assert_eq!(explained(&KafkaError::Canceled, complaint).kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn a_client_that_was_fenced_says_so_in_words() {
        for (complaint, kind) in [
            ("Fatal error: Local: This instance has been fenced by a newer instance: x", ErrorKind::Fenced),
            ("Fatal error: Broker: Producer attempted an operation with an old epoch: x", ErrorKind::Fenced),
            ("Fatal error: Broker: Broker received an out of order sequence number: x", ErrorKind::Unavailable),
        ] {
            let error = explained(&KafkaError::MessageProduction(Code::Fatal), Some((Code::Fatal, complaint)));
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.message().contains(complaint), "{error}");
        }
    }

    /// What becomes of a property that librdkafka itself refuses.
    fn refused(name: &str, value: &str) -> Error {
        let settings = settings(&[(name, value)]);
        let error = settings.config().create_native_config().err().unwrap();
        to_error("open the Kafka source", &settings, &ClientEvents::default(), &error)
    }

    #[test]
    fn properties_are_answered() {
        let error = refused("lingr.ms", "5");
        assert_eq!(error.kind(), ErrorKind::InvalidQuery);
        assert_eq!(error.message(), "cannot open the Kafka source: librdkafka has no property `lingr.ms`");
        assert!(error.hint().unwrap().contains("those of librdkafka"), "{error}");
        assert!(refused("max.poll.records", "5").hint().unwrap().contains("`maxOffsetsPerTrigger`"));
        let error = refused("socket.timeout.ms", "soon");
        assert!(error.message().contains("property `socket.timeout.ms` cannot be set: Invalid value"), "{error}");
        assert!(refused("socket.timeout.ms", "1").message().ends_with("10..300000"));
        let missing = "Unsupported value \"ssl\" for configuration property: OpenSSL not available at build time";
        let result = RDKafkaConfRes::RD_KAFKA_CONF_INVALID;
        let error = property("begin", result, missing, "security.protocol");
        assert!(error.hint().unwrap().contains("`kafka-ssl`"), "{error}");
        let error = creation("begin", "`sasl.username` and `sasl.password` must be set");
        assert!(error.message().contains("must be set"), "{error}");
    }

    #[test]
    fn a_refused_secret_is_not_shown() {
        let settings = settings(&[("ssl.key.pem", "hunter2")]);
        let result = RDKafkaConfRes::RD_KAFKA_CONF_INVALID;
        let (says, name) = ("Invalid value: hunter2".to_owned(), "ssl.key.pem".to_owned());
        let error = KafkaError::ClientConfig(result, says, name, "hunter2".to_owned());
        let error = to_error("begin", &settings, &ClientEvents::default(), &error);
        assert!(error.message().contains("`ssl.key.pem`"), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
        assert!(std::error::Error::source(&error).is_none(), "{error}");
    }

    #[test]
    fn java_s_names_are_answered() {
        for (name, value, instead) in [
            ("sasl.jaas.config", "x required password=\"hunter2\";", "`sasl.username`"),
            ("ssl.truststore.location", "/trust.jks", "`ssl.ca.location`"),
            ("ssl.truststore.password", "hunter2", "`ssl.ca.location`"),
            ("ssl.keystore.location", "/key.JKS", "PKCS#12"),
            ("ssl.keystore.type", "JKS", "`ssl.key.location`"),
            ("max.poll.records", "500", "`maxOffsetsPerTrigger`"),
        ] {
            let error = settings(&[("acks", "all"), (name, value)]).refuse_java_names().unwrap_err();
            assert!(error.message().contains(name), "{error}");
            assert!(error.hint().unwrap().contains(instead), "{error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let fine = [("ssl.keystore.location", "/key.p12"), ("ssl.keystore.password", "x"), ("request.timeout.ms", "1")];
        assert!(settings(&fine).refuse_java_names().is_ok());
        assert!(settings(&fine[2..]).config().create_native_config().is_ok());
        for name in JAVA.iter().flat_map(|(names, _)| *names) {
            assert!(settings(&[(*name, "1")]).config().create_native_config().is_err(), "librdkafka knows `{name}`");
        }
    }
}
