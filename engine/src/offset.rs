//! A place in a source, and the stretch between two.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};

/// A place in a source: JSON of the source's own making, kept in one canonical spelling (keys sorted, numbers as numbers; no
/// spaces), so that two offsets are the same place exactly if they are equal.
///
/// Beside it a source may keep a [proof](Self::with_proof) of what it is a place in: the same number in a thing that was
/// deleted and made again under its name is another place.
///
/// ```
/// use tidewater::source::Offset;
///
/// let offset = Offset::parse(r#"{ "b": 1, "a": {"10": 7, "9": 10} }"#)?;
/// assert_eq!(offset.json(), r#"{"a":{"9":10,"10":7},"b":1}"#);
/// # Ok::<(), tidewater::error::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Offset {
    json: String,
    /// Canonical JSON, too.
    proof: Option<String>,
}

impl Offset {
    /// From any JSON value.
    pub fn new(value: impl Into<Value>) -> Self {
        Offset { json: sorted(value.into()).to_string(), proof: None }
    }

    /// From anything that can be JSON.
    ///
    /// ```
    /// use serde::{Deserialize, Serialize};
    /// use tidewater::source::Offset;
    ///
    /// #[derive(Debug, PartialEq, Serialize, Deserialize)]
    /// struct Place {
    ///     file: String,
    ///     line: u64,
    /// }
    ///
    /// let place = Place { file: "a.txt".to_owned(), line: 7 };
    /// let offset = Offset::try_new(&place)?;
    /// assert_eq!(offset.to::<Place>("lines of text")?, place);
    /// assert!(Offset::new(7).to::<Place>("lines of text").is_err());
    /// # Ok::<(), tidewater::error::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If it cannot: a map whose keys are no texts, say.
    pub fn try_new(place: &impl Serialize) -> Result<Self> {
        let failed = |e| Error::internal(format!("an offset of a source cannot be JSON: {e}")).with_source(e);
        serde_json::to_value(place).map(Offset::new).map_err(failed)
    }

    /// The place, read strictly. `source` is the source's [description](crate::source::Source::description), for the error.
    ///
    /// # Errors
    ///
    /// If it is none of this type: another source wrote it. The kind is
    /// [`IncompatibleCheckpoint`](ErrorKind::IncompatibleCheckpoint).
    pub fn to<T: DeserializeOwned>(&self, source: &str) -> Result<T> {
        serde_json::from_str(&self.json).map_err(|e| {
            let message = format!("`{self}` is not an offset of the source `{source}`: {e}");
            Error::new(ErrorKind::IncompatibleCheckpoint, message)
                .with_hint("the checkpoint belongs to another query: give this one its own")
                .with_source(e)
        })
    }

    /// Adds what proves, beside the offset, that a later run has the same thing before it: JSON of the source's own making.
    /// The checkpoint keeps both together, where Spark ignores it.
    ///
    /// ```
    /// use tidewater::source::Offset;
    ///
    /// let offset = Offset::new(7).with_proof("made on Monday");
    /// assert_eq!((offset.json(), offset.proof()), ("7", Some("made on Monday".into())));
    /// assert_ne!(offset, Offset::new(7));
    /// ```
    #[must_use]
    pub fn with_proof(mut self, proof: impl Into<Value>) -> Self {
        self.proof = Some(sorted(proof.into()).to_string());
        self
    }

    /// What the source added as proof.
    pub fn proof(&self) -> Option<Value> {
        self.proof.as_ref().and_then(|json| serde_json::from_str(json).ok())
    }

    /// From JSON text.
    pub fn parse(json: &str) -> Result<Self> {
        serde_json::from_str::<Value>(json)
            .map(Offset::new)
            .map_err(|e| Error::damaged(format!("`{json}` is not an offset: {e}")).with_source(e))
    }

    /// The canonical JSON text.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The JSON value.
    pub fn value(&self) -> Value {
        // The text was made from a value, so it parses.
        serde_json::from_str(&self.json).unwrap_or(Value::Null)
    }
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.json)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.json)
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
#[non_exhaustive]
pub struct OffsetRange {
    /// The end of the batch before; `None` in the first batch that reads the source.
    pub start: Option<Offset>,
    /// Where this batch ends.
    pub end: Offset,
}

impl OffsetRange {
    /// All after `start`, or from the beginning, up to and including `end`.
    pub fn new(start: Option<Offset>, end: Offset) -> Self {
        OffsetRange { start, end }
    }

    /// True if there is nothing between start and end.
    pub fn is_empty(&self) -> bool {
        self.start.as_ref() == Some(&self.end)
    }
}
