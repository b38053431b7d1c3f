//! A folder on a local disk.

use std::collections::HashSet;
use std::io::{ErrorKind as IoErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::{CreateOutcome, MetadataStore, create_folders, sync_folder};
use crate::error::{Error, ErrorKind, Result};

/// Files that are being written begin with a dot and end with this.
const HALF_DONE: &str = ".tmp";

/// So often a file is written again that someone swept away while it was written: see [`MetadataStore::recover`].
const WRITES: usize = 5;

/// Larger files are read by a thread that may wait for the disk; handing a small one over would take longer than reading it.
const BYTES_WORTH_A_THREAD: u64 = 64 << 10;

/// What waits for the disk, a flush or a large read, waits on a blocking thread of the tokio runtime it is called in.
#[derive(Debug)]
pub(super) struct LocalStore(Arc<Folder>);

/// Remembers which folders were there, so that one which is deleted while it is in use is missed, not made anew.
#[derive(Debug)]
struct Folder {
    root: PathBuf,
    durable: bool,
    seen: Mutex<HashSet<PathBuf>>,
}

impl LocalStore {
    pub(super) fn new(root: PathBuf, durable: bool) -> Self {
        LocalStore(Arc::new(Folder { root, durable, seen: Mutex::default() }))
    }
}

/// Runs what waits for the disk where waiting harms nobody.
async fn waiting<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let Ok(runtime) = Handle::try_current() else { return work() };
    match runtime.spawn_blocking(work).await {
        Ok(done) => done,
        Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
        Err(_) => Err(Error::new(
            ErrorKind::Stopped,
            "the runtime was shut down while a file of the checkpoint was written or read",
        )),
    }
}

impl Folder {
    fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.root.clone() } else { self.root.join(name) }
    }

    /// Notes that `folder` is there, with all folders above it up to the root.
    fn note(&self, folder: &Path) {
        let mut seen = self.seen.lock();
        for folder in folder.ancestors().take_while(|folder| folder.starts_with(&self.root)) {
            if !seen.insert(folder.to_owned()) {
                return;
            }
        }
    }

    /// Fails if `folder`, or one above it up to the root, was there and is gone.
    fn check(&self, folder: &Path) -> Result<()> {
        let seen = self.seen.lock();
        let known = folder.ancestors().take_while(|above| above.starts_with(&self.root)).filter(|f| seen.contains(*f));
        match known.filter(|folder| !folder.is_dir()).last() {
            Some(gone) => Err(Error::damaged("the folder was deleted while it was in use: what it held is lost")
                .with_file(gone.display().to_string())
                .with_hint(
                    "let nothing delete it while a query runs; restore it from a backup, or start with a new checkpoint and a \
                     new output",
                )),
            None => Ok(()),
        }
    }

    /// Sees to it that `folder` is there.
    fn prepare(&self, folder: &Path) -> Result<()> {
        self.check(folder)?;
        if !self.seen.lock().contains(folder) {
            create_folders(folder, self.durable)?;
            self.note(folder);
        }
        Ok(())
    }

    /// `None` if someone swept the file away before it had its name.
    fn try_create(&self, folder: &Path, path: &Path, contents: &[u8]) -> Result<Option<CreateOutcome>> {
        self.prepare(folder)?;
        let failed = |action: &str, e: std::io::Error| match self.check(folder) {
            Ok(()) => Error::io(action, path.display().to_string(), e),
            Err(gone) => gone,
        };
        let mut builder = tempfile::Builder::new();
        let prefix = format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy());
        builder.prefix(&prefix).suffix(HALF_DONE);
        // A temporary file is private by default; these are read by other users' tools as any output is.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(folder).map_err(|e| failed("create the file", e))?;
        file.write_all(contents).map_err(|e| failed("write the file", e))?;
        if self.durable {
            file.as_file().sync_all().map_err(|e| failed("flush the file", e))?;
        }
        match file.persist_noclobber(path) {
            Ok(_) => {}
            Err(e) if e.error.kind() == IoErrorKind::AlreadyExists => return Ok(Some(CreateOutcome::AlreadyExists)),
            Err(e) if e.error.kind() == IoErrorKind::NotFound && folder.is_dir() => return Ok(None),
            Err(e) => return Err(failed("create the file", e.error)),
        }
        if self.durable {
            sync_folder(folder)?;
        }
        Ok(Some(CreateOutcome::Created))
    }
}

impl Folder {
    fn create(&self, name: &str, contents: &Bytes) -> Result<CreateOutcome> {
        let path = self.path(name);
        let Some(folder) = path.parent().filter(|_| !name.is_empty()) else {
            return Err(Error::internal(format!("`{name}` is not a file name")));
        };
        for _ in 0..WRITES {
            if let Some(created) = self.try_create(folder, &path, contents)? {
                return Ok(created);
            }
        }
        let swept = std::io::Error::new(IoErrorKind::NotFound, "another process deletes it while it is written");
        Err(Error::io("create the file", path.display().to_string(), swept))
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>> {
        let path = self.path(name);
        match std::fs::read(&path) {
            Ok(contents) => Ok(Some(contents.into())),
            Err(e) if e.kind() == IoErrorKind::NotFound => {
                self.check(path.parent().unwrap_or(&self.root))?;
                Ok(None)
            }
            Err(e) => Err(Error::io("read the file", path.display().to_string(), e)),
        }
    }

    fn read_range(&self, name: &str, range: &Range<u64>) -> Result<Option<Bytes>> {
        let path = self.path(name);
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = std::fs::File::open(&path)?;
            file.seek(SeekFrom::Start(range.start))?;
            let mut contents = vec![];
            file.take(range.end.saturating_sub(range.start)).read_to_end(&mut contents)?;
            Ok(contents)
        };
        match read() {
            Ok(contents) => Ok(Some(contents.into())),
            Err(e) if e.kind() == IoErrorKind::NotFound => {
                self.check(path.parent().unwrap_or(&self.root))?;
                Ok(None)
            }
            Err(e) => Err(Error::io("read the file", path.display().to_string(), e)),
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<String>> {
        let path = self.path(folder);
        let failed = |e| Error::io("list the folder", path.display().to_string(), e);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == IoErrorKind::NotFound => {
                self.check(&path)?;
                return Ok(vec![]);
            }
            Err(e) => return Err(failed(e)),
        };
        self.note(&path);
        let mut names = vec![];
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') && !entry.file_type().map_err(failed)?.is_dir() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn delete(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == IoErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io("delete the file", path.display().to_string(), e)),
        }
    }

    fn recover(&self, folder: &str) -> Result<()> {
        let path = self.path(folder);
        let failed = |e| Error::io("clean up the folder", path.display().to_string(), e);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == IoErrorKind::NotFound => return self.check(&path),
            Err(e) => return Err(failed(e)),
        };
        self.note(&path);
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !(name.starts_with('.') && name.ends_with(HALF_DONE)) || entry.file_type().map_err(failed)?.is_dir() {
                continue;
            }
            match std::fs::remove_file(entry.path()) {
                Err(e) if e.kind() != IoErrorKind::NotFound => {
                    tracing::warn!(file = %entry.path().display(), error = %e, "a half-written file cannot be deleted");
                }
                _ => {}
            }
        }
        if self.durable {
            sync_folder(&path)?;
            // The folder's own name; one above the root may be closed to this process.
            match path.parent().map(sync_folder) {
                Some(Err(error)) if path != self.root => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

#[async_trait]
impl MetadataStore for LocalStore {
    async fn create(&self, name: &str, contents: Bytes) -> Result<CreateOutcome> {
        if !self.0.durable {
            return self.0.create(name, &contents);
        }
        let (folder, name) = (Arc::clone(&self.0), name.to_owned());
        waiting(move || folder.create(&name, &contents)).await
    }

    async fn read(&self, name: &str) -> Result<Option<Bytes>> {
        let bytes = std::fs::metadata(self.0.path(name)).map_or(0, |file| file.len());
        if bytes < BYTES_WORTH_A_THREAD {
            return self.0.read(name);
        }
        let (folder, name) = (Arc::clone(&self.0), name.to_owned());
        waiting(move || folder.read(&name)).await
    }

    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>> {
        if range.end.saturating_sub(range.start) < BYTES_WORTH_A_THREAD {
            return self.0.read_range(name, &range);
        }
        let (folder, name) = (Arc::clone(&self.0), name.to_owned());
        waiting(move || folder.read_range(&name, &range)).await
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        self.0.list(folder)
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.0.delete(name)
    }

    async fn recover(&self, folder: &str) -> Result<()> {
        let (store, folder) = (Arc::clone(&self.0), folder.to_owned());
        waiting(move || store.recover(&folder)).await
    }

    fn full_name(&self, name: &str) -> String {
        self.0.root.join(name).display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::super::open_store;
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_folder_that_is_deleted_in_use_is_missed_and_not_made_anew() {
        for (deleted, folder) in [("root", "offsets"), ("root/offsets", "offsets"), ("root/state", "state/0")] {
            for durable in [true, false] {
                let dir = tempfile::tempdir().unwrap();
                let root = dir.path().join("root");
                let store = open_store(root.to_str().unwrap(), &Default::default(), durable).unwrap();
                assert!(store.list(folder).await.unwrap().is_empty(), "what was never there is empty");
                store.create(&format!("{folder}/0"), "zero".into()).await.unwrap();
                std::fs::remove_dir_all(dir.path().join(deleted)).unwrap();
                let answers = [
                    store.create(&format!("{folder}/1"), "one".into()).await.map(|_| ()),
                    store.read(&format!("{folder}/0")).await.map(|_| ()),
                    store.list(folder).await.map(|_| ()),
                    store.recover(folder).await,
                ];
                for answer in answers {
                    let error = answer.expect_err(deleted);
                    assert_eq!(error.kind(), ErrorKind::DamagedCheckpoint, "{error}");
                    assert_eq!(error.file(), dir.path().join(deleted).to_str(), "{error}");
                }
                assert!(!dir.path().join(deleted).exists(), "{deleted} was made anew");
            }
        }
    }

    #[tokio::test]
    async fn a_folder_next_to_the_deleted_one_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::new(dir.path().to_owned(), false);
        store.create("a/0", "zero".into()).await.unwrap();
        store.create("b/0", "zero".into()).await.unwrap();
        std::fs::remove_dir_all(dir.path().join("a")).unwrap();
        assert_eq!(store.create("b/1", "one".into()).await.unwrap(), CreateOutcome::Created);
        assert!(store.create("a/1", "one".into()).await.is_err());
    }

    #[tokio::test]
    async fn what_killed_creates_left_is_deleted_and_nothing_else() {
        for durable in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let store = LocalStore::new(dir.path().to_owned(), durable);
            store.create("offsets/7", "seven".into()).await.unwrap();
            let folder = dir.path().join("offsets");
            for name in [".8.Xy12ab.tmp", ".7.crc", "note.tmp"] {
                std::fs::write(folder.join(name), "half").unwrap();
            }
            std::fs::create_dir(folder.join(".9.Xy12ab.tmp")).unwrap();
            store.recover("offsets").await.unwrap();
            store.recover("nowhere").await.unwrap();
            assert_eq!(names(&folder), [".7.crc", ".9.Xy12ab.tmp", "7", "note.tmp"]);
        }
    }

    /// Two processes, one of which sweeps all the time: no create fails of it.
    #[test]
    fn sweeping_harms_no_create_that_is_under_way() {
        let dir = tempfile::tempdir().unwrap();
        let (writer, sweeper) =
            (LocalStore::new(dir.path().to_owned(), false), LocalStore::new(dir.path().to_owned(), false));
        let done = std::sync::atomic::AtomicBool::new(false);
        let order = std::sync::atomic::Ordering::SeqCst;
        let mut created = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(order) {
                    futures::executor::block_on(sweeper.recover("log")).unwrap();
                    std::thread::yield_now();
                }
            });
            for n in 0..300 {
                match futures::executor::block_on(writer.create(&format!("log/{n}"), "x".into())) {
                    Ok(_) => created += 1,
                    Err(error) => assert!(error.to_string().contains("another process deletes"), "{error}"),
                }
            }
            done.store(true, order);
        });
        // Each is there, or its create failed, however often the other was in the way.
        assert!(created > 0);
        assert_eq!(names(&dir.path().join("log")).len(), created);
    }
}
