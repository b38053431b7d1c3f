//! How types are called in a checkpoint. The names are those that arrow 59 shows, and stay so whatever later ones show.

use std::collections::HashMap;

use arrow::datatypes::{DataType, Field, IntervalUnit, TimeUnit, UnionMode};

/// The name of a type, with those of its parts.
pub(super) fn type_name(of_type: &DataType) -> String {
    let plain = match of_type {
        DataType::Null => "Null",
        DataType::Boolean => "Boolean",
        DataType::Int8 => "Int8",
        DataType::Int16 => "Int16",
        DataType::Int32 => "Int32",
        DataType::Int64 => "Int64",
        DataType::UInt8 => "UInt8",
        DataType::UInt16 => "UInt16",
        DataType::UInt32 => "UInt32",
        DataType::UInt64 => "UInt64",
        DataType::Float16 => "Float16",
        DataType::Float32 => "Float32",
        DataType::Float64 => "Float64",
        DataType::Date32 => "Date32",
        DataType::Date64 => "Date64",
        DataType::Binary => "Binary",
        DataType::LargeBinary => "LargeBinary",
        DataType::BinaryView => "BinaryView",
        DataType::Utf8 => "Utf8",
        DataType::LargeUtf8 => "LargeUtf8",
        DataType::Utf8View => "Utf8View",
        DataType::Timestamp(u, None) => return format!("Timestamp({})", unit(u)),
        DataType::Timestamp(u, Some(zone)) => return format!("Timestamp({}, {:?})", unit(u), zone.as_ref()),
        DataType::Time32(u) => return format!("Time32({})", unit(u)),
        DataType::Time64(u) => return format!("Time64({})", unit(u)),
        DataType::Duration(u) => return format!("Duration({})", unit(u)),
        DataType::Interval(IntervalUnit::YearMonth) => "Interval(YearMonth)",
        DataType::Interval(IntervalUnit::DayTime) => "Interval(DayTime)",
        DataType::Interval(IntervalUnit::MonthDayNano) => "Interval(MonthDayNano)",
        DataType::FixedSizeBinary(bytes) => return format!("FixedSizeBinary({bytes})"),
        DataType::Decimal32(p, s) => return format!("Decimal32({p}, {s})"),
        DataType::Decimal64(p, s) => return format!("Decimal64({p}, {s})"),
        DataType::Decimal128(p, s) => return format!("Decimal128({p}, {s})"),
        DataType::Decimal256(p, s) => return format!("Decimal256({p}, {s})"),
        DataType::List(item) => return format!("List({})", item_name(item)),
        DataType::LargeList(item) => return format!("LargeList({})", item_name(item)),
        DataType::ListView(item) => return format!("ListView({})", item_name(item)),
        DataType::LargeListView(item) => return format!("LargeListView({})", item_name(item)),
        DataType::FixedSizeList(item, size) => return format!("FixedSizeList({size} x {})", item_name(item)),
        DataType::Struct(fields) => {
            let fields: Vec<String> = fields.iter().map(|field| field_name(field)).collect();
            return format!("Struct({})", fields.join(", "));
        }
        DataType::Map(entries, sorted) => {
            let sorted = if *sorted { "sorted" } else { "unsorted" };
            return format!("Map({}, {sorted})", field_name(entries));
        }
        DataType::Dictionary(keys, values) => return format!("Dictionary({}, {})", type_name(keys), type_name(values)),
        DataType::RunEndEncoded(ends, values) => {
            return format!("RunEndEncoded({}, {})", field_name(ends), field_name(values));
        }
        DataType::Union(fields, mode) => {
            let mode = match mode {
                UnionMode::Sparse => "Sparse",
                UnionMode::Dense => "Dense",
            };
            let fields: String = fields.iter().map(|(id, field)| format!(", {id}: ({})", field_name(field))).collect();
            return format!("Union({mode}{fields})");
        }
    };
    plain.to_owned()
}

fn unit(unit: &TimeUnit) -> &'static str {
    match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "µs",
        TimeUnit::Nanosecond => "ns",
    }
}

fn nullability(field: &Field) -> &'static str {
    if field.is_nullable() { "" } else { "non-null " }
}

/// The items of a list: their name is included where it is not the usual one.
fn item_name(item: &Field) -> String {
    let named = if item.name() == "item" { String::new() } else { format!(", field: '{}'", item.name()) };
    format!("{}{}{named}{}", nullability(item), type_name(item.data_type()), metadata(item.metadata()))
}

fn field_name(field: &Field) -> String {
    let of_type = type_name(field.data_type());
    format!("{:?}: {}{of_type}{}", field.name().as_str(), nullability(field), metadata(field.metadata()))
}

fn metadata(metadata: &HashMap<String, String>) -> String {
    if metadata.is_empty() {
        return String::new();
    }
    let mut entries: Vec<String> = metadata.iter().map(|(key, value)| format!("{key:?}: {value:?}")).collect();
    entries.sort_unstable();
    format!(", metadata: {{{}}}", entries.join(", "))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// What is on disk: an expectation that is to change is a checkpoint that cannot be continued.
    #[test]
    fn types_are_called_what_they_were() {
        let field = |name: &str, of_type, nullable| Arc::new(Field::new(name, of_type, nullable));
        let marked = Field::new("ts", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true)
            .with_metadata(HashMap::from([("b".to_owned(), "2".to_owned()), ("a".to_owned(), "\"".to_owned())]));
        let entries =
            DataType::Struct(vec![field("k", DataType::Utf8, false), field("v", DataType::Int8, true)].into());
        for (of_type, expected) in [
            (DataType::Null, "Null"),
            (DataType::Utf8View, "Utf8View"),
            (DataType::Timestamp(TimeUnit::Millisecond, None), "Timestamp(ms)"),
            (DataType::Time64(TimeUnit::Microsecond), "Time64(µs)"),
            (DataType::Duration(TimeUnit::Second), "Duration(s)"),
            (DataType::Interval(IntervalUnit::MonthDayNano), "Interval(MonthDayNano)"),
            (DataType::FixedSizeBinary(16), "FixedSizeBinary(16)"),
            (DataType::Decimal128(20, -3), "Decimal128(20, -3)"),
            (DataType::List(field("item", DataType::Float64, true)), "List(Float64)"),
            (DataType::LargeList(field("x", DataType::Date32, false)), "LargeList(non-null Date32, field: 'x')"),
            (DataType::FixedSizeList(field("item", DataType::UInt8, false), 3), "FixedSizeList(3 x non-null UInt8)"),
            (
                DataType::Struct(vec![Arc::new(marked)].into()),
                r#"Struct("ts": Timestamp(µs, "UTC"), metadata: {"a": "\"", "b": "2"})"#,
            ),
            (
                DataType::Map(field("entries", entries, false), false),
                r#"Map("entries": non-null Struct("k": non-null Utf8, "v": Int8), unsorted)"#,
            ),
            (DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Binary)), "Dictionary(Int32, Binary)"),
        ] {
            assert_eq!(type_name(&of_type), expected);
        }
    }
}
