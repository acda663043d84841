"""The documents that this program writes and reads again. Nothing else touches their JSON.

A document checks each field when it is made, so nobody can write one that the reader refuses. An
older format is completed with defaults. A newer format is refused by name.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import reprlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from .files import sync_directory, write_durably
from .host import STATE, Refused, parse_time
from .protocol import LARGEST, printable, table_name

DOCUMENT_BYTES = 16 << 20
ITEMS = 100_000  # of one list or object
SEQUENCES = 10**12  # a larger number of a run is damage
RUN_ID = re.compile(r"[0-9]{8}_[0-9]{6}")
# What is below the destination: a directory for each driver, and the endings of its files.
ENDINGS = {"sqlite": ("db",), "mysql": ("sql", "torrents.sql"), "config": ("tar",)}
DRIVER_NAMES = tuple(name for name in ENDINGS if name != "config")
SUBDIRECTORIES = (*ENDINGS, "runs")
KINDS = "|".join(
    f"{name}(?=[^.]+\\.(?:{'|'.join(map(re.escape, endings))})\\.[a-z]+$)"
    for name, endings in ENDINGS.items()
)
# A backup file; groups: its directory, the run's id.
BACKUP_FILE = re.compile(rf"({KINDS})/\1_({RUN_ID.pattern})\.[a-z.]+\.(?:gz|zst)")

D = TypeVar("D", bound="Document")
S = TypeVar("S", bound="StateDocument")


class BadDocument(Refused):
    """A document that cannot be used. The message of `decode` is to follow its path or name."""


class NewerFormat(BadDocument):
    """A document that a newer program wrote."""


def run_time(run_id: str) -> datetime.datetime:
    """When the run with this id began, UTC."""
    return datetime.datetime.strptime(run_id, "%Y%m%d_%H%M%S").replace(tzinfo=datetime.timezone.utc)


# ---------------------------------------------------------------- fields


def at_most(characters: int) -> Callable[[str], str]:
    """Printable text. A longer one is cut, so that a long message never stops a writer."""
    return lambda text: printable(text, characters)


def shaped(pattern: str, *parsers: Callable[[str], object]) -> Callable[[str], str]:
    """Text that matches the pattern as a whole, and that each parser accepts."""

    def rule(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        for parser in parsers:
            parser(text)
        return text

    return rule


# The rule of a text returns what is kept of it, or raises ValueError.
Name = Annotated[str, at_most(300)]
Reason = Annotated[str, at_most(2000)]
FilePath = Annotated[str, at_most(4096)]
TableName = Annotated[str, table_name]
Time = Annotated[str, shaped("[0-9TZ:-]{20}", parse_time)]
RunId = Annotated[str, shaped(RUN_ID.pattern, run_time)]
Hex = Annotated[str, shaped("[0-9a-f]{0,64}")]
Sha256 = Annotated[str, shaped("[0-9a-f]{64}")]
DriverName = Annotated[str, shaped("|".join(("", *DRIVER_NAMES)))]
Mode = Annotated[str, shaped("[0-7]{4}")]


def checked(kind: Any, value: Any, what: str) -> Any:
    """The value as one of this type; a number is at least 0. Raises BadDocument."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None else checked(parts[0], value, what)
    if origin is Annotated and isinstance(value, str):
        try:
            for rule in parts[1:]:
                value = rule(value)
            return value
        except ValueError as error:
            raise bad(what, value) from error
    if origin is list and isinstance(value, list) and len(value) <= ITEMS:
        return [checked(parts[0], one, what) for one in value]
    if origin is dict and isinstance(value, dict) and len(value) <= ITEMS:
        return {
            checked(parts[0], key, what): checked(parts[1], one, what) for key, one in value.items()
        }
    if origin is Literal and isinstance(value, str) and value in parts:
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and type(value) is int and 0 <= value <= LARGEST:
        return value
    if kind is float and type(value) in (int, float) and 0 <= value <= LARGEST:
        return float(value)
    if isinstance(kind, type) and issubclass(kind, Record):
        return value if isinstance(value, kind) else kind(**kind.members(value, what))
    raise bad(what, value)


def bad(what: str, value: Any) -> BadDocument:
    return BadDocument(f"is damaged: {what} is {printable(reprlib.repr(value))}")


@functools.cache
def types_of(kind: Any) -> dict[str, Any]:
    """The types of a record's members by name."""
    hints = get_type_hints(kind, include_extras=True)
    return {one.name: hints[one.name] for one in fields(kind)}


@dataclass(frozen=True)
class Record:
    """An object of JSON with known members. Unknown ones are refused, unless it is EXTENSIBLE:
    then a newer program may add some without a new format.
    """

    EXTENSIBLE: ClassVar[bool] = False

    def __post_init__(self) -> None:
        record: Any = type(self)
        for name, kind in types_of(record).items():
            object.__setattr__(self, name, checked(kind, getattr(self, name), name))

    @classmethod
    def members(cls, value: Any, what: str) -> dict[str, Any]:
        """The object's members as arguments of the constructor."""
        if not isinstance(value, dict):
            raise bad(what, value)
        record: Any = cls
        known = types_of(record)
        if not cls.EXTENSIBLE and (unknown := value.keys() - known):
            raise bad("an unknown key", min(unknown))
        for one in fields(cls):
            if one.name not in value and one.default is one.default_factory:  # both are MISSING
                raise BadDocument(f"is damaged: {one.name} is missing")
        return {name: value[name] for name in known if name in value}


@dataclass(frozen=True)
class Document(Record):
    """A whole file of JSON, which states its format."""

    FORMAT: ClassVar[int] = 1
    REMEDY: ClassVar[str] = "restore it from a copy"  # what to do about a damaged one

    @classmethod
    def decode(cls: type[D], content: bytes | str) -> D:
        try:
            if len(content) > DOCUMENT_BYTES:
                raise BadDocument(f"is damaged: it has more than {DOCUMENT_BYTES} bytes")
            members = json.loads(content, parse_int=parse_int, parse_constant=parse_int)
            if not isinstance(members, dict):
                raise bad("the document", members)
            number = checked(int, members.pop("format", 0), "format")
            if number > cls.FORMAT:
                known = f"this program knows {cls.FORMAT}: install a newer bundle"
                raise NewerFormat(f"is of format {number}, {known}")
            return cls(**cls.members(members, "the document"))
        except (ValueError, RecursionError) as error:
            raise BadDocument(f"is damaged: no JSON document ({printable(str(error))})") from error

    def encode(self) -> str:
        return json.dumps(self.as_object(), indent=2, ensure_ascii=False) + "\n"

    def as_object(self) -> dict[str, Any]:
        return {"format": self.FORMAT, **asdict(self)}

    @classmethod
    def read(cls: type[D], path: Path) -> D:
        """The document in this file. Raises FileNotFoundError, or BadDocument with what to do."""
        try:
            with path.open("rb") as file:
                return cls.decode(file.read(DOCUMENT_BYTES + 1))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise BadDocument(f"{path} cannot be read: {error.strerror}") from error
        except BadDocument as error:
            remedy = "" if isinstance(error, NewerFormat) else f"; {cls.REMEDY}"
            raise type(error)(f"{path} {error}{remedy}") from error


def parse_int(text: str) -> int:
    if len(text) > 20 or not text.lstrip("-").isdigit():
        raise ValueError(f"{text[:20]} is no number of ours")
    return int(text)


@dataclass(frozen=True)
class StateDocument(Document):
    """A document in the state directory."""

    FILE: ClassVar[str]

    @classmethod
    def load(cls: type[S]) -> S | None:
        try:
            return cls.read(STATE / cls.FILE)
        except FileNotFoundError:
            return None

    @classmethod
    def peek(cls: type[S], problems: list[str]) -> S | None:
        """The same; a damaged one counts as missing and is added to the problems."""
        try:
            return cls.load()
        except BadDocument as error:
            problems.append(str(error))
            return None

    def store(self) -> None:
        write_durably(STATE / self.FILE, self.encode())

    def end(self) -> None:
        """Removes the file, durably."""
        (STATE / self.FILE).unlink()
        sync_directory(STATE)


# ---------------------------------------------------------------- the documents


@dataclass(frozen=True)
class Owner(Record):
    """Who owns a directory of the deployment, and its mode in octal digits."""

    uid: int
    gid: int
    mode: Mode


@dataclass(frozen=True)
class BackupFile(Record):
    kind: Literal["database", "config"]
    path: FilePath  # below the destination
    bytes: int
    sha256: Sha256

    @property
    def directory(self) -> str:
        """The driver's name, or `config`."""
        return self.path.partition("/")[0]


@dataclass(frozen=True)
class Release(Record):
    """An image as the compose file names it, as a registry names it, and the version it states."""

    name: Name
    digest: Name  # empty for an image that no registry has
    version: Name


@dataclass(frozen=True)
class RunManifest(Document):
    """runs/ID.json: what a run did. `success`: everything was published. `incomplete`: `missing`
    could not be archived, and the rest was published. `failed`: nothing was published.
    """

    FORMAT = 2  # 2 has driver and missing, and may be incomplete
    EXTENSIBLE = True
    REMEDY = "restore it from a copy, or remove it and the files of that run"

    id: RunId
    sequence: int
    environment: Name
    started: Name
    result: Literal["success", "incomplete", "failed"]
    exit_code: int
    reason: Reason
    scope: Name
    window_seconds: float
    files: list[BackupFile]
    paths: list[FilePath]  # archived
    tables: dict[TableName, int]
    images: dict[Name, Name]  # ids by service
    directories: dict[FilePath, Owner]
    warnings: list[Reason]
    finished: Name = ""
    strategy: Name = ""
    quiesce: Name = ""
    driver: DriverName = ""  # empty: nothing says which
    missing: list[FilePath] = field(default_factory=list)  # required, and could not be archived
    durations: dict[Name, float] = field(default_factory=dict)  # seconds by step
    database_bytes: int = 0  # of the database itself; 0 if nobody measured it
    tools: dict[Name, Name] = field(default_factory=dict)  # versions by program
    releases: dict[Name, Release] = field(default_factory=dict)  # by service
    compose_files: list[FilePath] = field(default_factory=list)  # below the deploy directory
    killed: bool = False  # the tracker did not end by itself when it was stopped

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sequence > SEQUENCES:
            raise bad("sequence", self.sequence)
        driver = next((file.directory for file in self.files if file.kind == "database"), "")
        object.__setattr__(self, "driver", self.driver or driver)
        for file in self.files:
            match = BACKUP_FILE.fullmatch(file.path)
            named = (match[1], match[2]) if match else ()
            twice = self.paths_of(file.kind).count(file.path) > 1
            if twice or named != ("config" if file.kind == "config" else self.driver, self.id):
                raise bad(f"the path of a {file.kind} file", file.path)
        if self.published != bool(self.files) or (self.missing and self.result == "success"):
            raise bad(f"with {len(self.files)} files the result", self.result)

    @property
    def published(self) -> bool:
        return self.result != "failed"

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def paths_of(self, *kinds: str) -> list[str]:
        """Paths below the destination of the files of these kinds."""
        return [file.path for file in self.files if file.kind in kinds]


@dataclass(frozen=True)
class RetentionState(StateDocument):
    FILE = "retention.json"
    REMEDY = "look at the backups, then `tracker-backup acknowledge` writes it anew"

    acknowledged: list[Name]  # keys of reasons
    pending: dict[Name, Reason]  # why retention is suspended


@dataclass(frozen=True)
class VerificationState(StateDocument):
    FORMAT = 2  # 2 has succeeded, seconds and impossible
    FILE = "verified.json"
    REMEDY = "`tracker-backup verify` writes it anew"

    run: RunId
    at: Time
    problems: list[Reason]
    succeeded: Name = ""  # when one succeeded
    seconds: float = 0.0  # how long it took
    impossible: Reason = ""  # why nothing could be said of the run


@dataclass(frozen=True)
class StackFacts(StateDocument):
    """What the host tells the sidecar of the stack."""

    FILE = "stack.json"
    REMEDY = "cron on the host writes it anew every minute, by `tracker-backup sidecar`"
    EXTENSIBLE = True

    at: Time
    images: dict[Name, Name]
    directories: dict[FilePath, Owner]
    refused: Reason  # why no run may begin; empty if one may
    warnings: list[Reason]
    releases: dict[Name, Release] = field(default_factory=dict)  # as in run manifests
    compose_files: list[FilePath] = field(default_factory=list)


@dataclass(frozen=True)
class RepositoryCheck(Record):
    at: Time
    problem: Reason


@dataclass(frozen=True)
class RemoteState(StateDocument):
    FORMAT = 2  # 2 has succeeded
    FILE = "remote.json"
    REMEDY = "remove it: the next copy asks the repository again what it holds"

    address: Hex  # of the repository that the rest is about, as a digest
    repository: Hex  # its id; empty when there was none yet
    # ids of this host's runs that are or were in it: the policy may have removed them there
    pushed: list[RunId]
    checked: RepositoryCheck | None = None
    error: Reason = ""  # why the last push failed
    tried: Name = ""  # the newest run at the last push
    sequence: int = 0  # the highest of any run in it
    succeeded: Name = ""  # when a push succeeded


@dataclass(frozen=True)
class Move(Record):
    """One path that a restore replaces. Paths are below the deploy directory."""

    path: FilePath
    room: FilePath  # on the same mount: the old one goes to room/old/PATH, from room/new/PATH
    existed: bool  # before the restore
    brings: bool  # the backup has it; otherwise it only moves away


@dataclass(frozen=True)
class RestoreJournal(StateDocument):
    """What a restore has begun, durable before each step, so that a dead one can be undone."""

    FORMAT = 2  # 2 has moves and made; of an older one, files in `work` say what is to be undone
    FILE = "restore.json"
    REMEDY = "put the files back by hand (docs/restore.md), then remove it"

    run: RunId
    work: Annotated[str, shaped(RUN_ID.pattern + r"\.[a-z]+")]  # its directory in staging
    fresh: bool  # there was no stack: what is undone is everything
    config: bool  # files of all services are swapped, not the database alone
    running: list[Annotated[str, shaped("[0-9a-f]{1,64}")]]  # ids of containers to run in the end
    importing: bool = False  # the database may be gone; work/before.sql holds it as it was, whole
    undone: bool = False  # rolled back but for what is to be started
    moves: list[Move] = field(default_factory=list)
    made: list[FilePath] = field(default_factory=list)  # directories that were missing, in order
    compose_files: list[FilePath] = field(default_factory=list)  # of the run that is restored


@dataclass(frozen=True)
class DestinationIdentity(Document):
    """Whose backups the destination holds.

    Programs that wrote format 1 compare `environment` and look at no format. So format 2 has it
    with NEWER, and such a program refuses it, with these words.
    """

    FORMAT = 2
    REMEDY = "restore it from another copy, or remove it and install again"
    NEWER: ClassVar[str] = " (written by a newer gen-backup-bundle: generate the bundle with that)"

    environment: Name
    machine_id: Name

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "environment", self.environment.removesuffix(self.NEWER))

    def as_object(self) -> dict[str, Any]:
        return super().as_object() | {"environment": self.environment + self.NEWER}
