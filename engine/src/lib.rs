//! # Tidewater
//!
//! A structured-streaming engine on Apache Arrow and DataFusion. One function over a `DataFrame` is a batch job and a
//! stream; the stream gives every row to its sink exactly once, through any crash.
//!
//! ## The life of a micro-batch
//!
//! A query is planned once. Then, trigger after trigger, the same plan runs over the next stretch of each source:
//!
//! 1. **Trigger.** The [`Trigger`](trigger::Trigger) says when to look: at once, in a rhythm, or until all is read.
//! 2. **Decide.** Each [`MicroBatchStream`](source::MicroBatchStream) says how far this batch may go
//!    ([`latest_offset`](source::MicroBatchStream::latest_offset)). Is there anything to do? If not, wait.
//! 3. **Log.** `offsets/N` is created in the [checkpoint]: where the batch ends, its watermark, its clock. From now
//!    on batch N exists, and whenever it runs, it reads the same rows and sees the same time.
//! 4. **Split.** Each source cuts its stretch into [splits](source::MicroBatchStream::splits), which are data; a simple one
//!    [binds](source::MicroBatchStream::bind) it to a bounded plan. The columns and filters that the query pushed down go along.
//! 5. **Execute.** The cached plan runs, each partition a task on the engine's own [threads](executor). Where it runs, a
//!    [scan](source::SourceScanner::scan) makes rows of the splits. Leaves and operators find what they need to know of the
//!    batch in the [`BatchContext`](batch::BatchContext).
//!    Where rows of one key must meet, the plan is cut: what is below runs first, and its rows are distributed by key.
//! 6. **Remember.** Stateful operators find what they know of each key, change it, and give rows out; what changed is
//!    written to `state/` in the checkpoint, one file per operator. How far event time has come is noted, too
//!    ([`watermark`]).
//! 7. **Sink.** Each partition that has rows fills a [`DataWriter`](sink::DataWriter) and ends with a
//!    [`Receipt`](sink::Receipt). [`commit`](sink::StreamingWrite::commit) makes the batch visible, once: a second commit of the
//!    same batch changes nothing. Records that a source could not read may go to a second sink, as
//!    [dead letters](sink::DeadLetters), in the same way.
//! 8. **Commit.** `commits/N` is created, with the watermark of the next batch and the names of the files that are the
//!    state after it. Batch N is done.
//! 9. **Progress.** A [`QueryProgress`](progress::QueryProgress) reports what happened, to handles and listeners.
//! 10. **Housekeeping.** Sources let go of what was read; old log entries and files of state are deleted; small files of
//!     state are merged into larger ones.
//!
//! Die anywhere in between, and the next start reads the tails of the two logs: a batch that was logged but not committed
//! runs again, with the same rows, and the sink takes it once.
//!
//! ## Where to look
//!
//! The [`guide`] explains the engine page by page. What a user writes is in [`query`]; [`prelude`] has the names most programs
//! need. Whoever connects another system implements [`source::Source`] or [`sink::Sink`]; [`testing`] has the suites that
//! prove it right.
//!
//! The engine's versions of DataFusion and Arrow are part of its API. They are here as [`tidewater::datafusion`](crate::datafusion)
//! and [`tidewater::arrow`](crate::arrow), and `tidewater::async_trait` is the attribute of its traits: a program that takes them
//! from here cannot have others by mistake.
//!
//! ```
//! use std::sync::Arc;
//! use tidewater::arrow::array::{Int64Array, RecordBatch};
//! use tidewater::datafusion::prelude::*;
//! use tidewater::prelude::*;
//!
//! /// One function, two lives.
//! fn large(rows: DataFrame) -> Result<DataFrame> {
//!     Ok(rows.filter(col("v").gt(lit(10)))?.select(vec![(col("v") * lit(2)).alias("twice")])?)
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<()> {
//! let rows = RecordBatch::try_from_iter([("v", Arc::new(Int64Array::from(vec![5, 50])) as _)])?;
//! let ctx = SessionContext::new();
//!
//! // As a batch.
//! assert_eq!(large(ctx.read_batch(rows.clone())?)?.count().await?, 1);
//!
//! // As a stream.
//! let source = MemorySource::new(rows.schema());
//! let sink = MemorySink::new();
//! let query = large(ctx.read_stream(source.clone())?)?.write_stream(sink.clone()).start().await?;
//! source.add(vec![rows])?;
//! query.process_all_available().await?;
//! assert_eq!(sink.batches()[0].num_rows(), 1);
//! query.stop().await?;
//! # Ok(())
//! # }
//! ```

pub use arrow;
pub use async_trait::async_trait;
pub use datafusion;

pub mod guide;

pub mod prelude;

pub mod query;

mod driver;

pub mod trigger;

pub mod source;

mod plan;

pub mod batch;

mod execution;

mod operator;

mod state;

pub mod watermark;

pub mod window;

pub mod sink;

pub mod checkpoint;

pub mod progress;

mod offset;

mod output_mode;

mod plan_node;

mod calls;

mod memory;

pub mod executor;

pub mod config;

pub mod interval;

pub mod error;

pub mod id;

pub mod identity;

/// What the connectors of this repository share with the engine, and nobody else needs: it may change in any release.
pub mod internal {
    pub use crate::checkpoint::format::{check_version, with_version};
    pub use crate::checkpoint::store::{create_folders, local_path, sync_folder};
}

pub mod clock;

#[cfg(feature = "testing")]
pub mod testing;
