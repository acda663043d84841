//! Domain: a restic repository, where a copy of every backup goes.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::value::{HostPath, KeyPath, Refusal, Secret, SecretName, Within, no_control_characters};

/// How many snapshots of a kind are kept.
pub type Keep = Within<0, 3650>;
/// The most that a copy sends, in KiB a second.
pub type UploadLimit = Within<1, 10_000_000>;

/// The section `backup.restic`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // schemas/environment.schema.json describes each key
pub struct Restic {
    #[serde(skip_serializing)]
    pub repository: Repository,
    #[serde(skip_serializing)]
    pub password: Secret,
    #[serde(default, skip_serializing)]
    pub environment: BTreeMap<VariableName, Secret>,
    pub ssh_private_key_path: Option<KeyPath>,
    pub ssh_known_hosts_path: Option<KeyPath>,
    #[serde(default = "keep_daily")]
    pub keep_daily: Keep,
    #[serde(default = "keep_weekly")]
    pub keep_weekly: Keep,
    #[serde(default = "keep_monthly")]
    pub keep_monthly: Keep,
    #[serde(default = "check")]
    pub check: bool,
    /// Absent: as fast as it goes.
    pub limit_upload_kib: Option<UploadLimit>,
}

const fn keep_daily() -> Keep {
    const { Keep::constant(7) }
}

const fn keep_weekly() -> Keep {
    const { Keep::constant(4) }
}

const fn keep_monthly() -> Keep {
    const { Keep::constant(12) }
}

const fn check() -> bool {
    true
}

/// Where the repository is, as restic names it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Repository {
    /// A directory of the host.
    Local(HostPath),
    /// A directory that an SSH server hands out.
    Sftp(Secret),
    /// A bucket of Amazon's or of any other server with its protocol.
    S3(Secret),
    /// A bucket of Backblaze's.
    B2(Secret),
    /// A `rest-server`.
    Rest(Secret),
}

impl Repository {
    /// The address as the container sees it.
    #[must_use]
    pub fn address(&self) -> Secret {
        match self {
            Self::Local(_) => Secret::of("/restic".to_owned()),
            Self::Sftp(address) | Self::S3(address) | Self::B2(address) | Self::Rest(address) => {
                address.clone()
            }
        }
    }

    /// The directory of the host that is mounted for it.
    #[must_use]
    pub fn directory(&self) -> Option<&HostPath> {
        match self {
            Self::Local(path) => Some(path),
            Self::Sftp(_) | Self::S3(_) | Self::B2(_) | Self::Rest(_) => None,
        }
    }

    /// What it is, without its address, which may hold a password.
    #[must_use]
    pub fn description(&self) -> String {
        match self {
            Self::Local(path) => format!("the directory {}", path.as_str()),
            Self::Sftp(_) => "a server behind SSH".to_owned(),
            Self::S3(_) => "an S3 bucket".to_owned(),
            Self::B2(_) => "a B2 bucket".to_owned(),
            Self::Rest(_) => "a REST server".to_owned(),
        }
    }

    /// The variables without which restic cannot reach it.
    #[must_use]
    pub fn required_variables(&self) -> &'static [&'static str] {
        match self {
            Self::S3(_) => &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
            Self::B2(_) => &["B2_ACCOUNT_ID", "B2_ACCOUNT_KEY"],
            Self::Local(_) | Self::Sftp(_) | Self::Rest(_) => &[],
        }
    }
}

impl FromStr for Repository {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        no_control_characters(text)?;
        let refusal = || Refusal {
            allowed: "an absolute path of the host, or `sftp:`, `s3:`, `b2:` or `rest:` with what \
                      follows in restic's manual"
                .to_owned(),
            fix: "write for example \"sftp:backup@nas.example.org:/torrust\", \
                  \"s3:https://s3.example.org/bucket\" or \
                  \"rest:https://user:password@backup.example.org/\""
                .to_owned(),
        };
        if text.starts_with('/') {
            return text.parse().map(Self::Local);
        }
        let (scheme, rest) = text.split_once(':').ok_or_else(refusal)?;
        let is_url = rest.starts_with("https://") || rest.starts_with("http://");
        let address = text.parse()?;
        match scheme {
            // restic hands the host to ssh as a word: one that begins with `-` would be an option.
            "sftp" if !rest.trim_start_matches('/').is_empty() && !rest.starts_with('-') => {
                Ok(Self::Sftp(address))
            }
            "s3" if !rest.is_empty() => Ok(Self::S3(address)),
            "b2" if !rest.is_empty() => Ok(Self::B2(address)),
            "rest" if is_url => Ok(Self::Rest(address)),
            _ => Err(refusal()),
        }
    }
}

impl TryFrom<String> for Repository {
    type Error = Refusal;
    fn try_from(text: String) -> Result<Self, Refusal> {
        text.parse()
    }
}

/// The name of a variable that restic reads to reach a server, and that can do nothing else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String")]
pub struct VariableName(String);

impl VariableName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VariableName {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        let is_word = text
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        let prefixes = ["AWS_", "B2_", "RESTIC_REST_"];
        if is_word && prefixes.iter().any(|prefix| text.starts_with(prefix)) {
            return Ok(Self(text.to_owned()));
        }
        Err(Refusal {
            allowed: "variables of S3 (AWS_...), B2 (B2_...) and REST servers (RESTIC_REST_...)"
                .to_owned(),
            fix: "remove it; `repository`, `password` and the SSH key have keys of their own"
                .to_owned(),
        })
    }
}

impl TryFrom<String> for VariableName {
    type Error = Refusal;
    fn try_from(text: String) -> Result<Self, Refusal> {
        text.parse()
    }
}

impl Restic {
    /// The secrets, apart from those that are files where Ansible runs.
    #[must_use]
    pub fn secrets(&self) -> Vec<(SecretName, Secret)> {
        let lines = self.environment.iter();
        let lines = lines.map(|(name, value)| format!("{}={}\n", name.as_str(), value.reveal()));
        let lines: String = lines.collect();
        let environment =
            (!lines.is_empty()).then(|| (SecretName::ResticEnvironment, Secret::of(lines)));
        let always = [
            (SecretName::ResticPassword, self.password.clone()),
            (SecretName::ResticRepository, self.repository.address()),
        ];
        environment.into_iter().chain(always).collect()
    }

    /// The path of each secret that is a file where Ansible runs; sorted by name.
    #[must_use]
    pub fn secret_files(&self) -> Vec<(SecretName, &KeyPath)> {
        [
            (SecretName::ResticKnownHosts, &self.ssh_known_hosts_path),
            (SecretName::ResticSshKey, &self.ssh_private_key_path),
        ]
        .into_iter()
        .filter_map(|(name, path)| Some((name, path.as_ref()?)))
        .collect()
    }
}
