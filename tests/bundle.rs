//! What the files of a bundle mean, read back by others: bash, shlex, a YAML parser.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use common::{CASES, HOSTILE, Scratch, example};
use gen_backup_bundle::bundle::{code, compose, md, sh, yaml};
use proptest::prelude::*;
use serde_json::{Value, json};
use serde_yaml::Value as Yaml;

/// An example with hostile text wherever text may be; what must come out is in the second part.
fn hostile(text: &str) -> (Value, BTreeMap<&'static str, String>) {
    let mut environment = example("mysql-full-stack");
    let line = text.to_owned();
    let user = format!("u{}", text.split_whitespace().collect::<String>());
    let name = text.replace('/', "").replace("..", "");
    let path = format!("/srv/{}", text.replace('/', "").replace("..", ""));
    environment["environment"] = json!({"name": line, "instance_name": line, "description": line});
    environment["ssh_credentials"] =
        json!({"private_key_path": format!("~/{line}"), "username": user});
    let database = &mut environment["tracker"]["core"]["database"];
    database["database_name"] = json!(name);
    database["username"] = json!(line);
    database["password"] = json!(line);
    environment["backup"] = json!({
        "deploy_dir": format!("{path}/deploy"),
        "destination": format!("{path}/deploy/{name}"),
        "database_tls": {"ca_file": format!("{path}/ca.pem")},
    });
    let expected = [
        ("line", line.clone()),
        ("user", user),
        ("name", name.clone()),
        ("key", format!("~/{line}")),
        ("deploy", format!("{path}/deploy")),
        ("destination", format!("{path}/deploy/{name}")),
        ("ca", format!("{path}/ca.pem")),
    ];
    (environment, expected.into())
}

/// Lets bash source a file, in a directory where `touch` would show, and print some variables.
fn sourced(file: &Path, names: &[&str]) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let script = "set -eu; source \"$1\"; shift; for name; do printf '%s\\0' \"${!name}\"; done";
    let output = Command::new("bash")
        .args(["--norc", "-c", script, "bash"])
        .arg(file)
        .args(names)
        .current_dir(directory.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        directory.path().read_dir().unwrap().count(),
        0,
        "a value was executed"
    );
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_terminator('\0').map(str::to_owned).collect()
}

/// The KEY='value' lines of a file, each unquoted by shlex.
fn settings(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let words = lines.map(|line| <[String; 1]>::try_from(shlex::split(line).unwrap()).unwrap());
    words
        .map(|[word]| {
            word.split_once('=')
                .map(|(key, value)| (key.into(), value.into()))
                .unwrap()
        })
        .collect()
}

fn parsed(text: &str) -> Yaml {
    serde_yaml::from_str(text).unwrap()
}

fn untagged(value: &Yaml) -> &str {
    match value {
        Yaml::Tagged(tagged) => {
            assert_eq!(tagged.tag, "unsafe");
            tagged.value.as_str().unwrap()
        }
        other => panic!("{other:?} is not marked unsafe: Ansible would template it"),
    }
}

/// The compose fragment, and its services by name.
fn fragment(scratch: &Scratch) -> (Yaml, BTreeMap<String, Yaml>) {
    let file = parsed(&scratch.read("out/docker-compose.backup.yml"));
    let services = file["services"].as_mapping().unwrap().iter();
    let services = services.map(|(name, service)| {
        let Yaml::Tagged(service) = service else {
            panic!("{name:?} is not marked !override")
        };
        assert_eq!(service.tag, "override");
        (name.as_str().unwrap().to_owned(), service.value.clone())
    });
    (file.clone(), services.collect())
}

/// By target: the source of each mount, and whether it is read-only. A mask has no source.
fn mounts(service: &Yaml) -> BTreeMap<String, (String, bool)> {
    let volumes = service["volumes"].as_sequence().unwrap().iter();
    volumes
        .map(|volume| {
            let text = |key: &str| volume[key].as_str().unwrap_or_default().to_owned();
            let is_mask = volume["type"] == "tmpfs";
            assert!(is_mask || volume["bind"]["create_host_path"] == false);
            assert_eq!(is_mask, text("source").is_empty());
            let read_only = volume["read_only"].as_bool().unwrap_or(false);
            (text("target"), (text("source"), read_only))
        })
        .collect()
}

fn targets(service: &Yaml, read_only: bool) -> Vec<String> {
    let mounts = mounts(service).into_iter();
    mounts
        .filter(|(_, mount)| mount.1 == read_only)
        .map(|(target, _)| target)
        .collect()
}

/// A list of texts; nothing is an empty list.
fn names(list: &Yaml) -> Vec<String> {
    let list = list.as_sequence().into_iter().flatten();
    list.map(|name| name.as_str().unwrap().into()).collect()
}

#[test]
fn hostile_values_come_through_every_file() {
    for text in HOSTILE {
        let (environment, expected) = hostile(text);
        let scratch = Scratch::new(&environment);
        scratch.generate();

        let conf = ["DB_USER", "DB_NAME", "DB_TLS_CA_FILE", "DB_PASSWORD_FILE"];
        let values = sourced(&scratch.path("out/backup/backup.conf"), &conf);
        assert_eq!(
            values,
            [
                expected["line"].as_str(),
                &expected["name"],
                "/etc/backup/ca.pem",
                "/run/secrets/db_password"
            ]
        );
        let host = ["ENVIRONMENT", "DEPLOY_DIR", "DESTINATION"];
        let values = sourced(&scratch.path("out/host/tracker-backup.conf"), &host);
        assert_eq!(
            values,
            [
                &expected["line"],
                &expected["deploy"],
                &expected["destination"]
            ]
            .map(String::as_str)
        );
        assert_eq!(
            settings(&scratch.read("out/backup/backup.conf"))["DB_USER"],
            expected["line"]
        );
        assert_eq!(
            settings(&scratch.read("out/host/tracker-backup.conf"))["ENVIRONMENT"],
            expected["line"]
        );

        let variables = parsed(&scratch.read("out/variables.yml"));
        for (variable, name) in [
            ("backup_environment", "line"),
            ("backup_ssh_user", "user"),
            ("backup_ssh_private_key", "key"),
            ("backup_deploy_dir", "deploy"),
            ("backup_destination", "destination"),
        ] {
            assert_eq!(untagged(&variables[variable]), expected[name], "{variable}");
        }
        assert_eq!(variables["backup_host"], parsed("!unsafe ''"));
        assert_eq!(variables["backup_ssh_port"], 22);

        let undoubled = |text: &str| {
            assert_eq!(text.matches('$').count(), 2 * text.matches("$$").count());
            text.replace("$$", "$")
        };
        let services = fragment(&scratch).1;
        let covered = targets(&services["backup"], true);
        let destination = expected["destination"].strip_prefix(expected["deploy"].as_str());
        let destination = format!("/data{}", destination.unwrap());
        assert!(covered.iter().any(|path| undoubled(path) == destination));
        let ca_file = &mounts(&services["backup-client"])["/etc/backup/ca.pem"].0;
        assert_eq!(undoubled(ca_file), expected["ca"]);

        let mut environment = environment;
        environment["backup"]["strategy"] = json!("sidecar");
        let sidecar = Scratch::new(&environment);
        sidecar.generate();
        let (destination, read_only) = &mounts(&fragment(&sidecar).1["backup"])["/backups"];
        assert_eq!(undoubled(destination), expected["destination"]);
        assert!(!read_only);
        assert_eq!(scratch.read("out/secrets/db_password"), expected["line"]);
    }
}

#[test]
fn no_secret_is_anywhere_but_in_its_file() {
    let text = |name: &str| format!("{name}-s3cret");
    let bundle = |password: &str, root: &str| {
        let mut environment = example("mysql-full-stack");
        environment["tracker"]["core"]["database"]["password"] = json!(password);
        environment["tracker"]["core"]["database"]["root_password"] = json!(root);
        environment["tracker"]["http_api"]["admin_token"] = json!(text("token"));
        let scratch = Scratch::new(&environment);
        scratch.generate();
        let check = scratch.run(&["--check"]);
        assert!(!check.stdout.contains("s3cret") && !check.stderr.contains("s3cret"));
        scratch.tree()
    };
    let tree = bundle(&text("db"), &text("root"));
    for (path, (_, content)) in &tree {
        // The record of the secrets holds digests only.
        let is_secret =
            path.starts_with("secrets/") && !path.ends_with('/') && path != "secrets/.written";
        assert_eq!(
            String::from_utf8_lossy(content).contains("s3cret"),
            is_secret,
            "{path}"
        );
    }
    // Nothing that is committed, the manifest's digests included, tells one password from another.
    let other = bundle("another", "one");
    for (path, file) in tree
        .iter()
        .filter(|(path, _)| !path.starts_with("secrets/"))
    {
        assert_eq!(other[path], *file, "{path}");
    }
}

#[test]
fn the_networks_and_dependencies_are_what_the_database_needs() {
    let bridge = parsed("{backup_network: {driver: bridge}}");
    let healthy = parsed("{mysql: {condition: service_healthy}}");
    for (case, service, network, depends_on, own) in [
        (
            "mysql-minimal",
            "backup-client",
            "database_network",
            Some(&healthy),
            None,
        ),
        (
            "mysql-full-stack",
            "backup-client",
            "database_network",
            Some(&healthy),
            None,
        ),
        (
            "mysql-sidecar-s3",
            "backup-client",
            "database_network",
            Some(&healthy),
            None,
        ),
        (
            "mysql-external-host",
            "backup-client",
            "backup_network",
            None,
            Some(&bridge),
        ),
    ] {
        let (file, services) = fragment(&Scratch::generated(case));
        let client = &services[service];
        assert_eq!(names(&client["networks"]), [network], "{case}");
        assert_eq!(client.get("depends_on"), depends_on, "{case}");
        assert_eq!(file.get("networks"), own, "{case}");
    }
    for case in CASES {
        for (name, service) in fragment(&Scratch::generated(case)).1 {
            let connects = name == "backup-client";
            let alone = (!connects).then(|| parsed("none"));
            assert_eq!(
                service.get("network_mode"),
                alone.as_ref(),
                "{case}: {name}"
            );
            assert_eq!(
                service.get("networks").is_some(),
                connects,
                "{case}: {name}"
            );
            assert_eq!(service["ports"], parsed("[]"), "{case}: {name}");
        }
    }
}

#[test]
fn each_role_has_a_user_and_a_directory_of_its_own_and_no_secret() {
    for case in CASES.iter().filter(|case| !case.contains("sidecar")) {
        let (file, services) = fragment(&Scratch::generated(case));
        assert!(file.get("secrets").is_none());
        let roles: Vec<_> = services.keys().map(String::as_str).collect();
        let expected = ["backup", "backup-client", "backup-examiner"];
        let has_client = case.starts_with("mysql");
        let expected = expected
            .into_iter()
            .filter(|role| has_client || *role != "backup-client");
        assert_eq!(roles, expected.collect::<Vec<_>>(), "{case}");
        for (role, service) in &services {
            let (user, capabilities, memory) = match role.as_str() {
                "backup" => ("'0:0'", "[DAC_OVERRIDE]", "null"),
                "backup-examiner" => ("'64001:64001'", "null", "2g"),
                _ => ("'64101:64101'", "null", "2g"),
            };
            for (key, value) in [
                ("profiles", "[backup]"),
                ("restart", "'no'"),
                ("pull_policy", "never"),
                ("user", user),
                ("read_only", "true"),
                ("cap_drop", "[ALL]"),
                ("cap_add", capabilities),
                ("mem_limit", memory),
                ("security_opt", "['no-new-privileges:true']"),
                ("logging", "{driver: none}"),
                ("pids_limit", "64"),
                ("oom_score_adj", "500"),
                ("userns_mode", "host"),
                ("ulimits", "{core: 0}"),
                ("secrets", "null"),
            ] {
                let found = service.get(key).unwrap_or(&Yaml::Null);
                assert_eq!(*found, parsed(value), "{case}: {role}: {key}");
            }
            assert_eq!(targets(service, false), ["/work"], "{case}: {role}");
            let work = "./storage/backup-staging/${TRACKER_BACKUP_WORK:-none}";
            assert_eq!(mounts(service)["/work"].0, work);
        }
        let examiner = &services["backup-examiner"];
        assert!(targets(examiner, true).is_empty());
        assert!(examiner.get("tmpfs").is_none());
        if let Some(client) = services.get("backup-client") {
            assert_eq!(
                client["tmpfs"],
                parsed("['/run/client:mode=0700,uid=64101,gid=64101,size=1m']")
            );
            let has_ca = *case == "mysql-external-host";
            let seen = targets(client, true);
            assert_eq!(
                seen,
                ["/etc/backup/ca.pem"][..usize::from(has_ca)],
                "{case}"
            );
        }
    }
}

#[test]
fn the_reader_sees_the_deployment_but_no_secret_no_staging_and_no_backup() {
    for (case, destination) in [
        ("sqlite-minimal", Some("/data/storage/backup")),
        ("mysql-full-stack", None),
    ] {
        let reader = &fragment(&Scratch::generated(case)).1["backup"];
        let masks = ["/data/backup/secrets", "/data/storage/backup-staging"];
        let masks: Vec<_> = masks.into_iter().chain(destination).collect();
        let mounts = mounts(reader);
        let found: Vec<_> = mounts
            .iter()
            .filter(|(_, (source, _))| source.is_empty())
            .map(|(target, _)| target.as_str())
            .collect();
        let mut expected = masks.clone();
        expected.sort_unstable();
        assert_eq!(found, expected, "{case}");
        assert_eq!(mounts["/data"], (".".to_owned(), true));
        let mut seen = vec!["/data", "/etc/backup/backup-paths.txt"];
        seen.extend(masks);
        seen.sort_unstable();
        assert_eq!(targets(reader, true), seen, "{case}");
    }
}

#[test]
fn the_sidecars_services_have_what_the_roles_have_and_their_own_places_alone() {
    for (case, roles, masks) in [
        (
            "sqlite-sidecar",
            &["backup", "backup-examiner"][..],
            &[
                "/data/backup/secrets",
                "/data/storage/backup",
                "/data/storage/backup-staging",
            ][..],
        ),
        (
            "mysql-sidecar-s3",
            &["backup", "backup-client", "backup-examiner"],
            &[
                "/data/backup/secrets",
                "/data/storage/backup",
                "/data/storage/backup-staging",
            ],
        ),
    ] {
        let (file, services) = fragment(&Scratch::generated(case));
        let window = fragment(&Scratch::generated("mysql-full-stack")).1;
        assert_eq!(services.keys().collect::<Vec<_>>(), roles, "{case}");
        for (role, service) in &services {
            let (restart, capabilities, place, command) = match role.as_str() {
                // Cron needs SETGID.
                "backup" => (
                    "unless-stopped",
                    "[CHOWN, DAC_OVERRIDE, FOWNER, SETGID]",
                    "",
                    "[sidecar]",
                ),
                "backup-examiner" => (
                    "always",
                    "[SETGID, SETUID]",
                    "/examiner",
                    "[service, examiner]",
                ),
                _ => ("always", "[SETGID, SETUID]", "/client", "[service, client]"),
            };
            for (key, value) in [
                ("profiles", "null"),
                ("labels", "[tracker-backup.sidecar]"),
                ("restart", restart),
                ("command", command),
                ("user", "'0:0'"),
                ("cap_add", capabilities),
            ] {
                let found = service.get(key).unwrap_or(&Yaml::Null);
                assert_eq!(*found, parsed(value), "{case}: {role}: {key}");
            }
            for key in [
                "pull_policy",
                "init",
                "read_only",
                "cap_drop",
                "mem_limit",
                "security_opt",
                "userns_mode",
                "pids_limit",
                "oom_score_adj",
                "ulimits",
            ] {
                assert_eq!(service.get(key), window[role].get(key), "{role}: {key}");
            }
            let (target, written) = match role.as_str() {
                "backup" => ("/staging", &["/backups", "/staging"][..]),
                _ => ("/work", &["/work"][..]),
            };
            // Not the host's state, which holds the uploaded bundle: only its lock is taken.
            assert_eq!(targets(service, false), written, "{case}: {role}");
            let expected = format!("./storage/backup-staging{place}");
            assert_eq!(mounts(service)[target].0, expected, "{case}: {role}");
        }
        let core = &services["backup"];
        let found: Vec<_> = mounts(core)
            .into_iter()
            .filter(|(_, (source, _))| source.is_empty())
            .map(|(target, _)| target)
            .collect();
        assert_eq!(found, masks, "{case}");
        assert!(targets(&services["backup-examiner"], true).is_empty());
        let of_core = core.get("secrets").map(names).unwrap_or_default();
        let expected: &[&str] = if case.starts_with("mysql") {
            &["db_password"]
        } else {
            &[]
        };
        assert_eq!(of_core, expected, "{case}");
        for (role, service) in &services {
            assert!(role == "backup" || service.get("secrets").is_none());
        }
        for secret in of_core {
            let place = format!("./backup/secrets/{secret}");
            assert_eq!(file["secrets"][secret.as_str()]["file"], place.as_str());
        }
    }
}

#[test]
fn the_playbooks_get_every_secret() {
    for case in CASES {
        let scratch = Scratch::generated(case);
        let secrets = names(&parsed(&scratch.read("out/variables.yml"))["backup_secrets"]);
        let has_restic = scratch.read("out/backup/backup.conf").contains("RESTIC_");
        let of_restic = secrets.iter().any(|name| name.starts_with("restic_"));
        assert_eq!(of_restic, has_restic, "{case}");
        for secret in &secrets {
            let is_file_of_the_operator =
                ["restic_known_hosts", "restic_ssh_key"].contains(&secret.as_str());
            assert_eq!(
                scratch.path("out/secrets").join(secret).exists(),
                !is_file_of_the_operator
            );
        }
        let needs_none = ["sqlite-minimal", "sqlite-monitoring"].contains(&case);
        assert_eq!(secrets.is_empty(), needs_none);
    }
}

#[test]
fn backup_conf_says_what_to_capture() {
    for (case, expected) in [
        (
            "sqlite-minimal",
            "BACKUP_ALLOW_WRITER_STALL=false BACKUP_COMPRESSION=gzip BACKUP_MODE=single \
             BACKUP_PATHS_FILE=/etc/backup/backup-paths.txt BACKUP_RETENTION_DAYS=7 \
             BACKUP_SCOPE=full DB_PATH=/data/storage/tracker/lib/database/tracker.db \
             DB_TYPE=sqlite",
        ),
        (
            "mysql-external-host",
            "BACKUP_ALLOW_WRITER_STALL=false BACKUP_COMPRESSION=gzip BACKUP_MODE=single \
             BACKUP_PATHS_FILE=/etc/backup/backup-paths.txt BACKUP_RETENTION_DAYS=7 \
             BACKUP_SCOPE=full DB_HOST=db.example.org DB_NAME=torrust_tracker \
             DB_PASSWORD_FILE=/run/secrets/db_password DB_PORT=3307 DB_TLS=verified \
             DB_TLS_CA_FILE=/etc/backup/ca.pem DB_TYPE=mysql DB_USER=tracker_user",
        ),
        (
            "mysql-sidecar-s3",
            "BACKUP_ALLOW_WRITER_STALL=false BACKUP_COMPRESSION=gzip BACKUP_MODE=single \
             BACKUP_PATHS_FILE=/etc/backup/backup-paths.txt BACKUP_RETENTION_DAYS=7 \
             BACKUP_SCOPE=exclude-statistics DB_HOST=mysql DB_NAME=torrust_tracker \
             DB_PASSWORD_FILE=/run/secrets/db_password DB_PORT=3306 DB_TLS=unverified \
             DB_TYPE=mysql DB_USER=tracker_user RESTIC_CHECK=true \
             RESTIC_ENVIRONMENT_FILE=/run/secrets/restic_environment RESTIC_KEEP_DAILY=14 \
             RESTIC_KEEP_MONTHLY=6 RESTIC_KEEP_WEEKLY=4 \
             RESTIC_PASSWORD_FILE=/run/secrets/restic_password \
             RESTIC_REPOSITORY_FILE=/run/secrets/restic_repository",
        ),
        (
            "mysql-full-stack",
            "BACKUP_ALLOW_WRITER_STALL=false BACKUP_COMPRESSION=zstd BACKUP_MODE=single \
             BACKUP_PATHS_FILE=/etc/backup/backup-paths.txt BACKUP_RETENTION_DAYS=90 \
             BACKUP_SCOPE=full DB_HOST=mysql DB_NAME=torrust_tracker \
             DB_PASSWORD_FILE=/run/secrets/db_password DB_PORT=3306 \
             DB_ROOT_PASSWORD_FILE=/run/secrets/db_root_password DB_TLS=unverified \
             DB_TYPE=mysql DB_USER=tracker_user",
        ),
    ] {
        let settings = settings(&Scratch::generated(case).read("out/backup/backup.conf"));
        let pairs: Vec<_> = settings
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        assert_eq!(pairs.join(" "), expected, "{case}");
    }
}

#[test]
fn the_services_are_those_that_the_deployer_would_start() {
    let paths = |change: &dyn Fn(&mut Value)| {
        let mut environment = example("mysql-full-stack");
        change(&mut environment);
        let scratch = Scratch::new(&environment);
        scratch.generate();
        let list = scratch.read("out/backup/backup-paths.txt");
        ["mysql", "prometheus", "grafana", "caddy"]
            .map(|service| list.contains(&format!("/data/storage/{service}/")))
    };
    assert_eq!(paths(&|_| ()), [true, true, true, true]);
    assert_eq!(
        paths(&|e| e["tracker"]["core"]["database"]["host"] = json!("db.example.org")),
        [false, true, true, true]
    );
    assert_eq!(
        paths(&|e| e["prometheus"] = json!(null)),
        [true, false, true, true]
    );
    assert_eq!(
        paths(&|e| drop(e.as_object_mut().unwrap().remove("grafana"))),
        [true, true, false, true]
    );
    assert_eq!(
        paths(&|e| drop(e.as_object_mut().unwrap().remove("https"))),
        [true, true, true, false]
    );
    // An older file's section `caddy` adds no service, nor does `https` that nobody is behind.
    assert_eq!(
        paths(&|e| {
            e["tracker"] =
                json!({"core": e["tracker"]["core"], "http_trackers": [{"use_tls_proxy": false}]});
            e["grafana"] = json!({});
            e["caddy"] = json!({"enabled": true});
        }),
        [true, true, true, false]
    );
}

#[test]
fn quiesce_and_host_reach_their_files() {
    for (case, quiesce) in [
        ("sqlite-minimal", "pause"),
        ("sqlite-monitoring", "stop"),
        ("mysql-minimal", "none"),
    ] {
        let settings = settings(&Scratch::generated(case).read("out/host/tracker-backup.conf"));
        assert_eq!(settings["QUIESCE"], quiesce);
        assert_eq!(settings["IMAGE_SOURCE"], "build");
    }
    let external = Scratch::of("mysql-external-host");
    assert_eq!(external.run(&["--host", "2001:db8::7"]).status, 0);
    let settings = settings(&external.read("out/host/tracker-backup.conf"));
    assert_eq!(
        (
            settings["IMAGE_SOURCE"].as_str(),
            settings["IMAGE"].as_str()
        ),
        ("pull", "registry.example.org/torrust/tracker-backup:1.0")
    );
    assert_eq!(
        untagged(&parsed(&external.read("out/variables.yml"))["backup_host"]),
        "2001:db8::7"
    );
    assert!(
        external
            .read("out/README.md")
            .contains("| Host | `2001:db8::7` |")
    );
}

#[test]
fn the_cron_file_is_one_that_cron_reads() {
    for case in CASES {
        let cron = Scratch::generated(case).read("out/host/tracker-backup.cron");
        assert!(cron.ends_with("2>&1\n") && !cron.contains('%') && !cron.contains('\r'));
        let jobs: Vec<_> = cron
            .lines()
            .filter(|line| line.contains(" root "))
            .collect();
        // A missed run is made up for, unless that would stop the tracker: at boot, every minute.
        let catching_up = if case == "sqlite-monitoring" { 0 } else { 2 };
        let found = jobs.iter().filter(|job| job.contains("catch-up")).count();
        assert_eq!(found, catching_up, "{case}");
        if case.contains("sidecar") {
            // What keeps the sidecar there, and verification: the schedule is the sidecar's.
            assert!(jobs[0].starts_with("* * * * * root "));
            assert!(jobs[0].contains("; flock -n $STATE/minute tracker-backup sidecar "));
            assert_eq!(jobs.len(), 2 + catching_up);
            continue;
        }
        // The run, recovery at boot and every minute, and verification unless it is disabled.
        assert_eq!(
            jobs.len(),
            catching_up + if case == "mysql-external-host" { 3 } else { 4 }
        );
        assert_eq!(jobs[0].split_whitespace().nth(5), Some("root"));
        assert!(jobs[1].starts_with("@reboot root ") && jobs[2].starts_with("* * * * * root "));
    }
}

#[test]
fn extra_paths_are_the_last_lines_of_the_path_list() {
    let mut environment = example("sqlite-minimal");
    environment["backup"]["extra_paths"] = json!(["storage/index", "more files/a.toml"]);
    let scratch = Scratch::new(&environment);
    scratch.generate();
    let lines = scratch.read("out/backup/backup-paths.txt");
    assert!(lines.ends_with("/data/storage/index\n/data/more files/a.toml\n"));
}

#[test]
fn a_jitter_delays_the_scheduled_run_alone() {
    let mut environment = example("sqlite-minimal");
    environment["backup"]["jitter_seconds"] = json!(300);
    let scratch = Scratch::new(&environment);
    scratch.generate();
    let cron = scratch.read("out/host/tracker-backup.cron");
    let delayed: Vec<_> = cron.lines().filter(|line| line.contains("sleep")).collect();
    // Cron takes a `%` for a newline, unless a backslash stands before it.
    let expected = r"0 3 * * * root sleep $((0x$(head -c 7 /etc/machine-id) \% (300 + 1))); ";
    assert_eq!(delayed.len(), 1);
    assert!(delayed[0].starts_with(&format!("{expected}/usr/local/bin/maintenance-backup.sh ")));
}

#[test]
fn the_manifest_names_every_file_but_itself_and_the_secrets() {
    let scratch = Scratch::generated("mysql-full-stack");
    let manifest: Value = serde_json::from_str(&scratch.read("out/manifest.json")).unwrap();
    let named: Vec<_> = manifest["files"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    let is_listed = |path: &String| {
        !path.ends_with('/') && !path.starts_with("secrets/") && path != "manifest.json"
    };
    let tree = scratch.tree();
    assert_eq!(
        named,
        tree.keys()
            .filter(|path| is_listed(path))
            .cloned()
            .collect::<Vec<_>>()
    );
    for path in named {
        let (mode, content) = &tree[&path];
        let entry = &manifest["files"][&path];
        assert_eq!(
            entry["sha256"],
            gen_backup_bundle::bundle::sha256(content),
            "{path}"
        );
        assert_eq!(entry["executable"], mode & 0o100 != 0, "{path}");
    }
    assert_eq!(manifest["format"], 1);
    assert_eq!(
        manifest["generator"],
        concat!("gen-backup-bundle ", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn every_text_file_ends_in_one_newline_and_has_no_line_ends_of_windows() {
    for case in CASES {
        for (path, (_, content)) in Scratch::generated(case).tree() {
            if path.ends_with('/') || path.starts_with("secrets/") {
                continue;
            }
            let text = String::from_utf8(content).unwrap();
            assert!(
                text.ends_with('\n') && !text.ends_with("\n\n") && !text.contains('\r'),
                "{case}: {path}"
            );
        }
    }
}

#[test]
fn hostile_names_do_not_break_the_readme() {
    for text in HOSTILE {
        let (environment, _) = hostile(text);
        let scratch = Scratch::new(&environment);
        scratch.generate();
        let readme = scratch.read("out/README.md");
        // The same lines, table rows and fences as with a harmless name.
        let shape = |text: &str| -> Vec<(bool, usize)> {
            let cells = |line: &str| line.matches('|').count();
            text.lines()
                .map(|line| (line.starts_with("```"), cells(line)))
                .collect()
        };
        let (harmless, _) = hostile("harmless");
        let other = Scratch::new(&harmless);
        other.generate();
        assert_eq!(
            shape(&readme),
            shape(&other.read("out/README.md")),
            "{text}"
        );
    }
    assert_eq!(md("a|b *c* <d> `e` \\"), r"a&#124;b \*c\* \<d\> \`e\` \\");
    assert_eq!(code("plain"), "`plain`");
    assert_eq!(code("a|`b`"), r"<code>a&#124;\`b\`</code>");
}

proptest! {
    #[test]
    fn sh_is_read_back_by_shlex(text in "\\PC*|[ -~]*|.*") {
        let text = text.replace('\0', "");
        prop_assert_eq!(shlex::split(&sh(&text)), Some(vec![text]));
    }

    #[test]
    fn yaml_is_one_line_and_read_back(text in "\\PC*|[ -~]*|.*") {
        let quoted = yaml(&text);
        let has_break = quoted.contains(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']);
        prop_assert!(!has_break);
        let list = parsed(&format!("- {quoted}\n"));
        prop_assert_eq!(list[0].as_str(), Some(text.as_str()));
        let doubled = parsed(&compose(&text));
        prop_assert_eq!(doubled.as_str().map(|text| text.replace("$$", "$")), Some(text));
    }
}
