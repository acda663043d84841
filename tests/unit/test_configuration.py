"""KEY='value' files: what the generator writes comes back, nothing is executed, and a wrong file is
said to be wrong.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from unit.sandbox import Sandbox, quote

# What the environment JSON lets through: anything but control characters.
VALUES = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=60)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=VALUES)
@example(value='it\'s "a" $(touch pwned) `id` \\ # ; {{ x }} %n ')
@example(value="''")
@example(value="\u2028\u00a0\u3000")
@example(value="\ufeffbyte order mark")
def test_any_value_comes_back(tool: ModuleType, tmp_path: Path, value: str) -> None:
    path = tmp_path / "x.conf"
    path.write_text(f"# comment\n\nBEFORE='1'\nKEY={quote(value)}\nAFTER='2'\n", encoding="utf-8")
    assert tool.host.read_settings(path) == {"BEFORE": "1", "KEY": value, "AFTER": "2"}


def test_bash_reads_the_same(tool: ModuleType, tmp_path: Path) -> None:
    value = 'it\'s "a" $(touch pwned) `id` \\ # ; {{ x }} %n é\u2028!'
    path = tmp_path / "x.conf"
    path.write_text(f"KEY={quote(value)}\n", encoding="utf-8")
    sourced = subprocess.run(
        ["bash", "-c", f'source {path}; printf %s "$KEY"'],
        capture_output=True,
        check=True,
        cwd=tmp_path,
    )
    assert sourced.stdout.decode() == tool.host.read_settings(path)["KEY"] == value
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.conf"]


def test_no_final_newline_and_crlf_are_read_right(tool: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "x.conf"
    path.write_bytes(b"A='1'\r\nB='2'")
    assert tool.host.read_settings(path) == {"A": "1", "B": "2"}


@pytest.mark.parametrize(
    "line",
    [
        "KEY='a' 'b'",
        "KEY=",
        "KEY",
        "KEY='open",
        'KEY="open',
        "KEY='a\\",
        "KEY=a\\",
        "KEY=a",
        "KEY='it's'",
        "export A='1'",
        "A='1' # x",
    ],
)
def test_a_line_that_is_no_assignment_is_named(host: Sandbox, line: str) -> None:
    host.config.write_text(f"ENVIRONMENT='x'\n{line}\n")
    outcome = host.call("list")
    assert outcome.code == 2
    assert f"{host.config}, line 2" in outcome.err


def test_a_configuration_that_is_not_utf8_is_a_configuration_error(host: Sandbox) -> None:
    host.config.write_bytes(b"ENVIRONMENT='\xff'\n")
    outcome = host.call("list")
    assert outcome.code == 2
    assert str(host.config) in outcome.err


def test_a_configuration_that_is_not_there_says_what_to_do(host: Sandbox) -> None:
    host.config.unlink()
    outcome = host.call("status")
    assert outcome.code == 2
    assert "install the bundle again" in outcome.err


@pytest.mark.parametrize(
    "key",
    [
        "ENVIRONMENT",
        "DEPLOY_DIR",
        "DESTINATION",
        "STRATEGY",
        "SCHEDULE",
        "LONGEST_INTERVAL_SECONDS",
        "CALENDAR",
        "IMAGE",
        "IMAGE_SOURCE",
    ],
)
def test_a_setting_that_is_missing_is_named(host: Sandbox, key: str) -> None:
    host.config.write_text(
        "".join(
            line
            for line in host.config.read_text().splitlines(True)
            if not line.startswith(key + "=")
        )
    )
    outcome = host.call("status")
    assert outcome.code == 2
    assert f"{key} is missing" in outcome.err


def test_an_interval_that_is_no_number_is_a_configuration_error(host: Sandbox) -> None:
    host.config.write_text(host.config.read_text().replace("'86400'", "'daily'"))
    outcome = host.call("status")
    assert outcome.code == 2
    assert "daily" in outcome.err


def test_an_unknown_command_is_wrong_usage(host: Sandbox) -> None:
    with pytest.raises(SystemExit) as ended:
        host.call("stauts")
    assert ended.value.code == 2


# ---------------------------------------------------------------- backup.conf

KEYS = ("MODE", "COMPRESSION", "SCOPE", "ALLOW_WRITER_STALL", "PATHS_FILE")


def refusal(host: Sandbox, **settings: str) -> tuple[int, str]:
    """The code and the reason with which a run ends before it does anything."""
    host.make_bundle(**settings)
    host.install()
    module = host.package.run
    with pytest.raises(module.Refused) as refused:
        module.require_settings(
            host.package.host.Host.read(host.config), "maintenance-window", ("stop",)
        )
    return refused.value.code, str(refused.value).removeprefix(f"{host.deploy}/backup/")


@pytest.mark.parametrize("key", [*(f"BACKUP_{key}" for key in KEYS), "DB_TYPE"])
def test_a_key_of_backup_conf_that_is_empty_is_named(host: Sandbox, key: str) -> None:
    code, reason = refusal(host, **{key: ""})
    assert code == 2
    if key != "DB_TYPE":
        assert reason == f"backup.conf: {key} is missing or empty; install the bundle again"


@pytest.mark.parametrize("key", ["DB_HOST", "DB_PORT", "DB_USER", "DB_NAME", "DB_PASSWORD_FILE"])
def test_a_key_of_a_driver_that_is_empty_is_named(host: Sandbox, key: str) -> None:
    reason = f"backup.conf: {key} is missing or empty; install the bundle again"
    assert refusal(host, **{key: ""}) == (2, reason)


def test_the_path_of_a_file_is_needed_where_there_is_no_server(host: Sandbox) -> None:
    reason = "backup.conf: DB_PATH is missing or empty; install the bundle again"
    assert refusal(host, DB_TYPE="sqlite") == (2, reason)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DB_TYPE", "sqlite3"),
        ("BACKUP_MODE", "sidecar"),
        ("BACKUP_COMPRESSION", "bzip2"),
        ("BACKUP_SCOPE", "everything"),
        ("BACKUP_ALLOW_WRITER_STALL", "yes"),
        ("DB_TLS", "off"),
    ],
)
def test_a_misspelt_value_says_what_is_allowed(host: Sandbox, key: str, value: str) -> None:
    code, reason = refusal(host, **{key: value})
    assert (code, reason.startswith(f"backup.conf: {key}='{value}'; allowed: ")) == (2, True)
