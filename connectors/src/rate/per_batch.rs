//! So many rows a batch, with times that depend on nothing but the batch.
//!
//! An offset is where the next batch begins: `{"offset":16,"timestamp":1704067203000}` is the number of its first row and
//! the time of all its rows.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tidewater::error::{Error, Result};
use tidewater::identity::Identity;
use tidewater::source::{
    LatestOffset, MicroBatchStream, Offset, OffsetRange, ReadLimit, ScanContext, ScanRequest, Source, SourceContext,
    SourceScanner, Split,
};

use super::per_second::partitions;
use super::rows::{RateScanner, Rows, schema};
use crate::options::Options;

/// Rows `(timestamp, value)`, so many a batch; `value` counts from 0, and all rows of a batch have the same time. There is
/// always a next batch; with a trigger that ends by itself, one.
///
/// Options by name, as Spark calls them: `rowsPerBatch` (needed), `startTimestamp` (0, in milliseconds since 1970),
/// `advanceMillisPerBatch` (1000), `numPartitions`.
#[derive(Debug, Clone)]
pub struct RatePerBatchSource {
    rows_per_batch: u64,
    start_ms: i64,
    advance_ms: i64,
    partitions: Option<usize>,
}

impl RatePerBatchSource {
    /// So many rows a batch.
    pub fn new(rows_per_batch: u64) -> Self {
        RatePerBatchSource { rows_per_batch, start_ms: 0, advance_ms: 1000, partitions: None }
    }

    /// A source by options alone.
    pub fn from_options(options: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let known = ["rowsPerBatch", "numPartitions", "startTimestamp", "advanceMillisPerBatch"];
        let options = Options::new("the rate-micro-batch source", &known, options)?;
        let Some(rows_per_batch) = options.positive_u64("rowsPerBatch")? else {
            return Err(Error::invalid("the rate-micro-batch source needs the option `rowsPerBatch`")
                .with_hint("set it to the number of rows of a batch"));
        };
        let mut source = Self::new(rows_per_batch);
        let ms = |name| options.parsed(name, "milliseconds, zero or more", |v| v.parse().ok().filter(|ms| *ms >= 0));
        source.start_ms = ms("startTimestamp")?.unwrap_or(source.start_ms);
        source.advance_ms = ms("advanceMillisPerBatch")?.unwrap_or(source.advance_ms);
        source.partitions = partitions(&options)?;
        Ok(source)
    }

    /// The time of the rows of the first batch, in milliseconds since 1970. Default 0.
    #[must_use]
    pub fn start_timestamp(mut self, ms: i64) -> Self {
        self.start_ms = ms;
        self
    }

    /// How much later each next batch is, in milliseconds. Default 1000.
    #[must_use]
    pub fn advance_millis_per_batch(mut self, ms: i64) -> Self {
        self.advance_ms = ms;
        self
    }

    /// Into how many partitions rows are split. Default: what the query has.
    #[must_use]
    pub fn partitions(mut self, partitions: usize) -> Self {
        self.partitions = Some(partitions);
        self
    }
}

#[async_trait]
impl Source for RatePerBatchSource {
    fn description(&self) -> String {
        format!("rate, {} rows per batch", self.rows_per_batch)
    }

    fn identity(&self) -> Option<Identity> {
        Some(Identity::new("rate-micro-batch"))
    }

    fn schema(&self) -> SchemaRef {
        schema()
    }

    async fn open(&self, context: SourceContext) -> Result<Box<dyn MicroBatchStream>> {
        let rows_per_batch = i64::try_from(self.rows_per_batch).ok().filter(|rows| *rows > 0);
        Ok(Box::new(PerBatchReader {
            rows_per_batch: rows_per_batch
                .ok_or_else(|| Error::invalid("`rowsPerBatch` of the rate-micro-batch source must be above zero"))?,
            first: Place { offset: 0, timestamp: self.start_ms },
            advance_ms: self.advance_ms,
            partitions: self.partitions.unwrap_or(context.partitions),
            frozen: None,
        }))
    }

    fn scanner(&self, _context: ScanContext) -> Result<Option<Arc<dyn SourceScanner>>> {
        Ok(Some(Arc::new(RateScanner { source: self.description() })))
    }
}

/// Where a batch begins. Field names are Spark's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Place {
    offset: i64,
    timestamp: i64,
}

impl Place {
    fn parse(offset: &Offset) -> Result<Self> {
        let wrong = |why: String| {
            Error::damaged(format!("`{offset}` is not an offset of the rate-micro-batch source: {why}"))
                .with_hint("see that the checkpoint belongs to this query")
        };
        let place: Place = serde_json::from_value(offset.value()).map_err(|e| wrong(e.to_string()))?;
        if place.offset < 0 { Err(wrong("it is negative".to_owned())) } else { Ok(place) }
    }

    fn offset(self) -> Offset {
        Offset::new(serde_json::json!({"offset": self.offset, "timestamp": self.timestamp}))
    }
}

#[derive(Debug)]
struct PerBatchReader {
    rows_per_batch: i64,
    first: Place,
    advance_ms: i64,
    partitions: usize,
    /// After `prepare_for_available_now`, where the one batch that is left ends: known when it is asked for.
    frozen: Option<Option<Place>>,
}

impl PerBatchReader {
    fn next(&self, after: Place) -> Result<Place> {
        let offset = after.offset.checked_add(self.rows_per_batch);
        let timestamp = after.timestamp.checked_add(self.advance_ms);
        match (offset, timestamp) {
            (Some(offset), Some(timestamp)) => Ok(Place { offset, timestamp }),
            _ => Err(Error::invalid("the rate-micro-batch source has no more numbers")
                .with_hint("start it again with a new checkpoint")),
        }
    }
}

#[async_trait]
impl MicroBatchStream for PerBatchReader {
    async fn prepare_for_available_now(&mut self) -> Result<()> {
        self.frozen = Some(None);
        Ok(())
    }

    async fn latest_offset(&mut self, after: Option<&Offset>, _limit: ReadLimit) -> Result<LatestOffset> {
        let after = after.map(Place::parse).transpose()?.unwrap_or(self.first);
        let end = match self.frozen {
            Some(Some(end)) => end,
            _ => self.next(after)?,
        };
        if self.frozen.is_some() {
            self.frozen = Some(Some(end));
        }
        Ok(LatestOffset::at(end.offset()))
    }

    async fn splits(&mut self, range: &OffsetRange, _scan: &ScanRequest) -> Result<Option<Vec<Split>>> {
        let start = range.start.as_ref().map(Place::parse).transpose()?.unwrap_or(self.first);
        let end = Place::parse(&range.end)?;
        if end.offset < start.offset {
            return Err(Error::damaged(format!(
                "a batch of the rate-micro-batch source would end at {}, before its start {}",
                end.offset, start.offset
            )));
        }
        let rows = Rows { values: start.offset..end.offset, start_ms: start.timestamp, span_ms: 0 };
        rows.splits(self.partitions).map(Some)
    }

    async fn commit(&mut self, _end: &Offset) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tidewater::checkpoint::memory_store;
    use tidewater::clock::ManualClock;
    use tidewater::testing::open_by_splits;

    use super::super::rows::testing::{context, rows};
    use super::*;

    async fn open(source: RatePerBatchSource) -> Box<dyn MicroBatchStream> {
        open_by_splits(&source, context(memory_store(), Arc::new(ManualClock::at(0)))).await.unwrap()
    }

    fn source() -> RatePerBatchSource {
        RatePerBatchSource::new(8).start_timestamp(1_704_067_200_000).advance_millis_per_batch(1500).partitions(1)
    }

    /// The offsets that Spark 4.3 wrote for these settings.
    const SPARKS: [&str; 3] = [
        r#"{"offset":8,"timestamp":1704067201500}"#,
        r#"{"offset":16,"timestamp":1704067203000}"#,
        r#"{"offset":24,"timestamp":1704067204500}"#,
    ];

    #[tokio::test]
    async fn offsets_and_rows_are_sparks() {
        let mut reader = open(source()).await;
        let mut start = None;
        for (i, expected) in SPARKS.iter().enumerate() {
            let end = reader.latest_offset(start.as_ref(), ReadLimit::Configured).await.unwrap().batch_end.unwrap();
            assert_eq!(end.json(), *expected);
            let (found, partitions) = rows(&mut *reader, &OffsetRange::new(start, end.clone())).await;
            let (i, time) = (i as i64, 1_704_067_200_000_000 + i as i64 * 1_500_000);
            assert_eq!(found, (i * 8..i * 8 + 8).map(|value| (time, value)).collect::<Vec<_>>());
            assert_eq!(partitions, 1);
            start = Some(end);
        }
    }

    #[tokio::test]
    async fn frozen_there_is_one_more_batch() {
        let mut reader = open(source()).await;
        reader.prepare_for_available_now().await.unwrap();
        let start = Offset::parse(SPARKS[0]).unwrap();
        let first = reader.latest_offset(Some(&start), ReadLimit::Configured).await.unwrap();
        assert_eq!(first.batch_end.as_ref().unwrap().json(), SPARKS[1]);
        let then = reader.latest_offset(first.batch_end.as_ref(), ReadLimit::Configured).await.unwrap();
        assert_eq!(then, first, "nothing after it");
    }

    #[tokio::test]
    async fn what_is_wrong_is_named() {
        let of = |name: &str, value: &str| RatePerBatchSource::from_options([(name.to_owned(), value.to_owned())]);
        assert!(of("startTimestamp", "1").unwrap_err().message().contains("needs the option `rowsPerBatch`"));
        assert!(of("rowsPerBatch", "0").is_err());
        let two = |value: &str| {
            let given = [("rowsPerBatch", "5"), ("advanceMillisPerBatch", value)];
            RatePerBatchSource::from_options(given.map(|(k, v)| (k.to_owned(), v.to_owned())))
        };
        assert!(two("-1").unwrap_err().message().contains("advanceMillisPerBatch"));
        assert_eq!(two("7").unwrap().advance_ms, 7);
        let mut reader = open(source()).await;
        let error = reader.latest_offset(Some(&Offset::new(3)), ReadLimit::Configured).await.unwrap_err();
        assert!(error.message().contains("not an offset of the rate-micro-batch source"), "{error}");
    }
}
