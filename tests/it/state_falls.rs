//! Die at every call that crosses a boundary, with state on both sides of the fall: for each operator, alone and
//! chained, the answer is that of the batch, or of a run that nothing disturbed.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use datafusion::prelude::JoinType;
use tempfile::TempDir;
use tidewater::error::Result;
use tidewater::testing::{FaultInjector, crash_at_every_call};
use tidewater_connectors::file::FileSink;
use tidewater_workspace::files::{Format, committed_rows};

use crate::job::{finish, same, text};
use crate::stateful::{Job, World, jobs, settled};

/// Two, so that rows meet from both and each has state of its own.
const PARTITIONS: usize = 2;

/// So many batches that files of state are merged three times over (here two become one), and more than a checkpoint here keeps.
const MANY_ADDS: usize = 9;

fn report(job: &str, outcome: Result<u64, String>) {
    match outcome {
        Ok(falls) => {
            println!("every fall: {job}: {falls} falls tried, no row lost or doubled, none forgotten");
            assert!(falls > 50, "{job} has only {falls} moments: the wrappers are not in place");
        }
        Err(e) => panic!("{job}: {e}"),
    }
}

async fn survives(job: Job) {
    let job = Arc::new(job);
    let expected: Vec<RecordBatch> = job.expected().await;
    let outcome = crash_at_every_call(
        || World::with_all_rows(&job).with_small_state(),
        async |world: &World, falls: &FaultInjector| world.run_alone(PARTITIONS, falls).await,
        async |world: &World| world.check(&expected),
    )
    .await;
    report(&job.name, outcome);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tumbling_windows_over_merges_and_clean_up() {
    survives(jobs::tumbling(MANY_ADDS)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sliding_windows_in_update_mode() {
    survives(jobs::sliding_update()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aggregation_in_update_mode() {
    survives(jobs::aggregate_update()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aggregation_in_complete_mode() {
    survives(jobs::aggregate_complete()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_windows() {
    survives(jobs::sessions()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deduplication_with_event_time() {
    survives(jobs::deduplicate()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deduplication_by_key() {
    survives(jobs::deduplicate_by_key()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deduplication_within_the_watermark() {
    survives(jobs::deduplicate_within_watermark()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inner_join() {
    survives(jobs::join(JoinType::Inner)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_left_outer_join() {
    survives(jobs::join(JoinType::Left)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_outer_join() {
    survives(jobs::join(JoinType::Right)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_outer_join() {
    survives(jobs::join(JoinType::Full)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_left_semi_join() {
    survives(jobs::join(JoinType::LeftSemi)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_of_windows() {
    survives(jobs::windows_of_windows()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_then_windows() {
    survives(jobs::join_then_windows()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deduplication_then_windows() {
    survives(jobs::deduplicate_then_windows()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit() {
    survives(jobs::limit()).await;
}

/// The same with an output that outlives the process: what state and sink know of a batch must not come apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_to_parquet_files() {
    let job = Arc::new(jobs::tumbling(5));
    let expected = job.expected().await;
    let columns = job.columns();
    let out = |dir: &TempDir| -> PathBuf { dir.path().join("out") };
    let outcome = crash_at_every_call(
        || (World::with_all_rows(&job), tempfile::tempdir().unwrap()),
        async |(world, dir): &(World, TempDir), falls: &FaultInjector| {
            let sink = FileSink::parquet(text(&out(dir)));
            finish(world.writer(sink, PARTITIONS, falls).await?.durable(false)).await.map(|_| ())
        },
        async |(_, dir): &(World, TempDir)| {
            let written = committed_rows(&out(dir), Format::Parquet, &columns).await.map_err(|e| e.to_string())?;
            same(&expected, &settled(&written).map_err(|e| e.to_string())?)
        },
    )
    .await;
    report("tumbling windows to Parquet files", outcome);
}

/// Two falls in a row: the restart, which loads the state, dies as well at every one of its own moments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fall_while_the_state_is_loaded() {
    let job = Arc::new(jobs::windows_of_windows());
    let expected = job.expected().await;
    let quiet = FaultInjector::disarmed();
    World::with_all_rows(&job).run(PARTITIONS, &quiet).await.unwrap();
    let outcome = crash_at_every_call(
        || World::with_all_rows(&job),
        async |world: &World, falls: &FaultInjector| {
            let first = FaultInjector::at(quiet.call_sites() * 2 / 3);
            let _ = world.run_alone(PARTITIONS, &first).await;
            world.run_alone(PARTITIONS, falls).await
        },
        async |world: &World| world.check(&expected),
    )
    .await;
    report("windows of windows, two falls", outcome);
}
