//! Lists of files, merges that are slow, and what is read back.

use std::collections::BTreeMap;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::execution::memory_pool::MemoryPool;
use tokio::sync::Semaphore;

use super::*;
use crate::checkpoint::{CreateOutcome, memory_store};
use crate::clock::SystemClock;
use crate::memory::peak::PeakMemory;
use crate::state::sorted::SortedRows;
use crate::state::sorted::tests::{change, listed, spec};

const LIMITS: Limits = Limits::DEFAULT;

/// So many entries of a level make a batch wait.
const MOST: usize = 64;

fn files(levels: &[u32]) -> Vec<FileEntry> {
    let file = |level: &u32| FileEntry { name: String::new(), bytes: 1, level: *level, last_us: vec![], parts: vec![] };
    levels.iter().map(file).collect()
}

#[test]
fn sixteen_of_a_level_become_one() {
    assert_eq!(to_merge(&files(&[]), 0, LIMITS), None);
    assert_eq!(to_merge(&files(&[0; 15]), 0, LIMITS), None);
    assert_eq!(to_merge(&files(&[0; 16]), 0, LIMITS), Some(0..16));
    let with_older = [vec![2], vec![1; 3], vec![0; 17]].concat();
    assert_eq!(
        (to_merge(&files(&with_older), 0, LIMITS), to_merge(&files(&with_older), 1, LIMITS)),
        (Some(4..21), None)
    );
    let upper = [vec![2], vec![1; 16], vec![0; 3]].concat();
    assert_eq!(to_merge(&files(&upper), 1, LIMITS), Some(1..17));
}

#[test]
fn a_level_is_crowded_only_by_its_own_files() {
    assert_eq!(crowded(&files(&[0; 63]), LIMITS), None);
    assert_eq!(crowded(&files(&[0; 64]), LIMITS), Some(0));
    assert_eq!(crowded(&files(&[vec![1; 64], vec![0; 63]].concat()), LIMITS), Some(1));
}

/// Files of merges that are meant wait for a permit before they are created.
#[derive(Debug)]
struct Held {
    inner: Arc<dyn MetadataStore>,
    is_meant: fn(&str) -> bool,
    permits: Arc<Semaphore>,
    fails: bool,
}

#[async_trait]
impl MetadataStore for Held {
    async fn create(&self, name: &str, contents: Bytes) -> Result<CreateOutcome> {
        if (self.is_meant)(name) {
            let _permit = self.permits.acquire().await;
            if self.fails {
                return Err(Error::new(crate::error::ErrorKind::Unavailable, "the disk is full"));
            }
        }
        self.inner.create(name, contents).await
    }

    async fn read(&self, name: &str) -> Result<Option<Bytes>> {
        self.inner.read(name).await
    }

    async fn read_range(&self, name: &str, range: std::ops::Range<u64>) -> Result<Option<Bytes>> {
        self.inner.read_range(name, range).await
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        self.inner.list(folder).await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.inner.delete(name).await
    }

    fn full_name(&self, name: &str) -> String {
        self.inner.full_name(name)
    }
}

struct Fixture {
    store: Arc<dyn MetadataStore>,
    permits: Arc<Semaphore>,
    files: StateChangelog,
    limits: Limits,
    expected: BTreeMap<(i64, i64), String>,
}

/// Writes the changes of a batch, as its tasks do, and takes them in.
async fn add(files: &mut StateChangelog, batch: u64, changes: &[RecordBatch]) -> Result<OperatorCommit> {
    // What a batch holds for it is not what a merge does.
    let resources = Resources::unbounded(files.resources.limits);
    let writer = ChangeFiles { resources, ..files.changes() };
    let written = writer.write(BatchId(batch), &[writer.sort(changes)?]).await?;
    Ok(files.add(BatchId(batch), written, &[i64::MIN]))
}

impl Fixture {
    fn new(is_meant: fn(&str) -> bool, fails: bool, limits: Limits) -> Self {
        Fixture::with(is_meant, fails, Resources::unbounded(limits))
    }

    fn with(is_meant: fn(&str) -> bool, fails: bool, resources: Resources) -> Self {
        let limits = resources.limits;
        let permits = Arc::new(Semaphore::new(0));
        let store: Arc<dyn MetadataStore> =
            Arc::new(Held { inner: memory_store(), is_meant, permits: Arc::clone(&permits), fails });
        let files = StateChangelog::new(
            (OperatorId(0), spec()),
            Executor::global().unwrap(),
            Arc::clone(&store),
            resources,
            RunId::random(),
            OperatorCommit::default(),
        );
        Fixture { store, permits, files, limits, expected: BTreeMap::new() }
    }

    /// A batch that changes some rows and takes one away.
    async fn add(&mut self, batch: u64) -> Result<OperatorCommit> {
        let value = format!("of batch {batch}");
        let key = |row: i64| (row * 7 + batch as i64 * 3) % 50;
        let rows: Vec<(i64, i64, i64, &str)> = (0..5).map(|row| (key(row), row % 2, 1, value.as_str())).collect();
        let gone = (batch as i64 % 50, 0, 1, "");
        let changes = [change(false, &rows), change(true, &[gone])];
        self.files.make_room(BatchId(batch), || ()).await?;
        let added = add(&mut self.files, batch, &changes).await?;
        self.expected.extend(rows.iter().map(|row| ((row.0, row.1), value.clone())));
        self.expected.remove(&(gone.0, gone.1));
        Ok(added)
    }

    /// Returns once no merge of this level is under way.
    async fn merged(&self, level: u32) {
        while self.files.merging.iter().any(|merging| merging.level == level && !merging.job.is_finished()) {
            tokio::task::yield_now().await;
        }
    }

    /// What the files of a commit hold, read in two parts.
    async fn check(&self, commit: &OperatorCommit) {
        let mut found = vec![];
        for groups in [(0, 99), (100, 255)] {
            let reader = |entry| EntryReader::new(&self.store, OperatorId(0), &spec(), entry, groups, self.limits);
            let keeps = Keeps { bounds_us: vec![i64::MIN], nothing_older: true };
            let readers = commit.files.iter().map(reader).collect();
            let mut merged = MergedRows::new(spec(), readers, keeps, &Resources::unbounded(self.limits));
            let mut rows: Vec<SortedRows> = vec![];
            while let Some(more) = merged.next(|_| ()).await.unwrap() {
                assert!(more.orders.iter().all(|order| (groups.0..=groups.1).contains(&order.group())));
                rows.push(more);
            }
            found.extend(listed(&rows));
        }
        found.sort();
        let expected: Vec<_> = self.expected.iter().map(|((key, id), value)| (*key, *id, value.clone())).collect();
        assert_eq!(found, expected);
    }
}

const SMALL: Limits =
    Limits { chunk_rows: 3, chunk_bytes: 200, block_bytes: 400, file_bytes: 4000, entries_per_level: 16 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_and_merged_is_what_is_read() {
    for limits in [SMALL, LIMITS] {
        let mut fixture = Fixture::new(|_| false, false, limits);
        let mut merged = 0;
        for batch in 0..200 {
            let commit = fixture.add(batch).await.unwrap();
            merged = merged.max(commit.files.iter().map(|file| file.level).max().unwrap_or(0));
            if batch % 20 == 19 {
                fixture.check(&commit).await;
            }
            // Merges run beside; a test does not wait for them but gives them the chance.
            tokio::task::yield_now().await;
        }
        assert!(merged > 0, "nothing was merged");
        if limits == SMALL {
            assert!(fixture.files.now().files.iter().any(|file| file.parts.len() > 1), "no entry has several files");
        }
        fixture.files.cancel_compactions(&SystemClock::default()).await;
        fixture.check(fixture.files.now()).await;
    }
}

/// While the merge of the second level does not end, those of the first go on, and the list stays short.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_merge_does_not_let_commits_grow() {
    let mut fixture = Fixture::new(|name| name.contains("m16."), false, LIMITS);
    let mut most = 0;
    for batch in 0..900 {
        let commit = fixture.add(batch).await.unwrap();
        most = most.max(commit.files.len());
        fixture.merged(0).await;
    }
    assert!(most > 40, "the second level has not more than {most} files: its merge was not held");
    assert!(most <= 2 * MOST, "{most} files");
    assert_eq!(fixture.files.waited(), 0);
    fixture.permits.add_permits(1);
    for batch in 900..1000 {
        fixture.add(batch).await.unwrap();
        fixture.merged(0).await;
        fixture.merged(1).await;
    }
    let commit = fixture.files.now().clone();
    assert!(commit.files.len() < 40, "{} files are left", commit.files.len());
    fixture.check(&commit).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_waits_when_no_merge_ends() {
    let mut fixture = Fixture::new(|name| name.contains('m'), false, LIMITS);
    for batch in 0..MOST as u64 {
        fixture.add(batch).await.unwrap();
    }
    assert_eq!(fixture.files.waited(), 0);
    let permits = Arc::clone(&fixture.permits);
    {
        let mut waiting = std::pin::pin!(fixture.add(64));
        assert!(futures::poll!(&mut waiting).is_pending(), "the merge is held, and the batch does not wait");
        permits.add_permits(1000);
        let commit = waiting.await.unwrap();
        assert!(commit.files.len() <= MOST);
    }
    assert_eq!(fixture.files.waited(), 1);
    fixture.check(&fixture.files.now().clone()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merges_that_go_on_failing_end_the_query() {
    let mut fixture = Fixture::new(|name| name.contains('m'), true, LIMITS);
    fixture.permits.add_permits(1000);
    for batch in 0..MOST as u64 {
        fixture.add(batch).await.unwrap();
        tokio::task::yield_now().await;
    }
    let error = fixture.add(64).await.unwrap_err();
    assert!(error.to_string().contains("the disk is full") && error.hint().is_some(), "{error}");
}

/// A merge holds a record batch of each file, and the file that it writes, however much they are in all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_holds_a_bounded_part() {
    let limits = Limits { chunk_rows: 20, chunk_bytes: 2000, file_bytes: 20_000, ..LIMITS };
    let peak = PeakMemory::new();
    let pool: Arc<dyn MemoryPool> = Arc::clone(&peak) as _;
    let mut fixture = Fixture::with(|_| false, false, Resources::new(limits, &pool, "a test".to_owned()));
    let mut bytes = 0;
    for batch in 0..16 {
        let texts: Vec<String> = (0..2000).map(|row| format!("{batch} {row} ").repeat(10)).collect();
        bytes += texts.iter().map(String::len).sum::<usize>();
        let rows: Vec<(i64, i64, i64, &str)> =
            texts.iter().enumerate().map(|(row, text)| (row as i64, batch, 1, text.as_str())).collect();
        let changes = [change(false, &rows)];
        add(&mut fixture.files, batch as u64, &changes).await.unwrap();
        let rows = rows.iter().map(|row| ((row.0, row.1), row.3.to_owned()));
        fixture.expected.extend(rows);
    }
    fixture.merged(0).await;
    fixture.files.make_room(BatchId(16), || ()).await.unwrap();
    let commit = fixture.files.now().clone();
    assert_eq!((commit.files.len(), commit.files[0].level), (1, 1), "they were not merged");
    let most = peak.take();
    assert!(most > 0 && most < bytes / 8, "{most} bytes were held of {bytes}");
    assert_eq!(peak.reserved(), 0, "memory was not given back");
    fixture.check(&commit).await;
}
