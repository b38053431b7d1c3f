//! The guide: how to write, run and extend streaming queries.
//!
//! To read first:
//!
//! | page | what it explains |
//! |---|---|
//! | [`concepts`] | query, micro-batch, checkpoint, exactly once |
//! | [`triggers_and_output_modes`] | when batches run, and how the rows of a batch relate to those before |
//! | [`event_time`] | watermarks, late rows, and when state is evicted |
//!
//! What a query can do:
//!
//! | page | what it explains |
//! |---|---|
//! | [`windows`] | tumbling and sliding windows, sessions |
//! | [`joins`] | a stream with a table, two streams with each other |
//! | [`deduplication`] | the first row of each key |
//!
//! How to run it, and how it works:
//!
//! | page | what it explains |
//! |---|---|
//! | [`operations`] | progress, errors by kind, memory, restarts, changing a query, upgrading |
//! | [`coming_from_spark`] | what is the same as in Apache Spark, and every difference |
//! | [`architecture`] | the parts of the engine, and the order in which a batch writes to disk |
//!
//! How to extend it:
//!
//! | page | what it explains |
//! |---|---|
//! | [`writing_a_source`] | the contract of a source, and one in full |
//! | [`writing_a_sink`] | the contract of a sink, and one in full |
//!
//! The guide of `tidewater-connectors` continues this one: files, Kafka and object stores.

#[doc = include_str!("concepts.md")]
pub mod concepts {}

#[doc = include_str!("triggers_and_output_modes.md")]
pub mod triggers_and_output_modes {}

#[doc = include_str!("event_time.md")]
pub mod event_time {}

#[doc = include_str!("windows.md")]
pub mod windows {}

#[doc = include_str!("joins.md")]
pub mod joins {}

#[doc = include_str!("deduplication.md")]
pub mod deduplication {}

#[doc = include_str!("operations.md")]
pub mod operations {}

#[doc = include_str!("coming_from_spark.md")]
pub mod coming_from_spark {}

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = include_str!("writing_a_source.md")]
pub mod writing_a_source {}

#[doc = include_str!("writing_a_sink.md")]
pub mod writing_a_sink {}
