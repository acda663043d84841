"""Run manifests: reading, choosing, and comparing them with the files that they name."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from .host import Host, Refused
from .log import complain

FUTURE_SECONDS = 60  # by which a clock may go back without a word
RUN_ID = re.compile(r"[0-9]{8}_[0-9]{6}")
BACKUP_FILE = re.compile(
    r"(sqlite|mysql|config)/(sqlite|mysql|config)_([0-9]{8}_[0-9]{6})"
    r"\.(db|sql|torrents\.sql|tar)\.(gz|zst)"
)

Manifest = dict[str, Any]  # a run manifest as it stands in runs/ID.json


def read_runs(host: Host) -> list[Manifest]:
    """This environment's run manifests, oldest first by sequence; what is none of ours is passed
    over with a word.
    """
    runs = []
    for path in sorted((host.destination / "runs").glob("*.json")):
        try:
            run = checked_run(json.loads(path.read_bytes()))
            if run["id"] != path.stem:
                raise ValueError("its id is not its name")
            if run["environment"] == host.environment:
                runs.append(run)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            complain(f"warning: {path} is not a run manifest of ours and is left alone ({error!r})")
    return sorted(runs, key=lambda run: int(run["sequence"]))


def checked_run(run: Any) -> Manifest:
    """A run manifest with every field that is read, of the right type; anything else raises."""
    run_time(run["id"])
    good = (
        RUN_ID.fullmatch(run["id"])
        and type(run["sequence"]) is int
        and type(run["exit_code"]) is int
        and run["result"] in ("success", "failed")
        and isinstance(run["environment"], str)
        and isinstance(run["started"], str)
        and isinstance(run["reason"], str)
        and isinstance(run["scope"], str)
        and isinstance(run["window_seconds"], (int, float))
        and all(
            isinstance(file[key], str)
            for file in run["files"]
            for key in ("kind", "path", "sha256")
        )
        and all(type(file["bytes"]) is int for file in run["files"])
        and all(type(rows) is int for rows in run["tables"].values())
        and all(isinstance(run[key], dict) for key in ("tables", "images", "directories"))
        and all(isinstance(text, str) for text in [*run["warnings"], *run["paths"]])
    )
    if not good:
        raise ValueError("its content is of another shape")
    return dict(run)


def newest_success(runs: list[Manifest], scope: str | None = None) -> Manifest | None:
    """The one with the highest sequence; with a scope, the newest of that scope."""
    return next(
        (
            run
            for run in reversed(runs)
            if run["result"] == "success" and scope in (None, run["scope"])
        ),
        None,
    )


def too_old(host: Host, runs: list[Manifest]) -> tuple[float | None, str]:
    """(age of the newest success in seconds, what is wrong with it); no age when there is none."""
    success = newest_success(runs)
    if success is None:
        return None, "there is no successful backup yet"
    age = (datetime.datetime.now(datetime.timezone.utc) - run_time(success["id"])).total_seconds()
    limit = host.age_limit
    if age < -FUTURE_SECONDS:
        return (
            age,
            (
                f"the last success, {success['id']}, lies {-age / 3600:.1f} hours in the future: "
                "the host's clock was wrong then, or is now"
            ),
        )
    return (
        age,
        f"the last success is {age / 3600:.1f} hours old; the limit is {limit / 3600:.1f}"
        if age > limit
        else "",
    )


def run_time(run_id: str) -> datetime.datetime:
    """When the run with this id began, UTC."""
    return datetime.datetime.strptime(run_id, "%Y%m%d_%H%M%S").replace(tzinfo=datetime.timezone.utc)


def run_files(run: Manifest) -> list[tuple[str, str]]:
    """(kind, path below the destination) of a run's files; a name that is not one of ours is never
    returned.
    """
    return [
        (str(file["kind"]), str(file["path"]))
        for file in run.get("files", [])
        if (match := BACKUP_FILE.fullmatch(str(file["path"])))
        and match[1] == match[2]
        and match[3] == run["id"]
    ]


def choose_run(runs: list[Manifest], wanted: str) -> Manifest:
    """The successful run with this id; `latest` is the one with the highest sequence."""
    if wanted == "latest":
        if (run := newest_success(runs)) is None:
            raise Refused("there is no successful backup yet")
        return run
    for run in runs:
        if run["id"] == wanted and run["result"] == "success":
            return run
    raise Refused(
        f"there is no successful run {wanted!r}; `tracker-backup list` shows those that are there"
    )


def check_files(host: Host, run: Manifest, directory: Path | None = None) -> list[str]:
    """What is wrong with the run's files, by size and hash: those of the destination, or of a
    directory like it.
    """
    problems = []
    for file in run["files"]:
        path = (directory or host.destination) / file["path"]
        digest = hashlib.sha256()
        try:
            with path.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            problems.append(f"{file['path']}: {error.strerror}")
            continue
        if digest.hexdigest() != file["sha256"]:
            problems.append(f"{file['path']} is not what was published: its SHA-256 differs")
    return problems
