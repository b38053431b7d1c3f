//! Brings the rows of one key together in one partition.
//!
//! An exchange may also leave rows [in their partition](ExchangeExec::in_place): then it only makes sure that all that is
//! below runs to its end, though what is above may stop reading early, as a limit does.
//!
//! Here a plan is cut: everything below runs first, partition by partition, and its rows are distributed by the
//! [hash](crate::state::key_hash) of their keys; then what is above reads its share. Which partition owns a key follows
//! from the key alone, so it is the partition whose state knows it.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{EmissionType, SchedulingType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
};
use futures::{StreamExt, stream};

use crate::batch::BatchContext;
use crate::plan_node::one_input;
use crate::state::key_hash::{hash_keys, partition_of};
use crate::state::spelling::shrink_rows_to_fit;

/// How an exchange chooses the partition of a row.
#[derive(Debug, Clone)]
enum Routing {
    /// The key; without one, all rows go to the first partition.
    ByKey(Vec<Arc<dyn PhysicalExpr>>),
    /// Each stays in the partition it is in.
    InPlace,
}

/// The physical node of an exchange.
#[derive(Debug, Clone)]
pub(crate) struct ExchangeExec {
    /// Its place among the exchanges of the plan, those below others first.
    number: usize,
    routing: Routing,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl ExchangeExec {
    /// Exchanges the rows of `input` among `partitions` partitions. Without keys, everything goes to the first.
    pub(crate) fn new(input: Arc<dyn ExecutionPlan>, keys: Vec<Arc<dyn PhysicalExpr>>, partitions: usize) -> Self {
        let partitions = if keys.is_empty() { 1 } else { partitions.max(1) };
        Self::with_routing(input, Routing::ByKey(keys), partitions)
    }

    /// Leaves every row in its partition.
    pub(crate) fn in_place(input: Arc<dyn ExecutionPlan>) -> Self {
        let partitions = input.output_partitioning().partition_count();
        Self::with_routing(input, Routing::InPlace, partitions)
    }

    fn with_routing(input: Arc<dyn ExecutionPlan>, routing: Routing, partitions: usize) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(input.schema()),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            input.boundedness(),
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        ExchangeExec { number: 0, routing, input, properties: Arc::new(properties) }
    }

    pub(crate) fn number(&self) -> usize {
        self.number
    }

    pub(crate) fn with_number(&self, number: usize) -> Self {
        ExchangeExec { number, ..self.clone() }
    }

    pub(crate) fn partitions(&self) -> usize {
        self.properties.partitioning.partition_count()
    }

    pub(crate) fn input(&self) -> &Arc<dyn ExecutionPlan> {
        &self.input
    }

    /// The rows that a producer made, by the partition they belong to. They wait there, and keep nothing else in memory.
    pub(crate) fn split(&self, producer: usize, rows: RecordBatch) -> Result<Vec<(usize, RecordBatch)>> {
        let partitions = self.partitions();
        let keys = match &self.routing {
            Routing::InPlace => return Ok(vec![(producer, rows)]),
            Routing::ByKey(_) if partitions == 1 => return Ok(vec![(0, shrink_rows_to_fit(&rows)?)]),
            Routing::ByKey(keys) => keys,
        };
        let keys = keys
            .iter()
            .map(|key| key.evaluate(&rows)?.into_array(rows.num_rows()))
            .collect::<Result<Vec<ArrayRef>>>()?;
        let mut places = vec![vec![]; partitions];
        for (row, hash) in hash_keys(&keys, rows.num_rows())?.into_iter().enumerate() {
            places[partition_of(hash, partitions)].push(row as u32);
        }
        let mut dealt = vec![];
        for (partition, own) in places.into_iter().enumerate().filter(|(_, own)| !own.is_empty()) {
            let whole = own.len() == rows.num_rows();
            let own = if whole { rows.clone() } else { take_record_batch(&rows, &UInt32Array::from(own))? };
            dealt.push((partition, shrink_rows_to_fit(&own)?));
        }
        Ok(dealt)
    }
}

impl DisplayAs for ExchangeExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.routing {
            Routing::InPlace => write!(f, "ExchangeExec: in place, partitions={}", self.partitions()),
            Routing::ByKey(keys) => {
                let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
                write!(f, "ExchangeExec: keys=[{}], partitions={}", keys.join(", "), self.partitions())
            }
        }
    }
}

impl ExchangeExec {
    fn with_input(&self, input: Arc<dyn ExecutionPlan>) -> Self {
        let exchange = match &self.routing {
            Routing::InPlace => ExchangeExec::in_place(input),
            Routing::ByKey(keys) => ExchangeExec::new(input, keys.clone(), self.partitions()),
        };
        exchange.with_number(self.number)
    }
}

impl ExecutionPlan for ExchangeExec {
    one_input!(ExchangeExec);

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        let Routing::ByKey(keys) = &self.routing else { return Ok(TreeNodeRecursion::Continue) };
        for key in keys {
            if f(key)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }

    /// What the stage below wrote for this partition.
    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let dealt = BatchContext::of(&context)?.exchange_read(self.number, partition, &self.schema())?;
        let rows = stream::iter(dealt).flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}
