//! Parquet files: DataFusion reads them, one at a time, so that whatever goes wrong names the file.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow::array::{ArrayData, ArrayRef, make_array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::common::DFSchema;
use datafusion::common::config::TableParquetOptions;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::datasource::physical_plan::parquet::{
    CachedParquetFileReaderFactory, DefaultParquetFileReaderFactory, ParquetFileReaderFactory,
};
use datafusion::datasource::physical_plan::{FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::{SessionState, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::expr_rewriter::unnormalize_cols;
use datafusion::logical_expr::utils::conjunction;
use datafusion::parquet::errors::ParquetError;
use datafusion::parquet::file::metadata::ParquetMetaData;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::ExecutionPlan;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use object_store::ObjectStore;
use tidewater::error::{Error, ErrorKind, Result};

use super::tally::Tally;
use super::{FilePart, OpenFile, Rows, pruning};
use crate::file::names::Names;

/// A file smaller than twice this is read by one partition.
pub(in crate::file) const MIN_CUT_BYTES: u64 = 8 << 20;

/// In what unit, and as times of which zone, old files' times of 96 bits are read. In nanoseconds, which is DataFusion's
/// choice, times before 1677 and after 2262 would turn into others; Spark, which writes them, knows microseconds only.
const INT96: (&str, &str) = ("us", "UTC");

/// How the session reads Parquet files, and old times among them.
pub(in crate::file) fn parquet_options(session: &SessionState) -> TableParquetOptions {
    let mut options = session.default_table_options().parquet.clone();
    let (unit, zone) = INT96;
    if options.global.coerce_int96.is_none() {
        options.global.coerce_int96 = Some(unit.to_owned());
        options.global.coerce_int96_tz = Some(zone.to_owned());
    }
    options
}

/// Opens Parquet files.
#[derive(Debug, Clone)]
pub(in crate::file) struct ParquetOpener {
    /// All columns of the source.
    schema: SchemaRef,
    /// Which of them the scan wants, and in what order.
    projection: Vec<usize>,
    output: SchemaRef,
    /// What every wanted row fulfils, over all columns: whole stretches of a file may be skipped by it.
    conjuncts: Vec<Arc<dyn PhysicalExpr>>,
    options: TableParquetOptions,
    names: Names,
    tally: Arc<Tally>,
}

/// Where the columns of the source are in one file.
struct Found {
    /// By position in the source: the column's position in the file, if it is there, and how it is spelled.
    columns: Vec<(Option<usize>, Arc<Field>)>,
    schema: Schema,
    metadata: Arc<ParquetMetaData>,
}

impl ParquetOpener {
    pub(in crate::file) fn new(
        schema: SchemaRef,
        projection: Vec<usize>,
        filters: &[Expr],
        session: &SessionState,
        names: Names,
        tally: Arc<Tally>,
    ) -> Result<Self> {
        let predicate = match conjunction(unnormalize_cols(filters.iter().cloned())) {
            Some(filter) => {
                let columns = DFSchema::try_from(Arc::clone(&schema))?;
                Some(session.create_physical_expr(filter, &columns)?)
            }
            None => None,
        };
        let options = parquet_options(session);
        let output = Arc::new(schema.project(&projection)?);
        let conjuncts = pruning::plain(predicate.as_ref());
        Ok(ParquetOpener { schema, projection, output, conjuncts, options, names, tally })
    }

    /// The columns of which a file's own type matters.
    fn used(&self, part: &FilePart) -> Vec<usize> {
        let mut used = self.projection.clone();
        used.extend(self.conjuncts.iter().flat_map(collect_columns).map(|column| column.index()));
        used.retain(|column| !part.is_constant(*column));
        used.sort_unstable();
        used.dedup();
        used
    }

    /// Finds the columns of the source in the file. An error if one that is used cannot be read as what it should be.
    fn find(&self, part: &FilePart, schema: Schema, metadata: Arc<ParquetMetaData>) -> Result<Found> {
        let in_file: Vec<_> = (0..self.schema.fields().len()).filter(|column| !part.is_constant(*column)).collect();
        let wanted = self.schema.project(&in_file)?;
        self.tally.file_lacks(self.names.lacking(schema.fields(), wanted.fields()));

        let mut columns: Vec<_> = self.schema.fields().iter().map(|field| (None, Arc::clone(field))).collect();
        for column in self.used(part) {
            let wanted = self.schema.field(column);
            let names = schema.fields().iter().map(|field| field.name().as_str());
            let place = self
                .names
                .find(names, wanted.name())
                .map_err(|why| format!("cannot be distinguished from another: {why}"));
            let spelled = place.and_then(|place| {
                let Some(place) = place else { return Ok(None) };
                let found = schema.field(place);
                let data_type = self.names.as_spelled(found.data_type(), wanted.data_type())?;
                let field = wanted.clone().with_name(found.name()).with_data_type(data_type);
                Ok(Some((Some(place), Arc::new(field))))
            });
            match (spelled, columns.get_mut(column)) {
                (Ok(Some(found)), Some(column)) => *column = found,
                // A column that is missing is null.
                (Ok(_), _) => {}
                (Err(why), _) => {
                    let message = format!("column `{}` {why}", wanted.name());
                    return Err(Error::new(ErrorKind::BadInput, message).with_hint(
                        "replace the file by one with the expected columns, or start a query that declares the column as \
                         it is (with the option `caseSensitive`, names that differ in case are different)",
                    ));
                }
            }
        }
        Ok(Found { columns, schema, metadata })
    }

    async fn rows(self, part: FilePart, context: Arc<TaskContext>) -> DataFusionResult<Rows> {
        let runtime = context.runtime_env();
        let store: Arc<dyn ObjectStore> = part.location.open(&runtime)?;
        let object = part.object();
        // The cache knows files by a path that an odd name only resembles.
        let cache = (!part.location.is_odd()).then(|| runtime.cache_manager.get_file_metadata_cache());
        // Read now, the footer is in the cache when the file is scanned.
        let footer = DFParquetMetadata::new(store.as_ref(), &object)
            .with_file_metadata_cache(cache.clone())
            .with_coerce_int96(self.options.global.coerce_int96.as_deref().and_then(time_unit))
            .with_coerce_int96_tz(self.options.global.coerce_int96_tz.as_deref().map(Arc::from));
        let footer = async { DataFusionResult::Ok((footer.fetch_schema().await?, footer.fetch_metadata().await?)) };
        let (schema, metadata) = AssertUnwindSafe(footer).catch_unwind().await.unwrap_or_else(panicked)?;
        let found = self.find(&part, schema, metadata)?;

        let is_constant = |column: &usize| part.is_constant(*column);
        let columns = 0..self.schema.fields().len();
        let (from_path, from_file): (Vec<usize>, Vec<usize>) = columns.partition(is_constant);
        let fields = |columns: &[usize]| -> Vec<Arc<Field>> {
            columns.iter().filter_map(|column| found.columns.get(*column)).map(|(_, field)| Arc::clone(field)).collect()
        };
        let table = TableSchema::builder(Arc::new(Schema::new(fields(&from_file))))
            .with_table_partition_cols(fields(&from_path))
            .build();
        let order: Vec<usize> = from_file.into_iter().chain(from_path).collect();
        let place_of = |wanted: usize| order.iter().position(|column| *column == wanted);
        let projection = self.projection.iter().filter_map(|wanted| place_of(*wanted));

        let readers: Arc<dyn ParquetFileReaderFactory> = match cache {
            Some(cache) => Arc::new(CachedParquetFileReaderFactory::new(store, cache)),
            None => Arc::new(DefaultParquetFileReaderFactory::new(store)),
        };
        let mut source = ParquetSource::new(table.clone())
            .with_table_parquet_options(self.options.clone())
            .with_parquet_file_reader_factory(readers);
        let trusted = |column: usize| found.trusts(column, self.schema.field(column).data_type());
        let usable = |column: usize| place_of(column).filter(|_| part.is_constant(column) || trusted(column));
        if let Some(predicate) = pruning::over_file(&self.conjuncts, table.table_schema(), usable)? {
            source = source.with_predicate(predicate);
        }
        let values = part.constants.iter().map(|(_, value)| value.clone()).collect();
        let mut file = PartitionedFile::new_from_meta(object).with_partition_values(values);
        if let Some(range) = &part.range {
            file = file.with_range(range.start as i64, range.end as i64);
        }
        let scan = FileScanConfigBuilder::new(part.location.store.clone(), Arc::new(source))
            .with_file(file)
            .with_projection_indices(Some(projection.collect()))?
            .build();
        let rows = DataSourceExec::from_data_source(scan).execute(0, context)?;
        let output = Arc::clone(&self.output);
        let rows = AssertUnwindSafe(rows).catch_unwind().map(|rows| rows.unwrap_or_else(panicked));
        Ok(rows.map(move |rows| Ok(respelled(&rows?, &output)?)).boxed())
    }
}

impl Found {
    /// True if what the file says of this column of the source, of type `wanted`, may be used to skip rows.
    fn trusts(&self, column: usize, wanted: &DataType) -> bool {
        let place = self.columns.get(column).and_then(|(place, _)| *place);
        place.is_some_and(|place| pruning::is_trusted(&self.metadata, &self.schema, place, wanted))
    }
}

/// The decoder of Parquet panics at some contents of damaged files.
fn panicked<T>(panic: Box<dyn Any + Send>) -> DataFusionResult<T> {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    let message = format!("its contents make the decoder panic: {}", text.unwrap_or("it does not say why"));
    Err(DataFusionError::ParquetError(Box::new(ParquetError::General(message))))
}

/// The unit that a setting of DataFusion names.
fn time_unit(name: &str) -> Option<arrow::datatypes::TimeUnit> {
    use arrow::datatypes::TimeUnit::{Microsecond, Millisecond, Nanosecond, Second};
    [("s", Second), ("ms", Millisecond), ("us", Microsecond), ("ns", Nanosecond)]
        .into_iter()
        .find_map(|(known, unit)| name.eq_ignore_ascii_case(known).then_some(unit))
}

/// The same rows under the names of `schema`.
fn respelled(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = rows.columns().iter().zip(schema.fields()).map(|(column, field)| {
        if column.data_type() == field.data_type() {
            return Ok(Arc::clone(column));
        }
        renamed(column.to_data(), field.data_type()).map(make_array)
    });
    let columns: Vec<ArrayRef> = columns.collect::<Result<_, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
}

/// The same values as `wanted`, which differs in names alone.
fn renamed(data: ArrayData, wanted: &DataType) -> Result<ArrayData, ArrowError> {
    let inner: Vec<&DataType> = match wanted {
        DataType::Struct(fields) => fields.iter().map(|field| field.data_type()).collect(),
        DataType::List(item) | DataType::LargeList(item) => vec![item.data_type()],
        _ => return Ok(data),
    };
    let children = data.child_data().iter().zip(inner).map(|(child, inner)| renamed(child.clone(), inner));
    let children = children.collect::<Result<Vec<_>, _>>()?;
    data.into_builder().data_type(wanted.clone()).child_data(children).build()
}

impl OpenFile for ParquetOpener {
    fn open(&self, part: FilePart, context: Arc<TaskContext>) -> Result<Rows> {
        let rows = self.clone().rows(part, context);
        Ok(stream::once(rows).try_flatten().boxed())
    }

    fn describe(&self) -> String {
        match &self.conjuncts[..] {
            [] => "parquet".to_owned(),
            conjuncts => {
                let conjuncts: Vec<_> = conjuncts.iter().map(ToString::to_string).collect();
                format!("parquet, predicate={}", conjuncts.join(" AND "))
            }
        }
    }
}
