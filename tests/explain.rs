//! `explain`: its words for each example, and that they say what the settings mean.

mod common;

use std::collections::BTreeSet;
use std::fs;

use chrono::{NaiveDate, NaiveDateTime};
use common::{CASES, Scratch, example, root};
use gen_backup_bundle::backup::{DatabaseScope, Quiesce, Strategy};
use gen_backup_bundle::bundle::json;
use gen_backup_bundle::environment::Environment;
use gen_backup_bundle::explain::{Case, Explanation, State};
use gen_backup_bundle::plan::BackupPlan;
use serde_json::{Value, json};

/// A Thursday.
fn now() -> NaiveDateTime {
    let day = NaiveDate::from_ymd_opt(2026, 1, 15).unwrap();
    day.and_hms_opt(10, 7, 59).unwrap()
}

fn explained(environment: &Environment) -> Explanation {
    Explanation::new(
        environment,
        &BackupPlan::new(environment, None, |_| "built".to_owned()),
        now(),
    )
}

fn read(environment: &Value) -> Environment {
    Environment::read(&Scratch::new(environment).path("env.json")).unwrap()
}

fn of_case(case: &str) -> Explanation {
    explained(&read(&example(case)))
}

/// An example with other keys in its section `backup`; `null` there is written as such.
fn with(case: &str, backup: &Value) -> Explanation {
    let mut environment = example(case);
    for (key, value) in backup.as_object().unwrap() {
        environment["backup"][key] = value.clone();
    }
    explained(&read(&environment))
}

fn keys(explanation: &Explanation) -> Vec<&str> {
    explanation.advice.iter().map(|advice| advice.key).collect()
}

/// The text in one line, however it was filled.
fn words(explanation: &Explanation) -> String {
    let text = explanation.to_string();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_example_in_words() {
    for case in CASES {
        insta::assert_snapshot!(case, of_case(case).to_string());
    }
}

#[test]
fn an_example_as_json() {
    insta::assert_snapshot!("json", json(&of_case("mysql-full-stack")));
}

#[test]
fn every_key_of_the_json_is_in_the_docs() {
    fn collect(value: &Value, keys: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    keys.insert(key.clone());
                    collect(value, keys);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| collect(item, keys)),
            _ => {}
        }
    }
    let docs = fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let section = docs.split_once("### The explanation as JSON").unwrap().1;
    let section = section.split("\n#").next().unwrap();
    let mut keys = BTreeSet::new();
    for case in CASES {
        collect(&serde_json::to_value(of_case(case)).unwrap(), &mut keys);
    }
    assert!(keys.len() > 40);
    for key in keys {
        assert!(section.contains(&format!("`{key}`")), "{key}");
    }
}

#[test]
fn the_configuration_is_what_the_bundle_lists() {
    for case in CASES {
        let list = root()
            .join("examples")
            .join(case)
            .join("bundle/backup/backup-paths.txt");
        let list = fs::read_to_string(list).unwrap();
        let listed: Vec<_> = list
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect();
        let explanation = of_case(case);
        let value = serde_json::to_value(&explanation.configuration).unwrap();
        let lines = value.as_array().unwrap().iter().map(|archived| {
            let optional = if archived["optional"] == true {
                "?"
            } else {
                ""
            };
            let kind = match archived["content"].as_str().unwrap() {
                "all" => "",
                "owner-and-mode" => "dir:",
                "database" => "sqlite:",
                other => panic!("{other}"),
            };
            format!(
                "{optional}{kind}/data/{}",
                archived["path"].as_str().unwrap()
            )
        });
        assert_eq!(lines.collect::<Vec<_>>(), listed, "{case}");
        for archived in &explanation.configuration {
            assert!(words(&explanation).contains(&archived.path));
        }
    }
}

#[test]
fn the_next_five_runs_in_the_hosts_time_zone() {
    let explanation = with("sqlite-minimal", &json!({"schedule": "*/20 22 * * THU"}));
    let value = serde_json::to_value(&explanation).unwrap();
    assert_eq!(
        value["runs"]["next_runs"],
        json!([
            "2026-01-15T22:00",
            "2026-01-15T22:20",
            "2026-01-15T22:40",
            "2026-01-22T22:00",
            "2026-01-22T22:20"
        ])
    );
    assert_eq!(value["runs"]["counted_from"], "2026-01-15T10:07");
    let text = words(&explanation);
    assert!(text.contains("in the host's time zone"));
    assert!(text.contains("- Thu 2026-01-22 22:20 "));
    for (schedule, interval) in [
        ("* * * * *", "1 minute "),
        ("*/5 * * * *", "5 minutes "),
        ("0 * * * *", "60 minutes "),
        ("0 */6 * * *", "6 hours "),
        ("0 3 * * *", "24 hours "),
        ("0 3 * * SUN", "7 days "),
    ] {
        let text = words(&with("sqlite-minimal", &json!({"schedule": schedule})));
        assert!(
            text.contains(&format!("Up to {interval}lie between two runs")),
            "{schedule}: {text}"
        );
    }
}

/// Every strategy, quiesce and scope, also those that the environment file cannot ask for yet.
#[test]
fn what_it_means_for_the_tracker() {
    for case in ["sqlite-minimal", "mysql-minimal"] {
        for strategy in [Strategy::MaintenanceWindow, Strategy::Sidecar] {
            for quiesce in [Quiesce::Stop, Quiesce::Pause, Quiesce::None] {
                for scope in [DatabaseScope::Full, DatabaseScope::ExcludeStatistics] {
                    let mut environment = read(&example(case));
                    environment.backup.strategy = strategy;
                    environment.backup.quiesce = Some(quiesce);
                    environment.backup.database_scope = scope;
                    let explanation = explained(&environment);
                    let text = words(&explanation);
                    let tracker = &explanation.tracker;
                    let name = format!("{case} {strategy:?} {quiesce:?} {scope:?}: {text}");

                    let expected = match (strategy, quiesce) {
                        (Strategy::Sidecar, _) | (_, Quiesce::None) => State::Untouched,
                        (_, Quiesce::Stop) => State::Stopped,
                        (_, Quiesce::Pause) => State::Paused,
                    };
                    let touched = expected != State::Untouched;
                    assert_eq!(tracker.during_capture, expected, "{name}");
                    assert_eq!(tracker.keeps_swarm, expected != State::Stopped, "{name}");
                    assert_eq!(tracker.limit_seconds, touched.then_some(300), "{name}");

                    let cases: Vec<_> = tracker.interruptions.iter().map(|it| it.case).collect();
                    let possible: &[Case] = match (case, touched) {
                        ("sqlite-minimal", true) => &[Case::NoReflinks, Case::Reflinks],
                        ("sqlite-minimal", false) => {
                            &[Case::RollbackJournal, Case::Reflinks, Case::Wal]
                        }
                        (_, true) => &[Case::Dump],
                        (_, false) => &[],
                    };
                    assert_eq!(cases, possible, "{name}");

                    for (says, when) in [
                        ("it is stopped during", expected == State::Stopped),
                        ("it is frozen during", expected == State::Paused),
                        ("it runs on", expected == State::Untouched),
                        ("swarm in its memory is lost", expected == State::Stopped),
                        ("docs/performance.md", !cases.is_empty()),
                        ("by a cron of its own", strategy == Strategy::Sidecar),
                        ("Started by cron on the host", strategy != Strategy::Sidecar),
                        (
                            "without the torrents that were never completed",
                            scope != DatabaseScope::Full,
                        ),
                        (
                            "- torrents that were never completed; ",
                            scope != DatabaseScope::Full,
                        ),
                    ] {
                        assert_eq!(text.contains(says), when, "{says}: {name}");
                    }
                    assert_eq!(
                        explanation.container.stays_up,
                        strategy == Strategy::Sidecar
                    );
                }
            }
        }
    }
}

#[test]
fn the_time_of_a_stop_follows_its_timeout_and_the_limit_bounds_the_size() {
    let stop = |stop: u32, window: u32| {
        let backup = json!({
            "quiesce": "stop",
            "stop_timeout_seconds": stop,
            "window_timeout_seconds": window,
        });
        with("sqlite-minimal", &backup)
    };
    let first = |explanation: &Explanation| explanation.tracker.interruptions[0].seconds;
    assert_eq!(
        (first(&stop(10, 300)).least, first(&stop(10, 300)).most),
        (10.0, 11.0)
    );
    assert_eq!(
        (first(&stop(90, 300)).least, first(&stop(90, 300)).most),
        (90.0, 91.0)
    );
    // At most 2 s for each GB, in two thirds of the limit.
    assert_eq!(stop(10, 300).tracker.limit_gb, Some(94));
    assert_eq!(stop(90, 140).tracker.limit_gb, Some(1));
    assert_eq!(stop(90, 138).tracker.limit_gb, Some(0));
    assert!(words(&stop(90, 138)).contains("too short to copy 1 GB for sure"));
    // Nobody measured a dump.
    let dump = with("mysql-minimal", &json!({"quiesce": "pause"}));
    assert_eq!(dump.tracker.limit_gb, None);
    assert_eq!(dump.tracker.interruptions[0].seconds_per_gb, None);
}

#[test]
fn leaving_statistics_out_shortens_neither_the_window_nor_an_online_copy() {
    let interruptions = |quiesce, scope| {
        let mut environment = read(&example("sqlite-minimal"));
        environment.backup.quiesce = Some(quiesce);
        environment.backup.database_scope = scope;
        explained(&environment).tracker.interruptions
    };
    for quiesce in [Quiesce::None, Quiesce::Pause, Quiesce::Stop] {
        assert_eq!(
            interruptions(quiesce, DatabaseScope::Full),
            interruptions(quiesce, DatabaseScope::ExcludeStatistics)
        );
    }
}

#[test]
fn an_online_copy_holds_writes_up_only_without_reflinks_and_wal() {
    let sidecar = with("sqlite-minimal", &json!({"strategy": "sidecar"}));
    let text = words(&sidecar);
    for says in [
        "1 to 2 s per GB of the database, where the database keeps a rollback journal",
        "at most 0.1 s whatever the size of the database, where the file system makes reflinks",
        "0.2 to 0.5 s whatever the size of the database, where the database is in WAL mode",
    ] {
        assert!(text.contains(says), "{says}: {text}");
    }
}

#[test]
fn networks_and_dependencies() {
    for (case, says) in [
        (
            "sqlite-minimal",
            "networks: none at all - depends on: no service",
        ),
        (
            "mysql-minimal",
            "networks: database_network of the stack, to reach mysql - depends on: mysql, healthy",
        ),
        (
            "mysql-external-host",
            "networks: backup_network, a bridge of its own - depends on: no service",
        ),
    ] {
        let text = words(&of_case(case));
        assert!(text.contains(says), "{case}: {text}");
        assert!(text.contains("published ports: none"));
    }
}

#[test]
fn what_is_not_backed_up_follows_the_services() {
    for (case, present, absent) in [
        (
            "sqlite-minimal",
            &["swarm", "images", "logs"][..],
            &["Prometheus", "Grafana", "Caddy", "grants"][..],
        ),
        (
            "sqlite-monitoring",
            &["Prometheus", "Grafana's plugins"],
            &["Caddy", "grants"],
        ),
        (
            "mysql-minimal",
            &["grants; the service mysql"],
            &["Prometheus", "Grafana", "Caddy", "whoever runs the server"],
        ),
        (
            "mysql-external-host",
            &["Prometheus", "Caddy", "whoever runs the server"],
            &["Grafana", "the service mysql"],
        ),
        (
            "mysql-full-stack",
            &["Prometheus", "Grafana", "Caddy", "grants"],
            &[],
        ),
    ] {
        let text = words(&of_case(case));
        let (_, section) = text.split_once("What is not backed up ").unwrap();
        let (section, _) = section.split_once(" Advice ").unwrap();
        for word in present {
            assert!(section.contains(word), "{case}, {word}: {section}");
        }
        for word in absent {
            assert!(!section.contains(word), "{case}, {word}: {section}");
        }
    }
}

#[test]
fn advice_follows_driver_and_settings() {
    const DISK: &str = "backup.destination";
    let (sqlite, mysql, external) = ("sqlite-minimal", "mysql-minimal", "mysql-external-host");
    for (case, backup, expected) in [
        (sqlite, json!({}), &[DISK][..]),
        (sqlite, json!({"quiesce": "pause"}), &[DISK]),
        (
            sqlite,
            json!({"quiesce": "stop"}),
            &["backup.quiesce", DISK],
        ),
        (
            sqlite,
            json!({"quiesce": "none"}),
            &["backup.quiesce", DISK],
        ),
        (
            sqlite,
            json!({"quiesce": "stop", "stop_timeout_seconds": 11}),
            &["backup.quiesce", "backup.stop_timeout_seconds", DISK],
        ),
        (
            sqlite,
            json!({"quiesce": "pause", "stop_timeout_seconds": 11}),
            &[DISK],
        ),
        (
            sqlite,
            json!({"quiesce": "pause", "destination": "/mnt/backup"}),
            &[],
        ),
        // Beside the deploy directory, not in it.
        (
            sqlite,
            json!({"quiesce": "pause", "destination": "/opt/torrust-backup"}),
            &[],
        ),
        (
            sqlite,
            json!({"quiesce": "pause", "destination": "/opt/torrust/elsewhere"}),
            &[DISK],
        ),
        (mysql, json!({}), &[DISK]),
        (mysql, json!({"quiesce": "stop"}), &["backup.quiesce", DISK]),
        (
            mysql,
            json!({"quiesce": "pause"}),
            &["backup.quiesce", DISK],
        ),
        (
            mysql,
            json!({"verify_schedule": null}),
            &[DISK, "backup.verify_schedule"],
        ),
        (external, json!({}), &[DISK]),
        (
            external,
            json!({"verify_schedule": "0 5 * * *"}),
            &[DISK, "backup.verify_schedule"],
        ),
        (
            external,
            json!({"database_tls": {"verify": false}}),
            &[DISK, "backup.database_tls"],
        ),
        // Encrypted on the stack's own network is as good as it gets.
        (mysql, json!({"database_tls": {"verify": false}}), &[DISK]),
        (
            mysql,
            json!({"retention_days": 6}),
            &[DISK, "backup.retention_days"],
        ),
        (
            mysql,
            json!({"verify_schedule": null, "retention_days": 1}),
            &[DISK, "backup.verify_schedule"],
        ),
    ] {
        assert_eq!(keys(&with(case, &backup)), expected, "{case} {backup}");
    }
}

#[test]
fn retention_is_long_enough_for_three_backups_and_for_a_verification() {
    for (backup, change) in [
        (json!({"schedule": "0 3 * * SUN"}), "write 21 or more"),
        (json!({"schedule": "0 3 1 * *"}), "write 93 or more"),
        (
            json!({"verify_schedule": "0 3 1 * *", "retention_days": 30}),
            "write 31 or more",
        ),
        (
            json!({"schedule": "0 3 29 2 *", "retention_days": 3649}),
            "write 3650 or more",
        ),
        (
            json!({"schedule": "0 */12 * * *", "retention_days": 6}),
            "write 7 or more",
        ),
    ] {
        let explanation = with("mysql-minimal", &backup);
        let advice = explanation
            .advice
            .iter()
            .find(|advice| advice.key == "backup.retention_days");
        assert_eq!(advice.unwrap().change, change, "{backup}");
    }
    for backup in [
        json!({"schedule": "0 3 * * SUN", "retention_days": 21}),
        json!({"schedule": "0 3 29 2 *", "retention_days": 3650}),
        json!({"verify_schedule": "0 3 1 * *", "retention_days": 31}),
    ] {
        let explanation = with("mysql-minimal", &backup);
        assert!(
            !keys(&explanation).contains(&"backup.retention_days"),
            "{backup}"
        );
    }
}

#[test]
fn a_rollback_journal_speaks_against_a_sidecar_for_sqlite_alone() {
    let sidecar = |case| {
        let mut environment = read(&example(case));
        environment.backup.strategy = Strategy::Sidecar;
        explained(&environment)
    };
    let sqlite = sidecar("sqlite-minimal");
    assert_eq!(keys(&sqlite)[0], "backup.strategy");
    assert!(words(&sqlite).contains("beyond an estimated 5 s the run is refused"));
    assert_eq!(keys(&sidecar("mysql-full-stack")), [""; 0]);

    let stalled = with(
        "sqlite-minimal",
        &json!({"quiesce": "none", "allow_writer_stall": true}),
    );
    assert!(words(&stalled).contains("beyond its busy timeout, commonly 5 s, they fail"));
}

#[test]
fn what_is_as_recommended_is_said_to_be() {
    const FINE: &str = "Nothing to change: everything is as advised.";
    for (case, backup) in [
        ("mysql-full-stack", json!({})),
        (
            "sqlite-minimal",
            json!({"quiesce": "pause", "destination": "/mnt/backup"}),
        ),
        ("mysql-external-host", json!({"destination": "/mnt/backup"})),
    ] {
        let explanation = with(case, &backup);
        assert!(words(&explanation).ends_with(FINE), "{case}");
        assert_eq!(explanation.strategy, explanation.recommended.strategy);
    }
    assert!(!words(&of_case("sqlite-minimal")).contains(FINE));
}

#[test]
fn a_copy_elsewhere_is_told() {
    let mut explanation = of_case("mysql-minimal");
    assert!(words(&explanation).contains("Nothing is copied anywhere else."));
    explanation.remote = vec!["a repository".to_owned()];
    assert!(words(&explanation).contains("Copied to a repository."));
}

#[test]
fn no_password_is_told() {
    for (key, secret) in [("password", "s3cret-one"), ("root_password", "s3cret-two")] {
        let mut environment = example("mysql-full-stack");
        environment["tracker"]["core"]["database"][key] = json!(secret);
        let explanation = explained(&read(&environment));
        assert!(!explanation.to_string().contains(secret));
        assert!(!json(&explanation).contains(secret));
    }
}

#[test]
fn lines_fit_a_terminal_and_lose_no_word() {
    let place = "/mnt/a  place with   spaces and ü ".repeat(6) + "end";
    let explanation = with("sqlite-minimal", &json!({"destination": place}));
    let text = explanation.to_string();
    assert!(
        text.lines().all(|line| line.chars().count() <= 100),
        "{text}"
    );
    assert!(text.ends_with(".\n"));
    let squeezed = place.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words(&explanation).contains(&squeezed));
    for case in CASES {
        let text = of_case(case).to_string();
        assert!(
            text.lines()
                .all(|line| line.len() <= 100 && line.trim_end() == line)
        );
    }
}
