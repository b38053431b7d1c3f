//! What is there: the files that a path or glob names right now.
//!
//! The walk goes down one folder at a time and only where the pattern can still match. Below a folder that matches as a
//! whole it takes the files directly inside, and those in folders named `key=value`; with `recursive`, all. On a local disk
//! that is the matter of [`local`], elsewhere of [`remote`].
//!
//! Names that begin with `_` or `.` are hidden: other programs keep there what is not finished. Any other entry is a file,
//! a folder, or [left out](Omitted) with the reason; one entry never decides over the others.

mod local;
mod remembered;
mod remote;

use std::time::Duration;

use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use globset::{GlobBuilder, GlobMatcher};
use tidewater::error::{Error, ErrorKind, Result};
use tidewater::executor::block_in_place;
use tidewater::internal::local_path;

use super::manifest::{MANIFEST_FOLDER, committed_files};
use super::moved::check_in_place;
use super::place::{Part, SinkFolder, resolved};
use super::uri::{FileLocation, object_store, split};
pub(super) use remembered::Remembered;

/// A file that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListedFile {
    /// Its full URI, as in the logs.
    pub(super) uri: String,
    /// When it was last modified, in milliseconds since 1970.
    pub(super) modified_ms: i64,
    /// Its size in bytes.
    pub(super) size: u64,
}

/// What a walk found.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The files, in no order.
    pub(super) files: Vec<ListedFile>,
    pub(super) omitted: Vec<Omitted>,
    /// All files are listed. Otherwise only those that no listing since the last whole one gave.
    pub(super) is_whole: bool,
}

/// An entry that has the name of input and cannot be read as a file or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Omitted {
    /// For people.
    pub(super) name: String,
    pub(super) why: String,
}

/// One step of a path.
#[derive(Debug, Clone)]
enum Step {
    Name(String),
    Glob(GlobMatcher),
}

impl Step {
    fn matches(&self, name: &str) -> bool {
        match self {
            Step::Name(wanted) => wanted == name,
            Step::Glob(glob) => glob.is_match(name),
        }
    }
}

/// The path or glob of a file source.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    store: ObjectStoreUrl,
    steps: Vec<Step>,
    text: String,
    /// Takes files in every folder below, whatever it is called.
    pub(super) recursive: bool,
    /// Takes only files whose name matches.
    pub(super) name_filter: Option<GlobMatcher>,
}

impl Pattern {
    /// Reads `location`, a local path or URL, which may hold `*`, `?`, `[…]` and `{…,…}` between slashes.
    pub(super) fn parse(location: &str) -> Result<Self> {
        let (store, names) = split(location)?;
        let steps = names
            .into_iter()
            .map(|name| if is_glob(&name) { glob(&name).map(Step::Glob) } else { Ok(Step::Name(name)) })
            .collect::<Result<Vec<_>>>()?;
        Ok(Pattern { store, steps, text: location.to_owned(), recursive: false, name_filter: None })
    }

    /// The part before the first glob: all files lie below.
    pub(super) fn root(&self) -> FileLocation {
        let names = self.steps.iter().map_while(|step| match step {
            Step::Name(name) => Some(name.as_bytes().to_vec()),
            Step::Glob(_) => None,
        });
        FileLocation::from_names(self.store.clone(), names.collect())
    }

    /// Where it is, always spelled alike: as a URI, with globs as they are.
    pub(super) fn place(&self) -> String {
        let globs = self.steps.iter().skip_while(|step| matches!(step, Step::Name(_)));
        let text = |step: &Step| match step {
            Step::Name(name) => name.clone(),
            Step::Glob(glob) => glob.glob().glob().to_owned(),
        };
        globs.fold(self.root().uri().trim_end_matches('/').to_owned(), |place, step| place + "/" + &text(step))
    }

    /// The steps, links followed as far as names lead.
    fn resolved_steps(&self) -> Vec<Step> {
        let names = self.steps.iter().map_while(|step| match step {
            Step::Name(name) => Some(name.clone()),
            Step::Glob(_) => None,
        });
        let root: Vec<String> = names.collect();
        let globs = self.steps.get(root.len()..).unwrap_or_default().to_vec();
        resolved(&self.store, root).into_iter().map(Step::Name).chain(globs).collect()
    }

    /// Whether the files of a sink would be listed here, links followed.
    pub(super) fn takes_files_of(&self, sink: &SinkFolder) -> bool {
        let steps = self.resolved_steps();
        let path = sink.path();
        if self.store != sink.store || steps.len() > path.len() {
            return false;
        }
        let (leading, below) = path.split_at(steps.len());
        let wanted =
            |name: &str| self.name_filter.as_ref().is_none_or(|filter| filter.is_match(name)) && !is_hidden(name);
        let leads = steps.iter().zip(leading).all(|(step, part)| match (step, part) {
            (Step::Name(name), Part::Folder(folder)) => name == folder,
            (Step::Name(name), Part::Values(column)) => name.starts_with(column.as_str()),
            (Step::Name(_), Part::File(_)) => false,
            (Step::Glob(glob), Part::Folder(folder)) => !is_hidden(folder) && glob.is_match(folder),
            (Step::Glob(_), Part::Values(_)) => true,
            (Step::Glob(glob), Part::File(names)) => names.iter().any(|name| glob.is_match(name) && wanted(name)),
        });
        let taken = below.iter().all(|part| match part {
            Part::Folder(folder) => !is_hidden(folder) && (self.recursive || folder.contains('=')),
            Part::Values(_) => true,
            Part::File(names) => names.iter().any(|name| wanted(name)),
        });
        leads && taken
    }

    pub(super) fn is_glob(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Glob(_)))
    }

    /// True if files put below `folder` might be taken for input, links followed.
    pub(super) fn may_contain(&self, folder: &FileLocation) -> bool {
        let names = folder.names().iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        let names = resolved(&folder.store, names);
        folder.store == self.store && self.resolved_steps().iter().zip(&names).all(|(step, name)| step.matches(name))
    }

    /// An error if the path names nothing. A glob may: its folders may come later. So may a prefix of an object store.
    pub(super) fn check_exists(&self) -> Result<()> {
        if self.is_glob() {
            return Ok(());
        }
        match local_path(&self.text)? {
            Some(path) if !path.exists() => Err(Error::invalid(format!("the path `{}` does not exist", self.text))
                .with_file(path.display().to_string())
                .with_hint("create the folder, or correct the path of the source")),
            _ => Ok(()),
        }
    }

    /// An error if the folder above all files is gone: an empty listing of it would say that there is nothing new. Folders
    /// that a glob names may come later, so for those the caller knows whether it `was_there`. An object store has no
    /// folders; of a disk that is not mounted, only the mount point is seen.
    pub(super) fn check_still_there(&self, was_there: &mut bool) -> Result<()> {
        if self.store != ObjectStoreUrl::local_filesystem() {
            return Ok(());
        }
        let names = self.steps.iter().map_while(|step| match step {
            Step::Name(name) => Some(name),
            Step::Glob(_) => None,
        });
        let root = std::iter::once("/").chain(names.map(String::as_str)).collect::<std::path::PathBuf>();
        let file = root.display().to_string();
        match block_in_place(|| std::fs::metadata(&root)) {
            Ok(_) => {
                *was_there = true;
                Ok(())
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !*was_there => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::new(ErrorKind::Unavailable, format!("`{}`, which was there before, is gone", self.text))
                    .with_file(file)
                    .with_hint("put it back, or mount the disk that it is on; for another folder, start a new query")
                    .with_source(e))
            }
            Err(e) => Err(Error::io("look at the folder of the source", file, e)),
        }
    }

    /// The files of the sink log in this folder, if a file sink writes here: then only they count.
    pub(super) async fn committed(&self, runtime: &RuntimeEnv) -> Result<Vec<ListedFile>> {
        let files = committed_files(&self.text, runtime).await?;
        check_in_place(&self.root(), files.iter().map(|file| file.path.as_str()))?;
        Ok(files
            .into_iter()
            .map(|file| ListedFile { uri: file.path, modified_ms: file.modification_time_ms, size: file.size })
            .collect())
    }

    /// True if a file sink writes to this folder.
    pub(super) async fn has_sink_log(&self, runtime: &RuntimeEnv) -> Result<bool> {
        if self.is_glob() {
            return Ok(false);
        }
        if let Some(folder) = self.root().on_disk() {
            return local::has_files(&folder, MANIFEST_FOLDER).map_err(|e| self.failed(e));
        }
        let FileLocation { store, path, .. } = self.root();
        let folder = path.join(MANIFEST_FOLDER);
        let found = object_store(&store, runtime)?.list_with_delimiter(Some(&folder)).await;
        Ok(!found.map_err(|e| remote::failed(self, e))?.objects.is_empty())
    }

    /// All files that match now.
    pub(super) async fn list(&self, runtime: &RuntimeEnv) -> Result<Listing> {
        Ok(self.list_new(runtime, Remembered::default(), Duration::ZERO).await?.0)
    }

    /// The files that match `now`, on a clock that only goes forward. On a local disk, those may be left out that the
    /// listings before gave which `before` remembers: see [`Listing::is_whole`].
    pub(super) async fn list_new(
        &self,
        runtime: &RuntimeEnv,
        before: Remembered,
        now: Duration,
    ) -> Result<(Listing, Remembered)> {
        if !self.is_local() {
            let listing = remote::walk(self, &object_store(&self.store, runtime)?).await?;
            return Ok((Listing { is_whole: true, ..listing }, before));
        }
        let pattern = self.clone();
        match tokio::runtime::Handle::try_current() {
            // A large folder takes a while, and this may be a thread that others wait for.
            Ok(runtime) => runtime
                .spawn_blocking(move || local::walk(&pattern, before, now))
                .await
                .map_err(|e| Error::internal(format!("the listing of a folder broke off: {e}")).with_source(e))?,
            Err(_) => local::walk(&pattern, before, now),
        }
    }

    fn is_local(&self) -> bool {
        self.store == ObjectStoreUrl::local_filesystem()
    }

    /// Whether a file of this name is input.
    fn takes(&self, name: &str) -> bool {
        !is_hidden(name) && self.name_filter.as_ref().is_none_or(|filter| filter.is_match(name))
    }

    /// Whether the walk goes down into a folder of this name, once the pattern has matched.
    fn goes_into(&self, name: &str) -> bool {
        !is_hidden(name) && (self.recursive || name.contains('='))
    }

    fn failed(&self, error: std::io::Error) -> Error {
        let error = match error.kind() {
            std::io::ErrorKind::NotFound => Error::new(
                ErrorKind::Unavailable,
                format!("`{}` is gone: whether there are new files cannot be known", self.text),
            )
            .with_hint("put it back, or mount the disk that it is on; for another folder, start a new query")
            .with_source(error),
            std::io::ErrorKind::PermissionDenied => {
                Error::new(ErrorKind::Unavailable, format!("cannot list `{}`: {error}", self.text))
                    .with_hint("give the process the right to list this folder")
                    .with_source(error)
            }
            _ => Error::new(ErrorKind::Unavailable, format!("cannot list `{}`: {error}", self.text))
                .with_hint("check the path and the disk")
                .with_source(error),
        };
        let place = self.root().on_disk().map_or_else(|| self.text.clone(), |path| path.display().to_string());
        error.with_file(place)
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// The glob `text`; a star does not reach across folders.
pub(super) fn glob(text: &str) -> Result<GlobMatcher> {
    GlobBuilder::new(text)
        .literal_separator(true)
        .build()
        .map(|glob| glob.compile_matcher())
        .map_err(|e| Error::invalid(format!("`{text}` is not a glob: {e}")).with_source(e))
}

fn is_glob(name: &str) -> bool {
    name.contains(['*', '?', '[', '{'])
}

/// Other programs' unfinished or private files. A partition folder may begin with an underscore.
fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || (name.starts_with('_') && !name.contains('=')) || name.ends_with("._COPYING_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &std::path::Path, names: &[&str]) {
        for name in names {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
    }

    async fn list(root: &std::path::Path, pattern: &str, change: impl FnOnce(&mut Pattern)) -> Vec<String> {
        let mut pattern = Pattern::parse(&root.join(pattern).display().to_string()).unwrap();
        change(&mut pattern);
        let prefix = Pattern::parse(root.to_str().unwrap()).unwrap().root().uri() + "/";
        let files = pattern.list(&RuntimeEnv::default()).await.unwrap().files;
        let mut names: Vec<_> = files.iter().map(|f| f.uri.strip_prefix(&prefix).unwrap().to_owned()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_folder_gives_its_files_and_those_of_partitions() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &["in/a.csv", "in/_b.csv", "in/.c.csv", "in/k=1/d e.csv", "in/sub/f.csv", "in/_x/g.csv"]);
        write(root.path(), &["in/_k=1/h.csv"]);
        assert_eq!(list(root.path(), "in", |_| ()).await, ["in/_k=1/h.csv", "in/a.csv", "in/k=1/d%20e.csv"]);
        let all = list(root.path(), "in", |p| p.recursive = true).await;
        assert_eq!(all, ["in/_k=1/h.csv", "in/a.csv", "in/k=1/d%20e.csv", "in/sub/f.csv"]);
        assert_eq!(list(root.path(), "in/a.csv", |_| ()).await, ["in/a.csv"]);
        let nowhere = Pattern::parse(&root.path().join("nowhere").display().to_string()).unwrap();
        let error = nowhere.list(&RuntimeEnv::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.message().contains("is gone"), "{error}");
        assert!(list(root.path(), "nowhere/*", |_| ()).await.is_empty());
    }

    #[tokio::test]
    async fn globs_match_step_by_step() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &["in/1/x-a.csv", "in/2/x-b.csv", "in/2/y.csv", "in/2/deep/x-c.csv", "in/x-top.csv"]);
        assert_eq!(list(root.path(), "in/*/x-*.csv", |_| ()).await, ["in/1/x-a.csv", "in/2/x-b.csv"]);
        assert_eq!(list(root.path(), "in/{1,3}", |_| ()).await, ["in/1/x-a.csv"]);
        assert_eq!(list(root.path(), "in/?", |_| ()).await.len(), 3);
        let filtered = list(root.path(), "in/2", |p| p.name_filter = Some(glob("x-*").unwrap())).await;
        assert_eq!(filtered, ["in/2/x-b.csv"]);
    }

    #[test]
    fn a_folder_that_input_may_come_from_is_recognised() {
        let folder = |path: &str| Pattern::parse(path).unwrap().root();
        let pattern = Pattern::parse("/data/*/in").unwrap();
        for inside in ["/data/x/in", "/data/x/in/archive", "/data/x"] {
            assert!(pattern.may_contain(&folder(inside)), "{inside}");
        }
        for outside in ["/archive", "/data/x/archive"] {
            assert!(!pattern.may_contain(&folder(outside)), "{outside}");
        }
        assert_eq!(pattern.root().uri(), "file:///data");
    }

    #[test]
    fn a_root_that_is_gone_is_told_from_one_that_has_not_come() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| Pattern::parse(&root.path().join(name).display().to_string()).unwrap();
        let (folder, glob) = (at("in"), at("in/*/x*.csv"));
        let (mut folder_was_there, mut glob_was_there) = (true, false);
        glob.check_still_there(&mut glob_was_there).unwrap();
        assert!(!glob_was_there, "it may come");
        std::fs::create_dir(root.path().join("in")).unwrap();
        folder.check_still_there(&mut folder_was_there).unwrap();
        glob.check_still_there(&mut glob_was_there).unwrap();
        std::fs::remove_dir(root.path().join("in")).unwrap();
        for (pattern, was_there) in [(folder, folder_was_there), (glob, glob_was_there)] {
            let error = pattern.check_still_there(&mut was_there.clone()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            assert!(error.message().contains("is gone") && error.file().unwrap().ends_with("in"), "{error}");
        }
    }

    #[test]
    fn a_path_that_does_not_exist_is_refused_and_a_glob_is_not() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| Pattern::parse(&root.path().join(name).display().to_string()).unwrap();
        assert!(at("").check_exists().is_ok());
        let error = at("missing").check_exists().unwrap_err();
        assert!(error.message().contains("does not exist"), "{error}");
        assert!(at("missing/*").check_exists().is_ok());
    }
}
