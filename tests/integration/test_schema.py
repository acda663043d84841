"""The published schema, used as an editor does: with a validator that is not ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from integration.conftest import ROOT, run

SCHEMA = ROOT / "schemas/environment.schema.json"
EXAMPLES = sorted(str(path) for path in ROOT.glob("examples/*/environment.json"))


def check(*arguments: str) -> tuple[int, str]:
    result = run("check-jsonschema", *arguments, cwd=ROOT)
    return result.returncode, result.stdout


def test_the_schema_is_one() -> None:
    assert check("--check-metaschema", str(SCHEMA))[0] == 0


def test_every_example_is_valid() -> None:
    assert len(EXAMPLES) == 8
    code, text = check("--schemafile", str(SCHEMA), *EXAMPLES)
    assert code == 0, text


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("retention_days", 0, "0 is less than the minimum of 1"),
        ("retention_dayz", 7, "'retention_dayz' was unexpected"),
        ("strategy", "side-car", "'side-car' is not one of"),
    ],
)
def test_an_editor_marks_a_mistake(tmp_path: Path, key: str, value: object, says: str) -> None:
    environment = json.loads(Path(EXAMPLES[0]).read_text())
    environment["backup"][key] = value
    file = tmp_path / "environment.json"
    file.write_text(json.dumps(environment))
    code, text = check("--schemafile", str(SCHEMA), str(file))
    assert code == 1
    assert says in text
