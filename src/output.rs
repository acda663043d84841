//! Writes a bundle into a directory, or compares it with one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use similar::TextDiff;

use crate::backup::SECRET_NAMES;
use crate::bundle::{Bundle, Entry, FORMAT, File, MANIFEST, Manifest, SECRETS, sha256};
use crate::error::Error;

/// What writing a bundle did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Written {
    pub files: usize,
    pub changed: usize,
    pub removed: usize,
}

/// Writes `bundle` to `out`; without `force` nothing is lost that an older bundle did not hold.
pub fn write(bundle: &Bundle, out: &Path, force: bool) -> Result<Written, Error> {
    let target = Target::open(out)?;
    let changes = target.compare(bundle)?;
    let secrets = target.compare_secrets(bundle)?;
    let mut lost = irreplaceable(changes.iter().chain(&secrets), force);
    if !force {
        lost.extend(match &target.old {
            Some(old) => edited(&changes, old),
            None => target.foreign(bundle, &changes, &secrets)?,
        });
    }
    if lost.is_empty() {
        target.apply(bundle, &changes, &secrets)
    } else {
        Err(Error::Refused {
            out: out.to_owned(),
            lost,
        })
    }
}

/// The unified diff between `out` and `bundle`, and how many files it is about.
pub fn diff(bundle: &Bundle, out: &Path) -> Result<(String, usize), Error> {
    let changes = Target::open(out)?.compare(bundle)?;
    let mut text = String::new();
    for change in &changes {
        change.describe(&mut text);
    }
    Ok((text, changes.len()))
}

/// What stands at a path of the output directory. Links are never followed.
enum Found {
    Nothing,
    File {
        content: Vec<u8>,
        mode: u32,
    },
    /// A link or a device: replaced by force, and lost.
    Special(&'static str),
    /// Something that is not ours to remove, even by force.
    Blocked(&'static str),
}

/// A file that is not as the bundle has it.
struct Change<'a> {
    path: String,
    found: Found,
    /// None: it belonged to an older bundle, and is removed.
    new: Option<&'a [u8]>,
    /// The mode that it gets.
    mode: u32,
}

/// An output directory.
struct Target<'a> {
    out: &'a Path,
    /// The files of the bundle that is there; none when there is no manifest that we understand.
    old: Option<BTreeMap<String, Entry>>,
}

/// Files that are being written have such names: a killed run leaves them, the next removes them.
const PARTIAL: [&str; 2] = [".gen-backup-bundle-", ".partial"];

const SECRET_MODE: u32 = 0o600;

impl<'a> Target<'a> {
    fn open(out: &'a Path) -> Result<Self, Error> {
        match fs::metadata(out) {
            Ok(metadata) if !metadata.is_dir() => {
                let lost = vec![(
                    PathBuf::from("."),
                    "is not a directory; --force does not replace it",
                )];
                return Err(Error::Refused {
                    out: out.to_owned(),
                    lost,
                });
            }
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::output("read", out)(error));
            }
            _ => {}
        }
        let mut target = Self { out, old: None };
        if let Found::File { content, .. } = target.look(MANIFEST)? {
            target.old = serde_json::from_slice::<Manifest>(&content)
                .ok()
                .filter(|manifest| {
                    manifest.format == FORMAT && manifest.files.keys().all(is_inside)
                })
                .map(|manifest| manifest.files);
        }
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
                (true, _, true) => Found::Blocked("is a directory; --force does not remove it"),
                (_, true, true) => Found::File {
                    content: fs::read(&full).map_err(Error::output("read", &full))?,
                    mode: metadata.permissions().mode() & 0o7777,
                },
                (_, _, true) => Found::Special("is not a regular file"),
                (_, _, false) => Found::Blocked(
                    "lies below what is not a directory; --force does not replace it",
                ),
            });
        }
        Ok(Found::Nothing)
    }

    /// Every file that is not as in the bundle, secrets apart; the manifest last.
    fn compare<'b>(&self, bundle: &'b Bundle) -> Result<Vec<Change<'b>>, Error> {
        let old = self.old.iter().flat_map(BTreeMap::keys);
        let obsolete = old
            .filter(|path| !bundle.files.contains_key(*path))
            .map(|path| (path, None));
        let wanted = bundle.files.iter().map(|(path, file)| (path, Some(file)));
        let (manifest, others): (Vec<_>, Vec<_>) = obsolete
            .chain(wanted)
            .partition(|(path, _)| *path == MANIFEST);
        let mut changes = Vec::new();
        for (path, file) in others.into_iter().chain(manifest) {
            let found = self.look(path)?;
            let is_right = match (&found, file) {
                (
                    Found::File { content, mode },
                    Some(File {
                        content: new,
                        executable,
                    }),
                ) => *content == **new && (mode & 0o100 != 0) == *executable,
                (Found::Nothing, None) => true,
                _ => false,
            };
            if !is_right {
                let new = file.map(|file| file.content.as_ref());
                let mode = if file.is_some_and(|file| file.executable) {
                    0o755
                } else {
                    0o644
                };
                changes.push(Change {
                    path: path.clone(),
                    found,
                    new,
                    mode,
                });
            }
        }
        Ok(changes)
    }

    /// Every secret that is not as in the bundle.
    fn compare_secrets<'b>(&self, bundle: &'b Bundle) -> Result<Vec<Change<'b>>, Error> {
        let mut changes = Vec::new();
        for name in SECRET_NAMES {
            let path = format!("{SECRETS}/{name}");
            let found = self.look(&path)?;
            let new = bundle
                .secrets
                .get(name)
                .map(|secret| secret.reveal().as_bytes());
            let is_right = match (&found, new) {
                (Found::File { content, mode }, Some(new)) => {
                    content == new && *mode == SECRET_MODE
                }
                (Found::Nothing, None) => true,
                // Without a manifest nothing says that it is one of ours.
                (_, None) => self.old.is_none(),
                _ => false,
            };
            if !is_right {
                changes.push(Change {
                    path,
                    found,
                    new,
                    mode: SECRET_MODE,
                });
            }
        }
        Ok(changes)
    }

    /// What a directory without a manifest holds besides what a first run, cut short, has left.
    fn foreign(
        &self,
        bundle: &Bundle,
        changes: &[Change<'_>],
        secrets: &[Change<'_>],
    ) -> Result<Vec<(PathBuf, &'static str)>, Error> {
        let ours = |path: &String| {
            let change = changes
                .iter()
                .chain(secrets)
                .find(|change| change.path == *path);
            change.is_none_or(Change::loses_nothing)
        };
        let secret_paths = bundle
            .secrets
            .keys()
            .map(|name| format!("{SECRETS}/{name}"));
        let paths: BTreeSet<String> = bundle.files.keys().cloned().chain(secret_paths).collect();
        let directories = directories(&paths);
        let mut lost = Vec::new();
        for directory in &directories {
            for (name, path) in self.entries(directory)? {
                let path = path.to_string_lossy().into_owned();
                let is_ours = if paths.contains(&path) {
                    ours(&path)
                } else {
                    directories.contains(Path::new(&path)) || is_partial(&name)
                };
                if !is_ours {
                    lost.push((path.into(), "is not part of this bundle"));
                }
            }
        }
        Ok(lost)
    }

    /// Names and paths, sorted, of what a directory of ours holds.
    fn entries(&self, directory: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
        let full = self.out.join(directory);
        let names = match fs::read_dir(&full) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other
                .and_then(Iterator::collect::<io::Result<Vec<_>>>)
                .map_err(Error::output("read", &full))?,
        };
        let mut entries: Vec<_> = (names.iter())
            .map(fs::DirEntry::file_name)
            .map(|name| (name.to_string_lossy().into_owned(), directory.join(name)))
            .collect();
        entries.sort();
        Ok(entries)
    }

    fn apply(
        &self,
        bundle: &Bundle,
        changes: &[Change<'_>],
        secrets: &[Change<'_>],
    ) -> Result<Written, Error> {
        fs::create_dir_all(self.out).map_err(Error::output("create", self.out))?;
        let secret_paths = secrets.iter().map(|change| change.path.clone());
        for directory in directories(&bundle.files.keys().cloned().chain(secret_paths).collect()) {
            for (name, path) in self.entries(&directory)? {
                if is_partial(&name) {
                    let full = self.out.join(path);
                    fs::remove_file(&full).map_err(Error::output("remove", full))?;
                }
            }
        }
        if !bundle.secrets.is_empty() {
            self.make_directory(Path::new(SECRETS), 0o700)?;
        }
        // Secrets before the manifest: it is the sign that all is there.
        for change in secrets.iter().chain(changes) {
            match change.new {
                Some(new) => self.put(change, new)?,
                None => self.remove(&change.path)?,
            }
        }
        let removed = changes.iter().filter(|change| change.new.is_none()).count();
        Ok(Written {
            files: bundle.files.len() + bundle.secrets.len(),
            changed: changes.len() + secrets.iter().filter(|secret| secret.new.is_some()).count()
                - removed,
            removed,
        })
    }

    fn put(&self, change: &Change<'_>, new: &[u8]) -> Result<(), Error> {
        let path = self.out.join(&change.path);
        let permissions = Permissions::from_mode(change.mode);
        if matches!(&change.found, Found::File { content, .. } if content == new) {
            return fs::set_permissions(&path, permissions)
                .map_err(Error::output("change the mode of", path));
        }
        let parent = Path::new(&change.path).parent().unwrap_or(Path::new(""));
        if parent != Path::new("") && parent != Path::new(SECRETS) {
            self.make_directory(parent, 0o755)?;
        }
        let [prefix, suffix] = PARTIAL;
        tempfile::Builder::new()
            .prefix(prefix)
            .suffix(suffix)
            .tempfile_in(self.out.join(parent))
            .and_then(|mut file| {
                file.write_all(new)?;
                // The umask has had its say when the file was made, not here.
                file.as_file().set_permissions(permissions)?;
                file.persist(&path).map_err(|error| error.error)
            })
            .map(drop)
            .map_err(Error::output("write", path))
    }

    /// Makes a directory where there is none; an existing one keeps its mode, unless it is private.
    fn make_directory(&self, directory: &Path, mode: u32) -> Result<(), Error> {
        let path = self.out.join(directory);
        let is_new = !path.is_dir();
        if is_new {
            fs::create_dir_all(&path).map_err(Error::output("create", &path))?;
        }
        if is_new || mode == 0o700 {
            fs::set_permissions(&path, Permissions::from_mode(mode))
                .map_err(Error::output("change the mode of", path))?;
        }
        Ok(())
    }

    /// Removes a file, and the directories that it leaves empty.
    fn remove(&self, path: &str) -> Result<(), Error> {
        let full = self.out.join(path);
        fs::remove_file(&full).map_err(Error::output("remove", full))?;
        for directory in Path::new(path)
            .ancestors()
            .skip(1)
            .filter(|directory| *directory != Path::new(""))
        {
            if fs::remove_dir(self.out.join(directory)).is_err() {
                break;
            }
        }
        Ok(())
    }
}

impl Change<'_> {
    /// Whether what stands there is nothing, empty, or already what will stand there.
    fn loses_nothing(&self) -> bool {
        match &self.found {
            Found::Nothing => true,
            Found::File { content, .. } => {
                content.is_empty() || Some(content.as_slice()) == self.new
            }
            Found::Special(_) | Found::Blocked(_) => false,
        }
    }

    /// Appends the change in the notation of git, without its index lines.
    fn describe(&self, text: &mut String) {
        let Self {
            path,
            found,
            new,
            mode,
        } = self;
        let old = match found {
            Found::File { content, .. } => Some(String::from_utf8_lossy(content)),
            Found::Nothing => None,
            Found::Special(what) | Found::Blocked(what) => {
                let _ = writeln!(text, "{path} {what}");
                None
            }
        };
        let new = new.map(String::from_utf8_lossy);
        if let (Found::File { mode: was, .. }, Some(_)) = (found, &new)
            && (was & 0o100 != 0) != (mode & 0o100 != 0)
        {
            let bits = |mode: u32| {
                if mode & 0o100 != 0 {
                    "100755"
                } else {
                    "100644"
                }
            };
            let _ = writeln!(
                text,
                "{path}\nold mode {}\nnew mode {}",
                bits(*was),
                bits(*mode)
            );
        }
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

/// What cannot be replaced at all, or, without `force`, only be lost.
fn irreplaceable<'a, 'b: 'a>(
    changes: impl Iterator<Item = &'a Change<'b>>,
    force: bool,
) -> Vec<(PathBuf, &'static str)> {
    let why = |change: &Change<'_>| match change.found {
        Found::Blocked(why) => Some(why),
        Found::Special(why) if !force => Some(why),
        _ => None,
    };
    changes
        .filter_map(|change| Some((change.path.clone().into(), why(change)?)))
        .collect()
}

/// Files that are neither as the old bundle had them nor as the new one has them.
fn edited(changes: &[Change<'_>], old: &BTreeMap<String, Entry>) -> Vec<(PathBuf, &'static str)> {
    let why = |change: &Change<'_>| {
        let Found::File { content, .. } = &change.found else {
            return None;
        };
        match old.get(&change.path) {
            _ if change.path == MANIFEST || change.loses_nothing() => None,
            Some(entry) if entry.sha256 == sha256(content) => None,
            Some(_) => Some("was edited by hand"),
            None => Some("is in the way of a file of the bundle"),
        }
    };
    changes
        .iter()
        .filter_map(|change| Some((change.path.clone().into(), why(change)?)))
        .collect()
}

/// The directories of some files, `""` for the bundle's own among them.
fn directories(paths: &BTreeSet<String>) -> BTreeSet<PathBuf> {
    paths
        .iter()
        .flat_map(|path| Path::new(path).ancestors().skip(1))
        .map(Path::to_owned)
        .collect()
}

fn is_partial(name: &str) -> bool {
    name.starts_with(PARTIAL[0]) && name.ends_with(PARTIAL[1])
}

/// A manifest may come from anywhere: its paths must stay in the bundle, and out of the secrets.
fn is_inside(path: &String) -> bool {
    let plain = Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    plain && !path.is_empty() && !Path::new(path).starts_with(SECRETS)
}
