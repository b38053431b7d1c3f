//! The batch answer, and how rows are compared with it.
//!
//! A streaming `DataFrame` is DataFusion's own, so the function that makes it can be run over all rows at once. What the
//! stream wrote in the end must be the same rows, as a multiset.

use std::sync::Arc;

use arrow::array::Array;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::datasource::MemTable;
use datafusion::prelude::{DataFrame, SessionContext};

use crate::error::Result;
use crate::query::StreamingSessionExt;

/// How many missing and surplus rows a difference names.
const ROWS_NAMED_MAX: usize = 20;

/// All rows as a bounded table, which the function under test takes in the place of the stream. The session learns what
/// `window` and `session_window` mean on a table.
pub fn batch_table(ctx: &SessionContext, schema: SchemaRef, rows: Vec<RecordBatch>) -> Result<DataFrame> {
    ctx.enable_windows();
    Ok(ctx.read_table(Arc::new(MemTable::try_new(schema, vec![rows])?))?)
}

/// What `query` answers over all `rows` at once.
///
/// ```
/// # use datafusion::prelude::*;
/// # use serde_json::json;
/// # use tidewater::testing::{assert_same_rows, batch_answer, table};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tidewater::error::Result<()> {
/// let schema = table::schema(&[("v", "long")])?;
/// let all = table::rows(&schema, &json!([[1], [2], [3]]))?;
/// let answer = batch_answer(schema.clone(), vec![all], |rows| Ok(rows.filter(col("v").gt(lit(1)))?)).await?;
/// assert_same_rows(&[table::rows(&schema, &json!([[3], [2]]))?], &answer);
/// # Ok(())
/// # }
/// ```
pub async fn batch_answer(
    schema: SchemaRef,
    rows: Vec<RecordBatch>,
    query: impl FnOnce(DataFrame) -> Result<DataFrame>,
) -> Result<Vec<RecordBatch>> {
    let ctx = SessionContext::new();
    Ok(query(batch_table(&ctx, schema, rows)?)?.collect().await?)
}

/// Every row as one line of text, sorted. Columns that differ only in how Arrow keeps them (`Utf8` and `Utf8View`, say)
/// give the same text.
pub fn row_lines(batches: &[RecordBatch]) -> Result<Vec<String>> {
    let options = FormatOptions::default().with_display_error(false);
    let mut lines = vec![];
    for batch in batches {
        let columns: Result<Vec<ArrayFormatter<'_>>> =
            batch.columns().iter().map(|column| Ok(ArrayFormatter::try_new(column.as_ref(), &options)?)).collect();
        let columns = columns?;
        for row in 0..batch.num_rows() {
            let mut cells = Vec::with_capacity(columns.len());
            for (column, formatter) in batch.columns().iter().zip(&columns) {
                let text = formatter.value(row).try_to_string()?;
                cells.push(match column.data_type() {
                    _ if column.logical_nulls().is_some_and(|nulls| nulls.is_null(row)) => "NULL".to_owned(),
                    of_type if is_text(of_type) => format!("{text:?}"),
                    _ => text,
                });
            }
            lines.push(cells.join(" | "));
        }
    }
    lines.sort_unstable();
    Ok(lines)
}

/// Texts are quoted, so that the text `NULL` is not the value.
fn is_text(of_type: &DataType) -> bool {
    match of_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, value) => is_text(value),
        _ => false,
    }
}

/// What is missing and what is too much in `actual`, for people; `None` if the rows are the same, in any order.
pub fn difference(expected: &[RecordBatch], actual: &[RecordBatch]) -> Result<Option<String>> {
    if let (Some(wanted), Some(found)) = (column_names(expected), column_names(actual))
        && wanted != found
    {
        return Ok(Some(format!("columns differ: expected {wanted:?}, found {found:?}")));
    }
    Ok(difference_of_lines(&row_lines(expected)?, &row_lines(actual)?))
}

fn column_names(batches: &[RecordBatch]) -> Option<Vec<String>> {
    let names = |batch: &RecordBatch| batch.schema().fields().iter().map(|field| field.name().clone()).collect();
    batches.iter().find(|batch| batch.num_rows() > 0).map(names)
}

/// Both sides sorted: a merge finds rows without a counterpart.
fn difference_of_lines(expected: &[String], actual: &[String]) -> Option<String> {
    let (mut missing, mut surplus) = (vec![], vec![]);
    let (mut wanted, mut found) = (expected.iter().peekable(), actual.iter().peekable());
    loop {
        match (wanted.peek(), found.peek()) {
            (None, None) => break,
            (Some(w), Some(f)) if w == f => {
                wanted.next();
                found.next();
            }
            (Some(w), f) if f.is_none_or(|f| w < f) => missing.extend(wanted.next()),
            _ => surplus.extend(found.next()),
        }
    }
    if missing.is_empty() && surplus.is_empty() {
        return None;
    }
    let mut text = format!("expected {} rows, found {}", expected.len(), actual.len());
    for (what, rows) in [("missing", missing), ("surplus", surplus)] {
        for row in rows.iter().take(ROWS_NAMED_MAX) {
            text.push_str(&format!("\n  {what}: {row}"));
        }
        if rows.len() > ROWS_NAMED_MAX {
            text.push_str(&format!("\n  {what}: … and {} more", rows.len() - ROWS_NAMED_MAX));
        }
    }
    Some(text)
}

/// Panics unless both are the same rows, in any order and any batches; names missing and surplus rows.
#[track_caller]
pub fn assert_same_rows(expected: &[RecordBatch], actual: &[RecordBatch]) {
    match difference(expected, actual) {
        Ok(None) => {}
        Ok(Some(difference)) => panic!("rows differ: {difference}"),
        Err(error) => panic!("rows cannot be compared: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::table;

    fn letters(rows: serde_json::Value) -> RecordBatch {
        let schema = table::schema(&[("k", "string"), ("v", "long")]).unwrap();
        table::rows(&schema, &rows).unwrap()
    }

    #[test]
    fn order_and_batching_do_not_matter() {
        let expected = [letters(json!([["a", 1], ["b", 2], ["a", 1]]))];
        let actual = [letters(json!([["b", 2], ["a", 1]])), letters(json!([])), letters(json!([["a", 1]]))];
        assert_same_rows(&expected, &actual);
    }

    #[test]
    fn missing_and_surplus_rows_are_named() {
        let expected = [letters(json!([["a", 1], ["b", 2]]))];
        let actual = [letters(json!([["b", 2], ["b", 2], ["c", null]]))];
        let text = difference(&expected, &actual).unwrap().unwrap();
        assert_eq!(
            text,
            "expected 2 rows, found 3\n  missing: \"a\" | 1\n  surplus: \"b\" | 2\n  surplus: \"c\" | NULL"
        );
    }

    #[test]
    fn the_text_null_is_not_the_value() {
        assert!(difference(&[letters(json!([["NULL", 1]]))], &[letters(json!([[null, 1]]))]).unwrap().is_some());
    }

    #[test]
    fn other_columns_are_a_difference() {
        let other = table::schema(&[("x", "string"), ("v", "long")]).unwrap();
        let other = table::rows(&other, &json!([["a", 1]])).unwrap();
        let text = difference(&[letters(json!([["a", 1]]))], &[other]).unwrap().unwrap();
        assert!(text.contains("columns differ"), "{text}");
    }
}
