//! Where a plan must remember: each such node becomes an operator of ours, on top of an exchange.
//!
//! | the user's plan | becomes | when |
//! |---|---|---|
//! | `DISTINCT`, `drop_duplicates` | [`DeduplicateNode`] → [`DeduplicateExec`] | before DataFusion optimises |
//! | `LIMIT` | [`StreamLimitNode`] → [`StreamLimitExec`] | before |
//! | sessions | `SessionNode` → `SessionWindowExec` | before ([`windows`](super::windows)) |
//! | joins of two streams | `StreamJoinNode` → `StreamJoinExec` | after, when conditions lie where they belong |
//! | aggregates | [`StatefulAggregateExec`], in the place of DataFusion's final step | in the physical plan |
//!
//! Then everything is [numbered](number): operators from the sink downwards, exchanges in the order they run.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Distinct, Expr, Extension, LogicalPlan, LogicalPlanBuilder, Projection, SubqueryAlias};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::{ExecutionPlan, displayable};
use datafusion::scalar::ScalarValue;

use super::brings::{Brings, brings};
use super::node::deduplicate::DeduplicateNode;
use super::node::limit::StreamLimitNode;
use super::node::watermark::WatermarkNode;
use super::static_inputs;
use crate::error::Error;
use crate::operator::aggregate::{Aggregates, Code, StatefulAggregateExec, ours};
use crate::operator::deduplicate::{DeduplicateExec, Retention};
use crate::operator::event_time::EventTimeExec;
use crate::operator::exchange::ExchangeExec;
use crate::operator::late_rows::{LateRowFilterExec, SharedId};
use crate::operator::limit::{FirstRowsExec, StreamLimitExec};
use crate::operator::session_window::SessionWindowExec;
use crate::operator::{StatefulOperator, stateful};
use crate::output_mode::OutputMode;
use crate::state::OperatorId;
use crate::state::key_hash::{can_be_key, not_a_key};
use crate::watermark::WatermarkTree;
use crate::watermark::event_time_metadata::is_event_time;

/// Puts our nodes where rows are deduplicated or limited over all batches. Where every batch brings the whole answer,
/// DataFusion's own nodes do, and a deduplication becomes one of these.
pub(super) fn insert_stateful_nodes(plan: LogicalPlan, mode: OutputMode) -> Result<LogicalPlan> {
    let node = |node: Arc<dyn datafusion::logical_expr::UserDefinedLogicalNode>| {
        Ok(Transformed::yes(LogicalPlan::Extension(Extension { node })))
    };
    let of_one_batch = |input: &LogicalPlan| matches!(brings(input, mode), Brings::WholeAnswer | Brings::Table);
    plan.transform_up_with_subqueries(|plan| match plan {
        LogicalPlan::Distinct(Distinct::All(input)) if !of_one_batch(&input) => {
            let keys = input.schema().columns();
            node(Arc::new(DeduplicateNode { input: Arc::unwrap_or_clone(input), keys, within_watermark: false }))
        }
        LogicalPlan::Limit(limit) if !of_one_batch(&limit.input) => {
            if number_of_rows(limit.skip.as_deref(), &limit.input)?.unwrap_or(0) > 0 {
                return Err(Error::unsupported("a stream cannot skip its first rows (OFFSET)")
                    .with_hint("filter them out")
                    .into());
            }
            match number_of_rows(limit.fetch.as_deref(), &limit.input)? {
                Some(rows) => Ok(Transformed::yes(limited(rows, Arc::unwrap_or_clone(limit.input))?)),
                None => Ok(Transformed::yes(Arc::unwrap_or_clone(limit.input))),
            }
        }
        LogicalPlan::Extension(extension) => match extension.node.as_any().downcast_ref::<DeduplicateNode>() {
            Some(deduplicate) if of_one_batch(&deduplicate.input) => {
                let keys = deduplicate.keys.iter().cloned().map(Expr::Column).collect();
                let all = deduplicate.input.schema().columns().into_iter().map(Expr::Column).collect();
                let plan = LogicalPlanBuilder::from(deduplicate.input.clone()).distinct_on(keys, all, None)?;
                Ok(Transformed::yes(plan.build()?))
            }
            _ => Ok(Transformed::no(LogicalPlan::Extension(extension))),
        },
        other => Ok(Transformed::no(other)),
    })
    .data()
}

/// What a LIMIT or OFFSET comes to, if there is one.
fn number_of_rows(rows: Option<&Expr>, input: &LogicalPlan) -> Result<Option<usize>> {
    let Some(rows) = rows else { return Ok(None) };
    let context = SimplifyContext::builder().with_schema(Arc::clone(input.schema())).build();
    let value = match ExprSimplifier::new(context).simplify(rows.clone())? {
        Expr::Literal(value, _) => value.cast_to(&DataType::Int64)?,
        _ => {
            return Err(Error::unsupported(format!(
                "a stream can be limited to a fixed number of rows only, not `{rows}`"
            ))
            .with_hint("write the number")
            .into());
        }
    };
    match value {
        ScalarValue::Int64(None) => Ok(None),
        ScalarValue::Int64(Some(count)) if count >= 0 => Ok(usize::try_from(count).ok()),
        _ => Err(Error::invalid(format!("LIMIT and OFFSET take a number that is not negative, not `{rows}`")).into()),
    }
}

/// The first rows of this input. What only computes columns is computed for these alone.
fn limited(rows: usize, input: LogicalPlan) -> Result<LogicalPlan> {
    Ok(match input {
        LogicalPlan::Projection(Projection { expr, input, schema, .. }) => {
            let input = Arc::new(limited(rows, Arc::unwrap_or_clone(input))?);
            LogicalPlan::Projection(Projection::try_new_with_schema(expr, input, schema)?)
        }
        LogicalPlan::SubqueryAlias(SubqueryAlias { input, alias, .. }) => {
            let input = Arc::new(limited(rows, Arc::unwrap_or_clone(input))?);
            LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(input, alias)?)
        }
        input => LogicalPlan::Extension(Extension { node: Arc::new(StreamLimitNode { rows, input }) }),
    })
}

/// The operator for a deduplication over this input.
pub(super) fn plan_deduplicate(
    node: &DeduplicateNode,
    input: &Arc<dyn ExecutionPlan>,
    partitions: usize,
) -> Result<Arc<dyn ExecutionPlan>> {
    let logical = node.input.schema();
    let keys = node.keys.iter().map(|key| logical.index_of_column(key)).collect::<Result<Vec<_>>>()?;
    let marked = logical.fields().iter().enumerate().filter(|(_, field)| is_event_time(field));
    let marked: Vec<usize> = marked.map(|(column, _)| column).collect();
    // Of several event times the one among the keys counts.
    let time = marked.iter().find(|column| keys.contains(column)).or(marked.first()).copied();
    let retention = match time {
        Some(column) if node.within_watermark => {
            Retention::Delay(delay_ms(&node.input, logical.field(column).name()).saturating_mul(1000))
        }
        Some(column) => match keys.iter().position(|key| *key == column) {
            Some(key) => Retention::EventTime(key),
            None => Retention::Forever,
        },
        None => Retention::Forever,
    };
    let exchanged = exchange(Arc::clone(input), &keys, partitions)?;
    Ok(Arc::new(DeduplicateExec::new(keys, time, retention, exchanged)))
}

/// The delay of an event-time column: that of the `with_watermark` below which named it; where it has another name by
/// now, or several were united under one name, the longest.
fn delay_ms(plan: &LogicalPlan, column: &str) -> i64 {
    let mut delays: Vec<(bool, i64)> = vec![];
    // The closure never fails.
    let _ = plan.apply(|node| {
        if let LogicalPlan::Extension(extension) = node
            && let Some(watermark) = extension.node.as_any().downcast_ref::<WatermarkNode>()
        {
            delays.push((watermark.column.name == column, watermark.delay_ms));
        }
        Ok(TreeNodeRecursion::Continue)
    });
    delays.into_iter().max().map_or(0, |(_, delay_ms)| delay_ms)
}

/// The operator for a limit over this input.
pub(super) fn plan_limit(node: &StreamLimitNode, input: &Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let id = SharedId::default();
    let input = distinct_until_full(Arc::clone(input), &id, node.rows)?;
    let first = Arc::new(FirstRowsExec::new(id.clone(), node.rows, input));
    Ok(Arc::new(StreamLimitExec::new(id, node.rows, exchange(first, &[], 1)?)))
}

/// The input of a limit: where it is a deduplication, its own input ends once the limit is full. What that would have
/// remembered only keeps rows back, and none can come out any more.
fn distinct_until_full(input: Arc<dyn ExecutionPlan>, id: &SharedId, rows: usize) -> Result<Arc<dyn ExecutionPlan>> {
    let Some(exchange) =
        input.is::<DeduplicateExec>().then(|| input.children()).and_then(|inputs| inputs.first().copied())
    else {
        return Ok(input);
    };
    let [below] = exchange.children()[..] else { return Ok(input) };
    let below = FirstRowsExec::until_full(id.clone(), rows, Arc::clone(below));
    let options = || ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    let exchange = Arc::clone(exchange).replace_children(vec![Arc::new(below)], options())?;
    input.replace_children(vec![exchange], options())
}

/// Brings rows together by some of their columns.
fn exchange(input: Arc<dyn ExecutionPlan>, columns: &[usize], partitions: usize) -> Result<Arc<dyn ExecutionPlan>> {
    let schema = input.schema();
    if let Some(key) = columns.iter().map(|&c| schema.field(c)).find(|key| !can_be_key(key.data_type())) {
        return Err(not_a_key(key).into());
    }
    let key = |&column: &usize| Arc::new(Column::new(schema.field(column).name(), column)) as Arc<dyn PhysicalExpr>;
    let keys = columns.iter().map(key).collect();
    Ok(Arc::new(ExchangeExec::new(input, keys, partitions)))
}

/// Puts a [`StatefulAggregateExec`] in the place of the final step of every aggregation of a stream, and functions of
/// [ours](crate::operator::aggregate::ours) in all aggregations. Runs before DataFusion's own rules, which know the two
/// steps only as they left the planner.
#[derive(Debug)]
pub(super) struct StatefulAggregateRule {
    pub(super) mode: OutputMode,
    pub(super) partitions: usize,
}

impl PhysicalOptimizerRule for StatefulAggregateRule {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|plan| {
            let steps = plan.downcast_ref::<AggregateExec>().and_then(|last| {
                let first = last.input().downcast_ref::<AggregateExec>()?;
                let are_two = matches!(last.mode(), AggregateMode::Final | AggregateMode::FinalPartitioned)
                    && *first.mode() == AggregateMode::Partial;
                let of_one_batch = self.mode == OutputMode::Complete && brings_whole_answer(first.input());
                let remembers = !of_one_batch && static_inputs::is_streaming(first.input());
                are_two.then_some((last, first, remembers))
            });
            match steps {
                Some((last, first, true)) => Ok(Transformed::yes(self.remember(last, first)?)),
                _ if self.forgets(&plan) => Err(Error::internal(format!(
                    "an aggregation of a stream would forget the batches before: {}",
                    displayable(plan.as_ref()).one_line()
                ))
                .into()),
                Some((last, first, false)) => match within_a_batch(last, first)? {
                    Some(ours) => Ok(Transformed::yes(ours)),
                    None => Ok(Transformed::no(plan)),
                },
                None => Ok(Transformed::no(plan)),
            }
        })
        .data()
    }

    fn name(&self) -> &str {
        "stateful_aggregate"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Whether every batch brings the whole answer of this plan: in complete mode an aggregation does, and so does what
/// consists of such. It is what [`brings`] finds for the logical plan.
fn brings_whole_answer(plan: &Arc<dyn ExecutionPlan>) -> bool {
    if plan.is::<StatefulAggregateExec>() || plan.is::<SessionWindowExec>() {
        return true;
    }
    let streams: Vec<_> = plan.children().into_iter().filter(|child| static_inputs::is_streaming(child)).collect();
    !streams.is_empty() && streams.into_iter().all(brings_whole_answer)
}

/// The first step of an aggregation, with our functions where DataFusion's will not do.
fn first_step(first: &AggregateExec) -> Result<AggregateExec> {
    AggregateExec::try_new(
        AggregateMode::Partial,
        first.group_expr().clone(),
        ours::replace(first.aggr_expr(), &first.input_schema())?,
        first.filter_expr().to_vec(),
        Arc::clone(first.input()),
        first.input_schema(),
    )
}

/// Both steps of an aggregation that forgets its groups with the batch, if it needs functions of ours.
fn within_a_batch(last: &AggregateExec, first: &AggregateExec) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let theirs = first.aggr_expr();
    let functions = ours::replace(theirs, &first.input_schema())?;
    if functions.iter().zip(theirs).all(|(ours, theirs)| Arc::ptr_eq(ours, theirs)) {
        return Ok(None);
    }
    let first = first_step(first)?;
    let functions = first.aggr_expr().to_vec();
    let last = AggregateExec::try_new(
        *last.mode(),
        last.group_expr().clone(),
        functions,
        last.filter_expr().to_vec(),
        Arc::new(first),
        last.input_schema(),
    )?;
    Ok(Some(Arc::new(last)))
}

impl StatefulAggregateRule {
    /// Whether a node aggregates new rows, of one batch only.
    fn forgets(&self, plan: &Arc<dyn ExecutionPlan>) -> bool {
        let Some(last) = plan.downcast_ref::<AggregateExec>() else { return false };
        let is_first = matches!(last.mode(), AggregateMode::Partial | AggregateMode::PartialReduce);
        let of_one_batch = self.mode == OutputMode::Complete && brings_whole_answer(last.input());
        !is_first && !of_one_batch && static_inputs::is_streaming(last.input())
    }

    fn remember(&self, last: &AggregateExec, first: &AggregateExec) -> Result<Arc<dyn ExecutionPlan>> {
        let id = SharedId::default();
        let schema = last.schema();
        let keys = last.group_expr().num_group_exprs();
        let marked = schema.fields().iter().take(keys).position(|field| is_event_time(field));
        let named = first.aggr_expr();
        let partial = first_step(first)?;
        let code = if keys == 0 { Code::OneGroup } else { Code::Groups };
        let aggregates = Aggregates::try_new(named, partial.aggr_expr(), code)?;
        let mut partial: Arc<dyn ExecutionPlan> = Arc::new(partial);
        // In complete mode nothing is late.
        if let Some(key) = marked
            && self.mode != OutputMode::Complete
            && let Some((time, _)) = first.group_expr().expr().get(key)
        {
            let field = Arc::new(schema.field(key).clone());
            let in_time = LateRowFilterExec::new(id.clone(), Arc::clone(time), field, Arc::clone(first.input()));
            let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
            partial = partial.replace_children(vec![Arc::new(in_time)], options)?;
        }
        let columns: Vec<usize> = (0..keys).collect();
        let input = exchange(partial, &columns, self.partitions)?;
        let aggregate = StatefulAggregateExec::try_new(id, self.mode, (keys, marked), aggregates, schema, input)?;
        Ok(Arc::new(aggregate))
    }
}

/// Numbers operators and exchanges. Operators count from the sink, as Spark's do; an exchange comes after those it needs.
pub(super) fn number(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let mut operators = 0;
    let plan = plan.transform_down(|plan| {
        let Some(operator) = stateful(plan.as_ref()) else { return Ok(Transformed::no(plan)) };
        let id = OperatorId(operators);
        operators += 1;
        Ok(Transformed::yes(operator.with_id(id)))
    })?;
    let mut exchanges = 0;
    plan.data
        .transform_up(|plan| {
            let Some(exchange) = plan.downcast_ref::<ExchangeExec>() else { return Ok(Transformed::no(plan)) };
            let numbered = exchange.with_number(exchanges);
            exchanges += 1;
            Ok(Transformed::yes(Arc::new(numbered) as Arc<dyn ExecutionPlan>))
        })
        .data()
}

/// The stateful operators of a numbered plan, by number.
pub(crate) fn operators(plan: &Arc<dyn ExecutionPlan>) -> Vec<&dyn StatefulOperator> {
    let mut found = vec![];
    collect_operators(plan, &mut found);
    found
}

fn collect_operators<'a>(plan: &'a Arc<dyn ExecutionPlan>, found: &mut Vec<&'a dyn StatefulOperator>) {
    found.extend(stateful(plan.as_ref()));
    plan.children().into_iter().for_each(|child| collect_operators(child, found));
}

/// The exchanges of a numbered plan, by number.
pub(crate) fn exchanges(plan: &Arc<dyn ExecutionPlan>) -> Vec<&ExchangeExec> {
    let mut found = vec![];
    collect_exchanges(plan, &mut found);
    found
}

fn collect_exchanges<'a>(plan: &'a Arc<dyn ExecutionPlan>, found: &mut Vec<&'a ExchangeExec>) {
    plan.children().into_iter().for_each(|child| collect_exchanges(child, found));
    found.extend(plan.downcast_ref::<ExchangeExec>());
}

/// The way of the watermark through a numbered plan.
pub(super) fn watermark_tree(plan: &Arc<dyn ExecutionPlan>) -> WatermarkTree {
    fn visit(plan: &Arc<dyn ExecutionPlan>, operators: &mut usize) -> WatermarkTree {
        let operator = stateful(plan.as_ref()).map(|operator| {
            *operators += 1;
            (OperatorId(*operators - 1), operator.watermark())
        });
        let inputs = plan.children().into_iter().map(|child| visit(child, operators)).collect();
        match operator {
            Some((operator, uses)) => WatermarkTree::Stateful { operator, uses, inputs },
            None if plan.is::<EventTimeExec>() => WatermarkTree::Watermark,
            None => WatermarkTree::Stateless(inputs),
        }
    }
    visit(plan, &mut 0)
}
