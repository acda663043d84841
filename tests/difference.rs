//! What `check` says first: what the difference of two bundles means for the host.

mod common;

use std::fs;
use std::path::Path;

use common::{Scratch, root, run_in};
use serde_json::{Value, json};

/// The bundle of an older version, and a changed environment file beside it.
fn old(driver: &str, change: impl Fn(&mut Value)) -> Scratch {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir(to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &to);
            } else {
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    let old = root().join(format!("tests/fixtures/21bbb31/bundles/{driver}-minimal"));
    let text = fs::read_to_string(old.join("environment.json")).unwrap();
    let mut environment = serde_json::from_str(&text).unwrap();
    change(&mut environment);
    let scratch = Scratch::new(&environment);
    copy(&old.join("bundle"), &scratch.path("out"));
    scratch
}

/// What stands before the diff, in lines.
fn summary(scratch: &Scratch) -> Vec<String> {
    let outcome = scratch.run(&["--check"]);
    assert_eq!(outcome.status, 1, "{}", outcome.stderr);
    let (summary, diff) = outcome.stdout.split_once("\n\n").unwrap();
    assert!(diff.starts_with("--- "), "{diff}");
    let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    summary.lines().map(squeezed).collect()
}

fn says(lines: &[String], line: &str) {
    assert!(
        lines.iter().any(|found| found == line),
        "{line}: {lines:#?}"
    );
}

#[test]
fn a_bundle_of_an_older_version_says_what_changes() {
    let scratch = old("mysql", |environment| {
        environment["backup"] = json!({
            "schedule": "0 4 * * *", "strategy": "sidecar", "retention_days": 30,
            "verify_schedule": null, "database_scope": "exclude-statistics",
            "host": "192.0.2.1", "destination": "/mnt/backup",
        });
        environment["prometheus"] = json!({});
    });
    let lines = summary(&scratch);
    assert_eq!(lines[0], "What changes on the host:");
    for line in [
        "schedule 0 */6 * * * -> 0 4 * * *",
        "strategy maintenance-window -> sidecar",
        "retention 7 days -> 30 days",
        "verification no longer 30 5 * * 0",
        "database scope full -> exclude-statistics",
        "destination /opt/torrust/storage/backup -> /mnt/backup",
        "host 192.0.2.1",
        "archived paths /data/storage/prometheus/etc",
        "services restarted backup (ours) is started; no other",
    ] {
        says(&lines, line);
    }
    let is_about = |what: &str| lines.iter().any(|line| line.starts_with(what));
    assert!(is_about(
        "image gen-backup-bundle/backup:8ddce1891f94, built on the host -> "
    ));
    assert!(is_about("programs "));
    assert!(!is_about("environment") && !is_about("CALENDAR") && !is_about("deploy directory"));
}

#[test]
fn what_happens_to_the_tracker_is_said() {
    let scratch = old("sqlite", |environment| {
        environment["backup"] = json!({"quiesce": "pause", "window_timeout_seconds": 120});
    });
    let lines = summary(&scratch);
    let line = "the tracker during a run stopped, at most 300 s -> frozen, at most 120 s";
    says(&lines, line);
    says(&lines, "services restarted none");
}

#[test]
fn the_first_bundle_says_what_the_host_will_do() {
    let lines = summary(&Scratch::of("sqlite-minimal"));
    says(&lines, "schedule 0 3 * * *");
    says(&lines, "the tracker during a run frozen, at most 300 s");
    says(
        &lines,
        "database sqlite, /data/storage/tracker/lib/database/tracker.db",
    );
}

#[test]
fn a_file_of_the_bundle_alone_changes_nothing_on_the_host() {
    let scratch = Scratch::generated("sqlite-minimal");
    let readme = scratch.read("out/README.md") + "edited\n";
    fs::write(scratch.path("out/README.md"), readme).unwrap();
    let nothing = "Nothing changes on the host: only files of the bundle itself differ";
    assert_eq!(summary(&scratch), [nothing]);
    let json = run_in(
        &scratch.path(""),
        &["check", "--format", "json", "env.json", "out"],
    );
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["changes"], json!([]));
}

#[test]
fn the_summary_is_an_object_for_scripts_and_part_of_an_annotation() {
    let scratch = Scratch::generated("sqlite-minimal");
    let mut environment = common::example("sqlite-minimal");
    environment["backup"]["retention_days"] = json!(8);
    scratch.set(&environment);
    let run = |format: &str| {
        run_in(
            &scratch.path(""),
            &["check", "--format", format, "env.json", "out"],
        )
        .stdout
    };
    let object: Value = serde_json::from_str(&run("json")).unwrap();
    let change = json!({"what": "retention", "before": "7 days", "after": "8 days"});
    assert_eq!(object["changes"][0], change);
    let annotation = run("github");
    let annotation = annotation.lines().last().unwrap();
    assert!(annotation.starts_with("::error ") && annotation.contains("7 days -> 8 days%0A"));
}
