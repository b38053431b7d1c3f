//! What a batch changed in the state of an operator becomes a file, where its tasks ran.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use arrow::record_batch::RecordBatch;
use datafusion::execution::memory_pool::MemoryReservation;

use super::file::FileKind;
use super::limits::Resources;
use super::sorted::{SortedRows, sort};
use super::write::EntryWriter;
use super::{OperatorId, StateSchema};
use crate::checkpoint::{FileEntry, MetadataStore};
use crate::error::Result;
use crate::id::{BatchId, RunId};

/// Writes the changes of one operator, batch by batch.
#[derive(Debug)]
pub(crate) struct ChangeFiles {
    pub(super) operator: OperatorId,
    pub(super) spec: StateSchema,
    pub(super) store: Arc<dyn MetadataStore>,
    pub(super) resources: Resources,
    pub(super) run: RunId,
}

/// What a batch changed in one partition, sorted.
#[derive(Debug)]
pub(crate) struct SortedChanges {
    pieces: Vec<SortedRows>,
    /// Their memory.
    _claimed: MemoryReservation,
}

impl ChangeFiles {
    /// Sorts the changes of one partition.
    pub(crate) fn sort(&self, changes: &[RecordBatch]) -> Result<SortedChanges> {
        let pieces = sort(&self.spec, changes, (0, u8::MAX), self.resources.limits)?;
        let claimed = self.resources.reservation();
        let bytes = pieces.iter().map(SortedRows::memory).sum();
        claimed.try_resize(bytes).map_err(|e| self.resources.refused(bytes, e))?;
        Ok(SortedChanges { pieces, _claimed: claimed })
    }

    /// Writes what batch `batch` changed: the changes of each partition, in the order of the partitions, which is that of their
    /// key groups. Returns what a commit is to name; none if there are no rows.
    pub(crate) async fn write(&self, batch: BatchId, partitions: &[SortedChanges]) -> Result<Option<FileEntry>> {
        let claimed = self.resources.reservation();
        let name = format!("{batch}.{}", self.run.short());
        let how = (FileKind::Changes, self.resources.limits.file_bytes);
        let mut writer =
            EntryWriter::new(&self.store, self.operator, &self.spec, name, how, &Arc::new(AtomicU64::new(0)));
        for rows in partitions.iter().flat_map(|changes| &changes.pieces) {
            writer.add(rows).await?;
            let bytes = writer.memory();
            claimed.try_resize(bytes).map_err(|e| self.resources.refused(bytes, e))?;
        }
        writer.finish(0).await
    }
}
