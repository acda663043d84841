"""Installing, installing again, and removing: what is where with which mode, and what is refused
before anything changes.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from unit.sandbox import IMAGE, Sandbox, mode

SECRETS = {"db_password": "p\"a'ss $(x) é", "db_root_password": "root"}


def snapshot(host: Sandbox) -> dict[str, tuple[str, bytes, int]]:
    """Everything on the host but the stub's own records: mode, content, time of change."""
    return {
        str(path.relative_to(host.path)): (
            mode(path),
            path.read_bytes() if path.is_file() else b"",
            path.lstat().st_mtime_ns if path.is_file() else 0,
        )
        for path in host.path.rglob("*")
        if not path.is_relative_to(host.stub) and path != host.state / "lock"
    }


# ---------------------------------------------------------------- places, modes, idempotence


def test_everything_is_in_its_place_with_its_mode(sandbox: Sandbox) -> None:
    outcome = sandbox.install(secrets=SECRETS)
    assert outcome.code == 0
    deploy, root = sandbox.deploy, sandbox.root
    assert {
        str(path.relative_to(sandbox.path)): mode(path)
        for path in (
            deploy / "docker-compose.backup.yml",
            deploy / "backup",
            deploy / "backup/Dockerfile",
            deploy / "backup/.dockerignore",
            deploy / "backup/backup.sh",
            deploy / "backup/backup.conf",
            deploy / "backup/backup-paths.txt",
            deploy / "backup/secrets",
            deploy / "backup/secrets/db_password",
            deploy / "backup/secrets/db_root_password",
            deploy / "storage/backup-staging",
            deploy / "storage/backup",
            deploy / "storage/backup/sqlite",
            deploy / "storage/backup/mysql",
            deploy / "storage/backup/config",
            deploy / "storage/backup/runs",
            deploy / "storage/backup/.tracker-backup.json",
            root / "etc/tracker-backup.conf",
            root / "etc/cron.d/tracker-backup",
            root / "etc/logrotate.d/tracker-backup",
            root / "usr/local/bin/tracker-backup",
            root / "usr/local/bin/maintenance-backup.sh",
            root / "var/log/tracker-backup.log",
            root / "var/lib/tracker-backup",
        )
    } == {
        "deploy/docker-compose.backup.yml": "0644",
        "deploy/backup": "0755",
        "deploy/backup/Dockerfile": "0644",
        "deploy/backup/.dockerignore": "0644",
        "deploy/backup/backup.sh": "0755",
        "deploy/backup/backup.conf": "0644",
        "deploy/backup/backup-paths.txt": "0644",
        "deploy/backup/secrets": "0700",
        "deploy/backup/secrets/db_password": "0600",
        "deploy/backup/secrets/db_root_password": "0600",
        "deploy/storage/backup-staging": "0700",
        "deploy/storage/backup": "0700",
        "deploy/storage/backup/sqlite": "0700",
        "deploy/storage/backup/mysql": "0700",
        "deploy/storage/backup/config": "0700",
        "deploy/storage/backup/runs": "0700",
        "deploy/storage/backup/.tracker-backup.json": "0600",
        "root/etc/tracker-backup.conf": "0644",
        "root/etc/cron.d/tracker-backup": "0644",
        "root/etc/logrotate.d/tracker-backup": "0644",
        "root/usr/local/bin/tracker-backup": "0755",
        "root/usr/local/bin/maintenance-backup.sh": "0755",
        "root/var/log/tracker-backup.log": "0640",
        "root/var/lib/tracker-backup": "0700",
    }


def test_content_is_the_bundles_own(host: Sandbox) -> None:
    for name, placed in {
        "docker-compose.backup.yml": host.deploy / "docker-compose.backup.yml",
        "backup/backup.sh": host.deploy / "backup/backup.sh",
        "backup/backup.conf": host.deploy / "backup/backup.conf",
        "host/tracker-backup.conf": host.config,
        "host/tracker-backup.cron": host.cron,
        "host/tracker-backup": host.root / "usr/local/bin/tracker-backup",
    }.items():
        assert placed.read_bytes() == (host.bundle / name).read_bytes()


def test_installing_again_changes_nothing(host: Sandbox) -> None:
    before = snapshot(host)
    outcome = host.install()
    assert outcome.code == 0
    assert outcome.changes == []
    assert snapshot(host) == before
    assert not [call for call in host.calls if call.startswith(("docker build", "docker pull"))]


def test_what_was_edited_by_hand_is_put_right_again(host: Sandbox) -> None:
    host.cron.write_text("* * * * * root true\n")
    host.config.chmod(0o666)
    (host.secrets / "db_password").chmod(0o644)
    (host.deploy / "backup/backup.sh").unlink()
    outcome = host.install()
    assert len(outcome.changes) == 4
    assert host.cron.read_bytes() == (host.bundle / "host/tracker-backup.cron").read_bytes()
    assert mode(host.config) == "0644"
    assert mode(host.secrets / "db_password") == "0600"
    assert host.install().changes == []


def test_directories_that_are_too_open_are_closed(host: Sandbox) -> None:
    closed = [
        host.secrets,
        host.deploy / "storage/backup-staging",
        host.destination / "sqlite",
        host.destination / "runs",
        host.destination,
        host.state,
    ]
    for path in closed:
        path.chmod(0o755)
    assert host.install().code == 0
    assert {str(path): mode(path) for path in closed} == {str(path): "0700" for path in closed}


def test_a_symlink_in_a_files_place_is_replaced_and_not_followed(sandbox: Sandbox) -> None:
    victim = sandbox.path / "victim"
    victim.write_text("precious")
    (sandbox.deploy / "docker-compose.backup.yml").symlink_to(victim)
    sandbox.cron.symlink_to(victim)
    assert sandbox.install().code == 0
    assert victim.read_text() == "precious"
    assert not sandbox.cron.is_symlink()


def test_the_operators_own_files_are_left_alone(host: Sandbox) -> None:
    assert (host.deploy / "docker-compose.yml").read_text() == "services: {}\n"
    assert (host.deploy / ".env").read_text() == "SECRET=1\n"


def test_the_log_is_not_emptied(host: Sandbox) -> None:
    (host.root / "var/log/tracker-backup.log").write_text("yesterday\n")
    host.install()
    assert (host.root / "var/log/tracker-backup.log").read_text() == "yesterday\n"


def test_the_schedule_comes_last(sandbox: Sandbox) -> None:
    (sandbox.root / "usr/local/bin/tracker-backup").mkdir()
    assert sandbox.install().code == 1
    assert not sandbox.cron.exists()


def test_the_first_installation_says_that_there_is_no_backup_yet(sandbox: Sandbox) -> None:
    assert "no backup yet" in sandbox.install().out
    sandbox.add_run("20260101_030000", 1)
    assert "no backup yet" not in sandbox.install().out


# ---------------------------------------------------------------- the upload


@pytest.mark.parametrize(
    "name", ["backup/backup.sh", "host/tracker-backup.cron", "docker-compose.backup.yml"]
)
def test_a_torn_upload_is_refused_and_changes_nothing(sandbox: Sandbox, name: str) -> None:
    with (sandbox.bundle / name).open("ab") as file:
        file.write(b"# cut off")
    before = snapshot(sandbox)
    outcome = sandbox.install()
    assert outcome.code != 0
    assert name in outcome.err
    assert "upload the bundle again" in outcome.err
    assert snapshot(sandbox) == before


def test_a_file_that_did_not_arrive_is_refused(sandbox: Sandbox) -> None:
    (sandbox.bundle / "backup/backup.sh").unlink()
    outcome = sandbox.install()
    assert outcome.code != 0
    assert "backup/backup.sh" in outcome.err
    assert not sandbox.config.exists()


def test_a_manifest_that_was_cut_off_is_refused_and_named(sandbox: Sandbox) -> None:
    path = sandbox.bundle / "manifest.json"
    path.write_bytes(path.read_bytes()[:-20])
    outcome = sandbox.install()
    assert outcome.code != 0
    assert "manifest.json" in outcome.err
    assert not sandbox.config.exists()


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        "{}",
        '{"files": []}',
        '{"files": {"backup/backup.sh": {}}}',
        '{"files": {"backup/backup.sh": {"sha": "0"}}}',
        '{"files": {"backup/backup.sh": "0"}}',
        '{"files": ' + "[" * 100_000,
    ],
)
def test_a_manifest_of_another_shape_is_refused_and_named(sandbox: Sandbox, manifest: str) -> None:
    (sandbox.bundle / "manifest.json").write_text(manifest)
    outcome = sandbox.install()
    assert outcome.code == 1
    assert outcome.err.startswith(f"error: {sandbox.bundle}/manifest.json cannot be read: upload")
    assert not sandbox.config.exists()


def test_a_manifest_that_lacks_a_file_is_refused_and_the_file_named(sandbox: Sandbox) -> None:
    (sandbox.bundle / "host/tracker-backup.cron").unlink()
    sandbox.sign()
    outcome = sandbox.install()
    assert outcome.code == 1
    assert "manifest.json does not name host/tracker-backup.cron" in outcome.err
    assert not sandbox.config.exists()


def test_files_beside_the_bundle_are_left_alone(host: Sandbox) -> None:
    """An operator may run the installer of a clone of the bundle."""
    theirs = [host.bundle / name for name in (".git/config", "notes.txt", "host/mine.sh")]
    for path in theirs:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert host.install().changes == []
    assert [path.read_text() for path in theirs] == ["mine"] * 3


@pytest.mark.parametrize("name", ["bundle", "bundle.partial"])
def test_a_link_at_the_place_of_our_own_copy_is_not_followed(host: Sandbox, name: str) -> None:
    theirs = host.path / "theirs"
    (theirs / "backup").mkdir(parents=True)
    (theirs / "backup/precious").write_text("mine")
    kept = host.state / name
    if kept.exists():
        shutil.rmtree(kept)
    kept.symlink_to(theirs)
    (host.bundle / "host/tracker-backup.cron").write_text("# another schedule\n")
    host.sign()
    assert host.install().code == 0
    assert (theirs / "backup/precious").read_text() == "mine"
    assert [path.name for path in theirs.rglob("*") if path.is_file()] == ["precious"]
    assert not (host.state / "bundle").is_symlink()
    assert (host.state / "bundle/host/tracker-backup.cron").read_text() == "# another schedule\n"


def test_what_is_installed_is_kept_as_a_bundle(host: Sandbox) -> None:
    kept, bundle = host.state / "bundle", host.bundle
    assert {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()} == {
        str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()
    }
    assert not (host.state / "bundle.partial").exists()


# ---------------------------------------------------------------- --check and --diff


def edit_by_hand(host: Sandbox) -> None:
    host.cron.write_text("* * * * * root true\n")
    host.config.chmod(0o666)
    (host.secrets / "db_password").write_text("hunter2")
    (host.deploy / "backup/backup.sh").unlink()
    (host.deploy / "backup/secrets/old").write_text("hunter3")
    (host.deploy / "backup/lib.sh").write_text("# of an older bundle\n")
    shutil.rmtree(host.destination / "mysql")
    library = host.root / "usr/local/lib/tracker-backup"
    (library / "tracker_backup/gone").mkdir()
    (library / "tracker_backup/gone/module.py").write_text("")
    (library / "run.sh").write_text("")
    (host.stub / "images").write_text("gen-backup-bundle/backup:ffffffffffff\n")


def bring_another_bundle(host: Sandbox) -> None:
    host.make_bundle(DB_HOST="elsewhere", SCHEDULE="5 4 * * *")
    (host.bundle / "host/tracker-backup.cron").write_text("# another schedule\n")
    host.sign()


def bring_the_other_strategy(host: Sandbox) -> None:
    host.make_bundle(STRATEGY="sidecar")


def lose_the_installation(host: Sandbox) -> None:
    assert host.call("uninstall").code == 0


@pytest.mark.parametrize(
    "before", [edit_by_hand, bring_another_bundle, lose_the_installation, lambda _host: None]
)
def test_check_names_what_an_installation_changes_and_changes_nothing(
    host: Sandbox, before: Callable[[Sandbox], None]
) -> None:
    before(host)
    found = snapshot(host)
    checked = host.install("--check", "--diff")
    assert (checked.code, snapshot(host)) == (0, found)
    done = host.install()
    # Waiting for the lock makes the directory in which it is.
    assert [line for line in done.changes if line != f"changed: {host.state}"] == checked.changes
    assert host.install("--check").changes == []


def test_check_names_the_files_of_the_other_strategy(host: Sandbox) -> None:
    bring_the_other_strategy(host)
    checked = host.install("--check")
    (host.stub / "tracker/id").write_text("")
    done = host.install()
    started = [line for line in done.changes if line.startswith("changed: sidecar ")]
    assert [line for line in done.changes if line not in started] == checked.changes
    assert f"changed: {host.deploy}/backup/sidecar.env" in checked.changes


def test_check_on_a_host_without_anything_of_ours(sandbox: Sandbox) -> None:
    found = snapshot(sandbox)
    checked = sandbox.install("--check", "--diff")
    assert (checked.code, snapshot(sandbox)) == (0, found)
    assert f"{sandbox.cron}: a new file" in checked.out.splitlines()
    done = sandbox.install()
    assert [line for line in done.changes if line != f"changed: {sandbox.state}"] == checked.changes


def test_diff_shows_each_file_that_differs_but_no_secret(host: Sandbox) -> None:
    edit_by_hand(host)
    bring_another_bundle(host)
    outcome = host.install("--check", "--diff")
    lines = outcome.out.splitlines()
    conf = host.deploy / "backup/backup.conf"
    at = lines.index(f"--- {conf} (on the host)")
    assert lines[at + 1] == f"+++ {conf} (in the bundle)"
    assert "-DB_HOST='mysql'" in lines[at:] and "+DB_HOST='elsewhere'" in lines[at:]
    assert "-* * * * * root true" in lines and "+# another schedule" in lines
    assert f"{host.secrets}/db_password: other content, which is not shown" in lines
    assert "hunter" not in outcome.out and "pass'" not in outcome.out
    assert not [line for line in host.install("--check").out.splitlines() if line.startswith("-")]
    real = [line for line in host.install("--diff").out.splitlines() if line.startswith(("-", "+"))]
    assert real == [line for line in lines if line.startswith(("-", "+"))]


def test_a_mode_that_differs_is_told_as_such(host: Sandbox) -> None:
    host.config.chmod(0o666)
    outcome = host.install("--check", "--diff")
    assert f"{host.config}: owner or mode; it becomes root's with 0644" in outcome.out
    assert mode(host.config) == "0666"


# ---------------------------------------------------------------- over another installation


def test_a_bundle_of_another_environment_is_refused_with_the_way_to_proceed(host: Sandbox) -> None:
    host.make_bundle(ENVIRONMENT="staging")
    before = snapshot(host)
    for words in ([], ["--check"], ["--take-over-destination"]):
        outcome = host.install(*words)
        assert outcome.code == 1
        assert "'production'" in outcome.err and "'staging'" in outcome.err
        assert "tracker-backup uninstall" in outcome.err
        assert snapshot(host) == before


def test_a_bundle_of_another_deploy_directory_is_refused_until_the_first_is_uninstalled(
    host: Sandbox,
) -> None:
    other = host.path / "other"
    shutil.copytree(host.deploy, other)
    shutil.rmtree(other / "backup")
    host.make_bundle(DEPLOY_DIR=str(other), DESTINATION=str(host.destination))
    outcome = host.install()
    assert outcome.code == 1
    assert str(host.deploy) in outcome.err and str(other) in outcome.err
    own = host.bundle / "host/tracker-backup.conf"
    own.rename(own.with_suffix(".away"))  # as the installed program, which is in no bundle
    assert host.call("uninstall").code == 0
    own.with_suffix(".away").rename(own)
    assert not (host.deploy / "backup").exists()
    host.monkeypatch.setenv("STUB_DEPLOY", str(other))
    outcome = host.install()
    assert outcome.code == 0, outcome.err
    assert (other / "backup/backup.conf").exists()


def test_another_spelling_of_the_deploy_directory_is_the_same_one(host: Sandbox) -> None:
    (host.path / "link").symlink_to(host.deploy)
    link = host.path / "link"
    host.make_bundle(DEPLOY_DIR=str(link), DESTINATION=str(link / "storage/backup"))
    assert host.install().code == 0


def test_an_installation_that_died_early_is_told_from_another_environments(
    sandbox: Sandbox,
) -> None:
    (sandbox.root / "usr/local/bin/tracker-backup").mkdir()  # the installation fails there
    assert sandbox.install().code == 1
    (sandbox.root / "usr/local/bin/tracker-backup").rmdir()
    sandbox.config.unlink()
    sandbox.make_bundle(ENVIRONMENT="staging")
    assert "'production'" in sandbox.install().err
    sandbox.make_bundle()
    assert sandbox.install().code == 0


def set_version(host: Sandbox, version: str) -> None:
    path = host.bundle / "manifest.json"
    manifest = json.loads(path.read_bytes()) | {"generator": f"gen-backup-bundle {version}"}
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("installed", "new", "refused"),
    [
        ("0.2.0", "0.1.0", True),
        ("1.10.0", "1.9.3", True),
        ("0.2.0", "0.2.0", False),
        ("0.2.0", "0.10.0", False),
    ],
)
def test_an_older_bundle_over_a_newer_installation_is_refused_by_name(
    sandbox: Sandbox, installed: str, new: str, refused: bool
) -> None:
    set_version(sandbox, installed)
    assert sandbox.install().code == 0
    set_version(sandbox, new)
    before = snapshot(sandbox)
    outcome = sandbox.install()
    assert outcome.code == (1 if refused else 0)
    if refused:
        assert f"gen-backup-bundle {installed} wrote what is installed" in outcome.err
        assert f"{new} wrote this bundle" in outcome.err
        assert snapshot(sandbox) == before


@pytest.mark.parametrize(
    ("left", "program"), [("window", "maintenance-backup.sh"), ("restore.json", "tracker-backup")]
)
def test_the_installed_program_first_finishes_what_died(
    host: Sandbox, left: str, program: str
) -> None:
    """It knows the formats in which it wrote that down, and its image is still there."""
    (host.state / left).write_text("in a format of its own")
    installed = host.root / "usr/local/bin" / program
    installed.write_text(f"#!/bin/sh\nrm {host.state}/{left}\necho $* >{host.path}/called\n")
    outcome = host.install()
    assert outcome.code == 0, outcome.err
    assert (host.path / "called").read_text() in ("--recover\n", "rollback\n")
    assert installed.read_bytes() == (host.bundle / "host" / program).read_bytes()


def test_what_cannot_be_finished_refuses_the_installation(host: Sandbox) -> None:
    (host.state / "window").write_text("7e57 2026-01-01T00:00:00Z stop 1 2 10 20260101_030000\n")
    installed = host.root / "usr/local/bin/maintenance-backup.sh"
    installed.write_text("#!/bin/sh\nexit 4\n")
    outcome = host.install()
    assert outcome.code == 1
    assert "--recover" in outcome.err
    assert installed.read_text() == "#!/bin/sh\nexit 4\n"


# ---------------------------------------------------------------- what it needs of the host


def test_a_directory_that_cannot_be_written_is_named_before_anything_changes(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    usr = sandbox.root / "usr/local"
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, how: not Path(path).is_relative_to(usr) and real(path, how)
    )
    before = snapshot(sandbox)
    outcome = sandbox.install()
    assert outcome.code == 1
    assert f"{usr}/bin cannot be written, is its file system mounted read-only?" in outcome.err
    assert snapshot(sandbox) == before


def test_a_directory_of_the_system_that_is_missing_is_named(sandbox: Sandbox) -> None:
    (sandbox.root / "etc/logrotate.d").rmdir()
    before = snapshot(sandbox)
    outcome = sandbox.install()
    assert outcome.code == 2
    assert f"there is no directory {sandbox.root}/etc/logrotate.d" in outcome.err
    assert snapshot(sandbox) == before


@pytest.mark.parametrize("found", ["", "#!/bin/sh\nexit 1\n"])
def test_a_python_that_cron_does_not_find_or_that_is_too_old_is_refused(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    folder = sandbox.path / "bin"
    folder.mkdir()
    if found:
        (folder / "python3").write_text(found)
        (folder / "python3").chmod(0o755)
    monkeypatch.setattr(sandbox.package.install, "PATH_OF_CRON", str(folder))
    before = snapshot(sandbox)
    outcome = sandbox.install()
    assert outcome.code == 1
    assert "no python3 of version 3.10 or newer" in outcome.err
    assert "apt-get install python3" in outcome.err
    assert snapshot(sandbox) == before


# ---------------------------------------------------------------- secrets


def test_secrets_are_written_as_given_and_told_nowhere(sandbox: Sandbox) -> None:
    outcome = sandbox.install(secrets=SECRETS)
    assert (sandbox.secrets / "db_password").read_bytes() == SECRETS["db_password"].encode()
    assert "p\"a'ss" not in outcome.out + outcome.err + "\n".join(sandbox.calls)
    assert [
        path
        for path in sandbox.path.rglob("*")
        if path.is_file() and b"p\"a'ss" in path.read_bytes()
    ] == [sandbox.secrets / "db_password"]


@pytest.mark.parametrize("given", [{}, {"db_password": "x"}])
def test_a_secret_without_a_value_is_refused_before_anything_changes(
    sandbox: Sandbox, given: dict[str, str]
) -> None:
    before = snapshot(sandbox)
    outcome = sandbox.install(secrets=given)
    assert outcome.code != 0
    assert "db_root_password" in outcome.err
    assert "vault" in outcome.err
    assert snapshot(sandbox) == before


def test_without_values_the_host_keeps_the_secrets_that_it_has(host: Sandbox) -> None:
    before = snapshot(host)
    outcome = host.install(secrets={})
    assert (outcome.code, outcome.changes) == (0, [])
    assert snapshot(host) == before


def test_a_changed_secret_is_replaced(host: Sandbox) -> None:
    outcome = host.install(secrets={"db_password": "new", "db_root_password": "root"})
    assert len(outcome.changes) == 1
    assert (host.secrets / "db_password").read_text() == "new"


def test_a_secret_that_is_needed_no_more_is_removed(host: Sandbox) -> None:
    conf = host.bundle / "backup/backup.conf"
    conf.write_text(
        "".join(line for line in conf.read_text().splitlines(True) if "ROOT" not in line)
    )
    host.sign()
    assert host.install().code == 0
    assert [path.name for path in host.secrets.iterdir()] == ["db_password"]


def test_a_secret_that_nobody_asked_for_is_not_written(sandbox: Sandbox) -> None:
    sandbox.install(secrets={**SECRETS, "../../../etc/evil": "x", "other": "y"})
    assert sorted(path.name for path in sandbox.secrets.iterdir()) == [
        "db_password",
        "db_root_password",
    ]
    assert not list(sandbox.path.rglob("evil"))


def test_secrets_that_are_no_json_are_refused_without_showing_them(sandbox: Sandbox) -> None:
    outcome = sandbox.call("install", stdin='{"db_password": "hunter2')
    assert outcome.code != 0
    assert outcome.err.startswith("error:")
    assert "hunter2" not in outcome.out + outcome.err


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_one_line_end_of_a_password_is_no_part_of_it(sandbox: Sandbox, end: str) -> None:
    given = {"db_password": f"pass{end}", "db_root_password": f"ro\not \n{end}"}
    assert sandbox.install(secrets=given).code == 0
    assert (sandbox.secrets / "db_password").read_bytes() == b"pass"
    assert (sandbox.secrets / "db_root_password").read_bytes() == b"ro\not \n"
    assert sandbox.install(secrets=given).changes == []


def test_a_secret_that_is_a_file_keeps_its_line_ends(sandbox: Sandbox) -> None:
    key = "-----BEGIN KEY-----\nx\n-----END KEY-----\n"
    assert sandbox.package.secrets.secret_text("restic_ssh_key", key) == key
    assert sandbox.package.secrets.secret_text("restic_repository", "/srv/x\n") == "/srv/x"


@pytest.mark.parametrize("value", [5, None, ["x"], True, "nul\0", "\udcff"])
def test_a_secret_that_is_no_text_is_refused_by_name(sandbox: Sandbox, value: object) -> None:
    before = snapshot(sandbox)
    stdin = json.dumps({"db_password": value, "db_root_password": "root"})
    outcome = sandbox.call("install", stdin=stdin)
    assert outcome.code == 2
    assert "the secret db_password is not UTF-8 text" in outcome.err
    assert snapshot(sandbox) == before


def test_a_secret_beside_a_copied_bundle_that_is_no_text_is_refused(sandbox: Sandbox) -> None:
    (sandbox.bundle / "secrets").mkdir()
    (sandbox.bundle / "secrets/db_password").write_bytes(b"\xff\xfe")
    outcome = sandbox.call("install", stdin="")
    assert outcome.code == 2
    assert "the secret db_password is not UTF-8 text" in outcome.err


def test_sqlite_needs_no_secret(sandbox: Sandbox) -> None:
    conf = sandbox.bundle / "backup/backup.conf"
    lines = [line for line in conf.read_text().splitlines() if not line.startswith("DB_")]
    conf.write_text(
        "\n".join(
            [
                *lines,
                "DB_TYPE='sqlite'",
                "DB_PATH='/data/storage/tracker/lib/database/tracker.db'",
                "",
            ]
        )
    )
    sandbox.sign()
    assert sandbox.call("install", stdin="").code == 0


# ---------------------------------------------------------------- the image


def images(host: Sandbox) -> list[str]:
    return (host.stub / "images").read_text().split()


def test_an_image_that_is_missing_is_built_from_the_upload(sandbox: Sandbox) -> None:
    (sandbox.stub / "images").write_text("")
    assert sandbox.install().code == 0
    assert f"docker build --tag {IMAGE} {sandbox.bundle}/backup" in sandbox.calls


def test_an_image_of_a_registry_is_pulled(sandbox: Sandbox) -> None:
    sandbox.make_bundle(IMAGE="registry.example/backup:1", IMAGE_SOURCE="pull")
    assert sandbox.install().code == 0
    assert "docker pull registry.example/backup:1" in sandbox.calls
    assert sandbox.install().changes == []


def test_rebuilding_builds_although_the_image_is_there(host: Sandbox) -> None:
    assert host.install("--rebuild-image").code == 0
    assert [call for call in host.calls if call.startswith("docker build") and "--no-cache" in call]


def test_older_images_of_ours_are_removed_and_those_of_others_stay(sandbox: Sandbox) -> None:
    (sandbox.stub / "images").write_text(
        f"{IMAGE}\ngen-backup-bundle/backup:ffffffffffff\nmysql:8.4\ngen-backup-bundle/other:1\n"
    )
    assert sandbox.install().code == 0
    assert images(sandbox) == [IMAGE, "mysql:8.4", "gen-backup-bundle/other:1"]


def test_an_image_that_cannot_be_built_leaves_no_schedule(sandbox: Sandbox) -> None:
    (sandbox.stub / "images").write_text("")
    (sandbox.stub / "hooks/build").write_text("fail('no route to host')\n")
    outcome = sandbox.install()
    assert outcome.code == 1
    assert "no route to host" in outcome.err
    assert not sandbox.cron.exists()


def test_an_image_that_is_still_in_use_does_not_fail_the_installation(sandbox: Sandbox) -> None:
    (sandbox.stub / "images").write_text(f"{IMAGE}\ngen-backup-bundle/backup:ffffffffffff\n")
    (sandbox.stub / "hooks/image-rm").write_text("fail('image is being used by a container')\n")
    assert sandbox.install().code == 0


# ---------------------------------------------------------------- the lock


@pytest.mark.parametrize("command", ["install", "uninstall", "acknowledge"])
def test_a_lock_that_is_held_ends_with_75_and_nothing_changes(
    host: Sandbox, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    clock = itertools.count(step=10.0)
    monkeypatch.setattr(
        host.package.state,
        "time",
        SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _seconds: None),
    )
    (host.bundle / "host/tracker-backup.cron").write_text("# another schedule\n")
    host.sign()
    with (host.state / "lock").open("a") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        before = snapshot(host)
        outcome = host.call(command, stdin="{}")
        assert outcome.code == 75
        assert "running" in outcome.err
        assert snapshot(host) == before
    assert host.call(command, stdin="{}").code == 0


def test_a_lock_that_is_released_while_waiting_is_taken(
    host: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (host.state / "lock").open("a") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        release = SimpleNamespace(
            monotonic=time.monotonic, sleep=lambda _seconds: fcntl.flock(holder, fcntl.LOCK_UN)
        )
        monkeypatch.setattr(host.package.state, "time", release)
        assert host.install().code == 0


def test_a_lock_that_was_removed_while_waiting_is_not_the_lock(
    host: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An uninstallation removes the lock with its directory: whoever waited must not believe to
    hold what is there now.
    """
    held = []

    def uninstalled(_seconds: float) -> None:
        (host.state / "lock").unlink()
        fcntl.flock(holder, fcntl.LOCK_UN)

    real = host.package.install.make_image

    def look(*arguments: object) -> None:
        with (host.state / "lock").open("a") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
                held.append(False)
            except BlockingIOError:
                held.append(True)
        real(*arguments)

    monkeypatch.setattr(host.package.install, "make_image", look)
    with (host.state / "lock").open("a") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        monkeypatch.setattr(
            host.package.state, "time", SimpleNamespace(monotonic=time.monotonic, sleep=uninstalled)
        )
        outcome = host.install()
    assert (held, outcome.code) == ([True], 0), outcome.err


# ---------------------------------------------------------------- uninstall


def test_uninstalling_leaves_the_backups_and_nothing_else_of_ours(host: Sandbox) -> None:
    host.add_run("20260101_030000", 1)
    (host.root / "var/log/tracker-backup.log.1.gz").write_text("old")
    (host.deploy / "storage/backup-staging/20260101_030000").mkdir()
    kept = host.files()
    outcome = host.call("uninstall")
    assert outcome.code == 0
    assert str(host.destination) in outcome.out
    assert host.files() == kept
    left = {
        str(path.relative_to(host.path))
        for path in (*host.root.rglob("*"), *host.deploy.rglob("*"))
        if path.is_file() and not path.is_relative_to(host.root / "proc")
    }
    assert left - {f"deploy/storage/backup/{name}" for name in kept} == {
        "root/etc/machine-id",
        "deploy/docker-compose.yml",
        "deploy/.env",
    }
    assert not host.state.exists()
    assert not (host.deploy / "backup").exists()
    assert not (host.deploy / "storage/backup-staging").exists()
    assert not (host.root / "usr/local/lib/tracker-backup").exists()
    assert images(host) == []


def test_uninstalling_leaves_files_and_images_of_others(host: Sandbox) -> None:
    with (host.stub / "images").open("a") as file:
        file.write("mysql:8.4\n")
    (host.deploy / "backup/notes.txt").write_text("mine")
    (host.root / "etc/cron.d/other").write_text("mine")
    (host.root / "var/log/tracker.log").write_text("mine")
    assert host.call("uninstall").code == 0
    assert images(host) == ["mysql:8.4"]
    for path in (
        host.deploy / "backup/notes.txt",
        host.root / "etc/cron.d/other",
        host.root / "var/log/tracker.log",
    ):
        assert path.read_text() == "mine"


def test_uninstalling_removes_what_an_installation_that_died_was_writing(host: Sandbox) -> None:
    partial = host.cron.with_name("tracker-backup.partial")
    partial.write_text("* * * * * root")
    assert host.call("uninstall").code == 0
    assert not partial.exists()


def test_what_is_not_synced_file_by_file_is_synced_before_the_schedule_is_there(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(os, "sync", lambda: seen.append(sandbox.cron.exists()))
    module = sandbox.root / "usr/local/lib/tracker-backup/tracker_backup/main.py"
    assert sandbox.install().code == 0
    assert seen == [False]
    assert sandbox.install().code == 0
    assert len(seen) == 1
    module.write_text("")
    assert sandbox.install("--check").changes == [f"changed: {module}"]
    assert sandbox.install().changes == [f"changed: {module}"]
    assert len(seen) == 2


def test_uninstalling_without_docker_warns_and_removes_the_rest(
    host: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    outcome = host.call("uninstall")
    assert outcome.code == 0
    assert "warning" in outcome.out
    assert not host.cron.exists()


def test_uninstalling_without_its_configuration_removes_the_same(host: Sandbox) -> None:
    own = host.bundle / "host/tracker-backup.conf"
    own.rename(own.with_suffix(".away"))  # as the installed program, which is in no bundle
    host.config.unlink()
    assert host.call("uninstall").code == 0
    assert not host.state.exists()
    assert not (host.deploy / "backup").exists()
    assert not (host.deploy / "docker-compose.backup.yml").exists()
    assert images(host) == []
    outcome = host.call("uninstall")
    assert outcome.code == 2
    assert "nothing says which deploy directory" in outcome.err
    assert "uninstall-backup.yml" in outcome.err


def test_uninstalling_goes_by_the_kept_bundle_when_the_configuration_is_damaged(
    host: Sandbox,
) -> None:
    own = host.bundle / "host/tracker-backup.conf"
    own.rename(own.with_suffix(".away"))
    host.config.write_text("damaged\n")
    assert host.call("uninstall").code == 0
    assert not (host.deploy / "backup").exists()
    assert not host.config.exists()


def test_a_bundle_of_another_environment_uninstalls_nothing(host: Sandbox) -> None:
    host.make_bundle(ENVIRONMENT="staging")
    before = snapshot(host)
    outcome = host.call("uninstall")
    assert (outcome.code, snapshot(host)) == (1, before)
    assert "'production'" in outcome.err


def test_uninstalling_removes_the_image_that_was_pulled(sandbox: Sandbox) -> None:
    sandbox.make_bundle(IMAGE="registry.example/backup:1", IMAGE_SOURCE="pull")
    with (sandbox.stub / "images").open("a") as file:
        file.write("mysql:8.4\n")
    assert sandbox.install().code == 0
    assert images(sandbox) == ["mysql:8.4", "registry.example/backup:1"]
    sandbox.make_bundle(IMAGE="registry.example/backup:2", IMAGE_SOURCE="pull")
    assert sandbox.install().code == 0
    assert images(sandbox) == ["mysql:8.4", "registry.example/backup:2"]
    assert sandbox.call("uninstall").code == 0
    assert images(sandbox) == ["mysql:8.4"]


def test_uninstalling_removes_our_network_also_when_the_stack_is_down(host: Sandbox) -> None:
    (host.stub / "hooks/network").write_text("print('deploy_backup_network')\nleave(0)\n")
    (host.stub / "tracker/directory").write_text("/elsewhere")
    assert host.call("uninstall").code == 0
    label = "label=com.docker.compose."
    listed = f"--filter {label}network=backup_network --filter {label}project=deploy"
    assert f"docker network ls --format {{{{.Name}}}} {listed}" in host.calls
    assert "docker network rm deploy_backup_network" in host.calls


def test_uninstalling_removes_what_buildkit_keeps_of_our_steps_the_newest_first(
    host: Sandbox,
) -> None:
    steps = [
        {"ID": "a", "CreatedAt": "2026-01-01 01:00:00", "Description": "[1/2] RUN make"},
        {"ID": "b", "CreatedAt": "2026-01-01 02:00:00", "Description": "[2/5] COPY backup.sh /x"},
        {
            "ID": "c",
            "CreatedAt": "2026-01-01 03:00:00",
            "Description": "COPY backup.py /usr/local/lib/tracker-backup/",
        },
    ]
    (host.stub / "hooks/system").write_text(f"print({json.dumps(steps)!r})\n")
    assert host.call("uninstall").code == 0
    pruned = [call for call in host.calls if call.startswith("docker builder")]
    assert pruned == [f"docker builder prune --all --force --filter id={one}" for one in "cb"]


def test_uninstalling_while_the_tracker_waits_for_recovery_is_refused(host: Sandbox) -> None:
    (host.state / "window").write_text("7e57 2026-01-01T00:00:00Z stop 1 2 10 20260101_030000\n")
    outcome = host.call("uninstall")
    assert outcome.code != 0
    assert "--recover" in outcome.err
    assert host.cron.exists()


def test_installing_after_uninstalling_finds_the_backups_again(host: Sandbox) -> None:
    host.add_run("20260101_030000", 1)
    assert host.call("uninstall").code == 0
    assert host.install().code == 0
    assert [run["id"] for run in json.loads(host.call("list", "--json").out)] == ["20260101_030000"]


def test_a_second_uninstallation_changes_nothing(host: Sandbox) -> None:
    assert host.call("uninstall").code == 0
    before = snapshot(host)
    outcome = host.call("uninstall")
    assert (outcome.code, outcome.changes, snapshot(host)) == (0, [], before)
    assert "the backup is not installed on this host" in outcome.out
