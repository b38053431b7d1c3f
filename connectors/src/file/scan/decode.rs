//! What makes columns of the records of a text: one implementation per format made of lines.

use arrow::array::ArrayRef;
use tidewater::error::Result;

/// The longest record in bytes: far from what a column of Arrow can hold.
pub(super) const LONGEST: usize = 1 << 30;

/// What was at the beginning of a text.
#[derive(Debug)]
pub(super) enum Step {
    /// A record that goes on behind the text: more of it is needed.
    Unfinished,
    /// So many bytes, which gave so many rows.
    Rows { bytes: usize, rows: usize },
    /// So many bytes that are malformed. So many rows were added, which are not to be seen.
    Malformed { bytes: usize, rows: usize, why: String },
}

/// Makes columns of records.
pub(super) trait Decode: Send {
    /// Takes the record at the beginning of `text`, which ends with a line and is not empty. `is_last` if nothing follows
    /// the text. An error is one of the whole file.
    fn next(&mut self, text: &[u8], is_last: bool) -> Result<Step>;

    /// Adds a row of nulls.
    fn append_nulls(&mut self);

    /// The columns of all rows that were added since the last call.
    fn finish(&mut self) -> Result<Vec<ArrayRef>>;
}
