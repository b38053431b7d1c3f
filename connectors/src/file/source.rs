//! A folder of files, as a user names it.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::prelude::SessionContext;
use tidewater::error::{Error, Result};
use tidewater::identity::Identity;
use tidewater::interval::Interval;
use tidewater::source::{MicroBatchStream, ScanContext, Source, SourceContext, SourceScanner};

use super::clean::CleanSource;
use super::format::{CsvFormat, Format};
use super::infer;
use super::listing::{Pattern, glob};
use super::options::{CsvOptions, FileFormat, Given, JsonOptions, ParquetOptions};
use super::place::SinkFolder;
use super::reader::FileReader;
use super::scanner::FileScanner;
use super::settings::{Settings, apply};

/// A stream of the files that appear in a folder, each read once.
///
/// The path is one folder, file or glob (`in/*/x-*.csv`), local or a URL whose object store the session knows. Folders
/// named `key=value` below it give columns, if the schema has a column of that name. All columns may be null.
///
/// ```
/// use arrow::datatypes::{DataType, Field, Schema};
/// use tidewater_connectors::file::{CsvOptions, FileSource, ParseMode};
///
/// let schema = Schema::new(vec![Field::new("user", DataType::Utf8, true), Field::new("clicks", DataType::Int64, true)]);
/// let format = CsvOptions::new().header(true).parse_mode(ParseMode::DropMalformed);
/// let source = FileSource::new("in/clicks", format).with_schema(schema).max_files_per_trigger(100);
/// # let _ = source;
/// ```
#[derive(Debug, Clone)]
pub struct FileSource {
    path: String,
    format: Format,
    schema: Option<SchemaRef>,
    settings: Settings,
    /// What is wrong with an option, said when the query starts.
    problem: Option<Error>,
}

impl FileSource {
    /// Files of this format at `path`: of [`CsvOptions`](super::CsvOptions), [`JsonOptions`](super::JsonOptions) or
    /// [`ParquetOptions`](super::ParquetOptions). What these say that makes no sense in reading is an error when the query starts.
    pub fn new(path: impl Into<String>, format: impl Into<FileFormat>) -> Self {
        let (name, given) = format.into().into_parts();
        let format = match name {
            "csv" => Format::Csv(CsvFormat::default()),
            "json" => Format::Json,
            _ => Format::Parquet,
        };
        Self::of(format, path).with_options(given)
    }

    /// CSV files at `path` with the default options. A record is a line; columns count by position, or by name where there is a
    /// [header](super::CsvOptions::header).
    pub fn csv(path: impl Into<String>) -> Self {
        Self::new(path, CsvOptions::new())
    }

    /// Files of JSON at `path`, one object a line. Fields count by name; one that is missing is null.
    pub fn json(path: impl Into<String>) -> Self {
        Self::new(path, JsonOptions::new())
    }

    /// Parquet files at `path`.
    pub fn parquet(path: impl Into<String>) -> Self {
        Self::new(path, ParquetOptions::new())
    }

    /// A source by the names that SQL and command lines use: `csv`, `json` or `parquet`, and Spark's options. The files are at
    /// `path`, or at the option of that name.
    ///
    /// # Errors
    ///
    /// If an option is unknown or has no such value, or there is no path.
    pub fn from_options(
        format: &str,
        path: Option<&str>,
        options: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self> {
        let format = Format::named(format)?;
        let (paths, others): (Vec<_>, Vec<_>) =
            options.into_iter().partition(|(name, _)| name.eq_ignore_ascii_case("path"));
        let by_option = paths.last().map(|(_, path)| path.as_str());
        let Some(path) = path.or(by_option) else {
            return Err(Error::invalid("the file source needs a folder").with_hint("give the option `path`"));
        };
        let source = Self::of(format, path).with_options(others);
        source.check()?;
        Ok(source)
    }

    fn of(format: Format, path: impl Into<String>) -> Self {
        FileSource { path: path.into(), format, schema: None, settings: Settings::default(), problem: None }
    }

    fn with_options(mut self, given: Given) -> Self {
        if let Err(error) = apply(&mut self.settings, &mut self.format, given) {
            self.problem.get_or_insert(error);
        }
        self
    }

    /// Fails with what is wrong with the options.
    fn check(&self) -> Result<()> {
        self.problem.clone().map_or(Ok(()), Err)?;
        self.settings.check()
    }

    /// Sets the schema. All columns are taken to allow null, whatever it says: a file may lack any of them.
    #[must_use]
    pub fn with_schema(mut self, schema: impl Into<SchemaRef>) -> Self {
        let schema: SchemaRef = schema.into();
        let fields: Fields = schema.fields().iter().map(|field| nullable(field)).collect();
        self.schema = Some(Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone())));
        self
    }

    /// Reads the columns off the files that are there now. Set what else is to be known of the files (a header, say)
    /// before. The first ten files are looked at; a restart may find others, so for a lasting query write the schema down.
    pub async fn infer_schema(self, ctx: &SessionContext) -> Result<Self> {
        self.check()?;
        let schema = infer::infer_schema(&self.pattern()?, &self.format, &ctx.state()).await?;
        Ok(self.with_schema(schema))
    }

    /// Sets an option by Spark's name. It is checked when the query starts.
    #[must_use]
    pub fn option(self, name: &str, value: impl Into<String>) -> Self {
        self.with_options(vec![(name.to_owned(), value.into())])
    }

    /// Lets a batch take at most this many files. Default: all there are.
    #[must_use]
    pub fn max_files_per_trigger(mut self, files: u64) -> Self {
        self.settings.max_files = Some(files.max(1));
        self
    }

    /// Lets a batch take files of at most this many bytes together, and one file in any case. Default: all there are.
    #[must_use]
    pub fn max_bytes_per_trigger(mut self, bytes: u64) -> Self {
        self.settings.max_bytes = Some(bytes.max(1));
        self
    }

    /// Takes the newest files first. Default: the oldest.
    #[must_use]
    pub fn latest_first(mut self, latest_first: bool) -> Self {
        self.settings.latest_first = latest_first;
        self
    }

    /// Leaves out files that are older than the newest one seen by more than this (`7 days`, the default).
    #[must_use]
    pub fn max_file_age(mut self, age: impl Into<Interval>) -> Self {
        self.settings.max_file_age = age.into();
        self
    }

    /// Takes files of the same name in different folders for the same file.
    #[must_use]
    pub fn file_name_only(mut self, by_name: bool) -> Self {
        self.settings.by_name = by_name;
        self
    }

    /// Reads only files whose name matches this glob.
    #[must_use]
    pub fn path_glob_filter(mut self, glob: impl Into<String>) -> Self {
        self.settings.name_filter = Some(glob.into());
        self
    }

    /// Reads the files of all folders below, whatever they are called; then no column comes from the path.
    #[must_use]
    pub fn recursive_file_lookup(mut self, recursive: bool) -> Self {
        self.settings.recursive = recursive;
        self
    }

    /// Sets what becomes of files that were read.
    #[must_use]
    pub fn clean_source(mut self, clean: CleanSource) -> Self {
        let (clean, archive) = match clean {
            CleanSource::Off => ("off", None),
            CleanSource::Delete => ("delete", None),
            CleanSource::Archive(folder) => ("archive", Some(folder)),
        };
        self.settings.clean = Some(clean.to_owned());
        self.settings.archive = archive;
        self
    }

    /// Whether names of columns in files (and in the path) are case-sensitive. Default no, as in Spark: `id` is read
    /// from `ID`, and a file that has both is refused.
    #[must_use]
    pub fn case_sensitive(mut self, case_sensitive: bool) -> Self {
        self.settings.names.case_sensitive = case_sensitive;
        self
    }

    /// Goes on without files that were deleted after they were offered, and counts them (`missingFilesIgnored`). Default:
    /// the query stops, because a batch that was begun must be read again as it was.
    #[must_use]
    pub fn ignore_missing_files(mut self, ignore: bool) -> Self {
        self.settings.ignored.missing_files = ignore;
        self
    }

    /// Goes on without the rest of a file that turns out to be torn or damaged, and counts it (`corruptFilesIgnored`).
    /// Default: the query stops. Rows that are malformed are not meant: see
    /// [`parse_mode`](super::CsvOptions::parse_mode).
    #[must_use]
    pub fn ignore_corrupt_files(mut self, ignore: bool) -> Self {
        self.settings.ignored.corrupt_files = ignore;
        self
    }

    fn pattern(&self) -> Result<Pattern> {
        let mut pattern = Pattern::parse(&self.path)?;
        pattern.recursive = self.settings.recursive;
        pattern.name_filter = self.settings.name_filter.as_deref().map(glob).transpose()?;
        Ok(pattern)
    }
}

#[async_trait]
impl Source for FileSource {
    fn description(&self) -> String {
        format!("{} files [{}]", self.format.name(), self.path)
    }

    fn schema(&self) -> SchemaRef {
        self.schema.clone().unwrap_or_else(|| Arc::new(Schema::empty()))
    }

    fn knows_file_names(&self) -> bool {
        true
    }

    fn identity(&self) -> Option<Identity> {
        let place = self.pattern().ok()?.place();
        Some(Identity::new(format!("{} files", self.format.name())).at(place))
    }

    fn reads_from(&self, sink: &Identity) -> Result<bool> {
        Ok(SinkFolder::of(sink).is_some_and(|sink| self.pattern().is_ok_and(|own| own.takes_files_of(&sink))))
    }

    async fn open(&self, context: SourceContext) -> Result<Box<dyn MicroBatchStream>> {
        self.check()?;
        let Some(schema) = self.schema.clone() else {
            return Err(Error::invalid(format!("the file source `{}` has no schema", self.path)).with_hint(
                "call `.with_schema(…)`, or `.infer_schema(&ctx).await?` to read it off the files that are there",
            ));
        };
        let reader = FileReader::open(self.pattern()?, self.format.clone(), schema, self.settings.clone(), context);
        Ok(Box::new(reader.await?))
    }

    fn scanner(&self, context: ScanContext) -> Result<Option<Arc<dyn SourceScanner>>> {
        let (format, schema, settings) = (self.format.clone(), Source::schema(self), self.settings.clone());
        let scanner = FileScanner::new(self.pattern()?, format, &schema, settings, context, self.description());
        Ok(Some(Arc::new(scanner)))
    }
}

/// The same field, with null allowed throughout.
fn nullable(field: &Field) -> Arc<Field> {
    let inner = match field.data_type() {
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(|field| nullable(field)).collect()),
        DataType::List(item) => DataType::List(nullable(item)),
        DataType::LargeList(item) => DataType::LargeList(nullable(item)),
        other => other.clone(),
    };
    Arc::new(field.clone().with_data_type(inner).with_nullable(true))
}
