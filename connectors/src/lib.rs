//! Where Tidewater's rows come from and go to: files, Kafka, a rate, the console.
//!
//! | Name | Source | Sink | Feature |
//! |---|---|---|---|
//! | `csv`, `json`, `parquet` | [`FileSource`](file::FileSource): each new file of a folder, once | [`FileSink`](file::FileSink): exactly once, readable by Apache Spark | `file` |
//! | `rate` | [`RateSource`](rate::RateSource): so many rows a second | | `rate` |
//! | `rate-micro-batch` | [`RatePerBatchSource`](rate::RatePerBatchSource): so many rows a batch, the same in every run | | `rate` |
//! | `kafka` | [`KafkaSource`](kafka::KafkaSource): topics, by offsets kept in the checkpoint | [`KafkaSink`](kafka::KafkaSink): exactly once, by transactions | `kafka`, with TLS and SASL `kafka-ssl` |
//! | `console` | | [`ConsoleSink`](console::ConsoleSink): prints each batch, at least once | `console` |
//! | `discard`, `noop` | | [`DiscardSink`](tidewater::sink::DiscardSink) of the engine: counts rows and drops them | |
//!
//! What the bytes of messages say is read and written by [`formats`]: JSON, and with the feature `avro` Avro.
//!
//! In Rust, connectors are made by their own builders; by name and text options, by [`registry`].
//!
//! # Adding one
//!
//! 1. A feature and a folder (or file) named after the outside system. What it needs from outside is optional in
//!    `Cargo.toml`, so that whoever does not use it does not build it.
//! 2. A builder that implements [`Source`](tidewater::source::Source) or [`Sink`](tidewater::sink::Sink). Their modules say
//!    what is called in which order and what must hold.
//! 3. `from_options` beside the builder, through [`Options`](options::Options), with Spark's names where Spark has one.
//! 4. One line in [`registry`] and one in the table above.
//! 5. The proof: the engine's suite for sources or sinks (its feature `testing`) on the new one, and unit tests for what
//!    goes wrong.

#[cfg(feature = "console")]
pub mod console;
#[cfg(feature = "file")]
pub mod file;
pub mod formats;
pub mod guide;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(any(feature = "file", feature = "kafka"))]
mod memory;
pub mod options;
#[cfg(feature = "rate")]
pub mod rate;
pub mod registry;
mod values;

pub use registry::register_connectors;
