"""A Docker that is a directory, $STUB: `calls` is what it was asked, `tracker/` the tracker's
container, `containers/` ours, `images` the images, `events` what happened, `hooks/EVENT` what else
happens at a call.

A hook is Python text. It runs in this module's namespace before the call has its usual effect, and
can end the call: `fail(message)`, `leave(code)`, `hang()`. It sees `words`, the call's arguments,
and STUB, DEPLOY, DESTINATION, STATE and STAGING as `Path`. At a job it also sees `work`, the role's
directory, and `job`, and can `refuse(reason, code)`.

A run makes about 30 calls, and each starts this program. So most calls import neither pathlib, re
nor json, which would take longer than everything else.
"""

# pathlib and contextlib take longer to import than the rest of a call.
# ruff: noqa: PTH104, PTH108, PTH110, PTH208, SIM105

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` imports enum
import os
import sys
import time
from os.path import exists

TYPE_CHECKING = False  # as in `typing`, which is too slow to import at each call
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    Container = dict[str, Any]  # as `docker inspect` shows it

PLACES = {
    "STUB": os.environ["STUB"],
    "DEPLOY": os.environ["STUB_DEPLOY"],
    "DESTINATION": os.environ["STUB_DESTINATION"],
    "STATE": os.environ.get("TRACKER_BACKUP_STATE_DIR", "/nonexistent"),
    "STAGING": os.environ["STUB_DEPLOY"] + "/storage/backup-staging",
}
SIDECAR = "51de"


def place(name: str) -> str:
    """The path of a file of the stand-in's own."""
    return f"{PLACES['STUB']}/{name}"


def read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def write(path: str, text: str) -> None:
    partial = f"{path}.{os.getpid()}"
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(partial, path)


def append(path: str, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def remove_file(path: str) -> None:
    if exists(path):
        os.unlink(path)


# ---------------------------------------------------------------- for hooks


def leave(code: int = 0) -> NoReturn:
    """The answer of the whole call."""
    sys.exit(code)


def fail(message: str, code: int = 1) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)


def touch(name: str) -> bool:
    """Makes a file of the test; returns whether it was new."""
    if exists(place(name)):
        return False
    append(place(name), "")
    return True


def hang(seconds: float = 60) -> NoReturn:
    """Tells the test that the call hangs, and does not answer."""
    append(place("hanging"), f"{os.getpid()}\n")
    time.sleep(seconds)
    sys.exit(1)


def later(seconds: float, action: Callable[[], object]) -> None:
    """The engine goes on with something after its client is gone."""
    if os.fork() == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        time.sleep(seconds)
        action()
        os._exit(0)


# ---------------------------------------------------------------- the tracker


def tracker(fact: str) -> str:
    return read(place(f"tracker/{fact}"))


def set_tracker(**facts: str) -> None:
    for fact, value in facts.items():
        write(place(f"tracker/{fact}"), value)


def now() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanoseconds:09}Z"


def become(status: str) -> None:
    set_tracker(status=status)


def stopped(code: int) -> None:
    set_tracker(finished=now(), exit_code=str(code), status="exited")


def started() -> None:
    set_tracker(started=now(), status="running")
    happened("start")


def happened(action: str) -> None:
    """An event of the tracker's container."""
    append(place("events"), f"{time.time():.6f} {action} {tracker('id')}\n")


def remove_tracker() -> None:
    touch("tracker/removed")


def add_tracker(container: str) -> None:
    """A second container of the same service."""
    write(place("tracker/others"), f"{container}\n")


# ---------------------------------------------------------------- what is there


def compose_labels(service: str, one_off: bool) -> dict[str, str]:
    return {
        "com.docker.compose.service": service,
        "com.docker.compose.project": "torrust",
        "com.docker.compose.project.working_dir": PLACES["DEPLOY"],
        "com.docker.compose.project.config_files": PLACES["DEPLOY"] + "/docker-compose.yml",
        "com.docker.compose.oneoff": str(one_off),
    }


def inspected(container: str, labels: dict[str, str], status: str, **state: Any) -> Container:
    return {
        "Id": container,
        "Name": f"/{container}",
        "Image": "sha256:feed",
        "RestartCount": 0,
        "Config": {"Image": "tracker:1", "Env": [], "Labels": labels},
        "State": {
            "Status": status,
            "Running": status in ("running", "paused"),
            "Paused": status == "paused",
            "Pid": 0,
            **state,
        },
        "Mounts": [],
    }


def the_trackers() -> list[Container]:
    if exists(place("tracker/removed")):
        return []
    labels = compose_labels("tracker", False)
    labels["com.docker.compose.project.working_dir"] = tracker("directory")
    others = place("tracker/others")
    found = []
    for name in [tracker("id"), *(read(others).split() if exists(others) else ())]:
        one = inspected(
            name,
            labels,
            tracker("status"),
            StartedAt=tracker("started"),
            FinishedAt=tracker("finished"),
            ExitCode=int(tracker("exit_code")),
        )
        one["Mounts"] = [
            {
                "Type": "bind",
                "Source": PLACES["DEPLOY"] + "/storage/tracker/etc",
                "Destination": "/etc/torrust/tracker",
            }
        ]
        found.append(one)
    return found


def ours() -> dict[str, dict[str, Any]]:
    """Our own containers by name: labels, status, work (a directory of the host)."""
    return {name: require_ours(name) for name in sorted(os.listdir(place("containers")))}


def containers() -> list[Container]:
    found = the_trackers() + [
        inspected(name, facts["labels"], facts["status"]) for name, facts in ours().items()
    ]
    for name in ("sidecar.json", "inspect.json"):
        if exists(place(name)):
            replaced = decode(read(place(name)))
            ids = {one["Id"] for one in replaced}
            found = [one for one in found if one["Id"] not in ids] + replaced
    return found


def find(name: str) -> Container:
    for one in containers():
        if name in (one["Id"], one.get("Name", "").removeprefix("/")):
            return one
    fail(f"Error response from daemon: No such container: {name}")


def require_ours(name: str) -> dict[str, Any]:
    path = place(f"containers/{name}")
    if not exists(path):
        fail(f"Error response from daemon: No such container: {name}")
    lines = read(path).splitlines()
    status, work, *labels = lines
    return {"status": status, "work": work, "labels": dict(one.split("=", 1) for one in labels)}


def add_container(name: str, labels: dict[str, str], work: str, status: str = "running") -> None:
    lines = [status, work, *(f"{key}={value}" for key, value in labels.items())]
    write(place(f"containers/{name}"), "".join(f"{line}\n" for line in lines))


def decode(text: str) -> Any:
    import json  # few calls need it

    return json.loads(text)


def encode(document: object) -> str:
    import json

    return json.dumps(document)


# ---------------------------------------------------------------- arguments


def after(words: list[str], option: str) -> list[str]:
    """The values of an option, however often and in which form it is given."""
    values = [words[at + 1] for at in range(len(words) - 1) if words[at] == option]
    return values + [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]


def fill_in(template: str, document: Container) -> str:
    """A Go template. It knows the forms that the programs and the tests use."""

    def value(expression: str) -> str:
        called, quote, label = expression.strip().removesuffix('"').partition(' "')
        if quote and called in ("index .Config.Labels", ".Label"):
            return str(document["Config"]["Labels"].get(label, ""))
        as_json, _, path = expression.strip().rpartition(" ")
        found: Any = document
        for name in path.split(".")[1:]:
            if name and name not in found:
                fail(f"stub docker: a template that it does not know: {template}")
            found = found[name] if name else found
        return encode(found) if as_json == "json" else str(found)

    first, *rest = template.split("{{")
    parts = [part.partition("}}") for part in rest]
    return first + "".join(value(expression) + text for expression, _, text in parts)


def listed(one: Container) -> Container:
    """A container as the templates of `docker ps` see it."""
    name = one.get("Name", "/").removeprefix("/")
    status = one["State"]["Status"]
    return one | {"ID": one["Id"], "Names": name, "State": status, "Status": status}


def fits(one: Container, filters: list[str]) -> bool:
    return all(fits_one(one, *text.split("=", 1)) for text in filters)


def fits_one(one: Container, kind: str, value: str) -> bool:
    if kind == "label":
        key, equals, wanted = value.partition("=")
        labels = one["Config"]["Labels"]
        return key in labels and (not equals or labels[key] == wanted)
    if kind == "id":
        return str(one["Id"]).startswith(value)
    if kind == "name":
        import re

        return re.search(value, one.get("Name", "/").removeprefix("/")) is not None
    if kind == "status":
        return bool(one["State"]["Status"] == value)
    fail(f"stub docker: an unknown filter: {kind}")


# ---------------------------------------------------------------- calls


def happens(event: str, **seen: Any) -> None:
    hook = place(f"hooks/{event}")
    if exists(hook):
        import json
        import re
        import signal
        from pathlib import Path

        places = {name: Path(path) for name, path in PLACES.items()}
        known = {"Path": Path, "json": json, "re": re, "signal": signal, **places}
        exec(compile(read(hook), hook, "exec"), globals() | known | seen)


def log_call(line: str) -> None:
    append(place("calls"), line.replace("\n", " ") + "\n")


def ps(words: list[str]) -> None:
    filters = after(words, "--filter")
    shown = {"running", "paused", "restarting"}
    for one in containers():
        if fits(one, filters) and ("--all" in words or one["State"]["Status"] in shown):
            templates = after(words, "--format")
            print(fill_in(templates[0], listed(one)) if templates else one["Id"])


def inspect(words: list[str]) -> None:
    takes_value = {"--type", "--format"}
    names = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if not word.startswith("--") and before not in takes_value
    ]
    found = [find(name) for name in names]
    templates = after(words, "--format")
    if templates:
        for one in found:
            print(fill_in(templates[0], one))
    else:
        print(encode(found))


def image(words: list[str]) -> None:
    happens(f"image-{words[0]}", words=words)
    images = read(place("images")).split()
    if words[-1] not in images:
        fail(f"Error response from daemon: No such image: {words[-1]}")
    if words[0] == "rm":
        write(place("images"), "".join(f"{one}\n" for one in images if one != words[-1]))
    elif "--format" in words:
        print(words[-1])


def add_image(name: str) -> None:
    append(place("images"), f"{name}\n")


def compose(words: list[str]) -> None:
    if "run" in words:
        happens("run", words=words)
        labels = compose_labels(words[-1], True)
        start_ours(words, labels)
    elif "up" in words:
        happens("up", words=words)
        start_sidecar([word for word in words if word.startswith("backup")])
    elif "version" in words:
        print(read(place("compose-version")), end="")
    elif "config" in words:
        happens("config", words=words)
    else:
        fail(f"stub docker: a compose call that nobody planned: {words}")


def start_ours(words: list[str], labels: dict[str, str]) -> None:
    """Remembers which directory of the host the container has at /work."""
    (name,) = after(words, "--name")
    for label in after(words, "--label"):
        key, _, value = label.partition("=")
        labels[key] = value
    work = f"{PLACES['STAGING']}/{os.environ.get('TRACKER_BACKUP_WORK', '')}".rstrip("/")
    for mount in after(words, "--mount"):
        if ",target=/work" in mount:
            work = mount.partition("source=")[2].partition(",")[0].strip('"')
    if exists(place(f"containers/{name}")):
        fail(f"Error response from daemon: Conflict. The name {name} is already in use")
    add_container(name, labels, work)
    print(name)


def start_sidecar(services: list[str]) -> None:
    """As Compose: what is up already, with the same environment, stays."""
    lines = read(PLACES["DEPLOY"] + "/backup/sidecar.env").splitlines()
    path = place("sidecar.json")
    there = {one["Name"]: one for one in (decode(read(path)) if exists(path) else ())}
    for service in services:
        name = f"/torrust-{service}-1"
        if name in there:
            found = there[name]
            if found["Config"]["Env"] == lines and found["State"]["Status"] == "running":
                continue
        labels = compose_labels(service, False) | {"tracker-backup.sidecar": ""}
        health = {"Health": {"Status": "healthy"}} if service == "backup" else {}
        made = inspected(f"{SIDECAR}{len(service)}", labels, "running", **health)
        made |= {"Name": name}
        made["Config"]["Env"] = lines
        made["State"]["Pid"] = os.getpid()
        there[name] = made
    write(path, encode(list(there.values())))


def execute(words: list[str]) -> None:
    """`docker exec`: one step of today's protocol, or the whole conversation with a role."""
    from pathlib import Path

    from program import fake_roles  # these calls alone need it

    words = list(words)
    while words[0].startswith("-"):
        del words[: 2 if words[0] in ("--env", "-e", "--user", "--workdir") else 1]
    name, program, *arguments = words
    facts = require_ours(name)
    client = place(f"clients/{name}.{os.getpid()}")
    append(client, "")
    try:
        happens("exec", words=words, work=Path(facts["work"]))
        if program != "backup.sh":
            fail(f"stub docker: no such program in the container: {program}")
        fake_roles.converse(arguments[0], Path(facts["work"]))
    finally:
        remove_file(client)


def end_clients(name: str) -> None:
    """If a container ends, its programs and the clients that wait for them end."""
    for client in os.listdir(place("clients")):
        container, _, process = client.rpartition(".")
        if container == name:
            remove_file(place(f"clients/{client}"))
            try:
                os.kill(int(process), 9)
            except ProcessLookupError:
                pass


def remove(words: list[str]) -> None:
    happens("rm", words=words)
    for name in (word for word in words if not word.startswith("-")):
        if name == tracker("id"):
            fail("stub docker: the tracker itself is being removed")
        if name.startswith(SIDECAR):
            kept = [one for one in decode(read(place("sidecar.json"))) if one["Id"] != name]
            write(place("sidecar.json"), encode(kept))
        end_clients(name)
        remove_file(place(f"containers/{name}"))


def is_tracker(name: str) -> bool:
    """Whether a call is for a tracker's container; one that does not exist fails the call."""
    if not name.startswith("tracker-backup-"):
        find(name)
        return True
    return False


def pause(command: str, name: str) -> None:
    """Our own container is paused only to prove that the engine can pause."""
    wanted, new = ("running", "paused") if command == "pause" else ("paused", "running")
    if not is_tracker(name):
        happens(f"{command}-ours", words=[command, name])
        facts = require_ours(name)
        if facts["status"] != wanted:
            fail(f"Error response from daemon: Container {name} is not {wanted}")
        add_container(name, facts["labels"], facts["work"], new)
        return
    happens(command, words=[command, name])
    if tracker("status") != wanted:
        fail(f"Error response from daemon: Container {name} is not {wanted}")
    become(new)
    happened(command)


def stop(words: list[str]) -> None:
    find(words[-1])
    happens("stop", words=words)
    stopped(137)
    for action in ("kill", "die", "stop"):
        happened(action)


def start(words: list[str]) -> None:
    for name in words:
        find(name)
    happens("start", words=words)
    if tracker("status") != "running":
        started()


def epoch(text: str) -> float:
    """Seconds since 1970 of what --since and --until are given."""
    try:
        return float(text)
    except ValueError:
        from datetime import datetime

        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def events(words: list[str]) -> None:
    """What happened; without --until, what happens from now on as well, until it is ended."""
    happens("events", words=words)
    filters = [text.partition("=") for text in after(words, "--filter")]
    wanted = {value for key, _, value in filters if key == "event"}
    of = {value for key, _, value in filters if key == "container"}
    since = [epoch(text) for text in after(words, "--since")] or [time.time()]
    until = [epoch(text) for text in after(words, "--until")]
    append(place("events"), "")
    with open(place("events"), encoding="utf-8") as file:
        while True:
            for line in file:
                moment, action, container = line.split()
                if (
                    since[0] <= float(moment) <= (until or [float("inf")])[0]
                    and (not wanted or action in wanted)
                    and (not of or container in of)
                ):
                    show_event(words, float(moment), action, container)
            if until:
                return
            time.sleep(0.02)


def show_event(words: list[str], moment: float, action: str, container: str) -> None:
    event = {
        "Action": action,
        "Type": "container",
        "ID": container,
        "id": container,
        "status": action,
        "Actor": {"ID": container, "Attributes": {}},
        "Time": int(moment),
        "time": int(moment),
        "TimeNano": int(moment * 10**9),
        "timeNano": int(moment * 10**9),
        "Config": {"Labels": {}},
    }
    print(fill_in((after(words, "--format") or ["{{json .}}"])[0], event), flush=True)


def main(words: list[str]) -> None:
    for number in (_signal.SIGINT, _signal.SIGPIPE):
        _signal.signal(number, _signal.SIG_DFL)
    command, *rest = words
    log_call(" ".join(["docker", *words]))
    if command == "compose":
        compose(rest)
    elif command == "exec":
        execute(rest)
    elif command == "image":
        image(rest)
    elif command == "images":
        form = (after(rest, "--format") or ["{{.Repository}}:{{.Tag}}"])[0]
        if "--filter" not in rest:  # no image here has a label
            for one in read(place("images")).split():
                print(form.replace("{{.ID}}", one).replace("{{.Repository}}:{{.Tag}}", one))
    elif command == "build":
        happens("build", words=words)
        add_image(after(words, "--tag")[0])
    elif command == "pull":
        happens("pull", words=words)
        add_image(words[-1])
    elif command == "run":
        start_ours(rest, {})
    elif command in ("pause", "unpause"):
        pause(command, rest[-1])
    elif command == "stop":
        stop(rest)
    elif command == "start":
        start(rest)
    elif command == "rm":
        remove(rest)
    elif command == "events":
        events(rest)
    elif command in ("ps", "inspect"):
        happens(command, words=words)
        (ps if command == "ps" else inspect)(rest)
    elif command == "info":
        print(PLACES["STUB"])
    elif command in ("version", "network", "system", "builder"):
        happens(command, words=words)
    else:
        fail(f"stub docker: an unknown call: {words}")
