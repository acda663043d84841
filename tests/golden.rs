//! The committed bundles of the examples. After an intended change: `just bless`.
//!
//! Committed are the files that are rendered, and the manifest. The manifest has the digest and the
//! mode of every other file, which is copied from bundle-templates/ as it is.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;

use common::{CASES, Scratch, files_below, root};
use gen_backup_bundle::bundle::{sha256, templates};
use serde_json::{Value, json};

const MANIFEST: &str = "manifest.json";

/// Path, whether it can be executed, and content of every file, secrets apart.
type Files = BTreeMap<String, (bool, Vec<u8>)>;

fn files(tree: BTreeMap<String, (u32, Vec<u8>)>) -> Files {
    let is_file = |path: &str| !path.ends_with('/') && !path.starts_with("secrets/");
    let files = tree.into_iter().filter(|(path, _)| is_file(path));
    files
        .map(|(path, (mode, content))| (path, (mode & 0o100 != 0, content)))
        .collect()
}

#[test]
fn every_example_has_its_rendered_files_and_its_manifest_as_committed() {
    let rendered: BTreeSet<_> = templates()
        .map(|(path, _)| path.to_owned())
        .chain([MANIFEST.to_owned()])
        .collect();
    for case in CASES {
        let mut expected = files(Scratch::generated(case).tree());
        expected.retain(|path, _| rendered.contains(path));
        let directory = root().join("examples").join(case).join("bundle");
        let committed = files(files_below(&directory));
        let paths = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(
            paths(&committed),
            paths(&expected),
            "{case}: when that is intended, `just bless`"
        );
        for (path, expected) in expected {
            let is_same = committed[&path] == expected;
            assert!(
                is_same,
                "{case}/{path}: when that is intended, `just bless`"
            );
        }
    }
}

#[test]
fn every_file_of_a_bundle_is_as_its_manifest_says_and_copies_are_as_in_the_templates() {
    let rendered: BTreeSet<_> = templates().map(|(path, _)| path).collect();
    for case in CASES {
        let scratch = Scratch::generated(case);
        let manifest: Value = serde_json::from_str(&scratch.read("out/manifest.json")).unwrap();
        let mut files = files(scratch.tree());
        files.remove(MANIFEST);
        let found: Value = files
            .iter()
            .map(|(path, (executable, content))| {
                let entry = json!({"sha256": sha256(content), "executable": executable});
                (path.clone(), entry)
            })
            .collect();
        assert_eq!(manifest["files"], found, "{case}");
        for (path, (_, content)) in files {
            if !rendered.contains(path.as_str()) {
                let template = fs::read(root().join("bundle-templates").join(&path)).unwrap();
                assert!(content == template, "{case}/{path}");
            }
        }
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
