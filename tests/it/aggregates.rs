//! Aggregates that live longer than a batch, with and without GROUP BY, started anew for every batch: what DataFusion
//! answers over all rows so far, and the right values where it does not.

mod functions;

use std::sync::Arc;

use arrow::array::{
    ArrayRef, DurationSecondArray, Float64Array, Int64Array, NullArray, StringArray, StringViewArray,
    TimestampMicrosecondArray,
};
use arrow::record_batch::RecordBatch;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::*;
use tidewater::checkpoint::memory_store;
use tidewater::prelude::*;
use tidewater::testing::{batch_table, oracle::row_lines, table};

use self::functions::register;
use crate::job::{finish, local_checkpoint, text};

/// A number, or none; NaN is a number.
type Number = Option<f64>;

/// A table of `k`, `x`, `y`, `i`, `d` (a duration) and `nothing`, whose rows are (k, x, i). `y` is 2x + i.
fn rows(rows: &[(&str, Number, Option<i64>)]) -> RecordBatch {
    let x: Float64Array = rows.iter().map(|row| row.1).collect();
    let y: Float64Array = rows.iter().map(|row| Some(2.0 * row.1? + row.2? as f64)).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("k", Arc::new(rows.iter().map(|row| Some(row.0)).collect::<StringArray>())),
        ("x", Arc::new(x)),
        ("y", Arc::new(y)),
        ("i", Arc::new(rows.iter().map(|row| row.2).collect::<Int64Array>())),
        ("d", Arc::new(rows.iter().map(|row| row.2).collect::<DurationSecondArray>())),
        ("nothing", Arc::new(NullArray::new(rows.len()))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap()
}

/// First none that passes `i > 2`, then none at all, then NULLs only, then some of both keys, twice.
fn batches() -> Vec<RecordBatch> {
    vec![
        rows(&[("a", Some(1.0), Some(1)), ("b", Some(2.0), Some(2))]),
        rows(&[]),
        rows(&[("a", None, None), ("a", None, Some(3))]),
        rows(&[("a", Some(3.5), Some(4)), ("b", Some(-1.25), Some(9)), ("b", Some(7.0), Some(4))]),
        rows(&[("b", Some(0.5), Some(6)), ("a", None, Some(12)), ("a", Some(8.0), Some(4)), ("a", Some(2.0), Some(5))]),
    ]
}

/// What a stream answers in complete mode after each of these batches. It is started anew for every one.
async fn answers(sql: &str, batches: &[RecordBatch]) -> Result<Vec<Vec<String>>> {
    let source = MemorySource::new(batches[0].schema()).partitions(2).adds_per_batch(1);
    let (store, sink) = (memory_store(), MemorySink::new());
    let mut answers = vec![];
    for batch in batches {
        source.add(table::deal(batch, 2)?)?;
        let ctx = SessionContext::new();
        register(&ctx);
        ctx.register_stream("t", source.clone())?;
        let query = ctx.streaming_sql(sql).await?.write_stream(sink.clone()).output_mode(OutputMode::Complete);
        let query = query.checkpoint_store(Arc::clone(&store)).partitions(2).trigger(Trigger::AvailableNow);
        finish(query).await?;
        answers.push(row_lines(&sink.batch(sink.last_batch().unwrap()).unwrap())?);
    }
    Ok(answers)
}

/// What a batch answers.
async fn batch_answer(sql: &str, batches: &[RecordBatch]) -> Result<Vec<String>> {
    let ctx = SessionContext::new();
    register(&ctx);
    let table = batch_table(&ctx, batches[0].schema(), batches.to_vec())?;
    ctx.register_table("t", table.into_view())?;
    row_lines(&ctx.sql(sql).await?.collect().await?)
}

/// The stream answers as a batch does over all rows so far, after each batch.
async fn is_the_batch(sql: &str, batches: &[RecordBatch]) {
    let answers = answers(sql, batches).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    for (last, answer) in answers.into_iter().enumerate() {
        let expected = batch_answer(sql, &batches[..=last]).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        assert_eq!(answer, expected, "{sql}, after batch {last}");
    }
}

/// The last answer of a stream.
async fn answer(sql: &str, batches: &[RecordBatch]) -> Vec<String> {
    answers(sql, batches).await.unwrap_or_else(|e| panic!("{sql}: {e}")).pop().unwrap()
}

const AGGREGATES: [&str; 44] = [
    "count(*)",
    "count(x)",
    "count(DISTINCT i)",
    "sum(i)",
    "sum(x)",
    "sum(DISTINCT i)",
    "min(x)",
    "max(k)",
    "avg(x)",
    "avg(arrow_cast(x, 'Decimal32(7, 2)'))",
    "avg(arrow_cast(x, 'Decimal64(9, 2)'))",
    "avg(CAST(x AS DECIMAL(9, 2)))",
    "avg(arrow_cast(x, 'Decimal256(40, 2)'))",
    "avg(d)",
    "sum(CAST(x AS DECIMAL(9, 2)))",
    "min(d)",
    "round(corr(x, y), 9)",
    "round(covar_samp(x, y), 9)",
    "round(covar_pop(x, y), 9)",
    "round(regr_slope(y, x), 9)",
    "regr_count(y, x)",
    "round(stddev(x), 9)",
    "round(stddev_pop(x), 9)",
    "round(var(x), 9)",
    "round(var_pop(x), 9)",
    "median(x)",
    "median(DISTINCT i)",
    "percentile_cont(0.5) WITHIN GROUP (ORDER BY x)",
    "approx_distinct(i)",
    "approx_distinct(k)",
    "approx_median(i)",
    "bit_and(i)",
    "bit_or(i)",
    "bit_xor(i)",
    "bool_and(i > 3)",
    "bool_or(i > 11)",
    "array_agg(i ORDER BY i)",
    "array_agg(DISTINCT i ORDER BY i)",
    "string_agg(k, '-' ORDER BY i, k)",
    "first_value(i ORDER BY x, i)",
    "last_value(x ORDER BY i, x)",
    "nth_value(i, 2 ORDER BY i)",
    "sum(i) FILTER (WHERE x > 1.0)",
    "avg(x) FILTER (WHERE x > 100.0)",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_group_by_every_aggregate_is_that_of_the_batch() {
    for aggregate in AGGREGATES {
        is_the_batch(&format!("SELECT {aggregate} AS a FROM t WHERE i > 2"), &batches()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_key_every_aggregate_is_that_of_the_batch() {
    for aggregate in AGGREGATES {
        is_the_batch(&format!("SELECT k, {aggregate} AS a FROM t WHERE i > 2 GROUP BY k"), &batches()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_aggregates_without_group_by_have_one_state() {
    is_the_batch("SELECT round(corr(x, y), 9), avg(x), count(*), max(x), avg(d) FROM t WHERE i > 2", &batches()).await;
}

/// Columns of the type Null: DataFusion fails with GROUP BY, and answers NULL without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bits_of_a_column_without_type_are_null() {
    for function in ["bit_and", "bit_or", "bit_xor"] {
        let all = format!("SELECT {function}(nothing) AS a, count(*) AS n FROM t");
        assert_eq!(answer(&all, &batches()).await, ["NULL | 11"]);
        let by_key = format!("SELECT k, {function}(nothing) AS a, count(*) AS n FROM t GROUP BY k");
        assert_eq!(answer(&by_key, &batches()).await, ["\"a\" | NULL | 7", "\"b\" | NULL | 4"]);
    }
}

/// NaN is above all numbers, wherever it comes: Spark's order. DataFusion goes by the order of the rows with GROUP BY.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nan_is_the_greatest_number() {
    let nan = f64::NAN;
    let batch = |numbers: &[f64]| rows(&numbers.iter().map(|x| ("a", Some(*x), Some(1))).collect::<Vec<_>>());
    for numbers in [
        vec![batch(&[1.0, nan]), batch(&[3.0, 4.0])],
        vec![batch(&[3.0, 4.0]), batch(&[nan, 1.0])],
        vec![batch(&[nan]), batch(&[3.0]), batch(&[-nan, 1.0]), batch(&[2.0])],
    ] {
        for as_type in ["x", "arrow_cast(x, 'Float32')", "arrow_cast(x, 'Float16')"] {
            let all = format!("SELECT max({as_type}) AS a, min({as_type}) AS b FROM t");
            let one = if as_type.contains("16") { "1" } else { "1.0" };
            assert_eq!(answer(&all, &numbers).await, [format!("NaN | {one}")], "{all}");
            let by_key = format!("SELECT k, max({as_type}) AS a, min({as_type}) AS b FROM t GROUP BY k");
            assert_eq!(answer(&by_key, &numbers).await, [format!("\"a\" | NaN | {one}")], "{by_key}");
        }
    }
    let only_nan = [batch(&[nan]), batch(&[nan])];
    assert_eq!(answer("SELECT max(x) AS a, min(x) AS b FROM t", &only_nan).await, ["NaN | NaN"]);
    let none = [rows(&[("a", None, None)]), rows(&[])];
    assert_eq!(answer("SELECT max(x) AS a, min(x) AS b FROM t", &none).await, ["NULL | NULL"]);
    let infinite = [batch(&[f64::NEG_INFINITY]), batch(&[f64::NEG_INFINITY])];
    assert_eq!(answer("SELECT max(x) AS a, min(x) AS b FROM t", &infinite).await, ["-inf | -inf"]);
}

/// Whatever a function makes of DISTINCT by itself. NULL is a value, which most functions pass over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn distinct_values_count_once() {
    let batches = [
        rows(&[("a", Some(1.0), Some(4)), ("a", Some(0.0), Some(6)), ("a", None, None)]),
        rows(&[("a", Some(-0.0), Some(4)), ("a", Some(1.0), Some(4)), ("a", None, None)]),
        rows(&[("a", Some(5.0), Some(11)), ("a", Some(f64::NAN), None), ("a", Some(f64::NAN), Some(6))]),
    ];
    for (aggregate, expected) in [
        ("count(DISTINCT x)", "4"),
        ("count(DISTINCT i)", "3"),
        ("count(DISTINCT arrow_cast(x, 'Float32'))", "4"),
        ("count(DISTINCT x) FILTER (WHERE x < 5)", "2"),
        ("avg(DISTINCT x) FILTER (WHERE x <= 5)", "2.0"),
        ("sum(DISTINCT x) FILTER (WHERE x <= 5)", "6.0"),
        ("median(DISTINCT x) FILTER (WHERE x <= 5)", "1.0"),
        ("array_agg(DISTINCT x ORDER BY x DESC) FILTER (WHERE x <= 5)", "[5.0, 1.0, 0.0]"),
        ("array_agg(DISTINCT i ORDER BY i)", "[4, 6, 11, ]"),
        ("string_agg(DISTINCT k, ', ')", "\"a\""),
        ("bit_xor(DISTINCT i)", "9"),
        ("avg(DISTINCT d)", "PT7S"),
        ("round(stddev(DISTINCT i), 6)", "3.605551"),
        ("round(stddev_pop(DISTINCT i), 6)", "2.94392"),
        ("round(var(DISTINCT i), 6)", "13.0"),
        ("approx_median(DISTINCT i)", "6.0"),
        ("approx_distinct(DISTINCT i)", "3"),
        ("max(DISTINCT x) FILTER (WHERE x <= 5)", "5.0"),
        ("max(DISTINCT x)", "NaN"),
        ("sum_ignoring_distinct(DISTINCT i)", "21"),
        ("mean_in_two_forms(DISTINCT i)", "7.0"),
        ("round(corr(DISTINCT i, i), 6)", "1.0"),
        ("regr_count(DISTINCT i, i)", "3"),
    ] {
        assert_eq!(answer(&format!("SELECT {aggregate} AS a FROM t"), &batches).await, [expected], "{aggregate}");
        let by_key = format!("SELECT k, {aggregate} AS a FROM t GROUP BY k");
        assert_eq!(answer(&by_key, &batches).await, [format!("\"a\" | {expected}")], "{aggregate}");
    }
    let nothing = [rows(&[]), rows(&[])];
    let empty = "SELECT count(DISTINCT x) AS a, stddev(DISTINCT x) AS b, sum_ignoring_distinct(DISTINCT i) AS c FROM t";
    assert_eq!(answer(empty, &nothing).await, ["0 | NULL | NULL"]);
}

/// Functions of a user whose two codes keep different things between batches.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_two_codes_of_a_users_function_never_meet() {
    for aggregate in ["mean_in_two_forms(i)", "mean_in_two_forms(i) FILTER (WHERE x > 1.0)", "sum_ignoring_distinct(i)"]
    {
        is_the_batch(&format!("SELECT {aggregate} AS a FROM t WHERE i > 2"), &batches()).await;
        is_the_batch(&format!("SELECT k, {aggregate} AS a FROM t WHERE i > 2 GROUP BY k"), &batches()).await;
    }
}

/// `max(struct(time, text))` is how the last row of a key is found: what is kept is one value per key, and not the
/// batches that these values came in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_row_of_each_key_is_all_that_is_kept() {
    const KEYS: i64 = 4_000;
    const LIMIT: usize = 48 << 20;
    let batch = |number: i64| {
        let rows = 0..2 * KEYS;
        let text = |row: i64| format!("row {row} of batch {number}, a text that does not fit into a view");
        RecordBatch::try_from_iter(vec![
            ("k", Arc::new(rows.clone().map(|row| Some(row % KEYS)).collect::<Int64Array>()) as ArrayRef),
            (
                "ts",
                Arc::new(rows.clone().map(|row| Some(number * 10 + row / KEYS)).collect::<TimestampMicrosecondArray>()),
            ),
            ("text", Arc::new(rows.map(|row| Some(text(row))).collect::<StringViewArray>())),
        ])
        .unwrap()
    };
    let source = MemorySource::new(batch(0).schema()).partitions(2).adds_per_batch(1);
    (0..6).for_each(|number| source.add(table::deal(&batch(number), 2).unwrap()).unwrap());
    let runtime = RuntimeEnvBuilder::new().with_memory_limit(LIMIT, 1.0).build_arc().unwrap();
    let ctx = SessionContext::new_with_config_rt(SessionConfig::new(), runtime);
    ctx.register_stream("t", source).unwrap();
    let sink = MemorySink::new();
    let sql = "SELECT k, max(named_struct('ts', ts, 'text', text))['text'] AS last, \
               min(make_array(text))[1] AS least FROM t GROUP BY k";
    let query = ctx.streaming_sql(sql).await.unwrap().write_stream(sink.clone()).output_mode(OutputMode::Update);
    let query = query.checkpoint_store(memory_store()).partitions(2).trigger(Trigger::AvailableNow);
    let query = finish(query).await.unwrap();
    let last = row_lines(&sink.batch(sink.last_batch().unwrap()).unwrap()).unwrap();
    assert_eq!(last.len() as i64, KEYS);
    let expected = |key: i64| {
        let text = |row: i64, batch: i64| format!("row {row} of batch {batch}, a text that does not fit into a view");
        let least = text(key, 0).min(text(key + KEYS, 0));
        format!("{key} | {:?} | {least:?}", text(key + KEYS, 5))
    };
    for key in [0, 1, 77, KEYS - 1] {
        assert!(last.contains(&expected(key)), "{}", expected(key));
    }
    let held = query.last_progress().unwrap().state_operators[0].memory_used_bytes;
    assert!(held < 4_000 * KEYS as u64, "{held} bytes are kept for {KEYS} keys");
}

/// The order of structs and lists is that of their parts, a missing part first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_greatest_struct_and_list() {
    let batches = [
        rows(&[("b", Some(1.0), Some(4)), ("a", Some(-0.0), Some(2))]),
        rows(&[("a", None, Some(7)), ("b", Some(f64::NAN), None), ("b", Some(1.0), Some(5))]),
        rows(&[("a", Some(0.0), Some(1)), ("a", Some(0.0), None)]),
    ];
    let sql = "SELECT k, max(named_struct('x', x, 'i', i)) AS a, min(named_struct('x', x, 'i', i)) AS b, \
               max(make_array(i, 1)) AS c, min(make_array(i)) FILTER (WHERE i IS NOT NULL) AS d FROM t GROUP BY k";
    assert_eq!(
        answer(sql, &batches).await,
        [
            "\"a\" | {x: 0.0, i: 2} | {x: , i: 7} | [7, 1] | [1]",
            "\"b\" | {x: NaN, i: } | {x: 1.0, i: 4} | [5, 1] | [4]",
        ]
    );
    let all = "SELECT max(named_struct('x', x, 'i', i)) AS a, min(make_array(i)) FILTER (WHERE i > 100) AS b FROM t";
    assert_eq!(answer(all, &batches).await, ["{x: NaN, i: } | NULL"]);
}

/// A checkpoint of a release that let the two codes of a function meet is continued where they agree, and refused by name
/// where they do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_older_releases_kept_is_continued_or_refused_truthfully() {
    for (aggregates, refused) in [
        ("count(*) AS a, avg(x) AS b, max(x) AS c", None),
        ("count(*) AS a, corr(x, y) AS b", Some("corr(")),
        ("mean_in_two_forms(i) AS a", Some("mean_in_two_forms(")),
        ("sum_ignoring_distinct(DISTINCT i) AS a", Some("sum_ignoring_distinct(DISTINCT")),
    ] {
        let sql = format!("SELECT {aggregates} FROM t");
        let checkpoint = tempfile::tempdir().unwrap();
        let source = MemorySource::new(batches()[0].schema()).partitions(2).adds_per_batch(1);
        let (sink, all) = (MemorySink::new(), batches());
        let run = async |rows: &RecordBatch| {
            source.add(table::deal(rows, 2).unwrap()).unwrap();
            let ctx = SessionContext::new();
            register(&ctx);
            ctx.register_stream("t", source.clone())?;
            let query = ctx.streaming_sql(&sql).await?.write_stream(sink.clone()).output_mode(OutputMode::Complete);
            let store = local_checkpoint(checkpoint.path());
            finish(query.checkpoint_store(store).partitions(2).trigger(Trigger::AvailableNow)).await.map(|_| ())
        };
        run(&all[0]).await.unwrap();
        // As it was written before revisions.
        let state = checkpoint.path().join("state");
        let specs = std::fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().path());
        let specs = specs.into_iter().find(|path| text(path).contains("operators.")).unwrap();
        let written = std::fs::read_to_string(&specs).unwrap();
        assert!(written.contains(",\"revision\":1"), "{written}");
        std::fs::write(&specs, written.replace(",\"revision\":1", "")).unwrap();
        match (run(&all[3]).await, refused) {
            (Ok(()), None) => {
                let answer = row_lines(&sink.batch(sink.last_batch().unwrap()).unwrap()).unwrap();
                assert_eq!(answer, batch_answer(&sql, &[all[0].clone(), all[3].clone()]).await.unwrap());
            }
            (Err(error), Some(named)) => {
                assert_eq!(error.kind(), ErrorKind::IncompatibleCheckpoint, "{error}");
                let said = error.to_string();
                assert!(said.contains(named) && said.contains("kept something wrong"), "{said}");
            }
            (result, _) => panic!("{sql}: {result:?}"),
        }
    }
}

/// Where our code stands in for DataFusion's. A test that fails here says that DataFusion has fixed something: ours may
/// go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datafusion_still_needs_ours() {
    let batches = [rows(&[
        ("a", Some(f64::NAN), Some(4)),
        ("a", Some(0.0), Some(6)),
        ("a", Some(-0.0), Some(6)),
        ("a", Some(1.0), Some(4)),
    ])];
    for (aggregates, wrong) in [
        ("max(x) AS a", Some("\"a\" | 1.0")),
        ("count(DISTINCT x) AS a, count(*) AS n", Some("\"a\" | 4 | 4")),
        ("sum_ignoring_distinct(DISTINCT i) AS a, count(*) AS n", Some("\"a\" | 20 | 4")),
        ("stddev(DISTINCT i) AS a, count(*) AS n", None),
        ("approx_median(DISTINCT i) AS a, count(*) AS n", None),
        ("avg(DISTINCT d) AS a, count(*) AS n", None),
        ("bit_and(nothing) AS a", None),
    ] {
        let answer = batch_answer(&format!("SELECT k, {aggregates} FROM t GROUP BY k"), &batches).await;
        match wrong {
            Some(wrong) => assert_eq!(answer.unwrap(), [wrong], "{aggregates}: fixed upstream"),
            None => assert!(answer.is_err(), "{aggregates}: fixed upstream, it gives {answer:?}"),
        }
    }
}

/// An aggregation that forgets its groups with the batch, as every batch brings the whole answer, has the same functions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aggregates_of_aggregates_in_complete_mode() {
    let batches = [
        rows(&[("a", Some(1.0), Some(4)), ("b", Some(-0.0), Some(6))]),
        rows(&[("c", Some(0.0), Some(4)), ("a", Some(f64::NAN), Some(9))]),
    ];
    let sql = "SELECT count(DISTINCT x) AS a, stddev(DISTINCT i) AS b, sum_ignoring_distinct(DISTINCT i) AS c, max(x) AS d, \
               count(*) AS n FROM (SELECT k, max(x) AS x, min(i) AS i FROM t GROUP BY k)";
    // By key: a is (NaN, 4), b is (0, 6), c is (0, 4).
    assert_eq!(answer(sql, &batches).await, ["2 | 1.4142135623730951 | 10 | NaN | 3"]);
}
