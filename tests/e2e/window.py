"""The benchmark behind scripts/bench-window: for how long a backup leaves announces unanswered.

It measures each way to back up a large SQLite database in every round, each right after a `cp` of
the same file: whatever else the machine does hits all alike.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from e2e.bundle import REPOSITORY, Bundle, ssh_key
from e2e.deployment import DESTINATION, SCRIPT, STAGING, Deployment
from e2e.disk import LOOP_DEVICES
from e2e.host import Host
from e2e.stack import DEPLOY_DIR, SQLITE_FILE, Stack, sqlite, wait_for_tracker

DOCS = REPOSITORY / "docs/performance.md"
BEGIN, END = "<!-- measured -->\n", "<!-- end of measured -->\n"
ROW_BYTES = 106  # of a torrent, its share of the index included
STEP_SECONDS = 1800

# File systems to the commands that make one, and that copy a file byte for byte. On xfs a plain
# `cp` would only make a reflink.
FILE_SYSTEMS = {
    "ext4": ("mkfs.ext4 -q", "cp"),
    "xfs": ("mkfs.xfs -q -m reflink=1", "cp --reflink=never"),
}

_PREPARE = f"""
set -e
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends e2fsprogs xfsprogs
{LOOP_DEVICES}"""

# Random hashes, as announces bring them; few of the torrents were ever completed.
_FILL = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -{kibibytes};
INSERT INTO torrents (info_hash, completed)
    SELECT lower(hex(randomblob(20))), abs(random()) % 100 < 3 FROM generate_series(1, {rows});
INSERT INTO whitelist (info_hash) SELECT info_hash FROM torrents LIMIT 1000;
INSERT INTO keys (key, valid_until)
    SELECT lower(hex(randomblob(16))), 2000000000 FROM generate_series(1, 1000);
"""

_COPY = f"""
set -e
cat {SQLITE_FILE} >/dev/null
sync
started=$EPOCHREALTIME
{{copy}} {SQLITE_FILE} {STAGING}/copy
ended=$EPOCHREALTIME
rm {STAGING}/copy
sync
echo "$started $ended"
"""

_PUBLISHED = f"""
set -e
cd {DEPLOY_DIR}
docker compose stop tracker
sqlite3 {SQLITE_FILE} ".backup '{DESTINATION}/sqlite/published.db'"
gzip {DESTINATION}/sqlite/published.db
docker compose start tracker
"""


_HEAD = (
    "| way | file system | compression | `cp`, s | no answer, s | worst, s | limit, s | times `cp`"
    " | of published | down, s | run, s | result, MB |"
)


@dataclass(frozen=True)
class Sample:
    """One measurement: seconds, and bytes of the compressed database."""

    copy: float
    unanswered: float
    down: float
    total: float
    size: int


# Seconds for which announces may go unanswered, from a way's sample and from the same round's
# restart without a backup.
Limit = Callable[[Sample, Sample], float]


@dataclass(frozen=True, eq=False)
class Way:
    """One way to back up, or what it is compared with; `settings` change the configuration."""

    name: str
    script: str
    compression: str
    file_system: str = "ext4"
    journal: str = "delete"
    settings: Mapping[str, str] = field(default_factory=dict)
    limit: Limit | None = None


def ours(
    name: str,
    *,
    quiesce: str,
    compression: str = "zstd",
    file_system: str = "ext4",
    journal: str = "delete",
    limit: Limit | None = None,
) -> Way:
    """A run of the bundle's own script.

    It compresses with zstd where nothing is compared with gzip: that takes half the time, and none
    of the window.
    """
    settings = {
        "QUIESCE": quiesce,
        "BACKUP_COMPRESSION": compression,
        "BACKUP_ALLOW_WRITER_STALL": "true",
    }
    return Way(name, SCRIPT, compression, file_system, journal, settings, limit)


RESTART = Way(
    "no backup: `docker stop`, `docker start`",
    "docker stop -t 10 tracker && docker start tracker",
    "",
)
PUBLISHED = Way("published: stop, `.backup`, gzip, start", _PUBLISHED, "gzip")
WAYS = (
    RESTART,
    PUBLISHED,
    ours(
        "ours, `stop`",
        quiesce="stop",
        compression="gzip",
        limit=lambda sample, restart: restart.unanswered + 1.2 * sample.copy + 0.5,
    ),
    ours("ours, `pause`", quiesce="pause", limit=lambda sample, _: 1.2 * sample.copy + 0.5),
    ours("ours, `none`, rollback journal", quiesce="none"),
    ours("ours, `none`, WAL", quiesce="none", journal="wal"),
    ours(
        "ours, `stop`, reflink",
        quiesce="stop",
        file_system="xfs",
        limit=lambda _, restart: restart.unanswered + 0.5,
    ),
    ours("ours, `pause`, reflink", quiesce="pause", file_system="xfs", limit=lambda _, __: 0.5),
)


class Bench:
    """A host with the stack, the bundle and the large database, once on each file system."""

    def __init__(self, host: Host, folder: Path, megabytes: int) -> None:
        """Takes minutes: the database is made of rows."""
        self._host = host
        host.sh(_PREPARE, seconds=STEP_SECONDS)
        for name, (make, _) in FILE_SYSTEMS.items():
            image = _image(name)
            host.sh(f"truncate -s {megabytes * 8 + 2000}M {image} && {make} {image}")
        host.sh(f"mkdir {DEPLOY_DIR} && {_mount('ext4', DEPLOY_DIR)}")
        stack = Stack("sqlite3")
        stack.bring_up(host)
        key = ssh_key(folder)
        host.authorize(key.with_suffix(".pub").read_text(encoding="utf-8"))
        bundle = Bundle.generate(stack.environment(key, {}), folder / "bundle", host.address)
        say("installing the bundle")
        installed = bundle.playbook("install-backup").succeeded()
        self._deployment = Deployment(host, stack, bundle, key, frozenset(), installed, installed)
        say(f"making a database of {megabytes} MB")
        host.run("docker", "stop", "-t", "0", "tracker")
        sqlite(
            host,
            SQLITE_FILE,
            _FILL.format(rows=megabytes * 1_000_000 // ROW_BYTES, kibibytes=megabytes * 1100),
            seconds=STEP_SECONDS,
        )
        self.bytes = int(host.run("stat", "--format=%s", SQLITE_FILE).stdout)
        with self._deployment.scratch() as other:
            host.sh(
                f"{_mount('xfs', other)} && cp -a {DEPLOY_DIR}/. {other}/ && umount {other}",
                seconds=STEP_SECONDS,
            )

    def measure(self, way: Way) -> Sample:
        """Brings the host into the way's state, copies the database, then backs up under load."""
        self._arrange(way)
        started, ended = map(
            float,
            self._host.sh(
                _COPY.format(copy=FILE_SYSTEMS[way.file_system][1]), seconds=STEP_SECONDS
            ).split(),
        )
        with self._deployment.configured(**way.settings), self._deployment.load() as loads:
            since, begun = self._now(), time.monotonic()
            self._host.sh(way.script, seconds=STEP_SECONDS)
            total = time.monotonic() - begun
            wait_for_tracker(self._host)
            down = self._down(since)
        # The files go, the run manifests stay: room for the next.
        size = int(
            self._host.sh(
                f"cd {DESTINATION}/sqlite; find . -type f -printf '%s\\n' | tail -n 1; rm -f -- *"
            )
            or 0
        )
        return Sample(ended - started, max(load.longest_gap for load in loads), down, total, size)

    def _arrange(self, way: Way) -> None:
        self._host.sh(
            f"docker stop -t 0 tracker && umount {DEPLOY_DIR}"
            f" && {_mount(way.file_system, DEPLOY_DIR)}"
        )
        answer = sqlite(self._host, SQLITE_FILE, f"PRAGMA journal_mode = {way.journal};").strip()
        assert answer == way.journal, f"the database is in journal mode {answer}"
        self._host.run("docker", "start", "tracker")
        wait_for_tracker(self._host)

    def _now(self) -> str:
        return self._host.run("date", "+%s.%N").stdout.strip()

    def _down(self, since: str) -> float:
        """Seconds for which the tracker's process was gone or frozen, as Docker tells."""
        kinds = ("die", "start", "pause", "unpause")
        filters = " ".join(
            [
                f"--filter container={self._deployment.tracker().id}",
                *(f"--filter event={kind}" for kind in kinds),
            ]
        )
        events = self._host.sh(
            f"docker events --since {since} --until {self._now()} {filters}"
            " --format '{{.TimeNano}}'"
        ).split()
        times = [int(event) / 1e9 for event in events]
        return sum(ended - began for began, ended in zip(times[::2], times[1::2], strict=True))


def _image(file_system: str) -> str:
    return f"/var/lib/docker/{file_system}.img"


def _mount(file_system: str, directory: str) -> str:
    """A shell fragment. Direct I/O, as a disk does it.

    Otherwise one commit of the tracker waits until all of the image is written back.
    """
    return (
        f"device=$(losetup --find --show --direct-io=on {_image(file_system)})"
        f" && mount $device {directory} && losetup --detach $device"
        " && losetup --noheadings --output DIO $device | grep -qw 1"
    )


def table(rounds: list[dict[Way, Sample]]) -> str:
    """Markdown: the medians, and of the seconds without an answer the worst as well."""
    lines = [_HEAD, f"|{' --- |' * (_HEAD.count('|') - 1)}"]
    published = statistics.median(samples[PUBLISHED].unanswered for samples in rounds)
    for way in WAYS:
        samples = [measured[way] for measured in rounds]
        copy, unanswered, down, total = (
            statistics.median(getattr(sample, name) for sample in samples)
            for name in ("copy", "unanswered", "down", "total")
        )
        cells = (
            *(way.name, way.file_system, way.compression),
            *(
                f"{copy:.2f}",
                f"{unanswered:.2f}",
                f"{max(sample.unanswered for sample in samples):.2f}",
                _limit(way, rounds),
            ),
            *(
                f"{unanswered / copy:.1f}",
                f"{unanswered / published:.1%}",
                f"{down:.2f}",
                f"{total:.1f}",
            ),
            f"{samples[-1].size / 1e6:.0f}" if way.compression else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _limit(way: Way, rounds: list[dict[Way, Sample]]) -> str:
    if way.limit is None:
        return ""
    limit = statistics.median(way.limit(samples[way], samples[RESTART]) for samples in rounds)
    missed = misses(way, rounds)
    return f"{limit:.2f}" + (f", missed {missed} times" if missed else "")


def misses(way: Way, rounds: list[dict[Way, Sample]]) -> int:
    """In how many rounds a way was slower than its limit of that round."""
    limit = way.limit
    return (
        0
        if limit is None
        else sum(
            samples[way].unanswered > limit(samples[way], samples[RESTART]) for samples in rounds
        )
    )


def machine(host: Host) -> str:
    """What the numbers depend on, without naming the machine."""
    facts = (
        "nproc; free -g | awk '/^Mem/ { print $2 }'; uname -r | cut -d - -f 1;"
        " docker version --format '{{.Server.Version}}'; sqlite3 --version"
    )
    cores, memory, kernel, docker, sqlite3 = host.sh(facts).splitlines()
    return (
        f"{cores} cores, {memory} GB of memory, Linux {kernel},"
        f" Docker {docker} on the disposable host, SQLite {sqlite3.split()[0]}"
    )


def say(text: str) -> None:
    print(f"== {text}", file=sys.stderr, flush=True)


def bench(megabytes: int, rounds: int) -> tuple[str, int]:
    """The Markdown of what was measured, and how often a limit was missed."""
    measured: list[dict[Way, Sample]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Host(f"gen-backup-bundle-bench-{os.getpid()}") as host,
    ):
        busy = os.getloadavg()[1]
        prepared = Bench(host, Path(folder), megabytes)
        for number in range(rounds):
            measured.append({})
            for way in WAYS:
                measured[-1][way] = sample = prepared.measure(way)
                say(f"round {number + 1}, {way.name}: {sample}")
        text = (
            f"`scripts/bench-window --megabytes {megabytes} --rounds {rounds}`:"
            f" {prepared.bytes / 1e9:.2f} GB; {machine(host)},"
            " file systems on loop devices with direct I/O; "
            f"the machine's load before: {busy:.1f}.\n\n{table(measured)}"
        )
    return text, sum(misses(way, measured) for way in WAYS)


def update_docs(text: str) -> None:
    """Replaces what stands between the two marks."""
    page = DOCS.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    DOCS.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/bench-window",
        description="How long a backup keeps the tracker from answering.",
    )
    parser.add_argument(
        "--megabytes", type=int, default=2000, help="size of the database (default: 2000)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often everything is measured (default: 3)"
    )
    parser.add_argument(
        "--update-docs",
        action="store_true",
        help=f"write the table into {DOCS.relative_to(REPOSITORY)} as well",
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    text, missed = bench(arguments.megabytes, arguments.rounds)
    print(text, end="")
    if arguments.update_docs:
        update_docs(text)
    if missed:
        sys.exit(f"limits were missed {missed} times")


if __name__ == "__main__":
    main()
