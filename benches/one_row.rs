//! One row per batch, from memory through a filter and a projection to discard: what a batch costs by itself, split by
//! phase. With a durable checkpoint, one that leaves flushing to the system, and one in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch};
use datafusion::prelude::*;
use tidewater::prelude::*;

use crate::made::Collect;
use crate::quantile;

const WARM_UP: usize = 200;
const BATCHES: usize = 2_000;
/// Waits for storage, not work of the engine.
const STORAGE: [&str; 2] = ["walCommit", "commitOffsets"];

pub(crate) async fn run() -> Result<(), Box<dyn std::error::Error>> {
    println!("one row per batch, {BATCHES} batches after {WARM_UP} to warm up, milliseconds (median / p99)");
    let folder = tempfile::tempdir()?;
    for (name, location, durable) in
        [("durable", Some("durable"), true), ("not durable", Some("quick"), false), ("in memory", None, false)]
    {
        let location = location.map(|name| folder.path().join(name).display().to_string());
        let progress = measure(location, durable).await?;
        let mut phases: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for batch in progress.iter().skip(WARM_UP) {
            for (phase, ms) in &batch.duration_ms {
                phases.entry(phase).or_default().push(*ms);
            }
            let storage: f64 = STORAGE.iter().filter_map(|phase| batch.duration_ms.get(*phase)).sum();
            let all = batch.duration_ms.get("triggerExecution").copied().unwrap_or(f64::NAN);
            phases.entry("without storage").or_default().push(all - storage);
        }
        let mut line = format!("{name:<12}");
        for (phase, mut ms) in phases {
            ms.sort_by(f64::total_cmp);
            line.push_str(&format!("  {phase} {:.3} / {:.3}", quantile(&ms, 0.5), quantile(&ms, 0.99)));
        }
        println!("{line}");
    }
    Ok(())
}

async fn measure(
    checkpoint: Option<String>,
    durable: bool,
) -> Result<Vec<Arc<QueryProgress>>, Box<dyn std::error::Error>> {
    let rows = RecordBatch::try_from_iter([("v", Arc::new(Int64Array::from(vec![7])) as _)])?;
    let source = MemorySource::new(rows.schema()).adds_per_batch(1);
    for _ in 0..WARM_UP + BATCHES {
        source.add(vec![rows.clone()])?;
    }
    let listener = Arc::new(Collect::default());
    let stream = SessionContext::new().read_stream(source)?;
    let mut writer = stream
        .filter(col("v").gt(lit(1)))?
        .select(vec![(col("v") * lit(2)).alias("twice")])?
        .write_stream(DiscardSink::new())
        .trigger(Trigger::AvailableNow)
        .durable(durable)
        .listener(Arc::clone(&listener) as Arc<dyn QueryListener>);
    if let Some(checkpoint) = checkpoint {
        writer = writer.checkpoint(checkpoint);
    }
    writer.start().await?.await_termination().await?;
    let progress = listener.take();
    assert_eq!(progress.len(), WARM_UP + BATCHES, "every add is a batch");
    Ok(progress)
}
