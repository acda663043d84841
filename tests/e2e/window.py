"""The benchmark behind scripts/bench-window: for how long a backup leaves announces unanswered.

It measures each way to back up a large SQLite database in every round, each right after a `cp` of
the same file: whatever else the machine does hits all alike.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from e2e.bundle import REPOSITORY, Bundle, ssh_key
from e2e.deployment import DESTINATION, LOG, SCRIPT, STAGING, Deployment
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
COPIES = {name: copy for name, (_, copy) in FILE_SYSTEMS.items()}
# The machine's own disk, without a loop device and with the system's own write-back.
PLAIN = "plain"
PLAIN_DIRECTORY = "/var/lib/docker/plain"
STRETCH_SECONDS = 0.3  # a shorter one is not reported
STRETCH_LIMIT = 0.5  # of each stretch outside the window, on the plain disk
WINDOW = "in the window"

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
    "| way | file system | compression | `cp`, s | no answer, s | worst, s | limit, s"
    " | outside the window, s | times `cp` | of published | down, s | run, s | result, MB |"
)


@dataclass(frozen=True)
class Sample:
    """One measurement: seconds, and bytes of the compressed database."""

    copy: float
    unanswered: float
    down: float
    total: float
    size: int
    stretches: tuple[tuple[float, str], ...] = ()  # (seconds, the step that the run was in)

    @property
    def outside(self) -> float:
        """Seconds of the longest reported stretch that did not begin in the window."""
        return max((seconds for seconds, step in self.stretches if step != WINDOW), default=0)


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
    ours("ours, `none`, reflink", quiesce="none", file_system="xfs", limit=lambda _, __: 0.3),
    ours(
        "ours, `pause`, plain disk",
        quiesce="pause",
        file_system=PLAIN,
        limit=lambda sample, _: 1.2 * sample.copy + 0.5,
    ),
)


class Bench:
    """A host with the stack, the bundle and the large database, once on each file system."""

    def __init__(self, host: Host, folder: Path, megabytes: int, other: Path | None) -> None:
        """Takes minutes: the database is made of rows. `other` is another generator."""
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
        self._bundles = [bundle]
        if other:
            environment = stack.environment(key, {})
            self._bundles += [Bundle.generate(environment, folder / "other", host.address, other)]
        with self._deployment.scratch() as empty:
            host.sh(
                f"{_mount('xfs', empty)} && cp -a {DEPLOY_DIR}/. {empty}/ && umount {empty}"
                f" && cp -a {DEPLOY_DIR} {PLAIN_DIRECTORY}",
                seconds=STEP_SECONDS,
            )

    def measure(self, way: Way, other: bool = False) -> Sample:
        """Brings the host into the way's state, copies the database, then backs up under load.

        With `other` it does so with the bundle of the other generator.
        """
        self._arrange(way)
        if len(self._bundles) > 1 and way.settings:
            self._bundles[other].playbook("install-backup").succeeded()
        started, ended = map(
            float,
            self._host.sh(
                _COPY.format(copy=COPIES.get(way.file_system, "cp")), seconds=STEP_SECONDS
            ).split(),
        )
        with self._deployment.configured(**way.settings), self._deployment.load() as loads:
            since, begun = self._now(), time.monotonic()
            self._host.sh(f"export TRACKER_BACKUP_TRACE=yes\n{way.script}", seconds=STEP_SECONDS)
            total = time.monotonic() - begun
            wait_for_tracker(self._host)
            down, steps = self._down(since), self._steps(float(since))
        # The files go, the run manifests stay: room for the next.
        size = int(
            self._host.sh(
                f"cd {DESTINATION}/sqlite; find . -type f -printf '%s\\n' | tail -n 1; rm -f -- *"
            )
            or 0
        )
        offset = float(since) - begun  # both clocks are the machine's own
        stretches = tuple(
            (end - start, step_at(steps, start + offset))
            for load in loads
            for start, end in load.gaps(STRETCH_SECONDS)
        )
        unanswered = max(load.longest_gap for load in loads)
        return Sample(ended - started, unanswered, down, total, size, stretches)

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

    def _steps(self, since: float) -> list[tuple[float, str]]:
        """(wall-clock seconds, name) of each step of the newest run, from the log."""
        lines = self._host.sh(f"grep -o 'step [0-9.]* [a-z-]*$' {LOG} || true").splitlines()
        steps = [(float(line.split()[1]), line.split()[2]) for line in lines]
        return [(moment, name) for moment, name in steps if moment >= since]

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


def step_at(steps: list[tuple[float, str]], moment: float) -> str:
    """The step that a run was in. The window ends when the tracker is back."""
    names = [name for began, name in steps if began <= moment]
    if not names:
        return "before the first step"
    opened = "taking-the-tracker-down" in names
    closed = "looking-back-at-the-window" in names or "removing-the-marker" in names
    return WINDOW if opened and not closed else names[-1]


def _image(file_system: str) -> str:
    return f"/var/lib/docker/{file_system}.img"


def _mount(file_system: str, directory: str) -> str:
    """A shell fragment. Direct I/O, as a disk does it.

    Otherwise one commit of the tracker waits until all of the image is written back.
    """
    if file_system == PLAIN:
        return f"mount --bind {PLAIN_DIRECTORY} {directory}"
    return (
        f"device=$(losetup --find --show --direct-io=on {_image(file_system)})"
        f" && mount $device {directory} && losetup --detach $device"
        " && losetup --noheadings --output DIO $device | grep -qw 1"
    )


def table(rounds: list[dict[Way, Sample]]) -> str:
    """Markdown: the medians, and of the seconds without an answer the worst as well."""
    lines = [_HEAD, f"|{' --- |' * (_HEAD.count('|') - 1)}"]
    published = (
        statistics.median(samples[PUBLISHED].unanswered for samples in rounds)
        if PUBLISHED in rounds[0]
        else None
    )
    for way in rounds[0]:
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
                f"{max(sample.outside for sample in samples):.2f}",
            ),
            *(
                f"{unanswered / copy:.1f}",
                f"{unanswered / published:.1%}" if published else "",
                f"{down:.2f}",
                f"{total:.1f}",
            ),
            f"{samples[-1].size / 1e6:.0f}" if way.compression else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def stretches(rounds: list[dict[Way, Sample]]) -> str:
    """Markdown: each stretch without an answer that is reported, with the step of the run."""
    lines = [
        f"- {way.name}: {seconds:.2f} s, {step}"
        for samples in rounds
        for way, sample in samples.items()
        for seconds, step in sample.stretches
    ]
    return "\n".join(lines or ["- none"]) + "\n"


def ratios(rounds: list[dict[Way, Sample]], before: list[dict[Way, Sample]]) -> str:
    """Markdown: the medians of both generators, without an answer and of the whole run."""
    lines = [
        "| way | no answer, s | the other, s | ratio | run, s | the other, s | ratio |",
        f"|{' --- |' * 7}",
    ]
    for way in before[0]:
        cells = [way.name]
        for name in ("unanswered", "total"):
            ours_, other = (
                statistics.median(getattr(samples[way], name) for samples in measured)
                for measured in (rounds, before)
            )
            cells += [f"{ours_:.2f}", f"{other:.2f}", f"{ours_ / other:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _limit(way: Way, rounds: list[dict[Way, Sample]]) -> str:
    if way.limit is None:
        return ""
    limit = statistics.median(way.limit(samples[way], restart(samples)) for samples in rounds)
    missed = misses(way, rounds)
    return f"{limit:.2f}" + (f", missed {missed} times" if missed else "")


def misses(way: Way, rounds: list[dict[Way, Sample]]) -> int:
    """In how many rounds a way was slower than its limit of that round."""
    limit = way.limit
    return (
        0
        if limit is None
        else sum(
            samples[way].unanswered > limit(samples[way], restart(samples))
            or (way.file_system == PLAIN and samples[way].outside > STRETCH_LIMIT)
            for samples in rounds
        )
    )


def restart(samples: Mapping[Way, Sample]) -> Sample:
    """The round's restart without a backup; a zero where it was not measured."""
    return samples.get(RESTART, Sample(0, 0, 0, 0, 0))


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


def bench(megabytes: int, rounds: int, only: str, other: Path | None) -> tuple[str, int]:
    """The Markdown of what was measured, and how often a limit was missed."""
    measured: list[dict[Way, Sample]] = []
    before: list[dict[Way, Sample]] = []
    ways = [way for way in WAYS if re.search(only, way.name)]
    with (
        tempfile.TemporaryDirectory() as folder,
        Host(f"gen-backup-bundle-bench-{os.getpid()}") as host,
    ):
        busy = os.getloadavg()[1]
        prepared = Bench(host, Path(folder), megabytes, other)
        for number in range(rounds):
            measured.append({})
            before.append({})
            for way in ways:
                measured[-1][way] = sample = prepared.measure(way)
                say(f"round {number + 1}, {way.name}: {sample}")
                if other and way.settings:
                    before[-1][way] = sample = prepared.measure(way, other=True)
                    say(f"round {number + 1}, {way.name}, the other generator: {sample}")
        text = (
            f"`scripts/bench-window --megabytes {megabytes} --rounds {rounds}`:"
            f" {prepared.bytes / 1e9:.2f} GB; {machine(host)},"
            " file systems on loop devices with direct I/O; "
            f"the machine's load before: {busy:.1f}.\n\n{table(measured)}\n"
            f"Stretches of more than {STRETCH_SECONDS} s without an answer, by HTTP and by UDP:\n\n"
            f"{stretches(measured)}"
        )
        if other:
            text += f"\nBeside another generator (`--against`):\n\n{ratios(measured, before)}"
    return text, sum(misses(way, measured) for way in ways)


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
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="measure only the ways whose names match"
    )
    parser.add_argument(
        "--against", type=Path, metavar="GENERATOR", help="measure this generator as well"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    text, missed = bench(arguments.megabytes, arguments.rounds, arguments.only, arguments.against)
    print(text, end="")
    if arguments.update_docs:
        update_docs(text)
    if missed:
        sys.exit(f"limits were missed {missed} times")


if __name__ == "__main__":
    main()
