"""Following a task: each event as a line or as a live table of its jobs, and its log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from computemesh.cli import output

if TYPE_CHECKING:
    from computemesh.client import Client
    from computemesh.client.model import Task, TaskEvent

ROWS = 12
"""Jobs of the live table."""
ASK_AGAIN_S = 0.5
"""Jobs are asked of the orchestrator at most this often."""
CATCH_UP_S = 3.0
"""Without --follow: how long to wait for events there should be."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a task's log: when (Unix ms), of what ("task" or "job N"), and what happened."""

    time_ms: int
    source: str
    text: str


class Pace:
    """How fast jobs are settled, from the events seen; tells how long the rest takes."""

    def __init__(self) -> None:
        self._first: tuple[int, int] | None = None

    def eta_s(self, event: TaskEvent) -> float | None:
        """Seconds until all jobs are settled at the mean pace so far, None while nothing tells it."""
        task = event.task
        if self._first is None and task.jobs_running + task.jobs_settled > 0:
            self._first = (event.time_ms, task.jobs_settled)
        if self._first is None or task.ended:
            return None
        began_ms, had = self._first
        done = task.jobs_settled - had
        return (event.time_ms - began_ms) / 1000 / done * (task.jobs_total - task.jobs_settled) if done > 0 else None


def duration(seconds: float) -> str:
    """Rough words: "40 s", "3 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def view(client: Client) -> Iterator[Callable[[TaskEvent], None]]:
    """What shows each event of a watch: nothing with --json, a live table on a terminal, else a line."""
    if output.OUTPUT.as_json:
        yield lambda event: None
    elif sys.stdout.isatty():
        from rich.live import Live

        pace, jobs = Pace(), _Jobs(client)
        with Live(transient=True, auto_refresh=False) as live:
            yield lambda event: live.update(_table(event, pace.eta_s(event), jobs.ask(event.task)), refresh=True)
    else:
        pace = Pace()
        yield lambda event: output.emit(None, _line(event, pace.eta_s(event)))


def _line(event: TaskEvent, eta_s: float | None) -> str:
    from computemesh.cli.task import when

    task = event.task
    if event.partial:
        return f"{when(event.time_ms)}  unverified: {printable(event.partial)}"
    left = f", about {duration(eta_s)} left" if eta_s is not None else ""
    jobs = f"{task.jobs_settled}/{task.jobs_total} settled, {task.jobs_running} running{left}"
    return f"{when(event.time_ms)}  {event.cursor:>4}  {event.kind:<9} {task.status:<12} {jobs}"


def printable(text: str) -> str:
    """A stranger's text on one line, with nothing a terminal would obey."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class _Jobs:
    """A task's jobs as last heard, asked no more often than `ASK_AGAIN_S`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._jobs: list[Any] = []
        self._asked = 0.0

    def ask(self, task: Task) -> list[Any]:
        """The jobs; those heard before where the orchestrator does not answer: the watch goes on without it."""
        from computemesh.trust.errors import MeshError

        if task.ended or time.monotonic() - self._asked >= ASK_AGAIN_S:
            self._asked = time.monotonic()
            try:
                self._jobs = self._client.jobs(task) or self._jobs
            except MeshError:
                return self._jobs
        return self._jobs


def _table(event: TaskEvent, eta_s: float | None, jobs: list[Any]) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    task = event.task
    left = f", about {duration(eta_s)} left" if eta_s is not None else ""
    counts = f"{task.jobs_settled} of {task.jobs_total} jobs settled, {task.jobs_running} running"
    head = Text(f"{task.challenge_type} {task.task_id[:12]} {task.status}: {counts}{left}")
    table = Table("JOB", "STATUS", "ATTEMPT", "WORKER", "LAST FAILURE", box=None, header_style="dim")
    shown = [job for job in jobs if status(job) not in ("settled", "queued")] or jobs
    for job in shown[:ROWS]:
        table.add_row(*map(Text, (str(job.index), status(job), str(job.attempts), job.worker[:16], job.detail)))
    bar = ProgressBar(total=max(task.jobs_total, 1), completed=task.jobs_settled, width=60)
    return Group(head, bar, table, *([Text(f"unverified: {printable(event.partial)}")] if event.partial else []))


def status(job: Any) -> str:
    """The word for a job's status."""
    from computemesh.client.model import enum_word
    from computemesh.v1 import orchestrator_pb2

    return enum_word(orchestrator_pb2.JobStatus, job.status, "JOB_STATUS_")


def lines(client: Client, task_id: str, follow: bool, timeout: float | None) -> Iterator[Line]:
    """The log of a task, oldest first; with `follow` up to its end. Raises as `Client.watch`."""
    from computemesh.trust.errors import DeadlineExceeded

    task = client.get(task_id)
    seen: dict[int, tuple[str, int]] = {}
    asked = _Jobs(client)
    try:
        for event in client.watch(task_id, timeout=timeout if follow else CATCH_UP_S):
            told = [Line(event.time_ms, "task", _happened(event))]
            of_jobs = [*_changes(asked.ask(event.task), seen, event.time_ms)]
            yield from of_jobs + told if event.kind == "ended" else told + of_jobs
            if not follow and event.task.updated_ms >= task.updated_ms:
                return
    except DeadlineExceeded:
        if follow:
            raise


def _happened(event: TaskEvent) -> str:
    task = event.task
    if event.kind == "ended":
        return f"{task.status}{': ' + task.status_detail if task.status_detail else ''}"
    if event.kind in ("leased", "released"):
        return f"{event.kind} {'to the orchestrator at ' + task.orchestrator_address if event.kind == 'leased' else ''}"
    return f"{event.kind}: {task.jobs_settled} of {task.jobs_total} jobs settled, {task.jobs_running} running"


def _changes(jobs: list[Any], seen: dict[int, tuple[str, int]], time_ms: int) -> Iterator[Line]:
    """What became of the jobs since they were last looked at."""
    for job in jobs:
        now = (status(job), job.attempts)
        if seen.get(job.index) == now or now == ("queued", 0):
            continue
        seen[job.index] = now
        by = f" by {job.worker}" if job.worker else ""
        why = f"; attempt {job.attempts} failed before: {job.detail}" if job.detail else ""
        result = f", result {job.result_hash[:16]}.." if job.result_hash else ""
        yield Line(time_ms, f"job {job.index}", f"{now[0]}{by}, attempt {job.attempts}{result}{why}")
