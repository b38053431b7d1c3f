//! A folder with 100,000 files: what it costs to watch, how soon a new file is read, and to read it all in small batches.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::prelude::*;
use tidewater::prelude::*;
use tidewater_connectors::file::FileSource;

use crate::made::{Collect, cpu_s};
use crate::quantile;

const FILES: usize = 100_000;
const FILES_PER_BATCH: u64 = 200;
const NEW_FILES: usize = 20;
const IDLE: Duration = Duration::from_secs(20);

pub(crate) async fn run() -> Result<(), Box<dyn std::error::Error>> {
    println!("a folder with {FILES} files of one row");
    let folder = tempfile::tempdir()?;
    let input = folder.path().join("in");
    std::fs::create_dir(&input)?;
    for number in 0..FILES {
        put(&input, number)?;
    }

    let began = Instant::now();
    let listener = Arc::new(Collect::default());
    let ended = write(&input, folder.path(), Some(FILES_PER_BATCH)).await?;
    ended
        .trigger(Trigger::AvailableNow)
        .listener(Arc::clone(&listener) as Arc<dyn QueryListener>)
        .start()
        .await?
        .await_termination()
        .await?;
    let progress = listener.take();
    let rows: u64 = progress.iter().map(|batch| batch.num_input_rows).sum();
    assert_eq!(rows, FILES as u64, "every file is read once");
    let tenth = progress.len() / 10;
    let (first, last) = (offsets_ms(&progress[..tenth]), offsets_ms(&progress[progress.len() - tenth..]));
    println!(
        "available now    {} batches in {:.2} s; finding the next files, median of the first tenth {first:.2} ms, of the last {last:.2} ms",
        progress.len(),
        began.elapsed().as_secs_f64()
    );

    let query = write(&input, folder.path(), None).await?.start().await?;
    tokio::time::sleep(Duration::from_secs(8)).await;
    let (cpu, began) = (cpu_s()?, Instant::now());
    tokio::time::sleep(IDLE).await;
    println!("idle             {:.1} % of a core", (cpu_s()? - cpu) / began.elapsed().as_secs_f64() * 100.0);

    let (mut waits_ms, mut cpu_ms) = (vec![], vec![]);
    for number in 0..NEW_FILES {
        let seen = query.last_progress().map(|last| last.batch_id);
        let (cpu, began) = (cpu_s()?, Instant::now());
        put(&input, FILES + number)?;
        while query.last_progress().map(|last| last.batch_id) == seen {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        waits_ms.push(began.elapsed().as_secs_f64() * 1000.0);
        cpu_ms.push((cpu_s()? - cpu) * 1000.0);
    }
    waits_ms.sort_by(f64::total_cmp);
    cpu_ms.sort_by(f64::total_cmp);
    println!(
        "one new file     in {:.1} ms (p99 {:.1}), {:.0} ms of CPU",
        quantile(&waits_ms, 0.5),
        quantile(&waits_ms, 0.99),
        quantile(&cpu_ms, 0.5)
    );
    query.stop().await?;
    Ok(())
}

fn put(input: &Path, number: usize) -> std::io::Result<()> {
    std::fs::write(input.join(format!("{number}.csv")), format!("{number}\n"))
}

async fn write(
    input: &Path,
    folder: &Path,
    files_per_batch: Option<u64>,
) -> Result<StreamWriter, Box<dyn std::error::Error>> {
    let schema = Schema::new(vec![Field::new("v", DataType::Int64, true)]);
    let mut source = FileSource::csv(input.display().to_string()).with_schema(schema);
    if let Some(files) = files_per_batch {
        source = source.max_files_per_trigger(files);
    }
    let stream = SessionContext::new().read_stream(source)?;
    let checkpoint = folder.join("checkpoint").display().to_string();
    Ok(stream.write_stream(DiscardSink::new()).checkpoint(checkpoint).durable(false))
}

/// What finding the next files took, in the middle.
fn offsets_ms(progress: &[Arc<QueryProgress>]) -> f64 {
    let mut ms: Vec<f64> = progress.iter().filter_map(|batch| batch.duration_ms.get("latestOffset").copied()).collect();
    ms.sort_by(f64::total_cmp);
    quantile(&ms, 0.5)
}
