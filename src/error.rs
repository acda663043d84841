//! What can go wrong: messages say what, sources say why, hints say what to do.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::difference::Difference;
use crate::problem::Problem;
use crate::syntax::SyntaxProblem;

/// The largest environment file that is read.
pub const MOST_BYTES: u64 = 1 << 20;
/// The most problems that a message lists.
const MOST_PROBLEMS: usize = 20;

/// Every failure of the library, each with the path that it is about.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum Error {
    #[error("cannot read {path}", path = path.display())]
    Read { path: PathBuf, source: io::Error },

    #[error(
        "{path} is not UTF-8: line {line} has a byte that is no part of a character",
        path = path.display()
    )]
    NotUtf8 { path: PathBuf, line: usize },

    #[error("{path} is larger than {MOST_BYTES} bytes", path = path.display())]
    TooLarge { path: PathBuf },

    #[error("{path} is not valid JSON: {problem}", path = path.display())]
    Syntax {
        path: PathBuf,
        problem: SyntaxProblem,
    },

    #[error(
        "{path} is the deployer's own record of a deployment, not its environment file",
        path = path.display()
    )]
    StateFile { path: PathBuf },

    #[error("{path} has {problems}", path = path.display(), problems = Problems(problems))]
    Invalid {
        path: PathBuf,
        problems: Vec<Problem>,
    },

    #[error("cannot render {file}", file = file)]
    Render {
        file: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    #[error("{out} holds what would be lost:{list}", out = out.display(), list = Listed(lost))]
    Refused {
        out: PathBuf,
        lost: Vec<(PathBuf, Why)>,
    },

    #[error("another run is writing {out}", out = out.display())]
    Busy { out: PathBuf },

    #[error("--host and backup.host in {path} name different hosts", path = path.display())]
    TwoHosts { path: PathBuf },

    #[error("cannot write to standard output")]
    StandardOutput { source: io::Error },

    #[error("cannot {action} {path}", path = path.display())]
    Output {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    #[error(
        "{out} differs in {files} {noun}",
        out = out.display(),
        files = difference.files,
        noun = noun(difference.files, "file")
    )]
    Differs {
        out: PathBuf,
        difference: Box<Difference>,
        command: String,
    },
}

/// Why a file is refused: writing would lose something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum Why {
    #[error("was edited by hand")]
    Edited,
    #[error("is in the way of a file of the bundle")]
    InTheWay,
    #[error("is not part of this bundle")]
    Foreign,
    #[error("is not a regular file")]
    NotRegular,
    #[error("is a directory; --force does not remove it")]
    Directory,
    #[error("lies below what is not a directory; --force does not replace it")]
    BelowNoDirectory,
    #[error("is not a directory; --force does not replace it")]
    OutIsNoDirectory,
    #[error("is neither the value of the environment file nor one that this program wrote")]
    SecretEdited,
    #[error("would be removed, because the environment file has no such secret")]
    SecretRemoved,
    #[error("is of the environment {was:?}, not of {now:?}")]
    OtherEnvironment { was: String, now: String },
    #[error("names the host {0}, which would be dropped")]
    HostDropped(String),
}

impl Why {
    /// What the user can do about it.
    fn remedy(&self) -> Remedy {
        match self {
            Self::Edited
            | Self::InTheWay
            | Self::Foreign
            | Self::NotRegular
            | Self::OtherEnvironment { .. } => Remedy::Force,
            Self::Directory | Self::BelowNoDirectory => Remedy::Move,
            Self::OutIsNoDirectory => Remedy::OtherOut,
            Self::SecretEdited | Self::SecretRemoved => Remedy::ReplaceSecrets,
            Self::HostDropped(_) => Remedy::NameHost,
        }
    }
}

/// In the order in which a hint names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Remedy {
    OtherOut,
    Move,
    NameHost,
    ReplaceSecrets,
    Force,
}

impl Remedy {
    fn advice(self) -> &'static str {
        match self {
            Self::OtherOut => "name another directory as OUT, or move this file away",
            Self::Move => "move away what --force does not replace",
            Self::NameHost => "keep the host with --host or backup.host, or drop it with --force",
            Self::ReplaceSecrets => {
                "--replace-secrets goes on, and keeps each old secret as NAME.old"
            }
            Self::Force => "look with --check, move what you need, or overwrite with --force",
        }
    }
}

impl Error {
    /// The exit status, as `--help` and docs/configuration.md list them.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Differs { .. } => 1,
            Self::TwoHosts { .. } => 2,
            Self::Read { .. }
            | Self::TooLarge { .. }
            | Self::NotUtf8 { .. }
            | Self::Syntax { .. }
            | Self::StateFile { .. }
            | Self::Invalid { .. } => 3,
            Self::Refused { .. } => 4,
            Self::Render { .. }
            | Self::Output { .. }
            | Self::Busy { .. }
            | Self::StandardOutput { .. } => 5,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "give the path of the environment JSON file".to_owned()
            }
            Self::Read { source, .. } if source.kind() == io::ErrorKind::IsADirectory => {
                "give the environment JSON file itself, not its directory".to_owned()
            }
            Self::Read { .. } => "make the file readable for this user".to_owned(),
            Self::NotUtf8 { .. } => "save the file as UTF-8".to_owned(),
            Self::TooLarge { .. } => {
                "give the environment JSON file; a real one has a few kilobytes".to_owned()
            }
            Self::Syntax { problem, .. } => problem.fix.to_owned(),
            Self::StateFile { .. } => {
                "give the file that the deployer was given with `create environment --env-file`"
                    .to_owned()
            }
            Self::Invalid { .. } => {
                "docs/configuration.md lists every key; nothing was written".to_owned()
            }
            Self::Render { .. } => {
                "this is a defect of gen-backup-bundle: please report it".to_owned()
            }
            Self::Refused { lost, .. } => {
                let remedies: BTreeSet<_> = lost.iter().map(|(_, why)| why.remedy()).collect();
                let advice = remedies.into_iter().map(Remedy::advice);
                let advice = advice.collect::<Vec<_>>().join("; ");
                format!("{advice}; nothing was written")
            }
            Self::Busy { .. } => "wait until it has ended, then run again".to_owned(),
            Self::TwoHosts { .. } => {
                "leave one of the two out, or write the same host in both".to_owned()
            }
            Self::StandardOutput { .. } => {
                "give standard output to a terminal, a program or a file with free space".to_owned()
            }
            Self::Output { .. } => {
                "fix the cause and run again: that completes the bundle".to_owned()
            }
            Self::Differs {
                difference,
                command,
                ..
            } => {
                let notes = difference.notes.iter().map(|note| format!("{note}\n"));
                notes.collect::<String>() + &format!("bring it up to date with: {command}")
            }
        }
    }

    /// Says which file an operation on the output directory failed for.
    pub(crate) fn output(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Output {
            action,
            path,
            source,
        }
    }
}

struct Problems<'a>(&'a [Problem]);

impl fmt::Display for Problems<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}:", self.0.len(), noun(self.0.len(), "problem"))?;
        self.0
            .iter()
            .take(MOST_PROBLEMS)
            .try_for_each(|problem| write!(f, "\n{problem}"))?;
        match self.0.len().saturating_sub(MOST_PROBLEMS) {
            0 => Ok(()),
            more => write!(f, "\n  ... and {more} more"),
        }
    }
}

struct Listed<'a>(&'a [(PathBuf, Why)]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|(path, why)| write!(f, "\n  {}: {why}", path.display()))
    }
}

/// `file` or `files`.
pub(crate) fn noun(count: usize, singular: &str) -> String {
    if count == 1 {
        singular.to_owned()
    } else {
        format!("{singular}s")
    }
}
