//! How the rows of a batch relate to those of the batches before.

use std::fmt;

/// How the rows that a batch hands to the sink relate to those of the batches before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum OutputMode {
    /// Rows are final: none is ever changed or withdrawn.
    #[default]
    Append,
    /// Rows that are new or changed since the last batch. A query without aggregates gives the same as in append mode.
    Update,
    /// The whole answer, every batch. Only for queries that aggregate.
    Complete,
}

impl fmt::Display for OutputMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OutputMode::Append => "append",
            OutputMode::Update => "update",
            OutputMode::Complete => "complete",
        })
    }
}
