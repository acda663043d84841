"""The archive of the role `reader`: what is in it, and what services cannot do to it."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unit.roles import Deployment, execute, query

from tracker_backup.protocol import SUFFIX  # isort: skip
from tracker_backup.worker import archive, compress  # isort: skip
from tracker_backup.worker.service import StepFailed  # isort: skip


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    return Deployment(tmp_path, monkeypatch)


ETC = "storage/tracker/etc"


def test_members_are_relative_with_owners_and_modes_directories_with_and_without_content(
    deployment: Deployment,
) -> None:
    (deployment.data / ".env").chmod(0o640)
    os.chown(deployment.data / ".env", 1000, 1001)
    lib = deployment.data / "storage/tracker/lib"
    os.chown(lib, 472, 0)
    lib.chmod(0o2770)
    (deployment.data / "storage/tracker/log/tracker.log").write_text("big\n")
    answer = deployment.archive()
    members = deployment.members()
    assert list(members) == [
        ".",
        "storage",
        "storage/tracker",
        "storage/tracker/lib",
        "storage/tracker/log",
        ".env",
        "docker-compose.yml",
        ETC,
        f"{ETC}/tracker.toml",
    ]
    env, directory = members[".env"], members["storage/tracker/lib"]
    assert (env.mode, env.uid, env.gid, env.uname, env.gname) == (0o640, 1000, 1001, "", "")
    assert (directory.mode, directory.uid, directory.isdir()) == (0o2770, 472, True)
    assert env.mtime == int((deployment.data / ".env").stat().st_mtime)
    assert answer.warnings == answer.missing == []
    assert answer.paths == [
        "storage/tracker/lib",
        "storage/tracker/log",
        ".env",
        "docker-compose.yml",
        ETC,
    ]
    packed = deployment.work / "config.tar.gz"
    assert answer.numbers == {"bytes": packed.stat().st_size}
    assert packed.stat().st_mode & 0o777 == 0o600
    assert set(answer.milliseconds) == {"archive", "compress"}
    assert [path.name for path in deployment.work.iterdir()] == ["config.tar.gz"]


def test_the_archive_restores_onto_an_empty_machine(deployment: Deployment) -> None:
    (deployment.etc / "tracker.toml").chmod(0o600)
    (deployment.etc / "large").write_bytes(os.urandom(3_000_001))
    deployment.archive()
    target = deployment.unpack()
    subprocess.run(["diff", "-r", deployment.etc, target / ETC], check=True)
    assert (target / ".env").read_text() == "SECRET=1\n"
    assert (target / "storage/tracker/lib").is_dir()
    assert stat.S_IMODE((target / ETC / "tracker.toml").stat().st_mode) == 0o600


def test_symlinks_inside_a_directory_are_archived_as_such_and_never_followed(
    deployment: Deployment,
) -> None:
    targets = {"outside": "/etc/passwd", "up": "../../../..", "long": "x" * 4000}
    for name, target in targets.items():
        (deployment.etc / name).symlink_to(target)
    deployment.archive()
    members = deployment.members()
    links = {name: members[f"{ETC}/{name}"].linkname for name in targets}
    assert links == targets
    assert not any(name.startswith(f"{ETC}/up/") for name in members)


NAMES = (
    b"with space",
    b"it's",
    b'dou"ble',
    b"-n",
    b"--checkpoint-action=exec=sh",
    b"new\nline",
    b"back\\slash",
    b"*",
    "ключ".encode(),
    b"not-utf8-\377",
    b"n" * 255,
    "資".encode() * 80,
)


def test_files_with_every_kind_of_name_are_archived(deployment: Deployment) -> None:
    for name in NAMES:
        (deployment.etc / os.fsdecode(name)).write_bytes(name)
    deployment.archive()
    subprocess.run(["diff", "-r", deployment.etc, deployment.unpack() / ETC], check=True)


def test_paths_of_the_list_with_spaces_quotes_and_a_leading_dash_are_archived(
    deployment: Deployment,
) -> None:
    name = '-a dir\'s "name"'
    (deployment.data / name).mkdir()
    (deployment.data / name / "file").touch()
    deployment.add(name, f"dir:{name}", os.fsdecode(b"odd\377"))
    (deployment.data / os.fsdecode(b"odd\377")).touch()
    assert "odd\\xff" in deployment.archive().paths
    assert f"{name}/file" in deployment.members()


def test_a_path_list_without_directories_is_archived(deployment: Deployment) -> None:
    deployment.list.write_text("")
    deployment.add(".env")
    deployment.archive()
    assert list(deployment.members()) == [".", ".env"]


def test_zstd_is_written_too(deployment: Deployment) -> None:
    assert deployment.archive("zstd").numbers["bytes"] > 0
    words = ["zstd", "-dcq", str(deployment.work / "config.tar.zst")]
    unpacked = subprocess.run(words, capture_output=True, check=True).stdout
    listed = subprocess.run(["tar", "-t"], input=unpacked, capture_output=True, check=True).stdout
    assert len(unpacked) % 10240 == 0
    assert f"{ETC}/tracker.toml".encode() in listed.splitlines()


# ---------------------------------------------------------------- members


def test_a_checked_database_gets_its_path_and_the_live_files_owner_and_mode(
    deployment: Deployment,
) -> None:
    live = deployment.data / "storage/grafana/grafana.db"
    live.parent.mkdir()
    execute(live, "CREATE TABLE a (b); INSERT INTO a VALUES (1)")
    os.chown(live, 472, 473)
    live.chmod(0o640)
    deployment.add("?sqlite:gone.db", "sqlite:storage/grafana/grafana.db", "sqlite:other.db")
    execute(deployment.data / "other.db", "CREATE TABLE a (b)")
    (deployment.work / "members").mkdir()
    execute(deployment.work / "members/1", "CREATE TABLE a (b); INSERT INTO a VALUES (42)")
    answer = deployment.archive(members=[1])
    assert answer.missing == ["other.db"]
    assert "storage/grafana/grafana.db" in answer.paths
    assert "other.db" not in answer.paths
    members = deployment.members()
    member = members["storage/grafana/grafana.db"]
    assert (member.uid, member.gid, member.mode) == (472, 473, 0o640)
    assert list(members)[1] == "storage"
    assert members["storage/grafana"].isdir()
    restored = deployment.unpack() / "storage/grafana/grafana.db"
    assert query(restored, "SELECT b FROM a") == (42,)


def test_a_checked_database_that_is_beyond_the_limit_is_missing(deployment: Deployment) -> None:
    """A valid one can have holes behind its last page, and an examiner can make them."""
    (deployment.work / "members").mkdir()
    for index, name in enumerate(("sparse.db", "small.db")):
        execute(deployment.data / name, "CREATE TABLE a (b)")
        deployment.add(f"sqlite:{name}")
        execute(deployment.work / f"members/{index}", "CREATE TABLE a (b)")
    os.truncate(deployment.work / "members/0", 10 << 40)
    answer = deployment.archive(limit=100_000, members=[0, 1])
    assert answer.missing == ["sparse.db"]
    assert answer.warnings == ["sparse.db is beyond the limit of size, so the archive lacks it"]
    assert "sparse.db" not in [*answer.paths, *deployment.members()]
    assert "small.db" in answer.paths


def test_a_member_that_is_a_link_is_not_followed(deployment: Deployment) -> None:
    execute(deployment.data / "grafana.db", "CREATE TABLE a (b)")
    deployment.add("sqlite:grafana.db")
    (deployment.work / "members").mkdir()
    (deployment.work / "members/0").symlink_to(deployment.data / ".env")
    with pytest.raises(OSError, match="symbolic links"):
        deployment.archive(members=[0])


# ---------------------------------------------------------------- what services can write


def test_what_is_no_file_directory_or_link_is_skipped_with_a_warning(
    deployment: Deployment,
) -> None:
    os.mkfifo(deployment.etc / "pipe")
    os.mknod(deployment.etc / "device", 0o600 | stat.S_IFCHR, os.makedev(5, 0))
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as one:
        os.chdir(deployment.etc)  # a path of a socket is short
        one.bind("socket")
    answer = deployment.archive()
    assert sorted(answer.warnings) == [
        f"{ETC}/{name} is no file, directory or link, and was skipped"
        for name in ("device", "pipe", "socket")
    ]
    assert answer.missing == []
    assert len(deployment.members()) == 9


def test_hard_links_are_archived_as_files(deployment: Deployment) -> None:
    (deployment.etc / "again").hardlink_to(deployment.etc / "tracker.toml")
    deployment.archive()
    members = deployment.members()
    assert all(members[f"{ETC}/{name}"].isreg() for name in ("again", "tracker.toml"))
    assert (deployment.unpack() / ETC / "again").stat().st_nlink == 1


def while_read(monkeypatch: pytest.MonkeyPatch, file: Path, change: Callable[[], Any]) -> None:
    """The change happens after the file's facts were taken."""
    real, node = archive.Archive.add_file, file.stat().st_ino

    def add_file(self: Any, path: str, descriptor: int, facts: Any, size: int) -> None:
        if facts.st_ino == node:
            change()
        real(self, path, descriptor, facts, size)

    monkeypatch.setattr(archive.Archive, "add_file", add_file)


@pytest.mark.parametrize(
    ("size", "warning", "content"),
    [
        (100, "shrank while it was read, and was padded with zeros", b"x" * 100 + bytes(2900)),
        (5000, "grew while it was read, and was cut", b"x" * 3000),
    ],
)
def test_a_file_that_shrinks_is_padded_and_one_that_grows_is_cut(
    deployment: Deployment,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    warning: str,
    content: bytes,
) -> None:
    file = deployment.etc / "changing"
    file.write_bytes(b"x" * 3000)
    (deployment.etc / "zz").write_text("after it")
    while_read(monkeypatch, file, lambda: os.truncate(file, size))
    assert deployment.archive().warnings == [f"{ETC}/changing {warning}"]
    target = deployment.unpack() / ETC
    assert (target / "changing").read_bytes() == content
    assert (target / "zz").read_text() == "after it"


def test_a_file_that_changes_while_it_is_read_is_a_warning(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = deployment.etc / "tracker.toml"
    while_read(monkeypatch, file, lambda: file.write_text("[CORE]\n"))
    assert deployment.archive().warnings == [f"{ETC}/tracker.toml changed while it was read"]


def test_a_sparse_file_of_10_tb_is_skipped_and_its_line_is_incomplete(
    deployment: Deployment,
) -> None:
    with (deployment.etc / "sparse").open("wb") as file:
        file.truncate(10 << 40)
    started = time.monotonic()
    answer = deployment.archive()
    assert time.monotonic() - started < 10
    assert answer.missing == [ETC]
    assert answer.warnings == [f"{ETC}/sparse is nearly all holes, so the archive lacks it"]
    assert f"{ETC}/tracker.toml" in deployment.members()


def test_only_what_is_within_the_limit_is_read(deployment: Deployment) -> None:
    for number in range(30):
        (deployment.etc / f"{number:02}").write_bytes(bytes(10_000))
    answer = deployment.archive(limit=100_000)
    archived = [name for name in deployment.members() if name[-2:].isdigit()]
    assert 5 < len(archived) < 10
    assert answer.missing == [ETC]
    assert len(answer.warnings) == 21
    rest = 30 - len(archived) - 20
    assert (
        answer.warnings[20] == f"{rest} more: is beyond the limit of size, so the archive lacks it"
    )


@pytest.mark.parametrize("levels", [3000])
def test_a_deep_tree_is_cut_in_linear_time(deployment: Deployment, levels: int) -> None:
    deep = os.open(deployment.etc, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    started = time.monotonic()
    answer = deployment.archive()
    assert time.monotonic() - started < 5
    assert answer.missing == [ETC]
    assert answer.warnings[0].endswith(" has content below 64 levels, so the archive lacks it")
    assert sum(name.endswith("/d") for name in deployment.members()) == 64
    subprocess.run(["rm", "-rf", deployment.etc], check=True)


def test_a_tree_with_too_many_entries_is_cut(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "ENTRIES", 20)
    for number in range(100):
        (deployment.etc / str(number)).touch()
    answer = deployment.archive()
    assert answer.missing == [ETC]
    assert "has content beyond 20 entries" in answer.warnings[0]
    assert len([name for name in deployment.members() if name.startswith(f"{ETC}/")]) == 19
    assert deployment.preflight().numbers["entries"] <= 24  # and four other lines


def test_a_tree_with_too_many_entries_takes_nothing_from_another_line(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "ENTRIES", 20)
    for number in range(100):
        (deployment.etc / str(number)).touch()
    caddy = deployment.data / "storage/caddy"
    caddy.mkdir()
    for number in range(19):
        (caddy / str(number)).touch()
    deployment.add("storage/caddy")
    assert deployment.archive().missing == [ETC]
    assert {f"storage/caddy/{number}" for number in range(19)} <= set(deployment.members())


def test_sparse_files_take_no_space_from_another_line(deployment: Deployment) -> None:
    for number in range(4):
        with (deployment.etc / f"sparse{number}").open("wb") as file:
            file.truncate(100 << 20)
    caddy = deployment.data / "storage/caddy"
    caddy.mkdir()
    (caddy / "cert.pem").write_bytes(os.urandom(100_000))
    deployment.add("storage/caddy")
    answer = deployment.archive(limit=110 << 20)
    assert answer.missing == [ETC]
    assert sorted(answer.warnings) == [
        f"{ETC}/sparse{number} is nearly all holes, so the archive lacks it" for number in range(4)
    ]
    assert {"storage/caddy/cert.pem", f"{ETC}/tracker.toml"} <= set(deployment.members())


def test_a_directory_that_is_replaced_by_a_link_while_it_is_read_is_not_followed(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    (deployment.etc / "sub").mkdir()
    (deployment.etc / "sub/ours").touch()
    outside = deployment.path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    real = archive.Archive.add

    def add(self: archive.Archive, entry: archive.Entry) -> None:
        if entry.path.endswith("/sub") and not (deployment.etc / "sub").is_symlink():
            (deployment.etc / "sub").rename(deployment.etc / "was")
            (deployment.etc / "sub").symlink_to(outside)
        real(self, entry)

    monkeypatch.setattr(archive.Archive, "add", add)
    deployment.archive()
    assert f"{ETC}/sub/ours" in deployment.members()
    assert not any("secret" in name for name in deployment.members())


def test_a_file_with_a_lease_is_skipped_at_once(deployment: Deployment) -> None:
    program = (
        "import fcntl, signal, sys\n"
        "signal.signal(signal.SIGIO, signal.SIG_IGN)\n"
        "file = open(sys.argv[1], 'r+b')\n"
        "fcntl.fcntl(file.fileno(), fcntl.F_SETLEASE, fcntl.F_WRLCK)\n"
        "print('done', flush=True)\n"
        "sys.stdin.read()\n"
    )
    words = ["python3", "-c", program, str(deployment.etc / "tracker.toml")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        started = time.monotonic()
        answer = deployment.archive()
        assert time.monotonic() - started < 5
        process.kill()
    assert answer.missing == [ETC]
    assert answer.warnings == [
        f"{ETC}/tracker.toml cannot be read (in use), so the archive lacks it"
    ]


def test_an_escape_sequence_in_a_name_does_not_reach_the_operator(deployment: Deployment) -> None:
    os.mkfifo(deployment.etc / "\x1b[2J\n")
    (warning,) = deployment.archive().warnings
    assert warning.isprintable()
    assert warning.startswith(f"{ETC}/\\x1b[2J\\n is no file")


# ---------------------------------------------------------------- compressors


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "bin"


def stub(tools: Path, name: str, script: str) -> None:
    (tools / name).write_text(f"#!/bin/sh\n{script}\n")
    (tools / name).chmod(0o755)


MESSAGE = "compressing into config.tar.gz failed; the message is in the log"


@pytest.mark.parametrize(
    "script",
    [
        "cat >/dev/null; exit 1",
        "exit 1",
        "case $* in *--test*) exit 0 ;; esac; head -c 100; echo 'No space left' >&2; exit 1",
        "case $* in *--test*) exit 1 ;; esac; cat",
    ],
)
def test_a_compressor_that_fails_fails_the_archive(
    deployment: Deployment, tools: Path, script: str
) -> None:
    (deployment.etc / "large").write_bytes(os.urandom(1_000_000))
    stub(tools, "pigz", script)
    with pytest.raises(StepFailed, match=MESSAGE):
        deployment.archive()


def test_a_compressed_file_that_does_not_read_back_fails_the_archive(
    deployment: Deployment, tools: Path
) -> None:
    real = subprocess.run(["which", "pigz"], capture_output=True, text=True, check=True).stdout
    stub(
        tools,
        "pigz",
        f'case $* in *--test*) exec {real.strip()} "$@" ;; esac; {real.strip()} "$@" | head -c 60',
    )
    with pytest.raises(StepFailed, match=MESSAGE):
        deployment.archive()


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_file_is_compressed_and_read_back(tmp_path: Path, compression: str) -> None:
    data = os.urandom(1000) * 3000
    (tmp_path / "source").write_bytes(data)
    target = tmp_path / f"target{SUFFIX[compression]}"
    compress.compress_file(tmp_path / "source", target, compression)
    words = [{"gzip": "gzip", "zstd": "zstd"}[compression], "-dc", str(target)]
    assert subprocess.run(words, capture_output=True, check=True).stdout == data
    assert target.stat().st_mode & 0o777 == 0o600


def test_compressors_use_at_most_8_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= compress.THREADS <= 8
    assert str(compress.THREADS) in compress.PROGRAM["gzip"].split()


# ---------------------------------------------------------------- speed


def test_many_small_files_take_little_more_processor_time_than_with_tar(
    deployment: Deployment,
) -> None:
    for number in range(5000):
        (deployment.etc / f"{number}.json").write_text(f"{number}" * 100)
    before = os.times()
    subprocess.run(f"tar -C {deployment.data} -c . | cat >/dev/null", shell=True, check=True)
    after = os.times()
    tar = after.children_user + after.children_system
    tar -= before.children_user + before.children_system
    started = time.process_time()
    assert deployment.archive("zstd").missing == []
    assert time.process_time() - started < 3 * tar + 0.5
