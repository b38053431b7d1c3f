//! The guide to connectors: files, object stores and Kafka.
//!
//! It continues the guide of the engine, [`tidewater::guide`].
//!
//! | page | what it explains |
//! |---|---|
//! | `files` (feature `file`) | reading a folder, malformed rows, writing a directory exactly once |
//! | `object_stores` (feature `file`) | input, output and checkpoint on an object store |
//! | `kafka` (feature `kafka`) | topics in and out, exactly once, formats, dead letters, what the cluster needs |

#[cfg(feature = "file")]
#[doc = include_str!("files.md")]
pub mod files {}

#[cfg(feature = "file")]
#[doc = include_str!("object_stores.md")]
pub mod object_stores {}

#[cfg(feature = "kafka")]
#[doc = include_str!("kafka.md")]
pub mod kafka {}
