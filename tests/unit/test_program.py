"""The program as it is started: where its package is, what imports what, what goes to the log."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from unit.sandbox import TEMPLATES, Sandbox, mode

PACKAGE = TEMPLATES / "backup/tracker_backup"


def start(
    program: Path,
    *words: str,
    stdout: int | IO[str] = subprocess.PIPE,
    stderr: int | IO[str] = subprocess.PIPE,
) -> tuple[int, str, str]:
    """Its exit code, standard output and standard error; without what keeps Python from writing
    bytecode here.
    """
    environment = {
        key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"
    }
    done = subprocess.run(
        [sys.executable, program, *words],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=environment,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout or "", done.stderr or ""


def installed(host: Sandbox) -> Path:
    return host.root / "usr/local/bin/tracker-backup"


# ---------------------------------------------------------------- the package


def test_the_installed_program_runs_without_the_upload_and_leaves_no_bytecode(
    host: Sandbox,
) -> None:
    host.bundle.rename(host.path / "gone")
    assert start(installed(host), "list") == (0, "no run yet\n", "")
    assert not list(host.path.rglob("__pycache__"))


def test_the_program_of_an_upload_runs_its_own_package(host: Sandbox) -> None:
    (host.root / "usr/local/lib/tracker-backup/tracker_backup/main.py").write_text(
        "raise SystemExit('the installed one')\n"
    )
    assert start(host.bundle / "host/tracker-backup", "list") == (0, "no run yet\n", "")
    assert not list(host.path.rglob("__pycache__"))


def test_the_whole_package_is_installed_and_anyone_may_read_it(host: Sandbox) -> None:
    library = host.root / "usr/local/lib/tracker-backup"
    assert {
        str(path.relative_to(library)): mode(path) for path in (library, *library.rglob("*"))
    } == {
        ".": "0755",
        "tracker_backup": "0755",
        "tracker_backup/drivers": "0755",
        "tracker_backup/worker": "0755",
        **{f"tracker_backup/{path.relative_to(PACKAGE)}": "0644" for path in PACKAGE.rglob("*.py")},
    }


def test_what_an_older_bundle_left_in_the_package_is_removed(host: Sandbox) -> None:
    package = host.root / "usr/local/lib/tracker-backup/tracker_backup"
    (package / "__pycache__").mkdir()
    for name in ("json.py", "__pycache__/main.pyc"):
        (package / name).write_text("")
    outcome = host.install()
    assert outcome.changes == [
        f"changed: {package / name} (removed)" for name in ("__pycache__", "json.py")
    ]
    assert {path.relative_to(package) for path in package.rglob("*.py")} == {
        path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")
    }


def test_a_module_imports_only_from_those_that_the_package_names_before_it() -> None:
    text = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text())) or ""
    order = [
        name
        for line in re.findall(r"^    (.+?)  ", text, re.MULTILINE)
        for name in line.split(", ")
    ]
    modules = {path.stem: [path] for path in PACKAGE.glob("[!_]*.py")}
    modules["drivers"] = list((PACKAGE / "drivers").glob("*.py"))
    assert sorted(order) == sorted(modules)
    for position, name in enumerate(order):
        for path in modules[name]:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.level == len(
                    path.relative_to(PACKAGE).parts
                ):
                    names = [node.module] if node.module else [one.name for one in node.names]
                    used = {one.partition(".")[0] for one in names}
                    assert used <= set(order[:position]), f"{name} imports {used}"


def test_the_host_never_loads_what_reads_the_files_of_services() -> None:
    for path in (*PACKAGE.glob("*.py"), *PACKAGE.glob("drivers/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in getattr(node, "names", ()) if isinstance(one, ast.alias)]
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            parts = {part for name in names for part in name.split(".")}
            assert not parts & {"worker", "sqlite3", "tarfile"}, path
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import tracker_backup.main, tracker_backup.core\n"
        "print(*sorted(name for name in sys.modules if 'worker' in name"
        " or name.partition('.')[0] in ('sqlite3', '_sqlite3', 'tarfile')))"
    )
    words = [sys.executable, "-I", "-B", "-c", program, str(PACKAGE.parent)]
    assert subprocess.run(words, capture_output=True, check=True).stdout == b"\n"


# ---------------------------------------------------------------- the log

DRY_RUN = ("restore", "latest", "--dry-run")
NO_SUCH_RUN = ("verify", "20990101_000000")


@pytest.fixture
def log(host: Sandbox) -> Path:
    host.add_run("20260101_030000", 1)
    return host.root / "var/log/tracker-backup.log"


def test_what_a_restore_by_hand_says_is_in_the_log_too(host: Sandbox, log: Path) -> None:
    log.write_text("before\n")
    code, said, _ = start(installed(host), *DRY_RUN)
    assert (code, said.splitlines()[-1]) == (0, "dry run: nothing was done")
    before, *copied = log.read_text().splitlines()
    assert before == "before"
    heads, texts = zip(*(line.split(": ", 1) for line in copied), strict=True)
    assert list(texts) == said.splitlines()
    assert all(re.fullmatch(r"[0-9T:-]{19}Z tracker-backup\[[0-9]+\]", head) for head in heads)


def test_what_a_verify_by_hand_complains_of_is_in_the_log_too(host: Sandbox, log: Path) -> None:
    code, _, complained = start(installed(host), *NO_SUCH_RUN)
    assert (code, log.read_text().split(": ", 1)[1]) == (1, complained)


def test_nothing_stands_twice_in_the_log_when_it_is_the_output(host: Sandbox, log: Path) -> None:
    for words in (DRY_RUN, NO_SUCH_RUN):
        with log.open("a") as stream:
            start(installed(host), *words, stdout=stream, stderr=subprocess.STDOUT)
    text = log.read_text()
    assert (text.count("dry run: nothing was done"), text.count("there is no successful run")) == (
        1,
        1,
    )


def test_each_stream_is_looked_at_by_itself(host: Sandbox, log: Path) -> None:
    with log.open("a") as stream:
        start(installed(host), *DRY_RUN, stdout=stream)
        start(installed(host), *NO_SUCH_RUN, stdout=stream)
    text = log.read_text()
    assert (text.count("dry run: nothing was done"), text.count("there is no successful run")) == (
        1,
        1,
    )


def test_a_log_that_is_not_there_stops_nothing_and_is_not_made(host: Sandbox, log: Path) -> None:
    log.unlink()
    assert start(installed(host), *DRY_RUN)[0] == 0
    assert not log.exists()


def test_commands_that_only_show_are_not_in_the_log(host: Sandbox, log: Path) -> None:
    for command in ("list", "status"):
        start(installed(host), command)
    assert log.read_text() == ""


def test_paths_are_utf8_in_every_locale(host: Sandbox) -> None:
    host.add_run("20260101_030000", 1)
    deploy = host.deploy.with_name("dépôt")
    host.deploy.rename(deploy)
    conf = host.config
    conf.write_text(conf.read_text().replace(str(host.deploy), str(deploy)), encoding="utf-8")
    ascii_paths = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, installed(host), "list", "--json"],
        env={**os.environ, **ascii_paths},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"20260101_030000" in done.stdout
