"""After the window: what was captured is examined, archived, published and recorded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from .capture import DUMP_SPARE_BYTES, MEMBER_SECONDS, work_seconds
from .current import Run, record
from .drivers import driver_of
from .drivers.driver import Driver
from .fault_points import fault_point
from .host import Refused
from .prepare import SPARE_BYTES
from .priority import lower_priority
from .protocol import SUFFIX, Answer, shown
from .publish import Source, backup_path, publish, remove_in_steps
from .retention import prune
from .roles import MEMBERS, Role, hand_over
from .settings import Line, read_path_list
from .tables import compare_tables

SPARSE_BYTES = 1 << 30  # that holes may add to the archive
MEMBER = {"member.db" + suffix: "database.db" + suffix for suffix in ("", "-journal", "-wal")}


def finish(run: Run, reader: Role, source: Role, sizes: dict[str, int], captured: Answer) -> None:
    """Examines and archives what was captured, and publishes it."""
    host, driver = run.host, driver_of(run.host)
    fault_point("beginning-to-finish", host)
    lower_priority()
    run.note(captured)
    if source is reader:
        seconds = work_seconds(sizes["database_bytes"])
        reader.ask("settle", seconds, shared=captured.numbers.get("shared", 1))
    with Role(reader.settings, "examiner") as examiner:
        hand_over(source, {name: name for name in driver.CAPTURED}, examiner)
        if source is not reader:
            source.end()
        files = driver.files(host.scope)
        examine(run, examiner, driver, list(files))
        archived = archive(run, reader, sizes)
        fault_point("removing-the-container", host)
        reader.end()
        ending = SUFFIX[host.backup_settings["BACKUP_COMPRESSION"]]
        sources = [
            Source(
                "database",
                backup_path(driver.NAME, run.id, name + ending),
                examiner.directory,
                file + ending,
                examiner.uid,
                2 * sizes["database_bytes"] + DUMP_SPARE_BYTES,
            )
            for file, name in files.items()
        ]
        run.files = publish(host, sources + archived)


def archive(run: Run, reader: Role, sizes: dict[str, int]) -> list[Source]:
    """The configuration archive, or nothing. A service that makes it fail never stops the database
    from being published.
    """
    compression = run.host.backup_settings["BACKUP_COMPRESSION"]
    # Holes count in an archive, so sparse files could fill it.
    limit = 4 * sizes["config_disk_bytes"] + SPARSE_BYTES
    try:
        path_list = run.host.configuration / "backup-paths.txt"
        lines = read_path_list(path_list, compose=run.facts.compose_files)
        checked = examine_members(run, reader, lines, limit)
        fault_point("archiving-the-configuration", run.host)
        seconds = work_seconds(limit)
        answer = reader.ask(
            "archive",
            seconds,
            compression=compression,
            limit_bytes=limit,
            members=checked,
            compose=run.facts.compose_files,
        )
    except Refused as error:
        run.warn(f"the configuration could not be archived: {error}")
        run.found.missing = ["the whole configuration"]
        return []
    run.note(answer)
    run.found.paths, run.found.missing = listed_paths(lines, answer)
    ending = f"tar{SUFFIX[compression]}"
    path = backup_path("config", run.id, ending)
    return [Source("config", path, reader.directory, f"config.{ending}", reader.uid, 2 * limit)]


def listed_paths(lines: Sequence[Line], answer: Answer) -> tuple[list[str], list[str]]:
    """The lines that are in the archive, and those that it lacks. What the reader says counts only
    for paths that are in the path list.
    """
    names = {shown(line.path): line.optional for line in lines}
    archived = [name for name in answer.paths if name in names]
    required = {name for name, optional in names.items() if not optional}
    lacking = {*answer.missing} | (required - {*archived})
    return archived, [name for name in names if name in lacking]


def examine(run: Run, examiner: Role, driver: Driver, files: list[str]) -> None:
    """Checks, counts and compresses the captured database. Its examiner has ended afterwards."""
    host = run.host
    fault_point("checking-the-database", host)
    limit = 2 * size_of(examiner, driver.CAPTURED) + SPARE_BYTES
    seconds = work_seconds(limit)
    answer = examiner.ask(
        "examine", seconds, driver=driver.NAME, scope=host.scope, limit_bytes=limit
    )
    expected = run.last.tables if run.last else ()
    for warning in compare_tables(expected, answer.tables, "the captured database"):
        run.warn(warning)
    run.found.tables = run.note(answer).tables
    fault_point("compressing-the-database", host)
    compression = host.backup_settings["BACKUP_COMPRESSION"]
    run.note(
        examiner.ask("compress", seconds, files=files, compression=compression, limit_bytes=limit)
    )
    examiner.end()
    for name in driver.CAPTURED:
        remove_in_steps(examiner.directory, name, lambda _: None)


def examine_members(run: Run, reader: Role, lines: Sequence[Line], limit_bytes: int) -> list[int]:
    """Other services' databases, each in an examiner of its own. Returns those that are whole. One
    that is not never stops the tracker's own from being published.
    """
    count = sum(line.kind == "sqlite" for line in lines)
    if count > MEMBERS:
        run.warn(f"{count} databases are in the path list; only the first {MEMBERS} are backed up")
    checked = []
    for index in range(min(count, MEMBERS)):
        try:
            captured = reader.ask(
                "capture_member", MEMBER_SECONDS, index=index, limit_bytes=limit_bytes
            )
            if not captured.paths:  # optional, and missing
                continue
            with Role(reader.settings, "examiner", index + 1) as examiner:
                hand_over(reader, MEMBER, examiner)
                limit = 2 * size_of(examiner, tuple(MEMBER.values())) + SPARE_BYTES
                run.note(
                    examiner.ask(
                        "examine", MEMBER_SECONDS, driver="sqlite", scope="full", limit_bytes=limit
                    )
                )
                examiner.end()
                into = {"database.db": str(index)}
                hand_over(examiner, into, reader, into="members", limit=limit)
            checked.append(index)
        except (Refused, OSError) as error:
            run.warn(f"a service's database is not in the backup: {error}")
    return checked


def size_of(role: Role, names: Sequence[str]) -> int:
    """Bytes of those of the files that a role has."""
    size = 0
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            size += os.stat(name, dir_fd=role.directory, follow_symlinks=False).st_size
    return size


def record_success(run: Run) -> None:
    record(run, "incomplete" if run.incomplete else "success", int(bool(run.incomplete)), "")
    run.unrecorded = False
    try:
        prune(run.host)
    except (Refused, OSError) as error:
        run.warn(f"old backups could not be removed: {error}")
