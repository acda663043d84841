"""The restic repository, through the courier: a container that sees the repository and what it is
given for one purpose.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .destination import machine_id
from .docker import bind, container, docker, has_image, words
from .documents import RunManifest, run_time
from .files import remove_tree
from .host import STATE, Host, Refused
from .jobs import CONFINED, ask
from .log import complain
from .secrets import named_secrets

CONTAINER = "tracker-backup-restic"
CALL_SECONDS = 22000  # more than the courier itself gives any call of restic
SNAPSHOT = re.compile("([0-9a-f]{8,64}) ([0-9]{8}_[0-9]{6}) ([0-9]{1,18})")
NO_REPOSITORY = 10  # restic's own exit code: then, and only then, one may be made


class RepositoryFailure(Refused):
    """What the courier says is wrong; `reason` is the code of its answer."""

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
    """The courier, and under which name this environment's snapshots go."""

    settings: dict[str, str]
    environment: str

    @property
    def own(self) -> dict[str, str]:
        """restic separates tags by commas, which a name may hold."""
        tag = f"environment={quote(self.environment, safe=' ')}"
        return {"host": self.environment, "tag": tag}

    def call(self, job: str, **arguments: Any) -> str:
        """What one job of the courier found."""
        answer = ask(CONTAINER, "courier", job, CALL_SECONDS, settings=self.settings, **arguments)
        if answer.code == 0:
            return answer.text
        for line in answer.warnings if answer.code != NO_REPOSITORY else ():
            complain(f"restic: {line}")
        raise RepositoryFailure(answer.reason, answer.code)

    def snapshots(self) -> dict[str, Snapshot]:
        """This environment's, by run."""
        found = {}
        for line in self.call("snapshots", **self.own).splitlines():
            if match := SNAPSHOT.fullmatch(line):
                found[match[2]] = Snapshot(match[1], match[2], int(match[3]))
        return found

    def backup(self, run: RunManifest) -> None:
        """One run's files and its run manifest, as a snapshot with the start time of the run."""
        tag = f"{self.own['tag']},run={run.id},sequence={run.sequence}"
        files = [*(file.path for file in run.files), f"runs/{run.id}.json"]
        time = f"{run_time(run.id):%Y-%m-%d %H:%M:%S}"
        self.call("backup", host=self.environment, tag=tag, time=time, files=files)

    def forget(self) -> None:
        self.call("forget", **self.own)


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
    network = "none" if where else "bridge"
    options = words(
        f"--hostname {host_name} --user 0:0 --cap-add DAC_OVERRIDE --network {network} "
        "--tmpfs /tmp:size=16m --env TMPDIR=/scratch"
    )
    settings = {
        name: value for name, value in host.backup_settings.items() if name.startswith("RESTIC_")
    }
    with scratch_directory(host) as scratch:
        places = [*bind(scratch, "/scratch"), *where, *given, *arguments]
        with container(CONTAINER, host.image, *CONFINED, *options, *places):
            yield Repository(settings, host.environment)
