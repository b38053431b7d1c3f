//! What a file is made of, and what to do with a row that is not.

use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use tidewater::error::{Error, Result};

use crate::options::Options;

/// What becomes of a row that cannot be read as the schema says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ParseMode {
    /// The query stops and names file and line. Nothing is lost: the batch is repeated once the line is fixed.
    #[default]
    FailFast,
    /// The row is left out and counted, as `malformedRowsDropped` in the progress of the batch.
    DropMalformed,
    /// The row is kept, with the whole line in the column for corrupt records (if the schema has it) and null elsewhere,
    /// and counted as `malformedRowsKept`.
    Permissive,
}

impl ParseMode {
    /// Its name among Spark's options.
    pub(super) fn name(self) -> &'static str {
        match self {
            ParseMode::FailFast => "FAILFAST",
            ParseMode::DropMalformed => "DROPMALFORMED",
            ParseMode::Permissive => "PERMISSIVE",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_uppercase().as_str() {
            "FAILFAST" => Some(ParseMode::FailFast),
            "DROPMALFORMED" => Some(ParseMode::DropMalformed),
            "PERMISSIVE" => Some(ParseMode::Permissive),
            _ => None,
        }
    }
}

/// What the bytes of a file mean.
#[derive(Debug, Clone)]
pub(super) enum Format {
    Csv(CsvFormat),
    /// One JSON object a line.
    Json,
    Parquet,
}

impl Format {
    /// By its name in options and SQL.
    pub(super) fn named(name: &str) -> Result<Self> {
        const KNOWN_FORMATS: &[&str] = &["csv", "json", "parquet"];
        match name.to_ascii_lowercase().as_str() {
            "csv" => Ok(Format::Csv(CsvFormat::default())),
            "json" => Ok(Format::Json),
            "parquet" => Ok(Format::Parquet),
            _ => Err(Error::unknown("format", name, "the file source", KNOWN_FORMATS)),
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Format::Csv(_) => "csv",
            Format::Json => "json",
            Format::Parquet => "parquet",
        }
    }
}

/// How a CSV file is written.
#[derive(Debug, Clone)]
pub(super) struct CsvFormat {
    pub(super) header: bool,
    /// Columns count by position, whatever a header says.
    pub(super) enforce_schema: bool,
    pub(super) delimiter: u8,
    pub(super) quote: u8,
    /// Escapes a quote inside quotes; doubling the quote does so in any case.
    pub(super) escape: u8,
    pub(super) comment: Option<u8>,
    /// Text that means null, beside nothing at all.
    pub(super) null_value: String,
    /// Whether a field in quotes may hold line breaks. Otherwise a record that has one is malformed as a whole.
    pub(super) multi_line: bool,
}

impl Default for CsvFormat {
    fn default() -> Self {
        CsvFormat {
            header: false,
            enforce_schema: false,
            delimiter: b',',
            quote: b'"',
            escape: b'\\',
            comment: None,
            null_value: String::new(),
            multi_line: false,
        }
    }
}

/// The options of [`CsvFormat`].
pub(super) const CSV_OPTIONS: &[&str] = &[
    "header",
    "enforceSchema",
    "delimiter",
    "sep",
    "quote",
    "escape",
    "comment",
    "nullValue",
    "multiLine",
    "dateFormat",
    "timestampFormat",
];

/// The options of formats made of lines.
pub(super) const TEXT_OPTIONS: &[&str] = &["mode", "columnNameOfCorruptRecord"];

impl CsvFormat {
    /// Takes over the options that are given.
    pub(super) fn apply(&mut self, options: &Options) -> Result<()> {
        self.multi_line = options.bool("multiLine", self.multi_line)?;
        for name in ["dateFormat", "timestampFormat"] {
            if options.get(name).is_some() {
                return Err(Error::unsupported(format!("`{name}`: dates and timestamps are read as ISO 8601"))
                    .with_hint("declare the column as Utf8 and convert it with `to_timestamp(column, format)`"));
            }
        }
        self.header = options.bool("header", self.header)?;
        self.enforce_schema = options.bool("enforceSchema", self.enforce_schema)?;
        for name in ["delimiter", "sep"] {
            self.delimiter = character(options, name)?.unwrap_or(self.delimiter);
        }
        self.quote = character(options, "quote")?.unwrap_or(self.quote);
        self.escape = character(options, "escape")?.unwrap_or(self.escape);
        self.comment = character(options, "comment")?.or(self.comment);
        if let Some(text) = options.get("nullValue") {
            self.null_value = text.to_owned();
        }
        Ok(())
    }
}

/// `mode`, if given.
pub(super) fn parse_mode(options: &Options) -> Result<Option<ParseMode>> {
    options.parsed("mode", "`FAILFAST`, `DROPMALFORMED` or `PERMISSIVE`", ParseMode::parse)
}

fn character(options: &Options, name: &str) -> Result<Option<u8>> {
    // Not trimmed: a tab is a delimiter.
    let Some(text) = options.get(name) else { return Ok(None) };
    match text {
        "\\t" => Ok(Some(b'\t')),
        _ => match text.as_bytes() {
            [byte] if byte.is_ascii() => Ok(Some(*byte)),
            _ => {
                Err(Error::invalid(format!("option `{name}` of the file source is `{text}`, not one ASCII character")))
            }
        },
    }
}

/// How a file is compressed, by the end of its name.
pub(super) fn compression_of(path: &str) -> FileCompressionType {
    match path.rsplit_once('.').map(|(_, end)| end) {
        Some("gz") => FileCompressionType::GZIP,
        Some("bz2") => FileCompressionType::BZIP2,
        Some("xz") => FileCompressionType::XZ,
        Some("zst") => FileCompressionType::ZSTD,
        _ => FileCompressionType::UNCOMPRESSED,
    }
}
