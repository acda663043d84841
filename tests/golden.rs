//! The committed bundles of the examples. After an intended change: `just bless`.

mod common;

use std::fmt::Write as _;
use std::fs;

use common::{CASES, Scratch, root, run_in};

#[test]
fn every_example_has_its_bundle_as_committed() {
    for case in CASES {
        let directory = root().join("examples").join(case);
        let outcome = run_in(&directory, &["--check", "environment.json", "bundle"]);
        let verdict = (outcome.status, outcome.stderr.as_str());
        assert_eq!(
            verdict,
            (0, ""),
            "{case}: when the difference is intended, `just bless`"
        );
    }
}

#[test]
fn every_example_is_tested() {
    let names = fs::read_dir(root().join("examples")).unwrap();
    let mut names: Vec<_> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, CASES);
}

#[test]
fn a_bundle_has_these_files_with_these_modes() {
    let tree = Scratch::generated("mysql-full-stack").tree();
    let list = tree
        .iter()
        .fold(String::new(), |mut list, (path, (mode, _))| {
            writeln!(list, "{mode:04o} {path}").unwrap();
            list
        });
    insta::assert_snapshot!("paths-and-modes", list);
}
