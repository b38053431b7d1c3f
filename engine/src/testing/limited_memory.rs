//! A runtime with little memory, so that few rows show what many would.

use std::sync::Arc;

use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};

use crate::error::Result;
use crate::memory::pool_of;

/// A runtime of DataFusion whose sessions may hold so many bytes together. What can spill does so on the way there, and the
/// rest fails by name. When no query runs, its memory pool has given out nothing.
///
/// ```
/// use datafusion::prelude::*;
/// use tidewater::testing::limited_memory;
///
/// let runtime = limited_memory(4 << 20)?;
/// let ctx = SessionContext::new_with_config_rt(SessionConfig::new(), runtime.clone());
/// # drop(ctx);
/// assert_eq!(runtime.memory_pool.reserved(), 0);
/// # Ok::<_, tidewater::error::Error>(())
/// ```
pub fn limited_memory(bytes: usize) -> Result<Arc<RuntimeEnv>> {
    Ok(RuntimeEnvBuilder::new().with_memory_pool(pool_of(bytes)).build_arc()?)
}
