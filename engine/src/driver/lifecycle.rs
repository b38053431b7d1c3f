//! Starting, running, stopping.
//!
//! All that can be wrong with a query before it reads its first row is found by [`start`], which fails then; afterwards the
//! query's thread keeps the first error.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use super::belongings;
use super::keeper::StateKeeper;
use super::silence::Silences;
use super::sinks::{self, Sinks};
use super::{Driver, Shared, State};
use crate::checkpoint::resume::{Resume, resume};
use crate::checkpoint::{
    BatchLog, CheckpointStore, CommitEntry, OffsetEntry, pinned_conf, read_or_create_query_id, sub_store,
};
use crate::clock::Clock;
use crate::config::QueryConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BatchId, RunId};
use crate::identity::Identity;
use crate::plan::plan_query;
use crate::progress::{EventQueue, QueryEvent, QueryListener, timestamp};
use crate::query::{OutputMode, QueryStatus, Reservation};
use crate::sink::{Sink, SinkContext, SinkName};
use crate::source::{Source, SourceContext, SourceReader};
use crate::trigger::Trigger;
use crate::watermark::{WatermarkPolicy, WatermarkTracker};

/// All that a query is started with.
pub(crate) struct Start {
    pub(crate) session: SessionState,
    pub(crate) plan: LogicalPlan,
    pub(crate) sink: Arc<dyn Sink>,
    /// Where records go that sources cannot read.
    pub(crate) dead_letters: Option<Arc<dyn Sink>>,
    pub(crate) name: Option<String>,
    pub(crate) output_mode: OutputMode,
    pub(crate) trigger: Trigger,
    pub(crate) checkpoint: Arc<dyn CheckpointStore>,
    pub(crate) config: QueryConfig,
    /// What is at another place than in the runs before: from where, to where.
    pub(crate) moved: Vec<(String, String)>,
    pub(crate) watermark_policy: WatermarkPolicy,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) listeners: Vec<Arc<dyn QueryListener>>,
    pub(crate) reservation: Reservation,
}

/// The newest batch in the offset log and in the commit log.
type Tails = (Option<BatchId>, Option<BatchId>);

/// Where a run begins, with what the logs say of it.
struct Position {
    tails: Tails,
    next: BatchId,
    repeat: Option<OffsetEntry>,
    ends: Vec<Option<crate::source::Offset>>,
    /// The watermark of the batch before the next one.
    previous_watermark_ms: i64,
    /// Commits of batches before the one to be repeated are missing.
    commits_lost: bool,
    conf: Option<OffsetEntry>,
    commit: Option<CommitEntry>,
}

/// Plans the query, reads the checkpoint, opens sources and sinks, and lets the driver's thread run.
pub(crate) async fn start(mut start: Start) -> Result<Arc<Shared>> {
    start.config.partitions = start.config.partitions.max(1);
    let (session, query) = (start.session.clone(), start.plan.clone());
    let mut plan = plan_query(session, query, start.output_mode, start.config.partitions).await?;
    let (output, dead_letters) = (start.sink.as_ref(), start.dead_letters.as_deref());
    sinks::check(output, dead_letters, start.output_mode, &plan.sources)?;
    belongings::check_no_circle(&start, &plan)?;

    let offsets = BatchLog::new(Arc::clone(&start.checkpoint), "offsets");
    let commits = BatchLog::new(Arc::clone(&start.checkpoint), "commits");
    let position = position(&offsets, &commits, plan.sources.len()).await?;
    if let Some(partitions) = position.repeat.as_ref().and_then(|logged| logged.partitions)
        && partitions != start.config.partitions
    {
        tracing::info!(partitions, "a batch that drew random numbers is to be repeated: this run has its partitions");
        start.config.partitions = partitions;
        plan = plan_query(start.session.clone(), start.plan.clone(), start.output_mode, partitions).await?;
    }
    let is_new = position.conf.is_none();
    let id = read_or_create_query_id(start.checkpoint.as_ref(), is_new).await?;
    let run_id = RunId::random();
    let with_query = |e: Error| e.query(id);
    let mut belongings = belongings::of(&plan, output, dead_letters);
    if let Some(old) = position.conf.as_ref().and_then(|logged| logged.belongings.as_ref()) {
        belongings::compare(old, &mut belongings, &start.moved).map_err(with_query)?;
    }

    let policy = position.conf.as_ref().map_or(start.watermark_policy, OffsetEntry::watermark_policy);
    let mut tracker = WatermarkTracker::new(policy, plan.watermark_delays_ms.clone());
    if let Some(logged) = &position.conf {
        tracker.restore(logged.watermark_ms, &Default::default());
    }
    if let Some(commit) = &position.commit {
        // A batch to be repeated keeps the watermark it was logged with; the commit before it moved no further.
        tracker.restore(commit.next_batch_watermark_ms, &commit.node_watermarks_ms);
    }

    let pool = &plan.session.runtime_env().memory_pool;
    let tree = plan.watermark_tree.clone();
    let state = StateKeeper::open(
        (&plan.physical, &plan.meanings),
        tree,
        &start.checkpoint,
        position.commit.as_ref(),
        run_id,
        pool,
    )
    .await
    .map_err(with_query)?;
    if position.commits_lost && !state.is_empty() {
        return Err(with_query(
            Error::damaged("commits are missing, and with them the names of the files that are the query's state")
                .file("commits")
                .hint("restore the folder `commits` from a backup, or start with a new checkpoint"),
        ));
    }

    let mut readers: Vec<Box<dyn SourceReader>> = vec![];
    for (number, source) in plan.sources.iter().enumerate() {
        readers.push(
            open_source(source, number, &start, &plan.session, belongings.sources.get(number))
                .await
                .map_err(with_query)?,
        );
    }
    let context = SinkContext {
        name: SinkName::Output,
        schema: Arc::clone(&plan.schema),
        output_mode: start.output_mode,
        query_id: id,
        run_id,
        next_batch: position.next,
        next_batch_may_be_taken: position.repeat.is_some(),
        session: Arc::clone(&plan.session),
        clock: Arc::clone(&start.clock),
        durable: start.config.durable,
    };
    let sinks = match Sinks::open(output, dead_letters, context).await {
        Ok(sinks) => sinks,
        Err(error) => return Err(with_query(overtaken(&offsets, &commits, position.tails, error).await)),
    };

    let shared = Arc::new(Shared {
        id,
        run_id,
        name: start.name,
        guarantee: sinks.guarantee,
        plan: plan.display(),
        unbounded_state: plan.unbounded.clone(),
        state: watch::Sender::new(State {
            status: QueryStatus { message: "starting".to_owned(), ..QueryStatus::default() },
            watermark_ms: tracker.is_used().then(|| tracker.watermark_ms()),
            ..State::default()
        }),
        stopping: AtomicBool::new(false),
        cancelled: Arc::new(AtomicBool::new(false)),
        wake: Notify::new(),
        may_hurry: !matches!(start.trigger, Trigger::ProcessingTime { .. }),
    });
    let events = EventQueue::new(start.listeners)?;
    let now_ms = start.clock.now_ms();
    let started = QueryEvent::Started { id, run_id, name: shared.name.clone(), timestamp: timestamp(now_ms) };
    events.tell(|| started);
    tracing::info!(query = %id, run = %run_id, next_batch = %position.next, sink = %sinks.description,
        dead_letters = ?dead_letters.map(|sink| sink.description()), guarantee = %sinks.guarantee, "query started");

    for state in &plan.unbounded {
        tracing::warn!(query = %id, "{state}: a watermark on what it goes by would bound that");
    }

    let driver = Driver {
        shared: Arc::clone(&shared),
        runtime: Handle::current(),
        clock: start.clock,
        belongings,
        conf: position.conf.map_or_else(|| pinned_conf(policy), |logged| logged.conf),
        config: start.config,
        trigger: start.trigger,
        plan,
        readers,
        sinks,
        offsets,
        commits,
        tracker,
        state,
        silences: Silences::default(),
        previous_watermark_ms: position.previous_watermark_ms,
        events,
        next: position.next,
        ends: position.ends,
        repeat: position.repeat,
        static_read_ms: None,
        batches_run: 0,
        last_trigger_ms: None,
        last_idle_event_ms: now_ms,
        _reservation: start.reservation,
    };
    std::thread::Builder::new()
        .name("tidewater-driver".to_owned())
        .spawn(move || live(driver))
        .map_err(|e| Error::internal(format!("cannot start the query's thread: {e}")).caused_by(e))?;
    Ok(shared)
}

async fn tails(offsets: &BatchLog, commits: &BatchLog) -> Result<Tails> {
    Ok((offsets.batches().await?.last().copied(), commits.batches().await?.last().copied()))
}

/// A sink that is ahead of the checkpoint belongs to another query, unless another run moved both since this one looked.
async fn overtaken(offsets: &BatchLog, commits: &BatchLog, seen: Tails, error: Error) -> Error {
    match tails(offsets, commits).await {
        Ok(now) if error.kind() == ErrorKind::IncompatibleCheckpoint && now != seen => {
            Error::new(ErrorKind::Fenced, "another run wrote to the checkpoint while this one was starting")
                .hint("let one process run the query; this one wrote nothing and can be stopped")
                .caused_by(error)
        }
        _ => error,
    }
}

/// Reads the tails of the two logs.
async fn position(offsets: &BatchLog, commits: &BatchLog, sources: usize) -> Result<Position> {
    let tails = tails(offsets, commits).await?;
    let (newest_offsets, newest_commit) = tails;
    let mut lost = false;
    let (next, logged, ends, previous_watermark_ms, repeat) = match resume(newest_offsets, newest_commit)? {
        Resume::Fresh => {
            return Ok(Position {
                tails,
                next: BatchId(0),
                repeat: None,
                ends: vec![None; sources],
                previous_watermark_ms: 0,
                commits_lost: false,
                conf: None,
                commit: None,
            });
        }
        Resume::After { last } => {
            let logged: OffsetEntry = offsets.read(last).await?;
            let watermark_ms = logged.watermark_ms;
            (last.next(), logged.clone(), logged.ends, watermark_ms, None)
        }
        Resume::Repeat { batch, commits_lost } => {
            lost = commits_lost;
            if commits_lost {
                tracing::warn!(%batch, ?newest_commit, "commits of earlier batches are missing; the last logged batch runs again");
            }
            let logged: OffsetEntry = offsets.read(batch).await?;
            let (ends, watermark_ms) = match batch.previous() {
                Some(previous) => {
                    let previous: OffsetEntry = offsets.read(previous).await?;
                    (previous.ends, previous.watermark_ms)
                }
                None => (vec![None; logged.ends.len()], 0),
            };
            (batch, logged.clone(), ends, watermark_ms, Some(logged))
        }
    };
    if logged.ends.len() != sources || ends.len() != sources {
        return Err(Error::new(
            ErrorKind::IncompatibleCheckpoint,
            format!("the checkpoint knows {} sources, and the query reads {sources}", logged.ends.len()),
        )
        .hint("sources cannot be added or removed: start the changed query with a new checkpoint"));
    }
    let commit = match newest_commit {
        Some(batch) => Some(commits.read(batch).await?),
        None => None,
    };
    Ok(Position { tails, next, repeat, ends, previous_watermark_ms, commits_lost: lost, conf: Some(logged), commit })
}

async fn open_source(
    source: &Arc<dyn Source>,
    number: usize,
    start: &Start,
    session: &Arc<SessionState>,
    identity: Option<&Option<Identity>>,
) -> Result<Box<dyn SourceReader>> {
    let context = SourceContext {
        log: sub_store(&start.checkpoint, &format!("sources/{number}")),
        session: Arc::clone(session),
        clock: Arc::clone(&start.clock),
        partitions: start.config.partitions.max(1),
        min_batches_to_retain: start.config.min_batches_to_retain,
        former_places: identity.and_then(Option::as_ref).map(|it| it.formerly.clone()).unwrap_or_default(),
    };
    let mut reader = source.open(context).await?;
    if start.trigger == Trigger::AvailableNow {
        reader.freeze().await?;
    }
    Ok(reader)
}

/// The life of the driver's thread.
fn live(mut driver: Driver) {
    let shared = Arc::clone(&driver.shared);
    // After a panic nothing of the driver is used but what its fields' destructors need.
    let outcome = catch_unwind(AssertUnwindSafe(|| driver.run()))
        .unwrap_or_else(|_| Err(Error::internal("the driver panicked; its message is on the standard error")));
    let error = match outcome {
        Ok(()) => None,
        // It was asked to.
        Err(e) if e.kind() == ErrorKind::Stopped => None,
        Err(e) => Some(e.query(shared.id)),
    };
    match &error {
        Some(error) => tracing::error!(query = %shared.id, %error, "query failed"),
        None => tracing::info!(query = %shared.id, "query ended"),
    }
    let (id, run_id) = (shared.id, shared.run_id);
    driver.events.tell(|| QueryEvent::Terminated { id, run_id, error: error.clone() });
    // Sources, sinks, listeners and the reservation are let go before anyone hears that the run is over.
    drop(driver);
    shared.state.send_modify(|state| {
        state.status = QueryStatus {
            message: error.as_ref().map_or("stopped".to_owned(), |e| format!("failed: {e}")),
            ..QueryStatus::default()
        };
        state.ended = Some(error);
    });
}
