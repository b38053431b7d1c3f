//! The one door through which time enters.
//!
//! Triggers, timestamps and measured phases all ask a [`Clock`], so a test with a [`ManualClock`] is repeatable.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::sync::watch;

/// The source of time: the current time, and waiting for a time.
#[async_trait]
pub trait Clock: std::fmt::Debug + Send + Sync {
    /// Milliseconds since 1970-01-01T00:00:00 UTC.
    fn now_ms(&self) -> i64;

    /// Time since some fixed moment; never goes back. For measuring.
    fn elapsed(&self) -> Duration;

    /// Returns once [`now_ms`](Clock::now_ms) is at least `time_ms`.
    async fn sleep_until(&self, time_ms: i64);

    /// Whether time passes by itself. Where it does not, a query that waits for data is not woken by a source, but by who moves
    /// the clock or asks it to [process all there is](crate::query::StreamingQuery::process_all_available).
    fn runs_by_itself(&self) -> bool {
        true
    }

    /// Returns once so much time has passed, whatever [`now_ms`](Clock::now_ms) does meanwhile. Time limits go by it.
    async fn sleep(&self, time: Duration);
}

/// The machine's clock.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    birth: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        #[expect(clippy::disallowed_methods, reason = "this is the door")]
        let birth = Instant::now();
        SystemClock { birth }
    }
}

#[async_trait]
impl Clock for SystemClock {
    fn now_ms(&self) -> i64 {
        #[expect(clippy::disallowed_methods, reason = "this is the door")]
        let now = SystemTime::now();
        match now.duration_since(UNIX_EPOCH) {
            Ok(since) => since.as_millis() as i64,
            Err(before) => -(before.duration().as_millis() as i64),
        }
    }

    fn elapsed(&self) -> Duration {
        self.birth.elapsed()
    }

    async fn sleep_until(&self, time_ms: i64) {
        let wait_ms = time_ms - self.now_ms();
        if wait_ms > 0 {
            #[expect(clippy::disallowed_methods, reason = "this is the door")]
            tokio::time::sleep(Duration::from_millis(wait_ms as u64)).await;
        }
    }

    async fn sleep(&self, time: Duration) {
        #[expect(clippy::disallowed_methods, reason = "this is the door")]
        tokio::time::sleep(time).await;
    }
}

/// A clock that stands still until the test moves it.
///
/// ```
/// use tidewater::clock::{Clock, ManualClock};
///
/// let clock = ManualClock::at(1_000);
/// clock.advance_ms(500);
/// assert_eq!(clock.now_ms(), 1_500);
/// ```
#[derive(Debug, Clone)]
pub struct ManualClock {
    now_ms: watch::Sender<i64>,
}

impl ManualClock {
    /// A clock that shows `time_ms`.
    pub fn at(time_ms: i64) -> Self {
        ManualClock { now_ms: watch::Sender::new(time_ms) }
    }

    /// Moves the clock forward and wakes whoever waited for the new time.
    pub fn advance_ms(&self, by_ms: i64) {
        self.now_ms.send_modify(|now| *now += by_ms);
    }

    /// Moves the clock to `time_ms`, never backwards.
    pub fn set_ms(&self, time_ms: i64) {
        self.now_ms.send_modify(|now| *now = time_ms.max(*now));
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now_ms(&self) -> i64 {
        *self.now_ms.borrow()
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis((*self.now_ms.borrow()).max(0) as u64)
    }

    async fn sleep_until(&self, time_ms: i64) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.now_ms.subscribe().wait_for(|now| *now >= time_ms).await;
    }

    fn runs_by_itself(&self) -> bool {
        false
    }

    /// Never returns: a test that moves the clock by hours means the time of its data, not that calls have hung.
    async fn sleep(&self, _time: Duration) {
        std::future::pending().await
    }
}
