//! A source that cannot say what it has is not one that has nothing new: who asked for all there is hears of it, and a query
//! that goes on says what it waits for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::*;
use tidewater::prelude::*;
use tidewater::source::{
    LatestOffset, MicroBatchStream, Offset, OffsetRange, ReadLimit, ScanRequest, Source, SourceContext,
};
use tidewater::testing::assert_same_rows;
use tidewater_workspace::events::events;
use tidewater_workspace::files::{Format, put_rows};

use crate::job::{PARTITIONS, add, finish, json_events, memory_events, text, to_the_end};

/// How long the machine may take for what should happen soon.
const PATIENCE: Duration = Duration::from_secs(30);

/// A memory source that may be asked, and does not answer.
#[derive(Debug, Clone)]
struct Mute {
    inner: MemorySource,
    is_mute: Arc<AtomicBool>,
}

impl Mute {
    fn new() -> Self {
        Mute { inner: memory_events(), is_mute: Arc::default() }
    }

    fn mute(&self, is_mute: bool) {
        self.is_mute.store(is_mute, Ordering::Relaxed);
    }
}

#[async_trait]
impl Source for Mute {
    fn description(&self) -> String {
        "the mute one".to_owned()
    }

    fn schema(&self) -> SchemaRef {
        self.inner.schema()
    }

    async fn open(&self, context: SourceContext) -> Result<Box<dyn MicroBatchStream>> {
        Ok(Box::new(MuteReader { source: self.clone(), inner: self.inner.open(context).await? }))
    }
}

#[derive(Debug)]
struct MuteReader {
    source: Mute,
    inner: Box<dyn MicroBatchStream>,
}

fn nobody_answers() -> Error {
    Error::new(ErrorKind::Unavailable, "nobody answers at all").with_hint("speak up")
}

#[async_trait]
impl MicroBatchStream for MuteReader {
    async fn prepare_for_available_now(&mut self) -> Result<()> {
        if self.source.is_mute.load(Ordering::Relaxed) {
            Err(nobody_answers())
        } else {
            self.inner.prepare_for_available_now().await
        }
    }

    async fn latest_offset(&mut self, after: Option<&Offset>, limit: ReadLimit) -> Result<LatestOffset> {
        if self.source.is_mute.load(Ordering::Relaxed) {
            return Ok(LatestOffset::unknown(after, nobody_answers()));
        }
        self.inner.latest_offset(after, limit).await
    }

    async fn bind(&mut self, range: &OffsetRange, scan: &ScanRequest) -> Result<Arc<dyn ExecutionPlan>> {
        self.inner.bind(range, scan).await
    }

    async fn commit(&mut self, end: &Offset) -> Result<()> {
        self.inner.commit(end).await
    }
}

async fn until(query: &StreamingQuery, what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(query.is_active(), "{what}: it ended: {:?}", query.error());
        assert!(Instant::now() < deadline, "{what}: {:?}", query.status());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn rows(sink: &MemorySink) -> usize {
    sink.batches().iter().map(|rows| rows.num_rows()).sum()
}

/// Before its first row and after some, by every trigger that ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_that_ends_fails() {
    for trigger in [Trigger::Once, Trigger::AvailableNow] {
        let (dir, source, sink) = (tempfile::tempdir().unwrap(), Mute::new(), MemorySink::new());
        let run = async || {
            let stream = SessionContext::new().read_stream(source.clone())?;
            finish(to_the_end(stream, sink.clone(), dir.path()).trigger(trigger.clone())).await
        };
        for batch in 0..3_u64 {
            add(&source.inner, &events(batch, 7).unwrap());
            source.mute(true);
            let failed = run().await.unwrap_err();
            assert_eq!(failed.kind(), ErrorKind::Unavailable, "{failed}");
            assert!(failed.to_string().contains("nobody answers at all"), "{failed}");
            assert_eq!(failed.hint(), Some("speak up"), "{failed}");
            assert_eq!(rows(&sink), 7 * batch as usize);
            source.mute(false);
            run().await.unwrap();
            assert_eq!(rows(&sink), 7 * (batch as usize + 1));
        }
    }
}

/// One of two sources: what the other has is not written either, for the run would end with that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_that_ends_fails_for_one_of_two_sources() {
    let (dir, mute, other, sink) = (tempfile::tempdir().unwrap(), Mute::new(), memory_events(), MemorySink::new());
    let run = async || {
        let ctx = SessionContext::new();
        let both = ctx.read_stream(other.clone())?.union(ctx.read_stream(mute.clone())?)?;
        finish(to_the_end(both, sink.clone(), dir.path()).trigger(Trigger::Once)).await
    };
    add(&other, &events(1, 5).unwrap());
    mute.mute(true);
    let failed = run().await.unwrap_err();
    assert!(failed.message().contains("nobody knows whether all that there is has been read"), "{failed}");
    assert!(failed.message().contains("waiting for the mute one since 20"), "{failed}");
    assert_eq!(rows(&sink), 0);
    mute.mute(false);
    run().await.unwrap();
    assert_eq!(rows(&sink), 5);
}

/// Hears of waiting.
#[derive(Default)]
struct Ear(Mutex<Vec<String>>);

impl QueryListener for Ear {
    fn on_event(&self, event: &QueryEvent) {
        match event {
            QueryEvent::Waiting { source, since, why, .. } => {
                assert!(since.starts_with("20"), "{since}");
                self.0.lock().unwrap().push(format!("{source}: {}", why.message()));
            }
            QueryEvent::Idle { .. } => self.0.lock().unwrap().push("idle".to_owned()),
            _ => {}
        }
    }
}

/// It goes on with what it has, says what it waits for, and makes up for it later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_goes_on_says_what_it_waits_for() {
    let (mute, other, sink, ear) = (Mute::new(), memory_events(), MemorySink::new(), Arc::new(Ear::default()));
    let ctx = SessionContext::new();
    let streams = (ctx.read_stream(other.clone()).unwrap(), ctx.read_stream(mute.clone()).unwrap());
    let both = streams.0.union(streams.1).unwrap();
    let writer = both.write_stream(sink.clone()).partitions(PARTITIONS).listener(Arc::clone(&ear) as _);
    let query = writer.start().await.unwrap();
    query.process_all_available().await.unwrap();

    mute.mute(true);
    add(&mute.inner, &events(1, 3).unwrap());
    let unknown = query.process_all_available().await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::Unavailable, "{unknown}");
    assert!(unknown.message().contains("waiting for the mute one since 20"), "{unknown}");
    assert!(query.is_active() && query.error().is_none(), "it goes on");
    until(&query, "the status", || query.status().message.starts_with("waiting for the mute one since 20")).await;
    let status = query.status();
    assert!(status.message.ends_with(": nobody answers at all") && !status.is_data_available, "{status:?}");

    add(&other, &events(2, 5).unwrap());
    // The sink has the rows before the batch is committed and reported.
    until(&query, "the other one goes on", || rows(&sink) == 5 && query.last_progress().is_some()).await;
    let progress = query.last_progress().unwrap();
    assert!(progress.sources[1].metrics["unknownSince"].starts_with("20"), "{}", progress.json());
    assert!(!progress.sources[0].metrics.contains_key("unknownSince"), "{}", progress.json());

    mute.mute(false);
    query.process_all_available().await.unwrap();
    assert_eq!(rows(&sink), 8);
    assert_eq!(query.status().message, "waiting for data to arrive");
    query.stop().await.unwrap();
    let heard = ear.0.lock().unwrap();
    assert_eq!(heard.first().map(String::as_str), Some("the mute one: nobody answers at all"), "{heard:?}");
}

/// The folder of a file source goes away, as a disk does that is taken out, and comes back; by name and by glob.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_is_gone_is_not_an_empty_one() {
    for below in ["", "*"] {
        let dir = tempfile::tempdir().unwrap();
        let (input, away, sink) = (dir.path().join("in"), dir.path().join("away"), MemorySink::new());
        let put = |number: u64| {
            let folder = if below.is_empty() { input.clone() } else { input.join("day") };
            std::fs::create_dir_all(&folder).unwrap();
            put_rows(&folder, &format!("{number}.json"), Format::Json, &events(number, 4).unwrap()).unwrap();
        };
        let writer = async || {
            let stream = SessionContext::new().read_stream(json_events(&input.join(below)))?;
            Ok::<_, Error>(
                stream.write_stream(sink.clone()).checkpoint(text(&dir.path().join("cp"))).partitions(PARTITIONS),
            )
        };
        put(0);
        finish(writer().await.unwrap().trigger(Trigger::AvailableNow)).await.unwrap();
        put(1);
        let query = writer().await.unwrap().start().await.unwrap();
        query.process_all_available().await.unwrap();
        assert_eq!(rows(&sink), 8);
        put(2);
        std::fs::rename(&input, &away).unwrap();
        // It may have been read before it was gone.
        until(&query, "the status", || query.status().message.contains("is gone")).await;
        let read = rows(&sink);
        let unknown = query.process_all_available().await.unwrap_err();
        assert_eq!(unknown.kind(), ErrorKind::Unavailable, "{unknown}");
        assert!(unknown.message().contains("waiting for") && unknown.file().unwrap().contains("/in"), "{unknown}");
        query.stop().await.unwrap();

        for trigger in [Trigger::Once, Trigger::AvailableNow] {
            let ended = async { finish(writer().await?.trigger(trigger)).await };
            let failed = ended.await.unwrap_err();
            assert!(failed.to_string().contains("in"), "{failed}");
            assert_eq!(rows(&sink), read);
        }
        std::fs::rename(&away, &input).unwrap();
        finish(writer().await.unwrap().trigger(Trigger::AvailableNow)).await.unwrap();
        let all: Vec<_> = (0..3).map(|number| events(number, 4).unwrap()).collect();
        assert_same_rows(&all, &sink.batches());
    }
}
