//! The built program: exact words and status, and what it does to a directory.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::process::Command;

use chrono::{NaiveDateTime, TimeDelta, Utc};
use common::{CASES, Outcome, Scratch, example, outcome, root, run_in};
use serde_json::json;

const APPLY: &str = "\
Read out/README.md, then apply with: ansible-playbook -i HOST, out/install-backup.yml
HOST is the address of the host; the comma after it belongs to the command
";

fn succeeded(outcome: &Outcome, line: &str) {
    let expected = Outcome {
        status: 0,
        stdout: format!("{line}\n{APPLY}"),
        stderr: String::new(),
    };
    assert_eq!(*outcome, expected);
}

/// The run was refused for these files alone, and nothing has changed.
fn refused(scratch: &Scratch, options: &[&str], lost: &str) {
    let before = scratch.tree();
    let expected = format!(
        "error: out holds what would be lost:{lost}\n\
         hint: look with --check, move what you need, or overwrite with --force; \
         nothing was written\n"
    );
    let outcome = scratch.run(options);
    assert_eq!(
        (outcome.status, outcome.stdout.as_str(), outcome.stderr),
        (4, "", expected)
    );
    assert_eq!(scratch.tree(), before);
}

#[test]
fn the_help_and_the_docs_have_the_same_exit_codes() {
    let docs = fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    for arguments in [&["--help"][..], &["explain", "--help"]] {
        let help = run_in(root(), arguments);
        assert_eq!((help.status, help.stderr.as_str()), (0, ""));
        let rows = help.stdout.split_once("Exit status:\n").unwrap().1.lines();
        let rows: Vec<_> = rows
            .map(|row| row.trim().split_once("  ").unwrap())
            .collect();
        assert_eq!(rows.len(), 6);
        for (code, meaning) in rows {
            assert!(
                docs.contains(&format!("| {code} | {meaning} |")),
                "{code} {meaning}"
            );
        }
    }
}

#[test]
fn wrong_usage_is_2() {
    for arguments in [
        &[][..],
        &["env.json"],
        &["env.json", "out", "more"],
        &["--chek", "env.json", "out"],
        &["--check", "--force", "env.json", "out"],
        &["--host", "user@host", "env.json", "out"],
        &["--host", "-oProxyCommand=x", "env.json", "out"],
        &["--host", "host:22", "env.json", "out"],
        &["--host", "1.2.3.256", "env.json", "out"],
        &["--host", "", "env.json", "out"],
        &["explain"],
        &["explain", "env.json", "out"],
        &["explain", "--check", "env.json"],
        &["explain", "--format", "yaml", "env.json"],
    ] {
        let scratch = Scratch::of("sqlite-minimal");
        let outcome = run_in(&scratch.path(""), arguments);
        assert_eq!(
            (outcome.status, outcome.stdout.as_str()),
            (2, ""),
            "{arguments:?}"
        );
        assert!(outcome.stderr.starts_with("error: "), "{arguments:?}");
        assert!(!scratch.path("out").exists());
    }
}

#[test]
fn a_missing_environment_file_is_3() {
    let outcome = run_in(
        &Scratch::of("sqlite-minimal").path(""),
        &["nothing.json", "out"],
    );
    let stderr = "error: cannot read nothing.json\n  \
                  because: No such file or directory (os error 2)\n\
                  hint: give the path of the environment JSON file\n";
    assert_eq!(
        outcome,
        Outcome {
            status: 3,
            stdout: String::new(),
            stderr: stderr.to_owned()
        }
    );
}

#[test]
fn a_failing_write_is_5_and_names_the_path() {
    let scratch = Scratch::of("sqlite-minimal");
    let outcome = run_in(&scratch.path(""), &["env.json", "/proc/bundle"]);
    let stderr = "error: cannot create /proc/bundle\n  \
                  because: No such file or directory (os error 2)\n\
                  hint: fix the cause and run again: that completes the bundle\n";
    assert_eq!(
        outcome,
        Outcome {
            status: 5,
            stdout: String::new(),
            stderr: stderr.to_owned()
        }
    );
}

#[test]
fn a_reader_that_goes_away_changes_nothing_about_the_status() {
    let scratch = Scratch::of("sqlite-minimal");
    let program = env!("CARGO_BIN_EXE_gen-backup-bundle");
    let script = format!("'{program}' --check env.json out | true; exit ${{PIPESTATUS[0]}}");
    let outcome = outcome(
        Command::new("bash")
            .args(["-c", &script])
            .current_dir(scratch.path("")),
    );
    assert_eq!(outcome.status, 1);
}

#[test]
fn the_same_input_gives_the_same_bytes_and_a_second_run_touches_nothing() {
    for case in CASES {
        let scratch = Scratch::generated(case);
        let tree = scratch.tree();
        assert_eq!(tree, Scratch::generated(case).tree());
        let files = tree.keys().filter(|path| !path.ends_with('/'));
        let stamps = |scratch: &Scratch| -> Vec<_> {
            let metadata = files
                .clone()
                .map(|path| fs::metadata(scratch.path("out").join(path)).unwrap());
            metadata
                .map(|metadata| (metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
                .collect()
        };
        let before = stamps(&scratch);
        succeeded(
            &scratch.run(&[]),
            &format!("out: {} files, 0 written, 0 removed", scratch.count()),
        );
        assert_eq!(stamps(&scratch), before);
    }
}

#[test]
fn only_what_changed_is_written() {
    let scratch = Scratch::generated("mysql-full-stack");
    let mut environment = example("mysql-full-stack");
    environment["backup"]["schedule"] = json!("0 4 * * *");
    scratch.set(&environment);
    let files = scratch.count();
    // README.md, the configuration and the cron file of the host, and the manifest.
    succeeded(
        &scratch.run(&[]),
        &format!("out: {files} files, 4 written, 0 removed"),
    );

    environment["tracker"]["core"]["database"]["password"] = json!("changed");
    scratch.set(&environment);
    succeeded(
        &scratch.run(&[]),
        &format!(
            "out: {files} files, 1 written, 0 removed\n  \
             secrets/db_password: replaced by the environment file's value"
        ),
    );
    assert_eq!(scratch.read("out/secrets/db_password"), "changed");
}

#[test]
fn the_modes_do_not_depend_on_the_umask() {
    let modes = |umask: &str| {
        let scratch = Scratch::of("mysql-minimal");
        let program = env!("CARGO_BIN_EXE_gen-backup-bundle");
        let script = format!("umask {umask}; exec '{program}' env.json out");
        let outcome = outcome(
            Command::new("bash")
                .args(["-c", &script])
                .current_dir(scratch.path("")),
        );
        assert_eq!(outcome.status, 0);
        scratch.tree()
    };
    let usual = modes("022");
    for (path, (mode, content)) in &usual {
        let expected = match path.as_str() {
            "secrets/" => 0o700,
            path if path.starts_with("secrets/") => 0o600,
            path if path.ends_with('/') => 0o755,
            _ if content.starts_with(b"#!") => 0o755,
            _ => 0o644,
        };
        assert_eq!(*mode, expected, "{path}");
    }
    assert_eq!(modes("077"), usual);
    assert_eq!(modes("000"), usual);
}

#[test]
fn a_secret_is_written_byte_for_byte_and_made_private_again() {
    let mut environment = example("mysql-minimal");
    environment["tracker"]["core"]["database"]["password"] = json!("  spaces and ' \" \\ $x ñ  ");
    let scratch = Scratch::new(&environment);
    scratch.generate();
    assert_eq!(
        scratch.read("out/secrets/db_password"),
        "  spaces and ' \" \\ $x ñ  "
    );
    let mode = |path: &str| fs::metadata(scratch.path(path)).unwrap().mode() & 0o7777;
    for (path, bad, good) in [
        ("out/secrets", 0o755, 0o700),
        ("out/secrets/db_password", 0o644, 0o600),
    ] {
        fs::set_permissions(scratch.path(path), fs::Permissions::from_mode(bad)).unwrap();
        scratch.generate();
        assert_eq!(mode(path), good);
    }
}

#[test]
fn check_prints_a_diff_and_writes_nothing() {
    let scratch = Scratch::generated("sqlite-minimal");
    let expected = Outcome {
        status: 0,
        stdout: "out is up to date\n".to_owned(),
        stderr: String::new(),
    };
    assert_eq!(scratch.run(&["--check"]), expected);

    let conf = scratch
        .read("out/backup/backup.conf")
        .replace("DAYS='7'", "DAYS='8'");
    fs::write(scratch.path("out/backup/backup.conf"), conf).unwrap();
    fs::set_permissions(
        scratch.path("out/backup/backup.sh"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    fs::remove_file(scratch.path("out/.gitignore")).unwrap();
    let before = scratch.tree();
    let outcome = scratch.run(&["--check"]);
    insta::assert_snapshot!("check", outcome.stdout);
    assert_eq!(outcome.status, 1);
    assert_eq!(
        outcome.stderr,
        "error: out differs in 3 files\n\
         hint: bring it up to date with: gen-backup-bundle env.json out\n"
    );
    assert_eq!(scratch.tree(), before);
}

#[test]
fn check_of_a_directory_that_is_not_there_is_a_difference() {
    let scratch = Scratch::of("sqlite-minimal");
    let outcome = scratch.run(&["--host", "tracker.example.org", "--check"]);
    assert_eq!(outcome.status, 1);
    assert!(
        outcome
            .stdout
            .contains("--- /dev/null\n+++ b/manifest.json\n")
    );
    assert!(outcome.stderr.ends_with(
        "hint: bring it up to date with: \
         gen-backup-bundle --host tracker.example.org env.json out\n"
    ));
    assert!(!scratch.path("out").exists());
}

#[test]
fn check_never_looks_at_secrets() {
    let scratch = Scratch::generated("mysql-full-stack");
    fs::remove_dir_all(scratch.path("out/secrets")).unwrap();
    assert_eq!(scratch.run(&["--check"]).status, 0);
    let mut environment = example("mysql-full-stack");
    environment["tracker"]["core"]["database"]["password"] = json!("another");
    scratch.set(&environment);
    assert_eq!(scratch.run(&["--check"]).status, 0);
}

#[test]
fn a_file_edited_by_hand_is_refused_unless_forced() {
    let scratch = Scratch::generated("sqlite-minimal");
    let readme = scratch.read("out/README.md");
    fs::write(scratch.path("out/README.md"), "mine\n").unwrap();
    refused(&scratch, &[], "\n  README.md: was edited by hand");
    let files = scratch.count();
    succeeded(
        &scratch.run(&["--force"]),
        &format!("out: {files} files, 1 written, 0 removed"),
    );
    assert_eq!(scratch.read("out/README.md"), readme);
}

#[test]
fn a_directory_that_is_no_bundle_is_refused_and_left_alone() {
    let scratch = Scratch::of("sqlite-minimal");
    fs::create_dir_all(scratch.path("out/.git")).unwrap();
    fs::write(scratch.path("out/.git/HEAD"), "ref\n").unwrap();
    fs::write(scratch.path("out/notes.txt"), "mine\n").unwrap();
    fs::write(scratch.path("out/README.md"), "mine\n").unwrap();
    refused(
        &scratch,
        &[],
        "\n  README.md: is not part of this bundle\n  \
         notes.txt: is not part of this bundle",
    );
    assert_eq!(scratch.run(&["--force"]).status, 0);
    assert_eq!(scratch.read("out/.git/HEAD"), "ref\n");
    assert_eq!(scratch.read("out/notes.txt"), "mine\n");
    assert_ne!(scratch.read("out/README.md"), "mine\n");
    // From now on it is a bundle, with files of others beside it.
    assert_eq!(scratch.run(&[]).status, 0);
    assert_eq!(scratch.run(&["--check"]).status, 0);
}

#[test]
fn a_manifest_of_another_format_or_with_paths_elsewhere_is_not_trusted() {
    for (old, new) in [
        ("\"format\": 1", "\"format\": 2"),
        ("\"README.md\"", "\"../env.json\""),
        ("{", "<<<<"),
    ] {
        let scratch = Scratch::generated("sqlite-minimal");
        let manifest = scratch.read("out/manifest.json").replacen(old, new, 1);
        fs::write(scratch.path("out/manifest.json"), manifest).unwrap();
        refused(
            &scratch,
            &[],
            "\n  manifest.json: is not part of this bundle",
        );
        assert_eq!(scratch.run(&["--check"]).status, 1);
        assert_eq!(scratch.run(&["--force"]).status, 0);
        assert!(scratch.path("env.json").exists());
        assert_eq!(scratch.run(&["--check"]).status, 0);
    }
}

#[test]
fn a_writing_cut_short_is_seen_by_check_and_mended_by_running_again() {
    for case in ["sqlite-monitoring", "mysql-full-stack"] {
        let whole = Scratch::generated(case);
        let files: Vec<_> = whole
            .tree()
            .into_keys()
            .filter(|path| !path.ends_with('/'))
            .collect();
        for first in ["", "sqlite-minimal", "mysql-minimal"] {
            if case == "sqlite-monitoring" && first == "mysql-minimal" {
                continue; // it would remove a secret
            }
            for cut in (0..files.len()).step_by(4) {
                let scratch = if first.is_empty() {
                    Scratch::of(case)
                } else {
                    Scratch::generated(first)
                };
                // The manifest and the final record of the secrets come last, so they are never
                // among the first files.
                let last = ["manifest.json", "secrets/.written"];
                for path in files
                    .iter()
                    .filter(|path| !last.contains(&path.as_str()))
                    .take(cut)
                {
                    let target = scratch.path("out").join(path);
                    fs::create_dir_all(target.parent().unwrap()).unwrap();
                    fs::copy(whole.path("out").join(path), &target).unwrap();
                }
                fs::create_dir_all(scratch.path("out/backup")).unwrap();
                fs::write(
                    scratch.path("out/backup/.gen-backup-bundle-x.partial"),
                    "hal",
                )
                .unwrap();
                // A power cut leaves an empty file.
                fs::write(scratch.path("out/variables.yml"), "").unwrap();
                scratch.set(&example(case));
                assert_eq!(
                    scratch.run(&["--check"]).status,
                    1,
                    "{case} over {first:?}, {cut} files"
                );
                scratch.generate();
                assert_eq!(scratch.tree(), whole.tree());
            }
        }
    }
}

#[test]
fn files_of_an_older_bundle_go_and_edited_ones_are_refused() {
    let scratch = Scratch::generated("sqlite-minimal");
    let mut manifest: serde_json::Value =
        serde_json::from_str(&scratch.read("out/manifest.json")).unwrap();
    let entry = manifest["files"][".gitignore"].clone();
    fs::create_dir_all(scratch.path("out/old/deep")).unwrap();
    for path in ["old/deep/a", "old/b"] {
        manifest["files"][path] = entry.clone();
        fs::write(scratch.path("out").join(path), "secrets/\n").unwrap();
    }
    fs::write(scratch.path("out/manifest.json"), manifest.to_string()).unwrap();
    let check = scratch.run(&["--check"]);
    assert!(
        check
            .stdout
            .contains("--- a/old/b\n+++ /dev/null\n@@ -1 +0,0 @@\n-secrets/\n"),
        "{}",
        check.stdout
    );

    fs::write(scratch.path("out/old/b"), "mine\n").unwrap();
    refused(&scratch, &[], "\n  old/b: was edited by hand");
    fs::write(scratch.path("out/old/b"), "secrets/\n").unwrap();
    let files = scratch.count();
    succeeded(
        &scratch.run(&[]),
        &format!("out: {} files, 1 written, 2 removed", files - 2),
    );
    assert!(!scratch.path("out/old").exists());
}

#[test]
fn links_are_neither_followed_nor_replaced_without_force() {
    let scratch = Scratch::generated("mysql-minimal");
    let whole = scratch.tree();
    fs::create_dir(scratch.path("elsewhere")).unwrap();
    fs::write(scratch.path("elsewhere/README.md"), "mine\n").unwrap();
    fs::remove_file(scratch.path("out/README.md")).unwrap();
    symlink("../elsewhere/README.md", scratch.path("out/README.md")).unwrap();
    refused(&scratch, &[], "\n  README.md: is not a regular file");
    assert_eq!(scratch.run(&["--check"]).status, 1);
    assert_eq!(scratch.run(&["--force"]).status, 0);
    assert_eq!(scratch.read("elsewhere/README.md"), "mine\n");
    assert_eq!(scratch.tree(), whole);

    for directory in ["secrets", "host"] {
        fs::remove_dir_all(scratch.path("out").join(directory)).unwrap();
        symlink("../elsewhere", scratch.path("out").join(directory)).unwrap();
        assert_eq!(scratch.run(&[]).status, 4);
        let forced = scratch.run(&["--force"]);
        assert_eq!(forced.status, 4, "{}", forced.stderr);
        let why = "lies below what is not a directory; --force does not replace it";
        assert!(forced.stderr.contains(why), "{}", forced.stderr);
        fs::remove_file(scratch.path("out").join(directory)).unwrap();
        scratch.generate();
    }
    assert_eq!(fs::read_dir(scratch.path("elsewhere")).unwrap().count(), 1);
}

#[test]
fn what_is_not_a_directory_is_never_replaced() {
    let scratch = Scratch::of("sqlite-minimal");
    fs::write(scratch.path("out"), "mine\n").unwrap();
    for options in [&[][..], &["--force"], &["--check"]] {
        assert_eq!(scratch.run(options).status, 4);
    }
    assert_eq!(scratch.read("out"), "mine\n");
    fs::remove_file(scratch.path("out")).unwrap();
    fs::create_dir_all(scratch.path("out/README.md/mine")).unwrap();
    for options in [&[][..], &["--force"]] {
        assert_eq!(scratch.run(options).status, 4);
    }
}

#[test]
fn an_explanation_is_the_same_facts_in_words_and_as_json_and_writes_nothing() {
    let scratch = Scratch::of("sqlite-minimal");
    let before = fs::metadata(scratch.path("env.json")).unwrap().ctime_nsec();
    let explain = |options: &[&str]| {
        let outcome = run_in(
            &scratch.path(""),
            &[&["explain"], options, &["env.json"]].concat(),
        );
        assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
        outcome.stdout
    };
    let text = explain(&[]);
    assert!(text.starts_with("Backups of sqlite-minimal\n\nWhat is backed up\n"));
    let object: serde_json::Value = serde_json::from_str(&explain(&["--format", "json"])).unwrap();
    for advice in object["advice"].as_array().unwrap() {
        assert!(text.contains(&format!("  - {}: ", advice["key"].as_str().unwrap())));
    }
    assert_eq!(object["runs"]["next_runs"].as_array().unwrap().len(), 5);
    assert_eq!(
        explain(&["--format", "text"]).lines().count(),
        text.lines().count()
    );
    assert_eq!(fs::read_dir(scratch.path("")).unwrap().count(), 1);
    assert_eq!(
        fs::metadata(scratch.path("env.json")).unwrap().ctime_nsec(),
        before
    );
}

#[test]
fn an_explanation_refuses_what_generating_refuses_in_the_same_words() {
    let invalid = fs::read_dir(root().join("tests/invalid")).unwrap();
    let files = invalid.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut seen = 0;
    for file in files.filter(|file| file.strip_suffix(".json").is_some()) {
        let directory = root().join("tests/invalid");
        let generating = run_in(&directory, &[&file, "/nonexistent/out"]);
        assert_eq!(generating.status, 3, "{file}");
        assert_eq!(run_in(&directory, &["explain", &file]), generating);
        seen += 1;
    }
    assert!(seen > 20);
    let explain = run_in(root(), &["explain", "nothing.json"]);
    assert_eq!(explain, run_in(root(), &["nothing.json", "out"]));
}

#[test]
fn a_file_called_as_the_subcommand_is_named_with_its_directory() {
    let scratch = Scratch::of("sqlite-minimal");
    fs::copy(scratch.path("env.json"), scratch.path("explain")).unwrap();
    fs::copy(scratch.path("env.json"), scratch.path("help")).unwrap();
    for arguments in [
        &["./explain", "out"][..],
        &["help", "out"],
        &["--", "explain", "out"],
    ] {
        let outcome = run_in(&scratch.path(""), arguments);
        assert_eq!(outcome.status, 0, "{arguments:?}: {}", outcome.stderr);
    }
    let both = run_in(&scratch.path(""), &["explain", "explain"]);
    assert!(both.stdout.starts_with("Backups of sqlite-minimal\n"));
    // As OUT it is a word like any other.
    fs::remove_file(scratch.path("explain")).unwrap();
    let outcome = run_in(&scratch.path(""), &["env.json", "explain"]);
    assert_eq!(outcome.status, 0, "{}", outcome.stderr);
    assert!(scratch.path("explain/manifest.json").exists());
}

#[test]
fn runs_are_counted_from_the_clock_of_this_machine() {
    let scratch = Scratch::of("sqlite-minimal");
    let counted_from = |zone: &str| {
        let program = env!("CARGO_BIN_EXE_gen-backup-bundle");
        let mut command = Command::new(program);
        command.args(["explain", "--format", "json", "env.json"]);
        let outcome = outcome(command.env("TZ", zone).current_dir(scratch.path("")));
        let object: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        let text = object["runs"]["counted_from"].as_str().unwrap();
        NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M").unwrap()
    };
    let before = Utc::now().naive_utc() - TimeDelta::minutes(1);
    let (utc, east) = (counted_from("UTC0"), counted_from("EAST-9"));
    let after = Utc::now().naive_utc();
    assert!(before < utc && utc <= after);
    let nine = TimeDelta::hours(9);
    assert!(before < east - nine && east - nine <= after);
}
