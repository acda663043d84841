//! The bundle in memory: embedded templates, quoting, file modes, manifest.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use include_dir::{Dir, include_dir};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tera::{Context, Kwargs, State, Tera, Value};

use crate::environment::Environment;
use crate::error::Error;
use crate::plan::BackupPlan;
use crate::value::{Secret, SecretName};

/// The output tree: `.tera` is rendered and drops its suffix, the rest is copied byte for byte.
static TEMPLATES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/bundle-templates");

const TEMPLATE: &str = ".tera";

/// The file that is written last, and says what belongs to the bundle.
pub const MANIFEST: &str = "manifest.json";
/// The directory that is in no manifest, no diff and no repository.
pub const SECRETS: &str = "secrets";

/// What a directory holds when the bundle is written.
#[derive(Debug)]
pub struct Bundle {
    /// By path relative to the bundle, the manifest among them.
    pub files: BTreeMap<String, File>,
    /// By name in `secrets/`.
    pub secrets: BTreeMap<SecretName, Secret>,
    /// What `manifest.json` says about every other file.
    pub entries: BTreeMap<String, Entry>,
    /// Which deployment the bundle is for.
    pub subject: Subject,
}

/// Which deployment a bundle is for, as its `variables.yml` says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Subject {
    pub environment: String,
    /// The address of the host; empty when the bundle names none.
    pub host: String,
}

impl Subject {
    /// The file that says it.
    pub const FILE: &str = "variables.yml";

    /// Reads the text of a `variables.yml`; `None` when it is no such file.
    #[must_use]
    pub fn read(variables: &[u8]) -> Option<Self> {
        let variables: serde_yaml::Value = serde_yaml::from_slice(variables).ok()?;
        let text = |key: &str| match variables.get(key)? {
            serde_yaml::Value::Tagged(tagged) => tagged.value.as_str().map(str::to_owned),
            value => value.as_str().map(str::to_owned),
        };
        Some(Self {
            environment: text("backup_environment")?,
            host: text("backup_host")?,
        })
    }
}

/// A file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct File {
    pub content: Cow<'static, [u8]>,
    pub executable: bool,
}

/// `manifest.json`: what a bundle consists of, without secrets.
#[derive(Debug, Deserialize, Serialize)]
#[allow(missing_docs)]
pub struct Manifest {
    pub format: u32,
    pub generator: String,
    /// SHA-256 of what was read of the environment file, without its secrets: with them it could
    /// be used to guess a password.
    pub input_digest: String,
    pub files: BTreeMap<String, Entry>,
}

/// A file as the manifest knows it.
#[derive(Debug, Deserialize, Serialize)]
#[allow(missing_docs)]
pub struct Entry {
    pub sha256: String,
    pub executable: bool,
}

/// The manifest's `format` that this program writes and reads.
pub const FORMAT: u32 = 1;

impl File {
    fn new(content: Cow<'static, [u8]>) -> Self {
        Self {
            executable: content.starts_with(b"#!"),
            content,
        }
    }
}

impl Bundle {
    /// Renders everything, and checks what was rendered.
    pub fn render(environment: &Environment, plan: &BackupPlan) -> Result<Self, Error> {
        let mut files = rendered(plan)?;
        files.extend(copied().map(|(path, content)| (path.to_owned(), File::new(content.into()))));
        let manifest = Manifest {
            format: FORMAT,
            generator: concat!("gen-backup-bundle ", env!("CARGO_PKG_VERSION")).to_owned(),
            input_digest: sha256(json(environment).as_bytes()),
            files: files
                .iter()
                .map(|(path, file)| (path.clone(), file.into()))
                .collect(),
        };
        files.insert(
            MANIFEST.to_owned(),
            File::new(json(&manifest).into_bytes().into()),
        );
        Ok(Self {
            files,
            secrets: environment.secrets(),
            entries: manifest.files,
            subject: Subject {
                environment: plan.access.environment.as_str().to_owned(),
                host: plan.access.host.clone(),
            },
        })
    }
}

impl From<&File> for Entry {
    fn from(file: &File) -> Self {
        Self {
            sha256: sha256(&file.content),
            executable: file.executable,
        }
    }
}

/// The tag of the image that is built from the bundle: it changes when what it is built from does.
///
/// That is `.dockerignore`, the files and directories that it lets through, and the packages.
#[must_use]
pub fn image_tag(packages: &[&str]) -> String {
    const IGNORE: &str = "backup/.dockerignore";
    let files: BTreeMap<_, _> = embedded().into_iter().collect();
    let ignore = files.get(IGNORE).copied().unwrap_or_default();
    let let_through = String::from_utf8_lossy(ignore);
    let let_through: Vec<_> = let_through
        .lines()
        .filter_map(|line| line.strip_prefix('!'))
        .map(Path::new)
        .collect();
    let mut hash = Sha256::new();
    for (path, content) in files {
        let name = path.strip_suffix(TEMPLATE).unwrap_or(path);
        let passes = Path::new(name)
            .strip_prefix("backup")
            .is_ok_and(|name| let_through.iter().any(|shown| name.starts_with(shown)));
        if passes || name == IGNORE {
            hash.update([name.as_bytes(), b"\0", content, b"\0"].concat());
        }
    }
    hash.update(packages.join(" "));
    format!("gen-backup-bundle/backup:{}", &hex(&hash.finalize())[..12])
}

/// Lower-case hexadecimal SHA-256.
#[must_use]
pub fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Indented, keys in the order of the types, one final newline.
///
/// # Panics
///
/// Over a map whose keys are no texts; nothing of ours has one.
#[must_use]
pub fn json(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("plain data serialises");
    text.push('\n');
    text
}

/// Every embedded file, by its path in the template tree.
fn embedded() -> Vec<(&'static str, &'static [u8])> {
    fn collect(directory: &'static Dir<'static>, files: &mut Vec<(&'static str, &'static [u8])>) {
        for file in directory.files() {
            files.push((file.path().to_str().unwrap_or_default(), file.contents()));
        }
        for directory in directory.dirs() {
            collect(directory, files);
        }
    }
    let mut files = Vec::new();
    collect(&TEMPLATES, &mut files);
    files
}

/// Files that are copied as they are.
fn copied() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    embedded()
        .into_iter()
        .filter(|(path, _)| path.strip_suffix(TEMPLATE).is_none())
}

/// Output path and text of every template.
pub fn templates() -> impl Iterator<Item = (&'static str, Cow<'static, str>)> {
    embedded().into_iter().filter_map(|(path, content)| {
        Some((
            path.strip_suffix(TEMPLATE)?,
            String::from_utf8_lossy(content),
        ))
    })
}

/// Sentences that the bundle's README shares with the page of `explain`.
pub const SENTENCES: [(&str, &str); 5] = [
    ("sentences/what", include_str!("sentences/what.md.tera")),
    ("sentences/where", include_str!("sentences/where.md.tera")),
    ("sentences/when", include_str!("sentences/when.md.tera")),
    ("sentences/kept", include_str!("sentences/kept.md.tera")),
    (
        "sentences/meanwhile",
        include_str!("sentences/meanwhile.md.tera"),
    ),
];

type Filter = fn(&str) -> String;

/// The engine with our filters and these templates.
fn engine(
    templates: impl Iterator<Item = (&'static str, Cow<'static, str>)>,
) -> Result<Tera, tera::Error> {
    let mut tera = Tera::new();
    tera.autoescape_on(Vec::<&str>::new());
    let filters: [(&'static str, Filter); 5] = [
        ("sh", sh),
        ("yaml", yaml),
        ("compose", compose),
        ("md", md),
        ("code", code),
    ];
    for (name, filter) in filters {
        tera.register_filter(name, move |value: &Value, _: Kwargs, _: &State<'_>| {
            filter(&value.to_string())
        });
    }
    let sentences = SENTENCES.map(|(name, text)| (name, Cow::from(text)));
    tera.add_raw_templates(templates.chain(sentences))?;
    Ok(tera)
}

/// Renders a template of this program that is no file of a bundle.
///
/// # Panics
///
/// If the template prints what the context does not have, which a test excludes.
#[must_use]
pub fn page(template: &'static str, context: &impl Serialize) -> String {
    let templates = [("page", Cow::from(template))].into_iter();
    let context = Context::from_serialize(context);
    engine(templates)
        .and_then(|engine| engine.render("page", &context?))
        .expect("our own page renders")
}

fn rendered(plan: &BackupPlan) -> Result<BTreeMap<String, File>, Error> {
    let fail = |file: &str, source| Error::Render {
        file: file.to_owned(),
        source,
    };
    let engine = engine(templates()).map_err(|error| fail("the templates", error.into()))?;
    let context = Context::from_serialize(plan).map_err(|error| fail("the plan", error.into()))?;
    let render = |path: &str| {
        let text = engine
            .render(path, &context)
            .map_err(|error| fail(path, error.into()))?;
        if path.strip_suffix(".yml").is_some() {
            serde_yaml::from_str::<serde_yaml::Value>(&text)
                .map_err(|error| fail(path, error.into()))?;
        }
        Ok((path.to_owned(), File::new(text.into_bytes().into())))
    };
    templates().map(|(path, _)| render(path)).collect()
}

/// A value for a shell: always in single quotes, where only `'` itself is special.
#[must_use]
pub fn sh(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A path as a word of a command line: quoted where a shell would change it.
///
/// A path that begins with `-` gets `./` before it, because programs read it as an option.
#[must_use]
pub fn shell_path(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let is_safe = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+=:@%".contains(byte);
    let word = match std::str::from_utf8(bytes) {
        Ok(text) if !bytes.is_empty() && bytes.iter().all(is_safe) => text.to_owned(),
        Ok(text) if !text.chars().any(char::is_control) => sh(text),
        // No terminal shows such bytes as they are; bash, zsh and busybox read this notation.
        _ => {
            bytes.iter().fold("$'".to_owned(), |mut word, byte| {
                let _ = match byte {
                    b'\'' | b'\\' => write!(word, "\\{}", char::from(*byte)),
                    b' '..=b'~' => write!(word, "{}", char::from(*byte)),
                    byte => write!(word, "\\x{byte:02x}"),
                };
                word
            }) + "'"
        }
    };
    if bytes.starts_with(b"-") {
        format!("./{word}")
    } else {
        word
    }
}

/// A value for YAML 1.1 and 1.2: one quoted scalar on one line.
///
/// Single quotes, unless a character is there that some parser refuses or folds: then double ones.
#[must_use]
pub fn yaml(text: &str) -> String {
    let is_plain = |c: char| {
        !c.is_control()
            && !matches!(
                c,
                '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
            )
    };
    if text.chars().all(is_plain) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    let escaped = text.chars().fold(String::new(), |mut escaped, c| {
        let _ = match c {
            '"' | '\\' => write!(escaped, "\\{c}"),
            c if is_plain(c) => write!(escaped, "{c}"),
            c => write!(escaped, "\\u{:04X}", u32::from(c)),
        };
        escaped
    });
    format!("\"{escaped}\"")
}

/// A value for a compose file, which replaces `$NAME` even in quotes.
#[must_use]
pub fn compose(text: &str) -> String {
    yaml(&text.replace('$', "$$"))
}

/// Text inside a line or a table cell of Markdown: what could be markup is escaped.
#[must_use]
pub fn md(text: &str) -> String {
    text.chars().fold(String::new(), |mut escaped, c| {
        match c {
            // Tables are cut into cells before backslashes are looked at.
            '|' => escaped.push_str("&#124;"),
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '<' | '>' | '(' | ')' | '#' | '!'
            | '~' | '&' | '$' | '@' => {
                escaped.extend(['\\', c]);
            }
            c => escaped.push(c),
        }
        escaped
    })
}

/// Text in a code span, inside a line or a table cell of Markdown.
#[must_use]
pub fn code(text: &str) -> String {
    if text.contains(['`', '|', '\\']) || text.trim() != text {
        format!("<code>{}</code>", md(text))
    } else {
        format!("`{text}`")
    }
}
