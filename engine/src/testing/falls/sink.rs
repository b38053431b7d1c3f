//! A sink whose calls are counted.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;

use super::Falls;
use crate::error::{Error, Result};
use crate::id::{BatchId, PartitionId};
use crate::identity::Identity;
use crate::query::OutputMode;
use crate::sink::{
    Begin, Guarantee, PartitionWriter, Receipt, Sink, SinkContext, SinkWriter, WriterContext, WriterFactory,
};

/// A sink whose calls are counted, those of its partition writers too.
#[derive(Debug)]
pub struct FallingSink {
    inner: Arc<dyn Sink>,
    falls: Falls,
}

impl FallingSink {
    /// Counts the calls to `inner`.
    pub fn new(inner: impl Sink + 'static, falls: &Falls) -> Self {
        FallingSink { inner: Arc::new(inner), falls: falls.clone() }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Sink for FallingSink {
    fn identity(&self) -> Option<Identity> {
        self.inner.identity()
    }

    fn description(&self) -> String {
        self.inner.description()
    }

    fn guarantee(&self) -> Guarantee {
        self.inner.guarantee()
    }

    fn supports(&self, mode: OutputMode) -> bool {
        self.inner.supports(mode)
    }

    fn has_time_limit(&self) -> bool {
        self.inner.has_time_limit()
    }

    async fn open(&self, context: SinkContext) -> Result<Box<dyn SinkWriter>> {
        let inner = around!(self.falls, "sink.open", self.inner.open(context).await)?;
        Ok(Box::new(FallingSinkWriter { inner: Arc::from(inner), falls: self.falls.clone() }))
    }

    fn writer_factory(&self, context: WriterContext) -> Result<Option<Arc<dyn WriterFactory>>> {
        let inner = self.inner.writer_factory(context)?;
        Ok(inner.map(|inner| Arc::new(FallingFactory { inner, falls: self.falls.clone() }) as _))
    }
}

#[derive(Debug)]
struct FallingSinkWriter {
    inner: Arc<dyn SinkWriter>,
    falls: Falls,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl SinkWriter for FallingSinkWriter {
    async fn begin(&self, batch: BatchId) -> Result<Begin> {
        around!(self.falls, "sink.begin", self.inner.begin(batch).await)
    }

    fn partition(&self, batch: BatchId, partition: PartitionId) -> Result<Box<dyn PartitionWriter>> {
        let (sink, falls) = (Arc::clone(&self.inner), self.falls.clone());
        Ok(Box::new(FallingPartition::new(move || sink.partition(batch, partition), falls)))
    }

    async fn commit(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        around!(self.falls, "sink.commit", self.inner.commit(batch, receipts).await)
    }
}

#[derive(Debug)]
struct FallingFactory {
    inner: Arc<dyn WriterFactory>,
    falls: Falls,
}

impl WriterFactory for FallingFactory {
    fn writer(&self, batch: BatchId, partition: PartitionId) -> Result<Box<dyn PartitionWriter>> {
        let (factory, falls) = (Arc::clone(&self.inner), self.falls.clone());
        Ok(Box::new(FallingPartition::new(move || factory.writer(batch, partition), falls)))
    }
}

type MakesWriter = Box<dyn Fn() -> Result<Box<dyn PartitionWriter>> + Send + Sync>;

/// Opens what it wraps at the first write, where it can wait: who sleeps keeps no thread from others.
struct FallingPartition {
    make: MakesWriter,
    opened: Option<Box<dyn PartitionWriter>>,
    falls: Falls,
}

impl FallingPartition {
    fn new(make: impl Fn() -> Result<Box<dyn PartitionWriter>> + Send + Sync + 'static, falls: Falls) -> Self {
        FallingPartition { make: Box::new(make), opened: None, falls }
    }

    async fn open(&mut self) -> Result<&mut Box<dyn PartitionWriter>> {
        let writer = match self.opened.take() {
            Some(writer) => writer,
            None => around!(self.falls, "sink.partition", (self.make)())?,
        };
        Ok(self.opened.insert(writer))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl PartitionWriter for FallingPartition {
    async fn write(&mut self, rows: RecordBatch) -> Result<()> {
        self.open().await?;
        around!(self.falls, "partition.write", self.open().await?.write(rows).await)
    }

    async fn finish(self: Box<Self>) -> Result<Receipt> {
        let mut own = *self;
        own.open().await?;
        let FallingPartition { opened, falls, .. } = own;
        match opened {
            Some(inner) => around!(falls, "partition.finish", inner.finish().await),
            None => Err(Error::internal("a writer that was opened is not there")),
        }
    }
}
