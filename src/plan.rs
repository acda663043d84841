//! Every decision about a bundle, in parts. Templates see the fields of all parts side by side.

mod settings;

use serde::Serialize;

pub use self::settings::{Setting, Settings};
use crate::backup::{BackupConfig, Quiesce, RetentionDays, Strategy};
use crate::backup::{CatchUp, Jitter, StopTimeout, WindowTimeout};
use crate::database::Database;
use crate::environment::Environment;
use crate::restic::{Repository, Restic};
use crate::schedule::CronSchedule;
use crate::topology::{BackupPath, Network, PortBinding, Service, ServiceDependency};
use crate::value::{HostName, HostPath, KeyPath, Line, SecretName, UserName};

/// What the templates print. Absence is an empty list, an empty text or a bool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct BackupPlan {
    #[serde(flatten)]
    pub access: Access,
    #[serde(flatten)]
    pub places: Places,
    #[serde(flatten)]
    pub timing: Timing,
    #[serde(flatten)]
    pub tracker: Tracker,
    #[serde(flatten)]
    pub stack: Stack,
    #[serde(flatten)]
    pub image: Image,
    #[serde(flatten)]
    pub secrets: Secrets,
    #[serde(flatten)]
    pub settings: Settings,
}

/// A list, and whether it has items: a template can test nothing but a bool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct List<T> {
    pub any: bool,
    pub items: Vec<T>,
}

impl<T> From<Vec<T>> for List<T> {
    fn from(items: Vec<T>) -> Self {
        Self {
            any: !items.is_empty(),
            items,
        }
    }
}

/// Which deployment it is, and how Ansible reaches its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Access {
    pub environment: Line,
    /// Instance name and description, where they were given.
    pub remarks: Vec<Line>,
    /// Empty without one.
    pub host: String,
    pub has_host: bool,
    pub ssh_user: UserName,
    pub ssh_port: u16,
    pub ssh_private_key: KeyPath,
}

/// Directories and files of the host. Each list has none or one, unless it says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Places {
    pub deploy_dir: HostPath,
    pub destination: HostPath,
    /// The directory that is the restic repository.
    pub repositories: Vec<HostPath>,
    /// Where metrics are written.
    pub textfile_dirs: Vec<HostPath>,
    pub has_metrics: bool,
    pub ca_files: Vec<HostPath>,
    /// The lines of `backup-paths.txt`, in their order.
    pub paths: Vec<String>,
    /// What no role may see of the deployment, as the reader would.
    pub masked: Vec<String>,
}

/// When something runs, and how long a backup is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Timing {
    pub schedule: CronSchedule,
    pub longest_interval_seconds: u64,
    /// The schedule as lists of numbers, for the host to find the next run.
    pub calendar: String,
    pub catch_up_hours: CatchUp,
    pub catches_up: bool,
    pub jitter_seconds: Jitter,
    pub has_jitter: bool,
    /// None or one.
    pub verify_schedules: Vec<CronSchedule>,
    /// The longest time between two verifications, in seconds: none or one.
    pub verify_intervals: Vec<u64>,
    pub retention_days: RetentionDays,
}

/// Who starts a run, and what happens to the tracker during its capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Tracker {
    pub strategy: Strategy,
    pub has_window: bool,
    pub has_sidecar: bool,
    pub quiesce: Quiesce,
    #[serde(flatten)]
    pub meanwhile: Meanwhile,
    pub stop_timeout_seconds: StopTimeout,
    pub window_timeout_seconds: WindowTimeout,
}

/// [`Quiesce`] for templates: exactly one is true.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Meanwhile {
    pub stops_tracker: bool,
    pub pauses_tracker: bool,
    pub runs_on: bool,
}

/// Our services, and what they need of the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Stack {
    pub services: Vec<Service>,
    pub roles: Vec<Role>,
    pub networks: List<Network>,
    /// Those that our compose fragment declares.
    pub own_networks: List<Network>,
    pub dependencies: List<ServiceDependency>,
    pub ports: Vec<PortBinding>,
}

/// What our containers are made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Image {
    pub image: String,
    pub image_source: ImageSource,
    pub builds_image: bool,
    /// Debian's packages that the image is made of.
    pub packages: Vec<&'static str>,
    /// Of this program.
    pub version: &'static str,
}

/// Names in `secrets/`; the values never come near a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Secrets {
    /// All of them.
    pub secrets: List<SecretName>,
    /// The one that the sidecar gets: the database's, for dumps.
    pub service_secrets: List<SecretName>,
    /// Those that are files where Ansible runs.
    pub secret_files: List<SecretFile>,
}

/// A service of our compose fragment: it does one part of the work of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Role {
    pub name: &'static str,
    pub service: &'static str,
    /// Numbers that no service has. The host gives each source of bytes an examiner of its own.
    pub user: u32,
    /// Its directory below staging, and where it sees it.
    pub directory: &'static str,
    pub place: &'static str,
    /// Copies from the deployment, as root with the right to read everything.
    pub is_reader: bool,
    /// The reader's service in the sidecar. It has the cron that starts the runs.
    pub is_core: bool,
    /// Speaks with the database server.
    pub is_client: bool,
}

/// A secret that is read from a file where Ansible runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct SecretFile {
    pub name: SecretName,
    pub path: KeyPath,
}

/// Where the host takes the image of the backup container from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum ImageSource {
    Build,
    Pull,
}

impl BackupPlan {
    /// `built_image` gives the tag of an image of these packages, where none is to be pulled.
    #[must_use]
    pub fn new(
        environment: &Environment,
        host: Option<&HostName>,
        built_image: impl Fn(&[&str]) -> String,
    ) -> Self {
        Self {
            access: Access::new(environment, host),
            places: Places::new(environment),
            timing: Timing::new(&environment.backup, &environment.database),
            tracker: Tracker::new(&environment.backup, &environment.database),
            stack: Stack::new(environment),
            image: Image::new(&environment.backup, built_image),
            secrets: Secrets::new(environment),
            settings: Settings::new(environment),
        }
    }
}

impl Access {
    fn new(environment: &Environment, host: Option<&HostName>) -> Self {
        let Environment { identity, ssh, .. } = environment;
        let remarks = [&identity.instance_name, &identity.description];
        Self {
            environment: identity.name.clone(),
            remarks: remarks.into_iter().flatten().cloned().collect(),
            host: host.map_or_else(String::new, |host| host.as_str().to_owned()),
            has_host: host.is_some(),
            ssh_user: ssh.username.clone(),
            ssh_port: ssh.port,
            ssh_private_key: ssh.private_key_path.clone(),
        }
    }
}

impl Places {
    fn new(environment: &Environment) -> Self {
        let backup = &environment.backup;
        let (deploy_dir, destination) = (backup.deploy_dir.clone(), backup.destination());
        let repository = backup.restic.as_ref().map(|restic| &restic.repository);
        let metrics = backup.metrics.as_ref();
        let tls = backup.database_tls.as_ref();
        let extra_paths = backup.extra_paths.iter();
        // The destination is masked only if it lies in the deploy directory.
        let below = destination.as_str().strip_prefix(deploy_dir.as_str());
        let masked = ["/backup/secrets", "/storage/backup-staging"]
            .into_iter()
            .chain(below.filter(|rest| rest.starts_with('/')));
        Self {
            masked: masked.map(|path| format!("/data{path}")).collect(),
            repositories: one(repository.and_then(Repository::directory)),
            has_metrics: metrics.is_some(),
            textfile_dirs: one(metrics.map(|metrics| &metrics.textfile_dir)),
            ca_files: one(tls.and_then(|tls| tls.ca_file.as_ref())),
            paths: environment
                .services
                .backup_paths()
                .map(BackupPath::line)
                .chain(extra_paths.map(|path| format!("/data/{}", path.as_str())))
                .collect(),
            deploy_dir,
            destination,
        }
    }
}

fn one<T: Clone>(value: Option<&T>) -> Vec<T> {
    value.into_iter().cloned().collect()
}

impl Timing {
    fn new(backup: &BackupConfig, database: &Database) -> Self {
        Self {
            longest_interval_seconds: backup.schedule.longest_interval(),
            calendar: backup.schedule.calendar(),
            schedule: backup.schedule.clone(),
            catch_up_hours: backup.catch_up_hours(database),
            catches_up: backup.catch_up_hours(database).get() > 0,
            jitter_seconds: backup.jitter_seconds,
            has_jitter: backup.jitter_seconds.get() > 0,
            verify_schedules: one(backup.verify_schedule.as_ref()),
            verify_intervals: backup
                .verify_schedule
                .iter()
                .map(CronSchedule::longest_interval)
                .collect(),
            retention_days: backup.retention_days,
        }
    }
}

impl Tracker {
    fn new(backup: &BackupConfig, database: &Database) -> Self {
        let quiesce = backup.quiesce(database);
        Self {
            strategy: backup.strategy,
            has_window: backup.strategy == Strategy::MaintenanceWindow,
            has_sidecar: backup.strategy == Strategy::Sidecar,
            quiesce,
            meanwhile: Meanwhile {
                stops_tracker: quiesce == Quiesce::Stop,
                pauses_tracker: quiesce == Quiesce::Pause,
                runs_on: quiesce == Quiesce::None,
            },
            stop_timeout_seconds: backup.stop_timeout_seconds,
            window_timeout_seconds: backup.window_timeout_seconds,
        }
    }
}

impl Stack {
    fn new(environment: &Environment) -> Self {
        let Environment {
            database, services, ..
        } = environment;
        let networks = services.derive_networks(database);
        let own_networks: Vec<_> = networks.iter().copied().filter(|it| it.is_ours()).collect();
        Self {
            services: services.iter().collect(),
            roles: Role::of(environment.backup.strategy, database),
            networks: networks.into(),
            own_networks: own_networks.into(),
            dependencies: services.derive_dependencies().into(),
            ports: services.derive_ports(),
        }
    }
}

/// In the window, the host names the directory when it starts the container.
const OF_A_RUN: &str = "/${TRACKER_BACKUP_WORK:-none}";

impl Role {
    /// A file is copied and examined. A server's database is dumped first.
    fn of(strategy: Strategy, database: &Database) -> Vec<Self> {
        let is_sidecar = strategy == Strategy::Sidecar;
        let role = |name, service, user, directory| {
            let is_reader = name == "reader";
            let is_core = is_reader && is_sidecar;
            Self {
                name,
                service,
                user,
                directory: if is_sidecar { directory } else { OF_A_RUN },
                place: if is_core { "/staging" } else { "/work" },
                is_reader,
                is_core,
                is_client: name == "client",
            }
        };
        let mut roles = vec![
            role("reader", "backup", 0, ""),
            role("examiner", "backup-examiner", 64001, "/examiner"),
        ];
        if database.is_server() {
            roles.push(role("client", "backup-client", 64101, "/client"));
        }
        roles
    }
}

impl Image {
    fn new(backup: &BackupConfig, built_image: impl Fn(&[&str]) -> String) -> Self {
        let packages = packages(backup);
        let pulled = backup.image.as_ref();
        Self {
            image: pulled.map_or_else(|| built_image(&packages), |it| it.as_str().to_owned()),
            image_source: match pulled {
                Some(_) => ImageSource::Pull,
                None => ImageSource::Build,
            },
            builds_image: pulled.is_none(),
            packages,
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

fn packages(backup: &BackupConfig) -> Vec<&'static str> {
    let mut packages = vec![
        "bash",
        "ca-certificates",
        "coreutils",
        "gzip",
        "mariadb-client",
        "mawk",
        "pigz",
        "python3",
        "tar",
        "zstd",
    ];
    match backup.strategy {
        Strategy::MaintenanceWindow => {}
        Strategy::Sidecar => packages.extend(["cron", "tzdata", "tzdata-legacy", "util-linux"]),
    }
    match backup.restic.as_ref().map(|restic| &restic.repository) {
        None => {}
        Some(Repository::Sftp(_)) => packages.extend(["openssh-client", "restic"]),
        Some(_) => packages.push("restic"),
    }
    packages.sort_unstable();
    packages
}

impl Secrets {
    fn new(environment: &Environment) -> Self {
        let files = (environment.backup.restic.iter()).flat_map(Restic::secret_files);
        let files: Vec<_> = files
            .map(|(name, path)| SecretFile {
                name,
                path: path.clone(),
            })
            .collect();
        let written = environment.secrets().into_keys();
        let mut names: Vec<_> = written.chain(files.iter().map(|file| file.name)).collect();
        names.sort_unstable();
        let of_service: Vec<_> = names
            .iter()
            .copied()
            .filter(|it| *it == SecretName::DbPassword)
            .collect();
        Self {
            secrets: names.into(),
            service_secrets: of_service.into(),
            secret_files: files.into(),
        }
    }
}
