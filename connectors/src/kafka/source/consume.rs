//! Messages out of librdkafka's queues, many at a time.
//!
//! A [`Fetcher`](super::fetcher::Fetcher) is one librdkafka consumer: threads of its own fetch ahead, in the order of offsets,
//! into one queue per partition. A [`PartitionQueue`] hands out what lies there, by reference: keys and values are copied once,
//! into Arrow. (Polling message by message costs five times as much.)
//!
//! There is `unsafe` here because the `rdkafka` crate has no batches. What must hold:
//!
//! 1. Every message pointer that librdkafka returns is destroyed once: [`Owned`] does, when it is dropped.
//! 2. No message and no queue outlives its consumer: both live in a [`PartitionQueue`], which holds the consumer and drops it
//!    last.
//! 3. A reference to a message's bytes does not outlive the message: [`Message`] borrows from it.

#![expect(unsafe_code, reason = "batches of messages are not in the safe interface of librdkafka")]

use std::collections::VecDeque;
use std::ffi::{CStr, CString, c_void};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::bindings as sys;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};

use crate::kafka::client::ClientEvents;

/// How long a seek may take; the broker is not asked.
const SEEK_TIMEOUT: Duration = Duration::from_secs(30);
/// Messages taken in one call at most.
const MESSAGES_PER_CALL: usize = 4096;

fn one(topic: &str, partition: i32, offset: i64) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(1);
    list.add_partition_offset(topic, partition, Offset::from_raw(offset))?;
    Ok(list)
}

/// What one partition has to give.
pub(super) struct PartitionQueue {
    // Dropped in this order: messages, queue, consumer.
    state: Mutex<State>,
    queue: NativeQueue,
    consumer: Arc<BaseConsumer<ClientEvents>>,
    topic: String,
    partition: i32,
}

struct State {
    /// All below has been handed out, or is known not to exist.
    next: i64,
    /// Where the partition ended when librdkafka last said that it had come to the end.
    ended_at: Option<i64>,
    /// Taken out of the queue, and not asked for yet.
    left_over: VecDeque<Owned>,
}

/// How far [`PartitionQueue::take`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    /// All below has been handed out, or is known not to exist.
    pub(super) next: i64,
    /// Messages handed out.
    pub(super) messages: usize,
    /// Bytes of messages that were taken out of librdkafka's queue and not handed out.
    pub(super) left_over: usize,
}

impl PartitionQueue {
    /// Of one partition of this consumer, which is not assigned to it yet.
    pub(super) fn new(
        consumer: Arc<BaseConsumer<ClientEvents>>,
        topic: &str,
        partition: i32,
        from: i64,
    ) -> Result<Self, KafkaError> {
        let name = CString::new(topic)
            .map_err(|_| KafkaError::Subscription(format!("{topic:?} is not a valid topic name")))?;
        // SAFETY: the consumer is alive, and `name` until the call returns.
        let queue =
            unsafe { sys::rd_kafka_queue_get_partition(consumer.client().native_ptr(), name.as_ptr(), partition) };
        let queue = NonNull::new(queue)
            .map(NativeQueue)
            .ok_or(KafkaError::ClientCreation("librdkafka gave no queue for a partition".to_owned()))?;
        // Not into the consumer's common queue: before the partition is assigned, so that no message goes there.
        // SAFETY: the queue is alive; without a target, forwarding ends.
        unsafe { sys::rd_kafka_queue_forward(queue.0.as_ptr(), std::ptr::null_mut()) };
        let state = Mutex::new(State { next: from, ended_at: None, left_over: VecDeque::new() });
        Ok(PartitionQueue { state, queue, consumer, topic: topic.to_owned(), partition })
    }

    /// Goes on at `from`, which costs nothing if that is where it is.
    pub(super) fn seek(&self, from: i64) -> Result<(), KafkaError> {
        let mut state = self.state.lock();
        if state.next == from {
            return Ok(());
        }
        state.left_over.clear();
        state.ended_at = None;
        let sought = self.consumer.seek_partitions(one(&self.topic, self.partition, from)?, SEEK_TIMEOUT)?;
        match sought.elements().iter().try_for_each(|partition| partition.error()) {
            // It is not under way: it was assigned a moment ago, or has stopped at an error.
            Err(KafkaError::OffsetFetch(RDKafkaErrorCode::State)) => self.assign_again(&mut state, from),
            sought => {
                state.next = from;
                sought
            }
        }
    }

    /// All below has been handed out.
    pub(super) fn next(&self) -> i64 {
        self.state.lock().next
    }

    /// Begins anew at `from`, after an error.
    pub(super) fn restart(&self, from: i64) -> Result<(), KafkaError> {
        self.assign_again(&mut self.state.lock(), from)
    }

    fn assign_again(&self, state: &mut State, from: i64) -> Result<(), KafkaError> {
        let place = one(&self.topic, self.partition, from)?;
        self.consumer.incremental_unassign(&place)?;
        self.consumer.incremental_assign(&place)?;
        state.left_over.clear();
        // Until that is done, the position is the old one.
        state.ended_at = Some(self.position());
        state.next = from;
        Ok(())
    }

    /// Hands out messages below `end`, at most `at_most` of them and until `each` says false, waiting up to `wait` for the
    /// first. Offsets may have gaps: a stretch is over when [`Taken::next`] has reached `end`.
    ///
    /// # Errors
    ///
    /// What librdkafka says of the partition, once what came before has been handed out.
    pub(super) fn take(
        &self,
        end: i64,
        at_most: usize,
        wait: Duration,
        mut each: impl FnMut(Message<'_>) -> bool,
    ) -> Result<Taken, KafkaError> {
        let mut state = self.state.lock();
        let mut taken = Taken { next: state.next, messages: 0, left_over: 0 };
        let mut goes_on = true;
        if state.left_over.is_empty() && taken.next < end {
            let missing = usize::try_from(end - taken.next).unwrap_or(usize::MAX);
            self.fill(&mut state.left_over, missing.min(at_most).min(MESSAGES_PER_CALL), wait);
        }
        while let Some(message) = state.left_over.front() {
            match message.error() {
                // All below this offset has been handed out.
                Some(RDKafkaErrorCode::PartitionEOF) => {
                    let offset = message.offset();
                    taken.next = taken.next.max(offset);
                    state.ended_at = Some(offset);
                }
                Some(code) => {
                    state.left_over.pop_front();
                    state.next = taken.next;
                    return Err(KafkaError::MessageConsumption(code));
                }
                None if message.offset() >= end => {
                    taken.next = taken.next.max(end);
                    break;
                }
                None if taken.messages == at_most || !goes_on => break,
                // Handed out before; not seen to happen.
                None if message.offset() < taken.next => {}
                None => {
                    goes_on = each(message.message());
                    taken.messages += 1;
                    taken.next = message.offset() + 1;
                }
            }
            state.left_over.pop_front();
        }
        if taken.next < end && state.left_over.is_empty() && taken.messages < at_most && goes_on {
            // To librdkafka, the news that a partition ends at an offset is a record at that offset, so a position right
            // behind it says nothing.
            let position = self.position();
            if state.ended_at.is_none_or(|ended_at| position > ended_at + 1) {
                taken.next = taken.next.max(position.min(end));
            }
        }
        taken.next = taken.next.min(end.max(state.next));
        state.next = taken.next;
        taken.left_over = state.left_over.iter().map(Owned::bytes).sum();
        Ok(taken)
    }

    /// Moves up to `at_most` messages out of librdkafka's queue.
    fn fill(&self, left_over: &mut VecDeque<Owned>, at_most: usize, wait: Duration) {
        let mut found: Vec<*mut sys::rd_kafka_message_t> = vec![std::ptr::null_mut(); at_most];
        let mut call = |at_most: usize, wait: Duration| {
            let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
            // SAFETY: the queue is alive, and `found` has room for `at_most` pointers.
            let count = unsafe {
                sys::rd_kafka_consume_batch_queue(self.queue.0.as_ptr(), wait_ms, found.as_mut_ptr(), at_most)
            };
            let count = usize::try_from(count).unwrap_or(0);
            left_over.extend(found.iter().take(count).filter_map(|message| NonNull::new(*message)).map(Owned));
            count
        };
        // With a time to wait, librdkafka waits until as many have come as were asked for: so only the first is waited for.
        if call(at_most, Duration::ZERO) == 0 && !wait.is_zero() {
            call(1, wait);
        }
    }

    /// Behind the last record that was taken out of the queue, those included that are not for applications (the ends of
    /// transactions).
    fn position(&self) -> i64 {
        let Ok(list) = one(&self.topic, self.partition, sys::RD_KAFKA_OFFSET_INVALID.into()) else { return -1 };
        // SAFETY: consumer and list are alive.
        unsafe { sys::rd_kafka_position(self.consumer.client().native_ptr(), list.ptr()) };
        list.elements().first().map_or(-1, |partition| match partition.offset() {
            Offset::Offset(offset) => offset,
            _ => -1,
        })
    }
}

struct NativeQueue(NonNull<sys::rd_kafka_queue_t>);

// SAFETY: librdkafka's queues may be used from any thread.
unsafe impl Send for NativeQueue {}
// SAFETY: as above.
unsafe impl Sync for NativeQueue {}

impl Drop for NativeQueue {
    fn drop(&mut self) {
        // SAFETY: it is destroyed once, and before its consumer.
        unsafe { sys::rd_kafka_queue_destroy(self.0.as_ptr()) }
    }
}

/// A message that must be given back.
struct Owned(NonNull<sys::rd_kafka_message_t>);

// SAFETY: a message belongs to whoever holds it, on any thread.
unsafe impl Send for Owned {}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: it is destroyed once, and before its consumer.
        unsafe { sys::rd_kafka_message_destroy(self.0.as_ptr()) }
    }
}

impl Owned {
    fn message(&self) -> Message<'_> {
        // SAFETY: the message is alive as long as `self`.
        Message(unsafe { self.0.as_ref() })
    }

    fn offset(&self) -> i64 {
        self.message().offset()
    }

    /// The bytes that it takes, about.
    fn bytes(&self) -> usize {
        let message = self.message().0;
        size_of::<sys::rd_kafka_message_t>() + message.key_len + message.len
    }

    fn error(&self) -> Option<RDKafkaErrorCode> {
        let code: RDKafkaRespErr = self.message().0.err;
        if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET && self.is_truncation() {
            return Some(RDKafkaErrorCode::LogTruncation);
        }
        (code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| code.into())
    }

    /// librdkafka compares the leader epochs of what it has read with those of a new leader, and says in words alone that
    /// the new one lacked records.
    fn is_truncation(&self) -> bool {
        // SAFETY: the message is alive, and its text with it; that of an error code is static.
        let [text, truncated] = unsafe {
            [
                sys::rd_kafka_message_errstr(self.0.as_ptr()),
                sys::rd_kafka_err2str(RDKafkaRespErr::RD_KAFKA_RESP_ERR__LOG_TRUNCATION),
            ]
            .map(|text| if text.is_null() { c"" } else { CStr::from_ptr(text) })
        };
        !truncated.is_empty() && text.to_string_lossy().contains(truncated.to_string_lossy().as_ref())
    }
}

/// A record as it lies in librdkafka's memory.
#[derive(Clone, Copy)]
pub(super) struct Message<'a>(&'a sys::rd_kafka_message_t);

impl<'a> Message<'a> {
    /// The record's offset.
    pub(super) fn offset(self) -> i64 {
        self.0.offset
    }

    /// The record's key.
    pub(super) fn key(self) -> Option<&'a [u8]> {
        // SAFETY: librdkafka's key has this length and lives as long as the message.
        unsafe { bytes(self.0.key, self.0.key_len) }
    }

    /// The record's value.
    pub(super) fn value(self) -> Option<&'a [u8]> {
        // SAFETY: librdkafka's payload has this length and lives as long as the message.
        unsafe { bytes(self.0.payload, self.0.len) }
    }

    /// Milliseconds since 1970, and whether the broker set them; `None` if the record has no time.
    pub(super) fn timestamp(self) -> (Option<i64>, i32) {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is alive, and so is `kind`.
        let time_ms = unsafe { sys::rd_kafka_message_timestamp(self.0, &raw mut kind) };
        match kind {
            sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_CREATE_TIME => (Some(time_ms), 0),
            sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME => (Some(time_ms), 1),
            sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE => (None, -1),
        }
    }

    /// The record's headers, in order. Names that are not UTF-8 have their bad bytes replaced.
    pub(super) fn headers(self) -> impl Iterator<Item = (String, Option<&'a [u8]>)> {
        let mut headers = std::ptr::null_mut();
        // SAFETY: the message is alive; the headers stay its own.
        let found = unsafe { sys::rd_kafka_message_headers(self.0, &raw mut headers) };
        let there = found == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;
        (0..).map_while(move |index| {
            let (mut name, mut value, mut length) = (std::ptr::null(), std::ptr::null(), 0);
            if !there {
                return None;
            }
            // SAFETY: the headers live as long as the message.
            let read =
                unsafe { sys::rd_kafka_header_get_all(headers, index, &raw mut name, &raw mut value, &raw mut length) };
            if read != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR || name.is_null() {
                return None;
            }
            // SAFETY: a header's name ends with a zero byte, and its value has this length; both are the message's.
            Some(unsafe { (CStr::from_ptr(name).to_string_lossy().into_owned(), bytes(value, length)) })
        })
    }
}

/// # Safety
///
/// `start` is null, or points at `length` bytes that live as long as `'a`.
unsafe fn bytes<'a>(start: *const c_void, length: usize) -> Option<&'a [u8]> {
    // SAFETY: as promised by the caller.
    (!start.is_null()).then(|| unsafe { slice::from_raw_parts(start.cast(), length) })
}
