//! Seeded rows: the same seed always gives the same rows.

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use serde_json::{Value, json};
use tidewater::error::Result;
use tidewater::testing::table;

/// 2024-01-01T00:00:00 UTC, where event times begin.
const FIRST_SECOND: i64 = 1_704_067_200;

/// A generator of numbers that look random (Knuth's multiplier, high bits used).
#[derive(Debug, Clone)]
pub struct Lcg(u64);

impl Lcg {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Lcg(seed.wrapping_mul(2).wrapping_add(0x9E37_79B9_7F4A_7C15))
    }

    /// The next number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound.max(1)
    }
}

/// The columns of [`events`]: `ts` (timestamp), `k` (text), `v` (integer).
pub fn event_schema() -> Result<SchemaRef> {
    table::schema(&[("ts", "timestamp"), ("k", "string"), ("v", "long")])
}

/// `count` rows: times within two minutes, keys `a` to `e` and one that file names must escape, values from -50 to 150, and
/// now and then a null.
pub fn events(seed: u64, count: usize) -> Result<RecordBatch> {
    let mut random = Lcg::new(seed);
    let rows: Vec<Value> = (0..count)
        .map(|_| {
            let key = ["a", "b", "c", "d", "e", "x y/z=1"][random.below(6) as usize];
            let key = if random.below(12) == 0 { Value::Null } else { json!(key) };
            let value = if random.below(10) == 0 { Value::Null } else { json!(random.below(200) as i64 - 50) };
            let second = FIRST_SECOND + random.below(120) as i64;
            let time = chrono::DateTime::from_timestamp(second, 0).map(|time| time.to_rfc3339());
            json!([time, key, value])
        })
        .collect();
    table::rows(&event_schema()?, &json!(rows))
}

#[cfg(test)]
mod tests {
    use tidewater::testing::{assert_same_rows, difference};

    use super::*;

    #[test]
    fn a_seed_is_a_table() {
        assert_same_rows(&[events(7, 100).unwrap()], &[events(7, 100).unwrap()]);
        assert!(difference(&[events(7, 100).unwrap()], &[events(8, 100).unwrap()]).unwrap().is_some());
    }
}
