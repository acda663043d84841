"""What others build on the generator with: a copy of the repository, and an environment file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Both tests build the program as a user would, but quickly, and share what they built.
QUICK_BUILD = {
    "CARGO_TARGET_DIR": str(ROOT / "target/integration"),
    "CARGO_PROFILE_RELEASE_OPT_LEVEL": "0",
    "CARGO_PROFILE_RELEASE_LTO": "off",
    "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
}


def run(
    *command: str, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | QUICK_BUILD | (env or {}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=900,
    )


def git(directory: Path, *arguments: str) -> str:
    options = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    result = run("git", *options, *arguments, cwd=directory)
    assert result.returncode == 0, result.stdout
    return result.stdout.strip()


def commit(directory: Path) -> str:
    git(directory, "init", "--quiet")
    git(directory, "add", "--all", "--force")
    git(directory, "commit", "--quiet", "--message", "test")
    return git(directory, "rev-parse", "HEAD")


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with what Git knows, or would add, of this one."""
    clone = tmp_path_factory.mktemp("clone")
    listed = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    for name in listed.split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith(("examples/", "tests/")):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    commit(clone)
    return clone


class Environments:
    """A repository of somebody who keeps environment files and bundles."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        example = ROOT / "examples/sqlite-minimal/environment.json"
        self.content: dict[str, Any] = json.loads(example.read_text())

    def write(self, name: str, **backup: object) -> None:
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(self.content | {"backup": backup}))


@pytest.fixture
def environments(tmp_path: Path) -> Environments:
    return Environments(tmp_path)
