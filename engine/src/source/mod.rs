//! Where rows come from, and how far a batch may go.
//!
//! A [`Source`] is what a user names: it has a schema and can be opened. Opening it for one run of one query gives a
//! [`MicroBatchStream`], which the driver alone talks to:
//!
//! ```text
//! open ─ prepare_for_available_now?
//!   ┌─▶ latest_offset ── (offsets/N is written) ── commit(end of N−1) ── splits | bind(range of N) ─┐
//!   └──────────────────────────────────── once per trigger ─────────────────────────────────────────┘
//! ```
//!
//! Who reads the rows is up to the source:
//!
//! ```text
//! a simple source      driver: bind(range) ──▶ a plan, which runs in the driver's process
//! one that splits      driver: splits(range) ──▶ data ──▶ where tasks run: SourceScanner::scan(splits) ──▶ a plan
//! ```
//!
//! A simple source implements [`bind`](MicroBatchStream::bind) and is done. One that gives [splits](MicroBatchStream::splits) has
//! a [`SourceScanner`], too, which a process makes [once per run](Source::scanner) and which holds what is kept from batch to
//! batch. The two share no memory: they may be in different processes.
//!
//! What every reader promises:
//!
//! 1. *Replay*: `bind` of the same range gives the same rows, and so do its splits, in this run and in every later one, until
//!    `commit` has been called with an offset at or beyond its end.
//! 2. *Forward*: `latest_offset(after)` never lies before `after`.
//! 3. *Repetition*: after a crash the driver may call `bind`, `splits` and `commit` again with what they were called with
//!    before. The second call has the same effect as the first.
//! 4. *No answer is not "nothing new"*: a source that could not find out what there is, because nobody answered, or the
//!    place is gone or may not be read, never reports that there is nothing new. `latest_offset` says
//!    [`LatestOffset::unknown`] and why, or fails; `open` and `prepare_for_available_now` fail. A plan over rows waits
//!    as long as the source has patience, and then fails: an answer that does not come is not the end of rows.
//!
//! What follows from `unknown`: a trigger that ends by itself fails with the reason, and so does
//! [`process_all_available`](crate::query::StreamingQuery::process_all_available). A query that goes on does so with what its
//! other sources have; its status says what it waits for, since when and why, until the source answers or fails.
//!
//! # Threads, runtimes, blocking
//!
//! The methods of a [`MicroBatchStream`] are called by the driver of the query, one at a time. The plan that `bind` or `scan`
//! gives runs on the [executor](crate::executor)'s threads, each partition as a task; [`SourceScanner::scan`] may be called from
//! any of them. A tokio runtime is entered whenever one of these is polled, so timers and sockets of tokio work, and
//! `tokio::spawn` does.
//!
//! No call blocks its thread: who must (a client library without async calls, a slow disk) wraps that in
//! [`block_in_place`](crate::executor::block_in_place), and another thread takes over the other tasks. A call ends within the
//! query's [`call_timeout`](crate::query::StreamWriter::call_timeout) or fails the query, and is dropped when the query is
//! aborted: to what it has written, that is a crash. A panic becomes an error that names the source.
//!
//! # Offsets
//!
//! An [`Offset`] is JSON of the source's own making. Make it by [`Offset::try_new`] and read it by [`Offset::to`], which refuses
//! those of other sources. Two offsets are the same place exactly if their JSON is the same, and
//! what they [prove](Offset::with_proof).

mod forward;

mod leaf;

mod limit;

pub mod memory;

mod scanners;

mod split;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::execution::SessionState;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use futures::future::BoxFuture;

pub use self::leaf::StreamTable;
pub(crate) use self::leaf::{StreamLeaf, StreamScanExec, scan_request};
pub use self::limit::ReadLimit;
pub use self::memory::MemorySource;
pub(crate) use self::scanners::{Scanners, add_metrics, check_columns};
pub use self::split::{ScanContext, SourceScanner, Split};
use crate::checkpoint::MetadataStore;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::identity::Identity;
pub use crate::offset::{Offset, OffsetRange};

/// The name of the column that holds the URIs of files; see [`Source::knows_file_names`].
pub const FILE_NAME_COLUMN: &str = "__tidewater_input_file_name";

/// The input of a stream, as the user declares it. The same source may serve several queries: each opens its own
/// reader.
#[async_trait]
pub trait Source: std::fmt::Debug + Send + Sync {
    /// A description for people, shown in progress and `explain`. Must not contain secrets.
    fn description(&self) -> String;

    /// The columns of every row this source will ever give.
    fn schema(&self) -> SchemaRef;

    /// Whether this source sends records that it cannot read to the query's [dead letters](crate::sink::DeadLetters), by
    /// [`BatchContext::dead_letter`](crate::batch::BatchContext::dead_letter), while its plan runs. A query of such a
    /// source needs a sink for them and is refused without.
    ///
    /// A batch that is repeated gives the same dead letters again, in any order; the sink takes them once, with the batch.
    /// A source that is read at several places of a plan is asked for each, and still emits a record once: its reader
    /// lets one place of a batch speak (its splits say so), and the others leave the record out in silence.
    fn emits_dead_letters(&self) -> bool {
        false
    }

    /// Whether this source knows from which file each row comes, so that `input_file_name()` can be answered. If so, a
    /// [`ScanRequest`] may ask for the column behind the last of [`schema`](Self::schema): [`FILE_NAME_COLUMN`], a Utf8 that
    /// is never null, with the file's URI.
    fn knows_file_names(&self) -> bool {
        false
    }

    /// Identifies what is read, for the checkpoint: a query that is started again must read what it read before. A
    /// source whose identity is `None` is not compared.
    fn identity(&self) -> Option<Identity> {
        None
    }

    /// Whether what is written to this sink would be read here. A query that reads its own output is refused.
    fn reads_from(&self, sink: &Identity) -> Result<bool> {
        let _ = sink;
        Ok(false)
    }

    /// Opens the source for one run of one query. Reads back what an earlier run left in [`SourceContext::log`].
    async fn open(&self, context: SourceContext) -> Result<Box<dyn MicroBatchStream>>;

    /// Begins to scan splits for one run of one query, in this process; connects to nothing yet. `None`, the default, for a
    /// source whose reader gives no [splits](MicroBatchStream::splits).
    fn scanner(&self, context: ScanContext) -> Result<Option<Arc<dyn SourceScanner>>> {
        let _ = context;
        Ok(None)
    }
}

/// The source, for the one whose code panicked.
pub(crate) fn whose(source: &dyn Source) -> String {
    format!("the source `{}`", source.description())
}

/// The query that opens a source: its session, clock, partitions and place in the checkpoint.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SourceContext {
    /// The source's own place in the checkpoint, `sources/<i>`. What is written there before `latest_offset` returns is
    /// on disk before the batch exists.
    pub log: Arc<dyn MetadataStore>,
    /// DataFusion's session: its object stores, its settings, its planner of expressions.
    pub session: Arc<SessionState>,
    /// The only way to ask for the time.
    pub clock: Arc<dyn Clock>,
    /// Into how many partitions `bind` or `splits` should split the rows, if it can.
    pub partitions: usize,
    /// How many committed batches the checkpoint keeps; the source keeps as much of its own log.
    pub min_batches_to_retain: u64,
    /// Where it was in earlier runs, oldest first, as [`Identity::place`] had it: it has been moved since.
    pub former_places: Vec<String>,
}

impl SourceContext {
    /// A context for a source that is opened without a query, in a test or by another source: of one that was never moved, with
    /// 100 batches to retain and one partition. Change what should be otherwise.
    pub fn new(log: Arc<dyn MetadataStore>, session: Arc<SessionState>, clock: Arc<dyn Clock>) -> Self {
        SourceContext { log, session, clock, partitions: 1, min_batches_to_retain: 100, former_places: vec![] }
    }

    /// What the scanner of this source knows of it.
    pub fn for_scanner(&self) -> ScanContext {
        ScanContext { session: Arc::clone(&self.session), clock: Arc::clone(&self.clock) }
    }
}

/// A source that one run of one query has opened. The [module](self) has the order of calls and the promises.
#[async_trait]
pub trait MicroBatchStream: std::fmt::Debug + Send + Sync {
    /// Fixes the end of the stream: from now on, only what exists at this moment is offered. Called at most once, right
    /// after `open`, for triggers that end by themselves. Fails if that cannot be found out. The default does nothing, which is
    /// right for a source whose end does not move; with any other, such a query would go on as long as rows come.
    async fn prepare_for_available_now(&mut self) -> Result<()> {
        Ok(())
    }

    /// How far a batch that begins after `after` may go. `after` is `None` while no batch has read this source. With
    /// [`ReadLimit::All`] the query ends after that batch: a source that knows how to wait for an answer does so
    /// before it says that it has none.
    async fn latest_offset(&mut self, after: Option<&Offset>, limit: ReadLimit) -> Result<LatestOffset>;

    /// A bounded plan over the rows of `range`, which runs where the driver is. Rows come in any number of partitions; their
    /// columns are [`ScanRequest::schema`]. Filters may be used to skip rows early: DataFusion applies them again.
    ///
    /// Every reader implements this or [`splits`](Self::splits); it is not called for a range that was split.
    async fn bind(&mut self, range: &OffsetRange, scan: &ScanRequest) -> Result<Arc<dyn ExecutionPlan>> {
        let _ = (range, scan);
        Err(Error::internal("a source gives neither a plan over a range nor its splits")
            .with_hint("its reader must implement `MicroBatchStream::bind` or `MicroBatchStream::splits`"))
    }

    /// The rows of `range` cut into splits, about one for each task: each row is in one of them. No splits is no rows.
    /// `None`, the default, has the range [bound](Self::bind) instead.
    async fn splits(&mut self, range: &OffsetRange, scan: &ScanRequest) -> Result<Option<Vec<Split>>> {
        let _ = (range, scan);
        Ok(None)
    }

    /// Rows up to and including `end` will not be asked for again, except by a replay of the batch that ends there.
    /// The moment to delete or archive what was read. An error here fails the query; what is only best effort is logged. The
    /// default keeps everything.
    async fn commit(&mut self, end: &Offset) -> Result<()> {
        let _ = end;
        Ok(())
    }

    /// A future that is done once there may be more than `latest_offset` found when it was last asked. With it the query is
    /// idle until then; without, it asks again and again, at intervals that grow with what asking takes. It may be done too
    /// early, and a query asks now and then all the same.
    fn news(&self) -> Option<BoxFuture<'static, ()>> {
        None
    }

    /// Named figures of the batch that was bound or split last, for progress. What is found out while rows are read
    /// (`"malformedRowsDropped"`, say) comes from the [scanner](SourceScanner::metrics), if there is one.
    fn metrics(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
}

/// The result of [`MicroBatchStream::latest_offset`].
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct LatestOffset {
    /// Where the next batch may end, within the limit; `None` while there has never been anything to read.
    pub batch_end: Option<Offset>,
    /// The end of all there is, limits aside, where the source knows it. For progress only.
    pub latest: Option<Offset>,
    /// Why the source could not find out what there is; `None` if it did. `batch_end` is then what it knows for certain.
    pub unknown: Option<Error>,
}

impl LatestOffset {
    /// No batch has ever read this source and there is nothing to read.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// The batch may end here, and here is all there is.
    pub fn at(end: Offset) -> Self {
        LatestOffset { latest: Some(end.clone()), batch_end: Some(end), unknown: None }
    }

    /// The same, where all there is ends elsewhere, or where that is not known.
    #[must_use]
    pub fn with_latest(mut self, latest: impl Into<Option<Offset>>) -> Self {
        self.latest = latest.into();
        self
    }

    /// Nobody can say what there is after `after`, and why.
    pub fn unknown(after: Option<&Offset>, why: Error) -> Self {
        LatestOffset { batch_end: after.cloned(), latest: None, unknown: Some(why) }
    }
}

impl PartialEq for LatestOffset {
    /// Errors are compared by their text.
    fn eq(&self, other: &Self) -> bool {
        let said = |latest: &LatestOffset| latest.unknown.as_ref().map(ToString::to_string);
        self.batch_end == other.batch_end && self.latest == other.latest && said(self) == said(other)
    }
}

/// What one scan in the plan needs of a source: columns and filters.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ScanRequest {
    /// Which columns of the source's schema, by position and in this order. The position behind the last one is that of
    /// [`FILE_NAME_COLUMN`], if the source offers it.
    pub projection: Vec<usize>,
    /// The columns the plan must produce: the source's schema after `projection`.
    pub schema: SchemaRef,
    /// Predicates over the source's columns that every wanted row fulfils.
    pub filters: Vec<Expr>,
}

impl ScanRequest {
    /// These columns, which have this schema, and all rows.
    pub fn new(projection: Vec<usize>, schema: SchemaRef) -> Self {
        ScanRequest { projection, schema, filters: vec![] }
    }

    /// The same columns, of rows that fulfil these predicates.
    #[must_use]
    pub fn with_filters(mut self, filters: Vec<Expr>) -> Self {
        self.filters = filters;
        self
    }
}
