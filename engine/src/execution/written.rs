//! What the tasks of a batch have written, so that it can be taken back when the batch fails.

use futures::future::join_all;
use parking_lot::Mutex;

use super::Writers;
use super::local::{PATIENCE, Run};
use crate::calls::Calls;
use crate::error::{Error, Result};
use crate::id::BatchId;
use crate::progress::Phase;
use crate::sink::{BatchStatus, DataWriter, Receipt};

/// The writers of a batch that were dropped before they finished, and the receipts of those that did.
#[derive(Default)]
pub(super) struct Written {
    unfinished: Mutex<Vec<Box<dyn DataWriter>>>,
    finished: Mutex<Vec<Receipt>>,
}

impl Written {
    /// Takes everything back, once no task is left. A request to drop the batch does not cut that off.
    pub(super) async fn abort(&self, run: &Run) {
        let writers = std::mem::take(&mut *self.unfinished.lock());
        let receipts = std::mem::take(&mut *self.finished.lock());
        if run.work.begin == BatchStatus::AlreadyCommitted {
            return;
        }
        abort(&run.writers, &run.calls, run.work.batch, writers, receipts).await;
    }

    /// Remembers what a writer has finished.
    pub(super) fn finished(&self, receipt: &Receipt) {
        self.finished.lock().push(receipt.clone());
    }
}

/// Has a sink take back what was written of a batch that has failed and whose commit was not called. What goes wrong is logged:
/// whatever is left behind is invisible.
pub(crate) async fn abort(
    sink: &Writers,
    calls: &Calls,
    batch: BatchId,
    writers: Vec<Box<dyn DataWriter>>,
    receipts: Vec<Receipt>,
) {
    if writers.is_empty() && receipts.is_empty() {
        return;
    }
    let calls = calls.to_the_end();
    let whose = || sink.whose.clone();
    let writers = writers.into_iter().map(|mut writer| {
        let calls = &calls;
        async move { calls.call(Phase::AddBatch, whose, writer.abort()).await }
    });
    let aborted = async {
        let writers: Result<()> = join_all(writers).await.into_iter().collect();
        calls.call(Phase::AddBatch, whose, sink.driver.abort(batch, receipts)).await.and(writers)
    };
    let outcome = tokio::select! {
        biased;
        outcome = aborted => outcome,
        () = calls.clock().sleep(PATIENCE) => Err(Error::internal(format!("it took more than {PATIENCE:?}"))),
    };
    if let Err(error) = outcome {
        let sink = &sink.whose;
        tracing::warn!(%sink, %batch, %error, "what a failed batch has written could not be taken back; nobody sees it");
    }
}

/// The writer of a partition. Dropped before it is finished, it is left to [`Written::abort`].
pub(super) struct OpenWriter<'a> {
    written: &'a Written,
    writer: Option<Box<dyn DataWriter>>,
}

impl<'a> OpenWriter<'a> {
    pub(super) fn new(written: &'a Written, writer: Box<dyn DataWriter>) -> Self {
        OpenWriter { written, writer: Some(writer) }
    }

    pub(super) fn get(&mut self) -> Result<&mut Box<dyn DataWriter>> {
        self.writer.as_mut().ok_or_else(|| Error::internal("a writer that was finished is asked to write"))
    }

    pub(super) fn into_inner(mut self) -> Result<Box<dyn DataWriter>> {
        self.writer.take().ok_or_else(|| Error::internal("a writer is finished twice"))
    }
}

impl Drop for OpenWriter<'_> {
    fn drop(&mut self) {
        // After a panic in it, nothing of a writer is used again.
        if let Some(writer) = self.writer.take().filter(|_| !std::thread::panicking()) {
            self.written.unfinished.lock().push(writer);
        }
    }
}
