//! Answers that DataFusion's planner gets wrong, and that ours does not: what is switched off, and a word when it need not be
//! any more.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float64Array, Int64Array, ListArray, StringArray, StructArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int64Type};
use arrow::record_batch::RecordBatch;
use datafusion::datasource::MemTable;
use datafusion::parquet::arrow::ArrowWriter;
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
        ctx.register_stream("s", source).unwrap();
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
    assert!(wrong > 0, "https://github.com/apache/datafusion/issues/25414 is fixed");
}

/// Rows 1 to 3, of which the second has NaN where the others have 1, in a Parquet file whose statistics leave it out.
fn file_with_nan(folder: &Path) -> String {
    let columns = [
        ("k", Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef),
        ("f", Arc::new(Float64Array::from(vec![1.0, f64::NAN, 1.0])) as ArrayRef),
    ];
    let rows = RecordBatch::try_from_iter(columns).unwrap();
    let path = folder.join("nan.parquet");
    let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), rows.schema(), None).unwrap();
    writer.write(&rows).unwrap();
    let written = writer.close().unwrap();
    let statistics = written.row_group(0).column(1).statistics().unwrap();
    assert_eq!(statistics.max_bytes_opt(), Some(&1.0_f64.to_le_bytes()[..]), "the file is as the test needs it");
    path.display().to_string()
}

/// Predicates on floats, and the rows that pass. NaN is greater than all numbers, and equal to itself.
const FLOATS: [(&str, &[&str]); 9] = [
    ("f > 2", &["2"]),
    ("f >= 1", &["1", "2", "3"]),
    ("f = 1", &["1", "3"]),
    ("f <> 1", &["2"]),
    ("f = 'NaN'::double", &["2"]),
    ("NOT (f < 5)", &["2"]),
    ("f IN (7, 'NaN'::double)", &["2"]),
    ("CAST(f AS FLOAT) > 2 AND k < 3", &["2"]),
    ("-f < -2 OR k = 3", &["2", "3"]),
];

/// A session with the table `d` of [`file_with_nan`]; filters are applied by its scan, or above it.
async fn with_nan(folder: &Path, ours: bool, pushdown: bool) -> SessionContext {
    let config = SessionConfig::new().set_bool("datafusion.execution.parquet.pushdown_filters", pushdown);
    let ctx = SessionContext::new_with_config(config);
    if ours {
        ctx.enable_windows();
    }
    ctx.register_parquet("d", file_with_nan(folder), ParquetReadOptions::default()).await.unwrap();
    ctx
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_with_nan_are_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    for pushdown in [false, true] {
        for (predicate, expected) in FLOATS {
            let ctx = with_nan(dir.path(), true, pushdown).await;
            let batch = ctx.sql(&format!("SELECT k FROM d WHERE {predicate}")).await.unwrap().collect().await.unwrap();
            assert_eq!(row_lines(&batch).unwrap(), expected, "as a batch, {pushdown}: {predicate}");

            let numbers = RecordBatch::try_from_iter([("v", Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef)]);
            let source = MemorySource::new(numbers.as_ref().unwrap().schema());
            source.add(vec![numbers.unwrap()]).unwrap();
            ctx.register_stream("s", source).unwrap();
            let sink = MemorySink::new();
            let stream = ctx.sql(&format!("SELECT k FROM s JOIN d ON v = k WHERE {predicate}")).await.unwrap();
            finish(stream.write_stream(sink.clone()).trigger(Trigger::AvailableNow)).await.unwrap();
            assert_eq!(row_lines(&sink.batches()).unwrap(), expected, "as a stream, {pushdown}: {predicate}");
        }
        // What is known only when rows flow: the least value that can still come out, the values of the other side.
        let ctx = with_nan(dir.path(), true, pushdown).await;
        for sql in [
            "SELECT k FROM d WHERE isnan(f)",
            "SELECT k FROM (SELECT k, f FROM d) WHERE f::text = 'NaN'",
            "SELECT k FROM d ORDER BY f DESC LIMIT 1",
            "SELECT d.k FROM d JOIN (VALUES ('NaN'::double)) AS x(f) ON d.f = x.f",
        ] {
            let batch = ctx.sql(sql).await.unwrap().collect().await.unwrap();
            assert_eq!(row_lines(&batch).unwrap(), ["2"], "{pushdown}: {sql}");
        }
    }
}

/// When this fails, `plan::float_statistics` can go.
#[tokio::test]
async fn datafusion_still_loses_rows_with_nan() {
    let dir = tempfile::tempdir().unwrap();
    let ctx = with_nan(dir.path(), false, false).await;
    let rows = ctx.sql("SELECT k FROM d WHERE f > 2").await.unwrap().count().await.unwrap();
    assert_eq!(rows, 0, "https://github.com/apache/datafusion/issues/15812 is fixed");
    let rows = ctx.sql("SELECT f FROM d").await.unwrap().collect().await.unwrap();
    assert_eq!(row_lines(&rows).unwrap(), ["1.0", "1.0", "1.0"], "a column is read again");
}

/// Lists of two numbers each, and one that is NULL.
fn lists() -> ListArray {
    let lists = [Some([1, 2]), Some([3, 4]), None, Some([5, 6]), Some([7, 8])];
    let numbers = lists.map(|list| list.map(|list| list.map(Some)));
    ListArray::from_iter_primitive::<Int64Type, _, _>(numbers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_that_were_cut_are_cast_rightly() {
    let columns = [("v", Arc::new(Int64Array::from(vec![1, 2, 3, 4, 5])) as ArrayRef), ("l", Arc::new(lists()) as _)];
    let rows = RecordBatch::try_from_iter(columns).unwrap();
    let expected = ["2 | [3, 4]", "4 | [5, 6]", "5 | [7, 8]"];
    for sql in [
        "SELECT v, arrow_cast(l, 'FixedSizeList(2, Int64)') AS l FROM s WHERE l IS NOT NULL",
        "SELECT v, arrow_try_cast(l, 'FixedSizeList(2, Int64)') AS l FROM s WHERE l IS NOT NULL",
        "SELECT v, arrow_cast(arrow_cast(l, 'LargeList(Int64)'), 'FixedSizeList(2, Int32)') AS l FROM s WHERE v <> 3",
        "SELECT v, st['l'] FROM (SELECT v, arrow_cast(named_struct('l', l), \
         'Struct(\"l\": FixedSizeList(2, Int64))') AS st FROM s WHERE v <> 3)",
        "SELECT v, l FROM (SELECT DISTINCT v, arrow_cast(l, 'FixedSizeList(2, Int64)') AS l FROM s) WHERE v <> 3",
    ] {
        let ctx = SessionContext::new();
        let source = MemorySource::new(rows.schema()).partitions(2);
        source.add(vec![rows.slice(1, 2), rows.slice(3, 2)]).unwrap();
        ctx.register_stream("s", source).unwrap();
        let sink = MemorySink::new();
        let stream = ctx.sql(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        let ended = finish(stream.write_stream(sink.clone()).trigger(Trigger::AvailableNow)).await;
        ended.unwrap_or_else(|e| panic!("{sql}: {e}"));
        assert_eq!(row_lines(&sink.batches()).unwrap(), expected, "{sql}");
    }
}

/// When this fails, `plan::list_casts` can go.
#[test]
fn arrow_still_casts_lists_that_were_cut_to_others() {
    let fixed = DataType::FixedSizeList(Arc::new(Field::new_list_field(DataType::Int64, true)), 2);
    let whole = cast(&lists(), &fixed).unwrap();
    let cut = cast(&lists().slice(3, 2), &fixed).unwrap();
    assert_ne!(&whole.slice(3, 2), &cut, "https://github.com/apache/arrow-rs/issues/10975 is fixed");
}
