//! What DataFusion gives row by row, on streams: static tables, unions, UDFs, SQL, the clock; and queries that feed each
//! other.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use arrow::record_batch::RecordBatch;
use datafusion::logical_expr::{ColumnarValue, Volatility, create_udf};
use datafusion::prelude::*;
use serde_json::{Value, json};
use tidewater::prelude::*;
use tidewater::testing::{StreamTest, assert_same_rows, table};
use tidewater_connectors::file::{FileSink, FileSource};
use tidewater_workspace::events::events;
use tidewater_workspace::files::{Format, committed_rows, put_rows};

use crate::job::{
    DOUBLED, PARTITIONS, add, doubled, doubled_answer, finish, json_events, memory_events, text, to_the_end,
};

const EVENTS: [(&str, &str); 3] = [("ts", "timestamp"), ("k", "string"), ("v", "long")];

/// A static table is read once and kept, and read again after the interval the user sets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_table_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let names = dir.path().join("names");
    let name_schema = table::schema(&[("id", "string"), ("name", "string")]).unwrap();
    let put_names = |name: &str, rows: Value| {
        put_rows(&names, name, Format::Json, &table::rows(&name_schema, &rows).unwrap()).unwrap();
    };
    put_names("1.json", json!([["a", "Anna"]]));
    let (ctx, clock, sink) = (SessionContext::new(), ManualClock::at(0), MemorySink::new());
    let source = MemorySource::new(table::schema(&[("k", "string")]).unwrap()).partitions(PARTITIONS);
    let persons = ctx.read_json(text(&names), JsonReadOptions::default().schema(&name_schema)).await.unwrap();
    let joined = ctx.read_stream(source.clone()).unwrap();
    let joined = joined.join(persons, JoinType::Left, &["k"], &["id"], None).unwrap();
    let query = joined
        .select(vec![col("k"), col("name")])
        .unwrap()
        .write_stream(sink.clone())
        .partitions(PARTITIONS)
        .clock(Arc::new(clock.clone()))
        .refresh_static_tables_every("1 minute")
        .start()
        .await
        .unwrap();
    let output = table::schema(&[("k", "string"), ("name", "string")]).unwrap();
    let ask = async |batch: u64, expected: Value| {
        source.add(table::deal(&table::rows(&source_schema(), &json!([["a"], ["b"]])).unwrap(), 2).unwrap()).unwrap();
        query.process_all_available().await.unwrap();
        assert_same_rows(&[table::rows(&output, &expected).unwrap()], &sink.batch(BatchId(batch)).unwrap());
    };
    ask(0, json!([["a", "Anna"], ["b", null]])).await;
    put_names("2.json", json!([["b", "Bert"]]));
    clock.advance_ms(59_000);
    ask(1, json!([["a", "Anna"], ["b", null]])).await;
    clock.advance_ms(1_000);
    ask(2, json!([["a", "Anna"], ["b", "Bert"]])).await;
    query.stop().await.unwrap();
}

fn source_schema() -> arrow::datatypes::SchemaRef {
    table::schema(&[("k", "string")]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_union_of_streams() {
    StreamTest::new("union", async |ctx| {
        Ok(ctx.sql("SELECT k, v FROM a WHERE v > 1 UNION ALL SELECT upper(k), v * 10 FROM b").await?)
    })
    .source("a", &EVENTS)
    .source("b", &EVENTS)
    .add("a", json!([[null, "x", 1], [null, "y", 2]]))
    .add("b", json!([[null, "z", 3]]))
    .process()
    .expect_new(json!([["y", 2], ["Z", 30]]))
    .add("b", json!([[null, "only b", 4]]))
    .process()
    .expect_new(json!([["ONLY B", 40]]))
    .restart()
    .process()
    .expect_new(json!([]))
    .run()
    .await;
}

/// A stream that is read at two places of a query.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_stream_at_two_places() {
    StreamTest::new("self union", async |ctx| {
        Ok(ctx.sql("SELECT v FROM a UNION ALL SELECT -v FROM a WHERE v > 1").await?)
    })
    .source("a", &EVENTS)
    .add("a", json!([[null, "x", 1], [null, "y", 2], [null, "z", 3]]))
    .process()
    .expect_new(json!([[1], [2], [3], [-2], [-3]]))
    .run()
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_with_a_static_table_and_unnest() {
    StreamTest::new("unnest and join", async |ctx| {
        ctx.sql("CREATE OR REPLACE TABLE names AS VALUES ('a', 'Anna'), ('b', 'Bert')").await?.collect().await?;
        let sql =
            "SELECT e.k, n.column2 AS name, e.part FROM (SELECT k, unnest(make_array(v, v + 1)) AS part FROM events) e
                   LEFT JOIN names n ON e.k = n.column1";
        Ok(ctx.sql(sql).await?)
    })
    .source("events", &EVENTS)
    .add("events", json!([[null, "a", 1], [null, "c", 5]]))
    .process()
    .expect_new(json!([["a", "Anna", 1], ["a", "Anna", 2], ["c", null, 5], ["c", null, 6]]))
    .restart()
    .add("events", json!([[null, "b", 7]]))
    .process()
    .expect_new(json!([["b", "Bert", 7], ["b", "Bert", 8]]))
    .run()
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_udf() {
    StreamTest::new("udf", async |ctx| {
        let int = DataType::Int64;
        let square = |values: &[ColumnarValue]| {
            let values = ColumnarValue::values_to_arrays(values)?;
            let squares: Int64Array = values[0].as_primitive::<Int64Type>().unary(|v| v * v);
            Ok(ColumnarValue::Array(Arc::new(squares) as ArrayRef))
        };
        ctx.register_udf(create_udf("square", vec![int.clone()], int, Volatility::Immutable, Arc::new(square)));
        Ok(ctx.sql("SELECT square(v) AS s FROM events WHERE square(v) > 4").await?)
    })
    .source("events", &EVENTS)
    .add("events", json!([[null, "a", 2], [null, "b", 3], [null, "c", -4], [null, "d", null]]))
    .process()
    .expect_new(json!([[9], [16]]))
    .run()
    .await;
}

/// `now()` is the clock of the batch: the same in every row and in every repetition.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn now_is_the_time_of_the_batch() {
    StreamTest::new("now()", async |ctx| {
        Ok(ctx.sql("SELECT k, CAST(now() AS BIGINT) / 1000000000 AS second FROM events").await?)
    })
    .source("events", &EVENTS)
    .add("events", json!([[null, "a", 1], [null, "b", 2]]))
    .process()
    .expect_new(json!([["a", 1_704_067_200], ["b", 1_704_067_200]]))
    .advance_ms(60_000)
    .add("events", json!([[null, "c", 3]]))
    .process()
    .expect_new(json!([["c", 1_704_067_260]]))
    .run()
    .await;
}

/// A watermark moves and is kept over a restart, and drops nothing where nothing is remembered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watermark_without_state() {
    StreamTest::new("watermark", async |ctx| {
        let events = ctx.table("events").await?.with_watermark("ts", "10 seconds")?;
        Ok(events.select(vec![col("k")])?)
    })
    .source("events", &EVENTS)
    .start()
    .expect_watermark("1970-01-01T00:00:00Z")
    .add("events", json!([["2024-01-01T00:01:00Z", "a", 1]]))
    .process()
    .expect_new(json!([["a"]]))
    .expect_watermark("2024-01-01T00:00:50Z")
    .restart()
    .expect_watermark("2024-01-01T00:00:50Z")
    .add("events", json!([["2023-01-01T00:00:00Z", "late", 1]]))
    .process()
    .expect_new(json!([["late"]]))
    .expect_watermark("2024-01-01T00:00:50Z")
    .run()
    .await;
}

/// Another number of partitions at a restart changes nothing but the work's division.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_may_change_at_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    let rows: Vec<RecordBatch> = (0..6).map(|i| events(i, 40).unwrap()).collect();
    for (i, partitions) in [1, 4, 2].into_iter().enumerate() {
        for file in [2 * i, 2 * i + 1] {
            put_rows(&input, &format!("{file}.json"), Format::Json, &rows[file]).unwrap();
        }
        let stream = doubled(SessionContext::new().read_stream(json_events(&input)).unwrap()).unwrap();
        let writer =
            to_the_end(stream, FileSink::parquet(text(&dir.path().join("out"))), &dir.path().join("checkpoint"));
        finish(writer.partitions(partitions)).await.unwrap();
    }
    let written = committed_rows(&dir.path().join("out"), Format::Parquet, &table::schema(&DOUBLED).unwrap()).await;
    assert_same_rows(&doubled_answer(&rows).await, &written.unwrap());
}

/// What a file sink wrote is read as a stream through its manifest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_query_reads_what_another_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let source = memory_events();
    let rows: Vec<RecordBatch> = (0..3).map(|i| events(i, 20).unwrap()).collect();
    rows.iter().for_each(|rows| add(&source, rows));
    let stream = doubled(SessionContext::new().read_stream(source).unwrap()).unwrap();
    finish(to_the_end(stream, FileSink::parquet(text(&path("middle"))), &path("checkpoint 1"))).await.unwrap();
    // A file that no manifest names does not exist.
    put_rows(&path("middle"), "part-stray.parquet", Format::Parquet, &events(9, 9).unwrap()).unwrap();

    let schema = table::schema(&DOUBLED).unwrap();
    let sink = MemorySink::new();
    let middle = FileSource::parquet(text(&path("middle"))).with_schema(Arc::clone(&schema));
    let stream = SessionContext::new().read_stream(middle).unwrap();
    finish(to_the_end(stream, sink.clone(), &path("checkpoint 2"))).await.unwrap();
    assert_same_rows(&doubled_answer(&rows).await, &sink.batches());
}

/// A checkpoint belongs to a query of so many sources.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_number_of_sources_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (ctx, source) = (SessionContext::new(), memory_events());
    add(&source, &events(1, 3).unwrap());
    let one = ctx.read_stream(source.clone()).unwrap();
    finish(to_the_end(one.clone(), MemorySink::new(), dir.path())).await.unwrap();
    let two = one.union(ctx.read_stream(memory_events()).unwrap()).unwrap();
    let refused = finish(to_the_end(two, MemorySink::new(), dir.path())).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::IncompatibleCheckpoint, "{refused}");
}

/// A source whose schema is not what the query was written for is found before anything is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_column_is_named() {
    let ctx = SessionContext::new();
    let schema = Arc::new(Schema::new(vec![Field::new("v", DataType::Int64, true)]));
    ctx.register_stream("events", MemorySource::new(schema)).unwrap();
    let unknown = Error::from(ctx.sql("SELECT nobody FROM events").await.unwrap_err());
    assert!(unknown.to_string().contains("nobody"), "{unknown}");
}
