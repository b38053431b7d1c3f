//! An output folder that was copied or moved.
//!
//! The log of a file sink keeps whole paths, because Spark passes over relative ones without a word. So a copy names the
//! files of its original: who reads it would find them gone, or read the original, and who goes on writing would add files
//! of one place to those of another. The error says so. A folder reached through a link is in its place.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tidewater::error::{Error, Result};

use super::uri::FileLocation;

/// An error if `files`, URIs in the log of the folder `root`, lie elsewhere.
pub(super) fn check_in_place<'a>(root: &FileLocation, files: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let below = format!("{}/", root.uri().trim_end_matches('/'));
    let mut known: BTreeSet<&str> = BTreeSet::new();
    for uri in files {
        let folder = uri.rsplit_once('/').map_or(uri, |(folder, _)| folder);
        if uri.starts_with(&below) || !known.insert(folder) {
            continue;
        }
        if !is_linked(root, &FileLocation::parse(uri)?) {
            return Err(moved(root, uri));
        }
    }
    Ok(())
}

/// Whether the file lies below `root` by the paths that links lead to.
fn is_linked(root: &FileLocation, file: &FileLocation) -> bool {
    let (Some(root), Some(file)) = (root.on_disk(), file.on_disk()) else { return root.names() == file.names() };
    let Ok(root) = std::fs::canonicalize(root) else { return false };
    real_path(&file).is_some_and(|file| file.starts_with(root))
}

/// Where `path` leads, as far as it is there.
fn real_path(path: &Path) -> Option<PathBuf> {
    path.ancestors().find_map(|above| {
        let real = std::fs::canonicalize(above).ok()?;
        Some(real.join(path.strip_prefix(above).ok()?))
    })
}

fn moved(root: &FileLocation, uri: &str) -> Error {
    let new = root.uri();
    // What the two paths have in common at their ends is below the folder; the file itself is in any case.
    let name = new.rsplit('/').next().unwrap_or_default();
    let old = uri.find(&format!("/{name}/")).map_or_else(
        || uri.rsplit_once('/').map_or(uri, |(folder, _)| folder),
        |at| uri.get(..at + 1 + name.len()).unwrap_or(uri),
    );
    Error::damaged(format!(
        "the folder was copied or moved: its log, `_spark_metadata`, names files elsewhere, such as `{uri}`, and not below \
         `{new}`"
    ))
    .with_file(new.clone())
    .with_hint(format!(
        "move it back, or make a link to it at its old place; or, for a copy that is to stand for itself, replace the old \
         folder (`{old}`, it seems) by `{new}` in every file of its `_spark_metadata`"
    ))
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_in_its_place_by_name_or_by_link() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| FileLocation::parse(&format!("file://{}/{name}", root.path().display())).unwrap();
        std::fs::create_dir_all(root.path().join("out/k=1")).unwrap();
        std::os::unix::fs::symlink("out", root.path().join("link")).unwrap();
        let (file, linked, elsewhere) = (at("out/k=1/f").uri(), at("link/k=1/gone").uri(), at("old/out/f").uri());
        for folder in ["out", "link"] {
            check_in_place(&at(folder), [file.as_str(), &linked]).unwrap();
        }
        let error = check_in_place(&at("out"), [file.as_str(), &elsewhere]).unwrap_err();
        assert!(error.message().contains("copied or moved"), "{error}");
        assert!(error.hint().unwrap().contains("/old/out`"), "{error}");
        let bucket = |name: &str| FileLocation::parse(&format!("s3://bucket/{name}")).unwrap();
        check_in_place(&bucket("out"), ["s3://bucket/out/f"]).unwrap();
        assert!(check_in_place(&bucket("out"), ["s3://bucket/outer/f"]).is_err());
        assert!(check_in_place(&bucket("out"), ["file:///out/f"]).is_err());
    }
}
