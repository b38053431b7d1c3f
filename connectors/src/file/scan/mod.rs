//! The files of one range of offsets, as a plan.
//!
//! [`FileScanExec`] is a leaf. Each partition reads its files one after the other; how a file becomes rows is the matter
//! of an [`OpenFile`], of which there are two: [`parquet`] and [`text`]. Whatever goes wrong names the file.

mod csv;

mod json;

pub(super) mod parquet;

mod problem;

mod spread;

pub(super) mod text;

mod lines;

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use chrono::DateTime;
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, SchedulingType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectMeta;
use tidewater::error::Result;

use super::listing::ListedFile;
use super::partition_columns;
use super::uri::FileLocation;

/// A file, or a stretch of one, to be read by one partition.
#[derive(Debug, Clone)]
pub(super) struct FilePart {
    pub(super) uri: String,
    pub(super) location: FileLocation,
    pub(super) size: u64,
    pub(super) modified_ms: i64,
    /// Which bytes; `None` is all. Only formats that can begin in the middle are cut.
    pub(super) range: Option<std::ops::Range<u64>>,
    /// Columns of the source that come from the path, by position.
    pub(super) constants: Vec<(usize, ScalarValue)>,
}

impl FilePart {
    /// A whole file. `root` is the folder below which `key=value` folders are columns; without it there are none.
    pub(super) fn new(file: &ListedFile, schema: &Schema, root: Option<&FileLocation>) -> Result<Self> {
        let location = FileLocation::parse(&file.uri)?;
        let constants = match root {
            Some(root) => partition_columns::constants(schema, &root.path, &location.path)
                .map_err(|e| e.file(file.uri.clone()))?,
            None => vec![],
        };
        Ok(FilePart {
            uri: file.uri.clone(),
            location,
            size: file.size,
            modified_ms: file.modified_ms,
            range: None,
            constants,
        })
    }

    /// How many bytes are to be read.
    fn bytes(&self) -> u64 {
        self.range.as_ref().map_or(self.size, |range| range.end - range.start)
    }

    fn object(&self) -> ObjectMeta {
        ObjectMeta {
            location: self.location.path.clone(),
            last_modified: DateTime::from_timestamp_millis(self.modified_ms).unwrap_or_default(),
            size: self.size,
            e_tag: None,
            version: None,
        }
    }

    fn is_constant(&self, column: usize) -> bool {
        self.constants.iter().any(|(index, _)| *index == column)
    }
}

type Rows = BoxStream<'static, DataFusionResult<RecordBatch>>;

/// Makes rows of a file.
pub(super) trait OpenFile: fmt::Debug + Send + Sync {
    /// The rows of `part`, with the columns of the scan.
    fn open(&self, part: FilePart, context: Arc<TaskContext>) -> Result<Rows>;

    /// The format and what else is worth knowing, for `explain`.
    fn describe(&self) -> String;
}

/// Reads the files of a batch.
#[derive(Debug)]
pub(super) struct FileScanExec {
    partitions: Vec<Vec<FilePart>>,
    opener: Arc<dyn OpenFile>,
    properties: Arc<PlanProperties>,
}

impl FileScanExec {
    /// Spreads `parts` over at most `partitions` partitions. Files larger than `min_cut_bytes` twice may be cut.
    pub(super) fn new(
        parts: Vec<FilePart>,
        opener: Arc<dyn OpenFile>,
        schema: SchemaRef,
        partitions: usize,
        min_cut_bytes: Option<u64>,
    ) -> Self {
        let partitions = spread::spread(parts, partitions, min_cut_bytes);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(partitions.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        FileScanExec { partitions, opener, properties: Arc::new(properties) }
    }
}

impl DisplayAs for FileScanExec {
    fn fmt_as(&self, format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 5;
        let files: Vec<_> = self.partitions.iter().flatten().collect();
        let names: Vec<_> = self.properties.eq_properties.schema().fields().iter().map(|f| f.name().as_str()).collect();
        write!(
            f,
            "FileScanExec: {}, projection=[{}], partitions={}, files={}",
            self.opener.describe(),
            names.join(", "),
            self.partitions.len(),
            files.len()
        )?;
        let shown = if matches!(format, DisplayFormatType::Verbose) { files.len() } else { SHOWN };
        let mut uris: Vec<_> = files.iter().take(shown).map(|part| part.uri.as_str()).collect();
        if files.len() > shown {
            uris.push("…");
        }
        write!(f, " [{}]", uris.join(", "))
    }
}

impl ExecutionPlan for FileScanExec {
    fn name(&self) -> &str {
        "FileScanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DataFusionResult<TreeNodeRecursion>,
    ) -> DataFusionResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        let parts = self.partitions.get(partition).cloned().unwrap_or_default();
        let opener = Arc::clone(&self.opener);
        let rows = stream::iter(parts).flat_map(move |part| {
            let uri = part.uri.clone();
            let rows = match opener.open(part, Arc::clone(&context)) {
                Ok(rows) => rows,
                Err(error) => stream::once(async { Err(DataFusionError::from(error)) }).boxed(),
            };
            rows.map_err(move |error| problem::in_file(error, &uri).into())
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}
