//! Which files are the state of an operator, and how many small ones become few.
//!
//! ```text
//! state/operators.0.<run>           what each operator keeps, written before the first commit of a run that changed it
//! state/<operator>/<N>.<run>        what batch N changed; not written if it changed nothing
//! state/<operator>/<N>m<k>.<run>    several of these in one: the k-th merge, begun after batch N
//! state/<operator>/<N>p<i>.<run>    the rest of what is too large for one file; so for merges
//! ```
//!
//! `commits/N` names, for each operator, the files that are its state after batch N, oldest first, and the bounds of
//! eviction. A file that no kept commit names is nobody's: it is deleted.
//!
//! A file has a level: 0 for the changes of one batch, and one more for each merge. Sixteen of a level are merged in the
//! background into one of the next, so that each row is rewritten once per level, and a restart reads few files. A file
//! whose rows are all behind the bound leaves the list without being read again.
//!
//! **A commit stays small however long a merge takes.** A merge of large files may last for thousands of batches. Each level has
//! a merge of its own, so those of small files go on beside it, and of each level only those files wait that came since its merge
//! began: the list grows with the number of levels. That is why it stands in each commit as a whole, and there is no manifest
//! with edits to it, whose entries would have to be put together at each start and kept for each commit that is. Where merges
//! cannot keep up at all and one level has [four times sixteen](Limits::most_entries_per_level), a batch waits for the merge
//! before it is committed, and its progress says so; a merge that goes on failing ends the query then, rather than to let its
//! commits grow.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;

use super::changes::ChangeFiles;
use super::file::FileKind;
use super::limits::{Limits, Resources};
use super::merge::{Keeps, MergedRows};
use super::read::EntryReader;
use super::write::EntryWriter;
use super::{OperatorId, StateSchema};
use crate::checkpoint::MetadataStore;
use crate::checkpoint::{FileEntry, OperatorCommit};
use crate::clock::Clock;
use crate::error::{Error, Result, guarded_call};
use crate::executor::{Executor, Task, yield_now};
use crate::id::{BatchId, RunId};

/// After a merge that failed, so many batches pass before the next.
const BATCHES_BETWEEN_FAILURES: u64 = 256;

/// How long merges that were cut off may take to end. Between two record batches they look whether they are.
const PATIENCE: Duration = Duration::from_secs(10);

/// The files of one operator during a run.
#[derive(Debug)]
pub(crate) struct StateChangelog {
    operator: OperatorId,
    spec: StateSchema,
    executor: Executor,
    store: Arc<dyn MetadataStore>,
    resources: Resources,
    run: RunId,
    now: OperatorCommit,
    /// One per level at most.
    merging: Vec<Merging>,
    merges: u64,
    /// After a compaction that failed: the batch before which none is started.
    compaction_backoff_until: u64,
    /// How many merges batches have waited for.
    waited: u64,
    /// Bytes that went to storage: while batches waited, and in the background.
    changes_written: u64,
    compactions_written: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Merging {
    level: u32,
    /// The names of the files that go into it.
    parts: Vec<String>,
    /// Set: the result is of no use any more.
    cut_off: Arc<AtomicBool>,
    /// The entry to take the place of its parts; none if no row was left.
    job: Task<Result<Option<FileEntry>>>,
}

impl StateChangelog {
    /// The files as a commit names them.
    pub(crate) fn new(
        (operator, spec): (OperatorId, StateSchema),
        executor: Executor,
        store: Arc<dyn MetadataStore>,
        resources: Resources,
        run: RunId,
        now: OperatorCommit,
    ) -> Self {
        StateChangelog {
            operator,
            spec,
            executor,
            store,
            resources,
            run,
            now,
            merging: vec![],
            merges: 0,
            compaction_backoff_until: 0,
            waited: 0,
            changes_written: 0,
            compactions_written: Arc::default(),
        }
    }

    /// The files that are the operator's state now.
    pub(crate) fn now(&self) -> &OperatorCommit {
        &self.now
    }

    /// Bytes written so far: changes and merges.
    pub(crate) fn written(&self) -> (u64, u64) {
        (self.changes_written, self.compactions_written.load(Ordering::Relaxed))
    }

    /// How many merges batches have waited for so far.
    pub(crate) fn waited(&self) -> u64 {
        self.waited
    }

    /// Puts finished merges in the place of their parts, and waits for one where the next batch would make too many files of a
    /// level. Calls `waits` before each wait.
    pub(crate) async fn make_room(&mut self, batch: BatchId, waits: impl Fn()) -> Result<()> {
        self.install_finished_compactions(batch);
        while let Some(level) = crowded(&self.now.files, self.resources.limits) {
            self.start_compactions(batch);
            let Some(at) = self.merging.iter().position(|merging| merging.level == level) else { break };
            self.waited += 1;
            waits();
            // It stays in the list meanwhile: whoever ends this wait can still cut the merge off.
            let merged = (&mut self.merging[at].job).await;
            let Merging { parts, .. } = self.merging.swap_remove(at);
            let entry = merged.map_err(|error| {
                let most = self.resources.limits.most_entries_per_level();
                Error::new(
                    error.kind(),
                    format!("{most} files of state wait to be merged, and merging them failed: {error}"),
                )
                .with_hint("see to what the merge needs, then start again: it is tried again")
                .with_source(error)
            })?;
            self.install_compaction(&parts, entry);
        }
        Ok(())
    }

    /// What the tasks of a batch write their changes with.
    pub(crate) fn changes(&self) -> ChangeFiles {
        ChangeFiles {
            operator: self.operator,
            spec: self.spec.clone(),
            store: Arc::clone(&self.store),
            resources: self.resources.clone(),
            run: self.run,
        }
    }

    /// Adds what batch `batch` has written of its changes. Returns the operator's part of the commit.
    pub(crate) fn add(&mut self, batch: BatchId, changes: Option<FileEntry>, evicted_us: &[i64]) -> OperatorCommit {
        let known = self.now.bounds_us(self.spec.eviction_bounds);
        let bounds: Vec<i64> = known.iter().zip(evicted_us).map(|(known, new)| *known.max(new)).collect();
        self.now.evicted_us = bounds.iter().map(|us| (*us != i64::MIN).then_some(*us)).collect();
        self.changes_written += changes.as_ref().map_or(0, |file| file.bytes);
        self.now.files.extend(changes);
        self.now.files.retain(|file| !file.is_behind(&bounds));
        if batch.0 >= self.compaction_backoff_until {
            self.start_compactions(batch);
        }
        self.now.clone()
    }

    fn merge_writer(&self, name: String) -> EntryWriter {
        let how = (FileKind::Compacted, self.resources.limits.file_bytes);
        EntryWriter::new(&self.store, self.operator, &self.spec, name, how, &self.compactions_written)
    }

    /// Puts finished merges in the place of their parts. A failed one is tried again later.
    fn install_finished_compactions(&mut self, batch: BatchId) {
        while let Some(at) = self.merging.iter().position(|merging| merging.job.is_finished()) {
            let Merging { parts, job, .. } = self.merging.swap_remove(at);
            // It is finished: this does not wait.
            match job.now_or_never() {
                Some(Ok(entry)) => self.install_compaction(&parts, entry),
                Some(Err(error)) => {
                    self.compaction_backoff_until = batch.0 + BATCHES_BETWEEN_FAILURES;
                    tracing::warn!(operator = %self.operator, %error, "files of state could not be merged; tried again later");
                }
                None => {}
            }
        }
    }

    fn install_compaction(&mut self, parts: &[String], entry: Option<FileEntry>) {
        let place = self.now.files.iter().position(|file| parts.contains(&file.name));
        self.now.files.retain(|file| !parts.contains(&file.name));
        if let Some((place, entry)) = place.zip(entry) {
            self.now.files.insert(place, entry);
        }
    }

    /// Begins what is due, at each level where no merge is under way.
    fn start_compactions(&mut self, batch: BatchId) {
        let levels = self.now.files.iter().map(|file| file.level).max().map_or(0, |level| level + 1);
        for level in 0..levels {
            if self.merging.iter().any(|merging| merging.level == level) {
                continue;
            }
            let Some(range) = to_merge(&self.now.files, level, self.resources.limits) else { continue };
            let parts: Vec<FileEntry> = self.now.files[range.clone()].to_vec();
            let names = parts.iter().map(|file| file.name.clone()).collect();
            let name = format!("{batch}m{}.{}", self.merges, self.run.short());
            self.merges += 1;
            let cut_off = Arc::new(AtomicBool::new(false));
            let reader = |part| {
                let all = (0, u8::MAX);
                EntryReader::new(&self.store, self.operator, &self.spec, part, all, self.resources.limits)
            };
            let keeps =
                Keeps { bounds_us: self.now.bounds_us(self.spec.eviction_bounds), nothing_older: range.start == 0 };
            let merge = Merge {
                rows: MergedRows::new(self.spec.clone(), parts.iter().map(reader).collect(), keeps, &self.resources),
                writer: self.merge_writer(name),
                resources: self.resources.clone(),
                level: level + 1,
                cut_off: Arc::clone(&cut_off),
            };
            let job = guarded_call(|| "the merging of files of state".to_owned(), merge.run());
            let job = self.executor.spawn(job);
            self.merging.push(Merging { level, parts: names, cut_off, job });
        }
    }

    /// Ends merges before their time, and waits until they write nothing more; for some seconds at most, as storage may not
    /// answer. Their parts stay the operator's state.
    pub(crate) async fn cancel_compactions(&mut self, clock: &dyn Clock) {
        let merging: Vec<Merging> = self.merging.drain(..).collect();
        if merging.is_empty() {
            return;
        }
        merging.iter().for_each(|merging| merging.cut_off.store(true, Ordering::Release));
        // What they say is of no interest: nothing names their files.
        let ended = join_all(merging.into_iter().map(|merging| merging.job));
        tokio::select! {
            biased;
            _ = ended => {}
            () = clock.sleep(PATIENCE) => tracing::warn!(
                operator = %self.operator,
                "storage does not answer for more than {PATIENCE:?}: a merge of files of state is left behind"
            ),
        }
    }
}

/// Which files of a level, if any, should become one: all of them, once they are many.
fn to_merge(files: &[FileEntry], level: u32, limits: Limits) -> Option<Range<usize>> {
    let same = |file: &FileEntry| file.level == level;
    let end = files.iter().rposition(same)? + 1;
    let start = files[..end].iter().rposition(|file| !same(file)).map_or(0, |before| before + 1);
    (end - start >= limits.entries_per_level).then_some(start..end)
}

/// The level of which too many files wait.
fn crowded(files: &[FileEntry], limits: Limits) -> Option<u32> {
    let levels = files.iter().map(|file| file.level).max()?;
    let count = |level: u32| files.iter().filter(|file| file.level == level).count();
    (0..=levels).find(|level| count(*level) >= limits.most_entries_per_level())
}

/// A merge that is under way.
#[derive(Debug)]
struct Merge {
    rows: MergedRows,
    writer: EntryWriter,
    resources: Resources,
    /// Of the result.
    level: u32,
    cut_off: Arc<AtomicBool>,
}

impl Merge {
    /// The merged rows, as an entry; none if no row was left, or it was cut off.
    async fn run(mut self) -> Result<Option<FileEntry>> {
        let claimed = self.resources.reservation();
        loop {
            // Others have their turn, whether or not storage made this one wait.
            yield_now().await;
            if self.cut_off.load(Ordering::Acquire) {
                return Ok(None);
            }
            let Some(rows) = self.rows.next(|_| ()).await? else { break };
            self.writer.add(&rows).await?;
            let bytes = self.writer.memory();
            claimed.try_resize(bytes).map_err(|e| self.resources.refused(bytes, e))?;
        }
        self.writer.finish(self.level).await
    }
}

#[cfg(test)]
mod tests;
