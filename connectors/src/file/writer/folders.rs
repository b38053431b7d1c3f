//! Hive-style folders: `k=v/` for every value of the partition columns.
//!
//! Names and values are spelled as Spark spells them, since they are all that is stored of these columns: characters
//! that a path cannot hold are percent-escaped, and null, like the empty string, is `__HIVE_DEFAULT_PARTITION__`. What
//! is written is read back as it was: times are those of UTC, with all the digits they have; bytes that are not text are
//! escaped one by one; and a text that happens to be the name of null is distinguished from it by an escape that every
//! reader undoes.

use std::collections::HashMap;
use std::fmt::Write;

use arrow::array::{Array, ArrayRef, AsArray, UInt32Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use tidewater::error::{Error, Result};

const NULL: &str = "__HIVE_DEFAULT_PARTITION__";
const TIMESTAMP: &str = "%Y-%m-%d %H:%M:%S%.f";

/// Splits `rows` by folder, in the order in which folders first appear. Each folder ends in `/`.
pub(super) fn split(rows: &RecordBatch, partition_columns: &[(String, usize)]) -> Result<Vec<(String, RecordBatch)>> {
    let mut folders: Vec<(String, Vec<u32>)> = vec![];
    let mut place_of: HashMap<String, usize> = HashMap::new();
    let columns = partition_columns
        .iter()
        .map(|(name, i)| Ok((escape(name), as_text_shows(rows.column(*i))?)))
        .collect::<Result<Vec<_>>>()?;
    let format = FormatOptions::new()
        .with_display_error(false)
        .with_timestamp_format(Some(TIMESTAMP))
        .with_timestamp_tz_format(Some(TIMESTAMP));
    let formatters =
        columns.iter().map(|(_, column)| ArrayFormatter::try_new(column, &format)).collect::<Result<Vec<_>, _>>()?;
    let (mut folder, mut text) = (String::new(), String::new());
    for row in 0..rows.num_rows() {
        folder.clear();
        for ((name, column), formatter) in columns.iter().zip(&formatters) {
            text.clear();
            let value = match column.as_binary_opt::<i64>() {
                Some(bytes) if bytes.is_valid(row) => escape_bytes(bytes.value(row)),
                _ if column.is_null(row) => String::new(),
                _ => {
                    write!(text, "{}", formatter.value(row))
                        .map_err(|_| Error::invalid(format!("a value of partition column `{name}` is out of range")))?;
                    escape(as_spark_shows(&text, column.data_type()))
                }
            };
            let value = match value.as_str() {
                "" => NULL,
                NULL => "%5F_HIVE_DEFAULT_PARTITION__",
                value => value,
            };
            folder.extend([name.as_str(), "=", value, "/"]);
        }
        let place = match place_of.get(&folder) {
            Some(place) => *place,
            None => {
                place_of.insert(folder.clone(), folders.len());
                folders.push((folder.clone(), vec![]));
                folders.len() - 1
            }
        };
        if let Some((_, rows)) = folders.get_mut(place) {
            rows.push(row as u32);
        }
    }
    if let [(folder, _)] = &folders[..] {
        return Ok(vec![(folder.clone(), rows.clone())]);
    }
    folders
        .into_iter()
        .map(|(folder, places)| Ok((folder, take_record_batch(rows, &UInt32Array::from(places))?)))
        .collect()
}

/// The column as a type whose values are shown in full: times of any zone in UTC.
fn as_text_shows(column: &ArrayRef) -> Result<ArrayRef> {
    Ok(match column.data_type() {
        DataType::Dictionary(_, values) => as_text_shows(&cast(column, values)?)?,
        DataType::Timestamp(unit, Some(_)) => cast(column, &DataType::Timestamp(*unit, Some("+00:00".into())))?,
        DataType::Date64 => cast(column, &DataType::Date32)?,
        DataType::Binary | DataType::BinaryView | DataType::FixedSizeBinary(_) => cast(column, &DataType::LargeBinary)?,
        _ => ArrayRef::clone(column),
    })
}

/// Spark shows no more digits of a second than needed, and has other names for what is not a number.
fn as_spark_shows<'a>(text: &'a str, data_type: &DataType) -> &'a str {
    match data_type {
        DataType::Timestamp(..) if text.contains('.') => text.trim_end_matches('0').trim_end_matches('.'),
        DataType::Float16 | DataType::Float32 | DataType::Float64 => match text {
            "inf" => "Infinity",
            "-inf" => "-Infinity",
            other => other,
        },
        _ => text,
    }
}

/// Bytes that are text are spelled as text.
fn escape_bytes(bytes: &[u8]) -> String {
    let mut escaped = String::with_capacity(bytes.len() + 8);
    for chunk in bytes.utf8_chunks() {
        escaped.push_str(&escape(chunk.valid()));
        for byte in chunk.invalid() {
            // Writing to a string does not fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_control() || "\"#%'*/:=?\\{[]^".contains(c) {
            // Writing to a string does not fail.
            let _ = write!(escaped, "%{:02X}", u32::from(c));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        BinaryArray, BooleanArray, Date32Array, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray,
        TimestampNanosecondArray,
    };

    use super::*;

    fn folders(column: ArrayRef) -> Vec<String> {
        let rows = RecordBatch::try_from_iter_with_nullable([("k", column, true)]).unwrap();
        split(&rows, &[("k".to_owned(), 0)]).unwrap().into_iter().map(|(folder, _)| folder).collect()
    }

    #[test]
    fn values_are_spelled_as_spark_casts_them_to_text() {
        let text = StringArray::from(vec![Some("a"), Some("x y/z=1"), None, Some(""), Some("50%\t{ok}"), Some("é")]);
        assert_eq!(
            folders(Arc::new(text)),
            ["k=a/", "k=x y%2Fz%3D1/", "k=__HIVE_DEFAULT_PARTITION__/", "k=50%25%09%7Bok}/", "k=é/"]
        );
        let ts = vec![1_704_067_200_000_000, 1_704_067_200_120_000, -1];
        let expected =
            ["k=2024-01-01 00%3A00%3A00/", "k=2024-01-01 00%3A00%3A00.12/", "k=1969-12-31 23%3A59%3A59.999999/"];
        let ts = TimestampMicrosecondArray::from(ts);
        assert_eq!(folders(Arc::new(ts.clone())), expected);
        assert_eq!(folders(Arc::new(ts.with_timezone("+02:00"))), expected);
        let ns = TimestampNanosecondArray::from(vec![1_704_067_200_000_000_001]).with_timezone("+02:00");
        assert_eq!(folders(Arc::new(ns)), ["k=2024-01-01 00%3A00%3A00.000000001/"]);
        let bytes = BinaryArray::from_vec(vec![b"a/b", b"\xff\x00%", b""]);
        assert_eq!(folders(Arc::new(bytes)), ["k=a%2Fb/", "k=%FF%00%25/", "k=__HIVE_DEFAULT_PARTITION__/"]);
        let null = StringArray::from(vec![NULL]);
        assert_eq!(folders(Arc::new(null)), ["k=%5F_HIVE_DEFAULT_PARTITION__/"]);
        let floats = Float64Array::from(vec![f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 0.1]);
        assert_eq!(folders(Arc::new(floats)), ["k=Infinity/", "k=-Infinity/", "k=NaN/", "k=0.1/"]);
        assert_eq!(folders(Arc::new(Date32Array::from(vec![19_723]))), ["k=2024-01-01/"]);
        assert_eq!(folders(Arc::new(BooleanArray::from(vec![true]))), ["k=true/"]);
        assert_eq!(folders(Arc::new(Int64Array::from(vec![-5]))), ["k=-5/"]);
    }

    #[test]
    fn rows_keep_their_order_within_a_folder() {
        let k: ArrayRef = Arc::new(StringArray::from(vec!["b", "a", "b", "a"]));
        let n: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3, 4]));
        let rows = RecordBatch::try_from_iter([("n", n), ("k", k)]).unwrap();
        let split = split(&rows, &[("k".to_owned(), 1), ("n/2".to_owned(), 1)]).unwrap();
        let found: Vec<_> = split
            .iter()
            .map(|(folder, rows)| {
                let n = rows.column(0).as_any().downcast_ref::<Int64Array>().unwrap();
                (folder.as_str(), n.values().to_vec())
            })
            .collect();
        assert_eq!(found, [("k=b/n%2F2=b/", vec![1, 3]), ("k=a/n%2F2=a/", vec![2, 4])]);
    }
}
