//! No message shows a secret: not under a wrong key, not in a wrong shape, not in a broken file.
//!
//! A canary is put into an environment file in place of a value or a key, the file is damaged, and
//! the canary must not appear in anything that the program prints.

mod common;

use std::fs;

use common::{CASES, Outcome, Scratch, example, run_in};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A text that no file of ours contains. Repeated, so that a damage leaves a part of it whole.
const CANARY: &str = "c4nary-c4nary-c4nary";
/// What must not be printed.
const TRACE: &str = "c4nary";
/// The same as a number.
const NUMBER: u64 = 918_273_645;

/// The paths whose values a message may show. Everything else may hold a secret.
const PUBLIC: [&str; 25] = [
    "/backup/allow_writer_stall",
    "/backup/catch_up_hours",
    "/backup/compression",
    "/backup/database_scope",
    "/backup/database_tls/verify",
    "/backup/deploy_dir",
    "/backup/destination",
    "/backup/jitter_seconds",
    "/backup/metrics/textfile_dir",
    "/backup/notify/on",
    "/backup/quiesce",
    "/backup/restic/check",
    "/backup/restic/keep_daily",
    "/backup/restic/keep_monthly",
    "/backup/restic/keep_weekly",
    "/backup/restic/limit_upload_kib",
    "/backup/retention_days",
    "/backup/schedule",
    "/backup/stop_timeout_seconds",
    "/backup/strategy",
    "/backup/verify_schedule",
    "/backup/window_timeout_seconds",
    "/environment/name",
    "/ssh_credentials/port",
    "/tracker/core/database/driver",
];

/// Puts a value at a JSON pointer, whatever stands there.
fn set(environment: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = environment.pointer_mut(parent).unwrap();
    match parent.as_array_mut() {
        Some(list) => list[key.parse::<usize>().unwrap()] = value,
        None => parent[key.replace("~1", "/").replace("~0", "~")] = value,
    }
}

/// The pointer of every value below `value`.
fn pointers(value: &Value, pointer: &str, found: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), value))
            .collect(),
        Value::Array(list) => (list.iter().enumerate())
            .map(|(index, value)| (index.to_string(), value))
            .collect(),
        _ => Vec::new(),
    };
    for (key, value) in children {
        let key = key.replace('~', "~0").replace('/', "~1");
        let pointer = format!("{pointer}/{key}");
        pointers(value, &pointer, found);
        found.push(pointer);
    }
}

/// What the program prints about `env.json`, by each of its ways.
fn runs(scratch: &Scratch) -> [Outcome; 3] {
    [
        scratch.run(&[]),
        scratch.run(&["--check"]),
        run_in(&scratch.path(""), &["explain", "env.json"]),
    ]
}

fn shows_nothing(outcome: &Outcome) -> bool {
    let number = NUMBER.to_string();
    ![&outcome.stdout, &outcome.stderr]
        .iter()
        .any(|text| text.contains(TRACE) || text.contains(&number))
}

fn refused_without_a_trace(scratch: &Scratch, what: &str) {
    for outcome in runs(scratch) {
        assert_eq!(outcome.status, 3, "{what}: {outcome:?}");
        assert!(shows_nothing(&outcome), "{what}:\n{}", outcome.stderr);
    }
}

#[test]
fn a_secret_under_a_wrong_key_or_in_a_wrong_shape_is_not_shown() {
    let address = format!("https://user:{CANARY}@example.org/");
    let with = |end: &str| json!(format!("{CANARY}{end}"));
    let table = [
        ("/tracker/http_api", json!({"admin_token": with("\t")})),
        ("/tracker/http_api", json!({"admin_token": with("\n")})),
        (
            "/tracker/http_api",
            json!({"token": [with("\n"), with("\u{7f}")]}),
        ),
        ("/tracker/http_api", with("")),
        ("/tracker/http_trackers", json!([with("")])),
        ("/tracker/core/database/pasword", with("\n")),
        ("/tracker/core/database/password", with("\n")),
        ("/tracker/core/database/password", json!([CANARY])),
        ("/tracker/core/database/password", json!([[with("\n")]])),
        (
            "/tracker/core/database/password",
            json!({"value": with("\n")}),
        ),
        ("/tracker/core/database/password", json!(NUMBER)),
        ("/tracker/core/database/root_password", json!(NUMBER)),
        ("/tracker/core/database/host", with(" x")),
        ("/tracker/core/database/host", json!(address)),
        ("/tracker/core/database/port", json!(NUMBER)),
        ("/tracker/core/database/database_name", with("/x")),
        ("/tracker/core/database/driver", json!(address)),
        ("/tracker/core/database", json!(address)),
        ("/tracker/core/database", json!(NUMBER)),
        ("/tracker", json!(NUMBER.to_string())),
        ("/ssh_credentials", json!(NUMBER.to_string())),
        ("/ssh_credentials/private_key_path", with("")),
        ("/ssh_credentials/private_key_path", with("\nx")),
        ("/ssh_credentials/username", with(" x")),
        ("/environment/description", with("\t")),
        ("/environment/name", json!(format!("{address}\n"))),
        ("/backup/pasword", with("\n")),
        ("/backup/schedule", json!(address)),
        ("/backup/schedule", json!({"password": CANARY})),
        ("/backup/destination", json!(address)),
        ("/backup/destination", json!(format!("u:{CANARY}@x"))),
        ("/backup/deploy_dir", json!(format!("/u:{CANARY}@x//"))),
        ("/backup/deploy_dir", json!(format!("/etc/u:{CANARY}@x"))),
        (
            "/backup/destination",
            json!(format!("/opt/torrust/backup/u:{CANARY}@x")),
        ),
        ("/backup/image", json!(format!("u:{CANARY}@Registry/x"))),
        ("/backup/database_tls", json!(CANARY)),
        (
            "/backup/database_tls",
            json!({"ca_file": format!("/x//{CANARY}")}),
        ),
        ("/backup/restic", json!(CANARY)),
        ("/backup/restic", json!(NUMBER)),
        ("/backup/restic/pasword", with("\n")),
        ("/backup/restic/pasword", json!(NUMBER)),
        ("/backup/restic/password", json!([CANARY])),
        (
            "/backup/restic/repository",
            json!(format!("/mnt//{CANARY}")),
        ),
        ("/backup/restic/repository", json!([address])),
        ("/backup/restic/ssh_private_key_path", with("")),
        ("/backup/restic/environment", with("")),
        ("/backup/restic/environment", json!([with("")])),
        ("/backup/restic/environment", json!({"my key": NUMBER})),
        ("/backup/restic/environment", json!({"my key": with("\n")})),
        (
            "/backup/restic/environment",
            json!({"AWS_ACCESS_KEY_ID": NUMBER}),
        ),
        (
            "/backup/restic/environment",
            json!({"LD_PRELOAD": with("\n")}),
        ),
        // A key can be a secret, too.
        ("/backup/restic/environment", json!({CANARY: "x"})),
        ("/backup/restic/environment", json!({"c4nary": "x"})),
        (
            "/backup/restic/environment",
            json!({"AWS_ACCESS_KEY_ID=c4nary": "x"}),
        ),
        ("/backup/c4nary", json!(1)),
        ("/backup/retention_days c4nary", json!(1)),
        ("/backup/restic/password: c4nary", json!("")),
        ("/tracker/c4nary", json!("\n")),
    ];
    for (pointer, value) in table {
        let mut environment = example("mysql-sidecar-s3");
        set(&mut environment, pointer, value.clone());
        refused_without_a_trace(&Scratch::new(&environment), &format!("{pointer} {value}"));
    }
}

#[test]
fn a_section_that_is_nearly_backup_is_named_without_what_follows() {
    let mut environment = example("sqlite-minimal");
    let backup = environment
        .as_object_mut()
        .unwrap()
        .remove("backup")
        .unwrap();
    environment["backup c4nary"] = backup;
    refused_without_a_trace(&Scratch::new(&environment), "nearly backup");
}

#[test]
fn a_syntax_error_shows_where_and_nothing_of_the_line() {
    for text in [
        format!("{{\"password\": \"{CANARY}"),
        format!("{{\"password\": '{CANARY}'}}"),
        format!("{{password: {CANARY}}}"),
        format!("{{\"password\": {CANARY}}}"),
        format!("{{\"password\": \"{CANARY}\n\"}}"),
        format!("{{\"password\": \"\\x{CANARY}\"}}"),
        format!("{{\"password\": \"{CANARY}\",}}"),
        format!("{{\"password\": \"{CANARY}\" \"x\": 1}}"),
        format!("{{\"password\": {NUMBER}x}}"),
        format!("{{\"{CANARY}\" \"x\"}}"),
        format!("{{}} {CANARY}"),
        CANARY.to_owned(),
        format!("\"{CANARY}\""),
        NUMBER.to_string(),
        format!("[\"{CANARY}\"]"),
        // Keys that stand twice.
        format!("{{\"{CANARY}\": 1, \"{CANARY}\": 2}}"),
        format!("{{\"tracker\": {{\"my {CANARY}\": 1, \"my {CANARY}\": 2}}}}"),
    ] {
        let scratch = Scratch::of("sqlite-minimal");
        fs::write(scratch.path("env.json"), &text).unwrap();
        refused_without_a_trace(&scratch, &text);
    }
}

/// A public value is shown: it helps, and it is why there is a list.
#[test]
fn a_value_at_a_public_path_is_shown() {
    for pointer in PUBLIC {
        let mut environment = example("mysql-sidecar-s3");
        for section in ["database_tls", "metrics", "notify"] {
            if pointer.starts_with(&format!("/backup/{section}/")) {
                environment["backup"][section] = json!({});
            }
        }
        set(&mut environment, pointer, json!("wrong\n"));
        let stderr = Scratch::new(&environment).run(&[]).stderr;
        let path = pointer[1..].replace('/', ".");
        let shown = format!("  {path}\n    found:   the text \"wrong\\n\"\n");
        assert!(stderr.contains(&shown), "{pointer}: {stderr}");
    }
}

/// A valid file: what is printed about it holds no secret either.
#[test]
fn explanations_and_differences_show_no_secret() {
    let scratch = Scratch::generated("sqlite-minimal");
    let mut environment = example("mysql-sidecar-s3");
    for pointer in [
        "/tracker/core/database/password",
        "/tracker/core/database/root_password",
        "/tracker/http_api/admin_token",
        "/backup/restic/password",
        "/backup/restic/environment/AWS_ACCESS_KEY_ID",
        "/backup/restic/environment/AWS_SECRET_ACCESS_KEY",
        "/backup/restic/environment/AWS_SESSION_TOKEN",
    ] {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        if environment.pointer(parent).is_none() {
            set(&mut environment, parent, json!({}));
        }
        environment.pointer_mut(parent).unwrap()[key] = json!(CANARY);
    }
    environment["backup"]["restic"]["repository"] = json!(format!("s3:https://u:{CANARY}@h/b"));
    scratch.set(&environment);
    let explained = run_in(
        &scratch.path(""),
        &["explain", "--format", "json", "env.json"],
    );
    let [generated, check, words] = {
        let check = scratch.run(&["--check"]);
        let words = run_in(&scratch.path(""), &["explain", "env.json"]);
        // It is another environment than the one that was generated first.
        [scratch.run(&["--force"]), check, words]
    };
    assert_eq!(
        (generated.status, words.status, explained.status),
        (0, 0, 0)
    );
    assert_eq!(check.status, 1);
    for outcome in [generated, check, words, explained] {
        assert!(shows_nothing(&outcome), "{outcome:?}");
    }
}

/// Texts that hold the canary, among them such as the rules refuse.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(CANARY.to_owned()),
        Just(format!("{CANARY}\n")),
        Just(format!("/{CANARY}/../x")),
        Just(format!("/{CANARY}")),
        Just(format!("u:{CANARY}@example.org")),
        Just(format!("https://u:{CANARY}@example.org/")),
        Just(format!("@{CANARY} * * * *")),
        Just(String::new()),
        "[a-z0-9 /:@=\n\t-]{0,8}".prop_map(|end| format!("{CANARY}{end}")),
    ]
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("pasword".to_owned()),
        Just("my key".to_owned()),
        Just("AWS_SECRET".to_owned()),
        text(),
    ]
}

/// Any JSON with the canary in it.
fn shape() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        text().prop_map(Value::String),
        Just(json!(NUMBER)),
        Just(json!(-918_273_645.5)),
        Just(json!(NUMBER.to_string())),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 1..3).prop_map(Value::Array),
            proptest::collection::btree_map(key(), inner, 1..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_stands_anywhere_no_message_shows_it(
        case in proptest::sample::select(CASES.to_vec()),
        places in proptest::collection::vec((any::<proptest::sample::Index>(), shape()), 1..4),
    ) {
        let mut environment = example(case);
        for (index, value) in places {
            let mut all = Vec::new();
            pointers(&environment, "", &mut all);
            let pointer = index.get(&all);
            // A scalar at a public path is shown; a list there is not.
            let is_shown = PUBLIC.contains(&pointer.as_str()) && !value.is_object();
            set(&mut environment, pointer, if is_shown { json!([value]) } else { value });
        }
        let scratch = Scratch::new(&environment);
        for outcome in runs(&scratch).into_iter().filter(|outcome| outcome.status == 3) {
            prop_assert!(shows_nothing(&outcome), "{environment}\n{}", outcome.stderr);
        }
    }

    #[test]
    fn whatever_breaks_the_file_no_message_shows_a_part_of_it(
        case in proptest::sample::select(CASES.to_vec()),
        at in any::<proptest::sample::Index>(),
        damage in proptest::sample::select(
            ["", "\"", "{", "}", "[", "]", ",", ":", "\\", "\n", "\t", " ", "'", "x", "7"].to_vec()
        ),
        insert in any::<bool>(),
    ) {
        let mut environment = example(case);
        let mut all = Vec::new();
        pointers(&environment, "", &mut all);
        for pointer in all {
            let is_text = environment.pointer(&pointer).is_some_and(Value::is_string);
            if is_text && !PUBLIC.contains(&pointer.as_str()) {
                set(&mut environment, &pointer, json!(CANARY));
            }
        }
        let whole = serde_json::to_string_pretty(&environment).unwrap();
        let at = at.index(whole.len());
        let end = if insert { at } else { at + 1 };
        prop_assume!(whole.is_char_boundary(at) && whole.is_char_boundary(end));
        let scratch = Scratch::new(&environment);
        let broken = [&whole[..at], damage, &whole[end..]].concat();
        fs::write(scratch.path("env.json"), &broken).unwrap();
        for outcome in runs(&scratch).into_iter().filter(|outcome| outcome.status == 3) {
            prop_assert!(shows_nothing(&outcome), "{broken}\n{}", outcome.stderr);
        }
    }
}
