//! The groups of one partition.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, UInt8Array};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::error::Result;

use super::Aggregates;
use super::groups::{Groups, Incoming};
use crate::operator::event_time::times_us;
use crate::operator::output::{OUTPUT_ROWS, record_batch_with_schema};
use crate::state::key_hash::hash_keys;
use crate::state::sizes::bounded_ranges;
use crate::state::spelling::normalize_keys;
use crate::state::{Counts, NEVER, NewRows, OperatorBatch, PartitionState, Resources, SlotId, StateSchema, StateStore};

/// The groups that a batch touched, and their state after it.
#[derive(Debug)]
pub(super) struct Touched {
    keys: Vec<ArrayRef>,
    values: Vec<ArrayRef>,
    groups: usize,
}

#[derive(Debug)]
pub(super) struct AggregateState {
    table: Box<dyn StateStore>,
    spec: StateSchema,
    time_key: Option<usize>,
    /// There are no keys: the only group has a made-up one.
    global: bool,
    aggregates: Aggregates,
}

impl AggregateState {
    pub(super) fn try_new(
        spec: StateSchema,
        time_key: Option<usize>,
        global: bool,
        aggregates: Aggregates,
        resources: &Resources,
    ) -> Result<Self> {
        let table = resources.store(&spec.keys, &spec.values)?;
        Ok(AggregateState { table, spec, time_key, global, aggregates })
    }

    /// Takes in the partial state of a batch. Returns the groups it touched.
    pub(super) fn merge(
        &mut self,
        batches: &[RecordBatch],
        run: &OperatorBatch,
        partition: usize,
    ) -> Result<Vec<Touched>> {
        let batches = batches.iter().filter(|rows| rows.num_rows() > 0);
        let rows = batches.map(|rows| self.incoming(rows)).collect::<Result<Vec<Incoming>>>()?;
        let groups = Groups::of(&rows, self.table.as_ref())?;
        run.count(Counts { rows_updated: groups.count() as u64, ..Counts::default() });
        // However many groups a batch touches and however large they are: what is brought together in one array is bounded.
        let parts = bounded_ranges(groups.bytes(self.table.as_ref()), usize::MAX, self.table.limits().block_bytes);
        parts.into_iter().map(|part| self.merge_groups(&groups, part, run, partition)).collect()
    }

    fn incoming(&self, rows: &RecordBatch) -> Result<Incoming> {
        let (keys, states): (Vec<ArrayRef>, &[ArrayRef]) = if self.global {
            (vec![Arc::new(UInt8Array::from(vec![0; rows.num_rows()]))], rows.columns())
        } else {
            let (keys, states) = rows.columns().split_at(self.spec.keys.len());
            (normalize_keys(keys)?, states)
        };
        let hashes = hash_keys(&keys, rows.num_rows())?;
        let encoded = self.table.encode(&keys)?;
        Ok(Incoming { keys, states: states.to_vec(), hashes, encoded })
    }

    /// Merges the rows of some groups with what is known of these.
    fn merge_groups(
        &mut self,
        groups: &Groups<'_>,
        part: Range<usize>,
        run: &OperatorBatch,
        partition: usize,
    ) -> Result<Touched> {
        // Groups that are known get the lowest numbers: a `GroupsAccumulator` treats every group below
        // `total_num_groups` as seen, whether or not a call has rows of it.
        let mut order: Vec<usize> = part.collect();
        order.sort_by_key(|&group| groups.slots[group].is_none());
        let total = order.len();
        let mut places = vec![None; groups.count()];
        order.iter().enumerate().for_each(|(place, &group)| places[group] = Some(place));
        let slots: Vec<Option<SlotId>> = order.iter().map(|&group| groups.slots[group]).collect();
        let known: Vec<SlotId> = slots.iter().map_while(|slot| *slot).collect();

        let mut accumulators = self.aggregates.accumulators()?;
        // What is known first: some aggregates depend on the order.
        if !known.is_empty() {
            let numbers: Vec<usize> = (0..known.len()).collect();
            accumulators.merge(&self.table.values(&known)?, &numbers, known.len())?;
        }
        // Then what this batch brings, in the order in which it came.
        let (states, of_row) = groups.states(&places)?;
        accumulators.merge(&states, &of_row, total)?;
        let values = accumulators.state()?;

        // The state of each group after the batch is both what is kept in memory and what goes to the checkpoint.
        let keys = groups.keys(&order)?;
        let times = self.times(&keys, total)?;
        let hashes: Vec<u64> = order.iter().map(|&group| groups.hash(group)).collect();
        let encoded = self.table.encode(&keys)?;
        run.change(partition, self.spec.change(false, keys.clone(), vec![], &times, Some(values.clone()))?)?;
        let rows = NewRows { keys: &encoded, hashes: &hashes, times_us: &times, values: values.clone() };
        self.table.put(&slots, rows)?;
        Ok(Touched { keys: if self.global { vec![] } else { keys }, values, groups: total })
    }

    /// When each group is final.
    fn times(&self, keys: &[ArrayRef], groups: usize) -> Result<Vec<i64>> {
        let Some((key, field)) = self.time_key.and_then(|key| keys.get(key).zip(self.spec.keys.get(key))) else {
            return Ok(vec![NEVER; groups]);
        };
        Ok(times_us(key, field)?.iter().map(|us| us.unwrap_or(NEVER)).collect())
    }

    pub(super) fn all(&self) -> Vec<SlotId> {
        self.table.slots()
    }

    /// The groups that are final.
    pub(super) fn due(&self, bound_us: i64) -> Result<Vec<SlotId>> {
        if self.time_key.is_some() { self.table.due(bound_us) } else { Ok(vec![]) }
    }

    /// Forgets groups that are due.
    pub(super) fn evict(&mut self, due: &[SlotId], run: &OperatorBatch) -> Result<()> {
        if self.time_key.is_some() {
            run.evicted(&[run.evict_us()]);
        }
        run.count(Counts { rows_removed: due.len() as u64, ..Counts::default() });
        self.table.remove(due)
    }

    /// The groups a batch touched as rows: keys, then values.
    pub(super) fn touched_out(&self, touched: Vec<Touched>, schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
        let out = |touched: Touched| {
            let mut columns = touched.keys;
            columns.extend(self.aggregates.evaluate(&touched.values, touched.groups)?);
            record_batch_with_schema(schema, columns, touched.groups)
        };
        touched.into_iter().map(out).collect()
    }

    /// Groups as rows: keys, then values.
    pub(super) fn rows_out(&self, slots: &[SlotId], schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
        let parts = self.table.bounded_ranges(slots, OUTPUT_ROWS).into_iter();
        parts
            .map(|part| {
                let slots = &slots[part];
                let mut columns = if self.global { vec![] } else { self.table.keys(slots)? };
                columns.extend(self.aggregates.evaluate(&self.table.values(slots)?, slots.len())?);
                record_batch_with_schema(schema, columns, slots.len())
            })
            .collect()
    }
}

impl PartitionState for AggregateState {
    fn load(&mut self, rows: &RecordBatch, hashes: &[u64]) -> Result<()> {
        let keys = &rows.columns()[1..=self.spec.keys.len()];
        let values = rows.columns()[self.spec.time_column() + 1..].to_vec();
        let encoded = self.table.encode(keys)?;
        let times = self.times(keys, rows.num_rows())?;
        let new = NewRows { keys: &encoded, hashes, times_us: &times, values };
        self.table.put(&vec![None; rows.num_rows()], new).map(|_| ())
    }

    fn rows(&self) -> usize {
        self.table.len()
    }

    fn bytes(&self) -> usize {
        self.table.bytes()
    }
}
