//! A thousand queries in one process: what it takes to start them, to let them wait, to give each a row, and to stop them.
//!
//! Half of them read memory and are notified of new rows; half watch a folder of their own, which they have to look at.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Int64Array, RecordBatch};
use datafusion::prelude::*;
use tidewater::prelude::*;
use tidewater_connectors::file::FileSource;

use crate::made::{cpu_s, own_memory};

const QUERIES: usize = 1_000;
const IDLE: Duration = Duration::from_secs(30);

pub(crate) async fn run() -> Result<(), Box<dyn std::error::Error>> {
    println!("{QUERIES} queries in one process, half over memory and half over a folder, a checkpoint each");
    let folder = tempfile::tempdir()?;
    let at = |name: String| folder.path().join(name);
    let row = RecordBatch::try_from_iter([("v", Arc::new(Int64Array::from(vec![7])) as _)])?;
    let before = own_memory("VmRSS");

    let (began, mut queries, mut memories) = (Instant::now(), vec![], vec![]);
    for number in 0..QUERIES {
        let ctx = SessionContext::new();
        let stream = if number % 2 == 0 {
            let source = MemorySource::new(row.schema());
            memories.push(source.clone());
            ctx.read_stream(source)?
        } else {
            let input = at(format!("in{number}"));
            std::fs::create_dir(&input)?;
            ctx.read_stream(FileSource::csv(input.display().to_string()).with_schema(row.schema().as_ref().clone()))?
        };
        let query = stream
            .filter(col("v").gt(lit(1)))?
            .write_stream(DiscardSink::new())
            .checkpoint(at(format!("checkpoint{number}")).display().to_string())
            .durable(false)
            .start()
            .await?;
        queries.push(query);
    }
    println!("start            {:>8.2} s", began.elapsed().as_secs_f64());
    let held = own_memory("VmRSS").saturating_sub(before);
    println!("memory           {:>8.1} MiB, {:.0} KiB a query", mib(held), held as f64 / 1024.0 / QUERIES as f64);

    for name in ["idle, at first", "idle, later"] {
        let (cpu, began) = (cpu_s()?, Instant::now());
        tokio::time::sleep(IDLE).await;
        let share = (cpu_s()? - cpu) / began.elapsed().as_secs_f64();
        println!("{name:<16} {:>8.1} % of a core", share * 100.0);
    }

    let (cpu, began) = (cpu_s()?, Instant::now());
    for source in &memories {
        source.add(vec![row.clone()])?;
    }
    for number in (1..QUERIES).step_by(2) {
        std::fs::write(at(format!("in{number}/a.csv")), "7\n")?;
    }
    for query in &queries {
        query.process_all_available().await?;
    }
    println!("one row each     {:>8.2} s, {:.2} s of CPU", began.elapsed().as_secs_f64(), cpu_s()? - cpu);
    let rows: u64 = queries.iter().filter_map(|query| query.last_progress()).map(|last| last.num_input_rows).sum();
    assert_eq!(rows, QUERIES as u64, "every query has read its row");

    let began = Instant::now();
    for query in &queries {
        query.stop().await?;
    }
    println!("stop             {:>8.2} s", began.elapsed().as_secs_f64());
    println!("most memory      {:>8.1} MiB", mib(own_memory("VmHWM").saturating_sub(before)));
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}
