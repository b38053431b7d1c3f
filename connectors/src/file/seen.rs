//! Which files were offered already.
//!
//! Files older than the newest one seen by more than `maxFileAge` are forgotten, so the map stays small; in return, a
//! file that old is never new. Age is counted from the newest file, not from the clock: a folder that rests forgets nothing.
//!
//! A file is known by its path (or name) alone: one that was replaced or changed after it was offered is not read
//! again. That follows from its time, as it does for a file that came too late; both are counted.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

/// So few files are not worth a search for what is too old.
const PURGE_FROM: usize = 512;

/// The files that were offered, by path or by name alone.
#[derive(Debug)]
pub(super) struct SeenFiles {
    files: HashMap<String, i64>,
    /// Those that are forgotten, by hash: only to distinguish them from files that came too late.
    forgotten: HashSet<u64>,
    hasher: RandomState,
    max_age_ms: i64,
    by_name: bool,
    latest_ms: i64,
    /// What is older is forgotten, or will be.
    last_purge_ms: i64,
    /// How many files there were after the last search for what is too old.
    after_purge: usize,
}

/// What is known of a file that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// It was never offered, as far as can be known.
    New,
    /// It was offered as it is.
    Offered,
    /// It was offered, and has another time since.
    Changed,
    /// It was not offered and never will be: it is older than the newest by more than the age.
    TooOld,
}

impl SeenFiles {
    /// An empty map; `by_name` takes two files of the same name in different folders for one.
    pub(super) fn new(max_age_ms: i64, by_name: bool) -> Self {
        let (files, forgotten, hasher) = Default::default();
        SeenFiles {
            files,
            forgotten,
            hasher,
            max_age_ms,
            by_name,
            latest_ms: 0,
            last_purge_ms: i64::MIN,
            after_purge: 0,
        }
    }

    /// Notes that the file `path` (a URI), modified at `modified_ms`, was offered.
    pub(super) fn add(&mut self, path: &str, modified_ms: i64) {
        self.files.insert(self.key(path).to_owned(), modified_ms);
        self.latest_ms = self.latest_ms.max(modified_ms);
    }

    /// What is known of the file `path` (a URI), modified at `modified_ms`.
    pub(super) fn look_up(&self, path: &str, modified_ms: i64) -> Known {
        let key = self.key(path);
        match self.files.get(key) {
            // By name alone, two files may be meant.
            Some(offered_ms) if *offered_ms != modified_ms && !self.by_name => Known::Changed,
            Some(_) => Known::Offered,
            None if modified_ms >= self.last_purge_ms => Known::New,
            None if self.forgotten.contains(&self.hasher.hash_one(key)) => Known::Offered,
            None => Known::TooOld,
        }
    }

    /// Whether the file `path` (a URI) was offered, whatever its time.
    pub(super) fn was_offered(&self, path: &str) -> bool {
        let key = self.key(path);
        self.files.contains_key(key) || self.forgotten.contains(&self.hasher.hash_one(key))
    }

    /// Forgets files that are too old to come up again: from now on, or once they may be half of all. So forgetting costs
    /// each file a little, and each batch no more than its own.
    pub(super) fn purge(&mut self) {
        self.last_purge_ms = self.latest_ms.saturating_sub(self.max_age_ms);
        if self.files.len() < 2 * self.after_purge.max(PURGE_FROM) {
            return;
        }
        let (last_purge_ms, hasher, forgotten) = (self.last_purge_ms, &self.hasher, &mut self.forgotten);
        self.files.retain(|path, modified_ms| {
            let stays = *modified_ms >= last_purge_ms;
            if !stays {
                forgotten.insert(hasher.hash_one(path));
            }
            stays
        });
        self.after_purge = self.files.len();
    }

    fn key<'a>(&self, path: &'a str) -> &'a str {
        if self.by_name { path.rsplit('/').next().unwrap_or(path) } else { path }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl SeenFiles {
        fn is_new(&self, path: &str, modified_ms: i64) -> bool {
            self.look_up(path, modified_ms) == Known::New
        }
    }

    #[test]
    fn what_changed_and_what_came_too_late_is_told_from_what_was_read() {
        let mut seen = SeenFiles::new(10, false);
        seen.add("old", 5);
        seen.add("new", 20);
        seen.purge();
        assert_eq!(seen.look_up("new", 20), Known::Offered);
        assert_eq!(seen.look_up("new", 21), Known::Changed);
        assert_eq!(seen.look_up("old", 5), Known::Offered, "forgotten, but not unknown");
        assert_eq!(seen.look_up("late", 9), Known::TooOld);
        assert_eq!(seen.look_up("late", 10), Known::New);
        let mut by_name = SeenFiles::new(10, true);
        by_name.add("file:///in/a.csv", 5);
        assert_eq!(by_name.look_up("file:///in/b/a.csv", 6), Known::Offered);
    }

    #[test]
    fn a_file_is_too_old_once_it_is_older_than_the_newest_by_more_than_the_age() {
        let mut seen = SeenFiles::new(10, false);
        seen.add("a", 5);
        seen.purge();
        seen.add("b", 15);
        seen.purge();
        assert_eq!(seen.look_up("d", 5), Known::New);
        seen.add("c", 16);
        seen.purge();
        assert_eq!(seen.look_up("d", 5), Known::TooOld);
        assert!(seen.is_new("e", 20));
        assert!(!seen.is_new("b", 15));
        assert!(seen.is_new("f", 6));
    }

    #[test]
    fn files_are_forgotten_before_they_are_twice_as_many_as_those_that_count() {
        let mut seen = SeenFiles::new(99, false);
        for ms in 0..10_000 {
            seen.add(&format!("f{ms}"), ms);
            seen.purge();
            assert!(seen.files.len() <= 2 * PURGE_FROM, "{}", seen.files.len());
        }
        assert_eq!(seen.look_up("f1", 1), Known::Offered);
        assert_eq!(seen.look_up("g", 9_899), Known::TooOld);
        assert_eq!(seen.look_up("g", 9_900), Known::New);
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
