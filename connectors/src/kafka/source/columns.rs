//! Messages become Arrow columns.
//!
//! [`Columns`] takes one message after the other and copies what the query reads, and only that, into Arrow's builders. Where
//! a format is declared, the bytes of keys and values are decoded together once a record batch is full, and a record that is
//! not in its format is treated as the user asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{
    Array, ArrayRef, BinaryArray, BinaryBuilder, BooleanArray, Int32Array, Int64Array, ListBuilder, StringBuilder,
    StructArray, StructBuilder, TimestampMicrosecondArray,
};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Fields, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use tidewater::error::{Error, ErrorKind, Result};
use tidewater::sink::{DeadLetter, DeadLetters};
use tidewater::source::ScanRequest;

use super::consume::Message;
use super::settings::{BadRecordPolicy, Settings};
use crate::formats::{Bad, Format};

/// Rows of a record batch.
pub(super) const ROWS: usize = 8192;
/// Bytes of memory for a record batch at most, and one message: far from the 2 GiB that an Arrow column can hold.
const BYTES: usize = 128 << 20;
/// What a row takes at most beside its key, value and headers: the columns of fixed partition_count, and offsets.
const FIXED_BYTES: usize = 64;
const US_PER_MS: i64 = 1000;

/// The type of the column `headers`.
pub(super) fn headers_type() -> DataType {
    DataType::List(Arc::new(Field::new("item", DataType::Struct(header_fields()), true)))
}

fn header_fields() -> Fields {
    vec![Field::new("key", DataType::Utf8, true), Field::new("value", DataType::Binary, true)].into()
}

/// What becomes of the messages of a batch, wherever they are read.
#[derive(Debug)]
pub(super) struct Wanted {
    /// The columns of the source that the query reads, by position.
    pub(super) projection: Vec<usize>,
    /// Their schema.
    pub(super) schema: SchemaRef,
    pub(super) key_format: Option<Format>,
    pub(super) value_format: Option<Format>,
    pub(super) bad_records: BadRecordPolicy,
    /// The source, for dead letters.
    pub(super) source: String,
    /// Records that were not in their format.
    pub(super) malformed: Arc<AtomicU64>,
    /// Whether this scan is the one that emits the dead letters of the batch.
    pub(super) emits_dead_letters: bool,
}

const KEY: usize = 0;
const VALUE: usize = 1;
const TOPIC: usize = 2;
const PARTITION: usize = 3;
const OFFSET: usize = 4;
const TIMESTAMP: usize = 5;
const TIMESTAMP_TYPE: usize = 6;
const HEADERS: usize = 7;

impl Wanted {
    pub(super) fn new(
        settings: &Settings,
        scan: &ScanRequest,
        malformed: Arc<AtomicU64>,
        emits_dead_letters: bool,
    ) -> Self {
        Wanted {
            projection: scan.projection.clone(),
            schema: Arc::clone(&scan.schema),
            key_format: settings.key_format.clone(),
            value_format: settings.value_format.clone(),
            bad_records: settings.bad_records,
            source: settings.description(),
            malformed,
            emits_dead_letters,
        }
    }

    fn reads(&self, column: usize) -> bool {
        self.projection.contains(&column)
    }

    /// The formats of what is read.
    fn formats(&self) -> (Option<&Format>, Option<&Format>) {
        let of = |column, format: &'_ Option<Format>| self.reads(column).then_some(format.as_ref()).flatten().is_some();
        let (key, value) = (of(KEY, &self.key_format), of(VALUE, &self.value_format));
        (self.key_format.as_ref().filter(|_| key), self.value_format.as_ref().filter(|_| value))
    }

    /// Whether records can turn out to be bad here.
    pub(super) fn decodes(&self) -> bool {
        let (key, value) = self.formats();
        key.is_some() || value.is_some()
    }
}

type HeadersBuilder = ListBuilder<StructBuilder>;

/// The columns of one record batch while it grows.
pub(super) struct Columns {
    wanted: Arc<Wanted>,
    reads: [bool; HEADERS + 1],
    /// With so much memory they are full.
    most: usize,
    rows: usize,
    bytes: usize,
    keys: BinaryBuilder,
    values: BinaryBuilder,
    topics: StringBuilder,
    partitions: Vec<i32>,
    offsets: Vec<i64>,
    timestamps_us: Vec<Option<i64>>,
    timestamp_types: Vec<i32>,
    headers: HeadersBuilder,
}

/// The rows of a full batch, and those that could not be read.
pub(super) struct Finished {
    pub(super) rows: RecordBatch,
    pub(super) dead_letters: Option<RecordBatch>,
}

impl Columns {
    /// Empty ones, which are full with about `most` bytes.
    pub(super) fn new(wanted: Arc<Wanted>, most: usize) -> Self {
        let mut reads = [false; HEADERS + 1];
        for (column, reads) in reads.iter_mut().enumerate() {
            *reads = wanted.reads(column);
        }
        if wanted.decodes() {
            // A record that cannot be read is named by its place, and a dead letter carries all of it.
            for column in [TOPIC, PARTITION, OFFSET] {
                reads[column] = true;
            }
            if wanted.bad_records == BadRecordPolicy::DeadLetter {
                reads = [true; HEADERS + 1];
            }
        }
        let header = StructBuilder::from_fields(header_fields(), 0);
        Columns {
            wanted,
            reads,
            most: most.min(BYTES),
            rows: 0,
            bytes: 0,
            keys: BinaryBuilder::new(),
            values: BinaryBuilder::new(),
            topics: StringBuilder::new(),
            partitions: vec![],
            offsets: vec![],
            timestamps_us: vec![],
            timestamp_types: vec![],
            headers: ListBuilder::new(header).with_field(Field::new("item", DataType::Struct(header_fields()), true)),
        }
    }

    /// How many more messages fit; one does in any case.
    pub(super) fn room(&self) -> usize {
        if self.rows > 0 && self.memory() >= self.most { 0 } else { ROWS - self.rows }
    }

    /// Memory held, in bytes, about: arrays double when they grow.
    pub(super) fn memory(&self) -> usize {
        2 * (self.bytes + self.rows * FIXED_BYTES)
    }

    /// Takes a message of this partition.
    pub(super) fn push(&mut self, topic: &str, partition: i32, message: Message<'_>) {
        self.rows += 1;
        if self.reads[KEY] {
            let key = message.key();
            self.bytes += key.map_or(0, <[u8]>::len);
            self.keys.append_option(key);
        }
        if self.reads[VALUE] {
            let value = message.value();
            self.bytes += value.map_or(0, <[u8]>::len);
            self.values.append_option(value);
        }
        if self.reads[TOPIC] {
            self.bytes += topic.len();
            self.topics.append_value(topic);
        }
        if self.reads[PARTITION] {
            self.partitions.push(partition);
        }
        if self.reads[OFFSET] {
            self.offsets.push(message.offset());
        }
        if self.reads[TIMESTAMP] || self.reads[TIMESTAMP_TYPE] {
            let (time_ms, kind) = message.timestamp();
            self.timestamps_us.push(time_ms.map(|time_ms| time_ms.saturating_mul(US_PER_MS)));
            self.timestamp_types.push(kind);
        }
        if self.reads[HEADERS] {
            self.push_headers(message);
        }
    }

    fn push_headers(&mut self, message: Message<'_>) {
        let mut any = false;
        for (name, value) in message.headers() {
            any = true;
            self.bytes += name.len() + value.map_or(0, <[u8]>::len);
            let header = self.headers.values();
            if let Some(names) = header.field_builder::<StringBuilder>(0) {
                names.append_value(name);
            }
            if let Some(values) = header.field_builder::<BinaryBuilder>(1) {
                values.append_option(value);
            }
            header.append(true);
        }
        // As in Spark: a record without headers has none, not an empty list of them.
        self.headers.append(any);
    }

    /// The rows so far; the columns are empty again.
    ///
    /// # Errors
    ///
    /// A record is not in its format, and the query is to fail then; or a registry of schemas did not answer.
    pub(super) fn finish(&mut self) -> Result<Finished> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        let timestamps = std::mem::take(&mut self.timestamps_us);
        let raw = Raw {
            keys: self.keys.finish(),
            values: self.values.finish(),
            topics: Arc::new(self.topics.finish()),
            partitions: Int32Array::from(std::mem::take(&mut self.partitions)),
            offsets: Int64Array::from(std::mem::take(&mut self.offsets)),
            timestamps: TimestampMicrosecondArray::from(timestamps).with_timezone("UTC"),
            timestamp_types: Int32Array::from(std::mem::take(&mut self.timestamp_types)),
            headers: self.reads[HEADERS].then(|| Arc::new(self.headers.finish())),
        };
        let (key_format, value_format) = self.wanted.formats();
        let mut bad = vec![];
        let keys = decode(key_format, &raw.keys, "key", &mut bad)?;
        let values = decode(value_format, &raw.values, "value", &mut bad)?;
        let columns = self.wanted.projection.iter().map(|column| -> Result<ArrayRef> {
            Ok(match *column {
                KEY => Arc::clone(&keys),
                VALUE => Arc::clone(&values),
                TOPIC => Arc::clone(&raw.topics) as ArrayRef,
                PARTITION => Arc::new(raw.partitions.clone()),
                OFFSET => Arc::new(raw.offsets.clone()),
                TIMESTAMP => Arc::new(raw.timestamps.clone()),
                TIMESTAMP_TYPE => Arc::new(raw.timestamp_types.clone()),
                HEADERS => {
                    Arc::clone(raw.headers.as_ref().ok_or_else(|| Error::internal("headers were not read"))?) as _
                }
                other => return Err(Error::internal(format!("the Kafka source has no column {other}"))),
            })
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.wanted.schema), columns, &options)?;
        if bad.is_empty() {
            return Ok(Finished { rows, dead_letters: None });
        }
        self.treat(rows, bad, &raw)
    }

    /// What the user wants done with records that are not in their format.
    fn treat(&self, rows: RecordBatch, bad: Vec<(&'static str, Bad)>, raw: &Raw) -> Result<Finished> {
        let mut is_bad = vec![false; rows.num_rows()];
        for (_, bad) in &bad {
            if let Some(is_bad) = is_bad.get_mut(bad.row) {
                *is_bad = true;
            }
        }
        let count = is_bad.iter().filter(|bad| **bad).count() as u64;
        match self.wanted.bad_records {
            BadRecordPolicy::Fail => Err(bad.first().map_or_else(
                || Error::internal("a record is bad for no reason"),
                |(part, bad)| raw.failure(part, bad),
            )),
            BadRecordPolicy::Null => {
                self.wanted.malformed.fetch_add(count, Ordering::Relaxed);
                Ok(Finished { rows, dead_letters: None })
            }
            BadRecordPolicy::DeadLetter => {
                let mut letters = DeadLetters::new(self.wanted.source.as_str());
                if self.wanted.emits_dead_letters {
                    self.wanted.malformed.fetch_add(count, Ordering::Relaxed);
                    let mut reported = None;
                    for (part, bad) in &bad {
                        // A record whose key and value are both bad is one dead letter.
                        if reported.replace(bad.row) != Some(bad.row) {
                            raw.report(part, bad, &mut letters);
                        }
                    }
                }
                let good = BooleanArray::from_iter(is_bad.iter().map(|bad| Some(!bad)));
                let dead_letters = if self.wanted.emits_dead_letters { Some(letters.finish()?) } else { None };
                Ok(Finished { rows: filter_record_batch(&rows, &good)?, dead_letters })
            }
        }
    }
}

/// Decodes `bytes`, if they have a format. Bad ones are added in the order of rows.
fn decode(
    format: Option<&Format>,
    bytes: &BinaryArray,
    part: &'static str,
    bad: &mut Vec<(&'static str, Bad)>,
) -> Result<ArrayRef> {
    let Some(format) = format else { return Ok(Arc::new(bytes.clone())) };
    let decoded = format.decode(bytes)?;
    bad.extend(decoded.bad.into_iter().map(|bad| (part, bad)));
    bad.sort_by_key(|(_, bad)| bad.row);
    Ok(Arc::new(decoded.values))
}

/// The columns as they came. Those that are not read are empty.
struct Raw {
    keys: BinaryArray,
    values: BinaryArray,
    topics: Arc<arrow::array::StringArray>,
    partitions: Int32Array,
    offsets: Int64Array,
    timestamps: TimestampMicrosecondArray,
    timestamp_types: Int32Array,
    headers: Option<Arc<arrow::array::ListArray>>,
}

impl Raw {
    fn place(&self, row: usize) -> (&str, i32, i64) {
        let topic = if row < self.topics.len() { self.topics.value(row) } else { "" };
        let partition = self.partitions.values().get(row).copied().unwrap_or(-1);
        (topic, partition, self.offsets.values().get(row).copied().unwrap_or(-1))
    }

    fn failure(&self, part: &str, bad: &Bad) -> Error {
        let (topic, partition, offset) = self.place(bad.row);
        Error::new(
            ErrorKind::BadInput,
            format!(
                "the {part} of the record at offset {offset} of partition {partition} of topic `{topic}` cannot be read: {}",
                bad.error
            ),
        )
        .with_hint(
            "fix the producer, and skip the record with another policy for bad records: `BadRecordPolicy::Null` or \
             `BadRecordPolicy::DeadLetter` (option `badRecords`)",
        )
    }

    fn report(&self, part: &str, bad: &Bad, letters: &mut DeadLetters) {
        let (topic, partition, offset) = self.place(bad.row);
        let bytes = |column: &'_ BinaryArray| bad.row < column.len() && column.is_valid(bad.row);
        let has_time = bad.row < self.timestamps.len() && self.timestamps.is_valid(bad.row);
        let error = format!("the {part} cannot be read: {}", bad.error);
        let headers = self.headers_of(bad.row);
        let letter = DeadLetter::new(&error)
            .topic(topic)
            .partition(partition)
            .offset(offset)
            .timestamp_us(has_time.then(|| self.timestamps.value(bad.row)))
            .key(bytes(&self.keys).then(|| self.keys.value(bad.row)))
            .value(bytes(&self.values).then(|| self.values.value(bad.row)))
            .headers(&headers);
        letters.push(letter);
    }

    fn headers_of(&self, row: usize) -> Vec<(String, Option<Vec<u8>>)> {
        let headers = self.headers.as_ref().filter(|headers| row < headers.len() && headers.is_valid(row));
        let Some(headers) = headers.map(|headers| headers.value(row)) else { return vec![] };
        let Some(headers) = headers.as_any().downcast_ref::<StructArray>() else { return vec![] };
        let names = headers.column(0).as_any().downcast_ref::<arrow::array::StringArray>();
        let values = headers.column(1).as_any().downcast_ref::<BinaryArray>();
        let (Some(names), Some(values)) = (names, values) else { return vec![] };
        names
            .iter()
            .zip(values.iter())
            .map(|(name, value)| (name.unwrap_or_default().to_owned(), value.map(<[u8]>::to_vec)))
            .collect()
    }
}
