//! New rows of one side meet what is kept of the other.
//!
//! Candidates are pairs with equal keys. However many there are, they are looked at in ranges of
//! [`OUTPUT_ROWS`]: their columns are gathered, the condition is evaluated once, and what holds comes out.

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, UInt32Array};
use arrow::buffer::NullBuffer;
use arrow::compute::{filter, filter_record_batch, not, take_arrays};
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use arrow::row::Rows;
use datafusion::error::Result;

use super::side::{Kept, SideState};
use super::spec::{Expiry, JoinOutput, JoinSpec, Side, holds};
use crate::operator::event_time::times_us;
use crate::operator::late_rows::drop_late;
use crate::operator::output::{OUTPUT_ROWS, record_batch_with_schema};
use crate::state::key_hash::hash_keys;
use crate::state::sizes::RowBytes;
use crate::state::{NEVER, SlotId, StateSchema};

/// New rows on their way along the rows of the other side.
#[derive(Debug)]
pub(super) struct ProbeBatch {
    pub(super) side: Side,
    rows: RecordBatch,
    key_columns: Vec<ArrayRef>,
    keys: Rows,
    hashes: Vec<u64>,
    times_us: Vec<i64>,
    /// Null where a row can match nothing.
    can_match: Option<NullBuffer>,
    /// By row: it found a match.
    matched: Vec<bool>,
    /// The row to look at after the current one.
    next_row: usize,
    /// The next candidate of the current row.
    candidate: Option<SlotId>,
    /// Rows of the other side that are no longer needed.
    used_up: Vec<SlotId>,
}

/// What became of a batch of new rows before they met any other.
pub(super) struct Prepared {
    pub(super) probe: ProbeBatch,
    /// Rows that are known to have no match, as they come out.
    pub(super) unmatched: Vec<RecordBatch>,
    /// How many were late.
    pub(super) late: u64,
}

/// The results of a probe batch once its rows have met all others.
#[derive(Default)]
pub(super) struct Finished {
    pub(super) output: Option<RecordBatch>,
    /// Rows of the other side that were taken away, for the files.
    pub(super) changes: Vec<RecordBatch>,
    pub(super) kept: u64,
    pub(super) removed: u64,
}

impl ProbeBatch {
    /// Drops late rows and rows that match nothing; of these, gives those that come out.
    pub(super) fn prepare(
        join: &JoinSpec,
        side: Side,
        own: &SideState,
        mut rows: RecordBatch,
        late_us: i64,
    ) -> Result<Prepared> {
        let of = join.side(side);
        // Late rows go first: they count as dropped, and come out nowhere.
        let mut late = 0;
        if let Some(column) = of.event_time {
            let times = times_us(rows.column(column), of.schema.field(column))?;
            (rows, late) = drop_late(rows, &times, late_us)?;
        }
        if let Some((key, field)) = &of.late_by_key
            && let Some(key) = of.keys.get(*key)
        {
            let times = times_us(&key.evaluate(&rows)?.into_array(rows.num_rows())?, field)?;
            let late_by_event_time = late;
            (rows, late) = drop_late(rows, &times, late_us)?;
            late += late_by_event_time;
        }
        // What fails the condition on its own side can match nothing: it comes out at once, or goes.
        let mut unmatched = vec![];
        if let Some(predicate) = &of.local_predicate {
            let passes = holds(predicate, &rows)?;
            if passes.true_count() < rows.num_rows() {
                if of.keeps_unmatched {
                    let fail = filter_record_batch(&rows, &not(&passes)?)?;
                    unmatched.push(join.unmatched(side, fail.columns().to_vec(), fail.num_rows())?);
                }
                rows = filter_record_batch(&rows, &passes)?;
            }
        }
        let mut keys = of
            .keys
            .iter()
            .map(|key| key.evaluate(&rows)?.into_array(rows.num_rows()))
            .collect::<Result<Vec<ArrayRef>>>()?;
        // When a row is due decides how long it is kept, and whether it may wait for a match at all.
        let mut times = match &of.expiry {
            Expiry::Never => None,
            Expiry::Key(key, field) => keys.get(*key).map(|key| times_us(key, field)).transpose()?,
            Expiry::Column(column) => Some(times_us(rows.column(*column), of.schema.field(*column))?),
        };
        // NULL in a key, a compared column or a compared time makes every pair with the row false.
        let never_null = of.not_null.iter().map(|column| rows.column(*column));
        let never_null = never_null.chain(keys.iter().filter(|_| !join.nulls_match));
        let mut nulls: Vec<Option<NullBuffer>> = never_null.map(|column| column.logical_nulls()).collect();
        // The time of a side that has a bound is compared, or equal.
        nulls.extend(times.as_ref().filter(|_| !join.nulls_match).map(|times| times.nulls().cloned()));
        let mut can_match = NullBuffer::union_many(nulls.iter().map(Option::as_ref));
        if let Some(can) = &can_match {
            // What can match nothing goes at once, unless it has a time at which it is to come out. A row that an earlier
            // outer join padded has none.
            let has_time = |row: usize| times.as_ref().is_some_and(|times| times.is_valid(row));
            let stays = |row: usize| can.is_valid(row) || (of.keeps_unmatched && has_time(row));
            let stays: BooleanArray = (0..rows.num_rows()).map(|row| Some(stays(row))).collect();
            if stays.false_count() > 0 {
                if of.keeps_unmatched {
                    let lost = filter_record_batch(&rows, &not(&stays)?)?;
                    unmatched.push(join.unmatched(side, lost.columns().to_vec(), lost.num_rows())?);
                }
                let can: Vec<bool> = can.iter().collect();
                can_match = Some(NullBuffer::from(chosen(&can, &stays)));
                rows = filter_record_batch(&rows, &stays)?;
                keys = keys.iter().map(|key| Ok(filter(key, &stays)?)).collect::<Result<_>>()?;
                if let Some(all) = &mut times {
                    *all = filter(all, &stays)?.as_primitive::<Int64Type>().clone();
                }
            }
        }
        // What is left meets the other side, and is kept by its time.
        let times_us = match &times {
            Some(times) => times.iter().map(|us| us.unwrap_or(NEVER)).collect(),
            None => vec![NEVER; rows.num_rows()],
        };
        let count = rows.num_rows();
        assert!(times_us.len() == count && keys.iter().all(|key| key.len() == count), "rows were filtered unevenly");
        let probe = ProbeBatch {
            side,
            hashes: hash_keys(&keys, count)?,
            keys: own.table.encode(&keys)?,
            key_columns: keys,
            times_us,
            can_match,
            matched: vec![false; count],
            next_row: 0,
            candidate: None,
            used_up: vec![],
            rows,
        };
        Ok(Prepared { probe, unmatched, late })
    }

    /// Goes on until there are rows to give out; `None` when all new rows have met all others.
    pub(super) fn next_output(&mut self, join: &JoinSpec, other: &mut SideState) -> Result<Option<RecordBatch>> {
        loop {
            let (rows, slots) = self.candidates(join, other)?;
            if slots.is_empty() {
                return Ok(None);
            }
            if let Some(output) = self.matches(join, other, rows, slots)? {
                return Ok(Some(output));
            }
        }
    }

    /// The next pairs with equal keys: new rows, and rows of the other side.
    fn candidates(&mut self, join: &JoinSpec, other: &SideState) -> Result<(Vec<u32>, Vec<SlotId>)> {
        let (mut rows, mut slots) = (vec![], vec![]);
        if other.table.len() == 0 {
            return Ok((rows, slots));
        }
        // Where rows of one side come out at their first match, further ones are of no interest.
        let (first_only, skip_matched) = match join.emits {
            JoinOutput::Pairs => (false, false),
            JoinOutput::Rows { of, .. } => (of == self.side, of != self.side),
        };
        let (sizes, mut bytes) = (RowBytes::new(self.rows.columns()), 0);
        while slots.len() < OUTPUT_ROWS && bytes < other.table.limits().block_bytes {
            let current = self.next_row.wrapping_sub(1);
            let Some(slot) = self.candidate.filter(|_| !first_only || !self.is_matched(current)) else {
                let row = self.next_row;
                let Some(&hash) = self.hashes.get(row) else { break };
                self.next_row += 1;
                let can = self.can_match.as_ref().is_none_or(|can| can.is_valid(row));
                self.candidate = if can { other.table.find(hash, self.keys.row(row))? } else { None };
                continue;
            };
            let enough = first_only && join.filter.is_none();
            self.candidate = if enough { None } else { other.table.older(slot) };
            if !(skip_matched && other.is_matched(slot)) {
                bytes += sizes.at(current) + other.table.bytes_of(slot);
                rows.push(current as u32);
                slots.push(slot);
            }
        }
        Ok((rows, slots))
    }

    fn is_matched(&self, row: usize) -> bool {
        self.matched[row]
    }

    /// Which of these pairs match: notes it, and makes the rows that follow.
    fn matches(
        &mut self,
        join: &JoinSpec,
        other: &mut SideState,
        rows: Vec<u32>,
        slots: Vec<SlotId>,
    ) -> Result<Option<RecordBatch>> {
        let mut pairs = None;
        if join.emits == JoinOutput::Pairs || join.filter.is_some() {
            let own = take_arrays(self.rows.columns(), &UInt32Array::from(rows.clone()), None)?;
            let columns = join.in_order(self.side, own, other.table.values(&slots)?);
            pairs = Some(record_batch_with_schema(&join.pairs, columns, slots.len())?);
        }
        let hold = match (&join.filter, &pairs) {
            (Some(condition), Some(pairs)) => Some(holds(condition, pairs)?),
            _ => None,
        };
        let other_comes_out = matches!(join.emits, JoinOutput::Rows { of, .. } if of != self.side);
        let other_is_kept = join.side(self.side.other()).keeps_unmatched;
        let mut first_matches = vec![];
        for (i, (&row, &slot)) in rows.iter().zip(&slots).enumerate() {
            if hold.as_ref().is_some_and(|hold| !hold.value(i)) {
                continue;
            }
            self.matched[row as usize] = true;
            if other_comes_out {
                if other.set_matched(slot) {
                    first_matches.push(slot);
                }
            } else if other_is_kept && other.set_matched(slot) {
                other.mark_dirty(slot);
            }
        }
        match (join.emits, pairs) {
            (JoinOutput::Pairs, Some(pairs)) => {
                let pairs = match &hold {
                    Some(hold) if hold.true_count() < pairs.num_rows() => filter_record_batch(&pairs, hold)?,
                    _ => pairs,
                };
                match pairs.num_rows() {
                    0 => Ok(None),
                    count => Ok(Some(record_batch_with_schema(&join.output, pairs.columns().to_vec(), count)?)),
                }
            }
            (JoinOutput::Rows { matched: true, .. }, _) if !first_matches.is_empty() => {
                let output =
                    record_batch_with_schema(&join.output, other.table.values(&first_matches)?, first_matches.len())?;
                self.used_up.extend(first_matches);
                Ok(Some(output))
            }
            _ => {
                self.used_up.extend(first_matches);
                Ok(None)
            }
        }
    }

    /// All others were met: keeps what may still match or has to come out without a match. `final_us` is the time at
    /// which rows of this side leave in this batch.
    pub(super) fn finish(
        self,
        join: &JoinSpec,
        own: &mut SideState,
        other: &mut SideState,
        spec: &StateSchema,
        final_us: i64,
    ) -> Result<Finished> {
        let mut finished = Finished::default();
        if !self.used_up.is_empty() {
            finished.removed = self.used_up.len() as u64;
            finished.changes = other.delete(&self.used_up, spec)?;
        }
        let comes_out = matches!(join.emits, JoinOutput::Rows { of, .. } if of == self.side);
        if join.emits == (JoinOutput::Rows { of: self.side, matched: true }) {
            let matched = BooleanArray::from(self.matched.clone());
            if matched.true_count() > 0 {
                let found = filter_record_batch(&self.rows, &matched)?;
                finished.output =
                    Some(record_batch_with_schema(&join.output, found.columns().to_vec(), found.num_rows())?);
            }
        }
        let keeps_unmatched = join.side(self.side).keeps_unmatched;
        // No row of this batch comes after those of the right side.
        let last = self.side == Side::Right;
        let keep = self.matched.iter().zip(&self.times_us).map(|(&matched, &us)| match matched {
            true if comes_out => false,
            _ if last && us <= final_us => keeps_unmatched && !matched,
            _ => true,
        });
        let keep: BooleanArray = keep.map(Some).collect();
        finished.kept = keep.true_count() as u64;
        if finished.kept == 0 {
            return Ok(finished);
        }
        // Whether a row found a match is of interest only where unmatched ones come out.
        let noted = keeps_unmatched && !comes_out;
        let matched: Vec<bool> = self.matched.iter().map(|matched| noted && *matched).collect();
        if finished.kept as usize == matched.len() {
            let ProbeBatch { keys, hashes, times_us, rows, .. } = &self;
            own.keep(Kept { keys, hashes, times_us, values: rows.columns().to_vec(), matched: &matched })?;
            return Ok(finished);
        }
        let key_columns: Vec<ArrayRef> =
            self.key_columns.iter().map(|column| Ok(filter(column, &keep)?)).collect::<Result<_>>()?;
        let keys = own.table.encode(&key_columns)?;
        own.keep(Kept {
            keys: &keys,
            hashes: &chosen(&self.hashes, &keep),
            times_us: &chosen(&self.times_us, &keep),
            values: filter_record_batch(&self.rows, &keep)?.columns().to_vec(),
            matched: &chosen(&matched, &keep),
        })?;
        Ok(finished)
    }
}

fn chosen<T: Copy>(all: &[T], keep: &BooleanArray) -> Vec<T> {
    all.iter().zip(keep.values()).filter(|(_, keep)| *keep).map(|(value, _)| *value).collect()
}
