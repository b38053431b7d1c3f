//! Topics as a stream.
//!
//! ```text
//! discover   asks the broker: which topics and partitions, from where, up to where
//! identity   what offsets are offsets of: the ids of topics
//! limit      how much of that one batch takes                                   (pure)
//! split      who reads which piece of it                                        (pure)
//! reader     fixes the offsets of each batch and splits them
//! scanner    where tasks run: plans over splits
//! consumers  kept there from batch to batch, with what they fetched ahead
//! fetcher    one librdkafka consumer, which fetches ahead
//! read_ahead how far                                                            (pure)
//! consume    takes messages out of librdkafka's queues                          (unsafe code)
//! columns    messages become Arrow columns
//! scan       one piece after the other, as a stream of record batches
//! begin      where a new query begins
//! initial    where it began, in its checkpoint
//! ```
//!
//! librdkafka goes on fetching what comes next while a batch is worked on, so the next batch finds its messages in memory.
//! What it may hold is on account of the session's memory pool, and so are the rows of a record batch while it grows and
//! until the next is asked for.

mod begin;
mod columns;
mod consume;
mod consumers;
mod discover;
mod fetcher;
mod identity;
mod initial;
mod limit;
mod read_ahead;
mod reader;
mod scan;
mod scanner;
mod settings;
mod split;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use async_trait::async_trait;
use tidewater::error::Result;
use tidewater::identity::Identity;
use tidewater::interval::Interval;
use tidewater::source::{MicroBatchStream, ScanContext, Source, SourceContext, SourceScanner};

use self::reader::KafkaReader;
use self::scanner::KafkaScanner;
pub use self::settings::{BadRecordPolicy, StartingOffsets};
use self::settings::{Settings, Topics};
use super::client::ClientSettings;
use crate::formats::Format;

/// Records of one or more topics.
///
/// | Column | Type | |
/// |---|---|---|
/// | `key` | Binary | or what [`key_format`](Self::key_format) makes of it |
/// | `value` | Binary | or what [`value_format`](Self::value_format) makes of it |
/// | `topic` | Utf8 | |
/// | `partition` | Int32 | |
/// | `offset` | Int64 | |
/// | `timestamp` | Timestamp (µs, UTC) | null if the record has none |
/// | `timestampType` | Int32 | 0: the producer's time, 1: the broker's |
/// | `headers` | List of Struct (`key` Utf8, `value` Binary) | only with [`include_headers`](Self::include_headers) |
///
/// All columns are nullable, as in Spark. A partition is read in order; what a query does not repartition leaves a Kafka sink
/// in the order it came.
///
/// Unlike Spark, records of transactions that are open or were aborted are not read; the property `isolation.level`
/// changes that.
///
/// Options by name are Spark's: `kafka.bootstrap.servers`; one of `subscribe`, `subscribePattern`, `assign`;
/// `startingOffsets`, `startingTimestamp`, `startingOffsetsByTimestamp`, `startingOffsetsByTimestampStrategy`,
/// `maxOffsetsPerTrigger`, `minOffsetsPerTrigger`, `maxTriggerDelay`, `minPartitions`, `maxRecordsPerPartition`,
/// `failOnDataLoss`, `kafkaConsumer.pollTimeoutMs`, `includeHeaders`, and `kafka.*` for properties of librdkafka. Ours:
/// `commitOffsetsToGroup`, `badRecords`, `topicsMoved`.
///
/// # What is read once
///
/// An offset counts in one topic only. A topic that is deleted and made again under its name is another one, and Kafka
/// gives it another id; the ids lie beside the offsets in the checkpoint, and are asked for before each batch and after its
/// last record. The query fails then, stopped or running, or begins the new topic at its beginning (see
/// [`fail_on_data_loss`](Self::fail_on_data_loss)). What cannot be known: brokers before 2.8 and some that only speak Kafka's
/// protocol give no ids, checkpoints of Spark and of older releases hold none (the first id that is seen counts), and a
/// topic that lost its end in an unclean election and has grown again keeps its id: a query that runs finds out by leader
/// epochs, one that was stopped meanwhile does not. Where a query was stopped by a
/// `LIMIT` in the middle of a batch, a topic that was made again during that batch is found out with the next.
///
/// # A broker that does not answer
///
/// Nobody knows then what there is. A query that ends by itself waits 15 seconds and fails; any other waits for
/// `kafkaConsumer.pollTimeoutMs`, 2 minutes, says in its status what it waits for and since when, and then fails.
///
/// ```no_run
/// use datafusion::prelude::*;
/// use tidewater::prelude::*;
/// use tidewater_connectors::kafka::{KafkaSink, KafkaSource, StartingOffsets};
///
/// # async fn doc() -> Result<()> {
/// let ctx = SessionContext::new();
/// let orders = KafkaSource::subscribe("localhost:9092", ["orders"]).starting_offsets(StartingOffsets::Earliest);
/// let query = ctx
///     .read_stream(orders)?
///     .select_columns(&["key", "value"])?
///     .write_stream(KafkaSink::new("localhost:9092").topic("copy"))
///     .checkpoint("checkpoint/copy")
///     .start()
///     .await?;
/// query.await_termination().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct KafkaSource {
    settings: Settings,
}

impl KafkaSource {
    /// All partitions of these topics, those that are added later too.
    pub fn subscribe(bootstrap: impl Into<String>, topics: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::of(bootstrap, Topics::Subscribe(topics.into_iter().map(Into::into).collect()))
    }

    /// All partitions of all topics whose whole name matches this regular expression, those that are created later too.
    pub fn subscribe_pattern(bootstrap: impl Into<String>, pattern: impl Into<String>) -> Self {
        Self::of(bootstrap, Topics::Pattern(pattern.into()))
    }

    /// These partitions of these topics.
    pub fn assign(
        bootstrap: impl Into<String>,
        partitions: impl IntoIterator<Item = (impl Into<String>, i32)>,
    ) -> Self {
        let mut topics: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
        for (topic, partition) in partitions {
            topics.entry(topic.into()).or_default().insert(partition);
        }
        Self::of(bootstrap, Topics::Assign(topics))
    }

    /// A source by options alone.
    ///
    /// # Errors
    ///
    /// If an option is unknown, missing or makes no sense on a stream.
    pub fn from_options(options: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        Ok(KafkaSource { settings: Settings::from_options(options)? })
    }

    fn of(bootstrap: impl Into<String>, topics: Topics) -> Self {
        KafkaSource { settings: Settings::new(ClientSettings::new(bootstrap), topics) }
    }

    /// Where a new query begins. Default: with what comes after its start. A query that goes on takes its checkpoint's word;
    /// partitions found later are read from their beginning.
    #[must_use]
    pub fn starting_offsets(mut self, offsets: StartingOffsets) -> Self {
        self.settings.starting = offsets;
        self
    }

    /// At most so many offsets a batch, over all partitions: each has its share of the backlog.
    #[must_use]
    pub fn max_offsets_per_trigger(mut self, offsets: u64) -> Self {
        self.settings.max_offsets = Some(offsets.max(1));
        self
    }

    /// A batch waits until there are so many offsets, or `max_delay` has passed since the batch before.
    #[must_use]
    pub fn min_offsets_per_trigger(mut self, offsets: u64, max_delay: impl Into<Interval>) -> Self {
        self.settings.min_offsets = Some(offsets.max(1));
        self.settings.max_trigger_delay = max_delay.into();
        self
    }

    /// Cuts the partitions of a batch into at least so many pieces. Without it, they are cut where a batch is large and there
    /// are fewer partitions than the query has.
    #[must_use]
    pub fn min_partitions(mut self, pieces: usize) -> Self {
        self.settings.min_partitions = Some(pieces.max(1));
        self
    }

    /// Whether the query fails when records are gone before it read them: expired, truncated, their topic deleted. Default
    /// true. If false, it says so in the log and in the metric `lostOffsets`, and goes on with what there is: with the first
    /// record that is left; from the beginning of a partition that ends before what was read, for its topic was made again
    /// (or, after an unclean election, cut: then records come twice); from the beginning of a topic that was missing for
    /// some seconds, and is there again.
    #[must_use]
    pub fn fail_on_data_loss(mut self, fail: bool) -> Self {
        self.settings.fail_on_data_loss = fail;
        self
    }

    /// Takes the topics for the same though their ids are others, and goes on at its old offsets: for topics that were moved
    /// to another cluster with their offsets, or restored. Needed for the one start that finds them moved; leave it out
    /// after that, or a topic that is deleted and made again is not found out. Default false.
    #[must_use]
    pub fn topics_moved(mut self, moved: bool) -> Self {
        self.settings.topics_moved = moved;
        self
    }

    /// Adds the column `headers`.
    #[must_use]
    pub fn include_headers(mut self) -> Self {
        self.settings.include_headers = true;
        self
    }

    /// Also commits to Kafka how far the query is: what is committed is committed for this consumer group, for tools
    /// that show lag. Nothing that counts is ever read back from there. A group is never turned back, so give each
    /// query one of its own.
    #[must_use]
    pub fn commit_offsets_to_group(mut self, group: impl Into<String>) -> Self {
        self.settings.commit_group = Some(group.into());
        self
    }

    /// Reads keys in this format.
    #[must_use]
    pub fn key_format(mut self, format: Format) -> Self {
        self.settings.key_format = Some(format);
        self
    }

    /// Reads values in this format: the column `value` is a struct of the format's fields.
    #[must_use]
    pub fn value_format(mut self, format: Format) -> Self {
        self.settings.value_format = Some(format);
        self
    }

    /// Sets the policy for a record that is not in the declared format. Default: fail, naming topic, partition and
    /// offset.
    #[must_use]
    pub fn bad_records(mut self, treatment: BadRecordPolicy) -> Self {
        self.settings.bad_records = treatment;
        self
    }

    /// Sets a property of librdkafka, such as `sasl.username`.
    #[must_use]
    pub fn property(mut self, name: &str, value: &str) -> Self {
        self.settings.client.set(name, value);
        self
    }
}

#[async_trait]
impl Source for KafkaSource {
    fn description(&self) -> String {
        self.settings.description()
    }

    fn identity(&self) -> Option<Identity> {
        Some(self.settings.topics.identity())
    }

    fn reads_from(&self, sink: &Identity) -> Result<bool> {
        // That may be meant, with a condition that ends it; or the sink writes to another cluster.
        if sink.kind() == "kafka" && sink.place().is_some_and(|topic| self.settings.topics.have(topic)) {
            tracing::warn!(
                topic = sink.place(),
                "the query writes to a topic of the name that it reads: on one cluster, \
                it reads its own output"
            );
        }
        Ok(false)
    }

    fn schema(&self) -> SchemaRef {
        schema(&self.settings)
    }

    fn emits_dead_letters(&self) -> bool {
        self.settings.sends_dead_letters()
    }

    async fn open(&self, context: SourceContext) -> Result<Box<dyn MicroBatchStream>> {
        Ok(Box::new(KafkaReader::open(self.settings.clone(), context).await?))
    }

    fn scanner(&self, context: ScanContext) -> Result<Option<Arc<dyn SourceScanner>>> {
        Ok(Some(Arc::new(KafkaScanner::new(self.settings.clone(), &context.session.runtime_env().memory_pool))))
    }
}

/// The columns of a source with these settings.
fn schema(settings: &Settings) -> SchemaRef {
    let of = |format: &Option<Format>| format.as_ref().map_or(DataType::Binary, |format| format.data_type().clone());
    let mut fields = vec![
        Field::new("key", of(&settings.key_format), true),
        Field::new("value", of(&settings.value_format), true),
        Field::new("topic", DataType::Utf8, true),
        Field::new("partition", DataType::Int32, true),
        Field::new("offset", DataType::Int64, true),
        Field::new("timestamp", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("timestampType", DataType::Int32, true),
    ];
    if settings.include_headers {
        fields.push(Field::new("headers", columns::headers_type(), true));
    }
    Arc::new(Schema::new(fields))
}
