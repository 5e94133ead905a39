"""A store's tables as a numbered list of steps, each with its way back. Version n is the first n steps."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from computemesh.service.store import Connection
from computemesh.trust.errors import InvalidState

Change = str | Callable[[Connection], None]


@dataclass(frozen=True, slots=True)
class Step:
    """`down` undoes `up` and loses nothing that the version before can hold. The first step has no way back."""

    up: Sequence[Change]
    down: Sequence[Change] = ()


def version(connection: Connection) -> int:
    """Steps that were taken; 0 also where they were not counted yet."""
    connection.execute("CREATE TABLE IF NOT EXISTS version (steps INTEGER NOT NULL) STRICT")
    row = connection.execute("SELECT steps FROM version").fetchone()
    return 0 if row is None else int(row[0])


def migrate(connection: Connection, steps: Sequence[Step], to: int | None = None) -> int:
    """Brings the tables to version `to` (None: the newest), in one transaction; the version they had.

    Raises InvalidState where a newer program wrote them, or there is no way to `to`.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        before = version(connection)
        if before > len(steps):
            raise InvalidState(
                f"the tables are of version {before}, this program knows {len(steps)}: run the newer program, or bring "
                f"them to {len(steps)} with it (`mesh db SERVICE --to {len(steps)}`)", reason="STORE_TOO_NEW",
            )
        wanted = len(steps) if to is None else to
        if not 1 <= wanted <= len(steps):
            raise InvalidState(f"there is no version {wanted}, only 1 to {len(steps)}", reason="NO_SUCH_VERSION")
        changes = [change for step in steps[before:wanted] for change in step.up]
        changes += [change for step in reversed(steps[wanted:before]) for change in step.down]
        for change in changes:
            _apply(connection, change)
        if wanted != before:
            connection.execute("DELETE FROM version")
            connection.execute("INSERT INTO version VALUES (?)", (wanted,))
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return before


def _apply(connection: Connection, change: Change) -> None:
    if not isinstance(change, str):
        change(connection)
        return
    try:
        connection.execute(change)
    except sqlite3.OperationalError as error:
        # From before steps were counted there are databases with some of the first step's columns.
        if "duplicate column name" not in str(error):
            raise
