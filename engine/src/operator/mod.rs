//! The operators that Tidewater adds to DataFusion's.
//!
//! | operator | what it does | remembers |
//! |---|---|---|
//! | [`event_time`] | notes the event times that pass | nothing: the driver's tracker does |
//! | [`static_side`] | keeps the rows of a static table for all batches | the table, in memory |
//!
//! Operators are executed with a [`BatchContext`](crate::batch::BatchContext) in their `TaskContext` and see nothing of
//! the checkpoint.

pub(crate) mod event_time;

pub(crate) mod static_side;
