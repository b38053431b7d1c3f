//! Rows into topics, each batch once.
//!
//! ```text
//! open        take over from earlier runs (init_transactions), read the marker, decide where to go on
//! begin(N)    is the marker above N? then the batch is taken; else a transaction begins
//! rows        those of partition 0 go out at once, the others are kept
//! commit(N)   the kept rows, then the marker N + 1, then the commit of the transaction: all of it, or nothing
//! ```
//!
//! | Room | |
//! |---|---|
//! | `record` | which columns are the parts of a record |
//! | `properties` | the properties that librdkafka gets, and those that a user may not set (pure) |
//! | `producer` | librdkafka's producer: rows, the transaction, what went wrong |
//! | `marker` | where Kafka remembers the batches it has taken, and what follows from it |
//! | `writer` | batches become transactions |
//!
//! What can go wrong, beside a cluster that is away:
//!
//! - *Two runs of one query.* A transactional id has one producer: the run that starts later takes over. The earlier
//!   run's next request fails as fenced, and readers see none of its batch. Two queries never share an id, so they may
//!   write to one topic.
//! - *A forgotten marker.* The cluster forgets offsets that were not committed for `offsets.retention.minutes`, seven
//!   days unless configured otherwise. A run that goes on after a batch that is known to be committed writes the marker
//!   again. A run that finds a batch in doubt and no marker refuses: see `marker`. Batches without rows renew it, and
//!   so does a start.
//! - *A batch that takes too long.* Kafka aborts a transaction `transaction.timeout.ms` after its first row; the batch
//!   fails, and says so. The time runs while the plan does, because partition 0 sends at once.
//! - *A process that dies* and is not started again leaves its transaction open as long, and readers of committed
//!   records wait at its first row. A run that ends aborts it; a run that starts settles it.
//! - *Rights.* The user needs, beside `WRITE` on the topics: `WRITE` and `DESCRIBE` on the transactional id, `READ` on
//!   the marker's topic and on its group. Both are named `tidewater-<query>-<sink>`; a prefix ACL on `tidewater-` is
//!   enough. Since `open` commits the marker, what is missing is found before anything is read.

mod marker;
mod producer;
mod properties;
mod record;
mod writer;

use async_trait::async_trait;
use tidewater::error::{Error, Result};
use tidewater::identity::Identity;
use tidewater::query::OutputMode;
use tidewater::sink::{Guarantee, Sink, SinkContext, StreamingWrite};

use self::producer::check_topic_name;
use self::properties::Timeouts;
use self::record::Columns;
use self::writer::KafkaWriter;
use super::client::ClientSettings;
use crate::options::Options;

const SINK_NAME: &str = "the Kafka sink";
const KNOWN_OPTIONS: &[&str] = &["topic", "markerTopic", "guarantee", "includeHeaders"];
/// How names of librdkafka's properties begin among options.
const PREFIX: &str = "kafka.";
const BOOTSTRAP: &str = "bootstrap.servers";

/// Writes rows to Kafka, and takes every batch exactly once: readers of committed records
/// (`isolation.level=read_committed`) see each row once, whatever crashed.
///
/// | Column | Type | |
/// |---|---|---|
/// | `value` | text or bytes | required; null is a tombstone |
/// | `key` | text or bytes | |
/// | `headers` | list of structs of `key` (text) and `value` (bytes or text) | |
/// | `topic` | text | required unless [`topic`](Self::topic) names one for all rows, which then counts |
/// | `partition` | 32-bit integer | where it is missing or null, the key decides, as in Java's producers |
///
/// Other columns are not sent. In a query that does not repartition, rows for one partition keep the order in which
/// they were read. All output modes are taken; in complete mode every batch writes all rows again, as in Spark.
///
/// ```
/// use tidewater_connectors::kafka::KafkaSink;
///
/// let sink = KafkaSink::new("localhost:9092").topic("totals").property("compression.type", "zstd");
/// ```
///
/// # Exactly once
///
/// The rows of a batch go out in one transaction, with a marker beside them: the offset of a consumer group that has no
/// members, `tidewater-<query>-output`, for partition 0 of the topic. After a crash the marker says whether the batch
/// is there. What to know:
///
/// - The user needs `WRITE` on the topics, `WRITE` and `DESCRIBE` on the transactional id, and `READ` on the marker's
///   topic and group; id and group are named alike.
/// - One run of a query writes at a time: one that starts later takes over, and the earlier one fails as fenced.
/// - A cluster forgets the marker seven days after the last batch, unless it is configured otherwise
///   (`offsets.retention.minutes`). Only if a run died in the middle of a batch and is started again later than that,
///   the query refuses to go on.
/// - A batch may take `transaction.timeout.ms` from its first row to its end: 5 minutes, unless the property is set;
///   clusters allow 15, unless they are configured otherwise. If a process dies, readers of committed records wait at its
///   rows until it is started again, or for as long.
/// - `message.timeout.ms`, 2 minutes, is how long the cluster may take to take a row, or to answer.
///
/// Its writers stay with the driver: a transaction has one producer.
///
/// # Options by name
///
/// Spark's: `kafka.bootstrap.servers`, `topic`, `includeHeaders` (default true), and `kafka.*` for properties of
/// librdkafka. Ours: `markerTopic`, `guarantee` (`exactly-once`, the default, or `at-least-once`).
#[derive(Debug, Clone)]
pub struct KafkaSink {
    client: ClientSettings,
    topic: Option<String>,
    marker_topic: Option<String>,
    guarantee: Guarantee,
    headers: bool,
}

/// What is needed to open it, free of contradictions.
struct Checked {
    /// For messages.
    description: String,
    client: ClientSettings,
    guarantee: Guarantee,
    /// Of all rows, if it is one.
    topic: Option<String>,
    /// Exactly once: always there.
    marker_topic: Option<String>,
}

impl KafkaSink {
    /// Writes to the cluster that these servers belong to: `host:port`, with commas between.
    pub fn new(bootstrap: impl Into<String>) -> Self {
        KafkaSink {
            client: ClientSettings::new(bootstrap),
            topic: None,
            marker_topic: None,
            guarantee: Guarantee::ExactlyOnce,
            headers: true,
        }
    }

    /// A sink by options alone.
    ///
    /// # Errors
    ///
    /// If an option is unknown, missing or makes no sense.
    pub fn from_options(options: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let (mut properties, mut others) = (vec![], vec![]);
        for (name, value) in options {
            match name.to_ascii_lowercase().strip_prefix(PREFIX) {
                Some(property) => properties.push((property.to_owned(), value)),
                None => others.push((name, value)),
            }
        }
        let options = Options::new(SINK_NAME, KNOWN_OPTIONS, others)?;
        let bootstrap = properties.iter().rev().find(|(name, _)| name == BOOTSTRAP).map(|(_, value)| value.trim());
        let bootstrap = bootstrap.filter(|bootstrap| !bootstrap.is_empty()).ok_or_else(|| {
            Error::invalid(format!("{SINK_NAME} needs to know where the cluster is"))
                .with_hint(format!("give the option `{PREFIX}{BOOTSTRAP}`: `host:port`, with commas between several"))
        })?;
        let mut sink = KafkaSink::new(bootstrap);
        for (name, value) in properties.iter().filter(|(name, _)| name != BOOTSTRAP) {
            sink.client.set(name, value);
        }
        sink.topic = options.get("topic").map(str::to_owned);
        sink.marker_topic = options.get("markerTopic").map(str::to_owned);
        sink.headers = options.bool("includeHeaders", true)?;
        let guarantee = options.parsed("guarantee", "`exactly-once` or `at-least-once`", |value| {
            match value.trim().to_ascii_lowercase().as_str() {
                "exactly-once" => Some(Guarantee::ExactlyOnce),
                "at-least-once" => Some(Guarantee::AtLeastOnce),
                _ => None,
            }
        })?;
        sink.guarantee = guarantee.unwrap_or(sink.guarantee);
        sink.checked_properties()?;
        Ok(sink)
    }

    /// The topic of all rows. A column `topic` is then left out.
    #[must_use]
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = Some(topic.into());
        self
    }

    /// The topic that the marker lies beside, if not that of the rows: needed where each row names its topic. Nothing
    /// is written into it.
    #[must_use]
    pub fn marker_topic(mut self, topic: impl Into<String>) -> Self {
        self.marker_topic = Some(topic.into());
        self
    }

    /// No transactions: rows can be read at once, and a batch that is repeated after a crash is there twice.
    #[must_use]
    pub fn at_least_once(mut self) -> Self {
        self.guarantee = Guarantee::AtLeastOnce;
        self
    }

    /// Whether a column `headers` is sent. Default true.
    #[must_use]
    pub fn include_headers(mut self, include: bool) -> Self {
        self.headers = include;
        self
    }

    /// Sets a property of librdkafka, such as `sasl.username`. Properties are checked when the query starts.
    #[must_use]
    pub fn property(mut self, name: &str, value: &str) -> Self {
        self.client.set(name, value);
        self
    }

    fn checked_properties(&self) -> Result<()> {
        properties::check(&self.client, self.guarantee)?;
        Timeouts::of(&self.client)?;
        [&self.topic, &self.marker_topic].into_iter().flatten().try_for_each(|topic| check_topic_name(topic))
    }

    fn checked(&self) -> Result<Checked> {
        self.checked_properties()?;
        let marker_topic = match self.guarantee {
            Guarantee::AtLeastOnce => None,
            Guarantee::ExactlyOnce => {
                Some(self.marker_topic.clone().or_else(|| self.topic.clone()).ok_or_else(|| {
                    Error::invalid(
                    "the Kafka sink writes to topics that the rows name, and has no topic for the marker by which it \
                     takes a batch once",
                )
                .with_hint(
                    "name one with `KafkaSink::marker_topic` (option `markerTopic`), any that exists and stays; or one \
                     topic for all rows with `KafkaSink::topic` (option `topic`); or write at least once",
                )
                })?)
            }
        };
        let (description, client, topic) = (self.description(), self.client.clone(), self.topic.clone());
        Ok(Checked { description, client, guarantee: self.guarantee, topic, marker_topic })
    }
}

#[async_trait]
impl Sink for KafkaSink {
    fn description(&self) -> String {
        let topic = self.topic.as_ref().map_or("topics by row".to_owned(), |topic| format!("topic {topic}"));
        format!("kafka, {topic} at {}, {}", self.client.bootstrap(), self.guarantee)
    }

    fn identity(&self) -> Option<Identity> {
        let kafka = Identity::new("kafka");
        Some(match &self.topic {
            Some(topic) => kafka.at(topic),
            None => kafka.option("topics", "by row"),
        })
    }

    fn guarantee(&self) -> Guarantee {
        self.guarantee
    }

    fn supports_output_mode(&self, _mode: OutputMode) -> bool {
        true
    }

    async fn open(&self, context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
        // What is wrong with the rows is said first: it needs no cluster.
        let columns = Columns::find(&context.schema, self.topic.as_deref(), self.headers)?;
        let sink = self.checked()?;
        // The cluster may take its time; whoever starts the query may have other things to do on this thread.
        let opened = tokio::task::spawn_blocking(move || KafkaWriter::open(sink, columns, &context)).await;
        let writer =
            opened.map_err(|e| Error::internal("the Kafka sink panicked while it was opened").with_source(e))??;
        Ok(Box::new(writer))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::prelude::SessionContext;
    use tidewater::error::ErrorKind;

    use super::*;

    fn sink(options: &[(&str, &str)]) -> Result<KafkaSink> {
        KafkaSink::from_options(options.iter().map(|(name, value)| (name.to_string(), value.to_string())))
    }

    fn context(columns: &[&str]) -> SinkContext {
        let fields: Vec<_> = columns.iter().map(|name| Field::new(*name, DataType::Utf8, true)).collect();
        SinkContext::new(Arc::new(Schema::new(fields)), Arc::new(SessionContext::new().state()))
    }

    #[test]
    fn options_are_those_of_spark_and_ours() {
        let made = sink(&[
            ("kafka.bootstrap.servers", "one:9092,two:9092"),
            ("Topic", "out"),
            ("MARKERTOPIC", "markers"),
            ("kafka.Compression.Type", "zstd"),
            ("includeHeaders", "false"),
            ("guarantee", "At-Least-Once"),
        ])
        .unwrap();
        assert_eq!(made.client.bootstrap(), "one:9092,two:9092");
        assert_eq!(made.client.get("compression.type"), Some("zstd"));
        assert_eq!((made.topic.as_deref(), made.marker_topic.as_deref()), (Some("out"), Some("markers")));
        assert_eq!((made.guarantee, made.headers), (Guarantee::AtLeastOnce, false));
        let made = sink(&[("kafka.bootstrap.servers", "one:9092")]).unwrap();
        assert_eq!((made.guarantee, made.headers, made.topic), (Guarantee::ExactlyOnce, true, None));
    }

    #[test]
    fn wrong_options_are_answered() {
        let one = ("kafka.bootstrap.servers", "one:9092");
        for (options, wanted) in [
            (vec![("topic", "out")], "where the cluster is"),
            (vec![("kafka.bootstrap.servers", " ")], "where the cluster is"),
            (vec![one, ("markertopics", "m")], "did you mean `markerTopic`"),
            (vec![one, ("guarantee", "twice")], "`exactly-once` or `at-least-once`"),
            (vec![one, ("includeHeaders", "perhaps")], "`includeHeaders`"),
            (vec![one, ("topic", "my topic")], "`my topic` cannot be"),
            (vec![one, ("markerTopic", "")], "`` cannot be"),
            (vec![one, ("kafka.transactional.id", "mine")], "`transactional.id`"),
            (vec![one, ("kafka.acks", "1")], "`acks`"),
            (vec![one, ("kafka.message.timeout.ms", "soon")], "`message.timeout.ms`"),
        ] {
            let error = sink(&options).unwrap_err();
            assert!(error.message().contains(wanted), "{options:?}: {error}");
            assert_eq!(error.kind(), ErrorKind::InvalidQuery);
        }
    }

    #[test]
    fn the_marker_lies_beside_the_topic_unless_told_otherwise() {
        let new = || KafkaSink::new("one:9092");
        let marker = |sink: KafkaSink| sink.checked().map(|checked| checked.marker_topic);
        assert_eq!(marker(new().topic("out")).unwrap().as_deref(), Some("out"));
        assert_eq!(marker(new().topic("out").marker_topic("m")).unwrap().as_deref(), Some("m"));
        assert_eq!(marker(new().marker_topic("m")).unwrap().as_deref(), Some("m"));
        assert_eq!(marker(new().at_least_once()).unwrap(), None);
        let error = marker(new()).unwrap_err();
        for way_out in ["`KafkaSink::marker_topic`", "`KafkaSink::topic`", "at least once"] {
            assert!(error.hint().unwrap().contains(way_out), "{error}");
        }
    }

    #[test]
    fn a_description_shows_no_secret() {
        let secret = KafkaSink::new("one:9092").topic("out").property("sasl.password", "hunter2");
        assert_eq!(secret.description(), "kafka, topic out at one:9092, exactly once");
        assert!(!format!("{secret:?}").contains("hunter2"));
        let by_row = KafkaSink::new("one:9092").at_least_once();
        assert_eq!(by_row.description(), "kafka, topics by row at one:9092, at least once");
        for mode in [OutputMode::Append, OutputMode::Update, OutputMode::Complete] {
            assert!(by_row.supports_output_mode(mode));
        }
    }

    #[tokio::test]
    async fn what_cannot_work_is_said_before_the_cluster_is_asked() {
        let new = || KafkaSink::new("127.0.0.1:1");
        for (sink, columns, wanted) in [
            (new().topic("out"), &["key"][..], "writes the column `value`"),
            (new(), &["value"][..], "no column `topic`"),
            (new(), &["value", "topic"][..], "no topic for the marker"),
            (new().topic("out").property("group.id", "mine"), &["value"][..], "`group.id`"),
            (new().topic("a/b"), &["value"][..], "`a/b` cannot be"),
        ] {
            let error = sink.open(context(columns)).await.unwrap_err();
            assert!(error.message().contains(wanted), "{error}");
            assert_eq!(error.kind(), ErrorKind::InvalidQuery);
        }
    }

    #[tokio::test]
    async fn a_cluster_that_is_not_there_is_named() {
        for sink in [KafkaSink::new("127.0.0.1:1").topic("out"), KafkaSink::new("127.0.0.1:1").at_least_once()] {
            let sink = sink.property("message.timeout.ms", "300");
            let error = sink.open(context(&["value", "topic"])).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
        }
    }
}
