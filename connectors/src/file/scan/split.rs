//! What one task reads of a batch, as data.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::file::listing::ListedFile;

/// The files of one task, in the order in which they are read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::file) struct FileSplit {
    pub(in crate::file) files: Vec<Stretch>,
    /// Files of the batch that were gone when it was split, and that the query goes on without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::file) missing: Vec<String>,
}

/// A file, or a stretch of one. As JSON it is an array: a batch may have very many.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Fields", into = "Fields")]
pub(in crate::file) struct Stretch {
    pub(in crate::file) uri: String,
    pub(in crate::file) modified_ms: i64,
    /// The size of the whole file.
    pub(in crate::file) size: u64,
    /// Which bytes; `None` is all. Only formats that can begin in the middle are cut.
    pub(in crate::file) range: Option<Range<u64>>,
}

type Fields = (String, i64, u64, Option<(u64, u64)>);

impl Stretch {
    /// A whole file.
    pub(in crate::file) fn whole(file: &ListedFile) -> Self {
        Stretch { uri: file.uri.clone(), modified_ms: file.modified_ms, size: file.size, range: None }
    }

    /// How many bytes are to be read.
    pub(super) fn bytes(&self) -> u64 {
        self.range.as_ref().map_or(self.size, |range| range.end.saturating_sub(range.start))
    }
}

impl From<Fields> for Stretch {
    fn from((uri, modified_ms, size, range): Fields) -> Self {
        Stretch { uri, modified_ms, size, range: range.map(|(start, end)| start..end) }
    }
}

impl From<Stretch> for Fields {
    fn from(stretch: Stretch) -> Self {
        let Stretch { uri, modified_ms, size, range } = stretch;
        (uri, modified_ms, size, range.map(|range| (range.start, range.end)))
    }
}

#[cfg(test)]
mod tests {
    use tidewater::source::Split;

    use super::*;

    #[test]
    fn a_split_comes_back_as_it_was_sent() {
        let whole = Stretch { uri: "file:///in/a%20b.csv".into(), modified_ms: -1, size: u64::MAX, range: None };
        let part = Stretch { range: Some(7..9), ..whole.clone() };
        let split = FileSplit { files: vec![whole, part], missing: vec!["file:///in/gone.csv".into()] };
        let sent = serde_json::to_string(&Split::new(&split).unwrap()).unwrap();
        assert!(sent.contains(r#"["file:///in/a%20b.csv",-1,18446744073709551615,null]"#), "{sent}");
        let arrived: Split = serde_json::from_str(&sent).unwrap();
        assert_eq!(arrived.to::<FileSplit>("files").unwrap(), split);
    }
}
