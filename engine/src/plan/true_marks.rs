//! Takes the mark of event time from what is computed from an event time and is another time.
//!
//! DataFusion hands the metadata of a field, our mark among them, on through every cast, through aggregates that give one of the
//! values they saw (`first_value`), and from any branch of a UNION to all. The day of a time is earlier than the time: rows by
//! it would be late that are not, and dropped. So the mark stays on columns, on casts that leave the instant what it is, on our
//! windows, and on columns of a UNION whose branches agree. Spark takes it from every expression.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Column, DFSchema};
use datafusion::error::Result;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Aggregate, Expr, ExprSchemable, LogicalPlan, Projection, Union};

use super::join_bounds::same_instant;
use crate::watermark::event_time_metadata::{is_event_time, plainly_marked, size_us, window_us, without_marks};
use crate::window::functions::{Kind, is_function, udf};

/// The user's plan, in which only what is an event time is marked as one.
pub(super) fn keep_true_marks(plan: LogicalPlan) -> Result<LogicalPlan> {
    rewrite(plan, |node| match node {
        LogicalPlan::Aggregate(aggregate) => unmark_aggregates(aggregate),
        LogicalPlan::Union(union) => unmark_union(union),
        node => unmark_expressions(node),
    })
}

/// The same for an optimised plan: DataFusion has turned functions (`arrow_cast`) into casts, which hand the mark on, and made
/// unions anew of branches with such casts.
pub(super) fn keep_true_marks_of_casts(plan: LogicalPlan) -> Result<LogicalPlan> {
    rewrite(plan, |node| match node {
        LogicalPlan::Union(union) => unmark_union(union),
        node => unmark_expressions(node),
    })
}

fn rewrite(
    plan: LogicalPlan,
    of_node: impl Fn(LogicalPlan) -> Result<Transformed<LogicalPlan>>,
) -> Result<LogicalPlan> {
    let mut found = false;
    plan.transform_up_with_subqueries(|node| {
        // What is above a node whose columns have lost marks has lost them, too.
        let node = if found { node.recompute_schema()? } else { node };
        let node = of_node(node)?;
        found |= node.transformed;
        Ok(Transformed::new_transformed(node.data, found))
    })
    .data()
}

/// Expressions of a projection or an aggregation, each part by itself: the mark of a part is taken over by what is around it.
fn unmark_expressions(node: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    if !matches!(node, LogicalPlan::Projection(_) | LogicalPlan::Aggregate(_)) {
        return Ok(Transformed::no(node));
    }
    let Some(schema) = node.inputs().first().map(|input| Arc::clone(input.schema())) else {
        return Ok(Transformed::no(node));
    };
    if !schema.fields().iter().any(|field| is_event_time(field)) {
        return Ok(Transformed::no(node));
    }
    let names = NamePreserver::new(&node);
    let node = node.map_expressions(|expr| {
        let name = names.save(&expr);
        let unmarked = expr.transform_up(|part| {
            if hands_on_wrongly(&part, &schema)? {
                return Ok(Transformed::yes(unmarked(part)));
            }
            // It was without before.
            match part {
                Expr::ScalarFunction(mut call) if is_function(&call, Kind::Unmark) => match call.args.pop() {
                    Some(Expr::ScalarFunction(inner)) if is_function(&inner, Kind::Unmark) => {
                        Ok(Transformed::yes(Expr::ScalarFunction(inner)))
                    }
                    value => {
                        call.args.extend(value);
                        Ok(Transformed::no(Expr::ScalarFunction(call)))
                    }
                },
                part => Ok(Transformed::no(part)),
            }
        })?;
        Ok(unmarked.update_data(|expr| name.restore(expr)))
    })?;
    if node.transformed { node.map_data(LogicalPlan::recompute_schema) } else { Ok(node) }
}

fn unmarked(value: Expr) -> Expr {
    udf(Kind::Unmark).call(vec![value])
}

/// Whether an expression is marked and computes another time than the one that gave it the mark.
fn hands_on_wrongly(expr: &Expr, schema: &DFSchema) -> Result<bool> {
    let (from, is_cast) = match expr {
        Expr::Cast(cast) => (&*cast.expr, true),
        Expr::TryCast(cast) => (&*cast.expr, true),
        Expr::Negative(of) => (&**of, false),
        // Functions of the user's, and what DataFusion's may hand on some day.
        Expr::ScalarFunction(call) if !Kind::is_any(call) => match call.args.first() {
            Some(first) => (first, matches!(call.name(), "arrow_cast" | "arrow_try_cast")),
            None => return Ok(false),
        },
        _ => return Ok(false),
    };
    let (_, to) = expr.to_field(schema)?;
    if !is_event_time(&to) {
        return Ok(false);
    }
    let (_, from) = from.to_field(schema)?;
    Ok(!(is_cast && same_instant(from.data_type(), to.data_type())))
}

/// An aggregation whose keys are event times only where they are, under a projection where its aggregates are marked.
fn unmark_aggregates(aggregate: Aggregate) -> Result<Transformed<LogicalPlan>> {
    let node = unmark_expressions(LogicalPlan::Aggregate(aggregate))?;
    let LogicalPlan::Aggregate(aggregate) = &node.data else { return Ok(node) };
    let keys = aggregate.group_expr_len()?;
    let fields = aggregate.schema.fields().iter().enumerate();
    let marked: HashSet<usize> =
        fields.filter(|(at, field)| *at >= keys && is_event_time(field)).map(|(at, _)| at).collect();
    if marked.is_empty() {
        return Ok(node);
    }
    Ok(Transformed::yes(with_columns(node.data, &marked, Kind::Unmark)?))
}

/// Every row of the plan, with these columns called through a function under their names.
fn with_columns(plan: LogicalPlan, places: &HashSet<usize>, kind: Kind) -> Result<LogicalPlan> {
    let column = |(at, column): (usize, Column)| match places.contains(&at) {
        true => {
            let (qualifier, name) = (column.relation.clone(), column.name.clone());
            udf(kind).call(vec![Expr::Column(column)]).alias_qualified(qualifier, name)
        }
        false => Expr::Column(column),
    };
    let columns = plan.schema().columns().into_iter().enumerate().map(column).collect();
    Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(plan))?))
}

/// A union whose columns are event times where they are in every branch, in the same way. DataFusion would mark the rows of all
/// branches where one is marked, and with the window's length of whichever comes last.
fn unmark_union(union: Union) -> Result<Transformed<LogicalPlan>> {
    let (mut none, mut plain) = (HashSet::new(), HashSet::new());
    for at in 0..union.schema.fields().len() {
        let fields = union.inputs.iter().filter_map(|input| input.schema().fields().get(at));
        // A branch without any time has no late rows.
        let fields: Vec<_> = fields.filter(|field| field.data_type() != &DataType::Null).collect();
        let differ = |of: &dyn Fn(usize) -> Option<i64>| (1..fields.len()).any(|branch| of(branch) != of(0));
        if !fields.iter().any(|field| is_event_time(field)) {
            // `LogicalPlan::recompute_schema` leaves a union the fields that it had.
            if is_event_time(union.schema.field(at)) {
                none.insert(at);
            }
            continue;
        }
        if fields.iter().any(|field| !is_event_time(field)) || differ(&|branch| window_us(fields[branch])) {
            none.insert(at);
        } else if differ(&|branch| size_us(fields[branch])) {
            plain.insert(at);
        }
    }
    if none.is_empty() && plain.is_empty() {
        return Ok(Transformed::no(LogicalPlan::Union(union)));
    }
    let mut inputs = vec![];
    for input in union.inputs {
        let input = with_columns(Arc::unwrap_or_clone(input), &none, Kind::Unmark)?;
        inputs.push(Arc::new(with_columns(input, &plain, Kind::PlainMark)?));
    }
    let fields = union.schema.iter().enumerate().map(|(at, (qualifier, field))| {
        let field = match none.contains(&at) {
            true => without_marks(field),
            false if plain.contains(&at) => plainly_marked(field),
            false => Arc::clone(field),
        };
        (qualifier.cloned(), field)
    });
    let schema = DFSchema::new_with_metadata(fields.collect(), union.schema.metadata().clone())?;
    Ok(Transformed::yes(LogicalPlan::Union(Union { inputs, schema: Arc::new(schema) })))
}
