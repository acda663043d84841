"""The steps of action.yml, run in the way of GitHub's runner."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration.conftest import ROOT, Environments, run

ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
EXPRESSION = re.compile(r"\$\{\{ inputs\.([a-z-]+) }}")


def act(directory: Path, temporary: Path, given: dict[str, str]) -> tuple[int, str]:
    """Runs the steps until one fails. Returns the last exit code, and all output."""
    inputs = {name: entry.get("default", "") for name, entry in ACTION["inputs"].items()} | given
    output = ""
    for step in ACTION["runs"]["steps"]:
        condition = re.fullmatch(r"inputs\.([a-z-]+) != ''", step.get("if", "inputs.yes != ''"))
        assert condition, "a condition that this test cannot evaluate"
        if not (inputs | {"yes": "yes"})[condition[1]]:
            continue
        env = {
            name: EXPRESSION.sub(lambda found: inputs[found[1]], value)
            for name, value in step.get("env", {}).items()
        }
        env |= {"GITHUB_ACTION_PATH": str(ROOT), "RUNNER_TEMP": str(temporary)}
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        result = run(*shell, cwd=directory, env=env)
        output += result.stdout
        if result.returncode != 0:
            return result.returncode, output
    return 0, output


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all runs of the test install into."""
    return tmp_path_factory.mktemp("runner")


def test_an_input_reaches_a_shell_only_through_its_environment() -> None:
    steps = ACTION["runs"]["steps"]
    assert [step["shell"] for step in steps] == ["bash"] * len(steps)
    assert not any("${{" in step["run"] for step in steps)


def test_the_action_validates_and_compares(temporary: Path, environments: Environments) -> None:
    environments.write("good one.json", host="192.0.2.1")
    environments.write("bad.json", retention_days=0)
    here = environments.directory

    def steps(*files: str, **inputs: str) -> tuple[int, list[str]]:
        given = {"environment": "\n".join(files) + "\n", **inputs}
        code, output = act(here, temporary, given)
        return code, output.splitlines()

    assert steps("good one.json") == (0, [])
    code, lines = steps("good one.json", "bad.json")
    assert code == 3
    assert len(lines) == 1
    assert lines[0].startswith("::error file=bad.json,title=backup.retention_days::found: 0%0A")

    code, lines = steps("good one.json", bundle="bundle")
    assert code == 1
    assert lines[0] == "What changes on the host:"
    assert lines[-1].startswith("::error file=good one.json::bundle differs in ")
    program = temporary / "gen-backup-bundle/bin/gen-backup-bundle"
    assert run(str(program), "good one.json", "bundle", cwd=here).returncode == 0
    assert steps("good one.json", bundle="bundle") == (0, ["bundle is up to date"])
    code, lines = steps("good one.json", bundle="bundle", host="192.0.2.2")
    assert code == 2
    assert "--host and backup.host" in "\n".join(lines)

    environment = environments.content | {"backup": None}
    (here / "off.json").write_text(json.dumps(environment))
    assert steps("off.json")[0] == 3
    assert steps("off.json", **{"allow-disabled": "true"}) == (0, [])
