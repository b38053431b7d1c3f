//! The integration tests: one binary, because every link of DataFusion costs seconds. `tests/README.md` says which test
//! belongs where.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod aggregates;

mod answers;

mod bad_input;

mod belongs;
mod checkpoint_gone;

mod conformance;
mod dead_letters;

mod elsewhere;

mod endings;

mod every_fall;

mod fencing;

mod fixtures;

#[path = "../../examples/flights/pipeline.rs"]
mod flights;

mod input_files;

mod job;
mod kafka;

mod key_types;

mod kill;

mod memory_limit;

mod overtaken;

mod own_connector;
mod planner_faults;

mod put_answers;

mod query_api;

mod remote;

mod restarts;

mod round_trip;

mod rows;

mod same_again;

mod scalar_subqueries;
mod session_rows;

mod silence;

mod spark_fixtures;

mod sql_equals_batch;

mod state_cost;

mod state_falls;

mod state_limits;

mod state_partitions;

mod stateful;

mod stream_equals_batch;

mod suites;

mod tidy;

mod threads;

mod triggers;

mod two_queries;
