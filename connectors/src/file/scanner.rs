//! Files where they are read: splits become plans, and what was met in them is counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use datafusion::physical_plan::ExecutionPlan;
use parking_lot::Mutex;
use tidewater::error::Result;
use tidewater::id::BatchId;
use tidewater::source::{FILE_NAME_COLUMN, ScanContext, ScanRequest, SourceScanner, Split};

use super::format::{Format, ParseMode};
use super::listing::Pattern;
use super::scan::parquet::ParquetOpener;
use super::scan::tally::Tally;
use super::scan::text::{MalformedRows, TextOpener};
use super::scan::{FilePart, FileScanExec, FileSplit, OpenFile, Partition};
use super::settings::Settings;

/// Scans the files of one run of one query, in one process.
#[derive(Debug)]
pub(super) struct FileScanner {
    pattern: Pattern,
    format: Format,
    /// The columns of the source, and behind them that of the file each row comes from.
    schema: SchemaRef,
    settings: Settings,
    context: ScanContext,
    /// The source, for errors.
    source: String,
    met: Mutex<Met>,
    /// Whether it was said that no file of a batch has some column.
    told_of_columns: AtomicBool,
}

/// What was met in the batch that was scanned last.
#[derive(Debug, Default)]
struct Met {
    batch: Option<BatchId>,
    /// A source that is read at two places of a plan is scanned for both.
    tally: Arc<Tally>,
    /// At the place that was scanned last.
    malformed: Arc<MalformedRows>,
}

impl FileScanner {
    pub(super) fn new(
        pattern: Pattern,
        format: Format,
        schema: &Schema,
        settings: Settings,
        context: ScanContext,
        source: String,
    ) -> Self {
        let schema = with_file_names(schema);
        let (met, told_of_columns) = Default::default();
        FileScanner { pattern, format, schema, settings, context, source, met, told_of_columns }
    }

    /// Where what is met in `batch` is counted.
    fn counters(&self, batch: BatchId) -> (Arc<Tally>, Arc<MalformedRows>) {
        let mut met = self.met.lock();
        if met.batch != Some(batch) {
            met.tally = Arc::default();
            met.batch = Some(batch);
        }
        met.malformed = Arc::default();
        (Arc::clone(&met.tally), Arc::clone(&met.malformed))
    }

    /// The files of a task, with the values in their paths.
    fn partition(&self, split: &Split) -> Result<Partition> {
        let FileSplit { files, missing } = split.to(&self.source)?;
        let root = (!self.settings.recursive).then(|| self.pattern.root());
        let part = |file| FilePart::new(file, &self.schema, root.as_ref(), self.settings.names);
        Ok(Partition { parts: files.into_iter().map(part).collect::<Result<_>>()?, missing })
    }

    fn opener(
        &self,
        scan: &ScanRequest,
        tally: &Arc<Tally>,
        malformed: Arc<MalformedRows>,
    ) -> Result<Arc<dyn OpenFile>> {
        let names = self.settings.names;
        let (projection, schema) = (scan.projection.clone(), Arc::clone(&self.schema));
        let (mode, corrupt_column) = (self.settings.mode, &self.settings.corrupt_column);
        let columns = (Arc::clone(&schema), Arc::clone(&scan.schema));
        let text =
            TextOpener::new(&self.format, columns.0, projection.clone(), columns.1, mode, corrupt_column, malformed);
        Ok(match text {
            Some(text) => Arc::new(text.with(names, tally)),
            None => {
                let (session, tally) = (&self.context.session, Arc::clone(tally));
                Arc::new(ParquetOpener::new(schema, projection, &scan.filters, session, names, tally)?)
            }
        })
    }
}

impl SourceScanner for FileScanner {
    fn scan(&self, batch: BatchId, splits: &[Split], scan: &ScanRequest) -> Result<Arc<dyn ExecutionPlan>> {
        let partitions = splits.iter().map(|split| self.partition(split)).collect::<Result<_>>()?;
        let (tally, malformed) = self.counters(batch);
        let opener = self.opener(scan, &tally, malformed)?;
        let output = Arc::clone(&scan.schema);
        Ok(Arc::new(FileScanExec::new(partitions, opener, output, (self.settings.ignored, tally))))
    }

    fn metrics(&self) -> BTreeMap<String, String> {
        let mut metrics = BTreeMap::new();
        let mut add = |name: &str, count: u64| metrics.insert(name.to_owned(), count.to_string());
        let met = self.met.lock();
        let is_text = !matches!(self.format, Format::Parquet);
        match self.settings.mode {
            ParseMode::DropMalformed if is_text => {
                add("malformedRowsDropped", met.malformed.dropped.load(Ordering::Relaxed));
            }
            ParseMode::Permissive if is_text => {
                add("malformedRowsKept", met.malformed.kept.load(Ordering::Relaxed));
            }
            _ => {}
        }
        if self.settings.ignored.missing_files {
            add("missingFilesIgnored", met.tally.missing_files());
        }
        if self.settings.ignored.corrupt_files {
            add("corruptFilesIgnored", met.tally.corrupt_files());
        }
        let columns = met.tally.columns_in_no_file();
        add("columnsInNoFile", columns.len() as u64);
        if !columns.is_empty() && !self.told_of_columns.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                input = %self.pattern,
                columns = columns.join(", "),
                "no file of the batch has these columns of the source: they are null in every row"
            );
        }
        metrics
    }
}

/// The columns of the source, and behind them that of the file each row comes from.
fn with_file_names(schema: &Schema) -> SchemaRef {
    let name = Arc::new(Field::new(FILE_NAME_COLUMN, DataType::Utf8, false));
    let fields: Fields = schema.fields().iter().cloned().chain([name]).collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}
