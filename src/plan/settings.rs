//! What is captured of the database, and the lines of `backup.conf`.

use serde::Serialize;

use super::List;
use crate::backup::{Compression, DatabaseScope};
use crate::database::{Database, MysqlServer};
use crate::environment::Environment;
use crate::monitoring::{Notify, Occasion};
use crate::restic::Restic;
use crate::value::{DatabaseName, SecretName};

/// What the worker in the image is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Settings {
    pub compression: Compression,
    pub scope: DatabaseScope,
    pub excludes_statistics: bool,
    pub allow_writer_stall: bool,
    pub database_name: DatabaseName,
    /// A server's database is dumped, a file is copied.
    pub dumps: bool,
    /// The database's lines of `backup.conf`, in their order.
    pub database: Vec<Setting>,
    /// The remote repository's lines.
    pub restic: List<Setting>,
    /// The notifications' lines.
    pub notify: Vec<Setting>,
}

/// One line of `backup.conf`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Setting {
    pub key: &'static str,
    pub value: String,
}

fn setting(key: &'static str, value: &(impl ToString + ?Sized)) -> Setting {
    let value = value.to_string();
    Setting { key, value }
}

/// A setting that names the file of a secret.
fn file(key: &'static str, secret: SecretName) -> Setting {
    setting(key, &format_args!("/run/secrets/{secret}"))
}

impl Settings {
    pub(super) fn new(environment: &Environment) -> Self {
        let Environment {
            database, backup, ..
        } = environment;
        let restic: Vec<_> = backup.restic.iter().flat_map(restic).collect();
        Self {
            compression: backup.compression,
            scope: backup.database_scope,
            excludes_statistics: backup.database_scope == DatabaseScope::ExcludeStatistics,
            allow_writer_stall: backup.allow_writer_stall,
            database_name: database.name().clone(),
            dumps: database.is_server(),
            database: match database {
                Database::Sqlite { database_name } => sqlite(database_name),
                Database::Mysql(server) => mysql(environment, server),
            },
            restic: restic.into(),
            notify: backup.notify.iter().flat_map(notify).collect(),
        }
    }
}

fn sqlite(name: &DatabaseName) -> Vec<Setting> {
    let path = format!("/data/storage/tracker/lib/database/{}", name.as_str());
    vec![setting("DB_TYPE", "sqlite"), setting("DB_PATH", &path)]
}

fn mysql(environment: &Environment, server: &MysqlServer) -> Vec<Setting> {
    let mut settings = vec![
        setting("DB_TYPE", "mysql"),
        setting("DB_HOST", server.host.as_str()),
        setting("DB_PORT", &server.port),
        setting("DB_USER", server.username.as_str()),
        setting("DB_NAME", server.database_name.as_str()),
        file("DB_PASSWORD_FILE", SecretName::DbPassword),
    ];
    if server.root_password.is_some() {
        settings.push(file("DB_ROOT_PASSWORD_FILE", SecretName::DbRootPassword));
    }
    let tls = environment.backup.database_tls.as_ref();
    // The stack's own server has a certificate that it signed itself.
    let verifies = tls.map_or(environment.database.is_elsewhere(), |tls| tls.verify);
    settings.push(setting(
        "DB_TLS",
        if verifies { "verified" } else { "unverified" },
    ));
    if tls.is_some_and(|tls| tls.ca_file.is_some()) {
        settings.push(setting("DB_TLS_CA_FILE", "/etc/backup/ca.pem"));
    }
    settings
}

fn restic(restic: &Restic) -> Vec<Setting> {
    let mut settings = vec![
        file("RESTIC_REPOSITORY_FILE", SecretName::ResticRepository),
        file("RESTIC_PASSWORD_FILE", SecretName::ResticPassword),
    ];
    if !restic.environment.is_empty() {
        settings.push(file(
            "RESTIC_ENVIRONMENT_FILE",
            SecretName::ResticEnvironment,
        ));
    }
    if restic.ssh_private_key_path.is_some() {
        settings.push(file("RESTIC_SSH_KEY_FILE", SecretName::ResticSshKey));
        settings.push(file(
            "RESTIC_KNOWN_HOSTS_FILE",
            SecretName::ResticKnownHosts,
        ));
    }
    settings.extend([
        setting("RESTIC_KEEP_DAILY", &restic.keep_daily.get()),
        setting("RESTIC_KEEP_WEEKLY", &restic.keep_weekly.get()),
        setting("RESTIC_KEEP_MONTHLY", &restic.keep_monthly.get()),
        setting("RESTIC_CHECK", &restic.check),
    ]);
    let limit = restic.limit_upload_kib;
    settings.extend(limit.map(|limit| setting("RESTIC_LIMIT_UPLOAD_KIB", &limit.get())));
    settings
}

fn notify(notify: &Notify) -> Vec<Setting> {
    let on = match notify.on {
        Occasion::Failure => "failure",
        Occasion::Always => "always",
        Occasion::Recovery => "recovery",
    };
    let key = |name| match name {
        SecretName::NotifyCommand => "NOTIFY_COMMAND_FILE",
        SecretName::NotifyNtfyUrl => "NOTIFY_NTFY_URL_FILE",
        SecretName::NotifyPingUrl => "NOTIFY_PING_URL_FILE",
        _ => "NOTIFY_WEBHOOK_URL_FILE",
    };
    let secrets = notify.secrets().into_iter();
    let files = secrets.map(|(name, _)| file(key(name), name));
    std::iter::once(setting("NOTIFY_ON", on))
        .chain(files)
        .collect()
}
