"""SQLite as it must be opened, and group commit over it or what stands in for it.

`synchronous=FULL` in WAL mode makes a commit durable before it returns (https://sqlite.org/pragma.html#pragma_synchronous);
with NORMAL, power loss takes acknowledged transactions.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog

from computemesh.service import metrics
from computemesh.service.crashpoints import crash_point

T = TypeVar("T")


class Rows(Protocol):
    """What a statement found, or how many rows it changed."""

    rowcount: int

    def fetchone(self) -> Any:
        """The next row, None after the last."""

    def fetchall(self) -> list[Any]:
        """Every other row."""

    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """What stores use of a database: `sqlite3.Connection` has it, `computemesh.service.postgres.Connection` too."""

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Rows:
        """Runs one statement in SQLite's SQL, `?` for each value."""

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]], /) -> Any:
        """Runs one statement for each row."""

    def close(self) -> None:
        """Ends it; what was not committed is gone."""


Operation = Callable[[Connection], T]
_Item = tuple[Operation[Any], bool, asyncio.AbstractEventLoop | None, asyncio.Future[Any] | None]
log = structlog.get_logger("computemesh.store")
_MAX_GROUP = 1024
_PING_S = 3.0


def open_sqlite(path: str | Path, schema: Sequence[str] = ()) -> sqlite3.Connection:
    """Opens or creates the database at `path` and runs `schema` (idempotent statements; tables must be STRICT).

    WAL, `synchronous=FULL` and STRICT are asserted, not assumed. The connection is in autocommit mode: whoever uses it
    writes BEGIN and COMMIT. May be used from one thread at a time, whichever that is.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA busy_timeout=5000")
    for statement in schema:
        connection.execute(statement)
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
    if mode != "wal" or synchronous != 2:
        raise RuntimeError(f"{path}: journal_mode={mode} synchronous={synchronous}, need wal and 2 (FULL)")
    check_strict(connection)
    crash_point("store.opened")
    return connection


def check_strict(connection: Connection) -> None:
    """Raises RuntimeError for a table of SQLite that takes values of any type."""
    if not isinstance(connection, sqlite3.Connection):
        return
    for _, name, kind, _, _, strict in connection.execute("PRAGMA table_list").fetchall():
        if kind == "table" and not name.startswith("sqlite_") and not strict:
            raise RuntimeError(f"table {name} is not STRICT")


def open_sqlite_reader(path: str | Path) -> sqlite3.Connection:
    """A connection that only reads."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA query_only=1")
    connection.execute("PRAGMA busy_timeout=5000")
    return connection


class GroupCommit:
    """One writer thread. Operations submitted while one group is being made durable form the next: the fsync is
    shared, there is no timer. Results resolve after COMMIT, in the order of submission.

    What nobody waits for is deferred: it joins whatever is submitted next, and costs no fsync of its own.

    An operation that raises a non-database error undoes the whole group, so operations must only fail where the
    database itself does; then the process ends, because after a failed fsync nothing is known (fsyncgate, 2018), nor
    after a lost connection. A server is asked now and then whether it is still there: with it goes the right to serve.
    """

    def __init__(self, connection: Connection, on_fatal: Callable[[BaseException], None] | None = None) -> None:
        self._connection = connection
        self._ping_s = None if isinstance(connection, sqlite3.Connection) else _PING_S
        self._on_fatal = on_fatal or _end_process
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._deferred: list[Operation[Any]] = []
        self._thread = threading.Thread(target=self._run, name="group-commit", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation[T]) -> asyncio.Future[T]:
        """Queues `operation`; the future resolves with its value once the group is durable."""
        return self._put(operation, True)

    def defer(self, operation: Operation[Any]) -> None:
        """Runs `operation` just before what is submitted next, in the same transaction; `flush` is a time limit."""
        self._deferred.append(operation)

    def flush(self) -> None:
        """Begins to make durable what was deferred."""
        if self._deferred:
            self._put(_nothing, True)

    async def commit(self, operation: Operation[T]) -> T:
        """Runs `operation` in the next group and returns its value once that is durable."""
        return await self._put(operation, True)

    async def read(self, operation: Operation[T]) -> T:
        """Runs a read in the writer thread, after everything submitted before it."""
        return await self._put(operation, False)

    def close(self) -> None:
        """Finishes what is queued or deferred and closes the database."""
        if self._deferred:
            self._queue.put((_after(self._deferred, _nothing), True, None, None))
        self._queue.put(None)
        self._thread.join()
        self._connection.close()

    def _put(self, operation: Operation[T], writes: bool) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if self._deferred:
            operation, writes, self._deferred = _after(self._deferred, operation), True, []
        self._queue.put((operation, writes, loop, future))
        return future

    def _run(self) -> None:
        while True:
            group = [self._next()]
            while len(group) < _MAX_GROUP and group[-1] is not None:
                try:
                    group.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            work = [item for item in group if item is not None]
            if work:
                try:
                    self._run_group(work)
                except BaseException as error:  # nothing is known about the disk's state any more
                    self._on_fatal(error)
                    return
            if group[-1] is None:
                return

    def _next(self) -> _Item | None:
        try:
            return self._queue.get(timeout=self._ping_s)
        except queue.Empty:
            return _ping, False, None, None

    def _run_group(self, work: list[_Item]) -> None:
        writes = any(item[1] for item in work)
        began = time.perf_counter()
        if writes:
            self._connection.execute("BEGIN IMMEDIATE")
            crash_point("commit.begun")
        values = [operation(self._connection) for operation, _, _, _ in work]
        if writes:
            crash_point("commit.written")
            self._connection.execute("COMMIT")
            crash_point("commit.durable")
            metrics.COMMIT_SECONDS.observe(time.perf_counter() - began)
            metrics.COMMIT_OPERATIONS.observe(len(work))
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
        for (_, _, loop, future), value in zip(work, values, strict=True):
            if loop is not None and future is not None:
                by_loop.setdefault(loop, []).append((future, value))
        for loop, pairs in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_resolve, pairs)


def _nothing(connection: Connection) -> None:
    return None


def _ping(connection: Connection) -> None:
    connection.execute("SELECT 1")


def _after(first: Sequence[Operation[Any]], last: Operation[T]) -> Operation[T]:
    def run(connection: Connection) -> T:
        for operation in first:
            operation(connection)
        return last(connection)

    return run


def _resolve(pairs: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, value in pairs:
        if not future.done():
            future.set_result(value)


def _end_process(error: BaseException) -> None:
    log.critical("storage failed; ending the process", error=repr(error), exc_info=error)
    os._exit(70)
