//! What every exactly-once sink must do, whatever it writes to.
//!
//! Of a sink that has a factory of writers, every second partition is written by a writer of that.
//!
//! Whoever writes a sink ends its file with one test that calls [`run`]; when that passes, the sink is in. Each function
//! here is one promise of [`crate::sink`], and panics with its name when it is broken.

use std::sync::Arc;

use arrow::array::{Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::prelude::SessionContext;

use super::by_factory::open_by_factory;
use super::oracle::difference;
use crate::clock::ManualClock;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BatchId, PartitionId, QueryId, RunId};
use crate::output_mode::OutputMode;
use crate::sink::{BatchStatus, Guarantee, Receipt, Sink, SinkContext, SinkRole, StreamingWrite};

/// What the suite needs of the sink it examines.
#[async_trait]
pub trait SinkUnderTest: Send + Sync {
    /// The sink. All that this returns write to the same place.
    fn sink(&self) -> Arc<dyn Sink>;

    /// What a reader who honours the sink's rules sees now, with the columns of [`schema`].
    async fn visible_rows(&self) -> Result<Vec<RecordBatch>>;
}

/// Runs the whole suite; `new` makes a sink at an empty place.
///
/// # Panics
///
/// If the sink breaks a promise.
pub async fn run<S: SinkUnderTest>(new: impl Fn() -> S) {
    assert_eq!(new().sink().guarantee(), Guarantee::ExactlyOnce, "the suite is for sinks that take a batch once");
    batches_become_visible(&new()).await;
    nothing_shows_before_the_commit(&new()).await;
    a_commit_can_be_repeated(&new()).await;
    a_batch_is_taken_once_over_restarts(&new()).await;
    another_run_fences(&new()).await;
    a_batch_without_rows_counts(&new()).await;
    a_sink_that_is_ahead_refuses(&new()).await;
    another_query_is_no_earlier_run(&new()).await;
    two_queries_at_once(&new()).await;
}

/// The columns of the rows the suite writes: `id` (64-bit integer) and `name` (text, may be null).
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, true), Field::new("name", DataType::Utf8, true)]))
}

/// Rows `first`, `first + 1`, …; every third has no name.
fn rows(first: i64, count: i64) -> RecordBatch {
    let ids: Int64Array = (first..first + count).collect();
    let names: StringArray = (first..first + count).map(|id| (id % 3 != 2).then(|| format!("name {id}"))).collect();
    said("make rows", RecordBatch::try_new(schema(), vec![Arc::new(ids), Arc::new(names)]).map_err(Error::from))
}

#[track_caller]
fn said<T>(call: &str, result: Result<T>) -> T {
    result.unwrap_or_else(|e| panic!("{call} failed: {e}"))
}

/// A sink and the query that writes to it.
struct Examined<'a> {
    subject: &'a dyn SinkUnderTest,
    query_id: QueryId,
    ctx: SessionContext,
}

impl<'a> Examined<'a> {
    fn new(subject: &'a dyn SinkUnderTest) -> Self {
        Examined { subject, query_id: QueryId::random(), ctx: SessionContext::new() }
    }

    /// Begins another run of the same query, at batch `next`; `repeats` if an earlier run may have committed it here.
    async fn open(&self, next: u64, repeats: bool) -> Box<dyn StreamingWrite> {
        said("open", self.try_open(next, repeats).await)
    }

    async fn try_open(&self, next: u64, repeats: bool) -> Result<Box<dyn StreamingWrite>> {
        let context = SinkContext {
            role: SinkRole::Output,
            schema: schema(),
            output_mode: OutputMode::Append,
            query_id: self.query_id,
            run_id: RunId::random(),
            next_batch: BatchId(next),
            next_batch_may_be_committed: repeats,
            session: Arc::new(self.ctx.state()),
            clock: Arc::new(ManualClock::at(1_704_067_200_000)),
            durable: false,
        };
        open_by_factory(self.subject.sink().as_ref(), context).await
    }

    /// Writes a batch, a list of record batches per partition, up to its receipts.
    async fn write(&self, writer: &dyn StreamingWrite, batch: u64, partitions: &[&[RecordBatch]]) -> Vec<Receipt> {
        said("write", self.try_write(writer, batch, partitions).await)
    }

    async fn try_write(
        &self,
        writer: &dyn StreamingWrite,
        batch: u64,
        partitions: &[&[RecordBatch]],
    ) -> Result<Vec<Receipt>> {
        let mut receipts = vec![];
        for (partition, batches) in partitions.iter().enumerate() {
            let mut partition = writer.partition(BatchId(batch), PartitionId(partition))?;
            for rows in *batches {
                partition.write(rows.clone()).await?;
            }
            let receipt = partition.finish().await?;
            let written: usize = batches.iter().map(RecordBatch::num_rows).sum();
            assert_eq!(receipt.rows, written as u64, "the receipt counts other rows than were written");
            receipts.push(receipt);
        }
        Ok(receipts)
    }

    async fn begin(&self, writer: &dyn StreamingWrite, batch: u64) -> BatchStatus {
        said("begin", writer.begin(BatchId(batch)).await)
    }

    /// Begins, writes and commits a batch of one partition.
    async fn take(&self, writer: &dyn StreamingWrite, batch: u64, rows: &RecordBatch) {
        assert_eq!(self.begin(writer, batch).await, BatchStatus::New, "batch {batch} is new and must be open");
        let receipts = self.write(writer, batch, &[std::slice::from_ref(rows)]).await;
        said("commit", writer.commit(BatchId(batch), receipts).await);
    }

    async fn sees(&self, when: &str, expected: &[RecordBatch]) {
        let visible = said("visible_rows", self.subject.visible_rows().await);
        if let Some(difference) = said("compare", difference(expected, &visible)) {
            panic!("what readers see {when}: {difference}");
        }
    }
}

/// Rows of all partitions and of all batches are there, each once.
pub async fn batches_become_visible(subject: &dyn SinkUnderTest) {
    let examined = Examined::new(subject);
    let writer = examined.open(0, false).await;
    assert_eq!(examined.begin(&*writer, 0).await, BatchStatus::New);
    let receipts =
        examined.write(&*writer, 0, &[&[rows(0, 5), rows(5, 1)], &[rows(10, 3)], &[rows(20, 2), rows(22, 2)]]).await;
    said("commit", writer.commit(BatchId(0), receipts).await);
    let mut all = vec![rows(0, 6), rows(10, 3), rows(20, 4)];
    examined.sees("after batch 0", &all).await;
    examined.take(&*writer, 1, &rows(0, 2)).await;
    all.push(rows(0, 2));
    examined.sees("after batch 1, which repeats rows of batch 0", &all).await;
}

/// What is written, finished or abandoned stays invisible until its batch is committed.
pub async fn nothing_shows_before_the_commit(subject: &dyn SinkUnderTest) {
    let examined = Examined::new(subject);
    let writer = examined.open(0, false).await;
    examined.take(&*writer, 0, &rows(0, 3)).await;

    assert_eq!(examined.begin(&*writer, 1).await, BatchStatus::New);
    let mut abandoned = said("partition", writer.partition(BatchId(1), PartitionId(0)));
    said("write", abandoned.write(rows(100, 50)).await);
    examined.sees("while a partition is written", &[rows(0, 3)]).await;
    drop(abandoned);
    let finished = examined.write(&*writer, 1, &[&[rows(200, 5)]]).await;
    examined.sees("after a partition finished", &[rows(0, 3)]).await;
    drop(finished);
    drop(writer);

    let writer = examined.open(1, true).await;
    examined.sees("after the failed batch's run ended", &[rows(0, 3)]).await;
    examined.take(&*writer, 1, &rows(300, 2)).await;
    examined.sees("after the batch was repeated", &[rows(0, 3), rows(300, 2)]).await;
}

/// The same run commits a batch twice: the second time nothing happens.
pub async fn a_commit_can_be_repeated(subject: &dyn SinkUnderTest) {
    let examined = Examined::new(subject);
    let writer = examined.open(0, false).await;
    assert_eq!(examined.begin(&*writer, 0).await, BatchStatus::New);
    let first = examined.write(&*writer, 0, &[&[rows(0, 4)]]).await;
    let second = examined.write(&*writer, 0, &[&[rows(0, 4)]]).await;
    said("commit", writer.commit(BatchId(0), first).await);
    said("commit again", writer.commit(BatchId(0), second).await);
    examined.sees("after a repeated commit", &[rows(0, 4)]).await;
}

/// A later run finds the batch taken; should it write and commit it all the same, readers see no change.
pub async fn a_batch_is_taken_once_over_restarts(subject: &dyn SinkUnderTest) {
    let examined = Examined::new(subject);
    let writer = examined.open(0, false).await;
    examined.take(&*writer, 0, &rows(0, 4)).await;
    examined.take(&*writer, 1, &rows(10, 1)).await;
    drop(writer);

    let again = examined.open(1, true).await;
    assert_eq!(
        examined.begin(&*again, 1).await,
        BatchStatus::AlreadyCommitted,
        "batch 1 was committed by an earlier run"
    );
    let receipts = examined.write(&*again, 1, &[&[rows(10, 1)]]).await;
    match again.commit(BatchId(1), receipts).await {
        Ok(()) => {}
        Err(e) => assert_eq!(e.kind(), ErrorKind::Fenced, "{e}"),
    }
    examined.sees("after a second run repeated batch 1", &[rows(0, 4), rows(10, 1)]).await;
    drop(again);

    let third = examined.open(2, false).await;
    examined.take(&*third, 2, &rows(20, 2)).await;
    examined.sees("after a third run went on", &[rows(0, 4), rows(10, 1), rows(20, 2)]).await;
}

/// Two runs write the same batch at the same time: one commits, the other is fenced and changes nothing. Which one is up to
/// the sink: it may let the first to commit win, or fence a run as soon as another one opens it.
pub async fn another_run_fences(subject: &dyn SinkUnderTest) {
    let examined = Examined::new(subject);
    let runs = [examined.open(0, false).await, examined.open(0, false).await];
    let mut written = vec![];
    for run in &runs {
        let receipts = match run.begin(BatchId(0)).await {
            Ok(begin) => {
                assert_eq!(begin, BatchStatus::New, "neither run has committed batch 0");
                examined.try_write(run.as_ref(), 0, &[&[rows(0, 3)]]).await
            }
            Err(e) => Err(e),
        };
        written.push(receipts);
    }
    let mut committed = 0;
    for (run, receipts) in runs.iter().zip(written) {
        let outcome = match receipts {
            Ok(receipts) => run.commit(BatchId(0), receipts).await,
            Err(e) => Err(e),
        };
        match outcome {
            Ok(()) => committed += 1,
            Err(e) => assert_eq!(e.kind(), ErrorKind::Fenced, "{e}"),
        }
    }
    assert_eq!(committed, 1, "of two runs that write the same batch, one commits it and the other is fenced");
    examined.sees("after one of two runs was fenced", &[rows(0, 3)]).await;
}

/// A batch without rows shows nothing, and is taken all the same.
pub async fn a_batch_without_rows_counts(subject: &dyn SinkUnderTest) {
    let examined = Examined::new(subject);
    let writer = examined.open(0, false).await;
    assert_eq!(examined.begin(&*writer, 0).await, BatchStatus::New);
    said("commit", writer.commit(BatchId(0), vec![]).await);
    examined.sees("after an empty batch", &[]).await;
    let again = examined.open(0, true).await;
    assert_eq!(examined.begin(&*again, 0).await, BatchStatus::AlreadyCommitted, "an empty batch is taken too");
    examined.take(&*again, 1, &rows(0, 1)).await;
    examined.sees("after the batch that follows", &[rows(0, 1)]).await;
}

/// Batches that the query has not run were written by another one: to go on would be to lose rows as repetitions.
pub async fn a_sink_that_is_ahead_refuses(subject: &dyn SinkUnderTest) {
    let examined = Examined::new(subject);
    let writer = examined.open(0, false).await;
    examined.take(&*writer, 0, &rows(0, 2)).await;
    examined.take(&*writer, 1, &rows(10, 2)).await;
    drop(writer);
    for (next, repeats) in [(0, false), (0, true), (1, false)] {
        match examined.try_open(next, repeats).await {
            Ok(_) => panic!("the sink has batch 1, and opens for a query that goes on with batch {next}"),
            Err(e) => assert_eq!(e.kind(), ErrorKind::IncompatibleCheckpoint, "{e}"),
        }
    }
    examined.sees("after other queries were refused", &[rows(0, 2), rows(10, 2)]).await;
}

/// A second query writes to the same place, its first batch one that the first query has committed, or would be next. What
/// the sink has of the other is never taken for its own: either it is refused, or its rows are there beside the others.
pub async fn another_query_is_no_earlier_run(subject: &dyn SinkUnderTest) {
    let first = Examined::new(subject);
    let writer = first.open(0, false).await;
    first.take(&*writer, 0, &rows(0, 2)).await;
    let mut all = vec![rows(0, 2)];
    for (next, repeats) in [(0, true), (1, false), (1, true)] {
        let second = Examined::new(subject);
        second.is_refused_or_writes(second.try_open(next, repeats).await, next, &mut all).await;
    }
    first.take(&*writer, 1, &rows(10, 2)).await;
    all.push(rows(10, 2));
    first.sees("after the first query went on", &all).await;
}

/// Two queries open the empty place at the same time.
pub async fn two_queries_at_once(subject: &dyn SinkUnderTest) {
    let (first, second) = (Examined::new(subject), Examined::new(subject));
    let opened = [first.open(0, false).await, second.open(0, false).await];
    first.take(&*opened[0], 0, &rows(0, 2)).await;
    let mut all = vec![rows(0, 2)];
    let [writer, other] = opened;
    second.is_refused_or_writes(Ok(other), 0, &mut all).await;
    first.take(&*writer, 1, &rows(10, 2)).await;
    all.push(rows(10, 2));
    first.sees("after both wrote", &all).await;
}

impl Examined<'_> {
    /// Goes on until something is refused; if nothing is, the rows must be there, and come to `all`.
    async fn is_refused_or_writes(
        &self,
        opened: Result<Box<dyn StreamingWrite>>,
        batch: u64,
        all: &mut Vec<RecordBatch>,
    ) {
        let new = rows(100 + 10 * all.len() as i64, 3);
        let written = async {
            let writer = opened?;
            let begun = writer.begin(BatchId(batch)).await?;
            assert_eq!(begun, BatchStatus::New, "batch {batch} of one query was taken for that of another");
            let receipts = self.try_write(&*writer, batch, &[std::slice::from_ref(&new)]).await?;
            writer.commit(BatchId(batch), receipts).await
        };
        match written.await {
            Ok(()) => all.push(new),
            Err(e) => assert!(
                // Where every query has a mark of its own, a batch said to be there has none: that may be reported as
                // damage.
                matches!(
                    e.kind(),
                    ErrorKind::IncompatibleCheckpoint | ErrorKind::InvalidQuery | ErrorKind::DamagedCheckpoint
                ),
                "a second query is refused for what is there, not: {e}"
            ),
        }
        self.sees("after a second query tried to write", all).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::MemorySink;

    #[async_trait]
    impl SinkUnderTest for MemorySink {
        fn sink(&self) -> Arc<dyn Sink> {
            Arc::new(self.clone())
        }

        async fn visible_rows(&self) -> Result<Vec<RecordBatch>> {
            Ok(self.batches())
        }
    }

    #[tokio::test]
    async fn the_memory_sink_keeps_every_promise() {
        run(MemorySink::new).await;
    }
}
