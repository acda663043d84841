//! Random environment files. `FUZZ_SECONDS` says for how long each test runs; scripts/check does.
//!
//! Whatever the file: the program ends with 0 or 3, says what to do, shows no secret, and writes
//! nothing outside of OUT. What it accepts, YAML and a shell read back exactly.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{CASES, HOSTILE, Outcome, Scratch, example, run_in};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

/// Every secret begins so, and no message may hold it.
const CANARY: &str = "c4nary-c4nary";

type Tested = Result<(), TestCaseError>;

/// Tries new cases until the time is over.
fn fuzz<S: Strategy>(strategy: &S, property: impl Fn(S::Value) -> Tested) {
    let seconds = std::env::var("FUZZ_SECONDS").map_or(2, |text| text.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds);
    let config = ProptestConfig {
        cases: 8,
        failure_persistence: None,
        max_shrink_time: 20_000,
        ..ProptestConfig::default()
    };
    let mut cases = 0;
    while Instant::now() < end {
        let mut runner = TestRunner::new(config.clone());
        if let Err(failure) = runner.run(strategy, &property) {
            panic!("{failure}");
        }
        cases += config.cases;
    }
    println!("{cases} cases");
}

/// Runs each verb over `env.json`, and returns whether the file is accepted.
fn is_accepted(scratch: &Scratch) -> Result<bool, TestCaseError> {
    let run = |arguments: &[&str]| run_in(&scratch.path(""), arguments);
    let generated = run(&["env.json", "out"]);
    let status = generated.status;
    prop_assert!(status == 0 || status == 3, "{generated:?}");
    let outcomes: [(Outcome, i32); 4] = [
        (run(&["explain", "env.json"]), status),
        (run(&["validate", "env.json"]), status),
        (run(&["check", "env.json", "out"]), status),
        (run(&["check", "env.json", "nothing"]), status.max(1)),
    ];
    for (outcome, expected) in &outcomes {
        prop_assert_eq!(outcome.status, *expected, "{:?}", outcome);
    }
    for outcome in outcomes
        .iter()
        .map(|(outcome, _)| outcome)
        .chain([&generated])
    {
        for stream in [&outcome.stdout, &outcome.stderr] {
            let is_raw = |c: char| c.is_control() && c != '\n' && c != '\t';
            prop_assert!(!stream.contains(CANARY), "a secret: {}", stream);
            prop_assert!(
                !stream.contains(is_raw),
                "a control character: {:?}",
                stream
            );
        }
        if outcome.status == 3 {
            let is_helpful = outcome.stderr.starts_with("error: env.json ")
                && outcome.stderr.contains("\nhint: ")
                && outcome.stderr.len() < 20_000;
            prop_assert!(is_helpful, "{:?}", outcome);
        }
    }
    let mut names: Vec<_> = fs::read_dir(scratch.path(""))?
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected: &[&str] = if status == 0 {
        &["env.json", "out"]
    } else {
        &["env.json"]
    };
    prop_assert_eq!(names, expected);
    Ok(status == 0)
}

/// The variables that bash has after it read a file of the bundle.
fn read_by_a_shell(scratch: &Scratch, path: &str) -> BTreeMap<String, String> {
    let script = r#"before=$(compgen -v); . "$1"
        while read -r name; do printf '%s=%s\0' "$name" "${!name}"; done \
            < <(comm -13 <(sort <<<"$before") <(compgen -v | sort) | grep -v '^before$')"#;
    let mut command = Command::new("env");
    command.args([
        "-i",
        "LC_ALL=C",
        "PATH=/usr/bin:/bin",
        "bash",
        "-c",
        script,
        "bash",
        path,
    ]);
    let output = command.current_dir(scratch.path("out")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let text = String::from_utf8(output.stdout).unwrap();
    let variables = text
        .split_terminator('\0')
        .map(|line| line.split_once('=').unwrap());
    variables
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn untagged(value: &serde_yaml::Value) -> String {
    match value {
        serde_yaml::Value::Tagged(tagged) => untagged(&tagged.value),
        value => value.as_str().unwrap_or_default().to_owned(),
    }
}

/// Texts of the file, with the variables and keys of the bundle that must have exactly their value.
const READ_BACK: [(&str, &str, &str); 8] = [
    ("/environment/name", "ENVIRONMENT", "backup_environment"),
    ("/ssh_credentials/username", "", "backup_ssh_user"),
    (
        "/ssh_credentials/private_key_path",
        "",
        "backup_ssh_private_key",
    ),
    ("/backup/deploy_dir", "DEPLOY_DIR", "backup_deploy_dir"),
    ("/backup/destination", "DESTINATION", "backup_destination"),
    ("/backup/image", "IMAGE", ""),
    ("/tracker/core/database/username", "DB_USER", ""),
    ("/tracker/core/database/database_name", "DB_NAME", ""),
];

/// A text as people, tools and attackers write it.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        select(HOSTILE.to_vec()).prop_map(str::to_owned),
        "\\PC{0,20}",
        any::<String>(),
        "[-a-z0-9./:@_]{0,12}",
    ]
}

#[test]
fn what_is_accepted_is_read_back_exactly() {
    let prefixes = select(vec!["", "/", "~/", "/mnt/", "registry.example.org/"]);
    let texts = vec((select(READ_BACK.to_vec()), prefixes, text()), 1..4);
    fuzz(&(texts, text()), |(texts, password)| {
        let mut environment = example("mysql-minimal");
        environment["backup"] = json!({});
        let password = format!("{CANARY}{password}");
        environment["tracker"]["core"]["database"]["password"] = json!(password);
        for ((pointer, ..), prefix, text) in &texts {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            environment.pointer_mut(parent).unwrap()[key] = json!(format!("{prefix}{text}"));
        }
        let scratch = Scratch::new(&environment);
        if !is_accepted(&scratch)? {
            return Ok(());
        }
        let mut variables = read_by_a_shell(&scratch, "host/tracker-backup.conf");
        variables.extend(read_by_a_shell(&scratch, "backup/backup.conf"));
        let yaml: serde_yaml::Value = serde_yaml::from_str(&scratch.read("out/variables.yml"))
            .map_err(|error| TestCaseError::fail(error.to_string()))?;
        for (pointer, variable, key) in READ_BACK {
            let Some(value) = environment.pointer(pointer).and_then(Value::as_str) else {
                continue;
            };
            if !variable.is_empty() {
                prop_assert_eq!(variables.get(variable).map(String::as_str), Some(value));
            }
            if !key.is_empty() {
                prop_assert_eq!(untagged(&yaml[key]), value, "{}", key);
            }
        }
        prop_assert_eq!(scratch.read("out/secrets/db_password"), password);
        if let Some(image) = environment["backup"]["image"].as_str() {
            let fragment = scratch.read("out/docker-compose.backup.yml");
            let fragment: serde_yaml::Value = serde_yaml::from_str(&fragment).unwrap();
            let reader = match &fragment["services"]["backup"] {
                serde_yaml::Value::Tagged(tagged) => &tagged.value,
                service => service,
            };
            prop_assert_eq!(untagged(&reader["image"]), image.replace('$', "$$"));
        }
        Ok(())
    });
}

/// The words of the published schema, and any other.
fn key() -> impl Strategy<Value = String> {
    let schema = fs::read_to_string(common::root().join("schemas/environment.schema.json"));
    let schema = schema.unwrap();
    let words = schema
        .lines()
        .filter_map(|line| line.trim().strip_suffix(": {"));
    let mut words: Vec<_> = words
        .map(|word| word.trim_matches('"').to_owned())
        .collect();
    words.sort();
    words.dedup();
    prop_oneof![8 => select(words), 1 => text()]
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..5000_i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text().prop_map(Value::from),
        select(vec![
            "sqlite3",
            "mysql",
            "sidecar",
            "none",
            "stop",
            "0 3 * * *"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 60, 8, |inner| {
        prop_oneof![
            1 => vec(inner.clone(), 0..4).prop_map(Value::Array),
            4 => btree_map(key(), inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Puts a value at the place that the path's numbers choose.
fn graft(mut place: &mut Value, path: &[Index], value: Value) {
    for index in path {
        let length = match &*place {
            Value::Object(map) => map.len(),
            Value::Array(list) => list.len(),
            _ => 0,
        };
        if length == 0 {
            break;
        }
        let at = index.index(length);
        let child = match place {
            Value::Object(map) => map.values_mut().nth(at),
            Value::Array(list) => list.get_mut(at),
            _ => None,
        };
        place = child.unwrap();
    }
    *place = value;
}

#[test]
fn any_json_is_accepted_or_refused() {
    let grafts = vec((vec(any::<Index>(), 1..6), json_value()), 1..4);
    fuzz(&(select(CASES.to_vec()), grafts), |(case, grafts)| {
        let mut environment = example(case);
        for (path, value) in grafts {
            graft(&mut environment, &path, value);
        }
        is_accepted(&Scratch::new(&environment)).map(drop)
    });
}

#[test]
fn any_bytes_are_accepted_or_refused() {
    let edit = (any::<Index>(), 0..4_usize, vec(any::<u8>(), 0..6));
    let edits = vec(edit, 0..6);
    let cut = proptest::option::weighted(0.2, any::<Index>());
    fuzz(
        &(select(CASES.to_vec()), edits, cut),
        |(case, edits, cut)| {
            let mut environment = example(case);
            let database = &mut environment["tracker"]["core"]["database"];
            if database["password"].is_string() {
                database["password"] = json!(CANARY);
            }
            let mut bytes = serde_json::to_vec_pretty(&environment).unwrap();
            for (at, removed, inserted) in edits {
                let at = at.index(bytes.len());
                let end = (at + removed).min(bytes.len());
                bytes.splice(at..end, inserted);
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            let scratch = Scratch::new(&json!({}));
            fs::write(scratch.path("env.json"), bytes)?;
            is_accepted(&scratch).map(drop)
        },
    );
}
