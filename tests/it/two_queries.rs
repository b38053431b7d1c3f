//! Two queries, each with a checkpoint of its own, one output: the second is refused, and never counts as written what is not.

use std::path::Path;
use std::sync::Arc;

use datafusion::prelude::*;
use tempfile::TempDir;
use tidewater::prelude::*;
use tidewater::sink::Sink;
use tidewater::testing::{assert_same_rows, table};
use tidewater_connectors::file::FileSink;
use tidewater_workspace::events::events;
use tidewater_workspace::files::{Format, committed_rows};
use tokio::sync::Barrier;

use crate::job::{DOUBLED, add, doubled, doubled_answer, finish, memory_events, text, to_the_end};

async fn written(out: &Path) -> Vec<arrow::record_batch::RecordBatch> {
    committed_rows(out, Format::Parquet, &table::schema(&DOUBLED).unwrap()).await.unwrap()
}

/// One query: so many batches, numbered from `seed`.
async fn query(sink: impl Sink + 'static, checkpoint: &Path, batches: std::ops::Range<u64>) -> Result<StreamingQuery> {
    let source = memory_events();
    batches.for_each(|i| add(&source, &events(i, 10).unwrap()));
    let stream = SessionContext::new().read_stream(source)?;
    finish(to_the_end(doubled(stream)?, sink, checkpoint)).await
}

async fn answer(batches: std::ops::Range<u64>) -> Vec<arrow::record_batch::RecordBatch> {
    doubled_answer(&batches.map(|i| events(i, 10).unwrap()).collect::<Vec<_>>()).await
}

/// A new query, and one that has done as many batches, elsewhere: its checkpoint knows of another sink, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_query_is_refused_at_its_start() {
    let dir = tempfile::tempdir().unwrap();
    let (out, place) = (dir.path().join("out"), |name: &str| dir.path().join(name));
    query(FileSink::parquet(text(&out)), &place("first"), 0..3).await.unwrap();
    query(DiscardSink::new(), &place("other"), 100..103).await.unwrap();
    for (checkpoint, batches) in [("new", 100..104), ("other", 100..104)] {
        let refused = query(FileSink::parquet(text(&out)), &place(checkpoint), batches).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::IncompatibleCheckpoint, "{checkpoint}: {refused}");
        assert!(checkpoint == "other" || refused.message().contains("output directory"), "{checkpoint}: {refused}");
        assert!(refused.batch().is_none(), "before a batch ran: {refused}");
    }
    assert_same_rows(&answer(0..3).await, &written(&out).await);
    query(FileSink::parquet(text(&out)), &place("first"), 0..5).await.unwrap();
    assert_same_rows(&answer(0..5).await, &written(&out).await);
}

/// Both open the empty folder before either commits. Whoever commits second fails at its first batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_start_at_once() {
    for seed in 0..10 {
        let dir = tempfile::tempdir().unwrap();
        let (out, barrier) = (dir.path().join("out"), Arc::new(Barrier::new(2)));
        let run = async |name: &str, first: u64| {
            let source = memory_events();
            let stream = doubled(SessionContext::new().read_stream(source.clone()).unwrap()).unwrap();
            let writer = to_the_end(stream, FileSink::parquet(text(&out)), &dir.path().join(name));
            let query = writer.trigger(Trigger::Immediate).start().await.unwrap();
            barrier.wait().await;
            (first..first + 3).for_each(|i| add(&source, &events(i, 10).unwrap()));
            let outcome = query.process_all_available().await;
            let counted: u64 = query.recent_progress().iter().map(|batch| batch.sink.num_output_rows).sum();
            (outcome, counted)
        };
        let firsts = [seed * 1000, seed * 1000 + 500];
        let (one, other) = tokio::join!(run("one", firsts[0]), run("other", firsts[1]));
        let winner = usize::from(one.0.is_err());
        let (won, lost) = if winner == 0 { (one, other) } else { (other, one) };
        won.0.unwrap();
        let error = lost.0.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::IncompatibleCheckpoint, "{error}");
        assert_eq!(error.batch(), Some(BatchId(0)), "{error}");
        assert_eq!(lost.1, 0, "no row of the second is counted as written");
        let expected = answer(firsts[winner]..firsts[winner] + 3).await;
        assert_same_rows(&expected, &written(&out).await);
        assert_eq!(won.1, expected.iter().map(|rows| rows.num_rows() as u64).sum::<u64>());
    }
}

/// Output and dead letters of one query are two owners, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_folder_for_rows_and_dead_letters() {
    let dir: TempDir = tempfile::tempdir().unwrap();
    let out = text(&dir.path().join("out"));
    let source = memory_events();
    add(&source, &events(1, 10).unwrap());
    let stream = doubled(SessionContext::new().read_stream(source).unwrap()).unwrap();
    let writer = to_the_end(stream, FileSink::parquet(&out), &dir.path().join("checkpoint"));
    let refused = finish(writer.dead_letters(FileSink::parquet(&out))).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::IncompatibleCheckpoint, "{refused}");
    assert!(refused.message().contains("dead-letters"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_memory_sink_for_two_queries() {
    let (dir, sink) = (tempfile::tempdir().unwrap(), MemorySink::new());
    query(sink.clone(), &dir.path().join("one"), 0..2).await.unwrap();
    query(DiscardSink::new(), &dir.path().join("other"), 100..102).await.unwrap();
    for checkpoint in ["new", "other"] {
        let refused = query(sink.clone(), &dir.path().join(checkpoint), 100..104).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::IncompatibleCheckpoint, "{refused}");
    }
    assert_same_rows(&answer(0..2).await, &sink.batches());
}
