//! Sessions that live longer than a batch.
//!
//! A row brings the time `[time, time + gap)` along; stretches of a key that overlap or touch are one session. What is
//! kept per session is the partial state of its aggregates, as in [`aggregate`](super::aggregate):
//!
//! ```text
//! rows of this batch ──▶ not late ──▶ merge with the known sessions of their keys ──▶ sessions that rows touch
//!                                         │ update_batch(rows), merge_batch(states of known sessions)
//!                                         ▼
//!                        kept: one row of state per session, due at its end; what became part of it is removed
//! ```
//!
//! | mode | rows out |
//! |---|---|
//! | append | the sessions that the watermark has passed, once, as they are evicted |
//! | complete | all sessions |
//!
//! A row is late if its own stretch ends at or before the watermark, even if it would bridge living sessions, and in
//! complete mode too (Spark's rules).

mod merge;

mod state;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{ArrayRef, AsArray, BooleanArray, UInt32Array};
use arrow::compute::{concat_batches, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Field, FieldRef, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::internal_err;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::execution_plan::{EmissionType, apply_expression_roots};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties};
use futures::TryStreamExt;

use self::state::{SessionRows, SessionState};
use super::StatefulOperator;
use super::aggregate::{Aggregates, Code, ours};
use super::exchange::ExchangeExec;
use super::output::stream_once;
use crate::batch::BatchContext;
use crate::output_mode::OutputMode;
use crate::plan_node::one_input;
use crate::state::sizes::{RowBytes, bounded_ranges};
use crate::state::{Counts, OperatorBatch, OperatorId, PartitionState, Resources, StateSchema};
use crate::watermark::event_time_metadata::is_event_time;
use crate::watermark::{OutputWatermark, WatermarkEffect};
use crate::window::values::stretches;

/// The physical node of an aggregation by session windows.
#[derive(Debug, Clone)]
pub(crate) struct SessionWindowExec {
    id: OperatorId,
    mode: OutputMode,
    /// The grouping keys beside the session.
    keys: Vec<Arc<dyn PhysicalExpr>>,
    /// What a row brings to its session.
    session: Arc<dyn PhysicalExpr>,
    /// The place of the session among the columns of the output.
    place: usize,
    aggregates: Aggregates,
    /// By aggregate: its arguments.
    arguments: Vec<Vec<Arc<dyn PhysicalExpr>>>,
    /// By aggregate: its FILTER.
    filters: Vec<Option<Arc<dyn PhysicalExpr>>>,
    /// By aggregate: the order in which it wants its rows; empty for any.
    orders: Vec<Vec<PhysicalSortExpr>>,
    schema: SchemaRef,
    /// Whether it was said that rows have no session.
    warned: Arc<AtomicBool>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

/// What the plan fixes of it.
#[derive(Debug)]
pub(crate) struct SessionSpec {
    /// The grouping keys beside the session.
    pub(crate) keys: Vec<Arc<dyn PhysicalExpr>>,
    /// What a row brings to its session.
    pub(crate) session: Arc<dyn PhysicalExpr>,
    /// The place of the session among the columns of the output.
    pub(crate) place: usize,
    /// The aggregates as the query has them.
    pub(crate) named: Vec<Arc<AggregateFunctionExpr>>,
    /// By aggregate: its FILTER.
    pub(crate) filters: Vec<Option<Arc<dyn PhysicalExpr>>>,
    /// The columns that come out: keys, one of which is the session, then aggregates.
    pub(crate) schema: SchemaRef,
}

impl SessionWindowExec {
    /// Over an exchange that brings the rows of a key together, into so many partitions. Update mode was
    /// [refused](crate::plan::check) before.
    pub(crate) fn over(
        spec: SessionSpec,
        input: Arc<dyn ExecutionPlan>,
        partitions: usize,
        mode: OutputMode,
    ) -> Result<Self> {
        let SessionSpec { keys, session, place, named, filters, schema } = spec;
        let functions = ours::replace(&named, &input.schema())?;
        let (mut arguments, mut orders) = (vec![], vec![]);
        for function in &functions {
            // Aggregates that go by an order are given the values to order by, too; some want their rows sorted.
            let order_by = function.order_bys();
            let values = order_by.iter().map(|by| Arc::clone(&by.expr));
            arguments.push(function.expressions().into_iter().chain(values).collect());
            let sorted = function.order_sensitivity().hard_requires();
            orders.push(if sorted { order_by.to_vec() } else { vec![] });
        }
        let input: Arc<dyn ExecutionPlan> = Arc::new(ExchangeExec::new(input, keys.clone(), partitions));
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            input.output_partitioning().clone(),
            EmissionType::Final,
            input.boundedness(),
        );
        Ok(SessionWindowExec {
            id: OperatorId(0),
            mode,
            keys,
            session,
            place,
            aggregates: Aggregates::try_new(&named, &functions, Code::Groups)?,
            arguments,
            filters,
            orders,
            schema,
            warned: Arc::default(),
            input,
            properties: Arc::new(properties),
        })
    }

    /// The place of the session among the columns of the output.
    pub(crate) fn place(&self) -> usize {
        self.place
    }

    /// The grouping keys beside the session, and last what a row brings to its session.
    pub(crate) fn key_exprs(&self) -> impl Iterator<Item = &Arc<dyn PhysicalExpr>> {
        self.keys.iter().chain([&self.session])
    }

    /// The aggregates, each with its FILTER.
    pub(crate) fn aggregate_exprs(
        &self,
    ) -> impl Iterator<Item = (&AggregateFunctionExpr, Option<&Arc<dyn PhysicalExpr>>)> {
        self.aggregates.named().zip(self.filters.iter().map(Option::as_ref))
    }

    /// The column of the sessions, as it comes out.
    fn session_field(&self) -> Result<&FieldRef> {
        match self.schema.fields().get(self.place) {
            Some(field) => Ok(field),
            None => internal_err!("a session window that is not a column"),
        }
    }

    /// The type of a session's start and end.
    fn bound(&self) -> Result<DataType> {
        match self.session_field()?.data_type() {
            DataType::Struct(bounds) if bounds.len() == 2 => Ok(bounds[0].data_type().clone()),
            other => internal_err!("a session of type {other}"),
        }
    }

    /// The rows of a batch that have a session and are not late.
    fn rows_in(&self, rows: RecordBatch, run: &OperatorBatch) -> Result<SessionRows> {
        let sessions = evaluate(&self.session, &rows)?;
        // Without a watermark, no row is late.
        let marked = is_event_time(self.session_field()?);
        let late_us = if marked { run.late_us() } else { i64::MIN };
        let (mut places, mut kept, mut late, mut without) = (vec![], vec![], 0, 0);
        for (row, stretch) in stretches(&sessions)?.into_iter().enumerate() {
            match stretch {
                Some((_, end)) if end <= late_us => late += 1,
                Some(stretch) => {
                    places.push(row as u32);
                    kept.push(stretch);
                }
                None => without += 1,
            }
        }
        run.count(Counts { rows_dropped_late: late, rows_without_session: without, ..Counts::default() });
        if without > 0 && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                operator = %self.id,
                "rows have no session, as their time is NULL or their gap is NULL, not above zero or of no fixed length; they \
                 are dropped, now and in later batches: `numRowsDroppedWithoutSession` of the progress says how many"
            );
        }
        let rows = match places.len() == rows.num_rows() {
            true => rows,
            false => take_record_batch(&rows, &UInt32Array::from(places))?,
        };
        let all = |exprs: &Vec<_>| exprs.iter().map(|expr| evaluate(expr, &rows)).collect::<Result<Vec<_>>>();
        let mask = |filter: &Option<_>| -> Result<Option<BooleanArray>> {
            filter.as_ref().map(|filter| Ok(evaluate(filter, &rows)?.as_boolean().clone())).transpose()
        };
        let indices = |order: &Vec<PhysicalSortExpr>| -> Result<Option<UInt32Array>> {
            if order.is_empty() {
                return Ok(None);
            }
            let columns = order.iter().map(|by| by.evaluate_to_sort_column(&rows)).collect::<Result<Vec<_>>>()?;
            Ok(Some(lexsort_to_indices(&columns, None)?))
        };
        Ok(SessionRows {
            keys: all(&self.keys)?,
            stretches: kept,
            arguments: self.arguments.iter().map(all).collect::<Result<_>>()?,
            filter_masks: self.filters.iter().map(mask).collect::<Result<_>>()?,
            sort_indices: self.orders.iter().map(indices).collect::<Result<_>>()?,
        })
    }
}

fn evaluate(expr: &Arc<dyn PhysicalExpr>, rows: &RecordBatch) -> Result<ArrayRef> {
    expr.evaluate(rows)?.into_array(rows.num_rows())
}

impl StatefulOperator for SessionWindowExec {
    fn with_id(&self, id: OperatorId) -> Arc<dyn ExecutionPlan> {
        Arc::new(SessionWindowExec { id, ..self.clone() })
    }

    fn spec(&self) -> StateSchema {
        let keys = self.schema.fields().iter().take(self.keys.len() + 1).enumerate();
        let bound = self.bound().unwrap_or(DataType::Null);
        StateSchema {
            operator: "sessionWindow",
            keys: keys.filter(|(place, _)| *place != self.place).map(|(_, field)| Arc::clone(field)).collect(),
            id: vec![Arc::new(Field::new("start", bound, false))],
            values: self.aggregates.state_fields(),
            description: self.aggregates.describe(),
            wrong_before: self.aggregates.wrong_before(),
            eviction_bounds: 1,
        }
    }

    fn new_partition(&self, resources: &Resources) -> Result<Box<dyn PartitionState>> {
        Ok(Box::new(SessionState::try_new(self.spec(), self.aggregates.clone(), self.bound()?, resources)?))
    }

    fn watermark(&self) -> WatermarkEffect {
        WatermarkEffect { output: OutputWatermark::SameAsInput, needs_no_data_batch: self.mode == OutputMode::Append }
    }
}

impl DisplayAs for SessionWindowExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let keys: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
        write!(
            f,
            "SessionWindowExec: operator={}, mode={}, keys=[{}], session={}, aggregates=[{}]",
            self.id,
            self.mode,
            keys.join(", "),
            self.session,
            self.aggregates.describe().join(", ")
        )
    }
}

impl SessionWindowExec {
    fn with_input(&self, input: Arc<dyn ExecutionPlan>) -> Self {
        SessionWindowExec { input, ..self.clone() }
    }
}

impl ExecutionPlan for SessionWindowExec {
    one_input!(SessionWindowExec);

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        let of_aggregates = self.arguments.iter().flatten().chain(self.filters.iter().flatten());
        apply_expression_roots(self.keys.iter().chain([&self.session]).chain(of_aggregates), f)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let run = BatchContext::of(&context)?.operator(self.id)?;
        let input = self.input.execute(partition, context)?;
        let this = self.clone();
        Ok(stream_once(Arc::clone(&self.schema), async move {
            let rows: Vec<_> = input.try_collect().await?;
            let mut state = run.state::<SessionState>(partition)?;
            let sizes = rows.iter().map(|rows| RowBytes::new(rows.columns()).of_rows(rows.num_rows()));
            for part in bounded_ranges(sizes, usize::MAX, state.limits().block_bytes) {
                let rows = this.rows_in(concat_batches(&this.input.schema(), &rows[part])?, &run)?;
                state.take_in(&rows, &run, partition)?;
            }
            if this.mode == OutputMode::Complete {
                return state.rows_out(&state.all(), this.place, &this.schema);
            }
            let due = state.due(&run)?;
            let out = state.rows_out(&due, this.place, &this.schema)?;
            state.evict(&due, &run)?;
            Ok(out)
        }))
    }
}
