//! The steps of a test, taken one by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, TimestampMillisecondType};
use arrow::record_batch::RecordBatch;
use arrow::util::pretty::pretty_format_batches;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use serde_json::{Value, json};

use super::{Configure, Step};
use crate::checkpoint::{MetadataStore, memory_store};
use crate::clock::ManualClock;
use crate::error::{Error, ErrorKind, Result};
use crate::id::BatchId;
use crate::query::{StreamingDataFrameExt, StreamingQuery, StreamingSessionExt};
use crate::sink::MemorySink;
use crate::source::MemorySource;
use crate::testing::oracle::difference;
use crate::testing::{serialised_batches, table};

/// Where the clock stands when a test begins: 2024-01-01T00:00:00 UTC.
const START_MS: i64 = 1_704_067_200_000;

/// A test while it runs.
pub(super) struct Run<Q> {
    make_query: Q,
    configure: Configure,
    ctx: SessionContext,
    clock: ManualClock,
    checkpoint: Arc<dyn MetadataStore>,
    sources: BTreeMap<String, (SchemaRef, MemorySource)>,
    sink: MemorySink,
    /// The last batch whose rows an expectation has seen.
    seen: Option<BatchId>,
    output: SchemaRef,
    query: Option<StreamingQuery>,
    /// A failure that no step has expected yet.
    pub(super) failure: Option<Error>,
}

/// Of several partitions, because one hides mistakes.
const PARTITIONS: usize = 3;

impl<Q> Run<Q>
where
    Q: AsyncFn(&SessionContext) -> Result<DataFrame>,
{
    pub(super) async fn new(
        make_query: Q,
        sources: Vec<(String, Vec<(String, String)>)>,
        configure: Configure,
    ) -> Result<Self> {
        let ctx = SessionContext::new_with_config(serialised_batches(SessionConfig::new()));
        let mut made = BTreeMap::new();
        for (name, columns) in sources {
            let columns: Vec<(&str, &str)> = columns.iter().map(|(c, t)| (c.as_str(), t.as_str())).collect();
            let schema = table::schema(&columns)?;
            let source = MemorySource::new(Arc::clone(&schema)).partitions(PARTITIONS).adds_per_batch(1);
            ctx.register_stream(&name, source.clone())?;
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

    pub(super) async fn take(&mut self, step: &Step) -> std::result::Result<(), String> {
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
        // Whatever the query says, NULL may be expected.
        let fields = frame.schema().fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
        self.output = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
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

    pub(super) async fn stop(&mut self) -> Result<()> {
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

    pub(super) fn sections(&self) -> Vec<(&'static str, String)> {
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
