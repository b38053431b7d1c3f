//! Create if absent, read, list, delete: the one file that touches storage.
//!
//! Everything in a checkpoint, and a file sink's manifest too, is *created once and never changed*. So all that is asked
//! of storage is an atomic create that fails if the name is taken.
//!
//! On a local disk a file counts once it and its folder are flushed: contents go to a hidden file, which is flushed,
//! renamed without overwriting, and then the folder is flushed. On an object store a conditional put does it. An answer
//! that does not say what happened is looked into before anyone hears of it: see `certain`.

mod certain;

mod local;

mod remote;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use object_store::path::Path as ObjectPath;

use self::certain::Certain;
use self::local::LocalStore;
use self::remote::RemoteStore;
use crate::error::{Error, Result};

/// The outcome of a create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateOutcome {
    /// The file is there now, with these contents, and will survive a crash. It may have been there before, with the very
    /// same contents.
    Created,
    /// A file of this name existed, with other contents; it was not touched.
    AlreadyExists,
}

/// A store of write-once files: the checkpoint, a source's own log, a sink's manifest. Names are relative, with `/`
/// between folders.
#[async_trait]
pub trait MetadataStore: std::fmt::Debug + Send + Sync {
    /// Creates `name` with `contents`, wholly or not at all.
    async fn create(&self, name: &str, contents: Bytes) -> Result<CreateOutcome>;

    /// The contents of `name`, or `None` if there is no such file.
    async fn read(&self, name: &str) -> Result<Option<Bytes>>;

    /// Of the contents of `name`, the bytes from `range.start` on and before `range.end`: fewer where the file ends there.
    /// `None` if there is no such file. Storage that can read a part of a file does; by default all of it is read.
    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>> {
        Ok(self.read(name).await?.map(|contents| {
            let within = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(contents.len());
            contents.slice(within(range.start)..within(range.end.max(range.start)))
        }))
    }

    /// The names of the files directly in `folder`, without the folder, unsorted; none if it does not exist. Hidden files
    /// (a leading dot) are left out.
    async fn list(&self, folder: &str) -> Result<Vec<String>>;

    /// Deletes `name`; that it is gone already is not an error.
    async fn delete(&self, name: &str) -> Result<()>;

    /// Makes good what a process left half done that died in `folder`: half-written files go, and names that it had no time
    /// to flush are flushed. It harms no create that is under way. Nothing to do for a store whose creates are indivisible.
    async fn recover(&self, folder: &str) -> Result<()> {
        let _ = folder;
        Ok(())
    }

    /// The full name of `name`, for messages.
    fn full_name(&self, name: &str) -> String;
}

/// Opens the folder at `location`, a local path or a URL. A URL's object store must be registered with `runtime`
/// (DataFusion's `register_object_store`). With `durable`, a local create reaches the disk before it returns.
pub fn open_store(location: &str, runtime: &RuntimeEnv, durable: bool) -> Result<Arc<dyn MetadataStore>> {
    match local_path(location)? {
        Some(root) => Ok(certain(Arc::new(LocalStore::new(root, durable)))),
        None => {
            let url = ListingTableUrl::parse(location)
                .map_err(|e| Error::invalid(format!("`{location}` is neither a path nor a URL: {e}")))?;
            let store = runtime.object_store(&url).map_err(|e| {
                Error::invalid(format!("no object store is registered for `{location}`"))
                    .with_hint("call `ctx.register_object_store(url, store)` before the query starts")
                    .with_source(e)
            })?;
            Ok(certain(Arc::new(RemoteStore { store, root: url.prefix().clone(), location: location.to_owned() })))
        }
    }
}

/// `store`, with creates that report what happened, whatever the storage below answers.
pub(crate) fn certain(store: Arc<dyn MetadataStore>) -> Arc<dyn MetadataStore> {
    Arc::new(Certain(store))
}

/// The local path that `location` names, made absolute; `None` if it is a URL of another scheme.
pub fn local_path(location: &str) -> Result<Option<PathBuf>> {
    let path = match scheme(location) {
        None => PathBuf::from(location),
        Some((name, rest)) if name.eq_ignore_ascii_case("file") => {
            path_of_file_url(rest).ok_or_else(|| Error::invalid(format!("`{location}` is not a file URL")))?
        }
        Some(_) => return Ok(None),
    };
    if path.as_os_str().is_empty() {
        return Err(Error::invalid("an empty path names no place"));
    }
    let absolute = std::path::absolute(&path).map_err(|e| Error::io("resolve the path", location, e))?;
    Ok(Some(absolute))
}

/// The scheme of a URL and what follows its colon; `None` for a path.
fn scheme(location: &str) -> Option<(&str, &str)> {
    let (name, rest) = location.split_once(':')?;
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    // Hadoop writes `file:/a` for `file:///a`.
    let is_url = rest.starts_with("//") || (name.eq_ignore_ascii_case("file") && rest.starts_with('/'));
    (is_name && is_url).then_some((name, rest))
}

/// The path of a `file` URL, of which only percent signs are special: `#` and `?` are in names of files, too.
fn path_of_file_url(rest: &str) -> Option<PathBuf> {
    let path = match rest.strip_prefix("//") {
        Some(rest) => rest.strip_prefix("localhost").filter(|rest| rest.starts_with('/')).unwrap_or(rest),
        None => rest,
    };
    let is_absolute = path.starts_with('/');
    let mut encoded = "file://".to_owned();
    for c in path.chars() {
        match c {
            '#' | '?' | '\\' | '|' | '\0'..=' ' => encoded.push_str(&format!("%{:02X}", u32::from(c))),
            c => encoded.push(c),
        }
    }
    let url = url::Url::parse(&encoded).ok()?;
    is_absolute.then(|| url.to_file_path().ok()).flatten()
}

/// A folder inside another store.
pub fn sub_store(parent: &Arc<dyn MetadataStore>, folder: &str) -> Arc<dyn MetadataStore> {
    Arc::new(SubStore { parent: Arc::clone(parent), folder: folder.to_owned() })
}

/// Creates `folder` and its missing parents; with `durable`, each new entry reaches the disk.
pub fn create_folders(folder: &Path, durable: bool) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        create_folders(parent, durable)?;
    }
    match std::fs::create_dir(folder) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && folder.is_dir() => return Ok(()),
        Err(e) => return Err(Error::io("create the folder", folder.display().to_string(), e)),
    }
    match folder.parent() {
        Some(parent) if durable => sync_folder(parent),
        _ => Ok(()),
    }
}

/// Makes the names in a folder survive a power cut.
pub fn sync_folder(folder: &Path) -> Result<()> {
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|e| Error::io("flush the folder", folder.display().to_string(), e))
}

#[derive(Debug)]
struct SubStore {
    parent: Arc<dyn MetadataStore>,
    folder: String,
}

impl SubStore {
    fn name(&self, name: &str) -> String {
        if name.is_empty() { self.folder.clone() } else { format!("{}/{name}", self.folder) }
    }
}

#[async_trait]
impl MetadataStore for SubStore {
    async fn create(&self, name: &str, contents: Bytes) -> Result<CreateOutcome> {
        self.parent.create(&self.name(name), contents).await
    }

    async fn read(&self, name: &str) -> Result<Option<Bytes>> {
        self.parent.read(&self.name(name)).await
    }

    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>> {
        self.parent.read_range(&self.name(name), range).await
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        self.parent.list(&self.name(folder)).await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.parent.delete(&self.name(name)).await
    }

    async fn recover(&self, folder: &str) -> Result<()> {
        self.parent.recover(&self.name(folder)).await
    }

    fn full_name(&self, name: &str) -> String {
        self.parent.full_name(&self.name(name))
    }
}

/// Where a checkpoint is not wanted: keeps files in memory, for tests and for queries that need not survive.
pub fn memory_store() -> Arc<dyn MetadataStore> {
    certain(Arc::new(RemoteStore {
        store: Arc::new(object_store::memory::InMemory::new()),
        root: ObjectPath::default(),
        location: "memory:".to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_url_is_a_path_in_every_spelling_and_with_every_name() {
        for (location, path) in [
            ("/data/in", "/data/in"),
            ("file:///data/in", "/data/in"),
            ("file:/data/in", "/data/in"),
            ("FILE:/data/in", "/data/in"),
            ("file://localhost/data/in", "/data/in"),
            ("file:/data/a b%20c/report.csv#1", "/data/a b c/report.csv#1"),
            ("file:///data/a?.csv", "/data/a?.csv"),
            ("file:///data/tab\tand\\", "/data/tab\tand\\"),
            ("/data/a://b", "/data/a://b"),
            ("/data/a:b", "/data/a:b"),
        ] {
            assert_eq!(local_path(location).unwrap(), Some(PathBuf::from(path)), "{location}");
        }
        assert_eq!(local_path("s3://bucket/file:/x").unwrap(), None);
        assert_eq!(local_path("x:y").unwrap(), Some(std::path::absolute("x:y").unwrap()));
        assert!(local_path("file://host/x").is_err());
        assert!(local_path("").is_err());
    }

    async fn behaves(store: Arc<dyn MetadataStore>) {
        assert_eq!(store.create("a/7", Bytes::from_static(b"one")).await.unwrap(), CreateOutcome::Created);
        assert_eq!(store.create("a/7", Bytes::from_static(b"two")).await.unwrap(), CreateOutcome::AlreadyExists);
        assert_eq!(store.read("a/7").await.unwrap().unwrap(), "one");
        for (range, part) in [(0..3, "one"), (1..2, "n"), (1..9, "ne"), (2..2, ""), (3..5, ""), (7..9, "")] {
            assert_eq!(store.read_range("a/7", range.clone()).await.unwrap().unwrap(), part, "{range:?}");
        }
        assert!(store.read_range("a/8", 0..1).await.unwrap().is_none());
        assert_eq!(store.list("a").await.unwrap(), ["7"]);
        assert!(store.list("nowhere").await.unwrap().is_empty());
        assert!(store.read("a/8").await.unwrap().is_none());
        let inside = sub_store(&store, "a");
        assert_eq!(inside.list("").await.unwrap(), ["7"]);
        assert_eq!(inside.read_range("7", 1..3).await.unwrap().unwrap(), "ne");
        inside.delete("7").await.unwrap();
        inside.delete("7").await.unwrap();
        assert!(store.list("a").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_local_folder_creates_once() {
        for durable in [true, false] {
            let root = tempfile::tempdir().unwrap();
            behaves(Arc::new(LocalStore::new(root.path().join("deep/er"), durable))).await;
        }
    }

    #[tokio::test]
    async fn an_object_store_creates_once() {
        behaves(memory_store()).await;
    }
}
