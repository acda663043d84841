//! What people plausibly write in the section `backup` and around it, and what they are told.
//!
//! The snapshot is for reading: each message must make sense to somebody who has read nothing else.

mod common;

use std::fmt::Write as _;

use common::{Scratch, example};
use serde_json::{Value, json};

/// A pointer into the file, and what somebody writes there.
fn mistakes() -> Vec<(&'static str, Value)> {
    vec![
        ("/backup/retention_days", json!("14")),
        ("/backup/retention_days", json!("two weeks")),
        ("/backup/retention_days", json!(14.5)),
        ("/backup/retention", json!(14)),
        ("/backup/schedule", json!("daily")),
        ("/backup/schedule", json!("@daily")),
        ("/backup/schedule", json!("03:00")),
        ("/backup/schedule", json!("0 3 * *")),
        ("/backup/schedule", json!("60 3 * * *")),
        ("/backup/schedule", json!("0 3 30 2 *")),
        ("/backup/schedule", json!(["0 3 * * *", "0 15 * * *"])),
        ("/backup/strategy", json!("side-car")),
        ("/backup/quiesce", json!("freeze")),
        ("/backup/quiesce", json!(true)),
        ("/backup/compression", json!("xz")),
        ("/backup/database_scope", json!("exclude_statistics")),
        ("/backup/destination", json!("backups")),
        ("/backup/destination", json!("~/backups")),
        ("/backup/destination", json!("/mnt/backup/")),
        ("/backup/destination", json!("s3://bucket")),
        ("/backup/destination", json!("/opt/torrust")),
        ("/backup/deploy_dir", json!("/opt")),
        ("/backup/host", json!("root@192.0.2.1")),
        ("/backup/host", json!("192.0.2.1:22")),
        ("/backup/image", json!("Example/Backup:1")),
        ("/backup/verify_schedule", json!(false)),
        ("/backup/enabled", json!(true)),
        ("/backup", json!(true)),
        ("/backup", json!([])),
        (
            "/backup/restic",
            json!("sftp:backup@nas.example.org:/torrust"),
        ),
        (
            "/backup/restic",
            json!({"repository": "/mnt/restic/torrust"}),
        ),
        (
            "/backup/restic",
            json!({"repo": "/mnt/restic/torrust", "password": "x"}),
        ),
        (
            "/backup/restic",
            json!({"repository": "s3:s3.example.org/bucket", "password": "x"}),
        ),
        ("/backup/notify", json!("admin@example.org")),
        ("/backup/notify", json!({"webhook_url": "example.org/hook"})),
        ("/backup/notify", json!({"email": "admin@example.org"})),
        ("/backup/metrics", json!(true)),
        ("/backup/catch_up_hours", json!(1000)),
        ("/backup/database_tls", json!(true)),
        ("/tracker/core/database/driver", json!("sqlite")),
        ("/tracker/core/database/driver", json!("postgres")),
        (
            "/tracker/core/database/database_name",
            json!("/var/lib/tracker.db"),
        ),
        ("/tracker/database", json!({"driver": "sqlite3"})),
        ("/ssh_credentials/port", json!("22")),
        ("/ssh_credentials/private_key_path", json!("id_ed25519")),
        ("/environment/name", json!("")),
    ]
}

#[test]
fn each_plausible_mistake_gets_a_message_that_helps() {
    let mut messages = String::new();
    let mistakes = mistakes();
    assert!(mistakes.len() >= 30);
    for (pointer, value) in mistakes {
        let mut environment = example("sqlite-minimal");
        environment["backup"] = json!({});
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        environment.pointer_mut(parent).unwrap()[key] = value.clone();
        if pointer == "/tracker/database" {
            environment["tracker"]["core"] = json!({});
        }
        let scratch = Scratch::new(&environment);
        let outcome = scratch.run(&[]);
        assert_eq!(
            (outcome.status, outcome.stdout.as_str()),
            (3, ""),
            "{pointer}: {value}"
        );
        let lines = outcome.stderr.lines();
        let problems = lines.filter(|line| line.starts_with("  "));
        let problems: Vec<_> = problems.collect();
        assert_eq!(problems.len() % 4, 0, "{}", outcome.stderr);
        let _ = writeln!(messages, "{pointer}: {value}\n{}\n", problems.join("\n"));
    }
    insta::assert_snapshot!("messages", messages);
}
