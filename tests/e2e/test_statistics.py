"""A backup without statistics has every row but those of torrents that nobody completed.

It restores like any other.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from e2e.bundle import Outcome
from e2e.conftest import STACKS
from e2e.deployment import CONFIG, DESTINATION, STAGING, Deployment, Run
from e2e.faults import leftovers, strike
from e2e.host import Host
from e2e.stack import DATABASE, HOSTILE_PASSWORD, SQLITE_FILE, mysql, sqlite, wait_for_tracker

TOOL = "tracker-backup"
BUNDLE = "/var/lib/tracker-backup/bundle"

# The row with the highest number is gone: only the autoincrement state still has its number.
_FILL = """
DELETE FROM torrents; DELETE FROM whitelist; DELETE FROM `keys`; DROP TABLE IF EXISTS extra;
CREATE TABLE extra (id {number}, completed INTEGER, note VARCHAR(40));
INSERT INTO extra (completed, note) VALUES
    (0, 'never completed, and no torrent'), (1, 'it''s `quoted` "twice"; --'), (0, 'last');
DELETE FROM extra WHERE note = 'last';
INSERT INTO whitelist (info_hash) VALUES
    ('00000000000000000000000000000000000000b1'), ('00000000000000000000000000000000000000b2');
INSERT INTO `keys` (`key`, valid_until) VALUES ('YZSl4lMZupRuOpSRC3krIKR5BPB14nrJ', 1900000000);
INSERT INTO torrents (info_hash, completed) VALUES
    ('00000000000000000000000000000000000000a1', 7),
    ('00000000000000000000000000000000000000a2', 0),
    ('00000000000000000000000000000000000000a3', 1),
    ('00000000000000000000000000000000000000a4', 0);
CREATE INDEX extra_completed ON extra (completed);
DROP VIEW IF EXISTS completed_torrents;
CREATE VIEW completed_torrents AS SELECT info_hash FROM torrents WHERE completed > 0;
DROP TRIGGER IF EXISTS of_torrents;
"""
# A trigger that changes what is inserted: it must not be there while rows are imported.
_NUMBER = {
    "sqlite3": "INTEGER PRIMARY KEY AUTOINCREMENT",
    "mysql": "INTEGER PRIMARY KEY AUTO_INCREMENT",
}
_TRIGGER = {
    "sqlite3": """
        CREATE TRIGGER of_torrents AFTER INSERT ON torrents WHEN NEW.info_hash LIKE '00000000%'
        BEGIN UPDATE torrents SET completed = completed + 100 WHERE id = NEW.id; END;""",
    "mysql": """
        CREATE TRIGGER of_torrents BEFORE INSERT ON torrents
        FOR EACH ROW
        SET NEW.completed = NEW.completed + IF(NEW.info_hash LIKE '00000000%', 100, 0);""",
}
_EMPTY = (
    "DROP TRIGGER of_torrents; DROP VIEW completed_torrents; DROP TABLE extra;"
    " DELETE FROM torrents; DELETE FROM whitelist; DELETE FROM `keys`;"
)
_ROWS = (
    "SELECT * FROM whitelist ORDER BY id; SELECT * FROM `keys` ORDER BY id;"
    " SELECT * FROM extra ORDER BY id;"
)
# Without what the tests' own announces add.
_TORRENTS = "SELECT * FROM torrents WHERE info_hash LIKE '00000000%' {condition} ORDER BY id;"


@dataclass(frozen=True)
class Content:
    """All that a database holds; of torrents, those of the tests."""

    torrents: str
    completed: str
    others: str
    schema: str

    @classmethod
    def of(cls, deployment: Deployment) -> Content:
        """What the live database holds now."""
        if deployment.stack.driver == "mysql":
            name = DATABASE["mysql"]
            schema = deployment.query(
                "SHOW CREATE TABLE whitelist; SHOW CREATE TABLE `keys`; SHOW CREATE TABLE extra;"
                "SHOW CREATE VIEW completed_torrents;"
            )
            schema += re.sub(
                "AUTO_INCREMENT=[0-9]+ ", "", deployment.query("SHOW CREATE TABLE torrents;")
            )
            schema += deployment.query(
                "SELECT trigger_name, action_statement FROM information_schema.triggers"
                f" WHERE trigger_schema = '{name}';"
            )
        else:
            schema = deployment.query(
                "SELECT type, name, sql FROM sqlite_master ORDER BY type, name;"
                "SELECT * FROM sqlite_sequence WHERE name <> 'torrents' ORDER BY name;"
            )
        torrents = deployment.query(_TORRENTS.format(condition=""))
        return cls(
            torrents,
            deployment.query(_TORRENTS.format(condition="AND completed > 0")),
            deployment.query(_ROWS),
            schema,
        )

    def as_backed_up_without_statistics(self, before: Content) -> None:
        """Asserts that this is `before`, without the torrents that were never completed."""
        assert self.torrents == self.completed == before.completed
        assert self.others == before.others
        assert self.schema == before.schema


def _tool(host: Host, *words: str, program: str = TOOL) -> Outcome:
    done = host.run(program, *words, check=False, seconds=600)
    return Outcome(done.returncode, done.stdout + done.stderr)


def _next_torrent(deployment: Deployment) -> int:
    """The number that the next torrent gets at least."""
    if deployment.stack.driver == "mysql":
        found = re.search(
            "AUTO_INCREMENT=([0-9]+)", deployment.query("SHOW CREATE TABLE torrents;")
        )
        assert found
        return int(found[1])
    return int(deployment.query("SELECT seq + 1 FROM sqlite_sequence WHERE name = 'torrents';"))


@pytest.fixture(scope="module")
def filled(deployment: Deployment) -> Iterator[Content]:
    """Rows in every table, half of the torrents never completed.

    The module leaves empty tables, and a full backup of them.
    """
    deployment.query(_FILL.format(number=_NUMBER[deployment.stack.driver]))
    deployment.query(_TRIGGER[deployment.stack.driver])
    yield Content.of(deployment)
    deployment.query(_EMPTY)
    # Later runs would miss the table that was made here, and the rows.
    deployment.host.sh(
        f"grep --files-with-matches '\"extra\"' {DESTINATION}/runs/*.json | xargs rm"
    )
    with deployment.configured(QUIESCE="none"):
        deployment.run().succeeded()
    _tool(deployment.host, "acknowledge").succeeded()
    deployment.host.run("rm", "-rf", f"{STAGING}/before-restore")


def _back_up(deployment: Deployment, scope: str, quiesce: str) -> Run:
    with deployment.configured(BACKUP_SCOPE=scope, QUIESCE=quiesce):
        deployment.run().succeeded()
    run = deployment.last_run()
    assert (run["result"], run["scope"], run["quiesce"]) == ("success", scope, quiesce)
    assert leftovers(deployment.host) == []
    return run


@pytest.fixture(scope="module")
def runs(deployment: Deployment, filled: Content) -> dict[str, Run]:
    """A full backup and those without statistics, by how they were made."""
    made = {"full": _back_up(deployment, "full", "none")}
    made |= {
        quiesce: _back_up(deployment, "exclude-statistics", quiesce)
        for quiesce in ("none", "pause")
    }
    return made


@pytest.mark.parametrize("quiesce", ["none", "pause"])
def test_the_run_manifest_says_what_is_in_it(
    deployment: Deployment, filled: Content, runs: dict[str, Run], quiesce: str
) -> None:
    run, full = runs[quiesce], runs["full"]
    suffixes = [".sql.gz", ".torrents.sql.gz"] if deployment.stack.driver == "mysql" else [".db.gz"]
    databases = [file["path"] for file in run["files"] if file["kind"] == "database"]
    assert databases == [
        f"{deployment.kind}/{deployment.kind}_{run['id']}{suffix}" for suffix in suffixes
    ]
    assert run["tables"]["torrents"] < full["tables"]["torrents"]
    assert {name: rows for name, rows in run["tables"].items() if name != "torrents"} == {
        name: rows for name, rows in full["tables"].items() if name != "torrents"
    }
    assert len(filled.completed.splitlines()) == 2
    listed = _tool(deployment.host, "list").succeeded().output
    assert re.search(f"{run['id']} .* exclude-statistics$", listed, re.MULTILINE)


@pytest.mark.parametrize("quiesce", ["none", "pause"])
def test_it_is_verified_like_any_other(
    deployment: Deployment, runs: dict[str, Run], quiesce: str
) -> None:
    verified = _tool(deployment.host, "verify", runs[quiesce]["id"]).succeeded()
    assert f"torrents {runs[quiesce]['tables']['torrents']} rows" in verified.output


@pytest.mark.parametrize("quiesce", ["none", "pause"])
def test_restored_in_place_it_has_all_but_what_was_never_completed(
    deployment: Deployment, filled: Content, runs: dict[str, Run], quiesce: str
) -> None:
    number = _next_torrent(deployment)
    deployment.query(
        "DELETE FROM whitelist; DELETE FROM extra; UPDATE torrents SET completed = 99;"
    )
    restored = strike(
        deployment.host, TOOL, "restore", runs[quiesce]["id"], "--only", "database", "--confirm"
    ).outcome
    assert "exclude-statistics" in restored.succeeded().output
    wait_for_tracker(deployment.host)
    Content.of(deployment).as_backed_up_without_statistics(filled)
    assert _next_torrent(deployment) >= number


def test_a_full_backup_still_restores_after_the_scope_was_changed(
    deployment: Deployment, filled: Content, runs: dict[str, Run]
) -> None:
    with deployment.configured(BACKUP_SCOPE="exclude-statistics"):
        strike(
            deployment.host, TOOL, "restore", runs["full"]["id"], "--only", "database", "--confirm"
        ).outcome.succeeded()
    wait_for_tracker(deployment.host)
    assert Content.of(deployment) == filled


def test_restored_onto_an_empty_host_it_has_all_but_what_was_never_completed(
    deployment: Deployment, filled: Content, runs: dict[str, Run]
) -> None:
    run, stack = (
        runs["pause" if deployment.stack.driver == "sqlite3" else "none"],
        STACKS[deployment.stack.driver],
    )
    with Host(
        f"gen-backup-bundle-e2e-statistics-{stack.driver}-{os.getpid()}",
        buildkit=stack.driver == "mysql",
    ) as empty:
        image = re.search(r"^IMAGE='(.*)'$", deployment.host.read(CONFIG), re.MULTILINE)
        assert image
        _pipe(deployment.host, f"docker save {image[1]}", empty, "docker load")
        _pipe(
            deployment.host,
            f"tar -C {DESTINATION} -c .",
            empty,
            f"mkdir -p {DESTINATION} && tar -C {DESTINATION} -x",
        )
        bundle = subprocess.run(
            [
                "tar",
                "-C",
                str(deployment.bundle.directory),
                "--owner=0",
                "--group=0",
                "--exclude=./secrets",
                "--exclude=./.gitignore",
                "-c",
                ".",
            ],
            capture_output=True,
            check=True,
        )
        empty.run(
            "bash", "-c", f"mkdir -p -m 0700 {BUNDLE} && tar -C {BUNDLE} -x", stdin=bundle.stdout
        )
        _tool(
            empty, "restore", run["id"], "--confirm", program=f"{BUNDLE}/host/tracker-backup"
        ).succeeded()
        if stack.driver == "mysql":
            # The stack's `.env` has another password than the tracker; a deployer's has the same.
            escaped = HOSTILE_PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
            mysql(empty, f"ALTER USER tracker_user@'%' IDENTIFIED BY '{escaped}'")
        else:
            assert sqlite(empty, SQLITE_FILE, "PRAGMA integrity_check;").strip() == "ok"
        wait_for_tracker(empty)
        elsewhere = Deployment(
            empty,
            stack,
            deployment.bundle,
            deployment.key,
            deployment.before,
            deployment.checked,
            deployment.installed,
        )
        Content.of(elsewhere).as_backed_up_without_statistics(filled)


def _pipe(source: Host, reading: str, target: Host, writing: str) -> None:
    """Standard output of a command on one host into a command on another."""
    with subprocess.Popen(
        ["docker", "exec", source.name, "bash", "-c", reading], stdout=subprocess.PIPE
    ) as read:
        subprocess.run(
            ["docker", "exec", "-i", target.name, "bash", "-c", writing],
            stdin=read.stdout,
            check=True,
            timeout=300,
        )
