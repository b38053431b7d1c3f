//! The log of a file sink: which files of a directory count.
//!
//! `<directory>/_spark_metadata/N` lists the files of batch N, one JSON line each; every tenth batch `N.compact` lists
//! those of all batches so far. A file that is in no list does not exist for whoever reads by the log: this is what makes
//! the sink exactly once. Apache Spark writes and reads the same, so field names, their order and the spelling of paths
//! are its.
//!
//! What always holds: ids have no gaps, and an entry is never changed once it is there. The name of the entry is the
//! number of the batch, so taking a batch is creating a file that must not exist. Whose batch it is, says [`owner`].

mod owner;

mod retention;

use std::sync::Arc;

use datafusion::execution::runtime_env::RuntimeEnv;
use serde::{Deserialize, Serialize};
use tidewater::checkpoint::MetadataStore;
use tidewater::clock::Clock;
use tidewater::error::{Error, ErrorKind, Result};
use tidewater::id::BatchId;
use tidewater::sink::BatchStatus;

pub(crate) use self::owner::Owner;
use self::retention::RetainingStore;
use super::compact_log::{Added, CompactLog};
use super::writer::Root;

/// The folder of the log inside the output directory.
pub(crate) const MANIFEST_FOLDER: &str = "_spark_metadata";

/// Every how many batches the log is compacted, unless the directory shows another habit.
const COMPACT_INTERVAL: u64 = 10;

/// How many batches' worth of superseded log files are kept for readers that are still at them.
const BATCHES_TO_RETAIN: u64 = 100;

/// The block size that Hadoop readers see for a file that is not on HDFS.
const BLOCK_REPLICATION: u32 = 1;
const BLOCK_SIZE: u64 = 32 * 1024 * 1024;

/// One file, as one line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ManifestEntry {
    /// The whole URI, percent-encoded.
    pub(crate) path: String,
    /// In bytes. Readers trust it to find the footer of a Parquet file.
    pub(crate) size: u64,
    pub(crate) is_dir: bool,
    /// In milliseconds since 1970.
    pub(crate) modification_time: i64,
    pub(crate) block_replication: u32,
    pub(crate) block_size: u64,
    /// Always `add`: Spark ignores others.
    pub(crate) action: String,
}

impl ManifestEntry {
    /// A file that was written.
    pub(crate) fn added(path: String, size: u64, modification_time: i64) -> Self {
        ManifestEntry {
            path,
            size,
            is_dir: false,
            modification_time,
            block_replication: BLOCK_REPLICATION,
            block_size: BLOCK_SIZE,
            action: "add".to_owned(),
        }
    }
}

/// A file that a file sink committed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CommittedFile {
    /// The whole URI, percent-encoded: `file:///data/out/part-….parquet`.
    pub path: String,
    /// In bytes.
    pub size: u64,
    /// When it was written, in milliseconds since 1970.
    pub modification_time_ms: i64,
}

/// The files that a file sink committed to the directory at `location` (a path or a URL), in the order of their batches;
/// none if the directory has no log. A plain listing of the directory may show more: files of batches that failed.
pub async fn committed_files(location: &str, runtime: &RuntimeEnv) -> Result<Vec<CommittedFile>> {
    let store = Root::parse(location, runtime)?.manifest_store(runtime, false)?;
    let mut log = CompactLog::<ManifestEntry>::open(store, COMPACT_INTERVAL, BATCHES_TO_RETAIN).await?;
    let entries = log.all_now().await?.into_iter();
    Ok(entries
        .map(|e| CommittedFile { path: e.path, size: e.size, modification_time_ms: e.modification_time })
        .collect())
}

/// The log of one output directory, for the one query that writes there.
#[derive(Debug)]
pub(crate) struct Manifest {
    log: CompactLog<ManifestEntry>,
    store: Arc<dyn MetadataStore>,
    owner: Owner,
    /// Whether the directory is known to be the owner's.
    owned: bool,
    /// What this run committed last.
    committed: Option<BatchId>,
}

impl Manifest {
    /// Opens the log in `store` for `owner`; fails if it is another's. With a `retention` in milliseconds, files that are
    /// older are forgotten at the next compaction; they are not deleted.
    pub(crate) async fn open(
        store: Arc<dyn MetadataStore>,
        owner: Owner,
        retention_ms: Option<i64>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let owned = owner.is_known(store.as_ref()).await?;
        store.recover("").await?;
        let store = match retention_ms {
            Some(retention_ms) => Arc::new(RetainingStore::new(store, retention_ms, clock)),
            None => store,
        };
        let log = CompactLog::open(Arc::clone(&store), COMPACT_INTERVAL, BATCHES_TO_RETAIN).await?;
        Ok(Manifest { log, store, owner, owned, committed: None })
    }

    /// True if no batch was ever committed here.
    pub(crate) fn is_empty(&self) -> bool {
        self.log.latest().is_none()
    }

    /// Checks that the log is as far as a query that goes on with batch `next`. With `may_be_committed`, an earlier run may have
    /// committed that batch here and died.
    pub(crate) fn check(&self, next: BatchId, may_be_committed: bool) -> Result<()> {
        let Some(latest) = self.log.latest() else { return self.check_no_gap(next) };
        if latest > next.0 || (latest == next.0 && !may_be_committed) {
            return Err(Error::new(
                ErrorKind::IncompatibleCheckpoint,
                format!(
                    "the output directory holds batches up to {latest}, but the checkpoint goes on with batch {next}: \
                     its rows would be taken for repeated ones and lost"
                ),
            )
            .with_file(self.store.full_name(""))
            .with_hint(
                "give a new query a new output directory; to repeat an old one, use the checkpoint that goes with it",
            ));
        }
        self.check_no_gap(next)
    }

    /// Whether batch `batch` is still to be written. Another run may have committed since: storage is asked every time.
    pub(crate) async fn begin(&mut self, batch: BatchId) -> Result<BatchStatus> {
        if !self.owned {
            self.owned = self.owner.is_known(self.store.as_ref()).await.map_err(|e| e.with_batch(batch))?;
        }
        self.log.refresh().await?;
        self.check_no_gap(batch)?;
        Ok(if self.log.latest().is_some_and(|latest| batch.0 <= latest) {
            BatchStatus::AlreadyCommitted
        } else {
            BatchStatus::New
        })
    }

    fn check_no_gap(&self, batch: BatchId) -> Result<()> {
        let found = match self.log.latest() {
            Some(latest) if batch.0 > latest + 1 => format!("its last batch is {latest}"),
            None if batch.0 > 0 => "it has none".to_owned(),
            _ => return Ok(()),
        };
        Err(Error::damaged(format!(
            "batch {batch} is next, but the output directory's log must then hold batch {} and {found}: readers refuse \
             a log with a gap",
            batch.0 - 1
        ))
        .with_batch(batch)
        .with_file(self.store.full_name(""))
        .with_hint(
            "restore the directory's `_spark_metadata`, or point the query at the directory it has written so far, or \
             start it with a new checkpoint and a new output directory",
        ))
    }

    /// Makes `entries` the files of batch `batch`.
    pub(crate) async fn commit(&mut self, batch: BatchId, entries: &[ManifestEntry]) -> Result<()> {
        if self.committed == Some(batch) {
            return Ok(());
        }
        if !self.owned {
            self.owner.claim(self.store.as_ref()).await.map_err(|e| e.with_batch(batch))?;
            self.owned = true;
        }
        match self.log.add(batch.0, entries).await? {
            Added::New | Added::Same => {}
            Added::Other(_) => {
                return Err(Error::new(
                    ErrorKind::Fenced,
                    format!("another run committed batch {batch} with other files; those of this run stay invisible"),
                )
                .with_batch(batch)
                .with_file(self.store.full_name(&batch.to_string()))
                .with_hint("see that only one run of the query is active, then start it again if none is"));
            }
        }
        self.committed = Some(batch);
        if let Err(error) = self.log.purge().await {
            // The batch is committed; what was not deleted now is deleted after the next one.
            tracing::warn!(%error, "superseded files of the output directory's log could not be deleted");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tidewater::checkpoint::memory_store;
    use tidewater::clock::ManualClock;
    use tidewater::id::QueryId;
    use tidewater::sink::SinkRole;

    use super::*;

    fn entry(batch: u64) -> ManifestEntry {
        ManifestEntry::added(format!("file:///out/part-{batch}.parquet"), 7 + batch, 1000 + batch as i64)
    }

    fn line(batch: u64) -> String {
        format!(
            "\n{{\"path\":\"file:///out/part-{batch}.parquet\",\"size\":{},\"isDir\":false,\"modificationTime\":{},\
             \"blockReplication\":1,\"blockSize\":33554432,\"action\":\"add\"}}",
            7 + batch,
            1000 + batch
        )
    }

    async fn text(store: &Arc<dyn MetadataStore>, name: &str) -> String {
        let bytes = store.read(name).await.unwrap().unwrap_or_else(|| panic!("no {name}"));
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    fn owner() -> Owner {
        Owner::new("5f0a2ee4-9a3f-4e0f-8d5b-1f1f0a7f3c11".to_owned().try_into().unwrap(), SinkRole::Output)
    }

    async fn open(store: &Arc<dyn MetadataStore>) -> Manifest {
        Manifest::open(Arc::clone(store), owner(), None, Arc::new(ManualClock::at(0))).await.unwrap()
    }

    async fn filled(batches: u64) -> (Arc<dyn MetadataStore>, Manifest) {
        let store = memory_store();
        let mut manifest = open(&store).await;
        for batch in 0..batches {
            assert_eq!(manifest.begin(BatchId(batch)).await.unwrap(), BatchStatus::New);
            manifest.commit(BatchId(batch), &[entry(batch)]).await.unwrap();
        }
        (store, manifest)
    }

    #[tokio::test]
    async fn entries_are_spelled_as_spark_spells_them() {
        let (store, mut manifest) = filled(1).await;
        manifest.commit(BatchId(1), &[]).await.unwrap();
        assert_eq!(text(&store, "0").await, format!("v1{}", line(0)));
        assert_eq!(text(&store, "1").await, "v1");
    }

    #[tokio::test]
    async fn every_tenth_entry_holds_all() {
        let (store, _) = filled(11).await;
        let lines: String = (0..10).map(line).collect();
        assert_eq!(text(&store, "9.compact").await, format!("v1{lines}"));
        assert!(store.read("9").await.unwrap().is_none());
        assert_eq!(text(&store, "10").await, format!("v1{}", line(10)));
    }

    #[tokio::test]
    async fn a_committed_batch_is_taken_for_every_run() {
        let (store, mut first) = filled(2).await;
        let mut second = open(&store).await;
        assert_eq!(second.begin(BatchId(0)).await.unwrap(), BatchStatus::AlreadyCommitted);
        assert_eq!(second.begin(BatchId(1)).await.unwrap(), BatchStatus::AlreadyCommitted);
        assert_eq!(second.begin(BatchId(2)).await.unwrap(), BatchStatus::New);
        second.commit(BatchId(2), &[entry(2)]).await.unwrap();
        assert_eq!(
            first.begin(BatchId(2)).await.unwrap(),
            BatchStatus::AlreadyCommitted,
            "the other run's commit is seen"
        );
    }

    #[tokio::test]
    async fn committing_twice_is_once_and_another_run_is_fenced() {
        let (store, mut first) = filled(1).await;
        let mut second = open(&store).await;
        first.commit(BatchId(1), &[entry(1)]).await.unwrap();
        first.commit(BatchId(1), &[entry(1)]).await.unwrap();
        let error = second.commit(BatchId(1), &[entry(5)]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fenced);
        assert_eq!(error.batch(), Some(BatchId(1)));
        assert!(error.file().unwrap().ends_with('1'), "{error}");
        assert_eq!(text(&store, "1").await, format!("v1{}", line(1)));
    }

    #[tokio::test]
    async fn old_files_are_forgotten_at_a_compaction() {
        let store = memory_store();
        let clock = Arc::new(ManualClock::at(1_000_000));
        let mut manifest =
            Manifest::open(Arc::clone(&store), owner(), Some(500), Arc::clone(&clock) as _).await.unwrap();
        for batch in 0..10 {
            let mut entry = entry(batch);
            entry.modification_time = clock.now_ms();
            manifest.begin(BatchId(batch)).await.unwrap();
            manifest.commit(BatchId(batch), &[entry]).await.unwrap();
            clock.advance_ms(100);
        }
        let compact = text(&store, "9.compact").await;
        let kept: Vec<u64> = (0..10).filter(|b| compact.contains(&format!("part-{b}."))).collect();
        assert_eq!(kept, [4, 5, 6, 7, 8, 9], "those written at most 500 ms before the compaction");
        assert_eq!(manifest.begin(BatchId(9)).await.unwrap(), BatchStatus::AlreadyCommitted);
    }

    #[tokio::test]
    async fn the_log_of_another_query_is_refused() {
        let (_, manifest) = filled(2).await;
        for (next, may_be_committed, fits) in
            [(0, false, false), (0, true, false), (1, false, false), (1, true, true), (2, false, true), (2, true, true)]
        {
            match manifest.check(BatchId(next), may_be_committed) {
                Ok(()) => assert!(fits, "{next}"),
                Err(e) => assert!(!fits && e.kind() == ErrorKind::IncompatibleCheckpoint, "{next}: {e}"),
            }
        }
        assert_eq!(manifest.check(BatchId(3), false).unwrap_err().kind(), ErrorKind::DamagedCheckpoint);
    }

    #[tokio::test]
    async fn a_gap_is_refused() {
        let (_, mut manifest) = filled(2).await;
        let error = manifest.begin(BatchId(3)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DamagedCheckpoint);
        assert!(error.message().contains("must then hold batch 2 and its last batch is 1"), "{error}");
        let (_, mut empty) = filled(0).await;
        let error = empty.begin(BatchId(1)).await.unwrap_err();
        assert!(error.message().contains("must then hold batch 0 and it has none"), "{error}");
    }

    async fn open_for(store: &Arc<dyn MetadataStore>, owner: Owner) -> Result<Manifest> {
        Manifest::open(Arc::clone(store), owner, None, Arc::new(ManualClock::at(0))).await
    }

    #[tokio::test]
    async fn the_first_commit_says_whose_the_directory_is() {
        let (store, mut ours) = filled(0).await;
        assert!(store.list("").await.unwrap().is_empty(), "opening says nothing yet");
        ours.commit(BatchId(0), &[entry(0)]).await.unwrap();
        let mark = text(&store, owner::FILE).await;
        assert_eq!(mark, "v1\n{\"queryId\":\"5f0a2ee4-9a3f-4e0f-8d5b-1f1f0a7f3c11\",\"sink\":\"output\"}");
        let letters = Owner::new(
            QueryId::try_from("5f0a2ee4-9a3f-4e0f-8d5b-1f1f0a7f3c11".to_owned()).unwrap(),
            SinkRole::DeadLetters,
        );
        for other in [Owner::new(QueryId::random(), SinkRole::Output), letters] {
            let error = open_for(&store, other).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::IncompatibleCheckpoint, "{error}");
            assert!(error.file().unwrap().ends_with(owner::FILE), "{error}");
        }
        open_for(&store, owner()).await.unwrap();
    }

    /// Both opened the empty directory. Their batches without rows would be the same to the byte.
    #[tokio::test]
    async fn of_two_queries_at_once_one_is_refused() {
        let (store, mut one) = filled(0).await;
        let mut late = open_for(&store, Owner::new(QueryId::random(), SinkRole::Output)).await.unwrap();
        let mut other = open_for(&store, Owner::new(QueryId::random(), SinkRole::Output)).await.unwrap();
        assert_eq!(other.begin(BatchId(0)).await.unwrap(), BatchStatus::New);
        one.commit(BatchId(0), &[]).await.unwrap();
        for error in [late.begin(BatchId(0)).await.unwrap_err(), other.commit(BatchId(0), &[]).await.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::IncompatibleCheckpoint, "{error}");
            assert_eq!(error.batch(), Some(BatchId(0)));
        }
        assert_eq!(store.list("").await.unwrap().len(), 2, "the mark and one entry");
    }

    /// What Spark or an older release began goes to the query that fits, once.
    #[tokio::test]
    async fn a_directory_without_a_mark_is_claimed() {
        let (store, _) = filled(2).await;
        store.delete(owner::FILE).await.unwrap();
        let mut ours = open(&store).await;
        ours.check(BatchId(1), true).unwrap();
        assert_eq!(ours.begin(BatchId(1)).await.unwrap(), BatchStatus::AlreadyCommitted);
        assert_eq!(ours.begin(BatchId(2)).await.unwrap(), BatchStatus::New);
        ours.commit(BatchId(2), &[entry(2)]).await.unwrap();
        assert!(open_for(&store, Owner::new(QueryId::random(), SinkRole::Output)).await.is_err());
    }
}
