//! Columns that are spelled in the path: `…/day=2024-01-01/country=__HIVE_DEFAULT_PARTITION__/part-0.parquet`.
//!
//! A value is read back as a file sink writes it. A time without a zone is one of UTC, in whatever zone the column shows it;
//! the bytes of a binary column are what the name stands for, text or not.

use arrow::datatypes::{DataType, Schema};
use datafusion::common::ScalarValue;
use percent_encoding::percent_decode;
use tidewater::error::{Error, ErrorKind, Result};

use super::names::Names;
use super::uri::FileLocation;

/// How a null is spelled in a path.
const NULL: &[u8] = b"__HIVE_DEFAULT_PARTITION__";

/// The `key=value` folders between `root` and the file `path`, outermost first, as they are meant; a value of `None` is null.
pub(super) fn in_path(root: &FileLocation, path: &FileLocation) -> Vec<(String, Option<Vec<u8>>)> {
    let (root, path) = (root.names(), path.names());
    let below = path.strip_prefix(&root[..]).unwrap_or_default();
    let folders = below.split_last().map_or(&[][..], |(_, folders)| folders);
    folders
        .iter()
        .filter_map(|folder| {
            let mut parts = folder.splitn(2, |byte| *byte == b'=');
            let (key, value) = (parts.next()?, parts.next()?);
            let key = String::from_utf8_lossy(&unescaped(key)).into_owned();
            Some((key, (value != NULL).then(|| unescaped(value))))
        })
        .collect()
}

/// The columns of `schema` that the file `path` has in its path, by position, and their values there.
pub(super) fn constants(
    schema: &Schema,
    root: &FileLocation,
    path: &FileLocation,
    names: Names,
) -> Result<Vec<(usize, ScalarValue)>> {
    let mut constants: Vec<(usize, ScalarValue)> = vec![];
    for (key, value) in in_path(root, path) {
        let known = schema.fields().iter().map(|field| field.name().as_str());
        // No two names of a source are the same.
        let Ok(Some(index)) = names.find(known, &key) else { continue };
        let wanted = schema.field(index).data_type();
        let value = match value {
            None => ScalarValue::try_new_null(wanted)?,
            Some(bytes) => value_of(&bytes, wanted).ok_or_else(|| {
                Error::new(
                    ErrorKind::BadInput,
                    format!(
                        "the folder `{key}={}` has no value of type {wanted} for column `{key}`",
                        String::from_utf8_lossy(&bytes)
                    ),
                )
                .with_hint("rename or remove the folder, or declare the column as Utf8")
            })?,
        };
        constants.retain(|(known, _)| *known != index);
        constants.push((index, value));
    }
    constants.sort_by_key(|(index, _)| *index);
    Ok(constants)
}

/// Whether a value of this type can be parsed from the name of a folder.
pub(super) fn is_readable(data_type: &DataType) -> bool {
    match data_type {
        DataType::Duration(_) | DataType::Interval(_) => false,
        DataType::Dictionary(_, values) => is_readable(values),
        other => !other.is_nested(),
    }
}

/// What the name `bytes` of a folder means as a value of type `wanted`.
fn value_of(bytes: &[u8], wanted: &DataType) -> Option<ScalarValue> {
    let text = || std::str::from_utf8(bytes).ok().map(ScalarValue::new_utf8);
    let value = match wanted {
        DataType::Dictionary(_, values) => value_of(bytes, values)?.cast_to(wanted).ok()?,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            ScalarValue::Binary(Some(bytes.to_vec())).cast_to(wanted).ok()?
        }
        DataType::Timestamp(unit, Some(_)) => {
            text()?.cast_to(&DataType::Timestamp(*unit, Some("UTC".into()))).ok()?.cast_to(wanted).ok()?
        }
        DataType::Date64 => text()?.cast_to(&DataType::Date32).ok()?.cast_to(wanted).ok()?,
        _ => text()?.cast_to(wanted).ok()?,
    };
    (!value.is_null()).then_some(value)
}

/// The type that fits all these values: a number if they all are.
pub(super) fn type_of<'a>(values: impl Iterator<Item = &'a str> + Clone) -> DataType {
    if values.clone().all(|value| value.parse::<i32>().is_ok()) {
        DataType::Int32
    } else if values.clone().all(|value| value.parse::<i64>().is_ok()) {
        DataType::Int64
    } else {
        DataType::Utf8
    }
}

fn unescaped(name: &[u8]) -> Vec<u8> {
    percent_decode(name).collect()
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Field;

    use super::*;

    fn values(path: &str, fields: Vec<Field>) -> Result<Vec<(usize, ScalarValue)>> {
        let at = |path: &str| FileLocation::parse(&format!("s3://bucket/{}", path.replace('%', "%25"))).unwrap();
        constants(&Schema::new(fields), &at("in"), &at(path), Names { case_sensitive: false })
    }

    #[test]
    fn values_get_the_type_of_the_schema() {
        let fields = vec![
            Field::new("v", DataType::Int64, true),
            Field::new("k", DataType::Utf8, true),
            Field::new("n", DataType::Int32, true),
        ];
        let found = values("in/n=7/k=x y%2Fz%3D1/other=1/k=file.csv", fields.clone()).unwrap();
        assert_eq!(found, [(1, ScalarValue::from("x y/z=1")), (2, ScalarValue::Int32(Some(7)))]);
        let found = values("in/k=__HIVE_DEFAULT_PARTITION__/f.csv", fields.clone()).unwrap();
        assert_eq!(found, [(1, ScalarValue::Utf8(None))]);
        assert!(values("in/f.csv", fields.clone()).unwrap().is_empty());
        let found = values("in/N=7/K=a/f.csv", fields.clone()).unwrap();
        assert_eq!(found, [(1, ScalarValue::from("a")), (2, ScalarValue::Int32(Some(7)))], "without case");
        let error = values("in/k=%FF/f.csv", fields.clone()).unwrap_err();
        assert!(error.message().contains("no value of type Utf8"), "{error}");
        let error = values("in/n=seven/f.csv", fields).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput);
        assert!(error.message().contains("n=seven"), "{error}");
    }

    #[test]
    fn a_type_is_guessed_from_all_values() {
        assert_eq!(type_of(["1", "2"].into_iter()), DataType::Int32);
        assert_eq!(type_of(["1", "3000000000"].into_iter()), DataType::Int64);
        assert_eq!(type_of(["1", "2024-01-01"].into_iter()), DataType::Utf8);
    }
}
