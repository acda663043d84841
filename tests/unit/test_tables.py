"""Which tables a run's database has to have."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import pytest

REQUIRED = {"torrents", "whitelist", "keys"}
WHERE = "the captured database"


@pytest.fixture
def tables(tool: ModuleType) -> Any:
    return importlib.import_module(f"{tool.__name__}.tables")


def test_a_first_run_with_the_trackers_tables_has_no_warning(tables: Any) -> None:
    assert tables.compare_tables([], {*REQUIRED, "more"}, WHERE) == []


def test_a_first_run_without_the_trackers_tables_is_refused_and_they_are_named(
    tables: Any,
) -> None:
    with pytest.raises(tables.Refused) as refused:
        tables.compare_tables([], {"torrents", "keyss"}, WHERE)
    assert str(refused.value) == "the captured database lacks the tables: whitelist keys"
    assert refused.value.code == 1


def test_a_table_of_the_last_good_run_that_is_gone_is_a_warning(tables: Any) -> None:
    expected = ["torrents", "torrent aggregate metrics", "keys", "gone"]
    assert tables.compare_tables(expected, {"torrents", "keys", "new"}, WHERE) == [
        f"the captured database lacks the table {name}, which the last good run has. It was "
        "dropped, or the user may not see it any more. If that is right, run 'tracker-backup "
        "acknowledge'."
        for name in ("torrent aggregate metrics", "gone")
    ]


def test_after_a_good_run_the_trackers_own_tables_are_not_required(tables: Any) -> None:
    assert tables.compare_tables(["torrents"], {"torrents"}, WHERE) == []


def test_a_database_with_none_of_the_tables_of_the_last_good_run_is_no_backup(
    tables: Any,
) -> None:
    expected = [f"t{number}" for number in range(12)]
    with pytest.raises(tables.Refused) as refused:
        tables.compare_tables(expected, {"other"}, "database torrust, as user a sees it,")
    assert str(refused.value) == (
        "database torrust, as user a sees it, has none of the tables of the last good run: "
        "t0 t1 t2 t3 t4 t5 t6 t7 t8 t9"
    )


def test_names_are_compared_as_run_manifests_have_them(tables: Any) -> None:
    long = "t" * 300
    assert tables.compare_tables(["a b", long[:256]], {"a\nb", long}, WHERE) == []
    assert tables.compare_tables(["a\nb", long], {"a b", long[:256]}, WHERE) == []


def test_if_the_trackers_own_tables_are_there_none_of_the_last_good_runs_is_a_warning_only(
    tables: Any,
) -> None:
    """A service that wrote hostile names into the last good run does not stop the next ones."""
    warnings = tables.compare_tables(["evil", "worse"], REQUIRED, WHERE)
    assert [warning.partition(", which")[0] for warning in warnings] == [
        f"{WHERE} lacks the table {name}" for name in ("evil", "worse")
    ]
