"""The sidecar runs by its own cron, beside a tracker that it never touches.

It comes back when it is removed, and leaves nothing when the strategy changes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from e2e import faults
from e2e.bundle import Bundle, Outcome, ssh_key
from e2e.conftest import STACKS
from e2e.deployment import CONFIG, DESTINATION, STAGING, Deployment, Run
from e2e.faults import picture, rows
from e2e.host import Container, Host, wait_until
from e2e.stack import (
    DATABASE,
    DEPLOY_DIR,
    HOSTILE_PASSWORD,
    SQLITE_FILE,
    Stack,
    compose,
    mysql,
    sqlite,
    untouched,
    wait_for_tracker,
)
from e2e.steps import POINTS, PREPARE
from e2e.test_boundary import DIRECTORIES, MASKED, PROBE, expect_confined
from e2e.test_restore import BUNDLE, FILL, KILL_ALL, _elsewhere, _escaped, _pipe, tool

STATE = "/var/lib/tracker-backup"
TWO_FILES = (
    "--file",
    f"{DEPLOY_DIR}/docker-compose.yml",
    "--file",
    f"{DEPLOY_DIR}/docker-compose.backup.yml",
)
RUNS = int(os.environ.get("SIDECAR_RUNS", "10"))
MINUTE = {"strategy": "sidecar", "schedule": "* * * * *"}
OLD_FRAGMENT = (
    Path(__file__).parents[1] / "fixtures/one-container-sidecar/docker-compose.backup.yml"
)
OF_SIDECAR = (
    f"{DEPLOY_DIR}/backup/sidecar.env",
    f"{STATE}/stack.json",
)


@pytest.fixture(scope="module", params=["sqlite3", "mysql"])
def sidecar(
    request: pytest.FixtureRequest, docker: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A host in a time zone of its own, with the stack up and a sidecar that runs every minute.

    SQLite is in WAL mode.
    """
    stack = {"sqlite3": Stack("sqlite3"), "mysql": STACKS["mysql"]}[request.param]
    folder = tmp_path_factory.mktemp(f"sidecar-{stack.driver}")
    key = ssh_key(folder)
    with Host(
        f"gen-backup-bundle-e2e-sidecar-{stack.driver}-{os.getpid()}",
        buildkit=stack.driver == "mysql",
    ) as host:
        host.authorize(key.with_suffix(".pub").read_text(encoding="utf-8"))
        host.run("ln", "-sf", "/usr/share/zoneinfo/Asia/Kolkata", "/etc/localtime")
        stack.bring_up(host)
        if stack.driver == "sqlite3":
            host.run("docker", "kill", "tracker")
            assert sqlite(host, SQLITE_FILE, "PRAGMA journal_mode = wal;").strip() == "wal"
            host.run("docker", "start", "tracker")
            wait_for_tracker(host)
            sqlite(host, SQLITE_FILE, FILL)
            # A tracker at work keeps its database open, so there is a live log. One that nobody has
            # asked anything for ten minutes closes its connections.
            host.sh(
                "systemd-run --quiet bash -c \"(echo 'SELECT count(*) FROM torrents;';"
                f" exec sleep infinity) | sqlite3 '{SQLITE_FILE}'\""
            )
        else:
            mysql(host, FILL, DATABASE["mysql"])
        bundle = Bundle.generate(
            stack.environment(key, dict(MINUTE)), folder / "bundle", host.address
        )
        before = Deployment.inventory(host)
        containers = host.containers()
        installed = bundle.playbook("install-backup", "--diff").succeeded()
        assert untouched(containers, others(host))
        yield Deployment(host, stack, bundle, key, before, installed, installed)


def services(host: Host) -> dict[str, str]:
    """The names of the sidecar's containers by service."""
    columns = '{{.Label "com.docker.compose.service"}} {{.Names}}'
    command = f"docker ps --all --filter label=tracker-backup.sidecar --format '{columns}'"
    return dict(line.split() for line in host.sh(command).splitlines())


def expected_services(deployment: Deployment) -> set[str]:
    client = {"backup-client"} if deployment.stack.driver == "mysql" else set()
    return {"backup", "backup-examiner", *client}


def sidecar_name(host: Host) -> str:
    """The container of its core."""
    return services(host).get("backup", "")


def others(host: Host) -> dict[str, Container]:
    """Every container but the sidecar's."""
    ours = services(host).values()
    return {one: facts for one, facts in host.containers().items() if one not in ours}


def identities(host: Host) -> dict[str, str]:
    """The services of the sidecar start again after each job, but they stay the same containers."""
    return {name: container.id for name, container in host.containers().items()}


def wait_for_runs(deployment: Deployment, more: int) -> list[Run]:
    """The next runs by the sidecar's cron, waited for without adding to the host's load."""
    known = deployment.runs()
    deadline = time.monotonic() + 60 * more + 180
    while int(deployment.host.sh(f"ls {DESTINATION}/runs | grep -c 'json$'")) < len(known) + more:
        assert time.monotonic() < deadline, "the sidecar's cron does not run"
        time.sleep(3)
    return deployment.runs()[len(known) :]


def backup_now(host: Host) -> Outcome:
    """As an operator does it by hand."""
    done = host.run(
        "docker", "compose", *TWO_FILES, "exec", "-T", "backup", "backup.sh", "now", check=False
    )
    return Outcome(done.returncode, done.stdout + done.stderr)


def health(host: Host) -> str:
    return host.sh(
        "docker inspect --format '{{.State.Health.Status}}' " + sidecar_name(host), check=False
    ).strip()


def other_bundle(deployment: Deployment, name: str, backup: dict[str, Any]) -> Bundle:
    environment = deployment.stack.environment(deployment.key, backup)
    return Bundle.generate(
        environment, deployment.bundle.directory.with_name(name), deployment.host.address
    )


# ---------------------------------------------------------------- installed


def test_installing_starts_the_sidecar_and_makes_the_first_backup(sidecar: Deployment) -> None:
    first = sidecar.runs()[0]
    assert (first["sequence"], first["result"], first["strategy"], first["quiesce"]) == (
        1,
        "success",
        "sidecar",
        "none",
    ), first
    assert first["images"].keys() == others(sidecar.host).keys()
    assert services(sidecar.host).keys() == expected_services(sidecar)
    assert first["directories"]["."]["uid"] == 1000
    assert not sidecar.host.exists("/usr/local/bin/maintenance-backup.sh")
    cron = sidecar.host.read("/etc/cron.d/tracker-backup")
    assert "tracker-backup sidecar" in cron
    assert "backup.sh" not in cron
    said = sidecar.host.sh(f"docker logs {sidecar_name(sidecar.host)} 2>&1")
    assert "the schedule is * * * * *, time zone Asia/Kolkata" in said
    assert f"run {first['id']} succeeded" in said


def test_installing_again_changes_nothing(sidecar: Deployment) -> None:
    before = identities(sidecar.host)
    again = sidecar.bundle.playbook("install-backup", "--diff").succeeded()
    assert again.changed == 0, again.output
    assert identities(sidecar.host) == before


def test_ten_runs_by_its_own_cron_leave_the_tracker_answering(
    sidecar: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    host = sidecar.host
    before, tracker = identities(host), others(host)
    core = host.containers()[sidecar_name(host)]
    with sidecar.load() as (http, udp):
        runs = wait_for_runs(sidecar, RUNS)
    with capsys.disabled():
        print(
            f"\n  {sidecar.stack.driver}, sidecar, {len(runs)} runs: longest time without an"
            f" answered announce: HTTP {http.longest_gap:.2f} s, "
            f"UDP {udp.longest_gap:.2f} s; {http.answered + udp.answered} answered"
        )
    assert {run["result"] for run in runs} == {"success"}, runs
    assert {run["window_seconds"] for run in runs} == {0}
    assert (identities(host), others(host)) == (before, tracker)
    assert host.containers()[sidecar_name(host)] == core
    assert max(http.longest_gap, udp.longest_gap) < 1
    assert "healthy" in health(sidecar.host)


def test_a_run_by_hand(sidecar: Deployment) -> None:
    known = len(sidecar.runs())
    done = backup_now(sidecar.host).succeeded()
    (run,) = [run for run in sidecar.runs()[known:] if f"run {run['id']} succeeded" in done.output]
    assert run["tables"].keys() >= {"torrents", "whitelist", "keys"}
    said = sidecar.host.sh(f"docker logs {sidecar_name(sidecar.host)} 2>&1")
    assert f"run {run['id']} succeeded" in said, "by hand it is in the container's log, too"
    known = len(sidecar.published())
    checked = sidecar.host.run("tracker-backup", "run", "--dry-run")
    assert "dry run: everything is ready" in checked.stdout + checked.stderr
    sidecar.bundle.playbook("run-backup").succeeded()
    assert len(sidecar.published()) > known


def test_status_and_verify(sidecar: Deployment) -> None:
    status = tool(sidecar.host, "status").succeeded()
    assert "sidecar       running" in status.output
    verified = tool(sidecar.host, "verify").succeeded()
    assert "verified " in verified.output


# ---------------------------------------------------------------- gone, and back


@pytest.mark.only("sqlite3")
def test_a_sidecar_that_compose_removed_comes_back_and_status_fails_meanwhile(
    sidecar: Deployment,
) -> None:
    before, name = others(sidecar.host), sidecar_name(sidecar.host)
    sidecar.host.sh(
        "until (($(date +%-S) > 3 && $(date +%-S) < 30)); do sleep 1; done"
    )  # not when cron brings it back at once
    compose(sidecar.host, "up", "--detach", "--remove-orphans")
    removed = time.monotonic()
    assert name not in sidecar.host.containers()
    assert services(sidecar.host) == {}
    status = tool(sidecar.host, "status")
    assert status.code == 1
    assert "the sidecar is missing" in status.output
    wait_until(
        "cron on the host to bring the sidecar back", lambda: sidecar_name(sidecar.host) != "", 100
    )
    print(f"back after {time.monotonic() - removed:.0f} s")
    wait_for_runs(sidecar, 1)
    tool(sidecar.host, "status").succeeded()
    assert services(sidecar.host).keys() == expected_services(sidecar)
    assert untouched(before, others(sidecar.host))


def test_a_changed_time_zone_and_a_replaced_file_make_a_new_sidecar(sidecar: Deployment) -> None:
    host, before = sidecar.host, others(sidecar.host)

    def environment() -> str:
        return host.sh(
            "docker inspect --format '{{.Config.Env}}' " + sidecar_name(host), check=False
        )

    host.run("ln", "-sf", "/usr/share/zoneinfo/US/Pacific", "/etc/localtime")
    wait_until("the new time zone", lambda: "TZ=US/Pacific" in environment(), 100)
    identity = host.containers()[sidecar_name(host)].id
    host.run(
        "sed",
        "-i",
        "s/^BACKUP_COMPRESSION=.*/BACKUP_COMPRESSION='zstd'/",
        f"{DEPLOY_DIR}/backup/backup.conf",
    )
    wait_until(
        "a sidecar that sees the new file",
        lambda: (
            host.containers().get(sidecar_name(host), Container(identity, "", "")).id != identity
        ),
        100,
    )
    (run, *_) = wait_for_runs(sidecar, 1)
    assert run["result"] == "success"
    assert all(file["path"].endswith(".zst") for file in run["files"])
    assert untouched(before, others(host))
    host.run("ln", "-sf", "/usr/share/zoneinfo/Asia/Kolkata", "/etc/localtime")
    sidecar.bundle.playbook("install-backup").succeeded()
    assert "TZ=Asia/Kolkata" in environment()


@pytest.mark.only("sqlite3")
def test_its_health_check_fails_when_the_last_success_is_too_old(sidecar: Deployment) -> None:
    host = sidecar.host
    host.run("sed", "-i", "s/^LONGEST_INTERVAL_SECONDS=.*/LONGEST_INTERVAL_SECONDS='1'/", CONFIG)
    try:
        wait_until("the health check to fail", lambda: health(host) == "unhealthy", 240)
        status = tool(host, "status")
        assert status.code == 1
        assert "unhealthy" in status.output
    finally:
        sidecar.bundle.playbook("install-backup").succeeded()
    wait_until("the health check to succeed", lambda: health(host) == "healthy", 150)


@pytest.mark.only("sqlite3")
def test_a_dead_restore_is_rolled_back_by_the_hosts_line_in_cron(sidecar: Deployment) -> None:
    before = rows(sidecar)
    killed = faults.strike(
        sidecar.host,
        "tracker-backup",
        "restore",
        "latest",
        "--only",
        "database",
        "--confirm",
        at="step restore swapped",
        do=KILL_ALL,
    )
    assert killed.code == 137, killed.output
    refused = backup_now(sidecar.host)
    if sidecar.host.exists(f"{STATE}/restore.json"):
        assert (refused.code, "a restore died" in refused.output) == (
            1,
            True,
        ) or refused.code == 75, refused.output
    wait_until("the roll-back", lambda: not sidecar.host.exists(f"{STATE}/restore.json"), 100)
    wait_for_tracker(sidecar.host)
    assert rows(sidecar) == before
    sidecar.host.sh("rm -rf /root/shim /tmp/docker-calls*")


# ---------------------------------------------------------------- its boundary

# Beside the probe of test_boundary.py: what only a service of the sidecar could try.
ALSO = r"""
import json, os, signal, socket
found = {}
def attempt(name, call):
    try:
        found[name] = str(call())
    except OSError as error:
        found[name] = error.strerror
def connect(path):
    with socket.socket(socket.AF_UNIX) as call:
        call.connect(path)
attempt("call", lambda: connect("/work/socket"))
attempt("make a socket", lambda: socket.socket(socket.AF_UNIX).bind("/work/socket"))
attempt("move the directory", lambda: os.rename("/work/job", "/work/other"))
attempt("end the supervisor", lambda: os.kill(1, signal.SIGKILL))
attempt("see the lock", lambda: os.listdir("/var/lib/tracker-backup"))
def keep():  # what root without FOWNER could not remove
    os.makedirs("/work/job/deep")
    open("/work/job/deep/file", "w").close()
    for directory in ("/work/job/deep", "/work/job"):
        os.chmod(directory, 0o1777)
attempt("keep its files", keep)
attempt("leave a file", lambda: open("/dev/shm/left", "w").write("x"))
secret = PASSWORD
seen = []
for process in filter(str.isdigit, os.listdir("/proc")):
    for name in ("environ", "cmdline"):
        try:
            seen += [name] if secret in open(f"/proc/{process}/{name}", "rb").read() else []
        except OSError:
            pass
found["password"] = str(seen)
print(json.dumps(found))
"""


@contextmanager
def standing_still(sidecar: Deployment, point: str) -> Iterator[None]:
    """A run of the sidecar stands still at a fault point, as in steps.py. Then it succeeds."""
    host = sidecar.host
    command = ["docker", "exec", "--env", f"TRACKER_BACKUP_STOP_AT={point}"]
    while True:  # cron's own run may hold the lock
        host.run("bash", "-ec", PREPARE)
        process = host.spawn(*command, sidecar_name(host), "backup.sh", "now")
        wait_until(
            point,
            lambda: host.exists(f"{POINTS}/reached") or process.poll() is not None,  # noqa: B023
            120,
        )
        if process.poll() != 75:
            break
    try:
        yield
    finally:
        host.run("rm", "-rf", POINTS)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output


def probe(sidecar: Deployment, service: str, user: int, work: str) -> dict[str, Any]:
    """What a program of this user can do in the container of a service."""
    words = [work, *DIRECTORIES, *MASKED, "/work/job", STATE]
    command = ["docker", "exec", "--interactive", "--user", f"{user}:{user}"]
    name = services(sidecar.host)[service]
    command += [name, "python3", "-I", "-", *words]
    found: dict[str, Any] = json.loads(sidecar.host.run(*command, stdin=PROBE).stdout)
    return found


def look(sidecar: Deployment, service: str, user: int) -> dict[str, str]:
    command = ["docker", "exec", "--interactive", "--user", f"{user}:{user}"]
    command += [services(sidecar.host)[service], "python3", "-I", "-"]
    program = ALSO.replace("PASSWORD", repr(HOSTILE_PASSWORD.encode()))
    found: dict[str, str] = json.loads(sidecar.host.run(*command, stdin=program).stdout)
    return found


def expect_a_job_and_no_more(sidecar: Deployment, service: str, user: int) -> None:
    """The job's user has no capability, and its directory. Its supervisor, which is root, has no
    way to the job's files.
    """
    host, name = sidecar.host, services(sidecar.host)[service]
    found = probe(sidecar, service, user, "/work/job")
    expect_confined(found, capabilities="0" * 16, work="/work/job")
    assert (found["uid"], found["become root"]) == (user, "EPERM")
    assert found["list /data"] == found[f"list {STATE}"] == found["list /etc/backup"] == "ENOENT"
    assert found["list /work"] == found["write /work"] == "EACCES"
    supervisor = probe(sidecar, service, 0, "/work")
    expect_confined(supervisor, capabilities=f"{(1 << 6) + (1 << 7):016x}")
    assert supervisor["list /work"] == ["job"]
    assert supervisor["list /work/job"] == supervisor["write /work/job"] == "EACCES"
    # The last, because the user opens its directory to everybody here.
    assert look(sidecar, service, user) == {
        "call": "No such file or directory",
        "make a socket": "Permission denied",
        "move the directory": "Permission denied",
        "end the supervisor": "Operation not permitted",
        "see the lock": "No such file or directory",
        "keep its files": "None",
        "leave a file": "1",
        "password": "[]",
    }
    host.sh(f"rm -f {STAGING}/*/.b {STAGING}/*/job/.b")
    # The role itself is what was tried here.
    shown = host.sh(f"docker top {name} -o pid,uid,cmd | grep -v PID").splitlines()
    processes = [line.split(maxsplit=2) for line in shown]
    assert [owner for _, owner, command in processes if "service" not in command] == [str(user)]
    for pid, owner, _ in processes:
        caps = "0" * 16 if owner == str(user) else f"{(1 << 6) + (1 << 7):016x}"
        assert f"CapEff:\t{caps}\n" in host.read(f"/proc/{pid}/status")


def test_an_examiner_of_the_sidecar_sees_its_own_database_alone(sidecar: Deployment) -> None:
    with standing_still(sidecar, "checking-the-database"):
        expect_a_job_and_no_more(sidecar, "backup-examiner", 64001)
        found = probe(sidecar, "backup-examiner", 64001, "/work/job")
        assert found["interfaces"] == ["lo"]
        assert {name.partition(".")[0] for name in found["list /work/job"]} <= {
            "database",
            "deep",
            "",
        }
        sidecar.host.sh(f"rm -f {STAGING}/examiner/job/.b")
    wait_until(
        "the next life of the examiner",
        lambda: sidecar.host.sh(f"ls {STAGING}/examiner").split() == ["socket"],
        60,
    )
    directories = {name.partition("-")[2] for name in expected_services(sidecar)} - {""}
    assert set(sidecar.host.sh(f"ls -A {STAGING}").split()) == directories, "nothing was kept"
    left = services(sidecar.host)["backup-examiner"]
    assert sidecar.host.sh(f"docker exec {left} ls /dev/shm") == "", "the next life sees nothing"


@pytest.mark.only("mysql")
def test_the_client_of_the_sidecar_sees_no_file_of_the_deployment(sidecar: Deployment) -> None:
    with standing_still(sidecar, "capturing-the-database"):
        expect_a_job_and_no_more(sidecar, "backup-client", 64101)
        found = probe(sidecar, "backup-client", 64101, "/work/job")
        assert len(found["interfaces"]) == 2
        assert not [mount for mount in found["mounts"] if "secret" in mount]
        sidecar.host.sh(f"rm -f {STAGING}/client/job/.b")


def test_the_core_has_no_network_and_no_secret_but_the_databases(sidecar: Deployment) -> None:
    host = sidecar.host
    host.sh(f"mkdir -p {DEPLOY_DIR}/backup/secrets; echo x >{DEPLOY_DIR}/backup/secrets/probe")
    try:
        found = probe(sidecar, "backup", 0, "/staging")
    finally:
        host.sh(f"rm -f {DEPLOY_DIR}/backup/secrets/probe {STAGING}/.b")
    # CHOWN, DAC_OVERRIDE, FOWNER and SETGID
    capabilities = (1 << 0) + (1 << 1) + (1 << 3) + (1 << 6)
    assert (found["uid"], found["capabilities"]) == (0, f"{capabilities:016x}")
    assert (found["no new privileges"], found["interfaces"]) == ("1", ["lo"])
    assert found["another network"] == "ENETUNREACH"
    assert found["Docker"] == "ENOENT"
    for name in ("device", "mount", "raw socket", "interface"):
        assert found[name] == "EPERM", name
    for name in ("/", "/data", "/etc/backup", STATE, *MASKED):
        assert found[f"write {name}"] == "EROFS", name
    assert found["write /backups"] == found["write /staging"] == "ok"
    for masked in MASKED:
        assert found[f"list {masked}"] == [], masked
    secrets = ["db_password"] if sidecar.stack.driver == "mysql" else "ENOENT"
    assert found["list /run/secrets"] == secrets
    assert found["processes"] == "EAGAIN"


# ---------------------------------------------------------------- another strategy


def test_switching_to_the_other_strategy_and_back_leaves_nothing_of_the_old_one(
    sidecar: Deployment,
) -> None:
    host, before = sidecar.host, others(sidecar.host)
    window = other_bundle(sidecar, "window", {"quiesce": "none"})
    window.playbook("install-backup").succeeded()
    assert services(host) == {}
    assert host.sh(f"ls {STAGING}") == ""
    assert [path for path in OF_SIDECAR if host.exists(path)] == []
    cron = host.read("/etc/cron.d/tracker-backup")
    assert "tracker-backup sidecar" not in cron
    assert "maintenance-backup.sh" in cron
    known = len(sidecar.runs())
    window.playbook("run-backup").succeeded()
    assert len(sidecar.runs()) == known + 1
    assert sidecar.last_run()["strategy"] == "maintenance-window"
    tool(host, "status").succeeded()

    sidecar.bundle.playbook("install-backup").succeeded()
    assert not host.exists("/usr/local/bin/maintenance-backup.sh")
    assert [path for path in OF_SIDECAR if not host.exists(path)] == []
    assert host.read("/etc/cron.d/tracker-backup").count("root") == 2
    backup_now(host).succeeded()
    assert sidecar.last_run()["strategy"] == "sidecar"
    assert untouched(before, others(host))


def test_installing_waits_for_a_run_and_is_refused_when_it_takes_too_long(
    sidecar: Deployment,
) -> None:
    with subprocess.Popen(
        ["docker", "exec", sidecar.host.name, "flock", f"{STATE}/lock", "sleep", "100"]
    ) as holder:
        wait_until(
            "the lock",
            lambda: (
                sidecar.host.run(
                    "flock", "--nonblock", f"{STATE}/lock", "true", check=False
                ).returncode
                != 0
            ),
            30,
        )
        refused = sidecar.bundle.playbook("install-backup", "-e", "backup_on_install=false")
        assert "a backup is running; nothing was changed" in refused.output, refused.output
        sidecar.host.run("pkill", "--full", "^sleep 100$")
        holder.wait(30)


@pytest.mark.only("sqlite3")
def test_a_sidecar_of_one_container_is_upgraded(sidecar: Deployment) -> None:
    """As bundles had it before its roles became services."""
    host, before = sidecar.host, others(sidecar.host)
    host.run("touch", f"{STATE}/hold")
    host.sh(f"docker rm --force {' '.join(services(host).values())}; rm -r {STAGING}/*")
    image = re.search(r"^IMAGE='(.*)'$", host.read(CONFIG), re.MULTILINE)
    assert image
    old = OLD_FRAGMENT.read_text(encoding="utf-8").replace("IMAGE", image[1])
    host.run("sh", "-c", f"cat >{DEPLOY_DIR}/docker-compose.backup.yml", stdin=old)
    host.run("docker", "compose", *TWO_FILES, "up", "--detach", "--no-deps", "backup")
    assert services(host).keys() == {"backup"}
    sidecar.bundle.playbook("install-backup").succeeded()
    assert services(host).keys() == expected_services(sidecar)
    host.run("rm", f"{STATE}/hold")
    backup_now(host).succeeded()
    assert untouched(before, others(host))
    assert sidecar.bundle.playbook("install-backup").succeeded().changed == 0


# ---------------------------------------------------------------- restore, remove


def test_restore_onto_an_empty_machine(sidecar: Deployment) -> None:
    """Docker, the images, the backups and the bundle are all there is."""
    stack, host = sidecar.stack, sidecar.host
    sidecar.query(FILL)
    backup_now(host).succeeded()
    run = sidecar.last_run()
    expected, files = rows(sidecar), picture(host, databases=False)
    host.run("touch", f"{STATE}/hold")
    try:
        with Host(
            f"gen-backup-bundle-e2e-sidecar-empty-{stack.driver}-{os.getpid()}",
            buildkit=stack.driver == "mysql",
        ) as empty:
            image = re.search(r"^IMAGE='(.*)'$", host.read(CONFIG), re.MULTILINE)
            assert image
            _pipe(host, f"docker save {image[1]}", empty, "docker load")
            _pipe(
                host,
                f"tar -C {DESTINATION} -c .",
                empty,
                f"mkdir -p {DESTINATION} && tar -C {DESTINATION} -x",
            )
            local = subprocess.run(
                [
                    "tar",
                    "-C",
                    str(sidecar.bundle.directory),
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
            tool(
                empty, "restore", run["id"], "--confirm", program=f"{BUNDLE}/host/tracker-backup"
            ).succeeded()
            if stack.driver == "mysql":
                mysql(
                    empty,
                    f"ALTER USER tracker_user@'%' IDENTIFIED BY '{_escaped(HOSTILE_PASSWORD)}'",
                )
            wait_for_tracker(empty)
            assert rows(_elsewhere(sidecar, empty)) == expected
            now = picture(empty, databases=False)
            ours = {
                path
                for path in files
                if path.startswith("./backup")
                or path == "./docker-compose.backup.yml"
                or path.endswith(("-wal", "-shm"))
            }
            assert {
                path: (files[path], now.get(path))
                for path in files.keys() - ours
                if files[path] != now.get(path)
            } == {}
    finally:
        host.run("rm", f"{STATE}/hold")


def test_uninstalling_leaves_the_backups_and_nothing_else_of_ours(sidecar: Deployment) -> None:
    host, before = sidecar.host, others(sidecar.host)
    sidecar.bundle.playbook("uninstall-backup").succeeded()
    assert services(host) == {}
    assert untouched(before, host.containers())
    backups = sidecar.published()
    assert backups
    time.sleep(61)  # a line of cron that was under way would have shown
    left = {
        entry
        for entry in Deployment.inventory(host) - sidecar.before
        if not entry.startswith(DESTINATION)
    }
    assert {entry for entry in left if not entry.endswith(("-wal", "-shm"))} == set()
    assert sidecar.published() == backups
