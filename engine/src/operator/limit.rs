//! The first rows of a stream, over all its batches.
//!
//! ```text
//! partitions ──▶ FirstRowsExec: what is still wanted, of each ──▶ exchange: into one ──▶ StreamLimitExec: of all, counted
//! ```
//!
//! A partition that has given what is wanted is read no further, and once the limit is full, nothing is read at all: neither is
//! anything evaluated that could fail. The same holds for what lies below a DISTINCT that only the limit reads. What must see its
//! whole input all the same, as the watermark must, stands below an [exchange](super::exchange) of its own
//! ([`DrainInputsRule`](crate::plan::drain_inputs)).

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, UInt8Array};
use arrow::datatypes::{DataType, Field, Int64Type};
use arrow::record_batch::RecordBatch;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, EmptyRecordBatchStream, ExecutionPlan, PlanProperties};
use futures::{TryStreamExt, stream};

use super::StatefulOperator;
use super::late_rows::SharedId;
use super::output::stream_once;
use crate::batch::BatchContext;
use crate::error::Error;
use crate::plan_node::{no_expressions, one_input};
use crate::state::{Counts, NEVER, OperatorId, PartitionState, Resources, StateSchema};
use crate::watermark::{OutputWatermark, WatermarkEffect};

/// Lets so many rows pass in the query's life. Its input is one partition.
#[derive(Debug, Clone)]
pub(crate) struct StreamLimitExec {
    id: OperatorId,
    /// The same number, for the [`FirstRowsExec`] below.
    shared: SharedId,
    rows: usize,
    input: Arc<dyn ExecutionPlan>,
}

impl StreamLimitExec {
    /// Over an exchange into one partition, below which a [`FirstRowsExec`] of this id stands.
    pub(crate) fn new(shared: SharedId, rows: usize, input: Arc<dyn ExecutionPlan>) -> Self {
        StreamLimitExec { id: OperatorId(0), shared, rows, input }
    }
}

/// Lets of each partition only so many rows pass as the limit above has still to give.
#[derive(Debug, Clone)]
pub(crate) struct FirstRowsExec {
    /// The limit that it works for.
    operator: SharedId,
    rows: usize,
    /// Whether all rows pass until the limit is full: those that are taken for one another later count once.
    all: bool,
    input: Arc<dyn ExecutionPlan>,
}

impl FirstRowsExec {
    pub(crate) fn new(operator: SharedId, rows: usize, input: Arc<dyn ExecutionPlan>) -> Self {
        FirstRowsExec { operator, rows, all: false, input }
    }

    /// Lets all rows pass as long as the limit has any still to give.
    pub(crate) fn until_full(operator: SharedId, rows: usize, input: Arc<dyn ExecutionPlan>) -> Self {
        FirstRowsExec { operator, rows, all: true, input }
    }
}

/// How many rows have passed.
#[derive(Debug, Default)]
struct Passed(usize);

impl PartitionState for Passed {
    fn load(&mut self, change: &RecordBatch, _hashes: &[u64]) -> Result<()> {
        let passed = change.columns().last().map(|column| column.as_primitive::<Int64Type>().values().to_vec());
        if let Some(&passed) = passed.iter().flatten().last() {
            self.0 = usize::try_from(passed)
                .map_err(|_| Error::damaged(format!("the state of a limit says that {passed} rows have passed")))?;
        }
        Ok(())
    }

    fn rows(&self) -> usize {
        usize::from(self.0 > 0)
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
    }
}

impl StatefulOperator for StreamLimitExec {
    fn with_id(&self, id: OperatorId) -> Arc<dyn ExecutionPlan> {
        self.shared.set(id);
        Arc::new(StreamLimitExec { id, ..self.clone() })
    }

    fn spec(&self) -> StateSchema {
        StateSchema {
            operator: "limit",
            keys: vec![Arc::new(Field::new("limit", DataType::UInt8, false))],
            id: vec![],
            values: vec![Arc::new(Field::new("passed", DataType::Int64, false))],
            description: vec![],
            wrong_before: vec![],
            eviction_bounds: 1,
        }
    }

    fn new_partition(&self, _resources: &Resources) -> Result<Box<dyn PartitionState>> {
        Ok(Box::new(Passed::default()))
    }

    fn watermark(&self) -> WatermarkEffect {
        WatermarkEffect { output: OutputWatermark::SameAsInput, needs_no_data_batch: false }
    }
}

impl DisplayAs for StreamLimitExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "StreamLimitExec: operator={}, rows={}", self.id, self.rows)
    }
}

impl StreamLimitExec {
    fn with_input(&self, input: Arc<dyn ExecutionPlan>) -> Self {
        StreamLimitExec { input, ..self.clone() }
    }
}

impl ExecutionPlan for StreamLimitExec {
    one_input!(StreamLimitExec);
    no_expressions!();

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let run = BatchContext::of(&context)?.operator(self.id)?;
        let input = self.input.execute(partition, context)?;
        let this = self.clone();
        Ok(stream_once(self.schema(), async move {
            let rows: Vec<_> = input.try_collect().await?;
            let mut passed = run.state::<Passed>(partition)?;
            let before = passed.0;
            let mut out = vec![];
            for rows in rows {
                let pass = rows.num_rows().min(this.rows.saturating_sub(passed.0));
                passed.0 += pass;
                if pass > 0 {
                    out.push(rows.slice(0, pass));
                }
            }
            if passed.0 > before {
                let key: ArrayRef = Arc::new(UInt8Array::from(vec![0]));
                let count: ArrayRef = Arc::new(Int64Array::from(vec![passed.0 as i64]));
                run.change(partition, this.spec().change(false, vec![key], vec![], &[NEVER], Some(vec![count]))?)?;
                run.count(Counts { rows_updated: 1, ..Counts::default() });
            }
            Ok(out)
        }))
    }
}

impl DisplayAs for FirstRowsExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "FirstRowsExec: operator={}, rows={}", self.operator.get(), self.rows)?;
        if self.all { f.write_str(", all until then") } else { Ok(()) }
    }
}

impl FirstRowsExec {
    fn with_input(&self, input: Arc<dyn ExecutionPlan>) -> Self {
        FirstRowsExec { input, ..self.clone() }
    }
}

impl ExecutionPlan for FirstRowsExec {
    one_input!(FirstRowsExec);
    no_expressions!();

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        // The limit runs in a later stage: it has not counted anything of this batch yet.
        let run = BatchContext::of(&context)?.operator(self.operator.get())?;
        let passed = run.state::<Passed>(0)?.0;
        let wanted = self.rows.saturating_sub(passed);
        if wanted == 0 {
            return Ok(Box::pin(EmptyRecordBatchStream::new(self.schema())));
        }
        let input = self.input.execute(partition, context)?;
        if self.all {
            return Ok(input);
        }
        let rows = stream::try_unfold((input, wanted), |(mut input, wanted)| async move {
            if wanted == 0 {
                return Ok(None);
            }
            let rows: Option<RecordBatch> = input.try_next().await?;
            Ok::<_, DataFusionError>(rows.map(|rows| {
                let pass = rows.num_rows().min(wanted);
                (rows.slice(0, pass), (input, wanted - pass))
            }))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}
