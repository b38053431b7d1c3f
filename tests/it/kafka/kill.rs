//! `kill -9` of the running example `kafka` at random moments, and of its broker at some. In the end Kafka's own
//! consumer finds what must come of the orders, each once: the large ones, what each customer spent in each window, and
//! what is no order; and the archive has the same windows.
//!
//! The orders are the test's own, and come in all the time. None is ever late: those of a round lie within a second, a
//! round begins when the one before is in the topic, and the example waits two seconds for late ones. So whatever part
//! of two rounds a batch reads, it is known what must come of them.
//!
//! A kill may leave a transaction open. Readers of committed records then see nothing of what follows it in its
//! partitions until the next start of the same query has fenced it off, or, without one, `transaction.timeout.ms` has
//! passed. Here the next start comes at once.
//!
//! `TIDEWATER_KAFKA_KILLS=N` says how often the example is killed (8), `TIDEWATER_KAFKA_BROKER_KILLS=N` in how many of
//! these lives the broker is killed before it (1), `TIDEWATER_SEED=S` when (1).

mod orders;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::{DirEntry, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use tidewater::testing::table;
use tidewater_workspace::events::Lcg;
use tidewater_workspace::files::{Format, committed_rows, data_files};
use tidewater_workspace::kafka::{Broker, own_broker, unique_topic};

use self::orders::{Order, Orders, Record, Revenue, quarters, record};

const TOPIC_PARTITIONS: i32 = 8;

/// Between two rounds of orders.
const PAUSE: Duration = Duration::from_millis(20);

/// A process lives for so long at least: long enough to begin with something.
const LIFE_MS_MIN: u64 = 50;

/// How long the broker is down at most, and how long the example may then go on.
const DOWN_MS_MAX: u64 = 1000;
const GO_ON_MS_MAX: u64 = 2000;

const QUERIES: [&str; 3] = ["large", "revenue", "archive"];

/// The example, run again and again in one place.
struct Example {
    dir: PathBuf,
    bootstrap: String,
    topics: String,
}

impl Example {
    /// It is built beside this test.
    fn binary() -> PathBuf {
        let test = std::env::current_exe().unwrap();
        let binary = test.parent().and_then(Path::parent).unwrap().join("examples/kafka");
        assert!(binary.exists(), "{} is not built: cargo build --release --example kafka", binary.display());
        binary
    }

    fn topic(&self, name: &str) -> String {
        format!("{}-{name}", self.topics)
    }

    fn start(&self, more: &[&str]) -> Running {
        let started = Command::new(Self::binary())
            .args(["--bootstrap", self.bootstrap.as_str(), "--topics", self.topics.as_str()])
            .args(["--orders-per-second", "0"])
            .arg("--dir")
            .arg(&self.dir)
            .args(more)
            .stdout(Stdio::null())
            // Not a pipe: nobody reads while it runs.
            .stderr(File::create(self.errors()).unwrap())
            .spawn();
        Running(started.unwrap())
    }

    /// Takes what is there.
    fn finish(&self) {
        let status = self.start(&["--once"]).0.wait().unwrap();
        assert!(status.success(), "kafka --once failed:\n{}", self.said());
    }

    fn errors(&self) -> PathBuf {
        self.dir.join("errors.txt")
    }

    /// What it wrote to standard error.
    fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.errors()).unwrap()).into_owned()
    }

    /// How many batches a query has begun (log `offsets`) or done (log `commits`), by the newest entry.
    fn batches(&self, query: &str, log: &str) -> u64 {
        let number = |entry: std::io::Result<DirEntry>| entry.ok()?.file_name().to_str()?.parse::<u64>().ok();
        match std::fs::read_dir(self.dir.join("checkpoints").join(query).join(log)) {
            Ok(entries) => entries.filter_map(number).max().map_or(0, |newest| newest + 1),
            Err(_) => 0,
        }
    }

    /// By query: how many batches are done.
    fn done(&self) -> [u64; 3] {
        QUERIES.map(|query| self.batches(query, "commits"))
    }

    /// Whether some query has begun a batch that is not done.
    fn is_within_batch(&self) -> bool {
        QUERIES.map(|query| self.batches(query, "offsets")) != self.done()
    }

    /// Whether the windows have gone on since then.
    fn has_committed_since(&self, done: [u64; 3]) -> bool {
        self.batches("revenue", "commits") > done[1]
    }

    /// How long it takes from its start to a commit of windows.
    fn start_up(&self) -> Duration {
        let (started, before) = (Instant::now(), self.done());
        let mut running = self.start(&[]);
        while !self.has_committed_since(before) {
            assert!(running.ended().is_none(), "kafka ended by itself:\n{}", self.said());
            assert!(started.elapsed() < Duration::from_secs(60), "no commit within a minute:\n{}", self.said());
            sleep(Duration::from_millis(1));
        }
        started.elapsed()
    }
}

/// A running example. Dropping it is `kill -9`.
struct Running(Child);

impl Running {
    fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error says that it has ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// What the kills hit.
#[derive(Default)]
struct Hits {
    moments: Vec<String>,
    after_commit: u64,
    within_batch: u64,
    /// What the example said where the broker's end was its own.
    gave_up: Vec<String>,
}

/// Kills the example again and again, and in some of its lives the broker before it.
fn kill_again_and_again(example: &Example, broker: &Broker, kills: u64, broker_kills: u64, random: &mut Lcg) -> Hits {
    // How long a start takes is the machine's; most lives go on beyond it.
    let life_ms = 3 * example.start_up().as_millis() as u64 + 300;
    println!("lives of {LIFE_MS_MIN} to {} ms", LIFE_MS_MIN + life_ms);
    let falls: Vec<u64> = (0..broker_kills).map(|fall| (2 * fall + 1) * kills / (2 * broker_kills)).collect();
    let mut hits = Hits::default();
    for life in 0..kills {
        let life_ms = LIFE_MS_MIN + random.below(life_ms);
        let before = example.done();
        let mut running = example.start(&[]);
        sleep(Duration::from_millis(life_ms));
        let broker_falls = falls.contains(&life);
        if broker_falls {
            broker.kill();
            sleep(Duration::from_millis(random.below(DOWN_MS_MAX)));
            broker.resume();
            sleep(Duration::from_millis(random.below(GO_ON_MS_MAX)));
        }
        if running.ended().is_some() {
            assert!(broker_falls, "kafka ended by itself:\n{}", example.said());
            hits.gave_up.push(example.said());
        }
        drop(running);
        hits.after_commit += u64::from(example.has_committed_since(before));
        hits.within_batch += u64::from(example.is_within_batch());
        let more = if broker_falls { ", and the broker's end" } else { "" };
        hits.moments.push(format!("{life_ms} ms{more} ({:?} batches)", example.done()));
    }
    hits
}

/// Whether both have the same rows, each as often.
#[track_caller]
fn assert_each_once<T: Ord + Debug>(what: &str, expected: &[T], found: &[T]) {
    let mut missing: BTreeMap<&T, i64> = BTreeMap::new();
    expected.iter().for_each(|row| *missing.entry(row).or_default() += 1);
    found.iter().for_each(|row| *missing.entry(row).or_default() -= 1);
    missing.retain(|_, times| *times != 0);
    let some: Vec<_> = missing.iter().take(10).collect();
    assert!(missing.is_empty(), "{what}: {} differ; with how often they are missing: {some:#?}", missing.len());
}

/// The rows of the files that the archive's manifest names.
async fn archived(directory: &Path) -> Vec<Revenue> {
    let columns = [("from", "timestamp"), ("customer", "string"), ("orders", "long"), ("revenue", "double")];
    let mut found = vec![];
    for rows in committed_rows(directory, Format::Parquet, &table::schema(&columns).unwrap()).await.unwrap() {
        let from = rows.column(0).as_primitive::<TimestampMicrosecondType>();
        let customers = rows.column(1).as_string::<i32>();
        let orders = rows.column(2).as_primitive::<Int64Type>();
        let revenue = rows.column(3).as_primitive::<Float64Type>();
        found.extend((0..rows.num_rows()).map(|row| Revenue {
            from_ms: from.value(row) / 1000,
            customer: customers.value(row).to_owned(),
            orders: orders.value(row),
            quarters: quarters(revenue.value(row)),
        }));
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_moments() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().expect(name));
    let (kills, seed) = (number("TIDEWATER_KAFKA_KILLS", 8), number("TIDEWATER_SEED", 1));
    let broker_kills = number("TIDEWATER_KAFKA_BROKER_KILLS", 1).min(kills);
    let Some(broker) = own_broker() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (dir, bootstrap) = (folder.path().to_owned(), broker.bootstrap().to_owned());
    let example = Example { dir, bootstrap, topics: unique_topic("kill") };
    println!("kill -9 of Kafka to Kafka to Parquet, seed {seed}");

    broker.create_topic(&example.topic("orders"), TOPIC_PARTITIONS);
    let mut orders = Orders::new(example.topic("orders"), seed);
    orders.add_round(&broker);
    // The other topics are the example's to make; and Kafka makes some of its own at the first transaction.
    example.finish();

    let (hits, orders) = thread::scope(|scope| {
        let (until, stopped) = mpsc::channel::<()>();
        let broker = &broker;
        let producing = scope.spawn(move || {
            // It ends when the other end is gone, however that came.
            while stopped.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
                orders.add_round(broker);
            }
            orders
        });
        let hits = kill_again_and_again(&example, broker, kills, broker_kills, &mut Lcg::new(seed));
        drop(until);
        (hits, producing.join().unwrap())
    });
    let Hits { moments, after_commit, within_batch, gave_up } = hits;
    println!("{kills} kills of the example: {after_commit} after a commit of windows, {within_batch} within a batch");
    println!("killed after: {}", moments.join(", "));
    println!("{broker_kills} kills of the broker, {} of which the example did not outlive", gave_up.len());
    gave_up.iter().for_each(|said| println!("{said}"));

    orders.end(&broker);
    example.finish();
    // A commit can be read a moment after it was made: this run archives what the one before did not see yet.
    example.finish();

    let (large, revenue) = (orders.large(), orders.revenue());
    let archive = example.dir.join("revenue");
    println!("{}: {} large, {} windows of a customer", orders.told(), large.len(), revenue.len());
    println!("{:?} batches, {} data files of the archive", example.done(), data_files(&archive).len());
    assert!(large.len() > 50 && orders.broken().len() > 10 && revenue.len() > 50, "{}", orders.told());

    let (broker, example) = (&broker, &example);
    let [told_large, told_revenue, dead] = thread::scope(|scope| {
        let read = |name: &'static str| scope.spawn(move || broker.console_consumer(&example.topic(name)));
        ["large", "revenue", "dead-letters"].map(read).map(|reading| reading.join().unwrap())
    });
    let told_large: Vec<Order> = told_large.iter().map(|line| Order::read(line)).collect();
    let told_revenue: Vec<Revenue> = told_revenue.iter().map(|line| Revenue::read(line)).collect();
    let dead: Vec<Record> = dead.iter().map(|line| record(line)).collect();
    assert_each_once("large orders", &large, &told_large);
    assert_each_once("windows", &revenue, &told_revenue);
    assert_each_once("dead letters", orders.broken(), &dead);
    assert_each_once("archived windows", &told_revenue, &archived(&archive).await);
    assert!(after_commit * 4 >= kills, "only {after_commit} of {kills} kills came after a commit of windows");
}
