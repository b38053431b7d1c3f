//! Which partition reads which file: pure.

use super::Stretch;

/// Spreads `parts` over at most `partitions` partitions, so that each has about as many bytes to read. Where there are
/// fewer files than partitions, files are cut into stretches of at least `min_cut_bytes`, if given. A partition reads its
/// files in the order of `parts`. There is always at least one partition.
pub(in crate::file) fn spread(parts: Vec<Stretch>, partitions: usize, min_cut_bytes: Option<u64>) -> Vec<Vec<Stretch>> {
    let partitions = partitions.max(1);
    let parts = match min_cut_bytes {
        Some(min) if parts.len() < partitions => cut(parts, partitions, min.max(1)),
        _ => parts,
    };
    // The largest first, each to whoever has least: never far from the best there is.
    let mut by_size: Vec<usize> = (0..parts.len()).collect();
    by_size.sort_by_key(|i| std::cmp::Reverse(parts.get(*i).map_or(0, Stretch::bytes)));
    let mut loads = vec![0_u64; partitions];
    let mut placed = vec![0_usize; parts.len()];
    for i in by_size {
        let Some((lightest, load)) = loads.iter_mut().enumerate().min_by_key(|(_, load)| **load) else { break };
        // Opening a file costs something too: empty ones are spread as well.
        *load += parts.get(i).map_or(0, Stretch::bytes) + 1;
        if let Some(place) = placed.get_mut(i) {
            *place = lightest;
        }
    }
    let mut spread = vec![vec![]; partitions];
    for (part, place) in parts.into_iter().zip(placed) {
        if let Some(partition) = spread.get_mut(place) {
            partition.push(part);
        }
    }
    spread.retain(|partition: &Vec<Stretch>| !partition.is_empty());
    if spread.is_empty() {
        spread.push(vec![]);
    }
    spread
}

fn cut(parts: Vec<Stretch>, partitions: usize, min_bytes: u64) -> Vec<Stretch> {
    let total: u64 = parts.iter().map(|part| part.size).sum();
    let stretch = total.div_ceil(partitions as u64).max(min_bytes);
    let mut pieces = vec![];
    for part in parts {
        let count = part.size.div_ceil(stretch).min(part.size / min_bytes);
        if count < 2 {
            pieces.push(part);
            continue;
        }
        let cuts = |i: u64| part.size * i / count;
        pieces.extend((0..count).map(|i| Stretch { range: Some(cuts(i)..cuts(i + 1)), ..part.clone() }));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(sizes: &[u64]) -> Vec<Stretch> {
        let part = |(i, size): (usize, &u64)| Stretch { uri: i.to_string(), size: *size, modified_ms: 0, range: None };
        sizes.iter().enumerate().map(part).collect()
    }

    fn names(spread: &[Vec<Stretch>]) -> Vec<String> {
        spread.iter().map(|p| p.iter().map(|f| f.uri.as_str()).collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn bytes_are_balanced_and_order_is_kept() {
        assert_eq!(names(&spread(parts(&[10, 90, 40, 50]), 2, None)), ["0 1", "2 3"]);
        assert_eq!(names(&spread(parts(&[0, 0, 0, 0]), 2, None)), ["0 2", "1 3"]);
        assert_eq!(names(&spread(parts(&[5]), 4, None)), ["0"]);
        assert_eq!(spread(vec![], 4, None).len(), 1);
    }

    #[test]
    fn a_large_file_is_cut_without_a_gap() {
        let spread = spread(parts(&[103]), 4, Some(10));
        let mut ranges: Vec<_> = spread.iter().flatten().map(|p| p.range.clone().unwrap()).collect();
        ranges.sort_by_key(|range| range.start);
        assert_eq!(spread.len(), 4);
        assert_eq!(ranges.iter().map(|r| r.end - r.start).sum::<u64>(), 103);
        assert_eq!(ranges.first().unwrap().start, 0);
        assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!(super::spread(parts(&[19]), 4, Some(10)).len(), 1);
    }
}
