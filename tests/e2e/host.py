"""The disposable host: a container with systemd, Docker Engine, sshd and cron.

The tests treat it as a server, and can cut its power.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

from e2e.bundle import REPOSITORY, generator
from e2e.images import PREFIX, host_image, stack_images

USER = "torrust"
BOOT_SECONDS = 90
LOAD_SECONDS = 600
BUILD_SECONDS = 900

# On cgroup v1 in sandboxes without SYS_RESOURCE `--privileged` fails and this does not. On cgroup
# v2 only a privileged container may write to its own part of the hierarchy.
_RIGHTS = {
    "1": (
        *(
            "--env",
            "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
            "--volume",
            "/sys/fs/cgroup:/sys/fs/cgroup:rw",
        ),
        *("--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE", "--security-opt", "seccomp=unconfined"),
        *("--security-opt", "apparmor=unconfined", "--security-opt", "systempaths=unconfined"),
        *(
            "--device-cgroup-rule",
            "b 7:* rwm",
            "--device-cgroup-rule",
            "c 10:237 rwm",
        ),  # loop devices
    ),
    "2": ("--privileged", "--cgroupns", "private"),
}

KEPT_STORES = 3

# Clones the data of an inner engine from one volume to another. Nobody writes to the files of image
# layers, so these are hard links. All else is copied.
_CLONE = """
cd "/volumes/$1/_data"
target=/volumes/$2/_data
cp --archive --link overlay2 "$target/" 2>/dev/null \
    || { rm -rf "$target/overlay2"; cp --archive overlay2 "$target/"; }
for entry in *; do [ "$entry" = overlay2 ] || cp --archive "$entry" "$target/" || exit; done
"""

# Builds the packages of the backup image, for each builder that a host may have.
_BUILD_PACKAGES = """
set -e
DOCKER_BUILDKIT=0 docker build --tag "$1-legacy" - </tmp/Dockerfile &
docker build --tag "$1" - </tmp/Dockerfile
wait "$!"
"""
_EMPTY_CACHES = """
docker builder prune --all --force >/dev/null
docker images --format '{{.Repository}}:{{.Tag}}' | grep '^gen-backup-bundle-e2e/packages:' \
    | xargs --no-run-if-empty docker rmi --force >/dev/null
"""

# Run on the outer machine. A frozen process dies without running again. SIGKILL alone does not
# achieve that on cgroup v1.
_KILL_FROZEN = """
for id in "$@"; do
    group=/sys/fs/cgroup/freezer/docker/$id
    [ -d "$group" ] || continue
    xargs -r kill -KILL <"$group/cgroup.procs"
    echo THAWED >"$group/freezer.state"
done
"""


# Of the hosts that a failed test has taken down, see `Host.last_words`. The report empties this.
LAST_WORDS: list[str] = []

_LAST_WORDS = """
cd /opt/torrust/storage/backup/runs 2>/dev/null
ls -t | grep json$ | head -n 2 | while read -r run; do
    timeout 5 python3 -c '
import json, sys
run = json.load(open(sys.argv[1]))
print(*(f"{key}: {run.get(key)!r}" for key in ("id", "result", "reason", "warnings")), sep=", ")
' "$run" 2>&1 | tail -n 1
done
tail -n 40 /var/log/tracker-backup.log
"""


@dataclass(frozen=True)
class Container:
    """What of an inner container shows that somebody touched it."""

    id: str
    started: str
    status: str


class Host:
    """A running host; leaving the `with` block removes it, with everything in it."""

    def __init__(self, name: str, *, buildkit: bool = True, prepared: bool = True) -> None:
        """`buildkit` False takes buildx away: `docker build` falls back to the legacy builder.

        `prepared` False empties the builders' caches.
        """
        self.name = name
        self.address = ""
        self._buildkit = buildkit
        self._prepared = prepared

    def __enter__(self) -> Host:
        store = _prepared_store()
        try:
            self._create("/var/lib/docker")
            _clone(store, self._volume())
            self._start()
            if not self._buildkit:
                self.run("rm", "/usr/libexec/docker/cli-plugins/docker-buildx")
            if not self._prepared:
                self.sh(_EMPTY_CACHES, seconds=300)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            LAST_WORDS.append(self.last_words())
        self.stop()

    def last_words(self) -> str:
        """The end of the last two runs and of the log; for a failed test, so it never raises."""
        try:
            told = self.run("bash", "-c", _LAST_WORDS, check=False, seconds=20)
            text = told.stdout + told.stderr
        except Exception as error:  # whatever it is, it must not hide why the test failed
            text = f"cannot be read: {error!r}"
        return f"{self.name}:\n{text.strip()}\n"

    def run(
        self,
        *command: str,
        stdin: str | bytes | None = None,
        check: bool = True,
        seconds: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command as root, without a login.

        Raises with its output when it fails and `check` is left on.
        """
        return _docker(
            "exec", "--interactive", self.name, *command, stdin=stdin, check=check, seconds=seconds
        )

    def sh(self, script: str, *, check: bool = True, seconds: float = 120) -> str:
        """Standard output of a shell script run as root."""
        return self.run("bash", "-c", script, check=check, seconds=seconds).stdout

    def spawn(self, *command: str) -> subprocess.Popen[str]:
        """Starts a command as root and does not wait for it; `stdout` has both its streams."""
        return subprocess.Popen(
            ["docker", "exec", "--interactive", self.name, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ssh(
        self, command: str, key: Path, *, check: bool = True, seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Runs a shell command as the deployer's user, over SSH as an operator would."""
        options = (
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "BatchMode=yes",
            "ConnectTimeout=10",
        )
        flags = [part for option in options for part in ("-o", option)]
        return _checked(
            ["ssh", "-i", str(key), *flags, f"{USER}@{self.address}", command], None, seconds, check
        )

    def authorize(self, public_key: str) -> None:
        """Lets the holder of a key log in as the deployer's user."""
        home = f"home/{USER}/.ssh"
        self.unpack(
            {home: None, f"{home}/authorized_keys": public_key},
            owner=1000,
            modes={home: 0o700, f"{home}/authorized_keys": 0o600},
        )

    def unpack(
        self,
        tree: Mapping[str, str | None],
        *,
        owner: int = 0,
        modes: Mapping[str, int] | None = None,
        owners: Mapping[str, int] | None = None,
    ) -> None:
        """Writes files and directories: paths below the root directory to content, or to None.

        Files get the mode 0644 and directories 0755, unless `modes` names another.
        """
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for path, content in tree.items():
                member = tarfile.TarInfo(path)
                member.uid = member.gid = (owners or {}).get(path, owner)
                member.mtime = int(time.time())
                if content is None:
                    member.type = tarfile.DIRTYPE
                data = (content or "").encode()
                member.size = len(data)
                member.mode = (modes or {}).get(path, 0o755 if content is None else 0o644)
                tar.addfile(member, io.BytesIO(data))
        self.run(
            "tar",
            "--extract",
            "--preserve-permissions",
            "--numeric-owner",
            "--directory=/",
            "--file=-",
            stdin=archive.getvalue(),
        )

    def read(self, path: str) -> str:
        """Content of a text file."""
        return self.run("cat", path).stdout

    def stat(self, path: str) -> str:
        """Owner, group and mode, as in `root:root 644`."""
        return self.run("stat", "--format=%U:%G %a", path).stdout.strip()

    def exists(self, path: str) -> bool:
        """Whether something, a dangling link included, stands at a path."""
        return self.run("test", "-e", path, "-o", "-L", path, check=False).returncode == 0

    def containers(self) -> dict[str, Container]:
        """The inner engine's containers by name, those that stand still included."""
        script = (
            "docker ps --all --quiet --no-trunc | xargs --no-run-if-empty docker inspect"
            " --format '{{.Name}} {{.Id}} {{.State.StartedAt}} {{.State.Status}}'"
        )
        rows = (line.split() for line in self.sh(script).splitlines())
        return {
            name.lstrip("/"): Container(identity, started, status)
            for name, identity, started, status in rows
        }

    def reboot(self) -> None:
        """An orderly reboot: services stop, `/run` is empty afterwards, cron's `@reboot` runs."""
        _docker("restart", "--time", "60", self.name, seconds=120)
        self._booted()

    def power_cut(self) -> None:
        """Every process dies at once and the host boots again; what was not synced survives."""
        self._kill()
        self._start()

    def stop(self) -> None:
        """Removes the host and all that it wrote; safe to call on what is half made."""
        if _docker("inspect", self.name, check=False).returncode == 0:
            self._kill()
            _docker("rm", "--force", "--volumes", self.name)

    def _create(self, data: str) -> None:
        """`data` is a volume of the inner engine's: a path for one of its own, or NAME:PATH."""
        cgroups = _docker("info", "--format", "{{.CgroupVersion}}").stdout.strip()
        _docker(
            *("create", "--name", self.name, "--hostname", self.name, "--label", PREFIX),
            *("--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp:exec", "--volume", data),
            *_RIGHTS[cgroups],
            host_image(),
        )

    def _volume(self) -> str:
        """Name of the volume of its inner engine."""
        form = '{{range .Mounts}}{{if eq .Destination "/var/lib/docker"}}{{.Name}}{{end}}{{end}}'
        return _docker("inspect", "--format", form, self.name).stdout.strip()

    def _start(self) -> None:
        _docker("start", self.name)
        self._booted()

    def _booted(self) -> None:
        services = "docker.service ssh.service cron.service"
        wait_until(
            "the host's Docker, sshd and cron",
            lambda: self._answers("systemctl", "is-active", *services.split()),
            BOOT_SECONDS,
        )
        self.address = _docker(
            "inspect", "--format", "{{.NetworkSettings.IPAddress}}", self.name
        ).stdout.strip()

    def _answers(self, *command: str) -> bool:
        return self.run(*command, check=False).returncode == 0

    def _kill(self) -> None:
        frozen = self.run(
            "docker",
            "ps",
            "--quiet",
            "--no-trunc",
            "--filter",
            "status=paused",
            check=False,
            seconds=30,
        ).stdout.split()
        if frozen:
            killing = ("sh", "-c", _KILL_FROZEN, "kill-frozen", *frozen)
            _docker(
                "run",
                "--rm",
                "--pid=host",
                "--volume=/sys/fs/cgroup:/sys/fs/cgroup",
                host_image(),
                *killing,
            )
        _docker("kill", self.name, check=False)


def wait_until(what: str, ready: Callable[[], bool], seconds: float) -> None:
    """Asks again and again, for at most so many seconds, then fails naming what did not come."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.1)


def _image_store() -> str:
    """Name of the volume that holds an inner engine's data with all images of the stack.

    It is made once for a set of images.
    """
    images = stack_images()
    digest = hashlib.sha256(
        "\0".join(f"{name} {source}" for name, source in images.items()).encode()
    )
    volume = f"{PREFIX}-store-{digest.hexdigest()[:12]}"
    if _is_complete(volume):
        return volume
    print(f"host: loading the stack's images into the volume {volume} once", flush=True)
    _docker("volume", "rm", volume, check=False)
    loader = Host(f"{PREFIX}-loader-{os.getpid()}")
    try:
        loader._create(f"{volume}:/var/lib/docker")
        loader._start()
        saving = ["docker", "save", *images.values()]
        with subprocess.Popen(saving, stdout=subprocess.PIPE) as save:
            loading = ["docker", "exec", "--interactive", loader.name, "docker", "load"]
            subprocess.run(
                loading,
                stdin=save.stdout,
                stdout=subprocess.DEVNULL,
                timeout=LOAD_SECONDS,
                check=True,
            )
        for published, source in images.items():
            loader.run("docker", "tag", source, published)
            loader.run("docker", "rmi", source)
        _complete(loader)
    finally:
        loader.stop()
    return volume


@cache
def _prepared_store() -> str:
    """Name of the volume that hosts are cloned from: the image store, and the builders' caches.

    The caches hold the packages of the backup image, so that building it takes a second. A product
    whose Dockerfile changed gets a new store.
    """
    store, recipes = _image_store(), package_layers()
    digest = hashlib.sha256("\0".join((store, *recipes)).encode())
    volume = f"{PREFIX}-prepared-{digest.hexdigest()[:12]}"
    if _is_complete(volume):
        return volume
    print(f"host: preparing the volume {volume} once (some minutes)", flush=True)
    _docker("volume", "rm", volume, check=False)
    loader = Host(f"{PREFIX}-loader-{os.getpid()}")
    try:
        loader._create(f"{volume}:/var/lib/docker")
        _clone(store, volume)
        _in_volume(volume, "rm", "-f", "/store/complete")
        loader._start()
        for number, recipe in enumerate(recipes):
            loader.run("tee", "/tmp/Dockerfile", stdin=recipe)
            name = f"{PREFIX}/packages:{number}"
            loader.run("bash", "-c", _BUILD_PACKAGES, "build", name, seconds=BUILD_SECONDS)
        _complete(loader)
    finally:
        loader.stop()
    _remove_old_stores(volume)
    return volume


@cache
def package_layers() -> tuple[str, ...]:
    """The Dockerfiles of the product, each up to where it copies its own files.

    There is one for each set of packages: for a window, for a sidecar, and with restic.
    """
    found = set()
    with tempfile.TemporaryDirectory() as folder:
        text = (REPOSITORY / "examples/sqlite-minimal/environment.json").read_text(encoding="utf-8")
        environment = json.loads(text)
        restic = {"repository": "/srv/restic", "password": "any"}
        for section in ({}, {"strategy": "sidecar"}, {"restic": restic}):
            environment["backup"] = section
            source = Path(folder) / "environment.json"
            source.write_text(json.dumps(environment), encoding="utf-8")
            bundle = Path(tempfile.mkdtemp(dir=folder)) / "bundle"
            command = [generator(), str(source), str(bundle)]
            subprocess.run(command, stdout=subprocess.DEVNULL, timeout=60, check=True)
            dockerfile = (bundle / "backup/Dockerfile").read_text(encoding="utf-8")
            found.add(dockerfile.partition("\nCOPY ")[0] + "\n")
    return tuple(sorted(found))


def _clone(source: str, target: str) -> None:
    """Copies an inner engine's data from one volume to another, both on one file system."""
    mountpoint = _docker("volume", "inspect", "--format", "{{.Mountpoint}}", source).stdout.strip()
    volumes = f"{Path(mountpoint).parent.parent}:/volumes"
    clone = ("run", "--rm", "--volume", volumes, host_image(), "bash", "-c", _CLONE, "clone")
    _docker(*clone, source, target, seconds=300)


def _is_complete(volume: str) -> bool:
    return _in_volume(volume, "test", "-e", "/store/complete").returncode == 0


def _complete(loader: Host) -> None:
    loader.run("systemctl", "stop", "docker.socket", "docker.service")
    loader.run("touch", "/var/lib/docker/complete")


def _remove_old_stores(volume: str) -> None:
    """Keeps a few, since several checkouts may take turns."""
    names = _docker(
        "volume", "ls", "--quiet", "--filter", f"name={PREFIX}-prepared-"
    ).stdout.split()
    created = {
        name: _docker("volume", "inspect", "--format", "{{.CreatedAt}}", name).stdout
        for name in names
    }
    for name in sorted(names, key=created.__getitem__, reverse=True)[KEPT_STORES:]:
        if name != volume:
            _docker("volume", "rm", name, check=False)  # refused while another run clones it


def _in_volume(volume: str, *command: str) -> subprocess.CompletedProcess[str]:
    return _docker("run", "--rm", f"--volume={volume}:/store", host_image(), *command, check=False)


def _docker(
    *arguments: str, stdin: str | bytes | None = None, check: bool = True, seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    return _checked(["docker", *arguments], stdin, seconds, check)


def _checked(
    command: list[str], stdin: str | bytes | None, seconds: float, check: bool
) -> subprocess.CompletedProcess[str]:
    """Runs a command of the outer machine to its end; an unexpected failure has its output."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    raw = subprocess.run(
        command,
        input=data,
        stdin=None if data is not None else subprocess.DEVNULL,
        capture_output=True,
        timeout=seconds,
        check=False,
    )
    done = subprocess.CompletedProcess(
        command,
        raw.returncode,
        raw.stdout.decode(errors="replace"),
        raw.stderr.decode(errors="replace"),
    )
    if check and done.returncode != 0:
        raise AssertionError(
            f"{' '.join(command)[:500]} ended with {done.returncode}:\n"
            f"{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
    return done


if __name__ == "__main__":
    # Before several processes need it at once.
    print(_prepared_store())
