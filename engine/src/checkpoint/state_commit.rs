//! What a commit records of the files of state.

use serde::{Deserialize, Serialize};

/// The state of all operators after a batch, as `commits/N` names it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StateCommit {
    /// The file that describes what each operator keeps.
    pub(crate) schema: String,
    /// By operator.
    pub(crate) operators: Vec<OperatorCommit>,
}

/// The state of one operator after a batch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OperatorCommit {
    /// Oldest first.
    #[serde(default)]
    pub(crate) files: Vec<FileEntry>,
    /// By side: rows due at or before this µs are gone; null if none ever went.
    #[serde(default)]
    pub(crate) evicted_us: Vec<Option<i64>>,
}

/// The changes of a batch, or of several that were merged: in one file, or in several if there is much.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FileEntry {
    /// Within the operator's folder.
    pub(crate) name: String,
    /// Of all its files.
    pub(crate) bytes: u64,
    /// How often its rows have been merged.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) level: u32,
    /// By join side, the maximum expiry in the file, in µs: `i64::MIN` if the side has no rows, null if some row never
    /// expires.
    #[serde(default)]
    pub(crate) last_us: Vec<Option<i64>>,
    /// Its files, if they are several, in the order of their rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) parts: Vec<Part>,
}

/// One of several files: its bytes, and the key group of its first row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part(pub(crate) u64, pub(crate) u8);

/// One file of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FilePart {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// No row of the file is of a lower group, or of a higher one.
    pub(crate) groups: (u8, u8),
}

fn is_zero(level: &u32) -> bool {
    *level == 0
}

impl OperatorCommit {
    /// The bounds, with `i64::MIN` for none.
    pub(crate) fn bounds_us(&self, sides: usize) -> Vec<i64> {
        (0..sides).map(|side| self.evicted_us.get(side).copied().flatten().unwrap_or(i64::MIN)).collect()
    }
}

impl FileEntry {
    /// Its files.
    pub(crate) fn files(&self) -> Vec<FilePart> {
        if self.parts.is_empty() {
            return vec![FilePart { name: self.name.clone(), bytes: self.bytes, groups: (0, u8::MAX) }];
        }
        let part = |(number, part): (usize, &Part)| {
            let last = self.parts.get(number + 1).map_or(u8::MAX, |next| next.1);
            FilePart { name: part_name(&self.name, number), bytes: part.0, groups: (part.1, last) }
        };
        self.parts.iter().enumerate().map(part).collect()
    }

    /// Whether all its rows are behind the bounds. Where a side has no latest time, nothing is known.
    pub(crate) fn is_behind(&self, bounds_us: &[i64]) -> bool {
        !self.last_us.is_empty()
            && self.last_us.iter().zip(bounds_us).all(|(last, bound)| last.is_some_and(|us| us <= *bound))
    }
}

/// `12m0.<run>`, then `12m0p1.<run>` and so on: the run stays at the end.
pub(crate) fn part_name(name: &str, number: usize) -> String {
    match name.split_once('.') {
        Some((start, run)) if number > 0 => format!("{start}p{number}.{run}"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> FileEntry {
        FileEntry { name: "12m0.7d9612d0".into(), bytes: 7, level: 1, last_us: vec![Some(5)], parts: vec![] }
    }

    #[test]
    fn a_file_is_left_behind_when_all_its_rows_are() {
        let file = |last_us: &[Option<i64>]| FileEntry { last_us: last_us.to_vec(), ..entry() };
        assert!(file(&[Some(5)]).is_behind(&[5]));
        assert!(!file(&[Some(6)]).is_behind(&[5]));
        assert!(!file(&[None]).is_behind(&[5]));
        assert!(!file(&[Some(5), Some(6)]).is_behind(&[5, 5]));
        assert!(!file(&[]).is_behind(&[5]));
    }

    #[test]
    fn several_files_are_told_in_few_words() {
        let whole = entry();
        // Compared as JSON: the order of its fields is of no account.
        let expected = serde_json::json!({"bytes": 7, "lastUs": [5], "level": 1, "name": "12m0.7d9612d0"});
        assert_eq!(serde_json::json!(whole), expected);
        let several = FileEntry { bytes: 30, parts: vec![Part(10, 0), Part(11, 7), Part(9, 7)], ..entry() };
        let text = serde_json::json!(several).to_string();
        assert!(text.contains(r#""parts":[[10,0],[11,7],[9,7]]"#), "{text}");
        assert_eq!(serde_json::from_str::<FileEntry>(&text).unwrap(), several);
        let part = |name: &str, bytes, groups| FilePart { name: name.to_owned(), bytes, groups };
        assert_eq!(whole.files(), [part("12m0.7d9612d0", 7, (0, 255))]);
        let expected = [
            part("12m0.7d9612d0", 10, (0, 7)),
            part("12m0p1.7d9612d0", 11, (7, 7)),
            part("12m0p2.7d9612d0", 9, (7, 255)),
        ];
        assert_eq!(several.files(), expected);
    }
}
