//! Columns as Spark writes them down: `a INT, b STRUCT<c: STRING>, d ARRAY<BIGINT>`.

use std::sync::Arc;

use arrow::datatypes::{DECIMAL128_MAX_PRECISION, DataType, Field, Fields, TimeUnit};
use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, DataType as SqlType, ExactNumberInfo, StructField, TimezoneInfo,
};
use datafusion::sql::sqlparser::dialect::SparkSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;

/// The precision of `DECIMAL` alone.
const DECIMAL_PRECISION: u8 = 10;

/// The columns of `ddl`, all of them nullable, or what is wrong with it. `STRUCT<…>` around the whole changes nothing.
pub(super) fn parse(ddl: &str) -> Result<Fields, String> {
    if ddl.trim().is_empty() {
        return Err("it names no columns".to_owned());
    }
    let text = if is_struct(ddl) { ddl.to_owned() } else { format!("STRUCT<{ddl}>") };
    let dialect = SparkSqlDialect;
    let mut parser = Parser::new(&dialect).try_with_sql(&text).map_err(|e| e.to_string())?;
    let parsed = parser.parse_data_type().map_err(|e| e.to_string())?;
    parser.expect_token(&Token::EOF).map_err(|e| e.to_string())?;
    match parsed {
        SqlType::Struct(columns, _) => fields(&columns),
        other => Err(format!("`{other}` is not a list of columns")),
    }
}

fn is_struct(ddl: &str) -> bool {
    let word = "STRUCT";
    let ddl = ddl.trim_start();
    let named = ddl.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
    named && ddl.get(word.len()..).is_some_and(|rest| rest.trim_start().starts_with('<'))
}

fn fields(columns: &[StructField]) -> Result<Fields, String> {
    let mut fields: Vec<Field> = Vec::with_capacity(columns.len());
    for column in columns {
        let Some(name) = &column.field_name else {
            return Err(format!("`{}` is not a name and a type", column.field_type));
        };
        if fields.iter().any(|field| *field.name() == name.value) {
            return Err(format!("there are two columns `{}`", name.value));
        }
        fields.push(Field::new(&name.value, data_type(&column.field_type)?, true));
    }
    Ok(fields.into())
}

fn data_type(sql: &SqlType) -> Result<DataType, String> {
    let timestamp = || DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Ok(match sql {
        SqlType::Boolean | SqlType::Bool => DataType::Boolean,
        SqlType::TinyInt(_) => DataType::Int8,
        SqlType::SmallInt(_) => DataType::Int16,
        SqlType::Int(_) | SqlType::Integer(_) => DataType::Int32,
        SqlType::BigInt(_) => DataType::Int64,
        SqlType::Float(_) | SqlType::Real => DataType::Float32,
        SqlType::Double(_) | SqlType::DoublePrecision => DataType::Float64,
        SqlType::Decimal(size) | SqlType::Dec(size) | SqlType::Numeric(size) => decimal(size)?,
        SqlType::String(_) | SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Text => DataType::Utf8,
        SqlType::Binary(_) => DataType::Binary,
        SqlType::Date => DataType::Date32,
        SqlType::Timestamp(_, TimezoneInfo::WithoutTimeZone) | SqlType::TimestampNtz(_) => {
            DataType::Timestamp(TimeUnit::Microsecond, None)
        }
        SqlType::Timestamp(_, _) => timestamp(),
        SqlType::Array(ArrayElemTypeDef::AngleBracket(item)) => {
            DataType::List(Arc::new(Field::new_list_field(data_type(item)?, true)))
        }
        SqlType::Map(key, value) => {
            let entry = vec![Field::new("key", data_type(key)?, false), Field::new("value", data_type(value)?, true)];
            DataType::Map(Arc::new(Field::new_struct("entries", entry, false)), false)
        }
        SqlType::Struct(columns, _) => DataType::Struct(fields(columns)?),
        // Names that only Spark has.
        other => match other.to_string().to_ascii_uppercase().as_str() {
            "BYTE" => DataType::Int8,
            "SHORT" => DataType::Int16,
            "TIMESTAMP_LTZ" => timestamp(),
            _ => return Err(format!("`{other}` is not a supported type")),
        },
    })
}

fn decimal(size: &ExactNumberInfo) -> Result<DataType, String> {
    let (precision, scale) = match size {
        ExactNumberInfo::None => (u64::from(DECIMAL_PRECISION), 0),
        ExactNumberInfo::Precision(precision) => (*precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (*precision, *scale),
    };
    let fitting = u8::try_from(precision).ok().filter(|p| (1..=DECIMAL128_MAX_PRECISION).contains(p));
    let scale = i8::try_from(scale).ok().filter(|scale| *scale >= 0);
    match (fitting, scale) {
        (Some(precision), Some(scale)) if scale.unsigned_abs() <= precision => {
            Ok(DataType::Decimal128(precision, scale))
        }
        _ => {
            Err(format!("DECIMAL{size} has at most {DECIMAL128_MAX_PRECISION} digits, so many of them after the point"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(ddl: &str) -> Vec<(String, DataType)> {
        let fields = parse(ddl).unwrap_or_else(|e| panic!("{ddl}: {e}"));
        assert!(fields.iter().all(|field| field.is_nullable()));
        fields.iter().map(|field| (field.name().clone(), field.data_type().clone())).collect()
    }

    #[test]
    fn sparks_names_of_types() {
        let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let local = DataType::Timestamp(TimeUnit::Microsecond, None);
        for (name, expected) in [
            ("BOOLEAN", DataType::Boolean),
            ("byte", DataType::Int8),
            ("TINYINT", DataType::Int8),
            ("SHORT", DataType::Int16),
            ("SMALLINT", DataType::Int16),
            ("INT", DataType::Int32),
            ("Integer", DataType::Int32),
            ("BIGINT", DataType::Int64),
            ("LONG", DataType::Int64),
            ("FLOAT", DataType::Float32),
            ("REAL", DataType::Float32),
            ("DOUBLE", DataType::Float64),
            ("DECIMAL", DataType::Decimal128(10, 0)),
            ("DEC(5)", DataType::Decimal128(5, 0)),
            ("NUMERIC(38, 4)", DataType::Decimal128(38, 4)),
            ("STRING", DataType::Utf8),
            ("VARCHAR(20)", DataType::Utf8),
            ("BINARY", DataType::Binary),
            ("DATE", DataType::Date32),
            ("TIMESTAMP", utc.clone()),
            ("TIMESTAMP_LTZ", utc),
            ("TIMESTAMP_NTZ", local),
        ] {
            assert_eq!(types(&format!("x {name}")), [("x".to_owned(), expected)], "{name}");
        }
    }

    #[test]
    fn types_within_types() {
        let strings =
            |names: &[&str]| -> Fields { names.iter().map(|n| Field::new(*n, DataType::Utf8, true)).collect() };
        let list = |item| DataType::List(Arc::new(Field::new_list_field(item, true)));
        let expected = [
            ("a".to_owned(), DataType::Int32),
            ("My Column".to_owned(), DataType::Struct(strings(&["c", "timestamp"]))),
            ("d".to_owned(), list(list(DataType::Struct(strings(&["e"]))))),
        ];
        let ddl = "a INT, `My Column` STRUCT<c: STRING, timestamp STRING>, d ARRAY<ARRAY<STRUCT<e: STRING>>>";
        assert_eq!(types(ddl), expected);
        assert_eq!(types(&format!(" struct <{ddl}>")), expected);

        let map = types("m: MAP<STRING, ARRAY<INT>>");
        let DataType::Map(entries, false) = &map[0].1 else { panic!("{map:?}") };
        let DataType::Struct(entry) = entries.data_type() else { panic!("{entries}") };
        assert_eq!(entry[0].data_type(), &DataType::Utf8);
        assert!(!entry[0].is_nullable() && entry[1].is_nullable());
        assert_eq!(types("struct INT")[0].0, "struct");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (ddl, why) in [
            ("", "no columns"),
            ("a", "not a name and a type"),
            ("a INT, b", "not a name and a type"),
            ("a INT, a STRING", "two columns `a`"),
            ("a COLOUR", "`COLOUR` is not a supported type"),
            ("a INTERVAL", "not a supported type"),
            ("a DECIMAL(39)", "at most 38"),
            ("a DECIMAL(3, 4)", "at most 38"),
            ("a STRUCT<b INT", ">"),
            ("a INT> b", "b"),
            ("STRUCT<a INT>, b INT", ""),
        ] {
            let error = parse(ddl).unwrap_err();
            assert!(error.contains(why), "{ddl}: {error}");
        }
    }
}
