//! An entry of a commit, read from its first row to its last, or some key groups of it alone.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::file::{self, Footer, IndexedBlock};
use super::limits::Limits;
use super::sorted::{SortedRows, orders, sort};
use super::{OperatorId, StateSchema, path};
use crate::checkpoint::MetadataStore;
use crate::checkpoint::{FileEntry, FilePart};
use crate::error::{Error, Result};

/// Files up to so many bytes are read at once: asking twice would take longer. Where record batches are smaller still, so is
/// this.
const SMALL_FILE: u64 = 1 << 20;

/// So many bytes from the end of a file on nearly always have its footer. They are fewer than those of a small file.
const FOOTER: u64 = 64 << 10;

/// Reads an entry of a commit, or some of its key groups.
#[derive(Debug)]
pub(crate) struct EntryReader {
    store: Arc<dyn MetadataStore>,
    operator: OperatorId,
    spec: StateSchema,
    limits: Limits,
    /// First and last.
    groups: (u8, u8),
    files: VecDeque<FilePart>,
    open: Option<Open>,
    /// Rows of a file of version 1.
    waiting: VecDeque<SortedRows>,
}

/// A file that is being read.
#[derive(Debug)]
struct Open {
    part: FilePart,
    footer: Footer,
    blocks: VecDeque<IndexedBlock>,
    /// All of it, if it is small.
    contents: Option<Bytes>,
}

impl EntryReader {
    /// Of an operator's entry, the rows of these key groups.
    pub(crate) fn new(
        store: &Arc<dyn MetadataStore>,
        operator: OperatorId,
        spec: &StateSchema,
        entry: &FileEntry,
        groups: (u8, u8),
        limits: Limits,
    ) -> Self {
        let has_some = |file: &FilePart| file.groups.0 <= groups.1 && groups.0 <= file.groups.1;
        EntryReader {
            store: Arc::clone(store),
            operator,
            spec: spec.clone(),
            limits,
            groups,
            files: entry.files().into_iter().filter(has_some).collect(),
            open: None,
            waiting: VecDeque::new(),
        }
    }

    /// The next rows, in order.
    pub(crate) async fn next(&mut self) -> Result<Option<SortedRows>> {
        loop {
            if let Some(rows) = self.waiting.pop_front() {
                return Ok(Some(rows));
            }
            let Some(open) = &mut self.open else {
                let Some(part) = self.files.pop_front() else { return Ok(None) };
                self.open = self.open(part).await?;
                continue;
            };
            let Some(block) = open.blocks.pop_front() else {
                self.open = None;
                continue;
            };
            let path = path(self.operator, &open.part.name);
            let name = self.store.full_name(&path);
            let range = block.range();
            let contents = match &open.contents {
                Some(all) if range.end <= all.len() as u64 => all.slice(range.start as usize..range.end as usize),
                Some(_) => Bytes::new(),
                None => self.store.read_range(&path, range).await?.ok_or_else(|| missing(&name))?,
            };
            let rows = open.footer.decode(&block, contents, &name)?;
            let orders = orders(&self.spec, &rows)?;
            let of_groups = |first: u8, last: u8| (first, last) == block.groups;
            let as_said = orders.first().zip(orders.last()).is_some_and(|(a, b)| of_groups(a.group(), b.group()));
            if !orders.is_sorted() || !as_said {
                return Err(damaged("the file's rows are not in the order that its index says", &name));
            }
            let rows = SortedRows { rows, orders }.of_groups(self.groups);
            if !rows.orders.is_empty() {
                return Ok(Some(rows));
            }
        }
    }

    /// Reads the index of a file; of one of version 1, all its rows.
    async fn open(&mut self, part: FilePart) -> Result<Option<Open>> {
        let path = path(self.operator, &part.name);
        let name = self.store.full_name(&path);
        let small = SMALL_FILE.min(self.limits.chunk_bytes as u64);
        let is_small = part.bytes <= small;
        let start = if is_small { 0 } else { part.bytes - FOOTER.min(small) };
        let mut end = self.read_to_end(&path, &part, start).await?;
        let has_length = end.len() as u64 == part.bytes - start;
        if !is_small && !has_length {
            return Err(another_length(&part, &name));
        }
        let length = file::footer_bytes(&end, &name)? as u64;
        if !is_small && length > end.len() as u64 && length <= part.bytes {
            end = self.read_to_end(&path, &part, part.bytes - length).await?;
        }
        let footer = file::read_footer(&self.spec, &end, &name)?;
        // A file of another operator or release has another length, too; the schema check says more.
        if !has_length {
            return Err(another_length(&part, &name));
        }
        let Some(blocks) = footer.blocks() else {
            let contents = if is_small { end } else { self.read_to_end(&path, &part, 0).await? };
            let changes = file::decode_whole(&self.spec, contents, &name)?;
            self.waiting = sort(&self.spec, &changes, self.groups, self.limits)?.into();
            return Ok(None);
        };
        let has_some = |block: &&IndexedBlock| block.groups.0 <= self.groups.1 && self.groups.0 <= block.groups.1;
        let blocks = blocks.iter().filter(has_some).copied().collect();
        Ok(Some(Open { part, footer, blocks, contents: is_small.then_some(end) }))
    }

    /// The bytes of a file from `start` on; where it is longer than the commit says, one more than that.
    async fn read_to_end(&self, path: &str, part: &FilePart, start: u64) -> Result<Bytes> {
        let found = match start {
            0 => self.store.read(path).await?,
            _ => self.store.read_range(path, start..part.bytes + 1).await?,
        };
        found.ok_or_else(|| missing(&self.store.full_name(path)))
    }

    /// Memory held beside the rows that were given out, in bytes.
    pub(crate) fn memory(&self) -> usize {
        let contents = self.open.as_ref().and_then(|open| open.contents.as_ref()).map_or(0, Bytes::len);
        contents + self.waiting.iter().map(SortedRows::memory).sum::<usize>()
    }
}

fn missing(name: &str) -> Error {
    damaged("a file of state that the newest commit names does not exist", name)
}

fn another_length(part: &FilePart, name: &str) -> Error {
    let bytes = part.bytes;
    damaged(&format!("the file is not what was written: it has not the {bytes} bytes that the commit says"), name)
}

fn damaged(what: &str, name: &str) -> Error {
    Error::damaged(what.to_owned())
        .with_file(name)
        .with_hint("restore it from a backup, or start with a new checkpoint")
}

#[cfg(test)]
mod tests;
