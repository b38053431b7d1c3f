//! What becomes of files that were read: nothing, the archive, or the bin.
//!
//! Best effort: a file that cannot be moved or deleted stays, is traced and counted, and the query goes on.

use futures::StreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::io::ErrorKind;
use std::sync::Arc;

use datafusion::execution::runtime_env::RuntimeEnv;
use tidewater::error::{Error, Result};
use tidewater::executor::block_in_place;

use super::listing::Pattern;
use super::uri::FileLocation;

/// How many files are moved or deleted at a time.
const AT_ONCE: usize = 8;

/// What becomes of an input file once the batch that read it is committed and the next one is planned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum CleanSource {
    /// It stays.
    #[default]
    Off,
    /// It is moved below this folder, with its whole path. The folder must lie in the same store as the input, and
    /// outside of it.
    Archive(String),
    /// It is deleted.
    Delete,
}

/// Does what [`CleanSource`] says.
#[derive(Debug)]
pub(super) struct Cleaner {
    /// Where files go; `None` deletes them.
    archive: Option<FileLocation>,
    pub(super) cleaned: u64,
    pub(super) failed: u64,
}

impl Cleaner {
    /// A cleaner for the input `pattern`, if anything is to be cleaned.
    pub(super) fn new(clean: &CleanSource, pattern: &Pattern) -> Result<Option<Self>> {
        let archive = match clean {
            CleanSource::Off => return Ok(None),
            CleanSource::Delete => None,
            CleanSource::Archive(folder) => Some(archive_folder(folder, pattern)?),
        };
        Ok(Some(Cleaner { archive, cleaned: 0, failed: 0 }))
    }

    /// Cleans the files of these URIs.
    pub(super) async fn clean(&mut self, uris: Vec<String>, runtime: &RuntimeEnv) {
        let archive = self.archive.as_ref();
        let done: Vec<_> = futures::stream::iter(uris)
            .map(|uri| async move {
                let result = clean_file(&uri, archive, runtime).await;
                if let Err(error) = &result {
                    tracing::warn!(file = %uri, %error, "cannot clean up an input file that was read");
                }
                result.is_ok()
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let cleaned = done.iter().filter(|ok| **ok).count();
        self.cleaned += cleaned as u64;
        self.failed += (done.len() - cleaned) as u64;
    }
}

fn archive_folder(folder: &str, pattern: &Pattern) -> Result<FileLocation> {
    let archive = Pattern::parse(folder)?;
    let root = archive.root();
    if archive.is_glob() {
        return Err(Error::invalid(format!("the archive `{folder}` must be one folder")));
    }
    if root.store != pattern.root().store {
        return Err(Error::invalid(format!("the archive `{folder}` lies in another store than the input `{pattern}`"))
            .with_hint("archive within the same store: files are moved, not copied"));
    }
    if pattern.may_contain(&root) {
        return Err(Error::invalid(format!(
            "files archived in `{folder}` might be read again as input of `{pattern}`"
        ))
        .with_hint("choose an archive outside of the input"));
    }
    Ok(root)
}

async fn clean_file(uri: &str, archive: Option<&FileLocation>, runtime: &RuntimeEnv) -> Result<()> {
    let file = FileLocation::parse(uri)?;
    let store: Arc<dyn ObjectStore> = file.open(runtime)?;
    let Some(archive) = archive else { return done(uri, store.delete(&file.path).await) };
    let to = below(archive, &file);
    match (file.on_disk(), to.on_disk()) {
        (Some(from), Some(to_path)) if file.is_odd() || to.is_odd() => block_in_place(|| move_on_disk(&from, &to_path)),
        _ => done(uri, move_file(store.as_ref(), &file.path, &to.path).await),
    }
}

fn done(uri: &str, result: object_store::Result<()>) -> Result<()> {
    match result {
        Ok(()) => Ok(()),
        // A repeated commit finds its work done.
        Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(e) => Err(Error::store("clean up a file that was read", uri, e)),
    }
}

/// Moves `from` to `to`; another file that lies there is not overwritten. Many stores link or copy first and delete then, so
/// a fall between the two leaves the file in both places, and only its deletion is left to do.
async fn move_file(store: &dyn ObjectStore, from: &Path, to: &Path) -> object_store::Result<()> {
    let taken = match store.rename_if_not_exists(from, to).await {
        Err(taken @ object_store::Error::AlreadyExists { .. }) => taken,
        done => return done,
    };
    let (source, archived) = (store.head(from).await?, store.head(to).await?);
    if source.size == archived.size && source.e_tag.is_some() && source.e_tag == archived.e_tag {
        return store.delete(from).await;
    }
    Err(taken)
}

/// The same for names on a local disk that no object store takes.
fn move_on_disk(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    let failed = |e| Error::io("archive a file that was read", from.display().to_string(), e);
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    match std::fs::hard_link(from, to) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) if e.kind() == ErrorKind::AlreadyExists && is_same_file(from, to) => {}
        linked => linked.map_err(failed)?,
    }
    std::fs::remove_file(from).map_err(failed)
}

#[cfg(unix)]
fn is_same_file(one: &std::path::Path, other: &std::path::Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |path| std::fs::metadata(path).map(|found| (found.dev(), found.ino()));
    identity(one).is_ok_and(|one| identity(other).is_ok_and(|other| one == other))
}

#[cfg(not(unix))]
fn is_same_file(_: &std::path::Path, _: &std::path::Path) -> bool {
    false
}

/// The place of `file`, its whole path, below `folder`.
fn below(folder: &FileLocation, file: &FileLocation) -> FileLocation {
    FileLocation::from_names(folder.store.clone(), folder.names().into_iter().chain(file.names()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_that_input_may_come_from_is_refused() {
        let check = |archive: &str, input: &str| {
            Cleaner::new(&CleanSource::Archive(archive.to_owned()), &Pattern::parse(input).unwrap())
        };
        assert!(check("/archive", "/data/in").is_ok());
        for (archive, input) in
            [("/data/in/old", "/data/in"), ("/data/in", "/data/in"), ("/data/x/old", "/data/*"), ("/a/*", "/b")]
        {
            assert!(check(archive, input).is_err(), "{archive} {input}");
        }
        let error = check("s3://bucket/archive", "/data/in").unwrap_err();
        assert!(error.message().contains("another store"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn an_archive_that_a_link_leads_into_the_input_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name).display().to_string();
        std::fs::create_dir_all(at("in/old")).unwrap();
        std::fs::create_dir_all(at("elsewhere")).unwrap();
        std::os::unix::fs::symlink(at("in/old"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("elsewhere"), at("in/away")).unwrap();
        let check = |archive: &str| {
            Cleaner::new(&CleanSource::Archive(at(archive)), &Pattern::parse(&at("in")).unwrap()).map(|_| ())
        };
        assert!(check("link").is_err() && check("link/new").is_err() && check("in/old").is_err());
        check("elsewhere").unwrap();
    }

    #[tokio::test]
    async fn a_file_keeps_its_whole_path_in_the_archive() {
        let root = tempfile::tempdir().unwrap();
        let input = root.path().join("in");
        std::fs::create_dir(&input).unwrap();
        std::fs::write(input.join("a b.csv"), "1").unwrap();
        let archive = root.path().join("archive").display().to_string();
        let pattern = Pattern::parse(&input.display().to_string()).unwrap();
        let mut cleaner = Cleaner::new(&CleanSource::Archive(archive.clone()), &pattern).unwrap().unwrap();
        let runtime = RuntimeEnv::default();
        let uri = pattern.list(&runtime).await.unwrap().files.remove(0).uri;
        cleaner.clean(vec![uri.clone()], &runtime).await;
        cleaner.clean(vec![uri.clone()], &runtime).await;
        assert_eq!((cleaner.cleaned, cleaner.failed), (2, 0));
        assert!(!input.join("a b.csv").exists());
        let archived = format!("{archive}{}/a b.csv", input.display());
        assert_eq!(std::fs::read_to_string(&archived).unwrap(), "1");

        // A fall between the link and the deletion.
        std::fs::hard_link(&archived, input.join("a b.csv")).unwrap();
        cleaner.clean(vec![uri.clone()], &runtime).await;
        assert_eq!((cleaner.cleaned, cleaner.failed), (3, 0));
        assert!(!input.join("a b.csv").exists());

        // Another file of the same name stays where it is.
        std::fs::write(input.join("a b.csv"), "2").unwrap();
        cleaner.clean(vec![uri], &runtime).await;
        assert_eq!((cleaner.cleaned, cleaner.failed), (3, 1));
        assert!(input.join("a b.csv").exists());
        assert_eq!(std::fs::read_to_string(archived).unwrap(), "1");
    }
}
