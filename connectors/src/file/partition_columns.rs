//! Columns that are spelled in the path: `…/day=2024-01-01/country=__HIVE_DEFAULT_PARTITION__/part-0.parquet`.

use arrow::datatypes::{DataType, Schema};
use datafusion::common::ScalarValue;
use object_store::path::Path;
use percent_encoding::percent_decode_str;
use tidewater::error::{Error, ErrorKind, Result};

/// How a null is spelled in a path.
const NULL: &str = "__HIVE_DEFAULT_PARTITION__";

/// The `key=value` folders between `root` and the file `path`, outermost first; a value of `None` is null.
pub(super) fn in_path(root: &Path, path: &Path) -> Vec<(String, Option<String>)> {
    let below: Vec<_> = path.prefix_match(root).into_iter().flatten().collect();
    let folders = below.split_last().map_or(&[][..], |(_, folders)| folders);
    folders
        .iter()
        .filter_map(|folder| folder.as_ref().split_once('='))
        .map(|(key, value)| (unescaped(key), (value != NULL).then(|| unescaped(value))))
        .collect()
}

/// The columns of `schema` that the file `path` has in its path, by position, and their values there.
pub(super) fn constants(schema: &Schema, root: &Path, path: &Path) -> Result<Vec<(usize, ScalarValue)>> {
    let mut constants: Vec<(usize, ScalarValue)> = vec![];
    for (key, value) in in_path(root, path) {
        let Ok(index) = schema.index_of(&key) else { continue };
        let wanted = schema.field(index).data_type();
        let value = match value {
            None => ScalarValue::try_new_null(wanted)?,
            Some(text) => {
                ScalarValue::new_utf8(&text).cast_to(wanted).ok().filter(|value| !value.is_null()).ok_or_else(|| {
                    Error::new(
                        ErrorKind::BadInput,
                        format!("the folder `{key}={text}` has no value of type {wanted} for column `{key}`"),
                    )
                    .hint("rename or remove the folder, or declare the column as Utf8")
                })?
            }
        };
        constants.retain(|(known, _)| *known != index);
        constants.push((index, value));
    }
    constants.sort_by_key(|(index, _)| *index);
    Ok(constants)
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

fn unescaped(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Field;

    use super::*;

    fn values(path: &str, fields: Vec<Field>) -> Result<Vec<(usize, ScalarValue)>> {
        constants(&Schema::new(fields), &Path::parse("in").unwrap(), &Path::parse(path).unwrap())
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
