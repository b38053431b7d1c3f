//! Records that a source could not read, written down with the reason and their place.
//!
//! A record that is not what it was declared to be may fail the batch. Where the user wants the query to go on without
//! losing it, it becomes a dead letter: a row for the query's second sink, from which people or programs can fix it and
//! send it again.
//!
//! ```text
//! source ─▶ [a record that cannot be read] ─ DeadLetters ─▶ BatchContext::dead_letter ─▶ second sink ─┐
//!        └▶ all other records ─▶ plan ─────────────────────────────────────────────────▶ first sink ─┴─▶ commits/N
//! ```

use std::sync::{Arc, LazyLock};

use arrow::array::{
    ArrayRef, BinaryBuilder, Int32Array, Int64Array, ListArray, StringArray, StringBuilder, StructArray,
    TimestampMicrosecondArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;

use crate::error::Result;

static HEADER: LazyLock<Fields> = LazyLock::new(|| {
    Fields::from(vec![Field::new("key", DataType::Utf8, true), Field::new("value", DataType::Binary, true)])
});

static HEADERS: LazyLock<FieldRef> =
    LazyLock::new(|| Arc::new(Field::new("item", DataType::Struct(HEADER.clone()), true)));

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let timestamp = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("error", DataType::Utf8, false),
        Field::new("source", DataType::Utf8, false),
        Field::new("source_topic", DataType::Utf8, true),
        Field::new("source_partition", DataType::Int32, true),
        Field::new("source_offset", DataType::Int64, true),
        Field::new("source_timestamp", timestamp, true),
        Field::new("key", DataType::Binary, true),
        Field::new("value", DataType::Binary, true),
        Field::new("headers", DataType::List(Arc::clone(&HEADERS)), true),
    ]))
});

/// The columns of a record that could not be read.
///
/// | Column | Type | |
/// |---|---|---|
/// | `error` | Utf8 | why it could not be read; never null |
/// | `source` | Utf8 | [`Source::description`](crate::source::Source::description); never null |
/// | `source_topic` | Utf8 | where it lies, as far as the source has such places |
/// | `source_partition` | Int32 | |
/// | `source_offset` | Int64 | |
/// | `source_timestamp` | Timestamp (µs, UTC) | |
/// | `key`, `value` | Binary | its bytes, as they came |
/// | `headers` | List of Struct (`key` Utf8, `value` Binary) | its own, then those that say why it is here |
///
/// The added headers are `tidewater.error`, `tidewater.topic`, `tidewater.partition` and `tidewater.offset`, as text, the last
/// three as far as they are known. So a sink that writes key, value and headers alone carries them too. In a record that
/// was a dead letter before, the last ones of a name are the newest.
pub fn dead_letter_schema() -> SchemaRef {
    Arc::clone(&SCHEMA)
}

/// A record that could not be read. What is not known, or what the source does not have, is left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter<'a> {
    /// Why it could not be read.
    pub error: &'a str,
    /// Its topic, or whatever the source calls the like.
    pub topic: Option<&'a str>,
    /// Its partition in the topic.
    pub partition: Option<i32>,
    /// Its place in the partition.
    pub offset: Option<i64>,
    /// Its time, in microseconds since 1970.
    pub timestamp_us: Option<i64>,
    /// The bytes of its key.
    pub key: Option<&'a [u8]>,
    /// Its bytes.
    pub value: Option<&'a [u8]>,
    /// Its own headers.
    pub headers: &'a [(String, Option<Vec<u8>>)],
}

impl<'a> DeadLetter<'a> {
    /// A record of which nothing is known but why it could not be read.
    pub fn new(error: &'a str) -> Self {
        DeadLetter { error, ..Self::default() }
    }

    /// Its topic, or whatever the source calls the like.
    #[must_use]
    pub fn topic(mut self, topic: impl Into<Option<&'a str>>) -> Self {
        self.topic = topic.into();
        self
    }

    /// Its partition in the topic.
    #[must_use]
    pub fn partition(mut self, partition: impl Into<Option<i32>>) -> Self {
        self.partition = partition.into();
        self
    }

    /// Its place in the partition.
    #[must_use]
    pub fn offset(mut self, offset: impl Into<Option<i64>>) -> Self {
        self.offset = offset.into();
        self
    }

    /// Its time, in microseconds since 1970.
    #[must_use]
    pub fn timestamp_us(mut self, timestamp_us: impl Into<Option<i64>>) -> Self {
        self.timestamp_us = timestamp_us.into();
        self
    }

    /// The bytes of its key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Option<&'a [u8]>>) -> Self {
        self.key = key.into();
        self
    }

    /// Its bytes.
    #[must_use]
    pub fn value(mut self, value: impl Into<Option<&'a [u8]>>) -> Self {
        self.value = value.into();
        self
    }

    /// Its own headers.
    #[must_use]
    pub fn headers(mut self, headers: &'a [(String, Option<Vec<u8>>)]) -> Self {
        self.headers = headers;
        self
    }
}

/// Collects the dead letters of a source, for [`BatchContext::dead_letter`](crate::batch::BatchContext::dead_letter).
///
/// As in every Arrow array of this kind, a column holds less than 2 GiB: a source finishes its dead letters along with its
/// rows, record batch by record batch.
///
/// ```
/// use tidewater::sink::{DeadLetter, DeadLetters, dead_letter_schema};
///
/// let mut letters = DeadLetters::new("topic orders");
/// let letter = DeadLetter::new("the value is not JSON: it ends within an object");
/// letters.push(letter.topic("orders").partition(3).offset(41).value(b"{\"id\": 7".as_slice()));
/// let rows = letters.finish()?;
/// assert_eq!(rows.num_rows(), 1);
/// assert_eq!(rows.schema(), dead_letter_schema());
/// # Ok::<(), tidewater::error::Error>(())
/// ```
#[derive(Debug)]
pub struct DeadLetters {
    source: String,
    errors: StringBuilder,
    topics: StringBuilder,
    partitions: Vec<Option<i32>>,
    offsets: Vec<Option<i64>>,
    timestamps_us: Vec<Option<i64>>,
    keys: BinaryBuilder,
    values: BinaryBuilder,
    header_names: StringBuilder,
    header_values: BinaryBuilder,
    /// By record: how many headers it has.
    header_counts: Vec<usize>,
}

impl DeadLetters {
    /// None so far. `source` is the [description](crate::source::Source::description) of the source they are of.
    pub fn new(source: impl Into<String>) -> Self {
        DeadLetters {
            source: source.into(),
            errors: StringBuilder::new(),
            topics: StringBuilder::new(),
            partitions: vec![],
            offsets: vec![],
            timestamps_us: vec![],
            keys: BinaryBuilder::new(),
            values: BinaryBuilder::new(),
            header_names: StringBuilder::new(),
            header_values: BinaryBuilder::new(),
            header_counts: vec![],
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.header_counts.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.header_counts.is_empty()
    }

    /// Adds one.
    pub fn push(&mut self, letter: DeadLetter<'_>) {
        let DeadLetter { error, topic, partition, offset, timestamp_us, key, value, headers } = letter;
        self.errors.append_value(error);
        self.topics.append_option(topic);
        self.partitions.push(partition);
        self.offsets.push(offset);
        self.timestamps_us.push(timestamp_us);
        self.keys.append_option(key);
        self.values.append_option(value);
        for (name, value) in headers {
            self.header_names.append_value(name);
            self.header_values.append_option(value.as_deref());
        }
        let reasons = [
            ("tidewater.error", Some(error.to_owned())),
            ("tidewater.topic", topic.map(str::to_owned)),
            ("tidewater.partition", partition.map(|partition| partition.to_string())),
            ("tidewater.offset", offset.map(|offset| offset.to_string())),
        ];
        let mut count = headers.len();
        for (name, text) in reasons {
            if let Some(text) = text {
                self.header_names.append_value(name);
                self.header_values.append_value(text);
                count += 1;
            }
        }
        self.header_counts.push(count);
    }

    /// The rows, with the columns of [`dead_letter_schema`].
    pub fn finish(mut self) -> Result<RecordBatch> {
        let sources = StringArray::from_iter_values(std::iter::repeat_n(&self.source, self.len()));
        let header: Vec<ArrayRef> = vec![Arc::new(self.header_names.finish()), Arc::new(self.header_values.finish())];
        let headers = Arc::new(StructArray::try_new(HEADER.clone(), header, None)?);
        let offsets = OffsetBuffer::from_lengths(self.header_counts);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.errors.finish()),
            Arc::new(sources),
            Arc::new(self.topics.finish()),
            Arc::new(Int32Array::from(self.partitions)),
            Arc::new(Int64Array::from(self.offsets)),
            Arc::new(TimestampMicrosecondArray::from(self.timestamps_us).with_timezone("UTC")),
            Arc::new(self.keys.finish()),
            Arc::new(self.values.finish()),
            Arc::new(ListArray::try_new(Arc::clone(&HEADERS), offsets, headers, None)?),
        ];
        Ok(RecordBatch::try_new(dead_letter_schema(), columns)?)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};

    use super::*;

    /// The headers of a row, values as text.
    fn headers(rows: &RecordBatch, row: usize) -> Vec<(String, Option<String>)> {
        let headers = rows.column(8).as_list::<i32>().value(row);
        let headers = headers.as_struct();
        let (names, values) = (headers.column(0).as_string::<i32>(), headers.column(1).as_binary::<i32>());
        let text = |bytes: Option<&[u8]>| bytes.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
        names.iter().zip(values).map(|(name, value)| (name.unwrap().to_owned(), text(value))).collect()
    }

    fn header(name: &str, value: Option<&str>) -> (String, Option<String>) {
        (name.to_owned(), value.map(str::to_owned))
    }

    #[test]
    fn all_that_is_known_of_a_record_is_in_its_row() {
        let own = [("trace".to_owned(), Some(b"7".to_vec())), ("empty".to_owned(), None)];
        let mut letters = DeadLetters::new("topic orders");
        letters.push(DeadLetter {
            error: "not JSON",
            topic: Some("orders"),
            partition: Some(3),
            offset: Some(41),
            timestamp_us: Some(1_704_067_200_000_001),
            key: Some(b"k"),
            value: Some(b"\xff{"),
            headers: &own,
        });
        assert!(!letters.is_empty());
        let rows = letters.finish().unwrap();
        assert_eq!((rows.schema(), rows.num_rows()), (dead_letter_schema(), 1));
        let texts: Vec<&str> = (0..3).map(|column| rows.column(column).as_string::<i32>().value(0)).collect();
        assert_eq!(texts, ["not JSON", "topic orders", "orders"]);
        assert_eq!(rows.column(3).as_primitive::<Int32Type>().value(0), 3);
        assert_eq!(rows.column(4).as_primitive::<Int64Type>().value(0), 41);
        assert_eq!(rows.column(5).as_primitive::<TimestampMicrosecondType>().value(0), 1_704_067_200_000_001);
        assert_eq!(rows.column(6).as_binary::<i32>().value(0), b"k");
        assert_eq!(rows.column(7).as_binary::<i32>().value(0), b"\xff{");
        let expected = [
            header("trace", Some("7")),
            header("empty", None),
            header("tidewater.error", Some("not JSON")),
            header("tidewater.topic", Some("orders")),
            header("tidewater.partition", Some("3")),
            header("tidewater.offset", Some("41")),
        ];
        assert_eq!(headers(&rows, 0), expected);
    }

    #[test]
    fn what_is_not_known_is_null_and_no_header() {
        let mut letters = DeadLetters::new("files in in/");
        letters.push(DeadLetter { error: "one", offset: Some(0), ..DeadLetter::default() });
        letters.push(DeadLetter { error: "two", ..DeadLetter::default() });
        assert_eq!(letters.len(), 2);
        let rows = letters.finish().unwrap();
        for column in [2, 3, 5, 6, 7] {
            assert_eq!(rows.column(column).null_count(), 2, "column {column}");
        }
        assert_eq!(headers(&rows, 0), [header("tidewater.error", Some("one")), header("tidewater.offset", Some("0"))]);
        assert_eq!(headers(&rows, 1), [header("tidewater.error", Some("two"))]);
    }

    #[test]
    fn none_at_all_are_no_rows() {
        let rows = DeadLetters::new("a source").finish().unwrap();
        assert_eq!((rows.schema(), rows.num_rows()), (dead_letter_schema(), 0));
    }
}
