//! What every source must do, whatever it reads.
//!
//! Splits go through JSON, and a second scanner must read the same of them.
//!
//! Whoever writes a source ends its file with one test that calls [`run`]; when that passes, the source is in. Each
//! function here is one promise of [`crate::source`], and panics with its name when it is broken.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::SessionContext;

use super::by_splits::BySplits;
use super::oracle::difference;
use crate::checkpoint::{MetadataStore, memory_store, sub_store};
use crate::clock::{Clock, ManualClock};
use crate::error::Result;
use crate::source::{MicroBatchStream, Offset, OffsetRange, ReadLimit, ScanRequest, Source, SourceContext};

/// What the suite needs of the source it examines.
#[async_trait]
pub trait SourceUnderTest: Send + Sync {
    /// The source. All that this returns share what [`add_rows`](Self::add_rows) added.
    fn source(&self) -> Arc<dyn Source>;

    /// Makes at least one more row available. No two calls add equal rows.
    async fn add_rows(&self) -> Result<()>;

    /// Lets the source's world go away, so that nobody can say what there is: the broker, the folder, the store. False if
    /// this one cannot go away.
    async fn go_away(&self) -> Result<bool> {
        Ok(false)
    }

    /// Brings it back, with all that was there. Called after [`go_away`](Self::go_away) alone.
    async fn come_back(&self) -> Result<()> {
        Ok(())
    }

    /// The clock its readers are given.
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(ManualClock::at(0))
    }
}

/// Runs the whole suite; `new` makes a source that nobody has read, with nothing to read yet.
///
/// # Panics
///
/// If the source breaks a promise.
pub async fn run<S: SourceUnderTest>(new: impl Fn() -> S) {
    nothing_to_read_is_no_place(&new()).await;
    a_range_can_be_read_again(&new()).await;
    ranges_go_forward(&new()).await;
    a_frozen_source_offers_no_more(&new()).await;
    a_commit_can_be_repeated(&new()).await;
    only_wanted_columns_come(&new()).await;
    silence_is_no_answer(&new()).await;
}

/// A source with the checkpoint folder its readers share.
struct Examined<'a> {
    subject: &'a dyn SourceUnderTest,
    log: Arc<dyn MetadataStore>,
    ctx: SessionContext,
}

impl<'a> Examined<'a> {
    fn new(subject: &'a dyn SourceUnderTest) -> Self {
        Examined { subject, log: sub_store(&memory_store(), "sources/0"), ctx: SessionContext::new() }
    }

    fn context(&self) -> SourceContext {
        SourceContext {
            log: Arc::clone(&self.log),
            session: Arc::new(self.ctx.state()),
            clock: self.subject.clock(),
            partitions: 3,
            min_batches_to_retain: 100,
            former_places: vec![],
        }
    }

    async fn open(&self) -> BySplits {
        said("open", BySplits::open(self.subject.source().as_ref(), self.context()).await)
    }

    async fn add_rows(&self) {
        said("add_rows", self.subject.add_rows().await);
    }

    /// Where the next batch would end, if there is anything at all.
    async fn end(&self, reader: &mut BySplits, after: Option<&Offset>) -> Option<Offset> {
        said("latest_offset", reader.latest_offset(after, ReadLimit::All).await).batch_end
    }

    /// Where the next batch would end; there must be something to read.
    async fn new_end(&self, reader: &mut BySplits, after: Option<&Offset>) -> Offset {
        let end = self.end(reader, after).await;
        let end = end.unwrap_or_else(|| panic!("latest_offset({after:?}) finds nothing although rows were added"));
        assert!(after != Some(&end), "latest_offset stays at {end} although rows were added");
        end
    }

    async fn read(
        &self,
        reader: &mut BySplits,
        start: Option<&Offset>,
        end: &Offset,
        projection: Vec<usize>,
    ) -> Vec<RecordBatch> {
        let schema = Arc::new(said("project", self.subject.source().schema().project(&projection).map_err(Into::into)));
        let range = OffsetRange { start: start.cloned(), end: end.clone() };
        let scan = ScanRequest { projection, schema: Arc::clone(&schema), filters: vec![] };
        let plan = said("bind", reader.bind(&range, &scan).await);
        assert_eq!(plan.schema().fields(), schema.fields(), "bind produces other columns than were asked for");
        let rows = self.run(plan).await;
        if let Some(plans) = said("scan", reader.each_elsewhere(&scan)) {
            let mut alone = vec![];
            for plan in plans {
                assert_eq!(plan.schema().fields(), schema.fields(), "scan produces other columns than were asked for");
                alone.extend(self.run(plan).await);
            }
            same("the splits of a range, each by itself and scanned by another scanner", &rows, &alone);
        }
        rows
    }

    async fn run(&self, plan: Arc<dyn ExecutionPlan>) -> Vec<RecordBatch> {
        said("run the plan", collect(plan, self.ctx.task_ctx()).await.map_err(Into::into))
    }

    async fn read_all(&self, reader: &mut BySplits, start: Option<&Offset>, end: &Offset) -> Vec<RecordBatch> {
        let columns = self.subject.source().schema().fields().len();
        self.read(reader, start, end, (0..columns).collect()).await
    }
}

#[track_caller]
fn said<T>(call: &str, result: Result<T>) -> T {
    result.unwrap_or_else(|e| panic!("{call} failed: {e}"))
}

#[track_caller]
fn same(what: &str, expected: &[RecordBatch], actual: &[RecordBatch]) {
    if let Some(difference) = said("compare", difference(expected, actual)) {
        panic!("{what}: {difference}");
    }
}

fn count(rows: &[RecordBatch]) -> usize {
    rows.iter().map(RecordBatch::num_rows).sum()
}

/// Before there ever was anything to read, there is no place to end at, or an empty one.
pub async fn nothing_to_read_is_no_place(subject: &dyn SourceUnderTest) {
    let examined = Examined::new(subject);
    let mut reader = examined.open().await;
    if let Some(end) = examined.end(&mut reader, None).await {
        assert_eq!(count(&examined.read_all(&mut reader, None, &end).await), 0, "rows come out of nothing");
    }
}

/// Replay: the same range gives the same rows, in this run and in later ones, whatever was added since.
pub async fn a_range_can_be_read_again(subject: &dyn SourceUnderTest) {
    let examined = Examined::new(subject);
    let mut reader = examined.open().await;
    examined.add_rows().await;
    let first_end = examined.new_end(&mut reader, None).await;
    let first = examined.read_all(&mut reader, None, &first_end).await;
    assert!(count(&first) > 0, "the first range has no rows although rows were added");
    same("the same range, at once", &first, &examined.read_all(&mut reader, None, &first_end).await);

    examined.add_rows().await;
    same("the same range, after more came", &first, &examined.read_all(&mut reader, None, &first_end).await);
    let second_end = examined.new_end(&mut reader, Some(&first_end)).await;
    let second = examined.read_all(&mut reader, Some(&first_end), &second_end).await;

    let mut again = examined.open().await;
    let repeated = examined.read_all(&mut again, Some(&first_end), &second_end).await;
    same("the last range, after reopening", &second, &repeated);
    let mut again = examined.open().await;
    same("an earlier range, after reopening", &first, &examined.read_all(&mut again, None, &first_end).await);
}

/// Forward: the end never lies before what was read, ranges do not overlap, and together they are everything.
pub async fn ranges_go_forward(subject: &dyn SourceUnderTest) {
    let examined = Examined::new(subject);
    let mut reader = examined.open().await;
    examined.add_rows().await;
    let first_end = examined.new_end(&mut reader, None).await;
    let stays = examined.end(&mut reader, Some(&first_end)).await;
    assert_eq!(stays.as_ref(), Some(&first_end), "without new rows, the end must stay where it was");

    let mut reopened = examined.open().await;
    let stays = examined.end(&mut reopened, Some(&first_end)).await;
    assert_eq!(stays.as_ref(), Some(&first_end), "a reopened source must go on from where it was");

    examined.add_rows().await;
    let second_end = examined.new_end(&mut reopened, Some(&first_end)).await;
    let mut parts = examined.read_all(&mut reopened, None, &first_end).await;
    let second = examined.read_all(&mut reopened, Some(&first_end), &second_end).await;
    assert!(count(&second) > 0, "the second range has no rows although rows were added");
    parts.extend(second);
    let whole = examined.read_all(&mut reopened, None, &second_end).await;
    same("two ranges, compared with the one that spans both", &whole, &parts);
}

/// Available now: what comes after `prepare_for_available_now` is not offered.
pub async fn a_frozen_source_offers_no_more(subject: &dyn SourceUnderTest) {
    let examined = Examined::new(subject);
    examined.add_rows().await;
    let mut reader = examined.open().await;
    said("prepare_for_available_now", reader.prepare_for_available_now().await);
    examined.add_rows().await;
    let end = examined.new_end(&mut reader, None).await;
    let frozen = examined.read_all(&mut reader, None, &end).await;
    assert!(count(&frozen) > 0, "what was there before `prepare_for_available_now` must be offered");
    let stays = examined.end(&mut reader, Some(&end)).await;
    assert_eq!(stays.as_ref(), Some(&end), "what came after `prepare_for_available_now` must not be offered");

    let mut thawed = examined.open().await;
    let further = examined.new_end(&mut thawed, Some(&end)).await;
    let later = examined.read_all(&mut thawed, Some(&end), &further).await;
    assert!(count(&later) > 0, "the next run must be offered what came after freezing");
}

/// Repetition: a commit may come again, in this run and the next, and loses nothing beyond its offset.
pub async fn a_commit_can_be_repeated(subject: &dyn SourceUnderTest) {
    let examined = Examined::new(subject);
    let mut reader = examined.open().await;
    examined.add_rows().await;
    let first_end = examined.new_end(&mut reader, None).await;
    let _ = examined.read_all(&mut reader, None, &first_end).await;
    examined.add_rows().await;
    let second_end = examined.new_end(&mut reader, Some(&first_end)).await;
    let second = examined.read_all(&mut reader, Some(&first_end), &second_end).await;
    said("commit", reader.commit(&first_end).await);
    said("commit again", reader.commit(&first_end).await);
    let kept = examined.read_all(&mut reader, Some(&first_end), &second_end).await;
    same("what lies after a committed offset", &second, &kept);

    let mut again = examined.open().await;
    said("commit after reopening", again.commit(&first_end).await);
    let kept = examined.read_all(&mut again, Some(&first_end), &second_end).await;
    same("what lies after a committed offset, after reopening", &second, &kept);
}

/// The plan has the columns asked for, in the order asked for; none at all still counts rows.
pub async fn only_wanted_columns_come(subject: &dyn SourceUnderTest) {
    let examined = Examined::new(subject);
    let mut reader = examined.open().await;
    examined.add_rows().await;
    let end = examined.new_end(&mut reader, None).await;
    let whole = examined.read_all(&mut reader, None, &end).await;
    let columns = subject.source().schema().fields().len();

    let backwards: Vec<usize> = (0..columns).rev().collect();
    let read = examined.read(&mut reader, None, &end, backwards.clone()).await;
    let turned: Result<Vec<RecordBatch>> = whole.iter().map(|rows| Ok(rows.project(&backwards)?)).collect();
    same("columns in another order", &said("project", turned), &read);

    let none = examined.read(&mut reader, None, &end, vec![]).await;
    assert_eq!(count(&none), count(&whole), "rows without columns must still be counted");
}

/// Silence: where nobody can say what there is, the source says so, or fails; and goes on when somebody can.
pub async fn silence_is_no_answer(subject: &dyn SourceUnderTest) {
    let examined = Examined::new(subject);
    let mut reader = examined.open().await;
    examined.add_rows().await;
    let first_end = examined.new_end(&mut reader, None).await;
    let first = examined.read_all(&mut reader, None, &first_end).await;
    examined.add_rows().await;
    if !said("go_away", subject.go_away().await) {
        return;
    }
    for limit in [ReadLimit::Configured, ReadLimit::All] {
        for after in [None, Some(&first_end)] {
            if let Ok(latest) = reader.latest_offset(after, limit).await {
                // What it knows for certain it may offer.
                let offers = latest.batch_end.as_ref().is_some_and(|end| after != Some(end));
                assert!(
                    latest.unknown.is_some() || offers,
                    "nobody answered, and latest_offset says that all is known"
                );
            }
        }
    }
    let context = examined.context();
    if let Ok(mut reopened) = subject.source().open(context).await {
        assert!(
            reopened.prepare_for_available_now().await.is_err(),
            "nobody answered, and prepare_for_available_now knows what there is"
        );
    }
    said("come_back", subject.come_back().await);
    let second_end = examined.new_end(&mut reader, Some(&first_end)).await;
    let second = examined.read_all(&mut reader, Some(&first_end), &second_end).await;
    assert!(count(&second) > 0, "what was added before the silence must be offered after it");
    same("the first range, after the silence", &first, &examined.read_all(&mut reader, None, &first_end).await);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use serde_json::json;

    use super::*;
    use crate::source::MemorySource;
    use crate::testing::table;

    struct Memory {
        source: MemorySource,
        next: AtomicI64,
    }

    #[async_trait]
    impl SourceUnderTest for Memory {
        fn source(&self) -> Arc<dyn Source> {
            Arc::new(self.source.clone())
        }

        async fn add_rows(&self) -> Result<()> {
            let first = self.next.fetch_add(4, Ordering::Relaxed);
            let values: Vec<_> = (first..first + 4).map(|v| json!([v, format!("row {v}")])).collect();
            let rows = table::rows(&self.source.schema(), &json!(values))?;
            self.source.add(table::deal(&rows, 2)?)
        }
    }

    #[tokio::test]
    async fn the_memory_source_keeps_every_promise() {
        run(|| Memory {
            source: MemorySource::new(table::schema(&[("v", "long"), ("text", "string")]).unwrap()).partitions(2),
            next: AtomicI64::new(0),
        })
        .await;
    }
}
