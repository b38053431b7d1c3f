//! What becomes of a query that failed for a reason that may pass.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::interval::Interval;

/// Whether a query that failed because storage or network [did not answer](crate::error::Error::is_retryable) starts again by
/// itself. All other errors end it at once, whatever the policy is: the same would happen again.
///
/// A restart is one like any other: from the checkpoint, so a batch that was cut off is repeated and nothing is lost or
/// doubled. State is read again only where a batch had begun to change it; otherwise what is in memory goes on. Listeners are notified of each ([`QueryEvent::Restarting`](crate::progress::QueryEvent::Restarting)). A batch that is
/// committed forgets the failures before it.
///
/// ```
/// use tidewater::query::RestartPolicy;
///
/// // After 1, 2, 4, 8, 10, 10 … seconds; the eleventh failure in a row ends the query.
/// let policy = RestartPolicy::exponential("1 second", "10 seconds", 10);
/// # let _ = policy;
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RestartPolicy {
    /// The first error ends the query, as in Spark.
    #[default]
    Never,
    /// It starts again after a delay that doubles with each failure in a row.
    #[non_exhaustive]
    Exponential {
        /// The delay after the first failure.
        first: Interval,
        /// The longest delay.
        longest: Interval,
        /// After so many restarts in a row without a committed batch, the next failure ends it.
        restarts: u32,
    },
}

impl RestartPolicy {
    /// Restarts after `first`, then after delays that double up to `longest`; `restarts` of them in a row at most. Delays that
    /// make no sense are refused when the query starts.
    pub fn exponential(first: impl Into<Interval>, longest: impl Into<Interval>, restarts: u32) -> Self {
        RestartPolicy::Exponential { first: first.into(), longest: longest.into(), restarts }
    }

    /// The policy with its delays checked.
    pub(crate) fn checked(&self) -> Result<Restarts> {
        let RestartPolicy::Exponential { first, longest, restarts } = self else { return Ok(Restarts::default()) };
        let first_delay = first.to_duration("the first delay of a restart")?;
        let longest_delay = longest.to_duration("the longest delay of a restart")?;
        if longest_delay < first_delay {
            return Err(Error::invalid(format!("restarts cannot be delayed by {first} first and {longest} at most"))
                .with_hint("give a longest delay that is no shorter than the first"));
        }
        Ok(Restarts { first: first_delay, longest: longest_delay, restarts: *restarts })
    }
}

/// A [`RestartPolicy`], checked. The default never restarts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Restarts {
    first: Duration,
    longest: Duration,
    restarts: u32,
}

impl Restarts {
    /// How long to wait after so many failures in a row; `None`: the query ends.
    pub(crate) fn delay(self, failures: u32) -> Option<Duration> {
        if failures > self.restarts {
            return None;
        }
        let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
        Some(self.first.saturating_mul(doubled).min(self.longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let policy = RestartPolicy::exponential("10 milliseconds", Duration::from_millis(35), 100).checked().unwrap();
        let delays: Vec<u128> = (1..=5).map(|failures| policy.delay(failures).unwrap().as_millis()).collect();
        assert_eq!(delays, [10, 20, 35, 35, 35]);
        assert_eq!(policy.delay(100).unwrap().as_millis(), 35);
        assert_eq!(policy.delay(101), None);
        assert_eq!(RestartPolicy::Never.checked().unwrap().delay(1), None);
    }

    #[test]
    fn delays_that_are_none_are_refused() {
        assert!(RestartPolicy::exponential(Duration::ZERO, "1 second", 1).checked().is_err());
        assert!(RestartPolicy::exponential("2 seconds", "1 second", 1).checked().is_err());
        let error = RestartPolicy::exponential("soon", "1 second", 1).checked().unwrap_err();
        assert!(error.message().starts_with("the first delay of a restart is `soon`"), "{error}");
        assert!(RestartPolicy::exponential("1 second", "1 second", 1).checked().is_ok());
    }
}
