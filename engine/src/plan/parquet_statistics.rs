//! Nothing is concluded from the statistics of Parquet files that they do not imply.
//!
//! The least and the greatest value of a column leave NaN out, which DataFusion takes for greater than all numbers
//! (<https://github.com/apache/datafusion/issues/15812>): of `x > 2` rows with NaN would be lost, of `x = 1` they would pass
//! unasked. Those of a whole file leave out the parts that have none
//! (<https://github.com/apache/datafusion/issues/25226>). And where the two of a file are equal, its scan reads no column but
//! gives that value for every row, NaN or not. So
//!
//! - what is known of whole files serves to estimate, and for nothing else ([`DoubtFileStatistics`]);
//! - the predicate of a scan hides columns of floats in an expression that means the same, and that no statistics
//!   speak of ([`HideFloats`]). Rows are still filtered by it, where a scan is set to do so.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef, Schema};
use arrow::record_batch::RecordBatch;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, FileSource, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, IsNotNullExpr, IsNullExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;

/// The name of the rule, by which a session knows that it has it.
pub(super) const HIDE_FLOATS: &str = "tidewater_hide_floats_from_statistics";

/// The rule that makes the statistics of Parquet files inexact. Runs first: DataFusion's rules answer `max(x)` from
/// statistics, and leave out a sort.
#[derive(Debug)]
pub(super) struct DoubtFileStatistics;

impl PhysicalOptimizerRule for DoubtFileStatistics {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|plan| {
            let Some((scan, _)) = plan
                .downcast_ref::<DataSourceExec>()
                .and_then(DataSourceExec::downcast_to_file_source::<ParquetSource>)
            else {
                return Ok(Transformed::no(plan));
            };
            let mut statistics = scan.statistics();
            for column in &mut statistics.column_statistics {
                column.min_value = std::mem::take(&mut column.min_value).to_inexact();
                column.max_value = std::mem::take(&mut column.max_value).to_inexact();
            }
            let without = |group: &FileGroup| -> FileGroup {
                let files = group.iter().cloned();
                FileGroup::new(files.map(|file| PartitionedFile { statistics: None, ..file }).collect())
            };
            let groups = scan.file_groups.iter().map(without).collect();
            let scan = FileScanConfigBuilder::from(scan.clone()).with_file_groups(groups).with_statistics(statistics);
            Ok(Transformed::yes(DataSourceExec::from_data_source(scan.build()) as _))
        })
        .data()
    }

    fn name(&self) -> &str {
        "tidewater_doubt_file_statistics"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The rule that hides columns of floats from scans. Runs last, when all predicates have reached the scans.
#[derive(Debug)]
pub(super) struct HideFloats;

impl PhysicalOptimizerRule for HideFloats {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|plan| {
            let Some((scan, source)) = plan
                .downcast_ref::<DataSourceExec>()
                .and_then(DataSourceExec::downcast_to_file_source::<ParquetSource>)
            else {
                return Ok(Transformed::no(plan));
            };
            let Some(predicate) = source.filter() else { return Ok(Transformed::no(plan)) };
            let hidden = hide(predicate, source.table_schema().table_schema())?;
            if !hidden.transformed {
                return Ok(Transformed::no(plan));
            }
            let source = Arc::new(source.with_predicate(hidden.data));
            let scan = FileScanConfigBuilder::from(scan.clone()).with_source(source).build();
            Ok(Transformed::yes(DataSourceExec::from_data_source(scan) as _))
        })
        .data()
    }

    fn name(&self) -> &str {
        HIDE_FLOATS
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The predicate with its columns of floats hidden. How many nulls there are, statistics know.
fn hide(predicate: Arc<dyn PhysicalExpr>, schema: &Schema) -> Result<Transformed<Arc<dyn PhysicalExpr>>> {
    predicate.transform_down(|expr| {
        if expr.is::<IsNullExpr>() || expr.is::<IsNotNullExpr>() || expr.is::<Hidden>() {
            return Ok(Transformed::new(expr, false, TreeNodeRecursion::Jump));
        }
        if !expr.is::<Column>() || !is_float(&expr.data_type(schema)?) {
            return Ok(Transformed::no(expr));
        }
        Ok(Transformed::new(Arc::new(Hidden(expr)), true, TreeNodeRecursion::Jump))
    })
}

fn is_float(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, values) => is_float(values),
        DataType::RunEndEncoded(_, values) => is_float(values.data_type()),
        other => other.is_floating(),
    }
}

/// What it holds, and nothing that statistics could be asked about.
#[derive(Debug, Eq)]
struct Hidden(Arc<dyn PhysicalExpr>);

impl PartialEq for Hidden {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq(&other.0)
    }
}

impl Hash for Hidden {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Display for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl PhysicalExpr for Hidden {
    fn return_field(&self, input_schema: &Schema) -> Result<FieldRef> {
        self.0.return_field(input_schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        self.0.evaluate(batch)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.0]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        let child = children.pop().ok_or_else(|| DataFusionError::Internal("a hidden column has one child".into()))?;
        Ok(Arc::new(Hidden(child)))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt_sql(f)
    }
}
