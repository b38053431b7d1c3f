//! Newtypes for what must not be mixed.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The number of a micro-batch: 0, 1, 2 … without gaps, the same after every restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BatchId(pub u64);

impl BatchId {
    /// The batch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        BatchId(self.0 + 1)
    }

    /// The batch before this one; none before batch 0.
    pub fn previous(self) -> Option<Self> {
        self.0.checked_sub(1).map(BatchId)
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One of the parallel parts in which a stage of a batch runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartitionId(pub usize);

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a leaf: its place among the leaves of a plan, in the order DataFusion walks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LeafId(pub(crate) usize);

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(pub Uuid);

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.to_string()
            }
        }

        impl TryFrom<String> for $name {
            type Error = uuid::Error;

            fn try_from(text: String) -> Result<Self, uuid::Error> {
                text.parse().map(Self)
            }
        }

        impl $name {
            /// A fresh, random one.
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

uuid_id!(
    /// Names a query for its whole life: written once into the checkpoint, the same after every restart.
    QueryId
);
uuid_id!(
    /// Names one run of a query, from a start to its end. Two runs never share one.
    RunId
);

impl RunId {
    /// Enough of it to distinguish the runs of one query in the names of files.
    pub(crate) fn short(self) -> String {
        let (first, ..) = self.0.as_fields();
        format!("{first:08x}")
    }
}
