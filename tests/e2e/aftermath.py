"""What a fault leaves: of the tracker, the earlier backups, the run itself and the next run."""

from __future__ import annotations

import json
import re
import shlex

from e2e import faults
from e2e.deployment import DESTINATION, Deployment
from e2e.host import Container, Host

# What backup.sh reads to the end before it publishes has to be readable to the end.
_UNREADABLE = """
cd {directory} && for file in {files}; do
    case $file in
        *.gz) gzip --test "$file" ;;
        *.zst) zstd -q --test "$file" ;;
        *) python3 -m json.tool "$file" >/dev/null ;;
    esac 2>/dev/null || echo "$file"
done
"""


def lost(host: Host, earlier: dict[str, str]) -> list[str]:
    """Earlier backups that are gone or changed, and incomplete files that have a final name."""
    now = faults.backups(host)
    found = [
        f"{path} was changed or is gone"
        for path, digest in earlier.items()
        if now.get(path) != digest
    ]
    new = sorted(set(now) - set(earlier))
    if new:
        broken = host.sh(_UNREADABLE.format(directory=DESTINATION, files=shlex.join(new))).split()
        found += [f"{path} is not whole" for path in broken]
        for path in new:
            if path.startswith("runs/") and path not in broken:
                files = json.loads(host.read(f"{DESTINATION}/{path}"))["files"]
                found += [
                    f"{file['path']} is not as {path} says"
                    for file in files
                    if now.get(file["path"]) != file["sha256"]
                ]
    return found


def reason(log: str, pattern: str) -> str:
    """The log line that ends the run, or else the first that matches; a line has to match."""
    found = [line for line in log.splitlines() if re.search(pattern, line)]
    assert found, log
    return next((line for line in log.splitlines() if "]: ERROR:" in line), found[0])


def becomes(before: Container, after: Container | None) -> str:
    """What became of the tracker, in the table's words."""
    if after is None:
        return "gone, as somebody left it"
    if after.id != before.id:
        return "somebody's new one runs"
    if after.status != "running":
        return {"exited": "stopped", "paused": "frozen"}[after.status] + ", as somebody left it"
    return "runs on" if after.started == before.started else "runs again"


def next_run(deployment: Deployment, earlier: dict[str, str]) -> str:
    """Runs a backup: it succeeds, cleans up and leaves the earlier backups as they were."""
    with deployment.configured(QUIESCE="none"):
        done = deployment.run().succeeded()
    assert faults.leftovers(deployment.host) == []
    assert lost(deployment.host, earlier) == []
    return (
        "removes what was left, and succeeds"
        if "of a dead run" in done.output or "what a dead run left" in done.output
        else "succeeds"
    )
