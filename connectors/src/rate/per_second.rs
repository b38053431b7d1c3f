//! So many rows a second, by the clock.
//!
//! The first run keeps the time of its start in the source's log, so that every later run counts from the same moment. An
//! offset is the number of whole seconds since then.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use tidewater::checkpoint::CreateOutcome;
use tidewater::clock::Clock;
use tidewater::error::{Error, Result};
use tidewater::identity::Identity;
use tidewater::internal::{check_version, with_version};
use tidewater::interval::Interval;
use tidewater::source::{
    LatestOffset, MicroBatchStream, Offset, OffsetRange, ReadLimit, ScanContext, ScanRequest, Source, SourceContext,
    SourceScanner, Split,
};

use super::rows::{RateScanner, Rows, schema};
use crate::options::Options;

/// The only file of the source's log.
const LOG_FILE: &str = "0";
const MS_PER_SECOND: i64 = 1000;

/// Rows `(timestamp, value)`, so many a second; `value` counts from 0. A test source: what the clock passes while the
/// query is down is made up for when it is back.
///
/// Options by name, as Spark calls them: `rowsPerSecond` (1), `rampUpTime` (`0 seconds`), `numPartitions`.
#[derive(Debug, Clone)]
pub struct RateSource {
    rows_per_second: u64,
    ramp_up: Interval,
    partitions: Option<usize>,
}

impl RateSource {
    /// So many rows a second.
    pub fn new(rows_per_second: u64) -> Self {
        RateSource { rows_per_second, ramp_up: "0 seconds".into(), partitions: None }
    }

    /// A source by options alone.
    pub fn from_options(options: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let options = Options::new("the rate source", &["rowsPerSecond", "rampUpTime", "numPartitions"], options)?;
        let mut source = RateSource::new(options.positive_u64("rowsPerSecond")?.unwrap_or(1));
        if let Some(time) = options.get("rampUpTime") {
            source.ramp_up = time.into();
        }
        source.partitions = partitions(&options)?;
        source.pace()?;
        Ok(source)
    }

    /// How long it takes until the full rate is reached; whole seconds count.
    #[must_use]
    pub fn ramp_up_time(mut self, time: impl Into<Interval>) -> Self {
        self.ramp_up = time.into();
        self
    }

    /// Into how many partitions rows are split. Default: what the query has.
    #[must_use]
    pub fn partitions(mut self, partitions: usize) -> Self {
        self.partitions = Some(partitions);
        self
    }

    fn pace(&self) -> Result<Pace> {
        let rows_per_second = i64::try_from(self.rows_per_second).ok().filter(|rows| *rows > 0);
        let rows_per_second =
            rows_per_second.ok_or_else(|| Error::invalid("`rowsPerSecond` of the rate source must be above zero"))?;
        let ramp_up_s = self.ramp_up.non_negative_ms("`rampUpTime` of the rate source")? / MS_PER_SECOND;
        let pace = Pace { rows_per_second, ramp_up_s };
        if pace.rows_at(ramp_up_s).is_none() {
            return Err(Error::invalid("`rampUpTime` of the rate source is so long that rows could not be counted"));
        }
        Ok(pace)
    }
}

/// The option `numPartitions`.
pub(super) fn partitions(options: &Options) -> Result<Option<usize>> {
    Ok(options.positive_u64("numPartitions")?.map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
}

/// How many rows there are when.
#[derive(Debug, Clone, Copy)]
struct Pace {
    rows_per_second: i64,
    ramp_up_s: i64,
}

impl Pace {
    /// How many rows there are after so many seconds; `None` beyond what can be counted. While it ramps up, each second
    /// gives `step` rows more than the one before: 0, then `step`, then `2 * step` …
    fn rows_at(self, second: i64) -> Option<i64> {
        if second > self.ramp_up_s {
            let full_s = second - self.ramp_up_s;
            return self.rows_at(self.ramp_up_s)?.checked_add(full_s.checked_mul(self.rows_per_second)?);
        }
        let step = (self.rows_per_second / self.ramp_up_s.checked_add(1)?).max(1);
        let steps = i128::from(second) * (i128::from(second) + 1) / 2;
        i64::try_from(steps.checked_mul(i128::from(step))?).ok()
    }

    /// The rows after `from` and up to `to`, in seconds since `born_ms`. Their times are spread evenly.
    fn rows_between(self, from: i64, to: i64, born_ms: i64) -> Result<Rows> {
        let beyond =
            || Error::invalid("the rate source has no more numbers").with_hint("start it again with a new checkpoint");
        let values = self.rows_at(from).ok_or_else(beyond)?..self.rows_at(to).ok_or_else(beyond)?;
        Ok(Rows {
            values,
            start_ms: born_ms.saturating_add(from.saturating_mul(MS_PER_SECOND)),
            span_ms: (to - from).saturating_mul(MS_PER_SECOND),
        })
    }
}

#[async_trait]
impl Source for RateSource {
    fn description(&self) -> String {
        format!("rate, {} rows per second", self.rows_per_second)
    }

    fn identity(&self) -> Option<Identity> {
        let pace = Identity::new("rate").option("rowsPerSecond", self.rows_per_second.to_string());
        Some(pace.option("rampUpTime", format!("{} s", self.pace().ok()?.ramp_up_s)))
    }

    fn schema(&self) -> SchemaRef {
        schema()
    }

    async fn open(&self, context: SourceContext) -> Result<Box<dyn MicroBatchStream>> {
        let pace = self.pace()?;
        let born_ms = born_ms(&context).await?;
        Ok(Box::new(RateReader {
            pace,
            born_ms,
            partitions: self.partitions.unwrap_or(context.partitions),
            clock: context.clock,
            frozen_at: None,
        }))
    }

    fn scanner(&self, _context: ScanContext) -> Result<Option<Arc<dyn SourceScanner>>> {
        Ok(Some(Arc::new(RateScanner { source: self.description() })))
    }
}

/// When the query read this source for the first time.
async fn born_ms(context: &SourceContext) -> Result<i64> {
    let now = with_version([context.clock.now_ms().to_string()]);
    if let CreateOutcome::Created = context.log.create(LOG_FILE, now.clone().into()).await? {
        return parse_log(&now, LOG_FILE);
    }
    let file = context.log.full_name(LOG_FILE);
    let there = context.log.read(LOG_FILE).await?.unwrap_or_default();
    parse_log(&String::from_utf8_lossy(&there), &file)
}

fn parse_log(text: &str, file: &str) -> Result<i64> {
    let line = check_version(text, file)?.next().unwrap_or_default();
    line.parse().map_err(|e| {
        Error::damaged(format!("the start time of the rate source is `{line}`: {e}"))
            .with_file(file)
            .with_hint("restore the file from a backup, or start with a new checkpoint")
    })
}

#[derive(Debug)]
struct RateReader {
    pace: Pace,
    born_ms: i64,
    partitions: usize,
    clock: Arc<dyn Clock>,
    frozen_at: Option<i64>,
}

impl RateReader {
    fn second_now(&self) -> i64 {
        (self.clock.now_ms() - self.born_ms).max(0) / MS_PER_SECOND
    }
}

#[async_trait]
impl MicroBatchStream for RateReader {
    async fn prepare_for_available_now(&mut self) -> Result<()> {
        self.frozen_at = Some(self.second_now());
        Ok(())
    }

    async fn latest_offset(&mut self, after: Option<&Offset>, _limit: ReadLimit) -> Result<LatestOffset> {
        let second = self.frozen_at.unwrap_or_else(|| self.second_now());
        match after.map(parse_offset).transpose()? {
            // A clock that went back must not take the stream with it.
            Some(after) => Ok(LatestOffset::at(Offset::new(second.max(after)))),
            None if second == 0 => Ok(LatestOffset::nothing()),
            None => Ok(LatestOffset::at(Offset::new(second))),
        }
    }

    async fn splits(&mut self, range: &OffsetRange, _scan: &ScanRequest) -> Result<Option<Vec<Split>>> {
        let from = range.start.as_ref().map(parse_offset).transpose()?.unwrap_or(0);
        let to = parse_offset(&range.end)?;
        if to < from {
            return Err(Error::damaged(format!(
                "a batch of the rate source would end at {to}, before its start {from}"
            )));
        }
        self.pace.rows_between(from, to, self.born_ms)?.splits(self.partitions).map(Some)
    }
}

fn parse_offset(offset: &Offset) -> Result<i64> {
    offset.value().as_i64().filter(|second| *second >= 0).ok_or_else(|| {
        Error::damaged(format!("`{offset}` is not an offset of the rate source, which are whole seconds"))
            .with_hint("see that the checkpoint belongs to this query")
    })
}

#[cfg(test)]
mod tests {
    use tidewater::checkpoint::memory_store;
    use tidewater::clock::ManualClock;
    use tidewater::testing::open_by_splits;

    use super::super::rows::testing::{context, rows};
    use super::*;

    fn range(start: Option<i64>, end: i64) -> OffsetRange {
        OffsetRange::new(start.map(Offset::new), Offset::new(end))
    }

    #[test]
    fn the_ramp_climbs_in_even_steps() {
        let pace = Pace { rows_per_second: 10, ramp_up_s: 4 };
        let counts: Vec<_> = (0..=6).map(|second| pace.rows_at(second).unwrap()).collect();
        assert_eq!(counts, [0, 2, 6, 12, 20, 30, 40]);
        let flat = Pace { rows_per_second: 3, ramp_up_s: 0 };
        assert_eq!((0..4).map(|s| flat.rows_at(s).unwrap()).collect::<Vec<_>>(), [0, 3, 6, 9]);
        assert_eq!(flat.rows_at(i64::MAX), None);
    }

    #[tokio::test]
    async fn seconds_that_passed_are_offered_and_read() {
        let clock = Arc::new(ManualClock::at(5_000));
        let source = RateSource::new(4);
        let mut reader = open_by_splits(&source, context(memory_store(), Arc::clone(&clock) as _)).await.unwrap();
        assert_eq!(reader.latest_offset(None, ReadLimit::Configured).await.unwrap(), LatestOffset::nothing());
        clock.advance_ms(2_999);
        let latest = reader.latest_offset(None, ReadLimit::Configured).await.unwrap();
        assert_eq!(latest, LatestOffset::at(Offset::new(2)));
        let (found, partitions) = rows(&mut *reader, &range(None, 2)).await;
        assert_eq!(found.len(), 8);
        assert_eq!(found[1], (5_250_000, 1));
        assert_eq!(found[7], (6_750_000, 7));
        assert_eq!(partitions, 3);
        assert!(rows(&mut *reader, &range(Some(2), 2)).await.0.is_empty());
        let after = Offset::new(9);
        assert_eq!(
            reader.latest_offset(Some(&after), ReadLimit::Configured).await.unwrap(),
            LatestOffset::at(after),
            "never before the start of the batch"
        );
    }

    #[tokio::test]
    async fn a_later_run_counts_from_the_same_start() {
        let store = memory_store();
        let clock = Arc::new(ManualClock::at(1_000));
        let source = RateSource::new(1);
        let mut first = open_by_splits(&source, context(Arc::clone(&store), Arc::clone(&clock) as _)).await.unwrap();
        clock.advance_ms(10_000);
        assert_eq!(store.read("0").await.unwrap().unwrap(), "v1\n1000");
        let mut second = open_by_splits(&source, context(Arc::clone(&store), Arc::clone(&clock) as _)).await.unwrap();
        let (a, b) = (rows(&mut *first, &range(Some(3), 5)).await, rows(&mut *second, &range(Some(3), 5)).await);
        assert_eq!(a, b);
        assert_eq!(a.0, [(4_000_000, 3), (5_000_000, 4)]);
        second.prepare_for_available_now().await.unwrap();
        clock.advance_ms(10_000);
        let latest = second.latest_offset(None, ReadLimit::All).await.unwrap();
        assert_eq!(latest, LatestOffset::at(Offset::new(10)), "frozen");
    }

    #[tokio::test]
    async fn what_is_wrong_is_named() {
        let of = |name: &str, value: &str| RateSource::from_options([(name.to_owned(), value.to_owned())]);
        assert!(of("rowsPerSecond", "0").unwrap_err().message().contains("rowsPerSecond"));
        assert!(of("rowPerSecond", "1").unwrap_err().message().contains("did you mean `rowsPerSecond`"));
        assert!(of("rampUpTime", "-1 second").is_err());
        assert!(of("numPartitions", "2").is_ok());
        let store = memory_store();
        store.create("0", "v1\nnoon".into()).await.unwrap();
        let error = RateSource::new(1).open(context(store, Arc::new(ManualClock::at(0)))).await.unwrap_err();
        assert!(error.message().contains("`noon`"), "{error}");
    }
}
