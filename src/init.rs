//! An environment file to begin with, and what its keys mean.

use std::fmt::Write as _;

use crate::schema;

/// What the tracker keeps its data in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Driver {
    Sqlite3,
    Mysql,
}

/// The text of an environment file. It validates as it is, and a test compares its section
/// `backup` with the program's defaults.
#[must_use]
pub fn environment(driver: Driver) -> String {
    let (database, quiesce) = match driver {
        Driver::Sqlite3 => (
            r#""driver": "sqlite3",
        "database_name": "tracker.db""#,
            "pause",
        ),
        Driver::Mysql => (
            r#""driver": "mysql",
        "host": "mysql",
        "port": 3306,
        "database_name": "tracker",
        "username": "tracker_user",
        "password": "change-me""#,
            "none",
        ),
    };
    format!(
        r#"{{
  "$schema": "environment.schema.json",
  "environment": {{
    "name": "my-tracker"
  }},
  "ssh_credentials": {{
    "private_key_path": "~/.ssh/torrust",
    "username": "torrust",
    "port": 22
  }},
  "tracker": {{
    "core": {{
      "database": {{
        {database}
      }}
    }}
  }},
  "backup": {{
    "schedule": "0 3 * * *",
    "retention_days": 7,
    "strategy": "maintenance-window",
    "quiesce": "{quiesce}",
    "stop_timeout_seconds": 10,
    "window_timeout_seconds": 300,
    "database_scope": "full",
    "compression": "gzip",
    "destination": "/opt/torrust/storage/backup",
    "deploy_dir": "/opt/torrust",
    "allow_writer_stall": false,
    "verify_schedule": "30 5 * * 0",
    "catch_up_hours": 12,
    "jitter_seconds": 0
  }}
}}
"#
    )
}

/// What the keys of the section `backup` mean, for a terminal.
#[must_use]
pub fn help() -> String {
    let mut text = "The keys of the section `backup`. Leave out what stays at its default.\n\
                    `gen-backup-bundle schema >environment.schema.json` writes the schema, with \
                    which editors explain them too.\n"
        .to_owned();
    for (key, description) in schema::backup_keys() {
        let _ = write!(text, "\n  {key}\n{}", wrapped(description));
    }
    text
}

/// A text in lines of at most 90 columns, indented by four.
fn wrapped(text: &str) -> String {
    const COLUMNS: usize = 86;
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is a first line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= COLUMNS {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    format!("    {}\n", lines.join("\n    "))
}
