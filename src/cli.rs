//! The command line, and nothing else: the library knows no clap.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use gen_backup_bundle::value::HostName;

/// Makes a bundle that backs up a Torrust Tracker host
///
/// Reads the deployer's environment file and writes a directory to review, to commit and to apply
/// with `ansible-playbook OUT/install-backup.yml`. Without a command it generates.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES, disable_help_subcommand = true)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Cli {
    /// Something else than generating.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Always there without a subcommand.
    #[command(flatten)]
    pub generate: Option<Generate>,
}

/// What to generate from what.
//
// Without `flatten`: with it, clap does not notice that the bare form was used.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of the command line"
)]
pub struct Generate {
    /// The environment JSON file, or `-` for standard input
    #[arg(value_name = "ENVIRONMENT")]
    pub environment: PathBuf,

    /// The directory of the bundle
    #[arg(value_name = "OUT")]
    pub out: PathBuf,

    /// The host that the bundle is for, so that it can be applied without an inventory
    #[arg(long, value_name = "ADDRESS")]
    pub host: Option<HostName>,

    /// Write nothing: print how OUT differs from what would be written (secrets apart)
    #[arg(long)]
    pub check: bool,

    /// Overwrite files that were edited by hand, or write into a directory that is no bundle
    #[arg(long, conflicts_with = "check")]
    pub force: bool,

    /// Replace or remove secrets that were edited or that the file no longer has, keeping NAME.old
    #[arg(long, conflicts_with = "check")]
    pub replace_secrets: bool,

    /// Words for people, or an object for scripts, problems included
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub format: Format,

    /// Print nothing but errors and problems
    #[arg(short, long)]
    pub quiet: bool,

    /// Colours: `auto` on a terminal, unless `NO_COLOR` is set
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
}

/// What `check` compares.
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    pub paths: Paths,

    /// Words for people, an object for scripts, or annotations of a pull request on GitHub
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    pub format: VerdictFormat,

    #[command(flatten)]
    pub output: Output,
}

/// From where, to where, for which host.
#[derive(Debug, Args)]
pub struct Paths {
    /// The environment JSON file, or `-` for standard input
    #[arg(value_name = "ENVIRONMENT")]
    pub environment: PathBuf,

    /// The directory of the bundle
    #[arg(value_name = "OUT")]
    pub out: PathBuf,

    /// The host that the bundle is for, so that it can be applied without an inventory
    #[arg(long, value_name = "ADDRESS")]
    pub host: Option<HostName>,
}

/// How much is printed, and in which colours.
#[derive(Debug, Args)]
pub struct Output {
    /// Print nothing but errors and problems
    #[arg(short, long)]
    pub quiet: bool,

    /// Colours: `auto` on a terminal, unless `NO_COLOR` is set
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
}

/// What there is to do. Without one of these words: `generate`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write the bundle of an environment file to a directory
    #[command(after_help = EXIT_CODES)]
    Generate(Generate),

    /// Print how a directory differs from what would be written, secrets apart; write nothing
    #[command(after_help = EXIT_CODES)]
    Check(Check),

    /// Say in plain words what would be backed up, when, and what it means for the tracker
    ///
    /// Writes nothing. An environment file that is itself called `explain` is given as `./explain`.
    #[command(after_help = EXIT_CODES)]
    Explain {
        /// The environment JSON file, or `-` for standard input
        #[arg(value_name = "ENVIRONMENT")]
        environment: PathBuf,

        /// Words for people, or the same facts as an object for scripts
        #[arg(long, default_value = "text")]
        format: Format,

        #[command(flatten)]
        output: Output,
    },

    /// Print an environment file to begin with, every key of `backup` at its default
    ///
    /// The file goes to standard output, and what each key means to standard error.
    Init {
        /// What the tracker keeps its data in
        #[arg(long, default_value = "sqlite3")]
        driver: Driver,

        /// Do not print what the keys mean
        #[arg(short, long)]
        quiet: bool,
    },

    /// Check environment files and report every problem; write nothing
    #[command(after_help = EXIT_CODES)]
    Validate {
        /// The environment JSON files; `-` is standard input
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,

        /// Words for people, an object for scripts, or annotations of a pull request on GitHub
        #[arg(long, default_value = "human")]
        format: VerdictFormat,

        /// Accept a file without a section `backup`
        #[arg(long)]
        allow_disabled: bool,

        #[command(flatten)]
        output: Output,
    },

    /// Print the JSON Schema of an environment file
    Schema,

    /// Print a script that completes the words of this command line
    Completions {
        /// The shell to complete in
        shell: Shell,
    },

    /// Print the manual page, as roff
    Man,
}

/// What the tracker keeps its data in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Driver {
    Sqlite3,
    Mysql,
}

/// How an explanation or a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// How a verdict over files is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum VerdictFormat {
    #[value(alias = "text")]
    Human,
    Json,
    Github,
}

impl From<Format> for VerdictFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Text => Self::Human,
            Format::Json => Self::Json,
        }
    }
}

/// When colours are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    Auto,
    Always,
    Never,
}

const EXIT_CODES: &str = "\
Exit status:
  0  success
  1  --check found a difference
  2  wrong usage
  3  anything wrong with the environment file, missing included
  4  refused: OUT holds something that would be lost
  5  writing OUT failed";
