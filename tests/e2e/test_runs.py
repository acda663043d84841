"""What a run does to the stack, under load and when somebody reaches into its window."""

from __future__ import annotations

import json

import pytest

from e2e.deployment import DESTINATION, STAGING, Deployment
from e2e.stack import DEPLOY_DIR, compose, untouched, wait_for_tracker

# Less grace than the ten seconds that the tracker never uses; enough to reach into the stop.
STOP = {"QUIESCE": "stop", "STOP_TIMEOUT_SECONDS": "5"}


@pytest.mark.parametrize("quiesce", ["none", "pause", "stop"])
def test_a_run_under_load_touches_the_tracker_alone_and_only_as_told(
    deployment: Deployment, quiesce: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = deployment.host.containers()
    with deployment.configured(QUIESCE=quiesce), deployment.load() as (http, udp):
        deployment.run().succeeded()
        wait_for_tracker(deployment.host)
    after = deployment.host.containers()
    run = deployment.last_run()
    with capsys.disabled():
        print(
            f"\n  {deployment.stack.driver}, quiesce {quiesce}: longest time without an answered"
            f" announce: HTTP {http.longest_gap:.2f} s, UDP {udp.longest_gap:.2f} s; the run's own"
            f" window: {run['window_seconds']:.2f} s; {http.answered + udp.answered} answered"
        )
    assert run["quiesce"] == quiesce
    assert untouched(before, after, but=("tracker",) if quiesce == "stop" else ())
    assert after["tracker"].id == before["tracker"].id
    assert after["tracker"].status == "running"
    assert (after["tracker"].started != before["tracker"].started) == (quiesce == "stop")
    assert http.answered > 0 and udp.answered > 0
    assert deployment.host.sh(f"ls -A {STAGING}") == ""


def test_an_env_file_broken_in_mid_window_does_not_keep_the_tracker_down(
    deployment: Deployment,
) -> None:
    dotenv = f"{DEPLOY_DIR}/.env"
    deployment.host.run("cp", "-p", dotenv, "/root/env.original")
    try:
        with deployment.configured(**STOP), deployment.running() as run:
            run.hold_capture()
            deployment.host.sh(f"printf '%s\\n' \"MYSQL_PASSWORD='no end\" '=x' >{dotenv}")
            run.release_capture()
            run.wait()
        assert deployment.tracker().status == "running"
        wait_for_tracker(deployment.host)
    finally:
        deployment.host.run("mv", "/root/env.original", dotenv)


def test_compose_up_by_hand_in_mid_window_fails_the_run_and_publishes_nothing(
    deployment: Deployment,
) -> None:
    files = set(deployment.published())
    with deployment.configured(**STOP), deployment.running() as run:
        run.hold_capture()
        compose(deployment.host, "up", "--detach")
        started = deployment.tracker().started
        run.release_capture()
        outcome = run.wait()
    assert outcome.code == 1, outcome.output
    last = deployment.last_run()
    assert (last["result"], last["files"]) == ("failed", [])
    assert "changed during the capture" in last["reason"]
    assert set(deployment.published()) - files == {f"runs/{last['id']}.json"}
    assert (deployment.tracker().status, deployment.tracker().started) == ("running", started)


def test_a_tracker_started_by_hand_before_the_capture_fails_the_run(deployment: Deployment) -> None:
    files = set(deployment.published())
    with deployment.configured(**STOP), deployment.running() as run:
        run.wait_for_stop()
        run.signal("STOP")
        run.wait_for_window()
        deployment.host.run("docker", "start", "tracker")
        run.signal("CONT")
        outcome = run.wait()
    assert outcome.code == 1, outcome.output
    last = deployment.last_run()
    assert (last["result"], last["files"]) == ("failed", [])
    assert set(deployment.published()) - files == {f"runs/{last['id']}.json"}
    assert deployment.tracker().status == "running"


def test_term_during_the_stop_brings_the_tracker_back(deployment: Deployment) -> None:
    files, before = set(deployment.published()), deployment.tracker()
    with deployment.configured(**STOP), deployment.running() as run:
        run.wait_for_stop()
        run.signal("TERM")
        outcome = run.wait()
    assert outcome.code == 143, outcome.output
    wait_for_tracker(deployment.host)
    after = deployment.tracker()
    assert (after.id, after.status) == (before.id, "running")
    assert after.started != before.started, (
        "Docker's stop went on after its client, so the tracker must have been started again"
    )
    last = deployment.last_run()
    assert (last["result"], last["exit_code"], last["files"]) == ("failed", 143, [])
    assert set(deployment.published()) - files == {f"runs/{last['id']}.json"}
    assert not [name for name in deployment.host.containers() if name.startswith("tracker-backup")]


def test_term_during_the_capture_brings_the_tracker_back_at_once(deployment: Deployment) -> None:
    with deployment.configured(**STOP), deployment.running() as run:
        run.hold_capture()
        run.signal("TERM")
        outcome = run.wait()
    assert outcome.code == 143, outcome.output
    wait_for_tracker(deployment.host)
    assert not [name for name in deployment.host.containers() if name.startswith("tracker-backup")]
    assert deployment.host.sh(f"ls -A {STAGING}") == ""


def test_a_window_past_its_limit_ends_with_the_tracker_back(deployment: Deployment) -> None:
    with deployment.configured(**STOP, WINDOW_TIMEOUT_SECONDS="20"), deployment.running() as run:
        run.hold_capture()
        outcome = run.wait()
    assert outcome.code == 1, outcome.output
    assert deployment.last_run()["result"] == "failed"
    wait_for_tracker(deployment.host)


def test_a_second_run_is_turned_away_while_one_is_under_way(deployment: Deployment) -> None:
    with deployment.configured(QUIESCE="stop"), deployment.running() as run:
        run.wait_for_stop()
        second = deployment.run()
        first = run.wait()
    assert second.code == 75, second.output
    assert first.code == 0, first.output


def test_a_stopped_tracker_is_skipped_and_stays_stopped(deployment: Deployment) -> None:
    runs = len(deployment.runs())
    deployment.host.run("docker", "stop", "--time", "0", "tracker")
    try:
        skipped = deployment.run()
        assert skipped.code == 3, skipped.output
        assert len(deployment.runs()) == runs
        assert deployment.tracker().status == "exited"

        forced = deployment.run("--force").succeeded()
        assert deployment.last_run()["id"] in forced.output
        assert deployment.last_run()["result"] == "success"
        assert deployment.tracker().status == "exited"
    finally:
        deployment.host.run("docker", "start", "tracker")
        wait_for_tracker(deployment.host)


@pytest.mark.only("mysql")
def test_the_password_is_not_in_the_process_list_nor_in_docker_inspect(
    deployment: Deployment,
) -> None:
    with deployment.configured(**STOP), deployment.running() as run:
        run.hold_capture()
        processes = deployment.host.sh("ps axwwe")
        inspected = deployment.host.sh(
            "docker ps --quiet --filter label=tracker-backup.run | xargs docker inspect"
        )
        run.release_capture()
        run.wait().succeeded()
    assert "backup.py client" in processes
    assert "ABCDEFGHIJKLMNOPQRSTUVWXYZ" not in processes + inspected


def test_a_destination_without_its_identity_is_refused_before_the_tracker_is_touched(
    deployment: Deployment,
) -> None:
    identity, before, files = (
        f"{DESTINATION}/.tracker-backup.json",
        deployment.host.containers(),
        deployment.published(),
    )
    deployment.host.run("mv", identity, "/root/identity")
    try:
        refused = deployment.run()
    finally:
        deployment.host.run("mv", "/root/identity", identity)
    assert refused.code == 1
    assert "is the destination mounted?" in refused.output
    assert deployment.published() == files
    assert deployment.host.containers() == before


def test_a_destination_of_another_environment_is_refused(deployment: Deployment) -> None:
    identity = f"{DESTINATION}/.tracker-backup.json"
    mine = deployment.host.read(identity)
    try:
        deployment.host.unpack(
            {identity.lstrip("/"): json.dumps(json.loads(mine) | {"environment": "somebody-else"})},
            modes={identity.lstrip("/"): 0o600},
        )
        refused = deployment.run()
    finally:
        deployment.host.unpack({identity.lstrip("/"): mine}, modes={identity.lstrip("/"): 0o600})
    assert refused.code == 1
    assert "somebody-else" in refused.output


def test_retention_removes_old_runs_of_ours_and_nothing_else(deployment: Deployment) -> None:
    kind, base = deployment.kind, DESTINATION.lstrip("/")
    suffix = "db" if kind == "sqlite" else "sql"

    def names(identity: str) -> list[str]:
        return [f"{kind}/{kind}_{identity}.{suffix}.gz", f"config/config_{identity}.tar.gz"]

    def manifest(identity: str, sequence: int, **changes: object) -> str:
        kinds = ("database", "config")
        files = [
            {"kind": kind, "path": name, "bytes": 1, "sha256": "0" * 64}
            for kind, name in zip(kinds, names(identity), strict=True)
        ]
        return json.dumps(
            deployment.last_run() | {"id": identity, "sequence": sequence, "files": files} | changes
        )

    deployment.run().succeeded()
    ours, failed, theirs, unnamed = (
        "20200101_030000",
        "20200102_030000",
        "20200103_030000",
        "20200104_030000",
    )
    tree: dict[str, str | None] = {
        f"{base}/{name}": "x" for identity in (ours, theirs, unnamed) for name in names(identity)
    }
    tree[f"{base}/runs/{ours}.json"] = manifest(ours, 0)
    tree[f"{base}/runs/{failed}.json"] = manifest(failed, 0, result="failed", files=[])
    tree[f"{base}/runs/{theirs}.json"] = manifest(theirs, 0, environment="somebody-else")
    tree[f"{base}/{kind}/notes.txt"] = "an operator's own"
    kept = set(deployment.published())
    deployment.host.unpack(tree, modes=dict.fromkeys(tree, 0o600))
    suspended = deployment.run().succeeded()
    assert "retention is suspended" in suspended.output, (
        "years without a backup: did the clock jump?"
    )
    placed = {path.removeprefix(f"{base}/") for path in tree}
    aside = {f"leftover/{name.partition('/')[2]}" for name in names(unnamed)}
    assert "without a run manifest" in suspended.output
    assert (placed - set(names(unnamed))) | aside <= set(deployment.published())
    deployment.host.run("tracker-backup", "acknowledge")
    deployment.run().succeeded()
    left = set(deployment.published())
    assert left >= kept, "nothing younger than the retention goes"
    gone = placed - left
    of_nobody = set(names(unnamed))  # as of a run that was killed before its run manifest
    assert gone == {*names(ours), f"runs/{ours}.json", f"runs/{failed}.json"} | of_nobody
    assert not aside & left
    for path in tree:
        deployment.host.run("rm", "-f", f"/{path}")
