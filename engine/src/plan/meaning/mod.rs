//! What the state of a query means, in words of our own: for the checkpoint.
//!
//! The state of `GROUP BY k` has the same columns as that of `GROUP BY upper(k)`, and means something else. So what groups,
//! compares and aggregates is written down, with every column followed down to the source it comes from:
//!
//! ```text
//! SELECT k, sum(a) FROM (SELECT upper(k) AS k, v + 1 AS a FROM t) GROUP BY k
//!                                           by upper(source0.k)  ·  sum((source0.v + 1:int64))
//! ```
//!
//! Names that DataFusion makes up on the way (`__common_expr_1`) do not show, nor do names that the user gives columns and
//! tables. The words are derived from the plan that runs; how they are [spelled](words) is ours alone.

mod functions;
mod words;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::FieldRef;
use datafusion::common::JoinType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::window::WindowExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::union::{InterleaveExec, UnionExec};
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};

use self::functions::{aggregate_words, window_words};
use self::words::{call, name, shortened, without_numbers, words};
use crate::operator::aggregate::StatefulAggregateExec;
use crate::operator::cached_input::CachedInputExec;
use crate::operator::deduplicate::DeduplicateExec;
use crate::operator::join::StreamJoinExec;
use crate::operator::session_window::SessionWindowExec;
use crate::operator::stateful;
use crate::source::scan_request;
use crate::state::{KEPT, NODE, UNNEST};

/// By stateful operator, from the sink: what its state means. `leaf_sources` has the source of each leaf.
pub(super) fn meanings(plan: &Arc<dyn ExecutionPlan>, leaf_sources: &[usize]) -> Vec<Vec<String>> {
    let mut described = Describer { leaf_sources, tables: HashMap::new(), columns: HashMap::new() };
    number_tables(plan, None, &mut described.tables);
    let mut found = vec![];
    // The closure never fails.
    let _ = plan.apply(|node| {
        if stateful(node.as_ref()).is_some() {
            found.push(described.operator(node));
        }
        Ok(TreeNodeRecursion::Continue)
    });
    found
}

/// What is known so far.
struct Describer<'a> {
    leaf_sources: &'a [usize],
    /// The leaves that are not streams: the static side that each is of, and which one there.
    tables: HashMap<*const (), (usize, usize)>,
    /// By node, which lives as long as the plan, and column.
    columns: HashMap<(*const (), usize), String>,
}

/// Numbers the tables by the static sides that they are of: DataFusion may have exchanged the sides of joins since.
fn number_tables(node: &Arc<dyn ExecutionPlan>, side: Option<usize>, tables: &mut HashMap<*const (), (usize, usize)>) {
    let side = side.or_else(|| node.downcast_ref::<CachedInputExec>().map(CachedInputExec::number));
    let children = node.children();
    if children.is_empty() && scan_request(node.as_ref()).is_none() {
        let side = side.unwrap_or_default();
        let before = tables.values().filter(|(of, _)| *of == side).count();
        tables.entry(Arc::as_ptr(node).cast()).or_insert((side, before));
    }
    children.into_iter().for_each(|input| number_tables(input, side, tables));
}

/// The aggregation of a batch, below an operator that merges what it gives.
fn first_step(plan: &Arc<dyn ExecutionPlan>) -> Option<&AggregateExec> {
    let [input] = plan.children()[..] else { return None };
    input.downcast_ref::<AggregateExec>().or_else(|| first_step(input))
}

impl Describer<'_> {
    fn operator(&mut self, node: &Arc<dyn ExecutionPlan>) -> Vec<String> {
        if let Some(groups) = node.downcast_ref::<StatefulAggregateExec>() {
            return self.groups(node, groups);
        }
        if let Some(sessions) = node.downcast_ref::<SessionWindowExec>() {
            return self.sessions(sessions);
        }
        if let Some(deduplicate) = node.downcast_ref::<DeduplicateExec>() {
            return deduplicate.keys().iter().map(|&key| format!("by {}", self.below(node, 0, key))).collect();
        }
        if let Some(join) = node.downcast_ref::<StreamJoinExec>() {
            let children = node.children();
            let [left, right] = children[..] else { return vec![] };
            let keys = join.keys();
            let equal = keys.map(|(a, b)| format!("by {} = {}", self.expr(a, left), self.expr(b, right)));
            let mut described: Vec<String> = equal.collect();
            let columns = left.schema().fields().len();
            described.extend(join.condition().map(|condition| {
                let of_pair = &mut |column: usize| match column.checked_sub(columns) {
                    None => self.column(left, column),
                    Some(column) => self.of_right(left, right, column),
                };
                format!("where {}", words(condition, of_pair))
            }));
            let sides = [("left", left), ("right", right)].into_iter().zip(join.gates()).zip(join.times());
            for (((name, input), gate), due) in sides {
                let columns = 0..input.schema().fields().len();
                let mut kept: Vec<String> = columns.map(|column| self.column(input, column)).collect();
                kept.extend(due.map(|column| format!("until {}", self.column(input, column))));
                kept.extend(gate.map(|gate| format!("where {}", self.expr(gate, input))));
                described.extend(kept.into_iter().map(|described| format!("{KEPT}{name} {described}")));
            }
            return described;
        }
        vec![]
    }

    fn groups(&mut self, node: &Arc<dyn ExecutionPlan>, groups: &StatefulAggregateExec) -> Vec<String> {
        first_step(node).map(|first| self.aggregation(first, groups.named())).unwrap_or_default()
    }

    fn aggregation<'e>(
        &mut self,
        first: &AggregateExec,
        aggregates: impl Iterator<Item = &'e AggregateFunctionExpr>,
    ) -> Vec<String> {
        let input = first.input();
        let keys = first.group_expr().expr().iter();
        let mut described: Vec<String> = keys.map(|(key, _)| format!("by {}", self.expr(key, input))).collect();
        let aggregates = aggregates.zip(first.filter_expr());
        described.extend(aggregates.map(|(aggregate, filter)| self.aggregate(aggregate, filter.as_ref(), input)));
        described
    }

    fn sessions(&mut self, sessions: &SessionWindowExec) -> Vec<String> {
        let children = sessions.children();
        let [input] = children[..] else { return vec![] };
        let (keys, aggregates) = (sessions.key_exprs(), sessions.aggregate_exprs());
        let mut described: Vec<String> = keys.map(|key| format!("by {}", self.expr(key, input))).collect();
        described.extend(aggregates.map(|(aggregate, filter)| self.aggregate(aggregate, filter, input)));
        described
    }

    fn aggregate(
        &mut self,
        aggregate: &AggregateFunctionExpr,
        filter: Option<&Arc<dyn PhysicalExpr>>,
        input: &Arc<dyn ExecutionPlan>,
    ) -> String {
        aggregate_words(aggregate, filter, &mut |expr| self.expr(expr, input))
    }

    fn expr(&mut self, expr: &Arc<dyn PhysicalExpr>, input: &Arc<dyn ExecutionPlan>) -> String {
        words(expr, &mut |column| self.column(input, column))
    }

    /// What a column of a node is.
    fn column(&mut self, node: &Arc<dyn ExecutionPlan>, column: usize) -> String {
        let place = (Arc::as_ptr(node).cast::<()>(), column);
        if let Some(described) = self.columns.get(&place) {
            return described.clone();
        }
        let described = shortened(self.column_of(node, column));
        self.columns.insert(place, described.clone());
        described
    }

    fn column_of(&mut self, node: &Arc<dyn ExecutionPlan>, column: usize) -> String {
        if let Some((leaf, request)) = scan_request(node.as_ref()) {
            let source = self.leaf_sources.get(leaf.0).copied().unwrap_or_default();
            return match request.schema.fields().get(column) {
                Some(field) => format!("source{source}.{}", name(field.name())),
                None => self.unknown(node, column),
            };
        }
        if let Some(projection) = node.downcast_ref::<ProjectionExec>() {
            return match projection.expr().get(column) {
                Some(computed) => self.expr(&computed.expr, projection.input()),
                None => self.unknown(node, column),
            };
        }
        if let Some(filter) = node.downcast_ref::<FilterExec>() {
            let column = filter.projection().as_ref().map_or(Some(column), |columns| columns.get(column).copied());
            return match column {
                Some(column) => self.column(filter.input(), column),
                None => self.unknown(node, 0),
            };
        }
        if node.is::<UnionExec>() || node.is::<InterleaveExec>() {
            let inputs = node.children().into_iter().map(Arc::clone).collect::<Vec<_>>();
            let described: Vec<String> = inputs.iter().map(|input| self.column(input, column)).collect();
            return call("union", &described);
        }
        let join = node.downcast_ref::<HashJoinExec>().map(|join| (*join.join_type(), join.projection.as_ref()));
        let join = join.or_else(|| {
            let join = node.downcast_ref::<NestedLoopJoinExec>()?;
            Some((*join.join_type(), join.projection().as_ref()))
        });
        let join = join.or_else(|| node.is::<CrossJoinExec>().then_some((JoinType::Inner, None)));
        if let Some((how, projection)) = join {
            let column = projection.map_or(Some(column), |columns| columns.get(column).copied());
            return match column {
                Some(column) => self.of_pair(node, how, column),
                None => self.unknown(node, 0),
            };
        }
        if let Some(join) = node.downcast_ref::<StreamJoinExec>() {
            return self.of_pair(node, join.how(), column);
        }
        if let Some(sessions) = node.downcast_ref::<SessionWindowExec>() {
            let place = sessions.place();
            let described = self.sessions(sessions);
            let described = match column.cmp(&place) {
                std::cmp::Ordering::Equal => return "session".to_owned(),
                std::cmp::Ordering::Less => described.get(column),
                std::cmp::Ordering::Greater => described.get(column - 1),
            };
            return described.map_or_else(|| self.unknown(node, column), |described| key_or_value(described));
        }
        let described = match (node.downcast_ref::<StatefulAggregateExec>(), node.downcast_ref::<AggregateExec>()) {
            (Some(groups), _) => Some(self.groups(node, groups)),
            // Two steps are one aggregation.
            (None, Some(own)) => {
                let is_last = matches!(own.mode(), AggregateMode::Final | AggregateMode::FinalPartitioned);
                let first = first_step(node).filter(|_| is_last).unwrap_or(own);
                Some(self.aggregation(first, first.aggr_expr().iter().map(Arc::as_ref)))
            }
            (None, None) => None,
        };
        if let Some(described) = described {
            return described
                .get(column)
                .map_or_else(|| self.unknown(node, column), |described| key_or_value(described));
        }
        if let Some(window) = window_function(node, column)
            && let [input] = node.children()[..]
            && let Some(described) = window_words(window, &mut |expr| self.expr(expr, input))
        {
            return described;
        }
        if let Some(described) = self.computed_by_scan(node, column) {
            return described;
        }
        // What is left lets columns through, moves them, or makes some of them new.
        let children = node.children();
        match children[..] {
            [input] => match passed(node, input, column) {
                Some(column) => self.column(input, column),
                None => self.made_of(node, input, column),
            },
            _ => self.unknown(node, column),
        }
    }

    /// A column of a static table whose scan computes it: DataFusion pushes projections into the scans of files.
    fn computed_by_scan(&self, node: &Arc<dyn ExecutionPlan>, column: usize) -> Option<String> {
        let scan = node.downcast_ref::<DataSourceExec>()?.data_source().downcast_ref::<FileScanConfig>()?;
        let files = scan.file_source();
        let computed = files.projection()?.as_ref().get(column)?;
        let (table, schema) = (self.table(node), files.table_schema().table_schema());
        Some(words(&computed.expr, &mut |column| {
            let column = schema.fields().get(column).map_or("?", |field| field.name().as_str());
            format!("{table}.{}", name(column))
        }))
    }

    /// A column that a node makes of those of its input that it does not let through.
    fn made_of(&mut self, node: &Arc<dyn ExecutionPlan>, input: &Arc<dyn ExecutionPlan>, column: usize) -> String {
        let (above, below) = (node.schema().fields().len(), input.schema().fields().len());
        let passing: Vec<Option<usize>> = (0..above).map(|column| passed(node, input, column)).collect();
        let used: Vec<usize> = (0..below).filter(|column| !passing.contains(&Some(*column))).collect();
        if used.is_empty() {
            return self.unknown(node, column);
        }
        let number = passing.iter().take(column).filter(|passed| passed.is_none()).count();
        let used: Vec<String> = used.into_iter().map(|column| self.column(input, column)).collect();
        format!("{}({number} of {})", kind_of(node), used.join(", "))
    }

    fn of_pair(&mut self, node: &Arc<dyn ExecutionPlan>, how: JoinType, column: usize) -> String {
        use JoinType::{Full, Inner, Left, LeftAnti, LeftMark, LeftSemi, Right, RightAnti, RightMark, RightSemi};
        let columns = node.children().first().map_or(0, |left| left.schema().fields().len());
        match how {
            LeftSemi | LeftAnti => self.below(node, 0, column),
            RightSemi | RightAnti => self.below(node, 1, column),
            LeftMark if column < columns => self.below(node, 0, column),
            RightMark if node.children().get(1).is_some_and(|right| column < right.schema().fields().len()) => {
                self.below(node, 1, column)
            }
            LeftMark | RightMark => "whether it matches".to_owned(),
            Inner | Left | Right | Full => match column.checked_sub(columns) {
                None => self.below(node, 0, column),
                Some(column) => match node.children()[..] {
                    [left, right] => self.of_right(left, right, column),
                    _ => self.unknown(node, column),
                },
            },
        }
    }

    /// A column of the right of a join. Where both sides read one stream, it is marked as not that of the left.
    fn of_right(&mut self, left: &Arc<dyn ExecutionPlan>, right: &Arc<dyn ExecutionPlan>, column: usize) -> String {
        let described = self.column(right, column);
        let of_right = self.sources_below(right);
        match self.sources_below(left).iter().filter(|source| of_right.contains(source)).count() {
            0 => described,
            shared => format!("right{shared} {described}"),
        }
    }

    /// The source of each leaf that is a stream.
    fn sources_below(&self, node: &Arc<dyn ExecutionPlan>) -> Vec<usize> {
        match scan_request(node.as_ref()) {
            Some((leaf, _)) => self.leaf_sources.get(leaf.0).copied().into_iter().collect(),
            None => node.children().into_iter().flat_map(|input| self.sources_below(input)).collect(),
        }
    }

    fn below(&mut self, node: &Arc<dyn ExecutionPlan>, input: usize, column: usize) -> String {
        match node.children().get(input).map(|input| Arc::clone(input)) {
            Some(input) => self.column(&input, column),
            None => self.unknown(node, column),
        }
    }

    /// What a leaf that is no stream is called.
    fn table(&self, leaf: &Arc<dyn ExecutionPlan>) -> String {
        match self.tables.get(&Arc::as_ptr(leaf).cast()).copied().unwrap_or_default() {
            (side, 0) => format!("table{side}"),
            (side, number) => format!("table{side}_{number}"),
        }
    }

    /// A column of a table, or of a node that computes it in a way not described here: its name, unless that was made
    /// up.
    fn unknown(&mut self, node: &Arc<dyn ExecutionPlan>, column: usize) -> String {
        let schema = node.schema();
        let column = schema.fields().get(column).map_or("?", |field| field.name().as_str());
        match node.children().is_empty() {
            true => format!("{}.{}", self.table(node), name(&without_numbers(column))),
            false => format!("{}.{}", kind_of(node), name(&without_numbers(column))),
        }
    }
}

/// What kind of node it is, of those that compute columns in a way not described here. DataFusion's own names may change.
fn kind_of(node: &Arc<dyn ExecutionPlan>) -> &'static str {
    if node.is::<UnnestExec>() { UNNEST } else { NODE }
}

/// The function that computes a column, where a node adds those of window functions to the columns of its input.
fn window_function(node: &Arc<dyn ExecutionPlan>, column: usize) -> Option<&Arc<dyn WindowExpr>> {
    let bounded = node.downcast_ref::<BoundedWindowAggExec>();
    let (functions, input) = match (node.downcast_ref::<WindowAggExec>(), bounded) {
        (Some(all), _) => (all.window_expr(), all.input()),
        (None, Some(bounded)) => (bounded.window_expr(), bounded.input()),
        (None, None) => return None,
    };
    functions.get(column.checked_sub(input.schema().fields().len())?)
}

/// What a key or an aggregate is where it is a column.
fn key_or_value(described: &str) -> String {
    described.strip_prefix("by ").unwrap_or(described).to_owned()
}

/// The column of the input that a column of a node is, as far as names and types show: at the same place, or the only
/// one.
fn passed(node: &Arc<dyn ExecutionPlan>, input: &Arc<dyn ExecutionPlan>, column: usize) -> Option<usize> {
    let (above, below) = (node.schema(), input.schema());
    let wanted = above.fields().get(column)?;
    let same = |field: &FieldRef| field.name() == wanted.name() && field.data_type() == wanted.data_type();
    if below.fields().get(column).is_some_and(same) {
        return Some(column);
    }
    let mut found = (0..below.fields().len()).filter(|&column| below.fields().get(column).is_some_and(same));
    found.next().filter(|_| found.next().is_none())
}
