//! How queries end when something outside the plan goes wrong: the runtime is gone, listeners and sinks misbehave, user code
//! waits for its own query. Nothing hangs, nothing is committed that is not whole, and the error says whose fault it was.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array};
use arrow::datatypes::{DataType, Int64Type};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::datasource::MemTable;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use datafusion::prelude::*;
use tidewater::id::PartitionId;
use tidewater::prelude::*;
use tidewater::sink::{BatchStatus, DataWriter, Guarantee, Receipt, Sink, SinkContext, StreamingWrite};
use tidewater_workspace::events::events;
use tokio::runtime::{Builder, Runtime};

use crate::job::{add, finish, memory_events, to_the_end};

const SOON: Duration = Duration::from_secs(60);

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Waits, without any runtime, until the query is over.
fn over(query: &StreamingQuery) -> Option<Error> {
    for _ in 0..6_000 {
        if !query.is_active() {
            return query.error();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the query goes on: {:?}", query.status());
}

fn numbers(from: i64, to: i64) -> RecordBatch {
    RecordBatch::try_from_iter([("x", Arc::new(Int64Array::from_iter_values(from..to)) as ArrayRef)]).unwrap()
}

/// One row per key of a table of 40 batches, whose groups are brought together by DataFusion's repartitioning.
async fn counted(source: &MemorySource, slow: &ScalarUDF) -> DataFrame {
    let ctx = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2).with_batch_size(8));
    let batches: Vec<RecordBatch> = (0..40).map(|n| numbers(n * 8, n * 8 + 8)).collect();
    let table = MemTable::try_new(batches[0].schema(), vec![batches]).unwrap();
    ctx.register_table("d", Arc::new(table)).unwrap();
    ctx.register_udf(slow.clone());
    ctx.register_stream("s", source.clone()).unwrap();
    ctx.sql("SELECT s.x, g.n FROM s JOIN (SELECT slow(x) AS x, count(*) AS n FROM d GROUP BY slow(x)) g ON s.x = g.x")
        .await
        .unwrap()
}

fn slow(reached: &Arc<Barrier>, go_on: &Arc<Barrier>, armed: bool) -> ScalarUDF {
    let (reached, go_on, armed) = (Arc::clone(reached), Arc::clone(go_on), AtomicBool::new(armed));
    let work = move |values: &[ColumnarValue]| {
        if armed.swap(false, Ordering::SeqCst) {
            reached.wait();
            go_on.wait();
        }
        Ok(values[0].clone())
    };
    create_udf("slow", vec![DataType::Int64], DataType::Int64, Volatility::Immutable, Arc::new(work))
}

/// The runtime goes while a table's side is built; what was read of the table by then must not count for all of it.
#[test]
fn a_batch_whose_tasks_were_dropped_is_not_committed() {
    let dir = tempfile::tempdir().unwrap();
    let source = MemorySource::new(numbers(0, 1).schema());
    source.add(vec![numbers(0, 320)]).unwrap();
    let sink = MemorySink::new();
    let (reached, go_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let first = runtime();
    let query = first.block_on(async {
        let stream = counted(&source, &slow(&reached, &go_on, true)).await;
        to_the_end(stream, sink.clone(), dir.path()).start().await.unwrap()
    });
    reached.wait();
    first.shutdown_background();
    std::thread::sleep(Duration::from_millis(100));
    go_on.wait();
    let error = over(&query).expect("the batch cannot be whole");
    assert_eq!((error.kind(), error.batch()), (ErrorKind::Stopped, Some(BatchId(0))), "{error}");
    assert!(error.to_string().contains("runtime") && error.hint().is_some(), "{error}");
    assert_eq!(sink.last_batch(), None);

    let stream = async { to_the_end(counted(&source, &slow(&reached, &go_on, false)).await, sink.clone(), dir.path()) };
    runtime().block_on(async { finish(stream.await).await.unwrap() });
    assert_eq!(sink.batches().iter().map(RecordBatch::num_rows).sum::<usize>(), 320);
}

/// Neither a panic nor a request to report it: the runtime was dropped under an idle query.
#[test]
fn an_idle_query_whose_runtime_goes_says_so() {
    for trigger in [Trigger::Immediate, Trigger::processing_time("1 hour")] {
        let first = runtime();
        let query = first.block_on(async {
            let stream = SessionContext::new().read_stream(memory_events()).unwrap();
            let query = stream.write_stream(MemorySink::new()).trigger(trigger).start().await.unwrap();
            while !query.status().message.contains("waiting for data") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            query
        });
        drop(first);
        let error = over(&query).expect("nobody stopped it");
        assert_eq!(error.kind(), ErrorKind::Stopped, "{error}");
        assert!(error.to_string().contains("runtime"), "{error}");
    }
}

struct Listens(Box<dyn Fn(&QueryEvent) + Send + Sync>);

impl QueryListener for Listens {
    fn on_event(&self, event: &QueryEvent) {
        (self.0)(event);
    }
}

fn listener(does: impl Fn(&QueryEvent) + Send + Sync + 'static) -> Arc<dyn QueryListener> {
    Arc::new(Listens(Box::new(does)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_listener_may_stop_its_query_and_wait() {
    for spawned in [false, true] {
        let (ctx, source) = (SessionContext::new(), memory_events());
        add(&source, &events(1, 5).unwrap());
        let (manager, runtime) = (ctx.streams(), tokio::runtime::Handle::current());
        let stopped = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&stopped);
        let stops = listener(move |event| {
            let QueryEvent::Progress(progress) = event else { return };
            let query = loop {
                if let Some(query) = manager.get(progress.id) {
                    break query;
                }
                std::thread::yield_now();
            };
            if spawned {
                // The listener waits for a task that waits for listeners: it is not waited for.
                let (sender, ended) = std::sync::mpsc::channel();
                runtime.spawn(async move { sender.send(query.stop().await).unwrap() });
                ended.recv().unwrap().unwrap();
            } else {
                runtime.block_on(query.stop()).unwrap();
                assert!(!query.is_active());
            }
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let stream = ctx.read_stream(source).unwrap();
        let query = stream.write_stream(DiscardSink::new()).listener(stops).start().await.unwrap();
        assert!(query.await_termination_for(SOON).await.unwrap());
        for _ in 0..500 {
            if stopped.load(Ordering::SeqCst) == 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(stopped.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_may_be_started_again_when_its_end_is_told() {
    let (dir, ctx, source) = (tempfile::tempdir().unwrap(), SessionContext::new(), memory_events());
    add(&source, &events(1, 5).unwrap());
    let runtime = tokio::runtime::Handle::current();
    let again = Arc::new(Mutex::new(None));
    let restart = {
        let (stream, path, again) =
            (ctx.read_stream(source.clone()).unwrap(), dir.path().to_owned(), Arc::clone(&again));
        listener(move |event| {
            if matches!(event, QueryEvent::Terminated { .. }) {
                let writer = to_the_end(stream.clone(), DiscardSink::new(), &path).name("one");
                *again.lock().unwrap() = Some(runtime.block_on(writer.start()));
            }
        })
    };
    let stream = ctx.read_stream(source).unwrap();
    finish(to_the_end(stream, DiscardSink::new(), dir.path()).name("one").listener(restart)).await.unwrap();
    let again = again.lock().unwrap().take().expect("the end was reported").expect("the checkpoint is free");
    assert!(again.await_termination_for(SOON).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_panics_silences_nobody() {
    let (dir, source) = (tempfile::tempdir().unwrap(), memory_events());
    add(&source, &events(1, 5).unwrap());
    let (heard, calls) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (hears, called) = (Arc::clone(&heard), Arc::clone(&calls));
    let stream = SessionContext::new().read_stream(source).unwrap();
    let writer = to_the_end(stream, DiscardSink::new(), dir.path())
        .listener(listener(move |_| {
            called.fetch_add(1, Ordering::SeqCst);
            panic!("no ear")
        }))
        .listener(listener(move |_| {
            hears.fetch_add(1, Ordering::SeqCst);
        }));
    finish(writer).await.unwrap();
    assert_eq!((calls.load(Ordering::SeqCst), heard.load(Ordering::SeqCst)), (3, 3), "started, a batch, terminated");
}

/// A sink that panics in one place.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Panics {
    Begin,
    Commit,
    Drop,
}

#[async_trait]
impl Sink for Panics {
    fn description(&self) -> String {
        "shaky".to_owned()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn supports_output_mode(&self, _mode: OutputMode) -> bool {
        true
    }

    async fn open(&self, _context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
        Ok(Box::new(PanicsWriter(*self, MemorySink::new().open(_context).await?)))
    }
}

#[derive(Debug)]
struct PanicsWriter(Panics, Box<dyn StreamingWrite>);

impl Drop for PanicsWriter {
    fn drop(&mut self) {
        assert!(self.0 != Panics::Drop || std::thread::panicking(), "too old for this");
    }
}

#[async_trait]
impl StreamingWrite for PanicsWriter {
    async fn begin(&self, batch: BatchId) -> Result<BatchStatus> {
        assert!(self.0 != Panics::Begin, "too old for this");
        self.1.begin(batch).await
    }

    fn partition(&self, batch: BatchId, partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        self.1.partition(batch, partition)
    }

    async fn commit(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        assert!(self.0 != Panics::Commit, "too old for this");
        self.1.commit(batch, receipts).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panics_of_sinks_are_theirs() {
    for panics in [Panics::Begin, Panics::Commit, Panics::Drop] {
        let (dir, source) = (tempfile::tempdir().unwrap(), memory_events());
        add(&source, &events(1, 5).unwrap());
        let stream = SessionContext::new().read_stream(source).unwrap();
        let query = to_the_end(stream, panics, dir.path()).start().await.unwrap();
        let error = tokio::time::timeout(SOON, query.await_termination()).await.expect("it ends").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UserCode, "{panics:?}: {error}");
        assert!(error.to_string().contains("too old for this") && error.to_string().contains("sink"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_foreach_batch_is_user_code() {
    let (dir, source) = (tempfile::tempdir().unwrap(), memory_events());
    add(&source, &events(1, 5).unwrap());
    let at_once = ForeachBatchSink::new(|_, batch| {
        assert!(batch.0 > 0, "nine lives");
        async { Ok(()) }
    });
    let later = ForeachBatchSink::new(|_, batch| async move {
        assert!(batch.0 > 0, "nine lives");
        Ok(())
    });
    for sink in [at_once, later] {
        let stream = SessionContext::new().read_stream(source.clone()).unwrap();
        let error = finish(to_the_end(stream, sink, dir.path())).await.unwrap_err();
        assert_eq!((error.kind(), error.batch()), (ErrorKind::UserCode, Some(BatchId(0))), "{error}");
        assert!(error.to_string().contains("nine lives") && error.to_string().contains("foreach_batch"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreach_batch_may_stop_its_own_query() {
    for abandon in [false, true] {
        let (ctx, source) = (SessionContext::new(), memory_events());
        add(&source, &events(1, 5).unwrap());
        add(&source, &events(2, 5).unwrap());
        let (manager, calls) = (ctx.streams(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&calls);
        let sink = ForeachBatchSink::new(move |_, _| {
            let (manager, counted) = (manager.clone(), Arc::clone(&counted));
            async move {
                counted.fetch_add(1, Ordering::SeqCst);
                let query = loop {
                    match manager.active().pop() {
                        Some(query) => break query,
                        None => tokio::time::sleep(Duration::from_millis(5)).await,
                    }
                };
                let waits = query.await_termination().await.unwrap_err();
                assert_eq!(waits.kind(), ErrorKind::InvalidQuery, "{waits}");
                if abandon {
                    query.abort().await?
                } else {
                    query.stop().await?
                };
                Ok(())
            }
        });
        let query = ctx.read_stream(source).unwrap().write_stream(sink).start().await.unwrap();
        assert!(query.await_termination_for(SOON).await.unwrap(), "{:?}", query.status());
        assert_eq!(calls.load(Ordering::SeqCst), 1, "no batch begins after a stop");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interval_of_zero_is_as_fast_as_possible() {
    let source = memory_events();
    add(&source, &events(1, 5).unwrap());
    let sink = MemorySink::new();
    let writer = |interval: &str| {
        let stream = SessionContext::new().read_stream(source.clone()).unwrap();
        stream.write_stream(sink.clone()).trigger(Trigger::processing_time(interval))
    };
    let query = writer("0 seconds").start().await.unwrap();
    query.process_all_available().await.unwrap();
    query.stop().await.unwrap();
    assert_eq!(sink.last_batch(), Some(BatchId(0)));
    for interval in ["-1 seconds", "soon", ""] {
        let refused = writer(interval).start().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidQuery, "{refused}");
        assert!(refused.message().contains("the interval of the trigger"), "{refused}");
        assert!(refused.message().contains(&format!("`{interval}`")), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn await_any_termination_sees_queries_started_later() {
    let ctx = SessionContext::new();
    let start = async || {
        let stream = ctx.read_stream(memory_events()).unwrap();
        stream.write_stream(DiscardSink::new()).start().await.unwrap()
    };
    // Before there is any, and beside one that runs on.
    for others in 0..2 {
        let manager = ctx.streams();
        let waiting = tokio::spawn(async move { manager.await_any_termination().await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished(), "{others} others");
        let later = start().await;
        later.stop().await.unwrap();
        tokio::time::timeout(SOON, waiting).await.expect("it hears of the end").unwrap().unwrap();
        ctx.streams().forget_terminated();
        start().await;
    }
    for query in ctx.streams().active() {
        query.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ended_query_keeps_no_rows() {
    let rows = numbers(0, 1000);
    let kept = Arc::downgrade(rows.column(0));
    let query = {
        let dir = tempfile::tempdir().unwrap();
        let source = MemorySource::new(rows.schema());
        source.add(vec![rows]).unwrap();
        let stream = SessionContext::new().read_stream(source).unwrap();
        finish(to_the_end(stream, DiscardSink::new(), dir.path())).await.unwrap()
    };
    assert!(query.explain().contains("Batch 0 read"), "{}", query.explain());
    assert!(kept.upgrade().is_none(), "the rows of the last batch are still there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_that_outgrows_its_memory_is_out_of_memory() {
    let dir = tempfile::tempdir().unwrap();
    let small = RuntimeEnvBuilder::new().with_memory_limit(2_000_000, 1.0).build_arc().unwrap();
    let ctx = SessionContext::new_with_config_rt(SessionConfig::new(), small);
    let source = MemorySource::new(numbers(0, 1).schema()).adds_per_batch(1);
    (0..100).for_each(|n| source.add(vec![numbers(n * 2_000, n * 2_000 + 2_000)]).unwrap());
    let stream = ctx.read_stream(source).unwrap().drop_duplicates(&[]).unwrap();
    let error = finish(to_the_end(stream, DiscardSink::new(), dir.path())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    assert!(!error.to_string().contains("storage unavailable") && error.hint().is_some(), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_function_says_is_told_from_bad_input() {
    let fails = |word: &'static str| {
        create_udf(
            "fails",
            vec![DataType::Int64],
            DataType::Int64,
            Volatility::Volatile,
            Arc::new(move |_: &[ColumnarValue]| match word {
                "own" => Err(datafusion::error::DataFusionError::External("the moon is full".into())),
                _ => Err(datafusion::error::DataFusionError::Execution("the moon is full".into())),
            }),
        )
    };
    for word in ["own", "datafusion's"] {
        let dir = tempfile::tempdir().unwrap();
        let source = MemorySource::new(numbers(0, 1).schema());
        source.add(vec![numbers(0, 10)]).unwrap();
        let stream = SessionContext::new().read_stream(source).unwrap();
        let stream = stream.select(vec![fails(word).call(vec![col("x")]).alias("y")]).unwrap();
        let error = finish(to_the_end(stream, DiscardSink::new(), dir.path())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UserCode, "{word}: {error}");
        let told = error.to_string();
        assert!(told.contains("the moon is full"), "{told}");
        assert!(word == "own" || told.contains("`fails`"), "{told}");
    }
    // A value that a function of DataFusion does not take is bad input, with functions of the user beside it, too.
    let dir = tempfile::tempdir().unwrap();
    let source = MemorySource::new(numbers(0, 1).schema());
    source.add(vec![numbers(0, 10)]).unwrap();
    let ctx = SessionContext::new();
    ctx.register_stream("s", source).unwrap();
    let stream = ctx.sql("SELECT 10 / (x - 4) AS y FROM s").await.unwrap();
    let error = finish(to_the_end(stream, DiscardSink::new(), dir.path())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
}

/// What is read at a table's place as a number.
fn values(batches: &[RecordBatch]) -> Vec<i64> {
    batches.iter().flat_map(|rows| rows.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
}

/// A limit that is full asks for nothing more, in its batch and in later ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_limit_neither_evaluates_nor_reads() {
    for (query, answer) in [
        ("SELECT 10 / (x - 4) AS y FROM s LIMIT 1", vec![-2]),
        ("SELECT 10 / (x - 4) AS y FROM s LIMIT 0", vec![]),
        ("SELECT x FROM s WHERE 10 / (x - 4) < 100 LIMIT 2", vec![0, 1]),
        ("SELECT y FROM (SELECT 10 / (x - 4) AS y FROM s) a LIMIT 2", vec![-2, -3]),
        ("SELECT s.x FROM s JOIN d ON s.x = d.x WHERE 10 / (s.x - 4) < 100 LIMIT 1", vec![1]),
        ("SELECT DISTINCT 10 / (x - 4) AS y FROM s LIMIT 3", vec![-5, -3, -2]),
        ("SELECT DISTINCT x FROM s WHERE 10 / (x - 4) < 100 LIMIT 3", vec![0, 1, 2]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let ctx = SessionContext::new();
        let source = MemorySource::new(numbers(0, 1).schema()).adds_per_batch(1);
        source.add(vec![numbers(0, 3)]).unwrap();
        source.add(vec![numbers(3, 6)]).unwrap();
        ctx.register_stream("s", source.clone()).unwrap();
        ctx.register_batch("d", numbers(1, 3)).unwrap();
        let sink = MemorySink::new();
        for _ in 0..2 {
            let stream = ctx.sql(query).await.unwrap();
            let run = finish(to_the_end(stream, sink.clone(), dir.path())).await;
            let run = run.unwrap_or_else(|error| panic!("{query}: {error}"));
            let mut found = values(&sink.batches());
            if query.contains("DISTINCT") {
                found.sort_unstable();
            }
            assert_eq!(found, answer, "{query}");
            let read = run.last_progress().unwrap().num_input_rows;
            assert_eq!(read, 0, "{query}: nothing is read for a full limit");
            source.add(vec![numbers(4, 5)]).unwrap();
        }
    }
}

/// What remembers its whole input does so below a full limit, too, and nothing above it is evaluated. A DISTINCT that only the
/// limit asks does not: it would keep rows back of which none comes out any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_a_full_limit_state_and_watermark_go_on() {
    for operator in ["deduplicate", "aggregate"] {
        let (dir, source) = (tempfile::tempdir().unwrap(), memory_events());
        (1..=4).for_each(|seed| add(&source, &events(seed, 20).unwrap()));
        let ctx = SessionContext::new();
        let stream = ctx.read_stream(source).unwrap().with_watermark("ts", "0 seconds").unwrap();
        let stream = match operator {
            "deduplicate" => stream.drop_duplicates(&["ts", "k"]).unwrap(),
            _ => stream.aggregate(vec![col("ts"), col("k")], vec![count(lit(1)).alias("n")]).unwrap(),
        };
        let sink = MemorySink::new();
        let limited = stream.limit(0, Some(1)).unwrap();
        let query = finish(to_the_end(limited, sink.clone(), dir.path())).await.unwrap();
        assert_eq!(sink.batches().iter().map(RecordBatch::num_rows).sum::<usize>(), 1);
        let progress = query.recent_progress();
        let with_rows: Vec<_> = progress.iter().filter(|batch| batch.num_input_rows > 0).collect();
        assert_eq!(with_rows.iter().map(|batch| batch.num_input_rows).collect::<Vec<_>>(), [20; 4], "{operator}");
        assert!(with_rows[3].event_time.contains_key("max"), "{:?}", with_rows[3].event_time);
        let seen = with_rows[3].state_operators.iter().find(|o| o.operator_name == operator).unwrap();
        let rows = seen.num_rows_updated + seen.num_rows_dropped_by_watermark + seen.num_dropped_duplicate_rows;
        assert_eq!(rows > 0, operator == "aggregate", "{seen:?}");
    }
}

/// Rows of a batch and the columns of a stream whose names need care.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_with_dots_and_capitals_are_columns() {
    let time = datafusion::common::ScalarValue::TimestampMicrosecond(Some(1_704_067_200_000_000), None);
    let rows = RecordBatch::try_from_iter([
        ("event.Time", time.to_array_of_size(4).unwrap()),
        ("Key", Arc::new(Int64Array::from(vec![1, 1, 2, 2])) as ArrayRef),
    ])
    .unwrap();
    let ctx = SessionContext::new();
    let source = MemorySource::new(rows.schema());
    source.add(vec![rows.clone()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let stream = ctx.read_stream(source).unwrap().with_watermark("event.Time", "1 second").unwrap();
    let sink = MemorySink::new();
    let stream = stream.drop_duplicates_within_watermark(&["Key"]).unwrap();
    let query = finish(to_the_end(stream, sink.clone(), dir.path())).await.unwrap();
    assert_eq!(sink.batches().iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
    assert!(query.watermark_ms().is_some_and(|ms| ms > 0));

    // The same on a batch, where nothing needs a watermark.
    let batch = || ctx.read_batch(rows.clone()).unwrap();
    let marked = batch().with_watermark("event.Time", "1 second").unwrap();
    assert_eq!(marked.drop_duplicates_within_watermark(&["Key"]).unwrap().count().await.unwrap(), 2);
    assert_eq!(batch().drop_duplicates_within_watermark(&["Key"]).unwrap().count().await.unwrap(), 2);
    assert_eq!(batch().drop_duplicates_within_watermark(&[]).unwrap().count().await.unwrap(), 2);
    assert_eq!(batch().drop_duplicates(&["event.Time"]).unwrap().count().await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_can_be_explained() {
    let ctx = SessionContext::new();
    ctx.register_stream("s", memory_events()).unwrap();
    let told = ctx.sql("EXPLAIN SELECT k FROM s WHERE v > 1").await.unwrap().collect().await.unwrap();
    let told = arrow::util::pretty::pretty_format_batches(&told).unwrap().to_string();
    assert!(told.contains("logical_plan") && told.contains("physical_plan"), "{told}");
    assert!(told.contains("StreamTableExec") && !told.contains("error"), "{told}");
    let refused = Error::from(ctx.sql("SELECT k FROM s").await.unwrap().collect().await.unwrap_err());
    assert!(refused.to_string().contains("write_stream"), "{refused}");
}
