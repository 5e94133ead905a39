"""Which worker gets jobs next, and from which task: priority, then fair shares, then deadline, then age.

Tasks of one task type and memory need form a lane. In a lane each priority is a level; in a level customers take
turns by virtual time (start-time fair queueing, Goyal, Vin and Cheng, SIGCOMM 1996: whoever got the least work
weighted by its cost goes first); a customer's tasks are a heap by deadline, then age. A level that was passed over
counts as one priority higher for every `aging_ms` it waited, so low priorities get a turn, too.

Choosing costs O(lanes the worker fits * 10 + log tasks); nothing here looks at every task. Idle workers that can take
the same things stand in one line, so that the first who finds nothing speaks for all behind it.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from itertools import count

from orchestrator.model import Task, Worker

LEVELS = 10


class Customer:
    """A customer's share at one priority: `used` is its virtual time, work weighted by cost."""

    __slots__ = ("tasks", "used")

    def __init__(self) -> None:
        self.used = 0.0
        self.tasks: dict[tuple[str, int], list[tuple[int, int, int, Task]]] = {}


class Level:
    """One priority of one lane: customers with waiting tasks, least served first."""

    __slots__ = ("heap", "served_ms")

    def __init__(self) -> None:
        # (virtual time when pushed, order, customer); stale entries are corrected when they surface, which is sound
        # because virtual time only grows.
        self.heap: list[tuple[float, int, Customer]] = []
        self.served_ms = 0


Line = OrderedDict[int, Worker]


class Ready:
    """Workers with free credits in the order of their turn, a line for each (task types, memory)."""

    def __init__(self) -> None:
        self._lines: dict[tuple[frozenset[str], int], Line] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, worker: Worker) -> bool:
        return worker.session in self._lines.get((worker.types, worker.memory_bytes), ())

    def add(self, worker: Worker) -> None:
        """A worker may be given jobs; one that stands in line already keeps its place."""
        line = self._lines.setdefault((worker.types, worker.memory_bytes), OrderedDict())
        if worker.session not in line:
            line[worker.session] = worker
            self._size += 1

    def discard(self, worker: Worker) -> None:
        """A worker is to be given no jobs."""
        kind = (worker.types, worker.memory_bytes)
        line = self._lines.get(kind)
        if line is not None and line.pop(worker.session, None) is not None:
            self._size -= 1
            if not line:
                del self._lines[kind]

    def lines(self) -> list[Line]:
        """Every line that has somebody in it."""
        return list(self._lines.values())


class Queue:
    """All tasks with waiting jobs."""

    def __init__(self, aging_ms: int) -> None:
        self._aging_ms = max(aging_ms, 1)
        self._lanes: dict[tuple[str, int], list[Level]] = {}
        self._customers: dict[tuple[int, str], Customer] = {}
        self._clock = [0.0] * LEVELS
        self._order = count()

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def add(self, task: Task, now_ms: int) -> None:
        """Queue a task that has waiting jobs; one that is queued stays where it is."""
        if task.queued or task.ended or not task.waiting:
            return
        task.queued = True
        lane = (task.challenge_type, task.memory)
        levels = self._lanes.get(lane)
        if levels is None:
            levels = self._lanes[lane] = [Level() for _ in range(LEVELS)]
        level = levels[task.priority]
        customer = self._customers.get((task.priority, task.customer))
        if customer is None:
            customer = self._customers[task.priority, task.customer] = Customer()
        if not any(customer.tasks.values()):
            # Whoever was away gets no credit for the time in which it asked for nothing.
            customer.used = max(customer.used, self._clock[task.priority])
        tasks = customer.tasks.setdefault(lane, [])
        if not tasks:
            if not level.heap:
                level.served_ms = now_ms
            heapq.heappush(level.heap, (customer.used, next(self._order), customer))
        heapq.heappush(tasks, (task.deadline_ms, task.created_ms, next(self._order), task))

    def choose(self, types: frozenset[str], memory_bytes: int, now_ms: int) -> Iterator[Task]:
        """Tasks a worker could take from, best first. The caller takes jobs and calls `served`, or goes on.

        Each task is out of the queue while the caller looks at it; it must be given back with `add` if jobs remain.
        """
        while True:
            found = self._best(types, memory_bytes, now_ms)
            if found is None:
                return
            lane, level, customer = found
            task = heapq.heappop(customer.tasks[lane])[3]
            task.queued = False
            if not customer.tasks[lane]:
                del customer.tasks[lane]
                heapq.heappop(level.heap)
                if not level.heap and not any(x.heap for x in self._lanes[lane]):
                    del self._lanes[lane]
            if task.waiting and not task.ended:
                yield task

    def served(self, task: Task, jobs: int, now_ms: int) -> None:
        """Charge the customer for `jobs` jobs of `task`."""
        customer = self._customers[task.priority, task.customer]
        self._clock[task.priority] = max(self._clock[task.priority], customer.used)
        customer.used += jobs * task.cost
        levels = self._lanes.get((task.challenge_type, task.memory))
        if levels is not None:
            levels[task.priority].served_ms = now_ms

    def forget_idle(self) -> None:
        """Drop customers that have nothing waiting and are not ahead of their share."""
        idle = [
            name for name, customer in self._customers.items()
            if not customer.tasks and customer.used <= self._clock[name[0]]
        ]  # fmt: skip
        for name in idle:
            del self._customers[name]

    def _best(
        self, types: frozenset[str], memory_bytes: int, now_ms: int
    ) -> tuple[tuple[str, int], Level, Customer] | None:
        best: tuple[float, float, int] | None = None
        found = None
        for lane, levels in self._lanes.items():
            if (types and lane[0] not in types) or (memory_bytes and lane[1] > memory_bytes):
                continue
            for priority, level in enumerate(levels):
                if not level.heap:
                    continue
                customer = self._least_served(level)
                aged = priority + (now_ms - level.served_ms) // self._aging_ms
                rank = (-aged, customer.used - self._clock[priority], customer.tasks[lane][0][0])
                if best is None or rank < best:
                    best, found = rank, (lane, level, customer)
        return found

    def _least_served(self, level: Level) -> Customer:
        used, order, customer = level.heap[0]
        while used < customer.used:
            heapq.heapreplace(level.heap, (customer.used, order, customer))
            used, order, customer = level.heap[0]
        return customer
