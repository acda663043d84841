"""For the run: what is checked before it, what it should expect, and the run manifest that it
leaves.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .answers import BadAnswer, Result, read_result
from .deployment import check_deployment, stack_facts
from .destination import check_destination
from .docker import check_docker
from .documents import BackupFile, RunManifest
from .fault_points import fault_point
from .files import write_durably
from .host import CONFIG, Host, Refused, utc_now
from .log import say
from .remote import next_sequence
from .runs import newest_backup, read_runs, too_old
from .secrets import named_secrets, require_secrets


def command_check(arguments: argparse.Namespace) -> int:
    host = Host.read(CONFIG)
    if arguments.what == "destination":
        check_destination(host)
    elif arguments.what == "docker":
        require_secrets(host, named_secrets(host.configuration / "backup.conf"), {})
        check_docker(host, host.deploy_dir / "docker-compose.backup.yml")
    elif arguments.what == "freshness":
        if problem := too_old(host, read_runs(host))[1]:
            raise Refused(problem)
    else:
        for warning in check_deployment(host):
            say(f"warning: {warning}")
    return 0


def command_expect(arguments: argparse.Namespace) -> int:
    """Leaves in the run's staging what the last good run of this scope teaches: the tables it had,
    the bytes that it took.
    """
    host = Host.read(CONFIG)
    last = newest_backup(read_runs(host), scope=host.scope)
    work = Path(arguments.work)
    (work / "expected-tables").write_text(
        "".join(f"{table}\n" for table in (last.tables if last else ())), encoding="utf-8"
    )
    size = last.bytes if last else 0
    (work / "expected-bytes").write_text(f"{size}\n" if size else "", encoding="ascii")
    return 0


def command_record(arguments: argparse.Namespace) -> int:
    """Writes the run manifest from standard input and from what backup.sh left in staging."""
    host = Host.read(CONFIG)
    facts: dict[str, str] = {}
    warnings: list[str] = []
    for line in sys.stdin.buffer.read().decode(errors="replace").split("\n"):
        key, _, value = line.partition("=")
        if key == "warning":
            warnings.append(value)
        else:
            facts[key] = value
    success = facts["result"] == "success"
    try:
        result = read_result(Path(arguments.work), facts["id"])
    except BadAnswer as error:
        if success:
            raise
        result = Result(warnings=[str(error)])
    images, directories = stack_facts(host) if success else ({}, {})
    if success and not result.files:
        raise Refused("a successful run without files: nothing was recorded")
    manifest = RunManifest(
        id=facts["id"],
        sequence=next_sequence(read_runs(host)),
        environment=host.environment,
        started=facts["started"],
        finished=utc_now(),
        result="success" if success else "failed",
        exit_code=int(facts["exit_code"]),
        reason=facts["reason"],
        strategy=host.strategy,
        quiesce=facts["quiesce"],
        scope=host.scope,
        files=[BackupFile(**file) for file in result.files] if success else [],
        paths=result.paths,
        tables=result.tables,
        window_seconds=float(facts["window_seconds"]),
        durations=result.durations,
        directories=directories,
        images=images,
        warnings=warnings + result.warnings,
        tools=result.tools,
    )
    fault_point("writing-the-run-manifest", host)
    write_durably(
        host.destination / "runs" / f"{facts['id']}.json",
        manifest.encode(),
    )
    return 0
