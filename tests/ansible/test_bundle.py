"""How the playbooks take the bundle to the host: what arrives, what stays there, what is printed.

The host is this machine, over Ansible's local connection. The bundle's program is a stand-in that
writes down how it was called. Everything else is the real thing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PLAYBOOK_SECONDS = 120
SECRET = "p\"a'ss {{ $(x) }} é\n"
VARIABLES = """\
backup_environment: !unsafe 'production'
backup_host: !unsafe 'here'
backup_ssh_user: !unsafe 'torrust'
backup_ssh_port: 22
backup_ssh_private_key: !unsafe '/key'
backup_deploy_dir: !unsafe '/opt/torrust'
backup_destination: !unsafe '/opt/torrust/storage/backup'
backup_secrets: [db_password, db_root_password]
backup_secret_files: {}
"""
PROGRAM = """
import json, os, stat, sys
from pathlib import Path
bundle = Path(__file__).resolve().parents[1]
told = {
    "words": sys.argv[1:],
    "input": json.load(sys.stdin),
    "directory": str(bundle),
    "mode": oct(stat.S_IMODE(bundle.stat().st_mode)),
    "files": {str(p.relative_to(bundle)): p.read_bytes().hex() for p in bundle.rglob("*")
              if p.is_file() and p != Path(__file__).resolve()},
}
Path(RECORD).write_text(json.dumps(told))
print("changed: /etc/something" if CHANGES else "info: nothing")
print("said on standard error", file=sys.stderr)
sys.exit(CODE)
"""


@dataclass
class Played:
    """How a playbook ended, and how it called the bundle's program."""

    code: int
    output: str
    told: dict[str, Any]

    @property
    def text(self) -> str:
        """The output without the line ends that Ansible puts anywhere."""
        return " ".join(self.output.split())


@dataclass
class Bundle:
    """A bundle in a directory of the test's own, whose program ends with `code`."""

    directory: Path
    code: int = 0
    changes: bool = True

    def play(
        self, name: str, *options: str, secrets: bool = True, path: str = os.environ["PATH"]
    ) -> Played:
        bundle, record = self.directory / "bundle", self.directory / "record"
        shutil.copytree(REPOSITORY / "bundle-templates", bundle, dirs_exist_ok=True)
        (bundle / "variables.yml").write_text(VARIABLES, encoding="utf-8")
        head = f"RECORD, CHANGES, CODE = {str(record)!r}, {self.changes}, {self.code}\n"
        (bundle / "host/tracker-backup").write_text(head + PROGRAM, encoding="utf-8")
        (bundle / "backup/odd").write_text("{{ no_template }}\r\nline\n\n[1, 2]\n é", newline="")
        if secrets:
            (bundle / "secrets").mkdir(exist_ok=True)
            (bundle / "secrets/db_password").write_text(SECRET, encoding="utf-8")
        names = [str(one.relative_to(bundle)) for one in bundle.rglob("*") if one.is_file()]
        listed = {one: {"executable": False} for one in names if not one.startswith("secrets/")}
        (bundle / "manifest.json").write_text(json.dumps({"files": listed}))
        (bundle / "stray").write_text("in no manifest")
        record.unlink(missing_ok=True)
        inventory = self.directory / "hosts"
        inventory.write_text(
            "here ansible_connection=local ansible_become=false "
            f"ansible_python_interpreter={sys.executable}\n"
        )
        settings = {
            "ANSIBLE_HOME": str(self.directory / "home"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_BECOME_ALLOW_SAME_USER": "1",
        }
        scratch = self.directory / "tmp"
        scratch.mkdir(exist_ok=True)
        own = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
        done = subprocess.run(
            [ansible_playbook(), "-i", str(inventory), str(bundle / f"{name}.yml"), *options],
            env=own | settings | {"PATH": path, "TMPDIR": str(scratch)},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PLAYBOOK_SECONDS,
            check=False,
        )
        told = json.loads(record.read_bytes()) if record.exists() else {}
        return Played(done.returncode, done.stdout, told)


def ansible_playbook() -> str:
    """The one of this Python environment, else the one on PATH."""
    found = shutil.which("ansible-playbook", path=Path(sys.executable).parent)
    return found or shutil.which("ansible-playbook") or "ansible-playbook"


def test_the_bundle_arrives_byte_for_byte_and_does_not_stay(tmp_path: Path) -> None:
    played = Bundle(tmp_path).play("install-backup", "-e", "backup_on_install=false")
    assert played.code == 0, played.output
    bundle = tmp_path / "bundle"
    listed = json.loads((bundle / "manifest.json").read_bytes())["files"]
    names = {*listed, "manifest.json"} - {"host/tracker-backup"}
    assert played.told["files"] == {name: (bundle / name).read_bytes().hex() for name in names}
    assert (played.told["words"], played.told["mode"]) == (["install"], "0o700")
    assert not Path(played.told["directory"]).exists()
    assert "changed=1 " in played.output


def test_the_host_gets_three_tasks_at_most_for_the_bundle(tmp_path: Path) -> None:
    """Each other task shows, checks or reads something where Ansible runs."""
    played = Bundle(tmp_path).play("install-backup", "-e", "backup_on_install=false")
    play = played.output.partition("PLAY [Install the backup]")[2]
    tasks = [line for line in play.splitlines() if line.startswith("TASK [")]
    assert [task.partition("]")[0] for task in tasks] == [
        "TASK [Read the secrets",
        "TASK [Run tracker-backup on the host",
        "TASK [Show what it said",
        "TASK [Check that it succeeded",
        "TASK [Make the first backup",
    ]


@pytest.mark.parametrize("options", [(), ("--check", "--diff"), ("-vvv", "--diff")])
def test_secrets_come_on_standard_input_alone(tmp_path: Path, options: tuple[str, ...]) -> None:
    values = tmp_path / "vault.yml"
    values.write_text("backup_db_root_password: !unsafe '[1, \"{{ x }}\"]'\n", encoding="utf-8")
    played = Bundle(tmp_path).play(
        "install-backup", "-e", "backup_on_install=false", "-e", f"@{values}", *options
    )
    assert played.code == 0, played.output
    assert played.told["input"] == {"db_password": SECRET, "db_root_password": '[1, "{{ x }}"]'}
    assert not [name for name in played.told["files"] if name.startswith("secrets/")]
    assert "p\"a'ss" not in played.output
    assert "p\\\"a'ss" not in played.output


def test_without_secrets_none_are_sent(tmp_path: Path) -> None:
    played = Bundle(tmp_path).play("install-backup", "-e", "backup_on_install=false", secrets=False)
    assert (played.code, played.told["input"]) == (0, {})


def test_check_and_diff_are_the_programs_own(tmp_path: Path) -> None:
    played = Bundle(tmp_path).play("install-backup", "--check", "--diff", "-e", "rebuild_image=yes")
    assert played.code == 0, played.output
    assert played.told["words"] == ["install", "--rebuild-image", "--check", "--diff"]
    assert "changed: /etc/something" in played.output
    assert "changed=1 " in played.output
    assert not Path(played.told["directory"]).exists()


def test_what_the_program_says_when_it_fails_is_shown(tmp_path: Path) -> None:
    played = Bundle(tmp_path, code=2).play("install-backup")
    assert played.code != 0
    assert "said on standard error" in played.text
    assert not Path(played.told["directory"]).exists()


def test_uninstalling_sends_the_bundle_and_no_secret(tmp_path: Path) -> None:
    played = Bundle(tmp_path).play("uninstall-backup")
    assert (played.code, played.told["words"], played.told["input"]) == (0, ["uninstall"], {})
    played = Bundle(tmp_path).play("uninstall-backup", "--check")
    assert (played.code, played.told) == (0, {})


def test_restoring_sends_the_bundle_also_to_say_what_it_would_do(tmp_path: Path) -> None:
    played = Bundle(tmp_path).play("restore-backup", "-e", "backup_run=latest", "--check")
    assert played.code == 0, played.output
    assert played.told["words"] == ["restore", "latest", "--dry-run"]


def test_a_host_without_python_is_told_apart_from_one_without_the_backup(tmp_path: Path) -> None:
    folder = tmp_path / "without-python"
    folder.mkdir()
    for name in ("sh", "env", "rm", "mkdir", "chmod", "sleep", "tr", "whoami", "id", "ls"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    played = Bundle(tmp_path).play("install-backup", path=str(folder))
    assert played.code != 0
    assert "There is no python3 on this host" in played.text, played.output
    played = Bundle(tmp_path).play("backup-status")
    assert "The backup is not installed on this host" in played.text
    assert played.code != 0


def test_when_sudo_refuses_its_own_words_are_shown(tmp_path: Path) -> None:
    sudo = tmp_path / "sudo"
    sudo.write_text("#!/bin/sh\necho 'sudo: sorry, you must have a tty to run sudo' >&2\nexit 1\n")
    sudo.chmod(0o755)
    options = ("-e", "ansible_become=true", "-e", f"ansible_become_exe={sudo}")
    for name in ("install-backup", "backup-status"):
        played = Bundle(tmp_path).play(name, *options)
        assert played.code != 0
        assert "sorry, you must have a tty" in played.text
        assert "p\"a'ss" not in played.output
