//! A file of changes: Arrow IPC, which any Arrow tool reads.
//!
//! The columns are those of [`StateSpec::file_schema`]. The schema's metadata says `tidewater.state` = `1`, the version of the
//! format, and `operator`, its kind.

use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int64Type, Schema, UInt8Type};
use arrow::ipc::CompressionType;
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;

use super::StateSpec;
use super::spelling::{plain, plain_type};
use super::table::NEVER;
use crate::error::{Error, ErrorKind, Result};

const VERSION_KEY: &str = "tidewater.state";
const VERSION: &str = "1";
const OPERATOR_KEY: &str = "operator";

/// Whether a file is written while a batch waits for it, or in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    Fast,
    Small,
}

/// The bytes of a file with these changes.
pub(crate) fn encode(spec: &StateSpec, changes: &[RecordBatch], effort: Effort) -> Result<Bytes> {
    let metadata = [(VERSION_KEY, VERSION), (OPERATOR_KEY, spec.operator)];
    let metadata = metadata.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let schema = Arc::new(Schema::new_with_metadata(spec.file_schema().fields().clone(), metadata));
    let compression = match effort {
        Effort::Fast => CompressionType::LZ4_FRAME,
        Effort::Small => CompressionType::ZSTD,
    };
    let options = IpcWriteOptions::default().try_with_compression(Some(compression))?;
    let mut writer = FileWriter::try_new_with_options(vec![], &schema, options)?;
    for change in changes {
        let change = RecordBatch::try_new(Arc::clone(&schema), change.columns().to_vec())?;
        writer.write(&change)?;
    }
    Ok(writer.into_inner()?.into())
}

/// The changes in a file, whose name is for messages.
pub(crate) fn decode(spec: &StateSpec, contents: Bytes, file: &str) -> Result<Vec<RecordBatch>> {
    let torn = |e: arrow::error::ArrowError| {
        Error::damaged(format!("the file is not what was written: {e}"))
            .file(file)
            .hint("restore it from a backup, or start with a new checkpoint")
            .caused_by(e)
    };
    let reader = FileReader::try_new(Cursor::new(contents), None).map_err(torn)?;
    let schema = reader.schema();
    match schema.metadata().get(VERSION_KEY).map(String::as_str) {
        Some(VERSION) => {}
        Some(other) => {
            return Err(Error::new(
                ErrorKind::IncompatibleCheckpoint,
                format!("the file is of version {other}, and this release reads version {VERSION}"),
            )
            .file(file)
            .hint("continue with the release that wrote it, or start with a new checkpoint"));
        }
        None => {
            return Err(Error::damaged("the file holds no state".to_owned())
                .file(file)
                .hint("restore it from a backup, or start with a new checkpoint"));
        }
    }
    if schema.metadata().get(OPERATOR_KEY).map(String::as_str) != Some(spec.operator) {
        return Err(Error::damaged(format!(
            "the file is of an operator of kind {}, not {}",
            schema.metadata().get(OPERATOR_KEY).map_or("unknown", String::as_str),
            spec.operator
        ))
        .file(file)
        .hint(
            "the file belongs to another operator or checkpoint: restore it from a backup, or start with a new one",
        ));
    }
    let wanted = spec.file_schema();
    let same = schema.fields().len() == wanted.fields().len()
        && schema.fields().iter().zip(wanted.fields()).all(|(a, b)| plain_type(a.data_type()) == *b.data_type());
    if !same {
        return Err(Error::damaged(format!(
            "the file has the columns {:?}, and the operator keeps {:?}",
            schema.fields().iter().map(|f| f.data_type()).collect::<Vec<_>>(),
            wanted.fields().iter().map(|f| f.data_type()).collect::<Vec<_>>()
        ))
        .file(file)
        .hint(
            "the file belongs to another operator or checkpoint: restore it from a backup, or start with a new one",
        ));
    }
    // An older release wrote dictionaries as they came.
    let in_plain_types = |rows: RecordBatch| -> Result<RecordBatch> {
        let columns = rows.columns().iter().map(plain).collect::<datafusion::error::Result<_>>()?;
        Ok(RecordBatch::try_new(Arc::clone(&wanted), columns)?)
    };
    reader.map(|batch| in_plain_types(batch.map_err(torn)?)).collect()
}

/// By side: the latest time among these changes; [`NEVER`] where a row is never due, `i64::MIN` where there is none.
pub(crate) fn last_times_us(spec: &StateSpec, changes: &[RecordBatch]) -> Vec<i64> {
    let mut last = vec![i64::MIN; spec.sides];
    for change in changes {
        let times = change.column(spec.time_column()).as_primitive::<Int64Type>();
        for row in 0..change.num_rows() {
            let us = if times.is_null(row) { NEVER } else { times.value(row) };
            if let Some(last) = last.get_mut(side(spec, change, row)) {
                *last = (*last).max(us);
            }
        }
    }
    last
}

/// Which rows of a change are alive, given the bounds of eviction.
pub(crate) fn alive(spec: &StateSpec, change: &RecordBatch, bounds_us: &[i64], row: usize) -> bool {
    let times = change.column(spec.time_column()).as_primitive::<Int64Type>();
    let bound = bounds_us.get(side(spec, change, row)).copied().unwrap_or(i64::MIN);
    times.is_null(row) || times.value(row) > bound
}

fn side(spec: &StateSpec, change: &RecordBatch, row: usize) -> usize {
    if spec.sides < 2 {
        return 0;
    }
    usize::from(change.column(1 + spec.keys.len()).as_primitive::<UInt8Type>().value(row))
}
