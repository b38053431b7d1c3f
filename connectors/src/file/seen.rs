//! Which files were offered already.
//!
//! Files older than the newest one seen by more than `maxFileAge` are forgotten, so the map stays small; in return, a
//! file that old is never new. Age is counted from the newest file, not from the clock: a folder that rests forgets nothing.

use std::collections::HashMap;

/// The files that were offered, by path or by name alone.
#[derive(Debug)]
pub(super) struct SeenFiles {
    files: HashMap<String, i64>,
    max_age_ms: i64,
    by_name: bool,
    latest_ms: i64,
    last_purge_ms: i64,
}

impl SeenFiles {
    /// An empty map; `by_name` takes two files of the same name in different folders for one.
    pub(super) fn new(max_age_ms: i64, by_name: bool) -> Self {
        SeenFiles { files: HashMap::new(), max_age_ms, by_name, latest_ms: 0, last_purge_ms: 0 }
    }

    /// Notes that the file `path` (a URI), modified at `modified_ms`, was offered.
    pub(super) fn add(&mut self, path: &str, modified_ms: i64) {
        self.files.insert(self.key(path).to_owned(), modified_ms);
        self.latest_ms = self.latest_ms.max(modified_ms);
    }

    /// True if the file was never offered, as far as can be known.
    pub(super) fn is_new(&self, path: &str, modified_ms: i64) -> bool {
        modified_ms >= self.last_purge_ms && !self.files.contains_key(self.key(path))
    }

    /// Forgets files that are too old to come up again.
    pub(super) fn purge(&mut self) {
        self.last_purge_ms = self.latest_ms.saturating_sub(self.max_age_ms);
        self.files.retain(|_, modified_ms| *modified_ms >= self.last_purge_ms);
    }

    fn key<'a>(&self, path: &'a str) -> &'a str {
        if self.by_name { path.rsplit('/').next().unwrap_or(path) } else { path }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_forgotten_once_it_is_older_than_the_newest_by_more_than_the_age() {
        let mut seen = SeenFiles::new(10, false);
        seen.add("a", 5);
        seen.purge();
        seen.add("b", 15);
        seen.purge();
        assert_eq!(seen.files.len(), 2);
        seen.add("c", 16);
        seen.purge();
        assert_eq!(seen.files.len(), 2);
        assert!(!seen.is_new("d", 5));
        assert!(seen.is_new("e", 20));
        assert!(!seen.is_new("b", 15));
        assert!(seen.is_new("f", 6));
    }

    #[test]
    fn nothing_is_too_old_before_the_first_purge_or_without_an_age() {
        let mut seen = SeenFiles::new(10, false);
        seen.add("a", 100);
        assert!(seen.is_new("old", 1));
        let mut ageless = SeenFiles::new(i64::MAX, false);
        ageless.add("a", 100);
        ageless.purge();
        assert!(ageless.is_new("old", 1));
        assert!(!ageless.is_new("a", 100));
    }

    #[test]
    fn by_name_alone_a_moved_file_is_the_same() {
        let mut seen = SeenFiles::new(10, true);
        seen.add("file:///in/a.csv", 5);
        assert!(!seen.is_new("file:///other/a.csv", 6));
        assert!(seen.is_new("file:///in/b.csv", 6));
    }
}
