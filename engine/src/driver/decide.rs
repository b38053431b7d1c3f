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
}

/// | data | watermark due | the trigger ends | |
/// |---|---|---|---|
/// | yes | | | run |
/// | no | yes, and no-data batches are allowed | | run |
/// | no | no | no | wait |
/// | no | no | yes | finish |
pub(super) fn decide(found: Found, trigger_ends: bool) -> Decision {
    if found.data || (found.watermark_due && found.no_data_batches) {
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
        for data in [false, true] {
            for watermark_due in [false, true] {
                for no_data_batches in [false, true] {
                    for ends in [false, true] {
                        let expected = match (data, watermark_due && no_data_batches, ends) {
                            (true, _, _) | (_, true, _) => Decision::Run,
                            (_, _, true) => Decision::Finish,
                            _ => Decision::Wait,
                        };
                        assert_eq!(decide(Found { data, watermark_due, no_data_batches }, ends), expected);
                    }
                }
            }
        }
    }
}
