"""The courier: calls restic, in a container that sees the destination and the repository alone.

Every job has `settings`, which are the RESTIC_ values of backup.conf. Most have `host` and `tag`,
which are this environment's own, so snapshots of others are never touched.

    identify {}                       the repository's id
    init {}                           makes the repository
    snapshots {host, tag}             a line for each: id, run, sequence
    unlock {}                         removes the locks that dead processes left
    backup {host, tag, time, files}   files of the destination, as one snapshot
    forget {host, tag}                removes what backup.conf does not keep, then prunes
    check {}                          checks the repository itself
    show {snapshot, file}             the file's content
    fetch {snapshot, files}           into /target

`text` of the answer is what the job found. `warnings` are the last lines that restic printed.
Codes: 1 failed; 2 configuration error; 10 no repository; 11 locked; 12 wrong password; 13 turned
away by the server; 14 server not reached; 15 not over in time; 16 no bucket.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..protocol import ANSWER_BYTES, Answer
from .service import StepFailed

DESTINATION = Path(os.environ.get("BACKUP_DESTINATION", "/backups"))
TARGET = Path(os.environ.get("BACKUP_TARGET", "/target"))
# In memory, for secrets. restic writes its packs to TMPDIR, which is on disk.
SCRATCH = Path(os.environ.get("BACKUP_SCRATCH", "/tmp"))
ANSWER_SECONDS = int(os.environ.get("BACKUP_ANSWER_SECONDS", "60"))  # restic's own limit is 900
TRANSFER_SECONDS = 21600
RETRY = "--retry-lock=30s"
LIST_BYTES = 64 << 20  # restic lists the paths of each snapshot, too
SAID_BYTES, SAID_LINES = 1 << 16, 20
VARIABLE = re.compile(r"(AWS_|B2_|RESTIC_REST_)[A-Z0-9_]*=")

# restic tries again for as long as it may. So its words alone tell why a server refuses.
REASONS = {
    r"Host key verification failed": (
        "13 the server's key is not in the file of backup.restic.ssh_known_hosts_path"
    ),
    r"Permission denied \(": (
        "13 the server turns the SSH key or the user away: "
        "backup.restic.ssh_private_key_path, repository"
    ),
    r"bucket does not exist|NoSuchBucket": (
        "16 the bucket does not exist: make it, or correct backup.restic.repository"
    ),
    r"401 Unauthorized|403 Forbidden|Access Key Id you provided|signature we calculated|bad_auth"
    r"|Access ?Denied|InvalidAccessKeyId|SignatureDoesNotMatch|\(40[13]": (
        "13 the server turns the keys or the password for it away (backup.restic.environment, "
        "repository): {last}"
    ),
    r"[Cc]onnection (refused|reset|closed)|no such host|Could not resolve|server misbehaving"
    r"|[Nn]o route to host|[Nn]etwork is unreachable|i/o timeout|timed out": (
        "14 the server cannot be reached: {last}"
    ),
    r"[Nn]o space left on device|disk quota exceeded": (
        "1 there is no space left, in the repository or for restic's temporary files in staging: "
        "{last}"
    ),
}


class Restic:
    """How to call restic: the address and the password come from files, what else a server asks
    for from restic's environment. No secret is an argument.
    """

    def __init__(self, settings: dict[str, str], answer: Answer) -> None:
        self.settings, self.answer = settings, answer
        self.options = ["--no-cache"]
        if limit := settings.get("RESTIC_LIMIT_UPLOAD_KIB"):
            self.options.append(f"--limit-upload={limit}")
        self.environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC0"}
        self.hidden: list[str] = []  # what must not show in a message
        for key in ("RESTIC_REPOSITORY_FILE", "RESTIC_PASSWORD_FILE"):
            self.environment[key] = str(self.secret(key))
        address = self.secret("RESTIC_REPOSITORY_FILE").read_text(errors="surrogateescape")
        if match := re.search("//[^/@]*:([^/@]+)@", address):
            self.hidden.append(match[1])
        if "RESTIC_ENVIRONMENT_FILE" in settings:
            self.read_environment(self.secret("RESTIC_ENVIRONMENT_FILE"))
        if "RESTIC_SSH_KEY_FILE" in settings:
            self.use_ssh_key(
                self.secret("RESTIC_SSH_KEY_FILE"), self.secret("RESTIC_KNOWN_HOSTS_FILE")
            )

    def setting(self, key: str) -> str:
        if value := self.settings.get(key, ""):
            return value
        raise StepFailed(f"backup.conf: {key} is missing or empty", 2)

    def secret(self, key: str) -> Path:
        path = Path(self.setting(key))
        if not os.access(path, os.R_OK):
            raise StepFailed(f"the secret {path} is missing", 2)
        return path

    def read_environment(self, path: Path) -> None:
        for line in path.read_text(errors="surrogateescape").removesuffix("\n").split("\n"):
            if not VARIABLE.match(line):
                raise StepFailed(
                    f"{path}: expected NAME=value, with a NAME that begins AWS_, B2_ or "
                    "RESTIC_REST_",
                    2,
                )
            name, _, value = line.partition("=")
            self.environment[name] = value
            if len(value) >= 8:
                self.hidden.append(value)

    def use_ssh_key(self, key: Path, known_hosts: Path) -> None:
        """A copy, because ssh accepts a key only if its user alone can read it, and if it ends with
        a newline.
        """
        copy = SCRATCH / "ssh_key"
        copy.unlink(missing_ok=True)
        with open(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key.read_bytes().rstrip(b"\n") + b"\n")
        options = (
            f"-F none -i {copy} -o IdentitiesOnly=yes -o BatchMode=yes "
            f"-o StrictHostKeyChecking=yes -o UserKnownHostsFile={known_hosts} "
            "-o GlobalKnownHostsFile=none -o ConnectTimeout=20 -o ServerAliveInterval=30 "
            "-o ServerAliveCountMax=4"
        )
        self.options += ["-o", f"sftp.args={options}"]

    def call(self, seconds: int, step: str, *words: str, cwd: Path | None = None) -> str:
        """What restic printed. A failure ends the job with its reason."""
        limit = ["timeout", "--kill-after=10", str(seconds)]
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            code = subprocess.run(
                [*limit, "restic", *self.options, step, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=self.environment,
                cwd=cwd,
                check=False,
            ).returncode
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - SAID_BYTES))
            said = self.redact(errors.read().decode(errors="replace"))
            self.answer.warnings = [line for line in said.splitlines() if line][-SAID_LINES:]
            if code != 0:
                raise explain(code, said, step, seconds)
            output.seek(0)
            return output.read(LIST_BYTES).decode(errors="replace")

    def redact(self, text: str) -> str:
        for secret in self.hidden:
            text = text.replace(secret, "***")
        return text


def explain(code: int, said: str, step: str, seconds: int) -> StepFailed:
    lines = [line for line in said.splitlines() if line.strip()] or ["it printed nothing"]
    wanted = ("returned error", "^Fatal: ", "")
    found = ([line for line in lines if re.search(one, line)] for one in wanted)
    last = next(filter(None, found))[-1]
    if code == 10:
        return StepFailed(
            "there is no restic repository at the address of backup.restic.repository", 10
        )
    if code == 11:
        locked = re.search("locked.*", said)
        reason = locked[0] if locked else ""
        return StepFailed(f"the repository is locked by another restic: {reason}", 11)
    if code == 12:
        return StepFailed("the repository's password is wrong: backup.restic.password", 12)
    for pattern, reason in REASONS.items():
        if re.search(pattern, said):
            own, _, message = reason.partition(" ")
            return StepFailed(message.format(last=last), int(own))
    if code in (124, 137, -9):
        return StepFailed(f"restic {step} was not over after {seconds} s: {last}", 15)
    return StepFailed(f"restic {step} failed, exit code {code}: {last}")


# ---------------------------------------------------------------- jobs


def identify(restic: Restic) -> str:
    text = restic.call(ANSWER_SECONDS, "cat", "config", "--no-lock")
    if match := re.search('"id": *"([0-9a-f]+)"', text):
        return match[1]
    raise StepFailed("the repository's configuration names no id")


def init(restic: Restic) -> None:
    restic.call(ANSWER_SECONDS, "init")


def snapshots(restic: Restic, host: str, tag: str) -> str:
    own = (f"--host={host}", f"--tag={tag}")
    text = restic.call(ANSWER_SECONDS, "snapshots", "--no-lock", "--json", *own)
    lines = []
    for snapshot in json.loads(text or "null") or []:
        tags = dict(one.partition("=")[::2] for one in snapshot.get("tags") or [])
        lines.append(f"{snapshot['id']} {tags.get('run', '')} {tags.get('sequence', '')}\n")
    return "".join(lines)


def unlock(restic: Restic) -> None:
    """The host holds its lock meanwhile, so a lock with this container's host name was left by a
    dead run. restic knows which locks of other hosts are stale.
    """
    own = re.compile(f'"hostname": *"{re.escape(os.uname().nodename)}"')
    locks = restic.call(ANSWER_SECONDS, "list", "locks", "--no-lock").split()
    if locks:
        all_are_ours = all(own.search(read_lock(restic, lock)) for lock in locks)
        restic.call(ANSWER_SECONDS, "unlock", *(["--remove-all"] if all_are_ours else []))


def read_lock(restic: Restic, lock: str) -> str:
    try:
        return restic.call(ANSWER_SECONDS, "cat", "lock", lock, "--no-lock")
    except StepFailed:  # it may be gone already
        return ""


def backup(restic: Restic, host: str, tag: str, time: str, files: list[str]) -> None:
    own = (f"--host={host}", f"--tag={tag}", f"--time={time}")
    restic.call(TRANSFER_SECONDS, "backup", "--quiet", RETRY, *own, "--", *files, cwd=DESTINATION)


def forget(restic: Restic, host: str, tag: str) -> None:
    values = {
        period: restic.setting(f"RESTIC_KEEP_{period}") for period in ("DAILY", "WEEKLY", "MONTHLY")
    }
    keep = [f"--keep-{period.lower()}={value}" for period, value in values.items() if value != "0"]
    if not keep:
        raise StepFailed(
            "backup.conf: of RESTIC_KEEP_DAILY, _WEEKLY and _MONTHLY one must be more than 0; "
            "nothing is removed",
            2,
        )
    own = (f"--host={host}", f"--tag={tag}", "--group-by=host")
    restic.call(TRANSFER_SECONDS, "forget", "--quiet", "--prune", RETRY, *own, *keep)


def check(restic: Restic) -> None:
    restic.call(TRANSFER_SECONDS, "check", RETRY)


def show(restic: Restic, snapshot: str, file: str) -> str:
    text = restic.call(ANSWER_SECONDS, "dump", "--no-lock", snapshot, file)
    if len(text) > ANSWER_BYTES // 2:
        raise StepFailed(f"{file} in the restic repository has {len(text)} characters")
    return text


def fetch(restic: Restic, snapshot: str, files: list[str]) -> None:
    includes = [f"--include=/{file}" for file in files]
    restic.call(TRANSFER_SECONDS, "restore", "--no-lock", snapshot, f"--target={TARGET}", *includes)


def job(step: Callable[..., str | None]) -> Callable[[dict[str, Any], Answer], None]:
    def run(arguments: dict[str, Any], answer: Answer) -> None:
        words = {
            name: value
            for name, value in arguments.items()
            if name not in ("protocol", "job", "settings")
        }
        answer.text = step(Restic(arguments["settings"], answer), **words) or ""

    return run


JOBS = {
    step.__name__: job(step)
    for step in (identify, init, snapshots, unlock, backup, forget, check, show, fetch)
}
