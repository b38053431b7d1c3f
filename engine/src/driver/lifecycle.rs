//! Starting, running, stopping.
//!
//! All that can be wrong with a query before it reads its first row is found by [`start`], which fails then; afterwards the
//! driver keeps the first error.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use futures::FutureExt;
use tokio::sync::{Notify, watch};

use super::belongings;
use super::opening::{Logs, Opened, open};
use super::silence::Silences;
use super::{Driver, Shared, State, sinks};
use crate::calls::{Calls, Cancel};
use crate::checkpoint::{CheckpointStore, OffsetEntry, certain, pinned_conf};
use crate::clock::Clock;
use crate::config::QueryConfig;
use crate::error::{Error, ErrorKind, Result, guarded, guarded_call, words_of_panic};
use crate::execution::{AtWork, Runtimes, at_work, runtime_is_gone};
use crate::executor::Executor;
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
    pub(crate) executor: Executor,
}

/// Plans the query, reads the checkpoint, opens sources and sinks, and lets the driver run. All of it on the executor: the
/// caller's runtime may have one thread, and many may start at a time.
pub(crate) async fn start(start: Start) -> Result<Arc<Shared>> {
    let (executor, runtimes) = (start.executor.clone(), Runtimes::of_caller(&start.executor));
    let starts = guarded_call(|| "code that the query called when it started".to_owned(), start_here(start, runtimes));
    executor.spawn(starts).await
}

async fn start_here(mut start: Start, runtimes: Runtimes) -> Result<Arc<Shared>> {
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
        cancelled: Cancel::default(),
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

    let calls = Calls::new(Arc::clone(&start.clock), shared.cancelled.clone(), start.config.call_timeout_ms);
    let driver = Driver {
        shared: Arc::clone(&shared),
        executor: start.executor.clone(),
        runtimes,
        checkpoint_calls: calls.to_the_end(),
        calls,
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
    // The query runs on when every handle of it is dropped.
    start.executor.spawn(live(driver)).detach();
    Ok(shared)
}

/// The life of the driver.
async fn live(mut driver: Driver) {
    let shared = Arc::clone(&driver.shared);
    let (id, run_id) = (shared.id, shared.run_id);
    // Code of the user that is called here, to the last destructor, is told from others by `at_work`.
    // After a panic nothing of the driver is used but to let go of it.
    let outcome = AssertUnwindSafe(at_work(run_id, driver.run())).catch_unwind().await.unwrap_or_else(|panic| {
        Err(Error::internal(format!("the driver panicked: {}", words_of_panic(panic.as_ref()))))
    });
    let program_is_gone = driver.runtimes.are_gone();
    driver.state.cut_off_merges().await;
    let (events, reservation, let_go) = let_go(driver);
    let error = match outcome {
        Ok(()) => let_go.err(),
        // It was asked to.
        Err(e) if e.kind() == ErrorKind::Stopped && shared.cancelled.is_set() => None,
        // What else fails then has no other cause.
        Err(e) if e.kind() != ErrorKind::Stopped && program_is_gone => Some(place(runtime_is_gone(), &e).caused_by(e)),
        Err(e) => Some(e),
    };
    let error = error.map(|e| e.query(id));
    match &error {
        Some(error) => tracing::error!(query = %id, %error, "query failed"),
        None => tracing::info!(query = %id, "query ended"),
    }
    // Who hears of the end may start the query again.
    drop(reservation);
    shared.end(error.clone());
    events.tell(|| QueryEvent::Terminated { id, run_id, error });
    events.finish().await;
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
    let Driver { shared, readers, sinks, state, logs, epoch, plan, events, clock, reservation, .. } = driver;
    let _at_work = AtWork::on(shared.run_id);
    let (output, dead_letters) = sinks.into_parts();
    let dropped = [
        release("a source", readers),
        release("the sink", output),
        release("the sink for dead letters", dead_letters),
        release("the plan", plan),
        release("the checkpoint", (state, logs, epoch)),
        release("the clock", clock),
    ];
    (events, reservation, dropped.into_iter().fold(Ok(()), Result::and))
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
