//! `to_avro`: the rows of a struct as Avro records in Confluent's framing.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, DictionaryArray, Int32Array, ListArray, StringArray,
    StructArray, new_null_array,
};
use arrow::compute::{CastOptions, cast_with_options, filter, is_not_null};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use arrow_avro::schema::{AVRO_ENUM_SYMBOLS_METADATA_KEY, FingerprintStrategy, SCHEMA_METADATA_KEY};
use arrow_avro::writer::WriterBuilder;
use arrow_avro::writer::format::AvroSoeFormat;
use datafusion::common::{exec_datafusion_err, exec_err, internal_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, lit,
};
use datafusion::scalar::ScalarValue;

use super::avro::arrow_schema;

/// A struct as an Avro record in Confluent's framing: a zero byte, `schema_id` in four bytes, the record. Null gives
/// null.
///
/// `schema` is what the registry knows under `schema_id`, the JSON of a record's schema; readers go by it, so it
/// decides what is written. Fields count by name. One that the struct has not is null; one that only the struct has is
/// an error, so that nothing is lost unseen. Values are converted where their type differs (a value that does not fit
/// is an error), text to an enum, too; text does not become a `uuid`, nor anything a union, other than of null and one
/// type.
///
/// Spark's `to_avro` writes the record alone, without framing.
///
/// ```
/// use datafusion::prelude::{col, named_struct, lit};
/// use tidewater_connectors::formats::{SchemaRegistry, to_avro};
///
/// let order = r#"{"type":"record","name":"Order","fields":[{"name":"id","type":"long"}]}"#;
/// let registry = SchemaRegistry::of([(7, order)]);
/// let value = to_avro(named_struct(vec![lit("id"), col("id")]), 7, &registry.schema(7)?).alias("value");
/// # Ok::<(), tidewater::error::Error>(())
/// ```
///
/// In SQL, after [`register_functions`](super::register_functions): `to_avro(struct, 7, '{"type":"record", …}')`.
pub fn to_avro(value: Expr, schema_id: u32, schema: &str) -> Expr {
    udf().call(vec![value, lit(i64::from(schema_id)), lit(schema)])
}

pub(super) fn udf() -> ScalarUDF {
    ScalarUDF::from(ToAvro { signature: Signature::variadic_any(Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ToAvro {
    signature: Signature,
}

impl ScalarUDFImpl for ToAvro {
    fn name(&self) -> &str {
        "to_avro"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Binary)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let [value, _, _] = args.arg_fields else {
            return plan_err!("`to_avro` takes a struct, the id of its schema and the schema");
        };
        let target = Target::of(args.scalar_arguments)?;
        let DataType::Struct(fields) = value.data_type() else {
            return plan_err!("`to_avro` takes a struct, not {}", value.data_type());
        };
        // Encoding an empty batch while the query is planned runs every check of types, so that a type error surfaces
        // before the query starts.
        if let Err(why) = target.encode(&StructArray::new_null(fields.clone(), 0)) {
            return plan_err!("the struct does not fit its Avro schema: {}", why.strip_backtrace());
        }
        Ok(Arc::new(Field::new(self.name(), DataType::Binary, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let literals: Vec<Option<&ScalarValue>> = args
            .args
            .iter()
            .map(|argument| match argument {
                ColumnarValue::Scalar(scalar) => Some(scalar),
                ColumnarValue::Array(_) => None,
            })
            .collect();
        let target = Target::of(&literals)?;
        let Some(value) = args.args.first() else { return internal_err!("`to_avro` without a value") };
        let value = value.to_array(args.number_rows)?;
        let Some(structs) = value.as_struct_opt() else { return internal_err!("`to_avro` of {}", value.data_type()) };
        Ok(ColumnarValue::Array(Arc::new(target.encode(structs)?)))
    }
}

/// What the records are to be.
struct Target {
    id: u32,
    schema: SchemaRef,
}

impl Target {
    /// What the second and third argument say.
    fn of(arguments: &[Option<&ScalarValue>]) -> Result<Self> {
        let literal = |place: usize| arguments.get(place).copied().flatten();
        let id = match literal(1).map(|id| id.cast_to(&DataType::UInt32)) {
            Some(Ok(ScalarValue::UInt32(Some(id)))) => id,
            _ => return plan_err!("the second argument of `to_avro` must be a literal, the id of the schema"),
        };
        let Some(json) = literal(2).and_then(|schema| schema.try_as_str()).flatten() else {
            return plan_err!("the third argument of `to_avro` must be a literal, the schema as JSON");
        };
        let columns = match arrow_schema(json) {
            Ok(columns) => columns,
            Err(why) => return plan_err!("`to_avro` cannot use the Avro schema: {why}"),
        };
        let marks = [(SCHEMA_METADATA_KEY.to_owned(), json.to_owned())].into();
        let schema = Arc::new(Schema::new_with_metadata(columns.fields().clone(), marks));
        Ok(Target { id, schema })
    }

    fn encode(&self, structs: &StructArray) -> Result<BinaryArray> {
        // What is below a null must not be looked at.
        let present = filter(structs, &is_not_null(structs)?)?;
        let columns = columns(present.as_struct(), self.schema.fields())?;
        let options = RecordBatchOptions::new().with_row_count(Some(present.len()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?;

        let failed = |why: String| exec_datafusion_err!("a row cannot be written as Avro: {why}");
        let mut encoder = WriterBuilder::new(self.schema.as_ref().clone())
            .with_fingerprint_strategy(FingerprintStrategy::Id(self.id))
            .build_encoder::<AvroSoeFormat>()
            .map_err(|e| failed(e.to_string()))?;
        encoder.encode(&batch).map_err(|e| failed(e.to_string()))?;
        let records = encoder.flush();

        let mut records = records.iter();
        let mut rows = BinaryBuilder::new();
        for row in 0..structs.len() {
            if structs.is_null(row) {
                rows.append_null();
            } else if let Some(record) = records.next() {
                rows.append_value(record);
            } else {
                return internal_err!("there are fewer Avro records than rows");
            }
        }
        Ok(rows.finish())
    }
}

/// The columns of a struct as these fields.
fn columns(structs: &StructArray, fields: &Fields) -> Result<Vec<ArrayRef>> {
    if let Some(name) = structs.column_names().into_iter().find(|name| fields.find(name).is_none()) {
        return exec_err!("the Avro schema has no field `{name}`");
    }
    fields
        .iter()
        .map(|field| match structs.column_by_name(field.name()) {
            Some(column) => fitted(column, field),
            None if field.is_nullable() => Ok(new_null_array(field.data_type(), structs.len())),
            None => exec_err!("the struct has no `{}`, which is not nullable", field.name()),
        })
        .collect()
}

/// Some values as this field.
fn fitted(values: &ArrayRef, field: &Field) -> Result<ArrayRef> {
    match (field.data_type(), values.data_type()) {
        (DataType::Struct(fields), DataType::Struct(_)) => {
            let structs = values.as_struct();
            let (columns, nulls) = (columns(structs, fields)?, structs.nulls().cloned());
            Ok(Arc::new(StructArray::try_new_with_length(fields.clone(), columns, nulls, structs.len())?))
        }
        (DataType::List(item), DataType::List(_)) => {
            let list = values.as_list::<i32>();
            let (items, nulls) = (fitted(list.values(), item)?, list.nulls().cloned());
            Ok(Arc::new(ListArray::try_new(Arc::clone(item), list.offsets().clone(), items, nulls)?))
        }
        (DataType::Dictionary(_, _), _) => symbols(values, field),
        (other, _) => {
            let options = CastOptions { safe: false, ..CastOptions::default() };
            let cast = cast_with_options(values, other, &options);
            cast.map_err(|e| exec_datafusion_err!("`{}` does not become {other}: {e}", field.name()))
        }
    }
}

/// Text as the places of an enum's symbols.
fn symbols(values: &ArrayRef, field: &Field) -> Result<ArrayRef> {
    let known = field.metadata().get(AVRO_ENUM_SYMBOLS_METADATA_KEY);
    let Some(known) = known.and_then(|json| serde_json::from_str::<Vec<String>>(json).ok()) else {
        return internal_err!("the enum `{}` has no symbols", field.name());
    };
    let texts = fitted(values, &Field::new(field.name(), DataType::Utf8, true))?;
    let mut places = Vec::with_capacity(texts.len());
    for text in texts.as_string::<i32>().iter() {
        let place = text.map(|text| known.iter().position(|symbol| symbol == text));
        places.push(match place {
            None => None,
            Some(Some(place)) => i32::try_from(place).ok(),
            Some(None) => {
                return exec_err!("unknown symbol `{}` of the enum `{}`", text.unwrap_or_default(), field.name());
            }
        });
    }
    let names: ArrayRef = Arc::new(StringArray::from(known));
    Ok(Arc::new(DictionaryArray::try_new(Int32Array::from(places), names)?))
}

#[cfg(test)]
mod tests {
    use arrow::array::TimestampMicrosecondArray;
    use arrow::buffer::NullBuffer;
    use arrow::datatypes::Int64Type;
    use datafusion::prelude::SessionContext;

    use super::super::avro::testing::{long, message, text};
    use super::super::{Format, SchemaRegistry, register_functions};
    use super::*;

    const ORDER: &str = r#"{"type":"record","name":"Order","fields":[
        {"name":"id","type":"long"},
        {"name":"note","type":["null","string"],"default":null},
        {"name":"colour","type":{"type":"enum","name":"Colour","symbols":["RED","BLUE"]}}
    ]}"#;

    async fn sql(query: &str) -> Result<ArrayRef> {
        let ctx = SessionContext::new();
        register_functions(&ctx);
        let rows = ctx.sql(query).await?.collect().await?;
        Ok(Arc::clone(rows[0].column(0)))
    }

    #[tokio::test]
    async fn records_are_what_the_schema_says() {
        // Other order, other types, and no note.
        let row = "named_struct('colour', 'BLUE', 'id', arrow_cast(3, 'Int16'))";
        let written = sql(&format!("SELECT to_avro({row}, 7, '{ORDER}')")).await.unwrap();
        assert_eq!(written.as_binary::<i32>().value(0), message(7, &[long(3), vec![0], long(1)]));
        let row = "named_struct('id', 4, 'note', 'x', 'colour', 'RED')";
        let written = sql(&format!("SELECT to_avro({row}, 7, '{ORDER}')")).await.unwrap();
        assert_eq!(written.as_binary::<i32>().value(0), message(7, &[long(4), long(1), text("x"), long(0)]));
    }

    #[tokio::test]
    async fn what_does_not_fit_is_said() {
        for (call, why) in [
            (
                format!("to_avro(named_struct('id', 1, 'colour', 'RED', 'x', 2), 7, '{ORDER}')"),
                "the Avro schema has no field `x`",
            ),
            (format!("to_avro(named_struct('id', 1), 7, '{ORDER}')"), "no `colour`"),
            (format!("to_avro(named_struct('id', 1, 'colour', 'PINK'), 7, '{ORDER}')"), "unknown symbol `PINK`"),
            (format!("to_avro(named_struct('id', NULL, 'colour', 'RED'), 7, '{ORDER}')"), "id"),
            (format!("to_avro(5, 7, '{ORDER}')"), "takes a struct"),
            (format!("to_avro(named_struct('id', 1), -7, '{ORDER}')"), "second argument"),
            ("to_avro(named_struct('id', 1), 7, '{')".to_owned(), "cannot use the Avro schema"),
            ("to_avro(named_struct('id', 1), 7)".to_owned(), "takes a struct, the id"),
        ] {
            let error = sql(&format!("SELECT {call}")).await.unwrap_err();
            assert!(error.to_string().contains(why), "{call}: {error}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let nested = r#"{"type":"record","name":"R","fields":[
            {"name":"at","type":{"type":"long","logicalType":"timestamp-micros"}},
            {"name":"in","type":["null",{"type":"record","name":"In","fields":[{"name":"a","type":"long"}]}]}
        ]}"#;
        let format = Format::avro(nested, SchemaRegistry::of([(1, nested)])).unwrap();
        let DataType::Struct(fields) = format.data_type().clone() else { panic!("no struct") };
        let utc = TimestampMicrosecondArray::from(vec![1, 2, 3]).with_timezone("UTC");
        // Narrower than the schema's, and null within as well as outside.
        let narrow = Fields::from(vec![Field::new("a", DataType::Int32, true)]);
        let within: ArrayRef = Arc::new(Int32Array::from(vec![Some(5), None, None]));
        let within = StructArray::new(narrow, vec![within], Some(NullBuffer::from(vec![true, false, false])));
        let columns = [("at", Arc::new(utc) as ArrayRef), ("in", Arc::new(within) as ArrayRef)];
        let structs = StructArray::from(RecordBatch::try_from_iter(columns).unwrap());
        let (own, columns, _) = structs.into_parts();
        let structs = StructArray::new(own, columns, Some(NullBuffer::from(vec![true, true, false])));

        let (id, json) = (ScalarValue::from(1_i64), ScalarValue::from(nested));
        let target = Target::of(&[None, Some(&id), Some(&json)]).unwrap();
        let written = target.encode(&structs).unwrap();
        assert_eq!(written.value(0), message(1, &[long(1), long(1), long(5)]));
        assert!(written.is_null(2));
        let decoded = format.decode(&written).unwrap();
        assert!(decoded.bad.is_empty(), "{:?}", decoded.bad);
        assert_eq!(decoded.values.fields(), &fields);
        let within = decoded.values.column(1);
        assert_eq!((within.is_null(0), within.is_null(1), decoded.values.is_null(2)), (false, true, true));
        assert_eq!(within.as_struct().column(0).as_primitive::<Int64Type>().value(0), 5);
    }
}
