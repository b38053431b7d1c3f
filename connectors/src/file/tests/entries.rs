//! What lies in a folder beside files that are as they should be.

use super::*;

fn figure(reader: &dyn MicroBatchStream, name: &str) -> String {
    reader.metrics().get(name).cloned().unwrap_or_default()
}

#[cfg(unix)]
#[tokio::test]
async fn every_name_is_read_and_what_is_no_file_is_counted() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let mut stream = Stream::new();
    let source = csv(&stream);
    let names: [&[u8]; 6] = [b"report.csv#1", b"a\tb", b"caf\xe9.csv", b"a%20b", b"a b", b"new\nline"];
    for (i, name) in names.iter().enumerate() {
        stream.put("plain", format!("{i},1\n"), 10 + i as u64);
        std::fs::rename(stream.path("in/plain"), stream.path("in").join(OsStr::from_bytes(name))).unwrap();
    }
    let text = "7,1\n".repeat(300_000);
    stream.put("zipped", zipped(&text).await, 20);
    std::fs::rename(stream.path("in/zipped"), stream.path("in/\t.gz")).unwrap();
    std::os::unix::fs::symlink("nowhere", stream.path("in/dangling")).unwrap();
    std::os::unix::fs::symlink("..", stream.path("in/k=up")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(stream.path("in/socket")).unwrap();

    let mut reader = stream.open(&source).await.unwrap();
    let range = stream.next(&mut reader, ReadLimit::Configured).await.unwrap();
    let rows = stream.read(&source, &mut reader, &range, &[]).await.unwrap();
    assert_eq!(rows[..6], ["0|1", "1|1", "2|1", "3|1", "4|1", "5|1"]);
    assert_eq!(rows.len(), 6 + 300_000);
    assert_eq!(figure(&*reader, "entriesLeftOut"), "3");

    // The batch is repeated by the names in the log, and nothing is new.
    let mut again = stream.open(&source).await.unwrap();
    assert_eq!(stream.read(&source, &mut again, &range, &[]).await.unwrap(), rows);
    assert!(stream.rows(&source, &mut again).await.is_empty());
    std::fs::remove_file(stream.path("in/dangling")).unwrap();
    assert!(stream.rows(&source, &mut again).await.is_empty());
    assert_eq!(figure(&*again, "entriesLeftOut"), "2", "as things stand now");
}

#[tokio::test]
async fn odd_names_serve_parquet_and_partition_columns() {
    let mut stream = Stream::new();
    let v: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    stream.put_parquet("k=a\tb%25/part.parquet#3", vec![("v", Arc::clone(&v))], 10);
    stream.put_parquet("k=x/part\u{7f}.parquet", vec![("v", v)], 10);
    let source = FileSource::parquet(stream.input()).with_schema(schema());
    let mut reader = stream.open(&source).await.unwrap();
    assert_eq!(stream.rows(&source, &mut reader).await, ["a\tb%|1", "a\tb%|2", "x|1", "x|2"]);
}

#[tokio::test]
async fn a_folder_that_cannot_be_listed_is_an_error_and_one_below_is_counted() {
    let mut stream = Stream::new();
    let source = csv(&stream);
    put_named(&stream, "a", 10);
    let mut reader = stream.open(&source).await.unwrap();
    assert_eq!(stream.rows(&source, &mut reader).await, ["a|1"]);
    std::fs::remove_dir_all(stream.path("in")).unwrap();
    let latest = reader.latest_offset(stream.at.as_ref(), ReadLimit::Configured).await.unwrap();
    let error = latest.unknown.expect("not knowing is not nothing new");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("is gone"), "{error}");

    // The folder made again, with a file of the old name and one that is new.
    put_named(&stream, "ab", 20);
    assert_eq!(stream.rows(&source, &mut reader).await, ["b|1"]);
    assert_eq!(figure(&*reader, "filesChangedAfterRead"), "1");
}

#[tokio::test]
async fn files_that_changed_or_came_too_late_are_counted_in_every_run() {
    let mut stream = Stream::new();
    let source = csv(&stream).max_file_age("1 minute");
    put_named(&stream, "a", 10);
    put_named(&stream, "bc", 5000);
    let mut reader = stream.open(&source).await.unwrap();
    assert_eq!(stream.rows(&source, &mut reader).await.len(), 3);
    stream.put("b.csv", "b,2", 5010);
    stream.put("late.csv", "late,2", 4000);
    for run in ["the same", "another"] {
        if run == "another" {
            reader = stream.open(&source).await.unwrap();
        }
        assert!(stream.rows(&source, &mut reader).await.is_empty());
        assert_eq!(figure(&*reader, "filesChangedAfterRead"), "1", "{run} run");
        assert_eq!(figure(&*reader, "filesTooOld"), "1", "{run} run: `a` was read, if long ago");
    }
}

#[tokio::test]
async fn a_single_file_is_an_input_in_every_spelling() {
    for spelling in ["", "file:", "file://"] {
        let mut stream = Stream::new();
        stream.put("k=7/one#1.csv", "a,1\n", 10);
        stream.put("k=7/other.csv", "b,1\n", 10);
        let path = format!("{spelling}{}/k=7/one#1.csv", stream.input());
        let source = FileSource::csv(path).with_schema(schema());
        let mut reader = stream.open(&source).await.unwrap();
        assert_eq!(stream.rows(&source, &mut reader).await, ["a|1"], "{spelling}");
        assert!(stream.rows(&source, &mut reader).await.is_empty());
    }
}

#[tokio::test]
async fn an_empty_file_is_no_rows_in_every_format() {
    for (name, format) in [
        ("a.parquet", "parquet"),
        ("a.csv", "csv"),
        ("a.csv.gz", "csv"),
        ("a.csv.bz2", "csv"),
        ("a.csv.xz", "csv"),
        ("a.json.zst", "json"),
    ] {
        let mut stream = Stream::new();
        stream.put(name, "", 10);
        let source = FileSource::from_options(format, Some(&stream.input()), []).unwrap().with_schema(schema());
        let mut reader = stream.open(&source).await.unwrap();
        let range = stream.next(&mut reader, ReadLimit::Configured).await.unwrap();
        assert!(stream.read(&source, &mut reader, &range, &[]).await.unwrap().is_empty(), "{name}");
        let mut again = stream.open(&source).await.unwrap();
        assert!(stream.read(&source, &mut again, &range, &[]).await.unwrap().is_empty(), "{name}");
    }
    // Listed while it was empty, and filled before it was read.
    let mut stream = Stream::new();
    let source = csv(&stream);
    stream.put("a.csv", "", 10);
    let mut reader = stream.open(&source).await.unwrap();
    let range = stream.next(&mut reader, ReadLimit::Configured).await.unwrap();
    stream.put("a.csv", "a,1\n", 11);
    assert_eq!(stream.read(&source, &mut reader, &range, &[]).await.unwrap(), ["a|1"]);
}

#[tokio::test]
async fn a_file_that_is_gone_may_be_gone_on_without() {
    for (gone_before_bind, repeated) in [(true, false), (false, false), (true, true)] {
        let mut stream = Stream::new();
        put_named(&stream, "ab", 10);
        let source = csv(&stream);
        let mut reader = stream.open(&source).await.unwrap();
        let range = stream.next(&mut reader, ReadLimit::Configured).await.unwrap();
        let source = source.ignore_missing_files(true);
        if repeated {
            reader = stream.open(&source).await.unwrap();
        } else {
            stream.log = memory_store();
            stream.at = None;
            reader = stream.open(&source).await.unwrap();
            stream.next(&mut reader, ReadLimit::Configured).await.unwrap();
        }
        if gone_before_bind {
            std::fs::remove_file(stream.path("in/a.csv")).unwrap();
            assert_eq!(stream.read(&source, &mut reader, &range, &[]).await.unwrap(), ["b|1"]);
        } else {
            let all = vec![0, 1];
            let scan = ScanRequest::new(all, Source::schema(&source));
            let plan = reader.bind(&range, &scan).await.unwrap();
            std::fs::remove_file(stream.path("in/a.csv")).unwrap();
            let found = datafusion::physical_plan::collect(plan, stream.session.task_ctx()).await.unwrap();
            assert_eq!(found.iter().map(RecordBatch::num_rows).sum::<usize>(), 1);
        }
        assert_eq!(figure(&*reader, "missingFilesIgnored"), "1");
    }
}

#[tokio::test]
async fn a_damaged_file_stops_the_query_or_is_left_out_and_counted() {
    let gz = zipped(&"b,2\n".repeat(50_000)).await;
    for (name, bytes, format) in [
        ("torn.parquet", b"PAR1 and no more PAR1".to_vec(), "parquet"),
        ("short.parquet", b"PAR".to_vec(), "parquet"),
        ("torn.csv.gz", gz[..gz.len() / 2].to_vec(), "csv"),
        ("text.csv.gz", b"b,2\n".to_vec(), "csv"),
        ("text.csv.zst", b"b,2\n".to_vec(), "csv"),
    ] {
        let mut stream = Stream::new();
        stream.put(name, bytes, 10);
        let k: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
        let v: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        match format {
            "parquet" => stream.put_parquet("good.parquet", vec![("k", k), ("v", v)], 11),
            _ => stream.put("good.csv", "a,1\n", 11),
        }
        let source = FileSource::from_options(format, Some(&stream.input()), []).unwrap().with_schema(schema());
        let error = stream.failure(&source).await;
        assert_eq!(error.kind(), ErrorKind::BadInput, "{name}: {error}");
        assert!(error.file().unwrap().ends_with(name), "{error}");
        assert!(error.hint().unwrap().contains("ignoreCorruptFiles"), "{error}");

        let source = source.ignore_corrupt_files(true);
        let mut reader = stream.open(&source).await.unwrap();
        stream.at = None;
        let range = stream.next(&mut reader, ReadLimit::Configured).await.unwrap();
        let rows = stream.read(&source, &mut reader, &range, &[]).await.unwrap();
        assert_eq!(rows.iter().filter(|row| *row == "a|1").count(), 1, "{name}");
        assert_eq!(figure(&*reader, "corruptFilesIgnored"), "1", "{name}");
    }
    // A file of other columns is not damaged.
    let mut stream = Stream::new();
    let v: ArrayRef = Arc::new(StringArray::from(vec!["text"]));
    stream.put_parquet("a.parquet", vec![("v", v)], 10);
    let source = FileSource::parquet(stream.input()).with_schema(schema()).ignore_corrupt_files(true);
    assert!(stream.failure(&source).await.message().contains("column `v` is Utf8 in this file"));
}

#[tokio::test]
async fn compressed_text_under_another_ending_is_refused_in_every_mode() {
    let gz = zipped("a,1\n").await;
    for mode in [ParseMode::FailFast, ParseMode::DropMalformed, ParseMode::Permissive] {
        for (name, bytes, what) in [
            ("a.csv", &gz[..], "gzip"),
            ("a.csv.GZ", &gz[..], "gzip"),
            ("a.txt", b"\x28\xb5\x2f\xfd\x00", "zstd"),
            ("utf16.csv", b"\xff\xfea\x00,\x001\x00\n\x00", "UTF-16"),
        ] {
            let mut stream = Stream::new();
            stream.put(name, bytes, 10);
            let error = stream.failure(&csv(&stream).option("mode", mode.name())).await;
            assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
            assert!(error.message().contains(what) && error.file().unwrap().ends_with(name), "{error}");
        }
    }
}

async fn zipped(text: &str) -> Vec<u8> {
    use futures::{StreamExt, TryStreamExt, stream};
    let whole = stream::iter([Ok(text.to_owned().into_bytes().into())]).boxed();
    let zipped = FileCompressionType::GZIP.convert_to_compress_stream(whole).unwrap();
    zipped.map_ok(|bytes| bytes.to_vec()).try_concat().await.unwrap()
}
