//! The orders that a test produces, and what must come of them.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat};
use serde_json::{Value, json};
use tidewater_workspace::events::Lcg;
use tidewater_workspace::kafka::{Broker, NewRecord};

/// 2024-01-01T00:00:00 UTC, when the first order is placed.
const FIRST_MS: i64 = 1_704_067_200_000;

/// Event time goes on by so much from round to round: half of what the example's `pipeline.rs` waits for late orders.
const ROUND_MS: u64 = 1000;

/// The windows of `pipeline.rs`.
const WINDOW_MS: i64 = 5000;

/// A large order of `pipeline.rs`, in quarters.
const LARGE: i64 = 90 * 4;

const MS_PER_HOUR: i64 = 3_600_000;

const ORDERS_PER_ROUND: usize = 40;
const CUSTOMERS: u64 = 20;
/// Amounts are below that, in quarters.
const AMOUNT_MAX: u64 = 100 * 4;

/// One record of so many is cut off in the middle.
const BROKEN: u64 = 25;

/// Amounts are in quarters, so that sums are exact in whatever order they are made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order {
    id: i64,
    customer: String,
    quarters: i64,
    at_ms: i64,
}

/// What a customer spent in a window.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Revenue {
    pub(super) from_ms: i64,
    pub(super) customer: String,
    pub(super) orders: i64,
    pub(super) quarters: i64,
}

/// A record's key and value.
pub(super) type Record = (String, String);

/// All that was produced.
pub(super) struct Orders {
    topic: String,
    random: Lcg,
    rounds: i64,
    good: Vec<Order>,
    broken: Vec<Record>,
}

impl Orders {
    /// None yet.
    pub(super) fn new(topic: String, seed: u64) -> Self {
        Orders { topic, random: Lcg::new(seed), rounds: 0, good: vec![], broken: vec![] }
    }

    /// Places orders within the next second. Returns when all of them are in the topic.
    pub(super) fn add_round(&mut self, broker: &Broker) {
        let from_ms = self.next_ms();
        self.rounds += 1;
        let records: Vec<_> = (0..ORDERS_PER_ROUND).map(|_| self.make(from_ms)).collect();
        broker.produce(&self.topic, records);
    }

    fn next_ms(&self) -> i64 {
        FIRST_MS + self.rounds * ROUND_MS as i64
    }

    /// The record of an order, in the partition that its key chooses.
    fn make(&mut self, from_ms: i64) -> NewRecord {
        let order = Order {
            id: (self.good.len() + self.broken.len()) as i64,
            customer: format!("customer-{}", self.random.below(CUSTOMERS)),
            quarters: self.random.below(AMOUNT_MAX) as i64,
            at_ms: from_ms + self.random.below(ROUND_MS) as i64,
        };
        let (key, mut value) = (order.customer.clone(), order.json());
        if self.random.below(BROKEN) == 0 {
            value.truncate(value.len() / 2);
            self.broken.push((key.clone(), value.clone()));
        } else {
            self.good.push(order);
        }
        NewRecord { key: Some(key.into_bytes()), value: Some(value.into_bytes()), ..NewRecord::default() }
    }

    /// Places an order an hour after all others: once it is read, their windows are over. Its own is never told.
    pub(super) fn end(&self, broker: &Broker) {
        let last = Order { id: -1, customer: "nobody".to_owned(), quarters: 4, at_ms: self.next_ms() + MS_PER_HOUR };
        broker.produce(&self.topic, [(0, "nobody", last.json().as_str())]);
    }

    /// What must be told of them one by one.
    pub(super) fn large(&self) -> Vec<Order> {
        self.good.iter().filter(|order| order.quarters >= LARGE).cloned().collect()
    }

    /// What must be told by window and customer.
    pub(super) fn revenue(&self) -> Vec<Revenue> {
        let mut windows: BTreeMap<(i64, &str), (i64, i64)> = BTreeMap::new();
        for order in &self.good {
            let from_ms = order.at_ms - order.at_ms.rem_euclid(WINDOW_MS);
            let (orders, quarters) = windows.entry((from_ms, order.customer.as_str())).or_default();
            *orders += 1;
            *quarters += order.quarters;
        }
        let mut told = vec![];
        for ((from_ms, customer), (orders, quarters)) in windows {
            told.push(Revenue { from_ms, customer: customer.to_owned(), orders, quarters });
        }
        told
    }

    /// The records that are no orders.
    pub(super) fn broken(&self) -> &[Record] {
        &self.broken
    }

    /// What was produced, in words.
    pub(super) fn told(&self) -> String {
        let all = self.good.len() + self.broken.len();
        format!("{all} orders in {} rounds, {} of them broken", self.rounds, self.broken.len())
    }
}

impl Order {
    fn json(&self) -> String {
        let at = DateTime::from_timestamp_millis(self.at_ms).unwrap().to_rfc3339_opts(SecondsFormat::Millis, true);
        let amount = self.quarters as f64 / 4.0;
        json!({"id": self.id, "customer": self.customer, "amount": amount, "ordered_at": at}).to_string()
    }

    /// A line of the console consumer.
    pub(super) fn read(line: &str) -> Self {
        let (customer, value) = object(line);
        Order {
            customer,
            id: value["id"].as_i64().unwrap(),
            quarters: quarters(value["amount"].as_f64().unwrap()),
            at_ms: millis(&value["ordered_at"]),
        }
    }
}

impl Revenue {
    /// A line of the console consumer.
    pub(super) fn read(line: &str) -> Self {
        let (customer, value) = object(line);
        Revenue {
            customer,
            from_ms: millis(&value["from"]),
            orders: value["orders"].as_i64().unwrap(),
            quarters: quarters(value["revenue"].as_f64().unwrap()),
        }
    }
}

/// Key and value of a line of the console consumer.
pub(super) fn record(line: &str) -> Record {
    let mut parts = line.splitn(3, '\t').skip(1);
    let (Some(key), Some(value)) = (parts.next(), parts.next()) else { panic!("no record: {line:?}") };
    (key.to_owned(), value.to_owned())
}

/// A record whose key is the customer, and the object that its value is.
fn object(line: &str) -> (String, Value) {
    let (key, value) = record(line);
    let value: Value = serde_json::from_str(&value).unwrap_or_else(|e| panic!("{e}: {line}"));
    assert_eq!(value["customer"], key.as_str(), "{line}");
    (key, value)
}

/// An amount in quarters.
pub(super) fn quarters(amount: f64) -> i64 {
    let quarters = amount * 4.0;
    assert_eq!(quarters.fract(), 0.0, "{amount} is no sum of quarters");
    quarters as i64
}

fn millis(time: &Value) -> i64 {
    DateTime::parse_from_rfc3339(time.as_str().unwrap()).unwrap().timestamp_millis()
}
