//! What a source or sink is, in words that stay: so that a checkpoint knows what it belongs to.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What a source or sink is: of which kind, at which place, and the options without which it would be another one. It is
/// written into the checkpoint and compared at the next start, so it holds no secret, and nothing that may change in the
/// life of a query: limits of a batch, credentials, addresses of brokers.
///
/// ```
/// use tidewater::identity::Identity;
///
/// let events = Identity::new("json files").at("file:///in/events");
/// assert_eq!(events.to_string(), "json files at file:///in/events");
/// let orders = Identity::new("kafka").at("orders").option("partitions", "0, 1");
/// assert_eq!(orders.to_string(), "kafka at orders (partitions: 0, 1)");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub(crate) kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) place: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) options: BTreeMap<String, String>,
    /// The place lives no longer than the process: after a restart it has another name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) passing: bool,
    /// Places that it [was moved](crate::query::StreamWriter::moved) from, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) formerly: Vec<String>,
}

impl Identity {
    /// Something of this kind.
    pub fn new(kind: impl Into<String>) -> Self {
        Identity { kind: kind.into(), place: None, options: BTreeMap::new(), passing: false, formerly: vec![] }
    }

    /// Where it is, always spelled alike.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.place = Some(place.into());
        self
    }

    /// A place that is found under this name only as long as the process lives. It is distinguished from others of the
    /// query, and not missed when it has another name.
    #[must_use]
    pub fn in_process(mut self, place: impl Into<String>) -> Self {
        self.passing = true;
        self.at(place)
    }

    /// An option that makes it what it is.
    #[must_use]
    pub fn option(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.insert(name.into(), value.into());
        self
    }

    /// Of which kind it is.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Where it is.
    pub fn place(&self) -> Option<&str> {
        self.place.as_deref()
    }

    /// An option by its name.
    pub fn get(&self, option: &str) -> Option<&str> {
        self.options.get(option).map(String::as_str)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if let Some(place) = &self.place {
            write!(f, " at {place}")?;
        }
        if !self.options.is_empty() {
            let options: Vec<String> = self.options.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            write!(f, " ({})", options.join("; "))?;
        }
        Ok(())
    }
}
