//! Rows handed over by the program: for tests and first steps.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::physical_plan::ExecutionPlan;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;
use uuid::Uuid;

use super::{LatestOffset, MicroBatchStream, Offset, OffsetRange, ReadLimit, ScanRequest, Source, SourceContext};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::Identity;

/// Rows that the program adds while the query runs. Clones share the rows.
///
/// What one call of [`add`](Self::add) brings is read by one batch, whole. The rows stay in memory for the life of the
/// source, so that a query restarted in the same process can repeat a batch.
///
/// ```
/// # use std::sync::Arc;
/// use arrow::array::{Int64Array, RecordBatch};
/// use tidewater::source::{MemorySource, Source};
///
/// let rows = RecordBatch::try_from_iter([("v", Arc::new(Int64Array::from(vec![1, 2])) as _)])?;
/// let source = MemorySource::new(rows.schema());
/// source.add(vec![rows])?;
/// assert_eq!(source.schema().field(0).name(), "v");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct MemorySource {
    schema: SchemaRef,
    partitions: usize,
    adds_per_batch: Option<usize>,
    adds: Arc<Mutex<Vec<Vec<RecordBatch>>>>,
    /// How many there are, for who waits.
    count: Arc<watch::Sender<usize>>,
    /// Tells it apart from others.
    name: Uuid,
}

impl MemorySource {
    /// An empty source of rows with these columns.
    pub fn new(schema: SchemaRef) -> Self {
        MemorySource {
            schema,
            partitions: 1,
            adds_per_batch: None,
            adds: Arc::default(),
            count: Arc::default(),
            name: Uuid::new_v4(),
        }
    }

    /// Deals the record batches of each `add` to this many partitions, in turn. Default 1.
    #[must_use]
    pub fn partitions(mut self, partitions: usize) -> Self {
        self.partitions = partitions.max(1);
        self
    }

    /// Lets one batch take at most this many `add`s. Default: all there are.
    #[must_use]
    pub fn adds_per_batch(mut self, adds: usize) -> Self {
        self.adds_per_batch = Some(adds.max(1));
        self
    }

    /// Adds rows; without any, there is a batch all the same.
    pub fn add(&self, rows: Vec<RecordBatch>) -> Result<()> {
        if let Some(other) = rows.iter().find(|rows| rows.schema().fields() != self.schema.fields()) {
            return Err(Error::invalid(format!(
                "rows with the columns {:?} were added to a source of {:?}",
                other.schema().fields(),
                self.schema.fields()
            )));
        }
        let mut adds = self.adds.lock();
        adds.push(rows);
        self.count.send_replace(adds.len());
        Ok(())
    }

    /// How many times rows were added.
    pub fn adds(&self) -> usize {
        self.adds.lock().len()
    }
}

#[async_trait]
impl Source for MemorySource {
    fn description(&self) -> String {
        "memory".to_owned()
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn identity(&self) -> Option<Identity> {
        Some(Identity::new("memory").in_process(self.name.to_string()))
    }

    async fn open(&self, _context: SourceContext) -> Result<Box<dyn MicroBatchStream>> {
        Ok(Box::new(MemoryReader { source: self.clone(), frozen: None, found: 0 }))
    }
}

/// Its offset is the number of the last `add` that was read, counted from 0.
#[derive(Debug)]
struct MemoryReader {
    source: MemorySource,
    frozen: Option<usize>,
    /// How many adds there were when it was last asked.
    found: usize,
}

impl MemoryReader {
    /// How many adds an offset covers.
    fn adds_until(&self, offset: &Offset) -> Result<usize> {
        let last = offset.value().as_u64().ok_or_else(|| {
            Error::new(ErrorKind::IncompatibleCheckpoint, format!("`{offset}` is not an offset of a memory source"))
                .with_hint("the checkpoint belongs to a query with another source: use a checkpoint of its own")
        })?;
        let adds = last as usize + 1;
        if adds > self.source.adds() {
            return Err(Error::new(
                ErrorKind::SourceLostData,
                format!("the checkpoint has read {adds} adds of a memory source that has {}", self.source.adds()),
            )
            .with_hint("a memory source lives as long as the process: start with a new checkpoint"));
        }
        Ok(adds)
    }
}

fn offset_of(adds: usize) -> Option<Offset> {
    adds.checked_sub(1).map(|last| Offset::new(last as u64))
}

#[async_trait]
impl MicroBatchStream for MemoryReader {
    async fn prepare_for_available_now(&mut self) -> Result<()> {
        self.frozen = Some(self.source.adds());
        Ok(())
    }

    async fn latest_offset(&mut self, after: Option<&Offset>, limit: ReadLimit) -> Result<LatestOffset> {
        let read = after.map_or(Ok(0), |after| self.adds_until(after))?;
        self.found = self.source.adds();
        let available = self.frozen.unwrap_or(self.found).max(read);
        let end = match (limit, self.source.adds_per_batch) {
            (ReadLimit::Configured, Some(adds)) => available.min(read + adds),
            _ => available,
        };
        Ok(LatestOffset { batch_end: offset_of(end), latest: offset_of(available), unknown: None })
    }

    async fn bind(&mut self, range: &OffsetRange, scan: &ScanRequest) -> Result<Arc<dyn ExecutionPlan>> {
        let start = range.start.as_ref().map_or(Ok(0), |start| self.adds_until(start))?;
        let end = self.adds_until(&range.end)?;
        let mut partitions = vec![vec![]; self.source.partitions];
        let adds = self.source.adds.lock();
        for rows in adds.get(start..end).unwrap_or_default() {
            for (rows, partition) in rows.iter().zip((0..self.source.partitions).cycle()) {
                if let Some(partition) = partitions.get_mut(partition) {
                    partition.push(rows.clone());
                }
            }
        }
        let schema = Arc::clone(&self.source.schema);
        Ok(MemorySourceConfig::try_new_exec(&partitions, schema, Some(scan.projection.clone()))?)
    }

    async fn commit(&mut self, _end: &Offset) -> Result<()> {
        Ok(())
    }

    fn news(&self) -> Option<BoxFuture<'static, ()>> {
        let (mut count, found) = (self.source.count.subscribe(), self.found);
        Some(Box::pin(async move {
            // The source is dropped: nothing will ever be added.
            if count.wait_for(|count| *count > found).await.is_err() {
                std::future::pending::<()>().await;
            }
        }))
    }
}
