//! Whether there is a batch to run, and when to look again. Pure.

/// What a round found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct RoundInputs {
    /// Some source has rows that no batch has read.
    pub(super) data: bool,
    /// State waits for the watermark, and the watermark moved.
    pub(super) watermark_due: bool,
    /// Batches without rows are allowed.
    pub(super) no_data_batches: bool,
    /// Some source could not find out what it has.
    pub(super) unknown: bool,
}

/// What to do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RoundDecision {
    /// Run a batch.
    Run,
    /// Nothing to do now.
    Wait,
    /// Nothing left to do, ever.
    Finish,
    /// Fail: the query was to read everything there is, and a source could not say whether this was everything.
    Fail,
}

/// | unknown | data | watermark due | the trigger ends | |
/// |---|---|---|---|---|
/// | yes | | | yes | fail |
/// | | yes | | | run |
/// | | no | yes, and no-data batches are allowed | | run |
/// | | no | no | no | wait |
/// | no | no | no | yes | finish |
pub(super) fn decide(found: RoundInputs, trigger_ends: bool) -> RoundDecision {
    if found.unknown && trigger_ends {
        RoundDecision::Fail
    } else if found.data || (found.watermark_due && found.no_data_batches) {
        RoundDecision::Run
    } else if trigger_ends {
        RoundDecision::Finish
    } else {
        RoundDecision::Wait
    }
}

/// A query that finds nothing for long spends at most one part in so many of its time on looking.
const LOOKS_TAKE_ONE_IN: i64 = 20;

/// Rows that come after a silence may wait for one part in so many of that silence.
const WAIT_IS_ONE_IN: i64 = 20;

/// All queries of an executor that look for data do so about so often in a second, together.
const LOOKS_PER_SECOND: i64 = 1_000;

/// Queries that look for data do so at the same moments, up to so far apart: threads that wake for each of a thousand looks
/// spend more on waking and falling asleep than on the looks.
const LONGEST_TICK_MS: i64 = 250;

/// How long to wait before looking for data again, when there was none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Looks {
    /// The shortest delay, as configured.
    pub(super) delay_ms: i64,
    /// The longest, after which listeners want to hear that there is nothing new.
    pub(super) longest_ms: i64,
    /// How long the last look took; 0 where it was spent waiting for somebody who does not answer.
    pub(super) took_ms: i64,
    /// For how long there has been nothing.
    pub(super) idle_ms: i64,
    /// How many queries on the same threads wait for data by looking for it.
    pub(super) polling_queries: usize,
    /// All sources say when there is news.
    pub(super) sources_notify: bool,
}

/// The delay grows with how many queries look, and with what a look costs; the latter only as far as the silence has lasted,
/// so that a source that gives something every second is not asked every ten.
pub(super) fn delay_ms(looks: Looks) -> i64 {
    if looks.sources_notify {
        return looks.delay_ms.max(looks.longest_ms);
    }
    let fair_ms = fair_ms(looks.polling_queries);
    let cheap_ms = looks.took_ms.saturating_mul(LOOKS_TAKE_ONE_IN).min(looks.idle_ms / WAIT_IS_ONE_IN);
    looks.delay_ms.max(fair_ms).max(cheap_ms.min(looks.longest_ms))
}

/// The delay that leaves each of so many queries its share of the looks.
fn fair_ms(polling_queries: usize) -> i64 {
    i64::try_from(polling_queries).unwrap_or(i64::MAX).saturating_mul(1000) / LOOKS_PER_SECOND
}

/// The moment at or after `next_ms` at which so many queries look together.
pub(super) fn together_ms(next_ms: i64, polling_queries: usize) -> i64 {
    let tick_ms = fair_ms(polling_queries).clamp(1, LONGEST_TICK_MS);
    next_ms.saturating_add(tick_ms - 1).div_euclid(tick_ms).saturating_mul(tick_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_costs_a_small_share() {
        let one = Looks {
            delay_ms: 10,
            longest_ms: 10_000,
            took_ms: 0,
            idle_ms: 600_000,
            polling_queries: 1,
            sources_notify: false,
        };
        assert_eq!(delay_ms(one), 10);
        assert_eq!(delay_ms(Looks { took_ms: 5, ..one }), 100);
        assert_eq!(delay_ms(Looks { took_ms: 300, ..one }), 6_000);
        assert_eq!(delay_ms(Looks { took_ms: i64::MAX, ..one }), 10_000);
        assert_eq!(delay_ms(Looks { took_ms: 300, idle_ms: 1_000, ..one }), 50, "what comes every second is seen soon");
        assert_eq!(delay_ms(Looks { took_ms: 300, idle_ms: 0, ..one }), 10);
        assert_eq!(delay_ms(Looks { polling_queries: 1_000, ..one }), 1_000);
        assert_eq!(delay_ms(Looks { delay_ms: 60_000, took_ms: 300, ..one }), 60_000, "never shorter than configured");
        assert_eq!(delay_ms(Looks { sources_notify: true, ..one }), 10_000);
    }

    #[test]
    fn many_queries_look_at_the_same_moments() {
        assert_eq!(together_ms(12_345, 0), 12_345);
        assert_eq!(together_ms(12_345, 1), 12_345, "one alone does not wait for others");
        assert_eq!(together_ms(12_345, 20), 12_360);
        assert_eq!(together_ms(12_360, 20), 12_360);
        assert_eq!(together_ms(12_345, 5_000), 12_500);
        assert_eq!(together_ms(-7, 20), 0);
        assert!(together_ms(i64::MAX, 5_000) > i64::MAX - 250, "no overflow");
    }

    #[test]
    fn every_row_of_the_table() {
        for bits in 0..32_u32 {
            let [unknown, data, watermark_due, no_data_batches, ends] =
                [0, 1, 2, 3, 4].map(|bit| bits & (1 << bit) != 0);
            let expected = match (unknown && ends, data, watermark_due && no_data_batches, ends) {
                (true, ..) => RoundDecision::Fail,
                (_, true, ..) | (_, _, true, _) => RoundDecision::Run,
                (_, _, _, true) => RoundDecision::Finish,
                _ => RoundDecision::Wait,
            };
            assert_eq!(decide(RoundInputs { data, watermark_due, no_data_batches, unknown }, ends), expected);
        }
    }
}
