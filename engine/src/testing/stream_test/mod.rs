//! A test as a list of steps.
//!
//! Time stands still unless a step moves it. When a step fails, the test prints all steps with an arrow at that one,
//! then offsets, the rows of the sink, the plan and the last progress.

mod run;

use std::fmt;
use std::time::Duration;

use datafusion::prelude::{DataFrame, SessionContext};
use serde_json::Value;

use self::run::Run;
use super::report::Report;
use crate::error::{ErrorKind, Result};
use crate::query::StreamWriter;

/// What a test sets at the writer, at every start.
type Configure = Box<dyn Fn(StreamWriter) -> StreamWriter + Send + Sync>;

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
    configure: Configure,
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

    /// A source in memory, with columns of short type names (see [`table::schema`](super::table::schema)).
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

#[cfg(test)]
mod tests {
    use serde_json::json;

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
