"""What the kernel refuses a role, tried from a process that was confined as the role is."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unit.sandbox import TEMPLATES

# argv: the package's directory, whether there is a network, the writable directory, another one.
PROGRAM = """
import ctypes, errno, fcntl, json, mmap, os, socket, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tracker_backup.worker.confine import confine
work, other = Path(sys.argv[3]), Path(sys.argv[4])
parent = os.getppid()
libc = ctypes.CDLL(None, use_errno=True)
confine(sys.argv[2] == "network", [work] if len(sys.argv) == 5 else [])
results = {}

def attempt(name, action):
    try:
        action()
        results[name] = "ok"
    except OSError as error:
        results[name] = errno.errorcode[error.errno]

def write(path, flags=0):
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | flags, 0o600))

def connect():
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(other / "service.sock"))

def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")

def allocate_by_ioctl():
    with open(work / "file", "r+b") as file:
        fcntl.ioctl(file, 0x40305828, b"\\0" * 48)

def lease():
    with open(work / "file", "rb") as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)

def allocate():
    with open(work / "file", "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)

def allocate_at_once():
    with open(work / "file", "r+b") as file:
        call(285 if os.uname().machine == "x86_64" else 47, file.fileno(), 0, 0, 1 << 30)

attempt("connect to a service", connect)
attempt("write into a pipe", lambda: write(other / "pipe"))
attempt("read a file", lambda: (other / "file").read_bytes())
attempt("write a file", lambda: write(work / "file", os.O_CREAT))
attempt("write elsewhere", lambda: write(other / "file"))
attempt("empty by name", lambda: os.truncate(other / "file", 0))
for flags in (os.O_RDONLY | os.O_TRUNC, os.O_ACCMODE | os.O_TRUNC):
    attempt(f"empty by opening {flags}", lambda: os.close(os.open(other / "file", flags)))
attempt("make elsewhere", lambda: write(other / "new", os.O_CREAT))
attempt("rename", lambda: (work / "file").rename(work / "renamed").rename(work / "file"))
attempt("allocate", allocate_at_once)
attempt("allocate by ioctl", allocate_by_ioctl)
attempt("lease", lease)
attempt("io_uring", lambda: call(425, 1, 0))
attempt("memory of another", lambda: write(f"/proc/{parent}/mem"))
attempt("internet", lambda: socket.socket(socket.AF_INET).close())
attempt("lock", lambda: fcntl.lockf(open(work / "file", "r+b"), fcntl.LOCK_EX))
attempt("a child", lambda: subprocess.run(["true"], check=True))
done = subprocess.run([sys.executable, "-c", "import socket; socket.socket(socket.AF_UNIX)"],
    stderr=subprocess.PIPE)
results["a child's socket"] = "EPERM" if b"PermissionError" in done.stderr else "ok"
print(json.dumps(results))
"""


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """The role's own directory, and one of a service, with a socket and a pipe that are served."""
    work, other = tmp_path / "work", tmp_path / "other"
    for directory in (work, other):
        directory.mkdir()
    (other / "file").write_text("service")
    os.mkfifo(other / "pipe")
    return work, other


def confined(places: tuple[Path, Path], kind: str, writable: bool = True) -> dict[str, Any]:
    work, other = places
    words = [str(TEMPLATES / "backup"), kind, str(work), str(other)]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(other / "service.sock"))
        server.listen()
        reading = os.open(other / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *words, *([] if writable else ["nowhere"])],
            capture_output=True,
            text=True,
            check=False,
        )
        os.close(reading)
    assert done.stdout, done.stderr
    return dict(json.loads(done.stdout))


def landlock() -> bool:
    return int(ctypes.CDLL(None).syscall(444, None, 0, 1)) > 0


pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="no filter for this machine"
)


@pytest.mark.skipif(not landlock(), reason="this kernel has no Landlock")
def test_a_reader_reaches_no_service_through_what_lies_in_its_directory(
    places: tuple[Path, Path],
) -> None:
    found = confined(places, "none")
    assert {name: result for name, result in found.items() if result == "ok"} == dict.fromkeys(
        ("read a file", "write a file", "rename", "lock", "a child"), "ok"
    )
    for name in ("connect to a service", "internet", "io_uring", "lease", "a child's socket"):
        assert found[name] == "EPERM", name
    assert [found[name] for name in found if name.startswith("empty ")] == ["EPERM"] * 3
    assert (places[1] / "file").read_text() == "service"
    for name in ("write into a pipe", "write elsewhere", "make elsewhere", "memory of another"):
        assert found[name] == "EACCES", name
    for name in ("allocate", "allocate by ioctl"):
        assert found[name] == "ENOTSUP", name


def test_a_client_has_its_network_and_no_unix_socket(places: tuple[Path, Path]) -> None:
    found = confined(places, "network")
    assert found["internet"] == "ok"
    assert found["connect to a service"] == found["io_uring"] == "EPERM"


def test_without_places_to_keep_to_the_rest_holds(places: tuple[Path, Path]) -> None:
    found = confined(places, "none", writable=False)
    assert found["write elsewhere"] == "ok"
    assert found["connect to a service"] == found["empty by name"] == "EPERM"
    assert found["allocate"] == "ENOTSUP"
