//! Every decision about a bundle, in the one struct that the templates see.

use serde::Serialize;

use crate::backup::{
    Compression, DB_PASSWORD, Database, DatabaseScope, HostName, HostPath, MysqlServer, Quiesce, Strategy,
};
use crate::environment::Environment;
use crate::restic::{self, Repository, Restic};
use crate::topology::{BackupPath, Network, PortBinding, Service, ServiceDependency};

/// What the templates print. Absence is an empty list, an empty text or a bool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
// The names are those of the files that they go to; a template can test nothing but a bool.
#[allow(missing_docs, clippy::struct_excessive_bools)]
pub struct BackupPlan {
    pub environment: String,
    /// Instance name and description, as far as they were given.
    pub remarks: Vec<String>,
    /// From `--host`; empty without.
    pub host: String,
    pub has_host: bool,
    pub ssh_user: String,
    pub ssh_port: u16,
    pub ssh_private_key: String,
    pub deploy_dir: String,
    pub destination: String,
    pub strategy: Strategy,
    /// Of both strategies exactly one is true.
    pub has_window: bool,
    pub has_sidecar: bool,
    pub quiesce: Quiesce,
    pub stops_tracker: bool,
    pub pauses_tracker: bool,
    /// Neither of both.
    pub runs_on: bool,
    pub stop_timeout_seconds: u32,
    pub window_timeout_seconds: u32,
    pub schedule: String,
    pub longest_interval_seconds: u64,
    /// The schedule as lists of numbers, for the host to find the next run.
    pub calendar: String,
    /// None or one.
    pub verify_schedules: Vec<String>,
    pub retention_days: u32,
    pub compression: Compression,
    pub scope: DatabaseScope,
    pub excludes_statistics: bool,
    pub allow_writer_stall: bool,
    pub database_name: String,
    /// A server's database is dumped, a file is copied.
    pub dumps: bool,
    /// The database's lines of `backup.conf`, in their order.
    pub database: Vec<Setting>,
    /// The remote repository's lines of `backup.conf`, in their order; none without one.
    pub restic: Vec<Setting>,
    pub has_restic: bool,
    /// The directory of the host that is the repository: none or one.
    pub repositories: Vec<String>,
    /// The lines of `backup-paths.txt`, in their order.
    pub paths: Vec<String>,
    /// The services of our compose fragment.
    pub roles: Vec<Role>,
    /// What no role may see of the deployment, as the reader would.
    pub masked: Vec<String>,
    pub services: Vec<Service>,
    pub networks: Vec<Network>,
    /// Those that our compose fragment declares.
    pub own_networks: Vec<Network>,
    pub has_own_networks: bool,
    pub dependencies: Vec<ServiceDependency>,
    pub has_dependencies: bool,
    pub ports: Vec<PortBinding>,
    /// Names in `secrets/`; the values never come near a template.
    pub secrets: Vec<&'static str>,
    pub has_secrets: bool,
    /// The one that the sidecar gets: the database's, for dumps.
    pub service_secrets: Vec<&'static str>,
    pub has_service_secrets: bool,
    /// Those that are files where Ansible runs.
    pub secret_files: Vec<SecretFile>,
    pub has_secret_files: bool,
    /// On the host: none or one.
    pub ca_files: Vec<String>,
    pub image: String,
    pub image_source: ImageSource,
    pub builds_image: bool,
    /// Debian's packages that the image is made of.
    pub packages: Vec<&'static str>,
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

/// In the window, the host names the directory when it starts the container.
const OF_A_RUN: &str = "/${TRACKER_BACKUP_WORK:-none}";

/// One line of `backup.conf`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Setting {
    pub key: &'static str,
    pub value: String,
}

/// A secret that is read from a file where Ansible runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct SecretFile {
    pub name: &'static str,
    pub path: String,
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
        let Environment {
            identity,
            ssh,
            database,
            services,
            backup,
        } = environment;
        let remarks = [&identity.instance_name, &identity.description];
        let quiesce = backup.quiesce(database);
        let repository = backup.restic.as_ref().map(|restic| &restic.repository);
        let networks = services.derive_networks(database);
        let mut own_networks = networks.clone();
        own_networks.retain(|network| network.is_ours());
        let dependencies = services.derive_dependencies();
        let secret_files = secret_files(backup.restic.as_ref());
        let secrets = secret_names(environment, &secret_files);
        let service_secrets: Vec<_> = secrets
            .iter()
            .copied()
            .filter(|name| *name == DB_PASSWORD)
            .collect();
        let packages = packages(backup.strategy, repository);
        let ca_file = backup
            .database_tls
            .as_ref()
            .and_then(|tls| tls.ca_file.as_ref());
        let image_source = if backup.image.is_some() {
            ImageSource::Pull
        } else {
            ImageSource::Build
        };
        Self {
            environment: identity.name.as_str().to_owned(),
            remarks: remarks
                .into_iter()
                .flatten()
                .map(|line| line.as_str().to_owned())
                .collect(),
            host: host.map_or_else(String::new, |host| host.as_str().to_owned()),
            has_host: host.is_some(),
            ssh_user: ssh.username.as_str().to_owned(),
            ssh_port: ssh.port,
            ssh_private_key: ssh.private_key_path.as_str().to_owned(),
            deploy_dir: backup.deploy_dir.as_str().to_owned(),
            destination: backup.destination().as_str().to_owned(),
            strategy: backup.strategy,
            has_window: backup.strategy == Strategy::MaintenanceWindow,
            has_sidecar: backup.strategy == Strategy::Sidecar,
            quiesce,
            stops_tracker: quiesce == Quiesce::Stop,
            pauses_tracker: quiesce == Quiesce::Pause,
            runs_on: quiesce == Quiesce::None,
            stop_timeout_seconds: backup.stop_timeout_seconds.get(),
            window_timeout_seconds: backup.window_timeout_seconds.get(),
            schedule: backup.schedule.as_str().to_owned(),
            longest_interval_seconds: backup.schedule.longest_interval(),
            calendar: backup.schedule.calendar(),
            verify_schedules: backup
                .verify_schedule
                .iter()
                .map(|schedule| schedule.as_str().to_owned())
                .collect(),
            retention_days: backup.retention_days.get(),
            compression: backup.compression,
            scope: backup.database_scope,
            excludes_statistics: backup.database_scope == DatabaseScope::ExcludeStatistics,
            allow_writer_stall: backup.allow_writer_stall,
            database_name: database.name().as_str().to_owned(),
            dumps: database.is_server(),
            database: database_settings(environment),
            restic: restic_settings(backup.restic.as_ref()),
            has_restic: backup.restic.is_some(),
            repositories: texts(repository.and_then(Repository::directory)),
            paths: services.backup_paths().map(BackupPath::line).collect(),
            roles: Role::of(backup.strategy, database),
            masked: masked(&backup.deploy_dir, &backup.destination()),
            services: services.iter().collect(),
            has_own_networks: !own_networks.is_empty(),
            networks,
            own_networks,
            has_dependencies: !dependencies.is_empty(),
            dependencies,
            ports: services.derive_ports(),
            has_secrets: !secrets.is_empty(),
            has_service_secrets: !service_secrets.is_empty(),
            service_secrets,
            secrets,
            has_secret_files: !secret_files.is_empty(),
            secret_files,
            ca_files: texts(ca_file),
            image: backup
                .image
                .as_ref()
                .map_or_else(|| built_image(&packages), |image| image.as_str().to_owned()),
            image_source,
            builds_image: image_source == ImageSource::Build,
            packages,
        }
    }
}

fn texts(path: Option<&HostPath>) -> Vec<String> {
    path.into_iter()
        .map(|path| path.as_str().to_owned())
        .collect()
}

/// Secrets, staging, and the destination if it lies in the deploy directory.
fn masked(deploy_dir: &HostPath, destination: &HostPath) -> Vec<String> {
    let below = destination.as_str().strip_prefix(deploy_dir.as_str());
    ["/backup/secrets", "/storage/backup-staging"]
        .into_iter()
        .chain(below.filter(|rest| rest.starts_with('/')))
        .map(|path| format!("/data{path}"))
        .collect()
}

fn packages(strategy: Strategy, repository: Option<&Repository>) -> Vec<&'static str> {
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
    match strategy {
        Strategy::MaintenanceWindow => {}
        Strategy::Sidecar => {
            packages.extend(["cron", "tzdata", "tzdata-legacy", "util-linux"]);
        }
    }
    match repository {
        None => {}
        Some(Repository::Sftp(_)) => packages.extend(["openssh-client", "restic"]),
        Some(_) => packages.push("restic"),
    }
    packages.sort_unstable();
    packages
}

fn secret_names(environment: &Environment, files: &[SecretFile]) -> Vec<&'static str> {
    let values = environment.secrets().into_iter().map(|(name, _)| name);
    let mut names: Vec<_> = values.chain(files.iter().map(|file| file.name)).collect();
    names.sort_unstable();
    names
}

fn secret_files(restic: Option<&Restic>) -> Vec<SecretFile> {
    let files = restic.into_iter().flat_map(Restic::secret_files);
    files
        .map(|(name, path)| SecretFile {
            name,
            path: path.as_str().to_owned(),
        })
        .collect()
}

fn restic_settings(restic: Option<&Restic>) -> Vec<Setting> {
    let Some(restic) = restic else {
        return Vec::new();
    };
    let file = |key, name| Setting {
        key,
        value: format!("/run/secrets/{name}"),
    };
    let keep = |key, keep: restic::Keep| Setting {
        key,
        value: keep.get().to_string(),
    };
    let mut settings = vec![
        file("RESTIC_REPOSITORY_FILE", restic::REPOSITORY),
        file("RESTIC_PASSWORD_FILE", restic::PASSWORD),
    ];
    if !restic.environment.is_empty() {
        settings.push(file("RESTIC_ENVIRONMENT_FILE", restic::ENVIRONMENT));
    }
    if restic.ssh_private_key_path.is_some() {
        settings.push(file("RESTIC_SSH_KEY_FILE", restic::SSH_KEY));
        settings.push(file("RESTIC_KNOWN_HOSTS_FILE", restic::KNOWN_HOSTS));
    }
    settings.extend([
        keep("RESTIC_KEEP_DAILY", restic.keep_daily),
        keep("RESTIC_KEEP_WEEKLY", restic.keep_weekly),
        keep("RESTIC_KEEP_MONTHLY", restic.keep_monthly),
        Setting {
            key: "RESTIC_CHECK",
            value: restic.check.to_string(),
        },
    ]);
    settings
}

fn database_settings(environment: &Environment) -> Vec<Setting> {
    let setting = |key, value: &str| Setting {
        key,
        value: value.to_owned(),
    };
    match &environment.database {
        Database::Sqlite { database_name } => {
            let path = format!(
                "/data/storage/tracker/lib/database/{}",
                database_name.as_str()
            );
            vec![setting("DB_TYPE", "sqlite"), setting("DB_PATH", &path)]
        }
        Database::Mysql(server) => {
            let MysqlServer {
                host,
                port,
                database_name,
                username,
                ..
            } = server;
            let mut settings = vec![
                setting("DB_TYPE", "mysql"),
                setting("DB_HOST", host.as_str()),
                setting("DB_PORT", &port.to_string()),
                setting("DB_USER", username.as_str()),
                setting("DB_NAME", database_name.as_str()),
                setting("DB_PASSWORD_FILE", "/run/secrets/db_password"),
            ];
            if server.root_password.is_some() {
                settings.push(setting(
                    "DB_ROOT_PASSWORD_FILE",
                    "/run/secrets/db_root_password",
                ));
            }
            let tls = environment.backup.database_tls.as_ref();
            // The stack's own server has a certificate that it signed itself.
            let verify = tls.map_or(environment.database.is_elsewhere(), |tls| tls.verify);
            settings.push(setting(
                "DB_TLS",
                if verify { "verified" } else { "unverified" },
            ));
            if tls.is_some_and(|tls| tls.ca_file.is_some()) {
                settings.push(setting("DB_TLS_CA_FILE", "/etc/backup/ca.pem"));
            }
            settings
        }
    }
}
