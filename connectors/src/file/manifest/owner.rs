//! Whose output a directory is: one file beside the log that names the query.
//!
//! ```text
//! _spark_metadata/tidewater.query      v1
//!                                      {"queryId":"…","sink":"output"}
//! ```
//!
//! The entries of the log are Spark's and name no query, so "batch 7 is there" would not say whose. The first commit to
//! a directory creates this file, before its entry; two queries that begin at once cannot both. It never changes. Its name is
//! no number: Spark and older releases pass it over.
//!
//! A directory that was begun by Spark, or by an older release, has no such file. It goes to the query whose checkpoint fits,
//! at its next commit.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidewater::checkpoint::{CreateOutcome, MetadataStore};
use tidewater::error::{Error, ErrorKind, Result};
use tidewater::id::QueryId;
use tidewater::internal::{check_version, with_version};
use tidewater::sink::SinkRole;

/// The name of the file.
pub(super) const FILE: &str = "tidewater.query";

/// A query, and which of its sinks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Owner {
    query_id: QueryId,
    sink: String,
}

impl Owner {
    pub(crate) fn new(query_id: QueryId, name: SinkRole) -> Self {
        Owner { query_id, sink: name.to_string() }
    }

    /// Whether the directory in whose log `store` lies is this one's. Fails if it is another's.
    pub(super) async fn is_known(&self, store: &dyn MetadataStore) -> Result<bool> {
        let Some(contents) = store.read(FILE).await? else { return Ok(false) };
        let file = store.full_name(FILE);
        let damaged = |what: String| {
            Error::damaged(what)
                .with_file(&file)
                .with_hint("restore it from a backup; it names the query that writes this directory")
        };
        let text = std::str::from_utf8(&contents).map_err(|e| damaged(format!("the file is not text: {e}")))?;
        let line = check_version(text, &file)?.next().unwrap_or_default();
        let there: Owner = serde_json::from_str(line).map_err(|e| damaged(format!("line 2 names no query: {e}")))?;
        if there == *self {
            return Ok(true);
        }
        let (theirs, ours) = match there.query_id == self.query_id {
            true => (format!("sink `{}` of this query", there.sink), format!("its sink `{}`", self.sink)),
            false => (format!("query {}", there.query_id), format!("query {}", self.query_id)),
        };
        Err(Error::new(
            ErrorKind::IncompatibleCheckpoint,
            format!("the output directory is that of {theirs}, and this is {ours}: batches of one would pass for those of the other"),
        )
        .with_file(file)
        .with_hint(
            "give each query an output directory of its own; one that begins anew, with a new checkpoint, needs a new directory",
        ))
    }

    /// Makes the directory this one's. Fails if it is another's.
    pub(super) async fn claim(&self, store: &dyn MetadataStore) -> Result<()> {
        let line = serde_json::to_string(self)
            .map_err(|e| Error::internal(format!("cannot write the query's id as JSON: {e}")).with_source(e))?;
        match store.create(FILE, Bytes::from(with_version([line]))).await? {
            CreateOutcome::Created => Ok(()),
            CreateOutcome::AlreadyExists => self.is_known(store).await.map(|_| ()),
        }
    }
}
