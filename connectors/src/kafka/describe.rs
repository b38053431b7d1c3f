//! Which topic it is. Kafka gives every topic an id when it is made: one that is deleted and made again under its name has
//! another. The `rdkafka` crate does not show it, so librdkafka is asked. What must hold:
//!
//! 1. Everything that librdkafka makes for a question is destroyed once, by a [`Made`], the queue after its event.
//! 2. What an event points to is copied before the event is destroyed.

#![expect(unsafe_code, reason = "ids of topics are not in the safe interface of librdkafka")]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::ptr::{self, NonNull};
use std::slice;
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::types::{RDKafkaAdminOp, RDKafkaErrorCode as Code, RDKafkaRespErr};

use super::client::ClientEvents;

/// What Kafka calls a topic of which it keeps no id, in sixteen zero bytes.
const NO_ID: (i64, i64) = (0, 0);
/// The answer may come a little later than librdkafka gives up.
const GRACE: Duration = Duration::from_millis(500);

/// By topic: its id, as Kafka's own tools write it; `None` where the broker keeps none, as those before 2.8 do.
pub(crate) type Described = BTreeMap<String, Option<String>>;

/// Asks for the ids of these topics. One that is not there is left out.
pub(crate) fn describe<'a>(
    consumer: &BaseConsumer<ClientEvents>,
    topics: impl IntoIterator<Item = &'a str>,
    timeout: Duration,
) -> Result<Described, KafkaError> {
    let names: Vec<CString> =
        topics.into_iter().map(CString::new).collect::<Result<_, _>>().map_err(KafkaError::Nul)?;
    if names.is_empty() {
        return Ok(Described::new());
    }
    let client = consumer.client().native_ptr();
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let failed = || KafkaError::ClientCreation("librdkafka gave nothing to ask for topics with".to_owned());
    let timeout_ms = |timeout: Duration| i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);

    // SAFETY: the client and the names are alive until the calls return; librdkafka copies the names.
    let queue = Made::new(unsafe { sys::rd_kafka_queue_new(client) }, |it| unsafe { sys::rd_kafka_queue_destroy(it) });
    let queue = queue.ok_or_else(failed)?;
    let wanted = Made::new(
        // SAFETY: as above.
        unsafe { sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len()) },
        |it| unsafe { sys::rd_kafka_TopicCollection_destroy(it) },
    );
    let wanted = wanted.ok_or_else(failed)?;
    let options = Made::new(
        // SAFETY: the client is alive.
        unsafe { sys::rd_kafka_AdminOptions_new(client, RDKafkaAdminOp::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS) },
        |it| unsafe { sys::rd_kafka_AdminOptions_destroy(it) },
    );
    let options = options.ok_or_else(failed)?;
    // SAFETY: all of them are alive; a text of length zero is not written to.
    unsafe {
        sys::rd_kafka_AdminOptions_set_request_timeout(options.get(), timeout_ms(timeout), ptr::null_mut(), 0);
        sys::rd_kafka_DescribeTopics(client, wanted.get(), options.get(), queue.get());
    }
    let event = Made::new(
        // SAFETY: the queue is alive.
        unsafe { sys::rd_kafka_queue_poll(queue.get(), timeout_ms(timeout + GRACE)) },
        |it| unsafe { sys::rd_kafka_event_destroy(it) },
    );
    let event = event.ok_or(KafkaError::MetadataFetch(Code::OperationTimedOut))?;
    // SAFETY: the event is alive, as long as all that it points to.
    unsafe { read(event.get()) }
}

/// Copies what an answer says.
///
/// # Safety
///
/// The event must be alive.
unsafe fn read(event: *mut sys::rd_kafka_event_t) -> Result<Described, KafkaError> {
    // SAFETY: the caller's.
    let error = unsafe { sys::rd_kafka_event_error(event) };
    if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Err(KafkaError::MetadataFetch(error.into()));
    }
    let mut count = 0;
    // SAFETY: the event is alive; if it is not an answer, there is no result.
    let topics = unsafe {
        let result = sys::rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return Err(KafkaError::MetadataFetch(Code::BadMessage));
        }
        let topics = sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        if topics.is_null() { &[][..] } else { slice::from_raw_parts(topics, count) }
    };
    let mut described = Described::new();
    for topic in topics {
        // SAFETY: the topic lives as long as the event, its name and its id too.
        let (name, code, id) = unsafe {
            let name = CStr::from_ptr(sys::rd_kafka_TopicDescription_name(*topic)).to_string_lossy().into_owned();
            let code = sys::rd_kafka_error_code(sys::rd_kafka_TopicDescription_error(*topic));
            (name, code, id_of(sys::rd_kafka_TopicDescription_topic_id(*topic)))
        };
        match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => drop(described.insert(name, id)),
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
            | RDKafkaRespErr::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC => {}
            other => return Err(KafkaError::MetadataFetch(other.into())),
        }
    }
    Ok(described)
}

/// # Safety
///
/// The id must be null or alive.
unsafe fn id_of(id: *const sys::rd_kafka_Uuid_t) -> Option<String> {
    if id.is_null() {
        return None;
    }
    // SAFETY: it is alive, and so is the text that it holds of itself.
    unsafe {
        let bits = (sys::rd_kafka_Uuid_most_significant_bits(id), sys::rd_kafka_Uuid_least_significant_bits(id));
        let text = sys::rd_kafka_Uuid_base64str(id);
        (bits != NO_ID && !text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    }
}

/// Something that librdkafka made, and how it is destroyed.
struct Made<T>(NonNull<T>, fn(*mut T));

impl<T> Made<T> {
    fn new(made: *mut T, destroy: fn(*mut T)) -> Option<Self> {
        NonNull::new(made).map(|made| Made(made, destroy))
    }

    fn get(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Drop for Made<T> {
    fn drop(&mut self) {
        (self.1)(self.get());
    }
}
