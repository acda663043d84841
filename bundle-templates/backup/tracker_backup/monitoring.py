"""Alert rules and a dashboard, where the stack's Prometheus and Grafana read them.

Services can write to these directories, so the files are reached through descriptors. If a place
is not as expected, that is a warning.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from . import files, metrics
from .host import Host
from .log import say
from .planted import is_at, opened, put_at, remove_at

DASHBOARDS = "storage/grafana/provisioning/dashboards"
PLACES = {  # below the deploy directory, by file of the bundle
    "monitoring/tracker-backup.rules.yml": "storage/prometheus/etc/tracker-backup.rules.yml",
    "monitoring/grafana-provider.yml": f"{DASHBOARDS}/tracker-backup.yml",
    # Grafana loads everything in this directory.
    "monitoring/tracker-backup.dashboard.json": f"{DASHBOARDS}/tracker-backup/tracker-backup.json",
}


def put_monitoring(host: Host, bundle: Mapping[str, bytes]) -> None:
    """Puts each file in its place, where the stack has the service."""
    for source, target in PLACES.items():
        path, content = host.deploy_dir / target, bundle[source]
        parents = Path(target).parent.parts
        if not (host.deploy_dir / Path(*parents[:2])).is_dir():  # there is no such service
            continue
        try:
            with opened(host.deploy_dir, *parents, make=not files.checking) as directory:
                if not is_at(directory, path.name, content, 0o644):
                    put = partial(put_at, directory, path.name, content, 0o644)
                    files.change(str(path), put)
        except OSError as error:
            say(f"warning: {path} was left alone: {error.strerror}")


def remove_monitoring(host: Host, directory: str) -> None:
    """Removes them, and the metrics, which would go on telling how the backups were."""
    places = [(host.deploy_dir, Path(target)) for target in PLACES.values()]
    if directory:
        places.append((Path(directory), Path(metrics.FILE)))
    for base, target in places:
        try:
            with opened(base, *target.parent.parts) as at:
                if remove_at(at, target.name):
                    say(f"changed: {base / target} (removed)")
        except FileNotFoundError:
            pass
        except OSError as error:
            say(f"warning: {base / target} was left alone: {error.strerror}")
    with contextlib.suppress(OSError), opened(host.deploy_dir, *Path(DASHBOARDS).parts) as at:
        os.rmdir("tracker-backup", dir_fd=at)
