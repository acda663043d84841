//! What every part of the domain is made of: checked texts, paths, secrets, ranges.
//!
//! Imports nothing of ours.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

/// Why a value was refused: what is allowed instead, and what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{allowed}; to fix it, {fix}")]
pub struct Refusal {
    /// What would have been accepted, as the object of "allowed:".
    pub allowed: String,
    /// What to do about it, as an imperative.
    pub fix: String,
}

impl Refusal {
    /// Reads what one was printed as, perhaps by a parser that has only its text.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let (allowed, fix) = text.split_once("; to fix it, ")?;
        Some(Self {
            allowed: allowed.to_owned(),
            fix: fix.to_owned(),
        })
    }
}

fn refuse<T>(allowed: impl Into<String>, fix: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal {
        allowed: allowed.into(),
        fix: fix.into(),
    })
}

/// Declares a string that is checked once, wherever it comes from.
macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// The text as it was given.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Refusal;
            fn try_from(text: String) -> Result<Self, Refusal> {
                no_control_characters(&text)?;
                no_invisible_characters(&text)?;
                $check(&text)?;
                Ok(Self(text))
            }
        }

        impl FromStr for $name {
            type Err = Refusal;
            fn from_str(text: &str) -> Result<Self, Refusal> {
                Self::try_from(text.to_owned())
            }
        }
    };
}

checked_text! {
    /// One line of text: not empty, no control characters.
    Line, not_empty
}
checked_text! {
    /// An absolute directory or file of the host, in its shortest form.
    HostPath, absolute_and_normal
}
checked_text! {
    /// A file or directory below the deploy directory, in its shortest form.
    PathBelow, relative_and_normal
}
checked_text! {
    /// A file of the machine that runs Ansible: absolute, or below `~/`.
    KeyPath, absolute_or_home
}
checked_text! {
    /// A name for SSH or for an inventory, or an IP address.
    HostName, host_name
}
checked_text! {
    /// A login name: one word that no command takes for an option.
    UserName, user_name
}
checked_text! {
    /// A database, or the file of one: never a path.
    DatabaseName, database_name
}
checked_text! {
    /// `[registry[:port]/]name[:tag][@digest]`, as Docker reads it.
    ImageReference, image_reference
}

impl HostPath {
    /// A path below this one.
    pub(crate) fn join(&self, below: &str) -> Self {
        Self(format!("{}/{below}", self.0))
    }
}

/// The first control character of a text is refused: none of our files could carry it.
///
/// Includes DEL and the C1 range, as Unicode's category Cc does.
pub fn no_control_characters(text: &str) -> Result<(), Refusal> {
    match text.chars().position(char::is_control) {
        None => Ok(()),
        Some(at) => {
            let found = u32::from(text.chars().nth(at).unwrap_or_default());
            refuse(
                "text without control characters, in one line",
                format!("remove character {} (U+{found:04X})", at + 1),
            )
        }
    }
}

/// Characters that take no room, or change the order of others, are refused: people review bundles.
///
/// Not in secrets, which nobody reviews.
fn no_invisible_characters(text: &str) -> Result<(), Refusal> {
    let is_invisible = |c: &char| {
        matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{202a}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
        )
    };
    match text.chars().enumerate().find(|(_, c)| is_invisible(c)) {
        None => Ok(()),
        Some((at, found)) => refuse(
            "text without zero-width characters and without those that change the direction",
            format!("remove character {} (U+{:04X})", at + 1, u32::from(found)),
        ),
    }
}

fn not_empty(text: &str) -> Result<(), Refusal> {
    if text.is_empty() {
        refuse("text that is not empty", "write one")
    } else {
        Ok(())
    }
}

fn absolute_and_normal(text: &str) -> Result<(), Refusal> {
    const ALLOWED: &str = "an absolute path of the host without `.`, `..`, `//` or a final `/`";
    if text.contains("://") {
        return refuse(
            ALLOWED,
            "name a directory of the host; `backup.restic` copies elsewhere",
        );
    }
    if !text.starts_with('/') {
        return refuse(ALLOWED, "write the whole path, beginning with `/`");
    }
    let parts: Vec<&str> = text
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    if parts.contains(&"..") {
        return refuse(ALLOWED, "write the path that the `..` leads to");
    }
    let normal = format!("/{}", parts.join("/"));
    if normal == "/" {
        return refuse(ALLOWED, "name a directory below `/`");
    }
    if normal == text {
        Ok(())
    } else {
        refuse(ALLOWED, "write it without `.`, `//` and the final `/`")
    }
}

fn relative_and_normal(text: &str) -> Result<(), Refusal> {
    const ALLOWED: &str = "a path below the deploy directory, without `.`, `..`, `//` or a final \
                           `/`, such as \"storage/index\"";
    if text.starts_with('/') {
        return refuse(ALLOWED, "write it relative to backup.deploy_dir");
    }
    if text.starts_with(['?', '#']) || text.contains(':') || text.trim() != text {
        return refuse(
            ALLOWED,
            "write the path alone; one with a colon cannot be archived",
        );
    }
    if text.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return refuse(ALLOWED, "write the shortest form of the path");
    }
    Ok(())
}

fn absolute_or_home(text: &str) -> Result<(), Refusal> {
    if text.starts_with('/') || text.strip_prefix("~/").is_some_and(|rest| !rest.is_empty()) {
        return Ok(());
    }
    refuse(
        "a path that begins with `/` or `~/`",
        "write the whole path: a relative one would depend on where Ansible is started",
    )
}

fn host_name(text: &str) -> Result<(), Refusal> {
    const ALLOWED: &str = "a host name (letters, digits, `-`, `_`, `.`) or an IP address";
    let label_is_good = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    if text.starts_with('[') {
        return refuse(ALLOWED, "write an IPv6 address without brackets");
    }
    if text.len() > 253 || !text.split('.').all(label_is_good) {
        return refuse(
            ALLOWED,
            "write one name, without user, port, scheme or spaces",
        );
    }
    // Resolvers take a name that ends in a number for an IPv4 address.
    if text
        .rsplit('.')
        .next()
        .is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()))
    {
        return refuse(
            ALLOWED,
            "write an IPv4 address as four numbers from 0 to 255",
        );
    }
    Ok(())
}

fn user_name(text: &str) -> Result<(), Refusal> {
    if text.is_empty() || text.starts_with('-') || text.chars().any(char::is_whitespace) {
        return refuse(
            "a login name without spaces that does not begin with `-`",
            "write the user that Ansible logs in as, for example \"torrust\"",
        );
    }
    Ok(())
}

fn database_name(text: &str) -> Result<(), Refusal> {
    if text.is_empty() || text == "." || text.contains('/') || text.contains("..") {
        return refuse(
            "a name without `/` and `..`",
            "write the name alone, for example \"tracker.db\" or \"tracker\": directories are \
             fixed",
        );
    }
    Ok(())
}

fn image_reference(text: &str) -> Result<(), Refusal> {
    let word = |text: &str, extra: &str| {
        !text.is_empty()
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
    };
    let (rest, digest) = text
        .split_once('@')
        .map_or((text, None), |(rest, d)| (rest, Some(d)));
    // A colon after the last slash begins the tag; one before it is the registry's port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let parts: Vec<&str> = name.split('/').collect();
    let has_registry =
        parts.len() > 1 && (parts[0].contains(['.', ':']) || parts[0] == "localhost");
    let path = &parts[usize::from(has_registry)..];
    let registry_is_good = || {
        let (host, port) = parts[0].split_once(':').unwrap_or((parts[0], "5000"));
        word(host, ".-") && port.parse::<u16>().is_ok()
    };
    let good = (!has_registry || registry_is_good())
        && path.iter().all(|part| {
            word(part, "._-")
                && part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.ends_with(|c: char| c.is_ascii_alphanumeric())
                && !part.contains(|c: char| c.is_ascii_uppercase())
        })
        && tag
            .is_none_or(|tag| word(tag, "._-") && tag.len() <= 128 && !tag.starts_with(['.', '-']))
        && digest.is_none_or(|digest| {
            digest.strip_prefix("sha256:").is_some_and(|hex| {
                hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            })
        });
    if good {
        return Ok(());
    }
    let lower = text.to_ascii_lowercase();
    if lower != text && image_reference(&lower).is_ok() {
        return refuse(
            "an image reference, the name in lower case",
            "write the name in lower case, and keep the tag as it is",
        );
    }
    refuse(
        "an image reference: [registry[:port]/]name[:tag][@sha256:digest], the name in lower case",
        "write for example \"registry.example.org/tracker-backup:1.0\", or leave the key out to \
         build on the host",
    )
}

/// A password: shown nowhere, serialised nowhere, written by `output.rs` into `secrets/` alone.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Secret(String);

impl Secret {
    /// The one way to the value.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// One that we make ourselves of what was checked, such as several in the lines of a file.
    pub(crate) fn of(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl FromStr for Secret {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        no_control_characters(text)?;
        not_empty(text)?;
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Secret {
    type Error = Refusal;
    fn try_from(text: String) -> Result<Self, Refusal> {
        text.parse()
    }
}

/// A file in `secrets/`, and in the container below `/run/secrets/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum SecretName {
    DbPassword,
    DbRootPassword,
    /// The program and its arguments, one a line.
    NotifyCommand,
    NotifyNtfyUrl,
    NotifyPingUrl,
    NotifyWebhookUrl,
    /// Variables that restic needs to reach its repository: lines `NAME=value`.
    ResticEnvironment,
    ResticKnownHosts,
    ResticPassword,
    /// The address of the repository, which may hold a password.
    ResticRepository,
    ResticSshKey,
}

impl SecretName {
    /// Those that this program writes. The others are files where Ansible runs.
    pub const WRITTEN: [Self; 9] = [
        Self::DbPassword,
        Self::DbRootPassword,
        Self::NotifyCommand,
        Self::NotifyNtfyUrl,
        Self::NotifyPingUrl,
        Self::NotifyWebhookUrl,
        Self::ResticEnvironment,
        Self::ResticPassword,
        Self::ResticRepository,
    ];

    /// The name of the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DbPassword => "db_password",
            Self::DbRootPassword => "db_root_password",
            Self::NotifyCommand => "notify_command",
            Self::NotifyNtfyUrl => "notify_ntfy_url",
            Self::NotifyPingUrl => "notify_ping_url",
            Self::NotifyWebhookUrl => "notify_webhook_url",
            Self::ResticEnvironment => "restic_environment",
            Self::ResticKnownHosts => "restic_known_hosts",
            Self::ResticPassword => "restic_password",
            Self::ResticRepository => "restic_repository",
            Self::ResticSshKey => "restic_ssh_key",
        }
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for SecretName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A whole number from `MIN` to `MAX`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "u32")]
pub struct Within<const MIN: u32, const MAX: u32>(u32);

impl<const MIN: u32, const MAX: u32> Within<MIN, MAX> {
    /// The greatest number.
    pub const MOST: u32 = MAX;

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// For defaults: a wrong one does not compile where it is a constant.
    pub(crate) const fn constant(number: u32) -> Self {
        assert!(MIN <= number && number <= MAX);
        Self(number)
    }
}

impl<const MIN: u32, const MAX: u32> TryFrom<u32> for Within<MIN, MAX> {
    type Error = Refusal;
    fn try_from(number: u32) -> Result<Self, Refusal> {
        if (MIN..=MAX).contains(&number) {
            return Ok(Self(number));
        }
        refuse(
            format!("a whole number from {MIN} to {MAX}"),
            format!("write for example {MIN}"),
        )
    }
}
