"""The lock: who waits for it, and that it is free when its holder is dead."""

from __future__ import annotations

import signal
import time

import pytest

from program.host import Host, wait_until


def test_a_lock_that_somebody_holds_ends_with_75_in_time_and_nothing_was_done(host: Host) -> None:
    started = time.monotonic()
    with host.locked():
        host.run().ends_with(75)
    assert time.monotonic() - started < 5
    assert host.calls == []
    host.nothing_was_recorded()


def test_a_lock_that_is_released_while_waiting_is_taken(host: Host) -> None:
    host.set("LOCK_SECONDS", 20)
    with host.locked():
        process = host.start()
        wait_until(lambda: host.has_lock_open(process))
        assert host.calls == []
    process.finish().ends_with(0)


def test_term_while_waiting_for_the_lock_ends_with_143(host: Host) -> None:
    host.set("LOCK_SECONDS", 20)
    with host.locked():
        process = host.start()
        wait_until(lambda: host.has_lock_open(process))
        process.signal_group(signal.SIGTERM)
        process.finish().ends_with(143)
    assert host.calls == []


@pytest.mark.parametrize("event", ["capture", "stop", "ps", "inspect", "config"])
def test_the_lock_is_free_when_the_run_dies_while_a_call_hangs(host: Host, event: str) -> None:
    """The call goes on hanging. A descriptor that it has inherited would hold the lock."""
    host.on(event, "hang()")
    host.start_until_hanging().kill()
    wait_until(host.lock_is_free, 3, f"for the lock after a death in {event}")


def test_the_next_run_after_a_killed_one_succeeds_and_removes_what_it_left(host: Host) -> None:
    host.on("capture", "hang()")
    host.start_until_hanging().kill()
    assert list(host.staging.iterdir())
    host.off("capture")
    host.run().ends_with(0)
    host.tracker_is("running")
    host.nothing_is_left()
    assert len(host.published()) == 2
