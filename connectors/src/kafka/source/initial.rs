//! Where a query began, in the source's own log.
//!
//! The first run finds out what "earliest", "latest" or a time meant, and keeps the answer, so that a run that follows a crash
//! before the first batch begins at the same place. The file is Spark's: one zero byte, which an old release wanted, then a
//! version and the offsets as JSON.

use std::sync::Arc;

use tidewater::checkpoint::{CheckpointStore, Created, check_version, with_version};
use tidewater::error::{Error, Result};

use crate::kafka::offsets::PartitionOffsets;

/// The only file of the source's log.
const LOG_FILE: &str = "0";
const OLD_MARK: char = '\0';

/// Where the query began; `None` if it has not.
pub(super) async fn read(log: &Arc<dyn CheckpointStore>) -> Result<Option<PartitionOffsets>> {
    match log.read(LOG_FILE).await? {
        Some(bytes) => parse(&String::from_utf8_lossy(&bytes), &log.full_name(LOG_FILE)).map(Some),
        None => Ok(None),
    }
}

/// Keeps where the query begins. If that is known already, what is known counts, and is returned.
pub(super) async fn keep(log: &Arc<dyn CheckpointStore>, begin: &PartitionOffsets) -> Result<PartitionOffsets> {
    let text = format!("{OLD_MARK}{}", with_version([begin.to_json()]));
    match log.create(LOG_FILE, text.into()).await? {
        Created::New => Ok(begin.clone()),
        Created::Exists => read(log).await?.ok_or_else(|| {
            damaged("where the Kafka source began was kept, and is gone".to_owned(), &log.full_name(LOG_FILE))
        }),
    }
}

fn parse(text: &str, file: &str) -> Result<PartitionOffsets> {
    let text = text.strip_prefix(OLD_MARK).unwrap_or(text);
    let line = check_version(text, file)?.next().unwrap_or_default();
    PartitionOffsets::from_json(line)
        .map_err(|e| damaged(format!("where the Kafka source began cannot be read: {}", e.message()), file))
}

fn damaged(what: String, file: &str) -> Error {
    Error::damaged(what).file(file).hint("restore the file from a backup, or start with a new checkpoint")
}

#[cfg(test)]
mod tests {
    use tidewater::checkpoint::memory_store;
    use tidewater::error::ErrorKind;

    use super::*;
    use crate::kafka::offsets::testing::offsets;

    #[tokio::test]
    async fn the_file_is_that_of_spark() {
        let log = memory_store();
        assert_eq!(read(&log).await.unwrap(), None);
        let begin = offsets(&[("topic", 0, 0), ("other", 10, 5), ("other", 9, 4)]);
        assert_eq!(keep(&log, &begin).await.unwrap(), begin);
        let bytes = log.read("0").await.unwrap().unwrap();
        assert_eq!(bytes, "\0v1\n{\"other\":{\"9\":4,\"10\":5},\"topic\":{\"0\":0}}");
        assert_eq!(read(&log).await.unwrap(), Some(begin));
    }

    #[tokio::test]
    async fn what_is_known_counts() {
        let log = memory_store();
        let first = offsets(&[("t", 0, 3)]);
        keep(&log, &first).await.unwrap();
        assert_eq!(keep(&log, &offsets(&[("t", 0, 8), ("t", 1, 0)])).await.unwrap(), first);
        assert_eq!(read(&log).await.unwrap(), Some(first));
    }

    #[tokio::test]
    async fn a_file_without_the_zero_byte_is_read_too() {
        let log = memory_store();
        log.create("0", "v1\n{\"t\": {\"1\": 7}}\n".into()).await.unwrap();
        assert_eq!(read(&log).await.unwrap(), Some(offsets(&[("t", 1, 7)])));
    }

    #[tokio::test]
    async fn what_is_damaged_is_named() {
        for (text, kind) in [
            ("", ErrorKind::DamagedCheckpoint),
            ("\0", ErrorKind::DamagedCheckpoint),
            ("\0v1", ErrorKind::DamagedCheckpoint),
            ("\0v1\n", ErrorKind::DamagedCheckpoint),
            ("\0v1\n{\"t\":{\"0\":", ErrorKind::DamagedCheckpoint),
            ("\0v1\n5", ErrorKind::DamagedCheckpoint),
            ("\0{\"t\":{\"0\":1}}", ErrorKind::DamagedCheckpoint),
            ("\0v2\n{\"t\":{\"0\":1}}", ErrorKind::IncompatibleCheckpoint),
        ] {
            let log = memory_store();
            log.create("0", text.into()).await.unwrap();
            let error = read(&log).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.file_name().unwrap().ends_with('0'), "{error}");
            assert!(error.hint_text().is_some(), "{error}");
            assert!(keep(&log, &offsets(&[("t", 0, 1)])).await.is_err(), "and not written over");
        }
    }
}
