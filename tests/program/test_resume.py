"""How a run brings the tracker back: again and again, after Docker died, and steadily."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from program.host import STARTED, Host

DOCKER_DIES = """
(STUB / "docker.pid").write_text("2")
stopped(137)
fail("the daemon is gone")
"""


def test_a_start_that_fails_at_first_is_tried_again(host: Host) -> None:
    host.on("start", "if touch('tried'): fail('not yet')")
    host.run().ends_with(0)
    host.tracker_is("running")
    host.recorded("success")


def test_a_tracker_that_does_not_stay_up_after_the_window_ends_with_4(host: Host) -> None:
    host.set("STEADY_SECONDS", 0.5)
    host.on("start", "started(); later(0.1, lambda: stopped(1)); leave(0)")
    host.run().ends_with(4, "docker logs 7e57")
    host.nothing_was_published()


def test_a_paused_tracker_that_a_dying_docker_left_exited_is_started(host: Host) -> None:
    host.configure(QUIESCE="pause")
    host.on("capture", "stopped(137); refuse('the daemon is gone')")
    host.run().ends_with(1)
    host.was_called("^docker start 7e57")
    host.failed_safely()


def test_a_stopped_tracker_that_somebody_left_paused_is_unpaused(host: Host) -> None:
    host.on("capture", "become('paused'); refuse('broken')")
    host.run().ends_with(1)
    host.failed_safely()


def test_what_a_docker_that_dies_at_the_end_of_a_run_takes_down_is_started(host: Host) -> None:
    (host.stub / "docker.pid").write_text("1")
    host.on("rm", f"if touch('died'):{DOCKER_DIES.replace(chr(10), chr(10) + '    ')}")
    outcome = host.run().ends_with(1, "docker rm failed: the daemon is gone")
    host.calls_in_order("^docker start 7e57$", "^docker rm ", "^docker start 7e57$")
    host.failed_safely()
    assert outcome.output.count("Docker has died during this run") == 1


def test_what_a_docker_that_died_before_the_window_took_down_is_started(host: Host) -> None:
    """Docker that was killed does not restart containers with `unless-stopped`."""
    (host.stub / "docker.pid").write_text("1")
    host.on("preflight", DOCKER_DIES)
    host.run().ends_with(1, "Docker has died during this run")
    host.calls_in_order("^job preflight ", "^docker start 7e57$")
    host.never_called("^docker stop")
    host.tracker_is("running")
    assert host.tracker("started") != STARTED


@pytest.mark.parametrize(
    ("finished", "started_again"), [("2026-01-01T00:00:00Z", False), ("now()", True)]
)
def test_what_somebody_stopped_before_docker_died_stays_stopped(
    host: Host, finished: str, started_again: bool
) -> None:
    """Docker took down what ended after it was started again."""
    (host.stub / "docker.pid").write_text("1")
    labels = {
        "com.docker.compose.service": "grafana",
        "com.docker.compose.project": "torrust",
        "com.docker.compose.project.working_dir": str(host.deploy),
        "com.docker.compose.oneoff": "False",
    }
    state = {"Status": "running", "StartedAt": STARTED, "ExitCode": 0, "FinishedAt": ""}
    found: dict[str, Any] = {"Id": "6afa", "Image": "x", "State": state, "Mounts": []}
    found["Config"] = {"Image": "grafana", "Env": [], "Labels": labels}
    (host.stub / "inspect.json").write_text(json.dumps([found]))
    when = finished if finished == "now()" else repr(finished)
    ends = f"""
found = json.loads((STUB / "inspect.json").read_text())
found[0]["State"] |= {{"Status": "exited", "FinishedAt": {when}}}
(STUB / "inspect.json").write_text(json.dumps(found))
"""
    host.on("preflight", ends + DOCKER_DIES)
    host.run().ends_with(1, "Docker has died during this run")
    host.was_called(f"^docker start {'6afa 7e57|7e57 6afa' if started_again else '7e57'}$")


def test_a_docker_that_hangs_at_the_beginning_is_recorded(host: Host) -> None:
    (host.stub / "docker.pid").write_text("1")
    host.set("DOCKER_SECONDS", 1)
    host.on("ps", "hang()")
    host.run().ends_with(1, "docker ps did not answer within 1 s")
    host.recorded("failed", reason=re.compile("Docker does not list its containers"))
