//! What a batch changed in the state of an operator becomes a file, where its tasks ran.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use arrow::record_batch::RecordBatch;

use super::entry::FileEntry;
use super::file::FileKind;
use super::limits::Resources;
use super::sorted::{SortedRows, sort};
use super::write::EntryWriter;
use super::{OperatorId, StateSchema};
use crate::checkpoint::MetadataStore;
use crate::error::Result;
use crate::id::{BatchId, RunId};

/// Writes the changes of one operator, batch by batch.
#[derive(Debug, Clone)]
pub(crate) struct ChangeFiles {
    pub(super) operator: OperatorId,
    pub(super) spec: StateSchema,
    pub(super) store: Arc<dyn MetadataStore>,
    pub(super) resources: Resources,
    pub(super) run: RunId,
}

impl ChangeFiles {
    /// Sorts the changes of one partition.
    pub(crate) fn sort(&self, changes: &[RecordBatch]) -> Result<Vec<SortedRows>> {
        sort(&self.spec, changes, (0, u8::MAX), self.resources.limits)
    }

    /// Writes what batch `batch` changed: the sorted rows of each partition, in the order of the partitions, which is that of
    /// their key groups. Returns what a commit is to name; none if there are no rows.
    pub(crate) async fn write(&self, batch: BatchId, partitions: &[Vec<SortedRows>]) -> Result<Option<FileEntry>> {
        let claimed = self.resources.reservation();
        let sorted = partitions.iter().flatten().map(SortedRows::memory).sum::<usize>();
        claimed.try_resize(sorted).map_err(|e| self.resources.refused(sorted, e))?;
        let name = format!("{batch}.{}", self.run.short());
        let how = (FileKind::Changes, self.resources.limits.file_bytes);
        let written = Arc::new(AtomicU64::new(0));
        let mut writer = EntryWriter::new(&self.store, self.operator, &self.spec, name, how, &written);
        for rows in partitions.iter().flatten() {
            writer.add(rows).await?;
            let bytes = sorted + writer.memory();
            claimed.try_resize(bytes).map_err(|e| self.resources.refused(bytes, e))?;
        }
        writer.finish(0).await
    }
}
