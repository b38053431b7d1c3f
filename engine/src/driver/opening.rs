//! What a run goes on from, read and opened together: the tails of the two logs, state, sources, sinks.
//!
//! ```text
//! tails ─ read and open all ─ take an epoch ─ tails ─┬─ the same: the run may begin
//!              ▲                                     └─ moved: the run before was still at it
//!              └──────────────────────────────────────────────┘
//! ```
//!
//! All that can be wrong is found before the epoch is taken, so that a query which is refused leaves the one that runs
//! alone. Another run may write and delete while this one reads; so what looks like damage is damage only if the logs have not
//! moved since. Once the epoch is taken, the run before makes one more commit at most, and this one reads again.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;

use super::Start;
use super::belongings;
use super::operator_states::{KeptState, OperatorStates};
use super::sinks::Sinks;
use crate::calls::{Calls, Cancel};
use crate::checkpoint::resume::{Resume, resume};
use crate::checkpoint::{
    BatchLog, Belongings, CommitEntry, CreateOutcome, EPOCHS, Epoch, MetadataStore, OffsetEntry,
    read_or_create_query_id, sub_store,
};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BatchId, QueryId, RunId};
use crate::identity::Identity;
use crate::plan::{QueryPlan, plan_query};
use crate::progress::Phase;
use crate::sink::{SinkContext, SinkRole};
use crate::source::{MicroBatchStream, Offset, SourceContext, whose};
use crate::state::Limits;
use crate::trigger::Schedule;

/// The newest batch in the offset log and in the commit log.
type LogTails = (Option<BatchId>, Option<BatchId>);

/// The two logs of a checkpoint.
#[derive(Debug)]
pub(super) struct Logs {
    pub(super) offsets: BatchLog,
    pub(super) commits: BatchLog,
}

impl Logs {
    pub(super) fn new(checkpoint: &Arc<dyn MetadataStore>) -> Self {
        Logs {
            offsets: BatchLog::new(Arc::clone(checkpoint), "offsets"),
            commits: BatchLog::new(Arc::clone(checkpoint), "commits"),
        }
    }

    /// Commits first: a batch is logged before it is committed, so whatever another run adds in between, no commit is seen
    /// without its batch.
    async fn tails(&self) -> Result<LogTails> {
        let commit = self.commits.batches().await?.last().copied();
        Ok((self.offsets.batches().await?.last().copied(), commit))
    }
}

/// Where a run begins, with what the logs say of it.
#[derive(Debug)]
pub(super) struct RecoveryPoint {
    pub(super) next: BatchId,
    pub(super) repeat: Option<OffsetEntry>,
    pub(super) ends: Vec<Option<Offset>>,
    /// The watermark of the batch before the next one.
    pub(super) previous_watermark_ms: i64,
    /// Commits of batches before the one to be repeated are missing.
    commits_lost: bool,
    pub(super) logged: Option<OffsetEntry>,
    pub(super) commit: Option<CommitEntry>,
}

/// Everything that a run has opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) recovery: RecoveryPoint,
    pub(super) id: QueryId,
    /// What it reads and writes, for the checkpoint to remember.
    pub(super) belongings: Belongings,
    pub(super) state: OperatorStates,
    pub(super) readers: Vec<Box<dyn MicroBatchStream>>,
    pub(super) sinks: Sinks,
}

/// Opens everything and takes the checkpoint over.
///
/// State that the run before has kept is taken over where it is that of the newest commit.
pub(super) async fn open(
    start: &mut Start,
    plan: &mut QueryPlan,
    logs: &Logs,
    run: RunId,
    kept: &mut Option<KeptState>,
) -> Result<(Opened, Epoch)> {
    let wanted_partitions = start.config.partitions;
    let epoch = Arc::new(OnceLock::new());
    loop {
        // What is opened holds for these tails of the logs alone: they are compared again before anything is believed.
        let seen = logs.tails().await?;
        let opened = match open_at(start, plan, wanted_partitions, (logs, seen), run, &epoch, kept).await {
            Ok(opened) => opened,
            Err(error) if is_from_moving(&error) && logs.tails().await? != seen => match epoch.get() {
                // The run before made its last commit meanwhile.
                Some(epoch) => {
                    Epoch::check(epoch).await?;
                    continue;
                }
                None => {
                    return Err(Error::new(
                        ErrorKind::Fenced,
                        "another run wrote to the checkpoint while this one was starting",
                    )
                    .with_hint("let one process run the query; this one wrote nothing and can be stopped")
                    .with_source(error));
                }
            },
            Err(error) => return Err(error),
        };
        // From here on the run before is fenced: it commits nothing and deletes nothing any more.
        let held = match epoch.get() {
            Some(held) => held,
            None => {
                let held = Epoch::take(&start.checkpoint, run).await?;
                recover(&start.checkpoint, plan.sources.len(), opened.state.operators()).await?;
                epoch.get_or_init(|| held)
            }
        };
        held.check().await.map_err(|e| e.with_query(opened.id))?;
        // The run before may have committed between the first look and the epoch: then all is read again.
        if logs.tails().await? == seen {
            return Ok((opened, held.clone()));
        }
        tracing::info!(query = %opened.id, "another run wrote to the checkpoint while this one was starting; reading it again");
    }
}

/// A source's own log: a run that was overtaken adds nothing to it that its successor would stumble over.
#[derive(Debug)]
struct SourceFolder {
    inner: Arc<dyn MetadataStore>,
    /// Set once the run holds the checkpoint.
    epoch: Arc<OnceLock<Epoch>>,
}

#[async_trait]
impl MetadataStore for SourceFolder {
    async fn create(&self, name: &str, contents: Bytes) -> Result<CreateOutcome> {
        if let Some(epoch) = self.epoch.get() {
            epoch.check().await?;
        }
        self.inner.create(name, contents).await
    }

    async fn read(&self, name: &str) -> Result<Option<Bytes>> {
        self.inner.read(name).await
    }

    async fn read_range(&self, name: &str, range: std::ops::Range<u64>) -> Result<Option<Bytes>> {
        self.inner.read_range(name, range).await
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        self.inner.list(folder).await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.inner.delete(name).await
    }

    async fn recover(&self, folder: &str) -> Result<()> {
        self.inner.recover(folder).await
    }

    fn full_name(&self, name: &str) -> String {
        self.inner.full_name(name)
    }
}

/// Errors that another run may have caused by going on.
pub(super) fn is_from_moving(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::DamagedCheckpoint | ErrorKind::IncompatibleCheckpoint | ErrorKind::SourceLostData)
}

/// What died in the checkpoint before may have left half-written files, and names that are not flushed.
async fn recover(checkpoint: &Arc<dyn MetadataStore>, sources: usize, operators: usize) -> Result<()> {
    let logs = ["", EPOCHS, "offsets", "commits", "sources", "state"].map(str::to_owned);
    let sources = (0..sources).map(source_folder);
    let operators = (0..operators).map(|number| format!("state/{number}"));
    for folder in logs.into_iter().chain(sources).chain(operators) {
        checkpoint.recover(&folder).await?;
    }
    Ok(())
}

async fn open_at(
    start: &mut Start,
    plan: &mut QueryPlan,
    wanted_partitions: usize,
    (logs, seen): (&Logs, LogTails),
    run: RunId,
    epoch: &Arc<OnceLock<Epoch>>,
    kept: &mut Option<KeptState>,
) -> Result<Opened> {
    let recovery = recovery_point(logs, seen, plan.sources.len()).await?;
    let partitions = recovery.repeat.as_ref().and_then(|logged| logged.partitions).unwrap_or(wanted_partitions);
    if partitions != start.config.partitions {
        if partitions != wanted_partitions {
            tracing::info!(
                partitions,
                "a batch that drew random numbers is to be repeated: this run has its partitions"
            );
        }
        start.config.partitions = partitions;
        *plan = plan_query(start.session.clone(), start.plan.clone(), start.output_mode, partitions).await?;
    }
    let id = read_or_create_query_id(start.checkpoint.as_ref(), recovery.logged.is_none()).await?;
    open_with(start, plan, recovery, id, run, epoch, kept).await.map_err(|e| e.with_query(id))
}

async fn open_with(
    start: &Start,
    plan: &QueryPlan,
    recovery: RecoveryPoint,
    id: QueryId,
    run: RunId,
    epoch: &Arc<OnceLock<Epoch>>,
    kept: &mut Option<KeptState>,
) -> Result<Opened> {
    // First whether the checkpoint is this query's at all: nothing is opened for another.
    let dead_letters = start.dead_letters.as_deref();
    let mut belongings = belongings::of(plan, start.output_mode, start.sink.as_ref(), dead_letters);
    if let Some(old) = recovery.logged.as_ref().and_then(|logged| logged.belongings.as_ref()) {
        belongings::compare(old, &mut belongings, &start.moved)?;
        belongings::check_mode(old, &belongings, !plan.watermark_delays_ms.is_empty())?;
    }
    // State before sources: what cannot be continued is refused before anything outside is asked.
    let pool = &plan.session.runtime_env().memory_pool;
    let limits = plan.session.config().get_extension::<Limits>().map_or_else(Limits::default, |limits| *limits);
    let (tree, commit) = (plan.watermark_tree.clone(), recovery.commit.as_ref());
    let physical = (&plan.physical, plan.meanings.as_slice());
    let (checkpoint, executor) = (&start.checkpoint, &start.executor);
    let memory = (limits, pool);
    let state = OperatorStates::open(physical, tree, (checkpoint, commit), run, memory, executor, kept).await?;
    if recovery.commits_lost && !state.is_empty() {
        return Err(Error::damaged(
            "commits are missing, and with them the names of the files that are the query's state",
        )
        .with_file("commits")
        .with_hint("restore the folder `commits` from a backup, or start with a new checkpoint"));
    }
    // Sources, each with a time limit. Nobody can ask a query to drop its batch that has none.
    let calls = Calls::new(Arc::clone(&start.clock), Cancel::default(), start.config.call_timeout_ms);
    let mut readers = vec![];
    for (number, source) in plan.sources.iter().enumerate() {
        let identity = belongings.sources.get(number).and_then(Option::as_ref);
        let (context, opens_frozen) =
            (source_context(start, plan, number, identity, epoch), start.trigger == Schedule::AvailableNow);
        let opens = async {
            let mut reader = source.open(context).await?;
            if opens_frozen {
                reader.prepare_for_available_now().await?;
            }
            Ok(reader)
        };
        readers.push(calls.call(Phase::Loading, || whose(source.as_ref()), opens).await?);
    }
    // Sinks last: they learn which batch may have been committed by the run before.
    let context = SinkContext {
        role: SinkRole::Output,
        schema: Arc::clone(&plan.schema),
        output_mode: start.output_mode,
        query_id: id,
        run_id: run,
        next_batch: recovery.next,
        next_batch_may_be_committed: recovery.repeat.is_some(),
        session: Arc::clone(&plan.session),
        clock: Arc::clone(&start.clock),
        durable: start.config.durable,
    };
    let sinks = Sinks::open(&start.sink, start.dead_letters.as_ref(), context, &calls).await?;
    Ok(Opened { recovery, id, belongings, state, readers, sinks })
}

fn source_context(
    start: &Start,
    plan: &QueryPlan,
    number: usize,
    identity: Option<&Identity>,
    epoch: &Arc<OnceLock<Epoch>>,
) -> SourceContext {
    let inner = sub_store(&start.checkpoint, &source_folder(number));
    SourceContext {
        log: Arc::new(SourceFolder { inner, epoch: Arc::clone(epoch) }),
        session: Arc::clone(&plan.session),
        clock: Arc::clone(&start.clock),
        partitions: start.config.partitions.max(1),
        min_batches_to_retain: start.config.min_batches_to_retain,
        former_places: identity.map(|it| it.formerly.clone()).unwrap_or_default(),
    }
}

fn source_folder(number: usize) -> String {
    format!("sources/{number}")
}

/// What the logs say of the batches at their tails.
async fn recovery_point(logs: &Logs, tails: LogTails, sources: usize) -> Result<RecoveryPoint> {
    let Logs { offsets, commits } = logs;
    let (newest_offsets, newest_commit) = tails;
    let mut lost = false;
    let (next, logged, ends, previous_watermark_ms, repeat) = match resume(newest_offsets, newest_commit)? {
        Resume::Fresh => {
            return Ok(RecoveryPoint {
                next: BatchId(0),
                repeat: None,
                ends: vec![None; sources],
                previous_watermark_ms: 0,
                commits_lost: false,
                logged: None,
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
        .with_hint("sources cannot be added or removed: start the changed query with a new checkpoint"));
    }
    let commit = match newest_commit {
        Some(batch) => Some(commits.read(batch).await?),
        None => None,
    };
    Ok(RecoveryPoint { next, repeat, ends, previous_watermark_ms, commits_lost: lost, logged: Some(logged), commit })
}
