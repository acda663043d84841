//! Prints what came out, or the error with its causes and its hint; picks the exit status.

mod cli;

use std::error::Error as _;
use std::fmt::Write as _;
use std::process::ExitCode;

use chrono::Local;
use clap::Parser as _;
use gen_backup_bundle::error::Error;
use gen_backup_bundle::{bundle, check, explain, generate};

use crate::cli::{Cli, Command, Format, Generate};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(message) => {
            print(std::io::stdout(), &message);
            ExitCode::SUCCESS
        }
        Err(error) => {
            if let Error::Differs { diff, .. } = &error {
                print(std::io::stdout(), diff);
            }
            let mut text = format!("error: {error}\n");
            let mut cause = error.source();
            while let Some(source) = cause {
                let _ = writeln!(text, "  because: {source}");
                cause = source.source();
            }
            let _ = writeln!(text, "hint: {}", error.hint());
            print(std::io::stderr(), &text);
            ExitCode::from(error.exit_code())
        }
    }
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
    } = cli.generate.expect("clap asks for ENVIRONMENT and OUT");
    let shown = out.display();
    if only_check {
        check(&environment, &out, host.as_ref())?;
        return Ok(format!("{shown} is up to date\n"));
    }
    let written = generate(&environment, &out, host.as_ref(), force)?;
    Ok(format!(
        "{shown}: {} files, {} written, {} removed\n\
         Read {shown}/README.md, then apply with: ansible-playbook {shown}/install-backup.yml\n",
        written.files, written.changed, written.removed
    ))
}

/// A reader that went away (`| head`) changes nothing about the result.
fn print(mut stream: impl std::io::Write, text: &str) {
    let _ = stream
        .write_all(text.as_bytes())
        .and_then(|()| stream.flush());
}
