//! A sink as a query uses it, without a query: some writers are made by its driver's half, others by its factory.

use std::sync::Arc;

use async_trait::async_trait;

use crate::error::Result;
use crate::id::{BatchId, PartitionId};
use crate::sink::{BatchStatus, DataWriter, Receipt, Sink, SinkContext, StreamingWrite, WriterFactory};

/// A sink's writer, where every second partition, the first one included, is written by a writer of the sink's
/// [factory](Sink::writer_factory), if it has one: as if it were written in another process. For tests of a sink alone.
pub async fn open_by_factory(sink: &dyn Sink, context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
    let elsewhere = context.for_writers();
    let driver = sink.open(context).await?;
    Ok(Box::new(ByFactory { driver, factory: sink.writer_factory(elsewhere)? }))
}

#[derive(Debug)]
struct ByFactory {
    driver: Box<dyn StreamingWrite>,
    factory: Option<Arc<dyn WriterFactory>>,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl StreamingWrite for ByFactory {
    async fn begin(&self, batch: BatchId) -> Result<BatchStatus> {
        self.driver.begin(batch).await
    }

    fn partition(&self, batch: BatchId, partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        match &self.factory {
            Some(factory) if partition.0.is_multiple_of(2) => factory.writer(batch, partition),
            _ => self.driver.partition(batch, partition),
        }
    }

    async fn commit(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        self.driver.commit(batch, receipts).await
    }

    async fn abort(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        self.driver.abort(batch, receipts).await
    }
}
