//! Reads an environment file: JSON, schema, domain types, rules across keys; all problems at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_path_to_error::Segment;

use crate::backup::BackupConfig;
use crate::database::Database;
use crate::error::{Error, MOST_BYTES};
use crate::json;
use crate::monitoring::Notify;
use crate::problem::Problem;
use crate::restic::{Restic, VariableName};
use crate::rules::contradictions;
use crate::schema::{self, nearest};
use crate::shown;
use crate::syntax::SyntaxProblem;
use crate::topology::{EnabledServices, Service};
use crate::value::{KeyPath, Line, Refusal, Secret, SecretName, UserName, no_control_characters};

/// What we take from the deployer's file, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Environment {
    pub identity: Identity,
    pub ssh: SshCredentials,
    pub database: Database,
    pub services: EnabledServices,
    pub backup: BackupConfig,
}

/// The section `environment`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[allow(missing_docs)]
pub struct Identity {
    pub name: Line,
    pub instance_name: Option<Line>,
    pub description: Option<Line>,
}

/// The section `ssh_credentials`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[allow(missing_docs)]
pub struct SshCredentials {
    pub private_key_path: KeyPath,
    /// Nobody needs it for backups; its form is checked.
    #[serde(skip_serializing)]
    pub public_key_path: Option<KeyPath>,
    #[serde(default = "default_username")]
    pub username: UserName,
    #[serde(default = "default_port")]
    pub port: u16,
}

fn default_username() -> UserName {
    "torrust".parse().expect("the default user name is valid")
}

const fn default_port() -> u16 {
    22
}

/// The parts of the file that we read, in the file's own shape.
#[derive(Deserialize)]
struct Document {
    environment: Identity,
    ssh_credentials: SshCredentials,
    tracker: Tracker,
    mysql: Option<MysqlSection>,
    prometheus: Option<Value>,
    grafana: Option<Proxied>,
    https: Option<Value>,
    backup: BackupConfig,
}

/// The deployer's settings for the stack's own MySQL server.
#[derive(Deserialize)]
struct MysqlSection {
    root_password: Option<Secret>,
}

#[derive(Deserialize)]
struct Tracker {
    core: Core,
    http_trackers: Option<Vec<Proxied>>,
    http_api: Option<Proxied>,
}

#[derive(Deserialize)]
struct Core {
    database: Database,
}

#[derive(Deserialize)]
struct Proxied {
    domain: Option<String>,
    use_tls_proxy: Option<bool>,
}

impl Proxied {
    /// Whether the deployer starts Caddy for it.
    fn is_behind_caddy(&self) -> bool {
        self.use_tls_proxy == Some(true)
            && self
                .domain
                .as_ref()
                .is_some_and(|domain| !domain.is_empty())
    }
}

impl Document {
    fn services(&self) -> EnabledServices {
        // Without `health_check_api`: it alone does not start Caddy.
        let proxied = (self.tracker.http_trackers.iter().flatten())
            .chain(&self.tracker.http_api)
            .chain(&self.grafana)
            .any(Proxied::is_behind_caddy);
        let others = [
            (self.tracker.core.database.is_in_stack(), Service::Mysql),
            (self.prometheus.is_some(), Service::Prometheus),
            (self.grafana.is_some(), Service::Grafana),
            (self.https.is_some() && proxied, Service::Caddy),
        ];
        EnabledServices::with_tracker(
            others
                .into_iter()
                .filter_map(|(enabled, service)| enabled.then_some(service)),
        )
    }
}

/// The database, with the root password of the stack's own server from where the deployer keeps it.
fn with_root_password(mut database: Database, mysql: Option<MysqlSection>) -> Database {
    let is_own = database.is_in_stack();
    if let Database::Mysql(server) = &mut database
        && is_own
        && server.root_password.is_none()
    {
        server.root_password = mysql.and_then(|section| section.root_password);
    }
    database
}

impl Environment {
    /// The secrets that a backup needs, apart from those that are files where Ansible runs.
    #[must_use]
    pub fn secrets(&self) -> BTreeMap<SecretName, Secret> {
        let notify = self.backup.notify.iter().flat_map(Notify::secrets);
        let restic = self.backup.restic.iter().flat_map(Restic::secrets);
        let others = notify.chain(restic);
        self.database.secrets().into_iter().chain(others).collect()
    }

    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let (document, duplicates) = Self::parse(path)?;
        Self::check(document, duplicates).map_err(|problems| Error::Invalid {
            path: shown_path(path).into(),
            problems,
        })
    }

    /// Checks a file. If `allow_disabled`, it needs no section `backup`.
    pub fn validate(path: &Path, allow_disabled: bool) -> Result<(), Error> {
        let (mut document, duplicates) = Self::parse(path)?;
        if allow_disabled && let Some(sections) = document.as_object_mut() {
            let is_meant = nearest("backup", sections.keys()).is_some_and(|key| key != "backup")
                || holder(sections, "backup").is_some();
            if !is_meant && sections.get("backup").is_none_or(Value::is_null) {
                sections.insert("backup".to_owned(), serde_json::json!({}));
            }
        }
        let checked = Self::check(document, duplicates);
        checked.map(drop).map_err(|problems| Error::Invalid {
            path: shown_path(path).into(),
            problems,
        })
    }

    /// The document of a file, and the paths of the keys that stand in it twice.
    fn parse(path: &Path) -> Result<(Value, Vec<String>), Error> {
        let bytes = read_bytes(path)?;
        let path = shown_path(path);
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            let line = bytes[..error.valid_up_to()].split(|&b| b == b'\n').count();
            Error::NotUtf8 {
                path: path.into(),
                line,
            }
        })?;
        // Some editors put a byte order mark first; it is no part of the JSON.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let (document, duplicates) = json::parse(text).map_err(|error| Error::Syntax {
            path: path.into(),
            problem: SyntaxProblem::new(text, &error),
        })?;
        if is_state_file(path, &document) {
            return Err(Error::StateFile { path: path.into() });
        }
        Ok((document, duplicates))
    }

    /// Checks a parsed file, and goes on after a problem to find the others.
    fn check(mut document: Value, duplicates: Vec<String>) -> Result<Self, Vec<Problem>> {
        put_on_one_line(&mut document, "environment.description");
        let mut problems: Vec<Problem> = duplicates.into_iter().map(duplicate).collect();
        problems.extend(not_enabled(&document));
        problems.extend(control_characters(&document));
        problems.extend(schema::problems(&document));
        problems.extend(malformed_variables(&document));
        let mut seen = BTreeSet::new();
        problems.retain(|problem| seen.insert(problem.path.clone()));

        // Examples replace the wrong values, so that the rules across other keys can be checked.
        for path in &seen {
            json::replace(&mut document, path, schema::example(path));
        }
        forget_servers(&mut document);
        if let Some(document) = read_types(&mut document, &mut problems) {
            let broken = problems
                .iter()
                .map(|problem| problem.path.clone())
                .collect();
            let database = &document.tracker.core.database;
            problems.extend(contradictions(&document.backup, database, &broken));
            if problems.is_empty() {
                return Ok(Self {
                    services: document.services(),
                    identity: document.environment,
                    ssh: document.ssh_credentials,
                    database: with_root_password(document.tracker.core.database, document.mysql),
                    backup: document.backup,
                });
            }
        }
        problems.sort_by(|a, b| a.path.cmp(&b.path));
        Err(problems)
    }
}

/// Reads the file, or standard input for `-`. What is too large is not read.
fn read_bytes(path: &Path) -> Result<Vec<u8>, Error> {
    let fail = |source| Error::Read {
        path: shown_path(path).into(),
        source,
    };
    let too_large = || Error::TooLarge {
        path: shown_path(path).into(),
    };
    let file: Box<dyn Read> = if path == Path::new(STANDARD_INPUT) {
        Box::new(io::stdin().lock())
    } else {
        let file = File::open(path).map_err(fail)?;
        if file.metadata().map_err(fail)?.len() > MOST_BYTES {
            return Err(too_large());
        }
        Box::new(file)
    };
    // A device and a pipe have no length.
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(too_large());
    }
    Ok(bytes)
}

/// What stands for standard input where a file is asked for.
pub const STANDARD_INPUT: &str = "-";

fn shown_path(path: &Path) -> &Path {
    if path == Path::new(STANDARD_INPUT) {
        Path::new("standard input")
    } else {
        path
    }
}

/// Whether this is what the deployer keeps in `data/NAME/environment.json`: the name of a state,
/// and in it the context.
fn is_state_file(path: &Path, document: &Value) -> bool {
    let Some(sections) = document.as_object() else {
        return false;
    };
    let has_its_shape = sections.len() == 1
        && sections
            .values()
            .all(|state| json::get(state, "context.user_inputs").is_some());
    let mut names = path.iter().rev().map(|name| name.to_string_lossy());
    let has_its_name = names.next().is_some_and(|name| name == "environment.json")
        && names.nth(1).is_some_and(|name| name == "data");
    let is_environment = ["environment", "ssh_credentials", "tracker", "backup"]
        .iter()
        .any(|section| sections.contains_key(*section));
    has_its_shape || (has_its_name && !is_environment)
}

fn duplicate(path: String) -> Problem {
    Problem {
        path,
        found: "the same key twice".to_owned(),
        allowed: "each key once".to_owned(),
        fix: "remove one of the two".to_owned(),
    }
}

fn not_enabled(document: &Value) -> Option<Problem> {
    const ADD: &str =
        "add \"backup\": {} beside \"environment\" to enable backups with every default";
    let sections = document.as_object()?;
    let (found, fix) = match sections.get("backup") {
        Some(Value::Null) => ("null: backups are not enabled".to_owned(), ADD),
        Some(_) => return None,
        None => match (
            nearest("backup", sections.keys()),
            holder(sections, "backup"),
        ) {
            (Some(other), _) => (
                format!("nothing, but a section {}", shown::key("", other)),
                ADD,
            ),
            (None, Some(other)) => (
                format!("nothing, but it stands in {}", shown::key("", other)),
                "move it out of there, beside \"environment\"",
            ),
            (None, None) => ("nothing: backups are not enabled".to_owned(), ADD),
        },
    };
    Some(Problem {
        path: "backup".to_owned(),
        found,
        allowed: "an object".to_owned(),
        fix: fix.to_owned(),
    })
}

/// Line breaks of a text for people become spaces.
fn put_on_one_line(document: &mut Value, path: &str) {
    let Some(text) = json::get(document, path).and_then(Value::as_str) else {
        return;
    };
    if text.contains('\n') {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let line = Value::from(lines.join(" ").trim());
        json::replace(document, path, Some(&line));
    }
}

/// The section that holds a key which belongs beside it.
fn holder<'a>(sections: &'a serde_json::Map<String, Value>, key: &str) -> Option<&'a str> {
    let holds = |(_, section): &(&String, &Value)| section.get(key).is_some();
    let (name, _) = sections.iter().find(holds)?;
    Some(name)
}

fn control_characters(document: &Value) -> Vec<Problem> {
    let mut problems = Vec::new();
    for section in ["environment", "ssh_credentials", "tracker", "backup"] {
        let Some(value) = document.get(section) else {
            continue;
        };
        json::each_string(value, section, &mut |path, text| {
            if let Err(refusal) = no_control_characters(text) {
                problems.push(refused(path, text, refusal));
            }
        });
    }
    problems
}

/// Keys that nobody reads when the database is a file, and that are not checked then.
fn forget_servers(document: &mut Value) {
    let driver = json::get(document, "tracker.core.database.driver");
    if driver.and_then(Value::as_str) != Some("sqlite3") {
        return;
    }
    for path in [
        "mysql",
        "tracker.core.database.host",
        "tracker.core.database.port",
        "tracker.core.database.username",
        "tracker.core.database.password",
        "tracker.core.database.root_password",
    ] {
        json::replace(document, path, None);
    }
}

/// Reads the types. A problem is added to the others, and an example replaces the value, so that
/// the next problem is found. None: what is there cannot be read at all.
fn read_types(document: &mut Value, problems: &mut Vec<Problem>) -> Option<Document> {
    loop {
        let error = match serde_path_to_error::deserialize(&*document) {
            Ok(read) => return Some(read),
            Err(error) => error,
        };
        let path = error
            .path()
            .iter()
            .fold(String::new(), |path, part| match part {
                Segment::Map { key } => shown::child(&path, key),
                Segment::Seq { index } => shown::child(&path, &index.to_string()),
                Segment::Enum { .. } | Segment::Unknown => path,
            });
        if problems.iter().any(|problem| problem.path == path) {
            return None;
        }
        let text = json::get(document, &path).and_then(Value::as_str);
        let problem = match (text, Refusal::read(&error.inner().to_string())) {
            (Some(text), Some(refusal)) => refused(&path, text, refusal),
            // serde's message can hold a value of the file, so it is not shown.
            _ if problems.is_empty() => Problem {
                path: "(the whole file)".to_owned(),
                found: "a value that this program cannot read".to_owned(),
                allowed: "what schemas/environment.schema.json describes".to_owned(),
                fix: "report this as a defect: the schema accepts what the program does not"
                    .to_owned(),
            },
            _ => return None,
        };
        json::replace(document, &path, schema::example(&path));
        problems.push(problem);
    }
}

/// Here the keys are the operator's own.
fn malformed_variables(document: &Value) -> Vec<Problem> {
    const PATH: &str = "backup.restic.environment";
    let variables = json::get(document, PATH).and_then(Value::as_object);
    let mut problems = Vec::new();
    for (name, value) in variables.into_iter().flatten() {
        let path = shown::child(PATH, name);
        if let Err(Refusal { allowed, fix }) = name.parse::<VariableName>() {
            let found = format!("the variable {}", shown::key(PATH, name));
            problems.push(Problem {
                path,
                found,
                allowed,
                fix,
            });
        } else if let Some(text) = value.as_str()
            && let Err(refusal) = text.parse::<Secret>()
        {
            problems.push(refused(&path, text, refusal));
        }
    }
    problems
}

/// A text that its type refused. The type's own words can hold a part of the text, such as a field
/// of a schedule. So they are used only when the text may be shown.
fn refused(path: &str, text: &str, refusal: Refusal) -> Problem {
    let Refusal { allowed, fix } = if shown::is_public(path, text) {
        refusal
    } else if no_control_characters(text).is_err() {
        Refusal {
            fix: "remove the control characters, such as a newline at the end".to_owned(),
            ..refusal
        }
    } else if path.ends_with("schedule") {
        Refusal {
            allowed: "five fields as cron reads them".to_owned(),
            fix: "write for example \"0 3 * * *\"".to_owned(),
        }
    } else {
        refusal
    };
    Problem {
        path: path.to_owned(),
        found: shown::text(path, text),
        allowed,
        fix,
    }
}
