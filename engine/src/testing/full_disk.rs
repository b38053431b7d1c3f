//! A checkpoint on a disk that fills up.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use crate::checkpoint::{CreateOutcome, MetadataStore};
use crate::error::{Error, Result};

/// A checkpoint that has room for so many more files, and fails as a full disk does after that.
///
/// ```
/// # use std::sync::Arc;
/// use tidewater::checkpoint::{MetadataStore, memory_store};
/// use tidewater::testing::FullDisk;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let store = FullDisk::with_room_for(1, memory_store());
/// assert!(store.create("first", "x".into()).await.is_ok());
/// let full = store.create("second", "x".into()).await.unwrap_err();
/// assert!(full.hint().unwrap().contains("free space"));
/// # }
/// ```
#[derive(Debug)]
pub struct FullDisk {
    inner: Arc<dyn MetadataStore>,
    room: AtomicI64,
}

impl FullDisk {
    /// Room for `files` more files in `inner`.
    pub fn with_room_for(files: i64, inner: Arc<dyn MetadataStore>) -> Self {
        FullDisk { inner, room: AtomicI64::new(files) }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl MetadataStore for FullDisk {
    async fn create(&self, name: &str, contents: Bytes) -> Result<CreateOutcome> {
        if self.room.fetch_sub(1, Ordering::Relaxed) <= 0 {
            return Err(Error::io("write the file", self.full_name(name), std::io::ErrorKind::StorageFull.into()));
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

    async fn recover(&self, folder: &str) -> Result<()> {
        self.inner.recover(folder).await
    }

    fn full_name(&self, name: &str) -> String {
        self.inner.full_name(name)
    }
}
