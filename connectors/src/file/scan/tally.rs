//! What a batch met while its files were read: counted, and said.

use std::collections::BTreeSet;

use parking_lot::Mutex;

/// Shared by all partitions that read a batch.
#[derive(Debug, Default)]
pub(in crate::file) struct Tally {
    /// By name: a file may be read in pieces, and at two places of a plan.
    missing_files: Mutex<BTreeSet<String>>,
    corrupt_files: Mutex<BTreeSet<String>>,
    /// The columns that no file so far has; `None` before the first file.
    lacking: Mutex<Option<BTreeSet<String>>>,
}

impl Tally {
    /// A file is gone, and the query goes on without it.
    pub(in crate::file) fn missing_file(&self, uri: &str) {
        if self.missing_files.lock().insert(uri.to_owned()) {
            tracing::warn!(
                file = uri,
                "the file is gone, and `ignoreMissingFiles` is set: its rows are missing for good"
            );
        }
    }

    /// A file is damaged, and the query goes on without what is left of it.
    pub(super) fn corrupt_file(&self, uri: &str, why: &str) {
        if self.corrupt_files.lock().insert(uri.to_owned()) {
            tracing::warn!(
                file = uri,
                why,
                "the file is damaged, and `ignoreCorruptFiles` is set: the rest of it is left out"
            );
        }
    }

    /// A file was opened that lacks these columns of the source.
    pub(super) fn file_lacks(&self, columns: Vec<String>) {
        let columns = columns.into_iter().collect();
        let mut lacking = self.lacking.lock();
        *lacking = Some(match lacking.take() {
            Some(before) => &before & &columns,
            None => columns,
        });
    }

    /// The columns of the source that none of the files has.
    pub(in crate::file) fn columns_in_no_file(&self) -> Vec<String> {
        self.lacking.lock().iter().flatten().cloned().collect()
    }

    pub(in crate::file) fn missing_files(&self) -> u64 {
        self.missing_files.lock().len() as u64
    }

    pub(in crate::file) fn corrupt_files(&self) -> u64 {
        self.corrupt_files.lock().len() as u64
    }
}
