//! Where a query is in each partition.

use std::collections::BTreeMap;

use serde_json::Value;
use tidewater::error::{Error, Result};
use tidewater::source::Offset;

/// For each topic and partition a number: the next offset to read, or a time.
///
/// As JSON it looks as Spark writes it.
///
/// ```
/// use tidewater_connectors::kafka::PartitionOffsets;
///
/// let offsets = PartitionOffsets::from_json(r#"{"orders": {"1": 7, "0": 10}}"#)?;
/// assert_eq!(offsets.get("orders", 1), Some(7));
/// assert_eq!(offsets.to_json(), r#"{"orders":{"0":10,"1":7}}"#);
/// # Ok::<(), tidewater::error::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartitionOffsets(
    /// No topic is without partitions, so that equal offsets are equal values.
    BTreeMap<String, BTreeMap<i32, i64>>,
);

impl PartitionOffsets {
    /// In place of an offset: the first record there is.
    pub const EARLIEST: i64 = -2;
    /// In place of an offset: behind the last record.
    pub const LATEST: i64 = -1;

    /// Of no partition.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the offset of one partition; what was set before is forgotten.
    pub fn set(&mut self, topic: &str, partition: i32, offset: i64) {
        self.0.entry(topic.to_owned()).or_default().insert(partition, offset);
    }

    /// The offset of one partition, if it is known.
    pub fn get(&self, topic: &str, partition: i32) -> Option<i64> {
        self.0.get(topic)?.get(&partition).copied()
    }

    /// Topic, partition and offset, by topic and then by partition as a number.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i32, i64)> {
        self.0.iter().flat_map(|(topic, partitions)| {
            partitions.iter().map(move |(partition, offset)| (topic.as_str(), *partition, *offset))
        })
    }

    /// How many partitions there are, of all topics.
    pub fn len(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    /// True if there is no partition.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads what a user wrote.
    ///
    /// # Errors
    ///
    /// If it is not JSON of this form.
    pub fn from_json(json: &str) -> Result<Self> {
        parse(json).map_err(|why| {
            Error::invalid(format!("`{json}` is not a number for each partition of each topic: {why}"))
                .with_hint(r#"write it like `{"topicA":{"0":23,"1":-1},"topicB":{"0":-2}}`"#)
        })
    }

    /// As JSON, topics by name and partitions by number.
    pub fn to_json(&self) -> String {
        self.to_value().to_string()
    }

    /// Reads what a checkpoint says.
    pub(crate) fn from_offset(offset: &Offset) -> Result<Self> {
        parse(offset.json()).map_err(|why| {
            Error::damaged(format!(
                "`{offset}` is not an offset of the Kafka source, a number for each partition of each topic: {why}"
            ))
            .with_hint("see that the checkpoint belongs to this query, and that its sources are in the same order")
        })
    }

    /// What a checkpoint keeps.
    pub(crate) fn to_offset(&self) -> Offset {
        Offset::new(self.to_value())
    }

    fn to_value(&self) -> Value {
        let topics = self.0.iter().map(|(topic, partitions)| {
            let partitions = partitions.iter().map(|(partition, offset)| (partition.to_string(), Value::from(*offset)));
            (topic.clone(), Value::Object(partitions.collect()))
        });
        Value::Object(topics.collect())
    }
}

impl FromIterator<(String, i32, i64)> for PartitionOffsets {
    fn from_iter<I: IntoIterator<Item = (String, i32, i64)>>(given: I) -> Self {
        let mut offsets = PartitionOffsets::new();
        for (topic, partition, offset) in given {
            offsets.0.entry(topic).or_default().insert(partition, offset);
        }
        offsets
    }
}

fn parse(json: &str) -> Result<PartitionOffsets, String> {
    let mut topics: BTreeMap<String, BTreeMap<i32, i64>> = serde_json::from_str(json).map_err(|e| e.to_string())?;
    topics.retain(|_, partitions| !partitions.is_empty());
    for (topic, partitions) in &topics {
        if let Some((partition, _)) = partitions.first_key_value().filter(|(partition, _)| **partition < 0) {
            return Err(format!("topic `{topic}` cannot have a partition {partition}"));
        }
    }
    Ok(PartitionOffsets(topics))
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Offsets of these partitions.
    pub(crate) fn offsets(given: &[(&str, i32, i64)]) -> PartitionOffsets {
        given.iter().map(|(topic, partition, offset)| ((*topic).to_owned(), *partition, *offset)).collect()
    }

    /// Numbers without a pattern, the same ones in every run.
    pub(crate) struct Numbers(pub(crate) u64);

    impl Numbers {
        /// The next one, from 0 to just below `end`.
        pub(crate) fn below(&mut self, end: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 20) % end
        }
    }
}

#[cfg(test)]
mod tests {
    use tidewater::error::ErrorKind;

    use super::testing::{Numbers, offsets};
    use super::*;

    #[test]
    fn options_are_read() {
        let read = PartitionOffsets::from_json(r#"{"topicA":{"0":23,"1":-1},"topicB":{"0":-2}}"#).unwrap();
        assert_eq!(read, offsets(&[("topicA", 0, 23), ("topicA", 1, -1), ("topicB", 0, -2)]));
        assert_eq!(read.get("topicA", 0), Some(23));
        assert_eq!(read.get("topicA", 1), Some(PartitionOffsets::LATEST));
        assert_eq!(read.get("topicB", 0), Some(PartitionOffsets::EARLIEST));
        assert_eq!((read.get("topicB", 1), read.get("topicC", 0)), (None, None));
        assert_eq!(read.len(), 3);
    }

    #[test]
    fn what_is_wrong_is_answered_with_what_is_right() {
        for json in [
            "not json",
            "",
            "3",
            r#""earliest""#,
            r#"{"topicA":"first"}"#,
            r#"{"topicA":[0,1]}"#,
            r#"{"topicA":{"0":"earliest"}}"#,
            r#"{"topicA":{"0":1.5}}"#,
            r#"{"topicA":{"zero":1}}"#,
            r#"{"topicA":{"-1":1}}"#,
            r#"{"topicA":{"3000000000":1}}"#,
            r#"{"topicA":{"0":1}} and more"#,
        ] {
            let error = PartitionOffsets::from_json(json).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidQuery, "{error}");
            assert!(error.message().contains(json), "{error}");
            assert!(error.hint().unwrap().contains(r#"{"topicA":{"0":23"#), "{error}");
        }
    }

    #[test]
    fn topics_and_partitions_are_sorted() {
        let unsorted = offsets(&[("t", 10, 5), ("T", 0, 0), ("t", 2, 4), ("t", 1, i64::MAX)]);
        assert_eq!(unsorted.to_json(), r#"{"T":{"0":0},"t":{"1":9223372036854775807,"2":4,"10":5}}"#);
        let order: Vec<_> = unsorted.iter().collect();
        assert_eq!(order, [("T", 0, 0), ("t", 1, i64::MAX), ("t", 2, 4), ("t", 10, 5)]);
        // Two offsets are the same place if their JSON is the same, whatever the order they were written in.
        assert_eq!(unsorted.to_offset(), Offset::parse(&unsorted.to_json()).unwrap());
    }

    #[test]
    fn the_last_word_counts_and_no_topic_is_empty() {
        let mut twice = offsets(&[("t", 0, 2), ("t", 1, 3), ("t", 1, 4)]);
        assert_eq!(twice.to_json(), r#"{"t":{"0":2,"1":4}}"#);
        twice.set("t", 0, 9);
        assert_eq!(twice.get("t", 0), Some(9));
        let none = PartitionOffsets::from_json(r#"{"t":{}}"#).unwrap();
        assert_eq!(none, PartitionOffsets::new());
        assert!(none.is_empty());
        assert_eq!(none.to_json(), "{}");
    }

    #[test]
    fn offsets_of_old_checkpoints_are_read() {
        let offset = Offset::parse(r#"{"topic1":{"0":456,"1":789},"topic2":{"0":0}}"#).unwrap();
        let read = PartitionOffsets::from_offset(&offset).unwrap();
        assert_eq!(read, offsets(&[("topic1", 0, 456), ("topic1", 1, 789), ("topic2", 0, 0)]));
        assert_eq!(read.to_offset(), offset);
    }

    #[test]
    fn another_source_s_offset_is_no_offset() {
        for json in ["3", r#"{"logOffset":3}"#, r#"{"t":{"0":null}}"#, "null"] {
            let error = PartitionOffsets::from_offset(&Offset::parse(json).unwrap()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DamagedCheckpoint, "{error}");
            assert!(error.message().contains(json), "{error}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut numbers = Numbers(1);
        for _ in 0..200 {
            let mut written = PartitionOffsets::new();
            for _ in 0..numbers.below(40) {
                let topic = format!("topic \"{}\" ä", numbers.below(4));
                let offset = i64::try_from(numbers.below(1 << 43)).unwrap();
                written.set(&topic, i32::try_from(numbers.below(20)).unwrap(), offset);
            }
            assert_eq!(PartitionOffsets::from_json(&written.to_json()).unwrap(), written);
            assert_eq!(PartitionOffsets::from_offset(&written.to_offset()).unwrap(), written);
            assert_eq!(written.iter().count(), written.len());
            let again: PartitionOffsets =
                written.iter().map(|(topic, partition, offset)| (topic.to_owned(), partition, offset)).collect();
            assert_eq!(again, written);
        }
    }
}
