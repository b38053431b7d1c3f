//! Little memory: sources fetch less far ahead and give out smaller record batches, and what cannot be smaller fails by name.

use std::path::Path;

use datafusion::prelude::*;
use tidewater::prelude::*;
use tidewater::testing::limited_memory;
use tidewater_workspace::kafka::{Broker, NewRecord, Record};

use super::steps::{all_of, assert_says, into, sorted};
use super::{TOPIC_PARTITIONS, broker, new_topic, settled};
use crate::job::{PARTITIONS, finish, to_the_end};

const RECORDS: usize = 3_000;

/// Six megabytes in all.
fn produce(broker: &Broker, topic: &str) {
    let record = |n: usize| NewRecord {
        partition: Some(n as i32 % TOPIC_PARTITIONS),
        key: Some(n.to_string().into_bytes()),
        value: Some(format!("{n:>2000}").into_bytes()),
        headers: vec![],
        timestamp_ms: None,
    };
    broker.produce(topic, (0..RECORDS).map(record));
}

/// Runs a copy of a topic's keys and values to its end, with so much memory. All of it must be given back.
async fn copy(
    broker: &Broker,
    from: &str,
    memory_bytes: usize,
    sink: impl tidewater::sink::Sink + 'static,
    checkpoint: &Path,
) -> Result<StreamingQuery> {
    let runtime = limited_memory(memory_bytes).unwrap();
    let ctx = SessionContext::new_with_config_rt(SessionConfig::new(), runtime.clone());
    let rows = ctx
        .read_stream(all_of(broker, from).min_partitions(PARTITIONS))
        .unwrap()
        .select_columns(&["key", "value"])
        .unwrap();
    let ended = finish(to_the_end(rows, sink, checkpoint)).await;
    assert_eq!(runtime.memory_pool.reserved(), 0, "memory was not given back: {ended:?}");
    ended
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_is_read_with_less_memory_than_it_has() {
    let Some(broker) = broker() else { return };
    let topic = new_topic(broker, "little-memory");
    produce(broker, &topic);
    let dir = tempfile::tempdir().unwrap();
    let query = copy(broker, &topic, 5 << 20, DiscardSink::new(), &dir.path().join("read")).await.unwrap();
    assert_eq!(query.last_progress().unwrap().num_input_rows, RECORDS as u64);

    let refused = copy(broker, &topic, 100 << 10, DiscardSink::new(), &dir.path().join("refused")).await.unwrap_err();
    assert_says(&refused, ErrorKind::OutOfMemory, &["the read-ahead of kafka", &topic, "bytes", "queued.max.messages"]);
}

/// A sink keeps most of a batch until its commit. A batch that was too large is repeated when there is more memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_the_sink_cannot_keep_fails_and_is_repeated() {
    let Some(broker) = broker() else { return };
    let [from, to] = ["too-large", "too-large-copied"].map(|name| new_topic(broker, name));
    produce(broker, &from);
    let dir = tempfile::tempdir().unwrap();
    let refused = copy(broker, &from, 5 << 20, into(broker, &to), dir.path()).await.unwrap_err();
    assert_says(&refused, ErrorKind::OutOfMemory, &["needs", "bytes of memory", "maxOffsetsPerTrigger", "batch 0"]);
    assert!(settled(broker, &to).is_empty());

    copy(broker, &from, 24 << 20, into(broker, &to), dir.path()).await.unwrap();
    let keys = sorted(settled(broker, &to).iter().map(Record::key_text).collect());
    assert_eq!(keys, sorted((0..RECORDS).map(|n| n.to_string()).collect()));
}
