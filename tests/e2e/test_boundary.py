"""Each role of a real run, with the options it really has: what it can read, write and reach.

The run stands still while a role works. A program in the role's container then tries everything
that docs/security.md says the role cannot do. The kernel has to refuse it, not our code.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from e2e.deployment import DESTINATION, Deployment
from e2e.faults import PAUSE, tracker_started_again
from e2e.stack import DEPLOY_DIR
from e2e.steps import step_named, strike_at

# Prints one JSON object: what was tried, and how it ended. `ok` or the name of the error. The first
# argument is the directory in which it works, and the others are directories to look at.
PROBE = r"""
import ctypes, errno, json, os, socket, sys

libc = ctypes.CDLL(None, use_errno=True)
results = {}
work = sys.argv[1]

def attempt(name, call):
    try:
        found = call()
        results[name] = "ok" if found is None else found
    except OSError as error:
        results[name] = errno.errorcode.get(error.errno, str(error))

def write(path):
    with open(path, "w") as file:
        file.write("x")
    os.unlink(path)

def mount():
    if libc.mount(b"none", work.encode(), b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "mount")

def become_root():
    os.setuid(0)
    open("/etc/shadow").close()

def connect(address):
    with socket.create_connection(address, timeout=3):
        pass

def processes():
    children = []
    try:
        for _ in range(200):
            children.append(os.fork())
            if not children[-1]:
                import time
                time.sleep(20)
                os._exit(0)
    finally:
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)

def bring_up():
    # SIOCSIFFLAGS needs CAP_NET_ADMIN
    import fcntl, struct
    with socket.socket() as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14s", b"lo", 0x1043, b""))

status = dict(line.split(":\t") for line in open("/proc/self/status").read().splitlines())
results["uid"] = os.getuid()
results["capabilities"] = status["CapEff"]
results["no new privileges"] = status["NoNewPrivs"]
results["interfaces"] = sorted(os.listdir("/sys/class/net"))
results["mounts"] = sorted({line.split()[1] for line in open("/proc/mounts")})
for directory in sys.argv[1:]:
    attempt(f"list {directory}", lambda: sorted(os.listdir(directory)))
    attempt(f"write {directory}", lambda: write(f"{directory}/.probe"))
attempt("device", lambda: os.mknod(f"{work}/.device", 0o600 | 0o60000, os.makedev(7, 0)))
attempt("chown", lambda: (open(f"{work}/.b", "w").close(),
                          os.chown(f"{work}/.b", 12345, 12345), None)[-1])
attempt("mount", mount)
attempt("become root", become_root)
attempt("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close())
attempt("interface", bring_up)
attempt("another network", lambda: connect(("192.0.2.1", 80)))
attempt("Docker", lambda: os.stat("/var/run/docker.sock") and None)
attempt("processes", processes)
print(json.dumps(results))
"""

# What a reader does to what services left in their directories: as its container allows it, and
# then as a reader does it, who has confined itself.
REACH = r"""
import ctypes, errno, json, os, socket, sys
from pathlib import Path

sys.path.insert(0, "/usr/local/lib/tracker-backup")
from tracker_backup.worker.confine import confine

libc = ctypes.CDLL(None, use_errno=True)
results = {}

def attempt(name, call):
    try:
        call()
        results[name] = "ok"
    except OSError as error:
        results[name] = errno.errorcode.get(error.errno, str(error))

def connect():
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("/data/storage/hostile/service.sock")

def write_into_pipe():
    os.close(os.open("/data/storage/hostile/pipe", os.O_WRONLY | os.O_NONBLOCK))

def allocate():
    with open("/work/.allocated", "wb") as file:
        size = ctypes.c_int64(1 << 20)
        if libc.fallocate(file.fileno(), 0, ctypes.c_int64(0), size):
            raise OSError(ctypes.get_errno(), "fallocate")

attempt("write to a mount", lambda: Path("/data/storage/hostile/mount/file").write_text("x"))
attempt("read from a mount", lambda: Path("/data/storage/hostile/mount/there").read_text())
attempt("connect as root", connect)
attempt("write into a pipe as root", write_into_pipe)
confine(False, [Path("/work")])
attempt("connect", connect)
attempt("write into a pipe", write_into_pipe)
attempt("allocate", allocate)
attempt("write", lambda: Path("/work/.file").write_text("x"))
attempt("memory of the first process", lambda: os.close(os.open("/proc/1/mem", os.O_RDWR)))
print(json.dumps(results))
"""

DIRECTORIES = ("/", "/work", "/data", "/backups", "/staging", "/run/secrets", "/etc/backup")
MASKED = ("/data/backup/secrets", "/data/storage/backup-staging", "/data/storage/backup")
DAC_OVERRIDE = f"{1 << 1:016x}"


@dataclass(frozen=True)
class Probe:
    """A role, and the step of a run at which its container is there."""

    role: str
    step: str


@contextmanager
def probed(deployment: Deployment, probe: Probe, program: str = PROBE) -> Iterator[dict[str, Any]]:
    """What the program found in the role's container, while a run stood still."""
    host = deployment.host
    host.run("sh", "-c", "cat >/root/probe.py; rm -f /root/probe.json", stdin=program)
    name = f"docker ps --filter name=-{probe.role}$ --format '{{{{.Names}}}}' | head -n 1"
    words = shlex.join(["/work", *DIRECTORIES, *MASKED])
    do = (
        f"name=$({name}); docker inspect $name >/root/inspect.json; "
        f"docker exec -i $name python3 -I - {words} </root/probe.py >/root/probe.json"
    )
    settings = PAUSE if deployment.stack.driver == "sqlite3" else {"QUIESCE": "none"}
    with tracker_started_again(deployment), deployment.configured(**settings):
        struck = strike_at(host, step_named(probe.step), do)
        struck.outcome.succeeded()
    try:
        yield json.loads(host.read("/root/probe.json"))
    finally:
        host.sh("rm -f /root/probe.py /root/probe.json /root/inspect.json")


def expect_confined(found: dict[str, Any], *, capabilities: str, work: str = "/work") -> None:
    """What no role can do. It can write to `work` alone."""
    assert found["capabilities"] == capabilities
    assert found["no new privileges"] == "1"
    for name in ("write /", "write /data", "write /backups", "write /staging", "write /etc/backup"):
        assert found[name] in ("EROFS", "ENOENT", "EACCES"), (name, found[name])
    for name in ("device", "chown", "mount", "raw socket", "interface"):
        assert found[name] in ("EPERM", "EACCES"), (name, found[name])
    assert found["Docker"] == "ENOENT"
    assert found["processes"] == "EAGAIN"
    if found["interfaces"] == ["lo"]:
        assert found["another network"] == "ENETUNREACH"
    assert found[f"write {work}"] == "ok"
    assert found["list /backups"] == found["list /staging"] == "ENOENT"
    assert found["list /run/secrets"] in ("ENOENT", [])


@pytest.mark.only("sqlite3")
def test_the_reader_sees_the_deployment_but_no_secret_no_backup_and_no_network(
    deployment: Deployment,
) -> None:
    host = deployment.host
    host.sh(f"mkdir -p {DEPLOY_DIR}/backup/secrets; echo x >{DEPLOY_DIR}/backup/secrets/probe")
    try:
        with probed(deployment, Probe("reader", "beginning to finish")) as found:
            expect_confined(found, capabilities=DAC_OVERRIDE)
            assert found["uid"] == 0
            assert found["interfaces"] == ["lo"]
            assert {".env", "docker-compose.yml", "storage"} <= set(found["list /data"])
            for masked in MASKED:
                assert found[f"list {masked}"] == [], masked
    finally:
        host.sh(f"rm -f {DEPLOY_DIR}/backup/secrets/probe")
    assert host.sh(f"ls {DESTINATION}/runs").split()


@pytest.mark.only("sqlite3")
def test_the_reader_reaches_no_service_through_a_socket_a_pipe_or_a_mount(
    deployment: Deployment,
) -> None:
    host, hostile = deployment.host, f"{DEPLOY_DIR}/storage/hostile"
    serve = "import socket, time; s = socket.socket(socket.AF_UNIX); s.bind('service.sock'); "
    serve += "s.listen(); open('pid', 'w').write(str(__import__('os').getpid())); time.sleep(600)"
    host.sh(
        f"mkdir -p {hostile}/mount; mount -t tmpfs none {hostile}/mount; cd {hostile}; "
        "echo x >mount/there; mkfifo pipe; "
        "(exec sleep 600 <>pipe >/dev/null 2>&1) & echo $! >reader; "
        f'setsid python3 -c "{serve}" >/dev/null 2>&1 & '
        "while ! test -s pid; do sleep 0.1; done"
    )
    try:
        with probed(deployment, Probe("reader", "beginning to finish"), REACH) as found:
            assert found == {
                "write to a mount": "EROFS",
                "read from a mount": "ok",
                # The container alone would allow these two.
                "connect as root": "ok",
                "write into a pipe as root": "ok",
                "connect": "EPERM",
                "write into a pipe": "EACCES",
                "allocate": "ENOTSUP",
                "write": "ok",
                "memory of the first process": "EACCES",
            }
        assert host.sh(f"ls {hostile}/mount").split() == ["there"]
    finally:
        host.sh(
            f"cd {hostile}; kill $(cat pid reader); cd /; umount {hostile}/mount; rm -rf {hostile}"
        )


@pytest.mark.only("sqlite3")
def test_an_examiner_sees_its_own_database_alone(deployment: Deployment) -> None:
    with probed(deployment, Probe("examiner-0", "checking the database")) as found:
        expect_confined(found, capabilities="0" * 16)
        assert found["uid"] == 64001
        assert found["interfaces"] == ["lo"]
        assert found["list /data"] == found["list /etc/backup"] == "ENOENT"
        assert found["become root"] == "EPERM"
        assert "database.db" in found["list /work"]


@pytest.mark.only("mysql")
def test_the_client_reaches_the_database_and_sees_no_file_of_the_deployment(
    deployment: Deployment,
) -> None:
    with probed(deployment, Probe("client", "beginning the capture")) as found:
        expect_confined(found, capabilities="0" * 16)
        assert found["uid"] == 64101
        assert len(found["interfaces"]) == 2
        assert found["list /data"] == "ENOENT"
        assert found["become root"] == "EPERM"
        assert not [mount for mount in found["mounts"] if "secret" in mount]
