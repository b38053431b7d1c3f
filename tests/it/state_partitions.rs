//! Another number of partitions at a restart moves state between partitions, and changes no answer.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use tidewater::testing::FaultInjector;

use crate::stateful::{Job, World, jobs};

/// The run in three parts, a restart between them, with these partitions; what came out.
async fn in_three_parts(job: &Arc<Job>, partitions: [usize; 3], small: bool) -> World {
    let world = World::new(job);
    let world = if small { world.with_small_state() } else { world };
    let adds = job.adds();
    for (part, partitions) in partitions.into_iter().enumerate() {
        world.feed(adds * part / 3..adds * (part + 1) / 3);
        let ran = world.run(partitions, &FaultInjector::disarmed()).await;
        ran.unwrap_or_else(|e| panic!("{}: part {part} with {partitions} partitions: {e}", job.name));
    }
    world
}

fn count(rows: &[RecordBatch]) -> usize {
    rows.iter().map(RecordBatch::num_rows).sum()
}

/// Restarted with other partitions in the middle of its run, each operator answers as if there had always been two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operator_moves_its_state() {
    for job in jobs::all() {
        let job = Arc::new(job);
        let constant = in_three_parts(&job, [2, 2, 2], false).await;
        let expected = match job.equals_batch {
            true => job.batch_answer().await.unwrap(),
            false => constant.answer().unwrap(),
        };
        assert!(count(&expected) > 3, "{}: an answer of {} rows shows nothing", job.name, count(&expected));
        constant.check(&expected).unwrap_or_else(|e| panic!("{}, two partitions throughout: {e}", job.name));
        for (partitions, small) in [([2, 5, 1], false), ([1, 2, 5], true), ([5, 1, 2], true)] {
            let moved = in_three_parts(&job, partitions, small).await;
            moved.check(&expected).unwrap_or_else(|e| panic!("{}, partitions {partitions:?}: {e}", job.name));
        }
        println!("2 → 5 → 1 partitions: {}: the same {} rows", job.name, count(&constant.answer().unwrap()));
    }
}

/// More partitions than keys, and so many that each owns few key groups.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_partitions_than_keys() {
    let job = Arc::new(jobs::tumbling(5));
    let expected = job.expected().await;
    for partitions in [[2, 64, 3], [64, 1, 64]] {
        let moved = in_three_parts(&job, partitions, true).await;
        moved.check(&expected).unwrap_or_else(|e| panic!("partitions {partitions:?}: {e}"));
    }
}
