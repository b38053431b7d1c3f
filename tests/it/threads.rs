//! On which threads queries run, and what does not stop them: callers with one thread, other queries that hang, functions that
//! bring their own parallelism.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array};
use arrow::datatypes::{DataType, Int64Type};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use datafusion::prelude::*;
use rayon::prelude::*;
use tidewater::clock::{Clock, ManualClock};
use tidewater::executor::Executor;
use tidewater::id::PartitionId;
use tidewater::prelude::*;
use tidewater::query::RestartPolicy;
use tidewater::sink::{BatchStatus, DataWriter, Guarantee, Receipt, Sink, SinkContext, StreamingWrite};
use tokio::runtime::{Builder, Runtime};

use crate::job::{finish, to_the_end};

/// Whatever takes longer hangs.
const SOON: Duration = Duration::from_secs(120);

fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs a test that may hang the whole runtime, and fails instead.
fn in_time<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, done) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let _ = sender.send(test());
    });
    match done.recv_timeout(SOON) {
        Ok(value) => value,
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("it ended without an answer"),
        },
    }
}

fn numbers(from: i64, to: i64) -> RecordBatch {
    let k = Int64Array::from_iter_values((from..to).map(|x| x % 10));
    let x = Int64Array::from_iter_values(from..to);
    RecordBatch::try_from_iter([("k", Arc::new(k) as ArrayRef), ("x", Arc::new(x) as ArrayRef)]).unwrap()
}

fn source(adds: i64) -> MemorySource {
    let source = MemorySource::new(numbers(0, 1).schema()).partitions(3).adds_per_batch(1);
    (0..adds).for_each(|add| {
        source
            .add(vec![
                numbers(add * 90, add * 90 + 30),
                numbers(add * 90 + 30, add * 90 + 60),
                numbers(add * 90 + 60, add * 90 + 90),
            ])
            .unwrap()
    });
    source
}

/// Rows per key, kept in state.
async fn counted(source: &MemorySource) -> DataFrame {
    let stream = SessionContext::new().read_stream(source.clone()).unwrap();
    stream
        .aggregate(vec![col("k")], vec![datafusion::functions_aggregate::expr_fn::count(col("x")).alias("n")])
        .unwrap()
}

fn total(sink: &MemorySink) -> i64 {
    let last = sink.last_batch().and_then(|batch| sink.batch(batch)).unwrap_or_default();
    last.iter().flat_map(|rows| rows.column(1).as_primitive::<Int64Type>().values().to_vec()).sum()
}

/// One start has state to load, from a runtime that has nothing but the thread that waits.
#[test]
fn a_runtime_of_one_thread_starts_queries_with_state() {
    in_time(|| {
        let (dir, source) = (tempfile::tempdir().unwrap(), source(5));
        for round in 1..=3 {
            let sink = MemorySink::new();
            one_thread().block_on(async {
                let writer = to_the_end(counted(&source).await, sink.clone(), dir.path());
                finish(writer.output_mode(OutputMode::Complete)).await.unwrap();
            });
            assert_eq!(total(&sink), 90 * (4 + round), "round {round}");
            source.add(vec![numbers(0, 90)]).unwrap();
        }
    });
}

/// More starts than the caller's runtime, or the engine, has threads.
#[test]
fn many_start_at_a_time() {
    in_time(|| {
        let jobs: Vec<_> = (0..8).map(|_| (tempfile::tempdir().unwrap(), source(3))).collect();
        for round in 0..2 {
            let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let started = jobs.iter().map(|(dir, source)| {
                    let (dir, source) = (dir.path().to_owned(), source.clone());
                    tokio::spawn(async move {
                        let sink = MemorySink::new();
                        let writer = to_the_end(counted(&source).await, sink.clone(), &dir);
                        finish(writer.output_mode(OutputMode::Complete)).await.unwrap();
                        assert_eq!(total(&sink), 270 + 90 * round);
                    })
                });
                for started in started.collect::<Vec<_>>() {
                    started.await.unwrap();
                }
            });
            jobs.iter().for_each(|(_, source)| source.add(vec![numbers(0, 90)]).unwrap());
        }
    });
}

/// Where it does not answer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Hangs {
    Open,
    Begin,
    Write,
    Commit,
}

#[async_trait]
impl Sink for Hangs {
    fn description(&self) -> String {
        "void".to_owned()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn supports_output_mode(&self, _mode: OutputMode) -> bool {
        true
    }

    async fn open(&self, _context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
        match self {
            Hangs::Open => pending().await,
            _ => Ok(Box::new(*self)),
        }
    }
}

#[async_trait]
impl StreamingWrite for Hangs {
    async fn begin(&self, _batch: BatchId) -> Result<BatchStatus> {
        match self {
            Hangs::Begin => pending().await,
            _ => Ok(BatchStatus::New),
        }
    }

    fn partition(&self, _batch: BatchId, _partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        Ok(Box::new(*self))
    }

    async fn commit(&self, _batch: BatchId, _receipts: Vec<Receipt>) -> Result<()> {
        pending().await
    }
}

#[async_trait]
impl DataWriter for Hangs {
    async fn write(&mut self, _rows: RecordBatch) -> Result<()> {
        match self {
            Hangs::Write => pending().await,
            _ => Ok(()),
        }
    }

    async fn finish(self: Box<Self>) -> Result<Receipt> {
        Ok(Receipt::new(0))
    }
}

/// Ten queries whose sinks never answer, on an executor of one thread: another one runs, and each of the ten can be dropped.
#[test]
fn a_sink_that_never_answers_stops_nobody_else() {
    in_time(|| {
        one_thread().block_on(async {
            let executor = Executor::builder().threads(1).build().unwrap();
            let mut hanging = vec![];
            for number in 0..10 {
                let hangs = [Hangs::Begin, Hangs::Write, Hangs::Commit][number % 3];
                let stream = SessionContext::new().read_stream(source(1)).unwrap();
                let writer = stream.write_stream(hangs).partitions(3).executor(executor.clone());
                hanging.push(writer.start().await.unwrap());
            }
            let (dir, sink) = (tempfile::tempdir().unwrap(), MemorySink::new());
            let writer = to_the_end(counted(&source(5)).await, sink.clone(), dir.path()).executor(executor);
            finish(writer.output_mode(OutputMode::Complete)).await.unwrap();
            assert_eq!(total(&sink), 450);
            for query in hanging {
                assert!(query.is_active());
                query.abort().await.unwrap();
                assert!(!query.is_active());
            }
        });
    });
}

/// The error says who did not answer, for how long, and in which phase; a start that waits for a sink fails as a batch does.
#[tokio::test]
async fn a_call_that_takes_too_long_fails_the_query() {
    for hangs in [Hangs::Open, Hangs::Begin, Hangs::Write, Hangs::Commit] {
        let stream = SessionContext::new().read_stream(source(1)).unwrap();
        let error = match stream.write_stream(hangs).call_timeout(Duration::from_millis(50)).start().await {
            Ok(query) => query.await_termination().await.unwrap_err(),
            Err(error) => error,
        };
        let (batch, phase) = match hangs {
            Hangs::Open => (None, "loading"),
            _ => (Some(BatchId(0)), "addBatch"),
        };
        assert_eq!((error.kind(), error.batch()), (ErrorKind::Unavailable, batch), "{hangs:?}: {error}");
        for words in ["the sink `void`", "50 ms", phase, "call_timeout"] {
            assert!(error.to_string().contains(words), "{hangs:?}: {error}");
        }
    }
}

/// Fails to commit so many times, as storage does that is away for a while.
#[derive(Debug, Clone)]
struct Away {
    inner: MemorySink,
    times: Arc<AtomicUsize>,
    kind: ErrorKind,
}

#[async_trait]
impl Sink for Away {
    fn description(&self) -> String {
        "away".to_owned()
    }

    fn guarantee(&self) -> Guarantee {
        self.inner.guarantee()
    }

    fn supports_output_mode(&self, mode: OutputMode) -> bool {
        self.inner.supports_output_mode(mode)
    }

    async fn open(&self, context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
        Ok(Box::new(AwayWriter(self.clone(), self.inner.open(context).await?)))
    }
}

#[derive(Debug)]
struct AwayWriter(Away, Box<dyn StreamingWrite>);

#[async_trait]
impl StreamingWrite for AwayWriter {
    async fn begin(&self, batch: BatchId) -> Result<BatchStatus> {
        self.1.begin(batch).await
    }

    fn partition(&self, batch: BatchId, partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        self.1.partition(batch, partition)
    }

    async fn commit(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        let left = |left: usize| left.checked_sub(1);
        if self.0.times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok() {
            return Err(Error::new(self.0.kind, "nobody is there"));
        }
        self.1.commit(batch, receipts).await
    }
}

/// Hears of restarts.
#[derive(Debug, Default)]
struct Restarts(parking_lot::Mutex<Vec<(u32, u64)>>);

impl QueryListener for Restarts {
    fn on_event(&self, event: &QueryEvent) {
        if let QueryEvent::Restarting { failures, delay_ms, .. } = event {
            self.0.lock().push((*failures, *delay_ms));
        }
    }
}

/// How a query over three adds ends whose sink fails `times` times, and what its listener heard.
async fn restarted(times: usize, kind: ErrorKind, restarts: u32) -> (Result<()>, MemorySink, Vec<(u32, u64)>) {
    let (dir, inner, heard) = (tempfile::tempdir().unwrap(), MemorySink::new(), Arc::new(Restarts::default()));
    let sink = Away { inner: inner.clone(), times: Arc::new(AtomicUsize::new(times)), kind };
    let policy = RestartPolicy::exponential(Duration::from_millis(1), Duration::from_millis(3), restarts);
    let writer = to_the_end(counted(&source(3)).await, sink, dir.path()).output_mode(OutputMode::Complete);
    let outcome = finish(writer.restart_policy(policy).listener(Arc::clone(&heard) as _)).await.map(|_| ());
    let heard = heard.0.lock().clone();
    (outcome, inner, heard)
}

#[tokio::test]
async fn storage_that_is_away_for_a_while_is_waited_for() {
    let (outcome, sink, heard) = restarted(4, ErrorKind::Unavailable, 4).await;
    outcome.unwrap();
    assert_eq!((total(&sink), sink.last_batch()), (270, Some(BatchId(2))), "state and batches go on where they were");
    assert_eq!(heard, [(1, 1), (2, 2), (3, 3), (4, 3)]);

    let (outcome, _, heard) = restarted(100, ErrorKind::Unavailable, 2).await;
    let error = outcome.unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("nobody is there"), "{error}");
    assert_eq!(heard.len(), 2);

    let (outcome, _, heard) = restarted(1, ErrorKind::UserCode, 9).await;
    assert_eq!((outcome.unwrap_err().kind(), heard.len()), (ErrorKind::UserCode, 0), "it would fail again");
}

/// Who waits to start again can be stopped, and says what it failed with.
#[tokio::test]
async fn a_query_that_waits_to_start_again_can_be_stopped() {
    for abandon in [false, true] {
        let hour = Duration::from_secs(3_600);
        let sink =
            Away { inner: MemorySink::new(), times: Arc::new(AtomicUsize::new(1)), kind: ErrorKind::Unavailable };
        let stream = SessionContext::new().read_stream(source(1)).unwrap();
        let writer = stream.write_stream(sink).restart_policy(RestartPolicy::exponential(hour, hour, 1));
        let query = writer.start().await.unwrap();
        while !query.status().message.starts_with("starting again") {
            tokio::task::yield_now().await;
        }
        assert!(query.is_active());
        let error = if abandon { query.abort().await } else { query.stop().await }.unwrap_err();
        assert!(error.to_string().contains("nobody is there"), "{error}");
        assert!(!query.is_active());
    }
}

/// Takes its time by the clock of the query: a second to open, 100 ms to commit a batch.
#[derive(Debug, Clone)]
struct TakesTime(MemorySink, ManualClock);

#[async_trait]
impl Sink for TakesTime {
    fn description(&self) -> String {
        "slow".to_owned()
    }

    fn guarantee(&self) -> Guarantee {
        self.0.guarantee()
    }

    fn supports_output_mode(&self, mode: OutputMode) -> bool {
        self.0.supports_output_mode(mode)
    }

    async fn open(&self, context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
        self.1.advance_ms(1_000);
        Ok(Box::new(TakesTimeWriter(self.0.open(context).await?, self.1.clone())))
    }
}

#[derive(Debug)]
struct TakesTimeWriter(Box<dyn StreamingWrite>, ManualClock);

#[async_trait]
impl StreamingWrite for TakesTimeWriter {
    async fn begin(&self, batch: BatchId) -> Result<BatchStatus> {
        self.0.begin(batch).await
    }

    fn partition(&self, batch: BatchId, partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        self.0.partition(batch, partition)
    }

    async fn commit(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        self.1.advance_ms(100);
        self.0.commit(batch, receipts).await
    }
}

/// The phases of all batches together are all the time there was, and each is told where it was spent.
#[tokio::test]
async fn progress_tells_all_time() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::at(0));
    let sink = TakesTime(MemorySink::new(), clock.clone());
    let stream = counted(&source(20)).await;
    let query = stream.write_stream(sink).checkpoint(dir.path().display().to_string()).durable(false);
    let query = query.output_mode(OutputMode::Update).clock(Arc::new(clock.clone())).start().await.unwrap();
    query.process_all_available().await.unwrap();
    query.stop().await.unwrap();
    let progress = query.recent_progress();
    let told = |batch: usize, phase: &str| progress[batch].duration_ms.get(phase).copied().unwrap_or_default();
    assert_eq!((told(0, "loading"), told(0, "addBatch"), told(0, "triggerExecution")), (1_000.0, 100.0, 100.0));
    assert!(progress[1].duration_ms.contains_key("merging"), "this query has state");
    assert!(progress[1].duration_ms.contains_key("cleanUp") && !progress[1].duration_ms.contains_key("loading"));
    let between = ["loading", "restarting", "cleanUp", "waiting", "triggerExecution"];
    let all: f64 = (0..progress.len()).flat_map(|batch| between.map(|phase| told(batch, phase))).sum();
    assert_eq!((progress.len(), all as i64), (20, clock.now_ms()));
}

/// A function of the user that spreads its work over rayon's threads.
fn parallel_square() -> ScalarUDF {
    let work = |values: &[ColumnarValue]| {
        let values = ColumnarValue::values_to_arrays(values)?;
        let values = values[0].as_primitive::<Int64Type>().values();
        let squares: Vec<i64> = values.par_iter().map(|x| x * x).collect();
        Ok(ColumnarValue::Array(Arc::new(Int64Array::from(squares))))
    };
    create_udf("parallel_square", vec![DataType::Int64], DataType::Int64, Volatility::Immutable, Arc::new(work))
}

#[test]
fn functions_may_use_rayon() {
    const QUERIES: usize = 4;
    const BATCHES: i64 = 250;
    in_time(|| {
        one_thread().block_on(async {
            let mut queries = vec![];
            for _ in 0..QUERIES {
                let (source, sink) = (source(BATCHES), MemorySink::new());
                let square = parallel_square();
                let stream = SessionContext::new().read_stream(source).unwrap();
                let stream = stream.select(vec![square.call(vec![col("x")]).alias("y")]).unwrap();
                let writer = stream.write_stream(sink.clone()).partitions(3).trigger(Trigger::AvailableNow);
                queries.push((writer.start().await.unwrap(), sink));
            }
            for (query, sink) in queries {
                query.await_termination().await.unwrap();
                assert_eq!(sink.last_batch(), Some(BatchId(BATCHES as u64 - 1)));
                let sum: i64 = sink
                    .batches()
                    .iter()
                    .flat_map(|rows| rows.column(0).as_primitive::<Int64Type>().values().to_vec())
                    .sum();
                assert_eq!(sum, (0..BATCHES * 90).map(|x| x * x).sum::<i64>());
            }
        });
    });
}

/// What a sink's function, polled on the engine's threads, may do: start queries, wait for them, block its thread on them.
#[test]
fn queries_start_within_queries() {
    in_time(|| {
        one_thread().block_on(async {
            let started = Arc::new(AtomicUsize::new(0));
            let inner = Arc::clone(&started);
            let sink = ForeachBatchSink::new(move |_, _| {
                let started = Arc::clone(&inner);
                async move {
                    let (dir, sink) = (tempfile::tempdir()?, MemorySink::new());
                    let writer = to_the_end(counted(&source(2)).await, sink.clone(), dir.path());
                    finish(writer.output_mode(OutputMode::Complete)).await?;
                    assert_eq!(total(&sink), 180);
                    started.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                }
            });
            let dir = tempfile::tempdir().unwrap();
            let stream = SessionContext::new().read_stream(source(3)).unwrap();
            finish(to_the_end(stream, sink, dir.path()).executor(Executor::builder().threads(1).build().unwrap()))
                .await
                .unwrap();
            assert_eq!(started.load(Ordering::SeqCst), 3);
        });
    });
}

/// A program's own runtime may serve for IO; the query fails when that ends.
#[test]
fn a_runtime_of_the_program_may_wait_for_io() {
    in_time(|| {
        let io = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let executor = Executor::builder().threads(1).runtime(io.handle().clone()).build().unwrap();
        let caller = one_thread();
        let (query, sink) = caller.block_on(async {
            let (stream, sink) = (counted(&source(2)).await, MemorySink::new());
            let writer = stream.write_stream(sink.clone()).output_mode(OutputMode::Complete).executor(executor);
            let query = writer.start().await.unwrap();
            query.process_all_available().await.unwrap();
            (query, sink)
        });
        assert_eq!(total(&sink), 180);
        drop(caller);
        let error = io.block_on(query.await_termination()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stopped, "{error}");
        assert!(error.to_string().contains("the program ended"), "{error}");
    });
}
