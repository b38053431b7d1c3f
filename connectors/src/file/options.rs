//! The options of a format, typed: the same for reading and for writing.
//!
//! Each stands for a named option of Spark's, and is checked where these are: what a source or sink does not take is an error when
//! the query starts, never ignored.

use super::format::ParseMode;

/// The format of files, with its options. Made of [`CsvOptions`], [`JsonOptions`] or [`ParquetOptions`].
///
/// ```
/// use tidewater_connectors::file::{CsvOptions, FileSink, FileSource, JsonOptions, ParseMode};
///
/// let source = FileSource::new("in/", CsvOptions::new().header(true).delimiter(';'));
/// let sink = FileSink::new("out/", CsvOptions::new().header(true).compression("gzip"));
/// let lenient = FileSource::new("in/", JsonOptions::new().parse_mode(ParseMode::DropMalformed));
/// # let _ = (source, sink, lenient);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum FileFormat {
    /// Comma-separated values, a record a line.
    Csv(CsvOptions),
    /// JSON, one object a line.
    Json(JsonOptions),
    /// Apache Parquet.
    Parquet(ParquetOptions),
}

impl FileFormat {
    /// By its name in options and SQL, and what is set by name.
    pub(super) fn into_parts(self) -> (&'static str, Given) {
        match self {
            FileFormat::Csv(CsvOptions(given)) => ("csv", given),
            FileFormat::Json(JsonOptions(given)) => ("json", given),
            FileFormat::Parquet(ParquetOptions(given)) => ("parquet", given),
        }
    }
}

/// Named options, in the order in which they were set: the last one of a name counts.
pub(super) type Given = Vec<(String, String)>;

/// The options of CSV files. The defaults are Spark's.
#[derive(Debug, Clone, Default)]
pub struct CsvOptions(Given);

/// The options of files of JSON lines. The defaults are Spark's.
#[derive(Debug, Clone, Default)]
pub struct JsonOptions(Given);

/// The options of Parquet files.
#[derive(Debug, Clone, Default)]
pub struct ParquetOptions(Given);

macro_rules! format_of {
    ($options:ident, $format:ident) => {
        impl From<$options> for FileFormat {
            fn from(options: $options) -> Self {
                FileFormat::$format(options)
            }
        }

        impl $options {
            /// The defaults.
            pub fn new() -> Self {
                Self::default()
            }

            fn with(mut self, name: &str, value: impl ToString) -> Self {
                self.0.push((name.to_owned(), value.to_string()));
                self
            }
        }
    };
}

format_of!(CsvOptions, Csv);
format_of!(JsonOptions, Json);
format_of!(ParquetOptions, Parquet);

impl CsvOptions {
    /// Whether the first line of every file names the columns. Default no. In reading, columns are found by these names, in any
    /// order; what a file has beside them is passed over, what it lacks is null, and where a header has unknown names and
    /// lacks known ones, the file is refused.
    #[must_use]
    pub fn header(self, header: bool) -> Self {
        self.with("header", header)
    }

    /// What is between the columns, an ASCII character. Default a comma.
    #[must_use]
    pub fn delimiter(self, delimiter: char) -> Self {
        self.with("sep", delimiter)
    }

    /// What is around values that hold a delimiter, an ASCII character. Default `"`.
    #[must_use]
    pub fn quote(self, quote: char) -> Self {
        self.with("quote", quote)
    }

    /// What precedes a quote within quotes, an ASCII character. Default a backslash.
    #[must_use]
    pub fn escape(self, escape: char) -> Self {
        self.with("escape", escape)
    }

    /// The text that means null. Default none at all.
    #[must_use]
    pub fn null_value(self, text: impl Into<String>) -> Self {
        self.with("nullValue", text.into())
    }

    /// For reading: what a line begins with that is passed over. Default nothing.
    #[must_use]
    pub fn comment(self, comment: char) -> Self {
        self.with("comment", comment)
    }

    /// For reading: a header is skipped, and columns count by position, as in Spark. Default no.
    #[must_use]
    pub fn enforce_schema(self, enforce: bool) -> Self {
        self.with("enforceSchema", enforce)
    }

    /// For reading: whether a value in quotes may hold line breaks. Default no.
    #[must_use]
    pub fn multi_line(self, multi_line: bool) -> Self {
        self.with("multiLine", multi_line)
    }

    /// For reading: what becomes of rows that cannot be parsed. Default: the query stops.
    #[must_use]
    pub fn parse_mode(self, mode: ParseMode) -> Self {
        self.with("mode", mode.name())
    }

    /// For reading: the column that takes lines that cannot be read, in mode [`ParseMode::Permissive`]. Default `_corrupt_record`.
    #[must_use]
    pub fn corrupt_record_column(self, column: impl Into<String>) -> Self {
        self.with("columnNameOfCorruptRecord", column.into())
    }

    /// For writing: `none`, the default, `gzip`, `bzip2` or `zstd`. In reading, the ends of names say it.
    #[must_use]
    pub fn compression(self, codec: impl Into<String>) -> Self {
        self.with("compression", codec.into())
    }
}

impl JsonOptions {
    /// For reading: what becomes of rows that cannot be parsed. Default: the query stops.
    #[must_use]
    pub fn parse_mode(self, mode: ParseMode) -> Self {
        self.with("mode", mode.name())
    }

    /// For reading: the column that takes lines that cannot be read, in mode [`ParseMode::Permissive`]. Default `_corrupt_record`.
    #[must_use]
    pub fn corrupt_record_column(self, column: impl Into<String>) -> Self {
        self.with("columnNameOfCorruptRecord", column.into())
    }

    /// For writing: `none`, the default, `gzip`, `bzip2` or `zstd`. In reading, the ends of names say it.
    #[must_use]
    pub fn compression(self, codec: impl Into<String>) -> Self {
        self.with("compression", codec.into())
    }
}

impl ParquetOptions {
    /// For writing: `snappy`, the default, `none`, `gzip`, `lz4_raw`, `zstd` or `brotli`. In reading, files say it themselves.
    #[must_use]
    pub fn compression(self, codec: impl Into<String>) -> Self {
        self.with("compression", codec.into())
    }
}
