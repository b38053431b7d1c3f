//! Rows that come out of order, but never so late that they are dropped.

use std::sync::Arc;

use serde_json::{Value, json};
use tidewater::testing::table;
use tidewater_workspace::events::Lcg;

use super::Input;

/// Time, key and two values.
pub(crate) const EVENTS: [(&str, &str); 4] = [("ts", "timestamp"), ("k", "string"), ("v", "long"), ("x", "double")];

/// The left side of a join.
pub(crate) const LEFT: [(&str, &str); 3] = [("lts", "timestamp"), ("lk", "string"), ("lv", "long")];

/// The right side of a join.
pub(crate) const RIGHT: [(&str, &str); 3] = [("rts", "timestamp"), ("rk", "string"), ("rv", "long")];

/// 2024-01-01T00:00:00 UTC, where event times begin.
const FIRST_MS: i64 = 1_704_067_200_000;

/// A closing row comes last and is so far ahead that its watermark passes all others.
const CLOSING: &str = "2030-01-01T00:00:00Z";

/// 2029-12-01 UTC: no row but a closing one, and no window but that of a closing row, is later.
pub(crate) const AFTER_ALL_US: i64 = 1_890_777_600_000_000;

/// So many rows are looked back at for one to come twice.
const RECENT: usize = 5;

/// A source of rows: seeded, so that the same seed gives the same rows.
#[derive(Debug, Clone)]
pub(crate) struct Arrivals {
    random: Lcg,
    /// No row so far is later.
    newest_ms: i64,
    /// No row is further behind than this.
    disorder_ms: u64,
    /// By so much time goes on between two rows, at most.
    step_ms: u64,
    keys: u64,
    recent: Vec<(i64, Value)>,
}

impl Arrivals {
    /// Rows of so many keys, at most `disorder_ms` behind the newest, `step_ms` at most from one to the next.
    pub(crate) fn new(seed: u64, keys: u64, disorder_ms: u64, step_ms: u64) -> Self {
        Arrivals { random: Lcg::new(seed), newest_ms: FIRST_MS, disorder_ms, step_ms, keys, recent: vec![] }
    }

    /// The next row, with the first `columns` of time, key, integer and double. One in six is the exact copy of a
    /// recent one; of the others one in twelve has no key, and as many no integer.
    pub(crate) fn row(&mut self, columns: usize) -> Value {
        let random = &mut self.random;
        self.newest_ms += random.below(self.step_ms + 1) as i64;
        let oldest_ms = self.newest_ms - self.disorder_ms as i64;
        self.recent.retain(|(at_ms, _)| *at_ms >= oldest_ms);
        if !self.recent.is_empty() && random.below(6) == 0 {
            let (_, copy) = &self.recent[random.below(self.recent.len() as u64) as usize];
            return copy.clone();
        }
        let at_ms = self.newest_ms - random.below(self.disorder_ms + 1) as i64;
        let key = match random.below(12) {
            0 => Value::Null,
            _ => json!(format!("key {}", random.below(self.keys))),
        };
        let integer = match random.below(12) {
            0 => Value::Null,
            _ => json!(random.below(40) as i64 - 15),
        };
        // A quarter is exact in binary, and so is every sum of quarters.
        let double = random.below(400) as f64 / 4.0 - 30.0;
        let mut row = vec![json!(time(at_ms)), key, integer, json!(double)];
        row.truncate(columns);
        let row = Value::Array(row);
        self.recent.push((at_ms, row.clone()));
        if self.recent.len() > RECENT {
            self.recent.remove(0);
        }
        row
    }
}

/// Milliseconds since 1970 as a timestamp in JSON.
pub(crate) fn time(at_ms: i64) -> String {
    let time = chrono::DateTime::from_timestamp_millis(at_ms).expect("a time in this era");
    time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

/// Milliseconds since 1970 of so many seconds after event times begin.
pub(crate) fn after_first(seconds: i64) -> i64 {
    FIRST_MS + seconds * 1000
}

/// An input of these columns, each list of rows one add; at last comes a closing row, with a key no other row has.
pub(crate) fn input(columns: &[(&str, &str)], adds: Vec<Vec<Value>>) -> Input {
    let schema = table::schema(columns).unwrap();
    let mut closing = vec![json!(CLOSING), json!(format!("closing {}", columns[1].0)), json!(2), json!(0.0)];
    closing.truncate(columns.len());
    let adds = adds.into_iter().chain([vec![Value::Array(closing)]]);
    let adds = adds.map(|rows| table::rows(&schema, &Value::Array(rows)).unwrap()).collect();
    Input { schema: Arc::clone(&schema), adds }
}
