"""The market's tables and the named SQL on them. Times are Unix ms, amounts base units."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from computemesh.service.migrations import Step
from computemesh.service.store import Connection
from market import feed
from market.kinds import EventKind
from market.states import (
    TERMINAL,
    Cause,
    Changed,
    Created,
    Intent,
    IntentKind,
    Phase,
    Record,
    Spec,
    State,
    Status,
)

_SPEC = (
    "task_id", "request_id", "customer_key", "customer", "challenge_type", "payload", "reward_units", "deadline_ms",
    "priority", "jobs", "created_ms", "order_bytes", "order_signature", "names", "traceparent",
    "labels",
)  # fmt: skip
_STATE = (
    "status", "phase", "cursor", "updated_ms", "ended_ms", "jobs_settled", "jobs_running", "detail", "result_hash",
    "block_height", "refunded_units", "epoch", "orchestrator_key", "orchestrator_address", "files",
)  # fmt: skip
_INTENT = ("intent_kind", "intent_tx_id", "intent_cause")

_STATE_COLUMNS = """
    status INTEGER NOT NULL, phase INTEGER NOT NULL, cursor INTEGER NOT NULL, updated_ms INTEGER NOT NULL,
    ended_ms INTEGER NOT NULL, jobs_settled INTEGER NOT NULL, jobs_running INTEGER NOT NULL, detail TEXT NOT NULL,
    result_hash BLOB NOT NULL, block_height INTEGER NOT NULL, refunded_units INTEGER NOT NULL, epoch INTEGER NOT NULL,
    orchestrator_key BLOB NOT NULL, orchestrator_address TEXT NOT NULL"""

FILE = "market.sqlite"
_FIRST: Sequence[str] = (
    f"""CREATE TABLE IF NOT EXISTS tasks (
    number INTEGER PRIMARY KEY,
    task_id BLOB NOT NULL UNIQUE, request_id BLOB NOT NULL, customer_key BLOB NOT NULL, customer TEXT NOT NULL,
    challenge_type TEXT NOT NULL, payload BLOB NOT NULL, reward_units INTEGER NOT NULL, deadline_ms INTEGER NOT NULL,
    priority INTEGER NOT NULL, jobs INTEGER NOT NULL, created_ms INTEGER NOT NULL, order_bytes BLOB NOT NULL,
    order_signature BLOB NOT NULL, {_STATE_COLUMNS}) STRICT""",
    "CREATE UNIQUE INDEX IF NOT EXISTS tasks_request ON tasks (customer_key, request_id)",
    "CREATE INDEX IF NOT EXISTS tasks_customer ON tasks (customer, number)",
    f"CREATE INDEX IF NOT EXISTS tasks_live ON tasks (number) WHERE phase < {int(Phase.ENDED)}",
    f"""CREATE TABLE IF NOT EXISTS task_events (
    task_id BLOB NOT NULL, event_cursor INTEGER NOT NULL, kind INTEGER NOT NULL, {_STATE_COLUMNS},
    PRIMARY KEY (task_id, event_cursor)) STRICT, WITHOUT ROWID""",
    # Orders whose money may be held already though the task is not written yet. `keep`: the customer named the request
    # and can repeat it, so the order becomes the task; otherwise the money goes back.
    """CREATE TABLE IF NOT EXISTS drafts (
    task_id BLOB PRIMARY KEY, request_id BLOB NOT NULL, customer_key BLOB NOT NULL, customer TEXT NOT NULL,
    challenge_type TEXT NOT NULL, payload BLOB NOT NULL, reward_units INTEGER NOT NULL, deadline_ms INTEGER NOT NULL,
    priority INTEGER NOT NULL, jobs INTEGER NOT NULL, created_ms INTEGER NOT NULL, order_bytes BLOB NOT NULL,
    order_signature BLOB NOT NULL, keep INTEGER NOT NULL) STRICT""",
    """CREATE TABLE IF NOT EXISTS models (
    model_id TEXT PRIMARY KEY, artifact TEXT NOT NULL, owner TEXT NOT NULL, registered_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    # Transactions owed to the ledger: written with the change that needs them, removed once the ledger answered.
    """CREATE TABLE IF NOT EXISTS intents (
    task_id BLOB PRIMARY KEY, intent_kind INTEGER NOT NULL, intent_tx_id BLOB NOT NULL,
    intent_cause INTEGER NOT NULL) STRICT, WITHOUT ROWID""",
    *feed.SCHEMA,
)
_LATER = (
    ("tasks", "names", "TEXT NOT NULL DEFAULT '{}'"), ("drafts", "names", "TEXT NOT NULL DEFAULT '{}'"),
    ("tasks", "labels", "TEXT NOT NULL DEFAULT '{}'"), ("drafts", "labels", "TEXT NOT NULL DEFAULT '{}'"),
    ("tasks", "files", "BLOB NOT NULL DEFAULT x''"), ("task_events", "files", "BLOB NOT NULL DEFAULT x''"),
    ("tasks", "traceparent", "TEXT NOT NULL DEFAULT ''"), ("drafts", "traceparent", "TEXT NOT NULL DEFAULT ''"),
)  # fmt: skip


class ModelRow(NamedTuple):
    """A registered name; `artifact` as 64 hexadecimal characters."""

    model_id: str
    artifact: str
    owner: str
    registered_ms: int


def _pools(connection: Connection) -> None:
    for number, labels in connection.execute("SELECT number, labels FROM tasks WHERE labels != '{}'").fetchall():
        connection.execute("UPDATE tasks SET pool = ? WHERE number = ?", (_pool(labels), number))


STEPS = (
    Step(up=(*_FIRST, *(f"ALTER TABLE {table} ADD COLUMN {name} {kind}" for table, name, kind in _LATER))),
    # The pool a task is for, which its labels name too: the feed is asked for it.
    Step(up=("ALTER TABLE tasks ADD COLUMN pool TEXT NOT NULL DEFAULT ''", _pools),
         down=("ALTER TABLE tasks DROP COLUMN pool",)),
)  # fmt: skip


def _pool(labels: str) -> str:
    return str(json.loads(labels).get("pool", ""))


def _marks(names: Sequence[str]) -> str:
    return ", ".join("?" * len(names))


_INSERT_TASK = (
    f"INSERT INTO tasks ({', '.join((*_SPEC, *_STATE))}, pool) VALUES ({_marks((*_SPEC, *_STATE))}, ?)")
_UPDATE_TASK = f"UPDATE tasks SET {', '.join(f'{name} = ?' for name in _STATE)} WHERE task_id = ?"
_INSERT_EVENT = (
    f"INSERT INTO task_events (task_id, event_cursor, kind, {', '.join(_STATE)}) VALUES (?, ?, ?, {_marks(_STATE)})")
_PUT_INTENT = (
    f"INSERT INTO intents (task_id, {', '.join(_INTENT)}) VALUES (?, ?, ?, ?)"
    f" ON CONFLICT (task_id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _INTENT)}")
_DROP_INTENT = "DELETE FROM intents WHERE task_id = ?"
_PUT_DRAFT = (
    f"INSERT INTO drafts ({', '.join(_SPEC)}, keep) VALUES ({_marks(_SPEC)}, ?) ON CONFLICT (task_id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in (*_SPEC[1:], "keep")))
_DROP_DRAFT = "DELETE FROM drafts WHERE task_id = ?"
_TASK_COLUMNS = ", ".join(f"tasks.{name}" for name in (*_SPEC, *_STATE))
_SELECT_TASK = (
    f"SELECT {_TASK_COLUMNS}, {', '.join(_INTENT)}, tasks.number FROM tasks"
    " LEFT JOIN intents ON intents.task_id = tasks.task_id")

Stored = tuple[Spec, State]


def _spec_row(spec: Spec) -> tuple[Any, ...]:
    return (spec.task_id, spec.request_id, spec.customer_key, spec.customer, spec.challenge_type, spec.payload,
            spec.reward_units, spec.deadline_ms, spec.priority, spec.jobs, spec.created_ms, spec.order,
            spec.order_signature, spec.references, spec.traceparent,
            spec.labels)  # fmt: skip


def _state_row(state: State) -> tuple[Any, ...]:
    return (int(state.status), int(state.phase), state.cursor, state.updated_ms, state.ended_ms, state.jobs_settled,
            state.jobs_running, state.detail, state.result_hash, state.block_height, state.refunded_units, state.epoch,
            state.orchestrator_key, state.orchestrator_address, state.files)  # fmt: skip


def _state(row: Sequence[Any], intent: Intent | None = None) -> State:
    return State(Status(row[0]), Phase(row[1]), *row[2 : len(_STATE)], intent)  # type: ignore[call-arg]


def _stored(row: Sequence[Any]) -> Stored:
    first, last = len(_SPEC), len(_SPEC) + len(_STATE)
    kind, tx_id, cause = row[last : last + 3]
    intent = None if kind is None else Intent(IntentKind(kind), tx_id, Cause(cause))
    return Spec(*row[:first]), _state(row[first:last], intent)


def record(connection: Connection, records: Sequence[Record]) -> None:
    """Writes the records of one step, in order. Only the last state of a task is kept beside its events."""
    last: dict[bytes, State] = {}
    events: list[tuple[Any, ...]] = []
    for item in records:
        if isinstance(item, Created):
            connection.execute(_INSERT_TASK, (*_spec_row(item.spec), *_state_row(item.state), _pool(item.spec.labels)))
            task_id, kind = item.spec.task_id, EventKind.CREATED
            connection.execute(_DROP_DRAFT, (task_id,))
        else:
            task_id, last[item.task_id] = item.task_id, item.state
            if item.kind is None:
                continue
            kind = item.kind
        events.append((task_id, item.state.cursor, int(kind), *_state_row(item.state)))
    connection.executemany(_UPDATE_TASK, [(*_state_row(state), task_id) for task_id, state in last.items()])
    connection.executemany(_INSERT_EVENT, events)
    feed.note(connection, records)
    connection.executemany(
        _PUT_INTENT,
        [(task_id, int(s.intent.kind), s.intent.tx_id, int(s.intent.cause)) for task_id, s in last.items() if s.intent])
    connection.executemany(_DROP_INTENT, [(task_id,) for task_id, s in last.items() if s.intent is None])


def put_draft(connection: Connection, spec: Spec, keep: bool) -> None:
    """Notes an order before its money is held."""
    connection.execute(_PUT_DRAFT, (*_spec_row(spec), int(keep)))


def drop_draft(connection: Connection, task_id: bytes) -> None:
    """Forgets an order whose money is not held, or whose task is written."""
    connection.execute(_DROP_DRAFT, (task_id,))


def drafts(connection: Connection) -> list[tuple[Spec, bool]]:
    """Orders in doubt, with whether they become tasks."""
    rows = connection.execute(f"SELECT {', '.join(_SPEC)}, keep FROM drafts").fetchall()
    return [(Spec(*row[:-1]), bool(row[-1])) for row in rows]


def live_tasks(connection: Connection) -> list[Stored]:
    """Every task that has not ended, in order of creation."""
    rows = connection.execute(f"{_SELECT_TASK} WHERE phase < {int(Phase.ENDED)} ORDER BY tasks.number")
    return [_stored(row) for row in rows]


def task(connection: Connection, task_id: bytes) -> Stored | None:
    """One task."""
    row = connection.execute(f"{_SELECT_TASK} WHERE tasks.task_id = ?", (task_id,)).fetchone()
    return None if row is None else _stored(row)


def task_of_request(connection: Connection, customer_key: bytes, request_id: bytes) -> Stored | None:
    """The task an earlier request made."""
    row = connection.execute(
        f"{_SELECT_TASK} WHERE customer_key = ? AND request_id = ?", (customer_key, request_id)).fetchone()
    return None if row is None else _stored(row)


def list_tasks(
    connection: Connection, customer: str, status: int, challenge_type: str, before: int, offset: int,
    limit: int,
) -> tuple[list[Stored], int, int]:
    """A page, newest first: tasks below number `before` (0: from the newest) after `offset` of them; the total that
    match the filters (0 and "" match all); and the number of the last task where more follow, else 0."""
    where, values = "customer = ?", list[Any]([customer])
    if status:
        where, values = f"{where} AND status = ?", [*values, status]
    if challenge_type:
        where, values = f"{where} AND challenge_type = ?", [*values, challenge_type]
    (total,) = connection.execute(f"SELECT COUNT(*) FROM tasks WHERE {where}", values).fetchone()
    rows = connection.execute(
        f"{_SELECT_TASK} WHERE {where} AND (? = 0 OR tasks.number < ?) ORDER BY tasks.number DESC LIMIT ? OFFSET ?",
        (*values, before, before, limit + 1, offset)).fetchall()
    more = rows[limit - 1][-1] if len(rows) > limit else 0
    return [_stored(row) for row in rows[:limit]], total, more


def events_after(connection: Connection, task_id: bytes, cursor: int, limit: int) -> list[Changed]:
    """Events of a task after `cursor`, in order, at most `limit`."""
    rows = connection.execute(
        f"SELECT kind, {', '.join(_STATE)} FROM task_events WHERE task_id = ? AND event_cursor > ?"
        " ORDER BY event_cursor LIMIT ?", (task_id, cursor, limit))
    return [Changed(task_id, _state(row[1:]), EventKind(row[0])) for row in rows]


def ended_among(connection: Connection, task_ids: Iterable[bytes]) -> list[tuple[bytes, Status]]:
    """Those of the tasks that ended, with how."""
    found = []
    for task_id in task_ids:
        row = connection.execute("SELECT status FROM tasks WHERE task_id = ?", (task_id,)).fetchone()
        if row is not None and row[0] in TERMINAL:
            found.append((task_id, Status(row[0])))
    return found


def put_model(connection: Connection, row: ModelRow) -> None:
    """Gives a name an artifact."""
    connection.execute(
        "INSERT INTO models VALUES (?, ?, ?, ?) ON CONFLICT (model_id) DO UPDATE SET artifact = excluded.artifact,"
        " owner = excluded.owner, registered_ms = excluded.registered_ms", row)


def model(connection: Connection, name: str) -> ModelRow | None:
    """One registered name."""
    row = connection.execute("SELECT * FROM models WHERE model_id = ?", (name,)).fetchone()
    return None if row is None else ModelRow(*row)


def models_after(connection: Connection, name: str, limit: int) -> list[ModelRow]:
    """Registered names after one, in order."""
    rows = connection.execute("SELECT * FROM models WHERE model_id > ? ORDER BY model_id LIMIT ?", (name, limit))
    return [ModelRow(*row) for row in rows]


def artifacts_of_models(connection: Connection, names: Sequence[str]) -> dict[str, str]:
    """Artifact of each of these names that is registered."""
    found = ((name, model(connection, name)) for name in names)
    return {name: row.artifact for name, row in found if row is not None}
