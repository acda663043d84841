"""The copy in the restic repository, at the end of a run."""

from __future__ import annotations

import signal

import pytest

from program.host import Host
from program.old_runs import add_old_run

NAMES = ("REPOSITORY", "PASSWORD")


@pytest.fixture
def copying(host: Host) -> Host:
    """A host whose runs are copied to a restic repository."""
    settings = {f"RESTIC_{name}_FILE": f"/run/secrets/restic_{name.lower()}" for name in NAMES}
    settings |= {"RESTIC_KEEP_DAILY": "7", "RESTIC_CHECK": "false"}
    with (host.deploy / "backup/backup.conf").open("a") as file:
        file.writelines(f"{key}='{value}'\n" for key, value in settings.items())
    secrets = host.deploy / "backup/secrets"
    secrets.mkdir(mode=0o700)
    for name in NAMES:
        (secrets / f"restic_{name.lower()}").write_text("rest:https://copies.example.org/")
    return host


def test_what_was_published_is_pushed_after_retention_and_outside_the_window(
    copying: Host,
) -> None:
    old = add_old_run(copying)
    names = [name.rpartition("/")[2] for name in old]
    copying.on(
        "backup",
        f"there = [path.name for path in DESTINATION.rglob('*')]\n"
        f"assert not set({names}) & set(there), there",
    )
    copying.run().ends_with(0)
    copying.calls_in_order("^docker start 7e57", "^docker run .*tracker-backup-restic", "^job back")
    copying.nothing_is_left()


def test_a_push_that_fails_leaves_the_backup_published_and_ends_the_run_with_1(
    copying: Host,
) -> None:
    copying.on("backup", "refuse('no route to the server', 14)")
    copying.run().ends_with(
        1, "the backup was published, but copying to the restic repository failed", "no route"
    )
    manifest = copying.recorded("success", exit_code=0)
    assert any("no route to the server" in warning for warning in manifest["warnings"])
    assert len(copying.published()) == 2
    copying.nothing_is_left()


def test_a_failed_run_pushes_nothing(copying: Host) -> None:
    copying.on("examine", "refuse('malformed')")
    copying.run().ends_with(1)
    copying.never_called("^docker run .*tracker-backup-restic")


def test_term_during_the_push_ends_the_run_at_once(copying: Host) -> None:
    copying.on("backup", "hang()")
    process = copying.start_until_hanging()
    process.signal(signal.SIGTERM)
    end = "was published, and then failed, exit code 143: ended by a signal"
    process.finish().ends_with(143, end)
    copying.recorded("success", exit_code=0)
    copying.nothing_is_left()


def test_what_the_host_writes_does_not_go_through_a_link_of_a_role(copying: Host) -> None:
    victim = copying.stub / "victim"
    victim.write_text("kept\n")
    names = ["push", "compose", "push.output", "compose.output"]
    copying.on("archive", f"for name in {names}: (work / name).symlink_to(STUB / 'victim')")
    copying.on("backup", "refuse('no route', 14)")
    copying.run()
    assert victim.read_text() == "kept\n"
    assert not list(copying.state.glob("*.output"))
