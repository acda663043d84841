//! Prints what came out, or the error with its causes and its hint; picks the exit status.

mod cli;

use std::error::Error as _;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

use chrono::Local;
use clap::Parser as _;
use gen_backup_bundle::error::Error;
use gen_backup_bundle::output::Permitted;
use gen_backup_bundle::{bundle, check, explain, generate};

use crate::cli::{Cli, Command, Format, Generate};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(message) => match print(&message) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => report(&error),
        },
        Err(error) => {
            if let Error::Differs { diff, .. } = &error
                && let Err(error) = print(diff)
            {
                return report(&error);
            }
            report(&error)
        }
    }
}

/// Prints an error with its causes and its hint to standard error.
fn report(error: &Error) -> ExitCode {
    let mut text = format!("error: {error}\n");
    let mut cause = error.source();
    while let Some(source) = cause {
        let _ = writeln!(text, "  because: {source}");
        cause = source.source();
    }
    for line in error.hint().lines() {
        let _ = writeln!(text, "hint: {line}");
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
    ExitCode::from(error.exit_code())
}

fn run(cli: Cli) -> Result<String, Error> {
    if let Some(Command::Explain {
        environment,
        format,
    }) = cli.command
    {
        let explanation = explain(&environment, Local::now().naive_local())?;
        return Ok(match format {
            Format::Text => explanation.to_string(),
            Format::Json => bundle::json(&explanation),
        });
    }
    let Generate {
        environment,
        out,
        check: only_check,
        host,
        force,
        replace_secrets,
    } = cli.generate.expect("clap asks for ENVIRONMENT and OUT");
    let shown = out.display();
    let permitted = Permitted {
        force,
        replace_secrets,
    };
    if only_check {
        check(&environment, &out, host.as_ref())?;
        return Ok(format!("{shown} is up to date\n"));
    }
    let (written, how_to_apply) = generate(&environment, &out, host.as_ref(), permitted)?;
    let notes = written.notes.iter().map(|note| format!("  {note}\n"));
    Ok(format!(
        "{shown}: {} files, {} written, {} removed\n{}{how_to_apply}",
        written.files,
        written.changed,
        written.removed,
        notes.collect::<String>()
    ))
}

/// Prints to standard output. A reader that went away (`| head`) is no failure.
fn print(text: &str) -> Result<(), Error> {
    let mut stdout = std::io::stdout();
    match (stdout.write_all(text.as_bytes())).and_then(|()| stdout.flush()) {
        Err(source) if source.kind() != ErrorKind::BrokenPipe => {
            Err(Error::StandardOutput { source })
        }
        _ => Ok(()),
    }
}
