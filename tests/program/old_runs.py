"""A run of long ago, which retention removes after the next success."""

from __future__ import annotations

import json

from program.host import Host
from unit.sandbox import manifest

OLD = "20250101_030000"


def add_old_run(host: Host) -> None:
    """The operator has acknowledged the pause after it."""
    run = manifest(OLD, 0, tables={})
    for file in run["files"]:
        (host.destination / file["path"]).write_text("backup")
    (host.destination / f"runs/{OLD}.json").write_text(json.dumps(run))
    # The pause is a reason to suspend retention. Its key names the run that came after it.
    recent = manifest("20250101_040000", 1, tables={}, kinds=())
    (host.destination / "runs/20250101_040000.json").write_text(json.dumps(recent))
