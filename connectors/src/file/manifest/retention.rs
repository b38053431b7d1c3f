//! Forgetting old files: a view of the log's folder in which they are not listed.
//!
//! A compaction reads all earlier entries and writes them again. Read through this view, those of files older than the
//! retention are not there, so the summary forgets them. The files themselves stay.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tidewater::checkpoint::{CreateOutcome, MetadataStore};
use tidewater::clock::Clock;
use tidewater::error::Result;

use super::ManifestEntry;

/// The folder `inner` without the lines of files that were written more than `retention_ms` ago.
#[derive(Debug)]
pub(super) struct RetainingStore {
    inner: Arc<dyn MetadataStore>,
    retention_ms: i64,
    clock: Arc<dyn Clock>,
}

impl RetainingStore {
    pub(super) fn new(inner: Arc<dyn MetadataStore>, retention_ms: i64, clock: Arc<dyn Clock>) -> Self {
        RetainingStore { inner, retention_ms, clock }
    }

    fn retains(&self, line: &str) -> bool {
        let oldest = self.clock.now_ms().saturating_sub(self.retention_ms);
        // The version, and whatever else is not an entry, is for the reader to judge.
        serde_json::from_str::<ManifestEntry>(line).map_or(true, |entry| entry.modification_time >= oldest)
    }
}

#[async_trait]
impl MetadataStore for RetainingStore {
    async fn create(&self, name: &str, contents: Bytes) -> Result<CreateOutcome> {
        self.inner.create(name, contents).await
    }

    async fn read(&self, name: &str) -> Result<Option<Bytes>> {
        let Some(contents) = self.inner.read(name).await? else { return Ok(None) };
        let Ok(text) = std::str::from_utf8(&contents) else { return Ok(Some(contents)) };
        let lines: Vec<_> = text.split('\n').filter(|line| self.retains(line)).collect();
        Ok(Some(lines.join("\n").into()))
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
