"""The ledger's named SQL. `log` and `transactions` are the truth; everything else is a projection of them.

A transaction is one row and so is a group of them; of results there is a row for each 256 jobs of an escrow.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from computemesh.service.migrations import Step
from computemesh.service.store import Connection

FILE = "ledger.sqlite"
Row = tuple[Any, ...]
Places = tuple[int, Sequence[int], Sequence[int]]
"""(escrow's number, jobs, where their results stand: consecutive places)."""

PAGE = 256
_ROWS = 100
_PLACE = struct.Struct(">Q")

ESCROWS = """CREATE TABLE IF NOT EXISTS escrows (
        no INTEGER PRIMARY KEY, task_id BLOB NOT NULL UNIQUE, customer BLOB NOT NULL, phase INTEGER NOT NULL,
        reward INTEGER NOT NULL, settled INTEGER NOT NULL, refunded INTEGER NOT NULL, deadline_ms INTEGER NOT NULL,
        jobs INTEGER NOT NULL, jobs_settled INTEGER NOT NULL, epoch INTEGER NOT NULL, orchestrator BLOB NOT NULL,
        open_tx INTEGER NOT NULL, assign_tx INTEGER NOT NULL, royalty_bps INTEGER NOT NULL, market_key BLOB NOT NULL,
        opened_ms INTEGER NOT NULL, publisher BLOB NOT NULL, terms BLOB NOT NULL, royalty_to BLOB NOT NULL,
        seen BLOB NOT NULL) STRICT"""
"""`seen` are the bits of the settled jobs, empty until the escrow has ended."""


def _replace(table: str, key: str, columns: str, values: str) -> str:
    """Writes a row, new or over the one with its key; `columns` are the others in the table's order."""
    found = ", ".join(f"{name} = excluded.{name}" for name in columns.split())
    return f"INSERT INTO {table} VALUES ({values}) ON CONFLICT ({key}) DO UPDATE SET {found}"


_ACCOUNT = "balance held earned spent highest_nonce pending results"
_SUPPLY = "minted escrowed burned maturing staked paused"
_ESCROW = ("task_id customer phase reward settled refunded deadline_ms jobs jobs_settled epoch orchestrator open_tx "
           "assign_tx royalty_bps market_key opened_ms publisher terms royalty_to seen")  # fmt: skip
PUT_ESCROW = _replace("escrows", "no", _ESCROW, ", ".join("?" * 21))

_FIRST = (
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID",
    # Groups in order: block time, whether a block was sealed after it, and how many transactions it holds.
    """CREATE TABLE IF NOT EXISTS log (
        seq INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL, seal INTEGER NOT NULL, tx_count INTEGER NOT NULL) STRICT""",
    # Applied transactions in order; `refusals` are u32 position and u8 reason each, `first_leaf` the leaf index of its
    # first settled result in its block.
    """CREATE TABLE IF NOT EXISTS transactions (
        no INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, digest BLOB NOT NULL, body BLOB NOT NULL,
        refusals BLOB NOT NULL, first_leaf INTEGER NOT NULL) STRICT""",
    """CREATE TABLE IF NOT EXISTS blocks (
        height INTEGER PRIMARY KEY, last_tx INTEGER NOT NULL, header BLOB NOT NULL, leaves BLOB NOT NULL,
        note TEXT NOT NULL, burned INTEGER NOT NULL, minted INTEGER NOT NULL) STRICT""",
    "CREATE INDEX IF NOT EXISTS blocks_by_tx ON blocks (last_tx)",
    """CREATE TABLE IF NOT EXISTS nodes (
        level INTEGER NOT NULL, position INTEGER NOT NULL, hash BLOB NOT NULL,
        PRIMARY KEY (level, position)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS accounts (
        address BLOB PRIMARY KEY, balance INTEGER NOT NULL, held INTEGER NOT NULL, earned INTEGER NOT NULL,
        spent INTEGER NOT NULL, highest_nonce BLOB NOT NULL, pending INTEGER NOT NULL,
        results INTEGER NOT NULL) STRICT, WITHOUT ROWID""",
    # Stakes, disputes, models, ... as `records.py` encodes them.
    """CREATE TABLE IF NOT EXISTS records (
        kind INTEGER NOT NULL, key BLOB NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (kind, key)) STRICT, WITHOUT ROWID""",
    ESCROWS,
    """CREATE TABLE IF NOT EXISTS assignments (
        escrow INTEGER NOT NULL, epoch INTEGER NOT NULL, tx INTEGER NOT NULL,
        PRIMARY KEY (escrow, epoch)) STRICT, WITHOUT ROWID""",
    # Where the results of jobs 256 * page .. 256 * page + 255 stand: u64 big-endian each, 0 for none yet, the last ones
    # left out; place = transaction number * 4096 + position in the transaction.
    """CREATE TABLE IF NOT EXISTS places (
        escrow INTEGER NOT NULL, page INTEGER NOT NULL, places BLOB NOT NULL,
        PRIMARY KEY (escrow, page)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS supply (
        one INTEGER PRIMARY KEY CHECK (one = 1), minted INTEGER NOT NULL, escrowed INTEGER NOT NULL,
        burned INTEGER NOT NULL, maturing INTEGER NOT NULL, staked INTEGER NOT NULL, paused INTEGER NOT NULL) STRICT""",
)
STEPS = (Step(up=_FIRST),)


@dataclass(slots=True)
class Rows:
    """What one commit writes, in the column order of the tables."""

    log: list[Row] = field(default_factory=list)
    transactions: list[Row] = field(default_factory=list)
    blocks: list[Row] = field(default_factory=list)
    nodes: list[Row] = field(default_factory=list)
    accounts: list[Row] = field(default_factory=list)
    escrows: list[Row] = field(default_factory=list)
    assignments: list[Row] = field(default_factory=list)
    results: list[Places] = field(default_factory=list)
    supply: list[Row] = field(default_factory=list)
    records: list[Row] = field(default_factory=list)
    gone: list[Row] = field(default_factory=list)


_WRITES = (
    ("log", "INSERT INTO log VALUES (?, ?, ?, ?)"),
    ("transactions", "INSERT INTO transactions VALUES (?, ?, ?, ?, ?, ?)"),
    ("blocks", "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?)"),
    ("nodes", "INSERT INTO nodes VALUES (?, ?, ?)"),
    ("accounts", _replace("accounts", "address", _ACCOUNT, "?, ?, ?, ?, ?, ?, ?, ?")),
    ("escrows", PUT_ESCROW),
    ("assignments", "INSERT INTO assignments VALUES (?, ?, ?)"),
    ("supply", _replace("supply", "one", _SUPPLY, "1, ?, ?, ?, ?, ?, ?")),
    ("records", _replace("records", "kind, key", "body", "?, ?, ?")),
    ("gone", "DELETE FROM records WHERE kind = ? AND key = ?"),
)


def write(connection: Connection, rows: Rows) -> None:
    """Writes everything in `rows`, inside the caller's transaction."""
    for name, statement in _WRITES:
        batch = getattr(rows, name)
        if batch:
            connection.executemany(statement, batch)
    _write_places(connection, rows.results)


def _write_places(connection: Connection, results: Sequence[Places]) -> None:
    by_escrow: dict[int, list[Places]] = {}
    for one in results:
        by_escrow.setdefault(one[0], []).append(one)
    rows: list[Row] = []
    for escrow_no, some in by_escrow.items():
        jobs = np.concatenate([np.asarray(jobs, np.int64) for _, jobs, _ in some])
        places = np.concatenate([np.arange(places[0], places[-1] + 1) for _, _, places in some])
        numbers = jobs // PAGE
        for number in np.unique(numbers).tolist():
            here = numbers == number
            page = np.frombuffer(page_of(connection, escrow_no, number), ">u8").copy()
            page[jobs[here] % PAGE] = places[here]
            rows.append((escrow_no, number, page[: int(np.flatnonzero(page)[-1]) + 1].tobytes()))
    connection.executemany(_replace("places", "escrow, page", "places", "?, ?, ?"), rows)


def _one(connection: Connection, statement: str, *values: Any) -> Row | None:
    row: Row | None = connection.execute(statement, values).fetchone()
    return row


def _pages(connection: Connection, statement: str) -> Iterator[Row]:
    """Every row of a statement that takes the number to begin after and how many: a table need not fit the memory."""
    after = -1
    while rows := connection.execute(statement, (after, _ROWS)).fetchall():
        yield from rows
        after = rows[-1][0]


def read_meta(connection: Connection) -> dict[str, str]:
    """All names and values."""
    return dict(connection.execute("SELECT name, value FROM meta").fetchall())


def write_meta(connection: Connection, values: dict[str, str]) -> None:
    """Adds names and values, inside the caller's transaction."""
    connection.executemany("INSERT INTO meta VALUES (?, ?)", values.items())


def damaged_pages(connection: Connection) -> list[str]:
    """What SQLite finds wrong with its pages and indexes; nothing where all is well, or where PostgreSQL keeps them."""
    if not isinstance(connection, sqlite3.Connection):
        return []
    rows = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
    return [] if rows == ["ok"] else rows


def log_rows(connection: Connection) -> Iterator[Row]:
    """(seq, time_ms, seal, tx_count) in order."""
    return _pages(connection, "SELECT seq, time_ms, seal, tx_count FROM log WHERE seq > ? ORDER BY seq LIMIT ?")


def transaction_rows(connection: Connection) -> Iterator[Row]:
    """(no, id, digest, body, refusals, first_leaf) in order."""
    return _pages(connection, "SELECT * FROM transactions WHERE no > ? ORDER BY no LIMIT ?")


def transaction_by_id(connection: Connection, tx_id: bytes) -> Row | None:
    """(no, digest, body, refusals)."""
    return _one(connection, "SELECT no, digest, body, refusals FROM transactions WHERE id = ?", tx_id)


def outcome_by_id(connection: Connection, tx_id: bytes) -> Row | None:
    """(no, digest, refusals): what a retry needs, without the body."""
    return _one(connection, "SELECT no, digest, refusals FROM transactions WHERE id = ?", tx_id)


def transaction_by_number(connection: Connection, number: int) -> Row | None:
    """(body, refusals, first_leaf)."""
    return _one(connection, "SELECT body, refusals, first_leaf FROM transactions WHERE no = ?", number)


def transaction_ids(connection: Connection, first: int, last: int) -> list[Row]:
    """(no, id) of the transactions numbered first..last."""
    return connection.execute(
        "SELECT no, id FROM transactions WHERE no BETWEEN ? AND ? ORDER BY no", (first, last)).fetchall()


def transaction_leaves(connection: Connection, first: int, last: int) -> list[Row]:
    """(digest, body) of the transactions numbered first..last."""
    return connection.execute(
        "SELECT digest, body FROM transactions WHERE no BETWEEN ? AND ? ORDER BY no", (first, last)).fetchall()


def height_of(connection: Connection, number: int) -> int | None:
    """Height of the block that holds the transaction of this number; None until sealed."""
    row = _one(
        connection, "SELECT height FROM blocks WHERE last_tx >= ? ORDER BY last_tx, height LIMIT 1", number)
    return None if row is None else int(row[0])


def block(connection: Connection, height: int) -> Row | None:
    """(height, last_tx, header, burned, minted)."""
    return _one(connection, "SELECT height, last_tx, header, burned, minted FROM blocks WHERE height = ?", height)


def note(connection: Connection, height: int) -> str | None:
    """The signed checkpoint of the log that ends with this block."""
    row = _one(connection, "SELECT note FROM blocks WHERE height = ?", height)
    return None if row is None else row[0]


def block_rows(connection: Connection) -> Iterator[Row]:
    """(height, last_tx, header, leaves, note, burned, minted) in order."""
    return _pages(connection, "SELECT * FROM blocks WHERE height > ? ORDER BY height LIMIT ?")


def blocks_down(connection: Connection, below: int, limit: int) -> list[Row]:
    """(height, last_tx, header, burned, minted), newest first, of heights below `below`."""
    return connection.execute(
        "SELECT height, last_tx, header, burned, minted FROM blocks WHERE height < ? ORDER BY height DESC LIMIT ?",
        (below, limit)).fetchall()


def blocks_up(connection: Connection, start: int, limit: int) -> list[Row]:
    """(height, last_tx, header, burned, minted), oldest first, of heights from `start` on."""
    return connection.execute(
        "SELECT height, last_tx, header, burned, minted FROM blocks WHERE height >= ? ORDER BY height LIMIT ?",
        (start, limit)).fetchall()


def block_leaves(connection: Connection, height: int) -> bytes:
    """The result leaf hashes of a block, concatenated."""
    row = _one(connection, "SELECT leaves FROM blocks WHERE height = ?", height)
    return b"" if row is None else bytes(row[0])


def newest_block(connection: Connection) -> Row | None:
    """(height, last_tx, header, note)."""
    return _one(connection, "SELECT height, last_tx, header, note FROM blocks ORDER BY height DESC LIMIT 1")


def node(connection: Connection, level: int, position: int) -> bytes:
    """A perfect node of the log tree. Raises KeyError where there is none."""
    row = _one(connection, "SELECT hash FROM nodes WHERE level = ? AND position = ?", level, position)
    if row is None:
        raise KeyError((level, position))
    return bytes(row[0])


def account(connection: Connection, address: bytes) -> Row | None:
    """(address, balance, held, earned, spent, highest_nonce, pending, results)."""
    return _one(connection, "SELECT * FROM accounts WHERE address = ?", address)


def accounts_after(connection: Connection, address: bytes, limit: int) -> list[Row]:
    """Account rows in address order, above `address`."""
    return connection.execute(
        "SELECT * FROM accounts WHERE address > ? ORDER BY address LIMIT ?", (address, limit)).fetchall()


def count(connection: Connection, table: str) -> int:
    """Rows of one of the tables above."""
    if not any(table == name for name, _ in _WRITES):
        raise ValueError(table)
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def balances(connection: Connection) -> Row:
    """(minted, sum of all balances, escrowed, burned, maturing, staked), of one moment."""
    row = _one(
        connection, "SELECT minted, (SELECT CAST(coalesce(sum(balance), 0) AS INTEGER) FROM accounts), escrowed,"
        " burned, maturing, staked FROM supply")  # fmt: skip
    return (0, 0, 0, 0, 0, 0) if row is None else row


def supply(connection: Connection) -> Row:
    """(minted, escrowed, burned, maturing, staked, paused)."""
    row = _one(connection, "SELECT minted, escrowed, burned, maturing, staked, paused FROM supply")
    return (0, 0, 0, 0, 0, 0) if row is None else row


def record(connection: Connection, kind: int, key: bytes) -> bytes | None:
    """The body of one record."""
    row = _one(connection, "SELECT body FROM records WHERE kind = ? AND key = ?", kind, key)
    return None if row is None else bytes(row[0])


def records_after(connection: Connection, kind: int, key: bytes, limit: int) -> list[Row]:
    """(key, body) of records of a kind in key order, above `key`."""
    return connection.execute(
        "SELECT key, body FROM records WHERE kind = ? AND key > ? ORDER BY key LIMIT ?", (kind, key, limit)).fetchall()


def record_rows(connection: Connection) -> Iterator[Row]:
    """(kind, key, body) of all records."""
    return iter(connection.execute("SELECT kind, key, body FROM records ORDER BY kind, key"))


def records_count(connection: Connection, kind: int) -> int:
    """How many records of a kind there are."""
    return int(connection.execute("SELECT count(*) FROM records WHERE kind = ?", (kind,)).fetchone()[0])


def escrow(connection: Connection, task_id: bytes) -> Row | None:
    """The escrow's columns in the table's order."""
    return _one(connection, "SELECT * FROM escrows WHERE task_id = ?", task_id)


def escrow_rows(connection: Connection) -> Iterator[Row]:
    """All escrows in order of opening."""
    return _pages(connection, "SELECT * FROM escrows WHERE no > ? ORDER BY no LIMIT ?")


def assignment_tx(connection: Connection, escrow_no: int, epoch: int) -> int | None:
    """Number of the transaction that assigned this epoch."""
    row = _one(connection, "SELECT tx FROM assignments WHERE escrow = ? AND epoch = ?", escrow_no, epoch)
    return None if row is None else int(row[0])


def assignment_rows(connection: Connection) -> Iterator[Row]:
    """(escrow, epoch, tx) of all assignments."""
    return iter(connection.execute("SELECT * FROM assignments"))


def page_of(connection: Connection, escrow_no: int, page: int) -> bytes:
    """Where the results of jobs PAGE * page .. PAGE * page + PAGE - 1 stand, u64 each, 0 for none yet."""
    row = _one(connection, "SELECT places FROM places WHERE escrow = ? AND page = ?", escrow_no, page)
    return (b"" if row is None else bytes(row[0])).ljust(8 * PAGE, b"\0")


def place(connection: Connection, escrow_no: int, job: int) -> int | None:
    """Where a job's result stands; None until settled."""
    (found,) = _PLACE.unpack_from(page_of(connection, escrow_no, job // PAGE), 8 * (job % PAGE))
    return int(found) or None


def places_after(connection: Connection, escrow_no: int, job: int, limit: int) -> list[Row]:
    """(job, place) of an escrow's results with jobs above `job`, in job order."""
    found: list[Row] = []
    page = (job + 1) // PAGE - 1
    while len(found) < limit and (rows := _pages_after(connection, escrow_no, page, limit // PAGE + 2)):
        page = rows[-1][1]
        for _, number, places in rows:
            at = PAGE * number
            found += [(at + slot, where) for slot, (where,) in enumerate(_PLACE.iter_unpack(places))
                      if where and at + slot > job]  # fmt: skip
    return found[:limit]


def _pages_after(connection: Connection, escrow_no: int, page: int, limit: int) -> list[Row]:
    return connection.execute(
        "SELECT escrow, page, places FROM places WHERE escrow = ? AND page > ? ORDER BY page LIMIT ?",
        (escrow_no, page, limit)).fetchall()


def result_sums(connection: Connection) -> Row:
    """(results that have a place, sums of their escrows' numbers, of their jobs, of their places): a bit that flips
    changes one."""
    count = escrows = jobs = where = 0
    after: Row = (0, -1)
    while rows := connection.execute(
        "SELECT escrow, page, places FROM places WHERE (escrow, page) > (?, ?) ORDER BY escrow, page LIMIT 1000",
        after).fetchall():  # fmt: skip
        for escrow_no, page, packed in rows:
            found = np.frombuffer(packed.ljust(-(-len(packed) // 8) * 8, b"\0"), ">u8")
            slots = np.flatnonzero(found)
            count += slots.size
            escrows += escrow_no * slots.size
            jobs += PAGE * page * slots.size + int(slots.sum())
            where += sum(found.tolist())
        after = rows[-1][:2]
    return count, escrows, jobs, where
