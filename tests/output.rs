//! What a run does to OUT when something is in the way: an edit, a kill, another run, a umask.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Outcome, Scratch, example, outcome, run_in};
use gen_backup_bundle::bundle::sha256;
use serde_json::{Value, json};

const PASSWORD: &str = "out/secrets/db_password";

/// An example with a database password.
fn with_password(case: &str, password: &str) -> Value {
    let mut environment = example(case);
    environment["tracker"]["core"]["database"]["password"] = json!(password);
    environment
}

/// An example with one key of the section `backup` set.
fn with(case: &str, key: &str, value: Value) -> Value {
    let mut environment = example(case);
    environment["backup"][key] = value;
    environment
}

/// The run is refused with exactly these lines, and nothing has changed.
fn refused(scratch: &Scratch, options: &[&str], lines: &str) {
    let before = scratch.tree();
    let run = scratch.run(options);
    let expected = format!("error: out holds what would be lost:\n{lines}");
    assert_eq!((run.status, run.stdout.as_str()), (4, ""));
    assert_eq!(run.stderr, expected);
    assert_eq!(scratch.tree(), before);
}

fn is_right(run: &Outcome) {
    assert_eq!((run.status, run.stderr.as_str()), (0, ""));
}

#[test]
fn a_secret_that_somebody_edited_is_replaced_only_on_request_and_kept() {
    let scratch = Scratch::generated("mysql-minimal");
    fs::write(scratch.path(PASSWORD), "by hand").unwrap();
    let lines = "  secrets/db_password: is neither the value of the environment file nor one that \
                 this program wrote\nhint: --replace-secrets goes on, and keeps each old secret as \
                 NAME.old; nothing was written\n";
    refused(&scratch, &[], lines);
    refused(&scratch, &["--force"], lines);
    let run = scratch.run(&["--replace-secrets"]);
    is_right(&run);
    let note = "secrets/db_password: the old content is kept as secrets/db_password.old\n";
    assert!(run.stdout.contains(note), "{}", run.stdout);
    let old = scratch.path("out/secrets/db_password.old");
    assert_eq!(fs::read_to_string(&old).unwrap(), "by hand");
    assert_eq!(
        fs::metadata(&old).unwrap().permissions().mode() & 0o7777,
        0o600
    );

    // A second old secret does not replace the first one.
    fs::write(scratch.path(PASSWORD), "by hand again").unwrap();
    is_right(&scratch.run(&["--replace-secrets"]));
    assert_eq!(fs::read_to_string(&old).unwrap(), "by hand");
    assert_eq!(
        scratch.read("out/secrets/db_password.old.2"),
        "by hand again"
    );
    is_right(&scratch.run(&[]));
}

#[test]
fn a_rotated_password_needs_no_option_and_the_result_names_it() {
    let scratch = Scratch::new(&with_password("mysql-minimal", "first"));
    scratch.generate();
    for password in ["second", "third"] {
        scratch.set(&with_password("mysql-minimal", password));
        let run = scratch.run(&[]);
        is_right(&run);
        let note = "secrets/db_password: replaced by the environment file's value\n";
        assert!(run.stdout.contains(note), "{}", run.stdout);
        assert!(!run.stdout.contains(password));
        assert_eq!(scratch.read(PASSWORD), password);
    }
    let written = scratch.path("out/secrets/.written");
    let mode = fs::metadata(&written).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let record = scratch.read("out/secrets/.written");
    for password in ["first", "second", "third"] {
        assert!(!record.contains(password));
    }
    // An older generator wrote no record. A secret that differs may then be an edited one.
    fs::remove_file(written).unwrap();
    scratch.set(&with_password("mysql-minimal", "fourth"));
    assert_eq!(scratch.run(&[]).status, 4);
    scratch.set(&with_password("mysql-minimal", "third"));
    scratch.generate();
    assert_eq!(scratch.read("out/secrets/.written"), record);
}

#[test]
fn a_secret_that_the_file_no_longer_has_is_kept() {
    let scratch = Scratch::generated("mysql-full-stack");
    let mut environment = example("mysql-full-stack");
    let restic = environment["backup"].as_object_mut().unwrap();
    let has_restic = restic.remove("restic").is_some();
    let database = &mut environment["tracker"]["core"]["database"];
    let has_root = database
        .as_object_mut()
        .unwrap()
        .remove("root_password")
        .is_some();
    assert!(has_restic || has_root);
    scratch.set(&environment);
    let before = scratch.tree();
    let run = scratch.run(&["--force"]);
    assert_eq!(run.status, 4);
    assert!(
        run.stderr
            .contains("would be removed, because the environment file has no such")
    );
    assert_eq!(scratch.tree(), before);
    let run = scratch.run(&["--replace-secrets"]);
    is_right(&run);
    let removed = run.stdout.matches("the old content is kept as").count();
    assert!(removed > 0);
    assert!(
        run.stdout.contains(&format!(", {removed} removed\n")),
        "{}",
        run.stdout
    );
    is_right(&scratch.run(&["--check"]));
    is_right(&scratch.run(&[]));
}

#[test]
fn the_host_of_the_file_is_used_and_another_one_is_wrong_usage() {
    let scratch = Scratch::new(&with(
        "sqlite-minimal",
        "host",
        json!("tracker.example.org"),
    ));
    let run = scratch.run(&[]);
    is_right(&run);
    let apply = "then apply with: ansible-playbook out/install-backup.yml\n";
    assert!(run.stdout.ends_with(apply), "{}", run.stdout);
    let variables = scratch.read("out/variables.yml");
    assert!(variables.contains("backup_host: !unsafe 'tracker.example.org'\n"));
    let by_option = Scratch::of("sqlite-minimal");
    by_option.run(&["--host", "tracker.example.org"]);
    assert_eq!(by_option.read("out/variables.yml"), variables);

    is_right(&scratch.run(&["--host", "tracker.example.org"]));
    let before = scratch.tree();
    for options in [
        &["--host", "10.0.0.1"][..],
        &["--check", "--host", "10.0.0.1"],
    ] {
        let run = scratch.run(options);
        assert_eq!((run.status, run.stdout.as_str()), (2, ""));
        assert_eq!(
            run.stderr,
            "error: --host and backup.host in env.json name different hosts\n\
             hint: leave one of the two out, or write the same host in both\n"
        );
    }
    assert_eq!(scratch.tree(), before);
    scratch.set(&with("sqlite-minimal", "host", json!("user@host")));
    assert_eq!(scratch.run(&[]).status, 3);
}

#[test]
fn a_host_is_dropped_only_by_force() {
    let scratch = Scratch::of("sqlite-minimal");
    is_right(&scratch.run(&["--host", "10.0.0.1"]));
    refused(
        &scratch,
        &[],
        "  variables.yml: names the host 10.0.0.1, which would be dropped\n\
         hint: keep the host with --host or backup.host, or drop it with --force; \
         nothing was written\n",
    );
    let check = scratch.run(&["--check"]);
    assert_eq!(check.status, 1);
    let note = "hint: variables.yml names the host 10.0.0.1, which would be dropped\n";
    assert!(check.stderr.contains(note), "{}", check.stderr);
    is_right(&scratch.run(&["--host", "10.0.0.2"]));
    is_right(&scratch.run(&["--force"]));
    is_right(&scratch.run(&[]));
}

#[test]
fn a_bundle_of_another_environment_is_refused() {
    let scratch = Scratch::generated("sqlite-minimal");
    scratch.set(&example("sqlite-monitoring"));
    refused(
        &scratch,
        &[],
        "  variables.yml: is of the environment \"sqlite-minimal\", not of \
         \"sqlite-monitoring\"\n\
         hint: look with --check, move what you need, or overwrite with --force; \
         nothing was written\n",
    );
    is_right(&scratch.run(&["--force"]));
    is_right(&scratch.run(&[]));
}

#[test]
fn a_new_repository_is_accepted() {
    let scratch = Scratch::of("mysql-minimal");
    fs::create_dir_all(scratch.path("out/.git")).unwrap();
    for file in [
        ".git/HEAD",
        ".gitattributes",
        "LICENSE",
        "LICENSE-MIT",
        ".gitignore",
    ] {
        fs::write(scratch.path("out").join(file), "mine\n").unwrap();
    }
    let run = scratch.run(&[]);
    is_right(&run);
    let note = ".gitignore: the old content is kept as .gitignore.old\n";
    assert!(run.stdout.contains(note), "{}", run.stdout);
    for file in [
        ".git/HEAD",
        ".gitattributes.old",
        "LICENSE",
        "LICENSE-MIT",
        ".gitignore.old",
    ] {
        assert_eq!(scratch.read(&format!("out/{file}")), "mine\n");
    }
    assert_eq!(scratch.read("out/.gitignore"), "secrets/\n");
    assert_eq!(scratch.read("out/.gitattributes"), "* -text\n");
    is_right(&scratch.run(&["--check"]));
}

#[test]
fn a_file_as_out_gets_a_hint_that_works() {
    let scratch = Scratch::of("sqlite-minimal");
    fs::write(scratch.path("out"), "mine\n").unwrap();
    for options in [&[][..], &["--force"], &["--check"]] {
        let run = scratch.run(options);
        assert_eq!(run.status, 4);
        assert_eq!(
            run.stderr,
            "error: out holds what would be lost:\n  \
             .: is not a directory; --force does not replace it\n\
             hint: name another directory as OUT, or move this file away; nothing was written\n"
        );
    }
}

#[test]
fn a_checkout_with_other_line_endings_is_explained_and_repaired() {
    let scratch = Scratch::generated("mysql-minimal");
    let whole = scratch.tree();
    for (path, (_, content)) in &whole {
        if !path.ends_with('/') && !path.starts_with("secrets/") {
            let text = String::from_utf8(content.clone())
                .unwrap()
                .replace('\n', "\r\n");
            fs::write(scratch.path("out").join(path), text).unwrap();
        }
    }
    let run = scratch.run(&["--check"]);
    assert_eq!(run.status, 1);
    assert!(
        run.stdout
            .contains("README.md differs only in its line endings (CRLF)\n")
    );
    assert!(!run.stdout.contains("@@"));
    assert!(
        run.stderr
            .contains("\nhint: Git has converted the line endings to CRLF.")
    );
    scratch.generate();
    assert_eq!(scratch.tree(), whole);
}

#[test]
fn nothing_is_writable_for_others_whatever_the_umask() {
    let scratch = Scratch::of("mysql-minimal");
    let program = env!("CARGO_BIN_EXE_gen-backup-bundle");
    let script = format!("umask 000; exec '{program}' env.json a/b/out");
    let run = || {
        let mut command = Command::new("bash");
        is_right(&outcome(
            command.args(["-c", &script]).current_dir(scratch.path("")),
        ));
    };
    let nothing_is_writable = || {
        for (path, (mode, _)) in common::files_below(&scratch.path("a")) {
            assert_eq!(mode & 0o022, 0, "{path}");
        }
        assert_eq!(
            fs::metadata(scratch.path("a"))
                .unwrap()
                .permissions()
                .mode()
                & 0o022,
            0
        );
    };
    run();
    nothing_is_writable();
    for path in ["README.md", "host", "manifest.json"] {
        let path = scratch.path("a/b/out").join(path);
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    run();
    nothing_is_writable();
}

#[test]
fn a_standard_output_that_cannot_be_written_is_a_failure() {
    let scratch = Scratch::generated("sqlite-minimal");
    for arguments in ["explain env.json", "env.json out", "--check env.json out"] {
        let program = env!("CARGO_BIN_EXE_gen-backup-bundle");
        let script = format!("'{program}' {arguments} >/dev/full");
        let mut command = Command::new("bash");
        let run = outcome(command.args(["-c", &script]).current_dir(scratch.path("")));
        assert_eq!(run.status, 5, "{arguments}");
        let stderr = "error: cannot write to standard output\n  \
                      because: No space left on device (os error 28)\n";
        assert!(run.stderr.starts_with(stderr), "{}", run.stderr);
    }
}

#[test]
fn the_printed_commands_work_in_a_shell_whatever_the_names() {
    let names = [
        "out",
        "with space",
        "it's",
        "$(touch pwned)",
        "-o",
        "a\nb",
        "ñ",
        "~",
        "a;b",
    ];
    for name in names {
        let scratch = Scratch::of("sqlite-minimal");
        fs::create_dir(scratch.path("bin")).unwrap();
        // It prints its arguments, and fails unless the last one is a file.
        let fake = "#!/bin/bash\nprintf '%s\\0' \"$@\"\ntest -f \"${@: -1}\"\n";
        fs::write(scratch.path("bin/ansible-playbook"), fake).unwrap();
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(scratch.path("bin/ansible-playbook"), mode).unwrap();
        let home = scratch.path("");
        let bash = |script: &str| {
            let path = format!("{}:/usr/bin:/bin", scratch.path("bin").display());
            let mut command = Command::new("bash");
            outcome(
                command
                    .args(["-c", script])
                    .env("PATH", path)
                    .current_dir(&home),
            )
        };
        for (options, first) in [
            (&[][..], "-i\0HOST,\0"),
            (&["--force", "--host", "10.0.0.1"], ""),
        ] {
            let run = run_in(&home, &[options, &["--", "env.json", name]].concat());
            is_right(&run);
            let (_, command) = run.stdout.split_once("then apply with: ").unwrap();
            let command = command.split("\nHOST is").next().unwrap();
            let called = bash(command);
            is_right(&called);
            assert!(called.stdout.starts_with(first), "{name:?}: {command}");
            let playbook = called.stdout[first.len()..].trim_start_matches("./");
            assert_eq!(playbook, format!("{name}/install-backup.yml\0"));
        }
        assert!(!scratch.path("pwned").exists());
        // The command of --check.
        scratch.set(&with("sqlite-minimal", "retention_days", json!(8)));
        let check = run_in(
            &home,
            &["--check", "--host", "10.0.0.1", "--", "env.json", name],
        );
        assert_eq!(check.status, 1);
        let (_, command) = check.stderr.split_once("up to date with: ").unwrap();
        let program = env!("CARGO_BIN_EXE_gen-backup-bundle");
        is_right(&bash(&command.replacen("gen-backup-bundle", program, 1)));
        let check = run_in(
            &home,
            &["--check", "--host", "10.0.0.1", "--", "env.json", name],
        );
        is_right(&check);
    }
}

/// Starts the program without waiting for it.
fn start(directory: &Path, file: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_gen-backup-bundle"))
        .args([file, "out"])
        .current_dir(directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// How often a test repeats, from an environment variable.
fn repeats(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// Numbers that look random and are the same in every run of the tests.
fn pseudo_random(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    usize::try_from(*state >> 33).unwrap()
}

/// The same deployment, as somebody might change its file between two runs.
fn inputs() -> [Value; 4] {
    let name = |mut environment: Value| {
        environment["environment"]["name"] = json!("one");
        environment
    };
    let mut window = with_password("mysql-full-stack", "first");
    window["backup"].as_object_mut().unwrap().remove("restic");
    let mut sidecar = with_password("mysql-full-stack", "second");
    sidecar["backup"] = json!({"strategy": "sidecar", "retention_days": 30});
    let mut other = with_password("mysql-minimal", "third");
    other["backup"] = json!({"compression": "zstd", "host": "10.0.0.1"});
    [window, sidecar, other, example("sqlite-minimal")].map(name)
}

#[test]
fn a_killed_run_is_completed_by_any_input() {
    let inputs = inputs();
    let whole = inputs.each_ref().map(|input| {
        let scratch = Scratch::new(input);
        scratch.generate();
        scratch.tree()
    });
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let mut cut_short = 0;
    for kill in 0..repeats("OUTPUT_KILLS", 100) {
        let mut choose = |from: usize| pseudo_random(&mut state) % from;
        let scratch = Scratch::new(&inputs[0]);
        // Either a first run or an update is killed, once or twice.
        let is_update = kill % 2 == 1;
        if is_update {
            scratch.generate();
        }
        // A complete bundle with secrets or a host is not followed by an input without them.
        let choices = if is_update { 2 } else { 4 };
        let mut last = 0;
        for _ in 0..=choose(2) {
            last = choose(choices);
            scratch.set(&inputs[last]);
            kill_while_it_writes(&scratch, &mut choose);
            if is_complete(&scratch) {
                break;
            }
            cut_short += 1;
            last = choose(choices);
        }
        scratch.set(&inputs[last]);
        let run = scratch.run(&[]);
        assert_eq!(
            (run.status, run.stderr.as_str()),
            (0, ""),
            "kill {kill}, then {last}"
        );
        assert!(scratch.tree() == whole[last], "kill {kill}, then {last}");
        let again = scratch.run(&[]).stdout;
        assert!(again.contains(", 0 written, 0 removed\n"), "{again}");
    }
    println!("{cut_short} runs were cut short while they wrote");
    assert!(cut_short > 0);
}

/// Starts a run, and kills it at some point after it has begun to write.
fn kill_while_it_writes(scratch: &Scratch, choose: &mut impl FnMut(usize) -> usize) {
    let record = scratch.path("out/.gen-backup-bundle-record");
    let stamp = || fs::metadata(&record).ok().map(|found| found.ino());
    let before = stamp();
    let mut child = start(&scratch.path(""), "env.json");
    let limit = Instant::now() + Duration::from_secs(20);
    while stamp() == before && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < limit);
    }
    let until = Instant::now() + Duration::from_micros(choose(8_000).try_into().unwrap());
    while Instant::now() < until {}
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Whether the manifest, which comes last, is that of the run that has been killed.
fn is_complete(scratch: &Scratch) -> bool {
    let Ok(record) = fs::read(scratch.path("out/.gen-backup-bundle-record")) else {
        return true;
    };
    let record: Value = serde_json::from_slice(&record).unwrap();
    fs::read(scratch.path("out/manifest.json"))
        .is_ok_and(|manifest| record["manifest"] == json!(sha256(&manifest)))
}

/// What two runs at the same time have done.
fn ended(child: Child) -> (i32, String) {
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn two_runs_at_the_same_time_never_mix() {
    let [first, second, ..] = inputs();
    let whole = [&first, &second].map(|input| {
        let scratch = Scratch::new(input);
        scratch.generate();
        scratch.tree()
    });
    for _ in 0..repeats("OUTPUT_PAIRS", 50) {
        let scratch = Scratch::new(&first);
        fs::write(scratch.path("other.json"), second.to_string()).unwrap();
        let children = ["env.json", "other.json"].map(|file| start(&scratch.path(""), file));
        let ends = children.map(ended);
        let busy = "error: another run is writing out\n\
                    hint: wait until it has ended, then run again\n";
        for (status, stderr) in &ends {
            match status {
                0 => assert_eq!(stderr, ""),
                status => assert_eq!((*status, stderr.as_str()), (5, busy)),
            }
        }
        let tree = scratch.tree();
        match [ends[0].0, ends[1].0] {
            [0, 5] => assert!(tree == whole[0]),
            [5, 0] => assert!(tree == whole[1]),
            statuses => {
                assert_eq!(statuses, [0, 0]);
                assert!(tree == whole[0] || tree == whole[1]);
            }
        }
    }
}

#[test]
fn a_locked_directory_is_left_alone() {
    let scratch = Scratch::generated("sqlite-minimal");
    let before = scratch.tree();
    let directory = scratch.path("out");
    let mut holder = Command::new("flock")
        .arg(&directory)
        .args(["bash", "-c", "echo locked; exec sleep 60"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 7];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut line).unwrap();
    scratch.set(&with("sqlite-minimal", "retention_days", json!(8)));
    let run = scratch.run(&[]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!((run.status, run.stdout.as_str()), (5, ""));
    assert!(
        run.stderr
            .starts_with("error: another run is writing out\n")
    );
    assert_eq!(scratch.tree(), before);
}
