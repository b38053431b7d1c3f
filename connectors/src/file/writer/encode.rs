//! From rows to the bytes of a file: Parquet, CSV or JSON lines, compressed.
//!
//! An [`Encoding`] says how, once per query; an [`Encoder`] does it for one file and hands out bytes as they become ready,
//! so that no file has to fit into memory.
//!
//! Types that Spark could not read from Parquet are converted: timestamps of any unit are stored in microseconds (what is
//! finer is cut off), 64-bit dates as dates. The engine's own marks on columns stay out of the file.

use std::sync::Arc;

use arrow::array::{ArrayRef, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit};
use arrow::json::WriterBuilder;
use arrow::json::writer::LineDelimited;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use bytes::Bytes;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use futures::channel::mpsc::{self, UnboundedSender};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use parquet::arrow::ArrowWriter;
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use tidewater::error::{Error, ErrorKind, Result};

use super::csv_rows::CsvStyle;
use crate::options::Options;
use crate::values::JsonValues;

/// Field metadata under this prefix means something to a running query only.
const ENGINE_METADATA: &str = "tidewater.";

/// A row group of Parquet that has grown to this is written, as by Spark (`parquet.block.size`): until then it is in memory.
const ROW_GROUP_BYTES: usize = 128 << 20;

/// How rows become bytes.
#[derive(Debug, Clone)]
pub(crate) enum Encoding {
    Parquet { compression: Compression, suffix: &'static str },
    Csv { style: CsvStyle, compression: FileCompressionType },
    Json { compression: FileCompressionType },
}

impl Encoding {
    /// The encoding `format` (`parquet`, `csv`, `json`) with its options by Spark's names.
    pub(crate) fn parse(format: &str, options: &Options) -> Result<Self> {
        let compression = options.get("compression").map(str::to_ascii_lowercase);
        match format {
            "parquet" => {
                let (compression, suffix) = parquet_compression(compression.as_deref().unwrap_or("snappy"))?;
                Ok(Encoding::Parquet { compression, suffix })
            }
            "csv" => {
                let compression = text_compression(compression.as_deref().unwrap_or("none"))?;
                Ok(Encoding::Csv { style: CsvStyle::parse(options)?, compression })
            }
            "json" => Ok(Encoding::Json { compression: text_compression(compression.as_deref().unwrap_or("none"))? }),
            other => Err(Error::unknown("format", other, "the file sink", &["parquet", "csv", "json"])),
        }
    }

    /// How file names end.
    pub(super) fn extension(&self) -> String {
        match self {
            Encoding::Parquet { suffix, .. } => format!("{suffix}.parquet"),
            Encoding::Csv { compression, .. } => format!(".csv{}", text_suffix(compression)),
            Encoding::Json { compression } => format!(".json{}", text_suffix(compression)),
        }
    }

    /// The columns as they are stored, or an error if a column cannot be.
    pub(super) fn stored_schema(&self, schema: &Schema) -> Result<SchemaRef> {
        let convert = matches!(self, Encoding::Parquet { .. });
        let fields: Fields = schema.fields().iter().map(|f| stored_field(f, convert, true)).collect();
        let stored = Arc::new(Schema::new(fields));
        for field in stored.fields() {
            // JSON leaves it out; elsewhere it would be the type of the column for good.
            if !matches!(self, Encoding::Json { .. }) && has_no_type(field.data_type()) {
                return Err(Error::invalid(format!(
                    "column `{}` of type {} cannot be written as {}: nothing but null has the type Null",
                    field.name(),
                    field.data_type(),
                    self.name()
                ))
                .with_hint("cast the column, to text say, or leave it out"));
            }
            // A row of nothing but null meets every check on types that a real row would meet.
            let alone = Arc::new(Schema::new(vec![Arc::clone(field)]));
            let null = RecordBatch::try_new(Arc::clone(&alone), vec![new_null_array(field.data_type(), 1)]);
            let tried = null.map_err(Error::from).and_then(|null| Encoder::new(self, alone)?.write(&null));
            if let Err(e) = tried {
                return Err(Error::invalid(format!(
                    "column `{}` of type {} cannot be written as {}: {}",
                    field.name(),
                    field.data_type(),
                    self.name(),
                    e.message()
                ))
                .with_hint("cast the column to another type, or leave it out")
                .with_source(e));
            }
        }
        Ok(stored)
    }

    fn name(&self) -> &'static str {
        match self {
            Encoding::Parquet { .. } => "parquet",
            Encoding::Csv { .. } => "csv",
            Encoding::Json { .. } => "json",
        }
    }
}

/// Whether the type is that of nothing but nulls, or has such a part.
fn has_no_type(data_type: &DataType) -> bool {
    let part = |field: &FieldRef| has_no_type(field.data_type());
    match data_type {
        DataType::Null => true,
        DataType::Struct(fields) => fields.iter().any(part),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => part(item),
        DataType::Map(entries, _) => part(entries),
        _ => false,
    }
}

fn parquet_compression(name: &str) -> Result<(Compression, &'static str)> {
    Ok(match name {
        "snappy" => (Compression::SNAPPY, ".snappy"),
        "none" | "uncompressed" => (Compression::UNCOMPRESSED, ""),
        "gzip" => (Compression::GZIP(GzipLevel::default()), ".gz"),
        "lz4_raw" | "lz4raw" | "lz4" => (Compression::LZ4_RAW, ".lz4raw"),
        "zstd" => (Compression::ZSTD(ZstdLevel::try_new(3).map_err(|e| not_encoded(&e))?), ".zstd"),
        "brotli" => (Compression::BROTLI(BrotliLevel::default()), ".br"),
        _ => {
            let known = ["snappy", "none", "uncompressed", "gzip", "lz4_raw", "lz4", "zstd", "brotli"];
            return Err(Error::unknown("compression", name, "the Parquet file sink", &known));
        }
    })
}

fn text_compression(name: &str) -> Result<FileCompressionType> {
    Ok(match name {
        "none" | "uncompressed" => FileCompressionType::UNCOMPRESSED,
        "gzip" => FileCompressionType::GZIP,
        "bzip2" => FileCompressionType::BZIP2,
        "zstd" => FileCompressionType::ZSTD,
        _ => {
            return Err(Error::unknown(
                "compression",
                name,
                "the CSV and JSON file sinks",
                &["none", "gzip", "bzip2", "zstd"],
            ));
        }
    })
}

fn text_suffix(compression: &FileCompressionType) -> String {
    use datafusion::common::GetExt;
    compression.get_ext()
}

/// The field without the engine's marks; with `convert`, of a type that Spark reads.
fn stored_field(field: &Field, convert: bool, nullable: bool) -> FieldRef {
    let metadata =
        field.metadata().iter().filter(|(k, _)| !k.starts_with(ENGINE_METADATA)).map(|(k, v)| (k.clone(), v.clone()));
    let data_type = stored_type(field.data_type(), convert);
    Arc::new(Field::new(field.name(), data_type, nullable || field.is_nullable()).with_metadata(metadata.collect()))
}

fn stored_type(data_type: &DataType, convert: bool) -> DataType {
    let inner = |field: &FieldRef| stored_field(field, convert, false);
    match data_type {
        DataType::Timestamp(_, zone) if convert => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        DataType::Date64 if convert => DataType::Date32,
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inner).collect()),
        DataType::List(field) => DataType::List(inner(field)),
        DataType::LargeList(field) => DataType::LargeList(inner(field)),
        DataType::FixedSizeList(field, length) => DataType::FixedSizeList(inner(field), *length),
        DataType::Map(field, sorted) => DataType::Map(inner(field), *sorted),
        other => other.clone(),
    }
}

/// `columns` as rows of `schema`, each cast where its type differs.
pub(super) fn stored_rows(schema: &SchemaRef, columns: &[ArrayRef], rows: usize) -> Result<RecordBatch> {
    let columns = columns
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| match column.data_type() == field.data_type() {
            true => Ok(Arc::clone(column)),
            false => cast(column, field.data_type()),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

/// Encodes the rows of one file.
pub(super) enum Encoder {
    Parquet(Box<ArrowWriter<Vec<u8>>>),
    Text { rows: TextRows, compressor: Option<Compressor> },
}

/// How one row becomes a line.
pub(super) enum TextRows {
    Csv { style: CsvStyle, header_due: bool },
    Json,
}

impl Encoder {
    pub(super) fn new(encoding: &Encoding, schema: SchemaRef) -> Result<Self> {
        let (rows, compression) = match encoding {
            Encoding::Parquet { compression, .. } => {
                let properties = WriterProperties::builder()
                    .set_compression(*compression)
                    .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
                    .build();
                let writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties)).map_err(|e| not_encoded(&e))?;
                return Ok(Encoder::Parquet(Box::new(writer)));
            }
            Encoding::Csv { style, compression } => {
                (TextRows::Csv { header_due: style.header, style: style.clone() }, compression)
            }
            Encoding::Json { compression } => (TextRows::Json, compression),
        };
        let compressor = compression.is_compressed().then(|| Compressor::new(compression)).transpose()?;
        Ok(Encoder::Text { rows, compressor })
    }

    /// Takes some rows; gives the bytes that are ready, perhaps none.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<Bytes> {
        match self {
            Encoder::Parquet(writer) => {
                writer.write(batch).map_err(|e| not_encoded(&e))?;
                Ok(std::mem::take(writer.inner_mut()).into())
            }
            Encoder::Text { rows, compressor } => {
                let bytes = rows.encode(batch)?.into();
                match compressor {
                    Some(compressor) => compressor.push(bytes),
                    None => Ok(bytes),
                }
            }
        }
    }

    /// The bytes that its rows take in memory, as far as it is known.
    pub(super) fn memory(&self) -> usize {
        match self {
            Encoder::Parquet(writer) => writer.memory_size(),
            Encoder::Text { .. } => 0,
        }
    }

    /// Makes bytes of all rows that are [in memory](Self::memory).
    pub(super) fn flush(&mut self) -> Result<Bytes> {
        match self {
            Encoder::Parquet(writer) => {
                writer.flush().map_err(|e| not_encoded(&e))?;
                Ok(std::mem::take(writer.inner_mut()).into())
            }
            Encoder::Text { .. } => Ok(Bytes::new()),
        }
    }

    /// The last bytes of the file.
    pub(super) fn finish(self) -> Result<Bytes> {
        match self {
            Encoder::Parquet(mut writer) => {
                writer.finish().map_err(|e| not_encoded(&e))?;
                Ok(std::mem::take(writer.inner_mut()).into())
            }
            Encoder::Text { compressor: Some(compressor), .. } => compressor.finish(),
            Encoder::Text { compressor: None, .. } => Ok(Bytes::new()),
        }
    }
}

impl TextRows {
    fn encode(&mut self, batch: &RecordBatch) -> Result<Vec<u8>> {
        let mut lines = Vec::new();
        match self {
            TextRows::Csv { style, header_due } => {
                if std::mem::take(header_due) {
                    style.write_header(batch.schema_ref(), &mut lines);
                }
                style.write_rows(batch, &mut lines)?;
            }
            TextRows::Json => {
                let builder = WriterBuilder::new().with_encoder_factory(Arc::new(JsonValues));
                let mut writer = builder.build::<_, LineDelimited>(&mut lines);
                writer.write(batch)?;
                writer.finish()?;
            }
        }
        Ok(lines)
    }
}

/// DataFusion's compressing streams, fed by hand: what goes in at one end is taken from the other as far as it is ready.
pub(super) struct Compressor {
    input: UnboundedSender<datafusion::error::Result<Bytes>>,
    output: BoxStream<'static, datafusion::error::Result<Bytes>>,
}

impl Compressor {
    fn new(compression: &FileCompressionType) -> Result<Self> {
        let (input, fed) = mpsc::unbounded();
        Ok(Compressor { input, output: compression.convert_to_compress_stream(fed.boxed())? })
    }

    fn push(&mut self, bytes: Bytes) -> Result<Bytes> {
        self.input
            .unbounded_send(Ok(bytes))
            .map_err(|_| Error::internal("the compressor stopped before the end of its input"))?;
        self.ready()
    }

    fn finish(mut self) -> Result<Bytes> {
        self.input.close_channel();
        self.ready()
    }

    /// The stream waits for nothing but its input, so "not now" means that it has eaten all there is.
    fn ready(&mut self) -> Result<Bytes> {
        let mut ready = Vec::new();
        while let Some(Some(bytes)) = self.output.next().now_or_never() {
            ready.extend_from_slice(&bytes?);
        }
        Ok(ready.into())
    }
}

/// Parquet writes into memory here, so it can only fail on what it is given.
fn not_encoded(error: &ParquetError) -> Error {
    Error::new(ErrorKind::InvalidQuery, error.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use arrow::array::{Date64Array, Int64Array, StringArray, TimestampNanosecondArray};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReader;

    use super::*;

    fn encoding(format: &str, options: &[(&str, &str)]) -> Result<Encoding> {
        let given = options.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        Encoding::parse(format, &Options::new("the file sink", &["compression", "header"], given)?)
    }

    fn encode(encoding: &Encoding, batches: &[RecordBatch]) -> Vec<u8> {
        let schema = encoding.stored_schema(batches[0].schema_ref()).unwrap();
        let mut encoder = Encoder::new(encoding, Arc::clone(&schema)).unwrap();
        let mut bytes = vec![];
        for batch in batches {
            let rows = stored_rows(&schema, batch.columns(), batch.num_rows()).unwrap();
            bytes.extend_from_slice(&encoder.write(&rows).unwrap());
        }
        bytes.extend_from_slice(&encoder.finish().unwrap());
        bytes
    }

    fn rows() -> RecordBatch {
        let marks = [("tidewater.delay", "5"), ("comment", "kept")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let zone: Option<Arc<str>> = Some("UTC".into());
        let schema = Schema::new(vec![
            Field::new("ts", DataType::Timestamp(TimeUnit::Nanosecond, zone), false).with_metadata(marks.into()),
            Field::new("s", DataType::Utf8, true),
            Field::new("d", DataType::Date64, true),
        ]);
        let ts = TimestampNanosecondArray::from(vec![1_704_067_200_000_001_999, 0]).with_timezone("UTC");
        let s = StringArray::from(vec![Some("a,\"b\""), None]);
        let d = Date64Array::from(vec![Some(86_400_000), None]);
        RecordBatch::try_new(Arc::new(schema), vec![Arc::new(ts), Arc::new(s), Arc::new(d)]).unwrap()
    }

    #[test]
    fn parquet_holds_what_spark_can_read_and_no_engine_marks() {
        for codec in ["snappy", "none", "gzip", "lz4", "zstd", "brotli"] {
            let bytes = encode(&encoding("parquet", &[("compression", codec)]).unwrap(), &[rows(), rows()]);
            let read: Vec<_> =
                ParquetRecordBatchReader::try_new(Bytes::from(bytes), 100).unwrap().map(Result::unwrap).collect();
            let schema = read[0].schema();
            assert!(matches!(schema.field(0).data_type(), DataType::Timestamp(TimeUnit::Microsecond, Some(_))));
            assert_eq!(schema.field(0).metadata().get("comment").map(String::as_str), Some("kept"));
            assert!(!schema.field(0).metadata().contains_key("tidewater.delay"));
            assert_eq!(schema.field(2).data_type(), &DataType::Date32);
            assert_eq!(read.iter().map(RecordBatch::num_rows).sum::<usize>(), 4, "{codec}");
        }
    }

    #[test]
    fn json_leaves_nulls_out() {
        let bytes = encode(&encoding("json", &[]).unwrap(), &[rows()]);
        let first = r#"{"ts":"2024-01-01T00:00:00.000001999Z","s":"a,\"b\"","d":"1970-01-02T00:00:00"}"#;
        assert_eq!(String::from_utf8(bytes).unwrap(), format!("{first}\n{{\"ts\":\"1970-01-01T00:00:00Z\"}}\n"));
    }

    #[test]
    fn numbers_that_json_has_not_are_text_as_in_spark() {
        use arrow::array::{ArrayRef, Float32Array, Float64Array};
        let f: ArrayRef = Arc::new(Float64Array::from(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300]));
        let g: ArrayRef = Arc::new(Float32Array::from(vec![Some(f32::NAN), None, Some(0.1), Some(-0.0)]));
        let b: ArrayRef = Arc::new(arrow::array::BinaryArray::from_vec(vec![b"abc", b"", b"\x00", b"\xff"]));
        let rows = RecordBatch::try_from_iter_with_nullable([("f", f, true), ("g", g, true), ("b", b, true)]).unwrap();
        let text = String::from_utf8(encode(&encoding("json", &[]).unwrap(), std::slice::from_ref(&rows))).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                r#"{"f":"NaN","g":"NaN","b":"YWJj"}"#,
                r#"{"f":"Infinity","b":""}"#,
                r#"{"f":"-Infinity","g":0.1,"b":"AA=="}"#,
                r#"{"f":1e300,"g":-0.0,"b":"/w=="}"#
            ]
        );
        let rows = rows.project(&[0, 1]).unwrap();
        let text = String::from_utf8(encode(&encoding("csv", &[]).unwrap(), &[rows])).unwrap();
        assert_eq!(text, "NaN,NaN\nInfinity,\n-Infinity,0.1\n1e300,-0.0\n");
    }

    #[test]
    fn text_is_compressed_while_it_is_written() {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        let batch = RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from_iter_values(0..50_000))]).unwrap();
        let batches = [batch.clone(), batch];
        let plain = encode(&encoding("csv", &[("header", "true")]).unwrap(), &batches);
        assert!(plain.starts_with(b"n\n0\n1\n"));
        for (codec, kind) in [
            ("gzip", FileCompressionType::GZIP),
            ("bzip2", FileCompressionType::BZIP2),
            ("zstd", FileCompressionType::ZSTD),
        ] {
            let packed = encode(&encoding("csv", &[("compression", codec), ("header", "true")]).unwrap(), &batches);
            assert!(packed.len() < plain.len() / 2, "{codec}");
            let mut back = vec![];
            kind.convert_read(std::io::Cursor::new(packed)).unwrap().read_to_end(&mut back).unwrap();
            assert!(back == plain, "{codec}");
        }
    }

    #[test]
    fn names_end_as_sparks_do() {
        for (format, codec, end) in [
            ("parquet", "snappy", ".snappy.parquet"),
            ("parquet", "uncompressed", ".parquet"),
            ("parquet", "ZSTD", ".zstd.parquet"),
            ("csv", "none", ".csv"),
            ("csv", "gzip", ".csv.gz"),
            ("json", "zstd", ".json.zst"),
        ] {
            assert_eq!(encoding(format, &[("compression", codec)]).unwrap().extension(), end);
        }
    }

    #[test]
    fn what_cannot_be_written_is_said_before_anything_is() {
        let nested = Schema::new(vec![Field::new_list("tags", Field::new_list_field(DataType::Utf8, true), true)]);
        let error = encoding("csv", &[]).unwrap().stored_schema(&nested).unwrap_err();
        assert!(error.message().contains("column `tags`") && error.message().contains("csv"), "{error}");
        assert!(encoding("json", &[]).unwrap().stored_schema(&nested).is_ok());
        let nothing = Schema::new(vec![
            Field::new("id", DataType::Int64, true),
            Field::new_list("late", Field::new_list_field(DataType::Null, true), true),
        ]);
        for format in ["parquet", "csv"] {
            let error = encoding(format, &[]).unwrap().stored_schema(&nothing).unwrap_err();
            assert!(error.message().contains("column `late`") && error.message().contains("Null"), "{error}");
        }
        assert!(encoding("json", &[]).unwrap().stored_schema(&nothing).is_ok());
        let error = encoding("parquet", &[("compression", "gzipp")]).unwrap_err();
        assert!(error.message().contains("did you mean `gzip`"), "{error}");
    }
}
