//! Where the bytes of one file go: straight to a local disk, or up to an object store in parts.
//!
//! A file is written where it will stay. That it counts is another file's word (see [`manifest`](super::super::manifest)),
//! so a file that is torn by a crash harms nobody.

use std::fs::File;
use std::io::Write;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use object_store::path::Path as ObjectPath;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt};
use tidewater::checkpoint::{MetadataStore, open_store};
use tidewater::error::{Error, ErrorKind, Result};
use tidewater::executor::block_in_place;
use tidewater::internal::{create_folders, local_path, sync_folder};

use super::super::manifest::{MANIFEST_FOLDER, ManifestEntry};
use super::super::uri::{FileLocation, object_store, uri_of};

/// How many bytes the name of a folder may have on every disk in use.
const LONGEST_NAME: usize = 255;

/// How many bytes a key may have in every object store in use.
const LONGEST_KEY: usize = 1024;

/// Object stores take parts of at least 5 MB, and some want them all of one size.
const PART_BYTES: usize = 8 * 1024 * 1024;

/// The output directory.
#[derive(Debug, Clone)]
pub(crate) enum Root {
    /// On a local disk; absolute, without `.` and `..`.
    Local(PathBuf),
    /// In an object store.
    Remote { store: Arc<dyn ObjectStore>, url: ObjectStoreUrl, folder: ObjectPath },
}

impl Root {
    /// The directory that `location`, a path or a URL, names.
    pub(crate) fn parse(location: &str, runtime: &RuntimeEnv) -> Result<Self> {
        if let Some(path) = local_path(location)? {
            return Ok(Root::Local(without_dots(&path)));
        }
        let url = ListingTableUrl::parse(location)
            .map_err(|e| Error::invalid(format!("`{location}` is neither a path nor a URL: {e}")))?;
        let (folder, url) = (url.prefix().clone(), url.object_store());
        Ok(Root::Remote { store: object_store(&url, runtime)?, url, folder })
    }

    /// The directory's log.
    pub(crate) fn manifest_store(&self, runtime: &RuntimeEnv, durable: bool) -> Result<Arc<dyn MetadataStore>> {
        let location = match self {
            Root::Local(path) => path.join(MANIFEST_FOLDER).to_string_lossy().into_owned(),
            Root::Remote { .. } => self.uri(MANIFEST_FOLDER),
        };
        open_store(&location, runtime, durable)
    }

    /// Whether any file lies directly in the directory.
    pub(crate) async fn has_files(&self, runtime: &RuntimeEnv) -> Result<bool> {
        let location = match self {
            Root::Local(path) => path.to_string_lossy().into_owned(),
            Root::Remote { .. } => self.uri(""),
        };
        Ok(!open_store(&location, runtime, false)?.list("").await?.is_empty())
    }

    /// The URI of the file at `name` below the directory, percent-encoded.
    pub(crate) fn uri(&self, name: &str) -> String {
        let (url, folder) = match self {
            Root::Local(path) => (ObjectStoreUrl::local_filesystem(), path.to_string_lossy()),
            Root::Remote { url, folder, .. } => (url.clone(), folder.as_ref().into()),
        };
        match folder.trim_matches('/') {
            "" => uri_of(&url, name),
            folder => uri_of(&url, &format!("{folder}/{name}")),
        }
    }

    /// Removes files that no manifest lists. Those that are gone are no error.
    pub(crate) async fn remove(&self, files: &[ManifestEntry]) -> Result<()> {
        let mut outcome = Ok(());
        for file in files {
            let location = FileLocation::parse(&file.path)?;
            let removed = match self {
                Root::Local(_) => match location.on_disk() {
                    Some(path) => block_in_place(|| std::fs::remove_file(&path)).or_else(|e| match e.kind() {
                        std::io::ErrorKind::NotFound => Ok(()),
                        _ => Err(Error::io("remove the file", &file.path, e)),
                    }),
                    None => Ok(()),
                },
                Root::Remote { store, .. } => store.delete(&location.path).await.or_else(|e| match e {
                    object_store::Error::NotFound { .. } => Ok(()),
                    e => Err(Error::store("remove the file", &file.path, e)),
                }),
            };
            outcome = outcome.and(removed);
        }
        outcome
    }

    /// Begins the file at `name` below the directory.
    pub(super) fn create(&self, name: &str, durable: bool) -> Result<Output> {
        let uri = self.uri(name);
        let to = match self {
            Root::Local(root) => {
                check_lengths(name, LONGEST_NAME, usize::MAX)?;
                let path = root.join(name);
                if let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) {
                    block_in_place(|| create_folders(folder, durable))?;
                }
                let file =
                    File::create_new(&path).map_err(|e| Error::io("create the file", path.display().to_string(), e))?;
                To::Local(LocalFile { file, path, durable, kept: false })
            }
            Root::Remote { store, folder, .. } => {
                let longest = LONGEST_KEY.saturating_sub(folder.as_ref().len() + 1);
                check_lengths(name, longest, longest)?;
                let path = ObjectPath::parse(format!("{folder}/{name}"))
                    .map_err(|e| Error::invalid(format!("no object store takes this name: {e}")).with_file(&uri))?;
                To::Remote(RemoteFile { store: Arc::clone(store), path, upload: None, buffer: Vec::new() })
            }
        };
        Ok(Output { uri, size: 0, to })
    }
}

/// An error if `name`, of folders `key=value` and a file, is too long: in one of its parts, or as a whole.
fn check_lengths(name: &str, part: usize, whole: usize) -> Result<()> {
    let longest = name.split('/').max_by_key(|part| part.len()).unwrap_or_default();
    if longest.len() <= part && name.len() <= whole {
        return Ok(());
    }
    let (column, value) = longest.split_once('=').unwrap_or(("", longest));
    let shown: String = value.chars().take(40).collect();
    Err(Error::new(
        ErrorKind::BadInput,
        format!(
            "a value of partition column `{column}` is too long for the name of a folder: `{shown}…` takes {} bytes, and \
             this storage has names of up to {} bytes",
            longest.len(),
            part.min(whole)
        ),
    )
    .with_hint(
        "partition by something shorter (a prefix, a hash), or filter such rows out, and start the query again: the batch \
         will be repeated",
    ))
}

/// Java and object stores resolve `..` by name, so that is what must be written, too.
fn without_dots(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            part => clean.push(part),
        }
    }
    clean
}

/// A file being written. Dropped before `close`, it is removed where that is cheap.
pub(super) struct Output {
    uri: String,
    size: u64,
    to: To,
}

enum To {
    Local(LocalFile),
    Remote(RemoteFile),
}

impl Output {
    /// The URI, for messages.
    pub(super) fn uri(&self) -> &str {
        &self.uri
    }

    /// The bytes that are not sent yet.
    pub(super) fn memory(&self) -> usize {
        match &self.to {
            To::Local(_) => 0,
            To::Remote(file) => file.buffer.capacity(),
        }
    }

    /// Adds bytes.
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.size += bytes.len() as u64;
        match &mut self.to {
            To::Local(file) => file.write(&bytes),
            To::Remote(file) => file.write(&bytes).await.map_err(|e| unreachable_store(e, &self.uri)),
        }
    }

    /// The file is not wanted. Parts that are in an object store already do not stay there.
    pub(super) async fn abort(&mut self) -> Result<()> {
        match &mut self.to {
            // Its destructor removes it.
            To::Local(_) => Ok(()),
            To::Remote(file) => file.abort().await.map_err(|e| unreachable_store(e, &self.uri)),
        }
    }

    /// No more bytes come. The file is safe on storage when this returns.
    pub(super) async fn close(self) -> Result<ManifestEntry> {
        let modified_ms = match self.to {
            // It waits until the disk has all.
            To::Local(file) if file.durable => block_in_place(|| file.close())?,
            To::Local(file) => file.close()?,
            To::Remote(file) => file.close().await.map_err(|e| unreachable_store(e, &self.uri))?,
        };
        Ok(ManifestEntry::added(self.uri, self.size, modified_ms))
    }
}

fn unreachable_store(error: object_store::Error, uri: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("cannot write the file: {error}"))
        .with_file(uri)
        .with_hint("check the store, its credentials and the network, then start again: the batch will be repeated")
        .with_source(error)
}

struct LocalFile {
    file: File,
    path: PathBuf,
    durable: bool,
    kept: bool,
}

impl LocalFile {
    fn failed(&self, action: &str, error: std::io::Error) -> Error {
        Error::io(action, self.path.display().to_string(), error)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| self.failed("write the file", e))
    }

    fn close(mut self) -> Result<i64> {
        if self.durable {
            self.file.sync_all().map_err(|e| self.failed("flush the file", e))?;
            if let Some(folder) = self.path.parent() {
                sync_folder(folder)?;
            }
        }
        let modified =
            self.file.metadata().and_then(|m| m.modified()).map_err(|e| self.failed("look at the file", e))?;
        self.kept = true;
        Ok(modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64))
    }
}

impl Drop for LocalFile {
    fn drop(&mut self) {
        if !self.kept {
            // Nobody would see it; it only takes space.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

struct RemoteFile {
    store: Arc<dyn ObjectStore>,
    path: ObjectPath,
    /// None while all fits into one part.
    upload: Option<Box<dyn MultipartUpload>>,
    buffer: Vec<u8>,
}

impl RemoteFile {
    /// A part is put once a byte comes behind it, so that `close` has one left to put.
    async fn write(&mut self, mut bytes: &[u8]) -> object_store::Result<()> {
        while self.buffer.len() + bytes.len() > PART_BYTES {
            let (now, later) = bytes.split_at(PART_BYTES - self.buffer.len());
            self.buffer.extend_from_slice(now);
            bytes = later;
            let part = std::mem::take(&mut self.buffer);
            let upload = match &mut self.upload {
                Some(upload) => upload,
                none => none.insert(self.store.put_multipart(&self.path).await?),
            };
            upload.put_part(part.into()).await?;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        self.buffer = Vec::new();
        match self.upload.take() {
            Some(mut upload) => upload.abort().await,
            None => Ok(()),
        }
    }

    async fn close(mut self) -> object_store::Result<i64> {
        match self.upload.take() {
            None => {
                self.store.put(&self.path, self.buffer.into()).await?;
            }
            Some(mut upload) => {
                let buffer = std::mem::take(&mut self.buffer);
                let completed = async {
                    upload.put_part(buffer.into()).await?;
                    upload.complete().await
                };
                if let Err(error) = completed.await {
                    // Whether it was completed after all is not known; if so, there is nothing to abort, and nobody lists it.
                    let _ = upload.abort().await;
                    return Err(error);
                }
            }
        }
        Ok(self.store.head(&self.path).await?.last_modified.timestamp_millis())
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[test]
    fn dots_are_resolved_by_name() {
        let root = Root::parse("/data/./in/../out", &RuntimeEnv::default()).unwrap();
        assert_eq!(root.uri("f"), "file:///data/out/f");
    }

    #[tokio::test]
    async fn a_local_file_that_is_not_closed_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::Local(folder.path().to_owned());
        let mut output = root.create("k=1/torn", true).unwrap();
        output.write(Bytes::from_static(b"half a")).await.unwrap();
        drop(output);
        assert!(!folder.path().join("k=1/torn").exists());
        let mut output = root.create("k=1/whole", true).unwrap();
        output.write(Bytes::from_static(b"whole")).await.unwrap();
        let entry = output.close().await.unwrap();
        assert_eq!(std::fs::read(folder.path().join("k=1/whole")).unwrap(), b"whole");
        assert_eq!(entry.size, 5);
        assert!(entry.modification_time > 0);
    }

    #[tokio::test]
    async fn a_large_file_goes_up_in_parts() {
        let runtime = RuntimeEnv::default();
        let store = Arc::new(InMemory::new());
        let url = url::Url::parse("mem://bucket").unwrap();
        runtime.register_object_store(&url, Arc::clone(&store) as _);
        let root = Root::parse("mem://bucket/out/", &runtime).unwrap();
        let mut output = root.create("k=a%2Fb/big", true).unwrap();
        let bytes: Vec<u8> = (0..2 * PART_BYTES + 5).map(|i| (i % 251) as u8).collect();
        for chunk in bytes.chunks(3 * PART_BYTES / 4) {
            output.write(Bytes::copy_from_slice(chunk)).await.unwrap();
        }
        let entry = output.close().await.unwrap();
        assert_eq!(entry.path, "mem://bucket/out/k=a%252Fb/big");
        assert_eq!(entry.size, bytes.len() as u64);
        let stored = store.get(&ObjectPath::parse("out/k=a%2Fb/big").unwrap()).await.unwrap().bytes().await.unwrap();
        assert_eq!(stored, bytes);
    }

    #[test]
    fn a_value_too_long_for_a_name_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let local = Root::Local(folder.path().to_owned());
        let store = Arc::new(InMemory::new());
        let url = ObjectStoreUrl::parse("mem://bucket").unwrap();
        let remote = Root::Remote { store, url, folder: ObjectPath::from("out") };
        let name = |value: usize| format!("city={}/part-0.parquet", "ü".repeat(value));
        assert!(local.create(&name(125), false).is_ok());
        assert!(remote.create(&name(490), false).is_ok());
        for (root, value) in [(&local, 126), (&remote, 510)] {
            let Err(error) = root.create(&name(value), false) else { panic!("{value} letters") };
            assert_eq!(error.kind(), ErrorKind::BadInput);
            assert!(error.message().contains("partition column `city` is too long"), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("taken"), "a file").unwrap();
        let root = Root::Local(folder.path().join("taken"));
        let Err(error) = root.create("part", true) else { panic!("created") };
        assert!(error.file().unwrap().contains("taken"), "{error}");
    }
}
