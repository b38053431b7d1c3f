//! Records that a source cannot read: each goes to the second sink, in the same commit as the rows of its batch.

use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int64Type, SchemaRef};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion::prelude::*;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tidewater::batch::BatchContext;
use tidewater::checkpoint::{MetadataStore, memory_store};
use tidewater::prelude::*;
use tidewater::sink::{DeadLetter, DeadLetters};
use tidewater::source::{
    LatestOffset, MicroBatchStream, Offset, OffsetRange, ReadLimit, ScanRequest, Source, SourceContext,
};
use tidewater::testing::{
    FaultInjector, FaultySink, FaultySource, FaultyStore, assert_same_rows, crash_at_every_call, table,
};

use crate::job::{PARTITIONS, add, finish, same};

/// A value that cannot be read.
const BAD: &str = "oops";

fn schema() -> SchemaRef {
    table::schema(&[("n", "long"), ("value", "string")]).unwrap()
}

/// The rows that cannot be read, or all others.
fn those(rows: &RecordBatch, bad: bool) -> RecordBatch {
    let values = rows.column(1).as_string::<i32>();
    let wanted: Vec<bool> = values.iter().map(|value| (value == Some(BAD)) == bad).collect();
    filter_record_batch(rows, &BooleanArray::from(wanted)).unwrap()
}

/// What is told of rows that cannot be read.
fn letters_of(rows: &RecordBatch, partition: usize) -> RecordBatch {
    let mut letters = DeadLetters::new("picky");
    let headers = [("trace".to_owned(), Some(b"7".to_vec()))];
    for (n, value) in rows.column(0).as_primitive::<Int64Type>().iter().zip(rows.column(1).as_string::<i32>()) {
        let letter = DeadLetter::new("`oops` is no value").partition(i32::try_from(partition).ok());
        letters.push(letter.offset(n).value(value.map(str::as_bytes)).headers(&headers));
    }
    letters.finish().unwrap()
}

/// A memory source that cannot read everything.
#[derive(Debug, Clone)]
struct Picky {
    inner: MemorySource,
    announces: bool,
}

#[async_trait]
impl Source for Picky {
    fn description(&self) -> String {
        "picky".to_owned()
    }

    fn schema(&self) -> SchemaRef {
        self.inner.schema()
    }

    fn emits_dead_letters(&self) -> bool {
        self.announces
    }

    async fn open(&self, context: SourceContext) -> Result<Box<dyn MicroBatchStream>> {
        Ok(Box::new(PickyReader { inner: self.inner.open(context).await?, told: None }))
    }
}

#[derive(Debug)]
struct PickyReader {
    inner: Box<dyn MicroBatchStream>,
    /// The place of the plan that bound this range first tells of what is bad in it.
    told: Option<OffsetRange>,
}

#[async_trait]
impl MicroBatchStream for PickyReader {
    async fn prepare_for_available_now(&mut self) -> Result<()> {
        self.inner.prepare_for_available_now().await
    }

    async fn latest_offset(&mut self, after: Option<&Offset>, limit: ReadLimit) -> Result<LatestOffset> {
        self.inner.latest_offset(after, limit).await
    }

    async fn bind(&mut self, range: &OffsetRange, scan: &ScanRequest) -> Result<Arc<dyn ExecutionPlan>> {
        let tells = self.told.as_ref() != Some(range);
        self.told = Some(range.clone());
        let whole = ScanRequest::new(vec![0, 1], schema());
        let rows = self.inner.bind(range, &whole).await?;
        let parts = (0..rows.output_partitioning().partition_count()).map(|partition| {
            let part = Part { rows: Arc::clone(&rows), partition, schema: schema(), tells };
            Arc::new(part) as Arc<dyn PartitionStream>
        });
        Ok(Arc::new(StreamingTableExec::try_new(schema(), parts.collect(), Some(&scan.projection), [], false, None)?))
    }

    async fn commit(&mut self, end: &Offset) -> Result<()> {
        self.inner.commit(end).await
    }
}

/// One partition of what the memory source bound.
#[derive(Debug, Clone)]
struct Part {
    rows: Arc<dyn ExecutionPlan>,
    partition: usize,
    schema: SchemaRef,
    tells: bool,
}

impl Part {
    fn sift(&self, rows: &RecordBatch, batch: &BatchContext) -> DataFusionResult<RecordBatch> {
        if self.tells {
            let letters = letters_of(&those(rows, true), self.partition);
            if letters.num_rows() > 0 {
                batch.dead_letter(letters)?;
            }
        }
        Ok(those(rows, false))
    }
}

impl PartitionStream for Part {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let part = self.clone();
        let rows = stream::once(async move {
            let batch = BatchContext::of(&context)?;
            let rows = part.rows.execute(part.partition, context)?;
            Ok::<_, DataFusionError>(rows.map(move |rows| part.sift(&rows?, &batch)))
        });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows.try_flatten()))
    }
}

/// How many dead letters each batch of a world has, and how many other rows.
const COUNTS: [(usize, usize); 5] = [(3, 5), (2, 6), (0, 8), (8, 0), (0, 0)];

/// Five batches: two with bad rows and others, one with none that is bad, one with no other, one with no row at all.
struct World {
    source: Picky,
    adds: Vec<RecordBatch>,
    sink: MemorySink,
    letters: MemorySink,
    checkpoint: Arc<dyn MetadataStore>,
}

impl World {
    fn new() -> Self {
        let inner = MemorySource::new(schema()).partitions(PARTITIONS).adds_per_batch(1);
        let adds: Vec<RecordBatch> = COUNTS
            .iter()
            .enumerate()
            .map(|(batch, (bad, good))| {
                let value = |n: usize| if n.is_multiple_of(3) { BAD.to_owned() } else { format!("value {n}") };
                let row = |n: usize| match (bad, good) {
                    (0, _) => json!([100 * batch + n, format!("value {n}")]),
                    (_, 0) => json!([100 * batch + n, BAD]),
                    // Of eight rows three are multiples of 3, or two, if the first one is not.
                    _ => json!([100 * batch + n, value(n + batch)]),
                };
                let rows: Vec<Value> = (0..bad + good).map(row).collect();
                table::rows(&schema(), &json!(rows)).unwrap()
            })
            .collect();
        adds.iter().for_each(|rows| add(&inner, rows));
        World {
            source: Picky { inner, announces: true },
            adds,
            sink: MemorySink::new(),
            letters: MemorySink::new(),
            checkpoint: memory_store(),
        }
    }

    async fn stream(&self, ctx: &SessionContext) -> DataFrame {
        ctx.read_stream(self.source.clone()).unwrap()
    }

    /// Passes on what can be read, every boundary watched.
    async fn run(&self, falls: &FaultInjector) -> Result<StreamingQuery> {
        let source = FaultySource::new(self.source.clone(), falls);
        let writer = SessionContext::new()
            .read_stream(source)?
            .write_stream(FaultySink::new(self.sink.clone(), falls))
            .dead_letters(FaultySink::new(self.letters.clone(), falls))
            .checkpoint_store(Arc::new(FaultyStore::new(Arc::clone(&self.checkpoint), falls)))
            .min_batches_to_retain(2);
        to_the_end(writer).await
    }

    /// What the source tells of this batch.
    fn expected_letters(&self, batch: usize) -> Vec<RecordBatch> {
        let dealt = table::deal(&self.adds[batch], PARTITIONS).unwrap();
        dealt.iter().enumerate().map(|(partition, rows)| letters_of(&those(rows, true), partition)).collect()
    }

    fn all_expected_letters(&self) -> Vec<RecordBatch> {
        (0..self.adds.len()).flat_map(|batch| self.expected_letters(batch)).collect()
    }

    fn all_expected_rows(&self) -> Vec<RecordBatch> {
        self.adds.iter().map(|rows| those(rows, false)).collect()
    }

    /// Both sinks have every batch, and of each batch what belongs there.
    fn check(&self) -> Result<(), String> {
        for (number, rows) in self.adds.iter().enumerate() {
            let batch = BatchId(number as u64);
            let written = self.sink.batch(batch).ok_or_else(|| format!("the output has no batch {batch}"))?;
            same(&[those(rows, false)], &written).map_err(|e| format!("batch {batch}: {e}"))?;
            let letters = self.letters.batch(batch).ok_or_else(|| format!("no batch {batch} of dead letters"))?;
            same(&self.expected_letters(number), &letters)
                .map_err(|e| format!("dead letters of batch {batch}: {e}"))?;
        }
        let last = Some(BatchId(self.adds.len() as u64 - 1));
        if (self.sink.last_batch(), self.letters.last_batch()) == (last, last) {
            Ok(())
        } else {
            Err("there are more batches than were added".to_owned())
        }
    }
}

async fn to_the_end(writer: StreamWriter) -> Result<StreamingQuery> {
    finish(writer.partitions(PARTITIONS).durable(false).trigger(Trigger::AvailableNow)).await
}

fn dead_letter_rows(query: &StreamingQuery) -> Vec<Option<String>> {
    query.recent_progress().iter().map(|batch| batch.sink.metrics.get("deadLetterRows").cloned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_record_is_in_one_of_both_sinks() {
    let world = World::new();
    let query = world.run(&FaultInjector::disarmed()).await.unwrap();
    world.check().unwrap();
    assert_eq!(query.guarantee(), Guarantee::ExactlyOnce);
    let expected: Vec<Option<String>> = COUNTS.iter().map(|(bad, _)| Some(bad.to_string())).collect();
    assert_eq!(dead_letter_rows(&query), expected);
    let written: Vec<u64> = query.recent_progress().iter().map(|batch| batch.sink.num_output_rows).collect();
    assert_eq!(written, COUNTS.map(|(_, good)| good as u64));
}

/// Wherever the process dies, each of both sinks has every batch once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fall_leaves_both_sinks_whole() {
    let outcome = crash_at_every_call(
        World::new,
        async |world: &World, falls: &FaultInjector| world.run(falls).await.map(|_| ()),
        async |world: &World| world.check(),
    )
    .await;
    match outcome {
        Ok(falls) => {
            println!("every fall: memory to memory with dead letters: {falls} falls tried, nothing lost or doubled");
            assert!(falls > 100, "only {falls} moments: the wrappers are not in place");
        }
        Err(e) => panic!("{e}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_without_a_sink_for_them_is_refused() {
    let world = World::new();
    let source = FaultySource::new(world.source.clone(), &FaultInjector::disarmed());
    let stream = SessionContext::new().read_stream(source).unwrap();
    let writer = stream.write_stream(world.sink.clone()).checkpoint_store(Arc::clone(&world.checkpoint));
    let refused = writer.start().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidQuery, "{refused}");
    assert!(refused.message().contains("`picky`") && refused.message().contains("dead letters"), "{refused}");
    let hint = refused.hint().unwrap();
    assert!(hint.contains("`.dead_letters(sink)`") && hint.contains("treatment of bad records"), "{refused}");
    assert!(world.checkpoint.list("").await.unwrap().is_empty(), "nothing was written");
}

/// A mistake in a source is found when it happens, not when somebody misses the record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_that_were_not_announced_fail_the_batch() {
    let world = World::new();
    let source = Picky { announces: false, ..world.source.clone() };
    let stream = SessionContext::new().read_stream(source).unwrap();
    let failed = to_the_end(stream.write_stream(world.sink.clone())).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Internal, "{failed}");
    assert!(failed.to_string().contains("emits_dead_letters"), "{failed}");
    assert_eq!(world.sink.last_batch(), None);
}

/// A source that has no dead letters leaves their sink empty. Its batches are counted there all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_for_them_may_stay_empty() {
    let world = World::new();
    let stream = SessionContext::new().read_stream(world.source.inner.clone()).unwrap();
    let query = to_the_end(stream.clone().write_stream(MemorySink::new())).await.unwrap();
    assert!(dead_letter_rows(&query).iter().all(Option::is_none));

    let writer = stream.write_stream(world.sink.clone()).dead_letters(world.letters.clone());
    let query = to_the_end(writer).await.unwrap();
    assert!(dead_letter_rows(&query).iter().all(|rows| rows.as_deref() == Some("0")));
    assert_same_rows(&world.adds, &world.sink.batches());
    assert!(world.letters.batches().is_empty());
    assert_eq!(world.letters.last_batch(), world.sink.last_batch());
}

/// One source at two places of a plan is bound twice, and tells once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_read_at_two_places_tells_once() {
    let world = World::new();
    let stream = world.stream(&SessionContext::new()).await;
    let twice = stream.clone().union(stream).unwrap();
    to_the_end(twice.write_stream(world.sink.clone()).dead_letters(world.letters.clone())).await.unwrap();
    let mut expected = world.all_expected_rows();
    expected.extend(world.all_expected_rows());
    assert_same_rows(&expected, &world.sink.batches());
    assert_same_rows(&world.all_expected_letters(), &world.letters.batches());
}

/// Whatever the output mode is, dead letters are added to those before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_are_appended_in_complete_mode() {
    let world = World::new();
    let stream = world.stream(&SessionContext::new()).await;
    let counted = stream.aggregate(vec![], vec![count(lit(1)).alias("n")]).unwrap();
    let writer = counted.write_stream(world.sink.clone()).output_mode(OutputMode::Complete);
    to_the_end(writer.dead_letters(world.letters.clone())).await.unwrap();
    let good: usize = COUNTS.iter().map(|(_, good)| good).sum();
    let expected = table::rows(&table::schema(&[("n", "long")]).unwrap(), &json!([[good]])).unwrap();
    assert_same_rows(&[expected], &world.sink.batches());
    assert_same_rows(&world.all_expected_letters(), &world.letters.batches());
}

/// A join whose table is empty needs no rows of the stream, and may leave it unread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_come_from_below_a_join_with_an_empty_table() {
    let world = World::new();
    let ctx = SessionContext::new();
    let empty = RecordBatch::new_empty(table::schema(&[("m", "long")]).unwrap());
    let joined = world.stream(&ctx).await;
    let joined = joined.join(ctx.read_batch(empty).unwrap(), JoinType::Inner, &["n"], &["m"], None).unwrap();
    to_the_end(joined.write_stream(world.sink.clone()).dead_letters(world.letters.clone())).await.unwrap();
    assert_same_rows(&[], &world.sink.batches());
    assert_same_rows(&world.all_expected_letters(), &world.letters.batches());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guarantee_is_the_weaker_one() {
    let world = World::new();
    let stream = world.stream(&SessionContext::new()).await;
    let writer = stream.write_stream(world.sink.clone());
    let query = to_the_end(writer.dead_letters(ForeachBatchSink::new(|_, _| async { Ok(()) }))).await.unwrap();
    assert_eq!(query.guarantee(), Guarantee::AtLeastOnce);
}

/// One sink in both places would take the second commit for a repetition, and its rows would be lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_memory_sink_cannot_be_both() {
    let world = World::new();
    for _ in 0..2 {
        let stream = world.stream(&SessionContext::new()).await;
        let writer = stream.write_stream(world.sink.clone()).dead_letters(world.sink.clone());
        let failed = to_the_end(writer.checkpoint_store(Arc::clone(&world.checkpoint))).await.unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::InvalidQuery, "{failed}");
        assert_eq!(failed.batch(), Some(BatchId(0)), "{failed}");
    }
}
