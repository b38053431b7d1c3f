//! Groups that live longer than a batch.
//!
//! DataFusion aggregates in two steps: `Partial` makes one row of *partial state* per group and partition, `Final` merges
//! these and evaluates. [`StatefulAggregateExec`] takes the place of `Final`. What it keeps per group is partial state, in
//! columns; so everything DataFusion can aggregate, UDAFs, FILTER, DISTINCT and ORDER BY included, can live on:
//!
//! ```text
//! Partial of this batch ─┐
//!                        ├─ merge_batch(old), merge_batch(new) ─▶ state() ─▶ kept, and written as the batch's changes
//! kept from before ──────┘                                           └─▶ evaluate() ─▶ rows out
//! ```
//!
//! | mode | rows out |
//! |---|---|
//! | append | the groups that the watermark has passed, once, as they are evicted |
//! | update | every group that a row of this batch fell into |
//! | complete | all groups |
//!
//! An aggregate without keys has one group, which is there before any row and is given out by every batch. DataFusion
//! computes it with other code than groups, whose partial state is another: so do we ([`Code`]). Some functions have
//! [code of ours](ours).

mod accumulate;

mod groups;

pub(crate) mod ours;

mod state;

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, SchemaRef};
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_plan::execution_plan::EmissionType;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties};
use futures::TryStreamExt;

pub(crate) use self::accumulate::{Aggregates, Code};
use self::state::AggregateState;
use super::StatefulOperator;
use super::late_rows::SharedId;
use super::output::stream_once;
use crate::batch::BatchContext;
use crate::output_mode::OutputMode;
use crate::plan_node::{no_expressions, one_input};
use crate::state::{OperatorId, PartitionState, Resources, StateSchema};
use crate::watermark::event_time_metadata::window_us;
use crate::watermark::{OutputWatermark, WatermarkEffect};

/// The physical node of a stateful aggregation.
#[derive(Debug, Clone)]
pub(crate) struct StatefulAggregateExec {
    id: SharedId,
    mode: OutputMode,
    /// The keys as they come out.
    keys: Vec<FieldRef>,
    /// The key that determines when a group is final.
    time_key: Option<usize>,
    aggregates: Aggregates,
    schema: SchemaRef,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

/// What the group of an aggregate without keys is found by.
fn only_group() -> FieldRef {
    Arc::new(Field::new("group", DataType::UInt8, false))
}

impl StatefulAggregateExec {
    /// Merges the rows of `input`, partial state of the aggregates exchanged by its keys, into rows of `schema`: `keys`
    /// of them are keys. `time_key` is the key that determines when a group is final. The operator will store its
    /// number in `id`.
    pub(crate) fn try_new(
        id: SharedId,
        mode: OutputMode,
        (keys, time_key): (usize, Option<usize>),
        aggregates: Aggregates,
        schema: SchemaRef,
        input: Arc<dyn ExecutionPlan>,
    ) -> Result<Self> {
        let fields = schema.fields().iter().take(keys).map(Arc::clone).collect();
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            input.output_partitioning().clone(),
            EmissionType::Final,
            input.boundedness(),
        );
        Ok(StatefulAggregateExec {
            id,
            mode,
            keys: fields,
            time_key,
            aggregates,
            schema,
            input,
            properties: Arc::new(properties),
        })
    }

    /// The aggregates, as the user named them.
    pub(crate) fn named(&self) -> impl Iterator<Item = &AggregateFunctionExpr> {
        self.aggregates.named()
    }
}

impl StatefulOperator for StatefulAggregateExec {
    fn with_id(&self, id: OperatorId) -> Arc<dyn ExecutionPlan> {
        self.id.set(id);
        Arc::new(self.clone())
    }

    fn spec(&self) -> StateSchema {
        // The length of windows gives meaning to their starts.
        let windows = self.keys.iter().filter_map(|key| Some(format!("windows of {} µs", window_us(key)?)));
        let description = windows.chain(self.aggregates.describe()).collect();
        StateSchema {
            operator: "aggregate",
            keys: if self.keys.is_empty() { vec![only_group()] } else { self.keys.clone() },
            id: vec![],
            values: self.aggregates.state_fields(),
            description,
            wrong_before: self.aggregates.wrong_before(),
            eviction_bounds: 1,
        }
    }

    fn new_partition(&self, resources: &Resources) -> Result<Box<dyn PartitionState>> {
        Ok(Box::new(AggregateState::try_new(
            self.spec(),
            self.time_key,
            self.keys.is_empty(),
            self.aggregates.clone(),
            resources,
        )?))
    }

    fn watermark(&self) -> WatermarkEffect {
        WatermarkEffect { output: OutputWatermark::SameAsInput, needs_no_data_batch: self.mode != OutputMode::Complete }
    }

    fn unbounded(&self) -> Option<String> {
        let keys: Vec<&str> = self.keys.iter().map(|key| key.name().as_str()).collect();
        let grows = self.time_key.is_none() && !keys.is_empty();
        grows.then(|| format!("the groups of the aggregation by {} are never evicted", keys.join(", ")))
    }
}

impl DisplayAs for StatefulAggregateExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let keys: Vec<&str> = self.keys.iter().map(|key| key.name().as_str()).collect();
        write!(
            f,
            "StatefulAggregateExec: operator={}, mode={}, keys=[{}], aggregates=[{}]",
            self.id.get(),
            self.mode,
            keys.join(", "),
            self.aggregates.describe().join(", ")
        )?;
        match self.time_key.and_then(|key| self.keys.get(key)) {
            Some(key) => write!(f, ", final by={}", key.name()),
            None => Ok(()),
        }
    }
}

impl StatefulAggregateExec {
    fn with_input(&self, input: Arc<dyn ExecutionPlan>) -> Self {
        StatefulAggregateExec { input, ..self.clone() }
    }
}

impl ExecutionPlan for StatefulAggregateExec {
    one_input!(StatefulAggregateExec);
    no_expressions!();

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let run = BatchContext::of(&context)?.operator(self.id.get())?;
        let input = self.input.execute(partition, context)?;
        let (mode, schema) = (self.mode, Arc::clone(&self.schema));
        Ok(stream_once(Arc::clone(&self.schema), async move {
            let rows: Vec<_> = input.try_collect().await?;
            let mut state = run.state::<AggregateState>(partition)?;
            let touched = state.merge(&rows, &run, partition)?;
            match mode {
                OutputMode::Append => {
                    let due = state.due(run.evict_us())?;
                    let out = state.rows_out(&due, &schema)?;
                    state.evict(&due, &run)?;
                    Ok(out)
                }
                OutputMode::Update => {
                    let out = state.touched_out(touched, &schema)?;
                    let due = state.due(run.evict_us())?;
                    state.evict(&due, &run)?;
                    Ok(out)
                }
                OutputMode::Complete => {
                    let all = state.all();
                    state.rows_out(&all, &schema)
                }
            }
        }))
    }
}
