"""A backup that was verified comes back as it was: in place, onto an empty machine, through no
symlink, and not at all when it is cut short.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from e2e import faults
from e2e.bundle import Outcome
from e2e.conftest import STACKS
from e2e.deployment import CONFIG, DESTINATION, LOG, STAGING, Deployment, Run
from e2e.faults import picture, recover, rows, strike
from e2e.host import Host, wait_until
from e2e.stack import (
    DATABASE,
    DEPLOY_DIR,
    HOSTILE_PASSWORD,
    SQLITE_FILE,
    mysql,
    untouched,
    wait_for_tracker,
)
from e2e.steps import POINTS, RESTORE_STEPS

TOOL = "tracker-backup"
POINTS_REACHED = f"{POINTS}/reached"
COUNT = "SELECT count(*) FROM whitelist;"
RUNNING_COPIES = ("copy-prometheus", "copy-grafana", "copy-caddy")
GRAFANA = f"{DEPLOY_DIR}/storage/grafana/data/grafana.db"
BUNDLE = "/var/lib/tracker-backup/bundle"

FILL = """
DELETE FROM whitelist; DELETE FROM torrents; DELETE FROM `keys`;
INSERT INTO whitelist (info_hash) VALUES
    ('0000000000000000000000000000000000000001'),
    ('0000000000000000000000000000000000000002');
INSERT INTO torrents (info_hash, completed) VALUES
    ('00000000000000000000000000000000000000a1', 7),
    ('00000000000000000000000000000000000000a2', 0);
INSERT INTO `keys` (`key`, valid_until) VALUES ('YZSl4lMZupRuOpSRC3krIKR5BPB14nrJ', 1900000000);
"""
SPOIL = """
DELETE FROM whitelist; DELETE FROM `keys`; UPDATE torrents SET completed = 99;
INSERT INTO torrents (info_hash, completed) VALUES ('00000000000000000000000000000000000000ff', 1);
"""
# Only root may import this back: the server logs binary, and the tracker's user has no SUPER.
TRIGGER = (
    "DROP TRIGGER IF EXISTS probe; CREATE TRIGGER probe BEFORE INSERT ON whitelist FOR EACH ROW "
    "SET NEW.info_hash = lower(NEW.info_hash);"
)
SPOIL_CONFIG = f"""
cd {DEPLOY_DIR}
printf '# spoilt\\n' >>.env; chmod 0600 .env; chown 0:0 .env
printf '# spoilt\\n' >>storage/tracker/etc/tracker.toml
rm -f storage/caddy/etc/Caddyfile
rm -rf storage/prometheus/etc
"""


@dataclass(frozen=True)
class Good:
    """A backup, and what the deployment was when it was made."""

    run: Run
    rows: str
    picture: dict[str, str]

    @property
    def id(self) -> str:
        """The run's id."""
        return str(self.run["id"])


def tool(host: Host, *words: str, program: str = TOOL) -> Outcome:
    """One command of the operator's tool."""
    done = host.run(program, *words, check=False, seconds=600)
    return Outcome(done.returncode, done.stdout + done.stderr)


def status(host: Host) -> dict[str, Any]:
    """What `status --json` says."""
    return dict(json.loads(host.run(TOOL, "status", "--json", check=False).stdout))


@pytest.fixture(scope="module")
def good(deployment: Deployment) -> Iterator[Good]:
    """One good backup of a deployment that has rows in every table; the module leaves the
    deployment as the backup has it.
    """
    deployment.query(FILL)
    if deployment.stack.driver == "mysql":
        deployment.query(TRIGGER)
    with deployment.configured(QUIESCE="pause"):
        deployment.run().succeeded()
    yield Good(deployment.last_run(), rows(deployment), picture(deployment.host, databases=False))
    if deployment.stack.driver == "mysql":
        deployment.query("DROP TRIGGER IF EXISTS probe")
    # What these tests did to the rows would suspend the retention of later ones.
    with deployment.configured(QUIESCE="none"):
        deployment.run().succeeded()
    tool(deployment.host, "acknowledge").succeeded()
    deployment.host.run("rm", "-rf", f"{STAGING}/before-restore")


def fast_restore(deployment: Deployment, *words: str) -> Outcome:
    """A restore, in which stopping takes one second instead of ten."""
    return strike(deployment.host, TOOL, "restore", *words).outcome


def as_backed_up(deployment: Deployment, good: Good, *, config: bool = True) -> None:
    """The rows, and every file's content, owner and mode, are those of the backup; the tracker
    answers.
    """
    wait_for_tracker(deployment.host)
    assert rows(deployment) == good.rows
    if config:
        now = picture(deployment.host, databases=False)
        assert {
            path: (good.picture.get(path), facts)
            for path, facts in now.items()
            if good.picture.get(path) != facts
        } == {}
        assert now.keys() == good.picture.keys()
    assert faults.leftovers(deployment.host) == []
    assert not deployment.host.exists(f"{faults.STATE}/restore.json")


# ---------------------------------------------------------------- verify


def test_verify_proves_a_good_backup_and_touches_nothing(
    deployment: Deployment, good: Good
) -> None:
    before = deployment.host.containers()
    verified = tool(deployment.host, "verify").succeeded()
    assert f"verified {good.id}" in verified.output
    for table, count in good.run["tables"].items():
        assert f"{table} {count} rows" in verified.output
    assert untouched(before, deployment.host.containers())
    assert picture(deployment.host, databases=False) == good.picture
    assert faults.leftovers(deployment.host) == []


@pytest.mark.only("sqlite3")
def test_cron_verifies_the_newest_backup(deployment: Deployment, good: Good) -> None:
    host, cron = deployment.host, "/etc/cron.d/tracker-backup"
    host.run("rm", "-f", f"{faults.STATE}/verified.json")
    host.sh(
        f"cp -p {cron} /root/cron; sed -i -E 's|^.* (root /usr/local/bin/tracker-backup "
        f"verify)|* * * * * \\1|' {cron}"
    )
    try:
        wait_until("cron to verify", lambda: host.exists(f"{faults.STATE}/verified.json"), 150)
    finally:
        host.run("mv", "/root/cron", cron)
    wait_until("it to be logged", lambda: f"verified {good.id}" in host.read(LOG), 30)
    assert json.loads(host.read(f"{faults.STATE}/verified.json"))["problems"] == []


@pytest.fixture
def verified_again(deployment: Deployment) -> Iterator[None]:
    """Forgets that verifying failed, which would suspend the retention of later tests."""
    yield
    deployment.host.run("rm", "-f", f"{faults.STATE}/verified.json")


@pytest.mark.usefixtures("verified_again")
@pytest.mark.parametrize("kind", ["database", "config"])
def test_verify_names_the_file_with_a_flipped_byte(
    deployment: Deployment, good: Good, kind: str
) -> None:
    file = deployment.file(good.run, kind)
    flip = (
        f"f = open({file!r}, 'r+b'); d = f.read(); f.seek(len(d) // 2); f.write(bytes([d[len(d) "
        "// 2] ^ 1]))"
    )
    before = deployment.host.containers()
    deployment.host.run("python3", "-c", flip)
    try:
        verified = tool(deployment.host, "verify", good.id)
        restored = tool(deployment.host, "restore", good.id, "--confirm")
    finally:
        deployment.host.run("python3", "-c", flip)
    assert verified.code == restored.code == 1, verified.output + restored.output
    assert f"PROBLEM: {good.id}: {file.removeprefix(DESTINATION + '/')}" in verified.output
    assert f"{good.id} is not restored: {file.removeprefix(DESTINATION + '/')}" in restored.output
    assert untouched(before, deployment.host.containers())
    as_backed_up(deployment, good)


@pytest.mark.usefixtures("verified_again")
def test_verify_names_the_table_whose_rows_are_not_those_of_the_run_manifest(
    deployment: Deployment, good: Good
) -> None:
    path = f"{DESTINATION}/runs/{good.id}.json".lstrip("/")
    tables = good.run["tables"] | {"whitelist": 3}
    try:
        deployment.host.unpack(
            {path: json.dumps(good.run | {"tables": tables})}, modes={path: 0o600}
        )
        verified = tool(deployment.host, "verify", good.id)
    finally:
        deployment.host.unpack({path: json.dumps(good.run)}, modes={path: 0o600})
    assert verified.code == 1
    assert "table whitelist: 2 rows, 3 in the run manifest" in verified.output


# ---------------------------------------------------------------- restore in place


def test_restore_asks_before_it_replaces_anything(deployment: Deployment, good: Good) -> None:
    before, files = deployment.host.containers(), faults.backups(deployment.host)
    asked = tool(deployment.host, "restore", "latest")
    planned = tool(deployment.host, "restore", "latest", "--dry-run")
    unknown = tool(deployment.host, "restore", "20000101_000000", "--confirm")
    assert (asked.code, planned.code, unknown.code) == (2, 0, 1), (
        asked.output + planned.output + unknown.output
    )
    assert "--confirm" in asked.output
    assert good.id in planned.output
    assert deployment.host.containers() == before
    assert faults.backups(deployment.host) == files
    as_backed_up(deployment, good)


def test_restore_in_place_brings_back_rows_and_files_with_owners_and_modes(
    deployment: Deployment, good: Good
) -> None:
    host = deployment.host
    has_grafana = "grafana" in deployment.stack.services
    deployment.query(SPOIL)
    host.sh(SPOIL_CONFIG)
    if has_grafana:
        faults.sqlite(host, GRAFANA, "UPDATE dashboard SET title = 'spoilt';")
    before = host.containers()
    restored = fast_restore(deployment, "latest", "--confirm").succeeded()
    assert f"changed: restored config and database of {good.id}" in restored.output
    as_backed_up(deployment, good)
    if has_grafana:
        assert faults.sqlite(host, GRAFANA, "SELECT * FROM dashboard;") == "1|Torrust tracker\n"
    after = host.containers()
    assert {name: (one.id, one.status) for name, one in after.items()} == {
        name: (one.id, "running") for name, one in before.items()
    }
    assert "# spoilt" in host.read(f"{STAGING}/before-restore/.env")


def test_restore_of_one_half_leaves_the_other(deployment: Deployment, good: Good) -> None:
    deployment.query(SPOIL)
    deployment.host.sh(SPOIL_CONFIG)
    spoilt_files = picture(deployment.host, databases=False)
    assert spoilt_files != good.picture
    fast_restore(deployment, good.id, "--only", "database", "--confirm").succeeded()
    wait_for_tracker(deployment.host)
    assert rows(deployment) == good.rows
    assert picture(deployment.host, databases=False) == spoilt_files

    later = "00000000000000000000000000000000000000aa"
    deployment.query(f"INSERT INTO torrents (info_hash, completed) VALUES ('{later}', 1);")
    fast_restore(deployment, good.id, "--only", "config", "--confirm").succeeded()
    wait_for_tracker(deployment.host)
    assert later in rows(deployment)
    deployment.query(f"DELETE FROM torrents WHERE info_hash = '{later}';")
    as_backed_up(deployment, good)


@pytest.mark.only("sqlite3")
def test_restore_puts_no_database_beside_the_hot_journal_of_another(
    deployment: Deployment, good: Good
) -> None:
    crash = f"""
import os, sqlite3
db = sqlite3.connect({SQLITE_FILE!r}, isolation_level=None)
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN")
rows = [(f"e{{n:039x}}",) for n in range(20000)]
db.executemany("INSERT INTO torrents (info_hash, completed) VALUES (?, 1)", rows)
db.execute("UPDATE torrents SET completed = 5")
os._exit(0)
"""
    with faults.tracker_started_again(deployment):
        deployment.host.run("docker", "kill", "tracker")
        deployment.host.run("python3", "-c", crash)
        assert deployment.host.exists(f"{SQLITE_FILE}-journal"), "the crash left no journal behind"
        fast_restore(deployment, good.id, "--only", "database", "--confirm").succeeded()
        assert not deployment.host.exists(f"{SQLITE_FILE}-journal")
        assert (
            faults.sqlite(deployment.host, SQLITE_FILE, "PRAGMA integrity_check;").strip() == "ok"
        )
        assert deployment.tracker().status == "exited", (
            "a tracker that did not run before does not run after it"
        )
    as_backed_up(deployment, good)
    assert deployment.host.exists(
        f"{STAGING}/before-restore/storage/tracker/lib/database/{DATABASE['sqlite3']}-journal"
    )


# ---------------------------------------------------------------- symlinks


@dataclass(frozen=True)
class Link:
    """A symlink that a taken-over service plants in the place of something in its own directory."""

    path: str  # below the deploy directory
    target: str
    restores: bool  # whether a restore goes on, the link itself being what it replaces

    def __str__(self) -> str:
        return f"{self.path.removeprefix('storage/')}->{self.target}"


# Where a service can plant one: below the root of one of its own mounts.
LINKS = (
    Link("storage/tracker/lib/database", "/etc", False),
    Link(f"storage/tracker/lib/database/{DATABASE['sqlite3']}", "/etc/shadow", True),
    Link("storage/tracker/etc/tracker.toml", "/etc/shadow", True),
    Link("storage/grafana/data/grafana.db", "/etc/shadow", True),
    Link("storage/caddy/data/caddy/pki", "/etc", True),
)
# A link inside a directory that is archived whole may be archived as a link: nothing is read
# through it.
ARCHIVED = ("storage/tracker/etc/tracker.toml", "storage/caddy/data/caddy/pki")


@pytest.mark.only("sqlite3")
@pytest.mark.parametrize("link", LINKS, ids=str)
def test_no_symlink_of_a_service_leads_a_capture_or_a_restore_out_of_its_directory(
    deployment: Deployment, good: Good, link: Link
) -> None:
    host, planted = deployment.host, f"{DEPLOY_DIR}/{link.path}"
    targets = (
        "stat -c '%n %U:%G %a %s %Y %Z' /etc /etc/shadow /etc/passwd /opt/torrust/backup "
        "/opt/torrust/backup/*; sha256sum /etc/shadow; ls -A /etc"
    )
    # /etc/tracker-backup.conf is edited by the test itself.
    with deployment.configured(QUIESCE="none"):
        host.run("mv", planted, "/root/moved-away")
        host.run("ln", "-s", link.target, planted)
        before, files = host.sh(targets), faults.backups(host)
        try:
            captured = deployment.run()
            if captured.code != 0 or link.path not in ARCHIVED:
                assert captured.code == 1, captured.output
                assert re.search("symlink|not a regular file", captured.output), captured.output
                new, last = faults.backups(host).keys() - files.keys(), deployment.last_run()
                # Another service's database leaves the run incomplete: the rest is published.
                grafana = link.path.endswith("grafana.db")
                assert last["result"] == ("incomplete" if grafana else "failed")
                assert link.path not in last["paths"]
                assert len(new) == (3 if grafana else 1)
            else:
                listed = host.sh(
                    "tar --list --verbose --file "
                    f"{deployment.file(deployment.last_run(), 'config')}"
                )
                assert re.search(
                    rf"^l.* {re.escape(link.path)} -> {re.escape(link.target)}$",
                    listed,
                    re.MULTILINE,
                )
                assert f"{link.path}/" not in listed
            for secret in host.sh(
                f"find {DESTINATION} -newer {DESTINATION}/runs/{good.id}.json -name '*.gz' "
                f"-exec zcat {{}} + | grep -ac '^root:' || true"
            ).split():
                assert secret == "0"
            restored = fast_restore(deployment, good.id, "--confirm")
            assert host.sh(targets) == before
            if link.restores:
                restored.succeeded()
                assert host.run("test", "-L", planted, check=False).returncode != 0
                host.run("rm", "-rf", "/root/moved-away")
            else:
                assert restored.code == 1, restored.output
                assert re.search(rf"{re.escape(link.path)} is a symlink", restored.output), (
                    restored.output
                )
        finally:
            if host.exists("/root/moved-away"):
                # Not while the tracker makes a directory of its own there, at each of its starts.
                host.run("docker", "stop", "--time", "1", "tracker", "grafana", "caddy")
                host.run("rm", "-rf", planted)
                host.run("mv", "/root/moved-away", planted)
                host.run("docker", "start", "tracker", "grafana", "caddy")
    as_backed_up(deployment, good)


# ---------------------------------------------------------------- the playbooks


@pytest.mark.only("sqlite3")
def test_the_playbooks_verify_restore_and_tell(deployment: Deployment, good: Good) -> None:
    bundle, this = deployment.bundle, ("-e", f"backup_run={good.id}")
    assert f"verified {good.id}" in bundle.playbook("verify-backup", *this).succeeded().output
    deployment.query(SPOIL)
    planned = bundle.playbook("restore-backup", *this, "--check").succeeded()
    assert (
        f"restore of {good.id}" in planned.output and "dry run: nothing was done" in planned.output
    )
    unconfirmed = bundle.playbook("restore-backup", *this)
    assert unconfirmed.code != 0 and "confirm_restore=yes" in unconfirmed.output
    assert rows(deployment) != good.rows
    restored = bundle.playbook(
        "restore-backup", *this, "-e", "confirm_restore=yes", "-e", "restore_only=database"
    ).succeeded()
    assert f"restored database of {good.id}" in restored.output
    as_backed_up(deployment, good)
    tool(deployment.host, "acknowledge")
    output = bundle.playbook("backup-status", "-e", "output=json").succeeded().output
    told = json.JSONDecoder().raw_decode(output[output.index('{\n    "msg": {\n') :])[0]["msg"]
    assert (told["ok"], told["last_run"]["result"], told["last_verify"]["run"]) == (
        True,
        "success",
        good.id,
    )
    assert (told["hold"], told["unfinished"], told["drift"]) == (False, [], [])
    assert told["next_run"] > told["last_verify"]["at"][:16]


# ---------------------------------------------------------------- onto an empty machine

# The call at which a first attempt dies: when the files are in their place, or in the midst of the
# import.
HALF_DONE = {"sqlite3": "^compose .* up --detach$", "mysql": "binary-mode"}


def test_restore_onto_an_empty_machine(deployment: Deployment, good: Good) -> None:
    """Docker, the images, the backups and the bundle are all there is; nothing of ours was ever
    installed.
    """
    stack = STACKS[deployment.stack.driver]
    with Host(
        f"gen-backup-bundle-e2e-empty-{stack.driver}-{os.getpid()}",
        buildkit=stack.driver == "mysql",
    ) as empty:
        image = re.search(r"^IMAGE='(.*)'$", deployment.host.read(CONFIG), re.MULTILINE)
        assert image
        # Building it needs the network and half a minute; the installation has proved that both
        # builders do.
        _pipe(deployment.host, f"docker save {image[1]}", empty, "docker load")
        _pipe(
            deployment.host,
            f"tar -C {DESTINATION} -c .",
            empty,
            f"mkdir -p {DESTINATION} && tar -C {DESTINATION} -x",
        )
        local = subprocess.run(
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
            "bash", "-c", f"mkdir -p -m 0700 {BUNDLE} && tar -C {BUNDLE} -x", stdin=local.stdout
        )
        program = f"{BUNDLE}/host/tracker-backup"
        # What dies half-way leaves a machine that is as empty, and can be restored to again.
        died = strike(
            empty, program, "restore", good.id, "--confirm", at=HALF_DONE[stack.driver], do=DIE_ALL
        )
        assert died.code == 137, died.output
        if stack.driver == "sqlite3":
            tool(empty, "rollback", program=program).succeeded()
            assert empty.containers() == {}
            assert not empty.exists(f"{DEPLOY_DIR}/docker-compose.yml") and not empty.exists(
                f"{faults.STATE}/restore.json"
            )
        restored = tool(empty, "restore", good.id, "--confirm", program=program).succeeded()
        assert ("rolled back" in restored.output) == (stack.driver == "mysql")
        assert f"restored config and database of {good.id}" in restored.output
        if stack.driver == "mysql":
            # The stack's `.env` does not have the password that the tracker uses; a deployer's
            # does.
            mysql(
                empty, f"ALTER USER tracker_user@'%' IDENTIFIED BY '{_escaped(HOSTILE_PASSWORD)}'"
            )
        wait_for_tracker(empty)
        assert rows(_elsewhere(deployment, empty)) == good.rows
        now = picture(empty, databases=False)
        ours = {
            path
            for path in good.picture
            if path.startswith("./backup") or path == "./docker-compose.backup.yml"
        }
        different = {
            path: (good.picture.get(path), now.get(path))
            for path in good.picture.keys() - ours
            if good.picture.get(path) != now.get(path)
        }
        assert different == {}
        wait_until(
            "the stack to run",
            lambda: {one.status for one in empty.containers().values()} == {"running"},
            60,
        )
        assert empty.containers().keys() == deployment.host.containers().keys()
        if "grafana" in stack.services:
            assert (
                faults.sqlite(empty, GRAFANA, "SELECT * FROM dashboard;") == "1|Torrust tracker\n"
            )
        assert (
            json.loads(empty.read(f"{DESTINATION}/.tracker-backup.json"))["machine_id"]
            == empty.read("/etc/machine-id").strip()
        )


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


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")


def _elsewhere(deployment: Deployment, host: Host) -> Deployment:
    return Deployment(
        host,
        deployment.stack,
        deployment.bundle,
        deployment.key,
        deployment.before,
        deployment.checked,
        deployment.installed,
    )


# ---------------------------------------------------------------- one file, and a copy


def test_extract_gets_files_and_the_database_and_touches_nothing(
    deployment: Deployment, good: Good
) -> None:
    host, before, out = deployment.host, deployment.host.containers(), "/root/extracted"
    try:
        for path in (".env", f"{DEPLOY_DIR}/storage/tracker/etc/", "database"):
            tool(host, "extract", good.id, path, "-o", out).succeeded()
        assert host.read(f"{out}/.env") == host.read(f"{DEPLOY_DIR}/.env")
        assert host.sh(f"stat -c '%U %a' {out}/.env") == host.sh(
            f"stat -c '%U %a' {DEPLOY_DIR}/.env"
        )
        host.run("diff", "-r", f"{out}/etc", f"{DEPLOY_DIR}/storage/tracker/etc")
        if deployment.stack.driver == "sqlite3":
            file = f"{out}/sqlite_{good.id}.db"
            assert faults.sqlite(host, file, "SELECT count(*) FROM whitelist;") == "2\n"
        else:
            assert "0000000000000002" in host.read(f"{out}/mysql_{good.id}.sql")
        again = tool(host, "extract", good.id, ".env", "-o", out)
        assert (again.code, f"{out}/.env is there already" in again.output) == (1, True)
        gone = tool(host, "extract", good.id, "storage/gone", "-o", out)
        assert gone.code == 1 and "has no storage/gone" in gone.output, gone.output
    finally:
        host.run("rm", "-rf", out)
    assert untouched(before, host.containers())
    as_backed_up(deployment, good)


def test_a_copy_beside_what_runs_leaves_it_alone(deployment: Deployment, good: Good) -> None:
    host, place = deployment.host, "/srv/copy"
    words = ("restore", good.id, "--to", place, "--name", "copy")
    before, files = host.containers(), faults.backups(host)
    identity = host.read(f"{DESTINATION}/.tracker-backup.json")
    try:
        asked = tool(host, *words)
        assert asked.code == 2 and not host.exists(place), asked.output
        assert "publishes the same ports" in asked.output
        made = tool(host, *words, "--confirm").succeeded()
        after = host.containers()
        mine = {name for name in after if name.startswith("copy-")}
        assert {name: one for name, one in after.items() if name not in mine} == before
        assert host.read(f"{DESTINATION}/.tracker-backup.json") == identity
        assert faults.backups(host) == files
        host.run("diff", "-r", f"{place}/storage/tracker/etc", f"{DEPLOY_DIR}/storage/tracker/etc")
        command = re.search(r"then start it: (docker .*) up --detach", made.output)
        assert command
        if deployment.stack.driver == "mysql":
            assert {name: after[name].status for name in mine} == {"copy-mysql": "exited"}
            host.sh(f"{command[1]} start mysql")
            query = f'mysql -u root -p"$MYSQL_ROOT_PASSWORD" {DATABASE["mysql"]} -Ne "{COUNT}"'
            ask = ("docker", "exec", "copy-mysql", "sh", "-c", query)

            def answer() -> str:
                return host.run(*ask, check=False).stdout

            wait_until("the copy's server", lambda: answer() == "2\n", 60)
        else:
            assert mine == set()
            file = SQLITE_FILE.replace(DEPLOY_DIR, place)
            assert faults.sqlite(host, file, COUNT) == "2\n"
            # Published ports are the operator's to change; then the copy runs beside the other.
            host.sh(f"sed -i 's/^    ports:/    x-ports:/' {place}/docker-compose.yml")
            host.sh(f"{command[1]} up --detach")
            assert host.containers()["copy-tracker"].status == "running"
            assert untouched(before, host.containers(), but=("copy-tracker", *RUNNING_COPIES))
        again = tool(host, *words, "--confirm")
        assert again.code == 2 and "is not empty" in again.output
        host.sh(f"{command[1]} down")
    finally:
        host.sh(
            "docker ps --all --quiet --filter label=com.docker.compose.project=copy | "
            f"xargs --no-run-if-empty docker rm --force --volumes; rm -rf {place}"
        )
    as_backed_up(deployment, good)


# ---------------------------------------------------------------- lost connections


def test_a_lost_connection_does_not_end_a_restore_half_way(
    deployment: Deployment, good: Good
) -> None:
    """The program that Ansible started gets what Ctrl-C and a lost connection send, and is killed
    in the end; so are its parents.
    """
    host = deployment.host
    deployment.query(SPOIL)
    lost = "kill -HUP $FAULT_PID; sleep 0.2; kill -KILL $FAULT_PID; true"
    struck = strike(host, TOOL, "restore", good.id, "--confirm", at="step restore stopped", do=lost)
    assert struck.code in (129, 137), struck.output
    wait_until("the restore to end", lambda: not host.exists(f"{faults.STATE}/restore.json"), 120)
    wait_until(
        "its last words",
        lambda: (
            f"changed: restored config and database of {good.id}"
            in host.run("tail", "-n", "40", LOG).stdout
        ),
        30,
    )
    as_backed_up(deployment, good)


@pytest.mark.slow
@pytest.mark.only("sqlite3")
def test_ctrl_c_at_the_playbook_does_not_end_a_restore_half_way(
    deployment: Deployment, good: Good
) -> None:
    host, bundle, journal = deployment.host, deployment.bundle, f"{faults.STATE}/restore.json"
    deployment.query(SPOIL)
    options = ("-e", f"backup_run={good.id}", "-e", "confirm_restore=yes")
    with bundle.begun("restore-backup", *options) as playbook:
        wait_until("the restore to stop the stack", lambda: host.exists(journal), 300)
        os.killpg(playbook.pid, signal.SIGINT)
        host.run("pkill", "-KILL", "-f", "^sshd.*: torrust", check=False)
    assert playbook.returncode != 0
    assert host.exists(journal), "the restore was over before Ansible was ended"
    wait_until("the restore to end", lambda: not host.exists(journal), 120)
    as_backed_up(deployment, good)


@pytest.mark.only("sqlite3")
def test_a_mount_point_among_the_targets_is_refused_before_anything_stops(
    deployment: Deployment, good: Good
) -> None:
    host, before = deployment.host, deployment.host.containers()
    busy = f"{DEPLOY_DIR}/storage/caddy/data"
    host.run("mount", "--bind", busy, busy)
    try:
        refused = tool(host, "restore", good.id, "--confirm")
        assert refused.code == 1 and f"{busy} is a mount point" in refused.output, refused.output
        assert untouched(before, host.containers())
        fast_restore(deployment, good.id, "--only", "database", "--confirm").succeeded()
    finally:
        host.run("umount", busy)
    as_backed_up(deployment, good)


@pytest.mark.only("sqlite3")
def test_every_container_that_mounts_a_target_is_stopped_and_comes_back(
    deployment: Deployment, good: Good
) -> None:
    """A container of nobody's project writes into Caddy's directory, as a log shipper would."""
    host = deployment.host
    image = host.run("docker", "inspect", "--format", "{{.Config.Image}}", "tracker").stdout.strip()
    host.sh(
        f"docker run --detach --name stranger --entrypoint sleep --volume {DEPLOY_DIR}/storage:/x "
        f"{image} 3600"
    )
    try:
        struck = strike(host, TOOL, "restore", good.id, "--only", "config", "--confirm")
        struck.outcome.succeeded()
        stranger = host.containers()["stranger"].id
        assert f"stop {stranger}" in " ".join(struck.calls)
        assert host.containers()["stranger"].status == "running"
    finally:
        host.run("docker", "rm", "--force", "stranger")
    as_backed_up(deployment, good)


# ---------------------------------------------------------------- killed


# A restore works in a process of its own, so that a lost connection does not end it.
KILL_ALL = "pkill -KILL -f '[t]racker-backup (restore|rollback)'"
DIE_ALL = f"{KILL_ALL}; exit 1"

KILLED = {
    "sqlite3": [
        *(
            (f"step {step.name}", KILL_ALL, "before")
            for step in RESTORE_STEPS
            if step.name != "restore imported"
        ),
        ("^stop", KILL_ALL, "before"),  # while Docker stops the first container
        ("^start", KILL_ALL, "after"),
    ],
    "mysql": [
        *(
            (f"step restore {name}", KILL_ALL, "before")
            for name in ("stopped", "between two targets", "imported", "started")
        ),
        ("mysqldump", KILL_ALL, "before"),
        ("DROP DATABASE", DIE_ALL, "before"),
        ("DROP DATABASE", KILL_ALL, "after"),
        ("binary-mode", KILL_ALL, "before"),  # while the dump is imported
        ("binary-mode", KILL_ALL, "after"),
    ],
}


@pytest.fixture(scope="module")
def spoilt(deployment: Deployment, good: Good) -> Iterator[Good]:
    """The deployment as it was changed since the backup, which is what a roll-back must bring back;
    in the end the backup is restored after all.
    """
    deployment.query(SPOIL)
    deployment.host.sh(
        f"cd {DEPLOY_DIR} && printf '# mine\\n' | tee -a .env >>storage/tracker/etc/tracker.toml"
    )
    yield Good(good.run, rows(deployment), picture(deployment.host, databases=False))
    fast_restore(deployment, good.id, "--confirm").succeeded()
    as_backed_up(deployment, good)


@pytest.mark.parametrize(
    "step", [one if one == 4 else pytest.param(one, marks=pytest.mark.slow) for one in range(10)]
)
def test_a_restore_killed_at_any_step_is_rolled_back(
    deployment: Deployment, spoilt: Good, step: int
) -> None:
    killed_at = KILLED[deployment.stack.driver]
    if step >= len(killed_at):
        pytest.skip("this database has fewer steps")
    at, do, when = killed_at[step]
    host, before = deployment.host, deployment.host.containers()
    killed = strike(host, TOOL, "restore", spoilt.id, "--confirm", at=at, do=do, when=when)
    assert killed.code == 137, f"{at}: {killed.output}\n" + "\n".join(killed.calls)
    if at == "step restore prepared":  # nothing was touched, and the next run removes this
        host.sh(f"rm -r {STAGING}/*.restore")
    recover(host)
    wait_until("the roll-back", lambda: not host.exists(f"{faults.STATE}/restore.json"), 100)
    as_backed_up(deployment, spoilt)
    after = host.containers()
    assert {one: (now.id, now.status) for one, now in after.items()} == {
        one: (then.id, "running") for one, then in before.items()
    }, at
    assert recover(host) == Outcome(0, ""), "there is nothing more to recover"


@pytest.mark.parametrize(
    ("at", "do"),
    [
        ("step restore between two targets", f"rm -r {STAGING}/*.restore/new"),
        ("^start", "exit 1"),
        ("binary-mode", "exit 1"),
    ],
)
def test_a_restore_that_fails_is_rolled_back_at_once(
    deployment: Deployment, spoilt: Good, at: str, do: str
) -> None:
    if at == "binary-mode" and deployment.stack.driver != "mysql":
        pytest.skip("nothing is imported into SQLite")
    host, before = deployment.host, deployment.host.containers()
    failed = strike(host, TOOL, "restore", spoilt.id, "--confirm", at=at, do=do)
    assert (
        failed.code == 1
        and "error: the restore failed" in failed.output
        and "rolled back" in failed.output
    ), failed.output
    as_backed_up(deployment, spoilt)
    assert {name: (one.id, one.status) for name, one in host.containers().items()} == {
        name: (one.id, "running") for name, one in before.items()
    }


def test_a_roll_back_is_not_over_before_the_tracker_runs(
    deployment: Deployment, spoilt: Good
) -> None:
    host = deployment.host
    strike(host, TOOL, "restore", spoilt.id, "--confirm", at="^start", do=DIE_ALL)
    tried = strike(host, TOOL, "rollback", at="^start", do="exit 1")
    assert tried.code == 1 and "the tracker does not start" in tried.output, tried.output
    assert host.exists(f"{faults.STATE}/restore.json")
    recover(host).succeeded()
    as_backed_up(deployment, spoilt)
    assert deployment.tracker().status == "running"


def test_a_roll_back_stops_what_was_started_since(deployment: Deployment, spoilt: Good) -> None:
    host = deployment.host
    strike(host, TOOL, "restore", spoilt.id, "--confirm", at="^start", do=DIE_ALL)
    host.run("docker", "start", "tracker")
    rolled_back = strike(host, TOOL, "rollback")
    rolled_back.outcome.succeeded()
    tracker = deployment.tracker().id
    assert rolled_back.calls.index(f"stop {tracker}") < rolled_back.calls.index(f"start {tracker}")
    as_backed_up(deployment, spoilt)


@pytest.mark.only("mysql")
def test_without_a_server_nothing_is_stopped(deployment: Deployment, good: Good) -> None:
    host, tracker = deployment.host, deployment.tracker()
    host.run("docker", "stop", "--time", "10", "mysql")
    try:
        refused = tool(host, "restore", good.id, "--confirm")
        assert refused.code == 1 and "docker compose start mysql" in refused.output, refused.output
        assert deployment.tracker() == tracker
    finally:
        host.run("docker", "start", "mysql")
    wait_for_tracker(host)


@pytest.mark.only("sqlite3")
def test_no_room_to_unpack_is_said_before_anything_is_touched(
    deployment: Deployment, good: Good
) -> None:
    host, before = deployment.host, deployment.host.containers()
    suspended = status(host)["retention_suspended"]
    host.sh(f"mkdir -p {STAGING} && mount -t tmpfs -o size=32k,mode=0700 tmpfs {STAGING}")
    try:
        for words in (("verify", good.id), ("restore", good.id, "--confirm")):
            refused = tool(host, *words)
            assert refused.code == 1, refused.output
            said = f"(not enough space|bytes are left) in {STAGING}"
            assert re.search(said, refused.output), refused.output
        assert untouched(before, host.containers())
        assert status(host)["retention_suspended"] == suspended
    finally:
        host.run("umount", STAGING)


@pytest.mark.only("sqlite3")
def test_a_power_cut_while_files_are_swapped_is_rolled_back_after_the_boot(
    deployment: Deployment, spoilt: Good
) -> None:
    host = deployment.host
    with faults.striking(
        host,
        TOOL,
        "restore",
        spoilt.id,
        "--confirm",
        at="step restore between two targets",
        do="sleep 60",
    ):
        wait_until("the swap to be half done", lambda: host.exists(POINTS_REACHED), 60)
        host.power_cut()
    host.run("rm", "-rf", POINTS)
    if not faults.has_recovery_in_cron(host):
        recover(host).succeeded()
    wait_until("the roll-back", lambda: not host.exists(f"{faults.STATE}/restore.json"), 120)
    as_backed_up(deployment, spoilt)
