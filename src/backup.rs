//! Domain: what an operator may ask of a backup, in types that hold no wrong value.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::monitoring::{self, Metrics, Notify};
use crate::restic::{self, Restic};
use crate::schedule::CronSchedule;
use crate::topology::Service;

/// Why a value was refused: what is allowed instead, and what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{allowed}; {fix}")]
pub struct Refusal {
    /// What would have been accepted, as the object of "allowed:".
    pub allowed: String,
    /// What to do about it, as an imperative.
    pub fix: String,
}

fn refuse<T>(allowed: impl Into<String>, fix: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal {
        allowed: allowed.into(),
        fix: fix.into(),
    })
}

/// Declares a string that is checked once, wherever it comes from.
macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// The text as it was given.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Refusal;
            fn try_from(text: String) -> Result<Self, Refusal> {
                no_control_characters(&text)?;
                no_invisible_characters(&text)?;
                $check(&text)?;
                Ok(Self(text))
            }
        }

        impl FromStr for $name {
            type Err = Refusal;
            fn from_str(text: &str) -> Result<Self, Refusal> {
                Self::try_from(text.to_owned())
            }
        }
    };
}

checked_text! {
    /// One line of text: not empty, no control characters.
    Line, not_empty
}
checked_text! {
    /// An absolute directory or file of the host, in its shortest form.
    HostPath, absolute_and_normal
}
checked_text! {
    /// A file of the machine that runs Ansible: absolute, or below `~/`.
    KeyPath, absolute_or_home
}
checked_text! {
    /// A name for SSH or for an inventory, or an IP address.
    HostName, host_name
}
checked_text! {
    /// A login name: one word that no command takes for an option.
    UserName, user_name
}
checked_text! {
    /// A database, or the file of one: never a path.
    DatabaseName, database_name
}
checked_text! {
    /// `[registry[:port]/]name[:tag][@digest]`, as Docker reads it.
    ImageReference, image_reference
}

/// The first control character of a text is refused: none of our files could carry it.
///
/// Includes DEL and the C1 range, as Unicode's category Cc does.
pub fn no_control_characters(text: &str) -> Result<(), Refusal> {
    match text.chars().position(char::is_control) {
        None => Ok(()),
        Some(at) => {
            let found = u32::from(text.chars().nth(at).unwrap_or_default());
            refuse(
                "text without control characters, in one line",
                format!("remove character {} (U+{found:04X})", at + 1),
            )
        }
    }
}

/// Characters that take no room, or change the order of others, are refused: people review bundles.
///
/// Not in secrets, which nobody reviews.
fn no_invisible_characters(text: &str) -> Result<(), Refusal> {
    let is_invisible = |c: &char| {
        matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{202a}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
        )
    };
    match text.chars().enumerate().find(|(_, c)| is_invisible(c)) {
        None => Ok(()),
        Some((at, found)) => refuse(
            "text without zero-width characters and without those that change the direction",
            format!("remove character {} (U+{:04X})", at + 1, u32::from(found)),
        ),
    }
}

fn not_empty(text: &str) -> Result<(), Refusal> {
    if text.is_empty() {
        refuse("text that is not empty", "write one")
    } else {
        Ok(())
    }
}

fn absolute_and_normal(text: &str) -> Result<(), Refusal> {
    const ALLOWED: &str = "an absolute path of the host without `.`, `..`, `//` or a final `/`";
    if !text.starts_with('/') {
        return refuse(ALLOWED, "write the whole path, beginning with `/`");
    }
    let parts: Vec<&str> = text
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    if parts.contains(&"..") {
        return refuse(ALLOWED, "write the path that the `..` leads to");
    }
    let normal = format!("/{}", parts.join("/"));
    if normal == "/" {
        return refuse(ALLOWED, "name a directory below `/`");
    }
    if normal == text {
        Ok(())
    } else {
        refuse(ALLOWED, "write it without `.`, `//` and the final `/`")
    }
}

fn absolute_or_home(text: &str) -> Result<(), Refusal> {
    if text.starts_with('/') || text.strip_prefix("~/").is_some_and(|rest| !rest.is_empty()) {
        return Ok(());
    }
    refuse(
        "a path that begins with `/` or `~/`",
        "write the whole path: a relative one would depend on where Ansible is started",
    )
}

fn host_name(text: &str) -> Result<(), Refusal> {
    const ALLOWED: &str = "a host name (letters, digits, `-`, `_`, `.`) or an IP address";
    let label_is_good = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    if text.starts_with('[') {
        return refuse(ALLOWED, "write an IPv6 address without brackets");
    }
    if text.len() > 253 || !text.split('.').all(label_is_good) {
        return refuse(
            ALLOWED,
            "write one name, without user, port, scheme or spaces",
        );
    }
    // Resolvers take a name that ends in a number for an IPv4 address.
    if text
        .rsplit('.')
        .next()
        .is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()))
    {
        return refuse(
            ALLOWED,
            "write an IPv4 address as four numbers from 0 to 255",
        );
    }
    Ok(())
}

fn user_name(text: &str) -> Result<(), Refusal> {
    if text.is_empty() || text.starts_with('-') || text.chars().any(char::is_whitespace) {
        return refuse(
            "a login name without spaces that does not begin with `-`",
            "write the user that Ansible logs in as, for example \"torrust\"",
        );
    }
    Ok(())
}

fn database_name(text: &str) -> Result<(), Refusal> {
    if text.is_empty() || text == "." || text.contains('/') || text.contains("..") {
        return refuse(
            "a name without `/` and `..`",
            "write the name alone, for example \"tracker.db\" or \"tracker\": directories are \
             fixed",
        );
    }
    Ok(())
}

fn image_reference(text: &str) -> Result<(), Refusal> {
    let word = |text: &str, extra: &str| {
        !text.is_empty()
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
    };
    let (rest, digest) = text
        .split_once('@')
        .map_or((text, None), |(rest, d)| (rest, Some(d)));
    // A colon after the last slash begins the tag; one before it is the registry's port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let parts: Vec<&str> = name.split('/').collect();
    let has_registry =
        parts.len() > 1 && (parts[0].contains(['.', ':']) || parts[0] == "localhost");
    let path = &parts[usize::from(has_registry)..];
    let registry_is_good = || {
        let (host, port) = parts[0].split_once(':').unwrap_or((parts[0], "5000"));
        word(host, ".-") && port.parse::<u16>().is_ok()
    };
    let good = (!has_registry || registry_is_good())
        && path.iter().all(|part| {
            word(part, "._-")
                && part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.ends_with(|c: char| c.is_ascii_alphanumeric())
                && !part.contains(|c: char| c.is_ascii_uppercase())
        })
        && tag
            .is_none_or(|tag| word(tag, "._-") && tag.len() <= 128 && !tag.starts_with(['.', '-']))
        && digest.is_none_or(|digest| {
            digest.strip_prefix("sha256:").is_some_and(|hex| {
                hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            })
        });
    if good {
        return Ok(());
    }
    refuse(
        "an image reference: [registry[:port]/]name[:tag][@sha256:digest], the name in lower case",
        "write for example \"registry.example.org/tracker-backup:1.0\", or leave the key out to \
         build on the host",
    )
}

/// A password: shown nowhere, serialised nowhere, written by `output.rs` into `secrets/` alone.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Secret(String);

impl Secret {
    /// The one way to the value.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// One that we make ourselves of what was checked, such as several in the lines of a file.
    pub(crate) fn of(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl FromStr for Secret {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        no_control_characters(text)?;
        not_empty(text)?;
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Secret {
    type Error = Refusal;
    fn try_from(text: String) -> Result<Self, Refusal> {
        text.parse()
    }
}

/// A whole number from `MIN` to `MAX`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "u32")]
pub struct Within<const MIN: u32, const MAX: u32>(u32);

/// How long a backup is kept, in days.
pub type RetentionDays = Within<1, 3650>;
/// Grace before Docker kills a stopping tracker, in seconds.
pub type StopTimeout = Within<0, 3600>;
/// When the tracker comes back, whatever still hangs, in seconds.
pub type WindowTimeout = Within<10, 3600>;
/// For how long a missed run is made up for, in hours.
pub type CatchUp = Within<0, 168>;
/// How much later than its schedule a run begins at most, in seconds.
pub type Jitter = Within<0, 3600>;

impl<const MIN: u32, const MAX: u32> Within<MIN, MAX> {
    /// The greatest number.
    pub const MOST: u32 = MAX;

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// For defaults: a wrong one does not compile where it is a constant.
    pub(crate) const fn constant(number: u32) -> Self {
        assert!(MIN <= number && number <= MAX);
        Self(number)
    }
}

impl<const MIN: u32, const MAX: u32> TryFrom<u32> for Within<MIN, MAX> {
    type Error = Refusal;
    fn try_from(number: u32) -> Result<Self, Refusal> {
        if (MIN..=MAX).contains(&number) {
            return Ok(Self(number));
        }
        refuse(
            format!("a whole number from {MIN} to {MAX}"),
            format!("write for example {MIN}"),
        )
    }
}

/// Who starts a run, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Cron on the host starts a run that may stop or pause the tracker.
    MaintenanceWindow,
    /// Cron in a container of the stack starts a run that never touches the tracker.
    Sidecar,
}

/// What happens to the tracker during the capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quiesce {
    /// It is stopped and started again.
    Stop,
    /// It is frozen, and keeps its memory.
    Pause,
    /// Nothing: the capture is online.
    None,
}

/// Which rows are captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DatabaseScope {
    /// All of them.
    Full,
    /// Not the torrents that were never completed.
    ExcludeStatistics,
}

/// How finished backups are compressed, always outside the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// `.gz`, by pigz.
    Gzip,
    /// `.zst`.
    Zstd,
}

/// How the database server proves who it is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseTls {
    /// Refuse a server whose certificate does not verify.
    #[serde(default = "verify_tls")]
    pub verify: bool,
    /// The authorities to trust instead of the system's: a file of the host.
    pub ca_file: Option<HostPath>,
}

const fn verify_tls() -> bool {
    true
}

/// The `backup` section. Every default of it stands in its `Default`, and nowhere else in Rust.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // schemas/environment.schema.json describes each key
pub struct BackupConfig {
    pub schedule: CronSchedule,
    pub retention_days: RetentionDays,
    pub strategy: Strategy,
    /// Absent: by driver, see [`Database::default_quiesce`].
    pub quiesce: Option<Quiesce>,
    pub stop_timeout_seconds: StopTimeout,
    pub window_timeout_seconds: WindowTimeout,
    pub database_scope: DatabaseScope,
    pub compression: Compression,
    /// Absent: see [`BackupConfig::destination`].
    pub destination: Option<HostPath>,
    pub deploy_dir: HostPath,
    /// The host that the bundle is for. `--host` names it too.
    // An absent host is not written, so that the digest of such a file stays as it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    pub image: Option<ImageReference>,
    pub database_tls: Option<DatabaseTls>,
    pub allow_writer_stall: bool,
    /// `null` disables.
    pub verify_schedule: Option<CronSchedule>,
    /// Where a copy of every backup goes.
    pub restic: Option<Restic>,
    /// Absent: see [`BackupConfig::catch_up_hours`].
    pub catch_up_hours: Option<CatchUp>,
    pub jitter_seconds: Jitter,
    pub notify: Option<Notify>,
    pub metrics: Option<Metrics>,
}

impl Default for BackupConfig {
    fn default() -> Self {
        let schedule = |text: &str| text.parse().expect("a default schedule is valid");
        Self {
            schedule: schedule("0 3 * * *"),
            retention_days: const { RetentionDays::constant(7) },
            strategy: Strategy::MaintenanceWindow,
            quiesce: None,
            stop_timeout_seconds: const { StopTimeout::constant(10) },
            window_timeout_seconds: const { WindowTimeout::constant(300) },
            database_scope: DatabaseScope::Full,
            compression: Compression::Gzip,
            destination: None,
            deploy_dir: HostPath("/opt/torrust".to_owned()),
            host: None,
            image: None,
            database_tls: None,
            allow_writer_stall: false,
            verify_schedule: Some(schedule("30 5 * * 0")),
            restic: None,
            catch_up_hours: None,
            jitter_seconds: const { Jitter::constant(0) },
            notify: None,
            metrics: None,
        }
    }
}

impl BackupConfig {
    /// Where the backups go, as the host sees it.
    #[must_use]
    pub fn destination(&self) -> HostPath {
        let default = || HostPath(format!("{}/storage/backup", self.deploy_dir.as_str()));
        self.destination.clone().unwrap_or_else(default)
    }

    /// What happens to the tracker during the capture.
    ///
    /// With a sidecar nothing. Otherwise what the file says, or the driver's default.
    #[must_use]
    pub fn quiesce(&self, database: &Database) -> Quiesce {
        match self.strategy {
            Strategy::Sidecar => Quiesce::None,
            Strategy::MaintenanceWindow => {
                self.quiesce.unwrap_or_else(|| database.default_quiesce())
            }
        }
    }

    /// For how many hours a missed run is made up for.
    ///
    /// By default, the tracker is stopped at the scheduled time only.
    #[must_use]
    pub fn catch_up_hours(&self, database: &Database) -> CatchUp {
        self.catch_up_hours
            .unwrap_or_else(|| match self.quiesce(database) {
                Quiesce::Stop => NO_CATCH_UP,
                Quiesce::Pause | Quiesce::None => CATCH_UP,
            })
    }
}

/// How long after a missed run the host still makes up for it, by default.
const CATCH_UP: CatchUp = CatchUp::constant(12);
const NO_CATCH_UP: CatchUp = CatchUp::constant(0);

/// What the tracker keeps its data in.
///
/// A new driver is a new case here. The compiler then names every place that must handle it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "driver")]
pub enum Database {
    /// One file under the tracker's storage.
    #[serde(rename = "sqlite3")]
    Sqlite {
        /// Its name there.
        database_name: DatabaseName,
    },
    /// A server, in the stack or elsewhere.
    #[serde(rename = "mysql")]
    Mysql(MysqlServer),
}

/// How to reach a MySQL database.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[allow(missing_docs)]
pub struct MysqlServer {
    pub host: HostName,
    #[serde(default = "mysql_port")]
    pub port: u16,
    pub database_name: DatabaseName,
    pub username: Line,
    #[serde(skip_serializing)]
    pub password: Secret,
    #[serde(skip_serializing)]
    pub root_password: Option<Secret>,
}

const fn mysql_port() -> u16 {
    3306
}

impl Database {
    /// The service of the stack that it runs in; none for a file or a server elsewhere.
    #[must_use]
    pub fn service(&self) -> Option<Service> {
        match self {
            Self::Mysql(server) if server.host.as_str() == "mysql" => Some(Service::Mysql),
            Self::Mysql(_) | Self::Sqlite { .. } => None,
        }
    }

    /// The database's name, or its file's.
    #[must_use]
    pub fn name(&self) -> &DatabaseName {
        match self {
            Self::Sqlite { database_name } => database_name,
            Self::Mysql(server) => &server.database_name,
        }
    }

    /// Whether it is reached over a network.
    #[must_use]
    pub fn is_server(&self) -> bool {
        match self {
            Self::Sqlite { .. } => false,
            Self::Mysql(_) => true,
        }
    }

    /// Whether it is a server that this host does not run.
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        self.is_server() && self.service().is_none()
    }

    /// A writer can tear the copy of a file. So the tracker is frozen meanwhile, which keeps its
    /// memory and its network. A server's dump is consistent while the tracker runs.
    /// docs/decisions/0010-freeze-the-tracker-by-default.md
    #[must_use]
    pub fn default_quiesce(&self) -> Quiesce {
        match self {
            Self::Sqlite { .. } => Quiesce::Pause,
            Self::Mysql(_) => Quiesce::None,
        }
    }

    /// Name and value of each secret that reaching it needs, sorted by name.
    #[must_use]
    pub fn secrets(&self) -> Vec<(&'static str, Secret)> {
        match self {
            Self::Sqlite { .. } => Vec::new(),
            Self::Mysql(server) => std::iter::once((DB_PASSWORD, server.password.clone()))
                .chain(
                    server
                        .root_password
                        .clone()
                        .map(|secret| (DB_ROOT_PASSWORD, secret)),
                )
                .collect(),
        }
    }
}

/// The database user's password, in `secrets/` and in `/run/secrets/`.
pub const DB_PASSWORD: &str = "db_password";
/// The server's root password, likewise.
pub const DB_ROOT_PASSWORD: &str = "db_root_password";
/// Every name that a file of ours in `secrets/` can have.
pub const SECRET_NAMES: [&str; 9] = [
    DB_PASSWORD,
    DB_ROOT_PASSWORD,
    monitoring::COMMAND,
    monitoring::NTFY_URL,
    monitoring::PING_URL,
    monitoring::WEBHOOK_URL,
    restic::ENVIRONMENT,
    restic::PASSWORD,
    restic::REPOSITORY,
];
