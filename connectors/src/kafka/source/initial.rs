//! Where a query began, in the source's own log.
//!
//! The first run finds out what "earliest", "latest" or a time meant, and keeps the answer, so that a run that follows a crash
//! before the first batch begins at the same place.
//!
//! ```text
//! sources/0/0           Spark's file: one zero byte, which an old release wanted, then a version and the offsets as JSON
//! sources/0/topic-ids   ours: a version, the same offsets, and the ids of the topics that they are of; Spark ignores it
//! ```
//!
//! Ours is written first. Where it stands alone, a run died in between, and what it says counts.

use std::sync::Arc;

use tidewater::checkpoint::{CreateOutcome, MetadataStore};
use tidewater::error::{Error, Result};
use tidewater::internal::{check_version, with_version};

use super::identity::TopicIds;
use crate::kafka::offsets::PartitionOffsets;

/// The file of the source's log that Spark knows.
const LOG_FILE: &str = "0";
const IDS_FILE: &str = "topic-ids";
const OLD_MARK: char = '\0';

/// Where the query began, and of which topics these are offsets, as far as that is known; `None` if it has not begun.
pub(super) async fn read(log: &Arc<dyn MetadataStore>) -> Result<Option<(PartitionOffsets, TopicIds)>> {
    let Some(begin) = offsets(log).await? else { return Ok(None) };
    let ids = match read_ids(log).await? {
        // Those of other offsets say nothing of these: Spark may have begun, or a run whose file came second.
        Some((of, ids)) if of == begin => ids,
        _ => TopicIds::default(),
    };
    Ok(Some((begin, ids)))
}

/// Keeps where the query begins. If that is known already, what is known counts, and is returned.
pub(super) async fn keep(
    log: &Arc<dyn MetadataStore>,
    mut begin: PartitionOffsets,
    ids: TopicIds,
) -> Result<(PartitionOffsets, TopicIds)> {
    let ids = ids.only(begin.iter().map(|(topic, ..)| topic));
    if offsets(log).await?.is_none() && !ids.is_empty() {
        let text = with_version([begin.to_json(), ids.to_value().to_string()]);
        if let CreateOutcome::AlreadyExists = log.create(IDS_FILE, text.into()).await?
            && let Some((of, _)) = read_ids(log).await?
        {
            begin = of;
        }
    }
    log.create(LOG_FILE, format!("{OLD_MARK}{}", with_version([begin.to_json()])).into()).await?;
    read(log).await?.ok_or_else(|| {
        damaged("where the Kafka source began was kept, and is gone".to_owned(), &log.full_name(LOG_FILE))
    })
}

async fn offsets(log: &Arc<dyn MetadataStore>) -> Result<Option<PartitionOffsets>> {
    match log.read(LOG_FILE).await? {
        Some(bytes) => parse(&String::from_utf8_lossy(&bytes), &log.full_name(LOG_FILE)).map(Some),
        None => Ok(None),
    }
}

async fn read_ids(log: &Arc<dyn MetadataStore>) -> Result<Option<(PartitionOffsets, TopicIds)>> {
    let Some(bytes) = log.read(IDS_FILE).await? else { return Ok(None) };
    let (text, file) = (String::from_utf8_lossy(&bytes), log.full_name(IDS_FILE));
    let wrong = |why: String| damaged(format!("the ids of the topics cannot be read: {why}"), &file);
    let mut lines = check_version(&text, &file)?;
    let begin =
        PartitionOffsets::from_json(lines.next().unwrap_or_default()).map_err(|e| wrong(e.message().to_owned()))?;
    let ids = serde_json::from_str(lines.next().unwrap_or_default()).and_then(|ids| TopicIds::from_value(&ids));
    Ok(Some((begin, ids.map_err(|e| wrong(e.to_string()))?)))
}

fn parse(text: &str, file: &str) -> Result<PartitionOffsets> {
    let text = text.strip_prefix(OLD_MARK).unwrap_or(text);
    let line = check_version(text, file)?.next().unwrap_or_default();
    PartitionOffsets::from_json(line)
        .map_err(|e| damaged(format!("where the Kafka source began cannot be read: {}", e.message()), file))
}

fn damaged(what: String, file: &str) -> Error {
    Error::damaged(what).with_file(file).with_hint("restore the file from a backup, or start with a new checkpoint")
}

#[cfg(test)]
mod tests {
    use tidewater::checkpoint::memory_store;
    use tidewater::error::ErrorKind;

    use super::*;
    use crate::kafka::offsets::testing::offsets;

    fn none() -> TopicIds {
        TopicIds::default()
    }

    #[tokio::test]
    async fn the_file_is_that_of_spark() {
        let log = memory_store();
        assert_eq!(read(&log).await.unwrap(), None);
        let begin = offsets(&[("topic", 0, 0), ("other", 10, 5), ("other", 9, 4)]);
        assert_eq!(keep(&log, begin.clone(), none()).await.unwrap(), (begin.clone(), none()));
        let bytes = log.read("0").await.unwrap().unwrap();
        assert_eq!(bytes, "\0v1\n{\"other\":{\"9\":4,\"10\":5},\"topic\":{\"0\":0}}");
        assert_eq!(log.list("").await.unwrap(), ["0"], "nothing where no id is known");
        assert_eq!(read(&log).await.unwrap(), Some((begin, none())));
    }

    #[tokio::test]
    async fn ids_are_kept_beside_it() {
        let log = memory_store();
        let (begin, ids) = (offsets(&[("t", 0, 3)]), TopicIds::from([("t", "x")]));
        let more = TopicIds::from([("t", "x"), ("no partition of it is read", "y")]);
        assert_eq!(keep(&log, begin.clone(), more).await.unwrap(), (begin.clone(), ids.clone()));
        assert_eq!(log.read("0").await.unwrap().unwrap(), "\0v1\n{\"t\":{\"0\":3}}");
        assert_eq!(log.read("topic-ids").await.unwrap().unwrap(), "v1\n{\"t\":{\"0\":3}}\n{\"t\":\"x\"}");
        assert_eq!(read(&log).await.unwrap(), Some((begin, ids)));
    }

    #[tokio::test]
    async fn what_is_known_counts() {
        let log = memory_store();
        let (first, ids) = (offsets(&[("t", 0, 3)]), TopicIds::from([("t", "x")]));
        keep(&log, first.clone(), ids.clone()).await.unwrap();
        let later = keep(&log, offsets(&[("t", 0, 8), ("t", 1, 0)]), TopicIds::from([("t", "y")])).await.unwrap();
        assert_eq!(later, (first.clone(), ids.clone()));
        assert_eq!(read(&log).await.unwrap(), Some((first, ids)));
    }

    /// A run died between the two files, and the next finds other topics and other ends.
    #[tokio::test]
    async fn ids_that_stand_alone_say_where_it_began() {
        let log = memory_store();
        let (first, ids) = (offsets(&[("t", 0, 3)]), TopicIds::from([("t", "x")]));
        keep(&log, first.clone(), ids.clone()).await.unwrap();
        log.delete("0").await.unwrap();
        assert_eq!(read(&log).await.unwrap(), None);
        let later = keep(&log, offsets(&[("t", 0, 8)]), TopicIds::from([("t", "y")])).await.unwrap();
        assert_eq!(later, (first.clone(), ids.clone()));
        assert_eq!(read(&log).await.unwrap(), Some((first, ids)));
    }

    /// Spark has begun, and knows no ids.
    #[tokio::test]
    async fn ids_of_other_offsets_are_not_taken_for_these() {
        let log = memory_store();
        log.create("0", "\0v1\n{\"t\":{\"0\":7}}".into()).await.unwrap();
        log.create("topic-ids", "v1\n{\"t\":{\"0\":3}}\n{\"t\":\"x\"}".into()).await.unwrap();
        let spark = offsets(&[("t", 0, 7)]);
        assert_eq!(read(&log).await.unwrap(), Some((spark.clone(), none())));
        let kept = keep(&log, offsets(&[("t", 0, 9)]), TopicIds::from([("t", "y")])).await.unwrap();
        assert_eq!(kept, (spark, none()));
    }

    #[tokio::test]
    async fn a_file_without_the_zero_byte_is_read_too() {
        let log = memory_store();
        log.create("0", "v1\n{\"t\": {\"1\": 7}}\n".into()).await.unwrap();
        assert_eq!(read(&log).await.unwrap(), Some((offsets(&[("t", 1, 7)]), none())));
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
            assert!(error.file().unwrap().ends_with('0'), "{error}");
            assert!(error.hint().is_some(), "{error}");
            assert!(keep(&log, offsets(&[("t", 0, 1)]), none()).await.is_err(), "and not written over");
        }
    }
}
