//! The walk over a local disk.
//!
//! Names are taken as they are, be they text or not. Links are followed, except one that leads back to where the walk has
//! come from. What earlier walks saw is [remembered](super::remembered), so that a walk lists what is new.

use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use tidewater::error::Result;

use super::remembered::{Folder, Remembered};
use super::{ListedFile, Listing, Omitted, Pattern, Step};
use crate::file::uri::FileLocation;

/// A place that the walk is still to visit.
struct Place {
    path: PathBuf,
    /// How many steps of the pattern led there.
    depth: usize,
    /// The folders above it that the walk came through, by their real paths; only once the pattern has matched.
    came_through: Vec<PathBuf>,
}

/// The files that match `now` and that no walk listed since the last whole one, and what to remember for the next walk.
pub(super) fn walk(pattern: &Pattern, before: Remembered, now: Duration) -> Result<(Listing, Remembered)> {
    let before = before.at(now);
    let found = Listing { is_whole: before.is_empty(), ..Listing::default() };
    let mut walk = Walk { pattern, now, after: before.next(now), before, open: vec![], found };
    walk.open.push(Place { path: PathBuf::from("/"), depth: 0, came_through: vec![] });
    while let Some(place) = walk.open.pop() {
        match pattern.steps.get(place.depth) {
            None => walk.visit(place)?,
            Some(Step::Name(name)) => {
                walk.open.push(Place { path: place.path.join(name), depth: place.depth + 1, ..place });
            }
            Some(Step::Glob(_)) => walk.match_names(&place)?,
        }
    }
    Ok((walk.found, walk.after))
}

/// Whether `folder/below` is a folder with a file in it.
pub(super) fn has_files(folder: &Path, below: &str) -> io::Result<bool> {
    let entries = match std::fs::read_dir(folder.join(below)) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(false),
        Err(e) => return Err(e),
    };
    for entry in entries {
        if entry?.file_type()?.is_file() {
            return Ok(true);
        }
    }
    Ok(false)
}

struct Walk<'a> {
    pattern: &'a Pattern,
    /// On the query's own clock.
    now: Duration,
    before: Remembered,
    after: Remembered,
    open: Vec<Place>,
    found: Listing,
}

impl Walk<'_> {
    /// A place that the whole pattern matches, or one below it.
    fn visit(&mut self, place: Place) -> Result<()> {
        let is_root = place.came_through.is_empty() && !self.pattern.is_glob();
        let found = match std::fs::metadata(&place.path) {
            Ok(found) => found,
            Err(e) if is_root => return Err(self.pattern.failed(e)),
            Err(e) => {
                self.cannot_look(&place.path, &e);
                return Ok(());
            }
        };
        if !found.is_dir() {
            match name_of(&place.path) {
                Some(name) if self.pattern.takes(&name) => {
                    self.take(&place.path, &found);
                }
                Some(name) if is_root && super::is_hidden(&name) => {
                    self.leave_out(&place.path, "a name that begins with `_` or `.` stands for what is not finished");
                }
                _ => {}
            }
            return Ok(());
        }
        let before = self.before.take(&place.path);
        let known = before.as_ref().filter(|folder| folder.is_unchanged(found.modified().ok()));
        let real = match known.map_or_else(|| std::fs::canonicalize(&place.path), |folder| Ok(folder.real.clone())) {
            Ok(real) => real,
            Err(e) => {
                self.cannot_look(&place.path, &e);
                return Ok(());
            }
        };
        if place.came_through.iter().any(|above| above.starts_with(&real)) {
            self.leave_out(&place.path, "it links back to a folder that it lies in");
            return Ok(());
        }
        let came_through: Vec<PathBuf> = place.came_through.into_iter().chain([real.clone()]).collect();
        let go_on = |path| Place { path, depth: place.depth, came_through: came_through.clone() };
        if known.is_some()
            && let Some(folder) = before
        {
            self.open.extend(folder.below.iter().cloned().map(go_on));
            self.after.put(place.path, folder);
            return Ok(());
        }
        let entries = match read_folder(&place.path) {
            Ok(entries) => entries,
            Err(e) if is_root => return Err(self.pattern.failed(e)),
            Err(e) => {
                self.leave_out(&place.path, &format!("it cannot be listed: {e}"));
                return Ok(());
            }
        };
        let mut folder = Folder::read(found.modified().ok(), real, before, self.now);
        for path in entries {
            if let Some(name) = name_of(&path) {
                self.look_at(path, self.pattern.takes(&name), self.pattern.goes_into(&name), &mut folder);
            }
        }
        self.open.extend(folder.below.iter().cloned().map(go_on));
        self.after.put(place.path, folder);
        Ok(())
    }

    /// What of a folder's entries the next step of the pattern, a glob, matches.
    fn match_names(&mut self, place: &Place) -> Result<()> {
        let Some(step) = self.pattern.steps.get(place.depth) else { return Ok(()) };
        let after_glob = self.pattern.steps.iter().take(place.depth).any(|step| matches!(step, Step::Glob(_)));
        let depth = place.depth + 1;
        let go_on = |path| Place { path, depth, came_through: vec![] };
        let before = self.before.take(&place.path);
        // The time is asked for first: what comes while the folder is read makes it another.
        let modified = std::fs::metadata(&place.path).and_then(|found| found.modified()).ok();
        let before = match before {
            Some(folder) if folder.is_unchanged(modified) => {
                self.open.extend(folder.below.iter().cloned().map(go_on));
                self.after.put(place.path.clone(), folder);
                return Ok(());
            }
            before => before,
        };
        let entries = match read_folder(&place.path) {
            Ok(entries) => entries,
            // A glob matches what is there, and that may be nothing.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
            Err(e) if !after_glob => return Err(self.pattern.failed(e)),
            Err(e) => {
                self.leave_out(&place.path, &format!("it cannot be listed: {e}"));
                return Ok(());
            }
        };
        let mut folder = Folder::read(modified, PathBuf::new(), before, self.now);
        for path in entries {
            match name_of(&path) {
                Some(name) if !super::is_hidden(&name) && step.matches(&name) => {
                    if depth == self.pattern.steps.len() {
                        self.look_at(path, self.pattern.takes(&name), true, &mut folder);
                    } else {
                        folder.below.push(path);
                    }
                }
                _ => {}
            }
        }
        self.open.extend(folder.below.iter().cloned().map(go_on));
        self.after.put(place.path.clone(), folder);
        Ok(())
    }

    /// An entry of a folder that is read: a file to list if it `takes` the name, a folder to go on to if it `goes_into` it.
    fn look_at(&mut self, path: PathBuf, takes: bool, goes_into: bool, folder: &mut Folder) {
        if !takes && !goes_into || takes && folder.keep(&path) {
            return;
        }
        let is_well = match std::fs::metadata(&path) {
            Ok(found) if found.is_dir() => {
                if goes_into {
                    folder.below.push(path);
                }
                true
            }
            Ok(found) if takes => {
                let is_listed = self.take(&path, &found);
                if is_listed {
                    folder.listed(&path);
                }
                is_listed
            }
            Ok(_) => true,
            Err(e) => self.cannot_look(&path, &e),
        };
        if !is_well {
            folder.left_out();
        }
    }

    /// Lists a file, unless it has to be left out.
    fn take(&mut self, path: &Path, found: &Metadata) -> bool {
        if !found.is_file() {
            return self.leave_out(path, "it is neither a file nor a folder (a pipe, a socket or a device)");
        }
        let modified = match found.modified() {
            Ok(modified) => modified,
            Err(e) => return self.leave_out(path, &format!("nobody knows when it was modified: {e}")),
        };
        let modified_ms = match modified.duration_since(UNIX_EPOCH) {
            Ok(since) => since.as_millis() as i64,
            Err(before) => -(before.duration().as_millis() as i64),
        };
        let names = path.iter().skip(1).map(|name| name.as_encoded_bytes().to_vec()).collect();
        let uri = FileLocation::from_names(self.pattern.store.clone(), names).uri();
        self.found.files.push(ListedFile { uri, modified_ms, size: found.len() });
        true
    }

    /// An entry that is there by name and cannot be looked at. False if it is left out.
    fn cannot_look(&mut self, path: &Path, error: &io::Error) -> bool {
        match error.kind() {
            io::ErrorKind::NotFound if std::fs::symlink_metadata(path).is_ok() => {
                self.leave_out(path, "it is a link to something that is not there")
            }
            // Deleted meanwhile; or a glob that matches nothing here.
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => true,
            _ => self.leave_out(path, &format!("it cannot be looked at: {error}")),
        }
    }

    /// Always false: the entry is not taken.
    fn leave_out(&mut self, path: &Path, why: &str) -> bool {
        self.found.omitted.push(Omitted { name: path.display().to_string(), why: why.to_owned() });
        false
    }
}

fn read_folder(path: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect()
}

/// The name of an entry, as far as it is text: enough to match it.
fn name_of(path: &Path) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use super::*;

    fn walked(root: &Path, pattern: &str, recursive: bool) -> (Vec<String>, Vec<(String, String)>) {
        let mut pattern = Pattern::parse(&root.join(pattern).display().to_string()).unwrap();
        pattern.recursive = recursive;
        let (found, _) = walk(&pattern, Remembered::default(), Duration::ZERO).unwrap();
        let prefix = FileLocation::from_names(
            pattern.store.clone(),
            root.iter().skip(1).map(|name| name.as_encoded_bytes().to_vec()).collect(),
        );
        let below = |uri: &str| uri.strip_prefix(&format!("{}/", prefix.uri())).unwrap().to_owned();
        let mut files: Vec<_> = found.files.iter().map(|file| below(&file.uri)).collect();
        files.sort();
        let short = |name: &str| name.strip_prefix(&format!("{}/", root.display())).unwrap().to_owned();
        let mut omitted: Vec<_> = found.omitted.into_iter().map(|it| (short(&it.name), it.why)).collect();
        omitted.sort();
        (files, omitted)
    }

    #[test]
    fn every_name_is_taken_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("in");
        std::fs::create_dir(&folder).unwrap();
        let names: [&[u8]; 8] =
            [b"report.csv#1", b"a\tb.csv", b"caf\xe9.csv", b"a%20b.csv", b"a b.csv", b"new\nline.csv", b"~", b"\x7f"];
        for name in names {
            std::fs::write(folder.join(OsStr::from_bytes(name)), "x").unwrap();
        }
        std::fs::create_dir_all(folder.join("k=x\ty#2")).unwrap();
        std::fs::write(folder.join("k=x\ty#2/f#7"), "x").unwrap();
        let (files, omitted) = walked(root.path(), "in", false);
        assert_eq!(
            files,
            [
                "in/%7F",
                "in/a%09b.csv",
                "in/a%20b.csv",
                "in/a%2520b.csv",
                "in/caf%E9.csv",
                "in/k=x%09y%232/f%237",
                "in/new%0Aline.csv",
                "in/report.csv%231",
                "in/~"
            ]
        );
        assert!(omitted.is_empty(), "{omitted:?}");
        assert_eq!(walked(root.path(), "in/*.csv#?", false).0, ["in/report.csv%231"]);
    }

    #[test]
    fn what_is_no_file_is_left_out_with_the_reason_and_decides_over_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("in");
        std::fs::create_dir_all(folder.join("k=1/deep")).unwrap();
        std::fs::create_dir_all(folder.join("folder.csv")).unwrap();
        std::fs::write(folder.join("k=1/a.csv"), "x").unwrap();
        std::fs::write(folder.join("b.csv"), "x").unwrap();
        std::fs::write(root.path().join("outside"), "x").unwrap();
        symlink("..", folder.join("up")).unwrap();
        symlink(".", folder.join("k=here")).unwrap();
        symlink("/", folder.join("k=root")).unwrap();
        symlink("loop", folder.join("loop")).unwrap();
        symlink("nothing", folder.join("gone.csv")).unwrap();
        symlink("nothing", folder.join("_gone.csv")).unwrap();
        symlink("../outside", folder.join("link.csv")).unwrap();
        symlink("../..", folder.join("k=1/up")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
        let (files, omitted) = walked(root.path(), "in", false);
        assert_eq!(files, ["in/b.csv", "in/k=1/a.csv", "in/link.csv"]);
        let names: Vec<_> = omitted.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["in/gone.csv", "in/k=here", "in/k=root", "in/loop", "in/socket"]);
        assert!(omitted[0].1.contains("not there") && omitted[1].1.contains("links back"), "{omitted:?}");
        assert!(omitted[3].1.contains("cannot be looked at") && omitted[4].1.contains("socket"), "{omitted:?}");

        let (files, omitted) = walked(root.path(), "in", true);
        assert_eq!(files, ["in/b.csv", "in/k=1/a.csv", "in/link.csv"]);
        let names: Vec<_> = omitted.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["in/gone.csv", "in/k=1/up", "in/k=here", "in/k=root", "in/loop", "in/socket", "in/up"]);
        let (files, omitted) = walked(root.path(), "in/{b,gone}.csv", false);
        assert_eq!((files.len(), omitted.len()), (1, 1));
    }

    #[test]
    fn two_folders_that_link_to_each_other_are_read_once_by_each_name() {
        let root = tempfile::tempdir().unwrap();
        for (folder, other) in [("a", "b"), ("b", "a")] {
            std::fs::create_dir_all(root.path().join("in").join(folder)).unwrap();
            std::fs::write(root.path().join("in").join(folder).join("f"), "x").unwrap();
            symlink(format!("../{other}"), root.path().join("in").join(folder).join("other")).unwrap();
        }
        let (files, omitted) = walked(root.path(), "in", true);
        assert_eq!(files, ["in/a/f", "in/a/other/f", "in/b/f", "in/b/other/f"]);
        assert_eq!(omitted.len(), 2);
    }

    #[test]
    fn a_single_file_is_a_path_too() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("one.csv"), "x").unwrap();
        assert_eq!(walked(root.path(), "one.csv", false).0, ["one.csv"]);
        assert!(!has_files(&root.path().join("one.csv"), "_spark_metadata").unwrap());
    }

    /// What a walk lists some seconds after the one before.
    struct Walks {
        root: PathBuf,
        pattern: Pattern,
        remembered: Remembered,
        seconds: u64,
        changes: u64,
    }

    impl Walks {
        fn new(root: &Path, pattern: &str) -> Self {
            let mut pattern = Pattern::parse(&root.join(pattern).display().to_string()).unwrap();
            pattern.recursive = true;
            Walks { root: root.to_owned(), pattern, remembered: Remembered::default(), seconds: 0, changes: 0 }
        }

        /// Changes something in a folder, long after what was there before.
        fn change(&mut self, folder: &Path, change: impl FnOnce(&Path)) {
            std::fs::create_dir_all(folder).unwrap();
            change(folder);
            self.changes += 1;
            for above in folder.ancestors().take_while(|above| above.starts_with(&self.root)) {
                let modified = UNIX_EPOCH + Duration::from_secs(self.changes);
                std::fs::File::open(above).unwrap().set_modified(modified).unwrap();
            }
        }

        fn put(&mut self, file: &Path) {
            self.change(file.parent().unwrap(), |_| std::fs::write(file, "x").unwrap());
        }

        fn after(&mut self, seconds: u64) -> (Vec<String>, usize) {
            self.seconds += seconds;
            let before = std::mem::take(&mut self.remembered);
            let (found, remembered) = walk(&self.pattern, before, Duration::from_secs(self.seconds)).unwrap();
            self.remembered = remembered;
            let mut names: Vec<_> =
                found.files.iter().map(|file| file.uri.rsplit('/').next().unwrap().to_owned()).collect();
            names.sort();
            (names, found.omitted.len())
        }
    }

    #[test]
    fn only_what_is_new_is_listed_until_the_next_whole_walk() {
        for pattern in ["in", "in/*", "in/{a,b}*", "*/*"] {
            let root = tempfile::tempdir().unwrap();
            let at = |name: &str| root.path().join("in").join(name);
            let mut walks = Walks::new(root.path(), pattern);
            ["a1", "b/a2", "b/c/a3"].iter().for_each(|name| walks.put(&at(name)));
            let all = ["a1", "a2", "a3"];
            assert_eq!(walks.after(0), (all.map(str::to_owned).to_vec(), 0), "{pattern}");
            assert_eq!(walks.after(1).0, all, "{pattern}: what is quite new may be changing");
            assert_eq!(walks.after(5).0, [""; 0], "{pattern}");
            assert_eq!(walks.after(1).0, [""; 0], "{pattern}");
            walks.put(&at("b/c/a4"));
            walks.put(&at("a5"));
            assert_eq!(walks.after(1).0, ["a4", "a5"], "{pattern}");
            walks.put(&at("b/d/e/a6"));
            assert_eq!(walks.after(1).0, ["a4", "a5", "a6"], "{pattern}");
            walks.change(&at("b/c"), |folder| std::fs::remove_file(folder.join("a3")).unwrap());
            assert_eq!(walks.after(4).0, [""; 0], "{pattern}");
            walks.put(&at("b/c/a3"));
            assert_eq!(walks.after(1).0, ["a3"], "{pattern}: made again");
            walks.change(&at(""), |folder| std::fs::remove_dir_all(folder.join("b")).unwrap());
            assert_eq!(walks.after(4).0, [""; 0], "{pattern}");
            walks.put(&at("b/c/a3"));
            assert_eq!(walks.after(1).0, ["a3"], "{pattern}: with all that it lay in");
            assert_eq!(walks.after(60).0, ["a1", "a3", "a5"], "{pattern}: everything is looked at now and then");
        }
    }

    #[test]
    fn what_was_left_out_is_looked_at_each_time() {
        for pattern in ["in", "in/*"] {
            let root = tempfile::tempdir().unwrap();
            std::fs::create_dir(root.path().join("in")).unwrap();
            std::fs::write(root.path().join("in/a"), "x").unwrap();
            symlink(root.path().join("later"), root.path().join("in/b")).unwrap();
            let mut walks = Walks::new(root.path(), pattern);
            assert_eq!(walks.after(0), (vec!["a".to_owned()], 1), "{pattern}");
            assert_eq!((walks.after(5), walks.after(5)), ((vec![], 1), (vec![], 1)), "{pattern}");
            std::fs::write(root.path().join("later"), "x").unwrap();
            assert_eq!(walks.after(1), (vec!["b".to_owned()], 0), "{pattern}");
            assert_eq!((walks.after(4), walks.after(4)), ((vec![], 0), (vec![], 0)), "{pattern}");
        }
    }

    #[test]
    fn a_walk_that_fails_remembers_nothing() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("in")).unwrap();
        std::fs::write(root.path().join("in/a"), "x").unwrap();
        let mut walks = Walks::new(root.path(), "in");
        walks.after(0);
        walks.after(5);
        std::fs::rename(root.path().join("in"), root.path().join("away")).unwrap();
        let before = std::mem::take(&mut walks.remembered);
        assert!(walk(&walks.pattern, before, Duration::from_secs(6)).is_err());
        std::fs::rename(root.path().join("away"), root.path().join("in")).unwrap();
        assert_eq!(walks.after(2).0, ["a"]);
    }
}
