//! Rows as lines of CSV, in Spark's spelling.
//!
//! A null and an empty string are different: a null is the bare `nullValue` (nothing, by default), an empty string is
//! `""`. Inside quotes, a quote is written after the escape character, `\` by default, which also precedes itself. No
//! blanks are trimmed.

use std::fmt::Write;

use arrow::array::Array;
use arrow::datatypes::{DataType, Schema};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use tidewater::error::{Error, Result};

use crate::options::Options;

/// The characters between and around values.
#[derive(Debug, Clone)]
pub(crate) struct CsvStyle {
    pub(super) header: bool,
    separator: char,
    quote: char,
    escape: char,
    null_value: String,
}

impl CsvStyle {
    /// From the options `header`, `sep` or `delimiter`, `quote`, `escape`, `nullValue`.
    pub(super) fn parse(options: &Options) -> Result<Self> {
        let one = |name: &str| {
            options.parsed(name, "a single character", |value| match value {
                "\\t" => Some('\t'),
                value => value.parse().ok(),
            })
        };
        Ok(CsvStyle {
            header: options.bool("header", false)?,
            separator: one("sep")?.or(one("delimiter")?).unwrap_or(','),
            quote: one("quote")?.unwrap_or('"'),
            escape: one("escape")?.unwrap_or('\\'),
            null_value: options.get("nullValue").unwrap_or_default().to_owned(),
        })
    }

    pub(super) fn write_header(&self, schema: &Schema, lines: &mut Vec<u8>) {
        let names: Vec<_> = schema.fields().iter().map(|f| Some(f.name().as_str())).collect();
        self.write_line(&names, lines);
    }

    pub(super) fn write_rows(&self, batch: &RecordBatch, lines: &mut Vec<u8>) -> Result<()> {
        let format = FormatOptions::new().with_display_error(false);
        let columns = batch.columns().iter().map(|column| {
            let no_text = column.data_type().is_nested() || is_binary(column.data_type());
            match no_text {
                true => Err(Error::invalid("CSV holds plain values only")),
                false => Ok((column, ArrayFormatter::try_new(column, &format)?)),
            }
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let mut texts = vec![String::new(); columns.len()];
        for row in 0..batch.num_rows() {
            for ((column, formatter), text) in columns.iter().zip(&mut texts) {
                text.clear();
                write!(text, "{}", formatter.value(row))
                    .map_err(|_| ArrowError::CsvError(format!("row {row} has a value out of its type's range")))?;
                if column.data_type().is_floating() {
                    // As Spark spells it.
                    match text.as_str() {
                        "inf" => "Infinity".clone_into(text),
                        "-inf" => "-Infinity".clone_into(text),
                        _ => {}
                    }
                }
            }
            let values = columns.iter().zip(&texts);
            let values: Vec<_> =
                values.map(|((column, _), text)| column.is_valid(row).then_some(text.as_str())).collect();
            self.write_line(&values, lines);
        }
        Ok(())
    }

    fn write_line(&self, values: &[Option<&str>], lines: &mut Vec<u8>) {
        let start = lines.len();
        for (i, value) in values.iter().enumerate() {
            if i > 0 {
                push(lines, self.separator);
            }
            match value {
                None => lines.extend_from_slice(self.null_value.as_bytes()),
                Some(value) => self.write_value(value, lines),
            }
        }
        if lines.len() == start {
            // A lone null would be an empty line, and readers skip those: a row would be lost.
            push(lines, self.quote);
            push(lines, self.quote);
        }
        lines.push(b'\n');
    }

    fn write_value(&self, value: &str, lines: &mut Vec<u8>) {
        let special = |c: char| c == self.separator || c == self.quote || c == '\n' || c == '\r';
        // Readers skip lines of nothing but blanks.
        let is_blank = value.chars().all(|c| c == ' ' || c == '\t');
        if value != self.null_value && !is_blank && !value.contains(special) {
            lines.extend_from_slice(value.as_bytes());
            return;
        }
        push(lines, self.quote);
        for c in value.chars() {
            if c == self.quote || c == self.escape {
                push(lines, self.escape);
            }
            push(lines, c);
        }
        push(lines, self.quote);
    }
}

fn is_binary(data_type: &DataType) -> bool {
    use DataType::{Binary, BinaryView, FixedSizeBinary, LargeBinary};
    matches!(data_type, Binary | LargeBinary | BinaryView | FixedSizeBinary(_))
}

fn push(lines: &mut Vec<u8>, c: char) {
    lines.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, BinaryArray, BooleanArray, StringArray, TimestampMicrosecondArray};

    use super::*;

    fn style(given: &[(&str, &str)]) -> Result<CsvStyle> {
        let known = ["header", "sep", "delimiter", "quote", "escape", "nullValue"];
        let given = given.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        CsvStyle::parse(&Options::new("the file sink", &known, given)?)
    }

    fn lines(style: &CsvStyle, columns: Vec<(&str, ArrayRef)>) -> String {
        let mut lines = vec![];
        style
            .write_rows(
                &RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap(),
                &mut lines,
            )
            .unwrap();
        String::from_utf8(lines).unwrap()
    }

    #[test]
    fn values_that_need_it_are_quoted_and_null_differs_from_empty() {
        let s: ArrayRef = Arc::new(StringArray::from(vec![
            Some("plain"),
            Some("a,b"),
            Some("say \"hi\" \\o/"),
            Some("back\\slash"),
            Some(""),
            None,
            Some("two\nlines"),
        ]));
        let b: ArrayRef = Arc::new(BooleanArray::from(vec![Some(true); 7]));
        let text = lines(&style(&[]).unwrap(), vec![("s", s), ("b", b)]);
        assert_eq!(
            text,
            "plain,true\n\"a,b\",true\n\"say \\\"hi\\\" \\\\o/\",true\nback\\slash,true\n\"\",true\n,true\n\"two\nlines\",true\n"
        );
    }

    #[test]
    fn a_lone_null_is_still_a_row() {
        let s: ArrayRef = Arc::new(StringArray::from(vec![None, Some("x")]));
        assert_eq!(lines(&style(&[]).unwrap(), vec![("s", Arc::clone(&s))]), "\"\"\nx\n");
        assert_eq!(lines(&style(&[("nullValue", "NA")]).unwrap(), vec![("s", s)]), "NA\nx\n");
    }

    #[test]
    fn timestamps_are_iso() {
        let ts = TimestampMicrosecondArray::from(vec![1_704_067_200_500_000]);
        let zoned: ArrayRef = Arc::new(ts.clone().with_timezone("UTC"));
        let text = lines(&style(&[("sep", "\\t")]).unwrap(), vec![("a", zoned), ("b", Arc::new(ts))]);
        assert_eq!(text, "2024-01-01T00:00:00.500Z\t2024-01-01T00:00:00.500\n");
    }

    #[test]
    fn a_double_quote_can_be_its_own_escape() {
        let s: ArrayRef = Arc::new(StringArray::from(vec!["a\"b"]));
        assert_eq!(lines(&style(&[("escape", "\"")]).unwrap(), vec![("s", s)]), "\"a\"\"b\"\n");
    }

    #[test]
    fn what_is_no_text_or_no_character_is_refused() {
        assert!(style(&[("sep", "ab")]).unwrap_err().message().contains("a single character"));
        let bytes: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"x"]));
        let batch = RecordBatch::try_from_iter([("b", bytes)]).unwrap();
        assert!(style(&[]).unwrap().write_rows(&batch, &mut vec![]).is_err());
    }
}
