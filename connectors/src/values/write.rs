//! Values as JSON where Arrow's own encoders differ from Spark's.
//!
//! A floating-point number that JSON has no spelling for is text (`"NaN"`, `"Infinity"`, `"-Infinity"`), not null; bytes
//! are base 64; an entry of a map whose value is null is kept.

use std::fmt::Write;

use arrow::array::{Array, ArrayAccessor, AsArray, MapArray};
use arrow::datatypes::{DataType, FieldRef, Float16Type, Float32Type, Float64Type};
use arrow::error::ArrowError;
use arrow::json::writer::{Encoder, EncoderFactory, EncoderOptions, NullableEncoder, make_encoder};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Writes the types above.
#[derive(Debug)]
pub(crate) struct JsonValues;

impl EncoderFactory for JsonValues {
    fn make_default_encoder<'a>(
        &self,
        field: &'a FieldRef,
        array: &'a dyn Array,
        options: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let encoder: Box<dyn Encoder + 'a> = match array.data_type() {
            DataType::Float16 => {
                let values = array.as_primitive::<Float16Type>();
                Box::new(Floats(move |row, text: &mut String| {
                    float(values.value(row).to_f64(), values.value(row), text)
                }))
            }
            DataType::Float32 => {
                let values = array.as_primitive::<Float32Type>();
                Box::new(Floats(move |row, text: &mut String| float(values.value(row).into(), values.value(row), text)))
            }
            DataType::Float64 => {
                let values = array.as_primitive::<Float64Type>();
                Box::new(Floats(move |row, text: &mut String| float(values.value(row), values.value(row), text)))
            }
            DataType::Binary => Box::new(Bytes(array.as_binary::<i32>())),
            DataType::LargeBinary => Box::new(Bytes(array.as_binary::<i64>())),
            DataType::BinaryView => Box::new(Bytes(array.as_binary_view())),
            DataType::FixedSizeBinary(_) => Box::new(Bytes(array.as_fixed_size_binary())),
            DataType::Map(_, _) => Box::new(Entries::new(field, array.as_map(), options)?),
            _ => return Ok(None),
        };
        Ok(Some(NullableEncoder::new(encoder, array.nulls().cloned())))
    }
}

struct Floats<F>(F);

impl<F: Fn(usize, &mut String)> Encoder for Floats<F> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        let mut text = String::new();
        (self.0)(row, &mut text);
        out.extend_from_slice(text.as_bytes());
    }
}

/// `value` as text of its own precision, which `wide` gives.
fn float(wide: f64, value: impl std::fmt::Debug, text: &mut String) {
    match wide {
        _ if wide.is_nan() => text.push_str("\"NaN\""),
        f64::INFINITY => text.push_str("\"Infinity\""),
        f64::NEG_INFINITY => text.push_str("\"-Infinity\""),
        // The shortest text that gives the same number again, `1e300` too. Writing to text cannot fail.
        _ => {
            let _ = write!(text, "{value:?}");
        }
    }
}

struct Bytes<A>(A);

impl<'a, A: ArrayAccessor<Item = &'a [u8]>> Encoder for Bytes<A> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        out.push(b'"');
        out.extend_from_slice(STANDARD.encode(self.0.value(row)).as_bytes());
        out.push(b'"');
    }
}

struct Entries<'a> {
    map: &'a MapArray,
    keys: NullableEncoder<'a>,
    values: NullableEncoder<'a>,
}

impl<'a> Entries<'a> {
    fn new(field: &'a FieldRef, map: &'a MapArray, options: &'a EncoderOptions) -> Result<Self, ArrowError> {
        let key_type = map.keys().data_type();
        if !matches!(key_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) {
            return Err(ArrowError::JsonError(format!("the keys of a JSON object are text, not {key_type}")));
        }
        let keys = make_encoder(field, map.keys(), options)?;
        let values = make_encoder(field, map.values(), options)?;
        Ok(Entries { map, keys, values })
    }
}

impl Encoder for Entries<'_> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        let offsets = self.map.value_offsets();
        let at = |row: usize| offsets.get(row).and_then(|offset| usize::try_from(*offset).ok()).unwrap_or_default();
        out.push(b'{');
        for (count, entry) in (at(row)..at(row + 1)).enumerate() {
            if count > 0 {
                out.push(b',');
            }
            self.keys.encode(entry, out);
            out.push(b':');
            if self.values.is_null(entry) {
                out.extend_from_slice(b"null");
            } else {
                self.values.encode(entry, out);
            }
        }
        out.push(b'}');
    }
}
