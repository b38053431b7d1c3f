//! How much of what there is one batch takes.
//!
//! `maxOffsetsPerTrigger` is distributed in proportion to the backlog of each partition, so that partitions lag by the
//! same share. A partition whose share would be less than one offset gets one, so that none ever starves; a batch can
//! be that much larger than asked for.

use crate::kafka::offsets::PartitionOffsets;

/// Where a batch ends that begins at `from` and takes about `max` offsets of what is `available`. `from` has every partition
/// of `available`. No end lies beyond what is available, and each partition with a backlog moves.
pub(super) fn cap(from: &PartitionOffsets, available: &PartitionOffsets, max: u64) -> PartitionOffsets {
    let total = backlog(from, available);
    let ends = available.iter().map(|(topic, partition, end)| {
        let size = size(from, topic, partition, end);
        let share = (u128::from(max) * u128::from(size)).checked_div(total).unwrap_or(0).max(1);
        let left = size.saturating_sub(u64::try_from(share).unwrap_or(u64::MAX));
        (topic.to_owned(), partition, end.saturating_sub_unsigned(left))
    });
    ends.collect()
}

/// Whether a batch should wait: there are fewer than `min` new offsets, and the batch before began less than `max_delay_ms`
/// ago. Before the first batch, `since_last_ms` is as long as can be.
pub(super) fn too_few(
    from: &PartitionOffsets,
    available: &PartitionOffsets,
    min: u64,
    since_last_ms: i64,
    max_delay_ms: i64,
) -> bool {
    since_last_ms < max_delay_ms && backlog(from, available) < u128::from(min)
}

fn backlog(from: &PartitionOffsets, available: &PartitionOffsets) -> u128 {
    available.iter().map(|(topic, partition, end)| u128::from(size(from, topic, partition, end))).sum()
}

/// How far the partition goes beyond `from`; zero if it ends before.
fn size(from: &PartitionOffsets, topic: &str, partition: i32, end: i64) -> u64 {
    let begin = from.get(topic, partition).unwrap_or(end);
    if end > begin { end.abs_diff(begin) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::offsets::testing::{Numbers, offsets};

    fn three(ends: [i64; 3]) -> PartitionOffsets {
        offsets(&[("t", 0, ends[0]), ("t", 1, ends[1]), ("t", 2, ends[2])])
    }

    #[test]
    fn shares_are_in_proportion_to_the_backlog() {
        // Spark's test of maxOffsetsPerTrigger: 8, 1 and 1 first, then 9 and 1 each time.
        let available = three([101, 11, 1]);
        let ends = [[8, 1, 1], [17, 2, 1], [26, 3, 1], [35, 4, 1]];
        let mut from = three([0, 0, 0]);
        for end in ends {
            from = cap(&from, &available, 10);
            assert_eq!(from, three(end));
        }
    }

    #[test]
    fn least_and_most_go_together() {
        // Spark's test of both limits: at least 15, at most 20, 5 seconds.
        let (start, there) = (three([0, 0, 0]), three([21, 11, 1]));
        assert!(!too_few(&start, &there, 15, i64::MAX, 5_000), "the first batch never waits");
        let first = cap(&start, &there, 20);
        assert_eq!(first, three([12, 6, 1]));
        assert!(too_few(&first, &there, 15, 100, 5_000), "14 are left");
        let there = three([29, 21, 2]);
        assert!(!too_few(&first, &there, 15, 200, 5_000));
        let second = cap(&first, &there, 20);
        assert_eq!(second, three([22, 15, 2]));
        assert!(too_few(&second, &there, 15, 100, 5_000), "13 are left");
        assert!(!too_few(&second, &there, 15, 5_100, 5_000));
        assert_eq!(cap(&second, &there, 20), there);
    }

    #[test]
    fn a_batch_waits_for_enough_or_for_long_enough() {
        // Spark's test of minOffsetsPerTrigger: 16 at once; 6 wait, 18 do not; 10 wait for 5 seconds.
        let start = three([0, 0, 0]);
        assert!(!too_few(&start, &three([10, 5, 1]), 15, i64::MAX, 5_000));
        let first = three([10, 5, 1]);
        assert!(too_few(&first, &three([10, 11, 1]), 15, 100, 5_000));
        assert!(!too_few(&first, &three([21, 11, 2]), 15, 200, 5_000));
        let second = three([21, 11, 2]);
        let there = three([26, 16, 2]);
        assert!(too_few(&second, &there, 15, 4_999, 5_000));
        assert!(!too_few(&second, &there, 15, 5_000, 5_000));
        assert!(!too_few(&second, &there, 10, 0, 5_000), "as many as asked for are enough");
    }

    #[test]
    fn what_shrank_and_what_is_unknown_stay_as_they_are() {
        let from = offsets(&[("t", 0, 50), ("t", 1, 0), ("gone", 0, 7)]);
        let available = offsets(&[("t", 0, 20), ("t", 1, 10), ("new", 0, 5)]);
        assert_eq!(cap(&from, &available, 4), offsets(&[("t", 0, 20), ("t", 1, 4), ("new", 0, 5)]));
        assert!(too_few(&from, &available, 11, 0, 1), "what is gone makes up for nothing");
        assert!(!too_few(&from, &available, 10, 0, 1));
        assert_eq!(cap(&from, &PartitionOffsets::new(), 4), PartitionOffsets::new());
        assert_eq!(cap(&available, &available, 4), available);
    }

    #[test]
    fn large_numbers_are_no_trouble() {
        let (from, available) = (three([0, 0, 0]), three([i64::MAX, i64::MAX, 1]));
        assert_eq!(cap(&from, &available, u64::MAX), available);
        assert_eq!(cap(&from, &available, 2), three([1, 1, 1]));
        assert_eq!(cap(&from, &three([5, 5, 5]), u64::MAX), three([5, 5, 5]));
        assert!(too_few(&from, &three([1, 0, 0]), u64::MAX, 0, i64::MAX));
    }

    #[test]
    fn no_batch_goes_too_far_and_no_partition_starves() {
        let mut numbers = Numbers(7);
        for round in 0..500 {
            let (mut from, mut available) = (PartitionOffsets::new(), PartitionOffsets::new());
            let largest = 1_u64 << (1 + round % 40);
            for partition in 0..i32::try_from(1 + numbers.below(12)).unwrap() {
                let begin = i64::try_from(numbers.below(1000)).unwrap();
                from.set("t", partition, begin);
                available.set("t", partition, begin + i64::try_from(numbers.below(largest)).unwrap());
            }
            let max = 1 + numbers.below(largest * 2);
            let end = cap(&from, &available, max);
            let (mut taken, mut backlog, mut behind) = (0, 0, 0);
            for (topic, partition, available) in available.iter() {
                let (begin, end) = (from.get(topic, partition).unwrap(), end.get(topic, partition).unwrap());
                assert!(begin <= end && end <= available);
                assert_eq!(begin == end, begin == available, "whoever has a backlog moves");
                taken += end.abs_diff(begin);
                backlog += available.abs_diff(begin);
                behind += u64::from(begin < available);
            }
            assert_eq!(end.len(), available.len());
            // Each share is rounded to a whole number: never up, but for a share below one.
            assert!(taken <= (max + behind).min(backlog), "{taken} of {max}");
            assert!(taken + behind >= max.min(backlog), "{taken} of {max}");
        }
    }

    #[test]
    fn a_backlog_is_worked_off() {
        let available = three([1_000, 10, 137]);
        let mut from = three([0, 0, 0]);
        let mut batches = 0;
        while from != available {
            from = cap(&from, &available, 100);
            batches += 1;
        }
        assert!((11..=14).contains(&batches), "{batches}");
    }
}
