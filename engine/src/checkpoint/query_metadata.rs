//! The query's id, made once: `metadata` is one line of JSON, `{"id":"…"}`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::MetadataStore;
use crate::error::{Error, Result};
use crate::id::QueryId;

const FILE: &str = "metadata";

#[derive(Serialize, Deserialize)]
struct QueryMetadata {
    id: QueryId,
}

/// The id in the checkpoint; a fresh one is written if there is none and `may_create`.
pub(crate) async fn read_or_create_query_id(store: &dyn MetadataStore, may_create: bool) -> Result<QueryId> {
    let file = store.full_name(FILE);
    if let Some(contents) = store.read(FILE).await? {
        let metadata: QueryMetadata = serde_json::from_slice(&contents).map_err(|e| {
            Error::damaged(format!("the file should hold the query's id as `{{\"id\":\"<uuid>\"}}`: {e}"))
                .with_file(&file)
                .with_hint("restore it from a backup, or start with a new checkpoint")
                .with_source(e)
        })?;
        return Ok(metadata.id);
    }
    if !may_create {
        return Err(Error::damaged("the checkpoint has batches but no metadata file")
            .with_file(file)
            .with_hint("restore the file from a backup, or start with a new checkpoint"));
    }
    let fresh = QueryMetadata { id: QueryId::random() };
    let contents = serde_json::to_vec(&fresh).map_err(|e| Error::internal(e.to_string()).with_source(e))?;
    store.create(FILE, Bytes::from(contents)).await?;
    // Two first starts at once: the one that came second takes the other's id, and is fenced at its first batch.
    match store.read(FILE).await? {
        Some(contents) => serde_json::from_slice::<QueryMetadata>(&contents)
            .map(|metadata| metadata.id)
            .map_err(|e| Error::damaged(e.to_string()).with_file(file)),
        None => Err(Error::damaged("the file vanished right after it was written").with_file(file)),
    }
}
