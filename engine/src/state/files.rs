//! Which files are the state of an operator, and how many small ones become few.
//!
//! ```text
//! state/operators.0.<run>           what each operator keeps, written before the first commit of a run that changed it
//! state/<operator>/<N>.<run>        what batch N changed; not written if it changed nothing
//! state/<operator>/<N>m<k>.<run>    several of these in one: the k-th merge, whose newest part is of batch N
//! ```
//!
//! `commits/N` names, for each operator, the files that are its state after batch N, oldest first, and the bounds of
//! eviction. A file that no kept commit names is nobody's: it is deleted.
//!
//! A file has a level: 0 for the changes of one batch, and one more for each merge. Sixteen of a level are merged in the
//! background into one of the next, so that each row is rewritten once per level, and a restart reads few files. A file
//! whose rows are all behind the bound leaves the list without being read again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arrow::array::{Array, AsArray, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::record_batch::RecordBatch;
use arrow::row::{RowConverter, SortField};
use futures::FutureExt;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::file::{self, Effort};
use super::spelling::rows_without_slack;
use super::{OperatorId, StateSpec};
use crate::checkpoint::{CheckpointStore, Created};
use crate::error::{Error, Result};
use crate::id::{BatchId, RunId};

/// So many files of a level are merged into one of the next.
const FILES_PER_LEVEL: usize = 16;

/// After a merge that failed, so many batches pass before the next.
const BATCHES_BETWEEN_FAILURES: u64 = 256;

/// The state of all operators after a batch, as `commits/N` names it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StateCommit {
    /// The file that tells what each operator keeps.
    pub(crate) schema: String,
    /// By operator.
    pub(crate) operators: Vec<OperatorCommit>,
}

/// The state of one operator after a batch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OperatorCommit {
    /// Oldest first.
    #[serde(default)]
    pub(crate) files: Vec<FileEntry>,
    /// By side: rows due at or before this µs are gone; null if none ever went.
    #[serde(default)]
    pub(crate) evicted_us: Vec<Option<i64>>,
}

/// One file of changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FileEntry {
    /// Within the operator's folder.
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// How often its rows have been merged.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) level: u32,
    /// By side: the latest time of its rows, in µs, the least number where there is none; null where one is never due.
    #[serde(default)]
    pub(crate) last_us: Vec<Option<i64>>,
}

fn is_zero(level: &u32) -> bool {
    *level == 0
}

impl OperatorCommit {
    /// The bounds, with `i64::MIN` for none.
    pub(crate) fn bounds_us(&self, sides: usize) -> Vec<i64> {
        (0..sides).map(|side| self.evicted_us.get(side).copied().flatten().unwrap_or(i64::MIN)).collect()
    }
}

/// The files of one operator during a run.
#[derive(Debug)]
pub(crate) struct StateFiles {
    operator: OperatorId,
    spec: StateSpec,
    store: Arc<dyn CheckpointStore>,
    run: RunId,
    now: OperatorCommit,
    merging: Option<Merging>,
    merges: u64,
    /// After a merge that failed: the batch before which none is tried.
    no_merge_before: u64,
    /// Written while batches waited, and in the background.
    written: Arc<Written>,
}

/// Bytes that went to storage.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) changes: AtomicU64,
    pub(crate) merges: AtomicU64,
}

#[derive(Debug)]
struct Merging {
    /// The names of the files that go into it.
    parts: Vec<String>,
    /// Set: the result is of no use any more.
    cut_off: Arc<AtomicBool>,
    /// None if it was cut off.
    job: JoinHandle<Result<Option<FileEntry>>>,
}

impl StateFiles {
    /// The files as a commit names them.
    pub(crate) fn new(
        operator: OperatorId,
        spec: StateSpec,
        store: Arc<dyn CheckpointStore>,
        run: RunId,
        now: OperatorCommit,
    ) -> Self {
        StateFiles {
            operator,
            spec,
            store,
            run,
            now,
            merging: None,
            merges: 0,
            no_merge_before: 0,
            written: Arc::default(),
        }
    }

    /// The files that are the operator's state now.
    pub(crate) fn now(&self) -> &OperatorCommit {
        &self.now
    }

    /// Bytes written so far: changes and merges.
    pub(crate) fn written(&self) -> (u64, u64) {
        (self.written.changes.load(Ordering::Relaxed), self.written.merges.load(Ordering::Relaxed))
    }

    /// Writes what batch `batch` changed. Returns the operator's part of the commit.
    pub(crate) async fn add(
        &mut self,
        batch: BatchId,
        changes: &[RecordBatch],
        evicted_us: &[i64],
        runtime: &Handle,
    ) -> Result<OperatorCommit> {
        self.take_merged(batch);
        let known = self.now.bounds_us(self.spec.sides);
        let bounds: Vec<i64> = known.iter().zip(evicted_us).map(|(known, new)| *known.max(new)).collect();
        self.now.evicted_us = bounds.iter().map(|us| (*us != i64::MIN).then_some(*us)).collect();
        if !changes.is_empty() {
            let name = format!("{batch}.{}", self.run.short());
            let contents = file::encode(&self.spec, changes, Effort::Fast)?;
            self.written.changes.fetch_add(contents.len() as u64, Ordering::Relaxed);
            let last_us = file::last_times_us(&self.spec, changes);
            let entry = write(self.store.as_ref(), self.operator, name, contents, 0, &last_us).await?;
            self.now.files.push(entry);
        }
        self.now.files.retain(|file| !is_behind(file, &bounds));
        self.begin_merge(batch, runtime);
        Ok(self.now.clone())
    }

    /// Puts a finished merge in the place of its parts. A failed one is tried again later.
    fn take_merged(&mut self, batch: BatchId) {
        let Some(merging) = self.merging.take_if(|merging| merging.job.is_finished()) else { return };
        // It is finished: this does not wait.
        match merging.job.now_or_never() {
            Some(Ok(Ok(Some(entry)))) => {
                let place = self.now.files.iter().position(|file| merging.parts.contains(&file.name));
                self.now.files.retain(|file| !merging.parts.contains(&file.name));
                if let Some(place) = place {
                    self.now.files.insert(place, entry);
                }
            }
            Some(Ok(Err(error))) => {
                self.no_merge_before = batch.0 + BATCHES_BETWEEN_FAILURES;
                tracing::warn!(operator = %self.operator, %error, "files of state could not be merged; tried again later");
            }
            other => {
                tracing::warn!(operator = %self.operator, ?other, "merging files of state was cut off; tried again later")
            }
        }
    }

    fn begin_merge(&mut self, batch: BatchId, runtime: &Handle) {
        if self.merging.is_some() || batch.0 < self.no_merge_before {
            return;
        }
        let Some(range) = to_merge(&self.now.files) else { return };
        let parts: Vec<FileEntry> = self.now.files[range.clone()].to_vec();
        let names = parts.iter().map(|file| file.name.clone()).collect();
        let name = format!("{batch}m{}.{}", self.merges, self.run.short());
        self.merges += 1;
        let cut_off = Arc::new(AtomicBool::new(false));
        let job = Merge {
            operator: self.operator,
            spec: self.spec.clone(),
            store: Arc::clone(&self.store),
            parts,
            name,
            bounds_us: self.now.bounds_us(self.spec.sides),
            nothing_older: range.start == 0,
            written: Arc::clone(&self.written),
            cut_off: Arc::clone(&cut_off),
        };
        let handle = runtime.clone();
        let job = runtime.spawn_blocking(move || job.run(&handle));
        self.merging = Some(Merging { parts: names, cut_off, job });
    }

    /// Ends a merge before its time, and waits until it writes nothing more. Its parts stay the operator's state.
    pub(crate) async fn cut_off_merge(&mut self) {
        let Some(merging) = self.merging.take() else { return };
        merging.cut_off.store(true, Ordering::Release);
        merging.job.abort();
        // What it says is of no interest: nothing names its file.
        let _ = merging.job.await;
    }
}

/// The name of an operator's file within the store.
pub(crate) fn path(operator: OperatorId, name: &str) -> String {
    format!("{operator}/{name}")
}

async fn write(
    store: &dyn CheckpointStore,
    operator: OperatorId,
    name: String,
    contents: bytes::Bytes,
    level: u32,
    last_us: &[i64],
) -> Result<FileEntry> {
    let bytes = contents.len() as u64;
    let path = path(operator, &name);
    if store.create(&path, contents).await? == Created::Exists {
        return Err(Error::damaged("a file that only this run could have written is there already")
            .file(store.full_name(&path))
            .hint("something else writes to the checkpoint: give each query a folder of its own"));
    }
    let last_us = last_us.iter().map(|us| (*us != super::NEVER).then_some(*us)).collect();
    Ok(FileEntry { name, bytes, level, last_us })
}

/// Whether all rows of a file are behind the bounds. Where a side has no latest time, nothing is known.
fn is_behind(file: &FileEntry, bounds_us: &[i64]) -> bool {
    !file.last_us.is_empty()
        && file.last_us.iter().zip(bounds_us).all(|(last, bound)| last.is_some_and(|us| us <= *bound))
}

/// Which files, if any, should become one: the newest of one level, with the levels below it, once they are many.
fn to_merge(files: &[FileEntry]) -> Option<std::ops::Range<usize>> {
    let levels = files.iter().map(|file| file.level).max()?;
    (0..=levels).find_map(|level| {
        let same = |file: &FileEntry| file.level == level;
        let end = files.iter().rposition(same)? + 1;
        let start = files[..end].iter().rposition(|file| !same(file)).map_or(0, |before| before + 1);
        (end - start >= FILES_PER_LEVEL).then_some(start..end)
    })
}

#[derive(Debug)]
struct Merge {
    operator: OperatorId,
    spec: StateSpec,
    store: Arc<dyn CheckpointStore>,
    parts: Vec<FileEntry>,
    name: String,
    bounds_us: Vec<i64>,
    /// The parts are the oldest files: a removal has nothing left to remove.
    nothing_older: bool,
    written: Arc<Written>,
    cut_off: Arc<AtomicBool>,
}

impl Merge {
    fn is_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::Acquire)
    }

    /// None if it was cut off.
    fn run(self, runtime: &Handle) -> Result<Option<FileEntry>> {
        let mut changes = vec![];
        for part in &self.parts {
            if self.is_cut_off() {
                return Ok(None);
            }
            changes.extend(runtime.block_on(read(self.store.as_ref(), self.operator, &self.spec, part))?);
        }
        let merged = newest_of_each(&self.spec, &changes, &self.bounds_us, self.nothing_older)?;
        let last_us = file::last_times_us(&self.spec, std::slice::from_ref(&merged));
        let contents = file::encode(&self.spec, &[merged], Effort::Small)?;
        if self.is_cut_off() {
            return Ok(None);
        }
        self.written.merges.fetch_add(contents.len() as u64, Ordering::Relaxed);
        let level = self.parts.iter().map(|part| part.level).max().unwrap_or(0) + 1;
        runtime.block_on(write(self.store.as_ref(), self.operator, self.name, contents, level, &last_us)).map(Some)
    }
}

/// The changes in a file that a commit names.
pub(super) async fn read(
    store: &dyn CheckpointStore,
    operator: OperatorId,
    spec: &StateSpec,
    entry: &FileEntry,
) -> Result<Vec<RecordBatch>> {
    let path = path(operator, &entry.name);
    let name = store.full_name(&path);
    let damaged = |what: String| {
        Error::damaged(what).file(&name).hint("restore it from a backup, or start with a new checkpoint")
    };
    let contents = store.read(&path).await?;
    let contents =
        contents.ok_or_else(|| damaged("a file of state that the newest commit names does not exist".to_owned()))?;
    let bytes = contents.len() as u64;
    let changes = file::decode(spec, contents, &name)?;
    if bytes != entry.bytes {
        return Err(damaged(format!("the file has {bytes} bytes, and the commit that names it says {}", entry.bytes)));
    }
    Ok(changes)
}

/// The newest change to each row that is alive.
fn newest_of_each(
    spec: &StateSpec,
    changes: &[RecordBatch],
    bounds_us: &[i64],
    nothing_older: bool,
) -> Result<RecordBatch> {
    let all = concat_batches(
        &spec.file_schema(),
        changes.iter().map(|c| plain(spec, c)).collect::<Result<Vec<_>>>()?.iter(),
    )?;
    let unique = &all.columns()[spec.unique_columns()];
    let removed = all.column(0).as_boolean();
    let converter = RowConverter::new(unique.iter().map(|c| SortField::new(c.data_type().clone())).collect())?;
    let rows = converter.convert_columns(unique)?;
    let mut seen = hashbrown::HashSet::with_capacity(all.num_rows());
    let mut kept: Vec<u32> = (0..all.num_rows())
        .rev()
        .filter(|&row| {
            seen.insert(rows.row(row))
                && file::alive(spec, &all, bounds_us, row)
                && !(nothing_older && removed.value(row))
        })
        .map(|row| row as u32)
        .collect();
    kept.reverse();
    Ok(rows_without_slack(&take_record_batch(&all, &UInt32Array::from(kept))?)?)
}

/// The same rows under the schema without metadata.
fn plain(spec: &StateSpec, change: &RecordBatch) -> Result<RecordBatch> {
    Ok(RecordBatch::try_new(spec.file_schema(), change.columns().to_vec())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(levels: &[u32]) -> Vec<FileEntry> {
        let file = |level: &u32| FileEntry { name: String::new(), bytes: 1, level: *level, last_us: vec![] };
        levels.iter().map(file).collect()
    }

    #[test]
    fn sixteen_of_a_level_become_one() {
        assert_eq!(to_merge(&files(&[])), None);
        assert_eq!(to_merge(&files(&[0; 15])), None);
        assert_eq!(to_merge(&files(&[0; 16])), Some(0..16));
        let with_older = [vec![2], vec![1; 3], vec![0; 17]].concat();
        assert_eq!(to_merge(&files(&with_older)), Some(4..21));
        let upper = [vec![2], vec![1; 16], vec![0; 3]].concat();
        assert_eq!(to_merge(&files(&upper)), Some(1..17));
    }

    #[test]
    fn a_file_is_left_behind_when_all_its_rows_are() {
        let file = |last_us: &[Option<i64>]| FileEntry { last_us: last_us.to_vec(), ..files(&[0])[0].clone() };
        assert!(is_behind(&file(&[Some(5)]), &[5]));
        assert!(!is_behind(&file(&[Some(6)]), &[5]));
        assert!(!is_behind(&file(&[None]), &[5]));
        assert!(!is_behind(&file(&[Some(5), Some(6)]), &[5, 5]));
        assert!(!is_behind(&file(&[]), &[5]));
    }
}
