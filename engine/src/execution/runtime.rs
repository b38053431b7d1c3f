//! Whether the tokio runtime that a query was started in still runs what is spawned on it.
//!
//! A runtime that is dropped drops its tasks wherever they are, and with them their ends of channels. To some operators of
//! DataFusion a closed channel is the end of their input: a `RepartitionExec` then gives what it had, and says that this was
//! all. So where rows came to their end, one asks whether the runtime was there all the time:
//!
//! ```text
//! shutdown:  new tasks are refused ─▶ tasks are dropped ─▶ channels close ─▶ a stream ends too early
//! here:                                          the stream has ended ─▶ is a new task refused?
//! ```
//!
//! tokio refuses before it drops, so a task that is taken proves that none was dropped before: whatever ended, ended by
//! itself. The same holds for blocking tasks, which have a shutdown of their own.

use futures::FutureExt;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result};

/// Whether the runtime is being shut down, or was.
pub(crate) fn is_shut_down(runtime: &Handle) -> bool {
    // Nobody waits for the task to run: a runtime whose threads are all busy, or that nobody drives now, is not gone.
    let refused = |task: JoinHandle<()>| matches!(task.now_or_never(), Some(Err(error)) if error.is_cancelled());
    refused(runtime.spawn(async {})) || refused(runtime.spawn_blocking(|| {}))
}

/// Fails if what has come to its end so far may have been cut off.
pub(crate) fn check_runtime(runtime: &Handle) -> Result<()> {
    if is_shut_down(runtime) { Err(runtime_is_gone()) } else { Ok(()) }
}

/// The runtime was shut down under a query.
pub(crate) fn runtime_is_gone() -> Error {
    Error::new(ErrorKind::Stopped, "the tokio runtime that the query was started in was shut down while it ran")
        .hint("keep the runtime until `stop` or `await_termination` has returned; a batch that was not committed is repeated by the next start")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_nobody_drives_is_not_gone() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let handle = runtime.handle().clone();
        assert!(!is_shut_down(&handle));
        drop(runtime);
        assert!(is_shut_down(&handle));
    }

    /// The promise of tokio that all this rests on: when a task has been dropped, new ones are refused already.
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
