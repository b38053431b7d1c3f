//! Which run holds the checkpoint: the one that took the highest epoch.
//!
//! ```text
//! epochs/7.<run>      v1
//!                     {"runId":"…"}
//! ```
//!
//! A run takes an epoch when it starts, one above all others; what is below goes. So the folder names the newest run, always:
//! only who holds a higher epoch deletes one. A run that finds a higher one was overtaken and stops; one that does not
//! find its own lives on a checkpoint that somebody deleted. The name has the run's id in it, so that a number taken twice, by
//! two at once or in a checkpoint that was deleted and made anew, is not taken for one's own.
//!
//! Between a check and what follows it a run may sleep for hours. What it does then must be harmless anyway: logs and manifests
//! are create-only, and nothing is deleted that could be newer than the run's own last commit.

use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;

use super::{MetadataStore, with_version};
use crate::error::{Error, ErrorKind, Result};
use crate::id::RunId;

/// Where the marks are.
pub(crate) const FOLDER: &str = "epochs";

/// A mark: the number decides, and between equals the run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Mark {
    number: u64,
    run: String,
}

impl Mark {
    fn file(&self) -> String {
        format!("{FOLDER}/{}.{}", self.number, self.run)
    }
}

impl FromStr for Mark {
    type Err = ();

    fn from_str(name: &str) -> std::result::Result<Self, ()> {
        let (number, run) = name.split_once('.').ok_or(())?;
        Ok(Mark { number: number.parse().map_err(|_| ())?, run: run.to_owned() })
    }
}

/// The epoch of one run.
#[derive(Debug, Clone)]
pub(crate) struct Epoch {
    store: Arc<dyn MetadataStore>,
    own: Mark,
}

impl Epoch {
    /// Takes the checkpoint over from whatever run holds it.
    pub(crate) async fn take(store: &Arc<dyn MetadataStore>, run: RunId) -> Result<Self> {
        let mut newest = marks(store.as_ref()).await?.pop();
        loop {
            let number = newest.map_or(1, |newest| newest.number + 1);
            let own = Mark { number, run: run.to_string() };
            let contents = with_version([json!({ "runId": run }).to_string()]);
            store.create(&own.file(), Bytes::from(contents)).await?;
            let mut held = marks(store.as_ref()).await?;
            newest = held.pop();
            // Another may have started at the same moment.
            if newest.as_ref() != Some(&own) {
                continue;
            }
            for older in held {
                if let Err(error) = store.delete(&older.file()).await {
                    tracing::warn!(%error, "the mark of an earlier run could not be deleted");
                }
            }
            return Ok(Epoch { store: Arc::clone(store), own });
        }
    }

    /// Fails if another run has taken over, or if the checkpoint is gone.
    pub(crate) async fn check(&self) -> Result<()> {
        let held = marks(self.store.as_ref()).await?;
        match held.last() {
            Some(newest) if *newest == self.own => Ok(()),
            Some(newest) if *newest > self.own => Err(Error::new(
                ErrorKind::Fenced,
                format!(
                    "another run, {}, has taken over the query: its epoch is {}, and that of this run {}",
                    newest.run, newest.number, self.own.number
                ),
            )
            .with_file(self.store.full_name(&newest.file()))
            .with_hint(
                "let one process run the query; what this one wrote since does not count, and it can be stopped",
            )),
            _ => Err(Error::damaged(
                "the checkpoint was deleted while the query was running: the mark of this run is gone",
            )
            .with_file(self.store.full_name(&self.own.file()))
            .with_hint(
                "let nothing delete the checkpoint of a running query; restore it from a backup, or start with a new \
                     checkpoint and a new output",
            )),
        }
    }
}

/// All marks, the newest last.
async fn marks(store: &dyn MetadataStore) -> Result<Vec<Mark>> {
    let mut marks: Vec<Mark> = store.list(FOLDER).await?.iter().filter_map(|name| name.parse().ok()).collect();
    marks.sort_unstable();
    Ok(marks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::memory_store;

    #[tokio::test]
    async fn the_newest_run_holds_the_checkpoint() {
        let store = memory_store();
        let (first, second) = (RunId::random(), RunId::random());
        let one = Epoch::take(&store, first).await.unwrap();
        one.check().await.unwrap();
        let two = Epoch::take(&store, second).await.unwrap();
        two.check().await.unwrap();
        let fenced = one.check().await.unwrap_err();
        assert_eq!(fenced.kind(), ErrorKind::Fenced, "{fenced}");
        assert!(fenced.message().contains(&second.to_string()), "{fenced}");
        assert_eq!(store.list(FOLDER).await.unwrap(), [format!("2.{second}")], "what is below is gone");
        let text = store.read(&format!("{FOLDER}/2.{second}")).await.unwrap().unwrap();
        assert_eq!(text, format!("v1\n{{\"runId\":\"{second}\"}}"));
    }

    #[tokio::test]
    async fn of_many_at_once_one_holds_it() {
        let store = memory_store();
        let taken = futures::future::join_all((0..8).map(|_| Epoch::take(&store, RunId::random()))).await;
        let mut holding = 0;
        for epoch in taken {
            match epoch.unwrap().check().await {
                Ok(()) => holding += 1,
                Err(e) => assert_eq!(e.kind(), ErrorKind::Fenced, "{e}"),
            }
        }
        assert_eq!(holding, 1);
    }

    /// Made anew by another process, it holds the same number: that does not prove anything.
    #[tokio::test]
    async fn a_checkpoint_that_was_deleted_is_missed() {
        let store = memory_store();
        let epoch = Epoch::take(&store, RunId::random()).await.unwrap();
        for file in store.list(FOLDER).await.unwrap() {
            store.delete(&format!("{FOLDER}/{file}")).await.unwrap();
        }
        assert_eq!(epoch.check().await.unwrap_err().kind(), ErrorKind::DamagedCheckpoint);
        Epoch::take(&store, RunId::random()).await.unwrap();
        assert!(epoch.check().await.is_err());
    }

    #[tokio::test]
    async fn names_of_others_are_left_alone() {
        let store = memory_store();
        for name in ["note.txt", "7", "x.y"] {
            store.create(&format!("{FOLDER}/{name}"), Bytes::new()).await.unwrap();
        }
        let epoch = Epoch::take(&store, RunId::random()).await.unwrap();
        epoch.check().await.unwrap();
        assert_eq!(store.list(FOLDER).await.unwrap().len(), 4);
    }
}
