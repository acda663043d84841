"""The restic repository, through restic.sh: in a container that sees the repository and what it is
given for one purpose.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from .destination import machine_id
from .docker import bind, container, docker, has_image
from .documents import RUN_ID, RunManifest, run_time
from .files import remove_tree
from .host import STATE, Host, Refused
from .log import complain
from .secrets import named_secrets

CONTAINER = "tracker-backup-restic"
CALL_SECONDS = 22000  # more than restic.sh itself gives any call of restic
NO_REPOSITORY = 10  # restic's own exit code: then, and only then, one may be made


class RepositoryFailure(Refused):
    """What restic.sh says is wrong; `reason` is its exit code."""

    def __init__(self, message: str, reason: int) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Snapshot:
    """A run in the repository."""

    id: str
    run: str
    sequence: int


@dataclass(frozen=True)
class Repository:
    """How to call restic.sh, and under which name this environment's snapshots go."""

    command: tuple[str, ...]
    environment: str

    @property
    def tag(self) -> str:
        """restic separates tags by commas, which a name may hold."""
        return f"environment={quote(self.environment, safe=' ')}"

    def call(self, step: str, *arguments: str) -> str:
        """What one step of restic.sh printed."""
        try:
            done = subprocess.run(
                [*self.command, step, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=CALL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RepositoryFailure(
                f"restic.sh {step} was not over after {CALL_SECONDS} s", 15
            ) from error
        if done.returncode == 0:
            return done.stdout
        *before, last = done.stderr.strip().splitlines()[-20:] or ["it said nothing"]
        for line in before if done.returncode != NO_REPOSITORY else ():
            complain(f"restic: {line}")
        raise RepositoryFailure(
            last.partition("ERROR: ")[2] or f"restic.sh {step} failed: {last}", done.returncode
        )

    def snapshots(self) -> dict[str, Snapshot]:
        """This environment's, by run."""
        found = {}
        for snapshot in (
            json.loads(self.call("snapshots", self.environment, self.tag) or "null") or []
        ):
            tags = dict(tag.partition("=")[::2] for tag in snapshot.get("tags") or [])
            if RUN_ID.fullmatch(tags.get("run", "")) and tags.get("sequence", "").isdigit():
                found[tags["run"]] = Snapshot(snapshot["id"], tags["run"], int(tags["sequence"]))
        return found

    def backup(self, run: RunManifest) -> None:
        """One run's files and its run manifest, as a snapshot with the start time of the run."""
        tags = f"{self.tag},run={run.id},sequence={run.sequence}"
        paths = [file.path for file in run.files]
        self.call(
            "backup",
            self.environment,
            tags,
            f"{run_time(run.id):%Y-%m-%d %H:%M:%S}",
            *paths,
            f"runs/{run.id}.json",
        )

    def forget(self) -> None:
        self.call("forget", self.environment, self.tag)


def uses_restic(host: Host) -> bool:
    return "RESTIC_REPOSITORY_FILE" in host.backup_settings


def restic_secrets(host: Host) -> list[str]:
    return [
        name
        for name in named_secrets(host.configuration / "backup.conf")
        if name.startswith("restic_")
    ]


def address_digest(host: Host) -> str:
    """Tells one repository's address from another's; kept where the address itself is kept,
    readable by root alone.
    """
    address = (host.deploy_dir / "backup/secrets/restic_repository").read_bytes()
    return hashlib.sha256(f"{host.restic_directory}\0".encode() + address).hexdigest()


@contextlib.contextmanager
def scratch_directory(host: Host) -> Iterator[Path]:
    """Where restic writes its packs before it uploads them: on disk, since they may be large.

    The caller holds the lock, so a directory that exists is a dead call's. An empty machine has no
    staging yet.
    """
    scratch = (host.staging if host.staging.is_dir() else STATE) / "restic-scratch"
    remove_tree(scratch)
    scratch.mkdir(mode=0o700)
    try:
        yield scratch
    finally:
        remove_tree(scratch)


@contextlib.contextmanager
def repository(host: Host, *arguments: str, secrets: Path | None = None) -> Iterator[Repository]:
    """Under the lock. The network comes in only when the repository is on a server; of the secrets
    only restic's do.
    """
    for left in docker("ps", "--all", "--quiet", "--filter", f"name=^{CONTAINER}$").split():
        docker("rm", "--force", "--volumes", left)  # a dead run's goes on working
    if not has_image(host.image):
        raise Refused(f"the image {host.image} is not there: install the bundle again")
    if host.restic_directory and not host.restic_directory.is_dir():
        raise Refused(
            f"the restic repository's directory {host.restic_directory} is not there: mount "
            "it or create it"
        )
    # Always the same name, and no other machine's: so a lock that a dead run left in the repository
    # is known as ours.
    own = hashlib.sha256(f"{machine_id()} {host.environment}".encode()).hexdigest()
    host_name = f"tracker-backup-{own[:12]}"
    where = bind(host.restic_directory, "/restic") if host.restic_directory else []
    secrets = secrets or host.deploy_dir / "backup/secrets"
    given = [
        word
        for name in restic_secrets(host)
        for word in bind(secrets / name, f"/run/secrets/{name}", "readonly")
    ]
    with (
        scratch_directory(host) as scratch,
        container(
            CONTAINER,
            host.image,
            "--init",
            "--hostname",
            host_name,
            "--user",
            "0:0",
            "--read-only",
            "--cap-drop",
            "ALL",
            "--cap-add",
            "DAC_OVERRIDE",
            "--security-opt",
            "no-new-privileges",
            "--tmpfs",
            "/tmp:mode=0700,size=16m",
            "--network",
            "none" if where else "bridge",
            "--env",
            "TMPDIR=/scratch",
            *bind(scratch, "/scratch"),
            *bind(host.configuration, "/etc/backup", "readonly"),
            *where,
            *given,
            *arguments,
        ),
    ):
        yield Repository(
            ("docker", "exec", CONTAINER, "/usr/local/bin/restic.sh"), host.environment
        )
