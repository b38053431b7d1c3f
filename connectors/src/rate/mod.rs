//! Rows out of nothing: a counter and a time, at a set pace. For tests, examples and measuring.
//!
//! [`RateSource`] follows the clock: so many rows a second. [`RatePerBatchSource`] follows the batches: so many rows each,
//! with times that depend on nothing but the batch, so that two runs give the same rows.
//!
//! Both are replayable: a row is a function of its number and the range it is in.

mod per_batch;

mod per_second;

mod rows;

pub use self::per_batch::RatePerBatchSource;
pub use self::per_second::RateSource;
