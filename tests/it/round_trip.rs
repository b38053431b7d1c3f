//! What a file sink wrote, a file source reads as it was: random rows of every type that a format holds.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int8Array,
    Int64Array, Int64Builder, ListBuilder, MapBuilder, StringArray, StringBuilder, StructArray,
    TimestampMicrosecondArray, UInt64Array,
};
use arrow::datatypes::{DataType, Field};
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::prelude::*;
use tidewater::prelude::*;
use tidewater_connectors::file::{FileSink, FileSource};

use crate::job::{PARTITIONS, add, finish, text, to_the_end};

const ROWS: usize = 40;

/// A small generator of numbers: the same for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn within(&mut self, limit: i64) -> i64 {
        (self.next() as i64) % limit
    }

    /// So many values, one in four null.
    fn values<T>(&mut self, mut make: impl FnMut(&mut Self) -> T) -> Vec<Option<T>> {
        (0..ROWS).map(|_| (self.below(4) > 0).then(|| make(self))).collect()
    }

    fn text(&mut self) -> String {
        const PARTS: [&str; 16] =
            ["a", "Z", "7", "\"", "\\", ",", "\n", "\r", "\r\n", " ", "\t", "é", "🌊", "#", "'", "null"];
        (0..self.below(7)).map(|_| PARTS[self.below(PARTS.len() as u64) as usize]).collect()
    }

    fn float(&mut self) -> f64 {
        match self.below(8) {
            0 => f64::NAN,
            1 => f64::INFINITY,
            2 => f64::NEG_INFINITY,
            3 => -0.0,
            4 => f64::MIN_POSITIVE / 8.0,
            5 => self.within(1000) as f64,
            _ => f64::from_bits(self.next() & !(0x7FF << 52) | ((self.below(2046) + 1) << 52)),
        }
    }

    /// A time in microseconds, from the year −6000 to 10000.
    fn time(&mut self) -> i64 {
        self.within(2_900_000) * 86_400_000_000 + self.within(86_400_000_000)
    }
}

/// Columns that every format holds.
fn plain(random: &mut Random) -> Vec<(&'static str, ArrayRef)> {
    let decimals = Decimal128Array::from(random.values(|r| i128::from(r.within(i64::MAX))));
    let times = TimestampMicrosecondArray::from(random.values(Random::time));
    vec![
        ("text", Arc::new(StringArray::from(random.values(Random::text))) as ArrayRef),
        ("yes", Arc::new(BooleanArray::from(random.values(|r| r.below(2) == 0)))),
        ("small", Arc::new(Int8Array::from(random.values(|r| r.next() as i8)))),
        ("long", Arc::new(Int64Array::from(random.values(|r| r.next() as i64)))),
        ("unsigned", Arc::new(UInt64Array::from(random.values(Random::next)))),
        ("float", Arc::new(Float32Array::from(random.values(|r| r.float() as f32)))),
        ("double", Arc::new(Float64Array::from(random.values(Random::float)))),
        ("decimal", Arc::new(decimals.with_precision_and_scale(20, 4).unwrap())),
        ("day", Arc::new(Date32Array::from(random.values(|r| r.within(2_900_000) as i32)))),
        ("local", Arc::new(times.clone())),
        ("instant", Arc::new(times.with_timezone("UTC"))),
    ]
}

/// Columns that CSV does not hold.
fn nested(random: &mut Random) -> Vec<(&'static str, ArrayRef)> {
    let mut lists = ListBuilder::new(Int64Builder::new());
    let mut maps = MapBuilder::new(None, StringBuilder::new(), Int64Builder::new());
    for _ in 0..ROWS {
        for number in 0..random.below(4) {
            lists.values().append_option((number != 2).then_some(number as i64));
            maps.keys().append_value(format!("{}{number}", random.text()));
            maps.values().append_option((number != 1).then_some(number as i64));
        }
        lists.append(true);
        maps.append(true).unwrap();
    }
    let bytes: Vec<Vec<u8>> = (0..ROWS).map(|_| (0..random.below(5)).map(|_| random.next() as u8).collect()).collect();
    let fields = vec![Field::new("n", DataType::Float64, true), Field::new("s", DataType::Utf8, true)];
    let parts: Vec<ArrayRef> = vec![
        Arc::new(Float64Array::from(random.values(Random::float))),
        Arc::new(StringArray::from(random.values(Random::text))),
    ];
    vec![
        ("list", Arc::new(lists.finish()) as ArrayRef),
        ("map", Arc::new(maps.finish())),
        ("bytes", Arc::new(BinaryArray::from_iter_values(bytes))),
        ("parts", Arc::new(StructArray::new(fields.into(), parts, None))),
    ]
}

/// The rows as text, in order.
fn texts(batches: &[RecordBatch]) -> Vec<String> {
    let options = FormatOptions::new().with_null("·");
    let mut rows = vec![];
    for batch in batches {
        let columns: Vec<_> =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        let row = |row| columns.iter().map(|column| format!("{:?}", column.value(row).to_string())).collect::<Vec<_>>();
        rows.extend((0..batch.num_rows()).map(|at| row(at).join("|")));
    }
    rows.sort();
    rows
}

async fn comes_back(format: &str, options: &[(&str, &str)], read_options: &[(&str, &str)], seed: u64) {
    let mut random = Random(seed);
    let mut columns = plain(&mut random);
    if format != "csv" {
        columns.extend(nested(&mut random));
    }
    let rows = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)));
    let rows = rows.unwrap();
    let place = tempfile::tempdir().unwrap();
    let folder = text(&place.path().join("files"));
    let options = |more: &[(&str, &str)]| -> Vec<(String, String)> {
        options.iter().chain(more).map(|(name, value)| (name.to_string(), value.to_string())).collect()
    };

    let source = MemorySource::new(rows.schema()).partitions(PARTITIONS);
    add(&source, &rows);
    let stream = SessionContext::new().read_stream(source).unwrap();
    let sink = FileSink::from_options(format, Some(&folder), options(&[])).unwrap();
    finish(to_the_end(stream, sink, &place.path().join("writing"))).await.unwrap();

    let source =
        FileSource::from_options(format, Some(&folder), options(read_options)).unwrap().with_schema(rows.schema());
    let stream = SessionContext::new().read_stream(source).unwrap();
    let sink = MemorySink::new();
    finish(to_the_end(stream, sink.clone(), &place.path().join("reading"))).await.unwrap();
    assert_eq!(texts(&sink.batches()), texts(&[rows]), "{format}, seed {seed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_csv_come_back() {
    for seed in 0..40 {
        let options = [("header", "true"), ("nullValue", "\\N"), ("sep", if seed % 2 == 0 { "," } else { "\t" })];
        comes_back("csv", &options, &[("multiLine", "true")], seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_json_come_back() {
    for seed in 0..40 {
        comes_back("json", &[], &[], seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_parquet_come_back() {
    for seed in 0..40 {
        comes_back("parquet", &[], &[], seed).await;
    }
}

/// Most lines are malformed: each costs what a good one costs, and half a record is no record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dirty_files_are_read_in_one_go() {
    const LINES: usize = 200_000;
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("in");
    std::fs::create_dir(&folder).unwrap();
    let csv: String = (0..LINES)
        .map(|i| match i % 4 {
            0 => format!("{i},good\n"),
            1 => format!("x{i},bad\n"),
            2 => format!("{i}\n"),
            _ => format!("x,\"two\n{i},lines\"\n"),
        })
        .collect();
    std::fs::write(folder.join("a.csv"), csv).unwrap();
    let schema = arrow::datatypes::Schema::new(vec![
        Field::new("n", DataType::Int64, true),
        Field::new("s", DataType::Utf8, true),
    ]);
    let source = FileSource::csv(text(&folder)).with_schema(schema).option("mode", "DROPMALFORMED");
    let stream = SessionContext::new().read_stream(source).unwrap();
    let sink = MemorySink::new();
    let query = finish(to_the_end(stream, sink.clone(), &place.path().join("checkpoint"))).await.unwrap();
    let rows = sink.batches();
    assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), LINES / 4);
    assert!(texts(&rows).iter().all(|row| row.ends_with("|\"good\"")));
    assert_eq!(query.last_progress().unwrap().sources[0].metrics["malformedRowsDropped"], (LINES / 4 * 3).to_string());
}
