"""The swapper: what a restore replaces changes places with the new content, by two renames each.

It is a part of the host's program, because no container may write to the whole deployment. It uses
fixed names from our own settings only. What services have written below them moves as a whole.

Beside the targets of a mount there is a room, a directory of ours on the same mount: `new` in it
holds what comes, `old` what was there, both by their paths below the deploy directory. The journal
has all moves before the first one begins. What is where then tells how far a dead restore has come.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from secrets import token_hex

from .documents import Move, RunManifest
from .fault_points import fault_point
from .files import remove_tree
from .host import Host, Refused
from .log import say
from .settings import read_path_list
from .space import require_space
from .trees import below, facts_of, make_plain, parent, shown, walk
from .workshop import Unrestorable

MOUNTS = Path("/proc/self/mountinfo")
ROOM = ".tracker-backup-restore"  # in another mount than staging's
BEFORE = ".tracker-backup-before-restore"
SQLITE_HEADER = b"SQLite format 3\0"
COMPOSE_FILE = re.compile(r"(?!backup/|storage/|docker-compose\.backup\.)[^\0]*\.ya?ml")
JOURNALS = ("-journal", "-wal", "-shm")
NAMED = 20  # of the files that the backup does not have


def listed(host: Host) -> dict[str, str]:
    """The kind of each line of our own path list, by its path below the deploy directory."""
    lines = read_path_list(host.configuration / "backup-paths.txt", Path("/data"))
    return {line.path: line.kind for line in lines}


def targets(host: Host, run: RunManifest, kinds: set[str], database: str) -> list[str]:
    """What a restore of this run replaces: the database file, the compose files of the run, and
    what both the run and the present path list have. Another path that only the run has could be
    anybody's by now.
    """
    config = "config" in kinds
    lines = listed(host) | {
        path: "path" for path in run.compose_files if COMPOSE_FILE.fullmatch(path)
    }
    found = [path for path in run.paths if lines.get(path, "dir") != "dir"] if config else []
    for path in run.paths if config else ():
        if path not in lines:
            say(f"warning: {path} is in the backup, but not in the path list: not restored")
    # What lies in another target comes with it, and must not be moved twice.
    found = [path for path in found if not any(path.startswith(f"{one}/") for one in found)]
    return [*found, *([database] if database else [])]


# ---------------------------------------------------------------- mounts


def mount_points() -> list[str]:
    """Where file systems are mounted, as this process sees them."""
    fields = (line.split()[4] for line in MOUNTS.read_text(encoding="utf-8").splitlines())
    return [re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), one) for one in fields]


def refuse_mounts(host: Host, paths: Iterable[str]) -> None:
    """Refuses a path that is a mount point, or has one below it: it cannot be renamed."""
    mounts, base = mount_points(), host.deploy_dir.resolve()
    for path in paths:
        for mount in mounts:
            if Path(mount).is_relative_to(base / path):
                raise Unrestorable(
                    f"{shown(mount)} is a mount point, and a restore would have to move {path} "
                    "away: unmount it first, then restore, and mount it again"
                )


def room_of(host: Host, path: str, work: Path) -> str:
    """The room on the path's mount: the directory of this restore in staging, or one of its own."""
    mounts = [Path(one) for one in mount_points()]
    base = host.deploy_dir.resolve()

    def mount_of(place: Path) -> Path:
        return max((one for one in mounts if place.is_relative_to(one)), key=lambda x: len(str(x)))

    mount = mount_of((base / path).parent)
    if mount == mount_of(base / work.relative_to(host.deploy_dir)):
        return str(work.relative_to(host.deploy_dir))
    return str((mount / ROOM).relative_to(base)) if mount.is_relative_to(base) else ROOM


# ---------------------------------------------------------------- before anything stops


def check(host: Host, work: Path, paths: list[str]) -> None:
    """Refuses what could not be swapped. Verifying a backup ends with this."""
    refuse_mounts(host, paths)
    for path in paths:
        if facts_of(work / "new", path) is None:
            raise Unrestorable(f"the backup has no {path}")
        make_plain(work / "new", path)
        with contextlib.suppress(FileNotFoundError), parent(host.deploy_dir, path):
            pass  # no link and no file is in the place of a directory above it


def prepare(host: Host, work: Path, paths: list[str]) -> list[Move]:
    """Puts the new content of each path into the room on its mount, and says what will move away.
    Nothing that services use is touched.
    """
    moves: list[Move] = []
    rooms = {path: room_of(host, path, work) for path in paths}
    for room in {*rooms.values()} - {str(work.relative_to(host.deploy_dir))}:
        remove_tree(host.deploy_dir / room)
        with parent(host.deploy_dir, room) as (directory, name):
            os.mkdir(name, 0o700, dir_fd=directory)
    for path, room in rooms.items():
        if host.deploy_dir / room != work:
            carry(host, work, room, path)
        moves.append(Move(path, room, False, True))
        if is_sqlite(work / "new", path):  # it must not meet the journal of another database
            names = (f"{path}{suffix}" for suffix in JOURNALS)
            moves += [Move(one, room, False, False) for one in names if one not in paths]
    name_lost(host, work, paths)
    sync_rooms(host, moves)
    return moves


def carry(host: Host, work: Path, room: str, path: str) -> None:
    """Copies new content to the room on another mount, which services may reach."""
    own_room(host, room)
    size = sum(facts.st_blocks * 512 for *_, facts in walk(work / "new", path))
    require_space((host.deploy_dir / room).resolve(), size)
    with (
        parent(work / "new", path) as (source, name),
        parent(host.deploy_dir, f"{room}/new/{path}", make=True) as (target, _),
    ):
        copy(source, name, target, name)


def own_room(host: Host, room: str) -> None:
    """Refuses a room that a service has put there."""
    with below(host.deploy_dir, room) as directory:
        facts = os.fstat(directory)
        if (facts.st_uid, stat.S_IMODE(facts.st_mode)) != (os.geteuid(), 0o700):
            raise Refused(f"{host.deploy_dir / room} is not ours: remove it first")


def remove_rooms(host: Host, work: Path, moves: Iterable[Move]) -> None:
    for place in {work, *(host.deploy_dir / move.room for move in moves)}:
        remove_tree(place)


def copy(source: int, name: str, target: int, new_name: str) -> None:
    """As `cp --archive`: whatever it is, with owner, mode, times and attributes."""
    places = (f"/proc/self/fd/{source}/{name}", f"/proc/self/fd/{target}/{new_name}")
    command = ["/bin/cp", "--archive", "--reflink=auto", "--no-target-directory", "--", *places]
    done = subprocess.run(
        command, pass_fds=(source, target), capture_output=True, text=True, errors="replace"
    )
    if done.returncode != 0:
        raise Refused(f"{shown(name)} cannot be copied: {shown(done.stderr.strip()[-300:])}")


def is_sqlite(base: Path, path: str) -> bool:
    facts = facts_of(base, path)
    if facts is None or not stat.S_ISREG(facts.st_mode):
        return False
    with (
        parent(base, path) as (directory, name),
        open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory), "rb") as file,
    ):
        return file.read(len(SQLITE_HEADER)) == SQLITE_HEADER


def name_lost(host: Host, work: Path, paths: list[str]) -> None:
    """Says which files of the deployment the backup does not have: they move away. Services go on
    writing there meanwhile, so this is no more than a hint.
    """
    lost = []
    for path in paths:
        with contextlib.suppress(OSError, Refused):
            for *_, found, facts in walk(host.deploy_dir, path):
                if not stat.S_ISDIR(facts.st_mode) and facts_of(work / "new", found) is None:
                    lost.append(found)
    for found in lost[:NAMED]:
        say(f"warning: {shown(found)} is not in the backup and moves away")
    if len(lost) > NAMED:
        say(f"warning: {len(lost) - NAMED} more files are not in the backup and move away")


def sync(directory: int) -> None:
    """Everything that was written to this file system is on disk."""
    place = f"/proc/self/fd/{directory}"
    command = ["/bin/sync", "--file-system", place]
    if subprocess.run(command, pass_fds=(directory,), check=False).returncode != 0:
        raise Refused("what was written could not be brought to the disk; see the kernel's log")


# ---------------------------------------------------------------- there


def look(host: Host, moves: list[Move], directories: list[str]) -> tuple[list[Move], list[str]]:
    """(the moves with what is there now, the directories to make), when all is stopped."""
    for room in {move.room for move in moves}:
        own_room(host, room)
    seen = [
        Move(one.path, one.room, facts_of(host.deploy_dir, one.path) is not None, one.brings)
        for one in moves
    ]
    wanted = {*directories}
    for path in (*directories, *(move.path for move in moves)):
        wanted |= {str(above) for above in PurePosixPath(path).parents[:-1]}
    missing = [one for one in sorted(wanted) if facts_of(host.deploy_dir, one) is None]
    return seen, missing


def make_directories(host: Host, new: Path, missing: list[str]) -> None:
    """Each with the owner and the mode that the backup has."""
    for path in missing:
        wanted = facts_of(new, path)
        with parent(host.deploy_dir, path) as (directory, name):
            os.mkdir(name, 0o700, dir_fd=directory)
            with below(host.deploy_dir, path) as made:
                if wanted is not None and stat.S_ISDIR(wanted.st_mode):
                    os.fchown(made, wanted.st_uid, wanted.st_gid)
                os.fchmod(made, wanted.st_mode & 0o2777 if wanted else 0o755)


@contextlib.contextmanager
def sides(host: Host, move: Move, other: str) -> Iterator[tuple[int, int, str]]:
    """(directory in the deployment, directory below `new` or `old` of the room, name)."""
    with (
        parent(host.deploy_dir, move.path, make=True) as (live, name),
        parent(host.deploy_dir, f"{move.room}/{other}/{move.path}", make=True) as (away, _),
    ):
        yield live, away, name


def move_in(host: Host, move: Move, other: str) -> None:
    with sides(host, move, other) as (live, away, name):
        os.rename(name, name, src_dir_fd=away, dst_dir_fd=live)


def move_out(host: Host, move: Move, other: str) -> None:
    with sides(host, move, other) as (live, away, name):
        os.rename(name, name, src_dir_fd=live, dst_dir_fd=away)


def swap(host: Host, moves: list[Move]) -> None:
    for move in moves:
        if move.existed:
            move_out(host, move, "old")
            fault_point("restore-between-two-renames", host)
        if move.brings:
            move_in(host, move, "new")
            fault_point("restore-between-two-targets", host)
    sync_rooms(host, moves)


def sync_rooms(host: Host, moves: list[Move]) -> None:
    for room in {move.room for move in moves}:
        with below(host.deploy_dir, room) as directory:
            sync(directory)


def keep_old(host: Host, work: Path, moves: list[Move]) -> None:
    """Keeps what was there before, beside each room, until the next restore."""
    own = str(work.relative_to(host.deploy_dir))
    for room in sorted({own, *(move.room for move in moves)}):
        before = "before-restore" if room == own else BEFORE
        with parent(host.deploy_dir, room) as (directory, name):
            kept = (host.deploy_dir / room).with_name(before)
            remove_tree(kept)
            with below(host.deploy_dir, f"{room}/old", make=True):
                os.rename(f"{name}/old", before, src_dir_fd=directory, dst_dir_fd=directory)
        say(f"what was there before is in {kept}, until the next restore")


# ---------------------------------------------------------------- and back


def undo(host: Host, moves: list[Move], made: list[str], empty: str = "") -> None:
    """Puts everything back, from wherever the swap has come to. Can die and be begun again.

    A failure of one does not keep the others from being put back. If the machine was empty before,
    `empty` is the room for what is in directories that the restore made: a server that was ended
    while it began could not use its own any more.
    """
    failures = []
    for move in moves:
        try:
            own_room(host, move.room)
            undo_one(host, move)
        except (OSError, Refused) as error:
            failures.append(f"{move.path}: {error}")
    for path in reversed(made):
        try:
            with parent(host.deploy_dir, path) as (directory, name):
                if empty:
                    move_aside(host.deploy_dir, path, empty)
                else:
                    os.rmdir(name, dir_fd=directory)
        except FileNotFoundError:
            continue
        except (OSError, Refused):
            say(f"warning: {host.deploy_dir / path} is not empty and stays")
    if failures:
        raise Refused("; ".join(failures))
    sync_rooms(host, moves)


def undo_one(host: Host, move: Move) -> None:
    saved = facts_of(host.deploy_dir, f"{move.room}/old/{move.path}") is not None
    if move.existed and not saved:
        return  # it has not moved yet, or is back already
    clear_way(host.deploy_dir, move.path, move.room)
    if facts_of(host.deploy_dir, move.path) is not None:
        if move.brings and facts_of(host.deploy_dir, f"{move.room}/new/{move.path}") is None:
            move_out(host, move, "new")
        else:
            move_aside(host.deploy_dir, move.path, move.room)
    if saved:
        move_in(host, move, "old")


def clear_way(deploy_dir: Path, path: str, room: str) -> None:
    """Moves aside a link or a file that somebody has put in the place of a directory above."""
    parts = path.split("/")
    for length in range(1, len(parts)):
        above = "/".join(parts[:length])
        facts = facts_of(deploy_dir, above)
        if facts is not None and not stat.S_ISDIR(facts.st_mode):
            move_aside(deploy_dir, above, room)


def move_aside(deploy_dir: Path, path: str, room: str) -> None:
    """Into the room, or beside itself if that is on another mount."""
    name = f"aside.{token_hex(4)}"
    with parent(deploy_dir, path) as (directory, old_name), below(deploy_dir, room) as away:
        try:
            os.rename(old_name, name, src_dir_fd=directory, dst_dir_fd=away)
        except OSError:
            name = f".tracker-backup-{name}"
            os.rename(old_name, name, src_dir_fd=directory, dst_dir_fd=directory)
            say(f"warning: {shown(str(deploy_dir), path)} is now called {name}")
