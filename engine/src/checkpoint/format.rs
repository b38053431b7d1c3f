//! The version on line one of every log file.

use crate::error::{Error, ErrorKind, Result};

/// The version we write, and the newest we read.
const VERSION: u32 = 1;

/// `v1`, then the lines, with a line feed between any two and none at the end.
pub fn with_version(lines: impl IntoIterator<Item = String>) -> String {
    let mut text = format!("v{VERSION}");
    for line in lines {
        text.push('\n');
        text.push_str(&line);
    }
    text
}

/// The lines after the version line of `file`, if it is one we can read.
pub fn check_version<'a>(text: &'a str, file: &str) -> Result<impl Iterator<Item = &'a str>> {
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    match first.strip_prefix('v').and_then(|version| version.parse::<u32>().ok()) {
        Some(VERSION) => Ok(lines),
        Some(newer) if newer > VERSION => Err(Error::new(
            ErrorKind::IncompatibleCheckpoint,
            format!("the file is of version {newer}, and this release reads up to version {VERSION}"),
        )
        .with_file(file)
        .with_hint("continue with the release that wrote it, or start with a new checkpoint")),
        _ => Err(Error::damaged(format!("the first line is `{first}` and should be `v{VERSION}`"))
            .with_file(file)
            .with_hint("the file is torn or foreign: restore it from a backup, or start with a new checkpoint")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_is_refused_and_garbage_is_named() {
        assert_eq!(check_version("v1\na\nb\n", "f").unwrap().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(check_version("v2\n", "f").err().unwrap().kind(), ErrorKind::IncompatibleCheckpoint);
        for torn in ["", "x", "v", "{\"id\":1}"] {
            let error = check_version(torn, "offsets/7").err().unwrap();
            assert_eq!(error.kind(), ErrorKind::DamagedCheckpoint);
            assert_eq!(error.file(), Some("offsets/7"));
        }
    }
}
