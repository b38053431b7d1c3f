//! How much is moved at once, and what it may take of memory.

use std::sync::Arc;

use arrow::datatypes::FieldRef;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};

use super::store::StateStore;
use super::table::StateTable;
use crate::error::{Error, ErrorKind};

/// Bounds on what lies or travels in one piece, so that nothing grows with the state: no array of values comes near the 2 GiB
/// that Arrow's 32-bit offsets reach, and no step of a compaction or merge takes longer than a small batch. A single row may be
/// larger: then it is alone in its piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Rows of a chunk of a table, and of a record batch of a file.
    pub(crate) chunk_rows: usize,
    /// Bytes of the same.
    pub(crate) chunk_bytes: usize,
    /// Bytes of the rows that an operator looks at together.
    pub(crate) block_bytes: usize,
    /// Bytes of a file, which one put takes to storage; it may have one record batch more.
    pub(crate) file_bytes: usize,
    /// So many entries of a level are merged into one of the next.
    pub(crate) entries_per_level: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits::DEFAULT
    }
}

impl Limits {
    pub(crate) const DEFAULT: Limits = Limits {
        chunk_rows: 16_384,
        chunk_bytes: 4 << 20,
        block_bytes: 256 << 20,
        file_bytes: 64 << 20,
        entries_per_level: 16,
    };

    /// With so many entries of a level, a batch waits until they are merged.
    pub(crate) fn most_entries_per_level(&self) -> usize {
        4 * self.entries_per_level
    }
}

/// What the state of an operator goes by and draws on.
#[derive(Debug, Clone)]
pub(crate) struct Resources {
    pub(crate) limits: Limits,
    pool: Arc<dyn MemoryPool>,
    /// Whose memory it is, in words: `operator 0 (aggregate)`.
    owner: String,
}

impl Resources {
    pub(crate) fn new(limits: Limits, pool: &Arc<dyn MemoryPool>, owner: String) -> Self {
        Resources { limits, pool: Arc::clone(pool), owner }
    }

    /// A claim on the pool, of nothing so far.
    pub(crate) fn reservation(&self) -> MemoryReservation {
        MemoryConsumer::new(format!("tidewater: state of {}", self.owner)).register(&self.pool)
    }

    /// An empty store of rows with these keys and values.
    pub(crate) fn store(&self, keys: &[FieldRef], values: &[FieldRef]) -> Result<Box<dyn StateStore>, DataFusionError> {
        Ok(Box::new(StateTable::new(keys, values, self)?))
    }

    /// The pool gives no more.
    pub(crate) fn refused(&self, bytes: usize, cause: DataFusionError) -> Error {
        Error::new(
            ErrorKind::OutOfMemory,
            format!(
                "a part of the state of {} needs {bytes} bytes of memory, more than the session has left",
                self.owner
            ),
        )
        .with_hint("give the session a larger memory pool, or bound the state with a watermark")
        .with_source(cause)
    }
}

#[cfg(test)]
impl Resources {
    /// Without bounds on memory.
    pub(crate) fn unbounded(limits: Limits) -> Self {
        let pool: Arc<dyn MemoryPool> = Arc::new(datafusion::execution::memory_pool::UnboundedMemoryPool::default());
        Resources::new(limits, &pool, "a test".to_owned())
    }
}
