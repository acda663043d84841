"""One fault after the other: what each does to the run, the tracker, the backups and the next run.

UPDATE_FAULTS=1 writes the table of what was seen into docs/faults.md. Kills are in test_kills.py,
power cuts in test_power.py.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypedDict

import pytest

from e2e import disk, faults, page
from e2e.aftermath import becomes, lost, next_run, reason
from e2e.deployment import DESTINATION, SCRIPT, STAGING, Deployment
from e2e.faults import (
    CAPTURE,
    HOLD,
    KILL,
    MARKER,
    STOP_CAPTURE,
    recover,
    strike,
    striking,
    tracker_started_again,
)
from e2e.host import wait_until
from e2e.page import Row
from e2e.stack import DATABASE, DEPLOY_DIR, SQLITE_FILE, untouched, wait_for_tracker
from e2e.steps import POINTS

IDENTITY = f"{DESTINATION}/.tracker-backup.json"
PATHS = f"{DEPLOY_DIR}/backup/backup-paths.txt"
SECRET = f"{DEPLOY_DIR}/backup/secrets/db_password"
BOTH = ("sqlite3", "mysql")
COMPRESS = "step compressing the database"
CONTAINERS = "$(docker ps --quiet --filter label=tracker-backup.run)"


def _swapped(change: str) -> str:
    """Replaces the database with a changed copy; the tracker keeps the old one open."""
    return (
        f"cp -p {SQLITE_FILE} /root/kept.db; cp -p {SQLITE_FILE} /root/new.db; {change}; mv "
        f"{SQLITE_FILE} /root/open.db; mv /root/new.db {SQLITE_FILE}"
    )


SWAPPED_BACK = f"mv /root/open.db {SQLITE_FILE}; rm -f {SQLITE_FILE}-journal"


def _background(script: str) -> str:
    """Runs a script in the background, in its own process group: time limits end whole groups."""
    return f"set -m; ({script}) </dev/null >/dev/null 2>&1 & set +m"


class Around(TypedDict):
    """What happens before a fault's run, and what undoes it."""

    before: str
    after: str


def _kept(file: str, change: str) -> Around:
    """`before` and `after` of a fault that changes a file."""
    return {"before": f"cp -p {file} /root/kept; {change}", "after": f"cat /root/kept >{file}"}


def _link(path: str, target: str) -> Around:
    """`before` and `after` of a service that plants a symlink in its own directory."""
    planted = f"{DEPLOY_DIR}/storage/{path}"
    return {"before": f"[ ! -e {planted} ] || mv {planted} /root/moved; ln -s {target} {planted}",
            "after": f"rm {planted}; [ ! -e /root/moved ] || mv /root/moved {planted}"}  # fmt: skip


def _as_root_of_mysql(statements: str) -> str:
    return (
        "docker exec -i mysql sh -c 'exec mysql -uroot -p\"$MYSQL_ROOT_PASSWORD\"' "
        f"<<'SQL'\n{statements}\nSQL\n"
    )


def _moved(source: str, target: str) -> str:
    return "".join(
        f"RENAME TABLE {source}.{table} TO {target}.{table};"
        for table in ("torrents", "whitelist", "keys")
    )


def _compose(words: str) -> str:
    return f"(cd {DEPLOY_DIR} && docker compose {words}) >/dev/null 2>&1"


@dataclass(frozen=True)
class Fault:
    """One fault, made by shell fragments: `before` the run, `do` at the Docker call `at`, undone by
    `after`."""

    name: str
    code: int
    log: str  # a regular expression for the line that names the reason
    before: str = ""
    at: str = ""
    do: str = ""
    when: str = "before"
    after: str = ""
    recovery: bool = False  # whether the run leaves its window to the recovery
    window: bool = False  # whether the tracker was stopped or paused
    left: str = "running"  # the tracker's status in the end; empty when somebody has removed it
    settings: dict[str, str] = field(default_factory=dict)
    limits: dict[str, str] = field(default_factory=dict)  # in the script's environment
    drivers: tuple[str, ...] = ("sqlite3",)

    def __str__(self) -> str:
        return self.name


STOPPED = {"QUIESCE": "stop", "STOP_TIMEOUT_SECONDS": "1"}
PAUSED = {"QUIESCE": "pause", "STOP_TIMEOUT_SECONDS": "1"}
SHORT = {"WINDOW_TIMEOUT_SECONDS": "9"}
# Cron's own recovery comes every minute: it is kept away while somebody does something before it.
HELD = f"touch {HOLD}; {KILL}"
FREEZE_DOCKER = "kill -STOP $(pidof dockerd); " + _background(
    "while kill -0 $FAULT_PID; do sleep 0.1; done; kill -CONT $(pidof dockerd)"
)
# The run goes on when staging is frozen. Nobody can remove the fault point's file any more then.
FREEZE_STAGING = (
    f"kill -STOP $FAULT_PID; rm {POINTS}/hold; fsfreeze -f {STAGING}; kill -CONT $FAULT_PID; "
    + _background(f"while [ -e {MARKER} ]; do sleep 0.1; done; fsfreeze -u {STAGING}")
)
MYSQL_ANSWERS = (
    "until docker exec mysql sh -c 'mysqladmin ping -h127.0.0.1 -uroot "
    '-p"$MYSQL_ROOT_PASSWORD"\' >/dev/null 2>&1; do sleep 0.2; done'
)
GRANTED = f"`{DATABASE['mysql'].replace('_', chr(92) + '_')}`.*"
IMAGE = "$(sed -n \"s/^IMAGE='\\(.*\\)'/\\1/p\" /etc/tracker-backup.conf)"
TOML = f"{DEPLOY_DIR}/storage/tracker/etc/tracker.toml"
DOTENV = f"{DEPLOY_DIR}/.env"
RESPECTED = "somebody has stopped, started or replaced the tracker since; leaving it as it is"
LOST = "Lost connection|server has gone away|Server shutdown|error"

FAULTS = (
    # the destination
    Fault(
        "nothing is mounted at the destination",
        1,
        "is the destination mounted",
        f"mv {IDENTITY} /root/identity",
        after=f"mv /root/identity {IDENTITY}",
    ),
    Fault(
        "the destination is another environment's",
        1,
        "holds the backups of the environment 'somebody-else'",
        **_kept(
            IDENTITY, f'sed -i \'s/"environment": .*/"environment": "somebody-else",/\' {IDENTITY}'
        ),
    ),
    Fault(
        "the destination is another machine's",
        1,
        "belongs to another machine of this environment",
        **_kept(IDENTITY, f'sed -i \'s/"machine_id": .*/"machine_id": "0123"/\' {IDENTITY}'),
    ),
    Fault(
        "the destination is full before the run",
        1,
        f"not enough space in {DESTINATION}",
        disk.small(DESTINATION, "8m"),
        after=disk.gone(DESTINATION),
    ),
    Fault(
        "the destination fills up during the run",
        1,
        "bytes are left in|No space left|not enough space",
        disk.small(DESTINATION, "64m"),
        at=COMPRESS,
        do=f"dd if=/dev/zero of={DESTINATION}/fill bs=64k >/dev/null 2>&1",
        after=disk.gone(DESTINATION),
        drivers=BOTH,
    ),
    Fault(
        "staging fills up in the window",
        1,
        "bytes are left in|the capture step failed|No space left",
        disk.small(STAGING, "64m"),
        at=CAPTURE,
        do=f"dd if=/dev/zero of={STAGING}/fill bs=64k >/dev/null 2>&1",
        after=disk.gone(STAGING),
        window=True,
        settings=PAUSED,
        drivers=BOTH,
    ),
    Fault(
        "the destination is read-only",
        1,
        f"cannot write to {DESTINATION}: Read-only file system",
        f"mount --bind {DESTINATION} {DESTINATION} && mount -o remount,ro,bind {DESTINATION}",
        after=f"umount {DESTINATION}",
    ),
    Fault(
        "the destination squashes root",
        1,
        f"cannot write to {DESTINATION}: Operation not permitted",
        f"{disk.ext4(DESTINATION)} && chattr +i {DESTINATION} {DESTINATION}/*/",
        after=f"chattr -i {DESTINATION} {DESTINATION}/*/; {disk.gone(DESTINATION)}",
    ),
    Fault(
        "the destination does not answer before the window",
        1,
        f"{DESTINATION} does not answer",
        f"{disk.ext4(DESTINATION)} && fsfreeze -f {DESTINATION}",
        at="^rm ",
        do=f"fsfreeze -u {DESTINATION}",
        after=disk.gone(DESTINATION),
        limits={"PROBE_SECONDS": "5"},
    ),
    Fault(
        "staging does not answer in the window",
        1,
        "the capture step was not over after its time limit",
        disk.ext4(STAGING),
        at=CAPTURE,
        do=FREEZE_STAGING,
        after=disk.gone(STAGING),
        window=True,
        settings=PAUSED | SHORT,
        drivers=BOTH,
    ),
    # the configuration
    Fault(
        "a misspelt database type",
        2,
        "DB_TYPE='sqlit'; allowed: sqlite mysql",
        settings={"DB_TYPE": "sqlit"},
        drivers=BOTH,
    ),
    Fault(
        "a required path is missing",
        1,
        "is in the path list and does not exist",
        **_kept(PATHS, f"echo /data/storage/gone >>{PATHS}"),
    ),
    Fault(
        "an optional path is missing",
        0,
        "optional path missing: /data/storage/gone",
        **_kept(PATHS, f"echo '?/data/storage/gone' >>{PATHS}"),
    ),
    Fault(
        "a path list with CRLF and without a final newline",
        0,
        "succeeded",
        **_kept(PATHS, f"sed -i 's/$/\\r/' {PATHS}; truncate -s -2 {PATHS}"),
    ),
    Fault(
        "a path list that leads outside the deployment",
        2,
        "is not below /data|leads out",
        **_kept(PATHS, f"echo '/data/../etc/shadow' >>{PATHS}"),
    ),
    Fault(
        "a configuration file cannot be read",
        1,
        "prometheus.yml cannot be read",
        f"mount --bind /sys/bus/cpu/uevent {DEPLOY_DIR}/storage/prometheus/etc/prometheus.yml",
        after=f"umount {DEPLOY_DIR}/storage/prometheus/etc/prometheus.yml",
    ),
    Fault(
        "the tracker was moved to another database",
        1,
        "the tracker uses .*, backup.conf says",
        **_kept(
            TOML,
            "sed -i '/database\\]/,$s|^path = .*|path = \"mysql://u:p@elsewhere:3306/other\"|' "
            f"{TOML}",
        ),
        drivers=BOTH,
    ),
    Fault(
        "somebody has edited .env",
        0,
        "succeeded",
        **_kept(
            DOTENV,
            f"sed -i \"s/^MYSQL_ROOT_PASSWORD=.*/MYSQL_ROOT_PASSWORD='edited'/\" {DOTENV}; echo "
            f"\"EDITED='yes'\" >>{DOTENV}",
        ),
        drivers=BOTH,
    ),
    Fault(
        "somebody has broken .env",
        1,
        r"docker compose failed: failed to read /opt/torrust/.env: line \d+: unterminated quoted "
        r"value *$",
        **_kept(DOTENV, f'echo "BROKEN=\'of a password" >>{DOTENV}'),
    ),
    # SQLite
    Fault(
        "the SQLite file is empty",
        1,
        r"is empty \(0 bytes\)",
        _swapped("truncate -s 0 /root/new.db"),
        after=SWAPPED_BACK,
    ),
    Fault(
        "the SQLite file is missing",
        1,
        "tracker.db does not exist",
        f"mv {SQLITE_FILE} /root/open.db",
        after=SWAPPED_BACK,
    ),
    Fault(
        "the SQLite file is something else",
        1,
        "is not an SQLite database",
        _swapped("echo text >/root/new.db"),
        after=SWAPPED_BACK,
    ),
    Fault(
        "the SQLite file is corrupt",
        1,
        "integrity_check",
        _swapped(
            "dd if=/dev/urandom of=/root/new.db bs=4096 seek=1 count=5 conv=notrunc 2>/dev/null"
        ),
        after=SWAPPED_BACK,
        window=True,
        settings=PAUSED,
    ),
    Fault(
        "a table of the tracker is gone",
        0,
        "WARNING: the captured database lacks the table keys",
        _swapped("sqlite3 /root/new.db 'DROP TABLE keys'"),
        after=SWAPPED_BACK,
        window=True,
        settings=PAUSED,
    ),
    # MySQL
    Fault(
        "MySQL does not run",
        1,
        "Can't connect|Unknown (MySQL )?server host",
        "docker stop -t 20 mysql",
        after=f"docker start mysql; {MYSQL_ANSWERS}",
        drivers=("mysql",),
    ),
    Fault(
        "MySQL is killed in the middle of the dump",
        1,
        LOST,
        at=CAPTURE,
        settings=PAUSED,
        window=True,
        drivers=("mysql",),
        do='docker exec -d mysql sh -c \'exec mysql -uroot -p"$MYSQL_ROOT_PASSWORD" -e "LOCK '
        f"TABLES {DATABASE['mysql']}.whitelist WRITE; SELECT sleep(60)\"'; "
        + _background(
            "until docker top mysql >/dev/null && pgrep --full '^mariadb-dump'; do sleep 0.1; "
            "done; sleep 1; docker kill mysql"
        ),
        after=f"docker start mysql; {MYSQL_ANSWERS}",
    ),
    Fault(
        "the MySQL database is empty",
        1,
        "has none of the tables of the last good run",
        _as_root_of_mysql("CREATE DATABASE aside; " + _moved(DATABASE["mysql"], "aside")),
        after=_as_root_of_mysql(_moved("aside", DATABASE["mysql"]) + " DROP DATABASE aside;"),
        drivers=("mysql",),
    ),
    Fault(
        "the MySQL user sees one table",
        0,
        "WARNING: the captured database lacks the table whitelist",
        _as_root_of_mysql(
            f"REVOKE ALL ON {GRANTED} FROM tracker_user; GRANT ALL ON "
            f"{DATABASE['mysql']}.torrents TO tracker_user;"
        ),
        after=_as_root_of_mysql(
            f"REVOKE ALL ON {DATABASE['mysql']}.torrents FROM tracker_user; GRANT ALL ON "
            f"{GRANTED} TO tracker_user;"
        ),
        drivers=("mysql",),
    ),
    Fault(
        "the password is wrong",
        1,
        "Access denied",
        **_kept(SECRET, f"printf wrong >{SECRET}"),
        drivers=("mysql",),
    ),
    Fault(
        "the secret is missing",
        2,
        "no value for the secret db_password",
        f"mv {SECRET} /root/secret",
        after=f"mv /root/secret {SECRET}",
        drivers=("mysql",),
    ),
    # what a service that was taken over can write into its own directories
    Fault(
        "the tracker plants a symlink in the place of its database",
        1,
        "tracker.db is not a regular file but a symlink",
        **_link("tracker/lib/database/tracker.db", "/etc/shadow"),
    ),
    Fault(
        "the tracker plants a symlink in the place of its database's directory",
        1,
        "leads through a symlink|does not exist",
        **_link("tracker/lib/database", "/etc"),
    ),
    Fault(
        "the tracker plants a symlink beside its configuration",
        0,
        "succeeded",
        **_link("tracker/etc/planted", "/etc/shadow"),
        drivers=BOTH,
    ),
    Fault(
        "Prometheus plants a symlink beside its configuration",
        0,
        "succeeded",
        **_link("prometheus/etc/planted", "/etc/shadow"),
    ),
    Fault(
        "Grafana plants a symlink in the place of its database",
        1,
        "leads through a symlink to /etc/shadow",
        **_link("grafana/data/grafana.db", "/etc/shadow"),
    ),
    Fault(
        "Caddy plants a symlink among its certificates",
        0,
        "succeeded",
        **_link("caddy/data/caddy/planted", "/etc"),
    ),
    Fault(
        "MySQL plants a symlink in its data",
        0,
        "succeeded",
        **_link("mysql/data/planted", "/etc/shadow"),
        drivers=("mysql",),
    ),
    # Docker
    Fault(
        "somebody removed all unused images (docker image prune -a)",
        0,
        "the image .* is missing; build, before the window",
        # Of a registry, only the layers are kept.
        f"docker tag {IMAGE} kept:layers; docker create --name kept-layers {IMAGE} >/dev/null; "
        "docker create --name kept-base debian:trixie-slim >/dev/null; "
        f"docker image prune --all --force; ! docker image inspect {IMAGE} >/dev/null 2>&1",
        after="docker rm kept-layers kept-base; docker rmi kept:layers; true",
        drivers=BOTH,
    ),
    Fault(
        "the image was removed and no registry answers",
        1,
        r"could not be made \(build\)",
        f"docker tag {IMAGE} kept:layers; "
        f"docker rmi {IMAGE}; sed -i.kept 's|^FROM .*|FROM localhost:9/debian:none|' "
        f"{DEPLOY_DIR}/backup/Dockerfile",
        after=f"mv {DEPLOY_DIR}/backup/Dockerfile.kept {DEPLOY_DIR}/backup/Dockerfile; docker tag "
        f"kept:layers {IMAGE}; docker rmi kept:layers",
        drivers=BOTH,
    ),
    Fault(
        "the image is to be pulled and no registry answers",
        1,
        r"could not be made \(pull\)",
        settings={"IMAGE": "localhost:9/backup:none", "IMAGE_SOURCE": "pull"},
    ),
    Fault(
        "Docker does not answer before the window",
        1,
        "Docker does not answer",
        at="^ps --all --filter label=tracker-backup.run",
        do=FREEZE_DOCKER,
        limits={"DOCKER_SECONDS": "5"},
    ),
    Fault(
        "Docker does not answer for some seconds in the window",
        0,
        "succeeded",
        at=CAPTURE,
        do="kill -STOP $(pidof dockerd); " + _background("sleep 4; kill -CONT $(pidof dockerd)"),
        window=True,
        settings=PAUSED,
    ),
    Fault(
        "Docker does not answer any more in the window",
        4,
        "could not be brought back",
        at=CAPTURE,
        do=FREEZE_DOCKER,
        window=True,
        recovery=True,
        settings=PAUSED | SHORT,
        limits={"DOCKER_SECONDS": "5", "BRING_BACK_SECONDS": "1"},
        drivers=BOTH,
    ),
    Fault(
        "Docker is killed in the window",
        1,
        "failed|killed|does not answer",
        at=CAPTURE,
        do="kill -KILL $(pidof dockerd); sleep 1",
        window=True,
        settings=PAUSED,
    ),
    Fault(
        "containerd is killed in the window",
        1,
        "failed|killed",
        at=CAPTURE,
        do="kill -KILL $(pidof containerd); sleep 2",
        window=True,
        settings=PAUSED,
    ),
    Fault(
        "the backup container is killed in the window",
        1,
        "its container was killed|the capture step failed",
        at=CAPTURE,
        do=f"docker kill {CONTAINERS} >/dev/null",
        window=True,
        settings=PAUSED,
        drivers=BOTH,
    ),
    Fault(
        "the capture is frozen (SIGSTOP)",
        1,
        "the capture step was not over after its time limit",
        at=CAPTURE,
        do=STOP_CAPTURE,
        window=True,
        settings=STOPPED | SHORT,
        drivers=BOTH,
    ),
    # the operator, before the run and in the window of a live one
    Fault(
        "the tracker was stopped on purpose",
        3,
        "skipped: the tracker is exited",
        "docker stop -t 1 tracker",
        after="docker start tracker",
        left="exited",
        drivers=BOTH,
    ),
    Fault(
        "the tracker was paused on purpose",
        3,
        "skipped: the tracker is paused",
        "docker pause tracker",
        after="docker unpause tracker",
        left="paused",
        drivers=BOTH,
    ),
    Fault(
        "the tracker is removed in the window",
        1,
        "changed during the capture .* is: gone",
        at=CAPTURE,
        do="docker rm --force tracker >/dev/null",
        after=_compose("up --detach"),
        window=True,
        settings=STOPPED,
        left="",
    ),
    Fault(
        "somebody ups the stack in the window",
        1,
        "the tracker was (changed during|started by somebody)",
        at=CAPTURE,
        do=_compose("up --detach"),
        window=True,
        settings=STOPPED,
        drivers=BOTH,
    ),
    Fault(
        "somebody restarts the tracker in the window",
        1,
        "the tracker was changed during the capture",
        at=CAPTURE,
        do=_compose("restart --timeout 1 tracker"),
        window=True,
        settings=PAUSED,
    ),
    Fault(
        "somebody unpauses the tracker in the window",
        1,
        "the tracker was changed during the capture",
        at=CAPTURE,
        do=_compose("unpause tracker"),
        window=True,
        settings=PAUSED,
    ),
    Fault(
        "somebody stops the tracker in the window",
        1,
        "the tracker was changed during the capture",
        at=CAPTURE,
        do=_compose("stop --timeout 1 tracker"),
        window=True,
        settings=PAUSED,
        after="docker start tracker",
        left="exited",
    ),
    Fault(
        "somebody takes the stack down in the window",
        1,
        "changed during the capture .* is: gone|Unknown server host",
        at=CAPTURE,
        do=_compose("down --timeout 1"),
        window=True,
        settings=STOPPED,
        after=_compose("up --detach --wait"),
        left="",
        drivers=BOTH,
    ),
    Fault(
        "somebody edits .env in the window",
        0,
        "succeeded",
        f"cp -p {DOTENV} /root/kept",
        at=CAPTURE,
        do=f"echo \"EDITED='yes'\" >>{DOTENV}",
        after=f"cat /root/kept >{DOTENV}",
        window=True,
        settings=STOPPED,
    ),
    Fault(
        "somebody breaks .env in the window",
        1,
        "the backup container could not be started: .* unterminated quoted value",
        f"cp -p {DOTENV} /root/kept",
        at=CAPTURE,
        do=f'echo "BROKEN=\'of a password" >>{DOTENV}',
        after=f"cat /root/kept >{DOTENV}",
        window=True,
        settings=STOPPED,
    ),
    # signals
    Fault(
        "TERM in the window",
        143,
        "ended by a signal",
        at=CAPTURE,
        do="kill -TERM $FAULT_PID; sleep 1",
        window=True,
        settings=STOPPED,
        drivers=BOTH,
    ),
    Fault(
        "INT in the window",
        130,
        "ended by a signal",
        at=CAPTURE,
        do="kill -INT $FAULT_PID; sleep 1",
        window=True,
        settings=PAUSED,
    ),
    Fault(
        "TERM while Docker stops the tracker",
        143,
        "ended by a signal",
        at="^stop",
        do=_background("sleep 0.5; kill -TERM $FAULT_PID"),
        window=True,
        settings=STOPPED | {"STOP_TIMEOUT_SECONDS": "3"},
    ),
    Fault(
        "TERM while compressing",
        143,
        "ended by a signal",
        at=COMPRESS,
        do="kill -TERM $FAULT_PID; sleep 1",
        window=True,
        settings=PAUSED,
    ),
    Fault(
        "killed (-9) while Docker stops the tracker",
        137,
        "recovery: run .* left a window open",
        at="^stop",
        do=KILL,
        window=True,
        recovery=True,
        settings=STOPPED,
        drivers=BOTH,
    ),
    Fault(
        "killed (-9) in the window, tracker stopped",
        137,
        "recovery: run .* left a window open",
        at=CAPTURE,
        do=KILL,
        window=True,
        recovery=True,
        settings=STOPPED,
    ),
    Fault(
        "killed (-9) in the window, tracker paused",
        137,
        "recovery: run .* left a window open",
        at=CAPTURE,
        do=KILL,
        window=True,
        recovery=True,
        settings=PAUSED,
        drivers=BOTH,
    ),
    Fault(
        "killed (-9) while compressing",
        137,
        "begins",
        at=COMPRESS,
        do=KILL,
        window=True,
        recovery=True,
        settings=PAUSED,
    ),
    # the operator, after a run was killed in its window and before the recovery
    Fault(
        "killed (-9), then somebody starts the tracker",
        137,
        RESPECTED,
        at=CAPTURE,
        do=f"{HELD}; {_compose('start tracker')}",
        window=True,
        recovery=True,
        settings=STOPPED,
    ),
    Fault(
        "killed (-9), then somebody ups the stack",
        137,
        RESPECTED,
        at=CAPTURE,
        do=f"{HELD}; {_compose('up --detach')}",
        window=True,
        recovery=True,
        settings=STOPPED,
    ),
    Fault(
        "killed (-9), then somebody restarts the tracker",
        137,
        RESPECTED,
        at=CAPTURE,
        do=f"{HELD}; {_compose('restart --timeout 1 tracker')}",
        window=True,
        recovery=True,
        settings=PAUSED,
    ),
    Fault(
        "killed (-9), then somebody replaces the tracker",
        137,
        RESPECTED,
        at=CAPTURE,
        do=f"{HELD}; {_compose('up --detach --force-recreate --no-deps tracker')}",
        window=True,
        recovery=True,
        settings=STOPPED,
    ),
    Fault(
        "killed (-9), then somebody unpauses the tracker",
        137,
        "the tracker runs again",
        at=CAPTURE,
        do=f"{HELD}; {_compose('unpause tracker')}",
        window=True,
        recovery=True,
        settings=PAUSED,
    ),
    Fault(
        "killed (-9), then somebody stops the tracker",
        137,
        RESPECTED,
        at=CAPTURE,
        do=f"{HELD}; {_compose('stop --timeout 1 tracker')}",
        window=True,
        recovery=True,
        settings=PAUSED,
        after="docker start tracker",
        left="exited",
    ),
    Fault(
        "killed (-9), then somebody removes the tracker",
        137,
        RESPECTED,
        at=CAPTURE,
        do=f"{HELD}; docker rm --force tracker >/dev/null",
        window=True,
        recovery=True,
        settings=PAUSED,
        after=_compose("up --detach --wait"),
        left="",
    ),
    Fault(
        "killed (-9), then somebody takes the stack down",
        137,
        RESPECTED,
        at=CAPTURE,
        do=f"{HELD}; docker rm --force {CONTAINERS} >/dev/null; {_compose('down --timeout 1')}",
        window=True,
        recovery=True,
        settings=STOPPED,
        after=_compose("up --detach --wait"),
        left="",
        drivers=("mysql",),
    ),
    Fault(
        "killed (-9), then somebody breaks .env",
        137,
        "the tracker runs again",
        f"cp -p {DOTENV} /root/kept",
        at=CAPTURE,
        do=f'{HELD}; echo "BROKEN=\'of a password" >>{DOTENV}',
        after=f"cat /root/kept >{DOTENV}",
        window=True,
        recovery=True,
        settings=STOPPED,
    ),
)

OTHERS = (  # faults that need more than a shell fragment
    "a second run while one runs",
    "the recovery and a run in the same second",
    "the database lost its rows",
    "the clock was a day back",
    "the clock was ten years ahead",
)


SEEN: dict[str, Row] = {}


@contextmanager
def undone(deployment: Deployment, script: str) -> Iterator[None]:
    """Runs a shell fragment at the end, and has the tracker answer."""
    try:
        yield
    finally:
        if script:
            deployment.host.sh(script)
        wait_for_tracker(deployment.host)


def leads_out(deployment: Deployment) -> bool:
    """Whether anything of the host's /etc/shadow is in the newest backup."""
    archive = deployment.file(deployment.last_run(), "config")
    return deployment.host.sh(f"zcat {archive} | grep -ac '^root:' || true").strip() != "0"


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            one,
            id=one.name,
            marks=[pytest.mark.only(*one.drivers)] if len(one.drivers) == 1 else [],
        )
        for one in FAULTS
    ],
)
def test_fault(deployment: Deployment, fault: Fault) -> None:
    host = deployment.host
    earlier = faults.backups(host)
    if not earlier:
        next_run(deployment, {})
        earlier = faults.backups(host)
    since, before = faults.log_lines(host), deployment.tracker()
    with tracker_started_again(deployment), undone(deployment, fault.after):
        with deployment.configured(**({"QUIESCE": "none"} | fault.settings)):
            if fault.before:
                host.sh(fault.before)
            stack = host.containers()
            limits = {f"TRACKER_BACKUP_{name}": value for name, value in fault.limits.items()}
            struck = strike(
                host, SCRIPT, at=fault.at, do=fault.do, when=fault.when, environment=limits
            )
        assert struck.code == fault.code, struck.output + faults.log_since(host, since)
        if fault.recovery:
            host.run("rm", "-f", HOLD)
            wait_until(
                "Docker to answer",
                lambda: host.run("docker", "version", check=False).returncode == 0,
                30,
            )
            recover(host)
            wait_until("the recovery", lambda: not host.exists(MARKER), 100)
        log = faults.log_since(host, since)
        line = reason(log, fault.log)
        assert ("window opens" in log) == fault.window, log
        assert len(re.findall(r"\]: ERROR:", log)) == (fault.code not in (0, 3, 137)), (
            f"the reason is logged once:\n{log}"
        )
        if fault.code not in (4, 137):
            assert set(faults.leftovers(host)) <= {"fill"}
        assert lost(host, earlier) == []
        assert not host.exists(MARKER)
        after = host.containers()
        if not fault.window:
            assert untouched(stack, after)
        tracker = after.get("tracker")
        assert (tracker.status if tracker else "") == fault.left
        if fault.left == "running" and all(
            one.status == "running" for name, one in after.items() if name == "mysql"
        ):
            wait_for_tracker(host)
        if "symlink" in fault.name and deployment.last_run()["files"]:
            assert not leads_out(deployment)
    SEEN.setdefault(
        fault.name,
        Row(fault.name, struck.code, line, becomes(before, tracker), next_run(deployment, earlier)),
    )


# ---------------------------------------------------------------- two at a time


@pytest.mark.only("sqlite3")
def test_a_second_run_while_one_runs_leaves_it_alone(deployment: Deployment) -> None:
    host, before, earlier = deployment.host, deployment.tracker(), faults.backups(deployment.host)
    with (
        deployment.configured(**PAUSED),
        striking(
            host,
            SCRIPT,
            at=COMPRESS,
            do="touch /tmp/held; while [ -e /tmp/held ]; do sleep 0.1; done",
        ) as wait,
    ):
        wait_until("the first run to be held", lambda: host.exists("/tmp/held"), 60)
        second = host.run("env", "TRACKER_BACKUP_LOCK_SECONDS=1", SCRIPT, check=False)
        host.run("rm", "/tmp/held")
        assert wait().code == 0
    assert second.returncode == 75, second.stdout
    assert deployment.last_run()["result"] == "success"
    line = reason(second.stdout, "another run holds .*/lock; nothing was done")
    SEEN["a second run while one runs"] = Row(
        "a second run while one runs",
        75,
        line,
        becomes(before, deployment.tracker()),
        next_run(deployment, earlier),
    )


@pytest.mark.only("sqlite3")
def test_the_recovery_and_a_run_in_the_same_second_do_not_hinder_each_other(
    deployment: Deployment,
) -> None:
    host, before, earlier, since = (
        deployment.host,
        deployment.tracker(),
        faults.backups(deployment.host),
        faults.log_lines(deployment.host),
    )
    with tracker_started_again(deployment):
        with deployment.configured(**STOPPED):
            assert strike(host, SCRIPT, at=CAPTURE, do=f"{HELD}; exit 1").code == 137
        with deployment.configured(QUIESCE="none"):
            both = host.run(
                "bash",
                "-c",
                f"rm {HOLD}; {SCRIPT} --recover & {SCRIPT}; code=$?; wait; exit $code",
                check=False,
            )
        assert both.returncode == 0, both.stdout
        log = faults.log_since(host, since)
        assert len(re.findall("window closed: the tracker runs again", log)) == 1, log
        assert not host.exists(MARKER)
        after = deployment.tracker()
        assert (after.id, after.status) == (before.id, "running")
    name = "the recovery and a run in the same second"
    SEEN[name] = Row(
        name,
        0,
        reason(log, "recovery: run .* left a window open"),
        becomes(before, after),
        next_run(deployment, earlier),
    )


# ---------------------------------------------------------------- what only shows later


def _tool(deployment: Deployment, *words: str) -> tuple[int, str]:
    done = deployment.host.run("tracker-backup", *words, check=False)
    return done.returncode, done.stdout + done.stderr


def _old_run(deployment: Deployment) -> list[str]:
    """A backup of ours that is older than any retention; its file names."""
    identity, suffix = "20200101_030000", "db" if deployment.kind == "sqlite" else "sql"
    names = [
        f"{deployment.kind}/{deployment.kind}_{identity}.{suffix}.gz",
        f"config/config_{identity}.tar.gz",
    ]
    files = [
        {"kind": kind, "path": name, "bytes": 1, "sha256": "0" * 64}
        for kind, name in zip(("database", "config"), names, strict=True)
    ]
    manifest = deployment.last_run() | {
        "id": identity,
        "sequence": 0,
        "files": files,
        "result": "success",
    }
    base = DESTINATION.lstrip("/")
    tree: dict[str, str | None] = {f"{base}/{name}": "x" for name in names}
    tree[f"{base}/runs/{identity}.json"] = json.dumps(manifest)
    deployment.host.unpack(tree, modes=dict.fromkeys(tree, 0o600))
    return [*names, f"runs/{identity}.json"]


def _suspended_until_acknowledged(
    deployment: Deployment, names: list[str], pattern: str, fault: str, since: int
) -> None:
    """Nothing is removed and status fails until `acknowledge`; the next run removes old ones."""
    earlier = {
        path: digest
        for path, digest in faults.backups(deployment.host).items()
        if path not in names
    }
    assert set(names) <= set(deployment.published())
    line = reason(faults.log_since(deployment.host, since), pattern)
    code, said = _tool(deployment, "status")
    assert code == 1 and "suspended" in said, said
    assert _tool(deployment, "acknowledge")[0] == 0
    next_run(deployment, earlier)
    assert not set(names) & set(deployment.published())
    SEEN.setdefault(
        fault,
        Row(
            fault,
            0,
            line,
            "runs on",
            "succeeds; retention goes on after `tracker-backup acknowledge`",
        ),
    )


def test_a_database_that_lost_its_rows_suspends_retention(deployment: Deployment) -> None:
    host, names = deployment.host, []
    rows = ", ".join(f"('{n:040x}')" for n in range(1, 9))
    deployment.query(f"DELETE FROM whitelist; INSERT INTO whitelist (info_hash) VALUES {rows};")
    with deployment.configured(QUIESCE="none"):
        deployment.run().succeeded()
        names = _old_run(deployment)
        deployment.query("DELETE FROM whitelist;")
        since = faults.log_lines(host)
        deployment.run().succeeded()
    _suspended_until_acknowledged(
        deployment, names, "the table whitelist has 0 rows", "the database lost its rows", since
    )


@pytest.mark.parametrize(
    ("days", "name"), [(-1, "the clock was a day back"), (3650, "the clock was ten years ahead")]
)
def test_a_clock_that_was_wrong_for_one_run_suspends_retention(
    deployment: Deployment, days: int, name: str
) -> None:
    host = deployment.host
    with deployment.configured(QUIESCE="none"):
        deployment.run().succeeded()
        names, earlier, last, since = (
            _old_run(deployment),
            faults.backups(host),
            deployment.last_run(),
            faults.log_lines(host),
        )
        clock = {"LD_PRELOAD": "/usr/$LIB/faketime/libfaketime.so.1", "FAKETIME": f"{days:+d}d"}
        wrong = strike(host, SCRIPT, environment=clock)
        assert wrong.code == 0, wrong.output
        run = deployment.last_run()
        assert run["sequence"] == last["sequence"] + 1, (
            "the newest run is the one with the highest sequence"
        )
        assert (run["id"] > last["id"]) == (days > 0)
        deployment.run().succeeded()
        assert deployment.last_run()["sequence"] == run["sequence"] + 1
    now = faults.backups(host)
    assert {path: now.get(path) for path in earlier} == earlier
    _suspended_until_acknowledged(deployment, names, "lies in the future", name, since)
    host.run(
        "rm",
        *(
            f"{DESTINATION}/{path}"
            for path in (f"runs/{run['id']}.json", *(file["path"] for file in run["files"]))
        ),
    )


# ---------------------------------------------------------------- the table


ORDER = [*map(str, FAULTS), *OTHERS]


def test_the_page_in_the_docs_has_every_fault_of_the_suite() -> None:
    if os.environ.get("UPDATE_FAULTS"):
        pytest.skip("it is being written")
    assert list(page.rows("faults")) == ORDER


@pytest.mark.usefixtures("deployment")
def test_zz_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """What was not run this time stays on the page as it is."""
    seen = page.rows("faults") | {name: str(row) for name, row in SEEN.items()}
    page.show(
        "faults", page.HEAD + "".join(f"{seen[name]}\n" for name in ORDER if name in seen), capsys
    )
