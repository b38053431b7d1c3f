//! A batch in, what came of it out.
//!
//! ```text
//! driver ── BatchWork ──▶ Runner ── Outcome ──▶ driver
//!                           │
//!                          Site   the query's plan, its sources and sink, its state, where the tasks run
//! ```
//!
//! Work and outcome are data: numbers, times, splits of sources, rows. So the [`Runner`] is a boundary that tasks could cross to
//! another process, which makes the query's plan by itself and opens its sources there. What cannot cross is part of the site:
//! what a source bound that gives no splits, state, and writers that stay with the driver. Today there is the [`LocalRunner`];
//! the testing kit has one that serialises work and outcome, so that nothing in them comes to rely on shared memory.

mod at_work;

mod changes;

mod local;

mod outcome;

mod runtime;

mod task;

mod work;

mod writers;

mod written;

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::prelude::SessionConfig;

pub(crate) use self::at_work::{AtWork, at_work, is_called_by};
pub(crate) use self::local::LocalRunner;
pub(crate) use self::outcome::{OperatorOutcome, Outcome};
pub(crate) use self::runtime::{Runtimes, runtime_is_gone};
pub(crate) use self::work::{BatchWork, LeafInput, OperatorWatermarks, Site};
pub(crate) use self::writers::{ToWrite, Writers};
pub(crate) use self::written::abort;
use crate::error::Result;

/// Runs the tasks of a batch.
#[async_trait]
pub(crate) trait Runner: Debug + Send + Sync {
    /// Runs the batch to its end, or to its first error. When it returns, no task of the batch is left, unless one blocks its
    /// thread.
    async fn run(&self, work: BatchWork, site: Site) -> Result<Outcome>;
}

/// The runner that a session's queries use in place of the local one.
#[derive(Debug, Clone)]
pub(crate) struct SessionRunner(pub(crate) Arc<dyn Runner>);

impl SessionRunner {
    /// The runner of a session.
    pub(crate) fn of(config: &SessionConfig) -> Arc<dyn Runner> {
        config.get_extension::<SessionRunner>().map_or_else(|| Arc::new(LocalRunner) as _, |own| Arc::clone(&own.0))
    }
}
