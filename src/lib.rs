//! Turns the environment file of a Torrust Tracker deployment into a backup bundle. One way:
//!
//! ```text
//! env.json -> Environment (schema-checked, typed) -> BackupPlan (domain decisions)
//!          -> Bundle (path -> mode + text) -> directory | diff
//!          -> Explanation (facts and advice) -> text | JSON
//! ```

pub mod backup;
pub mod bundle;
pub mod environment;
pub mod error;
pub mod explain;
pub mod init;
mod json;
pub mod output;
pub mod plan;
pub mod restic;
mod rules;
pub mod schedule;
mod schema;
mod shown;
mod syntax;
pub mod topology;

pub use schema::TEXT as SCHEMA;

use std::path::Path;

use backup::HostName;
use bundle::Bundle;
use chrono::NaiveDateTime;
use environment::Environment;
use error::Error;
use explain::Explanation;
use output::Written;
use plan::BackupPlan;

/// Writes the bundle of the environment file at `environment` to the directory `out`.
pub fn generate(
    environment: &Path,
    out: &Path,
    host: Option<&HostName>,
    force: bool,
) -> Result<Written, Error> {
    output::write(&render(environment, host)?, out, force)
}

/// Compares `out` with what [`generate`] would write.
///
/// A difference is an error that carries the diff.
pub fn check(environment: &Path, out: &Path, host: Option<&HostName>) -> Result<(), Error> {
    let (diff, files) = output::diff(&render(environment, host)?, out)?;
    if files == 0 {
        return Ok(());
    }
    let words = [environment.to_string_lossy(), out.to_string_lossy()];
    let words = words.map(|word| bundle::sh(&word)).join(" ");
    let host = host.map_or_else(String::new, |host| format!("--host {} ", host.as_str()));
    let command = format!("gen-backup-bundle {host}{words}");
    Err(Error::Differs {
        out: out.to_owned(),
        files,
        diff,
        command,
    })
}

/// Finds every problem of the environment file at `environment`.
///
/// A file without a section `backup` is a problem too, unless `allow_disabled`.
pub fn validate(environment: &Path, allow_disabled: bool) -> Result<(), Error> {
    Environment::validate(environment, allow_disabled)
}

/// What the bundle of the environment file at `environment` would mean.
///
/// The runs that it lists are those after `now`.
pub fn explain(environment: &Path, now: NaiveDateTime) -> Result<Explanation, Error> {
    let environment = Environment::read(environment)?;
    let plan = BackupPlan::new(&environment, None, bundle::image_tag);
    Ok(Explanation::new(&environment, &plan, now))
}

fn render(environment: &Path, host: Option<&HostName>) -> Result<Bundle, Error> {
    let environment = Environment::read(environment)?;
    let plan = BackupPlan::new(&environment, host, bundle::image_tag);
    Bundle::render(&environment, &plan)
}
