//! Formats made of lines: record by record into columns.
//!
//! Each record is looked at once, so a malformed one costs no more than a good one. What becomes of it is up to the
//! [`ParseMode`]: as a whole, it is an error, or left out, or kept as text.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{ArrayRef, BooleanArray, StringArray, new_null_array};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use futures::{StreamExt, TryStreamExt, stream};
use tidewater::error::{Error, ErrorKind, Result};

use super::csv::{CsvDecoder, Head};
use super::decode::{Decode, Step};
use super::json::JsonDecoder;
use super::lines::{Block, Lines, count_lines, trim_end};
use super::tally::Tally;
use super::unseen::Unseen;
use super::{FilePart, OpenFile, Rows};
use crate::file::format::{CsvFormat, Format, ParseMode, compression_of};
use crate::file::names::Names;

/// How many rows could not be read as what they should be.
#[derive(Debug, Default)]
pub(in crate::file) struct MalformedRows {
    pub(in crate::file) dropped: AtomicU64,
    pub(in crate::file) kept: AtomicU64,
}

/// After so many bytes the rows so far are handed on.
const BATCH_BYTES: usize = 64 << 20;

/// Opens files made of lines.
#[derive(Debug, Clone)]
pub(in crate::file) struct TextOpener {
    format: TextFormat,
    /// All columns of the source.
    schema: SchemaRef,
    /// Which of them the scan wants, and in what order.
    projection: Vec<usize>,
    output: SchemaRef,
    mode: ParseMode,
    /// The column that takes lines that cannot be read.
    corrupt: Option<usize>,
    malformed: Arc<MalformedRows>,
    names: Names,
    tally: Arc<Tally>,
}

#[derive(Debug, Clone)]
enum TextFormat {
    Csv(CsvFormat),
    Json,
}

impl TextOpener {
    /// `None` if `format` is not made of lines.
    pub(in crate::file) fn new(
        format: &Format,
        schema: SchemaRef,
        projection: Vec<usize>,
        output: SchemaRef,
        mode: ParseMode,
        corrupt_column: &str,
        malformed: Arc<MalformedRows>,
    ) -> Option<Self> {
        let format = match format {
            Format::Csv(csv) => TextFormat::Csv(csv.clone()),
            Format::Json => TextFormat::Json,
            Format::Parquet => return None,
        };
        let corrupt = schema.index_of(corrupt_column).ok().filter(|_| mode == ParseMode::Permissive);
        Some(TextOpener {
            format,
            schema,
            projection,
            output,
            mode,
            corrupt,
            malformed,
            names: Names { case_sensitive: false },
            tally: Arc::default(),
        })
    }

    /// The same, with names compared like this, and what it meets counted there.
    pub(in crate::file) fn with(self, names: Names, tally: &Arc<Tally>) -> Self {
        TextOpener { names, tally: Arc::clone(tally), ..self }
    }

    /// An error if this format cannot hold one of the columns.
    pub(in crate::file) fn check(&self) -> Result<()> {
        if let Some(corrupt) = self.corrupt.map(|index| self.schema.field(index))
            && !matches!(corrupt.data_type(), DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8)
        {
            return Err(Error::invalid(format!(
                "the column `{}` for corrupt records is {}, not Utf8",
                corrupt.name(),
                corrupt.data_type()
            )));
        }
        for (index, field) in self.schema.fields().iter().enumerate() {
            if Some(index) == self.corrupt {
                continue;
            }
            let one = Arc::new(Schema::new(vec![Arc::clone(field)]));
            let fits = match &self.format {
                TextFormat::Csv(csv) => CsvDecoder::new(csv, one, vec![0], self.head()).map(|_| ()),
                TextFormat::Json => JsonDecoder::new(&one).map(|_| ()),
            };
            fits.map_err(|why| {
                Error::invalid(format!("column `{}` of type {} cannot be read: {why}", field.name(), field.data_type()))
                    .with_hint("declare the column with another type, and convert it in the query")
            })?;
        }
        Ok(())
    }

    fn head(&self) -> Head {
        Head { names: self.names, tally: Arc::clone(&self.tally) }
    }

    fn rows_of(&self, part: &FilePart, batch_size: usize) -> Result<TextRows> {
        let in_file: Vec<usize> = (0..self.schema.fields().len())
            .filter(|column| !part.is_constant(*column) && Some(*column) != self.corrupt)
            .collect();
        // Whether a row is malformed must not depend on which columns a query looks at, if the row is to live on.
        let wanted: Vec<usize> = match self.mode {
            ParseMode::FailFast => in_file.iter().copied().filter(|column| self.projection.contains(column)).collect(),
            ParseMode::DropMalformed | ParseMode::Permissive => in_file.clone(),
        };
        let fields = |columns: &[usize]| -> Vec<Arc<Field>> {
            columns.iter().map(|column| Arc::new(self.schema.field(*column).clone())).collect()
        };
        let decoder: Box<dyn Decode> = match &self.format {
            TextFormat::Csv(csv) => {
                let file_schema = Arc::new(Schema::new(fields(&in_file)));
                let positions =
                    in_file.iter().enumerate().filter(|(_, c)| wanted.contains(c)).map(|(i, _)| i).collect();
                Box::new(CsvDecoder::new(csv, file_schema, positions, self.head()).map_err(Error::internal)?)
            }
            TextFormat::Json => {
                let schema = Arc::new(Schema::new(fields(&wanted)));
                Box::new(JsonDecoder::new(&schema).map_err(Error::internal)?)
            }
        };
        let names = in_file.iter().map(|column| self.schema.field(*column).name().as_str());
        let unseen = matches!(self.format, TextFormat::Json).then(|| Unseen::new(names, Arc::clone(&self.tally)));
        Ok(TextRows {
            opener: self.clone(),
            decoder,
            unseen,
            wanted,
            constants: part.constants.clone(),
            batch_size,
            keep: vec![],
            raw: vec![],
            bytes: 0,
        })
    }
}

impl OpenFile for TextOpener {
    fn open(&self, part: FilePart, context: Arc<TaskContext>) -> Result<Rows> {
        let store = part.location.open(&context.runtime_env())?;
        let rows = self.rows_of(&part, context.session_config().batch_size())?;
        let batches = async move {
            let lines = Lines::open(store, &part.location.path, compression_of(&part.uri)).await?;
            Ok::<_, DataFusionError>(
                stream::try_unfold((lines, rows), |(mut lines, mut rows)| async move {
                    match lines.next().await? {
                        Some(block) => {
                            let (batches, read) = rows.rows(&block)?;
                            lines.put_back(block, read);
                            let batches = stream::iter(batches.into_iter().map(Ok::<_, DataFusionError>));
                            Ok::<_, DataFusionError>(Some((batches, (lines, rows))))
                        }
                        None => {
                            rows.unseen.iter().for_each(Unseen::report);
                            Ok(None)
                        }
                    }
                })
                .try_flatten(),
            )
        };
        Ok(stream::once(batches).try_flatten().boxed())
    }

    fn describe(&self) -> String {
        match &self.format {
            TextFormat::Csv(_) => format!("csv, mode={:?}", self.mode),
            TextFormat::Json => format!("json, mode={:?}", self.mode),
        }
    }
}

/// The rows of one file.
struct TextRows {
    opener: TextOpener,
    decoder: Box<dyn Decode>,
    /// The columns the decoder gives, by position in the source's schema.
    wanted: Vec<usize>,
    constants: Vec<(usize, datafusion::common::ScalarValue)>,
    /// The fields that no object so far had.
    unseen: Option<Unseen>,
    batch_size: usize,
    /// Of each row in the decoder, whether it is one.
    keep: Vec<bool>,
    /// Which of these rows stand for a malformed record, and the record.
    raw: Vec<(usize, String)>,
    /// How many bytes these rows had.
    bytes: usize,
}

impl TextRows {
    /// The rows of a block, and how many of its bytes they are: the rest is to be read again with what follows.
    fn rows(&mut self, block: &Block) -> Result<(Vec<RecordBatch>, usize)> {
        let (mut batches, mut at, mut line) = (vec![], 0, block.first_line);
        if let Some(unseen) = &mut self.unseen {
            unseen.look_through(&block.text);
        }
        while let Some(text) = block.text.get(at..).filter(|text| !text.is_empty()) {
            let bytes = match self.decoder.next(text, block.is_last)? {
                Step::Unfinished => break,
                Step::Rows { bytes, rows } => {
                    self.keep.resize(self.keep.len() + rows, true);
                    bytes
                }
                Step::Malformed { bytes, rows, why } => {
                    self.keep.resize(self.keep.len() + rows, false);
                    self.malformed(text.get(..bytes).unwrap_or_default(), line, &why)?;
                    bytes
                }
            };
            line += count_lines(text.get(..bytes).unwrap_or_default());
            at += bytes;
            self.bytes += bytes;
            if self.keep.len() >= self.batch_size || self.bytes >= BATCH_BYTES {
                batches.push(self.finish()?);
            }
        }
        if !self.keep.is_empty() {
            batches.push(self.finish()?);
        }
        Ok((batches, at))
    }

    fn malformed(&mut self, text: &[u8], line: u64, why: &str) -> Result<()> {
        match self.opener.mode {
            ParseMode::FailFast => {
                return Err(Error::new(ErrorKind::BadInput, format!("line {line} is malformed: {why}")).with_hint(
                    "fix the line and start the query again (nothing is lost: the batch is repeated), or set the option \
                     `mode` to DROPMALFORMED or PERMISSIVE",
                ));
            }
            ParseMode::DropMalformed => {
                self.opener.malformed.dropped.fetch_add(1, Ordering::Relaxed);
            }
            ParseMode::Permissive => {
                self.opener.malformed.kept.fetch_add(1, Ordering::Relaxed);
                self.decoder.append_nulls();
                self.raw.push((self.keep.len(), String::from_utf8_lossy(trim_end(text)).into_owned()));
                self.keep.push(true);
            }
        }
        Ok(())
    }

    /// The rows that are in the decoder, with the columns that the scan wants.
    fn finish(&mut self) -> Result<RecordBatch> {
        let (keep, raw) = (std::mem::take(&mut self.keep), std::mem::take(&mut self.raw));
        self.bytes = 0;
        let columns = self.decoder.finish()?;
        let rows = self.complete(&columns, keep.len(), raw)?;
        if keep.iter().all(|keep| *keep) {
            return Ok(rows);
        }
        Ok(filter_record_batch(&rows, &BooleanArray::from(keep))?)
    }

    /// Puts the columns that the scan wants in order. `raw` has the records that are malformed, by row.
    fn complete(&self, decoded: &[ArrayRef], count: usize, raw: Vec<(usize, String)>) -> Result<RecordBatch> {
        let mut records: Vec<Option<String>> = vec![];
        if self.opener.corrupt.is_some_and(|corrupt| self.opener.projection.contains(&corrupt)) {
            records.resize(count, None);
            for (row, record) in raw {
                if let Some(place) = records.get_mut(row) {
                    *place = Some(record);
                }
            }
        }
        let records = StringArray::from(records);
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.opener.projection.len());
        for column in &self.opener.projection {
            let wanted = self.opener.schema.field(*column).data_type();
            let place = self.wanted.iter().position(|decoded| decoded == column);
            columns.push(if let Some(column) = place.and_then(|place| decoded.get(place)) {
                Arc::clone(column)
            } else if let Some((_, value)) = self.constants.iter().find(|(constant, _)| constant == column) {
                value.to_array_of_size(count)?
            } else if Some(*column) == self.opener.corrupt {
                cast(&records, wanted)?
            } else {
                new_null_array(wanted, count)
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.opener.output), columns, &options)?)
    }
}
