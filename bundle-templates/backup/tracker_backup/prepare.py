"""Before the window: everything that can be known, made or refused while the tracker still runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from . import log
from .current import Run
from .deployment import check_deployment
from .destination import failure_of, require_destination
from .docker import (
    check_docker,
    docker,
    has_image,
    make_image,
    remove_dead_containers,
    words,
)
from .drivers import DRIVERS, driver_of
from .fault_points import fault_point
from .files import remove_tree
from .host import CONFIG, IN_SIDECAR, STATE, Host, Refused, utc_now
from .jobs import docker_root
from .notify import tell_start
from .publish import clear_leftovers
from .secrets import named_secrets, require_secrets
from .space import Space, require_space
from .tracker import Tracker, look, tracker_ids

SPARE_BYTES = 16 << 20
PROBE = ".probe-{}"  # and the run's id: what is written to see whether it can be
RULES = {
    "BACKUP_MODE": "single",
    "BACKUP_COMPRESSION": "gzip zstd",
    "BACKUP_SCOPE": "full exclude-statistics",
    "BACKUP_ALLOW_WRITER_STALL": "true false",
    "BACKUP_PATHS_FILE": "",
    "DB_TYPE": " ".join(DRIVERS),
}


def require_settings(host: Host, strategy: str, quiesces: Sequence[str]) -> None:
    if host.strategy != strategy:
        raise Refused(f"{CONFIG}: STRATEGY='{host.strategy}'; this program runs {strategy}", 2)
    if host.quiesce not in quiesces:
        allowed = " ".join(quiesces)
        raise Refused(f"{CONFIG}: QUIESCE='{host.quiesce}'; allowed: {allowed}", 2)
    host.backup_settings.require(RULES)
    host.backup_settings.require(driver_of(host).SETTINGS)


def begin(run: Run) -> None:
    host = run.host
    fault_point("checking-the-destination", host)
    require_destination(host)
    while not run.id or any(host.destination.glob(f"*/*{run.id}*")):  # an id that is taken
        time.sleep(0.2 if run.id else 0)
        run.id = time.strftime("%Y%m%d_%H%M%S", time.gmtime())
    run.started, run.unrecorded = utc_now(), not run.dry_run
    log.log(f"run {run.id} begins: {host.strategy}, quiesce {run.quiesce}")
    if not run.dry_run:
        tell_start(host, run.id)


def remove_leftover_containers(run: Run) -> None:
    fault_point("looking-for-what-dead-runs-left", run.host)
    if not run.dry_run:
        remove_dead_containers(run.warn)


def remove_leftover_files(run: Run) -> None:
    """While we hold the lock, no other run is alive. So files that are named after another run are
    leftovers.
    """
    if run.dry_run:
        return
    host = run.host
    leftovers = [*host.staging.glob("[0-9]*_[0-9]*")]
    for directory in (host.staging, host.destination):
        leftovers += directory.glob(PROBE.format("[0-9]*"))
    for leftover in leftovers:
        run.warn(f"removing what a dead run left: {leftover}")
        remove_tree(leftover)
    clear_leftovers(host, run.warn)


def require_docker(host: Host) -> None:
    fault_point("checking-docker", host)
    names = named_secrets(host.configuration / "backup.conf")
    # Telling people never fails a run.
    require_secrets(host, [name for name in names if not name.startswith("notify_")], {})
    check_docker(host, host.deploy_dir / "docker-compose.backup.yml")


def find_tracker(run: Run) -> tuple[Tracker | None, float]:
    """The tracker, and when Docker was asked for it. Raises Refused with code 3 if it does not run,
    unless the run is forced: then the quiesce is `left-` and its status.
    """
    looked_at = time.time()
    ids = tracker_ids(run.host)
    if len(ids) > 1:
        raise Refused(f"more than one container of the service tracker in {run.host.deploy_dir}")
    tracker = look(ids[0]) if ids else None
    if ids and not tracker:
        raise Refused(f"Docker does not inspect the tracker {ids[0]}")
    status = tracker.status if tracker else "missing"
    if status != "running":
        if not run.force:
            text = f"skipped: the tracker is {status}, not running; --force backs up anyway"
            raise Refused(text, 3)
        forced = "backing up because of --force, and not starting it afterwards"
        run.warn(f"the tracker is {status}; {forced}")
        run.quiesce = f"left-{status}"
    return tracker, looked_at


def require_deployment(run: Run) -> None:
    fault_point("checking-the-deployment", run.host)
    for warning in check_deployment(run.host):
        run.warn(warning)


def require_image(run: Run) -> bool:
    """Makes it, outside the window. False in a dry run that would have to."""
    host = run.host
    fault_point("looking-for-the-image", host)
    if has_image(host.image):
        return True
    if run.dry_run:
        log.log(f"the image {host.image} is missing and would be made; stopping here")
        return False
    run.warn(f"the image {host.image} is missing; {host.image_source}, before the window")
    try:
        make_image(host, host.deploy_dir / "backup", rebuild=False)
    except Refused as error:
        raise Refused(f"the image {host.image} could not be made: {error}") from error
    return True


def project_of(tracker: Tracker | None) -> str:
    """The name of its Compose project; empty if there is no tracker."""
    template = '{{index .Config.Labels "com.docker.compose.project"}}'
    command = words("inspect --type container --format")
    return docker(*command, template, tracker.id).strip() if tracker else ""


def check_space(run: Run, database: int, config: int) -> None:
    """Staging gets the database, the excerpt made from it, and the compressed files. The
    destination gets the compressed files, when the database is not in staging any more. Before the
    first run nobody knows how well they compress, so their full size is needed. `publish` looks
    again when it knows.
    """
    host = run.host
    log.log(f"database {database >> 20} MiB, configuration {config >> 20} MiB")
    captured = database * (1 if host.scope == "full" else 2)
    published = database + config
    if run.last:
        published = min(published, run.last.bytes * 3 // 2)
    published += SPARE_BYTES
    needed = {host.staging: captured + published + SPARE_BYTES, host.destination: published}
    if host.staging.stat().st_dev == host.destination.stat().st_dev:
        needed[host.destination] = published + max(captured, published)
    busy = {host.deploy_dir, host.staging, Path("/"), STATE, engine_root()}
    devices = {path.stat().st_dev for path in busy if path.is_dir()}
    for directory in (*needed, *filter(Path.is_dir, busy - needed.keys())):
        kept = Space.of(directory).head_room(directory.stat().st_dev not in devices)
        require_space(directory, needed.get(directory, 0), kept)
    for directory in needed:
        probe_write(directory, run.id)


def engine_root() -> Path:
    """Where Docker has its containers. The sidecar cannot ask."""
    return STATE if IN_SIDECAR else docker_root()


def probe_write(directory: Path, run_id: str) -> None:
    script = 'echo probe >"$0" && sync "$0" && rm "$0"'
    if why := failure_of(directory, "sh", "-c", script, str(directory / PROBE.format(run_id))):
        raise Refused(f"cannot write to {directory}: {why.rpartition(': ')[2]}")
