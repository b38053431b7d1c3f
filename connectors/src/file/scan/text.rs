//! Formats made of lines: a block of lines is decoded at once, and only if that fails are single lines looked at.
//!
//! A block that cannot be decoded is halved until the malformed line stands alone, so a few bad lines among many good
//! ones cost little. What becomes of it is up to the [`ParseMode`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{ArrayRef, StringArray, new_null_array};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::TaskContext;
use futures::{StreamExt, TryStreamExt, stream};
use tidewater::error::{Error, ErrorKind, Result};

use super::csv::CsvDecoder;
use super::header::Header;
use super::json::JsonDecoder;
use super::lines::{Block, Lines, count_lines, halves, trim_end};
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

/// Makes columns of lines.
pub(super) trait Decode: Send {
    /// The rows of `lines`, all of them, or what is wrong with one.
    fn decode(&mut self, lines: &[u8]) -> std::result::Result<Vec<RecordBatch>, String>;
}

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

    /// The same, with names compared like this, and what it meets told there.
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
                TextFormat::Csv(csv) => CsvDecoder::new(csv, one, vec![0], 1).check(),
                TextFormat::Json => JsonDecoder::new(one, 1).map(|_| ()),
            };
            fits.map_err(|why| {
                Error::invalid(format!("column `{}` of type {} cannot be read: {why}", field.name(), field.data_type()))
                    .hint("declare the column with another type, and convert it in the query")
            })?;
        }
        Ok(())
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
                Box::new(CsvDecoder::new(csv, file_schema, positions, batch_size))
            }
            TextFormat::Json => {
                let schema = Arc::new(Schema::new(fields(&wanted)));
                Box::new(JsonDecoder::new(schema, batch_size).map_err(Error::internal)?)
            }
        };
        let skips_header = match &self.format {
            TextFormat::Csv(csv) if csv.header => Some(csv.clone()),
            _ => None,
        };
        let names = in_file.iter().map(|column| self.schema.field(*column).name().as_str());
        let unseen = matches!(self.format, TextFormat::Json).then(|| Unseen::new(names, Arc::clone(&self.tally)));
        let constants = part.constants.clone();
        Ok(TextRows { opener: self.clone(), decoder, wanted, constants, skips_header, unseen, in_file, batch_size })
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
                            let batches = rows.rows(&block)?;
                            let batches = stream::iter(batches.into_iter().map(Ok::<_, DataFusionError>));
                            Ok::<_, DataFusionError>(Some((batches, (lines, rows))))
                        }
                        None => {
                            rows.unseen.iter().for_each(Unseen::tell);
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
    /// Set while the header is still to come.
    skips_header: Option<CsvFormat>,
    /// The fields that no object so far had.
    unseen: Option<Unseen>,
    /// The columns that the file should have, by position in the source's schema.
    in_file: Vec<usize>,
    batch_size: usize,
}

impl TextRows {
    fn rows(&mut self, block: &Block) -> DataFusionResult<Vec<RecordBatch>> {
        let (mut text, mut line) = (block.text.as_slice(), block.first_line);
        if let Some(unseen) = &mut self.unseen {
            unseen.look_through(text);
        }
        while let Some(csv) = &self.skips_header {
            let Some(end) = text.iter().position(|byte| *byte == b'\n') else { return Ok(vec![]) };
            let (first, rest) = text.split_at(end + 1);
            if csv.is_record(first) {
                let csv = csv.clone();
                self.skips_header = None;
                if !csv.enforce_schema {
                    self.follow_header(&csv, first)?;
                }
            }
            (text, line) = (rest, line + 1);
        }
        match self.decoder.decode(text) {
            Ok(batches) => batches.into_iter().map(|rows| self.complete(rows, None)).collect(),
            Err(_) => {
                let mut found = vec![];
                self.search(text, line, &mut found)?;
                Ok(match found.as_slice() {
                    [] => vec![],
                    _ => vec![concat_batches(&self.opener.output, &found)?],
                })
            }
        }
    }

    /// From here on, columns are where the header has them.
    fn follow_header(&mut self, csv: &CsvFormat, line: &[u8]) -> Result<()> {
        let schema = &self.opener.schema;
        let field = |column: &usize| Arc::new(schema.field(*column).clone());
        let declared: Vec<&str> = self.in_file.iter().map(|column| schema.field(*column).name().as_str()).collect();
        let found = csv
            .fields(line)
            .map_err(|why| Error::new(ErrorKind::BadInput, format!("the header is malformed: {why}")))?;
        let header = Header::compare(&found, &declared, self.opener.names)?;
        self.opener
            .tally
            .file_lacks(header.lacks.iter().filter_map(|i| declared.get(*i)).map(ToString::to_string).collect());

        let columns: Vec<Option<usize>> =
            header.columns.iter().map(|place| place.and_then(|place| self.in_file.get(place).copied())).collect();
        let fields: Vec<_> = columns
            .iter()
            .zip(&found)
            .map(|(column, name)| match column {
                Some(column) => field(column),
                None => Arc::new(Field::new(name, DataType::Utf8, true)),
            })
            .collect();
        let is_wanted = |column: &Option<usize>| column.is_some_and(|column| self.wanted.contains(&column));
        let positions: Vec<usize> =
            columns.iter().enumerate().filter(|(_, column)| is_wanted(column)).map(|(at, _)| at).collect();
        let wanted = columns.iter().filter(|column| is_wanted(column)).flatten().copied().collect();
        self.decoder = Box::new(CsvDecoder::new(csv, Arc::new(Schema::new(fields)), positions, self.batch_size));
        self.wanted = wanted;
        Ok(())
    }

    /// Decodes what can be, after a first attempt at the whole has failed.
    fn search(&mut self, text: &[u8], line: u64, found: &mut Vec<RecordBatch>) -> DataFusionResult<()> {
        match (self.decoder.decode(text), halves(text)) {
            (Ok(batches), _) => {
                for rows in batches {
                    found.push(self.complete(rows, None)?);
                }
            }
            (Err(_), Some((first, second))) => {
                self.search(first, line, found)?;
                self.search(second, line + count_lines(first), found)?;
            }
            (Err(why), None) => found.extend(self.malformed(text, line, &why)?),
        }
        Ok(())
    }

    fn malformed(&self, text: &[u8], line: u64, why: &str) -> Result<Option<RecordBatch>> {
        match self.opener.mode {
            ParseMode::FailFast => Err(Error::new(ErrorKind::BadInput, format!("line {line} is malformed: {why}")).hint(
                "mend the line and start the query again (nothing is lost: the batch is repeated), or set the option \
                 `mode` to DROPMALFORMED or PERMISSIVE",
            )),
            ParseMode::DropMalformed => {
                self.opener.malformed.dropped.fetch_add(1, Ordering::Relaxed);
                Ok(None)
            }
            ParseMode::Permissive => {
                self.opener.malformed.kept.fetch_add(1, Ordering::Relaxed);
                let fields: Vec<_> =
                    self.wanted.iter().map(|column| self.opener.schema.field(*column).clone()).collect();
                let nulls = RecordBatch::try_new_with_options(
                    Arc::new(Schema::new(fields.clone())),
                    fields.iter().map(|field| new_null_array(field.data_type(), 1)).collect(),
                    &RecordBatchOptions::new().with_row_count(Some(1)),
                )?;
                let raw = String::from_utf8_lossy(trim_end(text)).into_owned();
                self.complete(nulls, Some(raw)).map(Some).map_err(Error::from)
            }
        }
    }

    /// Puts the columns that the scan wants in order. `raw` is the line, if it is malformed.
    fn complete(&self, rows: RecordBatch, raw: Option<String>) -> DataFusionResult<RecordBatch> {
        let count = rows.num_rows();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.opener.projection.len());
        for column in &self.opener.projection {
            let wanted = self.opener.schema.field(*column).data_type();
            let decoded = self.wanted.iter().position(|decoded| decoded == column);
            columns.push(if let Some(position) = decoded {
                Arc::clone(rows.column(position))
            } else if let Some((_, value)) = self.constants.iter().find(|(constant, _)| constant == column) {
                value.to_array_of_size(count)?
            } else if let Some(raw) = raw.as_deref().filter(|_| Some(*column) == self.opener.corrupt) {
                cast(&StringArray::from(vec![raw]), wanted)?
            } else {
                new_null_array(wanted, count)
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.opener.output), columns, &options)?)
    }
}
