//! The marker that the sink keeps in the cluster, and a cluster that forgot it.

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use tempfile::TempDir;
use tidewater::prelude::*;
use tidewater_connectors::kafka::KafkaSink;
use tidewater_workspace::kafka::Broker;

use super::steps::{PATIENCE, all_of, assert_says, into, run, values};
use super::{broker, new_topic, settled};

/// One topic copied to another, partition by partition.
struct Copying {
    broker: &'static Broker,
    from: String,
    to: String,
    dir: TempDir,
}

impl Copying {
    /// The query has copied two batches of two records.
    async fn new() -> Option<(Self, StreamingQuery)> {
        let broker = broker()?;
        let (from, to) = (new_topic(broker, "from"), new_topic(broker, "to"));
        let copying = Copying { broker, from, to, dir: tempfile::tempdir().unwrap() };
        broker.produce(&copying.from, [(0, "a"), (1, "b")]);
        copying.go_on(copying.sink()).await.unwrap();
        broker.produce(&copying.from, [(2, "c"), (1, "d")]);
        let query = copying.go_on(copying.sink()).await.unwrap();
        assert_eq!(copying.written(), ["a", "b", "c", "d"]);
        Some((copying, query))
    }

    fn sink(&self) -> KafkaSink {
        into(self.broker, &self.to)
    }

    async fn go_on(&self, sink: KafkaSink) -> Result<StreamingQuery> {
        run(all_of(self.broker, &self.from), sink, self.dir.path()).await
    }

    fn written(&self) -> Vec<String> {
        values(&settled(self.broker, &self.to))
    }

    /// As if the process had died after Kafka took the batch, and before the checkpoint said so.
    fn forget_commit(&self, batch: u64) {
        std::fs::remove_file(self.dir.path().join(format!("commits/{batch}"))).unwrap();
    }

    /// How many batches the marker says were taken.
    fn marker(&self, query: &StreamingQuery) -> Option<i64> {
        let marker = self.broker.committed_offsets(&group(query), &self.to).remove(&0)?;
        assert!(marker.metadata.contains(&query.id().to_string()), "it is signed: {marker:?}");
        Some(marker.offset)
    }

    /// As the cluster does after `offsets.retention.minutes`.
    async fn expire(&self, query: &StreamingQuery) {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", self.broker.bootstrap()).create().unwrap();
        let group = group(query);
        let options = AdminOptions::new().request_timeout(Some(PATIENCE));
        let deleted = admin.delete_groups(&[group.as_str()], &options).await.unwrap();
        assert_eq!(deleted, [Ok(group)]);
        assert_eq!(self.marker(query), None);
    }
}

fn group(query: &StreamingQuery) -> String {
    format!("tidewater-{}-output", query.id())
}

/// With its marker, a batch in doubt is known to be there. Without, nobody can know, and nobody guesses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_in_doubt_without_its_marker_is_refused() {
    let Some((copying, query)) = Copying::new().await else { return };
    assert_eq!(copying.marker(&query), Some(2));
    copying.forget_commit(1);
    copying.go_on(copying.sink()).await.unwrap();
    assert_eq!(copying.written(), ["a", "b", "c", "d"]);

    copying.forget_commit(1);
    copying.expire(&query).await;
    for _ in 0..2 {
        let refused = copying.go_on(copying.sink()).await.unwrap_err();
        let (group, to) = (format!("`{}`", group(&query)), format!("`{}`", copying.to));
        let wanted = ["nobody knows", "batch 1", &group, &to, "`offsets.retention.minutes`", "at least once"];
        assert_says(&refused, ErrorKind::DamagedCheckpoint, &wanted);
    }
    assert_eq!(copying.written(), ["a", "b", "c", "d"]);

    // The way out that it names doubles the batch, as it says, and then all is as before.
    copying.go_on(copying.sink().at_least_once()).await.unwrap();
    assert_eq!(copying.written(), ["a", "b", "c", "c", "d", "d"]);
    copying.broker.produce(&copying.from, [(0, "e")]);
    copying.go_on(copying.sink()).await.unwrap();
    assert_eq!(copying.written(), ["a", "b", "c", "c", "d", "d", "e"]);
    assert_eq!(copying.marker(&query), Some(3));
}

/// A query that rested for long, with all its batches done, goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_marker_that_nobody_needs_is_written_again() {
    let Some((copying, query)) = Copying::new().await else { return };
    copying.expire(&query).await;
    copying.broker.produce(&copying.from, [(0, "e"), (1, "f")]);
    copying.go_on(copying.sink()).await.unwrap();
    assert_eq!(copying.written(), ["a", "b", "c", "d", "e", "f"]);
    assert_eq!(copying.marker(&query), Some(3));
}
