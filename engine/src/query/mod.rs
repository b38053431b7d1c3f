//! What a user writes.
//!
//! | step | |
//! |---|---|
//! | read | [`StreamingContext::read_stream`], [`StreamingContext::register_stream`] on DataFusion's `SessionContext` |
//! | transform | DataFusion's own `DataFrame` and SQL, and [`StreamingDataFrame`] for what only streams need |
//! | write | [`StreamingDataFrame::write_stream`] → [`StreamWriter`] → [`StreamingQuery`] |
//! | watch | [`StreamingQuery`] for one query, [`QueryManager`] for all of a session |

mod dataframe;

mod handle;

mod manager;

mod output_mode;

mod read;

pub mod window;

mod write;

pub use self::dataframe::StreamingDataFrame;
pub use self::handle::{QueryStatus, StreamingQuery};
pub use self::manager::QueryManager;
pub(crate) use self::manager::Reservation;
pub use self::output_mode::OutputMode;
pub use self::read::StreamingContext;
pub use self::write::StreamWriter;
pub use crate::driver::RestartPolicy;
