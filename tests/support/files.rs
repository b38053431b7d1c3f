//! Input files as a test writes them, and output directories as a reader of the manifest sees them.

use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tidewater::error::{Error, ErrorKind, Result};
use tidewater::internal::local_path;
use tidewater_connectors::file::committed_files;

/// What a column without value is called in the name of a folder.
const NULL_FOLDER: &str = "__HIVE_DEFAULT_PARTITION__";

/// A format of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// With a header line in input; without one in output, as the sink's default is.
    Csv,
    /// A JSON object a line.
    Json,
    /// Parquet.
    Parquet,
}

fn bad(e: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::BadInput, e.to_string()).with_source(e)
}

/// Puts a file into `folder` at once: it is written under a hidden name and renamed, as the file source asks.
pub fn put_file(folder: &Path, name: &str, contents: &[u8]) -> Result<PathBuf> {
    let put = || {
        std::fs::create_dir_all(folder)?;
        let hidden = folder.join(format!(".{name}.tmp"));
        File::create(&hidden)?.write_all(contents)?;
        std::fs::rename(&hidden, folder.join(name))
    };
    put().map_err(|e| Error::io("put the file", folder.join(name).display().to_string(), e))?;
    Ok(folder.join(name))
}

/// Puts rows into `folder` as a file of this format.
pub fn put_rows(folder: &Path, name: &str, format: Format, rows: &RecordBatch) -> Result<PathBuf> {
    let mut bytes = vec![];
    match format {
        Format::Csv => {
            let mut writer = arrow::csv::WriterBuilder::new().with_header(true).build(&mut bytes);
            writer.write(rows)?;
        }
        Format::Json => {
            let mut writer = arrow::json::LineDelimitedWriter::new(&mut bytes);
            writer.write(rows)?;
            writer.finish()?;
        }
        Format::Parquet => {
            let mut writer = ArrowWriter::try_new(&mut bytes, rows.schema(), None).map_err(bad)?;
            writer.write(rows).map_err(bad)?;
            writer.close().map_err(bad)?;
        }
    }
    put_file(folder, name, &bytes)
}

/// What a reader who honours the manifest finds in an output directory, with the columns of `schema`. Columns that are
/// not in the files are taken from the names of the folders.
pub async fn committed_rows(directory: &Path, format: Format, schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
    let location = directory.display().to_string();
    let mut batches = vec![];
    for file in committed_files(&location, &RuntimeEnv::default()).await? {
        let path = local_path(&uri_to_path(&file.path))?.unwrap_or_default();
        let found = std::fs::metadata(&path).map_err(|e| Error::io("find the committed file", &file.path, e))?;
        if found.len() != file.size {
            return Err(Error::damaged(format!("the manifest says {} bytes, there are {}", file.size, found.len()))
                .with_file(file.path));
        }
        batches.extend(rows_of_file(directory, &path, format, schema)?);
    }
    Ok(batches)
}

fn rows_of_file(directory: &Path, file: &Path, format: Format, schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
    let folders = folder_values(directory, file);
    let in_file: Vec<_> = schema.fields().iter().filter(|f| folders.iter().all(|(k, _)| k != f.name())).collect();
    let in_file = Arc::new(Schema::new(in_file.into_iter().cloned().collect::<Vec<_>>()));
    read_file(file, format, &in_file)?.iter().map(|rows| with_folders(rows, &folders, schema)).collect()
}

/// All rows in the files of a directory that has no manifest, with the columns of `schema`.
pub fn rows_of(directory: &Path, format: Format, schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
    let mut batches = vec![];
    for file in files_below(directory) {
        batches.extend(rows_of_file(directory, &file, format, schema)?);
    }
    Ok(batches)
}

/// The data files in an output directory, whether committed or not.
pub fn data_files(directory: &Path) -> Vec<PathBuf> {
    let is_data = |file: &PathBuf| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("part-"));
    files_below(directory).into_iter().filter(is_data).collect()
}

/// All files below a directory, but for hidden ones and those of a manifest.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return vec![] };
    let mut files = vec![];
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        match path.is_dir() {
            _ if name.starts_with('.') || name.starts_with('_') => {}
            true => files.extend(files_below(&path)),
            false => files.push(path),
        }
    }
    files
}

/// A manifest's URI is percent-encoded once; the path below may hold percent signs of its own.
fn uri_to_path(uri: &str) -> String {
    let path = uri.strip_prefix("file://").unwrap_or(uri);
    percent_decode(path)
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = vec![];
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (byte, hex) {
            (b'%', Some(value)) => {
                decoded.push(value);
                at += 3;
            }
            _ => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// `k=a/m=2/part-…` below the directory: the values of `k` and `m`.
fn folder_values(directory: &Path, file: &Path) -> Vec<(String, Option<String>)> {
    let below = file.strip_prefix(directory).unwrap_or(file);
    below
        .iter()
        .filter_map(|folder| folder.to_string_lossy().split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
        .map(|(k, v)| (percent_decode(&k), (v != NULL_FOLDER).then(|| percent_decode(&v))))
        .collect()
}

fn read_file(path: &Path, format: Format, schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
    let file = File::open(path).map_err(|e| Error::io("read the file", path.display().to_string(), e))?;
    let schema = Arc::clone(schema);
    Ok(match format {
        Format::Csv => {
            let reader = arrow::csv::ReaderBuilder::new(schema).build(file)?;
            reader.collect::<std::result::Result<_, _>>()?
        }
        Format::Json => {
            let reader = arrow::json::ReaderBuilder::new(schema).build(BufReader::new(file))?;
            reader.collect::<std::result::Result<_, _>>()?
        }
        Format::Parquet => {
            let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|b| b.build()).map_err(bad)?;
            reader.collect::<std::result::Result<_, _>>()?
        }
    })
}

/// The columns of `schema`, from the rows or from the names of the folders.
fn with_folders(rows: &RecordBatch, folders: &[(String, Option<String>)], schema: &SchemaRef) -> Result<RecordBatch> {
    let columns: Result<Vec<ArrayRef>> = schema
        .fields()
        .iter()
        .map(|field| {
            let values: ArrayRef = match folders.iter().find(|(name, _)| name == field.name()) {
                Some((_, value)) => Arc::new(StringArray::from(vec![value.as_deref(); rows.num_rows()])),
                None => Arc::clone(rows.column_by_name(field.name()).ok_or_else(|| {
                    Error::damaged(format!("the file has no column `{}`: {:?}", field.name(), rows.schema()))
                })?),
            };
            Ok(cast(&values, field.data_type())?)
        })
        .collect();
    Ok(RecordBatch::try_new(Arc::clone(schema), columns?)?)
}
