"""What the market tells of itself: its tasks by phase, what happened to them, and who is connected."""

from __future__ import annotations

import time
from collections import Counter as Tally

from prometheus_client import Counter, Gauge

from market.book import Book
from market.states import TERMINAL, Changed, EventKind, Phase

SAMPLE_EVERY_S = 1.0

_EVENTS = Counter("computemesh_task_events", "What customers were told of tasks, by kind.", ["kind"])
_ENDED = Counter("computemesh_tasks_ended", "Tasks that ended, by status.", ["status"])
_TASKS = Gauge("computemesh_tasks", "Live tasks, by phase.", ["phase"])
_QUEUE = Gauge("computemesh_queue_tasks", "Tasks that wait for an orchestrator.")
_CONNECTED = Gauge("computemesh_orchestrators", "Orchestrators connected now.")
_WATCHED = Gauge("computemesh_watched_tasks", "Tasks that somebody watches now.")
_KINDS = {kind: _EVENTS.labels(kind.name.lower()) for kind in EventKind}
_STATUSES = {status: _ENDED.labels(status.name.lower()) for status in TERMINAL}
_PHASES = {phase: _TASKS.labels(phase.name.lower()) for phase in Phase if phase is not Phase.ENDED}


class Telemetry:
    """One market's."""

    def __init__(self) -> None:
        self._sampled_s = 0.0

    def published(self, change: Changed) -> None:
        """An event of a task is durable."""
        assert change.kind is not None
        _KINDS[change.kind].inc()
        if change.kind is EventKind.ENDED:
            _STATUSES[change.state.status].inc()

    def sample(self, book: Book, watched: int) -> None:
        """Gauges, at most once a second."""
        now_s = time.monotonic()
        if now_s - self._sampled_s < SAMPLE_EVERY_S:
            return
        self._sampled_s = now_s
        phases = Tally(task.state.phase for task in book.tasks.values())
        for phase, gauge in _PHASES.items():
            gauge.set(phases[phase])
        _QUEUE.set(len(book.queue))
        _CONNECTED.set(len(book.connections))
        _WATCHED.set(watched)
