//! Who reads which piece of a batch.
//!
//! A partition is read by one task as long as there are partitions enough for all: what is read in one go needs no
//! second start. Only where the query has more tasks than there are partitions are large partitions cut. Pieces are
//! distributed so that all tasks have about as much to do, and so that who reads the tasks one after the other reads
//! every partition in order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use serde::{Deserialize, Serialize};

/// To make use of idle tasks, no piece is cut smaller than this: starting to read in the middle has its price, too.
const MIN_SLICE: u64 = 50_000;
/// A batch with fewer offsets is not worth a second task.
const SMALL: u128 = 4096;

/// A stretch of one partition: the offsets from `from` to just below `to`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Slice {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) from: i64,
    pub(super) to: i64,
}

impl Slice {
    /// How many offsets that are. There may be fewer records: a compacted topic has gaps, and so has one with transactions.
    pub(super) fn size(&self) -> u64 {
        if self.to > self.from { self.to.abs_diff(self.from) } else { 0 }
    }

    /// Cut into so many pieces, in order; the last ones are larger by what is left over.
    fn cut(self, parts: u64) -> Vec<Slice> {
        let (mut from, mut left) = (self.from, self.size());
        let mut pieces = vec![];
        for part in 0..parts {
            let size = left / (parts - part);
            let to = from.saturating_add_unsigned(size);
            pieces.push(Slice { from, to, ..self.clone() });
            left -= size;
            from = to;
        }
        pieces
    }
}

/// A stretch of one partition, and which consumer reads it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Piece {
    #[serde(flatten)]
    pub(super) slice: Slice,
    /// Two tasks that read pieces of one partition need two.
    pub(super) consumer: usize,
}

/// What each task of a batch reads: every offset of `ranges` once, no task nothing, no piece nothing.
///
/// There are at most `target_partitions` tasks, or `min_partitions` if those are more. With `min_partitions` there are at least
/// so many pieces, if there are so many offsets; with `max_records` no piece has more.
pub(super) fn split(
    ranges: &[Slice],
    target_partitions: usize,
    min_partitions: Option<usize>,
    max_records: Option<u64>,
) -> Vec<Vec<Slice>> {
    let mut pieces: Vec<Slice> = ranges.iter().filter(|range| range.size() > 0).cloned().collect();
    pieces.sort();
    let total: u128 = pieces.iter().map(|piece| u128::from(piece.size())).sum();
    if let Some(max) = max_records {
        pieces = cut(pieces, |sizes| sizes.iter().map(|size| size.div_ceil(max.max(1))).collect());
    }
    if let Some(min) = min_partitions.filter(|min| *min > pieces.len()) {
        pieces = cut(pieces, |sizes| at_least(sizes, min));
    }
    if pieces.len() < target_partitions {
        pieces = cut(pieces, |sizes| {
            let parts = in_proportion(sizes, target_partitions);
            parts.into_iter().zip(sizes).map(|(parts, size)| parts.min(size / MIN_SLICE).max(1)).collect()
        });
    }
    match min_partitions {
        None if total < SMALL => deal(&pieces, 1),
        min => deal(&pieces, target_partitions.max(min.unwrap_or(0))),
    }
}

/// Cuts each piece into as many as `parts_of` returns, given the size of each.
fn cut(pieces: Vec<Slice>, parts_of: impl FnOnce(&[u64]) -> Vec<u64>) -> Vec<Slice> {
    let sizes: Vec<u64> = pieces.iter().map(Slice::size).collect();
    let parts = parts_of(&sizes);
    pieces.into_iter().zip(parts).flat_map(|(piece, parts)| piece.cut(parts)).collect()
}

/// Into how many parts to cut each, for about `wanted` in all. As Spark does it: those that would stay whole are set aside,
/// and the others share the rest of `wanted` in proportion to their sizes.
fn in_proportion(sizes: &[u64], wanted: usize) -> Vec<u64> {
    let total: u128 = sizes.iter().copied().map(u128::from).sum();
    let whole: Vec<u64> = sizes.iter().copied().filter(|size| share(*size, total, wanted) == 1).collect();
    let rest = total - whole.iter().copied().map(u128::from).sum::<u128>();
    let wanted_of_rest = wanted.saturating_sub(whole.len()).max(1);
    let parts = |size| if share(size, total, wanted) == 1 { 1 } else { share(size, rest, wanted_of_rest) };
    sizes.iter().map(|size| parts(*size).min(*size)).collect()
}

/// `wanted * size / total`, rounded, and at least one.
fn share(size: u64, total: u128, wanted: usize) -> u64 {
    let wanted = u128::from(u32::try_from(wanted).unwrap_or(u32::MAX));
    let rounded = (2 * wanted * u128::from(size) + total).checked_div(2 * total).unwrap_or(1);
    u64::try_from(rounded).unwrap_or(u64::MAX).max(1)
}

/// As [`in_proportion`], and where rounding left fewer than `min`, the largest pieces are cut once more.
fn at_least(sizes: &[u64], min: usize) -> Vec<u64> {
    let mut parts = in_proportion(sizes, min);
    let missing = u64::try_from(min).unwrap_or(u64::MAX).saturating_sub(parts.iter().sum());
    for _ in 0..missing {
        let cuttable = parts.iter_mut().zip(sizes).filter(|(parts, size)| **parts < **size);
        let Some((largest, _)) = cuttable.max_by_key(|(parts, size)| **size / **parts) else { break };
        *largest += 1;
    }
    parts
}

/// Distributes sorted pieces over at most so many tasks: the largest first, always to the task that has least.
fn deal(pieces: &[Slice], tasks: usize) -> Vec<Vec<Slice>> {
    let count = tasks.max(1).min(pieces.len());
    let mut by_size: Vec<&Slice> = pieces.iter().collect();
    by_size.sort_by_key(|piece| Reverse(piece.size()));
    let mut loads: BinaryHeap<Reverse<(u128, usize)>> = (0..count).map(|task| Reverse((0, task))).collect();
    let mut turns = vec![];
    for piece in by_size {
        let Reverse((load, task)) = loads.pop().unwrap_or_default();
        loads.push(Reverse((load + u128::from(piece.size()), task)));
        turns.push((piece.topic.as_str(), piece.partition, task));
    }
    // Of the tasks that got pieces of one partition, the first is to have its first piece. They are all about as large.
    turns.sort_unstable();
    let mut dealt = vec![vec![]; count];
    for (piece, (_, _, task)) in pieces.iter().zip(turns) {
        if let Some(slices) = dealt.get_mut(task) {
            slices.push(piece.clone());
        }
    }
    dealt
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::kafka::offsets::testing::Numbers;

    /// `a 0 10 20; b 0 5` is three slices: two of topic `a`, one of `b`.
    fn slices(text: &str) -> Vec<Slice> {
        let mut slices = vec![];
        for partition in text.split(';') {
            let mut words = partition.split_whitespace();
            let Some(topic) = words.next() else { continue };
            let bounds: Vec<i64> = words.map(|word| word.parse().unwrap()).collect();
            for bounds in bounds.windows(2) {
                slices.push(Slice { topic: topic.to_owned(), partition: 1, from: bounds[0], to: bounds[1] });
            }
        }
        slices
    }

    /// All pieces, whoever reads them.
    fn pieces(given: &str, min: Option<usize>, max: Option<u64>) -> Vec<Slice> {
        let mut pieces: Vec<Slice> = split(&slices(given), 1, min, max).into_iter().flatten().collect();
        pieces.sort();
        pieces
    }

    #[test]
    fn pieces_are_those_of_spark() {
        // The cases of KafkaOffsetRangeCalculatorSuite.
        for (min, max, given, wanted) in [
            (None, None, "t1 1 2", "t1 1 2"),
            (None, None, "t1 1 2; t2 1 1", "t1 1 2"),
            (Some(3), None, "t1 1 2; t2 1 2; t3 1 2", "t1 1 2; t2 1 2; t3 1 2"),
            (Some(4), None, "t1 1 5", "t1 1 2 3 4 5"),
            (Some(4), None, "t1 1 5; t2 1 21", "t1 1 5; t2 1 7 14 21"),
            (Some(4), None, "t1 1 1; t2 1 21", "t2 1 6 11 16 21"),
            (Some(4), None, "t1 1 2; t2 1 1001", "t1 1 2; t2 1 334 667 1001"),
            (Some(1), None, "t1 1 5; t2 1 21", "t1 1 5; t2 1 21"),
            (Some(3), None, "t1 1 11", "t1 1 4 7 11"),
            (Some(4), None, "t1 1 5; t2 1 21; t3 1 1", "t1 1 5; t2 1 7 14 21"),
            (Some(6), None, "t1 0 10; t2 0 10; t3 0 1", "t1 0 3 6 10; t2 0 3 6 10; t3 0 1"),
            (
                Some(9),
                None,
                "t1 0 10000; t2 0 15000; t3 0 20000",
                "t1 0 5000 10000; t2 0 5000 10000 15000; t3 0 5000 10000 15000 20000",
            ),
            (Some(6), None, "t1 0 500; t2 0 12000; t3 0 15001", "t1 0 500; t2 0 6000 12000; t3 0 5000 10000 15001"),
            (Some(6), None, "t1 0 1; t2 0 1; t3 0 10000", "t1 0 1; t2 0 1; t3 0 2500 5000 7500 10000"),
            (Some(3), None, "t1 0 1; t2 0 1; t3 0 1", "t1 0 1; t2 0 1; t3 0 1"),
            (Some(4), None, "t1 0 1; t2 0 1; t3 0 2", "t1 0 1; t2 0 1; t3 0 1 2"),
            (None, Some(4), "t1 1 5", "t1 1 5"),
            (None, Some(4), "t1 1 2", "t1 1 2"),
            (None, Some(4), "t1 1 6", "t1 1 3 6"),
            (None, Some(20), "t1 1 40; t2 1 50; t3 1 60", "t1 1 20 40; t2 1 17 33 50; t3 1 20 40 60"),
            (Some(1), Some(20), "t1 1 40", "t1 1 20 40"),
            (Some(4), Some(20), "t1 1 40", "t1 1 10 20 30 40"),
        ] {
            assert_eq!(pieces(given, min, max), slices(wanted), "{given} into {min:?}, at most {max:?}");
        }
    }

    #[test]
    fn rounding_does_not_leave_too_few() {
        // Each would get 1.33 pieces.
        assert_eq!(pieces("t1 0 10; t2 0 10; t3 0 10", Some(4), None).len(), 4);
        // There are no more offsets.
        assert_eq!(pieces("t1 0 3; t2 0 2", Some(9), None).len(), 5);
        assert_eq!(pieces("t1 0 3", Some(usize::MAX), None).len(), 3);
    }

    #[test]
    fn a_small_batch_is_one_task() {
        let given = slices("a 0 4000; b 10 50; c 7 7");
        assert_eq!(split(&given, 8, None, None), [slices("a 0 4000; b 10 50")]);
        assert_eq!(split(&given, 8, None, Some(1000)).len(), 1);
        assert_eq!(split(&given, 8, Some(2), None).len(), 2, "whoever asks for pieces gets them");
        assert!(split(&[], 8, None, None).is_empty());
        assert!(split(&slices("a 5 5; b 9 3"), 8, Some(4), Some(1)).is_empty());
    }

    #[test]
    fn whole_partitions_are_dealt_evenly() {
        let given = slices("a 0 3000; b 0 5000; c 0 4000; d 0 4000; e 0 1000");
        let dealt = split(&given, 2, None, None);
        // By size: b, c, d, a, e.
        assert_eq!(dealt, [slices("a 0 3000; b 0 5000; e 0 1000"), slices("c 0 4000; d 0 4000")]);
        let reversed: Vec<Slice> = given.into_iter().rev().collect();
        assert_eq!(split(&reversed, 2, None, None), dealt, "the order of what is given makes no difference");
        assert_eq!(split(&reversed, 0, None, None).len(), 1);
        assert_eq!(split(&reversed, 9, None, None).len(), 5, "too small to be cut");
    }

    #[test]
    fn a_large_partition_is_cut_for_idle_lanes() {
        let quarters = ["a 0 100000", "a 100000 200000", "a 200000 300000", "a 300000 400000"];
        assert_eq!(split(&slices("a 0 400000"), 4, None, None), quarters.map(slices));
        let tasks = |end: i64| split(&slices(&format!("a 0 {end}")), 4, None, None).len();
        assert_eq!([99_999, 100_000, 199_999, i64::MAX].map(tasks), [1, 2, 3, 4]);
        let skewed = split(&slices("a 0 5000; b 0 300000"), 4, None, None);
        assert_eq!(skewed.len(), 4);
        assert!(skewed.contains(&slices("b 100000 200000")), "{skewed:?}");
    }

    #[test]
    fn more_tasks_than_lanes_if_asked_for() {
        let given = slices("a 0 100; b 0 100");
        assert_eq!(split(&given, 2, Some(10), None).len(), 10);
        assert_eq!(split(&given, 20, Some(10), None).len(), 10);
        let bounded = split(&slices("a 0 10000"), 2, None, Some(100));
        assert_eq!(bounded.iter().map(Vec::len).collect::<Vec<_>>(), [50, 50]);
    }

    /// Up to nine partitions of up to `largest` offsets.
    fn some_ranges(numbers: &mut Numbers, largest: u64) -> Vec<Slice> {
        let mut ranges = vec![];
        for index in 0..i32::try_from(numbers.below(10)).unwrap() {
            let from = i64::try_from(numbers.below(1000)).unwrap();
            let to = from + i64::try_from(numbers.below(largest + 1)).unwrap();
            ranges.push(Slice { topic: format!("t{}", index % 3), partition: index / 3, from, to });
        }
        ranges
    }

    /// What is read of each partition, if tasks are read one after the other.
    fn read_in_order(tasks: &[Vec<Slice>]) -> BTreeMap<(&str, i32), (i64, i64)> {
        let mut read = BTreeMap::new();
        for piece in tasks.iter().flatten() {
            let (_, end) = read.entry((piece.topic.as_str(), piece.partition)).or_insert((piece.from, piece.from));
            assert_eq!(*end, piece.from, "{piece:?} does not go on where the one before ended");
            *end = piece.to;
        }
        read
    }

    #[test]
    fn every_offset_is_read_once_and_in_order() {
        let mut numbers = Numbers(42);
        for round in 0..600 {
            let size = 1_u64 << (round % 20);
            let given = some_ranges(&mut numbers, size);
            let target_partitions = usize::try_from(1 + numbers.below(8)).unwrap();
            let min = (numbers.below(3) == 0).then(|| usize::try_from(1 + numbers.below(30)).unwrap());
            let max = (numbers.below(3) == 0).then(|| 1 + size / (1 + numbers.below(20)));
            let tasks = split(&given, target_partitions, min, max);

            let wanted: BTreeMap<_, _> = given
                .iter()
                .filter(|range| range.size() > 0)
                .map(|range| ((range.topic.as_str(), range.partition), (range.from, range.to)))
                .collect();
            assert_eq!(read_in_order(&tasks), wanted);
            assert!(tasks.iter().all(|task| !task.is_empty()), "an empty task");
            assert!(tasks.len() <= target_partitions.max(min.unwrap_or(0)));
            let sizes: Vec<u64> = tasks.iter().flatten().map(Slice::size).collect();
            assert!(sizes.iter().all(|size| *size > 0 && max.is_none_or(|max| *size <= max)), "{sizes:?}");
            let total: u64 = sizes.iter().sum();
            assert!(sizes.len() >= min.unwrap_or(0).min(usize::try_from(total).unwrap()), "too few pieces");
            assert_eq!(split(&given, target_partitions, min, max), tasks, "the same, asked again");

            if min.is_none() && max.is_none() {
                // Nobody has more than his share and one piece. (The last pieces of a partition are larger by one.)
                let loads = tasks.iter().map(|task| task.iter().map(Slice::size).sum::<u64>());
                let mean = total / u64::try_from(tasks.len().max(1)).unwrap() + 1;
                let most = mean + sizes.iter().copied().max().unwrap_or(0) + u64::try_from(sizes.len()).unwrap();
                assert!(loads.max().unwrap_or(0) <= most, "{tasks:?}");
            }
        }
    }
}
