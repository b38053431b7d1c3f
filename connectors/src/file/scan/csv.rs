//! CSV lines to columns.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::compute::kernels::cmp::eq;
use arrow::compute::{CastOptions, cast_with_options, nullif};
use arrow::csv::ReaderBuilder;
use arrow::csv::reader::Decoder;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};

use super::lines::trim_end;
use super::text::Decode;
use crate::file::format::CsvFormat;

/// Decodes CSV lines. Columns count by position.
pub(super) struct CsvDecoder {
    format: CsvFormat,
    /// All columns of the file, as they are decoded.
    decoded: SchemaRef,
    /// The columns wanted.
    output: SchemaRef,
    positions: Vec<usize>,
    batch_size: usize,
    /// Kept from block to block; dropped when it failed, for then it stands within a record.
    decoder: Option<Decoder>,
}

impl CsvDecoder {
    /// A decoder of files with the columns of `schema`, for those at `positions`.
    pub(super) fn new(format: &CsvFormat, schema: SchemaRef, positions: Vec<usize>, batch_size: usize) -> Self {
        let output: Vec<_> = positions.iter().map(|position| schema.field(*position).clone()).collect();
        // With a spelling of null of its own, every column is text at first.
        let decoded = if format.null_value.is_empty() {
            schema
        } else {
            let text = |field: &Arc<Field>| Field::new(field.name(), DataType::Utf8, true);
            Arc::new(Schema::new(schema.fields().iter().map(text).collect::<Vec<_>>()))
        };
        CsvDecoder {
            format: format.clone(),
            decoded,
            output: Arc::new(Schema::new(output)),
            positions,
            batch_size,
            decoder: None,
        }
    }

    /// An error if a column's type cannot be read at all.
    pub(super) fn check(mut self) -> Result<(), String> {
        let quote = self.format.quote;
        self.decode(&[quote, quote, b'\n']).map(|_| ())
    }

    fn build(&self) -> Decoder {
        let mut builder = ReaderBuilder::new(Arc::clone(&self.decoded))
            .with_delimiter(self.format.delimiter)
            .with_quote(self.format.quote)
            .with_batch_size(self.batch_size)
            .with_projection(self.positions.clone());
        if let Some(comment) = self.format.comment {
            builder = builder.with_comment(comment);
        }
        builder.build_decoder()
    }

    fn batches(&self, decoder: &mut Decoder, text: &[u8]) -> Result<Vec<RecordBatch>, String> {
        let mut batches = vec![];
        let mut rest = text;
        while !rest.is_empty() {
            let read = decoder.decode(rest).map_err(without_line)?;
            rest = rest.get(read..).unwrap_or_default();
            if decoder.capacity() == 0 {
                batches.extend(decoder.flush().map_err(without_line)?);
            } else if read == 0 {
                return Err("the decoder makes no progress".to_owned());
            }
        }
        batches.extend(decoder.flush().map_err(without_line)?);
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        let records = text.split_inclusive(|byte| *byte == b'\n').filter(|line| self.format.is_record(line)).count();
        match rows.cmp(&records) {
            std::cmp::Ordering::Equal => batches.into_iter().map(|rows| self.typed(rows)).collect(),
            std::cmp::Ordering::Less => Err("a quote is opened and not closed on the line".to_owned()),
            std::cmp::Ordering::Greater => Err("the line holds a carriage return outside of quotes".to_owned()),
        }
    }

    /// Turns text into null where it says so, and then into the wanted types.
    fn typed(&self, rows: RecordBatch) -> Result<RecordBatch, String> {
        if self.format.null_value.is_empty() {
            return Ok(rows);
        }
        let null = StringArray::new_scalar(self.format.null_value.as_str());
        let options = CastOptions { safe: false, ..Default::default() };
        let column = |(text, field): (&ArrayRef, &Arc<Field>)| {
            let values = eq(text, &null).and_then(|is_null| nullif(text, &is_null))?;
            cast_with_options(&values, field.data_type(), &options)
        };
        let columns = rows.columns().iter().zip(self.output.fields()).map(column).collect::<Result<Vec<_>, _>>();
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        columns
            .and_then(|columns| RecordBatch::try_new_with_options(Arc::clone(&self.output), columns, &options))
            .map_err(|e| e.to_string())
    }
}

impl Decode for CsvDecoder {
    fn decode(&mut self, lines: &[u8]) -> Result<Vec<RecordBatch>, String> {
        let text = self.format.with_doubled_quotes(lines);
        let mut decoder = self.decoder.take().unwrap_or_else(|| self.build());
        let batches = self.batches(&mut decoder, &text)?;
        self.decoder = Some(decoder);
        Ok(batches)
    }
}

impl CsvFormat {
    /// False for empty lines and comments.
    pub(super) fn is_record(&self, line: &[u8]) -> bool {
        let line = trim_end(line);
        !line.is_empty() && (self.comment.is_none() || line.first().copied() != self.comment)
    }

    /// The fields of one line, as text.
    pub(super) fn fields(&self, line: &[u8]) -> Result<Vec<String>, String> {
        let line = self.with_doubled_quotes(line);
        let mut reader = csv::ReaderBuilder::new();
        reader.has_headers(false).delimiter(self.delimiter).quote(self.quote);
        let mut reader = reader.from_reader(line.as_ref());
        let record = reader.records().next().transpose().map_err(|e| e.to_string())?;
        Ok(record.iter().flat_map(csv::StringRecord::iter).map(str::to_owned).collect())
    }

    /// The same lines with quotes inside quotes doubled instead of escaped. An escape before anything but a quote or an
    /// escape is just a character.
    fn with_doubled_quotes<'a>(&self, lines: &'a [u8]) -> Cow<'a, [u8]> {
        if self.escape == self.quote || !lines.contains(&self.escape) {
            return Cow::Borrowed(lines);
        }
        let mut text = Vec::with_capacity(lines.len() + 16);
        let mut bytes = lines.iter().copied().peekable();
        let (mut at_start, mut quoted) = (true, false);
        while let Some(byte) = bytes.next() {
            let next = bytes.peek().copied();
            if quoted && byte == self.escape && (next == Some(self.quote) || next == Some(self.escape)) {
                bytes.next();
                text.extend(next.into_iter().filter(|next| *next == self.quote));
                text.extend(next);
            } else if quoted && byte == self.quote && next == Some(self.quote) {
                bytes.next();
                text.extend([byte, byte]);
            } else {
                text.push(byte);
                // A record is a line: an open quote ends with it.
                quoted = byte != b'\n' && if byte == self.quote { !quoted && at_start } else { quoted };
            }
            at_start = !quoted && (byte == self.delimiter || byte == b'\n');
        }
        Cow::Owned(text)
    }
}

/// What the decoder says, without its line numbers: it counts from the block it was given.
fn without_line(error: ArrowError) -> String {
    let text = match error {
        ArrowError::ParseError(text) | ArrowError::CsvError(text) => text,
        other => other.to_string(),
    };
    if let Some((_, counts)) = text.split_once(", expected ") {
        return format!("wrong number of fields: expected {counts}");
    }
    match text.split_once(" at line ") {
        Some((what, rest)) => match rest.split_once(": ") {
            Some((number, why)) if number.bytes().all(|byte| byte.is_ascii_digit()) => format!("{what}: {why}"),
            _ => what.to_owned(),
        },
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::Int64Type;

    use super::*;

    fn decode(format: &CsvFormat, lines: &str) -> Result<Vec<String>, String> {
        let fields = vec![Field::new("s", DataType::Utf8, true), Field::new("n", DataType::Int64, true)];
        let mut decoder = CsvDecoder::new(format, Arc::new(Schema::new(fields)), vec![0, 1], 2);
        let batches = decoder.decode(lines.as_bytes())?;
        let rows = batches.iter().flat_map(|rows| {
            let (texts, numbers) = (rows.column(0).as_string::<i32>(), rows.column(1).as_primitive::<Int64Type>());
            texts.iter().zip(numbers.iter()).map(|(s, n)| format!("{s:?} {n:?}")).collect::<Vec<_>>()
        });
        Ok(rows.collect())
    }

    #[test]
    fn lines_become_rows() {
        let format = CsvFormat::default();
        let rows = decode(&format, "a,1\n\n\"b,c\",2\r\n,\n").unwrap();
        assert_eq!(rows, ["Some(\"a\") Some(1)", "Some(\"b,c\") Some(2)", "None None"]);
        assert!(decode(&format, "").unwrap().is_empty());
    }

    #[test]
    fn quotes_are_doubled_or_escaped_and_other_backslashes_stay() {
        let format = CsvFormat::default();
        let text = |line: &str| decode(&format, line).unwrap().remove(0);
        assert_eq!(text("\"say \"\"hi\"\", twice\",1\n"), "Some(\"say \\\"hi\\\", twice\") Some(1)");
        assert_eq!(text("\"say \\\"hi\\\", twice\",1\n"), "Some(\"say \\\"hi\\\", twice\") Some(1)");
        assert_eq!(text("\"C:\\temp\\\\x\",1\n"), format!("{:?} Some(1)", Some("C:\\temp\\x")));
        assert_eq!(text("C:\\temp\\,1\n"), format!("{:?} Some(1)", Some("C:\\temp\\")));
        let doubled_only = CsvFormat { escape: b'"', ..format };
        assert_eq!(decode(&doubled_only, "\"C:\\\",1\n").unwrap(), [format!("{:?} Some(1)", Some("C:\\"))]);
    }

    #[test]
    fn what_is_wrong_is_told_without_line_numbers() {
        let format = CsvFormat::default();
        for (lines, answer) in [
            ("a\n", "wrong number of fields: expected 2 got 1"),
            ("a,1,2\n", "wrong number of fields: expected 2 got "),
            ("a,x\n", "Error while parsing value 'x' as type 'Int64' for column 1"),
            ("\"a,1\n", "a quote is opened and not closed on the line"),
        ] {
            let why = decode(&format, lines).unwrap_err();
            assert!(why.starts_with(answer), "{why}");
        }
    }

    #[test]
    fn comments_delimiters_and_nulls_are_as_told() {
        let format =
            CsvFormat { delimiter: b'\t', comment: Some(b'#'), null_value: "NA".to_owned(), ..CsvFormat::default() };
        let rows = decode(&format, "# a comment\nNA\t1\nb\tNA\n\t\n").unwrap();
        assert_eq!(rows, ["None Some(1)", "Some(\"b\") None", "None None"]);
        assert!(decode(&format, "a\tx\n").unwrap_err().contains("'x'"));
    }
}
