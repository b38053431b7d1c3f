//! What becomes of a query that failed for a reason that may pass.

use std::time::Duration;

use crate::error::{Error, Result};

/// Whether a query that failed because storage or network [did not answer](crate::error::Error::is_retryable) starts again by
/// itself. All other errors end it at once, whatever the policy is: the same would happen again.
///
/// A restart is one like any other: from the checkpoint, so a batch that was cut off is repeated and nothing is lost or
/// doubled. Listeners are notified of each ([`QueryEvent::Restarting`](crate::progress::QueryEvent::Restarting)). A batch that is
/// committed forgets the failures before it.
///
/// ```
/// use std::time::Duration;
/// use tidewater::query::RestartPolicy;
///
/// // After 1, 2, 4, 8, 10, 10 … seconds; the eleventh failure in a row ends the query.
/// let policy = RestartPolicy::exponential(Duration::from_secs(1), Duration::from_secs(10), 10);
/// assert_eq!(policy.delay(3), Some(Duration::from_secs(4)));
/// assert_eq!(policy.delay(11), None);
/// assert_eq!(RestartPolicy::Never.delay(1), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestartPolicy {
    /// The first error ends the query, as in Spark.
    #[default]
    Never,
    /// It starts again after a delay that doubles with each failure in a row.
    Exponential {
        /// The delay after the first failure.
        first: Duration,
        /// The longest delay.
        longest: Duration,
        /// After so many restarts in a row without a committed batch, the next failure ends it.
        restarts: u32,
    },
}

impl RestartPolicy {
    /// Restarts after `first`, then after delays that double up to `longest`; `restarts` of them in a row at most.
    pub fn exponential(first: Duration, longest: Duration, restarts: u32) -> Self {
        RestartPolicy::Exponential { first, longest, restarts }
    }

    /// How long to wait after so many failures in a row; `None`: the query ends.
    pub fn delay(self, failures: u32) -> Option<Duration> {
        match self {
            RestartPolicy::Exponential { first, longest, restarts } if failures <= restarts => {
                let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
                Some(first.saturating_mul(doubled).min(longest))
            }
            _ => None,
        }
    }

    pub(crate) fn check(self) -> Result<()> {
        match self {
            RestartPolicy::Exponential { first, longest, .. } if first.is_zero() || longest < first => {
                Err(Error::invalid(format!("restarts cannot be delayed by {first:?} first and {longest:?} at most"))
                    .with_hint("give a first delay above zero, and a longest that is no shorter"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let policy = RestartPolicy::exponential(Duration::from_millis(10), Duration::from_millis(35), 100);
        let delays: Vec<u128> = (1..=5).map(|failures| policy.delay(failures).unwrap().as_millis()).collect();
        assert_eq!(delays, [10, 20, 35, 35, 35]);
        assert_eq!(policy.delay(100).unwrap().as_millis(), 35);
        assert_eq!(policy.delay(101), None);
    }

    #[test]
    fn delays_that_are_none_are_refused() {
        assert!(RestartPolicy::exponential(Duration::ZERO, Duration::from_secs(1), 1).check().is_err());
        assert!(RestartPolicy::exponential(Duration::from_secs(2), Duration::from_secs(1), 1).check().is_err());
        assert!(RestartPolicy::exponential(Duration::from_secs(1), Duration::from_secs(1), 1).check().is_ok());
    }
}
