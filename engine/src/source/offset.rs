//! A place in a source, and the stretch between two.

use std::fmt;

use serde_json::Value;

use crate::error::{Error, Result};

/// A place in a source: JSON of the source's own making, kept in one canonical spelling (keys sorted, numbers as numbers; no
/// spaces), so that two offsets are the same place exactly if they are equal.
///
/// ```
/// use tidewater::source::Offset;
///
/// let offset = Offset::parse(r#"{ "b": 1, "a": {"10": 7, "9": 10} }"#)?;
/// assert_eq!(offset.json(), r#"{"a":{"9":10,"10":7},"b":1}"#);
/// # Ok::<(), tidewater::error::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Offset(String);

impl Offset {
    /// From any JSON value.
    pub fn new(value: impl Into<Value>) -> Self {
        Offset(sorted(value.into()).to_string())
    }

    /// From JSON text.
    pub fn parse(json: &str) -> Result<Self> {
        serde_json::from_str::<Value>(json)
            .map(Offset::new)
            .map_err(|e| Error::damaged(format!("`{json}` is not an offset: {e}")).caused_by(e))
    }

    /// The canonical JSON text.
    pub fn json(&self) -> &str {
        &self.0
    }

    /// The JSON value.
    pub fn value(&self) -> Value {
        // The text was made from a value, so it parses.
        serde_json::from_str(&self.0).unwrap_or(Value::Null)
    }
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The same value with the keys of all its objects in order.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(entries) => {
            let mut entries: Vec<(String, Value)> = entries.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            entries.sort_by(|(a, _), (b, _)| (a.parse::<u64>().ok(), a).cmp(&(b.parse::<u64>().ok(), b)));
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(sorted).collect()),
        plain => plain,
    }
}

/// What a batch reads of one source: all after `start`, up to and including `end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetRange {
    /// The end of the batch before; `None` in the first batch that reads the source.
    pub start: Option<Offset>,
    /// Where this batch ends.
    pub end: Offset,
}

impl OffsetRange {
    /// True if there is nothing between start and end.
    pub fn is_empty(&self) -> bool {
        self.start.as_ref() == Some(&self.end)
    }
}
