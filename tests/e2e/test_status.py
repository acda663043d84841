"""What status and doctor say on a real host, and that they and a dry run change nothing there."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from e2e import faults
from e2e.deployment import CONFIG, DESTINATION, SCRIPT, STAGING, Deployment
from e2e.faults import CAPTURE, STATE, strike, tracker_started_again
from e2e.host import Host, wait_until
from e2e.stack import DEPLOY_DIR

pytestmark = pytest.mark.only("sqlite3")

CRON = "/etc/cron.d/tracker-backup"
BEAT = f"{STATE}/cron"
STATUS_SECONDS = 1
# Content, mode and owner of every file of ours and of the deployment, and all that Docker has.
EVERYTHING = f"""
find {DEPLOY_DIR} {DESTINATION} {STATE} /etc /usr/local /var/log/tracker-backup.log \\
    -path '*/storage/*/data' -prune -o -path '{DEPLOY_DIR}/storage/tracker/lib' -prune -o \\
    -path {BEAT} -prune -o -printf '%p %m %U %G %y %l\\n' -type f -exec sha256sum {{}} + | sort
docker ps --all --no-trunc --format '{{{{.ID}}}} {{{{.Names}}}} {{{{.State}}}}' | sort
docker images --all --no-trunc --quiet | sort; docker volume ls --quiet; docker network ls --quiet
"""


def problems(host: Host, command: str = "status") -> list[str]:
    done = host.run("tracker-backup", command, "--json", check=False, seconds=300)
    told = json.loads(done.stdout)
    assert done.returncode == (0 if told["ok"] else 1), done.stdout + done.stderr
    if command == "status":
        return list(told["problems"])
    return [f"{one['check']}: {one['text']}" for one in told["findings"] if not one["advice"]]


@contextmanager
def broken(host: Host, break_it: str, repair: str) -> Iterator[None]:
    host.sh(break_it)
    try:
        yield
    finally:
        host.sh(repair)


def test_doctor_and_a_dry_run_change_nothing_where_all_is_well(deployment: Deployment) -> None:
    host = deployment.host
    deployment.run().succeeded()
    host.sh(f"mkdir {STAGING}/20260101_000000; touch {DESTINATION}/sqlite/x.partial")
    try:
        before = host.sh(EVERYTHING)
        assert "everything is ready" in deployment.run("--dry-run").succeeded().output
        assert host.sh(EVERYTHING) == before
        assert problems(host, "doctor") == []
        assert host.sh(EVERYTHING) == before
    finally:
        host.sh(f"rmdir {STAGING}/20260101_000000; rm -f {DESTINATION}/sqlite/x.partial")
    assert problems(host) == []
    # Of the processor, because other tests use the machine, too.
    took = "TIMEFORMAT='%U %S'; { time tracker-backup status >/dev/null 2>&1; } 2>&1"
    assert sum(map(float, host.run("bash", "-c", took).stdout.split())) < STATUS_SECONDS


def test_doctor_names_everything_that_is_broken_at_once(deployment: Deployment) -> None:
    host = deployment.host
    image = host.sh(f". {CONFIG}; echo $IMAGE").strip()
    with (
        broken(host, f"mount -o bind,ro {DESTINATION} {DESTINATION}", f"umount {DESTINATION}"),
        broken(host, "mount -o bind,noexec /usr/local/bin /usr/local/bin", "umount /usr/local/bin"),
        broken(host, f"docker tag {image} kept; docker rmi {image}", f"docker tag kept {image}"),
        broken(
            host,
            f"mv {DEPLOY_DIR}/docker-compose.yml {DEPLOY_DIR}/kept",
            f"mv {DEPLOY_DIR}/kept {DEPLOY_DIR}/docker-compose.yml",
        ),
    ):
        done = host.run("python3", "/usr/local/bin/tracker-backup", "doctor", check=False)
    assert done.returncode == 1
    for words in (
        f"destination: {DESTINATION} cannot be written",
        "programs: /usr/local/bin/maintenance-backup.sh cannot be executed",
        f"image: the image {image} is missing",
        f"compose: there is no {DEPLOY_DIR}/docker-compose.yml",
    ):
        assert f"PROBLEM: {words}" in done.stdout, done.stdout
    host.run("docker", "rmi", "kept")
    assert problems(host, "doctor") == []


@pytest.mark.only("mysql")
def test_doctor_proves_the_password_of_each_user(deployment: Deployment) -> None:
    """The one that dumps, and root, whom only a restore needs."""
    host, secrets = deployment.host, f"{DEPLOY_DIR}/backup/secrets"
    user, root = f"{secrets}/db_password", f"{secrets}/db_root_password"
    with broken(host, f"cp -p {user} kept; printf wrong >{user}", f"mv kept {user}"):
        (problem,) = problems(host, "doctor")
    assert problem.startswith("backup: ") and "denied" in problem, problem
    with broken(host, f"printf wrong >{root}", f"rm {root}"):
        (problem,) = problems(host, "doctor")
    assert problem.startswith("database: ") and "denied" in problem, problem
    assert problems(host, "doctor") == []


def test_cron_beats_each_minute(deployment: Deployment) -> None:
    """And the status knows when the daemon goes away, and when it comes back."""
    host = deployment.host
    host.run("rm", "-f", BEAT)
    wait_until("cron to beat", lambda: host.exists(BEAT), 70)
    with broken(host, "systemctl stop cron; touch -d '-5 min' " + BEAT, "systemctl start cron"):
        assert any("no cron daemon runs" in one for one in problems(host))
        host.run("touch", BEAT)
        assert problems(host) == []


@pytest.mark.slow
def test_a_cron_that_ignores_our_file_is_seen(deployment: Deployment) -> None:
    """Debian's cron takes no file of another user's."""
    host = deployment.host
    aged = f"touch -d '-10 min' {BEAT} {CRON}"
    with broken(host, f"chown nobody {CRON}; sleep 65; {aged}", f"chown root {CRON}"):
        time.sleep(65)
        assert any("has not called tracker-backup for 1" in one for one in problems(host))
    wait_until("cron to beat", lambda: problems(host) == [], 130)


@pytest.mark.slow
def test_a_run_that_could_not_bring_the_tracker_back_is_told(deployment: Deployment) -> None:
    host = deployment.host
    with tracker_started_again(deployment):
        with deployment.configured(QUIESCE="stop"):
            strike(host, SCRIPT, at=CAPTURE, do=f"touch {faults.HOLD}; {faults.KILL}; exit 1")
        (problem,) = problems(host)
        assert "the tracker was not brought back" in problem
        host.run("rm", faults.HOLD)
        faults.recover(host)
        (problem,) = problems(host)
        assert " died; its files are in " in problem
        deployment.run().succeeded()
        assert problems(host) == []


@pytest.mark.slow
def test_what_somebody_stopped_stays_stopped_when_docker_dies_in_a_run(
    deployment: Deployment,
) -> None:
    """Docker that was killed takes the whole stack down. The run starts it, but not Prometheus."""
    host = deployment.host
    do = (
        "docker stop prometheus; sleep 2; kill -KILL $(pidof dockerd); "
        "until docker version; do sleep 0.5; done"
    )
    with tracker_started_again(deployment):
        with deployment.configured(QUIESCE="pause"):
            done = strike(host, SCRIPT, at=CAPTURE, do=do)
        assert done.code == 1, done.output
        assert "Docker has died during this run" in done.output
        status = {name: one.status for name, one in host.containers().items()}
        assert status["prometheus"] == "exited", status
        assert {status[name] for name in ("tracker", "grafana", "caddy")} == {"running"}, status
