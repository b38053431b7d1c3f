//! Sinks around a sink, in which a test has its hand.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::future::{BoxFuture, FutureExt};
use tidewater::id::PartitionId;
use tidewater::prelude::*;
use tidewater::sink::{BatchStatus, DataWriter, Receipt, Sink, SinkContext, StreamingWrite};
use tidewater::testing::FaultInjector;

/// Where a sink is in the life of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// It is to say whether the batch must be written.
    Begin(BatchId),
    /// It has said so; no row was written yet.
    Begun(BatchId, BatchStatus),
    /// All rows were written, and are to be committed.
    Commit(BatchId),
    /// They were.
    Committed(BatchId),
}

/// Is told of each moment before the sink goes on, and may let it wait, or fail.
type Watcher = dyn Fn(Moment) -> BoxFuture<'static, Result<()>> + Send + Sync;

/// A sink that somebody watches.
pub(super) struct Watched {
    inner: Arc<dyn Sink>,
    watcher: Arc<Watcher>,
}

impl Watched {
    pub(super) fn new<F: Future<Output = Result<()>> + Send + 'static>(
        inner: impl Sink + 'static,
        watcher: impl Fn(Moment) -> F + Send + Sync + 'static,
    ) -> Self {
        Watched { inner: Arc::new(inner), watcher: Arc::new(move |moment| watcher(moment).boxed()) }
    }
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[async_trait]
impl Sink for Watched {
    fn description(&self) -> String {
        self.inner.description()
    }

    fn guarantee(&self) -> Guarantee {
        self.inner.guarantee()
    }

    fn supports_output_mode(&self, mode: OutputMode) -> bool {
        self.inner.supports_output_mode(mode)
    }

    async fn open(&self, context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
        Ok(Box::new(WatchedWriter { inner: self.inner.open(context).await?, watcher: Arc::clone(&self.watcher) }))
    }
}

struct WatchedWriter {
    inner: Box<dyn StreamingWrite>,
    watcher: Arc<Watcher>,
}

impl std::fmt::Debug for WatchedWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchedWriter").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[async_trait]
impl StreamingWrite for WatchedWriter {
    async fn begin(&self, batch: BatchId) -> Result<BatchStatus> {
        (self.watcher)(Moment::Begin(batch)).await?;
        let begin = self.inner.begin(batch).await?;
        (self.watcher)(Moment::Begun(batch, begin)).await?;
        Ok(begin)
    }

    fn partition(&self, batch: BatchId, partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        self.inner.partition(batch, partition)
    }

    async fn commit(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        (self.watcher)(Moment::Commit(batch)).await?;
        self.inner.commit(batch, receipts).await?;
        (self.watcher)(Moment::Committed(batch)).await
    }
}

/// What died and was not closed. It is only when this is dropped.
pub(super) type Undead = Arc<Mutex<Vec<Arc<dyn StreamingWrite>>>>;

/// A sink that says goodbye to nobody when its process dies: a transaction stays open, and rows that were on their way
/// still arrive.
#[derive(Debug)]
pub(super) struct Killed {
    inner: Arc<dyn Sink>,
    falls: FaultInjector,
    undead: Undead,
}

impl Killed {
    /// Its process is that of `falls`.
    pub(super) fn new(inner: impl Sink + 'static, falls: &FaultInjector, undead: &Undead) -> Self {
        Killed { inner: Arc::new(inner), falls: falls.clone(), undead: Arc::clone(undead) }
    }
}

#[async_trait]
impl Sink for Killed {
    fn description(&self) -> String {
        self.inner.description()
    }

    fn guarantee(&self) -> Guarantee {
        self.inner.guarantee()
    }

    fn supports_output_mode(&self, mode: OutputMode) -> bool {
        self.inner.supports_output_mode(mode)
    }

    async fn open(&self, context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
        let inner = Arc::from(self.inner.open(context).await?);
        Ok(Box::new(KilledWriter { inner, falls: self.falls.clone(), undead: Arc::clone(&self.undead) }))
    }
}

#[derive(Debug)]
struct KilledWriter {
    inner: Arc<dyn StreamingWrite>,
    falls: FaultInjector,
    undead: Undead,
}

impl Drop for KilledWriter {
    fn drop(&mut self) {
        if self.falls.died().is_some() {
            self.undead.lock().unwrap().push(Arc::clone(&self.inner));
        }
    }
}

#[async_trait]
impl StreamingWrite for KilledWriter {
    async fn begin(&self, batch: BatchId) -> Result<BatchStatus> {
        self.inner.begin(batch).await
    }

    fn partition(&self, batch: BatchId, partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        self.inner.partition(batch, partition)
    }

    async fn commit(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        self.inner.commit(batch, receipts).await
    }
}
