"""The benchmark behind scripts/bench-install: seconds of a first and of a second installation.

The first one builds the backup image and makes the first backup. The second one changes nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from e2e.bundle import Bundle, Timed, generator, ssh_key
from e2e.deployment import DESTINATION
from e2e.host import Host
from e2e.stack import Stack

STACKS = {
    "SQLite": Stack("sqlite3", frozenset({"prometheus", "grafana", "caddy"})),
    "MySQL": Stack("mysql"),
}
# Named, so that generators with other defaults make the same first backup.
QUIESCE = {"SQLite": "pause", "MySQL": "none"}
SHOWN_SECONDS = 0.5  # shorter tasks are added up


@dataclass(frozen=True)
class Sample:
    """Two installations on one host, the seconds of the image's build, and of the first backup."""

    first: Timed
    second: Timed
    image: float
    backup: float


@dataclass(frozen=True)
class Case:
    """What is measured: a stack, and the generator that makes the bundle for it."""

    stack: str
    generator: Path


def measure(case: Case, folder: Path, *, prepared: bool) -> Sample:
    """Installs twice on a new host."""
    stack = STACKS[case.stack]
    key = ssh_key(folder)
    name = f"gen-backup-bundle-bench-{os.getpid()}"
    with Host(name, buildkit=stack.driver == "mysql", prepared=prepared) as host:
        host.authorize(key.with_suffix(".pub").read_text(encoding="utf-8"))
        stack.bring_up(host)
        bundle = Bundle.generate(
            stack.environment(key, {"quiesce": QUIESCE[case.stack]}),
            folder / "bundle",
            host.address,
            program=case.generator,
        )
        began = float(host.run("date", "+%s.%N").stdout)
        first = bundle.timed_playbook("install-backup").succeeded()
        second = bundle.timed_playbook("install-backup").succeeded()
        if second.outcome.changed:
            raise AssertionError(f"the second one changed something:\n{second.outcome.output}")
        return Sample(first, second, _image(host, first, began), _backup(host, first, began))


def _image(host: Host, first: Timed, began: float) -> float:
    """Seconds from the start of the task that built the image until the image was there."""
    found = re.search(r"changed: image (gen-backup-bundle/backup:\S+?)[\",]", first.outcome.output)
    if not found:
        return 0.0
    built = _time(host, f"$(docker image inspect --format '{{{{.Created}}}}' {found[1]})") - began
    starts = [task.began for task in first.tasks if task.began < built]
    return built - starts[-1] if starts else 0.0


def _backup(host: Host, first: Timed, began: float) -> float:
    """Seconds of the task that made the first backup, which is the one that wrote its manifest."""
    script = f"$(stat --format %y {DESTINATION}/runs/*.json | head -n 1)"
    written = _time(host, script) - began
    return next(
        (task.seconds for task in reversed(first.tasks) if task.began < written),
        0.0,
    )


def _time(host: Host, script: str) -> float:
    return float(host.sh(f'date --date "{script}" +%s.%N'))


def table(measured: Mapping[Case, list[Sample]], names: Mapping[Path, str]) -> str:
    """Markdown: medians of each case."""
    lines = [
        "| stack | generator | first, s | of that the image, s | and the backup, s | second, s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case, samples in measured.items():
        numbers = (
            statistics.median(sample.first.seconds for sample in samples),
            statistics.median(sample.image for sample in samples),
            statistics.median(sample.backup for sample in samples),
            statistics.median(sample.second.seconds for sample in samples),
        )
        cells = (case.stack, names[case.generator], *(f"{number:.1f}" for number in numbers))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def ratios(measured: Mapping[Case, list[Sample]], ours: Path, other: Path) -> str:
    """What share of the other generator's time ours takes, by stack."""
    lines = []
    for name in STACKS:
        mine, theirs = measured[Case(name, ours)], measured[Case(name, other)]
        for which in ("first", "second"):
            share = statistics.median(
                getattr(one, which).seconds / getattr(two, which).seconds
                for one, two in zip(mine, theirs, strict=True)
            )
            lines.append(f"{name}, {which} installation: {share:.2f} of the other's time")
    return "\n".join(lines) + "\n"


def tasks(measured: Mapping[Case, list[Sample]], names: Mapping[Path, str]) -> str:
    """The longest tasks of the last round."""
    lines = []
    for case, samples in measured.items():
        for which in ("first", "second"):
            timed: Timed = getattr(samples[-1], which)
            lines.append(f"{case.stack}, {names[case.generator]}, {which} installation:")
            short = sum(task.seconds for task in timed.tasks if task.seconds < SHOWN_SECONDS)
            lines += [
                f"  {task.seconds:6.1f} s  {task.name}"
                for task in timed.tasks
                if task.seconds >= SHOWN_SECONDS
            ]
            lines.append(f"  {short:6.1f} s  in tasks shorter than {SHOWN_SECONDS} s")
    return "\n".join(lines) + "\n"


def say(text: str) -> None:
    print(f"== {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/bench-install",
        description="Seconds of a first and of a second installation.",
    )
    parser.add_argument("--rounds", type=int, default=1, help="how often (default: 1)")
    parser.add_argument(
        "--prepared",
        action="store_true",
        help="the packages of the backup image are in the builder's cache",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="GENERATOR",
        help="another build of gen-backup-bundle to compare with",
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ours = Path(generator())
    names = {ours: "this"}
    if arguments.against:
        names[arguments.against] = "other"
    measured: dict[Case, list[Sample]] = {
        Case(stack, program): [] for stack in STACKS for program in names
    }
    busy = os.getloadavg()[0]
    for number in range(arguments.rounds):
        for case, samples in measured.items():
            with tempfile.TemporaryDirectory() as folder:
                sample = measure(case, Path(folder), prepared=arguments.prepared)
            samples.append(sample)
            say(
                f"round {number + 1}, {case.stack}, {names[case.generator]}:"
                f" {sample.first.seconds:.1f} s, {sample.second.seconds:.1f} s"
            )
    kind = "in the builder's cache" if arguments.prepared else "not in the builder's cache"
    print(
        f"Medians of {arguments.rounds} rounds, {os.cpu_count()} cores, load before {busy:.1f},"
        f" the image's packages {kind}.\n\n{table(measured, names)}"
    )
    if arguments.against:
        print(ratios(measured, ours, arguments.against))
    print(tasks(measured, names), end="")


if __name__ == "__main__":
    main()
