//! Where a file source or sink is: spelled alike whatever the user wrote, for the checkpoint; and links followed, to see
//! whether a source would read what a sink writes.

use std::path::PathBuf;

use datafusion::execution::object_store::ObjectStoreUrl;
use tidewater::error::Result;
use tidewater::identity::Identity;

use super::uri::{FileLocation, split};

/// The place of a folder that a user names, as a URI.
pub(super) fn place_of(location: &str) -> Result<String> {
    let (store, names) = split(location)?;
    Ok(FileLocation::from_names(store, names.into_iter().map(String::into_bytes).collect()).uri())
}

/// The folder, or file, below which all files of a place lie: the part before the first glob.
pub(super) fn root_of_place(place: &str) -> String {
    let is_glob = |name: &&str| name.contains(['*', '?', '[', '{']);
    place.split('/').take_while(|name| !is_glob(name)).collect::<Vec<_>>().join("/")
}

/// One step of the path of a file that a sink writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Folder(String),
    /// `column=` and any value.
    Values(String),
    /// One of these, or of names like them.
    File(Vec<String>),
}

/// A folder that something of the query writes to.
#[derive(Debug)]
pub(super) struct SinkFolder {
    pub(super) store: ObjectStoreUrl,
    names: Vec<String>,
    partition_by: Vec<String>,
    files: Vec<String>,
}

impl SinkFolder {
    /// If it writes files, where.
    pub(super) fn of(sink: &Identity) -> Option<Self> {
        let format = sink.kind().strip_suffix(" files")?;
        let (store, names) = split(sink.place()?).ok()?;
        let columns = sink.get("partitionBy").into_iter().flat_map(|columns| columns.split(','));
        let begin = "part-00000-00000000-0000-4000-8000-000000000000";
        let files = match format {
            "checkpoint" => vec!["metadata".to_owned()],
            format => ["", ".snappy", ".gz", ".zstd"]
                .iter()
                .flat_map(|codec| [format!("{begin}-c000{codec}.{format}"), format!("{begin}-c000.{format}{codec}")])
                .collect(),
        };
        let names = resolved(&store, names);
        Some(SinkFolder { store, names, partition_by: columns.map(|c| c.trim().to_owned()).collect(), files })
    }

    /// The path of its files.
    pub(super) fn path(&self) -> Vec<Part> {
        let folders = self.names.iter().cloned().map(Part::Folder);
        let values = self.partition_by.iter().map(|column| Part::Values(format!("{column}=")));
        folders.chain(values).chain([Part::File(self.files.clone())]).collect()
    }
}

/// The names that lead to a place, links followed as far as it exists.
pub(super) fn resolved(store: &ObjectStoreUrl, names: Vec<String>) -> Vec<String> {
    if *store != ObjectStoreUrl::local_filesystem() {
        return names;
    }
    for known in (1..=names.len()).rev() {
        let (there, rest) = names.split_at(known);
        let path = PathBuf::from(format!("/{}", there.join("/")));
        if let Ok(path) = path.canonicalize() {
            let mut found: Vec<String> =
                path.components().skip(1).map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
            found.extend_from_slice(rest);
            return found;
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::listing::{Pattern, glob};

    #[test]
    fn a_source_that_takes_a_sink_s_files_is_found() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name).display().to_string();
        std::fs::create_dir_all(at("out")).unwrap();
        std::os::unix::fs::symlink(at("out"), at("link")).unwrap();
        let takes = |source: &str, recursive: bool, filter: Option<&str>, sink: &str, columns: &str| {
            let mut pattern = Pattern::parse(&at(source)).unwrap();
            pattern.recursive = recursive;
            pattern.name_filter = filter.map(|filter| glob(filter).unwrap());
            let mut sink = Identity::new("csv files").at(place_of(&at(sink)).unwrap());
            if !columns.is_empty() {
                sink = sink.option("partitionBy", columns);
            }
            pattern.takes_files_of(&SinkFolder::of(&sink).unwrap())
        };
        for (source, recursive, filter, sink, columns, expected) in [
            ("out", false, None, "out", "", true),
            ("out/", false, None, "in/../out", "", true),
            ("link", false, None, "out", "", true),
            ("out", false, None, "link", "", true),
            ("out", false, None, "link/new", "", false),
            ("out", true, None, "link/new", "", true),
            ("out", false, None, "out", "k", true),
            ("out/k=1", false, None, "out", "k", true),
            ("out/k=1", false, None, "out", "k,l", true),
            ("out/l=1", false, None, "out", "k", false),
            ("out/k=1", false, None, "out", "", false),
            ("out/in", false, None, "out", "", false),
            ("out/in", false, None, "out", "k", false),
            ("*", false, None, "out", "", true),
            ("o*", false, None, "out", "", true),
            ("i*", false, None, "out", "", false),
            ("out/*.csv", false, None, "out", "", true),
            ("out/*.json", false, None, "out", "", false),
            ("*/*", false, None, "out", "k", true),
            (".", true, None, "out/deep/down", "", true),
            (".", true, None, "_out", "", false),
            (".", false, None, "out", "", false),
            ("out", false, Some("in-*"), "out", "", false),
            ("out", false, Some("*.csv"), "out", "", true),
            ("in", false, None, "out", "", false),
        ] {
            let found = takes(source, recursive, filter, sink, columns);
            assert_eq!(found, expected, "{source} {recursive} {filter:?} {sink} {columns}");
        }
    }

    #[test]
    fn places_are_spelled_alike() {
        let here = std::env::current_dir().unwrap().join("in");
        let place = format!("file://{}", here.display());
        for spelling in ["in", "./in/", "x/../in", &place] {
            assert_eq!(place_of(spelling).unwrap(), place, "{spelling}");
        }
        assert_eq!(place_of("s3://bucket/in/").unwrap(), "s3://bucket/in");
        assert_eq!(root_of_place("file:///in/*/a-[0-9]"), "file:///in");
    }
}
