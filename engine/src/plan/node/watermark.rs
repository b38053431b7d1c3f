//! `with_watermark` as a logical node: marks a column as event time, changes no row.
//!
//! The mark is metadata of the field. It travels with the column through filters, projections, aliases,
//! joins and grouping; an expression over the column loses it, as in Spark.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Column, DFSchema, DFSchemaRef};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};

use crate::error::Error;
use crate::interval::Interval;
use crate::watermark::event_time_metadata::event_time_marker;

/// The logical node of `with_watermark`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WatermarkNode {
    pub(crate) input: LogicalPlan,
    pub(crate) column: Column,
    pub(crate) delay_ms: i64,
    /// Its place among the watermarks of the query; given when the query is planned.
    pub(crate) number: usize,
    schema: DFSchemaRef,
}

impl WatermarkNode {
    /// Checks what Spark checks: a top-level column, a timestamp (or a window), a delay that is not negative, no earlier
    /// watermark.
    pub(crate) fn try_new(input: LogicalPlan, column: &str, delay: &Interval) -> Result<Self, Error> {
        let delay_ms = delay.non_negative_ms("the delay of a watermark")?;
        let schema = input.schema();
        // A dot may be part of the name.
        let column = match schema.qualified_field_with_unqualified_name(column) {
            Ok((qualifier, field)) => Column::new(qualifier.cloned(), field.name()),
            Err(_) => Column::from_qualified_name_ignore_case(column),
        };
        let (qualifier, field) = schema.qualified_field_from_column(&column).map_err(|e| {
            Error::invalid(format!("`{}` is not a column of this query: {e}", column.name)).with_hint(
                "a watermark needs a top-level column: select the nested field under a name of its own first",
            )
        })?;
        let column = Column::new(qualifier.cloned(), field.name());
        let is_time = match field.data_type() {
            DataType::Timestamp(_, _) => true,
            DataType::Struct(fields) => {
                fields.iter().any(|f| f.name() == "end" && matches!(f.data_type(), DataType::Timestamp(_, _)))
            }
            _ => false,
        };
        if !is_time {
            return Err(Error::invalid(format!(
                "a watermark needs a timestamp, and `{}` is of type {}",
                column.name,
                field.data_type()
            ))
            .with_hint("convert the column first, with `to_timestamp` say"));
        }
        if let Some(earlier) = Self::first_in(&input) {
            return Err(Error::invalid(format!("the query has a watermark already, on `{}`", earlier.column.name))
                .with_hint("a watermark can be set once per input, and not changed downstream"));
        }
        Ok(Self::new(input, column, delay_ms, 0)?)
    }

    /// The first watermark of a plan, from the top, whether its mark is still to be seen or not.
    fn first_in(plan: &LogicalPlan) -> Option<&WatermarkNode> {
        let own = match plan {
            LogicalPlan::Extension(extension) => extension.node.as_any().downcast_ref::<WatermarkNode>(),
            _ => None,
        };
        own.or_else(|| plan.inputs().into_iter().find_map(Self::first_in))
    }

    fn new(input: LogicalPlan, column: Column, delay_ms: i64, number: usize) -> Result<Self> {
        let mark = |field: &FieldRef| -> FieldRef {
            let mut metadata: HashMap<String, String> = field.metadata().clone();
            metadata.extend(event_time_marker());
            Arc::new(field.as_ref().clone().with_metadata(metadata))
        };
        let index = input.schema().index_of_column(&column)?;
        let fields = input
            .schema()
            .iter()
            .enumerate()
            .map(|(i, (qualifier, field))| {
                (qualifier.cloned(), if i == index { mark(field) } else { Arc::clone(field) })
            })
            .collect();
        let schema = DFSchema::new_with_metadata(fields, input.schema().metadata().clone())?;
        let schema = Arc::new(schema.with_functional_dependencies(input.schema().functional_dependencies().clone())?);
        Ok(WatermarkNode { input, column, delay_ms, number, schema })
    }

    /// The same node with its number.
    pub(crate) fn numbered(&self, number: usize) -> Self {
        WatermarkNode { number, ..self.clone() }
    }

    /// The position of the event-time column.
    pub(crate) fn column_index(&self) -> Result<usize> {
        self.schema.index_of_column(&self.column)
    }
}

impl Hash for WatermarkNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.input.hash(state);
        self.column.hash(state);
        self.delay_ms.hash(state);
    }
}

impl PartialOrd for WatermarkNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let key = |node: &Self| (node.column.flat_name(), node.delay_ms);
        match key(self).cmp(&key(other)) {
            Ordering::Equal => self.input.partial_cmp(&other.input),
            unequal => Some(unequal),
        }
    }
}

impl UserDefinedLogicalNodeCore for WatermarkNode {
    fn name(&self) -> &str {
        "Watermark"
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

    /// Only predicates on the event time stay above: rows that other predicates remove do not move the watermark.
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        HashSet::from([self.column.name.clone()])
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Watermark: {}, delay {} ms", self.column.flat_name(), self.delay_ms)
    }

    fn with_exprs_and_inputs(&self, _exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let input = inputs.pop().ok_or_else(|| DataFusionError::Internal("Watermark has one input".into()))?;
        Self::new(input, self.column.clone(), self.delay_ms, self.number)
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let event_time = self.column_index().ok()?;
        let mut columns = output_columns.to_vec();
        if !columns.contains(&event_time) {
            columns.push(event_time);
            columns.sort_unstable();
        }
        Some(vec![columns])
    }
}
