//! Kafka to Kafka to Parquet, exactly once, given a broker:
//!
//! ```text
//! rate ─▶ tidewater-orders ─┬─▶ large    ─▶ tidewater-large              (keeps nothing)
//!                           ├─▶ revenue  ─▶ tidewater-revenue            (keeps open windows, emits each once)
//!                           │                       └─▶ archive ─▶ Parquet
//!                           └─▶ what is no order ─▶ tidewater-dead-letters, in the same commit as `revenue`
//!
//! cargo run --release --example kafka -- --bootstrap localhost:9092
//! ```
//!
//! Topics that are missing are made. Kill it at any moment and start it again with the same `--dir`: a reader of
//! committed records (`isolation.level=read_committed`) sees every large order and every window once.
//!
//! `pipeline.rs` is what happens to orders; here are the flags and the life of the queries.

mod pipeline;

use std::fmt::Display;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use datafusion::prelude::*;
use futures::future::{join_all, try_join_all};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::types::RDKafkaErrorCode;
use tidewater::prelude::*;
use tidewater_connectors::file::FileSink;
use tidewater_connectors::formats::Format;
use tidewater_connectors::kafka::{BadRecordPolicy, KafkaSink, KafkaSource, StartingOffsets};
use tidewater_connectors::rate::RateSource;

use self::pipeline::{fields_of_value, large, made_up, order_fields, revenue, revenue_fields};

/// How long the broker may take to answer when the example starts.
const PATIENCE: Duration = Duration::from_secs(10);

/// Orders through Kafka, exactly once: large ones to a topic, revenue by window to a topic and from there to Parquet.
#[derive(Parser)]
struct Args {
    /// Where the Kafka broker is
    #[arg(long, value_name = "HOST:PORT", default_value = "localhost:9092")]
    bootstrap: String,
    /// Where checkpoints and Parquet files go
    #[arg(long, value_name = "DIR", default_value = "kafka-out")]
    dir: String,
    /// What the names of the topics begin with
    #[arg(long, value_name = "NAME", default_value = "tidewater")]
    topics: String,
    /// Into how many partitions topics that are missing are cut
    #[arg(long, value_name = "N", default_value_t = 8)]
    topic_partitions: i32,
    /// How many orders a second are made up; 0 to leave that to others
    #[arg(long, value_name = "N", default_value_t = 1000)]
    orders_per_second: u64,
    /// Stop after so many seconds; without it, run until Ctrl-C
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
    /// Take the orders that are there, and end
    #[arg(long, conflicts_with = "seconds")]
    once: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match run(&Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kafka: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Args {
    fn topic(&self, name: &str) -> String {
        format!("{}-{name}", self.topics)
    }

    fn source(&self, topic: &str) -> KafkaSource {
        KafkaSource::subscribe(&self.bootstrap, [self.topic(topic)]).starting_offsets(StartingOffsets::Earliest)
    }

    /// Orders, and what to do with what is none.
    fn orders(&self, bad: BadRecordPolicy) -> KafkaSource {
        self.source("orders").value_format(Format::json(order_fields())).bad_records(bad)
    }

    fn sink(&self, topic: &str) -> KafkaSink {
        KafkaSink::new(&self.bootstrap).topic(self.topic(topic))
    }

    async fn start(&self, writer: StreamWriter, name: &str) -> Result<StreamingQuery> {
        let trigger = if self.once { Trigger::AvailableNow } else { Trigger::default() };
        writer.name(name).trigger(trigger).checkpoint(format!("{}/checkpoints/{name}", self.dir)).start().await
    }
}

async fn run(args: &Args) -> Result<()> {
    make_topics(args).await?;
    let ctx = SessionContext::new();
    let mut queries = vec![];

    if args.orders_per_second > 0 && !args.once {
        let rate = ctx.read_stream(RateSource::new(args.orders_per_second))?;
        queries.push(args.start(made_up(rate)?.write_stream(args.sink("orders")), "orders").await?);
    }

    // Its bad orders are emitted by `revenue` already; here they become null, and the filter drops them.
    let orders = ctx.read_stream(args.orders(BadRecordPolicy::Null))?;
    queries.push(args.start(large(orders)?.write_stream(args.sink("large")), "large").await?);

    let orders = ctx.read_stream(args.orders(BadRecordPolicy::DeadLetter))?;
    let writer = revenue(orders)?.write_stream(args.sink("revenue")).dead_letters(args.sink("dead-letters"));
    let spent = args.start(writer, "revenue").await?;
    if args.once {
        // The archive takes what can be read when it starts. That may be all but the very last: a commit is visible a
        // moment after it was made.
        spent.await_termination().await?;
    }
    queries.push(spent);

    let records = ctx.read_stream(args.source("revenue").value_format(Format::json(revenue_fields())))?;
    let archive = fields_of_value(records, &revenue_fields())?;
    let sink = FileSink::parquet(format!("{}/revenue", args.dir));
    queries.push(args.start(archive.write_stream(sink), "archive").await?);

    for query in &queries {
        eprintln!("{}: running, {}", query.name().unwrap_or_default(), query.guarantee());
    }
    let ended = tokio::select! {
        ended = try_join_all(queries.iter().map(StreamingQuery::await_termination)) => ended.map(|_| ()),
        () = asked_to_stop(args.seconds) => Ok(()),
    };
    let stopped = join_all(queries.iter().map(StreamingQuery::stop)).await;
    for query in &queries {
        tell(query);
    }
    ended?;
    stopped.into_iter().collect()
}

fn tell(query: &StreamingQuery) {
    let batches = query.recent_progress();
    let (rows_in, rows_out) = batches.iter().fold((0, 0), |(rows_in, rows_out), batch| {
        (rows_in + batch.num_input_rows, rows_out + batch.sink.num_output_rows)
    });
    let median_ms = {
        let mut ms: Vec<i64> = batches.iter().map(|batch| batch.batch_duration).collect();
        ms.sort_unstable();
        ms.get(ms.len() / 2).copied().unwrap_or_default()
    };
    let dead_of = |batch: &QueryProgress| batch.sink.metrics.get("deadLetterRows")?.parse::<u64>().ok();
    let dead: u64 = batches.iter().filter_map(|batch| dead_of(batch)).sum();
    let dead = if dead > 0 { format!(", {dead} dead letters") } else { String::new() };
    eprintln!(
        "{:<8} last {} batches: {rows_in} rows in, {rows_out} rows out{dead}; median {median_ms} ms per batch",
        query.name().unwrap_or_default(),
        batches.len()
    );
}

async fn asked_to_stop(seconds: Option<u64>) {
    let timer = async {
        match seconds {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = timer => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

async fn make_topics(args: &Args) -> Result<()> {
    let unavailable = |what: &str, why: &dyn Display| {
        Error::new(ErrorKind::Unavailable, format!("cannot {what} at {}: {why}", args.bootstrap))
            .with_hint("start a broker, or name another one with `--bootstrap`")
    };
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", &args.bootstrap)
        .create()
        .map_err(|e| unavailable("ask for topics", &e))?;
    let names = ["orders", "large", "revenue", "dead-letters"].map(|name| args.topic(name));
    let topics = names.each_ref().map(|name| NewTopic::new(name, args.topic_partitions, TopicReplication::Fixed(1)));
    let options = AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE));
    let made = admin.create_topics(&topics, &options).await.map_err(|e| unavailable("make topics", &e))?;
    for outcome in made {
        if let Err((topic, code)) = outcome
            && code != RDKafkaErrorCode::TopicAlreadyExists
        {
            return Err(unavailable(&format!("make topic `{topic}`"), &code));
        }
    }
    // A topic that was made is known a moment later.
    for name in &names {
        let known = || match admin.inner().fetch_metadata(Some(name.as_str()), PATIENCE) {
            Ok(metadata) => Ok(metadata.topics().iter().any(|topic| !topic.partitions().is_empty())),
            Err(e) => Err(unavailable(&format!("ask for topic `{name}`"), &e)),
        };
        while !known()? {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(())
}
