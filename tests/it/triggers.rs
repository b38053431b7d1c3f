//! When batches run, by a clock that moves only when the test says so.

use std::sync::Arc;
use std::time::Duration;

use datafusion::prelude::*;
use tidewater::prelude::*;
use tidewater_workspace::events::events;

use crate::job::{PARTITIONS, add, finish, memory_events, to_the_end};

/// 2024-01-01T00:00:00.000 UTC, a multiple of every interval used here.
const MIDNIGHT_MS: i64 = 1_704_067_200_000;

/// How long the machine may take for what should happen at once.
const PATIENCE: Duration = Duration::from_secs(30);

struct Timed {
    source: MemorySource,
    clock: ManualClock,
    query: StreamingQuery,
}

impl Timed {
    async fn start(interval: &str, at_ms: i64) -> Self {
        let (source, clock) = (memory_events(), ManualClock::at(at_ms));
        let stream = SessionContext::new().read_stream(source.clone()).unwrap();
        let writer = stream
            .write_stream(MemorySink::new())
            .partitions(PARTITIONS)
            .trigger(Trigger::processing_time(interval))
            .clock(Arc::new(clock.clone()));
        add(&source, &events(0, 7).unwrap());
        let timed = Timed { source, clock, query: writer.start().await.unwrap() };
        timed.batch(0).await;
        timed
    }

    /// Waits until a batch is done, and returns when it began, in milliseconds after midnight.
    async fn batch(&self, batch: u64) -> i64 {
        let done = async {
            loop {
                if let Some(progress) = self.query.last_progress().filter(|p| p.batch_id >= BatchId(batch)) {
                    return progress;
                }
                assert!(self.query.is_active(), "{:?}", self.query.error());
                tokio::task::yield_now().await;
            }
        };
        let progress = tokio::time::timeout(PATIENCE, done).await.expect("the batch comes");
        assert_eq!(progress.batch_id, BatchId(batch), "no batch is skipped");
        chrono::DateTime::parse_from_rfc3339(&progress.timestamp).unwrap().timestamp_millis() - MIDNIGHT_MS
    }

    /// No batch runs, however long we look: the clock has not come to the next moment.
    async fn stays_quiet(&self) {
        let before = self.query.last_progress().map(|p| p.batch_id);
        let ended = self.query.await_termination_for(Duration::from_millis(30)).await.unwrap();
        assert!(!ended && self.query.last_progress().map(|p| p.batch_id) == before);
    }
}

/// The first batch at once, the others at multiples of the interval since 1970.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processing_time_is_aligned() {
    let timed = Timed::start("1 second", MIDNIGHT_MS + 300).await;
    assert_eq!(timed.batch(0).await, 300);

    add(&timed.source, &events(1, 5).unwrap());
    timed.clock.advance_ms(699);
    timed.stays_quiet().await;
    timed.clock.advance_ms(1);
    assert_eq!(timed.batch(1).await, 1000);

    // Nothing to read at 2000; what comes in between waits for 3000.
    timed.clock.advance_ms(1000);
    timed.stays_quiet().await;
    add(&timed.source, &events(2, 5).unwrap());
    timed.stays_quiet().await;
    timed.clock.advance_ms(1000);
    assert_eq!(timed.batch(2).await, 3000);
    timed.query.stop().await.unwrap();
}

/// Moments that passed while nobody looked are not made up for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missed_moments_are_skipped() {
    let timed = Timed::start("1 second", MIDNIGHT_MS).await;
    (1..=3).for_each(|i| add(&timed.source, &events(i, 5).unwrap()));
    timed.clock.advance_ms(3500);
    assert_eq!(timed.batch(1).await, 3500);
    timed.stays_quiet().await;
    timed.clock.advance_ms(500);
    assert_eq!(timed.batch(2).await, 4000);
    timed.query.stop().await.unwrap();
}

/// What the clock does while a batch runs: 0, 1000, 2000 (which takes 1500) → 3500 → 4000.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_overruns_is_followed_at_once() {
    let (source, clock) = (memory_events(), ManualClock::at(MIDNIGHT_MS));
    (0..5).for_each(|i| add(&source, &events(i, 5).unwrap()));
    let slow = {
        let clock = clock.clone();
        ForeachBatchSink::new(move |_, batch| {
            let clock = clock.clone();
            async move {
                // Each batch sets the clock to where the next test of the rhythm begins.
                match batch.0 {
                    0 => clock.set_ms(MIDNIGHT_MS + 1000),
                    1 => clock.set_ms(MIDNIGHT_MS + 2000),
                    2 => clock.set_ms(MIDNIGHT_MS + 3500),
                    3 => clock.set_ms(MIDNIGHT_MS + 4000),
                    _ => {}
                }
                Ok(())
            }
        })
    };
    let query = SessionContext::new()
        .read_stream(source)
        .unwrap()
        .write_stream(slow)
        .partitions(PARTITIONS)
        .trigger(Trigger::processing_time("1 second"))
        .clock(Arc::new(clock))
        .start()
        .await
        .unwrap();
    let all = async {
        while query.recent_progress().len() < 5 {
            assert!(query.is_active(), "{:?}", query.error());
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("five batches");
    let began: Vec<String> = query.recent_progress().iter().map(|p| p.timestamp[17..].to_owned()).collect();
    assert_eq!(began, ["00.000Z", "01.000Z", "02.000Z", "03.500Z", "04.000Z"]);
    query.stop().await.unwrap();
}

/// All that is there when the query starts, within the source's limits, and then the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn available_now_respects_limits_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (source, sink) = (memory_events(), MemorySink::new());
    (0..3).for_each(|i| add(&source, &events(i, 5).unwrap()));
    let start = async || {
        let stream = SessionContext::new().read_stream(source.clone()).unwrap();
        finish(to_the_end(stream, sink.clone(), dir.path())).await.unwrap()
    };
    assert_eq!(start().await.recent_progress().len(), 3);
    assert_eq!(start().await.recent_progress().len(), 0, "nothing is left to do");
    (3..5).for_each(|i| add(&source, &events(i, 5).unwrap()));
    let again = start().await;
    let ids: Vec<BatchId> = again.recent_progress().iter().map(|p| p.batch_id).collect();
    assert_eq!(ids, [BatchId(3), BatchId(4)]);
}

/// What comes while the query runs is left for the next start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn available_now_takes_what_was_there_at_the_start() {
    let source = memory_events();
    (0..2).for_each(|i| add(&source, &events(i, 5).unwrap()));
    let feeding = source.clone();
    let sink = ForeachBatchSink::new(move |_, batch| {
        add(&feeding, &events(100 + batch.0, 5).unwrap());
        async { Ok(()) }
    });
    let dir = tempfile::tempdir().unwrap();
    let stream = SessionContext::new().read_stream(source.clone()).unwrap();
    let query = finish(to_the_end(stream, sink, dir.path())).await.unwrap();
    assert_eq!(query.recent_progress().len(), 2);
    assert_eq!(source.adds(), 4);
}

/// One batch, whatever the limits say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn once_ignores_limits() {
    let dir = tempfile::tempdir().unwrap();
    let (source, sink) = (memory_events(), MemorySink::new());
    (0..3).for_each(|i| add(&source, &events(i, 5).unwrap()));
    let stream = SessionContext::new().read_stream(source.clone()).unwrap();
    let query = finish(to_the_end(stream, sink.clone(), dir.path()).trigger(Trigger::Once)).await.unwrap();
    let progress = query.recent_progress();
    assert_eq!((progress.len(), progress[0].num_input_rows), (1, 15));
    assert_eq!(sink.last_batch(), Some(BatchId(0)));
}

/// One after the other without waiting for the clock, which stands still.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_fast_as_possible_does_not_wait_between_batches() {
    let source = memory_events();
    (0..4).for_each(|i| add(&source, &events(i, 5).unwrap()));
    let query = SessionContext::new()
        .read_stream(source.clone())
        .unwrap()
        .write_stream(MemorySink::new())
        .partitions(PARTITIONS)
        .clock(Arc::new(ManualClock::at(MIDNIGHT_MS)))
        .start()
        .await
        .unwrap();
    query.process_all_available().await.unwrap();
    assert_eq!(query.recent_progress().len(), 4);
    assert!(query.is_active());
    query.stop().await.unwrap();
}
