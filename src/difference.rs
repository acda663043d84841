//! How two bundles differ: a diff of many lines, and in a few words what that means for the host.
//!
//! The words are read from the files of both bundles, so the old one may be of another version.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

/// How a directory differs from a bundle, secrets apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// The unified diff.
    pub diff: String,
    /// How many files differ.
    pub files: usize,
    /// What explains the difference, each in one line.
    pub notes: Vec<String>,
    /// What the difference means for the host.
    pub changes: Vec<Change>,
}

/// Something that differs between two bundles, in words. Absence is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Change {
    pub what: String,
    pub before: Option<String>,
    pub after: Option<String>,
}

/// The rendered files that say what a host does.
const HOST: &str = "host/tracker-backup.conf";
const CRON: &str = "host/tracker-backup.cron";
const SETTINGS: &str = "backup/backup.conf";
const PATHS: &str = "backup/backup-paths.txt";
const FRAGMENT: &str = "docker-compose.backup.yml";
const VARIABLES: &str = "variables.yml";
const RENDERED: [&str; 6] = [HOST, CRON, SETTINGS, PATHS, FRAGMENT, VARIABLES];

/// Settings that have words of their own. The value stands as it is, and a unit after it.
const NAMED: [(&str, &str, &str); 13] = [
    ("ENVIRONMENT", "environment", ""),
    ("DEPLOY_DIR", "deploy directory", ""),
    ("DESTINATION", "destination", ""),
    ("STRATEGY", "strategy", ""),
    ("SCHEDULE", "schedule", ""),
    ("BACKUP_RETENTION_DAYS", "retention", " days"),
    ("STOP_TIMEOUT_SECONDS", "killed when stopping takes", " s"),
    ("CATCH_UP_HOURS", "missed runs made up for", " hours"),
    ("JITTER_SECONDS", "later than scheduled by", " s at most"),
    ("METRICS_DIRECTORY", "metrics", ""),
    ("BACKUP_SCOPE", "database scope", ""),
    ("BACKUP_COMPRESSION", "compression", ""),
    ("RESTIC_DIRECTORY", "restic repository", ""),
];
/// Settings that other facts hold already, or that follow from another setting.
const IMPLIED: [&str; 13] = [
    "QUIESCE",
    "WINDOW_TIMEOUT_SECONDS",
    "LONGEST_INTERVAL_SECONDS",
    "CALENDAR",
    "VERIFY_INTERVAL_SECONDS",
    "VERSION",
    "IMAGE",
    "IMAGE_SOURCE",
    "DB_TYPE",
    "DB_PATH",
    "DB_NAME",
    "DB_HOST",
    "DB_PORT",
];

/// What a bundle makes a host do, by what it is about.
#[derive(Default)]
pub struct Facts {
    /// In the order in which a person reads them.
    facts: Vec<(String, String)>,
    paths: BTreeSet<String>,
}

impl Facts {
    /// Reads the files of a bundle; `file` gives the text of the one at a path.
    ///
    /// A file that is not there, or is something else, says nothing.
    pub fn read(file: impl Fn(&str) -> Option<String>) -> Self {
        let text = |path| file(path).unwrap_or_default();
        let (host, cron, paths) = (text(HOST), text(CRON), text(PATHS));
        let mut settings = settings(&host);
        settings.extend(self::settings(&text(SETTINGS)));
        let mut facts = Vec::new();
        let mut add = |what: &str, fact: Option<String>| {
            facts.extend(fact.map(|fact| (what.to_owned(), fact)));
        };
        for (key, what, unit) in NAMED {
            let value = settings.get(key);
            add(what, value.map(|value| format!("{value}{unit}")));
        }
        add("verification", verification(&cron));
        add("the tracker during a run", tracker(&settings));
        add("database", database(&settings));
        add("image", image(&settings));
        let is_named = |key: &str| NAMED.iter().any(|(named, ..)| *named == key);
        for (key, value) in &settings {
            if !is_named(key) && !IMPLIED.contains(&key.as_str()) {
                add(key, Some(value.clone()));
            }
        }
        let fragment = yaml(&text(FRAGMENT));
        add("services of ours", words(&fragment, "services"));
        add("networks of ours", words(&fragment, "networks"));
        let variables = yaml(&text(VARIABLES));
        for (key, what) in [
            ("backup_host", "host"),
            ("backup_ssh_user", "SSH user"),
            ("backup_ssh_port", "SSH port"),
            ("backup_ssh_private_key", "SSH key"),
        ] {
            add(what, scalar(&variables[key]));
        }
        add("secrets", words(&variables, "backup_secrets"));
        let is_path = |line: &&str| !line.is_empty() && !line.starts_with('#');
        Self {
            facts,
            paths: paths.lines().filter(is_path).map(str::to_owned).collect(),
        }
    }
}

/// What is another in the new bundle, where files at these paths differ.
#[must_use]
pub fn changes(old: &Facts, new: &Facts, differing: &[&str]) -> Vec<Change> {
    let mut changes = Vec::new();
    let find = |facts: &Facts, what: &str| {
        let fact = facts.facts.iter().find(|(name, _)| name == what);
        fact.map(|(_, fact)| fact.clone())
    };
    let is_gone = |(what, _): &&(String, String)| find(new, what).is_none();
    for (what, _) in new.facts.iter().chain(old.facts.iter().filter(is_gone)) {
        let (before, after) = (find(old, what), find(new, what));
        if before != after {
            changes.push(Change {
                what: what.clone(),
                before,
                after,
            });
        }
    }
    let only = |these: &BTreeSet<String>, others: &BTreeSet<String>| {
        let only: Vec<_> = these.difference(others).map(String::as_str).collect();
        (!only.is_empty()).then(|| only.join(", "))
    };
    let (before, after) = (only(&old.paths, &new.paths), only(&new.paths, &old.paths));
    if before.is_some() || after.is_some() {
        let what = "archived paths".to_owned();
        changes.push(Change {
            what,
            before,
            after,
        });
    }
    let is_program = |path: &&&str| {
        !RENDERED.contains(path) && ["host/", "backup/"].iter().any(|of| path.starts_with(of))
    };
    let programs = differing.iter().filter(is_program).count();
    if programs > 0 {
        changes.push(Change {
            what: "programs".to_owned(),
            before: None,
            after: Some(format!(
                "{programs} files of the host's program and of the image"
            )),
        });
    }
    changes.extend(touched(old, new, differing));
    changes
}

/// What applying the new bundle does to the services of the stack.
fn touched(old: &Facts, new: &Facts, differing: &[&str]) -> Option<Change> {
    let strategy = |facts: &Facts| {
        let fact = facts.facts.iter().find(|(what, _)| what == "strategy");
        fact.map(|(_, strategy)| strategy.clone())
    };
    let is_sidecar = |facts| strategy(facts).as_deref() == Some("sidecar");
    let is_of_service =
        |path: &&str| *path == FRAGMENT || *path == HOST || path.starts_with("backup/");
    let after = match (is_sidecar(old), is_sidecar(new)) {
        (false, true) => "backup (ours) is started; no other",
        (true, false) => "backup (ours) is removed; no other",
        (true, true) if differing.iter().any(is_of_service) => {
            "backup (ours) is made again; no other"
        }
        _ if differing.iter().any(is_of_service) => "none",
        _ => return None,
    };
    Some(Change {
        what: "services restarted".to_owned(),
        before: None,
        after: Some(after.to_owned()),
    })
}

/// The lines `KEY='value'` of a file of ours.
fn settings(text: &str) -> BTreeMap<String, String> {
    let setting = |line: &str| {
        let (key, value) = line.split_once('=')?;
        let value = value.strip_prefix('\'')?.strip_suffix('\'')?;
        let is_key = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
        let key = key.bytes().all(is_key).then(|| key.to_owned())?;
        Some((key, value.replace("'\\''", "'")))
    };
    text.lines().filter_map(setting).collect()
}

/// When the newest backup is verified: the five fields of that line of cron.
fn verification(cron: &str) -> Option<String> {
    let line = cron
        .lines()
        .find(|line| line.contains("/tracker-backup verify"))?;
    Some(line.split(' ').take(5).collect::<Vec<_>>().join(" "))
}

fn tracker(settings: &BTreeMap<String, String>) -> Option<String> {
    let window = || settings.get("WINDOW_TIMEOUT_SECONDS");
    let at_most = || window().map_or_else(String::new, |most| format!(", at most {most} s"));
    Some(match settings.get("QUIESCE")?.as_str() {
        "stop" => format!("stopped{}", at_most()),
        "pause" => format!("frozen{}", at_most()),
        "none" => "runs on".to_owned(),
        other => other.to_owned(),
    })
}

fn database(settings: &BTreeMap<String, String>) -> Option<String> {
    let (kind, get) = (settings.get("DB_TYPE")?, |key| settings.get(key));
    Some(
        match (
            get("DB_PATH"),
            get("DB_NAME"),
            get("DB_HOST"),
            get("DB_PORT"),
        ) {
            (Some(path), ..) => format!("{kind}, {path}"),
            (None, Some(name), Some(host), Some(port)) => {
                format!("{kind}, {name} on {host}:{port}")
            }
            _ => kind.clone(),
        },
    )
}

fn image(settings: &BTreeMap<String, String>) -> Option<String> {
    let image = settings.get("IMAGE")?;
    Some(match settings.get("IMAGE_SOURCE").map(String::as_str) {
        Some("build") => format!("{image}, built on the host"),
        Some("pull") => format!("{image}, pulled"),
        _ => image.clone(),
    })
}

fn yaml(text: &str) -> serde_yaml::Value {
    serde_yaml::from_str(text).unwrap_or_default()
}

/// A text or a number, with or without a tag.
fn scalar(value: &serde_yaml::Value) -> Option<String> {
    match value {
        serde_yaml::Value::Tagged(tagged) => scalar(&tagged.value),
        serde_yaml::Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
        serde_yaml::Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The names in a list, or the keys of a map.
fn words(document: &serde_yaml::Value, key: &str) -> Option<String> {
    let names: Vec<String> = match &document[key] {
        serde_yaml::Value::Sequence(items) => items.iter().filter_map(scalar).collect(),
        serde_yaml::Value::Mapping(map) => map.keys().filter_map(scalar).collect(),
        _ => Vec::new(),
    };
    (!names.is_empty()).then(|| names.join(", "))
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<26}", self.what)?;
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => write!(f, "{before} -> {after}"),
            (Some(before), None) => write!(f, "no longer {before}"),
            (None, after) => f.write_str(after.as_deref().unwrap_or_default()),
        }
    }
}
