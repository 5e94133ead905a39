"""Where a service keeps its tables: a SQLite file in its folder, or a schema of a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from computemesh.service.migrations import Step, migrate
from computemesh.service.store import Connection, check_strict, open_sqlite, open_sqlite_reader
from computemesh.trust.errors import InvalidArgument


@dataclass(frozen=True, kw_only=True)
class Database:
    """What the configurations of services with tables have in common."""

    # URL of a PostgreSQL database, postgresql://user:password@host:5432/name; empty: SQLite in data_dir. Processes with
    # one database and schema are replicas: one serves, the others stand by.
    database: str = ""
    # Schema of this service in it, made at the first start; empty: the service's name.
    database_schema: str = ""


def open_store(where: Database, path: Path, steps: Sequence[Step]) -> Connection:
    """The connection that writes, its tables brought to the newest version; a replica waits here until it is its turn.

    `path` is the SQLite file, its stem also the schema's default name. Raises InvalidArgument naming the setting,
    InvalidState where a newer program wrote the tables, Unavailable where the server does not answer.
    """
    connection = connect(where, path)
    try:
        migrate(connection, steps)
        check_strict(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def connect(where: Database, path: Path, wait: bool = True) -> Connection:
    """The connection that writes, with the tables as they are. Raises as `open_store`; where another process serves and
    it is not to `wait`, InvalidState."""
    if not where.database:
        return open_sqlite(path)
    return _postgres().open_postgres(where.database, _schema(where, path), wait)


def open_reader(where: Database, path: Path) -> Connection:
    """A connection that only reads, and so sees only what is committed. Raises InvalidArgument."""
    if not where.database:
        return open_sqlite_reader(path)
    return _postgres().Reader(where.database, _schema(where, path))


def _postgres() -> Any:
    try:
        from computemesh.service import postgres
    except ImportError as error:
        problem = f"needs psycopg (pip install 'computemesh[postgresql]'): {error}"
        raise InvalidArgument(f"database: {problem}", violations=[("database", problem)]) from None
    return postgres


def _schema(where: Database, path: Path) -> str:
    return where.database_schema or path.stem
