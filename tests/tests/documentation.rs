//! The documentation against what is there: a feature that docs/nbd.md claims must be backed by tests that exist.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::path::Path;

use epochgate_tests::paths::workspace;

/// `file::function` of every test in the integration tests of a package.
fn tests_in(dir: &Path) -> BTreeSet<String> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            path.join("main.rs")
        } else {
            path
        }
    });
    let mut tests = BTreeSet::new();
    for file in files.filter(|path| path.extension().is_some_and(|ext| ext == "rs")) {
        // A test in a folder is named by the folder.
        let stem = if file.ends_with("main.rs") {
            file.parent().unwrap().file_name()
        } else {
            file.file_stem()
        };
        let stem = stem.unwrap().to_str().unwrap().to_owned();
        let sources = if file.ends_with("main.rs") {
            let folder = std::fs::read_dir(file.parent().unwrap()).unwrap();
            folder.map(|entry| entry.unwrap().path()).collect()
        } else {
            vec![file]
        };
        for source in sources.iter().filter(|path| path.is_file()) {
            let text = std::fs::read_to_string(source).unwrap();
            let mut marked = false;
            for line in text.lines().map(str::trim) {
                if let Some(rest) = line.trim_start_matches("async ").strip_prefix("fn ")
                    && marked
                {
                    let name = rest.split('(').next().unwrap();
                    tests.insert(format!("{stem}::{name}"));
                }
                // Further attributes and comments may stand between the mark and the function.
                let between = line.starts_with("#[") || line.starts_with("//");
                let mark = line == "#[test]" || line.starts_with("#[tokio::test");
                marked = mark || (marked && between);
            }
        }
    }
    tests
}

/// The cells of a table's line, without the empty ones at its ends.
fn cells(line: &str) -> Vec<&str> {
    let line = line.trim().trim_start_matches('|').trim_end_matches('|');
    line.split('|').map(str::trim).collect()
}

/// What stands in backquotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_feature_names_tests_that_exist() {
    let mut tests = tests_in(&workspace().join("tests/tests"));
    tests.extend(tests_in(&workspace().join("nbd-server/tests")));
    tests.extend(tests_in(&workspace().join("fuzz/tests")));
    assert!(tests.contains("documentation::every_feature_names_tests_that_exist"));

    let text = std::fs::read_to_string(workspace().join("docs/nbd.md")).unwrap();
    let mut features = 0;
    let mut wrong = Vec::new();
    let table = text.lines().filter(|line| line.starts_with('|')).skip(2);
    for line in table {
        let cells = cells(line);
        let [feature, ours, .., named] = cells[..] else {
            panic!("not a line of the table: {line}");
        };
        assert_eq!(cells.len(), 6, "not six cells: {line}");
        // A heading within the table, or something that we do not do.
        if ours.is_empty() || ours == "no" || ours.starts_with("no ") || ours.starts_with("no,") {
            continue;
        }
        features += 1;
        let named = quoted(named);
        if named.is_empty() {
            wrong.push(format!("{feature}: no test"));
        }
        let missing = named.iter().filter(|name| !tests.contains(**name));
        wrong.extend(missing.map(|name| format!("{feature}: there is no test {name}")));
    }
    assert!(features >= 15, "only {features} lines were understood");
    assert!(wrong.is_empty(), "docs/nbd.md:\n{}", wrong.join("\n"));
}
