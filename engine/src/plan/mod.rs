//! From the user's plan to the plan that every batch runs. Made once, at the start.
//!
//! 1. [`check`] refuses what is not a query.
//! 2. `input_file_name()` becomes a column of its scan ([`file_names`]). What is computed from event times is none
//!    ([`true_marks`]), but for windows, which take [their shape](windows); what [remembers rows](stateful) over batches
//!    becomes a node of ours, by what a batch [brings] of them.
//! 3. Sources get their numbers, in the order the user's plan names them; each `with_watermark` gets its own.
//! 4. Clock functions are replaced, so that they read the batch's [`clock`]; functions that [draw](random), so that they do so
//!    again when a batch is repeated. [Predicates](standing_filters) that change their mind stay above what remembers rows.
//!    [Subqueries](subqueries) are made ready.
//! 5. DataFusion optimises: projections and filters sink into the scans. Of the plan that comes of it, [`check`] refuses what
//!    a stream cannot answer.
//! 6. Joins of two streams become nodes of ours, with the bounds of their state.
//! 7. Each scan of a stream becomes a numbered leaf that remembers its projection and filters.
//! 8. DataFusion makes the physical plan, with our extension planner for our nodes; our rules for [`static_inputs`] and
//!    [groups](stateful) run first. Operators and exchanges are numbered.
//! 9. [Scalar subqueries](scalar_subqueries) are taken off, to run ahead of every batch.
//!
//! Per batch nothing is planned: the leaves run what the sources have for it, found through the task's
//! [`BatchContext`](crate::batch::BatchContext), and [`QueryPlan::reset`] makes the plan fit to run again.

pub(crate) mod brings;

pub(crate) mod check;

pub(crate) mod clock;

mod file_names;

pub(crate) mod join_bounds;

mod list_casts;

mod meaning;

pub(crate) mod names;

pub(crate) mod node;

mod parquet_statistics;

mod planner;

pub(crate) mod random;

mod drain_inputs;

pub(crate) mod scalar_subqueries;

pub(crate) mod settings;

mod standing_filters;

mod session_windows;

pub(crate) mod stateful;

mod stream_join;

pub(crate) mod static_inputs;

pub(crate) mod subqueries;

mod true_marks;

mod values;

pub(crate) mod windows;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::datasource::provider_as_source;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Extension, LogicalPlan};
use datafusion::physical_plan::{ExecutionPlan, displayable};

use self::brings::{Brings, brings, queries_in};
pub(crate) use self::clock::BatchClock;
use self::names::Names;
use self::node::join::{join_streams, unbounded_sides};
use self::node::watermark::WatermarkNode;
pub(crate) use self::random::BatchSeed;
use self::scalar_subqueries::ScalarSubqueries;
use self::settings::session_for_streams;
use self::static_inputs::{Keep, reset};
use self::subqueries::Uncorrelated;
use self::true_marks::{keep_true_marks, keep_true_marks_of_casts};
use self::windows::{Sessions, mark_bounds, rewrite_windows};
use crate::clock::Clock;
use crate::error::{ErrorKind, Result};
use crate::id::LeafId;
use crate::output_mode::OutputMode;
use crate::source::{ScanContext, ScanRequest, Scanners, Source, StreamLeaf, scan_request};
use crate::state::AGGREGATIONS;
use crate::watermark::WatermarkTree;

/// A query, planned.
#[derive(Debug)]
pub(crate) struct QueryPlan {
    /// What every batch runs.
    pub(crate) physical: Arc<dyn ExecutionPlan>,
    /// What runs before it.
    pub(crate) scalar_subqueries: ScalarSubqueries,
    /// What it was made from, once static tables are to be looked up anew.
    optimized: LogicalPlan,
    /// The streams it reads, by source number.
    pub(crate) sources: Vec<Arc<dyn Source>>,
    /// Where it reads them, by leaf number.
    pub(crate) leaves: Vec<Leaf>,
    /// By `with_watermark`: its delay.
    pub(crate) watermark_delays_ms: Vec<i64>,
    /// By `with_watermark`: the number of a source below it, for telling who holds the watermark back.
    pub(crate) watermark_sources: Vec<Option<usize>>,
    /// By stateful operator: what its state means, in words that stay.
    pub(crate) meanings: Vec<Vec<String>>,
    /// State that nothing bounds, in words.
    pub(crate) unbounded: Vec<String>,
    /// The way of the watermark through the plan.
    pub(crate) watermark_tree: WatermarkTree,
    /// The columns of the output.
    pub(crate) schema: SchemaRef,
    /// The session it was planned in, with our settings.
    pub(crate) session: Arc<SessionState>,
    /// What clock functions read.
    pub(crate) clock: BatchClock,
    /// What `random()` and `uuid()` draw by.
    pub(crate) seed: BatchSeed,
    /// Whether anything is drawn: then a batch must be repeated in as many partitions as it had.
    pub(crate) draws: bool,
    /// The names for errors of its batches.
    pub(crate) names: Names,
}

/// One place in the plan that reads a stream.
#[derive(Debug, Clone)]
pub(crate) struct Leaf {
    pub(crate) id: LeafId,
    /// The number of its source.
    pub(crate) source: usize,
    pub(crate) request: ScanRequest,
}

impl QueryPlan {
    /// The sources, to be scanned by the tasks of a run.
    pub(crate) fn scanners(&self, clock: Arc<dyn Clock>) -> Scanners {
        let leaves = self.leaves.iter().map(|leaf| (leaf.source, leaf.request.clone())).collect();
        Scanners::new(self.sources.clone(), leaves, ScanContext { session: Arc::clone(&self.session), clock })
    }

    /// Makes the physical plan anew, so that static tables are read again, with the files they consist of now.
    pub(crate) async fn look_up_static_tables(&mut self) -> Result<()> {
        // DataFusion remembers which files a table has.
        if let Some(listings) = self.session.runtime_env().cache_manager.get_list_files_cache() {
            listings.clear();
        }
        let session = self.session.as_ref();
        let physical = session.query_planner().create_physical_plan(&self.optimized, session).await?;
        let (physical, scalar_subqueries) = ScalarSubqueries::take(physical)?;
        self.physical = stateful::number(physical)?;
        self.scalar_subqueries = scalar_subqueries;
        Ok(())
    }

    /// Makes the plan fit to run another batch.
    pub(crate) fn reset(&mut self, keep: Keep) -> Result<()> {
        self.physical = reset(Arc::clone(&self.physical), keep)?;
        Ok(self.scalar_subqueries.reset(|plan| reset(plan, keep))?)
    }

    /// Whether it remembers aggregates, whose results each output mode gives out at another time.
    pub(crate) fn aggregates(&self) -> bool {
        let operators = stateful::operators(&self.physical);
        operators.iter().any(|operator| AGGREGATIONS.contains(&operator.spec().operator))
    }

    /// The plan that every batch runs, for people.
    pub(crate) fn display(&self) -> String {
        let plans = self.scalar_subqueries.plans().iter().chain([&self.physical]);
        plans.map(|plan| displayable(plan.as_ref()).indent(true).to_string()).collect()
    }
}

/// Takes a query through all passes.
pub(crate) async fn plan_query(
    user_session: SessionState,
    user_plan: LogicalPlan,
    mode: OutputMode,
    partitions: usize,
) -> Result<QueryPlan> {
    let refused = match plan_in_mode(&user_session, &user_plan, mode, partitions).await {
        Err(refused) if refused.kind() == ErrorKind::Unsupported => refused,
        planned => return planned,
    };
    let mut answering = vec![];
    for other in [OutputMode::Append, OutputMode::Update, OutputMode::Complete] {
        if other != mode && plan_in_mode(&user_session, &user_plan, other, partitions).await.is_ok() {
            answering.push(other);
        }
    }
    Err(check::in_another_mode(refused, &answering))
}

/// A query through all passes, in this mode.
async fn plan_in_mode(
    user_session: &SessionState,
    user_plan: &LogicalPlan,
    mode: OutputMode,
    partitions: usize,
) -> Result<QueryPlan> {
    let optimized = optimize(user_session, user_plan, mode, partitions)?;
    let Optimized { plan: optimized, session, sources, watermarks, clock, seed, draws, names } = optimized;
    let unbounded = unbounded_sides(&optimized);
    let (optimized, leaf_sources) = number_leaves(optimized, &sources, partitions)?;
    let physical = session.query_planner().create_physical_plan(&optimized, session.as_ref()).await;
    let physical = physical.map_err(|e| names.in_words(e.into()))?;
    let (physical, scalar_subqueries) = ScalarSubqueries::take(physical)?;
    let physical = stateful::number(physical)?;

    let mut unbounded = unbounded;
    unbounded.extend(stateful::operators(&physical).into_iter().filter_map(|operator| operator.unbounded()));
    let unbounded = unbounded.iter().map(|words| names.reword(words)).collect();

    let mut leaves = vec![];
    physical.apply(|node| {
        if let Some((id, request)) = scan_request(node.as_ref())
            && let Some(&source) = leaf_sources.get(id.0)
        {
            leaves.push(Leaf { id, source, request: request.clone() });
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    leaves.sort_by_key(|leaf| leaf.id.0);

    Ok(QueryPlan {
        schema: without_marks(&physical.schema()),
        unbounded,
        meanings: meaning::meanings(&physical, &leaf_sources),
        watermark_tree: stateful::watermark_tree(&physical),
        physical,
        scalar_subqueries,
        optimized,
        sources,
        leaves,
        watermark_delays_ms: watermarks.iter().map(|w| w.delay_ms).collect(),
        watermark_sources: watermarks.iter().map(|w| w.source).collect(),
        session,
        clock,
        seed,
        draws,
        names,
    })
}

/// A query, as far as it is known before its leaves are.
struct Optimized {
    plan: LogicalPlan,
    session: Arc<SessionState>,
    sources: Vec<Arc<dyn Source>>,
    watermarks: Vec<NumberedWatermark>,
    clock: BatchClock,
    seed: BatchSeed,
    draws: bool,
    names: Names,
}

/// The passes up to the optimised plan, and the check of what a stream cannot answer in this mode.
fn optimize(
    user_session: &SessionState,
    user_plan: &LogicalPlan,
    mode: OutputMode,
    partitions: usize,
) -> Result<Optimized> {
    check::check_spelled(user_plan, mode)?;
    let plan = file_names::bind_file_names(user_plan.clone())?;
    let plan = keep_true_marks(plan)?;
    let plan = rewrite_windows(plan, Sessions::Stateful(mode))?;
    // The bounds of windows are event times, too.
    let plan = keep_true_marks(mark_bounds(plan)?)?;
    let plan = stateful::insert_stateful_nodes(plan, mode)?;
    let sources = number_sources(&plan)?;
    let mut names = Names::of_functions(user_plan)?;
    let (plan, watermarks) = number_watermarks(plan, &sources)?;
    let plan = values::compute_by_batch(plan)?;
    let clock = BatchClock::default();
    let zone = user_session.config_options().execution.time_zone.as_deref();
    let plan = clock::read_batch_clock(plan, &clock, zone)?;
    let seed = BatchSeed::default();
    let (plan, draws) = random::draw_by_batch(plan, &seed)?;
    let plan = standing_filters::let_filters_stand(plan)?;

    let streaming_subqueries = plan.exists(|node| Ok(queries_in(node).iter().any(check::is_streaming)))?;
    let uncorrelated = if streaming_subqueries { Uncorrelated::Joined } else { Uncorrelated::ComputedAhead };
    let plan = subqueries::prepare(plan, uncorrelated)?;
    let session = session_for_streams(user_session.clone(), mode, partitions, streaming_subqueries)?;
    let plan = keep_true_marks_of_casts(list_casts::cast_in_one_piece(session.optimize(&plan)?)?)?;
    names.learn(&plan)?;
    check::check_executed(&plan, mode).map_err(|e| names.in_words(e))?;
    let plan = join_streams(plan, mode, &|side| brings(side, mode) == Brings::NewRows);
    let plan = plan.map_err(|e| names.in_words(e))?;
    Ok(Optimized { plan, session: Arc::new(session), sources, watermarks, clock, seed, draws, names })
}

/// The distinct streams of a plan, in the order it names them.
fn number_sources(plan: &LogicalPlan) -> Result<Vec<Arc<dyn Source>>> {
    let mut sources: Vec<Arc<dyn Source>> = vec![];
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Some(source) = check::stream_of(scan)
            && !sources.iter().any(|known| Arc::ptr_eq(known, &source))
        {
            sources.push(source);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(sources)
}

#[derive(Debug)]
struct NumberedWatermark {
    delay_ms: i64,
    source: Option<usize>,
}

/// Gives every watermark node its number, in the order the user's plan names them.
fn number_watermarks(plan: LogicalPlan, sources: &[Arc<dyn Source>]) -> Result<(LogicalPlan, Vec<NumberedWatermark>)> {
    let mut watermarks = vec![];
    let plan = plan.transform_down_with_subqueries(|plan| {
        let LogicalPlan::Extension(Extension { node }) = &plan else { return Ok(Transformed::no(plan)) };
        let Some(watermark) = node.as_any().downcast_ref::<WatermarkNode>() else { return Ok(Transformed::no(plan)) };
        let below = number_sources(&watermark.input)?;
        let source = below.first().and_then(|first| sources.iter().position(|known| Arc::ptr_eq(known, first)));
        let numbered = watermark.numbered(watermarks.len());
        watermarks.push(NumberedWatermark { delay_ms: watermark.delay_ms, source });
        Ok(Transformed::yes(LogicalPlan::Extension(Extension { node: Arc::new(numbered) })))
    })?;
    Ok((plan.data, watermarks))
}

/// Puts a numbered leaf in the place of every scan of a stream. Returns the source of each leaf.
fn number_leaves(
    plan: LogicalPlan,
    sources: &[Arc<dyn Source>],
    partitions: usize,
) -> Result<(LogicalPlan, Vec<usize>)> {
    let mut leaf_sources = vec![];
    let plan = plan.transform_up_with_subqueries(|plan| {
        let LogicalPlan::TableScan(mut scan) = plan else { return Ok(Transformed::no(plan)) };
        let Some(source) = check::stream_of(&scan) else { return Ok(Transformed::no(LogicalPlan::TableScan(scan))) };
        let Some(number) = sources.iter().position(|known| Arc::ptr_eq(known, &source)) else {
            return Ok(Transformed::no(LogicalPlan::TableScan(scan)));
        };
        let id = LeafId(leaf_sources.len());
        leaf_sources.push(number);
        let schema = scan.source.schema();
        scan.source = provider_as_source(Arc::new(StreamLeaf { id, source, schema, partitions }));
        Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
    })?;
    Ok((plan.data, leaf_sources))
}

/// The schema as a sink sees it: without the marks of event time.
fn without_marks(schema: &SchemaRef) -> SchemaRef {
    let fields: Vec<_> = schema.fields().iter().map(crate::watermark::event_time_metadata::without_marks).collect();
    Arc::new(arrow::datatypes::Schema::new_with_metadata(fields, schema.metadata().clone()))
}
