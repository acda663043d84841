//! An explanation in plain words: `page.txt.tera`, which shares sentences with the bundle's README.

use std::fmt::{self, Display, Write as _};

use serde::Serialize;

use super::{
    Advice, Archived, Case, Content, DAY, Driver, Explanation, Gap, Interruption, Minute, NOTHING,
    Notifications, Recommended, Seconds,
};
use crate::bundle;
use crate::monitoring::Occasion;
use crate::plan::{BackupPlan, List};
use crate::rules::capture_seconds;
use crate::topology::Network;

/// Columns of a page; a longer word stands in a line of its own.
const WIDTH: usize = 100;

/// What the page prints beside the plan. A list of none or one stands for what may be absent.
#[derive(Serialize)]
struct Words<'a> {
    #[serde(flatten)]
    plan: &'a BackupPlan,
    database_kind: &'static str,
    location: &'a str,
    whole: String,
    database_files: Vec<String>,
    directories: String,
    kinds: String,
    in_deploy_dir: bool,
    remotes: List<&'a str>,
    counted_from: String,
    next_runs: Vec<String>,
    longest_interval: String,
    verifications: List<Verification>,
    notified: List<String>,
    interruptions: List<String>,
    limits: Vec<String>,
    networks_named: List<&'static str>,
    not_backed_up: &'a [Gap],
    recommended: &'a Recommended,
    advice: List<&'a Advice>,
}

#[derive(Serialize)]
struct Verification {
    schedule: String,
    next: String,
}

impl<'a> Words<'a> {
    fn new(facts: &'a Explanation) -> Self {
        let archived = |content| {
            let paths = facts.configuration.iter();
            let paths = paths.filter(|archived| archived.content == content);
            paths
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let networks = facts
            .container
            .networks
            .iter()
            .map(|network| match network {
                Network::DatabaseNetwork => "database_network of the stack, to reach mysql",
                Network::BackupNetwork => "backup_network, a bridge of its own",
            });
        let verification = facts.verification.as_ref().map(|timetable| Verification {
            schedule: timetable.schedule.to_string(),
            next: timetable
                .next_runs
                .first()
                .map_or("never".to_owned(), ToString::to_string),
        });
        Self {
            plan: &facts.plan,
            database_kind: match facts.database.driver {
                Driver::Sqlite3 => "SQLite",
                Driver::Mysql => "MySQL",
            },
            location: &facts.database.location,
            whole: archived(Content::All),
            database_files: Some(archived(Content::Database))
                .filter(|paths| !paths.is_empty())
                .into_iter()
                .collect(),
            directories: archived(Content::OwnerAndMode),
            kinds: facts.destination.directories.join(", "),
            in_deploy_dir: facts.destination.in_deploy_dir,
            remotes: facts
                .remote
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .into(),
            counted_from: facts.runs.counted_from.to_string(),
            next_runs: facts.runs.next_runs.iter().map(Minute::to_string).collect(),
            longest_interval: span(facts.runs.longest_interval_seconds),
            verifications: Vec::from_iter(verification).into(),
            notified: Vec::from_iter(facts.notifications.as_ref().map(ToString::to_string)).into(),
            interruptions: (facts.tracker.interruptions.iter())
                .map(Interruption::to_string)
                .collect::<Vec<_>>()
                .into(),
            limits: facts.limit().into_iter().collect(),
            networks_named: networks.collect::<Vec<_>>().into(),
            not_backed_up: &facts.not_backed_up,
            recommended: &facts.recommended,
            advice: facts.advice.iter().collect::<Vec<_>>().into(),
        }
    }
}

impl Explanation {
    /// How long the tracker may be away, and for which size of database that is enough.
    fn limit(&self) -> Option<String> {
        let limit = capture_seconds(self.tracker.limit_seconds?);
        let room = match self.tracker.limit_gb {
            None => String::new(),
            Some(0) => ": too short to copy 1 GB for sure".to_owned(),
            Some(gb) => format!(": enough to copy about {gb} GB"),
        };
        Some(format!("Quiescing and capturing may take {limit} s{room}."))
    }
}

impl Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let page = bundle::page(include_str!("page.txt.tera"), &Words::new(self));
        page.trim_end()
            .lines()
            .try_for_each(|line| f.write_str(&filled(line)))
    }
}

/// A line in as many lines as it needs, each at its indent.
fn filled(line: &str) -> String {
    let text = line.trim_start_matches([' ', '-']);
    let (first, others) = match line.len() - text.len() {
        0 => ("", ""),
        2 => ("  ", "  "),
        _ => ("  - ", "    "),
    };
    let mut lines = vec![first.to_owned()];
    for (index, word) in text.split(' ').enumerate() {
        let last = lines.last_mut().expect("there is a first line");
        if index > 0 && last.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(others.to_owned() + word);
        } else {
            let _ = write!(last, "{}{word}", if index > 0 { " " } else { "" });
        }
    }
    lines.join("\n") + "\n"
}

impl Display for Archived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let optional = if self.optional { " (if there)" } else { "" };
        write!(f, "{}{optional}", self.path)
    }
}

impl Display for Notifications {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let when = match self.on {
            Occasion::Failure => "after a run that did not succeed",
            Occasion::Always => "after every run",
            Occasion::Recovery => {
                "after a run that did not succeed, and after the first that does again"
            }
        };
        write!(f, "Notified {when}, a ping always: {}.", self.by.join(", "))
    }
}

impl Display for Minute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.format("%a %Y-%m-%d %H:%M"))
    }
}

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { least, most } = self;
        if *least > 0.0 {
            write!(f, "{least} to {most} s")
        } else {
            write!(f, "at most {most} s")
        }
    }
}

impl Display for Interruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            case,
            seconds,
            seconds_per_gb,
        } = *self;
        match seconds_per_gb {
            None => write!(f, "{seconds}, and as long as the dump takes"),
            Some(NOTHING) => write!(f, "{seconds} whatever the size of the database"),
            Some(per_gb) if seconds == NOTHING => write!(f, "{per_gb} per GB of the database"),
            Some(per_gb) => write!(f, "{seconds}, and {per_gb} per GB of the database"),
        }?;
        f.write_str(match case {
            Case::NoReflinks => ", where the file system makes no reflinks (ext4)",
            Case::Reflinks => ", where the file system makes reflinks (xfs, btrfs)",
            Case::RollbackJournal => ", where the database keeps a rollback journal, as deployed",
            Case::Wal => ", where the database is in WAL mode",
            Case::Dump => "",
        })
    }
}

/// A length of time in the largest unit of which it is more than one, and whole.
fn span(seconds: u64) -> String {
    let (unit, name) = [(DAY, "day"), (60 * 60, "hour")]
        .into_iter()
        .find(|(unit, _)| seconds.is_multiple_of(*unit) && seconds > *unit)
        .unwrap_or((60, "minute"));
    match seconds / unit {
        1 => format!("1 {name}"),
        count => format!("{count} {name}s"),
    }
}
