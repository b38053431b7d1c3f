//! Answers that DataFusion's planner gets wrong, and that ours does not: what is switched off, and a word when it need not be
//! any more.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray, StructArray};
use arrow::datatypes::{DataType, Field};
use arrow::record_batch::RecordBatch;
use datafusion::datasource::MemTable;
use datafusion::prelude::*;
use tidewater::prelude::*;
use tidewater::testing::oracle::row_lines;

use crate::job::finish;

/// A struct and a number, in two batches.
fn rows() -> Vec<RecordBatch> {
    let batch = |names: &[&str], numbers: &[i64]| {
        let name = Arc::new(Field::new("a", DataType::Utf8, true));
        let names = Arc::new(StringArray::from(names.to_vec())) as ArrayRef;
        let st = Arc::new(StructArray::from(vec![(name, names)])) as ArrayRef;
        RecordBatch::try_from_iter([("st", st), ("v", Arc::new(Int64Array::from(numbers.to_vec())) as ArrayRef)])
            .unwrap()
    };
    vec![batch(&["x", "y"], &[1, 2]), batch(&["z"], &[3])]
}

/// Structs read in a query that computes a column under the name of the column it is computed from.
const COMPUTED: [(&str, &[&str]); 6] = [
    (
        "SELECT st['a'], v FROM (SELECT st, v + 1 AS v FROM (SELECT st, v FROM s) a) b",
        &["\"x\" | 2", "\"y\" | 3", "\"z\" | 4"],
    ),
    ("SELECT v, st['a'] FROM (SELECT -v AS v, st FROM s WHERE v > 1)", &["-2 | \"y\"", "-3 | \"z\""]),
    ("SELECT v, st['a'] FROM (SELECT -v AS v, st FROM s) WHERE v < -2", &["-3 | \"z\""]),
    ("SELECT v, st['a'] FROM (SELECT v * 10 AS v, st FROM s LIMIT 9)", &["10 | \"x\"", "20 | \"y\"", "30 | \"z\""]),
    (
        "SELECT v, count(st['a']) FROM (SELECT -v AS v, st FROM s WHERE v > 0) GROUP BY v",
        &["-1 | 1", "-2 | 1", "-3 | 1"],
    ),
    (
        "SELECT c.v, c.st['a'] FROM (SELECT upper(st['a']) AS u, v * 2 AS v, st FROM s) c WHERE c.u <> 'Y'",
        &["2 | \"x\"", "6 | \"z\""],
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn computed_columns_are_not_dropped() {
    for (sql, expected) in COMPUTED {
        let ctx = SessionContext::new();
        let source = MemorySource::new(rows()[0].schema()).partitions(2).adds_per_batch(1);
        rows().into_iter().for_each(|batch| source.add(vec![batch]).unwrap());
        ctx.register_stream("s", source).await.unwrap();
        let sink = MemorySink::new();
        let mode = if sql.contains("GROUP BY") { OutputMode::Update } else { OutputMode::Append };
        let stream = ctx.streaming_sql(sql).await.unwrap();
        finish(stream.write_stream(sink.clone()).output_mode(mode).trigger(Trigger::AvailableNow)).await.unwrap();
        let mut expected: Vec<&str> = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(row_lines(&sink.batches()).unwrap(), expected, "as a stream: {sql}");

        assert_eq!(batch(sql, true).await.unwrap(), expected, "as a batch: {sql}");
    }
}

/// The answer of a batch job, in a session that knows windows or in one that is DataFusion's alone.
async fn batch(sql: &str, windows: bool) -> datafusion::error::Result<Vec<String>> {
    let ctx = SessionContext::new();
    if windows {
        ctx.enable_windows();
    }
    let rows = rows();
    ctx.register_table("s", Arc::new(MemTable::try_new(rows[0].schema(), vec![rows])?))?;
    Ok(row_lines(&ctx.sql(sql).await?.collect().await?).unwrap())
}

/// When this fails, the setting in `plan::settings` can go: DataFusion answers rightly by itself.
#[tokio::test]
async fn datafusion_still_drops_computed_columns() {
    let mut wrong = 0;
    for (sql, expected) in COMPUTED {
        let mut expected: Vec<&str> = expected.to_vec();
        expected.sort_unstable();
        wrong += usize::from(batch(sql, false).await.ok().is_none_or(|rows| rows != expected));
    }
    assert!(wrong > 0, "https://github.com/apache/datafusion/issues/25414 is mended");
}
