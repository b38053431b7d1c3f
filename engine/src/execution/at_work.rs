//! Which run code is called for, so that user code that waits for its own query is distinguished from all other code.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::id::RunId;

thread_local! {
    static RUN: Cell<Option<RunId>> = const { Cell::new(None) };
}

/// While it lives, what this thread does is done for a run.
#[derive(Debug)]
pub(crate) struct AtWork {
    before: Option<RunId>,
}

impl AtWork {
    pub(crate) fn on(run: RunId) -> Self {
        AtWork { before: RUN.replace(Some(run)) }
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        RUN.set(self.before);
    }
}

/// A future whose every poll, and whose end, is work for a run.
pub(crate) fn at_work<F: Future>(run: RunId, work: F) -> WorkFor<F> {
    WorkFor { run, work: Some(Box::pin(work)) }
}

/// See [`at_work`].
#[derive(Debug)]
pub(crate) struct WorkFor<F> {
    run: RunId,
    /// None once it is done.
    work: Option<Pin<Box<F>>>,
}

impl<F: Future> Future for WorkFor<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let _at_work = AtWork::on(self.run);
        match self.work.as_mut() {
            Some(work) => {
                let polled = work.as_mut().poll(context);
                if polled.is_ready() {
                    self.work = None;
                }
                polled
            }
            None => Poll::Pending,
        }
    }
}

impl<F> Drop for WorkFor<F> {
    fn drop(&mut self) {
        let _at_work = AtWork::on(self.run);
        self.work = None;
    }
}

/// Whether the code that asks was called by this run: a sink, a source or a function of the query. What waits there for the
/// end of the run waits for itself.
pub(crate) fn is_called_by(run: RunId) -> bool {
    RUN.get() == Some(run)
}
