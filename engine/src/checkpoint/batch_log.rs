//! A log of small files, one per batch: created once, numbered, atomic. Knows nothing of what is in them.

use std::sync::Arc;

use bytes::Bytes;

use super::{CreateOutcome, MetadataStore};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BatchId, RunId};

/// What a log holds for one batch.
pub(crate) trait LogEntry: Sized {
    /// The whole file.
    fn encode(&self) -> String;

    /// From the whole file, whose name is for messages.
    fn decode(text: &str, file: &str) -> Result<Self>;

    /// The run that wrote it, if the file says so.
    fn run_id(&self) -> Option<RunId>;
}

/// The files of one folder of the checkpoint.
#[derive(Debug)]
pub(crate) struct BatchLog {
    store: Arc<dyn MetadataStore>,
    folder: &'static str,
}

impl BatchLog {
    pub(crate) fn new(store: Arc<dyn MetadataStore>, folder: &'static str) -> Self {
        BatchLog { store, folder }
    }

    fn name(&self, batch: BatchId) -> String {
        format!("{}/{batch}", self.folder)
    }

    /// The numbers of all batches in the log, ascending. Files whose names are not numbers are not the log's.
    pub(crate) async fn batches(&self) -> Result<Vec<BatchId>> {
        let names = self.store.list(self.folder).await?;
        let mut batches: Vec<BatchId> = names.iter().filter_map(|name| name.parse().ok().map(BatchId)).collect();
        batches.sort_unstable();
        Ok(batches)
    }

    /// The entry of a batch that must be there.
    pub(crate) async fn read<E: LogEntry>(&self, batch: BatchId) -> Result<E> {
        let name = self.name(batch);
        let file = self.store.full_name(&name);
        let contents = self.store.read(&name).await?.ok_or_else(|| {
            Error::damaged(format!("batch {batch} does not exist in the log, though a later one does"))
                .with_file(&file)
                .with_hint("a healthy log has no gaps: restore the file from a backup, or start with a new checkpoint")
        })?;
        let text = std::str::from_utf8(&contents).map_err(|e| {
            Error::damaged(format!("the file is not text: {e}"))
                .with_file(&file)
                .with_hint("restore it from a backup, or start with a new checkpoint")
        })?;
        E::decode(text, &file)
    }

    /// Adds the entry of a batch. If another is there, another run has taken over.
    pub(crate) async fn add<E: LogEntry>(&self, batch: BatchId, entry: &E) -> Result<()> {
        let name = self.name(batch);
        match self.store.create(&name, Bytes::from(entry.encode())).await? {
            CreateOutcome::Created => Ok(()),
            CreateOutcome::AlreadyExists => {
                let earlier: E = self.read(batch).await?;
                let by = earlier.run_id().map_or("another engine".to_owned(), |run| format!("run {run}"));
                Err(Error::new(ErrorKind::Fenced, format!("{by} wrote this batch first: it has taken over the query"))
                    .with_batch(batch)
                    .with_file(self.store.full_name(&name))
                    .with_hint("let one process run the query; this one wrote nothing that counts and can be stopped"))
            }
        }
    }

    /// Deletes the entry of a batch that nothing needs any more.
    pub(crate) async fn delete(&self, batch: BatchId) -> Result<()> {
        self.store.delete(&self.name(batch)).await
    }
}
