"""Lists the backups of a Torrust Tracker, tells how they are, and installs or removes the backup
itself.

For operators:      run, list, status, doctor, verify, restore, extract, acknowledge, push
For the playbooks:  install, uninstall
For the scripts:    window, in-sidecar, rollback, check (maintenance-backup.sh, backup.sh, Compose)
For cron:           sidecar, catch-up

Exit codes: 0 success; 1 failed, or the backups are not as they should be; 2 configuration error; 75
another run holds the lock. maintenance-backup.sh tells those of a run. Source of all names and
rules: the bundle that is installed; the newest run is the one with the highest sequence, whatever
the clock said.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from typing import Any

from . import log
from .catch_up import command_catch_up
from .detach import detached
from .doctor import command_doctor
from .extract import command_extract
from .host import Refused
from .install import command_install, command_uninstall
from .remote import command_push
from .report import report_command
from .restore import command_restore, command_rollback
from .retention import command_acknowledge
from .run import command_check, command_in_sidecar, command_window
from .sidecar import command_run, command_sidecar
from .status import command_list, command_status
from .verify import command_verify


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tracker-backup", description=(__doc__ or "").splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, call: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(call=call)
        return command

    add("run", command_run, "back up now").add_argument(
        "--dry-run", action="store_true", help="check everything, publish nothing"
    )
    add("list", command_list, "the runs, oldest first").add_argument(
        "--json", action="store_true", help="their run manifests"
    )
    add(
        "status", command_status, "last run, age, space; fails when backups are too old"
    ).add_argument("--json", action="store_true")
    add(
        "doctor",
        command_doctor,
        "whether all is there that backup, recovery, verify and restore need; changes nothing",
    ).add_argument("--json", action="store_true")
    install = add(
        "install",
        command_install,
        "put the uploaded bundle in its places; secrets as JSON on standard input",
    )
    install.add_argument(
        "--take-over-destination",
        action="store_true",
        help="the machine that wrote there before is gone",
    )
    install.add_argument(
        "--rebuild-image",
        action="store_true",
        help="build or pull the image again, for security updates",
    )
    install.add_argument("--check", action="store_true", help="say what would change, no more")
    install.add_argument("--diff", action="store_true", help="show how the files' content changes")
    verifying = add(
        "verify",
        command_verify,
        "prove that a backup can be restored; touches nothing of the deployment",
    )
    verifying.add_argument(
        "run", nargs="?", default="latest", metavar="RUN", help="a run's id, or latest"
    )
    verifying.add_argument(
        "--image", default="", help="of an external MySQL server's kind, to import the dump into"
    )
    restoring = add("restore", command_restore, "put a backup back, here or onto an empty machine")
    restoring.add_argument(
        "run",
        nargs="?",
        default="",
        metavar="RUN",
        help="a run's id, or latest; with --from the default is latest",
    )
    restoring.add_argument(
        "--from", dest="source", choices=["restic"], help="fetch it from the repository first"
    )
    restoring.add_argument("--only", choices=["database", "config"])
    restoring.add_argument(
        "--to", metavar="DIR", default="", help="make a copy there, beside what runs"
    )
    restoring.add_argument(
        "--name", metavar="NAME", default="", help="of the copy's Compose project; with --to"
    )
    restoring.add_argument(
        "--images",
        choices=["recorded", "current"],
        default="recorded",
        help="onto an empty machine: the images that the stack had, or what their tags mean today",
    )
    restoring.add_argument("--dry-run", action="store_true", help="say what would be done")
    restoring.add_argument("--confirm", action="store_true", help="what is there now is replaced")
    extracting = add(
        "extract", command_extract, "copy a file, a directory or the database out of a backup"
    )
    extracting.add_argument("run", metavar="RUN", help="a run's id, or latest")
    extracting.add_argument(
        "path", metavar="PATH", help="below the deploy directory, as .env; or the word database"
    )
    extracting.add_argument(
        "--output", "-o", required=True, metavar="DIR", help="where to; nothing is replaced there"
    )
    add(
        "rollback",
        command_rollback,
        "undo a restore that died (maintenance-backup.sh --recover does it, too)",
    )
    add(
        "acknowledge",
        command_acknowledge,
        "let retention go on after you have looked at what suspended it",
    )
    add(
        "sidecar",
        command_sidecar,
        "for cron: bring a sidecar back that is missing, and tell it what only the host knows",
    )
    add("catch-up", command_catch_up, "for cron: make up for a run that was missed before a boot")
    add("uninstall", command_uninstall, "remove everything but the backups")
    checking = add("check", command_check, "for the sidecar: is the last success recent")
    checking.add_argument("what", choices=["freshness"])
    add("push", command_push, "copy to the restic repository what is not there yet")
    window = add("window", command_window, "for maintenance-backup.sh: a run, or a recovery")
    for option in ("--dry-run", "--force", "--recover"):
        window.add_argument(option, action="store_true")
    inside = add("in-sidecar", command_in_sidecar, "for backup.sh now, inside the sidecar: a run")
    inside.add_argument("--dry-run", action="store_true")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    arguments = parse(sys.argv[1:] if words is None else words)
    os.umask(0o077)
    for stream in (sys.stdout, sys.stderr):  # a file's name may be no text at all
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    log.copying = arguments.command in (
        "restore",
        "verify",
        "extract",
    )  # the rest shows, or is part of a run, whose output is there already
    if arguments.command == "restore" and arguments.confirm:
        return detached(lambda: carry_out(arguments))
    return carry_out(arguments)


def carry_out(arguments: argparse.Namespace) -> int:
    code = 1
    try:
        code = int(arguments.call(arguments))
    except Refused as error:
        log.complain(f"error: {error}")
        code = error.code
    except OSError as error:
        log.complain(f"error: {error}")
    if not getattr(arguments, "dry_run", False):
        report_command(arguments.command, code)
    return code
