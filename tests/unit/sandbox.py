"""A host below a temporary directory, and the package of `tracker-backup` loaded so that it takes
it for its own.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import json
import os
import shutil
import sys
import uuid
from dataclasses import dataclass, field
from importlib.machinery import FileFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent.parent
TEMPLATES = Path(os.environ.get("BUNDLE_TEMPLATES", TESTS.parent / "bundle-templates"))
STUBS = TESTS / "program/stubs"  # of Docker; see program/fake_docker.py
CALENDAR = "0 3 {} {} {} both".format(
    *(",".join(map(str, numbers)) for numbers in (range(1, 32), range(1, 13), range(7)))
)
STEPS = ("prune", "record")  # of a run
CHECKS = ("destination", "docker", "deployment")
IMAGE = "gen-backup-bundle/backup:0123456789ab"


@functools.cache
def compiled(source: bytes, name: str) -> CodeType:
    return compile(source, name, "exec")


class Loader(SourceFileLoader):
    """Compiles what is the same in every sandbox once, and leaves no bytecode there."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return compiled(self.get_data(path), Path(path).name)


def load(bundle: Path) -> ModuleType:
    """The bundle's package under a name of its own: its modules read their environment when they
    are loaded.
    """
    path = str(bundle / "backup/tracker_backup")
    package = ModuleType(f"tracker_backup_{uuid.uuid4().hex}")
    package.__path__ = [path]
    for folder in (path, f"{path}/drivers", f"{path}/worker"):
        sys.path_importer_cache[folder] = FileFinder(folder, (Loader, [".py"]))
    sys.modules[package.__name__] = package
    importlib.import_module(f"{package.__name__}.main")
    return package


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def changes(self) -> list[str]:
        return [line for line in self.out.splitlines() if line.startswith("changed:")]


@dataclass
class Sandbox:
    """Paths of one host, and what to do there."""

    path: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    package: ModuleType = field(init=False)

    def __post_init__(self) -> None:
        for name in (
            "etc/cron.d",
            "etc/logrotate.d",
            "usr/local/bin",
            "usr/local/lib",
            "var/log",
            "var/lib",
        ):
            (self.root / name).mkdir(parents=True)
        own = self.add_process("self", "python3")
        self.add_process("310", "/usr/sbin/cron", "-f", namespace=own)
        (self.root / "etc/machine-id").write_text("5ca1ab1e\n")
        (self.deploy / "storage/tracker/etc").mkdir(parents=True)
        (self.deploy / "docker-compose.yml").write_text("services: {}\n")
        (self.deploy / ".env").write_text("SECRET=1\n")
        for name in ("hooks", "tracker", "containers", "clients"):
            (self.stub / name).mkdir(parents=True)
        for name, text in {
            "calls": "",
            "images": IMAGE + "\n",
            "compose-version": "2.24.4\n",
            "tracker/id": "7e57",
            "tracker/directory": str(self.deploy),
            "tracker/status": "running",
            "tracker/started": "2026-01-01T00:00:00Z",
            "tracker/finished": "0001-01-01T00:00:00Z",
            "tracker/exit_code": "0",
        }.items():
            (self.stub / name).write_text(text)
        for key, value in {
            "PATH": f"{STUBS}:{os.environ['PATH']}",
            "STUB": self.stub,
            "STUB_DEPLOY": self.deploy,
            "STUB_DESTINATION": self.destination,
            "TRACKER_BACKUP_ROOT": self.root,
            "TRACKER_BACKUP_CONFIG": self.config,
            "TRACKER_BACKUP_STATE_DIR": self.state,
        }.items():
            self.monkeypatch.setenv(key, str(value))
        # Nothing here must survive a power cut; that it would, a test of its own looks at.
        self.monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
        self.make_bundle()
        self.package = load(self.bundle)

    @property
    def root(self) -> Path:
        return self.path / "root"

    @property
    def deploy(self) -> Path:
        return self.path / "deploy"

    @property
    def destination(self) -> Path:
        return self.deploy / "storage/backup"

    @property
    def state(self) -> Path:
        return self.root / "var/lib/tracker-backup"

    @property
    def config(self) -> Path:
        return self.root / "etc/tracker-backup.conf"

    @property
    def bundle(self) -> Path:
        return self.path / "upload/bundle"

    @property
    def stub(self) -> Path:
        return self.path / "stub"

    @property
    def secrets(self) -> Path:
        return self.deploy / "backup/secrets"

    @property
    def cron(self) -> Path:
        return self.root / "etc/cron.d/tracker-backup"

    @property
    def calls(self) -> list[str]:
        return (self.stub / "calls").read_text().splitlines()

    def add_process(self, pid: str, *words: str, namespace: str = "pid:[4026531836]") -> str:
        """A process of root's in the host's /proc; returns its process namespace."""
        process = self.root / "proc" / pid
        (process / "ns").mkdir(parents=True)
        (process / "ns/pid").symlink_to(namespace)
        (process / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
        return namespace

    # ------------------------------------------------------------ the bundle

    def make_bundle(self, **settings: str) -> None:
        """The real static files, and rendered ones for this host; `settings` replaces what is in
        both configurations.
        """
        if self.bundle.exists():
            shutil.rmtree(self.bundle)
        host = {
            "ENVIRONMENT": "production",
            "DEPLOY_DIR": str(self.deploy),
            "DESTINATION": str(self.destination),
            "STRATEGY": "maintenance-window",
            "QUIESCE": "stop",
            "STOP_TIMEOUT_SECONDS": "10",
            "WINDOW_TIMEOUT_SECONDS": "300",
            "SCHEDULE": "0 3 * * *",
            "LONGEST_INTERVAL_SECONDS": "86400",
            "CALENDAR": CALENDAR,
            "IMAGE": IMAGE,
            "IMAGE_SOURCE": "build",
        }
        container = {
            "BACKUP_MODE": "single",
            "BACKUP_RETENTION_DAYS": "7",
            "BACKUP_PATHS_FILE": "/etc/backup/backup-paths.txt",
            "BACKUP_COMPRESSION": "gzip",
            "BACKUP_SCOPE": "full",
            "BACKUP_ALLOW_WRITER_STALL": "false",
            "DB_TYPE": "mysql",
            "DB_HOST": "mysql",
            "DB_PORT": "3306",
            "DB_USER": "tracker",
            "DB_NAME": "torrust",
            "DB_PASSWORD_FILE": "/run/secrets/db_password",
            "DB_ROOT_PASSWORD_FILE": "/run/secrets/db_root_password",
            "DB_TLS": "unverified",
        }
        for key, value in settings.items():
            (host if key in host else container)[key] = value
        for source in sorted(TEMPLATES.rglob("*")):
            if source.is_file():
                target = self.bundle / str(source.relative_to(TEMPLATES)).removesuffix(".tera")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
        for name, values in (("host/tracker-backup.conf", host), ("backup/backup.conf", container)):
            (self.bundle / name).write_text(
                "# comment\n" + "".join(f"{key}={quote(value)}\n" for key, value in values.items())
            )
        (self.bundle / "backup/backup-paths.txt").write_text("/data/.env\n")
        self.sign()

    def sign(self) -> None:
        """manifest.json, as the generator writes it last."""
        files = {
            str(path.relative_to(self.bundle)): {
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "executable": False,
            }
            for path in sorted(self.bundle.rglob("*"))
            if path.is_file() and path.name != "manifest.json"
        }
        (self.bundle / "manifest.json").write_text(
            json.dumps({"format": 1, "generator": "test", "input_digest": "", "files": files})
        )

    # ------------------------------------------------------------ commands

    def call(self, *words: str, stdin: str | bytes = "") -> Outcome:
        """One command in this process; whatever it does not handle itself is a test's failure."""
        self.capsys.readouterr()
        text = stdin.encode(errors="surrogateescape") if isinstance(stdin, str) else stdin
        self.monkeypatch.setattr(
            sys,
            "stdin",
            io.TextIOWrapper(io.BytesIO(text), encoding="utf-8", errors="surrogateescape"),
        )
        self.monkeypatch.setattr(sys, "argv", ["tracker-backup", *words])
        mask = os.umask(0o022)
        try:
            is_step = words[0] in STEPS or (words[0] == "check" and words[1] in CHECKS)
            code = self.step(*words) if is_step else self.package.main.main()
        finally:
            os.umask(mask)
        captured = self.capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    def step(self, name: str, *words: str) -> int:
        """A step of a run as a command: `check WHAT`, `prune`, or `record` with what is known of
        the run on standard input, as JSON: attributes of Run, and result, code and reason.
        """
        package = self.package
        host = package.host.Host.read(self.config)
        try:
            if name == "check" and words[0] == "destination":
                package.destination.check_destination(host)
            elif name == "check" and words[0] == "docker":
                package.run.require_docker(host)
            elif name == "check":
                for warning in package.deployment.check_deployment(host):
                    print(f"warning: {warning}")
            elif name == "prune":
                package.retention.prune(host)
            else:
                facts = json.load(sys.stdin)
                outcome = [facts.pop(key) for key in ("result", "code", "reason")]
                run = package.run.Run(dry_run=False)
                run.host, run.window = host, SimpleNamespace(seconds=facts.pop("window_seconds"))
                with contextlib.suppress(package.host.Refused):
                    run.facts = package.deployment.stack_facts(host)
                run.found = package.protocol.Answer(**facts.pop("found"))
                run.files = [package.documents.BackupFile(**file) for file in facts.pop("files")]
                vars(run).update(facts)
                package.run.record(run, *outcome)
        except package.host.Refused as error:
            print(f"error: {error}", file=sys.stderr)
            return int(error.code)
        return 0

    def install(self, *words: str, secrets: dict[str, str] | None = None) -> Outcome:
        given = {"db_password": "pass", "db_root_password": "root"} if secrets is None else secrets
        return self.call("install", *words, stdin=json.dumps(given))

    def installed(self) -> Sandbox:
        assert self.install().code == 0
        return self

    # ------------------------------------------------------------ runs

    def add_run(self, run_id: str, sequence: int, **facts: Any) -> dict[str, Any]:
        """A run manifest and the files that it names."""
        run = manifest(run_id, sequence, **facts)
        (self.destination / f"runs/{run_id}.json").write_text(json.dumps(run))
        for file in run["files"]:
            path = self.destination / file["path"]
            path.parent.mkdir(exist_ok=True)
            path.write_text("backup")
        return run

    def empty_destination(self) -> None:
        """No run yet, and nothing acknowledged."""
        for path in self.destination.rglob("*"):
            if path.is_file() and not path.name.startswith(".tracker-backup"):
                path.unlink()
        for name in ("retention.json", "verified.json"):
            (self.state / name).unlink(missing_ok=True)

    def files(self) -> set[str]:
        return {
            str(path.relative_to(self.destination))
            for path in self.destination.rglob("*")
            if path.is_file()
        }


def quote(value: str) -> str:
    """As the bundle's `| sh` filter writes it."""
    return "'" + value.replace("'", "'\\''") + "'"


def manifest(run_id: str, sequence: int, **facts: Any) -> dict[str, Any]:
    """A run manifest; without more, of a success with a database and the configuration."""
    result = facts.get("result", "success")
    kinds = facts.pop("kinds", ("database", "config") if result == "success" else ())
    names = {
        "database": f"sqlite/sqlite_{run_id}.db.gz",
        "config": f"config/config_{run_id}.tar.gz",
    }
    return {
        "format": 1,
        "id": run_id,
        "sequence": sequence,
        "environment": "production",
        "started": "",
        "finished": "",
        "result": result,
        "exit_code": 0 if result == "success" else 1,
        "reason": "" if result == "success" else "disk full",
        "strategy": "maintenance-window",
        "quiesce": "stop",
        "scope": "full",
        "files": [
            {"kind": kind, "path": names[kind], "bytes": 6, "sha256": "00" * 32} for kind in kinds
        ],
        "paths": [],
        "tables": {"torrents": 3},
        "window_seconds": 1.5,
        "durations": {},
        "directories": {},
        "images": {},
        "warnings": [],
        "tools": {},
        **facts,
    }


def mode(path: Path) -> str:
    return f"{path.lstat().st_mode & 0o7777:04o}"
