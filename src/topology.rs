//! Domain: the services of the stack, and what the backup service needs of them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::database::Database;

/// A service of the deployer's stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Service {
    Tracker,
    Mysql,
    Prometheus,
    Grafana,
    Caddy,
}

impl Service {
    /// Each of them, in their order.
    pub const ALL: [Self; 5] = [
        Self::Tracker,
        Self::Mysql,
        Self::Prometheus,
        Self::Grafana,
        Self::Caddy,
    ];

    /// The one that a database runs in; none for a file and a server elsewhere.
    #[must_use]
    pub fn of(database: &Database) -> Option<Self> {
        match database {
            Database::Mysql(_) if database.is_in_stack() => Some(Self::Mysql),
            Database::Mysql(_) | Database::Sqlite { .. } => None,
        }
    }

    /// What of it is archived, as lines of `backup-paths.txt`, relative to the deploy directory.
    ///
    /// A directory that the service mounts is there even when its content is not: without it, its
    /// owner and mode a restored stack does not start.
    #[must_use]
    pub fn backup_paths(self) -> &'static [BackupPath] {
        use BackupPath::{Directory, OptionalDirectory, OptionalSqlite, Tree};
        match self {
            Self::Tracker => &[
                Tree("storage/tracker/etc"),
                Directory("storage/tracker/lib"),
                OptionalDirectory("storage/tracker/lib/database"),
                Directory("storage/tracker/log"),
            ],
            Self::Mysql => &[Directory("storage/mysql/data")],
            Self::Prometheus => &[Tree("storage/prometheus/etc")],
            Self::Grafana => &[
                Directory("storage/grafana/data"),
                Tree("storage/grafana/provisioning"),
                OptionalSqlite("storage/grafana/data/grafana.db"),
            ],
            Self::Caddy => &[
                Tree("storage/caddy/etc"),
                Tree("storage/caddy/data"),
                OptionalDirectory("storage/caddy/config"),
            ],
        }
    }
}

/// How a path is archived. Optional: when it is missing the run warns instead of failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum BackupPath {
    /// A file, or a directory with everything in it.
    Tree(&'static str),
    /// The directory itself, its owner and mode, without its content.
    Directory(&'static str),
    OptionalDirectory(&'static str),
    /// A SQLite database, captured as one.
    OptionalSqlite(&'static str),
}

impl BackupPath {
    /// Relative to the deploy directory.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Tree(path)
            | Self::Directory(path)
            | Self::OptionalDirectory(path)
            | Self::OptionalSqlite(path) => path,
        }
    }

    /// The line of `backup-paths.txt`, as the container sees the path.
    #[must_use]
    pub fn line(self) -> String {
        let (prefix, path) = match self {
            Self::Tree(path) => ("", path),
            Self::Directory(path) => ("dir:", path),
            Self::OptionalDirectory(path) => ("?dir:", path),
            Self::OptionalSqlite(path) => ("?sqlite:", path),
        };
        format!("{prefix}/data/{path}")
    }
}

/// A network that the backup service joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// The stack's own, declared by the deployer's file.
    DatabaseNetwork,
    /// A bridge that only our fragment declares.
    BackupNetwork,
}

impl Network {
    /// Whether our fragment has to declare it.
    #[must_use]
    pub fn is_ours(self) -> bool {
        match self {
            Self::DatabaseNetwork => false,
            Self::BackupNetwork => true,
        }
    }
}

/// What must be true of a service before ours starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DependencyCondition {
    /// Its health check passes.
    ServiceHealthy,
}

/// One entry of `depends_on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct ServiceDependency {
    pub service: Service,
    pub condition: DependencyCondition,
}

/// A published port. The backup service publishes none, and there is no value to say otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum PortBinding {}

/// The services that the environment switches on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct EnabledServices(BTreeSet<Service>);

impl EnabledServices {
    /// The tracker, which is always there, with others beside it.
    #[must_use]
    pub fn with_tracker(others: impl IntoIterator<Item = Service>) -> Self {
        Self(others.into_iter().chain([Service::Tracker]).collect())
    }

    /// In the order of [`Service`].
    pub fn iter(&self) -> impl Iterator<Item = Service> + '_ {
        self.0.iter().copied()
    }

    /// What is archived beside the database: the stack's own two files, then each service's paths.
    pub fn backup_paths(&self) -> impl Iterator<Item = BackupPath> + '_ {
        let of_services = self.iter().flat_map(Service::backup_paths).copied();
        [".env", "docker-compose.yml"]
            .map(BackupPath::Tree)
            .into_iter()
            .chain(of_services)
    }

    /// The database's network where there is a server in the stack to reach, a bridge of our own
    /// to reach a database server elsewhere, none at all for files. A restic repository is reached
    /// from a container of its own.
    #[must_use]
    pub fn derive_networks(&self, database: &Database) -> Vec<Network> {
        if self.0.contains(&Service::Mysql) {
            vec![Network::DatabaseNetwork]
        } else if database.is_elsewhere() {
            vec![Network::BackupNetwork]
        } else {
            Vec::new()
        }
    }

    /// The stack's own database server, healthy.
    #[must_use]
    pub fn derive_dependencies(&self) -> Vec<ServiceDependency> {
        let condition = DependencyCondition::ServiceHealthy;
        self.iter()
            .filter(|service| matches!(service, Service::Mysql))
            .map(|service| ServiceDependency { service, condition })
            .collect()
    }

    /// None: nobody connects to a backup.
    #[must_use]
    pub fn derive_ports(&self) -> Vec<PortBinding> {
        Vec::new()
    }
}
