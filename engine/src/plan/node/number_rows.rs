//! Gives every row of a batch a number of its own, in one more column.
//!
//! What is [drawn](crate::plan::random) for a row goes by this number. No predicate on it sinks below: which number a row
//! gets is decided where the user's query draws.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use datafusion::common::{Column, DFSchema, DFSchemaRef};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};

/// The logical node that numbers rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NumberRowsNode {
    pub(crate) input: LogicalPlan,
    /// The name of the new column, which comes last.
    column: String,
    schema: DFSchemaRef,
}

impl NumberRowsNode {
    /// Over `input`; `place` distinguishes the places of a query that draw random numbers.
    pub(crate) fn try_new(input: LogicalPlan, place: usize) -> Result<Self> {
        Self::named(input, format!("__tidewater_row_{place}"))
    }

    /// Over `VALUES` that are computed by their rows.
    pub(crate) fn of_values(input: LogicalPlan, place: usize) -> Result<Self> {
        Self::named(input, format!("__tidewater_value_{place}"))
    }

    fn named(input: LogicalPlan, column: String) -> Result<Self> {
        let own = (None, Arc::new(Field::new(&column, DataType::UInt64, false)));
        let fields = input.schema().iter().map(|(qualifier, field)| (qualifier.cloned(), Arc::clone(field)));
        let schema = DFSchema::new_with_metadata(fields.chain([own]).collect(), input.schema().metadata().clone())?;
        Ok(NumberRowsNode { input, column, schema: Arc::new(schema) })
    }

    /// The new column.
    pub(crate) fn number(&self) -> Expr {
        Expr::Column(Column::new_unqualified(&self.column))
    }
}

impl Hash for NumberRowsNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.input.hash(state);
        self.column.hash(state);
    }
}

impl PartialOrd for NumberRowsNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match self.column.cmp(&other.column) {
            Ordering::Equal => self.input.partial_cmp(&other.input),
            unequal => Some(unequal),
        }
    }
}

impl UserDefinedLogicalNodeCore for NumberRowsNode {
    fn name(&self) -> &str {
        "NumberRows"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![]
    }

    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        self.schema.fields().iter().map(|field| field.name().clone()).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "NumberRows: {}", self.column)
    }

    fn with_exprs_and_inputs(&self, _exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let input = inputs.pop().ok_or_else(|| DataFusionError::Internal("NumberRows has one input".into()))?;
        Self::named(input, self.column.clone())
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let own = self.input.schema().fields().len();
        Some(vec![output_columns.iter().copied().filter(|column| *column != own).collect()])
    }
}
