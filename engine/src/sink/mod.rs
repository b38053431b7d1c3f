//! Where rows go, each batch exactly once.
//!
//! A [`Sink`] is what a user names. Opening it for one run of one query gives a [`StreamingWrite`]. For batch N the calls are:
//!
//! ```text
//! begin(N) ─┬─ AlreadyCommitted  the batch was committed before a crash: nothing is written
//!           └─ New ─┬─ partition 0: write … write ─ finish ─┐
//!                   ├─ partition 1: write … write ─ finish ─┼─ commit(N, receipts)
//!                   └─ partition n: (no rows: no writer)  ──┘
//! ```
//!
//! The driver begins and commits. Who makes the writers is up to the sink:
//!
//! ```text
//! a simple sink        driver: StreamingWrite::partition(N, i) ──▶ a writer, which writes in the driver's process
//! one with a factory   where tasks run: Sink::writer_factory ──▶ WriterFactory::writer(N, i) ──▶ a writer
//! ```
//!
//! A factory is made from data, [once per run](Sink::writer_factory) in each process, and shares no memory with the driver's
//! half. A [`DataWriter`] is made when the first row of its partition comes and lives on one worker thread. Its receipt, which is
//! data too, is all that reaches `commit`. A writer that is dropped without `finish` belongs to a failed batch: what it wrote
//! must stay invisible.
//!
//! A query may have a second sink, for [dead letters](DeadLetters): the records that its sources could not read. Its
//! [role](SinkRole) says that it is the second. Both take part in every batch:
//!
//! ```text
//! begin(N) of both ─ the plan fills the output ─ dead letters fill the other, as its partition 0
//!                  ─ commit(N) of the dead letters ─ commit(N) of the output ─ commits/N
//! ```
//!
//! The second gets every batch, those without dead letters too. A crash anywhere repeats the batch for both, and each
//! takes it once by its own promise.
//!
//! What every sink promises:
//!
//! 1. Nothing of batch N is visible to readers before `commit(N)`, where [`Sink::guarantee`] says exactly once.
//! 2. `commit(N)` twice is the same as once, also when the second call comes from another process with receipts of a
//!    repeated run of the batch.
//! 3. If another run committed N in the meantime, `commit(N)` fails with [`ErrorKind::Fenced`] and changes nothing.
//!
//! # A batch that fails
//!
//! What a failed batch has written stays invisible. Before its commit was called, the sink may also take it back: writers that
//! have not finished are [aborted](DataWriter::abort), and those that have are by their receipts
//! ([`StreamingWrite::abort`]). Neither is called after a crash of the process, nor once `commit` was: it may have succeeded. So
//! both only save space, and no promise rests on them.
//!
//! # Threads, runtimes, blocking
//!
//! The methods of a [`StreamingWrite`] are called by the driver of the query; `partition`, [`WriterFactory::writer`] and the
//! methods of a [`DataWriter`] on the [executor](crate::executor)'s threads, for several partitions at a time, and for one
//! writer one after the other. A tokio runtime is entered whenever one of these is polled, so timers and sockets of tokio
//! work, and `tokio::spawn` does.
//!
//! No call blocks its thread: who must (a client library without async calls, a slow disk) wraps that in
//! [`block_in_place`](crate::executor::block_in_place), and another thread takes over the other tasks. A call ends within the
//! query's [`call_timeout`](crate::query::StreamWriter::call_timeout) or fails the query, unless
//! [`has_time_limit`](Sink::has_time_limit) says otherwise, and is dropped when the query is aborted. A panic becomes an error
//! that names the sink.
//!
//! [`ErrorKind::Fenced`]: crate::error::ErrorKind::Fenced

mod dead_letters;

mod discard;

mod foreach_batch;

mod forward;

mod memory;

mod receipt;

pub(crate) mod rows_as_ipc;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::execution::SessionState;
use serde::{Deserialize, Serialize};

pub use self::dead_letters::{DeadLetter, DeadLetters, dead_letter_schema};
pub use self::discard::DiscardSink;
pub use self::foreach_batch::ForeachBatchSink;
pub use self::memory::MemorySink;
pub use self::receipt::Receipt;
use crate::clock::{Clock, SystemClock};
use crate::error::Result;
use crate::id::{BatchId, PartitionId, QueryId, RunId};
use crate::identity::Identity;
use crate::output_mode::OutputMode;

/// The delivery guarantee of a sink: how often a row reaches its readers, whatever crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guarantee {
    /// Once.
    ExactlyOnce,
    /// Once, or several times after a crash.
    AtLeastOnce,
}

impl Guarantee {
    /// The guarantee of two sinks together: the weaker one.
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Guarantee::ExactlyOnce, Guarantee::ExactlyOnce) => Guarantee::ExactlyOnce,
            _ => Guarantee::AtLeastOnce,
        }
    }
}

impl std::fmt::Display for Guarantee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Guarantee::ExactlyOnce => "exactly once",
            Guarantee::AtLeastOnce => "at least once",
        })
    }
}

/// The role of a sink in its query: for rows, or for dead letters. A sink that keeps a record of its batches outside,
/// under the query's id, keeps one per role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SinkRole {
    /// It takes the rows that the query produces.
    Output,
    /// It takes the records that the query's sources could not read.
    DeadLetters,
}

impl std::fmt::Display for SinkRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SinkRole::Output => "output",
            SinkRole::DeadLetters => "dead-letters",
        })
    }
}

/// The output of a stream, as the user declares it.
#[async_trait]
pub trait Sink: std::fmt::Debug + Send + Sync {
    /// A description for people, shown in progress and `explain`. Must not contain secrets.
    fn description(&self) -> String;

    /// What readers of this sink can rely on.
    fn guarantee(&self) -> Guarantee;

    /// Whether the sink accepts rows of this output mode.
    fn supports_output_mode(&self, mode: OutputMode) -> bool;

    /// Identifies what is written to, for the checkpoint: a query that is started again must write to where it wrote
    /// before. A sink whose identity is `None` is not compared.
    fn identity(&self) -> Option<Identity> {
        None
    }

    /// Whether each of its calls must end within
    /// [`QueryConfig::call_timeout`](crate::config::QueryConfig::call_timeout). False for one that runs code of the
    /// user, which may take as long as it likes.
    fn has_time_limit(&self) -> bool {
        true
    }

    /// Opens the sink for one run of one query: checks that rows of this schema can be written here, before anything is
    /// read.
    async fn open(&self, context: SinkContext) -> Result<Box<dyn StreamingWrite>>;

    /// Makes writers for one run of one query, in this process, where only what `context` holds is known of it. The run's
    /// driver [has opened](Self::open) the sink before, perhaps in another process. `None`, the default, for a sink whose
    /// writers must be where the driver is: [`StreamingWrite::partition`] makes them.
    fn writer_factory(&self, context: WriterContext) -> Result<Option<Arc<dyn WriterFactory>>> {
        let _ = context;
        Ok(None)
    }
}

/// The query that opens a sink: its schema, output mode, ids and next batch.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SinkContext {
    /// Which of the query's sinks it is.
    pub role: SinkRole,
    /// The columns of every row that will come.
    pub schema: SchemaRef,
    /// How rows relate to those of earlier batches.
    pub output_mode: OutputMode,
    /// The query, the same after every restart.
    pub query_id: QueryId,
    /// This run of it.
    pub run_id: RunId,
    /// The first batch of this run.
    pub next_batch: BatchId,
    /// Whether an earlier run may have committed `next_batch` to the sink before it died. A sink that remembers its batches
    /// and is ahead of that belongs to another query, and refuses to open rather than to take rows for repeated ones.
    pub next_batch_may_be_committed: bool,
    /// DataFusion's session: its object stores, its settings.
    pub session: Arc<SessionState>,
    /// The only way to ask for the time.
    pub clock: Arc<dyn Clock>,
    /// Whether what `commit` reports must survive a power cut.
    pub durable: bool,
}

impl SinkContext {
    /// A context for a sink that is opened without a query, in a test or by another sink: for rows of this schema in append mode,
    /// of a new query whose first batch is 0, durable, with the machine's clock. Change what should be otherwise.
    pub fn new(schema: SchemaRef, session: Arc<SessionState>) -> Self {
        SinkContext {
            role: SinkRole::Output,
            schema,
            output_mode: OutputMode::Append,
            query_id: QueryId::random(),
            run_id: RunId::random(),
            next_batch: BatchId(0),
            next_batch_may_be_committed: false,
            session,
            clock: Arc::new(SystemClock::default()),
            durable: true,
        }
    }

    /// What the writers of this sink know of it.
    pub fn for_writers(&self) -> WriterContext {
        WriterContext {
            role: self.role,
            schema: Arc::clone(&self.schema),
            query_id: self.query_id,
            run_id: self.run_id,
            durable: self.durable,
            session: Arc::clone(&self.session),
        }
    }
}

/// The query, as its writers need to know it in any process: the same for all of them, and nothing that the driver owns.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WriterContext {
    /// Which of the query's sinks it is.
    pub role: SinkRole,
    /// The columns of every row that will come.
    pub schema: SchemaRef,
    /// The query, the same after every restart.
    pub query_id: QueryId,
    /// This run of it, that of [`SinkContext`].
    pub run_id: RunId,
    /// Whether what a receipt names must survive a power cut.
    pub durable: bool,
    /// DataFusion's session: its object stores, its settings.
    pub session: Arc<SessionState>,
}

/// The status of a batch in the sink: still to be written, or committed already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BatchStatus {
    /// Write it.
    New,
    /// It was committed before: neither write nor commit it.
    AlreadyCommitted,
}

/// A sink that one run of one query has opened. The [module](self) has the order of calls and the promises.
#[async_trait]
pub trait StreamingWrite: std::fmt::Debug + Send + Sync {
    /// Asks whether batch `batch` still has to be written.
    async fn begin(&self, batch: BatchId) -> Result<BatchStatus>;

    /// A writer for the rows of one partition, in the driver's process. Called from worker threads, at most once per partition
    /// and batch. One of the sink's [factory](Sink::writer_factory) does the same.
    fn partition(&self, batch: BatchId, partition: PartitionId) -> Result<Box<dyn DataWriter>>;

    /// Makes batch `batch` visible: `receipts` are those of all partitions that had rows, in partition order. Also called
    /// for a batch without rows.
    async fn commit(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()>;

    /// Takes back what writers of batch `batch` have finished: the batch has failed, and [`commit`](Self::commit) was not called
    /// for it. `receipts` are those that are known, in no order. What goes wrong here is logged, and the batch repeated all the
    /// same. The default leaves all where it is.
    async fn abort(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        let _ = (batch, receipts);
        Ok(())
    }
}

/// Makes writers of a sink where the tasks of a query run.
pub trait WriterFactory: std::fmt::Debug + Send + Sync {
    /// A writer for the rows of one partition of a batch that the driver has begun. Called from worker threads. A partition
    /// may be written twice, in two processes, and the receipt of one reach `commit`: what the other wrote stays invisible.
    fn writer(&self, batch: BatchId, partition: PartitionId) -> Result<Box<dyn DataWriter>>;
}

/// Takes rows of a batch that the sink has already, and only counts them.
pub(crate) fn discarding_writer() -> Box<dyn DataWriter> {
    Box::new(discard::Counter::default())
}

/// Takes the rows of one partition of one batch.
#[async_trait]
pub trait DataWriter: Send {
    /// Writes some rows.
    async fn write(&mut self, rows: RecordBatch) -> Result<()>;

    /// Ends the partition. What the receipt names is safe on storage, and still invisible. One that fails takes back what it has
    /// written by itself.
    async fn finish(self: Box<Self>) -> Result<Receipt>;

    /// Takes back what was written: the batch has failed, and `finish` is not called any more. A `write` before may have been
    /// dropped halfway. What goes wrong here is logged. The default leaves that to the destructor, which may not wait.
    async fn abort(&mut self) -> Result<()> {
        Ok(())
    }
}
