//! What came out, against what Spark gave.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array};
use arrow::datatypes::{DataType, Float64Type, SchemaRef};
use arrow::record_batch::RecordBatch;
use serde_json::Value;
use tidewater::error::Result;
use tidewater::testing::oracle::{difference, row_lines};
use tidewater::testing::table;

/// Compares as multisets; the error shows both sides.
pub(super) fn compare(
    columns: &[String],
    types: &[String],
    expected: &Value,
    actual: &[RecordBatch],
) -> Result<(), String> {
    let said = |e: tidewater::error::Error| e.to_string();
    let columns: Vec<(&str, &str)> = columns.iter().map(String::as_str).zip(types.iter().map(String::as_str)).collect();
    let schema = table::schema(&columns).map_err(said)?;
    if let Some(rows) = actual.first() {
        same_kinds(&schema, &rows.schema())?;
    }
    let expected = [rounded(&table::rows(&schema, expected).map_err(said)?).map_err(said)?];
    let actual: Vec<RecordBatch> = actual.iter().map(rounded).collect::<Result<_>>().map_err(said)?;
    match difference(&expected, &actual).map_err(said)? {
        None => Ok(()),
        Some(difference) => Err(format!(
            "{difference}\nexpected rows:\n{}\nactual rows:\n{}",
            listed(&expected).map_err(said)?,
            listed(&actual).map_err(said)?
        )),
    }
}

fn listed(rows: &[RecordBatch]) -> Result<String> {
    Ok(row_lines(rows)?.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n"))
}

/// Names must be the same, and types of the same kind: how wide an integer literal makes a sum, and how Arrow keeps texts,
/// is not what a case is about.
fn same_kinds(expected: &SchemaRef, actual: &SchemaRef) -> Result<(), String> {
    let kinds = |schema: &SchemaRef| -> Vec<(String, &'static str)> {
        schema.fields().iter().map(|field| (field.name().clone(), kind(field.data_type()))).collect()
    };
    let (expected, actual) = (kinds(expected), kinds(actual));
    if expected == actual { Ok(()) } else { Err(format!("expected the columns {expected:?}, found {actual:?}")) }
}

fn kind(of_type: &DataType) -> &'static str {
    match of_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text",
        DataType::Int32 | DataType::Int64 => "integer",
        DataType::Float64 => "double",
        DataType::Boolean => "boolean",
        DataType::Date32 => "date",
        DataType::Timestamp(_, Some(_)) => "timestamp",
        _ => "another type",
    }
}

/// Doubles to twelve digits, so that a last bit lost in reading JSON is no difference.
fn rounded(rows: &RecordBatch) -> Result<RecordBatch> {
    let columns: Vec<ArrayRef> = rows
        .columns()
        .iter()
        .map(|column| match column.data_type() {
            DataType::Float64 => {
                let short = |v: f64| format!("{v:.12e}").parse().unwrap_or(v);
                let doubles: Float64Array = column.as_primitive::<Float64Type>().unary(short);
                Arc::new(doubles) as ArrayRef
            }
            _ => Arc::clone(column),
        })
        .collect();
    if columns.is_empty() {
        return Ok(rows.clone());
    }
    Ok(RecordBatch::try_new(rows.schema(), columns)?)
}
