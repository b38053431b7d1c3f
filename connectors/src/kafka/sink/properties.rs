//! librdkafka's properties: which ones the sink keeps for itself, and what the others are if nobody says.

use std::time::Duration;

use rdkafka::ClientConfig;
use tidewater::error::{Error, Result};
use tidewater::sink::Guarantee;

use crate::kafka::client::ClientSettings;

/// What nobody else may set, and why.
const OWNED: &[(&str, &str)] = &[
    ("transactional.id", "transactions are named after the query, so that a restart finds what it left behind"),
    ("group.id", "the group that holds the sink's marker is named after the query"),
    ("isolation.level", "the sink reads its own marker only; what readers of the topic see is set at the readers"),
    ("enable.auto.commit", "the sink consumes nothing"),
    ("auto.offset.reset", "the sink consumes nothing"),
    ("delivery.report.only.error", "the sink must hear of every row that was not taken"),
    ("delivery.timeout.ms", "here it is called `message.timeout.ms`"),
    ("key.serializer", "keys are text or bytes, and written as they are"),
    ("value.serializer", "values are text or bytes, and written as they are"),
    ("interceptor.classes", "there are no Java classes here"),
];

/// What only producers understand: the reader of the marker would warn of it.
const OF_PRODUCERS: &[&str] = &[
    "acks",
    "batch.num.messages",
    "batch.size",
    "compression.codec",
    "compression.level",
    "compression.type",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "linger.ms",
    "message.send.max.retries",
    "message.timeout.ms",
    "partitioner",
    "queue.buffering.backpressure.threshold",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queue.buffering.max.ms",
    "queuing.strategy",
    "request.required.acks",
    "request.timeout.ms",
    "retries",
    "sticky.partitioning.linger.ms",
    "transaction.timeout.ms",
];

const DELIVERY: Duration = Duration::from_secs(120);
/// A batch may take as long as this from its first row to its commit. If a process dies and is not started again,
/// readers of committed records wait as long.
const TRANSACTION: Duration = Duration::from_secs(300);
const SOCKET: Duration = Duration::from_secs(30);
/// What the producer may hold, in KiB, where there is memory enough.
const QUEUE_KIB: usize = 128 << 10;
/// Of what is left in the memory pool, it may hold one part in so many.
const QUEUE_SHARE: usize = 8;

/// Refuses what the sink sets itself, and what librdkafka does not know.
pub(super) fn check(client: &ClientSettings, guarantee: Guarantee) -> Result<()> {
    client.refuse_java_names()?;
    for name in client.names() {
        if let Some((_, why)) = OWNED.iter().find(|(owned, _)| *owned == name) {
            return Err(refused(name, why));
        }
    }
    let differs = |name: &str, wanted: &[&str]| {
        client.get(name).is_some_and(|value| !wanted.contains(&value.trim().to_ascii_lowercase().as_str()))
    };
    if differs("queuing.strategy", &["fifo"]) {
        return Err(refused("queuing.strategy", "rows go out in the order they come"));
    }
    if guarantee == Guarantee::AtLeastOnce {
        return match ["acks", "request.required.acks"].into_iter().find(|name| client.get(name) == Some("0")) {
            Some(name) => Err(refused(name, "a row that nobody acknowledges may be lost: `1` is the least")),
            None => Ok(()),
        };
    }
    if differs("enable.idempotence", &["true"]) {
        return Err(refused("enable.idempotence", "transactions need it"));
    }
    for name in ["acks", "request.required.acks"] {
        if differs(name, &["all", "-1"]) {
            return Err(refused(name, "in transactions every replica acknowledges, `all`"));
        }
    }
    Ok(())
}

/// Without the value, which may be a secret.
fn refused(name: &str, why: &str) -> Error {
    Error::invalid(format!("property `{name}` cannot be set for the Kafka sink: {why}"))
        .with_hint(format!("leave out `{name}` (as an option: `kafka.{name}`)"))
}

/// How long the cluster may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timeouts {
    /// To take a row (`message.timeout.ms`), or to answer.
    pub(super) delivery: Duration,
    /// To take a batch, from its first row to its commit (`transaction.timeout.ms`).
    pub(super) transaction: Duration,
}

impl Timeouts {
    pub(super) fn of(client: &ClientSettings) -> Result<Self> {
        let given = |name: &str| -> Result<Option<Duration>> {
            let Some(value) = client.get(name) else { return Ok(None) };
            match value.trim().parse::<i32>().ok().and_then(|ms| u64::try_from(ms).ok()).filter(|ms| *ms > 0) {
                Some(ms) => Ok(Some(Duration::from_millis(ms))),
                None => Err(Error::invalid(format!(
                    "property `{name}` of the Kafka sink is `{value}`, not a number of milliseconds above zero"
                ))),
            }
        };
        let (delivery, transaction) = (given("message.timeout.ms")?, given("transaction.timeout.ms")?);
        let timeouts = match (delivery, transaction) {
            (None, None) => Timeouts { delivery: DELIVERY, transaction: TRANSACTION },
            (Some(delivery), None) => Timeouts { delivery, transaction: TRANSACTION.max(delivery) },
            (None, Some(transaction)) => Timeouts { delivery: DELIVERY.min(transaction), transaction },
            (Some(delivery), Some(transaction)) => Timeouts { delivery, transaction },
        };
        if timeouts.delivery > timeouts.transaction {
            return Err(Error::invalid(
                "property `message.timeout.ms` of the Kafka sink is longer than `transaction.timeout.ms`: a row could \
                 be taken after its transaction was given up",
            )
            .with_hint("make `transaction.timeout.ms` the longer one"));
        }
        Ok(timeouts)
    }
}

/// How many KiB of rows the producer may hold that the cluster has not taken, with so many bytes left in the session's memory
/// pool (`None`: without a limit). Where it holds as many, the next row waits. A row larger than that would wait forever.
pub(super) fn queue_kib(client: &ClientSettings, left: Option<usize>) -> usize {
    let given = |name: &str| client.get(name)?.trim().parse::<usize>().ok();
    let least = 2 * given("message.max.bytes").unwrap_or(1_000_000).div_ceil(1024);
    let own = || left.map_or(QUEUE_KIB, |left| QUEUE_KIB.min(left / QUEUE_SHARE / 1024)).max(least);
    given("queue.buffering.max.kbytes").unwrap_or_else(own)
}

/// Of a producer that may hold so many KiB of rows: with a `transactional_id`, one of transactions.
pub(super) fn of_producer(
    client: &ClientSettings,
    timeouts: Timeouts,
    transactional_id: Option<&str>,
    queue_kib: usize,
) -> ClientConfig {
    let mut config = client.config();
    // By all its names: a property that is given twice is taken from either.
    let mut unless_given = |names: &[&str], value: &str| {
        if let Some(name) = names.first()
            && names.iter().all(|name| client.get(name).is_none())
        {
            config.set(*name, value);
        }
    };
    // It passes while the marker is on its way; more than that would delay every commit.
    unless_given(&["linger.ms", "queue.buffering.max.ms"], "2");
    // Keys go where Java's producers put them.
    unless_given(&["partitioner"], "murmur2_random");
    unless_given(&["queue.buffering.max.messages"], "500000");
    unless_given(&["queue.buffering.max.kbytes"], &queue_kib.to_string());
    // A transaction that begins while the cluster still ends the one before is asked to retry: soon. How often
    // librdkafka looks for a lost leader would follow from it.
    unless_given(&["topic.metadata.refresh.fast.interval.ms", "retry.backoff.ms"], "100");
    unless_given(&["retry.backoff.ms"], "20");
    // In transactions librdkafka would wait for an answer as long as a whole transaction may take.
    unless_given(&["socket.timeout.ms"], &SOCKET.min(timeouts.transaction).as_millis().to_string());

    config.set("message.timeout.ms", timeouts.delivery.as_millis().to_string());
    // Only failed deliveries are reported; successes are not counted.
    config.set("delivery.report.only.error", "true");
    match transactional_id {
        Some(id) => {
            config.set("transactional.id", id);
            config.set("transaction.timeout.ms", timeouts.transaction.as_millis().to_string());
            config.set("enable.idempotence", "true");
        }
        None => {
            let names = ["acks", "request.required.acks", "enable.idempotence"];
            if names.iter().all(|name| client.get(name).is_none()) {
                config.set("enable.idempotence", "true");
            }
        }
    }
    config
}

/// Of a consumer that reads the marker from `group`, and no topic.
pub(super) fn of_marker_reader(client: &ClientSettings, group: &str) -> ClientConfig {
    let mut config = client.config();
    for name in OF_PRODUCERS {
        config.remove(name);
    }
    config.set("group.id", group);
    config.set("enable.auto.commit", "false");
    // An offset that a transaction has not settled yet is waited for.
    config.set("isolation.level", "read_committed");
    config
}

#[cfg(test)]
mod tests {
    use rdkafka::producer::{BaseProducer, DefaultProducerContext};

    use super::*;

    fn client(given: &[(&str, &str)]) -> ClientSettings {
        let mut client = ClientSettings::new("localhost:1");
        given.iter().for_each(|(name, value)| client.set(name, value));
        client
    }

    fn of(given: &[(&str, &str)]) -> Timeouts {
        Timeouts::of(&client(given)).unwrap()
    }

    #[test]
    fn what_the_sink_owns_is_refused_with_the_reason() {
        for (name, value, why) in [
            ("transactional.id", "mine", "after the query"),
            ("group.id", "mine", "after the query"),
            ("enable.idempotence", "false", "transactions need it"),
            ("acks", "1", "`all`"),
            ("request.required.acks", "0", "`all`"),
            ("queuing.strategy", "lifo", "in the order"),
            ("delivery.timeout.ms", "5", "`message.timeout.ms`"),
            ("key.serializer", "x.StringSerializer", "written as they are"),
            ("partitioner.class", "x.Partitioner", "Java client"),
        ] {
            let error = check(&client(&[(name, value)]), Guarantee::ExactlyOnce).unwrap_err();
            assert!(error.message().contains(name) && error.message().contains(why), "{error}");
        }
    }

    #[test]
    fn what_changes_nothing_is_allowed() {
        let same = [("acks", "all"), ("request.required.acks", "-1"), ("enable.idempotence", "TRUE")];
        check(&client(&same), Guarantee::ExactlyOnce).unwrap();
        check(&client(&[("linger.ms", "50"), ("compression.type", "zstd")]), Guarantee::ExactlyOnce).unwrap();
        check(&client(&[("acks", "1"), ("enable.idempotence", "false")]), Guarantee::AtLeastOnce).unwrap();
        assert!(check(&client(&[("acks", "0")]), Guarantee::AtLeastOnce).is_err());
    }

    #[test]
    fn a_row_never_has_longer_than_its_transaction() {
        let s = Duration::from_secs;
        assert_eq!(of(&[]), Timeouts { delivery: s(120), transaction: s(300) });
        assert_eq!(of(&[("message.timeout.ms", "600000")]), Timeouts { delivery: s(600), transaction: s(600) });
        assert_eq!(of(&[("transaction.timeout.ms", "9000")]), Timeouts { delivery: s(9), transaction: s(9) });
        let both = [("message.timeout.ms", "5000"), ("transaction.timeout.ms", "9000")];
        assert_eq!(of(&both), Timeouts { delivery: s(5), transaction: s(9) });
        for wrong in [
            &[("message.timeout.ms", "0")][..],
            &[("transaction.timeout.ms", "soon")][..],
            &[("message.timeout.ms", "9000"), ("transaction.timeout.ms", "5000")][..],
        ] {
            assert!(Timeouts::of(&client(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn librdkafka_understands_every_default() {
        let nothing: &[(&str, &str)] = &[];
        for given in [nothing, &[("transaction.timeout.ms", "1000")][..], &[("queue.buffering.max.ms", "7")][..]] {
            let client = client(given);
            let timeouts = Timeouts::of(&client).unwrap();
            for id in [None, Some("tidewater-test-output")] {
                let config = of_producer(&client, timeouts, id, QUEUE_KIB);
                let made: Result<BaseProducer<DefaultProducerContext>, _> = config.create();
                assert!(made.is_ok(), "{given:?}, {id:?}: {:?}", made.err());
            }
            of_marker_reader(&client, "tidewater-test-output").create_native_config().unwrap();
        }
    }

    #[test]
    fn a_producer_holds_less_where_there_is_less_memory() {
        let mib = |given: &[(&str, &str)], left| queue_kib(&client(given), left) >> 10;
        assert_eq!((mib(&[], None), mib(&[], Some(64 << 20)), mib(&[], Some(8 << 30))), (128, 8, 128));
        assert_eq!(queue_kib(&client(&[]), Some(0)), 1954, "two of the largest messages");
        assert_eq!(mib(&[("message.max.bytes", "100000000")], Some(0)), 190);
        assert_eq!(mib(&[("queue.buffering.max.kbytes", "307200")], Some(0)), 300);
    }

    #[test]
    fn what_is_given_comes_before_the_defaults() {
        let given = client(&[("queue.buffering.max.ms", "50"), ("partitioner", "consistent"), ("acks", "1")]);
        let config = of_producer(&given, Timeouts::of(&given).unwrap(), None, QUEUE_KIB);
        assert_eq!((config.get("linger.ms"), config.get("partitioner")), (None, Some("consistent")));
        assert_eq!(config.get("enable.idempotence"), None);
        let config = of_producer(&client(&[]), Timeouts::of(&client(&[])).unwrap(), Some("id"), 7);
        assert_eq!((config.get("linger.ms"), config.get("partitioner")), (Some("2"), Some("murmur2_random")));
        assert_eq!(config.get("queue.buffering.max.kbytes"), Some("7"));
        assert_eq!((config.get("transactional.id"), config.get("enable.idempotence")), (Some("id"), Some("true")));
    }

    #[test]
    fn the_reader_of_the_marker_gets_no_property_of_producers() {
        let given = client(&[("linger.ms", "50"), ("acks", "all"), ("client.id", "me")]);
        let config = of_marker_reader(&given, "g");
        assert_eq!((config.get("linger.ms"), config.get("acks"), config.get("client.id")), (None, None, Some("me")));
        assert_eq!((config.get("group.id"), config.get("isolation.level")), (Some("g"), Some("read_committed")));
    }
}
