//! The sessions of one partition.
//!
//! A key has any number of sessions, apart from each other; each is due at its end. Key and start name a session in the
//! files: a row that comes before it or between two takes sessions away and puts another in their place.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Int64Type, SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use arrow::row::Rows;
use datafusion::error::Result;
use hashbrown::HashTable;

use super::merge::{Stretch, merge};
use crate::operator::aggregate::Aggregates;
use crate::operator::output::{OUTPUT_ROWS, record_batch_with_schema};
use crate::state::key_hash::hash_keys;
use crate::state::{
    Counts, Limits, NewRows, OperatorBatch, Pages, PartitionState, Resources, SlotId, StateSchema, StateStore,
};
use crate::window::values::{Micros, between};

/// Rows as sessions take them in.
pub(super) struct SessionRows {
    pub(super) keys: Vec<ArrayRef>,
    /// By row: the time it brings along, `[start, end)` in µs.
    pub(super) stretches: Vec<(i64, i64)>,
    /// By aggregate: its arguments.
    pub(super) arguments: Vec<Vec<ArrayRef>>,
    /// By aggregate: the rows its FILTER lets through.
    pub(super) filter_masks: Vec<Option<BooleanArray>>,
    /// By aggregate: the rows in the order it wants them; `None` for any.
    pub(super) sort_indices: Vec<Option<UInt32Array>>,
}

/// The sessions that one partition keeps.
#[derive(Debug)]
pub(super) struct SessionState {
    /// By key: the partial state of its sessions.
    table: Box<dyn StateStore>,
    /// By slot of the table: where the session starts, in µs.
    starts: Pages<i64>,
    spec: StateSchema,
    aggregates: Aggregates,
    /// The type of a session's bounds.
    bound: DataType,
}

impl SessionState {
    pub(super) fn try_new(
        spec: StateSchema,
        aggregates: Aggregates,
        bound: DataType,
        resources: &Resources,
    ) -> Result<Self> {
        let table = resources.store(&spec.keys, &spec.values)?;
        Ok(SessionState { table, starts: Pages::default(), spec, aggregates, bound })
    }

    /// Takes in the rows of a batch.
    pub(super) fn take_in(&mut self, rows: &SessionRows, run: &OperatorBatch, partition: usize) -> Result<()> {
        if rows.stretches.is_empty() {
            return Ok(());
        }
        let hashes = hash_keys(&rows.keys, rows.stretches.len())?;
        let encoded = self.table.encode(&rows.keys)?;
        let (key_of_row, first_rows) = number_keys(&hashes, &encoded);
        let mut slots: Vec<SlotId> = vec![];
        let mut known: Vec<Stretch> = vec![];
        let newest = self.table.find_all(&hashes, &encoded, &first_rows)?;
        for (key, mut next) in newest.into_iter().enumerate() {
            while let Some(slot) = next {
                known.push(Stretch { key, start: self.start_us(slot), end: self.table.time_us(slot) });
                slots.push(slot);
                next = self.table.older(slot);
            }
        }
        let new: Vec<Stretch> = key_of_row
            .into_iter()
            .zip(&rows.stretches)
            .map(|(key, &(start, end))| Stretch { key, start, end })
            .collect();
        let merged = merge(&known, &new);
        let total = merged.sessions.len();

        // A session that keeps its start keeps its slot; others that became part of it are gone.
        let mut places: Vec<Option<SlotId>> = vec![None; total];
        let mut gone: Vec<(SlotId, i64)> = vec![];
        let mut parts: Vec<SlotId> = vec![];
        let mut part_of: Vec<usize> = vec![];
        for ((slot, stretch), session) in slots.into_iter().zip(&known).zip(&merged.of_known) {
            let Some(session) = *session else { continue };
            parts.push(slot);
            part_of.push(session);
            match merged.sessions[session].start == stretch.start {
                true => places[session] = Some(slot),
                false => gone.push((slot, stretch.start)),
            }
        }
        let mut of_rows = self.aggregates.accumulators()?;
        of_rows.update(&rows.arguments, &rows.filter_masks, &rows.sort_indices, &merged.of_row, total)?;
        let mut states = of_rows.state()?;
        if !parts.is_empty() {
            // What was known first: some aggregates depend on the order. State is merged with state only: aggregates
            // with ORDER BY assume that rows arrive in that order.
            let mut all = self.aggregates.accumulators()?;
            all.merge(&self.table.values(&parts)?, &part_of, merged.continued)?;
            all.merge(&states, &(0..total).collect::<Vec<_>>(), total)?;
            states = all.state()?;
        }

        self.take_away(&gone, run, partition)?;
        let key_rows = UInt32Array::from_iter_values(merged.sessions.iter().map(|session| first_rows[session.key]));
        let keys = rows.keys.iter().map(|key| Ok(take(key, &key_rows, None)?)).collect::<Result<Vec<_>>>()?;
        let hashes: Vec<u64> = key_rows.values().iter().map(|&row| hashes[row as usize]).collect();
        let starts: Vec<i64> = merged.sessions.iter().map(|session| session.start).collect();
        let ends: Vec<i64> = merged.sessions.iter().map(|session| session.end).collect();
        let id = vec![self.bounds(starts.clone())];
        let encoded = self.table.encode(&keys)?;
        run.change(partition, self.spec.change(false, keys, id, &ends, Some(states.clone()))?)?;
        run.count(Counts { rows_updated: total as u64, ..Counts::default() });
        self.put(&places, &starts, NewRows { keys: &encoded, hashes: &hashes, times_us: &ends, values: states })?;
        Ok(())
    }

    /// Takes sessions away that became part of others; their slots and starts are given.
    fn take_away(&mut self, gone: &[(SlotId, i64)], run: &OperatorBatch, partition: usize) -> Result<()> {
        if gone.is_empty() {
            return Ok(());
        }
        let (slots, starts): (Vec<SlotId>, Vec<i64>) = gone.iter().copied().unzip();
        let ends: Vec<i64> = slots.iter().map(|slot| self.table.time_us(*slot)).collect();
        let id = vec![self.bounds(starts)];
        run.change(partition, self.spec.change(true, self.table.keys(&slots)?, id, &ends, None)?)?;
        self.forget(&slots)
    }

    fn forget(&mut self, slots: &[SlotId]) -> Result<()> {
        slots.iter().for_each(|slot| self.starts.clear(slot.0));
        self.table.holds_beside(self.starts.memory());
        self.table.remove(slots)
    }

    pub(super) fn limits(&self) -> Limits {
        self.table.limits()
    }

    fn put(&mut self, places: &[Option<SlotId>], starts: &[i64], rows: NewRows<'_>) -> Result<Vec<SlotId>> {
        let slots = self.table.put(places, rows)?;
        slots.iter().zip(starts).for_each(|(slot, start)| self.starts.set(slot.0, *start));
        self.table.holds_beside(self.starts.memory());
        Ok(slots)
    }

    fn start_us(&self, slot: SlotId) -> i64 {
        self.starts[slot.0]
    }

    /// Times as a column of bounds.
    fn bounds(&self, us: Vec<i64>) -> ArrayRef {
        Arc::new(Micros::from(us).with_data_type(self.bound.clone()))
    }

    pub(super) fn all(&self) -> Vec<SlotId> {
        self.table.slots()
    }

    /// The sessions that the watermark has passed. They must be [evicted](Self::evict).
    pub(super) fn due(&self, run: &OperatorBatch) -> Result<Vec<SlotId>> {
        self.table.due(run.evict_us())
    }

    /// Forgets the sessions that are due.
    pub(super) fn evict(&mut self, due: &[SlotId], run: &OperatorBatch) -> Result<()> {
        run.evicted(&[run.evict_us()]);
        run.count(Counts { rows_removed: due.len() as u64, ..Counts::default() });
        self.forget(due)
    }

    /// Sessions as rows: keys, the session among them at `session`, then values.
    pub(super) fn rows_out(&self, slots: &[SlotId], session: usize, schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
        let parts = self.table.bounded_ranges(slots, OUTPUT_ROWS).into_iter();
        parts
            .map(|part| {
                let slots = &slots[part];
                let starts: Vec<i64> = slots.iter().map(|slot| self.start_us(*slot)).collect();
                let ends: Vec<i64> = slots.iter().map(|slot| self.table.time_us(*slot)).collect();
                let mut columns = self.table.keys(slots)?;
                columns.insert(session, between(&self.bound, Micros::from(starts), Micros::from(ends))?);
                columns.extend(self.aggregates.evaluate(&self.table.values(slots)?, slots.len())?);
                record_batch_with_schema(schema, columns, slots.len())
            })
            .collect()
    }
}

/// Numbers the distinct keys. Returns the number of each row's key, and the first row of each key.
fn number_keys(hashes: &[u64], keys: &Rows) -> (Vec<usize>, Vec<u32>) {
    let mut index: HashTable<(u64, u32)> = HashTable::with_capacity(hashes.len());
    let mut first_rows: Vec<u32> = vec![];
    let mut numbers = Vec::with_capacity(hashes.len());
    for (row, &hash) in hashes.iter().enumerate() {
        let same =
            |entry: &(u64, u32)| entry.0 == hash && keys.row(first_rows[entry.1 as usize] as usize) == keys.row(row);
        let number = match index.find(hash, same) {
            Some(entry) => entry.1,
            None => {
                let number = first_rows.len() as u32;
                index.insert_unique(hash, (hash, number), |entry| entry.0);
                first_rows.push(row as u32);
                number
            }
        };
        numbers.push(number as usize);
    }
    (numbers, first_rows)
}

impl PartitionState for SessionState {
    fn load(&mut self, rows: &RecordBatch, hashes: &[u64]) -> Result<()> {
        let (keys, time) = (self.spec.keys.len(), self.spec.time_column());
        let columns = rows.columns();
        let starts = rows.column(1 + keys).as_primitive::<TimestampMicrosecondType>().values().to_vec();
        let times = rows.column(time).as_primitive::<Int64Type>().values().to_vec();
        let encoded = self.table.encode(&columns[1..=keys])?;
        let new = NewRows { keys: &encoded, hashes, times_us: &times, values: columns[time + 1..].to_vec() };
        self.put(&vec![None; rows.num_rows()], &starts, new).map(|_| ())
    }

    fn rows(&self) -> usize {
        self.table.len()
    }

    fn bytes(&self) -> usize {
        self.table.bytes()
    }
}
