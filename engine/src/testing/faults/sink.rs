//! A sink whose calls are counted.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;

use super::FaultInjector;
use crate::error::{Error, Result};
use crate::id::{BatchId, PartitionId};
use crate::identity::Identity;
use crate::output_mode::OutputMode;
use crate::sink::{
    BatchStatus, DataWriter, Guarantee, Receipt, Sink, SinkContext, StreamingWrite, WriterContext, WriterFactory,
};

/// A sink whose calls are counted, those of its partition writers too.
#[derive(Debug)]
pub struct FaultySink {
    inner: Arc<dyn Sink>,
    falls: FaultInjector,
}

impl FaultySink {
    /// Counts the calls to `inner`.
    pub fn new(inner: impl Sink + 'static, falls: &FaultInjector) -> Self {
        FaultySink { inner: Arc::new(inner), falls: falls.clone() }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Sink for FaultySink {
    fn identity(&self) -> Option<Identity> {
        self.inner.identity()
    }

    fn description(&self) -> String {
        self.inner.description()
    }

    fn guarantee(&self) -> Guarantee {
        self.inner.guarantee()
    }

    fn supports_output_mode(&self, mode: OutputMode) -> bool {
        self.inner.supports_output_mode(mode)
    }

    fn has_time_limit(&self) -> bool {
        self.inner.has_time_limit()
    }

    async fn open(&self, context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
        let inner = around!(self.falls, "sink.open", self.inner.open(context).await)?;
        Ok(Box::new(FaultyStreamingWrite { inner: Arc::from(inner), falls: self.falls.clone() }))
    }

    fn writer_factory(&self, context: WriterContext) -> Result<Option<Arc<dyn WriterFactory>>> {
        let inner = self.inner.writer_factory(context)?;
        Ok(inner.map(|inner| Arc::new(FaultyFactory { inner, falls: self.falls.clone() }) as _))
    }
}

#[derive(Debug)]
struct FaultyStreamingWrite {
    inner: Arc<dyn StreamingWrite>,
    falls: FaultInjector,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl StreamingWrite for FaultyStreamingWrite {
    async fn begin(&self, batch: BatchId) -> Result<BatchStatus> {
        around!(self.falls, "sink.begin", self.inner.begin(batch).await)
    }

    fn partition(&self, batch: BatchId, partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        let (sink, falls) = (Arc::clone(&self.inner), self.falls.clone());
        Ok(Box::new(FaultyDataWriter::new(move || sink.partition(batch, partition), falls)))
    }

    async fn commit(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        around!(self.falls, "sink.commit", self.inner.commit(batch, receipts).await)
    }

    /// Not a moment of its own: no promise rests on it. The dead abort nothing.
    async fn abort(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        match self.falls.died() {
            Some(_) => Ok(()),
            None => self.inner.abort(batch, receipts).await,
        }
    }
}

#[derive(Debug)]
struct FaultyFactory {
    inner: Arc<dyn WriterFactory>,
    falls: FaultInjector,
}

impl WriterFactory for FaultyFactory {
    fn writer(&self, batch: BatchId, partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        let (factory, falls) = (Arc::clone(&self.inner), self.falls.clone());
        Ok(Box::new(FaultyDataWriter::new(move || factory.writer(batch, partition), falls)))
    }
}

type MakesWriter = Box<dyn Fn() -> Result<Box<dyn DataWriter>> + Send + Sync>;

/// Opens what it wraps at the first write, where it can wait: who sleeps keeps no thread from others.
struct FaultyDataWriter {
    make: MakesWriter,
    opened: Option<Box<dyn DataWriter>>,
    falls: FaultInjector,
}

impl FaultyDataWriter {
    fn new(make: impl Fn() -> Result<Box<dyn DataWriter>> + Send + Sync + 'static, falls: FaultInjector) -> Self {
        FaultyDataWriter { make: Box::new(make), opened: None, falls }
    }

    async fn open(&mut self) -> Result<&mut Box<dyn DataWriter>> {
        let writer = match self.opened.take() {
            Some(writer) => writer,
            None => around!(self.falls, "sink.partition", (self.make)())?,
        };
        Ok(self.opened.insert(writer))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DataWriter for FaultyDataWriter {
    async fn write(&mut self, rows: RecordBatch) -> Result<()> {
        self.open().await?;
        around!(self.falls, "partition.write", self.open().await?.write(rows).await)
    }

    async fn finish(self: Box<Self>) -> Result<Receipt> {
        let mut own = *self;
        own.open().await?;
        let FaultyDataWriter { opened, falls, .. } = own;
        match opened {
            Some(inner) => around!(falls, "partition.finish", inner.finish().await),
            None => Err(Error::internal("a writer that was opened is not there")),
        }
    }

    async fn abort(&mut self) -> Result<()> {
        match &mut self.opened {
            Some(inner) if self.falls.died().is_none() => inner.abort().await,
            _ => Ok(()),
        }
    }
}
