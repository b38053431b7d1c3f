//! Kafka in and out, against a broker on this machine, which shares its cores with what is measured.
//!
//! - *source*: messages per second of the source into nothing, beside a bare librdkafka consumer that polls the same topic
//!   and only counts; in turn, several rounds.
//! - *latency*: 1,000 records a second through Kafka → window and count by key → Kafka, 8 partitions, from the time a record
//!   was produced to the time a reader of committed records has the row that counts it; exactly once, and at least once.
//! - *sink*: rows per second into Kafka, exactly once and at least once.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::functions_aggregate::expr_fn::{count, max};
use datafusion::prelude::*;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use tidewater::prelude::*;
use tidewater_connectors::formats::{Format, to_json};
use tidewater_connectors::kafka::{KafkaSink, KafkaSource, StartingOffsets};
use tidewater_workspace::kafka::{Broker, own_broker, unique_topic};

use crate::made::Collect;
use crate::quantile;

const PARTITIONS: i32 = 8;
const MESSAGES: usize = 2_000_000;
const MESSAGE_BYTES: usize = 100;
const ROUNDS: usize = 5;
const ROWS_PER_SECOND: u64 = 1_000;
const KEYS: u64 = 1_000;
const WARM_UP_S: u64 = 10;

type Failure = Box<dyn std::error::Error>;

/// Runs the parts whose names are among `parts`, or all.
pub(crate) async fn run(parts: &[String]) -> Result<(), Failure> {
    let chosen = |name: &str| {
        let named = |part: &String| ["source", "sink", "latency"].contains(&part.as_str());
        !parts.iter().any(named) || parts.iter().any(|part| part == name)
    };
    let broker = own_broker().ok_or("there is no broker to measure")?;
    if chosen("source") {
        source(&broker).await?;
    }
    if chosen("sink") {
        sink(&broker).await?;
    }
    if chosen("latency") {
        for at_least_once in [false, true] {
            latency(&broker, Job::Windows, at_least_once).await?;
            latency(&broker, Job::Stateless, at_least_once).await?;
        }
    }
    Ok(())
}

/// How long one job's latency is measured, in seconds.
fn measured_s() -> u64 {
    std::env::var("TIDEWATER_LATENCY_S").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

fn producer(broker: &Broker) -> Result<BaseProducer, Failure> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", broker.bootstrap())
        .set("queue.buffering.max.messages", "1000000")
        .set("linger.ms", "1")
        .create()?)
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as i64)
}

fn fill(broker: &Broker, topic: &str, messages: usize) -> Result<(), Failure> {
    let producer = producer(broker)?;
    let body = vec![b'x'; MESSAGE_BYTES];
    for message in 0..messages {
        let key = (message as u64).to_be_bytes();
        let mut record = BaseRecord::to(topic).key(&key).payload(&body).partition(message as i32 % PARTITIONS);
        while let Err((_, back)) = producer.send(record) {
            producer.poll(Duration::from_millis(1));
            record = back;
        }
    }
    producer.flush(Duration::from_secs(60))?;
    Ok(())
}

async fn source(broker: &Broker) -> Result<(), Failure> {
    let topic = unique_topic("bench");
    broker.create_topic(&topic, PARTITIONS);
    fill(broker, &topic, MESSAGES)?;
    println!(
        "source: {MESSAGES} messages of {MESSAGE_BYTES} bytes in {PARTITIONS} partitions, million messages per second, \
         median of {ROUNDS} rounds (least to most)"
    );
    let (mut bare, mut all, mut value) = (vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        bare.push(bare_loop(broker, &topic)?);
        all.push(through_engine(broker, &topic, None).await?);
        value.push(through_engine(broker, &topic, Some("value")).await?);
    }
    let median = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        (quantile(rates, 0.5), quantile(rates, 0.0), quantile(rates, 1.0))
    };
    let bare = median(&mut bare);
    for (name, mut rates) in [("all columns", all), ("value only", value)] {
        let (mid, least, most) = median(&mut rates);
        println!("  Tidewater, {name:<12} {mid:.3} ({least:.3} to {most:.3}), {:.2} of the bare loop", mid / bare.0);
    }
    println!("  bare librdkafka loop    {:.3} ({:.3} to {:.3})", bare.0, bare.1, bare.2);
    Ok(())
}

/// Polls and counts, as in librdkafka's own examples.
fn bare_loop(broker: &Broker, topic: &str) -> Result<f64, Failure> {
    let started = Instant::now();
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", broker.bootstrap())
        .set("group.id", "bare")
        .set("enable.auto.commit", "false")
        .create()?;
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    let mut bytes = 0;
    for _ in 0..MESSAGES {
        let message = consumer.poll(Duration::from_secs(30)).ok_or("the topic has too few messages")??;
        bytes += message.payload_len();
    }
    assert_eq!(bytes, MESSAGES * MESSAGE_BYTES);
    Ok(MESSAGES as f64 / started.elapsed().as_secs_f64() / 1e6)
}

async fn through_engine(broker: &Broker, topic: &str, column: Option<&str>) -> Result<f64, Failure> {
    let started = Instant::now();
    let source = KafkaSource::subscribe(broker.bootstrap(), [topic]).starting_offsets(StartingOffsets::Earliest);
    let mut stream = SessionContext::new().read_stream(source)?;
    if let Some(column) = column {
        stream = stream.select_columns(&[column])?;
    }
    let query = stream.write_stream(DiscardSink::new()).trigger(Trigger::AvailableNow).start().await?;
    query.await_termination().await?;
    let rows: u64 = query.recent_progress().iter().map(|batch| batch.num_input_rows).sum();
    assert_eq!(rows, MESSAGES as u64);
    Ok(MESSAGES as f64 / started.elapsed().as_secs_f64() / 1e6)
}

async fn sink(broker: &Broker) -> Result<(), Failure> {
    let topic = unique_topic("bench-in");
    broker.create_topic(&topic, PARTITIONS);
    fill(broker, &topic, MESSAGES / 2)?;
    println!("sink: {} rows from Kafka to Kafka, batches of 100,000, thousand rows per second", MESSAGES / 2);
    for round in 0..3 {
        for at_least_once in [false, true] {
            let out = unique_topic("bench-out");
            broker.create_topic(&out, PARTITIONS);
            let folder = tempfile::tempdir()?;
            let started = Instant::now();
            let source = KafkaSource::subscribe(broker.bootstrap(), [topic.as_str()])
                .starting_offsets(StartingOffsets::Earliest)
                .max_offsets_per_trigger(100_000);
            let stream = SessionContext::new().read_stream(source)?.select_columns(&["key", "value"])?;
            let sink = KafkaSink::new(broker.bootstrap()).topic(&out);
            let sink = if at_least_once { sink.at_least_once() } else { sink };
            let query = stream
                .write_stream(sink)
                .trigger(Trigger::AvailableNow)
                .checkpoint(folder.path().display().to_string())
                .start()
                .await?;
            query.await_termination().await?;
            let rate = MESSAGES as f64 / 2.0 / started.elapsed().as_secs_f64() / 1e3;
            println!("  round {round}, {:<13} {rate:.0}", query.guarantee().to_string());
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Job {
    /// Windows of a minute, counted by key, update mode.
    Windows,
    /// A projection.
    Stateless,
}

/// One record's way through. The value is the time it was produced, in milliseconds since 1970.
async fn latency(broker: &Broker, job: Job, at_least_once: bool) -> Result<(), Failure> {
    let (from, to) = (unique_topic("latency-in"), unique_topic("latency-out"));
    broker.create_topic(&from, PARTITIONS);
    broker.create_topic(&to, PARTITIONS);
    let folder = tempfile::tempdir()?;
    let progress = Arc::new(Collect::default());
    let query = start(broker, job, at_least_once, [&from, &to], folder.path(), &progress).await?;

    let over = Arc::new(AtomicBool::new(false));
    let reader = {
        let (bootstrap, to, over) = (broker.bootstrap().to_owned(), to.clone(), Arc::clone(&over));
        std::thread::spawn(move || read(&bootstrap, &to, &over).map_err(|e| e.to_string()))
    };
    let source = producer(broker)?;
    let started = Instant::now();
    for record in 0..ROWS_PER_SECOND * (WARM_UP_S + measured_s()) {
        let due = Duration::from_micros(record * 1_000_000 / ROWS_PER_SECOND);
        while let Some(left) = due.checked_sub(started.elapsed()).filter(|left| !left.is_zero()) {
            source.poll(Duration::ZERO);
            std::thread::sleep(left.min(Duration::from_millis(1)));
        }
        let key = format!("key-{}", record % KEYS);
        let value = format!("{{\"at\":{}}}", now_ms());
        source.send(BaseRecord::to(&from).key(&key).payload(&value)).map_err(|(e, _)| e)?;
    }
    source.flush(Duration::from_secs(10))?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    over.store(true, Ordering::Release);
    let seen = reader.join().map_err(|_| "the reader panicked")??;
    query.stop().await?;

    let begin_ms = seen.first().map_or(0, |(at, _)| *at) + WARM_UP_S as i64 * 1000;
    let mut ms: Vec<f64> = seen.iter().filter(|(at, _)| *at >= begin_ms).map(|(_, late)| *late as f64).collect();
    ms.sort_by(f64::total_cmp);
    let batches = progress.take();
    let mut batch_ms: Vec<f64> =
        batches.iter().filter_map(|batch| batch.duration_ms.get("triggerExecution").copied()).collect();
    batch_ms.sort_by(f64::total_cmp);
    let name = if job == Job::Windows { "windows" } else { "stateless" };
    println!(
        "latency, {name}, {}: p50 {:.0} p90 {:.0} p99 {:.0} max {:.0} ms ({} rows); {} batches, {:.1} ms each at the median",
        query.guarantee(),
        quantile(&ms, 0.5),
        quantile(&ms, 0.9),
        quantile(&ms, 0.99),
        quantile(&ms, 1.0),
        ms.len(),
        batches.len(),
        quantile(&batch_ms, 0.5)
    );
    let mut phases: std::collections::BTreeMap<&str, Vec<f64>> = Default::default();
    for batch in &batches {
        for (phase, ms) in &batch.duration_ms {
            phases.entry(phase).or_default().push(*ms);
        }
    }
    let phases: Vec<String> = phases
        .into_iter()
        .map(|(phase, mut ms)| {
            ms.sort_by(f64::total_cmp);
            format!("{phase} {:.2}", quantile(&ms, 0.5))
        })
        .collect();
    println!("  medians: {}", phases.join(", "));
    Ok(())
}

async fn start(
    broker: &Broker,
    job: Job,
    at_least_once: bool,
    [from, to]: [&str; 2],
    folder: &Path,
    progress: &Arc<Collect>,
) -> Result<StreamingQuery, Failure> {
    let at = Field::new("at", DataType::Int64, true);
    let source = KafkaSource::subscribe(broker.bootstrap(), [from])
        .starting_offsets(StartingOffsets::Earliest)
        .value_format(Format::json(vec![at]));
    let records = SessionContext::new().read_stream(source)?.select(vec![
        col("key"),
        col("timestamp"),
        get_field(col("value"), "at").alias("at"),
    ])?;
    let value = to_json(named_struct(vec![lit("at"), col("at")])).alias("value");
    let rows = match job {
        Job::Windows => records
            .with_watermark("timestamp", "10 seconds")?
            .aggregate(
                vec![window(col("timestamp"), "1 minute").alias("window"), col("key")],
                vec![count(lit(1)).alias("rows"), max(col("at")).alias("at")],
            )?
            .select(vec![col("key"), value])?,
        Job::Stateless => records.select(vec![col("key"), value])?,
    };
    let sink = KafkaSink::new(broker.bootstrap()).topic(to);
    let sink = if at_least_once { sink.at_least_once() } else { sink };
    Ok(rows
        .write_stream(sink)
        .output_mode(OutputMode::Update)
        .checkpoint(folder.display().to_string())
        .listener(Arc::clone(progress) as Arc<dyn QueryListener>)
        .start()
        .await?)
}

/// When each row was produced, and how many milliseconds later it was seen.
fn read(bootstrap: &str, topic: &str, over: &AtomicBool) -> Result<Vec<(i64, i64)>, Failure> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "latency")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .create()?;
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    let mut seen = vec![];
    while !over.load(Ordering::Acquire) {
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message?;
        let text = std::str::from_utf8(message.payload().unwrap_or_default())?;
        let at = serde_json::from_str::<serde_json::Value>(text)?["at"].as_i64().ok_or("no time")?;
        seen.push((at, now_ms() - at));
    }
    Ok(seen)
}
