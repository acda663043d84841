//! The words after the program's name, and how their results are printed.

mod common;

use std::fs::{self, File};
use std::process::{Command, Stdio};

use common::{Outcome, Scratch, example, outcome, root, run_in};
use gen_backup_bundle::backup::BackupConfig;
use serde_json::{Value, json};

fn parsed(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", outcome.stdout))
}

#[test]
fn generate_and_check_are_the_bare_form_and_its_option() {
    let scratch = Scratch::of("sqlite-minimal");
    let run = |arguments: &[&str]| run_in(&scratch.path(""), arguments);
    let written = run(&["generate", "--host", "10.0.0.1", "env.json", "out"]);
    let bare = run(&["--host", "10.0.0.1", "env.json", "other"]);
    assert_eq!((written.status, bare.status), (0, 0));
    assert_eq!(written.stdout.replace("out", "other"), bare.stdout);
    let same = run(&["check", "--host", "10.0.0.1", "env.json", "out"]);
    assert_eq!(same.status, 0);
    let arguments = ["--check", "--host", "10.0.0.1", "env.json", "out"];
    assert_eq!(same, run(&arguments));
    let differs = run(&["check", "env.json", "out"]);
    assert_eq!(differs, run(&["--check", "env.json", "out"]));
    assert_eq!(differs.status, 1);
    // A file with the name of a verb is given with its directory.
    fs::copy(scratch.path("env.json"), scratch.path("check")).unwrap();
    assert_eq!(run(&["./check", "third"]).status, 0);
    assert_eq!(run(&["check", "third"]).status, 2);
}

#[test]
fn results_and_problems_as_json() {
    let scratch = Scratch::of("sqlite-minimal");
    let run = |verb: &str| {
        let arguments = [verb, "--format", "json", "env.json", "out"];
        let outcome = run_in(&scratch.path(""), &arguments);
        assert_eq!(outcome.stderr, "", "{verb}");
        (outcome.status, parsed(&outcome))
    };
    let (status, absent) = run("check");
    assert_eq!((status, &absent["up_to_date"]), (1, &json!(false)));
    assert!(absent["diff"].as_str().unwrap().contains("+++ b/README.md"));
    let (status, written) = run("generate");
    assert_eq!((status, &written["removed"]), (0, &json!(0)));
    assert_eq!(written["files"], written["written"]);
    assert_eq!(run("check"), (0, json!({"out": "out", "up_to_date": true})));

    let mut environment = example("sqlite-minimal");
    environment["backup"]["retention_days"] = json!(0);
    scratch.set(&environment);
    let (status, refused) = run("check");
    assert_eq!((status, &refused["exit_status"]), (3, &json!(3)));
    assert_eq!(refused["error"], "env.json has 1 problem");
    let path = &refused["problems"][0]["path"];
    assert_eq!(path, "backup.retention_days");
}

#[test]
fn a_check_can_annotate_a_pull_request() {
    let scratch = Scratch::of("sqlite-minimal");
    let run = || {
        let arguments = ["check", "--format", "github", "env.json", "out"];
        let outcome = run_in(&scratch.path(""), &arguments);
        assert_eq!(outcome.stderr, "");
        let last = outcome.stdout.lines().last().unwrap().to_owned();
        (outcome.status, last)
    };
    let (status, annotation) = run();
    assert_eq!(status, 1);
    let start = "::error file=env.json::out differs in ";
    assert!(annotation.starts_with(start), "{annotation}");
    scratch.generate();
    assert_eq!(run(), (0, "out is up to date".to_owned()));
    let mut environment = example("sqlite-minimal");
    environment["backup"]["retention_days"] = json!(0);
    scratch.set(&environment);
    let (status, annotation) = run();
    assert_eq!(status, 3);
    let start = "::error file=env.json,title=backup.retention_days::found: 0";
    assert!(annotation.starts_with(start), "{annotation}");
}

#[test]
fn quiet_prints_problems_only() {
    let scratch = Scratch::of("sqlite-minimal");
    let run = |arguments: &[&str]| {
        let outcome = run_in(&scratch.path(""), arguments);
        (outcome.status, outcome.stdout, outcome.stderr)
    };
    let nothing = (0, String::new(), String::new());
    assert_eq!(run(&["-q", "env.json", "out"]), nothing);
    assert_eq!(run(&["check", "-q", "env.json", "out"]), nothing);
    assert_eq!(run(&["validate", "-q", "env.json"]), nothing);
    let (status, stdout, stderr) = run(&["check", "-q", "env.json", "other"]);
    assert_eq!((status, stdout.as_str()), (1, ""));
    assert!(stderr.starts_with("error: other differs in "));
}

#[test]
fn a_result_as_json_has_its_notes_and_how_to_apply_it() {
    let scratch = Scratch::generated("mysql-minimal");
    let run = || {
        let arguments = ["generate", "--format", "json", "env.json", "out"];
        let outcome = run_in(&scratch.path(""), &arguments);
        assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
        parsed(&outcome)
    };
    let applied = "Read out/README.md, then apply with: ansible-playbook ";
    let unchanged = run();
    assert_eq!(unchanged["notes"], json!([]));
    let how = unchanged["how_to_apply"].as_str().unwrap();
    assert!(how.starts_with(&format!("{applied}-i HOST, out/install-backup.yml\n")));

    let mut environment = example("mysql-minimal");
    environment["tracker"]["core"]["database"]["password"] = json!("rotated");
    environment["backup"]["host"] = json!("192.0.2.1");
    scratch.set(&environment);
    let rotated = run();
    let note = "secrets/db_password: replaced by the environment file's value";
    assert_eq!(rotated["notes"], json!([note]));
    assert_eq!(
        rotated["how_to_apply"],
        format!("{applied}out/install-backup.yml\n")
    );
}

#[test]
fn an_explanation_can_be_silent_and_in_colours() {
    let scratch = Scratch::of("sqlite-minimal");
    let run = |options: &[&str]| {
        let arguments = [&["explain", "env.json"], options].concat();
        run_in(&scratch.path(""), &arguments)
    };
    let plain = run(&[]);
    assert!(!plain.stdout.contains('\u{1b}'));
    assert_eq!(run(&["--color", "never"]), plain);
    let coloured = run(&["--color", "always"]).stdout;
    assert!(
        coloured.contains("\n\u{1b}[1mWhere to\u{1b}[0m\n"),
        "{coloured}"
    );
    let bare = coloured.replace("\u{1b}[1m", "").replace("\u{1b}[0m", "");
    assert_eq!(bare, plain.stdout);
    assert_eq!(run(&["-q"]).stdout, "");
    scratch.set(&json!({}));
    let problem = run(&["-q", "--color", "always"]);
    assert_eq!(problem.status, 3);
    assert!(problem.stderr.starts_with("\u{1b}[1;31merror:"));
}

#[test]
fn colours_are_for_terminals_and_for_who_asks() {
    let scratch = Scratch::of("sqlite-minimal");
    let run = |when: &[&str]| {
        run_in(
            &scratch.path(""),
            &[&["check", "env.json", "out"], when].concat(),
        )
    };
    let plain = run(&[]);
    assert!(!plain.stdout.contains('\u{1b}') && !plain.stderr.contains('\u{1b}'));
    assert_eq!(run(&["--color", "never"]), plain);
    let coloured = run(&["--color", "always"]);
    assert!(coloured.stdout.contains("\u{1b}[32m+"));
    assert!(
        coloured
            .stderr
            .starts_with("\u{1b}[1;31merror:\u{1b}[0m out differs")
    );
}

#[test]
fn a_new_environment_file_is_valid_and_states_every_default() {
    for (driver, arguments) in [
        ("sqlite3", &["init"][..]),
        ("mysql", &["init", "--driver", "mysql"]),
    ] {
        let scratch = Scratch::of("sqlite-minimal");
        let made = run_in(&scratch.path(""), arguments);
        assert_eq!(made.status, 0);
        let object = parsed(&made);
        assert_eq!(object["tracker"]["core"]["database"]["driver"], driver);
        assert!(object["$schema"].is_string());
        let defaults = serde_json::to_value(BackupConfig::default()).unwrap();
        let backup = object["backup"].as_object().unwrap();
        for (key, default) in defaults.as_object().unwrap() {
            assert!(default.is_null() || backup[key] == *default, "{key}");
            assert!(made.stderr.contains(&format!("\n  {key}\n")), "{key}");
        }
        fs::write(scratch.path("env.json"), &made.stdout).unwrap();
        let validated = run_in(&scratch.path(""), &["validate", "env.json"]);
        assert_eq!(
            (validated.status, validated.stdout.as_str()),
            (0, "env.json: no problem\n")
        );
        scratch.generate();
        // What it states are the defaults: without them the bundle is the same.
        let with_all = scratch.tree();
        let mut object = object;
        object["backup"] = json!({});
        let bare = Scratch::new(&object);
        bare.generate();
        let differing: Vec<_> = with_all
            .iter()
            .filter(|(path, file)| bare.tree().get(*path) != Some(*file))
            .map(|(path, _)| path.clone())
            .collect();
        assert_eq!(
            differing,
            ["manifest.json"],
            "{driver}: the digest of the input"
        );
        let quiet = run_in(&scratch.path(""), &[arguments, &["-q"]].concat());
        assert_eq!((quiet.stdout, quiet.stderr), (made.stdout, String::new()));
    }
}

#[test]
fn validate_reports_every_file() {
    let scratch = Scratch::of("sqlite-minimal");
    let mut environment = example("sqlite-minimal");
    environment["backup"]["retention_days"] = json!(0);
    fs::write(scratch.path("bad.json"), environment.to_string()).unwrap();
    environment.as_object_mut().unwrap().remove("backup");
    fs::write(scratch.path("off.json"), environment.to_string()).unwrap();
    fs::write(scratch.path("broken.json"), "{\n  \"a\": }").unwrap();
    let run = |arguments: &[&str]| run_in(&scratch.path(""), &[&["validate"], arguments].concat());

    let all = run(&["bad.json", "env.json", "broken.json", "nothing.json"]);
    assert_eq!(
        (all.status, all.stdout.as_str()),
        (3, "env.json: no problem\n")
    );
    for file in [
        "bad.json has 1 problem",
        "broken.json is not",
        "cannot read nothing.json",
    ] {
        assert!(
            all.stderr.contains(&format!("error: {file}")),
            "{file}: {}",
            all.stderr
        );
    }
    assert_eq!(run(&["off.json"]).status, 3);
    assert_eq!(run(&["--allow-disabled", "off.json"]).status, 0);
    assert_eq!(run(&["--allow-disabled", "bad.json"]).status, 3);

    let github = run(&["--format", "github", "bad.json", "broken.json", "env.json"]);
    assert_eq!((github.status, github.stderr.as_str()), (3, ""));
    let lines: Vec<_> = github.stdout.lines().collect();
    assert_eq!(lines.len(), 2);
    let start = "::error file=bad.json,title=backup.retention_days::found: 0%0Aallowed: ";
    assert!(lines[0].starts_with(start), "{}", lines[0]);
    let start = "::error file=broken.json,line=2,col=8::broken.json is not valid JSON";
    assert!(lines[1].starts_with(start), "{}", lines[1]);

    let json = parsed(&run(&["--format", "json", "bad.json", "env.json"]));
    assert_eq!(json[0]["problems"][0]["path"], "backup.retention_days");
    assert_eq!(json[1], json!({"file": "env.json", "valid": true}));
    for case in common::CASES {
        let path = format!("examples/{case}/environment.json");
        assert_eq!(run_in(root(), &["validate", &path]).status, 0);
    }
}

#[test]
fn the_schema_the_completions_and_the_manual_are_printed() {
    let schema = run_in(root(), &["schema"]);
    let published = fs::read_to_string(root().join("schemas/environment.schema.json")).unwrap();
    assert_eq!((schema.status, schema.stdout), (0, published));
    for shell in ["bash", "zsh", "fish"] {
        let script = run_in(root(), &["completions", shell]);
        assert_eq!(script.status, 0);
        assert!(script.stdout.contains("validate"), "{shell}");
    }
    let page = run_in(root(), &["man"]);
    assert_eq!(page.status, 0);
    assert!(page.stdout.contains(".TH gen-backup-bundle 1"));
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure() {
    let scratch = Scratch::of("sqlite-minimal");
    let mut command = Command::new(env!("CARGO_BIN_EXE_gen-backup-bundle"));
    command
        .current_dir(scratch.path(""))
        .args(["explain", "env.json"]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let outcome = outcome(command.stdout(Stdio::from(full)));
    assert_eq!(outcome.status, 5);
    assert!(
        outcome
            .stderr
            .starts_with("error: cannot write to standard output\n")
    );
}
