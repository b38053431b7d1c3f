//! An aggregation by sessions of a stream, as a logical node.
//!
//! It stands for the `Aggregate` it was made of, with the same columns: keys, one of which is the session, then
//! aggregates.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::Field;
use datafusion::common::{DFSchema, DFSchemaRef};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Aggregate, Expr, ExprSchemable, LogicalPlan, UserDefinedLogicalNodeCore};

/// The logical node of session windows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionNode {
    pub(crate) input: LogicalPlan,
    /// The grouping keys. At the place of the session: what a row brings to its session, a struct of start and end.
    pub(crate) keys: Vec<Expr>,
    /// Which key is the session.
    pub(crate) session: usize,
    pub(crate) aggregates: Vec<Expr>,
    schema: DFSchemaRef,
}

impl SessionNode {
    /// From an aggregation whose key number `session` is a session, to which each row brings `stretch`.
    pub(crate) fn new(aggregate: Aggregate, session: usize, stretch: Expr) -> Self {
        let Aggregate { input, group_expr: mut keys, aggr_expr: aggregates, schema, .. } = aggregate;
        if let Some(key) = keys.get_mut(session) {
            *key = stretch;
        }
        SessionNode { input: Arc::unwrap_or_clone(input), keys, session, aggregates, schema }
    }
}

impl Hash for SessionNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.input.hash(state);
        self.keys.hash(state);
        self.session.hash(state);
        self.aggregates.hash(state);
    }
}

impl PartialOrd for SessionNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (&self.keys, self.session, &self.aggregates).partial_cmp(&(&other.keys, other.session, &other.aggregates))
        {
            Some(Ordering::Equal) => self.input.partial_cmp(&other.input),
            unequal => unequal,
        }
    }
}

impl UserDefinedLogicalNodeCore for SessionNode {
    fn name(&self) -> &str {
        "Session"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        self.keys.iter().chain(&self.aggregates).cloned().collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let list = |exprs: &[Expr]| exprs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        write!(f, "Session: keys=[{}], aggregates=[{}]", list(&self.keys), list(&self.aggregates))
    }

    /// Rewritten expressions keep their names. Their types may be others: those of before are not kept.
    fn with_exprs_and_inputs(&self, mut exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let input = inputs.pop().ok_or_else(|| DataFusionError::Internal("Session has one input".into()))?;
        if exprs.len() != self.keys.len() + self.aggregates.len() {
            return Err(DataFusionError::Internal(format!("Session got {} expressions", exprs.len())));
        }
        let schema = Arc::new(columns(&self.schema, &exprs, &input)?);
        let aggregates = exprs.split_off(self.keys.len());
        Ok(SessionNode { input, keys: exprs, session: self.session, aggregates, schema })
    }

    /// Of the input, only what the expressions name, whatever is wanted of the output.
    fn necessary_children_exprs(&self, _output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        Some(vec![vec![]])
    }
}

/// The columns that `exprs` give over `input`, under the names that `named` has for them.
fn columns(named: &DFSchema, exprs: &[Expr], input: &LogicalPlan) -> Result<DFSchema> {
    let column = |(expr, (qualifier, field)): (&Expr, (Option<&_>, &Arc<Field>))| {
        let (_, own) = expr.to_field(input.schema())?;
        Ok((qualifier.cloned(), Arc::new(own.as_ref().clone().with_name(field.name()))))
    };
    let columns = exprs.iter().zip(named.iter()).map(column).collect::<Result<Vec<_>>>()?;
    let schema = DFSchema::new_with_metadata(columns, named.metadata().clone())?;
    schema.with_functional_dependencies(named.functional_dependencies().clone())
}
