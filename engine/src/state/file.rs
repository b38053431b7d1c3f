//! A file of state: Arrow IPC, which any Arrow tool reads.
//!
//! The columns are those of [`StateSchema::file_schema`]. The schema's metadata says `tidewater.state` = `2`, the
//! version of the format, and `operator`, its kind. Rows stand in [their order](super::sorted), cut into record batches
//! of bounded size; the footer's metadata has `tidewater.groups`, which has, for each record batch, its first key
//! group, its last, its rows, and the CRC-32 of its bytes: `[[0,17,8123,3735928559],[17,40,7950,3405691582]]`. So a
//! reader of some key groups reads the footer and the record batches it needs, and takes in none that changed.
//!
//! Files of version 1, of older releases, are not sorted and have no index: they are read whole.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StructArray};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Fields, Int64Type, Schema, SchemaRef, UInt8Type};
use arrow::error::ArrowError;
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::reader::{FileDecoder, FileReader, read_footer_length};
use arrow::ipc::writer::{FileWriter, IpcWriteOptions};
use arrow::ipc::{Block, CompressionType, root_as_footer};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::StateSchema;
use super::sorted::SortedRows;
use super::spelling::{plain, plain_type};
use super::store::NEVER;
use crate::error::{Error, ErrorKind, Result, words_of_panic};

const VERSION_KEY: &str = "tidewater.state";
const VERSION: &str = "2";
/// Neither sorted nor indexed.
const OLD_VERSION: &str = "1";
const OPERATOR_KEY: &str = "operator";
const GROUPS_KEY: &str = "tidewater.groups";

/// What follows the footer: its length, and Arrow's mark.
const TRAILER: usize = 10;

/// What a file holds: the changes of one batch, which waits for it, or compacted ones, written in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Changes,
    Compacted,
}

/// A file that is being written, in memory.
pub(crate) struct FileBuilder {
    writer: FileWriter<Vec<u8>>,
    schema: SchemaRef,
    index: Vec<Indexed>,
}

impl std::fmt::Debug for FileBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileBuilder").field("index", &self.index).finish_non_exhaustive()
    }
}

impl FileBuilder {
    pub(crate) fn new(spec: &StateSchema, kind: FileKind) -> Result<Self> {
        let metadata = [(VERSION_KEY, VERSION), (OPERATOR_KEY, spec.operator)];
        let metadata = metadata.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let schema = Arc::new(Schema::new_with_metadata(spec.file_schema().fields().clone(), metadata));
        let compression = match kind {
            FileKind::Changes => CompressionType::LZ4_FRAME,
            FileKind::Compacted => CompressionType::ZSTD,
        };
        let options = IpcWriteOptions::default().try_with_compression(Some(compression))?;
        Ok(FileBuilder { writer: FileWriter::try_new_with_options(vec![], &schema, options)?, schema, index: vec![] })
    }

    /// Adds rows, which come after all that are there.
    pub(crate) fn add(&mut self, rows: &SortedRows) -> Result<()> {
        let (Some(first), Some(last)) = (rows.orders.first(), rows.orders.last()) else { return Ok(()) };
        if self.index.last().is_some_and(|before| before.1 > first.group()) {
            return Err(Error::internal("rows of state were to be written out of the order of their key groups"));
        }
        let start = self.bytes();
        self.writer.write(&RecordBatch::try_new(Arc::clone(&self.schema), rows.rows.columns().to_vec())?)?;
        let checksum = crc32fast::hash(&self.writer.get_ref()[start..]);
        self.index.push(Indexed(first.group(), last.group(), rows.orders.len(), checksum));
        Ok(())
    }

    /// The bytes so far.
    pub(crate) fn bytes(&self) -> usize {
        self.writer.get_ref().len()
    }

    /// The key group of its first row; none if it has no rows.
    pub(crate) fn first_group(&self) -> Option<u8> {
        self.index.first().map(|indexed| indexed.0)
    }

    pub(crate) fn finish(mut self) -> Result<Bytes> {
        self.writer.write_metadata(GROUPS_KEY, serde_json::json!(self.index).to_string());
        Ok(self.writer.into_inner()?.into())
    }
}

/// The index entry of a record batch: its first and last key group, its rows, and the checksum of its bytes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Indexed(u8, u8, usize, u32);

/// The footer of a file.
#[derive(Debug)]
pub(crate) struct Footer {
    decoder: FileDecoder,
    wanted: SchemaRef,
    /// None of a file of version 1.
    blocks: Option<Vec<IndexedBlock>>,
}

/// A record batch of a file, with its index entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IndexedBlock {
    block: Block,
    /// First and last.
    pub(crate) groups: (u8, u8),
    rows: usize,
    checksum: u32,
}

impl IndexedBlock {
    /// Its bytes within the file.
    pub(crate) fn range(&self) -> std::ops::Range<u64> {
        let start = self.block.offset().max(0) as u64;
        start..start + self.block.metaDataLength().max(0) as u64 + self.block.bodyLength().max(0) as u64
    }
}

/// How many bytes from the end on have to be known to read the footer, of a file that ends so.
pub(crate) fn footer_bytes(end: &[u8], file: &str) -> Result<usize> {
    let trailer =
        end.last_chunk::<TRAILER>().ok_or_else(|| torn(file)(ArrowError::ParseError("it is too short".into())))?;
    Ok(read_footer_length(*trailer).map_err(torn(file))? + TRAILER)
}

/// Reads the footer; `end` is the end of the file, [enough](footer_bytes) of it.
pub(crate) fn read_footer(spec: &StateSchema, end: &[u8], file: &str) -> Result<Footer> {
    unless_it_panics(file, || parse_footer(spec, end, file))
}

fn parse_footer(spec: &StateSchema, end: &[u8], file: &str) -> Result<Footer> {
    let torn = torn(file);
    let length = footer_bytes(end, file)?;
    let start = end.len().checked_sub(length);
    let start = start.ok_or_else(|| torn(ArrowError::ParseError("it is shorter than its footer".into())))?;
    let footer = root_as_footer(&end[start..end.len() - TRAILER])
        .map_err(|e| torn(ArrowError::ParseError(format!("its footer cannot be read: {e:?}"))))?;
    let schema = footer.schema().ok_or_else(|| torn(ArrowError::ParseError("its footer has no schema".into())))?;
    let schema = Arc::new(fb_to_schema(schema));
    let version = check_schema(spec, &schema, file)?;
    let blocks = match version {
        OLD_VERSION => None,
        _ => {
            let metadata = footer.custom_metadata().into_iter().flatten();
            let index = metadata.filter(|pair| pair.key() == Some(GROUPS_KEY)).find_map(|pair| pair.value());
            let index: Option<Vec<Indexed>> = index.and_then(|index| serde_json::from_str(index).ok());
            let blocks: Vec<&Block> = footer.recordBatches().into_iter().flatten().collect();
            let index = index.filter(|index| index.len() == blocks.len());
            let index =
                index.ok_or_else(|| torn(ArrowError::ParseError("it has no index of its key groups".into())))?;
            let indexed = |(block, indexed): (&Block, Indexed)| {
                let Indexed(first, last, rows, checksum) = indexed;
                IndexedBlock { block: *block, groups: (first, last), rows, checksum }
            };
            Some(blocks.into_iter().zip(index).map(indexed).collect())
        }
    };
    Ok(Footer { decoder: FileDecoder::new(schema, footer.version()), wanted: spec.file_schema(), blocks })
}

impl Footer {
    /// The record batches; none of a file of version 1, which has to be [read whole](decode_whole).
    pub(crate) fn blocks(&self) -> Option<&[IndexedBlock]> {
        self.blocks.as_deref()
    }

    /// The rows of a record batch, whose bytes are given.
    pub(crate) fn decode(&self, block: &IndexedBlock, contents: Bytes, file: &str) -> Result<RecordBatch> {
        let torn = torn(file);
        let range = block.range();
        if contents.len() as u64 != range.end - range.start {
            return Err(torn(ArrowError::ParseError("it is shorter than its footer says".into())));
        }
        // Before anything believes a length in it.
        if crc32fast::hash(&contents) != block.checksum {
            return Err(torn(ArrowError::ParseError("a record batch has not the checksum that the index says".into())));
        }
        let read = || {
            let rows = self.decoder.read_record_batch(&block.block, &Buffer::from(contents)).map_err(&torn)?;
            match rows {
                Some(rows) if rows.num_rows() == block.rows => in_plain_types(&self.wanted, &rows).map_err(&torn),
                _ => Err(torn(ArrowError::ParseError("a record batch has not the rows that the index says".into()))),
            }
        };
        unless_it_panics(file, read)
    }
}

/// The rows of a file of version 1, in the order they were written.
pub(crate) fn decode_whole(spec: &StateSchema, contents: Bytes, file: &str) -> Result<Vec<RecordBatch>> {
    let torn = torn(file);
    let wanted = spec.file_schema();
    let read = || {
        let reader = FileReader::try_new(Cursor::new(contents), None).map_err(&torn)?;
        reader.map(|rows| in_plain_types(&wanted, &rows.map_err(&torn)?).map_err(&torn)).collect()
    };
    unless_it_panics(file, read)
}

/// Arrow checks much of what it reads, but a byte that changed can still make it panic.
fn unless_it_panics<T>(file: &str, read: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| {
        let what = format!("Arrow's reader panicked: {}", words_of_panic(panic.as_ref()));
        Err(torn(file)(ArrowError::ParseError(what)))
    })
}

/// Older releases wrote dictionaries as they came.
fn in_plain_types(wanted: &SchemaRef, rows: &RecordBatch) -> std::result::Result<RecordBatch, ArrowError> {
    let columns = rows.columns().iter().map(plain).collect::<datafusion::error::Result<Vec<_>>>();
    let columns = columns.map_err(|e| ArrowError::from_external_error(Box::new(e)))?;
    let columns = columns.iter().zip(wanted.fields()).map(|(column, field)| renamed(column, field.data_type()));
    RecordBatch::try_new(Arc::clone(wanted), columns.collect::<std::result::Result<_, _>>()?)
}

/// The parts of a struct go by their places: their names are those of the user's columns, which may change.
fn renamed(column: &ArrayRef, wanted: &DataType) -> std::result::Result<ArrayRef, ArrowError> {
    match (column.data_type(), wanted) {
        (DataType::Struct(has), DataType::Struct(fields)) if has != fields && same_parts(has, fields) => {
            let parts = column.as_struct();
            let columns = parts.columns().to_vec();
            Ok(Arc::new(StructArray::try_new_with_length(
                fields.clone(),
                columns,
                parts.nulls().cloned(),
                parts.len(),
            )?))
        }
        _ => Ok(Arc::clone(column)),
    }
}

/// Whether two structs are the same but for the names of their parts.
fn same_parts(one: &Fields, other: &Fields) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| plain_type(a.data_type()) == *b.data_type())
}

fn torn(file: &str) -> impl Fn(ArrowError) -> Error {
    move |e| {
        Error::damaged(format!("the file is not what was written: {e}"))
            .with_file(file)
            .with_hint("restore it from a backup, or start with a new checkpoint")
            .with_source(e)
    }
}

/// Whether a file is one of this operator; the version of its format.
fn check_schema(spec: &StateSchema, schema: &Schema, file: &str) -> Result<&'static str> {
    let version = match schema.metadata().get(VERSION_KEY).map(String::as_str) {
        Some(VERSION) => VERSION,
        Some(OLD_VERSION) => OLD_VERSION,
        Some(other) => {
            return Err(Error::new(
                ErrorKind::IncompatibleCheckpoint,
                format!("the file is of version {other}, and this release reads versions up to {VERSION}"),
            )
            .with_file(file)
            .with_hint("continue with the release that wrote it, or start with a new checkpoint"));
        }
        None => {
            return Err(Error::damaged("the file holds no state".to_owned())
                .with_file(file)
                .with_hint("restore it from a backup, or start with a new checkpoint"));
        }
    };
    let foreign = |what: String| {
        Error::damaged(what).with_file(file).with_hint(
            "the file belongs to another operator or checkpoint: restore it from a backup, or start with a new one",
        )
    };
    let operator = schema.metadata().get(OPERATOR_KEY).map_or("unknown", String::as_str);
    if operator != spec.operator {
        return Err(foreign(format!("the file is of an operator of kind {operator}, not {}", spec.operator)));
    }
    let wanted = spec.file_schema();
    let same = schema.fields().len() == wanted.fields().len()
        && schema.fields().iter().zip(wanted.fields()).all(|(a, b)| match (a.data_type(), b.data_type()) {
            (DataType::Struct(has), DataType::Struct(wanted)) => same_parts(has, wanted),
            (has, wanted) => plain_type(has) == *wanted,
        });
    if !same {
        let types = |schema: &Schema| schema.fields().iter().map(|f| f.data_type().to_string()).collect::<Vec<_>>();
        let (has, keeps) = (types(schema).join(", "), types(&wanted).join(", "));
        return Err(foreign(format!("the file has columns of the types {has}, and the operator keeps {keeps}")));
    }
    Ok(version)
}

/// By side: the latest time among these changes and `last`; [`NEVER`] where a row is never due, `i64::MIN` where there is none.
pub(crate) fn note_last_times(spec: &StateSchema, change: &RecordBatch, last: &mut [i64]) {
    let times = change.column(spec.time_column()).as_primitive::<Int64Type>();
    for row in 0..change.num_rows() {
        let us = if times.is_null(row) { NEVER } else { times.value(row) };
        if let Some(last) = last.get_mut(side(spec, change, row)) {
            *last = (*last).max(us);
        }
    }
}

/// Which rows of a change are alive, given the bounds of eviction.
pub(crate) fn alive(spec: &StateSchema, change: &RecordBatch, bounds_us: &[i64], row: usize) -> bool {
    let times = change.column(spec.time_column()).as_primitive::<Int64Type>();
    let bound = bounds_us.get(side(spec, change, row)).copied().unwrap_or(i64::MIN);
    times.is_null(row) || times.value(row) > bound
}

fn side(spec: &StateSchema, change: &RecordBatch, row: usize) -> usize {
    if spec.eviction_bounds < 2 {
        return 0;
    }
    usize::from(change.column(1 + spec.keys.len()).as_primitive::<UInt8Type>().value(row))
}
