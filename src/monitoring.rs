//! Domain: how somebody learns whether backups are made: notifications and metrics.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::value::{HostPath, Refusal, Secret, SecretName, no_control_characters};

/// The section `backup.notify`. Every address and the whole command are secrets, since they may
/// hold a token.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // schemas/environment.schema.json describes each key
pub struct Notify {
    #[serde(default = "on_failure")]
    pub on: Occasion,
    #[serde(skip_serializing)]
    pub ping_url: Option<Url>,
    #[serde(skip_serializing)]
    pub webhook_url: Option<Url>,
    #[serde(skip_serializing)]
    pub ntfy_url: Option<Url>,
    /// A program of the host with its arguments; empty: none.
    #[serde(default, skip_serializing)]
    pub command: Vec<Secret>,
}

/// After which runs somebody is notified. A ping is sent after every run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Occasion {
    /// After one that did not succeed.
    Failure,
    /// After every one.
    Always,
    /// After one that did not succeed, and after the first that does again.
    Recovery,
}

const fn on_failure() -> Occasion {
    Occasion::Failure
}

impl Notify {
    /// The secrets: every address, and the command with one word a line.
    #[must_use]
    pub fn secrets(&self) -> Vec<(SecretName, Secret)> {
        let lines = self.command.iter().flat_map(|word| [word.reveal(), "\n"]);
        let words: String = lines.collect();
        let command = (!words.is_empty()).then(|| (SecretName::NotifyCommand, Secret::of(words)));
        let urls = [
            (SecretName::NotifyNtfyUrl, &self.ntfy_url),
            (SecretName::NotifyPingUrl, &self.ping_url),
            (SecretName::NotifyWebhookUrl, &self.webhook_url),
        ];
        let urls = urls
            .into_iter()
            .filter_map(|(name, url)| Some((name, url.as_ref()?.0.clone())));
        command.into_iter().chain(urls).collect()
    }
}

/// Where a request is sent to: `http://` or `https://`, a host, and what the server asks for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Url(Secret);

impl FromStr for Url {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        no_control_characters(text)?;
        let address = ["https://", "http://"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme));
        let host = address.and_then(|rest| rest.split(['/', '?']).next());
        let host = host.and_then(|authority| authority.rsplit('@').next());
        let has_host = host.is_some_and(|host| !host.is_empty() && !host.starts_with(':'));
        let is_plain = text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'#');
        if has_host && is_plain {
            return text.parse().map(Self);
        }
        Err(Refusal {
            allowed: "an address that begins with `https://` or `http://`, in ASCII without \
                      spaces and `#`"
                .to_owned(),
            fix: "copy the address that the service shows; write other characters as %XX"
                .to_owned(),
        })
    }
}

impl TryFrom<String> for Url {
    type Error = Refusal;
    fn try_from(text: String) -> Result<Self, Refusal> {
        text.parse()
    }
}

/// The section `backup.metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// The directory where a `node_exporter` reads text files.
    pub textfile_dir: HostPath,
}

impl Default for Metrics {
    /// Where the exporter of Debian's package prometheus-node-exporter reads them.
    fn default() -> Self {
        let directory = "/var/lib/prometheus/node-exporter";
        Self {
            textfile_dir: directory.parse().expect("a default path is valid"),
        }
    }
}
