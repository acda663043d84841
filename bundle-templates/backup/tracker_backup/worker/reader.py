"""The role that reads the deployment: copies databases as bytes, and makes the archive.

The host checks and compresses the databases in other roles. Each job reads the path list again.
Odd or broken files of a service never end a job; the answer names them. The argument `database` is
the path of the tracker's own database, as the container sees it.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from ..priority import lower_priority
from ..protocol import LARGEST, SUFFIX, Answer
from ..settings import Line, read_path_list, relative
from . import copies, service
from .archive import Archive, Entry, Findings, Walk, archived_bytes
from .compress import compressor, read_back
from .locks import Busy, copy_live
from .paths import (
    Unusable,
    held,
    open_directory,
    open_path,
    open_regular,
    shown,
)
from .service import Job, StepFailed, log, timed

LOCK_SECONDS = float(os.environ.get("BACKUP_ONLINE_RETRY_SECONDS", "30"))
SAMPLE_BYTES = 64 << 20
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
HEADER = b"SQLite format 3\0"
JOURNALS = ("-journal", "-wal")


# ---------------------------------------------------------------- preflight


def preflight(arguments: dict[str, Any], answer: Answer) -> None:
    """numbers: database_bytes, config_bytes (of the archive), config_disk_bytes (without holes),
    entries, members, wal. `archive` gives the warnings. Arguments: method, stall_limit in seconds,
    compose as `archive` has it, and database, unless a server has it.
    """
    lines = read_lines(arguments)
    findings = Findings(Answer())
    walk = Walk(findings)
    numbers = dict.fromkeys(("config_bytes", "config_disk_bytes", "database_bytes", "wal"), 0)
    for line, descriptor in opened(lines, findings):
        content = walk.below(line.path, descriptor)
        for entry in content if line.kind == "path" else [next(content)]:
            numbers["config_bytes"] += archived_bytes(entry.facts)
            numbers["config_disk_bytes"] += entry.facts.st_blocks * 512
    answer.missing = findings.answer.missing
    numbers["entries"], numbers["members"] = walk.entries, len(members(lines))
    if "database" in arguments:
        with database(arguments) as (directory, name):
            survey_database(directory, name, arguments, numbers)
    answer.numbers = {key: min(value, LARGEST) for key, value in numbers.items()}


def survey_database(
    directory: int, name: str, arguments: dict[str, Any], numbers: dict[str, int]
) -> None:
    """Raises StepFailed for no database, and for an online copy that would stall its writers."""
    for suffix in ("", *JOURNALS):
        with suppress(OSError):
            facts = os.stat(name + suffix, dir_fd=directory, follow_symlinks=False)
            numbers["database_bytes"] += facts.st_size
    with held(open_regular(directory, name)) as descriptor:
        numbers["wal"] = int(require_header(descriptor, name)[18:19] == b"\x02")
        if arguments["method"] == "online" and arguments["stall_limit"] and not numbers["wal"]:
            refuse_writer_stall(descriptor, arguments["stall_limit"])


def require_header(descriptor: int, name: str) -> bytes:
    head = os.pread(descriptor, 100, 0)
    if not head:
        raise Unusable("is empty (0 bytes)", name)
    if not head.startswith(HEADER):
        raise Unusable("is not an SQLite database", name)
    return head


def refuse_writer_stall(descriptor: int, limit: int) -> None:
    """A writer in rollback mode waits for the whole online copy, unless blocks are shared."""
    size = os.fstat(descriptor).st_size
    if size <= SAMPLE_BYTES:
        return
    sample = service.WORK / "sample"
    with held(os.open(sample, copies.CREATE, 0o600)) as target:
        sample.unlink()
        if copies.share(descriptor, target):
            return
        started = time.monotonic()
        copies.copy_bytes(descriptor, target, SAMPLE_BYTES)
        estimate = round((time.monotonic() - started) * size / SAMPLE_BYTES)
    log(f"an online copy would make the tracker's writes wait for about {estimate} s")
    if estimate > limit:
        raise StepFailed(
            f"the tracker's writes would wait for about {estimate} s (limit {limit} s): choose "
            "strategy 'maintenance-window' with quiesce 'pause' or 'stop', or set "
            "backup.allow_writer_stall"
        )


# ---------------------------------------------------------------- databases


def preallocate(arguments: dict[str, Any], _answer: Answer) -> None:
    """A first copy of the database, for `capture` to write over; none if it does not pay."""
    with database(arguments) as place, held(open_regular(*place)) as descriptor:
        copies.preallocate(descriptor)


def capture(arguments: dict[str, Any], answer: Answer) -> None:
    """numbers: shared. Method "copy" is for a database to which nobody writes."""
    with database(arguments) as (directory, name):
        capture_set(directory, name, "database.db", arguments["method"] == "online", answer)


def settle(arguments: dict[str, Any], _answer: Answer) -> None:
    """After the window: the copies are on disk, and share no blocks with the live files.

    Argument: shared, as `capture` answered.
    """
    lower_priority()
    for path in copied_set("database.db"):
        if path.exists():
            copies.settle(path, bool(arguments["shared"]))


def capture_member(arguments: dict[str, Any], answer: Answer) -> None:
    """Copies the `sqlite:` line with that index, always under locks. paths: its path, or nothing
    if it is optional and missing; numbers: uid, gid, mode. It may have at most `limit_bytes`.
    """
    line = members(read_lines(arguments))[arguments["index"]]
    try:
        with located(line.path) as (directory, name):
            limit = arguments["limit_bytes"]
            capture_set(directory, name, "member.db", True, answer, limit)
            facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except Absent as absent:
        if not line.optional:
            raise StepFailed(str(absent)) from absent
        return
    answer.paths = [shown(line.path)]
    mode = stat.S_IMODE(facts.st_mode)
    answer.numbers |= {"uid": facts.st_uid, "gid": facts.st_gid, "mode": mode}


def capture_set(
    directory: int, name: str, to: str, locked: bool, answer: Answer, limit: int = LARGEST
) -> None:
    """Copies the database and its journals to the names that begin with `to`. Each has at most
    `limit` bytes, holes included.
    """
    answer.numbers["shared"] = 0

    def copy(suffix: str, descriptor: int, size: int) -> None:
        if size > limit:
            raise Unusable(f"has {size} bytes; at most {limit} are expected", name + suffix)
        if not suffix:
            require_header(descriptor, name)
            for path in copied_set(to):
                path.unlink(missing_ok=True)
        answer.numbers["shared"] |= copies.copy_file(descriptor, size, service.WORK / (to + suffix))

    if locked:
        return copy_live(directory, name, copy, LOCK_SECONDS)
    for suffix in ("", *JOURNALS):
        try:
            with held(open_regular(directory, name + suffix)) as descriptor:
                copy(suffix, descriptor, os.fstat(descriptor).st_size)
        except FileNotFoundError:
            if not suffix:
                raise
    return None


def copied_set(name: str) -> list[Path]:
    return [service.WORK / (name + suffix) for suffix in ("", *JOURNALS)]


class Absent(StepFailed):
    """A database does not exist."""


@contextmanager
def located(path: str) -> Iterator[tuple[int, str]]:
    """The descriptor of a database's directory, and its name there. What goes wrong meanwhile
    becomes StepFailed with the path.
    """
    where = f"{service.DATA}/{path}"
    parent, _, name = path.rpartition("/")
    try:
        with held(open_directory(parent)) as directory:
            yield directory, name
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Absent(f"the database {where} does not exist") from error
    except Unusable as error:
        file = Path(where).with_name(error.name) if error.name else where
        raise StepFailed(f"{file} {error}") from error
    except Busy as error:
        raise StepFailed(f"cannot read {where} while it is in use: {error}") from error
    except BlockingIOError as error:
        raise StepFailed(f"cannot read {where}: somebody holds a lease on it") from error


def database(arguments: dict[str, Any]) -> AbstractContextManager[tuple[int, str]]:
    """The tracker's own; see `located`."""
    return located(relative(arguments["database"], service.DATA, Path("backup.conf")))


# ---------------------------------------------------------------- the archive


def read_lines(arguments: dict[str, Any]) -> list[Line]:
    return read_path_list(service.PATHS, service.DATA, arguments.get("compose", ()))


def members(lines: Iterable[Line]) -> list[Line]:
    return [line for line in lines if line.kind == "sqlite"]


def opened(lines: Iterable[Line], findings: Findings) -> Iterator[tuple[Line, int]]:
    """Each line that is there, with an O_PATH descriptor that is good until the next one.

    The answer's `missing` gets lines that are not there, and those from which content was lost.
    """
    for line in lines:
        where = shown(f"{service.DATA}/{line.path}")
        findings.lost = False
        try:
            descriptor = open_path(line.path)
        except FileNotFoundError:
            findings.lost = not line.optional
            findings.answer.warnings.append(
                f"optional path missing: {where}"
                if line.optional
                else f"{where} is in the path list and does not exist"
            )
        except Unusable as error:
            findings.lose(where, str(error))
        except OSError as error:
            findings.lose(where, f"cannot be read ({error.strerror})")
        else:
            with held(descriptor):
                yield line, descriptor
        if findings.lost:
            findings.answer.missing.append(shown(line.path))


def archive(arguments: dict[str, Any], answer: Answer) -> None:
    """Writes config.tar.gz or .zst. Members come from the directory `members`, by their index.
    numbers: bytes. `compose` has the stack's compose files, below the deployment.
    """
    lower_priority()
    lines, findings = read_lines(arguments), Findings(answer)
    target = service.WORK / f"config.tar{SUFFIX[arguments['compression']]}"
    target.unlink(missing_ok=True)
    there = [line for line, found in opened(lines, findings) if is_right(line, found, findings)]
    with timed(answer, "archive"), compressor(target, arguments["compression"]) as stream:
        written = Archive(stream, arguments["limit_bytes"], findings)
        add_directories(written, there)
        walk = Walk(findings)
        for line, descriptor in opened((one for one in there if one.kind == "path"), findings):
            for entry in walk.below(line.path, descriptor):
                written.add(entry)
        for index, line in enumerate(members(lines)):
            if line in there:
                add_member(written, index, line, arguments["members"])
        written.close()
    with timed(answer, "compress"):
        read_back(target, arguments["compression"])
    findings.close()
    order = ("dir", "path", "sqlite")
    paths = [shown(line.path) for kind in order for line in there if line.kind == kind]
    lacking = {shown(line.path) for line in members(lines)} & set(answer.missing)
    answer.paths = [path for path in paths if path not in lacking]
    answer.numbers["bytes"] = target.stat().st_size


def is_right(line: Line, descriptor: int, findings: Findings) -> bool:
    """Whether a `dir:` line is a directory. A service can put something else there."""
    if line.kind != "dir" or stat.S_ISDIR(os.fstat(descriptor).st_mode):
        return True
    findings.lose(f"{service.DATA}/{line.path}", "is no directory")
    return False


def add_directories(written: Archive, there: list[Line]) -> None:
    """The `dir:` lines, and what is above any line, outermost first, so that an empty machine gets
    them with their owners.
    """
    paths = {line.path for line in there if line.kind == "dir"}
    for line in there:
        paths |= {str(parent) for parent in PurePosixPath(line.path).parents}
    for path in sorted(paths):
        # It was there a moment ago. If it is not any more, the line below it reports that.
        with suppress(OSError, Unusable), held(open_path(path)) as descriptor:
            written.add(Entry(path, descriptor, os.fstat(descriptor)))


def add_member(written: Archive, index: int, line: Line, checked: list[int]) -> None:
    """The checked copy of a database, with the owner and mode of the live file."""
    missing = written.findings.answer.missing
    if index not in checked:
        return missing.append(shown(line.path))
    for _, live in opened([line], written.findings):
        with held(os.open(service.WORK / "members" / str(index), FILE)) as copy:
            size = os.fstat(copy).st_size
            if written.written + size > written.limit:
                written.findings.lose(line.path, "is beyond the limit of size")
            else:
                written.add_file(line.path, copy, os.fstat(live), size)
    return None


JOBS: dict[str, Job] = {
    "preflight": preflight,
    "preallocate": preallocate,
    "capture": capture,
    "settle": settle,
    "capture_member": capture_member,
    "archive": archive,
}
