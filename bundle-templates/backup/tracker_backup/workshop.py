"""A backup is unpacked and checked: for verify, restore and extract.

Each file is extracted by an unpacker that sees this file and an empty directory. A database is then
opened by an examiner that sees nothing else. Each is a container without network.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .docker import WORK_SECONDS, bind, container, words
from .documents import BackupFile, RunManifest
from .files import remove_tree
from .host import Host, Refused
from .jobs import CONFINED, ask, watching
from .log import say
from .protocol import FULL, Answer, table_name
from .publish import opened, take
from .roles import UIDS
from .runs import check_files
from .space import Space
from .trees import facts_of, parent

DUMPS = ("database.sql", "torrents.sql")  # in the order in which they are imported
# The name of what is in a backup file by what its name has between its first and its last dot.
CONTENTS = {"db": "database.db", "sql": "database.sql", "torrents.sql": "torrents.sql"}
UNPACKER = words(
    "--user 0:0 --network none --memory 1g "
    "--cap-add CHOWN --cap-add DAC_OVERRIDE --cap-add FOWNER --cap-add FSETID"
)
EXAMINER = words("--user {0}:{0} --network none --memory 2g --env TMPDIR=/work")


class Unrestorable(Refused):
    """What is wrong with a backup itself."""


@contextlib.contextmanager
def workshop(host: Host, purpose: str) -> Iterator[Path]:
    """A directory in staging for one piece of work, removed if the block fails."""
    work = host.staging / f"{time.strftime('%Y%m%d_%H%M%S', time.gmtime())}.{purpose}"
    work.mkdir(mode=0o700)
    try:
        with watching(work):
            yield work
    except BaseException:
        remove_tree(work)
        raise


def unpack_run(host: Host, run: RunManifest, kinds: set[str], work: Path) -> None:
    """Unpacks the run's files of these kinds, checked against the run manifest: the configuration
    below work/new, the database in work/database. Raises Unrestorable with what is wrong.
    """
    if problems := check_files(host, run):
        raise Unrestorable("; ".join(problems))
    scratch = work / "database"
    scratch.mkdir(mode=0o700)
    for file in (one for one in run.files if one.kind in kinds):
        if file.kind == "config":
            if lacking := unpack(host, file, work / "new", "extract", paths=run.paths).missing:
                problems += [f"the configuration archive lacks {path}" for path in lacking]
        else:
            content = CONTENTS[file.path.partition(".")[2].rpartition(".")[0]]
            unpack(host, file, work / "unpacked", "unpack", name=content)
            (work / "unpacked" / content).rename(scratch / content)
            remove_tree(work / "unpacked")
    (work / "new").mkdir(mode=0o700, exist_ok=True)
    if "database" in kinds and run.paths_of("database"):
        problems += compare_rows(run.tables, examine(host, run, scratch).tables)
    if problems:
        raise Unrestorable("; ".join(problems))


def unpack(host: Host, file: BackupFile, target: Path, job: str, **arguments: Any) -> Answer:
    """One job of an unpacker, which sees this file and the new, empty directory `target`."""
    target.mkdir(mode=0o700)
    limit = Space.of(target).room
    archive = host.destination / file.path
    mounts = (
        *bind(target, "/work"),
        *bind(archive, f"/archive/{archive.name}", "readonly"),
    )
    name = f"tracker-backup-{target.parent.name}.unpacker"
    with container(name, host.image, *CONFINED, *UNPACKER, *mounts) as started:
        answer = ask(started, "unpacker", job, WORK_SECONDS, limit_bytes=limit, **arguments)
    for warning in answer.warnings:
        say(f"warning: {warning}")
    if answer.code == FULL:
        raise Refused(f"not enough space in {target.parent}: {limit} bytes free are too few")
    if answer.code != 0:
        raise Unrestorable(f"{file.path}: {answer.reason}")
    return answer


def examine(host: Host, run: RunManifest, scratch: Path) -> Answer:
    """Has the database in `scratch` opened, checked and counted, alone with its examiner."""
    names = sorted(one.name for one in scratch.iterdir())
    uid = UIDS["examiner"]
    for place in (*(scratch / name for name in names), scratch):
        os.chown(place, uid, uid, follow_symlinks=False)
    # An SQLite database is the excerpt already. Of a server, an excerpt has two dumps.
    scope = "exclude-statistics" if DUMPS[1] in names else "full"
    options = (word.format(uid) for word in EXAMINER)
    name = f"tracker-backup-{scratch.parent.name}.examiner"
    limit = Space.of(scratch).room + max((scratch / one).lstat().st_size for one in names)
    with container(name, host.image, *CONFINED, *options, *bind(scratch, "/work")) as started:
        arguments = {"driver": run.driver, "scope": scope, "limit_bytes": limit}
        answer = ask(started, "examiner", "examine", WORK_SECONDS, **arguments)
    if answer.code != 0:
        raise Unrestorable(answer.reason)
    with opened(scratch) as directory:
        for one in names:
            os.close(take(directory, one, uid, limit))
    return answer


def dumps(work: Path) -> list[Path]:
    return [place for name in DUMPS if (place := work / "database" / name).exists()]


def place_database(host: Host, work: Path, path: str) -> None:
    """Moves the checked SQLite file to its path below work/new. It gets the owner and the mode of
    the file that is there now, or else its directory's owner.
    """
    above = path.rpartition("/")[0]
    present = facts_of(host.deploy_dir, path)
    directory = facts_of(host.deploy_dir, above) or facts_of(work / "new", above)
    if directory is None:
        raise Refused(f"{host.deploy_dir / above} is not there: restore the configuration, too")
    kept = present if present and stat.S_ISREG(present.st_mode) else None
    owner, mode = kept or directory, stat.S_IMODE(kept.st_mode) & 0o777 if kept else 0o644
    with parent(work / "new", path, make=True) as (target, name):
        os.rename(work / "database/database.db", name, dst_dir_fd=target)
        os.chown(name, owner.st_uid, owner.st_gid, dir_fd=target, follow_symlinks=False)
        os.chmod(name, mode, dir_fd=target)


def compare_rows(expected: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
    # A run manifest of an older version has the names as they are.
    expected = {table_name(name): rows for name, rows in expected.items()}
    return [
        f"table {name}: {found.get(name, 'no')} rows, {expected.get(name, 'no')} in the run "
        "manifest"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    ]
