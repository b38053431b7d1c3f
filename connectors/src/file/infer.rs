//! A schema read off the files that are there.
//!
//! Only on request, and once: a stream whose columns depended on which files happened to be first would not be the same
//! after a restart. Better to print the schema and write it down.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::csv::CsvFormat as CsvFileFormat;
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::execution::SessionState;
use object_store::ObjectStoreExt;
use tidewater::error::{Error, Result};

use super::format::{Format, compression_of};
use super::listing::Pattern;
use super::partition_columns;
use super::scan::parquet::parquet_options;
use super::uri::FileLocation;

/// How many files are looked at, the first by name.
const FILES: usize = 10;

/// The columns of the files that `pattern` names now, and of the `key=value` folders they lie in.
pub(super) async fn infer_schema(pattern: &Pattern, format: &Format, session: &SessionState) -> Result<SchemaRef> {
    pattern.check_exists()?;
    let runtime = session.runtime_env();
    let mut files = if pattern.has_sink_log(runtime).await? {
        pattern.committed(runtime).await?
    } else {
        pattern.list(runtime).await?.files
    };
    // An empty file says nothing of its columns.
    files.retain(|file| file.size > 0);
    files.sort_by(|a, b| a.uri.cmp(&b.uri));
    let Some(first) = files.first() else {
        return Err(Error::invalid(format!("`{pattern}` has no files yet, so its schema cannot be inferred"))
            .hint("give the schema, or wait for the first file"));
    };
    let locations = files.iter().map(|file| FileLocation::parse(&file.uri)).collect::<Result<Vec<_>>>()?;

    let reader: Arc<dyn FileFormat> = match format {
        Format::Parquet => Arc::new(ParquetFormat::default().with_options(parquet_options(session))),
        Format::Json => Arc::new(JsonFormat::default().with_file_compression_type(compression_of(&first.uri))),
        Format::Csv(csv) => Arc::new(
            CsvFileFormat::default()
                .with_has_header(csv.header)
                .with_delimiter(csv.delimiter)
                .with_quote(csv.quote)
                .with_escape((csv.escape != csv.quote).then_some(csv.escape))
                .with_comment(csv.comment)
                .with_file_compression_type(compression_of(&first.uri)),
        ),
    };
    // One store is asked for all of them. A file whose name it does not take is looked at only if there is no other.
    let plain = locations.iter().filter(|location| !location.is_odd()).take(FILES);
    let mut looked_at: Vec<&FileLocation> = plain.collect();
    if looked_at.is_empty() {
        looked_at.extend(locations.first());
    }
    let store = match looked_at.first() {
        Some(location) => location.open(runtime)?,
        None => super::uri::object_store(&pattern.root().store, runtime)?,
    };
    let mut objects = vec![];
    for location in looked_at {
        objects.push(store.head(&location.path).await.map_err(|e| Error::from(e).file(location.uri()))?);
    }
    let columns = reader.infer_schema(session, &store, &objects).await.map_err(|e| {
        Error::from(e).file(pattern.to_string()).hint("give the schema, or see whether all files have the same columns")
    })?;
    let mut fields: Vec<Field> = columns.fields().iter().map(|field| field.as_ref().clone()).collect();
    if !pattern.recursive {
        fields.extend(partition_fields(&pattern.root(), &locations, &columns));
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// The columns that only paths have.
fn partition_fields(root: &FileLocation, files: &[FileLocation], columns: &Schema) -> Vec<Field> {
    let mut found: Vec<(String, Vec<String>)> = vec![];
    for file in files {
        for (key, value) in partition_columns::in_path(root, file) {
            let value = value.map(|value| String::from_utf8_lossy(&value).into_owned());
            match found.iter_mut().find(|(known, _)| *known == key) {
                Some((_, values)) => values.extend(value),
                None => found.push((key, value.into_iter().collect())),
            }
        }
    }
    found.retain(|(key, _)| columns.index_of(key).is_err());
    let type_of = |values: &[String]| match values {
        [] => DataType::Utf8,
        values => partition_columns::type_of(values.iter().map(String::as_str)),
    };
    found.iter().map(|(key, values)| Field::new(key, type_of(values), true)).collect()
}
