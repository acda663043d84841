"""The deployments that the tests share: one disposable host for each database.

The bundle is installed once on each, over SSH, by plain Ansible.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Generator, Iterator

import pytest

from e2e.bundle import Bundle, ssh_key
from e2e.deployment import Deployment
from e2e.host import LAST_WORDS, Host
from e2e.stack import Stack

STACKS = {
    "sqlite3": Stack("sqlite3", frozenset({"prometheus", "grafana", "caddy"})),
    "mysql": Stack("mysql", deployer_backup=True),
}


def pytest_configure(config: pytest.Config) -> None:
    """Names our markers, and removes the hosts after TERM, as after Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "only(driver): a test that has a meaning with this database alone"
    )
    config.addinivalue_line("markers", "slow: left out of scripts/test, in scripts/test-faults")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests that are marked for another database."""
    dropped = [
        item
        for item in items
        if (mark := item.get_closest_marker("only")) and f"[{mark.args[0]}" not in item.name
    ]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds to a failed test what its hosts say: the end of the last two runs, and of the log."""
    report = yield
    if report.failed:
        used = getattr(item, "funcargs", {}).values()
        hosts = {
            id(host): host
            for host in (getattr(value, "host", value) for value in used)
            if isinstance(host, Host)
        }
        words = [*LAST_WORDS, *(host.last_words() for host in hosts.values())]
        report.sections += [("the host's last runs and log", text) for text in words]
    LAST_WORDS.clear()
    return report


@pytest.fixture(scope="session")
def docker() -> None:
    """Skips the tests where there is no Docker, by name; in CI that is a failure."""
    try:
        reason = subprocess.run(
            ["docker", "info"], capture_output=True, text=True, timeout=60, check=False
        )
        missing = "" if reason.returncode == 0 else reason.stderr.strip().splitlines()[-1]
    except FileNotFoundError:
        missing = "the docker command is not installed"
    if missing:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            f"the end-to-end tests need Docker: {missing}"
        )


@pytest.fixture(scope="session", params=list(STACKS))
def deployment(
    request: pytest.FixtureRequest, docker: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A host with the stack up and the bundle installed.

    SQLite's host has only the legacy builder, MySQL's has BuildKit.
    """
    stack = STACKS[request.param]
    folder = tmp_path_factory.mktemp(stack.driver)
    key = ssh_key(folder)
    with Host(
        f"gen-backup-bundle-e2e-{stack.driver}-{os.getpid()}", buildkit=stack.driver == "mysql"
    ) as host:
        host.authorize(key.with_suffix(".pub").read_text(encoding="utf-8"))
        stack.bring_up(host)
        bundle = Bundle.generate(stack.environment(key, {}), folder / "bundle", host.address)
        before = Deployment.inventory(host)
        checked = bundle.playbook("install-backup", "--check", "--diff")
        installed = bundle.playbook("install-backup", "--diff").succeeded()
        yield Deployment(host, stack, bundle, key, before, checked, installed)
