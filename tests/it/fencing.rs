//! Two drivers on one checkpoint: the one that started last holds it, the other is fenced, nothing is doubled.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::prelude::*;
use tempfile::TempDir;
use tidewater::prelude::*;
use tidewater::sink::{Sink, SinkContext, StreamingWrite};
use tidewater::testing::{assert_same_rows, table};
use tidewater_connectors::file::FileSink;
use tidewater_workspace::events::events;
use tidewater_workspace::files::{Format, committed_rows};
use tokio::sync::Notify;

use crate::job::{DOUBLED, add, doubled, doubled_answer, finish, memory_events, text, to_the_end};

/// A driver with a session of its own; its clock stands still, so it looks for input only when asked to.
async fn driver(source: &MemorySource, dir: &TempDir) -> StreamingQuery {
    let ctx = SessionContext::new();
    let sink = FileSink::parquet(text(&dir.path().join("out")));
    to_the_end(doubled(ctx.read_stream(source.clone()).unwrap()).unwrap(), sink, &dir.path().join("checkpoint"))
        .trigger(Trigger::Immediate)
        .clock(Arc::new(ManualClock::at(0)))
        .start()
        .await
        .unwrap()
}

async fn written(out: &Path) -> Vec<RecordBatch> {
    committed_rows(out, Format::Parquet, &table::schema(&DOUBLED).unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_earlier_driver_is_fenced() {
    let (dir, source) = (tempfile::tempdir().unwrap(), memory_events());
    let rows: Vec<RecordBatch> = (0..3).map(|i| events(i, 20).unwrap()).collect();
    let other = driver(&source, &dir).await;
    let one = driver(&source, &dir).await;
    one.process_all_available().await.unwrap();
    other.process_all_available().await.unwrap();

    add(&source, &rows[0]);
    one.process_all_available().await.unwrap();
    let fenced = other.process_all_available().await.unwrap_err();
    assert_eq!(fenced.kind(), ErrorKind::Fenced, "{fenced}");
    assert!(fenced.batch() == Some(BatchId(0)) && fenced.hint().is_some(), "{fenced}");
    assert!(fenced.to_string().contains("another run"), "{fenced}");
    assert!(!other.is_active());
    assert_eq!(other.error().unwrap().kind(), ErrorKind::Fenced);

    add(&source, &rows[1]);
    one.process_all_available().await.unwrap();
    one.stop().await.unwrap();
    assert_same_rows(&doubled_answer(&rows[..2]).await, &written(&dir.path().join("out")).await);

    // Whoever comes next goes on where the winner was.
    add(&source, &rows[2]);
    let third = driver(&source, &dir).await;
    assert_eq!(third.id(), one.id());
    third.process_all_available().await.unwrap();
    third.stop().await.unwrap();
    assert_same_rows(&doubled_answer(&rows).await, &written(&dir.path().join("out")).await);
}

/// The first driver hangs in its sink; the second repeats the batch and takes over; the first wakes up and is fenced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_that_slept_is_fenced() {
    let (dir, source) = (tempfile::tempdir().unwrap(), memory_events());
    let (reached, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let hanging = {
        let (reached, go_on) = (Arc::clone(&reached), Arc::clone(&go_on));
        ForeachBatchSink::new(move |_, _| {
            let (reached, go_on) = (Arc::clone(&reached), Arc::clone(&go_on));
            async move {
                reached.notify_one();
                go_on.notified().await;
                Ok(())
            }
        })
    };
    add(&source, &events(1, 10).unwrap());
    add(&source, &events(2, 10).unwrap());
    let start = async |sink: ForeachBatchSink| {
        let stream = SessionContext::new().read_stream(source.clone()).unwrap();
        to_the_end(stream, sink, &dir.path().join("checkpoint")).start().await.unwrap()
    };
    let slept = start(hanging).await;
    reached.notified().await;
    let quick = start(ForeachBatchSink::new(|_, _| async { Ok(()) })).await;
    quick.await_termination().await.unwrap();
    assert_eq!(quick.last_progress().unwrap().batch_id, BatchId(1));
    go_on.notify_one();
    let fenced = slept.await_termination().await.unwrap_err();
    assert_eq!(fenced.kind(), ErrorKind::Fenced, "{fenced}");
    assert!(slept.last_progress().is_none(), "a fenced batch is not reported as done");
}

/// A sink that is opened only after another driver has done all the work.
#[derive(Debug)]
struct Late {
    inner: FileSink,
    source: MemorySource,
    checkpoint: PathBuf,
}

#[async_trait]
impl Sink for Late {
    fn description(&self) -> String {
        self.inner.description()
    }

    fn guarantee(&self) -> Guarantee {
        self.inner.guarantee()
    }

    fn supports_output_mode(&self, mode: OutputMode) -> bool {
        self.inner.supports_output_mode(mode)
    }

    async fn open(&self, context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
        let stream = doubled(SessionContext::new().read_stream(self.source.clone())?)?;
        finish(to_the_end(stream, self.inner.clone(), &self.checkpoint)).await?;
        self.inner.open(context).await
    }
}

/// Between reading the checkpoint and opening its sink a driver is overtaken: that is no foreign output directory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_overtaken_while_it_starts_is_fenced() {
    let (dir, source) = (tempfile::tempdir().unwrap(), memory_events());
    let rows: Vec<RecordBatch> = (0..3).map(|i| events(i, 20).unwrap()).collect();
    rows.iter().for_each(|rows| add(&source, rows));
    let (out, checkpoint) = (dir.path().join("out"), dir.path().join("checkpoint"));
    let late = Late { inner: FileSink::parquet(text(&out)), source: source.clone(), checkpoint: checkpoint.clone() };
    let stream = doubled(SessionContext::new().read_stream(source).unwrap()).unwrap();
    let fenced = finish(to_the_end(stream, late, &checkpoint)).await.unwrap_err();
    assert_eq!(fenced.kind(), ErrorKind::Fenced, "{fenced}");
    assert_same_rows(&doubled_answer(&rows).await, &written(&out).await);
}

/// Both run at full speed: whatever happens, only fencing stops them, and the output is right in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drivers_at_full_speed_double_nothing() {
    let mut fenced = 0;
    for seed in 0..10 {
        let (dir, source) = (tempfile::tempdir().unwrap(), memory_events());
        let rows: Vec<RecordBatch> = (0..8).map(|i| events(seed * 100 + i, 12).unwrap()).collect();
        rows.iter().for_each(|rows| add(&source, rows));
        let run = async || {
            let ctx = SessionContext::new();
            let stream = doubled(ctx.read_stream(source.clone())?)?;
            let sink = FileSink::parquet(text(&dir.path().join("out")));
            finish(to_the_end(stream, sink, &dir.path().join("checkpoint"))).await
        };
        let outcomes = tokio::join!(run(), run());
        for outcome in [outcomes.0, outcomes.1] {
            if let Err(e) = outcome {
                assert_eq!(e.kind(), ErrorKind::Fenced, "{e}");
                fenced += 1;
            }
        }
        run().await.unwrap();
        assert_same_rows(&doubled_answer(&rows).await, &written(&dir.path().join("out")).await);
    }
    println!("two drivers at full speed, 10 times: {fenced} were fenced, nothing was doubled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_session_does_not_share_a_checkpoint() {
    let (dir, source) = (tempfile::tempdir().unwrap(), memory_events());
    let ctx = SessionContext::new();
    let start = async |checkpoint: &str| {
        let stream = ctx.read_stream(source.clone()).unwrap();
        to_the_end(stream, DiscardSink::new(), &dir.path().join(checkpoint)).trigger(Trigger::Immediate).start().await
    };
    let one = start("checkpoint").await.unwrap();
    let refused = start("checkpoint").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidQuery, "{refused}");
    assert!(refused.to_string().contains("checkpoint"), "{refused}");
    let respelled = start("./checkpoint/").await;
    assert!(respelled.is_err(), "another spelling is the same place");
    let elsewhere = start("elsewhere").await.unwrap();
    one.stop().await.unwrap();
    let again = start("checkpoint").await.unwrap();
    assert_eq!(again.id(), one.id());
    assert_ne!(again.run_id(), one.run_id());
    again.stop().await.unwrap();
    elsewhere.stop().await.unwrap();
}
