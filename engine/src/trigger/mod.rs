//! When the next batch may start.
//!
//! A [`Trigger`] is a pure function of the clock: the driver asks it after every round when to look again.

use crate::error::Result;
use crate::interval::Interval;

/// When batches run, and whether the query ends by itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Trigger {
    /// The next batch as soon as the last is done and there is something to do.
    #[default]
    Immediate,
    /// A batch at every multiple of the interval since 1970-01-01T00:00:00 UTC. The first starts at once. A batch that
    /// overruns is followed by the next without a pause, and the rhythm is kept: moments that passed are skipped. An interval
    /// of zero is as fast as possible; a negative one, and text that is no interval, is refused when the query starts.
    ProcessingTime(Interval),
    /// All that is there when the query starts, in as many batches as the source's limits ask for; then the query ends.
    AvailableNow,
    /// One batch with all there is, whatever the source's limits say; then the query ends.
    Once,
}

impl Trigger {
    /// A batch every `interval`: text such as `10 seconds`, or a `Duration`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidewater::trigger::Trigger;
    ///
    /// assert_eq!(Trigger::processing_time("10 seconds"), Trigger::processing_time(Duration::from_secs(10)));
    /// ```
    pub fn processing_time(interval: impl Into<Interval>) -> Self {
        Trigger::ProcessingTime(interval.into())
    }

    /// Whether the query ends once it has read what it was started for.
    pub fn ends(&self) -> bool {
        matches!(self, Trigger::AvailableNow | Trigger::Once)
    }

    /// The trigger as it runs: an interval of zero is as fast as possible, as in Spark; a negative one is refused.
    pub(crate) fn schedule(&self) -> Result<Schedule> {
        Ok(match self {
            Trigger::Immediate => Schedule::Immediate,
            Trigger::AvailableNow => Schedule::AvailableNow,
            Trigger::Once => Schedule::Once,
            Trigger::ProcessingTime(interval) => match interval.non_negative_ms("the interval of the trigger")? {
                0 => Schedule::Immediate,
                interval_ms => Schedule::ProcessingTime { interval_ms },
            },
        })
    }
}

/// A [`Trigger`], checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Schedule {
    Immediate,
    /// The interval is above zero.
    ProcessingTime {
        interval_ms: i64,
    },
    AvailableNow,
    Once,
}

impl Schedule {
    /// Whether the query ends once it has read what it was started for.
    pub(crate) fn ends(self) -> bool {
        matches!(self, Schedule::AvailableNow | Schedule::Once)
    }

    /// When to look again, given when the last round started and whether it ran a batch. `None`: at once. A clock that was
    /// set back in the meantime does not make the rhythm longer.
    pub(crate) fn next_round_ms(self, started_ms: i64, now_ms: i64, ran: bool, polling_delay_ms: i64) -> Option<i64> {
        let next_ms = match self {
            Schedule::ProcessingTime { interval_ms } if interval_ms > 0 => {
                let last_ms = started_ms.min(now_ms);
                (last_ms - last_ms.rem_euclid(interval_ms)).saturating_add(interval_ms)
            }
            _ if ran => return None,
            _ => now_ms.saturating_add(polling_delay_ms),
        };
        (next_ms > now_ms).then_some(next_ms)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Spark's ProcessingTimeExecutor: 0, 1000, 2000 (which takes 1500) → 3500 → 4000.
    #[test]
    fn processing_time_keeps_its_rhythm() {
        let trigger = Schedule::ProcessingTime { interval_ms: 1000 };
        for (started_ms, now_ms, next_ms) in
            [(0, 10, Some(1000)), (1000, 1999, Some(2000)), (2000, 3500, None), (3500, 3510, Some(4000))]
        {
            assert_eq!(trigger.next_round_ms(started_ms, now_ms, true, 10), next_ms, "started at {started_ms}");
        }
    }

    /// It waits for one interval at most, however far back the clock was set.
    #[test]
    fn a_clock_set_back_stretches_nothing() {
        let trigger = Schedule::ProcessingTime { interval_ms: 1000 };
        assert_eq!(trigger.next_round_ms(3_600_500, 250, true, 10), Some(1000));
        assert_eq!(trigger.next_round_ms(3_600_500, -250, false, 10), Some(0));
        assert_eq!(Schedule::Immediate.next_round_ms(3_600_500, 250, false, 10), Some(260));
    }

    #[test]
    fn lengths_at_the_edges() {
        for zero in [Trigger::processing_time(Duration::ZERO), Trigger::processing_time("0 seconds")] {
            assert_eq!(zero.schedule().unwrap(), Schedule::Immediate);
        }
        for wrong in ["-1 seconds", "soon", ""] {
            let error = Trigger::processing_time(wrong).schedule().unwrap_err();
            assert!(error.message().contains("the interval of the trigger"), "{error}");
        }
        let endless = Schedule::ProcessingTime { interval_ms: i64::MAX };
        assert_eq!(endless.next_round_ms(5, 5, true, 10), Some(i64::MAX));
    }

    #[test]
    fn without_rhythm_only_idleness_waits() {
        assert_eq!(Schedule::Immediate.next_round_ms(0, 5, true, 10), None);
        assert_eq!(Schedule::Immediate.next_round_ms(0, 5, false, 10), Some(15));
    }
}
