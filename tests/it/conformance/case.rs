//! A case as it lies in its file.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tidewater::query::OutputMode;

/// Columns in order: name and short type.
pub(super) type Columns = Vec<(String, String)>;

#[derive(Debug, Deserialize)]
pub(super) struct Case {
    pub(super) doc: String,
    pub(super) sources: BTreeMap<String, Source>,
    #[serde(default, rename = "static")]
    pub(super) tables: BTreeMap<String, Table>,
    pub(super) query: Query,
    pub(super) output_mode: Mode,
    #[serde(default)]
    pub(super) config: Config,
    #[serde(default)]
    pub(super) columns: Vec<String>,
    #[serde(default)]
    pub(super) column_types: Vec<String>,
    #[serde(default)]
    pub(super) steps: Vec<Step>,
    pub(super) expect_error: Option<ExpectError>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Source {
    pub(super) schema: Columns,
}

#[derive(Debug, Deserialize)]
pub(super) struct Table {
    pub(super) schema: Columns,
    pub(super) rows: Value,
}

#[derive(Debug, Deserialize)]
pub(super) struct Query {
    pub(super) from: String,
    #[serde(default)]
    pub(super) ops: Vec<Op>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Op {
    WithWatermark { column: String, delay: String },
    Filter(String),
    Select(Vec<String>),
    GroupBy { keys: Vec<Key>, aggs: Vec<String> },
    WindowTime(String),
    DropDuplicates(Vec<String>),
    DropDuplicatesWithinWatermark(Vec<String>),
    Union(Query),
    Join { right: Query, how: How, on: String },
    OrderBy(Vec<String>),
    Limit(usize),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Key {
    Column(String),
    Window { window: Window },
    Session { session_window: Session },
}

#[derive(Debug, Deserialize)]
pub(super) struct Window {
    pub(super) column: String,
    pub(super) size: String,
    pub(super) slide: Option<String>,
    pub(super) offset: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Session {
    pub(super) column: String,
    pub(super) gap: Option<String>,
    pub(super) gap_expr: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum How {
    Inner,
    LeftOuter,
    RightOuter,
    FullOuter,
    LeftSemi,
    LeftAnti,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mode {
    Append,
    Update,
    Complete,
}

impl From<Mode> for OutputMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Append => OutputMode::Append,
            Mode::Update => OutputMode::Update,
            Mode::Complete => OutputMode::Complete,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    pub(super) multiple_watermark_policy: Option<String>,
    pub(super) no_data_batches: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    Add(BTreeMap<String, Value>),
    Process(Expected),
    Restart(Always),
}

/// `true`, and nothing else.
#[derive(Debug, Deserialize)]
#[serde(try_from = "bool")]
pub(super) struct Always;

impl TryFrom<bool> for Always {
    type Error = &'static str;

    fn try_from(value: bool) -> Result<Self, Self::Error> {
        if value { Ok(Always) } else { Err("a restart that is none") }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Expected {
    /// Absent where a step must fail.
    pub(super) expect_rows: Option<Value>,
    #[serde(default)]
    pub(super) watermark_next: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ExpectError {
    pub(super) phase: Phase,
    pub(super) why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    Analysis,
    Runtime,
}

impl Case {
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        Self::read_with(path, None)
    }

    /// The case with some of its keys replaced, as a JSON object has them; a key that begins with `/` is a JSON pointer.
    pub(super) fn read_with(path: &Path, instead: Option<&str>) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read the case: {e}"))?;
        let mut case: Value = serde_json::from_str(&text).map_err(|e| format!("the case is not JSON: {e}"))?;
        if let Some(instead) = instead {
            let keys: BTreeMap<String, Value> = serde_json::from_str(instead)
                .map_err(|e| format!("what we answer instead is not a JSON object: {e}"))?;
            for (key, value) in keys {
                match key.starts_with('/') {
                    true => *case.pointer_mut(&key).ok_or_else(|| format!("the case has no `{key}`"))? = value,
                    false => case[key] = value,
                }
            }
        }
        serde_json::from_value(case).map_err(|e| format!("cannot understand the case: {e}"))
    }
}
