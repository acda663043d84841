"""Cases from public reports of other backup tools, on a real host; each test names its case."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from e2e.bundle import Bundle, Outcome
from e2e.deployment import DESTINATION, RUN_SECONDS, STAGING, Deployment
from e2e.host import Host, wait_until
from e2e.stack import DEPLOY_DIR

pytestmark = pytest.mark.only("sqlite3")

CRON = "/etc/cron.d/tracker-backup"
REPOSITORY = "/srv/restic"
PLANTED = f"{DEPLOY_DIR}/storage/tracker/etc/large.bin"
LARGE = 200 << 20
REAL = "/srv/torrust-real"


def tool(host: Host, *words: str) -> Outcome:
    done = host.run("tracker-backup", *words, check=False, seconds=600)
    return Outcome(done.returncode, done.stdout + done.stderr)


def status(deployment: Deployment) -> dict[str, Any]:
    """What `status --json` says, whether something is wrong or not."""
    done = deployment.host.run("tracker-backup", "status", "--json", check=False)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@contextmanager
def installed(deployment: Deployment, section: dict[str, Any]) -> Iterator[Bundle]:
    """A bundle with another section `backup`, for as long as the block lasts."""
    folder = deployment.bundle.directory.parent / "reports"
    folder.mkdir(exist_ok=True)
    address = deployment.host.address
    environment = deployment.stack.environment(deployment.key, section)
    bundle = Bundle.generate(environment, folder / "bundle", address)
    try:
        bundle.playbook("install-backup", "-e", "backup_on_install=false").succeeded()
        yield bundle
    finally:
        deployment.bundle.playbook("install-backup", "-e", "backup_on_install=false").succeeded()


def sha256(host: Host, path: str) -> str:
    return host.run("sha256sum", path, seconds=120).stdout.split()[0]


def test_p01_restic_copies_a_backup_of_200_mb(deployment: Deployment) -> None:
    host = deployment.host
    section = {"quiesce": "none", "restic": {"repository": REPOSITORY, "password": "restic's own"}}
    host.run("mkdir", "--parents", REPOSITORY)
    host.sh(f"head -c {LARGE} /dev/urandom >{PLANTED}; chmod 0644 {PLANTED}")
    try:
        with installed(deployment, section):
            made = deployment.run().succeeded()
            run = deployment.last_run()
            assert f"copied {run['id']} to the restic repository" in made.output
            assert host.sh(f"ls -A {STAGING}") == ""
            archive = deployment.file(run, "config")
            assert int(host.run("stat", "--format=%s", archive).stdout) >= LARGE
            before = sha256(host, archive)
            host.sh(f"rm {archive} {DESTINATION}/runs/{run['id']}.json")
            restored = tool(
                host, "restore", run["id"], "--from", "restic", "--only", "config", "--confirm"
            ).succeeded()
            assert f"fetched {run['id']} from the restic repository" in restored.output
            assert sha256(host, archive) == before
            assert host.sh(f"ls -A {STAGING}") == "before-restore\n"
    finally:
        host.run("rm", "-rf", PLANTED, REPOSITORY, f"{STAGING}/before-restore")
    tool(host, "acknowledge")


def test_p02_an_image_is_there_under_any_spelling(deployment: Deployment) -> None:
    """The local network has no registry: a pull would fail. One spelling is installed, too."""
    host = deployment.host
    spellings = ("mybackup", "registry:5000/x:1", "localhost/a_b.c", "me/mybackup:1")
    section: dict[str, Any] = {
        "quiesce": "none",
        "restic": {"repository": REPOSITORY, "password": "restic's own"},
    }
    host.run("mkdir", "--parents", REPOSITORY)
    # An earlier test removed its repository on purpose.
    host.run("rm", "-f", "/var/lib/tracker-backup/remote.json")
    try:
        with installed(deployment, section):
            image = host.sh(". /etc/tracker-backup.conf; echo $IMAGE").strip()
            for spelling in spellings:
                host.run("docker", "tag", image, spelling)
                with deployment.configured(IMAGE=spelling, IMAGE_SOURCE="pull"):
                    deployment.run().succeeded()
                    tool(host, "push").succeeded()
                    tool(host, "verify").succeeded()
        spelling = "docker.io/me/mybackup:1"
        with installed(deployment, section | {"image": spelling}) as bundle:
            assert bundle.playbook("install-backup", "--check").succeeded().changed == 0
            assert spelling in host.read("/etc/tracker-backup.conf")
            deployment.run().succeeded()
            tool(host, "push").succeeded()
    finally:
        host.run("docker", "rmi", *spellings, check=False)
        host.run("rm", "-rf", REPOSITORY)


def test_p03_the_deploy_directory_is_a_link(deployment: Deployment) -> None:
    """The stack was started through one path, and the backup is configured with the other."""
    host = deployment.host
    compose = f"docker compose --project-directory {DEPLOY_DIR} --project-name torrust"
    script = (
        f"{compose} stop && mv {DEPLOY_DIR} {REAL} && ln -s {REAL} {DEPLOY_DIR} && "
        f"docker compose --project-directory {REAL} --project-name torrust up -d --force-recreate"
    )
    try:
        host.sh(script, seconds=RUN_SECONDS)
        deployment.wait_for_tracker()
        deployment.bundle.playbook("install-backup", "-e", "backup_on_install=false").succeeded()
        deployment.run().succeeded()
        run = deployment.last_run()
        assert run["directories"]["storage/tracker/lib"]["uid"] == 1000
        assert status(deployment)["problems"] == []
        tool(host, "verify").succeeded()
        tool(host, "restore", run["id"], "--confirm").succeeded()
        deployment.wait_for_tracker()
        assert host.run("test", "-L", DEPLOY_DIR, check=False).returncode == 0
    finally:
        host.sh(
            f"{compose} stop; rm {DEPLOY_DIR} && mv {REAL} {DEPLOY_DIR}; {compose} up -d; "
            f"rm -rf {STAGING}/before-restore",
            seconds=RUN_SECONDS,
        )
        deployment.wait_for_tracker()


def test_p04_without_a_cron_daemon_installing_is_refused(deployment: Deployment) -> None:
    host = deployment.host
    listing = f"sha256sum {CRON} /etc/tracker-backup.conf {DEPLOY_DIR}/backup/*.sh; ls -l {CRON}"
    before = host.sh(listing)
    host.sh("systemctl stop cron && systemctl mask --runtime cron")
    try:
        refused = deployment.bundle.playbook("install-backup")
        assert refused.code != 0
        assert "no cron daemon runs on this host" in refused.output
        assert "apt-get install cron" in refused.output
        assert host.sh(listing) == before
        host.run("touch", "--date=-5 min", "/var/lib/tracker-backup/cron")
        told = status(deployment)
        assert told["cron"] is False
        assert any("no cron daemon runs" in problem for problem in told["problems"])
    finally:
        host.sh("systemctl unmask --runtime cron && systemctl start cron")
    wait_until("the next beat", lambda: status(deployment)["cron"], 90)


OVERRIDE = """\
services:
  index:
    image: torrust/tracker:develop
    entrypoint: [sleep, infinity]
    volumes: ["./storage/index:/data", "index:/more", "/srv/of-others:/theirs:ro"]
  exporter:
    image: torrust/tracker:develop
    entrypoint: [sleep, infinity]
    network_mode: service:tracker
volumes:
  index:
"""


@contextmanager
def further_services(deployment: Deployment) -> Iterator[None]:
    """An override file with two services, which Compose reads by itself."""
    host = deployment.host
    file = f"{DEPLOY_DIR}/docker-compose.override.yml"
    host.sh("mkdir -p /srv/of-others")
    host.unpack({f"{DEPLOY_DIR}/storage/index".lstrip("/"): None, file.lstrip("/"): OVERRIDE})
    compose = f"docker compose --project-directory {DEPLOY_DIR}"
    host.sh(f"{compose} up --detach --no-deps index exporter", seconds=RUN_SECONDS)
    try:
        yield
    finally:
        host.sh(
            f"{compose} rm --stop --force index exporter; docker volume rm torrust_index; "
            "docker network rm torrust_default; "
            f"rm -rf {file} {DEPLOY_DIR}/storage/index /srv/of-others",
            seconds=RUN_SECONDS,
        )


def test_p07_what_further_services_have_is_archived_or_named(deployment: Deployment) -> None:
    host = deployment.host
    with further_services(deployment):
        deployment.run().succeeded()
        run = deployment.last_run()
        assert run["compose_files"] == ["docker-compose.yml", "docker-compose.override.yml"]
        members = host.sh(f"tar -tf {deployment.file(run, 'config')}").splitlines()
        assert {"docker-compose.yml", "docker-compose.override.yml", ".env"} <= set(members)
        (warning,) = [one for one in run["warnings"] if "the service index mounts" in one]
        for mount in ("./storage/index", "the volume torrust_index", "/srv/of-others, outside of"):
            assert mount in warning
        tool(host, "verify").succeeded()
        host.sh(f"sed -i 's/infinity/1000000/' {DEPLOY_DIR}/docker-compose.override.yml")
        tool(host, "restore", run["id"], "--only", "config", "--confirm").succeeded()
        assert host.read(f"{DEPLOY_DIR}/docker-compose.override.yml") == OVERRIDE
        deployment.wait_for_tracker()
    deployment.run().succeeded()
    assert deployment.last_run()["warnings"] == []


@pytest.mark.parametrize("name", ["compose.yaml", "docker-compose.yaml", "deploy/stack.yml"])
def test_p07_the_compose_file_may_have_another_name(deployment: Deployment, name: str) -> None:
    host, usual = deployment.host, f"{DEPLOY_DIR}/docker-compose.yml"
    compose = f"docker compose --project-directory {DEPLOY_DIR}"
    host.sh(
        f"mkdir -p {DEPLOY_DIR}/deploy && mv {usual} {DEPLOY_DIR}/{name} && "
        f"{compose} --file {DEPLOY_DIR}/{name} up --detach --force-recreate --no-deps tracker",
        seconds=RUN_SECONDS,
    )
    try:
        deployment.wait_for_tracker()
        deployment.run().succeeded()
        run = deployment.last_run()
        assert (run["result"], run["compose_files"]) == ("success", [name])
        assert name in host.sh(f"tar -tf {deployment.file(run, 'config')}").splitlines()
    finally:
        host.sh(
            f"mv {DEPLOY_DIR}/{name} {usual}; rmdir {DEPLOY_DIR}/deploy; "
            f"{compose} up --detach --force-recreate --no-deps tracker",
            seconds=RUN_SECONDS,
        )
        deployment.wait_for_tracker()


def test_p08_p12_p44_what_a_stop_does_to_the_network_is_told(deployment: Deployment) -> None:
    """A rule for IPv6 is lost while the tracker is down, as Docker lost one."""
    host, rule = deployment.host, "FORWARD -p udp -m udp --dport 6969 -j ACCEPT"
    host.sh(f"ip6tables -A {rule}")
    try:
        with further_services(deployment), deployment.configured(QUIESCE="stop"):
            with deployment.running() as run:
                run.hold_capture()
                host.sh(f"ip6tables -D {rule}")
                run.release_capture()
                run.wait().succeeded()
            manifest = deployment.last_run()
            told = "\n".join(manifest["warnings"])
            assert "the service exporter uses the network of the tracker" in told
            assert "the firewall (ip6tables-save) is not as it was" in told
            assert f"gone: -A {rule}" in told
            assert "does not answer any more" not in told
            # The real tracker 3.0.0 ignores TERM.
            assert manifest["killed"] is True
            assert manifest["durations"]["stop"] >= 9
    finally:
        host.sh(f"ip6tables -D {rule}", check=False)
    deployment.wait_for_tracker()


GRAFANA = f"{DEPLOY_DIR}/storage/grafana/data/grafana.db"


def test_p28_the_database_of_a_stopped_grafana_in_wal_mode_is_captured(
    deployment: Deployment,
) -> None:
    host, compose = deployment.host, f"docker compose --project-directory {DEPLOY_DIR}"
    host.sh(f"{compose} stop grafana && sqlite3 {GRAFANA} 'PRAGMA journal_mode=WAL'")
    try:
        assert not host.exists(f"{GRAFANA}-wal")
        deployment.run().succeeded()
        run = deployment.last_run()
        assert (run["result"], run["warnings"]) == ("success", [])
        members = host.sh(f"tar -tf {deployment.file(run, 'config')}").splitlines()
        assert GRAFANA.removeprefix(f"{DEPLOY_DIR}/") in members
    finally:
        host.sh(f"sqlite3 {GRAFANA} 'PRAGMA journal_mode=DELETE'; {compose} start grafana")


REGISTRY = "localhost:5000/torrust/tracker"
REGISTRY_CONFIG = """\
version: 0.1
storage:
  filesystem:
    rootdirectory: /var/lib/docker-registry
http:
  addr: 127.0.0.1:5000
"""
USE_RECORDED = """
import sys
sys.path.insert(0, "/usr/local/lib/tracker-backup")
from pathlib import Path
from tracker_backup.documents import RunManifest
from tracker_backup.stack import use_recorded_images
use_recorded_images(RunManifest.read(Path(sys.argv[1])).releases)
"""


def pushed(host: Host, version: str) -> None:
    """The registry's tag `develop` means this version from now on."""
    text = f"FROM torrust/tracker:develop\nLABEL org.opencontainers.image.version={version}\n"
    name = f"{REGISTRY}:develop"
    host.run("docker", "build", "--tag", name, "-", stdin=text, seconds=RUN_SECONDS)
    host.run("docker", "push", name, seconds=RUN_SECONDS)


@contextmanager
def registry(host: Host) -> Iterator[None]:
    """Debian's docker-registry, on the host's loopback."""
    host.sh(
        "apt-get update --quiet=2 && DEBIAN_FRONTEND=noninteractive apt-get install --yes "
        "--quiet=2 --no-install-recommends docker-registry && systemctl stop docker-registry",
        seconds=RUN_SECONDS,
    )
    # Debian's own configuration wants a password.
    host.unpack({"etc/docker/registry/config.yml": REGISTRY_CONFIG})
    host.run("systemctl", "start", "docker-registry")
    try:
        wait_until(
            "the registry",
            lambda: host.run("curl", "-fsS", "localhost:5000/v2/", check=False).returncode == 0,
            30,
        )
        yield
    finally:
        host.sh("systemctl stop docker-registry; rm -rf /var/lib/docker-registry/*")


@pytest.mark.slow
def test_p42_a_restore_takes_the_image_that_a_run_recorded(deployment: Deployment) -> None:
    host, name = deployment.host, f"{REGISTRY}:develop"
    usual, compose = "torrust/tracker:develop", f"docker compose --project-directory {DEPLOY_DIR}"
    file = f"{DEPLOY_DIR}/docker-compose.yml"

    def use(image: str) -> None:
        host.sh(
            f"sed -i 's|image: .*tracker:develop|image: {image}|' {file} && "
            f"{compose} up --detach --no-deps tracker",
            seconds=RUN_SECONDS,
        )
        deployment.wait_for_tracker()

    with registry(host):
        pushed(host, "3.0.0")
        try:
            use(name)
            deployment.run().succeeded()
            run = deployment.last_run()
            release = run["releases"]["tracker"]
            assert (release["name"], release["version"]) == (name, "3.0.0")
            assert release["digest"].startswith(f"{REGISTRY}@sha256:")
            assert run["releases"]["caddy"]["digest"] == ""  # no registry has it
        finally:
            use(usual)
        pushed(host, "4.0.0")
        host.run("docker", "rmi", "--force", name, release["digest"], check=False)
        command = ["python3", "-c", USE_RECORDED, f"{DESTINATION}/runs/{run['id']}.json"]
        told = host.run(*command, seconds=RUN_SECONDS).stdout
        label = '{{index .Config.Labels "org.opencontainers.image.version"}}'
        found = host.run("docker", "image", "inspect", "--format", label, name).stdout
        assert found == "3.0.0\n"
        assert f"{name} means another image today (4.0.0, " in told
        assert "they differ in the major version" in told
        assert "no registry knows the image that caddy had" in told
        host.run("docker", "rmi", "--force", name, release["digest"], check=False)
        pushed(host, "4.0.0")
    told = host.run(*command, seconds=RUN_SECONDS).stdout
    assert f"{release['digest']}, which tracker had, cannot be pulled" in told
    found = host.run("docker", "image", "inspect", "--format", label, name).stdout
    assert found == "4.0.0\n"
    host.run("docker", "rmi", "--force", name)


def test_p20_a_table_that_is_gone_suspends_retention_and_no_backup(
    deployment: Deployment,
) -> None:
    deployment.query("CREATE TABLE further (id INTEGER)")
    with deployment.configured(QUIESCE="none"):
        try:
            deployment.run().succeeded()
            before = deployment.last_run()["id"]
        finally:
            deployment.query("DROP TABLE further")
        deployment.run().succeeded()
        run = deployment.last_run()
        assert any("further" in warning for warning in run["warnings"])
        gone = f"the table further is gone in {run['id']}; it had 0 rows in {before}"
        assert gone in status(deployment)["retention_suspended"]
        tool(deployment.host, "acknowledge").succeeded()
        deployment.run().succeeded()
        assert not any("further" in warning for warning in deployment.last_run()["warnings"])
    assert status(deployment)["retention_suspended"] == []
