//! Cases with the answers Apache Spark gave: see `tests/conformance/README.md`.
//!
//! ```text
//! TIDEWATER_CONFORMANCE=DIR cargo test --release --test it conformance -- --nocapture
//! ```
//!
//! runs the cases at `DIR/<group>/<name>.json` instead of ours. Every case runs with 1, 2 and 5 partitions, each
//! without restarts and restarted before every step, and once with another number of partitions at every restart.
//! `TIDEWATER_PARTITIONS=N` and `TIDEWATER_RESTART_EVERY_STEP=0` or `1` choose among these.

mod build;
mod case;
mod compare;
mod differences;
mod run;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use futures::StreamExt;

use self::case::Case;
use self::differences::{DIFFERENCES, difference};
use self::run::{Settings, run_case};

const OUR_CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance/cases");

/// So many cases run side by side: a query waits for its thread more than it works.
const AT_ONCE: usize = 4;

/// What came of the cases of one group.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    /// Of those that passed: with another answer than Spark's, on purpose.
    differ: usize,
}

/// What came of one case under all settings.
struct Verdict {
    group: String,
    /// `<group>/<name>`.
    name: String,
    /// What went wrong, and under which settings.
    wrong: BTreeMap<String, Vec<String>>,
    doc: String,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cases() {
    let folder = std::env::var_os("TIDEWATER_CONFORMANCE").map_or_else(|| OUR_CASES.into(), PathBuf::from);
    let settings = Settings::from_env();
    let settings = &settings;
    let verdicts: Vec<Verdict> = futures::stream::iter(case_files(&folder))
        .map(|path| async move { judge(&path, settings).await })
        .buffered(AT_ONCE)
        .collect()
        .await;
    assert!(!verdicts.is_empty(), "there are no cases in {}", folder.display());

    let mut groups: BTreeMap<&str, Tally> = BTreeMap::new();
    for verdict in &verdicts {
        let tally = groups.entry(&verdict.group).or_default();
        if verdict.wrong.is_empty() {
            tally.passed += 1;
            tally.differ += usize::from(difference(&verdict.name).is_some());
            continue;
        }
        tally.failed += 1;
        println!("FAILED {}: {}", verdict.name, verdict.doc);
        for (why, when) in &verdict.wrong {
            println!("with {}:\n{why}\n", when.join("; "));
        }
    }
    for settings in settings {
        println!("with {settings}");
    }
    for difference in verdicts.iter().filter_map(|verdict| difference(&verdict.name)) {
        println!("differs on purpose: {}: {}", difference.case, difference.reason);
    }
    for (group, tally) in &groups {
        let differ = if tally.differ > 0 {
            format!(", {} of them on purpose not as Spark", tally.differ)
        } else {
            String::new()
        };
        println!("{group}: {} passed, {} failed{differ}", tally.passed, tally.failed);
    }
    let failed: usize = groups.values().map(|tally| tally.failed).sum();
    assert_eq!(failed, 0, "{failed} of {} cases failed", verdicts.len());
}

async fn judge(path: &Path, settings: &[Settings]) -> Verdict {
    let group = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    let name = format!("{group}/{}", path.file_stem().unwrap_or_default().to_string_lossy());
    let mut wrong: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut doc = String::new();
    match Case::read_with(path, difference(&name).map(|difference| difference.instead)) {
        Ok(case) => {
            for settings in settings {
                if let Err(why) = run_case(&case, settings).await {
                    wrong.entry(why).or_default().push(settings.to_string());
                }
            }
            doc = case.doc;
        }
        Err(why) => wrong.entry(why).or_default().push("any settings".to_owned()),
    }
    Verdict { group, name, wrong, doc }
}

/// The list of differences names cases that exist, each once, and changes what they expect.
#[test]
fn differences_are_of_cases_we_have() {
    for difference in &DIFFERENCES {
        let path = Path::new(OUR_CASES).join(format!("{}.json", difference.case));
        let (theirs, ours) = (Case::read(&path).unwrap(), Case::read_with(&path, Some(difference.instead)).unwrap());
        assert!(!difference.reason.is_empty(), "{} differs without a reason", difference.case);
        assert_ne!(format!("{theirs:?}"), format!("{ours:?}"), "{} does not differ", difference.case);
        assert_eq!(DIFFERENCES.iter().filter(|other| other.case == difference.case).count(), 1, "{}", difference.case);
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
