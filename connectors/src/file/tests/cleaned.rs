//! What becomes of files that were read.

use super::*;

#[tokio::test]
async fn files_are_cleaned_up_once_their_batch_is_committed() {
    for archive in [false, true] {
        let mut stream = Stream::new();
        let folder = stream.path("archive").display().to_string();
        let clean = if archive { CleanSource::Archive(folder.clone()) } else { CleanSource::Delete };
        let source = csv(&stream).max_files_per_trigger(1).clean_source(clean);
        put_named(&stream, "ab", 10);
        let mut reader = stream.open(&source).await.unwrap();
        stream.rows(&source, &mut reader).await;
        let first = stream.at.clone().unwrap();
        assert!(stream.path("in/a.csv").exists());
        // The next batch is planned; then the one before is committed.
        stream.next(&mut reader, ReadLimit::Configured).await.unwrap();
        reader.commit(&first).await.unwrap();
        reader.commit(&first).await.unwrap();
        assert!(!stream.path("in/a.csv").exists());
        assert!(stream.path("in/b.csv").exists());
        let archived = PathBuf::from(format!("{folder}{}/a.csv", stream.input()));
        assert_eq!(archived.exists(), archive);
        assert_eq!(reader.metrics()["filesCleaned"], "1");
        assert_eq!(reader.metrics()["filesNotCleaned"], "0");
    }
}

/// The path is the file: once it is read and cleaned up, there is nothing more to come, in this run and in later ones.
#[tokio::test]
async fn a_single_file_may_be_cleaned_up() {
    for (name, archive) in [("one.csv", false), ("one#1.csv", true), ("a b%41.csv", true)] {
        let mut stream = Stream::new();
        stream.put(name, "a,1\n", 10);
        let path = format!("{}/{name}", stream.input());
        let clean = match archive {
            true => CleanSource::Archive(stream.path("archive").display().to_string()),
            false => CleanSource::Delete,
        };
        let source = FileSource::csv(path.clone()).with_schema(schema()).clean_source(clean);
        let mut reader = stream.open(&source).await.unwrap();
        assert_eq!(stream.rows(&source, &mut reader).await, ["a|1"]);
        let first = stream.at.clone().unwrap();
        reader.commit(&first).await.unwrap();
        reader.commit(&first).await.unwrap();
        assert!(!PathBuf::from(&path).exists(), "{name}");
        for _ in 0..2 {
            let latest = reader.latest_offset(Some(&first), ReadLimit::Configured).await.unwrap();
            assert!(latest.unknown.is_none() && latest.batch_end.as_ref() == Some(&first), "{name}: {latest:?}");
            reader.prepare_for_available_now().await.unwrap();
            reader = stream.open(&source).await.unwrap();
        }
        // One that was never read is missed.
        let error = Stream::new().open(&source).await.unwrap_err();
        assert!(error.message().contains("does not exist"), "{error}");
    }
}

/// Every name that a local disk knows is moved as it is, below the folders it came from.
#[cfg(unix)]
#[tokio::test]
async fn files_of_any_name_are_archived() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let mut stream = Stream::new();
    let archive = stream.path("the archive");
    let source = csv(&stream).clean_source(CleanSource::Archive(archive.display().to_string()));
    let names: [&[u8]; 8] =
        [b"a b.csv", b"report.csv#1", b"%41.csv", b"a%20b", b"caf\xe9.csv", b"a\tb", b"new\nline", b"A.csv"];
    for (i, name) in names.iter().enumerate() {
        stream.put("k 1/plain", format!("{i},1\n"), 10 + i as u64);
        std::fs::rename(stream.path("in/k 1/plain"), stream.path("in/k 1").join(OsStr::from_bytes(name))).unwrap();
    }
    let source = source.recursive_file_lookup(true);
    let mut reader = stream.open(&source).await.unwrap();
    assert_eq!(stream.rows(&source, &mut reader).await.len(), names.len());
    let first = stream.at.clone().unwrap();
    reader.commit(&first).await.unwrap();
    reader.commit(&first).await.unwrap();
    assert_eq!((reader.metrics()["filesCleaned"].as_str(), reader.metrics()["filesNotCleaned"].as_str()), ("8", "0"));
    let archived = PathBuf::from(format!("{}{}/k 1", archive.display(), stream.input()));
    for (i, name) in names.iter().enumerate() {
        assert!(!stream.path("in/k 1").join(OsStr::from_bytes(name)).exists());
        let text = std::fs::read_to_string(archived.join(OsStr::from_bytes(name)));
        assert_eq!(text.unwrap_or_else(|e| panic!("{}: {e}", name.escape_ascii())), format!("{i},1\n"));
    }
}
