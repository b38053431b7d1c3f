//! Tools to test pipelines, sources and sinks with.
//!
//! | you wrote | use |
//! |---|---|
//! | a query | [`StreamTest`]: a test as a list of steps, with a clock that stands still; it fails like a report |
//! | a query | [`oracle`]: the same function over all rows at once must give the same rows |
//! | a source | [`source_suite`]: replay, order, available now and commits, as every source must do them; [`open_by_splits`] |
//! | a sink | [`sink_suite`]: every batch once, nothing visible before its commit, fenced by another run; [`open_by_factory`] |
//! | a job that must survive | [`faults`]: die at every call that crosses a boundary, start again, compare; [`FullDisk`] |
//! | a job with much state | [`small_state`]: state in pieces so small that few rows fill many |
//! | a source or a sink | [`serialised_batches`]: what the driver and the tasks of a query give each other is serialised on the way |
//! | a job with little memory | [`limited_memory`]: a pool of so many bytes, which must be whole again when the job has ended |
//! | a job that must not take much memory | [`PeakMemory`]: a pool that records the most that was reserved |
//! | a job that two may run | [`overtaken`]: pause at every such call, let another take over, go on, compare |
//!
//! Rows are written down with [`table::rows`] and compared as multisets with [`assert_same_rows`].
//!
//! All of this is behind the feature `testing`: turn it on under `[dev-dependencies]`.

mod by_factory;

mod by_splits;

pub mod faults;

mod full_disk;

mod limited_memory;

pub mod oracle;

pub mod overtaken;

mod report;

mod serialised;

pub mod sink_suite;

mod small_state;

pub mod source_suite;

mod stream_test;

pub mod table;

pub use self::by_factory::open_by_factory;
pub use self::by_splits::open_by_splits;
pub use self::faults::{FaultInjector, FaultySink, FaultySource, FaultyStore, crash_at_every_call};
pub use self::full_disk::FullDisk;
pub use self::limited_memory::limited_memory;
pub use self::oracle::{assert_same_rows, batch_answer, batch_table, difference};
pub use self::overtaken::{Overtaken, overtaken_at_every_moment};
pub use self::report::Report;
pub use self::serialised::serialised_batches;
pub use self::small_state::small_state;
pub use self::stream_test::StreamTest;
pub use crate::memory::peak::PeakMemory;
