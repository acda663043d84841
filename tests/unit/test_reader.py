"""The role `reader`: the path list, the preflight and the capture of databases."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unit.roles import Deployment, execute, holder, query

from tracker_backup.worker import copies, paths, service  # isort: skip
from tracker_backup.worker.service import StepFailed  # isort: skip


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    return Deployment(tmp_path, monkeypatch)


def failure(job: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[int, str]:
    """The code and the reason with which a job ends."""
    with pytest.raises(StepFailed) as caught:
        job(*arguments, **named)
    return caught.value.code, str(caught.value)


def test_line_ends_of_windows_and_a_missing_last_one_are_read_right(deployment: Deployment) -> None:
    deployment.list.write_bytes(deployment.list.read_bytes().rstrip().replace(b"\n", b"\r\n"))
    assert deployment.preflight().missing == []
    assert deployment.archive().paths[-1] == "storage/tracker/etc"


def test_empty_lines_and_comments_are_passed_over(deployment: Deployment) -> None:
    with deployment.list.open("a") as stream:
        stream.write("\n   \n# a comment\n  # another\n")
    assert deployment.preflight().missing == []


# ---------------------------------------------------------------- the path list


def test_a_path_list_that_is_not_there_or_names_nothing_ends_with_2(deployment: Deployment) -> None:
    deployment.list.write_text("# nothing\n")
    assert failure(deployment.preflight) == (2, f"{deployment.list} names no path")
    deployment.list.unlink()
    code, reason = failure(deployment.preflight)
    assert (code, reason) == (
        2,
        f"cannot read {deployment.list} (No such file or directory); install the bundle again",
    )


def test_a_required_path_that_is_missing_is_named_and_the_rest_is_archived(
    deployment: Deployment,
) -> None:
    deployment.add("storage/caddy/etc")
    assert deployment.preflight().missing == ["storage/caddy/etc"]
    answer = deployment.archive()
    assert answer.missing == ["storage/caddy/etc"]
    assert answer.warnings == [
        f"{deployment.data}/storage/caddy/etc is in the path list and does not exist"
    ]
    assert "storage/caddy/etc" not in answer.paths
    assert "storage/tracker/etc/tracker.toml" in deployment.members()


def test_an_optional_path_that_is_missing_is_a_warning_of_whatever_kind(
    deployment: Deployment,
) -> None:
    kinds = ("", "dir:", "sqlite:")
    deployment.add(*(f"?{kind}storage/no{number}" for number, kind in enumerate(kinds)))
    preflight = deployment.preflight()
    assert (preflight.missing, preflight.warnings) == ([], [])
    answer = deployment.archive()
    assert answer.missing == []
    assert answer.warnings == [
        f"optional path missing: {deployment.data}/storage/no{number}" for number in range(3)
    ]
    assert deployment.member(0).paths == []


def test_an_optional_path_that_is_there_is_archived(deployment: Deployment) -> None:
    (deployment.data / "storage/prometheus").mkdir()
    (deployment.data / "storage/prometheus/prometheus.yml").touch()
    deployment.add("?storage/prometheus")
    assert "storage/prometheus" in deployment.archive().paths
    assert "storage/prometheus/prometheus.yml" in deployment.members()


@pytest.mark.parametrize(
    "line",
    [
        "/etc/passwd",
        "{data}",
        "{data}base/x",
        "{data}/../client.cnf",
        "{data}/storage/../../client.cnf",
        "relative/path",
        "sqlite:/etc/x.db",
        "dir:/etc",
        "{data}/.",
    ],
)
def test_a_path_outside_the_deployment_is_refused_however_it_is_written(
    deployment: Deployment, line: str
) -> None:
    with deployment.list.open("a") as file:
        file.write(line.format(data=deployment.data) + "\n")
    code, reason = failure(deployment.preflight)
    assert (code, f" is not below {deployment.data}" in reason) == (2, True)


@pytest.mark.parametrize("path", ["storage/caddy", "storage/caddy/passwd", "storage/dangling"])
@pytest.mark.parametrize("optional", ["", "?"])
def test_a_path_that_is_a_symlink_or_leads_through_one_is_refused(
    deployment: Deployment, path: str, optional: str
) -> None:
    (deployment.data / "storage/caddy").symlink_to("/etc")
    (deployment.data / "storage/dangling").symlink_to("nowhere")
    deployment.add(optional + path)
    assert deployment.preflight().missing == [path]
    answer = deployment.archive()
    assert answer.missing == [path]
    assert "leads through a symlink to" in answer.warnings[0]
    assert not any("caddy" in name for name in deployment.members())


def test_a_target_of_a_symlink_with_odd_bytes_reaches_the_host_as_text(
    deployment: Deployment,
) -> None:
    (deployment.data / "storage/odd").symlink_to(os.fsdecode(b"\xff\x1b[2J"))
    deployment.add("storage/odd")
    assert "\\xff\\x1b[2J" in deployment.archive().warnings[0]


def test_a_path_that_cannot_be_read_is_named(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root reads everything, so the system call fails here.
    real, secret = paths.reopen, (deployment.data / ".env").stat().st_ino

    def reopen(descriptor: int, flags: int) -> int:
        if os.fstat(descriptor).st_ino == secret:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(descriptor, flags)

    monkeypatch.setattr("tracker_backup.worker.archive.reopen", reopen)
    answer = deployment.archive()
    assert answer.missing == [".env"]
    assert answer.warnings == [".env cannot be read (Permission denied), so the archive lacks it"]
    assert "docker-compose.yml" in deployment.members()


# ---------------------------------------------------------------- preflight


def everything(deployment: Deployment) -> dict[Path, tuple[int, int]]:
    found = [*deployment.data.rglob("*"), *deployment.work.rglob("*")]
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in found}


def test_preflight_writes_nothing(deployment: Deployment) -> None:
    before = everything(deployment)
    deployment.preflight()
    deployment.preflight("online")
    assert everything(deployment) == before


def test_preflight_measures_what_the_space_check_needs(deployment: Deployment) -> None:
    (deployment.etc / "large").write_bytes(bytes(100_000))
    Path(f"{deployment.database}-journal").write_bytes(bytes(512))
    execute(deployment.data / "grafana.db", "CREATE TABLE a (b)")
    deployment.add("sqlite:grafana.db")
    numbers = deployment.preflight().numbers
    archived = 8 * 512 + 3 * 512 + 100_352 + 8192  # headers, small files, the large one, Grafana's
    assert numbers["database_bytes"] == deployment.database.stat().st_size + 512
    assert (numbers["config_bytes"], numbers["entries"]) == (archived, 8)
    assert (numbers["members"], numbers["wal"]) == (1, 0)


def test_holes_are_in_the_size_of_the_archive_and_not_in_that_on_disk(
    deployment: Deployment,
) -> None:
    with (deployment.etc / "sparse").open("wb") as file:
        file.truncate(10 << 40)
    numbers = deployment.preflight().numbers
    assert numbers["config_bytes"] > 10 << 40
    assert numbers["config_disk_bytes"] < 1 << 20


def test_a_database_that_is_missing_empty_a_directory_a_symlink_or_none_fails(
    deployment: Deployment,
) -> None:
    database, size = deployment.database, deployment.database.stat().st_size
    elsewhere = deployment.data / "elsewhere.db"
    database.rename(elsewhere)
    reasons = [failure(deployment.preflight)]
    database.touch()
    reasons.append(failure(deployment.preflight))
    database.write_text("this is not a database at all\n")
    reasons.append(failure(deployment.preflight))
    database.unlink()
    database.mkdir()
    reasons.append(failure(deployment.preflight))
    database.rmdir()
    database.symlink_to(elsewhere)
    reasons.append(failure(deployment.preflight))
    assert reasons == [
        (1, f"the database {database} does not exist"),
        (1, f"{database} is empty (0 bytes)"),
        (1, f"{database} is not an SQLite database"),
        (1, f"{database} is not a regular file"),
        (1, f"{database} is not a regular file but a symlink"),
    ]
    assert elsewhere.stat().st_size == size


def test_a_database_behind_a_symlink_of_its_directory_is_refused(deployment: Deployment) -> None:
    directory = deployment.database.parent
    directory.rename(deployment.data / "elsewhere")
    directory.symlink_to(deployment.data / "elsewhere")
    code, reason = failure(deployment.preflight)
    assert (code, "leads through a symlink to" in reason) == (1, True)
    assert failure(deployment.capture)[0] == 1
    directory.unlink()
    directory.touch()
    assert "does not exist" in failure(deployment.preflight)[1]


def test_an_online_copy_that_would_stall_the_tracker_is_refused_unless_allowed(
    deployment: Deployment,
) -> None:
    os.truncate(deployment.database, 4 << 40)
    code, reason = failure(deployment.preflight, "online")
    assert code == 1
    assert reason.startswith("the tracker's writes would wait for about ")
    assert "allow_writer_stall" in reason
    assert not list(deployment.work.iterdir())
    deployment.preflight("copy")
    deployment.preflight("online", stall_limit=0)


def test_an_online_copy_stalls_nobody_in_wal_mode_or_where_blocks_are_shared(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(deployment.database, 4 << 40)
    monkeypatch.setattr(copies, "share", lambda *_: True)
    deployment.preflight("online")
    monkeypatch.undo()
    monkeypatch.setattr(service, "DATA", deployment.data)
    monkeypatch.setattr(service, "PATHS", deployment.list)
    with deployment.database.open("r+b") as file:
        file.seek(18)
        file.write(b"\2\2")
    assert deployment.preflight("online").numbers["wal"] == 1


# ---------------------------------------------------------------- capture


def killed_writer(database: Path, mode: str) -> None:
    """Commits 5000 more torrents, and dies in a transaction that has already reached the files."""
    with holder(
        database,
        f"PRAGMA journal_mode={mode}",
        "PRAGMA cache_size=2",
        "INSERT INTO torrents (info_hash, completed) VALUES ('dd', 2)",
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)"
        "INSERT INTO torrents (info_hash, completed) SELECT 'x' || i, 0 FROM n",
        "BEGIN",
        "UPDATE torrents SET completed = 99",
    ) as process:
        process.send_signal(signal.SIGKILL)


def content(path: Path) -> tuple[Any, ...]:
    """The rows and the largest number; opening the copy recovers it."""
    assert query(path, "PRAGMA integrity_check") == ("ok",)
    return tuple(query(path, "SELECT count(*), max(completed) FROM torrents"))


METHODS = pytest.mark.parametrize("method", ["copy", "online"])


@METHODS
def test_the_live_database_is_copied_and_never_changed(deployment: Deployment, method: str) -> None:
    directory = deployment.database.parent
    before = [(path, path.stat()) for path in directory.iterdir()]
    copied = deployment.capture(method)
    assert copied.read_bytes() == deployment.database.read_bytes()
    facts = [(path, path.stat()) for path in directory.iterdir()]
    assert [(one, s.st_mtime_ns, s.st_ctime_ns) for one, s in facts] == [
        (one, s.st_mtime_ns, s.st_ctime_ns) for one, s in before
    ]
    assert copied.stat().st_mode & 0o777 == 0o600


@METHODS
def test_a_hot_journal_is_copied_with_its_database(deployment: Deployment, method: str) -> None:
    killed_writer(deployment.database, "DELETE")
    journal = Path(f"{deployment.database}-journal")
    before = deployment.database.read_bytes(), journal.read_bytes()
    assert content(deployment.capture(method)) == (5004, 7)
    assert (deployment.database.read_bytes(), journal.read_bytes()) == before


@METHODS
@pytest.mark.parametrize("index", ["with", "without"])
def test_a_log_whose_writer_was_killed_is_copied_with_its_database(
    deployment: Deployment, method: str, index: str
) -> None:
    killed_writer(deployment.database, "WAL")
    if index == "without":
        Path(f"{deployment.database}-shm").unlink()
    assert content(deployment.capture(method)) == (5004, 7)


@METHODS
@pytest.mark.parametrize("mode", ["WAL", "PERSIST", "TRUNCATE"])
def test_a_database_at_rest_is_captured_in_every_mode(
    deployment: Deployment, method: str, mode: str
) -> None:
    row = "INSERT INTO torrents (info_hash, completed) VALUES ('dd', 8)"
    execute(deployment.database, f"PRAGMA journal_mode={mode}; {row}")
    assert content(deployment.capture(method)) == (4, 8)


@METHODS
def test_an_empty_journal_beside_the_database_is_no_obstacle(
    deployment: Deployment, method: str
) -> None:
    Path(f"{deployment.database}-journal").touch()
    assert content(deployment.capture(method)) == (3, 7)


@METHODS
@pytest.mark.parametrize("suffix", ["-journal", "-wal"])
def test_a_journal_that_is_no_regular_file_is_refused(
    deployment: Deployment, method: str, suffix: str
) -> None:
    odd = Path(f"{deployment.database}{suffix}")
    odd.symlink_to("/etc/passwd")
    reason = f"{odd} is not a regular file"
    assert failure(deployment.capture, method) == (1, f"{reason} but a symlink")
    odd.unlink()
    odd.mkdir()
    assert failure(deployment.capture, method) == (1, reason)
    odd.rmdir()
    os.mkfifo(odd)
    assert failure(deployment.capture, method) == (1, reason)


@METHODS
def test_a_database_that_became_a_symlink_after_the_preflight_is_not_followed(
    deployment: Deployment, method: str
) -> None:
    deployment.preflight()
    elsewhere = deployment.data / "elsewhere.db"
    deployment.database.rename(elsewhere)
    deployment.database.symlink_to(elsewhere)
    assert failure(deployment.capture, method)[0] == 1
    assert not (deployment.work / "database.db").exists()


def test_an_online_copy_holds_what_is_committed(deployment: Deployment) -> None:
    statements = ("PRAGMA journal_mode=WAL", "BEGIN", "UPDATE torrents SET completed = 99")
    with holder(deployment.database, *statements):
        assert content(deployment.capture("online")) == (3, 7)


def test_an_online_copy_of_a_locked_database_fails_and_says_so(deployment: Deployment) -> None:
    with holder(deployment.database, "BEGIN EXCLUSIVE"):
        code, reason = failure(deployment.capture, "online")
    where = deployment.database
    assert (code, reason) == (1, f"cannot read {where} while it is in use: database is locked")
    assert not (deployment.work / "database.db").exists()


@METHODS
def test_a_lease_on_the_database_ends_the_capture_at_once(
    deployment: Deployment, method: str
) -> None:
    with deployment.database.open("r+b") as file:
        fcntl.fcntl(file.fileno(), fcntl.F_SETLEASE, fcntl.F_WRLCK)
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        code, reason = failure(deployment.capture, method)
    assert (code, "lease" in reason) == (1, True)


def test_a_copy_that_shares_blocks_is_made_its_own(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def share(source: int, target: int) -> bool:
        os.write(target, os.pread(source, 1 << 20, 0))
        return True

    monkeypatch.setattr(copies, "share", share)
    assert (
        deployment.job("capture", method="copy", **deployment.its_database).numbers["shared"] == 1
    )
    copied = deployment.work / "database.db"
    before, whole = copied.stat().st_ino, copied.read_bytes()
    deployment.job("settle", shared=1)
    assert copied.stat().st_ino != before
    assert copied.read_bytes() == whole == deployment.database.read_bytes()
    assert sorted(path.name for path in deployment.work.iterdir()) == ["database.db"]


@pytest.mark.parametrize("size", [0, 1, 4096, 3 << 20, (3 << 20) + 4097])
def test_what_is_made_its_own_keeps_every_byte(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    copies.unshare(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == data


def test_a_copy_that_shares_nothing_says_so(deployment: Deployment) -> None:
    assert deployment.job("capture", method="copy", **deployment.its_database).numbers[
        "shared"
    ] in (0, 1)


# ---------------------------------------------------------------- the preallocated copy

CHANGES = (
    "UPDATE keys SET key = 'x'",
    "INSERT INTO torrents (info_hash, completed) VALUES (hex(randomblob(50000)), 1)",
    "DELETE FROM torrents; VACUUM",
)


@pytest.fixture
def no_reflink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "share", lambda *_: False)


@pytest.mark.usefixtures("no_reflink")
@pytest.mark.parametrize("change", CHANGES)
def test_the_copy_is_written_over_one_from_before_whatever_changed_in_between(
    deployment: Deployment, change: str
) -> None:
    execute(deployment.database, "INSERT INTO keys (key) VALUES (hex(randomblob(20000)))")
    deployment.job("preallocate", **deployment.its_database)
    room = deployment.work / "room"
    assert room.read_bytes() == deployment.database.read_bytes()
    node = room.stat().st_ino
    execute(deployment.database, change)
    copied = deployment.capture()
    assert copied.read_bytes() == deployment.database.read_bytes()
    assert (copied.stat().st_ino, room.exists()) == (node, False)


@pytest.mark.usefixtures("no_reflink")
def test_if_the_copy_cannot_be_written_over_the_one_before_it_is_made_anew(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.job("preallocate", **deployment.its_database)
    room, real = deployment.work / "room", copies.copy_bytes

    def copy_bytes(source: int, target: int, *rest: Any) -> int:
        if room.exists() and os.fstat(target).st_ino == room.stat().st_ino:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(source, target, *rest)

    monkeypatch.setattr(copies, "copy_bytes", copy_bytes)
    assert deployment.capture().read_bytes() == deployment.database.read_bytes()
    assert not room.exists()


def test_no_copy_is_made_before_if_blocks_are_shared_memory_is_short_or_it_fails(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def job() -> bool:
        deployment.job("preallocate", **deployment.its_database)
        return (deployment.work / "room").exists()

    monkeypatch.setattr(copies, "share", lambda *_: True)
    made.append(job())
    monkeypatch.setattr(copies, "share", lambda *_: False)
    for kibibytes in (30, 0):
        deployment.memory(kibibytes)
        made.append(job())
    copies.MEMORY.write_text("")
    made.append(job())
    copies.MEMORY.unlink()
    made.append(job())
    deployment.memory(1000000)
    monkeypatch.setattr(copies, "PREALLOCATE_SECONDS", -1)
    made.append(job())
    assert made == [False] * 6
    monkeypatch.setattr(copies, "PREALLOCATE_SECONDS", 60)
    assert job()


# ---------------------------------------------------------------- members


def test_a_database_of_the_path_list_is_captured_with_what_is_committed(
    deployment: Deployment,
) -> None:
    grafana = deployment.data / 'storage/it\'s "a" db.sqlite'
    execute(grafana, "PRAGMA journal_mode=WAL; CREATE TABLE a (b); INSERT INTO a VALUES (42)")
    os.chown(grafana, 472, 473)
    grafana.chmod(0o640)
    deployment.add("?sqlite:gone.db", f"sqlite:storage/{grafana.name}")
    (deployment.work / "member.db-journal").write_text("of the one before")
    with holder(grafana, "INSERT INTO a VALUES (43)", "BEGIN", "UPDATE a SET b = 0"):
        answer = deployment.member(1)
    assert answer.paths == [f"storage/{grafana.name}"]
    wanted = {"uid": 472, "gid": 473, "mode": 0o640}
    assert {key: answer.numbers[key] for key in wanted} == wanted
    assert not (deployment.work / "member.db-journal").exists()
    assert query(deployment.work / "member.db", "SELECT sum(b) FROM a") == (85,)


def test_a_sparse_database_of_a_service_is_not_copied(deployment: Deployment) -> None:
    grafana = deployment.data / "grafana.db"
    execute(grafana, "CREATE TABLE a (b)")
    os.truncate(grafana, 10 << 40)
    deployment.add("sqlite:grafana.db")
    assert failure(deployment.job, "capture_member", index=0, limit_bytes=1 << 30) == (
        1,
        f"{grafana} has {10 << 40} bytes; at most {1 << 30} are expected",
    )
    assert not (deployment.work / "member.db").exists()


def test_a_database_of_the_path_list_that_is_none_or_a_symlink_fails_its_own_job_only(
    deployment: Deployment,
) -> None:
    grafana = deployment.data / "grafana.db"
    deployment.add("sqlite:grafana.db")
    assert failure(deployment.member, 0) == (
        1,
        f"the database {grafana} does not exist",
    )
    grafana.write_text("no database")
    assert failure(deployment.member, 0) == (
        1,
        f"{grafana} is not an SQLite database",
    )
    grafana.unlink()
    grafana.symlink_to(deployment.database)
    assert failure(deployment.member, 0) == (
        1,
        f"{grafana} is not a regular file but a symlink",
    )
    answer = deployment.archive()
    assert answer.missing == ["grafana.db"]
    assert ".env" in answer.paths


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_a_database_of_the_path_list_that_is_nearly_all_holes_is_refused_and_not_copied(
    deployment: Deployment, suffix: str
) -> None:
    grafana = deployment.data / "grafana.db"
    execute(grafana, "CREATE TABLE a (b)")
    deployment.add("sqlite:grafana.db")
    with open(f"{grafana}{suffix}", "ab") as file:
        file.truncate(10 << 40)
    code, reason = failure(deployment.member, 0, 1 << 20)
    assert (code, "has 10995116277760 bytes; at most 1048576 are expected" in reason) == (1, True)
    assert sum(path.stat().st_size for path in deployment.work.iterdir()) < 1 << 20
    assert deployment.archive().missing == ["grafana.db"]


@pytest.mark.parametrize("planted", ["file", "pipe", "device"])
def test_what_is_no_directory_in_the_place_of_a_dir_line_makes_the_archive_incomplete(
    deployment: Deployment, planted: str
) -> None:
    log = deployment.data / "storage/tracker/log"
    log.rmdir()
    if planted == "file":
        log.write_text("planted")
    elif planted == "pipe":
        os.mkfifo(log)
    else:
        os.mknod(log, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    answer = deployment.archive()
    assert answer.missing == ["storage/tracker/log"]
    assert answer.warnings == [f"{log} is no directory, so the archive lacks it"]
    assert "storage/tracker/log" not in answer.paths
    assert "storage/tracker/log" not in deployment.members()
    assert "storage/tracker/lib" in deployment.members()
