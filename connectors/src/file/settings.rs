//! The options of a file source, typed and checked.

use tidewater::error::{Error, Result};
use tidewater::interval::Interval;

use super::admission::{KeepRest, Limit};
use super::clean::CleanSource;
use super::format::{CSV_OPTIONS, Format, ParseMode, TEXT_OPTIONS, parse_mode};
use super::names::Names;
use super::scan::Ignored;
use crate::options::Options;

const GENERAL_OPTIONS: &[&str] = &[
    "maxFilesPerTrigger",
    "maxBytesPerTrigger",
    "latestFirst",
    "maxFileAge",
    "fileNameOnly",
    "pathGlobFilter",
    "recursiveFileLookup",
    "cleanSource",
    "sourceArchiveDir",
    "maxCachedFiles",
    "discardCachedInputRatio",
    "caseSensitive",
    "ignoreMissingFiles",
    "ignoreCorruptFiles",
];

/// The settings of a file source, beside its path, format and schema. Names and defaults are Spark's, but for `mode`.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) max_files: Option<u64>,
    pub(super) max_bytes: Option<u64>,
    pub(super) latest_first: bool,
    pub(super) max_file_age: Interval,
    pub(super) by_name: bool,
    pub(super) name_filter: Option<String>,
    pub(super) recursive: bool,
    pub(super) clean: Option<String>,
    pub(super) archive: Option<String>,
    pub(super) max_cached_files: usize,
    pub(super) discard_cached_ratio: f64,
    pub(super) names: Names,
    pub(super) ignored: Ignored,
    pub(super) mode: ParseMode,
    pub(super) corrupt_column: String,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            max_files: None,
            max_bytes: None,
            latest_first: false,
            max_file_age: "7 days".into(),
            by_name: false,
            name_filter: None,
            recursive: false,
            clean: None,
            archive: None,
            max_cached_files: 10_000,
            discard_cached_ratio: 0.2,
            names: Names { case_sensitive: false },
            ignored: Ignored { missing_files: false, corrupt_files: false },
            mode: ParseMode::default(),
            corrupt_column: "_corrupt_record".to_owned(),
        }
    }
}

/// Reads `given` options into `settings` and `format`; what is not given stays.
pub(super) fn apply(
    settings: &mut Settings,
    format: &mut Format,
    given: impl IntoIterator<Item = (String, String)>,
) -> Result<()> {
    let given: Vec<_> = given.into_iter().collect();
    refuse_batch_options(&given)?;
    let mut known = GENERAL_OPTIONS.to_vec();
    if !matches!(format, Format::Parquet) {
        known.extend(TEXT_OPTIONS);
    }
    if let Format::Csv(_) = format {
        known.extend(CSV_OPTIONS);
    }
    let options = Options::new(&format!("the {} file source", format.name()), &known, given)?;

    settings.max_files = options.positive_u64("maxFilesPerTrigger")?.or(settings.max_files);
    settings.max_bytes = options.positive_u64("maxBytesPerTrigger")?.or(settings.max_bytes);
    settings.latest_first = options.bool("latestFirst", settings.latest_first)?;
    if options.interval_ms("maxFileAge")?.is_some() {
        settings.max_file_age = options.get("maxFileAge").unwrap_or_default().into();
    }
    settings.by_name = options.bool("fileNameOnly", settings.by_name)?;
    settings.recursive = options.bool("recursiveFileLookup", settings.recursive)?;
    settings.names.case_sensitive = options.bool("caseSensitive", settings.names.case_sensitive)?;
    let ignored = &mut settings.ignored;
    ignored.missing_files = options.bool("ignoreMissingFiles", ignored.missing_files)?;
    ignored.corrupt_files = options.bool("ignoreCorruptFiles", ignored.corrupt_files)?;
    let texts = [
        ("pathGlobFilter", &mut settings.name_filter),
        ("cleanSource", &mut settings.clean),
        ("sourceArchiveDir", &mut settings.archive),
    ];
    for (name, setting) in texts {
        if let Some(text) = options.get(name) {
            *setting = Some(text.to_owned());
        }
    }
    let cached = options.parsed("maxCachedFiles", "a whole number", |value| value.parse().ok())?;
    settings.max_cached_files = cached.unwrap_or(settings.max_cached_files);
    let share = |value: &str| value.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    let ratio = options.parsed("discardCachedInputRatio", "a number from 0 to 1", share)?;
    settings.discard_cached_ratio = ratio.unwrap_or(settings.discard_cached_ratio);
    settings.mode = parse_mode(&options)?.unwrap_or(settings.mode);
    if let Some(column) = options.get("columnNameOfCorruptRecord") {
        settings.corrupt_column = column.to_owned();
    }
    if let Format::Csv(csv) = format {
        csv.apply(&options)?;
    }
    Ok(())
}

/// Options that make sense when a folder is read once: on a stream they would lose files.
fn refuse_batch_options(given: &[(String, String)]) -> Result<()> {
    for (name, _) in given {
        if ["modifiedBefore", "modifiedAfter"].iter().any(|refused| refused.eq_ignore_ascii_case(name)) {
            return Err(Error::unsupported(format!(
                "option `{name}`: a stream reads every file once, whatever its age"
            ))
            .with_hint("use `maxFileAge` to leave out old files, or a filter on a column"));
        }
    }
    Ok(())
}

impl Settings {
    /// An error if two settings contradict each other.
    pub(super) fn check(&self) -> Result<()> {
        if self.max_files.is_some() && self.max_bytes.is_some() {
            return Err(Error::invalid("`maxFilesPerTrigger` and `maxBytesPerTrigger` are both set")
                .with_hint("set one of the two"));
        }
        self.max_file_age_ms()?;
        self.clean_source().map(|_| ())
    }

    /// What becomes of files that were read.
    pub(super) fn clean_source(&self) -> Result<CleanSource> {
        match self.clean.as_deref().unwrap_or("off").to_ascii_lowercase().as_str() {
            "off" => Ok(CleanSource::Off),
            "delete" => Ok(CleanSource::Delete),
            "archive" => self.archive.clone().map(CleanSource::Archive).ok_or_else(|| {
                Error::invalid("`cleanSource` is `archive`, and no archive is named")
                    .with_hint("set `sourceArchiveDir`")
            }),
            other => Err(Error::invalid(format!("`cleanSource` is `{other}`, not `off`, `archive` or `delete`"))),
        }
    }

    /// How much one batch may take.
    pub(super) fn limit(&self) -> Option<Limit> {
        self.max_files.map(Limit::Files).or(self.max_bytes.map(Limit::Bytes))
    }

    /// What to keep of a listing that did not fit into a batch. The newest first means to look again each time.
    pub(super) fn keep_rest(&self) -> Option<KeepRest> {
        let keep = KeepRest { max_files: self.max_cached_files, min_share: self.discard_cached_ratio };
        (!self.latest_first && keep.max_files > 0).then_some(keep)
    }

    /// How much older than the newest a file may be and still be new. If the newest come first and batches are limited,
    /// the oldest wait longest and must not be given up for it.
    pub(super) fn effective_age_ms(&self) -> Result<i64> {
        if self.latest_first && self.limit().is_some() { Ok(i64::MAX) } else { self.max_file_age_ms() }
    }

    fn max_file_age_ms(&self) -> Result<i64> {
        self.max_file_age.non_negative_ms("`maxFileAge` of the file source")
    }
}

#[cfg(test)]
mod tests {
    use tidewater::error::ErrorKind;

    use super::*;
    use crate::file::format::CsvFormat;

    fn settings(format: Format, given: &[(&str, &str)]) -> Result<(Settings, Format)> {
        let (mut settings, mut format) = (Settings::default(), format);
        apply(&mut settings, &mut format, given.iter().map(|(k, v)| (k.to_string(), v.to_string())))?;
        settings.check()?;
        Ok((settings, format))
    }

    #[test]
    fn options_are_read_by_spark_s_names() {
        let given = [
            ("maxFilesPerTrigger", "5"),
            ("latestFirst", "true"),
            ("maxFileAge", "1 hour"),
            ("cleanSource", "archive"),
            ("sourceArchiveDir", "/old"),
            ("mode", "permissive"),
            ("sep", "\\t"),
            ("header", "true"),
        ];
        let (settings, format) = settings(Format::Csv(CsvFormat::default()), &given).unwrap();
        assert_eq!(settings.limit(), Some(Limit::Files(5)));
        assert_eq!(settings.max_file_age_ms().unwrap(), 3_600_000);
        assert_eq!(settings.effective_age_ms().unwrap(), i64::MAX);
        assert_eq!(settings.keep_rest(), None);
        assert_eq!(settings.clean_source().unwrap(), CleanSource::Archive("/old".to_owned()));
        assert_eq!(settings.mode, ParseMode::Permissive);
        let Format::Csv(csv) = format else { panic!() };
        assert!(csv.header && csv.delimiter == b'\t');
    }

    #[test]
    fn wrong_options_are_answered() {
        for (format, given, answer) in [
            ("json", vec![("maxFilePerTrigger", "5")], "did you mean `maxFilesPerTrigger`"),
            ("json", vec![("header", "true")], "`header`"),
            ("parquet", vec![("mode", "FAILFAST")], "`mode`"),
            ("json", vec![("maxFilesPerTrigger", "5"), ("maxBytesPerTrigger", "5")], "both set"),
            ("json", vec![("maxFilesPerTrigger", "0")], "at least 1"),
            ("json", vec![("cleanSource", "archive")], "no archive is named"),
            ("json", vec![("cleanSource", "burn")], "`burn`"),
            ("json", vec![("modifiedAfter", "2020-01-01")], "modifiedAfter"),
            ("csv", vec![("multiLine", "maybe")], "multiLine"),
            ("csv", vec![("timestampFormat", "yyyy")], "timestampFormat"),
            ("csv", vec![("sep", "||")], "one ASCII character"),
            ("csv", vec![("mode", "LENIENT")], "LENIENT"),
        ] {
            let error = settings(Format::named(format).unwrap(), &given).unwrap_err();
            assert!(error.message().contains(answer), "{error}");
            assert!(matches!(error.kind(), ErrorKind::InvalidQuery | ErrorKind::Unsupported), "{error}");
        }
        assert!(Format::named("orc").is_err());
    }
}
