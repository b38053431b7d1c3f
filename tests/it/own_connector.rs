//! Connectors of somebody else: written from the guide's pages alone, with nothing but the `tidewater` crate.
//!
//! A source over a folder of text files whose names ascend, and a sink that writes each batch to a text file of its number.

use std::io::ErrorKind as IoKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tidewater::arrow::array::{AsArray, RecordBatch, StringArray};
use tidewater::arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use tidewater::arrow::json::{LineDelimitedWriter, ReaderBuilder};
use tidewater::async_trait;
use tidewater::checkpoint::memory_store;
use tidewater::datafusion::datasource::memory::MemorySourceConfig;
use tidewater::datafusion::physical_plan::ExecutionPlan;
use tidewater::datafusion::prelude::*;
use tidewater::executor::block_in_place;
use tidewater::id::{PartitionId, QueryId, RunId};
use tidewater::identity::Identity;
use tidewater::prelude::*;
use tidewater::sink::{BatchStatus, DataWriter, Receipt, Sink, SinkContext, StreamingWrite};
use tidewater::source::{
    LatestOffset, MicroBatchStream, Offset, OffsetRange, ReadLimit, ScanRequest, Source, SourceContext,
};
use tidewater::testing::sink_suite::{self, SinkUnderTest};
use tidewater::testing::source_suite::{self, SourceUnderTest};

/// The lines of the files in a folder. Each file appears whole, under a name that is greater than those before, and stays.
#[derive(Debug, Clone)]
struct TextFiles {
    folder: PathBuf,
}

/// A place in them: the last file that was read, and how many there were up to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    last: String,
    files: usize,
}

impl TextFiles {
    fn names(&self) -> Result<Vec<String>> {
        let failed = |e| Error::io("list the folder of a text source", self.folder.display().to_string(), e);
        let mut names = block_in_place(|| {
            let entries = std::fs::read_dir(&self.folder)?;
            entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<std::io::Result<Vec<_>>>()
        })
        .map_err(failed)?;
        names.sort();
        Ok(names)
    }

    /// Strict: an offset of another source is an error.
    fn place(&self, offset: Option<&Offset>) -> Result<Option<Place>> {
        offset.map(|offset| offset.to(&self.description())).transpose()
    }

    fn lines(&self, name: &str) -> Result<Vec<String>> {
        let path = self.folder.join(name);
        let text = block_in_place(|| std::fs::read_to_string(&path)).map_err(|e| match e.kind() {
            IoKind::InvalidData => Error::new(ErrorKind::BadInput, "the file is not text").with_source(e),
            _ => Error::io("read a text file", path.display().to_string(), e),
        });
        Ok(text.map_err(|e| e.with_file(path.display().to_string()))?.lines().map(str::to_owned).collect())
    }
}

#[async_trait]
impl Source for TextFiles {
    fn description(&self) -> String {
        format!("text files in {}", self.folder.display())
    }

    fn schema(&self) -> SchemaRef {
        let column = |name: &str| Field::new(name, DataType::Utf8, false);
        Arc::new(Schema::new(vec![column("file"), column("line")]))
    }

    fn identity(&self) -> Option<Identity> {
        Some(Identity::new("text files").at(self.folder.display().to_string()))
    }

    async fn open(&self, _context: SourceContext) -> Result<Box<dyn MicroBatchStream>> {
        self.names()?;
        Ok(Box::new(TextReader { source: self.clone(), frozen: None }))
    }
}

#[derive(Debug)]
struct TextReader {
    source: TextFiles,
    /// The last file there was, for a query that ends by itself.
    frozen: Option<Option<String>>,
}

#[async_trait]
impl MicroBatchStream for TextReader {
    async fn prepare_for_available_now(&mut self) -> Result<()> {
        self.frozen = Some(self.source.names()?.pop());
        Ok(())
    }

    async fn latest_offset(&mut self, after: Option<&Offset>, _limit: ReadLimit) -> Result<LatestOffset> {
        let mut names = match self.source.names() {
            Ok(names) => names,
            Err(why) if why.is_retryable() => return Ok(LatestOffset::unknown(after, why)),
            Err(error) => return Err(error),
        };
        if let Some(last) = &self.frozen {
            names.retain(|name| last.as_ref().is_some_and(|last| name <= last));
        }
        let read = self.source.place(after)?;
        let files = names.len();
        Ok(match (names.pop(), after) {
            (Some(last), _) if read.is_none_or(|read| last > read.last) => {
                LatestOffset::at(Offset::try_new(&Place { last, files })?)
            }
            (_, Some(after)) => LatestOffset::at(after.clone()),
            (_, None) => LatestOffset::nothing(),
        })
    }

    async fn bind(&mut self, range: &OffsetRange, scan: &ScanRequest) -> Result<Arc<dyn ExecutionPlan>> {
        let (start, end) = (self.source.place(range.start.as_ref())?, self.source.place(Some(&range.end))?);
        let end = end.ok_or_else(|| Error::internal("a range without an end"))?;
        let mut names = self.source.names()?;
        names.retain(|name| *name <= end.last);
        if names.len() != end.files || names.last() != Some(&end.last) {
            let what = format!("{} text files up to `{}` were there, and {} are", end.files, end.last, names.len());
            return Err(Error::new(ErrorKind::SourceLostData, what).with_file(self.source.folder.display().to_string()));
        }
        let (mut files, mut lines) = (vec![], vec![]);
        for name in names.iter().filter(|name| start.as_ref().is_none_or(|start| **name > start.last)) {
            for line in self.source.lines(name)? {
                files.push(name.clone());
                lines.push(line);
            }
        }
        let schema = self.source.schema();
        let columns = vec![Arc::new(StringArray::from(files)) as _, Arc::new(StringArray::from(lines)) as _];
        let rows = RecordBatch::try_new(Arc::clone(&schema), columns)?;
        Ok(MemorySourceConfig::try_new_exec(&[vec![rows]], schema, Some(scan.projection.clone()))?)
    }
}

/// Batch N becomes the file `N`: who wrote it, then a row a line. It appears whole, and once.
#[derive(Debug, Clone)]
struct TextSink {
    folder: PathBuf,
}

/// The first line of a batch.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Writer {
    query: QueryId,
    run: RunId,
}

impl TextSink {
    fn failed(&self, action: &'static str) -> impl Fn(std::io::Error) -> Error {
        let folder = self.folder.display().to_string();
        move |e| Error::io(action, folder.clone(), e)
    }

    /// The batches that are there, in order.
    fn batches(&self) -> Result<Vec<u64>> {
        let names = block_in_place(|| {
            let entries = std::fs::read_dir(&self.folder)?;
            entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<std::io::Result<Vec<_>>>()
        })
        .map_err(self.failed("list the batches of a text sink"))?;
        let mut batches: Vec<u64> = names.iter().filter_map(|name| name.parse().ok()).collect();
        batches.sort_unstable();
        Ok(batches)
    }

    /// Who wrote a batch, and its rows; `None` if it is not there.
    fn read(&self, batch: u64) -> Result<Option<(Writer, Vec<String>)>> {
        let text = match block_in_place(|| std::fs::read_to_string(self.folder.join(batch.to_string()))) {
            Err(e) if e.kind() == IoKind::NotFound => return Ok(None),
            read => read.map_err(self.failed("read a batch of a text sink"))?,
        };
        let mut lines = text.lines().map(str::to_owned);
        let first = lines.next().unwrap_or_default();
        let writer = serde_json::from_str(&first).map_err(|e| Error::damaged(format!("batch {batch}: {e}")))?;
        Ok(Some((writer, lines.collect())))
    }
}

#[async_trait]
impl Sink for TextSink {
    fn description(&self) -> String {
        format!("text files in {}", self.folder.display())
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn supports_output_mode(&self, mode: OutputMode) -> bool {
        mode == OutputMode::Append
    }

    fn identity(&self) -> Option<Identity> {
        Some(Identity::new("text files").at(self.folder.display().to_string()))
    }

    async fn open(&self, context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
        let writer = TextWriter {
            sink: self.clone(),
            own: Writer { query: context.query_id, run: context.run_id },
            durable: context.durable,
        };
        let last = self.batches()?.pop();
        if let Some(last) = last {
            writer.is_own(last)?;
        }
        match last.map(BatchId) {
            Some(last)
                if last > context.next_batch
                    || (last == context.next_batch && !context.next_batch_may_be_committed) =>
            {
                let message =
                    format!("the folder has batch {last}, and the checkpoint goes on with {}", context.next_batch);
                Err(Error::new(ErrorKind::IncompatibleCheckpoint, message)
                    .with_hint("give the query a folder of its own"))
            }
            _ => Ok(Box::new(writer)),
        }
    }
}

#[derive(Debug)]
struct TextWriter {
    sink: TextSink,
    own: Writer,
    durable: bool,
}

impl TextWriter {
    /// Whether a batch is there, and by which run of this query.
    fn is_own(&self, batch: u64) -> Result<Option<RunId>> {
        match self.sink.read(batch)? {
            Some((writer, _)) if writer.query != self.own.query => {
                Err(Error::new(ErrorKind::IncompatibleCheckpoint, "the folder holds batches of another query"))
            }
            found => Ok(found.map(|(writer, _)| writer.run)),
        }
    }

    /// Puts the file there whole, unless one of its name is: false then.
    fn create(&self, batch: BatchId, text: &str) -> std::io::Result<bool> {
        let hidden = self.sink.folder.join(format!(".{}-{batch}", self.own.run));
        std::fs::write(&hidden, text)?;
        if self.durable {
            std::fs::File::open(&hidden)?.sync_all()?;
        }
        let linked = std::fs::hard_link(&hidden, self.sink.folder.join(batch.to_string()));
        std::fs::remove_file(&hidden)?;
        match linked {
            Err(e) if e.kind() == IoKind::AlreadyExists => Ok(false),
            linked => linked.map(|()| true),
        }
    }
}

#[async_trait]
impl StreamingWrite for TextWriter {
    async fn begin(&self, batch: BatchId) -> Result<BatchStatus> {
        Ok(if self.is_own(batch.0)?.is_some() { BatchStatus::AlreadyCommitted } else { BatchStatus::New })
    }

    fn partition(&self, _batch: BatchId, _partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        Ok(Box::new(Lines::default()))
    }

    async fn commit(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        let mut text = serde_json::to_string(&self.own).map_err(|e| Error::internal(e.to_string()))? + "\n";
        for receipt in receipts {
            text += &receipt.json::<String>()?;
        }
        let created = block_in_place(|| self.create(batch, &text)).map_err(self.sink.failed("write a batch"))?;
        match created || self.is_own(batch.0)? == Some(self.own.run) {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Fenced, "another run committed this batch").with_batch(batch)),
        }
    }
}

/// The rows of a partition as lines, in memory until the commit: nothing is to be taken back by `abort`.
#[derive(Default)]
struct Lines {
    rows: u64,
    text: Vec<u8>,
}

#[async_trait]
impl DataWriter for Lines {
    async fn write(&mut self, rows: RecordBatch) -> Result<()> {
        self.rows += rows.num_rows() as u64;
        let mut writer = LineDelimitedWriter::new(&mut self.text);
        writer.write(&rows)?;
        Ok(writer.finish()?)
    }

    async fn finish(self: Box<Self>) -> Result<Receipt> {
        let text = String::from_utf8(self.text).map_err(|e| Error::internal(e.to_string()))?;
        Receipt::new(self.rows).with_json(&text)
    }
}

struct Folder {
    place: TempDir,
    added: AtomicUsize,
}

impl Folder {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join("text")).unwrap();
        Folder { place, added: AtomicUsize::new(0) }
    }

    fn path(&self) -> PathBuf {
        self.place.path().join("text")
    }
}

#[async_trait]
impl SourceUnderTest for Folder {
    fn source(&self) -> Arc<dyn Source> {
        Arc::new(TextFiles { folder: self.path() })
    }

    async fn add_rows(&self) -> Result<()> {
        let number = self.added.fetch_add(1, Ordering::Relaxed);
        put(&self.path(), &format!("{number:04}.txt"), &format!("line one of {number}\nline two of {number}\n"));
        Ok(())
    }

    async fn go_away(&self) -> Result<bool> {
        std::fs::rename(self.path(), self.place.path().join("away")).unwrap();
        Ok(true)
    }

    async fn come_back(&self) -> Result<()> {
        std::fs::rename(self.place.path().join("away"), self.path()).unwrap();
        Ok(())
    }
}

#[async_trait]
impl SinkUnderTest for Folder {
    fn sink(&self) -> Arc<dyn Sink> {
        Arc::new(TextSink { folder: self.path() })
    }

    async fn visible_rows(&self) -> Result<Vec<RecordBatch>> {
        let rows = rows_of(&TextSink { folder: self.path() }, sink_suite::schema());
        Ok(rows)
    }
}

/// Writes a file that appears whole.
fn put(folder: &Path, name: &str, text: &str) {
    let hidden = folder.parent().unwrap().join(name);
    std::fs::write(&hidden, text).unwrap();
    std::fs::rename(hidden, folder.join(name)).unwrap();
}

fn rows_of(sink: &TextSink, schema: SchemaRef) -> Vec<RecordBatch> {
    let batches = sink.batches().unwrap();
    let lines: Vec<String> = batches.into_iter().flat_map(|batch| sink.read(batch).unwrap().unwrap().1).collect();
    let text = lines.join("\n");
    ReaderBuilder::new(schema).build(text.as_bytes()).unwrap().map(std::result::Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_keeps_every_promise() {
    source_suite::run(Folder::new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sink_keeps_every_promise() {
    sink_suite::run(Folder::new).await;
}

/// From text to text, over a restart: every line once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_from_one_to_the_other() {
    let (input, output) = (Folder::new(), Folder::new());
    let sink = TextSink { folder: output.path() };
    let run = async || {
        let stream = SessionContext::new().read_stream(TextFiles { folder: input.path() })?;
        let lengths =
            stream.select(vec![col("file"), cast(character_length(col("line")), DataType::Int64).alias("length")])?;
        let writer = lengths.write_stream(sink.clone()).trigger(Trigger::AvailableNow);
        let query = writer.checkpoint(input.place.path().join("checkpoint").display().to_string()).start().await?;
        query.await_termination().await
    };
    let schema = Arc::new(Schema::new(vec![
        Field::new("file", DataType::Utf8, true),
        Field::new("length", DataType::Int64, true),
    ]));
    put(&input.path(), "a", "1\n22\n");
    run().await.unwrap();
    put(&input.path(), "b", "333\n");
    run().await.unwrap();
    let mut lengths: Vec<i64> = vec![];
    for rows in rows_of(&sink, schema) {
        lengths.extend(rows.column(1).as_primitive::<Int64Type>().values());
    }
    assert_eq!(lengths, [1, 2, 3]);
}

/// The offset says how many files there were: one that is gone is missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_gone_are_missed() {
    let input = Folder::new();
    put(&input.path(), "a", "1\n");
    put(&input.path(), "b", "2\n");
    let source = TextFiles { folder: input.path() };
    let session = Arc::new(SessionContext::new().state());
    let context = SourceContext::new(memory_store(), session, Arc::new(ManualClock::at(0)));
    let mut reader = source.open(context).await.unwrap();
    let end = reader.latest_offset(None, ReadLimit::All).await.unwrap().batch_end.unwrap();
    std::fs::remove_file(input.path().join("a")).unwrap();
    let scan = ScanRequest::new(vec![0, 1], source.schema());
    let lost = reader.bind(&OffsetRange::new(None, end), &scan).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::SourceLostData, "{lost}");
}

/// What is written in the checkpoint of another source is an error, and no place to begin at.
#[test]
fn offsets_of_others_are_refused() {
    let source = TextFiles { folder: PathBuf::from("in") };
    for foreign in [Offset::new(7), Offset::parse(r#"{"logOffset":7}"#).unwrap()] {
        let error = source.place(Some(&foreign)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::IncompatibleCheckpoint, "{error}");
        assert!(error.message().contains("text files in in"), "{error}");
    }
}
