//! The state of all operators of one run: loaded at its start, handed to each batch, written when the batch is through.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::execution::memory_pool::MemoryPool;
use datafusion::physical_plan::ExecutionPlan;

use crate::checkpoint::{
    BatchLog, CommitEntry, CreateOutcome, FileEntry, MetadataStore, StateCommit, check_version, sub_store, with_version,
};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::execution::{OperatorOutcome, OperatorWatermarks};
use crate::executor::Executor;
use crate::id::{BatchId, RunId};
use crate::plan::stateful::operators;
use crate::progress::StateOperatorProgress;
use crate::state::{
    ChangeFiles, Limits, OperatorId, OperatorState, PersistedStateSchema, Resources, StateChangelog, differences, load,
    other_versions, path,
};
use crate::watermark::{WatermarkTree, needs_no_data_batch, propagate};

/// The state of all operators of one run.
#[derive(Debug)]
pub(super) struct OperatorStates {
    tree: WatermarkTree,
    operators: Vec<Arc<OperatorState>>,
    files: Vec<StateChangelog>,
    /// What the tasks of each batch write their changes with, by operator.
    pub(super) changes: Vec<Arc<ChangeFiles>>,
    store: Arc<dyn MetadataStore>,
    run: RunId,
    /// The file that describes what each operator keeps, and what it says.
    schema: Option<String>,
    specs: Vec<PersistedStateSchema>,
    /// Whether a batch began to change what is in memory and is not committed.
    is_changing: bool,
}

/// State that a run leaves in memory for the next one of the same query, together with the commit whose state it is.
#[derive(Debug)]
pub(super) struct KeptState {
    operators: Vec<Arc<OperatorState>>,
    specs: Vec<PersistedStateSchema>,
    commit: Option<StateCommit>,
}

impl KeptState {
    /// Whether it is what this commit names, of operators that are the same. The names of files are unique, so the same
    /// names are the same state.
    fn is_of(
        &self,
        commit: Option<&StateCommit>,
        specs: &[PersistedStateSchema],
        partitions: impl Iterator<Item = usize>,
    ) -> bool {
        self.commit.as_ref() == commit
            && self.specs == specs
            && self.operators.iter().map(|operator| operator.partitions()).eq(partitions)
    }
}

impl OperatorStates {
    /// Loads what the newest commit names, unless it is that which was kept; refuses a checkpoint whose state is not that of
    /// this plan. What was kept and does not fit is dropped first.
    pub(super) async fn open(
        (plan, meanings): (&Arc<dyn ExecutionPlan>, &[Vec<String>]),
        tree: WatermarkTree,
        (checkpoint, commit): (&Arc<dyn MetadataStore>, Option<&CommitEntry>),
        run: RunId,
        (limits, pool): (Limits, &Arc<dyn MemoryPool>),
        executor: &Executor,
        kept: &mut Option<KeptState>,
    ) -> Result<Self> {
        let store = sub_store(checkpoint, "state");
        let found = operators(plan);
        let specs = found.iter().zip(meanings).map(|(operator, meaning)| operator.spec().to_persisted(meaning));
        let specs: Vec<PersistedStateSchema> = specs.collect();
        let mut tells_all = true;
        let known = commit.and_then(|commit| commit.state.as_ref());
        if let Some(commit) = commit {
            let old = match &commit.state {
                Some(state) => read_specs(store.as_ref(), &state.schema).await?,
                None => vec![],
            };
            check_specs(&old, &specs)?;
            if let Some(others) = other_versions(&old, &specs) {
                tracing::warn!("{others}");
            }
            tells_all = old.iter().zip(&specs).all(|(old, new)| old.meaning.is_empty() == new.meaning.is_empty());
        }
        if let Some(known) = known.filter(|known| known.operators.len() != found.len()) {
            return Err(Error::damaged(format!(
                "the newest commit has the state of {} operators, and the query keeps that of {}",
                known.operators.len(),
                found.len()
            ))
            .with_file("commits")
            .with_hint("restore the folder `commits` from a backup, or start with a new checkpoint"));
        }
        let partitions = found.iter().map(|operator| operator.properties().output_partitioning().partition_count());
        let partitions: Vec<usize> = partitions.collect();
        if !kept.as_ref().is_some_and(|kept| kept.is_of(known, &specs, partitions.iter().copied())) {
            *kept = None;
        }
        let mut states = vec![];
        let mut files = vec![];
        for ((number, operator), partitions) in found.into_iter().enumerate().zip(partitions) {
            let id = OperatorId(number);
            let owner = format!("operator {id} ({})", operator.spec().operator);
            let resources = Resources::new(limits, pool, owner);
            let now = known.and_then(|known| known.operators.get(number)).cloned().unwrap_or_default();
            let state = match kept.as_ref().and_then(|kept| kept.operators.get(number)) {
                Some(state) => Arc::clone(state),
                None => {
                    let new = (0..partitions).map(|_| operator.new_partition(&resources));
                    let new = new.collect::<Result<_, _>>()?;
                    let state = Arc::new(OperatorState::new(operator.spec(), resources.clone(), new));
                    load(id, &state, &now, &store, &resources, executor).await?;
                    state
                }
            };
            let store = Arc::clone(&store);
            files.push(StateChangelog::new((id, operator.spec()), executor.clone(), store, resources, run, now));
            states.push(state);
        }
        Ok(OperatorStates {
            changes: files.iter().map(|files| Arc::new(files.changes())).collect(),
            tree,
            operators: states,
            files,
            store,
            run,
            // What an older release left unsaid is said from the next commit on.
            schema: known.filter(|_| tells_all).map(|known| known.schema.clone()),
            specs,
            is_changing: false,
        })
    }

    /// A batch begins to change the state in memory.
    pub(super) fn begin_batch(&mut self) {
        self.is_changing = true;
    }

    /// The batch is committed: what is in memory is what its commit names.
    pub(super) fn end_batch(&mut self) {
        self.is_changing = false;
    }

    /// What a next run may go on from: nothing, where a batch has changed it that was not committed.
    pub(super) fn into_kept(self) -> Option<KeptState> {
        let commit = self.now();
        (!self.is_changing).then_some(KeptState { operators: self.operators, specs: self.specs, commit })
    }

    /// How many operators keep state.
    pub(super) fn operators(&self) -> usize {
        self.operators.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.operators.is_empty()
    }

    /// Whether the watermark moved so that a batch without rows has something to do.
    pub(super) fn needs_no_data_batch(&self, ran_ms: i64, next_ms: i64) -> bool {
        needs_no_data_batch(&self.tree, self.operators.len(), ran_ms, next_ms)
    }

    /// What each operator goes by in a batch whose watermark is `watermark_ms`, after one whose was `previous_ms`.
    pub(super) fn watermarks(&self, previous_ms: i64, watermark_ms: i64) -> Vec<OperatorWatermarks> {
        let count = self.operators.len();
        let (late, evict) = (propagate(&self.tree, count, previous_ms), propagate(&self.tree, count, watermark_ms));
        late.into_iter()
            .zip(evict)
            .map(|(late_watermark_ms, eviction_watermark_ms)| OperatorWatermarks {
                late_watermark_ms,
                eviction_watermark_ms,
            })
            .collect()
    }

    /// The state of each operator.
    pub(super) fn states(&self) -> Vec<Arc<OperatorState>> {
        self.operators.clone()
    }

    /// Waits for merges where too many files of state wait for them. A merge takes the time it needs: this has no limit.
    /// Calls `waits` before each wait.
    pub(super) async fn make_room(&mut self, batch: BatchId, waits: impl Fn()) -> Result<()> {
        for files in &mut self.files {
            files.make_room(batch, &waits).await?;
        }
        Ok(())
    }

    /// Takes in what the tasks of a batch have written of its changes. What is returned becomes part of its commit.
    pub(super) async fn commit(&mut self, batch: BatchId, outcomes: &[OperatorOutcome]) -> Result<StateCommit> {
        let schema = match &self.schema {
            Some(schema) => schema.clone(),
            None => {
                let name = format!("operators.{batch}.{}", self.run.short());
                write_specs(self.store.as_ref(), &name, &self.specs).await?;
                self.schema = Some(name.clone());
                name
            }
        };
        let add = |(files, outcome): (&mut StateChangelog, &OperatorOutcome)| {
            files.add(batch, outcome.changes.clone(), &outcome.evicted_us)
        };
        Ok(StateCommit { schema, operators: self.files.iter_mut().zip(outcomes).map(add).collect() })
    }

    /// Cuts off what is being merged in the background: once this returns, the run writes no more state.
    pub(super) async fn cancel_compactions(&mut self, clock: &dyn Clock) {
        for files in &mut self.files {
            files.cancel_compactions(clock).await;
        }
    }

    /// What each operator did in a batch.
    pub(super) fn progress(
        &self,
        watermarks: &[OperatorWatermarks],
        outcomes: &[OperatorOutcome],
        commit_ms: f64,
    ) -> Vec<StateOperatorProgress> {
        let report = |(number, (watermarks, outcome)): (usize, (&OperatorWatermarks, &OperatorOutcome))| {
            let (state, files) = (self.operators.get(number)?, self.files.get(number)?);
            let counts = outcome.counts;
            let (changes, merges) = files.written();
            Some(StateOperatorProgress {
                operator_name: state.spec.operator.to_owned(),
                num_rows_total: outcome.rows,
                num_rows_updated: counts.rows_updated,
                num_rows_removed: counts.rows_removed,
                num_rows_dropped_by_watermark: counts.rows_dropped_late,
                num_dropped_duplicate_rows: counts.rows_dropped_duplicate,
                num_rows_dropped_without_session: counts.rows_without_session,
                memory_used_bytes: outcome.bytes,
                commit_time_ms: commit_ms,
                num_shuffle_partitions: state.partitions() as u64,
                late_watermark_ms: (watermarks.late_watermark_ms != i64::MIN).then_some(watermarks.late_watermark_ms),
                watermark_ms: (watermarks.eviction_watermark_ms != i64::MIN)
                    .then_some(watermarks.eviction_watermark_ms),
                state_bytes_written: changes,
                compaction_bytes_written: merges,
                files: files.now().files.len() as u64,
                merges_waited_for: files.waited(),
            })
        };
        watermarks.iter().zip(outcomes).enumerate().filter_map(report).collect()
    }

    /// Deletes the files that the commit of batch `old` names, and neither the next one nor what this run has now: once a
    /// file is no longer named, no later commit names it again.
    pub(super) async fn expire_batch(&self, commits: &BatchLog, old: BatchId) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let named = |entry: CommitEntry| entry.state.map(|state| names(&state)).unwrap_or_default();
        let (gone, kept) = (named(commits.read(old).await?), named(commits.read(old.next()).await?));
        let own = self.now().map(|state| names(&state)).unwrap_or_default();
        for name in gone.iter().filter(|name| !kept.contains(name) && !own.contains(name)) {
            self.store.delete(name).await?;
        }
        Ok(())
    }

    /// Deletes files that no kept commit names: what a crash left behind. Those of this run may yet be named, and so may
    /// those of a later one that has taken over unnoticed. It began behind batch `committed`, the last that this run
    /// committed, or not at all; so what it writes is of later batches, and what it takes over this commit names.
    pub(super) async fn delete_orphans(&self, commits: &BatchLog, committed: BatchId) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        // Files first: of those that are listed, every one that is ever to be named and not newer is named by a commit now.
        let mut there: Vec<String> = self.store.list("").await?;
        for number in 0..self.operators.len() {
            let files = self.store.list(&number.to_string()).await?;
            there.extend(files.iter().map(|name| path(OperatorId(number), name)));
        }
        let mut named: HashSet<String> = self.now().iter().flat_map(names).collect();
        for batch in commits.batches().await? {
            let commit: CommitEntry = commits.read(batch).await?;
            named.extend(commit.state.iter().flat_map(names));
        }
        let own = format!(".{}", self.run.short());
        let may_go = |name: &String| {
            !named.contains(name) && !name.ends_with(&own) && batch_of(name).is_some_and(|batch| batch <= committed)
        };
        for name in there.iter().filter(|name| may_go(name)) {
            self.store.delete(name).await?;
        }
        Ok(())
    }

    /// What the last commit of this run names; nothing before its first.
    fn now(&self) -> Option<StateCommit> {
        let operators = self.files.iter().map(|files| files.now().clone()).collect();
        self.schema.clone().map(|schema| StateCommit { schema, operators })
    }
}

/// All files that a commit names.
fn names(state: &StateCommit) -> Vec<String> {
    let files = state.operators.iter().enumerate().flat_map(|(number, operator)| {
        operator.files.iter().flat_map(FileEntry::files).map(move |file| path(OperatorId(number), &file.name))
    });
    files.chain([state.schema.clone()]).collect()
}

/// The batch that a file of state belongs to, by its name; none if it is not one of ours.
fn batch_of(name: &str) -> Option<BatchId> {
    let name = name.rsplit('/').next().unwrap_or(name);
    let name = name.strip_prefix("operators.").unwrap_or(name);
    let digits = name.find(|c: char| !c.is_ascii_digit())?;
    name[..digits].parse().ok().map(BatchId)
}

fn check_specs(old: &[PersistedStateSchema], new: &[PersistedStateSchema]) -> Result<()> {
    let found = differences(old, new);
    if found.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::IncompatibleCheckpoint,
        format!("the state in the checkpoint is not that of this query: {}", found.join("; ")),
    )
    .with_hint(
        "put the query back as it was, or start the changed one with a new checkpoint; output columns may be renamed, and delays, \
         filters and the number of partitions may change",
    ))
}

async fn write_specs(store: &dyn MetadataStore, name: &str, specs: &[PersistedStateSchema]) -> Result<()> {
    let lines = specs.iter().map(|spec| serde_json::json!(spec).to_string());
    match store.create(name, Bytes::from(with_version(lines))).await? {
        CreateOutcome::Created => Ok(()),
        CreateOutcome::AlreadyExists => {
            Err(Error::damaged("a file that only this run could have written is there already")
                .with_file(store.full_name(name))
                .with_hint("something else writes to the checkpoint: give each query a folder of its own"))
        }
    }
}

async fn read_specs(store: &dyn MetadataStore, name: &str) -> Result<Vec<PersistedStateSchema>> {
    let file = store.full_name(name);
    let torn = |what: String| {
        Error::damaged(what).with_file(&file).with_hint("restore it from a backup, or start with a new checkpoint")
    };
    let contents =
        store.read(name).await?.ok_or_else(|| torn("the newest commit names it, and it is not there".into()))?;
    let text = std::str::from_utf8(&contents).map_err(|e| torn(format!("the file is not text: {e}")))?;
    let lines = check_version(text, &file)?;
    lines
        .map(|line| serde_json::from_str(line).map_err(|e| torn(format!("a line does not describe an operator: {e}"))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_batch() {
        for (name, batch) in [
            ("0/12.7d9612d0", Some(12)),
            ("3/12m0.7d9612d0", Some(12)),
            ("operators.0.7d9612d0", Some(0)),
            ("operators.x", None),
            ("0/notes.txt", None),
            ("0/12", None),
        ] {
            assert_eq!(batch_of(name), batch.map(BatchId), "{name}");
        }
    }
}
