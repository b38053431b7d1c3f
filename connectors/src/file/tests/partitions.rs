//! What a sink writes into the names of folders, a source reads back as it was.

use arrow::array::*;
use arrow::compute::cast;
use arrow::datatypes::{Int32Type, IntervalUnit};
use tidewater::id::PartitionId;
use tidewater::sink::DataWriter;

use super::*;
use crate::file::writer::{Encoding, FilesOfPartition, Layout, Root};
use crate::options::Options;

/// Writes `values` as the partition column of Parquet files, and reads them back as the type they have.
async fn round(values: ArrayRef) -> Vec<(i64, String)> {
    let mut stream = Stream::new();
    let n: ArrayRef = Arc::new(Int64Array::from_iter_values(0..values.len() as i64));
    let rows = RecordBatch::try_from_iter_with_nullable([("k", Arc::clone(&values), true), ("n", n, true)]).unwrap();
    let encoding = Encoding::parse("parquet", &Options::new("a sink", &[], []).unwrap()).unwrap();
    let root = Root::Local(stream.path("in"));
    let layout = Layout::new(root, encoding, &rows.schema(), &["k".to_owned()], None, false).unwrap();
    let mut writer =
        Box::new(FilesOfPartition::new(Arc::new(layout), PartitionId(0), &stream.session.runtime_env().memory_pool));
    writer.write(rows.clone()).await.unwrap();
    writer.finish().await.unwrap();

    let source = FileSource::parquet(stream.input()).with_schema(rows.schema());
    let mut reader = stream.open(&source).await.unwrap();
    let range = stream.next(&mut reader, ReadLimit::Configured).await.unwrap();
    let scan = ScanRequest::new(vec![0, 1], Source::schema(&source));
    let plan = reader.bind(&range, &scan).await.unwrap();
    let found = datafusion::physical_plan::collect(plan, stream.session.task_ctx()).await.unwrap();
    let mut different = vec![];
    let mut seen = 0;
    for batch in found {
        let n = batch.column(1).as_primitive::<arrow::datatypes::Int64Type>().clone();
        for row in 0..batch.num_rows() {
            let place = n.value(row) as usize;
            seen += 1;
            if batch.column(0).slice(row, 1).to_data() != values.slice(place, 1).to_data() {
                different.push((place as i64, format!("{:?}", batch.column(0).slice(row, 1))));
            }
        }
    }
    assert_eq!(seen, values.len());
    different.sort();
    different
}

fn timestamps(unit: TimeUnit, zone: Option<&str>) -> ArrayRef {
    let per_second = match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    };
    let second = 1_704_067_200;
    let values = Int64Array::from(vec![
        Some(second * per_second),
        Some(second * per_second + 1),
        Some(second * per_second + per_second / 2),
        Some(-1),
        Some(0),
        None,
    ]);
    cast(&values, &DataType::Timestamp(unit, zone.map(Into::into))).unwrap()
}

#[tokio::test]
async fn every_type_comes_back_as_it_was_written() {
    use TimeUnit::{Microsecond, Millisecond, Nanosecond, Second};
    let texts = StringArray::from(vec![
        Some("plain"),
        Some("a b/c=d%41"),
        Some("__HIVE_DEFAULT_PARTITION__"),
        Some("tab\tline\nquote'\"\\ {[]}^#?*:"),
        Some("ünï · ☃ \u{85}\u{7f}"),
        Some("trailing. "),
        Some(".hidden"),
        None,
    ]);
    let bytes: Vec<Option<&[u8]>> =
        vec![Some(b"text"), Some(b"\xff\xfe\x00\x01"), Some(b"a/b=%41\n"), Some("ü\u{0}".as_bytes()), None];
    let ints = Int64Array::from(vec![Some(0), Some(-5), Some(100), None]);
    let floats = Float64Array::from(vec![
        Some(0.1),
        Some(-1e300),
        Some(f64::INFINITY),
        Some(f64::NEG_INFINITY),
        Some(5e-324),
        Some(3.0),
        None,
    ]);
    let mut all: Vec<ArrayRef> = vec![
        Arc::new(BooleanArray::from(vec![Some(true), Some(false), None])),
        Arc::new(UInt64Array::from(vec![u64::MAX, 0])),
        Arc::new(Int64Array::from(vec![i64::MIN, i64::MAX])),
        Arc::new(floats),
        Arc::new(Float32Array::from(vec![f32::MIN_POSITIVE, 16_777_217.0, f32::INFINITY])),
        Arc::new(Float16Array::from_iter_values([1.5, -65504.0].map(half_of))),
        Arc::new(Date32Array::from(vec![Some(19_723), Some(-719_162), Some(2_932_897), None])),
        Arc::new(Date64Array::from(vec![19_723 * 86_400_000, -86_400_000])),
        Arc::new(Time32SecondArray::from(vec![0, 86_399])),
        Arc::new(Time32MillisecondArray::from(vec![1, 86_399_999])),
        Arc::new(Time64MicrosecondArray::from(vec![1, 86_399_999_999])),
        Arc::new(Time64NanosecondArray::from(vec![1, 86_399_999_999_999])),
        Arc::new(Decimal128Array::from(vec![1, -12_345, 0]).with_precision_and_scale(10, 2).unwrap()),
        Arc::new(
            Decimal256Array::from_iter_values([1.into(), (-12_345).into()]).with_precision_and_scale(50, 4).unwrap(),
        ),
        Arc::new(Decimal32Array::from(vec![1, -12_345]).with_precision_and_scale(9, 2).unwrap()),
        Arc::new(Decimal64Array::from(vec![1, -12_345]).with_precision_and_scale(18, 2).unwrap()),
        Arc::new(texts.clone()),
        cast(&texts, &DataType::LargeUtf8).unwrap(),
        cast(&texts, &DataType::Utf8View).unwrap(),
        Arc::new(texts.iter().collect::<DictionaryArray<Int32Type>>()),
        Arc::new(BinaryArray::from(bytes.clone())),
        Arc::new(LargeBinaryArray::from(bytes.clone())),
        Arc::new(BinaryViewArray::from_iter(bytes)),
        Arc::new(FixedSizeBinaryArray::try_from_iter([[0xff_u8, 0, 7], *b"a/b"].iter()).unwrap()),
    ];
    for of in [DataType::Int8, DataType::Int16, DataType::Int32] {
        all.push(cast(&ints, &of).unwrap());
    }
    for of in [DataType::UInt8, DataType::UInt16, DataType::UInt32] {
        all.push(cast(&Int64Array::from(vec![0, 100]), &of).unwrap());
    }
    for unit in [Second, Millisecond, Microsecond, Nanosecond] {
        for zone in [None, Some("UTC"), Some("+02:00"), Some("-09:30"), Some("Europe/Berlin")] {
            all.push(timestamps(unit, zone));
        }
    }
    for values in all {
        let of = values.data_type().clone();
        let different = round(values).await;
        assert!(different.is_empty(), "{of}: {different:?}");
    }
}

fn half_of(value: f32) -> <arrow::datatypes::Float16Type as arrow::datatypes::ArrowPrimitiveType>::Native {
    <arrow::datatypes::Float16Type as arrow::datatypes::ArrowPrimitiveType>::Native::from_f32(value)
}

/// Spark's rule: neither an empty text nor no bytes have a name of their own.
#[tokio::test]
async fn what_is_empty_comes_back_as_null() {
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["", "x"]));
    assert_eq!(round(texts).await.len(), 1);
    let bytes: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"", b"x"]));
    assert_eq!(round(bytes).await.len(), 1);
}

#[test]
fn what_has_no_name_that_can_be_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for of in [DataType::Duration(TimeUnit::Second), DataType::Interval(IntervalUnit::DayTime)] {
        let schema = Schema::new(vec![Field::new("k", of.clone(), true), Field::new("v", DataType::Int64, true)]);
        let encoding = Encoding::parse("json", &Options::new("a sink", &[], []).unwrap()).unwrap();
        let root = Root::Local(folder.path().to_owned());
        let error = Layout::new(root, encoding, &schema, &["k".to_owned()], None, false).unwrap_err();
        assert!(error.message().contains("cannot partition by `k`"), "{error}");
    }
}
