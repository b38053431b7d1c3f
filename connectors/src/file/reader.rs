//! One run's view of a folder: what is offered, in which batch, and what was done with it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::execution::runtime_env::RuntimeEnv;
use futures::{StreamExt, TryStreamExt, stream};
use tidewater::error::{Error, ErrorKind, Result};
use tidewater::internal::with_version;
use tidewater::source::{
    LatestOffset, MicroBatchStream, Offset, OffsetRange, ReadLimit, ScanRequest, SourceContext, Split,
};

use super::admission::{KeepRest, apply_read_limit};
use super::clean::{CleanSource, Cleaner};
use super::format::Format;
use super::left_out::LeftOut;
use super::listing::{ListedFile, Listing, Pattern, Remembered};
use super::manifest::MANIFEST_FOLDER;
use super::place::root_of_place;
use super::scan::parquet::MIN_CUT_BYTES;
use super::scan::text::TextOpener;
use super::scan::{FileSplit, Stretch, spread};
use super::seen::{Known, SeenFiles};
use super::settings::Settings;
use super::source_log::{FileEntry, SourceLog, head, log_offset, offset};

/// The file in the source's log that says that the log of a file sink counts. Its name is not a number: Spark passes it
/// over.
const SINK_LOG: &str = "tidewater.sink-log";

/// How many files are asked for their size at a time.
const HEADS_AT_ONCE: usize = 16;

/// Reads a folder for one run of one query.
#[derive(Debug)]
pub(super) struct FileReader {
    pattern: Pattern,
    format: Format,
    settings: Settings,
    context: SourceContext,
    log: SourceLog,
    /// Whether the log was looked at since this run holds the checkpoint.
    log_is_fresh: bool,
    seen: SeenFiles,
    /// New files that an earlier listing found and no batch had room for.
    unread: Vec<ListedFile>,
    /// What the listings before saw: all of it was offered, or is `unread`.
    remembered: Remembered,
    /// What the last listing saw and did not offer.
    left_out: LeftOut,
    /// No more than what is `unread` is offered.
    is_frozen: bool,
    /// The files of source batches that may still be read: their sizes need not be asked for again.
    recent: BTreeMap<u64, Vec<ListedFile>>,
    /// Whether a file sink writes the folder, so that its log counts; `None` until that can be decided.
    sink_log: Option<bool>,
    /// Whether it is written down that the log counts: without it, files of batches that failed would be read, too.
    reads_sink_log: bool,
    /// Whether the folder above all files has been there: it must be as long as the query.
    root_was_there: bool,
    cleaner: Option<Cleaner>,
    /// The first source batch whose files are still to be cleaned up, as far as this run knows.
    clean_from: Option<u64>,
}

impl FileReader {
    pub(super) async fn open(
        pattern: Pattern,
        format: Format,
        schema: SchemaRef,
        settings: Settings,
        context: SourceContext,
    ) -> Result<Self> {
        let exists = pattern.check_exists();
        settings.names.check(&schema)?;
        let all = (0..schema.fields().len()).collect();
        let (mode, corrupt_column) = (settings.mode, &settings.corrupt_column);
        let columns = (Arc::clone(&schema), Arc::clone(&schema));
        let text = TextOpener::new(&format, columns.0, all, columns.1, mode, corrupt_column, Arc::default());
        if let Some(text) = text {
            text.check()?;
        }
        let clean = settings.clean_source()?;
        let cleaner = Cleaner::new(&clean, &pattern)?;
        let log = SourceLog::open(Arc::clone(&context.log), context.min_batches_to_retain).await?;
        // Whoever has read files there, or names a folder and not a glob, knows that it was.
        let root_was_there = !pattern.is_glob() || log.latest().is_some();
        let former: Vec<String> = context.former_places.iter().map(|place| root_of_place(place)).collect();
        let deep = pattern.recursive || pattern.is_glob();
        let log = log.moved(&former, &root_of_place(&pattern.place()), deep)?;
        let mut seen = SeenFiles::new(settings.effective_age_ms()?, settings.by_name);
        for entry in log.whole().await? {
            seen.add(&entry.path, entry.timestamp);
        }
        seen.purge();
        if cleaner.is_none() || !is_gone_after_reading(&pattern, &seen) {
            exists?;
        }
        let reads_sink_log = context.log.read(SINK_LOG).await?.is_some();
        let reader = FileReader {
            pattern,
            format,
            settings,
            context,
            log,
            log_is_fresh: false,
            seen,
            unread: vec![],
            remembered: Remembered::default(),
            left_out: LeftOut::default(),
            is_frozen: false,
            recent: BTreeMap::new(),
            sink_log: reads_sink_log.then_some(true),
            reads_sink_log,
            root_was_there,
            cleaner,
            clean_from: None,
        };
        if clean != CleanSource::Off {
            reader.refuse_sink_log().await?;
        }
        Ok(reader)
    }

    fn runtime(&self) -> &RuntimeEnv {
        self.context.session.runtime_env()
    }

    async fn refuse_sink_log(&self) -> Result<()> {
        if self.pattern.has_sink_log(self.runtime()).await? {
            return Err(Error::unsupported(format!("`cleanSource` for `{}`, which a file sink writes", self.pattern))
                .with_hint("set `cleanSource` to `off`: the sink's log names its files permanently"));
        }
        Ok(())
    }

    fn lost_sink_log(&self) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            format!(
                "the log of the file sink that writes `{}` is gone: which files count cannot be known",
                self.pattern
            ),
        )
        .with_file(format!("{}/{MANIFEST_FOLDER}", self.pattern.root().uri()))
        .with_hint("put the folder back; to read whatever files lie there, start with a new checkpoint")
    }

    /// The files that are there, but for those that `before` remembers.
    async fn list(&mut self, before: Remembered) -> Result<(Listing, Remembered)> {
        if self.cleaner.is_some() && is_gone_after_reading(&self.pattern, &self.seen) {
            return Ok((Listing { is_whole: true, ..Listing::default() }, before));
        }
        if self.sink_log.is_none() && self.pattern.has_sink_log(self.runtime()).await? {
            self.sink_log = Some(true);
        }
        let mut found = match self.sink_log {
            Some(true) => {
                self.pattern.check_still_there(&mut self.root_was_there)?;
                if !self.pattern.has_sink_log(self.runtime()).await? {
                    return Err(self.lost_sink_log());
                }
                let files = self.pattern.committed(self.runtime()).await?;
                (Listing { files, is_whole: true, ..Listing::default() }, before)
            }
            _ => {
                let now = self.context.clock.elapsed();
                let (mut listing, remembered) = self.pattern.list_new(self.runtime(), before, now).await?;
                self.left_out.omitted(&self.pattern.to_string(), std::mem::take(&mut listing.omitted));
                // Once files without `_spark_metadata` were read, a log that appears later is ignored: it lists only
                // its own files.
                self.sink_log = self.sink_log.or((!listing.files.is_empty()).then_some(false));
                (listing, remembered)
            }
        };
        // After the listing, which takes a folder that is gone for an empty one.
        self.pattern.check_still_there(&mut self.root_was_there)?;
        if self.sink_log == Some(true) && self.cleaner.is_some() {
            self.refuse_sink_log().await?;
        }
        found.0.files.sort_by(|a, b| (a.modified_ms, &a.uri).cmp(&(b.modified_ms, &b.uri)));
        if self.settings.latest_first {
            found.0.files.reverse();
        }
        Ok(found)
    }

    /// All files that are there and were never offered, in the order in which they are to be read, and what to remember
    /// once each of them is offered or kept. Whoever fails to do so remembers nothing, and so the next listing is a whole one.
    async fn list_new(&mut self) -> Result<(Vec<ListedFile>, Remembered)> {
        let before = std::mem::take(&mut self.remembered);
        let (Listing { mut files, is_whole, .. }, remembered) = self.list(before).await?;
        let (mut changed, mut too_old) = (vec![], vec![]);
        files.retain(|file| match self.seen.look_up(&file.uri, file.modified_ms) {
            Known::New => true,
            Known::Offered => false,
            Known::Changed => {
                changed.push(file.uri.clone());
                false
            }
            Known::TooOld => {
                too_old.push(file.uri.clone());
                false
            }
        });
        let input = self.pattern.to_string();
        self.left_out.changed(&input, changed, is_whole);
        self.left_out.too_old(&input, too_old, is_whole);
        Ok((files, remembered))
    }

    /// Learns what the run before may have offered while this one was starting.
    async fn catch_up(&mut self) -> Result<()> {
        if !self.log_is_fresh {
            for entry in self.log.catch_up().await? {
                self.seen.add(&entry.path, entry.timestamp);
            }
            self.unread.retain(|file| self.seen.look_up(&file.uri, file.modified_ms) == Known::New);
            self.log_is_fresh = true;
        }
        Ok(())
    }

    /// Writes `files` as the next source batch.
    async fn offer(&mut self, files: Vec<ListedFile>) -> Result<()> {
        let id = self.log.latest().map_or(0, |latest| latest + 1);
        let entry = |file: &ListedFile| FileEntry { path: file.uri.clone(), timestamp: file.modified_ms, batch_id: id };
        let entries: Vec<_> = files.iter().map(entry).collect();
        if self.sink_log == Some(true) && !self.reads_sink_log {
            self.context.log.create(SINK_LOG, with_version([]).into()).await?;
            self.reads_sink_log = true;
        }
        self.log.add(id, &entries).await?;
        self.log.purge().await;
        for file in &files {
            self.seen.add(&file.uri, file.modified_ms);
        }
        self.seen.purge();
        self.recent.insert(id, files);
        Ok(())
    }

    /// The files of a range, with their sizes, and those that are gone and that the query goes on without.
    async fn files_of(&mut self, start: Option<u64>, end: u64) -> Result<(Vec<ListedFile>, Vec<String>)> {
        let first = start.map_or(0, |start| start + 1);
        if (first..=end).all(|id| self.recent.contains_key(&id)) {
            let files = self.recent.range(first..=end).flat_map(|(_, files)| files);
            // One that was empty may have been about to be filled.
            if files.clone().all(|file| file.size > 0) {
                return Ok((files.cloned().collect(), vec![]));
            }
        }
        let entries = self.log.between(start, end).await?;
        let runtime = self.runtime();
        let found: Vec<_> = stream::iter(entries)
            .map(|entry| async move { head(entry, runtime).await })
            .buffered(HEADS_AT_ONCE)
            .try_collect()
            .await?;
        let (mut files, mut missing, mut changed) = (vec![], vec![], vec![]);
        for (entry, found) in found {
            match found {
                Ok(file) => {
                    if file.modified_ms != entry.timestamp {
                        changed.push(entry.path);
                    }
                    files.push(file);
                }
                Err(_) if self.settings.ignored.missing_files => missing.push(entry.path),
                Err(error) => return Err(error),
            }
        }
        // A sink's log has the time at which it closed the file, which a copy need not keep.
        if !changed.is_empty() && self.sink_log == Some(false) {
            LeftOut::changed_under_batch(&self.pattern.to_string(), &changed);
        }
        Ok((files, missing))
    }
}

/// Whether the input is one file that was offered, and is not there any more: where files are cleaned up, that is as it
/// should be, and no other is expected.
fn is_gone_after_reading(pattern: &Pattern, seen: &SeenFiles) -> bool {
    let root = pattern.root();
    let is_gone = |path: PathBuf| std::fs::metadata(path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
    !pattern.is_glob() && seen.was_offered(&root.uri()) && root.on_disk().is_some_and(is_gone)
}

#[async_trait]
impl MicroBatchStream for FileReader {
    async fn prepare_for_available_now(&mut self) -> Result<()> {
        self.unread = self.list_new().await?.0;
        self.is_frozen = true;
        Ok(())
    }

    async fn latest_offset(&mut self, after: Option<&Offset>, limit: ReadLimit) -> Result<LatestOffset> {
        self.catch_up().await?;
        let after_id = after.map(log_offset).transpose()?;
        // What was offered before a crash and is in no batch yet is the next batch.
        if let Some(latest) = self.log.latest()
            && after_id < Some(latest)
        {
            return Ok(LatestOffset::at(offset(latest)).with_latest(None));
        }
        if after_id > self.log.latest() {
            let id = after_id.unwrap_or_default();
            return Err(Error::damaged(format!("source batch {id} is in a batch, but not in the file source's log"))
                .with_hint("restore the `sources` folder of the checkpoint from the same backup as `offsets`"));
        }
        let limit = match limit {
            ReadLimit::Configured => self.settings.limit(),
            ReadLimit::All => None,
        };
        let unread = std::mem::take(&mut self.unread);
        let (new, remembered) = if self.is_frozen || !unread.is_empty() && limit.is_some() {
            (unread, std::mem::take(&mut self.remembered))
        } else {
            // What is unread of an earlier listing is listed again, to be in its place among what is new.
            if !unread.is_empty() {
                self.remembered = Remembered::default();
            }
            match self.list_new().await {
                Ok(new) => new,
                // Who cannot look does not know: neither that there is something, nor that there is nothing.
                Err(why) if why.kind() == ErrorKind::Unavailable => return Ok(LatestOffset::unknown(after, why)),
                Err(error) => return Err(error),
            }
        };
        let found = new.len();
        let (files, rest) =
            apply_read_limit(new, limit, if self.is_frozen { KeepRest::ALL } else { self.settings.keep_rest() });
        let (offered, kept) = (files.len(), rest.len());
        if !files.is_empty() {
            self.offer(files).await?;
        }
        self.unread = rest;
        if offered + kept == found {
            self.remembered = remembered;
        }
        let end = self.log.latest().map(offset);
        Ok(match end {
            Some(end) if offered == found => LatestOffset::at(end),
            Some(end) => LatestOffset::at(end).with_latest(None),
            None => LatestOffset::nothing(),
        })
    }

    async fn splits(&mut self, range: &OffsetRange, _scan: &ScanRequest) -> Result<Option<Vec<Split>>> {
        let start = range.start.as_ref().map(log_offset).transpose()?;
        let end = log_offset(&range.end)?;
        // The batch before was cleaned up, or is the business of an earlier run.
        self.clean_from.get_or_insert(start.map_or(0, |start| start + 1));
        if self.sink_log.is_none() && self.pattern.has_sink_log(self.runtime()).await? {
            self.sink_log = Some(true);
        }
        let (files, mut missing) = self.files_of(start, end).await?;
        // An empty file has no rows, whatever its format asks for at the beginning.
        let files = files.iter().filter(|file| file.size > 0).map(Stretch::whole).collect();
        let min_cut_bytes = matches!(self.format, Format::Parquet).then_some(MIN_CUT_BYTES);
        let tasks = spread(files, self.context.partitions, min_cut_bytes);
        let split = |files| Split::new(&FileSplit { files, missing: std::mem::take(&mut missing) });
        tasks.into_iter().map(split).collect::<Result<_>>().map(Some)
    }

    async fn commit(&mut self, end: &Offset) -> Result<()> {
        let end = log_offset(end)?;
        // Where this run has not seen the beginning of the batch, its last source batch is all that is known to be read.
        let first = self.clean_from.unwrap_or(end);
        if let Some(mut cleaner) = self.cleaner.take() {
            if first <= end {
                let entries = self.log.between(first.checked_sub(1), end).await?;
                cleaner.clean(entries.into_iter().map(|entry| entry.path).collect(), self.runtime()).await;
            }
            self.cleaner = Some(cleaner);
        }
        self.clean_from = Some(first.max(end + 1));
        self.recent.retain(|id, _| *id > end);
        Ok(())
    }

    fn metrics(&self) -> BTreeMap<String, String> {
        let mut metrics = BTreeMap::new();
        let mut add = |name: &str, count: u64| metrics.insert(name.to_owned(), count.to_string());
        for (name, count) in self.left_out.figures() {
            add(name, count);
        }
        if let Some(cleaner) = &self.cleaner {
            add("filesCleaned", cleaner.cleaned);
            add("filesNotCleaned", cleaner.failed);
        }
        metrics
    }
}
