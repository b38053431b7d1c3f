//! State in small pieces, so that few rows show what many would.

use std::sync::Arc;

use datafusion::prelude::SessionConfig;

use crate::state::Limits;

/// A session whose queries keep their state in pieces of at most so many rows and bytes: chunks of tables, record batches and
/// files, and what operators look at together; the files of every second batch are merged. A test of a hundred rows then
/// goes the ways of millions.
pub fn small_state(config: SessionConfig, rows: usize, bytes: usize) -> SessionConfig {
    let limits = Limits {
        chunk_rows: rows,
        chunk_bytes: bytes,
        block_bytes: 2 * bytes,
        file_bytes: 8 * bytes,
        entries_per_level: 2,
    };
    config.with_extension(Arc::new(limits))
}
