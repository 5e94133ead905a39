"""The stores' tables, forward and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import ledger.store
import market.store
import orchestrator.store
from computemesh.service.migrations import Step, migrate, version
from computemesh.service.store import Connection, open_sqlite
from computemesh.trust.errors import InvalidState
from market import feed
from market.kinds import FeedKind
from market.states import Created, Phase, Spec, State, Status
from tests.conftest import Mesh
from tests.databases import location, opened

STORES = {"ledger": ledger.store, "market": market.store, "orchestrator": orchestrator.store}
FIRST = Step(up=("CREATE TABLE a (n INTEGER PRIMARY KEY) STRICT",))
SECOND = Step(up=("ALTER TABLE a ADD COLUMN b TEXT NOT NULL DEFAULT 'x'",), down=("ALTER TABLE a DROP COLUMN b",))


def task(number: int, pool: str) -> Created:
    labels = json.dumps({"pool": pool} if pool else {})
    task_id, request_id = bytes([number]) * 32, bytes([number]) * 16
    spec = Spec(task_id, request_id, bytes(33), "cpc1x", "noop", b"{}", 5, 6, 0, 1, 7, b"o", b"s", labels=labels)
    return Created(spec, State(Status.PENDING, Phase.QUEUED))


def rows(connection: Connection, table: str, columns: Sequence[str] = ("*",)) -> list[Any]:
    return sorted(connection.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall())


def test_the_markets_tables_go_to_the_version_before_and_back_without_loss(tmp_path: Path) -> None:
    connection = opened(tmp_path / "market.sqlite", market.store.STEPS)
    market.store.record(connection, [task(1, "render"), task(2, "")])
    kept = ("number", "task_id", "customer", "labels", "phase", "pool")
    before = rows(connection, "tasks", kept), rows(connection, "feed"), rows(connection, "task_events")
    assert migrate(connection, market.store.STEPS, to=1) == 2
    with pytest.raises(Exception, match="pool"):
        connection.execute("SELECT pool FROM tasks")
    assert migrate(connection, market.store.STEPS) == 1
    assert (rows(connection, "tasks", kept), rows(connection, "feed"), rows(connection, "task_events")) == before
    assert [row.pool for row in feed.after(connection, 0, 9, [FeedKind.TASKS_ADDED], b"", "", "")[0]] == ["render", ""]
    connection.close()


@pytest.mark.parametrize("name", STORES)
def test_every_version_of_a_store_is_reached_forward_and_back(tmp_path: Path, name: str) -> None:
    steps = STORES[name].STEPS
    connection = opened(tmp_path / STORES[name].FILE, steps)
    for to in (*range(len(steps), 0, -1), *range(1, len(steps) + 1)):
        migrate(connection, steps, to)
        assert version(connection) == to
    connection.close()


def test_a_database_from_before_versions_were_counted_is_taken_as_it_is(tmp_path: Path) -> None:
    connection = open_sqlite(tmp_path / "orchestrator.db")
    first = orchestrator.store.STEPS[0].up
    for statement in first[:-3]:  # the last columns came later
        connection.execute(str(statement))
    connection.execute("INSERT INTO meta VALUES ('boot', 7)")
    assert migrate(connection, orchestrator.store.STEPS) == 0
    assert orchestrator.store.start(connection) == (8, 1)
    assert connection.execute("SELECT uploaded, epoch FROM judgements").fetchall() == []
    connection.close()


def test_tables_of_a_newer_program_are_refused_with_what_to_do(tmp_path: Path) -> None:
    connection = opened(tmp_path / "a.sqlite", (FIRST, SECOND))
    with pytest.raises(InvalidState, match=r"version 2, this program knows 1: .*`mesh db SERVICE --to 1`"):
        migrate(connection, (FIRST,))
    connection.close()


def test_a_step_that_fails_leaves_the_version_before(tmp_path: Path) -> None:
    connection = opened(tmp_path / "a.sqlite", (FIRST,))
    broken = Step(up=("ALTER TABLE a ADD COLUMN c TEXT NOT NULL DEFAULT ''", "INSERT INTO missing VALUES (1)"))
    with pytest.raises(Exception, match="missing"):
        migrate(connection, (FIRST, broken))
    assert version(connection) == 1
    assert migrate(connection, (FIRST, SECOND)) == 1
    connection.close()


def test_the_command_moves_a_stopped_services_tables(tmp_path: Path, mesh: Mesh) -> None:
    config, path = tmp_path / "market.toml", tmp_path / "market.sqlite"
    values = {"data_dir": str(tmp_path), "chain_id": "c", "key_file": "k", "ledger": "l", **location(path)}
    config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    if not location(tmp_path):
        assert "was never started" in mesh("db", "market", "--config", str(config)).stderr
    opened(path, market.store.STEPS).close()
    assert mesh("db", "market", "--config", str(config), "--to", "1").stdout == "the market's tables went from 2 to 1\n"
    said = json.loads(mesh("db", "market", "--config", str(config), "--json").stdout)
    assert said == {"service": "market", "version": 1, "before": 1, "newest": 2}
    assert "there is no version 9, only 1 to 2" in mesh("db", "market", "--config", str(config), "--to", "9").stderr
    assert "is none of ledger, market, orchestrator" in mesh("db", "edge", "--config", str(config)).stderr
