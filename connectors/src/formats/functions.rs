//! `from_json` and `to_json`, in a `DataFrame` and in SQL.
//!
//! ```sql
//! SELECT o['id'], to_json(o['lines'])
//! FROM (SELECT from_json(value, 'id BIGINT, lines ARRAY<STRUCT<item: STRING, price: DOUBLE>>') AS o FROM orders)
//! ```
//!
//! They follow Spark's functions of these names. What differs is said at each.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray, StringBuilder, StructArray, new_empty_array};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Fields};
use arrow::json::writer::{EncoderOptions, make_encoder};
use datafusion::common::{exec_datafusion_err, internal_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::prelude::SessionContext;

use super::ddl;
use super::json::{Conflicts, JsonReader};
use crate::values::JsonValues;

/// The struct with these `fields` that a JSON document says. `value` is text or bytes, one JSON object each.
///
/// As in Spark (mode PERMISSIVE): null and blank text give null; malformed text gives a struct of nulls; a value that
/// is not what its field is declared to be is null, and the other fields are kept; fields that are not declared are
/// passed over. All fields become nullable.
///
/// How values are read is said at [`Format::json`](super::Format::json). There it differs from Spark: text in quotes is
/// read as a number where a number is declared, and a document that something follows is malformed.
///
/// ```
/// use arrow::datatypes::{DataType, Field};
/// use datafusion::prelude::col;
/// use tidewater_connectors::formats::from_json;
///
/// let order = from_json(col("value"), vec![Field::new("id", DataType::Int64, true)]).alias("order");
/// ```
///
/// In SQL, after [`register_functions`], the fields are given as Spark writes columns down:
/// `from_json(value, 'id BIGINT, lines ARRAY<STRUCT<item: STRING>>')`.
pub fn from_json(value: Expr, fields: impl Into<Fields>) -> Expr {
    ScalarUDF::from(FromJson::new(Some(fields.into()))).call(vec![value])
}

/// The JSON text of a struct, a list or a map. Null gives null.
///
/// As in Spark: fields that are null are left out; a timestamp is `2026-01-31T09:26:56.123Z`, with the offset if its
/// zone is not UTC, without if it has no zone, and with what is finer than milliseconds cut off; a date is
/// `2026-01-31`; bytes are in base 64; a floating-point number that JSON cannot say is `"NaN"`, `"Infinity"` or
/// `"-Infinity"`.
pub fn to_json(value: Expr) -> Expr {
    ScalarUDF::from(ToJson::new()).call(vec![value])
}

/// Lets SQL in this session call `from_json(value, 'a INT, b STRING')` and `to_json(struct)`; with the feature `avro`
/// also `to_avro(struct, id, 'schema')`.
pub fn register_functions(ctx: &SessionContext) {
    ctx.register_udf(ScalarUDF::from(FromJson::new(None)));
    ctx.register_udf(ScalarUDF::from(ToJson::new()));
    #[cfg(feature = "avro")]
    ctx.register_udf(super::to_avro::udf());
}

/// With fields, `from_json(value)`; without, `from_json(value, 'fields')`.
#[derive(Debug, PartialEq, Eq, Hash)]
struct FromJson {
    fields: Option<Fields>,
    signature: Signature,
}

impl FromJson {
    fn new(fields: Option<Fields>) -> Self {
        FromJson { fields, signature: Signature::variadic_any(Volatility::Immutable) }
    }

    fn fields(&self, args: &ReturnFieldArgs) -> Result<Fields> {
        match (&self.fields, args.arg_fields) {
            (Some(fields), [_]) => Ok(fields.iter().map(nullable).collect()),
            (None, [_, _]) => {
                let literal = args.scalar_arguments.get(1).copied().flatten();
                let Some(text) = literal.and_then(|literal| literal.try_as_str()).flatten() else {
                    return plan_err!(
                        "the second argument of `from_json` must be a literal that names the fields, such as \
                         'a INT, b STRING'"
                    );
                };
                match ddl::parse(text) {
                    Ok(fields) => Ok(fields),
                    Err(why) => plan_err!("`from_json` cannot take the fields '{text}': {why}"),
                }
            }
            _ => plan_err!("`from_json` takes a value and the fields it has"),
        }
    }
}

impl ScalarUDFImpl for FromJson {
    fn name(&self) -> &str {
        "from_json"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        plan_err!("the type of `from_json` follows from the fields it is given")
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let fields = self.fields(&args)?;
        if let Some(value) = args.arg_fields.first() {
            documents(&new_empty_array(value.data_type()))?;
        }
        JsonReader::new(fields.clone(), Conflicts::Null).check()?;
        Ok(Arc::new(Field::new(self.name(), DataType::Struct(fields), true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (Some(value), DataType::Struct(fields)) = (args.args.first(), args.return_field.data_type()) else {
            return internal_err!("`from_json` without a value");
        };
        let values = value.to_array(args.number_rows)?;
        let documents = documents(&values)?;
        let present: NullBuffer = documents.iter().map(Option::is_some).collect();
        let decoded = JsonReader::new(fields.clone(), Conflicts::Null).decode(documents)?;
        // A malformed document is null in all its fields, and not null itself.
        let (fields, columns, _) = decoded.values.into_parts();
        let structs = StructArray::try_new_with_length(fields, columns, Some(present), values.len())?;
        Ok(ColumnarValue::Array(Arc::new(structs)))
    }
}

/// The documents in a column; a blank text is not a document.
fn documents(values: &ArrayRef) -> Result<Vec<Option<&[u8]>>> {
    let documents: Vec<Option<&[u8]>> = match values.data_type() {
        DataType::Utf8 => values.as_string::<i32>().iter().map(|text| text.map(str::as_bytes)).collect(),
        DataType::LargeUtf8 => values.as_string::<i64>().iter().map(|text| text.map(str::as_bytes)).collect(),
        DataType::Utf8View => values.as_string_view().iter().map(|text| text.map(str::as_bytes)).collect(),
        DataType::Binary => values.as_binary::<i32>().iter().collect(),
        DataType::LargeBinary => values.as_binary::<i64>().iter().collect(),
        DataType::BinaryView => values.as_binary_view().iter().collect(),
        DataType::Null => vec![None; values.len()],
        other => return plan_err!("`from_json` takes text or bytes, not {other}"),
    };
    Ok(documents.into_iter().map(|document| document.filter(|bytes| !bytes.trim_ascii().is_empty())).collect())
}

/// The field and all fields within, so that each can be null where a document does not say it.
fn nullable(field: &FieldRef) -> FieldRef {
    let data_type = match field.data_type() {
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(nullable).collect()),
        DataType::List(item) => DataType::List(nullable(item)),
        DataType::LargeList(item) => DataType::LargeList(nullable(item)),
        other => other.clone(),
    };
    Arc::new(field.as_ref().clone().with_data_type(data_type).with_nullable(true))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ToJson {
    signature: Signature,
}

impl ToJson {
    fn new() -> Self {
        ToJson { signature: Signature::variadic_any(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for ToJson {
    fn name(&self) -> &str {
        "to_json"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let [value] = args.arg_fields else {
            return plan_err!("`to_json` takes one argument, not {}", args.arg_fields.len());
        };
        match value.data_type() {
            DataType::Struct(_) | DataType::List(_) | DataType::LargeList(_) | DataType::Map(_, _) => {}
            other => return plan_err!("`to_json` takes a struct, a list or a map, not {other}"),
        }
        if let Err(why) = json_text(&new_empty_array(value.data_type())) {
            return plan_err!("{} cannot be written as JSON: {}", value.data_type(), why.strip_backtrace());
        }
        Ok(Arc::new(Field::new(self.name(), DataType::Utf8, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some(value) = args.args.first() else { return internal_err!("`to_json` without a value") };
        let text = json_text(&value.to_array(args.number_rows)?)?;
        Ok(ColumnarValue::Array(Arc::new(text)))
    }
}

const LOCAL_TIME: &str = "%Y-%m-%dT%H:%M:%S%.3f";
const UTC_TIME: &str = "%Y-%m-%dT%H:%M:%S%.3fZ";
const ZONED_TIME: &str = "%Y-%m-%dT%H:%M:%S%.3f%:z";

fn json_text(values: &ArrayRef) -> Result<StringArray> {
    let zoned = if is_utc(values.data_type()) { UTC_TIME } else { ZONED_TIME };
    let options = EncoderOptions::default()
        .with_encoder_factory(Arc::new(JsonValues))
        .with_timestamp_format(LOCAL_TIME.to_owned())
        .with_timestamp_tz_format(zoned.to_owned());
    let field: FieldRef = Arc::new(Field::new("value", values.data_type().clone(), true));
    let mut encoder = make_encoder(&field, values.as_ref(), &options)?;
    let mut rows = StringBuilder::new();
    let mut row = Vec::new();
    for index in 0..values.len() {
        if values.is_null(index) {
            rows.append_null();
            continue;
        }
        row.clear();
        encoder.encode(index, &mut row);
        let text = std::str::from_utf8(&row).map_err(|e| exec_datafusion_err!("`to_json` made no text: {e}"))?;
        rows.append_value(text);
    }
    Ok(rows.finish())
}

/// Whether all timestamps with a zone are in UTC.
fn is_utc(data_type: &DataType) -> bool {
    match data_type {
        DataType::Timestamp(_, Some(zone)) => matches!(zone.as_ref(), "UTC" | "Z" | "+00:00"),
        DataType::Struct(fields) => fields.iter().all(|field| is_utc(field.data_type())),
        DataType::List(inner) | DataType::LargeList(inner) | DataType::Map(inner, _) => is_utc(inner.data_type()),
        DataType::FixedSizeList(item, _) => is_utc(item.data_type()),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{BinaryArray, Int64Array, TimestampMicrosecondArray, TimestampSecondArray};
    use arrow::datatypes::{Int32Type, Int64Type};
    use arrow::record_batch::RecordBatch;
    use datafusion::prelude::col;

    use super::*;

    async fn sql(query: &str) -> Result<ArrayRef> {
        let ctx = SessionContext::new();
        register_functions(&ctx);
        let rows = ctx.sql(query).await?.collect().await?;
        Ok(Arc::clone(rows[0].column(0)))
    }

    fn texts(array: &ArrayRef) -> Vec<Option<&str>> {
        array.as_string::<i32>().iter().collect()
    }

    const DOCUMENTS: &str = r#"(VALUES
        (1, '{"a":1,"b":{"c":"x"},"d":[1,2],"more":true}'),
        (2, '{"a":"x","b":{"c":"y"},"d":[]}'),
        (3, '{"a":1'),
        (4, ' '),
        (5, NULL),
        (6, '{"a":1}{"a":2}')
    ) AS t(n, doc)"#;

    #[tokio::test]
    async fn json_there_and_back_in_sql() {
        let there = "from_json(doc, 'a INT, b STRUCT<c: STRING>, d ARRAY<BIGINT>')";
        let back = sql(&format!("SELECT to_json({there}) FROM {DOCUMENTS} ORDER BY n")).await.unwrap();
        assert_eq!(
            texts(&back),
            [
                Some(r#"{"a":1,"b":{"c":"x"},"d":[1,2]}"#),
                Some(r#"{"b":{"c":"y"},"d":[]}"#),
                Some("{}"),
                None,
                None,
                Some("{}")
            ]
        );
        let c = sql(&format!("SELECT o['b']['c'] FROM (SELECT n, {there} AS o FROM {DOCUMENTS}) ORDER BY n")).await;
        assert_eq!(texts(&c.unwrap()), [Some("x"), Some("y"), None, None, None, None]);
        // All literal.
        let a = sql(r#"SELECT from_json('{"a":5}', 'STRUCT<a INT>')['a']"#).await.unwrap();
        assert_eq!(a.as_primitive::<Int32Type>().value(0), 5);
    }

    #[tokio::test]
    async fn what_cannot_be_planned_is_said() {
        for (call, why) in [
            ("from_json(doc)", "takes a value and the fields"),
            ("from_json(doc, doc)", "must be a literal"),
            ("from_json(doc, 'a COLOUR')", "`COLOUR` is not a supported type"),
            ("from_json(n, 'a INT')", "takes text or bytes"),
            ("to_json(n)", "takes a struct"),
            ("to_json(struct(n), n)", "takes one argument"),
        ] {
            let error = sql(&format!("SELECT {call} FROM {DOCUMENTS}")).await.unwrap_err();
            assert!(error.to_string().contains(why), "{call}: {error}");
        }
    }

    #[tokio::test]
    async fn in_a_data_frame() {
        let value = BinaryArray::from(vec![Some(b"{\"id\":7}".as_slice()), Some(b"\xff".as_slice()), None]);
        let batch = RecordBatch::try_from_iter([("value", Arc::new(value) as ArrayRef)]).unwrap();
        // Fields are nullable whatever was said: a document may not have them.
        let order = from_json(col("value"), vec![Field::new("id", DataType::Int64, false)]);
        let rows = SessionContext::new()
            .read_batch(batch)
            .and_then(|rows| rows.select(vec![order.clone().alias("order"), to_json(order).alias("text")]))
            .unwrap();
        assert!(rows.schema().field(0).is_nullable());
        let rows = rows.collect().await.unwrap();
        let orders = rows[0].column(0).as_struct();
        assert_eq!((orders.is_null(0), orders.is_null(1), orders.is_null(2)), (false, false, true));
        let ids: Vec<_> = orders.column(0).as_primitive::<Int64Type>().iter().collect();
        assert_eq!(ids, [Some(7), None, None]);
        assert_eq!(texts(rows[0].column(1)), [Some(r#"{"id":7}"#), Some("{}"), None]);
    }

    #[test]
    fn times_are_printed_as_sparks_are() {
        let us = || TimestampMicrosecondArray::from(vec![1_704_067_200_123_456]);
        let text = |array: ArrayRef| {
            let fields = Fields::from(vec![Field::new("t", array.data_type().clone(), true)]);
            let structs: ArrayRef = Arc::new(StructArray::new(fields, vec![array], None));
            json_text(&structs).unwrap().value(0).to_owned()
        };
        assert_eq!(text(Arc::new(us().with_timezone("UTC"))), r#"{"t":"2024-01-01T00:00:00.123Z"}"#);
        assert_eq!(text(Arc::new(us().with_timezone("+01:00"))), r#"{"t":"2024-01-01T01:00:00.123+01:00"}"#);
        assert_eq!(text(Arc::new(us())), r#"{"t":"2024-01-01T00:00:00.123"}"#);
        let seconds = TimestampSecondArray::from(vec![0]).with_timezone("+00:00");
        assert_eq!(text(Arc::new(seconds)), r#"{"t":"1970-01-01T00:00:00.000Z"}"#);
        assert_eq!(text(Arc::new(Int64Array::from(vec![None]))), "{}");
    }
}
