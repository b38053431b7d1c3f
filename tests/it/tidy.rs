//! Reads our own sources for what was left lying about.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A file that tells more than one story should become several.
const LINES_MAX: usize = 600;

/// What must not be committed, in pieces so that this file does not find itself.
const LEFTOVERS: [(&str, &str); 7] = [
    ("todo", "!("),
    ("unimplemented", "!("),
    ("dbg", "!("),
    ("#[ign", "ore"),
    ("FIX", "ME"),
    ("XX", "X"),
    ("TO", "DO"),
];

fn sources() -> Vec<PathBuf> {
    let mut files = vec![];
    for folder in ["engine", "connectors", "tests", "benches", "examples"] {
        collect(&Path::new(ROOT).join(folder), &mut files);
    }
    files.sort();
    assert!(files.len() > 50, "only {} sources were found below {ROOT}", files.len());
    files
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn shown(file: &Path) -> String {
    file.strip_prefix(ROOT).unwrap_or(file).display().to_string()
}

fn fail_if_any(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn nothing_is_left_over() {
    let mut complaints = vec![];
    for file in sources() {
        let text = std::fs::read_to_string(&file).unwrap();
        for (number, line) in text.lines().enumerate() {
            for (start, end) in LEFTOVERS {
                if line.contains(&format!("{start}{end}")) {
                    complaints.push(format!("{}:{}: `{start}{end}`", shown(&file), number + 1));
                }
            }
            if line.ends_with([' ', '\t']) {
                complaints.push(format!("{}:{}: a space at the end", shown(&file), number + 1));
            }
        }
    }
    fail_if_any(&complaints);
}

#[test]
fn no_file_is_too_long() {
    let lines = |file: &PathBuf| std::fs::read_to_string(file).unwrap().lines().count();
    let long = sources().into_iter().map(|file| (lines(&file), file)).filter(|(lines, _)| *lines > LINES_MAX);
    let complaints: Vec<String> =
        long.map(|(lines, file)| format!("{}: {lines} lines, more than {LINES_MAX}", shown(&file))).collect();
    fail_if_any(&complaints);
}

/// Every file is a crate's root or is declared with `mod`: one that is not would never be compiled.
#[test]
fn every_file_is_declared() {
    let files = sources();
    let mut declared: BTreeSet<PathBuf> = BTreeSet::new();
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        let folder = file.parent().unwrap();
        let is_door = ["mod", "lib", "main"].iter().any(|door| file.file_stem().is_some_and(|stem| stem == *door));
        let inside = if is_door { folder.to_owned() } else { file.with_extension("") };
        let mut path_of_next = None;
        for line in text.lines().map(str::trim) {
            if let Some(path) = line.strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix("\"]")) {
                path_of_next = Some(path.to_owned());
                continue;
            }
            let words: Vec<&str> = line.trim_end_matches(';').split_whitespace().collect();
            let module = match words.as_slice() {
                ["mod", name] | [_, "mod", name] if line.ends_with(';') => *name,
                _ => continue,
            };
            if let Some(path) = path_of_next.take() {
                declared.insert(std::fs::canonicalize(folder.join(path)).unwrap());
            }
            declared.insert(inside.join(format!("{module}.rs")));
            declared.insert(inside.join(module).join("mod.rs"));
            // An example or a bench of one file keeps its modules beside it.
            declared.insert(folder.join(format!("{module}.rs")));
        }
    }
    let roots = |file: &Path| {
        let parent = file.parent().and_then(Path::file_name).unwrap_or_default();
        let name = file.file_name().unwrap_or_default();
        name == "lib.rs" || name == "main.rs" || name == "build.rs" || parent == "examples"
    };
    let complaints: Vec<String> = files
        .iter()
        .filter(|file| !roots(file) && !declared.contains(*file))
        .map(|file| format!("{}: no `mod` declares it", shown(file)))
        .collect();
    fail_if_any(&complaints);
}

/// The visible conformance cases are the ones that were recorded: 230, in twelve groups.
#[test]
fn the_conformance_cases_are_complete() {
    let cases = Path::new(ROOT).join("tests/conformance/cases");
    let groups: Vec<PathBuf> = std::fs::read_dir(&cases).unwrap().map(|entry| entry.unwrap().path()).collect();
    let count: usize = groups.iter().map(|group| std::fs::read_dir(group).unwrap().count()).sum();
    assert_eq!((groups.len(), count), (12, 230));
}
