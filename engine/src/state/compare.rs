//! Whether the state in a checkpoint is that of this query: operators, keys, and what they mean.

use super::spec::{PersistedColumn, PersistedStateSchema};

/// What to say where state was written by another version of DataFusion; nothing where it was not, or is not known.
pub(crate) fn other_versions(old: &[PersistedStateSchema], new: &[PersistedStateSchema]) -> Option<String> {
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
pub(crate) fn differences(old: &[PersistedStateSchema], new: &[PersistedStateSchema]) -> Vec<String> {
    let mut found = vec![];
    if old.len() != new.len() {
        let list =
            |specs: &[PersistedStateSchema]| specs.iter().map(|s| s.operator.as_str()).collect::<Vec<_>>().join(", ");
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
        // Where both have a meaning, it decides; earlier checkpoints have only what DataFusion makes of the query.
        let both_tell = !old.meaning.is_empty() && !new.meaning.is_empty();
        let both_tell_kept = both_tell && [old, new].iter().all(|spec| spec.meaning.iter().any(|words| is_kept(words)));
        let (was, is) = if both_tell { (&old.meaning, &new.meaning) } else { (&old.description, &new.description) };
        let same = if both_tell { same_meaning(was, is, both_tell_kept) } else { same_words(was, is) };
        // What else a join describes by names is compared by its columns.
        let names = if both_tell_kept { 1 } else { usize::MAX };
        let described = |spec: &PersistedStateSchema| spec.description.iter().take(names).cloned().collect::<Vec<_>>();
        let tells_all = both_tell && AGGREGATIONS.contains(&kind.as_str());
        if !same || (!tells_all && !same_words(&described(old), &described(new))) {
            let (was, is) = if same { (&old.description, &new.description) } else { (was, is) };
            let (was, is) = (was.join(", "), is.join(", "));
            found.push(format!("operator {number} ({kind}) computed [{was}] and is to compute [{is}]"));
        } else {
            let kept = |spec: &PersistedStateSchema| match both_tell_kept {
                true => spec.values.iter().map(PersistedColumn::without_names).collect(),
                false => spec.values.clone(),
            };
            columns(&format!("operator {number} ({kind}): kept column"), &kept(old), &kept(new), &mut found);
        }
    }
    found
}

/// How the words begin for what a join keeps of its sides. Earlier checkpoints do not have them.
pub(crate) const KEPT: &str = "keeps ";

fn is_kept(words: &str) -> bool {
    words.starts_with(KEPT)
}

/// Whether two operators mean the same. Earlier descriptions did not distinguish tables, nor what rows are unnested
/// from, and spelled window functions as DataFusion does.
fn same_meaning(old: &[String], new: &[String], both_tell_kept: bool) -> bool {
    let comparable = |meaning: &[String]| -> Vec<String> {
        meaning.iter().filter(|words| both_tell_kept || !is_kept(words)).cloned().collect()
    };
    let same = |(old, new): (&String, &String)| {
        old == new
            || old.contains("UnnestExec.")
            || old.contains("WindowAggExec")
            || with_kinds_of_nodes(old) == *new
            || (old.contains("table.") && with_kinds_of_nodes(old) == without_table_numbers(new))
    };
    let (old, new) = (comparable(old), comparable(new));
    old.len() == new.len() && old.iter().zip(&new).all(same)
}

/// The kinds of the nodes that compute columns, where these are not described any further.
pub(crate) const UNNEST: &str = "unnest";
pub(crate) const NODE: &str = "node";

/// Earlier words, which have DataFusion's names of nodes (`UnnestExec(0 of source0.v)`), with the kinds of these.
fn with_kinds_of_nodes(words: &str) -> String {
    let (mut found, mut rest) = (String::with_capacity(words.len()), words);
    while let Some(end) = rest.find("Exec(").into_iter().chain(rest.find("Exec.")).min() {
        let start = rest[..end].rfind(|c: char| !c.is_ascii_alphanumeric()).map_or(0, |before| before + 1);
        found.push_str(&rest[..start]);
        found.push_str(match &rest[start..end] {
            "Unnest" => UNNEST,
            _ => NODE,
        });
        rest = &rest[end + "Exec".len()..];
    }
    found + rest
}

/// `table0.k` as earlier words have it, `table.k`.
fn without_table_numbers(words: &str) -> String {
    let mut parts = words.split("table");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit() || c == '_');
        text + "table" + if rest.starts_with('.') { rest } else { part }
    })
}

/// Operators whose `description` is made of names that DataFusion gives.
pub(crate) const AGGREGATIONS: [&str; 2] = ["aggregate", "sessionWindow"];

/// Whether two descriptions are the same but for numbers in names that were made up: these differ from start to start.
fn same_words(old: &[String], new: &[String]) -> bool {
    old.len() == new.len() && old.iter().zip(new).all(|(old, new)| without_numbers(old) == without_numbers(new))
}

/// Without the numbers in names that DataFusion makes up.
fn without_numbers(text: &str) -> String {
    const MADE_UP: [&str; 2] = ["__common_expr_", "__datafusion_extracted_"];
    let (mut found, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(end) = MADE_UP.iter().filter_map(|name| Some(rest.find(name)? + name.len())).min() {
        found.push_str(&rest[..end]);
        rest = rest[end..].trim_start_matches(|c: char| c.is_ascii_digit());
    }
    found + rest
}

fn columns(what: &str, old: &[PersistedColumn], new: &[PersistedColumn], found: &mut Vec<String>) {
    if old.len() != new.len() {
        let list = |columns: &[PersistedColumn]| columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
        found.push(format!("{what}s were [{}] and are [{}]", list(old), list(new)));
        return;
    }
    for (old, new) in old.iter().zip(new).filter(|(old, new)| old.of_type != new.of_type) {
        found.push(format!("{what} `{}` was {} and is {}", new.name, old.of_type, new.of_type));
    }
}

impl PersistedColumn {
    /// The same, of a struct without the names of its parts: these are what the user calls them.
    fn without_names(&self) -> Self {
        let (mut found, mut depth, mut in_name, mut escaped) = (String::new(), 0, false, false);
        for c in self.of_type.chars() {
            let was_in_name = in_name;
            match c {
                '"' if !escaped => in_name = !in_name,
                '(' if !in_name => depth += 1,
                ')' if !in_name => depth -= 1,
                _ => {}
            }
            escaped = was_in_name && c == '\\' && !escaped;
            if depth != 1 || !(in_name || was_in_name) {
                found.push(c);
            }
        }
        PersistedColumn {
            name: self.name.clone(),
            of_type: if self.of_type.starts_with("Struct(") { found } else { self.of_type.clone() },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field};

    use super::super::spec::{StateSchema, WrittenBy};
    use super::*;

    fn aggregate(key_type: DataType, describe: &[&str]) -> PersistedStateSchema {
        StateSchema {
            operator: "aggregate",
            keys: vec![Arc::new(Field::new("k", key_type, true))],
            id: vec![],
            values: describe.iter().map(|d| Arc::new(Field::new(*d, DataType::Int64, true)) as _).collect(),
            description: describe.iter().map(ToString::to_string).collect(),
            wrong_before: vec![],
            eviction_bounds: 1,
        }
        .to_persisted(&[])
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
            [PersistedStateSchema { written_by: datafusion.map(by), ..aggregate(DataType::Utf8, &["count(1)"]) }]
        };
        let (old, new) = (by(Some("54.0.0")), by(Some("55.2.0")));
        assert!(differences(&old, &new).is_empty());
        let said = other_versions(&old, &new).unwrap();
        assert!(said.contains("54.0.0") && said.contains("55.2.0"), "{said}");
        assert_eq!(other_versions(&new, &new), None);
        assert_eq!(other_versions(&by(None), &new), None);
        let json = serde_json::json!(new[0]);
        assert_eq!(json["writtenBy"], serde_json::json!({"datafusion": "55.2.0", "engine": "0.1.0"}));
    }

    #[test]
    fn what_is_meant_decides_where_it_is_told() {
        let persisted = |describe: &str, meaning: &[&str]| {
            let meaning = meaning.iter().map(ToString::to_string).collect();
            [PersistedStateSchema { meaning, ..aggregate(DataType::Utf8, &[describe]) }]
        };
        let sum = persisted("sum(__common_expr_1)", &["by source0.k", "sum((source0.v + source0.id))"]);
        // The same query, started twice in one process.
        assert!(
            differences(&sum, &persisted("sum(__common_expr_2)", &["by source0.k", "sum((source0.v + source0.id))"]))
                .is_empty()
        );
        assert!(
            !differences(&sum, &persisted("sum(__common_expr_1)", &["by source0.k", "sum((source0.v - source0.id))"]))
                .is_empty()
        );
        assert!(
            !differences(
                &sum,
                &persisted("sum(__common_expr_1)", &["by upper(source0.k)", "sum((source0.v + source0.id))"])
            )
            .is_empty()
        );
        // Written before there were words for it.
        let old = persisted("sum(__common_expr_1)", &[]);
        assert!(
            differences(&old, &sum).is_empty()
                && !differences(&old, &persisted("sum(v)", &["by source0.k"])).is_empty()
        );
    }

    #[test]
    fn names_of_nodes_are_taken_for_their_kinds() {
        for (old, new) in [
            ("by UnnestExec(0 of source0.l)", "by unnest(0 of source0.l)"),
            ("sum((UnnestExec(0 of table0.v) + 1:int64))", "sum((unnest(0 of table0.v) + 1:int64))"),
            ("by SortMergeJoinExec(0 of table0.v, UnnestExec(1 of x))", "by node(0 of table0.v, unnest(1 of x))"),
            ("by SortMergeJoinExec.k", "by node.k"),
            ("by Exec(source0.k)", "by node(source0.k)"),
            ("by upper(source0.k)", "by upper(source0.k)"),
        ] {
            assert_eq!(with_kinds_of_nodes(old), new);
            assert!(same_meaning(&[old.to_owned()], &[new.to_owned()], true), "{old}");
        }
        assert!(!same_meaning(&["by UnnestExec(0 of a)".to_owned()], &["by unnest(0 of b)".to_owned()], true));
    }

    #[test]
    fn what_a_join_keeps_is_compared_by_what_it_is_and_not_by_its_names() {
        let persisted = |of_type: &str, meaning: &[&str]| {
            let values = vec![PersistedColumn { name: "left".into(), of_type: of_type.into() }];
            let meaning = meaning.iter().map(ToString::to_string).collect();
            [PersistedStateSchema {
                operator: "join".into(),
                values,
                meaning,
                ..aggregate(DataType::Utf8, &["inner join"])
            }]
        };
        let by = "by source0.k = source1.k";
        let old =
            persisted(r#"Struct("k": Utf8, "a\"(": Int64)"#, &[by, "keeps left source0.k", "keeps left source0.v"]);
        for (new, fits) in [
            (
                persisted(r#"Struct("k": Utf8, "b": Int64)"#, &[by, "keeps left source0.k", "keeps left source0.v"]),
                true,
            ),
            (
                persisted(r#"Struct("k": Utf8, "a": Int64)"#, &[by, "keeps left source0.k", "keeps left source0.id"]),
                false,
            ),
            (
                persisted(r#"Struct("k": Utf8, "a": Utf8)"#, &[by, "keeps left source0.k", "keeps left source0.v"]),
                false,
            ),
            (persisted(r#"Struct("k": Utf8, "a\"(": Int64)"#, &[by]), true),
            (persisted(r#"Struct("k": Utf8, "b": Int64)"#, &[by]), false),
        ] {
            assert_eq!(differences(&old, &new).is_empty(), fits, "{new:?}");
        }
    }

    #[test]
    fn earlier_words_for_tables_fit_any() {
        let one = |meaning: &str| vec![meaning.to_owned()];
        let same = |old, new| same_meaning(&one(old), &one(new), false);
        assert!(same("by upper(table.k)", "by upper(table1_1.k)") && same("by table1.k", "by table1.k"));
        assert!(!same("by table0.k", "by table1.k") && !same("by table.k", "by table1.v"));
    }
}
