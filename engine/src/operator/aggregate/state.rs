//! The groups of one partition.

use std::sync::Arc;

use arrow::array::{ArrayRef, UInt8Array, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::error::Result;
use hashbrown::HashTable;

use super::Aggregates;
use crate::operator::event_time::times_us;
use crate::operator::output::{OUTPUT_ROWS, rows_of};
use crate::state::key_hash::hash_keys;
use crate::state::spelling::one_spelling;
use crate::state::{Counts, NEVER, NewRows, OperatorRun, PartitionState, SlotId, StateSpec, Table};

/// The groups that a batch touched, and their state after it.
#[derive(Debug, Default)]
pub(super) struct Touched {
    keys: Vec<ArrayRef>,
    values: Vec<ArrayRef>,
    groups: usize,
}

#[derive(Debug)]
pub(super) struct AggregateState {
    table: Table,
    spec: StateSpec,
    time_key: Option<usize>,
    /// There are no keys: the only group has a made-up one.
    global: bool,
    aggregates: Aggregates,
}

impl AggregateState {
    pub(super) fn try_new(
        spec: StateSpec,
        time_key: Option<usize>,
        global: bool,
        aggregates: Aggregates,
    ) -> Result<Self> {
        Ok(AggregateState { table: Table::new(&spec.keys, &spec.values)?, spec, time_key, global, aggregates })
    }

    /// Takes in the partial state of a batch. Returns the groups it touched.
    pub(super) fn merge(&mut self, rows: &RecordBatch, run: &OperatorRun, partition: usize) -> Result<Touched> {
        if rows.num_rows() == 0 {
            return Ok(Touched::default());
        }
        let (keys, states): (Vec<ArrayRef>, &[ArrayRef]) = if self.global {
            (vec![Arc::new(UInt8Array::from(vec![0; rows.num_rows()]))], rows.columns())
        } else {
            let (keys, states) = rows.columns().split_at(self.spec.keys.len());
            (one_spelling(keys)?, states)
        };
        let hashes = hash_keys(&keys, rows.num_rows())?;
        let encoded = self.table.encode(&keys)?;

        // Which group of this batch a row is of, and the first row of each group.
        let mut index: HashTable<(u64, u32)> = HashTable::with_capacity(rows.num_rows());
        let mut groups = Vec::with_capacity(rows.num_rows());
        let mut firsts: Vec<u32> = vec![];
        for (row, &hash) in hashes.iter().enumerate() {
            let key = encoded.row(row);
            let same = |entry: &(u64, u32)| {
                entry.0 == hash && firsts.get(entry.1 as usize).is_some_and(|first| encoded.row(*first as usize) == key)
            };
            let group = match index.find(hash, same) {
                Some(entry) => entry.1,
                None => {
                    let group = firsts.len() as u32;
                    index.insert_unique(hash, (hash, group), |entry| entry.0);
                    firsts.push(row as u32);
                    group
                }
            };
            groups.push(group as usize);
        }

        // Groups that are known get the lowest numbers: accumulators expect that a call brings every group up to the total
        // it names, and take those it does not bring for seen.
        let total = firsts.len();
        let slots = self.table.find_all(&hashes, &encoded, &firsts);
        let mut order: Vec<usize> = (0..total).collect();
        order.sort_by_key(|&group| slots[group].is_none());
        let mut place = vec![0; total];
        order.iter().enumerate().for_each(|(new, &old)| place[old] = new);
        groups.iter_mut().for_each(|group| *group = place[*group]);
        let firsts: Vec<u32> = order.iter().map(|&group| firsts[group]).collect();
        let slots: Vec<Option<SlotId>> = order.iter().map(|&group| slots[group]).collect();
        let known: Vec<SlotId> = slots.iter().map_while(|slot| *slot).collect();

        let mut accumulators = self.aggregates.accumulators()?;
        // What is known first: some aggregates depend on the order.
        if !known.is_empty() {
            let numbers: Vec<usize> = (0..known.len()).collect();
            accumulators.merge(&self.table.values(&known)?, &numbers, known.len())?;
        }
        accumulators.merge(states, &groups, total)?;
        let values = accumulators.state()?;

        let firsts = UInt32Array::from(firsts);
        let keys = keys.iter().map(|key| Ok(take(key, &firsts, None)?)).collect::<Result<Vec<ArrayRef>>>()?;
        let times = self.times(&keys, total)?;
        let hashes: Vec<u64> = firsts.values().iter().map(|&row| hashes[row as usize]).collect();
        let encoded = self.table.encode(&keys)?;
        run.change(partition, self.spec.change(false, keys.clone(), vec![], &times, Some(values.clone()))?);
        run.count(Counts { rows_updated: total as u64, ..Counts::default() });
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
        self.table.slots().collect()
    }

    /// The groups that are final.
    pub(super) fn due(&mut self, bound_us: i64) -> Vec<SlotId> {
        if self.time_key.is_some() { self.table.due(bound_us) } else { vec![] }
    }

    /// Forgets groups that are due.
    pub(super) fn evict(&mut self, due: Vec<SlotId>, run: &OperatorRun) {
        if self.time_key.is_some() {
            run.evicted(&[run.evict_us()]);
        }
        run.count(Counts { rows_removed: due.len() as u64, ..Counts::default() });
        due.into_iter().for_each(|slot| self.table.remove(slot));
    }

    /// The groups a batch touched as rows: keys, then values.
    pub(super) fn touched_out(&self, touched: Touched, schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
        if touched.groups == 0 {
            return Ok(vec![]);
        }
        let mut columns = touched.keys;
        columns.extend(self.aggregates.evaluate(&touched.values, touched.groups)?);
        Ok(vec![rows_of(schema, columns, touched.groups)?])
    }

    /// Groups as rows: keys, then values.
    pub(super) fn rows_out(&self, slots: &[SlotId], schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
        slots
            .chunks(OUTPUT_ROWS)
            .map(|slots| {
                let mut columns = if self.global { vec![] } else { self.table.keys(slots)? };
                columns.extend(self.aggregates.evaluate(&self.table.values(slots)?, slots.len())?);
                rows_of(schema, columns, slots.len())
            })
            .collect()
    }
}

impl PartitionState for AggregateState {
    fn load(&mut self, change: &RecordBatch) -> Result<()> {
        let keys = &change.columns()[1..=self.spec.keys.len()];
        let values = change.columns()[self.spec.time_column() + 1..].to_vec();
        let hashes = hash_keys(keys, change.num_rows())?;
        let encoded = self.table.encode(keys)?;
        let all: Vec<u32> = (0..change.num_rows() as u32).collect();
        let slots = self.table.find_all(&hashes, &encoded, &all);
        let times = self.times(keys, change.num_rows())?;
        self.table.put(&slots, NewRows { keys: &encoded, hashes: &hashes, times_us: &times, values })?;
        Ok(())
    }

    fn rows(&self) -> usize {
        self.table.len()
    }

    fn bytes(&self) -> usize {
        self.table.bytes()
    }
}
