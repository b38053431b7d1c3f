//! How late is late.
//!
//! A watermark promises that rows older than it have (probably) all come. Each `with_watermark` in a query notes the
//! largest event time it has seen; minus its delay, that is its own watermark. Of several, a [`WatermarkPolicy`] makes
//! one:
//!
//! ```text
//! event time ──────────────────┬───────────────────┬────────▶
//!                    watermark ┘←──── delay ────→  └ largest event time seen
//! ```
//!
//! Stateful operators in a row may each have a watermark of their own, as each says what those after it may still expect.
//!
//! What a batch sees moves the watermark of the *next* batch. It never goes back, and begins at 1970-01-01T00:00:00.

mod bounds;

pub(crate) mod event_time_metadata;

mod policy;

mod propagate;

mod tracker;

pub(crate) use self::bounds::{JoinBounds, KeyTime, SideBound};
pub use self::policy::WatermarkPolicy;
pub(crate) use self::propagate::{OutputWatermark, WatermarkEffect, WatermarkTree, needs_no_data_batch, propagate};
pub use self::tracker::WatermarkTracker;
