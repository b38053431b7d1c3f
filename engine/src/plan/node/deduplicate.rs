//! `drop_duplicates` and `drop_duplicates_within_watermark` as a logical node.
//!
//! On a batch the former is DataFusion's `distinct_on`; on a stream both need state, and the node becomes a
//! [`DeduplicateExec`](crate::operator::deduplicate::DeduplicateExec). `DISTINCT` becomes one, too.

use std::cmp::Ordering;
use std::fmt;

use datafusion::common::{Column, DFSchemaRef};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};

/// The first row of each key passes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct DeduplicateNode {
    pub(crate) input: LogicalPlan,
    pub(crate) keys: Vec<Column>,
    pub(crate) within_watermark: bool,
}

impl PartialOrd for DeduplicateNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (&self.keys, self.within_watermark).partial_cmp(&(&other.keys, other.within_watermark)) {
            Some(Ordering::Equal) => self.input.partial_cmp(&other.input),
            unequal => unequal,
        }
    }
}

impl UserDefinedLogicalNodeCore for DeduplicateNode {
    fn name(&self) -> &str {
        "Deduplicate"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        self.input.schema()
    }

    fn expressions(&self) -> Vec<Expr> {
        self.keys.iter().cloned().map(Expr::Column).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let keys: Vec<String> = self.keys.iter().map(Column::flat_name).collect();
        let scope = if self.within_watermark { ", within watermark" } else { "" };
        write!(f, "Deduplicate: keys=[{}]{scope}", keys.join(", "))
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let input = inputs.pop().ok_or_else(|| DataFusionError::Internal("Deduplicate has one input".into()))?;
        let keys = exprs
            .into_iter()
            .map(|key| match key {
                Expr::Column(column) => Ok(column),
                other => Err(DataFusionError::Internal(format!("`{other}` is not a key of Deduplicate"))),
            })
            .collect::<Result<_>>()?;
        Ok(DeduplicateNode { input, keys, within_watermark: self.within_watermark })
    }
}
