//! Parquet, CSV or JSON files in a directory, each row exactly once.
//!
//! ```text
//! begin(N)       is N in the log? then it is taken
//! partition i    files under names that no other run will ever choose, safe on storage before `finish` returns
//! commit(N)      creates _spark_metadata/N, which lists them: now they exist
//! ```
//!
//! Whoever reads by the log ([`committed_files`](super::committed_files), a file source, Apache Spark) sees every row once,
//! whatever crashed. A plain listing may also show files of batches that failed; they harm nobody and may be deleted.

use std::sync::Arc;

use arrow::datatypes::Schema;
use async_trait::async_trait;
use datafusion::execution::memory_pool::MemoryPool;
use tidewater::error::{Error, Result};
use tidewater::executor::block_in_place;
use tidewater::id::{BatchId, PartitionId};
use tidewater::identity::Identity;
use tidewater::internal::create_folders;
use tidewater::interval::Interval;
use tidewater::query::OutputMode;
use tidewater::sink::{
    BatchStatus, DataWriter, Guarantee, Receipt, Sink, SinkContext, StreamingWrite, WriterContext, WriterFactory,
};
use tokio::sync::Mutex;

use super::manifest::{Manifest, ManifestEntry, Owner, committed_files};
use super::moved::check_in_place;
use super::options::{CsvOptions, FileFormat, JsonOptions, ParquetOptions};
use super::place::place_of;
use super::uri::FileLocation;
use super::writer::{Encoding, FilesOfPartition, Layout, Root};
use crate::options::Options;

/// What every format takes.
const GENERAL_OPTIONS: &[&str] = &["path", "compression", "partitionBy", "retention", "maxRecordsPerFile"];

const CSV_OPTIONS: &[&str] = &["header", "sep", "delimiter", "quote", "escape", "nullValue"];

/// Writes rows to files in a directory, and takes every batch exactly once. Append mode only: what is in a file is final.
///
/// ```
/// use tidewater_connectors::file::FileSink;
///
/// let sink = FileSink::parquet("out/").partition_by(["country"]).compression("zstd");
/// ```
///
/// Options by name, as Spark calls them: `compression` (Parquet: `snappy`, the default, `none`, `gzip`, `lz4_raw`, `zstd`,
/// `brotli`; CSV and JSON: `none`, the default, `gzip`, `bzip2`, `zstd`), `partitionBy` (column names with commas between),
/// `retention` (how long a file stays in the log; its rows then no longer exist for readers), `maxRecordsPerFile`, and for
/// CSV alone `header`, `sep`, `quote`, `escape`, `nullValue`. A CSV value with a line break is written as it is, in quotes: only
/// readers that look for records across lines read it back.
#[derive(Debug, Clone)]
pub struct FileSink {
    format: String,
    location: String,
    partition_by: Vec<String>,
    options: Vec<(String, String)>,
}

impl FileSink {
    /// Files of this format in the directory at `location`, a path or a URL: of [`CsvOptions`], [`JsonOptions`] or
    /// [`ParquetOptions`]. What these say that makes no sense in writing is an error when the query starts.
    pub fn new(location: impl Into<String>, format: impl Into<FileFormat>) -> Self {
        let (format, options) = format.into().into_parts();
        FileSink { format: format.to_owned(), location: location.into(), partition_by: vec![], options }
    }

    /// Parquet files in the directory at `location`, a path or a URL.
    pub fn parquet(location: impl Into<String>) -> Self {
        Self::new(location, ParquetOptions::new())
    }

    /// CSV files in the directory at `location`, a path or a URL.
    pub fn csv(location: impl Into<String>) -> Self {
        Self::new(location, CsvOptions::new())
    }

    /// Files of JSON lines in the directory at `location`, a path or a URL.
    pub fn json(location: impl Into<String>) -> Self {
        Self::new(location, JsonOptions::new())
    }

    /// A sink of `format` (`parquet`, `csv`, `json`) by options alone. The directory is `path`, or the option of that name.
    pub fn from_options(
        format: &str,
        path: Option<&str>,
        options: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self> {
        let sink = FileSink {
            format: format.to_ascii_lowercase(),
            location: path.unwrap_or_default().to_owned(),
            partition_by: vec![],
            options: options.into_iter().collect(),
        };
        let parsed = sink.parse()?;
        match (path, parsed.path) {
            (None, None) => Err(Error::invalid("the file sink needs a directory").with_hint("give the option `path`")),
            (None, Some(location)) => Ok(FileSink { location, ..sink }),
            (Some(_), _) => Ok(sink),
        }
    }

    /// One folder per value of these columns, `country=CH/`, in this order. The columns are left out of the files.
    #[must_use]
    pub fn partition_by<S: Into<String>>(mut self, columns: impl IntoIterator<Item = S>) -> Self {
        self.partition_by = columns.into_iter().map(Into::into).collect();
        self
    }

    /// How files are compressed, whatever their format: see [`ParquetOptions::compression`] and [`CsvOptions::compression`].
    #[must_use]
    pub fn compression(self, codec: impl Into<String>) -> Self {
        self.option("compression", codec)
    }

    /// How long a file stays in the log, `7 days` for example: for directories that something else cleans up.
    #[must_use]
    pub fn retention(self, retention: impl Into<Interval>) -> Self {
        self.option("retention", retention.into().to_string())
    }

    /// Sets an option by its name. It is checked when the query starts.
    #[must_use]
    pub fn option(mut self, name: &str, value: impl Into<String>) -> Self {
        self.options.push((name.to_owned(), value.into()));
        self
    }

    fn parse(&self) -> Result<Parsed> {
        let known = match self.format.as_str() {
            "csv" => [GENERAL_OPTIONS, CSV_OPTIONS].concat(),
            "json" | "parquet" => GENERAL_OPTIONS.to_vec(),
            other => return Err(Error::unknown("format", other, "the file sink", &["parquet", "csv", "json"])),
        };
        let options = Options::new(&format!("the {} file sink", self.format), &known, self.options.iter().cloned())?;
        let mut partition_by = self.partition_by.clone();
        if let Some(columns) = options.get("partitionBy") {
            partition_by.extend(columns.split(',').map(|c| c.trim().to_owned()));
        }
        Ok(Parsed {
            encoding: Encoding::parse(&self.format, &options)?,
            partition_by,
            path: options.get("path").map(str::to_owned),
            retention_ms: options.interval_ms("retention")?,
            max_records_per_file: options.positive_u64("maxRecordsPerFile")?,
        })
    }
}

impl FileSink {
    /// Checks that rows of this schema can be written below `root`.
    fn writers(&self, root: Root, schema: &Schema, durable: bool, memory: &Arc<dyn MemoryPool>) -> Result<FileWriters> {
        let Parsed { encoding, partition_by, max_records_per_file, .. } = self.parse()?;
        let layout = Layout::new(root, encoding, schema, &partition_by, max_records_per_file, durable)?;
        Ok(FileWriters { layout: Arc::new(layout), memory: Arc::clone(memory) })
    }
}

struct Parsed {
    encoding: Encoding,
    partition_by: Vec<String>,
    path: Option<String>,
    retention_ms: Option<i64>,
    max_records_per_file: Option<u64>,
}

#[async_trait]
impl Sink for FileSink {
    fn description(&self) -> String {
        format!("{} files in {}", self.format, self.location)
    }

    fn identity(&self) -> Option<Identity> {
        let identity = Identity::new(format!("{} files", self.format)).at(place_of(&self.location).ok()?);
        let partition_by = self.parse().ok()?.partition_by;
        Some(match partition_by.is_empty() {
            true => identity,
            false => identity.option("partitionBy", partition_by.join(",")),
        })
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn supports_output_mode(&self, mode: OutputMode) -> bool {
        mode == OutputMode::Append
    }

    async fn open(&self, context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
        let retention_ms = self.parse()?.retention_ms;
        let runtime = context.session.runtime_env();
        let root = Root::parse(&self.location, runtime)?;
        let writers = self.writers(root.clone(), &context.schema, context.durable, &runtime.memory_pool)?;
        if let Root::Local(folder) = &root {
            block_in_place(|| create_folders(folder, context.durable))?;
        }
        let log = root.manifest_store(runtime, context.durable)?;
        let owner = Owner::new(context.query_id, context.role);
        let manifest = Manifest::open(log, owner, retention_ms, Arc::clone(&context.clock)).await?;
        manifest.check(context.next_batch, context.next_batch_may_be_committed)?;
        if !manifest.is_empty() {
            let files = committed_files(&self.location, runtime).await?;
            let folder = FileLocation::parse(&root.uri(""))?;
            check_in_place(&folder, files.iter().map(|file| file.path.as_str()))?;
        }
        if manifest.is_empty() && root.has_files(runtime).await? {
            tracing::warn!(
                directory = %self.location,
                "the output directory holds files that no log lists: readers that go by the log will not see them"
            );
        }
        Ok(Box::new(FileSinkWriter { writers, manifest: Mutex::new(manifest) }))
    }

    fn writer_factory(&self, context: WriterContext) -> Result<Option<Arc<dyn WriterFactory>>> {
        let runtime = context.session.runtime_env();
        let root = Root::parse(&self.location, runtime)?;
        Ok(Some(Arc::new(self.writers(root, &context.schema, context.durable, &runtime.memory_pool)?)))
    }
}

/// Makes the writers of a query, in any process: what they write is known by their receipts alone.
#[derive(Debug)]
struct FileWriters {
    layout: Arc<Layout>,
    memory: Arc<dyn MemoryPool>,
}

impl WriterFactory for FileWriters {
    fn writer(&self, _batch: BatchId, partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        Ok(Box::new(FilesOfPartition::new(Arc::clone(&self.layout), partition, &self.memory)))
    }
}

#[derive(Debug)]
struct FileSinkWriter {
    writers: FileWriters,
    manifest: Mutex<Manifest>,
}

#[async_trait]
impl StreamingWrite for FileSinkWriter {
    async fn begin(&self, batch: BatchId) -> Result<BatchStatus> {
        self.manifest.lock().await.begin(batch).await
    }

    fn partition(&self, batch: BatchId, partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        self.writers.writer(batch, partition)
    }

    async fn commit(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        let mut entries = vec![];
        for receipt in receipts {
            entries.extend(receipt.json::<Vec<ManifestEntry>>()?);
        }
        self.manifest.lock().await.commit(batch, &entries).await
    }

    /// Without a commit, no log will ever list these files.
    async fn abort(&self, _batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        for receipt in receipts {
            self.writers.layout.root().remove(&receipt.json::<Vec<ManifestEntry>>()?).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use arrow::record_batch::RecordBatch;
    use datafusion::execution::runtime_env::RuntimeEnv;
    use datafusion::prelude::{CsvReadOptions, JsonReadOptions, ParquetReadOptions, SessionContext};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
    use tidewater::clock::ManualClock;
    use tidewater::error::ErrorKind;
    use tidewater::id::QueryId;
    use tidewater::testing::open_by_factory;
    use tidewater::testing::sink_suite::{self, SinkUnderTest};

    use super::super::{ParseMode, committed_files};
    use super::*;

    fn rows(keys: &[Option<&str>], from: i64) -> RecordBatch {
        let k: ArrayRef = Arc::new(StringArray::from(keys.to_vec()));
        let n: ArrayRef = Arc::new(Int64Array::from_iter_values(from..from + keys.len() as i64));
        RecordBatch::try_from_iter_with_nullable([("k", k, true), ("n", n, true)]).unwrap()
    }

    fn context() -> SinkContext {
        going_on_with(0, false)
    }

    fn going_on_with(batch: u64, may_be_committed: bool) -> SinkContext {
        let mut context = SinkContext::new(rows(&[], 0).schema(), Arc::new(SessionContext::new().state()));
        context.query_id = QueryId::try_from("5f0a2ee4-9a3f-4e0f-8d5b-1f1f0a7f3c11".to_owned()).unwrap();
        (context.next_batch, context.next_batch_may_be_committed) = (BatchId(batch), may_be_committed);
        context.clock = Arc::new(ManualClock::at(0));
        context
    }

    async fn write(writer: &dyn StreamingWrite, batch: u64, partition: usize, rows: RecordBatch) -> Receipt {
        let mut partition = writer.partition(BatchId(batch), PartitionId(partition)).unwrap();
        partition.write(rows).await.unwrap();
        partition.finish().await.unwrap()
    }

    async fn committed(folder: &Path) -> Vec<String> {
        let location = folder.to_str().unwrap();
        let files = committed_files(location, &RuntimeEnv::default()).await.unwrap();
        for file in &files {
            let path = url::Url::parse(&file.path).unwrap().to_file_path().unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().len(), file.size, "{}", file.path);
        }
        let prefix = format!("file://{location}/");
        files.into_iter().map(|f| f.path.strip_prefix(&prefix).unwrap().to_owned()).collect()
    }

    fn read(folder: &Path, name: &str) -> String {
        std::fs::read_to_string(folder.join(name)).unwrap()
    }

    #[tokio::test]
    async fn rows_are_visible_from_commit_on_and_a_batch_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let sink = FileSink::parquet(folder.path().to_str().unwrap());
        let writer = open_by_factory(&sink, context()).await.unwrap();
        assert_eq!(writer.begin(BatchId(0)).await.unwrap(), BatchStatus::New);
        let receipts = vec![
            write(&*writer, 0, 0, rows(&[Some("a"), None], 0)).await,
            write(&*writer, 0, 3, rows(&[Some("b")], 2)).await,
        ];
        assert_eq!(receipts.iter().map(|r| r.rows).sum::<u64>(), 3);
        assert!(committed(folder.path()).await.is_empty());
        writer.commit(BatchId(0), receipts).await.unwrap();
        let files = committed(folder.path()).await;
        assert_eq!(files.len(), 2);
        assert!(files[0].starts_with("part-00000-") && files[0].ends_with("-c000.snappy.parquet"), "{files:?}");
        assert!(files[1].starts_with("part-00003-"), "{files:?}");
        let file = std::fs::File::open(folder.path().join(&files[0])).unwrap();
        let read: Vec<_> =
            ParquetRecordBatchReader::try_new(file, 10).unwrap().map(std::result::Result::unwrap).collect();
        assert_eq!(read, [rows(&[Some("a"), None], 0)]);

        let again = open_by_factory(&sink, going_on_with(0, true)).await.unwrap();
        assert_eq!(again.begin(BatchId(0)).await.unwrap(), BatchStatus::AlreadyCommitted);
        assert_eq!(again.begin(BatchId(1)).await.unwrap(), BatchStatus::New);
    }

    #[tokio::test]
    async fn an_empty_batch_leaves_an_entry_and_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let writer = open_by_factory(&FileSink::json(folder.path().to_str().unwrap()), context()).await.unwrap();
        let receipt = write(&*writer, 0, 0, rows(&[], 0)).await;
        writer.commit(BatchId(0), vec![receipt]).await.unwrap();
        assert_eq!(read(folder.path(), "_spark_metadata/0"), "v1");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "only the log");
    }

    #[tokio::test]
    async fn partition_columns_become_folders() {
        let folder = tempfile::tempdir().unwrap();
        let sink = FileSink::json(folder.path().to_str().unwrap()).partition_by(["k"]);
        let writer = open_by_factory(&sink, context()).await.unwrap();
        let receipt = write(&*writer, 0, 0, rows(&[Some("x y/z=1"), None, Some("x y/z=1")], 0)).await;
        writer.commit(BatchId(0), vec![receipt]).await.unwrap();
        let files = committed(folder.path()).await;
        assert_eq!(files.len(), 2);
        assert!(files[0].starts_with("k=__HIVE_DEFAULT_PARTITION__/part-00000-"), "{files:?}");
        assert!(
            files[1].starts_with("k=x%20y%252Fz%253D1/part-00000-") && files[1].ends_with(".c000.json"),
            "{files:?}"
        );
        let on_disk = files[1].replace("%20", " ").replace("%25", "%");
        assert_eq!(read(folder.path(), &on_disk), "{\"n\":0}\n{\"n\":2}\n");
    }

    #[tokio::test]
    async fn many_folders_and_full_files_lose_no_row() {
        let folder = tempfile::tempdir().unwrap();
        let location = folder.path().to_str().unwrap();
        let sink = FileSink::new(location, CsvOptions::new().header(true));
        let sink = sink.option("partitionBy", "k").option("maxRecordsPerFile", "2");
        let writer = open_by_factory(&sink, context()).await.unwrap();
        let keys: Vec<String> = (0..300).map(|i| (i % 100).to_string()).collect();
        let keys: Vec<Option<&str>> = keys.iter().map(|k| Some(k.as_str())).collect();
        let receipt = write(&*writer, 0, 0, rows(&keys, 0)).await;
        assert_eq!(receipt.rows, 300);
        writer.commit(BatchId(0), vec![receipt]).await.unwrap();
        let mut seen = vec![];
        for file in committed(folder.path()).await {
            let text = read(folder.path(), &file);
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines[0], "n", "{file}");
            assert!(lines.len() <= 3, "{file} has more than two rows");
            seen.extend(lines[1..].iter().map(|n| n.parse::<i64>().unwrap()));
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..300).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_run_that_lost_the_race_is_fenced() {
        let folder = tempfile::tempdir().unwrap();
        let sink = FileSink::csv(folder.path().to_str().unwrap());
        let (one, two) =
            (open_by_factory(&sink, context()).await.unwrap(), open_by_factory(&sink, context()).await.unwrap());
        one.begin(BatchId(0)).await.unwrap();
        two.begin(BatchId(0)).await.unwrap();
        let first = write(&*one, 0, 0, rows(&[Some("a")], 0)).await;
        let second = write(&*two, 0, 0, rows(&[Some("a")], 0)).await;
        one.commit(BatchId(0), vec![first]).await.unwrap();
        let before = committed(folder.path()).await;
        let error = two.commit(BatchId(0), vec![second]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fenced);
        assert_eq!(committed(folder.path()).await, before);
    }

    #[tokio::test]
    async fn what_cannot_work_is_said_at_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let location = folder.path().join("out");
        let location = location.to_str().unwrap();
        for (sink, wanted) in [
            (FileSink::parquet(location).partition_by(["kk"]), "unknown column `kk`"),
            (FileSink::parquet(location).partition_by(["k", "k"]), "twice"),
            (FileSink::parquet(location).partition_by(["k", "n"]), "every column"),
            (FileSink::parquet(location).compression("rar"), "unknown compression `rar`"),
            (FileSink::parquet(location).option("compresion", "zstd"), "did you mean `compression`"),
            (FileSink::parquet(location).retention("soon"), "`retention`"),
            (FileSink::parquet(location).option("header", "true"), "unknown option `header` of the parquet file sink"),
            (FileSink::new(location, CsvOptions::new().comment('#')), "unknown option `comment` of the csv file sink"),
            (FileSink::new(location, JsonOptions::new().parse_mode(ParseMode::Permissive)), "unknown option `mode`"),
        ] {
            let error = open_by_factory(&sink, context()).await.unwrap_err();
            assert!(error.message().contains(wanted), "{error}");
        }
        assert!(!folder.path().join("out").exists(), "nothing is created for a query that cannot start");
        assert!(FileSink::from_options("parquet", None, []).is_err());
        assert!(FileSink::from_options("orc", Some("x"), []).unwrap_err().message().contains("unknown format `orc`"));
        let by_option = FileSink::from_options("CSV", None, [("Path".to_owned(), location.to_owned())]).unwrap();
        assert_eq!(by_option.description(), format!("csv files in {location}"));
        assert!(
            !by_option.supports_output_mode(OutputMode::Complete)
                && !by_option.supports_output_mode(OutputMode::Update)
        );
    }

    struct Place {
        folder: tempfile::TempDir,
        format: &'static str,
    }

    #[async_trait]
    impl SinkUnderTest for Place {
        fn sink(&self) -> Arc<dyn Sink> {
            let header = (self.format == "csv").then(|| ("header".to_owned(), "true".to_owned()));
            Arc::new(FileSink::from_options(self.format, self.folder.path().to_str(), header).unwrap())
        }

        async fn visible_rows(&self) -> Result<Vec<RecordBatch>> {
            let ctx = SessionContext::new();
            let schema = sink_suite::schema();
            let files = committed_files(self.folder.path().to_str().unwrap(), &ctx.runtime_env()).await?;
            let files: Vec<_> = files.into_iter().map(|file| file.path).collect();
            if files.is_empty() {
                return Ok(vec![]);
            }
            let rows = match self.format {
                "csv" => ctx.read_csv(files, CsvReadOptions::new().schema(&schema)).await?,
                "json" => ctx.read_json(files, JsonReadOptions::default().schema(&schema)).await?,
                _ => ctx.read_parquet(files, ParquetReadOptions::new().schema(&schema)).await?,
            };
            Ok(rows.collect().await?)
        }
    }

    #[tokio::test]
    async fn the_file_sink_keeps_every_promise() {
        for format in ["parquet", "csv", "json"] {
            sink_suite::run(|| Place { folder: tempfile::tempdir().unwrap(), format }).await;
        }
    }
}
