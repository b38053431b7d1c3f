//! Apache Kafka in and out, exactly once.
//!
//! ```text
//! broker ─▶ librdkafka, fetching ahead ─▶ [source] range of offsets ─▶ Arrow ─▶ query ─▶ [sink] rows + marker, one transaction ─▶ broker
//!                                          │                                                        │
//!                                   offsets/N of the checkpoint                       read back after a crash
//! ```
//!
//! The offsets that a query has read are in its checkpoint, nowhere else: there is no consumer group whose members take
//! partitions from each other. A batch is a range of offsets per partition, fixed before it is read, so it can be read again.
//!
//! The sink writes the rows of a batch and a marker ("this query has written so many batches") in one transaction. Whoever
//! starts the query again first fences what is left of the process before, then reads the marker, and knows whether the
//! batch that was under way is in Kafka. Readers that ask for committed records only (`isolation.level=read_committed`) see
//! every row once.
//!
//! | Part | Feature |
//! |---|---|
//! | [`KafkaSource`], [`KafkaSink`] | `kafka` |
//! | TLS, SASL | `kafka-ssl` |
//! | [Avro](crate::formats) with a schema registry | `avro` |
//!
//! Names of properties are librdkafka's, which are those of the Java client but for TLS stores and JAAS: `sasl.username`,
//! `sasl.password`, `ssl.ca.location`. No value of a property that holds a secret is ever shown.

mod client;
mod describe;
mod errors;
mod java_properties;
mod offsets;
mod retry;
mod sink;
mod source;

pub use self::offsets::PartitionOffsets;
pub use self::sink::KafkaSink;
pub use self::source::{BadRecordPolicy, KafkaSource, StartingOffsets};
