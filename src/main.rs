//! Prints what came out, or the error with its causes and its hint; picks the exit status.

mod cli;

use std::error::Error as _;
use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use chrono::Local;
use clap::{CommandFactory as _, Parser as _};
use gen_backup_bundle::difference::{Change, Difference};
use gen_backup_bundle::error::Error;
use gen_backup_bundle::output::Permitted;
use gen_backup_bundle::value::HostName;
use gen_backup_bundle::{SCHEMA, bundle, check, explain, generate, init, validate};
use serde_json::{Value, json};

use crate::cli::{Check, Cli, Color, Command, Driver, Format, Generate, Output, VerdictFormat};

/// What a run prints, and its exit status.
#[derive(Default)]
struct Printed {
    stdout: String,
    stderr: String,
    status: u8,
}

fn main() -> ExitCode {
    let printed = run(Cli::parse());
    let written = print(io::stdout(), &printed.stdout);
    let _ = print(io::stderr(), &printed.stderr);
    match written {
        // A reader that went away (`| head`) changes nothing about the result.
        Err(source) if source.kind() != ErrorKind::BrokenPipe => {
            let error = Error::StandardOutput { source };
            let _ = print(io::stderr(), &in_words(&error, Color::Never));
            ExitCode::from(error.exit_code())
        }
        _ => ExitCode::from(printed.status),
    }
}

fn run(cli: Cli) -> Printed {
    let out = |stdout| Printed {
        stdout,
        ..Printed::default()
    };
    match cli.command {
        None => generating(&cli.generate.expect("clap asks for ENVIRONMENT and OUT")),
        Some(Command::Generate(generate)) => generating(&generate),
        Some(Command::Check(Check {
            paths,
            format,
            output,
        })) => checking(
            &paths.environment,
            &paths.out,
            paths.host.as_ref(),
            format,
            &output,
        ),
        Some(Command::Explain {
            environment,
            format,
            output,
        }) => match (explain(&environment, Local::now().naive_local()), format) {
            (Ok(_), Format::Text) if output.quiet => Printed::default(),
            (Ok(explanation), Format::Text) => {
                let page = explanation.to_string();
                let is_coloured = is_coloured(output.color, &io::stdout());
                out(if is_coloured {
                    with_bold_headings(&page)
                } else {
                    page
                })
            }
            (Ok(explanation), Format::Json) => out(bundle::json(&explanation)),
            (Err(error), _) => failed(&error, Format::Text, output.color),
        },
        Some(Command::Init { driver, quiet }) => Printed {
            stdout: init::environment(match driver {
                Driver::Sqlite3 => init::Driver::Sqlite3,
                Driver::Mysql => init::Driver::Mysql,
            }),
            stderr: if quiet { String::new() } else { init::help() },
            status: 0,
        },
        Some(Command::Validate {
            files,
            format,
            allow_disabled,
            output,
        }) => {
            let verdicts = files
                .iter()
                .map(|file| (file.as_path(), validate(file, allow_disabled).err()))
                .collect::<Vec<_>>();
            validated(&verdicts, format, &output)
        }
        Some(Command::Schema) => out(SCHEMA.to_owned()),
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            let mut command = Cli::command();
            let name = command.get_name().to_owned();
            clap_complete::generate(shell, &mut command, name, &mut script);
            out(String::from_utf8_lossy(&script).into_owned())
        }
        Some(Command::Man) => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(Cli::command()).render(&mut page);
            rendered.expect("memory can be written to");
            out(String::from_utf8_lossy(&page).into_owned())
        }
    }
}

fn generating(arguments: &Generate) -> Printed {
    let output = &Output {
        quiet: arguments.quiet,
        color: arguments.color,
    };
    let format = arguments.format;
    let Generate {
        environment,
        out,
        host,
        ..
    } = arguments;
    let host = host.as_ref();
    if arguments.check {
        return checking(environment, out, host, format.into(), output);
    }
    let permitted = Permitted {
        force: arguments.force,
        replace_secrets: arguments.replace_secrets,
    };
    let (written, how_to_apply) = match generate(environment, out, host, permitted) {
        Ok(done) => done,
        Err(error) => return failed(&error, format, output.color),
    };
    let shown = out.display();
    let (files, changed, removed) = (written.files, written.changed, written.removed);
    let mut text = format!("{shown}: {files} files, {changed} written, {removed} removed\n");
    for note in &written.notes {
        let _ = writeln!(text, "  {note}");
    }
    text.push_str(&how_to_apply);
    let object = json!({
        "out": shown.to_string(), "files": files, "written": changed, "removed": removed,
        "notes": written.notes, "how_to_apply": how_to_apply,
    });
    succeeded(text, &object, format, output)
}

fn checking(
    environment: &Path,
    out: &Path,
    host: Option<&HostName>,
    format: VerdictFormat,
    output: &Output,
) -> Printed {
    let shown = out.display();
    let as_text_or_json = match format {
        VerdictFormat::Human | VerdictFormat::Github => Format::Text,
        VerdictFormat::Json => Format::Json,
    };
    let error = match check(environment, out, host) {
        Ok(()) => {
            let object = json!({"out": shown.to_string(), "up_to_date": true});
            let text = format!("{shown} is up to date\n");
            return succeeded(text, &object, as_text_or_json, output);
        }
        Err(error) => error,
    };
    let mut printed = failed(&error, as_text_or_json, output.color);
    if let Error::Differs { difference, .. } = &error {
        let Difference { diff, changes, .. } = &**difference;
        printed.stdout = match format {
            VerdictFormat::Json => bundle::json(&json!({
                "out": shown.to_string(), "up_to_date": false,
                "differing_files": difference.files, "changes": changes, "diff": diff,
                "hint": error.hint(),
            })),
            _ if output.quiet => String::new(),
            _ if is_coloured(output.color, &io::stdout()) => {
                format!("{BOLD}{}{PLAIN}\n{}", summary(changes), coloured(diff))
            }
            _ => format!("{}\n{diff}", summary(changes)),
        };
    }
    if format == VerdictFormat::Github {
        let annotations = annotations(&environment.display().to_string(), &error);
        printed.stdout.push_str(&annotations);
        printed.stderr.clear();
    }
    printed
}

/// What applying the bundle would change, before the diff that shows how.
fn summary(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "Nothing changes on the host: only files of the bundle itself differ\n".to_owned();
    }
    let lines = changes.iter().map(|change| format!("  {change}\n"));
    format!("What changes on the host:\n{}", lines.collect::<String>())
}

fn succeeded(text: String, object: &Value, format: Format, output: &Output) -> Printed {
    let stdout = match format {
        Format::Json => bundle::json(object),
        Format::Text if output.quiet => String::new(),
        Format::Text => text,
    };
    Printed {
        stdout,
        ..Printed::default()
    }
}

/// An error as text on standard error, or as an object on standard output.
fn failed(error: &Error, format: Format, color: Color) -> Printed {
    let (stdout, stderr) = match format {
        Format::Text => (String::new(), in_words(error, color)),
        Format::Json => (bundle::json(&as_object(error)), String::new()),
    };
    Printed {
        stdout,
        stderr,
        status: error.exit_code(),
    }
}

fn in_words(error: &Error, color: Color) -> String {
    let (red, cyan, plain) = if is_coloured(color, &io::stderr()) {
        (BOLD_RED, CYAN, PLAIN)
    } else {
        ("", "", "")
    };
    let mut text = format!("{red}error:{plain} {error}\n");
    let mut cause = error.source();
    while let Some(source) = cause {
        let _ = writeln!(text, "  because: {source}");
        cause = source.source();
    }
    for line in error.hint().lines() {
        let _ = writeln!(text, "{cyan}hint:{plain} {line}");
    }
    text
}

fn as_object(error: &Error) -> Value {
    let text = error.to_string();
    let mut object = json!({"exit_status": error.exit_code(), "hint": error.hint()});
    if let Error::Invalid { problems, .. } = error {
        let first_line = text.lines().next().unwrap_or_default();
        object["error"] = first_line.trim_end_matches(':').into();
        object["problems"] = json!(problems);
    } else {
        object["error"] = text.into();
        object["because"] = error.source().map(ToString::to_string).into();
    }
    object
}

/// The verdict over each file. The exit status is 3 when any has a problem.
fn validated(
    verdicts: &[(&Path, Option<Error>)],
    format: VerdictFormat,
    output: &Output,
) -> Printed {
    let mut printed = Printed::default();
    let mut objects = Vec::new();
    for (file, error) in verdicts {
        let file = file.display().to_string();
        let Some(error) = error else {
            if format == VerdictFormat::Human && !output.quiet {
                let _ = writeln!(printed.stdout, "{file}: no problem");
            }
            objects.push(json!({"file": file, "valid": true}));
            continue;
        };
        printed.status = error.exit_code();
        match format {
            VerdictFormat::Human => printed.stderr.push_str(&in_words(error, output.color)),
            VerdictFormat::Github => printed.stdout.push_str(&annotations(&file, error)),
            VerdictFormat::Json => {
                let mut object = as_object(error);
                object["file"] = file.into();
                object["valid"] = false.into();
                objects.push(object);
            }
        }
    }
    if format == VerdictFormat::Json {
        printed.stdout = bundle::json(&objects);
    }
    printed
}

/// One line for each problem, as GitHub's runner reads it.
fn annotations(file: &str, error: &Error) -> String {
    let data = |text: &str| {
        let text = text.replace('%', "%25").replace('\r', "%0D");
        text.replace('\n', "%0A")
    };
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    let file = property(file);
    let place = match error {
        Error::Syntax { problem, .. } => problem.position(),
        _ => None,
    };
    let place = place.map_or_else(String::new, |(line, column)| {
        format!(",line={line},col={column}")
    });
    let mut text = String::new();
    if let Error::Invalid { problems, .. } = error {
        for problem in problems {
            let (found, allowed, fix) = (&problem.found, &problem.allowed, &problem.fix);
            let title = property(&problem.path);
            let what = data(&format!("found: {found}\nallowed: {allowed}\nfix: {fix}"));
            let _ = writeln!(text, "::error file={file},title={title}::{what}");
        }
    } else {
        let changes = match error {
            Error::Differs { difference, .. } => summary(&difference.changes),
            _ => String::new(),
        };
        let what = data(&format!("{error}\n{changes}{}", error.hint()));
        let _ = writeln!(text, "::error file={file}{place}::{what}");
    }
    text
}

const BOLD_RED: &str = "\x1b[1;31m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const CYAN: &str = "\x1b[36m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

fn is_coloured(color: Color, stream: &impl IsTerminal) -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
            stream.is_terminal() && !is_set("NO_COLOR") && !is_dumb
        }
    }
}

/// A page whose headings are the lines without an indent.
fn with_bold_headings(page: &str) -> String {
    page.lines().fold(String::new(), |mut text, line| {
        let _ = match line.chars().next() {
            Some(first) if first != ' ' => writeln!(text, "{BOLD}{line}{PLAIN}"),
            _ => writeln!(text, "{line}"),
        };
        text
    })
}

/// A unified diff with the colours that people know.
fn coloured(diff: &str) -> String {
    let color = |line: &str| match line {
        _ if line.starts_with("+++") || line.starts_with("---") => Some(BOLD),
        _ if line.starts_with('+') => Some(GREEN),
        _ if line.starts_with('-') => Some(RED),
        _ if line.starts_with("@@") => Some(CYAN),
        _ => None,
    };
    diff.lines().fold(String::new(), |mut text, line| {
        let _ = match color(line) {
            Some(color) => writeln!(text, "{color}{line}{PLAIN}"),
            None => writeln!(text, "{line}"),
        };
        text
    })
}

fn print(mut stream: impl Write, text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes())?;
    stream.flush()
}
