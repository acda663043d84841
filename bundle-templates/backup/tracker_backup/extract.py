"""`extract`: a file, a directory or the database out of a backup. Nothing else is touched."""

from __future__ import annotations

import argparse
from pathlib import Path

from .documents import RunManifest
from .files import remove_tree
from .host import Host, Refused, config_path
from .jobs import ready_image
from .log import say
from .runs import check_files, choose_run, read_runs
from .state import lock
from .swap import copy
from .trees import below, make_plain, parent
from .workshop import unpack, workshop

DATABASE = "database"


def command_extract(arguments: argparse.Namespace) -> int:
    host, output = Host.read(config_path()), Path(arguments.output)
    with lock():
        run = choose_run(read_runs(host), arguments.run)
        if problems := check_files(host, run):
            raise Refused("; ".join(problems))
        ready_image(host)
        with workshop(host, "extract") as work:
            if arguments.path == DATABASE:
                found = unpack_database(host, run, work)
            else:
                found = [unpack_path(host, run, work, arguments.path)]
            output.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in found:
                put(work / "new", path, output)
            remove_tree(work)
    return 0


def unpack_database(host: Host, run: RunManifest, work: Path) -> list[str]:
    files = [file for file in run.files if file.kind == "database"]
    if not files:
        raise Refused(f"{run.id} has no database")
    (work / "new").mkdir()
    names = []
    for file in files:
        names.append(Path(file.path).stem)
        unpack(host, file, work / "unpacked", "unpack", name=names[-1])
        (work / "unpacked" / names[-1]).rename(work / "new" / names[-1])
        remove_tree(work / "unpacked")
    return names


def unpack_path(host: Host, run: RunManifest, work: Path, wanted: str) -> str:
    """The path below work/new. It may be given as the host, the container or the archive has it."""
    path = wanted.rstrip("/")
    for prefix in (f"{host.deploy_dir}/", "/data/", "./"):
        path = path.removeprefix(prefix)
    for file in (one for one in run.files if one.kind == "config"):
        if not unpack(host, file, work / "new", "extract", paths=[path]).missing:
            make_plain(work / "new", path)
            return path
    raise Refused(
        f"{run.id} has no {path}; it has {DATABASE} and what is at or below: {' '.join(run.paths)}"
    )


def put(base: Path, path: str, output: Path) -> None:
    """A copy with owners and modes, which replaces nothing."""
    with parent(base, path) as (source, name), below(output, "") as target:
        if (output / name).is_symlink() or (output / name).exists():
            raise Refused(f"{output / name} is there already")
        copy(source, name, target, name)
    say(f"changed: {output / name}")
