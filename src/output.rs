//! Writes a bundle into a directory, or compares it with one.
//!
//! Everything is judged before the first byte is written. Each path gets one verdict: keep, write,
//! remove, or lost. If one path would be lost, nothing is written at all.
//!
//! A run can be killed at any moment. So a run first records which files it is about to write, and
//! removes the record as its last step. The next run reads the record. A file whose content is in
//! the record was written by us, so the next run may replace or remove it, whatever its own input.

mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use similar::TextDiff;

use self::record::{Record, SecretsRecord};
use crate::bundle::{Bundle, Entry, FORMAT, MANIFEST, Manifest, SECRETS, Subject, json, sha256};
use crate::difference::{self, Difference, Facts};
use crate::error::{Error, Why};
use crate::value::SecretName;

/// What a run may do beyond replacing what this program wrote itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Permitted {
    /// Overwrite files that somebody edited, and write into a directory that is no bundle.
    pub force: bool,
    /// Replace or remove secrets that this program did not write. The old ones are kept.
    pub replace_secrets: bool,
}

/// What writing a bundle did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Written {
    pub files: usize,
    pub changed: usize,
    pub removed: usize,
    /// What the user should know about single files, each in one line.
    pub notes: Vec<String>,
}

/// Writes `bundle` to `out`, unless something would be lost that `permitted` does not cover.
///
/// The lock on `out` is held until the end, so two runs never mix their files.
pub fn write(bundle: &Bundle, out: &Path, permitted: Permitted) -> Result<Written, Error> {
    refuse_a_file(out)?;
    // The umask can take more away. Nobody else can write into what we make.
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(out)
        .map_err(Error::output("create", out))?;
    let lock = lock(out)?;
    let target = Target::open(out)?;
    let items = target.judge(bundle, permitted)?;
    let mut lost: Vec<(PathBuf, Why)> = target
        .other_subject(bundle, permitted)
        .into_iter()
        .map(|why| (Subject::FILE.into(), why))
        .collect();
    lost.extend(items.iter().filter_map(Item::lost));
    if target.old.is_none() && !permitted.force {
        lost.extend(target.foreign(&items)?);
    }
    if !lost.is_empty() {
        lost.sort_by(|a, b| a.0.cmp(&b.0));
        return Err(Error::Refused {
            out: out.to_owned(),
            lost,
        });
    }
    let written = target.apply(bundle, &items)?;
    drop(lock);
    Ok(written)
}

/// Compares `out` with `bundle`, and writes nothing.
pub fn compare(bundle: &Bundle, out: &Path) -> Result<Difference, Error> {
    refuse_a_file(out)?;
    let target = Target::open(out)?;
    let items = target.judge(bundle, Permitted::default())?;
    let different: Vec<_> = items.iter().filter(|item| item.differs()).collect();
    if different.is_empty() {
        return Ok(Difference::default());
    }
    let mut diff = String::new();
    for item in &different {
        item.describe(&mut diff);
    }
    let mut notes = Vec::new();
    if different.iter().any(|item| item.has_other_line_endings()) {
        notes.push(
            "Git has converted the line endings to CRLF. Generate again: the bundle has a \
             .gitattributes that keeps Git from it. Commit that file with the others"
                .to_owned(),
        );
    }
    for why in target.other_subject(bundle, Permitted::default()) {
        notes.push(format!("{} {why}", Subject::FILE));
    }
    let is_real = |item: &&&Item<'_>| !item.has_other_line_endings();
    let paths = different.iter().filter(is_real);
    let paths: Vec<_> = paths.map(|item| item.path.as_str()).collect();
    let old = Facts::read(|path| target.text(path));
    let new = Facts::read(|path| Some(text(&bundle.files.get(path)?.content)));
    Ok(Difference {
        diff,
        files: different.len(),
        notes,
        changes: difference::changes(&old, &new, &paths),
    })
}

/// The record of a run that has not ended, directly in the bundle.
const RECORD: &str = ".gen-backup-bundle-record";
/// What this program wrote into `secrets/`.
const SECRETS_RECORD: &str = "secrets/.written";
/// Temporary files have such names. A killed run leaves them, and the next run removes them.
const PARTIAL: [&str; 2] = [".gen-backup-bundle-", ".partial"];

/// Files of a repository that may be there before its first bundle. We keep the old content.
const OF_GIT: [&str; 2] = [".gitattributes", ".gitignore"];

const SECRET_MODE: u32 = 0o600;
const SECRETS_MODE: u32 = 0o700;
const DIRECTORY_MODE: u32 = 0o755;
const WRITABLE_FOR_OTHERS: u32 = 0o002;

/// `OUT` that exists and is no directory is refused, whatever the options.
fn refuse_a_file(out: &Path) -> Result<(), Error> {
    match fs::metadata(out) {
        Ok(metadata) if !metadata.is_dir() => Err(Error::Refused {
            out: out.to_owned(),
            lost: vec![(PathBuf::from("."), Why::OutIsNoDirectory)],
        }),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::output("read", out)(error)),
        _ => Ok(()),
    }
}

/// Locks the directory itself, so that no file is left behind. The lock ends with the process.
///
/// A file system without such locks, such as an old NFS, is written without one.
fn lock(out: &Path) -> Result<fs::File, Error> {
    let directory = fs::File::open(out).map_err(Error::output("read", out))?;
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) | Err(Errno::BADF | Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(directory),
        Err(Errno::WOULDBLOCK) => Err(Error::Busy {
            out: out.to_owned(),
        }),
        Err(error) => Err(Error::output("lock", out)(error.into())),
    }
}

/// What stands at a path of the output directory. Links are never followed.
enum Found {
    Nothing,
    File {
        content: Vec<u8>,
        mode: u32,
    },
    /// A link, a device or a pipe.
    Special,
    Directory,
    /// One of the directories above the path is something else.
    BelowNoDirectory,
}

/// What a file of the bundle is to be.
#[derive(Clone, Copy)]
struct New<'a> {
    content: &'a [u8],
    mode: u32,
}

/// What happens to one path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Keep,
    Write,
    /// As write, but the old content is kept beside it.
    Replace,
    Remove,
    /// As remove, but the old content is kept beside it.
    PutAside,
    /// Nothing is written, because this would be lost.
    Lost(Why),
}

/// A path with everything that the verdict depends on.
struct Item<'a> {
    path: String,
    found: Found,
    /// None: the bundle has no such file. An earlier bundle or run had it.
    new: Option<New<'a>>,
    verdict: Verdict,
}

/// An output directory, and what earlier runs have left in it.
struct Target<'a> {
    out: &'a Path,
    /// The files of the bundle that is there; none when there is no manifest that we understand.
    old: Option<BTreeMap<String, Entry>>,
    /// What the bundle that is there is for.
    subject: Option<Subject>,
    /// Of a run that was cut short.
    record: Option<Record>,
    secrets: SecretsRecord,
}

impl<'a> Target<'a> {
    fn open(out: &'a Path) -> Result<Self, Error> {
        let mut target = Self {
            out,
            old: None,
            subject: None,
            record: None,
            secrets: SecretsRecord::default(),
        };
        let content = |path| {
            Ok(match target.look(path)? {
                Found::File { content, .. } => Some(content),
                _ => None,
            })
        };
        let manifest = content(MANIFEST)?;
        let record = content(RECORD)?.and_then(|content| Record::read(&content));
        let mut secrets = content(SECRETS_RECORD)?
            .and_then(|content| SecretsRecord::read(&content))
            .unwrap_or_default();
        let subject = content(Subject::FILE)?.and_then(|content| Subject::read(&content));
        // The manifest is the last file of a bundle. If it is there, the secrets are there too.
        let is_complete = record.as_ref().is_none_or(|record| {
            let found = manifest.as_deref().map(sha256);
            found.as_deref() == Some(record.manifest.as_str())
        });
        if is_complete {
            secrets.settle();
        }
        let old = manifest
            .and_then(|manifest| serde_json::from_slice::<Manifest>(&manifest).ok())
            .filter(|manifest| manifest.format == FORMAT && manifest.files.keys().all(is_inside))
            .map(|manifest| manifest.files);
        target.old = old;
        target.record = record;
        target.secrets = secrets;
        target.subject = subject;
        Ok(target)
    }

    fn look(&self, path: &str) -> Result<Found, Error> {
        let mut full = self.out.to_owned();
        let mut names = Path::new(path).iter().peekable();
        while let Some(name) = names.next() {
            full.push(name);
            let metadata = match fs::symlink_metadata(&full) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
                other => other.map_err(Error::output("read", &full))?,
            };
            let is_leaf = names.peek().is_none();
            return Ok(match (metadata.is_dir(), metadata.is_file(), is_leaf) {
                (true, _, false) => continue,
                (true, _, true) => Found::Directory,
                (_, true, true) => Found::File {
                    content: fs::read(&full).map_err(Error::output("read", &full))?,
                    mode: metadata.permissions().mode() & 0o7777,
                },
                (_, _, true) => Found::Special,
                (_, _, false) => Found::BelowNoDirectory,
            });
        }
        Ok(Found::Nothing)
    }

    /// The text of a file that can be read.
    fn text(&self, path: &str) -> Option<String> {
        match self.look(path) {
            Ok(Found::File { content, .. }) => Some(text(&content)),
            _ => None,
        }
    }

    /// The paths that an earlier bundle or a run that was cut short has written, secrets apart.
    fn known_paths(&self) -> impl Iterator<Item = &String> {
        let recorded = self.record.iter().flat_map(|record| record.files.keys());
        self.old.iter().flat_map(BTreeMap::keys).chain(recorded)
    }

    /// Whether this program wrote that content to that path.
    fn is_ours(&self, path: &str, content: &[u8]) -> bool {
        let digest = sha256(content);
        let old = self.old.as_ref();
        (path == MANIFEST && old.is_some())
            || old.is_some_and(|old| old.get(path).is_some_and(|entry| entry.sha256 == digest))
            || (self.record.as_ref()).is_some_and(|record| record.has(path, &digest))
    }

    /// Every path that is of the bundle or of an earlier one: secrets first, the manifest last.
    fn judge<'b>(&self, bundle: &'b Bundle, permitted: Permitted) -> Result<Vec<Item<'b>>, Error> {
        let mut items = Vec::new();
        for name in SecretName::WRITTEN {
            let path = format!("{SECRETS}/{name}");
            let found = self.look(&path)?;
            let new = bundle.secrets.get(&name).map(|secret| New {
                content: secret.reveal().as_bytes(),
                mode: SECRET_MODE,
            });
            let verdict = self.judge_secret(name.as_str(), &found, new, permitted);
            items.push(Item {
                path,
                found,
                new,
                verdict,
            });
        }
        let paths: BTreeSet<_> = self.known_paths().chain(bundle.files.keys()).collect();
        let (manifest, others): (Vec<_>, Vec<_>) =
            paths.into_iter().partition(|path| *path == MANIFEST);
        for path in others.into_iter().chain(manifest) {
            let found = self.look(path)?;
            let new = bundle.files.get(path).map(|file| New {
                content: &file.content,
                mode: if file.executable { 0o755 } else { 0o644 },
            });
            items.push(Item {
                path: path.clone(),
                verdict: self.judge_file(path, &found, new, permitted.force),
                found,
                new,
            });
        }
        Ok(items)
    }

    fn judge_file(&self, path: &str, found: &Found, new: Option<New<'_>>, force: bool) -> Verdict {
        let go_on = || new.map_or(Verdict::Remove, |_| Verdict::Write);
        let (content, mode) = match found {
            Found::Nothing if new.is_none() => return Verdict::Keep,
            Found::Nothing => return Verdict::Write,
            Found::Special if force => return go_on(),
            Found::Special => return Verdict::Lost(Why::NotRegular),
            Found::Directory => return Verdict::Lost(Why::Directory),
            Found::BelowNoDirectory => return Verdict::Lost(Why::BelowNoDirectory),
            Found::File { content, mode } => (content, *mode),
        };
        if let Some(new) = new.filter(|new| new.content == content) {
            let is_right =
                is_executable(mode) == is_executable(new.mode) && mode & WRITABLE_FOR_OTHERS == 0;
            return if is_right {
                Verdict::Keep
            } else {
                Verdict::Write
            };
        }
        // A power cut leaves an empty file. Git can convert line endings. Neither is an edit.
        let unix = without_carriage_returns(content);
        let is_of_old = (self.old.as_ref()).is_some_and(|old| old.contains_key(path));
        if force
            || content.is_empty()
            || self.is_ours(path, content)
            || self.is_ours(path, &unix)
            || new.is_some_and(|new| new.content == unix)
        {
            go_on()
        } else if OF_GIT.contains(&path) && !is_of_old {
            Verdict::Replace
        } else if self.known_paths().any(|known| known == path) {
            Verdict::Lost(Why::Edited)
        } else if self.old.is_some() {
            Verdict::Lost(Why::InTheWay)
        } else {
            Verdict::Lost(Why::Foreign)
        }
    }

    fn judge_secret(
        &self,
        name: &str,
        found: &Found,
        new: Option<New<'_>>,
        permitted: Permitted,
    ) -> Verdict {
        let (content, mode) = match (found, new) {
            (Found::Nothing, None) => return Verdict::Keep,
            (Found::Nothing, Some(_)) => return Verdict::Write,
            (Found::File { content, mode }, _) => (content, *mode),
            // Without a manifest nothing says that it is one of ours.
            (_, None) if self.old.is_none() => return Verdict::Keep,
            (Found::Special, _) if permitted.force => {
                return new.map_or(Verdict::Remove, |_| Verdict::Write);
            }
            (Found::Special, _) => return Verdict::Lost(Why::NotRegular),
            (Found::Directory, _) => return Verdict::Lost(Why::Directory),
            (Found::BelowNoDirectory, _) => return Verdict::Lost(Why::BelowNoDirectory),
        };
        let digest = sha256(content);
        let Some(new) = new else {
            // Only a run that was cut short wrote it, so no bundle ever had it.
            let is_leftover = self.secrets.is_only_pending(name, &digest);
            return if content.is_empty() || is_leftover {
                Verdict::Remove
            } else if self.old.is_none() && !self.secrets.has(name, &digest) {
                Verdict::Keep
            } else if permitted.replace_secrets {
                Verdict::PutAside
            } else {
                Verdict::Lost(Why::SecretRemoved)
            };
        };
        if content == new.content {
            if mode == SECRET_MODE {
                Verdict::Keep
            } else {
                Verdict::Write
            }
        } else if content.is_empty() || self.secrets.has(name, &digest) {
            Verdict::Write
        } else if permitted.replace_secrets {
            Verdict::Replace
        } else {
            Verdict::Lost(Why::SecretEdited)
        }
    }

    /// Reasons why the bundle that is there must not become this one.
    ///
    /// What a run that was cut short was permitted to do stays permitted. Otherwise that run could
    /// not be completed.
    fn other_subject(&self, bundle: &Bundle, permitted: Permitted) -> Vec<Why> {
        let (Some(old), Some(_)) = (&self.subject, &self.old) else {
            return Vec::new();
        };
        if permitted.force {
            return Vec::new();
        }
        let new = &bundle.subject;
        let record = self.record.as_ref();
        let mut reasons = Vec::new();
        let is_started =
            record.is_some_and(|record| record.environments.contains(&new.environment));
        if old.environment != new.environment && !is_started {
            reasons.push(Why::OtherEnvironment {
                was: old.environment.clone(),
                now: new.environment.clone(),
            });
        }
        let may_drop = record.is_some_and(|record| record.drops_host);
        if !old.host.is_empty() && new.host.is_empty() && !may_drop {
            reasons.push(Why::HostDropped(old.host.clone()));
        }
        reasons
    }

    /// What a directory without a manifest holds that is neither ours nor of a new repository.
    fn foreign(&self, items: &[Item<'_>]) -> Result<Vec<(PathBuf, Why)>, Error> {
        let is_ours = |item: &&Item<'_>| item.new.is_some() || item.verdict != Verdict::Keep;
        let paths: BTreeSet<_> = (items.iter().filter(is_ours))
            .map(|item| item.path.as_str())
            .collect();
        let directories = directories(items.iter().map(|item| item.path.as_str()));
        let is_directory = |path: &str| {
            let metadata = fs::symlink_metadata(self.out.join(path));
            directories.contains(Path::new(path)) && metadata.is_ok_and(|found| found.is_dir())
        };
        let mut lost = Vec::new();
        for directory in &directories {
            for (name, path) in self.entries(directory)? {
                let path = path.to_string_lossy().into_owned();
                let is_expected = paths.contains(path.as_str())
                    || is_directory(&path)
                    || is_partial(&name)
                    || is_bookkeeping(&path)
                    || (directory == Path::new("") && is_of_a_new_repository(&name));
                if !is_expected {
                    lost.push((path.into(), Why::Foreign));
                }
            }
        }
        Ok(lost)
    }

    /// Names and paths, sorted, of what a directory holds; nothing when it is no directory.
    fn entries(&self, directory: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
        let full = self.out.join(directory);
        if directory != Path::new("") && !fs::symlink_metadata(&full).is_ok_and(|is| is.is_dir()) {
            return Ok(Vec::new());
        }
        let names = fs::read_dir(&full)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .map_err(Error::output("read", &full))?;
        let mut entries: Vec<_> = (names.iter())
            .map(fs::DirEntry::file_name)
            .map(|name| (name.to_string_lossy().into_owned(), directory.join(name)))
            .collect();
        entries.sort();
        Ok(entries)
    }

    /// Carries the verdicts out. The order makes a run that is killed anywhere complete later:
    /// records first, the manifest after all other files, the record removed last.
    fn apply(&self, bundle: &Bundle, items: &[Item<'_>]) -> Result<Written, Error> {
        let secret_paths = SecretName::WRITTEN.map(|name| format!("{SECRETS}/{name}"));
        let is_wanted = |item: &&Item<'_>| item.new.is_some();
        let wanted = items.iter().filter(is_wanted);
        let wanted = directories(wanted.map(|item| item.path.as_str()));
        let all = directories(
            (items.iter().map(|item| item.path.as_str()))
                .chain(secret_paths.iter().map(String::as_str)),
        );
        self.remove_partial_files(&all)?;
        let changes = |secrets: bool| {
            let is_kind = |item: &&Item<'_>| item.is_secret() == secrets;
            (items.iter().filter(is_kind)).any(|item| item.verdict != Verdict::Keep)
        };
        if changes(false) || self.record.is_some() {
            let old = self.old.as_ref().zip(self.subject.as_ref());
            let record = Record::next(self.record.as_ref(), self.old.as_ref(), bundle)
                .permitting(old.map(|(_, subject)| subject), &bundle.subject);
            self.put(RECORD, json(&record).as_bytes(), 0o644)?;
        }
        for directory in &wanted {
            let mode = if directory == Path::new(SECRETS) {
                SECRETS_MODE
            } else {
                DIRECTORY_MODE
            };
            self.make_directory(directory, mode)?;
        }
        let secrets = bundle.secrets.iter();
        let secrets =
            secrets.map(|(name, secret)| (name.as_str(), sha256(secret.reveal().as_bytes())));
        let secrets: BTreeMap<_, _> = secrets.collect();
        let started = self.secrets.starting(&secrets);
        if changes(true) {
            self.record_secrets(&started)?;
        }
        let mut notes = Vec::new();
        for item in items {
            self.carry_out(item, &mut notes)?;
        }
        self.record_secrets(&SecretsRecord::complete(&secrets))?;
        let obsolete: Vec<_> = all.difference(&wanted).collect();
        for directory in obsolete.into_iter().rev() {
            // One that is not empty, or that is not there, stays as it is.
            let _ = fs::remove_dir(self.out.join(directory));
        }
        self.remove(RECORD)?;
        let count = |verdicts: [Verdict; 2]| {
            let is_one = |item: &&Item<'_>| verdicts.contains(&item.verdict);
            items.iter().filter(is_one).count()
        };
        Ok(Written {
            files: bundle.files.len() + bundle.secrets.len(),
            changed: count([Verdict::Write, Verdict::Replace]),
            removed: count([Verdict::Remove, Verdict::PutAside]),
            notes,
        })
    }

    fn remove_partial_files(&self, directories: &BTreeSet<PathBuf>) -> Result<(), Error> {
        for directory in directories {
            for (name, path) in self.entries(directory)? {
                if is_partial(&name) {
                    let full = self.out.join(path);
                    fs::remove_file(&full).map_err(Error::output("remove", full))?;
                }
            }
        }
        Ok(())
    }

    fn carry_out(&self, item: &Item<'_>, notes: &mut Vec<String>) -> Result<(), Error> {
        let path = &item.path;
        if let (Verdict::Replace | Verdict::PutAside, Found::File { content, mode }) =
            (&item.verdict, &item.found)
        {
            let mode = if item.is_secret() { SECRET_MODE } else { *mode };
            let kept = self.put_aside(path, content, mode)?;
            notes.push(format!("{path}: the old content is kept as {kept}"));
        }
        match (&item.verdict, item.new) {
            (Verdict::Write | Verdict::Replace, Some(new)) => match &item.found {
                Found::File { content, .. } if content == new.content => {
                    let full = self.out.join(path);
                    fs::set_permissions(&full, Permissions::from_mode(new.mode))
                        .map_err(Error::output("change the mode of", full))
                }
                found => {
                    if item.is_secret() && matches!(found, Found::File { .. }) {
                        notes.push(format!("{path}: replaced by the environment file's value"));
                    }
                    self.put(path, new.content, new.mode)
                }
            },
            (Verdict::Remove | Verdict::PutAside, _) => self.remove(path),
            _ => Ok(()),
        }
    }

    /// Copies a content beside its path under a free name, and returns the path of the copy.
    fn put_aside(&self, path: &str, content: &[u8], mode: u32) -> Result<String, Error> {
        let mut copy = format!("{path}.old");
        for number in 2.. {
            match self.look(&copy)? {
                Found::Nothing => {
                    self.put(&copy, content, mode)?;
                    break;
                }
                Found::File { content: kept, .. } if kept == content => break,
                _ => copy = format!("{path}.old.{number}"),
            }
        }
        Ok(copy)
    }

    /// Writes a file by rename. Its mode is right from the start, whatever the umask.
    fn put(&self, path: &str, content: &[u8], mode: u32) -> Result<(), Error> {
        let full = self.out.join(path);
        let parent = full.parent().unwrap_or(self.out);
        let [prefix, suffix] = PARTIAL;
        tempfile::Builder::new()
            .prefix(prefix)
            .suffix(suffix)
            .tempfile_in(parent)
            .and_then(|mut file| {
                file.write_all(content)?;
                file.as_file()
                    .set_permissions(Permissions::from_mode(mode))?;
                file.persist(&full).map_err(|error| error.error)
            })
            .map(drop)
            .map_err(Error::output("write", full))
    }

    fn remove(&self, path: &str) -> Result<(), Error> {
        let full = self.out.join(path);
        match fs::remove_file(&full) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::output("remove", full)(error))
            }
            _ => Ok(()),
        }
    }

    /// Writes the record of the secrets, or removes it when it would be empty.
    fn record_secrets(&self, record: &SecretsRecord) -> Result<(), Error> {
        if record.is_empty() {
            return match self.look(SECRETS_RECORD)? {
                Found::File { .. } => self.remove(SECRETS_RECORD),
                _ => Ok(()),
            };
        }
        let content = json(record);
        match self.look(SECRETS_RECORD)? {
            Found::File {
                content: found,
                mode: SECRET_MODE,
            } if found == content.as_bytes() => Ok(()),
            _ => self.put(SECRETS_RECORD, content.as_bytes(), SECRET_MODE),
        }
    }

    /// Makes a directory where there is none. An existing one keeps its mode, unless it is private,
    /// others can write into it, or a run that was cut short may have made it.
    fn make_directory(&self, directory: &Path, mode: u32) -> Result<(), Error> {
        if directory == Path::new("") {
            return Ok(());
        }
        let full = self.out.join(directory);
        let is_right = if let Ok(metadata) = fs::symlink_metadata(&full) {
            let found = metadata.permissions().mode() & 0o7777;
            let must_be_exact =
                mode == SECRETS_MODE || found & WRITABLE_FOR_OTHERS != 0 || self.record.is_some();
            found == mode || !must_be_exact
        } else {
            DirBuilder::new()
                .mode(mode)
                .create(&full)
                .map_err(Error::output("create", &full))?;
            false
        };
        if is_right {
            return Ok(());
        }
        fs::set_permissions(&full, Permissions::from_mode(mode))
            .map_err(Error::output("change the mode of", full))
    }
}

impl Item<'_> {
    fn is_secret(&self) -> bool {
        Path::new(&self.path).starts_with(SECRETS)
    }

    fn lost(&self) -> Option<(PathBuf, Why)> {
        match &self.verdict {
            Verdict::Lost(why) => Some((PathBuf::from(&self.path), why.clone())),
            _ => None,
        }
    }

    /// Whether `--check` reports it: content and executable bit only, and never a secret.
    fn differs(&self) -> bool {
        !self.is_secret()
            && match (&self.found, self.new) {
                (Found::File { content, mode }, Some(new)) => {
                    content != new.content || is_executable(*mode) != is_executable(new.mode)
                }
                (Found::Nothing, None) => false,
                _ => true,
            }
    }

    fn has_other_line_endings(&self) -> bool {
        match (&self.found, self.new) {
            (Found::File { content, .. }, Some(new)) => {
                content != new.content && without_carriage_returns(content) == new.content
            }
            _ => false,
        }
    }

    /// Appends the difference in the notation of git, without its index lines.
    fn describe(&self, text: &mut String) {
        let Self {
            path, found, new, ..
        } = self;
        let old = match found {
            Found::File { content, .. } => Some(String::from_utf8_lossy(content)),
            Found::Nothing => None,
            other => {
                let why = match other {
                    Found::Directory => Why::Directory,
                    Found::BelowNoDirectory => Why::BelowNoDirectory,
                    _ => Why::NotRegular,
                };
                let _ = writeln!(text, "{path} {why}");
                None
            }
        };
        if let (Found::File { mode: was, .. }, Some(new)) = (found, new)
            && is_executable(*was) != is_executable(new.mode)
        {
            let bits = |mode| {
                if is_executable(mode) {
                    "100755"
                } else {
                    "100644"
                }
            };
            let (was, now) = (bits(*was), bits(new.mode));
            let _ = writeln!(text, "{path}\nold mode {was}\nnew mode {now}");
        }
        if self.has_other_line_endings() {
            let _ = writeln!(text, "{path} differs only in its line endings (CRLF)");
            return;
        }
        let new = new.map(|new| String::from_utf8_lossy(new.content));
        let name = |side: &str, there: bool| {
            if there {
                format!("{side}/{path}")
            } else {
                "/dev/null".to_owned()
            }
        };
        let (before, after) = (name("a", old.is_some()), name("b", new.is_some()));
        let diff = TextDiff::from_lines(old.as_deref().unwrap_or(""), new.as_deref().unwrap_or(""));
        let _ = write!(text, "{}", diff.unified_diff().header(&before, &after));
    }
}

fn text(content: &[u8]) -> String {
    String::from_utf8_lossy(content).into_owned()
}

fn is_executable(mode: u32) -> bool {
    mode & 0o100 != 0
}

/// The content with the line endings that Git has converted to CRLF as they were.
fn without_carriage_returns(content: &[u8]) -> Vec<u8> {
    let is_kept = |(at, byte): (usize, &u8)| {
        (*byte != b'\r' || content.get(at + 1) != Some(&b'\n')).then_some(*byte)
    };
    content.iter().enumerate().filter_map(is_kept).collect()
}

/// The directories of some files, `""` for the bundle's own among them.
fn directories<'a>(paths: impl Iterator<Item = &'a str>) -> BTreeSet<PathBuf> {
    paths
        .flat_map(|path| Path::new(path).ancestors().skip(1))
        .map(Path::to_owned)
        .collect()
}

fn is_partial(name: &str) -> bool {
    name.starts_with(PARTIAL[0]) && name.ends_with(PARTIAL[1])
}

/// Our records, and the copies that we keep of what we replace.
fn is_bookkeeping(path: &str) -> bool {
    let is_copy = |path: &str, of: &str| {
        path.strip_prefix(of)
            .is_some_and(|rest| rest == ".old" || rest.starts_with(".old."))
    };
    let is_old_secret = path.strip_prefix("secrets/").is_some_and(|name| {
        SecretName::WRITTEN
            .iter()
            .any(|secret| is_copy(name, secret.as_str()))
    });
    path == RECORD
        || path == SECRETS_RECORD
        || OF_GIT.iter().any(|name| is_copy(path, name))
        || is_old_secret
}

/// What a new repository holds that no bundle has.
fn is_of_a_new_repository(name: &str) -> bool {
    name == ".git" || name.starts_with("LICENSE")
}

/// A manifest or a record may come from anywhere: its paths must stay in the bundle, and out of the
/// secrets.
fn is_inside(path: &String) -> bool {
    let plain = Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    plain && !path.is_empty() && !Path::new(path).starts_with(SECRETS)
}
