//! A memory pool that knows the most it ever gave out.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use datafusion::error::Result;
use datafusion::execution::memory_pool::{MemoryPool, MemoryReservation};

/// A memory pool that refuses nothing and remembers the most that was reserved at a time: for tests of how much something
/// takes.
///
/// ```
/// use std::sync::Arc;
/// use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool};
/// use tidewater::testing::PeakMemory;
///
/// let peak = PeakMemory::new();
/// let pool: Arc<dyn MemoryPool> = peak.clone();
/// MemoryConsumer::new("a test").register(&pool).grow(100);
/// assert_eq!((pool.reserved(), peak.take()), (0, 100));
/// assert_eq!(peak.take(), 0);
/// ```
#[derive(Debug, Default)]
pub struct PeakMemory {
    now: AtomicUsize,
    peak: AtomicUsize,
}

impl PeakMemory {
    /// One that has given out nothing.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The most bytes that were reserved at a time since this was last asked.
    pub fn take(&self) -> usize {
        self.peak.swap(self.now.load(Ordering::Relaxed), Ordering::Relaxed)
    }
}

impl fmt::Display for PeakMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl MemoryPool for PeakMemory {
    fn name(&self) -> &str {
        "peak"
    }

    fn grow(&self, _: &MemoryReservation, additional: usize) {
        let now = self.now.fetch_add(additional, Ordering::Relaxed) + additional;
        self.peak.fetch_max(now, Ordering::Relaxed);
    }

    fn shrink(&self, _: &MemoryReservation, less: usize) {
        self.now.fetch_sub(less, Ordering::Relaxed);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        self.grow(reservation, additional);
        Ok(())
    }

    fn reserved(&self) -> usize {
        self.now.load(Ordering::Relaxed)
    }
}
