//! Parquet files: DataFusion reads them, one at a time, so that whatever goes wrong names the file.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::common::config::TableParquetOptions;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::datasource::physical_plan::{FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::expr_rewriter::unnormalize_cols;
use datafusion::logical_expr::utils::conjunction;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::utils::{collect_columns, reassign_expr_columns};
use datafusion::physical_plan::ExecutionPlan;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStore;
use tidewater::error::{Error, ErrorKind, Result};

use super::{FilePart, OpenFile, Rows};

/// A file smaller than twice this is read by one partition.
pub(in crate::file) const MIN_CUT_BYTES: u64 = 8 << 20;

/// Opens Parquet files.
#[derive(Debug, Clone)]
pub(in crate::file) struct ParquetOpener {
    /// All columns of the source.
    schema: SchemaRef,
    /// Which of them the scan wants, and in what order.
    projection: Vec<usize>,
    /// What every wanted row fulfils, over all columns: whole stretches of a file may be skipped by it.
    predicate: Option<Arc<dyn PhysicalExpr>>,
    options: TableParquetOptions,
}

impl ParquetOpener {
    pub(in crate::file) fn new(
        schema: SchemaRef,
        projection: Vec<usize>,
        filters: &[Expr],
        session: &SessionState,
    ) -> Result<Self> {
        let predicate = match conjunction(unnormalize_cols(filters.iter().cloned())) {
            Some(filter) => {
                let columns = DFSchema::try_from(Arc::clone(&schema))?;
                Some(session.create_physical_expr(filter, &columns)?)
            }
            None => None,
        };
        let options = session.default_table_options().parquet.clone();
        Ok(ParquetOpener { schema, projection, predicate, options })
    }

    /// The columns of which a file's own type matters.
    fn used(&self, part: &FilePart) -> Vec<usize> {
        let mut used = self.projection.clone();
        used.extend(self.predicate.iter().flat_map(collect_columns).map(|column| column.index()));
        used.retain(|column| !part.is_constant(*column));
        used.sort_unstable();
        used.dedup();
        used
    }

    async fn rows(self, part: FilePart, context: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        let runtime = context.runtime_env();
        let store: Arc<dyn ObjectStore> = part.location.open(&runtime)?;
        let object = part.object();
        let cache = runtime.cache_manager.get_file_metadata_cache();
        // Read now, the footer is in the cache when the file is scanned.
        let found = DFParquetMetadata::new(store.as_ref(), &object)
            .with_file_metadata_cache(Some(Arc::clone(&cache)))
            .fetch_schema()
            .await?;
        for column in self.used(&part) {
            check_column(&found, self.schema.field(column))?;
        }

        let is_constant = |column: &usize| part.is_constant(*column);
        let columns = 0..self.schema.fields().len();
        let (from_path, from_file): (Vec<usize>, Vec<usize>) = columns.partition(is_constant);
        let fields = |columns: &[usize]| -> Vec<Arc<Field>> {
            columns.iter().map(|column| Arc::new(self.schema.field(*column).clone())).collect()
        };
        let table = TableSchema::builder(Arc::new(Schema::new(fields(&from_file))))
            .with_table_partition_cols(fields(&from_path))
            .build();
        let order: Vec<usize> = from_file.into_iter().chain(from_path).collect();
        let projection = self.projection.iter().filter_map(|wanted| order.iter().position(|column| column == wanted));

        let mut source = ParquetSource::new(table.clone())
            .with_table_parquet_options(self.options.clone())
            .with_parquet_file_reader_factory(Arc::new(CachedParquetFileReaderFactory::new(store, cache)));
        if let Some(predicate) = &self.predicate {
            source = source.with_predicate(reassign_expr_columns(Arc::clone(predicate), table.table_schema())?);
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
        DataSourceExec::from_data_source(scan).execute(0, context)
    }
}

impl OpenFile for ParquetOpener {
    fn open(&self, part: FilePart, context: Arc<TaskContext>) -> Result<Rows> {
        let rows = self.clone().rows(part, context);
        Ok(stream::once(rows).try_flatten().boxed())
    }

    fn describe(&self) -> String {
        match &self.predicate {
            Some(predicate) => format!("parquet, predicate={predicate}"),
            None => "parquet".to_owned(),
        }
    }
}

/// An error if the file has the column with a type that cannot be read as the wanted one.
fn check_column(file: &Schema, wanted: &Field) -> Result<(), DataFusionError> {
    match file.field_with_name(wanted.name()) {
        Ok(found) if !reads_as(found.data_type(), wanted.data_type()) => Err(Error::new(
            ErrorKind::BadInput,
            format!(
                "column `{}` is {} in this file, and the query expects {}",
                wanted.name(),
                found.data_type(),
                wanted.data_type()
            ),
        )
        .hint("replace the file by one with the expected type, or start a query that declares the column as it is")
        .into()),
        // A column that is missing is null.
        _ => Ok(()),
    }
}

/// True if every value of type `found` has its like in `wanted`.
fn reads_as(found: &DataType, wanted: &DataType) -> bool {
    use DataType::*;
    if found == wanted {
        return true;
    }
    match (found, wanted) {
        (Null, _) => true,
        (Dictionary(_, values), _) => reads_as(values, wanted),
        (Utf8 | LargeUtf8 | Utf8View, Utf8 | LargeUtf8 | Utf8View) => true,
        (Binary | LargeBinary | BinaryView | FixedSizeBinary(_), Binary | LargeBinary | BinaryView) => true,
        (Timestamp(..), Timestamp(..)) => true,
        (Float32, Float64) => true,
        (Decimal128(p, s) | Decimal256(p, s), Decimal128(wp, ws) | Decimal256(wp, ws)) => {
            ws >= s && i16::from(*wp) - i16::from(*ws) >= i16::from(*p) - i16::from(*s)
        }
        (List(found) | LargeList(found), List(wanted) | LargeList(wanted)) => {
            reads_as(found.data_type(), wanted.data_type())
        }
        (Struct(found), Struct(wanted)) => wanted.iter().all(|wanted| match found.find(wanted.name()) {
            Some((_, found)) => reads_as(found.data_type(), wanted.data_type()),
            None => true,
        }),
        _ => match (integer_bits(found), integer_bits(wanted)) {
            (Some((found, signed)), Some((wanted, wanted_signed))) => {
                found < wanted && (signed == wanted_signed || wanted_signed)
            }
            (Some((bits, _)), None) => matches!(wanted, Float64) && bits <= 32,
            _ => false,
        },
    }
}

/// How wide an integer is, and whether it has a sign.
fn integer_bits(of: &DataType) -> Option<(u8, bool)> {
    Some(match of {
        DataType::Int8 => (8, true),
        DataType::Int16 => (16, true),
        DataType::Int32 => (32, true),
        DataType::Int64 => (64, true),
        DataType::UInt8 => (8, false),
        DataType::UInt16 => (16, false),
        DataType::UInt32 => (32, false),
        DataType::UInt64 => (64, false),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::TimeUnit;

    use super::*;

    #[test]
    fn types_may_widen_and_nothing_else() {
        use DataType::*;
        for (found, wanted) in [
            (Int32, Int64),
            (UInt32, Int64),
            (Utf8, Utf8View),
            (Float32, Float64),
            (Int32, Float64),
            (Timestamp(TimeUnit::Nanosecond, None), Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
            (Decimal128(10, 2), Decimal128(12, 4)),
        ] {
            assert!(reads_as(&found, &wanted), "{found} {wanted}");
        }
        for (found, wanted) in [
            (Int64, Int32),
            (Int32, UInt64),
            (Utf8, Int64),
            (Int64, Utf8),
            (Float64, Float32),
            (Int64, Float64),
            (Decimal128(10, 2), Decimal128(10, 4)),
        ] {
            assert!(!reads_as(&found, &wanted), "{found} {wanted}");
        }
    }
}
