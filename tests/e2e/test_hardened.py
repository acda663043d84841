"""Hosts that somebody hardened: what installs there, and what is refused with its reason."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from e2e.bundle import Bundle, Outcome, ssh_key
from e2e.deployment import Deployment
from e2e.host import USER, Host
from e2e.stack import Stack

# Without a terminal sudo refuses. Files are for their owner alone, and nothing runs from /tmp.
HARDEN = f"""
printf 'Defaults requiretty\\nDefaults umask=0077\\nDefaults umask_override\\n' >/etc/sudoers.d/zz
chmod 0440 /etc/sudoers.d/zz
visudo --check --quiet
echo 'umask 077' >>/home/{USER}/.profile
echo 'LC_ALL=de_DE' >>/etc/environment
mount -o remount,noexec /tmp
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hardened(docker: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder, stack = tmp_path_factory.mktemp("hardened"), Stack("sqlite3")
    key = ssh_key(folder)
    with Host(f"gen-backup-bundle-e2e-hardened-{os.getpid()}") as host:
        host.authorize(key.with_suffix(".pub").read_text(encoding="utf-8"))
        stack.bring_up(host)
        host.sh(HARDEN)
        bundle = Bundle.generate(stack.environment(key, {}), folder / "bundle", host.address)
        nothing = Outcome(0, "")
        yield Deployment(host, stack, bundle, key, frozenset(), nothing, nothing)


def test_sudo_that_wants_a_terminal_is_told_in_its_own_words(hardened: Deployment) -> None:
    refused = hardened.bundle.playbook("install-backup")
    assert refused.code != 0
    assert "you must have a tty to run sudo" in " ".join(refused.output.split())
    assert not hardened.host.exists("/etc/tracker-backup.conf")


def test_a_read_only_usr_local_is_refused_before_anything_changes(hardened: Deployment) -> None:
    host = hardened.host
    host.sh("mount --bind /usr/local /usr/local && mount -o remount,bind,ro /usr/local")
    try:
        refused = hardened.bundle.playbook("install-backup", "-i", inventory(hardened))
    finally:
        host.run("umount", "/usr/local")
    assert refused.code != 0
    text = " ".join(refused.output.split())
    assert "/usr/local/bin cannot be written, is its file system mounted read-only?" in text
    assert not host.exists("/etc/tracker-backup.conf")


def test_what_the_inventory_says_about_pipelining_wins(hardened: Deployment) -> None:
    """The whole installation, with its first backup, and the playbooks for operators."""
    bundle, hosts = hardened.bundle, inventory(hardened)
    installed = bundle.playbook("install-backup", "-i", hosts).succeeded()
    assert "succeeded" in installed.output
    assert hardened.host.stat("/usr/local/bin/tracker-backup") == "root:root 755"
    assert hardened.host.stat("/etc/cron.d/tracker-backup") == "root:root 644"
    assert bundle.playbook("install-backup", "-i", hosts).succeeded().changed == 0
    for name in ("backup-status", "run-backup", "verify-backup", "uninstall-backup"):
        bundle.playbook(name, "-i", hosts).succeeded()
    left = hardened.host.sh(
        "find /tmp /home /root -name '*tracker-backup*' -o -name 'ansible-tmp*'"
    )
    assert left == ""


def inventory(hardened: Deployment) -> str:
    path = hardened.key.with_name("hosts")
    path.write_text(f"{hardened.host.address} ansible_pipelining=false\n", encoding="utf-8")
    return str(path)
