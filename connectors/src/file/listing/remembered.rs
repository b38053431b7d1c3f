//! What earlier walks over a local disk saw, so that a walk costs what is new and not what is there.
//!
//! A folder has a new time of modification whenever an entry is made in it, deleted, renamed or replaced. One that has kept
//! its time is not read again, and of one that has not, only the names that nobody has seen are looked at. Both hold only
//! after some seconds: the clock of a file system may tick once in two, and a file is often written just after it was made.
//!
//! What that cannot show is a file whose contents change in its place, a link whose target changes, and a file system whose
//! folders have no honest time. So now and then a [whole walk](WHOLE_WALK_EVERY) looks at everything.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// For how long a folder or file must have been the same before it counts as known.
const SETTLED_AFTER: Duration = Duration::from_secs(3);

/// After how long everything is looked at again.
const WHOLE_WALK_EVERY: Duration = Duration::from_secs(60);

/// What earlier walks saw. Empty, it makes the next walk a whole one.
#[derive(Debug, Default)]
pub(in crate::file) struct Remembered {
    folders: HashMap<PathBuf, Folder>,
    /// When the last whole walk began.
    whole_at: Option<Duration>,
}

/// A folder that was read.
#[derive(Debug)]
pub(super) struct Folder {
    /// Nothing, where the file system does not say.
    modified: Option<SystemTime>,
    /// When it was first seen with this time, and when it was read.
    same_since: Duration,
    read_at: Duration,
    /// Where it really is, links followed.
    pub(super) real: PathBuf,
    /// Entries in it that the walk goes on to.
    pub(super) below: Vec<PathBuf>,
    /// The files of it that were listed, and when first.
    files: HashMap<OsString, Duration>,
    /// The same of the reading before; empty once this one is done.
    known: HashMap<OsString, Duration>,
    /// No entry was left out, which may be put right without a trace in the folder.
    is_complete: bool,
}

impl Remembered {
    /// What a walk that begins `now` may go by: nothing, if it is time to look at everything.
    pub(super) fn at(self, now: Duration) -> Self {
        match self.whole_at {
            Some(whole_at) if now.saturating_sub(whole_at) < WHOLE_WALK_EVERY => self,
            _ => Remembered::default(),
        }
    }

    /// The memory of the walk that begins `now` and goes by `self`.
    pub(super) fn next(&self, now: Duration) -> Self {
        Remembered { folders: HashMap::new(), whole_at: self.whole_at.or(Some(now)) }
    }

    /// Whether nothing was known before.
    pub(super) fn is_empty(&self) -> bool {
        self.whole_at.is_none()
    }

    /// What is known of a folder.
    pub(super) fn take(&mut self, folder: &Path) -> Option<Folder> {
        self.folders.remove(folder)
    }

    /// Remembers a folder that was read, or need not be.
    pub(super) fn put(&mut self, path: PathBuf, mut folder: Folder) {
        folder.known = HashMap::new();
        self.folders.insert(path, folder);
    }
}

impl Folder {
    /// A folder with the time `modified` that is read `now`; `before`, if an earlier walk read it.
    pub(super) fn read(modified: Option<SystemTime>, real: PathBuf, before: Option<Folder>, now: Duration) -> Self {
        let same = before.as_ref().filter(|before| before.modified == modified);
        let same_since = same.map_or(now, |before| before.same_since);
        let known = before.map(|before| before.files).unwrap_or_default();
        Folder {
            modified,
            same_since,
            read_at: now,
            real,
            below: vec![],
            known,
            files: HashMap::new(),
            is_complete: true,
        }
    }

    /// Whether a folder that has the time `modified` now holds the entries that it held.
    pub(super) fn is_unchanged(&self, modified: Option<SystemTime>) -> bool {
        let is_same = modified.is_some() && self.modified == modified;
        self.is_complete && is_same && is_settled(self.same_since, self.read_at)
    }

    /// Keeps a file that is known well, and says whether it is.
    pub(super) fn keep(&mut self, file: &Path) -> bool {
        let Some(name) = file.file_name() else { return false };
        match self.known.get(name) {
            Some(first) if is_settled(*first, self.read_at) => {
                self.files.insert(name.to_owned(), *first);
                true
            }
            _ => false,
        }
    }

    /// Notes a file that was listed.
    pub(super) fn listed(&mut self, file: &Path) {
        let Some(name) = file.file_name() else { return };
        let first = self.known.get(name).copied().unwrap_or(self.read_at);
        self.files.insert(name.to_owned(), first);
    }

    /// Notes that an entry was left out.
    pub(super) fn left_out(&mut self) {
        self.is_complete = false;
    }
}

fn is_settled(since: Duration, now: Duration) -> bool {
    now.saturating_sub(since) >= SETTLED_AFTER
}
