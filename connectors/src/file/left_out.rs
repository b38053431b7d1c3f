//! What is not read although it is there: said once each, and counted for progress.
//!
//! The figures say how things stood when the folder was last listed as a whole, and what was found out since.

use std::collections::{BTreeMap, BTreeSet};

use super::listing::Omitted;

/// How many names a message shows.
const SHOWN: usize = 5;

/// What the last listing left out.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    /// By name: why it cannot be read as a file or folder.
    omitted: BTreeMap<String, String>,
    /// Files that were offered and have changed since.
    changed: BTreeSet<String>,
    /// Files that came too late.
    too_old: BTreeSet<String>,
}

impl LeftOut {
    /// Entries that are neither files nor folders, as of now.
    pub(super) fn omitted(&mut self, input: &str, found: Vec<Omitted>) {
        for Omitted { name, why } in &found {
            if self.omitted.get(name) != Some(why) {
                tracing::warn!(input, entry = %name.escape_debug(), why, "an entry of the input is left out");
            }
        }
        self.omitted = found.into_iter().map(|Omitted { name, why }| (name, why)).collect();
    }

    /// Files that were offered and have another time now: all that are there, if the listing `is_whole`.
    pub(super) fn changed(&mut self, input: &str, found: Vec<String>, is_whole: bool) {
        let news: Vec<_> = found.iter().filter(|uri| !self.changed.contains(*uri)).map(String::as_str).collect();
        if !news.is_empty() {
            tracing::warn!(
                input,
                files = news.len(),
                names = some_of(&news),
                "files were replaced or changed after they were read, and are not read again: a file is known by its path. \
                 Give new contents a new name"
            );
        }
        note(&mut self.changed, found, is_whole);
    }

    /// Files that are older than `maxFileAge` allows and were never offered: all that are there, if the listing `is_whole`.
    pub(super) fn too_old(&mut self, input: &str, found: Vec<String>, is_whole: bool) {
        let news: Vec<_> = found.iter().filter(|uri| !self.too_old.contains(*uri)).map(String::as_str).collect();
        if !news.is_empty() {
            tracing::warn!(
                input,
                files = news.len(),
                names = some_of(&news),
                "files came too late and are not read: they are older than the newest by more than `maxFileAge`"
            );
        }
        note(&mut self.too_old, found, is_whole);
    }

    /// A batch is read again, and files of it have changed since it was logged.
    pub(super) fn changed_under_batch(input: &str, files: &[String]) {
        tracing::warn!(
            input,
            files = files.len(),
            names = some_of(&files.iter().map(String::as_str).collect::<Vec<_>>()),
            "a batch is read again, and files of it have changed since it was begun: it gives the rows they hold now"
        );
    }

    /// By their names in progress.
    pub(super) fn figures(&self) -> [(&'static str, u64); 3] {
        let count = |count: usize| count as u64;
        [
            ("entriesLeftOut", count(self.omitted.len())),
            ("filesChangedAfterRead", count(self.changed.len())),
            ("filesTooOld", count(self.too_old.len())),
        ]
    }
}

fn note(noted: &mut BTreeSet<String>, found: Vec<String>, is_whole: bool) {
    if is_whole {
        noted.clear();
    }
    noted.extend(found);
}

fn some_of(names: &[&str]) -> String {
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown}, …") } else { shown }
}
