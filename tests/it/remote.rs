//! Input, output and checkpoint on an object store, and what its refusals look like.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arrow::array::{ArrayRef, Int64Array, StringArray};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::prelude::*;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult, UploadPart,
};
use tidewater::prelude::*;
use tidewater::testing::{assert_same_rows, table};
use tidewater_connectors::file::{FileSink, FileSource};
use tidewater_workspace::events::{event_schema, events};
use url::Url;

use crate::job::{DOUBLED, PARTITIONS, doubled, doubled_answer, finish};

/// A store in memory that can run out of space for names that contain a word.
#[derive(Debug)]
struct Bucket {
    objects: InMemory,
    full_for: &'static str,
    full: AtomicBool,
    uploads: Arc<Uploads>,
}

/// How many uploads in parts were begun, and how many of these were neither completed nor aborted.
#[derive(Debug, Default)]
struct Uploads {
    begun: AtomicUsize,
    open: AtomicUsize,
}

#[derive(Debug)]
struct Upload {
    inner: Box<dyn MultipartUpload>,
    uploads: Arc<Uploads>,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> StoreResult<PutResult> {
        self.uploads.open.fetch_sub(1, Ordering::Relaxed);
        self.inner.complete().await
    }

    async fn abort(&mut self) -> StoreResult<()> {
        self.uploads.open.fetch_sub(1, Ordering::Relaxed);
        self.inner.abort().await
    }
}

impl Bucket {
    fn new(full_for: &'static str) -> Arc<Self> {
        let (objects, uploads) = (InMemory::new(), Arc::default());
        Arc::new(Bucket { objects, full_for, full: AtomicBool::new(false), uploads })
    }

    fn check(&self, path: &Path) -> StoreResult<()> {
        if self.full.load(Ordering::Relaxed) && path.as_ref().contains(self.full_for) {
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(object_store::Error::Generic { store: "bucket", source: Box::new(full) });
        }
        Ok(())
    }

    async fn put_events(&self, name: &str, rows: &RecordBatch) {
        let mut lines = vec![];
        let mut writer = arrow::json::LineDelimitedWriter::new(&mut lines);
        writer.write(rows).unwrap();
        writer.finish().unwrap();
        self.objects.put(&Path::from(format!("in/{name}.json")), lines.into()).await.unwrap();
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bucket")
    }
}

#[async_trait]
impl ObjectStore for Bucket {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        self.check(path)?;
        self.objects.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.check(path)?;
        let inner = self.objects.put_multipart_opts(path, options).await?;
        self.uploads.begun.fetch_add(1, Ordering::Relaxed);
        self.uploads.open.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Upload { inner, uploads: Arc::clone(&self.uploads) }))
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

fn session(bucket: &Arc<Bucket>) -> SessionContext {
    let ctx = SessionContext::new();
    ctx.register_object_store(&Url::parse("bucket://place").unwrap(), Arc::clone(bucket) as _);
    ctx
}

/// JSON files → filter, projection → Parquet files, all of it in the bucket.
async fn run(bucket: &Arc<Bucket>) -> Result<StreamingQuery> {
    let ctx = session(bucket);
    let source = FileSource::json("bucket://place/in").with_schema(event_schema()?).max_files_per_trigger(1);
    let writer = doubled(ctx.read_stream(source)?)?
        .write_stream(FileSink::parquet("bucket://place/out"))
        .checkpoint("bucket://place/checkpoint")
        .partitions(PARTITIONS)
        .trigger(Trigger::AvailableNow);
    finish(writer).await
}

/// What a stream that reads the output through its manifest finds.
async fn written(bucket: &Arc<Bucket>) -> Vec<RecordBatch> {
    let (ctx, sink) = (session(bucket), MemorySink::new());
    let source = FileSource::parquet("bucket://place/out").with_schema(table::schema(&DOUBLED).unwrap());
    let writer = ctx.read_stream(source).unwrap().write_stream(sink.clone()).trigger(Trigger::AvailableNow);
    finish(writer).await.unwrap();
    sink.batches()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_job_on_an_object_store() {
    let bucket = Bucket::new("");
    let rows: Vec<RecordBatch> = (0..12).map(|i| events(i, 10).unwrap()).collect();
    for (i, rows) in rows.iter().enumerate().take(11) {
        bucket.put_events(&format!("{i:02}"), rows).await;
    }
    assert_eq!(run(&bucket).await.unwrap().recent_progress().len(), 11);
    bucket.put_events("11", &rows[11]).await;
    assert_eq!(run(&bucket).await.unwrap().recent_progress().len(), 1);
    assert_same_rows(&doubled_answer(&rows).await, &written(&bucket).await);
}

/// Full for the output's data, for its manifest, for the checkpoint: a clear error, and nothing lost once there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_room() {
    for full_for in ["out/part-", "_spark_metadata", "offsets", "commits", "sources"] {
        let bucket = Bucket::new(full_for);
        let rows = [events(1, 20).unwrap(), events(2, 20).unwrap()];
        bucket.put_events("1", &rows[0]).await;
        run(&bucket).await.unwrap();
        bucket.put_events("2", &rows[1]).await;
        bucket.full.store(true, Ordering::Relaxed);
        let failed = run(&bucket).await.expect_err(full_for);
        assert_eq!(failed.kind(), ErrorKind::Unavailable, "{full_for}: {failed}");
        assert!(failed.to_string().contains(full_for), "the file is not named: {failed}");
        bucket.full.store(false, Ordering::Relaxed);
        run(&bucket).await.unwrap();
        assert_same_rows(&doubled_answer(&rows).await, &written(&bucket).await);
    }
}

/// What a failed batch has sent does not stay: neither the parts of an upload, nor files that were finished.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_batch_takes_back_what_it_has_sent() {
    let text = "x".repeat(1 << 20);
    let row = |divisor: i64| {
        let text: ArrayRef = Arc::new(StringArray::from(vec![text.as_str()]));
        RecordBatch::try_from_iter([("text", text), ("divisor", Arc::new(Int64Array::from(vec![divisor])) as _)])
            .unwrap()
    };
    for (rows_per_file, uploads) in [("100", 1), ("4", 0)] {
        let bucket = Bucket::new("");
        let source = MemorySource::new(row(1).schema());
        // The last of twenty megabytes fails.
        source.add((0..20).map(|i| row(i64::from(i < 19))).collect()).unwrap();
        let stream = session(&bucket).read_stream(source).unwrap();
        let stream = stream.select(vec![col("text"), (lit(1_i64) / col("divisor")).alias("one")]).unwrap();
        let sink = FileSink::json("bucket://place/out").option("maxRecordsPerFile", rows_per_file);
        let failed = finish(stream.write_stream(sink).partitions(1).trigger(Trigger::AvailableNow)).await.unwrap_err();
        assert!(failed.message().to_lowercase().contains("divide by zero"), "{failed}");
        assert_eq!(bucket.uploads.begun.load(Ordering::Relaxed), uploads, "{rows_per_file} rows per file");
        assert_eq!(bucket.uploads.open.load(Ordering::Relaxed), 0, "parts were left behind");
        let left: Vec<_> = bucket.objects.list(Some(&Path::from("out"))).try_collect().await.unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// The session must know the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_nobody_registered() {
    let bucket = Bucket::new("");
    let stream = session(&bucket).read_stream(crate::job::memory_events()).unwrap();
    let refused = stream.write_stream(DiscardSink::new()).checkpoint("elsewhere://place/x").start().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidQuery, "{refused}");
    assert!(refused.to_string().contains("elsewhere://place/x"), "{refused}");
    assert!(refused.hint().is_some_and(|hint| hint.contains("register_object_store")), "{refused}");
}
