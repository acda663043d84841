//! Domain: what an operator may ask of a backup, in types that hold no wrong value.

use serde::{Deserialize, Serialize};

use crate::database::Database;
use crate::monitoring::{Metrics, Notify};
use crate::restic::Restic;
use crate::schedule::CronSchedule;
use crate::value::{HostName, HostPath, ImageReference, PathBelow, Within};

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
    /// Absent: by driver, see [`BackupConfig::quiesce`].
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
    /// More to archive, below the deploy directory.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_paths: Vec<PathBelow>,
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
            deploy_dir: "/opt/torrust".parse().expect("a default path is valid"),
            host: None,
            image: None,
            extra_paths: Vec::new(),
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
        let default = || self.deploy_dir.join("storage/backup");
        self.destination.clone().unwrap_or_else(default)
    }

    /// What happens to the tracker during the capture.
    ///
    /// With a sidecar nothing. Otherwise what the file says, or what suits the driver: a writer can
    /// tear the copy of a file, so the tracker is frozen meanwhile, which keeps its memory and its
    /// network. A server's dump is consistent while the tracker runs.
    /// docs/decisions/0010-freeze-the-tracker-by-default.md
    #[must_use]
    pub fn quiesce(&self, database: &Database) -> Quiesce {
        let by_driver = match database {
            Database::Sqlite { .. } => Quiesce::Pause,
            Database::Mysql(_) => Quiesce::None,
        };
        match self.strategy {
            Strategy::Sidecar => Quiesce::None,
            Strategy::MaintenanceWindow => self.quiesce.unwrap_or(by_driver),
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
