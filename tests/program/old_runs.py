"""A run that is older than the retention, which removes it after the next success."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

from unit.sandbox import manifest

from program.host import Host


def add_old_run(host: Host) -> list[str]:
    """Its files, relative to the destination. A newer run keeps the pause short."""
    old: list[str] = []
    for sequence, days in ((0, 8), (1, 4)):
        moment = datetime.now(timezone.utc) - timedelta(days=days)
        run = manifest(f"{moment:%Y%m%d_%H%M%S}", sequence, tables={})
        for file in run["files"]:
            (host.destination / file["path"]).write_text("backup")
        (host.destination / f"runs/{run['id']}.json").write_text(json.dumps(run))
        old = old or sorted(file["path"] for file in run["files"])
    return old
