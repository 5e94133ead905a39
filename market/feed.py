"""The market's feed: what everybody may hear of, numbered, kept for a while. Also pools' names and webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from computemesh.service.store import Connection
from market.kinds import FEED_OF, EventKind, FeedKind
from market.states import Created, Record

SCHEMA: Sequence[str] = (
    """CREATE TABLE IF NOT EXISTS feed (
    cursor INTEGER PRIMARY KEY AUTOINCREMENT, kind INTEGER NOT NULL, time_ms INTEGER NOT NULL, task_id BLOB NOT NULL,
    customer TEXT NOT NULL, pool TEXT NOT NULL, challenge_type TEXT NOT NULL, jobs INTEGER NOT NULL,
    detail TEXT NOT NULL) STRICT""",
    "CREATE INDEX IF NOT EXISTS feed_customer ON feed (customer, cursor)",
    """CREATE TABLE IF NOT EXISTS pools (
    name TEXT PRIMARY KEY, category TEXT NOT NULL, owner TEXT NOT NULL, opened_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS webhooks (
    id BLOB PRIMARY KEY, owner TEXT NOT NULL, url TEXT NOT NULL, filter BLOB NOT NULL, cursor INTEGER NOT NULL,
    failures INTEGER NOT NULL, problem TEXT NOT NULL) STRICT, WITHOUT ROWID""",
)
KEPT = 1_000_000
"""Events that are kept; older ones go."""

_COLUMNS = "kind, time_ms, task_id, customer, pool, challenge_type, jobs, detail"
_OF_TASK = (
    f"INSERT INTO feed ({_COLUMNS})"
    " SELECT ?, ?, task_id, customer, pool, challenge_type, ?, ? FROM tasks WHERE task_id = ?")


class Row(NamedTuple):
    """One event of the feed. `task_id` is empty where it is of none."""

    cursor: int
    kind: int
    time_ms: int
    task_id: bytes
    customer: str
    pool: str
    challenge_type: str
    jobs: int
    detail: str


class PoolRow(NamedTuple):
    """A pool's names."""

    name: str
    category: str
    owner: str
    opened_ms: int


class WebhookRow(NamedTuple):
    """Where somebody wants events; `filter` is a serialised EventFilter."""

    id: bytes
    owner: str
    url: str
    filter: bytes
    cursor: int
    failures: int
    problem: str


def note(connection: Connection, records: Sequence[Record]) -> None:
    """Writes the events that follow from changes of tasks, whose rows are written already."""
    rows: list[tuple[Any, ...]] = []
    for item in records:
        if isinstance(item, Created):
            rows.append((FeedKind.TASKS_ADDED, item.state.updated_ms, item.spec.jobs, "", item.spec.task_id))
            continue
        state = item.state
        rows += [(kind, state.updated_ms, jobs, "", item.task_id) for kind, jobs in item.feed]
        if item.kind in FEED_OF:
            detail = state.status.name if item.kind is EventKind.ENDED else ""
            rows.append((FEED_OF[item.kind], state.updated_ms, state.jobs_settled, detail, item.task_id))
    connection.executemany(_OF_TASK, rows)


def tell(connection: Connection, kind: FeedKind, time_ms: int, owner: str, pool: str, detail: str) -> None:
    """Writes an event of a pool or model."""
    connection.execute(f"INSERT INTO feed ({_COLUMNS}) VALUES (?, ?, x'', ?, ?, '', 0, ?)",
                       (kind, time_ms, owner, pool, detail))  # fmt: skip


def last_cursor(connection: Connection) -> int:
    """Cursor of the newest event; 0 before the first."""
    (cursor,) = connection.execute("SELECT coalesce(max(cursor), 0) FROM feed").fetchone()
    return int(cursor)


def after(
    connection: Connection, cursor: int, limit: int, kinds: Sequence[int], task_id: bytes, customer: str,
    pool: str,
) -> tuple[list[Row], int]:  # fmt: skip
    """Events after `cursor` that match (empty matches all), at most `limit`; and the cursor up to which was looked."""
    newest = last_cursor(connection)
    where, values = "cursor > ?", list[Any]([cursor])
    for column, value in (("task_id", task_id), ("customer", customer), ("pool", pool)):
        if value:
            where, values = f"{where} AND {column} = ?", [*values, value]
    if kinds:
        where, values = f"{where} AND kind IN ({', '.join('?' * len(kinds))})", [*values, *kinds]
    found = connection.execute(
        f"SELECT cursor, {_COLUMNS} FROM feed WHERE {where} ORDER BY cursor LIMIT ?", (*values, limit))
    rows = [Row(*row) for row in found]
    return rows, rows[-1].cursor if len(rows) == limit else max(newest, cursor)


def prune(connection: Connection) -> None:
    """Forgets the oldest events beyond `KEPT`."""
    connection.execute("DELETE FROM feed WHERE cursor <= ?", (last_cursor(connection) - KEPT,))


def put_pool(connection: Connection, row: PoolRow) -> bool:
    """Keeps a pool's names; whether they are new."""
    return connection.execute("INSERT INTO pools VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", row).rowcount > 0


def pools_after(connection: Connection, name: str, category: str, limit: int) -> list[PoolRow]:
    """Pools after a name, in order; an empty category matches all."""
    rows = connection.execute(
        "SELECT * FROM pools WHERE name > ? AND (? = '' OR category = ?) ORDER BY name LIMIT ?",
        (name, category, category, limit))
    return [PoolRow(*row) for row in rows]


def put_webhook(connection: Connection, row: WebhookRow) -> None:
    """Writes a webhook, new or further on."""
    connection.execute(
        "INSERT INTO webhooks VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET owner = excluded.owner,"
        " url = excluded.url, filter = excluded.filter, cursor = excluded.cursor, failures = excluded.failures,"
        " problem = excluded.problem", row)


def move_webhook(connection: Connection, row: WebhookRow) -> None:
    """Writes how far a webhook got, unless it was removed meanwhile."""
    connection.execute("UPDATE webhooks SET cursor = ?, failures = ?, problem = ? WHERE id = ?",
                       (row.cursor, row.failures, row.problem, row.id))  # fmt: skip


def webhooks(connection: Connection) -> list[WebhookRow]:
    """Every webhook."""
    return [WebhookRow(*row) for row in connection.execute("SELECT * FROM webhooks ORDER BY id")]


def drop_webhook(connection: Connection, hook: bytes, owner: str) -> bool:
    """Forgets a webhook of this owner; whether there was one."""
    return connection.execute("DELETE FROM webhooks WHERE id = ? AND owner = ?", (hook, owner)).rowcount > 0
