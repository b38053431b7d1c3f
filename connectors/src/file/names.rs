//! Which name in a file means which column of the source: pure.
//!
//! As in Spark, case does not matter unless the option `caseSensitive` says so, and a name that two columns of a file could
//! mean is refused. Fields of structs are found by the same rule.

use arrow::datatypes::{DataType, Field, Fields, Schema};
use tidewater::error::{Error, Result};

/// How names are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) case_sensitive: bool,
}

impl Names {
    fn key(self, name: &str) -> String {
        if self.case_sensitive { name.to_owned() } else { name.to_lowercase() }
    }

    pub(super) fn same(self, one: &str, other: &str) -> bool {
        one == other || (!self.case_sensitive && one.to_lowercase() == other.to_lowercase())
    }

    /// Which of `names` means `wanted`; an error if two do.
    pub(super) fn find<'a>(
        self,
        names: impl IntoIterator<Item = &'a str>,
        wanted: &str,
    ) -> std::result::Result<Option<usize>, String> {
        let mut found: Option<(usize, &str)> = None;
        for (index, name) in names.into_iter().enumerate().filter(|(_, name)| self.same(name, wanted)) {
            if let Some((_, first)) = found {
                return Err(format!("`{wanted}` may mean `{first}` or `{name}`"));
            }
            found = Some((index, name));
        }
        Ok(found.map(|(index, _)| index))
    }

    /// An error if two columns of a source, or two fields of a struct in it, have the same name.
    pub(super) fn check(self, schema: &Schema) -> Result<()> {
        self.check_fields(schema.fields(), "").map_err(|(one, other)| {
            Error::invalid(format!("the columns `{one}` and `{other}` of the source have the same name but for case"))
                .with_hint(
                    "rename one; or set the option `caseSensitive` to `true` if names in the files that differ in case are different columns",
                )
        })
    }

    fn check_fields(self, fields: &Fields, above: &str) -> std::result::Result<(), (String, String)> {
        let mut known: Vec<(String, &str)> = vec![];
        for field in fields {
            let key = self.key(field.name());
            if let Some((_, other)) = known.iter().find(|(known, _)| *known == key) {
                return Err((format!("{above}{other}"), format!("{above}{}", field.name())));
            }
            known.push((key, field.name()));
            let inner = match field.data_type() {
                DataType::List(item) | DataType::LargeList(item) => item.data_type(),
                other => other,
            };
            if let DataType::Struct(fields) = inner {
                self.check_fields(fields, &format!("{above}{}.", field.name()))?;
            }
        }
        Ok(())
    }

    /// The type `wanted` with its fields spelled as a file that has the type `found` spells them. An error says of it why no
    /// value of `found` can be read as `wanted`.
    pub(super) fn as_spelled(self, found: &DataType, wanted: &DataType) -> std::result::Result<DataType, String> {
        use DataType::{Dictionary, LargeList, List, Struct};
        match (found, wanted) {
            (Dictionary(_, values), _) if found != wanted => self.as_spelled(values, wanted),
            (Struct(found), Struct(wanted)) => {
                let names = || found.iter().map(|field| field.name().as_str());
                let field = |wanted: &std::sync::Arc<Field>| {
                    let Some(found) = self.find(names(), wanted.name())?.and_then(|index| found.get(index)) else {
                        return Ok(std::sync::Arc::clone(wanted));
                    };
                    let data_type = self
                        .as_spelled(found.data_type(), wanted.data_type())
                        .map_err(|why| format!("has the field `{}`, which {why}", found.name()))?;
                    let field = wanted.as_ref().clone().with_name(found.name()).with_data_type(data_type);
                    Ok(std::sync::Arc::new(field))
                };
                wanted.iter().map(field).collect::<std::result::Result<Fields, String>>().map(Struct)
            }
            (List(found) | LargeList(found), List(wanted)) => {
                let item = self.as_spelled(found.data_type(), wanted.data_type())?;
                Ok(List(std::sync::Arc::new(wanted.as_ref().clone().with_data_type(item))))
            }
            (List(found) | LargeList(found), LargeList(wanted)) => {
                let item = self.as_spelled(found.data_type(), wanted.data_type())?;
                Ok(LargeList(std::sync::Arc::new(wanted.as_ref().clone().with_data_type(item))))
            }
            _ if reads_as(found, wanted) => Ok(wanted.clone()),
            _ => Err(format!("is {found} in this file, and the query expects {wanted}")),
        }
    }

    /// The paths of all columns and fields of `wanted` that `found` lacks: `id`, `address.street`.
    pub(super) fn lacking(self, found: &Fields, wanted: &Fields) -> Vec<String> {
        let mut paths = vec![];
        self.add_lacking(found, wanted, "", &mut paths);
        paths
    }

    fn add_lacking(self, found: &Fields, wanted: &Fields, above: &str, paths: &mut Vec<String>) {
        for field in wanted {
            let path = format!("{above}{}", field.name());
            match found.iter().find(|found| self.same(found.name(), field.name())) {
                None => paths.push(path),
                Some(found) => {
                    if let (DataType::Struct(found), DataType::Struct(wanted)) = (found.data_type(), field.data_type())
                    {
                        self.add_lacking(found, wanted, &format!("{path}."), paths);
                    }
                }
            }
        }
    }
}

/// True if every value of the plain type `found` has its like in `wanted`.
fn reads_as(found: &DataType, wanted: &DataType) -> bool {
    use DataType::*;
    if found == wanted {
        return true;
    }
    match (found, wanted) {
        (Null, _) => true,
        (Utf8 | LargeUtf8 | Utf8View, Utf8 | LargeUtf8 | Utf8View) => true,
        (Binary | LargeBinary | BinaryView | FixedSizeBinary(_), Binary | LargeBinary | BinaryView) => true,
        (Timestamp(..), Timestamp(..)) => true,
        (Float32, Float64) => true,
        (Decimal128(p, s) | Decimal256(p, s), Decimal128(wp, ws) | Decimal256(wp, ws)) => {
            ws >= s && i16::from(*wp) - i16::from(*ws) >= i16::from(*p) - i16::from(*s)
        }
        _ => match (integer_bits(found), integer_bits(wanted)) {
            (Some((found, signed)), Some((wanted, wanted_signed))) => {
                found < wanted && (signed == wanted_signed || wanted_signed)
            }
            (Some((bits, _)), None) => matches!(wanted, Float64) && bits <= 32,
            _ => false,
        },
    }
}

/// How wide an integer is, and whether it has a sign.
fn integer_bits(of: &DataType) -> Option<(u8, bool)> {
    Some(match of {
        DataType::Int8 => (8, true),
        DataType::Int16 => (16, true),
        DataType::Int32 => (32, true),
        DataType::Int64 => (64, true),
        DataType::UInt8 => (8, false),
        DataType::UInt16 => (16, false),
        DataType::UInt32 => (32, false),
        DataType::UInt64 => (64, false),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::TimeUnit;

    use super::*;

    const ANY_CASE: Names = Names { case_sensitive: false };
    const BY_CASE: Names = Names { case_sensitive: true };

    fn fields(names: &[(&str, DataType)]) -> Fields {
        names.iter().map(|(name, data_type)| Field::new(*name, data_type.clone(), true)).collect()
    }

    #[test]
    fn types_may_widen_and_nothing_else() {
        use DataType::*;
        for (found, wanted) in [
            (Int32, Int64),
            (UInt32, Int64),
            (Utf8, Utf8View),
            (Float32, Float64),
            (Int32, Float64),
            (Timestamp(TimeUnit::Nanosecond, None), Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
            (Decimal128(10, 2), Decimal128(12, 4)),
            (Dictionary(Box::new(Int32), Box::new(Utf8)), Utf8),
        ] {
            assert_eq!(ANY_CASE.as_spelled(&found, &wanted), Ok(wanted.clone()), "{found}");
        }
        for (found, wanted) in [
            (Int64, Int32),
            (Int32, UInt64),
            (Utf8, Int64),
            (Int64, Utf8),
            (Float64, Float32),
            (Int64, Float64),
            (Decimal128(10, 2), Decimal128(10, 4)),
        ] {
            assert!(ANY_CASE.as_spelled(&found, &wanted).is_err(), "{found} {wanted}");
        }
    }

    #[test]
    fn names_are_found_without_case_and_ambiguity_is_refused() {
        let names = ["ID", "straße", "v"];
        assert_eq!(ANY_CASE.find(names, "id"), Ok(Some(0)));
        assert_eq!(BY_CASE.find(names, "id"), Ok(None));
        assert_eq!(ANY_CASE.find(names, "STRASSE"), Ok(None));
        assert_eq!(ANY_CASE.find(names, "STRAßE"), Ok(Some(1)));
        assert!(ANY_CASE.find(["id", "ID"], "id").is_err());
        assert_eq!(BY_CASE.find(["id", "ID"], "ID"), Ok(Some(1)));
        let schema =
            Schema::new(fields(&[("s", DataType::Struct(fields(&[("a", DataType::Int8), ("A", DataType::Int8)])))]));
        assert!(ANY_CASE.check(&schema).unwrap_err().message().contains("`s.a` and `s.A`"));
        assert!(BY_CASE.check(&schema).is_ok());
    }

    #[test]
    fn structs_are_spelled_as_the_file_does() {
        let inner = |a: &str, b: &str| DataType::Struct(fields(&[(a, DataType::Int64), (b, DataType::Utf8)]));
        let list = |item: DataType| DataType::List(std::sync::Arc::new(Field::new("item", item, true)));
        let found = DataType::Struct(fields(&[("Deep", list(inner("B", "A"))), ("x", DataType::Int32)]));
        let wanted = DataType::Struct(fields(&[("X", DataType::Int64), ("deep", list(inner("b", "c")))]));
        let spelled = DataType::Struct(fields(&[("x", DataType::Int64), ("Deep", list(inner("B", "c")))]));
        assert_eq!(ANY_CASE.as_spelled(&found, &wanted), Ok(spelled));
        assert_eq!(BY_CASE.as_spelled(&found, &wanted), Ok(wanted.clone()));
        assert!(ANY_CASE.as_spelled(&inner("a", "A"), &inner("a", "b")).unwrap_err().contains("`a` or `A`"));
        let (found, wanted) =
            (fields(&[("S", found), ("y", DataType::Int8)]), fields(&[("s", wanted), ("z", DataType::Int8)]));
        assert_eq!(ANY_CASE.lacking(&found, &wanted), ["z"]);
        assert_eq!(BY_CASE.lacking(&found, &wanted), ["s", "z"]);
    }
}
