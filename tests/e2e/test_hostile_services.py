"""What services plant in their own directories: the tracker's database is backed up all the same.

Nothing older changes, nothing is executed, no secret moves, and the tracker comes back.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from e2e import faults
from e2e.aftermath import lost
from e2e.bundle import Outcome
from e2e.deployment import SCRIPT, STAGING, Deployment, Run
from e2e.faults import PAUSE, strike
from e2e.stack import DEPLOY_DIR, SQLITE_FILE, sqlite
from e2e.steps import step_named, strike_at
from e2e.test_hostile_steps import in_core
from e2e.test_reports import tool

pytestmark = pytest.mark.only("sqlite3")

CADDY = f"{DEPLOY_DIR}/storage/caddy/data"
GRAFANA = f"{DEPLOY_DIR}/storage/grafana/data/grafana.db"
PATHS = f"{DEPLOY_DIR}/backup/backup-paths.txt"
SECRETS = f"{DEPLOY_DIR}/backup/secrets"
PWNED = "/tmp/pwned"
HELD = "/tmp/held-by-hostile"  # while it is there, somebody holds a lock or a lease
HOLD_SECONDS = 120
KEY_OF_THE_TRACKER = "k" * 32
CANARY = "SECRET-OF-THE-HOST"


# ---------------------------------------------------------------- what every test checks


@dataclass
class Seen:
    """The outcome of a run, its manifest, its log, and the names in its configuration archive."""

    outcome: Outcome
    run: Run
    log: str
    names: list[str]


@pytest.fixture
def sound(deployment: Deployment) -> Iterator[None]:
    """A good backup before the test; nothing of the test on the host after it."""
    host = deployment.host
    host.sh(f"rm -f {PWNED}; mkdir -p {SECRETS}; echo {CANARY} >{SECRETS}/canary")
    with deployment.configured(**PAUSE):
        deployment.run().succeeded()
    try:
        yield
    finally:
        host.run("rm", "-f", f"{SECRETS}/canary", HELD)
    with deployment.configured(**PAUSE):
        deployment.run().succeeded()
    tool(host, "acknowledge")


@contextmanager
def unharmed(deployment: Deployment) -> Iterator[None]:
    """After the block, everything is as before but for one more run."""
    host = deployment.host
    earlier, before, since = faults.backups(host), deployment.tracker(), faults.log_lines(host)
    yield
    log = faults.log_since(host, since)
    assert not host.exists(PWNED)
    assert lost(host, earlier) == []
    assert faults.leftovers(host) == []
    assert "Traceback" not in log, log
    assert "\x1b" not in log and "\x07" not in log
    assert CANARY not in log
    deployment.wait_for_tracker()
    after = deployment.tracker()
    assert (after.id, after.status, after.started) == (before.id, "running", before.started)


def run_and_look(deployment: Deployment) -> Seen:
    """Runs a backup, pausing the tracker; its database has to be published and readable."""
    host = deployment.host
    since = faults.log_lines(host)
    with unharmed(deployment), deployment.configured(**PAUSE):
        outcome = deployment.run()
    return look(deployment, outcome, since)


def look(deployment: Deployment, outcome: Outcome, since: int) -> Seen:
    host = deployment.host
    log = faults.log_since(host, since)
    assert outcome.code in (0, 1), outcome.output
    run = deployment.last_run()
    assert run["result"] == ("incomplete" if outcome.code else "success"), log
    with deployment.scratch() as scratch:
        host.sh(f"zcat {deployment.file(run, 'database')} >{scratch}/copy.db")
        found = sqlite(host, f"{scratch}/copy.db", "PRAGMA integrity_check;")
    assert found.strip() == "ok"
    archive = deployment.file(run, "config")
    names = host.sh(f"tar --list --verbose --numeric-owner --gzip --file {archive}").splitlines()
    assert [line for line in names if line.endswith(" .env")], "the rest is there"
    assert host.run("bash", "-c", f"zcat {archive} | grep -qa {CANARY}", check=False).returncode
    return Seen(outcome, run, log, names)


# ---------------------------------------------------------------- broken for the backup


@dataclass(frozen=True)
class Broken:
    """Something that cannot be archived: `plant` and `undo` are shell fragments. The run is
    incomplete, names the path, and says why.
    """

    name: str
    plant: str
    undo: str
    missing: str
    log: str

    def __str__(self) -> str:
        return self.name


def background(program: str, *words: str) -> str:
    """Starts a Python program that holds something, and waits until it does."""
    command = shlex.join(["python3", "-c", program, *words, HELD])
    return (
        f"rm -f {HELD}; setsid {command} </dev/null >/dev/null 2>&1 & "
        f"for n in {{1..100}}; do [ -e {HELD} ] && break; sleep 0.1; done; [ -e {HELD} ]"
    )


_WAIT = f"""
    open(sys.argv[2], "w").close()
    end = time.monotonic() + {HOLD_SECONDS}
    while os.path.exists(sys.argv[2]) and time.monotonic() < end:
        time.sleep(0.1)
"""
# Takes what SQLite takes for EXCLUSIVE.
_LOCK = f"""
import fcntl, os, sys, time
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX, 512, 0x40000000)
{_WAIT}
"""
# Ignores that somebody wants to open the file. After 45 s the kernel ends a lease.
_LEASE = f"""
import fcntl, os, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
with open(sys.argv[1], "r+b") as file:
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
{_WAIT}
"""
_DEEP = """
import os, sys
parent = os.open(sys.argv[1], os.O_RDONLY)
for _ in range(3000):
    os.mkdir("deep", dir_fd=parent)
    child = os.open("deep", os.O_RDONLY, dir_fd=parent)
    os.close(parent)
    parent = child
with open(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=parent), "w") as file:
    file.write("deep")
"""
ASIDE = f"mv {GRAFANA} /root/grafana.db"
BACK = f"rm -rf {GRAFANA}; mv /root/grafana.db {GRAFANA}"
RELEASE = f"rm -f {HELD}; sleep 0.3"
OF_GRAFANA = "storage/grafana/data/grafana.db"
BROKEN = (
    Broken(
        "h08-a-corrupt-database-of-grafana",
        f"{ASIDE}; cp -p /root/grafana.db {GRAFANA}; "
        f"dd if=/dev/urandom of={GRAFANA} bs=4096 seek=1 count=20 conv=notrunc",
        BACK,
        OF_GRAFANA,
        "a service's database is not in the backup: integrity_check",
    ),
    Broken(
        "h08-a-link-to-the-trackers-database",
        f"{ASIDE}; ln -s {SQLITE_FILE} {GRAFANA}",
        BACK,
        OF_GRAFANA,
        f"leads through a symlink to {SQLITE_FILE}",
    ),
    Broken(
        "a-pipe-in-the-place-of-a-database",
        f"{ASIDE}; mkfifo {GRAFANA}",
        BACK,
        OF_GRAFANA,
        "is not a regular file",
    ),
    Broken(
        "a-lock-for-ever-on-grafanas-database",
        f"{ASIDE}; cp -p /root/grafana.db {GRAFANA}; {background(_LOCK, GRAFANA)}",
        f"{RELEASE}; {BACK}",
        OF_GRAFANA,
        "while it is in use: database is locked",
    ),
    Broken(
        "a-lease-for-ever-on-grafanas-database",
        f"{ASIDE}; cp -p /root/grafana.db {GRAFANA}; {background(_LEASE, GRAFANA)}",
        f"{RELEASE}; {BACK}",
        OF_GRAFANA,
        "somebody holds a lease",
    ),
    Broken(
        "a-lease-for-ever-on-a-file",
        f"echo x >{CADDY}/leased; {background(_LEASE, f'{CADDY}/leased')}",
        f"{RELEASE}; rm {CADDY}/leased",
        "storage/caddy/data",
        "storage/caddy/data/leased cannot be read (in use)",
    ),
    Broken(
        "h08-a-sparse-file-of-10-tb",
        f"truncate --size=10T {CADDY}/sparse",
        f"rm {CADDY}/sparse",
        "storage/caddy/data",
        "storage/caddy/data/sparse is nearly all holes",
    ),
    Broken(
        "a-tree-of-3000-levels",
        # On a file system that takes it; the host's own does not remove it again.
        f"mkdir {CADDY}/deep && mount -t tmpfs tmpfs {CADDY}/deep && "
        + shlex.join(["python3", "-c", _DEEP, f"{CADDY}/deep"]),
        f"umount {CADDY}/deep && rmdir {CADDY}/deep",
        "storage/caddy/data",
        "has content below 64 levels",
    ),
)

# The run tries for half a minute.
SLOW = {"a-lock-for-ever-on-grafanas-database", "a-lease-for-ever-on-grafanas-database"}


@pytest.mark.usefixtures("sound")
@pytest.mark.parametrize("broken", in_core(BROKEN, {str(one) for one in BROKEN} - SLOW))
def test_what_cannot_be_archived_stops_nothing_else(deployment: Deployment, broken: Broken) -> None:
    host = deployment.host
    host.sh(broken.plant)
    try:
        seen = run_and_look(deployment)
        assert seen.outcome.code == 1, seen.outcome.output
        assert seen.run["missing"] == [broken.missing]
        assert broken.log in seen.log, seen.log
        status = tool(host, "status")
        assert status.code == 1 and broken.missing in status.output, status.output
    finally:
        host.sh(broken.undo, check=False)


# ---------------------------------------------------------------- left out, and padded


@pytest.mark.usefixtures("sound")
def test_h06_device_nodes_pipes_and_sockets_are_left_out(deployment: Deployment) -> None:
    """Docker lets root in a container make devices; an archive with one could not be restored."""
    host, made = deployment.host, f"{CADDY}/odd"
    socket = f"import socket; socket.socket(socket.AF_UNIX).bind('{made}/socket')"
    host.sh(
        f"mkdir {made}; mknod {made}/disk b 7 99; mknod {made}/zero c 1 5; mkfifo {made}/pipe; "
        f'python3 -c "{socket}"; echo kept >{made}/file; chmod 4755 {made}/file'
    )
    try:
        seen = run_and_look(deployment)
        assert seen.outcome.code == 0, seen.outcome.output
        skipped = [text for text in seen.run["warnings"] if "and was skipped" in text]
        assert len(skipped) == 4, seen.run["warnings"]
        assert {line[0] for line in seen.names} <= {"-", "d", "l"}
        assert [line for line in seen.names if line.endswith("odd/file")]
        tool(host, "verify", seen.run["id"]).succeeded()
    finally:
        host.run("rm", "-rf", made)


@pytest.mark.usefixtures("sound")
def test_a_file_that_shrinks_while_it_is_read_is_padded(deployment: Deployment) -> None:
    host, file = deployment.host, f"{CADDY}/shrinking"
    # A quarter of it is on disk at each moment: a file that is nearly all holes is left out.
    host.sh(f"head -c 25M /dev/urandom >{file}; truncate -s 80M {file}; touch {HELD}")
    shrink = f"truncate -s 25M {file}; sleep 0.02; truncate -s 80M {file}; sleep 0.05"
    process = host.spawn("bash", "-c", f"while [ -e {HELD} ]; do {shrink}; done")
    try:
        seen = run_and_look(deployment)
        assert seen.outcome.code == 0, seen.outcome.output
        assert [line for line in seen.names if line.endswith("data/shrinking")]
        about = [text for text in seen.run["warnings"] if "data/shrinking" in text]
        assert about and "while it was read" in about[0], seen.run["warnings"]
        tool(host, "verify", seen.run["id"]).succeeded()
    finally:
        host.run("rm", "-f", HELD)
        process.communicate(timeout=30)
        host.run("rm", "-f", file)


@pytest.mark.usefixtures("sound")
def test_h11_names_with_escape_sequences_reach_no_terminal(deployment: Deployment) -> None:
    host, name = deployment.host, "\x1b[31mred\x1b]0;title\x07\u202e"
    host.run("mkfifo", f"{CADDY}/{name}")
    sqlite(host, SQLITE_FILE, f'CREATE TABLE "{name}" (a); INSERT INTO "{name}" VALUES (1);')
    try:
        seen = run_and_look(deployment)
        assert seen.outcome.code == 0, seen.outcome.output
        told = [
            tool(host, *words).output
            for words in (("list",), ("status",), ("verify", seen.run["id"]))
        ]
        for text in (seen.outcome.output, seen.log, *told):
            assert not re.search("[\x1b\x07\u202e]", text), text
        assert any(r"\x1b[31mred" in text for text in seen.run["warnings"]), seen.run["warnings"]
        assert [table for table in seen.run["tables"] if "[31mred" in table]
    finally:
        host.run("rm", f"{CADDY}/{name}")
        sqlite(host, SQLITE_FILE, f'DROP TABLE "{name}";')


@pytest.mark.usefixtures("sound")
def test_path_lines_over_staging_backups_and_secrets_archive_none_of_them(
    deployment: Deployment,
) -> None:
    host = deployment.host
    host.sh(f"cp -p {PATHS} /root/paths; printf '%s\\n' /data/storage /data/backup >>{PATHS}")
    try:
        seen = run_and_look(deployment)
        below = [line.split(maxsplit=5)[5] for line in seen.names]
        inside = re.compile(r"(storage/backup|storage/backup-staging|backup/secrets)/.")
        assert [path for path in below if inside.match(path)] == []
        assert "backup/backup.conf" in below
    finally:
        host.sh(f"cat /root/paths >{PATHS}; rm /root/paths")


# ---------------------------------------------------------------- between two looks


@pytest.mark.usefixtures("sound")
def test_h07_a_database_that_becomes_a_link_while_its_copy_waits_is_not_followed(
    deployment: Deployment,
) -> None:
    """Grafana holds its database, and replaces it with a link to the tracker's meanwhile."""
    host = deployment.host
    deployment.query(f"INSERT INTO `keys` (key, valid_until) VALUES ('{KEY_OF_THE_TRACKER}', 1);")
    host.sh(f"{ASIDE}; cp -p /root/grafana.db {GRAFANA}; {background(_LOCK, GRAFANA)}")
    # The run waits for the lock when it has examined and compressed the tracker's database.
    swap = (
        f"setsid bash -c 'sleep 8; ln -sfT {SQLITE_FILE} {GRAFANA}; rm -f {HELD}' "
        "</dev/null >/dev/null 2>&1 &"
    )
    since = faults.log_lines(host)
    try:
        with unharmed(deployment), deployment.configured(**PAUSE):
            struck = strike_at(host, step_named("compressing the database"), swap)
        seen = look(deployment, struck.outcome, since)
        assert seen.outcome.code == 1, seen.outcome.output
        assert seen.run["missing"] == [OF_GRAFANA]
        archive = deployment.file(seen.run, "config")
        found = host.run(
            "bash", "-c", f"zcat {archive} | grep -qa {KEY_OF_THE_TRACKER}", check=False
        )
        assert found.returncode == 1, "the tracker's keys were archived as Grafana's"
    finally:
        host.sh(f"{RELEASE}; {BACK}", check=False)
        deployment.query(f"DELETE FROM `keys` WHERE key = '{KEY_OF_THE_TRACKER}';")


@pytest.mark.usefixtures("sound")
def test_h10_a_strangers_container_that_vanishes_discards_no_backup(deployment: Deployment) -> None:
    host = deployment.host
    image = host.sh("docker inspect --format '{{.Image}}' tracker").strip()
    start = (
        "/usr/bin/docker run --detach --name stranger --network none --entrypoint sleep "
        "--label com.docker.compose.project=other --label com.docker.compose.service=tracker "
        "--label com.docker.compose.oneoff=False "
        f"--label com.docker.compose.project.working_dir=/srv/other {image} 600 >/dev/null"
    )
    vanish = "/usr/bin/docker rm --force stranger >/dev/null 2>&1"
    listing = r"^ps .*com\.docker\.compose"
    try:
        with deployment.configured(**PAUSE):
            host.sh(start)
            calls = strike(host, SCRIPT).calls
            listings = sum(bool(re.search(listing, call)) for call in calls)
            assert listings >= 2, calls
            for nth in range(1, listings + 1):
                host.sh(f"{vanish}; {start}")
                with unharmed(deployment):
                    struck = strike(host, SCRIPT, at=listing, do=vanish, when="after", nth=nth)
                assert struck.code == 0, f"after listing {nth}: {struck.output}"
    finally:
        host.sh(vanish, check=False)


# ---------------------------------------------------------------- the tracker's own database


@pytest.mark.usefixtures("sound")
def test_a_lease_for_ever_on_the_trackers_database_fails_the_run_and_stops_nothing(
    deployment: Deployment,
) -> None:
    host = deployment.host
    # On another file in its place: a lease needs one that nobody has open.
    host.sh(f"cp -p {SQLITE_FILE} /root/new.db; mv {SQLITE_FILE} /root/open.db; "
            f"mv /root/new.db {SQLITE_FILE}; {background(_LEASE, SQLITE_FILE)}")  # fmt: skip
    try:
        with unharmed(deployment), deployment.configured(**PAUSE):
            outcome = deployment.run()
        assert outcome.code == 1, outcome.output
        assert "somebody holds a lease on it" in deployment.last_run()["reason"]
        assert deployment.last_run()["files"] == []
    finally:
        host.sh(f"{RELEASE}; mv /root/open.db {SQLITE_FILE}", check=False)


@pytest.mark.usefixtures("sound")
def test_a_lock_for_ever_on_the_trackers_database_does_not_keep_a_paused_tracker_waiting(
    deployment: Deployment,
) -> None:
    """A tracker that stands still writes nothing, so its locks do not matter."""
    host = deployment.host
    host.sh(background(_LOCK, SQLITE_FILE))
    try:
        seen = run_and_look(deployment)
        assert seen.outcome.code == 0, seen.outcome.output
        assert seen.run["window_seconds"] < 10
    finally:
        host.sh(RELEASE, check=False)


# Each row of the table takes a megabyte in the excerpt, and no byte in the live file.
_BOMB = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("CREATE TABLE bomb (a, b TEXT GENERATED ALWAYS AS ('x') STORED)")
database.executemany("INSERT INTO bomb (a) VALUES (?)", ((n,) for n in range(20000)))
database.execute("PRAGMA writable_schema = ON")
database.execute(
    "UPDATE sqlite_master SET sql = replace(sql, '''x''', 'hex(zeroblob(500000))')"
    " WHERE name = 'bomb'"
)
"""


@pytest.mark.usefixtures("sound")
def test_h09_a_schema_that_grows_without_end_fills_no_disk(deployment: Deployment) -> None:
    host = deployment.host
    host.run("docker", "stop", "-t", "0", "tracker")
    host.sh(f"cp -p {SQLITE_FILE} /root/kept.db")
    try:
        host.run("python3", "-c", _BOMB, SQLITE_FILE)
        host.sh(f"chown --reference=/root/kept.db {SQLITE_FILE}*; docker start tracker")
        deployment.wait_for_tracker()
        watch = f"while [ -e {HELD} ]; do du -sm {STAGING} | cut -f1 >>/root/used; sleep 0.5; done"
        host.sh(f"rm -f /root/used; touch {HELD}; setsid bash -c '{watch}' >/dev/null 2>&1 &")
        settings = PAUSE | {"BACKUP_SCOPE": "exclude-statistics"}
        with unharmed(deployment), deployment.configured(**settings):
            outcome = deployment.run()
        assert outcome.code == 1, outcome.output
        assert "the statistics could not be left out" in deployment.last_run()["reason"]
        used = max(map(int, host.sh(f"rm -f {HELD}; cat /root/used").split()))
        assert used < 200, f"staging took {used} MB for a database of a few"
    finally:
        host.run("docker", "stop", "-t", "0", "tracker")
        host.sh(f"rm -f {HELD} /root/used {SQLITE_FILE}*; mv /root/kept.db {SQLITE_FILE}")
        host.run("docker", "start", "tracker")
        deployment.wait_for_tracker()
