//! Runs one case, step by step.
//!
//! The clock stands still, so the query looks for input only when a step asks it to: adds that are queued together are
//! found together, in all sources.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use datafusion::prelude::SessionContext;
use serde_json::{Value, json};
use tidewater::checkpoint::{CheckpointStore, memory_store};
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

/// How cases are run.
pub(super) struct Settings {
    pub(super) partitions: usize,
    pub(super) restart_every_step: bool,
}

impl Settings {
    pub(super) fn from_env() -> Self {
        let number = |name| std::env::var(name).ok().map(|text| text.parse::<usize>().expect(name));
        Settings {
            partitions: number("TIDEWATER_PARTITIONS").unwrap_or(2).max(1),
            restart_every_step: number("TIDEWATER_RESTART_EVERY_STEP").is_some_and(|n| n > 0),
        }
    }
}

/// Runs all steps; the error says which one went wrong, and how.
pub(super) async fn run_case(case: &Case, settings: &Settings) -> Result<(), String> {
    let mut world = World::new(case, settings).map_err(|e| e.to_string())?;
    let outcome = match &case.expect_error {
        Some(expected) => world.expect_error(expected.phase).await.map_err(|e| format!("{e} ({})", expected.why)),
        None => world.steps().await,
    };
    let stopped = world.stop().await;
    outcome.and(stopped)
}

/// Starts the case's query and stops it again.
pub(super) async fn start_only(case: &Case, settings: &Settings) -> tidewater::error::Result<()> {
    let mut world = World::new(case, settings)?;
    world.start().await?;
    match world.query.take() {
        Some(query) => query.stop().await,
        None => Ok(()),
    }
}

struct World<'a> {
    case: &'a Case,
    settings: &'a Settings,
    ctx: SessionContext,
    sources: BTreeMap<String, MemorySource>,
    sink: MemorySink,
    checkpoint: Arc<dyn CheckpointStore>,
    query: Option<StreamingQuery>,
    /// The last batch that an expectation has seen.
    seen: Option<BatchId>,
}

impl<'a> World<'a> {
    fn new(case: &'a Case, settings: &'a Settings) -> tidewater::error::Result<Self> {
        let mut sources = BTreeMap::new();
        for (name, source) in &case.sources {
            let columns: Vec<(&str, &str)> = source.schema.iter().map(|(c, t)| (c.as_str(), t.as_str())).collect();
            let source = MemorySource::new(table::schema(&columns)?).partitions(settings.partitions).adds_per_batch(1);
            sources.insert(name.clone(), source);
        }
        Ok(World {
            case,
            settings,
            ctx: SessionContext::new(),
            sources,
            sink: MemorySink::new(),
            checkpoint: memory_store(),
            query: None,
            seen: None,
        })
    }

    async fn start(&mut self) -> tidewater::error::Result<()> {
        let partitions = self.settings.partitions;
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
                .ok_or_else(|| Error::invalid(format!("`{policy}` is no watermark policy")))?;
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

    async fn steps(&mut self) -> Result<(), String> {
        for (i, step) in self.case.steps.iter().enumerate() {
            let outcome = match step {
                Step::Add(rows) => self.add(rows).map_err(|e| e.to_string()),
                Step::Restart(_) => self.stop().await,
                Step::Process(expected) => self.process(expected).await,
            };
            outcome.map_err(|e| format!("step {i}: {e}"))?;
        }
        Ok(())
    }

    /// Every source gets one add, be it empty: so all of them are read by the same batch.
    fn add(&self, rows: &BTreeMap<String, Value>) -> tidewater::error::Result<()> {
        for (name, source) in &self.sources {
            let rows = rows.get(name).cloned().unwrap_or(json!([]));
            source.add(table::deal(&table::rows(&source.schema(), &rows)?, self.settings.partitions)?)?;
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

    async fn process(&mut self, expected: &Expected) -> Result<(), String> {
        if self.settings.restart_every_step {
            self.stop().await?;
        }
        self.settle().await.map_err(|e| e.to_string())?;
        let case = self.case;
        let new = self.new_rows();
        let rows = expected.expect_rows.as_ref().ok_or("the case does not say what rows to expect")?;
        compare(&case.columns, &case.column_types, rows, &new)?;
        let found = self.query.as_ref().and_then(StreamingQuery::watermark_ms).map(timestamp);
        if found != expected.watermark_next {
            return Err(format!("expected the next watermark {:?}, found {found:?}", expected.watermark_next));
        }
        Ok(())
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
