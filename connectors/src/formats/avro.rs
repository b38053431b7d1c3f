//! Avro records in Confluent's framing to columns, many at a time.
//!
//! ```text
//! 00  00 00 00 07  02 0a …
//! ──  ───────────  ───────
//!     writer's id  body
//! ```
//!
//! Messages of one writer are decoded together, each writer's with a decoder of their own, and put back in order.
//! Arrow's decoder could change schemas by itself, but only by ending a batch, and messages of two writers may take
//! turns. It takes a stream of bytes, so after every message it is asked whether it has seen exactly one more record,
//! and all bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, StructArray, UInt64Array};
use arrow::compute::{cast, concat, take};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, SchemaRef};
use arrow_avro::codec::Tz;
use arrow_avro::reader::{Decoder, ReaderBuilder};
use arrow_avro::schema::{AvroSchema, CONFLUENT_MAGIC, Fingerprint, FingerprintAlgorithm, SchemaStore};
use tidewater::error::{Error, Result};

use super::registry::SchemaRegistry;
use super::{Bad, Decoded, find_bad, short};

/// The framing: a byte and the writer's id.
const FRAME_BYTES: usize = 5;

/// A message and the row it is in.
type Message<'a> = (usize, &'a [u8]);

/// Decodes messages as records of one schema.
#[derive(Debug)]
pub(super) struct AvroReader {
    schema: AvroSchema,
    /// What the schema becomes, without the marks that Arrow leaves on fields: they differ from writer to writer.
    data_type: DataType,
    registry: SchemaRegistry,
}

impl AvroReader {
    pub(super) fn new(schema: &str, registry: SchemaRegistry) -> Result<Self> {
        let reader = AvroSchema::new(schema.to_owned());
        let wrong = |why: &str| {
            Error::invalid(format!("the Avro schema of the reader cannot be used: {why}"))
                .with_hint("give the schema of a record that has fields, as JSON")
        };
        let columns = decoder(0, schema, Some(&reader), 1).map_err(|why| wrong(&why))?.schema();
        if columns.fields().is_empty() {
            return Err(wrong("it has no fields"));
        }
        let fields: Fields = columns.fields().iter().map(plain_field).collect();
        Ok(AvroReader { schema: reader, data_type: DataType::Struct(fields), registry })
    }

    pub(super) fn data_type(&self) -> &DataType {
        &self.data_type
    }

    pub(super) fn decode(&self, messages: &BinaryArray) -> Result<Decoded> {
        let mut bad = vec![];
        let mut by_writer: BTreeMap<u32, Vec<Message>> = BTreeMap::new();
        for (row, message) in messages.iter().enumerate() {
            let Some(message) = message else { continue };
            match writer_id(message) {
                Ok(id) => by_writer.entry(id).or_default().push((row, message)),
                Err(why) => bad.push(Bad { row, error: why.to_owned() }),
            }
        }
        // The records, writer by writer, and where in them the record of each row is.
        let mut records: Vec<StructArray> = vec![];
        let mut places: Vec<Option<u64>> = vec![None; messages.len()];
        let mut next = 0;
        for (id, of_writer) in by_writer {
            let good = self.decode_of_writer(id, of_writer, &mut bad, &mut records)?;
            for row in good {
                if let Some(place) = places.get_mut(row) {
                    *place = Some(next);
                }
                next += 1;
            }
        }
        bad.sort_unstable_by_key(|bad| bad.row);
        let values = match (records.as_slice(), &self.data_type) {
            ([all], _) if all.len() == messages.len() => all.clone(),
            ([], DataType::Struct(fields)) => StructArray::new_null(fields.clone(), messages.len()),
            _ => in_order(&records, places)?,
        };
        Ok(Decoded { values, bad })
    }

    /// Adds the records of one writer to `records`, and what is wrong to `bad`. Gives the rows of the records.
    fn decode_of_writer(
        &self,
        id: u32,
        mut messages: Vec<Message>,
        bad: &mut Vec<Bad>,
        records: &mut Vec<StructArray>,
    ) -> Result<Vec<usize>> {
        let writer = match self.registry.find(id)? {
            Ok(writer) => writer,
            Err(why) => {
                bad.extend(messages.iter().map(|(row, _)| Bad { row: *row, error: why.clone() }));
                return Ok(vec![]);
            }
        };
        let decode = |part: &[Message]| self.decode_together(id, &writer, part);
        let error = match decode(&messages) {
            Ok(decoded) => {
                records.push(decoded);
                return Ok(messages.iter().map(|(row, _)| *row).collect());
            }
            Err(error) => error,
        };
        if let Err(why) = decoder(id, &writer, Some(&self.schema), 1) {
            let error = format!("records of schema {id} cannot be read as the reader's schema: {why}");
            bad.extend(messages.iter().map(|(row, _)| Bad { row: *row, error: error.clone() }));
            return Ok(vec![]);
        }
        let mut found = find_bad(&messages, error, &decode).into_iter().peekable();
        let mut place = 0;
        messages.retain(|(row, _)| {
            let is_bad = found.next_if(|bad| bad.row == place);
            place += 1;
            let good = is_bad.is_none();
            bad.extend(is_bad.map(|bad| Bad { row: *row, error: bad.error }));
            good
        });
        if !messages.is_empty() {
            records.push(decode(&messages).map_err(Error::internal)?);
        }
        Ok(messages.iter().map(|(row, _)| *row).collect())
    }

    /// All messages, or what is wrong with one.
    fn decode_together(&self, id: u32, writer: &str, messages: &[Message]) -> Result<StructArray, String> {
        let mut decoder = decoder(id, writer, Some(&self.schema), messages.len())?;
        for (_, message) in messages {
            feed(&mut decoder, message)?;
        }
        let rows = decoder.flush().map_err(|e| short(&e.to_string()))?;
        let Some(rows) = rows.filter(|rows| rows.num_rows() == messages.len()) else {
            return Err("there are not as many records as messages".to_owned());
        };
        let values = cast(&StructArray::from(rows), &self.data_type).map_err(|e| short(&e.to_string()))?;
        values.as_struct_opt().cloned().ok_or_else(|| "the records are not structs".to_owned())
    }
}

/// Gives one message to the decoder; an error if it is not exactly one record.
fn feed(decoder: &mut Decoder, message: &[u8]) -> Result<(), String> {
    let room = decoder.capacity();
    let read = decoder.decode(message);
    match (read, room - decoder.capacity().min(room)) {
        (Ok(read), 1) if read == message.len() => Ok(()),
        // A record that takes no bytes, null in all its fields, say: the decoder only goes on if there are more, so it
        // is shown one, which it must not take.
        (Ok(FRAME_BYTES), 0) if message.len() == FRAME_BYTES => match decoder.decode(&[0]) {
            Ok(0) if decoder.capacity() + 1 == room => Ok(()),
            _ => Err("the record ends early".to_owned()),
        },
        (Ok(_), 0) => Err("the record ends early".to_owned()),
        (Err(why), 0) => Err(short(&why.to_string())),
        _ => Err("something follows the record".to_owned()),
    }
}

fn writer_id(message: &[u8]) -> Result<u32, &'static str> {
    let Some((frame, _)) = message.split_first_chunk::<FRAME_BYTES>() else {
        return Err("it is too short to be an Avro record with the id of its schema");
    };
    let [magic, id @ ..] = *frame;
    if [magic] == CONFLUENT_MAGIC {
        Ok(u32::from_be_bytes(id))
    } else {
        Err("it does not begin with a zero byte, as an Avro record with the id of its schema does")
    }
}

/// The records where their rows are, null elsewhere.
fn in_order(records: &[StructArray], places: Vec<Option<u64>>) -> Result<StructArray> {
    let parts: Vec<&dyn Array> = records.iter().map(|part| part as &dyn Array).collect();
    let ordered: ArrayRef = take(&concat(&parts)?, &UInt64Array::from(places), None)?;
    ordered.as_struct_opt().cloned().ok_or_else(|| Error::internal("records are not structs"))
}

/// What an Avro schema is in Arrow, with Arrow's marks on its fields.
pub(super) fn arrow_schema(schema: &str) -> Result<SchemaRef, String> {
    Ok(decoder(0, schema, None, 1)?.schema())
}

/// A decoder of at most so many `records` of this writer; an error if the writer's schema does not fit the reader's.
fn decoder(id: u32, writer: &str, reader: Option<&AvroSchema>, records: usize) -> Result<Decoder, String> {
    let mut store = SchemaStore::new_with_type(FingerprintAlgorithm::Id);
    store.set(Fingerprint::Id(id), AvroSchema::new(writer.to_owned())).map_err(|e| short(&e.to_string()))?;
    let mut builder = ReaderBuilder::new().with_writer_schema_store(store).with_tz(Tz::Utc).with_batch_size(records);
    if let Some(reader) = reader {
        builder = builder.with_reader_schema(reader.clone());
    }
    builder.build_decoder().map_err(|e| short(&e.to_string()))
}

/// The field without marks, and with text for an enum.
fn plain_field(field: &FieldRef) -> FieldRef {
    Arc::new(Field::new(field.name(), plain_type(field.data_type()), field.is_nullable()))
}

fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Dictionary(_, value) => value.as_ref().clone(),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(plain_field).collect()),
        DataType::List(item) => DataType::List(plain_field(item)),
        DataType::Map(entries, sorted) => DataType::Map(plain_field(entries), *sorted),
        other => other.clone(),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    /// Avro's whole number.
    pub(crate) fn long(number: i64) -> Vec<u8> {
        let mut rest = ((number << 1) ^ (number >> 63)).cast_unsigned();
        let mut bytes = vec![];
        while rest >= 0x80 {
            bytes.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
        bytes
    }

    pub(crate) fn text(text: &str) -> Vec<u8> {
        [long(text.len() as i64), text.as_bytes().to_vec()].concat()
    }

    /// Some parts of a record as a message.
    pub(crate) fn message(id: u32, parts: &[Vec<u8>]) -> Vec<u8> {
        [vec![0], id.to_be_bytes().to_vec(), parts.concat()].concat()
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{Float64Type, Int64Type};

    use super::testing::{long, message, text};
    use super::*;

    const ITEM: &str = r#"{"name":"item","type":"string"}"#;
    const PRICE: &str = r#"{"name":"price","type":"double"}"#;
    const COLOUR: &str = r#"{"name":"colour","default":"RED",
        "type":{"type":"enum","name":"Colour","symbols":["RED","BLUE"]}}"#;

    fn record(name: &str, fields: &[&str]) -> String {
        format!(r#"{{"type":"record","name":"{name}","fields":[{}]}}"#, fields.join(","))
    }

    fn order(fields: &[&str]) -> String {
        let mut all = vec![r#"{"name":"id","type":"long"}"#];
        all.extend(fields);
        record("Order", &all)
    }

    /// Writer 1 knows no price, writer 2 no colour and one thing more than readers know.
    fn reader() -> AvroReader {
        let registry = SchemaRegistry::of([
            (1, order(&[ITEM])),
            (2, order(&[r#"{"name":"note","type":["null","string"]}"#, ITEM, PRICE])),
            (3, order(&[ITEM, PRICE, COLOUR])),
            (4, record("Other", &[ITEM])),
        ]);
        let price = r#"{"name":"price","type":["null","double"],"default":null}"#;
        AvroReader::new(&order(&[ITEM, price, COLOUR]), registry).unwrap()
    }

    fn decode(reader: &AvroReader, messages: &[Option<Vec<u8>>]) -> Decoded {
        let array = BinaryArray::from_iter(messages.iter().map(Option::as_deref));
        let decoded = reader.decode(&array).unwrap();
        assert_eq!((decoded.values.len(), decoded.values.data_type()), (messages.len(), reader.data_type()));
        for (row, message) in messages.iter().enumerate() {
            let is_bad = decoded.bad.iter().any(|bad| bad.row == row);
            assert_eq!(decoded.values.is_null(row), is_bad || message.is_none(), "row {row}");
        }
        decoded
    }

    fn ids(decoded: &Decoded) -> Vec<Option<i64>> {
        decoded.values.column(0).as_primitive::<Int64Type>().iter().collect()
    }

    fn of_1(id: i64) -> Vec<u8> {
        message(1, &[long(id), text("tea")])
    }

    #[test]
    fn writers_take_turns() {
        let of_2 = message(2, &[long(-7), long(1), text("gift"), text("cup"), 2.5_f64.to_le_bytes().to_vec()]);
        let of_3 = message(3, &[long(300), text("pot"), 9.0_f64.to_le_bytes().to_vec(), long(1)]);
        let messages = [Some(of_1(1)), Some(of_2.clone()), None, Some(of_1(2)), Some(of_3), Some(of_2)];
        let decoded = decode(&reader(), &messages);
        assert!(decoded.bad.is_empty(), "{:?}", decoded.bad);
        assert_eq!(ids(&decoded), [Some(1), Some(-7), None, Some(2), Some(300), Some(-7)]);
        let text = |column: usize| decoded.values.column(column).as_string::<i32>().iter().collect::<Vec<_>>();
        assert_eq!(text(1), [Some("tea"), Some("cup"), None, Some("tea"), Some("pot"), Some("cup")]);
        let prices: Vec<_> = decoded.values.column(2).as_primitive::<Float64Type>().iter().collect();
        assert_eq!(prices, [None, Some(2.5), None, None, Some(9.0), Some(2.5)]);
        assert_eq!(text(3), [Some("RED"), Some("RED"), None, Some("RED"), Some("BLUE"), Some("RED")]);

        assert_eq!(ids(&decode(&reader(), &[Some(of_1(5)), Some(of_1(6))])), [Some(5), Some(6)]);
        decode(&reader(), &[]);
        decode(&reader(), &[None]);
    }

    #[test]
    fn bad_ones_do_not_take_their_neighbours_along() {
        let zeros = [of_1(1), vec![0, 0]].concat();
        for (bad, why) in [
            (vec![], "too short"),
            (vec![0, 0, 0, 0], "too short"),
            (b"{\"id\":1}".to_vec(), "zero byte"),
            (message(9, &[long(1), text("tea")]), "id 9"),
            (message(4, &[text("tea")]), "schema 4 cannot be read"),
            (message(1, &[]), "ends early"),
            (message(1, &[long(1)]), ""),
            (message(1, &[long(1), long(3), b"te".to_vec()]), "ends early"),
            (message(1, &[vec![0x80; 11]]), ""),
            (message(1, &[long(1), long(1), vec![0xff]]), ""),
            (message(1, &[long(1), text("tea"), vec![7]]), "follows"),
            (message(3, &[long(1), text("tea"), vec![0; 8], long(2)]), ""),
            (zeros, "follows"),
            ([of_1(1), of_1(2)].concat(), "follows"),
            ([of_1(1), message(2, &[])].concat(), "follows"),
        ] {
            let decoded = decode(&reader(), &[Some(of_1(1)), Some(bad.clone()), Some(of_1(3))]);
            assert_eq!(decoded.bad.iter().map(|bad| bad.row).collect::<Vec<_>>(), [1], "{bad:?}: {:?}", decoded.bad);
            assert!(decoded.bad[0].error.contains(why), "{bad:?}: {}", decoded.bad[0].error);
            assert_eq!(ids(&decoded), [Some(1), None, Some(3)], "{bad:?}");
            assert_eq!(decode(&reader(), &[Some(bad)]).bad.len(), 1);
        }
        let mut many: Vec<_> = (0..3000).map(|id| Some(of_1(id))).collect();
        for row in [0, 1500, 1501, 2999] {
            many[row] = Some(message(1, &[long(1), text("tea"), vec![7]]));
        }
        let decoded = decode(&reader(), &many);
        assert_eq!(decoded.bad.iter().map(|bad| bad.row).collect::<Vec<_>>(), [0, 1500, 1501, 2999]);
        assert_eq!(ids(&decoded)[1..4], [Some(1), Some(2), Some(3)]);
    }

    #[test]
    fn a_record_may_take_no_bytes() {
        let registry = SchemaRegistry::of([(1, record("R", &[r#"{"name":"n","type":"null"}"#]))]);
        let fields = [r#"{"name":"a","type":["null","long"],"default":null}"#];
        let reader = AvroReader::new(&record("R", &fields), registry).unwrap();
        let empty = Some(message(1, &[]));
        let decoded = decode(&reader, &[empty.clone(), empty.clone(), Some(message(1, &[vec![0]])), empty]);
        assert_eq!(decoded.bad.iter().map(|bad| bad.row).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn writers_may_differ_within_a_nested_record() {
        let place = |fields: &[&str]| format!(r#"{{"name":"place","type":{}}}"#, record("Place", fields));
        let (town, code) = (r#"{"name":"town","type":"string"}"#, r#"{"name":"code","type":"long","default":-1}"#);
        let (one, two) = (record("R", &[&place(&[town])]), record("R", &[&place(&[town, code])]));
        let reader = AvroReader::new(&two, SchemaRegistry::of([(1, &one), (2, &two)])).unwrap();
        let messages = [Some(message(1, &[text("Bern")])), Some(message(2, &[text("Thun"), long(3600)]))];
        let decoded = decode(&reader, &messages);
        assert!(decoded.bad.is_empty(), "{:?}", decoded.bad);
        let codes = decoded.values.column(0).as_struct().column(1).as_primitive::<Int64Type>().values().to_vec();
        assert_eq!(codes, [-1, 3600]);
    }

    #[test]
    fn a_reader_needs_a_record() {
        let unknown = record("R", &[r#"{"name":"a","type":"x"}"#]);
        for schema in ["{", r#""long""#, &record("R", &[]), &unknown] {
            let error = AvroReader::new(schema, SchemaRegistry::of::<&str>([])).unwrap_err();
            assert!(error.message().contains("Avro schema of the reader"), "{error}");
        }
    }
}
