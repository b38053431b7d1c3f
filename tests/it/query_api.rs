//! What a user holds in hand while a query runs: handle, progress, listeners, manager, plan.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use datafusion::logical_expr::{ColumnarValue, Volatility, create_udf};
use datafusion::prelude::*;
use serde_json::{Value, json};
use tidewater::prelude::*;
use tidewater::testing::{assert_same_rows, table};
use tidewater_connectors::file::{FileSink, FileSource};
use tidewater_workspace::events::{event_schema, events};
use tidewater_workspace::files::{Format, committed_rows, put_rows};
use tokio::sync::Notify;

use crate::job::{DOUBLED, PARTITIONS, add, doubled, doubled_answer, finish, memory_events, text, to_the_end};

/// A query over memory that looks for input only when asked to.
async fn idle_query(ctx: &SessionContext, source: &MemorySource, sink: &MemorySink) -> StreamingQuery {
    doubled(ctx.read_stream(source.clone()).unwrap())
        .unwrap()
        .write_stream(sink.clone())
        .partitions(PARTITIONS)
        .clock(Arc::new(ManualClock::at(1_704_067_200_000)))
        .start()
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_from_start_to_stop() {
    let (ctx, source, sink) = (SessionContext::new(), memory_events(), MemorySink::new());
    let query = idle_query(&ctx, &source, &sink).await;
    query.process_all_available().await.unwrap();
    assert!(query.is_active() && query.last_progress().is_none() && query.error().is_none());
    assert!(!query.status().is_trigger_active && !query.status().is_data_available, "{:?}", query.status());
    assert_eq!(query.guarantee(), Guarantee::ExactlyOnce);
    assert_eq!(query.watermark_ms(), None);

    let rows = events(1, 30).unwrap();
    add(&source, &rows);
    query.process_all_available().await.unwrap();
    assert_same_rows(&doubled_answer(&[rows]).await, &sink.batches());
    assert!(!query.await_termination_for(Duration::from_millis(20)).await.unwrap(), "it still runs");

    query.stop().await.unwrap();
    query.stop().await.unwrap();
    assert!(query.await_termination_for(Duration::from_secs(30)).await.unwrap());
    assert!(!query.is_active() && query.error().is_none());
    query.process_all_available().await.unwrap();
}

/// Spark's fields under Spark's names; the rows of the sink are counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_has_the_names_of_spark() {
    let dir = tempfile::tempdir().unwrap();
    let (ctx, source) = (SessionContext::new(), memory_events());
    let all = [events(1, 30).unwrap(), events(2, 10).unwrap()];
    all.iter().for_each(|rows| add(&source, rows));
    let stream = ctx.read_stream(source).unwrap().with_watermark("ts", "5 seconds").unwrap();
    let sink = FileSink::parquet(text(&dir.path().join("out")));
    let query =
        finish(to_the_end(doubled(stream).unwrap(), sink, &dir.path().join("checkpoint")).name("p")).await.unwrap();
    let answer: usize = doubled_answer(&all[1..]).await.iter().map(RecordBatch::num_rows).sum();
    let progress: Value = serde_json::from_str(&query.last_progress().unwrap().json()).unwrap();
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();

    let top = [
        "id",
        "runId",
        "name",
        "timestamp",
        "batchId",
        "batchDuration",
        "numInputRows",
        "inputRowsPerSecond",
        "processedRowsPerSecond",
        "durationMs",
        "eventTime",
        "stateOperators",
        "sources",
        "sink",
    ];
    top.iter().for_each(|name| assert!(progress.get(name).is_some(), "`{name}` is missing: {progress}"));
    for phase in
        ["latestOffset", "walCommit", "getBatch", "queryPlanning", "addBatch", "commitOffsets", "triggerExecution"]
    {
        assert!(
            progress["durationMs"].get(phase).is_some_and(Value::is_number),
            "`{phase}`: {}",
            progress["durationMs"]
        );
    }
    for name in ["description", "startOffset", "endOffset", "latestOffset", "numInputRows", "metrics"] {
        assert!(progress["sources"][0].get(name).is_some(), "`{name}`: {}", progress["sources"]);
    }
    assert!(
        ["description", "numOutputRows", "metrics"].iter().all(|n| names(&progress["sink"]).contains(&n.to_string()))
    );

    assert_eq!((&progress["name"], &progress["batchId"]), (&json!("p"), &json!(1)));
    assert_eq!(progress["id"], json!(query.id().to_string()));
    assert_eq!((&progress["numInputRows"], &progress["sink"]["numOutputRows"]), (&json!(10), &json!(answer)));
    assert_eq!((&progress["sources"][0]["startOffset"], &progress["sources"][0]["endOffset"]), (&json!(0), &json!(1)));
    for name in ["min", "max", "avg", "watermark"] {
        let time = progress["eventTime"][name].as_str().unwrap();
        assert!(time.starts_with("2024-01-01T") && time.ends_with('Z'), "{name}: {time}");
    }
    assert_eq!(query.recent_progress().len(), 2);
}

/// Hears everything.
#[derive(Default)]
struct Ear(Mutex<Vec<String>>);

impl QueryListener for Ear {
    fn on_event(&self, event: &QueryEvent) {
        let heard = match event {
            QueryEvent::Started { name, .. } => format!("started {}", name.as_deref().unwrap_or("-")),
            QueryEvent::Progress(progress) => format!("batch {}", progress.batch_id),
            QueryEvent::Idle { .. } => "idle".to_owned(),
            QueryEvent::Terminated { error, .. } => format!("ended {}", error.as_ref().map_or("well", |_| "badly")),
            _ => "something new".to_owned(),
        };
        self.0.lock().unwrap().push(heard);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_hear_all_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (ear, source) = (Arc::new(Ear::default()), memory_events());
    add(&source, &events(1, 3).unwrap());
    add(&source, &events(2, 3).unwrap());
    let stream = SessionContext::new().read_stream(source.clone()).unwrap();
    let working = ForeachBatchSink::new(|_, _| async { Ok(()) });
    let writer = to_the_end(stream, working, dir.path()).name("ear").listener(Arc::clone(&ear) as _);
    finish(writer).await.unwrap();
    assert_eq!(*ear.0.lock().unwrap(), ["started ear", "batch 0", "batch 1", "ended well"]);

    let ear = Arc::new(Ear::default());
    add(&source, &events(3, 3).unwrap());
    let stream = SessionContext::new().read_stream(source).unwrap();
    let failing = ForeachBatchSink::new(|_, _| async { Err("no".into()) });
    let writer = to_the_end(stream, failing, dir.path()).listener(Arc::clone(&ear) as _);
    finish(writer).await.unwrap_err();
    assert_eq!(*ear.0.lock().unwrap(), ["started -", "ended badly"]);
}

/// The error a query failed with is there for everyone who asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_error_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (ctx, source) = (SessionContext::new(), memory_events());
    add(&source, &events(1, 3).unwrap());
    let stream = ctx.read_stream(source).unwrap();
    let failing = ForeachBatchSink::new(|_, _| async { Err("the shelf is full".into()) });
    let query = to_the_end(stream, failing, dir.path()).start().await.unwrap();
    for failed in [
        query.await_termination().await.unwrap_err(),
        query.await_termination_for(Duration::from_secs(30)).await.unwrap_err(),
        query.process_all_available().await.unwrap_err(),
        query.stop().await.unwrap_err(),
        query.error().unwrap(),
        ctx.streams().await_any_termination().await.unwrap_err(),
    ] {
        assert_eq!((failed.kind(), failed.batch()), (ErrorKind::UserCode, Some(BatchId(0))));
        let told = failed.to_string();
        assert!(told.contains("the shelf is full") && told.contains(&query.id().to_string()), "{told}");
    }
    assert!(query.status().message.contains("the shelf is full"), "{:?}", query.status());
}

/// A panic in user code fails the batch and says so; the process lives on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_fails_the_batch_alone() {
    let dir = tempfile::tempdir().unwrap();
    let ctx = SessionContext::new();
    let source = memory_events();
    add(&source, &events(1, 10).unwrap());
    let int = DataType::Int64;
    let panics =
        create_udf("panics", vec![int.clone()], int, Volatility::Volatile, Arc::new(|_| panic!("seven is not even")));
    let stream = ctx.read_stream(source).unwrap().select(vec![panics.call(vec![col("v")]).alias("x")]).unwrap();
    let failed = finish(to_the_end(stream, MemorySink::new(), dir.path())).await.unwrap_err();
    assert!(failed.to_string().contains("seven is not even"), "{failed}");
    assert_eq!(failed.batch(), Some(BatchId(0)), "{failed}");
}

/// A stop waits for the running batch; abandoning drops it, and the next start repeats it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_is_graceful_and_abandoning_is_clean() {
    for graceful in [true, false] {
        let (dir, source) = (tempfile::tempdir().unwrap(), memory_events());
        let rows = [events(1, 20).unwrap(), events(2, 20).unwrap()];
        rows.iter().for_each(|rows| add(&source, rows));
        let out = dir.path().join("out");
        let (reached, go_on) = (Arc::new(Notify::new()), Arc::new(std::sync::Barrier::new(2)));
        let int = DataType::Int64;
        let slow = {
            let (reached, go_on) = (Arc::clone(&reached), Arc::clone(&go_on));
            let first = Mutex::new(true);
            create_udf(
                "slow",
                vec![int.clone()],
                int.clone(),
                Volatility::Volatile,
                Arc::new(move |values: &[ColumnarValue]| {
                    if std::mem::take(&mut *first.lock().unwrap()) {
                        reached.notify_one();
                        go_on.wait();
                    }
                    Ok(values[0].clone())
                }),
            )
        };
        let run = async |work: Option<&datafusion::logical_expr::ScalarUDF>| {
            let stream = doubled(SessionContext::new().read_stream(source.clone()).unwrap()).unwrap();
            let stream = match work {
                Some(udf) => {
                    let columns = vec![col("ts"), col("k"), udf.call(vec![col("v2")]).alias("v2")];
                    stream.select(columns).unwrap()
                }
                None => stream,
            };
            to_the_end(stream, FileSink::parquet(text(&out)), &dir.path().join("checkpoint")).start().await.unwrap()
        };
        let query = run(Some(&slow)).await;
        reached.notified().await;
        let stopping = {
            let query = query.clone();
            tokio::spawn(async move { if graceful { query.stop().await } else { query.abort().await } })
        };
        // The stop must have been asked for before the batch goes on; until then its flag cannot be seen from outside.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(query.is_active(), "a stop waits for the batch");
        tokio::task::spawn_blocking(move || go_on.wait()).await.unwrap();
        stopping.await.unwrap().unwrap();

        let schema = table::schema(&DOUBLED).unwrap();
        let written = committed_rows(&out, Format::Parquet, &schema).await.unwrap();
        let done = if graceful { 1 } else { 0 };
        assert_same_rows(&doubled_answer(&rows[..done]).await, &written);
        run(None).await.await_termination().await.unwrap();
        let written = committed_rows(&out, Format::Parquet, &schema).await.unwrap();
        assert_same_rows(&doubled_answer(&rows).await, &written);
    }
}

/// The columns that are used and the predicate reach the scan of the Parquet files of each batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_shows_what_reaches_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    put_rows(&input, "1.parquet", Format::Parquet, &events(1, 50).unwrap()).unwrap();
    let ctx = SessionContext::new();
    let source = FileSource::parquet(text(&input)).with_schema(event_schema().unwrap());
    let stream = ctx.read_stream(source).unwrap();
    let wanted = stream.filter(col("v").gt(lit(100))).unwrap().select(vec![col("k")]).unwrap();
    let sink = MemorySink::new();
    let query = finish(to_the_end(wanted, sink.clone(), &dir.path().join("checkpoint"))).await.unwrap();
    let plan = query.explain();
    let scan = plan.lines().find(|line| line.contains("1.parquet")).unwrap_or_else(|| panic!("no scan:\n{plan}"));
    assert!(scan.contains("projection=[k, v]"), "{scan}");
    assert!(scan.contains("predicate=v@") && scan.contains("> 100"), "{scan}");
    let rows = sink.batches();
    assert!(rows.iter().all(|rows| rows.num_columns() == 1) && rows.iter().any(|rows| rows.num_rows() > 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_manager_knows_the_queries_of_its_session() {
    let (ctx, source) = (SessionContext::new(), memory_events());
    assert!(ctx.streams().active().is_empty());
    let one = idle_query(&ctx, &source, &MemorySink::new()).await;
    let other = idle_query(&ctx, &source, &MemorySink::new()).await;
    let mut active: Vec<_> = ctx.streams().active().iter().map(|query| query.id().to_string()).collect();
    active.sort();
    let mut ids = [one.id().to_string(), other.id().to_string()];
    ids.sort();
    assert_eq!(active, ids);
    assert_eq!(ctx.streams().get(other.id()).unwrap().run_id(), other.run_id());
    assert!(SessionContext::new().streams().get(other.id()).is_none());

    let waiting = ctx.streams();
    let waiting = tokio::spawn(async move { waiting.await_any_termination().await });
    one.stop().await.unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(ctx.streams().active().len(), 1);
    ctx.streams().forget_terminated();
    assert!(ctx.streams().get(one.id()).is_none());
    other.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_running_queries_have_two_names() {
    let (ctx, source) = (SessionContext::new(), memory_events());
    let start = async || {
        let stream = ctx.read_stream(source.clone()).unwrap();
        stream.write_stream(DiscardSink::new()).name("orders").start().await
    };
    let one = start().await.unwrap();
    let refused = start().await.unwrap_err();
    assert!(refused.kind() == ErrorKind::InvalidQuery && refused.to_string().contains("`orders`"), "{refused}");
    one.stop().await.unwrap();
    start().await.unwrap().stop().await.unwrap();
}

/// What belongs to a batch is refused on a stream, with the way out; and the other way round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_calls_on_a_stream_are_answered() {
    let ctx = SessionContext::new();
    let stream = ctx.read_stream(memory_events()).unwrap();
    assert!(stream.is_streaming());
    let refused = Error::from(stream.clone().collect().await.unwrap_err());
    assert_eq!(refused.kind(), ErrorKind::InvalidQuery, "{refused}");
    assert!(refused.to_string().contains("write_stream"), "{refused}");
    let refused = Error::from(stream.count().await.unwrap_err());
    assert!(refused.to_string().contains("write_stream"), "{refused}");

    let batch = ctx.read_batch(events(1, 3).unwrap()).unwrap();
    assert!(!batch.is_streaming());
    let refused = batch.clone().write_stream(DiscardSink::new()).start().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidQuery, "{refused}");
    let marked = batch.with_watermark("ts", "1 second").unwrap();
    assert_eq!(marked.count().await.unwrap(), 3, "a watermark changes nothing on a batch");
}
