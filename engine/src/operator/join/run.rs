//! One partition of a join in one batch, step by step.
//!
//! 1. The new rows of the left side, batch by batch, meet what is kept of the right side; then they are kept, too.
//! 2. The new rows of the right side meet what is kept of the left side, new rows included.
//! 3. What the watermark has passed leaves, first left rows, then right ones; unmatched ones come out where the join
//!    gives them.
//! 4. What changed is handed over for the state files.
//!
//! A step makes one batch of output at most and holds the lock of the state only so long, so output flows on while the
//! join goes on, and a key with very many rows needs no more memory than any other.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use datafusion::error::Result;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;

use super::matching::{Prepared, ProbeBatch};
use super::side::JoinState;
use super::spec::{JoinSpec, Side};
use crate::batch::BatchContext;
use crate::operator::output::OUTPUT_ROWS;
use crate::state::{Counts, OperatorBatch, SlotId, StateSchema};

/// The execution of one partition of a join in one batch.
pub(super) struct JoinExecution {
    join: Arc<JoinSpec>,
    spec: StateSchema,
    batch: Arc<BatchContext>,
    run: Arc<OperatorBatch>,
    partition: usize,
    left: SendableRecordBatchStream,
    right: SendableRecordBatchStream,
    step: Step,
    /// Output that waits to be taken.
    ready: VecDeque<RecordBatch>,
    counts: Counts,
}

enum Step {
    /// Take the next new rows of a side.
    Read(Side),
    /// Let them meet the other side.
    Match(Box<ProbeBatch>),
    /// Let these rows of a side leave.
    Evict(Side, VecDeque<SlotId>),
    FlushChanges,
    Done,
}

impl JoinExecution {
    pub(super) fn new(
        join: Arc<JoinSpec>,
        batch: Arc<BatchContext>,
        run: Arc<OperatorBatch>,
        partition: usize,
        (left, right): (SendableRecordBatchStream, SendableRecordBatchStream),
    ) -> Result<Self> {
        Ok(JoinExecution {
            spec: join.spec(),
            join,
            batch,
            run,
            partition,
            left,
            right,
            step: Step::Read(Side::Left),
            ready: VecDeque::new(),
            counts: Counts::default(),
        })
    }

    /// The next rows that come out.
    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Ok(Some(ready));
            }
            self.step = match std::mem::replace(&mut self.step, Step::Done) {
                Step::Read(side) => {
                    let input = match side {
                        Side::Left => &mut self.left,
                        Side::Right => &mut self.right,
                    };
                    match (input.next().await, side) {
                        (Some(rows), _) => {
                            self.batch.check_cancelled()?;
                            self.begin_rows(side, rows?)?
                        }
                        (None, Side::Left) => Step::Read(Side::Right),
                        (None, Side::Right) => self.due(Side::Left)?,
                    }
                }
                Step::Match(probe) => self.match_rows(probe)?,
                Step::Evict(side, due) => self.evict(side, due)?,
                Step::FlushChanges => self.flush_changes()?,
                Step::Done => return Ok(None),
            };
        }
    }

    /// Rows of this side are final at or before this, in µs.
    fn final_us(&self, side: Side) -> i64 {
        self.join.side(side).bound.evict_us(self.run.evict_us())
    }

    fn begin_rows(&mut self, side: Side, rows: RecordBatch) -> Result<Step> {
        if rows.num_rows() == 0 {
            return Ok(Step::Read(side));
        }
        let mut state = self.run.state::<JoinState>(self.partition)?;
        let (own, _) = state.sides(side);
        let Prepared { probe, unmatched, late } = ProbeBatch::prepare(&self.join, side, own, rows, self.run.late_us())?;
        self.counts.rows_dropped_late += late;
        self.ready.extend(unmatched);
        Ok(Step::Match(Box::new(probe)))
    }

    fn match_rows(&mut self, mut probe: Box<ProbeBatch>) -> Result<Step> {
        self.batch.check_cancelled()?;
        let side = probe.side;
        let final_us = self.final_us(side);
        let mut state = self.run.state::<JoinState>(self.partition)?;
        let (own, other) = state.sides(side);
        if let Some(output) = probe.next_output(&self.join, other)? {
            self.ready.push_back(output);
            return Ok(Step::Match(probe));
        }
        let finished = probe.finish(&self.join, own, other, &self.spec, final_us)?;
        self.ready.extend(finished.output);
        finished.changes.into_iter().try_for_each(|change| self.run.change(self.partition, change))?;
        self.counts.rows_updated += finished.kept;
        self.counts.rows_removed += finished.removed;
        Ok(Step::Read(side))
    }

    fn due(&self, side: Side) -> Result<Step> {
        let mut state = self.run.state::<JoinState>(self.partition)?;
        let (own, _) = state.sides(side);
        Ok(Step::Evict(side, own.table.due(self.final_us(side))?.into()))
    }

    fn evict(&mut self, side: Side, mut due: VecDeque<SlotId>) -> Result<Step> {
        let mut slots: Vec<SlotId> = due.drain(..due.len().min(OUTPUT_ROWS)).collect();
        if slots.is_empty() {
            return match side {
                Side::Left => self.due(Side::Right),
                Side::Right => Ok(Step::FlushChanges),
            };
        }
        let mut state = self.run.state::<JoinState>(self.partition)?;
        let (own, _) = state.sides(side);
        // Large rows go in smaller steps.
        let first = own.table.bounded_ranges(&slots, OUTPUT_ROWS).first().map_or(slots.len(), |part| part.len());
        slots.drain(first..).rev().for_each(|slot| due.push_front(slot));
        if self.join.side(side).keeps_unmatched {
            let unmatched: Vec<SlotId> = slots.iter().copied().filter(|slot| !own.is_matched(*slot)).collect();
            if !unmatched.is_empty() {
                let values = own.table.values(&unmatched)?;
                self.ready.push_back(self.join.unmatched(side, values, unmatched.len())?);
            }
        }
        own.evict(&slots)?;
        self.counts.rows_removed += slots.len() as u64;
        Ok(Step::Evict(side, due))
    }

    fn flush_changes(&mut self) -> Result<Step> {
        let mut state = self.run.state::<JoinState>(self.partition)?;
        for side in [Side::Left, Side::Right] {
            let (own, _) = state.sides(side);
            own.changes(&self.spec)?.into_iter().try_for_each(|change| self.run.change(self.partition, change))?;
        }
        self.run.evicted(&[self.final_us(Side::Left), self.final_us(Side::Right)]);
        self.run.count(self.counts);
        Ok(Step::Done)
    }
}
