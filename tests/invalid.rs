//! Bad input: every file in tests/invalid/ beside the snapshot of what the program says about it.

mod common;

use std::collections::BTreeMap;
use std::fs;

use common::{Scratch, example, root, run_in};
use serde_json::{Value, json};
use tempfile::TempDir;

#[test]
fn every_bad_file_is_refused_in_these_words_and_nothing_is_written() {
    let directory = root().join("tests/invalid");
    let mut names: Vec<String> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.strip_suffix(".json").is_some())
        .collect();
    names.sort();
    assert!(names.len() > 20);
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("invalid");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for name in names {
        let scratch = TempDir::new().unwrap();
        let out = scratch.path().join("out");
        let outcome = run_in(&directory, &[&name, out.to_str().unwrap()]);
        assert_eq!((outcome.status, outcome.stdout.as_str()), (3, ""), "{name}");
        assert!(!out.exists(), "{name}");
        settings.bind(|| insta::assert_snapshot!(name.trim_end_matches(".json"), outcome.stderr));
    }
}

/// An example with its bundle, over which wrong values are tried.
struct Case {
    environment: Value,
    scratch: Scratch,
    before: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Case {
    fn new(case: &str) -> Self {
        let scratch = Scratch::generated(case);
        Self {
            environment: example(case),
            before: scratch.tree(),
            scratch,
        }
    }

    /// One value replaced makes one problem, at that place.
    fn refuses(&self, pointer: &str, value: impl Into<Value>) {
        let value = value.into();
        let mut environment = self.environment.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        environment.pointer_mut(parent).unwrap()[key] = value.clone();
        self.scratch.set(&environment);
        let outcome = self.scratch.run(&["--force"]);
        let path = pointer[1..].replace('/', ".");
        let start = format!("error: env.json has 1 problem:\n  {path}\n    found:   ");
        assert!(
            outcome.stderr.starts_with(&start),
            "{pointer} {value}: {}",
            outcome.stderr
        );
        assert_eq!((outcome.status, outcome.stdout.as_str()), (3, ""));
        assert_eq!(self.scratch.tree(), self.before, "{pointer} {value}");
    }
}

#[test]
fn a_bad_value_is_named_and_the_bundle_is_untouched() {
    let sqlite = Case::new("sqlite-minimal");
    let numbers = [
        json!(0),
        json!(-1),
        json!(1.5),
        json!("7"),
        json!(3651),
        json!(1e300),
        json!(true),
        json!(null),
    ];
    for number in numbers {
        sqlite.refuses("/backup/retention_days", number);
    }
    for schedule in [
        "99 99 99 99 99",
        "60 3 * * *",
        "*/0 * * * *",
        "0 3 * *",
        "0 0 31 2 *",
        "0 3 * * * root rm",
        "0 3 * * *\n",
        "",
        "@daily",
        "@reboot",
        "*5 * * * *",
        "10-5 * * * *",
        "7;foo * * * *",
        "% * * * *",
    ] {
        sqlite.refuses("/backup/schedule", schedule);
        sqlite.refuses("/backup/verify_schedule", schedule);
    }
    for path in [
        "", "backup", "~/backup", "/", "/a/../b", "/a/./b", "/a//b", "/a/", "/a\nb",
    ] {
        sqlite.refuses("/backup/destination", path);
        sqlite.refuses("/backup/deploy_dir", path);
    }
    for destination in [
        "/opt",
        "/opt/torrust",
        "/opt/torrust/storage",
        "/opt/torrust/backup",
        "/opt/torrust/backup/x",
        "/opt/torrust/storage/tracker/lib",
        "/opt/torrust/storage/backup-staging/x",
        "/opt/torrust/storage/grafana",
        "/etc",
        "/etc/backup",
        "/usr/local",
        "/var",
        "/var/lib/tracker-backup/x",
        "/home",
        "/run/backup",
    ] {
        sqlite.refuses("/backup/destination", destination);
    }
    for name in ["", "../tracker.db", "a/b", "..", ".", "a..b", "a\u{0}b"] {
        sqlite.refuses("/tracker/core/database/database_name", name);
    }
    for key in ["", "id_rsa", "./id_rsa", "~", "~/", "~other/id_rsa"] {
        sqlite.refuses("/ssh_credentials/private_key_path", key);
        sqlite.refuses("/ssh_credentials/public_key_path", key);
    }
}

#[test]
fn a_bad_value_of_a_server_is_named_and_the_bundle_is_untouched() {
    let sqlite = Case::new("sqlite-minimal");
    let mysql = Case::new("mysql-minimal");
    for host in [
        "localhost",
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "a b",
        "-x",
        "user@host",
        "host:3306",
        "1.2.3",
        "[::2]",
        "",
    ] {
        mysql.refuses("/tracker/core/database/host", host);
    }
    for password in [
        json!(""),
        json!("a\nb"),
        json!("a\u{7f}"),
        json!(7),
        json!(null),
    ] {
        mysql.refuses("/tracker/core/database/password", password);
    }
    mysql.refuses("/tracker/core/database/driver", "postgresql");
    mysql.refuses("/tracker/core/database/port", 65536);
    mysql.refuses("/tracker/core/database/port", "3306");
    mysql.refuses("/backup/allow_writer_stall", true);
    mysql.refuses("/backup/database_tls", json!({}));
    sqlite.refuses("/backup/database_tls", json!({"verify": false}));
    Case::new("sqlite-monitoring").refuses("/backup/window_timeout_seconds", 10);
    sqlite.refuses("/backup/image", "Registry/Upper:1");
}

#[test]
fn no_message_shows_a_password() {
    let mut environment = example("mysql-full-stack");
    let database = &mut environment["tracker"]["core"]["database"];
    database["password"] = json!("s3cret\n");
    database["root_password"] = json!(["s3cret"]);
    database["host"] = json!("");
    let mut connection = example("mysql-minimal");
    connection["tracker"]["core"]["database"] = json!("mysql://user:s3cret@host/name");
    for environment in [environment, connection] {
        let outcome = Scratch::new(&environment).run(&[]);
        assert_eq!(outcome.status, 3);
        assert!(!outcome.stderr.contains("s3cret"), "{}", outcome.stderr);
    }
}

#[test]
fn whole_numbers_may_be_written_with_a_fraction_of_zero() {
    let mut environment = example("sqlite-minimal");
    environment["backup"]["retention_days"] = json!(7.0);
    let with_fraction = environment.to_string();
    assert!(with_fraction.contains("7.0"));
    assert_eq!(Scratch::new(&environment).run(&[]).status, 0);
}

#[test]
fn sections_and_keys_of_others_are_not_looked_at() {
    let mut environment = example("sqlite-minimal");
    environment["provider"] = json!({"note": "a\u{7}b", "deep": [[[null]]]});
    environment["tracker"]["core"]["unknown"] = json!([1, {"x": 2}]);
    // Left over from a time with a server: with a file nobody reads it.
    environment["tracker"]["core"]["database"]["host"] = json!("a b");
    assert_eq!(Scratch::new(&environment).run(&[]).status, 0);
}

#[test]
fn a_directory_of_the_system_or_of_a_user_is_refused() {
    let sqlite = Case::new("sqlite-minimal");
    for directory in [
        "/var/log",
        "/var/log/backup",
        "/var/lib/docker/volumes/x",
        "/lib64",
        "/home/torrust",
        "/root",
        "/opt",
        "/tmp",
        "/mnt/.ssh",
        "/home/torrust/.ssh/backup",
    ] {
        sqlite.refuses("/backup/destination", directory);
        sqlite.refuses("/backup/deploy_dir", directory);
    }
    let restic = |directory: &str| json!({"repository": directory, "password": "x"});
    let mut environment = example("sqlite-minimal");
    for directory in ["/var/log/restic", "/home/torrust", "/root/.ssh/restic"] {
        environment["backup"]["restic"] = restic(directory);
        let outcome = Scratch::new(&environment).run(&[]);
        assert_eq!(outcome.status, 3, "{directory}");
    }
    for directory in ["/tmp/backup", "/home/torrust/backup", "/opt/backup"] {
        environment["backup"] = json!({"destination": directory});
        let outcome = Scratch::new(&environment).run(&[]);
        assert_eq!(outcome.status, 0, "{directory}: {}", outcome.stderr);
    }
}

#[test]
fn characters_that_cannot_be_seen_are_refused_but_not_in_a_password() {
    let mysql = Case::new("mysql-minimal");
    for invisible in [
        '\u{200b}', '\u{200f}', '\u{202e}', '\u{2066}', '\u{feff}', '\u{ad}',
    ] {
        let text = format!("a{invisible}b");
        mysql.refuses("/environment/name", text.as_str());
        mysql.refuses("/tracker/core/database/username", text.as_str());
        mysql.refuses("/tracker/core/database/database_name", text.as_str());
        let mut environment = example("mysql-minimal");
        environment["tracker"]["core"]["database"]["password"] = json!(text);
        let scratch = Scratch::new(&environment);
        scratch.generate();
        assert_eq!(scratch.read("out/secrets/db_password"), text);
    }
}

/// A message about a broken line shows no word of it, except known keys.
#[test]
fn a_syntax_error_shows_the_line_without_its_values() {
    for (text, shown) in [
        (
            "{\"a\": \"pass\"word\"}",
            "    {\"x\": \"xxxx\"xxxx\"}\n                ^",
        ),
        (
            "{\"password\": 'hunter2'}",
            "    {\"password\": 'xxxxxxx'}\n                 ^",
        ),
        ("{\n\tpassword: hunter2}", "    xxxxxxxx: xxxxxxx}\n    ^"),
        (
            "{\"é\": \"ü\" \"x\"}",
            "    {\"x\": \"x\" \"x\"}\n              ^",
        ),
    ] {
        let scratch = Scratch::of("sqlite-minimal");
        fs::write(scratch.path("env.json"), text).unwrap();
        let outcome = scratch.run(&[]);
        assert_eq!(outcome.status, 3);
        assert!(outcome.stderr.contains(shown), "{}", outcome.stderr);
        assert!(!outcome.stderr.contains("hunter2"), "{}", outcome.stderr);
    }
}
