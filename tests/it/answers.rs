//! What an output mode answers and what it refuses, in SQL: every answer is that of the same statement over tables with all
//! rows so far, and every refusal is true of its query.

mod computed_times;
mod event_time;
mod output_modes;

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use datafusion::datasource::MemTable;
use datafusion::prelude::*;
use serde_json::{Value, json};
use tidewater::checkpoint::{MetadataStore, memory_store};
use tidewater::prelude::*;
use tidewater::testing::{batch_table, table};

use crate::job::{finish, same};
use crate::stateful::arrivals::EVENTS;
use crate::stateful::settled;

/// Streams `t`, `s` and `r`, each with rows in so many adds, and a table `d` beside them.
struct Streams {
    adds: Vec<[Vec<Value>; 3]>,
    /// Whether their times have a watermark.
    watermark: bool,
}

const NAMES: [&str; 3] = ["t", "s", "r"];

/// A row at a second of a minute; without time if that is negative.
fn row(second: i64, key: &str, v: i64) -> Value {
    let ts =
        if second < 0 { Value::Null } else { json!(format!("2024-01-01T00:{:02}:{:02}Z", second / 60, second % 60)) };
    let key = if key.is_empty() { Value::Null } else { json!(key) };
    json!([ts, key, v, v as f64 / 2.0])
}

/// After all others, for the watermark.
fn closing() -> Vec<Value> {
    vec![json!(["2030-01-01T00:00:00Z", "closing", 0, 0.0])]
}

impl Streams {
    fn rows(&self, stream: usize, adds: usize) -> Vec<RecordBatch> {
        let schema = table::schema(&EVENTS).unwrap();
        let all = self.adds[..adds].iter().map(|add| Value::Array(add[stream].clone()));
        all.map(|rows| table::rows(&schema, &rows).unwrap()).collect()
    }

    async fn tables(&self) -> SessionContext {
        let ctx = SessionContext::new();
        let schema = table::schema(&[("id", "string"), ("w", "long")]).unwrap();
        let rows = json!([["a", 1], ["b", 2], ["nobody", 3], [null, 4], ["c", 100]]);
        let d = MemTable::try_new(Arc::clone(&schema), vec![vec![table::rows(&schema, &rows).unwrap()]]).unwrap();
        ctx.register_table("d", Arc::new(d)).unwrap();
        ctx
    }

    /// What the statement answers over all rows of the first adds.
    async fn batch(&self, sql: &str, adds: usize) -> Vec<RecordBatch> {
        let ctx = self.tables().await;
        for (stream, name) in NAMES.into_iter().enumerate() {
            let rows = batch_table(&ctx, table::schema(&EVENTS).unwrap(), self.rows(stream, adds)).unwrap();
            ctx.register_table(name, rows.into_view()).unwrap();
        }
        ctx.streaming_sql(sql).await.unwrap().collect().await.unwrap()
    }

    async fn writer(
        &self,
        sql: &str,
        mode: OutputMode,
        sources: &[MemorySource],
        sink: &MemorySink,
        checkpoint: &Arc<dyn MetadataStore>,
    ) -> Result<StreamWriter> {
        let ctx = self.tables().await;
        for (name, source) in NAMES.into_iter().zip(sources) {
            let stream = ctx.read_stream(source.clone())?;
            let stream = if self.watermark { stream.with_watermark("ts", "0 seconds")? } else { stream };
            ctx.register_table(name, stream.into_view())?;
        }
        let writer = ctx.streaming_sql(sql).await?.write_stream(sink.clone()).output_mode(mode);
        Ok(writer.checkpoint_store(Arc::clone(checkpoint)).trigger(Trigger::AvailableNow))
    }

    fn sources() -> Vec<MemorySource> {
        let schema = table::schema(&EVENTS).unwrap();
        NAMES.iter().map(|_| MemorySource::new(Arc::clone(&schema)).partitions(2).adds_per_batch(1)).collect()
    }

    /// Runs the statement over one add after the other, from the second on after a restart, and compares after each.
    async fn answers(&self, sql: &str, mode: OutputMode) -> Result<(), String> {
        let said = |e: Error| format!("{mode}: {sql}\n{e}");
        let (sources, sink, checkpoint) = (Self::sources(), MemorySink::new(), memory_store());
        for adds in 1..=self.adds.len() {
            for (stream, source) in sources.iter().enumerate() {
                source.add(table::deal(&self.rows(stream, adds)[adds - 1], 2).unwrap()).unwrap();
            }
            // The first two adds come to one run, so that a plan runs twice.
            if adds == 1 && self.adds.len() > 1 {
                continue;
            }
            let writer = self.writer(sql, mode, &sources, &sink, &checkpoint).await.map_err(said)?;
            finish(writer.partitions(1 + adds % 3)).await.map_err(said)?;
            // With a watermark, rows wait for the closing ones.
            if self.watermark && adds < self.adds.len() {
                continue;
            }
            let expected = settled(&self.batch(sql, adds).await).map_err(said)?;
            let answer = settled(&sink.batches()).map_err(said)?;
            same(&expected, &answer).map_err(|e| format!("{mode}, {adds} adds: {sql}\n{e}"))?;
        }
        Ok(())
    }

    /// Every statement's failure, together.
    async fn all_answer(&self, mode: OutputMode, statements: &[&str]) {
        let mut failures = vec![];
        for sql in statements {
            failures.extend(self.answers(sql, mode).await.err());
        }
        assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), statements.len(), failures.join("\n\n"));
    }

    /// The refusal of a statement, message and hint.
    async fn refusal(&self, sql: &str, mode: OutputMode) -> Result<String, String> {
        let (sink, checkpoint) = (MemorySink::new(), memory_store());
        let started = match self.writer(sql, mode, &Self::sources(), &sink, &checkpoint).await {
            Ok(writer) => finish(writer).await.map(|_| ()),
            Err(refused) => Err(refused),
        };
        match started {
            Ok(()) => Err(format!("{mode}: accepted {sql}")),
            Err(refused) if refused.batch().is_some() => Err(format!("{mode}: failed only when run: {sql}\n{refused}")),
            Err(refused) => Ok(format!("{} ({})", refused.message(), refused.hint().unwrap_or_default())),
        }
    }

    /// Every statement is refused at the start with all of these words, and none after a `!`.
    async fn all_refused(&self, cases: &[(OutputMode, &str, &[&str])]) {
        let mut failures = vec![];
        for (mode, sql, words) in cases {
            match self.refusal(sql, *mode).await {
                Err(e) => failures.push(e),
                Ok(told) => {
                    let wrong = words.iter().filter(|word| match word.strip_prefix('!') {
                        Some(absent) => told.contains(absent),
                        None => !told.contains(**word),
                    });
                    let wrong: Vec<_> = wrong.collect();
                    if !wrong.is_empty() {
                        failures.push(format!("{mode}: {sql}\n{told}\nwanted {wrong:?}"));
                    }
                }
            }
        }
        assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n\n"));
    }
}
