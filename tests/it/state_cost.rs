//! What state costs and what is told of it: files per batch, late rows, who holds the watermark, state that nothing
//! bounds, and state that no longer fits the query.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow::record_batch::RecordBatch;
use datafusion::prelude::*;
use serde_json::{Value, json};
use tidewater::checkpoint::{MetadataStore, memory_store};
use tidewater::prelude::*;
use tidewater::testing::{FaultInjector, assert_same_rows, table};
use tidewater_connectors::file::FileSource;
use tidewater_workspace::files::{Format, put_rows};

use crate::job::{finish, local_checkpoint, text};
use crate::stateful::arrivals::{EVENTS, after_first, time};
use crate::stateful::jobs::{by_window, grouped};
use crate::stateful::{Job, World, jobs};

const PARTITIONS: usize = 2;

/// Offsets, commit, and the log of a source that has one.
const FILES_OF_A_BATCH: usize = 3;

/// A clock that stands still: the query looks for input only when asked to.
fn stopped_clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(1_704_067_200_000))
}

/// The files below a folder, by their names from there; hidden ones are being written.
fn files(folder: &Path) -> BTreeSet<String> {
    fn collect(root: &Path, folder: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                collect(root, &path, found);
            } else if !entry.file_name().to_string_lossy().starts_with('.') {
                found.insert(text(path.strip_prefix(root).unwrap()));
            }
        }
    }
    let mut found = BTreeSet::new();
    collect(folder, folder, &mut found);
    found
}

/// `12` of `state/0/12.<run>`, the changes of a batch, and `12m1` of `state/0/12m1.<run>`, a merge of those of several.
fn batch_and_merge(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or_default();
    name.split('.').next().unwrap_or_default()
}

/// Counts the files that appear in a checkpoint while a query runs batch by batch.
struct Appearing {
    operators: usize,
    known: BTreeSet<String>,
    batches: usize,
    files: usize,
}

impl Appearing {
    fn new(checkpoint: &Path, operators: usize) -> Self {
        Appearing { operators, known: files(checkpoint), batches: 0, files: 0 }
    }

    /// Looks again: the batches since the last look must not have left more than they may. Files of merged changes, and
    /// the description of the operators that a run writes once, are not counted for any batch.
    fn look(&mut self, checkpoint: &Path, job: &str) {
        let now = files(checkpoint);
        let new: Vec<&String> = now.difference(&self.known).collect();
        let batches = new.iter().filter(|file| file.starts_with("commits/")).count();
        assert!(batches > 0, "{job}: nothing was committed");
        let (merges, of_batches): (Vec<&String>, Vec<&String>) = new
            .iter()
            .copied()
            .filter(|file| !file.starts_with("state/operators."))
            .partition(|file| file.starts_with("state/") && batch_and_merge(file).contains('m'));
        let most = batches * (FILES_OF_A_BATCH + self.operators);
        assert!(of_batches.len() <= most, "{job}: {batches} batches left {} files: {of_batches:?}", of_batches.len());
        assert!(merges.len() <= self.operators * batches, "{job}: too many merges: {merges:?}");
        self.batches += batches;
        self.files += new.len();
        self.known = now;
    }

    /// Over the whole run, everything counts.
    fn told(&self, job: &str) {
        let most = FILES_OF_A_BATCH + self.operators;
        println!("{job}: {} batches, {} files in the checkpoint, at most {most} each", self.batches, self.files);
        assert!(self.files <= self.batches * most, "{job}: merges come too often");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_files_per_batch() {
    let cases: [(Job, usize); 7] = [
        (jobs::tumbling(24), 1),
        (jobs::aggregate_update(), 1),
        (jobs::sessions(), 1),
        (jobs::deduplicate(), 1),
        (jobs::join(JoinType::Full), 1),
        (jobs::windows_of_windows(), 2),
        (jobs::join_then_windows(), 2),
    ];
    for (job, operators) in cases {
        let job = Arc::new(job);
        let dir = tempfile::tempdir().unwrap();
        let mut world = World::new(&job);
        world.checkpoint = local_checkpoint(dir.path());
        let writer = world.writer(world.sink.clone(), PARTITIONS, &FaultInjector::disarmed()).await.unwrap();
        let query = writer.trigger(Trigger::Immediate).clock(stopped_clock()).start().await.unwrap();
        let mut appearing = Appearing::new(dir.path(), operators);
        for add in 0..job.adds() {
            world.feed(add..add + 1);
            query.process_all_available().await.unwrap();
            query.process_all_available().await.unwrap();
            appearing.look(dir.path(), &job.name);
        }
        appearing.told(&job.name);
        query.stop().await.unwrap();
    }
}

/// A file source keeps a log of its own: one file more per batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_files_per_batch_of_a_file_source() {
    let (dir, job) = (tempfile::tempdir().unwrap(), Arc::new(jobs::tumbling(6)));
    let (input, checkpoint) = (dir.path().join("in"), dir.path().join("checkpoint"));
    std::fs::create_dir_all(&input).unwrap();
    let source = FileSource::json(text(&input)).with_schema(job.inputs[0].schema.clone()).max_files_per_trigger(1);
    let ctx = SessionContext::new();
    let stream = ctx.read_stream(source).unwrap();
    let sink = MemorySink::new();
    let query = (job.query)(&ctx, &[stream])
        .unwrap()
        .write_stream(sink.clone())
        .checkpoint(text(&checkpoint))
        .durable(false)
        .partitions(PARTITIONS)
        .clock(stopped_clock())
        .start()
        .await
        .unwrap();
    let mut appearing = Appearing::new(&checkpoint, 1);
    for (i, rows) in job.inputs[0].adds.iter().enumerate() {
        put_rows(&input, &format!("{i}.json"), Format::Json, rows).unwrap();
        query.process_all_available().await.unwrap();
        query.process_all_available().await.unwrap();
        appearing.look(&checkpoint, "JSON files to tumbling windows");
    }
    appearing.told("JSON files to tumbling windows");
    query.stop().await.unwrap();
    assert_same_rows(&job.batch_answer().await.unwrap(), &crate::stateful::settled(&sink.batches()).unwrap());
}

/// A query over sources in memory that a test feeds row by row.
struct Fed {
    sources: Vec<MemorySource>,
    sink: MemorySink,
    query: StreamingQuery,
}

impl Fed {
    async fn start(
        columns: &[&[(&str, &str)]],
        query: impl FnOnce(&SessionContext, &[DataFrame]) -> Result<DataFrame>,
    ) -> Self {
        let ctx = SessionContext::new();
        let source = |columns: &&[(&str, &str)]| MemorySource::new(table::schema(columns).unwrap()).adds_per_batch(1);
        let sources: Vec<MemorySource> = columns.iter().map(source).collect();
        let mut streams = vec![];
        for source in &sources {
            streams.push(ctx.read_stream(source.clone()).unwrap());
        }
        let sink = MemorySink::new();
        let writer = query(&ctx, &streams).unwrap().write_stream(sink.clone());
        let writer = writer.checkpoint_store(memory_store()).partitions(PARTITIONS).clock(stopped_clock());
        Fed { sources, sink, query: writer.start().await.unwrap() }
    }

    /// One batch with these rows, by source, and what follows from it.
    async fn take(&self, rows: &[Value]) {
        for (source, rows) in self.sources.iter().zip(rows) {
            let schema = tidewater::source::Source::schema(source);
            source.add(table::deal(&table::rows(&schema, rows).unwrap(), PARTITIONS).unwrap()).unwrap();
        }
        self.query.process_all_available().await.unwrap();
        self.query.process_all_available().await.unwrap();
    }

    /// A figure of each stateful operator, summed over all batches.
    fn sums(&self, figure: &str) -> Vec<u64> {
        let mut sums = vec![];
        for progress in self.query.recent_progress() {
            let progress: Value = serde_json::from_str(&progress.json()).unwrap();
            let operators = progress["stateOperators"].as_array().unwrap();
            sums.resize(operators.len().max(sums.len()), 0);
            for (sum, operator) in sums.iter_mut().zip(operators) {
                *sum += operator[figure].as_u64().unwrap_or_else(|| panic!("no `{figure}` in {operator}"));
            }
        }
        sums.sort_unstable();
        sums
    }

    /// A figure of each stateful operator after the last batch.
    fn last(&self, figure: &str) -> Vec<u64> {
        let progress: Value = serde_json::from_str(&self.query.last_progress().unwrap().json()).unwrap();
        progress["stateOperators"].as_array().unwrap().iter().map(|o| o[figure].as_u64().unwrap()).collect()
    }
}

const KEYED: [(&str, &str); 3] = [("ts", "timestamp"), ("k", "string"), ("v", "long")];

/// A row so many seconds after the first.
fn at(second: i64, key: &str, value: i64) -> Value {
    json!([time(after_first(second)), key, value])
}

/// Spark counts the groups that late rows of a batch fall into; we count the rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_rows_are_counted_as_rows() {
    let late_and_one_in_time =
        json!([at(12, "a", 1), at(13, "a", 2), at(14, "a", 3), at(15, "b", 4), at(27, "b", 5), at(101, "a", 6)]);
    let windows = Fed::start(&[&KEYED], |_, inputs| {
        let events = inputs[0].clone().with_watermark("ts", "5 seconds")?;
        by_window(events, window(col("ts"), "10 seconds"), &["count(*) AS n"], false)
    })
    .await;
    windows.take(&[json!([at(100, "a", 0)])]).await;
    windows.take(std::slice::from_ref(&late_and_one_in_time)).await;
    assert_eq!(windows.sums("numRowsDroppedByWatermark"), [5]);
    assert_eq!(windows.last("numRowsTotal"), [1], "one group is open");
    assert!(windows.last("memoryUsedBytes")[0] > 0);

    let sliding = Fed::start(&[&KEYED], |_, inputs| {
        let events = inputs[0].clone().with_watermark("ts", "5 seconds")?;
        by_window(events, window(col("ts"), "10 seconds").slide("5 seconds"), &["count(*) AS n"], false)
    })
    .await;
    sliding.take(&[json!([at(100, "a", 0)])]).await;
    sliding.take(std::slice::from_ref(&late_and_one_in_time)).await;
    assert_eq!(sliding.sums("numRowsDroppedByWatermark"), [10], "a row is late once for each of its windows");

    let sessions = Fed::start(&[&KEYED], |_, inputs| {
        let events = inputs[0].clone().with_watermark("ts", "5 seconds")?;
        by_window(events, session_window(col("ts"), "3 seconds"), &["count(*) AS n"], false)
    })
    .await;
    sessions.take(&[json!([at(100, "a", 0)])]).await;
    sessions.take(std::slice::from_ref(&late_and_one_in_time)).await;
    assert_eq!(sessions.sums("numRowsDroppedByWatermark"), [5]);

    let once = Fed::start(&[&KEYED], |_, inputs| {
        inputs[0].clone().with_watermark("ts", "5 seconds")?.drop_duplicates(&["ts", "k"])
    })
    .await;
    once.take(&[json!([at(100, "a", 0), at(100, "a", 1), at(100, "a", 2), at(100, "b", 3)])]).await;
    once.take(std::slice::from_ref(&late_and_one_in_time)).await;
    assert_eq!(once.sums("numRowsDroppedByWatermark"), [5]);
    assert_eq!(once.sums("numDroppedDuplicateRows"), [2]);
    assert_eq!(once.sink.batches().iter().map(RecordBatch::num_rows).sum::<usize>(), 3);

    let nested = Fed::start(&[&KEYED], |_, inputs| {
        let events = inputs[0].clone().with_watermark("ts", "5 seconds")?;
        let fine = by_window(events, window(col("ts"), "10 seconds"), &["count(*) AS n"], true)?;
        by_window(fine, window(col("ts"), "30 seconds"), &["sum(n) AS n"], false)
    })
    .await;
    nested.take(&[json!([at(100, "a", 0)])]).await;
    nested.take(std::slice::from_ref(&late_and_one_in_time)).await;
    assert_eq!(nested.sums("numRowsDroppedByWatermark"), [0, 5], "each operator counts its own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_rows_of_both_sides_of_a_join_are_counted() {
    let left = [("lts", "timestamp"), ("lk", "string"), ("lv", "long")];
    let right = [("rts", "timestamp"), ("rk", "string"), ("rv", "long")];
    let join = Fed::start(&[&left, &right], |ctx, inputs| {
        let left = inputs[0].clone().with_watermark("lts", "5 seconds")?;
        let right = inputs[1].clone().with_watermark("rts", "5 seconds")?;
        let on = "lk = rk AND rts >= lts AND rts <= lts + INTERVAL '10 seconds'";
        jobs::join_where(ctx, left, right, JoinType::Inner, on)
    })
    .await;
    join.take(&[json!([at(100, "a", 0)]), json!([at(100, "a", 0)])]).await;
    join.take(&[json!([at(20, "a", 1), at(21, "a", 2), at(101, "a", 3)]), json!([at(20, "a", 4)])]).await;
    assert_eq!(join.sums("numRowsDroppedByWatermark"), [3]);
    assert_eq!(join.sink.batches().iter().map(RecordBatch::num_rows).sum::<usize>(), 1);
}

/// Of two sources the slower one holds the watermark, and is named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_that_holds_the_watermark_is_named() {
    let query = Fed::start(&[&KEYED, &KEYED], |_, inputs| {
        let one = inputs[0].clone().with_watermark("ts", "0 seconds")?;
        let both = one.union(inputs[1].clone().with_watermark("ts", "0 seconds")?)?;
        by_window(both, window(col("ts"), "10 seconds"), &["count(*) AS n"], false)
    })
    .await;
    // Rows of the last batch that had any, from the source that is named.
    let held_by = || -> Vec<u64> {
        let progress = query.query.recent_progress();
        let progress = progress.iter().rev().find(|progress| progress.num_input_rows > 0).unwrap().clone();
        progress.sources.iter().filter(|s| s.holds_watermark).map(|s| s.num_input_rows).collect()
    };
    query.take(&[json!([at(10, "one", 0)]), json!([at(100, "other", 0), at(90, "other", 1)])]).await;
    assert_eq!(held_by(), [1], "the first source is at second 10");
    query.take(&[json!([at(200, "one", 2)]), json!([at(101, "other", 3), at(102, "other", 4)])]).await;
    assert_eq!(held_by(), [2], "the second source is at second 102");
    assert_eq!(query.query.watermark_ms(), Some(after_first(102)));
}

/// Starts a query on a checkpoint, lets it take what there is, and returns what came out.
async fn run_on(
    store: &Arc<dyn MetadataStore>,
    source: &MemorySource,
    mode: OutputMode,
    partitions: usize,
    query: impl FnOnce(DataFrame) -> Result<DataFrame>,
) -> Result<Vec<RecordBatch>> {
    let stream = SessionContext::new().read_stream(source.clone())?;
    let calls: Arc<Mutex<Vec<RecordBatch>>> = Arc::default();
    let sink = {
        let calls = Arc::clone(&calls);
        ForeachBatchSink::new(move |rows: DataFrame, _| {
            let calls = Arc::clone(&calls);
            async move {
                let rows = rows.collect().await?;
                calls.lock().unwrap().extend(rows);
                Ok(())
            }
        })
    };
    let writer = query(stream)?.write_stream(sink).output_mode(mode).checkpoint_store(Arc::clone(store));
    finish(writer.partitions(partitions).trigger(Trigger::AvailableNow)).await?;
    Ok(std::mem::take(&mut *calls.lock().unwrap()))
}

fn keyed_source() -> MemorySource {
    MemorySource::new(table::schema(&KEYED).unwrap()).adds_per_batch(1)
}

fn put(source: &MemorySource, rows: Value) {
    source.add(table::deal(&table::rows(&table::schema(&KEYED).unwrap(), &rows).unwrap(), 2).unwrap()).unwrap();
}

fn by_key(rows: DataFrame, aggregates: &[&str]) -> Result<DataFrame> {
    grouped(rows, vec![col("k")], aggregates)
}

fn tens(rows: DataFrame) -> Result<DataFrame> {
    by_window(rows, window(col("ts"), "10 seconds"), &["count(*) AS n"], true)
}

/// State is only read by the operator that wrote it: another query on its checkpoint is refused at the start, operator
/// by operator, with what can be done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_of_another_query_is_refused() {
    type Change = (&'static str, OutputMode, fn(DataFrame) -> Result<DataFrame>, fn(DataFrame) -> Result<DataFrame>);
    let changes: [(Change, &[&str]); 6] = [
        (
            (
                "an aggregate is added",
                OutputMode::Update,
                |rows| by_key(rows, &["count(*) AS n"]),
                |rows| by_key(rows, &["count(*) AS n", "sum(v) AS total"]),
            ),
            &["aggregat", "sum"],
        ),
        (
            (
                "an aggregate is left out",
                OutputMode::Update,
                |rows| by_key(rows, &["count(*) AS n", "sum(v) AS total"]),
                |rows| by_key(rows, &["count(*) AS n"]),
            ),
            &["aggregat", "sum"],
        ),
        (
            (
                "the key has another type",
                OutputMode::Update,
                |rows| by_key(rows, &["count(*) AS n"]),
                |rows| by_key(rows.select(vec![col("ts"), col("v").alias("k")])?, &["count(*) AS n"]),
            ),
            &["aggregat", "key", "k"],
        ),
        (
            (
                "a key is added",
                OutputMode::Update,
                |rows| by_key(rows, &["count(*) AS n"]),
                |rows| grouped(rows, vec![col("k"), col("v")], &["count(*) AS n"]),
            ),
            &["aggregat", "key", "v"],
        ),
        (
            (
                "operators change places",
                OutputMode::Append,
                |rows| tens(rows.with_watermark("ts", "5 seconds")?.drop_duplicates(&["ts", "k"])?),
                |rows| tens(rows.with_watermark("ts", "5 seconds")?)?.drop_duplicates(&["ts", "k"]),
            ),
            &["aggregat", "deduplicat"],
        ),
        (
            (
                "an operator is left out",
                OutputMode::Append,
                |rows| tens(rows.with_watermark("ts", "5 seconds")?.drop_duplicates(&["ts", "k"])?),
                |rows| tens(rows.with_watermark("ts", "5 seconds")?),
            ),
            &["deduplicat"],
        ),
    ];
    for ((what, mode, before, after), named) in changes {
        let (store, source) = (memory_store(), keyed_source());
        put(&source, json!([at(10, "a", 1), at(20, "b", 2)]));
        run_on(&store, &source, mode, PARTITIONS, before).await.unwrap();
        put(&source, json!([at(21, "a", 3)]));
        let refused = run_on(&store, &source, mode, PARTITIONS, after).await.expect_err(what);
        println!("{what}: {refused}");
        assert_eq!(refused.kind(), ErrorKind::IncompatibleCheckpoint, "{what}: {refused}");
        assert!(refused.hint().is_some(), "{what}: no word of what can be done: {refused}");
        let told = refused.to_string().to_lowercase();
        named.iter().for_each(|name| assert!(told.contains(name), "{what}: `{name}` is not in: {refused}"));
        // Refused is not damaged: the first query goes on.
        run_on(&store, &source, mode, PARTITIONS, before).await.unwrap();
    }
}

/// What is around an operator may change, and so may the number of partitions: its state fits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_touch_the_state_may_change() {
    let (store, source) = (memory_store(), keyed_source());
    let answer = |rows: Value| {
        let columns = table::schema(&[("k", "string"), ("n", "long")]).unwrap();
        [table::rows(&columns, &rows).unwrap()]
    };
    put(&source, json!([at(10, "a", 1), at(11, "b", 2), at(12, "a", 3)]));
    let first = run_on(&store, &source, OutputMode::Update, 2, |rows| by_key(rows, &["count(*) AS n"])).await.unwrap();
    assert_same_rows(&answer(json!([["a", 2], ["b", 1]])), &first);

    put(&source, json!([at(13, "a", -1), at(14, "a", 5), at(15, "c", 6)]));
    let filtered = run_on(&store, &source, OutputMode::Update, 5, |rows| {
        by_key(rows.filter(col("v").gt(lit(0)))?, &["count(*) AS n"])
    })
    .await
    .unwrap();
    assert_same_rows(&answer(json!([["a", 3], ["c", 1]])), &filtered);

    put(&source, json!([at(16, "c", 7), at(17, "b", 8)]));
    let projected = run_on(&store, &source, OutputMode::Update, 1, |rows| {
        let counts = by_key(rows.with_watermark("ts", "5 seconds")?, &["count(*) AS n"])?;
        Ok(counts.filter(col("n").gt(lit(1)))?.select(vec![col("k"), (col("n") * lit(10)).alias("n")])?)
    })
    .await
    .unwrap();
    assert_same_rows(&answer(json!([["b", 20], ["c", 20]])), &projected);

    put(&source, json!([at(18, "b", 9)]));
    let back = run_on(&store, &source, OutputMode::Update, 3, |rows| by_key(rows, &["count(*) AS n"])).await.unwrap();
    assert_same_rows(&answer(json!([["b", 3]])), &back);
}

/// What a query that has started says of state that nothing bounds; the warnings at its start are made of the same.
async fn said_at_start(
    columns: &[&[(&str, &str)]],
    mode: OutputMode,
    query: fn(&[DataFrame]) -> Result<DataFrame>,
) -> String {
    let ctx = SessionContext::new();
    let mut streams = vec![];
    for columns in columns {
        streams.push(ctx.read_stream(MemorySource::new(table::schema(columns).unwrap())).unwrap());
    }
    let writer = query(&streams).unwrap().write_stream(DiscardSink::new()).output_mode(mode);
    let query = writer.checkpoint_store(memory_store()).clock(stopped_clock()).start().await.unwrap();
    let explained = query.explain();
    query.stop().await.unwrap();
    explained.lines().filter(|line| line.starts_with("Unbounded: ")).collect::<Vec<_>>().join("\n")
}

/// State that nothing bounds is named when the query starts; state that a watermark bounds is not.
#[tokio::test]
async fn unbounded_state_is_named_at_the_start() {
    const LEFT: [(&str, &str); 2] = [("lts", "timestamp"), ("lk", "string")];
    const RIGHT: [(&str, &str); 2] = [("rts", "timestamp"), ("rk", "string")];

    let said =
        said_at_start(&[&EVENTS], OutputMode::Update, |inputs| by_key(inputs[0].clone(), &["count(*) AS n"])).await;
    assert!(said.contains("aggregation by k") && said.contains("never evicted"), "{said}");
    let said = said_at_start(&[&EVENTS], OutputMode::Append, |inputs| inputs[0].clone().drop_duplicates(&["k"])).await;
    assert!(said.contains("duplicates") && said.contains("(k)") && said.contains("never evicted"), "{said}");
    let said = said_at_start(&[&LEFT, &RIGHT], OutputMode::Append, |inputs| {
        Ok(inputs[0].clone().join(inputs[1].clone(), JoinType::Inner, &["lk"], &["rk"], None)?)
    })
    .await;
    assert!(said.contains("left rows of the join") && said.contains("right rows of the join"), "{said}");

    let said = said_at_start(&[&EVENTS], OutputMode::Update, |inputs| {
        tens(inputs[0].clone().with_watermark("ts", "5 seconds")?)
    })
    .await;
    assert_eq!(said, "", "windows are bounded by the watermark");
    let said = said_at_start(&[&EVENTS], OutputMode::Append, |inputs| {
        inputs[0].clone().with_watermark("ts", "5 seconds")?.drop_duplicates(&["ts", "k"])
    })
    .await;
    assert_eq!(said, "", "so are keys with an event time");
    let said = said_at_start(&[&LEFT, &RIGHT], OutputMode::Append, |inputs| {
        let left = inputs[0].clone().with_watermark("lts", "5 seconds")?;
        let right = inputs[1].clone().with_watermark("rts", "5 seconds")?;
        Ok(left.join(right, JoinType::Inner, &["lk", "lts"], &["rk", "rts"], None)?)
    })
    .await;
    assert_eq!(said, "", "and a join on event time");
}
