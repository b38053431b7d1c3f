//! JSON documents to columns, many at a time.
//!
//! Arrow's decoder takes a stream of bytes: to it, `{"a":1` and then `}` are one object, and `{}{}` are two. So after
//! every document it is asked whether it stands between two objects, and whether it has seen exactly one more. This
//! costs next to nothing, as nothing is decoded twice.

use std::sync::Arc;

use arrow::array::{AsArray, StructArray};
use arrow::datatypes::{DataType, Field, FieldRef, Fields};
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder;
use arrow::json::reader::Decoder;
use tidewater::error::{Error, ErrorKind, Result};

use super::{Decoded, find_bad, short};

/// How deep a document may be nested. Arrow quotes what it cannot read by recursion: a document of nothing but brackets
/// would end the process.
const DEPTH_MAX: usize = 500;

/// What becomes of a value that is not what its field is declared to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Conflicts {
    /// The document is bad.
    Bad,
    /// The value is null.
    Null,
}

/// Decodes documents that are one JSON object each.
#[derive(Debug, Clone)]
pub(super) struct JsonReader {
    /// A nullable struct.
    field: FieldRef,
    conflicts: Conflicts,
}

impl JsonReader {
    pub(super) fn new(fields: Fields, conflicts: Conflicts) -> Self {
        JsonReader { field: Arc::new(Field::new("value", DataType::Struct(fields), true)), conflicts }
    }

    pub(super) fn data_type(&self) -> &DataType {
        self.field.data_type()
    }

    /// An error if a field has a type that JSON cannot be read as.
    pub(super) fn check(&self) -> Result<()> {
        self.decoder(1).map(|_| ()).map_err(|why| {
            Error::invalid(format!("JSON cannot be read as {}: {why}", self.data_type()))
                .hint("declare the field with another type, and convert it in the query")
        })
    }

    fn decoder(&self, documents: usize) -> Result<Decoder, String> {
        ReaderBuilder::new_with_field(Arc::clone(&self.field))
            .with_batch_size(documents)
            // A number where text is wanted is its text.
            .with_coerce_primitive(true)
            .with_ignore_type_conflicts(self.conflicts == Conflicts::Null)
            .build_decoder()
            .map_err(|e| words(&e))
    }

    /// One value per document; null where there is none, or a bad one.
    pub(super) fn decode(&self, mut documents: Vec<Option<&[u8]>>) -> Result<Decoded> {
        self.check()?;
        let decode = |part: &[Option<&[u8]>]| self.decode_together(part);
        let error = match decode(&documents) {
            Ok(values) => return Ok(Decoded { values, bad: vec![] }),
            Err(error) => error,
        };
        let bad = find_bad(&documents, error, &decode);
        for bad in &bad {
            if let Some(document) = documents.get_mut(bad.row) {
                *document = None;
            }
        }
        let values = decode(&documents).map_err(|why| {
            let message = format!("{} JSON documents cannot be decoded at once: {why}", documents.len());
            Error::new(ErrorKind::BadInput, message).hint("let a batch be smaller")
        })?;
        Ok(Decoded { values, bad })
    }

    /// All documents, or what is wrong with one.
    fn decode_together(&self, documents: &[Option<&[u8]>]) -> Result<StructArray, String> {
        let mut decoder = self.decoder(documents.len())?;
        for (before, document) in documents.iter().enumerate() {
            let document = match document {
                Some(document) => {
                    check_outside(document)?;
                    *document
                }
                None => b"null".as_slice(),
            };
            let read = decoder.decode(document).map_err(|e| words(&e))?;
            if decoder.has_partial_record() {
                return Err("the JSON object does not end".to_owned());
            }
            if read < document.len() || decoder.len() != before + 1 {
                return Err("something follows the JSON object".to_owned());
            }
        }
        let rows = decoder.flush().map_err(|e| words(&e))?;
        let values = rows.and_then(|rows| rows.columns().first()?.as_struct_opt().cloned());
        match (values, self.data_type()) {
            (Some(values), _) => Ok(values),
            (None, DataType::Struct(fields)) => Ok(StructArray::new_null(fields.clone(), documents.len())),
            (None, other) => Err(format!("{other} is no struct")),
        }
    }
}

/// What can be said of a document without decoding it.
fn check_outside(document: &[u8]) -> Result<(), String> {
    match document.trim_ascii_start().first() {
        Some(b'{') if is_too_deep(document) => Err(format!("it is nested deeper than {DEPTH_MAX} levels")),
        Some(b'{') => Ok(()),
        Some(_) => Err("it is not a JSON object".to_owned()),
        None => Err("it is empty".to_owned()),
    }
}

fn is_too_deep(document: &[u8]) -> bool {
    // Few documents are long, and fewer have so many brackets.
    if document.len() <= DEPTH_MAX {
        return false;
    }
    if document.iter().filter(|byte| matches!(**byte, b'{' | b'[')).count() <= DEPTH_MAX {
        return false;
    }
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for byte in document {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return true;
        }
    }
    false
}

fn words(error: &ArrowError) -> String {
    match error {
        ArrowError::JsonError(why) | ArrowError::ParseError(why) => short(why),
        other => short(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, ArrayRef};
    use arrow::datatypes::{Int64Type, TimeUnit, TimestampMicrosecondType};

    use super::*;

    fn fields() -> Fields {
        Fields::from(vec![
            Field::new("a", DataType::Int64, true),
            Field::new("s", DataType::Utf8, true),
            Field::new_struct("in", vec![Field::new("b", DataType::Boolean, true)], true),
        ])
    }

    fn decode(documents: &[Option<&[u8]>]) -> Decoded {
        let decoded = JsonReader::new(fields(), Conflicts::Bad).decode(documents.to_vec()).unwrap();
        assert_eq!(decoded.values.len(), documents.len());
        assert_eq!(decoded.values.data_type(), &DataType::Struct(fields()));
        for (row, document) in documents.iter().enumerate() {
            let is_bad = decoded.bad.iter().any(|bad| bad.row == row);
            assert_eq!(decoded.values.is_null(row), is_bad || document.is_none(), "row {row}");
        }
        decoded
    }

    fn texts<'a>(documents: &[&'a str]) -> Vec<Option<&'a [u8]>> {
        documents.iter().map(|document| Some(document.as_bytes())).collect()
    }

    fn rows(decoded: &Decoded) -> Vec<usize> {
        decoded.bad.iter().map(|bad| bad.row).collect()
    }

    fn a(decoded: &Decoded) -> Vec<Option<i64>> {
        decoded.values.column(0).as_primitive::<Int64Type>().iter().collect()
    }

    #[test]
    fn fields_count_by_name() {
        let mut documents = texts(&[r#"{"s":"x","a":1}"#, " {\"a\":2,\"other\":[{}],\"in\":{\"b\":true}}\r\n ", "{}"]);
        documents.push(None);
        documents.extend(texts(&[r#"{"a":"7","s":1.50}"#]));
        let decoded = decode(&documents);
        assert!(decoded.bad.is_empty(), "{:?}", decoded.bad);
        assert_eq!(a(&decoded), [Some(1), Some(2), None, None, Some(7)]);
        let text: Vec<_> = decoded.values.column(1).as_string::<i32>().iter().collect();
        assert_eq!(text, [Some("x"), None, None, None, Some("1.50")]);
        assert!(decoded.values.column(2).as_struct().column(0).as_boolean().value(1));
        assert_eq!(decode(&[]).values.len(), 0);
        assert_eq!(decode(&[None, None]).values.null_count(), 2);
    }

    #[test]
    fn what_is_no_single_object_is_bad_and_its_neighbours_are_not() {
        for (document, why) in [
            (r#"{"a":1"#, "does not end"),
            ("}", "not a JSON object"),
            (r#"{"a":1}{"a":2}"#, "follows"),
            (r#"{"a":1}}"#, "follows"),
            (r#"{"a":1},"#, "follows"),
            (r#"{"a":1} 2"#, "follows"),
            ("", "is empty"),
            (" \n", "is empty"),
            ("null", "not a JSON object"),
            ("3", "not a JSON object"),
            (r#"[{"a":1}]"#, "not a JSON object"),
            (r#"{"a":}"#, "unexpected '}'"),
            (r#"{"s":"x}"#, "does not end"),
            (r#"{"a":tru}"#, "unexpected '}'"),
            (r#"{"a":"x"}"#, "field 'a'"),
            (r#"{"a":1.5e300}"#, "field 'a'"),
            (r#"{"in":{"b":1}}"#, "field 'b'"),
            (r#"{"in":3}"#, "field 'in'"),
            (r#"{"s":["x"]}"#, "field 's'"),
        ] {
            let decoded = decode(&texts(&[r#"{"a":1}"#, document, r#"{"a":3}"#]));
            assert_eq!(rows(&decoded), [1], "{document}");
            assert!(decoded.bad[0].error.contains(why), "{document}: {}", decoded.bad[0].error);
            assert_eq!(a(&decoded), [Some(1), None, Some(3)], "{document}");
            assert_eq!(rows(&decode(&texts(&[document]))), [0], "{document}");
        }
    }

    #[test]
    fn halves_of_two_messages_do_not_make_one() {
        let decoded = decode(&texts(&[r#"{"a":1"#, "}", r#"{"s":"x"#, r#"y"}"#, r#"{"a":2}"#]));
        assert_eq!(rows(&decoded), [0, 1, 2, 3]);
        assert_eq!(a(&decoded)[4], Some(2));
        // One holds two and one holds none: the number of rows would be right.
        assert_eq!(rows(&decode(&texts(&["{}{}", " ", "{}"]))), [0, 1]);
        // Two halves of one letter.
        let halves: [&[u8]; 3] = [b"{\"s\":\"\xC3\"}", b"{\"s\":\"\xA9\"}", "{\"s\":\"\u{e9}\"}".as_bytes()];
        assert_eq!(rows(&decode(&halves.map(Some))), [0, 1]);
    }

    #[test]
    fn a_few_bad_ones_among_many() {
        let good: Vec<String> = (0..5000).map(|a| format!("{{\"a\":{a},\"s\":\"{a}\"}}")).collect();
        let mut documents: Vec<Option<&[u8]>> = good.iter().map(|document| Some(document.as_bytes())).collect();
        for (row, bad) in [(0, "{"), (2500, r#"{"a":true}"#), (2501, ""), (4999, "}{")] {
            documents[row] = Some(bad.as_bytes());
        }
        let decoded = decode(&documents);
        assert_eq!(rows(&decoded), [0, 2500, 2501, 4999]);
        assert_eq!(a(&decoded)[1..4], [Some(1), Some(2), Some(3)]);
        let all_bad = vec![Some(b"{".as_slice()); 1000];
        assert_eq!(rows(&decode(&all_bad)).len(), 1000);
    }

    #[test]
    fn depth_ends_before_the_stack_does() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        let (deep, shallow) = (nested(1_000_000), nested(DEPTH_MAX - 1));
        let brackets = format!("{{\"a\":5,\"s\":\"\\\"{}\"}}", "[{".repeat(1000));
        let beside = format!("{{\"a\":6,\"other\":[{}0]}}", "[],".repeat(1000));
        let decoded = decode(&texts(&[&deep, &shallow, &brackets, &beside]));
        assert_eq!(rows(&decoded), [0, 1]);
        assert!(decoded.bad[0].error.contains("deeper"), "{}", decoded.bad[0].error);
        assert!(decoded.bad[1].error.contains("field 'a'"), "{}", decoded.bad[1].error);
        assert_eq!(a(&decoded), [None, None, Some(5), Some(6)]);
    }

    #[test]
    fn conflicts_may_be_null() {
        let documents = texts(&[r#"{"a":"x","s":"kept","in":7}"#, r#"{"a":1,"in":{"b":"no"}}"#, r#"{"a":1"#]);
        let decoded = JsonReader::new(fields(), Conflicts::Null).decode(documents).unwrap();
        assert_eq!(rows(&decoded), [2]);
        assert_eq!(a(&decoded), [None, Some(1), None]);
        assert_eq!(decoded.values.column(1).as_string::<i32>().value(0), "kept");
        assert!(decoded.values.column(2).is_null(0) && decoded.values.column(2).is_valid(1));
    }

    fn one(data_type: DataType, nullable: bool, documents: &[&str]) -> Result<(ArrayRef, Vec<usize>)> {
        let fields = Fields::from(vec![Field::new("f", data_type, nullable)]);
        let decoded = JsonReader::new(fields, Conflicts::Bad).decode(texts(documents))?;
        Ok((Arc::clone(decoded.values.column(0)), rows(&decoded)))
    }

    #[test]
    fn types_and_nulls() {
        let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let documents = [
            r#"{"f":"2026-01-31T09:26:56.123456Z"}"#,
            r#"{"f":"2026-01-31 10:26:56.123456+01:00"}"#,
            r#"{"f":"1970-01-02"}"#,
            r#"{"f":5}"#,
            r#"{"f":"soon"}"#,
        ];
        let (times, bad) = one(utc, true, &documents).unwrap();
        let us: Vec<_> = times.as_primitive::<TimestampMicrosecondType>().iter().collect();
        assert_eq!(us[0], us[1]);
        assert_eq!((us[2], us[3], bad), (Some(86_400_000_000), Some(5), vec![4]));

        let (_, bad) = one(DataType::Int32, false, &[r#"{"f":1}"#, "{}", r#"{"f":null}"#]).unwrap();
        assert_eq!(bad, [1, 2]);
        // Not a panic.
        let (_, bad) = one(DataType::Binary, true, &[r#"{"f":"0aff"}"#, r#"{"f":7}"#, r#"{"f":"x"}"#]).unwrap();
        assert_eq!(bad, [1, 2]);

        let error = one(DataType::Interval(arrow::datatypes::IntervalUnit::DayTime), true, &["{}"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidQuery);
    }
}
