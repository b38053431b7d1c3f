//! The walk over an object store.

use std::sync::Arc;

use futures::TryStreamExt;
use object_store::path::{Path, PathPart};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use tidewater::error::{Error, ErrorKind, Result};

use super::{ListedFile, Listing, Pattern, Step, is_hidden};
use crate::file::uri::uri_of;

/// What some tools call the object that stands for a folder.
const FOLDER_MARK: &str = "_$folder$";

/// All files that match now.
pub(super) async fn walk(pattern: &Pattern, store: &Arc<dyn ObjectStore>) -> Result<Listing> {
    let mut found = Listing::default();
    // What is still to be visited: a folder, and how many steps of the pattern led there.
    let mut open: Vec<(Path, usize)> = vec![(Path::default(), 0)];
    while let Some((folder, depth)) = open.pop() {
        match pattern.steps.get(depth) {
            None => take_below(pattern, store, folder, &mut open, &mut found).await?,
            Some(Step::Name(name)) => {
                let path = folder.join(PathPart::parse(name).unwrap_or_else(|_| PathPart::from(name.as_str())));
                if depth + 1 == pattern.steps.len() {
                    match file_at(pattern, store, &path).await? {
                        Some(file) => found.files.extend(taken(pattern, file)),
                        None => open.push((path, depth + 1)),
                    }
                } else {
                    open.push((path, depth + 1));
                }
            }
            Some(Step::Glob(glob)) => {
                let entries = store.list_with_delimiter(Some(&folder)).await.map_err(|e| failed(pattern, e))?;
                let matching =
                    |path: &Path| path.filename().is_some_and(|name| !is_hidden(name) && glob.is_match(name));
                if depth + 1 == pattern.steps.len() {
                    let objects = entries.objects.into_iter().filter(|o| o.location != folder && matching(&o.location));
                    found.files.extend(objects.filter_map(|object| taken(pattern, object)));
                }
                open.extend(entries.common_prefixes.into_iter().filter(matching).map(|path| (path, depth + 1)));
            }
        }
    }
    Ok(found)
}

/// The files below a folder that matches as a whole.
async fn take_below(
    pattern: &Pattern,
    store: &Arc<dyn ObjectStore>,
    folder: Path,
    open: &mut Vec<(Path, usize)>,
    found: &mut Listing,
) -> Result<()> {
    if pattern.recursive {
        let all: Vec<_> = store.list(Some(&folder)).try_collect().await.map_err(|e| failed(pattern, e))?;
        let visible = all.into_iter().filter(|object| {
            let mut below = object.location.prefix_match(&folder).into_iter().flatten();
            object.location != folder && !below.any(|name| is_hidden(name.as_ref()))
        });
        found.files.extend(visible.filter_map(|object| taken(pattern, object)));
        return Ok(());
    }
    let entries = store.list_with_delimiter(Some(&folder)).await.map_err(|e| failed(pattern, e))?;
    // An object that ends in a slash stands for the folder itself.
    let objects = entries.objects.into_iter().filter(|object| object.location != folder);
    found.files.extend(objects.filter_map(|object| taken(pattern, object)));
    let partitions =
        entries.common_prefixes.into_iter().filter(|path| path.filename().is_some_and(|name| pattern.goes_into(name)));
    open.extend(partitions.map(|path| (path, pattern.steps.len())));
    Ok(())
}

/// The object named exactly `path`, if there is one.
async fn file_at(pattern: &Pattern, store: &Arc<dyn ObjectStore>, path: &Path) -> Result<Option<ObjectMeta>> {
    if path.is_root() {
        return Ok(None);
    }
    match store.head(path).await {
        Ok(object) => Ok(Some(object)),
        // A folder is not an object: some stores say so with another error.
        Err(object_store::Error::NotFound { .. } | object_store::Error::Generic { .. }) => Ok(None),
        Err(e) => Err(failed(pattern, e)),
    }
}

fn taken(pattern: &Pattern, object: ObjectMeta) -> Option<ListedFile> {
    let name = object.location.filename()?;
    let is_mark = object.size == 0 && name.ends_with(FOLDER_MARK);
    (pattern.takes(name) && !is_mark).then(|| ListedFile {
        uri: uri_of(&pattern.store, object.location.as_ref()),
        modified_ms: object.last_modified.timestamp_millis(),
        size: object.size,
    })
}

/// Why `pattern` cannot be listed.
pub(super) fn failed(pattern: &Pattern, error: object_store::Error) -> Error {
    let text = pattern.to_string();
    let error = match error {
        // The client gives up the whole page for it, so nothing beside that object can be seen either.
        object_store::Error::InvalidPath { .. } => Error::new(
            ErrorKind::BadInput,
            format!("cannot list `{text}`: an object there has a name that cannot be read ({error})"),
        )
        .with_hint(
            "rename or remove that object: names may hold no control characters and no empty part between slashes",
        )
        .with_source(error),
        _ => Error::new(ErrorKind::Unavailable, format!("cannot list `{text}`: {error}"))
            .with_hint("check the path, the rights and the network, then start again")
            .with_source(error),
    };
    error.with_file(text)
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn marks_of_folders_are_no_files() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        for (name, text) in [
            ("in", ""),
            ("in/a.csv", "x"),
            ("in/k=1_$folder$", ""),
            ("in/k=1", ""),
            ("in/k=1/b.csv", "x"),
            ("in/_c", "x"),
        ] {
            store.put(&Path::parse(name).unwrap(), text.as_bytes().to_vec().into()).await.unwrap();
        }
        let mut pattern = Pattern::parse("mem://bucket/in/*").unwrap();
        let names = |found: Listing| {
            let mut names: Vec<_> = found.files.into_iter().map(|file| file.uri).collect();
            names.sort();
            names
        };
        let found = names(walk(&pattern, &store).await.unwrap());
        assert_eq!(found, ["mem://bucket/in/a.csv", "mem://bucket/in/k=1", "mem://bucket/in/k=1/b.csv"]);
        pattern = Pattern::parse("mem://bucket/in/k=1/b.csv").unwrap();
        assert_eq!(names(walk(&pattern, &store).await.unwrap()), ["mem://bucket/in/k=1/b.csv"]);
    }

    #[test]
    fn a_name_that_no_client_can_read_is_told_as_what_it_is() {
        let wrong = Path::parse("in/a\tb").unwrap_err();
        let error = failed(&Pattern::parse("s3://bucket/in").unwrap(), wrong.into());
        assert_eq!(error.kind(), ErrorKind::BadInput);
        assert!(error.message().contains("in/a\tb") || error.message().contains("a\\tb"), "{error}");
    }
}
