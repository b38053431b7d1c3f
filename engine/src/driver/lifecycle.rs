//! Starting, running, stopping.
//!
//! All that can be wrong with a query before it reads its first row is found by [`start`], which fails then; afterwards the
//! driver keeps the first error.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use futures::FutureExt;
use tokio::sync::{Notify, watch};

use super::belongings;
use super::opening::{Logs, Opened, open};
use super::operator_states::KeptState;
use super::restart::Restarts;
use super::silence::Silences;
use super::{Driver, QueryStatus, Shared, State, sinks};
use crate::calls::{Calls, Cancel};
use crate::checkpoint::{Epoch, MetadataStore, OffsetEntry, certain, pinned_conf};
use crate::clock::Clock;
use crate::config::Settings;
use crate::error::{Error, ErrorKind, Result, guarded, guarded_call, words_of_panic};
use crate::execution::{AtWork, Runtimes, SessionRunner, at_work, runtime_is_gone};
use crate::executor::Executor;
use crate::id::RunId;
use crate::output_mode::OutputMode;
use crate::plan::{QueryPlan, plan_query};
use crate::progress::{Between, EventQueue, Phase, QueryEvent, QueryListener, timestamp};
use crate::sink::Sink;
use crate::trigger::Schedule;
use crate::watermark::{WatermarkPolicy, WatermarkTracker};

/// All that a query is started with, and started again.
#[derive(Clone)]
pub(crate) struct Start {
    pub(crate) session: SessionState,
    pub(crate) plan: LogicalPlan,
    pub(crate) sink: Arc<dyn Sink>,
    /// Where records go that sources cannot read.
    pub(crate) dead_letters: Option<Arc<dyn Sink>>,
    pub(crate) name: Option<String>,
    pub(crate) output_mode: OutputMode,
    pub(crate) trigger: Schedule,
    pub(crate) checkpoint: Arc<dyn MetadataStore>,
    pub(crate) config: Settings,
    /// What is at another place than in the runs before: from where, to where.
    pub(crate) moved: Vec<(String, String)>,
    pub(crate) watermark_policy: WatermarkPolicy,
    pub(crate) restarts: Restarts,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) executor: Executor,
}

/// What a query has only one of, however often it restarts.
pub(crate) struct Once {
    pub(crate) listeners: Vec<Arc<dyn QueryListener>>,
    /// What is the query's as long as it lives, such as its name.
    pub(crate) held: Box<dyn Send>,
}

/// What a run has opened, before it is anyone's.
struct Run {
    id: RunId,
    plan: QueryPlan,
    logs: Logs,
    opened: Opened,
    epoch: Epoch,
    policy: WatermarkPolicy,
    tracker: WatermarkTracker,
    config: Settings,
}

/// Plans the query, reads the checkpoint, opens sources and sinks, and lets the driver run. All of it on the executor: the
/// caller's runtime may have one thread, and many may start at a time.
pub(crate) async fn start(start: Start, once: Once) -> Result<Arc<Shared>> {
    let (executor, runtimes) = (start.executor.clone(), Runtimes::of_caller(&start.executor));
    let start = Start { checkpoint: certain(Arc::clone(&start.checkpoint)), ..start };
    let starts = start_here(start, once, runtimes);
    executor.spawn(guarded_call(|| "code that the query called when it started".to_owned(), starts)).await
}

async fn start_here(start: Start, once: Once, runtimes: Runtimes) -> Result<Arc<Shared>> {
    let began = start.clock.elapsed();
    let run = open_run(&start, RunId::random(), &mut None).await?;
    let (id, run_id, sinks, recovery) = (run.opened.id, run.id, &run.opened.sinks, &run.opened.recovery);
    let shared = Arc::new(Shared {
        id,
        run_id,
        name: start.name.clone(),
        guarantee: sinks.guarantee,
        plan: run.plan.display(),
        unbounded_state: run.plan.unbounded.clone(),
        state: watch::Sender::new(State {
            status: QueryStatus { message: "starting".to_owned(), ..QueryStatus::default() },
            watermark_ms: run.tracker.is_used().then(|| run.tracker.watermark_ms()),
            ..State::default()
        }),
        stopping: AtomicBool::new(false),
        cancelled: Cancel::default(),
        wake: Notify::new(),
        can_wake_early: !matches!(start.trigger, Schedule::ProcessingTime { .. }),
    });
    let events = EventQueue::new(once.listeners)?;
    let now_ms = start.clock.now_ms();
    let started = QueryEvent::Started { id, run_id, name: shared.name.clone(), timestamp: timestamp(now_ms) };
    events.send(|| started);
    tracing::info!(query = %id, run = %run_id, next_batch = %recovery.next, sink = %sinks.description,
        dead_letters = ?start.dead_letters.as_ref().map(|sink| sink.description()), guarantee = %sinks.guarantee, "query started");

    if !run.plan.names.volatile().is_empty() {
        let functions = run.plan.names.volatile().join(", ");
        tracing::warn!(query = %id, %functions, "these functions are volatile: a batch that is repeated may evaluate them anew");
    }
    for state in &run.plan.unbounded {
        tracing::warn!(query = %id, "{state}: a watermark on what it goes by would bound that");
    }

    let driver = Driver::of(run, &start, Arc::clone(&shared), runtimes, events, (Phase::Loading, began));
    // The query runs on when every handle of it is dropped.
    start.executor.clone().spawn(supervise(driver, start, once.held)).detach();
    Ok(shared)
}

/// Plans the query and opens all it needs at the place where the checkpoint ends.
async fn open_run(start: &Start, id: RunId, kept: &mut Option<KeptState>) -> Result<Run> {
    let mut start = start.clone();
    start.config.partitions = start.config.partitions.max(1);
    let (session, query) = (start.session.clone(), start.plan.clone());
    let mut plan = plan_query(session, query, start.output_mode, start.config.partitions).await?;
    let (output, dead_letters) = (start.sink.as_ref(), start.dead_letters.as_deref());
    sinks::check(output, dead_letters, start.output_mode, &plan.sources)?;
    belongings::check_no_circle(&start, &plan)?;

    let logs = Logs::new(&start.checkpoint);
    let opened = open(&mut start, &mut plan, &logs, id, kept).await;
    let (opened, epoch) = opened.map_err(|e| plan.names.in_words(e))?;
    let recovery = &opened.recovery;
    let policy = recovery.logged.as_ref().map_or(start.watermark_policy, OffsetEntry::watermark_policy);
    let mut tracker = WatermarkTracker::new(policy, plan.watermark_delays_ms.clone());
    if let Some(logged) = &recovery.logged {
        tracker.restore(logged.watermark_ms, &Default::default());
    }
    if let Some(commit) = &recovery.commit {
        // A batch that is repeated keeps the watermark it was logged with, which is that of the commit before it.
        tracker.restore(commit.next_batch_watermark_ms, &commit.node_watermarks_ms);
    }
    Ok(Run { id, plan, logs, opened, epoch, policy, tracker, config: start.config })
}

impl Driver {
    fn of(
        run: Run,
        start: &Start,
        shared: Arc<Shared>,
        runtimes: Runtimes,
        events: EventQueue,
        (phase, began): (Phase, Duration),
    ) -> Self {
        let Run { id, plan, logs, opened, epoch, policy, tracker, config } = run;
        let Opened { recovery, belongings, state, readers, sinks, .. } = opened;
        let calls = Calls::new(Arc::clone(&start.clock), shared.cancelled.clone(), config.call_timeout_ms);
        let now = start.clock.elapsed();
        let scanners = plan.scanners(Arc::clone(&start.clock));
        Driver {
            run_id: id,
            shared,
            executor: start.executor.clone(),
            runtimes,
            runner: SessionRunner::of(plan.session.config()),
            checkpoint_calls: calls.to_the_end(),
            calls,
            clock: Arc::clone(&start.clock),
            belongings,
            conf: recovery.logged.map_or_else(|| pinned_conf(policy), |logged| logged.conf),
            config,
            trigger: start.trigger,
            plan,
            readers,
            shown: Arc::new(scanners.anew()),
            scanners: Arc::new(scanners),
            sinks,
            logs,
            epoch,
            tracker,
            state,
            silences: Silences::default(),
            previous_watermark_ms: recovery.previous_watermark_ms,
            events,
            next: recovery.next,
            ends: recovery.ends,
            repeat: recovery.repeat,
            static_read: None,
            batches_run: 0,
            last_trigger: None,
            last_idle_event: now,
            idle_since: now,
            between: Between::since(began, phase, now),
        }
    }
}

/// The life of a query: drivers, one after the other, until one ends well or fails for good.
async fn supervise(mut driver: Driver, start: Start, held: Box<dyn Send>) {
    let shared = Arc::clone(&driver.shared);
    let (id, run_id) = (shared.id, shared.run_id);
    let mut failures = 0;
    let (events, error) = loop {
        let (error, began) = (run_to_its_end(&mut driver).await, driver.clock.elapsed());
        failures = if driver.batches_run > 0 { 1 } else { failures + 1 };
        let (events, runtimes, kept, let_go) = let_go(driver).await;
        let error = match error {
            Some(error) => Some(error),
            None => let_go.err(),
        };
        let delay = error.as_ref().filter(|error| error.is_retryable()).and_then(|_| start.restarts.delay(failures));
        let (Some(error), Some(delay)) = (&error, delay) else { break (events, error) };
        // The first driver is gone; what failed is the reason for each next one.
        match again(&start, &shared, runtimes, events, kept, error, delay, began, &mut failures).await {
            Ok(next) => driver = next,
            Err((events, error)) => break (events, Some(error)),
        }
    };
    let error = error.map(|e| e.with_query(id));
    match &error {
        Some(error) => tracing::error!(query = %id, %error, "query failed"),
        None => tracing::info!(query = %id, "query ended"),
    }
    // Who hears of the end may start the query again.
    drop(held);
    shared.end(error.clone());
    events.send(|| QueryEvent::Terminated { id, run_id, error });
    events.finish().await;
    shared.state.send_modify(|state| state.end_reported = true);
}

/// Why it failed, if it did.
async fn run_to_its_end(driver: &mut Driver) -> Option<Error> {
    let shared = Arc::clone(&driver.shared);
    // `at_work` marks the code of the user that is called here, to the last destructor.
    // After a panic nothing of the driver is used but to let go of it.
    let outcome = AssertUnwindSafe(at_work(shared.run_id, driver.run())).catch_unwind().await.unwrap_or_else(|panic| {
        Err(Error::internal(format!("the driver panicked: {}", words_of_panic(panic.as_ref()))))
    });
    match outcome {
        Ok(()) => None,
        // It was asked to.
        Err(e) if e.kind() == ErrorKind::Stopped && shared.cancelled.is_set() => None,
        // What else fails then has no other cause.
        Err(e) if e.kind() != ErrorKind::Stopped && driver.runtimes.are_gone() => {
            Some(place(runtime_is_gone(), &e).with_source(e))
        }
        Err(e) => Some(e),
    }
}

/// Waits, and opens everything anew; again and again while that fails for reasons that may pass. Fails with what ends the query;
/// where it was asked to stop meanwhile, that is what it had failed with.
#[expect(clippy::too_many_arguments, reason = "what outlives a driver, once")]
async fn again(
    start: &Start,
    shared: &Arc<Shared>,
    runtimes: Runtimes,
    events: EventQueue,
    mut kept: Option<KeptState>,
    error: &Error,
    mut delay: Duration,
    began: Duration,
    failures: &mut u32,
) -> std::result::Result<Driver, (EventQueue, Error)> {
    let mut error = error.clone().with_query(shared.id);
    loop {
        if shared.is_stopping() {
            return Err((events, error));
        }
        let restarting = QueryEvent::Restarting {
            id: shared.id,
            run_id: shared.run_id,
            timestamp: timestamp(start.clock.now_ms()),
            error: error.clone(),
            failures: *failures,
            delay_ms: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
        };
        events.send(|| restarting);
        tracing::warn!(query = %shared.id, %error, failures, ?delay, "query failed and starts again");
        shared
            .set_status(format!("starting again in {} ms after failure {failures}: {error}", delay.as_millis()), false);
        let next_ms = start.clock.now_ms().saturating_add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
        let opens = async {
            start.clock.sleep_until(next_ms).await;
            let opens = at_work(shared.run_id, open_run(start, RunId::random(), &mut kept));
            guarded_call(|| "code that the query called when it started again".to_owned(), opens).await
        };
        let opened = tokio::select! {
            biased;
            () = runtimes.gone() => return Err((events, place(runtime_is_gone(), &error).with_source(error))),
            () = shared.stop_requested() => return Err((events, error)),
            opened = opens => opened,
        };
        match opened {
            Ok(run) => {
                let since = (Phase::Restarting, began);
                return Ok(Driver::of(run, start, Arc::clone(shared), runtimes, events, since));
            }
            Err(next) => {
                *failures += 1;
                let next = next.with_query(shared.id);
                match start.restarts.delay(*failures).filter(|_| next.is_retryable()) {
                    Some(longer) => (delay, error) = (longer, next),
                    None => return Err((events, next)),
                }
            }
        }
    }
}

/// The error with the batch of another one.
fn place(error: Error, other: &Error) -> Error {
    match other.batch() {
        Some(batch) => error.with_batch(batch),
        None => error,
    }
}

/// Lets go of all that a driver holds but what outlives it: sources, sinks, what is written in the background. Whatever a
/// destructor does, the others have their turn. State that is committed is kept, for the case that the query starts again.
async fn let_go(driver: Driver) -> (EventQueue, Runtimes, Option<KeptState>, Result<()>) {
    let Driver { shared, runtimes, readers, scanners, sinks, mut state, logs, epoch, plan, events, clock, .. } = driver;
    let cuts_off = async {
        state.cancel_compactions(clock.as_ref()).await;
        Ok(())
    };
    let cut_off = guarded_call(|| "cutting off a merge".to_owned(), cuts_off).await;
    let _at_work = AtWork::on(shared.run_id);
    let (output, dead_letters) = sinks.into_parts();
    let dropped = [
        release("a source", readers),
        release("a source", scanners),
        release("the sink", output),
        release("the sink for dead letters", dead_letters),
        release("the plan", plan),
        release("the checkpoint", (logs, epoch)),
        release("the clock", clock),
    ];
    (events, runtimes, state.into_kept(), dropped.into_iter().fold(cut_off, Result::and))
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
