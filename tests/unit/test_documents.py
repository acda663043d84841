"""The documents: what is written is read again, and what is damaged or newer is refused."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unit.sandbox import Sandbox, manifest

RUN = "20260101_030000"
OWNER = {"uid": 1000, "gid": 999, "mode": "2770"}
RELEASE = {"name": "a/tracker:develop", "digest": "a/tracker@sha256:feed", "version": "4.0.0"}
WHOLE: dict[str, dict[str, Any]] = {
    "RunManifest": manifest(RUN, 7)
    | {
        "format": 2,
        "driver": "sqlite",
        "missing": [],
        "paths": [".env"],
        "images": {"tracker": "sha256:feed"},
        "directories": {".": OWNER},
        "warnings": ["a warning"],
        "durations": {"check": 0.25},
        "database_bytes": 4096,
        "tools": {"sqlite3": "3.46.1"},
        "releases": {"tracker": RELEASE},
        "compose_files": ["docker-compose.yml", "compose/override.yml"],
        "killed": True,
    },
    "RetentionState": {"format": 1, "acknowledged": ["a"], "pending": {"b": "reason"}},
    "VerificationState": {
        "format": 2,
        "run": RUN,
        "at": "2026-01-01T03:00:00Z",
        "problems": ["damage"],
        "succeeded": "2025-12-25T03:00:00Z",
        "seconds": 1.5,
        "impossible": "no memory",
    },
    "StackFacts": {
        "format": 1,
        "at": "2026-01-01T03:00:00Z",
        "images": {"tracker": "sha256:feed"},
        "directories": {"storage": OWNER},
        "refused": "",
        "warnings": ["it rains"],
        "releases": {"tracker": RELEASE},
        "compose_files": ["compose.yaml"],
    },
    "RemoteState": {
        "format": 2,
        "address": "5a" * 32,
        "repository": "1d",
        "pushed": [RUN],
        "checked": {"at": "2026-01-01T03:00:00Z", "problem": ""},
        "error": "down",
        "tried": RUN,
        "sequence": 9,
        "succeeded": "2025-12-25T03:00:00Z",
    },
    "RestoreJournal": {
        "format": 2,
        "run": RUN,
        "work": f"{RUN}.restore",
        "fresh": False,
        "config": True,
        "running": ["7e57"],
        "importing": True,
        "undone": False,
        "moves": [
            {"path": ".env", "room": "storage/x", "existed": True, "brings": True},
        ],
        "made": ["storage"],
        "compose_files": ["compose.yaml"],
    },
    "DestinationIdentity": {
        "format": 2,
        "environment": "production (written by a newer gen-backup-bundle: generate the bundle "
        "with that)",
        "machine_id": "5ca1ab1e",
    },
}
STATES = {
    "RetentionState": "retention.json",
    "VerificationState": "verified.json",
    "RemoteState": "remote.json",
    "RestoreJournal": "restore.json",
}
# Members that an older program did not write, or did not always write.
OPTIONAL = {
    "RunManifest": {
        *("finished", "strategy", "quiesce", "driver", "missing", "durations", "tools"),
        *("database_bytes", "releases", "compose_files", "killed"),
    },
    "StackFacts": {"releases", "compose_files"},
    "VerificationState": {"succeeded", "seconds", "impossible"},
    "RemoteState": {"checked", "error", "tried", "sequence", "succeeded"},
    "RestoreJournal": {"importing", "undone", "moves", "made", "compose_files"},
}
NO_DOCUMENT: dict[str, bytes] = {
    "empty": b"",
    "torn": b'{"format": 1,',
    "null": b"null",
    "list": b"[]",
    "text": b'"format"',
    "no member": b"{}",
    "NaN": b"NaN",
    "not UTF-8": b'{"format": "\xff"}',
    "200,000 brackets": b"[" * 200_000,
    "200,000 braces": b'{"a":' * 200_000,
    "a million digits": b'{"format":' + b"9" * 1_000_000 + b"}",
    "17 MiB": b" " * (17 << 20) + b"{}",
}
HOSTILE: dict[str, Any] = {
    "null": None,
    "a bool": True,
    "an integer": 7,
    "negative": -1,
    "2^63": 2**63,
    "huge": 10**15,
    "a float": 1.5,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "text": "../../etc/passwd",
    "a list": [None],
    "nested": [[[[]]]],
    "an object": {"": None},
    "wrong values": {"key": -1},
}
documents = pytest.mark.parametrize("name", WHOLE)


def decode(tool: ModuleType, name: str, value: dict[str, Any]) -> Any:
    return getattr(tool.documents, name).decode(json.dumps(value))


@documents
def test_what_is_written_is_read_again(tool: ModuleType, name: str) -> None:
    document = decode(tool, name, WHOLE[name])
    assert json.loads(document.encode()) == WHOLE[name]
    assert type(document).decode(document.encode()) == document


@documents
@pytest.mark.parametrize("content", NO_DOCUMENT.values(), ids=NO_DOCUMENT)
def test_what_is_no_document_is_damaged(
    tool: ModuleType, tmp_path: Any, name: str, content: bytes
) -> None:
    kind = getattr(tool.documents, name)
    (tmp_path / "document").write_bytes(content)
    with pytest.raises(tool.documents.BadDocument) as refused:
        kind.read(tmp_path / "document")
    assert str(refused.value).startswith(f"{tmp_path}/document is damaged: ")
    assert str(refused.value).endswith(f"; {kind.REMEDY}")
    assert len(str(refused.value)) < 1000


@documents
def test_a_newer_format_is_refused_by_name(tool: ModuleType, name: str) -> None:
    known = WHOLE[name]["format"]
    with pytest.raises(tool.documents.NewerFormat) as refused:
        decode(tool, name, WHOLE[name] | {"format": known + 1})
    assert str(refused.value) == (
        f"is of format {known + 1}, this program knows {known}: install a newer bundle"
    )


@documents
def test_each_member_that_older_programs_wrote_is_required(tool: ModuleType, name: str) -> None:
    for member in WHOLE[name]:
        less = {key: value for key, value in WHOLE[name].items() if key != member}
        if member == "format" or member in OPTIONAL.get(name, ()):
            decode(tool, name, less)
            continue
        with pytest.raises(tool.documents.BadDocument, match=f"{member} is missing"):
            decode(tool, name, less)


@documents
@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_each_member_is_checked(tool: ModuleType, name: str, hostile: Any) -> None:
    """A hostile value is refused, or it is one of the member's own type and read as it is."""
    for member, good in WHOLE[name].items():
        if member == "format" and type(hostile) is int and 0 < hostile < 2**63:
            continue
        try:
            document = decode(tool, name, WHOLE[name] | {member: hostile})
        except tool.documents.BadDocument as error:
            assert "is damaged: " in str(error)
            continue
        assert type(hostile) is type(good) or (member, hostile) in (
            ("checked", None),
            ("window_seconds", hostile),
            ("seconds", hostile),
        )
        assert 0 <= hostile < 2**63 if isinstance(hostile, (int, float)) else True
        assert getattr(document, member) == hostile


@documents
def test_an_unknown_member_is_refused_where_no_newer_program_adds_some(
    tool: ModuleType, name: str
) -> None:
    kind, more = getattr(tool.documents, name), WHOLE[name] | {"colour": "red"}
    if kind.EXTENSIBLE:
        assert decode(tool, name, more) == decode(tool, name, WHOLE[name])
        return
    with pytest.raises(tool.documents.BadDocument, match="an unknown key is 'colour'"):
        decode(tool, name, more)


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "/etc/passwd",
        f"sqlite/sqlite_{RUN}.db",
        f"sqlite/sqlite_{RUN}.db.gz\n",
        f"sqlite/sqlite_{RUN}.sql.gz",
        f"sqlite/../sqlite/sqlite_{RUN}.db.gz",
        "sqlite/sqlite_20260102_030000.db.gz",
        f"mysql/mysql_{RUN}.keys.sql.gz",
        f"mysql/mysql_{RUN}torrents.sql.gz",
        f"config/config_{RUN}.tar.gz",
        f"config/config_{RUN}.torrents.tar.gz",
        f"runs/{RUN}.json",
        ".tracker-backup.json",
        "",
    ],
)
@pytest.mark.parametrize("kind", ["database", "config"])
def test_a_run_manifest_with_a_path_that_is_not_the_computed_name_is_damaged(
    tool: ModuleType, path: str, kind: str
) -> None:
    run = manifest(RUN, 1, kinds=("database",))
    run["files"].append({"kind": kind, "path": path, "bytes": 1, "sha256": "00" * 32})
    if (kind, path) == ("config", f"config/config_{RUN}.tar.gz"):
        assert decode(tool, "RunManifest", run).paths_of("config") == [path]
        return
    with pytest.raises(tool.documents.BadDocument, match=f"the path of a {kind} file is "):
        decode(tool, "RunManifest", run)


def test_both_dumps_of_a_run_are_its_files_and_name_its_driver(tool: ModuleType) -> None:
    dumps = [f"mysql/mysql_{RUN}.sql.zst", f"mysql/mysql_{RUN}.torrents.sql.zst"]
    run = manifest(RUN, 1, kinds=("config",))
    run["files"] += [
        {"kind": "database", "path": path, "bytes": 1, "sha256": "00" * 32} for path in dumps
    ]
    decoded = decode(tool, "RunManifest", run)
    assert decoded.paths_of("database") == dumps
    assert (decoded.driver, decoded.bytes) == ("mysql", 8)
    for more in (dumps[0], f"sqlite/sqlite_{RUN}.db.gz"):  # twice, and of another driver
        extra = {"kind": "database", "path": more, "bytes": 1, "sha256": "00" * 32}
        with pytest.raises(tool.documents.BadDocument):
            decode(tool, "RunManifest", run | {"files": [*run["files"], extra]})


@pytest.mark.parametrize(
    ("result", "kinds", "missing", "good"),
    [
        ("success", ("database", "config"), [], True),
        ("success", ("database",), ["caddy"], False),
        ("success", (), [], False),
        ("incomplete", ("database",), ["caddy"], True),
        ("incomplete", (), ["caddy"], False),
        ("failed", (), [], True),
        ("failed", ("database",), [], False),
        ("splendid", ("database",), [], False),
    ],
)
def test_a_result_goes_with_what_was_published(
    tool: ModuleType, result: str, kinds: tuple[str, ...], missing: list[str], good: bool
) -> None:
    run = manifest(RUN, 1, result=result, kinds=kinds, missing=missing)
    if good:
        assert decode(tool, "RunManifest", run).published == (result != "failed")
    else:
        with pytest.raises(tool.documents.BadDocument):
            decode(tool, "RunManifest", run)


def test_text_is_printable_and_bounded(tool: ModuleType) -> None:
    run = decode(
        tool,
        "RunManifest",
        manifest(RUN, 1, reason="\x1b[2J" + "x" * 5000, tables={"a\nb": 1}, warnings=["\ud800"]),
    )
    assert run.reason.startswith("\\x1b[2Jx") and len(run.reason) == 2000
    assert run.tables == {"a b": 1}
    assert run.warnings == ["\\ud800"]
    assert type(run).decode(run.encode()) == run


@settings(deadline=None, max_examples=200)
@given(
    reason=st.text(),
    warnings=st.lists(st.text(), max_size=5),
    tables=st.dictionaries(st.text(), st.integers(0, 2**63 - 1), max_size=5),
    durations=st.dictionaries(st.text(), st.floats(0, 2**62), max_size=5),
    sequence=st.integers(0, 10**12),
)
def test_any_run_manifest_that_can_be_made_is_read_again(tool: ModuleType, **facts: Any) -> None:
    documents = tool.documents
    kind, whole = documents.RunManifest, WHOLE["RunManifest"] | facts
    run = kind(**{key: value for key, value in whole.items() if key != "format"})
    assert kind.decode(run.encode()) == run


@settings(deadline=None, max_examples=200)
@given(
    name=st.sampled_from(sorted(WHOLE)),
    value=st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    ),
    data=st.data(),
)
def test_any_value_is_read_or_refused(
    tool: ModuleType, name: str, value: Any, data: st.DataObject
) -> None:
    member = data.draw(st.sampled_from(sorted(WHOLE[name])))
    try:
        document = decode(tool, name, WHOLE[name] | {member: value})
    except tool.documents.BadDocument:
        return
    assert type(document).decode(document.encode()) == document


@pytest.mark.parametrize("sequence", [10**12 + 1, 2**63 - 1])
def test_a_sequence_after_which_no_run_could_be_recorded_is_damage(
    tool: ModuleType, sequence: int
) -> None:
    decode(tool, "RunManifest", WHOLE["RunManifest"] | {"sequence": 10**12})
    with pytest.raises(tool.documents.BadDocument, match=f"sequence is {sequence}"):
        decode(tool, "RunManifest", WHOLE["RunManifest"] | {"sequence": sequence})


# ---------------------------------------------------------------- damage on a host


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{}", b"{ torn"])
def test_a_damaged_state_is_a_problem_in_status(
    sandbox: Sandbox, name: str, content: bytes
) -> None:
    if name == "RemoteState":
        sandbox.make_bundle(RESTIC_REPOSITORY_FILE="/run/secrets/restic_repository")
        sandbox.install(
            secrets={"restic_repository": "x", "db_password": "", "db_root_password": ""}
        )
    else:
        sandbox.installed()
    (sandbox.state / STATES[name]).write_bytes(content)
    outcome = sandbox.call("status", "--json")
    assert outcome.code == 1
    problems = json.loads(outcome.out)["problems"]
    remedy = getattr(sandbox.package.documents, name).REMEDY
    (found,) = (text for text in problems if STATES[name] in text)
    assert found.startswith(f"{sandbox.state / STATES[name]} is damaged: ")
    assert found.endswith(remedy)
    assert sandbox.call("status").code == 1
