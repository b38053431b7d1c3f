//! The records of a sqllogictest file that matter here: statements, and queries without the results they expect.

use std::path::Path;

/// One of them.
#[derive(Debug)]
pub(crate) enum Record {
    /// Makes or drops something, or sets an option.
    Statement(String),
    /// Gives rows.
    Query { line: usize, sql: String },
}

/// All of a file, and of the files that it includes.
pub(crate) fn parse(file: &Path) -> Vec<Record> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let mut lines = text.lines().enumerate().peekable();
    let mut records = vec![];
    let mut skipped = false;
    while let Some((at, line)) = lines.next() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("include"), Some(pattern)) => {
                let included = file.parent().map(|folder| folder.join(pattern)).unwrap_or_default();
                records.extend(parse(&included));
            }
            (Some("onlyif"), engine) => skipped = engine != Some("DataFusion") && engine != Some("datafusion"),
            (Some("skipif"), engine) => skipped = matches!(engine, Some("DataFusion" | "datafusion")),
            (Some(kind @ ("statement" | "query")), expected) => {
                let mut sql = vec![];
                while let Some((_, line)) = lines.next_if(|(_, line)| !line.trim().is_empty() && *line != "----") {
                    sql.push(line);
                }
                let sql = sql.join("\n");
                match (std::mem::take(&mut skipped), kind, expected) {
                    (true, ..) | (_, _, Some("error")) => {}
                    (_, "statement", _) => records.push(Record::Statement(sql)),
                    _ => records.push(Record::Query { line: at + 1, sql }),
                }
            }
            _ => {}
        }
    }
    records
}
