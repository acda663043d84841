//! What suits the driver, and which settings suit something else.

use serde::Serialize;

use super::{DAY, Driver, Explanation, State};
use crate::backup::{BackupConfig, Quiesce, RetentionDays, Strategy};
use crate::environment::Environment;
use crate::schedule::CronSchedule;

/// With fewer backups at a time, one that turns out bad leaves next to nothing.
const FEWEST_BACKUPS: u64 = 3;

/// How to freeze the tracker during the capture, which is the default for a file.
const FREEZE: &str = "leave the key out, or write \"pause\"";

/// What suits this driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Recommended {
    pub strategy: Strategy,
    pub quiesce: Quiesce,
    pub why: &'static str,
}

/// One thing to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Advice {
    /// Where, such as `backup.quiesce`.
    pub key: &'static str,
    /// What to write, as an imperative.
    pub change: String,
    pub why: String,
}

impl Recommended {
    /// What we would choose without knowing more.
    pub(super) fn by(driver: Driver) -> Self {
        match driver {
            Driver::Sqlite3 => Self {
                strategy: Strategy::MaintenanceWindow,
                quiesce: Quiesce::Pause,
                why: "a frozen tracker cannot tear the copy, keeps its swarm, and comes back by \
                      itself after a reboot; none of its writes fails, as one can during an \
                      online copy",
            },
            Driver::Mysql => Self {
                strategy: Strategy::MaintenanceWindow,
                quiesce: Quiesce::None,
                why: "a dump in one transaction is consistent while the tracker runs on, and \
                      nothing of ours stays up between runs",
            },
        }
    }
}

/// What to change, most important first.
pub(super) fn of(explanation: &Explanation, environment: &Environment) -> Vec<Advice> {
    let backup = &environment.backup;
    let elsewhere = environment.database.is_elsewhere();
    [
        quiet(explanation, backup),
        stop_timeout(explanation, backup),
        another_disk(explanation),
        retention(explanation),
        verification(explanation, elsewhere),
        unverified_server(backup, elsewhere),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// How the tracker is treated, where the driver asks for something else.
fn quiet(explanation: &Explanation, backup: &BackupConfig) -> Option<Advice> {
    let (key, change, why) = match (
        explanation.database.driver,
        explanation.strategy,
        explanation.tracker.during_capture,
    ) {
        (Driver::Sqlite3, Strategy::Sidecar, _) => (
            "backup.strategy",
            "write \"maintenance-window\", and leave \"quiesce\" out",
            stall(backup),
        ),
        (Driver::Sqlite3, Strategy::MaintenanceWindow, State::Untouched) => {
            ("backup.quiesce", FREEZE, stall(backup))
        }
        (Driver::Sqlite3, Strategy::MaintenanceWindow, State::Stopped) => (
            "backup.quiesce",
            FREEZE,
            format!(
                "tracker 3.0.0 ignores TERM and takes all of stop_timeout_seconds ({}) to stop; \
                 freezing saves that, keeps the swarm and the container's network, and after a \
                 reboot the tracker comes back by itself instead of waiting for recovery; stay \
                 with \"stop\" where the Docker engine cannot pause",
                backup.stop_timeout_seconds.get()
            ),
        ),
        (Driver::Mysql, Strategy::MaintenanceWindow, State::Stopped | State::Paused) => (
            "backup.quiesce",
            "write \"none\", or leave the key out",
            "the dump is consistent anyway; that the tracker answers nothing for as long as it \
             takes gains nothing"
                .to_owned(),
        ),
        (Driver::Sqlite3, Strategy::MaintenanceWindow, State::Paused)
        | (Driver::Mysql, Strategy::MaintenanceWindow, State::Untouched)
        | (Driver::Mysql, Strategy::Sidecar, _) => return None,
    };
    Some(Advice {
        key,
        change: change.to_owned(),
        why,
    })
}

/// Why a rollback journal and an online copy do not go together.
fn stall(backup: &BackupConfig) -> String {
    let then = if backup.allow_writer_stall {
        "beyond its busy timeout, commonly 5 s, they fail (allow_writer_stall permits that)"
    } else {
        "beyond an estimated 5 s the run is refused"
    };
    format!(
        "with a rollback journal, as the deployer makes the database, the tracker's writes wait \
         for the whole online copy: {then}; in WAL mode there is nothing to change"
    )
}

fn stop_timeout(explanation: &Explanation, backup: &BackupConfig) -> Option<Advice> {
    let usual = BackupConfig::default().stop_timeout_seconds.get();
    let too_long = explanation.tracker.during_capture == State::Stopped
        && backup.stop_timeout_seconds.get() > usual;
    too_long.then(|| Advice {
        key: "backup.stop_timeout_seconds",
        change: format!("write {usual}, or leave the key out"),
        why: "tracker 3.0.0 uses all of it and is killed all the same: more is only more downtime"
            .to_owned(),
    })
}

fn another_disk(explanation: &Explanation) -> Option<Advice> {
    let alone = explanation.destination.in_deploy_dir && explanation.remote.is_empty();
    alone.then(|| Advice {
        key: "backup.destination",
        change: "name a directory of another disk that is mounted already, such as \
                 \"/mnt/backup/torrust\", or add a copy elsewhere with backup.restic"
            .to_owned(),
        why: "a disk that dies takes the tracker and its backups with it".to_owned(),
    })
}

fn retention(explanation: &Explanation) -> Option<Advice> {
    let between_runs = explanation.runs.longest_interval_seconds;
    let between_checks = explanation
        .verification
        .as_ref()
        .map_or(0, |verification| verification.longest_interval_seconds);
    let enough_backups = (
        (FEWEST_BACKUPS * between_runs).div_ceil(DAY),
        format!(
            "at times there are fewer than {FEWEST_BACKUPS} backups, and a bad one leaves little"
        ),
    );
    let until_verified = (
        between_checks.div_ceil(DAY),
        "verification comes more rarely: most backups go before anything has proved them"
            .to_owned(),
    );
    [enough_backups, until_verified]
        .into_iter()
        .map(|(days, why)| (days.min(RetentionDays::MOST.into()), why))
        .filter(|(days, _)| *days > u64::from(explanation.destination.retention_days))
        .max_by_key(|(days, _)| *days)
        .map(|(days, why)| Advice {
            key: "backup.retention_days",
            change: format!("write {days} or more"),
            why,
        })
}

fn verification(explanation: &Explanation, elsewhere: bool) -> Option<Advice> {
    let (change, why) = match (&explanation.verification, elsewhere) {
        (Some(_), true) => (
            "write null, and run verify-backup.yml -e verify_image=IMAGE regularly, with an image \
             of the server's kind"
                .to_owned(),
            "the host does not know the image of an external server: on its own it proves nothing",
        ),
        (None, false) => {
            let usual = BackupConfig::default().verify_schedule;
            (
                format!(
                    "leave the key out, which means \"{}\"",
                    usual.as_ref().map_or("", CronSchedule::as_str)
                ),
                "nobody would find out that a backup cannot be restored before it is needed",
            )
        }
        (Some(_), false) | (None, true) => return None,
    };
    Some(Advice {
        key: "backup.verify_schedule",
        change,
        why: why.to_owned(),
    })
}

fn unverified_server(backup: &BackupConfig, elsewhere: bool) -> Option<Advice> {
    let unverified = backup.database_tls.as_ref().is_some_and(|tls| !tls.verify);
    (elsewhere && unverified).then(|| Advice {
        key: "backup.database_tls",
        change: "leave the key out, or name the server's authority with \"ca_file\"".to_owned(),
        why: "the password and every row go to whoever answers in the server's name".to_owned(),
    })
}
