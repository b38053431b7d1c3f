//! Builders of columns that take values one by one.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, ArrowPrimitiveType, BinaryBuilder, BooleanBuilder, FixedSizeBinaryBuilder, NullBuilder, PrimitiveBuilder,
    StringBuilder,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{
    DataType, Date32Type, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, DurationMicrosecondType,
    DurationMillisecondType, DurationNanosecondType, DurationSecondType, Float32Type, Float64Type, Int8Type, Int16Type,
    Int32Type, Int64Type, Time32MillisecondType, Time32SecondType, Time64MicrosecondType, Time64NanosecondType,
    TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::error::ArrowError;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::json::{Kind, Value, quote};
use super::nested::{Lists, Maps, Structs};
use super::text::{self, Zone};

/// A column that grows. Each call adds one value, null if it is an error.
pub(crate) trait Column: Send {
    fn append_null(&mut self);

    /// Adds what the text says.
    fn append_text(&mut self, text: &str) -> Result<(), String>;

    /// Adds a value of a JSON document.
    fn append_json(&mut self, value: Value<'_>) -> Result<(), String>;

    /// All values since the last call.
    fn finish(&mut self) -> Result<ArrayRef, ArrowError>;
}

/// A column of this type; an error if there is none.
pub(crate) fn column(data_type: &DataType) -> Result<Box<dyn Column>, String> {
    use TimeUnit::{Microsecond, Millisecond, Nanosecond, Second};
    macro_rules! whole {
        ($($t:ident $arrow:ident $number:ty),*) => {
            match data_type {
                $(DataType::$t => {
                    let parse = |text: &str| text.parse::<$number>().ok();
                    return Ok(scalars::<$arrow>(data_type, parse, parse));
                })*
                _ => {}
            }
        };
    }
    whole!(
        Int8 Int8Type i8,
        Int16 Int16Type i16,
        Int32 Int32Type i32,
        Int64 Int64Type i64,
        UInt8 UInt8Type u8,
        UInt16 UInt16Type u16,
        UInt32 UInt32Type u32,
        UInt64 UInt64Type u64
    );
    Ok(match data_type {
        DataType::Null => Box::new(Nulls(NullBuilder::new())),
        DataType::Boolean => Box::new(Booleans(BooleanBuilder::new())),
        DataType::Float32 => scalars::<Float32Type>(data_type, text::float, text::float),
        DataType::Float64 => scalars::<Float64Type>(data_type, text::float, text::float),
        DataType::Decimal32(precision, scale) => {
            let (p, s) = (*precision, *scale);
            let parse = move |t: &str| i32::try_from(text::decimal(t, p, s)?.to_i128()?).ok();
            scalars::<Decimal32Type>(data_type, parse, parse)
        }
        DataType::Decimal64(precision, scale) => {
            let (p, s) = (*precision, *scale);
            let parse = move |t: &str| i64::try_from(text::decimal(t, p, s)?.to_i128()?).ok();
            scalars::<Decimal64Type>(data_type, parse, parse)
        }
        DataType::Decimal128(precision, scale) => {
            let (p, s) = (*precision, *scale);
            let parse = move |t: &str| text::decimal(t, p, s)?.to_i128();
            scalars::<Decimal128Type>(data_type, parse, parse)
        }
        DataType::Decimal256(precision, scale) => {
            let (p, s) = (*precision, *scale);
            let parse = move |t: &str| text::decimal(t, p, s);
            scalars::<Decimal256Type>(data_type, parse, parse)
        }
        DataType::Date32 => scalars::<Date32Type>(data_type, text::date, |_| None),
        DataType::Time32(Second) => scalars::<Time32SecondType>(data_type, time32(Second), |_| None),
        DataType::Time32(Millisecond) => scalars::<Time32MillisecondType>(data_type, time32(Millisecond), |_| None),
        DataType::Time64(Microsecond) => scalars::<Time64MicrosecondType>(data_type, time64(Microsecond), |_| None),
        DataType::Time64(Nanosecond) => scalars::<Time64NanosecondType>(data_type, time64(Nanosecond), |_| None),
        DataType::Duration(unit) => {
            let unit = *unit;
            let parse = move |t: &str| text::in_unit(text::duration(t)?, unit);
            let number = |t: &str| t.parse().ok();
            match unit {
                Second => scalars::<DurationSecondType>(data_type, parse, number),
                Millisecond => scalars::<DurationMillisecondType>(data_type, parse, number),
                Microsecond => scalars::<DurationMicrosecondType>(data_type, parse, number),
                Nanosecond => scalars::<DurationNanosecondType>(data_type, parse, number),
            }
        }
        DataType::Timestamp(unit, zone) => {
            let unit = *unit;
            let zone = match zone {
                None => Zone::UTC,
                Some(name) => Zone::parse(name).ok_or_else(|| format!("`{name}` is not a time zone"))?,
            };
            let parse = move |t: &str| text::instant_in_unit(text::timestamp(t, zone)?.0, unit);
            // As in Spark, a number counts seconds.
            let number = move |t: &str| t.parse::<i64>().ok()?.checked_mul(text::per_second(unit));
            match unit {
                Second => scalars::<TimestampSecondType>(data_type, parse, number),
                Millisecond => scalars::<TimestampMillisecondType>(data_type, parse, number),
                Microsecond => scalars::<TimestampMicrosecondType>(data_type, parse, number),
                Nanosecond => scalars::<TimestampNanosecondType>(data_type, parse, number),
            }
        }
        DataType::Utf8 => Box::new(Texts(StringBuilder::new())),
        DataType::Binary => Box::new(Bytes(BinaryBuilder::new())),
        DataType::FixedSizeBinary(length) => Box::new(FixedBytes(FixedSizeBinaryBuilder::new(*length), *length)),
        DataType::Struct(fields) => Box::new(Structs::new(fields)?),
        DataType::List(item) => Box::new(Lists::new(item)?),
        DataType::Map(entries, sorted) => Box::new(Maps::new(entries, *sorted)?),
        // Built as their plain kin.
        DataType::Float16 => cast_from(DataType::Float32, data_type)?,
        DataType::Date64 => cast_from(DataType::Date32, data_type)?,
        DataType::LargeUtf8 | DataType::Utf8View => cast_from(DataType::Utf8, data_type)?,
        DataType::LargeBinary | DataType::BinaryView => cast_from(DataType::Binary, data_type)?,
        DataType::Dictionary(_, value) => cast_from(value.as_ref().clone(), data_type)?,
        DataType::LargeList(item) => cast_from(DataType::List(Arc::clone(item)), data_type)?,
        other => return Err(format!("text cannot be read as {other}")),
    })
}

fn time32(unit: TimeUnit) -> impl Fn(&str) -> Option<i32> + Send {
    move |text| i32::try_from(text::in_unit(i128::from(text::time_of_day(text)?), unit)?).ok()
}

fn time64(unit: TimeUnit) -> impl Fn(&str) -> Option<i64> + Send {
    move |text| text::in_unit(i128::from(text::time_of_day(text)?), unit)
}

pub(super) fn unfit(value: &str, data_type: &DataType) -> String {
    format!("{} is not a valid {data_type}", quote(value))
}

type Parse<N> = Box<dyn Fn(&str) -> Option<N> + Send>;

struct Scalars<T: ArrowPrimitiveType> {
    values: PrimitiveBuilder<T>,
    data_type: DataType,
    of_text: Parse<T::Native>,
    of_number: Parse<T::Native>,
}

fn scalars<T: ArrowPrimitiveType>(
    data_type: &DataType,
    of_text: impl Fn(&str) -> Option<T::Native> + Send + 'static,
    of_number: impl Fn(&str) -> Option<T::Native> + Send + 'static,
) -> Box<dyn Column> {
    Box::new(Scalars::<T> {
        values: PrimitiveBuilder::new().with_data_type(data_type.clone()),
        data_type: data_type.clone(),
        of_text: Box::new(of_text),
        of_number: Box::new(of_number),
    })
}

impl<T: ArrowPrimitiveType> Scalars<T> {
    fn add(&mut self, value: Option<T::Native>, said: &str) -> Result<(), String> {
        self.values.append_option(value);
        if value.is_some() { Ok(()) } else { Err(unfit(said, &self.data_type)) }
    }
}

impl<T: ArrowPrimitiveType> Column for Scalars<T> {
    fn append_null(&mut self) {
        self.values.append_null();
    }

    fn append_text(&mut self, text: &str) -> Result<(), String> {
        let value = (self.of_text)(text);
        self.add(value, text)
    }

    fn append_json(&mut self, value: Value<'_>) -> Result<(), String> {
        match value.kind() {
            Kind::Null => {
                self.values.append_null();
                Ok(())
            }
            Kind::Number => {
                let number = (self.of_number)(value.raw());
                self.add(number, value.raw())
            }
            Kind::Text => self.append_text(&value.as_text()),
            Kind::Boolean | Kind::Object | Kind::Array => self.add(None, value.raw()),
        }
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(self.values.finish()))
    }
}

struct Nulls(NullBuilder);

impl Column for Nulls {
    fn append_null(&mut self) {
        self.0.append_null();
    }

    fn append_text(&mut self, text: &str) -> Result<(), String> {
        self.0.append_null();
        Err(unfit(text, &DataType::Null))
    }

    fn append_json(&mut self, value: Value<'_>) -> Result<(), String> {
        self.0.append_null();
        if value.kind() == Kind::Null { Ok(()) } else { Err(unfit(value.raw(), &DataType::Null)) }
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(self.0.finish()))
    }
}

struct Booleans(BooleanBuilder);

impl Column for Booleans {
    fn append_null(&mut self) {
        self.0.append_null();
    }

    fn append_text(&mut self, text: &str) -> Result<(), String> {
        let value = text::boolean(text);
        self.0.append_option(value);
        if value.is_some() { Ok(()) } else { Err(unfit(text, &DataType::Boolean)) }
    }

    fn append_json(&mut self, value: Value<'_>) -> Result<(), String> {
        match value.kind() {
            Kind::Boolean => self.append_text(value.raw()),
            Kind::Null => {
                self.0.append_null();
                Ok(())
            }
            _ => {
                self.0.append_null();
                Err(unfit(value.raw(), &DataType::Boolean))
            }
        }
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(self.0.finish()))
    }
}

struct Texts(StringBuilder);

impl Column for Texts {
    fn append_null(&mut self) {
        self.0.append_null();
    }

    fn append_text(&mut self, text: &str) -> Result<(), String> {
        self.0.append_value(text);
        Ok(())
    }

    fn append_json(&mut self, value: Value<'_>) -> Result<(), String> {
        match value.kind() {
            Kind::Null => self.0.append_null(),
            _ => self.0.append_value(value.as_text()),
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(self.0.finish()))
    }
}

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The bytes that a text in base 64 says.
fn bytes(value: Value<'_>) -> Option<Vec<u8>> {
    if value.kind() == Kind::Text { BASE64.decode(value.as_text().as_bytes()).ok() } else { None }
}

struct Bytes(BinaryBuilder);

impl Column for Bytes {
    fn append_null(&mut self) {
        self.0.append_null();
    }

    fn append_text(&mut self, text: &str) -> Result<(), String> {
        self.0.append_value(text);
        Ok(())
    }

    fn append_json(&mut self, value: Value<'_>) -> Result<(), String> {
        let bytes = bytes(value);
        self.0.append_option(bytes.as_deref());
        if bytes.is_some() || value.kind() == Kind::Null { Ok(()) } else { Err(unfit(value.raw(), &DataType::Binary)) }
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(self.0.finish()))
    }
}

struct FixedBytes(FixedSizeBinaryBuilder, i32);

impl Column for FixedBytes {
    fn append_null(&mut self) {
        self.0.append_null();
    }

    fn append_text(&mut self, text: &str) -> Result<(), String> {
        if self.0.append_value(text).is_ok() {
            return Ok(());
        }
        self.0.append_null();
        Err(unfit(text, &DataType::FixedSizeBinary(self.1)))
    }

    fn append_json(&mut self, value: Value<'_>) -> Result<(), String> {
        if bytes(value).is_some_and(|bytes| self.0.append_value(bytes).is_ok()) {
            return Ok(());
        }
        self.0.append_null();
        if value.kind() == Kind::Null { Ok(()) } else { Err(unfit(value.raw(), &DataType::FixedSizeBinary(self.1))) }
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(self.0.finish()))
    }
}

/// A column that is converted as a whole in the end.
struct Cast {
    inner: Box<dyn Column>,
    to: DataType,
}

fn cast_from(from: DataType, to: &DataType) -> Result<Box<dyn Column>, String> {
    Ok(Box::new(Cast { inner: column(&from)?, to: to.clone() }))
}

impl Column for Cast {
    fn append_null(&mut self) {
        self.inner.append_null();
    }

    fn append_text(&mut self, text: &str) -> Result<(), String> {
        self.inner.append_text(text)
    }

    fn append_json(&mut self, value: Value<'_>) -> Result<(), String> {
        self.inner.append_json(value)
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let options = CastOptions { safe: false, ..Default::default() };
        cast_with_options(&self.inner.finish()?, &self.to, &options)
    }
}
