"""Docker images of the disposable host and of the stack.

They are pulled if a registry answers, and built from Debian packages if none does. Everything is
kept between runs, under names of our own in the machine's Docker, keyed by a digest of what it is
made from. The tracker's binary is kept in the user's cache directory.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

PREFIX = "gen-backup-bundle-e2e"
RECIPES = Path(__file__).parent / "images"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gen-backup-bundle"
TRACKER_CRATE = "torrust-tracker@3.0.0"

PULL_SECONDS = 600
BUILD_SECONDS = 900
CARGO_SECONDS = 3600


@dataclass(frozen=True)
class Recipe:
    """How one image of the stack comes about.

    `published` is its name in the compose file and, with `pull`, in a registry.
    """

    folder: str
    suite: str
    published: str
    pull: bool = True


HOST = Recipe("host", "trixie", "host", pull=False)
STACK = (
    Recipe(
        "tracker", "trixie", "torrust/tracker:develop", pull=False
    ),  # `develop` moves; the tests want 3.0.0
    Recipe("mysql", "sid", "mysql:8.4"),
    Recipe("prometheus", "trixie", "prom/prometheus:v3.5.0"),
    Recipe("caddy", "trixie", "caddy:2.10"),
    Recipe("grafana", "trixie", "grafana/grafana:12.3.1"),
)


def host_image() -> str:
    """Name of the image of the disposable host, made when it is not there."""
    return _ensure(HOST)


def stack_images() -> dict[str, str]:
    """Every image that the inner engine needs: its published name, and the one in our Docker.

    The published name is the one in compose files.
    """
    return {"debian:trixie-slim": base_image("trixie")} | {
        recipe.published: _ensure(recipe) for recipe in STACK
    }


@cache
def base_image(suite: str) -> str:
    """Name of `debian:<suite>-slim` under a name of ours.

    It is pulled, or made with debootstrap if no registry answers.
    """
    name = f"{PREFIX}/debian:{suite}"
    if _exists(name):
        return name
    if _pull(f"debian:{suite}-slim", name):
        return name
    _say(f"no image registry answers: making {name} with debootstrap (half a minute)")
    _debootstrap(suite, name)
    return name


@cache
def _ensure(recipe: Recipe) -> str:
    """Name of the image of a recipe; pulls or builds it if this machine has not got it."""
    pulled = f"{PREFIX}/{recipe.folder}:{recipe.published.rpartition(':')[2]}"
    if recipe.pull and (
        _exists(pulled) or (_registry_answers() and _pull(recipe.published, pulled))
    ):
        return pulled
    base = base_image(recipe.suite)
    context = {path.name: path for path in sorted((RECIPES / recipe.folder).iterdir())}
    if recipe.folder == "tracker":
        context["torrust-tracker"] = _tracker_binary()
    digest = hashlib.sha256(_image_id(base).encode())
    for name, path in context.items():
        digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    built = f"{PREFIX}/{recipe.folder}:{digest.hexdigest()[:12]}"
    if not _exists(built):
        _say(f"building {built}")
        _build(built, base, context)
    return built


def _build(name: str, base: str, context: dict[str, Path]) -> None:
    """Builds an image from a handful of files.

    The context goes over standard input, which both builders take.
    """
    archive = io.BytesIO()
    # GNU format: Docker takes the first bytes of the newer one for a Dockerfile.
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for member, path in context.items():
            tar.add(path, arcname=member)
    # The default builder sees the images of this machine; another builder may not.
    environment = os.environ | {"BUILDX_BUILDER": "default"}
    command = ["docker", "build", "--tag", name, "--build-arg", f"BASE={base}", "-"]
    _run(command, seconds=BUILD_SECONDS, stdin=archive.getvalue(), environment=environment)


def _tracker_binary() -> Path:
    """The real tracker, from crates.io; about ten minutes on two cores when the cache has none."""
    root = CACHE / "tracker"
    binary = root / "bin" / "torrust-tracker"
    if not binary.exists():
        _say(f"building {TRACKER_CRATE} once, into {root} (about ten minutes)")
        _run(
            [
                "cargo",
                "install",
                "--locked",
                "--root",
                str(root),
                "--bin",
                "torrust-tracker",
                TRACKER_CRATE,
            ],
            seconds=CARGO_SECONDS,
        )
    return binary


def _exists(name: str) -> bool:
    return (
        subprocess.run(
            ["docker", "image", "inspect", name], capture_output=True, timeout=60, check=False
        ).returncode
        == 0
    )


def _image_id(name: str) -> str:
    return _run(["docker", "image", "inspect", "--format", "{{.Id}}", name], seconds=60).strip()


def _pull(reference: str, name: str) -> bool:
    """Pulls an image and gives it a name of ours; False when no registry hands it out.

    Docker gives up on a silent registry after seconds.
    """
    try:
        pulled = subprocess.run(
            ["docker", "pull", "--quiet", reference],
            capture_output=True,
            timeout=PULL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    if pulled.returncode == 0:
        _run(["docker", "tag", reference, name], seconds=60)
    return pulled.returncode == 0


@cache
def _registry_answers() -> bool:
    """Whether pulling is worth trying: without a registry, each image would wait in vain."""
    return _pull("debian:trixie-slim", f"{PREFIX}/debian:trixie")


def _debootstrap(suite: str, name: str) -> None:
    """Makes a base image from this machine's own package mirror and imports it."""
    if os.geteuid() != 0:
        raise RuntimeError(
            "no image registry answers, and making base images with debootstrap needs root:"
            " run as root, or pull images"
        )
    if shutil.which("debootstrap") is None:
        _say("installing the package debootstrap on this machine: base images cannot be pulled")
        _run(["apt-get", "install", "--yes", "--no-install-recommends", "debootstrap"], seconds=300)
    CACHE.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix=f"{suite}-", dir=CACHE))
    mirror = _debian_mirror()
    try:
        _run(["debootstrap", "--variant=minbase", suite, str(root), mirror], seconds=BUILD_SECONDS)
        (root / "etc/apt/sources.list").write_text(f"deb {mirror} {suite} main\n", encoding="utf-8")
        _copy_apt_settings(root)
        _slim(root)
        importing = ["docker", "import", "--change", 'CMD ["bash"]', "-", name]
        with subprocess.Popen(
            ["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE
        ) as packing:
            subprocess.run(
                importing, stdin=packing.stdout, stdout=subprocess.DEVNULL, timeout=300, check=True
            )
        if packing.returncode != 0:
            raise RuntimeError(
                f"tar ended with {packing.returncode} while packing the base image {name}"
            )
    finally:
        _run(["rm", "-rf", "--one-file-system", str(root)], seconds=60)


def _debian_mirror() -> str:
    """The Debian archive that this machine's apt uses (DEBIAN_MIRROR overrides it)."""
    if chosen := os.environ.get("DEBIAN_MIRROR"):
        return chosen
    listed = _run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"], seconds=60
    )
    for uri in listed.split():
        if urlsplit(uri).path.rstrip("/").endswith("/debian"):
            return uri.rstrip("/")
    raise RuntimeError(
        "no Debian archive among this machine's apt sources: set DEBIAN_MIRROR to the URL of one"
    )


def _copy_apt_settings(root: Path) -> None:
    """Carries over how this machine's apt reaches its mirror: proxies, checks, authorities."""
    wanted = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries")
    settings = [
        line
        for line in _run(["apt-config", "dump"], seconds=60).splitlines()
        if line.startswith(wanted)
    ]
    (root / "etc/apt/apt.conf.d/99outer-machine").write_text(
        "".join(f"{line}\n" for line in settings), encoding="utf-8"
    )
    authorities = {Path("/etc/ssl/certs/ca-certificates.crt")}
    authorities |= {
        Path(line.split('"')[1])
        for line in settings
        if line.lower().startswith("acquire::https") and "cainfo" in line.lower()
    }
    for file in authorities:
        if file.is_file():
            copy = root / file.relative_to("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def _slim(root: Path) -> None:
    """Leaves out what Debian's own `-slim` images leave out, also of packages installed later."""
    excluded = [f"path-exclude /usr/share/{part}/*\n" for part in ("doc", "info", "locale", "man")]
    (root / "etc/dpkg/dpkg.cfg.d/slim").write_text("".join(excluded), encoding="utf-8")
    for part in (
        "usr/share/doc",
        "usr/share/info",
        "usr/share/locale",
        "usr/share/man",
        "var/cache/apt",
        "var/lib/apt/lists",
    ):
        for entry in (root / part).glob("*"):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _say(message: str) -> None:
    print(f"images: {message}", flush=True)


def _run(
    command: list[str],
    *,
    seconds: float,
    stdin: bytes | None = None,
    environment: dict[str, str] | None = None,
) -> str:
    """Runs a command to its end and returns its output; a failure raises with the output."""
    done = subprocess.run(
        command,
        input=stdin,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
        check=False,
    )
    output = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{output[-4000:]}")
    return output


if __name__ == "__main__":
    preparing: list[Callable[[], object]] = [host_image, stack_images]
    for prepare in preparing:
        print(prepare())
