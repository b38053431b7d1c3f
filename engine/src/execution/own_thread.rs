//! Which run a thread is at work for, so that user code that waits for its own query is told apart from all others.

use std::cell::Cell;

use crate::id::RunId;

thread_local! {
    static RUN: Cell<Option<RunId>> = const { Cell::new(None) };
}

/// While it lives, this thread is at work for a run.
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

/// Whether the code that asks was called by this run: a sink, a source or a function of the query. What waits there for the
/// end of the run waits for itself.
pub(crate) fn is_called_by(run: RunId) -> bool {
    RUN.get() == Some(run)
}
