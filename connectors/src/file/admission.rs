//! Which of the new files go into the next batch: pure.

use super::listing::ListedFile;

/// How much one batch may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    Files(u64),
    Bytes(u64),
}

/// What is done with files that are known but did not fit: without it, they would be listed again for the next batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct KeepRest {
    /// Keep at most this many.
    pub(super) max_files: usize,
    /// Keep none if they would fill less than this share of a batch: newer files may be there by then.
    pub(super) min_share: f64,
}

impl KeepRest {
    /// Keep all.
    pub(super) const ALL: Option<Self> = Some(KeepRest { max_files: usize::MAX, min_share: 0.0 });
}

/// Splits `files`, which are in order, into those of the next batch and those to keep for later.
pub(super) fn apply_read_limit(
    mut files: Vec<ListedFile>,
    limit: Option<Limit>,
    keep: Option<KeepRest>,
) -> (Vec<ListedFile>, Vec<ListedFile>) {
    let Some(limit) = limit else { return (files, vec![]) };
    let mut rest = files.split_off(fitting(&files, limit));
    let Some(keep) = keep else { return (files, vec![]) };
    let (left, full) = match limit {
        Limit::Files(max) => (rest.len() as f64, max as f64),
        Limit::Bytes(max) => (rest.iter().map(|file| file.size).sum::<u64>() as f64, max as f64),
    };
    if left < full * keep.min_share {
        rest.clear();
    }
    rest.truncate(keep.max_files);
    (files, rest)
}

/// How many of `files` fit. One always does: a file larger than the limit would block the query forever.
fn fitting(files: &[ListedFile], limit: Limit) -> usize {
    match limit {
        Limit::Files(max) => files.len().min(usize::try_from(max).unwrap_or(usize::MAX)),
        Limit::Bytes(max) => {
            let mut total = 0_u64;
            let fit = files.iter().take_while(|file| {
                total = total.saturating_add(file.size);
                total <= max
            });
            fit.count().max(1).min(files.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(sizes: &[u64]) -> Vec<ListedFile> {
        let file = |(i, size): (usize, &u64)| ListedFile { uri: format!("f{i}"), modified_ms: i as i64, size: *size };
        sizes.iter().enumerate().map(file).collect()
    }

    fn counts(sizes: &[u64], limit: Option<Limit>, keep: Option<KeepRest>) -> (usize, usize) {
        let (now, later) = apply_read_limit(files(sizes), limit, keep);
        (now.len(), later.len())
    }

    const KEEP: Option<KeepRest> = Some(KeepRest { max_files: 10_000, min_share: 0.2 });

    #[test]
    fn limits_split_the_list() {
        assert_eq!(counts(&[1, 1, 1], None, KEEP), (3, 0));
        assert_eq!(counts(&[1, 1, 1], Some(Limit::Files(2)), KEEP), (2, 1));
        assert_eq!(counts(&[1, 1, 1], Some(Limit::Bytes(2)), KEEP), (2, 1));
        assert_eq!(counts(&[1], Some(Limit::Files(2)), KEEP), (1, 0));
        assert_eq!(counts(&[], Some(Limit::Bytes(2)), KEEP), (0, 0));
    }

    #[test]
    fn a_file_larger_than_the_limit_goes_alone() {
        assert_eq!(counts(&[9, 1], Some(Limit::Bytes(2)), KEEP), (1, 1));
        assert_eq!(counts(&[1, 9, 1], Some(Limit::Bytes(2)), KEEP), (1, 2));
    }

    #[test]
    fn a_short_rest_is_not_kept() {
        assert_eq!(counts(&[1; 11], Some(Limit::Files(10)), KEEP), (10, 0));
        assert_eq!(counts(&[1; 12], Some(Limit::Files(10)), KEEP), (10, 2));
        assert_eq!(counts(&[1; 12], Some(Limit::Files(10)), None), (10, 0));
        let few = Some(KeepRest { max_files: 3, min_share: 0.2 });
        assert_eq!(counts(&[1; 30], Some(Limit::Files(10)), few), (10, 3));
    }
}
