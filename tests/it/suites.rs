//! The suites that every source and sink must pass, run on those that need files or a clock.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use tempfile::TempDir;
use tidewater::prelude::*;
use tidewater::sink::Sink;
use tidewater::source::Source;
use tidewater::testing::{sink_suite, source_suite};
use tidewater_connectors::file::{FileSink, FileSource};
use tidewater_connectors::rate::{RatePerBatchSource, RateSource};
use tidewater_workspace::events::{event_schema, events};
use tidewater_workspace::files::{Format, committed_rows, put_rows};

use crate::job::{csv_events, json_events, text};

/// A folder of files of one format.
struct Folder {
    dir: TempDir,
    format: Format,
    files: AtomicU64,
}

impl Folder {
    fn new(format: Format) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("in")).unwrap();
        Folder { dir, format, files: AtomicU64::new(0) }
    }

    fn input(&self) -> PathBuf {
        self.dir.path().join("in")
    }
}

#[async_trait]
impl source_suite::SourceUnderTest for Folder {
    fn source(&self) -> Arc<dyn Source> {
        Arc::new(match self.format {
            Format::Csv => csv_events(&self.input()),
            Format::Json => json_events(&self.input()),
            Format::Parquet => FileSource::parquet(text(&self.input())).with_schema(event_schema().unwrap()),
        })
    }

    async fn add_rows(&self) -> Result<()> {
        let file = self.files.fetch_add(1, Ordering::Relaxed);
        put_rows(&self.input(), &format!("{file}.data"), self.format, &events(file, 9)?)?;
        Ok(())
    }

    /// As a disk does that is taken out.
    async fn go_away(&self) -> Result<bool> {
        std::fs::rename(self.input(), self.dir.path().join("away")).unwrap();
        Ok(true)
    }

    async fn come_back(&self) -> Result<()> {
        std::fs::rename(self.dir.path().join("away"), self.input()).unwrap();
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_sources() {
    for format in [Format::Csv, Format::Json, Format::Parquet] {
        source_suite::run(|| Folder::new(format)).await;
    }
}

/// Rows per second: time is what adds rows.
struct Rate(ManualClock);

#[async_trait]
impl source_suite::SourceUnderTest for Rate {
    fn source(&self) -> Arc<dyn Source> {
        Arc::new(RateSource::new(5).partitions(3))
    }

    async fn add_rows(&self) -> Result<()> {
        self.0.advance_ms(2_000);
        Ok(())
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(self.0.clone())
    }
}

/// The rate source begins to count when it is opened first, so only what holds from then on is asked of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_source() {
    let new = || Rate(ManualClock::at(1_704_067_200_000));
    source_suite::nothing_to_read_is_no_place(&new()).await;
    source_suite::a_range_can_be_read_again(&new()).await;
    source_suite::ranges_go_forward(&new()).await;
    source_suite::a_commit_can_be_repeated(&new()).await;
    source_suite::only_wanted_columns_come(&new()).await;
}

/// Rows per batch: there is always one batch more.
struct RatePerBatch;

#[async_trait]
impl source_suite::SourceUnderTest for RatePerBatch {
    fn source(&self) -> Arc<dyn Source> {
        Arc::new(RatePerBatchSource::new(7).partitions(3))
    }

    async fn add_rows(&self) -> Result<()> {
        Ok(())
    }
}

/// It never waits and always has more, so what the suite says of waiting is not asked of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_per_batch_source() {
    source_suite::a_range_can_be_read_again(&RatePerBatch).await;
    source_suite::a_commit_can_be_repeated(&RatePerBatch).await;
    source_suite::only_wanted_columns_come(&RatePerBatch).await;
}

/// An output folder.
struct Output {
    dir: TempDir,
    format: Format,
    partitioned: bool,
}

impl Output {
    fn new(format: Format, partitioned: bool) -> Self {
        Output { dir: tempfile::tempdir().unwrap(), format, partitioned }
    }
}

#[async_trait]
impl sink_suite::SinkUnderTest for Output {
    fn sink(&self) -> Arc<dyn Sink> {
        let location = text(self.dir.path());
        let sink = match self.format {
            Format::Csv => FileSink::csv(location),
            Format::Json => FileSink::json(location),
            Format::Parquet => FileSink::parquet(location),
        };
        Arc::new(if self.partitioned { sink.partition_by(["name"]) } else { sink })
    }

    async fn visible_rows(&self) -> Result<Vec<RecordBatch>> {
        committed_rows(self.dir.path(), self.format, &sink_suite::schema()).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_sinks() {
    for format in [Format::Csv, Format::Json, Format::Parquet] {
        for partitioned in [false, true] {
            sink_suite::run(|| Output::new(format, partitioned)).await;
        }
    }
}
