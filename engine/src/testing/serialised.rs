//! Batches whose work and outcome are serialised on the way, as if their tasks ran in another process.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::prelude::SessionConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::execution::{BatchWork, LocalRunner, Outcome, Runner, SessionRunner, Site};

/// A session whose queries send the work of each batch to its tasks, and the outcome or error back, as JSON and Arrow IPC. The
/// tasks run from what was decoded, scan the splits of sources that came with it, and write with the writers of the sink's
/// factory: whatever passes by in memory is missing, and the answer is wrong. What stays with the driver (sources that give no
/// splits, sinks that have no factory, state) is shared with it.
pub fn serialised_batches(config: SessionConfig) -> SessionConfig {
    config.with_extension(Arc::new(SessionRunner(Arc::new(Serialised))))
}

#[derive(Debug)]
struct Serialised;

#[async_trait]
impl Runner for Serialised {
    async fn run(&self, work: BatchWork, site: Site) -> Result<Outcome> {
        match LocalRunner.run(across(&work)?, site).await {
            Ok(outcome) => across(&outcome),
            Err(error) => Err(across(&error)?),
        }
    }
}

/// What arrives where `sent` is sent to.
pub(super) fn across<T: Serialize + DeserializeOwned>(sent: &T) -> Result<T> {
    let failed = |e| Error::internal(format!("what a batch sends cannot be serialised: {e}")).with_source(e);
    serde_json::from_slice(&serde_json::to_vec(sent).map_err(failed)?).map_err(failed)
}
