//! What is read of a file, and what is said of one that is not what was written.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;

use super::*;
use crate::checkpoint::{CreateOutcome, memory_store};
use crate::error::ErrorKind;
use crate::state::file::FileKind;
use crate::state::sorted::tests::{change, listed, spec};
use crate::state::write::EntryWriter;

/// Files of many record batches, none of which is small enough to be read at once.
const LIMITS: Limits = Limits { chunk_rows: 20, chunk_bytes: 2_000, file_bytes: 30_000, ..Limits::DEFAULT };

const ALL: (u8, u8) = (0, u8::MAX);

/// Counts the bytes that are read.
#[derive(Debug)]
struct Counting(Arc<dyn MetadataStore>, AtomicU64);

impl Counting {
    fn count(&self, read: Option<Bytes>) -> Option<Bytes> {
        self.1.fetch_add(read.as_ref().map_or(0, |read| read.len() as u64), Ordering::Relaxed);
        read
    }
}

#[async_trait]
impl MetadataStore for Counting {
    async fn create(&self, name: &str, contents: Bytes) -> Result<CreateOutcome> {
        self.0.create(name, contents).await
    }

    async fn read(&self, name: &str) -> Result<Option<Bytes>> {
        Ok(self.count(self.0.read(name).await?))
    }

    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>> {
        Ok(self.count(self.0.read_range(name, range).await?))
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        self.0.list(folder).await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.0.delete(name).await
    }

    fn full_name(&self, name: &str) -> String {
        self.0.full_name(name)
    }
}

/// So many rows, with texts that cannot be compressed well.
fn rows(count: i64) -> Vec<SortedRows> {
    let mix = |row: i64| (row as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let texts: Vec<String> = (0..count).map(|row| format!("{:016x}{:016x}", mix(row), mix(-row))).collect();
    let rows: Vec<(i64, i64, i64, &str)> =
        texts.iter().enumerate().map(|(row, text)| (row as i64, 0, 1, text.as_str())).collect();
    sort(&spec(), &[change(false, &rows)], ALL, LIMITS).unwrap()
}

async fn write(store: &Arc<dyn MetadataStore>, rows: &[SortedRows]) -> FileEntry {
    let how = (FileKind::Changes, LIMITS.file_bytes);
    let mut writer = EntryWriter::new(store, OperatorId(0), &spec(), "0.run".to_owned(), how, &Arc::default());
    for rows in rows {
        writer.add(rows).await.unwrap();
    }
    writer.finish(0).await.unwrap().unwrap()
}

async fn read(store: &Arc<dyn MetadataStore>, entry: &FileEntry, groups: (u8, u8)) -> Result<Vec<SortedRows>> {
    let mut reader = EntryReader::new(store, OperatorId(0), &spec(), entry, groups, LIMITS);
    let mut found = vec![];
    while let Some(rows) = reader.next().await? {
        found.push(rows);
    }
    Ok(found)
}

#[tokio::test]
async fn some_groups_are_read_without_the_others() {
    let counting = Arc::new(Counting(memory_store(), AtomicU64::new(0)));
    let store: Arc<dyn MetadataStore> = Arc::clone(&counting) as _;
    let rows = rows(4000);
    let entry = write(&store, &rows).await;
    assert!(entry.parts.len() > 3 && entry.bytes > 150_000, "{entry:?}");
    for (groups, most) in [(ALL, entry.bytes * 3 / 2), ((0, 15), entry.bytes / 6), ((100, 100), entry.bytes / 15)] {
        let own: Vec<SortedRows> = rows.iter().map(|rows| rows.of_groups(groups)).collect();
        counting.1.store(0, Ordering::Relaxed);
        let found = listed(&read(&store, &entry, groups).await.unwrap());
        assert!(!found.is_empty());
        assert_eq!(found, listed(&own), "{groups:?}");
        let bytes = counting.1.load(Ordering::Relaxed);
        assert!(bytes < most, "{bytes} bytes were read for {groups:?}, of {}", entry.bytes);
    }
}

/// Puts a file in the place of an entry's first.
async fn put(store: &Arc<dyn MetadataStore>, entry: &FileEntry, contents: Bytes) {
    let name = path(OperatorId(0), &entry.files()[0].name);
    store.delete(&name).await.unwrap();
    store.create(&name, contents).await.unwrap();
}

fn check(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::DamagedCheckpoint, "{error}");
    assert!(error.file().is_some_and(|file| file.contains("0/0.run")), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("backup")), "{error}");
}

/// Of small files, which are read at once, and of large ones.
#[tokio::test]
async fn a_file_that_is_not_what_was_written_is_named() {
    for count in [10, 400] {
        let store = memory_store();
        let rows = rows(count);
        let entry = write(&store, &rows).await;
        let first = path(OperatorId(0), &entry.files()[0].name);
        let whole = store.read(&first).await.unwrap().unwrap();
        let without_footer = [&whole[..whole.len() - 200], &[0; 190], &whole[whole.len() - 10..]].concat();
        let damages: [(&str, Bytes); 7] = [
            ("cut by a byte", whole.slice(..whole.len() - 1)),
            ("cut in half", whole.slice(..whole.len() / 2)),
            ("cut to four bytes", whole.slice(..4)),
            ("empty", Bytes::new()),
            ("longer", [&whole[..], b"x"].concat().into()),
            ("with another end", [&whole[..whole.len() - 1], b"x"].concat().into()),
            ("without its footer", without_footer.into()),
        ];
        for (what, damaged) in damages {
            put(&store, &entry, damaged).await;
            let error = read(&store, &entry, ALL).await.expect_err(what);
            assert!(error.message().contains("is not what was written"), "{what}: {error}");
            check(&error);
        }
        store.delete(&first).await.unwrap();
        let error = read(&store, &entry, ALL).await.expect_err("a file that is missing");
        assert!(error.message().contains("does not exist"), "{error}");
        check(&error);
    }
}

/// A byte that changed is found, or of no account: what is read is what was written, and whatever fails names the file.
#[tokio::test]
async fn a_byte_that_changed_changes_no_row() {
    let store = memory_store();
    let rows = rows(150);
    let entry = write(&store, &rows).await;
    let whole = store.read(&path(OperatorId(0), &entry.files()[0].name)).await.unwrap().unwrap();
    let mut found = 0;
    for at in (0..whole.len()).step_by(13) {
        let mut damaged = whole.to_vec();
        damaged[at] ^= 0x55;
        put(&store, &entry, damaged.into()).await;
        match read(&store, &entry, ALL).await {
            Ok(read) => assert_eq!(listed(&read), listed(&rows), "byte {at}"),
            Err(error) => {
                found += 1;
                check(&error);
            }
        }
    }
    assert!(found > whole.len() / 13 / 2, "{found} of {} were found", whole.len().div_ceil(13));
}

/// A file of another order, as one that was put together by hand.
#[tokio::test]
async fn rows_that_are_not_where_the_index_says_are_refused() {
    let store = memory_store();
    let mut rows = rows(100);
    for rows in &mut rows {
        rows.orders.reverse();
    }
    let entry = write(&store, &rows).await;
    let error = read(&store, &entry, ALL).await.unwrap_err();
    assert!(error.message().contains("not in the order"), "{error}");
    check(&error);
}
