//! JSON documents to columns, many at a time.

use arrow::array::StructArray;
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Fields};
use tidewater::error::{Error, ErrorKind, Result};

use super::{Bad, Decoded, short};
use crate::values::Record;
use crate::values::json::{Document, Kind};

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
    fields: Fields,
    data_type: DataType,
    conflicts: Conflicts,
}

impl JsonReader {
    pub(super) fn new(fields: Fields, conflicts: Conflicts) -> Self {
        JsonReader { data_type: DataType::Struct(fields.clone()), fields, conflicts }
    }

    pub(super) fn data_type(&self) -> &DataType {
        &self.data_type
    }

    /// An error if a field has a type that JSON cannot be read as.
    pub(super) fn check(&self) -> Result<()> {
        self.record().map(|_| ())
    }

    fn record(&self) -> Result<Record> {
        Record::new(&self.fields).map_err(|why| {
            Error::invalid(format!("JSON cannot be read as {}: {why}", self.data_type()))
                .with_hint("declare the field with another type, and convert it in the query")
        })
    }

    /// One value per document; null where there is none, or a bad one.
    pub(super) fn decode(&self, documents: Vec<Option<&[u8]>>) -> Result<Decoded> {
        let bytes: usize = documents.iter().flatten().map(|document| document.len()).sum();
        if i32::try_from(bytes).is_err() {
            let message = format!("{} JSON documents of {bytes} bytes cannot be decoded at once", documents.len());
            return Err(Error::new(ErrorKind::BadInput, message).with_hint("let a batch be smaller"));
        }
        let (mut record, mut tokens) = (self.record()?, Document::default());
        let (mut bad, mut valid) = (vec![], Vec::with_capacity(documents.len()));
        for (row, document) in documents.iter().enumerate() {
            let Some(document) = document else {
                record.append_nulls();
                valid.push(false);
                continue;
            };
            let taken = self.append(document, &mut tokens, &mut record);
            valid.push(taken.is_ok());
            bad.extend(taken.err().map(|error| Bad { row, error: short(&error) }));
        }
        let columns = record.finish()?;
        let valid = NullBuffer::from(valid);
        let values = StructArray::try_new_with_length(self.fields.clone(), columns, Some(valid), documents.len())?;
        Ok(Decoded { values, bad })
    }

    /// Adds one row, whatever the document is; or returns what is wrong with it.
    fn append(&self, document: &[u8], tokens: &mut Document, record: &mut Record) -> Result<(), String> {
        let parsed = std::str::from_utf8(document).map_err(|e| format!("it is not UTF-8: {e}"));
        let object = parsed.and_then(|text| tokens.parse(text)).and_then(|value| match value.kind() {
            Kind::Object => Ok(value),
            _ => Err("it is not a JSON object".to_owned()),
        });
        match object {
            Ok(object) => record.append_object(object).or_else(|why| match self.conflicts {
                Conflicts::Bad => Err(why),
                Conflicts::Null => Ok(()),
            }),
            Err(why) => {
                record.append_nulls();
                Err(why)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Array, ArrayRef, AsArray};
    use arrow::datatypes::{Field, Int64Type, TimeUnit, TimestampMicrosecondType};

    use crate::values::json::DEPTH_MAX;

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

    /// As Spark's reader, which converts every value it meets.
    #[test]
    fn of_a_name_that_comes_twice_the_last_counts_and_all_must_fit() {
        let fine = [r#"{"a":1,"a":2}"#, r#"{"a":1,"a":null}"#, r#"{"in":{"b":true},"a":7,"in":{"b":false},"a":"8"}"#];
        let decoded = decode(&texts(&fine));
        assert!(decoded.bad.is_empty(), "{:?}", decoded.bad);
        assert_eq!(a(&decoded), [Some(2), None, Some(8)]);
        assert!(!decoded.values.column(2).as_struct().column(0).as_boolean().value(2));
        for bad in [
            r#"{"a":"x","a":2}"#,
            r#"{"a":1.5,"s":"y","a":2,"a":3}"#,
            r#"{"in":{"b":7},"in":{"b":true}}"#,
            r#"{"in":{"b":7,"b":true}}"#,
            r#"{"in":7,"in":null}"#,
        ] {
            let decoded = decode(&texts(&[r#"{"a":1}"#, bad]));
            assert_eq!(rows(&decoded), [1], "{bad}");
        }
    }

    #[test]
    fn what_is_no_single_object_is_bad_and_its_neighbours_are_not() {
        for (document, why) in [
            (r#"{"a":1"#, "does not end"),
            ("}", "unexpected"),
            (r#"{"a":1}{"a":2}"#, "follows"),
            (r#"{"a":1}}"#, "follows"),
            (r#"{"a":1},"#, "follows"),
            (r#"{"a":1} 2"#, "follows"),
            (r#"{"a":1.9}"#, "field 'a': '1.9' is not a valid Int64"),
            (r#"{"a":1.0}"#, "field 'a'"),
            (r#"{"a":9223372036854775808}"#, "field 'a'"),
            (r#"{"a":01}"#, "not a JSON value"),
            (r#"{"a":7,}"#, "unexpected"),
            (r#"{a:7}"#, "unexpected"),
            ("{\"s\":\"t\tab\"}", "control character"),
            (r#"{"s":"\x"}"#, "backslash"),
            (r#"{"s":"\ud800"}"#, "backslash"),
            ("", "is empty"),
            (" \n", "is empty"),
            ("null", "not a JSON object"),
            ("3", "not a JSON object"),
            (r#"[{"a":1}]"#, "not a JSON object"),
            (r#"{"a":}"#, "unexpected '}'"),
            (r#"{"s":"x}"#, "does not end"),
            (r#"{"a":tru}"#, "'tru' is not a JSON value"),
            (r#"{"a":"x"}"#, "field 'a'"),
            (r#"{"a":1.5e300}"#, "field 'a'"),
            (r#"{"in":{"b":1}}"#, "field 'b'"),
            (r#"{"in":3}"#, "field 'in'"),
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
        assert_eq!((us[2], us[3], bad), (Some(86_400_000_000), Some(5_000_000), vec![4]));

        let (_, bad) = one(DataType::Int32, false, &[r#"{"f":1}"#, "{}", r#"{"f":null}"#]).unwrap();
        assert_eq!(bad, [1, 2]);
        // Not a panic.
        let (_, bad) = one(DataType::Binary, true, &[r#"{"f":"AAEC"}"#, r#"{"f":7}"#, r#"{"f":"x"}"#]).unwrap();
        assert_eq!(bad, [1, 2]);

        let error = one(DataType::Interval(arrow::datatypes::IntervalUnit::DayTime), true, &["{}"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidQuery);
    }

    fn texts_of(documents: &[&str]) -> Vec<Option<String>> {
        let (values, bad) = one(DataType::Utf8, true, documents).unwrap();
        assert!(bad.is_empty(), "{bad:?}");
        values.as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect()
    }

    #[test]
    fn in_a_column_of_text_everything_is_its_json_text() {
        let documents = [
            r#"{"f":{"a": 1,  "b":[1,2.50]}}"#,
            r#"{"f":[1, 2]}"#,
            r#"{"f":1.50}"#,
            r#"{"f":true}"#,
            r#"{"f":null}"#,
            r#"{"f":"\u00e9\n\ud83c\udf0a"}"#,
            r#"{'f':'it"s'}"#,
            r#"{"f":"first","f":"last"}"#,
            r#"{"F":"other"}"#,
        ];
        let wanted = [
            Some(r#"{"a": 1,  "b":[1,2.50]}"#),
            Some("[1, 2]"),
            Some("1.50"),
            Some("true"),
            None,
            Some("\u{e9}\n\u{1f30a}"),
            Some("it\"s"),
            Some("last"),
            None,
        ];
        assert_eq!(texts_of(&documents), wanted.map(|text| text.map(str::to_owned)));
    }

    #[test]
    fn numbers_fit_or_are_bad() {
        let bad_of = |data_type: DataType, values: &[&str]| {
            let documents: Vec<String> = values.iter().map(|value| format!("{{\"f\":{value}}}")).collect();
            one(data_type, true, &documents.iter().map(String::as_str).collect::<Vec<_>>()).unwrap()
        };
        let (_, bad) = bad_of(DataType::Int8, &["127", "128", "200", "1e1", "true", "\"\"", "null"]);
        assert_eq!(bad, [1, 2, 3, 4, 5]);
        let second = DataType::Timestamp(TimeUnit::Microsecond, None);
        let (times, bad) = bad_of(second, &["1704067200", "1e30", "1704067200.5", "9223372036854775807", "-1"]);
        assert_eq!(bad, [1, 2, 3]);
        let times = times.as_primitive::<TimestampMicrosecondType>();
        assert_eq!((times.value(0), times.value(4)), (1_704_067_200_000_000, -1_000_000));
        let (decimals, bad) =
            bad_of(DataType::Decimal128(10, 2), &["1.235", "-1.235", "123456789.1", "1e2", "\"1.235\""]);
        assert_eq!(bad, [2]);
        let decimals = decimals.as_primitive::<arrow::datatypes::Decimal128Type>();
        assert_eq!([0, 1, 3, 4].map(|row| decimals.value(row)), [124, -124, 10_000, 124]);
        let floats = ["\"NaN\"", "\"Infinity\"", "\"-Infinity\"", "NaN", "-INF", "1e300"];
        let (floats, bad) = bad_of(DataType::Float64, &floats);
        assert!(bad.is_empty());
        let floats = floats.as_primitive::<arrow::datatypes::Float64Type>();
        assert!(floats.value(0).is_nan() && floats.value(3).is_nan());
        assert_eq!(
            [1, 2, 4, 5].map(|row| floats.value(row)),
            [f64::INFINITY, f64::NEG_INFINITY, f64::NEG_INFINITY, 1e300]
        );
        let (_, bad) = bad_of(DataType::Boolean, &["true", "\"true\"", "1", "TRUE"]);
        assert_eq!(bad, [1, 2, 3]);
        let list = DataType::new_list(DataType::Int32, false);
        let (lists, bad) = bad_of(list, &["[1,2]", "[1,\"x\"]", "[null]", "1", "[1.5]", "[]"]);
        assert_eq!(bad, [1, 2, 3, 4]);
        assert_eq!(lists.as_list::<i32>().value_length(0), 2);
        let map = arrow::datatypes::DataType::Map(
            Arc::new(Field::new_struct(
                "entries",
                vec![Field::new("key", DataType::Int32, false), Field::new("value", DataType::Int32, true)],
                false,
            )),
            false,
        );
        let (maps, bad) = bad_of(map, &["{\"1\":1,\"1\":2,\"3\":null}", "{\"x\":1}", "{\"1\":\"x\"}", "[]", "{}"]);
        assert_eq!(bad, [1, 2, 3]);
        assert_eq!(maps.as_map().value(0).len(), 2);
    }
}
