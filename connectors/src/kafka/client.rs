//! How to reach a cluster, and what librdkafka says beside its answers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientConfig, TopicPartitionList};
use tidewater::error::{Error, Result};
use tracing::Level;

use super::java_properties::java_property_advice;
use super::retry::Deadline;

const BOOTSTRAP: &str = "bootstrap.servers";

/// How long taking leave of a cluster may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// What every client is set to, unless the user says otherwise.
const DEFAULTS: &[(&str, &str)] = &[
    ("client.id", "tidewater"),
    // A broker that is back should not have to wait for us.
    ("reconnect.backoff.ms", "100"),
    ("reconnect.backoff.max.ms", "2000"),
    ("socket.nagle.disable", "true"),
];

/// Where librdkafka's log goes.
const LIBRDKAFKA: &str = "librdkafka";

/// What stands for a value that nobody is to see.
const HIDDEN: &str = "***";

/// How to reach a cluster: its first brokers, and properties of librdkafka.
#[derive(Clone)]
pub(crate) struct ClientSettings {
    bootstrap: String,
    properties: BTreeMap<String, String>,
}

impl ClientSettings {
    /// Brokers to begin with, with commas between: `host:port,host:port`. A user name or password in front of a host, as in a
    /// URL, is dropped: Kafka has no use for it there, and it would be shown.
    pub(crate) fn new(bootstrap: impl Into<String>) -> Self {
        ClientSettings { bootstrap: without_users(&bootstrap.into()), properties: BTreeMap::new() }
    }

    /// The brokers to begin with.
    pub(crate) fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Sets a property by librdkafka's name, without the prefix `kafka.`. Later calls win.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        if [BOOTSTRAP, "metadata.broker.list"].contains(&name) {
            self.bootstrap = without_users(value);
        } else {
            self.properties.insert(name.to_owned(), value.to_owned());
        }
    }

    /// What the user set a property to.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.properties.get(name).map(String::as_str)
    }

    /// The properties that the user set.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.properties.keys().map(String::as_str)
    }

    /// As [`get`](Self::get), for people: a secret is not shown.
    pub(crate) fn shown(&self, name: &str) -> &str {
        if is_secret(name) { HIDDEN } else { self.get(name).unwrap_or_default() }
    }

    /// Refuses properties that only the Java client has, with what to set instead.
    pub(crate) fn refuse_java_names(&self) -> Result<()> {
        for (name, value) in &self.properties {
            if let Some(instead) = java_property_advice(name, value) {
                return Err(Error::invalid(format!(
                    "property `{name}` is one of the Java client, and librdkafka has none"
                ))
                .with_hint(instead));
            }
        }
        Ok(())
    }

    /// librdkafka's configuration: the brokers, our defaults, and over them what the user set.
    pub(crate) fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (name, value) in DEFAULTS {
            config.set(*name, *value);
        }
        config.set(BOOTSTRAP, &self.bootstrap);
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config.set_log_level(self.log_level());
        config
    }

    /// The level that some subscriber listens to; with the property `debug`, everything.
    fn log_level(&self) -> RDKafkaLogLevel {
        if self.get("debug").is_some() || tracing::enabled!(target: LIBRDKAFKA, Level::TRACE) {
            RDKafkaLogLevel::Debug
        } else if tracing::enabled!(target: LIBRDKAFKA, Level::DEBUG) {
            RDKafkaLogLevel::Info
        } else if tracing::enabled!(target: LIBRDKAFKA, Level::INFO) {
            RDKafkaLogLevel::Notice
        } else {
            RDKafkaLogLevel::Warning
        }
    }
}

impl fmt::Debug for ClientSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: BTreeMap<&str, &str> = self.names().map(|name| (name, self.shown(name))).collect();
        f.debug_struct("ClientSettings").field("bootstrap", &self.bootstrap).field("properties", &shown).finish()
    }
}

/// Whether the value of this property is nobody's business. Rather one too many.
pub(crate) fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let parts = ["password", "passphrase", "secret", "token", "jaas", "credential", "oauthbearer.config", ".pem"];
    parts.iter().any(|part| name.contains(part))
}

/// `user:password@host:port` becomes `host:port`.
fn without_users(bootstrap: &str) -> String {
    let servers: Vec<String> = bootstrap
        .split(',')
        .map(|server| {
            let (scheme, address) = server.split_once("://").unwrap_or(("", server));
            let host = address.rsplit_once('@').map_or(address, |(_, host)| host).trim();
            if scheme.is_empty() { host.to_owned() } else { format!("{}://{host}", scheme.trim()) }
        })
        .collect();
    servers.join(",")
}

/// Whether this code only says that nobody answered, and not why.
pub(crate) fn says_no_reason(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::AllBrokersDown
            | Code::BrokerNotAvailable
            | Code::BrokerTransportFailure
            | Code::MessageTimedOut
            | Code::NetworkException
            | Code::OperationTimedOut
            | Code::RequestTimedOut
            | Code::Resolve
            | Code::TimedOutQueue
    )
}

/// The precedence of a client error as the root cause of a call that fails later; `None` if it is about something else.
fn weight(code: RDKafkaErrorCode) -> Option<u8> {
    use RDKafkaErrorCode as Code;
    match code {
        Code::AllBrokersDown => Some(0),
        code if says_no_reason(code) => Some(1),
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::SSL
        | Code::Fatal => Some(2),
        _ => None,
    }
}

/// The client's events beside the answers to calls: its log, and why it has no connection.
///
/// librdkafka delivers them when events are served (`poll`), and only then.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClientEvents(Arc<Mutex<Option<(RDKafkaErrorCode, String)>>>);

impl ClientEvents {
    /// The last client error that is not part of the answer to a call: a refused password, say. A specific error is not
    /// replaced by a less specific one, because "all brokers are down" follows everything.
    pub(crate) fn last_error(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.0.lock().clone()
    }

    /// Forgets the last error: the broker has answered.
    pub(crate) fn clear_error(&self) {
        *self.0.lock() = None;
    }
}

impl ClientContext for ClientEvents {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, log_message: &str) {
        let message = without_secrets(log_message);
        // A connection that breaks is an error to librdkafka; it is made again, and what fails for good is reported by
        // the call.
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(target: LIBRDKAFKA, fac, "{message}");
            }
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => tracing::warn!(target: LIBRDKAFKA, fac, "{message}"),
            RDKafkaLogLevel::Notice => tracing::info!(target: LIBRDKAFKA, fac, "{message}"),
            RDKafkaLogLevel::Info => tracing::debug!(target: LIBRDKAFKA, fac, "{message}"),
            RDKafkaLogLevel::Debug => tracing::trace!(target: LIBRDKAFKA, fac, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        // The end of a partition is reported this way, too.
        let Some(new) = weight(code) else { return };
        let reason = without_secrets(reason);
        if says_no_reason(code) {
            tracing::debug!(target: LIBRDKAFKA, ?code, "{reason}");
        } else {
            tracing::warn!(target: LIBRDKAFKA, ?code, "{reason}");
        }
        let mut last = self.0.lock();
        if last.as_ref().and_then(|(old, _)| weight(*old)).is_none_or(|old| old <= new) {
            *last = Some((code, reason.to_owned()));
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        tracing::debug!(target: LIBRDKAFKA, statistics = %String::from_utf8_lossy(statistics), "statistics");
    }
}

impl ConsumerContext for ClientEvents {
    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::warn!(target: LIBRDKAFKA, %error, "offsets were not committed to the consumer group");
        }
    }
}

/// Lets a consumer go as soon as librdkafka does, where the `rdkafka` crate looks only every tenth of a second.
pub(crate) fn leave(consumer: &BaseConsumer<ClientEvents>) {
    if consumer.close_queue().is_err() {
        return;
    }
    let deadline = Deadline::after(LEAVE_TIMEOUT);
    while !consumer.closed() && !deadline.has_passed() {
        drop(consumer.poll(Duration::ZERO));
        deadline.pause();
    }
}

/// librdkafka quotes the rest of `sasl.oauthbearer.config` where it does not understand it.
pub(crate) fn without_secrets(message: &str) -> &str {
    const QUOTE: &str = "sasl.oauthbearer.config beginning at";
    message.find(QUOTE).and_then(|at| message.get(..at + QUOTE.len() - " beginning at".len())).unwrap_or(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(properties: &[(&str, &str)]) -> ClientSettings {
        let mut settings = ClientSettings::new("a:9092");
        for (name, value) in properties {
            settings.set(name, value);
        }
        settings
    }

    #[test]
    fn what_the_user_sets_goes_over_the_defaults() {
        let mut settings = settings(&[("client.id", "mine"), ("linger.ms", "1"), ("linger.ms", "2")]);
        let config = settings.config();
        assert_eq!(config.get("bootstrap.servers"), Some("a:9092"));
        assert_eq!(config.get("client.id"), Some("mine"));
        assert_eq!(config.get("linger.ms"), Some("2"));
        assert_eq!(config.get("reconnect.backoff.max.ms"), Some("2000"));
        assert_eq!(settings.names().collect::<Vec<_>>(), ["client.id", "linger.ms"]);
        assert_eq!((settings.get("linger.ms"), settings.get("reconnect.backoff.max.ms")), (Some("2"), None));
        settings.set("bootstrap.servers", "b:1,c:2");
        assert_eq!(settings.bootstrap(), "b:1,c:2");
        assert_eq!(settings.config().get("bootstrap.servers"), Some("b:1,c:2"));
        assert!(settings.config().create_native_config().is_ok(), "librdkafka knows all defaults");
    }

    #[test]
    fn no_secret_is_shown() {
        let secrets = [
            "sasl.password",
            "ssl.key.password",
            "ssl.keystore.password",
            "ssl.key.pem",
            "sasl.oauthbearer.client.secret",
            "sasl.oauthbearer.client.credentials.client.secret",
            "sasl.oauthbearer.assertion.private.key.passphrase",
            "sasl.oauthbearer.assertion.private.key.pem",
            "sasl.oauthbearer.config",
            "sasl.jaas.config",
            "SASL.Password",
        ];
        for secret in secrets {
            let settings = settings(&[(secret, "hunter2"), ("sasl.username", "alice")]);
            let shown = format!("{settings:?}");
            assert!(shown.contains(secret) && shown.contains("alice"), "{shown}");
            assert!(!shown.contains("hunter2"), "{shown}");
            assert_eq!(settings.get(secret), Some("hunter2"));
            assert_eq!((settings.shown(secret), settings.shown("sasl.username")), ("***", "alice"));
        }
        assert!(!is_secret("ssl.ca.location") && !is_secret("sasl.mechanism") && !is_secret("group.id"));
    }

    #[test]
    fn users_in_addresses_are_dropped() {
        for (given, kept) in [
            ("a:9092", "a:9092"),
            (" a:9092, b:9092 ", "a:9092,b:9092"),
            ("alice:hunter2@a:9092,b:9092", "a:9092,b:9092"),
            ("SASL_SSL://alice:p@ss@a:9092", "SASL_SSL://a:9092"),
            ("[::1]:9092", "[::1]:9092"),
            ("", ""),
        ] {
            let mut settings = ClientSettings::new(given);
            assert_eq!(settings.bootstrap(), kept);
            settings.set("metadata.broker.list", given);
            assert_eq!(settings.bootstrap(), kept);
        }
    }

    #[test]
    fn what_explains_most_is_kept() {
        let context = ClientEvents::default();
        let heard = |code, reason| {
            context.error(KafkaError::Global(code), reason);
            context.last_error()
        };
        let kept = |code, reason: &str| Some((code, reason.to_owned()));
        assert_eq!(heard(RDKafkaErrorCode::PartitionEOF, "the end"), None);
        assert_eq!(heard(RDKafkaErrorCode::OffsetOutOfRange, "too far"), None);
        let (down, away) = (RDKafkaErrorCode::AllBrokersDown, RDKafkaErrorCode::BrokerTransportFailure);
        let refused = RDKafkaErrorCode::Authentication;
        assert_eq!(heard(down, "1/1 down"), kept(down, "1/1 down"));
        assert_eq!(heard(away, "connection refused"), kept(away, "connection refused"));
        assert_eq!(heard(down, "1/1 down"), kept(away, "connection refused"));
        assert_eq!(heard(refused, "no such user"), kept(refused, "no such user"));
        assert_eq!(heard(away, "disconnected"), kept(refused, "no such user"));
        assert_eq!(heard(refused, "wrong password"), kept(refused, "wrong password"));
        context.clear_error();
        assert_eq!(heard(down, "1/1 down"), kept(down, "1/1 down"));
        context.error(KafkaError::Canceled, "no code");
        assert!(context.clone().last_error().is_some(), "clones share the events");
    }

    #[test]
    fn what_librdkafka_quotes_is_cut_off() {
        let quoted = "a:9092: Unrecognized sasl.oauthbearer.config beginning at: secret=hunter2";
        assert_eq!(without_secrets(quoted), "a:9092: Unrecognized sasl.oauthbearer.config");
        assert_eq!(without_secrets("plain"), "plain");
        let context = ClientEvents::default();
        context.error(KafkaError::Global(RDKafkaErrorCode::Authentication), quoted);
        context.log(RDKafkaLogLevel::Error, "FAIL", quoted);
        assert!(!context.last_error().unwrap().1.contains("hunter2"));
    }
}
