"""Which task is next: customers take turns, and each customer's tasks go by their own order.

Turns, not priorities, stand outermost: priority costs nothing, so otherwise one customer sending only tasks of
priority 9 would starve all others. While one waits, each other customer is served at most twice, once at its old turn
and once at the next. Between customers at the same turn the better head goes first. Push, pop and discard are
O(log n).
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

Key = tuple[int, ...]
"""Smaller goes first, e.g. (9 - priority, deadline, created, sequence); unique per task."""


class _Line:
    __slots__ = ("heap", "turn", "version")

    def __init__(self, turn: int) -> None:
        self.heap: list[tuple[Key, bytes]] = []
        self.turn = turn
        self.version = 0


class FairQueue:
    """Waiting tasks of all customers."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._round: list[tuple[int, Key, int, str]] = []
        self._waiting: dict[bytes, Key] = {}
        self._clock = 0
        # Numbers every entry into the round: one of a line that ran empty and came back must not be taken for new.
        self._entries = 0
        # Customers whose line ran empty, with the turn they come back at: who leaves the queue and rejoins at once must
        # not get in front of those who stayed.
        self._away: dict[str, int] = {}
        self._returns: deque[tuple[int, str]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, task_id: bytes) -> bool:
        return task_id in self._waiting

    def push(self, customer: str, key: Key, task_id: bytes) -> None:
        """Adds a task. One that waits already is not added again."""
        if task_id in self._waiting:
            return
        self._waiting[task_id] = key
        line = self._lines.get(customer)
        if line is None:
            line = self._lines[customer] = _Line(max(self._clock, self._away.pop(customer, 0)))
        heappush(line.heap, (key, task_id))
        if line.heap[0][1] == task_id:
            self._enter(customer, line)

    def discard(self, task_id: bytes) -> None:
        """Takes a task out, if it waits; its place in the heap is dropped when it comes up."""
        self._waiting.pop(task_id, None)

    def pop(self) -> bytes | None:
        """The next task, None where none waits."""
        while self._round:
            turn, _, version, customer = heappop(self._round)
            line = self._lines.get(customer)
            if line is None or version != line.version:
                continue
            stale = self._clean(line)
            if not line.heap:
                self._leave(customer, turn)
            elif stale:
                self._enter(customer, line)
            else:
                return self._serve(customer, line)
        return None

    def _serve(self, customer: str, line: _Line) -> bytes:
        _, task_id = heappop(line.heap)
        del self._waiting[task_id]
        self._advance(line.turn)
        line.turn += 1
        self._clean(line)
        if line.heap:
            self._enter(customer, line)
        else:
            self._leave(customer, line.turn)
        return task_id

    def _clean(self, line: _Line) -> bool:
        """Drops discarded tasks from the head of the line; whether there were any."""
        found = False
        while line.heap and self._waiting.get(line.heap[0][1]) != line.heap[0][0]:
            heappop(line.heap)
            found = True
        return found

    def _enter(self, customer: str, line: _Line) -> None:
        self._entries += 1
        line.version = self._entries
        heappush(self._round, (line.turn, line.heap[0][0], line.version, customer))

    def _leave(self, customer: str, turn: int) -> None:
        del self._lines[customer]
        if turn > self._clock:
            self._away[customer] = turn
            self._returns.append((turn, customer))

    def _advance(self, turn: int) -> None:
        self._clock = max(self._clock, turn)
        while self._returns and self._returns[0][0] <= self._clock:
            back, customer = self._returns.popleft()
            if self._away.get(customer) == back:
                del self._away[customer]
