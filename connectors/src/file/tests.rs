//! The file source from a folder to rows, without a query around it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::execution::SessionState;
use datafusion::physical_plan::displayable;
use datafusion::prelude::{Expr, SessionContext, col, lit};
use parquet::arrow::ArrowWriter;
use tidewater::checkpoint::{MetadataStore, memory_store};
use tidewater::clock::ManualClock;
use tidewater::error::{Error, ErrorKind, Result};
use tidewater::source::{MicroBatchStream, Offset, OffsetRange, ReadLimit, ScanRequest, Source, SourceContext};
use tidewater::testing::open_by_splits;

use super::*;

/// A folder of input, a checkpoint, and the offset reached.
struct Stream {
    root: tempfile::TempDir,
    session: SessionContext,
    log: Arc<dyn MetadataStore>,
    at: Option<Offset>,
}

impl Stream {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("in")).unwrap();
        Stream { root, session: SessionContext::new(), log: memory_store(), at: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn input(&self) -> String {
        self.path("in").display().to_string()
    }

    /// Writes a file, modified at `seconds`.
    fn put(&self, name: &str, contents: impl AsRef<[u8]>, seconds: u64) {
        let path = self.path("in").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, contents).unwrap();
        touch(&path, seconds);
    }

    fn put_parquet(&self, name: &str, columns: Vec<(&str, ArrayRef)>, seconds: u64) {
        let rows = RecordBatch::try_from_iter(columns).unwrap();
        let mut bytes = vec![];
        let mut writer = ArrowWriter::try_new(&mut bytes, rows.schema(), None).unwrap();
        writer.write(&rows).unwrap();
        writer.close().unwrap();
        self.put(name, bytes, seconds);
    }

    fn state(&self) -> SessionState {
        self.session.state()
    }

    async fn open(&self, source: &FileSource) -> Result<Box<dyn MicroBatchStream>> {
        let clock = Arc::new(ManualClock::at(0));
        let mut context = SourceContext::new(Arc::clone(&self.log), Arc::new(self.state()), clock);
        context.partitions = 2;
        open_by_splits(source, context).await
    }

    /// The next range, if there is anything new; moves on.
    async fn next(&mut self, reader: &mut Box<dyn MicroBatchStream>, limit: ReadLimit) -> Option<OffsetRange> {
        let end = reader.latest_offset(self.at.as_ref(), limit).await.unwrap().batch_end?;
        let range = OffsetRange::new(self.at.replace(end.clone()), end);
        (!range.is_empty()).then_some(range)
    }

    /// The rows of the next batch, sorted; none if there is no batch.
    async fn rows(&mut self, source: &FileSource, reader: &mut Box<dyn MicroBatchStream>) -> Vec<String> {
        match self.next(reader, ReadLimit::Configured).await {
            Some(range) => self.read(source, reader, &range, &[]).await.unwrap(),
            None => vec![],
        }
    }

    async fn read(
        &self,
        source: &FileSource,
        reader: &mut Box<dyn MicroBatchStream>,
        range: &OffsetRange,
        filters: &[Expr],
    ) -> Result<Vec<String>> {
        let all = (0..Source::schema(source).fields().len()).collect();
        self.read_columns(source, reader, range, all, filters).await
    }

    async fn read_columns(
        &self,
        source: &FileSource,
        reader: &mut Box<dyn MicroBatchStream>,
        range: &OffsetRange,
        projection: Vec<usize>,
        filters: &[Expr],
    ) -> Result<Vec<String>> {
        let schema = Arc::new(Source::schema(source).project(&projection).unwrap());
        let scan = ScanRequest::new(projection, Arc::clone(&schema)).with_filters(filters.to_vec());
        let plan = reader.bind(range, &scan).await?;
        assert_eq!(plan.schema(), schema);
        let batches = datafusion::physical_plan::collect(plan, self.session.task_ctx()).await.map_err(Error::from)?;
        let mut lines = vec![];
        for rows in batches {
            assert_eq!(rows.schema().fields(), schema.fields());
            let options = FormatOptions::default().with_null("·");
            let columns: Vec<_> =
                rows.columns().iter().map(|c| ArrayFormatter::try_new(c, &options).unwrap()).collect();
            for row in 0..rows.num_rows() {
                lines.push(columns.iter().map(|c| c.value(row).to_string()).collect::<Vec<_>>().join("|"));
            }
        }
        lines.sort();
        Ok(lines)
    }

    /// What the next batch fails with.
    async fn failure(&mut self, source: &FileSource) -> Error {
        let mut reader = self.open(source).await.unwrap();
        let range = self.next(&mut reader, ReadLimit::Configured).await.unwrap();
        self.read(source, &mut reader, &range, &[]).await.unwrap_err()
    }
}

fn touch(path: &Path, seconds: u64) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("k", DataType::Utf8, false), Field::new("v", DataType::Int64, false)]))
}

fn csv(stream: &Stream) -> FileSource {
    FileSource::csv(stream.input()).with_schema(schema())
}

fn json(stream: &Stream) -> FileSource {
    FileSource::json(stream.input()).with_schema(schema())
}

/// Batches of single-row files, the names of the files being their first column.
async fn batches(stream: &mut Stream, source: &FileSource, reader: &mut Box<dyn MicroBatchStream>) -> Vec<String> {
    let mut batches = vec![];
    loop {
        let rows = stream.rows(source, reader).await;
        if rows.is_empty() {
            return batches;
        }
        batches.push(rows.iter().map(|row| row.split('|').next().unwrap()).collect::<Vec<_>>().join(""));
    }
}

fn put_named(stream: &Stream, names: &str, from_second: u64) {
    for (i, name) in names.chars().enumerate() {
        stream.put(&format!("{name}.csv"), format!("{name},1"), from_second + i as u64);
    }
}

#[tokio::test]
async fn limits_cut_the_input_into_batches_oldest_first() {
    for by_bytes in [false, true] {
        let mut stream = Stream::new();
        let source = csv(&stream);
        // A file has three bytes.
        let source = if by_bytes { source.max_bytes_per_trigger(6) } else { source.max_files_per_trigger(2) };
        let mut reader = stream.open(&source).await.unwrap();
        put_named(&stream, "abc", 10);
        assert_eq!(batches(&mut stream, &source, &mut reader).await, ["ab", "c"]);
        put_named(&stream, "defg", 20);
        assert_eq!(batches(&mut stream, &source, &mut reader).await, ["de", "fg"]);
        put_named(&stream, "hijkl", 30);
        assert_eq!(batches(&mut stream, &source, &mut reader).await, ["hi", "jk", "l"]);
    }
}

#[tokio::test]
async fn the_newest_may_come_first_and_then_none_is_too_old() {
    let mut stream = Stream::new();
    let source = csv(&stream).max_files_per_trigger(1).latest_first(true).max_file_age("1 second");
    put_named(&stream, "ab", 10);
    put_named(&stream, "c", 5000);
    let mut reader = stream.open(&source).await.unwrap();
    assert_eq!(batches(&mut stream, &source, &mut reader).await, ["c", "b", "a"]);
}

#[tokio::test]
async fn files_much_older_than_the_newest_are_left_out() {
    let mut stream = Stream::new();
    let source = csv(&stream).max_file_age("1 minute");
    put_named(&stream, "a", 10);
    put_named(&stream, "b", 5000);
    let mut reader = stream.open(&source).await.unwrap();
    assert_eq!(batches(&mut stream, &source, &mut reader).await, ["ab"]);
    put_named(&stream, "c", 4000);
    put_named(&stream, "d", 4950);
    assert_eq!(batches(&mut stream, &source, &mut reader).await, ["d"]);
}

#[tokio::test]
async fn once_takes_everything_and_a_frozen_source_nothing_new() {
    let mut stream = Stream::new();
    let source = csv(&stream).max_files_per_trigger(1);
    put_named(&stream, "abc", 10);
    let mut reader = stream.open(&source).await.unwrap();
    let range = stream.next(&mut reader, ReadLimit::All).await.unwrap();
    assert_eq!(stream.read(&source, &mut reader, &range, &[]).await.unwrap().len(), 3);

    put_named(&stream, "de", 20);
    let mut reader = stream.open(&source).await.unwrap();
    reader.prepare_for_available_now().await.unwrap();
    put_named(&stream, "f", 30);
    assert_eq!(batches(&mut stream, &source, &mut reader).await, ["d", "e"]);
}

#[tokio::test]
async fn a_restart_reads_no_file_twice_and_repeats_a_batch_as_it_was() {
    let mut stream = Stream::new();
    let source = csv(&stream);
    put_named(&stream, "ab", 10);
    let mut reader = stream.open(&source).await.unwrap();
    let range = stream.next(&mut reader, ReadLimit::Configured).await.unwrap();
    assert_eq!(range.end.json(), r#"{"logOffset":0}"#);
    put_named(&stream, "c", 30);

    let mut again = stream.open(&source).await.unwrap();
    assert_eq!(stream.read(&source, &mut again, &range, &[]).await.unwrap(), ["a|1", "b|1"]);
    assert_eq!(batches(&mut stream, &source, &mut again).await, ["c"]);
    let log = stream.log.read("1").await.unwrap().unwrap();
    let path = stream.path("in").display().to_string();
    assert_eq!(log, format!("v1\n{{\"path\":\"file://{path}/c.csv\",\"timestamp\":30000,\"batchId\":1}}"));
}

#[tokio::test]
async fn what_was_offered_before_a_crash_is_the_next_batch() {
    let mut stream = Stream::new();
    let source = csv(&stream).max_files_per_trigger(1);
    put_named(&stream, "ab", 10);
    let mut reader = stream.open(&source).await.unwrap();
    // The source log is written, and the batch never comes to be.
    reader.latest_offset(None, ReadLimit::Configured).await.unwrap();
    let mut again = stream.open(&source).await.unwrap();
    assert_eq!(batches(&mut stream, &source, &mut again).await, ["a", "b"]);

    let lost = Offset::parse(r#"{"logOffset":7}"#).unwrap();
    let error = again.latest_offset(Some(&lost), ReadLimit::Configured).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DamagedCheckpoint);
}

#[tokio::test]
async fn a_second_run_fences_the_first() {
    let stream = Stream::new();
    let source = csv(&stream);
    let mut first = stream.open(&source).await.unwrap();
    let mut second = stream.open(&source).await.unwrap();
    second.latest_offset(None, ReadLimit::Configured).await.unwrap();
    put_named(&stream, "a", 10);
    first.latest_offset(None, ReadLimit::Configured).await.unwrap();
    put_named(&stream, "b", 20);
    let error = second.latest_offset(None, ReadLimit::Configured).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
}

/// What the run before offered while this one was starting is the next batch of this one.
#[tokio::test]
async fn a_run_that_starts_takes_over_what_was_offered_meanwhile() {
    let mut stream = Stream::new();
    let source = csv(&stream);
    put_named(&stream, "a", 10);
    let mut first = stream.open(&source).await.unwrap();
    let mut second = stream.open(&source).await.unwrap();
    first.latest_offset(None, ReadLimit::Configured).await.unwrap();
    put_named(&stream, "b", 20);
    assert_eq!(batches(&mut stream, &source, &mut second).await, ["a", "b"]);
}

#[tokio::test]
async fn a_file_that_is_gone_is_named() {
    let mut stream = Stream::new();
    let source = csv(&stream);
    put_named(&stream, "a", 10);
    let mut reader = stream.open(&source).await.unwrap();
    let range = stream.next(&mut reader, ReadLimit::Configured).await.unwrap();
    std::fs::remove_file(stream.path("in/a.csv")).unwrap();
    let mut again = stream.open(&source).await.unwrap();
    for reader in [&mut reader, &mut again] {
        let error = stream.read(&source, reader, &range, &[]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceLostData, "{error}");
        assert!(error.file().unwrap().ends_with("/in/a.csv"), "{error}");
    }
}

#[tokio::test]
async fn a_malformed_line_stops_the_query_and_is_named() {
    let mut stream = Stream::new();
    stream.put("a.csv", "k,v\na,1\nb,x\nc,3\n", 10);
    let error = stream.failure(&csv(&stream).option("header", "true")).await;
    assert_eq!(error.kind(), ErrorKind::BadInput);
    assert!(error.file().unwrap().ends_with("/in/a.csv"));
    assert!(error.message().starts_with("line 3 is malformed: "), "{error}");
    assert!(error.message().contains("'x'") && error.message().contains("Int64"), "{error}");

    let mut stream = Stream::new();
    stream.put("a.json", "{\"k\":\"a\",\"v\":1}\n\n{\"k\":\"b\",\"v\":\n2}\n", 10);
    let error = stream.failure(&json(&stream)).await;
    assert!(error.message().starts_with("line 3 is malformed: "), "{error}");
    assert!(error.hint().unwrap().contains("fix the line"), "{error}");
}

#[tokio::test]
async fn malformed_lines_may_be_dropped_or_kept_and_are_counted() {
    let with_corrupt = Schema::new(vec![
        Field::new("v", DataType::Int64, true),
        Field::new("_corrupt_record", DataType::Utf8, true),
        Field::new("k", DataType::Utf8, true),
    ]);
    let csv_text = "1,a\nx,b\n3,c,d\n\"4,e\n5,f\n";
    let json_text = "{\"v\":1,\"k\":\"a\"}\n{\"v\":\"x\",\"k\":\"b\"}\nnonsense\n{\"v\":4}{}\n{\"k\":\"f\",\"v\":5}\n";
    for (name, text, kept) in [
        ("a.csv", csv_text, ["·|\"4,e|·", "·|3,c,d|·", "·|x,b|·"]),
        ("a.json", json_text, ["·|nonsense|·", "·|{\"v\":\"x\",\"k\":\"b\"}|·", "·|{\"v\":4}{}|·"]),
    ] {
        for mode in [ParseMode::DropMalformed, ParseMode::Permissive] {
            let mut stream = Stream::new();
            stream.put(name, text, 10);
            let source =
                if name.ends_with("csv") { FileSource::csv(stream.input()) } else { FileSource::json(stream.input()) };
            let (schema, mut expected, counted) = if mode == ParseMode::Permissive {
                let rows = kept.iter().map(|s| s.to_string()).collect();
                (with_corrupt.clone(), rows, "malformedRowsKept")
            } else {
                (with_corrupt.project(&[0, 2]).unwrap(), vec![], "malformedRowsDropped")
            };
            let good = if mode == ParseMode::Permissive { ["1|·|a", "5|·|f"] } else { ["1|a", "5|f"] };
            expected.extend(good.map(str::to_owned));
            expected.sort();
            let source = source.with_schema(schema).option("mode", mode.name());
            let mut reader = stream.open(&source).await.unwrap();
            let range = stream.next(&mut reader, ReadLimit::Configured).await.unwrap();
            assert_eq!(stream.read(&source, &mut reader, &range, &[]).await.unwrap(), expected);
            assert_eq!(reader.metrics()[counted], "3");
            // The count does not depend on what is looked at, and a repeated batch does not count twice.
            let rows = stream.read_columns(&source, &mut reader, &range, vec![], &[]).await.unwrap();
            assert_eq!(rows.len(), expected.len());
            assert_eq!(reader.metrics()[counted], "3");
        }
    }
}

#[tokio::test]
async fn few_malformed_lines_among_many_are_found() {
    let mut stream = Stream::new();
    let line = |i: usize| if i % 20_000 == 19_999 { format!("k{i},bad\n") } else { format!("k{i},{i}\n") };
    stream.put("a.csv", (0..100_000).map(line).collect::<String>(), 10);
    let source = csv(&stream).option("mode", "DROPMALFORMED");
    let mut reader = stream.open(&source).await.unwrap();
    assert_eq!(stream.rows(&source, &mut reader).await.len(), 99_995);
    assert_eq!(reader.metrics()["malformedRowsDropped"], "5");
    let error = {
        stream.log = memory_store();
        stream.at = None;
        stream.failure(&csv(&stream)).await
    };
    assert!(error.message().starts_with("line 20000 is malformed"), "{error}");
}

#[tokio::test]
async fn timestamps_are_iso_8601_with_or_without_a_zone() {
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let schema = Schema::new(vec![Field::new("ts", utc, true)]);
    let texts = ["2024-01-01T00:00:01.000Z", "2024-01-01 00:00:01", "2024-01-01T01:00:01+01:00"];
    let mut stream = Stream::new();
    stream.put("a.csv", texts.join("\n"), 10);
    let source = FileSource::csv(stream.input()).with_schema(schema.clone());
    let mut reader = stream.open(&source).await.unwrap();
    assert_eq!(stream.rows(&source, &mut reader).await, ["2024-01-01T00:00:01Z"; 3]);

    let mut stream = Stream::new();
    stream.put("a.json", texts.map(|t| format!("{{\"ts\":\"{t}\"}}")).join("\n"), 10);
    let source = FileSource::json(stream.input()).with_schema(schema);
    let mut reader = stream.open(&source).await.unwrap();
    assert_eq!(stream.rows(&source, &mut reader).await, ["2024-01-01T00:00:01Z"; 3]);
}

#[tokio::test]
async fn compressed_files_are_read_by_their_ending_and_torn_ones_named() {
    async fn compressed(kind: FileCompressionType, text: &'static str) -> Vec<u8> {
        use futures::{StreamExt, TryStreamExt};
        let bytes = futures::stream::iter([Ok(bytes::Bytes::from_static(text.as_bytes()))]).boxed();
        let chunks: Vec<_> = kind.convert_to_compress_stream(bytes).unwrap().try_collect().await.unwrap();
        chunks.concat()
    }
    let mut stream = Stream::new();
    for (kind, end) in [
        (FileCompressionType::GZIP, "gz"),
        (FileCompressionType::BZIP2, "bz2"),
        (FileCompressionType::XZ, "xz"),
        (FileCompressionType::ZSTD, "zst"),
    ] {
        stream.put(&format!("a.csv.{end}"), compressed(kind, "a,1\nb,2\n").await, 10);
    }
    let source = csv(&stream);
    let mut reader = stream.open(&source).await.unwrap();
    assert_eq!(stream.rows(&source, &mut reader).await.len(), 8);

    let whole = compressed(FileCompressionType::GZIP, "a,1\nb,2\n").await;
    stream.put("torn.csv.gz", &whole[..whole.len() - 9], 20);
    let error = stream.failure(&source).await;
    assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
    assert!(error.file().unwrap().ends_with("torn.csv.gz"), "{error}");
}

#[tokio::test]
async fn columns_come_from_folders_for_every_format() {
    let fields = [("v", DataType::Int64), ("day", DataType::Date32), ("k", DataType::Utf8)];
    let schema = Schema::new(fields.map(|(name, of)| Field::new(name, of, true)).to_vec());
    let expected = ["1|2024-01-01|x y/z=1", "2|2024-01-02|·"];
    let folders = ["day=2024-01-01/k=x y%2Fz%3D1", "day=2024-01-02/k=__HIVE_DEFAULT_PARTITION__"];
    for format in ["csv", "json", "parquet"] {
        let mut stream = Stream::new();
        for (v, folder) in (1..).zip(folders) {
            let name = format!("{folder}/f.{format}");
            match format {
                "csv" => stream.put(&name, format!("{v}\n"), 10),
                "json" => stream.put(&name, format!("{{\"v\":{v}}}\n"), 10),
                _ => stream.put_parquet(&name, vec![("v", Arc::new(Int64Array::from(vec![v])) as _)], 10),
            }
        }
        let source = FileSource::from_options(format, Some(&stream.input()), []).unwrap().with_schema(schema.clone());
        let mut reader = stream.open(&source).await.unwrap();
        let range = stream.next(&mut reader, ReadLimit::Configured).await.unwrap();
        assert_eq!(stream.read(&source, &mut reader, &range, &[]).await.unwrap(), expected, "{format}");
        let swapped = stream.read_columns(&source, &mut reader, &range, vec![2, 0], &[]).await.unwrap();
        assert_eq!(swapped, ["x y/z=1|1", "·|2"], "{format}");
        let none = stream.read_columns(&source, &mut reader, &range, vec![], &[]).await.unwrap();
        assert_eq!(none.len(), 2, "{format}");
        let filter = [col("day").eq(lit("2024-01-02")), col("events.v").gt(lit(0_i64))];
        let filtered = stream.read(&source, &mut reader, &range, &filter).await.unwrap();
        assert!(filtered.contains(&expected[1].to_owned()), "{format}");

        let inferred = FileSource::from_options(format, Some(&stream.input()), []).unwrap();
        let inferred = inferred.infer_schema(&stream.session).await.unwrap();
        let inferred = Source::schema(&inferred);
        assert_eq!(inferred.index_of("k").unwrap(), 2, "{format}");
        assert!(inferred.fields().iter().all(|field| field.is_nullable()));
    }
}

#[tokio::test]
async fn parquet_columns_may_be_missing_and_widen_but_not_change() {
    let mut stream = Stream::new();
    let ints: ArrayRef = Arc::new(arrow::array::Int32Array::from(vec![1, 2]));
    stream.put_parquet("a.parquet", vec![("v", ints)], 10);
    let longs: ArrayRef = Arc::new(Int64Array::from(vec![3]));
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
    stream.put_parquet("b.parquet", vec![("k", Arc::clone(&texts)), ("v", longs)], 10);
    let source = FileSource::parquet(stream.input()).with_schema(schema());
    let mut reader = stream.open(&source).await.unwrap();
    assert_eq!(stream.rows(&source, &mut reader).await, ["x|3", "·|1", "·|2"]);

    stream.put_parquet("c.parquet", vec![("v", texts)], 20);
    let error = stream.failure(&source).await;
    assert_eq!(error.kind(), ErrorKind::BadInput);
    assert!(error.file().unwrap().ends_with("c.parquet"), "{error}");
    assert!(error.message().contains("column `v` is Utf8 in this file, and the query expects Int64"), "{error}");

    stream.put("d.parquet", "not parquet at all", 30);
    let error = stream.failure(&source).await;
    assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
    assert!(error.file().unwrap().ends_with("d.parquet"), "{error}");
}

#[tokio::test]
async fn a_plan_says_what_it_reads() {
    let mut stream = Stream::new();
    put_named(&stream, "abc", 10);
    let source = csv(&stream);
    let mut reader = stream.open(&source).await.unwrap();
    let range = stream.next(&mut reader, ReadLimit::Configured).await.unwrap();
    let schema = Arc::new(Source::schema(&source).project(&[1]).unwrap());
    let scan = ScanRequest::new(vec![1], schema);
    let plan = reader.bind(&range, &scan).await.unwrap();
    let text = displayable(plan.as_ref()).indent(false).to_string();
    assert!(text.contains("FileScanExec: csv, mode=FailFast, projection=[v], partitions=2, files=3"), "{text}");
    assert!(text.contains("/in/a.csv"), "{text}");
}

#[tokio::test]
async fn files_are_chosen_by_name() {
    let mut stream = Stream::new();
    put_named(&stream, "ab", 10);
    stream.put("c.txt", "c,1", 10);
    let source = csv(&stream).path_glob_filter("[bc].csv");
    let mut reader = stream.open(&source).await.unwrap();
    assert_eq!(batches(&mut stream, &source, &mut reader).await, ["b"]);
}

#[tokio::test]
async fn in_the_folder_of_a_file_sink_only_its_log_counts() {
    let mut stream = Stream::new();
    put_named(&stream, "abc", 10);
    let path = stream.input();
    let line = |name: &str| {
        format!(
            "\n{{\"path\":\"file://{path}/{name}.csv\",\"size\":3,\"isDir\":false,\"modificationTime\":5,\
             \"blockReplication\":1,\"blockSize\":33554432,\"action\":\"add\"}}"
        )
    };
    stream.put("_spark_metadata/0", format!("v1{}", line("a")), 10);
    let source = csv(&stream);
    let mut reader = stream.open(&source).await.unwrap();
    assert_eq!(batches(&mut stream, &source, &mut reader).await, ["a"]);
    stream.put("_spark_metadata/1", format!("v1{}", line("c")), 10);
    assert_eq!(batches(&mut stream, &source, &mut reader).await, ["c"]);

    let error = stream.open(&source.clean_source(CleanSource::Delete)).await.unwrap_err();
    assert!(error.message().contains("`cleanSource`"), "{error}");
}

#[tokio::test]
async fn a_source_that_cannot_work_is_refused_at_the_start() {
    let stream = Stream::new();
    let refused = async |source: FileSource, answer: &str| {
        let error = stream.open(&source).await.unwrap_err();
        assert!(error.to_string().contains(answer), "{error}");
    };
    refused(FileSource::json(stream.input()), "no schema").await;
    refused(FileSource::json(stream.input() + "/missing").with_schema(schema()), "does not exist").await;
    refused(csv(&stream).max_files_per_trigger(1).max_bytes_per_trigger(1), "both set").await;
    let inside = CleanSource::Archive(stream.input() + "/old");
    refused(csv(&stream).clean_source(inside), "might be read again").await;
    let list = DataType::new_list(DataType::Int64, true);
    let lists = Schema::new(vec![Field::new("l", list, true)]);
    refused(FileSource::csv(stream.input()).with_schema(lists), "column `l`").await;
    refused(csv(&stream).path_glob_filter("[a"), "not a glob").await;
    let corrupt = Schema::new(vec![Field::new("_corrupt_record", DataType::Int64, true)]);
    refused(FileSource::csv(stream.input()).with_schema(corrupt).option("mode", "PERMISSIVE"), "not Utf8").await;
    let parquet = FileSource::parquet(stream.input()).with_schema(schema());
    refused(parquet.option("header", "true"), "unknown option `header` of the parquet file source").await;
    let written = CsvOptions::new().compression("gzip");
    refused(FileSource::new(stream.input(), written).with_schema(schema()), "unknown option `compression`").await;
    refused(FileSource::new(stream.input(), CsvOptions::new().delimiter('→')).with_schema(schema()), "one ASCII").await;
    let error = FileSource::from_options("csv", None, []).unwrap_err();
    assert!(error.message().contains("needs a folder"), "{error}");
    let error =
        FileSource::from_options("csv", Some("in"), [("maxFilePerTrigger".to_owned(), "1".to_owned())]).unwrap_err();
    assert!(error.message().contains("did you mean"), "{error}");
    let error = FileSource::json(stream.input()).infer_schema(&stream.session).await.unwrap_err();
    assert!(error.message().contains("no files yet"), "{error}");
}

mod cleaned;

mod columns;

mod entries;

mod partitions;
