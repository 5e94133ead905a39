"""What survives a restart: named SQL over the orchestrator's own database, nothing else.

One row per batch, audit or settle transaction, never one per job. Columns of a batch are joined bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from struct import pack, unpack
from typing import Any

from computemesh.service.migrations import Step
from computemesh.service.store import Connection
from computemesh.trust.statement import COMMITMENT, CommitmentRow
from orchestrator import events as e

OPEN, DECIDED, CLOSED = 0, 1, 2

FILE = "orchestrator.db"
_FIRST = (
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT",
    """CREATE TABLE IF NOT EXISTS tasks (
         task_id BLOB PRIMARY KEY, epoch INTEGER NOT NULL, raw BLOB NOT NULL, status INTEGER NOT NULL,
         completed INTEGER NOT NULL DEFAULT 0, detail TEXT NOT NULL DEFAULT '', root BLOB NOT NULL DEFAULT x'',
         height INTEGER NOT NULL DEFAULT 0, settled INTEGER NOT NULL DEFAULT 0, states BLOB NOT NULL DEFAULT x''
       ) STRICT""",
    "CREATE INDEX IF NOT EXISTS tasks_open ON tasks (status) WHERE status < 2",
    """CREATE TABLE IF NOT EXISTS batches (
         id INTEGER PRIMARY KEY, worker_key BLOB NOT NULL, commitments BLOB NOT NULL, signature BLOB NOT NULL,
         bindings BLOB NOT NULL) STRICT""",
    """CREATE TABLE IF NOT EXISTS batch_tasks (
         task_id BLOB NOT NULL, first_job INTEGER NOT NULL, last_job INTEGER NOT NULL, batch_id INTEGER NOT NULL,
         PRIMARY KEY (task_id, batch_id)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS judgements (
         id INTEGER PRIMARY KEY, batch_id INTEGER NOT NULL, positions BLOB NOT NULL, accepted BLOB NOT NULL,
         proofs BLOB NOT NULL, seed BLOB NOT NULL, k INTEGER NOT NULL, openings BLOB NOT NULL) STRICT""",
    "CREATE INDEX IF NOT EXISTS judgements_batch ON judgements (batch_id)",
    """CREATE TABLE IF NOT EXISTS settles (
         seq INTEGER PRIMARY KEY, tx_id BLOB NOT NULL UNIQUE, body BLOB NOT NULL, answered INTEGER NOT NULL DEFAULT 0,
         refused BLOB NOT NULL DEFAULT x'', reasons TEXT NOT NULL DEFAULT '', height INTEGER NOT NULL DEFAULT 0
       ) STRICT""",
    "CREATE INDEX IF NOT EXISTS settles_open ON settles (seq) WHERE answered = 0",
    """CREATE TABLE IF NOT EXISTS settle_tasks (
         task_id BLOB NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (task_id, seq)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS results (
         task_id BLOB NOT NULL, job INTEGER NOT NULL, result_hash BLOB NOT NULL,
         PRIMARY KEY (task_id, job)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS replications (
         batch_id INTEGER NOT NULL, position INTEGER NOT NULL, kind INTEGER NOT NULL,
         PRIMARY KEY (batch_id, position)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS rewards (
         tx_id BLOB PRIMARY KEY, worker_key BLOB NOT NULL, reward_units INTEGER NOT NULL,
         state INTEGER NOT NULL DEFAULT 0) STRICT, WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS rewards_owed ON rewards (tx_id) WHERE state = 0",
    "CREATE TABLE IF NOT EXISTS beacons (epoch INTEGER PRIMARY KEY) STRICT",
)
_LATER = {
    "tasks": {"artifacts": "BLOB NOT NULL DEFAULT x''"},
    "batches": {
        "outputs": "BLOB NOT NULL DEFAULT x''", "unit_digests": "BLOB NOT NULL DEFAULT x''",
        "env_class": "TEXT NOT NULL DEFAULT ''",
    },
    "results": {"output": "BLOB NOT NULL DEFAULT x''"},
    "judgements": {"uploaded": "BLOB NOT NULL DEFAULT x''", "epoch": "INTEGER NOT NULL DEFAULT 0"},
}  # fmt: skip


STEPS = (
    Step(up=(*_FIRST, *(f"ALTER TABLE {table} ADD COLUMN {name} {kind}"
                        for table, columns in _LATER.items() for name, kind in columns.items()))),
)  # fmt: skip


def start(connection: Connection) -> tuple[int, int]:
    """Count this start: (boot number, first free batch id). The caller's thread owns the connection."""
    connection.execute(
        "INSERT INTO meta VALUES ('boot', 1) ON CONFLICT (name) DO UPDATE SET value = meta.value + 1"
    )
    (boot,) = connection.execute("SELECT value FROM meta WHERE name = 'boot'").fetchone()
    (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM batches").fetchone()
    return boot, last + 1


def write(connection: Connection, records: Iterable[e.Persist]) -> None:
    """Write what one step wants durable."""
    for record in records:
        _WRITERS[type(record)](connection, record)


def _save_task(connection: Connection, row: e.SaveTask) -> None:
    connection.execute(
        """INSERT INTO tasks (task_id, epoch, raw, status) VALUES (?, ?, ?, 0) ON CONFLICT (task_id)
           DO UPDATE SET epoch = excluded.epoch, raw = excluded.raw, status = 0""",
        (row.task_id, row.epoch, row.raw),
    )
    outputs = {(job, result_hash): output for job, result_hash, output in row.outputs}
    connection.executemany(
        "INSERT INTO results (task_id, job, result_hash, output) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [(row.task_id, job, found, outputs.get((job, found), b"")) for job, found in row.settled],
    )


def _save_batch(connection: Connection, row: e.SaveBatch) -> None:
    batch = row.batch
    spans: dict[bytes, tuple[int, int]] = {}
    bindings, bound = bytearray(), False
    for lease in batch.leases:
        if lease is None:
            bindings += bytes(32)
            continue
        first, last = spans.get(lease.task.id, (lease.index, lease.index))
        spans[lease.task.id] = (min(first, lease.index), max(last, lease.index))
        binding = lease.spec.binding
        bound = bound or bool(binding)
        bindings += binding or bytes(32)
    connection.execute(
        """INSERT INTO batches (id, worker_key, commitments, signature, bindings, outputs, unit_digests, env_class)
           VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
        (
            batch.id, batch.key, batch.commitments, batch.signature, bytes(bindings) if bound else b"",
            _column(batch.outputs), _column(batch.unit_digests), batch.env_class,
        ),
    )  # fmt: skip
    connection.executemany(
        "INSERT INTO batch_tasks VALUES (?, ?, ?, ?)",
        [(task_id, first, last, batch.id) for task_id, (first, last) in spans.items()],
    )


def _column(digests: Sequence[bytes]) -> bytes:
    """32 bytes each, zeros where there is none; empty where there are none at all."""
    return b"".join(digest or bytes(32) for digest in digests) if any(digests) else b""


def _save_judgement(connection: Connection, row: e.SaveJudgement) -> None:
    event = row.event
    opened = b"".join(pack(">I", len(data)) + data for data in event.openings)
    connection.execute(
        """INSERT INTO judgements (batch_id, positions, accepted, proofs, seed, k, openings, uploaded, epoch)
           VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)""",
        (
            event.batch.id, pack(f">{len(event.positions)}I", *event.positions), bytes(event.accepted),
            b"".join(event.proofs), event.batch.seed if event.openings else b"", event.k, opened,
            _column(event.uploaded),
            event.batch.beacon_epoch if event.openings else 0,
        ),
    )  # fmt: skip


def save_settle(connection: Connection, tx_id: bytes, body: bytes, task_ids: Sequence[bytes]) -> None:
    """A settle transaction about to be sent for the first time."""
    ((seq,),) = connection.execute(
        "INSERT INTO settles (tx_id, body) VALUES (?, ?) RETURNING seq", (tx_id, body)
    ).fetchall()
    connection.executemany("INSERT INTO settle_tasks VALUES (?, ?)", [(task_id, seq) for task_id in task_ids])


def _save_answer(connection: Connection, row: e.SaveAnswer) -> None:
    event = row.event
    connection.execute(
        "UPDATE settles SET answered = 1, refused = ?, reasons = ?, height = ? WHERE tx_id = ?",
        (
            pack(f">{len(event.refused)}I", *event.refused), ",".join(event.refused.values()), event.height,
            event.tx_id,
        ),
    )  # fmt: skip


def _save_replication(connection: Connection, row: e.SaveReplication) -> None:
    connection.execute(
        """INSERT INTO replications VALUES (?, ?, ?)
           ON CONFLICT (batch_id, position) DO UPDATE SET kind = excluded.kind""",
        (row.batch.id, row.position, row.kind),
    )
    if row.reward_units:
        connection.execute(
            "INSERT INTO rewards (tx_id, worker_key, reward_units) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (row.tx_id, row.batch.key, row.reward_units),
        )


def _save_result(connection: Connection, row: e.SaveResult) -> None:
    connection.execute(
        "INSERT INTO results (task_id, job, result_hash) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (row.task_id, row.job, row.result_hash),
    )


def _save_outcome(connection: Connection, row: e.SaveOutcome) -> None:
    connection.execute(
        """UPDATE tasks SET status = 1, epoch = ?, completed = ?, detail = ?, root = ?, height = ?, settled = ?,
           states = ?, artifacts = ? WHERE task_id = ?""",
        (
            row.epoch, row.completed, row.detail, row.root, row.height, row.settled, zlib.compress(row.states, 1),
            row.artifacts, row.task_id,
        ),
    )  # fmt: skip


def _close_task(connection: Connection, row: e.CloseTask) -> None:
    connection.execute(
        "UPDATE tasks SET status = 2, states = ? WHERE task_id = ?", (zlib.compress(row.states, 1), row.task_id)
    )


_WRITERS: dict[type[Any], Callable[[Connection, Any], None]] = {
    e.SaveTask: _save_task,
    e.SaveBatch: _save_batch,
    e.SaveJudgement: _save_judgement,
    e.SaveReplication: _save_replication,
    e.SaveAnswer: _save_answer,
    e.SaveResult: _save_result,
    e.SaveOutcome: _save_outcome,
    e.CloseTask: _close_task,
}


def rewards_owed(connection: Connection, most: int) -> list[tuple[bytes, bytes, int]]:
    """(transfer's id, worker key, reward of its job in base units) of replicas whose transfer the ledger has
    not answered."""
    return connection.execute(
        "SELECT tx_id, worker_key, reward_units FROM rewards WHERE state = 0 LIMIT ?", (most,)
    ).fetchall()


def rewards_answered(connection: Connection, answers: dict[bytes, bool]) -> None:
    """The ledger applied these replicas' transfers, or refused them."""
    rows = [(1 if paid else 2, tx_id) for tx_id, paid in answers.items()]
    connection.executemany("UPDATE rewards SET state = ? WHERE tx_id = ?", rows)


def owe_beacon(connection: Connection, epoch: int) -> None:
    """An epoch is sealed: its secret is to be revealed."""
    connection.execute("INSERT INTO beacons VALUES (?) ON CONFLICT DO NOTHING", (epoch,))


def beacon_revealed(connection: Connection, epoch: int) -> None:
    """An epoch's secret is out."""
    connection.execute("DELETE FROM beacons WHERE epoch = ?", (epoch,))


def beacons_owed(connection: Connection) -> list[int]:
    """Epochs whose secret is to be revealed."""
    return [row[0] for row in connection.execute("SELECT epoch FROM beacons ORDER BY epoch")]


# ---- reads ---------------------------------------------------------------------------------------------------------
def open_tasks(connection: Connection) -> list[tuple[bytes, int, bytes, int, int, str, bytes, int, bytes]]:
    """(task_id, epoch, raw, status, completed, detail, root, height, artifacts) of tasks the market has not closed."""
    return connection.execute(
        "SELECT task_id, epoch, raw, status, completed, detail, root, height, artifacts FROM tasks WHERE status < 2"
    ).fetchall()


def outputs_of(connection: Connection, task_id: bytes) -> list[tuple[int, bytes, bytes]]:
    """(job, result hash, SHA-256 of the output) of every job of a task that passed its audit, here or elsewhere."""
    found = connection.execute(
        "SELECT job, result_hash, output FROM results WHERE task_id = ? AND output != x''", (task_id,)
    ).fetchall()
    for batch_id, commitments, outputs in connection.execute(
        """SELECT id, commitments, outputs FROM batch_tasks JOIN batches ON id = batch_id
           WHERE task_id = ? AND outputs != x'' ORDER BY id""",
        (task_id,),
    ).fetchall():
        for position, row in jobs_in(commitments, task_id):
            judgement = judgement_of(connection, batch_id, position)
            if judgement is not None and judgement[0]:
                found.append((row[2], row[6], outputs[32 * position : 32 * position + 32]))
    return found


def artifacts_of(connection: Connection, batch_id: int, position: int) -> tuple[bytes, bytes, str]:
    """(output, unit digests, env_class) of one commitment; artifacts as SHA-256, empty where there are none."""
    row = connection.execute(
        "SELECT outputs, unit_digests, env_class FROM batches WHERE id = ?", (batch_id,)
    ).fetchone()
    return _item(row[0], position), _item(row[1], position), row[2]


def _item(column: bytes, at: int) -> bytes:
    """An item of a `_column`, empty where there is none."""
    found = column[32 * at : 32 * at + 32]
    return b"" if found == bytes(32) else found


def results_of(connection: Connection, task_id: bytes) -> list[tuple[int, bytes]]:
    """(job, result hash) of jobs that others settled."""
    return connection.execute("SELECT job, result_hash FROM results WHERE task_id = ?", (task_id,)).fetchall()


def open_settles(connection: Connection) -> list[tuple[bytes, bytes, bool, dict[int, str], int]]:
    """(tx_id, body, answered, refused, height): unanswered ones, and all that touch an open task, in order."""
    rows = connection.execute(
        """SELECT tx_id, body, answered, refused, reasons, height FROM settles WHERE answered = 0 OR seq IN
           (SELECT seq FROM settle_tasks JOIN tasks USING (task_id) WHERE status < 2) ORDER BY seq"""
    ).fetchall()
    return [
        (tx_id, body, bool(answered), _refused(at, reasons), height)
        for tx_id, body, answered, at, reasons, height in rows
    ]  # fmt: skip


def _refused(at: bytes, reasons: str) -> dict[int, str]:
    return dict(zip(unpack(f">{len(at) // 4}I", at), reasons.split(","), strict=False))


def task_row(connection: Connection, task_id: bytes) -> tuple[bytes, bytes] | None:
    """(raw lease, state of each job) of a task held once; None where it never was."""
    row = connection.execute("SELECT raw, states FROM tasks WHERE task_id = ?", (task_id,)).fetchone()
    return None if row is None else (row[0], zlib.decompress(row[1]) if row[1] else b"")


def commitments_of(
    connection: Connection, task_id: bytes, first: int, last: int
) -> list[tuple[int, bytes, bytes, bytes, bytes]]:
    """(batch id, worker key, commitments, signature, bindings) of batches with jobs of a range, oldest first."""
    return connection.execute(
        """SELECT id, worker_key, commitments, signature, bindings FROM batch_tasks JOIN batches ON id = batch_id
           WHERE task_id = ? AND first_job <= ? AND last_job >= ? ORDER BY id""",
        (task_id, last, first),
    ).fetchall()


def judgement_of(
    connection: Connection, batch_id: int, position: int
) -> tuple[bool, bytes, bytes, int, bytes, bytes, int] | None:
    """(accepted, transcript digest, seed, k, openings, their artifact, beacon epoch) of one commitment; None while it
    was not judged."""
    wanted = pack(">I", position)
    rows = connection.execute(
        "SELECT positions, accepted, proofs, seed, k, openings, uploaded, epoch FROM judgements WHERE batch_id = ?",
        (batch_id,),
    ).fetchall()
    for at, accepted, proofs, seed, k, openings, uploaded, epoch in rows:
        positions = [at[i : i + 4] for i in range(0, len(at), 4)]
        if wanted not in positions:
            continue
        row, start = positions.index(wanted), 0
        for _ in range(row if openings else 0):
            start += 4 + unpack(">I", openings[start : start + 4])[0]
        opened = openings[start + 4 : start + 4 + unpack(">I", openings[start : start + 4])[0]] if openings else b""
        artifact = _item(uploaded, row)
        return bool(accepted[row]), proofs[32 * row : 32 * row + 32], seed, k, opened, artifact, epoch
    return None


def replications_of(connection: Connection, task_id: bytes) -> dict[tuple[int, int], int]:
    """What replicas showed of a task's commitments (`Replication` in the contract), by batch id and position."""
    rows = connection.execute(
        "SELECT batch_id, position, kind FROM batch_tasks JOIN replications USING (batch_id) WHERE task_id = ?",
        (task_id,),
    )
    return {(batch_id, position): kind for batch_id, position, kind in rows}


def jobs_in(commitments: bytes, task_id: bytes) -> list[tuple[int, CommitmentRow]]:
    """(position, row) of a task's commitments in a batch."""
    return [(at, row) for at, row in enumerate(COMMITMENT.iter_unpack(commitments)) if row[1] == task_id]
