//! An entry of a commit, written row by row: one file, or several of bounded size.
//!
//! A file is put into storage at once. Object stores take some gigabytes in one put, and a client gives it 30 seconds: a file of
//! [64 MiB](super::Limits) gets there with 18 Mbit/s. So there is no upload in parts: it would not be a create that fails where
//! the name is taken, and parts that a crash leaves behind are in no listing, and paid for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::file::{self, FileBuilder, FileKind};
use super::sorted::SortedRows;
use super::{NEVER, OperatorId, StateSchema, path};
use crate::checkpoint::{CreateOutcome, FileEntry, MetadataStore, Part, part_name};
use crate::error::{Error, Result};

/// Writes an entry of a commit row by row: one file, or several of bounded size.
#[derive(Debug)]
pub(crate) struct EntryWriter {
    store: Arc<dyn MetadataStore>,
    operator: OperatorId,
    spec: StateSchema,
    name: String,
    kind: FileKind,
    /// A file of so many bytes is full.
    file_bytes: usize,
    building: Option<FileBuilder>,
    parts: Vec<Part>,
    last_us: Vec<i64>,
    /// Counts the bytes that went to storage.
    written: Arc<AtomicU64>,
}

impl EntryWriter {
    pub(crate) fn new(
        store: &Arc<dyn MetadataStore>,
        operator: OperatorId,
        spec: &StateSchema,
        name: String,
        (kind, file_bytes): (FileKind, usize),
        written: &Arc<AtomicU64>,
    ) -> Self {
        EntryWriter {
            store: Arc::clone(store),
            operator,
            spec: spec.clone(),
            name,
            kind,
            file_bytes,
            building: None,
            parts: vec![],
            last_us: vec![i64::MIN; spec.eviction_bounds],
            written: Arc::clone(written),
        }
    }

    /// Adds rows, which come after all before.
    pub(crate) async fn add(&mut self, rows: &SortedRows) -> Result<()> {
        file::note_last_times(&self.spec, &rows.rows, &mut self.last_us);
        let building = match &mut self.building {
            Some(building) => building,
            None => self.building.insert(FileBuilder::new(&self.spec, self.kind)?),
        };
        building.add(rows)?;
        if building.bytes() >= self.file_bytes {
            self.end_file().await?;
        }
        Ok(())
    }

    /// Bytes that wait in memory.
    pub(crate) fn memory(&self) -> usize {
        self.building.as_ref().map_or(0, FileBuilder::bytes)
    }

    async fn end_file(&mut self) -> Result<()> {
        let Some(building) = self.building.take() else { return Ok(()) };
        let Some(group) = building.first_group() else { return Ok(()) };
        let contents = building.finish()?;
        let bytes = contents.len() as u64;
        let path = path(self.operator, &part_name(&self.name, self.parts.len()));
        self.written.fetch_add(bytes, Ordering::Relaxed);
        if self.store.create(&path, contents).await? == CreateOutcome::AlreadyExists {
            return Err(Error::damaged("a file that only this run could have written is there already")
                .with_file(self.store.full_name(&path))
                .with_hint("something else writes to the checkpoint: give each query a folder of its own"));
        }
        self.parts.push(Part(bytes, group));
        Ok(())
    }

    /// What a commit is to say of it; none if there were no rows.
    pub(crate) async fn finish(mut self, level: u32) -> Result<Option<FileEntry>> {
        self.end_file().await?;
        let last_us = self.last_us.iter().map(|us| (*us != NEVER).then_some(*us)).collect();
        let bytes = self.parts.iter().map(|part| part.0).sum();
        let parts = if self.parts.len() > 1 { self.parts } else { vec![] };
        Ok((bytes > 0).then_some(FileEntry { name: self.name, bytes, level, last_us, parts }))
    }
}
