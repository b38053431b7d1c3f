//! What the bytes of a message say: JSON or Avro, and back.
//!
//! To a source of messages, keys and values are bytes. A [`Format`] makes columns of them before the query sees them;
//! the functions do the same within a query:
//!
//! ```text
//! bytes  ── Format::json, Format::avro ──▶ struct       a bad message is named, its neighbours are not touched
//! text   ── from_json ───────────────────▶ struct       what is malformed becomes null, as in Spark
//! struct ── to_json, to_avro ────────────▶ text, bytes
//! ```
//!
//! Messages are decoded many at a time. Arrow's decoder of Avro, having met a bad one, has lost the good ones before it,
//! so these are looked for from outside: parts of the messages are decoded for themselves, smaller and smaller ones, until
//! the bad stand alone. Of JSON, each message is decoded for itself.

#[cfg(feature = "avro")]
mod avro;

mod ddl;

mod functions;

mod json;

#[cfg(feature = "avro")]
mod registry;

#[cfg(feature = "avro")]
mod to_avro;

#[cfg(feature = "avro")]
use std::sync::Arc;

use arrow::array::{BinaryArray, StructArray};
use arrow::datatypes::{DataType, Fields};
use tidewater::error::Result;

#[cfg(feature = "avro")]
use self::avro::AvroReader;
pub use self::functions::{from_json, register_functions, to_json};
use self::json::{Conflicts, JsonReader};
#[cfg(feature = "avro")]
pub use self::registry::SchemaRegistry;
#[cfg(feature = "avro")]
pub use self::to_avro::to_avro;

/// How the bytes of a message become columns.
///
/// ```
/// use arrow::datatypes::{DataType, Field};
/// use tidewater_connectors::formats::Format;
///
/// let order = Format::json(vec![
///     Field::new("id", DataType::Int64, false),
///     Field::new("item", DataType::Utf8, true),
/// ]);
/// assert!(matches!(order.data_type(), DataType::Struct(_)));
/// ```
#[derive(Debug, Clone)]
pub struct Format(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Json(JsonReader),
    #[cfg(feature = "avro")]
    Avro(Arc<AvroReader>),
}

impl Format {
    /// One JSON object per message, UTF-8, with these fields. Fields count by name; further ones are passed over,
    /// missing ones are null. A message is bad if it holds anything but one object, if a value is not what its field is
    /// declared to be, or if a field that is not nullable is null or missing.
    ///
    /// Anything where text is declared is its JSON text. A number in quotes is the number. A whole number has neither
    /// point nor exponent; a decimal is rounded half up; what is out of a type's range is bad. A timestamp is text in the
    /// manner of ISO 8601 (`2026-01-31T09:26:56.123Z`; a space for the `T`, and the time or the offset left out, are fine
    /// too: without offset, it is in the zone of the field), or a whole number of seconds, counted from 1970. Bytes are
    /// text in base 64.
    pub fn json(fields: impl Into<Fields>) -> Self {
        Format(Kind::Json(JsonReader::new(fields.into(), Conflicts::Bad)))
    }

    /// Avro records in Confluent's framing: a zero byte, the id of the writer's schema in four bytes, and the record.
    /// Each is read as `reader_schema`, the JSON of a record's schema, by Avro's rules: fields count by name or alias,
    /// further ones are passed over, missing ones have their default, numbers are widened. The names of the two
    /// records, with their namespaces, must be the same or aliases. A schema that refers to other schemas of the
    /// registry is not supported.
    ///
    /// An enum becomes text, `timestamp-micros` a timestamp in UTC, a union of more than null and one type a union.
    #[cfg(feature = "avro")]
    pub fn avro(reader_schema: &str, registry: SchemaRegistry) -> Result<Self> {
        Ok(Format(Kind::Avro(Arc::new(AvroReader::new(reader_schema, registry)?))))
    }

    /// The type of the column that messages become: a struct.
    pub fn data_type(&self) -> &DataType {
        match &self.0 {
            Kind::Json(json) => json.data_type(),
            #[cfg(feature = "avro")]
            Kind::Avro(avro) => avro.data_type(),
        }
    }

    /// Decodes messages, for sources. What is wrong with a message is in [`Decoded::bad`]; an error is for what is
    /// no message's fault: the schema registry is away, or a type cannot be read at all.
    pub fn decode(&self, messages: &BinaryArray) -> Result<Decoded> {
        match &self.0 {
            Kind::Json(json) => json.decode(messages.iter().collect()),
            #[cfg(feature = "avro")]
            Kind::Avro(avro) => avro.decode(messages),
        }
    }
}

/// The decoded messages, and those that could not be decoded.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Decoded {
    /// One value per message; null where the message was null or is bad.
    pub values: StructArray,
    /// The bad messages, by row.
    pub bad: Vec<Bad>,
}

/// A message that could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bad {
    /// Which of the messages.
    pub row: usize,
    /// What is wrong with it.
    pub error: String,
}

#[cfg(feature = "avro")]
/// Into how many parts messages are split that cannot be decoded together. The more, the fewer times a good one is
/// decoded again.
const PARTS: usize = 16;

#[cfg(feature = "avro")]
/// The bad ones of some `messages` that cannot be decoded together because of `error`. The rows are places in
/// `messages`.
fn find_bad<M, D>(messages: &[M], error: String, decode: &D) -> Vec<Bad>
where
    D: Fn(&[M]) -> Result<StructArray, String>,
{
    let mut bad = vec![];
    search(messages, 0, error, decode, &mut bad);
    bad
}

#[cfg(feature = "avro")]
fn search<M, D>(messages: &[M], first: usize, error: String, decode: &D, bad: &mut Vec<Bad>)
where
    D: Fn(&[M]) -> Result<StructArray, String>,
{
    if messages.len() <= 1 {
        bad.push(Bad { row: first, error });
        return;
    }
    let size = messages.len().div_ceil(PARTS);
    for (number, part) in messages.chunks(size).enumerate() {
        if let Err(error) = decode(part) {
            search(part, first + number * size, error, decode, bad);
        }
    }
}

/// How much of a decoder's complaint is kept: it may quote the whole message.
const ERROR_CHARS: usize = 300;

fn short(error: &str) -> String {
    match error.char_indices().nth(ERROR_CHARS) {
        Some((end, _)) => format!("{}…", error.get(..end).unwrap_or_default()),
        None => error.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #[cfg(feature = "avro")]
    use std::cell::Cell;

    use super::*;

    #[cfg(feature = "avro")]
    #[test]
    fn bad_ones_are_found_without_decoding_everything_again_and_again() {
        for (count, bad) in [(1, vec![0]), (2, vec![1]), (5000, vec![0, 17, 18, 4999]), (40, (0..40).collect())] {
            let messages: Vec<usize> = (0..count).collect();
            let decoded = Cell::new(0);
            let decode = |part: &[usize]| match part.iter().find(|message| bad.contains(message)) {
                Some(message) => Err(format!("{message} is bad")),
                None => {
                    decoded.set(decoded.get() + part.len());
                    Ok(StructArray::new_null(Fields::empty(), part.len()))
                }
            };
            let found = find_bad(&messages, "at first".to_owned(), &decode);
            assert_eq!(found.iter().map(|bad| bad.row).collect::<Vec<_>>(), bad);
            if count > 1 {
                assert!(found.iter().all(|bad| bad.error == format!("{} is bad", bad.row)));
            }
            assert!(decoded.get() <= count, "a part that was decoded is not looked at again");
        }
    }

    #[test]
    fn long_complaints_are_cut() {
        assert_eq!(short("brief"), "brief");
        assert_eq!(short(&"é".repeat(1000)).chars().count(), ERROR_CHARS + 1);
    }
}
