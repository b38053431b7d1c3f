//! A local file whose name no path of an object store can express.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// A store that has this one file, under every path, and can only be read.
#[derive(Debug)]
pub(super) struct OddFile {
    path: PathBuf,
}

impl OddFile {
    /// The file at `path`.
    pub(super) fn new(path: PathBuf) -> Self {
        OddFile { path }
    }

    fn look(&self, location: &Path) -> std::io::Result<(File, ObjectMeta)> {
        let file = File::open(&self.path)?;
        let found = file.metadata()?;
        let (last_modified, size) = (found.modified()?.into(), found.len());
        Ok((file, ObjectMeta { location: location.clone(), last_modified, size, e_tag: None, version: None }))
    }

    fn failed(&self, error: std::io::Error) -> object_store::Error {
        match error.kind() {
            std::io::ErrorKind::NotFound => {
                object_store::Error::NotFound { path: self.path.display().to_string(), source: error.into() }
            }
            _ => object_store::Error::Generic { store: "a local file", source: error.into() },
        }
    }

    fn refused(&self, operation: &str) -> object_store::Error {
        object_store::Error::NotImplemented { operation: operation.to_owned(), implementer: self.to_string() }
    }
}

/// A name as the system takes it.
#[cfg(unix)]
pub(super) fn os_name(bytes: &[u8]) -> Option<&std::ffi::OsStr> {
    use std::os::unix::ffi::OsStrExt;
    Some(std::ffi::OsStr::from_bytes(bytes))
}

/// A name as the system takes it, if it does.
#[cfg(not(unix))]
pub(super) fn os_name(bytes: &[u8]) -> Option<&std::ffi::OsStr> {
    std::str::from_utf8(bytes).ok().map(std::ffi::OsStr::new)
}

impl fmt::Display for OddFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the local file {}, whose name no object store takes", self.path.display())
    }
}

#[async_trait]
impl ObjectStore for OddFile {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let (file, meta) = self.look(location).map_err(|e| self.failed(e))?;
        options.check_preconditions(&meta)?;
        let range = match &options.range {
            Some(range) => range
                .as_range(meta.size)
                .map_err(|e| object_store::Error::Generic { store: "a local file", source: e.into() })?,
            None => 0..meta.size,
        };
        let payload = GetResultPayload::File(file, self.path.clone());
        Ok(GetResult { payload, meta, range, attributes: Attributes::default() })
    }

    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        Err(self.refused("put"))
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(self.refused("put"))
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let path = self.path.clone();
        let file = OddFile { path };
        locations
            .map(move |location| {
                let location = location?;
                std::fs::remove_file(&file.path).map_err(|e| file.failed(e))?;
                Ok(location)
            })
            .boxed()
    }

    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        stream::iter([Err(self.refused("list"))]).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(self.refused("list"))
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(self.refused("copy or move"))
    }
}
