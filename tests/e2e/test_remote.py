"""Copies in a restic repository: on every kind of server, restored onto an empty host, and whatever
goes wrong on the way.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e import servers
from e2e.bundle import Bundle, Outcome, ssh_key
from e2e.deployment import DESTINATION, LOG, STAGING, Deployment
from e2e.faults import STATE, rows
from e2e.host import Host, wait_until
from e2e.servers import Server
from e2e.stack import DEPLOY_DIR, Stack, wait_for_tracker
from e2e.test_restore import BUNDLE, FILL, _elsewhere, _pipe, tool

SECRETS = f"{DEPLOY_DIR}/backup/secrets"
KEPT_SECRET = (
    servers.PASSWORD,
    servers.REST_PASSWORD,
    servers.ACCESS_KEY["AWS_SECRET_ACCESS_KEY"],
    "PRIVATE KEY",
)
MAKERS: dict[str, Callable[[Host, Path], Server]] = {
    "local": lambda host, _: servers.local(host),
    "sftp": lambda host, folder: servers.sftp(host, folder / "sftp"),
    "rest": lambda host, _: servers.rest(host),
    "s3": lambda host, _: servers.s3(host),
}


@pytest.fixture(scope="module")
def plain(docker: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A host with a small stack; every test installs a bundle of its own there."""
    folder, stack = tmp_path_factory.mktemp("remote"), Stack("sqlite3")
    key = ssh_key(folder)
    with Host(f"gen-backup-bundle-e2e-remote-{os.getpid()}") as host:
        host.authorize(key.with_suffix(".pub").read_text(encoding="utf-8"))
        stack.bring_up(host)
        nothing = Outcome(0, "")
        deployment = Deployment(
            host, stack, Bundle(folder / "bundle"), key, frozenset(), nothing, nothing
        )
        deployment.query(FILL)
        yield deployment


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, plain: Deployment) -> Server:
    """One kind of server on that host, with the bundle installed that copies to it."""
    made = MAKERS[request.param](plain.host, plain.bundle.directory.parent)
    section = {"quiesce": "none", "restic": made.section}
    bundle = Bundle.generate(
        plain.stack.environment(plain.key, section), plain.bundle.directory, plain.host.address
    )
    bundle.playbook("install-backup", "-e", "backup_on_install=false").succeeded()
    return made


def each_server(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("server", names, indirect=True, scope="module")


def remote(deployment: Deployment) -> dict[str, object]:
    """What the status says of the repository."""
    told = json.loads(tool(deployment.host, "status", "--json").output)["remote"]
    assert isinstance(told, dict)
    return told


def a_good_run(deployment: Deployment) -> str:
    """Makes a backup that is copied; returns its id."""
    made = deployment.run().succeeded()
    run = str(deployment.last_run()["id"])
    assert f"copied {run} to the restic repository" in made.output
    assert remote(deployment) | {"checked": None} == {
        "last_pushed": run,
        "pending": [],
        "error": "",
        "checked": None,
    }
    return run


def nothing_is_left(deployment: Deployment) -> None:
    """Neither our containers nor anything in staging, and no secret in the log."""
    assert not [name for name in deployment.host.containers() if name.startswith("tracker-backup")]
    assert deployment.host.sh(f"ls -A {STAGING}") == ""
    log = deployment.host.read(LOG)
    assert not [secret for secret in KEPT_SECRET if secret in log]


def restored_onto_an_empty_host(deployment: Deployment, server: Server, run: str) -> None:
    """From the repository alone: there is no destination yet; row for row."""
    expected = rows(deployment)
    with Host(f"gen-backup-bundle-e2e-from-{server.name}-{os.getpid()}") as empty:
        empty.authorize(deployment.key.with_suffix(".pub").read_text(encoding="utf-8"))
        image = next(
            line
            for line in deployment.host.read("/etc/tracker-backup.conf").splitlines()
            if line.startswith("IMAGE=")
        ).split("'")[1]
        _pipe(deployment.host, f"docker save {image}", empty, "docker load")
        if server.name == "local":
            _pipe(
                deployment.host,
                f"tar -C {servers.DIRECTORY} -c .",
                empty,
                f"mkdir -p {servers.DIRECTORY} && tar -C {servers.DIRECTORY} -x",
            )
        if server.name in ("rest", "sftp"):
            options = (
                "-e",
                f"target_host={empty.address}",
                "-e",
                "restore_from=restic",
                "-e",
                f"backup_run={run}",
                "-e",
                "confirm_restore=yes",
            )
            restored = deployment.bundle.playbook("restore-backup", *options).succeeded()
        else:  # without Ansible: the bundle copied by hand, its secrets with it
            packed = subprocess.run(
                ["tar", "-C", str(deployment.bundle.directory), "-c", "."],
                check=True,
                timeout=60,
                capture_output=True,
            ).stdout
            empty.run(
                "bash", "-c", f"mkdir -p -m 0700 {BUNDLE} && tar -C {BUNDLE} -x", stdin=packed
            )
            restored = tool(
                empty,
                "restore",
                "--from",
                "restic",
                "--confirm",
                program=f"{BUNDLE}/host/tracker-backup",
            ).succeeded()
        assert f"changed: fetched {run} from the restic repository" in restored.output
        wait_for_tracker(empty)
        assert rows(_elsewhere(deployment, empty)) == expected
        assert empty.read(f"{DEPLOY_DIR}/.env") == deployment.host.read(f"{DEPLOY_DIR}/.env")
        assert empty.stat(f"{DEPLOY_DIR}/.env") == deployment.host.stat(f"{DEPLOY_DIR}/.env")
        assert empty.stat(f"{DESTINATION}/runs/{run}.json") == "root:root 600"
        assert not empty.exists(f"{DESTINATION}/.fetch") and not empty.exists(
            f"{STATE}/restic-secrets"
        )


@each_server("rest", "s3", "sftp", "local")
def test_every_server_takes_a_run_and_gives_it_back_to_an_empty_host(
    plain: Deployment, server: Server
) -> None:
    first = a_good_run(plain)
    planned = tool(plain.host, "restore", "--from", "restic", "--dry-run").succeeded()
    assert f"restore of {first}" in planned.output and "dry run: nothing was done" in planned.output
    verified = tool(plain.host, "verify").succeeded()
    assert f"verified {first}" in verified.output
    checked = remote(plain)["checked"]
    assert isinstance(checked, dict) and checked["problem"] == ""
    asked = tool(plain.host, "restore", "--from", "restic")
    assert asked.code == 2 and "--confirm" in asked.output
    restored_onto_an_empty_host(plain, server, first)
    nothing_is_left(plain)


@each_server("rest", "s3", "sftp")
def test_a_server_that_is_down_fails_the_run_alone_and_the_next_makes_up_for_it(
    plain: Deployment, server: Server
) -> None:
    a_good_run(plain)
    server.stop()
    try:
        failed = plain.run()
    finally:
        server.start()
    missed = plain.last_run()
    assert failed.code == 1 and "the server cannot be reached" in failed.output, failed.output
    assert missed["result"] == "success" and "cannot be reached" in missed["warnings"][-1]
    assert tool(plain.host, "status").code == 1
    assert remote(plain)["pending"] == [missed["id"]]
    made_up = plain.run().succeeded()
    assert f"copied {missed['id']} to the restic repository" in made_up.output
    assert tool(plain.host, "status").code == 0
    nothing_is_left(plain)


WRONG_KEYS = {
    "rest": ("restic_repository", f"sed -i s/{servers.REST_PASSWORD}/another-password/ {{}}"),
    "s3": ("restic_environment", "sed -i s/e2e-secret-access-key/another-secret-key/ {}"),
    "sftp": ("restic_ssh_key", "rm {0} && ssh-keygen -q -t ed25519 -N '' -f {0} && rm {0}.pub"),
}


@each_server("rest", "s3", "sftp")
def test_wrong_keys_a_wrong_password_and_a_strange_server_are_told_apart(
    plain: Deployment, server: Server
) -> None:
    run, host = a_good_run(plain), plain.host
    name, spoil = WRONG_KEYS[server.name]
    spoilt = [
        (name, spoil, " away"),
        ("restic_password", "printf wrong >{}", "the repository's password is wrong"),
    ]
    if server.name == "sftp":
        spoilt.append(("restic_known_hosts", ": >{}", "the server's key is not in the file"))
    for secret, script, reason in spoilt:
        path = f"{SECRETS}/{secret}"
        host.run("cp", "-p", path, "/root/secret")
        try:
            host.sh(script.format(path))
            failed = tool(host, "push")
        finally:
            host.run("mv", "/root/secret", path)
        assert failed.code == 1 and reason in failed.output, failed.output
    tool(host, "push").succeeded()
    assert remote(plain)["last_pushed"] == run
    nothing_is_left(plain)


FREEZE_RESTIC_WITH_ITS_LOCK = """
for ((n = 0; n < 6000; n++)); do
    [[ -z $(ls /srv/rest/torrust/locks) ]] || ! pkill -STOP -f '^restic .* backup ' || break
    sleep 0.01
done
[[ -n $(ls /srv/rest/torrust/locks) ]]
"""


@each_server("rest")
def test_a_run_killed_in_mid_push_leaves_a_lock_that_the_next_one_takes_away(
    plain: Deployment, server: Server
) -> None:
    host = plain.host
    a_good_run(plain)
    with plain.running() as run:
        host.sh(FREEZE_RESTIC_WITH_ITS_LOCK, seconds=120)
        run.signal("KILL")
        run.wait()
    missed = plain.last_run()
    assert missed["result"] == "success" and tool(host, "status").code == 1
    made_up = plain.run().succeeded()
    assert f"copied {missed['id']} to the restic repository" in made_up.output
    assert host.sh("ls /srv/rest/torrust/locks") == ""
    assert remote(plain)["pending"] == []
    nothing_is_left(plain)


@each_server("rest")
def test_the_lock_of_another_live_restic_is_told_and_left_alone(
    plain: Deployment, server: Server
) -> None:
    host = plain.host
    a_good_run(plain)
    files = (
        f"--repository-file {SECRETS}/restic_repository --password-file {SECRETS}/restic_password"
    )
    other = host.spawn("bash", "-c", f"sleep 300 | restic {files} --no-cache backup --stdin")
    try:
        wait_until("the other's lock", lambda: host.sh("ls /srv/rest/torrust/locks") != "", 60)
        failed = plain.run()
        assert host.sh("ls /srv/rest/torrust/locks") != ""
    finally:
        host.run("pkill", "-KILL", "-f", "^sleep 300", check=False)
        other.communicate(timeout=60)
    assert failed.code == 1 and "locked by another restic" in failed.output, failed.output
    assert remote(plain)["pending"] == []
    plain.run().succeeded()
    nothing_is_left(plain)


@each_server("local")
def test_a_repository_that_is_gone_is_not_made_anew(plain: Deployment, server: Server) -> None:
    host = plain.host
    a_good_run(plain)
    host.sh(f"mv {servers.DIRECTORY} {servers.DIRECTORY}.away && mkdir {servers.DIRECTORY}")
    try:
        failed = plain.run()
        assert host.sh(f"ls -A {servers.DIRECTORY}") == ""
    finally:
        host.sh(f"rmdir {servers.DIRECTORY} && mv {servers.DIRECTORY}.away {servers.DIRECTORY}")
    assert failed.code == 1 and "is gone: is its disk mounted" in failed.output, failed.output
    plain.run().succeeded()
    assert remote(plain)["pending"] == []
