//! An object store's answer to a conditional put that does not say what happened: every log, the files of state and what tells
//! of operators, the marks of epochs and owners.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use arrow::array::{Int64Array, RecordBatch, TimestampMicrosecondArray};
use async_trait::async_trait;
use datafusion::functions::core::expr_ext::FieldAccessor;
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::prelude::*;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
};
use tidewater::prelude::*;
use tidewater_connectors::file::{FileSink, FileSource};
use url::Url;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    /// The put landed, its answer was lost, and the client's next try was told that the object exists.
    Landed,
    /// HTTP 409: another conditional request was in flight. Nothing landed.
    Conflict,
    /// The same twice in a row.
    Conflicts,
    /// A store that says it in another way, after the put landed.
    Precondition,
}

const ANSWERS: [Answer; 4] = [Answer::Landed, Answer::Conflict, Answer::Conflicts, Answer::Precondition];

/// A store that answers so to one put of a name that contains `part`, after it let `skip` pass.
#[derive(Debug)]
struct Bucket {
    objects: InMemory,
    part: &'static str,
    answer: Answer,
    skip: AtomicI64,
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bucket")
    }
}

#[async_trait]
impl ObjectStore for Bucket {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        if options.mode == PutMode::Create && path.as_ref().contains(self.part) {
            let puts = self.skip.fetch_sub(1, Ordering::SeqCst);
            if puts == 0 || (puts == -1 && self.answer == Answer::Conflicts) {
                if matches!(self.answer, Answer::Landed | Answer::Precondition) {
                    self.objects.put_opts(path, payload, options).await?;
                }
                let (path, source) = (path.to_string(), "409 or 412".into());
                return Err(match self.answer {
                    Answer::Precondition => StoreError::Precondition { path, source },
                    _ => StoreError::AlreadyExists { path, source },
                });
            }
        }
        self.objects.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.objects.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        self.objects.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.objects.copy_opts(from, to, options).await
    }
}

const FILES: i64 = 4;
const KEYS: i64 = 5;

fn rows(n: i64) -> RecordBatch {
    let ts = TimestampMicrosecondArray::from_iter_values((0..100).map(|i| (n * 600 + i) * 1_000_000));
    let k = Int64Array::from_iter_values((0..100).map(|i| i % KEYS));
    RecordBatch::try_from_iter_with_nullable([("ts", Arc::new(ts) as _, true), ("k", Arc::new(k) as _, true)]).unwrap()
}

/// Windows over files in the bucket, to files in the bucket, one input file a batch; returns the rows of the output.
async fn job(bucket: &Arc<Bucket>) -> Result<usize> {
    let ctx = SessionContext::new();
    ctx.register_object_store(&Url::parse("bucket://place").unwrap(), Arc::clone(bucket) as _);
    for n in 0..FILES {
        let mut lines = vec![];
        let mut writer = arrow::json::LineDelimitedWriter::new(&mut lines);
        writer.write(&rows(n)).unwrap();
        writer.finish().unwrap();
        bucket.objects.put(&Path::from(format!("in/{n}.json")), lines.into()).await.unwrap();
    }
    let source = FileSource::json("bucket://place/in").with_schema(rows(0).schema()).max_files_per_trigger(1);
    let counts = ctx
        .read_stream(source)?
        .with_watermark("ts", "1 minute")?
        .aggregate(vec![window(col("ts"), "10 minutes").alias("w"), col("k")], vec![count(lit(1)).alias("n")])?
        .select(vec![col("w").field("start").alias("start"), col("k"), col("n")])?;
    let schema = Arc::new(counts.schema().as_arrow().clone());
    counts
        .write_stream(FileSink::parquet("bucket://place/out"))
        .checkpoint("bucket://place/checkpoint")
        .partitions(1)
        .trigger(Trigger::AvailableNow)
        .start()
        .await?
        .await_termination()
        .await?;
    let sink = MemorySink::new();
    let written = ctx.read_stream(FileSource::parquet("bucket://place/out").with_schema(schema))?;
    written.write_stream(sink.clone()).trigger(Trigger::AvailableNow).start().await?.await_termination().await?;
    Ok(sink.batches().iter().map(RecordBatch::num_rows).sum())
}

/// One name of every kind of file that is created once.
const PARTS: [(&str, i64); 10] = [
    ("checkpoint/metadata", 0),
    ("checkpoint/epochs/", 0),
    ("checkpoint/offsets/", 1),
    ("checkpoint/commits/", 1),
    ("checkpoint/sources/0/", 1),
    ("checkpoint/state/operators", 0),
    ("checkpoint/state/0/", 1),
    ("out/_spark_metadata/tidewater.query", 0),
    ("out/_spark_metadata/1", 0),
    ("checkpoint/offsets/0", 0),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_store_answers_the_query_goes_on() {
    let mut asked = 0;
    for answer in ANSWERS {
        for (part, skip) in PARTS {
            let bucket = Arc::new(Bucket { objects: InMemory::new(), part, answer, skip: AtomicI64::new(skip) });
            let rows = job(&bucket).await.unwrap_or_else(|e| panic!("{answer:?} to {part}: {e}"));
            assert!(bucket.skip.load(Ordering::SeqCst) < 0, "{part} was never put");
            // The window of the last file is still open.
            assert_eq!(rows as i64, (FILES - 1) * KEYS, "{answer:?} to {part}");
            asked += 1;
        }
    }
    println!("{asked} unclear answers, none of them taken for damage");
}
