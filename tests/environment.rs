//! What is read of an environment file, from where, and how much of it.

mod common;

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Scratch, example, outcome, run_in};
use serde_json::{Value, json};

fn services(environment: &Value) -> Vec<String> {
    let scratch = Scratch::new(environment);
    scratch.generate();
    let paths = scratch.read("out/backup/backup-paths.txt");
    let known = ["mysql", "prometheus", "grafana", "caddy"];
    let is_there = |name: &&str| paths.contains(&format!("/data/storage/{name}/"));
    known
        .iter()
        .filter(|name| is_there(name))
        .map(|name| (*name).to_owned())
        .collect()
}

#[test]
fn caddy_is_there_when_the_deployer_starts_it() {
    let behind = json!({"domain": "x.example.org", "use_tls_proxy": true});
    let without_domain = json!({"use_tls_proxy": true});
    let not_behind = json!({"domain": "x.example.org", "use_tls_proxy": false});
    let with = |pointer: &str, value: &Value| {
        let mut environment = example("sqlite-minimal");
        environment["https"] = json!({"admin_email": "a@example.org"});
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        environment.pointer_mut(parent).unwrap()[key] = value.clone();
        services(&environment).contains(&"caddy".to_owned())
    };
    for pointer in ["/tracker/http_api", "/grafana"] {
        assert!(with(pointer, &behind), "{pointer}");
        assert!(!with(pointer, &without_domain), "{pointer}");
        assert!(!with(pointer, &not_behind), "{pointer}");
    }
    assert!(with("/tracker/http_trackers", &json!([behind])));
    assert!(!with("/tracker/http_trackers", &json!([without_domain])));
    assert!(!with("/tracker/health_check_api", &behind));
}

#[test]
fn the_root_password_of_the_stack_is_read_where_the_deployer_keeps_it() {
    let secret = |environment: &Value| {
        let scratch = Scratch::new(environment);
        scratch.generate();
        fs::read_to_string(scratch.path("out/secrets/db_root_password")).ok()
    };
    let mut environment = example("mysql-minimal");
    environment["mysql"] = json!({"root_password": "of the stack", "other": [1]});
    assert_eq!(secret(&environment).as_deref(), Some("of the stack"));
    environment["tracker"]["core"]["database"]["root_password"] = json!("beside the user");
    assert_eq!(secret(&environment).as_deref(), Some("beside the user"));
    for other in ["mysql-external-host", "sqlite-minimal"] {
        let mut environment = example(other);
        environment["mysql"] = json!({"root_password": "of the stack"});
        assert_eq!(secret(&environment), None, "{other}");
    }
    environment["mysql"] = json!({"root_password": "s3cret\n"});
    let outcome = Scratch::new(&environment).run(&[]);
    assert_eq!(outcome.status, 3);
    assert!(
        outcome.stderr.contains("  mysql.root_password\n"),
        "{}",
        outcome.stderr
    );
    assert!(!outcome.stderr.contains("s3cret"));
}

#[test]
fn a_description_of_several_lines_is_shown_on_one() {
    let mut environment = example("sqlite-minimal");
    environment["environment"]["description"] = json!("The first line.\r\n  The second.\n");
    let scratch = Scratch::new(&environment);
    scratch.generate();
    let readme = scratch.read("out/README.md");
    assert!(readme.contains("The first line. The second."), "{readme}");
    environment["environment"]["description"] = json!("\n");
    assert_eq!(Scratch::new(&environment).run(&[]).status, 3);
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let scratch = Scratch::of("sqlite-minimal");
    let started = Instant::now();
    let large = File::create(scratch.path("env.json")).unwrap();
    large.set_len(1 << 40).unwrap();
    let expected = |name: &str| {
        format!(
            "error: {name} is larger than 1048576 bytes\n\
             hint: give the environment JSON file; a real one has a few kilobytes\n"
        )
    };
    let outcome = scratch.run(&[]);
    assert_eq!((outcome.status, outcome.stderr), (3, expected("env.json")));
    let outcome = run_in(&scratch.path(""), &["/dev/zero", "out"]);
    assert_eq!((outcome.status, outcome.stderr), (3, expected("/dev/zero")));
    assert!(started.elapsed() < Duration::from_secs(10));
    // Up to the limit, white space is not a problem.
    let text = example("sqlite-minimal").to_string();
    fs::write(
        scratch.path("env.json"),
        text.clone() + &" ".repeat((1 << 20) - text.len()),
    )
    .unwrap();
    assert_eq!(scratch.run(&[]).status, 0);
}

#[test]
fn standard_input_is_a_file_like_another() {
    let scratch = Scratch::of("sqlite-minimal");
    let run = |arguments: &[&str], file: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gen-backup-bundle"));
        let input = File::open(scratch.path(file)).unwrap();
        command.current_dir(scratch.path("")).args(arguments);
        outcome(command.stdin(Stdio::from(input)))
    };
    let written = run(&["-", "out"], "env.json");
    assert_eq!((written.status, written.stderr.as_str()), (0, ""));
    assert_eq!(scratch.run(&["--check"]).status, 0);
    assert_eq!(run(&["explain", "-"], "env.json").status, 0);
    fs::write(scratch.path("broken"), "{").unwrap();
    let broken = run(&["-", "out"], "broken");
    assert_eq!(broken.status, 3);
    let start = "error: standard input is not valid JSON: the file ends too early\n";
    assert!(broken.stderr.starts_with(start), "{}", broken.stderr);
}

#[test]
fn the_deployers_own_record_is_recognised_by_its_name() {
    let scratch = Scratch::of("sqlite-minimal");
    fs::create_dir_all(scratch.path("data/demo")).unwrap();
    fs::write(
        scratch.path("data/demo/environment.json"),
        "{\"Destroyed\": {}}",
    )
    .unwrap();
    let outcome = run_in(&scratch.path(""), &["data/demo/environment.json", "out"]);
    assert_eq!(outcome.status, 3);
    let start = "error: data/demo/environment.json is the deployer's own record of a deployment";
    assert!(outcome.stderr.starts_with(start), "{}", outcome.stderr);
    // An environment file may have that name too.
    fs::copy(
        scratch.path("env.json"),
        scratch.path("data/demo/environment.json"),
    )
    .unwrap();
    let outcome = run_in(&scratch.path(""), &["data/demo/environment.json", "out"]);
    assert_eq!(outcome.status, 0, "{}", outcome.stderr);
}
