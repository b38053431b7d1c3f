//! The first row of each key passes, the others are dropped and counted.
//!
//! | keys | a key is forgotten |
//! |---|---|
//! | with the event time among them | when the watermark has passed it |
//! | any, within the watermark | when the watermark has passed the first row's time plus the delay |
//! | others | never |
//!
//! Rows at or behind the watermark are late, whatever the keys are. A row without event time is never late and, where its time
//! is a key or decides how long it is remembered, never forgotten.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, UInt32Array};
use arrow::compute::{filter_record_batch, take};
use arrow::datatypes::{Int64Type, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::TryStreamExt;
use hashbrown::HashTable;

use super::StatefulOperator;
use super::event_time::times_us;
use super::late_rows::drop_late;
use super::output::stream_once;
use crate::batch::BatchContext;
use crate::plan_node::{no_expressions, one_input};
use crate::state::key_hash::hash_keys;
use crate::state::{
    Counts, NEVER, NewRows, OperatorBatch, OperatorId, PartitionState, Resources, StateSchema, StateStore,
};
use crate::watermark::{OutputWatermark, WatermarkEffect};

/// How long a key is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retention {
    /// Never evicted.
    Forever,
    /// Until the watermark has passed its event time, this key.
    EventTime(usize),
    /// Until the watermark has passed the event time of its first row and so many µs more.
    Delay(i64),
}

/// The physical node of a deduplication.
#[derive(Debug, Clone)]
pub(crate) struct DeduplicateExec {
    id: OperatorId,
    /// Columns of the input.
    keys: Vec<usize>,
    /// The event-time column, if there is one.
    time: Option<usize>,
    retention: Retention,
    input: Arc<dyn ExecutionPlan>,
}

impl DeduplicateExec {
    /// Over an input that is exchanged by its keys.
    pub(crate) fn new(
        keys: Vec<usize>,
        time: Option<usize>,
        retention: Retention,
        input: Arc<dyn ExecutionPlan>,
    ) -> Self {
        DeduplicateExec { id: OperatorId(0), keys, time, retention, input }
    }

    /// The columns that are compared.
    pub(crate) fn keys(&self) -> &[usize] {
        &self.keys
    }
}

impl StatefulOperator for DeduplicateExec {
    fn with_id(&self, id: OperatorId) -> Arc<dyn ExecutionPlan> {
        Arc::new(DeduplicateExec { id, ..self.clone() })
    }

    fn spec(&self) -> StateSchema {
        let schema = self.input.schema();
        let scope = match self.retention {
            Retention::Delay(_) => "within watermark",
            Retention::EventTime(_) => "by event time",
            Retention::Forever => "for ever", // Persisted in the checkpoint: it stays as it is.
        };
        StateSchema {
            operator: "deduplicate",
            keys: self.keys.iter().filter_map(|&key| schema.fields().get(key)).map(Arc::clone).collect(),
            id: vec![],
            values: vec![],
            description: vec![scope.to_owned()],
            wrong_before: vec![],
            eviction_bounds: 1,
        }
    }

    fn new_partition(&self, resources: &Resources) -> Result<Box<dyn PartitionState>> {
        let spec = self.spec();
        Ok(Box::new(SeenKeys { table: resources.store(&spec.keys, &[])?, spec }))
    }

    fn watermark(&self) -> WatermarkEffect {
        // Also where nothing is forgotten: Spark runs a batch then, which makes the rows behind the watermark late.
        WatermarkEffect { output: OutputWatermark::SameAsInput, needs_no_data_batch: self.time.is_some() }
    }

    fn unbounded(&self) -> Option<String> {
        let keys: Vec<String> = self.spec().keys.iter().map(|key| key.name().clone()).collect();
        let for_ever = self.retention == Retention::Forever;
        for_ever.then(|| format!("the keys ({}) of dropped duplicates are never evicted", keys.join(", ")))
    }
}

/// The keys seen, and until when they are remembered.
#[derive(Debug)]
struct SeenKeys {
    table: Box<dyn StateStore>,
    spec: StateSchema,
}

impl PartitionState for SeenKeys {
    fn load(&mut self, rows: &RecordBatch, hashes: &[u64]) -> Result<()> {
        let times = rows.column(self.spec.time_column()).as_primitive::<Int64Type>();
        let times: Vec<i64> = times.iter().map(|us| us.unwrap_or(NEVER)).collect();
        let encoded = self.table.encode(&rows.columns()[1..=self.spec.keys.len()])?;
        let new = NewRows { keys: &encoded, hashes, times_us: &times, values: vec![] };
        self.table.put(&vec![None; rows.num_rows()], new).map(|_| ())
    }

    fn rows(&self) -> usize {
        self.table.len()
    }

    fn bytes(&self) -> usize {
        self.table.bytes()
    }
}

impl DeduplicateExec {
    /// The rows of a batch whose keys were not seen before; their keys are remembered.
    fn first_rows(
        &self,
        seen: &mut SeenKeys,
        rows: RecordBatch,
        run: &OperatorBatch,
        partition: usize,
    ) -> Result<RecordBatch> {
        let schema = self.input.schema();
        let times =
            |rows: &RecordBatch| self.time.map(|time| times_us(rows.column(time), schema.field(time))).transpose();
        let (rows, late) = match times(&rows)? {
            Some(times) => drop_late(rows, &times, run.late_us())?,
            None => (rows, 0),
        };
        let count = rows.num_rows();
        let keys: Vec<ArrayRef> = self.keys.iter().map(|&key| Arc::clone(rows.column(key))).collect();
        let hashes = hash_keys(&keys, count)?;
        let encoded = seen.table.encode(&keys)?;
        let all: Vec<u32> = (0..count as u32).collect();
        let known = seen.table.find_all(&hashes, &encoded, &all)?;
        let mut index: HashTable<(u64, u32)> = HashTable::with_capacity(count);
        let mut firsts: Vec<u32> = vec![];
        for (row, &hash) in hashes.iter().enumerate() {
            let key = encoded.row(row);
            let same = |entry: &(u64, u32)| entry.0 == hash && encoded.row(entry.1 as usize) == key;
            if known[row].is_none() && index.find(hash, same).is_none() {
                index.insert_unique(hash, (hash, row as u32), |entry| entry.0);
                firsts.push(row as u32);
            }
        }
        let new = firsts.len();
        run.count(Counts {
            rows_updated: new as u64,
            rows_dropped_late: late,
            rows_dropped_duplicate: (count - new) as u64,
            ..Counts::default()
        });
        let first = new_rows(&firsts, count);
        let out = if new == count { rows.clone() } else { filter_record_batch(&rows, &first)? };
        let firsts = UInt32Array::from(firsts);
        let until: Vec<i64> = match (self.retention, times(&out)?) {
            (Retention::EventTime(_), Some(times)) => times.iter().map(|us| us.unwrap_or(NEVER)).collect(),
            (Retention::Delay(delay_us), Some(times)) => {
                times.iter().map(|us| us.map_or(NEVER, |us| us.saturating_add(delay_us))).collect()
            }
            _ => vec![NEVER; new],
        };
        let keys = keys.iter().map(|key| Ok(take(key, &firsts, None)?)).collect::<Result<Vec<ArrayRef>>>()?;
        let hashes: Vec<u64> = firsts.values().iter().map(|&row| hashes[row as usize]).collect();
        let encoded = seen.table.encode(&keys)?;
        run.change(partition, seen.spec.change(false, keys, vec![], &until, Some(vec![]))?)?;
        let rows = NewRows { keys: &encoded, hashes: &hashes, times_us: &until, values: vec![] };
        seen.table.put(&vec![None; new], rows)?;
        Ok(out)
    }

    fn forget(&self, seen: &mut SeenKeys, run: &OperatorBatch) -> Result<()> {
        if self.retention == Retention::Forever {
            return Ok(());
        }
        let due = seen.table.due(run.evict_us())?;
        run.evicted(&[run.evict_us()]);
        run.count(Counts { rows_removed: due.len() as u64, ..Counts::default() });
        seen.table.remove(&due)
    }
}

/// A boolean mask of length `count`, true at `rows`.
fn new_rows(rows: &[u32], count: usize) -> BooleanArray {
    let mut is_new = vec![false; count];
    rows.iter().for_each(|&row| is_new[row as usize] = true);
    BooleanArray::from(is_new)
}

impl DisplayAs for DeduplicateExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let schema = self.input.schema();
        let keys: Vec<&str> = self.keys.iter().map(|&key| schema.field(key).name().as_str()).collect();
        write!(f, "DeduplicateExec: operator={}, keys=[{}], retention={:?}", self.id, keys.join(", "), self.retention)
    }
}

impl DeduplicateExec {
    fn with_input(&self, input: Arc<dyn ExecutionPlan>) -> Self {
        DeduplicateExec { input, ..self.clone() }
    }
}

impl ExecutionPlan for DeduplicateExec {
    one_input!(DeduplicateExec);
    no_expressions!();

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let run = BatchContext::of(&context)?.operator(self.id)?;
        let input = self.input.execute(partition, context)?;
        let this = self.clone();
        Ok(stream_once(self.schema(), async move {
            let rows: Vec<_> = input.try_collect().await?;
            let mut seen = run.state::<SeenKeys>(partition)?;
            let mut out = vec![];
            for rows in rows {
                out.push(this.first_rows(&mut seen, rows, &run, partition)?);
            }
            this.forget(&mut seen, &run)?;
            Ok(out)
        }))
    }
}
