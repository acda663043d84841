"""Uninstalling; last on each host, for it leaves the host without what the other tests need."""

from __future__ import annotations

import pytest

from e2e.deployment import DESTINATION, Deployment
from e2e.stack import untouched

# The last one is a file of runc, which it leaves when a `docker exec` is killed.
OF_THE_TESTS = (
    "/root/shim /tmp/docker-calls* /root/kept* /root/moved* /root/paths /tmp/locked "
    "/tmp/runc-process*"
)


def test_uninstalling_leaves_the_backups_and_nothing_else_of_ours(deployment: Deployment) -> None:
    deployment.host.sh(f"rm -rf {OF_THE_TESTS}")
    backups, containers = deployment.published(), deployment.host.containers()
    assert backups
    said = deployment.bundle.playbook("uninstall-backup", "--check").succeeded()
    assert said.changed == 0
    deployment.bundle.playbook("uninstall-backup").succeeded()
    assert deployment.published() == backups
    left = {
        entry
        for entry in Deployment.inventory(deployment.host) - deployment.before
        if not entry.startswith(DESTINATION)
    }
    assert left == set()
    cached = deployment.host.sh("docker system df --verbose --format '{{json .BuildCache}}'")
    assert not any(mark in cached for mark in ("tracker-backup", "COPY backup", "/etc/crontab"))
    assert untouched(containers, deployment.host.containers())
    again = deployment.bundle.playbook("uninstall-backup").succeeded()
    assert again.changed == 0


@pytest.mark.only("sqlite3")  # with BuildKit, every package would be downloaded again
def test_what_was_left_serves_a_new_installation(deployment: Deployment) -> None:
    backups = deployment.published()
    deployment.bundle.playbook("uninstall-backup").succeeded()
    deployment.bundle.playbook("install-backup", "-e", "backup_on_install=false").succeeded()
    assert deployment.published() == backups
    assert deployment.runs()
