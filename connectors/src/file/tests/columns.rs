//! Which column of a Parquet file is which column of the source, and which rows its statistics may keep from being read.

use arrow::array::{Float32Array, Float64Array, Int32Array, StructArray};
use arrow::datatypes::Fields;
use datafusion::logical_expr::{in_list, not};
use parquet::data_type::{Int96, Int96Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::*;

fn ints(values: &[i64]) -> ArrayRef {
    Arc::new(Int64Array::from(values.to_vec()))
}

fn texts(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn parquet(stream: &Stream, fields: Vec<Field>) -> FileSource {
    FileSource::parquet(stream.input()).with_schema(Schema::new(fields))
}

#[tokio::test]
async fn a_column_is_found_whatever_its_case_and_what_no_file_has_is_counted() {
    let mut stream = Stream::new();
    stream.put_parquet("a.parquet", vec![("ID", ints(&[1, 2])), ("Name", texts(&["x", "y"]))], 10);
    stream.put_parquet("b.parquet", vec![("Id", ints(&[3])), ("note", texts(&["n"]))], 10);
    let fields = vec![
        Field::new("id", DataType::Int64, true),
        Field::new("name", DataType::Utf8, true),
        Field::new("gone", DataType::Utf8, true),
    ];
    let source = parquet(&stream, fields);
    let mut reader = stream.open(&source).await.unwrap();
    let range = stream.next(&mut reader, ReadLimit::Configured).await.unwrap();
    let rows = stream.read(&source, &mut reader, &range, &[]).await.unwrap();
    assert_eq!(rows, ["1|x|·", "2|y|·", "3|·|·"]);
    assert_eq!(reader.metrics()["columnsInNoFile"], "1", "`name` is in one of them");
    let filters = [col("id").gt(lit(1_i64)), col("name").is_not_null()];
    let rows = stream.read(&source, &mut reader, &range, &filters).await.unwrap();
    assert!(rows.contains(&"2|y|·".to_owned()), "{rows:?}");

    let source = source.case_sensitive(true);
    let mut reader = stream.open(&source).await.unwrap();
    assert_eq!(stream.read(&source, &mut reader, &range, &[]).await.unwrap(), ["·|·|·"; 3]);
    assert_eq!(reader.metrics()["columnsInNoFile"], "3");
}

#[tokio::test]
async fn columns_of_a_csv_file_are_where_its_header_says() {
    for mode in [ParseMode::FailFast, ParseMode::DropMalformed, ParseMode::Permissive] {
        let mut stream = Stream::new();
        stream.put("1.csv", "k,v\na,1\n", 10);
        stream.put("2.csv", "v,k\n2,b\n", 11);
        stream.put("3.csv", "extra,V,\"k\"\nx,3,c\n", 12);
        stream.put("4.csv", "v\n4\n", 13);
        let source = csv(&stream).option("header", "true").option("mode", mode.name());
        let mut reader = stream.open(&source).await.unwrap();
        let range = stream.next(&mut reader, ReadLimit::Configured).await.unwrap();
        let rows = stream.read(&source, &mut reader, &range, &[]).await.unwrap();
        assert_eq!(rows, ["a|1", "b|2", "c|3", "·|4"], "{mode:?}");
        let rows = stream.read_columns(&source, &mut reader, &range, vec![1], &[]).await.unwrap();
        assert_eq!(rows, ["1", "2", "3", "4"], "{mode:?}");
        assert_eq!(reader.metrics()["columnsInNoFile"], "0");
        stream.put("5.csv", "v\n5\n", 20);
        assert_eq!(stream.rows(&source, &mut reader).await, ["·|5"]);
        assert_eq!(reader.metrics()["columnsInNoFile"], "1");

        // A name that nobody declared beside one that is missing: renamed, or two columns?
        stream.put("6.csv", "key,v\nf,6\n", 30);
        let error = stream.failure(&source).await;
        assert_eq!(error.kind(), ErrorKind::BadInput);
        assert!(error.message().contains("it has `key`, and lacks `k`"), "{error}");
        assert!(error.file().unwrap().ends_with("6.csv"), "{error}");
        let by_position = source.option("enforceSchema", "true");
        let mut reader = stream.open(&by_position).await.unwrap();
        let last = OffsetRange::new(Some(Offset::parse(r#"{"logOffset":1}"#).unwrap()), stream.at.clone().unwrap());
        assert_eq!(stream.read(&by_position, &mut reader, &last, &[]).await.unwrap(), ["f|6"]);
    }
}

/// Names of JSON fields are compared as they are, as in Spark.
#[tokio::test]
async fn a_field_that_no_json_file_has_is_counted() {
    let mut stream = Stream::new();
    stream.put("a.json", "{\"K\":\"a\",\"v\":null}\n", 10);
    stream.put("b.json", "{\"K\":\"b\",\"v\":2}\n", 10);
    let source = json(&stream);
    let mut reader = stream.open(&source).await.unwrap();
    assert_eq!(stream.rows(&source, &mut reader).await, ["·|2", "·|·"]);
    assert_eq!(reader.metrics()["columnsInNoFile"], "1", "`k`");
    stream.put("c.json", "{\"k\":\"c\"}\n", 20);
    assert_eq!(stream.rows(&source, &mut reader).await, ["c|·"]);
    assert_eq!(reader.metrics()["columnsInNoFile"], "1", "`v`");
}

#[tokio::test]
async fn fields_of_structs_are_found_whatever_their_case() {
    let mut stream = Stream::new();
    let inner: Fields = vec![Field::new("Lat", DataType::Int32, true), Field::new("LON", DataType::Int64, true)].into();
    let columns: Vec<ArrayRef> = vec![Arc::new(Int32Array::from(vec![1, 2])), ints(&[3, 4])];
    let place: ArrayRef = Arc::new(StructArray::new(inner, columns, None));
    stream.put_parquet("a.parquet", vec![("Place", place)], 10);
    let wanted = Fields::from(vec![
        Field::new("lon", DataType::Int64, true),
        Field::new("lat", DataType::Int64, true),
        Field::new("alt", DataType::Int64, true),
    ]);
    let source = parquet(&stream, vec![Field::new("place", DataType::Struct(wanted), true)]);
    let mut reader = stream.open(&source).await.unwrap();
    let rows = stream.rows(&source, &mut reader).await;
    assert_eq!(rows, ["{lon: 3, lat: 1, alt: ·}", "{lon: 4, lat: 2, alt: ·}"]);
    assert_eq!(reader.metrics()["columnsInNoFile"], "1", "place.alt");
}

#[tokio::test]
async fn names_that_two_columns_have_are_refused() {
    let mut stream = Stream::new();
    stream.put_parquet("a.parquet", vec![("id", ints(&[1])), ("ID", ints(&[2])), ("v", ints(&[3]))], 10);
    let source =
        parquet(&stream, vec![Field::new("id", DataType::Int64, true), Field::new("v", DataType::Int64, true)]);
    let error = stream.failure(&source).await;
    assert_eq!(error.kind(), ErrorKind::BadInput);
    assert!(error.message().contains("`id` may mean `id` or `ID`"), "{error}");
    assert!(error.hint().unwrap().contains("caseSensitive"), "{error}");

    // Whoever does not ask for it is not troubled by it.
    let mut reader = stream.open(&source).await.unwrap();
    let range = OffsetRange::new(None, Offset::parse(r#"{"logOffset":0}"#).unwrap());
    assert_eq!(stream.read_columns(&source, &mut reader, &range, vec![1], &[]).await.unwrap(), ["3"]);

    let source = source.case_sensitive(true);
    let mut reader = stream.open(&source).await.unwrap();
    assert_eq!(stream.read(&source, &mut reader, &range, &[]).await.unwrap(), ["1|3"]);
    let both = parquet(&stream, vec![Field::new("id", DataType::Int64, true), Field::new("ID", DataType::Int64, true)]);
    let error = stream.open(&both).await.unwrap_err();
    assert!(error.message().contains("`id` and `ID`"), "{error}");
    let both = both.case_sensitive(true);
    let mut reader = stream.open(&both).await.unwrap();
    assert_eq!(stream.read(&both, &mut reader, &range, &[]).await.unwrap(), ["1|2"]);
}

/// Every comparison of a floating-point column that not a number, or a negative one, fulfils: the row must come, for the plan
/// asks for it by the same predicate.
#[tokio::test]
async fn no_predicate_loses_a_row_that_is_not_a_number() {
    let negative_nan = f64::from_bits(f64::NAN.to_bits() | 1 << 63);
    let doubles: ArrayRef = Arc::new(Float64Array::from(vec![1.0, f64::NAN, 1.0, negative_nan, -0.0]));
    let singles: ArrayRef = Arc::new(Float32Array::from(vec![1.0, f32::NAN, 1.0, -f32::NAN, -0.0]));
    let mut stream = Stream::new();
    stream.put_parquet("a.parquet", vec![("d", doubles), ("f", singles), ("i", ints(&[1, 2, 3, 4, 5]))], 10);
    let fields = vec![
        Field::new("d", DataType::Float64, true),
        Field::new("f", DataType::Float32, true),
        Field::new("i", DataType::Int64, true),
    ];
    let source = parquet(&stream, fields);
    let mut reader = stream.open(&source).await.unwrap();
    let range = stream.next(&mut reader, ReadLimit::Configured).await.unwrap();
    for column in ["d", "f"] {
        let value = |value: f64| if column == "d" { lit(value) } else { lit(value as f32) };
        for filter in [
            col(column).gt(value(5.0)),
            col(column).lt(value(-5.0)),
            col(column).eq(value(f64::NAN)),
            col(column).not_eq(value(1.0)),
            col(column).lt(value(0.0)),
            not(col(column).lt_eq(value(5.0))),
            in_list(col(column), vec![value(f64::NAN), value(7.0)], false),
            col(column).gt(value(5.0)).or(col("i").gt(lit(100_i64))),
        ] {
            let rows = stream.read(&source, &mut reader, &range, std::slice::from_ref(&filter)).await.unwrap();
            assert_eq!(rows.len(), 5, "{filter}");
        }
    }
    // What statistics do say is still used.
    let rows = stream.read(&source, &mut reader, &range, &[col("i").gt(lit(100_i64))]).await.unwrap();
    assert!(rows.is_empty());
}

/// DataFusion prunes floating-point columns by bounds that leave out what is not a number
/// (<https://github.com/apache/datafusion/issues/15812>). Once this fails, `pruning` may trust them again.
#[tokio::test]
async fn upstream_still_loses_rows_that_are_not_a_number() {
    let stream = Stream::new();
    let doubles: ArrayRef = Arc::new(Float64Array::from(vec![1.0, f64::NAN]));
    stream.put_parquet("a.parquet", vec![("d", doubles)], 10);
    let table = stream.session.read_parquet(stream.input(), Default::default()).await.unwrap();
    assert_eq!(table.filter(col("d").gt(lit(5.0))).unwrap().count().await.unwrap(), 0);
}

#[tokio::test]
async fn old_times_of_96_bits_are_what_spark_wrote() {
    let mut bytes = vec![];
    let schema = Arc::new(parse_message_type("message m { optional int96 ts; }").unwrap());
    let mut writer =
        SerializedFileWriter::new(&mut bytes, schema, Arc::new(WriterProperties::builder().build())).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    // Days of the Julian calendar's count: 2440588 is 1970-01-01.
    let at = |day: u32, nanos: u64| {
        let mut value = Int96::new();
        value.set_data(nanos as u32, (nanos >> 32) as u32, day);
        value
    };
    let values = [at(2_440_588, 1_000), at(1_721_426, 0), at(5_373_484, 86_399_999_999_000)];
    column.typed::<Int96Type>().write_batch(&values, Some(&[1, 1, 1, 0]), None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();

    for (zone, expected) in [
        (None, ["0001-01-01T00:00:00", "1970-01-01T00:00:00.000001", "9999-12-31T23:59:59.999999", "·"]),
        (
            Some("+01:00"),
            [
                "+10000-01-01T00:59:59.999999+01:00",
                "0001-01-01T01:00:00+01:00",
                "1970-01-01T01:00:00.000001+01:00",
                "·",
            ],
        ),
    ] {
        let mut stream = Stream::new();
        stream.put("a.parquet", &bytes, 10);
        let ts = DataType::Timestamp(TimeUnit::Microsecond, zone.map(Into::into));
        let source = parquet(&stream, vec![Field::new("ts", ts, true)]);
        let mut reader = stream.open(&source).await.unwrap();
        assert_eq!(stream.rows(&source, &mut reader).await, expected);
    }
    let stream = Stream::new();
    stream.put("a.parquet", "", 9);
    stream.put("odd#1", &bytes, 10);
    let inferred = FileSource::parquet(stream.input()).infer_schema(&stream.session).await.unwrap();
    assert_eq!(
        Source::schema(&inferred).field(0).data_type(),
        &DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
    );
    // What a column of nanoseconds cannot hold is not turned into something else.
    let mut stream = Stream::new();
    stream.put("a.parquet", &bytes, 10);
    let source = parquet(&stream, vec![Field::new("ts", DataType::Timestamp(TimeUnit::Nanosecond, None), true)]);
    assert_eq!(stream.failure(&source).await.kind(), ErrorKind::BadInput);
}
