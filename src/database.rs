//! Domain: what the tracker keeps its data in.

use serde::{Deserialize, Serialize};

use crate::value::{DatabaseName, HostName, Line, Secret, SecretName};

/// What the tracker keeps its data in.
///
/// A new driver is a new case here. The compiler then names every place that must handle it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "driver", try_from = "Section")]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct MysqlServer {
    pub host: HostName,
    pub port: u16,
    pub database_name: DatabaseName,
    pub username: Line,
    #[serde(skip_serializing)]
    pub password: Secret,
    #[serde(skip_serializing)]
    pub root_password: Option<Secret>,
}

/// The section of the file, whatever the driver. So an error names the key that it is about.
#[derive(Deserialize)]
struct Section {
    driver: Driver,
    database_name: DatabaseName,
    host: Option<HostName>,
    #[serde(default = "mysql_port")]
    port: u16,
    username: Option<Line>,
    password: Option<Secret>,
    root_password: Option<Secret>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Driver {
    Sqlite3,
    Mysql,
}

const fn mysql_port() -> u16 {
    3306
}

impl TryFrom<Section> for Database {
    type Error = &'static str;
    fn try_from(section: Section) -> Result<Self, &'static str> {
        let database_name = section.database_name;
        Ok(match section.driver {
            Driver::Sqlite3 => Self::Sqlite { database_name },
            Driver::Mysql => Self::Mysql(MysqlServer {
                host: section.host.ok_or("a server has a host")?,
                port: section.port,
                database_name,
                username: section.username.ok_or("a server has a user")?,
                password: section.password.ok_or("a user has a password")?,
                root_password: section.root_password,
            }),
        })
    }
}

impl Database {
    /// Whether it is the server that the stack runs itself.
    #[must_use]
    pub fn is_in_stack(&self) -> bool {
        match self {
            Self::Mysql(server) => server.host.as_str() == "mysql",
            Self::Sqlite { .. } => false,
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
        self.is_server() && !self.is_in_stack()
    }

    /// The secrets that reaching it needs.
    #[must_use]
    pub fn secrets(&self) -> Vec<(SecretName, Secret)> {
        let Self::Mysql(server) = self else {
            return Vec::new();
        };
        let root = server.root_password.clone();
        std::iter::once((SecretName::DbPassword, server.password.clone()))
            .chain(root.map(|secret| (SecretName::DbRootPassword, secret)))
            .collect()
    }
}
