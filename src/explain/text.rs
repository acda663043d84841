//! An explanation in plain words.

use std::fmt::{self, Write as _};

use serde::Serialize;
use serde_json::Value;

use super::{
    Advice, Archived, Case, Content, DAY, Driver, Explanation, Gap, Interruption, Minute, NOTHING,
    Notifications, Seconds, State, Timetable,
};
use crate::backup::{DatabaseScope, Strategy};
use crate::monitoring::Occasion;
use crate::plan::ImageSource;
use crate::rules::capture_seconds;
use crate::topology::{DependencyCondition, Network};
use crate::value::SecretName;

/// Columns of a page; a longer word stands in a line of its own.
const WIDTH: usize = 100;

/// Headings, sentences and lists, each line at its indent.
struct Page(String);

impl Page {
    fn heading(&mut self, text: &str) {
        let _ = writeln!(self.0, "\n{text}");
    }

    fn say(&mut self, text: &str) {
        self.fill("  ", "  ", text);
    }

    fn item(&mut self, text: &str) {
        self.fill("  - ", "    ", text);
    }

    fn fill(&mut self, first: &str, others: &str, text: &str) {
        let mut line = first.to_owned();
        let mut columns = first.len();
        for (index, word) in text.split(' ').enumerate() {
            let length = word.chars().count();
            if index > 0 && columns + 1 + length > WIDTH {
                let _ = writeln!(self.0, "{line}");
                (line, columns) = (others.to_owned(), others.len());
            } else if index > 0 {
                line.push(' ');
                columns += 1;
            }
            line.push_str(word);
            columns += length;
        }
        let _ = writeln!(self.0, "{line}");
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut page = Page(format!("Backups of {}\n", self.environment));
        self.what(&mut page);
        self.where_to(&mut page);
        self.when(&mut page);
        self.told(&mut page);
        self.meanwhile(&mut page);
        self.container(&mut page);
        self.not_backed_up(&mut page);
        self.advice(&mut page);
        f.write_str(&page.0)
    }
}

impl Explanation {
    fn what(&self, page: &mut Page) {
        page.heading("What is backed up");
        let rows = match self.database.scope {
            DatabaseScope::Full => "every row of it",
            DatabaseScope::ExcludeStatistics => {
                "without the torrents that were never completed; all the rest of it"
            }
        };
        page.item(&match self.database.driver {
            Driver::Sqlite3 => {
                format!(
                    "the tracker's database, {} (SQLite): {rows}",
                    self.database.location
                )
            }
            Driver::Mysql => format!(
                "the tracker's database, {} on {} (MySQL): {rows}",
                self.database.name, self.database.location
            ),
        });
        let listed = |content: Content| {
            let paths = self.configuration.iter();
            let paths = paths.filter(|archived| archived.content == content);
            paths.map(Archived::words).collect::<Vec<_>>().join(", ")
        };
        let deploy_dir = &self.destination.deploy_dir;
        page.item(&format!(
            "the configuration, from {deploy_dir}: {}",
            listed(Content::All)
        ));
        let databases = listed(Content::Database);
        if !databases.is_empty() {
            page.item(&format!("as a database: {databases}"));
        }
        page.item(&format!(
            "owner and mode, so that a restored stack starts, of {}",
            listed(Content::OwnerAndMode)
        ));
    }

    fn where_to(&self, page: &mut Page) {
        let to = &self.destination;
        page.heading("Where to");
        page.say(&format!(
            "{}/{{{}}}, {}.",
            to.path,
            to.directories.join(","),
            if to.in_deploy_dir {
                "inside the deploy directory: on its disk, unless another one is mounted there"
            } else {
                "which has to be mounted already; whether that is another disk or machine, you know"
            }
        ));
        page.say(&format!(
            "Compressed with {}. Kept for {}, the newest verified one always.",
            name(to.compression),
            span(u64::from(to.retention_days) * DAY)
        ));
        if self.remote.is_empty() {
            page.say("Nothing is copied anywhere else.");
        }
        for remote in &self.remote {
            page.say(&format!("Copied to {remote}."));
        }
    }

    fn when(&self, page: &mut Page) {
        page.heading("When");
        let Timetable {
            schedule,
            longest_interval_seconds,
            counted_from,
            next_runs,
        } = &self.runs;
        page.say(&format!(
            "By the schedule \"{schedule}\", in the host's time zone. The next runs, counted from \
             {counted_from} on this machine's clock:"
        ));
        for run in next_runs {
            page.item(&run.to_string());
        }
        page.say(&format!(
            "Up to {} lie between two runs: that much a restore may lose.",
            span(*longest_interval_seconds)
        ));
        if self.jitter_seconds > 0 {
            page.say(&format!(
                "A run begins up to {} s later, always the same on one host.",
                self.jitter_seconds
            ));
        }
        page.say(&match self.catch_up_hours {
            0 => "A run that the host missed is not made up for: the next one is the next of the \
                  schedule."
                .to_owned(),
            hours => format!(
                "A run that the host missed because it was off is made up for, up to {hours} \
                 hours later, when the tracker has run for five minutes."
            ),
        });
        page.say(&match &self.verification {
            Some(verification) => format!(
                "By the schedule \"{}\", the newest backup is proved restorable{}.",
                verification.schedule,
                verification
                    .next_runs
                    .first()
                    .map_or_else(String::new, |run| format!("; next {run}"))
            ),
            None => "No schedule proves that the newest backup can be restored: that is left to \
                     verify-backup.yml."
                .to_owned(),
        });
    }

    fn told(&self, page: &mut Page) {
        page.heading("Who is told");
        page.say(&match &self.notifications {
            None => "Nobody is notified when backups fail or stop: backup.notify changes that."
                .to_owned(),
            Some(Notifications { on, by }) => {
                let when = match on {
                    Occasion::Failure => "after a run that did not succeed",
                    Occasion::Always => "after every run",
                    Occasion::Recovery => {
                        "after a run that did not succeed, and after the first that does again"
                    }
                };
                format!("Notified {when}, a ping always: {}.", by.join(", "))
            }
        });
        if let Some(directory) = &self.metrics {
            page.say(&format!(
                "Metrics for Prometheus are written to {directory}."
            ));
        }
    }

    fn meanwhile(&self, page: &mut Page) {
        let tracker = &self.tracker;
        page.heading("What it means for the tracker");
        page.say(match tracker.during_capture {
            State::Stopped => {
                "It is stopped while its database is captured, then started again. Meanwhile it \
                 answers nothing, and the swarm in its memory is lost: peers come back as they \
                 announce again."
            }
            State::Paused => {
                "It is frozen while its database is captured, then goes on. Meanwhile it answers \
                 nothing; the swarm in its memory stays."
            }
            State::Untouched => "It is untouched: its database is captured while it runs on.",
        });
        if tracker.during_capture == State::Untouched && tracker.interruptions.is_empty() {
            page.say("The dump is one transaction: it does not make the tracker wait.");
        } else {
            page.say(match tracker.during_capture {
                State::Untouched => "Its writes to the database wait meanwhile, for about",
                State::Stopped | State::Paused => "It answers nothing for about",
            });
            for interruption in &tracker.interruptions {
                page.item(&interruption.to_string());
            }
            page.say(
                "These are rough figures, measured with 2.1 GB on two cores: docs/performance.md.",
            );
        }
        if let Some(limit) = tracker.limit_seconds {
            let room = match tracker.limit_gb {
                None => String::new(),
                Some(0) => ": too short to copy 1 GB for sure".to_owned(),
                Some(gb) => format!(": enough to copy about {gb} GB"),
            };
            let quiescing = match tracker.during_capture {
                State::Paused => "Freezing",
                State::Stopped | State::Untouched => "Stopping",
            };
            page.say(&format!(
                "{quiescing} and capturing may take {} s{room}. After that the run fails and the \
                 tracker comes back, whatever still hangs, within {limit} s in all.",
                capture_seconds(limit)
            ));
        }
        page.say("Checking, compressing and archiving come after that and do not concern it.");
    }

    fn container(&self, page: &mut Page) {
        let container = &self.container;
        page.heading("The backup container");
        page.say(match self.strategy {
            Strategy::MaintenanceWindow => {
                "Started by cron on the host for a run, and gone after it."
            }
            Strategy::Sidecar => "Stays up in the stack, and starts its runs by a cron of its own.",
        });
        let networks = container.networks.iter().map(|network| match network {
            Network::DatabaseNetwork => "database_network of the stack, to reach mysql".to_owned(),
            Network::BackupNetwork => "backup_network, a bridge of its own".to_owned(),
        });
        page.item(&format!("networks: {}", listed_or(networks, "none at all")));
        let dependencies = container.dependencies.iter().map(|dependency| {
            let service = name(dependency.service);
            match dependency.condition {
                DependencyCondition::ServiceHealthy => format!("{service}, healthy"),
            }
        });
        page.item(&format!(
            "depends on: {}",
            listed_or(dependencies, "no service")
        ));
        let ports = container.ports.iter().map(|port| match *port {});
        page.item(&format!("published ports: {}", listed_or(ports, "none")));
        let secrets = container.secrets.iter().map(SecretName::to_string);
        page.item(&format!("secrets: {}", listed_or(secrets, "none")));
        page.item(&match container.image_source {
            ImageSource::Build => "image: built on the host from the bundle".to_owned(),
            ImageSource::Pull => format!("image: pulled, {}", container.image),
        });
        page.say(
            "It reads the deployment, and writes to its staging directory and the destination \
             alone. It starts no other service.",
        );
    }

    fn not_backed_up(&self, page: &mut Page) {
        page.heading("What is not backed up");
        for Gap { what, note } in &self.not_backed_up {
            page.item(&format!("{what}; {note}"));
        }
    }

    fn advice(&self, page: &mut Page) {
        page.heading("Advice");
        page.say(&format!(
            "For {}: strategy \"{}\" with quiesce \"{}\", because {}.",
            match self.database.driver {
                Driver::Sqlite3 => "SQLite",
                Driver::Mysql => "MySQL",
            },
            name(self.recommended.strategy),
            name(self.recommended.quiesce),
            self.recommended.why
        ));
        if self.advice.is_empty() {
            page.say("Nothing to change: everything is as advised.");
        }
        for Advice { key, change, why } in &self.advice {
            page.item(&format!("{key}: {change}; {why}."));
        }
    }
}

fn listed_or(words: impl Iterator<Item = String>, nothing: &str) -> String {
    let words: Vec<_> = words.collect();
    if words.is_empty() {
        nothing.to_owned()
    } else {
        words.join("; ")
    }
}

impl Archived {
    fn words(&self) -> String {
        let optional = if self.optional { " (if there)" } else { "" };
        format!("{}{optional}", self.path)
    }
}

impl fmt::Display for Minute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.format("%a %Y-%m-%d %H:%M"))
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { least, most } = self;
        if *least > 0.0 {
            write!(f, "{least} to {most} s")
        } else {
            write!(f, "at most {most} s")
        }
    }
}

impl fmt::Display for Interruption {
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

/// What the environment file and the JSON call it.
fn name(word: impl Serialize) -> String {
    match serde_json::to_value(word) {
        Ok(Value::String(word)) => word,
        other => unreachable!("not a word: {other:?}"),
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
