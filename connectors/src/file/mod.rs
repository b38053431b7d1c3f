//! Files as a stream: a folder whose new files are read, and a folder that results are written to.
//!
//! # Reading
//!
//! [`FileSource`] offers every file that appears in a folder once. A batch goes through these rooms:
//!
//! ```text
//! reader ── listing ──▶ seen ──▶ admit ──▶ source_log ──▶ (offset {"logOffset":N})
//!           what is     what is  what fits  written before
//!           there       new                 the batch exists
//!
//! (range of offsets) ──▶ source_log ──▶ scan ──▶ rows
//!                        which files    partitions, formats, malformed rows
//!
//! (batch committed)  ──▶ clean          archive or delete what was read
//! ```
//!
//! Files must appear whole: write them elsewhere (or under a hidden name) and rename. A file that was offered is not read
//! again when it changes. Log, offset and options are Apache Spark's; an unreadable row stops the query unless
//! [`ParseMode`] says otherwise, which is where it differs.

mod admit;

mod clean;

pub(crate) mod compact_log;

mod format;

mod infer;

mod left_out;

mod listing;

mod manifest;

mod names;

mod odd_file;

mod partition_columns;

mod reader;

mod scan;

mod seen;

mod settings;

mod sink;

mod source;

mod source_log;

mod uri;

mod writer;

#[cfg(test)]
mod tests;

pub use self::clean::CleanSource;
pub use self::format::ParseMode;
pub use self::manifest::{CommittedFile, committed_files};
pub use self::sink::FileSink;
pub use self::source::FileSource;
