//! What an operator keeps: the columns of its files, and whether another release of the query can go on from them.
//!
//! ```text
//! │ removed │ keys … │ id … │ time │ values … │        one row per change
//! ```
//!
//! `removed` (Boolean): the row is taken away. `keys`: they decide the partition. `id`: what else makes a row unique.
//! `time` (Int64): the µs since 1970 at which the row is due; null for never. `values`: null where `removed`.
//!
//! Of changes to one row (same keys and id) the newest counts. The time of a row never decreases from one change to the
//! next, and a removal has the time of what it removes: so when the newest is behind the bound, all are.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, new_null_array};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::error::Result;
use serde::{Deserialize, Serialize};

use super::spelling::{one_spelling, plain, plain_type, without_slack};
use super::table::NEVER;
use super::type_names::type_name;

/// See the [module](self).
#[derive(Debug, Clone)]
pub(crate) struct StateSpec {
    /// What kind of operator it is.
    pub(crate) operator: &'static str,
    /// The columns that decide the partition.
    pub(crate) keys: Vec<FieldRef>,
    /// Further columns that make a row unique.
    pub(crate) id: Vec<FieldRef>,
    /// What is kept per row.
    pub(crate) values: Vec<FieldRef>,
    /// What the operator does, as far as it gives meaning to the values.
    pub(crate) describe: Vec<String>,
    /// Parts of it of which releases before [`REVISION`] kept something wrong.
    pub(crate) wrong_before: Vec<String>,
    /// How many bounds of eviction it has; with two, the first column of `id` (`UInt8`) says which.
    pub(crate) sides: usize,
}

impl StateSpec {
    /// The columns of a file of changes.
    pub(crate) fn file_schema(&self) -> SchemaRef {
        let plain = |name: String, field: &FieldRef| Field::new(name, plain_type(field.data_type()), true);
        let mut fields = vec![Field::new("removed", DataType::Boolean, false)];
        fields.extend(self.keys.iter().enumerate().map(|(i, f)| plain(format!("key.{i}.{}", f.name()), f)));
        fields.extend(self.id.iter().map(|f| plain(format!("id.{}", f.name()), f)));
        fields.push(Field::new("time", DataType::Int64, true));
        fields.extend(self.values.iter().enumerate().map(|(i, f)| plain(format!("value.{i}.{}", f.name()), f)));
        Arc::new(Schema::new(fields))
    }

    /// Which columns of a file are keys and id.
    pub(crate) fn unique_columns(&self) -> std::ops::Range<usize> {
        1..self.time_column()
    }

    /// The column of a file that has the time.
    pub(crate) fn time_column(&self) -> usize {
        1 + self.keys.len() + self.id.len()
    }

    /// Changes to some rows: as many keys, ids, times and values each. A removal has no values.
    pub(crate) fn change(
        &self,
        removed: bool,
        keys: Vec<ArrayRef>,
        id: Vec<ArrayRef>,
        times_us: &[i64],
        values: Option<Vec<ArrayRef>>,
    ) -> Result<RecordBatch> {
        let rows = times_us.len();
        let values =
            values.unwrap_or_else(|| self.values.iter().map(|field| new_null_array(field.data_type(), rows)).collect());
        let times: Int64Array = times_us.iter().map(|&us| (us != NEVER).then_some(us)).collect();
        let mut columns: Vec<ArrayRef> = vec![Arc::new(BooleanArray::from(vec![removed; rows]))];
        columns.extend(one_spelling(&keys)?);
        columns.extend(id);
        columns.push(Arc::new(times));
        columns.extend(values);
        // What is written holds the values of these rows and no others.
        let columns = columns.iter().map(|column| without_slack(&plain(column)?)).collect::<Result<_>>()?;
        Ok(RecordBatch::try_new(self.file_schema(), columns)?)
    }

    /// What is remembered of it in the checkpoint; `meaning` is what [the plan](crate::plan) tells of its keys and values.
    pub(crate) fn told(&self, meaning: &[String]) -> ToldSpec {
        let told = |fields: &[FieldRef]| {
            fields.iter().map(|f| ToldColumn { name: f.name().clone(), of_type: type_name(f.data_type()) }).collect()
        };
        ToldSpec {
            operator: self.operator.to_owned(),
            keys: told(&self.keys),
            id: told(&self.id),
            values: told(&self.values),
            describe: self.describe.clone(),
            revision: REVISION,
            wrong_before: self.wrong_before.clone(),
            meaning: meaning.to_vec(),
            written_by: Some(WrittenBy::this()),
        }
    }
}

/// Raised when a release finds that older ones kept something wrong.
const REVISION: u32 = 1;

/// A [`StateSpec`] as the checkpoint tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ToldSpec {
    pub(crate) operator: String,
    pub(crate) keys: Vec<ToldColumn>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) id: Vec<ToldColumn>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) values: Vec<ToldColumn>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) describe: Vec<String>,
    #[serde(default)]
    pub(crate) revision: u32,
    /// See [`StateSpec::wrong_before`].
    #[serde(skip)]
    pub(crate) wrong_before: Vec<String>,
    /// The versions that write it. Nothing is refused for them.
    #[serde(default, rename = "writtenBy", skip_serializing_if = "Option::is_none")]
    pub(crate) written_by: Option<WrittenBy>,
    /// What keys and values are, followed down to the sources. Checkpoints of 0.1.0 do not have it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) meaning: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ToldColumn {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) of_type: String,
}

/// The versions of what wrote partial state, whose form is DataFusion's affair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WrittenBy {
    pub(crate) engine: String,
    pub(crate) datafusion: String,
}

impl WrittenBy {
    fn this() -> Self {
        WrittenBy {
            engine: env!("CARGO_PKG_VERSION").to_owned(),
            datafusion: datafusion::DATAFUSION_VERSION.to_owned(),
        }
    }
}

/// What to say where state was written by another version of DataFusion; nothing where it was not, or is not known.
pub(crate) fn other_versions(old: &[ToldSpec], new: &[ToldSpec]) -> Option<String> {
    old.iter().zip(new).find_map(|(old, new)| {
        let (was, is) = (old.written_by.as_ref()?, new.written_by.as_ref()?);
        (was.datafusion != is.datafusion).then(|| {
            format!(
                "the state in the checkpoint was written by release {} with DataFusion {}, and is continued by release {} with \
                 DataFusion {}: functions whose partial state changed between these would answer wrongly",
                was.engine, was.datafusion, is.engine, is.datafusion
            )
        })
    })
}

/// Why the state of `old` operators does not fit the `new` ones, line by line; empty if it does. Names may differ: columns
/// are matched by position, like the aggregates they come from.
pub(crate) fn differences(old: &[ToldSpec], new: &[ToldSpec]) -> Vec<String> {
    let mut found = vec![];
    if old.len() != new.len() {
        let list = |specs: &[ToldSpec]| specs.iter().map(|s| s.operator.as_str()).collect::<Vec<_>>().join(", ");
        found.push(format!(
            "the checkpoint has {} stateful operators ({}), the query has {} ({}), counted from the sink",
            old.len(),
            list(old),
            new.len(),
            list(new)
        ));
        return found;
    }
    for (number, (old, new)) in old.iter().zip(new).enumerate() {
        if old.operator != new.operator {
            found.push(format!("operator {number} was {} and is {}", old.operator, new.operator));
            continue;
        }
        let kind = &new.operator;
        if old.revision < new.revision && !new.wrong_before.is_empty() {
            found.push(format!(
                "operator {number} ({kind}): the release that wrote the checkpoint kept something wrong between the batches of \
                 [{}], so what it knows of them cannot be continued",
                new.wrong_before.join(", ")
            ));
            continue;
        }
        columns(&format!("operator {number} ({kind}): key"), &old.keys, &new.keys, &mut found);
        columns(&format!("operator {number} ({kind}): identity"), &old.id, &new.id, &mut found);
        // Where both tell what they mean, that decides; before, only what DataFusion makes of the query was known.
        let both_tell = !old.meaning.is_empty() && !new.meaning.is_empty();
        let (was, is) = if both_tell { (&old.meaning, &new.meaning) } else { (&old.describe, &new.describe) };
        let tells_all = both_tell && AGGREGATIONS.contains(&kind.as_str());
        if !same_words(was, is) || (!tells_all && !same_words(&old.describe, &new.describe)) {
            let (was, is) = if same_words(was, is) { (&old.describe, &new.describe) } else { (was, is) };
            let (was, is) = (was.join(", "), is.join(", "));
            found.push(format!("operator {number} ({kind}) computed [{was}] and is to compute [{is}]"));
        } else {
            columns(&format!("operator {number} ({kind}): kept column"), &old.values, &new.values, &mut found);
        }
    }
    found
}

/// Operators whose `describe` is made of names that DataFusion gives.
const AGGREGATIONS: [&str; 2] = ["aggregate", "sessionWindow"];

/// Whether two descriptions are the same but for numbers in names that were made up: these differ from start to start.
fn same_words(old: &[String], new: &[String]) -> bool {
    old.len() == new.len() && old.iter().zip(new).all(|(old, new)| without_numbers(old) == without_numbers(new))
}

/// Without the numbers in names that DataFusion makes up.
fn without_numbers(text: &str) -> String {
    const MADE_UP: [&str; 2] = ["__common_expr_", "__datafusion_extracted_"];
    let (mut told, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(end) = MADE_UP.iter().filter_map(|name| Some(rest.find(name)? + name.len())).min() {
        told.push_str(&rest[..end]);
        rest = rest[end..].trim_start_matches(|c: char| c.is_ascii_digit());
    }
    told + rest
}

fn columns(what: &str, old: &[ToldColumn], new: &[ToldColumn], found: &mut Vec<String>) {
    if old.len() != new.len() {
        let list = |columns: &[ToldColumn]| columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
        found.push(format!("{what}s were [{}] and are [{}]", list(old), list(new)));
        return;
    }
    for (old, new) in old.iter().zip(new).filter(|(old, new)| old.of_type != new.of_type) {
        found.push(format!("{what} `{}` was {} and is {}", new.name, old.of_type, new.of_type));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aggregate(key_type: DataType, describe: &[&str]) -> ToldSpec {
        StateSpec {
            operator: "aggregate",
            keys: vec![Arc::new(Field::new("k", key_type, true))],
            id: vec![],
            values: describe.iter().map(|d| Arc::new(Field::new(*d, DataType::Int64, true)) as _).collect(),
            describe: describe.iter().map(ToString::to_string).collect(),
            wrong_before: vec![],
            sides: 1,
        }
        .told(&[])
    }

    #[test]
    fn what_changed_is_named() {
        let old = [aggregate(DataType::Utf8, &["count(1)"])];
        assert!(differences(&old, &old).is_empty());
        for (new, expected) in [
            (vec![aggregate(DataType::Int64, &["count(1)"])], "operator 0 (aggregate): key `k` was Utf8 and is Int64"),
            (
                vec![aggregate(DataType::Utf8, &["count(1)", "sum(v)"])],
                "operator 0 (aggregate) computed [count(1)] and is to compute [count(1), sum(v)]",
            ),
            (vec![], "the checkpoint has 1 stateful operators (aggregate), the query has 0 (), counted from the sink"),
        ] {
            assert_eq!(differences(&old, &new), [expected]);
        }
    }

    #[test]
    fn other_versions_are_told_and_not_refused() {
        let by = |datafusion: Option<&str>| {
            let by = |datafusion: &str| WrittenBy { engine: "0.1.0".into(), datafusion: datafusion.into() };
            [ToldSpec { written_by: datafusion.map(by), ..aggregate(DataType::Utf8, &["count(1)"]) }]
        };
        let (old, new) = (by(Some("54.0.0")), by(Some("55.2.0")));
        assert!(differences(&old, &new).is_empty());
        let said = other_versions(&old, &new).unwrap();
        assert!(said.contains("54.0.0") && said.contains("55.2.0"), "{said}");
        assert_eq!(other_versions(&new, &new), None);
        assert_eq!(other_versions(&by(None), &new), None);
        let told = serde_json::json!(new[0]);
        assert_eq!(told["writtenBy"], serde_json::json!({"datafusion": "55.2.0", "engine": "0.1.0"}));
    }

    #[test]
    fn what_is_meant_decides_where_it_is_told() {
        let told = |describe: &str, meaning: &[&str]| {
            let meaning = meaning.iter().map(ToString::to_string).collect();
            [ToldSpec { meaning, ..aggregate(DataType::Utf8, &[describe]) }]
        };
        let sum = told("sum(__common_expr_1)", &["by source0.k", "sum((source0.v + source0.id))"]);
        // The same query, started twice in one process.
        assert!(
            differences(&sum, &told("sum(__common_expr_2)", &["by source0.k", "sum((source0.v + source0.id))"]))
                .is_empty()
        );
        assert!(
            !differences(&sum, &told("sum(__common_expr_1)", &["by source0.k", "sum((source0.v - source0.id))"]))
                .is_empty()
        );
        assert!(
            !differences(
                &sum,
                &told("sum(__common_expr_1)", &["by upper(source0.k)", "sum((source0.v + source0.id))"])
            )
            .is_empty()
        );
        // Written before there were words for it.
        let old = told("sum(__common_expr_1)", &[]);
        assert!(
            differences(&old, &sum).is_empty() && !differences(&old, &told("sum(v)", &["by source0.k"])).is_empty()
        );
    }
}
