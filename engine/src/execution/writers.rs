//! A sink of a query where its tasks run: who makes the writers of a batch.

use std::sync::{Arc, OnceLock};

use arrow::datatypes::SchemaRef;
use datafusion::execution::SessionState;

use crate::calls::Calls;
use crate::error::Result;
use crate::id::{BatchId, PartitionId, QueryId, RunId};
use crate::sink::{
    BatchStatus, DataWriter, Sink, SinkContext, SinkRole, StreamingWrite, WriterContext, WriterFactory,
    discarding_writer,
};

/// A batch that is to be written, as data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ToWrite {
    pub(crate) query_id: QueryId,
    /// The run of the driver that sent it.
    pub(crate) attempt: RunId,
    pub(crate) batch: BatchId,
    /// Whether the sink still wants its rows.
    pub(crate) begin: BatchStatus,
}

/// Makes the writers of one sink of one run, in one process.
#[derive(Debug)]
pub(crate) struct Writers {
    sink: Arc<dyn Sink>,
    /// The half of the sink that begins and commits batches, and makes the writers of a sink that has no factory.
    pub(crate) driver: Arc<dyn StreamingWrite>,
    pub(crate) role: SinkRole,
    /// The sink, in words, for the one whose code panics or hangs.
    pub(crate) whose: String,
    schema: SchemaRef,
    durable: bool,
    session: Arc<SessionState>,
    /// Opened with the first writer.
    factory: OnceLock<Option<Arc<dyn WriterFactory>>>,
}

impl Writers {
    /// Those of a sink that was opened in `context`.
    pub(crate) fn new(
        sink: Arc<dyn Sink>,
        driver: Arc<dyn StreamingWrite>,
        whose: String,
        context: SinkContext,
    ) -> Self {
        let SinkContext { role, schema, durable, session, .. } = context;
        Writers { sink, driver, role, whose, schema, durable, session, factory: OnceLock::new() }
    }

    /// How the sink is called.
    pub(crate) fn calls(&self, calls: &Calls) -> Calls {
        if self.sink.has_time_limit() { calls.clone() } else { calls.without_timeout() }
    }

    /// A writer of the sink, or one that only counts if the sink has the batch already.
    pub(crate) fn writer(&self, batch: ToWrite, partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        match batch.begin {
            BatchStatus::AlreadyCommitted => Ok(discarding_writer()),
            BatchStatus::New => match self.factory(batch)? {
                Some(factory) => factory.writer(batch.batch, partition),
                None => self.driver.partition(batch.batch, partition),
            },
        }
    }

    fn factory(&self, batch: ToWrite) -> Result<Option<&Arc<dyn WriterFactory>>> {
        if let Some(opened) = self.factory.get() {
            return Ok(opened.as_ref());
        }
        let opened = self.sink.writer_factory(WriterContext {
            role: self.role,
            schema: Arc::clone(&self.schema),
            query_id: batch.query_id,
            run_id: batch.attempt,
            durable: self.durable,
            session: Arc::clone(&self.session),
        })?;
        Ok(self.factory.get_or_init(|| opened).as_ref())
    }
}
