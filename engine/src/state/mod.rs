//! What outlives a batch, beside offsets and watermark.
//!
//! A stateful operator (an aggregation, say) keeps a [store](StateStore) of rows per partition: found by key, evicted by time,
//! held in Arrow columns. A batch costs what it touches, however much lies there:
//!
//! ```text
//! batch N ──▶ operator ──▶ rows out
//!               │  ▲
//!        puts,  │  │ finds                     state/0/…   the files of operator 0, named by commits/N
//!      removals ▼  │                              ▲
//!             store of the partition              │ one file of changes per batch
//!               └── StateSchema::change ──▶ OperatorBatch ──▶ ChangeFiles ──▶ StateChangelog
//! ```
//!
//! - Which partition owns a key follows from the key alone ([`key_hash`]), so a query may be started again with any number
//!   of partitions: each takes its rows from the same files.
//! - A file of changes holds what the batch put and removed, as typed columns ([`StateSchema`]). What falls behind the
//!   watermark is not written at all: the commit has the bound, and rows at or below it are gone.
//! - Files are written under names no other attempt uses; only those that `commits/N` names are the state after batch N
//!   ([`files`]). In the background many small files become few larger ones, [merged](merge) as they are read.
//! - Nothing is ever in one piece that grows with the state: chunks of a table, record batches of a file, files, and what is
//!   read, merged or written at a time are [bounded](limits).
//! - The first error ends a run, and with it what it had in memory: operators change their tables in place, and nothing
//!   has to be undone. The next start loads the last committed version.

mod changes;

mod compare;

mod file;

mod files;

pub(crate) mod key_hash;

mod limits;

mod load;

mod merge;

pub(crate) mod operator_state;

mod read;

pub(crate) mod sizes;

mod sorted;

mod spec;

pub(crate) mod spelling;

mod store;

pub(crate) mod table;

mod type_names;

mod write;

use std::fmt;

pub(crate) use self::changes::ChangeFiles;
pub(crate) use self::compare::{AGGREGATIONS, KEPT, NODE, UNNEST, differences, other_versions};
pub(crate) use self::files::StateChangelog;
pub(crate) use self::limits::{Limits, Resources};
pub(crate) use self::load::load;
pub(crate) use self::operator_state::{Counts, OperatorBatch, OperatorState, PartitionState};
pub(crate) use self::spec::{PersistedStateSchema, StateSchema};
pub(crate) use self::store::{NEVER, NewRows, SlotId, StateStore};
pub(crate) use self::table::Pages;

/// The number of a stateful operator: its place in the plan, counted from the sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct OperatorId(pub(crate) usize);

impl fmt::Display for OperatorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of an operator's file within the store.
pub(crate) fn path(operator: OperatorId, name: &str) -> String {
    format!("{operator}/{name}")
}
