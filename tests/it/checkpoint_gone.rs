//! Folders that are deleted under a running query, and what processes leave that are killed while they write.

use std::path::{Path, PathBuf};
use std::time::Duration;

use datafusion::prelude::*;
use tempfile::TempDir;
use tidewater::prelude::*;
use tidewater::testing::{assert_same_rows, table};
use tidewater_connectors::file::FileSink;
use tidewater_workspace::events::events;
use tidewater_workspace::files::{Format, committed_rows, put_rows};

use crate::job::{DOUBLED, doubled, doubled_answer, json_events, text, to_the_end};

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        place.put(0);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, n: u64) {
        put_rows(&self.path("in"), &format!("{n}.json"), Format::Json, &events(n, 5).unwrap()).unwrap();
    }

    async fn start(&self, durable: bool) -> StreamingQuery {
        let stream = SessionContext::new().read_stream(json_events(&self.path("in"))).unwrap();
        let sink = FileSink::parquet(text(&self.path("out")));
        let writer = to_the_end(doubled(stream).unwrap(), sink, &self.path("checkpoint"));
        writer.durable(durable).trigger(Trigger::Immediate).start().await.unwrap()
    }
}

/// Whatever is deleted, the next batch is an error at once that names the folder, and nothing is made anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_is_deleted_while_the_query_runs() {
    for durable in [true, false] {
        for gone in [
            "checkpoint",
            "checkpoint/epochs",
            "checkpoint/offsets",
            "checkpoint/commits",
            "checkpoint/sources/0",
            "out/_spark_metadata",
            "out",
        ] {
            let place = Place::new();
            let query = place.start(durable).await;
            query.process_all_available().await.unwrap();
            std::fs::remove_dir_all(place.path(gone)).unwrap();
            place.put(1);
            let failed = query.process_all_available().await.expect_err(gone);
            assert_eq!(failed.kind(), ErrorKind::DamagedCheckpoint, "{gone}: {failed}");
            assert!(failed.message().contains("deleted"), "{gone}: {failed}");
            assert!(failed.file().is_some_and(|file| file.contains(gone)), "{gone}: {failed}");
            assert!(failed.hint().is_some(), "{gone}: {failed}");
            assert!(!query.is_active());
            // An output without its log may get data files, which nobody sees.
            assert!(gone == "out" || !place.path(gone).exists(), "{gone} was made anew");
        }
    }
}

/// Another process made the checkpoint anew: that is another one, whatever its number of starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_was_deleted_and_made_again() {
    let place = Place::new();
    let old = place.start(false).await;
    old.process_all_available().await.unwrap();
    std::fs::remove_dir_all(place.path("checkpoint")).unwrap();
    std::fs::remove_dir_all(place.path("out")).unwrap();
    let new = place.start(false).await;
    new.process_all_available().await.unwrap();
    new.stop().await.unwrap();
    place.put(1);
    let failed = old.process_all_available().await.unwrap_err();
    assert!(matches!(failed.kind(), ErrorKind::DamagedCheckpoint | ErrorKind::Fenced), "{failed}");
    let new = place.start(false).await;
    new.process_all_available().await.unwrap();
    new.stop().await.unwrap();
    let written = committed_rows(&place.path("out"), Format::Parquet, &table::schema(&DOUBLED).unwrap()).await.unwrap();
    assert_same_rows(&doubled_answer(&[events(0, 5).unwrap(), events(1, 5).unwrap()]).await, &written);
}

fn half_written(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            half_written(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "tmp") {
            found.push(entry);
        }
    }
}

/// What creates leave that are killed goes at the next start, in every folder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_written_files_go_at_the_next_start() {
    let place = Place::new();
    let query = place.start(true).await;
    query.process_all_available().await.unwrap();
    query.stop().await.unwrap();
    let folders = [
        "checkpoint",
        "checkpoint/epochs",
        "checkpoint/offsets",
        "checkpoint/commits",
        "checkpoint/sources/0",
        "out/_spark_metadata",
    ];
    for folder in folders {
        std::fs::write(place.path(folder).join(".1.Ab12cd.tmp"), "half").unwrap();
    }
    let query = place.start(true).await;
    place.put(1);
    query.process_all_available().await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), query.stop()).await.unwrap().unwrap();
    let mut found = vec![];
    half_written(place.0.path(), &mut found);
    assert!(found.is_empty(), "{found:?}");
}
