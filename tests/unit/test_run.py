"""What a run decides by itself: which answers count, how long a role may work, what is mounted."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from unit.sandbox import Sandbox


@pytest.fixture
def run(tool: ModuleType) -> Any:
    return tool.capture


def lines(tool: ModuleType, path: Path, *texts: bytes) -> Any:
    path.write_bytes(b"".join(text + b"\n" for text in texts))
    return tool.settings.read_path_list(path)


def test_a_path_counts_as_archived_only_if_it_is_in_the_path_list(
    tool: ModuleType, tmp_path: Path
) -> None:
    listed = lines(tool, tmp_path / "list", b"/data/.env", b"?/data/a", b"?/data/b", b"/data/c")
    answer = SimpleNamespace(paths=[".env", "a", "../../etc/shadow", "made up"], missing=[])
    assert tool.finish.listed_paths(listed, answer) == ([".env", "a"], ["c"])
    answer = SimpleNamespace(paths=[".env", "c"], missing=["c", "another"])
    assert tool.finish.listed_paths(listed, answer) == ([".env", "c"], ["c"])


def test_a_path_that_is_no_utf8_is_named_as_the_reader_names_it(
    tool: ModuleType, tmp_path: Path
) -> None:
    listed = lines(tool, tmp_path / "list", b"/data/caf\xe9")
    answer = SimpleNamespace(paths=["caf\\xe9"], missing=[])
    assert tool.finish.listed_paths(listed, answer) == (["caf\\xe9"], [])


@pytest.mark.parametrize(
    "line", [b"/etc/passwd", b"/data/../etc", b"/data", b"data/a", b"/database"]
)
def test_a_line_that_is_not_below_the_deployment_is_refused(
    tool: ModuleType, tmp_path: Path, line: bytes
) -> None:
    with pytest.raises(tool.settings.Refused, match="is not below /data"):
        lines(tool, tmp_path / "list", line)


def test_the_time_of_a_role_follows_what_it_works_through(run: Any) -> None:
    assert run.work_seconds(0) == 900
    assert run.work_seconds(2 << 30) == 900 + 2048
    assert run.work_seconds(1 << 60) == 43200


def test_a_run_has_a_time_limit_of_its_own(tool: ModuleType, tmp_path: Path) -> None:
    asked: list[float] = []

    def ask(_job: str, seconds: float) -> None:
        asked.append(seconds)

    settings = tool.roles.RoleSettings("20260102_030405", tmp_path, print)
    role = tool.roles.Role(
        tool.roles.RoleSettings(**vars(settings) | {"deadline": time.monotonic() + 100}), "reader"
    )
    role.conversation = SimpleNamespace(ask=ask)
    role.ask("archive", 5)
    role.ask("archive", 43200)
    assert asked[0] == 5 and 90 < asked[1] <= 100
    role.settings = tool.roles.RoleSettings(**vars(settings) | {"deadline": time.monotonic()})
    with pytest.raises(
        tool.host.Refused, match="time limit is over; the archive step was not begun"
    ):
        role.ask("archive", 5)


def test_an_examiner_never_has_the_user_of_the_client(tool: ModuleType) -> None:
    assert tool.roles.UIDS["examiner"] + tool.roles.MEMBERS < tool.roles.UIDS["client"]


def test_more_databases_than_there_are_users_for_are_left_out_with_a_warning(
    tool: ModuleType, tmp_path: Path
) -> None:
    texts = [b"/data/.env", *(b"?sqlite:/data/%d.db" % number for number in range(101))]
    asked: list[int] = []

    def ask(_job: str, _seconds: float, index: int, **_: int) -> Any:
        asked.append(index)
        return SimpleNamespace(paths=[])

    run = tool.run.Run(dry_run=False)
    reader = SimpleNamespace(ask=ask)
    assert tool.finish.examine_members(run, reader, lines(tool, tmp_path / "list", *texts), 1) == []
    assert asked == list(range(99))
    assert run.warnings == ["101 databases are in the path list; only the first 99 are backed up"]


# ---------------------------------------------------------------- mounts below the deployment


def mounted(host: Sandbox, *places: Path | str) -> Any:
    """The options for the reader when these places are mounted."""
    table = host.root / "proc/self/mountinfo"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(
        "".join(
            f"36 35 98:0 / {str(place).replace(' ', chr(92) + '040')} rw - ext4 /dev/vdb rw\n"
            for place in places
        )
    )
    return host.package.docker.read_only_mounts(host.package.host.Host.read(host.config))


def test_what_is_mounted_below_the_deployment_is_mounted_again_read_only(host: Sandbox) -> None:
    library, spaces = host.deploy / "storage/tracker/lib", host.deploy / "storage/a b"
    assert mounted(host, "/", host.deploy, library, spaces, "/somewhere/storage") == (
        *("--volume", f"{library}:/data/storage/tracker/lib:ro"),
        *("--volume", f"{spaces}:/data/storage/a b:ro"),
    )


def test_a_place_that_the_reader_does_not_see_is_not_mounted_for_it(host: Sandbox) -> None:
    secrets = host.deploy / "backup/secrets"
    staging = host.deploy / "storage/backup-staging"
    assert mounted(host, host.destination, staging, secrets / "x") == ()


def test_a_mount_that_compose_cannot_name_is_refused(host: Sandbox) -> None:
    with pytest.raises(host.package.host.Refused, match="rename it without a colon"):
        mounted(host, host.deploy / "storage/a:b")
