//! What offsets are offsets of. A topic that was deleted and made again under its name has records at the old offsets,
//! which are others; its id shows it. Ids lie beside the offsets: those of each batch as the proof in its entry of the
//! log, those of the beginning in the source's own log.
//!
//! Brokers before 2.8 keep no ids, and checkpoints of Spark or of older releases hold none: an id that is not known proves
//! nothing, and is not asked for. The first one that a run sees then counts for the rest of the run, and for its batches.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tidewater::error::{Error, Result};
use tidewater::source::Offset;

use crate::kafka::describe::Described;
use crate::kafka::offsets::PartitionOffsets;

/// The names of the ids in an offset's proof, and of those that the topics had before they were moved.
const IDS: &str = "topicIds";
const MOVED_FROM: &str = "movedFrom";

/// The ids of topics, as far as they are known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TopicIds {
    ids: BTreeMap<String, String>,
    /// Topics with the same records under another id, because the user said so: the id before.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    moved_from: BTreeMap<String, String>,
}

impl TopicIds {
    /// The ids that the broker reported.
    pub(super) fn described(described: Described) -> Self {
        described.into_iter().filter_map(|(topic, id)| Some((topic, id?))).collect()
    }

    /// The ids that lie beside an offset.
    pub(super) fn of(offset: &Offset) -> Result<Self> {
        let Some(proof) = offset.proof() else { return Ok(TopicIds::default()) };
        let read = |name| Self::from_value(proof.get(name).unwrap_or(&Value::Null));
        let ids = read(IDS).and_then(|ids| Ok(TopicIds { moved_from: read(MOVED_FROM)?.ids, ..ids }));
        ids.map_err(|why| {
            Error::damaged(format!("the proof of offset `{offset}` holds no ids of topics: {why}"))
                .with_hint("see that the checkpoint belongs to this query, and that its sources are in the same order")
        })
    }

    /// From JSON: an object of texts, or nothing.
    pub(super) fn from_value(value: &Value) -> Result<Self, serde_json::Error> {
        serde_json::from_value::<Option<BTreeMap<String, String>>>(value.clone())
            .map(|ids| ids.unwrap_or_default().into_iter().collect())
    }

    /// As JSON.
    pub(super) fn to_value(&self) -> Value {
        json!(self.ids)
    }

    /// True if no id is known.
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The id of a topic, if it is known.
    pub(super) fn get(&self, topic: &str) -> Option<&str> {
        self.ids.get(topic).map(String::as_str)
    }

    /// The topics whose ids are known.
    pub(super) fn topics(&self) -> impl Iterator<Item = &str> {
        self.ids.keys().map(String::as_str)
    }

    /// Takes over the ids of topics that are not known here.
    pub(super) fn learn(&mut self, others: &TopicIds) {
        for (topic, id) in &others.ids {
            self.ids.entry(topic.clone()).or_insert_with(|| id.clone());
        }
    }

    /// Takes over all that others know.
    pub(super) fn extend(&mut self, others: &TopicIds) {
        for (from, to) in [(&others.ids, &mut self.ids), (&others.moved_from, &mut self.moved_from)] {
            to.extend(from.iter().map(|(topic, id)| (topic.clone(), id.clone())));
        }
    }

    /// The topics that are not the same in `later`: both ids are known, and they differ.
    pub(super) fn made_again(&self, later: &TopicIds) -> BTreeSet<String> {
        let differs = |(topic, id): &(&String, &String)| {
            later.ids.get(*topic).is_some_and(|later| later != *id) && later.moved_from.get(*topic) != Some(id)
        };
        self.ids.iter().filter(differs).map(|(topic, _)| topic.clone()).collect()
    }

    /// That a topic was made again, for people.
    pub(super) fn describe_change(&self, topic: &str, later: &TopicIds) -> String {
        let id = |ids: &TopicIds| ids.get(topic).unwrap_or("unknown").to_owned();
        let (before, now) = (id(self), id(later));
        format!(
            "topic `{topic}` is not the one that the query reads: it was deleted and made again, for its id was `{before}` \
             and is `{now}`"
        )
    }

    /// All topics of `before` are still the same, whatever their ids say.
    pub(super) fn move_from(&mut self, before: &TopicIds) {
        for topic in before.made_again(self) {
            if let Some(id) = before.ids.get(&topic) {
                self.moved_from.insert(topic, id.clone());
            }
        }
    }

    /// Those of these topics alone.
    pub(super) fn only<'a>(&self, topics: impl IntoIterator<Item = &'a str>) -> Self {
        let mut only = TopicIds::default();
        for topic in topics {
            for (from, to) in [(&self.ids, &mut only.ids), (&self.moved_from, &mut only.moved_from)] {
                to.extend(from.get(topic).map(|id| (topic.to_owned(), id.clone())));
            }
        }
        only
    }

    /// These offsets, with the ids of their topics beside them.
    pub(super) fn beside(&self, offsets: &PartitionOffsets) -> Offset {
        let TopicIds { ids, moved_from } = self.only(offsets.iter().map(|(topic, ..)| topic));
        let offset = offsets.to_offset();
        match (ids.is_empty(), moved_from.is_empty()) {
            (true, _) => offset,
            (_, true) => offset.with_proof(json!({ IDS: ids })),
            _ => offset.with_proof(json!({ IDS: ids, MOVED_FROM: moved_from })),
        }
    }
}

impl FromIterator<(String, String)> for TopicIds {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(ids: I) -> Self {
        TopicIds { ids: ids.into_iter().collect(), moved_from: BTreeMap::new() }
    }
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &str); N]> for TopicIds {
    fn from(ids: [(&str, &str); N]) -> Self {
        ids.map(|(topic, id)| (topic.to_owned(), id.to_owned())).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use tidewater::error::ErrorKind;

    use super::*;
    use crate::kafka::offsets::testing::offsets;

    #[test]
    fn ids_lie_beside_the_offsets_that_spark_reads() {
        let ids = TopicIds::from([("t", "one"), ("u", "two"), ("other", "three")]);
        let beside = ids.beside(&offsets(&[("t", 0, 3), ("u", 1, 4), ("unknown", 0, 5)]));
        assert_eq!(beside.json(), r#"{"t":{"0":3},"u":{"1":4},"unknown":{"0":5}}"#);
        assert_eq!(beside.proof(), Some(json!({ "topicIds": { "t": "one", "u": "two" } })));
        assert_eq!(TopicIds::of(&beside).unwrap(), TopicIds::from([("t", "one"), ("u", "two")]));
        // Where nothing is known, the offset is what it always was.
        let plain = TopicIds::default().beside(&offsets(&[("t", 0, 3)]));
        assert_eq!((plain.proof(), TopicIds::of(&plain).unwrap()), (None, TopicIds::default()));
    }

    #[test]
    fn what_is_not_known_proves_nothing() {
        let before = TopicIds::from([("same", "1"), ("other", "2"), ("gone", "3")]);
        let now = TopicIds::from([("same", "1"), ("other", "9"), ("new", "4")]);
        assert_eq!(before.made_again(&now), BTreeSet::from(["other".to_owned()]));
        let mut learnt = before.clone();
        learnt.learn(&now);
        assert_eq!(learnt, TopicIds::from([("same", "1"), ("other", "2"), ("gone", "3"), ("new", "4")]));
        assert!(TopicIds::default().made_again(&now).is_empty());
    }

    /// A repeated batch must know it too, when the user does not say it any more.
    #[test]
    fn topics_that_were_moved_are_the_same_for_their_batch() {
        let (before, mut now) = (TopicIds::from([("t", "1"), ("u", "2")]), TopicIds::from([("t", "9"), ("u", "2")]));
        now.move_from(&before);
        assert!(before.made_again(&now).is_empty());
        let beside = now.beside(&offsets(&[("t", 0, 3), ("u", 0, 3)]));
        assert_eq!(beside.proof(), Some(json!({ "topicIds": { "t": "9", "u": "2" }, "movedFrom": { "t": "1" } })));
        assert!(before.made_again(&TopicIds::of(&beside).unwrap()).is_empty());
        // Another one is still another one.
        assert_eq!(TopicIds::from([("t", "7")]).made_again(&now), BTreeSet::from(["t".to_owned()]));
    }

    #[test]
    fn ids_are_those_of_the_broker_and_an_older_one_has_none() {
        let described = Described::from([("t".to_owned(), Some("x".to_owned())), ("old".to_owned(), None)]);
        assert_eq!(TopicIds::described(described), TopicIds::from([("t", "x")]));
    }

    #[test]
    fn a_proof_of_something_else_is_damage() {
        for proof in [json!({ "topicIds": 3 }), json!({ "topicIds": { "t": 3 } })] {
            let error = TopicIds::of(&Offset::new(1).with_proof(proof)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DamagedCheckpoint, "{error}");
        }
        assert_eq!(TopicIds::of(&Offset::new(1).with_proof(json!({ "more": 1 }))).unwrap(), TopicIds::default());
    }
}
