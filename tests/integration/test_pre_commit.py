"""The hooks of .pre-commit-hooks.yaml, run by pre-commit itself from a clone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from integration.conftest import Environments, commit, git, run


def test_the_hooks_validate_and_compare(
    clone: Path, environments: Environments, tmp_path_factory: pytest.TempPathFactory
) -> None:
    here = environments.directory
    bundle = ["envs/good.json", "bundle"]
    hooks = [
        {"id": "gen-backup-bundle-validate"},
        {"id": "gen-backup-bundle-check", "args": bundle},
    ]
    repository = {"repo": str(clone), "rev": git(clone, "rev-parse", "HEAD"), "hooks": hooks}
    (here / ".pre-commit-config.yaml").write_text(yaml.safe_dump({"repos": [repository]}))
    environments.write("envs/good.json")
    (here / "other.json").write_text('{"of": "somebody else"}')
    commit(here)
    home = {"PRE_COMMIT_HOME": str(tmp_path_factory.mktemp("home"))}

    def hook(name: str) -> tuple[int, str]:
        result = run("pre-commit", "run", "--all-files", name, cwd=here, env=home)
        return result.returncode, result.stdout

    code, text = hook("gen-backup-bundle-validate")
    assert code == 0, text
    assert "Passed" in text
    code, text = hook("gen-backup-bundle-check")
    assert code == 1, text
    assert "What changes on the host:" in text
    program = next(Path(home["PRE_COMMIT_HOME"]).glob("*/rustenv-*/bin/gen-backup-bundle"))
    assert run(str(program), *bundle, cwd=here).returncode == 0
    code, text = hook("gen-backup-bundle-check")
    assert code == 0, text

    environments.write("envs/bad.json", retention_days=0)
    git(here, "add", "envs/bad.json")
    code, text = hook("gen-backup-bundle-validate")
    assert code == 1, text
    assert "envs/bad.json has 1 problem:\n  backup.retention_days" in text
