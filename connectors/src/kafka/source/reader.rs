//! Fixes the offsets of each batch and binds them.

mod consumers;
mod reconcile;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use rdkafka::consumer::{CommitMode, Consumer};
use tidewater::checkpoint::CheckpointStore;
use tidewater::clock::Clock;
use tidewater::error::Result;
use tidewater::source::{Latest, Offset, OffsetRange, ReadLimit, ScanRequest, SourceContext, SourceReader};

use self::consumers::config;
use super::columns::Wanted;
use super::consume::Fetcher;
use super::discover::{Partitions, Place, Questions, Silence};
use super::scan::KafkaTask;
use super::settings::Settings;
use super::split::{Slice, split};
use super::{begin, initial, limit};
use crate::kafka::client::Context;
use crate::kafka::offsets::PartitionOffsets;
use crate::kafka::patience::{Deadline, wait};
use crate::kafka::problem::failed;

/// How often the broker is asked which partitions there are.
const DISCOVERY_MS: i64 = 1000;
/// How long a topic must be missing before it counts as deleted: a broker that is starting does not know its topics yet.
const DELETED_AFTER_MS: i64 = 3000;
/// How long a query that is starting waits for the broker.
const START_PATIENCE_MS: i64 = 15_000;
/// How long to wait before the same question is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// One run's view of the topics.
#[derive(Debug)]
pub(super) struct KafkaReader {
    settings: Arc<Settings>,
    context: Context,
    clock: Arc<dyn Clock>,
    log: Arc<dyn CheckpointStore>,
    lanes: usize,
    /// Asks, and fetches nothing: a broker answers the questions of a connection one after the other, and one that asks for
    /// records may take half a second to answer.
    asker: Arc<Fetcher>,
    /// The first fetches all partitions; others read further pieces of the same partition.
    fetchers: Vec<Arc<Fetcher>>,
    /// How many partitions a fetcher has.
    width: usize,
    /// Where the query began.
    initial: PartitionOffsets,
    /// The partitions of the topics, and when the broker was asked.
    known: Option<(i64, Partitions)>,
    /// Only what was there then is offered.
    frozen: Option<PartitionOffsets>,
    /// Since when the broker does not answer.
    away_since_ms: Option<i64>,
    /// Since when topics that the query reads are missing.
    missing_since_ms: Option<i64>,
    last_batch_ms: Option<i64>,
    bound: Option<Bound>,
    behind: Vec<u64>,
    told_group: Option<Offset>,
    malformed: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
}

/// What was bound for the batch that runs.
#[derive(Debug)]
struct Bound {
    range: OffsetRange,
    /// By partition: how many fetchers read it.
    fetchers: BTreeMap<(String, i32), usize>,
    dead_letters_told: bool,
}

impl KafkaReader {
    pub(super) async fn open(settings: Settings, context: SourceContext) -> Result<Self> {
        settings.check()?;
        let heard = Context::default();
        let asker = Fetcher::new(&config(&settings), heard.clone())
            .map_err(|e| failed("open the Kafka source", &settings.client, &heard, &e))?;
        let mut reader = KafkaReader {
            settings: Arc::new(settings),
            context: heard,
            clock: context.clock,
            log: context.log,
            lanes: context.partitions.max(1),
            asker: Arc::new(asker),
            fetchers: vec![],
            width: 1,
            initial: PartitionOffsets::new(),
            known: None,
            frozen: None,
            away_since_ms: None,
            missing_since_ms: None,
            last_batch_ms: None,
            bound: None,
            behind: vec![],
            told_group: None,
            malformed: Arc::default(),
            lost: Arc::default(),
        };
        reader.initial = match initial::read(&reader.log).await? {
            Some(initial) => initial,
            None => {
                let begin = reader.ask(START_PATIENCE_MS, begin::resolve)??;
                initial::keep(&reader.log, &begin).await?
            }
        };
        Ok(reader)
    }

    fn questions(&self) -> Questions<'_> {
        Questions { fetcher: &self.asker, settings: &self.settings }
    }

    /// Asks until there is an answer, or for so long.
    fn ask<T>(&self, patience_ms: i64, ask: impl Fn(&Questions<'_>) -> Result<T, Silence>) -> Result<T> {
        let deadline = Deadline::after(Duration::from_millis(patience_ms.unsigned_abs()));
        loop {
            match ask(&self.questions()) {
                Ok(answer) => return Ok(answer),
                Err(Silence::Away(error)) if !deadline.has_passed() => {
                    tracing::debug!(%error, "asking again");
                    wait(ASK_AGAIN);
                }
                Err(silence) => return Err(silence.into()),
            }
        }
    }

    /// The ends of all partitions; `None` while the broker is away.
    fn available(&mut self) -> Result<Option<PartitionOffsets>> {
        if let Some(frozen) = &self.frozen {
            return Ok(Some(frozen.clone()));
        }
        for fetcher in self.fetchers.iter().chain([&self.asker]) {
            fetcher.serve_events();
        }
        let now_ms = self.clock.now_ms();
        let answer =
            self.partitions(now_ms).and_then(|known| Ok((self.questions().offsets(&known.1, Place::Latest)?, known)));
        match answer {
            Ok((ends, known)) => {
                if self.away_since_ms.take().is_some() {
                    tracing::info!(brokers = self.settings.client.bootstrap(), "the broker answers again");
                }
                self.context.answered();
                self.known = Some(known);
                Ok(Some(ends))
            }
            Err(silence) => self.wait_for_broker(silence, now_ms).map(|()| None),
        }
    }

    /// The broker did not answer. It may be back at the next trigger; but patience has an end.
    fn wait_for_broker(&mut self, silence: Silence, now_ms: i64) -> Result<()> {
        // What is missing may be a partition that is no more.
        self.known = None;
        match silence {
            Silence::Refused(error) => Err(error),
            Silence::Away(error) => {
                if self.away_since_ms.is_none() {
                    tracing::warn!(%error, patience_ms = self.settings.patience_ms, "waiting for the broker");
                }
                let since_ms = *self.away_since_ms.get_or_insert(now_ms);
                if now_ms - since_ms >= self.settings.patience_ms { Err(error) } else { Ok(()) }
            }
        }
    }

    /// The partitions, and when the broker was asked.
    fn partitions(&self, now_ms: i64) -> Result<(i64, Partitions), Silence> {
        match &self.known {
            Some(known) if (0..DISCOVERY_MS).contains(&(now_ms - known.0)) => Ok(known.clone()),
            _ => Ok((now_ms, self.questions().partitions()?)),
        }
    }

    /// How much of it this batch takes; `None` if it is to wait for more.
    fn within_limits(&mut self, from: &PartitionOffsets, available: &PartitionOffsets) -> Option<PartitionOffsets> {
        let now_ms = self.clock.now_ms();
        if let (Some(min), Some(last_ms), None) = (self.settings.min_offsets, self.last_batch_ms, &self.frozen)
            && limit::too_few(from, available, min, now_ms - last_ms, self.settings.max_trigger_delay_ms)
        {
            return None;
        }
        Some(match self.settings.max_offsets {
            Some(max) => limit::cap(from, available, max),
            None => available.clone(),
        })
    }

    /// Tells the consumer group of the user's choice how far the query is.
    fn tell_group(&mut self, end: &Offset, last: bool) -> Result<()> {
        if self.settings.commit_group.is_none() || self.told_group.as_ref() == Some(end) {
            return Ok(());
        }
        let mut list = rdkafka::TopicPartitionList::new();
        for (topic, partition, offset) in PartitionOffsets::from_offset(end)?.iter() {
            // Numbers from the checkpoint: none is below zero.
            let added = list.add_partition_offset(topic, partition, rdkafka::Offset::Offset(offset.max(0)));
            added.map_err(|e| {
                failed("commit offsets to the consumer group", &self.settings.client, &self.context, &e)
            })?;
        }
        let mode = if last { CommitMode::Sync } else { CommitMode::Async };
        if let Err(error) = self.asker.consumer().commit(&list, mode) {
            // For tools that watch, and only for them.
            tracing::warn!(%error, group = self.settings.commit_group, "offsets were not committed to the consumer group");
        }
        self.told_group = Some(end.clone());
        Ok(())
    }
}

#[async_trait]
impl SourceReader for KafkaReader {
    async fn freeze(&mut self) -> Result<()> {
        let grace = Deadline::after(Duration::from_millis(DELETED_AFTER_MS.unsigned_abs()));
        let partitions = loop {
            let partitions = self.ask(START_PATIENCE_MS, |questions: &Questions<'_>| questions.partitions())?;
            let expected = self.initial.iter().all(|(topic, ..)| partitions.contains_key(topic));
            if expected || grace.has_passed() {
                break partitions;
            }
            wait(ASK_AGAIN);
        };
        self.frozen = Some(
            self.ask(START_PATIENCE_MS, |questions: &Questions<'_>| questions.offsets(&partitions, Place::Latest))?,
        );
        Ok(())
    }

    async fn latest_offset(&mut self, after: Option<&Offset>, limit: ReadLimit) -> Result<Latest> {
        let nothing_new = || Latest { end: after.cloned(), available: None };
        if let Some(after) = after {
            self.tell_group(after, self.frozen.is_some())?;
        }
        let from = after.map_or_else(|| Ok(self.initial.clone()), PartitionOffsets::from_offset)?;
        let Some(available) = self.available()? else { return Ok(nothing_new()) };
        let Some((begin, available)) = self.reconcile(&from, available)? else { return Ok(nothing_new()) };
        let is_there = |(topic, partition, from): &(&str, i32, i64)| {
            available.get(topic, *partition).is_some_and(|end| *from <= end)
        };
        let known = begin.iter().filter(is_there).map(|(topic, partition, from)| (topic.to_owned(), partition, from));
        self.fetch_ahead(&known.collect())?;
        let end = match limit {
            ReadLimit::Everything => Some(available.clone()),
            ReadLimit::AsConfigured => self.within_limits(&begin, &available),
        };
        let all = available.to_offset();
        let Some(end) = end else { return Ok(Latest { end: after.cloned(), available: Some(all) }) };
        self.behind = available
            .iter()
            .map(|(topic, partition, last)| {
                last.saturating_sub(end.get(topic, partition).unwrap_or(last)).max(0) as u64
            })
            .collect();
        if end == from {
            return Ok(Latest { end: after.cloned(), available: Some(all) });
        }
        self.last_batch_ms = Some(self.clock.now_ms());
        Ok(Latest { end: Some(end.to_offset()), available: Some(all) })
    }

    async fn bind(&mut self, range: &OffsetRange, scan: &ScanRequest) -> Result<Arc<dyn ExecutionPlan>> {
        if self.bound.as_ref().is_none_or(|bound| bound.range != *range) {
            self.bound = Some(Bound { range: range.clone(), fetchers: BTreeMap::new(), dead_letters_told: false });
        }
        let start = range.start.as_ref().map_or_else(|| Ok(self.initial.clone()), PartitionOffsets::from_offset)?;
        let slices = self.slices(&start, &PartitionOffsets::from_offset(&range.end)?)?;
        // As a batch that is run again is bound before anything was asked.
        self.fetch_ahead(&slices.iter().map(|s| (s.topic.clone(), s.partition, s.from)).collect())?;
        if slices.is_empty() {
            return Ok(Arc::new(EmptyExec::new(Arc::clone(&scan.schema))));
        }
        let mut wanted = Wanted {
            projection: scan.projection.clone(),
            schema: Arc::clone(&scan.schema),
            key_format: self.settings.key_format.clone(),
            value_format: self.settings.value_format.clone(),
            bad_records: self.settings.bad_records,
            source: self.settings.description(),
            malformed: Arc::clone(&self.malformed),
            tells_dead_letters: false,
        };
        if let Some(bound) = &mut self.bound {
            wanted.tells_dead_letters = wanted.decodes() && !bound.dead_letters_told;
            bound.dead_letters_told |= wanted.tells_dead_letters;
        }
        let wanted = Arc::new(wanted);
        let settings = Arc::clone(&self.settings);
        let mut tasks = vec![];
        for pieces in split(&slices, self.lanes, settings.min_partitions, settings.max_records_per_partition) {
            let mut read: Vec<(Slice, Arc<Fetcher>)> = vec![];
            for slice in pieces {
                let fetcher = match read.last() {
                    // A task reads the pieces of a partition one after the other.
                    Some((last, fetcher)) if (&last.topic, last.partition) == (&slice.topic, slice.partition) => {
                        Arc::clone(fetcher)
                    }
                    _ => {
                        let number = self.bound.as_mut().map_or(0, |bound| {
                            let readers = bound.fetchers.entry((slice.topic.clone(), slice.partition)).or_default();
                            *readers += 1;
                            *readers - 1
                        });
                        self.fetcher(number)?
                    }
                };
                read.push((slice, fetcher));
            }
            let task = KafkaTask {
                pieces: read,
                wanted: Arc::clone(&wanted),
                settings: Arc::clone(&settings),
                asker: Arc::clone(&self.asker),
                context: self.context.clone(),
                lost: Arc::clone(&self.lost),
            };
            tasks.push(Arc::new(task) as Arc<dyn PartitionStream>);
        }
        Ok(Arc::new(StreamingTableExec::try_new(Arc::clone(&scan.schema), tasks, None, [], false, None)?))
    }

    async fn commit(&mut self, end: &Offset) -> Result<()> {
        self.tell_group(end, false)
    }

    fn metrics(&self) -> BTreeMap<String, String> {
        let mut metrics = BTreeMap::new();
        if let (Some(min), Some(max)) = (self.behind.iter().min(), self.behind.iter().max()) {
            let avg = self.behind.iter().map(|behind| *behind as f64).sum::<f64>() / self.behind.len() as f64;
            metrics.insert("minOffsetsBehindLatest".to_owned(), min.to_string());
            metrics.insert("maxOffsetsBehindLatest".to_owned(), max.to_string());
            metrics.insert("avgOffsetsBehindLatest".to_owned(), avg.to_string());
        }
        for (name, count) in [("malformedRecords", &self.malformed), ("lostOffsets", &self.lost)] {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                metrics.insert(name.to_owned(), count.to_string());
            }
        }
        metrics
    }
}
