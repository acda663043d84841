"""Which host the playbooks work on and how they reach it, read off the command line that Ansible
gives to ssh.

ssh is a stand-in that writes its arguments down and fails, so nothing is connected to; everything
else is the real thing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PLAYBOOK_SECONDS = 120

VARIABLES = """\
backup_environment: !unsafe 'production'
backup_host: !unsafe '{host}'
backup_ssh_user: !unsafe 'json-user'
backup_ssh_port: {port}
backup_ssh_private_key: !unsafe '~/json-key'
backup_deploy_dir: !unsafe '/opt/torrust'
backup_destination: !unsafe '/opt/torrust/storage/backup'
backup_secrets: []
backup_secret_files: {{}}
"""

INVENTORY = """\
[web]
tracker ansible_host=192.0.2.7 ansible_user=inventory-user ansible_port=2222 \
    ansible_ssh_private_key_file=/inventory/key
[db]
plain
"""

WAYS = ("-e target_host=", "-i HOST,", "--host ADDRESS")


@dataclass(frozen=True)
class Connection:
    """One ssh command line, as far as it says where to and how."""

    address: str
    user: str
    port: str
    key: str


JSON_WAY = ("json-user", "2022", str(Path.home() / "json-key"))


@dataclass(frozen=True)
class Bundle:
    """A bundle's playbooks in a directory of the test's own, generated with `--host` when `host` is
    not empty.
    """

    directory: Path
    host: str = ""
    port: int = 2022

    def play(self, *options: str, config: str = "") -> tuple[str, set[Connection]]:
        """What run-backup.yml printed, and the connections that it tried."""
        bundle = self.directory / "bundle"
        shutil.copytree(REPOSITORY / "bundle-templates", bundle)
        (bundle / "variables.yml").write_text(
            VARIABLES.format(host=self.host, port=self.port), encoding="utf-8"
        )
        log, ssh, cfg = (self.directory / name for name in ("log", "ssh", "ansible.cfg"))
        # One line a call, the arguments between tabs.
        ssh.write_text(
            f'#!/bin/sh\n(IFS="\t"; printf "%s\\n" "$*") >>{log}\nexit 255\n', encoding="utf-8"
        )
        ssh.chmod(0o755)
        log.touch()
        cfg.write_text(f"[defaults]\n{config}", encoding="utf-8")
        settings = {
            "ANSIBLE_CONFIG": str(cfg),
            "ANSIBLE_SSH_EXECUTABLE": str(ssh),
            "ANSIBLE_HOME": str(self.directory / "home"),
            "ANSIBLE_NOCOLOR": "1",
        }
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")
        } | settings
        done = subprocess.run(
            [_ansible_playbook(), str(bundle / "run-backup.yml"), *options],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PLAYBOOK_SECONDS,
            check=False,
        )
        assert done.returncode != 0, (
            "the stand-in for ssh fails, and so does whatever does not get as far"
        )
        return done.stdout, {
            _connection(line) for line in log.read_text(encoding="utf-8").splitlines()
        }


def _ansible_playbook() -> str:
    """The one of this Python environment, else the one on PATH."""
    return shutil.which("ansible-playbook", path=Path(sys.executable).parent) or "ansible-playbook"


def _connection(line: str) -> Connection:
    def option(name: str) -> str:
        found = re.search(rf'\t{name}="?([^"\t]*)', line)
        assert found, f"no {name} in {line!r}"
        return found[1]

    # The address comes last but one; the command for the host is one argument.
    return Connection(line.split("\t")[-2], option("User"), option("Port"), option("IdentityFile"))


@pytest.fixture
def inventory(tmp_path: Path) -> str:
    """A file with two hosts, of which one says how it is reached."""
    path = tmp_path / "hosts.ini"
    path.write_text(INVENTORY, encoding="utf-8")
    return str(path)


TRACKER = Connection("192.0.2.7", "inventory-user", "2222", "/inventory/key")
PLAIN = Connection("plain", *JSON_WAY)


def test_no_host_at_all_names_the_three_ways(tmp_path: Path) -> None:
    output, connections = Bundle(tmp_path).play()
    assert not connections
    assert "No host to work on" in output
    assert all(way in output for way in WAYS)


def test_the_bundles_own_host_needs_no_inventory(tmp_path: Path) -> None:
    _, connections = Bundle(tmp_path, "198.51.100.1").play()
    assert connections == {Connection("198.51.100.1", *JSON_WAY)}


def test_the_only_host_of_the_inventory_is_taken(tmp_path: Path) -> None:
    _, connections = Bundle(tmp_path).play("-i", "198.51.100.2,")
    assert connections == {Connection("198.51.100.2", *JSON_WAY)}


def test_several_hosts_in_the_inventory_are_a_question_not_a_guess(
    tmp_path: Path, inventory: str
) -> None:
    output, connections = Bundle(tmp_path).play("-i", inventory)
    assert not connections
    assert "holds 2 hosts" in output
    assert all(way in output for way in (*WAYS, "plain", "tracker"))


def test_all_means_every_host_of_the_inventory_each_in_its_own_way(
    tmp_path: Path, inventory: str
) -> None:
    _, connections = Bundle(tmp_path).play("-i", inventory, "-e", "target_host=all")
    assert connections == {TRACKER, PLAIN}


def test_target_host_wins_over_the_bundles_own_host(tmp_path: Path) -> None:
    _, connections = Bundle(tmp_path, "198.51.100.1").play("-e", "target_host=2001:db8::1")
    assert connections == {Connection("2001:db8::1", *JSON_WAY)}


@pytest.mark.parametrize("named", ["tracker", "192.0.2.7"])
def test_a_host_of_the_inventory_keeps_its_variables_by_name_or_by_address(
    tmp_path: Path, inventory: str, named: str
) -> None:
    _, connections = Bundle(tmp_path).play(
        "-i", inventory, "-e", f"target_host={named}", "-u", "cli-user", "--private-key", "/cli/key"
    )
    assert connections == {TRACKER}


def test_the_bundles_own_host_is_found_in_the_inventory_by_its_address(
    tmp_path: Path, inventory: str
) -> None:
    _, connections = Bundle(tmp_path, "192.0.2.7").play("-i", inventory)
    assert connections == {TRACKER}


def test_limit_narrows_the_inventory(tmp_path: Path, inventory: str) -> None:
    _, connections = Bundle(tmp_path).play("-i", inventory, "--limit", "plain")
    assert connections == {PLAIN}


def test_limit_that_leaves_the_host_out_is_an_error_not_an_empty_run(
    tmp_path: Path, inventory: str
) -> None:
    output, connections = Bundle(tmp_path, "198.51.100.1").play("-i", inventory, "--limit", "plain")
    assert not connections
    assert "leaves out 198.51.100.1" in output


def test_user_and_key_of_the_command_line_win_over_the_json(tmp_path: Path) -> None:
    _, connections = Bundle(tmp_path, "198.51.100.1").play(
        "-u", "cli-user", "--private-key", "/cli/key"
    )
    assert connections == {Connection("198.51.100.1", "cli-user", "2022", "/cli/key")}


def test_extra_variables_win_over_everything(tmp_path: Path, inventory: str) -> None:
    _, connections = Bundle(tmp_path).play(
        "-i",
        inventory,
        "-e",
        "target_host=tracker",
        "-e",
        "ansible_user=extra",
        "-e",
        "ansible_port=99",
    )
    assert connections == {Connection("192.0.2.7", "extra", "99", "/inventory/key")}


def test_ansible_cfg_does_not_win_over_the_json(tmp_path: Path) -> None:
    config = "remote_user = cfg-user\nprivate_key_file = /cfg/key\nremote_port = 4\n"
    _, connections = Bundle(tmp_path, "198.51.100.1").play(config=config)
    assert connections == {Connection("198.51.100.1", *JSON_WAY)}


def test_variables_that_are_not_as_generated_name_the_file(tmp_path: Path) -> None:
    output, connections = Bundle(tmp_path, "198.51.100.1", port=70000).play()
    assert not connections
    assert f"{tmp_path}/bundle/variables.yml" in output.replace("\n", "")
