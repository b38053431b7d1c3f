//! Starting, running, stopping.
//!
//! All that can be wrong with a query before it reads its first row is found by [`start`], which fails then; afterwards the
//! query's thread keeps the first error.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use super::belongings;
use super::opening::{Logs, Opened, open};
use super::silence::Silences;
use super::{Driver, Shared, State, sinks};
use crate::checkpoint::{CheckpointStore, OffsetEntry, certain, pinned_conf};
use crate::clock::Clock;
use crate::config::QueryConfig;
use crate::error::{Error, ErrorKind, Result, guarded, words_of_panic};
use crate::execution::{AtWork, is_shut_down, runtime_is_gone};
use crate::id::RunId;
use crate::plan::plan_query;
use crate::progress::{EventQueue, QueryEvent, QueryListener, timestamp};
use crate::query::{OutputMode, QueryStatus, Reservation};
use crate::sink::Sink;
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

/// Plans the query, reads the checkpoint, opens sources and sinks, and lets the driver's thread run.
pub(crate) async fn start(mut start: Start) -> Result<Arc<Shared>> {
    start.checkpoint = certain(start.checkpoint);
    start.config.partitions = start.config.partitions.max(1);
    let (session, query) = (start.session.clone(), start.plan.clone());
    let mut plan = plan_query(session, query, start.output_mode, start.config.partitions).await?;
    let (output, dead_letters) = (start.sink.as_ref(), start.dead_letters.as_deref());
    sinks::check(output, dead_letters, start.output_mode, &plan.sources)?;
    belongings::check_no_circle(&start, &plan)?;

    let run_id = RunId::random();
    let logs = Logs::new(&start.checkpoint);
    let opened = open(&mut start, &mut plan, &logs, run_id).await;
    let (opened, epoch) = opened.map_err(|e| plan.names.in_words(e))?;
    let Opened { position, id, belongings, state, readers, sinks } = opened;

    let policy = position.conf.as_ref().map_or(start.watermark_policy, OffsetEntry::watermark_policy);
    let mut tracker = WatermarkTracker::new(policy, plan.watermark_delays_ms.clone());
    if let Some(logged) = &position.conf {
        tracker.restore(logged.watermark_ms, &Default::default());
    }
    if let Some(commit) = &position.commit {
        // A batch to be repeated keeps the watermark it was logged with; the commit before it moved no further.
        tracker.restore(commit.next_batch_watermark_ms, &commit.node_watermarks_ms);
    }

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
    let (now_ms, last_idle_event) = (start.clock.now_ms(), start.clock.elapsed());
    let started = QueryEvent::Started { id, run_id, name: shared.name.clone(), timestamp: timestamp(now_ms) };
    events.tell(|| started);
    tracing::info!(query = %id, run = %run_id, next_batch = %position.next, sink = %sinks.description,
        dead_letters = ?start.dead_letters.as_ref().map(|sink| sink.description()), guarantee = %sinks.guarantee, "query started");

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
        logs,
        epoch,
        tracker,
        state,
        silences: Silences::default(),
        previous_watermark_ms: position.previous_watermark_ms,
        events,
        next: position.next,
        ends: position.ends,
        repeat: position.repeat,
        static_read: None,
        batches_run: 0,
        last_trigger: None,
        last_idle_event,
        reservation: start.reservation,
    };
    std::thread::Builder::new()
        .name("tidewater-driver".to_owned())
        .spawn(move || live(driver))
        .map_err(|e| Error::internal(format!("cannot start the query's thread: {e}")).caused_by(e))?;
    Ok(shared)
}

/// The life of the driver's thread.
fn live(mut driver: Driver) {
    let shared = Arc::clone(&driver.shared);
    let (id, run_id, runtime) = (shared.id, shared.run_id, driver.runtime.clone());
    // Code of the user that is called here, to the last destructor, is told from others by this.
    let at_work = AtWork::on(run_id);
    // After a panic nothing of the driver is used but to let go of it.
    let outcome = catch_unwind(AssertUnwindSafe(|| driver.run())).unwrap_or_else(|panic| {
        Err(Error::internal(format!("the driver panicked: {}", words_of_panic(panic.as_ref()))))
    });
    let (events, reservation, let_go) = let_go(driver);
    let error = match outcome {
        Ok(()) => let_go.err(),
        // It was asked to.
        Err(e) if e.kind() == ErrorKind::Stopped && shared.cancelled.load(Ordering::Acquire) => None,
        // What else fails then has no other cause.
        Err(e) if e.kind() != ErrorKind::Stopped && is_shut_down(&runtime) => {
            Some(place(runtime_is_gone(), &e).caused_by(e))
        }
        Err(e) => Some(e),
    };
    let error = error.map(|e| e.query(id));
    match &error {
        Some(error) => tracing::error!(query = %id, %error, "query failed"),
        None => tracing::info!(query = %id, "query ended"),
    }
    // Who hears of the end may start the query again.
    drop(reservation);
    drop(at_work);
    shared.end(error.clone());
    events.tell(|| QueryEvent::Terminated { id, run_id, error });
    events.finish();
    shared.state.send_modify(|state| state.told = true);
}

/// The error with the batch of another one.
fn place(error: Error, other: &Error) -> Error {
    match other.batch_id() {
        Some(batch) => error.batch(batch),
        None => error,
    }
}

/// Lets go of all that a run holds but its reservation: sources, sinks, what is written in the background. Whatever a
/// destructor does, the others have their turn.
fn let_go(driver: Driver) -> (EventQueue, Reservation, Result<()>) {
    let Driver { runtime, readers, sinks, mut state, logs, epoch, plan, events, clock, reservation, .. } = driver;
    let cut_off = guarded(
        || "cutting off a merge".to_owned(),
        || {
            runtime.block_on(state.cut_off_merges());
            Ok(())
        },
    );
    let (output, dead_letters) = sinks.into_parts();
    let dropped = [
        release("a source", readers),
        release("the sink", output),
        release("the sink for dead letters", dead_letters),
        release("the plan", plan),
        release("the checkpoint", (state, logs, epoch)),
        release("the clock", clock),
    ];
    (events, reservation, dropped.into_iter().fold(cut_off, Result::and))
}

fn release<T>(what: &str, thing: T) -> Result<()> {
    guarded(
        || format!("the destructor of {what}"),
        || {
            drop(thing);
            Ok(())
        },
    )
}
