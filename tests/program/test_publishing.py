"""Failures after the window: nothing stays under a final name, and nothing old is removed."""

from __future__ import annotations

import json
import signal

import pytest

from program.host import Host, wait_until
from program.old_runs import add_old_run


@pytest.mark.parametrize("job", ["examine", "compress"])
def test_a_failed_job_after_the_window_ends_with_1_and_the_tracker_is_long_back(
    host: Host, job: str
) -> None:
    host.on(job, "refuse('integrity_check found: malformed')")
    host.run().ends_with(1)
    host.calls_in_order("^docker start 7e57", f"^job {job} ")
    host.recorded("failed", exit_code=1, reason="integrity_check found: malformed", files=[])
    host.failed_safely()


def test_without_an_archive_the_database_is_published_and_the_run_is_incomplete(
    host: Host,
) -> None:
    host.on("archive", "refuse('no space left')")
    host.run().ends_with(1, "the configuration could not be archived: no space left")
    (path,) = host.run_files()
    manifest = json.loads(path.read_text())
    assert (manifest["result"], manifest["exit_code"]) == ("incomplete", 1)
    assert manifest["missing"] == ["the whole configuration"]
    assert [file["kind"] for file in manifest["files"]] == ["database"]


def test_a_docker_that_fails_when_the_manifest_is_written_does_not_discard_the_backup(
    host: Host,
) -> None:
    """The manifest names the images of the stack, which were read before the window."""
    add_old_run(host)
    host.on("archive", "touch('archived')")
    host.on("ps", "if (STUB / 'archived').exists(): fail('the daemon is gone')")
    host.run().ends_with(0, "succeeded")
    manifest = json.loads(host.run_files()[-1].read_text())
    assert (manifest["result"], manifest["images"]) == ("success", {"tracker": "sha256:feed"})
    assert manifest["compose_files"] == ["docker-compose.yml"]


def test_a_run_manifest_that_says_success_does_not_outlive_the_files_of_its_run(
    host: Host,
) -> None:
    """The run is ended when its manifest has its name already."""
    hold = host.stop_at("writing-the-run-manifest")
    process = host.start()
    wait_until((hold.parent / "reached").exists, 20, "for the fault point")
    del host.environment["TRACKER_BACKUP_STOP_AT"]
    (run,) = (path for path in host.staging.iterdir() if path.name[0].isdigit())
    manifest = host.destination / f"runs/{run.name}.json"
    manifest.write_text('{"result": "success"}')
    process.signal(signal.SIGTERM)
    hold.unlink()
    process.finish().ends_with(143)
    host.recorded("failed", exit_code=143)
    host.nothing_was_published()


def test_nothing_is_pruned_after_a_failed_run_but_after_a_good_one(host: Host) -> None:
    old = add_old_run(host)
    before = host.published()
    host.on("examine", "refuse('malformed')")
    host.run().ends_with(1).lacks("retention: removed")
    assert host.published() == before
    host.off("examine")
    host.run().ends_with(0, f"retention: removed {old[0]}", f"retention: removed {old[1]}")
    assert len(host.published()) == 4
    assert not set(old) & set(host.published())


def test_a_reason_of_several_lines_stays_one_line_of_the_run_manifest(host: Host) -> None:
    host.on("preflight", "refuse('one\\ntwo=2')")
    host.run().ends_with(1)
    reason = host.recorded("failed")["reason"]
    assert reason.startswith("one")
    assert reason.endswith("two=2")
    assert "\n" not in reason
