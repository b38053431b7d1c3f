//! DataFusion's aggregate functions, fed with partial state.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::FieldRef;
use datafusion::common::internal_err;
use datafusion::error::Result;
use datafusion::functions_aggregate::correlation::Correlation;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::GroupsAccumulatorAdapter;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use super::ours;
use crate::state::spelling::in_type;

/// With which of its two codes DataFusion makes the partial state of a function. What one writes the other cannot
/// always read, so all steps go by the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// That for many groups at once, where a function has it: with GROUP BY.
    Groups,
    /// That for one group: without.
    OneGroup,
}

/// The aggregates of an operator, in order, and the columns in which their partial state is kept.
#[derive(Debug, Clone)]
pub(crate) struct Aggregates {
    /// As the user named them.
    named: Vec<Arc<AggregateFunctionExpr>>,
    /// What computes them: the same, but for those whose code is [ours](super::ours).
    functions: Vec<Arc<AggregateFunctionExpr>>,
    code: Code,
    /// By function: its state columns.
    states: Vec<Vec<FieldRef>>,
}

impl Aggregates {
    /// The aggregates `named`, computed by `functions`.
    pub(crate) fn try_new(
        named: &[Arc<AggregateFunctionExpr>],
        functions: &[Arc<AggregateFunctionExpr>],
        code: Code,
    ) -> Result<Self> {
        let states = functions.iter().map(|function| function.state_fields()).collect::<Result<_>>()?;
        // What a function cannot do is said before the query starts.
        functions.iter().try_for_each(|function| function.create_accumulator().map(|_| ()))?;
        Ok(Aggregates { named: named.to_vec(), functions: functions.to_vec(), code, states })
    }

    /// Those, as a person would write them, of which older releases kept something wrong.
    pub(crate) fn wrong_before(&self) -> Vec<String> {
        let is_wrong = |function: &AggregateFunctionExpr| {
            let theirs = ours::is_datafusions(function);
            // Without GROUP BY the state of one code went into the other; those of DataFusion agree but for one function.
            let codes_met = self.code == Code::OneGroup
                && function.groups_accumulator_supported()
                && (!theirs || function.fun().inner().is::<Correlation>());
            codes_met || function.is_distinct() && !theirs
        };
        let wrong = self.named.iter().map(|function| is_wrong(function));
        self.describe().into_iter().zip(wrong).filter(|(_, wrong)| *wrong).map(|(text, _)| text).collect()
    }

    /// The functions, as the user named them.
    pub(crate) fn named(&self) -> impl Iterator<Item = &AggregateFunctionExpr> {
        self.named.iter().map(Arc::as_ref)
    }

    /// All state columns, function after function.
    pub(crate) fn state_fields(&self) -> Vec<FieldRef> {
        self.states.iter().flatten().map(Arc::clone).collect()
    }

    /// The functions as a person would write them.
    pub(crate) fn describe(&self) -> Vec<String> {
        let describe = |function: &Arc<AggregateFunctionExpr>| {
            let distinct = if function.is_distinct() { "DISTINCT " } else { "" };
            let arguments: Vec<String> = function.expressions().iter().map(without_places).collect();
            let order: Vec<String> = function.order_bys().iter().map(without_places).collect();
            let order = if order.is_empty() { String::new() } else { format!(" ORDER BY {}", order.join(", ")) };
            format!("{}({distinct}{}{order})", function.fun().name(), arguments.join(", "))
        };
        self.named.iter().map(describe).collect()
    }

    /// Fresh accumulators, one per function.
    pub(crate) fn accumulators(&self) -> Result<Accumulators> {
        let accumulators = self
            .functions
            .iter()
            .map(|function| {
                if self.code == Code::Groups && function.groups_accumulator_supported() {
                    return function.create_groups_accumulator();
                }
                let function = Arc::clone(function);
                let one_per_group = GroupsAccumulatorAdapter::new(move || function.create_accumulator());
                Ok(Box::new(one_per_group) as Box<dyn GroupsAccumulator>)
            })
            .collect::<Result<_>>()?;
        Ok(Accumulators { accumulators, code: self.code, states: self.states.clone() })
    }

    /// The values of groups whose state is given, one group per row.
    pub(crate) fn evaluate(&self, states: &[ArrayRef], groups: usize) -> Result<Vec<ArrayRef>> {
        let mut accumulators = self.accumulators()?;
        accumulators.merge(states, &(0..groups).collect::<Vec<_>>(), groups)?;
        accumulators.evaluate()
    }
}

/// An expression over columns, without the places these have among others.
fn without_places(expr: &impl ToString) -> String {
    let text = expr.to_string();
    let mut parts = text.split('@');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// One accumulator per aggregate.
pub(crate) struct Accumulators {
    accumulators: Vec<Box<dyn GroupsAccumulator>>,
    code: Code,
    /// By accumulator: its state columns.
    states: Vec<Vec<FieldRef>>,
}

impl Accumulators {
    /// Takes in rows: row i goes into group `groups[i]` of `total_groups`. For function f: `arguments[f]`, the mask of
    /// the rows it takes (`filters[f]`, all without one), and the order it takes them in (`sort_indices[f]`, any
    /// without one).
    pub(crate) fn update(
        &mut self,
        arguments: &[Vec<ArrayRef>],
        filters: &[Option<BooleanArray>],
        sort_indices: &[Option<UInt32Array>],
        groups: &[usize],
        total_groups: usize,
    ) -> Result<()> {
        let by_function = self.accumulators.iter_mut().zip(arguments).zip(filters).zip(sort_indices);
        for (((accumulator, arguments), filters), sort_indices) in by_function {
            let Some(sort_indices) = sort_indices else {
                accumulator.update_batch(arguments, groups, filters.as_ref(), total_groups)?;
                continue;
            };
            let in_order = |array: &ArrayRef| take(array, sort_indices, None);
            let arguments = arguments.iter().map(in_order).collect::<std::result::Result<Vec<_>, _>>()?;
            let filters = filters.as_ref().map(|filters| take(filters, sort_indices, None)).transpose()?;
            let filters = filters.as_ref().map(|filters| filters.as_boolean());
            let groups: Vec<usize> = sort_indices.values().iter().map(|&row| groups[row as usize]).collect();
            accumulator.update_batch(&arguments, &groups, filters, total_groups)?;
        }
        Ok(())
    }

    /// Merges rows of partial state: row i goes into group `groups[i]` of `total_groups`.
    pub(crate) fn merge(&mut self, states: &[ArrayRef], groups: &[usize], total_groups: usize) -> Result<()> {
        let mut rest = states;
        for (accumulator, fields) in self.accumulators.iter_mut().zip(&self.states) {
            let Some((own, others)) = rest.split_at_checked(fields.len()) else {
                return internal_err!("partial state lacks columns");
            };
            match self.code {
                Code::Groups => accumulator.merge_batch(own, groups, total_groups)?,
                // Row by row: DataFusion's `percentile_cont` for one group takes only the first of several.
                Code::OneGroup => {
                    for (row, group) in groups.iter().enumerate() {
                        let state: Vec<ArrayRef> = own.iter().map(|column| column.slice(row, 1)).collect();
                        accumulator.merge_batch(&state, &[*group], total_groups)?;
                    }
                }
            }
            rest = others;
        }
        Ok(())
    }

    /// The partial state of all groups.
    pub(crate) fn state(mut self) -> Result<Vec<ArrayRef>> {
        let mut columns = vec![];
        for (accumulator, fields) in self.accumulators.iter_mut().zip(&self.states) {
            let state = accumulator.state(EmitTo::All)?;
            if state.len() != fields.len() {
                return internal_err!("partial state has {} columns and not {}", state.len(), fields.len());
            }
            // Scalars know less of a type than its field: the names within a list, say.
            for (column, field) in state.iter().zip(fields) {
                columns.push(in_type(column, field.data_type())?);
            }
        }
        Ok(columns)
    }

    /// The values of all groups.
    pub(crate) fn evaluate(mut self) -> Result<Vec<ArrayRef>> {
        self.accumulators.iter_mut().map(|accumulator| accumulator.evaluate(EmitTo::All)).collect()
    }
}
