//! Two drivers of one query write to one topic: the one that was overtaken is fenced, and every row is there once.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use datafusion::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use tidewater::prelude::*;
use tidewater::sink::Sink;
use tidewater::testing::{assert_same_rows, table};
use tidewater_connectors::kafka::KafkaSink;
use tidewater_workspace::kafka::{Broker, NewRecord};
use tokio::sync::Notify;

use super::sinks::{Moment, Watched};
use super::steps::{all_of, into};
use super::{TOPIC_PARTITIONS, broker, new_topic, rows_of, settled};
use crate::job::{PARTITIONS, finish, same, session, to_the_end};

/// Records that are added together.
const RECORDS: usize = 27;

/// A third of them, and as many of each partition.
const PER_BATCH: usize = 9;

/// What two drivers share.
struct Shared {
    broker: &'static Broker,
    input: String,
    out: String,
    dir: TempDir,
}

impl Shared {
    /// With three batches to read.
    fn new(broker: &'static Broker) -> Self {
        let (input, out) = (new_topic(broker, "fencing-in"), new_topic(broker, "fencing-out"));
        let shared = Shared { broker, input, out, dir: tempfile::tempdir().unwrap() };
        shared.add(0);
        shared
    }

    fn values(round: usize) -> impl Iterator<Item = String> {
        (round * RECORDS..(round + 1) * RECORDS).map(|number| format!("record {number}"))
    }

    /// Adds as many records again, dealt over the partitions.
    fn add(&self, round: usize) {
        let records = Shared::values(round).zip((0..TOPIC_PARTITIONS).cycle()).map(|(value, partition)| NewRecord {
            partition: Some(partition),
            key: Some(format!("key {partition}").into_bytes()),
            value: Some(value.into_bytes()),
            ..NewRecord::default()
        });
        self.broker.produce(&self.input, records);
    }

    /// What a query of this answers over the records of so many rounds.
    fn answer(&self, rounds: usize) -> RecordBatch {
        let keys = (0..TOPIC_PARTITIONS).map(|partition| format!("key {partition}")).cycle();
        let rows = (0..rounds).flat_map(Shared::values).zip(keys);
        let rows: Value = rows.map(|(value, key)| json!([key, format!("{value}, copied")])).collect();
        table::rows(&table::schema(&[("key", "string"), ("value", "string")]).unwrap(), &rows).unwrap()
    }

    fn found(&self) -> RecordBatch {
        rows_of(&settled(self.broker, &self.out))
    }

    fn sink(&self) -> KafkaSink {
        into(self.broker, &self.out)
    }

    fn checkpoint(&self) -> PathBuf {
        self.dir.path().join("checkpoint")
    }

    /// A driver with a session of its own, which takes what is there and ends. Each partition has a task and a writer.
    async fn driver(&self, sink: impl Sink + 'static) -> Result<StreamWriter> {
        let source = all_of(self.broker, &self.input).min_partitions(PARTITIONS);
        let source = source.max_offsets_per_trigger(PER_BATCH as u64);
        let records = session().read_stream(source)?;
        let text = |name: &str| cast(col(name), DataType::Utf8);
        let copied = records
            .select(vec![text("key").alias("key"), concat(vec![text("value"), lit(", copied")]).alias("value")])?;
        Ok(to_the_end(copied, sink, &self.checkpoint()))
    }
}

/// Where in batch 1 a driver falls asleep.
#[derive(Debug, Clone, Copy)]
enum Asleep {
    /// The batch is logged, and the sink knows nothing of it.
    Logged,
    /// The sink has said that the batch is to be written.
    Begun,
    /// The rows are on their way to the broker, or there, in a transaction that is open.
    Filled,
}

impl Asleep {
    fn is_at(self, moment: Moment) -> bool {
        const BATCH: BatchId = BatchId(1);
        match self {
            Asleep::Logged => moment == Moment::Begin(BATCH),
            Asleep::Begun => matches!(moment, Moment::Begun(BATCH, _)),
            Asleep::Filled => moment == Moment::Commit(BATCH),
        }
    }
}

/// A driver that falls asleep, with what tells that it does and what wakes it.
struct Sleeper {
    query: StreamingQuery,
    wake: Arc<Notify>,
}

impl Sleeper {
    /// Starts it, and waits until it is asleep.
    async fn start(shared: &Shared, at: impl Fn(Moment) -> bool + Send + Sync + 'static) -> Self {
        let (asleep, wake) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let sink = {
            let (asleep, wake) = (Arc::clone(&asleep), Arc::clone(&wake));
            Watched::new(shared.sink(), move |moment| {
                let (sleeps, asleep, wake) = (at(moment), Arc::clone(&asleep), Arc::clone(&wake));
                async move {
                    if sleeps {
                        asleep.notify_one();
                        wake.notified().await;
                    }
                    Ok(())
                }
            })
        };
        let query = shared.driver(sink).await.unwrap().start().await.unwrap();
        tokio::select! {
            () = asleep.notified() => {}
            ended = query.await_termination() => panic!("it did not fall asleep: {ended:?}"),
        }
        Sleeper { query, wake }
    }

    /// Wakes it up, and waits for its end.
    async fn wake(&self) -> Result<()> {
        self.wake.notify_one();
        self.query.await_termination().await
    }
}

/// One falls asleep in a batch; another takes over, finishes that batch and the next; then the first one wakes up.
async fn the_sleeper_is_fenced(asleep_in: Asleep) {
    let Some(broker) = broker() else { return };
    let shared = Shared::new(broker);
    let slept = Sleeper::start(&shared, move |moment| asleep_in.is_at(moment)).await;

    let quick = finish(shared.driver(shared.sink()).await.unwrap()).await.unwrap();
    assert_eq!((quick.id(), quick.last_progress().unwrap().batch_id), (slept.query.id(), BatchId(2)));
    assert_eq!(quick.recent_progress().len(), 2, "batch 1 again, and batch 2");
    assert_same_rows(&[shared.answer(1)], &[shared.found()]);

    let fenced = slept.wake().await.unwrap_err();
    println!("asleep {asleep_in:?}: {fenced}");
    assert_eq!(fenced.kind(), ErrorKind::Fenced, "{fenced}");
    assert_eq!(fenced.batch(), Some(BatchId(1)), "{fenced}");
    assert!(fenced.hint().is_some(), "{fenced}");
    assert_eq!(slept.query.last_progress().unwrap().batch_id, BatchId(0), "a fenced batch is not reported as done");
    assert_same_rows(&[shared.answer(1)], &[shared.found()]);

    // What the sleeper does as it ends must not be in the way of whoever comes next.
    shared.add(1);
    let next = finish(shared.driver(shared.sink()).await.unwrap()).await.unwrap();
    assert_eq!(next.recent_progress().first().unwrap().batch_id, BatchId(3));
    assert_same_rows(&[shared.answer(2)], &[shared.found()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asleep_before_it_begins() {
    the_sleeper_is_fenced(Asleep::Logged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asleep_before_it_produces() {
    the_sleeper_is_fenced(Asleep::Begun).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asleep_after_producing_and_before_the_commit() {
    the_sleeper_is_fenced(Asleep::Filled).await;
}

/// The other one is only beginning: it has not written a row when the sleeper wakes up, and the batch is its own already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn to_open_the_sink_is_to_take_over() {
    let Some(broker) = broker() else { return };
    let shared = Shared::new(broker);
    let slept = Sleeper::start(&shared, |moment| moment == Moment::Commit(BatchId(1))).await;
    let other = Sleeper::start(&shared, |moment| moment == Moment::Begin(BatchId(1))).await;

    let fenced = slept.wake().await.unwrap_err();
    println!("overtaken by one that has only opened its sink: {fenced}");
    assert_eq!(fenced.kind(), ErrorKind::Fenced, "{fenced}");
    assert_eq!(shared.found().num_rows(), PER_BATCH, "batch 0 and nothing else");

    other.wake().await.unwrap();
    assert_same_rows(&[shared.answer(1)], &[shared.found()]);
}

/// Both run at full speed: whatever happens, only fencing stops them, and every row is there once in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drivers_at_full_speed_double_nothing() {
    let Some(broker) = broker() else { return };
    let mut fenced = 0;
    for round in 0..8 {
        let shared = Shared::new(broker);
        let run = async || finish(shared.driver(shared.sink()).await?).await;
        let outcomes = tokio::join!(run(), run());
        for outcome in [outcomes.0, outcomes.1] {
            if let Err(e) = outcome {
                assert_eq!(e.kind(), ErrorKind::Fenced, "round {round}: {e}");
                fenced += 1;
            }
        }
        run().await.unwrap();
        same(&[shared.answer(1)], &[shared.found()]).unwrap_or_else(|e| panic!("round {round}: {e}"));
    }
    println!("two drivers at full speed, 8 times: {fenced} were fenced, nothing was doubled");
}
