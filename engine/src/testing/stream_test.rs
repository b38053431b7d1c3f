//! A test as a list of steps.
//!
//! Time stands still unless a step moves it. When a step fails, the test prints all steps with an arrow at that one,
//! then offsets, the rows of the sink, the plan and the last progress.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, TimestampMillisecondType};
use arrow::record_batch::RecordBatch;
use arrow::util::pretty::pretty_format_batches;
use datafusion::prelude::{DataFrame, SessionContext};
use serde_json::{Value, json};

use super::oracle::difference;
use super::report::Report;
use super::table;
use crate::checkpoint::{CheckpointStore, memory_store};
use crate::clock::ManualClock;
use crate::error::{Error, ErrorKind, Result};
use crate::id::BatchId;
use crate::query::{StreamWriter, StreamingContext, StreamingDataFrame, StreamingQuery};
use crate::sink::MemorySink;
use crate::source::MemorySource;

/// Where the clock stands when a test begins: 2024-01-01T00:00:00 UTC.
const START_MS: i64 = 1_704_067_200_000;

/// How long a step may take, by the machine's clock, before it counts as stuck.
const STEP_LIMIT: Duration = Duration::from_secs(60);

/// A test of a query: sources in memory, a sink in memory, and steps.
///
/// The query is a function of the session; every source is a registered stream, so it can be had with `ctx.table(name)`
/// or from SQL. The query starts with the first step that needs it. It runs in several partitions (3, unless
/// [`configure`](Self::configure) says otherwise), and the rows of a step are dealt over several too.
///
/// ```
/// use serde_json::json;
/// use tidewater::testing::StreamTest;
///
/// # #[tokio::main]
/// # async fn main() -> tidewater::error::Result<()> {
/// StreamTest::new("only positive values pass", async |ctx| {
///     Ok(ctx.sql("SELECT k, v * 10 AS v10 FROM events WHERE v > 0").await?)
/// })
/// .source("events", &[("k", "string"), ("v", "long")])
/// .add("events", json!([["a", 1], ["b", -1]]))
/// .process()
/// .expect_new(json!([["a", 10]]))
/// .restart()
/// .add("events", json!([["c", 3]]))
/// .process()
/// .expect_new(json!([["c", 30]]))
/// .expect_all(json!([["a", 10], ["c", 30]]))
/// .run()
/// .await;
/// # Ok(())
/// # }
/// ```
pub struct StreamTest<Q> {
    name: String,
    query: Q,
    sources: Vec<(String, Vec<(String, String)>)>,
    configure: Box<dyn Fn(StreamWriter) -> StreamWriter + Send + Sync>,
    steps: Vec<Step>,
}

impl<Q> fmt::Debug for StreamTest<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamTest").field("name", &self.name).field("steps", &self.steps).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Add { source: String, rows: Value },
    Start,
    Process,
    AdvanceMs(i64),
    ExpectNew(Value),
    ExpectAll(Value),
    ExpectWatermark(Option<String>),
    Stop,
    ExpectFailure { kind: ErrorKind, text: String },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Add { source, rows } => write!(f, "add to {source}: {rows}"),
            Step::Start => f.write_str("start"),
            Step::Process => f.write_str("process all available"),
            Step::AdvanceMs(by_ms) => write!(f, "advance the clock by {by_ms} ms"),
            Step::ExpectNew(rows) => write!(f, "expect new rows: {rows}"),
            Step::ExpectAll(rows) => write!(f, "expect all rows: {rows}"),
            Step::ExpectWatermark(Some(at)) => write!(f, "expect the next watermark {at}"),
            Step::ExpectWatermark(None) => f.write_str("expect no watermark"),
            Step::Stop => f.write_str("stop"),
            Step::ExpectFailure { kind, text } => write!(f, "expect a failure ({kind}) with `{text}`"),
        }
    }
}

impl<Q> StreamTest<Q>
where
    Q: AsyncFn(&SessionContext) -> Result<DataFrame>,
{
    /// A test of `query`, without sources and steps yet.
    pub fn new(name: &str, query: Q) -> Self {
        let configure = Box::new(|writer: StreamWriter| writer);
        StreamTest { name: name.to_owned(), query, sources: vec![], configure, steps: vec![] }
    }

    /// A source in memory, with columns of short type names (see [`table::schema`]).
    #[must_use]
    pub fn source(mut self, name: &str, columns: &[(&str, &str)]) -> Self {
        let columns = columns.iter().map(|(column, of_type)| ((*column).to_owned(), (*of_type).to_owned())).collect();
        self.sources.push((name.to_owned(), columns));
        self
    }

    /// Sets output mode, trigger, partitions or anything else of the writer, at every start.
    #[must_use]
    pub fn configure(mut self, configure: impl Fn(StreamWriter) -> StreamWriter + Send + Sync + 'static) -> Self {
        self.configure = Box::new(configure);
        self
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Adds rows (a JSON array of arrays) to a source.
    #[must_use]
    pub fn add(self, source: &str, rows: Value) -> Self {
        self.step(Step::Add { source: source.to_owned(), rows })
    }

    /// Starts the query; for tests that expect the start to fail, or that start again after `stop`.
    #[must_use]
    pub fn start(self) -> Self {
        self.step(Step::Start)
    }

    /// Runs batches until nothing is left to do.
    #[must_use]
    pub fn process(self) -> Self {
        self.step(Step::Process)
    }

    /// Moves the clock forward.
    #[must_use]
    pub fn advance_ms(self, by_ms: i64) -> Self {
        self.step(Step::AdvanceMs(by_ms))
    }

    /// The rows that reached the sink since the last such step, in any order.
    #[must_use]
    pub fn expect_new(self, rows: Value) -> Self {
        self.step(Step::ExpectNew(rows))
    }

    /// All rows in the sink, in any order.
    #[must_use]
    pub fn expect_all(self, rows: Value) -> Self {
        self.step(Step::ExpectAll(rows))
    }

    /// The watermark of the next batch, as a timestamp.
    #[must_use]
    pub fn expect_watermark(self, at: &str) -> Self {
        self.step(Step::ExpectWatermark(Some(at.to_owned())))
    }

    /// The query has no watermark at all.
    #[must_use]
    pub fn expect_no_watermark(self) -> Self {
        self.step(Step::ExpectWatermark(None))
    }

    /// Stops the query, gracefully.
    #[must_use]
    pub fn stop(self) -> Self {
        self.step(Step::Stop)
    }

    /// Stops the query and starts it from its checkpoint.
    #[must_use]
    pub fn restart(self) -> Self {
        self.step(Step::Stop).step(Step::Start)
    }

    /// The step before must have made the query fail, with an error of this kind whose text contains `text`.
    #[must_use]
    pub fn expect_failure(self, kind: ErrorKind, text: &str) -> Self {
        self.step(Step::ExpectFailure { kind, text: text.to_owned() })
    }

    /// Runs the steps; panics with a [`Report`] if one fails.
    ///
    /// # Panics
    ///
    /// If a step fails.
    pub async fn run(self) {
        if let Err(report) = self.try_run().await {
            panic!("{report}");
        }
    }

    /// Runs the steps; the first that fails is reported.
    pub async fn try_run(self) -> std::result::Result<(), Report> {
        let StreamTest { name, query, sources, configure, steps } = self;
        let lines: Vec<String> = steps.iter().map(Step::to_string).collect();
        let report = |failed, message: String, sections| Report {
            test: name.clone(),
            steps: lines.clone(),
            failed,
            message,
            sections,
        };
        let mut run = match Run::new(query, sources, configure).await {
            Ok(run) => run,
            Err(e) => return Err(report(0, format!("the sources cannot be made: {e}"), vec![])),
        };
        for (i, step) in steps.iter().enumerate() {
            let outcome = match tokio::time::timeout(STEP_LIMIT, run.take(step)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(format!("stuck: not done after {} s", STEP_LIMIT.as_secs())),
            };
            if let Err(message) = outcome {
                return Err(report(i, message, run.sections()));
            }
        }
        let unexpected = run.failure.take().map(|failure| format!("the query failed: {failure}"));
        if let Some(message) = unexpected {
            return Err(report(steps.len().saturating_sub(1), message, run.sections()));
        }
        match run.stop().await {
            Ok(()) => Ok(()),
            Err(e) => Err(report(steps.len().saturating_sub(1), format!("the last stop failed: {e}"), run.sections())),
        }
    }
}

/// A test while it runs.
struct Run<Q> {
    make_query: Q,
    configure: Box<dyn Fn(StreamWriter) -> StreamWriter + Send + Sync>,
    ctx: SessionContext,
    clock: ManualClock,
    checkpoint: Arc<dyn CheckpointStore>,
    sources: BTreeMap<String, (SchemaRef, MemorySource)>,
    sink: MemorySink,
    /// The last batch whose rows an expectation has seen.
    seen: Option<BatchId>,
    output: SchemaRef,
    query: Option<StreamingQuery>,
    /// A failure that no step has expected yet.
    failure: Option<Error>,
}

/// Of several partitions, because one hides mistakes.
const PARTITIONS: usize = 3;

impl<Q> Run<Q>
where
    Q: AsyncFn(&SessionContext) -> Result<DataFrame>,
{
    async fn new(
        make_query: Q,
        sources: Vec<(String, Vec<(String, String)>)>,
        configure: Box<dyn Fn(StreamWriter) -> StreamWriter + Send + Sync>,
    ) -> Result<Self> {
        let ctx = SessionContext::new();
        let mut made = BTreeMap::new();
        for (name, columns) in sources {
            let columns: Vec<(&str, &str)> = columns.iter().map(|(c, t)| (c.as_str(), t.as_str())).collect();
            let schema = table::schema(&columns)?;
            let source = MemorySource::new(Arc::clone(&schema)).partitions(PARTITIONS).adds_per_batch(1);
            ctx.register_stream(&name, source.clone()).await?;
            made.insert(name, (schema, source));
        }
        Ok(Run {
            make_query,
            configure,
            ctx,
            clock: ManualClock::at(START_MS),
            checkpoint: memory_store(),
            sources: made,
            sink: MemorySink::new(),
            seen: None,
            output: Arc::new(Schema::empty()),
            query: None,
            failure: None,
        })
    }

    async fn take(&mut self, step: &Step) -> std::result::Result<(), String> {
        if let Step::ExpectFailure { kind, text } = step {
            return self.expect_failure(*kind, text);
        }
        if let Some(failure) = &self.failure {
            return Err(format!("the query had failed before: {failure}"));
        }
        let said = |e: Error| e.to_string();
        match step {
            Step::Add { source, rows } => self.add(source, rows).map_err(said),
            Step::Start => {
                self.start().await;
                Ok(())
            }
            Step::Process => {
                self.process().await;
                Ok(())
            }
            Step::AdvanceMs(by_ms) => {
                self.clock.advance_ms(*by_ms);
                Ok(())
            }
            Step::ExpectNew(rows) => {
                let new = self.new_rows();
                self.seen = self.sink.last_batch();
                self.compare(rows, &new)
            }
            Step::ExpectAll(rows) => self.compare(rows, &self.sink.batches()),
            Step::ExpectWatermark(at) => self.expect_watermark(at.as_deref()),
            Step::Stop => self.stop().await.map_err(said),
            Step::ExpectFailure { .. } => Ok(()),
        }
    }

    fn add(&self, source: &str, rows: &Value) -> Result<()> {
        let (schema, source) =
            self.sources.get(source).ok_or_else(|| Error::invalid(format!("the test has no source `{source}`")))?;
        source.add(table::deal(&table::rows(schema, rows)?, PARTITIONS)?)
    }

    async fn start(&mut self) {
        match self.try_start().await {
            Ok(query) => self.query = Some(query),
            Err(failure) => self.failure = Some(failure),
        }
    }

    async fn try_start(&mut self) -> Result<StreamingQuery> {
        let frame = (self.make_query)(&self.ctx).await?;
        self.output = Arc::new(frame.schema().as_arrow().clone());
        let writer = frame
            .write_stream(self.sink.clone())
            .checkpoint_store(Arc::clone(&self.checkpoint))
            .partitions(PARTITIONS)
            .clock(Arc::new(self.clock.clone()));
        (self.configure)(writer).start().await
    }

    async fn process(&mut self) {
        if self.query.is_none() {
            self.start().await;
        }
        if let Some(query) = &self.query
            && let Err(failure) = query.process_all_available().await
        {
            self.failure = Some(failure);
        }
    }

    async fn stop(&mut self) -> Result<()> {
        match self.query.take() {
            Some(query) => query.stop().await,
            None => Ok(()),
        }
    }

    fn new_rows(&self) -> Vec<RecordBatch> {
        let first = self.seen.map_or(BatchId(0), BatchId::next);
        let last = self.sink.last_batch().map_or(BatchId(0), BatchId::next);
        (first.0..last.0).filter_map(|batch| self.sink.batch(BatchId(batch))).flatten().collect()
    }

    fn compare(&self, expected: &Value, actual: &[RecordBatch]) -> std::result::Result<(), String> {
        let compared = table::rows(&self.output, expected).and_then(|expected| difference(&[expected], actual));
        match compared {
            Ok(None) => Ok(()),
            Ok(Some(difference)) => Err(format!("rows differ: {difference}")),
            Err(e) => Err(format!("rows cannot be compared: {e}")),
        }
    }

    fn expect_watermark(&self, at: Option<&str>) -> std::result::Result<(), String> {
        let expected_ms = at.map(timestamp_ms).transpose().map_err(|e| e.to_string())?;
        let found_ms = self.query.as_ref().and_then(StreamingQuery::watermark_ms);
        if expected_ms == found_ms {
            return Ok(());
        }
        Err(format!("the next watermark is {found_ms:?} ms, not {expected_ms:?} ms"))
    }

    fn expect_failure(&mut self, kind: ErrorKind, text: &str) -> std::result::Result<(), String> {
        let Some(failure) = self.failure.take() else {
            return Err("nothing failed".to_owned());
        };
        // A failed query has ended; the next step that needs one starts it again.
        self.query = None;
        if failure.kind() != kind {
            return Err(format!("failed otherwise: {failure}"));
        }
        if !failure.to_string().contains(text) {
            return Err(format!("failed with other words: {failure}"));
        }
        Ok(())
    }

    fn sections(&self) -> Vec<(&'static str, String)> {
        let progress = self.query.as_ref().and_then(StreamingQuery::last_progress);
        let progress = progress.map(|progress| serde_json::to_value(&progress).unwrap_or(Value::Null));
        let offsets = progress.as_ref().and_then(|progress| progress.get("sources")).cloned().unwrap_or(json!([]));
        let offsets: Vec<String> = offsets
            .as_array()
            .into_iter()
            .flatten()
            .map(|source| {
                let part = |name| source.get(name).cloned().unwrap_or(Value::Null);
                format!("{}: {} → {}", part("description"), part("startOffset"), part("endOffset"))
            })
            .collect();
        let rows = pretty_format_batches(&self.sink.batches()).map(|table| table.to_string()).unwrap_or_default();
        let plan = self.query.as_ref().map(StreamingQuery::explain).unwrap_or_default();
        let progress = progress.and_then(|progress| serde_json::to_string_pretty(&progress).ok()).unwrap_or_default();
        vec![
            ("offsets of the last batch", offsets.join("\n")),
            ("rows in the sink", rows),
            ("plan", plan),
            ("last progress", progress),
        ]
    }
}

/// A timestamp as tests write it, in milliseconds since 1970.
fn timestamp_ms(text: &str) -> Result<i64> {
    let schema = Arc::new(Schema::new(vec![Field::new(
        "at",
        DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        true,
    )]));
    let rows = table::rows(&schema, &json!([[text]]))?;
    let ms = cast(rows.column(0), &DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())))?;
    Ok(ms.as_primitive::<TimestampMillisecondType>().value(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [(&str, &str); 2] = [("k", "string"), ("v", "long")];

    #[tokio::test]
    async fn steps_run_over_a_restart() {
        StreamTest::new("doubled", async |ctx| Ok(ctx.sql("SELECT k, v * 2 AS w FROM events").await?))
            .source("events", &EVENTS)
            .add("events", json!([["a", 1], ["b", 2], ["c", 3], ["d", 4]]))
            .add("events", json!([]))
            .process()
            .expect_new(json!([["d", 8], ["c", 6], ["b", 4], ["a", 2]]))
            .expect_new(json!([]))
            .expect_no_watermark()
            .restart()
            .add("events", json!([["e", 5]]))
            .process()
            .expect_new(json!([["e", 10]]))
            .run()
            .await;
    }

    #[tokio::test]
    async fn a_failing_step_is_pointed_at() {
        let report = StreamTest::new("wrong on purpose", async |ctx| Ok(ctx.sql("SELECT v FROM events").await?))
            .source("events", &EVENTS)
            .add("events", json!([["a", 1]]))
            .process()
            .expect_new(json!([[2]]))
            .try_run()
            .await
            .unwrap_err()
            .to_string();
        for part in
            ["=>  3  expect new rows: [[2]]", "missing: 2", "surplus: 1", "== plan", "== last progress", "memory"]
        {
            assert!(report.contains(part), "`{part}` is not in:\n{report}");
        }
    }

    #[tokio::test]
    async fn a_refused_query_can_be_expected() {
        StreamTest::new("no sorting", async |ctx| Ok(ctx.sql("SELECT v FROM events ORDER BY v").await?))
            .source("events", &EVENTS)
            .start()
            .expect_failure(ErrorKind::Unsupported, "sort")
            .run()
            .await;
    }
}
