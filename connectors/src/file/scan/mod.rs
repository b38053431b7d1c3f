//! The files of some splits, as a plan.
//!
//! [`FileScanExec`] is a leaf. Each partition reads its files one after the other; how a file becomes rows is the matter
//! of an [`OpenFile`], of which there are two: [`parquet`] and [`text`]. Whatever goes wrong names the file.

mod csv;

mod csv_records;

mod decode;

mod foreign;

mod header;

mod json;

pub(super) mod parquet;

pub(super) mod problem;

mod pruning;

mod split;

mod spread;

pub(super) mod tally;

pub(super) mod text;

mod lines;

mod unseen;

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
use futures::{StreamExt, future, stream};
use object_store::ObjectMeta;
use tidewater::error::Result;
use tidewater::source::FILE_NAME_COLUMN;

use self::problem::Trouble;
pub(super) use self::split::{FileSplit, Stretch};
pub(super) use self::spread::spread;
use self::tally::Tally;
use super::names::Names;
use super::partition_columns;
use super::uri::FileLocation;

/// A file, or a stretch of one, to be read by one partition.
#[derive(Debug, Clone)]
pub(super) struct FilePart {
    pub(super) uri: String,
    pub(super) location: FileLocation,
    pub(super) size: u64,
    pub(super) modified_ms: i64,
    /// Which bytes; `None` is all.
    pub(super) range: Option<std::ops::Range<u64>>,
    /// Columns of the source that come from the path, by position.
    pub(super) constants: Vec<(usize, ScalarValue)>,
}

impl FilePart {
    /// With the columns of its path. The file's name is one, if `schema` has a column for it. `root` is the folder
    /// below which `key=value` folders are columns; without it there are none.
    pub(super) fn new(file: Stretch, schema: &Schema, root: Option<&FileLocation>, names: Names) -> Result<Self> {
        let Stretch { uri, modified_ms, size, range } = file;
        let location = FileLocation::parse(&uri)?;
        let mut constants = match root {
            Some(root) => {
                partition_columns::constants(schema, root, &location, names).map_err(|e| e.with_file(uri.clone()))?
            }
            None => vec![],
        };
        if let Some((index, _)) = schema.column_with_name(FILE_NAME_COLUMN) {
            constants.push((index, ScalarValue::from(uri.clone())));
        }
        Ok(FilePart { uri, location, size, modified_ms, range, constants })
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

/// What the query goes on without.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ignored {
    pub(super) missing_files: bool,
    pub(super) corrupt_files: bool,
}

/// What one partition reads.
#[derive(Debug, Clone, Default)]
pub(super) struct Partition {
    pub(super) parts: Vec<FilePart>,
    /// Files that were gone before, and that the query goes on without.
    pub(super) missing: Vec<String>,
}

/// Reads the files of a batch.
#[derive(Debug)]
pub(super) struct FileScanExec {
    partitions: Vec<Partition>,
    opener: Arc<dyn OpenFile>,
    ignored: Ignored,
    tally: Arc<Tally>,
    properties: Arc<PlanProperties>,
}

impl FileScanExec {
    pub(super) fn new(
        partitions: Vec<Partition>,
        opener: Arc<dyn OpenFile>,
        schema: SchemaRef,
        (ignored, tally): (Ignored, Arc<Tally>),
    ) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(partitions.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        FileScanExec { partitions, opener, ignored, tally, properties: Arc::new(properties) }
    }
}

impl DisplayAs for FileScanExec {
    fn fmt_as(&self, format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 5;
        let files: Vec<_> = self.partitions.iter().flat_map(|partition| &partition.parts).collect();
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
        let Partition { parts, missing } = self.partitions.get(partition).cloned().unwrap_or_default();
        missing.iter().for_each(|uri| self.tally.missing_file(uri));
        let (opener, ignored, tally) = (Arc::clone(&self.opener), self.ignored, Arc::clone(&self.tally));
        let rows = stream::iter(parts).flat_map(move |part| {
            let (uri, tally) = (part.uri.clone(), Arc::clone(&tally));
            let rows = match opener.open(part, Arc::clone(&context)) {
                Ok(rows) => rows,
                Err(error) => stream::once(async { Err(DataFusionError::from(error)) }).boxed(),
            };
            // `None` ends the file before its end.
            let rows = rows.map(move |rows| {
                let error = match rows {
                    Ok(rows) => return Some(Ok(rows)),
                    Err(error) => error,
                };
                let (error, trouble) = problem::in_file(error, &uri);
                match trouble {
                    Trouble::Gone if ignored.missing_files => tally.missing_file(&uri),
                    Trouble::Corrupt if ignored.corrupt_files => tally.corrupt_file(&uri, error.message()),
                    _ => return Some(Err(error.into())),
                }
                None
            });
            rows.take_while(|rows| future::ready(rows.is_some())).filter_map(future::ready)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}
