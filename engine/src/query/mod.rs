//! What a user writes.
//!
//! | step | |
//! |---|---|
//! | read | [`StreamingSessionExt::read_stream`], [`StreamingSessionExt::register_stream`] on DataFusion's `SessionContext` |
//! | transform | DataFusion's own `DataFrame` and SQL, and [`StreamingDataFrameExt`] for what only streams need |
//! | write | [`StreamingDataFrameExt::write_stream`] → [`StreamWriter`] → [`StreamingQuery`] |
//! | watch | [`StreamingQuery`] for one query, [`QueryManager`] for all of a session |

mod dataframe;

mod handle;

mod manager;

mod read;

/// What only this crate can implement: the extension traits may get methods without breaking anyone.
mod sealed {
    use datafusion::prelude::{DataFrame, SessionContext};

    pub trait Sealed {}

    impl Sealed for DataFrame {}

    impl Sealed for SessionContext {}
}

mod write;

pub use self::dataframe::StreamingDataFrameExt;
pub use self::handle::StreamingQuery;
pub use self::manager::QueryManager;
pub use self::read::StreamingSessionExt;
pub use self::write::StreamWriter;
pub use crate::driver::{QueryStatus, RestartPolicy};
pub use crate::output_mode::OutputMode;
