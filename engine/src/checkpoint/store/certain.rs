//! What became of a create that was answered with "it exists already".
//!
//! The answer does not say what happened. A put whose first answer was lost is tried again by the client, and then finds its
//! own object. A store that serves two conditional puts of one name at a time may refuse one with 409 although nothing is
//! there in the end (S3 does, and `object_store` calls that `AlreadyExists`, too). So whoever hears it reads the file:
//!
//! | it holds | then |
//! |---|---|
//! | nothing | the put is tried again, after a pause |
//! | these very bytes | it is ours: the create succeeded |
//! | anything else | it exists, and is someone else's |
//!
//! Everything that is created once goes through here: all logs, the files of state, the descriptions of operators, the
//! marks of epochs and of owners.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{CreateOutcome, MetadataStore};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};

/// How often a put is tried that is refused although nothing is there.
const TRIES: u32 = 10;

/// The pause before the second try; each later one is twice as long, up to [`LONGEST_PAUSE_MS`].
const FIRST_PAUSE_MS: i64 = 10;
const LONGEST_PAUSE_MS: i64 = 2_000;

/// Wraps any store so that a create reports what really happened.
#[derive(Debug)]
pub(super) struct Certain(pub(super) Arc<dyn MetadataStore>);

#[async_trait]
impl MetadataStore for Certain {
    async fn create(&self, name: &str, contents: Bytes) -> Result<CreateOutcome> {
        let clock = SystemClock::default();
        let mut pause_ms = FIRST_PAUSE_MS;
        for _ in 0..TRIES {
            if self.0.create(name, contents.clone()).await? == CreateOutcome::Created {
                return Ok(CreateOutcome::Created);
            }
            match self.0.read(name).await? {
                Some(there) if there == contents => {
                    // Who created it may have died before its name was flushed.
                    self.0.recover(name.rsplit_once('/').map_or("", |(folder, _)| folder)).await?;
                    return Ok(CreateOutcome::Created);
                }
                Some(_) => return Ok(CreateOutcome::AlreadyExists),
                None => {}
            }
            clock.sleep_until(clock.now_ms() + pause_ms).await;
            pause_ms = (2 * pause_ms).min(LONGEST_PAUSE_MS);
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("cannot create the file: the store said {TRIES} times that it exists, and it does not"),
        )
        .with_file(self.full_name(name))
        .with_hint("find out what else writes or deletes files there, then start again"))
    }

    async fn read(&self, name: &str) -> Result<Option<Bytes>> {
        self.0.read(name).await
    }

    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>> {
        self.0.read_range(name, range).await
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        self.0.list(folder).await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.0.delete(name).await
    }

    async fn recover(&self, folder: &str) -> Result<()> {
        self.0.recover(folder).await
    }

    fn full_name(&self, name: &str) -> String {
        self.0.full_name(name)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::checkpoint::memory_store;

    /// Says so many times that a file exists: before anything happened, or after the file was created.
    #[derive(Debug)]
    struct Vague {
        inner: Arc<dyn MetadataStore>,
        lies: AtomicU32,
        lands: bool,
    }

    #[async_trait]
    impl MetadataStore for Vague {
        async fn create(&self, name: &str, contents: Bytes) -> Result<CreateOutcome> {
            if self.lies.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |lies| lies.checked_sub(1)).is_ok() {
                if self.lands {
                    self.inner.create(name, contents).await?;
                }
                return Ok(CreateOutcome::AlreadyExists);
            }
            self.inner.create(name, contents).await
        }

        async fn read(&self, name: &str) -> Result<Option<Bytes>> {
            self.inner.read(name).await
        }

        async fn list(&self, folder: &str) -> Result<Vec<String>> {
            self.inner.list(folder).await
        }

        async fn delete(&self, name: &str) -> Result<()> {
            self.inner.delete(name).await
        }

        fn full_name(&self, name: &str) -> String {
            self.inner.full_name(name)
        }
    }

    fn vague(lies: u32, lands: bool) -> Certain {
        Certain(Arc::new(Vague { inner: memory_store(), lies: AtomicU32::new(lies), lands }))
    }

    #[tokio::test]
    async fn a_lost_answer_is_no_stranger() {
        let store = vague(1, true);
        assert_eq!(store.create("offsets/1", "ours".into()).await.unwrap(), CreateOutcome::Created);
        assert_eq!(
            store.create("offsets/1", "ours".into()).await.unwrap(),
            CreateOutcome::Created,
            "and again, hours later"
        );
        assert_eq!(store.create("offsets/1", "theirs".into()).await.unwrap(), CreateOutcome::AlreadyExists);
        assert_eq!(store.read("offsets/1").await.unwrap().unwrap(), "ours");
    }

    #[tokio::test]
    async fn a_conflict_with_nothing_there_is_tried_again() {
        let store = vague(3, false);
        assert_eq!(store.create("offsets/1", "ours".into()).await.unwrap(), CreateOutcome::Created);
        assert_eq!(store.read("offsets/1").await.unwrap().unwrap(), "ours");
    }

    #[tokio::test]
    async fn a_store_that_lies_for_ever_is_unavailable_and_not_damaged() {
        let error = vague(u32::MAX, false).create("offsets/1", "ours".into()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert_eq!(error.file(), Some("memory:/offsets/1"));
    }
}
