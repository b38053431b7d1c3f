//! Which file was offered in which source batch: `sources/<i>/N`.
//!
//! Entry N lists the files of source batch N and is written before `latest_offset` returns `{"logOffset":N}`. So a replay
//! of a batch reads the same files, whatever has been added to the folder since.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::execution::runtime_env::RuntimeEnv;
use object_store::ObjectStoreExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidewater::checkpoint::MetadataStore;
use tidewater::error::{Error, ErrorKind, Result};
use tidewater::source::Offset;

use super::compact_log::{Added, CompactLog};
use super::listing::ListedFile;
use super::scan::problem::gone;
use super::uri::FileLocation;

/// How many entries make a compact file, in a new log.
const COMPACT_INTERVAL: u64 = 10;

/// One file, as the log keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileEntry {
    /// The file's full URI.
    pub(super) path: String,
    /// When it was last modified, in milliseconds since 1970.
    pub(super) timestamp: i64,
    /// The source batch that offered it.
    #[serde(rename = "batchId")]
    pub(super) batch_id: u64,
}

/// The file source's own log.
#[derive(Debug)]
pub(super) struct SourceLog {
    log: CompactLog<FileEntry>,
    /// Where files were that have been moved since, and where they are.
    moved: Vec<(String, String)>,
}

impl SourceLog {
    pub(super) async fn open(store: Arc<dyn MetadataStore>, min_batches_to_retain: u64) -> Result<Self> {
        Ok(SourceLog { log: CompactLog::open(store, COMPACT_INTERVAL, min_batches_to_retain).await?, moved: vec![] })
    }

    /// What the log has below one of the `former` folders is below `now`, which is what the log says from here on. On
    /// disk it stays as it is.
    ///
    /// Where files may be read in both, one within the other, it is unknown which of the two an entry means: that is an
    /// error. Only of a folder `now` that is not `deep`, a former one within it is never read.
    pub(super) fn moved(mut self, former: &[String], now: &str, deep: bool) -> Result<Self> {
        let within = |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'));
        let both = |former: &str| within(now, former) || within(former, now) && (deep || former.contains('='));
        if let Some(former) = former.iter().find(|former| both(former)) {
            return Err(Error::new(
                ErrorKind::IncompatibleCheckpoint,
                format!(
                    "the source was moved from `{former}` to `{now}`, and one lies within the other: a file that was read \
                     could not be distinguished from one that was not"
                ),
            )
            .with_hint("move the files to a folder neither above nor below it, or start with a new checkpoint"));
        }
        self.moved = former.iter().map(|former| (former.clone(), now.to_owned())).collect();
        Ok(self)
    }

    fn at_home(&self, mut entry: FileEntry) -> FileEntry {
        let home = self.moved.iter().find_map(|(former, now)| match entry.path.strip_prefix(former.as_str()) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => Some(format!("{now}{rest}")),
            _ => None,
        });
        entry.path = home.unwrap_or(entry.path);
        entry
    }

    /// The last source batch.
    pub(super) fn latest(&self) -> Option<u64> {
        self.log.latest()
    }

    /// All files ever offered, oldest batch first.
    pub(super) async fn all(&self) -> Result<Vec<FileEntry>> {
        Ok(self.log.all().await?.into_iter().map(|entry| self.at_home(entry)).collect())
    }

    /// All files ever offered. No source batch is without a file: one that is has lost its lines.
    pub(super) async fn whole(&self) -> Result<Vec<FileEntry>> {
        let all = self.all().await?;
        let known: HashSet<u64> = all.iter().map(|entry| entry.batch_id).collect();
        match (0..self.latest().map_or(0, |latest| latest + 1)).find(|id| !known.contains(id)) {
            Some(id) => Err(Error::damaged(format!("the file source's log names no file for source batch {id}"))
                .with_hint(
                    "restore the `sources` folder of the checkpoint from a backup, or start with a new checkpoint",
                )),
            None => Ok(all),
        }
    }

    /// What was added since the log was opened.
    pub(super) async fn catch_up(&mut self) -> Result<Vec<FileEntry>> {
        let known = self.log.latest();
        self.log.refresh().await?;
        match self.log.latest() {
            Some(latest) if Some(latest) > known => self.between(known, latest).await,
            _ => Ok(vec![]),
        }
    }

    /// Writes the next source batch. The log must still be as this run knows it.
    pub(super) async fn add(&mut self, id: u64, entries: &[FileEntry]) -> Result<()> {
        let known = self.log.latest();
        self.log.refresh().await?;
        let now = self.log.latest();
        if now < known {
            let what = known.map_or_else(String::new, |known| format!(" up to source batch {known}"));
            return Err(Error::damaged(format!("the file source's log{what} was deleted while the query was running"))
                .with_hint(
                    "restore the `sources` folder of the checkpoint from a backup, or start with a new checkpoint",
                ));
        }
        let fenced = |id: u64| {
            Error::new(
                ErrorKind::Fenced,
                format!("another run of this query is writing the checkpoint: it took source batch {id}"),
            )
            .with_hint("stop one of the two runs; two queries may not share a checkpoint")
        };
        if now > known {
            return Err(fenced(now.unwrap_or(id)));
        }
        match self.log.add(id, entries).await? {
            Added::New | Added::Same => Ok(()),
            Added::Other(_) => Err(fenced(id)),
        }
    }

    /// Forgets what a compact file sums up. A file that cannot be deleted stays, which does no harm.
    pub(super) async fn purge(&mut self) {
        if let Err(error) = self.log.purge().await {
            tracing::warn!(%error, "cannot delete old entries of the file source's log");
        }
    }

    /// The files of the source batches after `start`, up to and including `end`, batch by batch.
    pub(super) async fn between(&self, start: Option<u64>, end: u64) -> Result<Vec<FileEntry>> {
        let first = start.map_or(0, |start| start + 1);
        let mut found = vec![];
        for id in first..=end {
            let Some(entries) = self.log.read(id).await? else {
                // A compact file later on has them, should the plain one be purged.
                let mut all = self.all().await?;
                all.retain(|entry| (first..=end).contains(&entry.batch_id));
                return if self.latest() >= Some(end) { Ok(all) } else { Err(self.unknown(end)) };
            };
            found.extend(entries.into_iter().filter(|entry| entry.batch_id == id).map(|e| self.at_home(e)));
        }
        Ok(found)
    }

    fn unknown(&self, end: u64) -> Error {
        let last = self.latest().map_or("empty".to_owned(), |last| format!("at {last}"));
        Error::damaged(format!("a batch ends at source batch {end}, and the file source's log is {last}"))
            .with_hint("restore the `sources` folder of the checkpoint from the same backup as `offsets`")
    }
}

/// The offset that means "all files up to and including source batch `id`".
pub(super) fn offset(id: u64) -> Offset {
    Offset::new(json!({ "logOffset": id }))
}

/// The source batch that an offset names.
pub(super) fn log_offset(offset: &Offset) -> Result<u64> {
    let value = offset.value();
    // Very old logs hold a bare number.
    value.get("logOffset").unwrap_or(&value).as_u64().ok_or_else(|| {
        Error::new(ErrorKind::IncompatibleCheckpoint, format!("`{offset}` is not an offset of a file source"))
            .with_hint("start the query with the sources the checkpoint was written with, in the same order")
    })
}

/// What storage knows of a file that was offered; the inner error says that it is gone.
pub(super) async fn head(entry: FileEntry, runtime: &RuntimeEnv) -> Result<(FileEntry, Result<ListedFile>)> {
    let location = FileLocation::parse(&entry.path)?;
    match location.open(runtime)?.head(&location.path).await {
        Ok(object) => {
            let modified_ms = object.last_modified.timestamp_millis();
            let file = ListedFile { uri: entry.path.clone(), modified_ms, size: object.size };
            Ok((entry, Ok(file)))
        }
        Err(e @ object_store::Error::NotFound { .. }) => {
            let error = gone(e).with_file(entry.path.clone());
            Ok((entry, Err(error)))
        }
        Err(e) => Err(Error::new(ErrorKind::Unavailable, format!("cannot look at the file: {e}"))
            .with_file(entry.path)
            .with_hint("check the rights and the network, then start again")
            .with_source(e)),
    }
}

#[cfg(test)]
mod tests {
    use tidewater::checkpoint::memory_store;

    use super::*;

    fn entry(id: u64) -> FileEntry {
        FileEntry { path: format!("file:///in/f{id}.json"), timestamp: 1_000 + id as i64, batch_id: id }
    }

    #[tokio::test]
    async fn entries_are_written_as_spark_writes_them() {
        let store = memory_store();
        let mut log = SourceLog::open(Arc::clone(&store), 100).await.unwrap();
        for id in 0..=9 {
            log.add(id, &[entry(id)]).await.unwrap();
        }
        let plain = store.read("1").await.unwrap().unwrap();
        assert_eq!(plain, "v1\n{\"path\":\"file:///in/f1.json\",\"timestamp\":1001,\"batchId\":1}");
        let compact = String::from_utf8(store.read("9.compact").await.unwrap().unwrap().to_vec()).unwrap();
        let lines: Vec<&str> = compact.split('\n').collect();
        assert_eq!(lines.len(), 11);
        assert_eq!(lines[1], "{\"path\":\"file:///in/f0.json\",\"timestamp\":1000,\"batchId\":0}");
        assert_eq!(lines[10], "{\"path\":\"file:///in/f9.json\",\"timestamp\":1009,\"batchId\":9}");
        assert_eq!(offset(3).json(), "{\"logOffset\":3}");
    }

    #[tokio::test]
    async fn a_range_is_read_across_compact_and_purged_files() {
        let store = memory_store();
        let mut log = SourceLog::open(Arc::clone(&store), 1).await.unwrap();
        for id in 0..=10 {
            log.add(id, &[entry(id)]).await.unwrap();
        }
        assert_eq!(log.between(Some(7), 10).await.unwrap(), [entry(8), entry(9), entry(10)]);
        log.purge().await;
        assert!(store.read("8").await.unwrap().is_none());
        assert_eq!(log.between(Some(7), 10).await.unwrap(), [entry(8), entry(9), entry(10)]);
        assert_eq!(log.between(None, 0).await.unwrap(), [entry(0)]);
        assert_eq!(log.between(Some(10), 11).await.unwrap_err().kind(), ErrorKind::DamagedCheckpoint);
    }

    #[tokio::test]
    async fn another_run_in_the_log_fences_this_one() {
        let store = memory_store();
        let mut ours = SourceLog::open(Arc::clone(&store), 100).await.unwrap();
        let mut theirs = SourceLog::open(store, 100).await.unwrap();
        ours.add(0, &[entry(0)]).await.unwrap();
        let error = theirs.add(0, &[FileEntry { timestamp: 5, ..entry(0) }]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fenced);
    }

    #[tokio::test]
    async fn a_log_that_is_deleted_is_missed() {
        let store = memory_store();
        let mut log = SourceLog::open(Arc::clone(&store), 100).await.unwrap();
        log.add(0, &[entry(0)]).await.unwrap();
        store.delete("0").await.unwrap();
        let error = log.add(1, &[entry(1)]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DamagedCheckpoint, "{error}");
        assert!(store.list("").await.unwrap().is_empty(), "nothing is written into the void");
    }

    #[tokio::test]
    async fn a_source_batch_that_lost_its_lines_is_missed() {
        let store = memory_store();
        let mut log = SourceLog::open(Arc::clone(&store), 100).await.unwrap();
        for id in 0..3 {
            log.add(id, &[entry(id)]).await.unwrap();
        }
        assert_eq!(log.whole().await.unwrap().len(), 3);
        store.delete("1").await.unwrap();
        store.create("1", "v1".into()).await.unwrap();
        let error = log.whole().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DamagedCheckpoint, "{error}");
        assert!(error.message().contains("source batch 1"), "{error}");
    }

    #[tokio::test]
    async fn folders_within_each_other_cannot_be_told_apart() {
        for (former, now, deep, fits) in [
            ("file:///in", "file:///in2", true, true),
            ("file:///in", "file:///in", true, true),
            ("file:///in", "file:///in/sub", false, false),
            ("file:///in/sub", "file:///in", false, true),
            ("file:///in/sub", "file:///in", true, false),
            ("file:///in/k=1", "file:///in", false, false),
        ] {
            let log = SourceLog::open(memory_store(), 100).await.unwrap();
            let moved = log.moved(&[former.to_owned()], now, deep);
            assert_eq!(moved.is_ok(), fits, "{former} {now} {deep}");
        }
    }

    #[test]
    fn offsets_of_other_sources_are_refused() {
        assert_eq!(log_offset(&offset(4)).unwrap(), 4);
        let other = Offset::new(json!({ "topic": { "0": 3 } }));
        assert_eq!(log_offset(&other).unwrap_err().kind(), ErrorKind::IncompatibleCheckpoint);
    }
}
