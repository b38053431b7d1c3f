//! Whether the program that started a query is still there: its tokio runtime.
//!
//! Queries run on threads of the [engine's own](crate::executor), which outlive the runtime of a `main` that has returned. A
//! query must not: what its user's code had there is gone, and nobody waits for it any more. So a task in the runtime holds
//! a mark that a shutdown drops, wherever the runtime's threads are then:
//!
//! ```text
//! the caller's runtime:  [mark] ─ shutdown drops it ─▶ the driver wakes and fails; what runs is not committed
//! ```
//!
//! Where the IO runtime is one of the program, too, its end has another danger. A runtime that is dropped drops its tasks
//! wherever they are, and with them their ends of channels. To some operators of DataFusion a closed channel is the end of
//! their input: a `RepartitionExec` then gives what it had, and says that this was all. So where rows came to their end, one
//! asks whether the runtime was there all the time:
//!
//! ```text
//! shutdown:  new tasks are refused ─▶ tasks are dropped ─▶ channels close ─▶ a stream ends too early
//! here:                                          the stream has ended ─▶ is a new task refused?
//! ```
//!
//! tokio refuses before it drops, so a task that is taken proves that none was dropped before: whatever ended, ended by
//! itself. The same holds for blocking tasks, which have a shutdown of their own.

use std::sync::Arc;

use futures::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};

use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;

/// The runtimes that a query depends on.
#[derive(Debug)]
pub(crate) struct Runtimes {
    /// Set when the caller's runtime is shut down.
    gone: Arc<watch::Sender<bool>>,
    mark: Option<AbortHandle>,
    /// The IO runtime, if it is not the engine's own.
    borrowed_io: Option<Handle>,
}

/// Lies in the caller's runtime, and says so when it is dropped.
struct Mark(Arc<watch::Sender<bool>>);

impl Drop for Mark {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

impl Runtimes {
    /// The runtime that this is called in, if any, and that of the executor.
    pub(crate) fn of_caller(executor: &Executor) -> Self {
        let gone = Arc::new(watch::Sender::new(false));
        let mark = Handle::try_current().ok().map(|runtime| {
            let mark = Mark(Arc::clone(&gone));
            let holds = async move {
                let _mark = mark;
                std::future::pending::<()>().await;
            };
            runtime.spawn(holds).abort_handle()
        });
        Runtimes { gone, mark, borrowed_io: executor.has_borrowed_io().then(|| executor.io().clone()) }
    }

    /// Whether one of them is being shut down, or was.
    pub(crate) fn are_gone(&self) -> bool {
        *self.gone.borrow() || self.borrowed_io.as_ref().is_some_and(is_shut_down)
    }

    /// Fails if what has come to its end so far may have been cut off.
    pub(crate) fn check(&self) -> Result<()> {
        if self.are_gone() { Err(runtime_is_gone()) } else { Ok(()) }
    }

    /// Returns when the caller's runtime is shut down.
    pub(crate) async fn gone(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }
}

impl Drop for Runtimes {
    fn drop(&mut self) {
        if let Some(mark) = &self.mark {
            mark.abort();
        }
    }
}

/// Whether the runtime is being shut down, or was.
fn is_shut_down(runtime: &Handle) -> bool {
    // Nobody waits for the task to run: a runtime whose threads are all busy, or that nobody drives now, is not gone.
    let refused = |task: JoinHandle<()>| matches!(task.now_or_never(), Some(Err(error)) if error.is_cancelled());
    refused(runtime.spawn(async {})) || refused(runtime.spawn_blocking(|| {}))
}

/// The runtime was shut down under a query.
pub(crate) fn runtime_is_gone() -> Error {
    Error::new(ErrorKind::Stopped, "the program ended while the query ran: the tokio runtime that it was started in was shut down")
        .with_hint("keep the runtime until `stop` or `await_termination` has returned; a batch that was not committed is repeated by the next start")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_nobody_drives_is_not_gone() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let handle = runtime.handle().clone();
        let runtimes = runtime.block_on(async { Runtimes::of_caller(&Executor::global().unwrap()) });
        assert!(!is_shut_down(&handle));
        assert!(!runtimes.are_gone());
        drop(runtime);
        assert!(is_shut_down(&handle));
        assert!(runtimes.are_gone());
        futures::executor::block_on(runtimes.gone());
    }

    #[test]
    fn a_caller_without_a_runtime_is_not_gone() {
        assert!(!Runtimes::of_caller(&Executor::global().unwrap()).are_gone());
    }

    /// The promise of tokio that this rests on: when a task has been dropped, new ones are refused already.
    #[test]
    fn new_tasks_are_refused_before_old_ones_are_dropped() {
        struct Asks(Handle, std::sync::mpsc::Sender<bool>);
        impl Drop for Asks {
            fn drop(&mut self) {
                let _ = self.1.send(is_shut_down(&self.0));
            }
        }
        for round in 0..50 {
            let runtime = if round % 2 == 0 {
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap()
            } else {
                tokio::runtime::Builder::new_current_thread().build().unwrap()
            };
            let (sender, dropped) = std::sync::mpsc::channel();
            for _ in 0..20 {
                let asks = Asks(runtime.handle().clone(), sender.clone());
                runtime.spawn(async move {
                    let _asks = asks;
                    std::future::pending::<()>().await;
                });
            }
            drop(sender);
            match round % 3 {
                0 => runtime.shutdown_background(),
                _ => drop(runtime),
            }
            let answers: Vec<bool> = dropped.iter().collect();
            assert_eq!(answers.len(), 20);
            assert!(answers.iter().all(|refused| *refused), "round {round}: {answers:?}");
        }
    }
}
