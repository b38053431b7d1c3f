//! The leaf in the plan: a stream while the query is written, one batch's rows while it runs.
//!
//! ```text
//! StreamTable       what a DataFrame is built on: knows the source
//! StreamTableExec   what a batch's plan has in its place: can be shown by EXPLAIN, refuses to be collected
//! StreamLeaf        the same place once the query is optimised: knows its number, remembers projection and filters
//! StreamScanExec    the same place in the physical plan: runs the plan that its source has for this batch
//! ```

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{Statistics, plan_err, project_schema};
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, SchedulingType};
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, EmptyRecordBatchStream, ExecutionPlan, Partitioning, PlanProperties,
};
use futures::{StreamExt, TryStreamExt, stream};

use super::{FILE_NAME_COLUMN, ScanRequest, Source};
use crate::batch::{BatchContext, with_schema};
use crate::executor::yield_now;
use crate::id::LeafId;
use crate::plan_node::{no_expressions, no_inputs};
use crate::progress::Phase;

/// A source as a table of DataFusion: what `read_stream` puts under a `DataFrame`. It plans like any table, but
/// collecting it fails: a stream has no end to wait for.
#[derive(Debug)]
pub struct StreamTable {
    source: Arc<dyn Source>,
    schema: SchemaRef,
}

impl StreamTable {
    /// The stream of this source.
    pub fn new(source: Arc<dyn Source>) -> Self {
        StreamTable { schema: source.schema(), source }
    }

    /// The stream of a source that [knows its files](Source::knows_file_names), with their names as its last column.
    pub(crate) fn with_file_names(source: Arc<dyn Source>) -> Self {
        let schema = source.schema();
        let name = Arc::new(Field::new(FILE_NAME_COLUMN, DataType::Utf8, false));
        let fields: Fields = schema.fields().iter().cloned().chain([name]).collect();
        StreamTable { schema: Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone())), source }
    }

    /// The source.
    pub fn source(&self) -> &Arc<dyn Source> {
        &self.source
    }
}

#[async_trait]
impl TableProvider for StreamTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = project_schema(&self.schema, projection)?;
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Arc::new(StreamTableExec { description: self.source.description(), properties: Arc::new(properties) }))
    }
}

/// A stream in the plan of a batch: there to be looked at.
#[derive(Debug)]
struct StreamTableExec {
    description: String,
    properties: Arc<PlanProperties>,
}

impl DisplayAs for StreamTableExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "StreamTableExec: source={}; `explain` of a started query shows what its batches run",
            self.description
        )
    }
}

impl ExecutionPlan for StreamTableExec {
    no_inputs!(StreamTableExec);
    no_expressions!();

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn execute(&self, _partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        plan_err!(
            "this query reads a stream ({}), which has no end to wait for: start it with `write_stream(sink)` instead of \
             collecting it, or read the same data as a table",
            self.description
        )
    }
}

/// Takes the place of a [`StreamTable`] in an optimised plan. Planning it gives a [`StreamScanExec`].
#[derive(Debug)]
pub(crate) struct StreamLeaf {
    pub(crate) id: LeafId,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) schema: SchemaRef,
    pub(crate) partitions: usize,
}

#[async_trait]
impl TableProvider for StreamLeaf {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let projection = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let schema = Arc::new(self.schema.project(&projection)?);
        Ok(Arc::new(StreamScanExec::new(self, ScanRequest { projection, schema, filters: filters.to_vec() })))
    }
}

/// Runs, for each batch, the plan that its source has for it: bound by its reader, or a scan of splits. Reports a huge and
/// never an exact number of rows, so that a static table is always the kept side of a join and no count is folded into the
/// plan.
#[derive(Debug, Clone)]
pub(crate) struct StreamScanExec {
    leaf: LeafId,
    description: String,
    emits_dead_letters: bool,
    request: ScanRequest,
    properties: Arc<PlanProperties>,
}

const ROWS_ESTIMATE: usize = 1_000_000_000;

impl StreamScanExec {
    fn new(leaf: &StreamLeaf, request: ScanRequest) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&request.schema)),
            Partitioning::UnknownPartitioning(leaf.partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        StreamScanExec {
            leaf: leaf.id,
            description: leaf.source.description(),
            emits_dead_letters: leaf.source.emits_dead_letters(),
            request,
            properties: Arc::new(properties),
        }
    }

    /// Whether what is read here may bring dead letters.
    pub(crate) fn emits_dead_letters(&self) -> bool {
        self.emits_dead_letters
    }

    fn partitions(&self) -> usize {
        self.properties.partitioning.partition_count()
    }
}

/// Leaf number and request of a plan node, if it is a streaming leaf.
pub(crate) fn scan_request(plan: &dyn ExecutionPlan) -> Option<(LeafId, &ScanRequest)> {
    plan.downcast_ref::<StreamScanExec>().map(|scan| (scan.leaf, &scan.request))
}

impl DisplayAs for StreamScanExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let columns: Vec<&str> = self.request.schema.fields().iter().map(|field| field.name().as_str()).collect();
        write!(f, "StreamScanExec: source={}, projection=[{}]", self.description, columns.join(", "))?;
        if !self.request.filters.is_empty() {
            let filters: Vec<String> = self.request.filters.iter().map(ToString::to_string).collect();
            write!(f, ", filters=[{}]", filters.join(", "))?;
        }
        Ok(())
    }
}

impl ExecutionPlan for StreamScanExec {
    no_inputs!(StreamScanExec);
    no_expressions!();

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    /// Partition p runs the partitions p, p + n, p + 2n … of the source's plan one after the other, n being the partitions of the
    /// leaf.
    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batch = BatchContext::of(&context)?;
        let schema = Arc::clone(&self.request.schema);
        let Some(bound) = batch.leaf(self.leaf)?.map(Arc::clone) else {
            return Ok(Box::pin(EmptyRecordBatchStream::new(schema)));
        };
        let bound_partitions = bound.properties().output_partitioning().partition_count();
        let output_schema = Arc::clone(&schema);
        let (leaf, whose): (_, Arc<str>) = (self.leaf, format!("the source `{}`", self.description).into());
        let bound = stream::iter((partition..bound_partitions).step_by(self.partitions()))
            .map(move |bound_partition| bound.execute(bound_partition, Arc::clone(&context)))
            .try_flatten();
        let reading = Some((Box::pin(bound), batch, false));
        let rows = stream::unfold(reading, move |reading| {
            let (whose, output_schema) = (Arc::clone(&whose), Arc::clone(&output_schema));
            async move {
                let (mut bound, batch, has_read) = reading?;
                if has_read {
                    yield_now().await;
                }
                let read = async { Ok(bound.try_next().await?) };
                match batch.calls().call(Phase::AddBatch, || whose.to_string(), read).await {
                    Ok(Some(rows)) => {
                        batch.count_rows(leaf, rows.num_rows());
                        // The plan was made for the leaf's schema; sources may differ in metadata only.
                        let rows = batch
                            .check_cancelled()
                            .map_err(Into::into)
                            .and_then(|()| with_schema(&rows, &output_schema));
                        let goes_on = rows.is_ok().then_some((bound, batch, true));
                        Some((rows, goes_on))
                    }
                    Ok(None) => None,
                    Err(error) => Some((Err(error.into()), None)),
                }
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }

    fn statistics_from_inputs(
        &self,
        _input_stats: &[Arc<Statistics>],
        _args: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        let schema: &Schema = &self.request.schema;
        Ok(Arc::new(Statistics::new_unknown(schema).with_num_rows(Precision::Inexact(ROWS_ESTIMATE))))
    }
}
