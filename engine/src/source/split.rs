//! What a batch reads, as data: cut on the driver, scanned where the tasks run.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use datafusion::execution::SessionState;
use datafusion::physical_plan::ExecutionPlan;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ScanRequest;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::id::BatchId;

/// What one task reads of a batch: some files, say, or a range of offsets. Small, and JSON of the source's own making. It
/// names what is read and never how to get there: credentials are the source's own, wherever it is.
///
/// ```
/// use tidewater::source::Split;
///
/// let split = Split::new(&("orders", 7, 100..200))?;
/// let (topic, partition, offsets) = split.to::<(String, i32, std::ops::Range<i64>)>("Kafka topic `orders`")?;
/// assert_eq!((topic.as_str(), partition, offsets), ("orders", 7, 100..200));
/// # Ok::<(), tidewater::error::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Split(serde_json::Value);

impl Split {
    /// A split with these contents.
    ///
    /// # Errors
    ///
    /// If they cannot be JSON: a map whose keys are no texts, say.
    pub fn new(contents: &impl Serialize) -> Result<Self> {
        let failed = |e| Error::internal(format!("a split of a source cannot be JSON: {e}")).with_source(e);
        serde_json::to_value(contents).map(Split).map_err(failed)
    }

    /// Its contents. `source` is the source's [description](super::Source::description), for the error.
    ///
    /// # Errors
    ///
    /// If these are not contents of this type: another version of the source made the split.
    pub fn to<T: DeserializeOwned>(&self, source: &str) -> Result<T> {
        T::deserialize(&self.0).map_err(|e| {
            Error::internal(format!("the source `{source}` cannot read its own split: {e}"))
                .with_hint("let the driver and the tasks of a query run the same program")
                .with_source(e)
        })
    }
}

/// What a source gets where its splits are scanned.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ScanContext {
    /// DataFusion's session: its object stores, its settings, its planner of expressions.
    pub session: Arc<SessionState>,
    /// The only way to ask for the time.
    pub clock: Arc<dyn Clock>,
}

/// Scans the splits of one run of a query, in one process. It keeps what lasts from batch to batch: connections, and what was
/// read ahead.
///
/// What it promises:
///
/// 1. Splits that are the same give the same rows, whichever scanner of the same source scans them, in whatever company:
///    a batch's splits may be scanned in several processes.
/// 2. [`scan`](Self::scan) reads nothing. Reading begins when its plan is executed; a plan that is only looked at leaves no
///    trace in [`metrics`](Self::metrics) of other scanners, and no connection.
pub trait SourceScanner: fmt::Debug + Send + Sync {
    /// A bounded plan over the rows of these splits, as [`MicroBatchStream::bind`](super::MicroBatchStream::bind) would give it.
    /// Each place of the query's plan that reads the source has its own splits, and so its own call. A batch is never followed by
    /// an earlier one.
    fn scan(&self, batch: BatchId, splits: &[Split], scan: &ScanRequest) -> Result<Arc<dyn ExecutionPlan>>;

    /// Named figures of the batch that was scanned last, for progress. A figure that the reader gives, too, is the sum of
    /// both.
    fn metrics(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_of_another_kind_names_the_source() {
        let split = Split::new(&serde_json::json!({"from": 1})).unwrap();
        let error = split.to::<Vec<i64>>("rate, 5 rows per second").unwrap_err();
        assert!(error.message().starts_with("the source `rate, 5 rows per second` cannot read"), "{error}");
        let sent: Split = serde_json::from_str(&serde_json::to_string(&split).unwrap()).unwrap();
        assert_eq!(sent, split);
    }
}
