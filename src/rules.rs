//! Rules across keys: what is right by itself, and wrong beside another value.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::backup::{BackupConfig, Quiesce, Strategy};
use crate::database::{Database, MysqlServer};
use crate::monitoring::Notify;
use crate::problem::Problem;
use crate::restic::{Repository, Restic, VariableName};
use crate::shown;
use crate::topology::Service;

/// Directories of the host that a backup must neither lie in nor contain: the destination is made
/// 0700 for root, and these belong to others or do not outlive a restart.
const SYSTEM: [&str; 19] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var/lib/containerd",
    "/var/lib/docker",
    "/var/lib/tracker-backup",
    "/var/log",
    "/var/run",
    "/var/spool",
];
/// Directories that it must not be, although it may lie in them.
const SHARED: [&str; 8] = [
    "/home", "/media", "/mnt", "/opt", "/root", "/srv", "/tmp", "/var/tmp",
];
/// What lies in the deploy directory and is not the backups' place.
const TAKEN: [&str; 7] = [
    "backup",
    "storage/backup-staging",
    "storage/caddy",
    "storage/grafana",
    "storage/mysql",
    "storage/prometheus",
    "storage/tracker",
];

/// What of the deploy directory is archived in any case, or never.
const NOT_EXTRA: [&str; 6] = [
    ".env",
    "backup",
    "docker-compose.backup.yml",
    "docker-compose.yml",
    "storage/backup-staging",
    "storage/mysql",
];

const EXTRA_PATHS: &str = "backup.extra_paths";
const DRIVER: &str = "tracker.core.database.driver";
const DEPLOY_DIR: &str = "backup.deploy_dir";
const DESTINATION: &str = "backup.destination";
const HOST: &str = "tracker.core.database.host";

/// What contradicts itself, as far as it can be told: a rule that reads a value with a problem of
/// its own, one of `broken`, is left out.
pub fn contradictions(
    backup: &BackupConfig,
    database: &Database,
    broken: &BTreeSet<String>,
) -> Vec<Problem> {
    let mut rules = Rules {
        broken,
        problems: Vec::new(),
    };
    times(backup, database, &mut rules);
    places(backup, &mut rules);
    extra_paths(backup, &mut rules);
    sidecar(backup, &mut rules);
    if let Some(restic) = &backup.restic {
        remote(backup, restic, &mut rules);
    }
    if let Some(notify) = &backup.notify {
        notifications(notify, &mut rules);
    }
    if let Some(metrics) = &backup.metrics {
        textfiles(backup, metrics.textfile_dir.as_str(), &mut rules);
    }
    match database {
        Database::Sqlite { .. } => file(backup, &mut rules),
        Database::Mysql(server) => mysql(backup, database, server, &mut rules),
    }
    rules.problems
}

struct Rules<'a> {
    broken: &'a BTreeSet<String>,
    problems: Vec<Problem>,
}

impl Rules<'_> {
    /// The problem is the first path's; the rule has read all of them.
    fn refuse(&mut self, reads: &[&str], found: String, allowed: &str, fix: &str) {
        let below = |outer: &str, inner: &str| {
            inner
                .strip_prefix(outer)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let is_broken = |path: &&str| {
            self.broken
                .iter()
                .any(|bad| below(bad, path) || below(path, bad))
        };
        if !reads.iter().any(is_broken) {
            let (path, allowed, fix) = (reads[0].to_owned(), allowed.to_owned(), fix.to_owned());
            self.problems.push(Problem {
                path,
                found,
                allowed,
                fix,
            });
        }
    }
}

fn times(backup: &BackupConfig, database: &Database, rules: &mut Rules<'_>) {
    let quiesce = backup.quiesce(database);
    let stop = backup.stop_timeout_seconds.get();
    let window = backup.window_timeout_seconds.get();
    if quiesce == Quiesce::Stop && capture_seconds(window) <= stop {
        rules.refuse(
            &[
                "backup.window_timeout_seconds",
                "backup.stop_timeout_seconds",
                "backup.quiesce",
                DRIVER,
            ],
            format!(
                "{window}, of which two thirds are for stopping and capturing, while stopping \
                 alone may take {stop} (stop_timeout_seconds)"
            ),
            "more than one and a half times stop_timeout_seconds",
            "raise window_timeout_seconds, or lower stop_timeout_seconds",
        );
    }
}

/// The part of a window's time limit that is for stopping and capturing, in seconds.
///
/// The rest is for bringing the tracker back. `maintenance-backup.sh` computes the same.
pub fn capture_seconds(window_timeout_seconds: u32) -> u32 {
    window_timeout_seconds * 2 / 3
}

fn places(backup: &BackupConfig, rules: &mut Rules<'_>) {
    let deploy_dir = backup.deploy_dir.as_str();
    if let Some(why) = reserved(deploy_dir) {
        rules.refuse(
            &[DEPLOY_DIR],
            format!("{}, which {why}", shown::directory(DEPLOY_DIR, deploy_dir)),
            "a directory of the deployment's own",
            "write the directory that holds docker-compose.yml, for example \"/opt/torrust\"",
        );
        if backup.destination.is_none() {
            return;
        }
    }
    let destination = backup.destination();
    let destination = destination.as_str();
    let taken = || {
        TAKEN
            .iter()
            .map(|taken| format!("{deploy_dir}/{taken}"))
            .find(|taken| overlap(destination, taken))
            .map(|taken| format!("overlaps {}, which the deployment uses", unquoted(&taken)))
    };
    if let Some(why) = reserved(destination).or_else(taken) {
        rules.refuse(
            &[DESTINATION, DEPLOY_DIR],
            format!(
                "{}, which {why}",
                shown::directory(DESTINATION, destination)
            ),
            "a directory for the backups alone: only root can look into it afterwards",
            "write for example \"/mnt/backup/torrust\", or leave the key out for \
             <deploy_dir>/storage/backup",
        );
    }
}

/// Each byte of the deployment is archived at most once, and nothing of ours is.
fn extra_paths(backup: &BackupConfig, rules: &mut Rules<'_>) {
    let extra = &backup.extra_paths;
    let destination = backup.destination();
    let inside = destination
        .as_str()
        .strip_prefix(backup.deploy_dir.as_str())
        .and_then(|rest| rest.strip_prefix('/'));
    let listed = Service::ALL.into_iter().flat_map(Service::backup_paths);
    let known: Vec<(&str, String)> = NOT_EXTRA
        .into_iter()
        .chain(listed.map(|line| line.path()))
        .map(|path| (path, path.to_owned()))
        .chain(inside.map(|path| (path, DESTINATION.to_owned())))
        .collect();
    for (index, path) in extra.iter().enumerate() {
        let earlier = extra[..index].iter().enumerate();
        let earlier = earlier.map(|(at, path)| (path.as_str(), format!("{EXTRA_PATHS}.{at}")));
        let mut others = known.iter().cloned().chain(earlier);
        if let Some((_, other)) = others.find(|(other, _)| overlap(path.as_str(), other)) {
            rules.refuse(
                &[&format!("{EXTRA_PATHS}.{index}"), DESTINATION, DEPLOY_DIR],
                format!("a path that overlaps {other}"),
                "a path that no other line of the backup contains or lies in",
                "remove it: what the services of the environment file mount is archived already, \
                 databases are captured, and our own files come with the bundle",
            );
        }
    }
}

/// Why a directory of the host belongs to others, as the end of "which ...".
fn reserved(directory: &str) -> Option<String> {
    if let Some(system) = SYSTEM.iter().find(|system| overlap(directory, system)) {
        return Some(format!("overlaps {system}, used by others"));
    }
    let is_home = directory
        .strip_prefix("/home/")
        .is_some_and(|name| !name.contains('/'));
    if is_home {
        return Some("is the home directory of a user".to_owned());
    }
    if directory.split('/').any(|part| part == ".ssh") {
        return Some("has a part `.ssh`, where SSH keeps its keys".to_owned());
    }
    let is_shared = SHARED.contains(&directory);
    is_shared.then(|| "is shared with others".to_owned())
}

/// A directory of the system, or one that the keys of the directories name, for the middle of a
/// message.
fn unquoted(directory: &str) -> String {
    if shown::is_public(DESTINATION, directory) {
        directory.to_owned()
    } else {
        shown::directory(DESTINATION, directory)
    }
}

/// Whether one of two normal paths is the other, or lies in it.
fn overlap(a: &str, b: &str) -> bool {
    let contains = |outer: &str, inner: &str| {
        inner
            .strip_prefix(outer)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    contains(a, b) || contains(b, a)
}

fn sidecar(backup: &BackupConfig, rules: &mut Rules<'_>) {
    let touches_tracker = backup
        .quiesce
        .is_some_and(|quiesce| quiesce != Quiesce::None);
    if backup.strategy == Strategy::Sidecar && touches_tracker {
        rules.refuse(
            &["backup.quiesce", "backup.strategy"],
            "what a sidecar cannot do: it has no way to the tracker".to_owned(),
            "\"none\" with strategy \"sidecar\"",
            "remove it, or choose strategy \"maintenance-window\"",
        );
    }
}

fn remote(backup: &BackupConfig, restic: &Restic, rules: &mut Rules<'_>) {
    const REPOSITORY: &str = "backup.restic.repository";
    const KEY: &str = "backup.restic.ssh_private_key_path";
    const KNOWN_HOSTS: &str = "backup.restic.ssh_known_hosts_path";
    if let Some(directory) = restic.repository.directory() {
        let (directory, destination) = (directory.as_str(), backup.destination());
        let taken = [destination.as_str(), backup.deploy_dir.as_str()];
        let other = taken.iter().find(|other| overlap(directory, other));
        let other = other.map(|other| format!("overlaps {}", unquoted(other)));
        if let Some(why) = reserved(directory).or(other) {
            rules.refuse(
                &[REPOSITORY, DESTINATION, DEPLOY_DIR],
                format!("a directory that {why}"),
                "a directory for the repository alone, best on another disk",
                "write for example \"/mnt/restic/torrust\"",
            );
        }
    }
    let is_sftp = matches!(restic.repository, Repository::Sftp(_));
    let keys = [
        (
            KEY,
            &restic.ssh_private_key_path,
            "add a private key without a passphrase, made for this (ssh-keygen -t ed25519)",
        ),
        (
            KNOWN_HOSTS,
            &restic.ssh_known_hosts_path,
            "add what `ssh-keyscan HOST` writes, compared with the server's own keys",
        ),
    ];
    for (path, value, fix) in keys {
        if is_sftp && value.is_none() {
            rules.refuse(
                &[path, REPOSITORY],
                "nothing, with a repository behind SSH".to_owned(),
                "a path that begins with `/` or `~/`, of a file where Ansible runs",
                fix,
            );
        } else if !is_sftp && value.is_some() {
            rules.refuse(
                &[path, REPOSITORY],
                "a file that nothing reads: the repository is not behind SSH".to_owned(),
                "nothing, or a repository \"sftp:...\"",
                "remove it",
            );
        }
    }
    let given: Vec<_> = restic
        .environment
        .keys()
        .map(VariableName::as_str)
        .collect();
    let required = restic.repository.required_variables();
    for missing in required.iter().filter(|name| !given.contains(name)) {
        rules.refuse(
            &["backup.restic.environment", REPOSITORY],
            format!("no variable {missing}, which this repository needs"),
            &required.join(" and "),
            "add it",
        );
    }
    if [restic.keep_daily, restic.keep_weekly, restic.keep_monthly]
        .iter()
        .all(|keep| keep.get() == 0)
    {
        rules.refuse(
            &[
                "backup.restic.keep_daily",
                "backup.restic.keep_weekly",
                "backup.restic.keep_monthly",
            ],
            "0 everywhere: no snapshot would be kept".to_owned(),
            "at least one of keep_daily, keep_weekly and keep_monthly above 0",
            "write for example 7",
        );
    }
}

fn notifications(notify: &Notify, rules: &mut Rules<'_>) {
    const COMMAND: &str = "backup.notify.command";
    if notify.secrets().is_empty() {
        rules.refuse(
            &["backup.notify"],
            "nobody to notify".to_owned(),
            "at least one of ping_url, webhook_url, ntfy_url and command",
            "add one, or remove `notify`",
        );
    }
    let program = notify.command.first();
    if program.is_some_and(|program| !program.reveal().starts_with('/')) {
        rules.refuse(
            &[COMMAND],
            "a program without its path".to_owned(),
            "the absolute path of a program of the host, then its arguments",
            "write for example [\"/usr/bin/apprise\", \"--config=/etc/apprise.yml\"]",
        );
    }
}

/// The directory is not ours alone: an exporter reads it.
fn textfiles(backup: &BackupConfig, directory: &str, rules: &mut Rules<'_>) {
    const TEXTFILES: &str = "backup.metrics.textfile_dir";
    let destination = backup.destination();
    let deploy_dir = backup.deploy_dir.as_str();
    let taken = [destination.as_str(), deploy_dir, "/var/lib/tracker-backup"];
    if let Some(other) = taken.iter().find(|other| overlap(directory, other)) {
        rules.refuse(
            &[TEXTFILES, DESTINATION, DEPLOY_DIR],
            format!(
                "{}, which overlaps {}",
                shown::directory(TEXTFILES, directory),
                unquoted(other)
            ),
            "the directory where a node_exporter reads text files",
            "write for example \"/var/lib/prometheus/node-exporter\", or leave the key out",
        );
    }
}

fn file(backup: &BackupConfig, rules: &mut Rules<'_>) {
    if backup.database_tls.is_some() {
        rules.refuse(
            &["backup.database_tls", DRIVER],
            "settings for a server, with driver \"sqlite3\"".to_owned(),
            "nothing: a file is not reached over a network",
            "remove it",
        );
    }
}

fn mysql(backup: &BackupConfig, database: &Database, server: &MysqlServer, rules: &mut Rules<'_>) {
    let host = server.host.as_str();
    if host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified())
    {
        rules.refuse(
            &[HOST],
            format!("{host:?}, which in a container is that container itself"),
            "\"mysql\" for the stack's own server, or the name or address of another one",
            "write the name or address that the tracker's container reaches the server by",
        );
    }
    if backup.allow_writer_stall {
        rules.refuse(
            &["backup.allow_writer_stall", DRIVER],
            "true, with driver \"mysql\"".to_owned(),
            "false: a dump does not make the tracker wait",
            "remove it",
        );
    }
    let Some(tls) = &backup.database_tls else {
        return;
    };
    if tls.verify && tls.ca_file.is_none() && !database.is_elsewhere() {
        rules.refuse(
            &["backup.database_tls", HOST],
            "verification of the stack's own server, whose certificate is its own".to_owned(),
            "with \"ca_file\", the authority that signed the server's certificate; or \
             \"verify\": false",
            "add \"ca_file\", or remove database_tls",
        );
    }
    if !tls.verify && tls.ca_file.is_some() {
        rules.refuse(
            &["backup.database_tls.ca_file", "backup.database_tls.verify"],
            "a file that nothing reads, since \"verify\" is false".to_owned(),
            "nothing, or \"verify\": true",
            "remove one of the two",
        );
    }
}
