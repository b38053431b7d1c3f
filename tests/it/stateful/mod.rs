//! Queries that keep state, with their input, and the world such a query runs in: for the tests that do to it what must
//! not change its answer. [`jobs`] has one per stateful operator.

pub(crate) mod arrivals;

pub(crate) mod jobs;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Float64Array};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Float64Type, SchemaRef, TimeUnit, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::*;
use tidewater::checkpoint::{MetadataStore, memory_store};
use tidewater::prelude::*;
use tidewater::sink::Sink;
use tidewater::testing::oracle::row_lines;
use tidewater::testing::{
    FaultInjector, FaultySink, FaultySource, FaultyStore, batch_table, limited_memory, serialised_batches, small_state,
    table,
};

use self::arrivals::AFTER_ALL_US;
use crate::job::{finish, same};

/// A query as a function of its session and of one stream, or one table, per input.
pub(crate) type Query = Box<dyn Fn(&SessionContext, &[DataFrame]) -> Result<DataFrame> + Send + Sync>;

/// All rows of one source, as they come: each record batch is one `add`.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    pub(crate) schema: SchemaRef,
    pub(crate) adds: Vec<RecordBatch>,
}

/// How the answer is read from what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Every row belongs to it.
    Rows,
    /// Of the rows that agree in so many first columns, the one written last does.
    LastByKey(usize),
    /// So many rows, whichever.
    AnyRows(usize),
}

/// A query with its input.
pub(crate) struct Job {
    pub(crate) name: String,
    pub(crate) mode: OutputMode,
    pub(crate) reading: Reading,
    pub(crate) inputs: Vec<Input>,
    pub(crate) query: Query,
    /// Whether a batch over all rows gives the same answer: not if the query forgets.
    pub(crate) equals_batch: bool,
}

impl Job {
    /// How often rows are added, to every source.
    pub(crate) fn adds(&self) -> usize {
        self.inputs.iter().map(|input| input.adds.len()).max().unwrap_or(0)
    }

    /// What the query answers over all rows at once.
    pub(crate) async fn batch_answer(&self) -> Result<Vec<RecordBatch>> {
        settled(&self.batch_frame()?.collect().await?)
    }

    fn batch_frame(&self) -> Result<DataFrame> {
        let ctx = SessionContext::new();
        let table = |input: &Input| batch_table(&ctx, Arc::clone(&input.schema), input.adds.clone());
        let tables: Vec<DataFrame> = self.inputs.iter().map(table).collect::<Result<_>>()?;
        (self.query)(&ctx, &tables)
    }

    /// The columns of the answer.
    pub(crate) fn columns(&self) -> SchemaRef {
        Arc::new(self.batch_frame().unwrap().schema().as_arrow().clone())
    }

    /// What every run must give: the answer of one that nothing disturbs, which is the batch answer where there is one.
    pub(crate) async fn expected(self: &Arc<Self>) -> Vec<RecordBatch> {
        let world = World::with_all_rows(self);
        world.run(2, &FaultInjector::disarmed()).await.unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let expected = if self.equals_batch { self.batch_answer().await.unwrap() } else { world.answer().unwrap() };
        let rows: usize = expected.iter().map(RecordBatch::num_rows).sum();
        assert!(rows > 3, "{}: an answer of {rows} rows shows nothing", self.name);
        if let Err(difference) = world.check(&expected) {
            panic!("{}: the undisturbed run differs from the batch: {difference}", self.name);
        }
        expected
    }
}

/// What a query reads, writes and keeps: all that outlives a run.
pub(crate) struct World {
    pub(crate) job: Arc<Job>,
    pub(crate) sources: Vec<MemorySource>,
    pub(crate) sink: MemorySink,
    pub(crate) checkpoint: Arc<dyn MetadataStore>,
    session: SessionConfig,
    /// Its memory is little, and what a run took it gives back, whichever way it ends.
    runtime: Arc<RuntimeEnv>,
}

/// What the rows of a test and their state fit into many times. Each sort of DataFusion asks for 10 MB before it begins.
const MEMORY_BYTES: usize = 64 << 20;

impl World {
    /// One without rows yet.
    pub(crate) fn new(job: &Arc<Job>) -> Self {
        let source = |input: &Input| MemorySource::new(Arc::clone(&input.schema)).partitions(2).adds_per_batch(1);
        World {
            job: Arc::clone(job),
            sources: job.inputs.iter().map(source).collect(),
            sink: MemorySink::new(),
            checkpoint: memory_store(),
            session: serialised_batches(SessionConfig::new()),
            runtime: limited_memory(MEMORY_BYTES).unwrap(),
        }
    }

    /// One where all has arrived.
    pub(crate) fn with_all_rows(job: &Arc<Job>) -> Self {
        let world = World::new(job);
        world.feed(0..job.adds());
        world
    }

    /// The same, its state in many small pieces.
    pub(crate) fn with_small_state(self) -> Self {
        World { session: small_state(self.session, 5, 300), ..self }
    }

    /// Lets these adds arrive, in every source.
    pub(crate) fn feed(&self, adds: Range<usize>) {
        for (input, source) in self.job.inputs.iter().zip(&self.sources) {
            let there = input.adds.len();
            for rows in &input.adds[adds.start.min(there)..adds.end.min(there)] {
                source.add(table::deal(rows, 2).unwrap()).unwrap();
            }
        }
    }

    /// The query over this world's sources, into `sink`, which takes all there is and ends.
    pub(crate) async fn writer(
        &self,
        sink: impl Sink + 'static,
        partitions: usize,
        falls: &FaultInjector,
    ) -> Result<StreamWriter> {
        let ctx = SessionContext::new_with_config_rt(self.session.clone(), Arc::clone(&self.runtime));
        let mut streams = vec![];
        for source in &self.sources {
            streams.push(ctx.read_stream(FaultySource::new(source.clone(), falls))?);
        }
        Ok((self.job.query)(&ctx, &streams)?
            .write_stream(FaultySink::new(sink, falls))
            .output_mode(self.job.mode)
            .checkpoint_store(Arc::new(FaultyStore::new(Arc::clone(&self.checkpoint), falls)))
            .partitions(partitions)
            .min_batches_to_retain(2)
            .trigger(Trigger::AvailableNow))
    }

    /// Runs the query until it has taken all there is.
    pub(crate) async fn run(&self, partitions: usize, falls: &FaultInjector) -> Result<()> {
        finish(self.writer(self.sink.clone(), partitions, falls).await?).await.map(|_| ())
    }

    /// The same where no other run is at work: whichever way it ends, it gives back the memory that it took.
    pub(crate) async fn run_alone(&self, partitions: usize, falls: &FaultInjector) -> Result<()> {
        let ended = self.run(partitions, falls).await;
        assert_eq!(self.runtime.memory_pool.reserved(), 0, "{} kept memory: {ended:?}", self.job.name);
        ended
    }

    /// What came out so far.
    pub(crate) fn answer(&self) -> Result<Vec<RecordBatch>> {
        let written = self.sink.batches();
        match self.job.reading {
            Reading::Rows | Reading::AnyRows(_) => settled(&written),
            Reading::LastByKey(columns) => settled(&last_by_key(&written, columns)?),
        }
    }

    /// Whether that is what was expected.
    pub(crate) fn check(&self, expected: &[RecordBatch]) -> Result<(), String> {
        let answer = self.answer().map_err(|e| e.to_string())?;
        match self.job.reading {
            Reading::AnyRows(count) => some_of(expected, &answer, count),
            Reading::Rows | Reading::LastByKey(_) => same(expected, &answer),
        }
    }
}

/// Without what the closing rows left, and with doubles to eight digits: sums of floating-point numbers depend on their
/// order in the last ones.
pub(crate) fn settled(batches: &[RecordBatch]) -> Result<Vec<RecordBatch>> {
    batches.iter().map(|rows| rounded(&without_closing_rows(rows)?)).collect()
}

/// A row belongs to a closing row if it tells a time after all others.
fn without_closing_rows(rows: &RecordBatch) -> Result<RecordBatch> {
    let mut keep = vec![true; rows.num_rows()];
    for column in rows.columns() {
        if matches!(column.data_type(), DataType::Timestamp(..)) {
            let times = cast(column, &DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())))?;
            for (keep, time) in keep.iter_mut().zip(times.as_primitive::<TimestampMicrosecondType>()) {
                *keep &= time.is_none_or(|time| time < AFTER_ALL_US);
            }
        }
    }
    Ok(filter_record_batch(rows, &BooleanArray::from(keep))?)
}

fn rounded(rows: &RecordBatch) -> Result<RecordBatch> {
    let round = |column: &ArrayRef| match column.data_type() {
        DataType::Float64 => {
            let short = |v: f64| format!("{v:.8e}").parse().unwrap_or(v);
            let doubles: Float64Array = column.as_primitive::<Float64Type>().unary(short);
            Arc::new(doubles) as ArrayRef
        }
        _ => Arc::clone(column),
    };
    Ok(RecordBatch::try_new(rows.schema(), rows.columns().iter().map(round).collect())?)
}

/// The last row written of each key, the first `columns` being the key.
fn last_by_key(batches: &[RecordBatch], columns: usize) -> Result<Vec<RecordBatch>> {
    let key: Vec<usize> = (0..columns).collect();
    let mut last = BTreeMap::new();
    for rows in batches {
        for row in 0..rows.num_rows() {
            let row = rows.slice(row, 1);
            last.insert(row_lines(&[row.project(&key)?])?, row);
        }
    }
    Ok(last.into_values().collect())
}

/// Whether `found` are `count` rows of `all`.
fn some_of(all: &[RecordBatch], found: &[RecordBatch], count: usize) -> Result<(), String> {
    let said = |e: Error| e.to_string();
    let mut left: BTreeMap<String, usize> = BTreeMap::new();
    for line in row_lines(all).map_err(said)? {
        *left.entry(line).or_default() += 1;
    }
    let found = row_lines(found).map_err(said)?;
    if found.len() != count {
        return Err(format!("expected {count} rows, found {}", found.len()));
    }
    for line in found {
        match left.get_mut(&line) {
            Some(times) if *times > 0 => *times -= 1,
            _ => return Err(format!("surplus: {line}")),
        }
    }
    Ok(())
}
