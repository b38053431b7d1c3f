//! JSON lines to columns.

use arrow::array::ArrayRef;
use arrow::datatypes::SchemaRef;
use tidewater::error::Result;

use super::csv_records::{behind_line_end, line_end};
use super::decode::{Decode, LONGEST, Step};
use crate::values::Record;
use crate::values::json::{Document, Kind};

/// Decodes lines that are one JSON object each, or a list of objects. Fields count by name; one that is missing is null.
pub(super) struct JsonDecoder {
    record: Record,
    document: Document,
}

impl JsonDecoder {
    /// A decoder for these fields; an error if a type cannot be read at all.
    pub(super) fn new(schema: &SchemaRef) -> Result<Self, String> {
        Ok(JsonDecoder { record: Record::new(schema.fields())?, document: Document::default() })
    }
}

impl Decode for JsonDecoder {
    fn next(&mut self, text: &[u8], _is_last: bool) -> Result<Step> {
        let line = line_end(text, 0);
        let bytes = behind_line_end(text, line);
        let line = text.get(..line).unwrap_or_default();
        if line.trim_ascii().is_empty() {
            return Ok(Step::Rows { bytes, rows: 0 });
        }
        let text = match std::str::from_utf8(line) {
            Ok(text) if text.len() <= LONGEST => text,
            Ok(_) => return Ok(Step::Malformed { bytes, rows: 0, why: "it is too long".to_owned() }),
            Err(e) => return Ok(Step::Malformed { bytes, rows: 0, why: format!("it is not UTF-8: {e}") }),
        };
        let before = self.record.rows();
        let taken = self.document.parse(text).and_then(|value| {
            let objects: Vec<_> = match value.kind() {
                Kind::Object => vec![value],
                Kind::Array if value.children().all(|item| item.kind() == Kind::Object) => value.children().collect(),
                _ => return Err("a line must hold one JSON object".to_owned()),
            };
            objects.into_iter().try_for_each(|object| self.record.append_object(object))
        });
        let rows = self.record.rows() - before;
        Ok(match taken {
            Ok(()) => Step::Rows { bytes, rows },
            Err(why) => Step::Malformed { bytes, rows, why },
        })
    }

    fn append_nulls(&mut self) {
        self.record.append_nulls();
    }

    fn finish(&mut self) -> Result<Vec<ArrayRef>> {
        Ok(self.record.finish()?)
    }
}
