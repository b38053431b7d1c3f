//! Whether there is a batch to run. Pure.

/// What a round found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Found {
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
pub(super) enum Decision {
    /// Run a batch.
    Run,
    /// Nothing to do now.
    Wait,
    /// Nothing left to do, ever.
    Finish,
    /// Whoever asked for all there is cannot be told that this was all.
    Fail,
}

/// | unknown | data | watermark due | the trigger ends | |
/// |---|---|---|---|---|
/// | yes | | | yes | fail |
/// | | yes | | | run |
/// | | no | yes, and no-data batches are allowed | | run |
/// | | no | no | no | wait |
/// | no | no | no | yes | finish |
pub(super) fn decide(found: Found, trigger_ends: bool) -> Decision {
    if found.unknown && trigger_ends {
        Decision::Fail
    } else if found.data || (found.watermark_due && found.no_data_batches) {
        Decision::Run
    } else if trigger_ends {
        Decision::Finish
    } else {
        Decision::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table() {
        for bits in 0..32_u32 {
            let [unknown, data, watermark_due, no_data_batches, ends] =
                [0, 1, 2, 3, 4].map(|bit| bits & (1 << bit) != 0);
            let expected = match (unknown && ends, data, watermark_due && no_data_batches, ends) {
                (true, ..) => Decision::Fail,
                (_, true, ..) | (_, _, true, _) => Decision::Run,
                (_, _, _, true) => Decision::Finish,
                _ => Decision::Wait,
            };
            assert_eq!(decide(Found { data, watermark_due, no_data_batches, unknown }, ends), expected);
        }
    }
}
