"""Which job runs where: the queue of held jobs and the devices that take from it. Pure.

A lane is one executor process with its device. It holds up to `AHEAD` groups of jobs: the one it runs and the
next, so that it never waits for the agent. It works in order, so when it dies the first group is the suspect.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from computemesh.v1.orchestrator_pb2 import Job, Partial, WorkRequest

AHEAD = 2
MAX_SUSPECTS = 1024

Row = tuple[Any, ...]
"""(task_id, index, params, binding) or, where the job reads files, (.., files): a job as an executor needs it."""
JobKey = tuple[bytes, int]


@dataclass(frozen=True, slots=True)
class Run:
    """Work for one lane's executor."""

    lane: int
    group_id: int
    challenge_type: str
    rows: list[Row]


@dataclass(slots=True)
class Group:
    """Jobs an executor has been given together. `stale`: their stream is gone and nobody wants the result."""

    group_id: int
    lane: int
    challenge_type: str
    leases: list[int]
    stale: bool = False


@dataclass(slots=True)
class Lane:
    up: bool = False
    groups: deque[Group] = field(default_factory=deque)
    busy_since_ms: int = 0
    busy_ms: int = 0


class Lanes:
    """Held jobs, their queue, and what each lane was given.

    `batchable` are the task types that run together; `group_size(type)` says how many at most.
    """

    def __init__(self, count: int, batchable: Collection[str], group_size: Callable[[str], int]) -> None:
        self.lanes = [Lane() for _ in range(count)]
        self.held: dict[int, Job] = {}
        self._files: dict[int, Any] = {}  # by lease, of jobs that read some
        self._batchable = frozenset(batchable)
        self._group_size = group_size
        self._queue: deque[int] = deque()
        self._groups: dict[int, Group] = {}
        self._next_group = 1
        self.busy: list[float] = []  # share of each lane when it was last measured
        self._suspects: OrderedDict[JobKey, int] = OrderedDict()

    @property
    def working(self) -> int:
        """Lanes whose executor is up."""
        return sum(lane.up for lane in self.lanes)

    def add(self, jobs: Iterable[Job]) -> None:
        """Hold and queue these jobs; the caller has seen to it that no lease is held already."""
        for job in jobs:
            lease = job.lease_id
            self.held[lease] = job
            self._queue.append(lease)

    def hold(self, job: Job) -> None:
        """Hold a job that must not run yet: its files are on their way."""
        self.held[job.lease_id] = job

    def release(self, job: Job, files: Any) -> None:
        """Queue a job that was held back."""
        self._files[job.lease_id] = files
        self._queue.append(job.lease_id)

    def assign(self, now_ms: int) -> list[Run]:
        """Fill the lanes from the queue, the emptiest first."""
        runs: list[Run] = []
        for depth in range(AHEAD):
            for number, lane in enumerate(self.lanes):
                if lane.up and len(lane.groups) <= depth:
                    run = self._next_run(number, lane, now_ms)
                    if run is None:
                        return runs
                    runs.append(run)
        return runs

    def _next_run(self, number: int, lane: Lane, now_ms: int) -> Run | None:
        leases, challenge_type = self._take()
        if not leases:
            return None
        group = Group(self._next_group, number, challenge_type, leases)
        self._next_group += 1
        self._groups[group.group_id] = group
        if not lane.groups:
            lane.busy_since_ms = now_ms
        lane.groups.append(group)
        held = self.held
        rows: list[Row] = [(job.task_id, job.index, job.params, job.binding) for job in map(held.__getitem__, leases)]
        if self._files:
            files = [self._files.get(lease) for lease in leases]
            rows = [row if found is None else (*row, found) for row, found in zip(rows, files, strict=True)]
        return Run(number, group.group_id, challenge_type, rows)

    def _take(self) -> tuple[list[int], str]:
        """The next group: the head of the queue and what may run with it."""
        queue, held, suspects = self._queue, self.held, self._suspects
        leases: list[int] = []
        challenge_type, most = "", 1
        while queue and len(leases) < most:
            job = held.get(queue[0])
            if job is None:  # revoked while it waited
                queue.popleft()
                continue
            # A job that may have killed an executor runs alone, so that the next death names the culprit.
            alone = bool(suspects) and (job.task_id, job.index) in suspects
            if leases and (alone or job.challenge_type != challenge_type):
                break
            leases.append(queue.popleft())
            if len(leases) == 1:
                challenge_type = job.challenge_type
                if not alone and challenge_type in self._batchable:
                    most = self._group_size(challenge_type)
        return leases, challenge_type

    def partials(self, group_id: int, text: str) -> list[WorkRequest]:
        """What tells the text so far of a group's job that somebody still waits for."""
        group = self._groups.get(group_id)
        leases = () if group is None or group.stale else group.leases
        return [WorkRequest(partial=Partial(lease_id=lease, text=text)) for lease in leases if lease in self.held]

    def finish(self, group_id: int, now_ms: int) -> Group | None:
        """The executor is through with a group. None where it is unknown: its executor was given up before."""
        group = self._groups.pop(group_id, None)
        if group is None:
            return None
        lane = self.lanes[group.lane]
        lane.groups.remove(group)
        self._count_busy(lane, now_ms)
        if self._files:
            for lease in group.leases:
                self._files.pop(lease, None)
        return group

    def jobs_of(self, group_id: int) -> list[Job]:
        """Jobs of a group that are still held."""
        group = self._groups.get(group_id)
        return [] if group is None else [self.held[lease] for lease in group.leases if lease in self.held]

    def absolve(self, job: Job) -> None:
        """The job ran to its end: it is no suspect any more."""
        if self._suspects:
            self._suspects.pop((job.task_id, job.index), None)

    def lane_up(self, number: int) -> None:
        self.lanes[number].up = True

    def lane_down(self, number: int, now_ms: int) -> list[tuple[Job, int]]:
        """The lane's executor died. Returns the jobs it was running, each with how many deaths it saw.

        What was only waiting there goes back to the head of the queue.
        """
        lane = self.lanes[number]
        lane.up = False
        groups = [group for group in lane.groups if self._groups.pop(group.group_id, None)]
        lane.groups.clear()
        self._count_busy(lane, now_ms)
        for group in reversed(groups[1:]):
            if not group.stale:
                self._queue.extendleft(reversed([lease for lease in group.leases if lease in self.held]))
        if not groups or groups[0].stale:
            return []
        ran = [self.held.pop(lease) for lease in groups[0].leases if lease in self.held]
        for job in ran if self._files else ():
            self._files.pop(job.lease_id, None)
        return [(job, self._suspect((job.task_id, job.index))) for job in ran]

    def _suspect(self, key: JobKey) -> int:
        deaths = self._suspects.pop(key, 0) + 1
        self._suspects[key] = deaths
        if len(self._suspects) > MAX_SUSPECTS:
            self._suspects.popitem(last=False)
        return deaths

    def drop(self, leases: Iterable[int]) -> tuple[list[Job], list[tuple[int, int]]]:
        """Let go of these jobs. Returns those that were held, and (lane, group) of groups with no job left."""
        dropped = [job for job in (self.held.pop(lease, None) for lease in leases) if job is not None]
        for job in dropped if self._files else ():
            self._files.pop(job.lease_id, None)
        empty = [
            (group.lane, group.group_id)
            for group in self._groups.values()
            if not group.stale and not any(lease in self.held for lease in group.leases)
        ]
        for _, group_id in empty:
            self._groups[group_id].stale = True
        return dropped, empty

    def reset(self) -> list[tuple[int, int]]:
        """Forget every held job. Returns (lane, group) of the groups that run for nothing now."""
        return self.drop(list(self.held))[1]

    def utilisation(self, now_ms: int, interval_ms: int) -> list[float]:
        """Busy share of each lane over the last `interval_ms`, 0..1; starts the next measurement."""
        shares = []
        for lane in self.lanes:
            self._count_busy(lane, now_ms)
            shares.append(min(lane.busy_ms / interval_ms, 1.0) if interval_ms > 0 else 0.0)
            lane.busy_ms = 0
        self.busy = shares
        return shares

    @staticmethod
    def _count_busy(lane: Lane, now_ms: int) -> None:
        if lane.busy_since_ms:
            lane.busy_ms += max(now_ms - lane.busy_since_ms, 0)
        lane.busy_since_ms = now_ms if lane.groups else 0
