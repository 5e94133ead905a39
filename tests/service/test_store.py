"""Group commit and configuration."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from computemesh.service.auth import make_token, verify_token
from computemesh.service.outbox import Outbox
from computemesh.service.store import GroupCommit, open_sqlite
from computemesh.trust.errors import Unauthenticated
from computemesh.trust.identity import PrivateKey

SCHEMA = ["CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY) STRICT"]


def test_a_table_that_is_not_strict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="STRICT"):
        open_sqlite(tmp_path / "x.db", ["CREATE TABLE t (n INTEGER)"])


async def test_operations_waiting_for_one_commit_share_the_next(tmp_path: Path) -> None:
    connection = open_sqlite(tmp_path / "x.db", SCHEMA)
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    group = GroupCommit(connection)

    async def insert(n: int) -> None:
        await group.commit(lambda c: c.execute("INSERT INTO t VALUES (?)", (n,)).rowcount)

    await asyncio.gather(*(insert(n) for n in range(500)))
    assert await group.read(lambda c: c.execute("SELECT count(*) FROM t").fetchone()[0]) == 500
    assert 1 <= sum(s.startswith("COMMIT") for s in statements) < 250
    group.close()


async def test_results_resolve_in_submission_order(tmp_path: Path) -> None:
    group = GroupCommit(open_sqlite(tmp_path / "x.db", SCHEMA))
    done: list[int] = []
    futures = [group.submit(lambda c, n=n: n) for n in range(200)]
    for future in futures:
        future.add_done_callback(lambda f: done.append(f.result()))
    await asyncio.gather(*futures)
    assert done == list(range(200))
    group.close()


async def test_a_database_error_is_fatal_and_acknowledges_nothing(tmp_path: Path) -> None:
    fatal: list[BaseException] = []
    group = GroupCommit(open_sqlite(tmp_path / "x.db", SCHEMA), on_fatal=fatal.append)
    future = group.submit(lambda c: c.execute("INSERT INTO missing VALUES (1)"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(future), 0.3)
    assert isinstance(fatal[0], sqlite3.OperationalError)


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    code = f"""
import asyncio, os, sys
from computemesh.service.store import GroupCommit, open_sqlite
async def main():
    group = GroupCommit(open_sqlite({str(tmp_path / 'x.db')!r}, {SCHEMA!r}))
    for n in range(50):
        await group.commit(lambda c: c.execute("INSERT INTO t VALUES (?)", (n,)).rowcount)
    print(n, flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.stdout.strip() == "49", out.stderr
    assert open_sqlite(tmp_path / "x.db", SCHEMA).execute("SELECT count(*) FROM t").fetchone() == (50,)


def test_a_token_is_good_for_its_key_its_chain_and_its_time() -> None:
    key = PrivateKey.generate()
    token = make_token(key, "chain", 2_000)
    assert verify_token(token, "chain", 1_999) == key.public
    forged = token[:-2] + ("AA" if token[-2:] != "AA" else "BB")
    for text, chain, now in ((token, "chain", 2_000), (token, "other", 1), (forged, "chain", 1), ("cm1.x", "chain", 1)):
        with pytest.raises(Unauthenticated):
            verify_token(text, chain, now)


async def test_what_queues_up_during_a_write_goes_out_together() -> None:
    sent: list[tuple[int, ...]] = []
    gate = asyncio.Event()

    async def write(message: tuple[int, ...]) -> None:
        sent.append(message)
        await gate.wait()

    outbox: Outbox[int] = Outbox(write, lambda items: [tuple(items)])
    running = asyncio.create_task(outbox.run())
    outbox.push(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for n in (2, 3, 4):
        outbox.push(n)
    gate.set()
    outbox.close()
    await running
    assert sent == [(1,), (2, 3, 4)]


async def test_deferred_records_become_durable_with_the_next_commit_before_it_and_in_order(tmp_path: Path) -> None:
    connection = open_sqlite(tmp_path / "s.db", ["CREATE TABLE t (n INTEGER PRIMARY KEY, what TEXT) STRICT"])
    group = GroupCommit(connection)
    reader = open_sqlite(tmp_path / "s.db", [])

    def put(what: str):
        return lambda c: c.execute("INSERT INTO t (what) VALUES (?)", (what,))

    def stored() -> list[str]:
        return [what for (what,) in reader.execute("SELECT what FROM t ORDER BY n")]

    group.defer(put("one"))
    group.defer(put("two"))
    assert stored() == []
    await group.commit(put("three"))
    assert stored() == ["one", "two", "three"]
    group.defer(put("four"))
    assert await group.read(lambda c: c.execute("SELECT count(*) FROM t").fetchone()[0]) == 4
    group.defer(put("five"))
    group.flush()
    await group.read(lambda c: None)
    assert stored()[-1] == "five"
    group.defer(put("six"))
    await asyncio.to_thread(group.close)
    assert stored()[-1] == "six"
    reader.close()
