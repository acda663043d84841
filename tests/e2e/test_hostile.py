"""A taken-over tracker writes anything into its database. A backup of it changes no other file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from e2e.deployment import DESTINATION, STAGING, Deployment
from e2e.stack import DEPLOY_DIR, SQLITE_FILE

pytestmark = pytest.mark.only("sqlite3")

TRACKER = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")
KEPT = "/root/kept-by-hostile"
CONTAINERS_DESTINATION = "/backups"
SECRET = "SECRET_OF_THE_DEPLOYMENT"

# A writer that dies in a transaction, and whose journal ends with the name of a super-journal.
_HOT_JOURNAL = """
import os, sqlite3, struct, subprocess, sys
path, victim = sys.argv[1], sys.argv[2].encode()
writer = "import os, sqlite3, sys\\n" \\
    "writer = sqlite3.connect(sys.argv[1], isolation_level=None)\\n" \\
    "writer.execute('PRAGMA cache_size = 5')\\n" \\
    "writer.execute('BEGIN')\\n" \\
    "writer.executemany('INSERT INTO whitelist (info_hash) VALUES (?)'," \\
    " (('%040x' % number,) for number in range(20000)))\\n" \\
    "os.kill(os.getpid(), 9)\\n"
subprocess.run([sys.executable, "-c", writer, path])
with open(path + "-journal", "r+b") as journal:
    magic = journal.read(8)
    journal.seek(0, 2)
    sign = struct.pack(">II", len(victim), sum(victim))
    journal.write(struct.pack(">I", (1 << 30) // 4096 + 1) + victim + sign + magic)
"""

_APPEND_TO_SCHEMA = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA writable_schema = ON")
changed = "UPDATE sqlite_master SET sql = sql || ? WHERE name = 'keys'"
assert database.execute(changed, (sys.argv[2],)).rowcount == 1
"""


def digests(deployment: Deployment) -> dict[str, str]:
    """The SHA-256 of every file below the destination, by path."""
    listed = deployment.host.sh(f"find {DESTINATION} -type f -exec sha256sum {{}} +").splitlines()
    return {path: digest for digest, path in (line.split(maxsplit=1) for line in listed)}


@contextmanager
def planted(deployment: Deployment) -> Iterator[None]:
    """The tracker stands still for the block, and its database comes back afterwards."""
    host = deployment.host
    host.run("docker", "stop", "-t", "0", "tracker")
    host.sh(f"mkdir {KEPT} && cp -p {SQLITE_FILE}* {KEPT}/")
    try:
        yield
    finally:
        host.run("docker", "stop", "-t", "0", "tracker")
        host.sh(f"rm -f {SQLITE_FILE}*; mv {KEPT}/* {SQLITE_FILE.rpartition('/')[0]}/")
        host.run("rmdir", KEPT)
        host.run("docker", "start", "tracker")
        deployment.wait_for_tracker()


@pytest.fixture(scope="module")
def older(deployment: Deployment) -> Iterator[str]:
    """The path of an older backup of the database; the module leaves a good run."""
    deployment.run().succeeded()
    yield deployment.file(deployment.last_run(), "database")
    deployment.run().succeeded()
    deployment.host.run("tracker-backup", "acknowledge")


def no_file_changed(deployment: Deployment, before: dict[str, str]) -> None:
    """Asserts that every older file below the destination is as it was, and nothing is left."""
    after = digests(deployment)
    assert {path: after.get(path) for path in before} == before
    assert deployment.host.sh(f"ls -A {STAGING}") == ""


@pytest.mark.parametrize("place", [DESTINATION, CONTAINERS_DESTINATION])
def test_h01_a_journal_that_names_an_older_backup_does_not_delete_it(
    deployment: Deployment, older: str, place: str
) -> None:
    """`place` is where the backups are, on the host or in a container that sees them."""
    before = digests(deployment)
    victim = older.replace(DESTINATION, place)
    with planted(deployment):
        deployment.host.run(*TRACKER, "python3", "-c", _HOT_JOURNAL, SQLITE_FILE, victim)
        deployment.host.run("grep", "-qaF", victim, f"{SQLITE_FILE}-journal")
        deployment.run("--force").succeeded()
    no_file_changed(deployment, before)
    run = deployment.last_run()
    assert any("names another file; the name is ignored" in text for text in run["warnings"])


SHELL_LINES = (
    "{newline}.trace {victim}{newline}.output {victim}{newline}.shell touch /backups/pwned{newline}"
    ".system touch /backups/pwned{newline}SELECT readfile('/data/.env'){newline}"
)
# What follows the first statement, and whether a backup can still be made.
SCHEMAS = {
    "statements that follow": (";" + SHELL_LINES + "; CREATE TABLE pwned (a)", False),
    "a statement that attaches": ("; ATTACH '{victim}' AS other; DROP TABLE whitelist", False),
    "lines in a comment": (" /* ;" + SHELL_LINES + "*/", True),
}


@pytest.mark.parametrize("quiesce", ["pause", "none"])
@pytest.mark.parametrize("schema", SCHEMAS)
def test_h02_and_h03_the_text_of_a_schema_reaches_no_shell(
    deployment: Deployment, older: str, schema: str, quiesce: str
) -> None:
    text, succeeds = SCHEMAS[schema]
    victim = older.replace(DESTINATION, CONTAINERS_DESTINATION)
    hostile = text.format(newline="\n", victim=victim)
    before = digests(deployment)
    with planted(deployment):
        deployment.host.run(*TRACKER, "python3", "-c", _APPEND_TO_SCHEMA, SQLITE_FILE, hostile)
        deployment.host.sh(
            f"cp -p {DEPLOY_DIR}/.env /root/env; echo X={SECRET} >>{DEPLOY_DIR}/.env"
        )
        try:
            deployment.host.run("docker", "start", "tracker")
            deployment.wait_for_tracker()
            settings = {"BACKUP_SCOPE": "exclude-statistics", "QUIESCE": quiesce}
            with deployment.configured(**settings):
                outcome = deployment.run()
        finally:
            deployment.host.run("mv", "/root/env", f"{DEPLOY_DIR}/.env")
        deployment.wait_for_tracker()
    assert outcome.code == (0 if succeeds else 1), outcome.output
    no_file_changed(deployment, before)
    run = deployment.last_run()
    new = {path for path in digests(deployment) if path not in before}
    assert new == {
        *(f"{DESTINATION}/{file['path']}" for file in run["files"]),
        f"{DESTINATION}/runs/{run['id']}.json",
    }
    if succeeds:
        database = deployment.file(run, "database")
        found = deployment.host.run(
            "bash",
            "-c",
            f"zcat {database} >/root/db; grep -qa whitelist /root/db; echo $?;"
            f"grep -qa {SECRET} /root/db; echo $?; rm /root/db",
        )
        assert found.stdout.split() == ["0", "1"]
    else:
        assert "cannot be made again from the text in sqlite_master" in run["reason"]
