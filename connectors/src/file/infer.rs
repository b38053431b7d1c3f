//! A schema read off the files that are there.
//!
//! Only on request, and once: a stream whose columns depended on which files happened to be first would not be the same
//! after a restart. Better to print the schema and write it down.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
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
            .with_hint("give the schema, or wait for the first file"));
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
        objects
            .push(store.head(&location.path).await.map_err(|e| Error::store("look at the file", location.uri(), e))?);
    }
    let columns = reader.infer_schema(session, &store, &objects).await.map_err(|e| {
        Error::from(e)
            .with_file(pattern.to_string())
            .with_hint("give the schema, or see whether all files have the same columns")
    })?;
    let mut fields: Vec<Field> = columns.fields().iter().map(|field| lasting(field)).collect();
    if !pattern.recursive {
        fields.extend(partition_fields(&pattern.root(), &locations, &columns));
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// The field with a type that can hold what may follow, or lets it be refused as malformed. Where only nulls were seen, as
/// in Spark, that is text, which holds anything; and a fraction of a second that comes later must not be cut off.
fn lasting(field: &Field) -> Field {
    let inner = |field: &FieldRef| Arc::new(lasting(field));
    let data_type = match field.data_type() {
        DataType::Null => DataType::Utf8,
        DataType::Struct(fields) if fields.is_empty() => DataType::Utf8,
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inner).collect()),
        DataType::List(item) => DataType::List(inner(item)),
        DataType::LargeList(item) => DataType::LargeList(inner(item)),
        DataType::Timestamp(TimeUnit::Second | TimeUnit::Millisecond, zone) => {
            DataType::Timestamp(TimeUnit::Microsecond, zone.clone())
        }
        other => other.clone(),
    };
    field.clone().with_data_type(data_type)
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

#[cfg(test)]
mod tests {
    use arrow::datatypes::Fields;

    use super::*;

    #[test]
    fn what_was_not_seen_yet_is_text() {
        let nulls = Field::new("n", DataType::Null, true);
        assert_eq!(lasting(&nulls).data_type(), &DataType::Utf8);
        let list = lasting(&Field::new_list("l", Field::new_list_field(DataType::Null, true), true));
        assert_eq!(list, Field::new_list("l", Field::new_list_field(DataType::Utf8, true), true));
        let nested = lasting(&Field::new_struct("s", vec![nulls, Field::new("i", DataType::Int64, true)], true));
        let DataType::Struct(fields) = nested.data_type() else { panic!() };
        assert_eq!([fields[0].data_type(), fields[1].data_type()], [&DataType::Utf8, &DataType::Int64]);
        assert_eq!(lasting(&Field::new_struct("s", Fields::empty(), true)).data_type(), &DataType::Utf8);
        let seconds = Field::new("t", DataType::Timestamp(TimeUnit::Second, None), true);
        assert_eq!(lasting(&seconds).data_type(), &DataType::Timestamp(TimeUnit::Microsecond, None));
    }
}
