//! Keys of every type that Arrow has a row for, dictionaries and nested ones among them, in all operators that go by keys;
//! and such values where they are merely kept. Every query is started anew for every batch.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringViewArray};
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use datafusion::prelude::*;
use tidewater::checkpoint::memory_store;
use tidewater::prelude::*;
use tidewater::testing::oracle::row_lines;
use tidewater::testing::table;

use crate::job::{finish, local_checkpoint};

/// Two columns of a key in one spelling and in another, where it has one.
const KEYS: &str = "
    k AS text,
    arrow_cast(k, 'Dictionary(Int32, Utf8)') AS dictionary,
    arrow_cast(v, 'Dictionary(Int8, Int64)') AS numbers_in_a_dictionary,
    make_array(v, NULL, v + 1) AS list,
    arrow_cast(make_array(k, 'x'), 'LargeList(Utf8)') AS large_list,
    arrow_cast(make_array(v, 2), 'FixedSizeList(2, Int64)') AS fixed_list,
    make_array(make_array(k), make_array(k, k)) AS list_of_lists,
    CASE WHEN v = 2 THEN NULL ELSE make_array(k) END AS list_or_null,
    named_struct('a', k, 'b', named_struct('c', v)) AS struct,
    named_struct('a', arrow_cast(k, 'Dictionary(Int32, Utf8)'), 'b', make_array(v)) AS struct_of_dictionary_and_list,
    CASE WHEN id % 2 = 0 THEN MAP {'a': v, 'b': 1} ELSE MAP {'b': 1, 'a': v} END AS map,
    CASE WHEN id % 2 = 0 THEN 0.0 ELSE -0.0 END AS zero,
    make_array(CASE WHEN id % 2 = 0 THEN 0.0 ELSE -0.0 END, CAST(v AS DOUBLE)) AS list_of_zeros,
    arrow_cast(v, 'Decimal32(7, 2)') AS decimal32,
    arrow_cast(v, 'Decimal64(12, 2)') AS decimal64,
    arrow_cast(v, 'Decimal256(40, 2)') AS decimal256,
    arrow_cast(k, 'LargeUtf8') AS large_text,
    arrow_cast(k, 'BinaryView') AS binary,
    arrow_cast(v, 'Duration(Second)') AS duration";

/// Rows of `id`, of keys of all types, of which there are four each, and NULLs.
async fn rows(ids: std::ops::Range<i64>) -> RecordBatch {
    let ctx = SessionContext::new();
    let sql = format!(
        "SELECT {KEYS}, id FROM (SELECT id, CASE id % 5 WHEN 4 THEN NULL ELSE id % 5 END AS v, \
         CASE id % 5 WHEN 4 THEN NULL ELSE concat('key ', id % 5) END AS k FROM \
         (SELECT unnest(generate_series({}, {})) AS id))",
        ids.start,
        ids.end - 1
    );
    let batches = ctx.sql(&sql).await.unwrap().collect().await.unwrap();
    let rows = arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap();
    // Every column may be null.
    let columns = rows
        .schema()
        .fields()
        .iter()
        .zip(rows.columns())
        .map(|(field, column)| (field.name().clone(), Arc::clone(column), true))
        .collect::<Vec<_>>();
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

/// The columns that are keys.
fn names(rows: &RecordBatch) -> Vec<String> {
    rows.schema().fields().iter().map(|field| field.name().clone()).filter(|name| name != "id").collect()
}

/// What a query over the stream `t` writes; each of these batches is one of its own, and a run of its own.
async fn written(sql: &str, mode: OutputMode, batches: &[RecordBatch]) -> Result<Vec<RecordBatch>> {
    let source = MemorySource::new(batches[0].schema()).partitions(2).adds_per_batch(1);
    let (store, sink) = (memory_store(), MemorySink::new());
    for rows in batches {
        source.add(table::deal(rows, 2)?)?;
        let ctx = SessionContext::new();
        ctx.register_stream("t", source.clone())?;
        let query = ctx.streaming_sql(sql).await?.write_stream(sink.clone()).output_mode(mode);
        let query = query.checkpoint_store(Arc::clone(&store)).partitions(3).trigger(Trigger::AvailableNow);
        finish(query).await?;
    }
    Ok(match mode {
        OutputMode::Complete => sink.batch(sink.last_batch().unwrap()).unwrap(),
        _ => sink.batches(),
    })
}

fn lines(rows: &[RecordBatch]) -> Vec<String> {
    row_lines(rows).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grouped_by_a_key_of_every_type() {
    let batches = [rows(0..10).await, rows(10..15).await, rows(15..40).await];
    for key in names(&batches[0]) {
        // The text of a group is the same whatever its key is: how many rows, and the first of them.
        let groups = async |key: &str| {
            let sql = format!(
                "SELECT \"{key}\", min(id) AS first, count(*) AS n, sum(id) AS total FROM t GROUP BY \"{key}\""
            );
            let out = written(&sql, OutputMode::Complete, &batches).await.unwrap_or_else(|e| panic!("{key}: {e}"));
            assert_eq!(out[0].schema().field(0).data_type(), batches[0].column_by_name(key).unwrap().data_type());
            out
        };
        let out = groups(&key).await;
        let without_key: Vec<RecordBatch> = out.iter().map(|rows| rows.project(&[1, 2, 3]).unwrap()).collect();
        let expected = match key.as_str() {
            "zero" => vec!["0 | 40 | 780".to_owned()],
            // The NULL of `v` is that of 4, and one list is NULL for 2.
            _ => {
                let total = |first: i64| (0..8).map(|i| first + 5 * i).sum::<i64>();
                let mut all: Vec<String> = (0..5).map(|first| format!("{first} | 8 | {}", total(first))).collect();
                all.sort();
                all
            }
        };
        assert_eq!(lines(&without_key), expected, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn distinct_values_of_every_type() {
    let batches = [rows(0..10).await, rows(10..15).await, rows(15..40).await];
    for key in names(&batches[0]) {
        let sql = format!("SELECT DISTINCT \"{key}\" FROM t");
        let out = written(&sql, OutputMode::Append, &batches).await.unwrap_or_else(|e| panic!("{key}: {e}"));
        let count: usize = out.iter().map(RecordBatch::num_rows).sum();
        assert_eq!(count, if key == "zero" { 1 } else { 5 }, "{key}: {:?}", lines(&out));
    }
}

/// Two streams joined on a key of every type, and rows kept that hold all the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joined_on_a_key_of_every_type() {
    let all = [rows(0..5).await, rows(5..15).await];
    for key in names(&all[0]) {
        let (left, right) = (
            MemorySource::new(all[0].schema()).partitions(2).adds_per_batch(1),
            MemorySource::new(all[0].schema()).partitions(2).adds_per_batch(1),
        );
        let (store, sink) = (memory_store(), MemorySink::new());
        for rows in &all {
            left.add(table::deal(rows, 2).unwrap()).unwrap();
            right.add(table::deal(rows, 2).unwrap()).unwrap();
            let ctx = SessionContext::new();
            ctx.register_stream("l", left.clone()).unwrap();
            ctx.register_stream("r", right.clone()).unwrap();
            let sql = format!("SELECT l.id AS a, r.id AS b, r.* FROM l JOIN r ON l.\"{key}\" = r.\"{key}\"");
            let query = ctx.streaming_sql(&sql).await.unwrap().write_stream(sink.clone());
            let query = query.checkpoint_store(Arc::clone(&store)).partitions(3).trigger(Trigger::AvailableNow);
            finish(query).await.unwrap_or_else(|e| panic!("{key}: {e}"));
        }
        let out = sink.batches();
        let pairs = |same: &dyn Fn(i64, i64) -> bool| {
            let mut pairs = vec![];
            for a in 0..15 {
                pairs.extend((0..15).filter(|b| same(a, *b)).map(|b| format!("{a} | {b}")));
            }
            pairs.sort();
            pairs
        };
        // Only texts, numbers and single values are NULL where `v` is; a list of NULLs is a value.
        let null = |id: i64| all[0].column_by_name(&key).unwrap().is_null(id as usize % 5);
        let expected = match key.as_str() {
            "zero" => pairs(&|_, _| true),
            _ => pairs(&|a, b| a % 5 == b % 5 && !null(a)),
        };
        let found: Vec<RecordBatch> = out.iter().map(|rows| rows.project(&[0, 1]).unwrap()).collect();
        assert_eq!(lines(&found), expected, "{key}");
        // What was kept comes out as it went in.
        let (a, rest): (Vec<RecordBatch>, Vec<usize>) = (all.to_vec(), (2..out[0].num_columns()).collect());
        let inside: Vec<String> = lines(&a);
        for line in lines(&out.iter().map(|rows| rows.project(&rest).unwrap()).collect::<Vec<_>>()) {
            assert!(inside.contains(&line), "{key}: {line}");
        }
    }
}

/// Dictionaries in the partial state of aggregates.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aggregates_of_dictionaries() {
    let batches = [rows(0..10).await, rows(10..15).await, rows(15..40).await];
    for (aggregate, expected) in [
        ("first_value(dictionary ORDER BY id)", "\"key 0\""),
        ("last_value(dictionary ORDER BY id) FILTER (WHERE id < 14)", "\"key 3\""),
        ("max(dictionary)", "\"key 3\""),
        ("min(numbers_in_a_dictionary)", "0"),
        ("count(DISTINCT dictionary)", "4"),
        ("count(dictionary)", "32"),
        ("array_agg(DISTINCT dictionary ORDER BY dictionary) FILTER (WHERE id < 12)", "[key 0, key 1, key 2, key 3, ]"),
        ("array_agg(dictionary ORDER BY id) FILTER (WHERE id > 36)", "[key 2, key 3, ]"),
        ("max(struct_of_dictionary_and_list)", "{a: key 3, b: [3]}"),
        ("first_value(struct_of_dictionary_and_list ORDER BY id)", "{a: key 0, b: [0]}"),
        ("first_value(map ORDER BY id)", "{a: 0, b: 1}"),
    ] {
        for sql in [
            format!("SELECT {aggregate} AS a FROM t"),
            format!("SELECT {aggregate} AS a FROM t GROUP BY zero"),
            format!("SELECT {aggregate} AS a FROM t GROUP BY id >= 0"),
        ] {
            let out = written(&sql, OutputMode::Complete, &batches).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
            assert_eq!(lines(&out), [expected], "{sql}");
        }
    }
}

/// Text that few rows refer to stays neither in files nor in memory: what a query keeps does not depend on what it was cut
/// out of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_leaves_no_slack() {
    // A hundred keys, out of arrays of far more text.
    let batch = |number: usize, as_type: &DataType| {
        let text = |row: usize| match row % 10 {
            0 => Some(format!("key {:>4}, a text of some forty characters", (number * 37 + row / 10) % 100)),
            _ => Some(format!("a text of batch {number} and row {row} that nobody asks for, and is quite long")),
        };
        let all: ArrayRef = Arc::new((0..1_000).map(text).collect::<StringViewArray>());
        let indices = arrow::array::UInt32Array::from_iter_values((0..1_000).step_by(10));
        let few = arrow::compute::take(&all, &indices, None).unwrap();
        assert!(few.as_string_view().data_buffers().iter().map(|buffer| buffer.len()).sum::<usize>() > 50_000);
        let few = arrow::compute::cast(&few, as_type).unwrap();
        let ids: ArrayRef =
            Arc::new(arrow::array::Int64Array::from_iter_values((0..100).map(|i| (number * 100 + i) as i64)));
        RecordBatch::try_from_iter_with_nullable(vec![("k", few, true), ("id", ids, true)]).unwrap()
    };
    for sql in [
        "SELECT k, count(*) AS n, max(k) AS a, first_value(k ORDER BY id) AS b, max(named_struct('k', k)) AS c FROM t GROUP BY k",
        "SELECT k, max(make_array(k)) AS c, count(DISTINCT k) AS d FROM t GROUP BY k",
        "SELECT max(k) AS a, array_agg(DISTINCT k) AS b, max(named_struct('k', k)) AS c FROM t",
        "SELECT DISTINCT k, id % 100 AS i FROM t",
        "SELECT l.k FROM t AS l JOIN t AS r ON l.k = r.k AND l.id = r.id",
    ] {
        let mut sizes = vec![];
        for as_type in [DataType::Utf8, DataType::Utf8View] {
            let folder = tempfile::tempdir().unwrap();
            let source = MemorySource::new(batch(0, &as_type).schema()).partitions(2).adds_per_batch(1);
            (0..40).for_each(|number| source.add(table::deal(&batch(number, &as_type), 2).unwrap()).unwrap());
            let ctx = SessionContext::new();
            ctx.register_stream("t", source).unwrap();
            let frame = ctx.streaming_sql(sql).await.unwrap();
            let mode = if sql.contains("DISTINCT k, id") || sql.contains("JOIN") {
                OutputMode::Append
            } else {
                OutputMode::Update
            };
            let query = frame.write_stream(DiscardSink::new()).output_mode(mode).min_batches_to_retain(2);
            let query =
                query.checkpoint_store(local_checkpoint(folder.path())).partitions(2).trigger(Trigger::AvailableNow);
            let query = finish(query).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
            let operator = query.last_progress().unwrap().state_operators[0].clone();
            // How much is merged in the background before the run ends is luck.
            sizes.push((operator.state_bytes_written, operator.memory_used_bytes));
        }
        let [(files, memory), (files_of_views, memory_of_views)] = sizes[..] else { panic!() };
        assert!(files_of_views < files + files / 4, "{sql}: {files_of_views} bytes were written for {files}");
        assert!(memory_of_views < 2 * memory, "{sql}: {memory_of_views} bytes are held for {memory}");
    }
}
