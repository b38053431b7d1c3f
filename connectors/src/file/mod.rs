//! Files as a stream: a folder whose new files are read, and a folder that results are written to.
//!
//! # Reading
//!
//! [`FileSource`] offers every file that appears in a folder once. A batch goes through these rooms:
//!
//! ```text
//! reader ── listing ──▶ seen ──▶ admission ──▶ source_log ──▶ (offset {"logOffset":N})
//!           what is     what is  what fits  written before
//!           there       new                 the batch exists
//!
//! (range of offsets) ──▶ source_log ──▶ splits ──▶ scanner ──▶ scan ──▶ rows
//!                        which files    who reads  where tasks run: formats, malformed rows
//!
//! (batch committed)  ──▶ clean          archive or delete what was read
//! ```
//!
//! Files must appear whole: write them elsewhere (or under a hidden name) and rename. A file is known by its path: one
//! that was offered is not read again when it changes, is replaced, or comes again with its folder. Such a file is
//! recognised by its time of modification and counted (`filesChangedAfterRead` in the progress of a batch); a new file
//! of an old name *and* an old time cannot be distinguished from the one that was read. Nor is there a proof that a
//! batch which is read again after a crash finds the contents it had: where the time of a file says otherwise, it is
//! traced.
//!
//! What a listing sees and does not offer is traced once and counted: entries that are neither files nor folders
//! (`entriesLeftOut`), and files that came later than `maxFileAge` allows (`filesTooOld`). Hidden names, and names that a
//! glob or `pathGlobFilter` does not match, are left out by request and not counted. Local names may be anything that the
//! system allows. An object store that holds a key with an empty or unprintable part beside the input cannot be listed, which
//! is an error that says so.
//!
//! Names of columns are matched as in Spark, without case unless `caseSensitive` is set; a column that no file of a batch
//! has is said once and counted (`columnsInNoFile`).
//!
//! Log, offset and options are Apache Spark's; an unreadable row stops the query unless [`ParseMode`] says otherwise, which
//! is where it differs.

mod admission;

mod clean;

pub(crate) mod compact_log;

mod format;

mod infer;

mod left_out;

mod listing;

mod manifest;

mod moved;

mod names;

mod odd_file;

mod options;

mod partition_columns;

mod place;

mod reader;

mod scan;

mod scanner;

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
pub use self::options::{CsvOptions, FileFormat, JsonOptions, ParquetOptions};
pub use self::sink::FileSink;
pub use self::source::FileSource;
