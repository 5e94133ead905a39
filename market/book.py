"""The market's memory: live tasks, orchestrators, the queue; and the one way to change a task.

A live step and the restart both go through `enter`, so what is reloaded is what was.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from hashlib import sha256
from heapq import heappush
from typing import Any

from market.fair_queue import FairQueue
from market.kinds import EventKind, FeedKind
from market.states import (
    PHASES,
    Cause,
    Changed,
    IntentKind,
    OutcomeRow,
    Phase,
    ProgressRow,
    Record,
    Spec,
    State,
    Status,
)


@dataclass(slots=True)
class Task:
    """A live task in memory."""

    spec: Spec
    state: State
    sequence: int
    progress: ProgressRow | None = None
    progress_ms: int = 0
    # Jobs submitted, verified and settled, as far as the feed has said.
    reached: tuple[int, int, int] = (0, 0, 0)
    # The orchestrator's claim that all jobs are settled, until the ledger confirmed it.
    claim: OutcomeRow | None = None
    retries: int = 0
    wake_ms: int = 0
    # Connection whose credit the present assignment took.
    charged: int | None = None


@dataclass(slots=True)
class Orchestrator:
    """One orchestrator key: what it holds outlives its connection by `lease_ms`. `takes` are the task types that it has
    workers for; `lacks` those of what it holds that it has none for, and since when, ms."""

    key: bytes
    address: str
    connection: int | None
    seen_ms: int
    credits: int = 0
    takes: frozenset[str] = frozenset()
    lacks: dict[str, int] = field(default_factory=dict)
    held: dict[bytes, None] = field(default_factory=dict)


def transaction_id(intent: IntentKind, task_id: bytes, epoch: int, now_ms: int) -> bytes:
    """A UUIDv7 (RFC 9562) whose random bits are a digest of what it is for: no randomness, no repetition."""
    bits = sha256(bytes([intent]) + task_id + epoch.to_bytes(4, "big")).digest()
    head = now_ms.to_bytes(6, "big")
    return head + bytes([0x70 | bits[0] & 0x0F, bits[1], 0x80 | bits[2] & 0x3F]) + bits[3:10]


def revocation(task: Task | None, ended: Status | None) -> Status | None:
    """What an orchestrator is told of a task it no longer holds: how it ended, None where that is not known."""
    if task is None:
        return ended if ended in (Status.CANCELLED, Status.EXPIRED) else None
    if task.state.phase is not Phase.CLOSING:
        return None
    if task.state.intent is None:
        return Status.EXPIRED
    return Status.CANCELLED if task.state.intent.cause is Cause.CANCELLED else None


class Book:
    """All that lives. `records` collects what the present step changed, `now_ms` is its time."""

    def __init__(self) -> None:
        self.tasks: dict[bytes, Task] = {}
        self.open: Counter[str] = Counter()  # tasks per customer
        self.orchestrators: dict[bytes, Orchestrator] = {}
        self.connections: dict[int, Orchestrator] = {}
        self.queue = FairQueue()
        self.deadlines: list[tuple[int, bytes]] = []
        self.records: list[Record] = []
        self.now_ms = 0
        self._sequence = 0

    def enter(self, task: Task, state: State) -> None:
        """Brings a task's new state into the indices: the one way, for live changes and at a restart."""
        task_id, old, task.state = task.spec.task_id, task.state, state
        if old.phase is Phase.ASSIGNING and state.phase is Phase.CLOSING and task.charged in self.connections:
            self.connections[task.charged].credits += 1
        if old.phase in (Phase.ASSIGNING, Phase.LEASED):
            holder = self.orchestrators.get(old.orchestrator_key)
            if holder is not None:
                holder.held.pop(task_id, None)
        self.queue.discard(task_id)
        if state.phase is Phase.QUEUED:
            spec = task.spec
            self.queue.push(
                spec.customer, (9 - spec.priority, spec.deadline_ms, spec.created_ms, task.sequence), task_id)
        elif state.phase in (Phase.ASSIGNING, Phase.LEASED):
            self.orchestrator(state.orchestrator_key, state.orchestrator_address).held[task_id] = None
        elif state.phase is Phase.ENDED:
            del self.tasks[task_id]
            customer = task.spec.customer
            self.open[customer] -= 1
            if not self.open[customer]:
                del self.open[customer]

    def admit(self, spec: Spec, state: State) -> Task:
        """Takes in a task, new or reloaded."""
        self._sequence += 1
        self.open[spec.customer] += 1
        task = self.tasks[spec.task_id] = Task(spec, state, self._sequence)
        task.reached = (state.jobs_settled,) * 3
        heappush(self.deadlines, (spec.deadline_ms, spec.task_id))
        self.enter(task, state)
        return task

    def change(
        self, task: Task, kind: EventKind | None, feed: tuple[tuple[FeedKind, int], ...] = (), **values: Any
    ) -> None:
        """Records a new state; `kind` where customers are told, `feed` what everybody is told besides. Raises
        AssertionError where the table forbids it."""
        old = task.state
        cursor = old.cursor + (kind is not None)
        state = replace(old, cursor=cursor, updated_ms=max(self.now_ms, old.updated_ms), **values)
        if state.phase is not old.phase and state.phase not in PHASES[old.phase]:
            raise AssertionError(f"no transition {old.phase.name} -> {state.phase.name}")
        self.records.append(Changed(task.spec.task_id, state, kind, feed))
        self.enter(task, state)

    def orchestrator(self, key: bytes, address: str) -> Orchestrator:
        """The orchestrator of this key, from now on if it is new."""
        found = self.orchestrators.get(key)
        if found is None:
            found = self.orchestrators[key] = Orchestrator(key, address, None, self.now_ms)
        return found

    def holder(self, task: Task) -> Orchestrator | None:
        """Who has the task, or had it last before it closes."""
        return self.orchestrators.get(task.state.orchestrator_key)

    def leased(self, orchestrator: Orchestrator, task_id: bytes, epoch: int) -> Task | None:
        """The task, if this orchestrator holds it under this epoch."""
        task = self.tasks.get(task_id)
        if task is None or task_id not in orchestrator.held or task.state.epoch != epoch:
            return None
        return task if task.state.phase is Phase.LEASED else None

    def stranded(self, orchestrator: Orchestrator, patience_ms: int) -> list[Task]:
        """Tasks it holds and does not say are done, that it has had no worker for as long as `patience_ms`, and that
        others have workers and credits for."""
        held = [self.tasks[task_id] for task_id in orchestrator.held]
        lacking = [task for task in held if task.state.phase is Phase.LEASED and task.claim is None
                   and task.spec.challenge_type not in orchestrator.takes]
        since = orchestrator.lacks
        orchestrator.lacks = {name: since.get(name, self.now_ms) for name in {t.spec.challenge_type for t in lacking}}
        credits = {key: one.credits for key, one in self.connections.items() if one is not orchestrator and one.credits}
        found = []
        for task in lacking:
            name = task.spec.challenge_type
            other = next((key for key, left in credits.items() if left and name in self.connections[key].takes), None)
            if other is not None and self.now_ms - orchestrator.lacks[name] >= patience_ms:
                credits[other] -= 1
                found.append(task)
        return found
