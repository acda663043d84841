//! What a backup as configured would mean, for somebody who must choose.
//!
//! Nothing is measured here. The figures are rough ones of one machine: the ratios are what counts.

mod advice;
mod text;

use chrono::NaiveDateTime;
use serde::{Serialize, Serializer};

pub use self::advice::{Advice, Recommended};
use crate::backup::{Compression, DatabaseScope, Quiesce, Strategy};
use crate::database::{Database, MysqlServer};
use crate::environment::Environment;
use crate::monitoring::{Notify, Occasion};
use crate::plan::{BackupPlan, ImageSource};
use crate::restic::Restic;
use crate::rules::capture_seconds;
use crate::schedule::CronSchedule;
use crate::topology::{BackupPath, Network, PortBinding, Service, ServiceDependency};
use crate::value::SecretName;

/// From least to most, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Seconds {
    pub least: f64,
    pub most: f64,
}

const fn seconds(least: f64, most: f64) -> Seconds {
    Seconds { least, most }
}

// Measured with an SQLite database of 2.1 GB on two cores: docs/performance.md.
/// Copying the database's files, for each GB.
const COPY_PER_GB: Seconds = seconds(0.5, 2.0);
/// The same as a reflink, whatever the size.
const REFLINK: Seconds = seconds(0.0, 0.1);
/// Copying under SQLite's shared lock beside a live writer, for each GB: how long writes wait.
const ONLINE_PER_GB: Seconds = seconds(1.0, 2.0);
/// The longest wait of a write in WAL mode, whatever the size.
const ONLINE_WAL: Seconds = seconds(0.2, 0.5);
/// Freezing the tracker and letting it go on.
const PAUSE: Seconds = seconds(0.1, 0.4);
/// Starting the tracker, once it is stopped.
const START: Seconds = seconds(0.0, 1.0);
const NOTHING: Seconds = seconds(0.0, 0.0);

/// How many runs are foretold.
const RUNS: usize = 5;
const DAY: u64 = 24 * 60 * 60;

/// What will happen, as facts; docs/configuration.md describes the object.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Explanation {
    pub environment: String,
    pub strategy: Strategy,
    pub database: Source,
    pub configuration: Vec<Archived>,
    pub destination: Destination,
    /// Repositories beside the destination.
    pub remote: Vec<String>,
    pub runs: Timetable,
    /// For how long a missed run is made up for; 0: it is not.
    pub catch_up_hours: u32,
    /// How much later than its schedule a run begins at most.
    pub jitter_seconds: u32,
    /// None: it is switched off.
    pub verification: Option<Timetable>,
    pub notifications: Option<Notifications>,
    /// The directory of the file for Prometheus.
    pub metrics: Option<String>,
    pub tracker: Tracker,
    pub container: Container,
    pub not_backed_up: Vec<Gap>,
    pub recommended: Recommended,
    /// What to change; empty when all is as advised.
    pub advice: Vec<Advice>,
    /// For the page in words.
    #[serde(skip)]
    plan: BackupPlan,
}

/// The database that is captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Source {
    pub driver: Driver,
    pub name: String,
    /// The file on the host, or the server's host and port.
    pub location: String,
    pub scope: DatabaseScope,
}

/// The kind of database, in the words of the environment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Driver {
    Sqlite3,
    Mysql,
}

/// A path of the configuration archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Archived {
    /// Relative to the deploy directory, as in the archive.
    pub path: String,
    /// What of it.
    pub content: Content,
    /// A run warns when it is missing, instead of failing.
    pub optional: bool,
}

/// What of a path is archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Content {
    /// The file, or everything in the directory.
    All,
    /// The directory's owner and mode alone.
    OwnerAndMode,
    /// A SQLite database, captured as one.
    Database,
}

/// Where backups go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Destination {
    pub path: String,
    pub deploy_dir: String,
    /// On the deployment's own disk, as far as paths tell.
    pub in_deploy_dir: bool,
    pub directories: Vec<&'static str>,
    pub compression: Compression,
    pub retention_days: u32,
}

/// When something runs, in the host's time zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Timetable {
    pub schedule: CronSchedule,
    pub longest_interval_seconds: u64,
    /// The clock of the machine that explains.
    pub counted_from: Minute,
    pub next_runs: Vec<Minute>,
}

/// A wall-clock time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Minute(NaiveDateTime);

impl Serialize for Minute {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.format("%Y-%m-%dT%H:%M"))
    }
}

/// How somebody is told how runs end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Notifications {
    pub on: Occasion,
    pub by: Vec<&'static str>,
}

impl From<&Notify> for Notifications {
    fn from(notify: &Notify) -> Self {
        let ways = [
            ("ping", notify.ping_url.is_some()),
            ("webhook", notify.webhook_url.is_some()),
            ("ntfy", notify.ntfy_url.is_some()),
            ("command", !notify.command.is_empty()),
        ];
        let by = ways
            .into_iter()
            .filter_map(|(way, given)| given.then_some(way));
        Self {
            on: notify.on,
            by: by.collect(),
        }
    }
}

/// What a run means for the tracker.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Tracker {
    pub during_capture: State,
    pub keeps_swarm: bool,
    /// How long it answers nothing or, untouched, how long its writes wait; one of the cases holds.
    pub interruptions: Vec<Interruption>,
    /// When it comes back whatever still hangs; none where it never goes.
    pub limit_seconds: Option<u32>,
    /// The largest database that surely fits into the limit, in GB, where that can be told.
    pub limit_gb: Option<usize>,
}

/// The tracker's, while the database is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum State {
    Stopped,
    Paused,
    Untouched,
}

/// What decides how long it takes; the environment file does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    /// Files are copied, on a file system such as ext4.
    NoReflinks,
    /// Files are copied, on one such as xfs or btrfs.
    Reflinks,
    /// Copied online from a database with a rollback journal, as deployed.
    RollbackJournal,
    /// Copied online from a database in WAL mode.
    Wal,
    /// Dumped by a server.
    Dump,
}

/// About how long it takes, in one case.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Interruption {
    pub case: Case,
    /// Whatever the size of the database.
    pub seconds: Seconds,
    /// In addition for each GB of it; none: as long as it takes, and not measured.
    pub seconds_per_gb: Option<Seconds>,
}

/// What the backup container is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Container {
    /// Between runs, too.
    pub stays_up: bool,
    pub networks: Vec<Network>,
    pub dependencies: Vec<ServiceDependency>,
    pub ports: Vec<PortBinding>,
    pub secrets: Vec<SecretName>,
    pub image: String,
    pub image_source: ImageSource,
}

/// Something that no backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Gap {
    pub what: String,
    /// How it comes back, or who has to see to it.
    pub note: &'static str,
}

impl Explanation {
    /// `now` is the wall-clock time after which runs are counted.
    #[must_use]
    pub fn new(environment: &Environment, plan: &BackupPlan, now: NaiveDateTime) -> Self {
        let backup = &environment.backup;
        let database = source(environment);
        let timetable = |schedule: &CronSchedule| Timetable {
            schedule: schedule.clone(),
            longest_interval_seconds: schedule.longest_interval(),
            counted_from: Minute(now),
            next_runs: schedule
                .next_runs(now, RUNS)
                .into_iter()
                .map(Minute)
                .collect(),
        };
        let mut explanation = Self {
            environment: plan.access.environment.as_str().to_owned(),
            strategy: plan.tracker.strategy,
            configuration: environment.services.backup_paths().map(archived).collect(),
            destination: Destination {
                path: plan.places.destination.as_str().to_owned(),
                deploy_dir: plan.places.deploy_dir.as_str().to_owned(),
                in_deploy_dir: (plan.places.destination.as_str())
                    .starts_with(&format!("{}/", plan.places.deploy_dir.as_str())),
                directories: vec![
                    match database.driver {
                        Driver::Sqlite3 => "sqlite",
                        Driver::Mysql => "mysql",
                    },
                    "config",
                    "runs",
                ],
                compression: plan.settings.compression,
                retention_days: plan.timing.retention_days.get(),
            },
            remote: backup.restic.iter().map(remote).collect(),
            runs: timetable(&backup.schedule),
            catch_up_hours: plan.timing.catch_up_hours.get(),
            jitter_seconds: plan.timing.jitter_seconds.get(),
            notifications: backup.notify.as_ref().map(Notifications::from),
            metrics: (plan.places.textfile_dirs.first()).map(|path| path.as_str().to_owned()),
            verification: backup.verify_schedule.as_ref().map(timetable),
            tracker: tracker(plan, database.driver),
            container: Container {
                stays_up: plan.tracker.strategy == Strategy::Sidecar,
                networks: plan.stack.networks.items.clone(),
                dependencies: plan.stack.dependencies.items.clone(),
                ports: plan.stack.ports.clone(),
                secrets: plan.secrets.secrets.items.clone(),
                image: plan.image.image.clone(),
                image_source: plan.image.image_source,
            },
            not_backed_up: gaps(environment, plan),
            recommended: Recommended::by(database.driver),
            advice: Vec::new(),
            plan: plan.clone(),
            database,
        };
        explanation.advice = advice::of(&explanation, environment);
        explanation
    }
}

fn source(environment: &Environment) -> Source {
    let (driver, location) = match &environment.database {
        Database::Sqlite { database_name } => (
            Driver::Sqlite3,
            format!(
                "{}/storage/tracker/lib/database/{}",
                environment.backup.deploy_dir.as_str(),
                database_name.as_str()
            ),
        ),
        Database::Mysql(MysqlServer { host, port, .. }) => {
            (Driver::Mysql, format!("{}:{port}", host.as_str()))
        }
    };
    Source {
        driver,
        name: environment.database.name().as_str().to_owned(),
        location,
        scope: environment.backup.database_scope,
    }
}

fn archived(path: BackupPath) -> Archived {
    let (path, content, optional) = match path {
        BackupPath::Tree(path) => (path, Content::All, false),
        BackupPath::Directory(path) => (path, Content::OwnerAndMode, false),
        BackupPath::OptionalDirectory(path) => (path, Content::OwnerAndMode, true),
        BackupPath::OptionalSqlite(path) => (path, Content::Database, true),
    };
    Archived {
        path: path.to_owned(),
        content,
        optional,
    }
}

fn tracker(plan: &BackupPlan, driver: Driver) -> Tracker {
    let state = match (plan.tracker.strategy, plan.tracker.quiesce) {
        (Strategy::Sidecar, _) | (_, Quiesce::None) => State::Untouched,
        (Strategy::MaintenanceWindow, Quiesce::Stop) => State::Stopped,
        (Strategy::MaintenanceWindow, Quiesce::Pause) => State::Paused,
    };
    let around = match state {
        State::Stopped => {
            let stop = f64::from(plan.tracker.stop_timeout_seconds.get());
            seconds(stop + START.least, stop + START.most)
        }
        State::Paused => PAUSE,
        State::Untouched => NOTHING,
    };
    let limit_seconds =
        (state != State::Untouched).then_some(plan.tracker.window_timeout_seconds.get());
    let fits = |limit: &u32| {
        let most = |gb: &u32| around.most + COPY_PER_GB.most * f64::from(*gb);
        (1..=u32::MAX)
            .take_while(|gb| most(gb) <= f64::from(capture_seconds(*limit)))
            .count()
    };
    Tracker {
        during_capture: state,
        keeps_swarm: state != State::Stopped,
        interruptions: interruptions(state, driver, around),
        limit_seconds,
        limit_gb: match driver {
            Driver::Sqlite3 => limit_seconds.as_ref().map(fits),
            Driver::Mysql => None,
        },
    }
}

/// The scope makes no difference: rows are left out of the copy, after the capture.
fn interruptions(state: State, driver: Driver, around: Seconds) -> Vec<Interruption> {
    let interruption = |case, seconds, seconds_per_gb| Interruption {
        case,
        seconds,
        seconds_per_gb,
    };
    let reflink = seconds(around.least + REFLINK.least, around.most + REFLINK.most);
    match (driver, state) {
        (Driver::Mysql, State::Untouched) => Vec::new(),
        (Driver::Mysql, State::Stopped | State::Paused) => {
            vec![interruption(Case::Dump, around, None)]
        }
        (Driver::Sqlite3, State::Stopped | State::Paused) => vec![
            interruption(Case::NoReflinks, around, Some(COPY_PER_GB)),
            interruption(Case::Reflinks, reflink, Some(NOTHING)),
        ],
        (Driver::Sqlite3, State::Untouched) => vec![
            interruption(Case::RollbackJournal, NOTHING, Some(ONLINE_PER_GB)),
            interruption(Case::Reflinks, reflink, Some(NOTHING)),
            interruption(Case::Wal, ONLINE_WAL, Some(NOTHING)),
        ],
    }
}

fn remote(restic: &Restic) -> String {
    format!(
        "a restic repository, {}, where the last of each of {} days, {} weeks and {} months stay",
        restic.repository.description(),
        restic.keep_daily.get(),
        restic.keep_weekly.get(),
        restic.keep_monthly.get()
    )
}

fn gaps(environment: &Environment, plan: &BackupPlan) -> Vec<Gap> {
    let gap = |what: &str, note| Gap {
        what: what.to_owned(),
        note,
    };
    let mut gaps = vec![gap(
        "the swarm, which the tracker keeps in its memory",
        "peers announce again by themselves",
    )];
    match plan.settings.scope {
        DatabaseScope::Full => {}
        DatabaseScope::ExcludeStatistics => gaps.push(gap(
            "torrents that were never completed",
            "the tracker adds one again when a peer announces it; keys and whitelist are backed up",
        )),
    }
    if environment.database.is_server() {
        let note = if environment.database.is_elsewhere() {
            "whoever runs the server backs them up, and makes the user for a new one"
        } else {
            "the service mysql makes the tracker's user again from .env when it starts empty"
        };
        gaps.push(gap(
            "the database server's other databases, users and grants",
            note,
        ));
    }
    if environment.backup.restic.is_some() {
        gaps.push(gap(
            "the password of the restic repository, and how to reach it",
            "keep them with the environment JSON, elsewhere than on this host: without them \
             nothing comes back from there",
        ));
    }
    gaps.extend(
        environment
            .services
            .iter()
            .filter_map(|service| match service {
                Service::Tracker | Service::Mysql => None,
                Service::Prometheus => Some(gap(
                    "Prometheus' measurements",
                    "they live in its container and go with it",
                )),
                Service::Grafana => Some(gap(
                    "Grafana's plugins, and whatever else is beside grafana.db",
                    "install plugins again",
                )),
                Service::Caddy => Some(gap(
                    "the configuration that Caddy saves by itself (storage/caddy/config)",
                    "Caddy makes it again from its Caddyfile",
                )),
            }),
    );
    gaps.extend([
        gap(
            "the logs of the tracker and of the containers",
            "send them elsewhere if you need them",
        ),
        gap(
            "the images of the services",
            "they are pulled again; each run manifest has their ids",
        ),
        gap(
            &format!("every other file in {}", plan.places.deploy_dir.as_str()),
            "copy what you put there yourself",
        ),
        gap(
            "packages, users, SSH keys and firewall of the machine",
            "the deployer makes a new one",
        ),
        gap(
            "this environment file and its bundle",
            "keep both elsewhere: restoring onto an empty machine needs the bundle",
        ),
    ]);
    gaps
}
