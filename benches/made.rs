//! A source whose rows are made up by the number of the batch: as many as one likes, and the same in every process. And
//! someone who listens to all batches.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::physical_plan::ExecutionPlan;
use parking_lot::Mutex;
use tidewater::prelude::*;
use tidewater::source::{
    LatestOffset, MicroBatchStream, Offset, OffsetRange, ReadLimit, ScanRequest, Source, SourceContext,
};

/// The rows of a batch, by partition.
type Make = dyn Fn(u64) -> Result<Vec<RecordBatch>, ArrowError> + Send + Sync;

/// So many batches, each made from its number. The offset is how many were read.
#[derive(Clone)]
pub(crate) struct Made {
    schema: SchemaRef,
    batches: u64,
    make: Arc<Make>,
}

impl Made {
    pub(crate) fn new(
        schema: SchemaRef,
        batches: u64,
        make: impl Fn(u64) -> Result<Vec<RecordBatch>, ArrowError> + Send + Sync + 'static,
    ) -> Self {
        Made { schema, batches, make: Arc::new(make) }
    }
}

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} batches made up", self.batches)
    }
}

#[async_trait]
impl Source for Made {
    fn description(&self) -> String {
        "made".to_owned()
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    async fn open(&self, _context: SourceContext) -> Result<Box<dyn MicroBatchStream>> {
        Ok(Box::new(MadeReader(self.clone())))
    }
}

#[derive(Debug)]
struct MadeReader(Made);

fn count(offset: Option<&Offset>) -> Result<u64> {
    offset.map_or(Ok(0), |offset| offset.to("batches that are made"))
}

#[async_trait]
impl MicroBatchStream for MadeReader {
    async fn latest_offset(&mut self, after: Option<&Offset>, _limit: ReadLimit) -> Result<LatestOffset> {
        Ok(LatestOffset::at(Offset::new((count(after)? + 1).min(self.0.batches))))
    }

    async fn bind(&mut self, range: &OffsetRange, scan: &ScanRequest) -> Result<Arc<dyn ExecutionPlan>> {
        let mut partitions: Vec<Vec<RecordBatch>> = vec![];
        for batch in count(range.start.as_ref())?..count(Some(&range.end))? {
            for (partition, rows) in (self.0.make)(batch)?.into_iter().enumerate() {
                partitions.resize_with(partitions.len().max(partition + 1), Vec::new);
                partitions[partition].push(rows);
            }
        }
        let schema = Arc::clone(&self.0.schema);
        Ok(MemorySourceConfig::try_new_exec(&partitions, schema, Some(scan.projection.clone()))?)
    }
}

/// Keeps the progress of every batch.
#[derive(Default)]
pub(crate) struct Collect(Mutex<Vec<Arc<QueryProgress>>>);

impl Collect {
    /// Of all batches so far, which it forgets.
    pub(crate) fn take(&self) -> Vec<Arc<QueryProgress>> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl QueryListener for Collect {
    fn on_event(&self, event: &QueryEvent) {
        if let QueryEvent::Progress(progress) = event {
            self.0.lock().push(Arc::clone(progress));
        }
    }
}

/// Numbers that look random, and the same for the same two.
pub(crate) fn mixed(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(b).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 30)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A line of `/proc/self/status`, such as `VmRSS`, in bytes; 0 where there is no such file.
pub(crate) fn own_memory(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    let kib = found.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Seconds of CPU that the process has used, all threads together.
pub(crate) fn cpu_s() -> Result<f64, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The second field is the program's name in brackets, which may hold blanks. Ticks are hundredths of a second.
    let (_, fields) = stat.rsplit_once(") ").ok_or("/proc/self/stat looks different")?;
    let ticks: u64 = fields.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / 100.0)
}
