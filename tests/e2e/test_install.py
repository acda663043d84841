"""What installing does to a host, over SSH and by plain Ansible."""

from __future__ import annotations

import re
from datetime import datetime, timezone

import pytest

from e2e.bundle import REPOSITORY, Bundle
from e2e.deployment import CONFIG, DESTINATION, LOG, STAGING, Deployment
from e2e.host import wait_until
from e2e.stack import DEPLOY_DIR, HOSTILE_PASSWORD, ROOT_PASSWORD

SCHEDULES = REPOSITORY / "tests/schedule"

# A stretch of the password that looks the same however it is quoted.
CANARY = re.search(r"[0-9a-zA-Z]{20,}", HOSTILE_PASSWORD)

PLACES = {
    f"{DEPLOY_DIR}/docker-compose.backup.yml": "root:root 644",
    f"{DEPLOY_DIR}/backup": "root:root 755",
    f"{DEPLOY_DIR}/backup/Dockerfile": "root:root 644",
    f"{DEPLOY_DIR}/backup/.dockerignore": "root:root 644",
    f"{DEPLOY_DIR}/backup/backup.sh": "root:root 755",
    f"{DEPLOY_DIR}/backup/backup.py": "root:root 644",
    f"{DEPLOY_DIR}/backup/tracker_backup": "root:root 755",
    f"{DEPLOY_DIR}/backup/tracker_backup/protocol.py": "root:root 644",
    f"{DEPLOY_DIR}/backup/tracker_backup/worker": "root:root 755",
    f"{DEPLOY_DIR}/backup/tracker_backup/worker/reader.py": "root:root 644",
    f"{DEPLOY_DIR}/backup/backup.conf": "root:root 644",
    f"{DEPLOY_DIR}/backup/backup-paths.txt": "root:root 644",
    f"{DEPLOY_DIR}/backup/secrets": "root:root 700",
    STAGING: "root:root 700",
    f"{DESTINATION}/sqlite": "root:root 700",
    f"{DESTINATION}/mysql": "root:root 700",
    f"{DESTINATION}/config": "root:root 700",
    f"{DESTINATION}/runs": "root:root 700",
    f"{DESTINATION}/.tracker-backup.json": "root:root 600",
    "/usr/local/bin/maintenance-backup.sh": "root:root 755",
    "/usr/local/bin/tracker-backup": "root:root 755",
    "/usr/local/lib/tracker-backup": "root:root 755",
    "/usr/local/lib/tracker-backup/tracker_backup": "root:root 755",
    "/usr/local/lib/tracker-backup/tracker_backup/main.py": "root:root 644",
    "/usr/local/lib/tracker-backup/tracker_backup/drivers/sqlite.py": "root:root 644",
    CONFIG: "root:root 644",
    "/etc/cron.d/tracker-backup": "root:root 644",
    "/etc/logrotate.d/tracker-backup": "root:root 644",
    LOG: "root:root 640",
    "/var/lib/tracker-backup": "root:root 700",
}


def test_check_mode_on_a_fresh_host_passes(deployment: Deployment) -> None:
    deployment.checked.succeeded()
    assert deployment.checked.changed > 0


def test_everything_is_in_its_place_with_owner_and_mode(deployment: Deployment) -> None:
    assert {path: deployment.host.stat(path) for path in PLACES} == PLACES


def test_the_host_and_the_image_have_the_same_package(deployment: Deployment) -> None:
    host, library = deployment.host, "/usr/local/lib/tracker-backup"
    host.run(
        "diff", "--recursive", f"{DEPLOY_DIR}/backup/tracker_backup", f"{library}/tracker_backup"
    )
    left = host.sh(f"find {library} {DEPLOY_DIR}/backup -name '*.sh' -o -name '*.pyc'").split()
    assert left == [f"{DEPLOY_DIR}/backup/backup.sh"], (
        "nothing of an older bundle, nothing compiled"
    )
    image = host.sh(f"sed -n \"s/^IMAGE='\\(.*\\)'/\\1/p\" {CONFIG}").strip()
    digest = f"cd {library} && find tracker_backup -type f | sort | xargs sha256sum"
    command = ("docker", "run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-c")
    assert host.run(*command, digest).stdout == host.sh(digest)


def test_every_backup_is_for_root_alone(deployment: Deployment) -> None:
    listed = deployment.host.sh(
        f"find {DESTINATION}/{{sqlite,mysql,config,runs}} -type f -printf '%u:%g %m\\n' | sort -u"
    )
    assert listed == "root:root 600\n"


def test_installing_makes_the_first_backup(deployment: Deployment) -> None:
    first = deployment.runs()[0]
    assert (first["sequence"], first["result"], first["exit_code"]) == (1, "success", 0)
    assert f"run {first['id']} succeeded" in deployment.installed.output
    assert set(deployment.published()) >= {file["path"] for file in first["files"]} | {
        f"runs/{first['id']}.json"
    }
    assert {file["path"].partition("/")[0] for file in first["files"]} == {
        deployment.kind,
        "config",
    }


def test_installing_again_changes_nothing(deployment: Deployment) -> None:
    runs, containers = len(deployment.runs()), deployment.host.containers()
    again = deployment.bundle.playbook("install-backup", "--diff").succeeded()
    assert again.changed == 0, again.output
    assert len(deployment.runs()) == runs
    assert deployment.host.containers() == containers
    assert deployment.bundle.playbook("install-backup", "--check").succeeded().changed == 0


@pytest.mark.only("mysql")
def test_no_secret_shows_in_what_ansible_prints(deployment: Deployment) -> None:
    assert CANARY
    verbose = deployment.bundle.playbook("install-backup", "--diff", "-vvv").succeeded()
    for outcome in (deployment.checked, deployment.installed, verbose):
        assert CANARY[0] not in outcome.output
        assert ROOT_PASSWORD not in outcome.output


@pytest.mark.only("mysql")
def test_on_the_host_the_password_stands_in_its_secret_alone(deployment: Deployment) -> None:
    assert CANARY
    secret = f"{DEPLOY_DIR}/backup/secrets/db_password"
    places = (
        "/etc /usr/local /var/lib/tracker-backup /var/log /tmp /home /root"
        f" {DEPLOY_DIR}/backup {DEPLOY_DIR}/docker-compose.backup.yml {DESTINATION}/runs"
    )
    holders = deployment.host.sh(f"grep -rlF -- '{CANARY[0]}' {places} || true").splitlines()
    assert holders == [secret]
    assert deployment.host.stat(secret) == "root:root 600"
    assert deployment.host.read(secret) == HOSTILE_PASSWORD
    image = deployment.host.sh("docker images --quiet gen-backup-bundle/backup").strip()
    assert CANARY[0] not in deployment.host.sh(
        f"docker history --no-trunc {image}; docker inspect {image}"
    )
    assert not deployment.host.exists("/tmp/pwned")


@pytest.mark.only("mysql")
def test_the_deployers_own_backup_is_replaced_and_that_is_said(deployment: Deployment) -> None:
    for path in ("/usr/local/bin/maintenance-backup.sh", "/etc/cron.d/tracker-backup"):
        assert f"{path} was there before and is replaced" in deployment.installed.output
        assert "of the deployer" not in deployment.host.read(path)
    assert (
        "/opt/torrust/storage/backup/etc/backup.conf is of an older backup"
        in deployment.installed.output
    )


def test_every_builder_builds_the_image(deployment: Deployment) -> None:
    has_buildx = deployment.host.exists("/usr/libexec/docker/cli-plugins/docker-buildx")
    assert has_buildx == (deployment.stack.driver == "mysql")
    assert "changed: image gen-backup-bundle/backup:" in deployment.installed.output


def test_cron_itself_runs_the_backup(deployment: Deployment) -> None:
    """A new bundle brings another schedule and compression; Debian's cron then does the rest."""
    environment = deployment.stack.environment(
        deployment.key, {"schedule": "* * * * *", "compression": "zstd"}
    )
    known = {run["id"] for run in deployment.runs()}
    every_minute = Bundle.generate(
        environment, deployment.bundle.directory.with_name("every-minute"), deployment.host.address
    )
    try:
        updated = every_minute.playbook("install-backup").succeeded()
        assert updated.changed > 0
        asked = datetime.now(timezone.utc)
        wait_until(
            "cron to run the backup",
            lambda: bool({run["id"] for run in deployment.runs()} - known),
            150,
        )
    finally:
        deployment.bundle.playbook("install-backup").succeeded()
    run = next(run for run in deployment.runs() if run["id"] not in known)
    assert run["result"] == "success", run["reason"]
    assert datetime.strptime(run["started"], "%Y-%m-%dT%H:%M:%SZ").second < 10, (
        f"not begun with the minute: {run['started']}, asked {asked}"
    )
    assert all(file["path"].endswith(".zst") for file in run["files"])
    deployment.host.run(
        "zstd", "--test", *(f"{DESTINATION}/{file['path']}" for file in run["files"])
    )
    log = deployment.host.read(LOG)
    assert re.search(rf"^\S+ maintenance-backup\[\d+\]: run {run['id']} begins", log, re.MULTILINE)
    assert log.count(f"run {run['id']} succeeded") == 1


def test_debians_cron_accepts_the_schedule(deployment: Deployment) -> None:
    with deployment.scratch() as scratch:
        deployment.host.sh(
            f"sed 's/ root / /' /etc/cron.d/tracker-backup >{scratch}/crontab"
            f" && crontab -n {scratch}/crontab"
        )


@pytest.mark.only("sqlite3")
def test_debians_cron_agrees_with_the_table_of_schedules(deployment: Deployment) -> None:
    with deployment.scratch() as scratch:
        files = {
            f"{scratch.lstrip('/')}/{file.name}": file.read_text(encoding="utf-8")
            for file in SCHEDULES.iterdir()
            if file.is_file()
        }
        deployment.host.unpack(files, modes=dict.fromkeys(files, 0o755))
        deployment.host.run(f"{scratch}/check-debian")


def test_the_log_rotates_and_goes_on(deployment: Deployment) -> None:
    deployment.host.run("logrotate", "--force", "/etc/logrotate.d/tracker-backup")
    assert deployment.host.stat(LOG) == "root:root 640"
    assert deployment.host.exists(f"{LOG}.1")
    deployment.host.run("touch", "/var/lib/tracker-backup/hold")
    try:
        assert deployment.run().code == 3
    finally:
        deployment.host.run("rm", "/var/lib/tracker-backup/hold")
    assert "held: nothing is done" in deployment.host.read(LOG)


def test_the_playbooks_for_operators(deployment: Deployment) -> None:
    """Backing up now makes one more run, which the status shows."""
    before = len(deployment.runs())
    deployment.bundle.playbook("run-backup", "--check").succeeded()
    assert len(deployment.runs()) == before
    deployment.bundle.playbook("run-backup").succeeded()
    assert len(deployment.runs()) == before + 1
    status = deployment.bundle.playbook("backup-status").succeeded()
    assert deployment.last_run()["id"] in status.output
    assert status.changed == 0
