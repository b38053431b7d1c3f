//! Cases with the answers Apache Spark gave: see `tests/conformance/README.md`.
//!
//! ```text
//! TIDEWATER_CONFORMANCE=DIR cargo test --release --test it conformance -- --nocapture
//! ```
//!
//! runs the cases at `DIR/<group>/<name>.json` instead of ours. `TIDEWATER_PARTITIONS=N` sets the partitions of query and
//! sources (2), `TIDEWATER_RESTART_EVERY_STEP=1` restarts the query before every step that processes.

mod build;
mod case;
mod compare;
mod run;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tidewater::error::ErrorKind;

use self::case::Case;
use self::run::{Settings, run_case, start_only};

const OUR_CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance/cases");

/// What came of the cases of one group.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    /// Refused, as long as there is no state.
    not_yet: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cases() {
    let other_folder = std::env::var_os("TIDEWATER_CONFORMANCE").map(PathBuf::from);
    let folder = other_folder.clone().unwrap_or_else(|| OUR_CASES.into());
    let settings = Settings::from_env();
    let mut groups: BTreeMap<String, Tally> = BTreeMap::new();
    let mut failures = vec![];
    for path in case_files(&folder) {
        let group = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let tally = groups.entry(group.clone()).or_default();
        let case = match Case::read(&path) {
            Ok(case) => case,
            Err(e) => {
                tally.failed += 1;
                failures.push(format!("{group}/{name}: {e}"));
                continue;
            }
        };
        // Our own cases say which of them wait for state; a folder from elsewhere is run whole.
        let waits = other_folder.is_none() && case.needs_state();
        let outcome = if waits { refused_for_state(&case, &settings).await } else { run_case(&case, &settings).await };
        match outcome {
            Ok(()) if waits => tally.not_yet += 1,
            Ok(()) => tally.passed += 1,
            Err(why) => {
                tally.failed += 1;
                failures.push(format!("{group}/{name}: {}\n{why}", case.doc));
            }
        }
    }
    assert!(!groups.is_empty(), "there are no cases in {}", folder.display());
    for failure in &failures {
        println!("FAILED {failure}\n");
    }
    for (group, tally) in &groups {
        println!("{group}: {} passed, {} failed", tally.passed, tally.failed);
        if tally.not_yet > 0 {
            println!("{group}: … , {} not yet (need state)", tally.not_yet);
        }
    }
    assert!(failures.is_empty(), "{} cases failed", failures.len());
}

/// Keeps the list of waiting cases honest: such a query must be refused, for being a stream's.
async fn refused_for_state(case: &Case, settings: &Settings) -> Result<(), String> {
    match start_only(case, settings).await {
        Ok(()) => Err("needs state and was started: run it like the others".to_owned()),
        Err(e) if e.kind() == ErrorKind::Unsupported => Ok(()),
        Err(e) => Err(format!("needs state and was refused otherwise: {e}")),
    }
}

/// All `DIR/<group>/<name>.json`, in order.
fn case_files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = entries(folder)
        .into_iter()
        .filter(|path| path.is_dir())
        .flat_map(|group| entries(&group))
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();
    files
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("cannot list {}: {e}", folder.display()));
    entries.map(|entry| entry.unwrap().path()).collect()
}
