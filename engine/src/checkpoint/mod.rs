//! What outlives a crash.
//!
//! ```text
//! checkpoint/
//!   metadata          the query's id                                written once
//!   epochs/N.<run>    the newest run                                written at its start
//!   offsets/N         where batch N ends, its watermark and clock   written before batch N
//!   commits/N         batch N is done, and the next watermark       written after batch N
//!   sources/<i>/…     a source's own log                            written before offsets/N
//!   state/…           what operators remember                       written before the commit that names it
//! ```
//!
//! The files are Spark's (Structured Streaming 4.3), with fields of ours where Spark ignores them. What always holds:
//!
//! 1. `offsets/N` exists before any row of batch N is read, and its content never changes.
//! 2. Batch N run again reads the same rows, with the same watermark and clock.
//! 3. The sink took batch N before `commits/N` exists; taking it twice is the same as once.
//! 4. The watermark never goes back.
//! 5. Files are created, never changed. A run that finds a file it wants to create written by another run is fenced and
//!    stops.
//! 6. Nothing is deleted that a batch still kept needs, nor anything that may be newer than the deleting run's own last
//!    commit: a run that was overtaken and does not know it is harmless.
//! 7. The run that started last holds the checkpoint; every other one stops at its next check.
//!
//! What to do after a crash is decided by `resume`, a pure function of the tails of the two logs.

mod batch_log;

mod commit_log;

mod epoch;

pub(crate) mod format;

mod offset_log;

mod query_metadata;

mod state_commit;

pub(crate) mod resume;

pub(crate) mod store;

pub(crate) use self::batch_log::BatchLog;
pub(crate) use self::commit_log::CommitEntry;
pub(crate) use self::epoch::{Epoch, FOLDER as EPOCHS};
pub(crate) use self::format::{check_version, with_version};
pub(crate) use self::offset_log::{Belongings, OffsetEntry, pinned_conf};
pub(crate) use self::query_metadata::read_or_create_query_id;
pub(crate) use self::state_commit::{FileEntry, FilePart, OperatorCommit, Part, StateCommit, part_name};
pub(crate) use self::store::certain;
pub use self::store::{CreateOutcome, MetadataStore, memory_store, open_store, sub_store};
