//! How much librdkafka may fetch ahead.
//!
//! It fetches nothing of a partition while its queue holds `queued.max.messages.kbytes`, and may go beyond that by one
//! answer of the broker, `fetch.message.max.bytes`. (A record batch that the producer made larger than that comes whole.)
//! Both together are on account of the session's memory pool, for every partition of every consumer, as long as the
//! consumer lives. What is not set by the user goes by what the pool has left, so that a query with little memory fetches
//! less far ahead instead of failing.

use rdkafka::ClientConfig;

use crate::kafka::client::ClientSettings;

/// What a consumer may hold of all its partitions.
const MOST: usize = 256 << 20;
/// Of what is left in the memory pool, one consumer may hold one part in so many.
const SHARE: usize = 8;
/// The least and the most that a consumer may hold of one partition.
const OF_PARTITION: (usize, usize) = (128 << 10, 64 << 20);
/// What the broker may send of one partition at once, if there is memory enough: librdkafka's own default.
const FETCH: usize = 1 << 20;

const QUEUE_KBYTES: &str = "queued.max.messages.kbytes";
/// Two names of one property.
const FETCH_BYTES: [&str; 2] = ["fetch.message.max.bytes", "max.partition.fetch.bytes"];

/// What to do when there is no memory for it.
pub(super) const HINT: &str = "give the session a larger memory pool, or fetch less far ahead: set the property `queued.max.messages.kbytes` lower, or read fewer partitions with the query";

/// What librdkafka may hold of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReadAhead {
    queue_kib: usize,
    fetch_bytes: usize,
}

impl ReadAhead {
    /// Of each of so many partitions, with so many bytes left in the memory pool (`None`: without a limit), and what the user
    /// set.
    pub(super) fn of(settings: &ClientSettings, left: Option<usize>, partitions: usize) -> Self {
        let given = |name: &str| settings.get(name)?.trim().parse::<usize>().ok();
        let may_hold = left.map_or(MOST, |left| MOST.min(left / SHARE));
        let (least, most) = OF_PARTITION;
        let own = (may_hold / partitions.max(1)).clamp(least, most);
        let fetch_bytes = FETCH_BYTES.into_iter().find_map(given).unwrap_or_else(|| FETCH.min(own / 2));
        let queue_kib = given(QUEUE_KBYTES).unwrap_or_else(|| own.saturating_sub(fetch_bytes) >> 10).max(1);
        ReadAhead { queue_kib, fetch_bytes }
    }

    /// In bytes.
    pub(super) fn bytes(self) -> usize {
        self.queue_kib.saturating_mul(1024).saturating_add(self.fetch_bytes)
    }

    /// Tells librdkafka what the user did not.
    pub(super) fn configure(self, settings: &ClientSettings, config: &mut ClientConfig) {
        if settings.get(QUEUE_KBYTES).is_none() {
            config.set(QUEUE_KBYTES, self.queue_kib.to_string());
        }
        if FETCH_BYTES.iter().all(|name| settings.get(name).is_none()) {
            config.set(FETCH_BYTES[0], self.fetch_bytes.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(given: &[(&str, &str)], left: Option<usize>, partitions: usize) -> ReadAhead {
        let mut settings = ClientSettings::new("localhost:1");
        given.iter().for_each(|(name, value)| settings.set(name, value));
        let ahead = ReadAhead::of(&settings, left, partitions);
        let mut config = settings.config();
        ahead.configure(&settings, &mut config);
        config.create_native_config().unwrap();
        ahead
    }

    #[test]
    fn partitions_share_what_a_consumer_may_hold() {
        let mib = |ahead: ReadAhead| ahead.bytes() >> 20;
        assert_eq!((mib(of(&[], None, 1)), mib(of(&[], None, 4)), mib(of(&[], None, 64))), (64, 64, 4));
        assert_eq!(of(&[], None, 4), ReadAhead { queue_kib: 63 << 10, fetch_bytes: 1 << 20 });
        assert_eq!(of(&[], None, 256), ReadAhead { queue_kib: 512, fetch_bytes: 512 << 10 });
        assert_eq!(of(&[], Some(64 << 20), 4).bytes(), 2 << 20, "an eighth of what is left");
        for left in [Some(0), Some(1 << 20)] {
            assert_eq!(of(&[], left, 10_000), ReadAhead { queue_kib: 64, fetch_bytes: 64 << 10 }, "the least");
        }
    }

    #[test]
    fn what_the_user_set_counts() {
        assert_eq!(of(&[("queued.max.messages.kbytes", "7")], Some(0), 1).queue_kib, 7);
        for name in FETCH_BYTES {
            let ahead = of(&[(name, "300000")], None, 64);
            assert_eq!((ahead.fetch_bytes, ahead.bytes() >> 10), (300_000, (4 << 10) - 1));
        }
        assert_eq!(of(&[(FETCH_BYTES[0], "9000000")], None, 1000).queue_kib, 1);
    }
}
