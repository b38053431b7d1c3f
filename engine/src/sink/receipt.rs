//! What a finished partition gives the driver.

use std::any::Any;

/// What a finished partition hands to [`SinkWriter::commit`](super::SinkWriter::commit): how many rows it took, and
/// whatever the sink needs to make them visible.
#[derive(Debug)]
pub struct Receipt {
    /// Rows taken.
    pub rows: u64,
    contents: Box<dyn Any + Send>,
}

impl Receipt {
    /// A receipt for `rows` rows with the sink's own contents.
    pub fn new<T: Any + Send>(rows: u64, contents: T) -> Self {
        Receipt { rows, contents: Box::new(contents) }
    }

    /// The contents, if they are of type `T`.
    pub fn into_contents<T: Any>(self) -> Option<T> {
        self.contents.downcast().ok().map(|contents| *contents)
    }
}
