"""Rolls back a restore that an older version began, file by file as that version moved them.

Files in its directory in staging, each a list of paths below the deploy directory that end with a
NUL byte: `targets` what is swapped; `existing` those that were there before, which move to `old/`;
`absent` the others; `made` directories that it made. `partial` has the name of its partial copies,
and `begun` exists when something may have moved.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from .host import Host, Refused
from .log import say
from .swap import clear_way, copy, move_aside, sync
from .trees import below, facts_of, parent

SUFFIX = ".restore-partial"  # of partial copies, in the oldest versions
NAME_BYTES = 255


def undo_older(host: Host, work: Path) -> None:
    if not (work / "begun").exists():
        return
    deploy, room = host.deploy_dir, str(work.relative_to(host.deploy_dir))
    own = work / "partial"
    partial = os.fsdecode(own.read_bytes()) if own.exists() else ""
    for path in entries(work, "targets"):
        clear_way(deploy, path, room)
        facts = facts_of(deploy, path) if named(path) else None
        if facts and stat.S_ISDIR(facts.st_mode):  # a directory in the place of the file
            move_aside(deploy, path, room)
        above, slash, name = path.rpartition("/")
        remove(deploy, f"{above}{slash}{partial or name + SUFFIX}")
    for path in entries(work, "absent"):
        remove(deploy, path)
    for path in entries(work, "existing"):
        if facts_of(work / "old", path) is not None:
            remove(deploy, path)  # there may be no room for both
            move_back(deploy, work, path, partial or ".tracker-backup-rollback")
    for path in reversed(entries(work, "made")):
        try:
            with parent(deploy, path) as (directory, name):
                os.rmdir(name, dir_fd=directory)
        except FileNotFoundError:
            continue
        except (OSError, Refused):
            say(f"warning: {deploy / path} is not empty and stays")
    with below(deploy, "") as directory:
        sync(directory)


def entries(work: Path, name: str) -> list[str]:
    return [os.fsdecode(one) for one in (work / name).read_bytes().split(b"\0") if one]


def named(path: str) -> bool:
    """Whether a file can have this name."""
    return len(os.fsencode(path.rpartition("/")[2])) <= NAME_BYTES


def remove(deploy: Path, path: str) -> None:
    """A directory of that name is not ours and stays."""
    if named(path):
        with (
            contextlib.suppress(FileNotFoundError, IsADirectoryError),
            parent(deploy, path) as (directory, name),
        ):
            os.unlink(name, dir_fd=directory)


def move_back(deploy: Path, work: Path, path: str, partial: str) -> None:
    """By rename, or where none is possible by a copy that gets its name when it is on disk."""
    with (
        parent(work / "old", path) as (old, name),
        parent(deploy, path, make=True) as (live, _),
    ):
        try:
            os.rename(name, name, src_dir_fd=old, dst_dir_fd=live)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial, dir_fd=live)
            copy(old, name, live, partial)
            sync(live)
            os.rename(partial, name, src_dir_fd=live, dst_dir_fd=live)
            sync(live)
            os.unlink(name, dir_fd=old)
