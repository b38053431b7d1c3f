//! Which columns of the rows are the parts of a record, and these parts, row by row.
//!
//! Spark's rules: `value` must be there; `key`, `headers`, `topic` and `partition` may be. Other columns are left out.
//! Columns are found once for a run, their types once for a batch of rows. Of a row, everything is borrowed; librdkafka
//! copies it.

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryViewArray, Int32Array, LargeBinaryArray, LargeStringArray, ListArray,
    StringArray, StringViewArray, StructArray,
};
use arrow::datatypes::{DataType, Int32Type, Schema};
use arrow::record_batch::RecordBatch;
use rdkafka::message::{Header, OwnedHeaders};
use tidewater::error::{Error, ErrorKind, Result};

/// Where the parts of a record are among the columns of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Columns {
    topic: Topic,
    partition: Option<usize>,
    key: Option<usize>,
    value: usize,
    headers: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Topic {
    /// All rows go there.
    Named(String),
    /// Each row says where.
    Column(usize),
}

impl Columns {
    /// Finds them in rows of this `schema`. With a `topic`, a column of that name is left out; without `headers`, too.
    pub(super) fn find(schema: &Schema, topic: Option<&str>, headers: bool) -> Result<Self> {
        let find = |name: &str, wanted: &str, fits: fn(&DataType) -> bool| -> Result<Option<usize>> {
            match schema.column_with_name(name) {
                Some((_, field)) if !fits(field.data_type()) => Err(Error::invalid(format!(
                    "column `{name}` is of type {}, and the Kafka sink takes {wanted} there",
                    field.data_type()
                ))
                .with_hint("cast the column, or rename it: only columns with the names of a record's parts are sent")),
                Some((index, _)) => Ok(Some(index)),
                None => Ok(None),
            }
        };
        let topic = match topic {
            Some(topic) => Topic::Named(topic.to_owned()),
            None => Topic::Column(find("topic", "text", is_text)?.ok_or_else(|| {
                Error::invalid("the Kafka sink was given no topic, and the rows have no column `topic`").with_hint(
                    "name the topic of all rows with `KafkaSink::topic` (option `topic`), or add a column `topic` that \
                     names it for each row",
                )
            })?),
        };
        let value = find("value", "text or bytes", is_text_or_bytes)?.ok_or_else(|| {
            Error::invalid("the Kafka sink writes the column `value`, and the rows have none")
                .with_hint("name what is to be sent `value`: `to_json` makes one text of several columns")
        })?;
        Ok(Columns {
            topic,
            partition: find("partition", "a 32-bit integer", |data_type| *data_type == DataType::Int32)?,
            key: find("key", "text or bytes", is_text_or_bytes)?,
            value,
            headers: match headers {
                true => find("headers", "a list of structs of `key` (text) and `value` (bytes or text)", is_headers)?,
                false => None,
            },
        })
    }

    /// The rows of one batch of them.
    pub(super) fn of<'a>(&'a self, rows: &'a RecordBatch) -> Result<Rows<'a>> {
        let column = |index: usize| rows.columns().get(index);
        let bytes = |index: usize| column(index).and_then(Bytes::of).ok_or_else(other_rows);
        Ok(Rows {
            topic: match &self.topic {
                Topic::Named(topic) => TopicOfRow::Named(topic),
                Topic::Column(index) => TopicOfRow::Column(column(*index).and_then(Text::of).ok_or_else(other_rows)?),
            },
            partition: match self.partition {
                Some(index) => {
                    Some(column(index).and_then(|c| c.as_primitive_opt::<Int32Type>()).ok_or_else(other_rows)?)
                }
                None => None,
            },
            key: self.key.map(bytes).transpose()?,
            value: bytes(self.value)?,
            headers: match self.headers {
                Some(index) => Some(column(index).and_then(Headers::of).ok_or_else(other_rows)?),
                None => None,
            },
        })
    }
}

fn other_rows() -> Error {
    Error::internal("the Kafka sink was given rows with other columns than were announced")
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_text_or_bytes(data_type: &DataType) -> bool {
    is_text(data_type) || matches!(data_type, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

fn is_headers(data_type: &DataType) -> bool {
    let DataType::List(entry) = data_type else { return false };
    let DataType::Struct(parts) = entry.data_type() else { return false };
    let is = |name: &str, fits: fn(&DataType) -> bool| parts.find(name).is_some_and(|(_, part)| fits(part.data_type()));
    is("key", is_text) && is("value", is_text_or_bytes)
}

/// What is sent for one row.
#[derive(Debug)]
pub(super) struct Record<'a> {
    pub(super) topic: &'a str,
    /// None: the partitioner chooses, by the key if there is one.
    pub(super) partition: Option<i32>,
    pub(super) key: Option<&'a [u8]>,
    /// None: a tombstone.
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: Option<OwnedHeaders>,
}

/// The columns of one batch of rows.
pub(super) struct Rows<'a> {
    topic: TopicOfRow<'a>,
    partition: Option<&'a Int32Array>,
    key: Option<Bytes<'a>>,
    value: Bytes<'a>,
    headers: Option<Headers<'a>>,
}

enum TopicOfRow<'a> {
    Named(&'a str),
    Column(Text<'a>),
}

impl<'a> Rows<'a> {
    /// The record of row `row`, which must be there.
    pub(super) fn record(&self, row: usize) -> Result<Record<'a>> {
        let topic = match self.topic {
            TopicOfRow::Named(topic) => topic,
            TopicOfRow::Column(topics) => topics.at(row).ok_or_else(|| {
                Error::new(ErrorKind::BadInput, "a row for Kafka names no topic: its column `topic` is null").with_hint(
                    "leave such rows out, or name the topic of all rows with `KafkaSink::topic` (option `topic`)",
                )
            })?,
        };
        let partition = self.partition.and_then(|array| array.is_valid(row).then(|| array.value(row)));
        if let Some(partition) = partition.filter(|partition| *partition < 0) {
            return Err(no_partition(topic, partition));
        }
        let headers = match &self.headers {
            Some(headers) => headers.at(row, topic)?,
            None => None,
        };
        let key = self.key.and_then(|key| key.at(row));
        Ok(Record { topic, partition, key, value: self.value.at(row), headers })
    }
}

/// A row names a partition that is not there.
pub(super) fn no_partition(topic: &str, partition: i32) -> Error {
    Error::new(
        ErrorKind::BadInput,
        format!("a row is for partition {partition} of topic `{topic}`, which has no such partition"),
    )
    .with_hint("add partitions to the topic, correct the column `partition`, or leave it out: then the key decides")
}

#[derive(Debug, Clone, Copy)]
enum Text<'a> {
    Utf8(&'a StringArray),
    Large(&'a LargeStringArray),
    View(&'a StringViewArray),
}

impl<'a> Text<'a> {
    fn of(array: &'a ArrayRef) -> Option<Self> {
        match array.data_type() {
            DataType::Utf8 => array.as_string_opt().map(Text::Utf8),
            DataType::LargeUtf8 => array.as_string_opt().map(Text::Large),
            DataType::Utf8View => array.as_string_view_opt().map(Text::View),
            _ => None,
        }
    }

    fn at(self, row: usize) -> Option<&'a str> {
        match self {
            Text::Utf8(array) => array.is_valid(row).then(|| array.value(row)),
            Text::Large(array) => array.is_valid(row).then(|| array.value(row)),
            Text::View(array) => array.is_valid(row).then(|| array.value(row)),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Bytes<'a> {
    Text(Text<'a>),
    Binary(&'a BinaryArray),
    Large(&'a LargeBinaryArray),
    View(&'a BinaryViewArray),
}

impl<'a> Bytes<'a> {
    fn of(array: &'a ArrayRef) -> Option<Self> {
        match array.data_type() {
            DataType::Binary => array.as_binary_opt().map(Bytes::Binary),
            DataType::LargeBinary => array.as_binary_opt().map(Bytes::Large),
            DataType::BinaryView => array.as_binary_view_opt().map(Bytes::View),
            _ => Text::of(array).map(Bytes::Text),
        }
    }

    fn at(self, row: usize) -> Option<&'a [u8]> {
        match self {
            Bytes::Text(text) => text.at(row).map(str::as_bytes),
            Bytes::Binary(array) => array.is_valid(row).then(|| array.value(row)),
            Bytes::Large(array) => array.is_valid(row).then(|| array.value(row)),
            Bytes::View(array) => array.is_valid(row).then(|| array.value(row)),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Headers<'a> {
    lists: &'a ListArray,
    entries: &'a StructArray,
    keys: Text<'a>,
    values: Bytes<'a>,
}

impl<'a> Headers<'a> {
    fn of(array: &'a ArrayRef) -> Option<Self> {
        let lists: &ListArray = array.as_list_opt()?;
        let entries = lists.values().as_struct_opt()?;
        let keys = Text::of(entries.column_by_name("key")?)?;
        let values = Bytes::of(entries.column_by_name("value")?)?;
        Some(Headers { lists, entries, keys, values })
    }

    fn at(&self, row: usize, topic: &str) -> Result<Option<OwnedHeaders>> {
        let offsets = self.lists.value_offsets();
        let (Some(from), Some(to)) = (offsets.get(row), offsets.get(row + 1)) else { return Ok(None) };
        if self.lists.is_null(row) || from >= to {
            return Ok(None);
        }
        let entries = *from as usize..*to as usize;
        let mut headers = OwnedHeaders::new_with_capacity(entries.len());
        for entry in entries {
            let key = if self.entries.is_valid(entry) { self.keys.at(entry) } else { None };
            let key = key.ok_or_else(|| {
                Error::new(ErrorKind::BadInput, format!("a header of a row for topic `{topic}` has no key"))
                    .with_hint("leave such entries out of the column `headers`")
            })?;
            headers = headers.insert(Header { key, value: self.values.at(entry) });
        }
        Ok(Some(headers))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{BinaryBuilder, Int64Array, ListBuilder, StringBuilder, StructBuilder};
    use arrow::compute::cast;
    use arrow::datatypes::{Field, Fields};
    use rdkafka::message::Headers as _;

    use super::*;

    fn schema(columns: &[(&str, DataType)]) -> Schema {
        Schema::new(columns.iter().map(|(name, kind)| Field::new(*name, kind.clone(), true)).collect::<Vec<_>>())
    }

    fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
    }

    fn text(values: &[Option<&str>]) -> ArrayRef {
        Arc::new(StringArray::from(values.to_vec()))
    }

    fn header_fields(value: DataType) -> Fields {
        Fields::from(vec![Field::new("key", DataType::Utf8, true), Field::new("value", value, true)])
    }

    fn headers_type(value: DataType) -> DataType {
        DataType::List(Arc::new(Field::new("item", DataType::Struct(header_fields(value)), true)))
    }

    #[test]
    fn columns_are_found_by_name_and_others_left_out() {
        let all = schema(&[
            ("offset", DataType::Int64),
            ("headers", headers_type(DataType::Binary)),
            ("value", DataType::BinaryView),
            ("topic", DataType::Utf8View),
            ("partition", DataType::Int32),
            ("key", DataType::LargeUtf8),
        ]);
        let found = Columns::find(&all, None, true).unwrap();
        let expected =
            Columns { topic: Topic::Column(3), partition: Some(4), key: Some(5), value: 2, headers: Some(1) };
        assert_eq!(found, expected);
        let found = Columns::find(&all, Some("out"), false).unwrap();
        assert_eq!(found, Columns { topic: Topic::Named("out".to_owned()), headers: None, ..expected });
        let found = Columns::find(&schema(&[("value", DataType::Utf8)]), Some("out"), true).unwrap();
        assert_eq!((found.key, found.partition, found.headers), (None, None, None));
        let text = schema(&[("value", DataType::Utf8), ("headers", headers_type(DataType::Utf8))]);
        assert_eq!(Columns::find(&text, Some("out"), true).unwrap().headers, Some(1));
    }

    #[test]
    fn what_cannot_be_sent_is_said_with_the_way_out() {
        use DataType::{Int32, Int64, Utf8};
        let value = ("value", Utf8);
        for (columns, topic, wanted) in [
            (vec![("key", Utf8)], Some("out"), "writes the column `value`"),
            (vec![("value", Int64)], Some("out"), "column `value` is of type Int64"),
            (vec![value.clone(), ("key", Int32)], Some("out"), "takes text or bytes there"),
            (vec![value.clone(), ("partition", Int64)], Some("out"), "takes a 32-bit integer there"),
            (vec![value.clone(), ("headers", Utf8)], Some("out"), "list of structs"),
            (vec![value.clone(), ("headers", headers_type(Int64))], Some("out"), "list of structs"),
            (vec![value.clone(), ("topic", Int32)], None, "column `topic` is of type Int32"),
            (vec![value], None, "given no topic, and the rows have no column `topic`"),
        ] {
            let error = Columns::find(&schema(&columns), topic, true).unwrap_err();
            assert!(error.message().contains(wanted), "{error}");
            assert_eq!(error.kind(), ErrorKind::InvalidQuery);
        }
        let error = Columns::find(&schema(&[("value", Utf8)]), None, true).unwrap_err();
        let hint = error.hint().unwrap();
        assert!(hint.contains("`KafkaSink::topic`") && hint.contains("column `topic`"), "{error}");
    }

    #[test]
    fn every_type_of_text_and_bytes_is_read_and_null_is_not_empty() {
        let values = text(&[Some("ab"), Some(""), None]);
        for kind in [
            DataType::Utf8,
            DataType::LargeUtf8,
            DataType::Utf8View,
            DataType::Binary,
            DataType::LargeBinary,
            DataType::BinaryView,
        ] {
            let array = cast(&values, &kind).unwrap();
            let rows = batch(vec![("key", Arc::clone(&array)), ("value", array)]);
            let columns = Columns::find(&rows.schema(), Some("out"), true).unwrap();
            let rows = columns.of(&rows).unwrap();
            for (row, expected) in [Some(&b"ab"[..]), Some(&b""[..]), None].into_iter().enumerate() {
                let record = rows.record(row).unwrap();
                assert_eq!((record.topic, record.key, record.value), ("out", expected, expected), "{kind}");
                assert!(record.partition.is_none() && record.headers.is_none());
            }
        }
    }

    #[test]
    fn each_row_may_name_topic_and_partition() {
        let partitions: ArrayRef = Arc::new(Int32Array::from(vec![Some(3), None, Some(-1), Some(0)]));
        let topics = text(&[Some("a"), Some("b"), Some("c"), None]);
        let rows = batch(vec![("value", Arc::clone(&topics)), ("topic", topics), ("partition", partitions)]);
        let columns = Columns::find(&rows.schema(), None, true).unwrap();
        let rows = columns.of(&rows).unwrap();
        let record = rows.record(0).unwrap();
        assert_eq!((record.topic, record.partition), ("a", Some(3)));
        assert_eq!(rows.record(1).unwrap().partition, None);
        let error = rows.record(2).unwrap_err();
        assert!(error.message().contains("partition -1 of topic `c`"), "{error}");
        let error = rows.record(3).unwrap_err();
        assert!(error.message().contains("names no topic") && error.kind() == ErrorKind::BadInput, "{error}");
    }

    type Entry<'a> = (Option<&'a str>, Option<&'a [u8]>);

    fn headers(lists: &[Option<Vec<Entry<'_>>>]) -> ArrayRef {
        let fields = header_fields(DataType::Binary);
        let mut builder = ListBuilder::new(StructBuilder::from_fields(fields, 4));
        for list in lists {
            for (key, value) in list.iter().flatten() {
                let entry = builder.values();
                entry.field_builder::<StringBuilder>(0).unwrap().append_option(*key);
                entry.field_builder::<BinaryBuilder>(1).unwrap().append_option(*value);
                entry.append(true);
            }
            builder.append(list.is_some());
        }
        Arc::new(builder.finish())
    }

    #[test]
    fn headers_keep_their_order_and_their_nulls() {
        let lists = headers(&[
            None,
            Some(vec![]),
            Some(vec![(Some("a"), Some(&b"1"[..])), (Some("b"), None), (Some("a"), Some(&b""[..]))]),
            Some(vec![(None, Some(&b"x"[..]))]),
        ]);
        let values = text(&[Some("v"); 4]);
        // Cut out of a larger batch, as limits and slices do.
        let rows = batch(vec![("value", values), ("headers", lists)]).slice(1, 3);
        let columns = Columns::find(&rows.schema(), Some("out"), true).unwrap();
        let rows = columns.of(&rows).unwrap();
        assert!(rows.record(0).unwrap().headers.is_none(), "an empty list is no headers");
        let record = rows.record(1).unwrap();
        let found: Vec<_> = record.headers.as_ref().unwrap().iter().map(|header| (header.key, header.value)).collect();
        assert_eq!(found, [("a", Some(&b"1"[..])), ("b", None), ("a", Some(&b""[..]))]);
        let error = rows.record(2).unwrap_err();
        assert!(error.message().contains("topic `out` has no key"), "{error}");
    }

    #[test]
    fn other_rows_than_announced_are_an_error() {
        let columns = Columns::find(&schema(&[("value", DataType::Utf8)]), Some("out"), true).unwrap();
        let rows = batch(vec![("value", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]);
        assert!(columns.of(&rows).is_err());
    }
}
