//! Turns the environment file of a Torrust Tracker deployment into a backup bundle. One way:
//!
//! ```text
//! env.json -> Environment (schema-checked, typed) -> BackupPlan (domain decisions)
//!          -> Bundle (path -> mode + text) -> directory | diff
//!          -> Explanation (facts and advice) -> text | JSON
//! ```

pub mod backup;
pub mod bundle;
pub mod database;
pub mod difference;
pub mod environment;
pub mod error;
pub mod explain;
pub mod init;
mod json;
pub mod monitoring;
pub mod output;
pub mod plan;
pub mod problem;
pub mod restic;
mod rules;
pub mod schedule;
mod schema;
mod shown;
mod syntax;
pub mod topology;
pub mod value;

pub use schema::TEXT as SCHEMA;

use std::path::Path;

use bundle::Bundle;
use chrono::NaiveDateTime;
use environment::Environment;
use error::Error;
use explain::Explanation;
use output::{Permitted, Written};
use plan::BackupPlan;
use value::HostName;

/// Writes the bundle of the environment file at `environment` to the directory `out`.
///
/// Returns what was done, and how to apply the bundle.
pub fn generate(
    environment: &Path,
    out: &Path,
    host: Option<&HostName>,
    permitted: Permitted,
) -> Result<(Written, String), Error> {
    let bundle = render(environment, host)?;
    let written = output::write(&bundle, out, permitted)?;
    Ok((written, how_to_apply(&bundle, out)))
}

/// The two lines that say what to do with a bundle that was written.
fn how_to_apply(bundle: &Bundle, out: &Path) -> String {
    let (readme, playbook) = (out.join("README.md"), out.join("install-backup.yml"));
    let (readme, playbook) = (bundle::shell_path(&readme), bundle::shell_path(&playbook));
    if bundle.subject.host.is_empty() {
        format!(
            "Read {readme}, then apply with: ansible-playbook -i HOST, {playbook}\n\
             HOST is the address of the host; the comma after it belongs to the command\n"
        )
    } else {
        format!("Read {readme}, then apply with: ansible-playbook {playbook}\n")
    }
}

/// Compares `out` with what [`generate`] would write.
///
/// A difference is an error that carries the diff.
pub fn check(environment: &Path, out: &Path, host: Option<&HostName>) -> Result<(), Error> {
    let difference = output::compare(&render(environment, host)?, out)?;
    if difference.files == 0 {
        return Ok(());
    }
    let file = match environment.to_str() {
        Some(environment::STANDARD_INPUT) => environment::STANDARD_INPUT.to_owned(),
        _ => bundle::shell_path(environment),
    };
    let host = host.map_or_else(String::new, |host| format!("--host {} ", host.as_str()));
    let command = format!("gen-backup-bundle {host}{file} {}", bundle::shell_path(out));
    Err(Error::Differs {
        out: out.to_owned(),
        difference: Box::new(difference),
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
    let host = environment.backup.host.as_ref();
    let plan = BackupPlan::new(&environment, host, bundle::image_tag);
    Ok(Explanation::new(&environment, &plan, now))
}

fn render(path: &Path, host: Option<&HostName>) -> Result<Bundle, Error> {
    let environment = Environment::read(path)?;
    let in_file = environment.backup.host.as_ref();
    if host.zip(in_file).is_some_and(|(a, b)| a != b) {
        return Err(Error::TwoHosts { path: path.into() });
    }
    let host = host.or(in_file);
    let plan = BackupPlan::new(&environment, host, bundle::image_tag);
    Bundle::render(&environment, &plan)
}
