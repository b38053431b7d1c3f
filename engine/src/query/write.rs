//! `write_stream`: sink, output mode, trigger, checkpoint; then [`start`](StreamWriter::start).

use std::sync::Arc;

use datafusion::prelude::DataFrame;

use super::{OutputMode, QueryManager, StreamingQuery};
use crate::checkpoint::{MetadataStore, memory_store, open_store};
use crate::clock::{Clock, SystemClock};
use crate::config::QueryConfig;
use crate::driver::{Once, RestartPolicy, Start, start};
use crate::error::Result;
use crate::executor::Executor;
use crate::interval::Interval;
use crate::progress::QueryListener;
use crate::sink::Sink;
use crate::trigger::Trigger;
use crate::watermark::WatermarkPolicy;

/// A stream on its way to a sink, not started yet. Made by
/// [`write_stream`](super::StreamingDataFrameExt::write_stream).
///
/// ```
/// # use std::sync::Arc;
/// # use arrow::array::{Int64Array, RecordBatch};
/// use datafusion::prelude::*;
/// use tidewater::prelude::*;
///
/// # #[tokio::main]
/// # async fn main() -> Result<()> {
/// # let rows = RecordBatch::try_from_iter([("v", Arc::new(Int64Array::from(vec![1, 2, 3])) as _)])?;
/// # let source = MemorySource::new(rows.schema());
/// # source.add(vec![rows])?;
/// let ctx = SessionContext::new();
/// let sink = MemorySink::new();
/// let query = ctx
///     .read_stream(source)?
///     .filter(col("v").gt(lit(1)))?
///     .write_stream(sink.clone())
///     .trigger(Trigger::AvailableNow)
///     .start()
///     .await?;
/// query.await_termination().await?;
/// assert_eq!(sink.batches().iter().map(|rows| rows.num_rows()).sum::<usize>(), 2);
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is read before `start`"]
pub struct StreamWriter {
    stream: DataFrame,
    sink: Arc<dyn Sink>,
    dead_letters: Option<Arc<dyn Sink>>,
    name: Option<String>,
    output_mode: OutputMode,
    trigger: Trigger,
    checkpoint: Checkpoint,
    config: QueryConfig,
    moved: Vec<(String, String)>,
    watermark_policy: WatermarkPolicy,
    clock: Arc<dyn Clock>,
    listeners: Vec<Arc<dyn QueryListener>>,
    executor: Option<Executor>,
    restart_policy: RestartPolicy,
}

enum Checkpoint {
    InMemory,
    At(String),
    Store(Arc<dyn MetadataStore>),
}

impl StreamWriter {
    pub(super) fn new(stream: DataFrame, sink: Arc<dyn Sink>) -> Self {
        StreamWriter {
            stream,
            sink,
            dead_letters: None,
            name: None,
            output_mode: OutputMode::default(),
            trigger: Trigger::default(),
            checkpoint: Checkpoint::InMemory,
            config: QueryConfig::default(),
            moved: vec![],
            watermark_policy: WatermarkPolicy::default(),
            clock: Arc::new(SystemClock::default()),
            listeners: vec![],
            executor: None,
            restart_policy: RestartPolicy::default(),
        }
    }

    /// A name for people; two running queries of a session cannot have the same.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// A second sink, for the records that a source cannot read: each goes there with the reason and its place, in the same
    /// commit as the rows of its batch, as a row of [`dead_letter_schema`](crate::sink::dead_letter_schema). A source sends
    /// them only if configured to; then [`start`](Self::start) fails where this sink is missing.
    ///
    /// It takes part in every batch, whatever the output mode is, always in append mode. Let it write to a place of its own,
    /// and be there from the query's first batch: a sink that remembers its batches may refuse to begin with a later one.
    /// The query's [guarantee](StreamingQuery::guarantee) is the weaker one of both sinks. How many records went there is in
    /// the progress: `deadLetterRows` among the metrics of the sink.
    ///
    /// The dead letters of a batch are kept in memory until its rows are written.
    pub fn dead_letters(mut self, sink: impl Sink + 'static) -> Self {
        self.dead_letters = Some(Arc::new(sink));
        self
    }

    /// How rows of a batch relate to those before. Default: append.
    pub fn output_mode(mut self, mode: OutputMode) -> Self {
        self.output_mode = mode;
        self
    }

    /// Sets the trigger: when batches run. Default: as fast as possible, until the query is stopped.
    pub fn trigger(mut self, trigger: Trigger) -> Self {
        self.trigger = trigger;
        self
    }

    /// Where the query keeps what must outlive a crash: a local folder, or a URL whose object store is registered with the
    /// session. One folder per query. Without a checkpoint, every start begins anew.
    pub fn checkpoint(mut self, location: impl Into<String>) -> Self {
        self.checkpoint = Checkpoint::At(location.into());
        self
    }

    /// A checkpoint in a store of your own.
    pub fn checkpoint_store(mut self, store: Arc<dyn MetadataStore>) -> Self {
        self.checkpoint = Checkpoint::Store(store);
        self
    }

    /// Into how many parallel parts a batch is cut. Default: the machine's cores. May change at every restart.
    pub fn partitions(self, partitions: usize) -> Self {
        self.configured(|config| config.partitions(partitions))
    }

    /// Whether checkpoint and output reach the disk before they count. Default true. Without, a crash of the process still
    /// loses nothing, but a power cut may.
    pub fn durable(self, durable: bool) -> Self {
        self.configured(|config| config.durable(durable))
    }

    /// Reads static tables of the query again once what is kept of them is older than `interval`. Default: never.
    ///
    /// # Errors
    ///
    /// [`start`](Self::start) fails if it is not a positive interval.
    pub fn refresh_static_tables_every(self, interval: impl Into<Interval>) -> Self {
        self.configured(|config| config.refresh_static_tables_every(interval))
    }

    /// Whether a batch without rows may run because the watermark moved and state waits for it. Default true.
    pub fn no_data_batches(self, allowed: bool) -> Self {
        self.configured(|config| config.no_data_batches(allowed))
    }

    /// How several watermarks become one. Default: the slowest counts. A checkpoint keeps the policy it was born with.
    pub fn watermark_policy(mut self, policy: WatermarkPolicy) -> Self {
        self.watermark_policy = policy;
        self
    }

    /// Says that a source or sink is at another place than in the runs before, with the same data. A checkpoint knows
    /// what it belongs to, and [`start`](Self::start) fails where that has changed; its error shows both spellings:
    /// those of places (`file:///in`), or whole ones where the kind or an option has changed, too (`csv files at
    /// file:///in`).
    ///
    /// Files that were read at the old place are not read again at the new one. What moved is remembered; saying so at every
    /// start does no harm.
    pub fn moved(mut self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.moved.push((from.into(), to.into()));
        self
    }

    /// How many committed batches the checkpoint keeps beside the newest. Default 100.
    pub fn min_batches_to_retain(self, batches: u64) -> Self {
        self.configured(|config| config.min_batches_to_retain(batches))
    }

    /// Sets another clock than the machine's, for tests.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Adds a listener, which is notified of the query's start, progress and end.
    pub fn listener(mut self, listener: Arc<dyn QueryListener>) -> Self {
        self.listeners.push(listener);
        self
    }

    /// The threads to run on. Default: those that [all queries of the process](Executor::global) share.
    pub fn executor(mut self, executor: Executor) -> Self {
        self.executor = Some(executor);
        self
    }

    /// What becomes of the query when storage or network do not answer. Default: it fails.
    ///
    /// ```
    /// # use datafusion::prelude::*;
    /// # use tidewater::prelude::*;
    /// # use tidewater::query::RestartPolicy;
    /// # async fn start(stream: DataFrame) -> Result<StreamingQuery> {
    /// let policy = RestartPolicy::exponential("1 second", "1 minute", 20);
    /// stream.write_stream(DiscardSink::new()).restart_policy(policy).start().await
    /// # }
    /// ```
    pub fn restart_policy(mut self, policy: RestartPolicy) -> Self {
        self.restart_policy = policy;
        self
    }

    /// How long a single call to a source, a sink or the checkpoint may take before the query fails. Default: ten minutes. The
    /// function of `foreach_batch` may take as long as it likes.
    ///
    /// ```
    /// # use datafusion::prelude::*;
    /// # use tidewater::prelude::*;
    /// # async fn start(stream: DataFrame) -> Result<StreamingQuery> {
    /// stream.write_stream(DiscardSink::new()).call_timeout("30 seconds").start().await
    /// # }
    /// ```
    pub fn call_timeout(self, timeout: impl Into<Interval>) -> Self {
        self.configured(|config| config.call_timeout(timeout))
    }

    /// Sets everything in a [`QueryConfig`] at once: what was set before, here or by its shortcuts
    /// ([`partitions`](Self::partitions), [`durable`](Self::durable) …), is forgotten.
    ///
    /// ```
    /// # use datafusion::prelude::*;
    /// # use tidewater::prelude::*;
    /// use tidewater::config::QueryConfig;
    ///
    /// # async fn start(stream: DataFrame) -> Result<StreamingQuery> {
    /// let config = QueryConfig::new().recent_progress(10).set("pollingDelay", "1 second")?;
    /// stream.write_stream(DiscardSink::new()).config(config).start().await
    /// # }
    /// ```
    pub fn config(mut self, config: QueryConfig) -> Self {
        self.config = config;
        self
    }

    fn configured(mut self, change: impl FnOnce(QueryConfig) -> QueryConfig) -> Self {
        self.config = change(self.config);
        self
    }

    /// Starts the query: checks and plans it, reads the checkpoint, opens source and sink. From then on it runs on threads of
    /// the [engine's own](crate::executor); it fails if the tokio runtime that this is called in is shut down before it ends.
    ///
    /// # Errors
    ///
    /// Everything that can be known to be wrong before a row is read: a query that a stream cannot answer, an unknown option,
    /// a checkpoint that is damaged, of another query or in use.
    pub async fn start(self) -> Result<StreamingQuery> {
        let trigger = self.trigger.schedule()?;
        let config = self.config.checked()?;
        let restarts = self.restart_policy.checked()?;
        let (session, plan) = self.stream.into_parts();
        let manager = session.config().get_extension::<QueryManager>().map(|m| m.as_ref().clone()).unwrap_or_default();
        let runtime = session.runtime_env();
        let store = match self.checkpoint {
            Checkpoint::InMemory => {
                tracing::warn!("the query has no checkpoint: it begins anew at every start");
                memory_store()
            }
            Checkpoint::At(location) => open_store(&location, runtime, config.durable)?,
            Checkpoint::Store(store) => store,
        };
        let executor = match self.executor {
            Some(executor) => executor,
            None => Executor::global()?,
        };
        let reservation = manager.reserve(store.full_name(""), self.name.clone())?;
        let start_with = Start {
            session,
            plan,
            sink: self.sink,
            dead_letters: self.dead_letters,
            name: self.name,
            output_mode: self.output_mode,
            trigger,
            checkpoint: store,
            config,
            moved: self.moved,
            watermark_policy: self.watermark_policy,
            restarts,
            clock: self.clock,
            executor,
        };
        let shared = start(start_with, Once { listeners: self.listeners, held: Box::new(reservation) }).await?;
        let query = StreamingQuery::new(shared);
        manager.add(query.clone());
        Ok(query)
    }
}
