//! What was seen so far → the next batch's watermark.

use std::collections::BTreeMap;

use super::WatermarkPolicy;

/// Remembers, for each `with_watermark` of a query, how far event time has come, and what follows for the next batch.
///
/// Always holds: the watermark never goes back. A node that has seen no row counts as 0 (Spark's rule), so under
/// [`WatermarkPolicy::Min`] it holds the others at the start.
///
/// ```
/// use tidewater::watermark::{WatermarkPolicy, WatermarkTracker};
///
/// let mut tracker = WatermarkTracker::new(WatermarkPolicy::Min, vec![10_000, 5_000]);
/// tracker.observe(0, 25_000);
/// assert_eq!(tracker.watermark_ms(), 0); // the second has seen nothing
/// tracker.observe(1, 12_000);
/// assert_eq!(tracker.watermark_ms(), 7_000);
/// ```
#[derive(Debug, Clone)]
pub struct WatermarkTracker {
    policy: WatermarkPolicy,
    /// By node: how late rows may be.
    delays_ms: Vec<i64>,
    /// By node: its own watermark, once it has seen a row.
    node_watermarks_ms: Vec<Option<i64>>,
    watermark_ms: i64,
}

impl WatermarkTracker {
    /// Nothing seen yet; `delays_ms` has one entry per `with_watermark`.
    pub fn new(policy: WatermarkPolicy, delays_ms: Vec<i64>) -> Self {
        let node_watermarks_ms = vec![None; delays_ms.len()];
        WatermarkTracker { policy, delays_ms, node_watermarks_ms, watermark_ms: 0 }
    }

    /// Takes up where a checkpoint left off.
    pub fn restore(&mut self, watermark_ms: i64, node_watermarks_ms: &BTreeMap<usize, i64>) {
        self.watermark_ms = self.watermark_ms.max(watermark_ms);
        for (&node, &ms) in node_watermarks_ms {
            // A restart may be of a query with fewer: then what is left of theirs is in `watermark_ms`.
            if let Some(own) = self.node_watermarks_ms.get_mut(node) {
                *own = Some(own.map_or(ms, |own| own.max(ms)));
            }
        }
    }

    /// Node `node` saw rows, the latest at `event_time_ms_max`.
    ///
    /// # Panics
    ///
    /// If the query has no such node.
    pub fn observe(&mut self, node: usize, event_time_ms_max: i64) {
        let (own, delay_ms) = (&mut self.node_watermarks_ms[node], self.delays_ms[node]);
        let candidate = event_time_ms_max.saturating_sub(delay_ms);
        *own = Some(own.map_or(candidate, |own| own.max(candidate)));
        let combined = self.policy.combine(self.node_watermarks_ms.iter().map(|own| own.unwrap_or(0)));
        self.watermark_ms = combined.map_or(self.watermark_ms, |ms| ms.max(self.watermark_ms));
    }

    /// Whether the query has a `with_watermark` at all.
    pub fn is_used(&self) -> bool {
        !self.delays_ms.is_empty()
    }

    /// The watermark of the next batch, in milliseconds since 1970.
    pub fn watermark_ms(&self) -> i64 {
        self.watermark_ms
    }

    /// By node, its own watermark, where it has seen a row.
    pub fn node_watermarks_ms(&self) -> BTreeMap<usize, i64> {
        self.node_watermarks_ms.iter().enumerate().filter_map(|(node, ms)| ms.map(|ms| (node, ms))).collect()
    }

    /// The node that holds the watermark where it is, if several compete: the one with the lowest own watermark (highest
    /// under [`WatermarkPolicy::Max`]).
    pub fn held_by(&self) -> Option<usize> {
        if self.delays_ms.len() < 2 {
            return None;
        }
        let own = |(node, ms): (usize, &Option<i64>)| (ms.unwrap_or(0), node);
        let nodes = self.node_watermarks_ms.iter().enumerate().map(own);
        match self.policy {
            WatermarkPolicy::Min => nodes.min(),
            WatermarkPolicy::Max => nodes.max(),
        }
        .map(|(_, node)| node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spark's EventTimeWatermarkSuite "watermark with 2 streams", in seconds.
    #[test]
    fn the_slowest_of_two_streams_counts() {
        let mut tracker = WatermarkTracker::new(WatermarkPolicy::Min, vec![10_000, 5_000]);
        for (node, second, expected) in [
            (0, 11, 0),
            (1, 6, 1),
            (1, 8, 1),
            (0, 21, 3),
            (1, 17, 11),
            (1, 39, 11),
            (0, 31, 21),
            (0, 41, 31),
            (0, 51, 34),
        ] {
            tracker.observe(node, second * 1000);
            assert_eq!(tracker.watermark_ms(), expected * 1000, "after {second} at {node}");
        }
    }

    #[test]
    fn the_watermark_never_goes_back() {
        let mut tracker = WatermarkTracker::new(WatermarkPolicy::Max, vec![0]);
        tracker.observe(0, 50_000);
        tracker.observe(0, 10_000);
        assert_eq!(tracker.watermark_ms(), 50_000);
        tracker.restore(20_000, &BTreeMap::new());
        assert_eq!(tracker.watermark_ms(), 50_000);
    }

    #[test]
    fn a_restart_forgets_no_stream() {
        let mut tracker = WatermarkTracker::new(WatermarkPolicy::Min, vec![0, 0]);
        tracker.observe(0, 90_000);
        tracker.observe(1, 10_000);
        let mut again = WatermarkTracker::new(WatermarkPolicy::Min, vec![0, 0]);
        again.restore(tracker.watermark_ms(), &tracker.node_watermarks_ms());
        again.observe(1, 80_000);
        assert_eq!(again.watermark_ms(), 80_000);
    }
}
