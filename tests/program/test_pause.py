"""Pausing is proved on our own container, because some engines cannot pause."""

from __future__ import annotations

import signal

import pytest

from program.host import Host

OURS = "tracker-backup-"


@pytest.fixture(autouse=True)
def pausing(host: Host) -> None:
    host.configure(QUIESCE="pause")


def test_pausing_is_proved_on_our_own_container_before_the_preflight(host: Host) -> None:
    host.run().ends_with(0)
    host.calls_in_order(
        "^docker compose .* run ",
        f"^docker pause {OURS}",
        f"^docker unpause {OURS}",
        "^job preflight ",
        "^docker pause 7e57$",
    )


@pytest.mark.parametrize(
    ("quiesce", "status", "options"),
    [
        pytest.param("stop", "running", [], id="stopped"),
        pytest.param("none", "running", [], id="captured-online"),
        pytest.param("pause", "exited", ["--force"], id="not-running"),
    ],
)
def test_pausing_is_not_proved_where_nothing_will_be_paused(
    host: Host, quiesce: str, status: str, options: list[str]
) -> None:
    host.configure(QUIESCE=quiesce)
    host.set_tracker(status=status)
    host.run(*options).ends_with(0)
    host.never_called("^docker pause")


def test_an_engine_that_cannot_pause_ends_the_run_with_2_and_names_stop(host: Host) -> None:
    host.on("pause-ours", "fail('cgroups: cannot freeze')")
    host.run().ends_with(
        2,
        "this Docker engine cannot pause containers (",
        "cgroups: cannot freeze",
        "set backup.quiesce to 'stop' in the environment file, generate and install again",
    )
    host.tracker_was_left_alone()
    manifest = host.recorded("failed", exit_code=2)
    assert manifest["reason"].startswith("this Docker engine cannot pause ")
    host.failed_safely()
    host.run("--dry-run").ends_with(2, "this Docker engine cannot pause containers")


def test_an_engine_that_cannot_unpause_ends_the_run_before_the_tracker_is_touched(
    host: Host,
) -> None:
    host.on("unpause-ours", "fail('cannot thaw')")
    host.run().ends_with(2, "cannot thaw")
    host.tracker_was_left_alone()
    host.was_called(f"^docker rm .*{OURS}")
    host.nothing_is_left()


def test_a_pause_that_fails_for_a_moment_proves_nothing_yet(host: Host) -> None:
    """Docker fails for some seconds when containerd was killed."""
    host.on("pause-ours", "if touch('again'): fail('containerd is restarting')")
    host.run().ends_with(0)


def test_a_backup_container_that_died_is_no_engine_that_cannot_pause(host: Host) -> None:
    host.on(
        "pause-ours",
        """
end_clients(words[-1])
(STUB / "containers" / words[-1]).unlink(missing_ok=True)
fail("is not running")
""",
    )
    host.run().ends_with(1, "did not stay up", "is not running").lacks("cannot pause")
    host.tracker_was_left_alone()


def test_a_tracker_that_cannot_be_paused_ends_the_run_with_1_and_names_stop(host: Host) -> None:
    host.on("pause", "fail('cannot freeze')")
    host.run().ends_with(1, "set backup.quiesce to 'stop'")
    host.failed_safely()


def test_a_container_of_a_dead_run_that_is_still_paused_is_unpaused_and_removed(
    host: Host,
) -> None:
    """With cgroup v1, a frozen process does not die of SIGKILL."""
    dead = f"{OURS}20250101_030000"
    host.add_container(dead, "paused")
    host.run().ends_with(0)
    host.calls_in_order(f"^docker unpause {dead}$", f"^docker rm .*{dead}$")
    host.nothing_is_left()


def test_term_while_our_own_container_is_paused_unpauses_and_removes_it(host: Host) -> None:
    host.on(
        "pause-ours",
        """
facts = require_ours(words[-1])
add_container(words[-1], facts["labels"], facts["work"], "paused")
hang(1)
""",
    )
    process = host.start_until_hanging()
    process.signal(signal.SIGTERM)
    process.finish().ends_with(143)
    host.calls_in_order(f"^docker pause {OURS}", f"^docker unpause {OURS}", f"^docker rm .*{OURS}")
    host.tracker_was_left_alone()
    host.nothing_is_left()
