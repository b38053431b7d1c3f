//! A real broker of Apache Kafka, and what a test does with it.
//!
//! `tests/kafka/broker.sh` runs the broker; it needs Java 17 or newer, and Maven for the first download. Where one of
//! them is missing, [`shared_broker`] and [`own_broker`] say so once and give `None`, and the test ends; in CI that is
//! a failure.
//!
//! ```no_run
//! use tidewater_workspace::kafka::{shared_broker, unique_topic};
//!
//! let Some(broker) = shared_broker() else { return };
//! let topic = unique_topic("orders");
//! broker.create_topic(&topic, 3);
//! broker.produce(&topic, [(0, "first"), (2, "second")]);
//! assert_eq!(broker.consume(&topic).len(), 2);
//! ```
//!
//! One broker serves all tests of a process, each with topics of its own. A test that kills its broker has one to
//! itself. No broker outlives the process, however that ends: it hangs on a pipe (see `TIDEWATER_BROKER_LEASH` in
//! `broker.sh`).
//!
//! What fails here fails the test that asked for it, with a panic that names the test's line.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::Write;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Once, OnceLock};
use std::time::{Duration, Instant};

use futures::executor::block_on;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication, TopicResult};
use rdkafka::client::{Client, ClientContext, DefaultClientContext};
use rdkafka::error::KafkaResult;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tempfile::TempDir;

mod records;

pub use records::{CommittedOffset, NewRecord, Record, Transaction};

/// Who may use the listener with SASL (mechanism PLAIN).
pub const SASL_USERNAME: &str = "tidewater";
/// With what.
pub const SASL_PASSWORD: &str = "tide";

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// The exit code of `broker.sh` where something is missing that it does not bring itself.
const UNAVAILABLE: i32 = 3;

/// Why there is no broker.
#[derive(Debug, Clone)]
pub enum NoBroker {
    /// Java or Maven is missing, and this is not CI.
    Skipped(String),
    /// It should have worked.
    Failed(String),
}

/// The broker that all tests of this process share, started when first asked for. `None` where tests with Kafka are
/// skipped.
#[track_caller]
pub fn shared_broker() -> Option<&'static Broker> {
    static SHARED: OnceLock<Result<Broker, NoBroker>> = OnceLock::new();
    unless_skipped(SHARED.get_or_init(Broker::start).as_ref().map_err(NoBroker::clone))
}

/// A broker for one test alone. `None` where tests with Kafka are skipped.
#[track_caller]
pub fn own_broker() -> Option<Broker> {
    unless_skipped(Broker::start())
}

#[track_caller]
fn unless_skipped<B>(broker: Result<B, NoBroker>) -> Option<B> {
    static TOLD: Once = Once::new();
    match broker {
        Ok(broker) => Some(broker),
        Err(NoBroker::Skipped(why)) => {
            // Not with eprintln, which the test runner keeps to itself where a test passes.
            let line = format!("tests with Kafka are skipped: {why}\n");
            TOLD.call_once(|| drop(std::io::stderr().write_all(line.as_bytes())));
            None
        }
        Err(NoBroker::Failed(why)) => panic!("no Kafka broker: {why}"),
    }
}

/// A name no other topic, group or transaction of this process has.
pub fn unique_topic(prefix: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{prefix}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A broker of Apache Kafka, alone in its cluster. Dropping it ends it and removes what it stored.
pub struct Broker {
    folder: TempDir,
    bootstrap: String,
    sasl_bootstrap: String,
    ssl_bootstrap: String,
    admin: AdminClient<DefaultClientContext>,
    /// When the last copy of this end is gone, so is the broker.
    _leash: ChildStdin,
}

impl Broker {
    /// Starts a broker; takes some seconds, and longer the first time on a machine, when it is downloaded.
    pub fn start() -> Result<Broker, NoBroker> {
        let failed = |what: &'static str| move |e: std::io::Error| NoBroker::Failed(format!("cannot {what}: {e}"));
        let folder = tempfile::Builder::new().prefix("tidewater-kafka-").tempdir().map_err(failed("make a folder"))?;
        let mut script = script("start", folder.path())
            .env("TIDEWATER_BROKER_LEASH", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed("run bash"))?;
        let Some(leash) = script.stdin.take() else {
            return Err(NoBroker::Failed("the script has no standard input".to_owned()));
        };
        let done = script.wait_with_output().map_err(failed("wait for the broker"))?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
            let skipped = done.status.code() == Some(UNAVAILABLE);
            return Err(if skipped { NoBroker::Skipped(said) } else { NoBroker::Failed(said) });
        }
        let listener = |name: &str| {
            let text = std::fs::read_to_string(folder.path().join(name));
            text.map(|text| text.trim().to_owned()).map_err(failed("learn where the broker is"))
        };
        let (bootstrap, sasl_bootstrap, ssl_bootstrap) =
            (listener("bootstrap")?, listener("bootstrap.sasl")?, listener("bootstrap.ssl")?);
        let admin = client(&bootstrap).create().map_err(|e| NoBroker::Failed(e.to_string()))?;
        Ok(Broker { folder, bootstrap, sasl_bootstrap, ssl_bootstrap, admin, _leash: leash })
    }

    /// Where the broker is, as `host:port`.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Where it asks for [`SASL_USERNAME`] and [`SASL_PASSWORD`], without TLS (`SASL_PLAINTEXT`, mechanism PLAIN).
    pub fn sasl_bootstrap(&self) -> &str {
        &self.sasl_bootstrap
    }

    /// Where it speaks TLS (`SSL`), with a certificate that only [`Broker::ca_file`] vouches for.
    pub fn ssl_bootstrap(&self) -> &str {
        &self.ssl_bootstrap
    }

    /// The certificate to trust, in PEM: what librdkafka takes as `ssl.ca.location`.
    pub fn ca_file(&self) -> String {
        self.folder.path().join("ca.pem").display().to_string()
    }

    /// `kill -9`. Connections break; what was acknowledged is kept.
    #[track_caller]
    pub fn kill(&self) {
        self.ask("kill");
    }

    /// Lets the broker end in order.
    #[track_caller]
    pub fn stop(&self) {
        self.ask("stop");
    }

    /// Starts it again after [`Broker::kill`] or [`Broker::stop`], with the same data at the same address.
    #[track_caller]
    pub fn resume(&self) {
        self.ask("resume");
    }

    #[track_caller]
    fn ask(&self, command: &str) {
        must(&format!("{command} the broker"), run(&mut script(command, self.folder.path())));
    }

    /// Makes a topic and waits until it can be written.
    #[track_caller]
    pub fn create_topic(&self, name: &str, partitions: i32) {
        self.create_topic_with(name, partitions, &[]);
    }

    /// Makes a topic with settings of its own, such as `("cleanup.policy", "compact")`.
    #[track_caller]
    pub fn create_topic_with(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        topic.config = settings.to_vec();
        let created = block_on(self.admin.create_topics([&topic], &patient()));
        must(&format!("create topic `{name}`"), each_of(created));
        self.wait_for_partitions(name, partitions);
    }

    /// Removes a topic and waits until it is gone.
    #[track_caller]
    pub fn delete_topic(&self, name: &str) {
        let deleted = block_on(self.admin.delete_topics(&[name], &patient()));
        must(&format!("delete topic `{name}`"), each_of(deleted));
        wait_until(&format!("delete topic `{name}`"), || partitions(self.admin.inner(), name).is_err());
    }

    /// Lets a topic have `total` partitions, more than it has, and waits until they can be written.
    #[track_caller]
    pub fn add_partitions(&self, name: &str, total: i32) {
        let wanted = NewPartitions::new(name, usize::try_from(total).unwrap_or_default());
        let added = block_on(self.admin.create_partitions([&wanted], &patient()));
        must(&format!("add partitions to topic `{name}`"), each_of(added));
        self.wait_for_partitions(name, total);
    }

    #[track_caller]
    fn wait_for_partitions(&self, name: &str, wanted: i32) {
        wait_until(&format!("see {wanted} partitions of topic `{name}`"), || {
            partitions(self.admin.inner(), name).is_ok_and(|found| (0..wanted).eq(found))
        });
    }

    /// Removes the records of a partition that are before `offset`, as the topic's retention would.
    #[track_caller]
    pub fn delete_records_before(&self, topic: &str, partition: i32, offset: i64) {
        let deleted = || {
            let mut before = TopicPartitionList::new();
            before.add_partition_offset(topic, partition, Offset::Offset(offset))?;
            let deleted = block_on(self.admin.delete_records(&before, &patient()))?;
            deleted.elements().iter().try_for_each(|element| element.error())
        };
        must(&format!("delete records of `{topic}`, partition {partition}, before {offset}"), deleted());
    }

    /// What Kafka's own console consumer prints of a topic, committed records only: `Partition:0\tkey\tvalue` a line,
    /// in order within each partition; a null reads `null`. Takes some seconds, since a Java starts, and then waits
    /// three or six of them for more. No code of ours takes part, nor librdkafka.
    #[track_caller]
    pub fn console_consumer(&self, topic: &str) -> Vec<String> {
        let mut consumer = script("console-consumer", self.folder.path());
        consumer.args(["--topic", topic, "--from-beginning", "--isolation-level", "read_committed"]);
        consumer.args(["--timeout-ms", "3000", "--property", "print.partition=true", "--property", "print.key=true"]);
        consumer.args(["--property", "null.literal=null"]);
        let action = format!("read topic `{topic}` with the console consumer");
        let (printed, said) = must(&action, run(&mut consumer));
        let rows: Vec<String> = printed.lines().map(str::to_owned).collect();
        // It always ends by its timeout, and with exit code 0 whatever happened; but it counts.
        let counted = said.contains(&format!("Processed a total of {} messages", rows.len()));
        assert!(counted, "cannot {action}: it printed {} lines and says: {said}", rows.len());
        rows
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Where this fails, the leash does it.
        drop(script("kill", self.folder.path()).output());
    }
}

/// A call of `broker.sh` for the broker in `folder`.
fn script(command: &str, folder: &Path) -> Command {
    let mut script = Command::new("bash");
    script.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kafka/broker.sh")).arg(command).arg(folder);
    script
}

/// What a command printed, and what it said on stderr.
fn run(command: &mut Command) -> Result<(String, String), String> {
    let done = command.output().map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    if !done.status.success() {
        return Err(said);
    }
    Ok((String::from_utf8_lossy(&done.stdout).into_owned(), said))
}

/// A configuration for clients of librdkafka that are quick to find a broker again.
fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "500");
    config
}

fn patient() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE))
}

/// What went wrong with any of several topics.
fn each_of(results: KafkaResult<Vec<TopicResult>>) -> Result<(), String> {
    let results = results.map_err(|e| e.to_string())?;
    results.into_iter().try_for_each(|topic| topic.map(drop).map_err(|(_, code)| code.to_string()))
}

/// The partitions of a topic. An error where there is no such topic, or a partition cannot be used yet.
fn partitions<C: ClientContext>(client: &Client<C>, topic: &str) -> Result<BTreeSet<i32>, String> {
    let metadata = client.fetch_metadata(Some(topic), PATIENCE).map_err(|e| e.to_string())?;
    let found = metadata.topics().first().ok_or("the broker does not answer for it")?;
    match found.error().or_else(|| found.partitions().iter().find_map(|partition| partition.error())) {
        Some(error) => Err(rdkafka::types::RDKafkaErrorCode::from(error).to_string()),
        None => Ok(found.partitions().iter().map(|partition| partition.id()).collect()),
    }
}

#[track_caller]
fn wait_until(action: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "cannot {action} within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[track_caller]
fn must<T>(action: &str, result: Result<T, impl Display>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("cannot {action}: {error}"),
    }
}
