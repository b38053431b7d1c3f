//! A numbered log that writes a summary of itself every few entries.
//!
//! The file source keeps its list of files in such a log, the file sink its manifest. Both are Spark's formats, byte for
//! byte:
//!
//! ```text
//! 0  1  2 … 8  9.compact  10  11 …        with an interval of 10
//! │            └── every entry of 0 … 8, oldest first, then those of 9
//! └── v1
//!     {"path":"file:///in/a.json",…}      one JSON object a line, no line feed after the last
//! ```
//!
//! What always holds:
//!
//! 1. A file is created once and never changed. Creating an entry that exists already returns whose entry it is: see
//!    [`Added`].
//! 2. `N` is a compact file exactly if `(N + 1) % interval == 0`. A folder keeps the interval it was begun with.
//! 3. The last compact file and all plain ones after it hold everything. A hole among them is damage, never skipped.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidewater::checkpoint::{CreateOutcome, MetadataStore};
use tidewater::error::{Error, ErrorKind, Result};

/// The only version of the format there is.
const VERSION: u64 = 1;
const COMPACT: &str = ".compact";

/// A numbered, self-summarizing log of `E` in one folder.
#[derive(Debug)]
pub(crate) struct CompactLog<E> {
    store: Arc<dyn MetadataStore>,
    interval: u64,
    min_batches_to_retain: u64,
    /// The numbers that exist, and whether each is a compact file.
    files: BTreeMap<u64, bool>,
    entries: PhantomData<fn() -> E>,
}

/// The outcome of adding an entry to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Added<E> {
    /// It is there now; this run had not seen it there before.
    New,
    /// A file with the very same bytes was there: an earlier try of ours, or of a run that did the same.
    Same,
    /// Someone else's entries are there; they were not touched.
    Other(Vec<E>),
}

impl<E: Serialize + DeserializeOwned + Clone + Send + Sync> CompactLog<E> {
    /// Opens the log in `store`, which may be empty. `default_interval` counts for a folder without compact files.
    pub(crate) async fn open(
        store: Arc<dyn MetadataStore>,
        default_interval: u64,
        min_batches_to_retain: u64,
    ) -> Result<Self> {
        let mut log = CompactLog {
            store,
            interval: default_interval.max(1),
            min_batches_to_retain: min_batches_to_retain.max(1),
            files: BTreeMap::new(),
            entries: PhantomData,
        };
        log.refresh().await?;
        log.interval = interval_of(&log.files, log.interval);
        // A newer version must be refused before anything is done with the folder, and reading the last file shows it.
        if let Some(latest) = log.latest() {
            log.read(latest).await?;
        }
        Ok(log)
    }

    /// The highest number in the log.
    pub(crate) fn latest(&self) -> Option<u64> {
        self.files.last_key_value().map(|(id, _)| *id)
    }

    /// Looks again what is in the folder.
    pub(crate) async fn refresh(&mut self) -> Result<()> {
        self.files.clear();
        for name in self.store.list("").await? {
            let (number, compact) = match name.strip_suffix(COMPACT) {
                Some(number) => (number, true),
                None => (name.as_str(), false),
            };
            // Names that are not numbers belong to others.
            if let Ok(id) = number.parse() {
                let known = self.files.entry(id).or_insert(compact);
                *known |= compact;
            }
        }
        Ok(())
    }

    /// The entries of file `id`; of a compact file, all that it sums up. `None` if there is no such file.
    pub(crate) async fn read(&self, id: u64) -> Result<Option<Vec<E>>> {
        let Some(compact) = self.files.get(&id) else { return Ok(None) };
        let name = file_name(id, *compact);
        match self.store.read(&name).await? {
            Some(contents) => parse(&contents).map(Some).map_err(|e| e.with_file(self.store.full_name(&name))),
            None => Ok(None),
        }
    }

    /// Everything the log holds: the last compact file and all after it.
    pub(crate) async fn all(&self) -> Result<Vec<E>> {
        let Some(latest) = self.latest() else { return Ok(vec![]) };
        let first = self.files.iter().rev().find(|(_, compact)| **compact).map_or(0, |(id, _)| *id);
        let mut all = vec![];
        for id in first..=latest {
            match self.read(id).await? {
                Some(entries) => all.extend(entries),
                None => return Err(self.missing(id, latest)),
            }
        }
        Ok(all)
    }

    /// The same for a reader that only follows: a file that the writer purged after it was listed is not a hole.
    pub(crate) async fn all_now(&mut self) -> Result<Vec<E>> {
        loop {
            match self.all().await {
                Err(error) if error.kind() == ErrorKind::DamagedCheckpoint => {
                    let seen = self.files.clone();
                    self.refresh().await?;
                    if self.files == seen {
                        return Err(error);
                    }
                }
                outcome => return outcome,
            }
        }
    }

    /// Creates file `id` with `entries`: a plain file, or a compact one that holds all earlier entries too.
    pub(crate) async fn add(&mut self, id: u64, entries: &[E]) -> Result<Added<E>> {
        if let Some(there) = self.read(id).await? {
            // What was there is compared as bytes: only an earlier try of the same adds the same.
            let same = serialize(&there)? == self.contents(id, entries).await?;
            return Ok(if same { Added::Same } else { Added::Other(there) });
        }
        let compact = self.is_compact(id);
        let name = file_name(id, compact);
        let contents = self.contents(id, entries).await?;
        let created = self.store.create(&name, contents.clone()).await?;
        self.files.insert(id, compact);
        if created == CreateOutcome::Created {
            return Ok(Added::New);
        }
        match self.store.read(&name).await? {
            Some(there) if there == contents => Ok(Added::Same),
            Some(there) => Ok(Added::Other(parse(&there).map_err(|e| e.with_file(self.store.full_name(&name)))?)),
            None => Err(Error::damaged(format!("`{name}` was there a moment ago and is gone"))
                .with_file(self.store.full_name(&name))
                .with_hint("find out what else deletes files of this folder, then start again")),
        }
    }

    /// Deletes what a compact file sums up and no batch still kept needs. The compact file before the oldest batch kept
    /// stays, with all after it. Whoever has gone on since has that compact file, or a later one that holds all of it: so
    /// this is harmless in a run that was overtaken, too.
    pub(crate) async fn purge(&mut self) -> Result<()> {
        let Some(latest) = self.latest() else { return Ok(()) };
        let Some(keep_from) = oldest_needed(latest, self.interval, self.min_batches_to_retain) else { return Ok(()) };
        // Without that compact file the older ones are still needed.
        if self.files.get(&keep_from) != Some(&true) {
            return Ok(());
        }
        let old: Vec<_> = self.files.range(..keep_from).map(|(id, compact)| (*id, *compact)).collect();
        for (id, compact) in old {
            self.store.delete(&file_name(id, compact)).await?;
            self.files.remove(&id);
        }
        Ok(())
    }

    fn is_compact(&self, id: u64) -> bool {
        (id + 1).is_multiple_of(self.interval)
    }

    /// The bytes file `id` must have if it adds `entries`.
    async fn contents(&self, id: u64, entries: &[E]) -> Result<Bytes> {
        let compact = self.files.get(&id).copied().unwrap_or_else(|| self.is_compact(id));
        if !compact {
            return serialize(entries);
        }
        let mut all = self.before(id).await?;
        all.extend_from_slice(entries);
        serialize(&all)
    }

    /// Everything in the files before `id`.
    async fn before(&self, id: u64) -> Result<Vec<E>> {
        let first = self.files.range(..id).rev().find(|(_, compact)| **compact).map_or(0, |(id, _)| *id);
        let mut all = vec![];
        for earlier in first..id {
            match self.read(earlier).await? {
                Some(entries) => all.extend(entries),
                None => return Err(self.missing(earlier, id)),
            }
        }
        Ok(all)
    }

    fn missing(&self, id: u64, latest: u64) -> Error {
        let name = self.store.full_name(&file_name(id, self.is_compact(id)));
        Error::damaged(format!("entry {id} of the log is missing, though {latest} is there"))
            .with_file(name)
            .with_hint("restore the file from a backup; without it, it is not known which data files belong here")
    }
}

fn file_name(id: u64, compact: bool) -> String {
    if compact { format!("{id}{COMPACT}") } else { id.to_string() }
}

fn serialize<E: Serialize>(entries: &[E]) -> Result<Bytes> {
    let mut text = format!("v{VERSION}").into_bytes();
    for entry in entries {
        text.push(b'\n');
        serde_json::to_writer(&mut text, entry)
            .map_err(|e| Error::internal(format!("cannot write a log entry as JSON: {e}")).with_source(e))?;
    }
    Ok(text.into())
}

fn parse<E: DeserializeOwned>(contents: &[u8]) -> Result<Vec<E>> {
    let damaged = |what: String| {
        Error::damaged(what)
            .with_hint("restore the file from a backup: every line after the first must be a JSON object")
    };
    let text = std::str::from_utf8(contents).map_err(|e| damaged(format!("the file is not text: {e}")))?;
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    match first.strip_prefix('v').and_then(|number| number.parse::<u64>().ok()) {
        Some(VERSION) => {}
        Some(newer) if newer > VERSION => {
            return Err(Error::new(
                ErrorKind::IncompatibleCheckpoint,
                format!("the file has version v{newer}, and this program reads up to v{VERSION}"),
            )
            .with_hint("use the program that wrote it, or a newer one"));
        }
        _ => return Err(damaged(format!("the file begins with `{first}` and not with its version, `v{VERSION}`"))),
    }
    lines
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(i, line)| {
            serde_json::from_str(line).map_err(|e| damaged(format!("line {} is not a log entry: {e}", i + 2)))
        })
        .collect()
}

/// The interval a folder was begun with, as far as its compact files show it.
fn interval_of(files: &BTreeMap<u64, bool>, default: u64) -> u64 {
    let mut compacts = files.iter().rev().filter(|(_, compact)| **compact).map(|(id, _)| *id);
    match (compacts.next(), compacts.next()) {
        (None, _) => default,
        (Some(last), Some(before)) => last - before,
        (Some(only), None) => interval_of_one(default, only),
    }
}

/// With one compact file `only`, the interval divides `only + 1`; the divisor next to the default above is the best guess.
fn interval_of_one(default: u64, only: u64) -> u64 {
    let count = only + 1;
    (default..=count / 2).find(|divisor| count.is_multiple_of(*divisor)).unwrap_or(count)
}

/// The compact file from which on everything must be kept; `None` while all must be.
fn oldest_needed(latest: u64, interval: u64, min_batches_to_retain: u64) -> Option<u64> {
    let oldest_batch = (latest + 1).checked_sub(min_batches_to_retain)?;
    (oldest_batch - oldest_batch % interval).checked_sub(1)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use tidewater::checkpoint::memory_store;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    struct Entry {
        n: u64,
    }

    async fn text(store: &Arc<dyn MetadataStore>, name: &str) -> String {
        String::from_utf8(store.read(name).await.unwrap().unwrap().to_vec()).unwrap()
    }

    async fn put(store: &Arc<dyn MetadataStore>, name: &str, contents: &str) {
        assert_eq!(store.create(name, contents.to_owned().into()).await.unwrap(), CreateOutcome::Created);
    }

    #[tokio::test]
    async fn files_have_exactly_these_bytes() {
        let store = memory_store();
        let mut log = CompactLog::open(Arc::clone(&store), 3, 100).await.unwrap();
        log.add(0, &[Entry { n: 10 }, Entry { n: 11 }]).await.unwrap();
        log.add(1, &[]).await.unwrap();
        assert_eq!(log.add(2, &[Entry { n: 12 }]).await.unwrap(), Added::New);
        log.add(3, &[Entry { n: 13 }]).await.unwrap();
        assert_eq!(text(&store, "0").await, "v1\n{\"n\":10}\n{\"n\":11}");
        assert_eq!(text(&store, "1").await, "v1");
        assert_eq!(text(&store, "2.compact").await, "v1\n{\"n\":10}\n{\"n\":11}\n{\"n\":12}");
        assert_eq!(text(&store, "3").await, "v1\n{\"n\":13}");
        let all: Vec<u64> = log.all().await.unwrap().iter().map(|e| e.n).collect();
        assert_eq!(all, [10, 11, 12, 13]);
    }

    #[tokio::test]
    async fn a_retried_add_is_told_from_that_of_another_run() {
        for id in [1, 2] {
            let store = memory_store();
            let mut ours = CompactLog::open(Arc::clone(&store), 3, 100).await.unwrap();
            let mut theirs = CompactLog::open(Arc::clone(&store), 3, 100).await.unwrap();
            for earlier in 0..id {
                ours.add(earlier, &[Entry { n: earlier }]).await.unwrap();
            }
            theirs.refresh().await.unwrap();
            assert_eq!(ours.add(id, &[Entry { n: 7 }]).await.unwrap(), Added::New);
            assert_eq!(ours.add(id, &[Entry { n: 7 }]).await.unwrap(), Added::Same);
            // They have not seen it: the store finds the same bytes there, and has nothing left to do.
            assert_eq!(theirs.add(id, &[Entry { n: 7 }]).await.unwrap(), Added::New);
            let Added::Other(there) = ours.add(id, &[Entry { n: 8 }]).await.unwrap() else { panic!() };
            assert_eq!(there.last(), Some(&Entry { n: 7 }));
        }
    }

    #[tokio::test]
    async fn old_files_go_once_a_compact_file_sums_them_up() {
        let store = memory_store();
        let mut log = CompactLog::open(Arc::clone(&store), 3, 1).await.unwrap();
        let mut seen = vec![];
        for id in 0..=6 {
            log.add(id, &[Entry { n: id }]).await.unwrap();
            log.purge().await.unwrap();
            let mut names = store.list("").await.unwrap();
            names.sort();
            seen.push(names.join(" "));
        }
        let expected =
            ["0", "0 1", "0 1 2.compact", "2.compact 3", "2.compact 3 4", "2.compact 3 4 5.compact", "5.compact 6"];
        assert_eq!(seen, expected);
        assert_eq!(log.all().await.unwrap().len(), 7);
    }

    #[tokio::test]
    async fn a_reader_is_not_deceived_by_a_purge() {
        let store = memory_store();
        let mut writer = CompactLog::open(Arc::clone(&store), 3, 1).await.unwrap();
        for id in 0..=1 {
            writer.add(id, &[Entry { n: id }]).await.unwrap();
        }
        let mut reader = CompactLog::<Entry>::open(Arc::clone(&store), 3, 1).await.unwrap();
        for id in 2..=4 {
            writer.add(id, &[Entry { n: id }]).await.unwrap();
            writer.purge().await.unwrap();
        }
        assert_eq!(reader.all().await.unwrap_err().kind(), ErrorKind::DamagedCheckpoint);
        assert_eq!(reader.all_now().await.unwrap().len(), 5);
        store.delete("4").await.unwrap();
        store.delete("2.compact").await.unwrap();
        put(&store, "5", "v1").await;
        assert_eq!(reader.all_now().await.unwrap_err().kind(), ErrorKind::DamagedCheckpoint, "a real hole stays one");
    }

    #[tokio::test]
    async fn a_hole_names_the_file() {
        let store = memory_store();
        put(&store, "0", "v1").await;
        put(&store, "2", "v1").await;
        let log = CompactLog::<Entry>::open(store, 10, 100).await.unwrap();
        let error = log.all().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DamagedCheckpoint);
        assert!(error.file().unwrap().ends_with("/1"), "{error}");
    }

    #[tokio::test]
    async fn foreign_spellings_are_read_and_newer_versions_refused() {
        let store = memory_store();
        put(&store, "0", "v1\n{\"n\":1,\"new\":true}\n").await;
        put(&store, "note.txt", "hello").await;
        let log = CompactLog::<Entry>::open(Arc::clone(&store), 10, 100).await.unwrap();
        assert_eq!(log.all().await.unwrap(), [Entry { n: 1 }]);
        put(&store, "1", "v2\n{}").await;
        let error = CompactLog::<Entry>::open(Arc::clone(&store), 10, 100).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::IncompatibleCheckpoint);
        put(&store, "2", "what").await;
        let error = CompactLog::<Entry>::open(store, 10, 100).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DamagedCheckpoint);
    }

    #[tokio::test]
    async fn a_folder_keeps_the_interval_it_was_begun_with() {
        assert_eq!(interval_of_one(5, 4), 5);
        assert_eq!(interval_of_one(4, 9), 5);
        assert_eq!(interval_of_one(10, 2), 3);
        let store = memory_store();
        let mut log = CompactLog::open(Arc::clone(&store), 3, 100).await.unwrap();
        for id in 0..=5 {
            log.add(id, &[Entry { n: id }]).await.unwrap();
        }
        let mut again = CompactLog::open(Arc::clone(&store), 10, 100).await.unwrap();
        for id in 6..=8 {
            again.add(id, &[Entry { n: id }]).await.unwrap();
        }
        assert!(store.read("8.compact").await.unwrap().is_some());
    }
}
