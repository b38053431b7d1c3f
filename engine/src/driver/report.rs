//! What the driver reports of each batch.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::Driver;
use super::inputs::Inputs;
use super::shared::Read;
use super::sinks::RowCounts;
use crate::batch::EventTimeStats;
use crate::checkpoint::OffsetEntry;
use crate::execution::Outcome;
use crate::progress::{
    QueryEvent, QueryProgress, SinkProgress, SourceProgress, StateOperatorProgress, Stopwatch, rows_per_second,
    timestamp,
};
use crate::source::{LatestOffset, Offset, add_metrics};

impl Driver {
    /// Makes the progress of a batch that is done, keeps it and sends it to listeners.
    #[expect(clippy::too_many_arguments, reason = "all that is known of a batch, once")]
    pub(super) fn report(
        &self,
        started_ms: i64,
        entry: &OffsetEntry,
        latest: &[LatestOffset],
        outcome: &Outcome,
        inputs: Inputs,
        given: RowCounts,
        state_operators: Vec<StateOperatorProgress>,
        watch: &Stopwatch,
    ) {
        let since_last = self.last_trigger.map(|last| watch.started().saturating_sub(last));
        let since_last_ms = since_last.map(|since| since.as_micros() as f64 / 1000.0);
        let took_ms = watch.total_ms();
        let holds_watermark =
            self.tracker.held_by().and_then(|node| self.plan.watermark_sources.get(node).copied().flatten());
        let json = |offset: Option<&Offset>| offset.map_or(Value::Null, Offset::value);
        let sources: Vec<SourceProgress> = self
            .plan
            .sources
            .iter()
            .enumerate()
            .map(|(number, source)| {
                let leaves = self.plan.leaves.iter().filter(|leaf| leaf.source == number);
                let rows = leaves.map(|leaf| outcome.rows_read(leaf.id)).sum();
                SourceProgress {
                    description: source.description(),
                    start_offset: json(self.ends.get(number).and_then(Option::as_ref)),
                    end_offset: json(entry.ends.get(number).and_then(Option::as_ref)),
                    latest_offset: json(latest.get(number).and_then(|latest| latest.latest.as_ref())),
                    num_input_rows: rows,
                    input_rows_per_second: rows_per_second(rows, since_last_ms),
                    processed_rows_per_second: rows_per_second(rows, Some(took_ms)),
                    metrics: self.source_metrics(number, outcome),
                    holds_watermark: holds_watermark == Some(number),
                }
            })
            .collect();
        let rows = sources.iter().map(|source| source.num_input_rows).sum();
        let dead_letters = given.dead_letters.map(|rows| ("deadLetterRows".to_owned(), rows.to_string()));
        let progress = Arc::new(QueryProgress {
            id: self.shared.id,
            run_id: self.shared.run_id,
            name: self.shared.name.clone(),
            timestamp: timestamp(started_ms),
            batch_id: self.next,
            batch_duration: took_ms as i64,
            num_input_rows: rows,
            input_rows_per_second: rows_per_second(rows, since_last_ms),
            processed_rows_per_second: rows_per_second(rows, Some(took_ms)),
            duration_ms: self.between.durations_ms(watch),
            event_time: self.event_time(entry.watermark_ms, &outcome.event_times),
            state_operators,
            sources,
            sink: SinkProgress {
                description: self.sinks.description.clone(),
                num_output_rows: given.output,
                metrics: dead_letters.into_iter().collect(),
            },
        });
        tracing::debug!(rows, output_rows = given.output, dead_letter_rows = given.dead_letters, took_ms, "batch done");
        self.events.send(|| QueryEvent::Progress(Arc::clone(&progress)));
        self.shared.state.send_modify(|state| {
            state.status.message = format!("batch {} is done", self.next);
            state.status.is_trigger_active = false;
            state.status.is_data_available = true;
            state.watermark_ms = self.tracker.is_used().then(|| self.tracker.watermark_ms());
            state.read = Some(Read { batch: self.next, inputs: Arc::new(inputs), scanners: Arc::clone(&self.shown) });
            state.recent.push_back(progress);
            while state.recent.len() > self.config.recent_progress.max(1) {
                state.recent.pop_front();
            }
        });
    }

    /// The source's own figures, and since when it does not answer.
    fn source_metrics(&self, number: usize, outcome: &Outcome) -> BTreeMap<String, String> {
        let mut metrics = self.readers.get(number).map(|reader| reader.metrics()).unwrap_or_default();
        if let Some(scanned) = outcome.source_metrics(number) {
            add_metrics(&mut metrics, scanned);
        }
        if let Some(since_ms) = self.silences.since_ms(number) {
            metrics.insert("unknownSince".to_owned(), timestamp(since_ms));
        }
        metrics
    }

    /// `watermark`, and the range of event times if there were any.
    fn event_time(&self, watermark_ms: i64, nodes: &[EventTimeStats]) -> BTreeMap<String, String> {
        let mut times = BTreeMap::new();
        if !self.tracker.is_used() {
            return times;
        }
        let mut seen = EventTimeStats::default();
        nodes.iter().for_each(|node| seen.merge(node));
        times.insert("watermark".to_owned(), timestamp(watermark_ms));
        if seen.count > 0 {
            times.insert("min".to_owned(), timestamp(seen.min_ms));
            times.insert("max".to_owned(), timestamp(seen.max_ms));
            times.insert("avg".to_owned(), timestamp(seen.avg_ms as i64));
        }
        if seen.out_of_range > 0 {
            times.insert("outOfRange".to_owned(), seen.out_of_range.to_string());
        }
        times
    }

    /// Reports that a round found nothing, or cannot know; listeners are notified now and then.
    pub(super) fn report_idle(&mut self, now_ms: i64) {
        if self.silences.any() {
            self.report_silence(now_ms);
            return;
        }
        self.shared.state.send_modify(|state| {
            state.idle_round = state.rounds;
            state.status.message = "waiting for data to arrive".to_owned();
            state.status.is_data_available = false;
            state.status.is_trigger_active = false;
        });
        if self.idle_event_is_due() {
            self.last_idle_event = self.clock.elapsed();
            let (id, run_id) = (self.shared.id, self.shared.run_id);
            self.events.send(|| QueryEvent::Idle { id, run_id, timestamp: timestamp(now_ms) });
        }
    }

    /// Whether it is time to notify listeners again that there is nothing to do.
    pub(super) fn idle_event_is_due(&self) -> bool {
        let since = self.clock.elapsed().saturating_sub(self.last_idle_event);
        since.as_millis() as i64 >= self.config.idle_event_interval_ms
    }
}
