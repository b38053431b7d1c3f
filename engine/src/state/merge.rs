//! Sorted files become one stream of rows, the newest change to each.
//!
//! [`Merger`] decides, [`MergedRows`] reads for it: it holds a record batch of each file, however large the files are, and
//! gives rows out in bounded pieces.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use arrow::array::AsArray;
use arrow::record_batch::RecordBatch;
use datafusion::execution::memory_pool::MemoryReservation;

use super::limits::{Limits, Resources};
use super::read::EntryReader;
use super::sorted::{Order, Pick, SortedRows, gather, newest_of_each};
use super::{StateSchema, file};
use crate::error::{Error, Result};

/// Beside one per input, so many record batches wait at most until what was picked of them is given out.
const SOURCES_HELD: usize = 16;

/// What is left of the rows.
#[derive(Debug, Clone)]
pub(crate) struct Keeps {
    /// By side: rows due at or before this are gone.
    pub(crate) bounds_us: Vec<i64>,
    /// Nothing is older than what is merged: a removal has nothing left to remove.
    pub(crate) nothing_older: bool,
}

/// What a [`Merger`] wants next.
#[derive(Debug)]
enum Step {
    /// Rows of this input.
    Feed(usize),
    /// Nothing: here are some.
    Rows(SortedRows),
    Done,
}

/// The input whose next row comes first: of equal ones the newest, whose number is the greatest.
type Next = Reverse<(Order, Reverse<usize>)>;

#[derive(Debug, Default)]
struct Input {
    /// Its record batch among the sources.
    source: usize,
    row: usize,
    ended: bool,
}

/// The merge of sorted inputs, the oldest first, as a machine that is fed.
#[derive(Debug)]
struct Merger {
    spec: StateSchema,
    keeps: Keeps,
    limits: Limits,
    inputs: Vec<Input>,
    /// Inputs that have no row at hand.
    hungry: Vec<usize>,
    heap: BinaryHeap<Next>,
    sources: Vec<SortedRows>,
    picks: Vec<Pick>,
    ready: VecDeque<SortedRows>,
}

impl Merger {
    fn new(spec: StateSchema, keeps: Keeps, limits: Limits, inputs: usize) -> Self {
        Merger {
            spec,
            keeps,
            limits,
            inputs: (0..inputs).map(|_| Input::default()).collect(),
            hungry: (0..inputs).collect(),
            heap: BinaryHeap::new(),
            sources: vec![],
            picks: vec![],
            ready: VecDeque::new(),
        }
    }

    /// Gives an input its next rows; none if it has come to its end.
    fn feed(&mut self, number: usize, rows: Option<SortedRows>) {
        let Some(input) = self.inputs.get_mut(number) else { return };
        let first = rows.as_ref().and_then(|rows| rows.orders.first().copied());
        match (rows, first) {
            (Some(rows), Some(first)) => {
                self.hungry.retain(|hungry| *hungry != number);
                (input.source, input.row) = (self.sources.len(), 0);
                self.sources.push(rows);
                self.heap.push(Reverse((first, Reverse(number))));
            }
            (Some(_), None) => {}
            (None, _) => {
                self.hungry.retain(|hungry| *hungry != number);
                input.ended = true;
            }
        }
    }

    fn step(&mut self) -> Result<Step> {
        loop {
            if let Some(rows) = self.ready.pop_front() {
                return Ok(Step::Rows(rows));
            }
            if let Some(&input) = self.hungry.first() {
                return Ok(Step::Feed(input));
            }
            let Some(Reverse((order, Reverse(number)))) = self.heap.pop() else {
                if self.picks.is_empty() {
                    return Ok(Step::Done);
                }
                self.give_out()?;
                continue;
            };
            // Changes to one row stay together.
            let goes_on = self.picks.last().is_some_and(|last| last.order == order);
            let enough =
                self.picks.len() >= self.limits.chunk_rows || self.sources.len() > self.inputs.len() + SOURCES_HELD;
            if enough && !goes_on {
                self.heap.push(Reverse((order, Reverse(number))));
                self.give_out()?;
                continue;
            }
            self.pick(number);
        }
    }

    /// Takes rows of an input as long as they come before those of all others.
    fn pick(&mut self, number: usize) {
        let Some(input) = self.inputs.get_mut(number) else { return };
        let Some(source) = self.sources.get(input.source) else { return };
        let others = self.heap.peek().map(|Reverse((order, _))| *order);
        let mut taken = false;
        loop {
            let Some(&order) = source.orders.get(input.row) else {
                self.hungry.push(number);
                return;
            };
            let goes_on = self.picks.last().is_some_and(|last| last.order == order);
            let full = self.picks.len() >= self.limits.chunk_rows && !goes_on;
            if taken && (full || others.is_some_and(|others| order >= others)) {
                self.heap.push(Reverse((order, Reverse(number))));
                return;
            }
            self.picks.push(Pick { order, source: input.source, row: input.row });
            input.row += 1;
            taken = true;
        }
    }

    /// Makes rows of what was picked, and lets go of what they were picked from.
    fn give_out(&mut self) -> Result<()> {
        let sources: Vec<&RecordBatch> = self.sources.iter().map(|source| &source.rows).collect();
        let mut newest = newest_of_each(&self.spec, &sources, std::mem::take(&mut self.picks))?;
        let removed: Vec<_> = sources.iter().map(|source| source.column(0).as_boolean()).collect();
        newest.retain(|pick| {
            file::alive(&self.spec, sources[pick.source], &self.keeps.bounds_us, pick.row)
                && !(self.keeps.nothing_older && removed[pick.source].value(pick.row))
        });
        self.ready.extend(gather(&self.spec, &sources, &newest, self.limits)?);
        let mut old: Vec<Option<SortedRows>> = std::mem::take(&mut self.sources).into_iter().map(Some).collect();
        for input in self.inputs.iter_mut().filter(|input| !input.ended) {
            let source = old.get_mut(input.source).and_then(Option::take);
            if let Some(source) = source.filter(|source| input.row < source.orders.len()) {
                input.source = self.sources.len();
                self.sources.push(source);
            }
        }
        Ok(())
    }

    /// Memory held, in bytes.
    fn memory(&self) -> usize {
        let rows: usize = self.sources.iter().chain(&self.ready).map(SortedRows::memory).sum();
        rows + self.picks.capacity() * size_of::<Pick>()
    }
}

/// The rows of several files, merged as they are read.
#[derive(Debug)]
pub(crate) struct MergedRows {
    readers: Vec<EntryReader>,
    merger: Merger,
    resources: Resources,
    claimed: MemoryReservation,
}

impl MergedRows {
    /// Of these readers, the oldest first.
    pub(crate) fn new(spec: StateSchema, readers: Vec<EntryReader>, keeps: Keeps, resources: &Resources) -> Self {
        let merger = Merger::new(spec, keeps, resources.limits, readers.len());
        MergedRows { readers, merger, resources: resources.clone(), claimed: resources.reservation() }
    }

    /// The next rows. `on_read` sees everything that is read, whatever becomes of it.
    pub(crate) async fn next(&mut self, mut on_read: impl FnMut(&SortedRows)) -> Result<Option<SortedRows>> {
        loop {
            match self.merger.step()? {
                Step::Rows(rows) => return Ok(Some(rows)),
                Step::Done => return Ok(None),
                Step::Feed(number) => {
                    let Some(reader) = self.readers.get_mut(number) else {
                        return Err(Error::internal("a merge has fewer files than inputs"));
                    };
                    let rows = reader.next().await?;
                    rows.iter().for_each(&mut on_read);
                    self.merger.feed(number, rows);
                    let bytes = self.merger.memory() + self.readers.iter().map(EntryReader::memory).sum::<usize>();
                    self.claimed.try_resize(bytes).map_err(|e| self.resources.refused(bytes, e))?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::state::sizes::RowBytes;
    use crate::state::sorted::sort;
    use crate::state::sorted::tests::{change, listed, spec};

    fn merged(inputs: &[Vec<SortedRows>], keeps: Keeps, limits: Limits) -> Vec<SortedRows> {
        let mut merger = Merger::new(spec(), keeps, limits, inputs.len());
        let mut waiting: Vec<VecDeque<SortedRows>> = inputs.iter().map(|rows| rows.clone().into()).collect();
        let (mut out, mut held) = (vec![], 0);
        loop {
            held = held.max(merger.sources.len());
            match merger.step().unwrap() {
                Step::Feed(number) => {
                    let rows = waiting[number].pop_front();
                    merger.feed(number, rows);
                }
                Step::Rows(rows) => out.push(rows),
                Step::Done => break,
            }
        }
        assert!(held <= 2 * inputs.len() + SOURCES_HELD + 1, "{held} record batches for {} inputs", inputs.len());
        let all: Vec<Order> = out.iter().flat_map(|rows| rows.orders.clone()).collect();
        assert!(all.is_sorted());
        for rows in &out {
            let bytes = RowBytes::new(rows.rows.columns()).of_rows(rows.orders.len());
            assert!(rows.orders.len() == 1 || bytes <= limits.chunk_bytes, "a piece of {bytes} bytes");
        }
        out
    }

    proptest! {
        /// However the changes are cut into files, the last to each row is what comes out.
        #[test]
        fn the_newest_change_to_each_row_comes_out(
            files in proptest::collection::vec(
                proptest::collection::vec((any::<bool>(), 0_i64..12, 0_i64..3, 0_i64..9), 0..40), 0..6),
            rows in 1_usize..8,
            nothing_older: bool,
        ) {
            let limits = Limits { chunk_rows: rows, chunk_bytes: 400, ..Limits::default() };
            let mut expected: BTreeMap<(i64, i64), Option<(i64, String)>> = BTreeMap::new();
            let mut inputs = vec![];
            for (file, changes) in files.iter().enumerate() {
                let mut batches = vec![];
                for (number, (removed, key, id, _)) in changes.iter().enumerate() {
                    // The time of a row never goes back.
                    let (value, time) = (format!("{file} {number}"), 10 * file as i64 + key % 7);
                    batches.push(change(*removed, &[(*key, *id, time, &value)]));
                    expected.insert((*key, *id), (!removed).then_some((time, value)));
                }
                inputs.push(sort(&spec(), &batches, (0, u8::MAX), limits).unwrap());
            }
            let bound = 3;
            let keeps = Keeps { bounds_us: vec![bound], nothing_older };
            let found = listed(&merged(&inputs, keeps, limits));
            let alive = found.into_iter().filter(|row| !row.2.is_empty());
            let expected = expected.into_iter().filter_map(|((key, id), row)| Some((key, id, row?)));
            let expected = expected.filter(|(_, _, row)| row.0 > bound).map(|(key, id, row)| (key, id, row.1));
            prop_assert_eq!(alive.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        }
    }

    #[test]
    fn removals_are_kept_while_something_is_older() {
        let file = |removed, rows: &[(i64, i64, i64, &str)]| {
            sort(&spec(), &[change(removed, rows)], (0, u8::MAX), Limits::default()).unwrap()
        };
        let inputs = [file(false, &[(1, 1, 5, "a"), (2, 1, 5, "b")]), file(true, &[(1, 1, 5, ""), (3, 1, 5, "")])];
        let keeps = |nothing_older| Keeps { bounds_us: vec![i64::MIN], nothing_older };
        let row = |k, v: &str| (k, 1, v.to_owned());
        assert_eq!(listed(&merged(&inputs, keeps(false), Limits::default())), [row(1, ""), row(2, "b"), row(3, "")]);
        assert_eq!(listed(&merged(&inputs, keeps(true), Limits::default())), [row(2, "b")]);
    }

    /// A single key with very many rows, and files in which nothing is left, hold no more than others.
    #[test]
    fn what_is_held_is_bounded() {
        let limits = Limits { chunk_rows: 4, ..Limits::default() };
        let rows: Vec<(i64, i64, i64, &str)> = (0..500).map(|id| (1, id, 1, "x")).collect();
        let sorted = sort(&spec(), &[change(false, &rows)], (0, u8::MAX), limits).unwrap();
        let keeps = |bound| Keeps { bounds_us: vec![bound], nothing_older: true };
        let inputs = [sorted.clone(), sorted.clone(), sorted];
        assert_eq!(listed(&merged(&inputs, keeps(0), limits)).len(), 500);
        assert!(merged(&inputs, keeps(1), limits).is_empty());
    }
}
