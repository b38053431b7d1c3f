//! Which stretches of time become one session.

/// The time `[start, end)` of a key, in µs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    /// The number of the key within the batch.
    pub(super) key: usize,
    pub(super) start: i64,
    pub(super) end: i64,
}

/// What rows make of the sessions known before.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Merged {
    /// The sessions that rows of the batch are part of, those first that known ones are part of, too.
    pub(super) sessions: Vec<Stretch>,
    /// How many these are. Accumulators expect that a call brings every group up to the total it names.
    pub(super) continued: usize,
    /// By known session: the one it is part of now; `None` if no row touches it.
    pub(super) of_known: Vec<Option<usize>>,
    /// By row: the session it is part of.
    pub(super) of_row: Vec<usize>,
}

/// Stretches of a key that overlap or touch become one.
pub(super) fn merge(known: &[Stretch], rows: &[Stretch]) -> Merged {
    // By key and start: then what belongs together stands together. Known ones have the lower numbers.
    let mut order: Vec<(Stretch, usize)> = known.iter().chain(rows).copied().zip(0..).collect();
    order.sort_unstable_by_key(|(stretch, number)| (stretch.key, stretch.start, *number));
    let mut merged =
        Merged { sessions: vec![], continued: 0, of_known: vec![None; known.len()], of_row: vec![0; rows.len()] };
    let mut rest = order.as_slice();
    while let Some((first, _)) = rest.first() {
        let mut session = *first;
        // The session grows while it takes in what begins before its end.
        let parts = rest.iter().take_while(|(next, _)| {
            let touches = next.key == session.key && next.start <= session.end;
            if touches {
                session.end = session.end.max(next.end);
            }
            touches
        });
        let (parts, others) = rest.split_at(parts.count().max(1));
        rest = others;
        // Nothing of this batch is in it: what is kept stays as it is.
        if parts.iter().all(|(_, number)| *number < known.len()) {
            continue;
        }
        let place = merged.sessions.len();
        for (_, number) in parts {
            match number.checked_sub(known.len()) {
                Some(row) => merged.of_row[row] = place,
                None => merged.of_known[*number] = Some(place),
            }
        }
        merged.sessions.push(session);
    }
    merged.continued_first();
    assert!(merged.of_row.iter().all(|&session| session < merged.sessions.len()), "a row is part of no session");
    merged
}

impl Merged {
    /// Renumbers the sessions, those first that known ones are part of.
    fn continued_first(&mut self) {
        let mut is_continued = vec![false; self.sessions.len()];
        self.of_known.iter().flatten().for_each(|&session| is_continued[session] = true);
        let mut order: Vec<usize> = (0..self.sessions.len()).collect();
        order.sort_by_key(|&session| !is_continued[session]);
        let mut place = vec![0; order.len()];
        order.iter().enumerate().for_each(|(new, &old)| place[old] = new);
        self.sessions = order.iter().map(|&session| self.sessions[session]).collect();
        self.of_known.iter_mut().flatten().for_each(|session| *session = place[*session]);
        self.of_row.iter_mut().for_each(|session| *session = place[*session]);
        self.continued = is_continued.into_iter().filter(|continued| *continued).count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretches(of: &[(usize, i64, i64)]) -> Vec<Stretch> {
        of.iter().map(|&(key, start, end)| Stretch { key, start, end }).collect()
    }

    #[test]
    fn rows_that_overlap_or_touch_are_one_session() {
        let merged = merge(&[], &stretches(&[(0, 21, 31), (0, 0, 10), (1, 5, 15), (0, 10, 20), (0, 2, 3)]));
        assert_eq!(merged.sessions, stretches(&[(0, 0, 20), (0, 21, 31), (1, 5, 15)]));
        assert_eq!(merged.of_row, [1, 0, 2, 0, 0]);
    }

    #[test]
    fn a_row_bridges_known_sessions_and_leaves_others_alone() {
        let known = stretches(&[(0, 0, 10), (0, 20, 30), (0, 50, 60), (1, 0, 10)]);
        let merged = merge(&known, &stretches(&[(0, 10, 20), (0, 45, 48)]));
        assert_eq!(merged.sessions, stretches(&[(0, 0, 30), (0, 45, 48)]));
        assert_eq!(merged.of_known, [Some(0), Some(0), None, None]);
        assert_eq!(merged.of_row, [0, 1]);
    }

    #[test]
    fn a_long_row_takes_in_what_lies_within() {
        let merged = merge(&stretches(&[(0, 5, 6)]), &stretches(&[(0, 0, 100), (0, 7, 8)]));
        assert_eq!(merged.sessions, stretches(&[(0, 0, 100)]));
        assert_eq!((merged.of_known, merged.of_row), (vec![Some(0)], vec![0, 0]));
        assert_eq!(merge(&stretches(&[(0, 1, 2)]), &[]).sessions, []);
    }
}
