//! What the test files share: the built binary, the examples, a directory to work in.
#![allow(dead_code)] // each test file is a program of its own and uses a part

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

pub const CASES: [&str; 8] = [
    "mysql-external-host",
    "mysql-full-stack",
    "mysql-minimal",
    "mysql-sidecar-s3",
    "sqlite-minimal",
    "sqlite-monitoring",
    "sqlite-sidecar",
    "sqlite-statistics-sftp",
];

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn example(case: &str) -> Value {
    let path = root().join("examples").join(case).join("environment.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// What a run of the program said.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

pub fn run_in(directory: &Path, arguments: &[&str]) -> Outcome {
    outcome(
        Command::new(env!("CARGO_BIN_EXE_gen-backup-bundle"))
            .current_dir(directory)
            .args(arguments),
    )
}

pub fn outcome(command: &mut Command) -> Outcome {
    let output = command.output().unwrap();
    Outcome {
        status: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A directory with `env.json`, in which `out` is generated.
pub struct Scratch(TempDir);

impl Scratch {
    pub fn new(environment: &Value) -> Self {
        let scratch = Self(TempDir::new().unwrap());
        scratch.set(environment);
        scratch
    }

    pub fn of(case: &str) -> Self {
        Self::new(&example(case))
    }

    /// With the bundle of an example written.
    pub fn generated(case: &str) -> Self {
        let scratch = Self::of(case);
        scratch.generate();
        scratch
    }

    pub fn set(&self, environment: &Value) {
        fs::write(self.path("env.json"), environment.to_string()).unwrap();
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    /// Runs the program with `env.json out` after the given options.
    pub fn run(&self, options: &[&str]) -> Outcome {
        run_in(self.0.path(), &[options, &["env.json", "out"]].concat())
    }

    pub fn generate(&self) {
        let outcome = self.run(&[]);
        assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
    }

    /// How many files the bundle has, without the record of the secrets.
    pub fn count(&self) -> usize {
        let is_file = |path: &&String| !path.ends_with('/') && *path != "secrets/.written";
        self.tree().keys().filter(is_file).count()
    }

    /// Path, mode and content of everything below `out`, directories with a final `/`.
    pub fn tree(&self) -> BTreeMap<String, (u32, Vec<u8>)> {
        files_below(&self.path("out"))
    }
}

/// Path, mode and content of everything below a directory, directories with a final `/`.
pub fn files_below(directory: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut tree = BTreeMap::new();
    collect(directory, "", &mut tree);
    tree
}

fn collect(directory: &Path, prefix: &str, tree: &mut BTreeMap<String, (u32, Vec<u8>)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        let metadata = entry.metadata().unwrap();
        let mode = metadata.permissions().mode() & 0o7777;
        if metadata.is_dir() {
            tree.insert(format!("{name}/"), (mode, Vec::new()));
            collect(&entry.path(), &format!("{name}/"), tree);
        } else {
            tree.insert(name, (mode, fs::read(entry.path()).unwrap()));
        }
    }
}

/// Text that has broken a generator somewhere, as one line without control characters.
pub const HOSTILE: [&str; 18] = [
    " leading and trailing spaces ",
    "it's",
    "''",
    "\"double\"",
    "back\\slash \\n \\",
    "$(touch pwned)",
    "`touch pwned`",
    "$HOME ${HOME} $$",
    "{{ lookup('env', 'HOME') }} {% if x %} {# c #}",
    "%s %d 100%",
    "# not a comment",
    "a: b - c, [d] {e} & *f !g | > @h ?",
    "~",
    "null",
    "-n --help",
    "ñ 密码 🦀 \u{301}",
    "\u{2028}line\u{2029}separators\u{a0}\u{fffe}",
    " !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`\
     abcdefghijklmnopqrstuvwxyz{|}~",
];
