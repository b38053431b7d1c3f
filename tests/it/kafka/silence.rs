//! A broker that does not answer is not one that has nothing new.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use tidewater::prelude::*;
use tidewater::source::Source;
use tidewater::testing::source_suite::{self, SourceUnderTest};
use tidewater_connectors::kafka::{KafkaSource, StartingOffsets};
use tidewater_workspace::kafka::{Broker, NewRecord, own_broker, unique_topic};

use super::steps::{all_of, assert_says, numbers, run, sorted, start, stream, texts, until};
use crate::job::{finish, session, to_the_end};

struct Topic<'a> {
    broker: &'a Broker,
    name: String,
    next: AtomicI64,
}

impl<'a> Topic<'a> {
    fn new(broker: &'a Broker) -> Self {
        let name = unique_topic("silence");
        broker.create_topic(&name, 2);
        Topic { broker, name, next: AtomicI64::new(0) }
    }
}

#[async_trait]
impl SourceUnderTest for Topic<'_> {
    fn source(&self) -> Arc<dyn Source> {
        Arc::new(all_of(self.broker, &self.name))
    }

    async fn add_rows(&self) -> Result<()> {
        let first = self.next.fetch_add(5, Ordering::Relaxed);
        let record = |value: i64| NewRecord::from(((value % 2) as i32, value.to_string().as_str()));
        self.broker.produce(&self.name, (first..first + 5).map(record));
        Ok(())
    }

    async fn go_away(&self) -> Result<bool> {
        self.broker.kill();
        Ok(true)
    }

    async fn come_back(&self) -> Result<()> {
        self.broker.resume();
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite() {
    let Some(broker) = own_broker() else { return };
    source_suite::silence_is_no_answer(&Topic::new(&broker)).await;
}

/// Three of ten records are read when the broker dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seven_of_ten_records_are_unread() {
    let Some(broker) = own_broker() else { return };
    let topic = Topic::new(&broker);
    let (dir, sink) = (tempfile::tempdir().unwrap(), MemorySink::new());
    let produce = |values: std::ops::Range<i64>| {
        broker.produce(&topic.name, values.map(|value| NewRecord::from((0, value.to_string().as_str()))));
    };
    let read = || sorted(texts(&sink.batches(), "value"));
    produce(0..3);
    let query = start(stream(all_of(&broker, &topic.name)).await, sink.clone(), dir.path()).await;
    until(&query, "three records", || read().len() == 3).await;
    broker.kill();

    let unknown = query.process_all_available().await.unwrap_err();
    let wanted = ["nobody knows", "waiting for kafka", &topic.name, "since 20", broker.bootstrap(), "no broker"];
    assert_says(&unknown, ErrorKind::Unavailable, &wanted);
    assert!(query.is_active(), "it waits");
    until(&query, "the status", || query.status().message.starts_with("waiting for kafka")).await;
    broker.resume();
    produce(3..10);
    until(&query, "all records", || read().len() == 10).await;
    query.stop().await.unwrap();
    assert_eq!(read(), numbers(0..10));

    produce(10..17);
    broker.kill();
    let source = KafkaSource::subscribe(broker.bootstrap(), [&topic.name]).starting_offsets(StartingOffsets::Earliest);
    for trigger in [Trigger::Once, Trigger::AvailableNow] {
        let stream = session().read_stream(source.clone()).unwrap();
        let failed = finish(to_the_end(stream, sink.clone(), dir.path()).trigger(trigger)).await.unwrap_err();
        assert_says(&failed, ErrorKind::Unavailable, &[broker.bootstrap(), "no broker", "check that the broker runs"]);
        assert_eq!(read(), numbers(0..10));
    }
    broker.resume();
    run(source, sink.clone(), dir.path()).await.unwrap();
    assert_eq!(read(), numbers(0..17));
}
