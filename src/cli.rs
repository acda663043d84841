//! The command line, and nothing else: the library knows no clap.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use gen_backup_bundle::backup::HostName;

/// Makes a bundle that backs up a Torrust Tracker host
///
/// Reads the deployer's environment file and writes a directory to review, to commit and to apply
/// with `ansible-playbook OUT/install-backup.yml`.
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
#[derive(Debug, Args)]
pub struct Generate {
    /// The environment JSON file; its section `backup` is described in docs/configuration.md
    #[arg(value_name = "ENVIRONMENT")]
    pub environment: PathBuf,

    /// The directory of the bundle
    #[arg(value_name = "OUT")]
    pub out: PathBuf,

    /// Write nothing: print how OUT differs from what would be written (secrets apart)
    #[arg(long)]
    pub check: bool,

    /// The host that the bundle is for, so that it can be applied without an inventory
    #[arg(long, value_name = "ADDRESS")]
    pub host: Option<HostName>,

    /// Overwrite files that were edited by hand, or write into a directory that is no bundle
    #[arg(long, conflicts_with = "check")]
    pub force: bool,

    /// Replace or remove secrets that were edited or that the file no longer has, keeping NAME.old
    #[arg(long, conflicts_with = "check")]
    pub replace_secrets: bool,
}

/// What else there is to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say in plain words what would be backed up, when, and what it means for the tracker
    ///
    /// Writes nothing. An environment file that is itself called `explain` is given as `./explain`.
    #[command(after_help = EXIT_CODES)]
    Explain {
        /// The environment JSON file; its section `backup` is described in docs/configuration.md
        #[arg(value_name = "ENVIRONMENT")]
        environment: PathBuf,

        /// Words for people, or the same facts as an object for scripts
        #[arg(long, default_value = "text")]
        format: Format,
    },
}

/// How an explanation is printed.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

const EXIT_CODES: &str = "\
Exit status:
  0  success
  1  --check found a difference
  2  wrong usage
  3  anything wrong with the environment file, missing included
  4  refused: OUT holds something that would be lost
  5  writing OUT failed";
