//! The names most programs need.

pub use crate::clock::{Clock, ManualClock};
pub use crate::error::{Error, ErrorKind, Result};
pub use crate::id::BatchId;
pub use crate::interval::Interval;
pub use crate::progress::{QueryEvent, QueryListener, QueryProgress};
pub use crate::query::{
    OutputMode, QueryManager, StreamWriter, StreamingDataFrameExt, StreamingQuery, StreamingSessionExt,
};
pub use crate::sink::{DiscardSink, ForeachBatchSink, Guarantee, MemorySink};
pub use crate::source::MemorySource;
pub use crate::trigger::Trigger;
pub use crate::watermark::WatermarkPolicy;
pub use crate::window::{TimeWindow, session_window, window, window_time};
