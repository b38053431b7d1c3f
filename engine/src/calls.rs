//! How the engine calls code that is not its own: sources, sinks, storage.
//!
//! Whatever is called may panic, hang, or be in the way of someone who wants the query gone. So each call
//!
//! - turns a panic into an error that says whose it was,
//! - ends when the query is asked to drop its batch,
//! - has a time limit, [`QueryConfig::call_timeout`](crate::config::QueryConfig::call_timeout), by the query's
//!   [clock](crate::clock::Clock::sleep).
//!
//! A call that ends early is dropped. What it began may go on where nobody sees it, as a blocking thread does that writes a
//! file: to all that is written this is a crash, which the checkpoint and the sinks are made for.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result, guarded_call};
use crate::progress::Phase;

/// Whether a query was asked to drop its running batch. Clones are the same request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancel(Arc<watch::Sender<bool>>);

impl Cancel {
    pub(crate) fn set(&self) {
        self.0.send_replace(true);
    }

    pub(crate) fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once the query was asked.
    pub(crate) async fn requested(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|set| *set).await;
    }

    /// What a batch fails with that is dropped for it.
    pub(crate) fn error() -> Error {
        Error::new(ErrorKind::Stopped, "the query was asked to drop the running batch")
    }
}

/// How a query calls code that is not its own. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    clock: Arc<dyn Clock>,
    cancel: Cancel,
    timeout: Option<Duration>,
}

impl Calls {
    /// With a time limit of so many milliseconds; without one for `None`.
    pub(crate) fn new(clock: Arc<dyn Clock>, cancel: Cancel, timeout_ms: Option<u64>) -> Self {
        Calls { clock, cancel, timeout: timeout_ms.map(Duration::from_millis) }
    }

    /// The same, for what a request to drop the batch does not concern, and what would better not be cut off.
    pub(crate) fn to_the_end(&self) -> Self {
        Calls { cancel: Cancel::default(), ..self.clone() }
    }

    /// The same, without a time limit: for code of the user, which may take as long as it likes.
    pub(crate) fn without_timeout(&self) -> Self {
        Calls { timeout: None, ..self.clone() }
    }

    /// Fails if the query was asked to drop the batch.
    pub(crate) fn check_cancelled(&self) -> Result<()> {
        if self.cancel.is_set() { Err(Cancel::error()) } else { Ok(()) }
    }

    /// Calls `whose` code within the time limit, and turns a panic into an error.
    ///
    /// # Errors
    ///
    /// That of the call; `UserCode` after a panic, `Stopped` after a request to drop the batch, `Unavailable` when time is up.
    pub(crate) async fn call<T>(
        &self,
        phase: Phase,
        whose: impl Fn() -> String,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let limited = async {
            let work = guarded_call(&whose, work);
            match self.timeout {
                None => work.await,
                Some(timeout) => tokio::select! {
                    biased;
                    done = work => done,
                    () = self.clock.sleep(timeout) => Err(too_late(&whose(), phase, timeout)),
                },
            }
        };
        self.unless_cancelled(limited).await
    }

    /// Does the engine's own work, which has no time limit and ends only when the query is asked to drop the batch.
    pub(crate) async fn unless_cancelled<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            done = work => done,
            () = self.cancel.requested() => Err(Cancel::error()),
        }
    }

    /// The clock that time limits go by.
    pub(crate) fn clock(&self) -> &dyn Clock {
        self.clock.as_ref()
    }
}

fn too_late(whose: &str, phase: Phase, timeout: Duration) -> Error {
    let what = format!("{whose} did not answer within {} ms, in phase {}", timeout.as_millis(), phase.name());
    Error::new(ErrorKind::Unavailable, what).with_hint(
        "find out what it waits for, then start the query again; if it needs more time than that, give the query a longer \
         `call_timeout`",
    )
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;
    use crate::clock::{ManualClock, SystemClock};

    fn calls(timeout_ms: u64) -> (Calls, Cancel) {
        let cancel = Cancel::default();
        (Calls::new(Arc::new(SystemClock::default()), cancel.clone(), Some(timeout_ms)), cancel)
    }

    #[tokio::test]
    async fn a_call_that_hangs_ends_in_time_and_is_named() {
        let (calls, _) = calls(1);
        let error = calls.call::<()>(Phase::GetBatch, || "the source `s`".into(), pending()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.message().starts_with("the source `s` did not answer within 1 ms, in phase getBatch"), "{error}");
    }

    #[tokio::test]
    async fn a_call_ends_when_its_query_is_dropped() {
        let (calls, cancel) = calls(3_600_000);
        let call = calls.call::<()>(Phase::GetBatch, || "s".into(), pending());
        let (error, ()) = tokio::join!(call, async { cancel.set() });
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Stopped);
    }

    #[tokio::test]
    async fn panics_have_an_owner() {
        let (calls, _) = calls(1_000);
        let error = calls.call::<()>(Phase::GetBatch, || "the sink `s`".into(), async { panic!("no") }).await;
        assert!(error.unwrap_err().message().starts_with("the sink `s` panicked: no"));
    }

    #[tokio::test]
    async fn what_has_answered_is_never_late() {
        let clock = Arc::new(ManualClock::at(0));
        let calls = Calls::new(clock, Cancel::default(), Some(0));
        assert_eq!(calls.call(Phase::GetBatch, || "s".into(), async { Ok(1) }).await.unwrap(), 1);
    }
}
