//! One piece of a partition after the other, as a stream of record batches.
//!
//! A task reads its pieces in order. While librdkafka has nothing for it, it waits, looking every few milliseconds whether
//! the batch was given up; a broker that is away for less than the source's patience is only a pause.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use futures::stream;
use parking_lot::Mutex;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use tidewater::batch::BatchContext;
use tidewater::error::{Error, ErrorKind, Result};
use tidewater::executor::block_in_place;

use super::columns::{Columns, Finished, Wanted};
use super::consume::PartitionQueue;
use super::consumers::Consumers;
use super::discover::{BrokerError, MetadataQueries};
use super::fetcher::Fetcher;
use super::identity::TopicIds;
use super::settings::Settings;
use super::split::{Piece, Slice};
use crate::kafka::errors::to_error;
use crate::kafka::offsets::PartitionOffsets;
use crate::kafka::retry::{Deadline, wait};
use crate::memory::{Claim, left_in};

/// How long one wait for messages is.
const WAIT: Duration = Duration::from_millis(5);

/// How long nothing may come before the broker is asked whether there is something.
const CHECK_INTERVAL: Duration = Duration::from_secs(3);

/// The tasks of a batch fill record batches of one part in so many of what is left in the memory pool.
const SHARE: usize = 8;

/// What to do where there is no memory for the messages.
const MEMORY_HINT: &str =
    "give the session a larger memory pool, or read fewer messages per batch with `maxOffsetsPerTrigger`";

/// What one task of a batch reads.
#[derive(Debug)]
pub(super) struct KafkaTask {
    pub(super) pieces: Vec<Piece>,
    pub(super) wanted: Arc<Wanted>,
    pub(super) settings: Arc<Settings>,
    pub(super) consumers: Arc<Consumers>,
    pub(super) beginning: Arc<Beginning>,
    /// The topics that it is to read.
    pub(super) ids: TopicIds,
    /// Offsets that were gone before they were read.
    pub(super) lost: Arc<AtomicU64>,
}

/// Where a batch begins to fetch: all its partitions at once, when the first task begins.
#[derive(Debug)]
pub(super) struct Beginning {
    places: PartitionOffsets,
    ids: TopicIds,
    has_begun: Mutex<bool>,
}

impl Beginning {
    pub(super) fn new(places: PartitionOffsets, ids: TopicIds) -> Self {
        Beginning { places, ids, has_begun: Mutex::new(false) }
    }

    fn begin(&self, consumers: &Consumers) -> Result<()> {
        let mut has_begun = self.has_begun.lock();
        if !*has_begun {
            consumers.fetch(&self.places, &self.ids)?;
            *has_begun = true;
        }
        Ok(())
    }
}

impl PartitionStream for KafkaTask {
    fn schema(&self) -> &SchemaRef {
        &self.wanted.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        // All tasks of the batch together take no more than a part of what is left: what comes behind them needs some, too.
        let tasks = SHARE.saturating_mul(context.session_config().target_partitions().max(1));
        let most = left_in(context.memory_pool()).map_or(usize::MAX, |left| left / tasks);
        let reading = Reading {
            beginning: Some(Arc::clone(&self.beginning)),
            left: self.pieces.iter().cloned().collect(),
            now: None,
            columns: Columns::new(Arc::clone(&self.wanted), most),
            settings: Arc::clone(&self.settings),
            consumers: Arc::clone(&self.consumers),
            ids: self.ids.clone(),
            is_confirmed: false,
            lost: Arc::clone(&self.lost),
            memory: Claim::new(context.memory_pool(), format!("what is read of {}", self.wanted.source), MEMORY_HINT),
        };
        let rows = stream::try_unfold(reading, move |mut reading| {
            let context = Arc::clone(&context);
            async move {
                let rows = reading.next(&context).await?;
                Ok(rows.map(|rows| (rows, reading)))
            }
        });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.wanted.schema), rows))
    }
}

/// A piece that is being read.
struct Open {
    slice: Slice,
    fetcher: Arc<Fetcher>,
    queue: Arc<PartitionQueue>,
    /// All below has been read.
    next: i64,
    /// How long to wait for more.
    deadline: Deadline,
    /// When to ask the broker whether there is more.
    next_check: Deadline,
    /// How many times in a row it said that there is no such partition.
    missing: u32,
    /// librdkafka reported an error, and fetches no more.
    stopped: bool,
}

struct Reading {
    /// Until the batch has begun.
    beginning: Option<Arc<Beginning>>,
    left: VecDeque<Piece>,
    now: Option<Open>,
    columns: Columns,
    settings: Arc<Settings>,
    consumers: Arc<Consumers>,
    ids: TopicIds,
    /// It is known that all came from topics with these ids.
    is_confirmed: bool,
    lost: Arc<AtomicU64>,
    /// For the rows that are filled in, and for those that were given out until more are asked for.
    memory: Claim,
}

impl Reading {
    /// The next rows; `None` at the end of the last piece.
    async fn next(&mut self, context: &TaskContext) -> Result<Option<RecordBatch>> {
        if let Some(beginning) = self.beginning.take() {
            block_in_place(|| beginning.begin(&self.consumers))?;
        }
        loop {
            self.memory.free();
            let over = self.fill(context).await?;
            if over && !self.is_confirmed {
                self.confirm(context).await?;
            }
            let Finished { rows, dead_letters } = self.columns.finish()?;
            if let Some(dead_letters) = dead_letters.filter(|rows| rows.num_rows() > 0) {
                BatchContext::of(context)?.dead_letter(dead_letters)?;
            }
            if rows.num_rows() > 0 {
                return Ok(Some(rows));
            }
            if over {
                return Ok(None);
            }
        }
    }

    /// Reads until the columns are full (false) or there is nothing left to read (true).
    async fn fill(&mut self, context: &TaskContext) -> Result<bool> {
        let deadline = self.deadline();
        if let Some(piece) = &mut self.now {
            // The time that others took for the rows before is not the broker's.
            piece.deadline = deadline;
        }
        while self.columns.room() > 0 {
            if self.now.is_none() {
                let Some(piece) = self.left.pop_front() else { return Ok(true) };
                self.now = Some(self.open(piece)?);
            }
            let deadline = self.deadline();
            let Some(piece) = &mut self.now else { continue };
            let before = piece.next;
            let columns = &mut self.columns;
            let Slice { topic, partition, to, .. } = &piece.slice;
            let mut has_memory = true;
            // It waits for messages on its thread.
            let taken = block_in_place(|| {
                piece.queue.take(*to, columns.room(), WAIT, |message| {
                    columns.push(topic, *partition, message);
                    columns.room() > 0
                })
            });
            match taken {
                Ok(taken) => {
                    piece.next = taken.next;
                    has_memory = self.account(taken.left_over)?;
                }
                Err(error) => {
                    // What came before the error was handed out.
                    piece.next = piece.queue.next();
                    self.after_error(&error)?;
                }
            }
            let Some(piece) = &mut self.now else { continue };
            if piece.next >= piece.slice.to {
                self.now = None;
            } else if piece.next > before {
                (piece.deadline, piece.next_check) = (deadline, Deadline::after(CHECK_INTERVAL));
            } else {
                // Outside a query, as in a test of the source alone, nobody gives up.
                if let Ok(batch) = BatchContext::of(context) {
                    batch.check_cancelled()?;
                }
                if self.now.as_ref().is_some_and(|piece| piece.next_check.has_passed()) {
                    self.check_log_bounds()?;
                }
                self.fail_on_timeout()?;
                tokio::task::yield_now().await;
            }
            if !has_memory {
                break;
            }
        }
        Ok(false)
    }

    /// Accounts for the rows so far, and for messages that wait to become some. False if the pool has no room for what came
    /// last: then the record batch ends here, and the next begins with what others have given back by then.
    fn account(&self, left_over: usize) -> Result<bool> {
        match self.memory.resize(self.columns.memory() + left_over) {
            Ok(()) => Ok(true),
            Err(_) if self.memory.bytes() > 0 => Ok(false),
            Err(refused) => Err(refused),
        }
    }

    /// Sees that all that was read came from the topics that it was to come from: librdkafka goes on at the old offset in a
    /// topic that is deleted and made again under its hands. So they are asked for after the last record has come.
    async fn confirm(&mut self, context: &TaskContext) -> Result<()> {
        let deadline = self.deadline();
        while !self.ids.is_empty() {
            match block_in_place(|| self.check_ids()) {
                Ok(()) => break,
                Err(BrokerError::Fatal(error)) => return Err(error),
                Err(BrokerError::Retriable(error)) if deadline.has_passed() => return Err(error),
                Err(BrokerError::Retriable(_)) => {}
            }
            if let Ok(batch) = BatchContext::of(context) {
                batch.check_cancelled()?;
            }
            block_in_place(|| wait(WAIT));
            tokio::task::yield_now().await;
        }
        self.is_confirmed = true;
        Ok(())
    }

    /// An error if a topic is another one by now. One that is gone says nothing of what was read before.
    fn check_ids(&self) -> Result<(), BrokerError> {
        let metadata_client = self.consumers.metadata_client().map_err(BrokerError::Fatal)?;
        let queries = MetadataQueries { fetcher: &metadata_client, settings: &self.settings };
        let now = TopicIds::described(queries.describe(self.ids.topics())?);
        match self.ids.made_again(&now).first() {
            Some(topic) => {
                let what = self.ids.describe_change(topic, &now);
                let what = format!("{what}; this happened while the batch was read, and its rows are of both");
                Err(BrokerError::Fatal(Error::new(ErrorKind::SourceLostData, what).with_hint(MADE_AGAIN_HINT)))
            }
            None => Ok(()),
        }
    }

    fn open(&self, piece: Piece) -> Result<Open> {
        let Piece { slice, consumer } = piece;
        let fetcher = self.consumers.fetcher(consumer)?;
        let queue = fetcher.read_from(&slice.topic, slice.partition, slice.from).map_err(|e| {
            let action = format!("read {slice}");
            e.into_error(|e| to_error(&action, &self.settings.client, self.consumers.context(), e))
        })?;
        let (deadline, next_check) = (self.deadline(), Deadline::after(CHECK_INTERVAL));
        Ok(Open { next: slice.from, slice, fetcher, queue, deadline, next_check, missing: 0, stopped: false })
    }

    /// librdkafka gave an error instead of messages: records may be gone. What the error says may be long over, so the
    /// broker is asked what there is now.
    fn after_error(&mut self, error: &KafkaError) -> Result<()> {
        use RDKafkaErrorCode as Code;
        let Some(piece) = &mut self.now else { return Ok(()) };
        match error.rdkafka_error_code() {
            Some(
                Code::AutoOffsetReset
                | Code::OffsetOutOfRange
                | Code::NoOffset
                | Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::UnknownPartition,
            ) => {
                piece.stopped = true;
                self.check_log_bounds()
            }
            Some(Code::LogTruncation) => {
                let what = format!(
                    "cannot read {}: the partition has a new leader that lacked records which were read, after an unclean \
                     election; offset {} is another record now",
                    piece.slice, piece.next
                );
                let error = Error::new(ErrorKind::SourceLostData, what).with_hint(LOSS_HINT).with_source(error.clone());
                if self.settings.fail_on_data_loss {
                    return Err(error);
                }
                tracing::warn!(%error, "going on with what the new leader has");
                piece.stopped = true;
                self.check_log_bounds()
            }
            _ => {
                let action = format!("read {}", piece.slice);
                Err(to_error(&action, &self.settings.client, self.consumers.context(), error))
            }
        }
    }

    /// Compares what is still to be read with what the broker has. librdkafka keeps it to itself when a topic is deleted
    /// under its hands, so it is asked also when nothing comes for a while.
    fn check_log_bounds(&mut self) -> Result<()> {
        let Some(piece) = &mut self.now else { return Ok(()) };
        piece.next_check = Deadline::after(CHECK_INTERVAL);
        let action = format!("read {}", piece.slice);
        let failed = |error: &KafkaError| to_error(&action, &self.settings.client, self.consumers.context(), error);
        match self.check_ids() {
            Err(BrokerError::Fatal(error)) => return Err(error),
            Err(BrokerError::Retriable(_)) => return Ok(()),
            Ok(()) => {}
        }
        let Some(piece) = &mut self.now else { return Ok(()) };
        let metadata_client = self.consumers.metadata_client()?;
        let queries = MetadataQueries { fetcher: &metadata_client, settings: &self.settings };
        let (first, end) = match queries.extent(&piece.slice.topic, piece.slice.partition) {
            Ok(Some(extent)) => extent,
            Ok(None) => {
                // A broker that is starting does not know its topics yet.
                piece.missing += 1;
                if piece.missing < 2 {
                    return Ok(());
                }
                let error = Error::new(ErrorKind::SourceLostData, format!("cannot {action}: the topic is gone"));
                return self.skip_lost_range(error);
            }
            Err(BrokerError::Retriable(_)) => return Ok(()),
            Err(BrokerError::Fatal(error)) => return Err(error),
        };
        piece.missing = 0;
        if (first..end).contains(&piece.next) {
            if piece.stopped {
                piece.queue.restart(piece.next).map_err(|e| failed(&e))?;
                piece.stopped = false;
            }
            return Ok(());
        }
        let what = if first > piece.next {
            format!("the first record that is left has offset {first}, and offset {} is needed", piece.next)
        } else {
            format!("the partition ends at offset {end}, and offset {} is needed", piece.next)
        };
        let error = Error::new(ErrorKind::SourceLostData, format!("cannot {action}: {what}"));
        if !(piece.next..piece.slice.to).contains(&first) {
            return self.skip_lost_range(error);
        }
        let error = error.with_hint(LOSS_HINT);
        if self.settings.fail_on_data_loss {
            return Err(error);
        }
        tracing::warn!(%error, "going on with what is left");
        self.lost.fetch_add(first.abs_diff(piece.next), Ordering::Relaxed);
        piece.queue.restart(first).map_err(|e| failed(&e))?;
        (piece.next, piece.stopped) = (first, false);
        Ok(())
    }

    fn skip_lost_range(&mut self, error: Error) -> Result<()> {
        let error = error.with_hint(LOSS_HINT);
        if self.settings.fail_on_data_loss {
            return Err(error);
        }
        tracing::warn!(%error, "going on without them");
        if let Some(piece) = &mut self.now {
            self.lost.fetch_add(piece.slice.to.abs_diff(piece.next), Ordering::Relaxed);
            piece.next = piece.slice.to;
        }
        Ok(())
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(Duration::from_millis(self.settings.patience_ms.unsigned_abs()))
    }

    /// Fails if the broker has given nothing for too long.
    fn fail_on_timeout(&self) -> Result<()> {
        let Some(piece) = self.now.as_ref().filter(|piece| piece.deadline.has_passed()) else { return Ok(()) };
        piece.fetcher.serve_events();
        let patience_ms = self.settings.patience_ms;
        let action = format!("read {} beyond offset {} within {patience_ms} ms", piece.slice, piece.next);
        let error = KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut);
        Err(to_error(&action, &self.settings.client, self.consumers.context(), &error))
    }
}

/// What to do about a topic that is another one.
pub(super) const MADE_AGAIN_HINT: &str = "start a new query with a new checkpoint; or go on with the new topic from its beginning, by setting `failOnDataLoss` to false; or, if it has the same records at the same offsets, as one has that was moved to another cluster or restored, set `topicsMoved` to true for one start";

/// What to do about records that are gone.
pub(super) const LOSS_HINT: &str = "keep records longer in Kafka than the query may be behind; to go on without what is lost, set `failOnDataLoss` to false";

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "offsets {} to {} of partition {} of topic `{}`", self.from, self.to, self.partition, self.topic)
    }
}
