//! What sources and sinks hold, on account of the session's memory pool.

use std::sync::Arc;

use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use tidewater::error::{Error, ErrorKind, Result};

/// A claim on the pool, and what to say when it is refused. Dropped, it gives back what it has.
#[derive(Debug)]
pub(crate) struct Claim {
    reservation: MemoryReservation,
    /// What the memory is for: `the read-ahead of kafka [orders] at localhost:9092`.
    what: String,
    hint: &'static str,
}

impl Claim {
    /// A claim of nothing so far.
    pub(crate) fn new(pool: &Arc<dyn MemoryPool>, what: impl Into<String>, hint: &'static str) -> Self {
        let what = what.into();
        Claim { reservation: MemoryConsumer::new(format!("tidewater: {what}")).register(pool), what, hint }
    }

    /// The bytes it has.
    pub(crate) fn bytes(&self) -> usize {
        self.reservation.size()
    }

    /// Makes it a claim of so many bytes. Refused, it stays what it was.
    pub(crate) fn resize(&self, bytes: usize) -> Result<()> {
        self.reservation.try_resize(bytes).map_err(|e| self.refused(bytes, e))
    }

    /// Claims so many bytes more. Refused, it stays what it was.
    pub(crate) fn grow(&self, bytes: usize) -> Result<()> {
        self.reservation.try_grow(bytes).map_err(|e| self.refused(self.bytes().saturating_add(bytes), e))
    }

    /// Gives all of it back.
    pub(crate) fn free(&self) {
        self.reservation.free();
    }

    fn refused(&self, bytes: usize, cause: datafusion::error::DataFusionError) -> Error {
        let Claim { what, hint, .. } = self;
        let said = cause.strip_backtrace();
        Error::new(
            ErrorKind::OutOfMemory,
            format!("{what} needs {bytes} bytes of memory, more than the session has left: {said}"),
        )
        .with_hint(*hint)
        .with_source(cause)
    }
}

/// The bytes that the pool could still give; `None` if it has no limit.
#[cfg(feature = "kafka")]
pub(crate) fn left_in(pool: &Arc<dyn MemoryPool>) -> Option<usize> {
    use datafusion::execution::memory_pool::MemoryLimit;

    match pool.memory_limit() {
        MemoryLimit::Finite(limit) => Some(limit.saturating_sub(pool.reserved())),
        MemoryLimit::Infinite | MemoryLimit::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::execution::memory_pool::GreedyMemoryPool;

    use super::*;

    #[test]
    fn a_refusal_says_what_for_how_much_and_what_to_do() {
        let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(100));
        let claim = Claim::new(&pool, "the rows of a test", "keep fewer");
        claim.grow(60).unwrap();
        for error in [claim.grow(50).unwrap_err(), claim.resize(110).unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::OutOfMemory);
            assert!(error.message().contains("the rows of a test needs 110 bytes"), "{error}");
            assert_eq!(error.hint(), Some("keep fewer"));
        }
        assert_eq!((claim.bytes(), pool.reserved()), (60, 60));
        claim.resize(10).unwrap();
        assert_eq!(pool.reserved(), 10);
        claim.free();
        assert_eq!(pool.reserved(), 0);
    }
}
