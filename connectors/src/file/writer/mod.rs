//! One partition of one batch: rows to files.
//!
//! ```text
//! rows ─ folders (split by k=v) ─ encode (Parquet, CSV, JSON) ─ output (disk, object store)
//! ```
//!
//! A [`Layout`] is what all partitions of a query share. Each folder that has rows gets a file of its own; a file that is
//! full (`maxRecordsPerFile`) or idle while too many others are open is finished, and the next row of its folder begins
//! another.
//!
//! What open files hold in memory is on account of the session's memory pool: the row group of a Parquet file until it is full,
//! and for an object store the part of a file that is not sent yet. Where the pool has no room for more rows, the file that holds
//! the most gives it up first: its row group is written before it is full, its last part is sent and the file finished. What
//! compression holds is not known here.

mod csv_rows;
mod encode;
mod folders;
mod output;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::execution::memory_pool::MemoryPool;
use tidewater::batch::bytes_of;
use tidewater::error::{Error, Result};
use tidewater::id::PartitionId;
use tidewater::sink::{DataWriter, Receipt};
use uuid::Uuid;

pub(crate) use self::encode::Encoding;
use self::encode::{Encoder, stored_rows};
use self::output::Output;
pub(crate) use self::output::Root;
use super::manifest::ManifestEntry;
use super::partition_columns::is_readable;
use crate::memory::Claim;

/// An open Parquet file holds its rows in memory until a row group is full, so there must not be too many.
const OPEN_FILES: usize = 64;

/// What to do when there is no memory for the rows of a record batch.
const MEMORY_HINT: &str = "give the session a larger memory pool, or let the rest of the query hold less of it: the error names who holds the most";

/// What the files of a query have in common.
#[derive(Debug)]
pub(crate) struct Layout {
    root: Root,
    encoding: Encoding,
    /// Name and position, in the order of the folders.
    partition_columns: Vec<(String, usize)>,
    /// Positions of the columns that are in the files.
    stored_columns: Vec<usize>,
    stored_schema: SchemaRef,
    max_records_per_file: u64,
    durable: bool,
}

impl Layout {
    /// Checks that rows of `schema` can be stored like this.
    pub(crate) fn new(
        root: Root,
        encoding: Encoding,
        schema: &Schema,
        partition_by: &[String],
        max_records_per_file: Option<u64>,
        durable: bool,
    ) -> Result<Self> {
        let partition_columns = partition_columns(schema, partition_by)?;
        let stored_columns: Vec<usize> =
            (0..schema.fields().len()).filter(|i| partition_columns.iter().all(|(_, p)| p != i)).collect();
        let stored_schema = encoding.stored_schema(&schema.project(&stored_columns)?)?;
        for (i, field) in stored_schema.fields().iter().enumerate() {
            if stored_schema.fields().iter().take(i).any(|earlier| earlier.name() == field.name()) {
                return Err(Error::invalid(format!("two columns are called `{}`", field.name()))
                    .with_hint("rename one: readers of the files could not distinguish them"));
            }
        }
        Ok(Layout {
            root,
            encoding,
            partition_columns,
            stored_columns,
            stored_schema,
            max_records_per_file: max_records_per_file.unwrap_or(u64::MAX),
            durable,
        })
    }

    /// The output directory.
    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    /// Begins a file in `folder`, which is empty or ends in `/`: the `count`-th there of `partition`.
    fn create(&self, partition: PartitionId, folder: &str, count: usize) -> Result<DataFile> {
        // Spark separates the counter with a dot when there are folders.
        let dash = if self.partition_columns.is_empty() { '-' } else { '.' };
        let name =
            format!("{folder}part-{:05}-{}{dash}c{count:03}{}", partition.0, Uuid::new_v4(), self.encoding.extension());
        let encoder = Encoder::new(&self.encoding, Arc::clone(&self.stored_schema))?;
        Ok(DataFile { output: self.root.create(&name, self.durable)?, encoder, rows: 0, last_used: 0, held: 0 })
    }
}

/// The partition columns by position, if they can be partition columns.
fn partition_columns(schema: &Schema, partition_by: &[String]) -> Result<Vec<(String, usize)>> {
    let mut columns: Vec<(String, usize)> = vec![];
    for name in partition_by {
        let Some((position, field)) = schema.column_with_name(name) else {
            let known: Vec<_> = schema.fields().iter().map(|f| f.name().as_str()).collect();
            return Err(Error::unknown("column", name, "the query, so the sink cannot partition by it", &known));
        };
        if columns.iter().any(|(_, earlier)| *earlier == position) {
            return Err(Error::invalid(format!("the file sink is to partition by `{name}` twice")));
        }
        if field.data_type().is_nested() {
            let message = format!("the file sink cannot partition by `{name}`: {} has no text", field.data_type());
            return Err(Error::invalid(message).with_hint("partition by one of its fields"));
        }
        if !is_readable(field.data_type()) {
            let message = format!(
                "the file sink cannot partition by `{name}`: no reader knows a {} by its text",
                field.data_type()
            );
            return Err(
                Error::invalid(message).with_hint("partition by a number instead: how many seconds it has, say")
            );
        }
        columns.push((name.clone(), position));
    }
    if !columns.is_empty() && columns.len() == schema.fields().len() {
        return Err(Error::invalid("the file sink is to partition by every column: no column is left for the files"));
    }
    Ok(columns)
}

struct DataFile {
    output: Output,
    encoder: Encoder,
    rows: u64,
    /// The tick of the writer at the last write.
    last_used: u64,
    /// The memory that it held after the last write: to ask anew for every file of every write would cost more.
    held: usize,
}

impl DataFile {
    async fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        let bytes = self.encoder.write(rows).map_err(|e| e.with_file(self.output.uri()))?;
        self.rows += rows.num_rows() as u64;
        if !bytes.is_empty() {
            self.output.write(bytes).await?;
        }
        self.held = self.memory();
        Ok(())
    }

    /// Memory held, in bytes.
    fn memory(&self) -> usize {
        self.encoder.memory() + self.output.memory()
    }

    /// Writes the rows that the encoder holds.
    async fn flush(&mut self) -> Result<()> {
        let bytes = self.encoder.flush().map_err(|e| e.with_file(self.output.uri()))?;
        self.output.write(bytes).await?;
        self.held = self.memory();
        Ok(())
    }

    async fn finish(mut self) -> Result<ManifestEntry> {
        let written = async {
            let bytes = self.encoder.finish().map_err(|e| e.with_file(self.output.uri()))?;
            self.output.write(bytes).await
        };
        if let Err(error) = written.await {
            // What went wrong first is what counts.
            let _ = self.output.abort().await;
            return Err(error);
        }
        self.output.close().await
    }
}

/// Writes the rows of one partition. Its receipt holds the [`ManifestEntry`] of every file.
pub(crate) struct FilesOfPartition {
    layout: Arc<Layout>,
    partition: PartitionId,
    /// By folder.
    open: HashMap<String, DataFile>,
    /// How many files each folder got so far.
    counts: HashMap<String, usize>,
    finished: Vec<ManifestEntry>,
    rows: u64,
    tick: u64,
    memory: Claim,
}

impl FilesOfPartition {
    pub(crate) fn new(layout: Arc<Layout>, partition: PartitionId, pool: &Arc<dyn MemoryPool>) -> Self {
        let (open, counts, finished) = Default::default();
        let what = format!("writing the files of partition {partition} to {}", layout.root.uri(""));
        let memory = Claim::new(pool, what, MEMORY_HINT);
        FilesOfPartition { layout, partition, open, counts, finished, rows: 0, tick: 0, memory }
    }

    /// Claims what the open files hold, and so much more. Where the pool refuses it, they write what they can first.
    async fn account(&mut self, more: usize) -> Result<()> {
        loop {
            let held: usize = self.open.values().map(|file| file.held).sum();
            let Err(refused) = self.memory.resize(held.saturating_add(more)) else { return Ok(()) };
            let largest = self.open.iter().filter(|(_, file)| file.held > 0).max_by_key(|(_, file)| file.held);
            let Some((folder, file)) = largest else { return Err(refused) };
            let (folder, has_rows) = (folder.clone(), file.encoder.memory() > 0);
            match self.open.get_mut(&folder).filter(|_| has_rows) {
                Some(file) => file.flush().await?,
                None => self.finish_file(&folder).await?,
            }
        }
    }

    async fn write_to(&mut self, folder: &str, rows: &RecordBatch) -> Result<()> {
        self.account(bytes_of(rows)).await?;
        let mut from = 0;
        while from < rows.num_rows() {
            let limit = self.layout.max_records_per_file;
            let file = self.file_in(folder).await?;
            let room = usize::try_from(limit - file.rows).unwrap_or(usize::MAX);
            let taken = room.min(rows.num_rows() - from);
            file.write(&rows.slice(from, taken)).await?;
            from += taken;
            if file.rows >= limit {
                self.finish_file(folder).await?;
            }
        }
        Ok(())
    }

    /// The open file of `folder`, which has room for a row.
    async fn file_in(&mut self, folder: &str) -> Result<&mut DataFile> {
        self.tick += 1;
        if !self.open.contains_key(folder) {
            if self.open.len() >= OPEN_FILES
                && let Some(idle) = self.open.iter().min_by_key(|(_, file)| file.last_used)
            {
                let idle = idle.0.clone();
                self.finish_file(&idle).await?;
            }
            let count = self.counts.entry(folder.to_owned()).or_default();
            let file = self.layout.create(self.partition, folder, *count)?;
            *count += 1;
            self.open.insert(folder.to_owned(), file);
        }
        let file = self.open.get_mut(folder).ok_or_else(|| Error::internal("a file that was just opened is gone"))?;
        file.last_used = self.tick;
        Ok(file)
    }

    /// Finishes all files, in the order of their folders.
    async fn finish_files(&mut self) -> Result<()> {
        let mut folders: Vec<String> = self.open.keys().cloned().collect();
        folders.sort();
        for folder in folders {
            self.finish_file(&folder).await?;
        }
        Ok(())
    }

    async fn finish_file(&mut self, folder: &str) -> Result<()> {
        if let Some(file) = self.open.remove(folder) {
            self.finished.push(file.finish().await?);
        }
        Ok(())
    }
}

#[async_trait]
impl DataWriter for FilesOfPartition {
    async fn write(&mut self, rows: RecordBatch) -> Result<()> {
        let layout = Arc::clone(&self.layout);
        let stored = |rows: &RecordBatch| {
            let columns: Vec<_> = layout.stored_columns.iter().map(|i| Arc::clone(rows.column(*i))).collect();
            stored_rows(&layout.stored_schema, &columns, rows.num_rows())
        };
        self.rows += rows.num_rows() as u64;
        if layout.partition_columns.is_empty() {
            return self.write_to("", &stored(&rows)?).await;
        }
        for (folder, rows) in folders::split(&rows, &layout.partition_columns)? {
            self.write_to(&folder, &stored(&rows)?).await?;
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<Receipt> {
        if let Err(error) = self.finish_files().await {
            if let Err(left) = self.abort().await {
                tracing::warn!(error = %left, "what a partition has written could not be taken back; nobody sees it");
            }
            return Err(error);
        }
        Receipt::new(self.rows).with_json(&self.finished)
    }

    async fn abort(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        for (_, mut file) in self.open.drain() {
            outcome = outcome.and(file.output.abort().await);
        }
        outcome.and(self.layout.root.remove(&std::mem::take(&mut self.finished)).await)
    }
}

#[cfg(test)]
mod tests;
