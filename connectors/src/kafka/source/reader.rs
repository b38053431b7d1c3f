//! Fixes the offsets of each batch and splits them.

mod group;
mod reconcile;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tidewater::checkpoint::MetadataStore;
use tidewater::clock::Clock;
use tidewater::error::{Error, Result};
use tidewater::executor::block_in_place;
use tidewater::source::{
    LatestOffset, MicroBatchStream, Offset, OffsetRange, ReadLimit, ScanRequest, SourceContext, Split,
};

use self::reconcile::Reconciled;
use super::columns::Wanted;
use super::consumers::config;
use super::discover::{BrokerError, Found, MetadataQueries, OffsetSpec};
use super::fetcher::Fetcher;
use super::identity::TopicIds;
use super::scanner::{KafkaSplit, LOST};
use super::settings::Settings;
use super::split::{Piece, Slice, split};
use super::{begin, initial, limit, read_ahead};
use crate::kafka::client::ClientEvents;
use crate::kafka::errors::to_error;
use crate::kafka::offsets::PartitionOffsets;
use crate::kafka::retry::{Deadline, wait};
use crate::memory::Claim;

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
    events: ClientEvents,
    clock: Arc<dyn Clock>,
    log: Arc<dyn MetadataStore>,
    target_partitions: usize,
    /// Asks, and fetches nothing.
    metadata_client: Fetcher,
    /// Where the query began.
    initial: (PartitionOffsets, TopicIds),
    /// The ids that this run saw first of topics whose ids the checkpoint does not hold.
    first_ids: TopicIds,
    /// The topics, and when the broker was asked.
    known: Option<(i64, Found)>,
    /// Only what was there then is offered.
    frozen: Option<There>,
    /// The query ends by itself: whoever asks waits for an answer.
    ends: bool,
    /// Since when the broker does not answer.
    away_since_ms: Option<i64>,
    /// Since when topics that the query reads are missing.
    missing_since_ms: Option<i64>,
    last_batch_ms: Option<i64>,
    cut: Option<Cut>,
    lag: Vec<u64>,
    committed_to_group: Option<Offset>,
    lost: AtomicU64,
}

/// What there is to read: where each partition ends, and which topics they are of.
#[derive(Debug, Clone, Default)]
struct There {
    ends: PartitionOffsets,
    ids: TopicIds,
}

/// How the batch that runs was split.
#[derive(Debug)]
struct Cut {
    range: OffsetRange,
    /// By partition: how many consumers read it.
    consumers: BTreeMap<(String, i32), usize>,
    dead_letters_emitted: bool,
}

impl KafkaReader {
    pub(super) async fn open(settings: Settings, context: SourceContext) -> Result<Self> {
        settings.check()?;
        let events = ClientEvents::default();
        let memory = Arc::clone(&context.session.runtime_env().memory_pool);
        let nothing = Claim::new(&memory, "a consumer that fetches nothing", read_ahead::HINT);
        let metadata_client = Fetcher::new(&config(&settings), events.clone(), nothing, 0)
            .map_err(|e| to_error("open the Kafka source", &settings.client, &events, &e))?;
        let mut reader = KafkaReader {
            settings: Arc::new(settings),
            events,
            clock: context.clock,
            log: context.log,
            target_partitions: context.partitions.max(1),
            metadata_client,
            initial: Default::default(),
            first_ids: TopicIds::default(),
            known: None,
            frozen: None,
            ends: false,
            away_since_ms: None,
            missing_since_ms: None,
            last_batch_ms: None,
            cut: None,
            lag: vec![],
            committed_to_group: None,
            lost: AtomicU64::default(),
        };
        reader.initial = match initial::read(&reader.log).await? {
            Some(initial) => initial,
            None => {
                let (begin, ids) = reader.ask(START_PATIENCE_MS, begin::resolve)??;
                initial::keep(&reader.log, begin, ids).await?
            }
        };
        Ok(reader)
    }

    fn queries(&self) -> MetadataQueries<'_> {
        MetadataQueries { fetcher: &self.metadata_client, settings: &self.settings }
    }

    /// Asks until there is an answer, or for so long.
    fn ask<T>(
        &self,
        patience_ms: i64,
        ask: impl Fn(&MetadataQueries<'_>) -> Result<T, BrokerError>,
    ) -> Result<T, BrokerError> {
        let deadline = Deadline::after(Duration::from_millis(patience_ms.unsigned_abs()));
        loop {
            match ask(&self.queries()) {
                Ok(answer) => return Ok(answer),
                Err(BrokerError::Retriable(error)) if !deadline.has_passed() => {
                    tracing::debug!(%error, "asking again");
                    wait(ASK_AGAIN);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What there is now. The inner error says why nobody knows: the broker may be back at the next trigger.
    ///
    /// A query that ends after this batch waits for the answer, and for topics of `from` that are missing: a broker that is
    /// starting does not know its topics yet.
    fn available(&mut self, from: &PartitionOffsets) -> Result<Result<There, Error>> {
        let is_whole = |there: &There| from.iter().all(|(topic, id, _)| there.ends.get(topic, id).is_some());
        if let Some(frozen) = self.frozen.as_ref().filter(|frozen| is_whole(frozen)) {
            return Ok(Ok(frozen.clone()));
        }
        self.metadata_client.serve_events();
        let patience_ms = if self.ends { START_PATIENCE_MS.min(self.settings.patience_ms) } else { 0 };
        let grace = Deadline::after(Duration::from_millis(DELETED_AFTER_MS.unsigned_abs()));
        loop {
            let now_ms = self.clock.now_ms();
            let is_new = |known: &&(i64, Found)| (0..DISCOVERY_MS).contains(&(now_ms - known.0));
            let known = self.known.as_ref().filter(|known| !self.ends && is_new(known));
            let answer = self.ask(patience_ms, |queries: &MetadataQueries<'_>| {
                let known = known.map_or_else(|| Ok((now_ms, queries.topics()?)), |known| Ok(known.clone()))?;
                Ok((queries.offsets(&known.1.partitions, OffsetSpec::Latest)?, known))
            });
            let (there, known) = match answer {
                Ok((ends, known)) => (There { ends, ids: known.1.ids.clone() }, known),
                Err(error) => return self.wait_for_broker(error).map(Err),
            };
            if self.away_since_ms.take().is_some() {
                tracing::info!(brokers = self.settings.client.bootstrap(), "the broker answers again");
            }
            self.events.clear_error();
            self.known = Some(known);
            if self.ends && !is_whole(&there) && !grace.has_passed() {
                wait(ASK_AGAIN);
                continue;
            }
            if let Some(frozen) = &mut self.frozen {
                *frozen = there.clone();
            }
            return Ok(Ok(there));
        }
    }

    /// The broker did not answer, and why. It may be back at the next trigger; but patience has an end.
    fn wait_for_broker(&mut self, error: BrokerError) -> Result<Error> {
        // What is missing may be a partition that is no more.
        self.known = None;
        self.lag.clear();
        match error {
            BrokerError::Fatal(error) => Err(error),
            BrokerError::Retriable(error) => {
                let now_ms = self.clock.now_ms();
                let since_ms = *self.away_since_ms.get_or_insert(now_ms);
                if now_ms - since_ms >= self.settings.patience_ms { Err(error) } else { Ok(error) }
            }
        }
    }

    /// Where a range begins or ends, and of which topics these are offsets, as far as that is known.
    fn place(&self, offset: Option<&Offset>) -> Result<(PartitionOffsets, TopicIds)> {
        let (offsets, mut ids) = match offset {
            Some(offset) => (PartitionOffsets::from_offset(offset)?, TopicIds::of(offset)?),
            None => self.initial.clone(),
        };
        ids.learn(&self.first_ids.only(offsets.iter().map(|(topic, ..)| topic)));
        Ok((offsets, ids))
    }

    /// How much of it this batch takes; `None` if it is to wait for more.
    fn within_limits(
        &mut self,
        from: &PartitionOffsets,
        available: &PartitionOffsets,
    ) -> Result<Option<PartitionOffsets>> {
        let now_ms = self.clock.now_ms();
        if let (Some(min), Some(last_ms), None) = (self.settings.min_offsets, self.last_batch_ms, &self.frozen)
            && limit::too_few(from, available, min, now_ms - last_ms, self.settings.max_trigger_delay_ms()?)
        {
            return Ok(None);
        }
        Ok(Some(match self.settings.max_offsets {
            Some(max) => limit::cap(from, available, max),
            None => available.clone(),
        }))
    }
}

impl KafkaReader {
    fn latest(&mut self, after: Option<&Offset>, limit: ReadLimit) -> Result<LatestOffset> {
        if let Some(after) = after {
            self.commit_to_group(after, self.frozen.is_some())?;
        }
        let (from, ids) = self.place(after)?;
        self.ends = self.frozen.is_some() || limit == ReadLimit::All;
        let there = match self.available(&from)? {
            Ok(there) => there,
            Err(why) => return Ok(LatestOffset::unknown(after, why)),
        };
        let Reconciled { from: begin, there, is_new, missing } = match self.reconcile(&from, &ids, there)? {
            Ok(reconciled) => reconciled,
            Err(why) => return Ok(LatestOffset::unknown(after, why)),
        };
        let There { ends: available, ids } = there;
        let end = match limit {
            ReadLimit::All => Some(available.clone()),
            ReadLimit::Configured => self.within_limits(&begin, &available)?,
        };
        let mut latest = LatestOffset::nothing().with_latest(available.to_offset());
        (latest.batch_end, latest.unknown) = (after.cloned(), missing);
        let Some(end) = end else { return Ok(latest) };
        self.lag = available
            .iter()
            .map(|(topic, partition, last)| {
                last.saturating_sub(end.get(topic, partition).unwrap_or(last)).max(0) as u64
            })
            .collect();
        if end != from || is_new {
            self.last_batch_ms = Some(self.clock.now_ms());
            latest.batch_end = Some(ids.beside(&end));
        }
        Ok(latest)
    }
}

impl KafkaReader {
    /// The partitions of a range that have nothing new in it, as far as the broker knows them.
    fn at_rest(&self, range: &OffsetRange, slices: &[Slice]) -> Result<Vec<(String, i32, i64)>> {
        let Some((_, known)) = &self.known else { return Ok(vec![]) };
        let is_read: BTreeSet<_> = slices.iter().map(|slice| (slice.topic.as_str(), slice.partition)).collect();
        let end = PartitionOffsets::from_offset(&range.end)?;
        let at_rest = end.iter().filter(|(topic, partition, _)| {
            let is_there = known.partitions.get(*topic).is_some_and(|there| there.contains(partition));
            is_there && !is_read.contains(&(*topic, *partition))
        });
        Ok(at_rest.map(|(topic, partition, end)| (topic.to_owned(), partition, end)).collect())
    }

    /// Who reads which piece at one place of the plan.
    fn cut(
        &mut self,
        range: &OffsetRange,
        slices: &[Slice],
        ids: &TopicIds,
        mut at_rest: Vec<(String, i32, i64)>,
        scan: &ScanRequest,
    ) -> Vec<KafkaSplit> {
        let mut cut = match self.cut.take() {
            Some(cut) if cut.range == *range => cut,
            _ => Cut { range: range.clone(), consumers: BTreeMap::new(), dead_letters_emitted: false },
        };
        let decodes = Wanted::new(&self.settings, scan, Arc::default(), false).decodes();
        let emits_dead_letters = decodes && !cut.dead_letters_emitted && !slices.is_empty();
        cut.dead_letters_emitted |= emits_dead_letters;
        let settings = &self.settings;
        let mut splits = vec![];
        for slices in split(slices, self.target_partitions, settings.min_partitions, settings.max_records_per_partition)
        {
            let mut pieces: Vec<Piece> = vec![];
            for slice in slices {
                let consumer = match pieces.last() {
                    // A task reads the pieces of a partition one after the other.
                    Some(last) if (&last.slice.topic, last.slice.partition) == (&slice.topic, slice.partition) => {
                        last.consumer
                    }
                    _ => {
                        let readers = cut.consumers.entry((slice.topic.clone(), slice.partition)).or_default();
                        *readers += 1;
                        *readers - 1
                    }
                };
                pieces.push(Piece { slice, consumer });
            }
            let ids = ids.only(pieces.iter().map(|piece| piece.slice.topic.as_str()));
            splits.push(KafkaSplit { pieces, ids, emits_dead_letters, at_rest: std::mem::take(&mut at_rest) });
        }
        self.cut = Some(cut);
        splits
    }
}

#[async_trait]
impl MicroBatchStream for KafkaReader {
    async fn prepare_for_available_now(&mut self) -> Result<()> {
        self.ends = true;
        let initial = self.initial.0.clone();
        self.frozen = Some(block_in_place(|| self.available(&initial))??);
        Ok(())
    }

    async fn latest_offset(&mut self, after: Option<&Offset>, limit: ReadLimit) -> Result<LatestOffset> {
        // It waits for the brokers' answers on its thread.
        block_in_place(|| self.latest(after, limit))
    }

    async fn splits(&mut self, range: &OffsetRange, scan: &ScanRequest) -> Result<Option<Vec<Split>>> {
        let (slices, ids) = block_in_place(|| self.slices(range))?;
        let at_rest = self.at_rest(range, &slices)?;
        self.cut(range, &slices, &ids, at_rest, scan).iter().map(Split::new).collect::<Result<_>>().map(Some)
    }

    async fn commit(&mut self, end: &Offset) -> Result<()> {
        block_in_place(|| self.commit_to_group(end, false))
    }

    fn metrics(&self) -> BTreeMap<String, String> {
        let mut metrics = BTreeMap::new();
        if let (Some(min), Some(max)) = (self.lag.iter().min(), self.lag.iter().max()) {
            let avg = self.lag.iter().map(|behind| *behind as f64).sum::<f64>() / self.lag.len() as f64;
            metrics.insert("minOffsetsBehindLatest".to_owned(), min.to_string());
            metrics.insert("maxOffsetsBehindLatest".to_owned(), max.to_string());
            metrics.insert("avgOffsetsBehindLatest".to_owned(), avg.to_string());
        }
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > 0 {
            metrics.insert(LOST.to_owned(), lost.to_string());
        }
        metrics
    }
}
