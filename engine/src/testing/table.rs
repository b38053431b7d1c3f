//! Rows as a test writes them down: JSON in, record batches out.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray, UInt64Array};
use arrow::compute::{CastOptions, cast_with_options, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use serde_json::Value;

use crate::error::{Error, Result};

/// A schema from names and short type names: `timestamp` (microseconds, UTC), `string`, `long`, `int`, `double`, `boolean`,
/// `date`. Every column may be null.
///
/// ```
/// use tidewater::testing::table;
///
/// let schema = table::schema(&[("ts", "timestamp"), ("k", "string")])?;
/// assert!(schema.field(0).is_nullable());
/// # Ok::<(), tidewater::error::Error>(())
/// ```
pub fn schema(columns: &[(&str, &str)]) -> Result<SchemaRef> {
    let fields: Result<Vec<Field>> =
        columns.iter().map(|(name, of_type)| Ok(Field::new(*name, data_type(of_type)?, true))).collect();
    Ok(Arc::new(Schema::new(fields?)))
}

/// The Arrow type behind a short type name.
pub fn data_type(name: &str) -> Result<DataType> {
    Ok(match name {
        "timestamp" => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        "string" => DataType::Utf8,
        "long" => DataType::Int64,
        "int" => DataType::Int32,
        "double" => DataType::Float64,
        "boolean" => DataType::Boolean,
        "date" => DataType::Date32,
        other => return Err(Error::invalid(format!("unknown short type name `{other}`"))),
    })
}

/// Rows from a JSON array of arrays, values in the order of the schema's columns.
///
/// ```
/// use serde_json::json;
/// use tidewater::testing::table;
///
/// let schema = table::schema(&[("ts", "timestamp"), ("v", "long")])?;
/// let rows = table::rows(&schema, &json!([["2024-01-01T00:00:01Z", 7], [null, 8]]))?;
/// assert_eq!(rows.num_rows(), 2);
/// # Ok::<(), tidewater::error::Error>(())
/// ```
pub fn rows(schema: &SchemaRef, rows: &Value) -> Result<RecordBatch> {
    let not_rows = || Error::invalid(format!("not an array of rows with {} values: {rows}", schema.fields().len()));
    let rows: Vec<&Vec<Value>> = rows
        .as_array()
        .ok_or_else(not_rows)?
        .iter()
        .map(Value::as_array)
        .collect::<Option<_>>()
        .ok_or_else(not_rows)?;
    if rows.iter().any(|row| row.len() != schema.fields().len()) {
        return Err(not_rows());
    }
    let columns: Result<Vec<ArrayRef>> = schema
        .fields()
        .iter()
        .enumerate()
        .map(|(i, field)| column(field.data_type(), rows.iter().filter_map(|row| row.get(i))))
        .collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns?, &options)?)
}

/// Distributes rows round-robin, into at most this many batches; a batch without rows is left out.
pub fn deal(rows: &RecordBatch, into: usize) -> Result<Vec<RecordBatch>> {
    (0..into.min(rows.num_rows()))
        .map(|part| {
            let picked: UInt64Array = (part..rows.num_rows()).step_by(into).map(|row| row as u64).collect();
            Ok(take_record_batch(rows, &picked)?)
        })
        .collect()
}

/// One column: every value as text, and Arrow reads the text as the type asks.
fn column<'a>(of_type: &DataType, values: impl Iterator<Item = &'a Value>) -> Result<ArrayRef> {
    let texts: StringArray = values
        .map(|value| match value {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        })
        .collect();
    Ok(cast_with_options(&texts, of_type, &CastOptions { safe: false, ..CastOptions::default() })?)
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::{Date32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
    use serde_json::json;

    use super::*;

    #[test]
    fn every_short_type_reads_its_json() {
        let types = ["timestamp", "string", "long", "int", "double", "boolean", "date"];
        let columns: Vec<(&str, &str)> = types.iter().map(|t| (*t, *t)).collect();
        let table = rows(
            &schema(&columns).unwrap(),
            &json!([
                ["2024-01-01T00:00:01.500000Z", "x", -7, 3, 0.25, true, "1970-01-03"],
                [null, null, null, null, null, null, null]
            ]),
        )
        .unwrap();
        assert_eq!(table.column(0).as_primitive::<TimestampMicrosecondType>().value(0), 1_704_067_201_500_000);
        assert_eq!(table.column(1).as_string::<i32>().value(0), "x");
        assert_eq!(table.column(2).as_primitive::<Int64Type>().value(0), -7);
        assert_eq!(table.column(3).as_primitive::<Int32Type>().value(0), 3);
        assert_eq!(table.column(4).as_primitive::<Float64Type>().value(0), 0.25);
        assert!(table.column(5).as_boolean().value(0));
        assert_eq!(table.column(6).as_primitive::<Date32Type>().value(0), 2);
        assert!(table.columns().iter().all(|column| column.is_null(1)));
    }

    #[test]
    fn rows_are_dealt_in_turn() {
        let rows = rows(&schema(&[("v", "long")]).unwrap(), &json!([[0], [1], [2], [3]])).unwrap();
        let sizes: Vec<usize> = deal(&rows, 3).unwrap().iter().map(RecordBatch::num_rows).collect();
        assert_eq!(sizes, [2, 1, 1]);
        assert!(deal(&rows.slice(0, 0), 3).unwrap().is_empty());
        assert_eq!(deal(&rows.slice(0, 1), 3).unwrap().len(), 1);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let schema = schema(&[("v", "long")]).unwrap();
        for wrong in [json!([["seven"]]), json!([[1, 2]]), json!([1]), json!("rows")] {
            assert!(rows(&schema, &wrong).is_err(), "{wrong}");
        }
    }
}
