//! Runs one case, step by step.
//!
//! The clock stands still, so the query looks for input only when a step asks it to: adds that are queued together are
//! found together, in all sources.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use datafusion::prelude::SessionContext;
use serde_json::{Value, json};
use tidewater::checkpoint::{MetadataStore, memory_store};
use tidewater::clock::ManualClock;
use tidewater::error::{Error, ErrorKind};
use tidewater::id::BatchId;
use tidewater::prelude::*;
use tidewater::source::Source;
use tidewater::testing::table;
use tidewater::watermark::WatermarkPolicy;

use super::build::Inputs;
use super::case::{Case, Expected, Phase, Step};
use super::compare::compare;

/// How a case is run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Settings {
    /// Of the query: at its first start the first of these, at the next the second, and again from the front.
    pub(super) partitions: Vec<usize>,
    /// Whether the query is restarted before every step that processes.
    pub(super) restart_every_step: bool,
}

impl Settings {
    /// With one, two and five partitions, each without and with restarts; and with another number at every restart.
    pub(super) fn all() -> Vec<Self> {
        let mut all = vec![];
        for restart_every_step in [false, true] {
            all.extend([1, 2, 5].map(|n| Settings { partitions: vec![n], restart_every_step }));
        }
        all.push(Settings { partitions: vec![2, 5, 1], restart_every_step: true });
        all
    }

    /// All, or what the environment says.
    pub(super) fn from_env() -> Vec<Self> {
        let number = |name| std::env::var(name).ok().map(|text| text.parse::<usize>().expect(name));
        let partitions = number("TIDEWATER_PARTITIONS").map(|n| vec![n.max(1)]);
        let restarts = number("TIDEWATER_RESTART_EVERY_STEP").map(|n| n > 0);
        let wanted = |s: &Settings| {
            partitions.as_ref().is_none_or(|p| *p == s.partitions)
                && restarts.is_none_or(|restarts| restarts == s.restart_every_step)
        };
        match (Self::all().into_iter().filter(wanted).collect::<Vec<_>>(), partitions) {
            (none, Some(partitions)) if none.is_empty() => {
                vec![Settings { partitions, restart_every_step: restarts.unwrap_or(false) }]
            }
            (some, _) => some,
        }
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let partitions: Vec<String> = self.partitions.iter().map(usize::to_string).collect();
        let restarts = if self.restart_every_step { ", restarted before every step" } else { "" };
        write!(f, "{} partitions{restarts}", partitions.join(" → "))
    }
}

/// Runs a case; the error says which of its steps went wrong, and how.
pub(super) async fn run_case(case: &Case, settings: &Settings) -> Result<(), String> {
    let mut world = World::new(case, settings).map_err(|e| e.to_string())?;
    let outcome = match &case.expect_error {
        Some(expected) => world.expect_error(expected.phase).await.map_err(|e| format!("{e} ({})", expected.why)),
        None => world.steps().await,
    };
    let stopped = world.stop().await;
    outcome.and(stopped)
}

/// Over so many partitions of a source rows are dealt, whatever the partitions of the query.
const DEALT_OVER: usize = 2;

struct World<'a> {
    case: &'a Case,
    settings: &'a Settings,
    ctx: SessionContext,
    sources: BTreeMap<String, MemorySource>,
    sink: MemorySink,
    checkpoint: Arc<dyn MetadataStore>,
    query: Option<StreamingQuery>,
    starts: usize,
    /// The last batch that an expectation has seen.
    seen: Option<BatchId>,
}

impl<'a> World<'a> {
    fn new(case: &'a Case, settings: &'a Settings) -> tidewater::error::Result<Self> {
        let mut sources = BTreeMap::new();
        for (name, source) in &case.sources {
            let columns: Vec<(&str, &str)> = source.schema.iter().map(|(c, t)| (c.as_str(), t.as_str())).collect();
            let source = MemorySource::new(table::schema(&columns)?).partitions(DEALT_OVER).adds_per_batch(1);
            sources.insert(name.clone(), source);
        }
        Ok(World {
            case,
            settings,
            ctx: crate::job::session(),
            sources,
            sink: MemorySink::new(),
            checkpoint: memory_store(),
            query: None,
            starts: 0,
            seen: None,
        })
    }

    async fn start(&mut self) -> tidewater::error::Result<()> {
        let partitions = self.settings.partitions[self.starts % self.settings.partitions.len()];
        self.starts += 1;
        let inputs = Inputs { ctx: &self.ctx, case: self.case, sources: &self.sources, partitions };
        let frame = inputs.build(&self.case.query).await?;
        let mut writer = frame
            .write_stream(self.sink.clone())
            .output_mode(self.case.output_mode.into())
            .checkpoint_store(Arc::clone(&self.checkpoint))
            .partitions(partitions)
            .clock(Arc::new(ManualClock::at(1_704_067_200_000)))
            .no_data_batches(self.case.config.no_data_batches.unwrap_or(true));
        if let Some(policy) = &self.case.config.multiple_watermark_policy {
            let policy = WatermarkPolicy::from_name(policy)
                .ok_or_else(|| Error::invalid(format!("unknown watermark policy `{policy}`")))?;
            writer = writer.watermark_policy(policy);
        }
        self.query = Some(writer.start().await?);
        Ok(())
    }

    async fn stop(&mut self) -> Result<(), String> {
        match self.query.take() {
            Some(query) => query.stop().await.map_err(|e| format!("stopping failed: {e}")),
            None => Ok(()),
        }
    }

    /// Runs all steps. A wrong answer is remembered and the steps go on, so that all are told; an error ends the case.
    async fn steps(&mut self) -> Result<(), String> {
        let mut wrong = vec![];
        for (i, step) in self.case.steps.iter().enumerate() {
            let outcome = match step {
                Step::Add(rows) => self.add(rows).map_err(|e| e.to_string()),
                Step::Restart(_) => self.stop().await,
                Step::Process(expected) => self.process(expected).await.map(|complaints| {
                    wrong.extend(complaints.into_iter().map(|complaint| format!("step {i}: {complaint}")));
                }),
            };
            if let Err(e) = outcome {
                wrong.push(format!("step {i}: {e}"));
                break;
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    }

    /// Every source gets one add, be it empty: so all of them are read by the same batch.
    fn add(&self, rows: &BTreeMap<String, Value>) -> tidewater::error::Result<()> {
        for (name, source) in &self.sources {
            let rows = rows.get(name).cloned().unwrap_or(json!([]));
            source.add(table::deal(&table::rows(&source.schema(), &rows)?, DEALT_OVER)?)?;
        }
        Ok(())
    }

    /// Runs until nothing is left to do.
    async fn settle(&mut self) -> tidewater::error::Result<()> {
        if self.query.is_none() {
            self.start().await?;
        }
        if let Some(query) = &self.query {
            query.process_all_available().await?;
            // The first call may have left the query a reason to look once more; it must not look while rows are added.
            query.process_all_available().await?;
        }
        Ok(())
    }

    /// What is wrong with the rows that came and with the watermark the next batch will have.
    async fn process(&mut self, expected: &Expected) -> Result<Vec<String>, String> {
        if self.settings.restart_every_step {
            self.stop().await?;
        }
        self.settle().await.map_err(|e| e.to_string())?;
        let case = self.case;
        let new = self.new_rows();
        let rows = expected.expect_rows.as_ref().ok_or("the case does not say what rows to expect")?;
        let mut wrong: Vec<String> = compare(&case.columns, &case.column_types, rows, &new).err().into_iter().collect();
        let found = self.query.as_ref().and_then(StreamingQuery::watermark_ms).map(timestamp);
        if found != expected.watermark_next {
            wrong.push(format!("expected the next watermark {:?}, found {found:?}", expected.watermark_next));
        }
        Ok(wrong)
    }

    /// The rows of the batches since the last look; in complete mode the sink keeps those of the last one only.
    fn new_rows(&mut self) -> Vec<RecordBatch> {
        let first = self.seen.map_or(BatchId(0), BatchId::next);
        self.seen = self.sink.last_batch();
        let end = self.seen.map_or(BatchId(0), BatchId::next);
        (first.0..end.0).filter_map(|batch| self.sink.batch(BatchId(batch))).flatten().collect()
    }

    async fn expect_error(&mut self, phase: Phase) -> Result<(), String> {
        let failed = match self.start().await {
            Err(e) => e,
            Ok(()) if phase == Phase::Analysis => return Err("started, and must be refused".to_owned()),
            Ok(()) => self.failing_step().await?,
        };
        match failed.kind() {
            ErrorKind::Unsupported | ErrorKind::InvalidQuery => Ok(()),
            kind => Err(format!("refused, but as `{kind}`: {failed}")),
        }
    }

    /// The error of the first step that fails.
    async fn failing_step(&mut self) -> Result<Error, String> {
        for step in &self.case.steps {
            match step {
                Step::Add(rows) => self.add(rows).map_err(|e| e.to_string())?,
                Step::Restart(_) => self.stop().await?,
                Step::Process(_) => {
                    if let Err(e) = self.settle().await {
                        self.query = None;
                        return Ok(e);
                    }
                }
            }
        }
        Err("no step failed".to_owned())
    }
}

/// As cases write times.
fn timestamp(ms: i64) -> String {
    let time = chrono::DateTime::from_timestamp_millis(ms).expect("a watermark in this era");
    time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}
