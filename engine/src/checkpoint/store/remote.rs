//! A prefix of an object store.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use super::{CreateOutcome, MetadataStore};
use crate::error::{Error, ErrorKind, Result};

#[derive(Debug)]
pub(super) struct RemoteStore {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) root: ObjectPath,
    pub(super) location: String,
}

impl RemoteStore {
    fn path(&self, name: &str) -> ObjectPath {
        name.split('/').filter(|part| !part.is_empty()).fold(self.root.clone(), |path, part| path.join(part))
    }

    fn failed(&self, action: &str, name: &str, error: StoreError) -> Error {
        Error::new(ErrorKind::Unavailable, format!("cannot {action}: {error}"))
            .with_file(self.full_name(name))
            .with_hint("check the store, its credentials and the network, then start again")
            .with_source(error)
    }
}

#[async_trait]
impl MetadataStore for RemoteStore {
    /// `AlreadyExists` may be untrue here: see [`Certain`](super::certain::Certain), which finds out.
    async fn create(&self, name: &str, contents: Bytes) -> Result<CreateOutcome> {
        let options = PutOptions::from(PutMode::Create);
        match self.store.put_opts(&self.path(name), contents.into(), options).await {
            Ok(_) => Ok(CreateOutcome::Created),
            Err(
                StoreError::AlreadyExists { .. } | StoreError::Precondition { .. } | StoreError::NotModified { .. },
            ) => Ok(CreateOutcome::AlreadyExists),
            Err(e) => Err(self.failed("create the file", name, e)),
        }
    }

    async fn read(&self, name: &str) -> Result<Option<Bytes>> {
        match self.store.get(&self.path(name)).await {
            Ok(found) => Ok(Some(found.bytes().await.map_err(|e| self.failed("read the file", name, e))?)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.failed("read the file", name, e)),
        }
    }

    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>> {
        if range.start >= range.end {
            return Ok(self.read(name).await?.map(|_| Bytes::new()));
        }
        match self.store.get_range(&self.path(name), range.clone()).await {
            Ok(found) => Ok(Some(found)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            // Stores refuse a range behind the end, each in its own words.
            Err(e) => match self.store.head(&self.path(name)).await {
                Ok(there) if there.size <= range.start => Ok(Some(Bytes::new())),
                _ => Err(self.failed("read the file", name, e)),
            },
        }
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        let path = self.path(folder);
        let found =
            self.store.list_with_delimiter(Some(&path)).await.map_err(|e| self.failed("list the folder", folder, e))?;
        Ok(found
            .objects
            .iter()
            .filter_map(|object| object.location.filename())
            .filter(|name| !name.starts_with('.'))
            .map(str::to_owned)
            .collect())
    }

    async fn delete(&self, name: &str) -> Result<()> {
        match self.store.delete(&self.path(name)).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.failed("delete the file", name, e)),
        }
    }

    /// An object is there wholly or not at all, and for good.
    async fn recover(&self, _folder: &str) -> Result<()> {
        Ok(())
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}/{name}", self.location.trim_end_matches('/'))
    }
}
